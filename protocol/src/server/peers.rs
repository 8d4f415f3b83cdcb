//! Permanent neighbour cache entries of a Server: Relays and other Servers (draft -48 section 3.6;
//! the entries for Servers are those of -44, without which what the former Server sends on during
//! a hand-over would fail the origin check). Control packets for other nodes pass through here.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv6Addr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Neighbor, Server};
use crate::address::{LinkLayerAddress, ServerId, prefix_of_aero_address};
use crate::forwarding::{Change, NextHop, Route};
use crate::neighbor::covering;
use crate::passing::{self, Passing};
use crate::wire::WireError;
use crate::wire::ip::Packet;

/// What a permanent neighbour is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PeerKind {
    /// A Relay: where packets go that are for none of this Server's Clients.
    Relay,
    /// Another Server: hands its Clients over, or takes this Server's.
    Server,
}

/// A permanent neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its link-local identity.
    pub id: ServerId,
    /// Its underlay address and port.
    pub at: LinkLayerAddress,
    /// What it is.
    pub kind: PeerKind,
    /// False while something outside (BGP, BFD) says that it cannot be used.
    pub usable: bool,
}

/// All permanent neighbours.
#[derive(Debug, Default)]
pub(super) struct Peers {
    by_id: BTreeMap<ServerId, Peer>,
    by_link_layer: HashMap<LinkLayerAddress, ServerId>,
    default: Option<LinkLayerAddress>,
}

impl Peers {
    pub(super) fn contains(&self, at: LinkLayerAddress) -> bool {
        self.by_link_layer.contains_key(&at)
    }

    pub(super) fn at(&self, at: LinkLayerAddress) -> Option<&Peer> {
        self.by_id.get(self.by_link_layer.get(&at)?)
    }
}

/// What BGP is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Announcement {
    /// This Server has this Client now.
    Announce(IpNet),
    /// It has it no more.
    Withdraw(IpNet),
}

/// Which ACPs are announced, and what the reader of the announcements has not yet been told. An
/// announcement and a withdrawal that were both not read are nothing, so nothing piles up where
/// nobody reads.
#[derive(Debug, Default)]
pub(super) struct Announcements {
    told: BTreeSet<IpNet>,
    pending: BTreeMap<IpNet, bool>,
}

impl Announcements {
    pub(super) fn set(&mut self, acp: IpNet, up: bool) {
        if self.told.contains(&acp) == up {
            self.pending.remove(&acp);
        } else {
            self.pending.insert(acp, up);
        }
    }

    fn pop(&mut self) -> Option<Announcement> {
        let (acp, up) = self.pending.pop_first()?;
        Some(if up {
            self.told.insert(acp);
            Announcement::Announce(acp)
        } else {
            self.told.remove(&acp);
            Announcement::Withdraw(acp)
        })
    }
}

impl Server {
    /// A permanent entry for a Relay, in place of the one that it had. While there is a usable one,
    /// everything that is for none of this Server's Clients goes there.
    pub fn add_relay(&mut self, id: ServerId, at: LinkLayerAddress) {
        self.add_peer(Peer { id, at, kind: PeerKind::Relay, usable: true });
    }

    /// A permanent entry for another Server, in place of the one that it had.
    pub fn add_server_peer(&mut self, id: ServerId, at: LinkLayerAddress) {
        self.add_peer(Peer { id, at, kind: PeerKind::Server, usable: true });
    }

    /// Removes a permanent entry.
    pub fn remove_peer(&mut self, id: ServerId) {
        if let Some(old) = self.peers.by_id.remove(&id) {
            self.peers.by_link_layer.remove(&old.at);
            self.change(Change::RemovePeer(old.at));
            self.choose_relay();
        }
    }

    /// Tells whether a Relay can be used: BGP or BFD lost or found it. Errors of the underlay do
    /// not: permanent entries have no Neighbor Unreachability Detection (section 3.13).
    pub fn set_peer_usable(&mut self, id: ServerId, usable: bool) {
        if let Some(peer) = self.peers.by_id.get_mut(&id) {
            peer.usable = usable;
            self.choose_relay();
        }
    }

    /// The permanent neighbours.
    pub fn peers(&self) -> impl Iterator<Item = &Peer> {
        self.peers.by_id.values()
    }

    /// Whether a Relay joins this Server to the others, so that its Clients need not be at all of
    /// them. One that cannot be used just now counts.
    pub(super) fn is_joined(&self) -> bool {
        self.peers.by_id.values().any(|p| p.kind == PeerKind::Relay)
    }

    /// What to tell BGP next.
    pub fn poll_announcement(&mut self) -> Option<Announcement> {
        self.announcements.pop()
    }

