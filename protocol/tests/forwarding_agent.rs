//! Forwarding Agents: fed by their Server, announced by Router Advertisements, used for data and
//! nothing else (draft -48 section 3.12).

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "common/topology.rs"]
mod topology;

use std::net::Ipv6Addr;

use aero_protocol::address::{LinkLayerAddress, aero_address};
use aero_protocol::forwarding::Inner;
use aero_protocol::forwarding_agent::ForwardingAgent;
use aero_protocol::forwarding_agent::feed::{FeedError, Message};
use aero_protocol::server::{AGENT_RA_INTERVAL, Scope};
use aero_protocol::wire::ip::Packet;
use aero_protocol::wire::nd::{LinkLayerOption, Nd, NdMessage, NdOption};
use topology::{Rig, SECOND, acp, host, id, infra_at, l2, node_at};

const S1: u8 = 11;
const FA: u8 = 31;

/// Clients 1 and 3 at S1, on nodes 21 and 23; Client 2 at S2; an agent of S1.
fn rig(scope: Scope) -> Rig {
    let mut rig = Rig::standard();
    rig.add_node(23, &[S1]);
    rig.map(3, 1, &[node_at(23).ip]);
    rig.attach(23, 3, 1);
    rig.run(SECOND);
    rig.add_agent(FA, S1, scope);
    rig.run(SECOND * 3);
    rig
}

/// Client 1 sends to Client 3 through the Server, which notices it.
fn data(rig: &mut Rig) {
    let inner = Inner { source: host(1), destination: host(3) };
    rig.with_server(S1, |s, now| s.data_forwarded(node_at(21), inner, now));
}

fn advertisements(rig: &Rig, since: usize) -> Vec<(LinkLayerAddress, Nd)> {
    let sent = rig.since(since).iter().filter(|s| s.name() == "icmpv6 134");
    sent.map(|s| (s.to, Nd::parse(&Packet::parse(&s.packet).unwrap()).unwrap())).collect()
}

/// The first hop of what Client 1 sends to Client 3; it arrives.
fn first_hop(rig: &Rig) -> LinkLayerAddress {
    let (hops, end) = rig.way(21, host(1), host(3));
    assert_eq!((end, hops.last()), (Ok(()), Some(&node_at(23))));
    hops[0]
}

#[test]
fn an_agent_delivers_to_its_servers_clients_where_they_are_and_to_nobody_when_they_are_gone() {
    let _row = aero_elements::covers(&["P2"]);
    let mut rig = rig(Scope::Prefix);
    let by_agent = |rig: &Rig| rig.way_from(node_at(21), infra_at(FA), host(1), host(3));
    assert_eq!(by_agent(&rig), (vec![infra_at(FA), node_at(23)], Ok(())));
    let there = l2("192.0.2.123:8061");
    rig.map(3, 1, &[node_at(23).ip, there.ip]);
    rig.add_link(23, 0, 3, there);
    rig.with_node(23, aero_protocol::client::Node::underlay_changed);
    rig.run(SECOND / 10);
    assert_eq!(by_agent(&rig), (vec![infra_at(FA), there], Ok(())), "after the Rebind");
    rig.dead.insert(there);
    rig.run(SECOND * 45);
    assert!(by_agent(&rig).1.is_err(), "after the lease");
    assert!(rig.way_from(node_at(23), infra_at(FA), host(3), host(1)).1.is_err());
    let said = rig.sent.iter().filter(|s| s.from == infra_at(FA)).map(topology::Sent::name);
    assert!(said.into_iter().all(|name| name == "icmpv6 136"), "no DHCPv6");
}

#[test]
fn what_is_for_no_client_of_the_server_goes_by_the_server_also_to_a_relay() {
    let rig = rig(Scope::Prefix);
    let (hops, end) = rig.way_from(node_at(21), infra_at(FA), host(1), host(2));
    let way = [infra_at(FA), infra_at(S1), infra_at(10), infra_at(12), node_at(22)];
    assert_eq!((&hops[..], end), (&way[..], Ok(())));
    let forged = rig.way_from(l2("192.0.2.66:8060"), infra_at(FA), host(1), host(3));
    assert_eq!(forged.1, Err("origin_refused".into()));
}

