//! The Servers of a node: whether they live, and which one is the default.
//!
//! Each is solicited once a second; the one that data goes by, and one that has not answered, more
//! often (`watch.rs`). After three solicitations without an answer data goes by another Server; only
//! when it has been silent for three seconds all that the node has there is given up.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::time::Instant;

use rand::Rng;

use super::association::Phase;
use super::macro_mobility::Leaving;
use super::selection::{Candidate, clearly_nearer};
use super::watch::Watch;
use super::{Client, Event, Node, SETTLE_TIME, Timer};
use crate::address::{Duid, LinkLayerAddress, aero_address};
use crate::forwarding::{Change, NextHop, Route};
use crate::timers::{MAX_RETRY, RETRANS_TIMER, SOLICIT};
use crate::wire::WireError;
use crate::wire::nd::{Nd, NdMessage, NdOption};

/// How a Server stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Liveness {
    /// It has not answered yet, or nothing was asked.
    Untried,
    /// It answers.
    Answers,
    /// It has stopped answering.
    Silent,
}

/// A Server as this node knows it.
#[derive(Debug, Default)]
pub(super) struct ServerState {
    /// Its link-local address, once it has answered.
    pub(super) address: Option<Ipv6Addr>,
    /// Since when it answers.
    pub(super) up_since: Option<Instant>,
    /// It has answered before and stopped.
    failed: bool,
    /// Clients with a lease there.
    pub(super) bound: BTreeSet<Duid>,
    /// Probes without an answer.
    pub(super) unanswered: u8,
    /// When it last denied a lease that it had given.
    pub(super) doubted: Option<Instant>,
    pub(super) watch: Watch,
    /// Whether this node is turning away from it.
    pub(super) leaving: Leaving,
    /// Whether this node's Clients are to have a lease there, and since when.
    pub(super) used: bool,
    pub(super) used_since: Option<Instant>,
    pub(super) candidate: Candidate,
}

impl ServerState {
    /// False once the Server has stopped answering.
    pub(super) fn may_answer(&self) -> bool {
        !self.failed
    }

    /// Whether this node turns away from it.
    pub(super) fn is_leaving(&self) -> bool {
        self.leaving != Leaving::No
    }

    /// It is chosen and says nothing.
    pub(super) fn give_up(&mut self) {
        self.failed = true;
    }

    /// It answers again, and nothing is asked of it.
    pub(super) fn is_back(&mut self) {
        self.failed = false;
    }

    /// Data can go by it.
    fn is_usable(&self) -> bool {
        self.up_since.is_some() && !self.bound.is_empty()
    }

    /// Data can go by it, and there has been no doubt for a while.
    pub(super) fn is_sure(&self, now: Instant) -> bool {
        self.is_usable()
            && self.leaving == Leaving::No
            && self.unanswered == 0
            && self.watch.is_steady(now)
    }

    fn is_settled(&self, now: Instant) -> bool {
        self.up_since.is_some_and(|t| now >= t + SETTLE_TIME)
    }
}

impl Node {
    /// A Server to associate with, by its underlay address. One that was being left for good is
    /// taken back; one that has said itself that it goes is asked again in its time only.
    pub fn add_server(&mut self, server: LinkLayerAddress, now: Instant) {
        self.add_servers([server], now);
    }

    /// Several at once, so that a node that is not to use all of them can choose.
    pub fn add_servers(
        &mut self,
        servers: impl IntoIterator<Item = LinkLayerAddress>,
        now: Instant,
    ) {
        for server in servers {
            match self.servers.get(&server).map(|known| known.leaving) {
                Some(Leaving::ForGood) => self.return_to(server, now),
                Some(_) => {}
                None => {
                    self.servers.insert(server, ServerState::default());
                    self.change(Change::AddPeer(server));
                }
            }
        }
        self.choose_servers(now);
    }

    /// A Server that is gone or about to go. Leases there are forgotten, not released; a Client
    /// whose last lease was there is served until that would have ended.
    pub fn remove_server(&mut self, server: LinkLayerAddress, now: Instant) {
        if self.servers.remove(&server).is_none() {
            return;
        }
        self.timers.cancel(&Timer::Probe(server));
        self.timers.cancel(&Timer::Return(server));
        self.leave_agents_of(server);
        let ids: Vec<Duid> = self.clients.keys().cloned().collect();
        for id in &ids {
            self.timers.cancel(&Timer::Association(id.clone(), server));
            let association = self.clients.get_mut(id).and_then(|c| c.associations.remove(&server));
            if let Some(end) = association.and_then(|a| a.lease).map(|l| l.valid) {
                self.timers.set(Timer::LastLease(id.clone()), end);
            }
        }
        self.choose_default(now);
        self.forget_sessions(server);
        self.change(Change::RemovePeer(server));
        self.choose_servers(now);
        for id in &ids {
            self.reap(id);
        }
    }

