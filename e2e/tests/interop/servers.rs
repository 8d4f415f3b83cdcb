//! Servers that go, told to or not, while their clients' packets go by them.

use std::net::IpAddr;
use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant};

use aero_protocol::address::{BOOTSTRAP_ADDRESS, LinkLayerAddress};
use aero_protocol::wire::dhcpv6::Kind;
use nix::sys::signal::Signal;

use super::net::{
    Host, Net, SOON, Underlay, agent, await_address, await_that, reaches, start_client,
};
use super::numbered::{Numbered, Outcome};
use super::tester::{Tester, inner, l2, table};

const EVERY: Duration = Duration::from_millis(5);

fn addr(n: u16) -> IpAddr {
    inner(n).into()
}

/// Two Servers that know each other, Clients 1 and 2 that cannot reach each other but by a Server,
/// and Client 3 that both reach straight.
struct Cluster<'a> {
    servers: [Host<'a>; 2],
    clients: [Host<'a>; 3],
}

const U: Underlay = Underlay::V4;

fn server_at(n: usize) -> LinkLayerAddress {
    l2(&U.socket(11 + u16::try_from(n).unwrap(), 8060))
}

fn start_peer(host: &Host<'_>, n: usize, table: &str) {
    let before = host.log(&host.name).matches("table read").count();
    let (own, other) = (server_at(n), server_at(1 - n));
    let (ip, peer) = (own.ip.to_string(), other.to_string());
    host.start(
        &host.name,
        &agent(),
        &["server", "--host-ips", &ip, "--table", table, "--peer", &peer],
    );
    await_that("the Server reads its table", SOON, || {
        host.log(&host.name).matches("table read").count() > before
    });
}

impl<'a> Cluster<'a> {
    fn start(net: &'a Net) -> Self {
        let table = net.file("t.yaml", &table(40));
        let servers = [net.at("s1", U, 11), net.at("s2", U, 12)];
        for (n, host) in servers.iter().enumerate() {
            start_peer(host, n, table.to_str().unwrap());
        }
        let clients = [1, 2, 3].map(|n| net.at(&format!("c{n}"), U, n));
        for (host, other) in [(&clients[0], 2), (&clients[1], 1)] {
            let rules = net.file(
                &format!("{}.nft", host.name),
                &format!(
                    "table ip f {{\nchain into {{\ntype filter hook input priority 0; policy accept;\n\
                     ip saddr {} drop\n}}\n}}\n",
                    U.ip(other)
                ),
            );
            host.run("nft", &["-f", rules.to_str().unwrap()]);
        }
        for (n, host) in (1..).zip(&clients) {
            start_client(host, n, &[server_at(0), server_at(1)], &[]);
            await_address(host, n);
        }
        let cluster = Self { servers, clients };
        for host in &cluster.clients {
            await_that("a lease at both Servers", SOON, || leases(host) == 2);
        }
        for (a, b) in [(0, 1), (1, 0)] {
            let (from, to) = (cluster.client(a), cluster.client(b));
            assert!(reaches(from, to, SOON), "by a Server");
        }
        cluster
    }

    fn client(&self, n: usize) -> (&Host<'a>, IpAddr) {
        (&self.clients[n], addr(u16::try_from(n).unwrap() + 1))
    }

    /// The Server that a client sends by.
    fn default_of(&self, n: usize) -> usize {
        let status = status(&self.clients[n]);
        let servers = status["servers"].as_array().unwrap();
        let default = servers.iter().find(|s| s["default"] == true).unwrap();
        usize::from(default["address"] == server_at(1).to_string().as_str())
    }

    fn server_name(&self, n: usize) -> &str {
        &self.servers[n].name
    }
}

fn status(host: &Host<'_>) -> serde_json::Value {
    let text = host.run("curl", &["-s", "--max-time", "5", "http://127.0.0.1:9062/status"]);
    serde_json::from_str(&text).unwrap()
}

fn leases(host: &Host<'_>) -> usize {
    let status = status(host);
    status["servers"].as_array().unwrap().iter().filter(|s| s["lease"] == true).count()
}

#[test]
fn a_server_that_is_told_to_end_sends_its_clients_to_the_other_and_no_packet_is_lost() {
    let net = Net::new();
    let cluster = Cluster::start(&net);
    let goes = cluster.default_of(0);
    let (there, back) = (
        Numbered::start(cluster.client(0), cluster.client(1), EVERY),
        Numbered::start(cluster.client(1), cluster.client(0), EVERY),
    );
    let at = Instant::now();
    let status = cluster.servers[goes].stop(cluster.server_name(goes));
    let took = at.elapsed();
    assert!(status.success());
    let confirmed = format!("server={} confirmed=true", server_at(goes));
    for (n, host) in cluster.clients.iter().enumerate() {
        assert!(host.log(&host.name).contains(&confirmed), "{} has not left", host.name);
        assert_eq!((leases(host), cluster.default_of(n)), (1, 1 - goes));
    }
    let said = net.log(cluster.server_name(goes));
    assert!(said.contains("clients=3 left=0"), "nobody was left behind");
    std::thread::sleep(Duration::from_secs(1));
    for stream in [there, back] {
        let Outcome { sent, lost, silence } = stream.end(at);
        println!(
            "SIGTERM of a Server: ended after {took:?}; {} of {sent} packets by it lost, \
             longest silence {silence:?}",
            lost.len()
        );
        assert_eq!(lost.len(), 0, "of {sent}: {lost:?}");
    }
    assert!(took < Duration::from_secs(5), "{took:?} though all had left");
}

/// Kills the Server that Client 1 sends by, or cuts it off; what the clients noticed.
fn server_dies(what: &str, die: impl FnOnce(&Host<'_>, &str)) -> Duration {
    let net = Net::new();
    let cluster = Cluster::start(&net);
    let (from, straight) = (cluster.client(2), cluster.client(0));
    let hear = |host: &Host<'_>| host.log(&host.name).contains("a direct path is open");
    let direct = Numbered::start(from, straight, EVERY);
    await_that("a direct path", SOON, || hear(&cluster.clients[2]));
    let dies = cluster.default_of(0);
    let by_server = Numbered::start(cluster.client(0), cluster.client(1), EVERY);
    std::thread::sleep(Duration::from_secs(1));
    let at = Instant::now();
    die(&cluster.servers[dies], cluster.server_name(dies));
    std::thread::sleep(Duration::from_secs(8));
    let Outcome { sent, lost, silence } = by_server.end(at);
    println!("{what}: {silence:?} of silence by the Server, {} of {sent} packets lost", lost.len());
    let of_direct = direct.end(at);
    println!(
        "{what}: {} of {} packets that go straight lost, longest silence {:?}",
        of_direct.lost.len(),
        of_direct.sent,
        of_direct.silence
    );
    assert_eq!(of_direct.lost.len(), 0, "of what goes straight");
    assert_eq!(cluster.default_of(0), 1 - dies);
    assert!(silence < Duration::from_secs(1), "{silence:?}");
    silence
}

#[test]
fn when_a_server_is_killed_what_went_by_it_goes_by_the_other_within_a_second() {
    let mut case = aero_elements::faults::held(&["A1"], aero_elements::faults::Level::Namespaces);
    let killed = server_dies("kill -9 of a Server", |host, name| {
        host.kill(name);
    });
    // As of a host that is off: nobody says that the Server is not there.
    let cut = server_dies("a Server cut off", |host, _| {
        host.ip("link set eth0 down");
    });
    case.figure(format!(
        "{} ms of silence after kill -9, {} ms where its host is off too (bound 1000 ms); of what \
         goes straight nothing is lost",
        killed.as_millis(),
        cut.as_millis()
    ));
}

#[test]
fn a_second_signal_ends_a_server_and_a_client_at_once() {
    let net = Net::new();
    let table = net.file("t.yaml", &table(40));
    let (s1, c1) = (net.at("s1", U, 11), net.at("c1", U, 1));
    start_peer(&s1, 0, table.to_str().unwrap());
    start_client(&c1, 1, &[server_at(0)], &[]);
    await_address(&c1, 1);
    // Its client has no other Server, so it waits.
    twice(&s1, "s1");
    // And the client waits for an answer to its Release.
    twice(&c1, "c1");
}

/// Asks a program to end that has something to wait for, and asks again.
fn twice(host: &Host<'_>, name: &str) {
    host.signal(name, Signal::SIGTERM);
    await_that("it has heard", SOON, || host.log(name).contains("SIGTERM: ending"));
    std::thread::sleep(Duration::from_millis(300));
    assert!(std::path::Path::new(&format!("/proc/{}/ns", host.pid(name))).exists(), "it waits");
    let at = Instant::now();
    let status = host.stop(name);
    let took = at.elapsed();
    assert_eq!((status.code(), status.signal()), (Some(143), None), "{}", host.log(name));
    assert!(took < Duration::from_secs(1), "{took:?}");
}

#[test]
fn a_flood_of_refusals_is_counted_and_of_a_second_of_it_five_are_written() {
    let net = Net::new();
    let table = net.file("t.yaml", &table(40));
    let (s1, x) = (net.at("s1", U, 11), net.at("x", U, 99));
    start_peer(&s1, 0, table.to_str().unwrap());
    let t = Tester::at(&x, &U.socket(99, 8060));
    let (stranger, at) = (t.message(Kind::Solicit, 600), Instant::now());
    for _ in 0..50 {
        for _ in 0..10 {
            t.say(server_at(0), BOOTSTRAP_ADDRESS, &stranger);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    let count = || {
        let text = s1.run("curl", &["-s", "--max-time", "5", "http://127.0.0.1:9060/metrics"]);
        let line = text.lines().find(|l| l.starts_with("aero_refused_claims_total "));
        line.and_then(|l| l.rsplit(' ').next()?.parse::<u64>().ok()).unwrap_or_default()
    };
    await_that("all are counted", SOON, || count() == 500);
    let seconds = at.elapsed().as_secs() + 1;
    let log = s1.log("s1");
    let lines = log.lines().filter(|l| l.contains("refused: "));
    let written = u64::try_from(lines.count()).unwrap();
    println!("500 refusals in {:?}: {written} lines", at.elapsed());
    assert!((6..=5 * seconds).contains(&written), "{written} lines in {seconds} s");
    assert!(log.contains("left_out="), "{log}");
}
