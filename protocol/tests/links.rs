//! Clients with several underlay links (draft -48 sections 3.5, 3.13, 3.15.1): which one is used,
//! how they come and go, what happens when the best one dies.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "common/topology.rs"]
mod topology;

use aero_protocol::address::{ALL_DHCP_SERVERS, LinkLayerAddress, aero_address};
use aero_protocol::client::Event;
use aero_protocol::server::{self, Ended};
use aero_protocol::wire::aero_options::{AeroOption, Claim};
use aero_protocol::wire::dhcpv6::{IaPd, Kind, Message, Prefix, StatusCode};
use aero_protocol::wire::ip::{self, Packet, Payload};
use topology::{Rig, SECOND, acp, duid, host, infra_at, l2, node_at};

const S1: u8 = 11;
const WIRELESS: u8 = 2;

fn wireless() -> LinkLayerAddress {
    l2("192.0.2.121:8061")
}

fn metered() -> LinkLayerAddress {
    l2("192.0.2.221:8061")
}

/// The standard rig, where node 21 has a second link (medium) and a third (low).
fn three_links() -> Rig {
    let mut rig = Rig::standard();
    rig.map(1, 1, &[node_at(21).ip, wireless().ip, metered().ip]);
    rig.add_link(21, WIRELESS, 2, wireless());
    rig.add_link(21, 3, 1, metered());
    rig.run(SECOND);
    rig
}

fn links_at(rig: &Rig, server: u8) -> Vec<(u8, u8, LinkLayerAddress)> {
    let neighbor = rig.server(server).neighbors().find(|n| n.prefix == acp(1)).unwrap();
    let mut links: Vec<_> =
        neighbor.links.iter().map(|l| (l.id, l.preference, l.address)).collect();
    links.sort();
    links
}

/// Where a packet for Client 1 leaves S1.
fn to(rig: &Rig) -> LinkLayerAddress {
    rig.way_from(infra_at(10), infra_at(S1), host(2), host(1)).0[1]
}

/// A message of Client 1 in its own hand, as another make would write it; the Reply.
fn ask(rig: &mut Rig, from: LinkLayerAddress, kind: Kind, options: &[AeroOption]) -> Message {
    ask_of(rig, from, kind, options, None)
}

fn ask_of(
    rig: &mut Rig,
    from: LinkLayerAddress,
    kind: Kind,
    options: &[AeroOption],
    server: Option<aero_protocol::address::Duid>,
) -> Message {
    let mut m = Message::new(kind, [3, 2, 1]);
    m.server = server;
    m.client = Some(duid(1));
    // As a Client does, it names the prefix that it has or wants.
    let wanted = Prefix { prefix: acp(1), preferred: 0, valid: 0 };
    m.ia_pd.push(IaPd { id: 1, prefixes: vec![wanted], ..IaPd::default() });
    m.rapid_commit = kind == Kind::Solicit;
    m.aero = options.to_vec();
    let source = aero_address(acp(1));
    let packet = ip::udp((source, 546), (ALL_DHCP_SERVERS, 547), &m.emit().unwrap()).unwrap();
    let since = rig.sent.len();
    rig.inject(from, infra_at(S1), &packet);
    let reply = rig.since(since).iter().find(|s| s.name() == "Reply").unwrap();
    assert_eq!(reply.to, from);
    let Payload::Udp { data, .. } = Packet::parse(&reply.packet).unwrap().payload else { panic!() };
    Message::parse(data).unwrap()
}

/// A Server, and Client 1 that is played by the test.
fn tester() -> Rig {
    let mut rig = Rig::new();
    rig.add_relay(10);
    rig.add_server(S1);
    rig.mesh();
    let holder = Some(server::Holder {
        id: uuid::Uuid::from_u128(1),
        name: "tester".into(),
        underlay: vec![l2("192.0.2.1:1").ip, l2("192.0.2.33:1").ip, l2("192.0.2.65:1").ip],
    });
    let mapping = server::Mapping {
        prefix: acp(1),
        client: duid(1),
        epoch: aero_protocol::address::Epoch(1),
        holder,
    };
    rig.with_server(S1, |s, now| s.set_mapping(mapping, now));
    rig
}

