//! Interior BGP: the real Servers and Relays, each with BIRD beside it, real Clients, and routers
//! of others in the fabric outside.

mod cuts;
mod fabric;
mod failures;
mod many;
mod moves;
mod routes;
mod size;

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use aero_protocol::address::LinkLayerAddress;
use ipnet::IpNet;

use super::net::{Host, Net, SOON, Underlay, agent, await_that, run, try_run};
use super::tester::{acp, inner, table};

/// The kernel table that BIRD and our program share.
const TABLE: &str = "8060";
/// Longest wait for BGP to have come up on a loaded machine.
const CONVERGED: Duration = Duration::from_secs(40);

/// A link with Servers 11.., Relays 21.., and a router of the fabric with a host X behind it.
pub struct Link<'a> {
    net: &'a Net,
    u: Underlay,
    pub servers: Vec<Host<'a>>,
    pub relays: Vec<Host<'a>>,
    pub router: Host<'a>,
    pub x: Host<'a>,
    file: PathBuf,
    table: PathBuf,
}

/// X, outside the link.
pub fn x_address() -> IpAddr {
    "3fff:1::2".parse().unwrap()
}

pub fn addr(n: u16) -> IpAddr {
    inner(n).into()
}

impl<'a> Link<'a> {
    /// Starts everything, and waits until all sessions are up.
    pub fn start(net: &'a Net, u: Underlay, servers: u16, relays: u16, more: &str) -> Self {
        let link = Self::prepare(net, u, servers, relays, more);
        link.start_all_but_fabric();
        link.start_fabric();
        await_that("the fabric knows the link", CONVERGED, || {
            fabric_paths(&link.router) == link.relays.len()
        });
        link
    }

    /// Servers and Relays with their BIRDs, and waits for the sessions between them.
    pub fn start_all_but_fabric(&self) {
        for (n, server) in (11..).zip(&self.servers) {
            self.start_server(server, n);
        }
        for (n, relay) in (21..).zip(&self.relays) {
            self.start_relay(relay, n);
        }
        for (n, host) in (11..).zip(&self.servers).chain((21..).zip(&self.relays)) {
            self.start_bird(host, n, &[]);
        }
        self.await_sessions();
    }

    /// A router of the fabric that is BIRD, too, and knows nothing of AERO.
    pub fn start_fabric(&self) {
        self.start_fabric_with("");
    }

    /// The same, with more in its configuration.
    pub fn start_fabric_with(&self, more: &str) {
        let mut text = "log stderr all; router id 10.9.9.9;\nprotocol device {}\n\
                        protocol direct { ipv6; }\n\
                        protocol kernel { merge paths on; ipv6 { import none; export where source = RTS_BGP; }; }\n"
            .to_string();
        text.push_str(more);
        text.push('\n');
        for (n, _) in (21..).zip(&self.relays) {
            let _ = writeln!(
                text,
                "protocol bgp r{n} {{ local fd99::f as 65000; neighbor fd99::{n:x} as 4200000000; \
                 hold time 3; connect delay time 1; connect retry time 2; error wait time 1, 2; \
                 ipv6 {{ import all; export all; }}; ipv4 {{ extended next hop on; import all; export none; }}; }}"
            );
        }
        let config = self.net.file("fabric.conf", &text);
        start_bird(&self.router, &config, &[]);
    }

    /// The hosts and files, with nothing running yet. `more` is added to the Relays' file.
    pub fn prepare(net: &'a Net, u: Underlay, servers: u16, relays: u16, more: &str) -> Self {
        let rows = |from: u16, count: u16| -> String {
            (from..from + count)
                .map(|n| format!("- {{address: '{}'}}\n", u.socket(n, 8060)))
                .collect()
        };
        let text = format!(
            "servicePrefixes: ['2001:db8::/32', '198.51.100.0/24']\nservers:\n{}relays:\n{}\
             externalPeers: [{{address: 'fd99::f', asn: 65000}}]\n{more}\n",
            rows(11, servers),
            rows(21, relays)
        );
        let (file, table) = (net.file("routes.yaml", &text), net.file("t.yaml", &table(40)));
        let native = |n: u16| format!("fd99::{n:x}/64");
        let relays: Vec<Host<'a>> = (21..21 + relays)
            .map(|n| {
                let host = net.host(&format!("r{}", n - 20), &[&u.with_length(n), &native(n)]);
                host.run("sysctl", &["-qw", "net.ipv6.conf.all.forwarding=1"]);
                host.ip("-6 route add default via fd99::f dev eth0");
                host
            })
            .collect();
        let router = net.host("rtr", &["fd99::f/64"]);
        router.run("sysctl", &["-qw", "net.ipv6.conf.all.forwarding=1"]);
        let x = net.behind("x", &router, "3fff:1::2/64", "3fff:1::1/64");
        let servers = (11..11 + servers).map(|n| net.at(&format!("s{}", n - 10), u, n)).collect();
        Self { net, u, servers, relays, router, x, file, table }
    }

