//! Signed messages: who is believed, and what a message may not be.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::time::Duration;

use aero_protocol::address::{
    ALL_DHCP_SERVERS, BOOTSTRAP_ADDRESS, Duid, LinkLayerAddress, ServerId,
};
use aero_protocol::client;
use aero_protocol::server::{Event, Fault, Refusal};
use aero_protocol::wire::WireError;
use aero_protocol::wire::aero_options::AeroOption;
use aero_protocol::wire::dhcpv6::{
    Authentication, IaPd, Kind, Message, OPTION_VENDOR_OPTS, StatusCode,
};
use aero_protocol::wire::ip::{self, Packet, Payload};
use aero_protocol::wire::signature::{self, Covered, Key, Signature};
use common::{Link, duid, l2, node_address, prefix, server_address};

const SECOND: Duration = Duration::from_secs(1);

fn key(n: u8) -> Key {
    Key::new(u32::from(n), [n; 32])
}

/// Servers with secrets of their own lives, which know Client 1 by its key and may see it at
/// 192.0.2.21 and .22; node 21, which has not attached it yet.
fn keyed(servers: &[u8]) -> Link {
    let mut link = Link::new();
    for n in servers {
        let at = link.add_server(*n);
        let engine = &mut link.server(at).engine;
        engine.set_reconfigure_secret([*n; 32]);
        engine.set_keys(duid(1), vec![key(1)]);
    }
    let all = link.servers();
    link.add_node(21, &all);
    link.map(1, 1, node_address(21));
    link
}

/// The same, with the lease.
fn bound(servers: &[u8]) -> Link {
    let mut link = keyed(servers);
    link.node(node_address(21)).engine.set_key(duid(1), Some(key(1)));
    link.attach(node_address(21), 1, 1);
    link.run(SECOND);
    assert_eq!(link.is_bound(node_address(21), 1), servers.len());
    link
}

/// Why a Server refused, since the last call.
fn faults(link: &mut Link, server: u8) -> Vec<Fault> {
    let events = std::mem::take(&mut link.server(server_address(server)).events);
    let fault = |e| match e {
        Event::Refused { why: Refusal::Signature(fault), .. } => Some(fault),
        _ => None,
    };
    events.into_iter().filter_map(fault).collect()
}

