//! The forwarding table: the engines' only influence on user data.
//!
//! An engine emits [`Change`]s; a forwarder (user space or eBPF) applies them. [`Table`] is the
//! table as plain data with the look-ups that a forwarder makes per packet: draft -48 sections
//! 3.5 (forwarding inside the interface) and 3.8 (data origin authentication). It is what the
//! user-space forwarder uses and what tests compare others with.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::time::Instant;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use prefix_trie::PrefixMap;

use crate::address::{LinkLayerAddress, prefix_of_aero_address};

mod direct;
mod held;

use direct::DirectPaths;
pub use held::{Held, MAX_HELD};

/// Where an inner packet goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NextHop {
    /// To this node's own network layer: the prefix is attached here.
    Local,
    /// Into a tunnel to this neighbour.
    Neighbor(LinkLayerAddress),
    /// Nowhere, and the source is to be told: a Relay's black hole for a service prefix.
    Unreachable,
    /// Nowhere yet: a Client is between two Proxies. The forwarder keeps the packets ([`Held`])
    /// until the route changes, and then looks them up again: those that came from `first` before
    /// the others.
    Hold {
        /// The Proxy that the Client comes from.
        first: Option<LinkLayerAddress>,
    },
}

/// A route for inner destinations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Where to.
    pub to: NextHop,
    /// True if packets that came out of a tunnel may take this route into another one. Clients
    /// have it only for prefixes that left them, or two nodes could hand a packet to and fro.
    pub transit: bool,
    /// The route is ignored from this time on.
    pub until: Option<Instant>,
}

/// One change of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Sets the route of an inner destination prefix.
    SetRoute {
        /// Inner destinations.
        prefix: IpNet,
        /// Where they go.
        route: Route,
    },
    /// Removes the route of a prefix.
    RemoveRoute {
        /// As it was set.
        prefix: IpNet,
    },
    /// Accepts whatever comes from this outer source: a Server (for a Client), a Server or Relay
    /// (for a Server).
    AddPeer(LinkLayerAddress),
    /// The same for a Relay, as a Server sees it; moreover no packet that came from a peer is ever
    /// sent to it ("no bounce", draft -48 section 3.5).
    AddRelay(LinkLayerAddress),
    /// The same for a Forwarding Agent of this Server: what it sends on is forwarded as if it had
    /// come to this Server itself, also to a Relay.
    AddAgent(LinkLayerAddress),
    /// No longer accepts it.
    RemovePeer(LinkLayerAddress),
    /// Accepts inner sources in `prefix` from this outer source only.
    SetSource {
        /// Inner sources.
        prefix: IpNet,
        /// The outer source that may send them.
        from: LinkLayerAddress,
        /// Ignored from this time on (AcceptTime).
        until: Option<Instant>,
    },
    /// Accepts them from this outer source too: a neighbour with several underlay links.
    AddSource {
        /// Inner sources, as given to [`Change::SetSource`].
        prefix: IpNet,
        /// Another outer source that may send them.
        from: LinkLayerAddress,
        /// Ignored from this time on.
        until: Option<Instant>,
    },
    /// Accepts that prefix from nobody.
    RemoveSource {
        /// As it was set.
        prefix: IpNet,
    },
    /// For the time of a hand-over accepts packets *to* `prefix` from the node that it left,
    /// which sends on what still reaches it, whatever their inner source.
    SetHandover {
        /// Inner destinations.
        prefix: IpNet,
        /// The node that the prefix left.
        from: LinkLayerAddress,
        /// Ignored from this time on.
        until: Instant,
    },
    /// Sends packets from the own prefix `source` to `destination` straight to a correspondent.
    SetDirect {
        /// Own prefix, exactly as its local route was set.
        source: IpNet,
        /// The correspondent's whole prefix.
        destination: IpNet,
        /// The correspondent.
        to: LinkLayerAddress,
        /// Ignored from this time on (ForwardTime).
        until: Instant,
    },
    /// Sends them as the routes say again.
    RemoveDirect {
        /// As it was set.
        source: IpNet,
        /// As it was set.
        destination: IpNet,
    },
}

/// Why a packet was dropped. The names are those of the drop counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Drop {
    /// Not an IP packet, or cut short.
    Malformed,
    /// From the network layer with a source that is not attached here.
    ForeignSource,
    /// The outer source may not send this inner source.
    OriginRefused,
    /// No route for the inner destination.
    NoRoute,
    /// The next hop is the node that the packet came from.
    WouldReturn,
    /// From a tunnel to a destination that is not attached here and may not be sent on.
    NotForUs,
    /// In a service prefix and nobody's. The source is to be told by an ICMP Destination
    /// Unreachable, at a limited rate.
    Unreachable,
    /// A shim of a kind that is not carried, or a message of RFC 6706.
    Shim,
    /// The outer TTL has run out: the packet went in a loop, or too far.
    OuterTtl,
    /// Too big for the way, and not to be fragmented.
    TooBig,
    /// A fragment that was refused.
    Fragment,
    /// Marked by congestion, and its ends do not know ECN (RFC 6040).
    Congestion,
}