    pub fn start_server(&self, host: &Host<'_>, n: u16) {
        let own = self.u.ip(n);
        let mut arguments = vec!["server".to_string(), "--host-ips".into(), own];
        arguments.extend(["--table".into(), self.table.to_str().unwrap().into()]);
        arguments.extend(["--bgp-table".into(), TABLE.into()]);
        // With direct paths the Relays would have nothing to do.
        arguments.extend(["--optimize".into(), "false".into()]);
        for (m, _) in (21..).zip(&self.relays) {
            arguments.extend(["--relay".into(), self.u.socket(m, 8060)]);
        }
        for (m, _) in (11..).zip(&self.servers).filter(|(m, _)| *m != n) {
            arguments.extend(["--peer".into(), self.u.socket(m, 8060)]);
        }
        let before = host.log(&host.name).matches("table read").count();
        host.start(&host.name, &agent(), &strs(&arguments));
        await_that("the Server reads its table", SOON, || {
            host.log(&host.name).matches("table read").count() > before
        });
    }

    pub fn start_relay(&self, host: &Host<'_>, n: u16) {
        let file = self.file.to_str().unwrap();
        let own = self.u.ip(n);
        let before = host.log(&host.name).matches("the route table is read").count();
        let arguments = ["relay", "--host-ips", &own, "--routes", file, "--bgp-table", TABLE];
        host.start(&host.name, &agent(), &arguments);
        await_that("the Relay reads the route table", SOON, || {
            host.log(&host.name).matches("the route table is read").count() > before
        });
    }

    /// Starts BIRD beside a Server or Relay, by the configuration that our program makes.
    pub fn start_bird(&self, host: &Host<'_>, n: u16, options: &[&str]) {
        let role = if n < 20 { "server" } else { "relay" };
        let ips = format!("{},fd99::{n:x}", self.u.ip(n));
        let file = self.file.to_str().unwrap();
        let mut arguments = vec!["bird-config", "--role", role, "--routes", file];
        arguments.extend(["--host-ips", &ips, "--bgp-table", TABLE]);
        let text = run(agent().to_str().unwrap(), &arguments);
        let config = self.net.file(&format!("{}.conf", host.name), &text);
        start_bird(host, &config, options);
    }

    /// Waits until each Server has a session with each Relay.
    pub fn await_sessions(&self) {
        for (host, want) in self
            .servers
            .iter()
            .map(|s| (s, self.relays.len()))
            .chain(self.relays.iter().map(|r| (r, self.servers.len())))
        {
            await_that(&format!("BGP of {}", host.name), CONVERGED, || {
                let shown = birdc(host, "show protocols");
                shown
                    .lines()
                    .filter(|l| {
                        (l.starts_with("server_") || l.starts_with("relay_"))
                            && l.contains("Established")
                    })
                    .count()
                    == want
            });
        }
        for server in &self.servers {
            await_that("the Server has defaults by all Relays", CONVERGED, || {
                defaults(server) == self.relays.len()
            });
        }
    }

    pub fn server(&self, n: usize) -> LinkLayerAddress {
        let n = u16::try_from(n).unwrap() + 11;
        self.u.socket(n, 8060).parse::<std::net::SocketAddr>().unwrap().into()
    }
}

/// Starts BIRD with a configuration of any origin.
pub fn start_bird(host: &Host<'_>, config: &Path, options: &[&str]) {
    let (config, socket) = (config.to_str().unwrap(), socket(host));
    let arguments = [&["-f", "-c", config, "-s", &socket], options].concat();
    host.start(&format!("bird-{}", host.name), Path::new("/usr/sbin/bird"), &arguments);
}

fn socket(host: &Host<'_>) -> String {
    host.net.dir.path().join(format!("{}.ctl", host.name)).to_str().unwrap().to_string()
}

pub fn birdc(host: &Host<'_>, command: &str) -> String {
    let socket = socket(host);
    let words: Vec<&str> = command.split_whitespace().collect();
    try_run("birdc", &[&["-s", &socket], &words[..]].concat()).unwrap_or_default()
}

fn strs(all: &[String]) -> Vec<&str> {
    all.iter().map(String::as_str).collect()
}

/// By how many Relays the fabric's router reaches the link.
pub fn fabric_paths(router: &Host<'_>) -> usize {
    router.ip("-6 route show 2001:db8::/32").matches("via f").count()
}

