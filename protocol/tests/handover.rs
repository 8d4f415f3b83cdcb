//! Macro mobility: a Client that goes from one Server to another (draft -48 section 3.15.2), and
//! Servers that send their Clients away (RFC 8415 section 18.3.11).

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "common/topology.rs"]
mod topology;

use std::time::Duration;

use aero_protocol::client::Event;
use aero_protocol::server::{self, Announcement, Ended, Remaining};
use aero_protocol::wire::dhcpv6::{Kind, Message, StatusCode};
use aero_protocol::wire::ip::{Packet, Payload};
use topology::{DELAY, Rig, SECOND, acp, duid, host, id, infra_at, node_at};

const S1: u8 = 11;
const S2: u8 = 12;

fn release_of(sent: &topology::Sent) -> Option<Message> {
    match Packet::parse(&sent.packet).unwrap().payload {
        Payload::Udp { data, .. } => {
            Some(Message::parse(data).unwrap()).filter(|m| m.kind == Kind::Release)
        }
        Payload::Icmpv6 { .. } => None,
    }
}

/// The standard rig, where node 21 has been told to go from S1 to S2.
fn moved(rig: &mut Rig) -> usize {
    let since = rig.sent.len();
    rig.with_node(21, |node, now| {
        node.add_server(infra_at(S2), now);
        node.leave_server(infra_at(S1), now);
    });
    since
}

#[test]
fn a_client_gets_its_lease_at_the_new_server_before_it_releases_the_old_one_through_the_new() {
    let _row = aero_elements::covers(&["L5"]);
    let mut rig = Rig::standard();
    let since = moved(&mut rig);
    rig.run(SECOND / 10);
    let dhcp: Vec<_> = rig
        .since(since)
        .iter()
        .filter(|s| !s.name().starts_with("icmpv6"))
        .map(|s| (s.name(), s.from, s.to))
        .collect();
    let way = |name: &str, from, to| (name.to_string(), from, to);
    let (c1, s1, s2) = (node_at(21), infra_at(S1), infra_at(S2));
    assert_eq!(
        dhcp,
        [
            way("Solicit", c1, s2),
            way("Reply", s2, c1),
            way("Release", c1, s2),
            way("Release", s2, s1),
            way("Reply", s1, s2),
            way("Reply", s2, c1),
        ]
    );
    let release = rig.since(since).iter().find(|s| s.name() == "Release").unwrap();
    assert_eq!(release.destination(), id(S1).address().to_string());
    assert_eq!(rig.bound(21, 1), [s2]);
    let left = Event::LeftServer { client: duid(1), server: s1, confirmed: true };
    assert!(rig.places[&c1].node_events.contains(&left));
    assert_eq!(rig.node(21).default_server(), Some(s2));
    assert_eq!(rig.node(21).servers().count(), 1, "the old Server is forgotten");
}

