//! What becomes of a packet, rule by rule.

use super::*;
use std::time::Duration;

fn l2(s: &str) -> LinkLayerAddress {
    s.parse::<std::net::SocketAddr>().unwrap().into()
}

fn inner(source: &str, destination: &str) -> Inner {
    Inner { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
}

fn route(to: NextHop, transit: bool) -> Route {
    Route { to, transit, until: None }
}

fn client_table() -> (Table, LinkLayerAddress) {
    let server = l2("192.0.2.11:8060");
    let mut table = Table::default();
    table.apply(&Change::AddPeer(server));
    table.apply(&Change::SetRoute {
        prefix: "2001:db8::/32".parse().unwrap(),
        route: route(NextHop::Neighbor(server), false),
    });
    table.apply(&Change::SetRoute {
        prefix: "2001:db8:0:1::/64".parse().unwrap(),
        route: route(NextHop::Local, false),
    });
    (table, server)
}

#[test]
fn a_client_sends_what_it_does_not_know_to_its_server_and_only_from_its_own_prefix() {
    let (table, server) = client_table();
    let now = Instant::now();
    assert_eq!(
        table.egress(inner("2001:db8:0:1::5", "2001:db8:0:2::1"), now),
        Disposition::Tunnel(server)
    );
    assert_eq!(
        table.egress(inner("2001:db8:0:9::5", "2001:db8:0:2::1"), now),
        Disposition::Drop(Drop::ForeignSource)
    );
    assert_eq!(
        table.egress(inner("2001:db8:0:1::5", "2001:db9::1"), now),
        Disposition::Drop(Drop::NoRoute)
    );
}

#[test]
fn a_client_takes_packets_from_its_server_and_never_sends_them_back_into_the_link() {
    let (table, server) = client_table();
    let now = Instant::now();
    let for_us = inner("2001:db8:0:2::1", "2001:db8:0:1::1");
    assert_eq!(table.ingress(server, for_us, now), Disposition::Deliver);
    assert_eq!(
        table.ingress(l2("192.0.2.11:8061"), for_us, now),
        Disposition::Drop(Drop::OriginRefused),
        "the port is part of the identity"
    );
    assert_eq!(
        table.ingress(server, inner("2001:db8:0:2::1", "2001:db8:0:3::1"), now),
        Disposition::Drop(Drop::NotForUs)
    );
}

#[test]
fn a_neighbour_may_send_only_its_own_prefix_and_only_until_its_accept_time() {
    let (mut table, _) = client_table();
    let now = Instant::now();
    let peer = l2("192.0.2.12:8061");
    table.apply(&Change::SetSource {
        prefix: "2001:db8:0:2::/64".parse().unwrap(),
        from: peer,
        until: Some(now + Duration::from_secs(40)),
    });
    let good = inner("2001:db8:0:2::1", "2001:db8:0:1::1");
    assert_eq!(table.ingress(peer, good, now), Disposition::Deliver);
    let forged = inner("2001:db8:0:3::1", "2001:db8:0:1::1");
    assert_eq!(table.ingress(peer, forged, now), Disposition::Drop(Drop::OriginRefused));
    let later = now + Duration::from_secs(41);
    assert_eq!(table.ingress(peer, good, later), Disposition::Drop(Drop::OriginRefused));
}

#[test]
fn the_node_that_a_prefix_left_may_send_on_its_packets_for_the_time_of_the_hand_over() {
    let now = Instant::now();
    let (old, new) = (l2("192.0.2.12:8061"), l2("192.0.2.13:8061"));
    let prefix: IpNet = "2001:db8:0:1::/64".parse().unwrap();
    let mut table = Table::default();
    table.apply(&Change::SetRoute { prefix, route: route(NextHop::Neighbor(new), true) });
    let packet = inner("2001:db8:0:2::1", "2001:db8:0:1::1");
    assert_eq!(table.ingress(old, packet, now), Disposition::Drop(Drop::OriginRefused));
    let until = now + Duration::from_secs(30);
    table.apply(&Change::SetHandover { prefix, from: old, until });
    assert_eq!(table.ingress(old, packet, now), Disposition::Tunnel(new));
    assert_eq!(
        table.ingress(old, inner("2001:db8:0:2::1", "2001:db8:0:3::1"), now),
        Disposition::Drop(Drop::OriginRefused)
    );
    assert_eq!(table.ingress(old, packet, until), Disposition::Drop(Drop::OriginRefused));
    table.expire(until);
    assert!(table.handovers.is_empty());
}

#[test]
fn a_packet_never_goes_back_to_where_it_came_from() {
    let now = Instant::now();
    let node = l2("192.0.2.12:8061");
    let prefix: IpNet = "2001:db8:0:1::/64".parse().unwrap();
    let mut table = Table::default();
    table.apply(&Change::SetRoute { prefix, route: route(NextHop::Neighbor(node), true) });
    table.apply(&Change::AddPeer(node));
    assert_eq!(
        table.ingress(node, inner("2001:db8:0:2::1", "2001:db8:0:1::1"), now),
        Disposition::Drop(Drop::WouldReturn)
    );
}

#[test]
fn what_came_from_a_peer_never_goes_to_a_relay_and_may_go_to_a_clients_new_server() {
    let now = Instant::now();
    let (relays, server) = ([l2("192.0.2.10:8060"), l2("192.0.2.13:8060")], l2("192.0.2.12:8060"));
    let mut table = Table::default();
    for relay in relays {
        table.apply(&Change::AddRelay(relay));
    }
    table.apply(&Change::AddPeer(server));
    let route = route(NextHop::Neighbor(relays[0]), true);
    table.apply(&Change::SetRoute { prefix: "::/0".parse().unwrap(), route });
    let packet = inner("2001:db8:0:2::1", "2001:db8:0:1::1");
    for peer in [relays[0], relays[1], server] {
        let fate = table.ingress(peer, packet, now);
        assert_eq!(fate, Disposition::Drop(Drop::WouldReturn), "{peer}");
    }
    let prefix = "2001:db8:0:1::/64".parse().unwrap();
    let route = Route { to: NextHop::Neighbor(server), ..route };
    table.apply(&Change::SetRoute { prefix, route });
    assert_eq!(table.ingress(relays[0], packet, now), Disposition::Tunnel(server));
}

#[test]
fn a_link_local_destination_is_looked_up_as_the_prefix_that_it_stands_for() {
    let now = Instant::now();
    let (client, server) = (l2("192.0.2.21:8061"), l2("192.0.2.12:8060"));
    let mut table = Table::default();
    table.apply(&Change::AddPeer(server));
    let prefix = "2001:db8:0:100::/56".parse().unwrap();
    let route = route(NextHop::Neighbor(client), true);
    table.apply(&Change::SetRoute { prefix, route });
    for to in ["2001:db8:0:117::1", "fe80::2001:db8:0:117", "fe80::2001:db8:0:100"] {
        let fate = table.ingress(server, inner("2001:db8:0:2::1", to), now);
        assert_eq!(fate, Disposition::Tunnel(client), "{to}");
    }
    let fate = table.ingress(server, inner("2001:db8:0:2::1", "fe80::2"), now);
    assert_eq!(fate, Disposition::Drop(Drop::NoRoute), "a Server's address is no prefix");
}

#[test]
fn a_neighbour_with_several_links_may_send_from_each_of_them() {
    let (mut table, _) = client_table();
    let now = Instant::now();
    let links = [l2("192.0.2.12:8061"), l2("198.51.100.12:8061")];
    let prefix = "2001:db8:0:2::/64".parse().unwrap();
    table.apply(&Change::SetSource { prefix, from: links[0], until: None });
    let until = Some(now + Duration::from_secs(40));
    table.apply(&Change::AddSource { prefix, from: links[1], until });
    let packet = inner("2001:db8:0:2::1", "2001:db8:0:1::1");
    for link in links {
        assert_eq!(table.ingress(link, packet, now), Disposition::Deliver);
    }
    let refused = Disposition::Drop(Drop::OriginRefused);
    let later = now + Duration::from_secs(40);
    assert_eq!(table.ingress(links[1], packet, later), refused);
    assert_eq!(table.ingress(links[0], packet, later), Disposition::Deliver);
    table.apply(&Change::SetSource { prefix, from: links[1], until: None });
    assert_eq!(table.ingress(links[0], packet, now), refused, "it was replaced");
}

#[test]
fn a_black_hole_swallows_what_has_no_longer_match_and_asks_for_an_icmp_error() {
    let now = Instant::now();
    let (s1, s2) = (l2("192.0.2.11:8060"), l2("192.0.2.12:8060"));
    let mut table = Table::default();
    table.apply(&Change::AddPeer(s1));
    let mut set = |prefix: &str, to| {
        let prefix = prefix.parse().unwrap();
        table.apply(&Change::SetRoute { prefix, route: route(to, true) });
    };
    set("2001:db8::/32", NextHop::Unreachable);
    set("2001:db8:0:1::/64", NextHop::Neighbor(s2));
    let unreachable = Disposition::Drop(Drop::Unreachable);
    let fate = table.ingress(s1, inner("2001:db8:0:2::1", "2001:db8:0:9::1"), now);
    assert_eq!(fate, unreachable);
    let fate = table.ingress(s1, inner("2001:db8:0:2::1", "2001:db8:0:1::1"), now);
    assert_eq!(fate, Disposition::Tunnel(s2));
}

#[test]
fn a_route_that_has_run_out_does_not_hide_the_shorter_one_behind_it() {
    let (mut table, server) = client_table();
    let now = Instant::now();
    let gone = Route {
        to: NextHop::Neighbor(l2("192.0.2.12:8061")),
        transit: true,
        until: Some(now + Duration::from_secs(30)),
    };
    let prefix = "2001:db8:0:7::/64".parse().unwrap();
    table.apply(&Change::SetRoute { prefix, route: gone });
    let packet = inner("2001:db8:0:1::5", "2001:db8:0:7::1");
    let later = now + Duration::from_secs(30);
    assert_eq!(table.egress(packet, now), Disposition::Tunnel(l2("192.0.2.12:8061")));
    assert_eq!(table.egress(packet, later), Disposition::Tunnel(server));
}

#[test]
fn a_direct_path_is_for_one_pair_of_prefixes_and_tells_that_it_was_used() {
    let (mut table, server) = client_table();
    let now = Instant::now();
    let own = "2001:db8:0:1::/64".parse().unwrap();
    let other = "2001:db8:0:4::/64".parse().unwrap();
    table.apply(&Change::SetRoute { prefix: other, route: route(NextHop::Local, false) });
    let (destination, to) = ("2001:db8:0:2::/64".parse().unwrap(), l2("192.0.2.12:8061"));
    let until = now + Duration::from_secs(30);
    table.apply(&Change::SetDirect { source: own, destination, to, until });
    let by_server = |disposition| Egress { disposition, by_server: true };
    let agreed = inner("2001:db8:0:1::5", "2001:db8:0:2::77");
    assert!(table.take_used().is_empty());
    let direct = Egress { disposition: Disposition::Tunnel(to), by_server: false };
    assert_eq!(table.egress_path(agreed, now), direct);
    assert_eq!(table.take_used(), [(own, destination)]);
    assert!(table.take_used().is_empty());
    // The other Client of the node has agreed nothing.
    let foreign = inner("2001:db8:0:4::5", "2001:db8:0:2::77");
    assert_eq!(table.egress_path(foreign, now), by_server(Disposition::Tunnel(server)));
    assert_eq!(table.egress_path(agreed, until), by_server(Disposition::Tunnel(server)));
    assert!(table.take_used().is_empty());
    table.apply(&Change::RemoveDirect { source: own, destination });
    assert_eq!(table.egress_path(agreed, now), by_server(Disposition::Tunnel(server)));
}

#[test]
fn the_addresses_of_a_cut_packet_are_not_read() {
    assert_eq!(Inner::of(&[0x60; 39]), None);
    assert_eq!(Inner::of(&[0x45; 19]), None);
    assert_eq!(Inner::of(&[0x00; 60]), None);
    assert_eq!(Inner::of(&[]), None);
}