    /// All Servers, and how each stands.
    pub fn servers(&self) -> impl Iterator<Item = (LinkLayerAddress, Liveness)> {
        self.servers.iter().map(|(l2, s)| {
            let liveness = match (s.up_since, s.failed || !s.candidate.may_answer()) {
                (Some(_), _) => Liveness::Answers,
                (None, true) => Liveness::Silent,
                (None, false) if !s.used && s.candidate.has_answered() => Liveness::Answers,
                (None, false) => Liveness::Untried,
            };
            (*l2, liveness)
        })
    }

    /// A sign of life from a Server.
    pub(super) fn server_lives(&mut self, server: LinkLayerAddress, now: Instant) {
        let Some(state) = self.servers.get_mut(&server) else { return };
        state.unanswered = 0;
        state.watch.answered(now);
        if state.up_since.is_some() || !state.used {
            return;
        }
        let came_back = std::mem::take(&mut state.failed);
        state.up_since = Some(now);
        self.event(Event::ServerUp(server));
        self.timers.set(Timer::Probe(server), now + RETRANS_TIMER);
        if came_back {
            // It may have lost its memory: all Clients ask anew.
            self.resolicit_all(server, now);
        }
        self.choose_default(now);
    }

    /// Neighbor Unreachability Detection of a Server (draft -48 section 3.13).
    pub(super) fn probe_due(&mut self, server: LinkLayerAddress, now: Instant) {
        let fresh: [u8; 6] = self.rng.random();
        let Some(state) = self.servers.get_mut(&server) else { return };
        if state.up_since.is_some() && state.unanswered >= MAX_RETRY {
            if state.watch.is_dead(now) {
                if !self.blame_link(server, now) {
                    self.server_fails(server, now);
                }
                return;
            }
            if state.watch.doubt() {
                self.choose_default(now);
            }
        }
        let Some(state) = self.servers.get_mut(&server) else { return };
        if state.up_since.is_none() {
            self.go_on_asking(server, now);
            return;
        }
        let source = state
            .bound
            .first()
            .and_then(|id| self.clients.get(id))
            .and_then(|c| c.prefixes.first())
            .map(|p| aero_address(*p));
        // Without a lease there the Server would not answer, and nothing depends on it.
        let (Some(source), Some(target)) = (source, state.address) else {
            self.timers.set(Timer::Probe(server), now + RETRANS_TIMER);
            return;
        };
        state.unanswered = state.unanswered.saturating_add(1);
        let nonce = state.watch.solicits(state.unanswered, fresh, now);
        self.timers.set(Timer::Probe(server), state.watch.next(state.unanswered, now));
        let nd = Nd {
            source,
            destination: target,
            message: NdMessage::Solicitation { target },
            options: vec![NdOption::Nonce(nonce.to_vec())],
        };
        if let Ok(packet) = nd.emit() {
            self.send(server, packet);
        }
    }

    /// Data has gone by the default Server: it is to be noticed at once when it dies.
    pub(super) fn default_used(&mut self, now: Instant) {
        if let Some(server) = self.default
            && let Some(state) = self.servers.get_mut(&server)
        {
            state.watch.used(now);
            self.look_sooner(server, now);
        }
    }

    /// The underlay says that a Server was not reached. Anybody can forge that, so it is looked.
    pub(super) fn server_hinted(&mut self, server: LinkLayerAddress, now: Instant) {
        if let Some(state) = self.servers.get_mut(&server) {
            state.watch.hinted(now);
            self.look_sooner(server, now);
        }
    }

    /// Solicits a Server before its time, if its pace is another now.
    fn look_sooner(&mut self, server: LinkLayerAddress, now: Instant) {
        let Some(state) = self.servers.get(&server).filter(|s| s.up_since.is_some()) else {
            return;
        };
        if let Some(due) = state.watch.sooner(state.unanswered, now) {
            self.timers.set(Timer::Probe(server), due);
        }
    }

    pub(super) fn probe_answered(
        &mut self,
        server: LinkLayerAddress,
        nd: &Nd,
        now: Instant,
    ) -> Result<(), WireError> {
        let state = self.servers.get_mut(&server).ok_or(WireError::BadAddress)?;
        let nonce = nd.nonce().filter(|nonce| state.watch.has_sent(nonce));
        let nonce = nonce.ok_or(WireError::BadValue)?;
        if let Some(round_trip) = state.watch.round_trip_of(nonce, now) {
            state.candidate.distance.measured(round_trip, now);
        }
        self.server_lives(server, now);
        let state = self.default.and_then(|d| self.servers.get(&d));
        // When the doubt arose this Server's answer may have been under way.
        if state.is_some_and(|s| s.watch.is_doubted()) || self.default_is_outdone(now) {
            self.choose_default(now);
        }
        Ok(())
    }

