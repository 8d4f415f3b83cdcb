//! One list of packets: what becomes of each, against `protocol::forwarding::Table`.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aero_dataplane::ForwardingTable;
use aero_dataplane::ebpf::Hooks;
use aero_protocol::forwarding::{Change, Disposition, Drop, Inner, NextHop, Route, Table};
use aero_protocol::wire::WireError;
use aero_protocol::wire::encapsulation::{Payload, demux};
use anyhow::{Context, bail, ensure};
use etherparse::PacketBuilder;

use super::net::{Netns, Node, PATIENCE, fabric};
use super::node::{Running, l2, on, route, to};

const POD: &str = "2001:d00:0:1";
pub const PORT: u16 = 9000;

// Neighbours: a Server by each family, two Clients, a Relay, a Forwarding Agent, the node that the pod left, one whose hand-over
// has run out, a stranger.
const S4: &str = "192.0.2.11:8060";
const S6: &str = "[2001:db8:77::11]:8060";
const C4: &str = "192.0.2.12:8061";
const C6: &str = "[2001:db8:77::12]:8061";
const OTHER_PORT: &str = "192.0.2.12:8062";
const LEFT: &str = "192.0.2.13:8061";
const LEFT_LONG_AGO: &str = "192.0.2.14:8061";
const STRANGER: &str = "192.0.2.15:8061";
const RELAY: &str = "192.0.2.16:8060";
const AGENT: &str = "192.0.2.17:8060";
const NEIGHBOURS: [&str; 10] =
    [S4, S6, C4, C6, OTHER_PORT, LEFT, LEFT_LONG_AGO, STRANGER, RELAY, AGENT];

fn changes(now: Instant) -> Vec<Change> {
    let soon = now + Duration::from_secs(600);
    let past = now.checked_sub(Duration::from_secs(1)).unwrap();
    let net = |p: &str| p.parse().unwrap();
    let ended = |p: &str, to| Change::SetRoute {
        prefix: net(p),
        route: Route { to, transit: true, until: Some(past) },
    };
    let source = |p: &str, from, until| Change::SetSource {
        prefix: net(p),
        from: l2(from),
        until: Some(until),
    };
    let more = |p: &str, from, until| Change::AddSource {
        prefix: net(p),
        from: l2(from),
        until: Some(until),
    };
    vec![
        Change::AddPeer(l2(S4)),
        Change::AddPeer(l2(S6)),
        Change::AddPeer(l2(STRANGER)),
        Change::RemovePeer(l2(STRANGER)),
        Change::AddRelay(l2(RELAY)),
        Change::AddAgent(l2(AGENT)),
        route("2001:d00:0:b::/64", to(RELAY), true),
        route("2001:d00:c::/48", NextHop::Unreachable, false),
        source("2001:d00:0:d::/64", C4, past),
        more("2001:d00:0:d::/64", C6, soon),
        source("2001:d00:0:e::/64", S4, soon),
        more("2001:d00:0:e::/64", OTHER_PORT, soon),
        more("2001:d00:0:e::/64", LEFT, soon),
        more("2001:d00:0:e::/64", C6, soon),
        more("2001:d00:0:e::/64", STRANGER, soon),
        Change::SetDirect {
            source: net("2001:d00:0:1::/64"),
            destination: net("2001:d00:0:f::/64"),
            to: l2(C6),
            until: soon,
        },
        Change::SetDirect {
            source: net("2001:d00:0:4::/64"),
            destination: net("2001:d00:0:2::/64"),
            to: l2(C6),
            until: soon,
        },
        route("2001:d00::/32", to(S4), false),
        route("2001:d00:0:1::/64", NextHop::Local, false),
        route("2001:d00:0:7::/64", to(C4), true),
        ended("2001:d00:0:8::/64", to(C4)),
        ended("2001:d00:0:8::/62", to(C6)),
        route("2001:d00:0:9::/64", to(C6), true),
        route("2001:d00:0:a::/64", to(C4), true),
        Change::RemoveRoute { prefix: net("2001:d00:0:a::/64") },
        route("198.51.100.0/24", to(C4), true),
        route("198.51.100.64/26", to(C6), true),
        source("2001:d00:0:2::/64", C4, soon),
        source("2001:d00:0:3::/64", C4, past),
        source("2001:d00:0:3::/48", C6, soon),
        source("2001:d00:0:6::/64", C4, soon),
        Change::RemoveSource { prefix: net("2001:d00:0:6::/64") },
        Change::SetHandover { prefix: net("2001:d00:0:1::/64"), from: l2(LEFT), until: soon },
        Change::SetHandover {
            prefix: net("2001:d00:0:1::/64"),
            from: l2(LEFT_LONG_AGO),
            until: past,
        },
    ]
}

