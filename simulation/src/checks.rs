//! What must hold whatever happens.

use aero_protocol::server;
use serde::Serialize;

use crate::authority::client_of;
use crate::clock::{SECOND, Time, seconds};
use crate::member::{Engine, Kind};
use crate::network::Index;
use crate::traffic::DataPacket;
use crate::world::World;

/// How long after all Servers know of a move a correspondent may still send straight to the former
/// holder: ForwardTime, since the last sign of life there was before, and the 3 s of its
/// solicitations, with room for clocks that are off.
const GRACE: Time = 35 * SECOND;

/// An invariant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Check {
    /// Servers lease a prefix to one node per epoch, and only that node gets its packets.
    OneHolderPerEpoch,
    /// No Server that knows of a move sends packets to the former holder.
    NotToFormerHolder,
    /// No Server that knows of a move takes packets from the former holder.
    NotFromFormerHolder,
    /// A packet is delivered only where the pod runs.
    DeliveredToPod,
    /// No packet takes one way three times.
    NoLoop,
    /// All pods reach each other soon after the last fault, and from then on.
    Recovery,
    /// When all Clients are gone, all memory of them is.
    BackToBase,
    /// No engine remembers more than the world gives reason for.
    BoundedState,
    /// A lease is at a node that the Server's own copy of the table names.
    LeaseFollowsTable,
    /// An engine that has done what was due does not want to be woken at once.
    NoTimerStorm,
}

impl Check {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::OneHolderPerEpoch,
        Self::NotToFormerHolder,
        Self::NotFromFormerHolder,
        Self::DeliveredToPod,
        Self::NoLoop,
        Self::Recovery,
        Self::BackToBase,
        Self::BoundedState,
        Self::LeaseFollowsTable,
        Self::NoTimerStorm,
    ];
}

/// A broken invariant.
#[derive(Debug, Clone, Serialize)]
pub struct Violation {
    /// Which.
    pub check: Check,
    /// When, in virtual seconds.
    pub at: f64,
    /// What was seen.
    pub text: String,
}

/// Counts of what was checked, and the first violation.
#[derive(Debug)]
pub struct Checks {
    /// How often each was checked, in the order of [`Check::ALL`].
    pub counts: [u64; Check::ALL.len()],
    /// The first violation.
    pub violation: Option<Violation>,
    /// Node that Servers have leased each client's prefix to, with the epoch.
    leased: Vec<(u64, Index)>,
    /// Clients whose identity was ever in the table: bounds what may be remembered.
    clients: usize,
}

impl Checks {
    /// Nothing checked yet.
    pub fn new(clients: usize) -> Self {
        Self {
            counts: [0; Check::ALL.len()],
            violation: None,
            leased: vec![(0, 0); clients],
            clients,
        }
    }

    /// Counts a check, and keeps the first that fails.
    pub fn require(&mut self, check: Check, ok: bool, now: Time, text: impl FnOnce() -> String) {
        self.counts[check as usize] += 1;
        if !ok && self.violation.is_none() {
            self.violation = Some(Violation { check, at: seconds(now), text: text() });
        }
    }
}

