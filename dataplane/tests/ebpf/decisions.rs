//! What each processor remembers for the packets that follow: it counts no longer than the table
//! that it is from, and no longer than the entries that it is made of.

use std::net::UdpSocket;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aero_dataplane::ForwardingTable;
use aero_dataplane::ebpf::Hooks;
use aero_protocol::forwarding::{Change, Drop, NextHop, Route};
use anyhow::{Context, ensure};
use ipnet::IpNet;
use nix::time::{ClockId, clock_gettime};

use super::equivalence::{PORT, inner};
use super::net::{Netns, Node, PATIENCE, fabric};
use super::node::{Live, l2, on_one_processor, route, to};

const FIRST: &str = "192.0.2.11:8061";
const SECOND: &str = "192.0.2.12:8061";
const OWN: &str = "2001:d00:0:1::/64";
const FAR: &str = "2001:d00:0:2::/64";
const SLACK: Duration = Duration::from_millis(2);
/// Each change is made while what was decided before it is fresh.
const ROUNDS: usize = 100;

struct World {
    live: Live,
    pod: UdpSocket,
    first: UdpSocket,
    second: UdpSocket,
    /// Gone last.
    _node: Node,
    _fabric: Netns,
}

impl World {
    fn new() -> anyhow::Result<Self> {
        let fabric = fabric(&["192.0.2.99", "192.0.2.11", "192.0.2.12"])?;
        let node = Node::new(&fabric, 1, "2001:d00:0:1")?;
        let live = Live::start(&node, true, Some(Hooks::Auto), |running| {
            running.connect(OWN);
            running.table().apply(&route(OWN, NextHop::Local, false));
        });
        let pod = node.pod.udp(&format!("[2001:d00:0:1::1]:{PORT}"));
        let (first, second) = (fabric.udp(FIRST), fabric.udp(SECOND));
        Ok(Self { live, pod, first, second, _node: node, _fabric: fabric })
    }

    fn table(&self) -> Arc<dyn ForwardingTable> {
        self.live.running.table()
    }

    /// Sends one packet from the pod.
    fn send(&self, what: &str) -> anyhow::Result<()> {
        self.pod.send_to(what.as_bytes(), "[2001:d00:0:2::1]:9").map(drop).context("sending")
    }

    /// Sends one packet from the pod: it is to come to a neighbour, and whatever else is there has
    /// come from earlier.
    fn goes_to(&self, neighbour: &UdpSocket, what: &str) -> anyhow::Result<()> {
        self.send(what)?;
        receive(neighbour, what)
    }

    /// Sends one packet to the pod through the tunnel from a neighbour.
    fn send_from(&self, neighbour: &UdpSocket, what: &str) -> anyhow::Result<()> {
        let packet = inner("2001:d00:0:2::1", "2001:d00:0:1::1", what);
        neighbour.send_to(&packet, "192.0.2.1:8061").map(drop).context("sending")
    }

    fn refused(&self) -> u64 {
        self.table().counters().drops.get(&Drop::OriginRefused).copied().unwrap_or(0)
    }
}

/// Waits for a packet, and fails if it is another one.
fn receive(socket: &UdpSocket, what: &str) -> anyhow::Result<()> {
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer).with_context(|| format!("{what:?} has not come"))?;
    let packet = &buffer[..length];
    ensure!(packet.ends_with(what.as_bytes()), "another one than {what:?}: {packet:02x?}");
    Ok(())
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

