//! Neighbor Discovery between Clients that goes by a Server: draft -48 section 3.11 (Predirect
//! and Redirect), 3.13 (answers to solicitations) and 3.15 (unsolicited advertisements).
//!
//! The Server that a Client's message comes to first vouches for it: the Client owns the AERO
//! address, may use the Prefix Length and has registered the links; the Server itself fills in
//! the link-layer addresses, so nobody can send others' traffic to a third place. The last
//! Server passes on, untouched, what a permanent neighbour vouches for. All that fails is
//! dropped silently, and counted.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::{Event, Neighbor, Server, Timer};
use crate::address::{LinkLayerAddress, prefix_of_aero_address};
use crate::forwarding::Change;
use crate::neighbor::covering;
use crate::timers::FORWARD_TIME;
use crate::wire::nd::{Nd, NdMessage, NdOption};

/// Messages a second that one Client may have passed on.
const RATE: u32 = 256;
/// Messages at once.
const BURST: u32 = 512;

/// Where a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// To one of this Server's own Clients.
    ToClient(LinkLayerAddress),
    /// To a Relay or another Server: the Client is not one of ours.
    ToRelay(LinkLayerAddress),
}

/// Why a message was not passed on. The names are those of counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NotPassed {
    /// A kind of message that Clients do not send each other.
    NotForClients,
    /// The sender does not hold the AERO address that it speaks from or about.
    NotOwner,
    /// The Prefix Length or the Destination Address is not of the sender's ACP.
    ForeignPrefix,
    /// A Link ID that the sender has not registered.
    UnknownLink,
    /// No link-layer address option where one is needed.
    NoLinkLayer,
    /// Route optimisation is turned off here.
    Policy,
    /// More than one Client may send.
    RateLimited,
    /// Nobody has the address that it is for.
    NoRoute,
    /// Its way leads back to where it came from.
    WouldReturn,
}

impl NotPassed {
    /// All, for counters.
    pub const ALL: [NotPassed; 9] = [
        NotPassed::NotForClients,
        NotPassed::NotOwner,
        NotPassed::ForeignPrefix,
        NotPassed::UnknownLink,
        NotPassed::NoLinkLayer,
        NotPassed::Policy,
        NotPassed::RateLimited,
        NotPassed::NoRoute,
        NotPassed::WouldReturn,
    ];

    /// The label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            NotPassed::NotForClients => "not_for_clients",
            NotPassed::NotOwner => "not_owner",
            NotPassed::ForeignPrefix => "foreign_prefix",
            NotPassed::UnknownLink => "unknown_link",
            NotPassed::NoLinkLayer => "no_link_layer",
            NotPassed::Policy => "policy",
            NotPassed::RateLimited => "rate_limited",
            NotPassed::NoRoute => "no_route",
            NotPassed::WouldReturn => "would_return",
        }
    }
}

/// A node that a prefix left not long ago: it may tell correspondents so, and send on what still
/// reaches it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Former {
    at: LinkLayerAddress,
    until: Instant,
}

/// Tokens of one Client.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bucket {
    tokens: u32,
    filled: Instant,
}

/// What this part of the Server remembers.
#[derive(Debug)]
pub(super) struct Redirects {
    allowed: bool,
    pub(super) former: BTreeMap<IpNet, Former>,
    pub(super) buckets: BTreeMap<IpNet, Bucket>,
    /// Fixed Clients that write link-layer addresses themselves.
    proxies: BTreeSet<LinkLayerAddress>,
    passed: u64,
    not_passed: BTreeMap<NotPassed, u64>,
}

impl Default for Redirects {
    fn default() -> Self {
        Self {
            allowed: true,
            former: BTreeMap::new(),
            buckets: BTreeMap::new(),
            proxies: BTreeSet::new(),
            passed: 0,
            not_passed: BTreeMap::new(),
        }
    }
}

/// In what right a message is sent.
enum Sender {
    /// The Client holds the ACP.
    Owner(Neighbor),
    /// The ACP left the node a moment ago.
    Former(IpNet),
    /// A permanent neighbour vouches for it.
    Permanent,
}

impl Server {
    /// Passes Predirects and Redirects on, or not (the Server as policy enforcement point).
    pub fn set_optimize(&mut self, allowed: bool) {
        self.redirects.allowed = allowed;
    }

