//! A Proxy speaks for many Clients (draft -48 section 3.19): their addresses, their leases, what
//! they say to each other and to others.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeSet;
use std::net::Ipv6Addr;

use aero_protocol::address::{BOOTSTRAP_ADDRESS, Epoch, aero_address};
use aero_protocol::client::ClientSpec;
use aero_protocol::forwarding::{Disposition, Drop, Inner, NextHop};
use aero_protocol::server::{Holder, Mapping};
use aero_protocol::wire::aero_options::Claim;
use aero_protocol::wire::dhcpv6::Kind;
use aero_protocol::wire::ip::{Packet, Payload};
use aero_protocol::wire::nd::{Nd, NdMessage, NdOption};
use common::talk::{SECOND, inject, is_redirect, messages, pair, talk};
use common::{Link, Sent, duid, holder_id, host, node_address, prefix, server_address};
use ipnet::IpNet;

/// Gives a Client a prefix that is not by its number, at node 22.
fn with_prefix(link: &mut Link, n: u16, acp: IpNet) {
    let at = node_address(22);
    let holder = Holder { id: holder_id(n, 1), name: format!("router-{n}"), underlay: vec![at.ip] };
    let mapping = Mapping { prefix: acp, client: duid(n), epoch: Epoch(1), holder: Some(holder) };
    let now = link.now;
    for server in link.servers() {
        link.server(server).engine.set_mapping(mapping.clone(), now);
        link.drain(server);
    }
    let claim = Some(Claim { epoch: Epoch(1), holder: holder_id(n, 1) });
    let spec = ClientSpec { client: duid(n), claim, prefixes: vec![acp] };
    link.node(at).engine.attach(spec, now);
    link.drain(at);
    link.run(SECOND);
}

/// What a node at `from` asks of `target` by its Server, and who answered.
fn answer(link: &mut Link, target: Ipv6Addr) -> Option<Ipv6Addr> {
    let nonce = vec![7, 7, 7, 7, 7, 7];
    let ns = Nd {
        source: aero_address(prefix(1)),
        destination: target,
        message: NdMessage::Solicitation { target },
        options: vec![NdOption::Nonce(nonce.clone())],
    };
    let since = link.sent.len();
    inject(link, server_address(11), node_address(21), &ns.emit().unwrap());
    link.run(SECOND / 10);
    let answers = messages(link, since, |nd| nd.nonce() == Some(&nonce));
    let back = answers.iter().find(|(s, nd)| {
        s.to == node_address(21) && matches!(nd.message, NdMessage::Advertisement { .. })
    });
    back.map(|(_, nd)| nd.source)
}

fn source_of(sent: &Sent) -> Ipv6Addr {
    Packet::parse(&sent.packet).unwrap().source
}

#[test]
fn every_client_speaks_from_the_address_of_its_own_prefix_and_answers_from_its_base() {
    let _row = aero_elements::covers(&["F4"]);
    let mut link = Link::new();
    let server = link.add_server(11);
    for n in [21, 22] {
        link.add_node(n, &[server]);
    }
    for n in 1..=6 {
        let node = node_address(if n == 1 { 21 } else { 22 });
        link.map(n, 1, node);
        link.attach(node, n, 1);
    }
    link.run(SECOND);
    for n in 1..=6 {
        let own: Ipv6Addr = format!("fe80::2001:db8:0:{n}").parse().unwrap();
        assert_eq!(aero_address(prefix(n)), own);
        if n > 1 {
            assert_eq!(answer(&mut link, own), Some(own));
        }
    }
    let (v6, v4): (IpNet, IpNet) =
        ("2001:db8:1000:2000::/56".parse().unwrap(), "192.0.2.32/28".parse().unwrap());
    with_prefix(&mut link, 7, v6);
    with_prefix(&mut link, 8, v4);
    let at = |text: &str| -> Ipv6Addr { text.parse().unwrap() };
    let base = Some(at("fe80::2001:db8:1000:2000"));
    for asked in ["fe80::2001:db8:1000:2000", "fe80::2001:db8:1000:2001"] {
        assert_eq!(answer(&mut link, at(asked)), base);
    }
    let base = Some(at("fe80::ffff:c000:220"));
    for asked in ["fe80::ffff:c000:220", "fe80::ffff:192.0.2.47"] {
        assert_eq!(answer(&mut link, at(asked)), base);
    }
    for outside in ["fe80::2001:db8:1000:2100", "fe80::ffff:192.0.2.48"] {
        assert_eq!(answer(&mut link, at(outside)), None);
    }
    // Until each has a lease it asks from the bootstrap address; then it renews from its own.
    let renewed = link.sent.len();
    let all = |kind: Kind, from: usize, to: usize| -> BTreeSet<Ipv6Addr> {
        let dhcp = |s: &&Sent| s.name() == format!("{kind:?}");
        link.sent[from..to].iter().filter(dhcp).map(source_of).collect()
    };
    assert_eq!(all(Kind::Solicit, 0, renewed), BTreeSet::from([BOOTSTRAP_ADDRESS]));
    link.run(SECOND * 25);
    let end = link.sent.len();
    let sources: BTreeSet<Ipv6Addr> =
        link.sent[renewed..end].iter().filter(|s| s.name() == "Renew").map(source_of).collect();
    let own = (1..=6).map(prefix).chain([v6, v4]).map(aero_address).collect();
    assert_eq!(sources, own);
}

