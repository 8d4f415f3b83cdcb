//! Services from and to enrolled pods, by kube-proxy in both of its modes.

use anyhow::{Context as _, ensure};
use serde_json::json;

use aero_e2e::scenario::PORT;

use super::Context;

/// Conversations with the Service from each node: kube-proxy chooses an endpoint for each.
const CONVERSATIONS: usize = 6;

/// A Service of enrolled pods, asked from an enrolled pod on every node: the nodes differ in
/// kube-proxy's mode, and some have an endpoint themselves.
pub fn both_modes(context: &Context) -> anyhow::Result<()> {
    let shared = context.shared()?;
    let cluster = &shared.cluster;
    let service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "echo"},
        "spec": {
            "ipFamilyPolicy": "PreferDualStack", "selector": {"app": "web"},
            "ports": [{"protocol": "UDP", "port": PORT}],
        },
    });
    cluster.apply(&service.to_string())?;
    let addresses = cluster.get("service/echo", "{.spec.clusterIPs[*]}")?;
    ensure!(addresses.split(' ').count() == 2, "not of both families: {addresses}");
    let mut modes = Vec::new();
    for node in shared.lab().nodes() {
        let mode =
            shared.lab().run(&node, &["curl", "-s", "-m", "3", "127.0.0.1:10249/proxyMode"])?;
        modes.push(mode.trim().to_string());
        let pod = {
            let seen = shared.observer.seen();
            let here = |p: &&_| -> bool {
                let pod: &aero_e2e::scenario::observer::PodSeen = p;
                pod.node == node
            };
            let ready = seen.ready("app", "correspondent");
            let pod = ready.into_iter().find(here).context("no correspondent on a node")?;
            pod.name.rsplit('/').next().unwrap_or_default().to_string()
        };
        for ip in addresses.split(' ') {
            let target =
                if ip.contains(':') { format!("[{ip}]:{PORT}") } else { format!("{ip}:{PORT}") };
            for _ in 0..CONVERSATIONS {
                let once = ["exec", &pod, "--", "/bin/aero-talk", "once", "--within", "15000"];
                cluster
                    .kubectl(&[&once[..], &[&target]].concat())
                    .with_context(|| format!("the Service from {node}, kube-proxy {mode}"))?;
            }
        }
    }
    for mode in ["nftables", "iptables"] {
        ensure!(
            modes.iter().any(|m| m == mode),
            "no node has kube-proxy in mode {mode}: {modes:?}"
        );
    }
    cluster.kubectl(&["delete", "service", "echo", "--timeout=30s"]).map(drop)
}
