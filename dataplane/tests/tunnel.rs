//! Forwarders on a real underlay, in network namespaces. Needs root.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "tunnel/relays.rs"]
mod relays;
#[path = "tunnel/servers.rs"]
mod servers;
mod support;
#[path = "tunnel/waiting.rs"]
mod waiting;

use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use aero_dataplane::ForwardingTable;
use aero_dataplane::userspace::Config;
use aero_protocol::address::LinkLayerAddress;
use aero_protocol::forwarding::{Change, Drop, NextHop, Route};
use aero_protocol::tunnel::path;
use aero_protocol::wire::encapsulation::{Payload, demux};
use aero_protocol::wire::ip::Packet;
use aero_protocol::wire::nd::{Nd, NdMessage, NdOption};
use support::{Capture, LONG, Net, Node, Seen};

const A: u16 = 8061;
const B: u16 = 8062;
const A_INNER: &str = "2001:db8:0:1::1";
const B_INNER: &str = "2001:db8:0:2::1";
const A_INNER4: &str = "10.1.0.1";
const B_INNER4: &str = "10.2.0.1";

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn config(assured: bool) -> Config {
    Config { paths: path::Config { underlay_mtu: 1500, assured }, ..Config::default() }
}

fn route(node: &Node, prefix: &str, to: NextHop) {
    let route = Route { to, transit: true, until: None };
    node.forwarder.apply(&Change::SetRoute { prefix: prefix.parse().unwrap(), route });
}

fn source(node: &Node, prefix: &str, from: LinkLayerAddress) {
    let prefix = prefix.parse().unwrap();
    node.forwarder.apply(&Change::SetSource { prefix, from, until: None });
}

/// Two nodes that know each other's prefixes, with TUN devices of this MTU.
fn pair(net: &Net, mtu: u16, assured: bool) -> (Node, Node) {
    let a = net.start("a", A, mtu, &[A_INNER, A_INNER4], config(assured));
    let b = net.start("b", B, mtu, &[B_INNER, B_INNER4], config(assured));
    let l2_a = LinkLayerAddress::new(net.address("a"), A);
    let l2_b = LinkLayerAddress::new(net.address("b"), B);
    for (node, own, other, to) in [(&a, "1", "2", l2_b), (&b, "2", "1", l2_a)] {
        for n in [format!("2001:db8:0:{own}::/64"), format!("10.{own}.0.0/16")] {
            route(node, &n, NextHop::Local);
        }
        for n in [format!("2001:db8:0:{other}::/64"), format!("10.{other}.0.0/16")] {
            route(node, &n, NextHop::Neighbor(to));
            source(node, &n, to);
        }
    }
    (a, b)
}

/// A bound UDP socket in a namespace.
fn socket(net: &Net, node: &str, address: &str, port: u16) -> UdpSocket {
    let socket = net.within(node, || UdpSocket::bind((ip(address), port)).unwrap());
    socket.set_read_timeout(Some(LONG)).unwrap();
    socket
}

fn option(socket: &UdpSocket, level: i32, name: i32, value: i32) {
    let s = socket2::SockRef::from(socket);
    // SAFETY: an int and its length.
    let outcome =
        unsafe { libc::setsockopt(s.as_raw_fd(), level, name, (&raw const value).cast(), 4) };
    assert_eq!(outcome, 0, "{}", io::Error::last_os_error());
}

/// Sends a datagram that makes an inner packet of `length` bytes, and waits for it to arrive.
fn carry(from: &UdpSocket, to: &UdpSocket, length: usize, tag: u8) {
    let headers = if from.local_addr().unwrap().is_ipv6() { 48 } else { 28 };
    let data: Vec<u8> =
        (0..length - headers).map(|n| tag ^ u8::try_from(n % 251).unwrap()).collect();
    from.send_to(&data, to.local_addr().unwrap()).unwrap();
    let mut buffer = vec![0; 65_536];
    let received = to.recv(&mut buffer).unwrap();
    assert!(buffer[..received] == data, "{length} bytes arrived as {received}, or changed");
}

