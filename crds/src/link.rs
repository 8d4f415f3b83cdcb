//! AeroLink: a link, its pools and its rules.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// An AERO link. Its pools together are the AERO Service Prefixes (ASPs) of the link.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "aerolink.dev",
    version = "v1alpha1",
    kind = "AeroLink",
    shortname = "alink",
    category = "aero",
    status = "AeroLinkStatus",
    doc = "An AERO link: the pools that its clients' prefixes come from, and its rules.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type=='Ready')].status"
    ),
    printcolumn(name = "Pools", type_ = "string", json_path = ".status.pools[*].prefix"),
    printcolumn(name = "In Use", type_ = "integer", json_path = ".status.inUse"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct AeroLinkSpec {
    /// Where prefixes come from. None given: the operator makes a unique local IPv6 /48 with
    /// a /64 for each client.
    #[serde(default)]
    #[schemars(length(max = 16))]
    #[x_kube(validation = Rule::new("oldSelf.all(o, self.exists(n, n == o))")
        .message("a pool cannot be changed or removed while clients may hold its prefixes; add another pool instead"))]
    pub pools: Vec<Pool>,
    /// MTU of the clients' interfaces; the underlay's less the encapsulation if not given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1280, max = 65_000))]
    pub mtu: Option<i32>,
    /// How a Server checks that a claim to a prefix comes from its holder.
    #[serde(default)]
    pub authentication: Authentication,
    /// DNS zone for the discovery of other AERO domains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub discovery_zone: Option<String>,
    /// Times that all nodes of the link share.
    #[serde(default)]
    pub timers: Timers,
}

/// A pool of prefixes of one length, so that no two of them overlap.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("!isCIDR(self.prefix) || (self.clientPrefixLength >= cidr(self.prefix).prefixLength() && self.clientPrefixLength - cidr(self.prefix).prefixLength() <= 24)")
    .message("clientPrefixLength must be the pool's own length or up to 24 bits more"))]
#[x_kube(validation = Rule::new("!isCIDR(self.prefix) || (cidr(self.prefix).ip().family() == 6 ? self.clientPrefixLength <= 64 : self.clientPrefixLength <= 32)")
    .message("clientPrefixLength must be at most 64 for IPv6 and 32 for IPv4"))]
pub struct Pool {
    /// The pool, for example `2001:db8:a::/48`.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("isCIDR(self) && cidr(self) == cidr(self).masked()")
        .message("must be a prefix such as 2001:db8:a::/48, with no bits set behind its length"))]
    pub prefix: String,
    /// Length of each client's prefix, for example 64.
    #[schemars(range(min = 1, max = 64))]
    pub client_prefix_length: i32,
}

/// How a Server checks claims.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Authentication {
    /// The outer source must be an address of the node on which the holder runs.
    #[default]
    NodeAddress,
    /// Not at all. For interoperation tests only.
    None,
}

/// Times of a link.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Timers {
    /// Lifetime of a lease in seconds; half of it passes before a renewal.
    #[serde(default = "Timers::default_lease")]
    #[schemars(range(min = 10, max = 86_400))]
    pub lease_seconds: i32,
}

impl Timers {
    fn default_lease() -> i32 {
        40
    }
}

impl Default for Timers {
    fn default() -> Self {
        Self { lease_seconds: Self::default_lease() }
    }
}

/// Status of a link.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AeroLinkStatus {
    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready, and why not.
    #[serde(default)]
    #[schemars(schema_with = "crate::common::conditions_schema")]
    pub conditions: Vec<Condition>,
    /// The pools in effect.
    #[serde(default)]
    pub pools: Vec<PoolStatus>,
    /// Prefixes that clients have, over all pools.
    #[serde(default)]
    pub in_use: i64,
}

/// How full a pool is.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PoolStatus {
    /// The pool.
    pub prefix: String,
    /// Length of each client's prefix.
    pub client_prefix_length: i32,
    /// Prefixes that clients have.
    pub in_use: i64,
    /// Prefixes that wait until they may be given again.
    pub cooling: i64,
    /// Prefixes that can be given.
    pub free: i64,
}
