//! Forwarders without a device: Servers, between Clients that the test plays itself.

use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use aero_dataplane::ForwardingTable;
use aero_dataplane::userspace::Config;
use aero_protocol::address::LinkLayerAddress;
use aero_protocol::forwarding::{Change, Drop, NextHop};
use aero_protocol::wire::encapsulation::{FragmentShim, Payload, demux};
use socket2::{Domain, Protocol, Socket, Type};

use super::support::{LONG, Net, Node, Seen};
use super::{A, A_INNER, A_INNER4, B, B_INNER, B_INNER4};
use super::{config, ip, option, route, socket, source, wait};

/// `b` as a Server between two Clients that the test plays itself, at ports 9001 and 9002 of `a`.
fn server_and_clients(net: &Net, config: Config) -> (Node, UdpSocket, UdpSocket, SocketAddr) {
    let server = net.start("b", B, 0, &[], config);
    let address = net.address("a").to_string();
    let clients = [(9001, 1), (9002, 2)].map(|(port, n)| {
        let l2 = LinkLayerAddress::new(net.address("a"), port);
        let prefix = format!("2001:db8:0:{n}::/64");
        route(&server, &prefix, NextHop::Neighbor(l2));
        source(&server, &prefix, l2);
        socket(net, "a", &address, port)
    });
    let [c1, c2] = clients;
    (server, c1, c2, SocketAddr::from((net.address("b"), B)))
}

pub fn inner(source: &str, destination: &str, hops: u8, class: u8, length: usize) -> Vec<u8> {
    let first = (6u32 << 28) | (u32::from(class) << 20);
    let mut p = first.to_be_bytes().to_vec();
    p.extend(u16::try_from(length - 40).unwrap().to_be_bytes());
    p.extend([59, hops]);
    p.extend(source.parse::<Ipv6Addr>().unwrap().octets());
    p.extend(destination.parse::<Ipv6Addr>().unwrap().octets());
    p.resize(length, 0x55);
    p
}

fn set_outer(socket: &UdpSocket, ttl: i32, class: i32) {
    if socket.local_addr().unwrap().is_ipv6() {
        option(socket, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, ttl);
        option(socket, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, class);
    } else {
        option(socket, libc::IPPROTO_IP, libc::IP_TTL, ttl);
        option(socket, libc::IPPROTO_IP, libc::IP_TOS, class);
    }
}

#[test]
fn a_server_carries_the_outer_header_on_and_never_touches_the_inner_one() {
    let _row = aero_elements::covers(&["D7", "D8"]);
    for ipv6 in [false, true] {
        let net = Net::new(ipv6, 1500);
        let (_server, c1, c2, to) = server_and_clients(&net, config(true));
        let capture = net.capture();
        let mut buffer = [0; 2048];
        // Inner hop limit and ECN, outer TTL and class.
        for (hops, inner_class, ttl, class) in
            [(1, 2, 64, 3), (255, 0, 9, 0xb8), (64, 0xba, 255, 0xbb), (7, 1, 12, 0)]
        {
            set_outer(&c1, ttl, class);
            let packet = inner(A_INNER, B_INNER, hops, inner_class, 400);
            c1.send_to(&packet, to).unwrap();
            let length = c2.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..length], packet, "to the bit");
            let back = capture.until(|s| s.to.port() == 9002, |all| !all.is_empty());
            assert_eq!(i32::from(back[0].class), class);
            // The router counts on the way there and back; the Server does not.
            assert_eq!(i32::from(back[0].ttl), ttl - 2);
        }
    }
}

#[test]
fn fragments_that_pass_a_server_come_out_whole_or_in_two_again() {
    let net = Net::new(true, 1500);
    let (server, c1, c2, to) = server_and_clients(&net, config(false));
    let packet = inner(A_INNER, B_INNER, 64, 0, 1500);
    let shim = FragmentShim { next_header: 41, offset: 0, more: true, identification: 77 };
    let last = FragmentShim { offset: 800, more: false, ..shim };
    c1.send_to(&[&last.emit()[..], &packet[800..]].concat(), to).unwrap();
    c1.send_to(&[&shim.emit()[..], &packet[..800]].concat(), to).unwrap();
    let mut whole = Vec::new();
    let mut buffer = [0; 2048];
    for _ in 0..2 {
        let length = c2.recv(&mut buffer).unwrap();
        let Ok(Payload::Fragment { shim, data }) = demux(&buffer[..length]) else { panic!() };
        assert_eq!(usize::from(shim.offset), whole.len());
        whole.extend_from_slice(data);
    }
    assert_eq!(whole, packet);
    assert_eq!(server.forwarder.counters().reassembled_packets, 1);
}

