//! Whose word counts: Servers, Relays, Proxies; not the underlay's, and not a stranger's.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use aero_elements::faults::{Level, held};
use aero_protocol::address::{LinkLayerAddress, aero_address};
use aero_protocol::client::{Ignored, PathLost};
use aero_protocol::neighbor::State;
use aero_protocol::wire::nd::{LinkLayerOption, Nd, NdMessage, NdOption};
use common::talk::{
    MILLI, SECOND, direct, ignored, inject, is_predirect, is_solicitation, is_unsolicited, lost,
    messages, mutual, one_way, pair, states, talk,
};
use common::{Link, host, l2, node_address, prefix, server_address};

/// What a Client says of a move: correspondent 2 may reach `n` at `address` from now on.
fn moved(n: u16, address: Option<LinkLayerAddress>) -> Vec<u8> {
    let target = aero_address(prefix(n));
    let message = NdMessage::Advertisement { solicited: false, override_cached: true, target };
    let link = LinkLayerOption { link_id: 0, preference: 255, address };
    let options = vec![NdOption::TargetLinkLayer(link)];
    Nd { source: target, destination: aero_address(prefix(2)), message, options }.emit().unwrap()
}

#[test]
fn a_forged_unreachable_costs_a_solicitation_and_real_ones_lead_back_to_the_server() {
    let _row = aero_elements::covers(&["W5"]);
    let mut link = mutual();
    let (here, there) = (node_address(21), node_address(22));
    link.run(SECOND * 2);
    let since = link.sent.len();
    // Forged: for a second, as many as there is time for, of every place that is known here.
    for _ in 0..1000 {
        let now = link.now;
        for at in [there, server_address(11), l2("192.0.2.99:8061"), l2("192.0.2.22:9")] {
            link.node(here).engine.underlay_error(at, now);
        }
        link.drain(here);
        link.run(MILLI);
    }
    let to_peer = |nd: &Nd| is_solicitation(nd) && nd.source == aero_address(prefix(1));
    let asked = messages(&link, since, to_peer);
    assert!((1..=2).contains(&asked.len()), "{} solicitations in a second", asked.len());
    assert!(asked.iter().all(|(s, _)| s.to == there));
    assert_eq!(talk(&mut link, 21, 1, 2), direct(22));
    assert_eq!((states(&mut link, 21), lost(&mut link, 21)), (vec![State::Direct], vec![]));
    assert_eq!(link.node(here).engine.default_server(), Some(server_address(11)));
    // Real: the correspondent's address is gone, and the underlay says so of every packet.
    link.lose = Box::new(move |_, s| s.to == there && s.from == here);
    link.run(SECOND * 2);
    let (since, began) = (link.sent.len(), link.now);
    while lost(&mut link, 21).is_empty() {
        let now = link.now;
        link.node(here).engine.underlay_error(there, now);
        link.drain(here);
        link.run(MILLI * 10);
        assert!(link.now < began + SECOND * 4, "it is never given up");
    }
    assert!(link.now - began <= SECOND * 3);
    assert_eq!(messages(&link, since, to_peer).len(), 3);
    assert_eq!(lost(&mut link, 21), [PathLost::Unreachable]);
    assert_eq!(talk(&mut link, 21, 1, 2), Ok(vec![server_address(11), there]), "by the Server");
}

#[test]
fn a_proxy_stays_where_it_is_and_may_write_addresses_and_a_client_may_not() {
    let _row = aero_elements::covers(&["N1"]);
    let server = server_address(11);
    let (a, b) = (node_address(21), node_address(22));
    let mut link = pair();
    link.add_node(23, &[server]);
    let b2 = node_address(23);
    // A hundred moves of a mobile node between two Proxies.
    for n in 1..=100u64 {
        let (from, to) = if n % 2 == 1 { (a, b2) } else { (b2, a) };
        link.map(1, n + 1, to);
        link.attach(to, 1, n + 1);
        link.run(SECOND / 20);
        link.detach(from, 1);
        link.run(SECOND / 20);
        let place = link.server(server).engine.neighbors().find(|e| e.prefix == prefix(1)).unwrap();
        assert_eq!(place.link_layer, to, "move {n}");
    }
    let outer: std::collections::BTreeSet<_> =
        link.sent.iter().map(|s| s.from).filter(|from| *from != server).collect();
    assert_eq!(outer, [a, b, b2].into(), "a Proxy never changes its own address");
    link.run(SECOND * 40);
    // It tells a correspondent where the node went: to a third Proxy that this Server has not
    // heard of.
    let elsewhere = l2("192.0.2.77:8061");
    let passed = |link: &mut Link, from, packet: &[u8]| {
        let since = link.sent.len();
        inject(link, server, from, packet);
        let all = messages(link, since, is_unsolicited);
        all.first().map(|(s, nd)| (s.to, nd.target_link_layers().next().unwrap().address))
    };
    let said = moved(1, Some(elsewhere));
    let instead = Some((b, Some(a)));
    assert_eq!(passed(&mut link, a, &said), instead, "an ordinary Client's word is replaced");
    link.server(server).engine.trust_proxy(a, true);
    assert_eq!(passed(&mut link, a, &said), Some((b, Some(elsewhere))));
    assert_eq!(passed(&mut link, a, &moved(1, None)), instead, "as for all others");
    // Only for its own nodes, and only while it is trusted.
    assert_eq!(passed(&mut link, a, &moved(3, Some(elsewhere))), None);
    link.server(server).engine.trust_proxy(a, false);
    assert_eq!(passed(&mut link, a, &said), instead);
}

