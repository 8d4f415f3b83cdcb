//! A router on the underlay whose next link is narrower than the nodes' own.

use std::time::Instant;

use aero_dataplane::ebpf::Hooks;
use aero_elements::faults::{Level, held_in};
use aero_protocol::forwarding::{Change, NextHop};
use anyhow::Context;

use super::net::{Netns, Node, UNDERLAY_MTU, fabric};
use super::node::{Live, l2, route, to};
use super::outlives::{another_megabyte, stream};

/// Of the link behind the router. An inner packet of the pods' MTU does not fit.
const NARROW: u16 = 1400;

/// TCP with segments that are too long for the path, in super-packets: the router says Packet Too
/// Big to the node, whose pod never hears of outer headers.
pub fn long_segments() -> anyhow::Result<()> {
    let fabric = fabric(&[])?;
    let (a, b) = ("2001:d00:0:1", "2001:d00:0:2");
    let (one, two) = (Node::new(&fabric, 1, a)?, Node::new(&fabric, 2, b)?);
    let router = Netns::new("router")?;
    let name = &router.name;
    fabric.ip(&format!(
        "link add r0 mtu {UNDERLAY_MTU} type veth peer name eth0 netns {name} mtu {UNDERLAY_MTU}"
    ))?;
    fabric.ip("link set r0 master br0 up")?;
    let quiet =
        ["-qw", "net.ipv4.conf.all.send_redirects=0", "net.ipv4.conf.default.send_redirects=0"];
    router.exec("sysctl", &quiet)?;
    router.ip("addr add 192.0.2.254/24 dev eth0")?;
    router.exec("sysctl", &["-qw", "net.ipv4.conf.eth0.send_redirects=0"])?;
    router.ip("link set eth0 up")?;
    for (node, other) in [(&one, 2), (&two, 1)] {
        router.ip(&format!("route add 192.0.2.{other}/32 dev eth0 mtu lock {NARROW}"))?;
        node.netns.ip(&format!("route add 192.0.2.{other}/32 via 192.0.2.254 dev eth0"))?;
    }
    let live = |node: &Node, prefix: &str, other: &str| {
        Live::start(node, true, Some(Hooks::Auto), |running| {
            let own = format!("{prefix}::/64");
            running.connect(&own);
            let table = running.table();
            table.apply(&Change::AddPeer(l2(other)));
            table.apply(&route(&own, NextHop::Local, false));
            table.apply(&route("2001:d00::/24", to(other), false));
        })
    };
    let _agents = (live(&one, a, "192.0.2.2:8061"), live(&two, b, "192.0.2.1:8061"));
    let started = Instant::now();
    let first = stream(&one, &two, &format!("{b}::1"), |received| {
        another_megabyte(received).context("the first megabyte")?;
        let first = started.elapsed();
        for _ in 0..4 {
            another_megabyte(received)?;
        }
        Ok(first)
    })?;
    let test = "long_segments_get_through_an_underlay_with_a_narrow_path";
    let mut case = held_in(test, &["F23"], Level::Namespaces);
    case.figure(format!(
        "over a router with {NARROW} bytes behind it: first megabyte of TCP after {} ms, five in {} ms",
        first.as_millis(),
        started.elapsed().as_millis()
    ));
    Ok(())
}