/// Out of tunnels: outer source, inner source, inner destination.
const INGRESS: &[(&str, &str, &str)] = &[
    (S4, "2001:d00:0:2::1", "2001:d00:0:1::1"),
    (S6, "2001:d00:0:2::1", "2001:d00:0:1::1"),
    (S4, "2001:abc::1", "2001:d00:0:1::1"),
    (C4, "2001:d00:0:2::1", "2001:d00:0:1::1"),
    (C4, "2001:d00:0:4::1", "2001:d00:0:1::1"),
    (C4, "2001:d00:0:1::1", "2001:d00:0:1::1"),
    (C4, "2001:d00:0:3::1", "2001:d00:0:1::1"),
    (C4, "2001:d00:0:6::1", "2001:d00:0:1::1"),
    (C6, "2001:d00:0:3::1", "2001:d00:0:1::1"),
    (C6, "2001:d00:0:2::1", "2001:d00:0:1::1"),
    (OTHER_PORT, "2001:d00:0:2::1", "2001:d00:0:1::1"),
    (LEFT, "2001:d00:0:4::1", "2001:d00:0:1::1"),
    (LEFT, "2001:d00:0:4::1", "2001:d00:0:7::1"),
    (LEFT_LONG_AGO, "2001:d00:0:4::1", "2001:d00:0:1::1"),
    (STRANGER, "2001:d00:0:2::1", "2001:d00:0:1::1"),
    (S4, "2001:d00:0:2::1", "2001:d00:0:55::1"),
    (S4, "2001:d00:0:2::1", "2001:d00:0:8::1"),
    (S4, "2001:d00:0:2::1", "2001:d00:0:7::1"),
    (S6, "2001:d00:0:2::1", "2001:d00:0:7::1"),
    (S4, "2001:d00:0:2::1", "2001:d00:0:9::1"),
    (S6, "2001:d00:0:2::1", "2001:d00:0:9::1"),
    (S4, "2001:d00:0:2::1", "2001:d00:0:a::1"),
    (C4, "2001:d00:0:2::1", "2001:d00:0:7::1"),
    (C6, "2001:d00:0:3::1", "2001:d00:0:9::1"),
    (S4, "2001:d00:0:2::1", "2001:dba::1"),
    (RELAY, "2001:abc::1", "2001:d00:0:1::1"),
    (AGENT, "2001:abc::1", "2001:d00:0:1::1"),
    (S4, "2001:d00:0:2::1", "2001:d00:0:b::1"),
    (AGENT, "2001:d00:0:2::1", "2001:d00:0:b::1"),
    (C4, "2001:d00:0:2::1", "2001:d00:0:b::1"),
    (S4, "2001:d00:0:2::1", "2001:d00:c::1"),
    (C4, "2001:d00:0:d::1", "2001:d00:0:1::1"),
    (C6, "2001:d00:0:d::1", "2001:d00:0:1::1"),
    (OTHER_PORT, "2001:d00:0:e::1", "2001:d00:0:1::1"),
    (C4, "2001:d00:0:e::1", "2001:d00:0:1::1"),
    (STRANGER, "2001:d00:0:e::1", "2001:d00:0:1::1"),
    (S4, "203.0.113.1", "198.51.100.1"),
    (S4, "203.0.113.1", "198.51.100.65"),
    (S4, "203.0.113.1", "198.51.101.1"),
    (C4, "203.0.113.1", "198.51.100.1"),
];

/// Into tunnels: the pod's source, destination.
const EGRESS: &[(&str, &str)] = &[
    ("2001:d00:0:1::1", "2001:d00:0:2::1"),
    ("2001:d00:0:1::77", "2001:d00:0:55::1"),
    ("2001:d00:0:1::1", "2001:d00:0:7::1"),
    ("2001:d00:0:1::1", "2001:d00:0:8::1"),
    ("2001:d00:0:1::1", "2001:d00:0:9::1"),
    ("2001:d00:0:1::1", "2001:d7f::1"),
    ("2001:d00:0:1::1", "2001:d00:0:f::1"),
    ("2001:d00:0:1::1", "2001:d00:c::1"),
    ("2001:d00:0:4::1", "2001:d00:0:2::1"),
    ("2001:d00:0:7::1", "2001:d00:0:2::1"),
];

