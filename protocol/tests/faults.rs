//! Fault cases (docs/faults.md) that the engines decide, on a link in memory and in virtual time.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use aero_elements::faults::{Level, held};
use aero_protocol::address::LinkLayerAddress;
use aero_protocol::client::Event;
use common::talk::{direct, talk};
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

/// A packet each ten milliseconds from Client 1 to Client 2, which only gets there by a Server, and
/// from Client 3 to Client 2, straight.
struct TwoFlows {
    link: Link,
    lost_straight: u32,
}

const PACE: Duration = Duration::from_millis(10);

impl TwoFlows {
    fn start() -> Self {
        let mut link = Link::cluster();
        link.map(3, 1, node_address(22));
        link.attach(node_address(22), 3, 1);
        let by_server = node_address(21);
        link.lose = Box::new(move |_, s| s.from == by_server && s.name() == "icmpv6 137");
        link.run(SECOND);
        let mut flows = Self { link, lost_straight: 0 };
        for _ in 0..300 {
            let _ = flows.step();
        }
        assert_eq!(talk(&mut flows.link, 22, 3, 2), direct(23));
        flows.lost_straight = 0;
        flows
    }

    /// The next packet of each. True if the one by the Server arrived.
    fn step(&mut self) -> bool {
        self.link.run(PACE);
        self.lost_straight += u32::from(talk(&mut self.link, 22, 3, 2).is_err());
        talk(&mut self.link, 21, 1, 2).is_ok()
    }

    fn default(&mut self) -> LinkLayerAddress {
        self.link.node(node_address(21)).engine.default_server().unwrap()
    }

    /// Solicitations of a Server that node 21 has sent since a message of the run.
    fn solicitations(&self, server: LinkLayerAddress, since: usize) -> usize {
        let ours = |s: &&common::Sent| {
            s.from == node_address(21) && s.to == server && s.name() == "icmpv6 135"
        };
        self.link.sent[since..].iter().filter(ours).count()
    }
}

#[test]
fn when_one_of_two_servers_dies_what_went_by_it_goes_by_the_other_within_a_second() {
    let mut case = held(&["A1"], Level::Model);
    // The underlay says nothing, as of a host that is off, or it says that nobody listens.
    let mut longest = [Duration::ZERO; 2];
    for told in [false, true] {
        for phase in 0..25 {
            let mut flows = TwoFlows::start();
            flows.link.run(Duration::from_millis(phase * 40));
            let dead = flows.default();
            flows.link.dead.push(dead);
            let died = flows.link.now;
            while !flows.step() {
                if told {
                    let now = flows.link.now;
                    flows.link.node(node_address(21)).engine.underlay_error(dead, now);
                    flows.link.drain(node_address(21));
                }
                assert!(flows.link.now < died + SECOND * 5, "not at all");
            }
            let silence = &mut longest[usize::from(told)];
            *silence = (*silence).max(flows.link.now - died);
            for _ in 0..1000 {
                assert!(flows.step(), "and stays so");
            }
            assert_eq!(flows.lost_straight, 0, "of what goes straight");
        }
    }
    let [untold, told] = longest.map(|d| d.as_millis());
    assert!(untold <= 1000, "{untold} ms");
    assert!(told <= 400, "{told} ms");
    case.figure(format!(
        "{untold} ms of silence at most, {told} ms where the underlay says that nobody listens \
         (bound 1000 ms); of what goes straight nothing is lost"
    ));
}

#[test]
fn a_server_is_solicited_once_a_second_and_five_times_while_data_goes_by_it() {
    let mut flows = TwoFlows::start();
    let servers = flows.link.servers();
    let default = flows.default();
    let since = flows.link.sent.len();
    for _ in 0..1000 {
        assert!(flows.step());
    }
    for server in &servers {
        let n = flows.solicitations(*server, since);
        let most = if *server == default { 52 } else { 11 };
        assert!((9..=most).contains(&n), "{n} in ten seconds");
    }
    assert!(flows.solicitations(default, since) > 40);
    // Two seconds after the last packet it is as any other.
    flows.link.run(SECOND * 3);
    let since = flows.link.sent.len();
    flows.link.run(SECOND * 10);
    for server in &servers {
        assert!(flows.solicitations(*server, since) <= 11);
    }
    // Errors that somebody forges, a thousand a second, cost ten solicitations and nothing else.
    let since = flows.link.sent.len();
    for _ in 0..1000 {
        flows.link.run(Duration::from_millis(1));
        let now = flows.link.now;
        flows.link.node(node_address(21)).engine.underlay_error(default, now);
        flows.link.drain(node_address(21));
    }
    assert!(flows.solicitations(default, since) <= 11);
    assert_eq!(flows.default(), default);
}

#[test]
fn lost_solicitations_cost_a_change_of_the_way_now_and_then_and_hardly_a_lease() {
    use rand::{Rng, SeedableRng};
    let mut flows = TwoFlows::start();
    let mut rng = rand::rngs::StdRng::seed_from_u64(1);
    // A fifth of all messages, each way, and no direct path.
    flows.link.lose = Box::new(move |_, s| s.name() == "icmpv6 137" || rng.random_bool(0.2));
    let (mut default, mut changes) = (flows.default(), 0);
    for _ in 0..12_000 {
        assert!(flows.step(), "data goes on");
        let now = flows.default();
        changes += u32::from(std::mem::replace(&mut default, now) != now);
    }
    let events = &flows.link.node(node_address(21)).events;
    // Three in a row a second apart, without a doubt before, would be lost eleven times.
    let down = events.iter().filter(|e| matches!(e, Event::ServerDown(_))).count();
    assert!(down <= 2, "{down} Servers given up in two minutes");
    assert!(changes <= 20, "{changes} changes of the default Server");
    println!(
        "a fifth of all messages lost for two minutes: {changes} changes of the way, {down} given up"
    );
}
