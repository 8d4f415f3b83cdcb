//! The real Client: with real Servers and other Clients, and with the tester as its Server.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use aero_protocol::address::{ALL_DHCP_SERVERS, BOOTSTRAP_ADDRESS, LinkLayerAddress, aero_address};
use aero_protocol::wire::dhcpv6::Kind;
use aero_protocol::wire::ip::{self, Packet};
use aero_protocol::wire::nd::NdMessage;

use super::net::{
    BOTH, Host, Net, SOON, Underlay, agent, await_address, await_that, reaches, start_client,
    start_server, try_run,
};
use super::tester::{Tester, acp, dhcp_of, duid_text, inner, l2, nd_of, table, text_of};

fn addr(n: u16) -> IpAddr {
    inner(n).into()
}

/// Echoes what comes on a TCP connection, and sends it again and again the other way.
struct Session {
    stream: TcpStream,
}

impl Session {
    /// Between two hosts, from `from` to `to`.
    fn open(from: (&Host<'_>, IpAddr), to: (&Host<'_>, IpAddr)) -> Self {
        let listener = to.0.inside(|| TcpListener::bind(SocketAddr::new(to.1, 0)).unwrap());
        let there = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            let Ok((mut peer, _)) = listener.accept() else { return };
            let mut buffer = [0; 64];
            while let Ok(n @ 1..) = peer.read(&mut buffer) {
                if peer.write_all(&buffer[..n]).is_err() {
                    return;
                }
            }
        });
        let stream = from.0.inside(|| TcpStream::connect(there).unwrap());
        assert_eq!(stream.local_addr().unwrap().ip(), from.1);
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        Self { stream }
    }

    /// One round trip on this very connection, and how long it took.
    fn echo(&mut self, text: &str) -> Duration {
        let start = Instant::now();
        self.stream.write_all(text.as_bytes()).unwrap();
        let mut buffer = vec![0; text.len()];
        self.stream.read_exact(&mut buffer).expect("the connection lives");
        assert_eq!(buffer, text.as_bytes());
        start.elapsed()
    }
}

#[test]
fn a_tcp_connection_outlives_two_changes_of_the_underlay_address() {
    let _row = aero_elements::covers(&["B4"]);
    for u in BOTH {
        let net = Net::new();
        let server_host = net.at("s1", u, 11);
        let server = start_server(&server_host, u, 11, &net.file("t.yaml", &table(40)));
        let (c1, c2) = (net.at("c1", u, 1), net.at("c2", u, 2));
        start_client(&c1, 1, &[server], &[]);
        start_client(&c2, 2, &[server], &[]);
        await_address(&c1, 1);
        await_address(&c2, 2);
        let mut session = Session::open((&c1, addr(1)), (&c2, addr(2)));
        session.echo("at home");
        let addresses = || c1.ip("-o -6 addr show dev aero0");
        let before = addresses();
        for (old, new) in [(1, 33), (33, 65)] {
            // The old one goes first: for a moment there is none at all.
            c1.address("del", &u.with_length(old));
            c1.address("add", &u.with_length(new));
            let took = session.echo(&format!("at {new}"));
            println!("over {u:?}: the first answer {took:?} after the change to .{new}");
            let at = format!("at={}", u.socket(new, 8060));
            await_that("the Server has followed", SOON, || net.log("s1").contains(&at));
        }
        assert_eq!(addresses(), before);
        assert!(!net.log("c1").contains("not served here"), "the Client was never muted");
        assert_eq!(net.log("s1").matches("acp=").count(), 0);
    }
}

