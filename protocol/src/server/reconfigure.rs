//! A Server that sends its Clients away before it goes: Reconfigure, RFC 8415 sections 18.3.11
//! and 20.4, as the way out that draft -61 section 3.15.2 leaves to a busy Server.
//!
//! A draining Server gives no lease to who has none here, and sends a Reconfigure to each Client
//! that said it takes them (option 20) and got a key. "Send a Rebind" says: turn to whatever Server
//! answers. An AERO Client does so by macro mobility: it gets its lease elsewhere, then releases
//! here through its new Server. A client of another make sends a Rebind, gets its lease extended,
//! and finds another Server when this one has gone.
//!
//! The keys are those of RKAP. What stands behind AERO's messages otherwise (the claim, checked
//! against the table) proves a Client to a Server, not the other way round; a Client believes what
//! comes from its Servers' link-layer addresses, and RKAP adds a secret that only the two know,
//! in the standard's own form, so that stock clients understand it.

use std::time::{Duration, Instant};

use hmac::{Hmac, KeyInit, Mac};
use ipnet::IpNet;
use sha2::Sha256;

use super::{Request, Server, Timer};
use crate::address::{Duid, aero_address};
use crate::timers::RECONFIGURE;
use crate::wire::dhcpv6::{Kind, Message};
use crate::wire::signature::{self, Covered};
use crate::wire::{ip, rkap};

/// Reconfigures that wait for the Client to do as it was told.
#[derive(Debug, Clone)]
pub(super) struct Pending {
    sent: u32,
    wait: Duration,
}

/// Who is still at a Server that drains ([`Server::remaining`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Remaining {
    /// Clients with a lease.
    pub clients: usize,
    /// Those of them that were told to leave and have not answered.
    pub asked: usize,
}

/// Where the keys come from: one secret of this Server's life, so nothing is kept per Client.
#[derive(Default)]
pub(super) struct Keys {
    secret: Option<[u8; 32]>,
    /// RDM 0: rises with every message. The secret is new in each life, so it may begin at 0.
    counter: u64,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("counter", &self.counter).finish_non_exhaustive()
    }
}

impl Keys {
    fn of(&self, client: &Duid) -> Option<rkap::Key> {
        self.digest(client.as_bytes())?.get(..16)?.try_into().ok()
    }

    fn digest(&self, of: &[u8]) -> Option<[u8; 32]> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret?).ok()?;
        mac.update(of);
        Some(mac.finalize().into_bytes().into())
    }

    fn next(&mut self) -> u64 {
        self.counter += 1;
        self.counter
    }
}

impl Server {
    /// Gives the secret from which the Clients' reconfigure keys are made: 32 random bytes, new in
    /// each life of the Server. Without it no Client is told that Reconfigures may come, and none
    /// is sent. The session of signed messages comes from it too, so without it a Client that has
    /// a key is refused.
    pub fn set_reconfigure_secret(&mut self, secret: [u8; 32]) {
        self.keys.secret = Some(secret);
        // One byte: no DUID is as short, so this is no Client's key.
        let session = self.keys.digest(&[0]);
        let session = session.and_then(|d| Some(u64::from_be_bytes(d.get(..8)?.try_into().ok()?)));
        self.signatures.set_session(session.unwrap_or(0));
    }

    /// The Server is about to go: no new leases, and its Clients are told to turn to others. It
    /// goes on forwarding. When [`Server::neighbors`] is empty, or only what
    /// [lingers](super::Neighbor::lingers) is left, nobody needs it any more.
    pub fn drain(&mut self, now: Instant) {
        self.draining = true;
        let clients: Vec<IpNet> = self
            .neighbors
            .values()
            .filter(|n| n.reconfigurable && !n.lingers)
            .map(|n| n.prefix)
            .collect();
        for prefix in clients {
            self.reconfigures.insert(prefix, Pending { sent: 0, wait: Duration::ZERO });
            self.reconfigure_due(prefix, now);
        }
    }

