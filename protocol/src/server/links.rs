//! Several underlay links of one Client: draft -48 sections 3.5 (Link ID and Preference), 3.13
//! (unreachability of a link) and 3.15.1 (links that come and go).

use std::time::Instant;

use ipnet::IpNet;

use super::{Ended, Event, Neighbor, Request, Server, Timer};
use crate::address::{LinkLayerAddress, aero_address};
use crate::neighbor::{Link, MAX_LINKS};
use crate::timers::{MAX_RETRY, RETRANS_TIMER};
use crate::wire::aero_options::AeroOption;
use crate::wire::dhcpv6::Kind;
use crate::wire::nd::{Nd, NdMessage, NdOption};

/// What a message says about links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Registration {
    /// The link that it came over; `None` if that is not to be registered.
    pub(super) link: Option<Link>,
    /// Link IDs that are not to be used any more.
    pub(super) removed: Vec<u8>,
    /// True if it names all links, false if it adds to those that are known.
    pub(super) replaces: bool,
    /// True if it comes from the node that has the lease, which may have moved.
    pub(super) roams: bool,
    /// The Client takes Reconfigures.
    pub(super) reconfigurable: bool,
}

impl Registration {
    /// Reads it out of a request. Without the vendor option there is one link, 0.
    pub(super) fn of(request: &Request) -> Self {
        let mut links = request.message.aero.iter().filter_map(|o| match o {
            AeroOption::LinkRequest { link_id, preference } => Some((*link_id, *preference)),
            _ => None,
        });
        let live = links.clone().find(|(_, preference)| *preference > 0);
        let any = links.next().is_some();
        let (id, preference) = live.unwrap_or((0, 3));
        let disabled = request.message.aero.iter().flat_map(|o| match o {
            AeroOption::LinkRequest { link_id, preference: 0 } => vec![*link_id],
            AeroOption::LinkRemove(ids) => ids.clone(),
            _ => Vec::new(),
        });
        let removed = disabled.filter(|r| live.is_none_or(|(id, _)| id != *r)).collect();
        let rebinds = request.message.kind == Kind::Rebind;
        Self {
            // A message that only takes links away comes over one that is known.
            link: (live.is_some() || !any).then_some(Link {
                id,
                preference: s_tllao_preference(preference),
                address: request.from,
            }),
            removed,
            replaces: !matches!(request.message.kind, Kind::Renew | Kind::Rebind),
            roams: rebinds,
            reconfigurable: request.message.reconfigure_accept,
        }
    }
}

/// The two bits of the vendor option on the scale of the S/TLLAO.
fn s_tllao_preference(low_medium_high: u8) -> u8 {
    low_medium_high.min(3) * 85
}

impl Neighbor {
    /// The link of a Link ID.
    pub fn link(&self, id: u8) -> Option<&Link> {
        self.links.iter().find(|l| l.id == id)
    }

    /// True if this outer address is one of its links, and it has not gone to another Server.
    pub fn has_link(&self, at: LinkLayerAddress) -> bool {
        self.links.iter().any(|l| l.address == at)
    }

    /// Where the link of a Link ID is, or was if it is out of use.
    pub(super) fn link_or_retired(&self, id: u8) -> Option<LinkLayerAddress> {
        let link = self.link(id).or_else(|| self.retired.iter().find(|l| l.id == id));
        link.map(|l| l.address)
    }

    /// Keeps the links that `keep` accepts, and remembers the others.
    fn retire(&mut self, keep: impl Fn(&Link) -> bool) {
        let (kept, gone): (Vec<Link>, Vec<Link>) = self.links.iter().partition(|l| keep(l));
        self.links = kept;
        self.retired.retain(|r| gone.iter().all(|g| g.id != r.id));
        self.retired.extend(gone);
        let surplus = self.retired.len().saturating_sub(MAX_LINKS);
        self.retired.drain(..surplus);
    }

    /// Applies a registration; the best link becomes the one that is used.
    pub(super) fn register(&mut self, registration: &Registration) {
        if registration.replaces {
            self.links.clear();
        }
        if let Some(link) = registration.link {
            self.links.retain(|l| l.id != link.id && l.address != link.address);
            if self.links.len() >= MAX_LINKS {
                self.links.remove(0);
            }
            self.links.push(link);
            self.retired.retain(|l| l.id != link.id);
        }
        // Who takes away its last link says it over that very link: it stays.
        if self.links.iter().any(|l| !registration.removed.contains(&l.id)) {
            self.retire(|l| !registration.removed.contains(&l.id));
        }
        self.use_best_link();
    }

