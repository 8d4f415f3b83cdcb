//! Fault cases (docs/faults.md) that the engines decide, on a link in memory and in virtual time.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use aero_elements::faults::{Level, held};
use aero_protocol::address::LinkLayerAddress;
use common::{DELAY, Link, duid, node_address, server_address};

const SECOND: Duration = Duration::from_secs(1);
/// Lease of the link in memory.
const LEASE: Duration = Duration::from_secs(40);

/// Where the Servers believe client 1 to be.
fn places(link: &mut Link) -> Vec<LinkLayerAddress> {
    let mut all = Vec::new();
    for server in link.servers() {
        let of = |n: &&aero_protocol::server::Neighbor| n.client == duid(1);
        all.extend(link.server(server).engine.neighbors().filter(of).map(|n| n.link_layer));
    }
    all
}

#[test]
fn a_node_that_comes_back_with_the_old_pod_is_silenced_and_takes_nothing_with_it() {
    let mut case = held(&["F02"], Level::Model);
    let (old, new, peer) = (node_address(21), node_address(22), node_address(23));
    let mut slowest = Duration::ZERO;
    // However long it was away: less than its lease, or more.
    for away in [5u32, 15, 39, 60, 300] {
        let mut link = Link::cluster();
        link.dead.push(old);
        link.run(SECOND);
        link.map(1, 2, new);
        link.attach(new, 1, 2);
        link.run(SECOND * away);
        link.dead.clear();
        let back = link.now;
        let mut muted = None;
        while link.now < back + LEASE + SECOND * 20 {
            assert_eq!(link.user_packet(peer, 2, 1), Ok(new), "away for {away} s");
            let sent = link.user_packet(old, 1, 2);
            assert!(sent.is_err(), "a packet of the old pod was delivered: {sent:?}");
            if muted.is_none() && !link.node(old).engine.standing(&duid(1)).unwrap().served {
                muted = Some(link.now - back);
            }
            link.run(SECOND / 20);
        }
        slowest = slowest.max(muted.expect("the old node is muted"));
        // The old pod ends at last: nothing of the new one's goes.
        link.detach(old, 1);
        link.run(SECOND * 5);
        assert_eq!(places(&mut link), [new, new], "away for {away} s");
    }
    assert!(slowest <= LEASE, "muted only after {slowest:?}");
    case.figure(format!(
        "no packet to or from the old copy, from its return on; its node mutes itself within {} ms",
        slowest.as_millis()
    ));
}

#[test]
fn a_late_release_of_the_old_pod_changes_nothing() {
    let mut case = held(&["F04"], Level::Model);
    let (old, new, peer) = (node_address(21), node_address(22), node_address(23));
    let delays = [0u64, 1, 5, 50, 500, 2000, 20_000, 60_000];
    for delay in delays {
        let mut link = Link::cluster();
        link.map(1, 2, new);
        link.attach(new, 1, 2);
        link.run(DELAY * 4);
        link.run(Duration::from_millis(delay));
        link.detach(old, 1);
        for _ in 0..100 {
            assert_eq!(link.user_packet(peer, 2, 1), Ok(new), "DEL {delay} ms after the move");
            link.run(SECOND / 10);
        }
        assert_eq!(places(&mut link), [new, new], "DEL {delay} ms after the move");
    }
    case.figure(format!("DEL {delays:?} ms after the move: no packet went astray"));
}

#[test]
fn of_a_hundred_moves_to_and_fro_the_last_one_wins_and_nothing_is_left_over() {
    let mut case = held(&["F22"], Level::Model);
    let nodes = [node_address(21), node_address(22)];
    let peer = node_address(23);
    let sizes = |link: &mut Link| {
        let mut all = Vec::new();
        for server in link.servers() {
            // As the forwarders do now and then.
            let now = link.now;
            link.server(server).table.expire(now);
            all.push(format!("{:?}", link.server(server).table.sizes()));
        }
        all
    };
    let mut link = Link::cluster();
    link.run(LEASE);
    let before = sizes(&mut link);
    for n in 1..=100u64 {
        let (from, to) = (nodes[(n as usize + 1) % 2], nodes[n as usize % 2]);
        link.map(1, n + 1, to);
        link.attach(to, 1, n + 1);
        link.run(Duration::from_millis(25));
        link.detach(from, 1);
        link.run(Duration::from_millis(25));
    }
    let last = nodes[0];
    link.run(SECOND);
    assert_eq!(link.user_packet(peer, 2, 1), Ok(last));
    assert_eq!(places(&mut link), [last, last]);
    // What was kept to send on what still came is over.
    link.run(LEASE * 2);
    assert_eq!(sizes(&mut link), before, "tables of the Servers");
    assert_eq!(link.user_packet(peer, 2, 1), Ok(last));
    case.figure("100 moves in 5 s: reached at the last place, tables of the Servers as before");
}