fn request(link_id: u8, preference: u8) -> AeroOption {
    AeroOption::LinkRequest { link_id, preference }
}

#[test]
fn the_server_sends_to_the_link_of_the_highest_preference_and_to_the_next_when_it_is_disabled() {
    let _row = aero_elements::covers(&["B6", "E6", "G2", "H1"]);
    let mut rig = tester();
    let (first, second) = (l2("192.0.2.1:4001"), l2("192.0.2.33:4002"));
    ask(&mut rig, first, Kind::Solicit, &[request(1, 1)]);
    assert_eq!(to(&rig), first, "the port that was seen, not 8060");
    ask(&mut rig, second, Kind::Rebind, &[request(2, 3)]);
    assert_eq!(to(&rig), second);
    assert_eq!(links_at(&rig, S1).len(), 2);
    for link in [first, second] {
        assert!(rig.way_from(link, infra_at(S1), host(1), host(2)).0.len() > 1, "both may send");
    }
    // Over a live link, as section 3.15.1 has it.
    ask(&mut rig, first, Kind::Rebind, &[request(2, 0)]);
    assert_eq!(to(&rig), first);
    assert_eq!(
        rig.way_from(second, infra_at(S1), host(1), host(2)).1,
        Err("origin_refused".into())
    );
    ask(&mut rig, second, Kind::Rebind, &[request(2, 3)]);
    ask(&mut rig, second, Kind::Rebind, &[request(2, 3), AeroOption::LinkRemove(vec![1])]);
    assert_eq!(links_at(&rig, S1), [(2, 255, second)]);
}

#[test]
fn a_rebind_moves_the_link_of_its_link_id_and_the_last_of_three_quick_ones_wins() {
    let _row = aero_elements::covers(&["H2", "H3"]);
    let mut rig = tester();
    ask(&mut rig, l2("192.0.2.1:4001"), Kind::Solicit, &[request(1, 3)]);
    let updates = rig.updates.len();
    for address in ["192.0.2.33:4001", "192.0.2.65:4001", "192.0.2.33:4001", "192.0.2.65:4001"] {
        let reply = ask(&mut rig, l2(address), Kind::Rebind, &[request(1, 3)]);
        assert_eq!(reply.ia_pd[0].prefixes.len(), 1);
        assert_eq!(to(&rig), l2(address));
        assert_eq!(links_at(&rig, S1).len(), 1);
    }
    assert_eq!(rig.updates.len(), updates, "BGP hears nothing of it");
}

#[test]
fn a_rebind_from_where_the_holder_is_not_changes_nothing() {
    let _row = aero_elements::covers(&["G3"]);
    let mut rig = tester();
    ask(&mut rig, l2("192.0.2.1:4001"), Kind::Solicit, &[request(1, 3)]);
    let reply = ask(&mut rig, l2("192.0.2.99:4001"), Kind::Rebind, &[request(1, 3)]);
    assert_eq!(reply.ia_pd[0].status.as_ref().unwrap().code, StatusCode::NoBinding);
    assert_eq!(to(&rig), l2("192.0.2.1:4001"));
    let claim = Claim { epoch: aero_protocol::address::Epoch(1), holder: uuid::Uuid::from_u128(9) };
    let options = [request(1, 3), AeroOption::Claim(claim)];
    ask(&mut rig, l2("192.0.2.33:4001"), Kind::Rebind, &options);
    assert_eq!(to(&rig), l2("192.0.2.1:4001"), "another holder");
    let mut rig = tester();
    let reply = ask(&mut rig, l2("192.0.2.1:4001"), Kind::Rebind, &[request(1, 3)]);
    assert_eq!(reply.ia_pd[0].status.as_ref().unwrap().code, StatusCode::NoBinding, "no lease");
}

#[test]
fn a_client_that_disables_its_only_link_keeps_it() {
    let mut rig = tester();
    let only = l2("192.0.2.1:4001");
    ask(&mut rig, only, Kind::Solicit, &[request(1, 3)]);
    ask(&mut rig, only, Kind::Rebind, &[request(1, 0)]);
    assert_eq!(to(&rig), only);
}

