//! Outside: routers that nobody here wrote learn the service prefixes, and nothing else whatever
//! happens on the link; and one of them in the place of our Relay's BGP daemon.

use std::os::unix::fs::PermissionsExt;

use aero_protocol::wire::dhcpv6::Kind;

use nix::sys::socket::{setsockopt, sockopt};

use super::*;
use crate::net::{await_address, await_some, reaches, start_client};
use crate::tester::{Tester, data, prefixes};

/// The service prefixes as routers print them.
const OURS: [&str; 2] = ["198.51.100.0/24", "2001:db8::/32"];

/// All prefixes of the link's address space that a text mentions.
fn mentioned(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| c.is_whitespace() || "\",()[]{}'".contains(c));
    let prefixes = words.filter_map(|w| w.parse::<IpNet>().ok().map(|p| p.to_string()));
    prefixes.filter(|p| p.starts_with("2001:db8:") || p.starts_with("198.51.100.")).collect()
}

fn ours() -> BTreeSet<String> {
    OURS.iter().map(|p| (*p).to_string()).collect()
}

#[test]
fn bird_in_the_fabric_hears_of_service_prefixes_only_through_a_thousand_moves() {
    let _row = aero_elements::covers(&["D3", "J5"]);
    let net = Net::new();
    let link = Link::start(&net, Underlay::V4, 2, 2, "");
    let client = net.at("c1", link.u, 1);
    start_client(&client, 1, &[link.server(0)], &[]);
    await_address(&client, 1);
    birdc(&link.router, "debug all { routes }");
    assert!(reaches((&link.x, x_address()), (&client, addr(1)), SOON), "into the link");
    let t = Tester::at(&net.at("t", link.u, 2), "192.0.2.2:8060");
    // A Client whose packets to the outside go by its Server: X gets plain IP.
    t.bind(link.server(0), 2);
    let x = link.x.udp("[3fff:1::2]:7");
    x.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let IpAddr::V6(to) = x_address() else { unreachable!() };
    await_that("out of the link", SOON, || {
        t.send(link.server(0), &data(inner(2), to, 64, "plain"));
        let mut buffer = [0; 64];
        x.recv_from(&mut buffer)
            .is_ok_and(|(n, from)| &buffer[..n] == b"plain" && from.ip() == addr(2))
    });
    let relay = &link.relays[0];
    for round in 0..500 {
        for server in [0, 1] {
            let duid = t.bind(link.server(server), 2);
            if round % 50 == 0 {
                await_that("the Relay has it", CONVERGED, || routes(relay).contains(&acp(2)));
            }
            let release = t.to_server(Kind::Release, 2, &duid);
            let reply = t.ask_from(
                aero_protocol::address::aero_address(acp(2)),
                link.server(server),
                &release,
            );
            assert!(prefixes(&reply.2).is_empty());
        }
    }
    await_that("the Relay has lost it", CONVERGED, || routes(relay) == acps([1]));
    let shown = birdc(&link.router, "show route");
    assert_eq!(mentioned(&shown), ours(), "{shown}");
    // Not even for a moment: BIRD has logged every route since before.
    let log = link.router.log("bird-rtr");
    assert!(mentioned(&log).is_subset(&ours()), "{:?}", mentioned(&log));
}