#[test]
fn the_first_packet_goes_by_the_server_which_tells_of_its_agent_and_the_next_by_the_agent() {
    let _row = aero_elements::covers(&["P3", "P4"]);
    let mut rig = rig(Scope::Prefix);
    assert_eq!(first_hop(&rig), infra_at(S1));
    let since = rig.sent.len();
    data(&mut rig);
    let ras = advertisements(&rig, since);
    assert_eq!(ras.len(), 1);
    let (to, ra) = &ras[0];
    assert_eq!((*to, ra.source), (node_at(21), aero_address(acp(3))));
    assert_eq!(ra.message, NdMessage::RouterAdvertisement { lifetime: 0 });
    let agent = LinkLayerOption { link_id: 0, preference: 255, address: Some(infra_at(FA)) };
    assert_eq!(ra.options, [NdOption::SourceLinkLayer(agent)]);
    rig.run(SECOND / 10);
    assert_eq!(first_hop(&rig), infra_at(FA));
    // One prefix and no other.
    assert_eq!(rig.way(21, host(1), host(2)).0[0], infra_at(S1));
}

#[test]
fn an_agent_for_all_data_is_announced_as_a_router() {
    let _row = aero_elements::covers(&["P4"]);
    let mut rig = rig(Scope::All);
    let since = rig.sent.len();
    data(&mut rig);
    let (_, ra) = &advertisements(&rig, since)[0];
    assert_eq!(ra.source, id(S1).address());
    assert!(matches!(ra.message, NdMessage::RouterAdvertisement { lifetime: 40 }));
    rig.run(SECOND / 10);
    assert_eq!(first_hop(&rig), infra_at(FA));
    let (hops, end) = rig.way(21, host(1), host(2));
    assert_eq!((hops[0], end), (infra_at(FA), Ok(())));
}

#[test]
fn a_thousand_packets_a_second_make_one_advertisement_per_window() {
    let _row = aero_elements::covers(&["P4"]);
    let mut rig = rig(Scope::Prefix);
    let since = rig.sent.len();
    for _ in 0..1000 {
        data(&mut rig);
    }
    assert_eq!(advertisements(&rig, since).len(), 1);
    rig.run(AGENT_RA_INTERVAL);
    let since = rig.sent.len();
    data(&mut rig);
    data(&mut rig);
    assert_eq!(advertisements(&rig, since).len(), 1);
}

#[test]
fn control_messages_stay_with_the_server() {
    let _row = aero_elements::covers(&["P5"]);
    let mut rig = rig(Scope::All);
    data(&mut rig);
    rig.run(SECOND / 10);
    let since = rig.sent.len();
    rig.run(SECOND * 60);
    let by_agent = |s: &&topology::Sent| s.from == node_at(21) && s.to == infra_at(FA);
    let names: std::collections::BTreeSet<_> =
        rig.since(since).iter().filter(by_agent).map(topology::Sent::name).collect();
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["icmpv6 135"], "solicitations of the agent");
    let renews = |s: &&topology::Sent| s.name() == "Renew" && s.from == node_at(21);
    assert!(rig.since(since).iter().filter(renews).all(|s| s.to == infra_at(S1)));
    assert_eq!(first_hop(&rig), infra_at(FA), "a minute later");
    let agents_own = rig.sent.iter().filter(|s| s.from == infra_at(FA));
    let names: std::collections::BTreeSet<_> = agents_own.map(topology::Sent::name).collect();
    assert_eq!(names.into_iter().collect::<Vec<_>>(), ["icmpv6 136"], "all that an agent says");
}

