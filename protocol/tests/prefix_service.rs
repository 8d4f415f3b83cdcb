//! The prefix service and registration, element by element: leases, where packets go, who is
//! refused. Each test claims its rows of the table of elements.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use aero_protocol::Output;
use aero_protocol::address::{
    ALL_DHCP_SERVERS, BOOTSTRAP_ADDRESS, LinkLayerAddress, SERVER_ANYCAST, ServerId, aero_address,
};
use aero_protocol::forwarding::{Disposition, Drop, Inner};
use aero_protocol::server::{Authentication, Ended, Event};
use aero_protocol::wire::aero_options::{AeroOption, Claim};
use aero_protocol::wire::dhcpv6::{IaPd, Kind, Message, OPTION_VENDOR_OPTS, StatusCode};
use aero_protocol::wire::ip::{self, Packet, Payload};
use aero_protocol::wire::nd::{Nd, NdMessage, NdOption};
use common::{Link, duid, holder_id, host, l2, node_address, prefix, server_address};

const SECOND: Duration = Duration::from_secs(1);

/// A link with two Servers; client 1 may be held at 192.0.2.21, client 2 at 192.0.2.22.
fn two_servers() -> Link {
    let mut link = Link::new();
    link.add_server(11);
    link.add_server(12);
    link.map(1, 1, node_address(21));
    link.map(2, 1, node_address(22));
    link
}

fn message(kind: Kind, n: u16) -> Message {
    let mut m = Message::new(kind, [9, 9, n as u8]);
    m.client = Some(duid(n));
    m.rapid_commit = kind == Kind::Solicit;
    m.requested = vec![OPTION_VENDOR_OPTS];
    m.ia_pd.push(IaPd { id: 1, ..IaPd::default() });
    m.aero = vec![AeroOption::Padding(120)];
    m
}

/// Sends packets of a tester to a Server; what comes back, and to where.
fn tell(
    link: &mut Link,
    at: LinkLayerAddress,
    from: LinkLayerAddress,
    packet: &[u8],
) -> Vec<(LinkLayerAddress, Vec<u8>)> {
    let now = link.now;
    link.server(at).engine.handle_packet(from, packet, now);
    let mut sent = Vec::new();
    while let Some(output) = link.server(at).engine.poll_output() {
        match output {
            Output::Send { to, packet } | Output::SendOn { to, packet, .. } => {
                sent.push((to, packet));
            }
            Output::Forward(change) => link.server(at).table.apply(&change),
            Output::Event(event) => link.server(at).events.push(event),
        }
    }
    sent
}

fn dhcp(m: &Message) -> Vec<u8> {
    ip::udp((BOOTSTRAP_ADDRESS, 546), (ALL_DHCP_SERVERS, 547), &m.emit().unwrap()).unwrap()
}

fn parse(packet: &[u8]) -> Option<Message> {
    match Packet::parse(packet).unwrap().payload {
        Payload::Udp { data, .. } => Some(Message::parse(data).unwrap()),
        Payload::Icmpv6 { .. } => None,
    }
}

/// The DHCPv6 answer to a message.
fn ask(link: &mut Link, at: LinkLayerAddress, from: LinkLayerAddress, m: &Message) -> Message {
    let sent = tell(link, at, from, &dhcp(m));
    let (to, packet) = sent.iter().find(|(_, p)| parse(p).is_some()).unwrap();
    assert_eq!(*to, from);
    parse(packet).unwrap()
}

fn ingress(
    link: &mut Link,
    at: LinkLayerAddress,
    from: LinkLayerAddress,
    a: u16,
    b: u16,
) -> Disposition {
    let now = link.now;
    let inner = Inner { source: host(a), destination: host(b) };
    link.server(at).table.ingress(from, inner, now)
}

#[test]
fn a_solicit_to_the_multicast_address_of_all_servers_is_unicast_to_each_server_on_the_underlay() {
    let _row = aero_elements::covers(&["C1"]);
    let mut link = two_servers();
    let servers = link.servers();
    let node = link.add_node(21, &servers);
    link.attach(node, 1, 1);
    let solicits: Vec<_> = link.sent.iter().filter(|s| s.name() == "Solicit").collect();
    let to: Vec<_> = solicits.iter().map(|s| s.to).collect();
    assert_eq!(to, servers, "one datagram each, to no other address");
    for sent in solicits {
        let packet = Packet::parse(&sent.packet).unwrap();
        assert_eq!(packet.destination, ALL_DHCP_SERVERS);
        assert_eq!(packet.hop_limit, 255);
    }
}

