//! Pods that start again and again, and pods whose DEL never comes. The operator hears of neither
//! sandboxes nor DELs: what it gives and frees follows the pods' objects alone.

use std::collections::BTreeSet;
use std::time::Duration;

use aero_elements::faults::{Level, held};
use k8s_openapi::jiff::SignedDuration;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::driver::{Driver, Kind, in_virtual_time, outcome};
use super::faults::Faults;
use super::store::Key;
use super::world::{NS, Shared};

fn quiet(seed: u64) -> (Shared, Driver) {
    let kind = Kind { faults: Faults::none(), ..Kind::of(seed) };
    let shared = Shared::new(kind.seed, kind.faults.clone());
    let driver = Driver::new(shared.clone(), &kind);
    (shared, driver)
}

/// Prefixes of all mappings, also of those that cool.
fn in_use(shared: &Shared) -> BTreeSet<String> {
    let world = shared.lock();
    let prefix = |m: &serde_json::Value| m["spec"]["prefix"].as_str().map(String::from);
    world.store.list("acpmappings", "").filter_map(|(_, m)| prefix(m)).collect()
}

fn prefix_of(shared: &Shared, pod: &str) -> Option<String> {
    let world = shared.lock();
    let pod = world.store.get(&Key::new("pods", NS, pod))?;
    let annotations = &pod["metadata"]["annotations"];
    let ours = annotations["aerolink.dev/pod-uid"] == pod["metadata"]["uid"];
    annotations["aerolink.dev/prefix"].as_str().filter(|_| ours).map(String::from)
}

/// Waits until a pod has been told its prefix.
async fn told(shared: &Shared, pod: &str) -> String {
    let began = Instant::now();
    loop {
        if let Some(prefix) = prefix_of(shared, pod) {
            return prefix;
        }
        assert!(began.elapsed() < Duration::from_secs(60), "{pod} is told nothing");
        sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn a_crash_loop_uses_as_many_prefixes_as_there_are_identities() {
    const ATTEMPTS: usize = 100;
    let mut case = held(&["F10"], Level::Model);
    let most = in_virtual_time(async {
        let (shared, driver) = quiet(110);
        driver.client("web", "web");
        driver.client("dep", "dep");
        shared.start(SignedDuration::ZERO, None);
        driver.pod("web-0", "web", true);
        driver.schedule("web-0", "n1");
        let mut dep = "dep-x".to_string();
        driver.pod(&dep, "dep", false);
        driver.schedule(&dep, "n2");
        let first = (told(&shared, "web-0").await, told(&shared, &dep).await);
        let both = BTreeSet::from([first.0.clone(), first.1.clone()]);
        let mut most = 0;
        for n in 0..ATTEMPTS {
            // Within one pod an attempt is another sandbox: its status tells of another address.
            for (name, state) in [("web-0", "Pending"), ("web-0", "Running")] {
                driver.edit("has another sandbox", &Key::new("pods", NS, name), |p| {
                    p["status"]["phase"] = json!(state);
                    p["status"]["podIP"] = json!(format!("10.244.0.{n}"));
                });
            }
            // Every other attempt is another pod: of the same name, or of a new one.
            if n % 2 == 0 {
                driver.remove(&Key::new("pods", NS, "web-0"));
                driver.pod("web-0", "web", true);
                driver.schedule("web-0", ["n1", "n3"][n / 2 % 2]);
                driver.remove(&Key::new("pods", NS, &dep));
                dep = format!("dep-x{n}");
                driver.pod(&dep, "dep", false);
                driver.schedule(&dep, "n2");
            }
            let now = (told(&shared, "web-0").await, told(&shared, &dep).await);
            assert_eq!(now, first, "attempt {n}");
            sleep(Duration::from_secs(1)).await;
            let used = in_use(&shared);
            assert_eq!(used, both, "attempt {n}");
            most = most.max(used.len());
        }
        driver.comes_to_rest().await;
        outcome(&shared).expect("crash loop");
        most
    });
    let text = format!(
        "{ATTEMPTS} attempts of 2 identities, half of them as new pods: at most {most} prefixes in use"
    );
    println!("{text}");
    case.figure(text);
}

#[test]
fn without_a_del_a_prefix_that_is_not_kept_is_freed_and_a_kept_one_is_kept() {
    let mut case = held(&["F08"], Level::Model);
    let freed = in_virtual_time(async {
        let (shared, driver) = quiet(108);
        driver.client("web", "web");
        driver.client("dep", "dep");
        let keep = |name: &str, keep: &str| {
            driver.edit("is kept for", &Key::new("aeroclients", NS, name), |c| {
                c["spec"]["keepFor"] = json!(keep);
                c["spec"]["coolDown"] = json!("30s");
            });
        };
        keep("web", "24h");
        keep("dep", "0s");
        shared.start(SignedDuration::ZERO, None);
        driver.pod("web-0", "web", true);
        driver.pod("dep-x", "dep", false);
        driver.schedule("web-0", "n1");
        driver.schedule("dep-x", "n1");
        let (kept, unkept) = (told(&shared, "web-0").await, told(&shared, "dep-x").await);
        // The node goes and takes its pods with it; nothing on it runs any more.
        driver.remove(&Key::new("nodes", "", "n1"));
        driver.remove(&Key::new("pods", NS, "web-0"));
        driver.remove(&Key::new("pods", NS, "dep-x"));
        let gone = Instant::now();
        while in_use(&shared).contains(&unkept) {
            sleep(Duration::from_millis(500)).await;
            assert!(gone.elapsed() < Duration::from_secs(60), "{unkept} is not freed");
        }
        let freed = gone.elapsed();
        assert!(freed >= Duration::from_secs(30), "freed within its cool-down: {freed:?}");
        // Long after, the kept one is there, and its identity gets it on another node.
        sleep(Duration::from_secs(23 * 3600)).await;
        assert_eq!(in_use(&shared), BTreeSet::from([kept.clone()]));
        driver.pod("web-0", "web", true);
        driver.schedule("web-0", "n2");
        assert_eq!(told(&shared, "web-0").await, kept);
        driver.comes_to_rest().await;
        outcome(&shared).expect("no DEL");
        freed
    });
    let text = format!(
        "node and pods gone: not kept, free after {:.1} s (30 s of them cool-down, bound 60 s); kept, given back after 23 h",
        freed.as_secs_f64()
    );
    println!("{text}");
    case.figure(text);
}
