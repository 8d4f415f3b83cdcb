//! AcpMapping: what becomes of a prefix that has no pod. A pure decision, taken anew every other
//! second from what the caches hold, and carried out with the resourceVersion that it was taken
//! from, so a mapping that changed meanwhile is left alone.

mod collect;

use std::collections::BTreeMap;
use std::time::Duration;

use aero_crds::{
    AcpMapping, AcpMappingStatus, AeroClient, Phase, annotations, condition, parse_duration,
    set_condition,
};
use anyhow::Context as _;
use chrono::{DateTime, Utc};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Resource, ResourceExt};
use serde_json::{Value, json};

use crate::client::identity::PodView;
use crate::context::{Context, to_chrono};
use crate::events::{self, Note};

pub use collect::{Looks, collect};

/// A holder whose pod is gone is taken off the mapping after this long, unless a new pod of the
/// identity has taken its place.
const HOLDER_GRACE: Duration = Duration::from_secs(5);
/// A mapping whose client does not exist is given up after this long: two looks, so that one
/// stale list costs nobody a prefix.
const ORPHAN_GRACE: Duration = Duration::from_secs(60);
/// Cool-down of a mapping whose client can no longer be asked.
const DEFAULT_COOL_DOWN: Duration = Duration::from_secs(180);

/// What to do with one mapping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// Nothing.
    Leave,
    /// Its holder's pod is gone: take the holder off.
    ClearHolder,
    /// It has no holder, and nothing says since when: say now.
    MarkReleased,
    /// Nobody has wanted it for long enough: give it up.
    Retire(Duration),
    /// It has cooled: delete it.
    Delete,
}

/// Decides about one mapping. `here`: whether its holder's pod is there; `client`: its AeroClient, if
/// it exists.
pub fn fate(
    mapping: &AcpMapping,
    client: Option<&AeroClient>,
    here: bool,
    looks: &mut Looks,
    now: DateTime<Utc>,
) -> Fate {
    let name = mapping.name_any();
    let status = mapping.status.clone().unwrap_or_default();
    let live = here && mapping.spec.holder.is_some();
    if live {
        looks.podless.remove(&name);
    }
    if status.phase == Some(Phase::Cooling) {
        let over = status.free_at.as_ref().is_some_and(|t| to_chrono(t) <= now);
        return if over && !live { Fate::Delete } else { Fate::Leave };
    }
    let since = |map: &mut BTreeMap<String, DateTime<Utc>>, grace: Duration| {
        let first = *map.entry(name.clone()).or_insert(now);
        (now - first).to_std().is_ok_and(|d| d >= grace)
    };
    if client.is_none() {
        return if since(&mut looks.orphaned, ORPHAN_GRACE) && !live {
            Fate::Retire(DEFAULT_COOL_DOWN)
        } else {
            Fate::Leave
        };
    }
    looks.orphaned.remove(&name);
    if mapping.spec.holder.is_some() && !live {
        return if since(&mut looks.podless, HOLDER_GRACE) {
            Fate::ClearHolder
        } else {
            Fate::Leave
        };
    }
    if mapping.spec.holder.is_none() && status.released_at.is_none() {
        return Fate::MarkReleased;
    }
    if mapping.spec.holder.is_none()
        && let (Some(released), Some(client)) = (status.released_at.as_ref(), client)
    {
        let keep = parse_duration(&client.spec.keep_for).unwrap_or(Duration::MAX);
        let kept = (now - to_chrono(released)).to_std().unwrap_or_default();
        if kept >= keep {
            let cool = parse_duration(&client.spec.cool_down).unwrap_or(DEFAULT_COOL_DOWN);
            return Fate::Retire(cool);
        }
    }
    Fate::Leave
}

/// Where a mapping is in its life, with the times that belong to it.
#[derive(Debug, Clone, PartialEq)]
enum Life {
    /// A pod holds it.
    Held,
    /// Kept for its identity since then.
    Kept(Time),
    /// Given up then, free from then on.
    Cooling(Time, Time),
}

fn phase_of(mapping: &AcpMapping, now: &Time) -> Life {
    let status = mapping.status.clone().unwrap_or_default();
    match (status.phase, status.released_at, status.free_at) {
        (Some(Phase::Cooling), Some(released), Some(free)) => Life::Cooling(released, free),
        (_, released, _) if mapping.spec.holder.is_none() => {
            Life::Kept(released.unwrap_or_else(|| now.clone()))
        }
        _ => Life::Held,
    }
}