#[test]
fn data_of_a_prefix_is_taken_from_its_lease_to_its_release_and_not_before_or_after() {
    let _row = aero_elements::covers(&["C4", "J4"]);
    let mut link = two_servers();
    let (at, a, b) = (server_address(11), node_address(21), node_address(22));
    ask(&mut link, at, b, &message(Kind::Solicit, 2));
    assert_eq!(ingress(&mut link, at, a, 1, 2), Disposition::Drop(Drop::OriginRefused));
    let reply = ask(&mut link, at, a, &message(Kind::Solicit, 1));
    assert_eq!(ingress(&mut link, at, a, 1, 2), Disposition::Tunnel(b));
    let mut release = message(Kind::Release, 1);
    release.server = reply.server;
    ask(&mut link, at, a, &release);
    assert_eq!(ingress(&mut link, at, a, 1, 2), Disposition::Drop(Drop::OriginRefused));
}

#[test]
fn every_server_answers_under_its_own_duid_with_the_same_prefix_also_after_a_restart() {
    let _row = aero_elements::covers(&["E1", "F1", "E4", "F3"]);
    let mut link = two_servers();
    let mut answers = Vec::new();
    for n in [11, 12] {
        let mut solicit = message(Kind::Solicit, 1);
        solicit.rapid_commit = false;
        let offer = ask(&mut link, server_address(n), node_address(21), &solicit);
        assert_eq!(offer.kind, Kind::Advertise);
        answers.push(ask(
            &mut link,
            server_address(n),
            node_address(21),
            &message(Kind::Solicit, 1),
        ));
    }
    link.add_server(12);
    link.map(1, 1, node_address(21));
    answers.push(ask(&mut link, server_address(12), node_address(21), &message(Kind::Solicit, 1)));
    assert_ne!(answers[0].server, answers[1].server);
    assert_eq!(answers[1].server, answers[2].server);
    for answer in &answers {
        assert_eq!(answer.kind, Kind::Reply);
        assert_eq!(answer.ia_pd, answers[0].ia_pd);
        assert_eq!(answer.ia_pd[0].prefixes[0].prefix, prefix(1));
    }
}

#[test]
fn when_one_of_two_servers_dies_the_lease_at_the_other_carries_on_without_a_new_delegation() {
    let _row = aero_elements::covers(&["E5"]);
    let mut link = two_servers();
    let servers = link.servers();
    let (a, b) = (link.add_node(21, &servers), link.add_node(22, &servers));
    link.attach(a, 1, 1);
    link.attach(b, 2, 1);
    link.run(SECOND * 3);
    assert_eq!((link.is_bound(a, 1), link.is_bound(b, 2)), (2, 2));
    let dies = link.node(a).engine.default_server().unwrap();
    let lives = *servers.iter().find(|s| **s != dies).unwrap();
    let before = link.sent.len();
    link.dead.push(dies);
    link.run(SECOND * 5);
    assert_eq!(link.user_packet(a, 1, 2), Ok(b));
    assert_eq!(link.user_packet(b, 2, 1), Ok(a));
    let anew = |s: &&common::Sent| {
        s.to == lives && matches!(s.name().as_str(), "Solicit" | "Request" | "Rebind")
    };
    assert_eq!(link.sent[before..].iter().filter(anew).count(), 0);
}

#[test]
fn packets_go_to_the_observed_address_and_port_as_soon_as_the_reply_is_out() {
    let _row = aero_elements::covers(&["E6", "G1b", "G2", "H1"]);
    let mut link = two_servers();
    let (at, b) = (server_address(11), node_address(22));
    // Behind a NAT: neither the port of AERO nor one that the Client could know.
    let outside = l2("192.0.2.21:40123");
    ask(&mut link, at, b, &message(Kind::Solicit, 2));
    let mut solicit = message(Kind::Solicit, 1);
    // A lie about the address is nowhere to be told; the Server says what it saw.
    solicit.aero.push(AeroOption::LinkRequest { link_id: 0, preference: 3 });
    let reply = ask(&mut link, at, outside, &solicit);
    assert_eq!(ingress(&mut link, at, b, 2, 1), Disposition::Tunnel(outside));
    let seen = reply.aero.iter().find_map(|o| match o {
        AeroOption::LinkReply { address, .. } => Some(*address),
        _ => None,
    });
    assert_eq!(seen, Some(outside));
}

