//! Relays, and Servers towards them: the rules of forwarding inside the link (draft -48 section
//! 3.5), for data by the tables and for control messages by the engines.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "common/topology.rs"]
mod topology;

use std::net::Ipv6Addr;

use aero_protocol::address::aero_address;
use aero_protocol::relay::{Event, Refused, RouteRefused};
use aero_protocol::server::Announcement;
use aero_protocol::wire::ip::{self, Packet};
use aero_protocol::wire::nd::{Nd, NdMessage, NdOption};
use topology::{Rig, SECOND, acp, host, id, infra_at, l2, node_at};

const R1: u8 = 10;
const S1: u8 = 11;
const S2: u8 = 12;

fn solicitation(source: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let options = vec![NdOption::Nonce(vec![1, 2, 3, 4, 5, 6])];
    let message = NdMessage::Solicitation { target };
    Nd { source, destination: target, message, options }.emit().unwrap()
}

/// Advertisements that answer [`solicitation`].
fn advertisements(rig: &Rig, since: usize) -> Vec<(topology::Sent, Nd)> {
    let sent = rig.since(since).iter().filter(|s| s.name() == "icmpv6 136");
    sent.map(|s| (s.clone(), Nd::parse(&Packet::parse(&s.packet).unwrap()).unwrap()))
        .filter(|(_, nd)| nd.nonce() == Some(&[1, 2, 3, 4, 5, 6]))
        .collect()
}

#[test]
fn packets_between_clients_of_two_servers_go_by_the_relay_both_ways() {
    let rig = Rig::standard();
    let there = rig.way(21, host(1), host(2));
    assert_eq!(there, (vec![infra_at(S1), infra_at(R1), infra_at(S2), node_at(22)], Ok(())));
    let back = rig.way(22, host(2), host(1));
    assert_eq!(back, (vec![infra_at(S2), infra_at(R1), infra_at(S1), node_at(21)], Ok(())));
}

#[test]
fn a_server_announces_its_own_clients_and_no_others() {
    let _row = aero_elements::covers(&["D5"]);
    let rig = Rig::standard();
    let of = |n: u8| -> Vec<Announcement> {
        rig.updates.iter().filter(|u| u.server == id(n)).map(|u| u.what).collect()
    };
    assert_eq!(of(S1), [Announcement::Announce(acp(1))]);
    assert_eq!(of(S2), [Announcement::Announce(acp(2))]);
    assert!(rig.reaches(21, 1, 2, node_at(22)) && rig.reaches(22, 2, 1, node_at(21)));
}

#[test]
fn what_a_server_does_not_know_goes_to_the_relay_which_swallows_it_if_it_is_nobodys() {
    let rig = Rig::standard();
    let (hops, end) = rig.way(21, host(1), host(0x77));
    assert_eq!((hops, end), (vec![infra_at(S1), infra_at(R1)], Err("unreachable".into())));
}

#[test]
fn what_is_outside_the_service_prefixes_leaves_the_link_at_the_relay() {
    let rig = Rig::standard();
    let outside = "2001:db9::1".parse().unwrap();
    let way = rig.way_from(node_at(21), infra_at(S1), host(1), outside);
    assert_eq!(way, (vec![infra_at(S1), infra_at(R1)], Ok(())));
    let v4 = rig.way_from(infra_at(S1), infra_at(R1), host(1), "198.51.100.7".parse().unwrap());
    assert_eq!(v4, (vec![infra_at(R1)], Ok(())));
}

#[test]
fn from_the_internetwork_a_packet_enters_by_its_route_and_never_with_a_source_of_the_link() {
    let rig = Rig::standard();
    let table = &rig.places[&infra_at(R1)].table;
    let fate = |source: &str, destination| {
        let inner =
            aero_protocol::forwarding::Inner { source: source.parse().unwrap(), destination };
        table.egress(inner, rig.now)
    };
    use aero_protocol::forwarding::{Disposition, Drop};
    assert_eq!(fate("2001:db9::1", host(1)), Disposition::Tunnel(infra_at(S1)));
    assert_eq!(fate("2001:db9::1", host(0x77)), Disposition::Drop(Drop::Unreachable));
    assert_eq!(fate("2001:db8:0:2::1", host(1)), Disposition::Drop(Drop::ForeignSource));
}

