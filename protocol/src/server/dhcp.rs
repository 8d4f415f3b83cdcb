//! Answers to DHCPv6 messages: RFC 8415 section 18.3, for prefix delegation.

use std::net::Ipv6Addr;
use std::time::Instant;

use ipnet::IpNet;

use super::authorization::Decision;
use super::links::Registration;
use super::{Ended, Event, Refusal, Request, Server};
use crate::address::BOOTSTRAP_ADDRESS;
use crate::timers::four_fifths;
use crate::wire::aero_options::AeroOption;
use crate::wire::dhcpv6::{
    IaNa, IaPd, Kind, Message, OPTION_VENDOR_OPTS, Prefix, Status, StatusCode,
};
use crate::wire::{WireError, ip};

impl Server {
    /// RFC 8415 section 16: what makes a server discard a message without an answer.
    pub(super) fn validate(&self, request: &Request) -> Result<(), WireError> {
        let m = &request.message;
        let for_us = m.server.as_ref() == Some(&self.config.duid);
        let ok = match m.kind {
            Kind::Solicit | Kind::Confirm | Kind::Rebind => {
                m.client.is_some() && m.server.is_none()
            }
            Kind::Request | Kind::Renew | Kind::Release | Kind::Decline => {
                m.client.is_some() && for_us
            }
            Kind::InformationRequest => {
                (m.server.is_none() || for_us) && m.ia_pd.is_empty() && m.ia_na.is_empty()
            }
            Kind::Advertise | Kind::Reply | Kind::Reconfigure => false,
        };
        // Confirm is about addresses; without any there is nothing to confirm (section 18.3.3).
        let confirms = m.kind != Kind::Confirm || m.ia_na.iter().any(|ia| ia.has_addresses);
        (ok && confirms).then_some(()).ok_or(WireError::BadValue)
    }

    /// Answers a valid message. `may_wait`: a claim that is newer than the table is parked.
    pub(super) fn answer(&mut self, request: Request, may_wait: bool, now: Instant) {
        let m = &request.message;
        match m.kind {
            Kind::Confirm => {
                let mut reply = self.reply(&request, Kind::Reply);
                let text = "this link delegates prefixes and assigns no addresses";
                reply.status = Some(Status::new(StatusCode::NotOnLink, text));
                self.send_reply(&request, &reply);
            }
            Kind::InformationRequest => {
                let reply = self.reply(&request, Kind::Reply);
                self.send_reply(&request, &reply);
            }
            Kind::Release => self.release(&request, now),
            Kind::Decline => self.decline(&request),
            _ => match self.authorize(&request) {
                Decision::Wait(_) if may_wait => self.park(request, now),
                Decision::Wait(why) | Decision::Refuse(why) => self.refuse(&request, why),
                Decision::Grant(prefixes) if self.takes(&request) => {
                    self.grant(&request, &prefixes, now);
                }
                Decision::Grant(_) => {
                    let text = "this Server is about to go; ask another";
                    self.deny(&request, &Status::new(StatusCode::NoPrefixAvail, text));
                }
            },
        }
    }

    fn grant(&mut self, request: &Request, prefixes: &[IpNet], now: Instant) {
        let kind = request.message.kind;
        let commits = kind != Kind::Solicit || request.message.rapid_commit;
        let bound_here = |s: &Self| {
            prefixes.iter().all(|p| s.neighbors.get(p).is_some_and(|n| n.has_link(request.from)))
        };
        let bound = prefixes.iter().all(|p| self.neighbors.get(p).is_some_and(|n| !n.lingers));
        // A Server that lost its memory may make the binding anew on a Rebind (RFC 8415 section
        // 18.3.5): the table says who may have it, and Rapid Commit that the Client agrees.
        let agreed = request.message.rapid_commit && !self.is_draining();
        let lost = kind == Kind::Rebind && !bound && !agreed;
        if (kind == Kind::Renew && !bound_here(self)) || lost {
            let text = "this Server has no such lease; solicit anew";
            self.deny(request, &Status::new(StatusCode::NoBinding, text));
            return;
        }
        let mut reply = self.reply(request, if commits { Kind::Reply } else { Kind::Advertise });
        reply.rapid_commit = kind == Kind::Solicit && commits;
        let seconds = u32::try_from(self.config.lease.as_secs()).unwrap_or(u32::MAX);
        for (n, ia) in request.message.ia_pd.iter().enumerate() {
            let mut answer = IaPd { id: ia.id, ..IaPd::default() };
            if n == 0 {
                answer.t1 = seconds / 2;
                answer.t2 = four_fifths(seconds);
                answer.prefixes = prefixes
                    .iter()
                    .map(|p| Prefix { prefix: *p, preferred: seconds, valid: seconds })
                    .collect();
            } else {
                let text = "all prefixes of this client are in its first IA_PD";
                answer.status = Some(Status::new(StatusCode::NoPrefixAvail, text));
            }
            reply.ia_pd.push(answer);
        }
        if commits && !request.message.ia_pd.is_empty() {
            let registration = Registration::of(request);
            for prefix in prefixes {
                self.bind(*prefix, &registration, now);
                if kind == Kind::Rebind {
                    self.reconfigured(*prefix);
                }
            }
            self.give_key(request, &mut reply);
        }
        self.send_reply(request, &reply);
    }

