//! From one Server to another: draft -48 section 3.15.2, macro mobility.
//!
//! A node asks all its Servers for leases, so a Server that dies costs nothing. When the Servers
//! themselves change (another zone, a Server that is drained), each Client gets its lease at the
//! new Server first, and then releases it at the old one by a message *through* the new one, so
//! that the old Server knows where to send what is still on its way. The Release is repeated until
//! there is an answer, and given up after the fourth.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rand::Rng;

use super::association::{IAID, Phase};
use super::{Event, Node, Timer};
use crate::address::{Duid, LinkLayerAddress, aero_address};
use crate::timers::RELEASE;
use crate::wire::aero_options::{AeroOption, Claim};
use crate::wire::dhcpv6::{IaPd, Kind, Message, Prefix};
use crate::wire::{WireError, rkap, signature};

/// A Server that said it is about to go is asked again after this time, if it is still there: the
/// drain may have been taken back.
pub const DRAIN_TIME: Duration = Duration::from_secs(60);

/// Whether a node turns away from a Server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Leaving {
    #[default]
    No,
    /// The Server said that it goes.
    Drained,
    /// We were told to leave it.
    ForGood,
    /// Others are used instead; it stays known.
    Spare,
}

/// A Release at a Server that a Client has left, sent through its new one.
#[derive(Debug, Clone)]
pub(super) struct Farewell {
    /// Link-local address of the Server that was left.
    address: Ipv6Addr,
    server: Duid,
    prefixes: Vec<IpNet>,
    claim: Option<Claim>,
    transaction: [u8; 3],
    began: Instant,
    wait: Option<Duration>,
    sent: u32,
}

impl Node {
    /// Leaves a Server for the others: each Client releases its lease there, through another Server
    /// at which it has one by then; those that have none yet stay until they have. When all have
    /// gone, the Server is forgotten as by [`Node::remove_server`].
    pub fn leave_server(&mut self, server: LinkLayerAddress, now: Instant) {
        self.leave(server, Leaving::ForGood, now);
    }

    /// Leaves a Server that is not used any more; it may be used again.
    pub(super) fn leave_spare(&mut self, server: LinkLayerAddress, now: Instant) {
        self.leave(server, Leaving::Spare, now);
    }

    pub(super) fn is_leaving(&self, server: LinkLayerAddress) -> bool {
        self.servers.get(&server).is_some_and(super::ServerState::is_leaving)
    }

    fn leave(&mut self, server: LinkLayerAddress, how: Leaving, now: Instant) {
        let Some(state) = self.servers.get_mut(&server) else { return };
        state.leaving = how;
        state.used = false;
        match how {
            Leaving::Drained => self.timers.set(Timer::Return(server), now + DRAIN_TIME),
            _ => self.timers.cancel(&Timer::Return(server)),
        }
        self.choose_default(now);
        let ids: Vec<Duid> = self.clients.keys().cloned().collect();
        for id in &ids {
            let lease = |a: &super::Association| a.lease.is_some() || a.phase == Phase::Releasing;
            let association = self.clients.get(id).and_then(|c| c.associations.get(&server));
            if association.is_some_and(|a| !lease(a)) {
                self.forget_association(id, server);
            }
            self.leave_if_bound_elsewhere(id, now);
        }
        if how != Leaving::Spare {
            self.choose_servers(now);
        }
        self.forget_left_servers(now);
    }

    /// Parts with the Servers that are being left, if the Client has a lease elsewhere now.
    pub(super) fn leave_if_bound_elsewhere(&mut self, id: &Duid, now: Instant) {
        let Some(client) = self.clients.get(id).filter(|c| !c.detached) else { return };
        let left: Vec<LinkLayerAddress> = client
            .associations
            .iter()
            .filter(|(l2, a)| self.is_leaving(**l2) && a.lease.is_some())
            .map(|(l2, _)| *l2)
            .collect();
        if left.is_empty() || self.way_out(id).is_none() {
            return;
        }
        for server in left {
            self.say_farewell(id, server, now);
        }
        self.choose_default(now);
        self.forget_left_servers(now);
    }

