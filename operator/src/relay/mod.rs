//! AeroRelay: runs the Relays of a link.

pub mod objects;

use aero_crds::{AeroRelay, AeroRelayStatus, set_condition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{Api, Resource, ResourceExt};

use crate::context::{Context, apply_status, key};
use crate::fleet::{self, Observed, Words};
use crate::routes::check::Refusal;
use crate::{events, routes, sessions};

/// Field manager of what this controller applies.
const MANAGER: &str = "aero-operator-relay";
const WORDS: Words =
    Words { many: "Relays", lost: "RelayLost", left: "RelayLeft", serve: "RelaysServe" };
/// Refusals that an Event is written about.
pub const REFUSALS: [&str; 3] = ["AsnNotPrivate", "AsnConflict", "PeerRefused"];

/// How many Relays: as asked for, else two.
pub fn replicas(relay: &AeroRelay) -> i32 {
    relay.spec.replicas.unwrap_or(2)
}

/// One round for one AeroRelay (`namespace/name`).
///
/// # Errors
/// If a write fails; the caller tries again.
pub async fn reconcile(ctx: &Context, wanted: &str) -> anyhow::Result<()> {
    let relays = ctx.relays.state();
    let Some(relay) = relays.iter().find(|r| key(&***r) == wanted) else { return Ok(()) };
    if relay.metadata.deletion_timestamp.is_some() {
        return Ok(());
    }
    let mut seen = Observed { wanted: replicas(relay), ..Observed::default() };
    let namespace = relay.namespace().unwrap_or_default();
    let link = relay.spec.link_ref.name.clone();
    let part = objects::part(relay);
    let mut refused = None;
    if namespace != ctx.settings.namespace {
        let text = format!(
            "Relays run in the operator's namespace only; make this AeroRelay in {}",
            ctx.settings.namespace
        );
        seen.refusal = Some(("NamespaceNotServed", text));
    } else if let Some(of) = ctx.links.state().iter().find(|l| l.name_any() == link) {
        let plan = routes::verdict(ctx, of);
        refused = plan.relays.get(&relay.name_any()).cloned();
        match &refused {
            // Nothing that was good before: nothing is run by it.
            Some(r) if !plan.in_force.relays.contains_key(&relay.name_any()) => {
                seen.refusal = Some((r.reason, r.message.clone()));
            }
            _ => {
                let deployment = objects::deployment(relay, &ctx.settings, seen.wanted);
                fleet::run(ctx, &part, MANAGER, deployment, &mut seen).await?;
            }
        }
    } else {
        let text = format!("there is no AeroLink {link:?}; make it, or name another in linkRef");
        seen.refusal = Some(("LinkNotFound", text));
    }
    let status = status(ctx, relay, &seen, refused.as_ref(), &ctx.now());
    let before = relay.status.clone().unwrap_or_default();
    let news = relay.status.as_ref().and_then(|s| seen.news(&WORDS, s.ready_replicas));
    let accepted = status.conditions.iter().filter(|c| c.type_ == "Accepted");
    let refused = accepted.filter_map(|c| fleet::trouble(&before.conditions, c, &REFUSALS));
    let bad_peers = sessions::trouble(&before.bgp_sessions, &status.bgp_sessions);
    for note in news.into_iter().chain(refused).chain(bad_peers) {
        tracing::info!(relay = wanted, reason = note.reason, "{}", note.message);
        events::publish(ctx, &note, &[relay.object_ref(&())]).await;
    }
    if relay.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let api: Api<AeroRelay> = Api::namespaced(ctx.client.clone(), &namespace);
    apply_status(&api, &relay.name_any(), MANAGER, &status).await
}

fn status(
    ctx: &Context,
    relay: &AeroRelay,
    seen: &Observed,
    refused: Option<&Refusal>,
    now: &Time,
) -> AeroRelayStatus {
    let generation = relay.metadata.generation;
    let mut status = relay.status.clone().unwrap_or_default();
    status.observed_generation = generation;
    status.ready_replicas = seen.ready;
    status.addresses = seen.addresses.clone();
    status.bgp_sessions = sessions::of_pods(ctx, &fleet::pods(ctx, &objects::part(relay)));
    let conditions = [
        seen.condition(&WORDS, generation, now),
        fleet::accepted(refused, generation, now),
        sessions::condition_of(&status.bgp_sessions, generation, now),
    ];
    for new in conditions {
        set_condition(&mut status.conditions, new);
    }
    status
}
