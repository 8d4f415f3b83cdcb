//! Upgrades: every part of the release is replaced while its clients are at work.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use aero_e2e::lab::{Lab, workspace};
use aero_e2e::scenario::{NAMESPACE, micros, moves, talk};
use anyhow::{Context as _, ensure};

use super::{Context, Shared, faults};

/// Where the node's runtime finds the plugin.
const CONFLIST: &str = "/etc/cni/net.d/00-aero.conflist";
/// Tag of the images of the other release.
const TAG: &str = "next";
/// Longest silence of a pod while agents, Servers and operators are replaced, with the forwarder in
/// the kernel on all nodes.
const SILENCE: Duration = Duration::from_secs(1);
/// The same where packets wait for the agent, and senders that went straight have to notice.
const SILENCE_IN_USER_SPACE: Duration = Duration::from_secs(4);
/// How often there and back: what agents inherit from each other shows when they follow each other
/// closely.
const ROUNDS: usize = 2;
/// A step of helm, with all pods that it starts and ends.
const STEP: Duration = Duration::from_secs(120);

/// What an upgrade must not touch.
#[derive(Debug, PartialEq, Eq)]
struct Untouched {
    /// Inode and time of change of each node's CNI configuration: others if it was ever gone.
    configuration: Vec<(String, String)>,
    /// Since when each node is Ready.
    ready: String,
    /// UID and prefix of the enrolled pods.
    pods: BTreeSet<(String, String)>,
}

impl Untouched {
    fn look(shared: &Shared) -> anyhow::Result<Self> {
        Ok(Self {
            configuration: configuration(shared.lab())?,
            ready: ready(shared)?,
            pods: prefixes(shared).into_iter().map(|(_, uid, prefix)| (uid, prefix)).collect(),
        })
    }
}

fn configuration(lab: &Lab) -> anyhow::Result<Vec<(String, String)>> {
    let of_node = |node: String| {
        let identity = lab.run(&node, &["stat", "-c", "%i %z", CONFLIST])?;
        Ok((node, identity))
    };
    lab.nodes().into_iter().map(of_node).collect()
}

fn ready(shared: &Shared) -> anyhow::Result<String> {
    let of_node = "{.metadata.name} {range .status.conditions[?(@.type==\"Ready\")]}{.status} {.lastTransitionTime}{end}";
    shared.cluster.get("nodes", &format!("{{range .items[*]}}{of_node}\n{{end}}"))
}

/// Name, UID and prefix of the enrolled pods.
fn prefixes(shared: &Shared) -> Vec<(String, String, String)> {
    let seen = shared.observer.seen();
    let web = seen.ready("app", "web").into_iter();
    web.filter_map(|p| Some((p.name.clone(), p.uid.clone(), p.prefix.clone()?))).collect()
}

/// UIDs of the pods of the release and of the Servers, each with the tag of its image.
fn parts(shared: &Shared) -> anyhow::Result<BTreeMap<String, String>> {
    let label = "app.kubernetes.io/part-of=aero";
    let of_pod = "{.metadata.uid} {.spec.containers[0].image}";
    let path = format!("jsonpath={{range .items[*]}}{of_pod}\n{{end}}");
    let all =
        shared.cluster.kubectl(&["-n", NAMESPACE, "get", "pods", "-l", label, "-o", &path])?;
    let part = |line: &str| {
        let (uid, image) = line.split_once(' ')?;
        Some((uid.to_string(), image.rsplit(':').next()?.to_string()))
    };
    Ok(all.lines().filter_map(part).collect())
}

/// Runs helm, and waits until all parts are others, and of an image of this tag.
fn replace_all(shared: &Shared, args: &[&str], tag: &str) -> anyhow::Result<Duration> {
    let before = parts(shared)?;
    let began = Instant::now();
    let wait = ["-n", NAMESPACE, "--wait", "--timeout", "120s"];
    shared.cluster.helm(&[args, &wait].concat())?;
    // The operator, which was replaced, replaces the Servers.
    shared.cluster.wait_until("every part is replaced", STEP, || {
        let now = parts(shared)?;
        Ok(now.len() == before.len()
            && now.iter().all(|(uid, of)| of == tag && !before.contains_key(uid)))
    })?;
    shared.cluster.wait_for_aero(STEP)?;
    Ok(began.elapsed())
}

/// How long a pod may be silent, by what forwards on the nodes.
fn bound(lab: &Lab) -> anyhow::Result<Duration> {
    for node in lab.nodes() {
        if !lab.exec(&node, &["test", "-e", "/sys/fs/bpf/aero"])?.status.success() {
            return Ok(SILENCE_IN_USER_SPACE);
        }
    }
    Ok(SILENCE)
}

/// Waits until all correspondents have an answer of both web pods from after the call; the longest
/// time between two answers until then, and who had none.
fn silence(shared: &Shared, began: u64) -> anyhow::Result<(Duration, String)> {
    let done = micros();
    let mut longest = (0, String::new());
    shared.cluster.wait_until("both answer all", Duration::from_secs(30), || {
        let all = talk::answers(&shared.cluster, &shared.observer, began, &[])?;
        let mut last = Vec::new();
        for (target, (node, list)) in
            ["web-0", "web-1"].iter().flat_map(|t| all.iter().map(move |a| (t, a)))
        {
            let to = list.iter().filter(|a| a.t == *target).map(|a| a.got).max().unwrap_or(0);
            let silent = talk::longest_silence(list, target, began, to);
            if silent > longest.0 {
                longest = (silent, format!("of {target} to the correspondent on {node}"));
            }
            last.push(to);
        }
        Ok(last.len() == 2 * shared.lab().nodes().len() && last.iter().all(|to| *to > done))
    })?;
    Ok((Duration::from_micros(longest.0), longest.1))
}

