//! Which Servers a node uses of many: two, the nearest, those with room, and others when they go.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aero_protocol::Output;
use aero_protocol::address::{LinkLayerAddress, ServerId};
use aero_protocol::client::{ClientSpec, Config, Event, MOVE_TIME, Node, REST_TIME};
use aero_protocol::server::{Authentication, Mapping};
use common::{Link, duid, l2, node_address, prefix, server_address};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

const SECOND: Duration = Duration::from_secs(1);
const MS: Duration = Duration::from_millis(1);

/// Servers 11 and following, which a Relay joins, and node 21 with Client 1, which is to use two.
fn link(servers: u8) -> Link {
    link_at(servers, &[])
}

/// The same with Servers at distances.
fn link_at(servers: u8, one_way: &[(u8, Duration)]) -> Link {
    let mut link = Link::new();
    delays(&mut link, one_way, Duration::ZERO);
    let all: Vec<_> = (11..11 + servers).map(|n| link.add_server(n)).collect();
    for server in &all {
        join(&mut link, *server);
    }
    node(&mut link, 21, &all);
    link
}

fn join(link: &mut Link, server: LinkLayerAddress) {
    let relay = l2("192.0.2.9:8060");
    link.server(server).engine.add_relay(ServerId::from_underlay(relay.ip), relay);
    link.drain(server);
}

fn node(link: &mut Link, n: u8, servers: &[LinkLayerAddress]) {
    link.add_node(n, &[]);
    let now = link.now;
    let engine = &mut link.node(node_address(n)).engine;
    engine.use_servers(Some(2), now);
    engine.add_servers(servers.iter().copied(), now);
    link.drain(node_address(n));
    link.map(u16::from(n) - 20, 1, node_address(n));
}

/// Servers at which Client 1 has a lease.
fn bound(link: &mut Link) -> Vec<LinkLayerAddress> {
    link.node(node_address(21)).engine.standing(&duid(1)).unwrap().bound
}

fn default(link: &mut Link) -> LinkLayerAddress {
    link.node(node_address(21)).engine.default_server().unwrap()
}

/// Runs, and looks each 10 ms that the Client is served, and that data goes by a Server that knows it
/// unless it has just died.
fn run_served(link: &mut Link, time: Duration, but_for: Duration) {
    let (end, begin) = (link.now + time, link.now);
    while link.now < end {
        link.run(10 * MS);
        assert!(link.node(node_address(21)).engine.standing(&duid(1)).unwrap().served);
        let by = default(link);
        if link.now >= begin + but_for {
            assert!(!link.dead.contains(&by), "after {:?}", link.now - begin);
            let knows = link.server(by).engine.neighbors().any(|n| n.prefix == prefix(1));
            assert!(knows, "{by} does not know the Client after {:?}", link.now - begin);
        }
    }
}

/// Delays of the ways between node 21 and Servers by number; 1 ms for all others.
fn delays(link: &mut Link, one_way: &[(u8, Duration)], jitter: Duration) {
    let map: BTreeMap<_, _> = one_way.iter().map(|(n, d)| (server_address(*n), *d)).collect();
    let mut rng = StdRng::seed_from_u64(7);
    link.delay = Box::new(move |from, to| {
        let base = map.get(&from).or(map.get(&to)).copied().unwrap_or(MS);
        base + jitter.mul_f64(rng.random_range(0.0..1.0))
    });
}

fn lefts(link: &mut Link) -> Vec<(LinkLayerAddress, bool)> {
    let events = &link.node(node_address(21)).events;
    let left = |e: &Event| match e {
        Event::LeftServer { server, confirmed, .. } => Some((*server, *confirmed)),
        _ => None,
    };
    events.iter().filter_map(left).collect()
}

#[test]
fn of_five_servers_two_are_used_and_the_others_are_asked_how_they_stand() {
    let mut link = link(5);
    link.attach(node_address(21), 1, 1);
    link.run(30 * SECOND);
    let used = bound(&mut link);
    assert_eq!(used.len(), 2);
    for server in link.servers() {
        let leases = link.server(server).engine.neighbors().count();
        assert_eq!(leases, usize::from(used.contains(&server)), "{server}");
        let asked =
            link.sent.iter().filter(|s| s.to == server && s.name() == "InformationRequest").count();
        if !used.contains(&server) {
            assert!((5..=8).contains(&asked), "{server} was asked {asked} times");
        }
    }
    // The first lease: a round trip to ask all, another for the lease.
    let first = link.sent.iter().find(|s| s.name() == "Reply" && s.packet.len() > 150).unwrap();
    assert!(first.at - link.start < 10 * MS);
}

