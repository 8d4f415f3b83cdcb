//! The Client role, many Clients in one node (Proxy AERO): draft -48 sections 3.7, 3.11, 3.15.
//!
//! A [`Node`] has one underlay address and speaks for any number of Clients: pods, the node
//! itself, or the one Client of a host. Each Client has a lease at each Server
//! ([`association`](self)), so the loss of a Server costs nothing. Servers are watched by
//! Neighbor Unreachability Detection (`servers.rs`); all traffic without a better path goes
//! through the default Server. Better paths are agreed in `route_optimization.rs`, watched in
//! `reachability.rs`, and follow moves in `mobility.rs`.

mod association;
mod forwarding_agents;
mod links;
mod macro_mobility;
mod mobility;
mod proxy;
mod reachability;
mod route_optimization;
mod selection;
mod servers;
mod signatures;
mod sizes;
mod watch;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rand::SeedableRng;
use rand::rngs::StdRng;

use association::{Association, Phase};
pub use links::{LINK_RETRY, UnderlayLink};
pub use macro_mobility::DRAIN_TIME;
use mobility::{Announcement, News};
pub use proxy::{HAND_OVER_TIME, JOIN_TIME};
use route_optimization::Attempt;
pub use route_optimization::{MAX_ATTEMPTS, MAX_CONTROL, MAX_REDIRECTED};
pub use selection::{MOVE_TIME, NEAR_MARGIN, REST_TIME, SURVEY_INTERVAL, SURVEY_TIME};
pub use servers::Liveness;
use servers::ServerState;
use signatures::Answer;
pub use sizes::Sizes;

use crate::Output;
use crate::address::{Duid, Epoch, LinkLayerAddress, prefix_of_aero_address};
use crate::forwarding::{Change, NextHop, Route};
use crate::neighbor::{Key, NeighborCache};
use crate::timers::{FORWARD_TIME, Timers};
use crate::wire::aero_options::Claim;
use crate::wire::dhcpv6;
use crate::wire::ip::{DHCP_CLIENT_PORT, DHCP_SERVER_PORT, Packet, Payload};
use crate::wire::nd::{Nd, NdMessage};
use crate::wire::{WireError, aero_options};

/// A Server that has just come (back) is not made the default for this long while there is
/// another: its other Clients need the time to associate, and what it cannot reach it drops.
pub const SETTLE_TIME: Duration = Duration::from_secs(2);

/// What a node is told at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// The AERO Service Prefixes of the link, as far as they are known; Servers add to them.
    pub asps: Vec<IpNet>,
    /// Number of the underlay interface.
    pub link_id: u8,
    /// Spreads nodes over Servers: any text that differs from node to node.
    pub node: String,
    /// Seed for transaction ids, nonces and the spread of timers.
    pub seed: u64,
    /// Look for direct paths, and let others send straight to this node.
    pub optimize: bool,
}

/// A Client to speak for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientSpec {
    /// Its identity.
    pub client: Duid,
    /// For which holder it speaks, if it holds by the shared table.
    pub claim: Option<Claim>,
    /// The prefixes that it expects, as a hint to the Server.
    pub prefixes: Vec<IpNet>,
}

