//! The AERO node agent: the agent of a Kubernetes node (many Clients in one node), the Server,
//! and the Client of a host outside Kubernetes: roles of one program.
//!
//! [`agent`] serves the CNI plugin ([`cni`]), attaches pods ([`attach`]) and speaks for them on
//! the AERO link; [`server`] leases prefixes and forwards; [`client`] speaks for its own host;
//! [`relay`] forwards between Servers, [`bgp`] tells it of their Clients; [`forwarding_agent`]
//! forwards as a Server tells it. All drive an engine of the protocol crate ([`driver`]) and
//! forward packets by the data plane crate.

#![forbid(unsafe_code)]

pub mod agent;
pub mod attach;
pub mod bgp;
pub mod client;
pub mod cni;
pub mod driver;
pub mod duid;
mod endpoints;
pub mod forwarding;
pub mod forwarding_agent;
pub mod keys;
mod lines;
pub mod messages;
pub mod metrics;
pub mod paths;
pub mod relay;
pub mod server;
mod sparing;
pub mod sysctl;
