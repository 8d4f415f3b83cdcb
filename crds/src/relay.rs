//! AeroRelay: the Relays of a link.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{BgpSession, LinkRef, SERVER_PORT};

/// The Relays of a link.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "aerolink.dev",
    version = "v1alpha1",
    kind = "AeroRelay",
    plural = "aerorelays",
    namespaced,
    shortname = "arelay",
    category = "aero",
    status = "AeroRelayStatus",
    derive = "PartialEq",
    cel,
    doc = "The Relays of an AERO link: they forward between Servers and join the link to the outside. Not run yet by this version.",
    printcolumn(name = "Link", type_ = "string", json_path = ".spec.linkRef.name"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct AeroRelaySpec {
    /// The AERO link.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("linkRef cannot be changed: make another AeroRelay"))]
    pub link_ref: LinkRef,
    /// Number of Relays. Not given: two, or one on a cluster of one node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 64))]
    pub replicas: Option<i32>,
    /// Labels of the nodes that Relays may run on.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// UDP port on the underlay.
    #[serde(default = "default_port")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: i32,
    /// Number of the autonomous system.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4_294_967_294_i64))]
    pub asn: Option<i64>,
    /// Routers of the fabric that learn the link's pools.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["address"]))]
    pub external_peers: Vec<ExternalPeer>,
}

impl Default for AeroRelaySpec {
    fn default() -> Self {
        Self {
            link_ref: LinkRef::default(),
            replicas: None,
            node_selector: BTreeMap::new(),
            port: SERVER_PORT,
            asn: None,
            external_peers: Vec::new(),
        }
    }
}

fn default_port() -> i32 {
    SERVER_PORT
}

/// A router outside the link.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
pub struct ExternalPeer {
    /// Address of the router.
    #[schemars(length(max = 39))]
    #[x_kube(validation = Rule::new("isIP(self)").message("must be an IP address"))]
    pub address: String,
    /// Number of the router's autonomous system.
    #[schemars(range(min = 1, max = 4_294_967_294_i64))]
    pub asn: i64,
}

/// What the operator says about an AeroRelay.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AeroRelayStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions.
    #[serde(default)]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
    /// BGP sessions to Servers and outside routers.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub bgp_sessions: Vec<BgpSession>,
    /// Number of routes learnt from Servers.
    #[serde(default)]
    pub routes: i64,
}
