//! The rig of the test table, in memory: Clients, Servers and Relays, C1-S1-R1-S2-C2, with
//! several underlay addresses per node, a stand-in for BGP that carries announcements from Servers
//! to Relays, and virtual time.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    unused_imports,
    clippy::panic,
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::large_enum_variant,
    clippy::type_complexity
)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use aero_protocol::Output;
use aero_protocol::address::{Duid, Epoch, LinkLayerAddress, ServerId};
use aero_protocol::client::{self, ClientSpec, Node};
use aero_protocol::forwarding::{Disposition, Held, Inner, Table};
use aero_protocol::forwarding_agent::ForwardingAgent;
use aero_protocol::relay::{self, Relay};
use aero_protocol::server::{
    self, AgentConfig, Announcement, Authentication, Holder, Mapping, Scope, Server,
};
use aero_protocol::wire::aero_options::Claim;
use aero_protocol::wire::dhcpv6::Message;
use aero_protocol::wire::ip::{Packet, Payload};
use ipnet::IpNet;
use uuid::Uuid;

#[path = "names.rs"]
mod names;

pub use names::{
    DELAY, duid, host, l2, node_address as node_at, prefix as acp, server_address as infra_at,
};

use names::holder_id as holder;

pub const SECOND: Duration = Duration::from_secs(1);

pub fn id(n: u8) -> ServerId {
    ServerId::new(u32::from(n)).unwrap()
}

pub fn asp() -> IpNet {
    "2001:db8::/32".parse().unwrap()
}

pub enum Role {
    Node(Node),
    Server(Server),
    Relay(Relay),
    Agent(ForwardingAgent),
}

pub struct Place {
    pub role: Role,
    pub table: Table,
    pub held: Held<Data>,
    pub node_events: Vec<client::Event>,
    pub server_events: Vec<server::Event>,
    pub relay_events: Vec<relay::Event>,
    /// Underlay address of each link of a node.
    pub links: BTreeMap<u8, LinkLayerAddress>,
    pub used: u8,
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

    pub fn destination(&self) -> String {
        Packet::parse(&self.packet).unwrap().destination.to_string()
    }
}

/// One announcement, as the stand-in for BGP saw it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Update {
    pub at: Instant,
    pub server: ServerId,
    pub what: Announcement,
}

/// A user's packet on its way.
#[derive(Debug, Clone, Copy)]
pub struct Data {
    pub number: u64,
    pub inner: Inner,
    pub from: LinkLayerAddress,
    pub at: LinkLayerAddress,
}

enum Flight {
    Control(usize),
    Data(Data),
}

pub struct Rig {
    pub now: Instant,
    pub start: Instant,
    pub places: BTreeMap<LinkLayerAddress, Place>,
    /// Further addresses of a place, by the one that it is known by.
    alias: HashMap<LinkLayerAddress, LinkLayerAddress>,
    ids: HashMap<LinkLayerAddress, ServerId>,
    pub sent: Vec<Sent>,
    in_flight: Vec<(Instant, Flight)>,
    /// Users' packets that came to their end: number, where, when.
    pub delivered: Vec<(u64, LinkLayerAddress, Instant)>,
    /// Those that did not, and why.
    pub lost: Vec<(u64, String)>,
    pub lose: Box<dyn FnMut(usize, &Sent) -> bool>,
    /// Underlay addresses that nothing reaches and nothing leaves.
    pub dead: BTreeSet<LinkLayerAddress>,
    pub updates: Vec<Update>,
    /// Forwarding Agents and the Servers that feed them; a broken stream is not there.
    pub feeds: BTreeMap<LinkLayerAddress, LinkLayerAddress>,
    /// All lines of all feeds.
    pub lines: Vec<String>,
}