/// A perfect Redirect or advertisement that would send Client 1's packets for Client 2 elsewhere.
fn lures(to: LinkLayerAddress, nonce: &[u8]) -> Vec<Vec<u8>> {
    let link = LinkLayerOption { link_id: 0, preference: 255, address: Some(to) };
    let (one, two) = (aero_address(prefix(1)), aero_address(prefix(2)));
    let IpAddr::V6(host) = host(2) else { panic!() };
    let message = |predirect, destination: Ipv6Addr| NdMessage::Redirect {
        predirect,
        target: two,
        destination: destination.into(),
        prefix_length: 64,
    };
    let options = vec![NdOption::TargetLinkLayer(link), NdOption::Nonce(nonce.to_vec())];
    let nd = |message| Nd { source: two, destination: one, message, options: options.clone() };
    let na = |solicited| NdMessage::Advertisement { solicited, override_cached: true, target: two };
    [message(false, host), message(true, host), na(false), na(true)]
        .map(|m| nd(m).emit().unwrap())
        .into()
}

#[test]
fn forged_redirects_and_advertisements_from_off_the_link_are_dropped() {
    let mut case = held(&["A5"], Level::Model);
    let (node, thief) = (node_address(21), l2("192.0.2.99:8061"));
    let mut forged = 0;
    for mut link in [pair(), one_way(), mutual()] {
        // The thief has even heard the nonces of the Predirects.
        let nonces: Vec<Vec<u8>> = messages(&link, 0, |nd| nd.nonce().is_some())
            .iter()
            .map(|(_, nd)| nd.nonce().unwrap().to_vec())
            .collect();
        let before = (talk(&mut link, 21, 1, 2), states(&mut link, 21));
        let mut nonces = nonces;
        nonces.push(vec![0; 6]);
        link.node(node).events.clear();
        let since = link.sent.len();
        for nonce in &nonces {
            for lure in lures(thief, nonce) {
                // From where it is, and from the right address with another port.
                for from in [thief, l2("192.0.2.11:8061"), l2("192.0.2.22:8060")] {
                    inject(&mut link, node, from, &lure);
                    forged += 1;
                }
            }
        }
        assert!(link.sent[since..].iter().all(|s| s.to != thief), "nothing goes to the thief");
        assert_eq!((talk(&mut link, 21, 1, 2), states(&mut link, 21)), before);
        assert!(link.node(node).engine.correspondents().all(|n| n.link_layer() != Some(thief)));
        assert!(ignored(&mut link, 21).iter().all(|why| *why == Ignored::NoEntry));
        link.run(Duration::from_secs(2));
        assert!(link.sent[since..].iter().all(|s| s.to != thief));
        // By the Server it goes nowhere either: the thief is no Client of it.
        for lure in lures(thief, &[0; 6]) {
            let since = link.sent.len();
            inject(&mut link, server_address(11), thief, &lure);
            assert_eq!(link.sent.len(), since);
        }
    }
    // They are perfect but for where they come from: from the Server, one does send a solicitation
    // to the place that it names.
    let mut link = pair();
    link.lose = Box::new(|_, s| s.name() == "icmpv6 137");
    talk(&mut link, 21, 1, 2).unwrap();
    let asked = messages(&link, 0, is_predirect);
    let nonce = asked[0].1.nonce().unwrap();
    let since = link.sent.len();
    inject(&mut link, node, server_address(11), &lures(thief, nonce)[0]);
    assert!(link.sent[since..].iter().any(|s| s.to == thief));
    case.figure(format!("{forged} forged messages, nonces known: no packet went to the forger"));
}
