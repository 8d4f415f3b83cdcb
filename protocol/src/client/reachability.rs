//! Neighbor Unreachability Detection of direct paths: draft -48 section 3.13.
//!
//! While a path is in use the correspondent is solicited once a second, straight; it answers
//! straight if it has a path back, else by a Server. The third solicitation without an answer
//! takes the path out of use, and packets go by the Server again; the answer to it, should it
//! still come, puts it back.

use std::time::Instant;

use ipnet::IpNet;
use rand::Rng;

use super::{Event, Ignored, Node, PathLost, Timer};
use crate::address::{LinkLayerAddress, aero_address};
use crate::forwarding::Change;
use crate::neighbor::{Key, Neighbor, Nonce, Resume};
use crate::wire::nd::{Nd, NdMessage, NdOption};

impl Node {
    /// The direct path of a pair has been used since the last call for it; the forwarder knows
    /// ([`Table::take_used`](crate::forwarding::Table::take_used)). To be called more often than
    /// once a second.
    pub fn path_used(&mut self, own: IpNet, peer: IpNet, now: Instant) {
        let key = (peer, own);
        let Some(entry) = self.neighbors.get_mut(&key) else { return };
        if !entry.forwards(now) || entry.is_solicited() {
            return;
        }
        if entry.next_solicitation().is_none_or(|t| t <= now) {
            self.solicit_neighbor(key, now);
        } else {
            entry.used = true;
            self.arm(key);
        }
    }

    /// The underlay says that what was sent to this neighbour did not arrive. Whoever can send to
    /// this node can forge that, so it is a hint to look (draft -48 section 3.13): the paths there
    /// are solicited, at most once a second, and stay in use while that is answered. A Server is
    /// solicited at once, up to ten times a second; a Forwarding Agent is left at once.
    pub fn underlay_error(&mut self, at: LinkLayerAddress, now: Instant) {
        self.server_hinted(at, now);
        self.agent_unreachable(at);
        let there = |n: &&Neighbor| n.link_layer() == Some(at) && n.forwards(now);
        let pairs: Vec<(IpNet, IpNet)> =
            self.neighbors.iter().filter(there).map(|n| (n.own, n.peer)).collect();
        for (own, peer) in pairs {
            self.path_used(own, peer, now);
        }
    }

    /// Every entry, for people.
    pub fn correspondents(&self) -> impl Iterator<Item = &Neighbor> {
        self.neighbors.iter()
    }

    /// Sends a solicitation straight to a correspondent. The last one of a row takes the path
    /// out of use.
    pub(super) fn solicit_neighbor(&mut self, key: Key, now: Instant) {
        let fresh: Nonce = self.rng.random();
        let Some(entry) = self.neighbors.get_mut(&key) else { return };
        let Some(to) = entry.link_layer() else { return };
        let nonce = entry.solicit(fresh, now);
        let target = entry.address;
        let gives_up = entry.retries() == 0 && entry.stop_forwarding();
        if gives_up {
            self.path_lost(key, PathLost::Unreachable);
        }
        self.arm(key);
        let nd = Nd {
            source: aero_address(key.1),
            destination: target,
            message: NdMessage::Solicitation { target },
            options: vec![NdOption::Nonce(nonce.to_vec())],
        };
        if let Ok(packet) = nd.emit() {
            self.send(to, packet);
        }
    }

    /// A solicitation that came straight from a correspondent. Only one that is known, at the
    /// place where it is known, is answered: its AcceptTime begins anew.
    pub(super) fn solicited(
        &mut self,
        from: LinkLayerAddress,
        nd: &Nd,
        now: Instant,
    ) -> Result<(), Ignored> {
        let own = self.served_at(nd.destination).ok_or(Ignored::NotServed)?;
        let key = self.neighbors.find(own, nd.source).ok_or(Ignored::NoEntry)?;
        let entry = self.neighbors.get_mut(&key).ok_or(Ignored::NoEntry)?;
        if !entry.has_link(from) || !entry.accepts(now) {
            return Err(Ignored::NoEntry);
        }
        entry.accept(now);
        let direct = entry.forwards(now);
        if let Some(resume) = &mut entry.resume {
            *resume = Resume { at: now, told: true };
        }
        self.source_of(key.0);
        self.arm(key);
        // It has learnt where we are.
        self.stop_announcing(key);
        let to = if direct { Some(from) } else { self.default };
        if let Some(to) = to {
            self.answer_solicitation(own, nd, to);
        }
        Ok(())
    }

