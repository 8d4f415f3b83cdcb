//! Requests and answers between the CNI plugin and the agent: one of each per connection, as a
//! big-endian length of 4 bytes and JSON of that length.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Longest request or answer in bytes.
pub const MAX_FRAME: u32 = 1 << 20;

/// A request of the plugin.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Version of this protocol: 1.
    pub version: u32,
    /// CNI verb.
    pub verb: String,
    /// CNI_CONTAINERID.
    #[serde(default)]
    pub container_id: String,
    /// CNI_NETNS.
    #[serde(default)]
    pub netns: String,
    /// CNI_IFNAME.
    #[serde(default)]
    pub ifname: String,
    /// CNI_ARGS, taken apart.
    #[serde(default)]
    pub args: BTreeMap<String, String>,
    /// The network configuration as the plugin got it.
    #[serde(default)]
    pub config: Value,
}

/// The agent's answer.
#[derive(Debug, Clone, Deserialize, Serialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub enum Response {
    /// Done.
    Ok(Done),
    /// Not done.
    Error(CniError),
}

/// What was done.
#[derive(Debug, Clone, Default, Deserialize, Serialize, PartialEq)]
pub struct Done {
    /// What was added; `None` where there was nothing to add.
    pub attachment: Option<Attachment>,
}

/// What was added to a pod.
#[derive(Debug, Clone, Default, Deserialize, Serialize, PartialEq)]
pub struct Attachment {
    /// Interfaces, the node's side first.
    pub interfaces: Vec<Interface>,
    /// Addresses.
    pub ips: Vec<Ip>,
    /// Routes.
    pub routes: Vec<Route>,
}

/// An interface, as CNI describes it.
#[derive(Debug, Clone, Default, Deserialize, Serialize, PartialEq)]
pub struct Interface {
    /// Name.
    pub name: String,
    /// MAC.
    pub mac: String,
    /// MTU.
    pub mtu: u32,
    /// The namespace that it is in; none for the node's side.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<String>,
}

/// An address, as CNI describes it.
#[derive(Debug, Clone, Default, Deserialize, Serialize, PartialEq)]
pub struct Ip {
    /// Address with length.
    pub address: String,
    /// Place of its interface in the list; -1 means the pod's primary interface.
    pub interface: i64,
    /// Gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gateway: Option<String>,
}

/// A route, as CNI describes it.
#[derive(Debug, Clone, Default, Deserialize, Serialize, PartialEq)]
pub struct Route {
    /// Destination.
    pub dst: String,
    /// Gateway.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gw: Option<String>,
    /// MTU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u32>,
}

/// A CNI error: a code of the specification and a sentence.
#[derive(Debug, Clone, Default, Deserialize, Serialize, PartialEq, Eq)]
pub struct CniError {
    /// Code.
    pub code: u32,
    /// What is wrong.
    pub msg: String,
    /// What may help.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub details: String,
}

/// Error codes of the CNI specification 1.1 that the agent gives.
pub mod code {
    /// An environment variable is missing or wrong.
    pub const INVALID_ENVIRONMENT: u32 = 4;
    /// An operation on the node failed.
    pub const IO_FAILURE: u32 = 5;
    /// The network configuration is wrong.
    pub const INVALID_CONFIG: u32 = 7;
    /// Passing; try again.
    pub const TRY_AGAIN_LATER: u32 = 11;
    /// The plugin cannot serve ADD now.
    pub const NOT_AVAILABLE: u32 = 50;
}

impl CniError {
    /// An error.
    pub fn new(code: u32, msg: impl Into<String>) -> Self {
        Self { code, msg: msg.into(), details: String::new() }
    }

    /// Adds what may help.
    #[must_use]
    pub fn details(mut self, details: impl Into<String>) -> Self {
        self.details = details.into();
        self
    }
}
