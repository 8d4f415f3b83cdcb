//! The AERO operator.
//!
//! One folder per kind. In each, what is to be done is a pure function of what is observed
//! ([`client::plan`], [`mapping::fate`], `status`), tested without an API server, and a thin
//! shell reads the caches and writes. [`context`] holds the caches and the queues that their
//! changes fill; [`table`] and [`members`] are their indexes, so that a round costs what has changed
//! and not what there is.

#![forbid(unsafe_code)]

pub mod allocation;
pub mod changes;
pub mod client;
pub mod context;
pub mod events;
pub mod fleet;
pub mod link;
pub mod mapping;
pub mod members;
pub mod metrics;
pub mod objects;
pub mod queue;
pub mod relay;
pub mod routes;
pub mod run;
pub mod server;
pub mod sessions;
pub mod table;
pub mod taken;
