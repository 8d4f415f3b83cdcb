//! A Client's association with one Server: DHCPv6 prefix delegation (RFC 8415 section 18.2).

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rand::Rng;

use super::{Event, Node, Timer, asps_of};
use crate::address::{ALL_DHCP_SERVERS, BOOTSTRAP_ADDRESS, Duid, LinkLayerAddress, aero_address};
use crate::timers::{
    MAX_RETRY, REBIND, REBIND_MOVED, RELEASE, RENEW, REQUEST, Retransmission, SOLICIT, four_fifths,
};
use crate::wire::aero_options::AeroOption;
use crate::wire::dhcpv6::{
    IaPd, Kind, Message, OPTION_SOL_MAX_RT, OPTION_VENDOR_OPTS, Prefix, StatusCode,
};
use crate::wire::{WireError, rkap};

/// IAID of a Client's only IA_PD.
pub(super) const IAID: u32 = 1;

/// Bytes for a Server's reason to refuse, which names a prefix, a pod and its node.
const ROOM_FOR_REFUSAL: u8 = 160;

/// After a Server has lost a lease, all others there are renewed at once, but not again within
/// this time.
const DOUBT_TIME: Duration = Duration::from_secs(10);

/// What the association is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nothing; it waits to be told.
    Idle,
    /// Solicit with Rapid Commit.
    Soliciting,
    /// Request, after an Advertise.
    Requesting,
    /// Has a lease that is not yet to be renewed.
    Bound,
    /// Renew, after T1.
    Renewing,
    /// Rebind, after T2 or a move.
    Rebinding,
    /// Release.
    Releasing,
}

/// A lease.
#[derive(Debug, Clone)]
pub(super) struct Lease {
    pub(super) t1: Instant,
    t2: Instant,
    pub(super) valid: Instant,
}

/// The association of one Client with one Server.
#[derive(Debug, Clone)]
pub(super) struct Association {
    pub(super) phase: Phase,
    pub(super) lease: Option<Lease>,
    pub(super) server: Option<Duid>,
    transaction: [u8; 3],
    began: Instant,
    wait: Option<Duration>,
    sent: u32,
    moved: bool,
    /// The link that the exchange goes over, and that it registers.
    pub(super) link: u8,
    /// Correspondents are to be told of it when it is registered.
    pub(super) tells: bool,
    /// Links that are still to be registered.
    pub(super) links_due: BTreeSet<u8>,
    /// With which the Server proves that a Reconfigure is its own, and the last counter seen.
    pub(super) key: Option<(rkap::Key, u64)>,
}

impl Association {
    fn new(link: u8, now: Instant) -> Self {
        Self {
            phase: Phase::Idle,
            lease: None,
            server: None,
            transaction: [0; 3],
            began: now,
            wait: None,
            sent: 0,
            moved: false,
            link,
            tells: false,
            links_due: BTreeSet::new(),
            key: None,
        }
    }

    /// When the lease that it has runs out.
    pub(super) fn end(&self) -> Option<Instant> {
        self.lease.as_ref().map(|l| l.valid)
    }

    /// What it does is because of a move: repeated every second or so, not every ten.
    pub(super) fn moves(&mut self) {
        self.moved = true;
    }

    /// Stops what it does, and tells when the lease that it has runs out: until then the Client
    /// may use its prefix, as no Server gives it to another before.
    pub(super) fn stop(&mut self) -> Option<Instant> {
        self.phase = Phase::Idle;
        self.server = None;
        self.end()
    }

    fn retransmission(&self) -> Option<Retransmission> {
        match self.phase {
            Phase::Soliciting => Some(SOLICIT),
            Phase::Requesting => Some(REQUEST),
            Phase::Renewing => Some(RENEW),
            // Confirm's parameters, without its limit of ten seconds: going on costs little, and
            // the lease stays until its end anyway (RFC 8415 section 18.2.12).
            Phase::Rebinding if self.moved => Some(REBIND_MOVED),
            Phase::Rebinding => Some(REBIND),
            Phase::Releasing => Some(RELEASE),
            Phase::Idle | Phase::Bound => None,
        }
    }
}