#[test]
fn a_node_registers_each_of_its_links_at_every_server() {
    let mut rig = three_links();
    let all = [(0, 255, node_at(21)), (WIRELESS, 170, wireless()), (3, 85, metered())];
    assert_eq!(links_at(&rig, S1), all);
    assert_eq!(to(&rig), node_at(21));
    rig.with_node(21, |node, now| node.add_server(infra_at(12), now));
    rig.run(SECOND);
    assert_eq!(links_at(&rig, 12), all, "a Server that came later");
    let used: Vec<_> = rig.node(21).links().filter(|l| l.used).map(|l| l.id).collect();
    assert_eq!(used, [0]);
}

#[test]
fn when_the_best_link_is_said_to_be_down_traffic_goes_by_the_next_at_once() {
    let mut rig = three_links();
    let best = |rig: &Rig| rig.node(21).links().find(|l| l.used).unwrap().id;
    for (link, address) in [(0, wireless()), (WIRELESS, metered())] {
        rig.with_node(21, |node, now| node.link_down(link, now));
        rig.run(SECOND / 100);
        assert_eq!(to(&rig), address);
        assert!(rig.reaches(21, 1, 2, node_at(22)) && rig.reaches(22, 2, 1, address));
    }
    rig.with_node(21, |node, now| node.link_down(3, now));
    assert_eq!(best(&rig), 3, "the last link stays");
    rig.with_node(21, |node, now| node.link_up(0, now));
    rig.run(SECOND / 10);
    assert_eq!((best(&rig), to(&rig)), (0, node_at(21)));
    assert!(rig.reaches(21, 1, 2, node_at(22)) && rig.reaches(22, 2, 1, node_at(21)));
}

#[test]
fn when_the_best_link_dies_silently_the_next_takes_over_within_the_bound_of_nud() {
    let mut rig = three_links();
    rig.dead.insert(node_at(21));
    let died = rig.now;
    while !(rig.reaches(21, 1, 2, node_at(22)) && rig.reaches(22, 2, 1, wireless())) {
        rig.run(SECOND / 20);
        assert!(rig.now < died + SECOND * 6, "no way after six seconds");
    }
    assert!(rig.places[&node_at(21)].node_events.contains(&Event::LinkUsed(WIRELESS)));
    let down = |e: &Event| matches!(e, Event::ServerDown(_));
    assert!(!rig.places[&node_at(21)].node_events.iter().any(down), "the Server is not to blame");
    // It is tried again by itself, and the lease is renewed meanwhile.
    rig.run(SECOND * 60);
    assert_eq!(to(&rig), wireless());
    rig.dead.clear();
    rig.run(SECOND * 20);
    assert_eq!(to(&rig), node_at(21));
    assert!(rig.reaches(21, 1, 2, node_at(22)) && rig.reaches(22, 2, 1, node_at(21)));
}

#[test]
fn a_session_goes_on_by_the_next_link_each_time_that_the_best_one_dies() {
    let _row = aero_elements::covers(&["Q2"]);
    let mut rig = three_links();
    let within = SECOND * 6;
    for (dies, next) in [(node_at(21), wireless()), (wireless(), metered())] {
        rig.dead.insert(dies);
        let (died, mut silent) = (rig.now, 0);
        loop {
            // Both directions of the session, twenty times a second.
            let well = rig.reaches(21, 1, 2, node_at(22)) && rig.reaches(22, 2, 1, next);
            silent = if well { 0 } else { silent + 1 };
            rig.run(SECOND / 20);
            if well {
                break;
            }
            assert!(rig.now < died + within, "no way after {within:?}");
        }
        println!("{dies} died; by {next} after {:?}", rig.now - died);
        // And stays so, with renewals and probes over what is left.
        for _ in 0..100 {
            rig.run(SECOND / 2);
            assert!(rig.reaches(21, 1, 2, node_at(22)) && rig.reaches(22, 2, 1, next));
        }
    }
    let muted = |e: &Event| matches!(e, Event::Muted { .. });
    assert!(!rig.places[&node_at(21)].node_events.iter().any(muted));
    let new = |e: &Event| matches!(e, Event::Delegated { new: true, .. });
    let delegations = rig.places[&node_at(21)].node_events.iter().filter(|e| new(e)).count();
    assert_eq!(delegations, 1, "one prefix from the start");
}

