//! Anything dies: how long until traffic flows again.

use aero_elements::faults::{Level, held};
use nix::sys::signal::Signal;

use super::*;
use crate::net::{await_address, start_client};

/// How long after BGP's hold time (3 s) it must be over, on a machine that does other things too.
pub(super) const MARGIN: Duration = Duration::from_secs(5);
pub(super) const HOLD: Duration = Duration::from_secs(3);

/// Clients 1 at the first Server, 2 at the second, 3 at both.
pub(super) fn clients<'a>(link: &Link<'a>) -> Vec<Host<'a>> {
    let hosts: Vec<Host<'a>> = (1..=3).map(|n| link.net.at(&format!("c{n}"), link.u, n)).collect();
    start_client(&hosts[0], 1, &[link.server(0)], &[]);
    start_client(&hosts[1], 2, &[link.server(1)], &[]);
    start_client(&hosts[2], 3, &[link.server(0), link.server(1)], &[]);
    for (n, host) in (1..).zip(&hosts) {
        await_address(host, n);
    }
    for relay in &link.relays {
        await_that("the Relay knows all", CONVERGED, || routes(relay) == acps(1..=3));
    }
    hosts
}

/// Kills something under traffic; the silence that a correspondent saw.
pub(super) fn silence(
    what: &str,
    from: (&Host<'_>, IpAddr),
    to: (&Host<'_>, IpAddr),
    kill: impl FnOnce(),
) -> Duration {
    let stream = Stream::start(from, to);
    let at = Instant::now();
    kill();
    // What dies unnoticed at first is noticed in this time, or never.
    while at.elapsed() < HOLD + MARGIN {
        std::thread::sleep(Duration::from_millis(100));
    }
    stream.await_flow(at + HOLD, HOLD + MARGIN);
    let gap = stream.longest_gap(at);
    println!("{what}: {gap:?} of silence");
    gap
}

#[test]
fn a_server_that_is_killed_is_withdrawn_in_the_hold_time_and_its_other_clients_go_by_the_other() {
    let net = Net::new();
    let link = Link::start(&net, Underlay::V4, 2, 2, "");
    let hosts = clients(&link);
    let (s1, s2) = (&link.servers[0], &link.servers[1]);
    // Both Servers announce Client 3; nothing that the first one's death does may lose it.
    let at = Instant::now();
    let gap = silence(
        "kill -9 of a Server, X to a Client of both",
        (&link.x, x_address()),
        (&hosts[2], addr(3)),
        || {
            s1.kill("s1");
        },
    );
    assert!(gap < HOLD + MARGIN, "{gap:?}");
    for relay in &link.relays {
        await_that("the Relay knows who is left", HOLD + MARGIN, || routes(relay) == acps([2, 3]));
    }
    figure_ms("server", gap);
    println!("withdrawn at most {:?} after the kill", at.elapsed());
    assert_eq!(routes(s2), acps([2, 3]));
    // It comes back without memory: what its run before has announced is gone, until its Clients
    // are there again.
    link.start_server(s1, 11);
    for relay in &link.relays {
        await_that("all are back", CONVERGED, || routes(relay) == acps(1..=3));
    }
    assert!(s1.log("s1").contains("withdrawn: an earlier run's clients stale=2"));
}

#[test]
fn of_two_relays_one_is_killed_and_the_link_and_the_outside_go_by_the_other() {
    let _row = aero_elements::covers(&["R3c"]);
    let mut case = held(&["A2"], Level::Namespaces);
    let net = Net::new();
    let link = Link::start(&net, Underlay::V4, 2, 2, "");
    let hosts = clients(&link);
    // Which Relay a Server prefers is its own choice: kill the one that this one uses.
    let counter = |relay: &Host<'_>| counter(relay, "aero_tunneled_packets_total");
    let before = [counter(&link.relays[0]), counter(&link.relays[1])];
    let stream = Stream::start((&hosts[0], addr(1)), (&hosts[1], addr(2)));
    std::thread::sleep(Duration::from_millis(300));
    let _ = stream.longest_gap(Instant::now());
    let used =
        usize::from(counter(&link.relays[1]) - before[1] > counter(&link.relays[0]) - before[0]);
    let name = link.relays[used].name.clone();
    let outside = Stream::start((&link.x, x_address()), (&hosts[2], addr(3)));
    let at = Instant::now();
    let gap = silence(
        "kill -9 of a Relay, from Client to Client",
        (&hosts[0], addr(1)),
        (&hosts[1], addr(2)),
        || {
            link.relays[used].kill(&name);
        },
    );
    figure_ms("relay", gap);
    outside.await_flow(at + HOLD, HOLD + MARGIN);
    let from_outside = outside.longest_gap(at);
    figure_ms("relay_from_outside", from_outside);
    println!("and from X to a Client: {from_outside:?} of silence at most");
    assert!(gap.max(from_outside) < HOLD + MARGIN, "{gap:?}, {from_outside:?}");
    case.figure(format!(
        "from Client to Client {:.1} s of silence (hold time 3 s), from outside {:.1} s",
        gap.as_secs_f64(),
        from_outside.as_secs_f64()
    ));
    for server in &link.servers {
        assert_eq!(defaults(server), 1, "one Relay is left");
    }
    link.start_relay(&link.relays[used], 21 + u16::try_from(used).unwrap());
    link.await_sessions();
    for relay in &link.relays {
        await_that("both know all", CONVERGED, || routes(relay) == acps(1..=3));
    }
}

#[test]
fn bird_is_killed_and_started_again_and_no_packet_is_lost() {
    let net = Net::new();
    let link = Link::start(&net, Underlay::V4, 2, 2, "");
    let hosts = clients(&link);
    for (host, n) in [(&link.servers[0], 11), (&link.relays[0], 21), (&link.relays[1], 22)] {
        let name = format!("bird-{}", host.name);
        let gap = silence(
            &format!("kill -9 of BIRD on {}", host.name),
            (&hosts[0], addr(1)),
            (&hosts[1], addr(2)),
            || {
                host.kill(&name);
                link.start_bird(host, n, &["-R"]);
            },
        );
        figure_ms(&name.replace('-', "_of_"), gap);
        // Nothing is withdrawn, so nothing is lost but what the machine holds up: less than if a
        // session had run out.
        assert!(gap < HOLD, "{gap:?}");
        link.await_sessions();
        for relay in &link.relays {
            assert_eq!(routes(relay), acps(1..=3));
        }
    }
}

#[test]
fn a_server_that_ends_withdraws_before_it_goes() {
    let net = Net::new();
    let link = Link::start(&net, Underlay::V4, 2, 1, "");
    let hosts = clients(&link);
    let stream = Stream::start((&link.x, x_address()), (&hosts[2], addr(3)));
    let at = Instant::now();
    link.servers[0].signal("s1", Signal::SIGTERM);
    await_that("the Relay knows who is left", CONVERGED, || {
        routes(&link.relays[0]) == acps([2, 3])
    });
    let withdrawn = at.elapsed();
    assert!(link.servers[0].wait("s1").success());
    assert_eq!(routes(&link.servers[0]), acps([]));
    stream.await_flow(Instant::now(), SOON);
    let gap = stream.longest_gap(at);
    figure_ms("server_that_ends", gap);
    println!("a Server ends: withdrawn after {withdrawn:?}, {gap:?} of silence at most");
    assert!(gap < HOLD, "{gap:?}");
}

#[test]
fn a_speaker_in_a_wrong_as_gets_no_session() {
    let net = Net::new();
    let link = Link::start(&net, Underlay::V4, 2, 1, "");
    let (server, relay) = (&link.servers[0], &link.relays[0]);
    server.kill("bird-s1");
    // As if somebody had given this Server another number than the Relay knows.
    let config = net.dir.path().join("s1.conf");
    let text = std::fs::read_to_string(&config).unwrap();
    let line = text.lines().find(|l| l.trim().starts_with("local fe80::")).unwrap();
    let own = line.trim().trim_end_matches(';').rsplit(' ').next().unwrap();
    std::fs::write(&config, text.replace(own, "4294967290")).unwrap();
    start_bird(server, &config, &[]);
    await_that("the Relay says so", CONVERGED, || relay.log("bird-r1").contains("Bad peer AS"));
    assert!(birdc(relay, "show protocols").contains("Bad peer AS"));
    await_that("the Server has no Relay to send to", CONVERGED, || defaults(server) == 0);
}

#[test]
fn bfd_finds_a_dead_server_in_less_than_a_hold_time() {
    let net = Net::new();
    let link = Link::start(&net, Underlay::V4, 2, 1, "bgp: {bfd: true}");
    let hosts = clients(&link);
    let at = Instant::now();
    let stream = Stream::start((&link.x, x_address()), (&hosts[2], addr(3)));
    link.servers[0].kill("s1");
    await_that("the Relay knows who is left", CONVERGED, || {
        routes(&link.relays[0]) == acps([2, 3])
    });
    let noticed = at.elapsed();
    stream.await_flow(Instant::now(), SOON);
    let gap = stream.longest_gap(at);
    figure_ms("server_with_bfd", gap);
    println!("kill -9 of a Server with BFD: noticed after {noticed:?}, {gap:?} of silence");
    assert!(gap < HOLD, "{gap:?}");
}

#[test]
fn ipv4_prefixes_go_by_the_same_sessions() {
    let net = Net::new();
    let link = Link::prepare(&net, Underlay::V6, 1, 1, "");
    let acp: IpNet = "198.51.100.7/32".parse().unwrap();
    let duid = crate::tester::duid_text(7);
    let rows = format!(
        "servicePrefixes: ['198.51.100.0/24']\nauthentication: None\nclients:\n- {{duid: {duid}, prefixes: ['{acp}']}}\n"
    );
    net.file("t.yaml", &rows);
    link.start_all_but_fabric();
    let client = net.at("c7", link.u, 7);
    start_client(&client, 7, &[link.server(0)], &[]);
    let want: BTreeSet<IpNet> = [acp].into();
    await_that("the Relay has it", CONVERGED, || routes(&link.relays[0]) == want);
    let shown = link.relays[0].ip(&format!("-4 route show table {TABLE}"));
    assert!(shown.contains("via inet6 fe80::"), "RFC 8950: {shown}");
    // From the Relay's own network to the Client.
    link.relays[0].ip("addr add 203.0.113.1/32 dev lo");
    let from = (&link.relays[0], "203.0.113.1".parse().unwrap());
    assert!(crate::net::reaches(from, (&client, "198.51.100.7".parse().unwrap()), SOON));
}
