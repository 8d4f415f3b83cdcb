//! AeroServer: runs the Servers of a link.

pub mod discovery;
pub mod objects;

use aero_crds::bgp::BgpSession;
use aero_crds::{AeroServer, AeroServerStatus, set_condition};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{Api, Resource, ResourceExt};

use crate::context::{Context, apply_status, key};
use crate::fleet::{self, Observed, Words};
use crate::routes::check::Refusal;
use crate::{events, routes, sessions};

/// Field manager of what this controller applies.
const MANAGER: &str = "aero-operator-server";
const WORDS: Words =
    Words { many: "Servers", lost: "ServerLost", left: "ServerLeft", serve: "ServersServe" };
/// Refusals that an Event is written about.
pub const REFUSALS: [&str; 4] =
    ["RelayNotFound", "AsnNotPrivate", "AsnConflict", discovery::NAME_TAKEN];

/// What BGP and the discovery name add to what is observed.
#[derive(Debug, Default)]
pub struct Routing {
    /// Why what is asked for is not in force.
    pub refused: Option<Refusal>,
    /// Sessions with Relays.
    pub sessions: Vec<BgpSession>,
    /// Said if the discovery name is another link's.
    pub without_name: Option<Condition>,
}

/// The status: a pure function of what is observed.
pub fn status(
    server: &AeroServer,
    seen: &Observed,
    routing: &Routing,
    now: &Time,
) -> AeroServerStatus {
    let generation = server.metadata.generation;
    let mut status = server.status.clone().unwrap_or_default();
    status.observed_generation = generation;
    status.ready_replicas = seen.ready;
    status.addresses = seen.addresses.clone();
    status.bgp_sessions = routing.sessions.clone();
    set_condition(&mut status.conditions, seen.condition(&WORDS, generation, now));
    status.conditions.retain(|c| c.type_ != discovery::CONDITION);
    if let Some(without) = &routing.without_name {
        set_condition(&mut status.conditions, without.clone());
    }
    if server.spec.relay_refs.is_empty() {
        status.conditions.retain(|c| ["Ready", discovery::CONDITION].contains(&&*c.type_));
    } else {
        let accepted = fleet::accepted(routing.refused.as_ref(), generation, now);
        let healthy = sessions::condition_of(&routing.sessions, generation, now);
        set_condition(&mut status.conditions, accepted);
        set_condition(&mut status.conditions, healthy);
    }
    status
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
    let mut routing = Routing::default();
    let namespace = server.namespace().unwrap_or_default();
    let link = server.spec.link_ref.name.clone();
    if namespace != ctx.settings.namespace {
        let text = format!(
            "Servers run in the operator's namespace only; make this AeroServer in {}",
            ctx.settings.namespace
        );
        seen.refusal = Some(("NamespaceNotServed", text));
    } else if let Some(of) = ctx.links.state().iter().find(|l| l.name_any() == link) {
        // Whatever becomes of its BGP: its Clients are served.
        let part = objects::part(server);
        let deployment = objects::deployment(server, &ctx.settings, seen.wanted);
        fleet::run(ctx, &part, MANAGER, deployment, &mut seen).await?;
        if !server.spec.relay_refs.is_empty() {
            let mut plan = routes::verdict(ctx, of);
            routing.refused = plan.servers.remove(&server.name_any());
            routing.sessions = sessions::of_pods(ctx, &fleet::pods(ctx, &part));
        }
        routing.without_name = name(ctx, &namespace, server).await?;
    } else {
        let text = format!("there is no AeroLink {link:?}; make it, or name another in linkRef");
        seen.refusal = Some(("LinkNotFound", text));
    }
    let status = status(server, &seen, &routing, &ctx.now());
    let before = server.status.clone().unwrap_or_default();
    let news = server.status.as_ref().and_then(|s| seen.news(&WORDS, s.ready_replicas));
    let refused = status
        .conditions
        .iter()
        .filter(|c| ["Accepted", discovery::CONDITION].contains(&&*c.type_))
        .filter_map(|c| fleet::trouble(&before.conditions, c, &REFUSALS));
    let bad_peers = sessions::trouble(&before.bgp_sessions, &status.bgp_sessions);
    for note in news.into_iter().chain(refused).chain(bad_peers) {
        tracing::info!(server = wanted, reason = note.reason, "{}", note.message);
        events::publish(ctx, &note, &[server.object_ref(&())]).await;
    }
    if server.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let api: Api<AeroServer> = Api::namespaced(ctx.client.clone(), &namespace);
    apply_status(&api, &server.name_any(), MANAGER, &status).await
}