/// The status of a mapping: a pure function of its spec and where it is in its life.
fn status(mapping: &AcpMapping, life: Life, now: &Time) -> AcpMappingStatus {
    let generation = mapping.metadata.generation;
    let mut status = mapping.status.clone().unwrap_or_default();
    status.observed_generation = generation;
    let spec = &mapping.spec;
    let owner = format!("{}/{}/{}", spec.client_ref.namespace, spec.client_ref.name, spec.identity);
    let (ready, reason, message);
    match life {
        Life::Cooling(released, free) => {
            (ready, reason) = (false, "Cooling");
            message = format!("{owner} gave it up; free from {} on", free.0);
            (status.phase, status.released_at, status.free_at) =
                (Some(Phase::Cooling), Some(released), Some(free));
        }
        Life::Kept(since) => {
            (ready, reason) = (false, "NoHolder");
            message = format!("kept for {owner}, which has no pod now");
            (status.phase, status.released_at, status.free_at) =
                (Some(Phase::Bound), Some(since), None);
        }
        Life::Held => {
            (ready, reason) = (true, "Held");
            let holder = spec.holder.clone().unwrap_or_default();
            message = format!("pod {} on {} holds it", holder.pod_name, holder.node);
            (status.phase, status.released_at, status.free_at) = (Some(Phase::Bound), None, None);
        }
    }
    set_condition(
        &mut status.conditions,
        condition("Ready", ready, reason, message, generation, now.clone()),
    );
    status
}

/// Writes the status of a mapping, if it is still what was read.
async fn write(ctx: &Context, mapping: &AcpMapping, life: Life) -> anyhow::Result<AcpMapping> {
    let status = status(mapping, life, &ctx.now());
    // Every field by name, so that those that end are taken away.
    let value = json!({
        "observedGeneration": status.observed_generation,
        "conditions": status.conditions,
        "phase": status.phase,
        "releasedAt": status.released_at,
        "freeAt": status.free_at,
    });
    patch_status(ctx, mapping, value).await
}

/// Marks a mapping as held by its client's pod, as long as it is what was written.
///
/// # Errors
/// If it has changed, or the API server does not take it.
pub async fn bind(ctx: &Context, mapping: AcpMapping) -> anyhow::Result<AcpMapping> {
    if mapping.status.as_ref() == Some(&status(&mapping, Life::Held, &ctx.now())) {
        return Ok(mapping);
    }
    write(ctx, &mapping, Life::Held).await
}

async fn end(ctx: &Context, mapping: &AcpMapping, fate: &Fate) -> anyhow::Result<()> {
    match fate {
        Fate::ClearHolder => clear_holder(ctx, mapping).await,
        Fate::Retire(cool) => retire(ctx, mapping, *cool).await,
        Fate::Delete => delete(ctx, mapping).await,
        Fate::Leave | Fate::MarkReleased => Ok(()),
    }
}

/// Whether the pod that holds a mapping is there and not finished, by the API server's own word.
/// The cache of pods may lag: what takes a prefix from a pod asks first. A UID that is gone does
/// not come back, so the answer is good until the write.
///
/// # Errors
/// If the API server does not answer.
pub async fn holder_lives(ctx: &Context, mapping: &AcpMapping) -> anyhow::Result<bool> {
    let Some(holder) = &mapping.spec.holder else { return Ok(false) };
    let pods: Api<Pod> = Api::namespaced(ctx.client.clone(), &mapping.spec.client_ref.namespace);
    let pod = pods.get_opt(&holder.pod_name).await?.as_ref().and_then(PodView::of);
    Ok(pod.is_some_and(|p| p.uid == holder.pod_uid))
}

/// Whether the pod that holds a mapping has been told its prefix, by the API server's own word.
///
/// # Errors
/// If the API server does not answer.
pub async fn holder_uses(ctx: &Context, mapping: &AcpMapping) -> anyhow::Result<bool> {
    let Some(holder) = &mapping.spec.holder else { return Ok(false) };
    let pods: Api<Pod> = Api::namespaced(ctx.client.clone(), &mapping.spec.client_ref.namespace);
    let pod = pods.get_opt(&holder.pod_name).await?.as_ref().and_then(PodView::of);
    Ok(pod.filter(|p| p.uid == holder.pod_uid).is_some_and(|p| {
        let told = p.annotations.get(annotations::PREFIX).map_or("", String::as_str);
        told.split(',').any(|prefix| prefix == mapping.spec.prefix)
    }))
}

