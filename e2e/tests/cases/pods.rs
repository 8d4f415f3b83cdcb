//! The start and the end of pods when things go wrong, and when many start at once.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use aero_e2e::lab::Lab;
use aero_e2e::scenario::{NAMESPACE, talk};
use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::cni::{config, env, env_of, first_web, plugin};
use super::{Context, Shared, faults, moves};

/// Where these pods run.
const NODE: &str = "n2";
/// What may hold up the end of a pod whose node's agent is away.
const DELAY: Duration = Duration::from_secs(5);
/// Tries of a pod's start.
const TRIES: usize = 100;
/// An address has to be of use at once: there is nobody else who could have it.
const USABLE: Duration = Duration::from_millis(100);
/// Pods that start at once; each node takes 110.
const BURST: usize = 90;

fn client_and_pod(name: &str) -> String {
    let client = json!({"apiVersion": "aerolink.dev/v1alpha1", "kind": "AeroClient",
        "metadata": {"name": name},
        "spec": {"podSelector": {"matchLabels": {"app": name}}, "keepFor": "1s", "coolDown": "5s"}});
    let pod = json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"nodeName": NODE, "terminationGracePeriodSeconds": 1, "containers": [
            {"name": "c", "image": "aerolink.dev/aero-talk:0.1.0", "args": ["serve"]}]}});
    format!("{client}\n---\n{pod}\n")
}

/// Starts a pod that is enrolled; its prefix.
fn start(shared: &Shared, name: &str) -> anyhow::Result<String> {
    shared.cluster.apply(&client_and_pod(name))?;
    let full = format!("default/{name}");
    let pod = shared.observer.wait("the pod is ready", Duration::from_secs(90), |s| {
        s.pod(&full).filter(|p| p.ready_at.is_some()).cloned()
    })?;
    pod.prefix.context("it has no prefix")
}

/// The node's ends of pods' interfaces.
fn interfaces(lab: &Lab) -> anyhow::Result<BTreeSet<String>> {
    let text = lab.run(NODE, &["ip", "-o", "link"])?;
    let names = text.lines().filter_map(|l| l.split(": ").nth(1));
    let names = names.map(|n| n.split('@').next().unwrap_or(n));
    Ok(names.filter(|n| n.starts_with("aero") && *n != "aero0").map(String::from).collect())
}

/// Leases of a prefix, at all Servers.
fn leases(shared: &Shared, prefix: &str) -> anyhow::Result<usize> {
    let nodes = shared.server_nodes();
    let mut all = 0;
    for node in nodes {
        let list = moves::leases(shared.lab(), &node)?;
        all += list.as_array().into_iter().flatten().filter(|l| l["acp"] == prefix).count();
    }
    Ok(all)
}

/// Process id of the node's agent.
fn agent(lab: &Lab) -> anyhow::Result<String> {
    let script = "own=$(readlink /proc/self/ns/net); for p in /proc/[0-9]*; do \
        [ \"$(readlink $p/ns/net)\" = \"$own\" ] && tr '\\0' ' ' < $p/cmdline | grep -q '^/bin/aero-node-agent agent' \
        && echo ${p#/proc/}; done; true";
    let found = lab.run(NODE, &["sh", "-c", script])?;
    let ids: Vec<&str> = found.split_whitespace().collect();
    ensure!(ids.len() == 1, "processes of the agent on {NODE}: {ids:?}");
    Ok(ids[0].to_string())
}

/// The agent hangs, which is worse than if it were gone: its socket still takes requests.
pub fn agent_away(context: &Context) -> anyhow::Result<()> {
    let shared = context.shared()?;
    let lab = shared.lab();
    let before = interfaces(lab)?;
    let prefix = start(shared, "away")?;
    let of_pod = &interfaces(lab)? - &before;
    ensure!(of_pod.len() == 1, "interfaces of the pod: {of_pod:?}");
    ensure!(leases(shared, &prefix)? > 0, "no Server has a lease of {prefix}");
    let agent = agent(lab)?;
    lab.run(NODE, &["kill", "-STOP", &agent])?;
    let outcome = (|| {
        let (ok, out, took) = plugin(lab, NODE, &env("DEL", "", "other"), &config("1.0.0"))?;
        ensure!(ok && took < DELAY, "DEL took {took:?}: {out}");
        let began = Instant::now();
        shared.cluster.kubectl(&["delete", "pod", "away", "--wait=false"])?;
        shared.cluster.wait_until("the pod is gone", Duration::from_secs(30), || {
            Ok(shared.cluster.kubectl(&["get", "pod", "away", "--ignore-not-found"])?.is_empty())
        })?;
        // The interface goes with the pod's namespace; the lease is the agent's to give back.
        ensure!(leases(shared, &prefix)? > 0, "somebody else has released the lease");
        Ok((took, began.elapsed()))
    })();
    lab.run(NODE, &["kill", "-CONT", &agent])?;
    let (took, gone) = outcome?;
    let began = Instant::now();
    shared.cluster.wait_until("what the pod had is released", Duration::from_secs(60), || {
        let left = interfaces(lab)?;
        Ok(left.is_disjoint(&of_pod) && leases(shared, &prefix)? == 0)
    })?;
    let journal = lab.run(NODE, &["sh", "-c", "ls /var/lib/aero/cni-del 2>/dev/null || true"])?;
    ensure!(journal.trim().is_empty(), "left in the journal: {journal}");
    shared.cluster.kubectl(&["delete", "aeroclient", "away"])?;
    let figure = format!(
        "the agent stopped: DEL {} ms (bound {} ms), pod gone after {} ms; with the agent back all was released after {} ms",
        took.as_millis(),
        DELAY.as_millis(),
        gone.as_millis(),
        began.elapsed().as_millis()
    );
    context.note(format!("F07: {figure}"));
    let test = "the_end_of_a_pod_does_not_wait_for_an_agent_that_hangs";
    faults::shown(test, &["F07"], figure);
    Ok(())
}

