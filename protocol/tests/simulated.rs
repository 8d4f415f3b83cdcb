//! What the simulation has found, each as a short history of its own.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use aero_protocol::client::{Event, Muted};
use common::{Link, duid, host, node_address, server_address};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_node_forgets_a_prefix_that_left_it_when_it_need_not_send_on_any_more() {
    let mut link = Link::new();
    let server = link.add_server(11);
    let node = link.add_node(21, &[server]);
    link.map(1, 1, node);
    link.attach(node, 1, 1);
    link.run(SECOND);
    link.detach(node, 1);
    link.run(SECOND);
    assert_eq!(link.node(node).engine.sizes().departed, 1);
    link.run(SECOND * 30);
    let sizes = link.node(node).engine.sizes();
    assert_eq!((sizes.departed, sizes.clients), (0, 0));
    assert_eq!(link.node(node).table.route(common::prefix(1)), None);
}

#[test]
fn a_silent_server_is_asked_on_when_the_client_that_asked_it_leaves() {
    for leaves in [1, 2] {
        let mut link = Link::new();
        let server = link.add_server(11);
        let other = link.add_server(12);
        let node = link.add_node(21, &[server, other]);
        for n in [1, 2] {
            link.map(n, 1, node);
            link.attach(node, n, 1);
        }
        link.run(SECOND * 3);
        link.dead.push(server);
        link.run(SECOND * 10);
        link.detach(node, leaves);
        link.run(SECOND * 10);
        link.dead.clear();
        link.run(SECOND * 10);
        assert_eq!(link.is_bound(node, 3 - leaves), 2, "client {leaves} left");
    }
}

#[test]
fn a_client_that_is_being_released_when_its_server_falls_silent_is_not_served_again() {
    let mut link = Link::new();
    let server = link.add_server(11);
    let node = link.add_node(21, &[server]);
    link.map(1, 1, node);
    link.attach(node, 1, 1);
    link.run(SECOND * 3);
    // Nothing comes back: the Release goes on, and the probes stay without an answer.
    link.lose = Box::new(move |_, sent| sent.from == server);
    link.run(SECOND * 3 / 2);
    link.detach(node, 1);
    link.run(SECOND * 2);
    link.lose = Box::new(|_, _| false);
    link.run(SECOND * 60);
    assert!(link.node(node).engine.standing(&duid(1)).is_none());
    assert_eq!(link.server(server).engine.neighbors().count(), 0);
    let inner = aero_protocol::forwarding::Inner { source: host(2), destination: host(1) };
    let now = link.now;
    let disposition = link.node(node).table.ingress(server, inner, now);
    assert!(matches!(disposition, aero_protocol::forwarding::Disposition::Drop(_)));
}

#[test]
fn a_client_that_is_attached_anew_while_no_server_answers_is_served_to_its_old_leases_end_only() {
    let mut link = Link::new();
    let server = link.add_server(11);
    let node = link.add_node(21, &[server]);
    link.map(1, 1, node);
    link.attach(node, 1, 1);
    link.run(SECOND);
    link.dead.push(server);
    link.map(1, 2, node);
    link.attach(node, 1, 2);
    link.run(SECOND * 30);
    assert!(link.node(node).engine.standing(&duid(1)).unwrap().served);
    link.run(SECOND * 12);
    assert!(!link.node(node).engine.standing(&duid(1)).unwrap().served);
    let muted = Event::Muted { client: duid(1), why: Muted::LeaseLost };
    assert!(link.node(node_address(21)).events.contains(&muted));
    assert_eq!(server, server_address(11));
}

#[test]
fn a_server_that_lost_its_memory_between_two_probes_is_found_out_by_all_clients_at_once() {
    let mut link = Link::new();
    let server = link.add_server(11);
    let node = link.add_node(21, &[server]);
    for n in 1..=4 {
        link.map(n, 1, node);
        link.attach(node, n, 1);
        // Each renews at a time of its own.
        link.run(SECOND * 3);
    }
    let at = link.now;
    link.add_server(11);
    for n in 1..=4 {
        link.map(n, 1, node);
    }
    // The first Renew that is due finds out. Until then not even three probes have failed.
    link.lose = Box::new(move |_, sent| sent.at > at && sent.name() == "icmpv6 135");
    let renewed = |l: &Link| l.sent.iter().any(|s| s.at > at && s.name() == "Renew");
    for _ in 0..200 {
        if renewed(&link) {
            break;
        }
        link.run(SECOND / 10);
    }
    link.run(SECOND / 10);
    assert_eq!(link.server(server).engine.neighbors().count(), 4);
}
