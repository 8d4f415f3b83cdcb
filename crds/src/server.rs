//! AeroServer: the Servers of a link.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{BgpSession, LinkRef};

/// The Servers of a link: DHCPv6 servers, default forwarders and trust anchors.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "aerolink.dev",
    version = "v1alpha1",
    kind = "AeroServer",
    shortname = "aserver",
    category = "aero",
    namespaced,
    status = "AeroServerStatus",
    doc = "The Servers of an AERO link: they delegate prefixes and forward until a better path is known.",
    printcolumn(name = "Link", type_ = "string", json_path = ".spec.linkRef.name"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(name = "Servers", type_ = "integer", json_path = ".status.readyReplicas"),
    printcolumn(name = "Addresses", type_ = "string", json_path = ".status.addresses[*]"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct AeroServerSpec {
    /// The link that they serve.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("linkRef cannot be changed; make another AeroServer"))]
    pub link_ref: LinkRef,
    /// How many; two, or one on a cluster of a single node, if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub replicas: Option<i32>,
    /// Nodes that may run one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// UDP port on the underlay.
    #[serde(default = "AeroServerSpec::default_port")]
    #[schemars(range(min = 1, max = 65_535))]
    pub port: i32,
    /// AeroRelays of the link that they announce their clients' prefixes to. With any, they take
    /// part in the link's BGP, and speak to every Relay that takes part.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub relay_refs: Vec<String>,
    /// First number of the private range of AS numbers for these Servers, one for each; numbers
    /// that nobody has if it is not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 4_294_967_294_i64))]
    pub asn: Option<i64>,
    /// A domain in which external-dns is to publish the Servers of the link, as
    /// linkupnetworks.DOMAIN: where Clients outside the cluster find them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 237))]
    #[x_kube(validation = Rule::new("self.matches('^([a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?[.])*[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?[.]?$')").message("discoveryDomain is a DNS domain, such as example.com"))]
    pub discovery_domain: Option<String>,
}

impl AeroServerSpec {
    /// The port that IANA has assigned to AERO.
    pub fn default_port() -> i32 {
        8060
    }
}

/// Status of the Servers.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AeroServerStatus {
    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, and why not.
    #[serde(default)]
    #[schemars(schema_with = "crate::common::conditions_schema")]
    pub conditions: Vec<Condition>,
    /// How many serve.
    #[serde(default)]
    pub ready_replicas: i32,
    /// Underlay addresses of those that run.
    #[serde(default)]
    pub addresses: Vec<String>,
    /// BGP sessions with Relays.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bgp_sessions: Vec<BgpSession>,
}
