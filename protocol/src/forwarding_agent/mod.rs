//! The Forwarding Agent: data plane only, beside a companion Server that keeps the control
//! (draft -48 section 3.12).
//!
//! It has the forwarding state of its companion, told over the [`feed`], and its companion's
//! link-local address. It forwards data, answers Neighbor Solicitations of the companion's
//! Clients, and does nothing else: no DHCPv6, no router messages, no routing protocol. When the
//! feed has been silent for a lease's time, no lease that it knows of can be alive, and it
//! forgets all.

pub mod feed;

use std::collections::{BTreeMap, VecDeque};
use std::net::Ipv6Addr;
use std::time::Instant;

use ipnet::IpNet;

use crate::Output;
use crate::address::{LinkLayerAddress, SERVER_ANYCAST, prefix_of_aero_address};
use crate::forwarding::Change;
use crate::timers::LEASE_TIME;
use crate::wire::WireError;
use crate::wire::ip::Packet;
use crate::wire::nd::{Nd, NdMessage, NdOption};
use feed::{FeedError, Message, VERSION};

/// What an agent reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// It has the whole state of its companion.
    Synchronized,
    /// The feed has been silent for too long: everything is forgotten.
    Abandoned,
    /// A control packet was dropped.
    Dropped {
        /// Its outer source.
        from: LinkLayerAddress,
        /// Why.
        why: WireError,
    },
}

/// Something in the table, so that it can be taken out again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Route(IpNet),
    Source(IpNet),
    Peer(LinkLayerAddress),
}

impl Key {
    fn removal(self) -> Change {
        match self {
            Key::Route(prefix) => Change::RemoveRoute { prefix },
            Key::Source(prefix) => Change::RemoveSource { prefix },
            Key::Peer(peer) => Change::RemovePeer(peer),
        }
    }
}

/// The Forwarding Agent engine.
#[derive(Debug, Default)]
pub struct ForwardingAgent {
    identity: Option<Ipv6Addr>,
    /// Counts the `hello`s: what an older one told and the present one did not is stale.
    round: u64,
    /// What is in the table, and since which round.
    told: BTreeMap<Key, u64>,
    /// Who may send from a prefix: whose solicitations are answered.
    sources: BTreeMap<IpNet, Vec<LinkLayerAddress>>,
    silent_at: Option<Instant>,
    replies: VecDeque<Message>,
    outputs: VecDeque<Output<Event>>,
}

impl ForwardingAgent {
    /// An agent that has not heard from its companion.
    pub fn new() -> Self {
        Self::default()
    }

    /// What to do next, in order.
    pub fn poll_output(&mut self) -> Option<Output<Event>> {
        self.outputs.pop_front()
    }

    /// What to tell the companion next.
    pub fn poll_reply(&mut self) -> Option<Message> {
        self.replies.pop_front()
    }

    /// When [`ForwardingAgent::handle_timeout`] is to be called at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.silent_at
    }

    /// The companion's link-local address, which is also ours.
    pub fn identity(&self) -> Option<Ipv6Addr> {
        self.identity
    }

    /// A line of the feed.
    ///
    /// # Errors
    /// If it was not understood: the stream is to be closed and begun anew.
    pub fn handle_line(&mut self, line: &str, now: Instant) -> Result<(), FeedError> {
        match Message::of_line(line)? {
            Message::Hello { version: VERSION, identity } => {
                self.identity = Some(identity);
                self.round += 1;
            }
            Message::Hello { version, .. } => return Err(FeedError::Version(version)),
            _ if self.identity.is_none() => return Err(FeedError::OutOfPlace),
            Message::Change(change) => self.apply(change.change(now)),
            Message::Synchronized => {
                let round = self.round;
                let stale: Vec<Key> =
                    self.told.iter().filter(|(_, r)| **r < round).map(|(key, _)| *key).collect();
                for key in stale {
                    self.apply(key.removal());
                }
                self.replies.push_back(Message::Ready { version: VERSION });
                self.outputs.push_back(Output::Event(Event::Synchronized));
            }
            Message::Alive { number } => self.replies.push_back(Message::Alive { number }),
            Message::Ready { .. } => return Err(FeedError::OutOfPlace),
        }
        self.silent_at = Some(now + LEASE_TIME);
        Ok(())
    }

    /// A control packet that came from `from`.
    pub fn handle_packet(&mut self, from: LinkLayerAddress, packet: &[u8], _now: Instant) {
        if let Err(why) = self.try_packet(from, packet) {
            self.outputs.push_back(Output::Event(Event::Dropped { from, why }));
        }
    }

    /// Does what has fallen due.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.silent_at.is_some_and(|t| t <= now) {
            self.silent_at = None;
            self.identity = None;
            for key in self.told.keys().copied().collect::<Vec<_>>() {
                self.apply(key.removal());
            }
            self.outputs.push_back(Output::Event(Event::Abandoned));
        }
    }

    fn apply(&mut self, change: Change) {
        let key = match change {
            Change::SetRoute { prefix, .. } | Change::RemoveRoute { prefix } => Key::Route(prefix),
            Change::SetSource { prefix, .. }
            | Change::AddSource { prefix, .. }
            | Change::RemoveSource { prefix } => Key::Source(prefix),
            Change::AddPeer(peer)
            | Change::AddRelay(peer)
            | Change::AddAgent(peer)
            | Change::RemovePeer(peer) => Key::Peer(peer),
            // They end by themselves, or are a Client's.
            Change::SetHandover { .. } | Change::SetDirect { .. } | Change::RemoveDirect { .. } => {
                self.outputs.push_back(Output::Forward(change));
                return;
            }
        };
        match change {
            Change::SetSource { prefix, from, .. } => {
                self.sources.insert(prefix, vec![from]);
            }
            Change::AddSource { prefix, from, .. } => {
                self.sources.entry(prefix).or_default().push(from);
            }
            Change::RemoveSource { prefix } => {
                self.sources.remove(&prefix);
            }
            _ => {}
        }
        if change == key.removal() {
            self.told.remove(&key);
        } else {
            self.told.insert(key, self.round);
        }
        self.outputs.push_back(Output::Forward(change));
    }

    /// Solicitations of the companion's Clients, and nothing else.
    fn try_packet(&mut self, from: LinkLayerAddress, bytes: &[u8]) -> Result<(), WireError> {
        let own = self.identity.ok_or(WireError::Unsupported)?;
        let nd = Nd::parse(&Packet::parse(bytes)?)?;
        let NdMessage::Solicitation { target } = nd.message else {
            return Err(WireError::Unsupported);
        };
        let to_us = |a: Ipv6Addr| a == own || a == SERVER_ANYCAST;
        if !to_us(nd.destination) || !to_us(target) || !self.owns(from, nd.source) {
            return Err(WireError::BadAddress);
        }
        let message =
            NdMessage::Advertisement { solicited: true, override_cached: false, target: own };
        let options = nd.nonce().map(|n| NdOption::Nonce(n.to_vec())).into_iter().collect();
        let answer = Nd { source: own, destination: nd.source, message, options };
        let packet = answer.emit()?;
        self.outputs.push_back(Output::Send { to: from, packet });
        Ok(())
    }

    fn owns(&self, from: LinkLayerAddress, source: Ipv6Addr) -> bool {
        let mut prefix = prefix_of_aero_address(source);
        while let Some(p) = prefix {
            if let Some(list) = self.sources.get(&p) {
                return list.contains(&from);
            }
            prefix = p.supernet();
        }
        false
    }
}