#[test]
fn the_old_server_sends_on_for_five_seconds_and_then_withdraws_and_no_packet_is_without_a_way() {
    let _row = aero_elements::covers(&["L5b", "L6"]);
    let mut rig = Rig::standard();
    // What the Internetwork sends, at whatever Server the Relay uses at the time.
    let from_outside = |rig: &Rig| {
        let table = &rig.places[&infra_at(10)].table;
        let inner = aero_protocol::forwarding::Inner {
            source: "2001:db9::1".parse().unwrap(),
            destination: host(1),
        };
        let aero_protocol::forwarding::Disposition::Tunnel(to) = table.egress(inner, rig.now)
        else {
            panic!("no path")
        };
        rig.way_from(infra_at(10), to, inner.source, inner.destination)
    };
    let late = |rig: &Rig| rig.way_from(infra_at(10), infra_at(S1), host(2), host(1));
    moved(&mut rig);
    let mut steps = 0;
    while rig.now < rig.start + SECOND * 20 {
        rig.run(DELAY / 2);
        if steps % 50 == 0 || rig.now < rig.start + SECOND * 3 + SECOND / 50 {
            let way = from_outside(&rig);
            assert!(way.1.is_ok() && way.0.last() == Some(&node_at(21)), "{way:?}");
        }
        steps += 1;
        if steps == 2000 {
            // A second after the move.
            let s2_then = vec![infra_at(S1), infra_at(S2), node_at(21)];
            assert_eq!(late(&rig), (s2_then, Ok(())), "what the Relay had sent to S1");
            rig.run(SECOND * 3);
            assert!(late(&rig).1.is_ok(), "four seconds after it");
            rig.run(SECOND * 2);
            assert!(late(&rig).1.is_err(), "six seconds after it");
        }
    }
    let of_1 = |u: &&topology::Update| matches!(u.what, Announcement::Announce(p) | Announcement::Withdraw(p) if p == acp(1));
    let updates: Vec<_> = rig.updates.iter().filter(of_1).map(|u| (u.server, u.what)).collect();
    assert_eq!(
        updates,
        [
            (id(S1), Announcement::Announce(acp(1))),
            (id(S2), Announcement::Announce(acp(1))),
            (id(S1), Announcement::Withdraw(acp(1))),
        ]
    );
    let times: Vec<_> = rig.updates.iter().filter(of_1).map(|u| u.at).collect();
    let release = rig.sent.iter().find(|s| release_of(s).is_some()).unwrap();
    assert!(times[1] <= release.at, "announced by the new one before the old one hears of it");
    let linger = times[2] - times[1];
    assert!((4..=6).contains(&linger.as_secs()), "{linger:?}");
    let why = |e: &server::Event| matches!(e, server::Event::Ended { why: Ended::HandedOver, .. });
    assert!(rig.places[&infra_at(S1)].server_events.iter().any(why));
}

#[test]
fn until_the_old_server_has_read_the_release_what_it_sends_straight_is_accepted() {
    let mut rig = Rig::standard();
    moved(&mut rig);
    let end = rig.now + SECOND / 10;
    let mut straight = 0;
    while rig.now < end {
        let (hops, outcome) = rig.way_from(infra_at(10), infra_at(S1), host(2), host(1));
        assert_eq!(outcome, Ok(()), "{:?} after it left: {hops:?}", rig.now - rig.start);
        straight += usize::from(hops == [infra_at(S1), node_at(21)]);
        rig.run(DELAY / 4);
    }
    assert!(straight >= 12, "the Release is under way for three delays: {straight}");
    assert_eq!(rig.node(21).servers().count(), 1, "and then it is forgotten");
}

#[test]
fn a_lease_at_a_server_that_is_left_and_dies_before_there_is_another_is_used_to_its_end_only() {
    let mut rig = Rig::standard();
    rig.with_node(21, |node, now| node.leave_server(infra_at(S1), now));
    rig.run(SECOND);
    assert_eq!(rig.bound(21, 1), [infra_at(S1)], "there is no other to go to");
    rig.dead.insert(infra_at(S1));
    rig.run(SECOND * 10);
    assert!(rig.node(21).standing(&duid(1)).unwrap().served, "nobody else has the prefix");
    rig.run(SECOND * 40);
    assert!(!rig.node(21).standing(&duid(1)).unwrap().served, "the lease is over");
}

#[test]
fn a_hundred_moves_inside_a_server_are_no_business_of_the_relays() {
    let _row = aero_elements::covers(&["L4"]);
    let mut rig = Rig::standard();
    rig.add_node(23, &[S1]);
    rig.run(SECOND);
    let updates = rig.updates.len();
    // From node to node, the pod's name with it.
    let mut node = 21;
    for epoch in 2..102 {
        let next = if node == 21 { 23 } else { 21 };
        rig.map(1, epoch, &[node_at(next).ip]);
        rig.run(SECOND / 4);
        rig.attach(next, 1, epoch);
        rig.run(SECOND / 10);
        assert!(rig.reaches(22, 2, 1, node_at(next)), "move {epoch}");
        rig.with_node(node, |n, now| n.detach(&duid(1), now));
        node = next;
    }
    rig.run(SECOND * 60);
    assert_eq!(rig.updates[updates..], [], "100 moves");
    // And a node that only gets other underlay addresses.
    for n in 0..100 {
        let there = topology::l2(&format!("192.0.2.21:{}", 9000 + n));
        rig.readdress(21, there);
        rig.run(SECOND / 10);
    }
    assert_eq!(rig.updates[updates..], [], "100 addresses");
    // A holder that does not come is withdrawn.
    rig.map(1, 200, &[node_at(22).ip]);
    rig.run(server::WITHDRAW_TIME + SECOND / 10);
    let withdrawn = rig.updates[updates..].iter().map(|u| u.what).collect::<Vec<_>>();
    assert_eq!(withdrawn, [Announcement::Withdraw(acp(1))]);
}