impl Drop {
    /// All reasons, for counters.
    pub const ALL: [Drop; 12] = [
        Drop::Malformed,
        Drop::ForeignSource,
        Drop::OriginRefused,
        Drop::NoRoute,
        Drop::WouldReturn,
        Drop::NotForUs,
        Drop::Unreachable,
        Drop::Shim,
        Drop::OuterTtl,
        Drop::TooBig,
        Drop::Fragment,
        Drop::Congestion,
    ];

    /// The label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            Drop::Malformed => "malformed",
            Drop::ForeignSource => "foreign_source",
            Drop::OriginRefused => "origin_refused",
            Drop::NoRoute => "no_route",
            Drop::WouldReturn => "would_return",
            Drop::NotForUs => "not_for_us",
            Drop::Unreachable => "unreachable",
            Drop::Shim => "shim",
            Drop::OuterTtl => "outer_ttl",
            Drop::TooBig => "too_big",
            Drop::Fragment => "fragment",
            Drop::Congestion => "congestion",
        }
    }
}

/// What to do with a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// Hand it to this node's network layer.
    Deliver,
    /// Send it (again) in a tunnel to this neighbour.
    Tunnel(LinkLayerAddress),
    /// Drop it and count why.
    Drop(Drop),
    /// Keep it until the route of `prefix` changes ([`Held`]).
    Hold {
        /// What the packet is for.
        prefix: IpNet,
        /// Ahead of those that came another way.
        first: bool,
    },
}

/// Source and destination of an inner packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Inner {
    /// Inner source address.
    pub source: IpAddr,
    /// Inner destination address.
    pub destination: IpAddr,
}

impl Inner {
    /// Reads the addresses of an IPv4 or IPv6 packet. `None` if it is neither or cut short.
    pub fn of(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => {
                let source: [u8; 4] = packet.get(12..16)?.try_into().ok()?;
                let destination: [u8; 4] = packet.get(16..20)?.try_into().ok()?;
                Some(Self { source: source.into(), destination: destination.into() })
            }
            6 => {
                let source: [u8; 16] = packet.get(8..24)?.try_into().ok()?;
                let destination: [u8; 16] = packet.get(24..40)?.try_into().ok()?;
                Some(Self { source: source.into(), destination: destination.into() })
            }
            _ => None,
        }
    }
}

/// A longest-prefix-match table for both families.
#[derive(Debug, Clone)]
struct Lpm<T> {
    v4: PrefixMap<Ipv4Net, T>,
    v6: PrefixMap<Ipv6Net, T>,
}

impl<T> Default for Lpm<T> {
    fn default() -> Self {
        Self { v4: PrefixMap::new(), v6: PrefixMap::new() }
    }
}

impl<T> Lpm<T> {
    fn insert(&mut self, prefix: IpNet, value: T) {
        match prefix.trunc() {
            IpNet::V4(p) => drop(self.v4.insert(p, value)),
            IpNet::V6(p) => drop(self.v6.insert(p, value)),
        }
    }

    fn get_mut(&mut self, prefix: IpNet) -> Option<&mut T> {
        match prefix.trunc() {
            IpNet::V4(p) => self.v4.get_mut(&p),
            IpNet::V6(p) => self.v6.get_mut(&p),
        }
    }

    fn remove(&mut self, prefix: IpNet) {
        match prefix.trunc() {
            IpNet::V4(p) => drop(self.v4.remove(&p)),
            IpNet::V6(p) => drop(self.v6.remove(&p)),
        }
    }

    fn get(&self, prefix: IpNet) -> Option<&T> {
        match prefix.trunc() {
            IpNet::V4(p) => self.v4.get(&p),
            IpNet::V6(p) => self.v6.get(&p),
        }
    }

