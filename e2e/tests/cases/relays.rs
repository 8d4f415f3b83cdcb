//! Servers and Relays as the operator runs them: BGP between four nodes.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use aero_e2e::lab::{Lab, Underlay};
use aero_e2e::scenario::observer::Observer;
use aero_e2e::scenario::{Cluster, NAMESPACE};
use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{Context, start, web};

const RELAY: &str = "aerorelay/backbone";
const SERVER: &str = "aeroserver/default";
/// How long a change of who takes part may take, a pod's start included.
const SETTLED: Duration = Duration::from_secs(60);

/// Two Servers and two Relays, each on a node of its own.
struct Link<'a> {
    lab: &'a Lab,
    cluster: &'a Cluster,
}

impl Link<'_> {
    fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        self.cluster.kubectl(&[&["-n", NAMESPACE], args].concat())
    }

    fn json(&self, args: &[&str]) -> anyhow::Result<Value> {
        let text = self.kubectl(&[args, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).context("kubectl printed no JSON")
    }

    fn patch(&self, object: &str, spec: &Value) -> anyhow::Result<()> {
        let patch = json!({"spec": spec}).to_string();
        self.kubectl(&["patch", object, "--type=merge", "-p", &patch]).map(drop)
    }

    /// Prefixes that a pod holds now.
    fn live(&self) -> anyhow::Result<BTreeSet<String>> {
        let all = self.json(&["get", "acpmappings"])?;
        let items = all["items"].as_array().context("no list")?;
        let held = items.iter().filter(|m| m["spec"]["holder"].is_object());
        Ok(held.filter_map(|m| m["spec"]["prefix"].as_str().map(String::from)).collect())
    }

    /// Nodes of the Relays that are ready.
    fn relays(&self) -> anyhow::Result<Vec<(String, String)>> {
        let pods = self.json(&["get", "pods", "-l", "aerolink.dev/relay=backbone"])?;
        let ready = |p: &&Value| {
            p["metadata"]["deletionTimestamp"].is_null()
                && p["status"]["conditions"].as_array().is_some_and(|all| {
                    all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
                })
        };
        let pods = pods["items"].as_array().context("no list")?.iter().filter(ready);
        let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
        Ok(pods.map(|p| (text(&p["metadata"]["name"]), text(&p["spec"]["nodeName"]))).collect())
    }

    /// What BIRD has written into the kernel table of a Relay's node.
    fn table(&self, node: &str) -> anyhow::Result<BTreeSet<String>> {
        let command = ["ip", "-6", "route", "show", "table", "8060"];
        let output = self.lab.exec(node, &command)?;
        // A table that never had a route is none.
        let none = String::from_utf8_lossy(&output.stderr).contains("FIB table does not exist");
        ensure!(output.status.success() || none, "{command:?} on {node}: {output:?}");
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        let prefixes = shown.lines().filter_map(|l| l.split_whitespace().next());
        Ok(prefixes.filter(|p| p.contains('/')).map(String::from).collect())
    }

    /// Waits until two Relays have a route to each prefix that is held and to no other, and every
    /// session is reported as established; how long that took.
    fn settled(&self, what: &str) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let mut last = String::new();
        let waited = self.cluster.wait_until(what, SETTLED, || {
            let (live, relays) = (self.live()?, self.relays()?);
            let mut tables = Vec::new();
            for (_, node) in &relays {
                tables.push(self.table(node)?);
            }
            let healthy = |object: &str| -> anyhow::Result<(bool, String)> {
                let status = &self.json(&["get", object])?["status"];
                let sessions = status["bgpSessions"].as_array().cloned().unwrap_or_default();
                let up = sessions.iter().filter(|s| s["state"] == "Established").count();
                Ok((up == 4 && sessions.len() == 4, format!("{object}: {}", status["bgpSessions"])))
            };
            let (servers, relayed) = (healthy(SERVER)?, healthy(RELAY)?);
            last = format!("{live:?} {relays:?} {tables:?}\n{}\n{}", servers.1, relayed.1);
            Ok(relays.len() == 2 && tables.iter().all(|t| *t == live) && servers.0 && relayed.0)
        });
        waited.with_context(|| format!("{last}\n{}", self.logs()))?;
        Ok(began.elapsed())
    }

    fn logs(&self) -> String {
        let pods = self.kubectl(&["get", "pods", "-o", "wide"]).unwrap_or_default();
        let mut all = pods;
        for label in ["aerolink.dev/relay=backbone", "aerolink.dev/server=default"] {
            let args = ["logs", "-l", label, "--all-containers", "--prefix", "--tail=12"];
            all.push_str(&self.kubectl(&args).unwrap_or_else(|e| format!("{e:#}\n")));
        }
        all
    }

    /// Waits until a condition says this, and an Event with the same reason does if asked for.
    fn says(&self, object: &str, status: &str, reason: &str) -> anyhow::Result<()> {
        let what = format!("{object} says {reason}");
        self.cluster.wait_until(&what, Duration::from_secs(20), || {
            let conditions = self.json(&["get", object])?["status"]["conditions"].clone();
            let accepted = |c: &Value| {
                c["type"] == "Accepted" && c["status"] == status && c["reason"] == reason
            };
            Ok(conditions.as_array().is_some_and(|all| all.iter().any(accepted)))
        })?;
        if status == "False" {
            let field = format!("--field-selector=reason={reason}");
            self.cluster.wait_until(
                &format!("{what} by an Event"),
                Duration::from_secs(10),
                || {
                    let events = self.kubectl(&["get", "events", &field, "-o", "name"])?;
                    Ok(!events.trim().is_empty())
                },
            )?;
        }
        Ok(())
    }

    fn file(&self) -> anyhow::Result<String> {
        let map = self.json(&["get", "configmap", "aero-routes-default"])?;
        Ok(map["data"]["routes.yaml"].as_str().unwrap_or_default().to_string())
    }

    /// The BIRDs of a node: processes of its network.
    fn birds(&self, node: &str) -> anyhow::Result<Vec<i32>> {
        let own = self.lab.run(node, &["readlink", "/proc/self/ns/net"])?;
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
                continue;
            };
            let name = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            let net = std::fs::read_link(entry.path().join("ns/net")).unwrap_or_default();
            if name.trim() == "bird" && net.to_string_lossy() == own.trim() {
                found.push(pid);
            }
        }
        Ok(found)
    }
}

