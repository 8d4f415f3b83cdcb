//! Neighbor Discovery that breaks a rule of RFC 4861 sections 7.1 and 8.1, and Clients with
//! prefixes shorter than /64.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::net::{IpAddr, Ipv6Addr};

use aero_protocol::address::{Epoch, aero_address};
use aero_protocol::client::ClientSpec;
use aero_protocol::server::{Holder, Mapping};
use aero_protocol::wire::aero_options::Claim;
use aero_protocol::wire::ip;
use aero_protocol::wire::nd::{LinkLayerOption, Nd, NdMessage, NdOption};
use common::talk::{SECOND, inject, messages, mutual, pair, talk_to};
use common::{Link, duid, holder_id, host, node_address, prefix, server_address};
use ipnet::IpNet;

/// The packet with another source, and with bytes of the ICMPv6 message changed; the checksum is
/// right again.
fn changed(packet: &[u8], source: Ipv6Addr, bytes: &[(usize, u8)]) -> Vec<u8> {
    let mut packet = packet.to_vec();
    for (at, value) in bytes {
        packet[*at] = *value;
    }
    let destination = Ipv6Addr::from(<[u8; 16]>::try_from(&packet[24..40]).unwrap());
    let head = packet[44..48].try_into().unwrap();
    ip::icmpv6(source, destination, (packet[40], packet[41], head), &packet[48..]).unwrap()
}

#[test]
fn a_message_that_breaks_a_rule_is_dropped_in_silence_by_client_and_server() {
    let _row = aero_elements::covers(&["J3"]);
    let own = aero_address(prefix(2));
    let peer = aero_address(prefix(1));
    let link_option = NdOption::TargetLinkLayer(LinkLayerOption {
        link_id: 0,
        preference: 255,
        address: Some(node_address(21)),
    });
    let redirect = |predirect| Nd {
        source: peer,
        destination: own,
        message: NdMessage::Redirect {
            predirect,
            target: peer,
            destination: host(1),
            prefix_length: 64,
        },
        options: vec![link_option.clone(), NdOption::Nonce(vec![1; 6])],
    };
    let solicitation = Nd {
        source: peer,
        destination: own,
        message: NdMessage::Solicitation { target: own },
        options: vec![NdOption::Nonce(vec![1; 6])],
    };
    let advertisement = Nd {
        source: peer,
        destination: own,
        message: NdMessage::Advertisement { solicited: false, override_cached: true, target: peer },
        options: vec![link_option.clone()],
    };
    let global: Ipv6Addr = "2001:db8:0:1::1".parse().unwrap();
    for (nd, name) in [
        (redirect(true), "Predirect"),
        (redirect(false), "Redirect"),
        (solicitation, "solicitation"),
        (advertisement, "advertisement"),
    ] {
        let good = nd.emit().unwrap();
        let is_redirect = good[40] == 137;
        let first_option = if is_redirect { 80 } else { 64 };
        let mut hop_limit = good.clone();
        hop_limit[7] = 254;
        let mut checksum = good.clone();
        checksum[42] ^= 1;
        let mut cases = vec![
            (hop_limit, "hop limit 254"),
            (checksum, "bad checksum"),
            (changed(&good, peer, &[(first_option + 1, 0)]), "option of length 0"),
            (changed(&good, global, &[]), "global source"),
            (changed(&good, peer, &[(41, 2)]), "code 2"),
            (changed(&good, peer, &[(48, 0xff)]), "multicast target"),
        ];
        if is_redirect {
            cases.push((changed(&good, peer, &[(64, 0xff)]), "multicast destination"));
        }
        for (bad, what) in cases {
            // At the target, as if its Server had passed it on, and straight from the neighbour;
            // at the first Server, from the Client.
            for (to, from) in [
                (node_address(22), server_address(11)),
                (node_address(22), node_address(21)),
                (server_address(11), node_address(21)),
            ] {
                let mut link = mutual();
                let entries = |link: &mut Link| {
                    let node = &link.node(node_address(22)).engine;
                    node.correspondents().cloned().collect::<Vec<_>>()
                };
                let (sent, before) = (link.sent.len(), entries(&mut link));
                inject(&mut link, to, from, &bad);
                assert_eq!(link.sent.len(), sent, "{name} with {what} to {to} from {from}");
                assert_eq!(entries(&mut link), before, "{name} with {what} to {to} from {from}");
            }
        }
    }
    // The same without a fault is acted upon, so it is the fault that silences it.
    let mut link = mutual();
    let sent = link.sent.len();
    let predirect = redirect(true).emit().unwrap();
    inject(&mut link, node_address(22), server_address(11), &predirect);
    assert!(link.sent.len() > sent);
}