    /// The Server through which a Client's Release goes: the default one if it has a lease there.
    fn way_out(&self, id: &Duid) -> Option<LinkLayerAddress> {
        let client = self.clients.get(id)?;
        let stays = |l2: &LinkLayerAddress| {
            let up = self.servers.get(l2).is_some_and(|s| s.up_since.is_some());
            up && !self.is_leaving(*l2)
        };
        let mut bound =
            client.associations.iter().filter(|(_, a)| a.lease.is_some()).map(|(l2, _)| *l2);
        let default = self.default;
        bound.clone().find(|l2| Some(*l2) == default && stays(l2)).or_else(|| bound.find(stays))
    }

    fn say_farewell(&mut self, id: &Duid, server: LinkLayerAddress, now: Instant) {
        let transaction: [u8; 3] = self.rng.random();
        let address = self.servers.get(&server).and_then(|s| s.address);
        let Some(client) = self.clients.get_mut(id) else { return };
        let association = client.associations.remove(&server);
        let (prefixes, claim) = (client.prefixes.clone(), client.spec.claim);
        self.timers.cancel(&Timer::Association(id.clone(), server));
        self.unbind(id, server);
        let Some((address, duid)) = address.zip(association.and_then(|a| a.server)) else { return };
        let farewell = Farewell {
            address,
            server: duid,
            prefixes,
            claim,
            transaction,
            began: now,
            wait: None,
            sent: 0,
        };
        self.farewells.insert((id.clone(), server), farewell);
        self.farewell_due(id, server, now);
    }

    /// Sends the Release (again), through whatever Server the Client has by now.
    pub(super) fn farewell_due(&mut self, id: &Duid, server: LinkLayerAddress, now: Instant) {
        let through = self.way_out(id);
        let key = (id.clone(), server);
        let Some(farewell) = self.farewells.get_mut(&key) else { return };
        if farewell.sent >= RELEASE.count {
            self.farewell_ends(&key, false, now);
            return;
        }
        let wait = RELEASE.next(farewell.wait, &mut self.rng);
        farewell.wait = Some(wait);
        farewell.sent += 1;
        self.timers.set(Timer::Farewell(id.clone(), server), now + wait);
        let message = farewell.message(id, now);
        let Some((through, (addresses, message))) = through.zip(message) else { return };
        if let Some(packet) = self.signed_packet(server, message, addresses, false) {
            self.send(through, packet);
        }
    }

    /// Says the Release again, in the session of the Server that was left.
    ///
    /// # Errors
    /// If there is none that an answer could be about.
    pub(super) fn farewell_again(
        &mut self,
        key: &(Duid, LinkLayerAddress),
        transaction: [u8; 3],
        now: Instant,
    ) -> Result<(), WireError> {
        let farewell = self.farewells.get_mut(key).filter(|f| f.transaction == transaction);
        let farewell = farewell.ok_or(WireError::BadValue)?;
        farewell.transaction = self.rng.random();
        farewell.sent = farewell.sent.saturating_sub(1);
        self.farewell_due(&key.0, key.1, now);
        Ok(())
    }

    /// True if an answer is the one that a farewell waits for. It comes through the new Server; any
    /// answer ends it, a NoBinding too (RFC 8415 section 18.2.10.2).
    pub(super) fn farewell_answered(
        &mut self,
        source: Ipv6Addr,
        message: &Message,
        now: Instant,
    ) -> bool {
        let ours = |((id, _), f): &(&(Duid, LinkLayerAddress), &Farewell)| {
            f.transaction == message.transaction
                && f.address == source
                && message.kind == Kind::Reply
                && message.client.as_ref() == Some(id)
                && message.server.as_ref() == Some(&f.server)
        };
        let Some(key) = self.farewells.iter().find(ours).map(|(key, _)| key.clone()) else {
            return false;
        };
        self.farewell_ends(&key, true, now);
        true
    }

    fn farewell_ends(&mut self, key: &(Duid, LinkLayerAddress), confirmed: bool, now: Instant) {
        self.farewells.remove(key);
        let (client, server) = key.clone();
        self.timers.cancel(&Timer::Farewell(client.clone(), server));
        if !self.servers.contains_key(&server) {
            self.forget_sessions(server);
        }
        self.event(Event::LeftServer { client, server, confirmed });
        self.forget_left_servers(now);
    }