#[test]
fn when_the_agent_dies_data_is_back_at_the_server_within_three_seconds() {
    let _row = aero_elements::covers(&["P5"]);
    for scope in [Scope::Prefix, Scope::All] {
        let mut rig = rig(scope);
        data(&mut rig);
        for _ in 0..7 {
            rig.run(SECOND * 7 / 10);
        }
        assert_eq!(first_hop(&rig), infra_at(FA));
        rig.dead.insert(infra_at(FA));
        rig.run(SECOND * 3);
        assert_eq!(first_hop(&rig), infra_at(S1), "{scope:?}");
        // The Server does not announce what does not echo.
        let since = rig.sent.len();
        rig.run(AGENT_RA_INTERVAL);
        data(&mut rig);
        assert!(advertisements(&rig, since).is_empty());
        rig.dead.clear();
        rig.connect(FA, S1);
        rig.run(SECOND * 2);
        data(&mut rig);
        rig.run(SECOND / 10);
        assert_eq!(first_hop(&rig), infra_at(FA), "{scope:?}, alive again");
    }
}

#[test]
fn an_error_of_the_underlay_sends_data_back_to_the_server_at_once() {
    let mut rig = rig(Scope::Prefix);
    data(&mut rig);
    rig.run(SECOND / 10);
    rig.with_node(21, |node, _| node.agent_unreachable(infra_at(FA)));
    assert_eq!(first_hop(&rig), infra_at(S1));
}

#[test]
fn a_router_advertisement_of_anybody_but_a_server_is_ignored() {
    let _row = aero_elements::covers(&["P5 neg"]);
    let mut rig = rig(Scope::Prefix);
    let agent =
        LinkLayerOption { link_id: 0, preference: 255, address: Some(l2("192.0.2.66:8060")) };
    let forge = |source: Ipv6Addr, lifetime| {
        let message = NdMessage::RouterAdvertisement { lifetime };
        let options = vec![NdOption::SourceLinkLayer(agent)];
        Nd { source, destination: aero_address(acp(1)), message, options }.emit().unwrap()
    };
    for from in [l2("192.0.2.66:8060"), node_at(22), infra_at(FA)] {
        rig.inject(from, node_at(21), &forge(id(S1).address(), 1800));
        rig.inject(from, node_at(21), &forge(aero_address(acp(3)), 0));
    }
    // Nor does the Server pass one on for another Client.
    let since = rig.sent.len();
    rig.inject(node_at(23), infra_at(S1), &forge(aero_address(acp(3)), 0));
    assert!(rig.since(since).is_empty());
    // Nor is one taken from a Server in the name of another.
    rig.inject(infra_at(S1), node_at(21), &forge(id(77).address(), 1800));
    assert_eq!(first_hop(&rig), infra_at(S1));
    assert_eq!(rig.node(21).forwarding_agents().count(), 0);
}

#[test]
fn a_client_takes_data_from_its_servers_agent_before_anybody_sends_that_way() {
    let mut rig = Rig::standard();
    rig.add_agent(FA, S1, Scope::Prefix);
    let to_1 = |rig: &Rig| rig.way_from(infra_at(FA), node_at(21), host(9), host(1)).1;
    rig.run(SECOND / 10);
    assert_eq!(to_1(&rig), Ok(()));
    rig.run(SECOND * 200);
    assert_eq!(to_1(&rig), Ok(()), "renewals repeat it");
    // A Client that comes later, whatever one of the three is lost.
    for lost in 0..3 {
        let mut rig = Rig::standard();
        rig.add_agent(FA, S1, Scope::Prefix);
        rig.add_node(23, &[S1]);
        rig.map(3, 1, &[node_at(23).ip]);
        let mut seen = 0;
        rig.lose = Box::new(move |_, s| {
            let ra = s.name() == "icmpv6 134" && s.to == node_at(23);
            seen += u32::from(ra);
            ra && seen == lost + 1
        });
        rig.attach(23, 3, 1);
        rig.run(SECOND * 3);
        assert_eq!(rig.way_from(infra_at(FA), node_at(23), host(9), host(3)).1, Ok(()), "{lost}");
    }
}

