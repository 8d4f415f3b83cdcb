//! From one Proxy to another: the hand-over of draft -48 section 3.19.
//!
//! Proxies are fixed infrastructure under one trust ([`Node::set_proxies`]); nobody else is
//! listened to here. What is said straight between two of them:
//!
//! | | predictive: the old Proxy is told where the Client goes | reactive: the new one, whence it came |
//! | --- | --- | --- |
//! | 1 | old keeps what comes, Solicit to new | new asks its Servers, Release to old |
//! | 2 | new asks its Servers, keeps what comes | old keeps what comes, releases at its Servers |
//! | 3 | when it has a lease: Redirect to old | Predirect to new |
//! | 4 | old sends on to new what it kept, and all that still comes | Redirect to old, and as before |
//! | 5 | when its Servers have said that they send elsewhere: unsolicited advertisement to new | |
//! | 6 | new delivers: what old sent on first, then the rest | |
//!
//! The draft has the new Proxy pass the Request on; here it asks all its Servers itself, as it has
//! a lease at each, and takes nothing for true before one of them has agreed. Step 5 is ours: the
//! Servers' word that a prefix left follows the last packet that they sent the old way, so that no
//! packet is overtaken by a later one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rand::Rng;

use super::association::IAID;
use super::mobility::News;
use super::{ClientSpec, Event, Node, Timer};
use crate::address::{ALL_DHCP_SERVERS, Duid, LinkLayerAddress, aero_address};
use crate::forwarding::{Change, NextHop, Route};
use crate::timers::FORWARD_TIME;
use crate::wire::aero_options::{AeroOption, Claim};
use crate::wire::dhcpv6::{IaPd, Kind, Message, Prefix};
use crate::wire::nd::{LinkLayerOption, Nd, NdMessage, NdOption};
use crate::wire::{WireError, ip};

/// Longest time for which the old Proxy keeps packets and waits for the new one. Then they go to
/// its default Server.
pub const HAND_OVER_TIME: Duration = Duration::from_secs(1);
/// Longest time for which the new Proxy keeps packets for a Client that has been announced and does
/// not come.
pub const JOIN_TIME: Duration = Duration::from_secs(5);
/// Time after which a message to the other Proxy is repeated.
const REPEAT: Duration = Duration::from_millis(200);
/// Most Clients that are announced and have not come.
const MAX_COMING: usize = 1024;

/// The other Proxies, and who is on the way to or from them.
#[derive(Debug, Default)]
pub(super) struct Proxies {
    known: BTreeSet<LinkLayerAddress>,
    leaving: BTreeMap<Duid, Leaving>,
    coming: BTreeMap<Duid, Coming>,
    /// Which Proxies send on to us, each until when.
    accepted: BTreeMap<IpNet, (LinkLayerAddress, Instant)>,
}

/// A Client that goes to another Proxy.
#[derive(Debug)]
struct Leaving {
    to: LinkLayerAddress,
    until: Instant,
    /// What is repeated until the other one is ready.
    message: Vec<u8>,
    ready: bool,
    /// Servers that have not yet said that they send elsewhere.
    untold: BTreeSet<LinkLayerAddress>,
}

/// A Client that comes from another Proxy.
#[derive(Debug)]
struct Coming {
    from: LinkLayerAddress,
    claim: Option<Claim>,
    until: Instant,
    /// It is attached here.
    joined: bool,
    /// Predictive: the old Proxy has said its last word.
    ended: bool,
    /// It was here before the old Proxy knew: nothing is kept for it.
    reactive: bool,
    /// Reactive: the message that is repeated until the old Proxy answers.
    release: Option<Vec<u8>>,
}

impl Proxies {
    pub(super) fn len(&self) -> usize {
        self.leaving.len() + self.coming.len()
    }

    pub(super) fn knows(&self, at: LinkLayerAddress) -> bool {
        self.known.contains(&at)
    }

    pub(super) fn is_leaving(&self, id: &Duid) -> bool {
        self.leaving.contains_key(id)
    }

    /// Forgets whence a Client comes. True if it has been announced and is not here: nobody but
    /// the announcement asked for it.
    pub(super) fn forget_coming(&mut self, id: &Duid) -> bool {
        self.coming.remove(id).is_some_and(|c| !c.joined)
    }

    /// Where packets of a served Client go: to it, or nowhere before it and all that was sent to
    /// it earlier have come.
    pub(super) fn place_of(&self, id: &Duid) -> NextHop {
        match self.coming.get(id) {
            Some(c) if !c.reactive => NextHop::Hold { first: Some(c.from) },
            _ => NextHop::Local,
        }
    }
}

