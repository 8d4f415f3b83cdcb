//! Many pods: bursts, and what a move costs the API server's watches.
//!
//! All figures here are simulated: deliveries and bytes are counted from the selectors of the
//! watches that the parts really make, on a model of the API server.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::jiff::SignedDuration;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::driver::{Driver, Kind, in_virtual_time};
use super::faults::Faults;
use super::store::Key;
use super::world::{NS, Shared};
use aero_elements::faults::{Level, held};

/// A world with a /48 of prefixes.
pub fn large(seed: u64, faults: Faults) -> (Shared, Driver) {
    let kind = Kind { faults, ..Kind::of(seed) };
    let shared = Shared::new(kind.seed, kind.faults.clone());
    let driver = Driver::new(shared.clone(), &kind);
    driver.edit("is larger", &Key::new("aerolinks", "", "default"), |l| {
        l["spec"]["pools"] = json!([{"prefix": "2001:db8:a::/48", "clientPrefixLength": 64}]);
    });
    (shared, driver)
}

/// The prefix that a pod is told.
pub fn told(pod: &Value) -> Option<&str> {
    let annotations = &pod["metadata"]["annotations"];
    let ours = annotations["aerolink.dev/pod-uid"] == pod["metadata"]["uid"];
    annotations["aerolink.dev/prefix"].as_str().filter(|_| ours)
}

/// Figures for `target/results/control-plane.json`.
fn result(figures: &Value) {
    aero_elements::results::merge("control-plane.json", figures).expect("results can be written");
}

#[test]
fn a_thousand_pods_at_once_all_get_a_prefix_each_for_a_few_writes() {
    const PODS: usize = 1000;
    let mut case = held(&["F16"], Level::Model);
    let (counts, millis) = in_virtual_time(async {
        let (shared, driver) = large(16, Faults::none());
        driver.client("web", "web");
        shared.start(SignedDuration::ZERO, None);
        sleep(Duration::from_secs(2)).await;
        shared.lock().counts = Default::default();
        // The checker looks at all pods after every change; here the end is what counts.
        shared.lock().checker.off = true;
        let began = Instant::now();
        for n in 0..PODS {
            let name = format!("web-{n}");
            driver.pod(&name, "web", true);
            driver.schedule(&name, "n1");
        }
        let all_told = || {
            let world = shared.lock();
            world.store.list("pods", NS).filter(|(_, p)| told(p).is_some()).count() == PODS
        };
        while !all_told() {
            sleep(Duration::from_millis(100)).await;
            assert!(began.elapsed() < Duration::from_secs(120), "not all have a prefix");
        }
        let took = began.elapsed();
        let counts = {
            let world = shared.lock();
            let all = world.store.list("pods", NS);
            let prefixes: std::collections::BTreeSet<String> =
                all.filter_map(|(_, p)| told(p).map(String::from)).collect();
            assert_eq!(prefixes.len(), PODS, "two pods have one prefix");
            world.counts.clone()
        };
        // A Bound status is written behind the annotation.
        sleep(Duration::from_secs(30)).await;
        (counts, took.as_millis())
    });
    let writes: u64 = counts.writes.iter().filter(|(k, _)| *k != "events").map(|(_, n)| n).sum();
    let events = counts.writes.get("events").copied().unwrap_or(0);
    let per_pod = writes as f64 / PODS as f64;
    assert!(per_pod < 5.0, "{per_pod} writes per pod: {:?}", counts.writes);
    assert!(counts.conflicts < PODS as u64 / 10, "{} conflicts", counts.conflicts);
    let text = format!(
        "{PODS} pods told their prefix within {millis} ms (simulated), {per_pod:.2} writes per pod beside {:.2} of Events, {} answers 409 (bound {})",
        events as f64 / PODS as f64,
        counts.conflicts,
        PODS / 10
    );
    println!("{text}");
    let model = json!({"pods": PODS, "time_ms": millis as u64, "writes_per_pod": per_pod,
        "events_per_pod": events as f64 / PODS as f64, "conflicts": counts.conflicts,
        "writes": counts.writes});
    result(&json!({"burst": {"model": model}}));
    case.figure(text);
}

/// What a watch asks for.
struct Watch {
    who: &'static str,
    plural: &'static str,
    /// Of pods: only those of a node.
    node: Option<String>,
}

impl Watch {
    fn all(who: &'static str, plural: &'static str) -> Self {
        Self { who, plural, node: None }
    }
}

/// Deliveries and bytes.
type Cost = (u64, u64);

/// Deliveries and bytes of all changes of one move, to all watches.
fn cost(changes: &[(String, Value, Value)], watches: &[Watch]) -> BTreeMap<&'static str, Cost> {
    let mut all: BTreeMap<&'static str, Cost> = BTreeMap::new();
    for watch in watches {
        let entry = all.entry(watch.who).or_default();
        for (plural, before, after) in changes {
            let selected = |o: &Value| {
                o.is_object()
                    && watch.node.as_ref().is_none_or(|n| o["spec"]["nodeName"] == n.as_str())
            };
            if plural == watch.plural && (selected(before) || selected(after)) {
                let object = if after.is_object() { after } else { before };
                entry.0 += 1;
                entry.1 += json!({"type": "MODIFIED", "object": object}).to_string().len() as u64;
            }
        }
    }
    all
}