/// Every part is replaced by one of another image, and back; then the agents are taken away and
/// given back.
pub fn upgrade(context: &Context) -> anyhow::Result<()> {
    let shared = context.shared()?;
    for node in shared.lab().nodes() {
        for image in ["aero-operator", "aero-node-agent"] {
            let ctr = shared.lab().program("ctr").display().to_string();
            let name = format!("aerolink.dev/{image}");
            let (here, other) =
                (format!("{name}:{}", env!("CARGO_PKG_VERSION")), format!("{name}:{TAG}"));
            let tag = [&ctr, "-n", "k8s.io", "images", "tag", "--force", &here, &other];
            shared.lab().run(&node, &tag)?;
        }
    }
    let chart = workspace().join("charts/aero").display().to_string();
    let (operator, agent) = (format!("operator.image.tag={TAG}"), format!("agent.image.tag={TAG}"));
    let before = Untouched::look(shared)?;
    ensure!(before.pods.len() == 2, "web pods: {:?}", before.pods);
    let bound = bound(shared.lab())?;
    let forth = ["upgrade", "aero", &chart, "--reuse-values", "--set", &operator, "--set", &agent];
    let back = ["rollback", "aero"];
    let steps: [(&str, &[&str], &str); 2] =
        [("upgrade", &forth, TAG), ("rollback", &back, env!("CARGO_PKG_VERSION"))];
    let mut figures = Vec::new();
    for (step, args, tag) in std::iter::repeat_n(steps, ROUNDS).flatten() {
        let began = micros();
        let took = replace_all(shared, args, tag).with_context(|| format!("the {step}"))?;
        let (silence, whose) =
            silence(shared, began).with_context(|| format!("after the {step}"))?;
        let after = Untouched::look(shared)?;
        ensure!(after == before, "the {step} has touched {before:?}: {after:?}");
        let figure =
            format!("{step} in {} s, {} ms of silence", took.as_secs(), silence.as_millis());
        context.note(format!("F15: {figure} ({whose}; {} ms at most)", bound.as_millis()));
        ensure!(silence < bound, "{figure} {whose}");
        figures.push(figure);
    }
    drained(shared, &before)?;
    let began = Instant::now();
    agents_away(shared, &before, &chart)?;
    context.note(format!("F15: agents away and back in {} s", began.elapsed().as_secs()));
    let test = "an_upgrade_and_a_rollback_keep_the_cni_configuration_and_the_traffic";
    let figure = format!(
        "{} ({} ms at most): configuration untouched, all nodes Ready all the time; a drain leaves the configuration, a DaemonSet that is deleted takes it along, and nodes stay Ready",
        figures.join(", "),
        bound.as_millis()
    );
    faults::shown(test, &["F15"], figure);
    Ok(())
}

/// The agent of a drained node stays, and what it has put there.
fn drained(shared: &Shared, before: &Untouched) -> anyhow::Result<()> {
    let node = shared.observer.wait("web-0 is ready", Duration::from_secs(30), |s| {
        s.pod("default/web-0").map(|p| p.node.clone())
    })?;
    moves::drain(&shared.cluster, &shared.observer, &node)?;
    let now = configuration(shared.lab())?;
    ensure!(now == before.configuration, "the drain has touched {before:?}: {now:?}");
    Ok(())
}

/// With their DaemonSet gone the agents take the configuration with them, and leave nodes that have
/// a network. A DaemonSet that is there again puts it back.
fn agents_away(shared: &Shared, before: &Untouched, chart: &str) -> anyhow::Result<()> {
    let label = "app.kubernetes.io/name=aero-agent";
    shared.cluster.kubectl(&["-n", NAMESPACE, "delete", "daemonset", "aero-agent"])?;
    shared.cluster.wait_until("the agents are gone", STEP, || {
        let left = ["-n", NAMESPACE, "get", "pods", "-l", label, "-o", "name"];
        Ok(shared.cluster.kubectl(&left)?.trim().is_empty())
    })?;
    for node in shared.lab().nodes() {
        let there = shared.lab().exec(&node, &["test", "-e", CONFLIST])?.status.success();
        ensure!(!there, "{CONFLIST} is still on {node}");
    }
    let wait = ["-n", NAMESPACE, "--wait", "--timeout", "120s"];
    shared.cluster.helm(&[&["upgrade", "aero", chart, "--reuse-values"][..], &wait].concat())?;
    shared.cluster.wait_for_aero(STEP)?;
    configuration(shared.lab()).context("the configuration is not back")?;
    // What ran meanwhile has lost its interface; as with an install, pods get theirs anew.
    let had = prefixes(shared);
    let pods = ["delete", "pod", "-l", "app in (web,correspondent)"];
    shared.cluster.kubectl(&pods)?;
    let web = talk::wait_for_web(&shared.observer)?;
    for (name, prefix, _) in &web {
        let same = had.iter().any(|(n, _, p)| n.ends_with(name) && p == prefix);
        ensure!(same, "{name} has {prefix} now, before: {had:?}");
    }
    let pairs: Vec<_> = web.into_iter().map(|(name, prefix, _)| (name, prefix)).collect();
    talk::start(&shared.cluster, &shared.observer, &pairs, shared.lab().nodes().len())?;
    let now = ready(shared)?;
    ensure!(now == before.ready, "nodes were {}, are {now}", before.ready);
    Ok(())
}
