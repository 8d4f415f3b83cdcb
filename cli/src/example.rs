//! A small system for tests: two nodes, two Servers, one client whose pod is on n1.

use std::collections::BTreeMap;

use aero_telemetry::debug::{
    ClientReport, Counters, NeighborReport, NodeReport, ServerReport, ServerSeen,
};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::observe::{NodeView, PodView, System};

fn object<T: DeserializeOwned>(kind: &str, rest: Value) -> T {
    let mut all = json!({"apiVersion": "aerolink.dev/v1alpha1", "kind": kind});
    all.as_object_mut().unwrap().extend(rest.as_object().unwrap().clone());
    serde_json::from_value(all).unwrap()
}

fn ready() -> Value {
    json!([{"type": "Ready", "status": "True", "reason": "Fine", "message": "all is well",
        "lastTransitionTime": "2026-01-01T00:00:00Z"}])
}

/// A pod of AERO.
fn part(name: &str, part: &str, node: &str) -> PodView {
    let labels = [
        ("app.kubernetes.io/name", format!("aero-{part}")),
        ("aerolink.dev/link", "default".into()),
        ("aerolink.dev/server", "default".into()),
    ];
    PodView {
        namespace: "aero-system".into(),
        name: name.into(),
        uid: name.into(),
        node: node.into(),
        ready: true,
        state: "Running".into(),
        labels: labels.map(|(k, v)| (k.to_string(), v)).into(),
        ..PodView::default()
    }
}

/// The pod that holds the prefix.
pub fn holder() -> PodView {
    PodView {
        namespace: "default".into(),
        name: "web-0".into(),
        uid: "8c1f0000-0000-4000-8000-000000000001".into(),
        node: "n1".into(),
        ready: true,
        state: "Running".into(),
        annotations: BTreeMap::from([("aerolink.dev/epoch".to_string(), "4".to_string())]),
        ..PodView::default()
    }
}

/// The system, all of it well.
pub fn system() -> System {
    let id = "8c1f0000-0000-5000-8000-00000000000a";
    let server = |n: u8| format!("192.0.2.1{n}:8060");
    let seen =
        || [1, 2].map(|n| ServerSeen { address: server(n), state: "answers".into() }).to_vec();
    let node = |n: u8, clients| NodeReport {
        node: format!("n{n}"),
        link: "default".into(),
        underlay: vec![format!("192.0.2.1{n}:8061")],
        default_server: Some(server(n)),
        servers: seen(),
        clients,
        counters: Counters { delivered_packets: 12, tunneled_packets: 8, ..Counters::default() },
        ..NodeReport::default()
    };
    let client = ClientReport {
        client_id: id.into(),
        namespace: "default".into(),
        pod: "web-0".into(),
        pod_uid: holder().uid,
        prefix: "2001:db8:a:1::/64".into(),
        address: "2001:db8:a:1::1".into(),
        epoch: 4,
        interface: "aero01234567".into(),
        served: true,
        bound: vec![server(1), server(2)],
        ..ClientReport::default()
    };
    let report = ServerReport {
        link: "default".into(),
        mappings: 1,
        neighbors: vec![NeighborReport {
            acp: "2001:db8:a:1::/64".into(),
            client: id.into(),
            link_layer: "192.0.2.11:8061".into(),
            epoch: 4,
            lease_seconds: 31,
        }],
        ..ServerReport::default()
    };
    System {
        namespace: "aero-system".into(),
        links: vec![object(
            "AeroLink",
            json!({"metadata": {"name": "default"}, "spec": {},
            "status": {"conditions": ready(), "pools": [{"prefix": "2001:db8:a::/48",
                "clientPrefixLength": 64, "inUse": 1, "cooling": 0, "free": 65535}]}}),
        )],
        servers: vec![object(
            "AeroServer",
            json!({
            "metadata": {"name": "default", "namespace": "aero-system"}, "spec": {},
            "status": {"conditions": ready(), "readyReplicas": 2}}),
        )],
        relays: Vec::new(),
        clients: vec![object(
            "AeroClient",
            json!({
            "metadata": {"name": "web", "namespace": "default"},
            "spec": {"podSelector": {"matchLabels": {"app": "web"}}},
            "status": {"conditions": ready(), "identityCount": 1, "bound": 1, "moves": 3}}),
        )],
        mappings: vec![object(
            "AcpMapping",
            json!({
            "metadata": {"name": "2001-db8-a-1-64"},
            "spec": {"prefix": "2001:db8:a:1::/64", "linkRef": {"name": "default"},
                "clientId": id, "clientRef": {"namespace": "default", "name": "web"},
                "identity": "web-0", "epoch": 4,
                "holder": {"podName": "web-0", "podUid": holder().uid, "node": "n1",
                    "underlay": ["192.0.2.11"]}},
            "status": {"phase": "Bound"}}),
        )],
        nodes: [1, 2]
            .map(|n| NodeView {
                name: format!("n{n}"),
                ready: true,
                addresses: vec![format!("192.0.2.1{n}")],
            })
            .to_vec(),
        parts: vec![
            part("aero-operator-1", "operator", "n1"),
            part("aero-agent-1", "agent", "n1"),
            part("aero-agent-2", "agent", "n2"),
            part("aero-server-a", "server", "n1"),
            part("aero-server-b", "server", "n2"),
        ],
        leader: Some("aero-operator-1".into()),
        agents: BTreeMap::from([
            ("n1".to_string(), Ok(node(1, vec![client]))),
            ("n2".to_string(), Ok(node(2, Vec::new()))),
        ]),
        server_reports: BTreeMap::from([
            ("aero-server-a".to_string(), Ok(report.clone())),
            ("aero-server-b".to_string(), Ok(report)),
        ]),
    }
}
