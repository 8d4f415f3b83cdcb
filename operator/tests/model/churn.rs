//! Pods that come and go on nodes that come and go, round after round: what is left of them.

use std::time::Duration;

use aero_elements::faults::{Level, held};
use k8s_openapi::jiff::SignedDuration;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::driver::{Driver, in_virtual_time, outcome};
use super::faults::Faults;
use super::memory;
use super::scale::{large, told};
use super::store::Key;
use super::world::Shared;

/// How much.
#[derive(Debug, Clone, Copy)]
struct Size {
    rounds: usize,
    nodes: usize,
    pods_per_node: usize,
    namespaces: usize,
}

impl Size {
    fn pods(&self) -> usize {
        self.nodes * self.pods_per_node
    }
}

/// From the end of the nodes until nothing is left of their pods at the latest. Their prefixes are
/// kept for 20 s and cool for 30 s.
const BOUND: Duration = Duration::from_secs(600);

/// For how long a node lives; longer where it takes longer until its pods have their prefixes. What
/// is left of it does not depend on this, and what is computed meanwhile does.
const LIFE: Duration = Duration::from_secs(60);

/// A client in each namespace.
fn client(driver: &Driver, namespace: &str) {
    let spec = json!({"podSelector": {"matchLabels": {"app": "dep"}},
        "linkRef": {"name": "default"}, "families": ["IPv6"], "keepFor": "20s", "coolDown": "30s"});
    let object = json!({"kind": "AeroClient", "apiVersion": "aerolink.dev/v1alpha1", "spec": spec});
    driver.create("aeroclients", namespace, "dep", object);
}

fn node(driver: &Driver, round: usize, n: usize) {
    let address = format!("10.{}.{}.{}", round % 250, n / 250, n % 250);
    let status = json!({"addresses": [{"type": "InternalIP", "address": address}]});
    let object = json!({"kind": "Node", "apiVersion": "v1", "status": status});
    driver.create("nodes", "", &format!("r{round}-n{n}"), object);
}

fn pod(driver: &Driver, namespace: &str, name: &str, node: &str) {
    let owner = json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "dep", "uid": "o",
        "controller": true}]);
    let object = json!({"kind": "Pod", "apiVersion": "v1",
        "metadata": {"labels": {"app": "dep"}, "ownerReferences": owner},
        "spec": {"containers": [], "nodeName": node}, "status": {"phase": "Running"}});
    driver.create("pods", namespace, name, object);
}

fn count(shared: &Shared, plural: &str, fits: impl Fn(&serde_json::Value) -> bool) -> usize {
    shared.lock().store.list(plural, "").filter(|(_, o)| fits(o)).count()
}

/// Forgets what the model keeps for its own sake.
fn forget_history(shared: &Shared) {
    let mut world = shared.lock();
    world.history = Vec::new();
    world.counts = Default::default();
    world.store.compact();
}

/// What one round left.
#[derive(Debug)]
struct Left {
    /// From the end of the nodes until no mapping was left.
    clean: Duration,
    /// Bytes held with all pods there, and when all was over.
    full: i64,
    empty: i64,
}

async fn round(shared: &Shared, driver: &Driver, size: Size, n: usize) -> Left {
    let namespace = |pod: usize| format!("ns-{}", pod % size.namespaces);
    let name = |pod: usize| format!("dep-{n}-{pod}");
    for i in 0..size.nodes {
        node(driver, n, i);
    }
    let began = Instant::now();
    for i in 0..size.pods() {
        pod(driver, &namespace(i), &name(i), &format!("r{n}-n{}", i % size.nodes));
    }
    while count(shared, "pods", |p| told(p).is_some()) < size.pods() {
        sleep(Duration::from_secs(1)).await;
        assert!(began.elapsed() < BOUND, "round {n}: not all pods have a prefix");
    }
    let told = began.elapsed();
    sleep(LIFE.saturating_sub(told)).await;
    forget_history(shared);
    let full = memory::live();
    let gone = Instant::now();
    for i in 0..size.nodes {
        driver.remove(&Key::new("nodes", "", &format!("r{n}-n{i}")));
    }
    for i in 0..size.pods() {
        driver.remove(&Key::new("pods", &namespace(i), &name(i)));
    }
    while count(shared, "acpmappings", |_| true) > 0 {
        sleep(Duration::from_secs(1)).await;
        assert!(gone.elapsed() < BOUND, "round {n}: orphans");
    }
    let clean = gone.elapsed();
    sleep(Duration::from_secs(60)).await;
    forget_history(shared);
    let left = Left { clean, full, empty: memory::live() };
    println!("round {n}: all told after {} s; {left:?}", told.as_secs());
    left
}

fn churn(size: Size) -> (Vec<Left>, i64) {
    in_virtual_time(async {
        let (shared, driver) = large(25, Faults::none());
        for n in 0..size.namespaces {
            client(&driver, &format!("ns-{n}"));
        }
        {
            let mut world = shared.lock();
            // The checker looks at all pods after every change; here the end is what counts.
            world.checker.off = true;
            // The client library remembers Events that were taken for six minutes of the machine's
            // clock, which does not pass here.
            world.no_events = true;
        }
        let operator = shared.start(SignedDuration::ZERO, None);
        sleep(Duration::from_secs(2)).await;
        let mut all = Vec::new();
        for n in 0..size.rounds {
            all.push(round(&shared, &driver, size, n).await);
        }
        // What goes with the operator was the operator's.
        let before = memory::live();
        shared.crash(operator, "for the test");
        sleep(Duration::from_secs(1)).await;
        let operator = before - memory::live();
        outcome(&shared).expect("churn");
        (all, operator)
    })
}

#[test]
fn pods_on_short_lived_nodes_leave_no_orphans_and_no_memory_round_after_round() {
    let mut case = held(&["F25"], Level::Model);
    let size = Size { rounds: 10, nodes: 250, pods_per_node: 20, namespaces: 50 };
    let (rounds, operator) = churn(size);
    // The first round fills what is kept for good: each prefix's largest epoch.
    let growth = |of: fn(&Left) -> i64| {
        let all: Vec<i64> = rounds[1..].iter().map(of).collect();
        all.iter().max().expect("some") - all.iter().min().expect("some")
    };
    let (full, empty) = (growth(|l| l.full), growth(|l| l.empty));
    let percent = |bytes: i64| 100.0 * bytes as f64 / operator as f64;
    let slowest = rounds.iter().map(|l| l.clean).max().expect("some");
    let text = format!(
        "{} rounds of {} pods on {} nodes that live for a minute: no orphan {} s after the nodes' end (bound {} s); the operator's memory at rest, {} KiB, differs by {:.1} % from the second round to the last, and by {:.1} % with all pods there (bound 10 %)",
        size.rounds,
        size.pods(),
        size.nodes,
        slowest.as_secs(),
        BOUND.as_secs(),
        operator / 1024,
        percent(empty),
        percent(full),
    );
    println!("{text}");
    assert!(percent(full) < 10.0 && percent(empty) < 10.0, "{full} and {empty} of {operator}");
    case.figure(text);
}