/// What is on the node of these pods, for the report of a failure.
fn on_node(shared: &Shared) -> String {
    let look = "ls /var/lib/aero/attachments /var/lib/aero/cni-del /run/netns; ip -o link";
    let node = shared.lab().run(NODE, &["sh", "-c", &format!("{look}; true")]);
    let field = format!("spec.nodeName={NODE}");
    let label = "app.kubernetes.io/name=aero-agent";
    let agent = ["-n", NAMESPACE, "get", "pods", "-l", label, "-o", "name", "--field-selector"];
    let log = shared.cluster.kubectl(&[&agent[..], &[&field]].concat()).and_then(|name| {
        shared.cluster.kubectl(&["-n", NAMESPACE, "logs", name.trim(), "--tail=40"])
    });
    format!("{}\n{}", node.unwrap_or_default(), log.unwrap_or_default())
}

/// Each try is a new sandbox, half of them are ended half-way, and nobody cleans up.
pub fn half_way(context: &Context) -> anyhow::Result<()> {
    let shared = context.shared()?;
    let lab = shared.lab();
    let before = interfaces(lab)?;
    let prefix = start(shared, "tried")?;
    let address = talk::stable_address(&prefix);
    // One script: the tries are to follow each other closely, and to be cut at all times.
    let input = config("1.0.0");
    let add = env_of("try$i", "ADD", "/run/netns/try$i", "tried");
    let script = format!(
        "for i in $(seq 1 {TRIES}); do ip netns add try$i; \
         [ $((i % 2)) = 0 ] && cut=\"timeout -s KILL 0.0$((i % 9))5\" || cut=; \
         printf '%s' '{input}' | env -i {add} $cut /opt/cni/bin/aero-cni >/run/try.out 2>&1 && echo $i; done; true",
    );
    let done = lab.run(NODE, &["sh", "-c", &script])?;
    let outcome = (|| {
        let done: Vec<usize> = done.split_whitespace().filter_map(|w| w.parse().ok()).collect();
        ensure!(done.len() >= TRIES / 2, "only {done:?} of {TRIES} tries got to their end");
        let last = format!("try{TRIES}");
        let netns = format!("/run/netns/{last}");
        let (ok, out, _) = plugin(lab, NODE, &env_of(&last, "ADD", &netns, "tried"), &input)?;
        ensure!(ok, "the last try: {out}");
        let ready = Instant::now();
        let target = first_web(context)?;
        let ping =
            ["ip", "netns", "exec", &last, "busybox", "ping", "-6", "-c", "1", "-W", "2", &target];
        lab.run(NODE, &ping)?;
        let usable = ready.elapsed();
        let now = &interfaces(lab)? - &before;
        ensure!(now.len() == 1, "interfaces: {now:?}");
        let mappings = shared.cluster.kubectl(&["get", "acp", "-o", "json"])?;
        let mappings: Value = serde_json::from_str(&mappings)?;
        let ours = mappings["items"].as_array().into_iter().flatten();
        let ours = ours.filter(|m| m["spec"]["clientRef"]["name"] == "tried").count();
        ensure!(ours == 1, "{ours} mappings");
        let held = leases(shared, &prefix)?;
        ensure!(held <= 2, "{held} leases of {prefix} at two Servers");
        let addresses = lab.run(NODE, &["ip", "-n", &last, "-6", "addr", "show", "net1"])?;
        ensure!(addresses.contains(&address) && !addresses.contains("tentative"), "{addresses}");
        Ok((done.len(), usable))
    })();
    let outcome = outcome.with_context(|| on_node(shared));
    let clean = format!(
        "for i in $(seq 1 {TRIES}); do ip netns del try$i 2>/dev/null; done; rm -f /run/try.out; true"
    );
    lab.run(NODE, &["sh", "-c", &clean])?;
    let (done, usable) = outcome?;
    shared.cluster.kubectl(&["delete", "pod/tried", "aeroclient/tried"])?;
    shared
        .cluster
        .wait_until("nothing is left of it", Duration::from_secs(60), || {
            Ok(interfaces(lab)?.is_subset(&before) && leases(shared, &prefix)? == 0)
        })
        .with_context(|| on_node(shared))?;
    let test = "a_start_that_is_tried_a_hundred_times_ends_with_one_prefix_and_one_interface";
    let figure = format!("{TRIES} sandboxes, {done} got their ADD: one mapping, one interface");
    context.note(format!("F09: {figure}; first answer {} ms after ADD", usable.as_millis()));
    faults::shown(test, &["F09", "F10"], figure);
    // With the plugin's and ping's own start in it, on a machine that has other things to do.
    ensure!(usable < 10 * USABLE, "the address was of use after {usable:?}");
    Ok(())
}

