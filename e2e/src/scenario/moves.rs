//! Moves: what happens to the pods of a node that is drained, or that loses power.

use std::time::Duration;

use anyhow::{Context, bail};
use serde::Serialize;

use super::observer::{Observer, PodSeen};
use super::{Cluster, micros, talk};
use crate::lab::Lab;

/// How long a pod may take to run again elsewhere.
const RUN_AGAIN: Duration = Duration::from_secs(120);
/// How long after it is Ready its correspondents are waited for.
const ANSWERED: Duration = Duration::from_secs(30);

/// What became of one pod.
#[derive(Debug, Clone, Serialize)]
pub struct Move {
    /// What was done.
    pub what: String,
    /// The pod, without its namespace.
    pub pod: String,
    /// Node before.
    pub from: String,
    /// Node after.
    pub to: String,
    /// Prefix before.
    pub prefix: String,
    /// Prefix after.
    pub prefix_after: String,
    /// Milliseconds from the moment at which the pod was seen Ready to the moment at which the
    /// last of its correspondents had its first answer; 0 if all had one before.
    pub gap_ms: u64,
    /// Milliseconds without any answer for the correspondent that waited longest, the time in
    /// which the pod did not run included.
    pub outage_ms: u64,
}

impl Move {
    /// Whether the prefix is the same.
    pub fn kept(&self) -> bool {
        self.prefix == self.prefix_after
    }
}

/// The pods of the demo on a node.
pub fn web_pods_on(observer: &Observer, node: &str) -> Vec<PodSeen> {
    observer.seen().ready("app", "web").into_iter().filter(|p| p.node == node).cloned().collect()
}

/// Drains a node, waits until its pods run elsewhere and are answered, and takes it back.
///
/// # Errors
/// If a pod does not come back, or is not reached.
pub fn drain(cluster: &Cluster, observer: &Observer, node: &str) -> anyhow::Result<Vec<Move>> {
    let pods = web_pods_on(observer, node);
    let began = micros();
    let args = [
        "drain",
        node,
        "--ignore-daemonsets",
        "--delete-emptydir-data",
        "--force",
        "--timeout=90s",
    ];
    cluster.kubectl(&args)?;
    let moves = follow(cluster, observer, &format!("drain {node}"), &pods, began, &[]);
    cluster.kubectl(&["uncordon", node])?;
    moves
}

/// Turns a node off, waits until the cluster has noticed, deletes its pods by force, and waits
/// as after a drain.
///
/// # Errors
/// If a pod does not come back, or is not reached.
pub fn power_off(
    lab: &Lab,
    cluster: &Cluster,
    observer: &Observer,
    node: &str,
) -> anyhow::Result<Vec<Move>> {
    let pods = web_pods_on(observer, node);
    lab.kill_node(node)?;
    let condition = "--for=jsonpath={.status.conditions[?(@.type==\"Ready\")].status}=Unknown";
    cluster
        .kubectl(&["wait", condition, &format!("node/{node}"), "--timeout=60s"])
        .context("the cluster has not noticed that the node is off")?;
    // Until the taint is there, the scheduler may well choose the dead node again.
    let taints = r#"{.spec.taints[?(@.effect=="NoSchedule")].key}"#;
    cluster.wait_until("the dead node is tainted", Duration::from_secs(60), || {
        Ok(cluster.get(&format!("node/{node}"), taints)?.contains("node.kubernetes.io/unreachable"))
    })?;
    let began = micros();
    for pod in &pods {
        delete_by_force(cluster, &pod.name)?;
    }
    for pod in &pods {
        placed_elsewhere(cluster, observer, pod, node)?;
    }
    follow(cluster, observer, &format!("power off {node}"), &pods, began, &[node])
}