impl Node {
    /// The other Proxies of the link: nodes that are trusted like Servers, in place of those that
    /// were named before.
    pub fn set_proxies(&mut self, all: impl IntoIterator<Item = LinkLayerAddress>) {
        self.proxies.known = all.into_iter().collect();
    }

    /// A Client is about to leave for another Proxy (predictive): nothing that comes from now on is
    /// lost or overtaken. `claim` is what its new holder is going to claim. The program may
    /// [`Node::detach`] it at any time after this. Without a lease, or towards a node that is no
    /// Proxy, this does nothing: the Client is detached as any other.
    pub fn hand_over(
        &mut self,
        id: &Duid,
        claim: Option<Claim>,
        to: LinkLayerAddress,
        now: Instant,
    ) {
        if !self.proxies.knows(to) {
            return;
        }
        let Some(message) = self.straight(id, Kind::Solicit, claim) else { return };
        self.leave_for(id, to, message, now);
    }

    /// As [`Node::attach`] for a Client that comes from another Proxy which was not told (reactive):
    /// that one sends on what still comes to it.
    pub fn attach_from(&mut self, spec: ClientSpec, from: LinkLayerAddress, now: Instant) {
        let (id, claim) = (spec.client.clone(), spec.claim);
        let hint = spec.prefixes.clone();
        self.attach(spec, now);
        if !self.proxies.knows(from) || self.proxies.coming.len() >= MAX_COMING {
            return;
        }
        let Some(first) = hint.first() else { return };
        let Some(release) =
            self.message_for(&id, Kind::Release, claim, &hint, aero_address(*first))
        else {
            return;
        };
        for prefix in hint {
            self.accept_from(prefix, from, now);
        }
        let until = now + HAND_OVER_TIME;
        let again = Some(release.clone());
        let coming = Coming {
            from,
            claim,
            until,
            joined: true,
            ended: false,
            reactive: true,
            release: again,
        };
        self.proxies.coming.insert(id.clone(), coming);
        self.timers.set(Timer::HandOver(id), now + REPEAT);
        self.send(from, release);
    }

    /// True if a Client that is attached has been announced: all is under way.
    pub(super) fn joins(&mut self, spec: &ClientSpec, now: Instant) -> bool {
        let id = &spec.client;
        if self.proxies.leaving.remove(id).is_some() {
            self.deliver_again(id);
        }
        let Some(coming) = self.proxies.coming.get_mut(id) else { return false };
        if coming.claim != spec.claim || coming.reactive {
            self.proxies.forget_coming(id);
            self.deliver_again(id);
            return false;
        }
        coming.joined = true;
        // The old Proxy's last word may be lost; it is not waited for long.
        coming.until = now + HAND_OVER_TIME;
        self.timers.set(Timer::HandOver(id.clone()), coming.until);
        self.come_to_rest(id, false);
        true
    }

    /// A DHCPv6 message straight from another Proxy.
    pub(super) fn proxy_asks(
        &mut self,
        from: LinkLayerAddress,
        source: Ipv6Addr,
        message: &Message,
        now: Instant,
    ) -> Result<(), WireError> {
        let id = message.client.clone().ok_or(WireError::BadValue)?;
        let prefixes: Vec<_> =
            message.ia_pd.iter().flat_map(|ia| &ia.prefixes).map(|p| p.prefix.trunc()).collect();
        let claim = message.claim();
        if prefixes.first().map(|p| aero_address(*p)) != Some(source) {
            return Err(WireError::BadAddress);
        }
        let newer = |own: Option<Claim>| match (claim, own) {
            (Some(c), Some(own)) => c.epoch > own.epoch,
            _ => true,
        };
        match message.kind {
            Kind::Solicit => {
                let here = self.clients.get(&id).filter(|c| !c.detached);
                let joined = here.is_some_and(|c| c.spec.claim == claim);
                if here.is_some_and(|c| !joined && !newer(c.spec.claim)) {
                    return Err(WireError::BadValue);
                }
                if !self.proxies.coming.contains_key(&id) {
                    self.expect(
                        &id,
                        joined,
                        ClientSpec { client: id.clone(), claim, prefixes },
                        from,
                        now,
                    );
                }
                // Said again by a Proxy that has not heard the answer.
                self.ready_for(&id, now);
                Ok(())
            }
            Kind::Release => {
                let Some(first) = prefixes.first() else { return Ok(()) };
                let served = self.clients.get(&id).is_some_and(|c| c.served && newer(c.spec.claim));
                let Some(predirect) = self.told_between(*first, true) else { return Ok(()) };
                if served && !self.proxies.is_leaving(&id) {
                    self.leave_for(&id, from, predirect, now);
                } else if !served && self.departed.contains_key(first) {
                    // A Server was faster. What still comes goes straight now.
                    for prefix in prefixes {
                        if let Some(departed) = self.departed.get_mut(&prefix) {
                            departed.to = Some(from);
                            self.route_departed(prefix, now);
                        }
                    }
                    self.send(from, predirect);
                }
                Ok(())
            }
            _ => Err(WireError::Unsupported),
        }
    }

