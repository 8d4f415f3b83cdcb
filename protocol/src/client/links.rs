//! Several underlay interfaces of one node (wired, wireless, metered): draft -48 sections 3.5 and
//! 3.15.1. Each is a link with its own Link ID and preference, registered at every Server by a
//! message that comes over it. Packets go over the best link that lives; when that dies, the next
//! one takes over and the Servers are told over it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::association::Phase;
use super::{Event, Node, Timer};
use crate::Output;
use crate::address::{Duid, LinkLayerAddress};
use crate::wire::aero_options::AeroOption;
use crate::wire::nd::{LinkLayerOption, NdOption};

/// How often a link that has died is tried again.
pub const LINK_RETRY: Duration = Duration::from_secs(10);

/// One of this node's underlay interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnderlayLink {
    /// Its Link ID.
    pub id: u8,
    /// 1 low (metered), 2 medium, 3 high.
    pub preference: u8,
    /// Packets pass.
    pub live: bool,
    /// It is the one that is used.
    pub used: bool,
}

#[derive(Debug, Clone, Copy)]
struct State {
    preference: u8,
    live: bool,
    /// Some Server knows it.
    registered: bool,
}

/// All underlay interfaces, the first of which is there from the start.
#[derive(Debug)]
pub(super) struct Links {
    all: BTreeMap<u8, State>,
    /// Links that the Servers are to forget.
    removed: Vec<u8>,
    used: u8,
}

impl Links {
    pub(super) fn new(first: u8) -> Self {
        let state = State { preference: 3, live: true, registered: true };
        Self { all: BTreeMap::from([(first, state)]), removed: Vec::new(), used: first }
    }

    /// The Link ID of the link in use.
    pub(super) fn used(&self) -> u8 {
        self.used
    }

    /// Registers a link at a Server.
    pub(super) fn request(&self, link: u8) -> AeroOption {
        let preference = self.all.get(&link).map_or(3, |s| s.preference);
        AeroOption::LinkRequest { link_id: link, preference }
    }

    /// Names the links that a Server is to forget.
    pub(super) fn removed(&self) -> Option<AeroOption> {
        let dead = self.all.iter().filter(|(_, s)| !s.live).map(|(id, _)| *id);
        let all: Vec<u8> = self.removed.iter().copied().chain(dead).collect();
        (!all.is_empty()).then_some(AeroOption::LinkRemove(all))
    }

    /// All links that Servers know, best first or not, for Predirects, Redirects and advertisements;
    /// Servers fill in the addresses. `all`: those out of use too, with Preference 0.
    pub(super) fn options(&self, all: bool) -> Vec<NdOption> {
        let known = self.all.iter().filter(|(_, s)| s.live && s.registered);
        let known = known.map(|(id, s)| (*id, s.preference * 85));
        let dead = self.all.iter().filter(|(_, s)| !s.live).map(|(id, _)| (*id, 0));
        let removed = self.removed.iter().map(|id| (*id, 0));
        let unused = dead.chain(removed).filter(|_| all);
        known.chain(unused).map(|(id, preference)| target(id, preference)).collect()
    }

    /// All links as out of use: the Client is not at this node any more.
    pub(super) fn disabled(&self) -> impl Iterator<Item = NdOption> {
        self.live().map(|id| target(id, 0))
    }

    /// A Link ID that is none of ours: of a new holder's link.
    pub(super) fn foreign(&self) -> u8 {
        let ours = |id: &u8| self.all.contains_key(id) || self.removed.contains(id);
        let next = self.used.wrapping_add(1);
        (0..=u8::MAX).map(|n| next.wrapping_add(n)).find(|id| !ours(id)).unwrap_or(next)
    }

    fn live(&self) -> impl Iterator<Item = u8> {
        self.all.iter().filter(|(_, s)| s.live).map(|(id, _)| *id)
    }

    /// The live link of the highest preference, among equals the lowest Link ID.
    fn best(&self) -> Option<u8> {
        let live = self.all.iter().filter(|(_, s)| s.live);
        live.max_by_key(|(id, s)| (s.preference, 255 - **id)).map(|(id, _)| *id)
    }
}

fn target(link_id: u8, preference: u8) -> NdOption {
    NdOption::TargetLinkLayer(LinkLayerOption { link_id, preference, address: None })
}

impl Node {
    /// Another underlay interface, or another preference (1 to 3) of one that is known.
    pub fn add_link(&mut self, link: u8, preference: u8, now: Instant) {
        let preference = preference.clamp(1, 3);
        let old = self.links.all.insert(link, State { preference, live: true, registered: false });
        if old.is_some_and(|o| o.live && o.preference == preference) {
            return;
        }
        self.links.removed.retain(|l| *l != link);
        self.timers.cancel(&Timer::Link(link));
        self.choose_link(now);
        self.register_everywhere(link, now);
    }

    /// An underlay interface that is gone for good. The last one stays.
    pub fn remove_link(&mut self, link: u8, now: Instant) {
        if self.links.all.len() < 2 || self.links.all.remove(&link).is_none() {
            return;
        }
        self.links.removed.push(link);
        self.timers.cancel(&Timer::Link(link));
        self.link_went(link, now);
    }

    /// Nothing passes over this link any more: carrier lost, errors of the underlay. It is tried
    /// again every [`LINK_RETRY`], and at once by [`Node::link_up`].
    pub fn link_down(&mut self, link: u8, now: Instant) {
        let others = self.links.live().any(|l| l != link);
        let Some(state) = self.links.all.get_mut(&link).filter(|s| s.live && others) else {
            return;
        };
        state.live = false;
        self.timers.set(Timer::Link(link), now + LINK_RETRY);
        self.link_went(link, now);
    }