/// Changes the status of a mapping, if it is still what was read: a decision about a mapping
/// that has changed meanwhile, by this operator or by one that leads now, must not count.
///
/// # Errors
/// If it has changed, or the API server does not take it.
pub async fn patch_status(
    ctx: &Context,
    mapping: &AcpMapping,
    status: Value,
) -> anyhow::Result<AcpMapping> {
    let api: Api<AcpMapping> = Api::all(ctx.client.clone());
    let metadata = json!({"resourceVersion": mapping.resource_version(), "uid": mapping.uid()});
    let patch = Patch::Merge(json!({"metadata": metadata, "status": status}));
    let done = api.patch_status(&mapping.name_any(), &PatchParams::default(), &patch).await;
    done.with_context(|| format!("the status of {} cannot be changed", mapping.spec.prefix))
}

/// Status first: a mapping without a holder always says since when, wherever an operator ends.
async fn clear_holder(ctx: &Context, mapping: &AcpMapping) -> anyhow::Result<()> {
    let marked = write(ctx, mapping, Life::Kept(ctx.now())).await?;
    let pod = mapping.spec.holder.as_ref().map(|h| h.pod_name.as_str()).unwrap_or_default();
    take_holder_off(ctx, marked).await?;
    let (prefix, identity) = (&mapping.spec.prefix, &mapping.spec.identity);
    tracing::info!(prefix, identity, pod, "the holder is gone; the prefix is kept");
    let text = format!("pod {pod} is gone; {prefix} is kept for {identity}");
    tell(ctx, mapping, Note::normal("Released", text)).await;
    Ok(())
}

async fn take_holder_off(ctx: &Context, mut mapping: AcpMapping) -> anyhow::Result<()> {
    let api: Api<AcpMapping> = Api::all(ctx.client.clone());
    if mapping.spec.holder.take().is_some() {
        api.replace(&mapping.name_any(), &PostParams::default(), &mapping).await?;
    }
    Ok(())
}

/// Gives a prefix up: it cools, then it is free.
///
/// # Errors
/// If the mapping has changed since it was read, or the API server does not take it.
pub async fn retire(ctx: &Context, mapping: &AcpMapping, cool: Duration) -> anyhow::Result<()> {
    let seconds = i64::try_from(cool.as_secs()).unwrap_or(i64::MAX);
    let free_at = ctx.now().0.as_second().saturating_add(seconds);
    let free_at = k8s_openapi::jiff::Timestamp::from_second(free_at)?;
    let cooling = write(ctx, mapping, Life::Cooling(ctx.now(), Time(free_at))).await?;
    take_holder_off(ctx, cooling).await?;
    let (prefix, identity) = (&mapping.spec.prefix, &mapping.spec.identity);
    tracing::info!(prefix, identity, %free_at, "given up; cools");
    let text = format!("{prefix} of {identity} is given up; free from {free_at} on");
    tell(ctx, mapping, Note::normal("Released", text)).await;
    Ok(())
}

async fn delete(ctx: &Context, mapping: &AcpMapping) -> anyhow::Result<()> {
    let api: Api<AcpMapping> = Api::all(ctx.client.clone());
    let preconditions =
        Preconditions { resource_version: mapping.resource_version(), uid: mapping.uid() };
    let params = DeleteParams::default().preconditions(preconditions);
    api.delete(&mapping.name_any(), &params).await?;
    Ok(())
}

