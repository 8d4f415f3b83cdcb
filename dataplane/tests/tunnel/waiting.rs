//! Packets for a Client that is between two Proxies.

use std::time::Duration;

use aero_dataplane::ForwardingTable;
use aero_protocol::address::LinkLayerAddress;
use aero_protocol::forwarding::{Change, NextHop};

use super::servers::inner;
use super::support::Net;
use super::{A_INNER, B, B_INNER, config, route, socket};

#[test]
fn what_waits_goes_on_in_order_and_before_anything_newer() {
    for ipv6 in [false, true] {
        let net = Net::new(ipv6, 1500);
        let node = net.start("b", B, 0, &[], config(true));
        let to = std::net::SocketAddr::from((net.address("b"), B));
        let address = net.address("a").to_string();
        let [server, former, next] = [9001, 9002, 9003]
            .map(|p| (socket(&net, "a", &address, p), LinkLayerAddress::new(net.address("a"), p)));
        node.forwarder.apply(&Change::AddPeer(server.1));
        let prefix = "2001:db8:0:2::/64";
        let until = std::time::Instant::now() + Duration::from_secs(60);
        let acp = prefix.parse().unwrap();
        node.forwarder.apply(&Change::SetHandover { prefix: acp, from: former.1, until });
        let other = "2001:db8:0:3::/64";
        route(&node, other, NextHop::Neighbor(next.1));
        route(&node, prefix, NextHop::Hold { first: Some(former.1) });
        // Told from each other by their length.
        let numbered = |n: usize| inner(A_INNER, B_INNER, 64, 0, 100 + n);
        for (from, n) in [(&server, 3), (&former, 1), (&server, 4), (&former, 2), (&server, 5)] {
            from.0.send_to(&numbered(n), to).unwrap();
        }
        // Behind them all, to somebody else: when it has come, the others wait.
        let mark = inner(A_INNER, "2001:db8:0:3::1", 64, 0, 500);
        server.0.send_to(&mark, to).unwrap();
        let mut buffer = [0; 2048];
        let length = next.0.recv(&mut buffer).unwrap();
        assert_eq!(buffer[..length], mark, "nothing that was to wait");
        route(&node, prefix, NextHop::Neighbor(next.1));
        server.0.send_to(&numbered(6), to).unwrap();
        for n in 1..=6 {
            let length = next.0.recv(&mut buffer).unwrap();
            assert_eq!(buffer[..length], numbered(n), "packet {n}");
        }
    }
}

#[test]
fn what_waits_goes_on_also_when_nothing_newer_comes_and_no_more_waits_than_there_is_room_for() {
    let net = Net::new(false, 1500);
    let node = net.start("b", B, 0, &[], config(true));
    let to = std::net::SocketAddr::from((net.address("b"), B));
    let address = net.address("a").to_string();
    let [server, next] = [9001, 9003]
        .map(|p| (socket(&net, "a", &address, p), LinkLayerAddress::new(net.address("a"), p)));
    node.forwarder.apply(&Change::AddPeer(server.1));
    let prefix = "2001:db8:0:2::/64";
    route(&node, prefix, NextHop::Hold { first: None });
    let packet = inner(A_INNER, B_INNER, 64, 0, 100);
    let refused =
        || node.forwarder.counters().drops.get(&aero_protocol::forwarding::Drop::NoRoute).copied();
    super::wait("there is no room any more", || {
        for _ in 0..200 {
            server.0.send_to(&packet, to).unwrap();
        }
        refused().is_some_and(|n| n > 0)
    });
    route(&node, prefix, NextHop::Neighbor(next.1));
    let mut buffer = [0; 2048];
    let length = next.0.recv(&mut buffer).unwrap();
    assert_eq!(buffer[..length], packet);
}
