//! Garbage collection: which mappings are looked at in a pass, and what is done about them.
//!
//! A mapping that is at rest (its pod is there and its status says so) is looked at again when it,
//! its pod or its client changes; one that is kept or cools, when its time is over. All others are
//! looked at in every pass, and now and then everything is.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aero_crds::{AcpMapping, AeroClient, Phase, parse_duration};
use chrono::{DateTime, Utc};
use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::reflector::ObjectRef;

use super::{Fate, Life, end, fate, holder_lives, phase_of, status, write};
use crate::context::{Context, to_chrono};
use crate::table::client_of;

/// Mappings that are seen to at a time.
const PARALLEL: usize = 16;

/// When a mapping was first seen without its pod, or without its client; and when it is to be
/// looked at again.
#[derive(Debug, Default)]
pub struct Looks {
    pub(super) podless: BTreeMap<String, DateTime<Utc>>,
    pub(super) orphaned: BTreeMap<String, DateTime<Utc>>,
    /// Those whose status was not about their spec.
    unsettled: HashSet<String>,
    /// To be looked at in the next pass.
    again: BTreeSet<String>,
    /// To be looked at from then on.
    times: BTreeMap<String, DateTime<Utc>>,
    by_time: BTreeSet<(DateTime<Utc>, String)>,
}

/// When to look again at a mapping that nothing is done about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    /// When something changes.
    Rest,
    /// In the next pass.
    Again,
    /// When its time is over.
    At(DateTime<Utc>),
}

impl Looks {
    /// Those that are to be looked at now, in order.
    fn due(&mut self, marked: BTreeSet<String>, now: DateTime<Utc>) -> BTreeSet<String> {
        let mut all = marked;
        all.append(&mut self.again);
        while let Some((_, name)) = self.by_time.first().filter(|(t, _)| *t <= now).cloned() {
            self.set(&name, Next::Rest);
            all.insert(name);
        }
        all
    }

    fn set(&mut self, name: &str, next: Next) {
        if let Some(time) = self.times.remove(name) {
            self.by_time.remove(&(time, name.to_string()));
        }
        match next {
            Next::Rest => {}
            Next::Again => {
                self.again.insert(name.to_string());
            }
            Next::At(time) => {
                self.times.insert(name.to_string(), time);
                self.by_time.insert((time, name.to_string()));
            }
        }
    }

    fn forget(&mut self, name: &str) {
        self.set(name, Next::Rest);
        self.podless.remove(name);
        self.orphaned.remove(name);
        self.unsettled.remove(name);
    }
}

/// When to look again at a mapping whose fate is to be left and whose status is right. `here`:
/// whether its holder's pod is.
fn next(mapping: &AcpMapping, client: Option<&AeroClient>, here: bool) -> Next {
    let status = mapping.status.as_ref();
    if status.and_then(|s| s.phase) == Some(Phase::Cooling) {
        let free_at = status.and_then(|s| s.free_at.as_ref());
        return match free_at {
            Some(time) if !here => Next::At(to_chrono(time)),
            _ => Next::Again,
        };
    }
    let Some(client) = client else { return Next::Again };
    if mapping.spec.holder.is_some() {
        return if here { Next::Rest } else { Next::Again };
    }
    let Some(released) = status.and_then(|s| s.released_at.as_ref()) else { return Next::Again };
    let keep = parse_duration(&client.spec.keep_for);
    let keep = keep.and_then(|k| chrono::Duration::from_std(k).ok());
    // Kept for ever, where the end is not to be told.
    keep.and_then(|k| to_chrono(released).checked_add_signed(k)).map_or(Next::Rest, Next::At)
}

/// One pass over the mappings that are to be looked at.
pub async fn collect(ctx: &Context, looks: &mut Looks) {
    let names = looks.due(ctx.take_looks(), to_chrono(&ctx.now()));
    let looks = Mutex::new(looks);
    stream::iter(names)
        .for_each_concurrent(PARALLEL, |name| {
            let looks = &looks;
            async move {
                if let Err(e) = look(ctx, &name, looks).await {
                    tracing::debug!(mapping = name, "left for the next pass: {e:#}");
                }
            }
        })
        .await;
}