    /// The longest match that `live` accepts. Nearly always that is the longest of all, so the
    /// walk over all covering prefixes is left to the case that it is not.
    fn longest_match(&self, address: IpAddr, live: impl Fn(&T) -> bool) -> Option<(IpNet, &T)> {
        match address {
            IpAddr::V4(a) => {
                let host = Ipv4Net::from(a);
                let longest = self.v4.get_lpm(&host)?;
                let found = if live(longest.1) {
                    longest
                } else {
                    self.v4.cover(&host).filter(|(_, t)| live(t)).last()?
                };
                Some((found.0.into(), found.1))
            }
            IpAddr::V6(a) => {
                let host = Ipv6Net::from(a);
                let longest = self.v6.get_lpm(&host)?;
                let found = if live(longest.1) {
                    longest
                } else {
                    self.v6.cover(&host).filter(|(_, t)| live(t)).last()?
                };
                Some((found.0.into(), found.1))
            }
        }
    }

    fn len(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    fn values(&self) -> impl Iterator<Item = &T> {
        self.v4.values().chain(self.v6.values())
    }

    fn is_empty(&self) -> bool {
        self.v4.is_empty() && self.v6.is_empty()
    }

    fn retain(&mut self, keep: impl Fn(&T) -> bool) {
        self.v4.retain(|_, t| keep(t));
        self.v6.retain(|_, t| keep(t));
    }
}

/// Entries in a [`Table`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// Routes.
    pub routes: usize,
    /// Inner source prefixes.
    pub sources: usize,
    /// Peers.
    pub peers: usize,
    /// Hand-overs.
    pub handovers: usize,
    /// Direct paths.
    pub direct: usize,
}

/// Outer sources of one prefix, each with the time at which it ends.
type Sources = Vec<(LinkLayerAddress, Option<Instant>)>;

/// The table as data.
#[derive(Debug, Clone, Default)]
pub struct Table {
    routes: Lpm<Route>,
    sources: Lpm<Sources>,
    peers: HashSet<LinkLayerAddress>,
    relays: HashSet<LinkLayerAddress>,
    agents: HashSet<LinkLayerAddress>,
    handovers: HashMap<LinkLayerAddress, Vec<(IpNet, Instant)>>,
    direct: DirectPaths,
}

/// The fate of a packet from the network layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Egress {
    /// What to do with it.
    pub disposition: Disposition,
    /// It goes by a Server for want of a direct path: the engine may want to look for one
    /// ([`Node::data_packet_by_server`](crate::client::Node::data_packet_by_server)).
    pub by_server: bool,
}

impl Table {
    /// Applies one change.
    pub fn apply(&mut self, change: &Change) {
        match change {
            Change::SetRoute { prefix, route } => self.routes.insert(*prefix, *route),
            Change::RemoveRoute { prefix } => self.routes.remove(*prefix),
            Change::AddPeer(peer) => drop(self.peers.insert(*peer)),
            Change::AddRelay(peer) => {
                self.peers.insert(*peer);
                self.relays.insert(*peer);
            }
            Change::AddAgent(agent) => drop(self.agents.insert(*agent)),
            Change::RemovePeer(peer) => {
                self.agents.remove(peer);
                self.peers.remove(peer);
                self.relays.remove(peer);
            }
            Change::SetSource { prefix, from, until } => {
                self.sources.insert(*prefix, vec![(*from, *until)]);
            }
            Change::AddSource { prefix, from, until } => match self.sources.get_mut(*prefix) {
                Some(list) => {
                    list.retain(|(l2, _)| l2 != from);
                    list.push((*from, *until));
                }
                None => self.sources.insert(*prefix, vec![(*from, *until)]),
            },
            Change::RemoveSource { prefix } => self.sources.remove(*prefix),
            Change::SetHandover { prefix, from, until } => {
                let list = self.handovers.entry(*from).or_default();
                list.retain(|(p, _)| p != prefix);
                list.push((*prefix, *until));
            }
            Change::SetDirect { source, destination, to, until } => {
                self.direct.set(*source, *destination, *to, *until);
            }
            Change::RemoveDirect { source, destination } => {
                self.direct.remove(*source, *destination);
            }
        }
    }

    /// Forgets what has run out. Look-ups ignore it anyway; this gives the memory back.
    pub fn expire(&mut self, now: Instant) {
        self.routes.retain(|r| r.until.is_none_or(|t| t > now));
        self.sources.retain(|list| any_live(list, now));
        for list in self.handovers.values_mut() {
            list.retain(|(_, until)| *until > now);
        }
        self.handovers.retain(|_, list| !list.is_empty());
        self.direct.expire(now);
    }

