//! A path of the underlay is cut between two of a link's parts, both of which live; and a Client
//! loses all its Servers. How long until traffic flows again.

use super::failures::{HOLD, MARGIN, clients, silence};
use super::*;

/// A Client's own bound for a Server that does not answer (docs/limits.md), and what a busy machine
/// takes.
const WATCH: Duration = Duration::from_millis(1500);

fn mac(host: &Host<'_>) -> String {
    let shown = host.ip("link show dev eth0");
    let mut words = shown.split_whitespace().skip_while(|w| *w != "link/ether");
    words.nth(1).unwrap().to_string()
}

/// Nothing passes between two hosts any more, and neither is told.
fn cut(a: &Host<'_>, b: &Host<'_>) {
    for (host, other) in [(a, b), (b, a)] {
        let rules = format!(
            "table inet cut {{\nchain from {{\ntype filter hook prerouting priority -300; policy accept;\n\
             ether saddr {} drop\n}}\n}}\n",
            mac(other)
        );
        let file = host.net.file(&format!("{}.nft", host.name), &rules);
        host.run("nft", &["-f", file.to_str().unwrap()]);
    }
}

fn heal(a: &Host<'_>, b: &Host<'_>) {
    for host in [a, b] {
        host.run("nft", &["delete", "table", "inet", "cut"]);
    }
}

/// The Server by which a Client of both sends.
fn default_of(host: &Host<'_>) -> usize {
    let text = host.inside(|| http_get("127.0.0.1:9062", "/status"));
    let body = text.split("\r\n\r\n").nth(1).unwrap();
    let status: serde_json::Value = serde_json::from_str(body).unwrap();
    let servers = status["servers"].as_array().unwrap();
    let default = servers.iter().find(|s| s["default"] == true).unwrap();
    usize::from(default["address"] == "192.0.2.12:8060")
}

/// The Relay by which the first Server sends.
fn relay_in_use(link: &Link<'_>, from: (&Host<'_>, IpAddr), to: (&Host<'_>, IpAddr)) -> usize {
    let count = |n: usize| counter(&link.relays[n], "aero_tunneled_packets_total");
    let before = [count(0), count(1)];
    let stream = Stream::start(from, to);
    std::thread::sleep(Duration::from_millis(500));
    let _ = stream.longest_gap(Instant::now());
    usize::from(count(1) - before[1] > count(0) - before[0])
}

#[test]
fn a_path_that_is_cut_is_gone_round() {
    let net = Net::new();
    let link = Link::start(&net, Underlay::V4, 2, 2, "");
    let hosts = clients(&link);
    let client = |n: u16| (&hosts[usize::from(n) - 1], addr(n));
    let x = (&link.x, x_address());
    let (mut all, bgp) = (Vec::new(), HOLD + MARGIN);
    let mut measure = |name: &str, bound: Duration, from, to, a: &Host<'_>, b: &Host<'_>| {
        let what = format!("cut between {name}");
        let gap = silence(&what, from, to, || cut(a, b));
        heal(a, b);
        println!("{what}: bound {bound:?}");
        figure_ms(&format!("cut_{}", name.replace([' ', '-'], "_")), gap);
        all.push((what, gap, bound));
        link.await_sessions();
        await_that("the fabric knows the link", CONVERGED, || fabric_paths(&link.router) == 2);
    };
    let server = &link.servers[default_of(&hosts[2])];
    let to = if server.name == "s1" { 2 } else { 1 };
    measure("Client and Server", WATCH, client(3), client(to), &hosts[2], server);
    // Client 1 is at the first Server, 2 at the second: by a Relay.
    let relay = &link.relays[relay_in_use(&link, client(1), client(2))];
    measure("Server and Relay", bgp, client(1), client(2), &link.servers[0], relay);
    let [s1, s2] = [&link.servers[0], &link.servers[1]];
    // Neither needs the other, but for hand-overs.
    measure("Server and Server", WATCH, client(1), client(2), s1, s2);
    let [r1, r2] = [&link.relays[0], &link.relays[1]];
    measure("Relay and Relay", WATCH, client(1), client(2), r1, r2);
    for (relay, name) in [(r1, "fabric and first Relay"), (r2, "fabric and second Relay")] {
        measure(name, bgp, x, client(3), relay, &link.router);
    }
    for (what, gap, bound) in &all {
        assert!(gap < bound, "{what}: {gap:?}");
    }
}

#[test]
fn a_client_that_loses_all_its_servers_is_back_soon_after_they_are() {
    let net = Net::new();
    let link = Link::start(&net, Underlay::V4, 2, 1, "");
    let hosts = clients(&link);
    let stream = Stream::start((&hosts[0], addr(1)), (&hosts[2], addr(3)));
    let died = Instant::now();
    for server in &link.servers {
        server.kill(&server.name);
    }
    std::thread::sleep(Duration::from_secs(6));
    // Without memory; a Client asks each four seconds or so.
    for (n, server) in (11..).zip(&link.servers) {
        link.start_server(server, n);
    }
    let back = Instant::now();
    stream.await_flow(back, SOON);
    let recovered = back.elapsed();
    let bound = Duration::from_secs(5) + MARGIN;
    println!(
        "kill -9 of both Servers of a Client: flows {recovered:?} after they are back, {:?} of silence \
         in all; bound {bound:?} after they are back",
        stream.longest_gap(died)
    );
    figure_ms("both_servers_after_restart", recovered);
    assert!(recovered < bound, "{recovered:?}");
}