    /// The Server is silent. One Client goes on asking it; the others wait for its answer.
    fn server_fails(&mut self, server: LinkLayerAddress, now: Instant) {
        let Some(state) = self.servers.get_mut(&server) else { return };
        state.up_since = None;
        state.failed = true;
        state.unanswered = 0;
        state.watch = Watch::default();
        let stays = |id: &&Duid| self.clients.get(*id).is_some_and(|c| !c.detached);
        let first = state.bound.iter().find(stays).cloned();
        if let Some(id) = &first {
            state.bound.remove(id);
        }
        self.event(Event::ServerDown(server));
        self.leave_agents_of(server);
        self.choose_default(now);
        for (id, client) in &mut self.clients {
            if let Some(association) = client.associations.get_mut(&server) {
                let key = Timer::Association(id.clone(), server);
                match association.stop() {
                    Some(lease_ends) if !client.detached => self.timers.set(key, lease_ends),
                    _ => self.timers.cancel(&key),
                }
                if client.detached {
                    client.associations.remove(&server);
                }
            }
        }
        self.choose_servers(now);
        if self.uses(server) {
            if let Some(id) = first {
                self.solicit(&id, server, now);
            }
            self.go_on_asking(server, now);
        }
        let ids: Vec<Duid> = self.clients.keys().cloned().collect();
        for id in ids {
            self.reap(&id);
        }
    }

    /// Sees to it that some Client asks a Server that fell silent: the one that did may have left
    /// this node meanwhile.
    pub(super) fn go_on_asking(&mut self, server: LinkLayerAddress, now: Instant) {
        let failed = self.servers.get(&server).is_some_and(|s| s.failed && s.used);
        // Without any Client there is nothing to ask for; the next one asks at once.
        if !failed || self.clients.values().all(|c| c.detached) {
            return;
        }
        self.timers.set(Timer::Probe(server), now + SOLICIT.maximum);
        let idle = |c: &Client| {
            !c.detached && c.associations.get(&server).is_none_or(|a| a.phase == Phase::Idle)
        };
        let asks = |c: &Client| !c.detached && !idle(c);
        if !self.clients.values().any(asks)
            && let Some(id) = self.clients.iter().find(|(_, c)| idle(c)).map(|(id, _)| id.clone())
        {
            self.solicit(&id, server, now);
        }
    }

    /// Chooses the default Server: stays with the present one, once it has settled, while it lives
    /// and none is clearly nearer; else of those that have settled, or of all that answer, the
    /// nearest, and of several about as near the first by this node's own order. Where there is doubt
    /// whether it lives, and none about another, it is that other.
    pub(super) fn choose_default(&mut self, now: Instant) {
        let outdone = self.default_is_outdone(now);
        let stays = !outdone
            && self.default.and_then(|d| Some((d, self.servers.get(&d)?))).is_some_and(|(d, s)| {
                let better = || self.servers.iter().any(|(l2, o)| *l2 != d && o.is_sure(now));
                s.is_usable()
                    && s.is_settled(now)
                    && s.leaving == Leaving::No
                    && !(s.watch.is_doubted() && better())
            });
        if !stays {
            let node = self.config.node.clone();
            let usable = || self.servers.iter().filter(|(_, s)| s.is_usable());
            let distance = |s: &ServerState| s.candidate.distance.get();
            let nearest = usable().filter_map(|(_, s)| distance(s)).min();
            let chosen = usable()
                .min_by_key(|(l2, s)| {
                    let far = nearest.zip(distance(s)).is_some_and(|(n, d)| clearly_nearer(n, d));
                    let (leaving, doubted) = (s.leaving != Leaving::No, s.watch.is_doubted());
                    let some = !self.all_bound_at(&BTreeSet::from([**l2]));
                    (leaving, doubted, !s.is_settled(now), some, far, weight(&node, **l2))
                })
                .map(|(l2, _)| *l2);
            self.default = chosen;
            let departed: Vec<_> = self.departed.keys().copied().collect();
            for prefix in departed {
                self.route_departed(prefix, now);
            }
        }
        self.route_asps();
    }

    /// Adds service prefixes of the link.
    pub fn add_asps(&mut self, asps: &[ipnet::IpNet]) {
        for asp in asps {
            if !self.config.asps.contains(asp) {
                self.config.asps.push(*asp);
            }
        }
        self.route_asps();
    }

    /// Points the service prefixes to the default Server.
    pub(super) fn route_asps(&mut self) {
        let asps = self.config.asps.clone();
        let gone: Vec<_> = self.routed.iter().filter(|p| !asps.contains(p)).copied().collect();
        for prefix in gone {
            self.change(Change::RemoveRoute { prefix });
        }
        for prefix in &asps {
            let change = match self.default {
                Some(server) => Change::SetRoute {
                    prefix: *prefix,
                    // Data goes by the Server's Forwarding Agent, if it has one for all.
                    route: Route {
                        to: NextHop::Neighbor(self.agent_of(server).unwrap_or(server)),
                        transit: false,
                        until: None,
                    },
                },
                None => Change::RemoveRoute { prefix: *prefix },
            };
            self.change(change);
        }
        self.routed = asps;
    }
}

/// Rendezvous weight of a Server for a node: FNV-1a, and the end of `MurmurHash3`, without which
/// addresses that differ in few bits have weights that differ in few.
pub(super) fn weight(node: &str, server: LinkLayerAddress) -> u64 {
    let octets = server.ip_octets();
    let bytes = node.bytes().chain(octets).chain(server.port.to_be_bytes());
    let h = bytes.fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    let h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let h = (h ^ (h >> 33)).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    h ^ (h >> 33)
}