    /// What the table holds at present.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            routes: self.routes.len(),
            sources: self.sources.len(),
            peers: self.peers.len(),
            handovers: self.handovers.values().map(Vec::len).sum(),
            direct: self.direct.len(),
        }
    }

    /// The route that is set for exactly this prefix.
    pub fn route(&self, prefix: IpNet) -> Option<&Route> {
        self.routes.get(prefix)
    }

    /// Where a destination is, without a look at who sends: for errors that this node sends itself.
    pub fn next_hop(&self, destination: IpAddr, now: Instant) -> Option<NextHop> {
        self.live_route(destination, now).map(|(_, r)| r.to)
    }

    /// The fate of a packet that this node's network layer sends into the AERO interface.
    pub fn egress(&self, inner: Inner, now: Instant) -> Disposition {
        self.egress_path(inner, now).disposition
    }

    /// As [`Table::egress`], and whether a direct path is wanting.
    ///
    /// Three look-ups: the own prefix by inner source; a direct path by own prefix and inner
    /// destination; else a route by inner destination.
    pub fn egress_path(&self, inner: Inner, now: Instant) -> Egress {
        let dropped = |why| Egress { disposition: Disposition::Drop(why), by_server: false };
        let own = self.live_route(inner.source, now).filter(|(_, r)| r.to == NextHop::Local);
        let Some((own, _)) = own else { return dropped(Drop::ForeignSource) };
        if let Some(to) = self.direct.take(own, inner.destination, now) {
            return Egress { disposition: Disposition::Tunnel(to), by_server: false };
        }
        let route = self.live_route(inner.destination, now);
        match route.map(|(_, r)| r.to) {
            Some(NextHop::Hold { .. }) => {
                let prefix = route.map_or(own, |(prefix, _)| prefix);
                Egress { disposition: Disposition::Hold { prefix, first: false }, by_server: false }
            }
            Some(NextHop::Neighbor(to)) => {
                Egress { disposition: Disposition::Tunnel(to), by_server: true }
            }
            // Local prefixes have host routes; what comes here all the same has lost its way.
            Some(NextHop::Local) | None => dropped(Drop::NoRoute),
            Some(NextHop::Unreachable) => dropped(Drop::Unreachable),
        }
    }

    /// The pairs of own and correspondent's prefix whose direct paths were taken since the last
    /// call: Neighbor Unreachability Detection goes on while a path is in use, and only then.
    pub fn take_used(&self) -> Vec<(IpNet, IpNet)> {
        self.direct.take_used()
    }

    /// The fate of a packet that came out of a tunnel from `from`.
    pub fn ingress(&self, from: LinkLayerAddress, inner: Inner, now: Instant) -> Disposition {
        if !self.accepts(from, inner, now) {
            return Disposition::Drop(Drop::OriginRefused);
        }
        let Some((prefix, route)) = self.live_route(inner.destination, now) else {
            return Disposition::Drop(Drop::NoRoute);
        };
        match route.to {
            NextHop::Hold { first } => Disposition::Hold { prefix, first: first == Some(from) },
            NextHop::Local => Disposition::Deliver,
            NextHop::Unreachable => Disposition::Drop(Drop::Unreachable),
            NextHop::Neighbor(_) if !route.transit => Disposition::Drop(Drop::NotForUs),
            NextHop::Neighbor(to) if to == from || self.bounces(from, to) => {
                Disposition::Drop(Drop::WouldReturn)
            }
            NextHop::Neighbor(to) => Disposition::Tunnel(to),
        }
    }

    fn accepts(&self, from: LinkLayerAddress, inner: Inner, now: Instant) -> bool {
        if self.peers.contains(&from) || self.agents.contains(&from) {
            return true;
        }
        let by_source = self
            .sources
            .longest_match(looked_up_as(inner.source), |list| any_live(list, now))
            .is_some_and(|(_, list)| {
                list.iter().any(|(l2, until)| *l2 == from && until.is_none_or(|t| t > now))
            });
        by_source
            || self.handovers.get(&from).is_some_and(|list| {
                list.iter().any(|(p, until)| *until > now && p.contains(&inner.destination))
            })
    }

    /// Between peers a packet goes to a Client's new Server at most, never to a Relay.
    fn bounces(&self, from: LinkLayerAddress, to: LinkLayerAddress) -> bool {
        self.relays.contains(&to) && self.peers.contains(&from)
    }

    fn live_route(&self, address: IpAddr, now: Instant) -> Option<(IpNet, &Route)> {
        self.routes.longest_match(looked_up_as(address), |r| r.until.is_none_or(|t| t > now))
    }
}

/// Link-local addresses are forwarded below IP: `fe80::X` is looked up as `X::` by longest match
/// (draft -48 section 3.5), so an ACP of any length is found.
fn looked_up_as(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) if v6.is_unicast_link_local() => {
            prefix_of_aero_address(v6).map_or(address, |p| p.addr())
        }
        _ => address,
    }
}

fn any_live(list: &Sources, now: Instant) -> bool {
    list.iter().any(|(_, until)| until.is_none_or(|t| t > now))
}

#[cfg(test)]
mod tests;