impl Rig {
    pub fn new() -> Self {
        let start = Instant::now();
        Self {
            now: start,
            start,
            places: BTreeMap::new(),
            alias: HashMap::new(),
            ids: HashMap::new(),
            sent: Vec::new(),
            in_flight: Vec::new(),
            delivered: Vec::new(),
            lost: Vec::new(),
            lose: Box::new(|_, _| false),
            dead: BTreeSet::new(),
            updates: Vec::new(),
            feeds: BTreeMap::new(),
            lines: Vec::new(),
        }
    }

    /// R1 at .10, S1 at .11, S2 at .12 (each a permanent neighbour of the others), nodes 21 at S1
    /// and 22 at S2, Client 1 on 21 and Client 2 on 22, all associated.
    pub fn standard() -> Self {
        let mut rig = Self::new();
        rig.add_relay(10);
        for n in [11, 12] {
            rig.add_server(n);
        }
        rig.mesh();
        rig.add_node(21, &[11]);
        rig.add_node(22, &[12]);
        rig.map(1, 1, &[node_at(21).ip]);
        rig.map(2, 1, &[node_at(22).ip]);
        rig.attach(21, 1, 1);
        rig.attach(22, 2, 1);
        rig.run(SECOND * 3);
        rig
    }

    fn place(&mut self, at: LinkLayerAddress, role: Role) {
        let place = Place {
            role,
            table: Table::default(),
            held: Held::default(),
            node_events: Vec::new(),
            server_events: Vec::new(),
            relay_events: Vec::new(),
            links: BTreeMap::from([(0, at)]),
            used: 0,
        };
        self.places.insert(at, place);
        self.alias.insert(at, at);
        self.drain(at);
    }

    pub fn add_relay(&mut self, n: u8) {
        let relay = Relay::new(relay::Config { id: id(n), asps: vec![asp()] });
        self.ids.insert(infra_at(n), id(n));
        self.place(infra_at(n), Role::Relay(relay));
    }

    pub fn add_server(&mut self, n: u8) {
        let server = Server::new(server::Config {
            id: id(n),
            duid: Duid::from_uuid(Uuid::from_u128(u128::from(n) << 100)),
            asps: vec![asp()],
            lease: Duration::from_secs(40),
            authentication: Authentication::NodeAddress,
        });
        self.ids.insert(infra_at(n), id(n));
        self.place(infra_at(n), Role::Server(server));
        self.with_server(n, |s, _| s.set_reconfigure_secret([n; 32]));
    }

    /// Makes all Servers and Relays permanent neighbours of each other.
    pub fn mesh(&mut self) {
        let all: Vec<_> = self.ids.iter().map(|(at, id)| (*at, *id)).collect();
        let relays: Vec<_> = all
            .iter()
            .filter(|(at, _)| matches!(self.places[at].role, Role::Relay(_)))
            .copied()
            .collect();
        let servers: Vec<_> = all.iter().filter(|p| !relays.contains(p)).copied().collect();
        for (at, own) in &servers {
            for (l2, id) in &relays {
                self.server_mut(*at).add_relay(*id, *l2);
            }
            for (l2, id) in servers.iter().filter(|(_, id)| id != own) {
                self.server_mut(*at).add_server_peer(*id, *l2);
            }
            self.drain(*at);
        }
        for (at, _) in &relays {
            for (l2, id) in &servers {
                self.relay_mut(*at).add_server(*id, *l2);
            }
            self.drain(*at);
        }
    }

    pub fn add_node(&mut self, n: u8, servers: &[u8]) {
        let at = node_at(n);
        let node = Node::new(client::Config {
            asps: vec![asp()],
            link_id: 0,
            node: format!("n{n}"),
            seed: u64::from(n),
            optimize: true,
        });
        self.place(at, Role::Node(node));
        for server in servers {
            self.with_node(n, |node, now| node.add_server(infra_at(*server), now));
        }
    }

    /// A Forwarding Agent at `n` for Server `server`, and the stream between the two.
    pub fn add_agent(&mut self, n: u8, server: u8, scope: Scope) {
        self.place(infra_at(n), Role::Agent(ForwardingAgent::new()));
        let (at, companion) = (infra_at(n), infra_at(server));
        self.with_server(server, |s, now| {
            s.add_forwarding_agent(AgentConfig { at, companion, scope }, now);
        });
        self.connect(n, server);
    }