    /// The old Proxy sends on what still comes for a prefix.
    fn accept_from(&mut self, prefix: IpNet, from: LinkLayerAddress, now: Instant) {
        let until = now + FORWARD_TIME;
        if self.proxies.accepted.len() >= MAX_COMING {
            self.proxies.accepted.retain(|_, (_, until)| *until > now);
        }
        self.proxies.accepted.insert(prefix, (from, until));
        self.change(Change::SetHandover { prefix, from, until });
    }

    /// A prefix leaves again, and nobody knows where to: what the Proxy before us still sends on is
    /// refused. Sent to a Server that has not heard of us it would come back by that Proxy, round
    /// and round.
    pub(super) fn refuse_from_former(&mut self, prefix: IpNet, now: Instant) {
        if let Some((from, until)) = self.proxies.accepted.remove(&prefix)
            && until > now
        {
            self.change(Change::SetHandover { prefix, from, until: now });
        }
    }

    /// Predictive, new side: asks for the lease of a Client that is about to come.
    fn expect(
        &mut self,
        id: &Duid,
        joined: bool,
        spec: ClientSpec,
        from: LinkLayerAddress,
        now: Instant,
    ) {
        if self.proxies.coming.len() >= MAX_COMING {
            return;
        }
        for prefix in spec.prefixes.clone() {
            self.accept_from(prefix, from, now);
        }
        let until = now + if joined { HAND_OVER_TIME } else { JOIN_TIME };
        let coming = Coming {
            from,
            claim: spec.claim,
            until,
            joined,
            ended: false,
            reactive: false,
            release: None,
        };
        if joined {
            // It is here and served: what comes late is only accepted, nothing is kept.
            let answer = self.redirect(id);
            self.send_all(from, answer);
            return;
        }
        self.attach(spec, now);
        self.proxies.coming.insert(id.clone(), coming);
        self.timers.set(Timer::HandOver(id.clone()), until);
    }

    /// Neighbor Discovery straight from another Proxy: Predirect, Redirect, and the last word.
    pub(super) fn proxy_says(
        &mut self,
        from: LinkLayerAddress,
        nd: &Nd,
        now: Instant,
    ) -> Result<(), WireError> {
        let target = match nd.message {
            NdMessage::Redirect { target, .. }
            | NdMessage::Advertisement { solicited: false, target, .. } => target,
            _ => return Err(WireError::Unsupported),
        };
        let here = |c: &super::Client| {
            let all = if c.prefixes.is_empty() { &c.spec.prefixes } else { &c.prefixes };
            all.first().is_some_and(|p| aero_address(*p) == target)
        };
        let found = self.clients.iter().find(|(_, c)| here(c)).map(|(id, _)| id.clone());
        let id = found.filter(|_| nd.source == target).ok_or(WireError::BadAddress)?;
        match nd.message {
            NdMessage::Redirect { predirect: true, .. } => {
                let coming = self.proxies.coming.get_mut(&id).filter(|c| c.from == from);
                if let Some(coming) = coming {
                    coming.release = None;
                    coming.until = now + HAND_OVER_TIME;
                    self.ready_for(&id, now);
                }
            }
            NdMessage::Redirect { .. } => {
                let leaving = self.proxies.leaving.get_mut(&id).filter(|l| l.to == from);
                if let Some(leaving) = leaving.filter(|l| !l.ready) {
                    leaving.ready = true;
                    self.send_on_to(&id, from, now);
                }
            }
            _ => {
                let comes = self.proxies.coming.get(&id).is_some_and(|c| c.from == from);
                if comes {
                    self.come_to_rest(&id, true);
                }
            }
        }
        Ok(())
    }

