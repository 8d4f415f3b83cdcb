//! Static neighbour cache entries (draft -48 section 3.6) and the hand-over to a new node.

use std::time::Instant;

use ipnet::IpNet;

use super::{Ended, Event, Mapping, Server, Timer};
use crate::Output;
use crate::address::{Duid, Epoch, LinkLayerAddress, aero_address};
use crate::forwarding::{Change, NextHop, Route};
use crate::timers::{MAX_NEIGHBOR_ADVERTISEMENT, RETRANS_TIMER};
use crate::wire::nd::{LinkLayerOption, Nd, NdMessage, NdOption};

/// A static entry: a Client with a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbor {
    /// Its ACP.
    pub prefix: IpNet,
    /// Its DUID.
    pub client: Duid,
    /// Where packets for it go.
    pub link_layer: LinkLayerAddress,
    /// The Link ID under which that is registered.
    pub link_id: u8,
    /// The epoch under which it got the lease.
    pub epoch: Epoch,
    /// When the lease ends.
    pub until: Instant,
}

/// A node that is being told that a prefix left it.
#[derive(Debug, Clone)]
pub(super) struct Departure {
    to: LinkLayerAddress,
    successor: Option<LinkLayerAddress>,
    epoch: Epoch,
    left: u8,
}

impl Server {
    /// Makes or renews the entry of `prefix`; tells the former node if it was another. With
    /// `roamed` (a Rebind) it is the same node at another address (draft -48 section 3.15.1):
    /// nobody is told that the prefix left, what still comes from the address before is accepted.
    pub(super) fn bind(
        &mut self,
        prefix: IpNet,
        (at, link_id): (LinkLayerAddress, u8),
        roamed: bool,
        now: Instant,
    ) {
        let Some(mapping) = self.mappings.get(&prefix) else { return };
        let (epoch, client) = (mapping.epoch, mapping.client.clone());
        let until = now + self.config.lease;
        let entry = Neighbor { prefix, client, link_layer: at, link_id, epoch, until };
        let old = self.neighbors.insert(prefix, entry);
        self.by_address.insert(aero_address(prefix), prefix);
        self.timers.set(Timer::Lease(prefix), until);
        let moved_from = old.as_ref().map(|o| o.link_layer).filter(|l2| *l2 != at);
        if old.as_ref().is_some_and(|o| o.link_layer == at && o.epoch == epoch) {
            return;
        }
        let route = Route { to: NextHop::Neighbor(at), transit: true, until: None };
        self.change(Change::SetRoute { prefix, route });
        self.change(Change::SetSource { prefix, from: at, until: None });
        self.event(Event::Associated { prefix, at, moved_from, epoch });
        // A departure that is still being announced now has a successor to name, unless the
        // prefix came back to that very node.
        let same_epoch = old.as_ref().is_some_and(|o| o.epoch == epoch);
        if let Some(from) = moved_from {
            if roamed && same_epoch {
                self.accept_handover(prefix, from, now);
            } else {
                self.depart(prefix, from, Some(at), epoch, now);
            }
        } else if let Some(pending) = self.departures.get_mut(&prefix) {
            pending.successor = Some(at);
            if pending.to == at {
                self.departures.remove(&prefix);
                self.timers.cancel(&Timer::Departure(prefix));
            }
        }
    }

    /// The table names a holder elsewhere: the former one gets no packet from now on.
    pub(super) fn evict_former_holder(&mut self, mapping: &Mapping, now: Instant) {
        let prefix = mapping.prefix.trunc();
        let Some(entry) = self.neighbors.get(&prefix) else { return };
        let other_client = entry.client != mapping.client;
        let elsewhere = mapping.epoch > entry.epoch
            && mapping.holder.as_ref().is_some_and(|h| !h.underlay.contains(&entry.link_layer.ip));
        if other_client || elsewhere {
            let from = entry.link_layer;
            self.end_neighbor(prefix, Ended::HolderChanged);
            self.depart(prefix, from, None, mapping.epoch, now);
        }
    }

    /// Ends an entry and its routes.
    pub(super) fn end_neighbor(&mut self, prefix: IpNet, why: Ended) {
        let Some(entry) = self.neighbors.remove(&prefix) else { return };
        self.by_address.remove(&aero_address(prefix));
        self.timers.cancel(&Timer::Lease(prefix));
        self.forget_tokens(prefix);
        self.change(Change::RemoveRoute { prefix });
        self.change(Change::RemoveSource { prefix });
        self.event(Event::Ended { prefix, at: entry.link_layer, why });
    }

    /// Starts telling `from` that `prefix` left it, and accepts what it sends on meanwhile.
    fn depart(
        &mut self,
        prefix: IpNet,
        from: LinkLayerAddress,
        successor: Option<LinkLayerAddress>,
        epoch: Epoch,
        now: Instant,
    ) {
        self.remember_former(prefix, from, now);
        let left = MAX_NEIGHBOR_ADVERTISEMENT;
        self.departures.insert(prefix, Departure { to: from, successor, epoch, left });
        self.advertise_departure(prefix, now);
    }

    /// One unsolicited Neighbor Advertisement to the node that a prefix left; up to three, a
    /// second apart (RFC 4861 section 7.2.6), since any of them may be lost.
    pub(super) fn advertise_departure(&mut self, prefix: IpNet, now: Instant) {
        let Some(d) = self.departures.get_mut(&prefix) else { return };
        d.left = d.left.saturating_sub(1);
        let (to, successor, epoch, left) = (d.to, d.successor, d.epoch, d.left);
        let target = aero_address(prefix);
        let mut options = vec![NdOption::Epoch(epoch)];
        if let Some(l2) = successor {
            options.push(NdOption::TargetLinkLayer(LinkLayerOption {
                link_id: 0,
                preference: 255,
                address: Some(l2),
            }));
        }
        let message = NdMessage::Advertisement { solicited: false, override_cached: true, target };
        let nd = Nd { source: self.config.id.address(), destination: target, message, options };
        if let Ok(packet) = nd.emit() {
            self.send(to, packet);
        }
        if left == 0 {
            self.departures.remove(&prefix);
        } else {
            self.timers.set(Timer::Departure(prefix), now + RETRANS_TIMER);
        }
    }

    pub(super) fn change(&mut self, change: Change) {
        self.outputs.push_back(Output::Forward(change));
    }
}