/// ADDs so far by upper bound of their time, in seconds, summed over the nodes. Cumulative.
fn adds(shared: &Shared) -> anyhow::Result<BTreeMap<u64, u64>> {
    let mut all = BTreeMap::new();
    for node in shared.lab().nodes() {
        let url = "http://127.0.0.1:9061/metrics";
        let text = shared.lab().run(&node, &["curl", "-s", "-m", "3", url])?;
        let buckets = text.lines().filter(|l| {
            l.starts_with("aero_cni_request_duration_seconds_bucket{") && l.contains("verb=\"ADD\"")
        });
        for line in buckets {
            let bound = line.split("le=\"").nth(1).and_then(|r| r.split('"').next());
            let bound = bound.and_then(|b| b.parse::<f64>().ok()).unwrap_or(f64::INFINITY);
            let count = line.rsplit(' ').next().and_then(|c| c.parse::<f64>().ok());
            // Positive numbers are in the order of their bits.
            *all.entry(bound.to_bits()).or_default() += count.context("no count")? as u64;
        }
    }
    Ok(all)
}

/// A bound that this share of the ADDs between two looks kept to.
fn quantile(before: &BTreeMap<u64, u64>, after: &BTreeMap<u64, u64>, share: f64) -> f64 {
    let since = |bound: &u64, n: &u64| n - before.get(bound).copied().unwrap_or(0);
    let all = after.iter().map(|(b, n)| since(b, n)).max().unwrap_or(0);
    let kept = after.iter().find(|(b, n)| since(b, n) as f64 >= share * all as f64);
    kept.map_or(f64::NAN, |(bound, _)| f64::from_bits(*bound))
}

/// As many pods of one client as this machine carries, all at once.
pub fn burst(context: &Context) -> anyhow::Result<()> {
    let shared = context.shared()?;
    let manifest = json!({"apiVersion": "aerolink.dev/v1alpha1", "kind": "AeroClient",
        "metadata": {"name": "burst"},
        "spec": {"podSelector": {"matchLabels": {"app": "burst"}}, "keepFor": "1s", "coolDown": "5s"}});
    let deployment = json!({"apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "burst"},
        "spec": {"replicas": BURST, "selector": {"matchLabels": {"app": "burst"}},
            "template": {"metadata": {"labels": {"app": "burst"}},
                "spec": {"terminationGracePeriodSeconds": 1, "containers": [
                    {"name": "c", "image": "aerolink.dev/aero-talk:0.1.0", "args": ["serve"]}]}}}});
    shared.cluster.apply(&manifest.to_string())?;
    let before = adds(shared)?;
    let began = Instant::now();
    shared.cluster.apply(&deployment.to_string())?;
    let outcome = (|| {
        let prefixes =
            shared.observer.wait("all pods are ready", Duration::from_secs(300), |s| {
                let ready = s.ready("app", "burst");
                (ready.len() == BURST)
                    .then(|| ready.iter().filter_map(|p| p.prefix.clone()).collect::<BTreeSet<_>>())
            })?;
        let took = began.elapsed();
        ensure!(prefixes.len() == BURST, "{} prefixes for {BURST} pods", prefixes.len());
        Ok((took, adds(shared)?))
    })();
    shared.cluster.kubectl(&["delete", "deployment/burst", "aeroclient/burst", "--wait=false"])?;
    let (took, after) = outcome?;
    let (half, most) = (quantile(&before, &after, 0.5), quantile(&before, &after, 0.99));
    // Two processors for three kubelets, the API server and all pods: a figure, and no bound.
    context.note(format!(
        "{BURST} pods at once on three nodes of one machine: all Ready after {:.0} s, our part of ADD p50 <= {half} s, p99 <= {most} s",
        took.as_secs_f64()
    ));
    let lab = json!({"pods": BURST, "ready_s": took.as_secs_f64(), "add_p50_ms": half * 1e3, "add_p99_ms": most * 1e3});
    aero_elements::results::merge("control-plane.json", &json!({"burst": {"lab": lab}}))?;
    shared.cluster.wait_until("the pods are gone", Duration::from_secs(180), || {
        Ok(shared.cluster.kubectl(&["get", "pods", "-l", "app=burst", "-o", "name"])?.is_empty())
    })
}