    /// The new Proxy has a lease (again): tells the old one that it may send on.
    pub(super) fn ready_for(&mut self, id: &Duid, _now: Instant) {
        let served = self.clients.get(id).is_some_and(|c| c.served);
        let Some(from) = self.proxies.coming.get(id).map(|c| c.from).filter(|_| served) else {
            return;
        };
        let answer = self.redirect(id);
        self.send_all(from, answer);
    }

    /// Old side: keeps what comes for a Client and says `message` to the new Proxy.
    fn leave_for(&mut self, id: &Duid, to: LinkLayerAddress, message: Vec<u8>, now: Instant) {
        let Some(client) = self.clients.get(id).filter(|c| c.served && !c.detached) else { return };
        let untold = client.associations.iter().filter(|(_, a)| a.lease.is_some());
        let untold = untold.map(|(l2, _)| *l2).collect();
        let prefixes = client.prefixes.clone();
        for prefix in prefixes {
            self.prefix_left(prefix);
            let route = Route { to: NextHop::Hold { first: None }, transit: true, until: None };
            self.change(Change::SetRoute { prefix, route });
        }
        let announced = self.proxies.forget_coming(id);
        if let Some(client) = self.clients.get_mut(id) {
            client.detached |= announced;
        }
        let until = now + HAND_OVER_TIME;
        let leaving = Leaving { to, until, message: message.clone(), ready: false, untold };
        self.proxies.leaving.insert(id.clone(), leaving);
        self.timers.set(Timer::HandOver(id.clone()), now + REPEAT);
        self.send(to, message);
    }

    /// Old side: the new Proxy is ready. What was kept goes there, and correspondents are told.
    fn send_on_to(&mut self, id: &Duid, to: LinkLayerAddress, now: Instant) {
        let Some(client) = self.clients.get(id) else { return };
        let epoch = client.spec.claim.map(|c| c.epoch);
        if let Some(via) = self.default.filter(|_| client.served) {
            for own in client.prefixes.clone() {
                self.announce(own, via, News::Left { epoch }, now);
            }
        }
        self.unserve_for(id, Some(to), now);
        self.hand_over_may_end(id, now);
    }

    /// A Server says that a Client went. True if that is under way already.
    pub(super) fn told_of_hand_over(&mut self, id: &Duid, server: LinkLayerAddress) -> bool {
        let Some(leaving) = self.proxies.leaving.get_mut(id) else { return false };
        leaving.untold.remove(&server);
        true
    }

    /// Old side: all that the Servers sent here has come, and has been sent on.
    pub(super) fn hand_over_may_end(&mut self, id: &Duid, now: Instant) {
        let over = self.proxies.leaving.get(id).is_some_and(|l| l.ready && l.untold.is_empty());
        if over {
            self.hand_over_ends(id, now);
        }
    }

    fn hand_over_ends(&mut self, id: &Duid, now: Instant) {
        let Some(leaving) = self.proxies.leaving.remove(id) else { return };
        self.timers.cancel(&Timer::HandOver(id.clone()));
        let Some(client) = self.clients.get(id) else { return };
        let (detached, served) = (client.detached, client.served);
        if leaving.ready {
            let own = client.prefixes.first().copied();
            let last = own.and_then(|p| last_word(aero_address(p)).emit().ok());
            self.send_all(leaving.to, last);
        } else if served {
            // The new Proxy is silent: as any other Client that left.
            let epoch = client.spec.claim.map(|c| c.epoch);
            if let Some(via) = self.default {
                for own in client.prefixes.clone() {
                    self.announce(own, via, News::Left { epoch }, now);
                }
            }
            self.unserve(id, now);
        }
        if !detached {
            self.event(Event::Muted { client: id.clone(), why: super::Muted::HandedOver });
        }
        let Some(client) = self.clients.get(id) else { return };
        // Where the entry has moved on this changes nothing.
        let servers: Vec<_> = client.associations.keys().copied().collect();
        for server in servers {
            self.release(id, server, now);
        }
        self.reap(id);
    }

    /// New side: delivers when the Client is here and the old Proxy has said its last word, or
    /// need not be waited for.
    fn come_to_rest(&mut self, id: &Duid, last_word: bool) {
        let Some(coming) = self.proxies.coming.get_mut(id) else { return };
        coming.ended |= last_word;
        if coming.ended && coming.joined {
            self.proxies.forget_coming(id);
            self.timers.cancel(&Timer::HandOver(id.clone()));
            self.deliver_again(id);
        }
    }

