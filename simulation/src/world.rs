//! The members of the link and what happens to them, event by event.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

use aero_protocol::address::LinkLayerAddress;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::authority::{Identity, Known, Row};
use crate::checks::{Check, Checks};
use crate::clock::{Clock, SECOND, Time};
use crate::faults::Fault;
use crate::member::{Action, Engine, Kind, Member, Report};
use crate::network::{Index, Network};
use crate::queue::Queue;
use crate::trace::{Trace, bytes_hash};
use crate::traffic::DataPacket;

/// What a datagram carries.
#[derive(Debug, Clone)]
pub enum Payload {
    /// A control packet, as an engine wrote it.
    Control(Vec<u8>),
    /// A user's packet.
    Data(Box<DataPacket>),
}

/// What is going to happen.
#[derive(Debug)]
pub enum Event {
    /// A datagram from `from` reaches the machine that had the address `to` when it was sent.
    Arrive {
        /// Who.
        member: Index,
        /// Outer source.
        from: LinkLayerAddress,
        /// Outer destination.
        to: LinkLayerAddress,
        /// Content.
        payload: Payload,
    },
    /// An engine's timer.
    Wake(Index),
    /// A Server's watch delivers a row; `None` if it was removed.
    Watch {
        /// Who.
        server: Index,
        /// Which row.
        client: usize,
        /// The row.
        row: Option<Row>,
        /// Version of the whole table with this row.
        version: u64,
    },
    /// A Server lists the whole table.
    List(Index),
    /// The authority gives a client to a node.
    Assign {
        /// Whom.
        client: usize,
        /// Where to.
        node: Index,
        /// How long the former pod runs on.
        lingers: Time,
    },
    /// A node starts a pod.
    Start(Index, usize, u64),
    /// A node stops a pod.
    Stop(Index, usize, u64),
    /// A node compares its list of Servers with what the API says.
    Servers(Index),
    /// A node that lost its memory has read which pods it has.
    Relearn(Index, u32),
    /// Something goes wrong, or is well again.
    Fault(Fault),
    /// A user sends a packet.
    Traffic,
}

/// Control messages by kind, in the order of [`MESSAGES`].
pub type Messages = [u64; MESSAGES.len()];

/// Names of control messages; DHCPv6 by its types from 1 on, then ICMPv6.
pub const MESSAGES: [&str; 16] = [
    "solicit",
    "advertise",
    "request",
    "confirm",
    "renew",
    "rebind",
    "reply",
    "release",
    "decline",
    "router_solicitation",
    "router_advertisement",
    "neighbor_solicitation",
    "neighbor_advertisement",
    "unsolicited_advertisement",
    "redirect",
    "other",
];

/// A link and all that belongs to it.
#[derive(Debug)]
pub struct World {
    /// The present.
    pub now: Time,
    /// What is going to happen.
    pub queue: Queue<Event>,
    /// Servers first, then nodes.
    pub members: Vec<Member>,
    /// How many of them are Servers.
    pub servers: usize,
    /// Who has which underlay address now.
    pub by_address: HashMap<LinkLayerAddress, Index>,
    /// Whose an IP address is, in use or not.
    pub by_ip: HashMap<IpAddr, Index>,
    /// The underlay.
    pub network: Network,
    /// The shared table, by client.
    pub identities: Vec<Identity>,
    /// Version of the table.
    pub version: u64,
    /// All randomness.
    pub rng: StdRng,
    /// What happened.
    pub trace: Trace,
    /// Invariants.
    pub checks: Checks,
    /// No fault lasts beyond this.
    pub faults_end: Time,
    /// Between two packets of users; 0 for none.
    pub traffic_every: Time,
    /// Control messages sent.
    pub messages: Messages,
    /// Events handled.
    pub events: u64,
    /// Users' packets: sent, delivered, lost.
    pub data: [u64; 3],
    /// Numbers the users' packets.
    pub packets: u64,
    /// Pairs of clients that talk at present.
    pub flows: Vec<(usize, usize)>,
    /// Packets that took a direct path.
    pub direct: u64,
}