    pub fn connect(&mut self, n: u8, server: u8) {
        self.feeds.insert(infra_at(n), infra_at(server));
        self.with_server(server, |s, now| s.agent_connected(infra_at(n), now));
    }

    /// Carries lines both ways until there are none.
    fn carry(&mut self) {
        let feeds: Vec<_> = self.feeds.iter().map(|(a, s)| (*a, *s)).collect();
        let now = self.now;
        for (agent, server) in feeds {
            if self.is_dead(agent) {
                continue;
            }
            while let Some(message) = self.server_mut(server).poll_feed(agent) {
                let line = message.to_line().unwrap();
                let Role::Agent(engine) = &mut self.places.get_mut(&agent).unwrap().role else {
                    panic!("{agent} is no agent")
                };
                engine.handle_line(&line, now).unwrap();
                self.lines.push(line);
                let mut replies = Vec::new();
                while let Some(reply) = engine.poll_reply() {
                    replies.push(reply.to_line().unwrap());
                }
                for line in replies {
                    self.server_mut(server).handle_agent_line(agent, &line, now).unwrap();
                    self.lines.push(line);
                }
                self.drain(agent);
            }
        }
    }

    /// Another underlay address of a node.
    pub fn add_link(&mut self, n: u8, link: u8, preference: u8, at: LinkLayerAddress) {
        self.alias.insert(at, node_at(n));
        self.places.get_mut(&node_at(n)).unwrap().links.insert(link, at);
        self.with_node(n, |node, now| node.add_link(link, preference, now));
    }

    /// The node's first link has another underlay address from now on, as the node knows.
    pub fn readdress(&mut self, n: u8, at: LinkLayerAddress) {
        self.alias.insert(at, node_at(n));
        let place = self.places.get_mut(&node_at(n)).unwrap();
        place.links.insert(0, at);
        place.used = 0;
        self.with_node(n, Node::underlay_changed);
    }

    pub fn node(&self, n: u8) -> &Node {
        match &self.places[&node_at(n)].role {
            Role::Node(node) => node,
            _ => panic!("{n} is no node"),
        }
    }

    pub fn server(&self, n: u8) -> &Server {
        match &self.places[&infra_at(n)].role {
            Role::Server(s) => s,
            _ => panic!("{n} is no Server"),
        }
    }

    pub fn relay(&self, n: u8) -> &Relay {
        match &self.places[&infra_at(n)].role {
            Role::Relay(r) => r,
            _ => panic!("{n} is no Relay"),
        }
    }

    fn server_mut(&mut self, at: LinkLayerAddress) -> &mut Server {
        match &mut self.places.get_mut(&at).unwrap().role {
            Role::Server(s) => s,
            _ => panic!("{at} is no Server"),
        }
    }

    fn relay_mut(&mut self, at: LinkLayerAddress) -> &mut Relay {
        match &mut self.places.get_mut(&at).unwrap().role {
            Role::Relay(r) => r,
            _ => panic!("{at} is no Relay"),
        }
    }

    pub fn with_node<R>(&mut self, n: u8, f: impl FnOnce(&mut Node, Instant) -> R) -> R {
        let now = self.now;
        let Role::Node(node) = &mut self.places.get_mut(&node_at(n)).unwrap().role else {
            panic!("{n} is no node")
        };
        let result = f(node, now);
        self.drain(node_at(n));
        result
    }

    pub fn with_server<R>(&mut self, n: u8, f: impl FnOnce(&mut Server, Instant) -> R) -> R {
        let now = self.now;
        let result = f(self.server_mut(infra_at(n)), now);
        self.drain(infra_at(n));
        result
    }

    pub fn with_relay<R>(&mut self, n: u8, f: impl FnOnce(&mut Relay) -> R) -> R {
        let result = f(self.relay_mut(infra_at(n)));
        self.drain(infra_at(n));
        result
    }

