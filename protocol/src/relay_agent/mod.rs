//! The deprecated model (draft-templin-aerolink-28): a Server that is a DHCPv6 relay agent.
//!
//! One central server has the leases. A Server passes its Clients' messages there
//! (Relay-forward) and the answers back, and learns its neighbours from the prefixes that it
//! sees delegated (RFC 8987 section 4.1, R-1). The draft gave the model up: a Client cannot tell
//! the Server that it left, so that one's route stays until its timer, and every Client depends
//! on the one server. It is here to work with an existing server such as Kea; `docs/interop.md`.
//!
//! This engine keeps no state for a message that is under way: what the answer needs is in the
//! Interface-ID, which comes back with it.

mod neighbors;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

use ipnet::IpNet;

pub use neighbors::{Entry, REACHABLE_TIME};

use crate::Output;
use crate::address::{Duid, LinkLayerAddress, SERVER_ANYCAST, ServerId};
use crate::timers::Timers;
use crate::wire::aero_options::AeroOption;
use crate::wire::dhcpv6::{Kind, Message};
use crate::wire::dhcpv6_relay::{ClientLinkLayer, OPTION_CLIENT_LINK_LAYER, RelayMessage};
use crate::wire::ip::{self, DHCP_SERVER_PORT, Packet, Payload};
use crate::wire::nd::{Nd, NdMessage, NdOption};
use crate::wire::{Reader, WireError};

/// What a relaying Server is told at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its link-local identity.
    pub id: ServerId,
    /// Names this link to the central server; `::` if that knows it by other means.
    pub link_address: Ipv6Addr,
}

/// What it reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Send this to the central server: the payload of UDP 547.
    ToServer(Vec<u8>),
    /// The central server delegated a prefix to a Client here, or again.
    Associated {
        /// The ACP.
        prefix: IpNet,
        /// The Client.
        client: Duid,
        /// Where packets for it go now.
        at: LinkLayerAddress,
    },
    /// An entry ended.
    Ended {
        /// The ACP.
        prefix: IpNet,
        /// Where packets for it went.
        at: LinkLayerAddress,
        /// Why.
        why: Ended,
    },
    /// A message was dropped.
    Dropped {
        /// Its outer source; `None` for the central server.
        from: Option<LinkLayerAddress>,
        /// Why.
        why: WireError,
    },
}

/// Why an entry ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ended {
    /// The Client released it, and the central server said so.
    Released,
    /// The lease ran out.
    Expired,
    /// No sign of life for REACHABLE_TIME.
    Silent,
    /// The central server set its lifetime to zero.
    Withdrawn,
}

/// The engine of a relaying Server.
#[derive(Debug)]
pub struct RelayAgent {
    config: Config,
    neighbors: BTreeMap<IpNet, Entry>,
    by_address: HashMap<Ipv6Addr, IpNet>,
    timers: Timers<IpNet>,
    outputs: VecDeque<Output<Event>>,
}

impl RelayAgent {
    /// A Server without neighbours.
    pub fn new(config: Config) -> Self {
        Self {
            config,
            neighbors: BTreeMap::new(),
            by_address: HashMap::new(),
            timers: Timers::default(),
            outputs: VecDeque::new(),
        }
    }

    /// What to do next, in order.
    pub fn poll_output(&mut self) -> Option<Output<Event>> {
        self.outputs.pop_front()
    }