#[test]
fn a_hundred_clients_of_one_proxy_have_their_own_addresses_and_need_no_server_among_them() {
    let _row = aero_elements::covers(&["N5"]);
    let mut link = pair();
    let all = 100..200_u16;
    for n in all.clone() {
        link.map(n, 1, node_address(22));
        link.attach(node_address(22), n, 1);
    }
    link.run(SECOND);
    // One delegation each, under the Client's own DUID.
    let mut duids = BTreeSet::new();
    for sent in link.sent.iter().filter(|s| s.name() == "Reply" && s.to == node_address(22)) {
        let packet = Packet::parse(&sent.packet).unwrap();
        let Payload::Udp { data, .. } = packet.payload else { panic!() };
        let reply = aero_protocol::wire::dhcpv6::Message::parse(data).unwrap();
        assert_eq!(reply.ia_pd.len(), 1);
        duids.insert(reply.client.unwrap());
    }
    assert!(all.clone().all(|n| duids.contains(&duid(n))));
    for n in all.clone() {
        let own = aero_address(prefix(n));
        assert_eq!(answer(&mut link, own), Some(own));
    }
    let table = link.node(node_address(22)).table.clone();
    for n in all.clone() {
        let inner = Inner { source: host(n), destination: host(100 + (n + 1) % 100) };
        // The node's own routes lead from one to the other; the tunnel would not take it.
        assert_eq!(table.route(prefix(n)).map(|r| r.to), Some(NextHop::Local));
        assert_eq!(table.egress(inner, link.now), Disposition::Drop(Drop::NoRoute));
    }
    // They share no bytes and no path with each other: each is reached at its own prefix.
    for n in all {
        assert!(talk(&mut link, 21, 1, n).unwrap().ends_with(&[node_address(22)]));
    }
}

#[test]
fn clients_behind_one_proxy_are_found_at_one_place_under_their_own_addresses() {
    let _row = aero_elements::covers(&["O4"]);
    let mut link = pair();
    let since = link.sent.len();
    for n in [2, 3] {
        talk(&mut link, 21, 1, n).unwrap();
    }
    link.run(SECOND / 10);
    let redirects: Vec<_> = messages(&link, since, is_redirect)
        .into_iter()
        .filter(|(s, _)| s.to == node_address(21))
        .map(|(_, nd)| {
            let at: Vec<_> = nd.target_link_layers().filter_map(|o| o.address).collect();
            (nd.source, at)
        })
        .collect();
    let there = vec![node_address(22)];
    let want = [2, 3].map(|n| (aero_address(prefix(n)), there.clone()));
    assert_eq!(redirects, want, "one address and port, two targets");
    // A node that holds no lease of an ACP does not answer for it, whoever asks it to.
    let other = node_address(23);
    let server = server_address(11);
    link.add_node(23, &[server]);
    link.run(SECOND);
    let predirect = messages(&link, since, |nd| {
        matches!(nd.message, NdMessage::Redirect { predirect: true, .. })
    })
    .pop()
    .unwrap()
    .0;
    let since = link.sent.len();
    inject(&mut link, other, server, &predirect.packet);
    assert_eq!(link.sent.len(), since);
    let mut forged = messages(&link, 0, is_redirect).pop().unwrap().0;
    forged.from = other;
    inject(&mut link, server, other, &forged.packet);
    assert_eq!(link.sent.len(), since, "nor does a Server pass on what it might say");
}