/// Client 7, on node 22, has a /56.
fn with_short_prefix() -> (Link, IpNet) {
    let mut link = pair();
    let acp: IpNet = "2001:db8:1000:2000::/56".parse().unwrap();
    let node = node_address(22);
    let mapping = Mapping {
        prefix: acp,
        client: duid(7),
        epoch: Epoch(1),
        holder: Some(Holder {
            id: holder_id(7, 1),
            name: "pod router-0".into(),
            underlay: vec![node.ip],
        }),
    };
    let now = link.now;
    link.server(server_address(11)).engine.set_mapping(mapping, now);
    let claim = Some(Claim { epoch: Epoch(1), holder: holder_id(7, 1) });
    let spec = ClientSpec { client: duid(7), claim, prefixes: vec![acp] };
    link.node(node).engine.attach(spec, now);
    link.drain(node);
    link.run(SECOND);
    (link, acp)
}

#[test]
fn a_client_with_a_56_answers_from_its_base_whichever_of_its_addresses_is_asked_for() {
    let (mut link, acp) = with_short_prefix();
    let inside: Ipv6Addr = "fe80::2001:db8:1000:2001".parse().unwrap();
    let nd = Nd {
        source: aero_address(prefix(1)),
        destination: inside,
        message: NdMessage::Solicitation { target: inside },
        options: vec![NdOption::Nonce(vec![1; 6])],
    };
    let since = link.sent.len();
    inject(&mut link, server_address(11), node_address(21), &nd.emit().unwrap());
    link.run(SECOND / 10);
    let answer = |nd: &Nd| {
        matches!(nd.message, NdMessage::Advertisement { .. })
            && nd.destination == aero_address(prefix(1))
            && nd.source != "fe80::192.0.2.11".parse::<Ipv6Addr>().unwrap()
    };
    let answers = messages(&link, since, answer);
    assert_eq!(answers.len(), 2, "to the Server, and on from there");
    for (_, nd) in answers {
        assert_eq!(nd.source, aero_address(acp));
        assert_eq!(nd.source.to_string(), "fe80::2001:db8:1000:2000");
    }
}

#[test]
fn a_path_to_one_network_of_a_56_is_a_path_to_all_of_them() {
    let (mut link, _) = with_short_prefix();
    let at = |s: &str| -> IpAddr { s.parse().unwrap() };
    let node = node_address(21);
    let first = talk_to(&mut link, node, host(1), at("2001:db8:1000:2001::5")).unwrap();
    assert_eq!(first, [server_address(11), node_address(22)]);
    link.run(SECOND / 10);
    for there in ["2001:db8:1000:2001::5", "2001:db8:1000:2000::1", "2001:db8:1000:20ff::1"] {
        assert_eq!(talk_to(&mut link, node, host(1), at(there)).unwrap(), [node_address(22)]);
    }
    // And back: the sources of all its networks are accepted straight.
    let back = talk_to(&mut link, node_address(22), at("2001:db8:1000:20fe::1"), host(1)).unwrap();
    assert_eq!(back, [server_address(11), node]);
    link.run(SECOND / 10);
    let back = talk_to(&mut link, node_address(22), at("2001:db8:1000:2001::1"), host(1)).unwrap();
    assert_eq!(back, [node]);
}
