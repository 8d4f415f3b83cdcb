//! A Client goes from one Proxy to another (draft -48 section 3.19), while somebody sends to it.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "common/topology.rs"]
mod topology;

use std::time::Duration;

use aero_protocol::address::{Epoch, LinkLayerAddress};
use aero_protocol::client::{ClientSpec, Event, HAND_OVER_TIME, JOIN_TIME};
use aero_protocol::forwarding::Inner;
use aero_protocol::wire::aero_options::Claim;
use aero_protocol::wire::ip::Packet;
use aero_protocol::wire::nd::{Nd, NdMessage};
use topology::{Data, Rig, SECOND, acp, duid, host, infra_at, node_at};
use uuid::Uuid;

const P1: u8 = 21;
const P2: u8 = 22;
const X: u8 = 23;
const MILLI: Duration = Duration::from_millis(1);

fn claim(epoch: u64) -> Option<Claim> {
    // As the rig names holders of Client 1.
    let holder = Uuid::from_u128((1 << 64) | u128::from(epoch));
    Some(Claim { epoch: Epoch(epoch), holder })
}

/// Client 1 on P1, Client 2 on X, everybody with leases at two Servers.
fn link() -> Rig {
    let mut rig = Rig::new();
    for n in [11, 12] {
        rig.add_server(n);
    }
    rig.mesh();
    for n in [P1, P2, X] {
        rig.add_node(n, &[11, 12]);
        rig.with_node(n, |node, _| node.set_proxies([P1, P2].map(node_at)));
    }
    rig.map(1, 1, &[node_at(P1).ip]);
    rig.map(2, 1, &[node_at(X).ip]);
    rig.attach(P1, 1, 1);
    rig.attach(X, 2, 1);
    rig.run(SECOND * 3);
    rig
}

/// X sends to Client 1, a thousand packets a second.
struct Stream {
    next: u64,
    /// Tells the engine of packets, so that it looks for a direct path.
    optimizes: bool,
}

impl Stream {
    fn run(&mut self, rig: &mut Rig, time: Duration) {
        let end = rig.now + time;
        while rig.now < end {
            let inner = Inner { source: host(2), destination: host(1) };
            rig.launch(X, self.next, inner);
            if self.optimizes {
                rig.talk(X, 2, 1);
            }
            self.next += 1;
            rig.run(MILLI);
        }
    }
}

fn straight(rig: &Rig, since: usize, from: u8, to: u8) -> Vec<String> {
    let between = |s: &&topology::Sent| s.from == node_at(from) && s.to == node_at(to);
    rig.since(since)
        .iter()
        .filter(between)
        .map(|s| match Nd::parse(&Packet::parse(&s.packet).unwrap()).map(|nd| nd.message) {
            Ok(NdMessage::Redirect { predirect: true, .. }) => "Predirect".to_string(),
            Ok(NdMessage::Redirect { .. }) => "Redirect".to_string(),
            Ok(NdMessage::Advertisement { .. }) => "last word".to_string(),
            _ => s.name(),
        })
        .collect()
}

fn in_order(rig: &Rig) -> bool {
    rig.delivered.windows(2).all(|w| w[0].0 < w[1].0)
}

fn delivered_at(rig: &Rig, node: LinkLayerAddress) -> usize {
    rig.delivered.iter().filter(|(_, at, _)| *at == node).count()
}

/// A predictive hand-over; the table says so `table` after the leave, the Client comes `join` after
/// it. Returns when it began.
fn predictive(rig: &mut Rig, stream: &mut Stream, table: Duration, join: Duration) {
    stream.run(rig, SECOND / 2);
    rig.with_node(P1, |n, now| n.hand_over(&duid(1), claim(2), node_at(P2), now));
    rig.with_node(P1, |n, now| n.detach(&duid(1), now));
    let mut rest = join;
    if table < join {
        stream.run(rig, table);
        rig.map(1, 2, &[node_at(P2).ip]);
        rest = join - table;
    }
    stream.run(rig, rest);
    rig.attach(P2, 1, 2);
    if table >= join {
        stream.run(rig, table - join);
        rig.map(1, 2, &[node_at(P2).ip]);
    }
    stream.run(rig, SECOND * 2);
    rig.run(SECOND);
}

