//! One run, from the first boot to the last release: what a seed stands for.

use std::time::{Duration, Instant};

use rand::Rng;

use crate::checks::{Check, Violation};
use crate::clock::{SECOND, Time, seconds};
use crate::member::Engine;
use crate::network::Index;
use crate::world::{Event, Messages, World};

/// After the last fault all pods must reach each other within this. The longest ways there: a
/// Server that came back without its memory and was silent for less than three probes is found
/// out by the first Renew of the node, T1 = 20 s after the last; one that fell silent is left
/// after 4 s and asked every 4.4 s at most (Solicit's longest interval and its spread); a node
/// without its memory reads its pods again within 2 s, and is tried again within half a second;
/// a direct path that nobody uses is not solicited, and ends with ForwardTime, 30 s.
pub const RECOVERY: Time = 35 * SECOND;
/// After the last Client is gone nothing may be left after this: the longest of the times that
/// the link keeps things (AcceptTime, lease, 40 s), and Release's last retry.
pub const FORGET: Time = 90 * SECOND;

/// The size of a world and how long things go wrong in it.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// Nodes.
    pub nodes: usize,
    /// Servers.
    pub servers: usize,
    /// Clients.
    pub clients: usize,
    /// In how many steps the Clients come; after each, moves are measured.
    pub steps: usize,
    /// How long things go wrong.
    pub faults: Time,
    /// Between two faults, on average.
    pub fault_every: Time,
    /// Between two packets of users.
    pub traffic_every: Time,
}

impl Shape {
    /// A world of this size. Large ones are filled step by step and measured.
    pub fn new(nodes: usize, servers: usize, clients: usize) -> Self {
        let large = clients > 500;
        Self {
            nodes,
            servers,
            clients,
            steps: if large { 10 } else { 1 },
            faults: if large { 30 * SECOND } else { 60 * SECOND },
            fault_every: if large { SECOND / 4 } else { 2 * SECOND },
            traffic_every: if large { SECOND / 1000 } else { SECOND / 20 },
        }
    }
}

/// The state of a link at one moment.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct Sample {
    /// Clients at that moment.
    pub clients: usize,
    /// Entries per node, on average.
    pub entries_per_node: f64,
    /// Entries in the node that has most.
    pub entries_largest_node: usize,
    /// Entries per Server, on average.
    pub entries_per_server: f64,
    /// Control messages for one move of one Client, all Servers together.
    pub messages_per_move: f64,
    /// Control messages per second and Client when nothing moves: renewals and probes.
    pub messages_per_client_second: f64,
}

/// What came of a run.
#[derive(Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Hash of all that happened.
    pub hash: u64,
    /// Events handled.
    pub events: u64,
    /// Virtual time.
    pub virtual_time: Time,
    /// Real time.
    pub took: Duration,
    /// How often each invariant was checked.
    pub checked: [u64; Check::ALL.len()],
    /// The first that did not hold.
    pub violation: Option<Violation>,
    /// Virtual time from the last fault until all pods reached each other.
    pub recovery: Option<Time>,
    /// The state on the way up.
    pub samples: Vec<Sample>,
    /// Control messages.
    pub messages: Messages,
    /// Users' packets: sent, delivered, lost.
    pub data: [u64; 3],
    /// Those that took a direct path.
    pub direct: u64,
    /// The trace, if it was asked for.
    pub text: Vec<String>,
}

/// Runs a seed.
pub fn run(shape: &Shape, seed: u64, with_text: bool) -> Outcome {
    let began = Instant::now();
    let mut world = World::new(seed, shape.servers, shape.nodes, shape.clients, with_text);
    let mut samples = Vec::new();
    let recovery = play(shape, &mut world, &mut samples);
    Outcome {
        seed,
        hash: world.trace.hash(),
        events: world.events,
        virtual_time: world.now,
        took: began.elapsed(),
        checked: world.checks.counts,
        violation: world.checks.violation.take(),
        recovery,
        samples,
        messages: world.messages,
        data: world.data,
        direct: world.direct,
        text: world.trace.lines().to_vec(),
    }
}

fn play(shape: &Shape, world: &mut World, samples: &mut Vec<Sample>) -> Option<Time> {
    world.faults_end = Time::MAX;
    world.traffic_every = shape.traffic_every;
    world.queue.push(SECOND, Event::Traffic);
    for step in 0..shape.steps {
        let from = shape.clients * step / shape.steps;
        let to = shape.clients * (step + 1) / shape.steps;
        fill(shape, world, from..to);
        samples.push(measure(shape, world, to));
    }
    go_wrong(shape, world);
    if world.checks.violation.is_some() {
        return None;
    }
    let recovery = recover(shape, world);
    if world.checks.violation.is_none() {
        empty(world);
    }
    recovery
}

