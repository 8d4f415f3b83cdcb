//! The deprecated model: a Server that relays to a central DHCPv6 server, here played by the test.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use aero_protocol::Output;
use aero_protocol::address::{
    ALL_DHCP_SERVERS, BOOTSTRAP_ADDRESS, Duid, LinkLayerAddress, SERVER_ANYCAST, ServerId,
    aero_address,
};
use aero_protocol::forwarding::{Disposition, Inner, Table};
use aero_protocol::relay_agent::{Config, Ended, Event, REACHABLE_TIME, RelayAgent};
use aero_protocol::wire::aero_options::AeroOption;
use aero_protocol::wire::dhcpv6::{IaPd, Kind, Message, Prefix, Status, StatusCode};
use aero_protocol::wire::dhcpv6_relay::{OPTION_CLIENT_LINK_LAYER, RelayMessage};
use aero_protocol::wire::ip::{self, Packet, Payload};
use aero_protocol::wire::nd::{Nd, NdMessage};
use ipnet::IpNet;
use uuid::Uuid;

/// The engine with its table, time, and the central server's end.
struct Bench {
    agent: RelayAgent,
    table: Table,
    now: Instant,
    to_server: Vec<RelayMessage>,
    sent: Vec<(LinkLayerAddress, Vec<u8>)>,
    events: Vec<Event>,
}

impl Bench {
    fn new() -> Self {
        let id = ServerId::new(2).unwrap();
        let link_address = "2001:db8::1".parse().unwrap();
        Self {
            agent: RelayAgent::new(Config { id, link_address }),
            table: Table::default(),
            now: Instant::now(),
            to_server: Vec::new(),
            sent: Vec::new(),
            events: Vec::new(),
        }
    }

    fn drain(&mut self) {
        while let Some(output) = self.agent.poll_output() {
            match output {
                Output::Send { to, packet } | Output::SendOn { to, packet, .. } => {
                    self.sent.push((to, packet));
                }
                Output::Forward(change) => self.table.apply(&change),
                Output::Event(Event::ToServer(bytes)) => {
                    self.to_server.push(RelayMessage::parse(&bytes).unwrap());
                }
                Output::Event(event) => self.events.push(event),
            }
        }
    }

