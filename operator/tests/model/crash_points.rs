//! The operator dies at each single request, before it is carried out and after.

use std::time::Duration;

use aero_elements::faults::{Level, held};
use k8s_openapi::jiff::SignedDuration;
use serde_json::json;
use tokio::time::sleep;

use super::driver::{Driver, Kind, in_virtual_time, outcome};
use super::faults::Faults;
use super::store::Key;
use super::world::{NS, Shared};

/// Seconds within which an operator that comes anew has made everything whole.
const BOUND: u64 = 60;

/// One allocation, one move and one release; the operator dies at request `at`. Tells whether it
/// lived to see that many.
fn dies(at: u64, after: bool) -> bool {
    in_virtual_time(async {
        let kind = Kind { faults: Faults::none(), ..Kind::of(at) };
        let shared = Shared::new(kind.seed, kind.faults.clone());
        let driver = Driver::new(shared.clone(), &kind);
        driver.client("web", "web");
        driver.client("dep", "dep");
        let first = shared.start(SignedDuration::ZERO, Some((at, after)));
        sleep(Duration::from_secs(2)).await;
        for (name, app, stateful) in [("web-0", "web", true), ("dep-a", "dep", false)] {
            driver.pod(name, app, stateful);
            driver.schedule(name, "n1");
        }
        sleep(Duration::from_secs(5)).await;
        // A move.
        driver.remove(&Key::new("pods", NS, "web-0"));
        driver.pod("web-0", "web", true);
        driver.schedule("web-0", "n2");
        sleep(Duration::from_secs(5)).await;
        // Releases, of a pod that comes back and of one that does not; and keepFor and coolDown end.
        driver.remove(&Key::new("pods", NS, "web-0"));
        driver.remove(&Key::new("pods", NS, "dep-a"));
        sleep(Duration::from_secs(15)).await;
        driver.pod("web-0", "web", true);
        driver.schedule("web-0", "n3");
        sleep(Duration::from_secs(60)).await;
        let died = !shared.alive().contains(&first);
        if died {
            // Long after, another comes.
            shared.start(SignedDuration::ZERO, None);
            sleep(Duration::from_secs(5)).await;
        }
        driver.comes_to_rest().await;
        // The slot's keepFor is 20 s and its coolDown 30 s; nobody wants it any more.
        sleep(Duration::from_secs(50 + BOUND)).await;
        {
            let mut guard = shared.lock();
            let world = &mut *guard;
            world.checker.no_orphans(&world.store);
        }
        let when = if after { "after" } else { "before" };
        outcome(&shared).expect(&format!("dies {when} request {at}"));
        died
    })
}

#[test]
fn wherever_the_operator_dies_the_next_one_makes_it_whole_within_a_minute() {
    let mut case = held(&["F06"], Level::Model);
    let mut at = 1;
    while dies(at, false) | dies(at, true) {
        at += 1;
    }
    assert!(at > 40, "only {at} requests: the history is too short to say anything");
    let text = format!(
        "died before and after each of {} requests; nothing twice, no orphan {BOUND} s later",
        at - 1
    );
    println!("{text}");
    case.figure(text);
}

#[test]
fn an_operator_that_was_away_while_pods_went_and_their_prefix_was_asked_for_gives_it_once() {
    let _case = held(&["F05"], Level::Model);
    in_virtual_time(async {
        let kind = Kind { faults: Faults::none(), ..Kind::of(5) };
        let shared = Shared::new(kind.seed, kind.faults.clone());
        let driver = Driver::new(shared.clone(), &kind);
        driver.client("web", "web");
        let first = shared.start(SignedDuration::ZERO, None);
        driver.pod("web-0", "web", true);
        driver.schedule("web-0", "n1");
        sleep(Duration::from_secs(5)).await;
        let told = |name: &str, what: &str| {
            let world = shared.lock();
            let pod = world.store.get(&Key::new("pods", NS, name)).expect("it is there").clone();
            pod["metadata"]["annotations"][format!("aerolink.dev/{what}").as_str()].clone()
        };
        let prefix = told("web-0", "prefix");
        shared.crash(first, "for the test");
        // While no operator runs: the pod goes and comes, and another client asks for its prefix.
        driver.remove(&Key::new("pods", NS, "web-0"));
        driver.client("thief", "db");
        driver.edit("asks", &Key::new("aeroclients", NS, "thief"), |c| {
            c["spec"]["prefixes"] = json!([prefix]);
        });
        driver.pod("db-0", "db", true);
        driver.schedule("db-0", "n2");
        driver.pod("web-0", "web", true);
        driver.schedule("web-0", "n3");
        sleep(Duration::from_secs(30)).await;
        shared.start(SignedDuration::ZERO, None);
        sleep(Duration::from_secs(5)).await;
        assert_eq!(told("web-0", "prefix"), prefix);
        let refused = told("db-0", "refused").as_str().unwrap_or_default().to_string();
        assert!(refused.starts_with("PrefixHeld") && refused.contains("web-0"), "{refused}");
        let thief = shared.lock().store.get(&Key::new("aeroclients", NS, "thief")).cloned();
        let conditions = thief.expect("it is there")["status"]["conditions"].to_string();
        assert!(conditions.contains("PrefixHeld") && conditions.contains("web-0"), "{conditions}");
        driver.comes_to_rest().await;
        outcome(&shared).expect("asked for while away");
    });
}

#[test]
fn a_prefix_rests_for_its_cool_down_also_over_a_restart() {
    let mut case = held(&["F20"], Level::Model);
    let text = in_virtual_time(async {
        let kind = Kind { faults: Faults::none(), ..Kind::of(6) };
        let shared = Shared::new(kind.seed, kind.faults.clone());
        let driver = Driver::new(shared.clone(), &kind);
        driver.client("web", "web");
        let key = Key::new("aeroclients", NS, "web");
        driver.edit("keeps nothing", &key, |c| {
            c["spec"]["keepFor"] = json!("0s");
            c["spec"]["coolDown"] = json!("180s");
        });
        let first = shared.start(SignedDuration::ZERO, None);
        driver.pod("web-0", "web", true);
        driver.schedule("web-0", "n1");
        sleep(Duration::from_secs(5)).await;
        driver.remove(&Key::new("pods", NS, "web-0"));
        let gone = tokio::time::Instant::now();
        // It asks for the prefix that web-0 had.
        driver.client("thief", "db");
        driver.edit("asks", &Key::new("aeroclients", NS, "thief"), |c| {
            c["spec"]["prefixes"] = json!(["2001:db8:a:1::/64"]);
        });
        driver.pod("db-0", "db", true);
        driver.schedule("db-0", "n2");
        sleep(Duration::from_secs(60)).await;
        shared.crash(first, "in the cool-down");
        sleep(Duration::from_secs(20)).await;
        shared.start(SignedDuration::ZERO, None);
        let given = loop {
            sleep(Duration::from_millis(500)).await;
            let world = shared.lock();
            let pod = world.store.get(&Key::new("pods", NS, "db-0")).expect("it is there");
            if pod["metadata"]["annotations"]["aerolink.dev/prefix"] == "2001:db8:a:1::/64" {
                break gone.elapsed();
            }
        };
        assert!(given >= Duration::from_secs(180), "given again after {given:?}");
        assert!(given <= Duration::from_secs(200), "given again only after {given:?}");
        outcome(&shared).expect("cool-down");
        format!(
            "operator restarted within the cool-down: given to another after {:.1} s (bound 180 s)",
            given.as_secs_f64()
        )
    });
    println!("{text}");
    case.figure(text);
}