    pub(super) fn refuse(&mut self, request: &Request, why: Refusal) {
        let kind = request.message.kind;
        let code = match kind {
            Kind::Renew | Kind::Rebind => StatusCode::NoBinding,
            _ => StatusCode::NoPrefixAvail,
        };
        // Whoever is refused holds no lease, whatever the cache says.
        if let Refusal::Outdated { prefix, .. } | Refusal::HeldByOther { prefix, .. } = &why
            && self.neighbors.get(prefix).is_some_and(|n| n.has_link(request.from))
            && self.mappings.get(prefix).is_some_and(|m| {
                m.holder.as_ref().is_some_and(|h| !h.underlay.contains(&request.from.ip))
            })
        {
            self.end_neighbor(*prefix, Ended::HolderChanged);
        }
        let text = why.to_string();
        if let Some(client) = request.message.client.clone() {
            self.event(Event::Refused { client, from: request.from, why });
        }
        self.deny(request, &Status::new(code, text));
    }

    /// An answer that gives nothing. A Solicit that gets nothing is answered by an Advertise even
    /// with Rapid Commit (section 18.3.1).
    fn deny(&mut self, request: &Request, status: &Status) {
        let solicit = request.message.kind == Kind::Solicit;
        let mut reply = self.reply(request, if solicit { Kind::Advertise } else { Kind::Reply });
        for ia in &request.message.ia_pd {
            let status = Some(status.clone());
            reply.ia_pd.push(IaPd { id: ia.id, status, ..IaPd::default() });
        }
        self.send_reply(request, &reply);
    }

    /// Section 18.3.7. A Release of a node that the prefix has left already changes nothing, and
    /// neither does one that was said under an earlier epoch than the lease: it may come late, when
    /// the next holder is at the same node.
    fn release(&mut self, request: &Request, now: Instant) {
        let Some(client) = &request.message.client else { return };
        let claimed = request.message.claim().map(|c| c.epoch);
        let held: Vec<(IpNet, bool)> = self
            .by_client
            .get(client)
            .into_iter()
            .flatten()
            .filter_map(|p| self.neighbors.get(p))
            .filter(|n| n.client == *client && !n.lingers)
            .map(|n| {
                let outdated = claimed.is_some_and(|epoch| epoch < n.epoch);
                (n.prefix, n.has_link(request.from) && !outdated)
            })
            .collect();
        let mut reply = self.reply(request, Kind::Reply);
        reply.status = Some(Status::new(StatusCode::Success, "released"));
        if held.is_empty() {
            for ia in &request.message.ia_pd {
                let status = Some(Status::new(StatusCode::NoBinding, "no such lease"));
                reply.ia_pd.push(IaPd { id: ia.id, status, ..IaPd::default() });
            }
        }
        for (prefix, ends) in held {
            if ends {
                self.end_neighbor(prefix, Ended::Released);
                self.remember_former(prefix, request.from, now);
            }
        }
        self.send_reply(request, &reply);
    }

    /// Section 18.3.8: only addresses can be declined, and there are none.
    fn decline(&mut self, request: &Request) {
        let mut reply = self.reply(request, Kind::Reply);
        reply.status = Some(Status::new(StatusCode::Success, "nothing was assigned"));
        for ia in &mut reply.ia_na {
            ia.status = Some(Status::new(StatusCode::NoBinding, "no addresses are assigned here"));
        }
        self.send_reply(request, &reply);
    }

