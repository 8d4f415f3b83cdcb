//! Route optimisation, both sides: draft -48 section 3.11 (Predirect, Redirect).
//!
//! The source side sends a Predirect when a packet had to go by the Server; when the Redirect has
//! come back the target is solicited, and only its advertisement opens the path
//! (`reachability.rs`). The target side makes an entry that accepts, and answers. One exchange
//! opens one direction of one pair of ACPs.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rand::Rng;

use super::{Client, Event, Ignored, Node, Timer};
use crate::address::{
    LinkLayerAddress, acp_of_aero_address, aero_address, longest_acp_of_host,
    prefix_of_aero_address,
};
use crate::forwarding::{Change, Inner};
use crate::neighbor::{Key, Link, Nonce};
use crate::timers::RETRANS_TIMER;
use crate::wire::WireError;
use crate::wire::nd::{Nd, NdMessage, NdOption};

/// Largest control packet: what a tunnel over IPv6 carries whole (section 3.10: 1280 - ENCAPS).
pub const MAX_CONTROL: usize = 1280 - 56;
/// Most of a packet that set off a Predirect that goes into it: what is left beside the IPv6
/// header, the fixed part and the other options.
pub const MAX_REDIRECTED: usize = MAX_CONTROL - 40 - 40 - 24 - 16 - 8 - 8;
/// Most destinations that are being asked for at a time.
pub const MAX_ATTEMPTS: usize = 4096;
/// Longest time between Predirects for a destination whose exchanges fail.
const MAX_BACK_OFF: Duration = Duration::from_secs(8);

/// Predirects for one destination (its /64, or its IPv4 address) from one own ACP.
#[derive(Debug, Clone)]
pub(super) struct Attempt {
    /// Of the Predirect that waits for its Redirect.
    nonce: Option<Nonce>,
    /// Destination of the packet that set it off.
    destination: IpAddr,
    /// No other before this time.
    next: Instant,
    /// Exchanges in a row that opened no path.
    failures: u32,
}

impl Attempt {
    fn back_off(&mut self, now: Instant) {
        let wait = RETRANS_TIMER * (1 << self.failures.min(3));
        self.next = now + wait.min(MAX_BACK_OFF);
        self.failures = self.failures.saturating_add(1);
    }
}

impl Node {
    /// A packet of one of our Clients went by the Server to a destination on the link. The Server is
    /// watched closely from now on. If the packet is worth a Predirect, it is sent: at most one a second for each pair, and fewer if they
    /// lead to nothing (section 3.11 leaves the rate to RFC 4861 section 8.2). `packet` is the
    /// packet or its beginning; at most [`MAX_REDIRECTED`] bytes of it are used.
    pub fn data_packet_by_server(&mut self, inner: Inner, packet: &[u8], now: Instant) {
        self.default_used(now);
        if !self.config.optimize || inner.source.is_ipv4() != inner.destination.is_ipv4() {
            return;
        }
        let Some(own) = self.served_prefix(|p| p.contains(&inner.source)) else { return };
        let on_link = self.config.asps.iter().any(|a| a.contains(&inner.destination));
        if !on_link || self.served_prefix(|p| p.contains(&inner.destination)).is_some() {
            return;
        }
        let Some(server) = self.default else { return };
        let wanted = longest_acp_of_host(inner.destination);
        let address = aero_address(wanted);
        let busy = |key: &Key| {
            self.neighbors.get(key).is_some_and(|n| n.forwards(now) || n.is_solicited())
        };
        if self.neighbors.find(own, address).as_ref().is_some_and(busy) {
            return;
        }
        let nonce: Nonce = self.rng.random();
        if !self.may_attempt(own, wanted, inner.destination, nonce, now) {
            return;
        }
        let nd = Nd {
            source: aero_address(own),
            destination: address,
            message: NdMessage::Redirect {
                predirect: true,
                target: aero_address(own),
                destination: inner.source,
                prefix_length: own.prefix_len(),
            },
            options: self.redirect_options(Some(nonce.to_vec()), packet, now),
        };
        if let Ok(packet) = nd.emit() {
            self.send(server, packet);
        }
    }