#[test]
fn a_lease_ends_after_its_lifetime_a_renewal_keeps_it_and_a_late_one_gets_no_binding() {
    let _row = aero_elements::covers(&["E7"]);
    let mut link = two_servers();
    let (at, a, b) = (server_address(11), node_address(21), node_address(22));
    let reply = ask(&mut link, at, a, &message(Kind::Solicit, 1));
    let lifetime = Duration::from_secs(reply.ia_pd[0].prefixes[0].valid.into());
    assert_eq!(lifetime, SECOND * 40);
    let mut renew = message(Kind::Renew, 1);
    renew.server = reply.server;
    link.run(SECOND * 20);
    assert_eq!(ask(&mut link, at, a, &renew).ia_pd[0].prefixes[0].valid, 40);
    ask(&mut link, at, b, &message(Kind::Solicit, 2));
    link.run(SECOND * 39);
    assert_eq!(ingress(&mut link, at, b, 2, 1), Disposition::Tunnel(a));
    link.run(SECOND);
    let disposition = ingress(&mut link, at, b, 2, 1);
    assert!(matches!(disposition, Disposition::Drop(_)), "{disposition:?}");
    let ended = |e: &Event| matches!(e, Event::Ended { prefix: p, why: Ended::Expired, .. } if *p == prefix(1));
    assert!(link.server(at).events.iter().any(ended), "what a withdrawal is made from");
    let late = ask(&mut link, at, a, &renew);
    assert_eq!(late.ia_pd[0].status.as_ref().unwrap().code, StatusCode::NoBinding);
    assert!(late.status.is_none());
}

#[test]
fn the_reply_lists_every_service_prefix_to_whoever_asks_for_the_vendor_option() {
    let _row = aero_elements::covers(&["E8"]);
    let mut link = two_servers();
    let at = server_address(11);
    let asps = vec!["2001:db8::/32".parse().unwrap(), "fd00:1::/48".parse().unwrap()];
    let engine = &mut link.server(at).engine;
    engine.set_link(asps.clone(), SECOND * 40, Authentication::NodeAddress);
    let mut solicit = message(Kind::Solicit, 1);
    let reply = ask(&mut link, at, node_address(21), &solicit);
    let listed = reply.aero.iter().find_map(|o| match o {
        AeroOption::LinkReply { asps, .. } => Some(asps.clone()),
        _ => None,
    });
    assert_eq!(listed, Some(asps));
    solicit.requested.clear();
    assert!(ask(&mut link, at, node_address(21), &solicit).aero.is_empty());
}

#[test]
fn a_lease_at_a_second_server_leaves_that_at_the_first_as_it_is() {
    let _row = aero_elements::covers(&["E9"]);
    let mut link = two_servers();
    ask(&mut link, server_address(11), node_address(21), &message(Kind::Solicit, 1));
    let before: Vec<_> = link.server(server_address(11)).engine.neighbors().cloned().collect();
    link.run(SECOND * 5);
    let second = ask(&mut link, server_address(12), node_address(21), &message(Kind::Solicit, 1));
    assert_eq!(second.ia_pd[0].prefixes[0].prefix, prefix(1));
    link.run(SECOND * 5);
    let after: Vec<_> = link.server(server_address(11)).engine.neighbors().cloned().collect();
    assert_eq!((before.len(), before), (1, after));
}

#[test]
fn a_server_answers_solicitations_of_its_clients_from_its_own_address_also_at_the_anycast_one() {
    let _row = aero_elements::covers(&["G1", "H4"]);
    let mut link = two_servers();
    let (at, a) = (server_address(11), node_address(21));
    let own = ServerId::from_underlay(at.ip).address();
    ask(&mut link, at, a, &message(Kind::Solicit, 1));
    for target in [own, SERVER_ANYCAST] {
        let nonce = NdOption::Nonce(vec![1, 2, 3, 4, 5, 6]);
        let nd = Nd {
            source: aero_address(prefix(1)),
            destination: target,
            message: NdMessage::Solicitation { target },
            options: vec![nonce.clone()],
        };
        let packet = nd.emit().unwrap();
        let sent = tell(&mut link, at, a, &packet);
        assert_eq!((sent.len(), sent[0].0), (1, a));
        let parsed = Packet::parse(&sent[0].1).unwrap();
        assert_eq!((parsed.hop_limit, parsed.source), (255, own), "never from the anycast address");
        let answer = Nd::parse(&parsed).unwrap();
        assert!(matches!(answer.message, NdMessage::Advertisement { solicited: true, .. }));
        assert_eq!(answer.options, [nonce]);
        assert!(tell(&mut link, at, node_address(66), &packet).is_empty(), "a stranger's");
    }
}

