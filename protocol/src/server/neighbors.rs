//! Static neighbour cache entries (draft -48 section 3.6) and the hand-over to a new node.

use std::time::Instant;

use ipnet::IpNet;

use super::links::Registration;
use super::{Ended, Event, Mapping, Server, Timer};
use crate::Output;
use crate::address::{Duid, Epoch, LinkLayerAddress, aero_address};
use crate::forwarding::{Change, NextHop, Route};
use crate::neighbor::Link;
use crate::timers::{MAX_NEIGHBOR_ADVERTISEMENT, RETRANS_TIMER};
use crate::wire::nd::{LinkLayerOption, Nd, NdMessage, NdOption};

/// A static entry: a Client with a lease.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbor {
    /// Its ACP.
    pub prefix: IpNet,
    /// Its DUID.
    pub client: Duid,
    /// Where packets for it go: its best link, or its new Server while the entry lingers.
    pub link_layer: LinkLayerAddress,
    /// All its links, each with another Link ID. All may send; none may while the entry lingers.
    pub links: Vec<Link>,
    /// Links that it does not use any more, as they were last: correspondents are told so.
    pub(super) retired: Vec<Link>,
    /// The epoch under which it got the lease.
    pub epoch: Epoch,
    /// When the lease ends.
    pub until: Instant,
    /// The Client went to another Server; what still comes goes there until the end.
    pub lingers: bool,
    /// It said that it takes Reconfigures.
    pub(super) reconfigurable: bool,
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
    /// Makes or renews the entry of `prefix`; tells the former node if it was another. A Rebind
    /// comes from the same node at another address (draft -48 section 3.15.1): nobody is told that
    /// the prefix left, what still comes from the address before is accepted.
    pub(super) fn bind(&mut self, prefix: IpNet, registration: &Registration, now: Instant) {
        let Some(mapping) = self.mappings.get(&prefix) else { return };
        let (epoch, client) = (mapping.epoch, mapping.client.clone());
        let until = now + self.config.lease;
        // What lingers is no lease; who comes back begins anew.
        let old = self.neighbors.get(&prefix).filter(|o| !o.lingers).cloned();
        let same = old.as_ref().is_some_and(|o| o.epoch == epoch);
        let mut entry = match &old {
            Some(o) if same => o.clone(),
            _ => {
                let Some(link) = registration.link else { return };
                let links = vec![link];
                Neighbor {
                    prefix,
                    client: client.clone(),
                    link_layer: link.address,
                    links,
                    retired: Vec::new(),
                    epoch,
                    until,
                    lingers: false,
                    reconfigurable: false,
                }
            }
        };
        entry.client = client;
        entry.until = until;
        entry.reconfigurable |= registration.reconfigurable;
        entry.register(registration);
        let (at, links) = (entry.link_layer, entry.links.clone());
        let gone = old
            .as_ref()
            .map(|o| o.link_layer)
            .filter(|l2| *l2 != at && links.iter().all(|l| l.address != *l2));
        let moved_from = old.as_ref().map(|o| o.link_layer).filter(|l2| *l2 != at);
        let unchanged = same && old.as_ref().is_some_and(|o| o.links == links);
        self.neighbors.insert(prefix, entry);
        self.by_address.insert(aero_address(prefix), prefix);
        self.timers.set(Timer::Lease(prefix), until);
        self.timers.cancel(&Timer::Withdraw(prefix));
        self.announcements.set(prefix, true);
        self.tell_of_agent(prefix, !unchanged, now);
        if unchanged {
            return;
        }
        self.write_paths(prefix, now);
        self.event(Event::Associated { prefix, at, moved_from, epoch });
        // A departure that is still being announced now has a successor to name, unless the
        // prefix came back to that very node.
        if let Some(from) = gone {
            if registration.roams && same {
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

    /// Writes the route of an entry and who may send from its prefix.
    pub(super) fn write_paths(&mut self, prefix: IpNet, now: Instant) {
        for change in self.paths(prefix) {
            self.change(change);
        }
        self.feed_paths(prefix, now);
    }

    /// The route of an entry, and who may send from its prefix.
    pub(super) fn paths(&self, prefix: IpNet) -> Vec<Change> {
        let Some(entry) = self.neighbors.get(&prefix) else { return Vec::new() };
        let to = NextHop::Neighbor(entry.link_layer);
        let route = Route { to, transit: true, until: None };
        let mut changes = vec![Change::SetRoute { prefix, route }];
        for (n, link) in entry.links.iter().enumerate() {
            let (from, until) = (link.address, None);
            changes.push(match n {
                0 => Change::SetSource { prefix, from, until },
                _ => Change::AddSource { prefix, from, until },
            });
        }
        if entry.links.is_empty() {
            changes.push(Change::RemoveSource { prefix });
        }
        changes
    }

    /// The table names a holder elsewhere: the former one gets no packet from now on.
    pub(super) fn evict_former_holder(&mut self, mapping: &Mapping, now: Instant) {
        let prefix = mapping.prefix.trunc();
        let Some(entry) = self.neighbors.get(&prefix) else { return };
        let other_client = entry.client != mapping.client;
        let elsewhere = mapping.epoch > entry.epoch
            && mapping
                .holder
                .as_ref()
                .is_some_and(|h| entry.links.iter().all(|l| !h.underlay.contains(&l.address.ip)));
        if other_client || elsewhere {
            let from = (!entry.lingers).then_some(entry.link_layer);
            self.end_neighbor(prefix, Ended::HolderChanged);
            // The new holder is about to ask, most often here.
            if !other_client {
                self.announcements.set(prefix, true);
                self.timers.set(Timer::Withdraw(prefix), now + super::WITHDRAW_TIME);
            }
            if let Some(from) = from {
                self.depart(prefix, from, None, mapping.epoch, now);
            }
        }
    }

    /// Ends an entry and its routes.
    pub(super) fn end_neighbor(&mut self, prefix: IpNet, why: Ended) {
        let Some(entry) = self.neighbors.remove(&prefix) else { return };
        self.by_address.remove(&aero_address(prefix));
        self.timers.cancel(&Timer::Lease(prefix));
        self.forget_tokens(prefix);
        self.reconfigures.remove(&prefix);
        self.timers.cancel(&Timer::Reconfigure(prefix));
        self.change(Change::RemoveRoute { prefix });
        self.change(Change::RemoveSource { prefix });
        self.feed_removal(prefix);
        self.timers.cancel(&Timer::Withdraw(prefix));
        self.announcements.set(prefix, false);
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
