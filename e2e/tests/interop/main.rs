//! The protocol on real kernels, without Kubernetes.
//!
//! The built `aero-node-agent` (Servers, Clients) in network namespaces, against software that
//! nobody here wrote (stock DHCPv6 clients, perfdhcp, Kea, tshark) and against a tester that
//! speaks the tunnel protocol from plain sockets and can take any role. Each test has namespaces
//! of its own, called `aero-io-...`; what a run that was killed has left is removed by the next.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    missing_docs
)]

mod bgp;
mod client;
mod decode;
mod forgery;
mod forwarding_agent;
mod legacy;
mod net;
mod numbered;
mod paths;
mod security;
mod server;
mod servers;
mod slow;
mod stock;
mod tester;
