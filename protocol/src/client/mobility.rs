//! Moves and the correspondents: draft -48 section 3.15, and the Proxy hand-over of section 3.19.
//!
//! Both sides of unsolicited Neighbor Advertisements. They go through a Server, which fills in
//! link-layer addresses and lets through only what is true; they change or remove link-layer
//! addresses, never prolong a time, and never make an entry.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::{Ignored, Node, PathLost, Timer};
use crate::address::{Duid, Epoch, LinkLayerAddress, aero_address};
use crate::forwarding::Change;
use crate::neighbor::{Key, Link, Resume};
use crate::timers::{FORWARD_TIME, MAX_NEIGHBOR_ADVERTISEMENT, RETRANS_TIMER};
use crate::wire::nd::{LinkLayerOption, Nd, NdMessage, NdOption};

/// How long an advertisement through a Server may take to arrive, before the correspondent is
/// solicited from the new address.
const SETTLE: Duration = Duration::from_millis(100);

/// An advertisement that is being repeated to one correspondent.
#[derive(Debug, Clone)]
pub(super) struct Announcement {
    /// The correspondent's AERO address.
    to: Ipv6Addr,
    /// Through this Server; the default one if it is gone.
    via: LinkLayerAddress,
    what: News,
    left: u8,
}

/// What is announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// The Client is where the Server says now.
    Here,
    /// The Client left this node under this epoch.
    Left {
        /// Marks a change of holder, not of address.
        epoch: Option<Epoch>,
    },
}

impl Node {
    /// An own ACP is about to leave this node: no packets of it are sent straight any more. What
    /// correspondents have sent already is still accepted and sent on.
    pub(super) fn prefix_left(&mut self, own: IpNet) {
        for key in self.neighbors.of_own(own) {
            let Some(entry) = self.neighbors.get_mut(&key) else { continue };
            entry.start_over();
            entry.resume = None;
            if entry.stop_forwarding() {
                self.path_lost(key, PathLost::Moved);
            }
            self.arm_or_forget(key);
        }
        self.attempts.retain(|(o, _), _| *o != own);
    }

    /// An ACP is served here from now on: nobody else is its holder, and what was announced
    /// about an earlier departure is over.
    pub(super) fn prefix_arrived(&mut self, own: IpNet) {
        let elsewhere: Vec<Key> = self
            .neighbors
            .iter()
            .filter(|n| n.peer.contains(&own) || own.contains(&n.peer))
            .map(crate::neighbor::Neighbor::key)
            .collect();
        for key in elsewhere {
            self.forget_neighbor(key, PathLost::Moved);
        }
        let announced: Vec<Key> =
            self.announcements.keys().filter(|(_, o)| *o == own).copied().collect();
        for key in announced {
            self.stop_announcing(key);
        }
    }

    /// Tells every correspondent of an own ACP, up to three times a second apart (RFC 4861
    /// section 7.2.6), through a Server.
    pub(super) fn announce(&mut self, own: IpNet, via: LinkLayerAddress, what: News, now: Instant) {
        for key in self.neighbors.of_own(own) {
            let Some(to) = self.neighbors.get(&key).map(|n| n.address) else { continue };
            let left = MAX_NEIGHBOR_ADVERTISEMENT;
            self.announcements.insert(key, Announcement { to, via, what, left });
            self.announcement_due(key, now);
        }
    }

    pub(super) fn announcement_due(&mut self, key: Key, now: Instant) {
        let Some(a) = self.announcements.get_mut(&key) else { return };
        a.left = a.left.saturating_sub(1);
        let (to, via, what, left) = (a.to, a.via, a.what, a.left);
        let own = aero_address(key.1);
        let mut options = Vec::new();
        match what {
            News::Here => options.extend(self.links.options(true)),
            News::Left { epoch } => {
                options.extend(self.links.disabled());
                // Where it is now the Server knows best: it fills this in or takes it out.
                // Another Link ID than ours, as it is not one of our links.
                options.push(NdOption::TargetLinkLayer(LinkLayerOption {
                    link_id: self.links.foreign(),
                    preference: 255,
                    address: None,
                }));
                options.extend(epoch.map(NdOption::Epoch));
            }
        }
        options.extend(self.timestamp(now));
        let message =
            NdMessage::Advertisement { solicited: false, override_cached: true, target: own };
        let nd = Nd { source: own, destination: to, message, options };
        let via = if self.servers.contains_key(&via) { Some(via) } else { self.default };
        if let (Some(via), Ok(packet)) = (via, nd.emit()) {
            self.send(via, packet);
        }
        if left == 0 {
            self.announcements.remove(&key);
        } else {
            self.timers.set(Timer::Announcement(key), now + RETRANS_TIMER);
        }
    }

