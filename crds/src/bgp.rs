//! BGP sessions, as a daemon reports them and as a status shows them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Key of a report in its ConfigMap: a list of [`BgpSession`] as JSON.
pub const REPORT_KEY: &str = "sessions.json";
/// Key of the routes file in its ConfigMap.
pub const ROUTES_KEY: &str = "routes.yaml";
/// State of a session over which routes are told.
pub const ESTABLISHED: &str = "Established";
/// State of any other.
pub const DOWN: &str = "Down";

/// Name of the ConfigMap in which the daemon of a pod reports its sessions.
pub fn report_name(pod: &str) -> String {
    format!("aero-bgp-{pod}")
}

/// Name of the ConfigMap with the routes file of a link.
pub fn routes_name(link: &str) -> String {
    format!("aero-routes-{link}")
}

/// A BGP session.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BgpSession {
    /// The pod whose session it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// The peer's address.
    pub peer: String,
    /// The AS number that the peer is expected to have.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peer_asn: Option<i64>,
    /// `Established`, or `Down`.
    pub state: String,
    /// The last error of the protocol while it is down, for example `BGP Error: Bad peer AS`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Prefixes that the peer announces and that are not taken; the first few.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<String>,
}

impl BgpSession {
    /// Whether routes are told over it.
    pub fn is_established(&self) -> bool {
        self.state == ESTABLISHED
    }

    /// Whether the peer is a router outside the link: Servers and Relays speak by link-local
    /// addresses.
    pub fn is_external(&self) -> bool {
        !self.peer.to_ascii_lowercase().starts_with("fe80:")
    }
}