/// What a node reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A Server delegated these prefixes (again, or for the first time).
    Delegated {
        /// The Client.
        client: Duid,
        /// The Server.
        server: LinkLayerAddress,
        /// The prefixes.
        prefixes: Vec<IpNet>,
        /// True if the Client had no lease at this Server before.
        new: bool,
    },
    /// A Server refused.
    Refused {
        /// The Client.
        client: Duid,
        /// The Server.
        server: LinkLayerAddress,
        /// The Server's words.
        text: String,
    },
    /// The Client has no lease left; its prefixes are not served here any more.
    Muted {
        /// The Client.
        client: Duid,
        /// Why.
        why: Muted,
    },
    /// A released Client is gone for good.
    Released {
        /// The Client.
        client: Duid,
    },
    /// Packets of a pair go straight to the correspondent from now on.
    PathOpened {
        /// Our ACP.
        own: IpNet,
        /// The correspondent's.
        peer: IpNet,
        /// Where it is.
        to: LinkLayerAddress,
    },
    /// Packets of a pair go by a Server again.
    PathLost {
        /// Our ACP.
        own: IpNet,
        /// The correspondent's.
        peer: IpNet,
        /// Why.
        why: PathLost,
    },
    /// A message about direct paths was understood and not acted upon.
    Ignored {
        /// Its outer source.
        from: LinkLayerAddress,
        /// Why.
        why: Ignored,
    },
    /// A Server answers.
    ServerUp(LinkLayerAddress),
    /// A Server does not answer any more.
    ServerDown(LinkLayerAddress),
    /// The Client left this Server for another (macro mobility).
    LeftServer {
        /// The Client.
        client: Duid,
        /// The Server that it left.
        server: LinkLayerAddress,
        /// True if that Server has said that it knows.
        confirmed: bool,
    },
    /// What this node sends goes over the underlay interface with this Link ID from now on.
    LinkUsed(u8),
    /// A control packet was dropped.
    Dropped {
        /// Its outer source.
        from: LinkLayerAddress,
        /// Why.
        why: WireError,
    },
}

/// Why a Client was muted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Muted {
    /// A Server says that the prefix moved, under this epoch.
    Moved(Epoch),
    /// It went to another Proxy ([`Node::hand_over`]).
    HandedOver,
    /// All Servers refused, or all leases ran out.
    LeaseLost,
}

/// Why a direct path is not used any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum PathLost {
    /// Three solicitations without an answer.
    Unreachable,
    /// The correspondent, or we, moved.
    Moved,
    /// Not used for FORWARD_TIME.
    Idle,
}

impl PathLost {
    /// All, for counters.
    pub const ALL: [PathLost; 3] = [PathLost::Unreachable, PathLost::Moved, PathLost::Idle];

    /// The label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            PathLost::Unreachable => "unreachable",
            PathLost::Moved => "moved",
            PathLost::Idle => "idle",
        }
    }
}

/// How often what happened to direct paths since the start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PathCounts {
    /// Opened.
    pub opened: u64,
    /// Ended, by reason.
    pub lost: BTreeMap<PathLost, u64>,
    /// Messages that were not acted upon, by reason.
    pub ignored: BTreeMap<Ignored, u64>,
}

/// Why a message about direct paths was not acted upon. The names are those of counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ignored {
    /// Direct paths are turned off here.
    Unwilling,
    /// For an ACP that is not served here.
    NotServed,
    /// An ACP that does not belong to the sender's address, to the packet that it is about, or
    /// to the link.
    BadPrefix,
    /// No link-layer address that could be sent to.
    NoLinkLayer,
    /// A Redirect that nothing was asked for.
    NotAsked,
    /// The nonce is not the one that was sent.
    WrongNonce,
    /// Of or about a neighbour that there is no entry for, or not from where it is.
    NoEntry,
    /// There is no room for another neighbour.
    CacheFull,
}

impl Ignored {
    /// All, for counters.
    pub const ALL: [Ignored; 8] = [
        Ignored::Unwilling,
        Ignored::NotServed,
        Ignored::BadPrefix,
        Ignored::NoLinkLayer,
        Ignored::NotAsked,
        Ignored::WrongNonce,
        Ignored::NoEntry,
        Ignored::CacheFull,
    ];

    /// The label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Ignored::Unwilling => "unwilling",
            Ignored::NotServed => "not_served",
            Ignored::BadPrefix => "bad_prefix",
            Ignored::NoLinkLayer => "no_link_layer",
            Ignored::NotAsked => "not_asked",
            Ignored::WrongNonce => "wrong_nonce",
            Ignored::NoEntry => "no_entry",
            Ignored::CacheFull => "cache_full",
        }
    }
}

