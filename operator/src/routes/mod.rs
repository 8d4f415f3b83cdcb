//! The routes file of each link (docs/relays.md): who takes part in its BGP. Written into a
//! ConfigMap that Servers and Relays watch, when it changes.

pub mod check;
pub mod plan;
#[cfg(test)]
mod plan_tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use aero_crds::annotations::{LINK_LABEL, RELAY_LABEL, ROUTING_LABEL, SERVER_LABEL};
use aero_crds::bgp::{ROUTES_KEY, routes_name};
use aero_crds::{AeroLink, AeroRelay, AeroServer};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use crate::allocation::effective_pools;
use crate::context::Context;
use crate::server;
use check::FIRST_ASN;
use plan::{InForce, Observed, Plan, RelayRules, ServerRules, Speaker};

/// Field manager of what this controller applies.
const MANAGER: &str = "aero-operator-routes";
/// Key of what is in force, beside the file.
const IN_FORCE_KEY: &str = "in-force.json";

/// One round for one link.
///
/// # Errors
/// If the ConfigMap cannot be read or written.
pub async fn reconcile(ctx: &Context, name: &str) -> anyhow::Result<()> {
    let links = ctx.links.state();
    let Some(link) = links.iter().find(|l| l.name_any() == name) else { return Ok(()) };
    let map_name = routes_name(name);
    let known = ctx.config_maps.state().iter().any(|m| m.name_any() == map_name);
    if !known && servers(ctx, name).is_empty() && relays(ctx, name).is_empty() {
        return Ok(());
    }
    let api: Api<ConfigMap> = Api::namespaced(ctx.client.clone(), &ctx.settings.namespace);
    // Numbers follow from those that are in force, so the cache, which may lag, will not do.
    let present = api.get_opt(&map_name).await?;
    let plan = plan::plan(&observed(ctx, link, in_force(present.as_ref())));
    let data = BTreeMap::from([
        (ROUTES_KEY.to_string(), plan.text),
        (IN_FORCE_KEY.to_string(), serde_json::to_string_pretty(&plan.in_force)?),
    ]);
    if present.as_ref().and_then(|m| m.data.as_ref()) == Some(&data) {
        return Ok(());
    }
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {
            "name": map_name,
            // Not over what another operator, in whose eyes it leads too, has just written.
            "resourceVersion": present.and_then(|m| m.metadata.resource_version),
            "labels": {
                "app.kubernetes.io/part-of": "aero",
                "app.kubernetes.io/managed-by": "aero-operator",
                (ROUTING_LABEL): "true",
                (LINK_LABEL): name,
            },
            "ownerReferences": link.owner_ref(&()).into_iter().collect::<Vec<_>>(),
        },
        "data": data,
    });
    api.patch(&map_name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(map)).await?;
    tracing::info!(link = name, "the routes file has changed");
    Ok(())
}

/// What follows for a link from the caches: which of its objects are refused, and why.
pub fn verdict(ctx: &Context, link: &AeroLink) -> Plan {
    let name = routes_name(&link.name_any());
    let present = ctx.config_maps.state().into_iter().find(|m| m.name_any() == name);
    plan::plan(&observed(ctx, link, in_force(present.as_deref())))
}

fn in_force(map: Option<&ConfigMap>) -> InForce {
    let text = map.and_then(|m| m.data.as_ref()).and_then(|d| d.get(IN_FORCE_KEY));
    text.and_then(|t| serde_json::from_str(t).ok()).unwrap_or_default()
}