    fn add_peer(&mut self, peer: Peer) {
        if self.peers.by_id.get(&peer.id) == Some(&peer) || peer.id == self.config.id {
            return;
        }
        self.remove_peer(peer.id);
        self.peers.by_id.insert(peer.id, peer);
        self.peers.by_link_layer.insert(peer.at, peer.id);
        self.change(match peer.kind {
            PeerKind::Relay => Change::AddRelay(peer.at),
            PeerKind::Server => Change::AddPeer(peer.at),
        });
        self.choose_relay();
    }

    /// Points the default route to one of the usable Relays. Servers spread over them.
    fn choose_relay(&mut self) {
        let own = self.config.id.address().octets();
        let relays = self.peers.by_id.values().filter(|p| p.usable && p.kind == PeerKind::Relay);
        let chosen = relays.min_by_key(|p| spread(own, p.id.address().octets())).map(|p| p.at);
        if chosen == self.peers.default {
            return;
        }
        self.peers.default = chosen;
        for change in self.default_routes() {
            self.change(change);
        }
    }

    /// The default routes of both families, as they are now.
    pub(super) fn default_routes(&self) -> [Change; 2] {
        [IpNet::from(Ipv6Net::default()), IpNet::from(Ipv4Net::default())].map(|prefix| match self
            .peers
            .default
        {
            Some(relay) => {
                let to = NextHop::Neighbor(relay);
                Change::SetRoute { prefix, route: Route { to, transit: true, until: None } }
            }
            None => Change::RemoveRoute { prefix },
        })
    }

    /// Where a control packet for another node goes: to this Server's own Client, to a permanent
    /// neighbour, or to a Relay; the last only if it does not come from a permanent neighbour.
    pub(super) fn next_hop(
        &self,
        destination: Ipv6Addr,
        from_peer: bool,
    ) -> Option<LinkLayerAddress> {
        let relay = if from_peer { None } else { self.peers.default };
        if passing::is_identity(destination) {
            let peer = self.peers.by_id.values().find(|p| p.id.address() == destination);
            return peer.map(|p| p.at).or(relay);
        }
        match self.client_at(destination) {
            Some(client) => Some(client.link_layer),
            None => relay,
        }
    }

    /// The entry of the Client that a link-local address stands for, by longest match: a Client
    /// takes solicitations of every address inside its ACP (section 3.3).
    pub(super) fn client_at(&self, address: Ipv6Addr) -> Option<&Neighbor> {
        covering(prefix_of_aero_address(address)?).find_map(|p| self.neighbors.get(&p))
    }

    /// True if `from` is a link of the Client that has this link-local address: the origin check
    /// of section 3.8 for control packets.
    pub(super) fn owns(&self, from: LinkLayerAddress, source: Ipv6Addr) -> bool {
        self.client_at(source).is_some_and(|n| n.has_link(from))
    }

    /// Passes on a control packet that is for another node, if it may come from there and go there:
    /// DHCPv6 between a Client and a Server that is not its present one, ICMPv6. Neighbor Discovery
    /// is in `redirect.rs`.
    pub(super) fn pass_packet(
        &mut self,
        from: LinkLayerAddress,
        bytes: &[u8],
        packet: &Packet<'_>,
    ) -> Result<(), WireError> {
        let kind = passing::sort(packet)?;
        let from_peer = self.peers.contains(from);
        if !from_peer {
            if !self.owns(from, packet.source) {
                return Err(WireError::BadAddress);
            }
            // What a Client may say about itself to others is checked where it enters the link.
            if matches!(kind, Passing::ToClient | Passing::Neighbor | Passing::Redirect) {
                return Err(WireError::Unsupported);
            }
        }
        let to = self.next_hop(packet.destination, from_peer).ok_or(WireError::BadAddress)?;
        if to == from {
            return Err(WireError::BadAddress);
        }
        self.send(to, bytes.to_vec());
        Ok(())
    }
}

/// Rendezvous weight (FNV-1a) of a Relay for a Server.
fn spread(server: [u8; 16], relay: [u8; 16]) -> u64 {
    server.iter().chain(&relay).fold(0xcbf2_9ce4_8422_2325u64, |h, b| {
        (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_announced_and_withdrawn_before_anybody_read_it_is_nothing() {
        let acp = "2001:db8:0:1::/64".parse().unwrap();
        let mut all = Announcements::default();
        all.set(acp, true);
        all.set(acp, false);
        assert_eq!(all.pop(), None);
        all.set(acp, true);
        assert_eq!(all.pop(), Some(Announcement::Announce(acp)));
        all.set(acp, false);
        all.set(acp, true);
        assert_eq!(all.pop(), None);
        all.set(acp, false);
        assert_eq!(all.pop(), Some(Announcement::Withdraw(acp)));
        assert!(all.told.is_empty() && all.pending.is_empty());
    }
}