/// How a Client stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Standing {
    /// Servers that hold a lease of it now.
    pub bound: Vec<LinkLayerAddress>,
    /// Servers that answer but have not yet given a lease.
    pub pending: Vec<LinkLayerAddress>,
    /// The last refusal since the Client was attached, by the Server's words.
    pub refusal: Option<String>,
    /// Delegated prefixes.
    pub prefixes: Vec<IpNet>,
    /// Served: packets from and to the prefixes are forwarded.
    pub served: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Association(Duid, LinkLayerAddress),
    Probe(LinkLayerAddress),
    LastLease(Duid),
    Departed(IpNet),
    Neighbor(Key),
    Announcement(Key),
    Attempts,
    HandOver(Duid),

    Farewell(Duid, LinkLayerAddress),
    Return(LinkLayerAddress),
    Agent(LinkLayerAddress),
    Link(u8),
    Survey,
}

#[derive(Debug)]
struct Client {
    spec: ClientSpec,
    prefixes: Vec<IpNet>,
    served: bool,
    detached: bool,
    refusal: Option<String>,
    /// The underlay address changed, and correspondents have not been told yet.
    announce: bool,
    associations: BTreeMap<LinkLayerAddress, Association>,
}

/// A prefix that left this node.
#[derive(Debug, Clone, Copy)]
struct Departed {
    /// Until when what comes for it is sent on.
    until: Instant,
    /// The Proxy that has it now, if that is known; else the default Server.
    to: Option<LinkLayerAddress>,
}

/// The Client engine of one node.
#[derive(Debug)]
pub struct Node {
    config: Config,
    clients: BTreeMap<Duid, Client>,
    servers: BTreeMap<LinkLayerAddress, ServerState>,
    default: Option<LinkLayerAddress>,
    routed: Vec<IpNet>,
    /// Prefixes that left this node, and until when what comes for them is sent on.
    departed: BTreeMap<IpNet, Departed>,
    proxies: proxy::Proxies,
    neighbors: NeighborCache,
    /// Predirects by own ACP and the longest prefix that the destination can be in.
    attempts: BTreeMap<(IpNet, IpNet), Attempt>,
    counts: PathCounts,
    /// When attempts that are over were last removed.
    swept: Option<Instant>,
    announcements: BTreeMap<Key, Announcement>,
    /// The time since 1970 at a moment.
    clock: Option<(Instant, Duration)>,
    links: links::Links,
    agents: forwarding_agents::Agents,
    farewells: BTreeMap<(Duid, LinkLayerAddress), macro_mobility::Farewell>,
    signatures: signatures::Signatures,
    selection: selection::Selection,
    timers: Timers<Timer>,
    rng: StdRng,
    outputs: VecDeque<Output<Event>>,
}

impl Node {
    /// A node without Clients or Servers.
    pub fn new(config: Config) -> Self {
        let rng = StdRng::seed_from_u64(config.seed);
        Self {
            links: links::Links::new(config.link_id),
            farewells: BTreeMap::new(),
            signatures: signatures::Signatures::default(),
            selection: selection::Selection::default(),
            agents: BTreeMap::new(),
            config,
            clients: BTreeMap::new(),
            servers: BTreeMap::new(),
            default: None,
            routed: Vec::new(),
            departed: BTreeMap::new(),
            proxies: proxy::Proxies::default(),
            neighbors: NeighborCache::default(),
            attempts: BTreeMap::new(),
            counts: PathCounts::default(),
            swept: None,
            announcements: BTreeMap::new(),
            clock: None,
            timers: Timers::default(),
            rng,
            outputs: VecDeque::new(),
        }
    }

    /// What to do next, in order.
    pub fn poll_output(&mut self) -> Option<Output<Event>> {
        self.outputs.pop_front()
    }