    /// Takes note of a Predirect. False if it must not be sent yet, or if there is no room.
    fn may_attempt(
        &mut self,
        own: IpNet,
        wanted: IpNet,
        destination: IpAddr,
        nonce: Nonce,
        now: Instant,
    ) -> bool {
        if self.attempts.len() >= MAX_ATTEMPTS && !self.attempts.contains_key(&(own, wanted)) {
            // Looking through all of them for every new destination would be a way to keep the
            // node busy.
            if self.swept.is_none_or(|t| t + RETRANS_TIMER <= now) {
                self.sweep_attempts(now);
            }
            if self.attempts.len() >= MAX_ATTEMPTS {
                return false;
            }
        }
        if self.attempts.is_empty() {
            self.timers.set(Timer::Attempts, now + MAX_BACK_OFF);
        }
        let fresh = Attempt { nonce: None, destination, next: now, failures: 0 };
        let attempt = self.attempts.entry((own, wanted)).or_insert(fresh);
        if attempt.next > now {
            return false;
        }
        attempt.nonce = Some(nonce);
        attempt.destination = destination;
        attempt.back_off(now);
        true
    }

    /// Forgets attempts that are over. While there are any it is done again and again.
    pub(super) fn sweep_attempts(&mut self, now: Instant) {
        self.swept = Some(now);
        self.attempts.retain(|_, a| a.next + MAX_BACK_OFF > now);
        if self.attempts.is_empty() {
            self.timers.cancel(&Timer::Attempts);
        } else {
            self.timers.set(Timer::Attempts, now + MAX_BACK_OFF);
        }
    }

    /// Exchanges of this pair start from the beginning again: they led to a path, or the
    /// correspondent is elsewhere now.
    pub(super) fn forget_attempts(&mut self, (peer, own): Key) {
        self.attempts.retain(|(o, wanted), _| *o != own || !peer.contains(wanted));
    }

    /// Options of a Predirect or Redirect: our link, without an address since the Server knows
    /// it better; the time; a nonce; the packet that set it off.
    fn redirect_options(
        &self,
        nonce: Option<Vec<u8>>,
        packet: &[u8],
        now: Instant,
    ) -> Vec<NdOption> {
        let mut options = self.own_links();
        options.extend(self.timestamp(now));
        options.extend(nonce.map(NdOption::Nonce));
        if !packet.is_empty() {
            let quoted = packet.get(..MAX_REDIRECTED).unwrap_or(packet);
            options.push(NdOption::RedirectedHeader(quoted.to_vec()));
        }
        options
    }

    /// Our link as we name it to a Server.
    pub(super) fn own_links(&self) -> Vec<NdOption> {
        self.links.options(false)
    }

    /// A Timestamp option, if the clock is known (RFC 3971 section 5.3.1).
    pub(super) fn timestamp(&self, now: Instant) -> Option<NdOption> {
        let (at, since_1970) = self.clock?;
        let passed = now.saturating_duration_since(at);
        Some(NdOption::Timestamp(since_1970 + passed))
    }

    /// Turns direct paths on or off. Those that are open live on until they are not used.
    pub fn set_optimize(&mut self, willing: bool) {
        self.config.optimize = willing;
    }

    /// The clock for Timestamps: at `at` it was `since_1970`. Without it none are sent; nobody's
    /// are checked, as no two nodes need to agree about the time.
    pub fn set_clock(&mut self, at: Instant, since_1970: Duration) {
        self.clock = Some((at, since_1970));
    }

    /// A prefix of a Client that is served here.
    pub(super) fn served_prefix(&self, wanted: impl Fn(&IpNet) -> bool) -> Option<IpNet> {
        let served = self.clients.values().filter(|c: &&Client| c.served);
        served.flat_map(|c| &c.prefixes).copied().find(wanted)
    }

    /// The own ACP that a message to `address` is for: any AERO address inside it will do.
    pub(super) fn served_at(&self, address: std::net::Ipv6Addr) -> Option<IpNet> {
        let prefix = prefix_of_aero_address(address)?;
        self.served_prefix(|p| p.contains(&prefix))
    }

    /// What a Predirect or Redirect that came from a Server says: the own ACP that it is for, the
    /// correspondent's ACP, and where the correspondent is.
    fn read_redirect(
        &self,
        nd: &Nd,
        target: std::net::Ipv6Addr,
        prefix_length: u8,
    ) -> Result<(IpNet, IpNet, Vec<Link>), Ignored> {
        let own = self.served_at(nd.destination).ok_or(Ignored::NotServed)?;
        if nd.source != target {
            return Err(Ignored::BadPrefix);
        }
        let peer = acp_of_aero_address(target, prefix_length).ok_or(Ignored::BadPrefix)?;
        let same_family = matches!(own, IpNet::V4(_)) == matches!(peer, IpNet::V4(_));
        let on_link = self.config.asps.iter().any(|a| a.contains(&peer));
        let ours = self.served_prefix(|p| p.contains(&peer) || peer.contains(p)).is_some();
        if !same_family || !on_link || ours {
            return Err(Ignored::BadPrefix);
        }
        let links: Vec<Link> = nd.target_link_layers().filter_map(Link::of).collect();
        if links.is_empty() {
            return Err(Ignored::NoLinkLayer);
        }
        Ok((own, peer, links))
    }

