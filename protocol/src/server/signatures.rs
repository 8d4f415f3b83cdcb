//! Who says a message: the signatures of Clients that have keys, and those of the answers to them
//! ([`wire::signature`](crate::wire::signature)).
//!
//! A DUID that has a key is believed with it only; one that has none is treated as if there were
//! no signatures. A message counts once: in the session of this Server, which is new in each of its
//! lives, the Client's counter only rises. So a Server need keep nothing over a restart, and nobody
//! needs a clock: a message of another session, or of none, changes nothing and is answered, under
//! signature, by "say it again in this session" ([`AeroOption::Again`]).

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv6Addr;

use super::{Event, Refusal, Request, Server};
use crate::address::Duid;
use crate::wire::WireError;
use crate::wire::aero_options::AeroOption;
use crate::wire::dhcpv6::{Kind, Message, Status, StatusCode};
use crate::wire::signature::{self, Covered, Key, Signature};

/// What is wrong with a signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Fault {
    /// The Client has a key, and the message no signature.
    Missing,
    /// By a key that this Server does not know.
    UnknownKey,
    /// Not by the Client's key, or changed since, or not from where it was sent.
    Wrong,
    /// It was here before, or one that was sent later was.
    Replayed,
    /// This Server was given no secret to make a session from.
    NoSession,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Missing => "this client has a key, and the message is not signed",
            Self::UnknownKey => "the message is signed by a key that is not this client's here",
            Self::Wrong => "the signature is not this client's, or not from where it was sent",
            Self::Replayed => "the message was here before",
            Self::NoSession => "this Server has no secret",
        })
    }
}

/// A message's signature that was found right.
#[derive(Debug, Clone)]
pub(super) struct Signed {
    key: Key,
    counter: u64,
}

/// The last message of a Client in this session.
#[derive(Debug, Clone, Copy)]
struct Seen {
    counter: u64,
    key: u32,
}

#[derive(Debug, Default)]
pub(super) struct Signatures {
    keys: BTreeMap<Duid, Vec<Key>>,
    /// 0 is none.
    session: u64,
    /// Stays when a key goes: the same key may come back within the session.
    seen: BTreeMap<Duid, Seen>,
}

impl Signatures {
    pub(super) fn set_session(&mut self, session: u64) {
        self.session = session;
        self.seen.clear();
    }

    /// The option of an answer, its digest still to be made.
    fn option(&self, key: &Key, counter: u64) -> AeroOption {
        AeroOption::Signature(Signature {
            key: key.id(),
            session: self.session,
            counter,
            bound: false,
            digest: [0; 32],
        })
    }

    /// The key that a Client used last.
    pub(super) fn in_use(&self, client: &Duid) -> Option<&Key> {
        let seen = self.seen.get(client)?;
        self.keys.get(client)?.iter().find(|k| k.id() == seen.key)
    }

    /// Prepares a message of the Server's own accord, which is no answer.
    pub(super) fn announce(&self, client: &Duid, message: &mut Message) -> Option<&Key> {
        let key = self.in_use(client)?;
        message.aero.push(self.option(key, 0));
        Some(key)
    }

    /// Finds the key, checks the digest, the session and the counter, in this order.
    fn check(
        &mut self,
        request: &Request,
        destination: Ipv6Addr,
        data: &[u8],
    ) -> Result<Checked, Fault> {
        let m = &request.message;
        let Some(client) = &m.client else { return Ok(Checked::NoKey) };
        let signature = Signature::of(m).map_err(|_| Fault::Wrong)?;
        let (keys, signature) = match (self.keys.get(client), signature) {
            (None, None) => return Ok(Checked::NoKey),
            (None, Some(_)) => return Err(Fault::UnknownKey),
            (Some(_), None) => return Err(Fault::Missing),
            (Some(keys), Some(signature)) => (keys, signature),
        };
        let key = keys.iter().find(|k| k.id() == signature.key).ok_or(Fault::UnknownKey)?;
        let outer = signature.bound.then_some(request.from);
        let covered = Covered { source: request.source, destination, outer };
        if !signature::verify(data, &covered, key) {
            return Err(Fault::Wrong);
        }
        if self.session == 0 {
            return Err(Fault::NoSession);
        }
        let signed = Signed { key: key.clone(), counter: signature.counter };
        let last = self.seen.get(client).map_or(0, |s| s.counter);
        if signature.session != self.session {
            return Ok(Checked::OtherSession(signed, last));
        }
        if signature.counter < last {
            return Ok(Checked::Outdone(signed, last));
        }
        if signature.counter == last {
            return Err(Fault::Replayed);
        }
        let seen = Seen { counter: signature.counter, key: key.id() };
        self.seen.insert(client.clone(), seen);
        Ok(Checked::Signed(signed))
    }
}

