//! Direct paths between Clients: from the first packet by the Server to the path and back.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use aero_protocol::address::{LinkLayerAddress, aero_address};
use aero_protocol::client::{Ignored, PathLost};
use aero_protocol::forwarding::{Disposition, Inner};
use aero_protocol::neighbor::State;
use aero_protocol::wire::nd::{LinkLayerOption, Nd, NdMessage, NdOption};
use common::talk::{
    MILLI, SECOND, by_server, direct, ignored, inject, is_predirect, is_redirect, is_solicitation,
    lost, messages, mutual, one_way, packet, pair, read, states, talk, talk_to,
};
use common::{Link, Sent, host, l2, node_address, prefix, server_address};

#[test]
fn the_first_packet_goes_by_the_server_with_a_predirect_that_has_every_field() {
    let _row = aero_elements::covers(&["K1"]);
    let mut link = pair();
    let since = link.sent.len();
    let now = link.now;
    link.node(node_address(21)).engine.set_clock(now, Duration::from_secs(0x5472_7500));
    assert_eq!(talk(&mut link, 21, 1, 2), by_server(22));
    let sent = messages(&link, since, is_predirect);
    assert_eq!(sent.len(), 1);
    let (sent, nd) = &sent[0];
    assert_eq!(sent.to, server_address(11));
    assert!(sent.packet.len() <= 1280, "{} bytes", sent.packet.len());
    assert_eq!(sent.packet[7], 255, "hop limit");
    assert_eq!(nd.source, aero_address(prefix(1)));
    assert_eq!(nd.destination, aero_address(prefix(2)));
    let want = NdMessage::Redirect {
        predirect: true,
        target: aero_address(prefix(1)),
        destination: host(1),
        prefix_length: 64,
    };
    assert_eq!(nd.message, want);
    let link_option = LinkLayerOption { link_id: 0, preference: 255, address: None };
    assert_eq!(nd.options[0], NdOption::TargetLinkLayer(link_option));
    assert_eq!(nd.options[1], NdOption::Timestamp(Duration::from_secs(0x5472_7500)));
    assert!(nd.nonce().unwrap().len() >= 6);
    let NdOption::RedirectedHeader(quoted) = &nd.options[3] else { panic!("{nd:?}") };
    assert_eq!(quoted[..1000], packet(host(1), host(2), 1460)[..1000]);
}

#[test]
fn there_is_at_most_one_predirect_a_second_and_none_for_a_destination_outside_the_link() {
    let _row = aero_elements::covers(&["K1b"]);
    let mut link = pair();
    // Nothing comes back.
    link.lose = Box::new(|_, s| s.name() == "icmpv6 137");
    let since = link.sent.len();
    for _ in 0..5000 {
        assert_eq!(talk(&mut link, 21, 1, 2), by_server(22));
        link.run(MILLI);
    }
    let sent = messages(&link, since, is_predirect);
    assert!((2..=5).contains(&sent.len()), "{} in 5 s", sent.len());
    for two in sent.windows(2) {
        assert!(two[1].0.at - two[0].0.at >= SECOND, "less than a second between two");
    }
    let since = link.sent.len();
    let outside = "2001:db9::1".parse().unwrap();
    assert!(talk_to(&mut link, node_address(21), host(1), outside).is_err());
    let inner = Inner { source: host(1), destination: outside };
    let now = link.now;
    link.node(node_address(21)).engine.data_packet_by_server(inner, &[], now);
    link.drain(node_address(21));
    assert!(messages(&link, since, is_predirect).is_empty());
}