#[test]
fn a_client_that_is_handed_over_loses_nothing_and_gets_everything_in_order() {
    let _row = aero_elements::covers(&["N6"]);
    let (short, long) = (MILLI * 3, MILLI * 300);
    for optimizes in [false, true] {
        for (table, join) in [(short, long), (short, MILLI), (MILLI * 200, short), (long, long)] {
            let mut rig = link();
            let since = rig.sent.len();
            let mut stream = Stream { next: 0, optimizes };
            predictive(&mut rig, &mut stream, table, join);
            let case = format!("table {table:?}, join {join:?}, straight {optimizes}");
            assert_eq!(rig.lost, [], "{case}");
            assert!(in_order(&rig), "{case}");
            assert_eq!(rig.delivered.len() as u64, stream.next, "{case}");
            assert!(delivered_at(&rig, node_at(P1)) > 400, "{case}");
            assert!(delivered_at(&rig, node_at(P2)) > 1500, "{case}");
            let to_new = straight(&rig, since, P1, P2);
            assert_eq!(to_new.first().map(String::as_str), Some("Solicit"), "{case}");
            assert_eq!(to_new.last().map(String::as_str), Some("last word"), "{case}");
            assert!(straight(&rig, since, P2, P1).contains(&"Redirect".to_string()), "{case}");
            let late = rig.delivered.windows(2).map(|w| w[1].2 - w[0].2).max().unwrap();
            println!("{case}: {} packets, longest silence {late:?}", stream.next);
            // Nothing of it is left over.
            assert_eq!(rig.node(P1).sizes().handing_over + rig.node(P2).sizes().handing_over, 0);
            assert!(rig.node(P1).standing(&duid(1)).is_none());
            assert_eq!(rig.bound(P2, 1).len(), 2);
        }
    }
}

#[test]
fn the_loss_of_any_one_message_of_a_hand_over_loses_nothing() {
    for n in 0..12 {
        let mut rig = link();
        let first = rig.sent.len();
        let mut count = 0;
        rig.lose = Box::new(move |_, s| {
            let straight = [s.from, s.to].iter().all(|a| [P1, P2].map(node_at).contains(a));
            if straight {
                count += 1;
            }
            straight && count == n + 1
        });
        let mut stream = Stream { next: 0, optimizes: false };
        // The Servers' table follows when a message has had the time to be repeated.
        predictive(&mut rig, &mut stream, MILLI * 450, MILLI * 20);
        rig.run(SECOND * 2);
        assert!(rig.lost.is_empty(), "message {n}: {:?}", rig.lost);
        assert_eq!(rig.delivered.len() as u64, stream.next, "message {n}");
        assert!(rig.sent.len() > first);
    }
}

#[test]
fn towards_a_proxy_that_is_silent_what_was_kept_goes_by_the_server() {
    let mut rig = link();
    rig.add_node(24, &[11, 12]);
    rig.run(SECOND);
    let mut stream = Stream { next: 0, optimizes: false };
    stream.run(&mut rig, SECOND / 10);
    rig.lose = Box::new(|_, s| s.from == node_at(P1) && s.to == node_at(P2));
    rig.with_node(P1, |n, now| n.hand_over(&duid(1), claim(2), node_at(P2), now));
    // It comes up elsewhere after all.
    rig.attach(24, 1, 2);
    stream.run(&mut rig, MILLI * 3);
    rig.map(1, 2, &[node_at(24).ip]);
    stream.run(&mut rig, HAND_OVER_TIME + SECOND / 2);
    rig.run(SECOND / 10);
    // All but what came from that very Server before it knew: nothing goes back whence it came.
    assert!(rig.lost.iter().all(|(_, why)| why.contains("would_return")), "{:?}", rig.lost);
    assert!(rig.lost.len() <= 5, "{:?}", rig.lost);
    let all = delivered_at(&rig, node_at(24)) + delivered_at(&rig, node_at(P1)) + rig.lost.len();
    assert_eq!(all as u64, stream.next);
}

#[test]
fn a_client_that_is_announced_and_does_not_come_is_given_up() {
    let mut rig = link();
    rig.with_node(P1, |n, now| n.hand_over(&duid(1), claim(2), node_at(P2), now));
    rig.map(1, 2, &[node_at(P2).ip]);
    rig.run(JOIN_TIME - SECOND / 10);
    assert_eq!(rig.bound(P2, 1).len(), 2);
    rig.run(SECOND);
    assert!(rig.node(P2).standing(&duid(1)).is_none());
    assert!(rig.server(11).neighbors().all(|n| n.prefix != acp(1)));
    assert!(rig.places[&node_at(P2)].held.is_empty());
    let table = &rig.places[&node_at(P2)].table;
    assert!(table.route(acp(1)).is_none(), "what still comes is not sent round and round");
}