pub fn run(context: &Context) -> anyhow::Result<()> {
    // One lab at a time is enough for this machine.
    context.end();
    let name = "relays";
    let outcome = (|| {
        let lab = start(name, 4, Underlay::Dual)?;
        let cluster = Cluster::of(&lab);
        let observer = Observer::start(&cluster.kubeconfig)?;
        let link = Link { lab: &lab, cluster: &cluster };
        relayed(context, &link, &observer)?;
        refused(&link)?;
        ended(&link)?;
        observer.check()
    })();
    let down = Lab::down(name);
    outcome?;
    down.map(drop)
}

/// Routes follow the Clients, and sessions come back.
fn relayed(context: &Context, link: &Link<'_>, observer: &Observer) -> anyhow::Result<()> {
    let relay = json!({
        "apiVersion": "aerolink.dev/v1alpha1", "kind": "AeroRelay",
        "metadata": {"name": "backbone", "namespace": NAMESPACE}, "spec": {},
    });
    link.cluster.apply(&relay.to_string())?;
    link.patch(SERVER, &json!({"relayRefs": ["backbone"], "asn": 64_600}))?;
    let first = link.settled("two Servers and two Relays have their sessions")?;
    let file = link.file()?;
    ensure!(file.contains("asn: 64600}") && file.contains("asn: 64601}"), "{file}");
    web(link.lab, link.cluster, observer)?;
    let clients = link.settled("the Relays have the prefixes of all pods")?;
    let count = link.live()?.len();
    ensure!(count >= 6, "{count} prefixes");
    // A pod that goes takes its route along.
    link.cluster.kubectl(&["scale", "statefulset/web", "--replicas=1"])?;
    link.cluster.wait_until("one prefix is nobody's", Duration::from_secs(30), || {
        Ok(link.live()?.len() == count - 1)
    })?;
    let withdrawn = link.settled("the Relays have forgotten it")?;
    let (pod, node) = link.relays()?.first().cloned().context("no Relay")?;
    link.kubectl(&["delete", "pod", &pod, "--wait=true"])?;
    let replaced = link.settled("another Relay has its place")?;
    ensure!(!link.relays()?.iter().any(|(name, _)| *name == pod), "{pod} is there still");
    let before = link.birds(&node)?;
    ensure!(before.len() == 1, "BIRDs of {node}: {before:?}");
    for pid in &before {
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(*pid),
            nix::sys::signal::Signal::SIGKILL,
        )?;
    }
    link.cluster.wait_until("BIRD is started again", Duration::from_secs(45), || {
        let now = link.birds(&node)?;
        Ok(now.len() == 1 && now != before)
    })?;
    let restarted = link.settled("the sessions are back")?;
    context.note(format!(
        "relays: {count} routes; first sessions after {first:.1?}, routes after {clients:.1?}, \
         withdrawn after {withdrawn:.1?}, a Relay's pod replaced after {replaced:.1?}, sessions \
         {restarted:.1?} after BIRD was started again"
    ));
    Ok(())
}