#[test]
fn after_the_release_the_old_server_takes_no_data_from_the_clients_address() {
    let mut rig = Rig::standard();
    let sends = |rig: &Rig| rig.way_from(node_at(21), infra_at(S1), host(1), host(2)).1;
    assert_eq!(sends(&rig), Ok(()));
    moved(&mut rig);
    rig.run(SECOND / 10);
    assert_eq!(sends(&rig), Err("origin_refused".into()));
}

#[test]
fn the_release_is_repeated_until_its_answer_comes_whichever_message_is_lost() {
    let _row = aero_elements::covers(&["L5c"]);
    for lost in 0..4 {
        let mut rig = Rig::standard();
        let mut seen = 0;
        // Release to S2, to S1, Reply to S2, to C1: loses the first of one kind.
        rig.lose = Box::new(move |_, sent| {
            let handover = release_of(sent).is_some()
                || (sent.name() == "Reply" && sent.from == infra_at(S1))
                || (sent.name() == "Reply" && sent.to == node_at(21) && seen > 2);
            if handover {
                seen += 1;
            }
            handover && seen == lost + 1
        });
        moved(&mut rig);
        rig.run(SECOND * 3);
        let left = Event::LeftServer { client: duid(1), server: infra_at(S1), confirmed: true };
        assert!(rig.places[&node_at(21)].node_events.contains(&left), "message {lost} was lost");
        assert!(rig.reaches(22, 2, 1, node_at(21)));
    }
}

#[test]
fn a_release_that_comes_again_gets_no_binding_once_the_entry_is_gone_and_that_ends_it() {
    let _row = aero_elements::covers(&["L5c"]);
    let mut rig = Rig::standard();
    let since = moved(&mut rig);
    rig.run(SECOND * 10);
    let through = |s: &&topology::Sent| s.name() == "Release" && s.from == infra_at(S2);
    let release = rig.since(since).iter().find(through).unwrap().packet.clone();
    let since = rig.sent.len();
    rig.inject(infra_at(S2), infra_at(S1), &release);
    let reply = rig.since(since)[0].clone();
    assert_eq!(reply.to, infra_at(S2), "back the way that it came");
    let Payload::Udp { data, .. } = Packet::parse(&reply.packet).unwrap().payload else { panic!() };
    let reply = Message::parse(data).unwrap();
    assert_eq!(reply.status.unwrap().code, StatusCode::Success);
    assert_eq!(reply.ia_pd[0].status.as_ref().unwrap().code, StatusCode::NoBinding);
}

#[test]
fn towards_a_dead_server_the_release_is_given_up_after_four_and_the_client_goes_on() {
    let _row = aero_elements::covers(&["L5c"]);
    let mut rig = Rig::standard();
    rig.dead.insert(infra_at(S1));
    let since = moved(&mut rig);
    rig.run(SECOND * 30);
    let releases = |s: &&topology::Sent| s.name() == "Release" && s.from == node_at(21);
    assert_eq!(rig.since(since).iter().filter(releases).count(), 4);
    let left = Event::LeftServer { client: duid(1), server: infra_at(S1), confirmed: false };
    assert!(rig.places[&node_at(21)].node_events.contains(&left));
    assert_eq!(rig.bound(21, 1), [infra_at(S2)]);
    assert!(rig.reaches(22, 2, 1, node_at(21)));
}

#[test]
fn without_a_lease_at_another_server_a_client_stays_where_it_is() {
    let mut rig = Rig::standard();
    rig.dead.insert(infra_at(S2));
    moved(&mut rig);
    rig.run(SECOND * 10);
    assert_eq!(rig.bound(21, 1), [infra_at(S1)]);
    assert_eq!(rig.node(21).default_server(), Some(infra_at(S1)));
    rig.dead.clear();
    rig.run(SECOND * 10);
    assert_eq!(rig.bound(21, 1), [infra_at(S2)]);
    assert!(rig.reaches(22, 2, 1, node_at(21)));
}