impl Node {
    /// Starts over: Solicit with Rapid Commit.
    pub(super) fn solicit(&mut self, id: &Duid, server: LinkLayerAddress, now: Instant) {
        if self.is_leaving(server) {
            self.forget_association(id, server);
            return;
        }
        // A Release that is still on its way would end the lease that is asked for now.
        self.farewells.remove(&(id.clone(), server));
        self.timers.cancel(&Timer::Farewell(id.clone(), server));
        if self.servers.get(&server).is_some_and(|s| !s.may_answer()) {
            self.timers.set(Timer::Probe(server), now + SOLICIT.maximum);
        }
        self.begin(id, server, Phase::Soliciting, now);
    }

    pub(super) fn resolicit_idle(&mut self, id: &Duid, server: LinkLayerAddress, now: Instant) {
        let idle = self
            .clients
            .get(id)
            .and_then(|c| c.associations.get(&server))
            .is_none_or(|a| a.phase == Phase::Idle);
        if idle {
            self.solicit(id, server, now);
        }
    }

    pub(super) fn rebind_moved(&mut self, id: &Duid, server: LinkLayerAddress, now: Instant) {
        let association = self.clients.get(id).and_then(|c| c.associations.get(&server));
        // What is being given back is not asked for again; the Release is repeated anyway.
        if association.is_some_and(|a| a.phase == Phase::Releasing) {
            return;
        }
        let has_lease =
            self.clients.get_mut(id).and_then(|c| c.associations.get_mut(&server)).is_some_and(
                |a| {
                    a.moved = true;
                    a.lease.is_some()
                },
            );
        let phase = if has_lease { Phase::Rebinding } else { Phase::Soliciting };
        self.begin(id, server, phase, now);
    }

    pub(super) fn release(&mut self, id: &Duid, server: LinkLayerAddress, now: Instant) {
        let known = |a: &Association| a.lease.is_some() && a.server.is_some();
        let Some(client) = self.clients.get_mut(id) else { return };
        if client.associations.get(&server).is_some_and(known) {
            self.begin(id, server, Phase::Releasing, now);
        } else {
            client.associations.remove(&server);
            self.timers.cancel(&Timer::Association(id.clone(), server));
        }
    }

    /// Begins an exchange over the link in use.
    pub(super) fn begin(
        &mut self,
        id: &Duid,
        server: LinkLayerAddress,
        phase: Phase,
        now: Instant,
    ) {
        self.begin_on(self.links.used(), id, server, phase, now);
    }

    /// Begins an exchange: new transaction, first transmission now.
    pub(super) fn begin_on(
        &mut self,
        link: u8,
        id: &Duid,
        server: LinkLayerAddress,
        phase: Phase,
        now: Instant,
    ) {
        let transaction: [u8; 3] = self.rng.random();
        let Some(client) = self.clients.get_mut(id) else { return };
        let a = client.associations.entry(server).or_insert_with(|| Association::new(link, now));
        a.link = link;
        a.links_due.remove(&link);
        a.phase = phase;
        a.transaction = transaction;
        a.began = now;
        a.wait = None;
        a.sent = 0;
        self.transmit(id, server, now);
    }

    /// Sends the message of the present phase and arms the timer for the next.
    fn transmit(&mut self, id: &Duid, server: LinkLayerAddress, now: Instant) {
        let Some(client) = self.clients.get_mut(id) else { return };
        let Some(a) = client.associations.get_mut(&server) else { return };
        let Some(schedule) = a.retransmission() else { return };
        let wait = schedule.next(a.wait, &mut self.rng);
        a.wait = Some(wait);
        a.sent += 1;
        let mut due = now + wait;
        if let Some(lease) = &a.lease {
            let bound = if a.phase == Phase::Renewing { lease.t2 } else { lease.valid };
            if a.phase != Phase::Releasing && bound > now {
                due = due.min(bound);
            }
        }
        let link = a.link;
        let message = self.message(id, server, now);
        self.timers.set(Timer::Association(id.clone(), server), due);
        if let Some(packet) = message {
            self.send_on(link, server, packet);
        }
    }