impl World {
    /// A user's packet arrives at a pod's node.
    pub fn check_delivery(&mut self, index: Index, packet: &DataPacket) {
        let now = self.now;
        let client = packet.destination;
        let here = self.members[index].pods.get(&client).copied();
        let path =
            || format!("#{} c{} -> c{client} by {:?}", packet.id, packet.source, packet.path);
        self.checks.require(Check::DeliveredToPod, here.is_some(), now, || {
            format!("no such pod at m{index}: {}", path())
        });
        let Some(epoch) = here else { return };
        let row = self.identities[client].row;
        if epoch == row.epoch {
            self.checks.require(Check::OneHolderPerEpoch, row.node == Some(index), now, || {
                format!("epoch {epoch} is at {:?}, not m{index}: {}", row.node, path())
            });
        }
        self.check_direct(index, epoch, packet);
        if let Some((server, at)) = self.last_server(packet) {
            let known = self.members[server].known[client];
            // The Server may have learnt of it after it had forwarded.
            let late = known.moved_from(index, epoch) && known.since < at;
            self.checks.require(Check::NotToFormerHolder, !late, now, || {
                format!("m{server} knew {known:?} but sent to m{index}: {}", path())
            });
        }
        if let Some((server, at)) = self.first_server(packet) {
            let known = self.members[server].known[packet.source];
            let origin = packet.path.first().map_or(usize::MAX, |p| p.0);
            // A node that sends on what still comes for a prefix that left it may do so whatever
            // the inner source; a Server cannot tell its own packets from those.
            // Nor what came straight to such a node, and waited there for the new one.
            let is_server = |(m, _): &(Index, Time)| self.members[*m].kind == Kind::Server;
            let before = packet.path.iter().take_while(|hop| !is_server(hop)).last();
            let before = before.map_or(origin, |(node, _)| *node);
            let sends_on = self.left_lately(client, origin) || self.left_lately(client, before);
            let late =
                known.moved_from(origin, packet.source_epoch) && known.since < at && !sends_on;
            self.checks.require(Check::NotFromFormerHolder, !late, now, || {
                format!("m{server} knew {known:?} of the source: {}", path())
            });
        }
    }

    /// A packet that came straight from another node must not come to a former holder for longer
    /// than a direct path may live unseen after all Servers knew of the move.
    fn check_direct(&mut self, index: Index, epoch: u64, packet: &DataPacket) {
        let [.., (from, sent), _] = packet.path.as_slice() else { return };
        if self.members[*from].kind == Kind::Server {
            return;
        }
        let client = packet.destination;
        let mut known_to_all = 0;
        for server in self.members.iter().filter(|m| m.kind == Kind::Server) {
            let known = server.known[client];
            if server.engine.is_none() || !known.moved_from(index, epoch) {
                return;
            }
            known_to_all = known_to_all.max(known.since);
        }
        let late = *sent > known_to_all + GRACE;
        let now = self.now;
        self.checks.require(Check::NotToFormerHolder, !late, now, || {
            let since = seconds(known_to_all);
            format!(
                "all knew since {since} that it left m{index}: #{} {:?}",
                packet.id, packet.path
            )
        });
    }

    /// A user's packet has reached another member.
    pub fn check_path(&mut self, packet: &DataPacket) {
        let way = |w: &[(Index, Time)]| match w {
            [.., a, b] => Some((a.0, b.0)),
            _ => None,
        };
        let last = way(&packet.path);
        let times = packet.path.windows(2).filter(|w| way(w) == last).count();
        self.checks.require(Check::NoLoop, times < 3 && packet.path.len() < 32, self.now, || {
            format!(
                "#{} c{} -> c{} by {:?}",
                packet.id, packet.source, packet.destination, packet.path
            )
        });
    }

    /// A Server has something to report.
    pub fn check_event(&mut self, index: Index, event: &server::Event) {
        let server::Event::Associated { prefix, at, epoch, .. } = event else { return };
        let now = self.now;
        let Some(client) = client_of(*prefix) else { return };
        let node = self.by_ip.get(&at.ip).copied().unwrap_or(usize::MAX);
        let (leased, to) = self.checks.leased[client];
        self.checks.require(Check::OneHolderPerEpoch, epoch.0 != leased || to == node, now, || {
            format!("m{index} leases {prefix} epoch {epoch} to m{node}, leased to m{to} before")
        });
        if epoch.0 >= leased {
            self.checks.leased[client] = (epoch.0, node);
        }
        let known = self.members[index].known[client].row.map_or(0, |r| r.epoch);
        self.checks.require(Check::LeaseFollowsTable, epoch.0 == known, now, || {
            format!("m{index} leases {prefix} under epoch {epoch}, its table says {known}")
        });
    }