    /// Takes [`Server::drain`] back: new leases are given again.
    pub fn resume(&mut self) {
        self.draining = false;
        for prefix in std::mem::take(&mut self.reconfigures).into_keys() {
            self.timers.cancel(&Timer::Reconfigure(prefix));
        }
    }

    /// True if a request may be answered with a lease while the Server drains: only who has one.
    pub(super) fn takes(&self, request: &Request) -> bool {
        !self.draining
            || !matches!(request.message.kind, Kind::Solicit | Kind::Request)
            || self
                .neighbors
                .values()
                .any(|n| Some(&n.client) == request.message.client.as_ref() && !n.lingers)
    }

    /// Puts the key into a Reply that gives a lease to a Client that takes Reconfigures.
    pub(super) fn give_key(&mut self, request: &Request, reply: &mut Message) {
        let m = &request.message;
        let first = matches!(m.kind, Kind::Solicit | Kind::Request | Kind::Rebind);
        if !first || !m.reconfigure_accept || reply.kind != Kind::Reply {
            return;
        }
        let Some(key) = m.client.as_ref().and_then(|c| self.keys.of(c)) else { return };
        reply.reconfigure_accept = true;
        reply.authentication = Some(rkap::give(&key, self.keys.next()));
    }

    /// Who has not left yet: Clients with a lease here, and how many of them have not answered their
    /// Reconfigure. One that has answered and stays has no other Server.
    pub fn remaining(&self) -> Remaining {
        let stays = |p: &&IpNet| self.neighbors.get(*p).is_some_and(|n| !n.lingers);
        Remaining {
            clients: self.neighbors.values().filter(|n| !n.lingers).count(),
            asked: self.reconfigures.keys().filter(stays).count(),
        }
    }

    /// True between [`Server::drain`] and [`Server::resume`].
    pub fn is_draining(&self) -> bool {
        self.draining
    }

    /// The Client has done what it was told.
    pub(super) fn reconfigured(&mut self, prefix: IpNet) {
        if self.reconfigures.remove(&prefix).is_some() {
            self.timers.cancel(&Timer::Reconfigure(prefix));
        }
    }

    /// Sends a Reconfigure (again): at once, then after 2, 4, 8 ... seconds, eight times at most.
    pub(super) fn reconfigure_due(&mut self, prefix: IpNet, now: Instant) {
        let Some(neighbor) = self.neighbors.get(&prefix).filter(|n| !n.lingers) else {
            self.reconfigures.remove(&prefix);
            return;
        };
        let (client, to) = (neighbor.client.clone(), neighbor.link_layer);
        let Some(pending) = self.reconfigures.get_mut(&prefix) else { return };
        if pending.sent > RECONFIGURE.count {
            self.reconfigures.remove(&prefix);
            return;
        }
        pending.sent += 1;
        pending.wait = if pending.sent == 1 { RECONFIGURE.initial } else { pending.wait * 2 };
        let due = now + pending.wait;
        self.timers.set(Timer::Reconfigure(prefix), due);
        let Some(key) = self.keys.of(&client) else { return };
        let mut m = Message::new(Kind::Reconfigure, [0; 3]);
        m.client = Some(client.clone());
        m.server = Some(self.config.duid.clone());
        m.reconfigure = Some(Kind::Rebind);
        m.authentication = Some(rkap::unsigned(self.keys.next()));
        let (source, destination) = (self.config.id.address(), aero_address(prefix));
        // Whoever signs gets signed messages only; RKAP's counter tells a replay.
        let signing = self.signatures.announce(&client, &mut m);
        let packet = m.emit().and_then(|mut data| {
            rkap::sign(&mut data, &key)?;
            if let Some(key) = signing {
                let covered = Covered { source, destination, outer: None };
                signature::sign(&mut data, &covered, key)?;
            }
            let from = (source, ip::DHCP_SERVER_PORT);
            ip::udp(from, (destination, ip::DHCP_CLIENT_PORT), &data)
        });
        if let Ok(packet) = packet {
            self.send(to, packet);
        }
    }
}