    /// Says the message of an exchange again, in the Server's session: as one more transmission, or
    /// `anew`, as a new exchange.
    ///
    /// # Errors
    /// If there is no such exchange.
    pub(super) fn say_again(
        &mut self,
        answer: &Message,
        server: LinkLayerAddress,
        anew: bool,
        now: Instant,
    ) -> Result<(), WireError> {
        let id = answer.client.clone().ok_or(WireError::BadValue)?;
        let association = self.clients.get(&id).and_then(|c| c.associations.get(&server));
        if let Some(a) = association.filter(|a| a.transaction == answer.transaction) {
            if anew {
                self.begin_on(a.link, &id, server, a.phase, now);
            } else {
                self.transmit(&id, server, now);
            }
            return Ok(());
        }
        self.farewell_again(&(id, server), answer.transaction, now)
    }

    fn message(&mut self, id: &Duid, server: LinkLayerAddress, now: Instant) -> Option<Vec<u8>> {
        let client = self.clients.get(id)?;
        let a = client.associations.get(&server)?;
        let kind = match a.phase {
            Phase::Soliciting => Kind::Solicit,
            Phase::Requesting => Kind::Request,
            Phase::Renewing => Kind::Renew,
            Phase::Rebinding => Kind::Rebind,
            Phase::Releasing => Kind::Release,
            Phase::Idle | Phase::Bound => return None,
        };
        let mut m = Message::new(kind, a.transaction);
        m.client = Some(id.clone());
        if !matches!(kind, Kind::Solicit | Kind::Rebind) {
            m.server = a.server.clone();
        }
        // On a Rebind it lets a Server that lost its memory make the binding anew at once.
        m.rapid_commit = matches!(kind, Kind::Solicit | Kind::Rebind);
        m.reconfigure_accept = kind != Kind::Release;
        let elapsed = now.saturating_duration_since(a.began).as_millis() / 10;
        m.elapsed = Some(u16::try_from(elapsed).unwrap_or(u16::MAX));
        m.requested = vec![OPTION_VENDOR_OPTS, OPTION_SOL_MAX_RT];
        let wanted =
            if client.prefixes.is_empty() { &client.spec.prefixes } else { &client.prefixes };
        let prefixes =
            wanted.iter().map(|p| Prefix { prefix: *p, preferred: 0, valid: 0 }).collect();
        m.ia_pd.push(IaPd { id: IAID, prefixes, ..IaPd::default() });
        m.aero.push(self.links.request(a.link));
        m.aero.extend(self.links.removed());
        m.aero.extend(client.spec.claim.map(AeroOption::Claim));
        m.aero.push(AeroOption::Padding(ROOM_FOR_REFUSAL));
        let source = match client.prefixes.first() {
            Some(prefix) if a.lease.is_some() => aero_address(*prefix),
            _ => BOOTSTRAP_ADDRESS,
        };
        let direct = a.link == self.links.used();
        self.signed_packet(server, m, (source, ALL_DHCP_SERVERS), direct)
    }

    /// The association's timer: the next retransmission, T1, T2 or the end of the lease.
    pub(super) fn association_due(&mut self, id: &Duid, server: LinkLayerAddress, now: Instant) {
        let Some(client) = self.clients.get_mut(id) else { return };
        let Some(a) = client.associations.get_mut(&server) else { return };
        let expired = a.lease.as_ref().is_some_and(|l| l.valid <= now);
        let past_t2 = a.lease.as_ref().is_some_and(|l| l.t2 <= now);
        let (phase, sent, link) = (a.phase, a.sent, a.link);
        if expired && phase != Phase::Releasing {
            a.lease = None;
            self.unbind(id, server);
            self.check_lease(id, now);
        }
        // Another link than the one in use is worth some tries, not the renewal of the lease.
        let gives_up = sent >= u32::from(MAX_RETRY) && link != self.links.used();
        match phase {
            Phase::Bound => self.begin(id, server, Phase::Renewing, now),
            Phase::Rebinding if gives_up => self.link_is_silent(id, server, now),
            Phase::Renewing | Phase::Rebinding if expired => self.solicit(id, server, now),
            Phase::Renewing if past_t2 => self.begin(id, server, Phase::Rebinding, now),
            Phase::Releasing if sent >= RELEASE.count => self.released(id, server),
            Phase::Requesting if sent >= REQUEST.count => self.solicit(id, server, now),
            Phase::Idle => {}
            _ => self.transmit(id, server, now),
        }
    }