/// Starts FRR's daemons on a host; `options` are for bgpd.
pub fn start_frr(host: &Host<'_>, bgp: &str, options: &[&str]) {
    let dir = host.net.dir.path().join(format!("frr-{}", host.name));
    std::fs::create_dir_all(&dir).unwrap();
    // FRR insists on being itself; so it needs a directory of its own, and a way there.
    std::fs::set_permissions(host.net.dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
    run("chown", &["frr:frr", dir.to_str().unwrap()]);
    for (daemon, config) in [("zebra", ""), ("bgpd", bgp)] {
        std::fs::write(dir.join(format!("{daemon}.conf")), format!("hostname frr\n{config}"))
            .unwrap();
        let (program, arguments) = aero_e2e::frr::daemon(&dir, daemon);
        let options = if daemon == "bgpd" { options } else { &[] };
        let arguments: Vec<&str> =
            arguments.iter().map(String::as_str).chain(options.iter().copied()).collect();
        host.start(&format!("{daemon}-{}", host.name), &program, &arguments);
        await_that("the daemon is there", SOON, || dir.join(format!("{daemon}.vty")).exists());
    }
}

/// Asks FRR.
pub fn vtysh(host: &Host<'_>, command: &str) -> String {
    let dir = host.net.dir.path().join(format!("frr-{}", host.name));
    let arguments = [
        "netns",
        "exec",
        &host.netns,
        "vtysh",
        "--vty_socket",
        dir.to_str().unwrap(),
        "-c",
        command,
    ];
    try_run("ip", &arguments).unwrap_or_default()
}

/// A link with a Client at each Server and no router in the fabric yet.
fn with_clients(net: &Net) -> (Link<'_>, Vec<Host<'_>>) {
    let link = Link::prepare(net, Underlay::V4, 2, 2, "");
    link.start_all_but_fabric();
    let clients: Vec<Host<'_>> = (1..=2).map(|n| net.at(&format!("c{n}"), link.u, n)).collect();
    for (n, client) in (1..).zip(&clients) {
        start_client(client, n, &[link.server(usize::from(n) - 1)], &[]);
        await_address(client, n);
    }
    for relay in &link.relays {
        await_that("the Relay knows all", CONVERGED, || routes(relay) == acps([1, 2]));
    }
    (link, clients)
}

#[test]
fn what_the_fabric_announces_of_ours_and_a_default_nobody_asked_for_is_not_taken() {
    let _row = aero_elements::covers(&["J5"]);
    let net = Net::new();
    let (link, clients) = with_clients(&net);
    let statics =
        "route 2001:db8::/32 blackhole; route 2001:db8:0:2::/64 blackhole; route ::/0 blackhole;";
    link.start_fabric_with(&format!("protocol static {{ ipv6; {statics} }}"));
    for relay in &link.relays {
        let refused = await_some("the fabric's routes have come", CONVERGED, || {
            let shown = birdc(relay, "show route table all filtered");
            (shown.contains("2001:db8:0:2::/64") && shown.contains("::/0 ")).then_some(shown)
        });
        assert!(refused.contains("external0"), "{refused}");
        let taken = birdc(relay, "show route table all protocol external0");
        assert!(mentioned(&taken).is_empty() && !taken.contains("::/0"), "{taken}");
        assert_eq!(routes(relay), acps([1, 2]), "nothing is taken");
    }
    // Nor did it get to a Server, nor between two Clients.
    for server in &link.servers {
        assert_eq!(defaults(server), 2);
    }
    assert!(reaches((&clients[0], addr(1)), (&clients[1], addr(2)), SOON));
}

#[test]
fn frr_in_the_fabric_learns_service_prefixes_only_and_forwards_by_them() {
    let _row = aero_elements::covers(&["J5"]);
    let net = Net::new();
    let (link, clients) = with_clients(&net);
    let bgp = "router bgp 65000\n bgp router-id 10.9.9.9\n no bgp ebgp-requires-policy\n \
               no bgp default ipv4-unicast\n timers bgp 1 3\n \
               neighbor fd99::15 remote-as 4200000000\n neighbor fd99::16 remote-as 4200000000\n \
               neighbor fd99::15 timers connect 1\n neighbor fd99::16 timers connect 1\n \
               address-family ipv6 unicast\n  neighbor fd99::15 activate\n  neighbor fd99::16 activate\n \
               exit-address-family\n";
    start_frr(&link.router, bgp, &[]);
    await_that("FRR has routes by both Relays", CONVERGED, || fabric_paths(&link.router) == 2);
    let learnt = vtysh(&link.router, "show bgp ipv6 unicast");
    assert_eq!(mentioned(&learnt), [OURS[1].to_string()].into(), "{learnt}");
    for (n, client) in (1..).zip(&clients) {
        assert!(reaches((&link.x, x_address()), (client, addr(n)), SOON), "X reaches {n}");
    }
    // A Relay dies: the interface of its program has no carrier, and its BIRD says so at once.
    let at = Instant::now();
    link.relays[0].kill("r1");
    await_that("the fabric goes by the other", SOON, || fabric_paths(&link.router) == 1);
    println!("kill -9 of a Relay: FRR has withdrawn it after {:?}", at.elapsed());
}

#[test]
fn gobgp_in_the_fabric_learns_service_prefixes_only() {
    let _row = aero_elements::covers(&["J5"]);
    let net = Net::new();
    let (link, _clients) = with_clients(&net);
    let neighbour = |n: u16| {
        format!(
            "[[neighbors]]\n[neighbors.config]\nneighbor-address = \"fd99::{n:x}\"\npeer-as = 4200000000\n\
             [neighbors.timers.config]\nconnect-retry = 1\nhold-time = 3\nkeepalive-interval = 1\n\
             [[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"ipv6-unicast\"\n\
             [[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"ipv4-unicast\"\n"
        )
    };
    let config = format!(
        "[global.config]\nas = 65000\nrouter-id = \"10.9.9.9\"\n{}{}",
        neighbour(21),
        neighbour(22)
    );
    let config = net.file("gobgp.toml", &config);
    let arguments =
        ["-f", config.to_str().unwrap(), "--pprof-disable", "--api-hosts", "127.0.0.1:50051"];
    link.router.start("gobgpd", Path::new("/usr/bin/gobgpd"), &arguments);
    let rib = |family: &str| {
        let query = ["netns", "exec", &link.router.netns, "gobgp", "global", "rib", "-a", family];
        try_run("ip", &query).unwrap_or_default()
    };
    let learnt = await_some("GoBGP has learnt from both Relays", CONVERGED, || {
        let text = rib("ipv6") + &rib("ipv4");
        (text.matches("2001:db8::/32").count() == 2 && mentioned(&text).len() == 2).then_some(text)
    });
    assert_eq!(mentioned(&learnt), ours(), "{learnt}");
}

#[test]
fn frr_in_the_place_of_a_relays_bird_gets_the_client_prefixes_and_gives_a_default() {
    let _row = aero_elements::covers(&["R3b"]);
    let net = Net::new();
    let link = Link::prepare(&net, Underlay::V4, 2, 1, "");
    for (n, server) in (11..).zip(&link.servers) {
        link.start_server(server, n);
        link.start_bird(server, n, &[]);
    }
    let relay = &link.relays[0];
    link.start_relay(relay, 21);
    let each = |f: &dyn Fn(&str) -> String| f("fe80::c000:20b") + &f("fe80::c000:20c");
    let asn = |peer: &str| {
        let n = if peer.ends_with('b') { 11 } else { 12 };
        asn_of_server(&link, n)
    };
    let bgp = format!(
        "router bgp 4200000000\n bgp router-id 192.0.2.21\n no bgp ebgp-requires-policy\n \
         no bgp default ipv4-unicast\n timers bgp 1 3\n{} address-family ipv6 unicast\n{} exit-address-family\n",
        each(&|p| format!(
            " neighbor {p} remote-as {}\n neighbor {p} interface aero-bgp-r\n neighbor {p} timers connect 1\n",
            asn(p)
        )),
        each(&|p| format!("  neighbor {p} activate\n  neighbor {p} default-originate\n")),
    );
    start_frr(relay, &bgp, &[]);
    let clients: Vec<Host<'_>> = (1..=2).map(|n| net.at(&format!("c{n}"), link.u, n)).collect();
    for (n, client) in (1..).zip(&clients) {
        start_client(client, n, &[link.server(usize::from(n) - 1)], &[]);
        await_address(client, n);
    }
    for server in &link.servers {
        await_that("FRR's default is taken", CONVERGED, || defaults(server) == 1);
    }
    let want: BTreeSet<String> = acps([1, 2]).iter().map(ToString::to_string).collect();
    await_that("FRR has the client prefixes", CONVERGED, || {
        mentioned(&vtysh(relay, "show bgp ipv6 unicast")) == want
    });
    let shown = vtysh(relay, "show bgp ipv6 unicast 2001:db8:0:1::/64");
    assert!(shown.contains("fe80::c000:20b"), "next hop is the Server: {shown}");
}

/// The AS number that the generator has given a Server.
fn asn_of_server(link: &Link<'_>, n: u16) -> String {
    let config =
        std::fs::read_to_string(link.net.dir.path().join(format!("s{}.conf", n - 10))).unwrap();
    let line = config.lines().find(|l| l.trim().starts_with("local fe80::")).unwrap();
    line.trim().trim_end_matches(';').rsplit(' ').next().unwrap().to_string()
}

#[test]
fn an_unused_prefix_is_unreachable_at_the_relay_at_a_bounded_rate_and_enters_no_tunnel() {
    let _row = aero_elements::covers(&["J5b"]);
    let net = Net::new();
    let link = Link::start(&net, Underlay::V4, 1, 1, "");
    let t = Tester::at(&net.at("t", link.u, 2), "192.0.2.2:8060");
    t.bind(link.server(0), 2);
    await_that("the Relay knows it", CONVERGED, || routes(&link.relays[0]) == acps([2]));
    let tunneled = || counter(&link.relays[0], "aero_tunneled_packets_total");
    let before = tunneled();
    // ICMPv6 type 1 code 0 comes back as an error of a connected socket.
    let socket = link.x.udp("[3fff:1::2]:0");
    socket.connect("[2001:db8:0:77::1]:9").unwrap();
    setsockopt(&socket, sockopt::Ipv6RecvErr, &true).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    await_that("X is told", SOON, || {
        let _ = socket.send(b"x");
        let error = socket.recv(&mut [0; 8]).err().and_then(|e| e.raw_os_error());
        error == Some(nix::libc::ENETUNREACH)
    });
    // A flood of a thousand is answered at a bounded rate.
    let errors = || counter(&link.relays[0], "aero_icmp_errors_total");
    let (had, at) = (errors(), Instant::now());
    let drops = || counter(&link.relays[0], "aero_dropped_packets_total{reason=\"unreachable\"}");
    let seen = drops();
    await_that("the Relay has seen them", SOON, || {
        // Its device holds a few hundred; and a send may report what an earlier one was answered by.
        (0..200).for_each(|_| drop(socket.send(b"x")));
        drops() >= seen + 1000
    });
    let answers = errors() - had;
    let seconds = at.elapsed().as_secs() + 1;
    println!("a thousand packets to nobody: {answers} errors within {seconds} s");
    assert!(answers > 0 && answers <= 100 * (seconds + 1), "{answers} errors in {seconds} s");
    assert_eq!(tunneled(), before, "nothing entered the link");
    // What is somebody's does.
    socket.connect("[2001:db8:0:2::1]:9").unwrap();
    await_that("the link is entered", SOON, || {
        let _ = socket.send(b"x");
        tunneled() > before
    });
}