    pub(super) fn stop_announcing(&mut self, key: Key) {
        if self.announcements.remove(&key).is_some() {
            self.timers.cancel(&Timer::Announcement(key));
        }
    }

    /// Our underlay address changed: correspondents do not accept us from the new one, nor do
    /// Servers before they have the Rebind. Until then nothing is sent straight.
    pub(super) fn suspend_paths(&mut self, now: Instant) {
        let keys: Vec<Key> = self.neighbors.iter().map(crate::neighbor::Neighbor::key).collect();
        for key in keys {
            let Some(entry) = self.neighbors.get_mut(&key) else { continue };
            let waited = entry.is_solicited();
            entry.start_over();
            let forwarded = entry.stop_forwarding();
            if forwarded || waited {
                entry.resume = Some(Resume { at: now + FORWARD_TIME, told: false });
            }
            if forwarded {
                self.path_lost(key, PathLost::Moved);
            }
            self.arm_or_forget(key);
        }
        for client in self.clients.values_mut() {
            client.announce = true;
        }
    }

    /// A Server has registered a Client anew. After a change of our address this is the moment
    /// to tell correspondents through that Server: before, it would have told them the old one
    /// (section 3.15.1, in this order).
    pub(super) fn registered(&mut self, id: &Duid, server: LinkLayerAddress, now: Instant) {
        let Some(client) = self.clients.get_mut(id) else { return };
        if !std::mem::take(&mut client.announce) {
            return;
        }
        for own in client.prefixes.clone() {
            self.announce(own, server, News::Here, now);
            for key in self.neighbors.of_own(own) {
                // The advertisement takes two hops and a solicitation one; it is to come second.
                let resume = self.neighbors.get_mut(&key).and_then(|n| n.resume.as_mut());
                if let Some(resume) = resume {
                    *resume = Resume { at: now + SETTLE, told: true };
                    self.arm(key);
                }
            }
        }
    }

    /// The other side: an unsolicited advertisement of a correspondent that a Server has passed
    /// on.
    pub(super) fn told_of_move(&mut self, nd: &Nd, now: Instant) -> Result<(), Ignored> {
        let own = self.served_at(nd.destination).ok_or(Ignored::NotServed)?;
        let key = self.neighbors.find(own, nd.source).ok_or(Ignored::NoEntry)?;
        let entry = self.neighbors.get_mut(&key).ok_or(Ignored::NoEntry)?;
        let before = entry.link_layer();
        let gone = nd.target_link_layers().filter(|o| o.preference == 0).filter_map(|o| o.address);
        for address in gone {
            entry.remove_link(address);
        }
        // A new holder accepts nothing from us before it has had a Predirect.
        let handed_over = nd.epoch().is_some();
        if !handed_over {
            entry.add_links(nd.target_link_layers().filter_map(Link::of));
        }
        let Some(to) = entry.link_layer() else {
            self.forget_neighbor(key, PathLost::Moved);
            self.forget_attempts(key);
            return Ok(());
        };
        if Some(to) == before {
            return Ok(());
        }
        let forward = entry.forward_until().filter(|t| *t > now);
        let probing = entry.is_solicited();
        if forward.is_some() || probing {
            entry.start_over();
        }
        if let Some(until) = forward {
            let (destination, source) = key;
            self.change(Change::SetDirect { source, destination, to, until });
        }
        self.source_of(key.0);
        // The answer refreshes both sides' times, and tells the neighbour to stop repeating.
        if forward.is_some() || probing {
            self.solicit_neighbor(key, now);
        }
        Ok(())
    }
}
