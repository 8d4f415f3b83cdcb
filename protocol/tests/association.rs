//! Client and Server together: from Solicit to Release, and the loss of any one message.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use aero_protocol::client::{Event, Muted};
use aero_protocol::server::{self, Ended};
use common::{Link, duid, l2, node_address, prefix, server_address};

const SECOND: Duration = Duration::from_secs(1);

fn one_of_each() -> Link {
    let mut link = Link::new();
    let server = link.add_server(11);
    let node = link.add_node(21, &[server]);
    link.map(1, 1, node);
    link
}

#[test]
fn a_solicit_with_rapid_commit_is_answered_by_a_reply_that_delegates_the_mapped_prefix() {
    let mut link = one_of_each();
    link.attach(node_address(21), 1, 1);
    link.run(SECOND / 10);
    assert_eq!(link.names(), ["Solicit", "Reply"]);
    let standing = link.node(node_address(21)).engine.standing(&duid(1)).unwrap();
    assert_eq!(standing.prefixes, [prefix(1)]);
    assert!(standing.served);
    let neighbors: Vec<_> = link.server(server_address(11)).engine.neighbors().cloned().collect();
    assert_eq!(neighbors.len(), 1);
    assert_eq!(neighbors[0].link_layer, node_address(21));
}

#[test]
fn two_servers_delegate_the_same_prefix_to_one_client() {
    let mut link = Link::new();
    let servers = [link.add_server(11), link.add_server(12)];
    let node = link.add_node(21, &servers);
    link.map(1, 1, node);
    link.attach(node, 1, 1);
    link.run(SECOND / 10);
    for server in servers {
        let prefixes: Vec<_> = link.server(server).engine.neighbors().map(|n| n.prefix).collect();
        assert_eq!(prefixes, [prefix(1)]);
    }
    assert_eq!(link.is_bound(node, 1), 2);
}

#[test]
fn the_loss_of_any_one_message_of_an_association_is_made_good_within_its_retransmission_time() {
    for lost in 0..2 {
        let mut link = one_of_each();
        link.lose = Box::new(move |n, _| n == lost);
        link.attach(node_address(21), 1, 1);
        link.run(SECOND * 3 / 2);
        assert_eq!(link.is_bound(node_address(21), 1), 1, "message {lost} was lost");
    }
}

#[test]
fn the_loss_of_any_one_message_of_a_renewal_or_a_probe_costs_nothing() {
    // A minute and a half holds several Renews and 80 probes; each run loses another message.
    for lost in 2..60 {
        let mut link = one_of_each();
        let other = link.add_node(22, &[server_address(11)]);
        link.map(2, 1, other);
        link.lose = Box::new(move |n, _| n == lost);
        link.attach(node_address(21), 1, 1);
        link.attach(other, 2, 1);
        link.run(SECOND);
        for second in 0..90 {
            link.run(SECOND);
            let path = link.user_packet(node_address(21), 1, 2);
            assert_eq!(path, Ok(other), "message {lost} was lost, second {second}");
        }
        let downs = |e: &Event| matches!(e, Event::ServerDown(_));
        assert!(!link.node(node_address(21)).events.iter().any(downs), "message {lost}");
    }
}

#[test]
fn a_lease_is_renewed_at_half_its_lifetime() {
    let mut link = one_of_each();
    link.attach(node_address(21), 1, 1);
    link.run(SECOND * 25);
    let renews: Vec<_> = link.sent.iter().filter(|s| s.name() == "Renew").collect();
    assert_eq!(renews.len(), 1);
    let at = renews[0].at - link.start;
    assert!((19..=21).contains(&at.as_secs()), "{at:?}");
}

#[test]
fn a_lease_that_is_not_renewed_ends_and_packets_stop() {
    let mut link = one_of_each();
    link.attach(node_address(21), 1, 1);
    link.run(SECOND);
    link.dead.push(node_address(21));
    link.run(SECOND * 38);
    assert_eq!(link.server(server_address(11)).engine.neighbors().count(), 1);
    link.run(SECOND * 2);
    assert_eq!(link.server(server_address(11)).engine.neighbors().count(), 0);
    let why = link.server(server_address(11)).events.last().cloned();
    assert!(matches!(why, Some(server::Event::Ended { why: Ended::Expired, .. })), "{why:?}");
}

#[test]
fn a_release_ends_the_lease_and_survives_the_loss_of_either_message() {
    for lost in [None, Some(2), Some(3)] {
        let mut link = one_of_each();
        link.attach(node_address(21), 1, 1);
        link.run(SECOND / 2);
        link.lose = Box::new(move |n, _| Some(n) == lost);
        link.detach(node_address(21), 1);
        link.run(SECOND * 2);
        assert_eq!(link.server(server_address(11)).engine.neighbors().count(), 0, "{lost:?}");
        assert!(link.node(node_address(21)).engine.standing(&duid(1)).is_none(), "{lost:?}");
        let released = Event::Released { client: duid(1) };
        assert!(link.node(node_address(21)).events.contains(&released));
    }
}