    /// When [`Node::handle_timeout`] is to be called at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Speaks for a Client from now on: asks every Server that is used for its prefixes. For one
    /// that is known already, takes the new claim and asks again.
    pub fn attach(&mut self, spec: ClientSpec, now: Instant) {
        let id = spec.client.clone();
        if self.joins(&spec, now) {
            return;
        }
        if !self.clients.contains_key(&id) {
            self.choose_servers(now);
        }
        let old = self.clients.remove(&id);
        // What it has is used to its end if no Server answers.
        let end =
            old.iter().flat_map(|c| c.associations.values()).filter_map(Association::end).max();
        if let Some(end) = end {
            self.timers.set(Timer::LastLease(id.clone()), end);
        }
        let (prefixes, served) = old.map_or((Vec::new(), false), |c| (c.prefixes, c.served));
        let client = Client {
            spec,
            prefixes,
            served,
            detached: false,
            refusal: None,
            announce: false,
            associations: BTreeMap::new(),
        };
        self.clients.insert(id.clone(), client);
        let used: Vec<_> = self.servers.iter().filter(|(_, s)| s.used).map(|(l2, _)| *l2).collect();
        for server in used {
            self.solicit(&id, server, now);
            self.go_on_asking(server, now);
        }
    }

    /// The Client left this node: tells its correspondents, releases its leases, and for
    /// FORWARD_TIME sends on to the default Server what still comes for it.
    pub fn detach(&mut self, id: &Duid, now: Instant) {
        let Some(client) = self.clients.get_mut(id) else { return };
        client.detached = true;
        if self.proxies.is_leaving(id) {
            // The rest follows when the hand-over is over.
            return;
        }
        self.proxies.forget_coming(id);
        let Some(client) = self.clients.get_mut(id) else { return };
        let epoch = client.spec.claim.map(|c| c.epoch);
        if let Some(via) = self.default.filter(|_| client.served) {
            for own in client.prefixes.clone() {
                self.announce(own, via, News::Left { epoch }, now);
            }
        }
        self.unserve(id, now);
        let Some(client) = self.clients.get(id) else { return };
        let servers: Vec<_> = client.associations.keys().copied().collect();
        for server in servers {
            self.release(id, server, now);
        }
        self.reap(id);
    }

    /// The node's underlay address changed: tells every Server from the new one, at once, and
    /// correspondents as soon as a Server has taken note.
    pub fn underlay_changed(&mut self, now: Instant) {
        self.suspend_paths(now);
        let all: Vec<_> = self
            .clients
            .iter()
            .flat_map(|(id, c)| c.associations.keys().map(move |s| (id.clone(), *s)))
            .collect();
        for (id, server) in all {
            self.rebind_moved(&id, server, now);
        }
    }

    /// How a Client stands, or `None` if this node does not speak for it.
    pub fn standing(&self, id: &Duid) -> Option<Standing> {
        let client = self.clients.get(id)?;
        let mut standing = Standing {
            refusal: client.refusal.clone(),
            prefixes: client.prefixes.clone(),
            served: client.served,
            ..Standing::default()
        };
        for (server, association) in &client.associations {
            if association.lease.is_some() {
                standing.bound.push(*server);
            } else if self.servers.get(server).is_some_and(servers::ServerState::may_answer) {
                standing.pending.push(*server);
            }
        }
        Some(standing)
    }

    /// What happened to direct paths since the start.
    pub fn path_counts(&self) -> &PathCounts {
        &self.counts
    }

    /// The Server that traffic without a better path goes to.
    pub fn default_server(&self) -> Option<LinkLayerAddress> {
        self.default
    }

    /// The service prefixes of the link, as far as they are known.
    pub fn asps(&self) -> &[IpNet] {
        &self.config.asps
    }

    /// A control packet that came from `from`.
    pub fn handle_packet(&mut self, from: LinkLayerAddress, packet: &[u8], now: Instant) {
        if let Err(why) = self.try_packet(from, packet, now) {
            self.outputs.push_back(Output::Event(Event::Dropped { from, why }));
        }
    }

