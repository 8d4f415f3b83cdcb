//! AeroLink: the prefixes of an AERO link and how it is run.

use std::fmt;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Lifetime of a delegation, in seconds, when the link does not say.
pub const DEFAULT_LEASE_SECONDS: i32 = 40;

/// An AERO link: one address plan, one table of delegated prefixes.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "aerolink.dev",
    version = "v1alpha1",
    kind = "AeroLink",
    plural = "aerolinks",
    shortname = "alink",
    category = "aero",
    status = "AeroLinkStatus",
    derive = "PartialEq",
    cel,
    doc = "An AERO link: the pools of prefixes that its Clients get, and how it is run.",
    printcolumn(name = "Pool", type_ = "string", json_path = ".status.pools[0].prefix"),
    printcolumn(name = "In Use", type_ = "integer", json_path = ".status.inUse"),
    printcolumn(name = "Cooling", type_ = "integer", json_path = ".status.cooling"),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status"
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
pub struct AeroLinkSpec {
    /// Pools out of which Clients get their prefixes. None given: the operator makes an IPv6 unique
    /// local /48 with /64s, always the same one for this link of this cluster.
    #[serde(default)]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["prefix"]))]
    pub pools: Vec<Pool>,
    /// MTU of the link in bytes. Not given: what the underlay leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1280, max = 65_535))]
    pub mtu: Option<i32>,
    /// How a Server knows that a control message comes from the node that may send it.
    #[serde(default)]
    pub authentication: Authentication,
    /// DNS zone in which outside hosts find the Servers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub discovery_zone: Option<String>,
    /// Timers of the link.
    #[serde(default)]
    pub timers: Timers,
}

/// A range of addresses that is divided into prefixes of one length, so that no two overlap.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[x_kube(validation = Rule::new(
    "!isCIDR(self.prefix) || (self.clientPrefixLength >= cidr(self.prefix).prefixLength() \
     && self.clientPrefixLength - cidr(self.prefix).prefixLength() <= 32)"
).message(Message::Expression(
    "'clientPrefixLength ' + string(self.clientPrefixLength) + ' does not fit the pool ' + self.prefix \
     + ': it must be at least the length of the pool and at most 32 more'".into()
)).reason(Reason::FieldValueInvalid))]
#[x_kube(validation = Rule::new(
    "!isCIDR(self.prefix) || cidr(self.prefix).ip().family() == 6 || self.clientPrefixLength <= 32"
).message("clientPrefixLength of an IPv4 pool must be at most 32"))]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// The pool, in CIDR form, such as `2001:db8:a::/48`.
    #[schemars(length(max = 43))]
    #[x_kube(validation = Rule::new("isCIDR(self)").message("must be a prefix in CIDR form, such as 2001:db8:a::/48 or 192.0.2.0/24"))]
    #[x_kube(validation = Rule::new("!isCIDR(self) || cidr(self) == cidr(self).masked()").message(Message::Expression(
        "self + ' has bits set beyond its length: write ' + string(cidr(self).masked())".into()
    )))]
    pub prefix: String,
    /// Length of the prefix that each Client gets out of this pool.
    #[schemars(range(min = 1, max = 128))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("clientPrefixLength cannot be changed: add another pool and remove this one when it is empty"))]
    pub client_prefix_length: i32,
}

/// Why a pool cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PoolError {
    /// The text is no prefix.
    #[error("pool {0:?} is no prefix in CIDR form")]
    NotAPrefix(String),
    /// The length of the Clients' prefixes does not fit.
    #[error("clientPrefixLength {length} does not fit the pool {pool}")]
    Length {
        /// The pool.
        pool: IpNet,
        /// The length asked for.
        length: i32,
    },
}

impl Pool {
    /// The pool as numbers: its prefix and the length of the prefixes in it.
    pub fn parse(&self) -> Result<(IpNet, u8), PoolError> {
        let pool: IpNet =
            self.prefix.parse().map_err(|_| PoolError::NotAPrefix(self.prefix.clone()))?;
        let pool = pool.trunc();
        let length = u8::try_from(self.client_prefix_length)
            .ok()
            .filter(|length| (pool.prefix_len()..=pool.max_prefix_len()).contains(length));
        match length {
            Some(length) => Ok((pool, length)),
            None => Err(PoolError::Length { pool, length: self.client_prefix_length }),
        }
    }
}

impl fmt::Display for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} in /{}s", self.prefix, self.client_prefix_length)
    }
}

/// How control messages are authenticated.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq, JsonSchema)]
pub enum Authentication {
    /// The outer source must be an address of the node on which the prefix's holder runs.
    #[default]
    NodeAddress,
    /// None at all. For interoperation tests only.
    None,
}

/// Timers of a link.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Timers {
    /// Lifetime of a delegation, in seconds.
    #[serde(default = "default_lease_seconds")]
    #[schemars(range(min = 10, max = 86_400))]
    pub lease_seconds: i32,
}

fn default_lease_seconds() -> i32 {
    DEFAULT_LEASE_SECONDS
}

impl Default for Timers {
    fn default() -> Self {
        Self { lease_seconds: DEFAULT_LEASE_SECONDS }
    }
}

/// An address family.
#[derive(
    Serialize,
    Deserialize,
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    JsonSchema,
)]
pub enum Family {
    /// IPv4.
    IPv4,
    /// IPv6.
    #[default]
    IPv6,
}

impl Family {
    /// The family of a prefix.
    #[must_use]
    pub fn of(prefix: &IpNet) -> Self {
        match prefix {
            IpNet::V4(_) => Self::IPv4,
            IpNet::V6(_) => Self::IPv6,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::IPv4 => "IPv4",
            Self::IPv6 => "IPv6",
        })
    }
}

/// Names an AeroLink.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash, JsonSchema)]
pub struct LinkRef {
    /// Name of the AeroLink.
    #[serde(default = "default_link")]
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

fn default_link() -> String {
    "default".to_owned()
}

impl Default for LinkRef {
    fn default() -> Self {
        Self { name: default_link() }
    }
}

/// What the operator says about an AeroLink.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AeroLinkStatus {
    /// Generation of the spec that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Conditions.
    #[serde(default)]
    #[schemars(schema_with = "crate::schema::conditions")]
    pub conditions: Vec<Condition>,
    /// The pools in effect and how full they are.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["prefix"]))]
    pub pools: Vec<PoolStatus>,
    /// Prefixes in use, of all pools.
    #[serde(default)]
    pub in_use: i64,
    /// Prefixes that cool down, of all pools.
    #[serde(default)]
    pub cooling: i64,
}

/// A pool in effect.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PoolStatus {
    /// The pool, in CIDR form.
    pub prefix: String,
    /// Length of the prefix that each Client gets out of this pool.
    pub client_prefix_length: i32,
    /// Prefixes that belong to an identity.
    pub in_use: i64,
    /// Prefixes that were given up and are not yet handed out again.
    pub cooling: i64,
    /// Prefixes that can be handed out.
    pub free: i64,
}