#[test]
fn an_address_that_is_added_and_preferred_while_the_old_one_stays_moves_the_client_too() {
    let net = Net::new();
    let u = Underlay::V4;
    let s1 = net.at("s1", u, 11);
    let server = start_server(&s1, u, 11, &net.file("t.yaml", &table(40)));
    let (c1, c2) = (net.at("c1", u, 1), net.at("c2", u, 2));
    start_client(&c1, 1, &[server], &[]);
    start_client(&c2, 2, &[server], &[]);
    await_address(&c1, 1);
    await_address(&c2, 2);
    let mut session = Session::open((&c1, addr(1)), (&c2, addr(2)));
    session.echo("first");
    c1.address("add", "192.0.2.33/32");
    c1.ip("route replace 192.0.2.11 dev eth0 src 192.0.2.33");
    await_that("the Server has followed", SOON, || net.log("s1").contains("at=192.0.2.33:8060"));
    // What the Server might tell the old address would reach the Client there.
    let end = Instant::now() + Duration::from_secs(3);
    while Instant::now() < end {
        session.echo("second");
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(!net.log("c1").contains("not served here"));
}

#[test]
fn a_lost_rebind_is_repeated_within_a_second_to_every_server() {
    let _row = aero_elements::covers(&["G4"]);
    let net = Net::new();
    let u = Underlay::V4;
    let hosts = [net.at("s1", u, 11), net.at("s2", u, 12)];
    let servers =
        [Tester::at(&hosts[0], "192.0.2.11:8060"), Tester::at(&hosts[1], "192.0.2.12:8060")];
    let c1 = net.at("c1", u, 1);
    start_client(&c1, 1, &[l2("192.0.2.11:8060"), l2("192.0.2.12:8060")], &[]);
    for s in &servers {
        s.serve(Kind::Solicit, 1, 60);
    }
    await_address(&c1, 1);
    c1.address("del", "192.0.2.1/24");
    c1.address("add", "192.0.2.33/24");
    let next = |s: &Tester| {
        let (from, source, m) = s.await_packet("Rebind", |from, p| {
            let (source, m) = dhcp_of(p)?;
            (m.kind == Kind::Rebind).then_some((from, source, m))
        });
        assert_eq!((from, source), (l2("192.0.2.33:8060"), aero_address(acp(1))));
        assert_eq!(m.server, None);
        (Instant::now(), m)
    };
    let first = [next(&servers[0]).0, next(&servers[1]).0];
    for (s, before) in servers.iter().zip(first) {
        let (again, m) = next(s);
        let gap = again - before;
        // IRT 1 s with a tenth of spread; not the 10 s of an ordinary Rebind.
        assert!(gap > Duration::from_millis(500) && gap < Duration::from_secs(4), "{gap:?}");
        s.reply(l2("192.0.2.33:8060"), aero_address(acp(1)), &m, 1, 60);
    }
}

#[test]
fn a_clients_solicit_and_first_packet_are_unicast_to_its_server() {
    let _row = aero_elements::covers(&["C1", "D1"]);
    for u in BOTH {
        let net = Net::new();
        let (s1, c1) = (net.at("s1", u, 11), net.at("c1", u, 1));
        // Bound to its own address: what was sent to a multicast address would not come here.
        let server = Tester::at(&s1, &u.socket(11, 8060));
        start_client(&c1, 1, &[l2(&u.socket(11, 8060))], &[]);
        let (from, solicit, raw) = server.await_packet("Solicit", |from, p| {
            let (_, m) = dhcp_of(p)?;
            (m.kind == Kind::Solicit).then_some((from, m, p.to_vec()))
        });
        let packet = Packet::parse(&raw).unwrap();
        assert_eq!((packet.source, packet.destination), (BOOTSTRAP_ADDRESS, ALL_DHCP_SERVERS));
        assert_eq!((from, packet.hop_limit), (l2(&u.socket(1, 8060)), 255));
        server.reply(from, BOOTSTRAP_ADDRESS, &solicit, 1, 40);
        await_address(&c1, 1);
        let host = c1.udp(&format!("[{}]:0", inner(1)));
        // Somebody in the service prefix of whom the Client knows nothing.
        host.send_to(b"first packet", format!("[{}]:7", inner(9))).unwrap();
        let (from, packet) = server.await_packet("data", |from, p| {
            text_of(p).eq("first packet").then(|| (from, p.to_vec()))
        });
        assert_eq!(from, l2(&u.socket(1, 8060)));
        assert_eq!(Packet::parse(&packet).unwrap().destination, inner(9));
    }
}

#[test]
fn prefix_information_is_ignored_and_no_duplicate_address_detection_is_done() {
    let _row = aero_elements::covers(&["J3b"]);
    let net = Net::new();
    let (s1, c1) = (net.at("s1", Underlay::V4, 11), net.at("c1", Underlay::V4, 1));
    let server = Tester::at(&s1, "192.0.2.11:8060");
    let client = l2("192.0.2.1:8060");
    start_client(&c1, 1, &[l2("192.0.2.11:8060")], &[]);
    server.serve(Kind::Solicit, 1, 40);
    await_address(&c1, 1);
    // RFC 4861 section 4.2 and 4.6.2: lifetime 1800, one prefix with L and A set.
    let mut body = vec![0; 8];
    body.extend([3, 4, 64, 0xc0, 0, 0, 7, 8, 0, 0, 7, 8, 0, 0, 0, 0]);
    body.extend("2001:db8:0:77::".parse::<std::net::Ipv6Addr>().unwrap().octets());
    let head = [64, 0, 7, 8];
    for to in [aero_address(acp(1)), "ff02::1".parse().unwrap()] {
        let ra = ip::icmpv6(server.server_id(), to, (134, 0, head), &body).unwrap();
        server.send(client, &ra);
    }
    // The next probe shows that the Client lives, and has had time for the advertisement.
    let mut solicitations = 0;
    server.await_packet("probe", |_, p| {
        let nd = nd_of(p)?;
        assert!(!nd.source.is_unspecified(), "duplicate address detection");
        solicitations += 1;
        (solicitations == 2).then_some(())
    });
    let shown = c1.ip("-6 addr show");
    assert!(!shown.contains("2001:db8:0:77:"), "{shown}");
    assert!(!c1.ip("-6 route").contains("default"));
}

#[test]
fn the_server_is_found_in_dns_and_a_list_of_servers_overrides_it() {
    let _row = aero_elements::covers(&["E3", "F2"]);
    let net = Net::new();
    let u = Underlay::V4;
    let (s1, s2) = (net.at("s1", u, 11), net.at("s2", u, 12));
    let (t1, t2) = (Tester::at(&s1, "192.0.2.11:8060"), Tester::at(&s2, "192.0.2.12:8060"));
    let name_server = net.at("dns", u, 53).udp("192.0.2.53:53");
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = name_server.recv_from(&mut buffer) {
            let answer =
                dns_answer(&buffer[..length], "linkupnetworks.example.net", [192, 0, 2, 12]);
            let _ = name_server.send_to(&answer, from);
        }
    });
    let c1 = net.at("c1", u, 1);
    // `ip netns exec` puts this file in the place of /etc/resolv.conf.
    let etc = std::path::Path::new("/etc/netns").join(&c1.netns);
    std::fs::create_dir_all(&etc).unwrap();
    std::fs::write(etc.join("resolv.conf"), "search example.net\nnameserver 192.0.2.53\n").unwrap();
    let quiet = |t: &Tester| t.receive(super::tester::QUIET).is_none();
    for more in [&["--domain", "example.net"][..], &[]] {
        start_client(&c1, 1, &[], more);
        t2.serve(Kind::Solicit, 1, 40);
        assert!(quiet(&t1), "only the Server that DNS has is asked");
        c1.kill("c1");
    }
    start_client(&c1, 1, &[l2("192.0.2.11:8060")], &["--domain", "example.net"]);
    t1.serve(Kind::Solicit, 1, 40);
    while t2.receive(super::tester::QUIET).is_some_and(|(_, p)| dhcp_of(&p).is_none()) {}
    assert!(quiet(&t2));
}