#[test]
fn a_release_of_an_earlier_epoch_ends_no_lease_that_came_after_it() {
    let mut link = one_of_each();
    let (node, server) = (node_address(21), server_address(11));
    link.attach(node, 1, 1);
    link.run(SECOND);
    link.lose = Box::new(|_, s| s.name() == "Release");
    link.detach(node, 1);
    let release = link.sent.last().unwrap().clone();
    assert_eq!(release.name(), "Release");
    // The next holder is at the same node.
    link.map(1, 2, node);
    link.attach(node, 1, 2);
    link.run(SECOND);
    let now = link.now;
    link.server(server).engine.handle_packet(node, &release.packet, now);
    link.drain(server);
    assert_eq!(link.sent.last().unwrap().name(), "Reply", "it is answered");
    link.run(SECOND);
    assert_eq!(link.server(server).engine.neighbors().count(), 1, "the lease of epoch 2");
    // Its own one does end it.
    link.lose = Box::new(|_, _| false);
    link.detach(node, 1);
    link.run(SECOND);
    assert_eq!(link.server(server).engine.neighbors().count(), 0);
}

#[test]
fn a_release_towards_a_dead_server_is_given_up() {
    let mut link = one_of_each();
    link.attach(node_address(21), 1, 1);
    link.run(SECOND / 2);
    link.dead.push(server_address(11));
    link.detach(node_address(21), 1);
    link.run(SECOND * 20);
    assert!(link.node(node_address(21)).engine.standing(&duid(1)).is_none());
    link.run(aero_protocol::timers::FORWARD_TIME);
    assert_eq!(link.node(node_address(21)).engine.poll_timeout(), None, "no timer is left");
}

#[test]
fn an_address_that_changes_while_a_release_is_on_its_way_asks_for_nothing_back() {
    let mut link = one_of_each();
    let node = node_address(21);
    link.attach(node, 1, 1);
    link.run(SECOND / 2);
    link.lose = Box::new(|_, s| s.name() == "Release");
    link.detach(node, 1);
    let (now, before) = (link.now, link.sent.len());
    link.node(node).engine.underlay_changed(now);
    link.drain(node);
    link.run(SECOND * 20);
    let names: Vec<_> = link.sent[before..].iter().map(common::Sent::name).collect();
    assert!(!names.iter().any(|n| *n == "Rebind" || *n == "Solicit"), "{names:?}");
    assert!(link.node(node).events.contains(&Event::Released { client: duid(1) }));
    assert!(link.node(node).engine.standing(&duid(1)).is_none());
}

#[test]
fn a_client_that_is_not_in_the_table_gets_nothing_and_says_why() {
    let mut link = one_of_each();
    link.attach(node_address(21), 9, 1);
    link.run(SECOND * 3);
    let standing = link.node(node_address(21)).engine.standing(&duid(9)).unwrap();
    assert!(standing.bound.is_empty());
    assert!(standing.refusal.unwrap().contains("no mapping of this client"));
}

#[test]
fn a_claim_from_a_node_that_does_not_hold_the_prefix_is_refused() {
    let mut link = one_of_each();
    let thief = link.add_node(29, &[server_address(11)]);
    link.attach(node_address(21), 1, 1);
    link.run(SECOND);
    link.attach(thief, 1, 1);
    link.run(SECOND * 3);
    assert_eq!(link.is_bound(thief, 1), 0);
    let refusal = link.node(thief).engine.standing(&duid(1)).unwrap().refusal.unwrap();
    assert!(refusal.contains("is held by pod web-1 at 192.0.2.21"), "{refusal}");
    assert_eq!(link.is_bound(node_address(21), 1), 1);
}

#[test]
fn a_claim_of_a_past_epoch_is_refused_even_from_the_same_node() {
    let mut link = one_of_each();
    link.map(1, 2, node_address(21));
    link.attach(node_address(21), 1, 1);
    link.run(SECOND);
    let standing = link.node(node_address(21)).engine.standing(&duid(1)).unwrap();
    assert!(standing.refusal.unwrap().contains("this claim is older"));
}

#[test]
fn a_claim_that_is_ahead_of_the_servers_table_is_answered_when_the_table_arrives() {
    let mut link = one_of_each();
    link.attach(node_address(21), 1, 2);
    link.run(SECOND / 5);
    assert_eq!(link.names(), ["Solicit"]);
    link.map(1, 2, node_address(21));
    link.run(SECOND / 100);
    assert_eq!(link.names(), ["Solicit", "Reply"]);
    assert_eq!(link.is_bound(node_address(21), 1), 1);
}

#[test]
fn a_server_that_lost_its_memory_is_asked_anew_and_traffic_comes_back() {
    let mut link = one_of_each();
    let other = link.add_node(22, &[server_address(11)]);
    link.map(2, 1, other);
    link.attach(node_address(21), 1, 1);
    link.attach(other, 2, 1);
    link.run(SECOND * 3);
    link.add_server(11);
    link.map(1, 1, node_address(21));
    link.map(2, 1, other);
    link.run(SECOND * 8);
    assert_eq!(link.user_packet(node_address(21), 1, 2), Ok(other));
    assert_eq!(link.user_packet(other, 2, 1), Ok(node_address(21)));
}