    /// Forgets Servers that were to be left for good, when no Client has anything there any more and
    /// all Releases are answered: until the Server has read them it sends here what comes for the
    /// Clients, and that is accepted from a known Server only.
    fn forget_left_servers(&mut self, now: Instant) {
        let left: Vec<(LinkLayerAddress, Leaving)> = self
            .servers
            .iter()
            .filter(|(l2, s)| {
                let used = self.clients.values().any(|c| c.associations.contains_key(l2));
                let heard = !self.farewells.keys().any(|(_, server)| server == *l2);
                matches!(s.leaving, Leaving::ForGood | Leaving::Spare) && !used && heard
            })
            .map(|(l2, s)| (*l2, s.leaving))
            .collect();
        for (server, how) in left {
            if how == Leaving::ForGood {
                self.remove_server(server, now);
                continue;
            }
            self.stop_using(server);
            if let Some(state) = self.servers.get_mut(&server) {
                state.leaving = Leaving::No;
            }
        }
    }

    /// A Server that said it goes is still there: it is one like any other again.
    pub(super) fn return_to(&mut self, server: LinkLayerAddress, now: Instant) {
        let Some(state) = self.servers.get_mut(&server) else { return };
        state.leaving = Leaving::No;
        self.choose_servers(now);
        if !self.uses(server) {
            self.stop_using(server);
        }
    }

    /// Forgets what a Client has at a Server. A lease that it had there is used to its end.
    pub(super) fn forget_association(&mut self, id: &Duid, server: LinkLayerAddress) {
        self.unbind(id, server);
        self.timers.cancel(&Timer::Association(id.clone(), server));
        let association = self.clients.get_mut(id).and_then(|c| c.associations.remove(&server));
        if let Some(end) = association.and_then(|a| a.end()) {
            self.timers.set(Timer::LastLease(id.clone()), end);
        }
    }

    /// A Reconfigure (RFC 8415 section 18.2.11), signed with the key of one Client. It speaks about
    /// the Server, so all Clients of the node heed it.
    ///
    /// # Errors
    /// If it must be discarded (section 16.11).
    pub(super) fn reconfigure(
        &mut self,
        from: LinkLayerAddress,
        message: &Message,
        bytes: &[u8],
        now: Instant,
    ) -> Result<(), WireError> {
        let id = message.client.clone().ok_or(WireError::BadValue)?;
        let client = self.clients.get_mut(&id).ok_or(WireError::BadValue)?;
        let a = client.associations.get_mut(&from).ok_or(WireError::BadValue)?;
        let (key, last) = a.key.as_mut().ok_or(WireError::BadValue)?;
        let replay = message.authentication.as_ref().ok_or(WireError::BadValue)?.replay;
        // RKAP's digest was made before the signature's, if there is one.
        let unsigned = signature::without_digest(bytes).map(|(message, _)| message).ok();
        let bytes = unsigned.as_deref().unwrap_or(bytes);
        if a.server != message.server || !rkap::verify(bytes, key) || replay <= *last {
            return Err(WireError::BadValue);
        }
        *last = replay;
        let bound = a.lease.is_some();
        let others = self
            .servers
            .iter()
            .any(|(l2, s)| *l2 != from && s.leaving == Leaving::No && s.may_answer());
        match message.reconfigure {
            Some(Kind::Rebind) if others => self.leave(from, Leaving::Drained, now),
            Some(Kind::Rebind) if bound => self.begin(&id, from, Phase::Rebinding, now),
            Some(Kind::Renew) if bound => self.begin(&id, from, Phase::Renewing, now),
            _ => return Err(WireError::BadValue),
        }
        Ok(())
    }
}

impl Farewell {
    /// The Release, and its inner source and destination.
    fn message(&self, id: &Duid, now: Instant) -> Option<((Ipv6Addr, Ipv6Addr), Message)> {
        let mut m = Message::new(Kind::Release, self.transaction);
        m.client = Some(id.clone());
        m.server = Some(self.server.clone());
        let elapsed = now.saturating_duration_since(self.began).as_millis() / 10;
        m.elapsed = Some(u16::try_from(elapsed).unwrap_or(u16::MAX));
        let prefix = |p: &IpNet| Prefix { prefix: *p, preferred: 0, valid: 0 };
        let prefixes = self.prefixes.iter().map(prefix).collect();
        m.ia_pd.push(IaPd { id: IAID, prefixes, ..IaPd::default() });
        m.aero.extend(self.claim.map(AeroOption::Claim));
        Some(((aero_address(*self.prefixes.first()?), self.address), m))
    }
}