    /// An Advertise or Reply from a Server.
    pub(super) fn dhcp_answer(
        &mut self,
        from: LinkLayerAddress,
        source: Ipv6Addr,
        message: &Message,
        now: Instant,
    ) -> Result<(), WireError> {
        let id = message.client.clone().ok_or(WireError::BadValue)?;
        let server_id = message.server.clone().ok_or(WireError::BadValue)?;
        let client = self.clients.get_mut(&id).ok_or(WireError::BadValue)?;
        let a = client.associations.get_mut(&from).ok_or(WireError::BadValue)?;
        if a.transaction != message.transaction {
            return Err(WireError::BadValue);
        }
        if let Some(state) = self.servers.get_mut(&from) {
            state.address = Some(source);
        }
        let granted = lease_of(message);
        // A Server that refuses has the table's word; without any lease left nothing is served.
        let refused = granted.is_err() && a.phase != Phase::Releasing;
        match (a.phase, message.kind) {
            (Phase::Soliciting, Kind::Advertise) => match granted {
                Ok(_) => {
                    a.server = Some(server_id);
                    self.begin(&id, from, Phase::Requesting, now);
                }
                Err((_, text)) => self.refused(&id, from, text),
            },
            (Phase::Soliciting, Kind::Reply) if !message.rapid_commit => {
                return Err(WireError::BadValue);
            }
            (
                Phase::Soliciting | Phase::Requesting | Phase::Renewing | Phase::Rebinding,
                Kind::Reply,
            ) => match granted {
                Ok((prefixes, t1, t2, valid)) => {
                    let new = a.lease.is_none();
                    a.server = Some(server_id);
                    a.lease = Some(Lease { t1: now + t1, t2: now + t2, valid: now + valid });
                    a.phase = Phase::Bound;
                    a.moved = false;
                    if let Some(given) = &message.authentication
                        && let Some(key) = rkap::given(given)
                    {
                        a.key = Some((key, given.replay));
                    }
                    let link = a.link;
                    client.announce |= std::mem::take(&mut a.tells);
                    client.refusal = None;
                    self.timers.set(Timer::Association(id.clone(), from), now + t1);
                    self.learn_asps(message);
                    if let Some(state) = self.servers.get_mut(&from) {
                        state.candidate.learn(message);
                    }
                    self.bound(&id, from, &prefixes, new, now);
                    self.link_registered(link, &id, from, new, now);
                    self.registered(&id, from, now);
                }
                Err((StatusCode::NoBinding, text)) => {
                    a.lease = None;
                    client.refusal = Some(text);
                    self.unbind(&id, from);
                    self.solicit(&id, from, now);
                    self.doubt(from, now);
                }
                Err((_, text)) => self.refused(&id, from, text),
            },
            (Phase::Releasing, Kind::Reply) => self.released(&id, from),
            _ => return Err(WireError::BadValue),
        }
        self.server_lives(from, now);
        self.choose_servers(now);
        self.leave_if_bound_elsewhere(&id, now);
        if refused {
            self.check_lease(&id, now);
        }
        Ok(())
    }

