//! What a Server does with the messages of Clients to each other: checks, fills in, passes on.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::net::Ipv6Addr;
use std::time::Duration;

use aero_protocol::address::{LinkLayerAddress, aero_address};
use aero_protocol::client::{self, Node};
use aero_protocol::forwarding::Table;
use aero_protocol::server::NotPassed;
use aero_protocol::wire::nd::{LinkLayerOption, Nd, NdMessage, NdOption};
use common::talk::{SECOND, inject, messages};
use common::{Link, NodeBox, Role, host, l2, node_address, prefix, server_address};

/// The Client of the golden bytes, at 192.0.2.1:8060 with Link ID 1, and Client 2 on node 22.
fn golden() -> (Link, LinkLayerAddress) {
    let mut link = Link::new();
    let server = link.add_server(11);
    link.add_node(22, &[server]);
    let at = l2("192.0.2.1:8060");
    let mut engine = Node::new(client::Config {
        asps: vec!["2001:db8::/32".parse().unwrap()],
        link_id: 1,
        node: "golden".into(),
        seed: 1,
        optimize: true,
    });
    engine.add_server(server, link.now);
    let role = NodeBox { engine, table: Table::default(), events: Vec::new() };
    link.roles.insert(at, Role::Node(role));
    link.map(1, 1, at);
    link.map(2, 1, node_address(22));
    link.attach(at, 1, 1);
    link.attach(node_address(22), 2, 1);
    link.run(SECOND);
    (link, at)
}

/// Of an echo request of 2001:db8:0:1::1 to 2001:db8:0:2::1.
fn predirect() -> Nd {
    let mut trigger = vec![0x60, 0, 0, 0, 0, 8, 58, 63];
    for address in ["2001:db8:0:1::1", "2001:db8:0:2::1"] {
        trigger.extend(address.parse::<Ipv6Addr>().unwrap().octets());
    }
    Nd {
        source: aero_address(prefix(1)),
        destination: aero_address(prefix(2)),
        message: NdMessage::Redirect {
            predirect: true,
            target: aero_address(prefix(1)),
            destination: host(1),
            prefix_length: 64,
        },
        options: vec![
            NdOption::TargetLinkLayer(LinkLayerOption {
                link_id: 1,
                preference: 255,
                address: None,
            }),
            NdOption::Timestamp(Duration::from_secs(0x5472_7500)),
            NdOption::Nonce(vec![1, 2, 3, 4, 5, 6]),
            NdOption::RedirectedHeader(trigger),
        ],
    }
}

/// Counts of messages that were not passed on.
fn refused(link: &mut Link) -> Vec<(NotPassed, u64)> {
    let server = &link.server(server_address(11)).engine;
    server.not_passed().filter(|(_, n)| *n > 0).collect()
}

#[test]
fn the_first_server_fills_in_the_link_layer_address_and_the_checksum_and_nothing_else() {
    let _row = aero_elements::covers(&["K2"]);
    let (mut link, at) = golden();
    let sent = predirect().emit().unwrap();
    assert_eq!(sent[40..48], [0x89, 1, 0xd8, 0x45, 0, 0, 0, 0x40]);
    let before = link.sent.len();
    inject(&mut link, server_address(11), at, &sent);
    let passed = &link.sent[before];
    assert_eq!((passed.from, passed.to), (server_address(11), node_address(22)));
    let mut want = sent.clone();
    want[42..44].copy_from_slice(&[0xf6, 0xc7]);
    let filled =
        [2, 3, 0, 0, 1, 255, 0x1f, 0x7c, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xc0, 0, 2, 1];
    want[80..104].copy_from_slice(&filled);
    assert_eq!(passed.packet, want, "hop limit 255 and all else as it came");
}