    /// When [`RelayAgent::handle_timeout`] is to be called at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    /// Does what has fallen due.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some(prefix) = self.timers.pop_due(now) {
            self.look_at(prefix, now);
        }
    }

    /// The neighbour cache.
    pub fn neighbors(&self) -> impl Iterator<Item = &Entry> {
        self.neighbors.values()
    }

    /// A control packet of the AERO link that came from `from`.
    pub fn handle_packet(&mut self, from: LinkLayerAddress, packet: &[u8], now: Instant) {
        if let Err(why) = self.try_packet(from, packet, now) {
            self.event(Event::Dropped { from: Some(from), why });
        }
    }

    /// A message of the central server: the payload of UDP 547.
    pub fn handle_reply(&mut self, message: &[u8], now: Instant) {
        if let Err(why) = self.try_reply(message, now) {
            self.event(Event::Dropped { from: None, why });
        }
    }

    fn try_packet(
        &mut self,
        from: LinkLayerAddress,
        bytes: &[u8],
        now: Instant,
    ) -> Result<(), WireError> {
        let packet = Packet::parse(bytes)?;
        match packet.payload {
            Payload::Udp { source, destination: DHCP_SERVER_PORT, data } => {
                if !packet.source.is_unicast_link_local() {
                    return Err(WireError::BadAddress);
                }
                let message = Message::parse(data)?;
                if matches!(message.kind, Kind::Advertise | Kind::Reply) {
                    return Err(WireError::Unsupported);
                }
                self.forward(from, (packet.source, source), &message, data)
            }
            Payload::Icmpv6 { .. } => self.neighbor_discovery(from, &Nd::parse(&packet)?, now),
            Payload::Udp { .. } => Err(WireError::Unsupported),
        }
    }

    /// RFC 8415 section 19.1.1, with the option of draft -28 section 3.4 that tells the central
    /// server the Client's link-layer address, and asks for it back.
    fn forward(
        &mut self,
        from: LinkLayerAddress,
        (peer_address, port): (Ipv6Addr, u16),
        message: &Message,
        bytes: &[u8],
    ) -> Result<(), WireError> {
        let link = message.aero.iter().find_map(|o| match o {
            AeroOption::LinkRequest { link_id, preference } => Some((*link_id, *preference)),
            _ => None,
        });
        let (link_id, preference) = link.unwrap_or((0, 3));
        if message.kind == Kind::Release {
            self.releasing(from, message);
        }
        let relayed = RelayMessage {
            reply: false,
            hop_count: 0,
            link_address: self.config.link_address,
            peer_address,
            interface_id: Some(interface_id(from, port)),
            link_layer: Some(ClientLinkLayer { link_id, preference, address: from }),
            echo: vec![OPTION_CLIENT_LINK_LAYER],
            message: bytes.to_vec(),
        };
        self.event(Event::ToServer(relayed.emit()?));
        Ok(())
    }

    fn try_reply(&mut self, bytes: &[u8], now: Instant) -> Result<(), WireError> {
        let relayed = RelayMessage::parse(bytes)?;
        if !relayed.reply {
            return Err(WireError::Unsupported);
        }
        let id = relayed.interface_id.as_deref().ok_or(WireError::BadValue)?;
        let (to, port) = parse_interface_id(id)?;
        let message = Message::parse(&relayed.message)?;
        if message.kind == Kind::Reply {
            self.snoop(to, &message, now);
        }
        let source = self.config.id.address();
        let peer = relayed.peer_address;
        let packet = ip::udp((source, DHCP_SERVER_PORT), (peer, port), &relayed.message)?;
        self.outputs.push_back(Output::Send { to, packet });
        Ok(())
    }

    /// Solicitations of this Server's own Clients are answered, and are signs of life: of a
    /// router as draft -28 has it, of a neighbour as this project's Clients do.
    fn neighbor_discovery(
        &mut self,
        from: LinkLayerAddress,
        nd: &Nd,
        now: Instant,
    ) -> Result<(), WireError> {
        let own = self.config.id.address();
        let to_us = |a: Ipv6Addr| a == own || a == SERVER_ANYCAST;
        if !to_us(nd.destination) {
            return Err(WireError::BadAddress);
        }
        let message = match nd.message {
            NdMessage::Solicitation { target } if to_us(target) => {
                NdMessage::Advertisement { solicited: true, override_cached: false, target: own }
            }
            NdMessage::RouterSolicitation => {
                NdMessage::RouterAdvertisement { lifetime: ROUTER_LIFETIME }
            }
            _ => return Err(WireError::Unsupported),
        };
        self.alive(from, nd.source, now)?;
        let options = nd.nonce().map(|n| NdOption::Nonce(n.to_vec())).into_iter().collect();
        let answer = Nd { source: own, destination: nd.source, message, options };
        self.outputs.push_back(Output::Send { to: from, packet: answer.emit()? });
        Ok(())
    }

    fn event(&mut self, event: Event) {
        self.outputs.push_back(Output::Event(event));
    }
}

/// Router lifetime in seconds in answers to Router Solicitations (RFC 4861 section 6.2.1).
const ROUTER_LIFETIME: u16 = 1800;

/// What the answer needs: where the Client is, and its port inside.
fn interface_id(from: LinkLayerAddress, port: u16) -> Vec<u8> {
    let mut id = from.ip_octets().to_vec();
    id.extend(from.port.to_be_bytes());
    id.extend(port.to_be_bytes());
    id
}

fn parse_interface_id(id: &[u8]) -> Result<(LinkLayerAddress, u16), WireError> {
    let mut r = Reader(id);
    let ip = IpAddr::from(r.array::<16>()?);
    let (outer, inner) = (r.u16()?, r.u16()?);
    r.is_empty().then_some((LinkLayerAddress::new(ip, outer), inner)).ok_or(WireError::BadLength)
}