#[test]
fn one_exchange_opens_one_direction_and_the_other_needs_its_own() {
    let _row = aero_elements::covers(&["K3"]);
    let mut link = pair();
    let since = link.sent.len();
    assert_eq!(talk(&mut link, 21, 1, 2), by_server(22));
    link.run(SECOND / 10);
    let (predirects, redirects) =
        (messages(&link, since, is_predirect), messages(&link, since, is_redirect));
    // Client to Server, Server to Client, and back.
    assert_eq!((predirects.len(), redirects.len()), (2, 2));
    let (answer, nd) = &redirects[0];
    assert_eq!((answer.from, answer.to), (node_address(22), server_address(11)));
    let want = NdMessage::Redirect {
        predirect: false,
        target: aero_address(prefix(2)),
        destination: host(2),
        prefix_length: 64,
    };
    assert_eq!((nd.source, nd.destination), (aero_address(prefix(2)), aero_address(prefix(1))));
    assert_eq!(nd.message, want);
    assert_eq!(nd.nonce(), predirects[0].1.nonce(), "the nonce is echoed");
    assert_eq!(talk(&mut link, 21, 1, 2), direct(22));
    assert_eq!(talk(&mut link, 22, 2, 1), by_server(21), "not yet asked for");
    link.run(SECOND / 10);
    assert_eq!(talk(&mut link, 22, 2, 1), direct(21));
    assert_eq!(states(&mut link, 21), [State::Direct]);
    assert_eq!(states(&mut link, 22), [State::Direct]);
}

#[test]
fn data_goes_straight_only_after_the_target_has_answered_a_solicitation() {
    let mut link = pair();
    let since = link.sent.len();
    link.lose = Box::new(|_, s| read(s).is_some_and(|nd| is_solicitation(&nd)));
    for _ in 0..30 {
        assert_eq!(talk(&mut link, 21, 1, 2), by_server(22));
        link.run(SECOND / 10);
    }
    let solicited = messages(&link, since, is_solicitation);
    assert_eq!(solicited.len(), 3);
    assert!(solicited.iter().all(|(s, _)| s.to == node_address(22)), "straight to the target");
    assert_eq!(states(&mut link, 21), [State::Probing]);
    link.lose = Box::new(|_, _| false);
    link.run(SECOND * 10);
    talk(&mut link, 21, 1, 2).unwrap();
    link.run(SECOND / 10);
    assert_eq!(talk(&mut link, 21, 1, 2), direct(22));
}

#[test]
fn the_advertisement_comes_by_the_server_until_the_target_has_a_path_of_its_own() {
    let _row = aero_elements::covers(&["K4c"]);
    let mut link = pair();
    let since = link.sent.len();
    talk(&mut link, 21, 1, 2).unwrap();
    link.run(SECOND / 10);
    let of_2 = |nd: &Nd| {
        matches!(nd.message, NdMessage::Advertisement { solicited: true, .. })
            && nd.source == aero_address(prefix(2))
    };
    let answers = messages(&link, since, of_2);
    let way: Vec<_> = answers.iter().map(|(s, _)| (s.from, s.to)).collect();
    let (server, one, two) = (server_address(11), node_address(21), node_address(22));
    assert_eq!(way, [(two, server), (server, one)]);
    talk(&mut link, 22, 2, 1).unwrap();
    link.run(SECOND);
    let since = link.sent.len();
    assert_eq!(talk(&mut link, 21, 1, 2), direct(22));
    link.run(SECOND / 10);
    let answers = messages(&link, since, of_2);
    let way: Vec<_> = answers.iter().map(|(s, _)| (s.from, s.to)).collect();
    assert_eq!(way, [(two, one)], "both have paths now");
}

#[test]
fn another_host_of_the_whole_prefix_is_reached_straight_without_a_new_predirect() {
    let _row = aero_elements::covers(&["K3b"]);
    let mut link = one_way();
    let since = link.sent.len();
    let other: IpAddr = "2001:db8:0:2:ffff::b".parse().unwrap();
    let hops = talk_to(&mut link, node_address(21), host(1), other);
    assert_eq!(hops, direct(22));
    assert!(messages(&link, since, is_predirect).is_empty());
}