    /// The parts that all answers share: identifiers, no addresses for anybody, and AERO's
    /// options if they were asked for.
    pub(super) fn reply(&self, request: &Request, kind: Kind) -> Message {
        let m = &request.message;
        let mut reply = Message::new(kind, m.transaction);
        reply.client = m.client.clone();
        reply.server = Some(self.config.duid.clone());
        for ia in &m.ia_na {
            let text = "this link delegates prefixes and assigns no addresses";
            let status = Some(Status::new(StatusCode::NoAddrsAvail, text));
            reply.ia_na.push(IaNa { id: ia.id, has_addresses: false, status });
        }
        if m.requested.contains(&OPTION_VENDOR_OPTS) {
            reply.aero.push(AeroOption::LinkReply {
                link_id: link_id(m),
                address: request.from,
                asps: self.config.asps.clone(),
            });
            let (joined, preference) = (self.is_joined(), self.preference());
            reply.aero.push(AeroOption::Serving { joined, preference });
        }
        if kind == Kind::Advertise {
            reply.preference = Some(self.preference());
        }
        reply
    }

    /// How much room there is, for the Preference option: 250 with next to no Clients, and 25 less
    /// for each tenth of what the Server has room for. 255 would end a client's search at once.
    fn preference(&self) -> u8 {
        if self.is_draining() {
            return 0;
        }
        let tenths = self.neighbors.len().saturating_mul(10) / self.room.max(1);
        u8::try_from(10usize.saturating_sub(tenths)).unwrap_or(0) * 25
    }

    /// Sends an answer. Who gets no prefix is not authenticated, so it gets no more bytes than it
    /// sent, or anybody could point this Server at a forged source: first the link's options go,
    /// then as much of the text as is too long, and what is still too long is not sent.
    pub(super) fn send_reply(&mut self, request: &Request, reply: &Message) {
        let grants = reply.ia_pd.iter().any(|ia| !ia.prefixes.is_empty());
        let mut packet = self.reply_packet(request, reply);
        if !grants && packet.as_ref().is_ok_and(|p| p.len() > request.length) {
            let mut short = reply.clone();
            short.aero.retain(|o| !matches!(o, AeroOption::LinkReply { .. }));
            packet = self.reply_packet(request, &short);
            if let Ok(p) = &packet
                && p.len() > request.length
            {
                shorten(&mut short, p.len() - request.length);
                packet = self.reply_packet(request, &short);
            }
            packet = packet.and_then(|p| {
                (p.len() <= request.length).then_some(p).ok_or(WireError::WouldAmplify)
            });
        }
        match packet {
            Ok(packet) => self.send(request.from, packet),
            Err(why) => self.event(Event::Dropped { from: request.from, why }),
        }
    }

    fn reply_packet(&self, request: &Request, reply: &Message) -> Result<Vec<u8>, WireError> {
        let to = if request.source.is_unspecified() { BOOTSTRAP_ADDRESS } else { request.source };
        let source: Ipv6Addr = self.config.id.address();
        let data = self.signed_answer(request, reply, source, to)?;
        ip::udp((source, ip::DHCP_SERVER_PORT), (to, request.port), &data)
    }
}

/// Cuts the texts of all statuses by `excess` bytes together, as far as there is text.
fn shorten(message: &mut Message, mut excess: usize) {
    let inner = message.ia_pd.iter_mut().filter_map(|ia| ia.status.as_mut());
    let addresses = message.ia_na.iter_mut().filter_map(|ia| ia.status.as_mut());
    for status in message.status.iter_mut().chain(inner).chain(addresses) {
        let mut keep = status.text.len().saturating_sub(excess);
        while !status.text.is_char_boundary(keep) {
            keep -= 1;
        }
        excess = excess.saturating_sub(status.text.len() - keep);
        status.text.truncate(keep);
    }
}

/// The link that a message comes over; 0 if it does not say.
fn link_id(message: &Message) -> u8 {
    let id = message.aero.iter().find_map(|o| match o {
        AeroOption::LinkRequest { link_id, .. } => Some(*link_id),
        _ => None,
    });
    id.unwrap_or(0)
}