#[test]
fn a_predirect_that_its_sender_has_no_right_to_leaves_no_server() {
    let _row = aero_elements::covers(&["K2 neg"]);
    let (mut link, at) = golden();
    let server = server_address(11);
    let mut cases: Vec<(Nd, LinkLayerAddress, NotPassed)> = Vec::new();
    let good = predirect;
    let redirect = |target: u16, destination: u16, prefix_length: u8| NdMessage::Redirect {
        predirect: true,
        target: aero_address(prefix(target)),
        destination: host(destination),
        prefix_length,
    };
    cases.push((
        Nd { source: aero_address(prefix(2)), message: redirect(2, 2, 64), ..good() },
        at,
        NotPassed::NotOwner,
    ));
    cases.push((Nd { message: redirect(2, 1, 64), ..good() }, at, NotPassed::NotOwner));
    cases.push((Nd { message: redirect(1, 1, 48), ..good() }, at, NotPassed::ForeignPrefix));
    cases.push((Nd { message: redirect(1, 2, 64), ..good() }, at, NotPassed::ForeignPrefix));
    cases.push((good(), l2("192.0.2.1:8061"), NotPassed::NotOwner));
    cases.push((good(), node_address(22), NotPassed::NotOwner));
    let with_link = |link_id| {
        let mut nd = good();
        let option = LinkLayerOption { link_id, preference: 255, address: None };
        nd.options.push(NdOption::TargetLinkLayer(option));
        nd
    };
    cases.push((with_link(2), at, NotPassed::UnknownLink));
    let mut no_link = good();
    no_link.options.remove(0);
    cases.push((no_link, at, NotPassed::NoLinkLayer));
    let nobody = Nd { destination: aero_address(prefix(9)), ..good() };
    cases.push((nobody, at, NotPassed::NoRoute));
    let to_itself = Nd { destination: aero_address(prefix(1)), ..good() };
    cases.push((to_itself, at, NotPassed::WouldReturn));
    let router = Nd {
        message: NdMessage::RouterAdvertisement { lifetime: 9 },
        options: Vec::new(),
        ..good()
    };
    cases.push((router, at, NotPassed::NotForClients));
    for (n, (nd, from, why)) in cases.iter().enumerate() {
        let (before, counts) = (link.sent.len(), refused(&mut link));
        inject(&mut link, server, *from, &nd.emit().unwrap());
        assert_eq!(link.sent.len(), before, "case {n} was passed on");
        let count =
            |all: &[(NotPassed, u64)]| all.iter().find(|(w, _)| w == why).map_or(0, |(_, n)| *n);
        let after = refused(&mut link);
        assert_eq!(count(&after), count(&counts) + 1, "case {n} counts as {why:?}: {after:?}");
    }
    // Rules of RFC 4861 section 8.1: code and hop limit.
    let before = link.sent.len();
    for (byte, value) in [(41, 2), (7, 64)] {
        let mut bytes = good().emit().unwrap();
        bytes[byte] = value;
        inject(&mut link, server, at, &bytes);
    }
    assert_eq!(link.sent.len(), before);
    inject(&mut link, server, at, &good().emit().unwrap());
    assert_eq!(link.sent.len(), before + 1, "the good one is passed on");
}

#[test]
fn an_address_that_a_client_writes_itself_is_overwritten() {
    let (mut link, at) = golden();
    let mut nd = predirect();
    nd.options[0] = NdOption::TargetLinkLayer(LinkLayerOption {
        link_id: 1,
        preference: 7,
        address: Some(l2("192.0.2.66:53")),
    });
    let before = link.sent.len();
    inject(&mut link, server_address(11), at, &nd.emit().unwrap());
    let (_, passed) = messages(&link, before, |_| true).remove(0);
    let option = passed.target_link_layers().next().unwrap();
    assert_eq!((option.address, option.preference), (Some(at), 7));
}

#[test]
fn solicitations_and_their_answers_between_clients_travel_by_the_server_untouched() {
    let (mut link, at) = golden();
    let server = server_address(11);
    let solicitation = Nd {
        source: aero_address(prefix(1)),
        destination: aero_address(prefix(2)),
        message: NdMessage::Solicitation { target: aero_address(prefix(2)) },
        options: vec![NdOption::Nonce(vec![3; 6])],
    };
    let bytes = solicitation.emit().unwrap();
    let before = link.sent.len();
    inject(&mut link, server, at, &bytes);
    link.run(SECOND / 100);
    let way: Vec<_> = link.sent[before..].iter().map(|s| (s.from, s.to)).collect();
    let two = node_address(22);
    assert_eq!(way[..3], [(server, two), (two, server), (server, at)]);
    assert_eq!(link.sent[before].packet, bytes);
    assert_eq!(link.sent[before + 1].packet, link.sent[before + 2].packet);
    assert_eq!(link.sent[before].packet[7], 255);
}

#[test]
fn one_client_cannot_keep_others_from_being_heard_by_sending_without_end() {
    let (mut link, at) = golden();
    let before = link.sent.len();
    let bytes = predirect().emit().unwrap();
    let now = link.now;
    let server = link.server(server_address(11));
    for _ in 0..5000 {
        server.engine.handle_packet(at, &bytes, now);
    }
    link.drain(server_address(11));
    let passed = link.sent.len() - before;
    assert!((100..1000).contains(&passed), "{passed} of 5000 at once");
    assert_eq!(refused(&mut link)[0].0, NotPassed::RateLimited);
    let of_2 = Nd {
        source: aero_address(prefix(2)),
        destination: aero_address(prefix(1)),
        message: NdMessage::Solicitation { target: aero_address(prefix(1)) },
        options: Vec::new(),
    };
    let before = link.sent.len();
    inject(&mut link, server_address(11), node_address(22), &of_2.emit().unwrap());
    assert_eq!(link.sent.len(), before + 1, "another Client is");
    link.run(SECOND);
    let before = link.sent.len();
    inject(&mut link, server_address(11), at, &bytes);
    assert!(link.sent.len() > before, "and the first one again later");
}
