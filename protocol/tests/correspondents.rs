//! Moves of a Client that has direct paths: what its correspondents learn, and what happens if
//! they do not.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::net::IpAddr;
use std::time::Duration;

use aero_elements::faults::{Level, held};
use aero_protocol::address::{Epoch, LinkLayerAddress, aero_address};
use aero_protocol::client::Ignored;
use aero_protocol::forwarding::{Disposition, Inner};
use aero_protocol::server::{Holder, Mapping, NotPassed};
use aero_protocol::wire::nd::{LinkLayerOption, Nd, NdMessage, NdOption};
use common::talk::{
    MILLI, SECOND, by_server, direct, ignored, inject, is_solicitation, is_unsolicited, messages,
    mutual, one_way, read, talk, talk_to,
};
use common::{Link, Sent, duid, holder_id, host, l2, node_address, prefix, server_address};
use rand::{Rng, SeedableRng};

/// Advertisements of Client 2 about itself, to its correspondents.
fn announcement(nd: &Nd) -> bool {
    is_unsolicited(nd) && nd.source == aero_address(prefix(2))
}

/// Client 1 on node 21 and Client 2 on node 22 with paths both ways, and an empty node 23.
fn with_third() -> Link {
    let mut link = mutual();
    let server = server_address(11);
    link.add_node(23, &[server]);
    link
}

/// Client 2 moves to node 23.
fn move_away(link: &mut Link) {
    link.map(2, 2, node_address(23));
    link.attach(node_address(23), 2, 2);
}

#[test]
fn a_move_takes_correspondents_to_the_server_path_at_once_and_then_straight_to_the_new_node() {
    let _row = aero_elements::covers(&["N6d"]);
    let mut link = with_third();
    assert_eq!(talk(&mut link, 21, 1, 2), direct(22));
    let since = link.sent.len();
    move_away(&mut link);
    for step in 0..50 {
        link.run(MILLI);
        let hops = talk(&mut link, 21, 1, 2);
        // A packet takes no time here and the Reply to the new node does.
        if step >= 2 {
            assert!(hops.is_ok(), "step {step}: {hops:?}");
        }
        if step >= 4 {
            assert_ne!(hops.unwrap()[0], node_address(22), "step {step}");
        }
    }
    assert_eq!(talk(&mut link, 21, 1, 2), direct(23));
    // Repeated advertisements of the old node, all of them, do not take the new path away.
    for _ in 0..40 {
        link.run(SECOND / 10);
        assert_eq!(talk(&mut link, 21, 1, 2), direct(23));
    }
    let sent = messages(&link, since, announcement);
    let old: Vec<_> = sent.iter().filter(|(s, _)| s.from == node_address(22)).collect();
    assert_eq!(old.len(), 3);
    assert!(old.iter().all(|(s, _)| s.to == server_address(11)), "none straight");
    assert!(old.windows(2).all(|w| w[1].0.at - w[0].0.at >= SECOND));
    let told: Vec<_> = sent.iter().filter(|(s, _)| s.to == node_address(21)).collect();
    let (_, last) = told.last().unwrap();
    let links: Vec<_> =
        last.target_link_layers().map(|o| (o.preference, o.address.unwrap())).collect();
    let want = [(0, node_address(22)), (255, node_address(23))];
    assert_eq!(links, want, "the old link is off, and the new place is what the Server knows");
    // And the new pod has a path of its own back.
    talk(&mut link, 23, 2, 1).unwrap();
    link.run(SECOND / 10);
    assert_eq!(talk(&mut link, 23, 2, 1), direct(21));
}

#[test]
fn a_pod_that_is_deleted_tells_its_correspondents_before_its_lease_is_released() {
    let mut link = with_third();
    let since = link.sent.len();
    link.detach(node_address(22), 2);
    link.run(SECOND / 100);
    let names: Vec<_> = link.sent[since..].iter().map(Sent::name).collect();
    let at = |name: &str| names.iter().position(|n| n == name).unwrap();
    assert!(at("icmpv6 136") < at("Release"), "{names:?}");
    assert_eq!(
        talk(&mut link, 21, 1, 2).unwrap_err(),
        format!("no_route at {}", l2("192.0.2.11:8060"))
    );
    move_away(&mut link);
    link.run(SECOND / 100);
    assert_eq!(talk(&mut link, 21, 1, 2), by_server(23));
    link.run(SECOND * 9);
    talk(&mut link, 21, 1, 2).unwrap();
    link.run(SECOND / 10);
    assert_eq!(talk(&mut link, 21, 1, 2), direct(23));
}

