//! The AERO node agent: the agent of a Kubernetes node (many Clients in one node) and the
//! Server, two roles of one program.
//!
//! [`agent`] serves the CNI plugin ([`cni`]), attaches pods ([`attach`]) and speaks for them on
//! the AERO link; [`server`] leases prefixes and forwards. Both drive an engine of the protocol
//! crate ([`driver`]) and forward packets by the data plane crate.

#![forbid(unsafe_code)]

pub mod agent;
pub mod attach;
pub mod cni;
pub mod driver;
pub mod metrics;
pub mod server;
pub mod sysctl;
