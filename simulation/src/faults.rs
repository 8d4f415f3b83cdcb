//! What goes wrong, and how it is made good again.

use aero_protocol::address::LinkLayerAddress;
use rand::Rng;

use crate::authority::{duid, key, spec};
use crate::clock::{MILLISECOND, SECOND, Time};
use crate::member::{Engine, Kind};
use crate::network::{FAIR, Index, Weather};
use crate::world::{Event, World};

/// Something that goes wrong, or is made good.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// A client moves to another node; its former pod stops before, after, or much later.
    Move,
    /// A node reaches nobody; its pods may be given to others meanwhile.
    Isolate,
    /// A node's API is away while one of its pods is given to another node.
    Zombie,
    /// A Server's watch of the table is broken.
    DeafServer,
    /// The link falls into two parts.
    Partition,
    /// A node's agent crashes and starts again, with its journal or without.
    AgentCrash,
    /// A node loses power.
    PowerLoss,
    /// A Server crashes and starts again with an empty memory.
    ServerCrash,
    /// A Server is drained, and used again later.
    Drain,
    /// A node's NAT gives it another port, perhaps another address.
    NatRebind,
    /// A node without NAT gets another underlay address, and knows it.
    Readdress,
    /// Packets are lost, doubled, late.
    Storm,
    /// One node and one Server do not reach each other, in one direction or both.
    Cut,
    /// Packets of this member pass again.
    EndIsolation(Index),
    /// The API is there again for this member.
    EndApiOutage(Index),
    /// The link is whole again.
    EndPartition,
    /// The machine starts again; with its memory if the flag says so.
    Restart(Index, bool),
    /// The Server is used again.
    Undrain(Index),
    /// The weather is fair again.
    EndStorm,
    /// The two reach each other again.
    EndCut(Index, Index),
}

/// What can go wrong, with how often.
const KINDS: [(Fault, u32); 13] = [
    (Fault::Move, 20),
    (Fault::Isolate, 4),
    (Fault::Zombie, 6),
    (Fault::DeafServer, 4),
    (Fault::Partition, 3),
    (Fault::AgentCrash, 4),
    (Fault::PowerLoss, 2),
    (Fault::ServerCrash, 4),
    (Fault::Drain, 3),
    (Fault::NatRebind, 4),
    (Fault::Readdress, 3),
    (Fault::Storm, 4),
    (Fault::Cut, 4),
];

impl World {
    /// Something random goes wrong at `at`.
    pub fn plan_fault(&mut self, at: Time) {
        let total: u32 = KINDS.iter().map(|(_, w)| w).sum();
        let mut pick = self.rng.random_range(0..total);
        for (fault, weight) in KINDS {
            if pick < weight {
                self.queue.push(at, Event::Fault(fault));
                return;
            }
            pick -= weight;
        }
    }

    fn random_node(&mut self) -> Index {
        self.rng.random_range(self.servers..self.members.len())
    }

    fn random_server(&mut self) -> Index {
        self.rng.random_range(0..self.servers)
    }

    /// A node other than `not`, if there is one.
    fn other_node(&mut self, not: Index) -> Index {
        for _ in 0..8 {
            let node = self.random_node();
            if node != not {
                return node;
            }
        }
        not
    }

    /// Schedules the end of a fault between `shortest` and `longest` from now.
    fn later(&mut self, shortest: Time, longest: Time, end: Fault) {
        let at = self.now + self.rng.random_range(shortest..longest);
        self.queue.push(at.min(self.faults_end.max(self.now)), Event::Fault(end));
    }