#[test]
fn without_the_advertisement_the_old_node_sends_on_until_nud_has_found_out() {
    let mut case = held(&["F19"], Level::Model);
    let mut link = with_third();
    link.lose = Box::new(|_, s| read(s).is_some_and(|nd| announcement(&nd)));
    assert_eq!(talk(&mut link, 21, 1, 2), direct(22));
    move_away(&mut link);
    link.run(SECOND / 100);
    let moved = link.now;
    let mut healed = None;
    for _ in 0..500 {
        let hops = talk(&mut link, 21, 1, 2).unwrap();
        assert_eq!(hops.last(), Some(&node_address(23)), "no packet is lost: {hops:?}");
        if hops[0] == node_address(22) {
            assert_eq!(healed, None, "and not back again");
        } else {
            healed.get_or_insert(link.now - moved);
        }
        link.run(SECOND / 100);
    }
    assert!(healed.unwrap() <= SECOND * 3, "{healed:?}");
    for _ in 0..100 {
        talk(&mut link, 21, 1, 2).unwrap();
        link.run(SECOND / 10);
    }
    assert_eq!(talk(&mut link, 21, 1, 2), direct(23));
    case.figure(format!(
        "every advertisement lost: no packet lost, the way by the old node ends after {} ms (bound 3000 ms)",
        healed.unwrap().as_millis()
    ));
}

#[test]
fn if_the_old_node_died_nud_heals_within_three_probes() {
    let mut case = held(&["F19"], Level::Model);
    let mut link = with_third();
    assert_eq!(talk(&mut link, 21, 1, 2), direct(22));
    link.dead.push(node_address(22));
    move_away(&mut link);
    let died = link.now;
    let mut healed = None;
    for _ in 0..400 {
        link.run(SECOND / 100);
        if talk(&mut link, 21, 1, 2).is_ok() {
            healed.get_or_insert(link.now - died);
        } else {
            assert_eq!(healed, None);
        }
    }
    assert!(healed.unwrap() <= SECOND * 3 + SECOND / 50, "{healed:?}");
    case.figure(format!(
        "the old node dead as well: NUD has repaired it after {} ms (bound 3000 ms and two ways)",
        healed.unwrap().as_millis()
    ));
}

#[test]
fn the_loss_of_any_one_message_of_a_move_costs_no_packet_after_the_new_holder_is_known() {
    for n in 0..40 {
        let mut link = with_third();
        let since = link.sent.len();
        move_away(&mut link);
        link.run(SECOND / 100);
        link.lose = Box::new(move |m, _| m == since + n);
        let mut fine = false;
        for _ in 0..300 {
            let hops = talk(&mut link, 21, 1, 2);
            fine = hops.as_ref().is_ok_and(|h| h.last() == Some(&node_address(23)));
            assert!(fine, "message {n} was lost: {hops:?}");
            link.run(SECOND / 50);
        }
        assert!(fine);
        assert_eq!(talk(&mut link, 21, 1, 2), direct(23), "message {n} was lost");
    }
}

#[test]
fn only_the_holder_or_the_last_one_may_say_that_a_prefix_left() {
    let mut link = with_third();
    let lie = Nd {
        source: aero_address(prefix(2)),
        destination: aero_address(prefix(1)),
        message: NdMessage::Advertisement {
            solicited: false,
            override_cached: true,
            target: aero_address(prefix(2)),
        },
        options: vec![
            NdOption::TargetLinkLayer(LinkLayerOption { link_id: 0, preference: 0, address: None }),
            NdOption::Epoch(Epoch(9)),
        ],
    }
    .emit()
    .unwrap();
    let refused = |link: &mut Link| {
        let server = &link.server(server_address(11)).engine;
        server.not_passed().find(|(w, _)| *w == NotPassed::NotOwner).unwrap().1
    };
    inject(&mut link, server_address(11), node_address(23), &lie);
    assert_eq!(refused(&mut link), 1);
    move_away(&mut link);
    link.run(SECOND / 2);
    talk(&mut link, 21, 1, 2).unwrap();
    link.run(SECOND / 10);
    assert_eq!(talk(&mut link, 21, 1, 2), direct(23));
    // The former holder may say so, and its word is about its own link only.
    inject(&mut link, server_address(11), node_address(22), &lie);
    link.run(SECOND / 10);
    assert_eq!(refused(&mut link), 1);
    assert_eq!(talk(&mut link, 21, 1, 2), direct(23));
    link.run(SECOND * 31);
    inject(&mut link, server_address(11), node_address(22), &lie);
    assert_eq!(refused(&mut link), 2, "not for longer than FORWARD_TIME");
    // Straight to the correspondent it says nothing to anybody.
    inject(&mut link, node_address(21), node_address(22), &lie);
    let dropped = link.node(node_address(21)).events.last().cloned();
    assert!(matches!(dropped, Some(aero_protocol::client::Event::Dropped { .. })), "{dropped:?}");
}

