//! The Server: DHCPv6 server and default forwarder of the link (draft -48 sections 3.7, 3.11).
//!
//! Every Server has a copy of one table, client id -> ACP ([`Mapping`]), kept by one authority
//! and pushed to all; leases are given from it only, so any Server gives a Client the same ACP.
//! A lease makes a static neighbour cache entry ([`Neighbor`]) and its routes.
//!
//! [`dhcp`](self) answers live in `dhcp.rs`, who may have what in `authorization.rs`, the entries
//! in `neighbors.rs` (their links in `links.rs`), what Clients tell each other in `redirect.rs`,
//! Relays and other Servers in `peers.rs`, a Client that goes to another Server in `handover.rs`, a
//! Server that sends its Clients away in `reconfigure.rs`, Forwarding Agents in `agents.rs`,
//! signed messages in `signatures.rs`.

mod agents;
mod authorization;
mod dhcp;
mod handover;
mod links;
mod neighbors;
mod redirect;
mod sizes;

mod peers;
mod reconfigure;
mod signatures;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use uuid::Uuid;

pub use agents::{AGENT_RA_INTERVAL, AgentConfig, Scope};
pub use authorization::{Authentication, Refusal};
pub use handover::MAX_LINGER;
pub use neighbors::Neighbor;
pub use reconfigure::Remaining;
pub use redirect::{Disposition, NotPassed};
pub use signatures::Fault;
pub use sizes::Sizes;

pub use peers::{Announcement, Peer, PeerKind};

use crate::Output;
use crate::address::{Duid, Epoch, LinkLayerAddress, SERVER_ANYCAST, ServerId};
use crate::timers::Timers;
use crate::wire::ip::{DHCP_SERVER_PORT, Packet, Payload};
use crate::wire::nd::{Nd, NdMessage, NdOption};
use crate::wire::{WireError, dhcpv6};

/// How long a claim that is newer than the Server's copy of the table waits for the table.
pub const PARK_TIME: Duration = Duration::from_millis(500);
/// How long an ACP is still announced after the table has named another holder. A new holder that
/// asks here within that time costs BGP nothing: moves inside a Server are no business of Relays.
pub const WITHDRAW_TIME: Duration = PARK_TIME;
/// Most claims that wait at a time.
const MAX_PARKED: usize = 4096;

/// How many Clients a Server has room for, unless it is told: what it says to those that choose
/// among Servers depends on it, and nothing else.
pub const ROOM: usize = 10_000;

/// What a Server is told at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its link-local identity.
    pub id: ServerId,
    /// Its DUID.
    pub duid: Duid,
    /// The AERO Service Prefixes of the link.
    pub asps: Vec<IpNet>,
    /// Lifetime of leases.
    pub lease: Duration,
    /// How claims are checked.
    pub authentication: Authentication,
}

/// Who holds a prefix at present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// UID of the pod.
    pub id: Uuid,
    /// For messages to people, for example `pod web-0 on n3`.
    pub name: String,
    /// Underlay addresses of its node.
    pub underlay: Vec<IpAddr>,
}

/// One row of the shared table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mapping {
    /// The ACP.
    pub prefix: IpNet,
    /// The Client that it belongs to.
    pub client: Duid,
    /// Grows with every change of holder.
    pub epoch: Epoch,
    /// The present holder; `None` while nobody runs.
    pub holder: Option<Holder>,
}

/// What a Server reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A Client got or moved its lease.
    Associated {
        /// The ACP.
        prefix: IpNet,
        /// Where packets for it go now.
        at: LinkLayerAddress,
        /// Where they went before, if that was elsewhere.
        moved_from: Option<LinkLayerAddress>,
        /// The holder's epoch.
        epoch: Epoch,
    },
    /// A lease ended.
    Ended {
        /// The ACP.
        prefix: IpNet,
        /// Where packets for it went.
        at: LinkLayerAddress,
        /// Why.
        why: Ended,
    },
    /// A Client was refused.
    Refused {
        /// The Client.
        client: Duid,
        /// Where it asked from.
        from: LinkLayerAddress,
        /// Why.
        why: Refusal,
    },
    /// A message between Clients was not passed on.
    NotPassed {
        /// Its outer source.
        from: LinkLayerAddress,
        /// Why.
        why: NotPassed,
    },
    /// A control packet was dropped.
    Dropped {
        /// Its outer source.
        from: LinkLayerAddress,
        /// Why.
        why: WireError,
    },
}

/// Why a lease ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ended {
    /// The Client released it.
    Released,
    /// It ran out.
    Expired,
    /// The table names another holder.
    HolderChanged,
    /// The table has no such prefix any more.
    Unmapped,
    /// The Client went to another Server, and the time of the hand-over is over.
    HandedOver,
    /// It does not answer over any of its links.
    Unreachable,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Timer {
    Lease(IpNet),
    Departure(IpNet),
    Former(IpNet),
    Withdraw(IpNet),
    Parked(Waiting),
    Link(IpNet, u8),
    Reconfigure(IpNet),
    Agent(LinkLayerAddress),
    AgentNotice(IpNet),
}

