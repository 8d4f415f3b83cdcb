//! The status of an AeroClient, made from its plan.

use aero_crds::{AeroClient, AeroClientStatus, IdentityStatus, condition, set_condition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::Plan;

/// The status after a plan has been carried out. Equal to the present one if nothing changed.
pub(super) fn status(client: &AeroClient, plan: &Plan, now: &Time) -> AeroClientStatus {
    let generation = client.metadata.generation;
    let mut status = client.status.clone().unwrap_or_default();
    status.observed_generation = generation;
    let moved: Vec<&String> = plan.told.iter().filter_map(|t| t.moved.as_ref()).collect();
    status.moves += i64::try_from(moved.len()).unwrap_or(0);
    if !moved.is_empty() {
        status.last_move = Some(now.clone());
    }
    let before = std::mem::take(&mut status.identities);
    for (name, identity) in &plan.identities {
        let old = before.iter().find(|i| i.identity == *name);
        let last_move = if moved.contains(&name) {
            Some(now.clone())
        } else {
            old.and_then(|o| o.last_move.clone())
        };
        status.identities.push(IdentityStatus {
            identity: name.clone(),
            prefixes: identity.prefixes.iter().map(ToString::to_string).collect(),
            node: identity.holder.as_ref().map(|h| h.node.clone()),
            pod: identity.holder.as_ref().map(|h| h.pod_name.clone()),
            epoch: identity.epoch,
            last_move,
        });
    }
    let count = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
    status.identity_count = count(status.identities.len());
    status.bound = count(status.identities.iter().filter(|i| i.pod.is_some()).count());
    let refusal = plan.refusals.first();
    // A pod that an older client has does not make the others less ready.
    let accepted =
        plan.refusals.iter().all(|r| r.reason == "PodTaken" || r.reason == "PoolExhausted");
    let ready = refusal.is_none();
    let (reason, message) = match refusal {
        Some(r) => (
            r.reason,
            plan.refusals.iter().map(|r| r.message.clone()).collect::<Vec<_>>().join("; "),
        ),
        None if client.spec.host.is_some() => {
            ("HostNotYetSupported", "hosts outside the cluster are not supported yet".to_string())
        }
        None => {
            let text =
                format!("{} of {} identities have a pod", status.bound, status.identity_count);
            ("AllDelegated", text)
        }
    };
    let ready = ready && client.spec.host.is_none();
    let set = |list: &mut Vec<_>, type_: &str, ok: bool, reason: &str, message: &str| {
        set_condition(list, condition(type_, ok, reason, message, generation, now.clone()));
    };
    set(&mut status.conditions, "Ready", ready, reason, &message);
    let (reason, message) =
        if accepted { ("Valid", "the spec can be satisfied") } else { (reason, message.as_str()) };
    let message = message.to_string();
    set(&mut status.conditions, "Accepted", accepted, reason, &message);
    status
}
