//! AeroClient: who gets prefixes.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::core::{Selector, SelectorExt};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::LinkRef;

/// Pods (or a host) that own a prefix each, which stays the same wherever they run.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "aerolink.dev",
    version = "v1alpha1",
    kind = "AeroClient",
    shortname = "aclient",
    category = "aero",
    namespaced,
    status = "AeroClientStatus",
    doc = "Pods, or one host outside the cluster, that own a prefix each wherever they run.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(name = "Identities", type_ = "integer", json_path = ".status.identityCount"),
    printcolumn(name = "Bound", type_ = "integer", json_path = ".status.bound"),
    printcolumn(name = "Moves", type_ = "integer", json_path = ".status.moves"),
    printcolumn(name = "Last Move", type_ = "date", json_path = ".status.lastMove"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        priority = 1,
        json_path = ".status.conditions[?(@.type=='Ready')].message"
    ),
    printcolumn(
        name = "Prefixes",
        type_ = "string",
        priority = 1,
        json_path = ".status.identities[*].prefixes[*]"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("has(self.podSelector) != has(self.host)")
    .message("exactly one of podSelector and host must be set"))]
pub struct AeroClientSpec {
    /// The link that the prefixes belong to.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf")
        .message("linkRef cannot be changed: prefixes belong to their link; make another AeroClient"))]
    pub link_ref: LinkRef,
    /// Pods of this namespace, one prefix each.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_selector: Option<LabelSelector>,
    /// One host outside the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Host>,
    /// Address families; each gives every identity one prefix.
    #[serde(default = "AeroClientSpec::default_families")]
    #[schemars(length(min = 1, max = 2))]
    pub families: Vec<Family>,
    /// Prefixes asked for by name: the n-th identity gets the n-th. The others come from the
    /// link's pools.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 1024), inner(length(max = 64)))]
    #[x_kube(validation = Rule::new("self.all(p, isCIDR(p) && cidr(p) == cidr(p).masked())")
        .message("each must be a prefix such as 2001:db8:a:1::/64, with no bits set behind its length"))]
    pub prefixes: Vec<String>,
    /// How long the prefix of an identity without a pod is kept for it, for example `24h`.
    #[serde(default = "AeroClientSpec::default_keep_for")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]+[dhms])+$')")
        .message("must be a duration such as 24h or 90m"))]
    pub keep_for: String,
    /// How long a prefix that was given up stays unused before another may have it.
    #[serde(default = "AeroClientSpec::default_cool_down")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new("self.matches('^([0-9]+[dhms])+$')")
        .message("must be a duration such as 180s or 5m"))]
    pub cool_down: String,
}

impl AeroClientSpec {
    fn default_families() -> Vec<Family> {
        vec![Family::IPv6]
    }

    fn default_keep_for() -> String {
        "24h".into()
    }

    fn default_cool_down() -> String {
        "180s".into()
    }
}

impl AeroClient {
    /// Whether it selects a pod, which must be of its own namespace.
    pub fn selects(&self, pod: &Pod) -> bool {
        // First, since it is cheap and most pods are of other namespaces.
        if self.metadata.namespace != pod.metadata.namespace {
            return false;
        }
        let Some(selector) = self.spec.pod_selector.clone() else { return false };
        let Ok(selector) = Selector::try_from(selector) else { return false };
        selector.matches(&pod.metadata.labels.clone().unwrap_or_default())
    }
}

/// A host outside the cluster.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Host {
    /// Its public key, base64.
    #[schemars(length(min = 1, max = 512))]
    pub public_key: String,
}

/// An address family.
#[derive(
    JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord,
)]
pub enum Family {
    /// IPv6.
    IPv6,
    /// IPv4.
    IPv4,
}

/// Status of a client.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AeroClientStatus {
    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, Accepted, and why not.
    #[serde(default)]
    #[schemars(schema_with = "crate::common::conditions_schema")]
    pub conditions: Vec<Condition>,
    /// One entry per identity.
    #[serde(default)]
    pub identities: Vec<IdentityStatus>,
    /// How many identities there are.
    #[serde(default)]
    pub identity_count: i64,
    /// How many of them have a pod.
    #[serde(default)]
    pub bound: i64,
    /// How often a prefix has moved to another pod.
    #[serde(default)]
    pub moves: i64,
    /// When it last did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_move: Option<Time>,
}

/// How one identity stands.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct IdentityStatus {
    /// The identity: a StatefulSet pod's name, a VM's name, or `slot-N`.
    pub identity: String,
    /// Its prefixes.
    pub prefixes: Vec<String>,
    /// The node of its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// Its pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Under which epoch; it grows whenever the prefix changes hands.
    pub epoch: i64,
    /// When it last did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_move: Option<Time>,
}