/// Whose claim waits, and where it came from.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Waiting(Duid, LinkLayerAddress);

/// A DHCPv6 message together with where it came from.
#[derive(Debug, Clone)]
struct Request {
    from: LinkLayerAddress,
    source: Ipv6Addr,
    port: u16,
    /// Length of the whole inner packet.
    length: usize,
    message: dhcpv6::Message,
    /// Its signature, if the Client has a key.
    signed: Option<signatures::Signed>,
}

/// The Server engine.
#[derive(Debug)]
pub struct Server {
    config: Config,
    mappings: BTreeMap<IpNet, Mapping>,
    by_client: HashMap<Duid, BTreeSet<IpNet>>,
    neighbors: BTreeMap<IpNet, Neighbor>,
    by_address: HashMap<Ipv6Addr, IpNet>,
    departures: BTreeMap<IpNet, neighbors::Departure>,
    redirects: redirect::Redirects,
    peers: peers::Peers,
    announcements: peers::Announcements,
    hops: handover::Hops,
    /// Links that may be dead, by prefix and Link ID.
    doubts: BTreeMap<(IpNet, u8), links::Doubt>,
    next_nonce: u64,
    reconfigures: BTreeMap<IpNet, reconfigure::Pending>,
    keys: reconfigure::Keys,
    draining: bool,
    room: usize,
    agents: agents::Agents,
    signatures: signatures::Signatures,
    parked: BTreeMap<Waiting, Request>,
    timers: Timers<Timer>,
    outputs: VecDeque<Output<Event>>,
}

