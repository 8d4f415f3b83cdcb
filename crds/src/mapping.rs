//! AcpMapping: one row of the table that all Servers share.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::LinkRef;

/// Namespace of the UUIDs (version 5) of client ids.
pub const AERO_NAMESPACE: Uuid = Uuid::from_u128(0x8b0f_2f51_60ce_5d8a_9c0b_ae80_6000_45b2);

/// One prefix, whose it is and who holds it at present. The object's name is the prefix, so two
/// holders of one prefix cannot be written.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "aerolink.dev",
    version = "v1alpha1",
    kind = "AcpMapping",
    shortname = "acp",
    category = "aero",
    status = "AcpMappingStatus",
    derive = "PartialEq",
    selectable = ".spec.clientId",
    doc = "One AERO Client Prefix: whose it is, and which pod on which node holds it.",
    validation = Rule::new("self.metadata.name.contains('-') && (self.spec.prefix.contains(':') \
        ? isCIDR(self.metadata.name.substring(0, self.metadata.name.lastIndexOf('-')).replace('-', ':') + '::/' \
            + self.metadata.name.substring(self.metadata.name.lastIndexOf('-') + 1)) \
          && cidr(self.metadata.name.substring(0, self.metadata.name.lastIndexOf('-')).replace('-', ':') + '::/' \
            + self.metadata.name.substring(self.metadata.name.lastIndexOf('-') + 1)) == cidr(self.spec.prefix) \
        : self.metadata.name.replace('-', '/') == self.spec.prefix)")
        .message("metadata.name must be the prefix: 2001:db8:a:1::/64 is named 2001-db8-a-1-64, 192.0.2.32/28 is named 192.0.2.32-28"),
    printcolumn(name = "Prefix", type_ = "string", json_path = ".spec.prefix"),
    printcolumn(name = "Namespace", type_ = "string", json_path = ".spec.clientRef.namespace"),
    printcolumn(name = "Client", type_ = "string", json_path = ".spec.clientRef.name"),
    printcolumn(name = "Identity", type_ = "string", json_path = ".spec.identity"),
    printcolumn(name = "Holder", type_ = "string", json_path = ".spec.holder.podName"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.holder.node"),
    printcolumn(name = "Epoch", type_ = "integer", json_path = ".spec.epoch"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("self.epoch >= oldSelf.epoch").message("epoch never falls"))]
#[x_kube(validation = Rule::new("!has(self.holder) || self.epoch > oldSelf.epoch || (has(oldSelf.holder) && oldSelf.holder.podUid == self.holder.podUid && oldSelf.holder.node == self.holder.node)")
    .message("a new holder needs a larger epoch"))]
pub struct AcpMappingSpec {
    /// The prefix.
    #[schemars(length(min = 1, max = 64))]
    #[x_kube(validation = Rule::new("isCIDR(self) && cidr(self) == cidr(self).masked()")
        .message("must be a prefix with no bits set behind its length"))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("prefix is immutable: it is the object's name"))]
    pub prefix: String,
    /// Its link.
    #[x_kube(validation = Rule::new("self == oldSelf").message("linkRef is immutable"))]
    pub link_ref: LinkRef,
    /// UUID of the client's DUID.
    #[schemars(length(min = 36, max = 36))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("clientId is immutable"))]
    pub client_id: String,
    /// The AeroClient.
    #[x_kube(validation = Rule::new("self == oldSelf").message("clientRef is immutable"))]
    pub client_ref: ClientRef,
    /// The identity inside the AeroClient.
    #[schemars(length(min = 1, max = 253))]
    #[x_kube(validation = Rule::new("self == oldSelf").message("identity is immutable"))]
    pub identity: String,
    /// Who holds it at present.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holder: Option<Holder>,
    /// Grows with every change of holder; 0 before the first.
    #[serde(default)]
    #[schemars(range(min = 0))]
    pub epoch: i64,
}

/// Names an AeroClient.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq, Hash)]
#[serde(rename_all = "camelCase")]
pub struct ClientRef {
    /// Its namespace.
    #[schemars(length(min = 1, max = 253))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
}

