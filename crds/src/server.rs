//! AeroServer: the Servers of a link.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::LinkRef;

/// UDP port of a Server on the underlay when the AeroServer does not say.
pub const SERVER_PORT: i32 = 8060;

/// The Servers of a link.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "aerolink.dev",
    version = "v1alpha1",
    kind = "AeroServer",
    plural = "aeroservers",
    namespaced,
    shortname = "aserver",
    category = "aero",
    status = "AeroServerStatus",
    derive = "PartialEq",
    cel,
    doc = "The Servers of an AERO link: they delegate prefixes and forward until a direct way is known.",
    printcolumn(name = "Link", type_ = "string", json_path = ".spec.linkRef.name"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Replicas", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(
        name = "Addresses",
        type_ = "string",
        priority = 1,
        json_path = ".status.addresses"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        priority = 1,
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct AeroServerSpec {
    /// The AERO link that is served.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("linkRef cannot be changed: make another AeroServer"))]
    pub link_ref: LinkRef,
    /// Number of Servers. Not given: two, or one on a cluster of one node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 64))]
    pub replicas: Option<i32>,
    /// Labels of the nodes that Servers may run on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// UDP port on the underlay.
    #[serde(default = "default_port")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: i32,
    /// AeroRelays of this namespace to which the Servers announce their Clients.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub relay_refs: Vec<RelayRef>,
    /// Number of the autonomous system of the interior BGP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4_294_967_294_i64))]
    pub asn: Option<i64>,
}

impl Default for AeroServerSpec {
    fn default() -> Self {
        Self {
            link_ref: LinkRef::default(),
            replicas: None,
            node_selector: BTreeMap::new(),
            port: SERVER_PORT,
            relay_refs: Vec::new(),
            asn: None,
        }
    }
}

fn default_port() -> i32 {
    SERVER_PORT
}

/// Names an AeroRelay.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
pub struct RelayRef {
    /// Name of the AeroRelay, in the same namespace.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// What the operator says about an AeroServer.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AeroServerStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions.
    #[serde(default)]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
    /// Number of Servers that are ready.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Addresses of the ready Servers on the underlay.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub addresses: Vec<String>,
    /// BGP sessions to the Relays.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub bgp_sessions: Vec<BgpSession>,
}

/// A BGP session.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BgpSession {
    /// The peer.
    pub peer: String,
    /// State of the session, as BGP names it.
    pub state: String,
}