/// An A record for `name`, an empty answer for other types, NXDOMAIN for other names.
fn dns_answer(query: &[u8], name: &str, address: [u8; 4]) -> Vec<u8> {
    let mut wire: Vec<u8> = Vec::new();
    for label in name.split('.') {
        wire.push(u8::try_from(label.len()).unwrap());
        wire.extend(label.bytes());
    }
    wire.push(0);
    let ours = query.get(12..).is_some_and(|q| q.to_ascii_lowercase().starts_with(&wire));
    let end = if ours { 12 + wire.len() + 4 } else { query.len() };
    let kind_a = ours && query[12 + wire.len()..].starts_with(&[0, 1]);
    let mut answer = query[..end].to_vec();
    answer[2..12].copy_from_slice(&[0x81, if ours { 0x80 } else { 0x83 }, 0, 1, 0, 0, 0, 0, 0, 0]);
    if kind_a {
        answer[7] = 1;
        answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4]);
        answer.extend(address);
    }
    if !ours {
        // What follows the question (EDNS) is cut off with the rest.
        let zero = query[12..].iter().position(|b| *b == 0).unwrap_or(0);
        answer.truncate(12 + zero + 5);
    }
    answer
}

#[test]
fn a_server_that_dies_costs_the_clients_of_two_nothing_and_those_of_another_nothing_at_all() {
    let _row = aero_elements::covers(&["E5", "J7"]);
    let net = Net::new();
    let u = Underlay::V4;
    let file = net.file("t.yaml", &table(40));
    let (s1, s2) = (net.at("s1", u, 11), net.at("s2", u, 12));
    let both = [start_server(&s1, u, 11, &file), start_server(&s2, u, 12, &file)];
    let hosts = [net.at("c1", u, 1), net.at("c2", u, 2), net.at("c3", u, 3), net.at("c4", u, 4)];
    for (n, host) in (1u16..).zip(&hosts) {
        // Clients 1 and 2 have leases at both, 3 and 4 at the second only.
        start_client(host, n, if n <= 2 { &both } else { &both[1..] }, &[]);
        await_address(host, n);
    }
    for host in &hosts[..2] {
        await_that("leases at both", SOON, || {
            host.log(&host.name).matches("delegated").count() == 2
        });
    }
    let mut two = Session::open((&hosts[0], addr(1)), (&hosts[1], addr(2)));
    let mut other = Session::open((&hosts[2], addr(3)), (&hosts[3], addr(4)));
    two.echo("before");
    s1.kill("s1");
    let longest = |session: &mut Session| {
        let end = Instant::now() + Duration::from_secs(6);
        let mut longest = Duration::ZERO;
        while Instant::now() < end {
            longest = longest.max(session.echo("still there"));
            std::thread::sleep(Duration::from_millis(20));
        }
        longest
    };
    let (took, longest) = std::thread::scope(|scope| {
        let two = scope.spawn(|| longest(&mut two));
        let other = longest(&mut other);
        (two.join().unwrap(), other)
    });
    println!("a Server dies: its Clients waited {took:?} at most, those of another {longest:?}");
    assert!(longest < Duration::from_secs(2), "Clients of the other Server waited {longest:?}");
    for host in &hosts[..2] {
        let log = host.log(&host.name);
        assert_eq!(log.matches("delegated").count(), 2, "no new delegation was needed");
        assert!(!log.contains("not served here"));
    }
}

