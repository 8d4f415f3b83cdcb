//! What AeroServer and AeroRelay have in common: pods that are run, and what is said of them.

use aero_crds::condition;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::{Patch, PatchParams};
use kube::{Api, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::context::Context;
use crate::events::Note;
use crate::objects::Part;
use crate::routes::check::Refusal;

/// The words for Servers, or for Relays.
#[derive(Debug, Clone, Copy)]
pub struct Words {
    /// Several of them.
    pub many: &'static str,
    /// Reason of the Event that one was lost.
    pub lost: &'static str,
    /// That one was told to end.
    pub left: &'static str,
    /// That all serve again.
    pub serve: &'static str,
}

/// What the status is made of.
#[derive(Debug, Default)]
pub struct Observed {
    /// How many are wanted.
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

impl Observed {
    /// The condition `Ready`.
    pub fn condition(&self, words: &Words, generation: Option<i64>, now: &Time) -> Condition {
        let count = || format!("{} of {} {} serve", self.ready, self.wanted, words.many);
        let (ok, reason, message) = match &self.refusal {
            Some((reason, message)) => (false, *reason, message.clone()),
            None if self.wanted == 0 => {
                (false, "NoneWanted", format!("spec.replicas is 0: there are no {}", words.many))
            }
            None if self.ready >= self.wanted => (true, "AllServing", count()),
            // One is enough to serve; the condition still says that some are missing.
            None if self.ready > 0 => (true, "SomeServing", count()),
            None => {
                let text = format!("none of {} {} serves yet", self.wanted, words.many);
                (false, "NoneServing", text)
            }
        };
        condition("Ready", ok, reason, message, generation, now.clone())
    }

    /// What there is to tell when fewer, or again all, serve than `before`.
    pub fn news(&self, words: &Words, before: i32) -> Option<Note> {
        let count = format!("{} of {} {} serve", self.ready, self.wanted, words.many);
        if self.refusal.is_some() || self.wanted == 0 || self.ready == before {
            return None;
        }
        if self.ready >= self.wanted {
            return (self.ready > before).then(|| Note::normal(words.serve, count));
        }
        if self.ready > before {
            return None;
        }
        let idle: Vec<&str> = self.idle.iter().map(|(name, _)| name.as_str()).collect();
        let text =
            if idle.is_empty() { count } else { format!("{count}; not {}", idle.join(", ")) };
        let lost = usize::try_from(before - self.ready).unwrap_or(0);
        let told_to_end = self.idle.iter().filter(|(_, ending)| *ending).count();
        Some(if told_to_end >= lost {
            Note::normal(words.left, text)
        } else {
            Note::warning(words.lost, text)
        })
    }
}

/// The condition `Accepted`: whether what is asked for is in force.
pub fn accepted(refusal: Option<&Refusal>, generation: Option<i64>, now: &Time) -> Condition {
    match refusal {
        None => condition("Accepted", true, "Accepted", "in force", generation, now.clone()),
        Some(Refusal { reason, message }) => {
            condition("Accepted", false, reason, message, generation, now.clone())
        }
    }
}

/// What there is to tell when a condition has become false, or false for another reason.
pub fn trouble(before: &[Condition], now: &Condition, reasons: &[&'static str]) -> Option<Note> {
    let reason = reasons.iter().find(|r| **r == now.reason)?;
    let told = |c: &Condition| c.status == now.status && c.message == now.message;
    let old = before.iter().find(|c| c.type_ == now.type_);
    (now.status == "False" && !old.is_some_and(told)).then(|| Note::warning(reason, &now.message))
}

/// Runs it, and sees how that goes.
///
/// # Errors
/// If a write fails.
pub async fn run(
    ctx: &Context,
    part: &Part<'_>,
    manager: &str,
    deployment: Value,
    seen: &mut Observed,
) -> anyhow::Result<()> {
    let name = part.name();
    apply::<Deployment>(ctx, manager, &name, deployment).await?;
    apply::<Service>(ctx, manager, &name, part.service()).await?;
    apply::<PodDisruptionBudget>(ctx, manager, &name, part.disruption_budget()).await?;
    let deployment = ctx.deployments.state().into_iter().find(|d| d.name_any() == name);
    let status = deployment.as_ref().and_then(|d| d.status.as_ref());
    seen.ready = status.and_then(|s| s.ready_replicas).unwrap_or(0);
    let pods = pods(ctx, part);
    seen.addresses = addresses(&pods);
    seen.idle = idle(&pods);
    Ok(())
}

/// Its pods.
pub fn pods(ctx: &Context, part: &Part<'_>) -> Vec<std::sync::Arc<Pod>> {
    ctx.pods.state_filter(|p| {
        p.labels().get(part.label) == Some(&part.owner) && p.namespace() == part.namespace
    })
}

fn addresses(pods: &[std::sync::Arc<Pod>]) -> Vec<String> {
    let stays = pods.iter().filter(|p| p.metadata.deletion_timestamp.is_none());
    let mut all: Vec<String> = stays
        .filter_map(|p| p.status.clone())
        .flat_map(|s| s.host_ips.unwrap_or_default())
        .map(|ip| ip.ip)
        .collect();
    all.sort();
    all
}

/// Those that do not serve.
fn idle(pods: &[std::sync::Arc<Pod>]) -> Vec<(String, bool)> {
    let serves = |p: &Pod| {
        let mut conditions = p.status.iter().flat_map(|s| s.conditions.iter().flatten());
        p.metadata.deletion_timestamp.is_none()
            && conditions.any(|c| c.type_ == "Ready" && c.status == "True")
    };
    let node = |p: &Pod| p.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default();
    pods.iter()
        .filter(|p| !serves(p) && !node(p).is_empty())
        .map(|p| {
            let ending = p.metadata.deletion_timestamp.is_some();
            (format!("pod {} on {}", p.name_any(), node(p)), ending)
        })
        .collect()
}

/// Writes an object of the operator's namespace as this operator wants it.
///
/// # Errors
/// If the API server refuses.
pub async fn apply<K>(ctx: &Context, manager: &str, name: &str, object: Value) -> anyhow::Result<()>
where
    K: Resource<Scope = k8s_openapi::NamespaceResourceScope> + Clone + DeserializeOwned,
    K: std::fmt::Debug,
    K::DynamicType: Default,
{
    let api: Api<K> = Api::namespaced(ctx.client.clone(), &ctx.settings.namespace);
    let params = PatchParams::apply(manager).force();
    api.patch(name, &params, &Patch::Apply(object)).await?;
    Ok(())
}
