//! What Relays know, and whom it reaches.

use aero_protocol::address::{ServerId, aero_address};
use aero_protocol::wire::dhcpv6::Kind;
use aero_protocol::wire::ip;

use nix::sys::signal::Signal;

use super::*;
use crate::net::{await_address, reaches, start_client};
use crate::tester::{Tester, prefixes};

#[test]
fn relays_know_the_clients_of_all_servers_and_every_pair_is_reached() {
    let net = Net::new();
    let link = Link::start(&net, Underlay::V4, 2, 2, "");
    let clients: Vec<Host<'_>> = (1..=3).map(|n| net.at(&format!("c{n}"), link.u, n)).collect();
    start_client(&clients[0], 1, &[link.server(0)], &[]);
    start_client(&clients[1], 2, &[link.server(1)], &[]);
    start_client(&clients[2], 3, &[link.server(0), link.server(1)], &[]);
    for (n, host) in (1..).zip(&clients) {
        await_address(host, n);
    }
    for relay in &link.relays {
        await_that("the Relay knows all", CONVERGED, || routes(relay) == acps(1..=3));
    }
    assert_eq!(routes(&link.servers[0]), acps([1, 3]));
    assert_eq!(routes(&link.servers[1]), acps([2, 3]));
    for (a, b) in [(1u16, 2u16), (2, 1), (1, 3), (3, 2)] {
        let (from, to) = (&clients[usize::from(a) - 1], &clients[usize::from(b) - 1]);
        assert!(reaches((from, addr(a)), (to, addr(b)), SOON), "{a} reaches {b}");
    }
}

/// What a Server has told a Relay by BGP so far: updates and withdrawals of client prefixes.
fn told(server: &Host<'_>) -> (u64, u64) {
    let shown = birdc(server, "show protocols all");
    // Accepted is the last column of both.
    let last = |name: &str| -> u64 {
        let rows = shown.lines().filter(|l| l.trim().starts_with(name));
        rows.filter_map(|l| l.split_whitespace().last()?.parse::<u64>().ok()).sum()
    };
    (last("Export updates:"), last("Export withdraws:"))
}

#[test]
fn a_lease_is_one_update_its_end_one_withdrawal_and_moves_within_a_server_are_none() {
    let _row = aero_elements::covers(&["C3", "D5", "L4"]);
    let net = Net::new();
    let link = Link::start(&net, Underlay::V4, 2, 1, "");
    let (s1, relay) = (&link.servers[0], &link.relays[0]);
    let before = told(s1);
    let host = net.at("t", link.u, 5);
    let t = Tester::at(&host, "192.0.2.5:8060");
    let duid = t.bind(link.server(0), 1);
    await_that("the Relay has it", CONVERGED, || routes(relay) == acps([1]));
    let shown = relay.ip(&format!("-6 route show table {TABLE}"));
    let id = ServerId::from_underlay(link.server(0).ip).address();
    assert!(shown.contains(&format!("via {id} ")), "the next hop is the Server: {shown}");
    assert_eq!(told(s1), (before.0 + 1, before.1), "one update");
    // The other Server announces nothing of it, and is not told by the Relay.
    assert_eq!(routes(&link.servers[1]), acps([]));
    assert!(!birdc(&link.servers[1], "show route table all").contains("2001:db8:0:1::/64"));
    // The Client moves: to other addresses, again and again.
    for n in 0..100u16 {
        let place = format!("192.0.2.5:{}", 20_000 + n);
        let there = Tester::at(&host, &place);
        let reply =
            there.ask_from(aero_address(acp(1)), link.server(0), &there.message(Kind::Rebind, 1)).2;
        assert_eq!(prefixes(&reply), [acp(1)]);
        await_that("the Server has followed", SOON, || {
            s1.log("s1").contains(&format!("at={place}"))
        });
    }
    assert_eq!(told(s1), (before.0 + 1, before.1), "a hundred moves and no update");
    let back = t.ask_from(aero_address(acp(1)), link.server(0), &t.message(Kind::Rebind, 1)).2;
    assert_eq!(prefixes(&back), [acp(1)]);
    let release = t.to_server(Kind::Release, 1, &duid);
    t.ask_from(aero_address(acp(1)), link.server(0), &release);
    await_that("the Relay has lost it", CONVERGED, || routes(relay) == acps([]));
    assert_eq!(told(s1), (before.0 + 1, before.1 + 1), "one withdrawal");
}

