//! Garbage collection overlaps with the starts of pods, step by step: each request, each answer and
//! each event of a watch is let go at a moment that the test draws.

use std::collections::HashSet;
use std::time::Duration;

use aero_elements::faults::{Level, held};
use k8s_openapi::jiff::SignedDuration;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};
use tokio::sync::Notify;
use tokio::time::{Instant, sleep, timeout_at};

use super::driver::{Driver, Kind, in_virtual_time, outcome};
use super::faults::Faults;
use super::gates::{Gates, Step};
use super::store::Key;
use super::world::{NS, Shared};

/// Pods that go and come at a time, each with a mapping of its own.
const PODS: usize = 8;
/// Requests and events take no time: gates do.
const NO_TIME: Faults = Faults {
    refused: 0.0,
    lost: 0.0,
    touched: 0.0,
    crash: 0.0,
    slow_watch: 0.0,
    latency: Duration::ZERO,
};

fn name(n: usize) -> String {
    format!("web-{n}")
}

/// Whether all pods are there and told a prefix, and the table says the same.
fn all_served(shared: &Shared) -> bool {
    let world = shared.lock();
    (0..PODS).all(|n| {
        let Some(pod) = world.store.get(&Key::new("pods", NS, &name(n))) else { return false };
        let (uid, told) = (&pod["metadata"]["uid"], &pod["metadata"]["annotations"]);
        let held = |m: &Value| {
            m["spec"]["holder"]["podUid"] == *uid
                && m["spec"]["prefix"] == told["aerolink.dev/prefix"]
                && m["status"]["phase"] == "Bound"
        };
        told["aerolink.dev/pod-uid"] == *uid
            && world.store.list("acpmappings", "").any(|(_, m)| held(m))
    })
}

/// What garbage collection does with a mapping, one after the other, as its requests say it.
const PHASES: [&str; 3] =
    ["PATCH acpmappings is kept", "PATCH acpmappings cools", "DELETE acpmappings"];
const CREATED: &str = "is created";

/// Lets one step after the other go until all pods are served and nobody waits. Says when the pass
/// begins that does such a thing to the first mapping, and returns how many steps went before.
async fn drive(shared: &Shared, rng: &mut StdRng, phase: &str, begun: &Notify) -> usize {
    let mut mark = None;
    let arrivals = shared.lock().gates.as_ref().expect("there are gates").arrivals();
    let limit = Instant::now() + Duration::from_secs(120);
    loop {
        // Time passes only when everybody waits for a gate or for a time.
        sleep(Duration::from_millis(1)).await;
        let waiting = {
            let world = shared.lock();
            let gates = world.gates.as_ref().expect("there are gates");
            if mark.is_none() && gates.any(|s| s.what.starts_with(phase)) {
                mark = Some(gates.went.len());
                begun.notify_waiters();
            }
            gates.len()
        };
        if waiting == 0 {
            let failed = shared.lock().checker.breach.is_some();
            if failed || all_served(shared) {
                return mark.unwrap_or(0);
            }
            assert!(Instant::now() < limit, "not all pods are served");
            let _ = timeout_at(limit, arrivals.notified()).await;
        } else if rng.random_bool(0.01) {
            sleep(Duration::from_millis(rng.random_range(1..1500))).await;
        } else {
            let next = rng.random_range(0..waiting);
            shared.lock().gates.as_mut().expect("there are gates").let_go(next);
        }
    }
}

