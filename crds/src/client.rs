//! AeroClient: which pods (or which outside host) keep their prefixes.

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::duration::{DEFAULT_COOL_DOWN, DEFAULT_KEEP_FOR, parse_duration};
use crate::{Family, LinkRef};

/// Workloads that keep their prefixes wherever they run.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "aerolink.dev",
    version = "v1alpha1",
    kind = "AeroClient",
    plural = "aeroclients",
    namespaced,
    shortname = "aclient",
    category = "aero",
    status = "AeroClientStatus",
    derive = "PartialEq",
    cel,
    doc = "Workloads that keep their prefixes wherever they run: pods of this namespace, or a host outside the cluster.",
    printcolumn(name = "Link", type_ = "string", priority = 1, json_path = ".spec.linkRef.name"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
    ),
    printcolumn(name = "Identities", type_ = "integer", json_path = ".status.identityCount"),
    printcolumn(name = "Bound", type_ = "integer", json_path = ".status.bound"),
    printcolumn(name = "Moves", type_ = "integer", json_path = ".status.moves"),
    printcolumn(name = "Last Move", type_ = "date", json_path = ".status.lastMove"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Prefix",
        type_ = "string",
        priority = 1,
        json_path = ".status.identities[0].prefixes[0]"
    ),
    printcolumn(
        name = "Node",
        type_ = "string",
        priority = 1,
        json_path = ".status.identities[0].node"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        priority = 1,
        json_path = ".status.conditions[?(@.type==\"Ready\")].reason"
    )
)]
#[x_kube(validation = Rule::new("has(self.podSelector) != has(self.host)").message(
    "exactly one of podSelector and host must be set: podSelector (say, matchLabels) takes pods of this namespace, host.publicKey takes a machine outside the cluster"
))]
#[serde(rename_all = "camelCase")]
pub struct AeroClientSpec {
    /// The AERO link whose pools the prefixes come from.
    #[serde(default)]
    #[x_kube(validation = Rule::new("self == oldSelf").message("linkRef cannot be changed, as prefixes belong to a link: make another AeroClient"))]
    pub link_ref: LinkRef,
    /// The pods of this namespace that become Clients, each with its own prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::label_selector")]
    pub pod_selector: Option<LabelSelector>,
    /// A machine outside the cluster.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host: Option<Host>,
    /// Address families: one prefix of each.
    #[serde(default = "default_families")]
    #[schemars(length(min = 1, max = 2), extend("x-kubernetes-list-type" = "set"))]
    pub families: Vec<Family>,
    /// Prefixes asked for by name: the n-th is for the n-th of the identities in order. Each must be
    /// a prefix of one of the link's pools.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 128), inner(length(max = 43)), extend("x-kubernetes-list-type" = "atomic"))]
    #[x_kube(validation = Rule::new("self.all(p, isCIDR(p))").message(Message::Expression(
        "self.filter(p, !isCIDR(p))[0] + ' is no prefix in CIDR form, such as 2001:db8:a:1::/64'".into()
    )))]
    #[x_kube(validation = Rule::new("self.all(p, !isCIDR(p) || cidr(p) == cidr(p).masked())").message(Message::Expression(
        "self.filter(p, isCIDR(p) && cidr(p) != cidr(p).masked())[0] + ' has bits set beyond its length: write ' \
         + string(cidr(self.filter(p, isCIDR(p) && cidr(p) != cidr(p).masked())[0]).masked())".into()
    )))]
    #[x_kube(validation = Rule::new("self.all(p, self.exists_one(q, p == q))").message("prefixes must differ from each other"))]
    pub prefixes: Vec<String>,
    /// How long the prefix of an identity without a pod is kept for it.
    #[serde(default = "default_keep_for")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new(crate::duration::RULE).message(crate::duration::MESSAGE))]
    pub keep_for: String,
    /// How long a prefix that was given up is not handed to anyone else.
    #[serde(default = "default_cool_down")]
    #[schemars(length(max = 32))]
    #[x_kube(validation = Rule::new(crate::duration::RULE).message(crate::duration::MESSAGE))]
    pub cool_down: String,
}

impl Default for AeroClientSpec {
    fn default() -> Self {
        Self {
            link_ref: LinkRef::default(),
            pod_selector: None,
            host: None,
            families: default_families(),
            prefixes: Vec::new(),
            keep_for: default_keep_for(),
            cool_down: default_cool_down(),
        }
    }
}

impl AeroClientSpec {
    /// How long an unused prefix is kept; the default where the text is no duration.
    #[must_use]
    pub fn keep_for(&self) -> Duration {
        parse_duration(&self.keep_for).unwrap_or(DEFAULT_KEEP_FOR)
    }

    /// How long a given-up prefix stays out of use; the default where the text is no duration.
    #[must_use]
    pub fn cool_down(&self) -> Duration {
        parse_duration(&self.cool_down).unwrap_or(DEFAULT_COOL_DOWN)
    }
}

fn default_families() -> Vec<Family> {
    vec![Family::IPv6]
}

fn default_keep_for() -> String {
    "24h".to_owned()
}

fn default_cool_down() -> String {
    "180s".to_owned()
}

/// A machine outside the cluster.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Host {
    /// Public key of the machine, base64.
    #[schemars(length(min = 1, max = 128))]
    #[x_kube(validation = Rule::new("self.matches('^[A-Za-z0-9+/]+={0,2}$')").message("must be a public key in base64"))]
    pub public_key: String,
}

/// What the operator says about an AeroClient.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AeroClientStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Accepted`: the spec can be served. `Ready`: every enrolled pod has its prefixes.
    #[serde(default)]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
    /// The identities of this AeroClient.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["identity"]))]
    pub identities: Vec<IdentityStatus>,
    /// Number of identities that own prefixes.
    #[serde(default)]
    pub identity_count: i32,
    /// Number of identities that a pod holds now.
    #[serde(default)]
    pub bound: i32,
    /// How often an identity went from one node to another.
    #[serde(default)]
    pub moves: i64,
    /// When an identity last went from one node to another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::time")]
    pub last_move: Option<Time>,
}

/// One identity of an AeroClient.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IdentityStatus {
    /// The identity: the pod's name in a StatefulSet, the name of a virtual machine, or `slot-N`.
    pub identity: String,
    /// The identity's prefixes.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "atomic"))]
    pub prefixes: Vec<String>,
    /// The node that has the identity now, or had it last.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The pod that holds the identity now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Grows with every change of holder.
    #[serde(default)]
    pub epoch: i64,
    /// When the identity last went from one node to another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::time")]
    pub last_move: Option<Time>,
}