#[test]
fn only_permanent_neighbours_hand_clients_over_and_only_in_the_clients_own_name() {
    let mut rig = Rig::standard();
    let since = moved(&mut rig);
    rig.run(DELAY * 5 / 2);
    let release = rig.since(since).iter().find(|s| s.name() == "Release").unwrap().packet.clone();
    // Before it has gone its way: the same from an address that is no Server's.
    let mut rig = Rig::standard();
    let entries = |rig: &Rig| rig.server(S1).neighbors().filter(|n| !n.lingers).count();
    rig.inject(topology::l2("192.0.2.66:8060"), infra_at(S1), &release);
    assert_eq!(entries(&rig), 1);
    // From another Client's inner address, through a real Server.
    let mut forged = release.clone();
    let other = aero_protocol::address::aero_address(acp(2)).octets();
    let Payload::Udp { data, .. } = Packet::parse(&release).unwrap().payload else { panic!() };
    let to = id(S1).address();
    let packet = aero_protocol::wire::ip::udp((other.into(), 546), (to, 547), data).unwrap();
    std::mem::replace(&mut forged, packet).clear();
    rig.inject(infra_at(S2), infra_at(S1), &forged);
    assert_eq!(entries(&rig), 1);
    // And S2 does not pass on what does not come from its own Client.
    let since = rig.sent.len();
    rig.inject(node_at(21), infra_at(S2), &release);
    assert!(rig.since(since).is_empty());
    rig.inject(infra_at(S2), infra_at(S1), &release);
    assert_eq!(entries(&rig), 0, "the good one");
}

#[test]
fn through_a_relay_the_old_server_lets_go_at_once_since_it_cannot_know_the_new_one() {
    let mut rig = Rig::standard();
    // S2 does not know S1, so the Release goes by the Relay.
    rig.with_server(S2, |s, _| s.remove_peer(id(S1)));
    rig.with_server(S1, |s, _| s.remove_peer(id(S2)));
    moved(&mut rig);
    rig.run(SECOND / 10);
    assert_eq!(rig.server(S1).neighbors().count(), 0);
    let left = Event::LeftServer { client: duid(1), server: infra_at(S1), confirmed: true };
    assert!(rig.places[&node_at(21)].node_events.contains(&left));
    assert!(rig.reaches(22, 2, 1, node_at(21)));
    let way = rig.way_from(infra_at(S1), infra_at(10), host(9), host(1));
    assert_eq!(way, (vec![infra_at(10), infra_at(S2), node_at(21)], Ok(())));
}

#[test]
fn a_client_that_hops_twenty_times_in_twenty_seconds_costs_few_updates_and_is_reached_at_once() {
    let _row = aero_elements::covers(&["L7"]);
    let mut rig = Rig::standard();
    let before = rig.updates.len();
    let mut at = S1;
    for _ in 0..20 {
        let next = if at == S1 { S2 } else { S1 };
        rig.with_node(21, |node, now| {
            node.add_server(infra_at(next), now);
            node.leave_server(infra_at(at), now);
        });
        rig.run(SECOND / 10);
        assert_eq!(rig.bound(21, 1), [infra_at(next)]);
        assert!(rig.reaches(22, 2, 1, node_at(21)), "right after the hop to {next}");
        rig.run(SECOND * 9 / 10);
        at = next;
    }
    for server in [S1, S2] {
        let n = rig.updates[before..].iter().filter(|u| u.server == id(server)).count();
        assert!(n <= 2, "{n} updates of {server}");
    }
    rig.run(SECOND * 100);
    let last = |n: u8| rig.updates.iter().rev().find(|u| u.server == id(n)).unwrap().what;
    assert_eq!((at, last(S2)), (S1, Announcement::Withdraw(acp(1))));
    assert_eq!(rig.server(S2).neighbors().count(), 1, "only Client 2 is left at S2");
    assert!(rig.reaches(22, 2, 1, node_at(21)));
}