#[test]
fn when_a_server_dies_the_link_is_not_blamed_for_long() {
    let mut rig = three_links();
    rig.with_node(21, |node, now| node.add_server(infra_at(12), now));
    rig.run(SECOND * 3);
    rig.dead.insert(infra_at(S1));
    rig.with_relay(10, |r| r.set_usable(aero_protocol::address::ServerId::new(11).unwrap(), false));
    rig.run(SECOND * 5);
    assert!(rig.reaches(21, 1, 2, node_at(22)) && rig.reaches(22, 2, 1, node_at(21)));
    let used: Vec<_> = rig.node(21).links().filter(|l| l.used).map(|l| l.id).collect();
    assert_eq!(used, [0], "another Server answers over it");
}

#[test]
fn a_link_that_is_removed_gets_nothing_any_more() {
    let mut rig = three_links();
    rig.with_node(21, |node, now| node.remove_link(0, now));
    rig.run(SECOND / 10);
    assert_eq!(links_at(&rig, S1), [(WIRELESS, 170, wireless()), (3, 85, metered())]);
    assert_eq!(to(&rig), wireless());
    let from_it = rig.way_from(node_at(21), infra_at(S1), host(1), host(2));
    assert_eq!(from_it.1, Err("origin_refused".into()));
}

#[test]
fn a_server_that_hears_of_a_dead_link_asks_over_it_and_uses_the_next() {
    let mut rig = three_links();
    // An error that somebody forged: the link answers, nothing changes.
    rig.with_server(S1, |s, now| s.underlay_error(node_at(21), now));
    rig.run(SECOND * 5);
    assert_eq!(to(&rig), node_at(21));
    rig.lose = Box::new(|_, s| s.to == node_at(21));
    rig.with_server(S1, |s, now| s.underlay_error(node_at(21), now));
    rig.run(SECOND * 7 / 2);
    assert_eq!(to(&rig), wireless());
}

#[test]
fn when_no_link_of_a_client_answers_its_lease_is_cancelled_and_withdrawn() {
    let mut rig = Rig::standard();
    rig.dead.insert(node_at(21));
    rig.with_server(S1, |s, now| s.underlay_error(node_at(21), now));
    rig.run(SECOND * 4);
    let why = |e: &server::Event| matches!(e, server::Event::Ended { why: Ended::Unreachable, .. });
    assert!(rig.places[&infra_at(S1)].server_events.iter().any(why));
    assert_eq!(rig.server(S1).neighbors().count(), 0);
    let withdrawn = server::Announcement::Withdraw(acp(1));
    assert_eq!(rig.updates.last().map(|u| u.what), Some(withdrawn));
}

#[test]
fn a_lease_ends_with_its_time_and_a_renewal_keeps_it_and_one_too_late_gets_no_binding() {
    let _row = aero_elements::covers(&["E7"]);
    let at = l2("192.0.2.1:4001");
    let delivered = |rig: &Rig| to_client(rig).1.is_ok();
    let withdrawn = |rig: &Rig| {
        rig.updates.last().map(|u| u.what) == Some(server::Announcement::Withdraw(acp(1)))
    };
    let mut rig = tester();
    let reply = ask(&mut rig, at, Kind::Solicit, &[request(1, 3)]);
    assert_eq!(reply.ia_pd[0].prefixes[0].valid, 40);
    rig.run(SECOND * 39);
    assert!(delivered(&rig) && !withdrawn(&rig));
    rig.run(SECOND);
    assert!(!delivered(&rig) && withdrawn(&rig));
    let late = renew(&mut rig, at);
    assert_eq!(late.ia_pd[0].status.as_ref().unwrap().code, StatusCode::NoBinding);
    let mut rig = tester();
    ask(&mut rig, at, Kind::Solicit, &[request(1, 3)]);
    rig.run(SECOND * 20);
    assert_eq!(renew(&mut rig, at).ia_pd[0].prefixes.len(), 1);
    rig.run(SECOND * 39);
    assert!(delivered(&rig) && !withdrawn(&rig));
}