#[test]
fn what_is_sent_straight_to_the_old_node_is_sent_on_and_never_delivered_there() {
    let mut link = with_third();
    move_away(&mut link);
    link.run(SECOND / 100);
    let inner = Inner { source: host(1), destination: host(2) };
    let now = link.now;
    let there = link.node(node_address(22)).table.ingress(node_address(21), inner, now);
    assert_eq!(there, Disposition::Tunnel(server_address(11)));
    let next = link.server(server_address(11)).table.ingress(node_address(22), inner, now);
    assert_eq!(next, Disposition::Tunnel(node_address(23)));
}

#[test]
fn an_advertisement_makes_no_entry_and_prolongs_no_time() {
    let _row = aero_elements::covers(&["K5 neg"]);
    let mut link = one_way();
    let advertisement = |from: u16, to: u16| {
        Nd {
            source: aero_address(prefix(from)),
            destination: aero_address(prefix(to)),
            message: NdMessage::Advertisement {
                solicited: false,
                override_cached: true,
                target: aero_address(prefix(from)),
            },
            options: vec![NdOption::TargetLinkLayer(LinkLayerOption {
                link_id: 0,
                preference: 255,
                address: None,
            })],
        }
        .emit()
        .unwrap()
    };
    // Client 3 has no entry at Client 1.
    inject(&mut link, server_address(11), node_address(22), &advertisement(3, 1));
    link.run(SECOND / 10);
    assert_eq!(ignored(&mut link, 21), [Ignored::NoEntry]);
    assert_eq!(link.node(node_address(21)).engine.correspondents().count(), 1);
    let opened = link.now;
    let until = |link: &mut Link| {
        let node = &link.node(node_address(21)).engine;
        node.correspondents().next().and_then(aero_protocol::neighbor::Neighbor::forward_until)
    };
    // The use of the path led to one more solicitation.
    link.run(SECOND * 2);
    let end = until(&mut link).unwrap();
    assert!(end <= opened + SECOND * 31);
    for _ in 0..5 {
        link.run(SECOND * 5);
        inject(&mut link, server_address(11), node_address(22), &advertisement(2, 1));
    }
    assert_eq!(until(&mut link), Some(end));
    link.run(end - link.now);
    assert_eq!(talk(&mut link, 21, 1, 2), by_server(22), "30 s after the last solicited one");
}

/// The node of Client 2 gets another underlay address.
fn renumber(link: &mut Link) -> LinkLayerAddress {
    let there = l2("192.0.2.77:8061");
    let old = node_address(22);
    let role = link.roles.remove(&old).unwrap();
    link.roles.insert(there, role);
    let now = link.now;
    for client in [2, 3] {
        let mapping = Mapping {
            prefix: prefix(client),
            client: duid(client),
            epoch: Epoch(1),
            holder: Some(Holder {
                id: holder_id(client, 1),
                name: format!("pod web-{client}"),
                underlay: vec![old.ip, there.ip],
            }),
        };
        link.server(server_address(11)).engine.set_mapping(mapping, now);
    }
    link.node(there).engine.underlay_changed(now);
    link.drain(there);
    there
}