#[test]
fn slow_hops_cost_fewer_updates_than_hops() {
    let mut rig = Rig::standard();
    let before = rig.updates.len();
    let (mut at, mut next) = (S1, S2);
    for _ in 0..12 {
        rig.with_node(21, |node, now| {
            node.add_server(infra_at(next), now);
            node.leave_server(infra_at(at), now);
        });
        rig.run(SECOND * 8);
        assert!(rig.reaches(22, 2, 1, node_at(21)));
        std::mem::swap(&mut at, &mut next);
    }
    // Undamped it would be a withdrawal and an announcement per hop.
    let n = rig.updates.len() - before;
    assert!(n <= 12, "{n} updates for 12 hops");
}

#[test]
fn a_server_that_drains_sends_its_clients_to_others_before_it_goes() {
    let mut rig = Rig::standard();
    rig.with_node(21, |node, now| node.add_server(infra_at(S2), now));
    rig.with_node(22, |node, now| node.add_server(infra_at(S1), now));
    rig.run(SECOND * 3);
    let since = rig.sent.len();
    rig.with_server(S1, aero_protocol::server::Server::drain);
    assert_eq!(rig.server(S1).remaining(), Remaining { clients: 2, asked: 2 });
    rig.run(SECOND / 10);
    assert!(rig.since(since).iter().any(|s| s.name() == "Reconfigure"));
    assert_eq!(rig.server(S1).remaining(), Remaining { clients: 0, asked: 0 });
    assert_eq!((rig.bound(21, 1), rig.bound(22, 2)), (vec![infra_at(S2)], vec![infra_at(S2)]));
    assert!(rig.server(S1).neighbors().all(|n| n.lingers), "nobody needs it any more");
    rig.dead.insert(infra_at(S1));
    rig.with_relay(10, |r| r.set_usable(id(S1), false));
    assert!(rig.reaches(21, 1, 2, node_at(22)) && rig.reaches(22, 2, 1, node_at(21)));
    rig.run(SECOND * 30);
    assert!(rig.reaches(21, 1, 2, node_at(22)) && rig.reaches(22, 2, 1, node_at(21)));
}

#[test]
fn the_loss_of_a_reconfigure_is_made_good() {
    let mut rig = Rig::standard();
    rig.with_node(21, |node, now| node.add_server(infra_at(S2), now));
    rig.run(SECOND * 3);
    let mut lost = 0;
    rig.lose = Box::new(move |_, s| {
        let lose = s.name() == "Reconfigure" && lost < 2;
        lost += u32::from(lose);
        lose
    });
    rig.with_server(S1, aero_protocol::server::Server::drain);
    rig.run(SECOND * 8);
    assert_eq!(rig.bound(21, 1), [infra_at(S2)]);
    rig.run(SECOND * 30);
    let n = rig.sent.iter().filter(|s| s.name() == "Reconfigure").count();
    assert_eq!(n, 3, "none after it was heeded");
}

#[test]
fn a_forged_or_replayed_reconfigure_is_discarded() {
    let mut rig = Rig::standard();
    rig.with_node(21, |node, now| node.add_server(infra_at(S2), now));
    rig.run(SECOND * 3);
    let since = rig.sent.len();
    rig.lose = Box::new(|_, s| s.name() == "Reconfigure");
    rig.with_server(S1, aero_protocol::server::Server::drain);
    rig.with_server(S1, |s, _| s.resume());
    let good = rig.since(since).iter().find(|s| s.name() == "Reconfigure").unwrap().packet.clone();
    rig.lose = Box::new(|_, _| false);
    let Packet { source, destination, payload, .. } = Packet::parse(&good).unwrap();
    let Payload::Udp { data, .. } = payload else { panic!() };
    let mut bad = data.to_vec();
    *bad.last_mut().unwrap() ^= 1;
    let flipped = aero_protocol::wire::ip::udp((source, 547), (destination, 546), &bad).unwrap();
    rig.inject(infra_at(S1), node_at(21), &flipped);
    rig.inject(infra_at(S2), node_at(21), &good);
    rig.run(SECOND);
    assert_eq!(rig.bound(21, 1).len(), 2, "forged");
    rig.inject(infra_at(S1), node_at(21), &good);
    rig.run(SECOND);
    assert_eq!(rig.bound(21, 1), [infra_at(S2)], "the real one");
    // A minute later the Server is still there: it is asked again.
    rig.run(SECOND * 62);
    assert_eq!(rig.bound(21, 1).len(), 2);
    rig.inject(infra_at(S1), node_at(21), &good);
    rig.run(SECOND);
    assert_eq!(rig.bound(21, 1).len(), 2, "replayed");
}

