//! AeroServer: runs the Servers of a link.

pub mod objects;

use aero_crds::{AeroServer, AeroServerStatus, annotations, condition, set_condition};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::context::{Context, apply_status, key};
use crate::events::{self, Note};

/// Field manager of what this controller applies.
const MANAGER: &str = "aero-operator-server";

/// What the status is made of.
#[derive(Debug, Default)]
pub struct Observed {
    /// How many Servers are wanted.
    pub wanted: i32,
    /// How many are ready.
    pub ready: i32,
    /// Underlay addresses of those that run.
    pub addresses: Vec<String>,
    /// Those that do not serve (`pod NAME on NODE`), and whether each was told to end.
    pub idle: Vec<(String, bool)>,
    /// Why nothing is run at all: reason and sentence.
    pub refusal: Option<(&'static str, String)>,
}

/// The status: a pure function of what is observed.
pub fn status(server: &AeroServer, seen: &Observed, now: &Time) -> AeroServerStatus {
    let generation = server.metadata.generation;
    let mut status = server.status.clone().unwrap_or_default();
    status.observed_generation = generation;
    status.ready_replicas = seen.ready;
    status.addresses = seen.addresses.clone();
    let (ok, reason, message) = match &seen.refusal {
        Some((reason, message)) => (false, *reason, message.clone()),
        None if seen.wanted == 0 => {
            (false, "NoneWanted", "spec.replicas is 0: nobody delegates or forwards".to_string())
        }
        None if seen.ready >= seen.wanted => {
            (true, "AllServing", format!("{} of {} Servers serve", seen.ready, seen.wanted))
        }
        // One Server is enough to serve; the condition still says that some are missing.
        None if seen.ready > 0 => {
            (true, "SomeServing", format!("{} of {} Servers serve", seen.ready, seen.wanted))
        }
        None => (false, "NoneServing", format!("none of {} Servers serves yet", seen.wanted)),
    };
    set_condition(
        &mut status.conditions,
        condition("Ready", ok, reason, message, generation, now.clone()),
    );
    status
}

/// What there is to tell when fewer, or again all, Servers serve than the status says.
pub fn news(server: &AeroServer, seen: &Observed) -> Option<Note> {
    let before = server.status.as_ref()?.ready_replicas;
    let count = format!("{} of {} Servers serve", seen.ready, seen.wanted);
    if seen.refusal.is_some() || seen.wanted == 0 || seen.ready == before {
        return None;
    }
    if seen.ready >= seen.wanted {
        return (seen.ready > before).then(|| Note::normal("ServersServe", count));
    }
    if seen.ready > before {
        return None;
    }
    let idle: Vec<&str> = seen.idle.iter().map(|(name, _)| name.as_str()).collect();
    let text = if idle.is_empty() { count } else { format!("{count}; not {}", idle.join(", ")) };
    let lost = usize::try_from(before - seen.ready).unwrap_or(0);
    let told_to_end = seen.idle.iter().filter(|(_, ending)| *ending).count();
    Some(if told_to_end >= lost {
        Note::normal("ServerLeft", text)
    } else {
        Note::warning("ServerLost", text)
    })
}

/// How many Servers: as asked for, else two, or one where there is only one node.
pub fn replicas(server: &AeroServer, nodes: usize) -> i32 {
    server.spec.replicas.unwrap_or(if nodes > 1 { 2 } else { 1 })
}

/// One round for one AeroServer (`namespace/name`).
///
/// # Errors
/// If a write fails; the caller tries again.
pub async fn reconcile(ctx: &Context, wanted: &str) -> anyhow::Result<()> {
    let servers = ctx.servers.state();
    let Some(server) = servers.iter().find(|s| key(&***s) == wanted) else { return Ok(()) };
    if server.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let mut seen = Observed { wanted: replicas(server, ctx.nodes.len()), ..Observed::default() };
    let namespace = server.namespace().unwrap_or_default();
    let link = server.spec.link_ref.name.clone();
    if namespace != ctx.settings.namespace {
        let text = format!(
            "Servers run in the operator's namespace only; make this AeroServer in {}",
            ctx.settings.namespace
        );
        seen.refusal = Some(("NamespaceNotServed", text));
    } else if !ctx.links.state().iter().any(|l| l.name_any() == link) {
        let text = format!("there is no AeroLink {link:?}; make it, or name another in linkRef");
        seen.refusal = Some(("LinkNotFound", text));
    } else {
        let name = objects::name(server);
        let set = &ctx.settings;
        apply::<Deployment>(ctx, &name, objects::deployment(server, set, seen.wanted)).await?;
        apply::<Service>(ctx, &name, objects::service(server)).await?;
        apply::<PodDisruptionBudget>(ctx, &name, objects::disruption_budget(server)).await?;
        let deployment = ctx.deployments.state().into_iter().find(|d| d.name_any() == name);
        let status = deployment.as_ref().and_then(|d| d.status.as_ref());
        seen.ready = status.and_then(|s| s.ready_replicas).unwrap_or(0);
        seen.addresses = addresses(ctx, server);
        seen.idle = idle(ctx, server);
    }
    if let Some(note) = news(server, &seen) {
        tracing::info!(server = wanted, reason = note.reason, "{}", note.message);
        events::publish(ctx, &note, &[server.object_ref(&())]).await;
    }
    let status = status(server, &seen, &ctx.now());
    if server.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let api: Api<AeroServer> = Api::namespaced(ctx.client.clone(), &namespace);
    apply_status(&api, &server.name_any(), MANAGER, &status).await
}

fn addresses(ctx: &Context, server: &AeroServer) -> Vec<String> {
    let name = server.name_any();
    let ours = |p: &Pod| {
        p.labels().get(annotations::SERVER_LABEL) == Some(&name)
            && p.namespace() == server.namespace()
            && p.metadata.deletion_timestamp.is_none()
    };
    let mut all: Vec<String> = ctx
        .pods
        .state_filter(ours)
        .iter()
        .filter_map(|p| p.status.clone())
        .flat_map(|s| s.host_ips.unwrap_or_default())
        .map(|ip| ip.ip)
        .collect();
    all.sort();
    all
}

/// The pods of Servers that do not serve.
fn idle(ctx: &Context, server: &AeroServer) -> Vec<(String, bool)> {
    let name = server.name_any();
    let serves = |p: &Pod| {
        let mut conditions = p.status.iter().flat_map(|s| s.conditions.iter().flatten());
        p.metadata.deletion_timestamp.is_none()
            && conditions.any(|c| c.type_ == "Ready" && c.status == "True")
    };
    let idle = ctx.pods.state_filter(|p| {
        p.labels().get(annotations::SERVER_LABEL) == Some(&name)
            && p.namespace() == server.namespace()
            && !serves(p)
    });
    let node = |p: &Pod| p.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
    idle.iter()
        .filter(|p| !node(p).is_empty())
        .map(|p| {
            let ending = p.metadata.deletion_timestamp.is_some();
            (format!("pod {} on {}", p.name_any(), node(p)), ending)
        })
        .collect()
}

async fn apply<K>(ctx: &Context, name: &str, object: Value) -> anyhow::Result<()>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope> + Clone + DeserializeOwned,
    K: std::fmt::Debug,
    K::DynamicType: Default,
{
    let api: Api<K> = Api::namespaced(ctx.client.clone(), &ctx.settings.namespace);
    let params = PatchParams::apply(MANAGER).force();
    api.patch(name, &params, &Patch::Apply(object)).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use aero_crds::{AeroServerSpec, is_true};

    #[test]
    fn two_servers_are_run_unless_there_is_only_one_node_or_a_number_is_asked_for() {
        let mut server = AeroServer::new("s", AeroServerSpec::default());
        assert_eq!(replicas(&server, 1), 1);
        assert_eq!(replicas(&server, 5), 2);
        server.spec.replicas = Some(4);
        assert_eq!(replicas(&server, 1), 4);
    }

    #[test]
    fn a_server_that_stops_unasked_is_lost_and_one_that_was_told_to_has_left() {
        let mut server = AeroServer::new("s", AeroServerSpec::default());
        let with = |ready, idle: &[(&str, bool)]| Observed {
            wanted: 2,
            ready,
            idle: idle.iter().map(|(n, e)| ((*n).to_string(), *e)).collect(),
            ..Observed::default()
        };
        assert_eq!(news(&server, &with(2, &[])), None, "the first status is no news");
        server.status = Some(AeroServerStatus { ready_replicas: 2, ..AeroServerStatus::default() });
        let lost = news(&server, &with(1, &[("pod a on n1", false)])).unwrap();
        assert_eq!((lost.reason, lost.warning), ("ServerLost", true));
        assert_eq!(lost.message, "1 of 2 Servers serve; not pod a on n1");
        let left = news(&server, &with(1, &[("pod a on n1", true)])).unwrap();
        assert_eq!((left.reason, left.warning), ("ServerLeft", false));
        let vanished = news(&server, &with(0, &[])).unwrap();
        assert_eq!(vanished.reason, "ServerLost");
        server.status = Some(AeroServerStatus { ready_replicas: 1, ..AeroServerStatus::default() });
        assert_eq!(news(&server, &with(2, &[])).unwrap().reason, "ServersServe");
    }

    #[test]
    fn ready_means_that_at_least_one_server_serves() {
        let server = AeroServer::new("s", AeroServerSpec::default());
        let at = Time("2026-01-01T00:00:00Z".parse().unwrap());
        let with = |ready| Observed { wanted: 2, ready, ..Observed::default() };
        assert!(!is_true(&status(&server, &with(0), &at).conditions, "Ready"));
        assert!(is_true(&status(&server, &with(1), &at).conditions, "Ready"));
        assert_eq!(status(&server, &with(1), &at).conditions[0].reason, "SomeServing");
        assert_eq!(status(&server, &with(2), &at).conditions[0].reason, "AllServing");
        let none = Observed::default();
        assert_eq!(status(&server, &none, &at).conditions[0].reason, "NoneWanted");
    }
}