#[test]
fn a_destination_without_a_route_is_reported_through_the_tunnel_to_its_source() {
    let _row = aero_elements::covers(&["W6"]);
    for ipv6 in [false, true] {
        let net = Net::new(ipv6, 1500);
        let a = net.start("a", A, 1400, &[A_INNER, A_INNER4], config(true));
        let b = net.start("b", B, 0, &[], config(true));
        let l2_a = LinkLayerAddress::new(net.address("a"), A);
        let l2_b = LinkLayerAddress::new(net.address("b"), B);
        a.forwarder.apply(&Change::AddPeer(l2_b));
        for (own, all) in [("2001:db8:0:1::/64", "2001:db8::/32"), ("10.1.0.0/16", "10.0.0.0/8")] {
            route(&a, own, NextHop::Local);
            route(&a, all, NextHop::Neighbor(l2_b));
            route(&b, own, NextHop::Neighbor(l2_a));
            source(&b, own, l2_a);
        }
        let capture = net.capture();
        for (near, far) in [(A_INNER, B_INNER), (A_INNER4, B_INNER4)] {
            let from = socket(&net, "a", near, 7000);
            // Or the kernel keeps it to itself that there is no route.
            if near == A_INNER {
                option(&from, libc::IPPROTO_IPV6, libc::IPV6_RECVERR, 1);
            } else {
                option(&from, libc::IPPROTO_IP, libc::IP_RECVERR, 1);
            }
            let (family, protocol) = match near {
                A_INNER => (Domain::IPV6, Protocol::ICMPV6),
                _ => (Domain::IPV4, Protocol::ICMPV4),
            };
            let icmp = net.within("a", || Socket::new(family, Type::RAW, Some(protocol)).unwrap());
            icmp.set_read_timeout(Some(LONG)).unwrap();
            from.connect((ip(far), 7001)).unwrap();
            from.send(b"anybody there?").unwrap();
            let error = from.recv(&mut [0; 8]).unwrap_err();
            let raw = error.raw_os_error().unwrap();
            assert!(matches!(raw, libc::ENETUNREACH | libc::EHOSTUNREACH), "{error}");
            // The kernel has checked the checksum, or the socket would have heard nothing.
            let signed = (0..20).any(|_| {
                let mut buffer = [0; 2048];
                let (length, by) =
                    UdpSocket::from(icmp.try_clone().unwrap()).recv_from(&mut buffer).unwrap();
                let kind = if near == A_INNER { buffer[0] == 1 } else { buffer[20] == 3 };
                length > 48 && kind && by.ip() == ip(far)
            });
            assert!(signed, "from a global address once it has left the link");
            let back = capture.until(|s| s.to.port() == A, |all| !all.is_empty());
            let empty: &[u8] = if near == A_INNER { &[0; 16] } else { &[0; 4] };
            let place = if near == A_INNER { 8..24 } else { 12..16 };
            assert_eq!(&back[0].payload[place], empty, "no source while in the link");
        }
        assert_eq!(b.forwarder.counters().icmp_errors, 2);
        // No more than the rate allows: a hundred at once and a hundred a second.
        let start = Instant::now();
        let from = socket(&net, "a", A_INNER, 7002);
        let unrouted = || b.forwarder.counters().drops[&Drop::NoRoute];
        // The device's queue does not hold all of a burst.
        wait("packets without a route reach the Server", || {
            for n in 0..200u16 {
                let _ = from.send_to(&n.to_be_bytes(), (ip("2001:db8:0:9::1"), 7001));
            }
            unrouted() > 1000
        });
        let mut before = 0;
        wait("the rest of them do", || std::mem::replace(&mut before, unrouted()) == before);
        let sent = b.forwarder.counters().icmp_errors;
        let allowed = 102 + 100 * (start.elapsed().as_secs() + 1);
        assert!(sent <= allowed, "{sent} errors where {allowed} are allowed");
    }
}

#[test]
fn shims_of_other_kinds_garbage_and_strangers_get_nothing_back_and_do_no_harm() {
    let net = Net::new(false, 1500);
    let (server, c1, c2, to) = server_and_clients(&net, config(true));
    let stranger = socket(&net, "a", "192.0.2.1", 9003);
    let capture = net.capture();
    // RFC 6706 Predirect, GRE and ESP, a signed fragment, reserved types.
    for payload in [&[0x00, 0x40, 64, 0][..], &[0x01, 47, 0, 0], &[0x03; 20], &[0x0f; 20]] {
        c1.send_to(payload, to).unwrap();
        stranger.send_to(payload, to).unwrap();
    }
    let good = inner(A_INNER, B_INNER, 64, 0, 400);
    let mut state = 12345u64;
    for n in 0..3000usize {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mut payload = good[..(n * 7) % 401].to_vec();
        for byte in payload.iter_mut().take(60).skip(n % 3) {
            if state.trailing_zeros() > 0 {
                *byte ^= u8::try_from((state >> 32) & 0xff).unwrap();
            }
            state = state.rotate_left(7);
        }
        stranger.send_to(&payload, to).unwrap();
        if n % 100 == 0 {
            std::thread::sleep(Duration::from_millis(2));
        }
    }
    stranger.send_to(&good, to).unwrap();
    c1.send_to(&good, to).unwrap();
    let mut buffer = [0; 2048];
    assert_eq!(c2.recv(&mut buffer).unwrap(), good.len(), "it goes on");
    // It was the last that went in, so an answer to anything else would have come before it.
    let from_server = |s: &Seen| s.from.port() == B;
    let first = capture.until(from_server, |all| !all.is_empty());
    assert_eq!(first[0].to.port(), 9002, "only what a Client may send, and no answer: {first:?}");
    let late = capture.during(Duration::from_millis(300)).into_iter().find(from_server);
    assert!(late.is_none(), "{late:?}");
    let counters = server.forwarder.counters();
    assert!(counters.drops[&Drop::Shim] >= 8);
    assert_eq!(counters.tunneled_packets, 1);
    assert_eq!(counters.icmp_errors, 0);
}