fn observed(ctx: &Context, link: &AeroLink, in_force: InForce) -> Observed {
    let name = link.name_any();
    let (servers, relays) = (servers(ctx, &name), relays(ctx, &name));
    let mut speakers = Vec::new();
    for pod in ctx.pods.state_filter(|p| takes_part(ctx, p, &name)) {
        let label = |l: &str| pod.labels().get(l).cloned();
        let Some(address) = underlay(&pod) else { continue };
        let (relay, owner, port) = match (label(SERVER_LABEL), label(RELAY_LABEL)) {
            (Some(owner), _) => {
                let Some(of) = servers.iter().find(|s| s.name_any() == owner) else { continue };
                (false, owner, of.spec.port)
            }
            (None, Some(owner)) => {
                let Some(of) = relays.iter().find(|r| r.name_any() == owner) else { continue };
                (true, owner, of.spec.port)
            }
            (None, None) => continue,
        };
        let ending = pod.metadata.deletion_timestamp.is_some();
        let port = u16::try_from(port).unwrap_or(8060);
        speakers.push(Speaker { address, ending, relay, owner, port });
    }
    let nodes: BTreeSet<IpAddr> = ctx
        .nodes
        .state()
        .iter()
        .filter_map(|n| n.status.clone()?.addresses)
        .flatten()
        .filter(|a| a.type_ == "InternalIP")
        .filter_map(|a| a.address.parse().ok())
        .collect();
    let count = ctx.nodes.len();
    Observed {
        asps: effective_pools(link, &ctx.cluster).iter().map(|p| p.prefix).collect(),
        relays: relays.iter().map(|r| (r.name_any(), relay_rules(r))).collect(),
        servers: servers.iter().map(|s| (s.name_any(), server_rules(s, count))).collect(),
        speakers,
        nodes,
        in_force,
    }
}

/// Whether a pod is a Server or Relay of this link that has not ended.
fn takes_part(ctx: &Context, pod: &Pod, link: &str) -> bool {
    let ended = ["Succeeded", "Failed"];
    let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref()).unwrap_or_default();
    pod.namespace().as_deref() == Some(&ctx.settings.namespace)
        && pod.labels().get(LINK_LABEL).is_some_and(|l| l == link)
        && !ended.contains(&phase)
}

/// The address that a Server or Relay is known by: the first of its node's.
fn underlay(pod: &Pod) -> Option<IpAddr> {
    let status = pod.status.as_ref()?;
    let first = status.host_ips.as_ref().and_then(|ips| Some(ips.first()?.ip.clone()));
    first.or_else(|| status.host_ip.clone())?.parse().ok()
}

fn relay_rules(relay: &AeroRelay) -> RelayRules {
    let asn = relay.spec.asn.and_then(|a| u32::try_from(a).ok()).unwrap_or(FIRST_ASN);
    RelayRules { asn, peers: relay.spec.external_peers.clone() }
}

fn server_rules(server: &AeroServer, nodes: usize) -> ServerRules {
    ServerRules {
        first: server.spec.asn.and_then(|a| u32::try_from(a).ok()),
        count: u32::try_from(server::replicas(server, nodes)).unwrap_or(1),
        relays: server.spec.relay_refs.clone(),
    }
}

/// AeroServers of a link that are run here and have Relays, the eldest first.
fn servers(ctx: &Context, link: &str) -> Vec<std::sync::Arc<AeroServer>> {
    let ours = |s: &AeroServer| {
        !s.spec.relay_refs.is_empty()
            && s.spec.link_ref.name == link
            && s.namespace().as_deref() == Some(&ctx.settings.namespace)
            && s.metadata.deletion_timestamp.is_none()
    };
    let mut all: Vec<_> = ctx.servers.state().into_iter().filter(|s| ours(s)).collect();
    all.sort_by_cached_key(|s| (s.creation_timestamp(), s.name_any()));
    all
}

/// AeroRelays of a link that are run here, the eldest first.
fn relays(ctx: &Context, link: &str) -> Vec<std::sync::Arc<AeroRelay>> {
    let ours = |r: &AeroRelay| {
        r.spec.link_ref.name == link
            && r.namespace().as_deref() == Some(&ctx.settings.namespace)
            && r.metadata.deletion_timestamp.is_none()
    };
    let mut all: Vec<_> = ctx.relays.state().into_iter().filter(|r| ours(r)).collect();
    all.sort_by_cached_key(|r| (r.creation_timestamp(), r.name_any()));
    all
}