enum Checked {
    NoKey,
    Signed(Signed),
    OtherSession(Signed, u64),
    /// A message that was sent later has come before: a replay, or one of two nodes that speak for
    /// the Client.
    Outdone(Signed, u64),
}

impl Server {
    /// Gives a Client's keys; any of them will do, so that a new one can come before the old one
    /// goes. From now on the Client is believed with one of them only; without any it needs none.
    pub fn set_keys(&mut self, client: Duid, keys: Vec<Key>) {
        if keys.is_empty() {
            self.signatures.keys.remove(&client);
        } else {
            self.signatures.keys.insert(client, keys);
        }
    }

    /// Replaces the keys of all Clients.
    pub fn replace_keys(&mut self, keys: BTreeMap<Duid, Vec<Key>>) {
        self.signatures.keys = keys;
        self.signatures.keys.retain(|_, keys| !keys.is_empty());
    }

    pub(super) fn needs_signature(&self, client: &Duid) -> bool {
        self.signatures.keys.contains_key(client)
    }

    /// Checks the signature of a message, and says so in the request. False if that is all that is
    /// to be done with it.
    pub(super) fn authenticate(
        &mut self,
        request: &mut Request,
        destination: Ipv6Addr,
        data: &[u8],
    ) -> bool {
        match self.signatures.check(request, destination, data) {
            Ok(Checked::NoKey) => true,
            Ok(Checked::Signed(signed)) => {
                request.signed = Some(signed);
                true
            }
            Ok(Checked::OtherSession(signed, last)) => {
                request.signed = Some(signed);
                self.say_again(request, last);
                false
            }
            Ok(Checked::Outdone(signed, last)) => {
                request.signed = Some(signed);
                self.report(request, Fault::Replayed);
                self.say_again(request, last);
                false
            }
            Err(fault) => {
                let asks = matches!(
                    request.message.kind,
                    Kind::Solicit | Kind::Request | Kind::Renew | Kind::Rebind
                );
                // A message that came twice on its way was answered already.
                if asks && fault != Fault::Replayed {
                    self.refuse(request, Refusal::Signature(fault));
                } else {
                    self.report(request, fault);
                }
                false
            }
        }
    }

    fn report(&mut self, request: &Request, fault: Fault) {
        if let Some(client) = request.message.client.clone() {
            let why = Refusal::Signature(fault);
            self.event(Event::Refused { client, from: request.from, why });
        }
    }

    /// The message may be an old one: nothing is done until it comes in this session, with a counter
    /// above the last. A node that was right to say it does so; to others it is of no use.
    fn say_again(&mut self, request: &Request, last: u64) {
        let solicit = request.message.kind == Kind::Solicit;
        let kind = if solicit { Kind::Advertise } else { Kind::Reply };
        let mut reply = Message::new(kind, request.message.transaction);
        reply.client.clone_from(&request.message.client);
        reply.server = Some(self.config.duid.clone());
        reply.status = Some(Status::new(StatusCode::UnspecFail, ""));
        reply.aero.push(AeroOption::Again(last));
        self.send_reply(request, &reply);
    }

    /// The bytes of an answer, signed if the question was.
    pub(super) fn signed_answer(
        &self,
        request: &Request,
        reply: &Message,
        source: Ipv6Addr,
        destination: Ipv6Addr,
    ) -> Result<Vec<u8>, WireError> {
        let Some(signed) = &request.signed else { return reply.emit() };
        let mut reply = reply.clone();
        reply.aero.push(self.signatures.option(&signed.key, signed.counter));
        let mut data = reply.emit()?;
        signature::sign(&mut data, &Covered { source, destination, outer: None }, &signed.key)?;
        Ok(data)
    }
}