#[test]
fn delegation_is_the_same_with_and_without_an_agent() {
    let _row = aero_elements::covers(&["P1"]);
    let exchange = |with: bool| {
        let mut rig = Rig::standard();
        if with {
            rig.add_agent(FA, S1, Scope::All);
        }
        rig.add_node(23, &[S1]);
        rig.map(3, 1, &[node_at(23).ip]);
        let since = rig.sent.len();
        rig.attach(23, 3, 1);
        rig.run(SECOND / 10);
        let dhcp = |s: &&topology::Sent| !s.name().starts_with("icmpv6");
        rig.since(since).iter().filter(dhcp).map(|s| s.packet.clone()).collect::<Vec<_>>()
    };
    assert_eq!(exchange(true), exchange(false));
}

#[test]
fn an_agent_answers_its_companions_clients_and_speaks_with_nobody_else() {
    let mut rig = rig(Scope::Prefix);
    let target = id(S1).address();
    let message = NdMessage::Solicitation { target };
    let options = vec![NdOption::Nonce(vec![9; 6])];
    let source = aero_address(acp(1));
    let ns = Nd { source, destination: target, message, options }.emit().unwrap();
    let since = rig.sent.len();
    rig.inject(l2("192.0.2.66:8061"), infra_at(FA), &ns);
    assert!(rig.since(since).is_empty());
    rig.inject(node_at(21), infra_at(FA), &ns);
    let answer = rig.since(since)[0].clone();
    let nd = Nd::parse(&Packet::parse(&answer.packet).unwrap()).unwrap();
    assert_eq!((answer.to, nd.source, nd.nonce()), (node_at(21), target, Some(&[9; 6][..])));
    let solicit = rig.sent.iter().find(|s| s.name() == "Solicit").unwrap().packet.clone();
    let since = rig.sent.len();
    rig.inject(node_at(21), infra_at(FA), &solicit);
    assert!(rig.since(since).is_empty());
}

#[test]
fn a_stream_that_breaks_and_comes_back_leaves_nothing_stale_behind() {
    let mut rig = rig(Scope::Prefix);
    rig.feeds.clear();
    rig.with_server(S1, |s, _| s.agent_disconnected(infra_at(FA)));
    rig.with_server(S1, |s, _| s.remove_mapping(acp(3)));
    let delivered =
        |rig: &Rig| rig.way_from(node_at(21), infra_at(FA), host(1), host(3)).0[1] == node_at(23);
    assert!(delivered(&rig), "it does not know better");
    rig.connect(FA, S1);
    rig.run(SECOND / 10);
    assert!(!delivered(&rig));
    assert_eq!(
        rig.way_from(node_at(23), infra_at(FA), host(3), host(1)).1,
        Err("origin_refused".into())
    );
}

#[test]
fn an_agent_that_hears_nothing_for_a_leases_time_forgets_everything() {
    let mut rig = rig(Scope::Prefix);
    rig.feeds.clear();
    rig.run(SECOND * 39);
    assert!(rig.way_from(node_at(21), infra_at(FA), host(1), host(3)).1.is_ok());
    rig.run(SECOND * 2);
    let sizes = rig.places[&infra_at(FA)].table.sizes();
    assert_eq!((sizes.routes, sizes.sources, sizes.peers), (0, 0, 0));
}

#[test]
fn lines_that_do_not_belong_to_the_feed_are_refused() {
    let mut agent = ForwardingAgent::new();
    let now = std::time::Instant::now();
    let mut say = |line: &str| agent.handle_line(line, now);
    assert!(matches!(say("{\"type\":\"synchronized\"}"), Err(FeedError::OutOfPlace)));
    let other = Message::Hello { version: 2, identity: "fe80::2".parse().unwrap() };
    assert!(matches!(say(&other.to_line().unwrap()), Err(FeedError::Version(2))));
    assert!(matches!(say("hello"), Err(FeedError::Syntax(_))));
    assert!(matches!(say(&"x".repeat(2000)), Err(FeedError::TooLong(2000))));
    let good = Message::Hello { version: 1, identity: "fe80::2".parse().unwrap() };
    assert!(say(&good.to_line().unwrap()).is_ok());
    assert!(matches!(say("{\"type\":\"ready\",\"version\":1}"), Err(FeedError::OutOfPlace)));
}