#[test]
fn a_path_is_for_the_pair_that_agreed_it_and_for_no_other_client_of_either_node() {
    let mut link = one_way();
    // Client 3 is on the node of Client 2, and nothing was agreed with it.
    assert_eq!(talk(&mut link, 21, 1, 3), by_server(22));
    link.map(4, 1, node_address(21));
    link.attach(node_address(21), 4, 1);
    link.run(SECOND / 10);
    assert_eq!(talk(&mut link, 21, 4, 2), by_server(22), "Client 4 has agreed nothing");
    // The target takes nothing from Client 4 that comes straight.
    let inner = Inner { source: host(4), destination: host(2) };
    let now = link.now;
    let table = &link.node(node_address(22)).table;
    assert!(matches!(table.ingress(node_address(21), inner, now), Disposition::Drop(_)));
}

#[test]
fn a_target_takes_straight_only_what_was_announced_from_where_it_was_announced() {
    let _row = aero_elements::covers(&["K3d"]);
    let mut link = pair();
    let inner = Inner { source: host(1), destination: host(2) };
    let ingress = |link: &mut Link, from: LinkLayerAddress| {
        let now = link.now;
        link.node(node_address(22)).table.ingress(from, inner, now)
    };
    let refused = |d| matches!(d, Disposition::Drop(_));
    assert!(refused(ingress(&mut link, node_address(21))), "before the Predirect");
    talk(&mut link, 21, 1, 2).unwrap();
    link.run(SECOND / 10);
    assert_eq!(ingress(&mut link, node_address(21)), Disposition::Deliver);
    assert!(refused(ingress(&mut link, l2("192.0.2.99:8061"))), "another address");
    assert!(refused(ingress(&mut link, l2("192.0.2.21:8062"))), "another port");
    link.run(SECOND * 39);
    assert_eq!(ingress(&mut link, node_address(21)), Disposition::Deliver);
    link.run(SECOND * 2);
    assert!(refused(ingress(&mut link, node_address(21))), "41 s after the last solicitation");
    assert_eq!(link.node(node_address(22)).engine.correspondents().count(), 0);
}

#[test]
fn after_25_seconds_of_silence_a_path_is_still_there_and_after_31_it_is_not() {
    let _row = aero_elements::covers(&["K4b"]);
    let mut link = one_way();
    link.run(SECOND * 25);
    assert_eq!(talk(&mut link, 21, 1, 2), direct(22));
    link.run(SECOND * 32);
    let since = link.sent.len();
    assert_eq!(talk(&mut link, 21, 1, 2), by_server(22));
    assert_eq!(messages(&link, since, is_predirect).len(), 1, "and is asked for anew");
    assert_eq!(lost(&mut link, 21), [PathLost::Idle]);
}

#[test]
fn a_path_in_use_is_solicited_once_a_second_and_one_at_rest_is_not() {
    let mut link = mutual();
    let since = link.sent.len();
    for _ in 0..100 {
        assert_eq!(talk(&mut link, 21, 1, 2), direct(22));
        link.run(SECOND / 10);
    }
    let own = |nd: &Nd| is_solicitation(nd) && nd.source == aero_address(prefix(1));
    let sent = messages(&link, since, own);
    assert!((9..=11).contains(&sent.len()), "{} in 10 s", sent.len());
    assert!(sent.windows(2).all(|w| w[1].0.at - w[0].0.at >= SECOND));
    link.run(SECOND * 2);
    let since = link.sent.len();
    link.run(SECOND * 20);
    assert!(messages(&link, since, is_solicitation).is_empty());
    assert!(lost(&mut link, 21).is_empty());
}

