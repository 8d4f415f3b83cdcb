//! A link in memory: nodes and Servers, virtual time, one-way delay, and messages that get lost
//! on command. No sockets, no clock, so every run with one seed is the same.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::panic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::large_enum_variant,
    clippy::type_complexity
)]
// Each test binary uses its own part.

mod names;
pub mod talk;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aero_protocol::Output;
use aero_protocol::address::{Duid, Epoch, LinkLayerAddress, ServerId};
use aero_protocol::client::{self, ClientSpec, Node};
use aero_protocol::forwarding::{Disposition, Inner, Table};
use aero_protocol::server::{self, Authentication, Holder, Mapping, Server};
use aero_protocol::wire::aero_options::Claim;
use aero_protocol::wire::dhcpv6::Message;
use aero_protocol::wire::ip::{Packet, Payload};
use uuid::Uuid;

pub use names::*;

pub struct NodeBox {
    pub engine: Node,
    pub table: Table,
    pub events: Vec<client::Event>,
}

pub struct ServerBox {
    pub engine: Server,
    pub table: Table,
    pub events: Vec<server::Event>,
}

pub enum Role {
    Node(NodeBox),
    Server(ServerBox),
}

#[derive(Debug, Clone)]
pub struct Sent {
    pub at: Instant,
    pub from: LinkLayerAddress,
    pub to: LinkLayerAddress,
    pub packet: Vec<u8>,
    pub lost: bool,
}

impl Sent {
    /// `Solicit`, `Reply`, ... or `icmpv6 135`.
    pub fn name(&self) -> String {
        match Packet::parse(&self.packet).unwrap().payload {
            Payload::Udp { data, .. } => format!("{:?}", Message::parse(data).unwrap().kind),
            Payload::Icmpv6 { kind, .. } => format!("icmpv6 {kind}"),
        }
    }
}

pub struct Link {
    pub now: Instant,
    pub start: Instant,
    pub roles: BTreeMap<LinkLayerAddress, Role>,
    pub sent: Vec<Sent>,
    in_flight: Vec<(Instant, usize)>,
    /// Tells whether the n-th message of the run is lost.
    pub lose: Box<dyn FnMut(usize, &Sent) -> bool>,
    pub dead: Vec<LinkLayerAddress>,
    /// What a message takes from one to another.
    pub delay: Box<dyn FnMut(LinkLayerAddress, LinkLayerAddress) -> Duration>,
}

impl Link {
    pub fn new() -> Self {
        let start = Instant::now();
        Self {
            now: start,
            start,
            roles: BTreeMap::new(),
            sent: Vec::new(),
            in_flight: Vec::new(),
            lose: Box::new(|_, _| false),
            dead: Vec::new(),
            delay: Box::new(|_, _| DELAY),
        }
    }

    /// Two Servers, three nodes; client 1 on node 21, a correspondent, client 2, on node 23.
    pub fn cluster() -> Self {
        let mut link = Self::new();
        let servers = [link.add_server(11), link.add_server(12)];
        for n in [21, 22, 23] {
            link.add_node(n, &servers);
        }
        link.map(1, 1, node_address(21));
        link.map(2, 1, node_address(23));
        link.attach(node_address(21), 1, 1);
        link.attach(node_address(23), 2, 1);
        link.run(Duration::from_secs(3));
        link
    }

    pub fn add_server(&mut self, n: u8) -> LinkLayerAddress {
        let at = server_address(n);
        let engine = Server::new(server::Config {
            id: ServerId::from_underlay(at.ip),
            duid: Duid::from_uuid(Uuid::from_u128(u128::from(n) << 100)),
            asps: vec!["2001:db8::/32".parse().unwrap()],
            lease: Duration::from_secs(40),
            authentication: Authentication::NodeAddress,
        });
        let role = ServerBox { engine, table: Table::default(), events: Vec::new() };
        self.roles.insert(at, Role::Server(role));
        at
    }

    pub fn add_node(&mut self, n: u8, servers: &[LinkLayerAddress]) -> LinkLayerAddress {
        let at = node_address(n);
        let engine = Node::new(client::Config {
            asps: vec!["2001:db8::/32".parse().unwrap()],
            link_id: 0,
            node: format!("n{n}"),
            seed: u64::from(n),
            optimize: true,
        });
        let role = NodeBox { engine, table: Table::default(), events: Vec::new() };
        self.roles.insert(at, Role::Node(role));
        for server in servers {
            let now = self.now;
            self.node(at).engine.add_server(*server, now);
        }
        self.drain(at);
        at
    }

    pub fn node(&mut self, at: LinkLayerAddress) -> &mut NodeBox {
        match self.roles.get_mut(&at) {
            Some(Role::Node(n)) => n,
            _ => panic!("{at} is no node"),
        }
    }

    pub fn server(&mut self, at: LinkLayerAddress) -> &mut ServerBox {
        match self.roles.get_mut(&at) {
            Some(Role::Server(s)) => s,
            _ => panic!("{at} is no Server"),
        }
    }

    pub fn servers(&self) -> Vec<LinkLayerAddress> {
        self.roles.iter().filter(|(_, r)| matches!(r, Role::Server(_))).map(|(at, _)| *at).collect()
    }

    /// Writes a row of the shared table to one Server.
    pub fn map_at(
        &mut self,
        server: LinkLayerAddress,
        n: u16,
        epoch: u64,
        node: Option<LinkLayerAddress>,
    ) {
        let holder = node.map(|l2| Holder {
            id: holder_id(n, epoch),
            name: format!("pod web-{n} at {}", l2.ip),
            underlay: vec![l2.ip],
        });
        let mapping = Mapping { prefix: prefix(n), client: duid(n), epoch: Epoch(epoch), holder };
        let now = self.now;
        self.server(server).engine.set_mapping(mapping, now);
        self.drain(server);
    }