#[test]
fn a_lease_that_cannot_be_renewed_is_used_to_its_end_and_given_to_nobody_before() {
    let mut case = held(&["A7"], Level::Model);
    let (holder, thief) = (node_address(21), node_address(22));
    let mut link = Link::cluster();
    for server in [11, 12] {
        link.dead.push(server_address(server));
    }
    let cut = link.now;
    let served = |link: &mut Link| link.node(holder).engine.standing(&duid(1)).unwrap().served;
    while served(&mut link) {
        link.run(SECOND / 10);
        assert!(link.now < cut + LEASE * 2, "it never falls silent");
    }
    let used = link.now - cut;
    assert!(used >= LEASE / 2, "silent after {used:?} already");
    assert!(used <= LEASE + SECOND, "used for {used:?}");
    // The Servers are back and the holder is not: another that claims it gets nothing.
    link.dead.clear();
    link.dead.push(holder);
    link.attach(thief, 1, 1);
    link.run(SECOND * 10);
    assert_eq!(link.is_bound(thief, 1), 0);
    case.figure(format!(
        "used for {:.1} s more of a lease of {} s, then silent; refused to another",
        used.as_secs_f64(),
        LEASE.as_secs()
    ));
}

#[test]
fn of_two_holders_on_the_two_sides_of_a_partition_the_larger_epoch_stays_when_it_heals() {
    let mut case = held(&["F18"], Level::Model);
    let (old, new, peer) = (node_address(21), node_address(22), node_address(23));
    let (old_side, new_side) = (server_address(11), server_address(12));
    let mut slowest = Duration::ZERO;
    for split in [1u32, 10, 39, 120] {
        let mut link = Link::cluster();
        // The old node with one Server and without the API server; all else on the other side.
        let left = [old, old_side];
        link.lose = Box::new(move |_, s| left.contains(&s.from) != left.contains(&s.to));
        link.map_at(new_side, 1, 2, Some(new));
        link.attach(new, 1, 2);
        link.run(SECOND * split);
        // Each side serves the prefix, to its own.
        assert!(link.node(old).engine.standing(&duid(1)).unwrap().served, "split for {split} s");
        assert!(link.node(new).engine.standing(&duid(1)).unwrap().served, "split for {split} s");
        let at = |link: &mut Link, server| {
            let mut all = link.server(server).engine.neighbors();
            all.find(|n| n.client == duid(1)).map(|n| n.link_layer)
        };
        assert_eq!(at(&mut link, old_side), Some(old));
        assert_eq!(at(&mut link, new_side), Some(new));
        // It heals; the Server that was cut off reads the table.
        link.lose = Box::new(|_, _| false);
        link.map_at(old_side, 1, 2, Some(new));
        let healed = link.now;
        let mut one = None;
        while link.now < healed + LEASE * 2 {
            link.run(SECOND / 50);
            let served = link.node(old).engine.standing(&duid(1)).is_some_and(|s| s.served);
            let wrong = served || link.user_packet(old, 1, 2).is_ok();
            let right = link.user_packet(peer, 2, 1) == Ok(new);
            match one {
                None if right && !wrong => one = Some(link.now - healed),
                None => {}
                Some(_) => assert!(right && !wrong, "split for {split} s: to and fro"),
            }
        }
        slowest = slowest.max(one.expect("one holder is left"));
        assert_eq!(places(&mut link), [new, new], "split for {split} s");
    }
    assert!(slowest <= SECOND * 3, "one holder only after {slowest:?}");
    case.figure(format!(
        "split for up to 120 s: {} ms after it heals the larger epoch alone holds it, and no flap after",
        slowest.as_millis()
    ));
}
