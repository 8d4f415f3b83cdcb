//! A machine of the link: an engine, its forwarding table, its clock and its place on the
//! underlay.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use aero_protocol::Output;
use aero_protocol::address::{Duid, LinkLayerAddress, ServerId};
use aero_protocol::forwarding::{Change, Held, Table};
use aero_protocol::{client, server};
use uuid::Uuid;

use crate::authority::{Known, duid, key};
use crate::clock::{Clock, Time};
use crate::network::Index;
use crate::traffic::DataPacket;

/// An engine of the protocol.
#[derive(Debug)]
pub enum Engine {
    /// Clients of one node.
    Node(Box<client::Node>),
    /// A Server.
    Server(Box<server::Server>),
}

/// What an engine reports.
#[derive(Debug)]
pub enum Report {
    /// Of a node.
    Node(client::Event),
    /// Of a Server.
    Server(server::Event),
}

/// One output, whatever the engine.
#[derive(Debug)]
pub enum Action {
    /// Send a control packet.
    Send(LinkLayerAddress, Vec<u8>),
    /// Change the table.
    Forward(Change),
    /// Somebody wants to know.
    Report(Report),
}

impl Engine {
    /// A control packet.
    pub fn handle_packet(&mut self, from: LinkLayerAddress, packet: &[u8], now: Instant) {
        match self {
            Self::Node(e) => e.handle_packet(from, packet, now),
            Self::Server(e) => e.handle_packet(from, packet, now),
        }
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        match self {
            Self::Node(e) => e.handle_timeout(now),
            Self::Server(e) => e.handle_timeout(now),
        }
    }

    /// When time matters next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Node(e) => e.poll_timeout(),
            Self::Server(e) => e.poll_timeout(),
        }
    }

    /// The next output.
    pub fn poll_output(&mut self) -> Option<Action> {
        fn action<E>(output: Output<E>, report: impl FnOnce(E) -> Report) -> Action {
            match output {
                // Nodes of the simulation have one link.
                Output::Send { to, packet } | Output::SendOn { to, packet, .. } => {
                    Action::Send(to, packet)
                }
                Output::Forward(change) => Action::Forward(change),
                Output::Event(event) => Action::Report(report(event)),
            }
        }
        match self {
            Self::Node(e) => e.poll_output().map(|o| action(o, Report::Node)),
            Self::Server(e) => e.poll_output().map(|o| action(o, Report::Server)),
        }
    }

    /// Entries that it remembers, all kinds together; timers and outputs not counted.
    pub fn entries(&self) -> usize {
        match self {
            Self::Node(e) => {
                let s = e.sizes();
                let paths = s.neighbors + s.attempts + s.announcements;
                s.clients + s.associations + s.servers + s.departed + s.handing_over + paths
            }
            Self::Server(e) => {
                let s = e.sizes();
                s.mappings + s.neighbors + s.departures + s.parked + s.former + s.limited
            }
        }
    }
}

/// What a member is, whether it runs or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A node with pods.
    Node,
    /// A Server.
    Server,
}

/// A machine.
#[derive(Debug)]
pub struct Member {
    /// What it is.
    pub kind: Kind,
    /// What runs on it; `None` while it is down.
    pub engine: Option<Engine>,
    /// Its forwarding table.
    pub table: Table,
    /// Users' packets that wait there, with their outer source.
    pub held: Held<(Option<LinkLayerAddress>, Box<DataPacket>)>,
    /// Its clock.
    pub clock: Clock,
    /// The address by which others see it now.
    pub outer: LinkLayerAddress,
    /// All underlay addresses that it may have.
    pub addresses: Vec<IpAddr>,
    /// Behind a NAT.
    pub nat: bool,
    /// When the queue wakes it.
    pub wake: Option<Time>,
    /// Counts restarts; what was meant for an earlier life is dropped.
    pub life: u32,
    /// Node: the pods that run there, by client, with the epoch under which they were started.
    pub pods: BTreeMap<usize, u64>,
    /// Reached by the API server's watches.
    pub api: bool,
    /// Server: the version up to which its copy of the table goes.
    pub version: u64,
    /// Server: when its watch has delivered what is on its way.
    pub watch_free: Time,
    /// Server: by client, what it knows.
    pub known: Vec<Known>,
    /// Server: drained, so no node uses it.
    pub drained: bool,
}

impl Member {
    /// A machine that is down.
    pub fn new(kind: Kind, index: Index, clock: Clock, nat: bool) -> Self {
        let addresses = addresses(kind, index);
        let ip = addresses.first().copied().unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let port = if kind == Kind::Server { 8060 } else { 8061 };
        Self {
            kind,
            engine: None,
            table: Table::default(),
            held: Held::default(),
            clock,
            outer: LinkLayerAddress::new(ip, port),
            addresses,
            nat,
            wake: None,
            life: 0,
            pods: BTreeMap::new(),
            api: true,
            version: 0,
            watch_free: 0,
            known: Vec::new(),
            drained: false,
        }
    }

    /// A fresh engine for this machine.
    pub fn fresh_engine(&self, index: Index, seed: u64) -> Engine {
        let asps = vec![service_prefix()];
        match self.kind {
            Kind::Node => Engine::Node(Box::new(client::Node::new(client::Config {
                asps,
                link_id: 0,
                node: format!("n{index}"),
                seed,
                optimize: true,
            }))),
            Kind::Server => {
                let mut engine = server::Server::new(server::Config {
                    id: ServerId::from_underlay(self.outer.ip),
                    duid: Duid::from_uuid(Uuid::from_u128((index as u128 + 1) << 100)),
                    asps,
                    lease: Duration::from_secs(40),
                    authentication: server::Authentication::NodeAddress,
                });
                let mut secret = [0; 32];
                secret[..8].copy_from_slice(&seed.to_be_bytes());
                engine.set_reconfigure_secret(secret);
                for client in 0..self.known.len() {
                    engine.set_keys(duid(client), key(client).into_iter().collect());
                }
                Engine::Server(Box::new(engine))
            }
        }
    }
}

/// The link's service prefix, 2001:db8::/32.
pub fn service_prefix() -> ipnet::IpNet {
    let address = std::net::Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0);
    ipnet::Ipv6Net::new(address, 32).map(ipnet::IpNet::V6).unwrap_or_default()
}

/// Underlay addresses of a member: two of a node, so that it can move; one of a Server.
fn addresses(kind: Kind, index: Index) -> Vec<IpAddr> {
    let low = u32::try_from(index).unwrap_or(0);
    let first = |net: u32| IpAddr::V4(Ipv4Addr::from((10 << 24) + (net << 16) + low));
    match kind {
        Kind::Server => vec![first(0)],
        Kind::Node => vec![first(1), first(2)],
    }
}