/// All changes of the store while one pod moves from `n1` to `n2`; and what the agent of `n2` reads
/// if it must ask whether the pod is enrolled: the metadata of its namespace's AeroClients.
fn one_move() -> (Vec<(String, Value, Value)>, u64) {
    in_virtual_time(async {
        let (shared, driver) = large(10, Faults::none());
        driver.client("web", "web");
        shared.start(SignedDuration::ZERO, None);
        driver.pod("web-0", "web", true);
        driver.schedule("web-0", "n1");
        sleep(Duration::from_secs(10)).await;
        let from = shared.lock().store.revision();
        driver.remove(&Key::new("pods", NS, "web-0"));
        driver.pod("web-0", "web", true);
        driver.schedule("web-0", "n2");
        sleep(Duration::from_secs(10)).await;
        let world = shared.lock();
        let mut changes = Vec::new();
        for plural in ["pods", "acpmappings", "aeroclients", "aerolinks", "nodes"] {
            for logged in world.store.since(plural, from).expect("nothing was compacted") {
                let value =
                    |o: &Option<std::sync::Arc<Value>>| o.as_deref().cloned().unwrap_or_default();
                changes.push((plural.to_string(), value(&logged.before), value(&logged.after)));
            }
        }
        let metadata = world.store.list("aeroclients", NS).map(|(_, c)| {
            json!({"apiVersion": "meta.k8s.io/v1", "kind": "PartialObjectMetadata",
                "metadata": c["metadata"]})
        });
        let read = json!({"items": metadata.collect::<Vec<_>>()}).to_string().len() as u64;
        (changes, read)
    })
}

/// What is watched where there are so many nodes, as it is and with the whole table on each.
fn watches(nodes: u64) -> (Vec<Watch>, Vec<Watch>) {
    // The operator (one leads; the other replica watches the Lease only; what it watches beside
    // these does not change), two Servers, and per node an agent: its own node's pods, and the
    // Servers' EndpointSlice, which does not change. A test in node-agent/src/agent/watch.rs
    // holds agents to that.
    let mut ours = vec![
        Watch::all("operator", "pods"),
        Watch::all("operator", "acpmappings"),
        Watch::all("operator", "aeroclients"),
        Watch::all("operator", "aerolinks"),
        Watch::all("operator", "nodes"),
        Watch::all("Servers", "acpmappings"),
        Watch::all("Servers", "acpmappings"),
    ];
    // It needs an operator, too, and no Servers; and its table has no status.
    let mut full = vec![Watch::all("operator", "pods"), Watch::all("operator", "acpmappings")];
    for n in 1..=nodes {
        ours.push(Watch { who: "agents", plural: "pods", node: Some(format!("n{n}")) });
        full.push(Watch::all("agents", "acpmappings"));
    }
    (ours, full)
}

#[test]
fn what_a_move_costs_does_not_depend_on_the_number_of_nodes() {
    let (changes, read) = one_move();
    let is_row = |c: &&(String, Value, Value)| c.0 != "acpmappings" || c.1["spec"] != c.2["spec"];
    let of_specs: Vec<_> = changes.iter().filter(is_row).cloned().collect();
    let mut table = Vec::new();
    let mut costs = Vec::new();
    for nodes in [10u64, 100, 1000] {
        let (ours, full) = watches(nodes);
        let sum = |all: &BTreeMap<&'static str, Cost>| {
            all.values().fold((0, 0), |(d, b), (x, y)| (d + x, b + y))
        };
        let (ours, full) = (cost(&changes, &ours), cost(&of_specs, &full));
        let ((deliveries, bytes), (full_deliveries, full_bytes)) = (sum(&ours), sum(&full));
        println!(
            "{nodes} nodes: {deliveries} deliveries, {bytes} bytes per move, and at most one list of {read} bytes asked for; a full table on every node: {full_deliveries}, {full_bytes} (simulated)"
        );
        let parts: BTreeMap<&str, Value> =
            ours.iter().map(|(who, (d, b))| (*who, json!({"deliveries": d, "bytes": b}))).collect();
        table.push(json!({"nodes": nodes, "deliveries": deliveries, "bytes": bytes,
            "full_table_deliveries": full_deliveries, "full_table_bytes": full_bytes,
            "parts": parts, "reads": 1, "read_bytes": read}));
        costs.push((deliveries, bytes));
        assert!(nodes < 100 || (deliveries < full_deliveries && bytes < full_bytes), "{nodes}");
    }
    assert!(costs.windows(2).all(|w| w[0] == w[1]), "{costs:?}");
    result(&json!({"watch_per_move": table}));
}
