//! `simulation.json`.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::checks::{Check, Violation};
use crate::clock::seconds;
use crate::scenario::{Outcome, Sample, Shape};
use crate::world::MESSAGES;

/// A violation with its seed.
#[derive(Debug, Serialize)]
pub struct Found {
    /// The seed that shows it.
    pub seed: u64,
    /// What it is.
    #[serde(flatten)]
    pub violation: Violation,
}

/// What all runs together have shown.
#[derive(Debug, Serialize)]
pub struct Summary {
    /// Nodes of each world.
    pub nodes: usize,
    /// Servers of each world.
    pub servers: usize,
    /// Clients of each world.
    pub clients: usize,
    /// How many seeds were run.
    pub seeds_run: usize,
    /// The first of them; the others follow it.
    pub first_seed: u64,
    /// Checks made, by invariant.
    pub invariants_checked: BTreeMap<String, u64>,
    /// Broken invariants; none is good.
    pub violations: Vec<Found>,
    /// Events handled.
    pub events: u64,
    /// Virtual seconds, all runs together.
    pub virtual_seconds: f64,
    /// Real seconds.
    pub wall_seconds: f64,
    /// Most memory of the process, in bytes.
    pub peak_memory: u64,
    /// Users' packets.
    pub data_packets: BTreeMap<&'static str, u64>,
    /// Control messages.
    pub messages: BTreeMap<&'static str, u64>,
    /// From the last fault until all reached each other: the longest, in seconds.
    pub longest_recovery_seconds: f64,
    /// The seed that took it.
    pub longest_recovery_seed: Option<u64>,
    /// State per node at the most Clients: entries.
    pub state_per_node: f64,
    /// State per Server at the most Clients: entries.
    pub state_per_server: f64,
    /// Control messages for one move at the most Clients; absent where moves were not measured.
    pub messages_per_move: Option<f64>,
    /// On the way up to all Clients: one row per step, averages over seeds.
    pub samples: Vec<Sample>,
}

/// Sums up.
pub fn summary(shape: &Shape, outcomes: &[Outcome], wall_seconds: f64) -> Summary {
    let sum = |f: &dyn Fn(&Outcome) -> u64| outcomes.iter().map(f).sum::<u64>();
    let samples = average(outcomes);
    let last = samples.last().copied().unwrap_or_default();
    Summary {
        nodes: shape.nodes,
        servers: shape.servers,
        clients: shape.clients,
        seeds_run: outcomes.len(),
        first_seed: outcomes.iter().map(|o| o.seed).min().unwrap_or(0),
        invariants_checked: Check::ALL
            .iter()
            .map(|c| (name(*c), sum(&|o| o.checked[*c as usize])))
            .collect(),
        violations: outcomes
            .iter()
            .filter_map(|o| o.violation.clone().map(|violation| Found { seed: o.seed, violation }))
            .collect(),
        events: sum(&|o| o.events),
        virtual_seconds: outcomes.iter().map(|o| seconds(o.virtual_time)).sum(),
        wall_seconds,
        peak_memory: peak_memory(),
        data_packets: ["sent", "delivered", "lost"]
            .iter()
            .enumerate()
            .map(|(i, what)| (*what, sum(&|o| o.data[i])))
            .chain([("direct", sum(&|o| o.direct))])
            .collect(),
        messages: MESSAGES
            .iter()
            .enumerate()
            .map(|(i, what)| (*what, sum(&|o| o.messages[i])))
            .collect(),
        longest_recovery_seconds: outcomes
            .iter()
            .filter_map(|o| o.recovery)
            .map(seconds)
            .fold(0.0, f64::max),
        longest_recovery_seed: outcomes
            .iter()
            .filter(|o| o.recovery.is_some())
            .max_by_key(|o| o.recovery)
            .map(|o| o.seed),
        state_per_node: last.entries_per_node,
        state_per_server: last.entries_per_server,
        messages_per_move: (shape.steps > 1).then_some(last.messages_per_move),
        samples,
    }
}

/// The name of an invariant in the report.
pub fn name(check: Check) -> String {
    let name = serde_json::to_value(check).ok();
    name.as_ref().and_then(|v| v.as_str()).unwrap_or_default().to_string()
}

#[allow(clippy::cast_precision_loss)] // a few thousand seeds
fn average(outcomes: &[Outcome]) -> Vec<Sample> {
    let steps = outcomes.iter().map(|o| o.samples.len()).max().unwrap_or(0);
    let all = |step: usize| outcomes.iter().filter_map(move |o| o.samples.get(step));
    let mean = |step: usize, f: &dyn Fn(&Sample) -> f64| {
        all(step).map(f).sum::<f64>() / all(step).count().max(1) as f64
    };
    (0..steps)
        .map(|step| Sample {
            clients: all(step).map(|s| s.clients).max().unwrap_or(0),
            entries_per_node: mean(step, &|s| s.entries_per_node),
            entries_largest_node: all(step).map(|s| s.entries_largest_node).max().unwrap_or(0),
            entries_per_server: mean(step, &|s| s.entries_per_server),
            messages_per_move: mean(step, &|s| s.messages_per_move),
            messages_per_client_second: mean(step, &|s| s.messages_per_client_second),
        })
        .collect()
}

/// The most memory that this process has had, in bytes; 0 if the system does not say.
pub fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|l| l.starts_with("VmHWM:")).unwrap_or_default();
    let kib: u64 = line.split_whitespace().nth(1).and_then(|n| n.parse().ok()).unwrap_or(0);
    kib * 1024
}