/// Label of what has a source that is not attached here.
const FOREIGN: &str = "foreign_source";

/// No IP packets, or cut short.
const MALFORMED: &[&[u8]] = &[&[], &[0], &[0x10; 60], &[0x60; 39], &[0x45; 19]];

/// An inner UDP packet with a text.
pub fn inner(source: &str, destination: &str, text: &str) -> Vec<u8> {
    let mut packet = Vec::new();
    let builder = match (source.parse::<Ipv4Addr>(), destination.parse::<Ipv4Addr>()) {
        (Ok(s), Ok(d)) => PacketBuilder::ipv4(s.octets(), d.octets(), 9),
        _ => {
            let octets = |a: &str| a.parse::<std::net::Ipv6Addr>().unwrap().octets();
            PacketBuilder::ipv6(octets(source), octets(destination), 9)
        }
    };
    builder.udp(4000, PORT).write(&mut packet, text.as_bytes()).unwrap();
    packet
}

struct World {
    node: Node,
    neighbours: BTreeMap<&'static str, UdpSocket>,
    /// In the pod.
    pod: UdpSocket,
    fabric: Netns,
}

impl World {
    fn new() -> anyhow::Result<Self> {
        let addresses: std::collections::BTreeSet<String> =
            NEIGHBOURS.iter().map(|n| n.parse::<SocketAddr>().unwrap().ip().to_string()).collect();
        let fabric = fabric(&addresses.iter().map(String::as_str).collect::<Vec<_>>())?;
        let node = Node::new(&fabric, 1, POD)?;
        node.pod.ip("addr add 2001:d00:0:1::77/128 dev aero0 nodad")?;
        let neighbours = NEIGHBOURS.iter().map(|n| (*n, fabric.udp(n))).collect();
        let pod = node.pod.udp(&format!("[{POD}::1]:{PORT}"));
        Ok(Self { node, neighbours, pod, fabric })
    }

    /// Everybody who can receive, by name.
    fn receivers(&self) -> impl Iterator<Item = (&'static str, &UdpSocket)> {
        self.neighbours.iter().map(|(n, s)| (*n, s)).chain([("the pod", &self.pod)])
    }

