//! Prefixes that stay while pods move.

use std::time::Duration;

use aero_e2e::lab::Lab;
use aero_e2e::scenario::moves::{self, Move, web_pods_on};
use aero_e2e::scenario::{NAMESPACE, micros, talk};
use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::{Context, faults};

/// What the product promises: from Ready to the first answer for every correspondent.
const REACHED: u64 = 1000;

fn kept_and_reached(context: &Context, moves: &[Move]) -> anyhow::Result<()> {
    for m in moves {
        ensure!(m.kept(), "{}: {} had {} and has {}", m.what, m.pod, m.prefix, m.prefix_after);
        ensure!(m.from != m.to, "{}: {} stayed on {}", m.what, m.pod, m.from);
        ensure!(
            m.gap_ms <= REACHED,
            "{}: {} was reached {} ms after Ready",
            m.what,
            m.pod,
            m.gap_ms
        );
        context.note(format!(
            "{}: {} {} -> {}, first answer {} ms after Ready, silent for {} ms in all",
            m.what, m.pod, m.from, m.to, m.gap_ms, m.outage_ms
        ));
    }
    Ok(())
}

pub fn drains(context: &Context) -> anyhow::Result<()> {
    let shared = context.shared()?;
    let mut moved = 0;
    for node in shared.lab().nodes() {
        let moves = moves::drain(&shared.cluster, &shared.observer, &node)?;
        kept_and_reached(context, &moves)?;
        moved += moves.len();
    }
    ensure!(moved >= 2, "only {moved} pods were moved by draining every node");
    Ok(())
}

pub fn power_off(context: &Context) -> anyhow::Result<()> {
    let shared = context.shared()?;
    let node = shared.observer.wait("web-0 is ready", Duration::from_secs(90), |s| {
        s.pod("default/web-0").map(|p| p.node.clone())
    })?;
    let moves = moves::power_off(shared.lab(), &shared.cluster, &shared.observer, &node)?;
    ensure!(!moves.is_empty(), "no pod was on {node}");
    kept_and_reached(context, &moves)?;
    shared.lab().restore_node(&node)?;
    shared.lab().wait_for_nodes(Duration::from_secs(150))?;
    shared.cluster.wait_for_aero(Duration::from_secs(90))?;
    shared.observer.check()?;
    let slowest = moves.iter().map(|m| m.gap_ms).max().unwrap_or(0);
    let test = "a_pod_of_a_node_that_lost_power_keeps_its_prefix_on_another";
    let figure = format!("first answer to all {slowest} ms after Ready (bound {REACHED} ms)");
    faults::shown(test, &["F01"], figure);
    Ok(())
}

pub fn never_two_holders(context: &Context) -> anyhow::Result<()> {
    let shared = context.shared()?;
    ensure!(shared.observer.seen().holders.len() >= 2, "the observer has seen no mappings");
    shared.observer.check()
}

/// What a Server leases, by its own account.
pub fn leases(lab: &Lab, node: &str) -> anyhow::Result<Value> {
    let text =
        lab.run(node, &["curl", "-s", "-m", "3", "http://127.0.0.1:9060/debug/neighbors"])?;
    serde_json::from_str(&text).with_context(|| format!("the Server on {node} said {text:?}"))
}

pub fn two_servers_agree(context: &Context) -> anyhow::Result<()> {
    let shared = context.shared()?;
    let nodes = shared.server_nodes();
    ensure!(nodes.len() == 2, "Servers on {nodes:?}");
    let mut tables = Vec::new();
    for node in &nodes {
        let leases = leases(shared.lab(), node)?;
        let mut rows: Vec<String> = leases
            .as_array()
            .context("no list")?
            .iter()
            .map(|l| format!("{} {} {}", l["acp"], l["client"], l["linkLayer"]))
            .collect();
        rows.sort();
        tables.push(rows);
    }
    ensure!(tables[0].len() == 5, "two web pods and three correspondents, but {:?}", tables[0]);
    ensure!(tables[0] == tables[1], "the Servers differ: {tables:?}");
    Ok(())
}