#[test]
fn a_client_that_ends_releases_its_lease_and_takes_its_interface_away() {
    let net = Net::new();
    let u = Underlay::V4;
    let s1 = net.at("s1", u, 11);
    let server = start_server(&s1, u, 11, &net.file("t.yaml", &table(40)));
    let c1 = net.at("c1", u, 1);
    let underlay_before = c1.ip("-o addr show dev eth0");
    let routes_before = c1.ip("route") + &c1.ip("-6 route");
    start_client(&c1, 1, &[server], &[]);
    await_address(&c1, 1);
    let status = c1.run(agent().to_str().unwrap(), &["client", "--status"]);
    for text in [&duid_text(1), "2001:db8:0:1::/64  served here", "192.0.2.11:8060  answers, lease"]
    {
        assert!(status.contains(text), "{status}");
    }
    assert!(c1.stop("c1").success());
    await_that("the lease is released", SOON, || net.log("s1").contains("why=Released"));
    assert!(!c1.ip("link").contains("aero0"));
    assert_eq!(c1.ip("-o addr show dev eth0"), underlay_before);
    assert_eq!(c1.ip("route") + &c1.ip("-6 route"), routes_before);

    start_client(&c1, 1, &[server], &["--keep"]);
    await_address(&c1, 1);
    assert!(c1.stop("c1").success());
    assert!(c1.ip("-6 addr show dev aero0").contains(&inner(1).to_string()));
    assert_eq!(net.log("s1").matches("why=Released").count(), 1);
    assert!(c1.ip("-6 route").contains("2001:db8::/32 dev aero0"));
    // The next run takes all of it up.
    start_client(&c1, 1, &[server], &[]);
    await_that("it is delegated again", SOON, || net.log("c1").matches("delegated").count() == 3);
}