impl Server {
    /// A Server with an empty table.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            mappings: BTreeMap::new(),
            by_client: HashMap::new(),
            neighbors: BTreeMap::new(),
            by_address: HashMap::new(),
            departures: BTreeMap::new(),
            redirects: redirect::Redirects::default(),
            peers: peers::Peers::default(),
            announcements: peers::Announcements::default(),
            hops: handover::Hops::default(),
            doubts: BTreeMap::new(),
            next_nonce: 0,
            reconfigures: BTreeMap::new(),
            keys: reconfigure::Keys::default(),
            draining: false,
            room: ROOM,
            agents: agents::Agents::default(),
            signatures: signatures::Signatures::default(),
            parked: BTreeMap::new(),
            timers: Timers::default(),
            outputs: VecDeque::new(),
        }
    }

    /// What to do next, in order.
    pub fn poll_output(&mut self) -> Option<Output<Event>> {
        self.outputs.pop_front()
    }

    /// When [`Server::handle_timeout`] is to be called at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// The neighbour cache, by prefix.
    pub fn neighbors(&self) -> impl Iterator<Item = &Neighbor> {
        self.neighbors.values()
    }

    /// Replaces the service prefixes and the lifetime that new leases get.
    pub fn set_link(&mut self, asps: Vec<IpNet>, lease: Duration, auth: Authentication) {
        self.config.asps = asps;
        self.config.lease = lease;
        self.config.authentication = auth;
    }

    /// How many Clients it has room for: the fuller it is, the fewer new ones choose it. None is
    /// refused for that.
    pub fn set_room(&mut self, clients: usize) {
        self.room = clients;
    }

    /// Adds or changes a row of the table.
    pub fn set_mapping(&mut self, mapping: Mapping, now: Instant) {
        let prefix = mapping.prefix.trunc();
        let client = mapping.client.clone();
        self.evict_former_holder(&mapping, now);
        if let Some(old) = self.mappings.insert(prefix, mapping)
            && old.client != client
        {
            self.unindex(&old.client, prefix);
        }
        self.by_client.entry(client.clone()).or_default().insert(prefix);
        self.unpark(&client, now);
    }

    /// Removes a row of the table, and the lease that was given from it.
    pub fn remove_mapping(&mut self, prefix: IpNet) {
        let prefix = prefix.trunc();
        if let Some(old) = self.mappings.remove(&prefix) {
            self.unindex(&old.client, prefix);
            self.end_neighbor(prefix, Ended::Unmapped);
            self.hops.forget(prefix);
        }
    }

    /// Removes all rows but those of `prefixes`: the end of a list that replaces the table.
    pub fn retain_mappings(&mut self, prefixes: &[IpNet]) {
        let keep: BTreeSet<IpNet> = prefixes.iter().map(IpNet::trunc).collect();
        let gone: Vec<IpNet> =
            self.mappings.keys().filter(|p| !keep.contains(p)).copied().collect();
        for prefix in gone {
            self.remove_mapping(prefix);
        }
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
                Timer::Lease(prefix) => {
                    let lingers = self.neighbors.get(&prefix).is_some_and(|n| n.lingers);
                    let why = if lingers { Ended::HandedOver } else { Ended::Expired };
                    self.end_neighbor(prefix, why);
                }
                Timer::Departure(prefix) => self.advertise_departure(prefix, now),
                Timer::Former(prefix) => self.forget_former(prefix),
                Timer::Withdraw(prefix) => self.announcements.set(prefix, false),
                Timer::Link(prefix, id) => self.solicit_link(prefix, id, now),
                Timer::Reconfigure(prefix) => self.reconfigure_due(prefix, now),
                Timer::Agent(at) => self.agent_due(at, now),
                Timer::AgentNotice(prefix) => self.agent_notice_due(prefix, now),
                Timer::Parked(id) => {
                    if let Some(request) = self.parked.remove(&id) {
                        self.answer(request, false, now);
                    }
                }
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
        let ours = packet.destination.is_multicast()
            || [self.config.id.address(), SERVER_ANYCAST].contains(&packet.destination);
        if !ours {
            return match packet.payload {
                Payload::Icmpv6 { kind: 133..=137, .. } => {
                    self.pass_on(from, &Nd::parse(&packet)?, bytes, now);
                    Ok(())
                }
                _ => self.pass_packet(from, bytes, &packet),
            };
        }
        match packet.payload {
            Payload::Udp { source, destination: DHCP_SERVER_PORT, data } => {
                let link_local = packet.source.is_unicast_link_local();
                if !link_local && !packet.source.is_unspecified() {
                    return Err(WireError::BadAddress);
                }
                let message = dhcpv6::Message::parse(data)?;
                let length = bytes.len();
                let (inner, signed) = (packet.source, None);
                let mut request =
                    Request { from, source: inner, port: source, length, message, signed };
                self.validate(&request)?;
                if !self.authenticate(&mut request, packet.destination, data) {
                    return Ok(());
                }
                if self.peers.contains(from) {
                    return self.release_from_peer(&request, now);
                }
                self.answer(request, true, now);
                Ok(())
            }
            Payload::Icmpv6 { .. } => self.neighbor_discovery(from, &Nd::parse(&packet)?),
            Payload::Udp { .. } => Err(WireError::Unsupported),
        }
    }

    /// Answers solicitations of this Server's own Clients (draft -48 section 3.13); others get no
    /// sign of life. The cache is not touched.
    fn neighbor_discovery(&mut self, from: LinkLayerAddress, nd: &Nd) -> Result<(), WireError> {
        let own = self.config.id.address();
        if matches!(nd.message, NdMessage::Advertisement { solicited: true, .. }) {
            let known = self.link_answers(from, nd);
            return known.then_some(()).ok_or(WireError::BadValue);
        }
        let target = match nd.message {
            NdMessage::Solicitation { target } => Some(target),
            NdMessage::RouterSolicitation => None,
            _ => return Err(WireError::Unsupported),
        };
        if target.is_some_and(|t| t != own && t != SERVER_ANYCAST) {
            return Err(WireError::BadAddress);
        }
        let known = self
            .by_address
            .get(&nd.source)
            .and_then(|p| self.neighbors.get(p))
            .is_some_and(|n| n.has_link(from));
        // Permanent neighbours ask for themselves or pass on what another Server's Client asks.
        if !known && !self.peers.contains(from) {
            return Err(WireError::BadAddress);
        }
        let message = match target {
            Some(_) => {
                NdMessage::Advertisement { solicited: true, override_cached: false, target: own }
            }
            None => NdMessage::RouterAdvertisement {
                lifetime: u16::try_from(self.config.lease.as_secs()).unwrap_or(u16::MAX),
            },
        };
        let answer = Nd {
            source: own,
            destination: nd.source,
            message,
            options: nd.nonce().map(|n| NdOption::Nonce(n.to_vec())).into_iter().collect(),
        };
        self.send(from, answer.emit()?);
        Ok(())
    }

    fn unindex(&mut self, client: &Duid, prefix: IpNet) {
        if let Some(set) = self.by_client.get_mut(client) {
            set.remove(&prefix);
            if set.is_empty() {
                self.by_client.remove(client);
            }
        }
    }

    /// Keeps a request until the table has caught up with it, or for [`PARK_TIME`]. A newer one
    /// of the same Client takes the place of an older one.
    fn park(&mut self, request: Request, now: Instant) {
        let Some(client) = request.message.client.clone() else { return };
        let id = Waiting(client, request.from);
        let full = self.parked.len() >= MAX_PARKED && !self.parked.contains_key(&id);
        if full {
            self.answer(request, false, now);
            return;
        }
        self.parked.insert(id.clone(), request);
        self.timers.set(Timer::Parked(id), now + PARK_TIME);
    }

    fn unpark(&mut self, client: &Duid, now: Instant) {
        // All addresses are above this one.
        let lowest = LinkLayerAddress::new(IpAddr::from([0, 0, 0, 0]), 0);
        let ready: Vec<Waiting> = self
            .parked
            .range(Waiting(client.clone(), lowest)..)
            .map(|(id, _)| id)
            .take_while(|id| id.0 == *client)
            .cloned()
            .collect();
        for id in ready {
            let request = self.parked.remove(&id);
            self.timers.cancel(&Timer::Parked(id));
            if let Some(request) = request {
                self.answer(request, true, now);
            }
        }
    }

    fn send(&mut self, to: LinkLayerAddress, packet: Vec<u8>) {
        self.outputs.push_back(Output::Send { to, packet });
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }
}