    /// Lets packets of a served Client go to it.
    fn deliver_again(&mut self, id: &Duid) {
        let Some(client) = self.clients.get(id).filter(|c| c.served && !c.detached) else { return };
        for prefix in client.prefixes.clone() {
            let route = Route { to: NextHop::Local, transit: false, until: None };
            self.change(Change::SetRoute { prefix, route });
        }
    }

    /// The time of a hand-over: repeats, gives up.
    pub(super) fn hand_over_due(&mut self, id: &Duid, now: Instant) {
        if let Some(leaving) = self.proxies.leaving.get(id) {
            if leaving.until <= now {
                self.hand_over_ends(id, now);
                return;
            }
            let again = (!leaving.ready).then(|| leaving.message.clone());
            let to = leaving.to;
            self.timers.set(Timer::HandOver(id.clone()), now + REPEAT);
            self.send_all(to, again);
            return;
        }
        let Some(coming) = self.proxies.coming.get(id) else { return };
        if coming.until <= now {
            let joined = coming.joined;
            self.proxies.forget_coming(id);
            if joined {
                self.deliver_again(id);
            } else {
                self.give_up(id, now);
            }
            return;
        }
        let (from, again) = (coming.from, coming.release.clone());
        if again.is_some() {
            self.timers.set(Timer::HandOver(id.clone()), now + REPEAT);
        } else {
            self.timers.set(Timer::HandOver(id.clone()), coming.until);
        }
        self.send_all(from, again);
    }

    /// It has been announced and did not come. What waits for it is nobody's: a Server that has not
    /// heard of it may send to the old Proxy, and that one sends here.
    fn give_up(&mut self, id: &Duid, now: Instant) {
        let prefixes = self.clients.get(id).map(|c| c.prefixes.clone()).unwrap_or_default();
        self.detach(id, now);
        for prefix in prefixes {
            if self.departed.remove(&prefix).is_some() {
                self.timers.cancel(&Timer::Departed(prefix));
                self.change(Change::RemoveRoute { prefix });
            }
        }
    }

    fn send_all(&mut self, to: LinkLayerAddress, packet: Option<Vec<u8>>) {
        if let Some(packet) = packet {
            self.send(to, packet);
        }
    }

    /// A DHCPv6 message of a served Client to another Proxy.
    fn straight(&mut self, id: &Duid, kind: Kind, claim: Option<Claim>) -> Option<Vec<u8>> {
        let client = self.clients.get(id).filter(|c| c.served && !c.detached)?;
        let prefixes = client.prefixes.clone();
        let source = aero_address(*prefixes.first()?);
        self.message_for(id, kind, claim, &prefixes, source)
    }

    fn message_for(
        &mut self,
        id: &Duid,
        kind: Kind,
        claim: Option<Claim>,
        prefixes: &[IpNet],
        source: Ipv6Addr,
    ) -> Option<Vec<u8>> {
        let mut m = Message::new(kind, self.rng.random());
        m.client = Some(id.clone());
        m.rapid_commit = kind == Kind::Solicit;
        let list = prefixes.iter().map(|p| Prefix { prefix: *p, preferred: 0, valid: 0 }).collect();
        m.ia_pd.push(IaPd { id: IAID, prefixes: list, ..IaPd::default() });
        m.aero.extend(claim.map(AeroOption::Claim));
        let to = (ALL_DHCP_SERVERS, ip::DHCP_SERVER_PORT);
        ip::udp((source, ip::DHCP_CLIENT_PORT), to, &m.emit().ok()?).ok()
    }

    fn redirect(&self, id: &Duid) -> Option<Vec<u8>> {
        self.told_between(*self.clients.get(id)?.prefixes.first()?, false)
    }

    /// Between Proxies both ends speak for one and the same Client, whose address is source,
    /// destination and target.
    fn told_between(&self, own: IpNet, predirect: bool) -> Option<Vec<u8>> {
        let address = aero_address(own);
        let message = NdMessage::Redirect {
            predirect,
            target: address,
            destination: own.addr(),
            prefix_length: own.prefix_len(),
        };
        let link = LinkLayerOption { link_id: self.links.used(), preference: 255, address: None };
        let options = vec![NdOption::TargetLinkLayer(link)];
        Nd { source: address, destination: address, message, options }.emit().ok()
    }
}

/// "All that came to me for this Client is with you."
fn last_word(address: Ipv6Addr) -> Nd {
    let message =
        NdMessage::Advertisement { solicited: false, override_cached: true, target: address };
    Nd { source: address, destination: address, message, options: Vec::new() }
}