#[test]
fn the_underlay_and_its_routers_are_untouched_and_need_nothing_of_aero() {
    let _row = aero_elements::covers(&["B1", "B2", "C1a", "D4"]);
    let net = Net::new();
    let u = Underlay::V4;
    let file = net.file("t.yaml", &table(40));
    let s1 = net.at("s1", u, 11);
    let server = start_server(&s1, u, 11, &file);
    // c1 - router - underlay - c2: the Client is not on the Server's segment.
    let router = net.at("r", u, 254);
    let c1 = net.behind("c1", &router, "198.51.100.1/24", "198.51.100.254/24");
    let c2 = net.at("c2", u, 2);
    for host in [&s1, &c2] {
        host.ip("route add 198.51.100.0/24 via 192.0.2.254");
    }
    let underlay = |c1: &Host<'_>| {
        let (a, b) = ("198.51.100.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        reaches((c1, a), (&c2, b), SOON) && reaches((&c2, b), (c1, a), SOON)
    };
    let routes = router.ip("route") + &router.ip("-6 route");
    assert!(underlay(&c1));
    let captured = super::decode::capture(&router, "");
    start_client(&c1, 1, &[server], &[]);
    start_client(&c2, 2, &[server], &[]);
    await_address(&c1, 1);
    await_address(&c2, 2);
    assert!(reaches((&c1, addr(1)), (&c2, addr(2)), SOON));
    assert!(reaches((&c2, addr(2)), (&c1, addr(1)), SOON));
    assert_eq!(router.ip("route") + &router.ip("-6 route"), routes, "no ACP route in the underlay");
    let seen = |filter: &str| {
        let file = captured.to_str().unwrap();
        let fields = ["-r", file, "-Y", filter, "-T", "fields", "-e", "frame.number"];
        // While it is being written its end may be cut.
        try_run("tshark", &fields).unwrap_or_default()
    };
    let aero = "ip.addr == 192.0.2.11 || ip.addr == 192.0.2.2";
    await_that("Solicit, Reply and data both ways", SOON, || seen(aero).lines().count() >= 4);
    router.stop("capture-r");
    assert_eq!(seen(&format!("({aero}) && !(udp.srcport == 8060 && udp.dstport == 8060)")), "");
    assert!(underlay(&c1));
    for name in ["c1", "c2", "s1"] {
        let host = [&c1, &c2, &s1].into_iter().find(|h| h.name == name).unwrap();
        host.stop(name);
    }
    assert!(underlay(&c1));
}

