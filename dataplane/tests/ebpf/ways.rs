//! The way to a neighbour on the underlay, which the programs believe in for some milliseconds.

use std::io::ErrorKind;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use aero_dataplane::ebpf::Hooks;
use aero_protocol::forwarding::{Change, NextHop};
use anyhow::{Context, ensure};

use super::net::{Netns, Node, PATIENCE, UNDERLAY_MTU, fabric};
use super::node::{Live, l2, on_one_processor, route, to};

const NEIGHBOUR: &str = "192.0.2.11:8061";
/// Between two packets: what one of them has learned the next ones go by.
const EACH: Duration = Duration::from_micros(500);
/// A way is believed in for 10 ms; this machine may have other things to do.
const BOUND: Duration = Duration::from_secs(1);

/// A host on the underlay with the neighbour's address, at its own link-layer address.
fn host(fabric: &Netns, number: u8) -> anyhow::Result<(Netns, UdpSocket)> {
    let host = Netns::new(&format!("h{number}"))?;
    let name = &host.name;
    fabric.ip(&format!("link add h{number} mtu {UNDERLAY_MTU} type veth peer name eth0 netns {name} mtu {UNDERLAY_MTU} address 02:be:00:00:00:0{number}"))?;
    fabric.ip(&format!("link set h{number} master br0 up"))?;
    host.ip("addr add 192.0.2.11/24 dev eth0")?;
    host.ip("link set eth0 up")?;
    let socket = host.udp(NEIGHBOUR);
    socket.set_nonblocking(true)?;
    Ok((host, socket))
}

/// What has arrived since this was asked last.
fn arrived(socket: &UdpSocket) -> usize {
    let mut buffer = [0; 2048];
    let mut packets = 0;
    loop {
        match socket.recv(&mut buffer) {
            Ok(_) => packets += 1,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return packets,
            Err(e) => panic!("{e}"),
        }
    }
}

/// The neighbour's link-layer address changes, and then the route to it: packets that follow each
/// other closely go where the kernel says they should.
pub fn followed() -> anyhow::Result<()> {
    on_one_processor(follow)
}

fn follow() -> anyhow::Result<()> {
    let fabric = fabric(&["192.0.2.99"])?;
    let node = Node::new(&fabric, 1, "2001:d00:0:1")?;
    let (_first, first) = host(&fabric, 1)?;
    let (_second, second) = host(&fabric, 2)?;
    let live = Live::start(&node, true, Some(Hooks::Auto), |running| {
        running.connect("2001:d00:0:1::/64");
        let table = running.table();
        table.apply(&Change::AddPeer(l2(NEIGHBOUR)));
        table.apply(&route("2001:d00:0:1::/64", NextHop::Local, false));
        table.apply(&route("2001:d00::/32", to(NEIGHBOUR), false));
    });
    let pod = node.pod.udp("[2001:d00:0:1::1]:9000");
    let is_at = |number| {
        let mac = format!("lladdr 02:be:00:00:00:0{number} dev eth0 nud permanent");
        node.netns.ip(&format!("neigh replace 192.0.2.11 {mac}"))
    };
    // Sends until packets arrive at one place, and on until none arrives at the other any more.
    let goes_to = |here: &UdpSocket, elsewhere: &UdpSocket| -> anyhow::Result<Duration> {
        let start = Instant::now();
        let mut last = start;
        while arrived(here) == 0 || last.elapsed() < Duration::from_millis(100) {
            pod.send_to(b"packet", "[2001:d00:0:2::1]:9")?;
            std::thread::sleep(EACH);
            if arrived(elsewhere) > 0 {
                last = Instant::now();
            }
            ensure!(start.elapsed() < PATIENCE, "packets do not go there");
        }
        Ok(last - start)
    };
    is_at(1)?;
    goes_to(&first, &second)?;
    ensure!(live.running.table().counters().tunneled_packets > 100, "they did not go by tunnel");
    is_at(2)?;
    let took = goes_to(&second, &first).context("after another link-layer address")?;
    ensure!(took < BOUND, "another link-layer address was followed after {took:?}");
    // By a router, whose link-layer address is the first host's.
    node.netns.ip("neigh replace 192.0.2.50 lladdr 02:be:00:00:00:01 dev eth0 nud permanent")?;
    node.netns.ip("route add 192.0.2.11/32 via 192.0.2.50 dev eth0")?;
    let took = goes_to(&first, &second).context("after another route")?;
    ensure!(took < BOUND, "another route was followed after {took:?}");
    // What the kernel knows of the path's MTU counts for the next packets too.
    node.netns.ip("route replace 192.0.2.11/32 via 192.0.2.50 dev eth0 mtu lock 1300")?;
    std::thread::sleep(Duration::from_millis(50));
    let tunneled = || live.running.table().counters().tunneled_packets;
    let passed = || live.running.table().counters().passed_packets;
    pod.send_to(b"short", "[2001:d00:0:2::1]:9")?;
    let (before, left) = (tunneled(), passed());
    let end = Instant::now() + PATIENCE;
    while passed() == left {
        pod.send_to(&[0; 1350], "[2001:d00:0:2::1]:9")?;
        std::thread::sleep(EACH);
        ensure!(Instant::now() < end, "long packets are not left to the process");
    }
    ensure!(tunneled() <= before + 1, "a packet that is too long for the path left in a tunnel");
    Ok(())
}