/// Takes a pod (`namespace/name`) away without asking its node.
fn delete_by_force(cluster: &Cluster, pod: &str) -> anyhow::Result<()> {
    let (namespace, name) = pod.split_once('/').unwrap_or(("default", pod));
    let force = ["--force", "--grace-period=0"];
    cluster.kubectl(&[&["-n", namespace, "delete", "pod", name][..], &force].concat()).map(drop)
}

/// Sees to it that a pod has a node that lives: a scheduler that is late may have chosen the dead
/// one once more, and nobody would take the pod from there.
fn placed_elsewhere(
    cluster: &Cluster,
    observer: &Observer,
    old: &PodSeen,
    dead: &str,
) -> anyhow::Result<()> {
    let mut last = old.uid.clone();
    loop {
        let now = observer.wait(&format!("{} is placed again", old.name), RUN_AGAIN, |seen| {
            seen.pod(&old.name).filter(|p| p.uid != last && !p.node.is_empty()).cloned()
        })?;
        if now.node != dead {
            return Ok(());
        }
        delete_by_force(cluster, &now.name)?;
        last = now.uid;
    }
}

/// Follows pods to where they run next.
///
/// # Errors
/// If one does not run again, or is not reached.
pub fn follow(
    cluster: &Cluster,
    observer: &Observer,
    what: &str,
    pods: &[PodSeen],
    began: u64,
    dead: &[&str],
) -> anyhow::Result<Vec<Move>> {
    let mut moves = Vec::new();
    for old in pods {
        let now = observer.wait(&format!("{} runs again", old.name), RUN_AGAIN, |seen| {
            seen.pod(&old.name).filter(|p| p.uid != old.uid && p.ready_at.is_some()).cloned()
        })?;
        let ready = now.ready_at.context("ready")?;
        let pod = old.name.rsplit('/').next().unwrap_or_default().to_string();
        let (gap, outage) = reached(cluster, observer, &pod, began, ready, dead)
            .with_context(|| format!("after {what}: {pod} moved {} -> {}", old.node, now.node))?;
        moves.push(Move {
            what: what.into(),
            pod,
            from: old.node.clone(),
            to: now.node.clone(),
            prefix: old.prefix.clone().unwrap_or_default(),
            prefix_after: now.prefix.clone().unwrap_or_default(),
            gap_ms: gap / 1000,
            outage_ms: outage / 1000,
        });
    }
    Ok(moves)
}

/// Waits until every correspondent has an answer of the new instance of a pod. Returns the time
/// from Ready to the last of these first answers, and the longest silence, in microseconds.
fn reached(
    cluster: &Cluster,
    observer: &Observer,
    pod: &str,
    began: u64,
    ready: u64,
    dead: &[&str],
) -> anyhow::Result<(u64, u64)> {
    let since = began - 2_000_000;
    let give_up = std::time::Instant::now() + ANSWERED;
    loop {
        let all = talk::answers(cluster, observer, since, dead)?;
        if all.is_empty() {
            bail!("there is no correspondent");
        }
        let first = |list: &Vec<talk::Answer>| {
            let new = list.iter().filter(|a| a.t == pod && a.instance_started() > began);
            new.map(|a| a.got).min()
        };
        let firsts: Vec<Option<u64>> = all.iter().map(|(_, list)| first(list)).collect();
        if let Some(last) =
            firsts.iter().copied().collect::<Option<Vec<u64>>>().and_then(|f| f.into_iter().max())
        {
            let to = last.max(ready);
            let silence =
                all.iter().map(|(_, list)| talk::longest_silence(list, pod, since, to)).max();
            return Ok((last.saturating_sub(ready), silence.unwrap_or(0)));
        }
        if std::time::Instant::now() > give_up {
            let silent: Vec<_> = all
                .iter()
                .zip(&firsts)
                .filter(|(_, f)| f.is_none())
                .map(|((n, _), _)| n.as_str())
                .collect();
            bail!(
                "the correspondents on {} got no answer within {ANSWERED:?} of Ready",
                silent.join(", ")
            );
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
