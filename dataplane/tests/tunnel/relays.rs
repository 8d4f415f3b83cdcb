//! A Relay's forwarder with the routes that its engine makes: what is nobody's ends there, and who
//! sent it is told.

use std::time::{Duration, Instant};

use aero_dataplane::ForwardingTable;
use aero_protocol::Output;
use aero_protocol::address::{LinkLayerAddress, ServerId};
use aero_protocol::forwarding::{Change, Drop, NextHop};
use aero_protocol::relay::{self, Relay};
use aero_protocol::server::{self, Authentication, Server};
use socket2::{Domain, Protocol, Socket, Type};

use super::support::{LONG, Net, Node};
use super::{A, A_INNER, B, config, ip, option, route, socket, source, wait};

const UNUSED: &str = "2001:db8:0:77::1";

fn apply<E>(node: &Node, output: Option<Output<E>>) -> bool {
    if let Some(Output::Forward(change)) = &output {
        node.forwarder.apply(change);
    }
    output.is_some()
}

/// A Relay with one Server, `b`.
fn relay_of(node: &Node, server: LinkLayerAddress) {
    let id = |n| ServerId::new(n).unwrap();
    let asps = vec!["2001:db8::/32".parse().unwrap()];
    let mut relay = Relay::new(relay::Config { id: id(1), asps });
    relay.add_server(id(2), server);
    while apply(node, relay.poll_output()) {}
}

/// The errors of one kind that a raw socket hears of.
fn unreachables(icmp: &Socket, within: Duration) -> usize {
    let until = Instant::now() + within;
    let mut count = 0;
    icmp.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
    let socket = std::net::UdpSocket::from(icmp.try_clone().unwrap());
    while Instant::now() < until {
        let mut buffer = [0; 2048];
        // Type 1; quotes a packet to the unused prefix.
        if let Ok((length, _)) = socket.recv_from(&mut buffer)
            && length >= 48
            && buffer[0] == 1
            && buffer[32..48] == ip_octets(UNUSED)
        {
            count += 1;
        }
    }
    count
}

fn ip_octets(text: &str) -> [u8; 16] {
    text.parse::<std::net::Ipv6Addr>().unwrap().octets()
}

fn raw(net: &Net, node: &str) -> Socket {
    let icmp =
        net.within(node, || Socket::new(Domain::IPV6, Type::RAW, Some(Protocol::ICMPV6)).unwrap());
    icmp.set_recv_buffer_size(4 << 20).unwrap();
    icmp
}

#[test]
fn what_a_server_does_not_know_goes_to_its_relay_and_the_relays_error_comes_back() {
    let _row = aero_elements::covers(&["D2"]);
    for ipv6 in [false, true] {
        let net = Net::new(ipv6, 1500);
        // The Client at `a`; its Server at `b`, the Relay at another port there.
        let a = net.start("a", A, 1400, &[A_INNER], config(true));
        let s = net.start("b", B, 0, &[], config(true));
        let r = net.start("b", 8063, 0, &[], config(true));
        let at = |node: &str, port| LinkLayerAddress::new(net.address(node), port);
        let (client, server, relay) = (at("a", A), at("b", B), at("b", 8063));
        a.forwarder.apply(&Change::AddPeer(server));
        route(&a, "2001:db8:0:1::/64", NextHop::Local);
        route(&a, "2001:db8::/32", NextHop::Neighbor(server));
        let mut engine = Server::new(server::Config {
            id: ServerId::new(2).unwrap(),
            duid: aero_protocol::address::Duid::from_bytes(&[0, 4, 1, 2, 3, 4]).unwrap(),
            asps: vec!["2001:db8::/32".parse().unwrap()],
            lease: Duration::from_secs(40),
            authentication: Authentication::None,
        });
        engine.add_relay(ServerId::new(1).unwrap(), relay);
        while apply(&s, engine.poll_output()) {}
        // Of its one Client, as a lease makes it.
        route(&s, "2001:db8:0:1::/64", NextHop::Neighbor(client));
        source(&s, "2001:db8:0:1::/64", client);
        relay_of(&r, server);
        // The Relay knows of that Client.
        route(&r, "2001:db8:0:1::/64", NextHop::Neighbor(server));
        let icmp = raw(&net, "a");
        let from = socket(&net, "a", A_INNER, 7000);
        option(&from, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1);
        from.connect((ip(UNUSED), 7001)).unwrap();
        from.send(b"anybody there?").unwrap();
        let error = from.recv(&mut [0; 8]).unwrap_err().raw_os_error().unwrap();
        assert!(matches!(error, libc::ENETUNREACH | libc::EHOSTUNREACH | libc::EACCES), "{error}");
        assert!(unreachables(&icmp, LONG / 10) >= 1);
        assert_eq!(r.forwarder.counters().drops[&Drop::Unreachable], 1, "at the Relay");
        assert_eq!(r.forwarder.counters().icmp_errors, 1);
        assert_eq!(s.forwarder.counters().icmp_errors, 0, "not at the Server");
    }
}

#[test]
fn an_unused_prefix_is_unreachable_at_the_relay_at_a_bounded_rate() {
    let _row = aero_elements::covers(&["J5b"]);
    let net = Net::new(false, 1500);
    // The Relay at `a`, with the Internetwork behind its device; its Server would be at `b`.
    let outside = "2001:db9::1";
    let r = net.start("a", A, 1400, &[outside], config(true));
    relay_of(&r, LinkLayerAddress::new(net.address("b"), B));
    let icmp = raw(&net, "a");
    let capture = net.capture();
    let from = socket(&net, "a", outside, 7000);
    let start = Instant::now();
    let swallowed = || r.forwarder.counters().drops[&Drop::Unreachable];
    wait("a flood is swallowed", || {
        for n in 0..100u16 {
            let _ = from.send_to(&n.to_be_bytes(), (ip(UNUSED), 7001));
        }
        swallowed() > 1000
    });
    let heard = unreachables(&icmp, Duration::from_millis(500));
    let sent = r.forwarder.counters().icmp_errors;
    let allowed = 100 + 100 * (start.elapsed().as_secs() + 1);
    assert!(sent >= 1 && sent <= allowed, "{sent} errors where {allowed} are allowed");
    assert!(heard >= 1, "ICMPv6 type 1 reaches whoever sent");
    println!("{} packets swallowed, {sent} errors sent, {heard} heard", swallowed());
    assert!(capture.during(Duration::from_millis(200)).is_empty(), "nothing enters the link");
}
