//! AcpMapping: which identity owns a prefix, and which pod on which node holds it.

use std::net::{AddrParseError, IpAddr};
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::LinkRef;
use crate::duration::{DEFAULT_COOL_DOWN, parse_duration};

/// One prefix and its owner. The object's name is the prefix, so that two cannot be written.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "aerolink.dev",
    version = "v1alpha1",
    kind = "AcpMapping",
    plural = "acpmappings",
    shortname = "acp",
    category = "aero",
    status = "AcpMappingStatus",
    derive = "PartialEq",
    cel,
    doc = "One delegated prefix (AERO Client Prefix), the identity that owns it, and the pod that holds it. Written by the operator.",
    printcolumn(name = "Prefix", type_ = "string", json_path = ".spec.prefix"),
    printcolumn(name = "Namespace", type_ = "string", json_path = ".spec.clientRef.namespace"),
    printcolumn(name = "Client", type_ = "string", json_path = ".spec.clientRef.name"),
    printcolumn(name = "Identity", type_ = "string", json_path = ".spec.identity"),
    printcolumn(name = "Holder", type_ = "string", json_path = ".spec.holder.podName"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.holder.node"),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".spec.epoch"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Released", type_ = "date", priority = 1, json_path = ".status.releasedAt"),
    printcolumn(name = "Link", type_ = "string", priority = 1, json_path = ".spec.linkRef.name"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    selectable = ".spec.linkRef.name",
    selectable = ".spec.clientRef.namespace",
    selectable = ".spec.clientRef.name",
    validation = Rule::new(
        "self.spec.prefix.contains(':') \
         ? (self.metadata.name.contains('-') \
            && isCIDR(self.metadata.name.substring(0, self.metadata.name.lastIndexOf('-')).replace('-', ':') \
            + (self.metadata.name.split('-').size() == 9 ? '/' : '::/') \
            + self.metadata.name.substring(self.metadata.name.lastIndexOf('-') + 1)) \
            && cidr(self.metadata.name.substring(0, self.metadata.name.lastIndexOf('-')).replace('-', ':') \
            + (self.metadata.name.split('-').size() == 9 ? '/' : '::/') \
            + self.metadata.name.substring(self.metadata.name.lastIndexOf('-') + 1)) == cidr(self.spec.prefix)) \
         : self.metadata.name == self.spec.prefix.replace('/', '-')"
    ).message("metadata.name must be the prefix: 2001-db8-a-1-64 for 2001:db8:a:1::/64, 192.0.2.32-28 for 192.0.2.32/28")
)]
#[x_kube(validation = Rule::new(
    "!has(self.holder) || (has(oldSelf.holder) && oldSelf.holder.podUid == self.holder.podUid \
     && oldSelf.holder.node == self.holder.node) || self.epoch > oldSelf.epoch"
).message("a new holder needs a larger epoch"))]
#[serde(rename_all = "camelCase")]
pub struct AcpMappingSpec {
    /// The prefix, in CIDR form.
    #[schemars(length(max = 43))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("prefix cannot be changed"))]
    #[x_kube(validation = Rule::new("isCIDR(self) && cidr(self) == cidr(self).masked()").message("must be a prefix in CIDR form with no bits set beyond its length, such as 2001:db8:a:1::/64"))]
    pub prefix: String,
    /// The AERO link.
    #[x_kube(validation = Rule::new("self == oldSelf").message("linkRef cannot be changed"))]
    pub link_ref: LinkRef,
    /// UUID of the identity, its DUID-UUID on the link.
    #[schemars(length(max = 36))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("clientId cannot be changed"))]
    #[x_kube(validation = Rule::new("self.matches('^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$')").message("must be a UUID in lower case"))]
    pub client_id: String,
    /// The AeroClient that the identity is of.
    #[x_kube(validation = Rule::new("self == oldSelf").message("clientRef cannot be changed"))]
    pub client_ref: ClientRef,
    /// The identity that owns the prefix.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("identity cannot be changed"))]
    pub identity: String,
    /// The pod that holds the prefix; none between two pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<Holder>,
    /// Grows with every change of holder; 0: never held.
    #[serde(default)]
    #[schemars(range(min = 0))]
    #[x_kube(validation = Rule::new("self >= oldSelf").message("epoch can only grow, or an older holder could claim the prefix"))]
    pub epoch: i64,
    /// The AeroClient's `coolDown`, kept here as it outlives the AeroClient.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 32))]
    pub cool_down: Option<String>,
}

impl AcpMappingSpec {
    /// The prefix as an address and a length.
    pub fn prefix(&self) -> Result<IpNet, ipnet::AddrParseError> {
        self.prefix.parse()
    }

    /// The identity's UUID.
    pub fn client_uuid(&self) -> Result<Uuid, uuid::Error> {
        self.client_id.parse()
    }

    /// `namespace/client/identity`, as people write it.
    #[must_use]
    pub fn owner(&self) -> String {
        format!("{}/{}/{}", self.client_ref.namespace, self.client_ref.name, self.identity)
    }

    /// How long the prefix stays out of use when it was given up.
    #[must_use]
    pub fn cool_down(&self) -> Duration {
        let text = self.cool_down.as_deref();
        text.and_then(|text| parse_duration(text).ok()).unwrap_or(DEFAULT_COOL_DOWN)
    }
}

/// Names an AeroClient.
#[derive(
    Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, JsonSchema,
)]
pub struct ClientRef {
    /// Namespace of the AeroClient.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Name of the AeroClient.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// The pod that holds a prefix, and where it is.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// Name of the pod, in the namespace of the AeroClient.
    #[schemars(length(max = 253))]
    pub pod_name: String,
    /// UID of the pod: a later pod of the same name is another holder.
    #[schemars(length(max = 64))]
    pub pod_uid: String,
    /// The node that the pod runs on.
    #[schemars(length(max = 253))]
    pub node: String,
    /// All addresses of the node: what a Server takes control messages for this prefix from.
    #[serde(default)]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "atomic"))]
    pub underlay: Vec<String>,
}

impl Holder {
    /// The node's addresses.
    pub fn addresses(&self) -> impl Iterator<Item = Result<IpAddr, AddrParseError>> {
        self.underlay.iter().map(|text| text.parse())
    }
}

/// What the operator says about a mapping.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AcpMappingStatus {
    /// Whether the prefix belongs to its identity or was given up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// When the last holder was gone. Absent while there is a holder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::time")]
    pub released_at: Option<Time>,
    /// When a cooling prefix may be handed to another identity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "crate::schema::time")]
    pub reuse_after: Option<Time>,
    /// The node of the last holder, to tell a move from a first start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_node: Option<String>,
}

/// Where a mapping is in its life.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash, JsonSchema)]
pub enum Phase {
    /// The prefix belongs to its identity, with or without a holder just now.
    Bound,
    /// The prefix was given up; nobody may have it before its cool-down is over.
    Cooling,
}
