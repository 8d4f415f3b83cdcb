//! Where the Servers of a link are, by the EndpointSlices of their Service.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use aero_crds::annotations;
use aero_protocol::address::LinkLayerAddress;
use futures::StreamExt;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Api, Client};

/// The Servers of a link, by one address each.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Servers {
    /// Those that serve.
    pub ready: BTreeSet<LinkLayerAddress>,
    /// Those that do not (yet, or any more), but are there: one that ends forwards until its clients
    /// have left it.
    pub unready: BTreeSet<LinkLayerAddress>,
}

/// Tells of the Servers whenever they change, for ever. `families`: for each family of the node in
/// its order, whether it is IPv6. Without a namespace in that of this pod.
pub async fn follow(
    client: Client,
    namespace: Option<&str>,
    link: &str,
    families: &[bool],
    on_change: impl Fn(Servers),
) {
    let namespace = namespace.unwrap_or(client.default_namespace()).to_string();
    let labels = format!(
        "{}={},{}={link}",
        annotations::COMPONENT_LABEL,
        annotations::COMPONENT_SERVER,
        annotations::LINK_LABEL
    );
    let api: Api<EndpointSlice> = Api::namespaced(client, &namespace);
    let (slices, writer) = reflector::store::<EndpointSlice>();
    let config = watcher::Config::default().labels(&labels);
    let mut stream = std::pin::pin!(aero_crds::watch(api, config).reflect(writer));
    while let Some(event) = stream.next().await {
        match event {
            Ok(_) => on_change(servers_of(&slices.state(), families)),
            Err(e) => tracing::debug!("the watch of Servers broke and is tried again: {e}"),
        }
    }
}

/// The Servers, all of one family: the first of this node that any Server has.
///
/// The slices of the two families change one after the other, so a Server that goes is for a
/// moment in one of them only; it must not be taken for a Server of that family.
fn servers_of(slices: &[Arc<EndpointSlice>], families: &[bool]) -> Servers {
    let mut all = Servers::default();
    let mut any = BTreeSet::new();
    for slice in slices {
        let port = slice.ports.iter().flatten().find_map(|p| p.port);
        let Some(port) = port.and_then(|p| u16::try_from(p).ok()) else { continue };
        for endpoint in &slice.endpoints {
            let ready = endpoint
                .conditions
                .as_ref()
                .is_none_or(|c| c.ready.unwrap_or(true) && !c.terminating.unwrap_or(false));
            for ip in endpoint.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok()) {
                any.insert(ip.is_ipv6());
                let which = if ready { &mut all.ready } else { &mut all.unready };
                which.insert(LinkLayerAddress::new(ip, port));
            }
        }
    }
    let family = families.iter().find(|v6| any.contains(v6));
    let of_family = |l2: &LinkLayerAddress| Some(&l2.ip.is_ipv6()) == family;
    all.ready.retain(of_family);
    // An old pod and its successor on one node have one address.
    let ready = &all.ready;
    all.unready.retain(|l2| of_family(l2) && !ready.contains(l2));
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    fn slice(family: &str, address: &str, uid: &str, ready: bool) -> Arc<EndpointSlice> {
        Arc::new(
            serde_json::from_value(serde_json::json!({
                "metadata": {"name": format!("s-{family}-{uid}")}, "addressType": family,
                "ports": [{"port": 8060, "protocol": "UDP"}],
                "endpoints": [{"addresses": [address], "conditions": {"ready": ready},
                    "targetRef": {"uid": uid}}],
            }))
            .unwrap(),
        )
    }

    #[test]
    fn servers_are_taken_at_the_first_family_that_the_node_shares_with_any_of_them() {
        let slices = [
            slice("IPv4", "192.0.2.11", "a", true),
            slice("IPv6", "2001:db8:77::11", "a", true),
            slice("IPv4", "192.0.2.12", "b", false),
            slice("IPv6", "2001:db8:77::13", "c", true),
        ];
        let text = |slices: &[Arc<EndpointSlice>], families: &[bool]| {
            servers_of(slices, families).ready.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(text(&slices, &[false]), ["192.0.2.11:8060"]);
        assert_eq!(
            text(&slices, &[true, false]),
            ["[2001:db8:77::11]:8060", "[2001:db8:77::13]:8060"]
        );
        // c has left the one slice already: it is not a Server of the other family.
        assert_eq!(text(&slices, &[false, true]), ["192.0.2.11:8060"]);
        assert_eq!(text(&slices[1..2], &[false, true]), ["[2001:db8:77::11]:8060"]);
        assert!(text(&slices[2..3], &[false]).is_empty());
    }

    #[test]
    fn a_server_that_ends_is_there_until_its_endpoint_is_gone_and_its_successor_is_a_server() {
        let ends = slice("IPv4", "192.0.2.11", "a", false);
        let other = slice("IPv4", "192.0.2.12", "b", true);
        let servers = servers_of(&[ends.clone(), other.clone()], &[false]);
        let texts = |all: &BTreeSet<LinkLayerAddress>| {
            all.iter().map(ToString::to_string).collect::<Vec<_>>()
        };
        assert_eq!(texts(&servers.ready), ["192.0.2.12:8060"]);
        assert_eq!(texts(&servers.unready), ["192.0.2.11:8060"]);
        let next = slice("IPv4", "192.0.2.11", "c", true);
        let servers = servers_of(&[ends, other, next], &[false]);
        assert_eq!(texts(&servers.ready), ["192.0.2.11:8060", "192.0.2.12:8060"]);
        assert!(servers.unready.is_empty());
    }
}
