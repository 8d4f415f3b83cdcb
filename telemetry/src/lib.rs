//! What every AERO binary has in common: logs, an admin port with health and metrics, and an
//! orderly end.

#![forbid(unsafe_code)]

pub mod admin;
pub mod catalog;
pub mod debug;
pub mod logs;
pub mod shutdown;