fn data_to(port: u16) -> impl Fn(&Seen) -> bool {
    // Not the kernel's own messages on the TUN devices.
    move |seen| {
        seen.to.port() == port
            && !matches!(demux(&seen.payload), Ok(Payload::Packet(p)) if p[0] >> 4 == 6 && p[8] == 0xfe)
    }
}

/// The outer packets of one inner packet.
fn on_the_wire(capture: &Capture, count: usize) -> Vec<Seen> {
    capture.until(data_to(B), |all| all.len() >= count)
}

#[test]
fn on_an_unknown_path_small_packets_go_whole_and_those_up_to_1500_in_two_fragments() {
    let _row = aero_elements::covers(&["W1", "A2"]);
    for ipv6 in [false, true] {
        let net = Net::new(ipv6, 1500);
        let (_a, b) = pair(&net, 1500, false);
        let capture = net.capture();
        let encaps = net.overhead() + 8;
        let mut reassembled = 0;
        for (near, far) in [(A_INNER, B_INNER), (A_INNER4, B_INNER4)] {
            let (from, to) = (socket(&net, "a", near, 7000), socket(&net, "b", far, 7001));
            let last_whole = 1280 - encaps;
            for length in [100, last_whole, last_whole + 1, 1300, 1452, 1500] {
                carry(&from, &to, length, 1);
                if length <= last_whole {
                    let [seen] = &on_the_wire(&capture, 1)[..] else { panic!() };
                    assert_eq!(seen.length, length + net.overhead());
                    assert!(ipv6 || !seen.dont_fragment);
                    let Ok(Payload::Packet(packet)) = demux(&seen.payload) else { panic!() };
                    assert_eq!(packet.len(), length, "nothing before the inner packet");
                    continue;
                }
                reassembled += 1;
                let [first, second] = &on_the_wire(&capture, 2)[..] else { panic!() };
                let read = |seen: &Seen| match demux(&seen.payload) {
                    Ok(Payload::Fragment { shim, data }) => (shim, data.len()),
                    other => panic!("{other:?}"),
                };
                let ((shim1, data1), (shim2, data2)) = (read(first), read(second));
                assert!(first.length <= 1024 && second.length <= first.length);
                assert!(ipv6 || !(first.dont_fragment || second.dont_fragment));
                assert_eq!(shim1.identification, shim2.identification);
                assert_eq!((shim1.offset, shim1.more), (0, true));
                assert_eq!((usize::from(shim2.offset), shim2.more), (data1, false));
                assert_eq!(data1 + data2, length);
            }
        }
        let counters = b.forwarder.counters();
        assert_eq!(counters.reassembled_packets, reassembled);
        // Foreign sources are the kernel's own messages on the TUN device.
        let dropped = counters.drops.iter().filter(|(why, _)| **why != Drop::ForeignSource);
        assert_eq!(dropped.map(|(_, n)| n).sum::<u64>(), 0, "{counters:?}");
    }
}

#[test]
fn where_paths_are_assured_what_fits_goes_whole_with_df_and_1500_still_arrive() {
    for ipv6 in [false, true] {
        let net = Net::new(ipv6, 1500);
        let _nodes = pair(&net, 1500, true);
        let capture = net.capture();
        let (from, to) = (socket(&net, "a", A_INNER, 7000), socket(&net, "b", B_INNER, 7001));
        let room = 1500 - net.overhead();
        carry(&from, &to, room, 1);
        let [seen] = &on_the_wire(&capture, 1)[..] else { panic!() };
        assert!(seen.length == 1500 && seen.dont_fragment);
        carry(&from, &to, 1500, 2);
        assert!(on_the_wire(&capture, 2).iter().all(|seen| seen.length <= 1024));
    }
}