/// How many Relays a Server has a default by.
pub fn defaults(server: &Host<'_>) -> usize {
    let query = ["-n", &server.netns, "-6", "route", "show", "table", TABLE, "default"];
    try_run("ip", &query).unwrap_or_default().matches("via fe80::").count()
}

/// The client prefixes in a host's shared table.
pub fn routes(host: &Host<'_>) -> BTreeSet<IpNet> {
    let families = ["-6", "-4"].map(|family| {
        // Without a single route ever there is no such table.
        try_run("ip", &["-n", &host.netns, family, "route", "show", "table", TABLE])
            .unwrap_or_default()
    });
    let words = families.iter().flat_map(|text| text.lines()).map(|line| {
        let mut words = line.split_whitespace();
        let first = words.next()?;
        if first == "blackhole" { words.next() } else { Some(first) }
    });
    let prefix = |word: &str| -> Option<IpNet> {
        word.parse().ok().or_else(|| word.parse::<IpAddr>().ok().map(IpNet::from))
    };
    words.flatten().filter_map(prefix).filter(|p| p.prefix_len() > 0).collect()
}

/// Prefixes of Clients by number.
pub fn acps(clients: impl IntoIterator<Item = u16>) -> BTreeSet<IpNet> {
    clients.into_iter().map(acp).collect()
}

/// Sends numbered datagrams once in `EVERY` from one host to another, and finds the longest gap.
pub struct Stream {
    stop: std::sync::Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<()>>,
    seen: std::sync::Arc<std::sync::Mutex<Vec<Instant>>>,
    start: Instant,
}

const EVERY: Duration = Duration::from_millis(10);

impl Stream {
    pub fn start(from: (&Host<'_>, IpAddr), to: (&Host<'_>, IpAddr)) -> Self {
        let receiver = to.0.udp(&std::net::SocketAddr::new(to.1, 0).to_string());
        let sender = from.0.udp(&std::net::SocketAddr::new(from.1, 0).to_string());
        let there = receiver.local_addr().unwrap();
        receiver.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let stop = std::sync::Arc::new(AtomicBool::new(false));
        let seen = std::sync::Arc::new(std::sync::Mutex::new(Vec::new()));
        let send = {
            let stop = stop.clone();
            move || {
                while !stop.load(Relaxed) {
                    let _ = UdpSocket::send_to(&sender, b"x", there);
                    std::thread::sleep(EVERY);
                }
            }
        };
        let receive = {
            let (stop, seen) = (stop.clone(), seen.clone());
            move || {
                let mut buffer = [0; 16];
                while !stop.load(Relaxed) {
                    if receiver.recv(&mut buffer).is_ok() {
                        seen.lock().unwrap().push(Instant::now());
                    }
                }
            }
        };
        let threads = vec![std::thread::spawn(send), std::thread::spawn(receive)];
        let stream = Self { stop, threads, seen, start: Instant::now() };
        stream.await_flow(stream.start, SOON);
        stream
    }

    /// Waits until ten datagrams in a row have come after a moment.
    pub fn await_flow(&self, after: Instant, bound: Duration) {
        await_that("packets flow", bound, || {
            let seen = self.seen.lock().unwrap();
            seen.iter().rev().take_while(|t| **t > after).count() >= 10
                && seen.last().is_some_and(|t| t.elapsed() < 20 * EVERY)
        });
    }

    /// Ends it; the longest silence after a moment.
    pub fn longest_gap(mut self, after: Instant) -> Duration {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        let seen = self.seen.lock().unwrap();
        let times: Vec<Instant> =
            std::iter::once(after).chain(seen.iter().copied().filter(|t| *t > after)).collect();
        times.windows(2).map(|w| w[1] - w[0]).max().unwrap_or_default()
    }
}

/// The body of an answer; the caller is in the right namespace.
pub fn http_get(address: &str, path: &str) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// A counter of a Relay.
pub fn counter(relay: &Host<'_>, name: &str) -> u64 {
    let metrics = relay.inside(|| http_get("[::1]:9063", "/metrics"));
    let line = metrics.lines().find(|l| l.strip_prefix(name).is_some_and(|r| r.starts_with(' ')));
    line.and_then(|l| l.split_whitespace().last()?.parse().ok()).unwrap_or_default()
}

/// Keeps a figure for `make bench-relays`, which says where.
pub fn figure(name: &str, value: &str) {
    if let Some(out) = std::env::var_os("AERO_BGP_OUT") {
        std::fs::write(Path::new(&out).join(name), value).unwrap();
    }
}

pub fn figure_ms(name: &str, value: Duration) {
    figure(name, &value.as_millis().to_string());
}