    /// A Server knows nothing of a lease that it gave: it may have lost all of them. What the
    /// other Clients have there is renewed at once instead of at T1, at most once in a while.
    fn doubt(&mut self, server: LinkLayerAddress, now: Instant) {
        let Some(state) = self.servers.get_mut(&server) else { return };
        if state.doubted.is_some_and(|t| now < t + DOUBT_TIME) {
            return;
        }
        state.doubted = Some(now);
        let bound = |c: &super::Client| {
            c.associations.get(&server).is_some_and(|a| a.phase == Phase::Bound)
        };
        let ids: Vec<Duid> =
            self.clients.iter().filter(|(_, c)| bound(c)).map(|(id, _)| id.clone()).collect();
        for id in ids {
            self.begin(&id, server, Phase::Renewing, now);
        }
    }

    fn bound(
        &mut self,
        id: &Duid,
        server: LinkLayerAddress,
        prefixes: &[IpNet],
        new: bool,
        now: Instant,
    ) {
        if let Some(state) = self.servers.get_mut(&server) {
            state.bound.insert(id.clone());
        }
        self.serve(id, prefixes);
        self.ready_for(id, now);
        self.choose_default(now);
        let prefixes = prefixes.to_vec();
        self.event(Event::Delegated { client: id.clone(), server, prefixes, new });
    }

    pub(super) fn unbind(&mut self, id: &Duid, server: LinkLayerAddress) {
        if let Some(state) = self.servers.get_mut(&server) {
            state.bound.remove(id);
        }
    }

    /// A refusal; the Solicit goes on with its growing intervals, since the table may change.
    fn refused(&mut self, id: &Duid, server: LinkLayerAddress, text: String) {
        self.unbind(id, server);
        if let Some(client) = self.clients.get_mut(id) {
            client.refusal = Some(text.clone());
            if let Some(a) = client.associations.get_mut(&server) {
                a.lease = None;
                if a.phase == Phase::Requesting {
                    a.phase = Phase::Soliciting;
                }
            }
        }
        self.event(Event::Refused { client: id.clone(), server, text });
    }

    fn released(&mut self, id: &Duid, server: LinkLayerAddress) {
        self.timers.cancel(&Timer::Association(id.clone(), server));
        self.unbind(id, server);
        if let Some(client) = self.clients.get_mut(id) {
            client.associations.remove(&server);
        }
        self.reap(id);
    }

    fn learn_asps(&mut self, message: &Message) {
        for asp in asps_of(message) {
            if !self.config.asps.contains(asp) {
                self.config.asps.push(*asp);
                self.route_asps();
            }
        }
    }
}

type Granted = (Vec<IpNet>, Duration, Duration, Duration);

/// What an answer gives: prefixes, T1, T2 and the shortest valid lifetime; or the status that
/// says why it gives nothing.
fn lease_of(message: &Message) -> Result<Granted, (StatusCode, String)> {
    let nothing = || (StatusCode::NoPrefixAvail, "the answer holds no prefix".to_string());
    let failed = |s: &crate::wire::dhcpv6::Status| s.code != StatusCode::Success;
    if let Some(status) = message.status.as_ref().filter(|s| failed(s)) {
        return Err((status.code, status.text.clone()));
    }
    let ia = message.ia_pd.iter().find(|ia| ia.id == IAID).ok_or_else(nothing)?;
    if let Some(status) = ia.status.as_ref().filter(|s| failed(s)) {
        return Err((status.code, status.text.clone()));
    }
    let live: Vec<&Prefix> = ia.prefixes.iter().filter(|p| p.valid > 0).collect();
    let preferred = live.iter().map(|p| p.preferred).min().ok_or_else(nothing)?;
    let valid = live.iter().map(|p| p.valid).min().ok_or_else(nothing)?;
    // Zero leaves the times to the client: 0.5 and 0.8 of the shortest preferred lifetime
    // (RFC 8415 section 21.21).
    let t1 = if ia.t1 == 0 { preferred / 2 } else { ia.t1 };
    let t2 = if ia.t2 == 0 { four_fifths(preferred) } else { ia.t2 };
    let seconds = |n: u32| Duration::from_secs(u64::from(n));
    let prefixes = live.iter().map(|p| p.prefix).collect();
    Ok((prefixes, seconds(t1.min(valid)), seconds(t2.min(valid)), seconds(valid)))
}
