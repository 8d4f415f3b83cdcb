//! Forged messages and errors, against real Clients and Servers.

use aero_elements::faults::{Level, held};
use aero_protocol::address::aero_address;
use aero_protocol::wire::dhcpv6::Kind;
use aero_protocol::wire::nd::{LinkLayerOption, Nd, NdMessage, NdOption};

use super::net::{
    BOTH, Host, Net, SOON, Underlay, await_address, await_that, reaches, start_client, start_server,
};
use super::tester::{QUIET, Tester, acp, client_packet, data, dhcp_of, duid, inner, l2, table};

/// Two real Clients with paths to each other.
fn direct_pair<'a>(net: &'a Net, u: Underlay) -> (Host<'a>, Host<'a>, Host<'a>) {
    let (s1, c1, c2) = (net.at("s1", u, 11), net.at("c1", u, 1), net.at("c2", u, 2));
    let server = start_server(&s1, u, 11, &net.file("t.yaml", &table(40)));
    start_client(&c1, 1, &[server], &[]);
    start_client(&c2, 2, &[server], &[]);
    await_address(&c1, 1);
    await_address(&c2, 2);
    (s1, c1, c2)
}

/// Lets both talk until both know a direct path.
fn until_direct(c1: &Host<'_>, c2: &Host<'_>) {
    await_that("both directions are direct", SOON, || {
        reaches((c1, inner(1).into()), (c2, inner(2).into()), SOON);
        reaches((c2, inner(2).into()), (c1, inner(1).into()), SOON);
        [c1, c2].iter().all(|c| c.log(&c.name).contains("a direct path is open"))
    });
}

/// An ICMP Destination Unreachable (port) about a datagram of this payload, from a host to another.
fn send_unreachable(from: &Host<'_>, to: [u8; 4], about: [u8; 4], payload: &[u8]) {
    use nix::sys::socket::{
        AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrIn, sendto, socket,
    };
    let length = u16::try_from(28 + payload.len()).unwrap();
    let mut icmp = vec![3, 3, 0, 0, 0, 0, 0, 0, 0x45, 0];
    icmp.extend(length.to_be_bytes());
    icmp.extend([0, 0, 0x40, 0, 64, 17, 0, 0]);
    icmp.extend([to, about].concat());
    icmp.extend([8060u16.to_be_bytes(), 8060u16.to_be_bytes()].concat());
    icmp.extend((length - 20).to_be_bytes());
    icmp.extend([0, 0]);
    icmp.extend(payload);
    let words = icmp.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0)));
    let sum = words.sum::<u32>();
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    from.inside(|| {
        let raw = socket(AddressFamily::Inet, SockType::Raw, SockFlag::empty(), SockProtocol::Icmp);
        let address = SockaddrIn::new(to[0], to[1], to[2], to[3], 0);
        let fd = raw.unwrap();
        sendto(std::os::fd::AsRawFd::as_raw_fd(&fd), &icmp, &address, MsgFlags::empty()).unwrap();
    });
}

fn metric(host: &Host<'_>, name: &str) -> u64 {
    let metrics = host.run("curl", &["-s", "--max-time", "5", "http://127.0.0.1:9062/metrics"]);
    let line = metrics.lines().find(|l| l.starts_with(name));
    line.and_then(|l| l.rsplit(' ').next()?.parse().ok()).unwrap_or_else(|| panic!("{metrics}"))
}

