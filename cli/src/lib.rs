//! `kubectl aero`: what a user of AERO asks, answered from what the API server, the agents and the
//! Servers say.
//!
//! [`observe`] reads (the agents' and Servers' debug pages through [`reach`]); [`status`],
//! [`explain`], [`trace`], [`connectivity`] and [`moves`] are pure functions from what was read to
//! what is said ([`report`]); [`bundle`] packs it all for somebody else.

#![forbid(unsafe_code)]

pub mod bundle;
pub mod connectivity;
pub mod explain;
pub mod moves;
pub mod observe;
pub mod reach;
pub mod report;
pub mod status;
pub mod target;
pub mod trace;

#[cfg(test)]
mod example;