/// All pods go, and come back while garbage collection goes through their mappings to take the
/// holders off, or to give them up, or to delete them. Returns the orders in which its steps and
/// those of each pod's start went, where the two were at one mapping at one time.
async fn round(shared: &Shared, driver: &Driver, rng: &mut StdRng) -> Vec<Vec<String>> {
    for n in 0..PODS {
        driver.remove(&Key::new("pods", NS, &name(n)));
    }
    shared.lock().gates = Some(Gates::default());
    let (begun, phase) = (Notify::new(), PHASES[[0, 0, 1, 2][rng.random_range(0..4)]]);
    let start = |n| {
        let begins = begun.notified();
        async move {
            begins.await;
            shared.gate(&name(n), || CREATED.into()).await;
            driver.pod(&name(n), &name(n), true);
            shared.gate(&name(n), || "is scheduled".into()).await;
            driver.schedule(&name(n), "n1");
        }
    };
    let starts = futures::future::join_all((0..PODS).map(start));
    let mark = tokio::select! {
        biased;
        // When all have started there is still something to drive.
        mark = async { starts.await; std::future::pending().await } => mark,
        mark = drive(shared, rng, phase, &begun) => mark,
    };
    let went = shared.lock().gates.take().expect("there are gates").went;
    // What comes after the last start may end in its own way.
    sleep(Duration::from_secs(3)).await;
    (0..PODS).filter_map(|n| overlap(&went[mark..], &name(n))).collect()
}

/// Of some steps those of one identity until its pod is told, and all of the pass of garbage
/// collection, which goes from mapping to mapping; `None` if it did nothing to this one's mapping
/// after the pod was created.
fn overlap(went: &[Step], of: &str) -> Option<Vec<String>> {
    let collects = |s: &Step| PHASES.iter().any(|p| s.what.starts_with(p));
    let both: Vec<&Step> = went.iter().filter(|s| s.of == of || collects(s)).collect();
    let created = both.iter().position(|s| s.of == of && s.what == CREATED)?;
    let told = |s: &&Step| {
        s.of == of && s.what.starts_with("PATCH pods") && s.what.ends_with("is answered")
    };
    let end = created + both[created..].iter().position(told)?;
    let overlaps = both[created..end].iter().any(|s| s.of == of && collects(s));
    let text = |s: &&Step| {
        let whose = if s.of == of { "" } else { "of another: " };
        format!("{whose}{}", s.what)
    };
    overlaps.then(|| both[..=end].iter().map(text).collect())
}

#[test]
fn garbage_collection_that_overlaps_with_starts_of_pods_frees_no_live_claim() {
    const WANTED: usize = 10_000;
    let mut case = held(&["F03"], Level::Model);
    let (mut seen, mut overlaps, mut rounds) = (HashSet::new(), 0, 0);
    for seed in 0u64.. {
        in_virtual_time(async {
            let kind = Kind { faults: NO_TIME, ..Kind::of(seed) };
            let shared = Shared::new(seed, NO_TIME);
            let driver = Driver::new(shared.clone(), &kind);
            shared.lock().checker.strict = true;
            shared.lock().no_events = true;
            shared.start(SignedDuration::ZERO, None);
            for n in 0..PODS {
                // A client for each, so that a round of the operator is about one.
                driver.client(&name(n), &name(n));
                driver.edit("is brief", &Key::new("aeroclients", NS, &name(n)), |c| {
                    c["spec"]["keepFor"] = json!("1s");
                    c["spec"]["coolDown"] = json!("2s");
                });
                driver.pod(&name(n), &name(n), true);
                driver.schedule(&name(n), "n1");
            }
            sleep(Duration::from_secs(3)).await;
            let mut rng = StdRng::seed_from_u64(seed ^ 0x6a7e);
            for _ in 0..50 {
                let orders = round(&shared, &driver, &mut rng).await;
                rounds += 1;
                overlaps += orders.len();
                seen.extend(orders);
                let mut world = shared.lock();
                if world.checker.breach.is_some() || seen.len() >= WANTED {
                    break;
                }
                world.history.clear();
                world.store.compact();
            }
            outcome(&shared).expect(&format!("overlaps, seed {seed}"));
        });
        if seen.len() >= WANTED {
            break;
        }
        assert!(seed < 100, "only {} interleavings", seen.len());
    }
    let text = format!(
        "{} distinct interleavings of a collection's and a start's steps (of {overlaps} in {rounds} rounds of {PODS} pods): no claim of a live pod freed",
        seen.len()
    );
    println!("{text}");
    case.figure(text);
}