    /// The answer comes from the base of the ACP, whichever address inside it was asked for.
    pub(super) fn answer_solicitation(&mut self, own: IpNet, nd: &Nd, to: LinkLayerAddress) {
        let target = aero_address(own);
        let message = NdMessage::Advertisement { solicited: true, override_cached: false, target };
        let options = nd.nonce().map(|n| NdOption::Nonce(n.to_vec())).into_iter().collect();
        let answer = Nd { source: target, destination: nd.source, message, options };
        if let Ok(packet) = answer.emit() {
            self.send(to, packet);
        }
    }

    /// A solicited advertisement of a correspondent, straight from it or by one of our Servers.
    /// It sets timers and never a link-layer address.
    pub(super) fn advertised(
        &mut self,
        from: LinkLayerAddress,
        nd: &Nd,
        now: Instant,
    ) -> Result<(), Ignored> {
        let own = self.served_at(nd.destination).ok_or(Ignored::NotServed)?;
        let key = self.neighbors.find(own, nd.source).ok_or(Ignored::NoEntry)?;
        let by_server = self.servers.contains_key(&from);
        let entry = self.neighbors.get_mut(&key).ok_or(Ignored::NoEntry)?;
        if !by_server && !entry.has_link(from) {
            return Err(Ignored::NoEntry);
        }
        let Some(to) = entry.link_layer() else { return Err(Ignored::NoEntry) };
        let was_direct = entry.forwards(now);
        if !entry.advertised(nd.nonce(), now) {
            return Err(Ignored::WrongNonce);
        }
        let (peer, own) = key;
        if let Some(until) = entry.forward_until() {
            self.change(Change::SetDirect { source: own, destination: peer, to, until });
        }
        self.arm(key);
        if !was_direct {
            self.forget_attempts(key);
            self.event(Event::PathOpened { own, peer, to });
        }
        Ok(())
    }

    /// The timer of an entry.
    pub(super) fn neighbor_due(&mut self, key: Key, now: Instant) {
        let Some(entry) = self.neighbors.get_mut(&key) else { return };
        if entry.expire(now) {
            self.path_lost(key, PathLost::Idle);
        }
        let Some(entry) = self.neighbors.get_mut(&key) else { return };
        if entry.next_solicitation().is_none_or(|t| t <= now) {
            let forwards = entry.forwards(now);
            let resumed = entry.resume.take_if(|r| r.at <= now).is_some_and(|r| r.told);
            let used = std::mem::take(&mut entry.used) && forwards;
            let repeat = entry.is_solicited() && entry.retries() > 0;
            if repeat || resumed || used {
                return self.solicit_neighbor(key, now);
            }
            if entry.is_solicited() {
                entry.start_over();
            }
        }
        self.arm_or_forget(key);
    }

    /// Arms the timer of an entry, or removes one of which nothing is left.
    pub(super) fn arm_or_forget(&mut self, key: Key) {
        if self.neighbors.get(&key).is_some_and(Neighbor::is_over) {
            self.forget_neighbor(key, PathLost::Idle);
        } else {
            self.arm(key);
        }
    }

    /// Arms the timer of an entry for when it is to be looked at next.
    pub(super) fn arm(&mut self, key: Key) {
        match self.neighbors.get(&key).and_then(Neighbor::due) {
            Some(due) => self.timers.set(Timer::Neighbor(key), due),
            None => self.timers.cancel(&Timer::Neighbor(key)),
        }
    }

    /// Packets of a pair go by the Server again.
    pub(super) fn path_lost(&mut self, (peer, own): Key, why: PathLost) {
        self.change(Change::RemoveDirect { source: own, destination: peer });
        self.event(Event::PathLost { own, peer, why });
    }

    /// Removes an entry, with all that the forwarder was told for it.
    pub(super) fn forget_neighbor(&mut self, key: Key, why: PathLost) {
        let Some(mut entry) = self.neighbors.remove(&key) else { return };
        self.timers.cancel(&Timer::Neighbor(key));
        if entry.stop_forwarding() {
            self.path_lost(key, why);
        }
        self.source_of(key.0);
    }
}