    /// Does what a fault or its end does.
    pub fn fault(&mut self, fault: Fault) {
        self.trace.note(self.now, "fault", &[fault_number(fault)], || format!("{fault:?}"));
        match fault {
            Fault::Move => self.random_move(),
            Fault::Isolate => {
                let node = self.random_node();
                self.network.isolated.insert(node);
                self.members[node].api = false;
                if self.rng.random_bool(0.7) {
                    let wait = self.rng.random_range(3 * SECOND..8 * SECOND);
                    self.evacuate(node, wait);
                }
                self.later(SECOND, 50 * SECOND, Fault::EndIsolation(node));
            }
            Fault::Zombie => {
                let node = self.random_node();
                self.members[node].api = false;
                let pods = self.members[node].pods.len();
                let pick = if pods > 0 { self.rng.random_range(0..pods) } else { 0 };
                if let Some(client) = self.members[node].pods.keys().nth(pick).copied() {
                    let to = self.other_node(node);
                    self.assign(client, to, 0);
                }
                self.later(5 * SECOND, 60 * SECOND, Fault::EndApiOutage(node));
            }
            Fault::DeafServer => {
                let server = self.random_server();
                self.members[server].api = false;
                self.later(SECOND, 30 * SECOND, Fault::EndApiOutage(server));
            }
            Fault::Partition => {
                for member in 0..self.members.len() {
                    self.network.groups[member] = u8::from(self.rng.random_bool(0.5));
                }
                self.later(SECOND, 60 * SECOND, Fault::EndPartition);
            }
            Fault::AgentCrash => {
                let node = self.random_node();
                if self.members[node].engine.is_some() {
                    self.crash(node);
                    let journal = self.rng.random_bool(0.7);
                    self.later(SECOND / 2, 20 * SECOND, Fault::Restart(node, journal));
                }
            }
            Fault::PowerLoss => {
                let node = self.random_node();
                if self.members[node].engine.is_some() {
                    self.crash(node);
                    self.evacuate(node, 5 * SECOND);
                    self.members[node].pods.clear();
                    self.later(8 * SECOND, 40 * SECOND, Fault::Restart(node, true));
                }
            }
            Fault::ServerCrash => {
                let server = self.random_server();
                if self.members[server].engine.is_some() {
                    self.crash(server);
                    self.later(SECOND / 2, 50 * SECOND, Fault::Restart(server, true));
                }
            }
            Fault::Drain => {
                let server = self.random_server();
                let left = self.members.iter().filter(|m| m.kind == Kind::Server && !m.drained);
                if left.count() > 1 && !self.members[server].drained {
                    self.set_drained(server, true);
                    self.later(SECOND, 50 * SECOND, Fault::Undrain(server));
                }
            }
            Fault::NatRebind => {
                let node = self.random_node();
                if self.members[node].nat {
                    self.readdress(node);
                }
            }
            Fault::Readdress => {
                let node = self.random_node();
                if !self.members[node].nat {
                    self.readdress(node);
                    self.act(node, |engine, now| {
                        if let Engine::Node(n) = engine {
                            n.underlay_changed(now);
                        }
                    });
                }
            }
            Fault::Storm => {
                self.network.weather = Weather {
                    loss: self.rng.random_range(0.0..0.4),
                    duplicate: self.rng.random_range(0.0..0.3),
                    reorder: self.rng.random_range(0.0..0.3),
                };
                self.later(SECOND, 30 * SECOND, Fault::EndStorm);
            }
            Fault::Cut => {
                let (node, server) = (self.random_node(), self.random_server());
                let both = self.rng.random_bool(0.6);
                let outward = both || self.rng.random_bool(0.5);
                if outward {
                    self.network.cut.insert((node, server));
                }
                if both || !outward {
                    self.network.cut.insert((server, node));
                }
                self.later(SECOND, 60 * SECOND, Fault::EndCut(node, server));
            }
            Fault::EndIsolation(member) => {
                self.network.isolated.remove(&member);
                self.fault(Fault::EndApiOutage(member));
            }
            Fault::EndApiOutage(member) => {
                self.members[member].api = true;
                if self.members[member].kind == Kind::Server {
                    self.queue.push(self.now + 100 * MILLISECOND, Event::List(member));
                }
            }
            Fault::EndPartition => self.network.groups.fill(0),
            Fault::Restart(member, memory) => self.restart(member, memory),
            Fault::Undrain(server) => self.set_drained(server, false),
            Fault::EndStorm => self.network.weather = FAIR,
            Fault::EndCut(a, b) => {
                self.network.cut.remove(&(a, b));
                self.network.cut.remove(&(b, a));
            }
        }
    }