    /// The memory of a member.
    pub fn check_sizes(&mut self, index: Index) {
        let now = self.now;
        let clients = self.checks.clients;
        let servers = self.servers;
        let member = &self.members[index];
        let (fits, sizes): (bool, &dyn std::fmt::Debug) = match &member.engine {
            Some(Engine::Node(n)) => {
                let s = n.sizes();
                let paths = s.neighbors + s.attempts + s.announcements;
                let fits = s.clients <= clients
                    && s.associations <= s.clients * servers
                    && s.servers <= servers
                    && s.departed <= clients
                    && s.timers
                        <= 2 * (s.associations
                            + s.servers
                            + s.clients
                            + s.departed
                            + s.handing_over
                            + paths)
                            + 4
                    && s.outputs == 0;
                (fits, &s.clone())
            }
            Some(Engine::Server(e)) => {
                let s = e.sizes();
                let fits = s.mappings <= clients
                    && s.neighbors <= s.mappings
                    && s.departures <= clients
                    && s.parked <= 4096
                    && s.former <= clients
                    && s.limited <= clients
                    && s.timers <= 2 * (s.neighbors + s.departures + s.parked + s.former) + 4
                    && s.outputs == 0;
                (fits, &s.clone())
            }
            None => return,
        };
        let text = || format!("m{index}: {sizes:?}");
        self.checks.require(Check::BoundedState, fits, now, text);
    }

    /// Pairs of pods that do not reach each other: the first such, out of at most `sample` sources.
    pub fn unreachable(&mut self, sample: usize) -> Option<String> {
        let missing = self.first_unreachable(sample);
        // The walk is no traffic.
        for member in &self.members {
            drop(member.table.take_used());
        }
        missing
    }

    fn first_unreachable(&self, sample: usize) -> Option<String> {
        let alive: Vec<usize> =
            (0..self.identities.len()).filter(|c| !self.identities[*c].removed).collect();
        let step = (alive.len() / sample.max(1)).max(1);
        for source in alive.iter().step_by(step) {
            for destination in alive.iter().step_by(step) {
                let home = self.identities[*destination].row.node;
                if self.identities[*source].row.node == home {
                    continue;
                }
                let reached = self.walk(*source, *destination);
                if reached.as_ref().ok() != home.as_ref() {
                    let wanted = home.map_or("nowhere".into(), |n| format!("m{n}"));
                    return Some(format!(
                        "c{source} -> c{destination} (at {wanted}): {}",
                        reached.map_or_else(|e| e, |m| format!("at m{m}"))
                    ));
                }
            }
        }
        None
    }

    /// All Clients are gone: nothing may remember any of them.
    pub fn check_base(&mut self) {
        let now = self.now;
        for index in 0..self.members.len() {
            let member = &mut self.members[index];
            member.table.expire(member.clock.local(now));
            let table = member.table.sizes();
            let (ok, text) = match &member.engine {
                Some(Engine::Node(n)) => {
                    let s = n.sizes();
                    let ok = s.clients == 0
                        && s.associations == 0
                        && s.departed == 0
                        && s.handing_over == 0
                        && member.held.is_empty()
                        && s.neighbors == 0
                        && s.attempts == 0
                        && s.announcements == 0
                        && s.timers <= s.servers
                        && table.routes <= 1
                        && table.sources == 0
                        && table.handovers == 0;
                    (ok, format!("{s:?} {table:?}"))
                }
                Some(Engine::Server(e)) => {
                    let s = e.sizes();
                    let ok = s == server::Sizes::default()
                        && table == aero_protocol::forwarding::Sizes::default();
                    (ok, format!("{s:?} {table:?}"))
                }
                None => (false, "down".into()),
            };
            self.checks.require(Check::BackToBase, ok, now, || format!("m{index}: {text}"));
        }
    }
}