#[test]
fn a_draining_server_gives_no_new_lease_and_keeps_those_that_it_gave() {
    let mut rig = Rig::standard();
    rig.map(3, 1, &[node_at(21).ip]);
    rig.with_server(S1, aero_protocol::server::Server::drain);
    rig.attach(21, 3, 1);
    rig.run(SECOND * 60);
    assert!(rig.bound(21, 3).is_empty());
    let refusal = rig.node(21).standing(&duid(3)).unwrap().refusal.unwrap();
    assert!(refusal.contains("about to go"), "{refusal}");
    assert_eq!(rig.bound(21, 1), [infra_at(S1)], "there is no other Server to turn to");
    assert_eq!(rig.server(S1).remaining(), Remaining { clients: 1, asked: 0 }, "it said so");
    rig.with_server(S1, |s, _| s.resume());
    rig.run(SECOND * 5);
    assert_eq!(rig.bound(21, 3), [infra_at(S1)]);
}

#[test]
fn a_server_that_lost_its_memory_makes_the_binding_anew_when_a_client_rebinds() {
    let mut rig = Rig::standard();
    rig.add_server(S1);
    rig.mesh();
    rig.map(1, 1, &[node_at(21).ip]);
    let since = rig.sent.len();
    rig.with_node(21, aero_protocol::client::Node::underlay_changed);
    rig.run(SECOND / 10);
    let names: Vec<_> = rig.since(since).iter().map(topology::Sent::name).collect();
    assert_eq!(names[..2], ["Rebind", "Reply"], "one round trip");
    assert_eq!(rig.server(S1).neighbors().count(), 1);
    assert!(rig.way_from(infra_at(10), infra_at(S1), host(2), host(1)).1.is_ok());
}

#[test]
fn a_client_keeps_leases_at_two_servers_and_loses_nothing_when_one_dies() {
    let _row = aero_elements::covers(&["E5", "E9"]);
    let mut rig = Rig::standard();
    let lease = |rig: &Rig| rig.server(S1).neighbors().find(|n| n.prefix == acp(1)).cloned();
    let before = lease(&rig);
    rig.with_node(21, |node, now| node.add_server(infra_at(S2), now));
    rig.run(SECOND);
    assert_eq!(rig.bound(21, 1).len(), 2);
    assert_eq!(lease(&rig), before, "the lease at S1 is as it was");
    let announcing: Vec<_> = rig
        .updates
        .iter()
        .filter(|u| u.what == Announcement::Announce(acp(1)))
        .map(|u| u.server)
        .collect();
    assert_eq!(announcing, [id(S1), id(S2)], "two paths");
    rig.dead.insert(infra_at(S1));
    rig.with_relay(10, |r| r.set_usable(id(S1), false));
    let since = rig.sent.len();
    rig.run(Duration::from_secs(5));
    assert!(rig.reaches(22, 2, 1, node_at(21)) && rig.reaches(21, 1, 2, node_at(22)));
    let solicits = |s: &&topology::Sent| s.name() == "Solicit" && s.to == infra_at(S2);
    assert_eq!(rig.since(since).iter().filter(solicits).count(), 0, "no new delegation");
}