/// Whether a mapping's holder is there, as the cache has it.
fn holder_is_here(ctx: &Context, mapping: &AcpMapping) -> bool {
    let Some(holder) = &mapping.spec.holder else { return false };
    let pod = ObjectRef::<Pod>::new(&holder.pod_name);
    let pod = ctx.pods.get(&pod.within(&mapping.spec.client_ref.namespace));
    pod.is_some_and(|p| p.metadata.uid.as_ref() == Some(&holder.pod_uid))
}

async fn look(ctx: &Context, name: &str, looks: &Mutex<&mut Looks>) -> anyhow::Result<()> {
    let looks =
        || -> MutexGuard<'_, &mut Looks> { looks.lock().unwrap_or_else(PoisonError::into_inner) };
    let Some(mapping) = ctx.table().get(name).cloned() else {
        looks().forget(name);
        return Ok(());
    };
    let client = ctx.members().client(&client_of(&mapping)).cloned();
    let here = holder_is_here(ctx, &mapping);
    let now = ctx.now();
    let fate = fate(&mapping, client.as_deref(), here, &mut looks(), to_chrono(&now));
    // What is not at rest is looked at again, whatever comes of it now.
    looks().set(name, Next::Again);
    match fate {
        Fate::Leave => {
            let life = phase_of(&mapping, &now);
            if mapping.status.as_ref() == Some(&status(&mapping, life.clone(), &now)) {
                let mut looks = looks();
                looks.unsettled.remove(name);
                looks.again.remove(name);
                looks.set(name, next(&mapping, client.as_deref(), here));
                return Ok(());
            }
            // A status that is not about its spec at two looks was lost with an operator that
            // ended between its two writes, or is of a version that wrote less.
            if looks().unsettled.insert(name.to_string()) {
                return Ok(());
            }
            write(ctx, &mapping, life).await.map(drop)
        }
        Fate::MarkReleased => write(ctx, &mapping, Life::Kept(now)).await.map(drop),
        Fate::ClearHolder | Fate::Retire(_) | Fate::Delete => {
            if !holder_lives(ctx, &mapping).await? {
                end(ctx, &mapping, &fate).await?;
            }
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{client, mapping};
    use super::*;
    use serde_json::json;

    fn at(seconds: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_800_000_000 + seconds, 0).unwrap()
    }

    #[test]
    fn only_what_a_pod_holds_rests_and_what_is_kept_or_cools_has_its_time() {
        let client = client();
        let held = mapping(Some("u1"), json!({"phase": "Bound"}));
        assert_eq!(next(&held, Some(&client), true), Next::Rest);
        assert_eq!(next(&held, Some(&client), false), Next::Again);
        assert_eq!(next(&held, None, true), Next::Again);
        let kept = mapping(None, json!({"phase": "Bound", "releasedAt": at(0)}));
        assert_eq!(next(&kept, Some(&client), false), Next::At(at(3600)));
        let cooling = mapping(None, json!({"phase": "Cooling", "freeAt": at(90)}));
        assert_eq!(next(&cooling, Some(&client), false), Next::At(at(90)));
        let used = mapping(Some("u1"), json!({"phase": "Cooling", "freeAt": at(90)}));
        assert_eq!(next(&used, Some(&client), true), Next::Again);
    }

    #[test]
    fn a_time_is_due_once_and_the_last_one_counts() {
        let mut looks = Looks::default();
        looks.set("a", Next::At(at(10)));
        looks.set("a", Next::At(at(20)));
        looks.set("b", Next::At(at(10)));
        looks.set("c", Next::Again);
        let due = |looks: &mut Looks, marked: &[&str], seconds| -> Vec<String> {
            let marked = marked.iter().map(ToString::to_string).collect();
            looks.due(marked, at(seconds)).into_iter().collect()
        };
        assert_eq!(due(&mut looks, &["d"], 9), ["c", "d"]);
        assert_eq!(due(&mut looks, &[], 10), ["b"]);
        assert_eq!(due(&mut looks, &[], 30), ["a"]);
        assert!(due(&mut looks, &[], 99).is_empty());
    }
}