#[test]
fn a_server_never_sends_back_to_any_relay_what_came_from_one() {
    let _row = aero_elements::covers(&["D6"]);
    let mut rig = Rig::standard();
    rig.add_relay(13);
    rig.mesh();
    for relay in [R1, 13] {
        let way = rig.way_from(infra_at(relay), infra_at(S1), host(2), host(0x77));
        assert_eq!(way, (vec![infra_at(S1)], Err("would_return".into())), "data from {relay}");
        let before = rig.sent.len();
        let ns = solicitation(aero_address(acp(2)), aero_address(acp(0x77)));
        rig.inject(infra_at(relay), infra_at(S1), &ns);
        assert!(rig.since(before).is_empty(), "control from {relay}");
    }
}

#[test]
fn a_relay_never_sends_back_to_the_server_that_a_packet_came_from() {
    let _row = aero_elements::covers(&["D6"]);
    let mut rig = Rig::standard();
    let way = rig.way_from(infra_at(S1), infra_at(R1), host(2), host(1));
    assert_eq!(way, (vec![infra_at(R1)], Err("would_return".into())));
    let before = rig.sent.len();
    let ns = solicitation(aero_address(acp(2)), aero_address(acp(1)));
    rig.inject(infra_at(S1), infra_at(R1), &ns);
    assert!(rig.since(before).is_empty());
    let dropped = Event::Dropped { from: infra_at(S1), why: Refused::WouldReturn };
    assert_eq!(rig.places[&infra_at(R1)].relay_events.last(), Some(&dropped));
}

#[test]
fn the_port_is_part_of_a_permanent_neighbours_identity() {
    let _row = aero_elements::covers(&["C1c"]);
    let mut rig = Rig::standard();
    let forged = l2("192.0.2.10:9999");
    let refused = (vec![infra_at(S1)], Err("origin_refused".to_string()));
    assert_eq!(rig.way_from(forged, infra_at(S1), host(2), host(1)), refused);
    let good = rig.way_from(infra_at(R1), infra_at(S1), host(2), host(1));
    assert_eq!(good, (vec![infra_at(S1), node_at(21)], Ok(())));
    let before = rig.sent.len();
    let ns = solicitation(aero_address(acp(2)), aero_address(acp(1)));
    rig.inject(forged, infra_at(S1), &ns);
    rig.inject(l2("192.0.2.11:9999"), infra_at(R1), &ns);
    assert!(rig.since(before).is_empty());
}

#[test]
fn a_solicitation_crosses_the_link_unchanged_and_its_answer_comes_back() {
    // Of data: `a_server_carries_the_outer_header_on_and_never_touches_the_inner_one`.
    let _row = aero_elements::covers(&["D7", "J2"]);
    let mut rig = Rig::standard();
    let before = rig.sent.len();
    let ns = solicitation(aero_address(acp(1)), aero_address(acp(2)));
    rig.inject(node_at(21), infra_at(S1), &ns);
    rig.run(SECOND / 10);
    let hops: Vec<_> = rig.since(before).iter().filter(|s| s.packet == ns).map(|s| s.to).collect();
    assert_eq!(hops, [infra_at(R1), infra_at(S2), node_at(22)], "byte for byte, hop limit 255");
    let answers = advertisements(&rig, before);
    let hops: Vec<_> = answers.iter().map(|(s, _)| s.to).collect();
    assert_eq!(hops, [infra_at(S2), infra_at(R1), infra_at(S1), node_at(21)]);
    for sent in rig.since(before) {
        assert_eq!(Packet::parse(&sent.packet).unwrap().hop_limit, 255);
    }
}

#[test]
fn clients_servers_and_relays_answer_their_neighbours_and_nobody_else() {
    let _row = aero_elements::covers(&["C1b", "G1"]);
    let mut rig = Rig::standard();
    for (target, what) in [
        (aero_address(acp(2)), "C2"),
        (id(S1).address(), "S1"),
        (id(R1).address(), "R1"),
        (id(S2).address(), "S2"),
    ] {
        let before = rig.sent.len();
        rig.inject(node_at(21), infra_at(S1), &solicitation(aero_address(acp(1)), target));
        rig.run(SECOND / 10);
        let answers = advertisements(&rig, before);
        let (last, nd) = answers.last().unwrap_or_else(|| panic!("{what} is silent"));
        assert_eq!((last.to, nd.source), (node_at(21), target), "{what}");
        // From an address that has no entry.
        let before = rig.sent.len();
        rig.inject(
            l2("192.0.2.99:8061"),
            infra_at(S1),
            &solicitation(aero_address(acp(1)), target),
        );
        assert!(rig.since(before).is_empty(), "{what}");
    }
}

