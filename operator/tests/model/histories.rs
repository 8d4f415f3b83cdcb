//! Random histories.

use std::ops::Range;

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
fn all(what: &str, usual: Range<u64>, kind: impl Fn(u64) -> Kind) {
    let (mut runs, mut steps, mut crashes, mut conflicts, mut seconds) = (0, 0, 0, 0, 0);
    for seed in seeds(usual) {
        let outcome = history(&kind(seed)).expect(&format!("{what}, seed {seed}"));
        runs += 1;
        steps += outcome.counts.steps;
        crashes += outcome.counts.crashes;
        conflicts += outcome.counts.conflicts;
        seconds += outcome.millis / 1000;
    }
    println!(
        "{what}: {runs} histories of {} s on average, {steps} changes, {crashes} crashes, {conflicts} conflicts",
        seconds / runs.max(1)
    );
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

#[test]
fn in_a_quiet_world_every_rule_holds() {
    all("quiet", 0..20, |seed| Kind { faults: Faults::none(), ..Kind::of(seed) });
}

#[test]
fn whatever_fails_on_the_way_no_rule_is_broken() {
    all("one operator", 0..100, Kind::of);
}

#[test]
fn two_operators_that_both_lead_break_no_rule() {
    all("two operators", 1000..1100, |seed| Kind { two: true, ..Kind::of(seed) });
}

#[test]
fn clocks_that_differ_by_ten_minutes_do_not_change_who_holds() {
    let skew = SignedDuration::from_mins(10);
    all("clocks differ", 2000..2020, |seed| Kind { two: true, skew, ..Kind::of(seed) });
}

#[test]
fn a_store_that_is_put_back_to_an_older_state_leads_to_no_epoch_twice() {
    let restored = |seed| Kind { restore: true, two: seed % 2 == 0, ..Kind::of(seed) };
    all("restored", 3000..3060, restored);
}
