//! AeroRelay: known, not yet run.

use aero_crds::{AeroRelay, condition, set_condition};
use kube::{Api, ResourceExt};

use crate::context::{Context, apply_status, key};

/// Field manager of what this controller applies.
const MANAGER: &str = "aero-operator-relay";

/// Says that Relays are not run yet.
///
/// # Errors
/// If the status cannot be written.
pub async fn reconcile(ctx: &Context, wanted: &str) -> anyhow::Result<()> {
    let relays = ctx.relays.state();
    let Some(relay) = relays.iter().find(|r| key(&***r) == wanted) else { return Ok(()) };
    let mut status = relay.status.clone().unwrap_or_default();
    let generation = relay.metadata.generation;
    status.observed_generation = generation;
    let text = "this version runs no Relays; every client registers with every Server of its link";
    let ready = condition("Ready", false, "NotYetSupported", text, generation, ctx.now());
    set_condition(&mut status.conditions, ready);
    if relay.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let api: Api<AeroRelay> =
        Api::namespaced(ctx.client.clone(), &relay.namespace().unwrap_or_default());
    apply_status(&api, &relay.name_any(), MANAGER, &status).await
}