#[test]
fn three_solicitations_without_an_answer_and_packets_go_by_the_server_again() {
    let _row = aero_elements::covers(&["K4"]);
    let mut link = mutual();
    let straight = |s: &Sent| {
        [s.from, s.to].contains(&node_address(21)) && [s.from, s.to].contains(&node_address(22))
    };
    link.lose = Box::new(move |_, s| straight(s));
    let (since, cut) = (link.sent.len(), link.now);
    let mut fell_back = None;
    for _ in 0..500 {
        let hops = talk(&mut link, 21, 1, 2);
        if fell_back.is_none() && hops == by_server(22) {
            fell_back = Some(link.now);
        }
        if fell_back.is_some() {
            assert_eq!(hops, by_server(22), "and stays there while the path is cut");
        }
        link.run(SECOND / 100);
    }
    let own = |nd: &Nd| is_solicitation(nd) && nd.source == aero_address(prefix(1));
    let sent = messages(&link, since, own);
    let after = fell_back.unwrap() - cut;
    assert!(after <= SECOND * 3 + SECOND / 50, "{after:?}");
    assert!(sent[..3].windows(2).all(|w| w[1].0.at - w[0].0.at == SECOND));
    assert_eq!(lost(&mut link, 21), [PathLost::Unreachable]);
    // The cut is lifted: the path comes back by itself.
    link.lose = Box::new(|_, _| false);
    for _ in 0..150 {
        talk(&mut link, 21, 1, 2).unwrap();
        link.run(SECOND / 10);
    }
    assert_eq!(talk(&mut link, 21, 1, 2), direct(22));
}

#[test]
fn an_advertisement_by_the_server_counts_as_much_as_a_direct_one() {
    let _row = aero_elements::covers(&["K4"]);
    let mut link = one_way();
    for _ in 0..100 {
        assert_eq!(talk(&mut link, 21, 1, 2), direct(22));
        link.run(SECOND);
    }
    let straight = |nd: &Nd| {
        matches!(nd.message, NdMessage::Advertisement { .. })
            && nd.source == aero_address(prefix(2))
    };
    let all = messages(&link, 0, straight);
    assert!(all.iter().all(|(s, _)| s.from != node_address(22) || s.to == server_address(11)));
}

#[test]
fn the_loss_of_any_one_message_only_delays_a_path() {
    let exchange = {
        let mut link = pair();
        let since = link.sent.len();
        talk(&mut link, 21, 1, 2).unwrap();
        link.run(SECOND / 10);
        link.sent.len() - since
    };
    assert!(exchange >= 7, "{exchange} messages");
    for n in 0..exchange {
        let mut link = pair();
        let since = link.sent.len();
        link.lose = Box::new(move |m, _| m == since + n);
        for _ in 0..50 {
            assert!(talk(&mut link, 21, 1, 2).is_ok(), "no packet is lost (message {n} was)");
            link.run(SECOND / 10);
        }
        assert_eq!(talk(&mut link, 21, 1, 2), direct(22), "message {n} was lost");
    }
}

/// A Redirect of Client 2 for the Predirect that Client 1 has just sent.
fn redirect(link: &Link, since: usize) -> Nd {
    let (_, predirect) = messages(link, since, is_predirect).remove(0);
    Nd {
        source: aero_address(prefix(2)),
        destination: aero_address(prefix(1)),
        message: NdMessage::Redirect {
            predirect: false,
            target: aero_address(prefix(2)),
            destination: host(2),
            prefix_length: 64,
        },
        options: vec![
            NdOption::TargetLinkLayer(LinkLayerOption {
                link_id: 0,
                preference: 255,
                address: Some(l2("192.0.2.66:8061")),
            }),
            NdOption::Nonce(predirect.nonce().unwrap().to_vec()),
        ],
    }
}