#[test]
fn a_client_that_is_announced_and_goes_on_elsewhere_is_forgotten() {
    let mut rig = link();
    rig.add_node(24, &[11, 12]);
    rig.with_node(P1, |n, now| n.hand_over(&duid(1), claim(2), node_at(P2), now));
    rig.map(1, 2, &[node_at(P2).ip]);
    rig.run(SECOND / 10);
    assert_eq!(rig.bound(P2, 1).len(), 2);
    rig.map(1, 3, &[node_at(24).ip]);
    rig.attach(24, 1, 3);
    rig.run(SECOND);
    assert!(rig.node(P2).standing(&duid(1)).is_none());
    assert_eq!(rig.node(P2).sizes().handing_over, 0);
    assert!(rig.reaches(X, 2, 1, node_at(24)));
}

#[test]
fn nobody_but_a_proxy_hands_a_client_over_and_the_servers_have_the_last_word() {
    let mut rig = link();
    let since = rig.sent.len();
    rig.with_node(P1, |n, now| n.hand_over(&duid(1), claim(2), node_at(P2), now));
    rig.run(SECOND / 100);
    let solicit = rig.since(since).iter().find(|s| s.to == node_at(P2)).unwrap().packet.clone();
    // From a node that is no Proxy: not a word of it is believed.
    let mut rig = link();
    let before = rig.sent.len();
    rig.inject(node_at(X), node_at(P2), &solicit);
    rig.inject(topology::l2("192.0.2.21:9"), node_at(P2), &solicit);
    rig.run(SECOND / 100);
    assert!(straight(&rig, before, P2, P1).is_empty());
    assert!(rig.node(P2).standing(&duid(1)).is_none());
    // From a Proxy, but the table names no holder there: nothing comes of it.
    rig.inject(node_at(P1), node_at(P2), &solicit);
    rig.run(JOIN_TIME + SECOND);
    assert!(straight(&rig, before, P2, P1).is_empty());
    assert!(rig.reaches(X, 2, 1, node_at(P1)), "the Client is where it was");
}

#[test]
fn a_proxy_that_was_not_told_sends_on_as_soon_as_the_new_one_asks() {
    let _row = aero_elements::covers(&["N6b"]);
    // The table first, or as late as a claim waits for it: then the former Proxy still serves.
    for (optimizes, table) in
        [(false, None), (true, None), (false, Some(MILLI * 50)), (true, Some(MILLI * 400))]
    {
        let mut rig = link();
        let since = rig.sent.len();
        let mut stream = Stream { next: 0, optimizes };
        stream.run(&mut rig, SECOND / 2);
        // It left without a word: what P1 delivers from here on reaches nobody.
        let left = stream.next;
        stream.run(&mut rig, SECOND / 5);
        let joined = stream.next;
        if table.is_none() {
            rig.map(1, 2, &[node_at(P2).ip]);
        }
        rig.with_node(P2, |n, now| {
            let spec = ClientSpec { client: duid(1), claim: claim(2), prefixes: vec![acp(1)] };
            n.attach_from(spec, node_at(P1), now);
        });
        if let Some(table) = table {
            stream.run(&mut rig, table);
            rig.map(1, 2, &[node_at(P2).ip]);
        }
        stream.run(&mut rig, SECOND);
        rig.run(SECOND);
        let said = straight(&rig, since, P2, P1);
        assert_eq!(said.iter().filter(|s| *s == "Release").count(), 1, "{said:?}");
        assert!(said.contains(&"Redirect".to_string()));
        assert_eq!(straight(&rig, since, P1, P2)[0], "Predirect");
        let by_server = rig.since(since).iter();
        let late = by_server.filter(|s| s.from == node_at(P1) && s.name() == "Release");
        println!("{} Releases of the former Proxy at its Servers", late.count());
        // Whatever was sent after the join arrives at the new place; before it, what was on its
        // way at the join too.
        let lost: Vec<_> = rig.lost.iter().filter(|(n, _)| *n >= joined).collect();
        assert!(lost.is_empty(), "{lost:?}");
        let new: Vec<u64> = rig
            .delivered
            .iter()
            .filter(|(_, at, _)| *at == node_at(P2))
            .map(|(n, ..)| *n)
            .collect();
        assert!((joined..stream.next).all(|n| new.contains(&n)));
        let at_old = |n: &u64| rig.delivered.iter().any(|(m, at, _)| m == n && *at == node_at(P1));
        let missed = (left..joined).filter(at_old).count() as u64;
        println!("{missed} of {} between leave and join reached nobody", joined - left);
        assert!(missed + 5 > joined - left, "only what came before the join");
        assert!(rig.node(P1).standing(&duid(1)).is_none_or(|s| !s.served));
    }
}