    /// Writes a row of the table to all Servers: Client `n`, held where these addresses are.
    pub fn map(&mut self, n: u16, epoch: u64, underlay: &[IpAddr]) {
        self.map_prefix(acp(n), n, epoch, underlay);
    }

    pub fn map_prefix(&mut self, prefix: IpNet, n: u16, epoch: u64, underlay: &[IpAddr]) {
        let servers: Vec<_> = self
            .places
            .iter()
            .filter(|(_, p)| matches!(p.role, Role::Server(_)))
            .map(|(at, _)| *at)
            .collect();
        for at in servers {
            let holder = Holder {
                id: holder(n, epoch),
                name: format!("pod web-{n}"),
                underlay: underlay.to_vec(),
            };
            let mapping =
                Mapping { prefix, client: duid(n), epoch: Epoch(epoch), holder: Some(holder) };
            let now = self.now;
            self.server_mut(at).set_mapping(mapping, now);
            self.drain(at);
        }
    }

    pub fn attach(&mut self, node: u8, n: u16, epoch: u64) {
        let claim = Some(Claim { epoch: Epoch(epoch), holder: holder(n, epoch) });
        let spec = ClientSpec { client: duid(n), claim, prefixes: vec![acp(n)] };
        self.with_node(node, |engine, now| engine.attach(spec, now));
    }

    /// Gives a control packet to whoever is at `to`, at once.
    pub fn inject(&mut self, from: LinkLayerAddress, to: LinkLayerAddress, packet: &[u8]) {
        let now = self.now;
        let Some(key) = self.alias.get(&to).copied() else { return };
        match &mut self.places.get_mut(&key).unwrap().role {
            Role::Node(e) => e.handle_packet(from, packet, now),
            Role::Server(e) => e.handle_packet(from, packet, now),
            Role::Relay(e) => e.handle_packet(from, packet, now),
            Role::Agent(e) => e.handle_packet(from, packet, now),
        }
        self.drain(key);
    }

    fn drain(&mut self, at: LinkLayerAddress) {
        let Some(place) = self.places.get_mut(&at) else { return };
        let mut packets = Vec::new();
        let mut released = Vec::new();
        let mut updates = Vec::new();
        macro_rules! drain {
            ($engine:expr, $events:expr, $used:expr) => {
                while let Some(output) = $engine.poll_output() {
                    match output {
                        Output::Send { to, packet } => {
                            packets.push((place.links[&place.used], to, packet));
                        }
                        Output::SendOn { link, to, packet } => {
                            packets.push((place.links[&link], to, packet));
                        }
                        Output::Forward(change) => {
                            place.table.apply(&change);
                            for data in place.held.release(&change) {
                                released.push((packets.len(), data));
                            }
                        }
                        Output::Event(event) => {
                            if let Some(link) = $used(&event) {
                                place.used = link;
                            }
                            $events.push(event);
                        }
                    }
                }
            };
        }
        match &mut place.role {
            Role::Node(e) => drain!(e, place.node_events, |event: &client::Event| match event {
                client::Event::LinkUsed(link) => Some(*link),
                _ => None,
            }),
            Role::Server(e) => {
                drain!(e, place.server_events, |_: &server::Event| None);
                while let Some(what) = e.poll_announcement() {
                    updates.push(Update { at: self.now, server: self.ids[&at], what });
                }
            }
            Role::Relay(e) => drain!(e, place.relay_events, |_: &relay::Event| None),
            Role::Agent(e) => {
                let mut events = Vec::new();
                drain!(e, events, |_: &aero_protocol::forwarding_agent::Event| None);
            }
        }
        let feeds = matches!(place.role, Role::Server(_));
        let mut released = released.into_iter().peekable();
        for (n, (from, to, packet)) in packets.into_iter().enumerate() {
            // What was kept is on its way before what the engine said next.
            while let Some((_, data)) = released.next_if(|(before, _)| *before <= n) {
                self.arrives(data);
            }
            let mut sent = Sent { at: self.now, from, to, packet, lost: false };
            let n = self.sent.len();
            sent.lost = self.is_dead(from) || self.is_dead(to) || (self.lose)(n, &sent);
            if !sent.lost {
                self.in_flight.push((self.now + DELAY, Flight::Control(n)));
            }
            self.sent.push(sent);
        }
        for (_, data) in released {
            self.arrives(data);
        }
        for update in updates {
            self.updates.push(update);
            self.tell_relays(update);
        }
        if feeds {
            self.carry();
        }
    }

