//! What the CNI plugin needs of the agent: requests over a Unix socket, the plugin and its
//! configuration on the node.

pub mod conflist;
pub mod protocol;
pub mod server;