    /// A client moves. Its pod stops first, or runs on for a while as a second one of its name.
    pub fn random_move(&mut self) {
        let client = self.rng.random_range(0..self.identities.len());
        let Some(from) = self.identities[client].row.node else { return };
        let to = if self.rng.random_bool(0.1) { from } else { self.other_node(from) };
        let epoch = self.identities[client].row.epoch;
        match self.rng.random_range(0..4) {
            3 if to != from => self.hand_over(client, from, to),
            0 => {
                self.stop_pod(from, client, epoch);
                let at = self.now + self.rng.random_range(0..3 * SECOND);
                let event = Event::Assign { client, node: to, lingers: 0 };
                self.queue.push(at.min(self.faults_end), event);
            }
            1 => self.assign(client, to, SECOND),
            _ => {
                let lingers = self.rng.random_range(SECOND..60 * SECOND);
                self.assign(client, to, lingers);
            }
        }
    }

    /// A client is told to leave for another node, which is told so too; the table follows.
    fn hand_over(&mut self, client: usize, from: Index, to: Index) {
        let nodes = self.members.iter().filter(|m| m.kind == Kind::Node);
        let proxies: Vec<LinkLayerAddress> = nodes.map(|m| m.outer).collect();
        let epoch = self.identities[client].row.epoch;
        let (there, claim) = (self.members[to].outer, spec(client, epoch + 1).claim);
        for node in [to, from] {
            let proxies = proxies.clone();
            self.act(node, |engine, now| {
                let Engine::Node(n) = engine else { return };
                n.set_proxies(proxies);
                if node == to {
                    n.set_key(duid(client), key(client));
                } else {
                    n.hand_over(&duid(client), claim, there, now);
                }
            });
        }
        let at = self.now + self.rng.random_range(0..700 * MILLISECOND);
        let event = Event::Assign { client, node: to, lingers: 0 };
        self.queue.push(at.min(self.faults_end), event);
    }

    /// Gives all pods of a node to others, in a while.
    fn evacuate(&mut self, node: Index, wait: Time) {
        let at = (self.now + wait).min(self.faults_end);
        for client in self.members[node].pods.keys().copied().collect::<Vec<_>>() {
            if self.identities[client].row.node == Some(node) {
                let to = self.other_node(node);
                self.queue.push(at, Event::Assign { client, node: to, lingers: 0 });
            }
        }
    }

    fn restart(&mut self, member: Index, memory: bool) {
        if self.members[member].engine.is_some() {
            return;
        }
        self.boot(member);
        if self.members[member].kind == Kind::Server {
            return;
        }
        if memory {
            self.reattach(member);
        } else {
            let wait = self.rng.random_range(SECOND / 5..2 * SECOND);
            let life = self.members[member].life;
            self.queue.push(self.now + wait, Event::Relearn(member, life));
        }
    }

    fn set_drained(&mut self, server: Index, drained: bool) {
        self.members[server].drained = drained;
        for node in self.servers..self.members.len() {
            let wait = self.rng.random_range(0..SECOND);
            self.queue.push(self.now + wait, Event::Servers(node));
        }
    }

    /// Gives a member another outer address.
    fn readdress(&mut self, node: Index) {
        let pick = self.rng.random_range(0..self.members[node].addresses.len());
        let member = &mut self.members[node];
        let ip = member.addresses[pick];
        let port = if member.nat { self.rng.random_range(20_000..60_000) } else { 8061 };
        let old = member.outer;
        member.outer = LinkLayerAddress::new(ip, port);
        self.by_address.remove(&old);
        self.by_address.insert(member.outer, node);
    }
}

fn fault_number(fault: Fault) -> u64 {
    match fault {
        Fault::Move => 0,
        Fault::Isolate => 1,
        Fault::Zombie => 2,
        Fault::DeafServer => 3,
        Fault::Partition => 4,
        Fault::AgentCrash => 5,
        Fault::PowerLoss => 6,
        Fault::ServerCrash => 7,
        Fault::Drain => 8,
        Fault::NatRebind => 9,
        Fault::Readdress => 10,
        Fault::Storm => 11,
        Fault::Cut => 12,
        Fault::EndIsolation(m) => 100 + m as u64,
        Fault::EndApiOutage(m) => 1_000_100 + m as u64,
        Fault::EndPartition => 13,
        Fault::Restart(m, memory) => 2_000_100 + 2 * m as u64 + u64::from(memory),
        Fault::Undrain(m) => 10_000_100 + m as u64,
        Fault::EndStorm => 14,
        Fault::EndCut(a, b) => 20_000_100 + ((a as u64) << 32) + b as u64,
    }
}