#[test]
fn a_forged_redirect_changes_nothing() {
    let _row = aero_elements::covers(&["K3c"]);
    let mut link = pair();
    link.lose = Box::new(|_, s| s.name() == "icmpv6 137");
    let since = link.sent.len();
    talk(&mut link, 21, 1, 2).unwrap();
    let good = redirect(&link, since);
    let (node, server) = (node_address(21), server_address(11));
    let perfect = good.emit().unwrap();
    inject(&mut link, node, l2("192.0.2.66:8060"), &perfect);
    inject(&mut link, node, l2("192.0.2.11:8061"), &perfect);
    assert!(states(&mut link, 21).is_empty(), "from an address that is not a Server's");
    let mut forged = Vec::new();
    let mut wrong_nonce = good.clone();
    wrong_nonce.options[1] = NdOption::Nonce(vec![0; 6]);
    forged.push((wrong_nonce, Ignored::WrongNonce));
    let mut no_nonce = good.clone();
    no_nonce.options.truncate(1);
    forged.push((no_nonce, Ignored::WrongNonce));
    let mut no_address = good.clone();
    no_address.options.remove(0);
    forged.push((no_address, Ignored::NoLinkLayer));
    let redirect = |target: u16, destination: u16, prefix_length: u8| NdMessage::Redirect {
        predirect: false,
        target: aero_address(prefix(target)),
        destination: host(destination),
        prefix_length,
    };
    for (message, why) in [
        (redirect(2, 3, 64), Ignored::NotAsked),
        (redirect(3, 2, 64), Ignored::BadPrefix),
        (redirect(2, 2, 16), Ignored::BadPrefix),
        (redirect(2, 2, 62), Ignored::BadPrefix),
    ] {
        let mut nd = good.clone();
        if let NdMessage::Redirect { target, .. } = message {
            nd.source = target;
        }
        nd.message = message;
        forged.push((nd, why));
    }
    for (nd, why) in forged {
        inject(&mut link, node, server, &nd.emit().unwrap());
        assert_eq!(ignored(&mut link, 21).last(), Some(&why), "{nd:?}");
        assert!(states(&mut link, 21).is_empty(), "{nd:?}");
    }
    assert_eq!(talk(&mut link, 21, 1, 2), by_server(22));
    inject(&mut link, node, server, &perfect);
    assert_eq!(states(&mut link, 21), [State::Probing], "the good one is taken");
    inject(&mut link, node, server, &perfect);
    assert_eq!(ignored(&mut link, 21).last(), Some(&Ignored::WrongNonce), "and taken once");
}

#[test]
fn a_predirect_from_anybody_but_a_server_changes_nothing() {
    let _row = aero_elements::covers(&["K2b"]);
    let mut link = pair();
    let since = link.sent.len();
    link.lose = Box::new(|_, s| s.name() == "icmpv6 137");
    talk(&mut link, 21, 1, 2).unwrap();
    let (_, mut nd) = messages(&link, since, is_predirect).remove(0);
    nd.options[0] = NdOption::TargetLinkLayer(LinkLayerOption {
        link_id: 0,
        preference: 255,
        address: Some(node_address(21)),
    });
    let bytes = nd.emit().unwrap();
    let before = link.sent.len();
    inject(&mut link, node_address(22), node_address(21), &bytes);
    assert_eq!(link.sent.len(), before);
    assert!(states(&mut link, 22).is_empty());
    inject(&mut link, node_address(22), server_address(11), &bytes);
    assert_eq!(states(&mut link, 22), [State::Accepting]);
    let (sent, answer) = messages(&link, before, is_redirect).remove(0);
    assert_eq!(sent.to, server_address(11));
    assert_eq!(answer.nonce(), nd.nonce());
    let NdMessage::Redirect { destination, .. } = answer.message else { panic!() };
    assert_eq!(destination, host(2), "the destination of the packet that set it off");
    let mut foreign = nd.clone();
    foreign.message = NdMessage::Redirect {
        predirect: true,
        target: aero_address(prefix(1)),
        destination: host(3),
        prefix_length: 64,
    };
    inject(&mut link, node_address(22), server_address(11), &foreign.emit().unwrap());
    assert_eq!(ignored(&mut link, 22), [Ignored::BadPrefix]);
}