impl World {
    /// A link of machines that are all down.
    pub fn new(seed: u64, servers: usize, nodes: usize, clients: usize, with_text: bool) -> Self {
        let base = Instant::now();
        let mut rng = StdRng::seed_from_u64(seed);
        let mut members = Vec::with_capacity(servers + nodes);
        for index in 0..servers + nodes {
            let kind = if index < servers { Kind::Server } else { Kind::Node };
            let offset = rng.random_range(0..3_600 * SECOND);
            let clock = Clock::new(base, offset, rng.random_range(-2_000..=2_000));
            let nat = kind == Kind::Node && rng.random_bool(0.25);
            members.push(Member::new(kind, index, clock, nat));
        }
        let network = Network::new(rng.random(), members.len());
        let mut world = Self {
            now: 0,
            queue: Queue::default(),
            by_address: members.iter().enumerate().map(|(i, m)| (m.outer, i)).collect(),
            by_ip: members
                .iter()
                .enumerate()
                .flat_map(|(i, m)| m.addresses.iter().map(move |a| (*a, i)))
                .collect(),
            members,
            servers,
            network,
            identities: (0..clients).map(Identity::new).collect(),
            version: 0,
            rng,
            trace: Trace::new(with_text),
            checks: Checks::new(clients),
            faults_end: 0,
            traffic_every: 0,
            messages: [0; MESSAGES.len()],
            events: 0,
            data: [0; 3],
            packets: 0,
            flows: Vec::new(),
            direct: 0,
        };
        for index in 0..servers {
            world.members[index].known = vec![Known::default(); clients];
            world.boot(index);
        }
        for index in servers..servers + nodes {
            world.boot(index);
        }
        world
    }

    /// Lets happen what happens until `end`, or until an invariant is broken.
    pub fn run_until(&mut self, end: Time) {
        while self.checks.violation.is_none()
            && let Some((at, event)) = self.queue.pop(end)
        {
            self.now = at;
            self.events += 1;
            self.handle(event);
        }
        if self.checks.violation.is_none() {
            self.now = end;
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Arrive { member, from, to, payload } => self.arrive(member, from, to, payload),
            Event::Wake(member) => self.wake(member),
            Event::Watch { server, client, row, version } => {
                self.watch(server, client, row, version);
            }
            Event::List(server) => self.list(server),
            Event::Assign { client, node, lingers } => self.assign(client, node, lingers),
            Event::Start(node, client, epoch) => self.start_pod(node, client, epoch),
            Event::Stop(node, client, epoch) => self.stop_pod(node, client, epoch),
            Event::Servers(node) => self.sync_servers(node),
            Event::Relearn(node, life) => self.relearn(node, life),
            Event::Fault(fault) => self.fault(fault),
            Event::Traffic => self.traffic(),
        }
    }

    /// Starts the engine of a machine that is down.
    pub fn boot(&mut self, index: Index) {
        let seed = self.rng.random();
        let member = &mut self.members[index];
        member.engine = Some(member.fresh_engine(index, seed));
        member.table = aero_protocol::forwarding::Table::default();
        member.life += 1;
        member.wake = None;
        member.version = 0;
        if member.kind == Kind::Node {
            self.sync_servers(index);
        } else {
            self.list(index);
        }
    }

    /// Stops a machine without a word.
    pub fn crash(&mut self, index: Index) {
        let member = &mut self.members[index];
        member.engine = None;
        member.table = aero_protocol::forwarding::Table::default();
        self.data[2] += member.held.len() as u64;
        member.held = aero_protocol::forwarding::Held::default();
        member.known.fill(Known::default());
    }

    /// Lets `f` work with the engine of a member, then does what the engine wants done.
    pub fn act(&mut self, index: Index, f: impl FnOnce(&mut Engine, Instant)) {
        let member = &mut self.members[index];
        let now = member.clock.local(self.now);
        let Some(engine) = &mut member.engine else { return };
        f(engine, now);
        self.drain(index);
    }

    fn drain(&mut self, index: Index) {
        while let Some(action) = self.members[index].engine.as_mut().and_then(Engine::poll_output) {
            match action {
                Action::Send(to, packet) => self.send_control(index, to, packet),
                Action::Forward(change) => {
                    let member = &mut self.members[index];
                    member.table.apply(&change);
                    for (from, packet) in member.held.release(&change) {
                        self.data_again(index, from, packet);
                    }
                }
                Action::Report(report) => self.report(index, report),
            }
        }
        let member = &mut self.members[index];
        if let Some(at) = member.engine.as_ref().and_then(Engine::poll_timeout) {
            let at = member.clock.when(at).max(self.now);
            if member.wake.is_none_or(|w| at < w) {
                member.wake = Some(at);
                self.queue.push(at, Event::Wake(index));
            }
        }
        if self.events.is_multiple_of(16) {
            self.check_sizes(index);
        }
    }