/// The pod that holds a prefix, and its node.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Holder {
    /// Name of the pod.
    #[schemars(length(max = 253))]
    pub pod_name: String,
    /// UID of the pod.
    #[schemars(length(max = 64))]
    pub pod_uid: String,
    /// Name of the node.
    #[schemars(length(max = 253))]
    pub node: String,
    /// All internal addresses of the node: where its agent's messages come from.
    #[serde(default)]
    pub underlay: Vec<String>,
}

/// Status of a mapping.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AcpMappingStatus {
    /// The generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Ready: a pod holds the prefix. If not, why.
    #[serde(default)]
    #[schemars(schema_with = "crate::common::conditions_schema")]
    pub conditions: Vec<Condition>,
    /// Bound to its client, or on its way to be free.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<Phase>,
    /// Since when it has no holder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub released_at: Option<Time>,
    /// When Cooling: from when on another client may have it. Kept here, so that no restart
    /// forgets it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free_at: Option<Time>,
}

/// Where a mapping is in its life.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Phase {
    /// The prefix is its client's.
    Bound,
    /// Given up; deleted, and so free, after the cool-down.
    Cooling,
}

/// The DUID-UUID of an identity: the same on every cluster that has these names.
pub fn client_id(link: &str, namespace: &str, client: &str, identity: &str) -> Uuid {
    Uuid::new_v5(&AERO_NAMESPACE, format!("{link}/{namespace}/{client}/{identity}").as_bytes())
}

/// The object name of a prefix: `2001:db8:a:1::/64` is `2001-db8-a-1-64`, `192.0.2.32/28` is
/// `192.0.2.32-28`. `None` for an IPv6 prefix longer than /64, which no client can have.
pub fn mapping_name(prefix: IpNet) -> Option<String> {
    match prefix.trunc() {
        IpNet::V6(p) if p.prefix_len() <= 64 => {
            let [a, b, c, d, ..] = p.addr().segments();
            Some(format!("{a:x}-{b:x}-{c:x}-{d:x}-{}", p.prefix_len()))
        }
        IpNet::V6(_) => None,
        IpNet::V4(p) => Some(format!("{}-{}", p.addr(), p.prefix_len())),
    }
}

/// The prefix that an object name stands for.
pub fn prefix_of_name(name: &str) -> Option<IpNet> {
    let (address, length) = name.rsplit_once('-')?;
    let length: u8 = length.parse().ok()?;
    let address: IpAddr = if address.contains('.') {
        address.parse().ok()?
    } else {
        let mut segments = [0u16; 8];
        let mut parts = address.split('-');
        for segment in segments.iter_mut().take(4) {
            *segment = u16::from_str_radix(parts.next()?, 16).ok()?;
        }
        if parts.next().is_some() {
            return None;
        }
        IpAddr::V6(Ipv6Addr::from(segments))
    };
    let net = IpNet::new(address, length).ok()?;
    (mapping_name(net)? == name).then_some(net)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_and_its_object_name_lead_to_each_other() {
        let cases = [
            ("2001:db8:a:1::/64", "2001-db8-a-1-64"),
            ("fd00::/48", "fd00-0-0-0-48"),
            ("192.0.2.32/28", "192.0.2.32-28"),
        ];
        for (prefix, name) in cases {
            let net: IpNet = prefix.parse().unwrap();
            assert_eq!(mapping_name(net).as_deref(), Some(name));
            assert_eq!(prefix_of_name(name), Some(net));
        }
        assert_eq!(mapping_name("2001:db8::/65".parse().unwrap()), None);
        for bad in ["", "x", "2001-db8-64", "2001-db8-a-01-64", "192.0.2.33-28", "1-2-3-4-5-64"] {
            assert_eq!(prefix_of_name(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_client_id_depends_on_each_of_its_names_and_on_nothing_else() {
        let id = client_id("default", "ns", "web", "web-0");
        assert_eq!(id, client_id("default", "ns", "web", "web-0"));
        assert_ne!(id, client_id("default", "ns", "web", "web-1"));
        assert_ne!(id, client_id("other", "ns", "web", "web-0"));
        assert_eq!(id.get_version_num(), 5);
    }
}