#[test]
fn in_a_macro_move_the_new_announcement_comes_first_and_the_old_withdrawal_after_five_seconds() {
    let _row = aero_elements::covers(&["L6"]);
    let net = Net::new();
    let link = Link::start(&net, Underlay::V4, 2, 1, "");
    let relay = &link.relays[0];
    let t = Tester::at(&net.at("t", link.u, 5), "192.0.2.5:8060");
    let old = t.bind(link.server(0), 1);
    await_that("the Relay has it", CONVERGED, || routes(relay) == acps([1]));
    // Every change of the Relay's BIRD from here on, and what the Relay's own engine made of it.
    birdc(relay, "debug all { routes }");
    let log = || relay.log("bird-r1");
    t.bind(link.server(1), 1);
    let id = |n: usize| ServerId::from_underlay(link.server(n).ip);
    let name = |n: usize| {
        let [.., a, b, c, d] = id(n).address().octets();
        format!("server_{a:02x}{b:02x}{c:02x}{d:02x}.ipv6 > ")
    };
    let (announced, withdrawn) = (format!("{}added", name(1)), format!("{}removed", name(0)));
    await_that("the new Server has announced it", SOON, || log().contains(&announced));
    assert!(!log().contains(&withdrawn), "before the old one has withdrawn anything");
    // The Release goes to the old Server, through the new one.
    let release = t.to_server(Kind::Release, 1, &old);
    let at = Instant::now();
    let to = (id(0).address(), 547);
    let source = (aero_address(acp(1)), 546);
    t.send(link.server(1), &ip::udp(source, to, &release.emit().unwrap()).unwrap());
    while !log().contains(&withdrawn) {
        assert!(at.elapsed() < SOON, "never withdrawn: {}", log());
        assert_eq!(routes(relay), acps([1]), "at no time is there no way");
        std::thread::sleep(Duration::from_millis(5));
    }
    let took = at.elapsed();
    println!("withdrawn {took:?} after the Release");
    assert!(took >= Duration::from_secs(4), "{took:?}");
    assert_eq!(routes(relay), acps([1]));
    let shown = relay.ip(&format!("-6 route show table {TABLE}"));
    assert!(shown.contains(&format!("via {} ", id(1).address())), "{shown}");
}

#[test]
fn a_server_that_is_added_to_the_file_is_taken_up_by_all_that_run() {
    let net = Net::new();
    let link = Link::prepare(&net, Underlay::V4, 2, 1, "");
    let file = net.dir.path().join("routes.yaml");
    let whole = std::fs::read_to_string(&file).unwrap();
    let second = format!("- {{address: '{}'}}\n", link.u.socket(12, 8060));
    std::fs::write(&file, whole.replace(&second, "")).unwrap();
    let (routes_file, bird_dir) = (file.to_str().unwrap(), net.dir.path().join("bird"));
    let start = |host: &Host<'_>, n: u16, role: &str| {
        let ips = format!("{},fd99::{n:x}", link.u.ip(n));
        let dir = bird_dir.join(&host.name);
        let directory = dir.to_str().unwrap();
        let mut arguments =
            vec!["bird", "--role", role, "--routes", routes_file, "--host-ips", &ips];
        arguments.extend(["--bgp-table", TABLE, "--directory", directory]);
        host.start(&format!("bird-{}", host.name), &agent(), &arguments);
        if role == "relay" {
            return link.start_relay(host, n);
        }
        let (own, table) = (link.u.ip(n), net.dir.path().join("t.yaml"));
        let mut arguments = vec!["server", "--host-ips", &own, "--routes", routes_file];
        arguments.extend(["--bgp-table", TABLE, "--table", table.to_str().unwrap()]);
        host.start(&host.name, &agent(), &arguments);
    };
    let (s1, s2, relay) = (&link.servers[0], &link.servers[1], &link.relays[0]);
    start(s1, 11, "server");
    start(relay, 21, "relay");
    await_that("the first is known", CONVERGED, || defaults(s1) == 1);
    // Its BIRD waits until the file knows it.
    start(s2, 12, "server");
    await_that("it says why it waits", SOON, || {
        s2.log("bird-s2").contains("192.0.2.12 is none of the Servers of this instance")
    });
    std::fs::write(&file, whole).unwrap();
    await_that("the second is known too", CONVERGED, || defaults(s2) == 1);
    let clients: Vec<Host<'_>> = (1..=2).map(|n| net.at(&format!("c{n}"), link.u, n)).collect();
    for (n, client) in (1..).zip(&clients) {
        start_client(client, n, &[link.server(usize::from(n) - 1)], &[]);
        await_address(client, n);
    }
    await_that("the Relay knows both", CONVERGED, || routes(relay) == acps([1, 2]));
    assert!(reaches((&clients[0], addr(1)), (&clients[1], addr(2)), SOON));
    assert!(relay.log("bird-r1").contains("BIRD is told of a change"));
    // A Server and its BIRD are told to end at once: the one stays until the other has withdrawn. If
    // it did not, the Relay would keep the routes for as long as a BIRD may take to come back.
    let at = Instant::now();
    s1.signal("bird-s1", Signal::SIGTERM);
    s1.signal("s1", Signal::SIGTERM);
    await_that("it is withdrawn", CONVERGED, || routes(relay) == acps([2]));
    println!("a Server and its BIRD end together: withdrawn after {:?}", at.elapsed());
    assert!(at.elapsed() < Duration::from_secs(15), "{:?}", at.elapsed());
    assert!(s1.wait("s1").success() && s1.wait("bird-s1").success());
    // Who asks twice does not wait, and leaves no BIRD behind.
    let birds = || run("ip", &["netns", "pids", &s2.netns]).lines().count();
    assert_eq!(birds(), 3, "the Server, the program beside it, its BIRD");
    s2.signal("bird-s2", Signal::SIGTERM);
    await_that("it waits for the Server", SOON, || s2.log("bird-s2").contains("SIGTERM: ending"));
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(s2.stop("bird-s2").code(), Some(143));
    await_that("its BIRD is gone with it", SOON, || birds() == 1);
    assert!(relay.stop("bird-r1").success(), "ends as it is told");
}