    fn tell_relays(&mut self, update: Update) {
        let relays: Vec<_> = self
            .places
            .iter()
            .filter(|(_, p)| matches!(p.role, Role::Relay(_)))
            .map(|(at, _)| *at)
            .collect();
        for at in relays {
            match update.what {
                Announcement::Announce(acp) => {
                    self.relay_mut(at).set_route(acp, update.server).unwrap();
                }
                Announcement::Withdraw(acp) => self.relay_mut(at).remove_route(acp, update.server),
            }
            self.drain(at);
        }
    }

    pub fn is_dead(&self, at: LinkLayerAddress) -> bool {
        self.dead.contains(&at)
    }

    /// Lets everything happen that happens within `time`.
    pub fn run(&mut self, time: Duration) {
        let end = self.now + time;
        loop {
            let packet = self.in_flight.iter().map(|(t, _)| *t).min();
            let timer = self.places.values().filter_map(|p| poll_timeout(&p.role)).min();
            let Some(next) = packet.into_iter().chain(timer).min().filter(|t| *t <= end) else {
                break;
            };
            self.now = self.now.max(next);
            self.deliver_due();
            let now = self.now;
            let all: Vec<_> = self.places.keys().copied().collect();
            for at in all {
                match &mut self.places.get_mut(&at).unwrap().role {
                    Role::Node(e) => e.handle_timeout(now),
                    Role::Server(e) => e.handle_timeout(now),
                    Role::Relay(e) => e.handle_timeout(now),
                    Role::Agent(e) => e.handle_timeout(now),
                }
                self.drain(at);
            }
        }
        self.now = end;
    }

    fn deliver_due(&mut self) {
        let now = self.now;
        let (due, later): (Vec<_>, Vec<_>) = self.in_flight.drain(..).partition(|(t, _)| *t <= now);
        self.in_flight = later;
        for (_, flight) in due {
            match flight {
                Flight::Control(n) => {
                    let Sent { from, to, packet, .. } = self.sent[n].clone();
                    if !self.is_dead(to) {
                        self.inject(from, to, &packet);
                    }
                }
                Flight::Data(data) => self.arrives(data),
            }
        }
    }

    /// A user's packet leaves a node, as its table says.
    pub fn launch(&mut self, node: u8, number: u64, inner: Inner) {
        let place = &self.places[&node_at(node)];
        let from = place.links[&place.used];
        match place.table.egress(inner, self.now) {
            Disposition::Tunnel(at) => {
                let data = Data { number, inner, from, at };
                self.in_flight.push((self.now + DELAY, Flight::Data(data)));
            }
            other => self.lost.push((number, format!("{other:?} at its own node"))),
        }
    }

    /// Lets a user's packet come to `at` from the outer address `from`, and go on from there hop by
    /// hop as time passes.
    pub fn arrives(&mut self, data: Data) {
        let Some(place) = self.alias.get(&data.at).and_then(|a| self.places.get_mut(a)) else {
            return self.lost.push((data.number, format!("nobody at {}", data.at)));
        };
        match place.table.ingress(data.from, data.inner, self.now) {
            Disposition::Deliver => self.delivered.push((data.number, data.at, self.now)),
            Disposition::Drop(why) => {
                self.lost.push((data.number, format!("{} at {}", why.label(), data.at)));
            }
            Disposition::Hold { prefix, first } => {
                if place.held.push(prefix, first, data).is_some() {
                    self.lost.push((data.number, "no room".into()));
                }
            }
            Disposition::Tunnel(to) => {
                let next = Data { from: data.at, at: to, ..data };
                self.in_flight.push((self.now + DELAY, Flight::Data(next)));
            }
        }
    }