/// What is bad is said, and changes nothing.
fn refused(link: &Link<'_>) -> anyhow::Result<()> {
    let file = link.file()?;
    for (object, bad, reason, good) in [
        (
            SERVER,
            json!({"relayRefs": ["backbone", "nowhere"]}),
            "RelayNotFound",
            json!({"relayRefs": ["backbone"]}),
        ),
        (RELAY, json!({"asn": 64_601}), "AsnConflict", json!({"asn": null})),
        (RELAY, json!({"asn": 3320}), "AsnNotPrivate", json!({"asn": null})),
        (
            RELAY,
            json!({"externalPeers": [{"address": "192.0.2.99", "asn": 4_200_000_000_i64}]}),
            "PeerRefused",
            json!({"externalPeers": []}),
        ),
    ] {
        link.patch(object, &bad)?;
        link.says(object, "False", reason)?;
        ensure!(link.file()? == file, "{reason}: the file has changed");
        link.patch(object, &good)?;
        link.says(object, "True", "Accepted")?;
    }
    link.settled("nothing of that has done harm").map(drop)
}

/// Without relayRefs and AeroRelay nothing of it is left.
fn ended(link: &Link<'_>) -> anyhow::Result<()> {
    link.patch(SERVER, &json!({"relayRefs": []}))?;
    link.kubectl(&["delete", RELAY])?;
    link.cluster.wait_until("the Relays are gone", SETTLED, || {
        let pods = link.kubectl(&["get", "pods", "-l", "aerolink.dev/relay", "-o", "name"])?;
        let maps = link.kubectl(&["get", "configmaps", "-o", "name"])?;
        Ok(pods.trim().is_empty() && !maps.contains("aero-bgp-"))
    })?;
    let file = link.file()?;
    ensure!(file.contains("servers: []") && file.contains("relays: []"), "{file}");
    link.kubectl(&["rollout", "status", "deployment/aero-server-default", "--timeout=60s"])?;
    for node in link.lab.nodes() {
        let left = link.lab.run(&node, &["ip", "-o", "link"])?;
        ensure!(!left.contains("aero-relay") && !left.contains("aero-bgp"), "{node}: {left}");
    }
    Ok(())
}