#[test]
fn when_one_of_two_dies_a_third_takes_its_place_and_the_client_is_served_all_the_time() {
    let mut link = link(5);
    link.attach(node_address(21), 1, 1);
    link.run(10 * SECOND);
    for _ in 0..3 {
        let before = bound(&mut link);
        let dies = default(&mut link);
        link.dead.push(dies);
        run_served(&mut link, 5 * SECOND, 4500 * MS);
        let after = bound(&mut link);
        let used = used(&mut link);
        assert_eq!(used.len(), 2, "two again");
        assert!(!used.contains(&dies) && used.iter().all(|s| after.contains(s)));
        assert!(used.iter().any(|s| before.contains(s)), "the other one stays");
        link.run(10 * SECOND);
    }
    // Three of five are dead; the fourth dies, and there is no other.
    let dies = default(&mut link);
    link.dead.push(dies);
    run_served(&mut link, 60 * SECOND, 4500 * MS);
    assert_eq!(bound(&mut link).len(), 1);
    // One that comes back is used.
    let back = link.dead.remove(0);
    link.run(15 * SECOND);
    assert_eq!(bound(&mut link).len(), 2);
    assert!(used(&mut link).contains(&back));
}

fn used(link: &mut Link) -> Vec<LinkLayerAddress> {
    let all = link.servers();
    let engine = &link.node(node_address(21)).engine;
    all.into_iter().filter(|s| engine.uses(*s)).collect()
}

#[test]
fn when_one_of_two_leaves_a_third_takes_its_place_at_once() {
    for told in [false, true] {
        let mut link = link(3);
        link.attach(node_address(21), 1, 1);
        link.run(10 * SECOND);
        let (goes, at) = (default(&mut link), link.now);
        if told {
            link.node(node_address(21)).engine.leave_server(goes, at);
        } else {
            link.node(node_address(21)).engine.remove_server(goes, at);
        }
        link.drain(node_address(21));
        run_served(&mut link, 50 * MS, Duration::ZERO);
        let now = bound(&mut link);
        assert!(now.len() == 2 && !now.contains(&goes), "{now:?}");
    }
}

#[test]
fn servers_without_a_relay_are_all_used_and_two_are_enough_when_it_is_there() {
    let mut link = Link::new();
    let all: Vec<_> = (11..14).map(|n| link.add_server(n)).collect();
    node(&mut link, 21, &all);
    link.attach(node_address(21), 1, 1);
    link.run(SECOND);
    assert_eq!(bound(&mut link), all);
    all.iter().for_each(|s| join(&mut link, *s));
    run_served(&mut link, 60 * SECOND, Duration::ZERO);
    assert_eq!(bound(&mut link).len(), 2);
    assert_eq!(used(&mut link), bound(&mut link));
}

#[test]
fn the_nearest_two_are_chosen_and_data_goes_by_the_nearest() {
    let mut link = link_at(4, &[(11, 30 * MS), (12, 20 * MS), (13, 10 * MS), (14, 40 * MS)]);
    link.attach(node_address(21), 1, 1);
    link.run(5 * SECOND);
    assert_eq!(bound(&mut link), [server_address(12), server_address(13)]);
    assert_eq!(default(&mut link), server_address(13));
    let distance = link.node(node_address(21)).engine.distance(server_address(13));
    assert_eq!(distance, Some(20 * MS));
}

#[test]
fn a_server_that_is_clearly_nearer_for_a_while_is_used_and_the_farthest_released() {
    let mut link = link_at(4, &[(11, 5 * MS), (12, 6 * MS), (13, 50 * MS), (14, 60 * MS)]);
    link.attach(node_address(21), 1, 1);
    link.run(30 * SECOND);
    let before = default(&mut link);
    assert_eq!(bound(&mut link), [server_address(11), server_address(12)]);
    // The node goes elsewhere: what was near is far, and the other way round.
    delays(&mut link, &[(11, 50 * MS), (12, 60 * MS), (13, 5 * MS), (14, 6 * MS)], Duration::ZERO);
    let at = link.now;
    while default(&mut link) == before {
        run_served(&mut link, SECOND, Duration::ZERO);
        assert!(link.now < at + 3 * MOVE_TIME + 15 * SECOND);
    }
    println!("data goes by a near Server {:?} after the move", link.now - at);
    assert!(link.now >= at + MOVE_TIME, "not at once");
    run_served(&mut link, 2 * REST_TIME + 3 * MOVE_TIME, Duration::ZERO);
    assert_eq!(bound(&mut link), [server_address(13), server_address(14)]);
    let mut left = lefts(&mut link);
    left.sort();
    assert_eq!(left, [(server_address(11), false), (server_address(12), false)]);
    // The Release goes through the new Server, which must know the old one; it got it all the same.
    let releases = link.sent.iter().filter(|s| s.name() == "Release").count();
    assert!(releases >= 2, "{releases}");
}

