//! AeroRelay: the Relays of a link.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{BgpSession, LinkRef};

/// The Relays of a link: they forward between Servers and join the link to the outside.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "aerolink.dev",
    version = "v1alpha1",
    kind = "AeroRelay",
    shortname = "arelay",
    category = "aero",
    namespaced,
    status = "AeroRelayStatus",
    doc = "The Relays of an AERO link: they forward between Servers and join the link to the outside.",
    printcolumn(name = "Link", type_ = "string", json_path = ".spec.linkRef.name"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(name = "Relays", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Addresses", type_ = "string", json_path = ".status.addresses[*]"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct AeroRelaySpec {
    /// The link that they join.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("linkRef cannot be changed; make another AeroRelay"))]
    pub link_ref: LinkRef,
    /// How many; two if not given. Each needs a node without a Server of the link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: Option<i32>,
    /// Nodes that may run one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// UDP port on the underlay.
    #[serde(default = "crate::AeroServerSpec::default_port")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: i32,
    /// AS number of the Relays, a private one; 4200000000 if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4_294_967_294_i64))]
    pub asn: Option<i64>,
    /// Routers of the fabric that learn the service prefixes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub external_peers: Vec<ExternalPeer>,
}

/// A router outside the link.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ExternalPeer {
    /// Its address.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("isIP(self)").message("must be an IP address"))]
    pub address: String,
    /// Its AS number.
    #[schemars(range(min = 1, max = 4_294_967_294_i64))]
    pub asn: i64,
}

/// Status of the Relays.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AeroRelayStatus {
    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, and why not.
    #[serde(default)]
    #[schemars(schema_with = "crate::common::conditions_schema")]
    pub conditions: Vec<Condition>,
    /// How many relay.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Underlay addresses of those that run.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// BGP sessions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bgp_sessions: Vec<BgpSession>,
}