    /// Waits until a text arrives anywhere; `None` if it does not within the time.
    fn where_is(&self, text: &str, wait: Duration) -> Option<&'static str> {
        let end = Instant::now() + wait;
        let mut buffer = [0; 2048];
        loop {
            for (name, socket) in self.receivers() {
                socket.set_nonblocking(true).unwrap();
                match socket.recv(&mut buffer) {
                    Ok(n) if buffer[..n].ends_with(text.as_bytes()) => return Some(name),
                    Ok(_) => {}
                    Err(e) => assert_eq!(e.kind(), ErrorKind::WouldBlock),
                }
            }
            if Instant::now() > end {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The programs read the clock as of the last tick.
const TICK: Duration = Duration::from_millis(10);

fn sleep_until(end: Instant) {
    std::thread::sleep(end.saturating_duration_since(Instant::now()));
}

/// Time in which an ICMP error leaves, if there is one.
const ANSWERED: Duration = Duration::from_millis(500);

/// Waits for a counter to move; the delta of all. The kernel's own multicast reports on the AERO
/// interface have a foreign source too, and come when they like.
fn moved(
    table: &dyn ForwardingTable,
    before: &BTreeMap<String, u64>,
    expected: &str,
) -> BTreeMap<String, u64> {
    let end = Instant::now() + PATIENCE;
    loop {
        let now = counters(table);
        let delta: BTreeMap<String, u64> = now
            .iter()
            .filter(|(k, _)| *k == expected || *k != FOREIGN)
            // That it was left to the process is no other fate.
            .filter(|(k, _)| *k != "passed")
            .filter(|(k, v)| *v > &before[*k])
            .map(|(k, v)| (k.clone(), v - before[k]))
            .collect();
        if !delta.is_empty() || Instant::now() > end {
            return delta;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn counters(table: &dyn ForwardingTable) -> BTreeMap<String, u64> {
    let c = table.counters();
    let drops = c.drops.iter().map(|(d, n)| (d.label().to_string(), *n));
    let rest = [
        ("delivered", c.delivered_packets),
        ("tunneled", c.tunneled_packets),
        ("passed", c.passed_packets),
        ("send errors", c.send_errors),
    ];
    drops.chain(rest.map(|(k, v)| (k.to_string(), v))).collect()
}

fn check(
    world: &World,
    running: &Running,
    what: &str,
    text: &str,
    expected: Disposition,
    before: &BTreeMap<String, u64>,
) -> anyhow::Result<()> {
    let (counter, place) = match expected {
        Disposition::Deliver => ("delivered", Some("the pod")),
        Disposition::Tunnel(l2) => {
            let name = NEIGHBOURS.iter().find(|n| super::node::l2(n) == l2);
            ("tunneled", Some(*name.context("an unknown neighbour")?))
        }
        Disposition::Drop(why) => (why.label(), None),
        Disposition::Hold { .. } => anyhow::bail!("{what}: nothing waits in this table"),
    };
    let mut delta = moved(running.table().as_ref(), before, counter);
    // In user space the source is told that there is no way, by an ICMP error that quotes the packet.
    let answered = matches!(expected, Disposition::Drop(Drop::NoRoute | Drop::Unreachable))
        && ["tunneled", "delivered"].into_iter().any(|way| delta.remove(way).is_some());
    ensure!(
        delta.len() == 1 && delta.get(counter).is_some_and(|n| *n == 1 || counter == FOREIGN),
        "{what}: expected {expected:?}, counted {delta:?}"
    );
    // The error may be counted later than the drop, and is not to be taken for the next packet's.
    let mut answered = answered;
    if matches!(expected, Disposition::Drop(Drop::NoRoute | Drop::Unreachable)) {
        let end = Instant::now() + ANSWERED;
        while !answered && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
            let now = counters(running.table().as_ref());
            answered = ["tunneled", "delivered"].into_iter().any(|way| now[way] > before[way]);
        }
    }
    // Counted as dropped: it cannot come any more. Else it has to.
    let wait = if place.is_some() { PATIENCE } else { Duration::ZERO };
    let arrived = world.where_is(text, wait);
    if answered {
        return Ok(());
    }
    ensure!(arrived == place, "{what}: expected at {place:?}, arrived at {arrived:?}");
    Ok(())
}

/// Sends everything, and holds what becomes of it against the table.
fn all(hooks: Option<Hooks>, connected: bool) -> anyhow::Result<()> {
    let world = World::new()?;
    on(&world.node, || {
        let running = Running::start(&world.node, 8061, true, hooks);
        tokio::spawn(Arc::clone(&running.userspace).run());
        let now = Instant::now();
        let mut table = Table::default();
        for change in changes(now) {
            table.apply(&change);
            running.table().apply(&change);
        }
        if connected {
            running.connect(&format!("{POD}::/64"));
        }
        let mut seen = std::collections::BTreeSet::new();
        let address = |a: &str| a.parse().unwrap();
        let target: SocketAddr = "192.0.2.1:8061".parse().unwrap();
        let target6: SocketAddr = "[2001:db8:77::1]:8061".parse().unwrap();
        let target_of = |from: &str| if from.contains('[') { target6 } else { target };
        for (n, (from, source, destination)) in INGRESS.iter().enumerate() {
            let text = format!("ingress {n}");
            let addresses = Inner { source: address(source), destination: address(destination) };
            let expected = table.ingress(l2(from), addresses, Instant::now());
            let before = counters(running.table().as_ref());
            let packet = inner(source, destination, &text);
            world.neighbours[from].send_to(&packet, target_of(from))?;
            let what = format!("{source} -> {destination} from {from}");
            check(&world, &running, &what, &text, expected, &before)?;
            seen.insert(format!("{expected:?}"));
        }
        for (n, (source, destination)) in EGRESS.iter().enumerate() {
            let text = format!("egress {n}");
            let addresses = Inner { source: address(source), destination: address(destination) };
            let expected = table.egress(addresses, Instant::now());
            let before = counters(running.table().as_ref());
            let pod = world.node.pod.udp(&format!("[{source}]:0"));
            pod.send_to(text.as_bytes(), format!("[{destination}]:{PORT}"))?;
            let what = format!("{source} -> {destination} from the pod");
            check(&world, &running, &what, &text, expected, &before)?;
            seen.insert(format!("{expected:?}"));
        }
        for packet in MALFORMED {
            let before = counters(running.table().as_ref());
            world.neighbours[S4].send_to(packet, target)?;
            let what = format!("{} bytes", packet.len());
            let shim = match demux(packet) {
                Ok(payload) => !matches!(payload, Payload::Packet(_)),
                Err(why) => why == WireError::Unsupported,
            };
            let expected = Disposition::Drop(if shim { Drop::Shim } else { Drop::Malformed });
            check(&world, &running, &what, "no text", expected, &before)?;
        }
        // The list has to have all that a table says; other reasons are the tunnel's, see tunnel.rs.
        let by_table = [
            Drop::ForeignSource,
            Drop::OriginRefused,
            Drop::NoRoute,
            Drop::WouldReturn,
            Drop::NotForUs,
            Drop::Unreachable,
        ];
        for why in by_table {
            let name = format!("{:?}", Disposition::Drop(why));
            ensure!(seen.contains(&name), "no packet of the list is dropped as {why:?}");
        }
        Ok(())
    })
}

pub fn stack() -> anyhow::Result<()> {
    all(Some(Hooks::Auto), false)
}

pub fn short() -> anyhow::Result<()> {
    all(Some(Hooks::Auto), true)
}

pub fn userspace() -> anyhow::Result<()> {
    all(None, false)
}

pub fn clsact() -> anyhow::Result<()> {
    all(Some(Hooks::Clsact), true)
}

/// Datagrams with a checksum, fragments, control packets.
pub fn left_alone() -> anyhow::Result<()> {
    let world = World::new()?;
    on(&world.node, || {
        let mut running = Running::start(&world.node, 8061, true, Some(Hooks::Auto));
        tokio::spawn(Arc::clone(&running.userspace).run());
        for change in changes(Instant::now()) {
            running.table().apply(&change);
        }
        let target: SocketAddr = "192.0.2.1:8061".parse().unwrap();
        let server = &world.neighbours[S4];
        let table = running.table();
        let passed = || table.counters().passed_packets;
        // More than the underlay carries in one piece: reassembled by the kernel, read by the
        // process.
        let long = format!("{}in pieces", "x".repeat(1440));
        server.send_to(&inner("2001:d00:0:2::1", "2001:d00:0:7::1", &long), target)?;
        ensure!(world.where_is("in pieces", PATIENCE) == Some(C4), "fragments were lost");
        let with_sum = world.fabric.socket("192.0.2.11:8070", true);
        running.table().apply(&Change::AddPeer(l2("192.0.2.11:8070")));
        let before = passed();
        with_sum.send_to(&inner("2001:d00:0:2::1", "2001:d00:0:1::1", "summed"), target)?;
        ensure!(world.where_is("summed", PATIENCE) == Some("the pod"), "a checksum is fatal");
        ensure!(passed() == before + 1, "it was not left to the process");
        // A path that the kernel knows to be narrow: what does not fit is not sent all the same.
        world.node.netns.ip("route add 192.0.2.12/32 dev eth0 mtu lock 1000")?;
        let narrow = |text: &str| {
            world.pod.send_to(text.as_bytes(), format!("[2001:d00:0:7::1]:{PORT}")).map(drop)
        };
        narrow("fits")?;
        ensure!(world.where_is("fits", PATIENCE) == Some(C4));
        let before = passed();
        narrow(&"x".repeat(1100))?;
        let end = Instant::now() + PATIENCE;
        while passed() == before && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        ensure!(passed() == before + 1, "it was not left to the process");
        server.send_to(&inner("fe80::1", "fe80::2", "control"), target)?;
        let end = Instant::now() + PATIENCE;
        let control = loop {
            match running.control.try_recv() {
                Ok(control) => break control,
                Err(_) if Instant::now() < end => std::thread::sleep(Duration::from_millis(1)),
                Err(e) => bail!("no control packet: {e}"),
            }
        };
        ensure!(control.from == l2(S4) && control.packet.ends_with(b"control"));
        Ok(())
    })
}

/// AcceptTime, in the kernel.
pub fn expiry() -> anyhow::Result<()> {
    let world = World::new()?;
    on(&world.node, || {
        // Nothing runs: neither sockets nor the sweep.
        let running = Running::start(&world.node, 8061, true, Some(Hooks::Auto));
        let until = Instant::now() + Duration::from_millis(700);
        for change in changes(Instant::now()) {
            running.table().apply(&change);
        }
        let prefix = "2001:d00:0:2::/64".parse().unwrap();
        running.table().apply(&Change::SetSource { prefix, from: l2(C4), until: Some(until) });
        let send = |text: &str| {
            let packet = inner("2001:d00:0:2::1", "2001:d00:0:1::1", text);
            world.neighbours[C4].send_to(&packet, "192.0.2.1:8061")
        };
        let refused =
            || running.table().counters().drops.get(&Drop::OriginRefused).copied().unwrap_or(0);
        send("in time")?;
        ensure!(world.where_is("in time", PATIENCE) == Some("the pod"), "it is not accepted");
        ensure!(Instant::now() < until, "this machine is too slow for this test");
        sleep_until(until + TICK);
        let before = refused();
        send("too late")?;
        let end = Instant::now() + PATIENCE;
        while refused() == before && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(1));
        }
        ensure!(refused() == before + 1, "it is still accepted");
        ensure!(world.where_is("too late", Duration::ZERO).is_none());
        Ok(())
    })
}

/// A direct path: told that it is wanted, once a second; taken by the pair that has it only.
pub fn direct() -> anyhow::Result<()> {
    let world = World::new()?;
    on(&world.node, || {
        let running = Running::start(&world.node, 8061, true, Some(Hooks::Auto));
        let ebpf = running.ebpf.clone().context("no eBPF")?;
        let table = running.table();
        for change in changes(Instant::now()) {
            table.apply(&change);
        }
        let mut triggers = running.userspace.triggers();
        tokio::spawn(async move { ebpf.run().await });
        let runtime = tokio::runtime::Handle::current();
        let mut next = |wait| {
            runtime.block_on(async { tokio::time::timeout(wait, triggers.recv()).await.ok() })
        };
        let send = |text: &str| {
            world.pod.send_to(text.as_bytes(), format!("[2001:d00:0:2::1]:{PORT}")).map(drop)
        };
        let (own, far) = ("2001:d00:0:1::/64".parse()?, "2001:d00:0:2::/64".parse()?);
        let direct = |destination, to, until| {
            table.apply(&Change::SetDirect { source: own, destination, to: l2(to), until });
        };
        // Until somebody listens nobody is told.
        let told = loop {
            send("by the Server")?;
            ensure!(world.where_is("by the Server", PATIENCE) == Some(S4));
            if let Some(told) = next(Duration::from_millis(20)) {
                break told.context("nobody tells any more")?;
            }
        };
        ensure!(told.packet.ends_with(b"by the Server"), "{:02x?}", told.packet);
        let told = told.inner;
        ensure!(told.source == "2001:d00:0:1::1".parse::<std::net::IpAddr>()?);
        ensure!(told.destination == "2001:d00:0:2::1".parse::<std::net::IpAddr>()?);
        send("again")?;
        ensure!(world.where_is("again", PATIENCE) == Some(S4));
        ensure!(next(Duration::from_millis(50)).is_none(), "told twice within a second");
        let until = Instant::now() + Duration::from_secs(60);
        direct("2001:d00::/32".parse()?, LEFT, until);
        direct(far, C4, until);
        ensure!(table.take_used().is_empty());
        send("straight")?;
        ensure!(world.where_is("straight", PATIENCE) == Some(C4));
        ensure!(table.take_used() == [(own, far)]);
        ensure!(table.take_used().is_empty());
        table.apply(&Change::RemoveDirect { source: own, destination: far });
        send("the shorter one")?;
        ensure!(world.where_is("the shorter one", PATIENCE) == Some(LEFT));
        let soon = Instant::now() + Duration::from_millis(300);
        direct(far, C4, soon);
        sleep_until(soon + TICK);
        send("run out")?;
        ensure!(world.where_is("run out", PATIENCE) == Some(LEFT));
        Ok(())
    })
}