#[test]
fn every_server_answers_to_the_anycast_address_from_its_own_and_a_relay_does_not() {
    let _row = aero_elements::covers(&["H4", "K6"]);
    let mut rig = Rig::standard();
    let anycast: Ipv6Addr = "fe80::".parse().unwrap();
    let ns = solicitation(aero_address(acp(1)), anycast);
    let before = rig.sent.len();
    rig.inject(node_at(21), infra_at(S1), &ns);
    let answers = advertisements(&rig, before);
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0].1.source, id(S1).address());
    let message = NdMessage::RouterSolicitation;
    let source = aero_address(acp(1));
    let rs = Nd { source, destination: anycast, message, options: Vec::new() }.emit().unwrap();
    let before = rig.sent.len();
    rig.inject(node_at(21), infra_at(S1), &rs);
    let ra = rig.since(before)[0].clone();
    let nd = Nd::parse(&Packet::parse(&ra.packet).unwrap()).unwrap();
    assert_eq!((ra.to, nd.source), (node_at(21), id(S1).address()));
    assert_eq!(nd.message, NdMessage::RouterAdvertisement { lifetime: 40 });
    let before = rig.sent.len();
    rig.inject(l2("192.0.2.99:8061"), infra_at(S1), &rs);
    rig.inject(infra_at(S1), infra_at(R1), &rs);
    rig.inject(infra_at(S1), infra_at(R1), &ns);
    assert!(rig.since(before).is_empty());
}

#[test]
fn a_link_local_destination_finds_the_client_by_longest_match() {
    let _row = aero_elements::covers(&["G1a"]);
    let mut rig = Rig::standard();
    let wide = "2001:db8:0:100::/56".parse().unwrap();
    rig.map_prefix(wide, 3, 1, &[node_at(22).ip]);
    rig.attach(22, 3, 1);
    rig.run(SECOND);
    let inside: Ipv6Addr = "fe80::2001:db8:0:117".parse().unwrap();
    let before = rig.sent.len();
    rig.inject(node_at(21), infra_at(S1), &solicitation(aero_address(acp(1)), inside));
    rig.run(SECOND / 10);
    assert!(rig.since(before).iter().any(|s| s.to == node_at(22)));
    let way = rig.way_from(node_at(21), infra_at(S1), host(1), inside.into());
    assert_eq!(way.0.last(), Some(&node_at(22)));
    assert_eq!(
        rig.way_from(node_at(21), infra_at(S1), host(1), aero_address(acp(2)).into()).0,
        rig.way(21, host(1), host(2)).0,
        "as to an address inside the prefix"
    );
}

#[test]
fn router_messages_and_forged_answers_of_clients_are_not_passed_on() {
    let mut rig = Rig::standard();
    let (own, other) = (aero_address(acp(1)), aero_address(acp(2)));
    let message = NdMessage::RouterAdvertisement { lifetime: 1800 };
    let ra = Nd { source: own, destination: other, message, options: Vec::new() }.emit().unwrap();
    let reply = ip::udp((own, 547), (other, 546), b"whatever").unwrap();
    let foreign = solicitation(aero_address(acp(9)), other);
    let before = rig.sent.len();
    for packet in [ra, reply, foreign] {
        rig.inject(node_at(21), infra_at(S1), &packet);
    }
    assert!(rig.since(before).is_empty());
}

#[test]
fn of_two_announcing_servers_the_newest_is_used_and_the_other_when_it_is_gone() {
    let mut rig = Rig::standard();
    let now_by = |rig: &Rig| rig.way_from(infra_at(13), infra_at(R1), host(9), host(1)).0;
    // Another Server as the sender, so that neither is the one it came from.
    rig.with_relay(R1, |r| r.add_server(id(13), infra_at(13)));
    assert_eq!(now_by(&rig)[1], infra_at(S1));
    rig.with_relay(R1, |r| r.set_route(acp(1), id(S2))).unwrap();
    assert_eq!(now_by(&rig)[1], infra_at(S2));
    rig.with_relay(R1, |r| r.set_usable(id(S2), false));
    assert_eq!(now_by(&rig)[1], infra_at(S1));
    rig.with_relay(R1, |r| r.set_usable(id(S2), true));
    rig.with_relay(R1, |r| r.remove_route(acp(1), id(S2)));
    assert_eq!(now_by(&rig)[1], infra_at(S1));
    rig.with_relay(R1, |r| r.remove_route(acp(1), id(S1)));
    let (hops, end) = rig.way_from(infra_at(13), infra_at(R1), host(9), host(1));
    assert_eq!((hops.len(), end), (1, Err("unreachable".into())));
}