    /// The way of a user's packet from a node: every underlay address that it comes to, and in the
    /// end `Ok` if it is delivered there (to a host, or to the Internetwork at a Relay) or why not.
    pub fn way(
        &self,
        from: u8,
        source: IpAddr,
        destination: IpAddr,
    ) -> (Vec<LinkLayerAddress>, Result<(), String>) {
        let place = &self.places[&node_at(from)];
        let inner = Inner { source, destination };
        let disposition = place.table.egress(inner, self.now);
        self.follow(place.links[&place.used], inner, disposition)
    }

    /// A user's packet from a node, of which the engine is told as a forwarder would.
    pub fn talk(&mut self, node: u8, source: u16, destination: u16) {
        let inner = Inner { source: host(source), destination: host(destination) };
        let (now, table) = (self.now, &self.places[&node_at(node)].table);
        let by_server = table.egress_path(inner, now).by_server;
        let used = table.take_used();
        let (IpAddr::V6(from), IpAddr::V6(to)) = (inner.source, inner.destination) else {
            return;
        };
        let mut packet = vec![0x60, 0, 0, 0, 0, 8, 59, 64];
        packet.extend(from.octets());
        packet.extend(to.octets());
        packet.extend([7; 8]);
        self.with_node(node, |engine, now| {
            if by_server {
                engine.data_packet_by_server(inner, &packet, now);
            }
            for (own, peer) in used {
                engine.path_used(own, peer, now);
            }
        });
    }

    /// The way of a packet that arrives at `at` from the outer address `from`.
    pub fn way_from(
        &self,
        from: LinkLayerAddress,
        at: LinkLayerAddress,
        source: IpAddr,
        destination: IpAddr,
    ) -> (Vec<LinkLayerAddress>, Result<(), String>) {
        self.follow(from, Inner { source, destination }, Disposition::Tunnel(at))
    }

    fn follow(
        &self,
        mut from: LinkLayerAddress,
        inner: Inner,
        mut disposition: Disposition,
    ) -> (Vec<LinkLayerAddress>, Result<(), String>) {
        let mut hops = Vec::new();
        for _ in 0..8 {
            match disposition {
                Disposition::Deliver => return (hops, Ok(())),
                Disposition::Drop(why) => return (hops, Err(why.label().into())),
                Disposition::Hold { .. } => return (hops, Err("held".into())),
                Disposition::Tunnel(to) => {
                    hops.push(to);
                    if self.is_dead(to) {
                        return (hops, Err("dead".into()));
                    }
                    let Some(place) = self.alias.get(&to).and_then(|a| self.places.get(a)) else {
                        return (hops, Ok(()));
                    };
                    disposition = place.table.ingress(from, inner, self.now);
                    from = to;
                }
            }
        }
        (hops, Err("loop".into()))
    }

    /// True if Client `destination` gets what Client `source` on `from` sends, at node `at`.
    pub fn reaches(&self, from: u8, source: u16, destination: u16, at: LinkLayerAddress) -> bool {
        let (hops, end) = self.way(from, host(source), host(destination));
        end.is_ok() && hops.last() == Some(&at)
    }

    /// What was sent since message number `since`.
    pub fn since(&self, since: usize) -> &[Sent] {
        &self.sent[since..]
    }

    pub fn bound(&self, node: u8, n: u16) -> Vec<LinkLayerAddress> {
        self.node(node).standing(&duid(n)).map(|s| s.bound).unwrap_or_default()
    }
}

fn poll_timeout(role: &Role) -> Option<Instant> {
    match role {
        Role::Node(e) => e.poll_timeout(),
        Role::Server(e) => e.poll_timeout(),
        Role::Relay(e) => e.poll_timeout(),
        Role::Agent(e) => e.poll_timeout(),
    }
}