    /// The link may be good again.
    pub fn link_up(&mut self, link: u8, now: Instant) {
        if self.links.all.get(&link).is_some_and(|s| !s.live) {
            self.try_link(link, now);
        }
    }

    /// This node's underlay interfaces.
    pub fn links(&self) -> impl Iterator<Item = UnderlayLink> {
        self.links.all.iter().map(|(id, s)| UnderlayLink {
            id: *id,
            preference: s.preference,
            live: s.live,
            used: *id == self.links.used,
        })
    }

    /// Sends a packet over a link: as any other if it is the one in use.
    pub(super) fn send_on(&mut self, link: u8, to: LinkLayerAddress, packet: Vec<u8>) {
        self.outputs.push_back(if link == self.links.used {
            Output::Send { to, packet }
        } else {
            Output::SendOn { link, to, packet }
        });
    }

    /// A Server has stopped answering. If there is another link, and no other Server answers over
    /// this one, the link is to blame: true if it was given up for another.
    pub(super) fn blame_link(&mut self, server: LinkLayerAddress, now: Instant) -> bool {
        let used = self.links.used;
        let others_answer = self
            .servers
            .iter()
            .any(|(l2, s)| *l2 != server && s.up_since.is_some() && s.unanswered == 0);
        if others_answer || !self.links.live().any(|l| l != used) {
            return false;
        }
        for state in self.servers.values_mut() {
            state.unanswered = 0;
        }
        self.link_down(used, now);
        self.probe_due(server, now);
        true
    }

    /// Tries a link that had died, with the lease of one Client at one Server.
    pub(super) fn try_link(&mut self, link: u8, now: Instant) {
        if self.links.all.get(&link).is_none_or(|s| s.live) {
            return;
        }
        self.timers.set(Timer::Link(link), now + LINK_RETRY);
        let bound = self.servers.iter().find_map(|(l2, s)| Some((s.bound.first()?.clone(), *l2)));
        if let Some((id, server)) = bound {
            self.register(link, &id, server, now);
        }
    }

    /// A Server has answered over a link.
    pub(super) fn link_registered(
        &mut self,
        link: u8,
        id: &Duid,
        server: LinkLayerAddress,
        new: bool,
        now: Instant,
    ) {
        let Some(state) = self.links.all.get_mut(&link) else { return };
        state.registered = true;
        if !state.live {
            state.live = true;
            self.timers.cancel(&Timer::Link(link));
            self.choose_link(now);
            self.register_everywhere(link, now);
        }
        let default = self.default == Some(server);
        let others: Vec<u8> = self.links.live().filter(|l| *l != link).collect();
        if let Some(a) = self.clients.get_mut(id).and_then(|c| c.associations.get_mut(&server)) {
            if new {
                a.links_due.extend(others);
            }
            if a.phase == Phase::Bound
                && let Some(next) = a.links_due.pop_first()
            {
                a.moves();
                a.tells = default;
                self.begin_on(next, id, server, Phase::Rebinding, now);
            }
        }
    }

    /// No answer came over a link that is not the one in use. The lease goes on as it was.
    pub(super) fn link_is_silent(&mut self, id: &Duid, server: LinkLayerAddress, now: Instant) {
        let used = self.links.used;
        let Some(a) = self.clients.get_mut(id).and_then(|c| c.associations.get_mut(&server)) else {
            return;
        };
        let silent = std::mem::replace(&mut a.link, used);
        a.phase = Phase::Bound;
        let due = a.lease.as_ref().map_or(now, |l| l.t1.max(now));
        self.timers.set(Timer::Association(id.clone(), server), due);
        self.link_down(silent, now);
    }

    /// A link died or was removed: the next takes over, and the Servers are told over it.
    fn link_went(&mut self, link: u8, now: Instant) {
        self.choose_link(now);
        let used = self.links.used;
        for client in self.clients.values_mut() {
            for a in client.associations.values_mut() {
                a.links_due.remove(&link);
            }
        }
        self.register_everywhere(used, now);
    }

    fn choose_link(&mut self, now: Instant) {
        if let Some(best) = self.links.best()
            && best != self.links.used
        {
            self.links.used = best;
            self.event(Event::LinkUsed(best));
            // Correspondents do not accept us from there before they are told.
            self.suspend_paths(now);
        }
    }

    fn register_everywhere(&mut self, link: u8, now: Instant) {
        let all: Vec<(Duid, LinkLayerAddress)> = self
            .clients
            .iter()
            .filter(|(_, c)| !c.detached)
            .flat_map(|(id, c)| c.associations.keys().map(move |s| (id.clone(), *s)))
            .collect();
        for (id, server) in all {
            self.register(link, &id, server, now);
        }
    }

    /// Registers a link for one Client at one Server: at once if nothing else goes on there, or if
    /// what goes on there went over a link that is dead now.
    fn register(&mut self, link: u8, id: &Duid, server: LinkLayerAddress, now: Instant) {
        let default = self.default == Some(server);
        let Some(a) = self.clients.get_mut(id).and_then(|c| c.associations.get_mut(&server)) else {
            return;
        };
        if a.lease.is_none() {
            return;
        }
        // Only for the link in use: two dead links that are tried in turn would keep each other,
        // and the lease's renewal, from ever coming to an end.
        let dead = self.links.all.get(&a.link).is_none_or(|s| !s.live);
        let stuck = dead && a.link != link && link == self.links.used;
        if a.phase == Phase::Bound || (stuck && a.phase != Phase::Releasing) {
            a.moves();
            a.tells = default;
            self.begin_on(link, id, server, Phase::Rebinding, now);
        } else {
            a.links_due.insert(link);
        }
    }
}