    /// Messages between Clients that were passed on since the start.
    pub fn passed(&self) -> u64 {
        self.redirects.passed
    }

    /// Those that were not, by reason.
    pub fn not_passed(&self) -> impl Iterator<Item = (NotPassed, u64)> {
        NotPassed::ALL
            .iter()
            .map(|why| (*why, self.redirects.not_passed.get(why).map_or(0, |n| *n)))
    }

    /// A message from `from` that is not for this Server itself; `bytes` is the whole packet.
    pub(super) fn pass_on(&mut self, from: LinkLayerAddress, nd: &Nd, bytes: &[u8], now: Instant) {
        let outcome = self.vouch(from, nd, now).and_then(|(changed, permanent)| {
            let to = match self.disposition(nd.destination, permanent)? {
                Disposition::ToClient(to) | Disposition::ToRelay(to) => to,
            };
            if to == from { Err(NotPassed::WouldReturn) } else { Ok((to, changed)) }
        });
        match outcome {
            Ok((to, changed)) => {
                // It was parsed from no more bytes than this.
                let packet = changed.and_then(|nd| nd.emit().ok()).unwrap_or(bytes.to_vec());
                self.redirects.passed += 1;
                self.send(to, packet);
            }
            Err(why) => {
                *self.redirects.not_passed.entry(why).or_default() += 1;
                self.event(Event::NotPassed { from, why });
            }
        }
    }

    /// Checks a message. Returns it as it is to be sent if that is not as it came, and whether
    /// it came from a permanent neighbour.
    fn vouch(
        &mut self,
        from: LinkLayerAddress,
        nd: &Nd,
        now: Instant,
    ) -> Result<(Option<Nd>, bool), NotPassed> {
        if let NdMessage::Redirect { .. } = nd.message
            && !self.redirects.allowed
        {
            return Err(NotPassed::Policy);
        }
        // A Client trusts whatever its Server hands it, so nobody else speaks as a router.
        if matches!(
            nd.message,
            NdMessage::RouterSolicitation | NdMessage::RouterAdvertisement { .. }
        ) {
            return Err(NotPassed::NotForClients);
        }
        let sender = self.sender(from, nd.source, now).ok_or(NotPassed::NotOwner)?;
        let prefix = match &sender {
            Sender::Owner(neighbor) => neighbor.prefix,
            Sender::Former(prefix) => *prefix,
            Sender::Permanent => return Ok((None, true)),
        };
        if !self.take_token(prefix, now) {
            return Err(NotPassed::RateLimited);
        }
        let changed = match (&nd.message, &sender) {
            (NdMessage::Redirect { target, destination, prefix_length, .. }, Sender::Owner(n)) => {
                if *target != nd.source {
                    return Err(NotPassed::NotOwner);
                }
                if *prefix_length != n.prefix.prefix_len() || !n.prefix.contains(destination) {
                    return Err(NotPassed::ForeignPrefix);
                }
                if nd.target_link_layers().any(|o| n.link(o.link_id).is_none()) {
                    return Err(NotPassed::UnknownLink);
                }
                Some(self.with_links(nd, from, &sender)?)
            }
            (NdMessage::Advertisement { solicited: false, target, .. }, _) => {
                if *target != nd.source {
                    return Err(NotPassed::NotOwner);
                }
                Some(self.with_links(nd, from, &sender)?)
            }
            (NdMessage::Advertisement { target, .. }, Sender::Owner(_)) => {
                if *target != nd.source {
                    return Err(NotPassed::NotOwner);
                }
                None
            }
            (NdMessage::Solicitation { .. }, Sender::Owner(_)) => None,
            (_, _) => return Err(NotPassed::NotOwner),
        };
        Ok((changed, false))
    }

    fn sender(&self, from: LinkLayerAddress, source: Ipv6Addr, now: Instant) -> Option<Sender> {
        if self.is_permanent(from) {
            return Some(Sender::Permanent);
        }
        let owner = self.by_address.get(&source).and_then(|p| self.neighbors.get(p));
        if let Some(neighbor) = owner.filter(|n| n.has_link(from)) {
            return Some(Sender::Owner(neighbor.clone()));
        }
        covering(prefix_of_aero_address(source)?)
            .find(|p| self.redirects.former.get(p).is_some_and(|f| f.at == from && f.until > now))
            .map(Sender::Former)
    }