#[test]
fn jitter_moves_nobody() {
    let mut link = link(5);
    let around = |ms: u32| ms * MS;
    let all = [(11, around(5)), (12, around(5)), (13, around(6)), (14, around(5)), (15, around(6))];
    delays(&mut link, &all, 20 * MS);
    link.attach(node_address(21), 1, 1);
    link.run(30 * SECOND);
    let (first, by) = (bound(&mut link), default(&mut link));
    let mut changes = 0;
    for _ in 0..600 {
        run_served(&mut link, SECOND, Duration::ZERO);
        changes += usize::from(bound(&mut link) != first || default(&mut link) != by);
    }
    assert_eq!((changes, lefts(&mut link).len()), (0, 0), "in ten minutes");
}

/// Four Servers of equal distance, and what so many nodes choose, each with one Client: by Server how
/// many chose it, and for how many it is the default one.
fn spread(
    nodes: u16,
    servers: &mut BTreeMap<LinkLayerAddress, aero_protocol::server::Server>,
    first: u16,
) -> (BTreeMap<LinkLayerAddress, usize>, BTreeMap<LinkLayerAddress, usize>) {
    let start = Instant::now();
    let (mut chosen, mut by) = (BTreeMap::new(), BTreeMap::new());
    for n in first..first + nodes {
        let at = LinkLayerAddress::new(
            std::net::IpAddr::from([10, 0, n.to_be_bytes()[0], n.to_be_bytes()[1]]),
            8061,
        );
        for server in servers.values_mut() {
            let mapping =
                Mapping { prefix: prefix(n), client: duid(n), epoch: common_epoch(), holder: None };
            server.set_mapping(mapping, start);
        }
        let mut node = Node::new(Config {
            asps: Vec::new(),
            link_id: 0,
            node: format!("node-{n}"),
            seed: u64::from(n),
            optimize: false,
        });
        node.use_servers(Some(2), start);
        node.add_servers(servers.keys().copied(), start);
        node.attach(ClientSpec { client: duid(n), claim: None, prefixes: vec![] }, start);
        // All messages take a millisecond each.
        let mut now = start;
        for _ in 0..10 {
            let mut said = Vec::new();
            while let Some(output) = node.poll_output() {
                if let Output::Send { to, packet } = output {
                    said.push((to, packet));
                }
            }
            now += MS;
            let mut answers = Vec::new();
            for (to, packet) in said {
                let server = servers.get_mut(&to).unwrap();
                server.handle_packet(at, &packet, now);
                while let Some(output) = server.poll_output() {
                    if let Output::Send { packet, .. } = output {
                        answers.push((to, packet));
                    }
                }
            }
            now += MS;
            for (from, packet) in answers {
                node.handle_packet(from, &packet, now);
            }
        }
        let bound = node.standing(&duid(n)).unwrap().bound;
        assert_eq!(bound.len(), 2);
        bound.iter().for_each(|s| *chosen.entry(*s).or_default() += 1);
        *by.entry(node.default_server().unwrap()).or_default() += 1;
    }
    (chosen, by)
}

fn common_epoch() -> aero_protocol::address::Epoch {
    aero_protocol::address::Epoch(1)
}

fn four_servers() -> BTreeMap<LinkLayerAddress, aero_protocol::server::Server> {
    let mut link = link(4);
    let now = link.now;
    link.servers()
        .into_iter()
        .map(|at| {
            let Some(common::Role::Server(s)) = link.roles.remove(&at) else { panic!() };
            let mut engine = s.engine;
            let asps = vec!["2001:db8::/32".parse().unwrap()];
            engine.set_link(asps, 40 * SECOND, Authentication::None);
            engine.handle_timeout(now);
            (at, engine)
        })
        .collect()
}

#[test]
fn a_thousand_clients_split_evenly_over_four_equal_servers() {
    let mut servers = four_servers();
    let (chosen, by) = spread(1000, &mut servers, 1);
    println!("leases {:?}, default {:?}", chosen.values(), by.values());
    assert_eq!((chosen.len(), by.len()), (4, 4));
    for n in chosen.values() {
        assert!((450..=550).contains(n), "{n} of 1000 have a lease, where 500 is even");
    }
    for n in by.values() {
        assert!((225..=275).contains(n), "{n} of 1000 send by it, where 250 is even");
    }
}

#[test]
fn new_clients_go_where_there_is_room_and_old_ones_stay() {
    let mut servers = four_servers();
    let full = *servers.keys().next().unwrap();
    let _ = spread(200, &mut servers, 1);
    let before = servers[&full].neighbors().count();
    assert!((80..=120).contains(&before), "{before}");
    // It has as many as a third of its room; the others have next to none.
    servers.get_mut(&full).unwrap().set_room(3 * before);
    let (chosen, _) = spread(100, &mut servers, 201);
    assert_eq!(chosen.get(&full), None);
    assert_eq!(servers[&full].neighbors().count(), before, "nobody left");
}