#[test]
fn a_mobile_router_serves_two_networks_behind_it_before_and_after_it_moved() {
    let _row = aero_elements::covers(&["B3", "J8"]);
    let net = Net::new();
    let u = Underlay::V4;
    let with_56 = table(40)
        .replace(&format!("prefixes: [\"{}\"]", acp(3)), "prefixes: [\"2001:db8:0:300::/56\"]");
    let s1 = net.at("s1", u, 11);
    let server = start_server(&s1, u, 11, &net.file("t.yaml", &with_56));
    let (router, c2) = (net.at("c3", u, 3), net.at("c2", u, 2));
    start_client(&router, 3, &[server], &[]);
    start_client(&c2, 2, &[server], &[]);
    await_address(&c2, 2);
    await_that("the /56 is there", SOON, || net.log("c3").contains("2001:db8:0:300::/56"));
    router.run("sysctl", &["-qw", "net.ipv6.conf.all.forwarding=1"]);
    let behind = [("h1", "2001:db8:0:301"), ("h2", "2001:db8:0:3ff")].map(|(name, net64)| {
        let host = net.behind(name, &router, &format!("{net64}::5/64"), &format!("{net64}::1/64"));
        (host, format!("{net64}::5").parse::<IpAddr>().unwrap())
    });
    let all_reached = || {
        for (host, address) in &behind {
            assert!(reaches((&c2, addr(2)), (host, *address), SOON), "{address}");
            assert!(reaches((host, *address), (&c2, addr(2)), SOON), "from {address}");
        }
    };
    all_reached();
    router.address("del", "192.0.2.3/24");
    router.address("add", "192.0.2.33/24");
    await_that("the Server has followed", SOON, || net.log("s1").contains("at=192.0.2.33:8060"));
    all_reached();
}

#[test]
fn behind_a_nat_the_mapped_port_is_served_and_kept_open() {
    let net = Net::new();
    let u = Underlay::V4;
    let s1 = net.at("s1", u, 11);
    let server = start_server(&s1, u, 11, &net.file("t.yaml", &table(40)));
    let nat = net.at("nat", u, 254);
    let c1 = net.behind("c1", &nat, "198.51.100.1/24", "198.51.100.254/24");
    let c2 = net.at("c2", u, 2);
    let rules = net.file(
        "nat.nft",
        "table ip nat { chain post { type nat hook postrouting priority srcnat; policy accept;\n\
         oifname \"eth0\" meta l4proto udp masquerade to :40000-40100\n}\n}\n",
    );
    nat.run("nft", &["-f", rules.to_str().unwrap()]);
    // A mapping that is idle for longer than this is forgotten.
    for name in ["udp_timeout", "udp_timeout_stream"] {
        nat.run("sysctl", &["-qw", &format!("net.netfilter.nf_conntrack_{name}=3")]);
    }
    start_client(&c1, 1, &[server], &[]);
    start_client(&c2, 2, &[server], &[]);
    await_address(&c1, 1);
    await_address(&c2, 2);
    await_that("the mapped port is registered", SOON, || {
        net.log("s1").contains("prefix=2001:db8:0:1::/64 at=192.0.2.254:40")
    });
    assert!(reaches((&c2, addr(2)), (&c1, addr(1)), SOON));
    std::thread::sleep(Duration::from_secs(5));
    // One datagram, and no way for the Client to have opened the mapping anew just before.
    let to_c1 = c1.udp(&format!("[{}]:0", inner(1)));
    to_c1.set_read_timeout(Some(SOON)).unwrap();
    let from_c2 = c2.udp(&format!("[{}]:0", inner(2)));
    from_c2.send_to(b"after idling", to_c1.local_addr().unwrap()).unwrap();
    let mut buffer = [0; 32];
    assert_eq!(to_c1.recv(&mut buffer).unwrap(), 12, "the mapping was kept open");
}

#[test]
fn solicitations_and_renewals_come_from_the_aero_address_with_hop_limit_255() {
    for u in BOTH {
        let net = Net::new();
        let (s1, c1) = (net.at("s1", u, 11), net.at("c1", u, 1));
        let server = Tester::at(&s1, &u.socket(11, 8060));
        start_client(&c1, 1, &[l2(&u.socket(11, 8060))], &[]);
        server.serve(Kind::Solicit, 1, 8);
        let own = aero_address(acp(1));
        let mut seen = (false, false);
        server.await_packet("both", |_: LinkLayerAddress, p| {
            let packet = Packet::parse(p).unwrap();
            assert_eq!((packet.source, packet.hop_limit), (own, 255));
            if let Some(nd) = nd_of(p) {
                let target = server.server_id();
                assert_eq!(nd.message, NdMessage::Solicitation { target });
                seen.0 = true;
            }
            seen.1 |= dhcp_of(p).is_some_and(|(_, m)| m.kind == Kind::Renew);
            (seen == (true, true)).then_some(())
        });
    }
}