#[test]
fn hop_limit_dscp_and_ecn_are_copied_outward_and_a_mark_on_the_way_arrives() {
    let _row = aero_elements::covers(&["D8"]);
    for ipv6 in [false, true] {
        let net = Net::new(ipv6, 1500);
        let (_a, b) = pair(&net, 1400, true);
        let capture = net.capture();
        let (from, to) = (socket(&net, "a", A_INNER, 7000), socket(&net, "b", B_INNER, 7001));
        option(&to, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1);
        option(&to, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1);
        let class_and_hops = || {
            let mut space = nix::cmsg_space!([i32; 8]);
            let mut data = [0; 64];
            let mut vectors = [io::IoSliceMut::new(&mut data)];
            let flags = nix::sys::socket::MsgFlags::empty();
            let message = nix::sys::socket::recvmsg::<()>(
                to.as_raw_fd(),
                &mut vectors,
                Some(&mut space),
                flags,
            )
            .unwrap();
            let mut found = (-1, -1);
            for c in message.cmsgs().unwrap() {
                match c {
                    nix::sys::socket::ControlMessageOwned::Ipv6TClass(t) => found.0 = t,
                    nix::sys::socket::ControlMessageOwned::Ipv6HopLimit(h) => found.1 = h,
                    _ => {}
                }
            }
            found
        };
        for (class, hops) in [(0, 64), (0xb8, 33), (0x2a, 200), (0xb9, 5), (0x03, 5)] {
            option(&from, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, class);
            option(&from, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, hops);
            from.send_to(b"x", to.local_addr().unwrap()).unwrap();
            let [seen] = &on_the_wire(&capture, 1)[..] else { panic!() };
            assert_eq!((i32::from(seen.class), i32::from(seen.ttl)), (class, hops));
            assert_eq!(class_and_hops(), (class, hops), "the tunnel is one hop, and costs none");
            assert_eq!(seen.flow_label != 0, ipv6);
        }
        let family = if ipv6 { "ip6" } else { "ip" };
        net.run("r", &format!("nft add table inet t; nft add chain inet t f \"{{ type filter hook forward priority 0; }}\"; nft add rule inet t f udp dport {B} {family} ecn set ce"));
        option(&from, libc::IPPROTO_IPV6, libc::IPV6_UNICAST_HOPS, 64);
        for (class, want) in [(0xba, 0xbb), (0xb9, 0xbb), (0xbb, 0xbb)] {
            option(&from, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, class);
            from.send_to(b"x", to.local_addr().unwrap()).unwrap();
            assert_eq!(class_and_hops().0, want, "sent with {class:#x}, marked on the way");
        }
        option(&from, libc::IPPROTO_IPV6, libc::IPV6_TCLASS, 0xb8);
        from.send_to(b"x", to.local_addr().unwrap()).unwrap();
        wait("a mark where the ends know no ECN is a drop", || {
            b.forwarder.counters().drops[&Drop::Congestion] == 1
        });
    }
}