#[test]
fn half_packets_without_end_do_not_stop_whole_ones() {
    let _row = aero_elements::covers(&["W3"]);
    let net = Net::new(false, 1500);
    let (server, c1, c2, to) = server_and_clients(&net, config(true));
    let packet = inner(A_INNER, B_INNER, 64, 0, 1400);
    let shim = FragmentShim { next_header: 41, offset: 0, more: true, identification: 0 };
    let first = |id: u32| {
        let shim = FragmentShim { identification: id, ..shim };
        [&shim.emit()[..], &packet[..800]].concat()
    };
    for id in 0..10_000 {
        c1.send_to(&first(id), to).unwrap();
    }
    let last = FragmentShim { offset: 800, more: false, identification: 20_000, ..shim };
    let deadline = Instant::now() + LONG;
    c2.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let mut buffer = [0; 2048];
    loop {
        // The socket's buffer may be full of halves.
        c1.send_to(&first(20_000), to).unwrap();
        c1.send_to(&[&last.emit()[..], &packet[800..]].concat(), to).unwrap();
        if c2.recv(&mut buffer).is_ok_and(|length| buffer[..length] == packet) {
            break;
        }
        assert!(Instant::now() < deadline, "{:?}", server.forwarder.counters());
    }
}

/// A ring of forwarders that each send on to the next: three in one namespace, or four that
/// alternate between `a` and `b`. Gives how often one packet was sent on, and the drops.
fn ring(net: &Net, nodes: &[&str], ttl_step: u8, ttl: i32) -> (u64, u64) {
    let at = |n: usize| {
        let n = n % nodes.len();
        LinkLayerAddress::new(net.address(nodes[n]), 9100 + u16::try_from(n).unwrap())
    };
    let ring: Vec<Node> = (0..nodes.len())
        .map(|n| {
            let config = Config { ttl_step, ..config(true) };
            let node = net.start(nodes[n], at(n).port, 0, &[], config);
            let before = at(n + nodes.len() - 1);
            node.forwarder.apply(&Change::AddPeer(before));
            route(&node, "2001:db8:0:2::/64", NextHop::Neighbor(at(n + 1)));
            node
        })
        .collect();
    let first = LinkLayerAddress::new(net.address(nodes[0]), 9099);
    ring[0].forwarder.apply(&Change::AddPeer(first));
    let from = socket(net, nodes[0], &first.ip.to_string(), first.port);
    set_outer(&from, ttl, 0);
    from.send_to(&inner(A_INNER, B_INNER, 64, 0, 100), SocketAddr::from(at(0))).unwrap();
    let count = || {
        let all = ring.iter().map(|n| n.forwarder.counters());
        all.fold((0, 0), |(sent, dropped), c| {
            (sent + c.tunneled_packets, dropped + c.drops[&Drop::OuterTtl])
        })
    };
    // Until it stands still, for longer than a loaded machine holds a packet up.
    let deadline = Instant::now() + LONG;
    let (mut last, mut still) = ((0, 0), 0);
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let now = count();
        still = if now == last && now.0 > 0 { still + 1 } else { 0 };
        if still == 5 {
            return now;
        }
        assert!(Instant::now() < deadline, "the loop does not end: {now:?}");
        last = now;
    }
}

#[test]
fn a_loop_ends_when_the_outer_ttl_has_run_out() {
    for ipv6 in [false, true] {
        let net = Net::new(ipv6, 1500);
        // Routers of the underlay count, and the router is where it ends.
        let (sent, _) = ring(&net, &["a", "b", "a", "b"], 0, 40);
        assert_eq!(sent, 40);
        // Without routers between, the nodes count if they are told to.
        let (sent, dropped) = ring(&net, &["b", "b", "b"], 1, 40);
        assert_eq!((sent, dropped), (39, 1));
    }
}