    fn wait(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(due) = self.agent.poll_timeout().filter(|t| *t <= end) {
            self.now = self.now.max(due);
            self.agent.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
    }

    fn incoming(&mut self, from: LinkLayerAddress, packet: &[u8]) {
        self.agent.handle_packet(from, packet, self.now);
        self.drain();
    }

    fn say(&mut self, from: LinkLayerAddress, source: Ipv6Addr, message: &Message) {
        let bytes = message.emit().unwrap();
        self.incoming(from, &ip::udp((source, 546), (ALL_DHCP_SERVERS, 547), &bytes).unwrap());
    }

    /// The central server's answer to what it got last.
    fn answer(&mut self, message: &Message) {
        let mut reply = self.to_server.last().unwrap().clone();
        reply.reply = true;
        reply.echo.clear();
        reply.message = message.emit().unwrap();
        self.agent.handle_reply(&reply.emit().unwrap(), self.now);
        self.drain();
    }

    /// Client 1 gets its prefix at `from`.
    fn bind(&mut self, from: LinkLayerAddress, valid: u32) {
        let request = message(Kind::Request);
        self.say(from, BOOTSTRAP_ADDRESS, &request);
        self.answer(&granted(&request, valid));
    }

    fn forwards_to(&self) -> Option<LinkLayerAddress> {
        let (source, destination) = ("2001:db8:0:9::1", "2001:db8:0:1::1");
        let peer = l2("192.0.2.99:8060");
        let mut table = self.table.clone();
        table.apply(&aero_protocol::forwarding::Change::AddPeer(peer));
        let inner =
            Inner { source: source.parse().unwrap(), destination: destination.parse().unwrap() };
        match table.ingress(peer, inner, self.now) {
            Disposition::Tunnel(to) => Some(to),
            _ => None,
        }
    }
}

fn l2(text: &str) -> LinkLayerAddress {
    text.parse::<std::net::SocketAddr>().unwrap().into()
}

fn acp() -> IpNet {
    "2001:db8:0:1::/64".parse().unwrap()
}

fn client() -> Duid {
    Duid::from_uuid(Uuid::from_u128(1))
}

fn message(kind: Kind) -> Message {
    let mut m = Message::new(kind, [1, 2, 3]);
    m.client = Some(client());
    m.ia_pd.push(IaPd { id: 1, ..IaPd::default() });
    m.aero.push(AeroOption::LinkRequest { link_id: 4, preference: 2 });
    m
}

fn granted(request: &Message, valid: u32) -> Message {
    let mut m = Message::new(Kind::Reply, request.transaction);
    m.client = Some(client());
    m.server = Some(Duid::from_uuid(Uuid::from_u128(99)));
    let prefix = Prefix { prefix: acp(), preferred: valid, valid };
    m.ia_pd.push(IaPd { id: 1, t1: 10, t2: 16, prefixes: vec![prefix], status: None });
    m
}

const HERE: &str = "192.0.2.1:8060";

#[test]
fn a_solicit_is_relayed_with_the_clients_link_layer_address_and_asks_for_it_back() {
    let _row = aero_elements::covers(&["T1"]);
    let mut bench = Bench::new();
    let solicit = message(Kind::Solicit);
    bench.say(l2(HERE), BOOTSTRAP_ADDRESS, &solicit);
    assert!(bench.sent.is_empty(), "the central server alone answers");
    let relayed = &bench.to_server[0];
    assert_eq!((relayed.reply, relayed.hop_count), (false, 0));
    assert_eq!(relayed.link_address, "2001:db8::1".parse::<Ipv6Addr>().unwrap());
    assert_eq!(relayed.peer_address, BOOTSTRAP_ADDRESS);
    assert!(relayed.interface_id.is_some());
    let link = relayed.link_layer.unwrap();
    assert_eq!((link.link_id, link.preference, link.address), (4, 2, l2(HERE)));
    assert_eq!(relayed.echo, [OPTION_CLIENT_LINK_LAYER]);
    assert_eq!(Message::parse(&relayed.message).unwrap(), solicit);
}

#[test]
fn the_reply_of_the_central_server_reaches_the_client_from_the_servers_own_address() {
    let _row = aero_elements::covers(&["T3"]);
    let mut bench = Bench::new();
    bench.bind(l2(HERE), 40);
    let (to, packet) = bench.sent.pop().unwrap();
    assert_eq!(to, l2(HERE));
    let packet = Packet::parse(&packet).unwrap();
    let own: Ipv6Addr = "fe80::2".parse().unwrap();
    assert_eq!((packet.source, packet.destination), (own, BOOTSTRAP_ADDRESS));
    let Payload::Udp { source: 547, destination: 546, data } = packet.payload else { panic!() };
    assert_eq!(Message::parse(data).unwrap(), granted(&message(Kind::Request), 40));
}

#[test]
fn an_entry_is_made_by_the_relay_reply_only_and_ends_with_its_lifetime() {
    let mut bench = Bench::new();
    let request = message(Kind::Request);
    bench.say(l2(HERE), BOOTSTRAP_ADDRESS, &request);
    assert_eq!(bench.forwards_to(), None, "asking is not having");
    let mut offer = granted(&request, 20);
    offer.kind = Kind::Advertise;
    bench.answer(&offer);
    assert_eq!(bench.forwards_to(), None, "an offer is none either");
    bench.answer(&granted(&request, 20));
    assert_eq!(bench.forwards_to(), Some(l2(HERE)));
    let own = Inner {
        source: "2001:db8:0:1::1".parse().unwrap(),
        destination: "2001:db8:0:1::2".parse().unwrap(),
    };
    assert_eq!(
        bench.table.ingress(l2("192.0.2.66:8060"), own, bench.now),
        Disposition::Drop(aero_protocol::forwarding::Drop::OriginRefused)
    );
    bench.wait(Duration::from_millis(19_900));
    assert_eq!(bench.forwards_to(), Some(l2(HERE)));
    bench.wait(Duration::from_millis(200));
    assert_eq!(bench.forwards_to(), None);
    let ended = Event::Ended { prefix: acp(), at: l2(HERE), why: Ended::Expired };
    assert_eq!(bench.events.last(), Some(&ended));
    assert_eq!(bench.agent.neighbors().count(), 0);
}

#[test]
fn a_client_lives_by_its_solicitations() {
    let _row = aero_elements::covers(&["U4"]);
    let mut bench = Bench::new();
    bench.bind(l2(HERE), 4000);
    let rs = Nd {
        source: aero_address(acp()),
        destination: SERVER_ANYCAST,
        message: NdMessage::RouterSolicitation,
        options: vec![],
    };
    for _ in 0..4 {
        bench.wait(REACHABLE_TIME - Duration::from_secs(1));
        bench.sent.clear();
        bench.incoming(l2(HERE), &rs.emit().unwrap());
        let answer = Packet::parse(&bench.sent[0].1).map(|p| Nd::parse(&p)).unwrap().unwrap();
        assert!(matches!(answer.message, NdMessage::RouterAdvertisement { lifetime: 1.. }));
        assert_eq!(answer.source, "fe80::2".parse::<Ipv6Addr>().unwrap());
        // The same from elsewhere is no sign of this Client's life, and is not answered.
        bench.sent.clear();
        bench.incoming(l2("192.0.2.66:8060"), &rs.emit().unwrap());
        assert!(bench.sent.is_empty());
    }
    bench.wait(REACHABLE_TIME - Duration::from_secs(1));
    assert_eq!(bench.forwards_to(), Some(l2(HERE)));
    bench.wait(Duration::from_secs(1));
    assert_eq!(bench.forwards_to(), None);
    let ended = Event::Ended { prefix: acp(), at: l2(HERE), why: Ended::Silent };
    assert_eq!(bench.events.last(), Some(&ended));
}

#[test]
fn a_release_ends_the_entry_when_the_central_server_has_agreed_and_only_from_its_client() {
    let mut bench = Bench::new();
    bench.bind(l2(HERE), 40);
    let mut release = message(Kind::Release);
    release.transaction = [7, 7, 7];
    release.server = Some(Duid::from_uuid(Uuid::from_u128(99)));
    release.ia_pd[0].prefixes = vec![Prefix { prefix: acp(), preferred: 0, valid: 0 }];
    let mut agreed = Message::new(Kind::Reply, release.transaction);
    agreed.client = Some(client());
    agreed.server.clone_from(&release.server);
    agreed.status = Some(Status::new(StatusCode::Success, "released"));
    bench.say(l2("192.0.2.66:8060"), aero_address(acp()), &release);
    bench.answer(&agreed);
    assert_eq!(bench.forwards_to(), Some(l2(HERE)), "from elsewhere");
    bench.say(l2(HERE), aero_address(acp()), &release);
    assert_eq!(bench.forwards_to(), Some(l2(HERE)), "not yet");
    bench.answer(&agreed);
    assert_eq!(bench.forwards_to(), None);
    let ended = Event::Ended { prefix: acp(), at: l2(HERE), why: Ended::Released };
    assert_eq!(bench.events.last(), Some(&ended));
}

#[test]
fn a_client_that_moved_is_followed_and_a_prefix_of_lifetime_zero_is_withdrawn() {
    let mut bench = Bench::new();
    bench.bind(l2(HERE), 40);
    let there = l2("192.0.2.33:8060");
    bench.bind(there, 40);
    assert_eq!(bench.forwards_to(), Some(there));
    assert_eq!(bench.agent.neighbors().count(), 1);
    bench.bind(there, 0);
    assert_eq!(bench.forwards_to(), None);
    let ended = Event::Ended { prefix: acp(), at: there, why: Ended::Withdrawn };
    assert_eq!(bench.events.last(), Some(&ended));
}

/// The default mode beside it: a Client that goes from S1 to S2, and one with leases at both.
#[path = "common/topology.rs"]
mod topology;

#[test]
fn a_client_that_went_elsewhere_leaves_a_stale_route_until_its_timer() {
    let _row = aero_elements::covers(&["T5"]);
    // Two relaying Servers; the Client goes from the first to the second. Nothing in the
    // deprecated model tells the first one of it.
    let (mut first, mut second) = (Bench::new(), Bench::new());
    let there = l2("192.0.2.33:8060");
    first.bind(l2(HERE), 40);
    second.bind(there, 40);
    first.wait(REACHABLE_TIME - Duration::from_secs(1));
    assert_eq!(first.forwards_to(), Some(l2(HERE)), "where nobody is any more");
    first.wait(Duration::from_secs(1));
    assert_eq!(first.forwards_to(), None);
    let ended = Event::Ended { prefix: acp(), at: l2(HERE), why: Ended::Silent };
    assert_eq!(first.events.last(), Some(&ended));
    // The default mode: the first Server sends on from the Release on, and lets go in five seconds.
    use topology::{Rig, SECOND, host, infra_at, node_at};
    let mut rig = Rig::standard();
    rig.with_node(21, |node, now| {
        node.add_server(infra_at(12), now);
        node.leave_server(infra_at(11), now);
    });
    rig.run(SECOND / 10);
    let late = |rig: &Rig| rig.way_from(infra_at(10), infra_at(11), host(2), host(1));
    assert_eq!(late(&rig), (vec![infra_at(11), infra_at(12), node_at(21)], Ok(())));
    rig.run(SECOND * 6);
    assert!(late(&rig).1.is_err());
}

#[test]
fn a_lease_of_the_central_server_is_worth_nothing_at_another_server() {
    let _row = aero_elements::covers(&["T6"]);
    let (mut first, mut second) = (Bench::new(), Bench::new());
    first.bind(l2(HERE), 40);
    assert_eq!(first.forwards_to(), Some(l2(HERE)));
    // The lease is the central server's, the way is the Server's that passed the Reply on: the
    // other has none, and neither a solicitation nor a Release through it makes or ends one.
    assert_eq!(second.forwards_to(), None);
    let rs = Nd {
        source: aero_address(acp()),
        destination: SERVER_ANYCAST,
        message: NdMessage::RouterSolicitation,
        options: vec![],
    };
    second.incoming(l2(HERE), &rs.emit().unwrap());
    assert!(second.sent.is_empty());
    assert_eq!(second.forwards_to(), None);
    // The first dies. Only a new exchange with the central server gives the second a way.
    second.bind(l2(HERE), 40);
    assert_eq!(second.forwards_to(), Some(l2(HERE)));
    // The default mode: two leases at a time, and the death of one Server needs no exchange.
    use topology::{Rig, SECOND, host, infra_at, node_at};
    let mut rig = Rig::standard();
    rig.with_node(21, |node, now| node.add_server(infra_at(12), now));
    rig.run(SECOND);
    assert_eq!(rig.bound(21, 1), [infra_at(11), infra_at(12)]);
    rig.dead.insert(infra_at(11));
    let way = rig.way_from(infra_at(10), infra_at(12), host(2), host(1));
    assert_eq!(way, (vec![infra_at(12), node_at(21)], Ok(())));
}

#[test]
fn what_is_not_a_clients_message_or_the_servers_reply_is_dropped_without_a_trace() {
    let mut bench = Bench::new();
    bench.say(l2(HERE), BOOTSTRAP_ADDRESS, &granted(&message(Kind::Request), 40));
    bench.say(l2(HERE), "2001:db8::5".parse().unwrap(), &message(Kind::Solicit));
    bench.incoming(l2(HERE), &[0x60; 30]);
    assert!(bench.to_server.is_empty() && bench.sent.is_empty());
    bench.say(l2(HERE), BOOTSTRAP_ADDRESS, &message(Kind::Request));
    let good = RelayMessage {
        reply: true,
        message: granted(&message(Kind::Request), 40).emit().unwrap(),
        ..bench.to_server[0].clone()
    };
    let bad = [
        RelayMessage { reply: false, ..good.clone() },
        RelayMessage { interface_id: None, ..good.clone() },
        RelayMessage { interface_id: Some(vec![1; 19]), ..good.clone() },
        RelayMessage { interface_id: Some(vec![1; 21]), ..good.clone() },
        // A Relay-reply in a Relay-reply: there is no relay agent before this one.
        RelayMessage { message: good.emit().unwrap(), ..good.clone() },
    ];
    for message in bad {
        bench.agent.handle_reply(&message.emit().unwrap(), bench.now);
        bench.drain();
    }
    assert!(bench.sent.is_empty());
    assert_eq!(bench.agent.neighbors().count(), 0);
    assert!(bench.events.iter().all(|e| matches!(e, Event::Dropped { .. })));
    assert_eq!(bench.events.len(), 8);
}
