//! Signed DHCPv6 messages, from the Client's side ([`wire::signature`](crate::wire::signature)):
//! it signs what it says, and believes only what is signed with its key and answers what it said.
//!
//! A Server counts the messages of a session, which is new in each life of the Server. A Client that
//! does not know the session says its message with session 0 and a nonce in the place of the
//! counter; the Server then tells the session and how far it has counted, and the message is said
//! again. So the Client keeps nothing over a restart either.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use rand::Rng;

use super::Node;
use crate::address::{Duid, LinkLayerAddress};
use crate::wire::aero_options::AeroOption;
use crate::wire::dhcpv6::{Kind, Message};
use crate::wire::ip;
use crate::wire::signature::{self, Covered, Key, Signature};
use crate::wire::{WireError, ip::Packet};

/// What a Client knows of a Server's counting.
#[derive(Debug, Clone, Copy, Default)]
struct Session {
    /// 0 until the Server has told it.
    session: u64,
    /// Of the last message.
    counter: u64,
    /// The exchange that it is about, and its first counter: an answer may be to any of its
    /// transmissions.
    transaction: [u8; 3],
    first: u64,
}

/// All keys, and the sessions with Servers.
#[derive(Debug, Default)]
pub(super) struct Signatures {
    keys: BTreeMap<Duid, Key>,
    sessions: BTreeMap<(Duid, LinkLayerAddress), Session>,
    /// This node's own link-layer address, as each Server sees it.
    sources: BTreeMap<LinkLayerAddress, LinkLayerAddress>,
}

/// What an answer is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Answer {
    /// To be acted upon.
    Believed,
    /// The message is to be said to this Server again; in a new exchange if the session is another,
    /// since counters of the two are not to be compared.
    SayAgain { server: LinkLayerAddress, anew: bool },
}

impl Signatures {
    fn find(
        &mut self,
        client: &Duid,
        transaction: [u8; 3],
    ) -> Option<(LinkLayerAddress, &mut Session)> {
        let ours = |((id, _), s): &(&(Duid, LinkLayerAddress), &mut Session)| {
            id == client && s.transaction == transaction
        };
        self.sessions.iter_mut().find(ours).map(|((_, server), s)| (*server, s))
    }
}

impl Node {
    /// From now on signs what is said for a Client, and believes no answer about it that is not
    /// signed with this key. `None` takes that back.
    pub fn set_key(&mut self, client: Duid, key: Option<Key>) {
        match key {
            Some(key) => drop(self.signatures.keys.insert(client, key)),
            None => {
                self.signatures.keys.remove(&client);
                self.signatures.sessions.retain(|(id, _), _| *id != client);
            }
        }
    }

    /// Tells which address of this node, and which port, a Server sees as the outer source of what
    /// goes over the link in use; signatures then cover it, and a message that somebody on the
    /// underlay sends on from elsewhere is refused. Not where the path has a NAT.
    pub fn set_outer_source(&mut self, server: LinkLayerAddress, own: Option<LinkLayerAddress>) {
        match own {
            Some(own) => drop(self.signatures.sources.insert(server, own)),
            None => drop(self.signatures.sources.remove(&server)),
        }
    }

    /// Forgets the sessions with a Server, but those in which a Release is still to be answered.
    pub(super) fn forget_sessions(&mut self, server: LinkLayerAddress) {
        let farewells = &self.farewells;
        let signatures = &mut self.signatures;
        signatures.sessions.retain(|key, _| key.1 != server || farewells.contains_key(key));
        signatures.sources.remove(&server);
    }

    /// The packet of a message to a Server, signed if the Client has a key. `direct`: it goes over
    /// the link in use, and not through another Server, so that the outer source is known.
    pub(super) fn signed_packet(
        &mut self,
        server: LinkLayerAddress,
        mut m: Message,
        (source, destination): (Ipv6Addr, Ipv6Addr),
        direct: bool,
    ) -> Option<Vec<u8>> {
        let packet = |data: &[u8]| {
            let from = (source, ip::DHCP_CLIENT_PORT);
            ip::udp(from, (destination, ip::DHCP_SERVER_PORT), data).ok()
        };
        let id = m.client.clone()?;
        let signatures = &mut self.signatures;
        let Some(key) = signatures.keys.get(&id) else { return packet(&m.emit().ok()?) };
        let outer = signatures.sources.get(&server).copied().filter(|_| direct);
        let session = signatures.sessions.entry((id, server)).or_default();
        let new = session.transaction != m.transaction;
        session.counter = match session.session {
            0 if new => self.rng.random_range(1..u64::MAX),
            0 => session.counter,
            _ => session.counter.checked_add(1)?,
        };
        if new {
            (session.transaction, session.first) = (m.transaction, session.counter);
        }
        m.aero.push(AeroOption::Signature(Signature {
            key: key.id(),
            session: session.session,
            counter: session.counter,
            bound: outer.is_some(),
            digest: [0; 32],
        }));
        let mut data = m.emit().ok()?;
        signature::sign(&mut data, &Covered { source, destination, outer }, key).ok()?;
        packet(&data)
    }

    /// Checks an answer, or a Reconfigure, before anything is taken from it.
    ///
    /// # Errors
    /// [`WireError::BadSignature`] if its Client has a key and it is not signed with it, or answers
    /// nothing that was asked in its session.
    pub(super) fn check_answer(
        &mut self,
        message: &Message,
        data: &[u8],
        packet: &Packet<'_>,
    ) -> Result<Answer, WireError> {
        let Some(id) = &message.client else { return Ok(Answer::Believed) };
        let signatures = &mut self.signatures;
        let Some(key) = signatures.keys.get(id) else { return Ok(Answer::Believed) };
        let bad = WireError::BadSignature;
        let signature = *Signature::of(message)?.filter(|s| s.key == key.id()).ok_or(bad)?;
        let (source, destination) = (packet.source, packet.destination);
        if !signature::verify(data, &Covered { source, destination, outer: None }, key) {
            return Err(bad);
        }
        // Its counter is RKAP's, which is checked with its digest.
        if message.kind == Kind::Reconfigure {
            return Ok(Answer::Believed);
        }
        let (server, session) = signatures.find(id, message.transaction).ok_or(bad)?;
        if !(session.first..=session.counter).contains(&signature.counter) {
            return Err(bad);
        }
        let again = message.aero.iter().find_map(|o| match o {
            AeroOption::Again(counter) => Some(*counter),
            _ => None,
        });
        match again {
            Some(counter) if signature.session != session.session && signature.session != 0 => {
                *session = Session { session: signature.session, counter, ..Session::default() };
                Ok(Answer::SayAgain { server, anew: true })
            }
            // Another node speaks for this Client too, or did, and the Server has counted further.
            // What has come there is not said again, whatever became of its answer.
            Some(counter) if signature.session != 0 && counter > session.counter => {
                session.counter = counter;
                Ok(Answer::SayAgain { server, anew: false })
            }
            None if signature.session == session.session && signature.session != 0 => {
                Ok(Answer::Believed)
            }
            _ => Err(bad),
        }
    }
}