    /// Does what has fallen due.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(timer) = self.timers.pop_due(now) {
            match timer {
                Timer::Association(id, server) => self.association_due(&id, server, now),
                Timer::Probe(server) => self.probe_due(server, now),
                Timer::LastLease(id) => self.check_lease(&id, now),
                Timer::Departed(prefix) => self.route_departed(prefix, now),
                Timer::Neighbor(key) => self.neighbor_due(key, now),
                Timer::Attempts => self.sweep_attempts(now),
                Timer::Announcement(key) => self.announcement_due(key, now),
                Timer::HandOver(id) => self.hand_over_due(&id, now),

                Timer::Farewell(id, server) => self.farewell_due(&id, server, now),
                Timer::Return(server) => self.return_to(server, now),
                Timer::Agent(at) => self.agent_due(at, now),
                Timer::Link(link) => self.try_link(link, now),
                Timer::Survey => self.survey_due(now),
            }
        }
    }

    fn try_packet(
        &mut self,
        from: LinkLayerAddress,
        bytes: &[u8],
        now: Instant,
    ) -> Result<(), WireError> {
        let packet = Packet::parse(bytes)?;
        // A Client reacts to its Servers only: they are its trust anchors (section 3.8). The
        // exception are solicitations and their answers between neighbours.
        let from_server = self.servers.contains_key(&from);
        match packet.payload {
            Payload::Udp { destination: DHCP_CLIENT_PORT, data, .. } if from_server => {
                let message = dhcpv6::Message::parse(data)?;
                let answer = self.check_answer(&message, data, &packet)?;
                if let Answer::SayAgain { server, anew } = answer {
                    return self.say_again(&message, server, anew, now);
                }
                if message.kind == dhcpv6::Kind::Reconfigure {
                    return self.reconfigure(from, &message, data, now);
                }
                if self.survey_answered(from, &message, now)
                    || self.farewell_answered(packet.source, &message, now)
                {
                    return Ok(());
                }
                self.dhcp_answer(from, packet.source, &message, now)
            }
            Payload::Icmpv6 { .. } if from_server => {
                self.neighbor_discovery(from, &Nd::parse(&packet)?, now)
            }
            Payload::Icmpv6 { .. } if self.agents.contains_key(&from) => {
                self.agent_says(from, &Nd::parse(&packet)?, now)
            }
            Payload::Icmpv6 { .. } => self.straight_from_neighbor(from, &Nd::parse(&packet)?, now),
            Payload::Udp { destination: DHCP_SERVER_PORT, data, .. }
                if self.proxies.knows(from) =>
            {
                self.proxy_asks(from, packet.source, &dhcpv6::Message::parse(data)?, now)
            }
            Payload::Udp { .. } if from_server => Err(WireError::Unsupported),
            Payload::Udp { .. } => Err(WireError::BadAddress),
        }
    }

    /// What comes straight from another Client.
    fn straight_from_neighbor(
        &mut self,
        from: LinkLayerAddress,
        nd: &Nd,
        now: Instant,
    ) -> Result<(), WireError> {
        let outcome = match nd.message {
            NdMessage::Solicitation { .. } => self.solicited(from, nd, now),
            NdMessage::Advertisement { solicited: true, .. } => self.advertised(from, nd, now),
            NdMessage::Redirect { .. } | NdMessage::Advertisement { .. }
                if self.proxies.knows(from) =>
            {
                return self.proxy_says(from, nd, now);
            }
            _ => return Err(WireError::BadAddress),
        };
        self.ignore(from, outcome)
    }

    /// What comes from a Server: its own, or passed on from another Client.
    fn neighbor_discovery(
        &mut self,
        from: LinkLayerAddress,
        nd: &Nd,
        now: Instant,
    ) -> Result<(), WireError> {
        let of_client = prefix_of_aero_address(nd.source).is_some();
        match nd.message {
            NdMessage::Advertisement { solicited: true, .. } if of_client => {
                let outcome = self.advertised(from, nd, now);
                self.ignore(from, outcome)
            }
            NdMessage::Advertisement { solicited: true, .. } => self.probe_answered(from, nd, now),
            NdMessage::Advertisement { .. } if of_client => {
                let outcome = self.told_of_move(nd, now);
                self.ignore(from, outcome)
            }
            NdMessage::Advertisement { target, .. } => {
                let prefix = prefix_of_aero_address(target).ok_or(WireError::BadAddress)?;
                let epoch = nd.epoch().ok_or(WireError::Unsupported)?;
                self.moved_away(prefix, epoch, from, now);
                Ok(())
            }
            // Times are not touched: this tells nothing about the direct path.
            NdMessage::Solicitation { target } => {
                let own = self.served_at(target).ok_or(WireError::BadAddress)?;
                self.answer_solicitation(own, nd, from);
                Ok(())
            }
            NdMessage::Redirect { predirect, .. } => {
                let outcome = if predirect {
                    self.predirected(from, nd, now)
                } else {
                    self.redirected(nd, now)
                };
                self.ignore(from, outcome)
            }
            NdMessage::RouterAdvertisement { lifetime } => {
                self.router_advertised(from, nd, lifetime, now)
            }
            NdMessage::RouterSolicitation => Err(WireError::Unsupported),
        }
    }

    /// A Server says that a prefix went elsewhere. An epoch that is not newer than our own claim
    /// is about an earlier move.
    fn moved_away(&mut self, prefix: IpNet, epoch: Epoch, told_by: LinkLayerAddress, now: Instant) {
        let ours = |c: &Client| {
            c.prefixes.iter().any(|p| p.contains(&prefix))
                && c.spec.claim.is_none_or(|claim| epoch > claim.epoch)
        };
        let Some(id) = self.clients.iter().find(|(_, c)| ours(c)).map(|(id, _)| id.clone()) else {
            return;
        };
        let handed_over = self.told_of_hand_over(&id, told_by);
        let Some(client) = self.clients.get_mut(&id) else { return };
        for (server, association) in &mut client.associations {
            association.lease = None;
            association.phase = Phase::Idle;
            self.timers.cancel(&Timer::Association(id.clone(), *server));
            if let Some(s) = self.servers.get_mut(server) {
                s.bound.remove(&id);
            }
        }
        let served = client.served;
        if served {
            let what = News::Left { epoch: Some(epoch) };
            for own in client.prefixes.clone() {
                self.announce(own, told_by, what, now);
            }
        }
        if handed_over {
            self.hand_over_may_end(&id, now);
            return;
        }
        if self.proxies.forget_coming(&id)
            && let Some(client) = self.clients.get_mut(&id)
        {
            client.detached = true;
        }
        self.unserve(&id, now);
        if served {
            self.event(Event::Muted { client: id.clone(), why: Muted::Moved(epoch) });
        }
        self.reap(&id);
    }

    /// Serves the prefixes of a Client that has a lease.
    fn serve(&mut self, id: &Duid, prefixes: &[IpNet]) {
        let Some(client) = self.clients.get_mut(id) else { return };
        if client.detached || (client.served && client.prefixes == prefixes) {
            return;
        }
        let stale: Vec<IpNet> =
            client.prefixes.iter().filter(|p| !prefixes.contains(p)).copied().collect();
        client.served = true;
        client.prefixes = prefixes.to_vec();
        for prefix in stale {
            self.prefix_left(prefix);
            self.change(Change::RemoveRoute { prefix });
        }
        for prefix in prefixes {
            self.prefix_arrived(*prefix);
            self.departed.remove(prefix);
            self.timers.cancel(&Timer::Departed(*prefix));
            let to = self.proxies.place_of(id);
            let route = Route { to, transit: false, until: None };
            self.change(Change::SetRoute { prefix: *prefix, route });
        }
    }

    /// Serves them no more; what still comes for them goes on to the default Server for a while.
    fn unserve(&mut self, id: &Duid, now: Instant) {
        self.unserve_for(id, None, now);
    }

    /// The same, where the Proxy that serves them now may be known.
    fn unserve_for(&mut self, id: &Duid, to: Option<LinkLayerAddress>, now: Instant) {
        let Some(client) = self.clients.get_mut(id) else { return };
        if !client.served {
            return;
        }
        client.served = false;
        let prefixes = client.prefixes.clone();
        for prefix in prefixes {
            self.prefix_left(prefix);
            if to.is_none() {
                self.refuse_from_former(prefix, now);
            }
            self.departed.insert(prefix, Departed { until: now + FORWARD_TIME, to });
            self.timers.set(Timer::Departed(prefix), now + FORWARD_TIME);
            self.route_departed(prefix, now);
        }
    }

    /// Sends on to the present default Server what still comes for a prefix that left.
    fn route_departed(&mut self, prefix: IpNet, now: Instant) {
        let departed = self.departed.get(&prefix).copied().filter(|d| d.until > now);
        let (until, proxy) = (departed.map(|d| d.until), departed.and_then(|d| d.to));
        let change = match (proxy.or(self.default), until) {
            (Some(next), Some(until)) => {
                let to = NextHop::Neighbor(next);
                let route = Route { to, transit: true, until: Some(until) };
                Change::SetRoute { prefix, route }
            }
            _ => Change::RemoveRoute { prefix },
        };
        if until.is_none() {
            self.departed.remove(&prefix);
        }
        self.change(change);
    }

    /// Mutes a Client whose last lease is gone.
    fn check_lease(&mut self, id: &Duid, now: Instant) {
        let Some(client) = self.clients.get(id) else { return };
        if client.served && client.associations.values().all(|a| a.lease.is_none()) {
            self.unserve(id, now);
            self.event(Event::Muted { client: id.clone(), why: Muted::LeaseLost });
        }
    }

    /// Forgets a detached Client once its leases are released.
    fn reap(&mut self, id: &Duid) {
        let done = self.clients.get(id).is_some_and(|c| {
            c.detached
                && !self.proxies.is_leaving(id)
                && c.associations.values().all(|a| a.phase != Phase::Releasing)
        });
        if !done {
            return;
        }
        if let Some(client) = self.clients.remove(id) {
            self.timers.cancel(&Timer::LastLease(id.clone()));
            for server in client.associations.keys() {
                self.timers.cancel(&Timer::Association(id.clone(), *server));
                if let Some(s) = self.servers.get_mut(server) {
                    s.bound.remove(id);
                }
            }
            self.event(Event::Released { client: id.clone() });
        }
    }

    fn send(&mut self, to: LinkLayerAddress, packet: Vec<u8>) {
        self.outputs.push_back(Output::Send { to, packet });
    }

    fn event(&mut self, event: Event) {
        match event {
            Event::PathOpened { .. } => self.counts.opened += 1,
            Event::PathLost { why, .. } => *self.counts.lost.entry(why).or_default() += 1,
            Event::Ignored { why, .. } => *self.counts.ignored.entry(why).or_default() += 1,
            _ => {}
        }
        self.outputs.push_back(Output::Event(event));
    }

    fn change(&mut self, change: Change) {
        self.outputs.push_back(Output::Forward(change));
    }
}

/// The service prefixes that an answer names.
fn asps_of(message: &dhcpv6::Message) -> &[IpNet] {
    message
        .aero
        .iter()
        .find_map(|o| match o {
            aero_options::AeroOption::LinkReply { asps, .. } => Some(&**asps),
            _ => None,
        })
        .unwrap_or_default()
}