#[test]
fn a_rebind_moves_the_packets_to_the_new_address_and_one_without_right_moves_nothing() {
    let _row = aero_elements::covers(&["H2", "G3"]);
    let mut link = two_servers();
    let (at, old, new, b) =
        (server_address(11), node_address(21), l2("192.0.2.33:8061"), node_address(22));
    let mut mapping = aero_protocol::server::Mapping {
        prefix: prefix(1),
        client: duid(1),
        epoch: aero_protocol::address::Epoch(1),
        holder: Some(aero_protocol::server::Holder {
            id: holder_id(1, 1),
            name: "pod web-1 on n1".into(),
            underlay: vec![old.ip, new.ip],
        }),
    };
    let now = link.now;
    link.server(at).engine.set_mapping(mapping.clone(), now);
    ask(&mut link, at, b, &message(Kind::Solicit, 2));
    // Without any binding.
    let denied = ask(&mut link, at, old, &message(Kind::Rebind, 1));
    assert_eq!(denied.ia_pd[0].status.as_ref().unwrap().code, StatusCode::NoBinding);
    ask(&mut link, at, old, &message(Kind::Solicit, 1));
    assert_eq!(ingress(&mut link, at, b, 2, 1), Disposition::Tunnel(old));
    let reply = ask(&mut link, at, new, &message(Kind::Rebind, 1));
    assert_eq!(reply.ia_pd[0].prefixes[0].prefix, prefix(1));
    assert_eq!(ingress(&mut link, at, b, 2, 1), Disposition::Tunnel(new));
    // From where the holder is not.
    let thief = ask(&mut link, at, l2("192.0.2.99:8061"), &message(Kind::Rebind, 1));
    assert_eq!(thief.ia_pd[0].status.as_ref().unwrap().code, StatusCode::NoBinding);
    assert!(thief.ia_pd[0].prefixes.is_empty());
    assert_eq!(ingress(&mut link, at, b, 2, 1), Disposition::Tunnel(new));
    // The table decides, not the address that asked last.
    mapping.epoch = aero_protocol::address::Epoch(2);
    link.server(at).engine.set_mapping(mapping, now);
    assert_eq!(ingress(&mut link, at, b, 2, 1), Disposition::Tunnel(new));
}

#[test]
fn a_lost_rebind_of_a_client_that_moved_is_repeated_within_a_second_to_every_server() {
    let _row = aero_elements::covers(&["G4"]);
    let mut link = two_servers();
    let servers = link.servers();
    let node = link.add_node(21, &servers);
    link.attach(node, 1, 1);
    link.run(SECOND * 3);
    let first = link.sent.len();
    let moved = link.now;
    link.lose = Box::new(move |n, s| n >= first && s.at == moved);
    link.node(node).engine.underlay_changed(moved);
    link.drain(node);
    link.run(SECOND * 12 / 10);
    for server in servers {
        let rebinds: Vec<_> = link.sent[first..]
            .iter()
            .filter(|s| s.to == server && s.name() == "Rebind")
            .map(|s| s.at - moved)
            .collect();
        assert_eq!(rebinds.len(), 2, "{server}: {rebinds:?}");
        assert!(rebinds[1] >= SECOND * 9 / 10 && rebinds[1] <= SECOND * 11 / 10, "{rebinds:?}");
    }
    link.run(SECOND);
    assert_eq!(link.is_bound(node, 1), 2);
}

#[test]
fn a_node_that_holds_one_client_is_refused_for_the_duid_of_another() {
    let _row = aero_elements::covers(&["I3"]);
    let mut link = two_servers();
    for at in link.servers() {
        assert!(
            !ask(&mut link, at, node_address(21), &message(Kind::Solicit, 1)).ia_pd[0]
                .prefixes
                .is_empty()
        );
        let mut theft = message(Kind::Solicit, 2);
        for holder in [holder_id(1, 1), holder_id(2, 1)] {
            let claim = Claim { epoch: aero_protocol::address::Epoch(1), holder };
            theft.aero = vec![AeroOption::Claim(claim), AeroOption::Padding(120)];
            let answer = ask(&mut link, at, node_address(21), &theft);
            assert_eq!(answer.ia_pd[0].status.as_ref().unwrap().code, StatusCode::NoPrefixAvail);
        }
        let held: Vec<_> = link.server(at).engine.neighbors().map(|n| n.prefix).collect();
        assert_eq!(held, [prefix(1)]);
    }
}