#[test]
fn an_unwilling_target_or_server_leaves_traffic_on_the_server_path() {
    let _row = aero_elements::covers(&["K2c"]);
    let mut link = pair();
    link.server(server_address(11)).engine.set_optimize(false);
    for _ in 0..30 {
        assert_eq!(talk(&mut link, 21, 1, 2), by_server(22));
        link.run(SECOND / 10);
    }
    assert!(messages(&link, 0, is_redirect).is_empty());
    let refused = |(_, n): &(_, u64)| *n > 0;
    let all: Vec<_> =
        link.server(server_address(11)).engine.not_passed().filter(refused).map(|n| n.0).collect();
    assert_eq!(all, [aero_protocol::server::NotPassed::Policy]);
    link.server(server_address(11)).engine.set_optimize(true);
    link.node(node_address(22)).engine.set_optimize(false);
    for _ in 0..100 {
        assert_eq!(talk(&mut link, 21, 1, 2), by_server(22));
        link.run(SECOND / 10);
    }
    assert!(messages(&link, 0, is_redirect).is_empty());
    assert!(ignored(&mut link, 22).contains(&Ignored::Unwilling));
}

#[test]
fn a_solicitation_is_answered_only_to_a_neighbour_at_its_place() {
    let mut link = one_way();
    let since = link.sent.len();
    let solicitation = |source: Ipv6Addr| Nd {
        source,
        destination: aero_address(prefix(2)),
        message: NdMessage::Solicitation { target: aero_address(prefix(2)) },
        options: vec![NdOption::Nonce(vec![9; 6])],
    };
    let known = solicitation(aero_address(prefix(1))).emit().unwrap();
    let unknown = solicitation(aero_address(prefix(9))).emit().unwrap();
    inject(&mut link, node_address(22), l2("192.0.2.66:8061"), &known);
    inject(&mut link, node_address(22), node_address(21), &unknown);
    assert_eq!(link.sent.len(), since);
    inject(&mut link, node_address(22), node_address(21), &known);
    let (sent, nd) = messages(&link, since, |_| true).remove(0);
    assert_eq!(sent.to, server_address(11), "by the Server: no path of its own");
    assert_eq!(nd.nonce(), Some(&[9; 6][..]));
}

#[test]
fn a_thousand_destinations_and_a_flood_of_predirects_stay_within_bounds() {
    let mut link = pair();
    let now = link.now;
    let node = link.node(node_address(21));
    for n in 0..20_000u32 {
        let destination = format!("2001:db8:{:x}:{:x}::1", 16 + (n >> 12), n & 0xfff).parse();
        let inner = Inner { source: host(1), destination: destination.unwrap() };
        node.engine.data_packet_by_server(inner, &[], now);
    }
    let mut asked = 0;
    while let Some(output) = node.engine.poll_output() {
        asked += usize::from(matches!(output, aero_protocol::Output::Send { .. }));
    }
    assert_eq!(asked, aero_protocol::client::MAX_ATTEMPTS);
    // A Server that has gone mad: a Predirect of another Client in each message.
    let server = server_address(11);
    for n in 0..u32::try_from(aero_protocol::neighbor::MAX_NEIGHBORS).unwrap() + 500 {
        let peer: ipnet::IpNet =
            format!("2001:db8:{:x}:{:x}::/64", 16 + (n >> 12), n & 0xfff).parse().unwrap();
        let nd = Nd {
            source: aero_address(peer),
            destination: aero_address(prefix(1)),
            message: NdMessage::Redirect {
                predirect: true,
                target: aero_address(peer),
                destination: peer.addr(),
                prefix_length: 64,
            },
            options: vec![NdOption::TargetLinkLayer(LinkLayerOption {
                link_id: 0,
                preference: 255,
                address: Some(l2("192.0.2.66:8061")),
            })],
        };
        let node = link.node(node_address(21));
        node.engine.handle_packet(server, &nd.emit().unwrap(), now);
        while node.engine.poll_output().is_some() {}
    }
    let node = link.node(node_address(21));
    assert_eq!(node.engine.correspondents().count(), aero_protocol::neighbor::MAX_NEIGHBORS);
    link.run(SECOND * 45);
    let sizes = link.node(node_address(21)).engine.sizes();
    assert_eq!((sizes.neighbors, sizes.attempts), (0, 0), "and all is forgotten in time");
}