    /// Writes a row of the shared table to all Servers.
    pub fn map(&mut self, n: u16, epoch: u64, node: LinkLayerAddress) {
        for server in self.servers() {
            self.map_at(server, n, epoch, Some(node));
        }
    }

    pub fn attach(&mut self, node: LinkLayerAddress, n: u16, epoch: u64) {
        let claim = Some(Claim { epoch: Epoch(epoch), holder: holder_id(n, epoch) });
        let spec = ClientSpec { client: duid(n), claim, prefixes: vec![prefix(n)] };
        let now = self.now;
        self.node(node).engine.attach(spec, now);
        self.drain(node);
    }

    pub fn detach(&mut self, node: LinkLayerAddress, n: u16) {
        let now = self.now;
        self.node(node).engine.detach(&duid(n), now);
        self.drain(node);
    }

    /// Takes the outputs of one role.
    pub fn drain(&mut self, at: LinkLayerAddress) {
        let mut packets = Vec::new();
        match self.roles.get_mut(&at) {
            Some(Role::Node(n)) => {
                while let Some(output) = n.engine.poll_output() {
                    match output {
                        Output::Send { to, packet } | Output::SendOn { to, packet, .. } => {
                            packets.push((to, packet));
                        }
                        Output::Forward(change) => n.table.apply(&change),
                        Output::Event(event) => n.events.push(event),
                    }
                }
            }
            Some(Role::Server(s)) => {
                while let Some(output) = s.engine.poll_output() {
                    match output {
                        Output::Send { to, packet } | Output::SendOn { to, packet, .. } => {
                            packets.push((to, packet));
                        }
                        Output::Forward(change) => s.table.apply(&change),
                        Output::Event(event) => s.events.push(event),
                    }
                }
            }
            None => {}
        }
        for (to, packet) in packets {
            let mut sent = Sent { at: self.now, from: at, to, packet, lost: false };
            let n = self.sent.len();
            sent.lost = self.dead.contains(&at) || self.dead.contains(&to) || (self.lose)(n, &sent);
            if !sent.lost {
                let delay = (self.delay)(at, to);
                self.in_flight.push((self.now + delay, n));
            }
            self.sent.push(sent);
        }
    }

    /// Lets everything happen that happens within `time`.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let packet = self.in_flight.iter().map(|(t, _)| *t).min();
            let timer = self
                .roles
                .iter()
                .filter(|(at, _)| !self.dead.contains(at))
                .filter_map(|(_, role)| match role {
                    Role::Node(n) => n.engine.poll_timeout(),
                    Role::Server(s) => s.engine.poll_timeout(),
                })
                .min();
            let Some(next) = packet.into_iter().chain(timer).min().filter(|t| *t <= end) else {
                break;
            };
            self.now = self.now.max(next);
            self.deliver_due();
            self.timers_due();
        }
        self.now = end;
    }

    fn deliver_due(&mut self) {
        let now = self.now;
        let (due, later): (Vec<_>, Vec<_>) = self.in_flight.drain(..).partition(|(t, _)| *t <= now);
        self.in_flight = later;
        for (_, n) in due {
            let Sent { from, to, packet, .. } = self.sent[n].clone();
            match self.roles.get_mut(&to) {
                Some(Role::Node(b)) => b.engine.handle_packet(from, &packet, now),
                Some(Role::Server(b)) => b.engine.handle_packet(from, &packet, now),
                None => {}
            }
            self.drain(to);
        }
    }

    fn timers_due(&mut self) {
        let now = self.now;
        let all: Vec<_> = self.roles.keys().filter(|at| !self.dead.contains(at)).copied().collect();
        for at in all {
            match self.roles.get_mut(&at) {
                Some(Role::Node(b)) => b.engine.handle_timeout(now),
                Some(Role::Server(b)) => b.engine.handle_timeout(now),
                None => {}
            }
            self.drain(at);
        }
    }

    /// Follows a user's packet from a node through the tables: where it is delivered, or why and
    /// where it is dropped.
    pub fn user_packet(
        &self,
        from: LinkLayerAddress,
        source: u16,
        destination: u16,
    ) -> Result<LinkLayerAddress, String> {
        let inner = Inner { source: host(source), destination: host(destination) };
        let Some(Role::Node(n)) = self.roles.get(&from) else { panic!("{from} is no node") };
        let mut disposition = n.table.egress(inner, self.now);
        let mut at = from;
        for _ in 0..8 {
            match disposition {
                Disposition::Deliver => return Ok(at),
                Disposition::Drop(why) => return Err(format!("{} at {at}", why.label())),
                Disposition::Hold { .. } => return Err(format!("held at {at}")),
                Disposition::Tunnel(to) if self.dead.contains(&to) => {
                    return Err(format!("{to} is dead"));
                }
                Disposition::Tunnel(to) => {
                    let table = match self.roles.get(&to) {
                        Some(Role::Node(n)) => &n.table,
                        Some(Role::Server(s)) => &s.table,
                        None => return Err(format!("nobody at {to}")),
                    };
                    disposition = table.ingress(at, inner, self.now);
                    at = to;
                }
            }
        }
        Err("a loop".into())
    }

    /// Names of all messages so far, in order.
    pub fn names(&self) -> Vec<String> {
        self.sent.iter().map(Sent::name).collect()
    }

    pub fn is_bound(&mut self, node: LinkLayerAddress, n: u16) -> usize {
        self.node(node).engine.standing(&duid(n)).map_or(0, |s| s.bound.len())
    }
}
