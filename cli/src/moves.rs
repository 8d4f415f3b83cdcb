//! `kubectl aero moves`: moves as the Servers saw them, with the time that each left a prefix
//! without a place to send packets to.

use std::collections::{BTreeMap, BTreeSet};

use aero_telemetry::debug::{MoveReport, ServerReport};
use k8s_openapi::jiff::Timestamp;
use serde::Serialize;

use crate::observe::System;
use crate::report::millis;

/// A move, as all Servers together saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Move {
    /// When the last Server had a place to send to again.
    pub at: String,
    /// `namespace/client/identity`.
    pub identity: String,
    /// The prefix.
    pub prefix: String,
    /// The former node.
    pub from: String,
    /// The new node.
    pub to: String,
    /// The new holder's epoch.
    pub epoch: u64,
    /// Milliseconds without a place, by Server.
    pub gap_ms: BTreeMap<String, u64>,
}

impl Move {
    /// The longest gap of all Servers.
    pub fn longest(&self) -> u64 {
        self.gap_ms.values().copied().max().unwrap_or(0)
    }

    /// One line for people.
    pub fn text(&self) -> String {
        #[allow(clippy::cast_precision_loss)] // gaps are far below 2^52 ms
        let gap = millis(self.longest() as f64);
        format!(
            "{}  {:<28} {:<24} {} -> {}  epoch {}  gap {gap}",
            self.at, self.identity, self.prefix, self.from, self.to, self.epoch
        )
    }
}

/// The moves that all Servers remember, oldest first.
pub fn moves(system: &System) -> Vec<Move> {
    let pages = system.server_reports.iter().filter_map(|(pod, p)| Some((pod, p.as_ref().ok()?)));
    merge(system, pages)
}

fn merge<'a>(
    system: &System,
    pages: impl Iterator<Item = (&'a String, &'a ServerReport)>,
) -> Vec<Move> {
    let mut all: BTreeMap<(u64, String, u64), Move> = BTreeMap::new();
    let mut times: BTreeMap<(String, u64), u64> = BTreeMap::new();
    let mut seen: Vec<(&String, &MoveReport)> = Vec::new();
    for (pod, page) in pages {
        for m in &page.moves {
            let at = times.entry((m.prefix.clone(), m.epoch)).or_default();
            *at = (*at).max(m.at_ms);
            seen.push((pod, m));
        }
    }
    let node = |address: &str| system.node_of(address).unwrap_or(address).to_string();
    for (pod, m) in seen {
        let at = times.get(&(m.prefix.clone(), m.epoch)).copied().unwrap_or(m.at_ms);
        let entry = all.entry((at, m.prefix.clone(), m.epoch)).or_insert_with(|| Move {
            at: clock(at),
            identity: m.identity.clone(),
            prefix: m.prefix.clone(),
            from: node(&m.from),
            to: node(&m.to),
            epoch: m.epoch,
            gap_ms: BTreeMap::new(),
        });
        entry.gap_ms.insert(pod.clone(), m.gap_ms);
    }
    all.into_values().collect()
}

/// A time in UTC, to the second.
fn clock(ms: u64) -> String {
    let at = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    at.map(|t| format!("{t:.0}")).unwrap_or_default()
}

/// Which moves were shown.
#[derive(Debug, Default)]
pub struct Shown(BTreeSet<(String, u64)>);

impl Shown {
    /// Those of `all` that were not shown yet. One that not every one of `servers` Servers has
    /// seen is given until the next look.
    pub fn new_of(
        &mut self,
        all: Vec<Move>,
        servers: usize,
        waited: &mut BTreeSet<(String, u64)>,
    ) -> Vec<Move> {
        let mut new = Vec::new();
        for m in all {
            let key = (m.prefix.clone(), m.epoch);
            if self.0.contains(&key) || (m.gap_ms.len() < servers && waited.insert(key.clone())) {
                continue;
            }
            self.0.insert(key);
            new.push(m);
        }
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::system;

    fn seen(at_ms: u64, epoch: u64, gap_ms: u64) -> MoveReport {
        MoveReport {
            at_ms,
            prefix: "2001:db8:a:1::/64".into(),
            identity: "default/web/web-0".into(),
            from: "192.0.2.11:8061".into(),
            to: "192.0.2.12:8061".into(),
            epoch,
            gap_ms,
        }
    }

    fn example() -> System {
        let mut s = system();
        for (pod, gap) in [("aero-server-a", 200), ("aero-server-b", 212)] {
            let page = s.server_reports.get_mut(pod).unwrap().as_mut().unwrap();
            page.moves = vec![seen(1_800_000_000_000 + gap, 5, gap)];
        }
        s
    }

    #[test]
    fn what_two_servers_saw_of_one_move_is_one_move_with_both_gaps() {
        let all = moves(&example());
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].from.as_str(), all[0].to.as_str()), ("n1", "n2"));
        assert_eq!(all[0].longest(), 212);
        let text = all[0].text();
        assert!(text.starts_with("2027-01-15T08:00:00Z  default/web/web-0"), "{text}");
        assert!(text.ends_with("n1 -> n2  epoch 5  gap 212 ms"), "{text}");
    }

    #[test]
    fn a_move_is_shown_once_and_waits_one_look_for_the_other_server() {
        let mut s = example();
        s.server_reports.get_mut("aero-server-b").unwrap().as_mut().unwrap().moves.clear();
        let (mut shown, mut waited) = (Shown::default(), BTreeSet::new());
        assert!(shown.new_of(moves(&s), 2, &mut waited).is_empty());
        assert_eq!(shown.new_of(moves(&s), 2, &mut waited).len(), 1);
        assert!(shown.new_of(moves(&s), 2, &mut waited).is_empty());
    }
}
