//! Reads what the plan needs, carries the plan out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aero_crds::{AcpMapping, AeroClient, AeroLink, annotations, parse_duration};
use anyhow::Context as _;
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::{ObjectReference, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Resource, ResourceExt};
use serde_json::json;

use super::plan::{LinkView, Observed, Plan, Told, Write, plan};
use super::status;
use crate::allocation::effective_pools;
use crate::context::{Context, apply_status};
use crate::events::{Note, publish, reason_of_refusal};
use crate::mapping::{bind, holder_lives, holder_uses, retire};
use crate::members::Member;

/// Field manager of what this controller applies.
const MANAGER: &str = "aero-operator-client";
/// Writes under way at a time.
const PARALLEL: usize = 16;

/// One round for one AeroClient (`namespace/name`).
///
/// # Errors
/// If a write fails; the caller tries again.
pub async fn reconcile(ctx: &Context, key: &str) -> anyhow::Result<()> {
    let Some(client) = alive(ctx, key) else {
        return client_gone(ctx, key).await;
    };
    let link = ctx.links.get(&ObjectRef::new(&client.spec.link_ref.name));
    let plan = {
        let members = ctx.members();
        let (mut pods, mut taken_pods) = (Vec::new(), Vec::new());
        let name = client.name_any();
        for member in members.pods_of(key).filter(|m| m.selected.contains(&name)) {
            let Some(view) = &member.view else { continue };
            match &member.owner {
                Some(owner) if *owner == name => pods.push(Arc::clone(view)),
                Some(other) => taken_pods.push((member.name.clone(), other.clone())),
                None => {}
            }
        }
        let nodes: BTreeSet<&String> = pods.iter().filter_map(|p| p.node.as_ref()).collect();
        let nodes = nodes.into_iter().map(|n| (n.clone(), members.addresses_of(n).to_vec()));
        plan(&Observed {
            client: &client,
            link: link.map(|l| view(&l, &ctx.cluster)),
            nodes: nodes.collect(),
            pods,
            taken_pods,
            table: &ctx.table(),
            floor: ctx.now().0.as_second(),
        })
    };
    carry_out(ctx, &client, &plan).await?;
    strip_unselected(ctx, &client).await
}

/// The client of a key, unless it is gone or being deleted.
fn alive(ctx: &Context, key: &str) -> Option<Arc<AeroClient>> {
    let members = ctx.members();
    members.client(key).filter(|c| c.metadata.deletion_timestamp.is_none()).cloned()
}

/// `namespace/name`.
fn key_of(client: &AeroClient) -> String {
    format!("{}/{}", client.namespace().unwrap_or_default(), client.name_any())
}

fn view(link: &Arc<AeroLink>, cluster: &str) -> LinkView {
    LinkView { name: link.name_any(), pools: effective_pools(link, cluster) }
}

async fn carry_out(ctx: &Context, client: &AeroClient, plan: &Plan) -> anyhow::Result<()> {
    let written: Vec<AcpMapping> = stream::iter(plan.writes.iter().map(Ok))
        .map_ok(|w| write(ctx, client, w))
        .try_buffer_unordered(PARALLEL)
        .try_filter_map(|m| async move { Ok(m) })
        .try_collect()
        .await?;
    let namespace = client.namespace().unwrap_or_default();
    stream::iter(plan.annotate.iter().map(Ok))
        .try_for_each_concurrent(PARALLEL, |(name, uid, wanted)| {
            annotate(ctx, &namespace, name, uid, wanted)
        })
        .await?;
    // All of these only say what has been written above. Events that are not taken fail nothing.
    let told = async {
        let each = stream::iter(&plan.told);
        each.for_each_concurrent(PARALLEL, |told| tell(ctx, client, told)).await;
        tell_refusal(ctx, client, plan).await;
    };
    let status = async {
        let status = status::status(client, plan, &ctx.now());
        if client.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let api: Api<AeroClient> = Api::namespaced(ctx.client.clone(), &namespace);
        apply_status(&api, &client.name_any(), MANAGER, &status).await
    };
    let bound = stream::iter(written.into_iter().map(Ok))
        .map_ok(|m| bind(ctx, m))
        .try_buffer_unordered(PARALLEL)
        .try_collect::<Vec<AcpMapping>>();
    let ((), status, bound) = tokio::join!(told, status, bound);
    status?;
    let bound = bound?;
    // The next round must see what this one wrote, or it would allocate twice.
    ctx.caught_up(&bound).await
}