/// Waits for something that other threads bring about.
fn wait(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + LONG;
    while !happened() {
        assert!(Instant::now() < deadline, "does not happen: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Sends until the kernel knows that it is too big, and gives the MTU that it was told.
fn learned_mtu(socket: &UdpSocket, length: usize) -> usize {
    let v6 = socket.local_addr().unwrap().is_ipv6();
    let (level, discover, mtu, set) = if v6 {
        (libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, libc::IPV6_MTU, libc::IPV6_PMTUDISC_DO)
    } else {
        (libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_MTU, libc::IP_PMTUDISC_DO)
    };
    option(socket, level, discover, set);
    let data = vec![7; length];
    let deadline = Instant::now() + LONG;
    loop {
        match socket.send(&data) {
            Err(e) if e.raw_os_error() == Some(libc::EMSGSIZE) => break,
            _ => assert!(Instant::now() < deadline, "no Packet Too Big came"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let (mut value, mut size) = (0i32, 4u32);
    // SAFETY: an int and its length.
    let outcome = unsafe {
        libc::getsockopt(socket.as_raw_fd(), level, mtu, (&raw mut value).cast(), &raw mut size)
    };
    assert_eq!(outcome, 0);
    usize::try_from(value).unwrap()
}

#[test]
fn the_source_of_what_cannot_go_is_told_1500_and_inner_ipv4_without_df_is_fragmented() {
    let _row = aero_elements::covers(&["W1"]);
    for ipv6 in [false, true] {
        let net = Net::new(ipv6, 1500);
        let (a, _b) = pair(&net, 9000, false);
        let capture = net.capture();
        for (near, far) in [(A_INNER, B_INNER), (A_INNER4, B_INNER4)] {
            let (from, to) = (socket(&net, "a", near, 7000), socket(&net, "b", far, 7001));
            if near == A_INNER4 {
                capture.skip();
                option(&from, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, libc::IP_PMTUDISC_DONT);
                carry(&from, &to, 3000, 5);
                // Pieces of the IPv6 packets before may still have been on their way.
                let of_ipv4 = |s: &Seen| !s.payload.starts_with(&[2, 41]);
                for seen in on_the_wire(&capture, 4).into_iter().filter(of_ipv4) {
                    assert!(seen.length <= 1024 && seen.payload[0] == 0x45, "{seen:?}");
                }
            }
            from.connect(to.local_addr().unwrap()).unwrap();
            assert_eq!(learned_mtu(&from, 3000), 1500);
            // One more Packet Too Big may still wait to be told.
            let sent = (0..50).any(|_| from.send(&[7; 1400]).is_ok());
            assert!(sent, "the rest goes on");
        }
        assert!(a.forwarder.counters().icmp_errors >= 2);
    }
}

fn solicitation(source: &str, target: &str) -> Vec<u8> {
    let target: Ipv6Addr = target.parse().unwrap();
    Nd {
        source: source.parse().unwrap(),
        destination: target,
        message: NdMessage::Solicitation { target },
        options: vec![NdOption::Nonce(vec![9; 6])],
    }
    .emit()
    .unwrap()
}

/// What an engine would do with the next solicitation; false if none came.
fn answer_one(runtime: &tokio::runtime::Runtime, node: &mut Node) -> bool {
    let Ok(control) = node.control.try_recv() else { return false };
    let nd = Nd::parse(&Packet::parse(&control.packet).unwrap()).unwrap();
    let NdMessage::Solicitation { target } = nd.message else { return false };
    let message = NdMessage::Advertisement { solicited: true, override_cached: false, target };
    let answer = Nd { source: target, destination: nd.source, message, options: nd.options };
    let answer = answer.emit().unwrap();
    runtime.block_on(node.forwarder.send_control(control.from, &answer)).unwrap();
    true
}

#[test]
fn an_answered_probe_ends_fragmentation_and_a_packet_too_big_of_the_underlay_brings_it_back() {
    let _row = aero_elements::covers(&["W2"]);
    for ipv6 in [false, true] {
        let net = Net::new(ipv6, 1500);
        let (a, mut b) = pair(&net, 1500, false);
        let capture = net.capture();
        let (from, to) = (socket(&net, "a", A_INNER, 7000), socket(&net, "b", B_INNER, 7001));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let l2_b = LinkLayerAddress::new(net.address("b"), B);
        let nd = solicitation("fe80::2001:db8:0:1", "fe80::2001:db8:0:2");
        runtime.block_on(a.forwarder.send_control(l2_b, &nd)).unwrap();
        let room = 1500 - net.overhead();
        // Until the probe that the first fragments set off is answered.
        let whole = |b: &mut Node, room: usize| {
            let deadline = Instant::now() + LONG;
            loop {
                capture.skip();
                carry(&from, &to, room, 1);
                let seen = on_the_wire(&capture, 1);
                if seen[0].length == room + net.overhead() {
                    assert!(seen[0].dont_fragment);
                    return;
                }
                assert!(Instant::now() < deadline, "still in fragments");
                while answer_one(&runtime, b) {}
                std::thread::sleep(Duration::from_millis(50));
            }
        };
        whole(&mut b, room);
        assert!(a.forwarder.counters().path_probes >= 1);
        // The path shrinks.
        net.run("r", "ip link set tob mtu 1400");
        capture.skip();
        from.send_to(&vec![1; room - 48], to.local_addr().unwrap()).unwrap();
        wait("a Packet Too Big comes", || a.forwarder.counters().underlay_errors > 0);
        // The forwarder counts before it acts.
        std::thread::sleep(Duration::from_millis(100));
        capture.skip();
        carry(&from, &to, room, 2);
        assert_eq!(on_the_wire(&capture, 2).len(), 2, "fragments again");
        whole(&mut b, 1400 - net.overhead());
    }
}

#[test]
fn a_tcp_transfer_of_full_segments_over_a_path_of_1400_bytes_finishes() {
    const BYTES: usize = 2 << 20;
    for (ipv6, assured) in [(false, true), (true, false)] {
        let net = Net::new(ipv6, 1400);
        let (_a, b) = pair(&net, 1500, assured);
        let listener = net.within("b", || TcpListener::bind((ip(B_INNER), 7000)).unwrap());
        let receiver = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            stream.set_read_timeout(Some(LONG)).unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            all
        });
        let to = SocketAddr::from((ip(B_INNER), 7000));
        let mut stream = net.within("a", || TcpStream::connect_timeout(&to, LONG).unwrap());
        stream.set_write_timeout(Some(LONG)).unwrap();
        let data: Vec<u8> = (0..BYTES).map(|n| u8::try_from(n % 253).unwrap()).collect();
        stream.write_all(&data).unwrap();
        drop(stream);
        assert!(receiver.join().unwrap() == data);
        assert!(b.forwarder.counters().reassembled_packets > 1000, "{:?}", b.forwarder.counters());
    }
}

#[test]
fn a_control_message_of_3000_bytes_travels_in_fragments_and_arrives_at_the_engine() {
    for ipv6 in [false, true] {
        let net = Net::new(ipv6, 1500);
        let (a, mut b) = pair(&net, 1400, true);
        let capture = net.capture();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let message = servers::inner("fe80::ffff:ffff:ffff:ffff", "ff02::1:2", 255, 0, 3000);
        let l2_b = LinkLayerAddress::new(net.address("b"), B);
        runtime.block_on(a.forwarder.send_control(l2_b, &message)).unwrap();
        let got = runtime.block_on(async { tokio::time::timeout(LONG, b.control.recv()).await });
        assert!(got.unwrap().unwrap().packet == message);
        let seen = capture.until(|s| s.to.port() == B, |all| all.len() >= 4);
        assert!(seen.iter().all(|s| s.length <= 1024 && s.ttl == 255));
    }
}

#[test]
fn a_forged_packet_too_big_that_quotes_something_else_changes_nothing() {
    let net = Net::new(false, 1500);
    let (a, _b) = pair(&net, 1472, true);
    let capture = net.capture();
    let (from, to) = (socket(&net, "a", A_INNER, 7000), socket(&net, "b", B_INNER, 7001));
    carry(&from, &to, 1472, 1);
    let mut icmp = vec![3, 4, 0, 0, 0, 0, 5, 0x14];
    // Addresses and ports are right, what they carried is not.
    icmp.extend([0x45, 0, 0x05, 0xdc, 0, 0, 0x40, 0, 63, 17, 0, 0, 192, 0, 2, 1, 198, 51, 100, 1]);
    icmp.extend(A.to_be_bytes().into_iter().chain(B.to_be_bytes()));
    icmp.extend([0x05, 0xc8, 0, 0]);
    icmp.extend([0x5a; 64]);
    let sum = etherparse::checksum::Sum16BitWords::new().add_slice(&icmp).ones_complement();
    icmp[2..4].copy_from_slice(&sum.to_ne_bytes());
    net.within("r", || {
        let raw = socket2::Socket::new(
            socket2::Domain::IPV4,
            socket2::Type::RAW,
            Some(socket2::Protocol::ICMPV4),
        )
        .unwrap();
        raw.send_to(&icmp, &SocketAddr::from((ip("192.0.2.1"), 0)).into()).unwrap();
    });
    wait("the forged error arrives", || a.forwarder.counters().underlay_errors > 0);
    std::thread::sleep(Duration::from_millis(100));
    capture.skip();
    carry(&from, &to, 1472, 2);
    assert_eq!(on_the_wire(&capture, 1)[0].length, 1500, "whole, as before");
}