    /// The target side: a Predirect that one of our Servers has passed on.
    pub(super) fn predirected(
        &mut self,
        from: LinkLayerAddress,
        nd: &Nd,
        now: Instant,
    ) -> Result<(), Ignored> {
        let NdMessage::Redirect { target, destination, prefix_length, .. } = nd.message else {
            return Err(Ignored::BadPrefix);
        };
        if !self.config.optimize {
            return Err(Ignored::Unwilling);
        }
        let (own, peer, links) = self.read_redirect(nd, target, prefix_length)?;
        // The Destination Address is the source of the packet that set it off.
        if !peer.contains(&destination) {
            return Err(Ignored::BadPrefix);
        }
        let quoted = nd.options.iter().find_map(|o| match o {
            NdOption::RedirectedHeader(packet) => Some(&**packet),
            _ => None,
        });
        let reached = quoted.and_then(Inner::of).map(|inner| inner.destination);
        // Without a quoted packet the AERO address stands for its whole /64.
        let reached = match (reached, prefix_of_aero_address(nd.destination)) {
            (Some(reached), _) if own.contains(&reached) => reached,
            (None, Some(prefix)) => prefix.addr(),
            _ => return Err(Ignored::BadPrefix),
        };
        let key = (peer, own);
        self.neighbor_is_at(key, &links);
        let entry = self.neighbors.entry(key, target).ok_or(Ignored::CacheFull)?;
        entry.set_links(links);
        entry.accept(now);
        self.source_of(peer);
        self.arm(key);
        let answer = Nd {
            source: aero_address(own),
            destination: nd.source,
            message: NdMessage::Redirect {
                predirect: false,
                target: aero_address(own),
                destination: reached,
                prefix_length: own.prefix_len(),
            },
            options: self.redirect_options(
                nd.nonce().map(<[u8]>::to_vec),
                quoted.unwrap_or_default(),
                now,
            ),
        };
        if let Ok(packet) = answer.emit() {
            self.send(from, packet);
        }
        Ok(())
    }

    /// The source side: a Redirect that one of our Servers has passed on.
    pub(super) fn redirected(&mut self, nd: &Nd, now: Instant) -> Result<(), Ignored> {
        let NdMessage::Redirect { target, destination, prefix_length, .. } = nd.message else {
            return Err(Ignored::BadPrefix);
        };
        let (own, peer, links) = self.read_redirect(nd, target, prefix_length)?;
        let attempt = self
            .attempts
            .get_mut(&(own, longest_acp_of_host(destination)))
            .filter(|a| a.destination == destination)
            .ok_or(Ignored::NotAsked)?;
        let expected = attempt.nonce.as_ref().map(<[u8; 6]>::as_slice);
        if expected.is_none() || nd.nonce() != expected {
            return Err(Ignored::WrongNonce);
        }
        if !peer.contains(&destination) {
            return Err(Ignored::BadPrefix);
        }
        attempt.nonce = None;
        let key = (peer, own);
        self.neighbor_is_at(key, &links);
        let entry = self.neighbors.entry(key, target).ok_or(Ignored::CacheFull)?;
        entry.set_links(links);
        entry.start_over();
        self.solicit_neighbor(key, now);
        Ok(())
    }

    /// A Server has said where a correspondent is. What other Clients of this node have agreed
    /// with it at another place is void.
    fn neighbor_is_at(&mut self, (peer, own): Key, links: &[Link]) {
        let moved: Vec<Key> = self
            .neighbors
            .of_peer(peer)
            .filter(|n| n.own != own && !links.iter().any(|l| n.has_link(l.address)))
            .map(crate::neighbor::Neighbor::key)
            .collect();
        for key in moved {
            self.forget_neighbor(key, super::PathLost::Moved);
        }
    }

    /// Tells the forwarder from where the correspondent's packets are accepted.
    pub(super) fn source_of(&mut self, peer: IpNet) {
        let change = match self.neighbors.accepted(peer) {
            Some((from, until)) => Change::SetSource { prefix: peer, from, until: Some(until) },
            None => Change::RemoveSource { prefix: peer },
        };
        self.change(change);
    }

    /// Ignores a message, and says why.
    pub(super) fn ignore(
        &mut self,
        from: LinkLayerAddress,
        outcome: Result<(), Ignored>,
    ) -> Result<(), WireError> {
        if let Err(why) = outcome {
            self.event(Event::Ignored { from, why });
        }
        Ok(())
    }
}