/// Writes one mapping; `None` for one that was given up.
async fn write(
    ctx: &Context,
    client: &AeroClient,
    write: &Write,
) -> anyhow::Result<Option<AcpMapping>> {
    let api: Api<AcpMapping> = Api::all(ctx.client.clone());
    let params = PostParams { field_manager: Some(MANAGER.into()), ..PostParams::default() };
    match write {
        Write::Create(m) => {
            let mut m = m.clone();
            let link = m.spec.link_ref.name.clone();
            m.labels_mut().insert(annotations::LINK_LABEL.into(), link);
            let made = api.create(&params, &m).await;
            Ok(Some(made.with_context(|| format!("{} cannot be made", m.spec.prefix))?))
        }
        Write::Replace(m) => {
            may_take(ctx, m).await?;
            let done = api.replace(&m.name_any(), &params, m).await;
            Ok(Some(done.with_context(|| format!("{} cannot be changed", m.spec.prefix))?))
        }
        Write::Bind(m) => Ok(Some(m.clone())),
        Write::Retire(m) => {
            let cool = parse_duration(&client.spec.cool_down).unwrap_or_default();
            if holder_uses(ctx, m).await? {
                anyhow::bail!("{} is used by a pod that lives", m.spec.prefix);
            }
            retire(ctx, m, cool).await?;
            Ok(None)
        }
    }
}

/// Refuses to take a prefix from a pod that lives: then this operator's cache of pods lags, or it
/// does not lead any more and another operator has placed that pod.
async fn may_take(ctx: &Context, mapping: &AcpMapping) -> anyhow::Result<()> {
    let Some(present) = ctx.table().get(&mapping.name_any()).cloned() else { return Ok(()) };
    let uid = |m: &AcpMapping| m.spec.holder.as_ref().map(|h| h.pod_uid.clone());
    if uid(&present) != uid(mapping) && holder_lives(ctx, &present).await? {
        anyhow::bail!("{} is held by a pod that lives", mapping.spec.prefix);
    }
    Ok(())
}

/// Applies our annotations to a pod; what was ours and is not wanted any more goes away.
async fn annotate(
    ctx: &Context,
    namespace: &str,
    name: &str,
    uid: &str,
    wanted: &BTreeMap<String, String>,
) -> anyhow::Result<()> {
    let api: Api<Pod> = Api::namespaced(ctx.client.clone(), namespace);
    // The UID makes this fail where a pod of the same name has taken the place of the one meant.
    let patch = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "uid": uid, "annotations": wanted},
    });
    let done = api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(patch)).await;
    match done {
        Ok(_) => Ok(()),
        // Gone, or another pod by now: its own event comes.
        Err(kube::Error::Api(e)) if matches!(e.code, 404 | 409 | 422) => Ok(()),
        Err(e) => Err(e).with_context(|| format!("pod {namespace}/{name} cannot be annotated")),
    }
}

async fn tell(ctx: &Context, client: &AeroClient, told: &Told) {
    let mut about = vec![client.object_ref(&())];
    if let Some((name, uid)) = &told.pod {
        about.push(ObjectReference {
            api_version: Some("v1".into()),
            kind: Some("Pod".into()),
            name: Some(name.clone()),
            namespace: client.namespace(),
            uid: Some(uid.clone()),
            ..ObjectReference::default()
        });
    }
    let pod = told.pod.as_ref().map(|(name, _)| name);
    tracing::info!(client = key_of(client), pod, reason = told.reason, "{}", told.message);
    let note = Note { reason: told.reason, message: told.message.clone(), warning: told.warning };
    publish(ctx, &note, &about).await;
}

/// A client that is refused for the first time is told so, also while it has no pods.
async fn tell_refusal(ctx: &Context, client: &AeroClient, plan: &Plan) {
    let Some(refusal) = plan.refusals.first() else { return };
    let told = plan.told.iter().any(|t| t.warning);
    let before = client.status.iter().flat_map(|s| &s.conditions).find(|c| c.type_ == "Ready");
    if told || before.is_some_and(|c| c.reason == refusal.reason) {
        return;
    }
    let message = format!("{}: {}", refusal.reason, refusal.message);
    let note = Note::warning(reason_of_refusal(refusal.reason), message);
    publish(ctx, &note, &[client.object_ref(&())]).await;
}

/// A client that is gone: its pods lose their annotations. Its mappings are given up by the
/// mapping controller, which notices their missing client; so no finalizer is needed, and
/// nothing hangs where the operator was uninstalled first.
async fn client_gone(ctx: &Context, key: &str) -> anyhow::Result<()> {
    let Some((_, name)) = key.split_once('/') else { return Ok(()) };
    strip(ctx, key, |m| m.said.as_deref() == Some(name)).await
}

/// Pods that this client had and selects no more lose their annotations.
async fn strip_unselected(ctx: &Context, client: &AeroClient) -> anyhow::Result<()> {
    let name = client.name_any();
    let stale = |m: &Member| m.said.as_ref() == Some(&name) && !m.selected.contains(&name);
    strip(ctx, &key_of(client), stale).await
}

/// Takes our annotations off those pods that a client has to do with and that are `stale`.
async fn strip(ctx: &Context, key: &str, stale: impl Fn(&Member) -> bool) -> anyhow::Result<()> {
    let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace);
    let stale: Vec<Arc<Member>> =
        ctx.members().pods_of(key).filter(|m| stale(m)).cloned().collect();
    for pod in stale {
        if let Some(uid) = &pod.uid {
            annotate(ctx, namespace, &pod.name, uid, &BTreeMap::new()).await?;
        }
    }
    Ok(())
}