/// Tells of a mapping, on itself and on its AeroClient.
async fn tell(ctx: &Context, mapping: &AcpMapping, note: Note) {
    let of = &mapping.spec.client_ref;
    let client = ctx.clients.get(&ObjectRef::new(&of.name).within(&of.namespace));
    let mut about = vec![mapping.object_ref(&())];
    about.extend(client.map(|c| c.object_ref(&())));
    events::publish(ctx, &note, &about).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn mapping(holder: Option<&str>, status: serde_json::Value) -> AcpMapping {
        let holder = holder.map(|uid| json!({"podName": "p", "podUid": uid, "node": "n1"}));
        serde_json::from_value(json!({
            "apiVersion": "aerolink.dev/v1alpha1", "kind": "AcpMapping",
            "metadata": {"name": "2001-db8-a-1-64"},
            "spec": {"prefix": "2001:db8:a:1::/64", "linkRef": {"name": "default"},
                "clientId": "x", "clientRef": {"namespace": "default", "name": "web"},
                "identity": "web-0", "holder": holder, "epoch": 1},
            "status": status,
        }))
        .unwrap()
    }

    pub(super) fn client() -> AeroClient {
        serde_json::from_value(json!({
            "apiVersion": "aerolink.dev/v1alpha1", "kind": "AeroClient",
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"podSelector": {}, "keepFor": "1h", "coolDown": "90s"},
        }))
        .unwrap()
    }

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    #[test]
    fn a_holder_is_taken_off_only_after_a_grace_in_which_its_pod_stays_away() {
        let (m, c) = (mapping(Some("u1"), json!({"phase": "Bound"})), client());
        let mut looks = Looks::default();
        assert_eq!(fate(&m, Some(&c), false, &mut looks, at(0)), Fate::Leave);
        assert_eq!(fate(&m, Some(&c), true, &mut looks, at(4)), Fate::Leave);
        assert_eq!(fate(&m, Some(&c), false, &mut looks, at(6)), Fate::Leave, "counts anew");
        assert_eq!(fate(&m, Some(&c), false, &mut looks, at(11)), Fate::ClearHolder);
    }

    #[test]
    fn a_prefix_without_a_pod_is_kept_for_its_time_and_then_cools_and_then_is_free() {
        let c = client();
        let mut looks = Looks::default();
        let kept = mapping(None, json!({"phase": "Bound", "releasedAt": at(0)}));
        assert_eq!(fate(&kept, Some(&c), false, &mut looks, at(3599)), Fate::Leave);
        let retire = Fate::Retire(Duration::from_secs(90));
        assert_eq!(fate(&kept, Some(&c), false, &mut looks, at(3600)), retire);
        let cooling = mapping(None, json!({"phase": "Cooling", "freeAt": at(3690)}));
        assert_eq!(fate(&cooling, Some(&c), false, &mut looks, at(3689)), Fate::Leave);
        // The time is in the object: an operator that starts now decides the same.
        assert_eq!(fate(&cooling, None, false, &mut Looks::default(), at(3690)), Fate::Delete);
    }

    #[test]
    fn a_mapping_without_a_client_is_given_up_after_two_looks_and_never_under_a_live_pod() {
        let m = mapping(None, json!({"phase": "Bound"}));
        let mut looks = Looks::default();
        assert_eq!(fate(&m, None, false, &mut looks, at(0)), Fate::Leave);
        assert_eq!(fate(&m, None, false, &mut looks, at(59)), Fate::Leave);
        assert_eq!(fate(&m, None, false, &mut looks, at(60)), Fate::Retire(DEFAULT_COOL_DOWN));
        let live = mapping(Some("u1"), json!({"phase": "Bound"}));
        let mut looks = Looks::default();
        fate(&live, None, true, &mut looks, at(0));
        assert_eq!(fate(&live, None, true, &mut looks, at(600)), Fate::Leave);
    }

    #[test]
    fn a_mapping_is_ready_while_a_pod_holds_it_and_says_why_it_is_not() {
        let time =
            |s: i64| Time(k8s_openapi::jiff::Timestamp::from_second(1_800_000_000 + s).unwrap());
        let mut m = mapping(Some("u1"), json!({"phase": "Bound", "releasedAt": at(0)}));
        m.metadata.generation = Some(4);
        let held = status(&m, Life::Held, &time(1));
        assert_eq!((held.released_at.as_ref(), held.observed_generation), (None, Some(4)));
        let c = &held.conditions[0];
        assert_eq!((c.status.as_str(), c.reason.as_str()), ("True", "Held"));
        assert_eq!((c.message.as_str(), c.observed_generation), ("pod p on n1 holds it", Some(4)));
        m.status = Some(held.clone());
        assert_eq!(phase_of(&m, &time(9)), Life::Held);
        assert_eq!(status(&m, phase_of(&m, &time(9)), &time(2)), held, "nothing to write");
        m.spec.holder = None;
        let kept = status(&m, Life::Kept(time(3)), &time(3));
        assert_eq!(kept.conditions[0].reason, "NoHolder");
        m.status = Some(kept);
        assert_eq!(phase_of(&m, &time(9)), Life::Kept(time(3)));
        let cooling = status(&m, Life::Cooling(time(5), time(95)), &time(5));
        assert_eq!(
            (cooling.phase, cooling.free_at.clone()),
            (Some(Phase::Cooling), Some(time(95)))
        );
        assert_eq!(cooling.conditions[0].status, "False");
    }
}
