//! Random histories.

use std::ops::Range;

use aero_elements::faults::{Level, held};
use k8s_openapi::jiff::SignedDuration;

use super::driver::{Kind, history};
use super::faults::Faults;

/// The seeds to run: those asked for by the environment, else the usual ones.
fn seeds(usual: Range<u64>) -> Range<u64> {
    let Ok(text) = std::env::var("AERO_MODEL_SEEDS") else { return usual };
    let number = |t: &str| t.parse().expect("AERO_MODEL_SEEDS is a number or a range 0..100");
    match text.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None => number(&text)..number(&text) + 1,
    }
}

/// Runs a kind of history under many seeds and sums up.
fn all(what: &str, usual: Range<u64>, kind: impl Fn(u64) -> Kind) -> String {
    let (mut runs, mut steps, mut crashes, mut conflicts, mut seconds) = (0, 0, 0, 0, 0);
    for seed in seeds(usual) {
        let outcome = history(&kind(seed)).expect(&format!("{what}, seed {seed}"));
        runs += 1;
        steps += outcome.counts.steps;
        crashes += outcome.counts.crashes;
        conflicts += outcome.counts.conflicts;
        seconds += outcome.millis / 1000;
    }
    let text = format!(
        "{what}: {runs} histories of {} s on average, {steps} changes of the store, {crashes} crashes, {conflicts} conflicts, no rule broken",
        seconds / runs.max(1)
    );
    println!("{text}");
    text
}

#[test]
fn one_seed_gives_one_history() {
    let kind = Kind { two: true, restore: true, ..Kind::of(7) };
    let (first, second) = (history(&kind), history(&kind));
    for (n, (a, b)) in first.history.iter().zip(&second.history).enumerate() {
        assert_eq!(a, b, "line {n}");
    }
    assert_eq!(first, second);
    assert_ne!(first.history, history(&Kind { seed: 8, ..kind }).history);
}

/// Seeds under which an earlier operator broke a rule.
#[test]
fn what_was_broken_once_is_not_broken_again() {
    // An epoch given twice; a mapping never said to be Bound; a pod told nothing, for the client was
    // refused as a whole; a live pod's prefix retired as the wrong one of two.
    for seed in [0, 1, 2, 3, 13, 84, 85, 94] {
        history(&Kind::of(seed)).expect(&format!("one operator, seed {seed}"));
    }
    // A stale leader gave a prefix back to a pod that was gone.
    for seed in [1000, 1007, 1013, 1023, 1060] {
        history(&Kind { two: true, ..Kind::of(seed) }).expect(&format!("two, seed {seed}"));
    }
    // Annotations of a client that went while no operator was there.
    for seed in [3007, 3030, 3040] {
        let kind = Kind { restore: true, two: seed % 2 == 0, ..Kind::of(seed) };
        history(&kind).expect(&format!("put back, seed {seed}"));
    }
}

#[test]
fn in_a_quiet_world_every_rule_holds() {
    all("quiet", 0..10, |seed| Kind { faults: Faults::none(), ..Kind::of(seed) });
}

#[test]
fn whatever_fails_on_the_way_no_rule_is_broken() {
    let mut case = held(&["F03"], Level::Model);
    case.figure(all("one operator", 0..100, Kind::of));
}

#[test]
fn two_operators_that_both_lead_break_no_rule() {
    let mut case = held(&["F17"], Level::Model);
    let two = |seed| Kind { two: true, ..Kind::of(seed) };
    case.figure(all("two operators", 1000..1080, two));
}

#[test]
fn clocks_that_differ_by_ten_minutes_do_not_change_who_holds() {
    let mut case = held(&["A3"], Level::Model);
    let skew = SignedDuration::from_mins(10);
    let differ = |seed| Kind { two: true, skew, ..Kind::of(seed) };
    case.figure(all("operators' clocks differ", 2000..2015, differ));
}

#[test]
fn a_store_that_is_put_back_to_an_older_state_leads_to_no_epoch_twice() {
    let mut case = held(&["F13"], Level::Model);
    let restored = |seed| Kind { restore: true, two: seed % 2 == 0, ..Kind::of(seed) };
    case.figure(all("store put back", 3000..3040, restored));
}