    fn wake(&mut self, index: Index) {
        let now = self.now;
        let member = &mut self.members[index];
        if member.wake != Some(now) {
            return;
        }
        member.wake = None;
        let local = member.clock.local(now);
        let due = |e: &Option<Engine>| e.as_ref().and_then(Engine::poll_timeout);
        if due(&member.engine).is_none_or(|t| t > local) {
            self.drain(index);
            return;
        }
        self.trace.note(now, "timer", &[index as u64], || format!("m{index}"));
        self.act(index, Engine::handle_timeout);
        let left = due(&self.members[index].engine).filter(|t| *t <= local);
        self.checks.require(Check::NoTimerStorm, left.is_none(), now, || {
            format!("m{index} wants to be woken at once again")
        });
    }

    fn send_control(&mut self, from: Index, to: LinkLayerAddress, packet: Vec<u8>) {
        let kind = message_kind(&packet);
        self.messages[kind] += 1;
        let numbers = [from as u64, u64::from(to.port), bytes_hash(&packet)];
        let length = packet.len();
        self.trace.note(self.now, "send", &numbers, || {
            format!("m{from} -> {to} {} {length} bytes", MESSAGES[kind])
        });
        self.send(from, to, Payload::Control(packet));
    }

    /// Puts a datagram on the underlay.
    pub fn send(&mut self, from: Index, to: LinkLayerAddress, payload: Payload) {
        let source = self.members[from].outer;
        let arrivals = match self.by_address.get(&to) {
            Some(member) => {
                self.network.fate(from, *member, &mut self.rng).map(|d| d.map(|d| (*member, d)))
            }
            None => [None, None],
        };
        if arrivals[0].is_none() {
            self.trace.note(self.now, "lost", &[from as u64], || format!("m{from} -> {to}"));
            if let Payload::Data(_) = payload {
                self.data[2] += 1;
            }
            return;
        }
        if let Some((member, delay)) = arrivals[1] {
            let payload = payload.clone();
            self.queue.push(self.now + delay, Event::Arrive { member, from: source, to, payload });
        }
        if let Some((member, delay)) = arrivals[0] {
            self.queue.push(self.now + delay, Event::Arrive { member, from: source, to, payload });
        }
    }

    fn arrive(
        &mut self,
        index: Index,
        from: LinkLayerAddress,
        to: LinkLayerAddress,
        payload: Payload,
    ) {
        let member = &self.members[index];
        // The machine has left that address, or is down.
        if member.outer != to || member.engine.is_none() {
            return;
        }
        match payload {
            Payload::Control(packet) => {
                let numbers = [index as u64, u64::from(from.port), bytes_hash(&packet)];
                self.trace.note(self.now, "receive", &numbers, || {
                    format!("m{index} <- {from} {}", MESSAGES[message_kind(&packet)])
                });
                self.act(index, |e, now| e.handle_packet(from, &packet, now));
            }
            Payload::Data(packet) => self.data_arrives(index, from, packet),
        }
    }

    fn report(&mut self, index: Index, report: Report) {
        let text = || match &report {
            Report::Node(e) => format!("m{index} {e:?}"),
            Report::Server(e) => format!("m{index} {e:?}"),
        };
        let kind = match &report {
            Report::Node(e) => event_kind(&std::mem::discriminant(e)),
            Report::Server(e) => event_kind(&std::mem::discriminant(e)),
        };
        self.trace.note(self.now, "event", &[index as u64, kind], text);
        if let Report::Server(event) = report {
            self.check_event(index, &event);
        }
    }
}

/// A number for the kind of an event that is the same in every run of one build.
fn event_kind<T: std::hash::Hash>(kind: &T) -> u64 {
    use std::hash::{BuildHasher, BuildHasherDefault, DefaultHasher};
    BuildHasherDefault::<DefaultHasher>::default().hash_one(kind)
}

/// What kind of control message a packet is: an index into [`MESSAGES`].
pub fn message_kind(packet: &[u8]) -> usize {
    let other = MESSAGES.len() - 1;
    let flags = packet.get(44).copied().unwrap_or(0);
    match (packet.get(6), packet.get(40), packet.get(48)) {
        (Some(17), _, Some(kind @ 1..=9)) => usize::from(*kind) - 1,
        (Some(58), Some(133), _) => 9,
        (Some(58), Some(134), _) => 10,
        (Some(58), Some(135), _) => 11,
        (Some(58), Some(136), _) if flags & 0x40 != 0 => 12,
        (Some(58), Some(136), _) => 13,
        (Some(58), Some(137), _) => 14,
        _ => other,
    }
}