/// Packets that a Client's forwarder has dropped, for any reason.
fn dropped(host: &Host<'_>) -> u64 {
    let metrics = host.run("curl", &["-s", "--max-time", "5", "http://127.0.0.1:9062/metrics"]);
    let lines = metrics.lines().filter(|l| l.starts_with("aero_dropped_packets_total{"));
    lines.filter_map(|l| l.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}

#[test]
fn forged_unreachables_change_nothing_and_real_ones_lead_back_to_the_server() {
    let _row = aero_elements::covers(&["W5"]);
    let net = Net::new();
    let u = Underlay::V4;
    let (_s1, c1, c2) = direct_pair(&net, u);
    until_direct(&c1, &c2);
    let off = net.at("off", u, 99);
    let dead = "the direct path is dead";
    // Random bytes, and what might have been a packet of the pair.
    let plausible = data(inner(1), inner(2), 64, "what c1 might have sent");
    for payload in [vec![0x5a; 64], plausible] {
        let before = metric(&c1, "aero_underlay_errors_total");
        for _ in 0..20 {
            send_unreachable(&off, [192, 0, 2, 1], [192, 0, 2, 2], &payload);
        }
        await_that("they have arrived", SOON, || {
            metric(&c1, "aero_underlay_errors_total") > before
        });
        assert!(reaches((&c1, inner(1).into()), (&c2, inner(2).into()), SOON));
        assert!(!c1.log("c1").contains(dead), "{}", c1.log("c1"));
    }
    assert_eq!(metric(&c1, "aero_paths_ended_total{reason=\"unreachable\"}"), 0);
    assert!(c1.log("c1").contains("the underlay reports an error"), "the plausible one was heard");
    // Nobody listens at the correspondent's any more: its kernel says so of every datagram.
    c2.kill("c2");
    let c1_socket = c1.udp(&format!("[{}]:0", inner(1)));
    await_that("the path is given up", SOON, || {
        let _ = c1_socket.send_to(b"hello?", (inner(2), 9));
        c1.log("c1").contains(dead)
    });
    assert_eq!(metric(&c1, "aero_paths_ended_total{reason=\"unreachable\"}"), 1);
}

#[test]
fn what_a_host_forges_on_its_aero_interface_never_reaches_the_link() {
    let mut case = held(&["A4"], Level::Namespaces);
    let net = Net::new();
    let u = Underlay::V4;
    let (s1, c1) = (net.at("s1", u, 11), net.at("c1", u, 1));
    let t = Tester::at(&s1, &u.socket(11, 8060));
    start_client(&c1, 1, &[l2(&u.socket(11, 8060))], &[]);
    t.serve(Kind::Solicit, 1, 40);
    await_address(&c1, 1);
    // A pod, or a user of the host, that speaks DHCPv6 in the name of Client 2: from every address
    // that it can give itself, to every address that a Server has.
    c1.ip("addr add fe80::2001:db8:0:2/64 dev aero0 nodad");
    c1.ip("addr add 2001:db8:0:2::1/64 dev aero0 nodad");
    let mut forged = t.message(Kind::Solicit, 2);
    forged.rapid_commit = true;
    let bytes = forged.emit().unwrap();
    let before = dropped(&c1);
    let index: u32 = c1.run("cat", &["/sys/class/net/aero0/ifindex"]).trim().parse().unwrap();
    let server = t.server_id().to_string();
    let mut sent = 0;
    for source in ["fe80::2001:db8:0:2", "2001:db8:0:2::1", "2001:db8:0:1::1"] {
        let socket = c1.inside(|| {
            let scope = if source.starts_with("fe80") { index } else { 0 };
            let from = std::net::SocketAddrV6::new(source.parse().unwrap(), 546, 0, scope);
            std::net::UdpSocket::bind(from).unwrap()
        });
        for to in ["ff02::1:2", &server, "fe80::"] {
            let to = std::net::SocketAddrV6::new(to.parse().unwrap(), 547, 0, index);
            // What the kernel refuses to send is sent to nobody.
            sent += u64::from(socket.send_to(&bytes, to).is_ok());
        }
    }
    assert!(sent >= 3, "only {sent} left the host's own stack");
    await_that("they are dropped and counted", SOON, || dropped(&c1) - before >= sent);
    // Nothing of them is on the underlay; what this host's own Client says is.
    let end = std::time::Instant::now() + QUIET;
    while let Some((_, packet)) =
        t.receive(end.saturating_duration_since(std::time::Instant::now()))
    {
        if let Some((_, m)) = dhcp_of(&packet) {
            assert_eq!(m.client.unwrap(), duid(1));
        }
    }
    case.figure(format!(
        "{sent} forged messages from three sources: none on the underlay, all counted"
    ));
}

#[test]
fn forged_redirects_and_advertisements_turn_no_packet_of_a_client_away() {
    let mut case = held(&["A5"], Level::Namespaces);
    let mut forged = 0u32;
    for u in BOTH {
        let net = Net::new();
        let (s1, c1, c2) = direct_pair(&net, u);
        until_direct(&c1, &c2);
        let off = net.at("off", u, 99);
        let t = Tester::at(&off, &u.socket(99, 8060));
        let link =
            LinkLayerOption { link_id: 0, preference: 255, address: Some(l2(&u.socket(99, 8060))) };
        let (one, two) = (aero_address(acp(1)), aero_address(acp(2)));
        let redirect = |predirect| NdMessage::Redirect {
            predirect,
            target: two,
            destination: inner(2).into(),
            prefix_length: 64,
        };
        let na =
            |solicited| NdMessage::Advertisement { solicited, override_cached: true, target: two };
        let ra = NdMessage::RouterAdvertisement { lifetime: 1800 };
        let server_id: std::net::Ipv6Addr = "fe80::192.0.2.11".parse().unwrap();
        for (source, message) in [
            (two, redirect(false)),
            (two, redirect(true)),
            (two, na(false)),
            (two, na(true)),
            (server_id, ra),
        ] {
            let options = vec![
                NdOption::TargetLinkLayer(link),
                NdOption::SourceLinkLayer(link),
                NdOption::Nonce(vec![7; 6]),
            ];
            let nd = Nd { source, destination: one, message, options };
            let packet = nd.emit().unwrap();
            // Straight, and by the Server as if its Clients spoke.
            for to in [u.socket(1, 8060), u.socket(11, 8060)] {
                t.send(l2(&to), &packet);
                forged += 1;
            }
        }
        // A Server's word about a lease, too.
        let mut release = t.message(Kind::Release, 1);
        release.server = Some(t.server_duid());
        t.send(l2(&u.socket(11, 8060)), &client_packet(one, &release));
        for (from, to, n) in [(&c1, &c2, 2), (&c2, &c1, 1)] {
            let own = inner(3 - n).into();
            assert!(reaches((from, own), (to, inner(n).into()), SOON));
        }
        assert!(t.receive(QUIET).is_none(), "a packet went to the forger");
        assert!(!c1.log("c1").contains("a direct path ended"));
        assert!(!s1.log("s1").contains("lease ended"));
    }
    case.figure(format!("{forged} forged messages: no packet went to the forger, no path ended"));
}