fn dhcp(packet: &[u8]) -> Message {
    match Packet::parse(packet).unwrap().payload {
        Payload::Udp { data, .. } => Message::parse(data).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn signature_of(packet: &[u8]) -> Option<Signature> {
    Signature::of(&dhcp(packet)).unwrap().copied()
}

/// A packet with another DHCPv6 message in it, its checksum right.
fn with_data(packet: &[u8], data: &[u8]) -> Vec<u8> {
    let p = Packet::parse(packet).unwrap();
    let Payload::Udp { source, destination, .. } = p.payload else { panic!() };
    ip::udp((p.source, source), (p.destination, destination), data).unwrap()
}

fn data_of(packet: &[u8]) -> Vec<u8> {
    let Payload::Udp { data, .. } = Packet::parse(packet).unwrap().payload else { panic!() };
    data.to_vec()
}

/// Hands a Server a packet; the answers.
fn tell(link: &mut Link, server: u8, from: LinkLayerAddress, packet: &[u8]) -> Vec<Message> {
    let (at, now, since) = (server_address(server), link.now, link.sent.len());
    link.server(at).engine.handle_packet(from, packet, now);
    link.drain(at);
    let sent = link.sent[since..].iter().filter(|s| s.from == at && s.to == from);
    sent.map(|s| dhcp(&s.packet)).collect()
}

fn grants(answers: &[Message]) -> bool {
    answers.iter().any(|m| m.ia_pd.iter().any(|ia| !ia.prefixes.is_empty()))
}

fn place(link: &mut Link, server: u8) -> Option<LinkLayerAddress> {
    link.server(server_address(server)).engine.neighbors().next().map(|n| n.link_layer)
}

/// A message of Client 1 as its node would send it, which never arrived.
fn caught(link: &mut Link, kind: &'static str, act: impl FnOnce(&mut Link)) -> Vec<u8> {
    link.lose = Box::new(move |_, s| s.name() == kind);
    let since = link.sent.len();
    act(link);
    let sent = link.sent[since..].iter().find(|s| s.name() == kind).unwrap();
    let packet = sent.packet.clone();
    link.lose = Box::new(|_, _| false);
    packet
}

#[test]
fn a_client_with_the_right_duid_and_the_wrong_key_is_refused_by_all_servers() {
    let _row = aero_elements::covers(&["I1"]);
    let mut link = keyed(&[11, 12]);
    let node = node_address(21);
    // Another secret under the same number, another number, none at all.
    let wrong = [
        (Some(Key::new(1, [9; 32])), Fault::Wrong),
        (Some(key(2)), Fault::UnknownKey),
        (None, Fault::Missing),
    ];
    for (key, fault) in wrong {
        link.node(node).engine.set_key(duid(1), key);
        link.attach(node, 1, 1);
        link.run(SECOND / 2);
        assert_eq!(link.is_bound(node, 1), 0, "{fault:?}");
        for server in [11, 12] {
            assert!(faults(&mut link, server).contains(&fault), "{fault:?} at {server}");
            assert_eq!(place(&mut link, server), None);
        }
    }
    link.node(node).engine.set_key(duid(1), Some(key(1)));
    link.attach(node, 1, 1);
    link.run(SECOND / 2);
    assert_eq!(link.is_bound(node, 1), 2);
    // A key that the Servers do not know makes no difference to them, but for the log.
    link.map(2, 1, node);
    link.node(node).engine.set_key(duid(2), Some(key(1)));
    link.attach(node, 2, 1);
    link.run(SECOND / 2);
    assert_eq!(link.is_bound(node, 2), 0);
    assert_eq!(faults(&mut link, 11), [Fault::UnknownKey]);
}

#[test]
fn a_lease_at_a_server_that_counts_costs_one_round_trip_more_and_then_none() {
    let mut link = bound(&[11]);
    let names = |link: &Link, since: usize| -> Vec<String> {
        let dhcp = link.sent[since..].iter().map(common::Sent::name);
        dhcp.filter(|n| !n.starts_with("icmp")).collect()
    };
    assert_eq!(names(&link, 0), ["Solicit", "Advertise", "Solicit", "Reply"]);
    let since = link.sent.len();
    link.run(SECOND * 21);
    assert_eq!(names(&link, since), ["Renew", "Reply"]);
    // A Server that was replaced knows no session: it says so once, and gives the lease anew.
    let since = link.sent.len();
    link.server(server_address(11)).engine.set_reconfigure_secret([99; 32]);
    link.run(SECOND * 21);
    assert_eq!(names(&link, since), ["Renew", "Reply", "Renew", "Reply"]);
    assert_eq!(link.is_bound(node_address(21), 1), 1);
    // So does a Client that was.
    let node = node_address(21);
    link.node(node).engine.set_key(duid(1), None);
    link.node(node).engine.set_key(duid(1), Some(key(1)));
    let since = link.sent.len();
    link.attach(node, 1, 1);
    link.run(SECOND / 2);
    assert_eq!(names(&link, since), ["Solicit", "Advertise", "Solicit", "Reply"]);
    assert!(faults(&mut link, 11).is_empty());
}

#[test]
fn a_changed_a_moved_and_a_replayed_rebind_is_refused_and_changes_nothing() {
    let _row = aero_elements::covers(&["I5"]);
    let mut link = bound(&[11]);
    let (node, thief) = (node_address(21), l2("192.0.2.99:8061"));
    let server = server_address(11);
    link.node(node).engine.set_outer_source(server, Some(node));
    let rebind = caught(&mut link, "Rebind", |link| {
        let now = link.now;
        link.node(node).engine.underlay_changed(now);
        link.drain(node);
    });
    assert!(signature_of(&rebind).unwrap().bound);
    faults(&mut link, 11);
    let data = data_of(&rebind);
    for bit in 0..data.len() * 8 {
        let mut changed = data.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        let answers = tell(&mut link, 11, node, &with_data(&rebind, &changed));
        assert!(!grants(&answers), "bit {bit}");
    }
    let found = faults(&mut link, 11);
    assert!(found.contains(&Fault::Wrong) && !found.contains(&Fault::Replayed), "{found:?}");
    // From where it does not say, and the right one before the thief's copy has any chance.
    assert!(!grants(&tell(&mut link, 11, thief, &rebind)));
    assert_eq!(faults(&mut link, 11), [Fault::Wrong]);
    assert_eq!(place(&mut link, 11), Some(node));
    assert!(grants(&tell(&mut link, 11, node, &rebind)), "it was good");
    assert!(tell(&mut link, 11, node, &rebind).is_empty(), "a replay has no answer");
    assert!(!grants(&tell(&mut link, 11, thief, &rebind)));
    assert_eq!(faults(&mut link, 11), [Fault::Replayed, Fault::Wrong]);
    assert_eq!(place(&mut link, 11), Some(node));
}

#[test]
fn a_replay_is_refused_without_source_binding_too_and_after_a_restart_of_the_server() {
    let mut link = bound(&[11]);
    let (node, thief) = (node_address(21), l2("192.0.2.99:8061"));
    let sent: Vec<Vec<u8>> = link
        .sent
        .iter()
        .filter(|s| s.from == node)
        .map(|s| s.packet.clone())
        .filter(|p| matches!(Packet::parse(p).unwrap().payload, Payload::Udp { .. }))
        .collect();
    assert!(!sent.is_empty() && sent.iter().all(|p| !signature_of(p).unwrap().bound));
    for restarted in [false, true] {
        if restarted {
            link.server(server_address(11)).engine.set_reconfigure_secret([77; 32]);
        }
        for packet in &sent {
            for from in [thief, node] {
                let answers = tell(&mut link, 11, from, packet);
                assert!(!grants(&answers));
                let again = |m: &Message| m.aero.iter().any(|o| matches!(o, AeroOption::Again(_)));
                assert!(answers.iter().all(again), "{answers:?}");
            }
        }
        assert_eq!(place(&mut link, 11), Some(node));
    }
}

#[test]
fn obsolete_authentication_proves_nothing_and_doubles_and_replays_are_dropped() {
    let _row = aero_elements::covers(&["I4"]);
    let mut link = keyed(&[11]);
    let node = node_address(21);
    let mut solicit = Message::new(Kind::Solicit, [1, 2, 3]);
    solicit.client = Some(duid(1));
    solicit.rapid_commit = true;
    solicit.requested = vec![OPTION_VENDOR_OPTS];
    solicit.ia_pd.push(IaPd { id: 1, ..IaPd::default() });
    solicit.aero.push(AeroOption::Padding(120));
    // Delayed authentication of RFC 3315: protocol 2, HMAC-MD5, a realm, a key id and a digest.
    solicit.authentication = Some(Authentication {
        protocol: 2,
        algorithm: 1,
        rdm: 0,
        replay: 1,
        info: [&b"example.com"[..], &[0, 0, 0, 1], &[0x5a; 16]].concat(),
    });
    let packet = |m: &[u8]| ip::udp((BOOTSTRAP_ADDRESS, 546), (ALL_DHCP_SERVERS, 547), m).unwrap();
    let plain = solicit.emit().unwrap();
    let answers = tell(&mut link, 11, node, &packet(&plain));
    assert!(!grants(&answers));
    let status = answers[0].ia_pd[0].status.as_ref().map(|s| s.code);
    assert_eq!(status, Some(StatusCode::NoPrefixAvail));
    assert_eq!(faults(&mut link, 11), [Fault::Missing]);
    // A second one, in a message that is signed well otherwise.
    let mut doubled = plain;
    doubled.extend([0, 11, 0, 11, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
    assert!(tell(&mut link, 11, node, &packet(&doubled)).is_empty());
    let dropped = |e: &Event| matches!(e, Event::Dropped { why: WireError::BadValue, .. });
    assert!(link.server(server_address(11)).events.iter().any(dropped));
    // A counter that has been: beside the right signature the obsolete option is as good as none.
    let session = {
        let mut first = solicit.clone();
        let answers = tell(&mut link, 11, node, &packet(&sign(&mut first, 0, 7)));
        let answer = Signature::of(&answers[0]).unwrap().unwrap();
        assert_eq!(answer.counter, 7, "the answer is to this very message");
        answer.session
    };
    for (counter, good) in [(5, true), (5, false), (4, false), (6, true)] {
        let mut m = solicit.clone();
        let answers = tell(&mut link, 11, node, &packet(&sign(&mut m, session, counter)));
        assert_eq!(grants(&answers), good, "{counter}");
        // The very message again has no answer; an older one, that there was a newer one.
        assert_eq!(answers.len(), usize::from(good || counter == 4));
    }
    assert_eq!(faults(&mut link, 11), [Fault::Replayed, Fault::Replayed]);
}

/// The bytes of a message of Client 1, signed by its key.
fn sign(m: &mut Message, session: u64, counter: u64) -> Vec<u8> {
    let digest = [0; 32];
    let option = Signature { key: 1, session, counter, bound: false, digest };
    m.aero.push(AeroOption::Signature(option));
    let mut data = m.emit().unwrap();
    let covered = Covered { source: BOOTSTRAP_ADDRESS, destination: ALL_DHCP_SERVERS, outer: None };
    signature::sign(&mut data, &covered, &key(1)).unwrap();
    data
}

#[test]
fn a_client_with_a_key_believes_its_servers_only_even_from_their_own_address() {
    let mut link = keyed(&[11]);
    let (node, server) = (node_address(21), server_address(11));
    link.node(node).engine.set_key(duid(1), Some(key(1)));
    link.attach(node, 1, 1);
    link.run(SECOND / 2);
    let reply = link.sent.iter().find(|s| s.name() == "Reply").unwrap().packet.clone();
    // A new exchange, whose answer is lost.
    link.lose = Box::new(move |_, s| s.from == server);
    link.attach(node, 1, 1);
    link.run(SECOND / 10);
    let asked = link.sent.iter().rfind(|s| s.name() == "Solicit").unwrap().packet.clone();
    let good = link.sent.iter().rfind(|s| s.from == server).unwrap().packet.clone();
    let mut forged = Vec::new();
    // What an impostor that hears the exchange could say: the Server's words of before, without a
    // signature, with that of another message, with its own.
    forged.push(reply.clone());
    let mut m = dhcp(&reply);
    m.transaction = dhcp(&asked).transaction;
    forged.push(with_data(&reply, &m.emit().unwrap()));
    m.aero.retain(|o| !matches!(o, AeroOption::Signature(_)));
    forged.push(with_data(&reply, &m.emit().unwrap()));
    m.aero.push(AeroOption::Signature(signature_of(&good).unwrap()));
    forged.push(with_data(&reply, &m.emit().unwrap()));
    let mut data = m.emit().unwrap();
    let p = Packet::parse(&reply).unwrap();
    let covered = Covered { source: p.source, destination: p.destination, outer: None };
    signature::sign(&mut data, &covered, &Key::new(1, [8; 32])).unwrap();
    forged.push(with_data(&reply, &data));
    // With the key, but as the answer to another message: what the Server said to that one.
    let signature = signature_of(&good).unwrap();
    for counter in [signature.counter - 1, signature.counter + 1] {
        m.aero.retain(|o| !matches!(o, AeroOption::Signature(_)));
        m.aero.push(AeroOption::Signature(Signature { counter, ..signature }));
        let mut data = m.emit().unwrap();
        signature::sign(&mut data, &covered, &key(1)).unwrap();
        forged.push(with_data(&reply, &data));
    }
    for packet in forged {
        link.node(node).events.clear();
        let now = link.now;
        link.node(node).engine.handle_packet(server, &packet, now);
        link.drain(node);
        let dropped = client::Event::Dropped { from: server, why: WireError::BadSignature };
        assert_eq!(link.node(node).events, [dropped]);
        assert_eq!(link.is_bound(node, 1), 0);
    }
    link.lose = Box::new(|_, _| false);
    let now = link.now;
    link.node(node).engine.handle_packet(server, &good, now);
    link.drain(node);
    assert_eq!(link.is_bound(node, 1), 1);
}

#[test]
fn a_release_through_another_server_is_signed_for_the_one_that_was_left() {
    let mut link = bound(&[11, 12]);
    let (node, old, new) = (node_address(21), server_address(11), server_address(12));
    for (n, at) in [(11, new), (12, old)] {
        let id = ServerId::from_underlay(at.ip);
        link.server(server_address(n)).engine.add_server_peer(id, at);
    }
    link.node(node).engine.set_outer_source(new, Some(node));
    // The old Server has forgotten the session, and learns of the Client's leave all the same.
    link.server(old).engine.set_reconfigure_secret([55; 32]);
    let now = link.now;
    link.node(node).engine.leave_server(old, now);
    link.drain(node);
    link.run(SECOND / 2);
    let left = client::Event::LeftServer { client: duid(1), server: old, confirmed: true };
    assert!(link.node(node).events.contains(&left), "{:?}", link.node(node).events);
    assert!(link.server(old).engine.neighbors().all(|n| n.lingers));
    // Nobody but the Client sends it away from the Server that it has now.
    let releases: Vec<_> = link
        .sent
        .iter()
        .filter(|s| s.name() == "Release" && s.from == node)
        .map(|s| s.packet.clone())
        .collect();
    faults(&mut link, 12);
    for packet in releases {
        let mut m = dhcp(&packet);
        m.server = Some(Duid::from_uuid(uuid::Uuid::from_u128(12 << 100)));
        let source = Packet::parse(&packet).unwrap().source;
        let to = (ServerId::from_underlay(new.ip).address(), 547);
        tell(&mut link, 12, node, &ip::udp((source, 546), to, &m.emit().unwrap()).unwrap());
    }
    assert_eq!(faults(&mut link, 12), [Fault::Wrong, Fault::Wrong]);
    assert_eq!(place(&mut link, 12), Some(node));
}

#[test]
fn a_reconfigure_is_signed_and_one_that_is_not_moves_nobody() {
    let mut link = bound(&[11, 12]);
    let (node, old) = (node_address(21), server_address(11));
    let packet = caught(&mut link, "Reconfigure", |link| {
        let now = link.now;
        link.server(old).engine.drain(now);
        link.drain(old);
    });
    assert!(signature_of(&packet).is_some());
    let mut m = dhcp(&packet);
    m.aero.clear();
    for bad in [with_data(&packet, &m.emit().unwrap()), {
        let mut data = data_of(&packet);
        let last = data.len() - 1;
        data[last] ^= 1;
        with_data(&packet, &data)
    }] {
        link.node(node).events.clear();
        let now = link.now;
        link.node(node).engine.handle_packet(old, &bad, now);
        link.drain(node);
        let dropped = client::Event::Dropped { from: old, why: WireError::BadSignature };
        assert_eq!(link.node(node).events, [dropped]);
    }
    let now = link.now;
    link.node(node).engine.handle_packet(old, &packet, now);
    link.drain(node);
    assert_eq!(link.node(node).engine.default_server(), Some(server_address(12)));
}

#[test]
fn a_new_key_comes_before_the_old_one_goes() {
    let mut link = bound(&[11]);
    let (node, server) = (node_address(21), server_address(11));
    link.server(server).engine.set_keys(duid(1), vec![key(1), key(2)]);
    link.run(SECOND * 21);
    link.node(node).engine.set_key(duid(1), Some(key(2)));
    link.run(SECOND * 21);
    assert_eq!(link.is_bound(node, 1), 1);
    link.server(server).engine.set_keys(duid(1), vec![key(2)]);
    link.run(SECOND * 21);
    assert_eq!(link.is_bound(node, 1), 1);
    assert!(faults(&mut link, 11).is_empty());
    // A key that was withdrawn is of no use from the next renewal on.
    link.server(server).engine.set_keys(duid(1), vec![key(3)]);
    link.run(SECOND * 41);
    assert_eq!(link.is_bound(node, 1), 0);
    assert!(faults(&mut link, 11).contains(&Fault::UnknownKey));
}

/// Found by the simulation: the node that a Client has left goes on asking for a while, and what the
/// new one said later was taken for replays of it until its lease was over.
#[test]
fn two_nodes_that_speak_for_one_client_do_not_make_each_other_mute() {
    let mut link = bound(&[11, 12]);
    let servers = link.servers();
    let (old, new) = (node_address(21), link.add_node(22, &servers));
    link.node(new).engine.set_key(duid(1), Some(key(1)));
    link.map(1, 2, new);
    link.attach(new, 1, 2);
    link.run(SECOND / 10);
    assert_eq!(link.is_bound(new, 1), 2);
    for _ in 0..40 {
        // It says more than the one that is right, and is refused as ever.
        link.attach(old, 1, 1);
        link.run(SECOND * 5);
        assert_eq!((link.is_bound(old, 1), link.is_bound(new, 1)), (0, 2));
        assert_eq!((place(&mut link, 11), place(&mut link, 12)), (Some(new), Some(new)));
    }
}

#[test]
fn the_key_of_one_client_is_no_good_for_the_duid_of_another() {
    let _row = aero_elements::covers(&["I3"]);
    let mut link = keyed(&[11, 12]);
    let node = node_address(21);
    // Both are at home on this node, so the address tells nothing.
    link.map(2, 1, node);
    for server in link.servers() {
        // Under the same number, so that only the secret differs.
        link.server(server).engine.set_keys(duid(2), vec![Key::new(1, [2; 32])]);
    }
    for n in [1, 2] {
        link.node(node).engine.set_key(duid(n), Some(key(1)));
        link.attach(node, n, 1);
    }
    link.run(SECOND);
    assert_eq!((link.is_bound(node, 1), link.is_bound(node, 2)), (2, 0));
    assert!(faults(&mut link, 11).contains(&Fault::Wrong));
    assert!(faults(&mut link, 12).contains(&Fault::Wrong));
    link.node(node).engine.set_key(duid(2), Some(Key::new(1, [2; 32])));
    link.attach(node, 2, 1);
    link.run(SECOND);
    assert_eq!(link.is_bound(node, 2), 2);
}

#[test]
fn without_keys_nothing_is_signed_and_all_is_as_before() {
    let mut link = keyed(&[11]);
    let server = server_address(11);
    link.server(server).engine.set_keys(duid(1), Vec::new());
    link.attach(node_address(21), 1, 1);
    link.run(SECOND);
    assert_eq!(link.is_bound(node_address(21), 1), 1);
    let dhcp = link.sent.iter().filter(|s| !s.name().starts_with("icmp"));
    assert!(dhcp.clone().count() == 2 && dhcp.clone().all(|s| signature_of(&s.packet).is_none()));
    assert_eq!(link.server(server).engine.neighbors().next().unwrap().prefix, prefix(1));
}