/// Gives clients to nodes, spread over three seconds.
fn fill(shape: &Shape, world: &mut World, clients: std::ops::Range<usize>) {
    for client in clients {
        let node: Index = world.servers + world.rng.random_range(0..shape.nodes);
        let at = world.now + world.rng.random_range(0..3 * SECOND);
        world.queue.push(at, Event::Assign { client, node, lingers: 0 });
    }
    world.run_until(world.now + 8 * SECOND);
}

/// Counts entries and messages, without and with moves. What renewals and probes cost goes on
/// all the time, so it is taken off.
#[allow(clippy::cast_precision_loss)] // counts are far below 2^52
fn measure(shape: &Shape, world: &mut World, clients: usize) -> Sample {
    const QUIET: Time = 4 * SECOND;
    let control = |w: &World| w.messages.iter().sum::<u64>();
    let periodic = |w: &World| {
        // Renew and its Reply, probes with their answers, and direct paths.
        2 * w.messages[4] + w.messages[11] + w.messages[12] + w.messages[14]
    };
    let (before, before_periodic) = (control(world), periodic(world));
    let moves = if shape.steps > 1 { (clients / 20).clamp(1, 500) } else { 0 };
    let began = world.now;
    for _ in 0..moves {
        let client = world.rng.random_range(0..clients);
        let node: Index = world.servers + world.rng.random_range(0..shape.nodes);
        let at = world.now + world.rng.random_range(0..QUIET);
        world.queue.push(at, Event::Assign { client, node, lingers: SECOND });
    }
    world.run_until(began + 2 * QUIET);
    let sent_periodic = periodic(world) - before_periodic;
    let sent = control(world) - before - sent_periodic;
    let entries = |index: Index| world.members[index].engine.as_ref().map_or(0, Engine::entries);
    let nodes: Vec<usize> = (world.servers..world.members.len()).map(entries).collect();
    let servers: usize = (0..world.servers).map(entries).sum();
    Sample {
        clients,
        entries_per_node: nodes.iter().sum::<usize>() as f64 / nodes.len().max(1) as f64,
        entries_largest_node: nodes.iter().copied().max().unwrap_or(0),
        entries_per_server: servers as f64 / world.servers as f64,
        messages_per_move: if moves > 0 { sent as f64 / moves as f64 } else { 0.0 },
        messages_per_client_second: sent_periodic as f64
            / seconds(2 * QUIET)
            / clients.max(1) as f64,
    }
}

/// Things go wrong, and are all made good by the end.
fn go_wrong(shape: &Shape, world: &mut World) {
    let end = world.now + shape.faults;
    world.faults_end = end;
    let mut at = world.now;
    loop {
        at += world.rng.random_range(0..2 * shape.fault_every);
        if at >= end {
            break;
        }
        world.plan_fault(at);
    }
    world.run_until(end);
}

/// Waits until all reach each other, then sees that it stays so.
fn recover(shape: &Shape, world: &mut World) -> Option<Time> {
    let end = world.faults_end;
    let sample = if shape.clients > 500 { 60 } else { shape.clients };
    let mut recovered = None;
    let mut missing = None;
    while world.now <= end + RECOVERY {
        missing = world.unreachable(sample);
        if missing.is_none() {
            recovered = Some(world.now - end);
            break;
        }
        let text = missing.clone().unwrap_or_default();
        world.trace.note(world.now, "missing", &[], || text);
        let next = world.now + SECOND / 4;
        world.run_until(next);
        if world.checks.violation.is_some() {
            return None;
        }
    }
    let now = world.now;
    world.checks.require(Check::Recovery, recovered.is_some(), now, || missing.unwrap_or_default());
    // Until the bound a Server may still be found out to have lost a lease.
    world.run_until(world.now.max(end + RECOVERY));
    for _ in 0..10 {
        world.run_until(world.now + 3 * SECOND);
        let (now, missing) = (world.now, world.unreachable(sample));
        world.checks.require(Check::Recovery, missing.is_none(), now, || {
            format!("after it had been well: {}", missing.unwrap_or_default())
        });
    }
    recovered
}

/// All Clients go, and after a while nothing is left of them.
fn empty(world: &mut World) {
    world.traffic_every = 0;
    for client in 0..world.identities.len() {
        world.remove(client);
    }
    world.run_until(world.now + FORGET);
    if world.checks.violation.is_none() {
        world.check_base();
    }
}