pub fn not_enrolled(context: &Context) -> anyhow::Result<()> {
    let shared = context.shared()?;
    let pod = |name: &str, node: &str| {
        serde_json::json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": name, "labels": {"app": "plain"}},
            "spec": {
                "nodeName": node, "terminationGracePeriodSeconds": 1,
                "containers": [{"name": "c", "image": "aerolink.dev/aero-talk:0.1.0", "args": ["serve"]},
                    {"name": "sh", "image": "box.test/busybox:1", "args": ["-c", "sleep 100000"]}],
            },
        })
        .to_string()
    };
    shared.cluster.apply(&pod("plain-1", "n1"))?;
    shared.cluster.apply(&pod("plain-2", "n2"))?;
    shared.observer.wait("plain pods are ready", Duration::from_secs(90), |s| {
        (s.ready("app", "plain").len() == 2).then_some(())
    })?;
    let links =
        shared.cluster.kubectl(&["exec", "plain-1", "-c", "sh", "--", "/bin/ip", "-o", "link"])?;
    let names: Vec<&str> = links.lines().filter_map(|l| l.split(": ").nth(1)).collect();
    ensure!(names.len() == 2 && names[0] == "lo", "interfaces of a plain pod: {names:?}");
    let annotations = shared.cluster.get("pod/plain-1", "{.metadata.annotations}")?;
    ensure!(!annotations.contains("aerolink.dev/prefix"), "{annotations}");
    for ip in shared.cluster.get("pod/plain-2", "{.status.podIPs[*].ip}")?.split(' ') {
        let target = if ip.contains(':') { format!("[{ip}]:7007") } else { format!("{ip}:7007") };
        shared.cluster.kubectl(&[
            "exec",
            "plain-1",
            "-c",
            "c",
            "--",
            "/bin/aero-talk",
            "once",
            // Duplicate address detection of the primary network may take longer than 2 s.
            "--within",
            "15000",
            &target,
        ])?;
    }
    shared.cluster.kubectl(&["delete", "pod", "-l", "app=plain", "--wait=false"])?;
    Ok(())
}

pub fn agent_replaced(context: &Context) -> anyhow::Result<()> {
    let shared = context.shared()?;
    let before = shared.observer.wait("web-0 is ready", Duration::from_secs(90), |s| {
        s.pod("default/web-0").filter(|p| p.ready_at.is_some()).cloned()
    })?;
    let node = before.node.clone();
    let interfaces = |n: &str| -> anyhow::Result<Vec<String>> {
        let text = shared.lab().run(n, &["ip", "-o", "link"])?;
        let all = text
            .lines()
            .filter_map(|l| l.split(": ").nth(1))
            .map(|l| l.split('@').next().unwrap_or(l));
        Ok(all.filter(|l| l.starts_with("aero")).map(String::from).collect())
    };
    let had = interfaces(&node)?;
    ensure!(web_pods_on(&shared.observer, &node).iter().any(|p| p.uid == before.uid));
    let began = micros();
    let field = format!("spec.nodeName={node}");
    let agent = [
        "-n",
        NAMESPACE,
        "delete",
        "pod",
        "-l",
        "app.kubernetes.io/name=aero-agent",
        "--field-selector",
        &field,
    ];
    shared.cluster.kubectl(&agent)?;
    shared.cluster.wait_for_aero(Duration::from_secs(60))?;
    let back = micros();
    let mut silence = 0;
    shared.cluster.wait_until(
        "web-0 answers again after its agent was replaced",
        Duration::from_secs(20),
        || {
            let all = talk::answers(&shared.cluster, &shared.observer, began, &[])?;
            silence = all
                .iter()
                .map(|(_, l)| talk::longest_silence(l, "web-0", began, micros()))
                .max()
                .unwrap_or(0);
            Ok(!all.is_empty()
                && all.iter().all(|(_, l)| l.iter().any(|a| a.t == "web-0" && a.got > back)))
        },
    )?;
    let after = shared.observer.seen().pod("default/web-0").cloned().context("web-0 is gone")?;
    ensure!(after.uid == before.uid, "the pod was replaced");
    ensure!(after.prefix == before.prefix, "{:?} became {:?}", before.prefix, after.prefix);
    ensure!(interfaces(&node)? == had, "interfaces were {had:?}, are {:?}", interfaces(&node)?);
    if silence > 10_000_000 {
        bail!("{} ms of silence while the agent was replaced", silence / 1000);
    }
    context.note(format!("agent replaced: web-0 silent for {} ms at most", silence / 1000));
    Ok(())
}