/// Routes, direct paths and senders change between two packets of one conversation: the second one
/// meets the new ones.
pub fn changed() -> anyhow::Result<()> {
    on_one_processor(|| {
        let world = World::new()?;
        let table = world.table();
        let neighbours = [(&world.first, FIRST), (&world.second, SECOND)];
        let until = Instant::now() + Duration::from_secs(600);
        let direct = |to: &str| Change::SetDirect {
            source: net(OWN),
            destination: net(FAR),
            to: l2(to),
            until,
        };
        for n in 0..ROUNDS {
            let (here, name) = neighbours[n % 2];
            let (there, other) = neighbours[(n + 1) % 2];
            table.apply(&route("2001:d00::/32", to(name), false));
            world.goes_to(here, &format!("route {n}"))?;
            world.goes_to(here, &format!("route {n} again"))?;
            table.apply(&direct(other));
            world.goes_to(there, &format!("direct {n}"))?;
            world.goes_to(there, &format!("direct {n} again"))?;
            ensure!(table.take_used() == [(net(OWN), net(FAR))], "not used in round {n}");
            world.goes_to(there, &format!("direct {n} once more"))?;
            ensure!(!table.take_used().is_empty(), "used, and nobody has said so in round {n}");
            table.apply(&Change::RemoveDirect { source: net(OWN), destination: net(FAR) });
            world.goes_to(here, &format!("route {n} as before"))?;

            let from = |from: &str| Change::SetSource {
                prefix: net(FAR),
                from: l2(from),
                until: Some(until),
            };
            table.apply(&from(name));
            for text in [format!("from {n}"), format!("from {n} again")] {
                world.send_from(here, &text)?;
                receive(&world.pod, &text)?;
            }
            let refused = |neighbour, what: &str| -> anyhow::Result<()> {
                let before = world.refused();
                world.send_from(neighbour, what)?;
                let end = Instant::now() + PATIENCE;
                while world.refused() == before {
                    ensure!(Instant::now() < end, "{what} in round {n} was let in");
                }
                Ok(())
            };
            refused(there, "one who may not send")?;
            table.apply(&from(other));
            refused(here, "one who may not send any more")?;
            let text = format!("from the other {n}");
            world.send_from(there, &text)?;
            receive(&world.pod, &text)?;
        }
        Ok(())
    })
}

/// A route and a sender that end in the middle of conversations let no packet through after their
/// end, by the clock that the programs read, which goes on by ticks.
pub fn ended() -> anyhow::Result<()> {
    on_one_processor(|| {
        let world = World::new()?;
        let table = world.table();
        let programs = || clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map(Duration::from);
        world.first.set_nonblocking(true)?;
        world.pod.set_nonblocking(true)?;
        let both = |what: &str| world.send(what).and_then(|()| world.send_from(&world.first, what));
        let mut in_time = (0, 0);
        // So that the last decision is now long, now shortly before the end.
        for lasts in (25..45).map(Duration::from_millis) {
            let end = Instant::now() + lasts;
            // The table's two readings of its clocks come later, by less than this.
            let surely = Duration::from(clock_gettime(ClockId::CLOCK_MONOTONIC)?) + lasts + SLACK;
            let route = Route { to: to(FIRST), transit: false, until: Some(end) };
            table.apply(&Change::SetRoute { prefix: net("2001:d00::/32"), route });
            let (prefix, from) = (net(FAR), l2(FIRST));
            table.apply(&Change::SetSource { prefix, from, until: Some(end) });
            while Instant::now() < end {
                both("in time")?;
            }
            in_time.0 += arrived(&world.first, "in time");
            in_time.1 += arrived(&world.pod, "in time");
            while programs()? < surely {}
            let late = Instant::now();
            while Instant::now() < late + Duration::from_millis(8) {
                both("too late")?;
            }
            std::thread::sleep(Duration::from_millis(20));
            let went = arrived(&world.first, "too late");
            ensure!(went == 0, "{went} packets took a route after its end, of {lasts:?}");
            let came = arrived(&world.pod, "too late");
            ensure!(came == 0, "{came} packets of a sender came after its end, of {lasts:?}");
        }
        ensure!(in_time.0 > 0 && in_time.1 > 0, "nothing went or came in time: {in_time:?}");
        Ok(())
    })
}

/// How many packets of a kind have arrived.
fn arrived(socket: &UdpSocket, what: &str) -> usize {
    let mut buffer = [0; 2048];
    let next = || {
        let length = socket.recv(&mut buffer).ok()?;
        Some(buffer[..length].ends_with(what.as_bytes()))
    };
    std::iter::from_fn(next).filter(|is| *is).count()
}