    /// Chooses the link of the highest preference; among equals the lowest Link ID.
    fn use_best_link(&mut self) {
        let best = self.links.iter().max_by_key(|l| (l.preference, 255 - l.id));
        if let Some(best) = best {
            self.link_layer = best.address;
        }
    }
}

/// A link that is being solicited.
#[derive(Debug, Clone)]
pub(super) struct Doubt {
    nonce: [u8; 6],
    asked: u8,
}

impl Server {
    /// The underlay says that nobody is reached at `at` (ICMP Destination Unreachable, again and
    /// again). Whether that is so is found out by Neighbor Unreachability Detection; a forged
    /// error costs a few solicitations and nothing else.
    pub fn underlay_error(&mut self, at: LinkLayerAddress, now: Instant) {
        let suspects: Vec<(IpNet, u8)> = self
            .neighbors
            .values()
            .flat_map(|n| n.links.iter().map(move |l| (n.prefix, l)))
            .filter(|(_, l)| l.address == at)
            .map(|(prefix, l)| (prefix, l.id))
            .collect();
        for (prefix, id) in suspects {
            if !self.doubts.contains_key(&(prefix, id)) {
                self.next_nonce += 1;
                let [_, _, nonce @ ..] = self.next_nonce.to_be_bytes();
                self.doubts.insert((prefix, id), Doubt { nonce, asked: 0 });
                self.solicit_link(prefix, id, now);
            }
        }
    }

    /// One Neighbor Solicitation over a link, or after the third without an answer its end.
    pub(super) fn solicit_link(&mut self, prefix: IpNet, id: u8, now: Instant) {
        let neighbor = self.neighbors.get(&prefix);
        let link = neighbor.and_then(|n| n.links.iter().find(|l| l.id == id).copied());
        let Some(doubt) = self.doubts.get_mut(&(prefix, id)) else { return };
        let Some(link) = link else {
            self.doubts.remove(&(prefix, id));
            return;
        };
        if doubt.asked >= MAX_RETRY {
            self.doubts.remove(&(prefix, id));
            self.link_is_dead(prefix, link, now);
            return;
        }
        doubt.asked += 1;
        let options = vec![NdOption::Nonce(doubt.nonce.to_vec())];
        let target = aero_address(prefix);
        let message = NdMessage::Solicitation { target };
        let nd = Nd { source: self.config.id.address(), destination: target, message, options };
        self.timers.set(Timer::Link(prefix, id), now + RETRANS_TIMER);
        if let Ok(packet) = nd.emit() {
            self.send(link.address, packet);
        }
    }

    /// An advertisement to this Server. True if it answers a solicitation of a link.
    pub(super) fn link_answers(&mut self, from: LinkLayerAddress, nd: &Nd) -> bool {
        let Some(neighbor) = self.client_at(nd.source).filter(|n| n.has_link(from)) else {
            return false;
        };
        let prefix = neighbor.prefix;
        // It may come over another link than it was asked over.
        let answered = self
            .doubts
            .iter()
            .find(|((p, _), d)| *p == prefix && nd.nonce() == Some(&d.nonce))
            .map(|(key, _)| *key);
        if let Some((prefix, id)) = answered {
            self.doubts.remove(&(prefix, id));
            self.timers.cancel(&Timer::Link(prefix, id));
        }
        answered.is_some()
    }

    fn link_is_dead(&mut self, prefix: IpNet, link: Link, now: Instant) {
        let Some(entry) = self.neighbors.get_mut(&prefix) else { return };
        let before = entry.link_layer;
        entry.retire(|l| l.id != link.id);
        if entry.links.is_empty() {
            self.end_neighbor(prefix, Ended::Unreachable);
            return;
        }
        entry.use_best_link();
        let (at, epoch) = (entry.link_layer, entry.epoch);
        self.write_paths(prefix, now);
        if at != before {
            self.event(Event::Associated { prefix, at, moved_from: Some(before), epoch });
        }
    }
}