#[test]
fn a_route_outside_the_service_prefixes_is_refused() {
    let mut rig = Rig::standard();
    let mut set = |p: &str| rig.with_relay(R1, |r| r.set_route(p.parse().unwrap(), id(S1)));
    assert_eq!(set("2001:db9::/64"), Err(RouteRefused::OutsideService));
    assert_eq!(set("::/0"), Err(RouteRefused::OutsideService));
    assert_eq!(set("2001:db8::/65"), Err(RouteRefused::NoAcp));
    assert_eq!(set("2001:db8:0:9::/64"), Ok(()));
}

#[test]
fn when_a_relay_is_said_to_be_down_the_servers_use_the_other() {
    let mut rig = Rig::new();
    for n in [R1, 13] {
        rig.add_relay(n);
    }
    for n in [S1, S2] {
        rig.add_server(n);
    }
    rig.mesh();
    for (node, server, n) in [(21, S1, 1), (22, S2, 2)] {
        rig.add_node(node, &[server]);
        rig.map(n, 1, &[node_at(node).ip]);
        rig.attach(node, n, 1);
    }
    rig.run(SECOND);
    let used = rig.way(21, host(1), host(2)).0[1];
    let (down, other) = if used == infra_at(R1) { (R1, 13) } else { (13, R1) };
    rig.dead.insert(used);
    assert!(!rig.reaches(21, 1, 2, node_at(22)));
    for server in [S1, S2] {
        rig.with_server(server, |s, _| s.set_peer_usable(id(down), false));
    }
    assert_eq!(rig.way(21, host(1), host(2)).0[1], infra_at(other));
    assert!(rig.reaches(21, 1, 2, node_at(22)) && rig.reaches(22, 2, 1, node_at(21)));
}

proptest::proptest! {
    /// Whatever comes and goes in whatever order, a Relay's table says what its routes say: the
    /// newest usable announcer, or the black hole.
    #[test]
    fn a_relays_table_follows_its_routes(steps in proptest::collection::vec((0u8..5, 0u8..3, 1u16..4), 1..60)) {
        use aero_protocol::forwarding::{Disposition, Drop, Inner};
        use std::collections::BTreeMap;
        let mut rig = Rig::new();
        rig.add_relay(R1);
        // The model: per ACP the announcers, the newest last; per Server whether it is there and usable.
        let mut paths: BTreeMap<u16, Vec<u8>> = BTreeMap::new();
        let mut servers: BTreeMap<u8, bool> = BTreeMap::new();
        for (what, server, n) in steps {
            let server = server + 40;
            rig.with_relay(R1, |r| match what {
                0 => r.add_server(id(server), infra_at(server)),
                1 => r.remove_server(id(server)),
                2 => r.set_route(acp(n), id(server)).unwrap(),
                3 => r.remove_route(acp(n), id(server)),
                _ => r.set_usable(id(server), n % 2 == 0),
            });
            match what {
                0 => { servers.entry(server).or_insert(true); }
                1 => { servers.remove(&server); }
                2 => {
                    let list = paths.entry(n).or_default();
                    list.retain(|s| *s != server);
                    list.push(server);
                }
                3 => { paths.entry(n).or_default().retain(|s| *s != server); }
                _ => { if let Some(u) = servers.get_mut(&server) { *u = n % 2 == 0; } }
            }
            for n in 1..4 {
                let best = paths.get(&n).and_then(|l| l.iter().rev().find(|s| servers.get(*s) == Some(&true)));
                let inner = Inner { source: "2001:db9::1".parse().unwrap(), destination: host(n) };
                let want = best.map_or(Disposition::Drop(Drop::Unreachable), |s| Disposition::Tunnel(infra_at(*s)));
                proptest::prop_assert_eq!(rig.places[&infra_at(R1)].table.egress(inner, rig.now), want);
            }
        }
    }
}