#[test]
fn a_client_that_leaves_again_at_once_is_not_sent_round_and_round() {
    // P1 sends straight to P2, which has lost the Client and sends to a Server; one that has not
    // heard of P2 would send to P1 again.
    let mut rig = link();
    rig.map(1, 2, &[node_at(P2).ip]);
    rig.with_node(P2, |n, now| {
        let spec = ClientSpec { client: duid(1), claim: claim(2), prefixes: vec![acp(1)] };
        n.attach_from(spec, node_at(P1), now);
    });
    rig.run(MILLI * 100);
    let inner = Inner { source: host(2), destination: host(1) };
    let from_p1 = |number| Data { number, inner, from: node_at(P1), at: node_at(P2) };
    rig.arrives(from_p1(1));
    assert!(rig.delivered.iter().any(|(n, at, _)| (*n, *at) == (1, node_at(P2))));
    rig.with_node(P2, |n, now| n.detach(&duid(1), now));
    rig.run(MILLI * 100);
    rig.arrives(from_p1(2));
    let why = rig.lost.iter().find(|(n, _)| *n == 2).map(|(_, why)| why.as_str());
    assert!(why.is_some_and(|w| w.contains("origin")), "{why:?}");
}

#[test]
fn a_late_release_of_the_former_proxy_ends_nothing_where_the_entry_moved_on() {
    let _row = aero_elements::covers(&["N6c"]);
    let mut rig = link();
    // Both Proxies at both Servers: the Request has moved the entry, the Release comes after it.
    let since = rig.sent.len();
    let mut stream = Stream { next: 0, optimizes: false };
    predictive(&mut rig, &mut stream, MILLI * 3, MILLI * 20);
    assert!(rig.since(since).iter().any(|s| s.from == node_at(P2) && s.name() == "Solicit"));
    // A Release as P1 says it, as if it had been on its way all the time.
    let late = {
        use aero_protocol::address::{ALL_DHCP_SERVERS, Duid, aero_address};
        use aero_protocol::wire::dhcpv6::{IaPd, Kind, Message, Prefix};
        let mut m = Message::new(Kind::Release, [1, 2, 3]);
        m.client = Some(duid(1));
        m.server = Some(Duid::from_uuid(Uuid::from_u128(11 << 100)));
        let prefix = Prefix { prefix: acp(1), preferred: 0, valid: 0 };
        m.ia_pd.push(IaPd { id: 1, prefixes: vec![prefix], ..IaPd::default() });
        let to = (ALL_DHCP_SERVERS, 547);
        aero_protocol::wire::ip::udp((aero_address(acp(1)), 546), to, &m.emit().unwrap()).unwrap()
    };
    let before = rig.sent.len();
    rig.inject(node_at(P1), infra_at(11), &late);
    assert_eq!(rig.since(before).len(), 1, "it is answered");
    for _ in 0..20 {
        rig.run(SECOND / 2);
        assert!(rig.reaches(X, 2, 1, node_at(P2)));
    }
    // No linger either: the entry is a lease like any other, renewed at its time.
    rig.run(SECOND * 60);
    assert_eq!(rig.bound(P2, 1).len(), 2);
    let ended = |n: u8| {
        rig.places[&infra_at(n)].server_events.iter().any(
            |e| matches!(e, aero_protocol::server::Event::Ended { at, .. } if *at == node_at(P2)),
        )
    };
    assert!(!ended(11) && !ended(12));
    // Between two Servers it is different: the old one lingers for five seconds, which
    // `the_old_server_sends_on_for_five_seconds_and_then_withdraws_and_no_packet_is_without_a_way`
    // shows.
    let muted = |e: &Event| matches!(e, Event::Muted { .. });
    assert!(!rig.places[&node_at(P2)].node_events.iter().any(muted));
}
