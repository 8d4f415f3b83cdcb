//! Servers and Relays as the operator runs them, with routers of others outside: BGP between nodes.
//!
//! One lab of five nodes for all of it, made by the first test that needs it. Agents, pods and the
//! Servers are on three of them. The Relays are on the other two: they join the link to the network
//! outside, which they do where no agent runs.

mod fabric;
mod failures;
mod flows;
mod link;
mod routes;

use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use aero_e2e::lab::{Lab, Options, Progress, Underlay};
use aero_e2e::scenario::observer::Observer;
use aero_e2e::scenario::{Cluster, NAMESPACE, talk};
use anyhow::{Context as _, ensure};
use serde_json::json;

use super::{Context, archives};
use fabric::Fabric;
use flows::End;
use link::{Link, RELAY, SERVER, SETTLED};

pub use fabric::run as fabric;
pub use failures::run as failures;
pub use routes::run as routes;

/// Name of this lab.
pub const NAME: &str = "relays";
/// Nodes with agents, Servers and pods; the others have the Relays.
const WITH_AGENTS: [&str; 3] = ["n1", "n2", "n3"];
/// A pod on each of those, and two more.
const CLIENTS: usize = 5;

/// The lab, with two Servers, two Relays and pods.
pub struct Backbone {
    lab: Lab,
    cluster: Cluster,
    observer: Observer,
    /// Until the first sessions were there, and until the Relays knew the pods.
    began: (Duration, Duration),
    fabric: OnceLock<Result<Fabric, String>>,
}

impl Backbone {
    /// Sets it up.
    ///
    /// # Errors
    /// Says what did not come up.
    pub fn start() -> anyhow::Result<Self> {
        let options = Options { name: NAME.into(), nodes: 5, underlay: Underlay::Dual };
        let images = archives()?;
        let lab = Lab::up(options, &Progress { quiet: true })?;
        lab.load_images(images)?;
        let cluster = Cluster::of(&lab);
        for node in lab.nodes() {
            let part = if WITH_AGENTS.contains(&node.as_str()) { "link" } else { "relay" };
            cluster.kubectl(&["label", "node", &node, &format!("part={part}")])?;
        }
        let on = ["agent.nodeSelector.part=link", "server.nodeSelector.part=link"];
        cluster.install(&["--set", on[0], "--set", on[1]])?;
        cluster.wait_for_aero(Duration::from_secs(90))?;
        let observer = Observer::start(&cluster.kubeconfig)?;
        let link = Link { lab: &lab, cluster: &cluster };
        let relay = json!({
            "apiVersion": "aerolink.dev/v1alpha1", "kind": "AeroRelay",
            "metadata": {"name": "backbone", "namespace": NAMESPACE},
            "spec": {"nodeSelector": {"part": "relay"}},
        });
        cluster.apply(&relay.to_string())?;
        link.patch(SERVER, &json!({"relayRefs": ["backbone"], "asn": 64_600}))?;
        let sessions = link.settled("two Servers and two Relays have their sessions")?;
        pods(&cluster, &observer)?;
        let routes = link.settled("the Relays have the prefixes of all pods")?;
        let count = link.live()?.len();
        ensure!(count == CLIENTS, "{count} prefixes");
        Ok(Self { lab, cluster, observer, began: (sessions, routes), fabric: OnceLock::new() })
    }

    fn link(&self) -> Link<'_> {
        Link { lab: &self.lab, cluster: &self.cluster }
    }

    /// The routers outside, started by the first who asks.
    fn fabric(&self) -> anyhow::Result<&Fabric> {
        let made = self.fabric.get_or_init(|| Fabric::start(self).map_err(|e| format!("{e:#}")));
        made.as_ref().map_err(|e| anyhow::anyhow!("the routers outside did not start: {e}"))
    }

    /// The pod of each of these nodes that has an agent.
    fn ends(&self, nodes: &[&str]) -> anyhow::Result<Vec<End>> {
        let mut ends = Vec::new();
        self.cluster.wait_until("a pod runs on each node with an agent", SETTLED, || {
            ends = nodes.iter().map(|node| self.end(node)).collect::<anyhow::Result<_>>()?;
            Ok(true)
        })?;
        Ok(ends)
    }

    fn end(&self, node: &str) -> anyhow::Result<End> {
        let seen = self.observer.seen();
        let mut there = seen.ready("app", "correspondent").into_iter();
        let pod = there.find(|p| p.node == node).context("no pod")?.clone();
        drop(seen);
        let runs = |pid: &i32| {
            let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            name.trim() == "aero-talk"
        };
        let all = self.lab.processes_of_pod(node, &pod.uid)?;
        let pid = all.into_iter().find(runs).with_context(|| format!("{} is off", pod.name))?;
        let prefix = pod.prefix.context("a pod without prefix")?;
        Ok(End {
            name: node.to_string(),
            netns: PathBuf::from(format!("/proc/{pid}/ns/net")),
            address: talk::stable_address(&prefix).parse()?,
        })
    }
}

/// A pod on each node with an agent, and two more that have their prefixes for good.
fn pods(cluster: &Cluster, observer: &Observer) -> anyhow::Result<()> {
    cluster.apply_file("examples/client.yaml")?;
    let set = |kind: &str, name: &str, more: serde_json::Value| {
        let mut set = json!({
            "apiVersion": "apps/v1", "kind": kind, "metadata": {"name": name},
            "spec": {
                "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}}, "spec": {
                    "nodeSelector": {"part": "link"},
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{
                        "name": "talk", "image": "aerolink.dev/aero-talk:0.1.0",
                        "imagePullPolicy": "IfNotPresent", "args": ["serve"],
                    }],
                }},
            },
        });
        let spec = set["spec"].as_object_mut().expect("an object");
        spec.extend(more.as_object().cloned().unwrap_or_default());
        cluster.apply(&set.to_string())
    };
    set("DaemonSet", "correspondent", json!({}))?;
    let two = json!({"serviceName": "web", "replicas": 2, "podManagementPolicy": "Parallel"});
    set("StatefulSet", "web", two)?;
    observer.wait("the pods are ready", Duration::from_secs(120), |seen| {
        let ready = seen.ready("app", "correspondent").len() + seen.ready("app", "web").len();
        (ready == CLIENTS).then_some(())
    })
}

/// Without relayRefs and AeroRelay nothing of it is left.
pub fn ended(context: &Context) -> anyhow::Result<()> {
    let backbone = context.backbone()?;
    let link = backbone.link();
    link.patch(SERVER, &json!({"relayRefs": []}))?;
    link.kubectl(&["delete", RELAY])?;
    let began = Instant::now();
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
    context.note(format!("relays: nothing of them is left after {:.1?}", began.elapsed()));
    backbone.observer.check()
}