    /// Trusts a Proxy AERO Client, or does so no more: a fixed node of the same authority as the
    /// Servers, which may write itself where the Client is that it speaks about, as when it tells
    /// correspondents to which Proxy that one went. What any other Client writes is replaced by where
    /// the Server knows it to be.
    pub fn trust_proxy(&mut self, at: LinkLayerAddress, trusted: bool) {
        if trusted {
            self.redirects.proxies.insert(at);
        } else {
            self.redirects.proxies.remove(&at);
        }
    }

    /// Fills in the link-layer addresses. Of a link that is out of use (Preference 0) it is the
    /// one at which the sender is or was; a node that an ACP left may also name its new place,
    /// which is what the cache says, or nothing.
    fn with_links(
        &self,
        nd: &Nd,
        from: LinkLayerAddress,
        sender: &Sender,
    ) -> Result<Nd, NotPassed> {
        let mut nd = nd.clone();
        let trusted = self.redirects.proxies.contains(&from);
        nd.options.retain_mut(|option| {
            let NdOption::TargetLinkLayer(link) = option else { return true };
            if trusted && link.address.is_some() {
                return true;
            }
            let present = match sender {
                Sender::Owner(n) if link.preference == 0 => n.link_or_retired(link.link_id),
                Sender::Owner(n) => n.link(link.link_id).map(|l| l.address),
                Sender::Former(_) if link.preference == 0 => {
                    link.address = Some(from);
                    return true;
                }
                Sender::Former(prefix) => self.neighbors.get(prefix).map(|n| n.link_layer),
                Sender::Permanent => return true,
            };
            link.address = present;
            present.is_some()
        });
        let some = nd.target_link_layers().next().is_some();
        some.then_some(nd).ok_or(NotPassed::NoLinkLayer)
    }

    /// Where a message for a Client goes. One that a permanent neighbour has passed on goes to
    /// one of our own Clients, or nowhere.
    fn disposition(
        &self,
        destination: Ipv6Addr,
        from_permanent: bool,
    ) -> Result<Disposition, NotPassed> {
        let to = self.next_hop(destination, from_permanent).ok_or(NotPassed::NoRoute)?;
        Ok(match self.client_at(destination) {
            Some(_) => Disposition::ToClient(to),
            None => Disposition::ToRelay(to),
        })
    }

    /// A Relay or another Server: its word is taken for what it passes on.
    fn is_permanent(&self, from: LinkLayerAddress) -> bool {
        self.peers.contains(from)
    }

    /// An ACP left a node: for FORWARD_TIME the node may send on what still reaches it for the
    /// ACP, and tell the Client's correspondents that it left.
    pub(super) fn remember_former(&mut self, prefix: IpNet, at: LinkLayerAddress, now: Instant) {
        let until = now + FORWARD_TIME;
        self.redirects.former.insert(prefix, Former { at, until });
        self.timers.set(Timer::Former(prefix), until);
        self.accept_handover(prefix, at, now);
    }

    /// For FORWARD_TIME accepts from a node what still reaches it for an ACP that it had.
    pub(super) fn accept_handover(&mut self, prefix: IpNet, from: LinkLayerAddress, now: Instant) {
        self.change(Change::SetHandover { prefix, from, until: now + FORWARD_TIME });
    }

    /// FORWARD_TIME is over.
    pub(super) fn forget_former(&mut self, prefix: IpNet) {
        self.redirects.former.remove(&prefix);
        if !self.neighbors.contains_key(&prefix) {
            self.forget_tokens(prefix);
        }
    }

    pub(super) fn forget_tokens(&mut self, prefix: IpNet) {
        self.redirects.buckets.remove(&prefix);
    }

    fn take_token(&mut self, prefix: IpNet, now: Instant) -> bool {
        let r = &mut self.redirects;
        let bucket = r.buckets.entry(prefix).or_insert(Bucket { tokens: BURST, filled: now });
        let passed = now.saturating_duration_since(bucket.filled).min(Duration::from_secs(60));
        let new = u32::try_from(passed.as_millis()).unwrap_or(0).saturating_mul(RATE) / 1000;
        if new > 0 {
            bucket.tokens = bucket.tokens.saturating_add(new).min(BURST);
            bucket.filled = now;
        }
        let left = bucket.tokens.checked_sub(1);
        bucket.tokens = left.unwrap_or(0);
        left.is_some()
    }
}