#[test]
fn the_death_of_a_server_costs_the_clients_of_another_nothing() {
    let _row = aero_elements::covers(&["J7"]);
    let mut link = two_servers();
    let (first, second) = (server_address(11), server_address(12));
    link.map(3, 1, node_address(23));
    let (a, b) = (link.add_node(21, &[second]), link.add_node(22, &[second]));
    let c = link.add_node(23, &[first]);
    link.attach(a, 1, 1);
    link.attach(b, 2, 1);
    link.attach(c, 3, 1);
    link.run(SECOND * 3);
    link.dead.push(first);
    for tenth in 0..600 {
        link.run(SECOND / 10);
        assert_eq!(link.user_packet(a, 1, 2), Ok(b), "tenth {tenth}");
        assert_eq!(link.user_packet(b, 2, 1), Ok(a), "tenth {tenth}");
    }
}

#[test]
fn a_client_keeps_its_prefix_and_its_addresses_over_fifty_moves_between_nodes_and_servers() {
    let _row = aero_elements::covers(&["R1", "R1b", "N4"]);
    let rule: std::net::Ipv6Addr = "fe80::2001:db8:1:2".parse().unwrap();
    assert_eq!(aero_address("2001:db8:1:2::/64".parse().unwrap()), rule);
    let mut link = Link::new();
    let servers = [link.add_server(11), link.add_server(12)];
    // Each node has a Server of its own.
    let nodes = [link.add_node(21, &servers[..1]), link.add_node(22, &servers[1..])];
    for epoch in 1..=50u64 {
        let at = nodes[usize::try_from(epoch % 2).unwrap()];
        link.map(1, epoch, at);
        link.attach(at, 1, epoch);
        link.run(SECOND * 2);
        let standing = link.node(at).engine.standing(&duid(1)).unwrap();
        assert_eq!((standing.prefixes, standing.bound.len()), (vec![prefix(1)], 1), "{epoch}");
    }
    let own: std::net::Ipv6Addr = "fe80::2001:db8:0:1".parse().unwrap();
    let mut solicitations = 0;
    for sent in link.sent.iter().filter(|s| nodes.contains(&s.from)) {
        let packet = Packet::parse(&sent.packet).unwrap();
        assert!([own, BOOTSTRAP_ADDRESS].contains(&packet.source), "{}", packet.source);
        match packet.payload {
            Payload::Udp { data, .. } => {
                let client = Message::parse(data).unwrap().client;
                assert_eq!(client, Some(duid(1)), "one DUID, of the Client and of no node");
            }
            Payload::Icmpv6 { .. } => solicitations += 1,
        }
    }
    assert!(solicitations > 10, "{solicitations}");
}

#[test]
fn a_relay_forward_from_anywhere_is_discarded_and_the_next_message_is_served() {
    let _row = aero_elements::covers(&["T7"]);
    let mut link = two_servers();
    let (at, a) = (server_address(11), node_address(21));
    let solicit = message(Kind::Solicit, 1).emit().unwrap();
    let mut relayed = vec![12, 0];
    relayed.extend([0; 16]);
    relayed.extend(aero_address(prefix(1)).octets());
    relayed.extend([0, 9]);
    relayed.extend(u16::try_from(solicit.len()).unwrap().to_be_bytes());
    relayed.extend(&solicit);
    for source in [BOOTSTRAP_ADDRESS, aero_address(prefix(1)), "fe80::192.0.2.12".parse().unwrap()]
    {
        let packet = ip::udp((source, 547), (ALL_DHCP_SERVERS, 547), &relayed).unwrap();
        assert!(tell(&mut link, at, a, &packet).is_empty(), "from {source}");
        assert_eq!(link.server(at).engine.neighbors().count(), 0);
    }
    assert_eq!(ask(&mut link, at, a, &message(Kind::Solicit, 1)).kind, Kind::Reply);
}