/// Keeps the discovery name; what to say if it is not that of this AeroServer's link.
async fn name(
    ctx: &Context,
    namespace: &str,
    server: &AeroServer,
) -> anyhow::Result<Option<Condition>> {
    let links = ctx.links.state();
    let has_link = |s: &AeroServer| links.iter().any(|l| l.name_any() == s.spec.link_ref.name);
    let all = ctx.servers.state();
    let here = |s: &&AeroServer| s.namespace().as_deref() == Some(namespace) && has_link(s);
    let all: Vec<&AeroServer> = all.iter().map(|s| &**s).filter(here).collect();
    if let Some(service) = discovery::service(all.iter().copied()) {
        fleet::apply::<Service>(ctx, MANAGER, discovery::NAME, service).await?;
    }
    Ok(discovery::without_name(server, all, &ctx.now()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::events::Note;
    use aero_crds::{AeroServerSpec, is_true};

    fn news(server: &AeroServer, seen: &Observed) -> Option<Note> {
        server.status.as_ref().and_then(|s| seen.news(&WORDS, s.ready_replicas))
    }

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
        let status = |server: &AeroServer, seen: &Observed, at: &Time| {
            super::status(server, seen, &Routing::default(), at)
        };
        assert!(!is_true(&status(&server, &with(0), &at).conditions, "Ready"));
        assert!(is_true(&status(&server, &with(1), &at).conditions, "Ready"));
        assert_eq!(status(&server, &with(1), &at).conditions[0].reason, "SomeServing");
        assert_eq!(status(&server, &with(2), &at).conditions[0].reason, "AllServing");
        let none = Observed::default();
        assert_eq!(status(&server, &none, &at).conditions[0].reason, "NoneWanted");
    }

    #[test]
    fn a_server_with_relays_says_whether_what_it_asks_for_is_in_force() {
        let mut server = AeroServer::new("s", AeroServerSpec::default());
        let at = Time("2026-01-01T00:00:00Z".parse().unwrap());
        let seen = Observed { wanted: 2, ready: 2, ..Observed::default() };
        let refused = Refusal { reason: "RelayNotFound", message: "there is no AeroRelay".into() };
        let routing = Routing { refused: Some(refused), ..Routing::default() };
        assert_eq!(super::status(&server, &seen, &routing, &at).conditions.len(), 1);
        server.spec.relay_refs = vec!["r".into()];
        let status = super::status(&server, &seen, &routing, &at);
        assert!(is_true(&status.conditions, "Ready"), "Clients are served all the same");
        let accepted = status.conditions.iter().find(|c| c.type_ == "Accepted").unwrap();
        assert_eq!(
            (accepted.status.as_str(), accepted.reason.as_str()),
            ("False", "RelayNotFound")
        );
        let note = fleet::trouble(&[], accepted, &REFUSALS).unwrap();
        assert_eq!((note.reason, note.warning), ("RelayNotFound", true));
        assert_eq!(fleet::trouble(&status.conditions, accepted, &REFUSALS), None, "told once");
        let good = super::status(&server, &seen, &Routing::default(), &at);
        assert!(is_true(&good.conditions, "Accepted"));
    }
}