fn to_client(rig: &Rig) -> (Vec<LinkLayerAddress>, Result<(), String>) {
    rig.way_from(infra_at(10), infra_at(S1), host(2), host(1))
}

/// A Renew of Client 1, which names the Server.
fn renew(rig: &mut Rig, from: LinkLayerAddress) -> Message {
    let duid = aero_protocol::address::Duid::from_uuid(uuid::Uuid::from_u128(11 << 100));
    ask_of(rig, from, Kind::Renew, &[request(1, 3)], Some(duid))
}

#[test]
fn the_first_rebind_after_a_move_is_repeated_within_a_second_or_so_and_goes_to_every_server() {
    let _row = aero_elements::covers(&["G4"]);
    let mut rig = three_links();
    rig.with_node(21, |node, now| node.add_server(infra_at(12), now));
    rig.run(SECOND * 3);
    let since = rig.sent.len();
    let mut lost = 0;
    rig.lose = Box::new(move |_, s| {
        let lose = s.name() == "Rebind" && lost < 2;
        lost += u32::from(lose);
        lose
    });
    rig.with_node(21, aero_protocol::client::Node::underlay_changed);
    rig.run(SECOND * 2);
    for server in [S1, 12] {
        let rebinds: Vec<_> = rig
            .since(since)
            .iter()
            .filter(|s| s.name() == "Rebind" && s.to == infra_at(server))
            .map(|s| s.at)
            .collect();
        let wait = rebinds[1] - rebinds[0];
        assert!((900..1200).contains(&wait.as_millis()), "{wait:?}");
    }
}

#[test]
fn a_correspondent_hears_of_a_link_that_comes_and_sends_nothing_to_one_that_went() {
    let _row = aero_elements::covers(&["L8"]);
    let mut rig = Rig::standard();
    rig.map(1, 1, &[node_at(21).ip, wireless().ip]);
    // Client 2 sends to Client 1 until it goes straight.
    rig.talk(22, 2, 1);
    rig.run(SECOND);
    rig.talk(22, 2, 1);
    let direct = |rig: &Rig| rig.way(22, host(2), host(1));
    assert_eq!(direct(&rig), (vec![node_at(21)], Ok(())));
    let listed = |rig: &Rig, since: usize| -> Vec<(u8, u8, Option<LinkLayerAddress>)> {
        let nas = rig
            .since(since)
            .iter()
            .filter(|s| s.name() == "icmpv6 136" && s.to == node_at(22) && s.from == infra_at(12));
        let mut lists = nas.map(|s| {
            let nd = aero_protocol::wire::nd::Nd::parse(&Packet::parse(&s.packet).unwrap());
            let nd = nd.unwrap();
            nd.target_link_layers().map(|o| (o.link_id, o.preference, o.address)).collect()
        });
        // The Server's own answers to probes list nothing.
        lists.rfind(|l: &Vec<_>| !l.is_empty()).unwrap()
    };
    let since = rig.sent.len();
    rig.add_link(21, WIRELESS, 2, wireless());
    rig.run(SECOND / 2);
    let both = [(0, 255, Some(node_at(21))), (WIRELESS, 170, Some(wireless()))];
    assert_eq!(listed(&rig, since), both);
    assert_eq!(direct(&rig).0, [node_at(21)], "the better one stays in use");
    let since = rig.sent.len();
    rig.with_node(21, |node, now| node.remove_link(0, now));
    rig.run(SECOND / 2);
    let gone = [(WIRELESS, 170, Some(wireless())), (0, 0, Some(node_at(21)))];
    assert_eq!(listed(&rig, since), gone);
    for _ in 0..20 {
        rig.talk(22, 2, 1);
        let (hops, end) = direct(&rig);
        assert!(end.is_ok() && !hops.contains(&node_at(21)), "{hops:?}");
        rig.run(SECOND / 2);
    }
    assert_eq!(direct(&rig).0, [wireless()], "straight again, to the other link");
}