#[test]
fn a_changed_address_is_announced_after_the_rebind_and_correspondents_follow_it() {
    let _row = aero_elements::covers(&["L2", "L3"]);
    let mut link = mutual();
    let since = link.sent.len();
    let there = renumber(&mut link);
    let (one, two): (IpAddr, IpAddr) = (host(1), host(2));
    let mut hops = Vec::new();
    for _ in 0..60 {
        link.run(MILLI * 5);
        let out = talk_to(&mut link, there, two, one);
        assert!(out.is_ok(), "from the mover: {out:?}");
        hops.push((talk(&mut link, 21, 1, 2), out.unwrap()));
    }
    let (inward, outward) = hops.pop().unwrap();
    assert_eq!(inward, Ok(vec![there]));
    assert_eq!(outward, [node_address(21)], "straight again, both ways");
    let all: Vec<_> = link.sent[since..].iter().collect();
    let reply = all.iter().position(|s| s.name() == "Reply" && s.to == there).unwrap();
    let sent = messages(&link, since, announcement);
    assert!(!sent.is_empty());
    let first = all.iter().position(|s| s.packet == sent[0].0.packet).unwrap();
    assert!(reply < first, "the Reply comes first");
    assert!(sent.iter().all(|(s, _)| s.from != there || s.to == server_address(11)));
    let (_, empty) = &sent[0];
    assert_eq!(empty.target_link_layers().next().unwrap().address, None);
    let (_, filled) = sent.iter().find(|(s, _)| s.to == node_address(21)).unwrap();
    assert_eq!(filled.target_link_layers().next().unwrap().address, Some(there), "the new one");
    // The correspondent solicits the new address, which ends the repetitions.
    let at = |s: &Sent| s.from == node_address(21) && s.to == there;
    assert!(messages(&link, since, is_solicitation).iter().any(|(s, _)| at(s)));
    link.run(SECOND * 3);
    let count = messages(&link, since, announcement);
    assert_eq!(count.iter().filter(|(s, _)| s.from == there).count(), 1);
    assert!(!link.sent[since..].iter().any(|s| s.at > link.start
        && s.to == node_address(22)
        && s.from == node_address(21)
        && s.at > sent[0].0.at + SECOND));
}

#[test]
fn a_mover_tells_each_correspondent_three_times_a_second_apart_by_its_server() {
    let _row = aero_elements::covers(&["K5"]);
    let mut link = mutual();
    let since = link.sent.len();
    let there = renumber(&mut link);
    // Nobody solicits the new address, so nobody ends the repetitions.
    link.lose = Box::new(move |_, s| read(s).is_some_and(|nd| announcement(&nd)));
    link.run(SECOND * 10);
    let sent = messages(&link, since, announcement);
    assert_eq!(sent.len(), 3);
    assert!(sent.windows(2).all(|w| w[1].0.at - w[0].0.at >= SECOND));
    for (sent, nd) in sent {
        assert_eq!((sent.from, sent.to), (there, server_address(11)), "none straight");
        assert_eq!(nd.destination, aero_address(prefix(1)));
        let want = NdMessage::Advertisement {
            solicited: false,
            override_cached: true,
            target: aero_address(prefix(2)),
        };
        assert_eq!(nd.message, want);
        let links: Vec<_> = nd.target_link_layers().map(|o| (o.preference, o.address)).collect();
        assert_eq!(links, [(255, None)]);
    }
}

#[test]
fn random_moves_under_loss_never_leave_a_pair_without_a_path() {
    for seed in 0..30 {
        let mut rng = rand::rngs::StdRng::seed_from_u64(seed);
        let mut link = with_third();
        let mut loss = rand::rngs::StdRng::seed_from_u64(seed ^ 0xbeef);
        link.lose = Box::new(move |_, _| loss.random_bool(0.2));
        let mut at = 22;
        for epoch in 2..2 + rng.random_range(1..12) {
            let next =
                *[21, 22, 23].iter().filter(|n| **n != at).nth(rng.random_range(0..2)).unwrap();
            if rng.random_bool(0.5) {
                link.detach(node_address(at), 2);
            }
            link.map(2, epoch, node_address(next));
            link.attach(node_address(next), 2, epoch);
            for _ in 0..rng.random_range(1..40) {
                link.run(Duration::from_millis(rng.random_range(1..200)));
                if let Ok(hops) = talk(&mut link, 21, 1, 2) {
                    let end = hops.last().copied().unwrap_or(node_address(21));
                    // A former holder gets packets only as long as it has not heard.
                    let served = link.node(end).engine.standing(&duid(2)).is_some_and(|s| s.served);
                    assert!(served, "seed {seed}: to {end}, not {next}");
                }
                let _ = talk(&mut link, next, 2, 1);
            }
            at = next;
        }
        link.lose = Box::new(|_, _| false);
        for _ in 0..300 {
            link.run(SECOND / 10);
            let _ = (talk(&mut link, 21, 1, 2), talk(&mut link, at, 2, 1));
        }
        if at != 21 {
            assert_eq!(talk(&mut link, 21, 1, 2), direct(at), "seed {seed}");
            assert_eq!(talk(&mut link, at, 2, 1), direct(21), "seed {seed}");
        }
        link.run(SECOND * 45);
        for n in [21, 22, 23] {
            let left = link.node(node_address(n)).engine.correspondents().count();
            assert_eq!(left, 0, "seed {seed}: node {n}");
        }
    }
}
