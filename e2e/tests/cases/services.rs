//! Services from and to enrolled pods, by kube-proxy in both of its modes.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::json;

use aero_e2e::scenario::{PORT, talk};

use super::Context;

/// Conversations with each Service from each node: kube-proxy chooses an endpoint for each.
const CONVERSATIONS: usize = 6;

/// A Service of the stable addresses and one of the primary network's, asked from an enrolled pod
/// on every node: the nodes differ in kube-proxy's mode, and some have an endpoint themselves.
pub fn both_modes(context: &Context) -> anyhow::Result<()> {
    let shared = context.shared()?;
    let cluster = &shared.cluster;
    let addresses: Vec<String> = talk::wait_for_web(&shared.observer)?
        .iter()
        .map(|(_, prefix, _)| talk::stable_address(prefix))
        .collect();
    let ports = json!([{"name": "echo", "protocol": "UDP", "port": PORT}]);
    let service = |name: &str, selector: serde_json::Value| {
        json!({
            "apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"ipFamilies": ["IPv6"], "ports": ports, "selector": selector},
        })
    };
    let slice = json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv6",
        "metadata": {"name": "stable", "labels": {"kubernetes.io/service-name": "stable"}},
        "endpoints": addresses.iter().map(|a| json!({"addresses": [a]})).collect::<Vec<_>>(),
        "ports": ports,
    });
    let list = [service("stable", json!(null)), service("primary", json!({"app": "web"})), slice];
    cluster.apply(&json!({"apiVersion": "v1", "kind": "List", "items": list}).to_string())?;
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
        for name in ["stable", "primary"] {
            let ip = cluster.get(&format!("service/{name}"), "{.spec.clusterIP}")?;
            let target = format!("[{ip}]:{PORT}");
            for _ in 0..CONVERSATIONS {
                let once = ["exec", &pod, "--", "/bin/aero-talk", "once", "--within", "15000"];
                cluster
                    .kubectl(&[&once[..], &[&target]].concat())
                    .with_context(|| format!("Service {name} from {node}, kube-proxy {mode}"))?;
            }
        }
    }
    for mode in ["nftables", "iptables"] {
        ensure!(
            modes.iter().any(|m| m == mode),
            "no node has kube-proxy in mode {mode}: {modes:?}"
        );
    }
    cluster.kubectl(&["delete", "service", "stable", "primary", "--timeout=30s"])?;
    let gone = || Ok(cluster.get("endpointslice/stable", "{.metadata.name}").is_err());
    cluster.wait_until("the Service's endpoints are gone", Duration::from_secs(60), gone)
}