/// Random hops of one Client among three Servers under loss, one of which may die: in the end it is
/// reached where it is, by one way, and nothing is left behind anywhere.
#[test]
fn when_a_server_and_a_relay_die_together_all_is_reached_again_without_a_hand() {
    let _row = aero_elements::covers(&["Q3"]);
    const R2: u8 = 13;
    // BGP's hold time, after which each side says that the other is gone (draft-ietf-rtgwg-atn-bgp
    // recommends three seconds).
    let hold = SECOND * 3;
    let mut rig = Rig::standard();
    rig.add_relay(R2);
    rig.mesh();
    for acp in [acp(1), acp(2)] {
        let server = if acp == topology::acp(1) { S1 } else { S2 };
        rig.with_relay(R2, |r| r.set_route(acp, id(server)).unwrap());
    }
    for node in [21, 22] {
        for server in [S1, S2] {
            rig.with_node(node, |n, now| n.add_server(infra_at(server), now));
        }
    }
    rig.run(SECOND * 3);
    let from_outside = |rig: &Rig, relay: u8| {
        let table = &rig.places[&infra_at(relay)].table;
        let source = "2001:db9::1".parse().unwrap();
        let inner = aero_protocol::forwarding::Inner { source, destination: host(1) };
        match table.egress(inner, rig.now) {
            aero_protocol::forwarding::Disposition::Tunnel(to) => {
                let way = rig.way_from(infra_at(relay), to, source, host(1));
                way.1.is_ok() && way.0.last() == Some(&node_at(21))
            }
            _ => false,
        }
    };
    assert!(from_outside(&rig, 10) && from_outside(&rig, R2));
    rig.dead.extend([infra_at(S1), infra_at(10)]);
    let died = rig.now;
    let well = |rig: &Rig| {
        let server = rig.node(21).default_server().unwrap();
        let far = "2001:db9::1".parse().unwrap();
        let outward = rig.way_from(node_at(21), server, host(1), far);
        let inward = from_outside(rig, R2);
        let pods = rig.reaches(21, 1, 2, node_at(22)) && rig.reaches(22, 2, 1, node_at(21));
        inward && pods && outward.1.is_ok() && outward.0.last() == Some(&infra_at(R2))
    };
    assert!(!well(&rig), "it has to be noticed first");
    rig.run(hold);
    // What BGP says on either side; nobody else has to say anything.
    rig.with_relay(R2, |r| r.set_usable(id(S1), false));
    for server in [S1, S2] {
        rig.with_server(server, |s, _| s.set_peer_usable(id(10), false));
    }
    while !well(&rig) {
        rig.run(SECOND / 20);
        assert!(rig.now < died + SECOND * 8, "not within eight seconds");
    }
    println!("a Server and a Relay died; all reached {:?} later", rig.now - died);
    for _ in 0..60 {
        rig.run(SECOND);
        assert!(well(&rig));
    }
}

#[test]
fn random_hops_under_random_loss_end_at_the_last_server_and_leave_nothing_behind() {
    use rand::{Rng, SeedableRng};
    for seed in 0..60 {
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        let mut rig = Rig::standard();
        rig.add_server(13);
        rig.mesh();
        rig.map(1, 1, &[node_at(21).ip]);
        let mut loss = rand::rngs::StdRng::seed_from_u64(seed ^ 0xfeed);
        rig.lose = Box::new(move |_, _| loss.random_bool(0.15));
        let mut at = S1;
        for _ in 0..rng.random_range(1..12) {
            let next =
                *[S1, S2, 13].iter().filter(|n| **n != at).nth(rng.random_range(0..2)).unwrap();
            rig.with_node(21, |node, now| {
                node.add_server(infra_at(next), now);
                node.leave_server(infra_at(at), now);
            });
            rig.run(Duration::from_millis(rng.random_range(1..9000)));
            at = next;
            // However it stands, no packet goes in a circle.
            for server in [S1, S2, 13] {
                let (hops, end) = rig.way_from(infra_at(10), infra_at(server), host(2), host(1));
                assert_ne!(end, Err("loop".into()), "seed {seed}: {hops:?}");
            }
        }
        rig.lose = Box::new(|_, _| false);
        rig.run(SECOND * 130);
        // A hop that could not be finished (the next one came first) ends at some Server.
        let bound = rig.bound(21, 1);
        assert!(!bound.is_empty(), "seed {seed}");
        assert!(rig.reaches(22, 2, 1, node_at(21)), "seed {seed}: bound at {bound:?}");
        assert!(rig.reaches(21, 1, 2, node_at(22)), "seed {seed}: bound at {bound:?}");
        for server in [S1, S2, 13] {
            let here = rig.server(server).neighbors().any(|n| n.prefix == acp(1));
            assert_eq!(here, bound.contains(&infra_at(server)), "seed {seed}: Server {server}");
        }
        let announcing: Vec<_> = rig
            .relay(10)
            .routes()
            .find(|(p, _)| *p == acp(1))
            .map(|(_, list)| list.to_vec())
            .unwrap_or_default();
        assert_eq!(announcing.len(), bound.len(), "seed {seed}: {announcing:?}");
    }
}
