//! The lab: a real Kubernetes of several nodes in network namespaces of one machine, without a
//! container engine and without an image registry. And the scenarios that the demo and the
//! end-to-end tests share.

#![forbid(unsafe_code)]

pub mod frr;
pub mod lab;
pub mod scenario;