#[test]
fn when_one_of_two_servers_dies_traffic_goes_by_the_other_within_five_seconds() {
    for dies in [11, 12] {
        let mut link = Link::new();
        let servers = [link.add_server(11), link.add_server(12)];
        let a = link.add_node(21, &servers);
        let b = link.add_node(22, &servers);
        link.map(1, 1, a);
        link.map(2, 1, b);
        link.attach(a, 1, 1);
        link.attach(b, 2, 1);
        link.run(SECOND * 3);
        link.dead.push(server_address(dies));
        link.run(SECOND * 5);
        assert_eq!(link.user_packet(a, 1, 2), Ok(b), "Server {dies} died");
        assert_eq!(link.user_packet(b, 2, 1), Ok(a), "Server {dies} died");
        link.run(SECOND * 120);
        assert_eq!(link.user_packet(a, 1, 2), Ok(b), "long after Server {dies} died");
        link.dead.clear();
        link.run(SECOND * 10);
        assert_eq!(link.is_bound(a, 1), 2, "Server {dies} came back");
    }
}

#[test]
fn without_any_server_a_client_keeps_its_prefix_until_the_lease_ends_and_then_falls_silent() {
    let mut link = one_of_each();
    link.attach(node_address(21), 1, 1);
    link.run(SECOND);
    link.dead.push(server_address(11));
    link.run(SECOND * 30);
    assert!(link.node(node_address(21)).engine.standing(&duid(1)).unwrap().served);
    link.run(SECOND * 12);
    assert!(!link.node(node_address(21)).engine.standing(&duid(1)).unwrap().served);
    let muted = Event::Muted { client: duid(1), why: Muted::LeaseLost };
    assert!(link.node(node_address(21)).events.contains(&muted));
    link.dead.clear();
    link.run(SECOND * 10);
    assert!(link.node(node_address(21)).engine.standing(&duid(1)).unwrap().served);
}

#[test]
fn a_node_whose_underlay_address_changed_rebinds_at_once_and_the_server_follows() {
    let mut link = one_of_each();
    link.attach(node_address(21), 1, 1);
    link.run(SECOND);
    // The same node, now at another address of its own.
    let role = link.roles.remove(&node_address(21)).unwrap();
    let there = l2("192.0.2.33:8061");
    link.roles.insert(there, role);
    let mapping = aero_protocol::server::Mapping {
        prefix: prefix(1),
        client: duid(1),
        epoch: aero_protocol::address::Epoch(1),
        holder: Some(aero_protocol::server::Holder {
            id: common::holder_id(1, 1),
            name: "pod web-1 on n1".into(),
            underlay: vec![node_address(21).ip, there.ip],
        }),
    };
    let now = link.now;
    link.server(server_address(11)).engine.set_mapping(mapping, now);
    let before = link.sent.len();
    link.node(there).engine.underlay_changed(now);
    link.drain(there);
    link.run(SECOND / 100);
    let names: Vec<_> = link.sent[before..].iter().map(common::Sent::name).collect();
    assert_eq!(names[0], "Rebind");
    assert!(names.iter().any(|n| n == "Reply"), "{names:?}");
    let at: Vec<_> =
        link.server(server_address(11)).engine.neighbors().map(|n| n.link_layer).collect();
    assert_eq!(at, [there]);
    link.run(SECOND * 4);
    let to_the_old = |s: &&common::Sent| s.to == node_address(21) && s.at > now;
    let told: Vec<_> = link.sent.iter().filter(to_the_old).map(common::Sent::name).collect();
    assert!(told.is_empty(), "it is the same node, nothing has left it: {told:?}");
    assert!(link.node(there).engine.standing(&duid(1)).unwrap().served);
}

#[test]
fn a_packet_from_anybody_but_a_server_is_dropped_by_a_client() {
    let mut link = one_of_each();
    link.attach(node_address(21), 1, 1);
    link.run(SECOND / 10);
    let reply = link.sent.iter().find(|s| s.name() == "Reply").unwrap().packet.clone();
    let now = link.now;
    link.node(node_address(21)).engine.handle_packet(l2("192.0.2.66:8060"), &reply, now);
    link.drain(node_address(21));
    let dropped = |e: &Event| matches!(e, Event::Dropped { .. });
    assert!(link.node(node_address(21)).events.iter().any(dropped));
}

#[test]
fn when_all_servers_are_replaced_a_client_is_served_all_the_time() {
    let mut link = one_of_each();
    let node = node_address(21);
    link.attach(node, 1, 1);
    link.run(SECOND * 3);
    let new = link.add_server(12);
    link.map(1, 1, node);
    let now = link.now;
    link.node(node).engine.add_server(new, now);
    link.node(node).engine.remove_server(server_address(11), now);
    link.drain(node);
    for _ in 0..500 {
        link.run(SECOND / 10);
        assert!(link.node(node).engine.standing(&duid(1)).unwrap().served);
    }
    assert_eq!(link.node(node).engine.standing(&duid(1)).unwrap().bound, [new]);
    assert_eq!(link.node(node).engine.default_server(), Some(new));
}
