//! Fragments on their way: reassembly against anything that may come.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::HashSet;
use std::time::{Duration, Instant};

use aero_protocol::Output;
use aero_protocol::address::{
    ALL_DHCP_SERVERS, BOOTSTRAP_ADDRESS, LinkLayerAddress, ServerId, aero_address,
};
use aero_protocol::tunnel::fragment::TunnelFragments;
use aero_protocol::tunnel::header::Outer;
use aero_protocol::tunnel::reassembly::{Limits, Outcome, Reassembler, Refusal, TIMEOUT};
use aero_protocol::wire::dhcpv6::{IaPd, Kind, Message};
use aero_protocol::wire::encapsulation::{self, FragmentShim, demux};
use aero_protocol::wire::ip::{self, Packet, Payload};
use aero_protocol::wire::nd::{Nd, NdMessage, NdOption};
use common::{Link, duid, node_address, prefix, server_address};
use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{Rng, SeedableRng};

fn neighbor(n: u16) -> LinkLayerAddress {
    LinkLayerAddress::new([192, 0, 2, 1].into(), n)
}

const OUTER: Outer = Outer { ttl: 64, traffic_class: 0, flow_label: 0 };

/// A data packet of this length with its own content.
fn packet(length: usize, salt: u8) -> Vec<u8> {
    let mut p: Vec<u8> =
        (0..length).map(|n| u8::try_from(n % 251).unwrap().wrapping_add(salt)).collect();
    p[0] = 0x60;
    p[8] = 0x20;
    p
}

fn control(length: usize) -> Vec<u8> {
    let mut p = packet(length, 3);
    p[8..10].copy_from_slice(&[0xfe, 0x80]);
    p[24..26].copy_from_slice(&[0xff, 0x02]);
    p
}

type Piece = (FragmentShim, Vec<u8>);

fn pieces(packet: &[u8], id: u32) -> Vec<Piece> {
    let read = |(shim, data): ([u8; 8], &[u8])| {
        let Ok(encapsulation::Payload::Fragment { shim, .. }) = demux(&shim) else {
            panic!("no fragment")
        };
        (shim, data.to_vec())
    };
    TunnelFragments::new(packet, false, id).unwrap().map(read).collect()
}

fn give(r: &mut Reassembler, piece: &Piece, now: Instant, out: &mut Vec<u8>) -> Outcome {
    r.accept(neighbor(1), true, OUTER, piece.0, &piece.1, now, out)
}

proptest! {
    /// Several packets at once, their fragments shuffled, some twice, some not at all.
    #[test]
    fn a_packet_is_delivered_as_it_was_or_not_at_all(
        lengths in proptest::collection::vec(1245usize..=2048, 1..12),
        seed: u64,
        loss in 0.0f64..0.5,
        duplication in 0.0f64..0.5,
    ) {
        let mut rng = StdRng::seed_from_u64(seed);
        let packets: Vec<Vec<u8>> = lengths
            .iter()
            .enumerate()
            .map(|(n, l)| packet(*l, u8::try_from(n).unwrap()))
            .collect();
        let mut on_the_way = Vec::new();
        let mut complete: HashSet<u32> = HashSet::new();
        for (id, p) in (0u32..).zip(&packets) {
            let mut lost = false;
            for piece in pieces(p, id) {
                if rng.random_bool(loss) {
                    lost = true;
                    continue;
                }
                if rng.random_bool(duplication) {
                    on_the_way.push(piece.clone());
                }
                on_the_way.push(piece);
            }
            if !lost {
                complete.insert(id);
            }
        }
        on_the_way.shuffle(&mut rng);
        let mut reassembler = Reassembler::default();
        let now = Instant::now();
        let mut out = Vec::new();
        for piece in &on_the_way {
            match give(&mut reassembler, piece, now, &mut out) {
                Outcome::Whole(_) => {
                    let id = piece.0.identification;
                    prop_assert_eq!(&out, &packets[usize::try_from(id).unwrap()]);
                    complete.remove(&id);
                }
                Outcome::Waiting => {}
                Outcome::Refused(why) => prop_assert!(false, "refused: {:?}", why),
            }
        }
        prop_assert!(complete.is_empty(), "not delivered: {:?}", complete);
        reassembler.expire(now + TIMEOUT);
        prop_assert!(reassembler.is_empty());
        prop_assert_eq!(reassembler.bytes(), 0);
    }

    /// Fragments that no sender would make, of two packets under one identification.
    #[test]
    fn a_mix_of_two_packets_is_never_delivered(
        seed: u64,
        cuts in proptest::collection::vec((0u16..250, 1u16..130, any::<bool>(), any::<bool>()), 1..40),
    ) {
        let (a, b) = (packet(2048, 1), packet(2048, 101));
        let mut rng = StdRng::seed_from_u64(seed);
        let mut cuts = cuts;
        cuts.shuffle(&mut rng);
        let mut reassembler = Reassembler::default();
        let now = Instant::now();
        let mut out = Vec::new();
        let mut of = [false; 2];
        for (unit, units, more, second) in cuts {
            let from = usize::from(unit) * 8;
            let to = (from + usize::from(units) * 8).min(2048);
            let source = if second { &b } else { &a };
            let piece: Piece = (
                FragmentShim { next_header: 41, offset: unit * 8, more, identification: 7 },
                source[from..to].to_vec(),
            );
            of[usize::from(second)] = true;
            if let Outcome::Whole(_) = give(&mut reassembler, &piece, now, &mut out) {
                // Disjoint pieces of two packets cannot be told apart by anybody; overlapping
                // ones can, and then nothing comes out.
                prop_assert!(out.len() <= 2048);
                if of != [true, true] {
                    prop_assert_eq!(&out[..], &source[..out.len()]);
                }
                of = [false; 2];
            }
        }
    }

    #[test]
    fn no_fragment_makes_it_panic_or_grow(
        fragments in proptest::collection::vec(
            (any::<u16>(), any::<u8>(), any::<u16>(), any::<bool>(), 0u32..4, 0usize..1600, any::<u8>()),
            0..200,
        ),
    ) {
        let limits = Limits { bytes_known: 20_000, bytes_unknown: 5_000, ..Limits::default() };
        let mut reassembler = Reassembler::new(limits);
        let mut out = Vec::new();
        for (from, next_header, offset, more, identification, length, class) in fragments {
            let shim = FragmentShim { next_header, offset: offset & !7, more, identification };
            let outer = Outer { traffic_class: class, ..OUTER };
            let data = vec![class; length];
            let known = from % 2 == 0;
            let _ = reassembler.accept(
                neighbor(from % 8), known, outer, shim, &data, Instant::now(), &mut out,
            );
            prop_assert!(reassembler.bytes() <= 25_000);
        }
    }
}

#[test]
fn overlapping_fragments_take_their_packet_with_them_and_late_ones_too() {
    let _row = aero_elements::covers(&["W3"]);
    let p = packet(1500, 0);
    let [first, last] = &pieces(&p, 1)[..] else { panic!() };
    let mut bad = first.clone();
    bad.1[500] ^= 1;
    let mut shifted = first.clone();
    shifted.0.offset = 8;
    for attack in [bad, shifted] {
        let (now, mut out) = (Instant::now(), Vec::new());
        let mut r = Reassembler::default();
        assert_eq!(give(&mut r, first, now, &mut out), Outcome::Waiting);
        assert_eq!(give(&mut r, &attack, now, &mut out), Outcome::Refused(Refusal::Overlap));
        assert_eq!(give(&mut r, last, now, &mut out), Outcome::Refused(Refusal::Overlap));
        assert_eq!(give(&mut r, first, now, &mut out), Outcome::Refused(Refusal::Overlap));
        assert!(r.bytes() < 200, "the data is gone at once");
        assert_eq!(give(&mut r, first, now + TIMEOUT, &mut out), Outcome::Waiting);
        assert!(matches!(give(&mut r, last, now + TIMEOUT, &mut out), Outcome::Whole(_)));
        assert_eq!(out, p);
    }
}

#[test]
fn fragments_that_contradict_each_other_about_the_end_or_the_protocol_are_refused() {
    let p = packet(1500, 0);
    let [first, last] = &pieces(&p, 1)[..] else { panic!() };
    let mut behind_the_end = first.clone();
    behind_the_end.0.offset = 1600;
    let mut other_protocol = first.clone();
    other_protocol.0.next_header = 4;
    let mut second_end = last.clone();
    second_end.0.offset = 1600;
    for attack in [behind_the_end, other_protocol, second_end] {
        let (now, mut out) = (Instant::now(), Vec::new());
        let mut r = Reassembler::default();
        assert_eq!(give(&mut r, last, now, &mut out), Outcome::Waiting);
        assert!(matches!(give(&mut r, &attack, now, &mut out), Outcome::Refused(_)));
    }
}

#[test]
fn a_duplicate_changes_nothing_and_neighbours_with_one_identification_do_not_mix() {
    let _row = aero_elements::covers(&["W3"]);
    let (p, q) = (packet(1500, 0), packet(1500, 50));
    let (ps, qs) = (pieces(&p, 1), pieces(&q, 1));
    let (now, mut out) = (Instant::now(), Vec::new());
    let mut r = Reassembler::default();
    assert_eq!(give(&mut r, &ps[1], now, &mut out), Outcome::Waiting);
    assert_eq!(give(&mut r, &ps[1], now, &mut out), Outcome::Waiting);
    let other = |r: &mut Reassembler, piece: &Piece, out: &mut Vec<u8>| {
        r.accept(neighbor(2), true, OUTER, piece.0, &piece.1, now, out)
    };
    assert_eq!(other(&mut r, &qs[0], &mut out), Outcome::Waiting);
    assert_eq!(r.len(), 2);
    assert_eq!(give(&mut r, &ps[0], now, &mut out), Outcome::Whole(OUTER));
    assert_eq!(out, p);
    assert_eq!(other(&mut r, &qs[1], &mut out), Outcome::Whole(OUTER));
    assert_eq!(out, q);
    assert_eq!(r.bytes(), 0);
}

#[test]
fn tiny_uneven_and_empty_fragments_cost_nothing() {
    let (now, mut out) = (Instant::now(), Vec::new());
    let mut r = Reassembler::default();
    for length in [0, 8, 248, 260, 1001] {
        let shim = FragmentShim { next_header: 41, offset: 0, more: true, identification: 1 };
        let piece = (shim, vec![0x60; length]);
        assert_eq!(give(&mut r, &piece, now, &mut out), Outcome::Refused(Refusal::Size));
    }
    assert_eq!(r.bytes(), 0);
}

#[test]
fn ten_thousand_half_packets_take_bounded_memory_and_the_next_whole_one_gets_through() {
    let _row = aero_elements::covers(&["W3"]);
    let limits = Limits::default();
    let now = Instant::now();
    let mut out = Vec::new();
    let mut r = Reassembler::default();
    let half = &pieces(&packet(1500, 0), 0)[0];
    for id in 0..10_000 {
        let mut piece = half.clone();
        piece.0.identification = id;
        assert_eq!(give(&mut r, &piece, now, &mut out), Outcome::Waiting);
        assert!(r.len() <= limits.packets_per_neighbor);
        assert!(r.bytes() <= limits.bytes_per_neighbor);
    }
    let p = packet(1500, 9);
    let [first, last] = &pieces(&p, 20_000)[..] else { panic!() };
    assert_eq!(give(&mut r, first, now, &mut out), Outcome::Waiting);
    assert!(matches!(give(&mut r, last, now, &mut out), Outcome::Whole(_)));
    assert_eq!(out, p);
    r.expire(now + TIMEOUT);
    assert!(r.is_empty() && r.bytes() == 0);
    assert_eq!(r.given_up(), 10_000);
}

#[test]
fn strangers_with_forged_addresses_do_not_push_out_a_neighbours_packet() {
    let limits = Limits::default();
    let now = Instant::now();
    let mut out = Vec::new();
    let mut r = Reassembler::default();
    let p = packet(1500, 9);
    let [first, last] = &pieces(&p, 5)[..] else { panic!() };
    assert_eq!(give(&mut r, first, now, &mut out), Outcome::Waiting);
    for n in 2..12_000u16 {
        let _ = r.accept(neighbor(n), false, OUTER, first.0, &first.1, now, &mut out);
        assert!(r.bytes() <= limits.bytes_unknown + 2048);
    }
    assert!(matches!(give(&mut r, last, now, &mut out), Outcome::Whole(_)));
    assert_eq!(out, p);
}

#[test]
fn a_neighbour_that_floods_gives_up_its_own_packets_first() {
    let limits = Limits { bytes_known: 60_000, ..Limits::default() };
    let now = Instant::now();
    let mut out = Vec::new();
    let mut r = Reassembler::new(limits);
    let [first, last] = &pieces(&packet(1500, 9), 5)[..] else { panic!() };
    assert_eq!(give(&mut r, first, now, &mut out), Outcome::Waiting);
    for id in 0..500 {
        let shim = FragmentShim { identification: id, ..first.0 };
        let _ = r.accept(neighbor(2), true, OUTER, shim, &first.1, now, &mut out);
    }
    assert!(r.bytes() <= 60_000);
    assert!(matches!(give(&mut r, last, now, &mut out), Outcome::Whole(_)));
}

#[test]
fn only_a_control_message_may_be_larger_than_2_kib_and_it_has_a_limit_too() {
    let _row = aero_elements::covers(&["W3"]);
    let cases = [
        (packet(2048, 0), true),
        (packet(2049, 0), false),
        (control(3000), true),
        (control(8192), true),
        (control(8200), false),
    ];
    for (p, fits) in cases {
        let (now, mut out) = (Instant::now(), Vec::new());
        let mut r = Reassembler::default();
        let all = pieces(&p, 1);
        let outcomes: Vec<_> = all.iter().map(|f| give(&mut r, f, now, &mut out)).collect();
        let last = outcomes[outcomes.len() - 1];
        if fits {
            assert_eq!(last, Outcome::Whole(OUTER), "{} bytes", p.len());
            assert_eq!(out, p);
        } else {
            assert_eq!(last, Outcome::Refused(Refusal::TooLarge), "{} bytes", p.len());
        }
    }
}

#[test]
fn a_whole_packet_has_the_least_ttl_of_its_fragments_and_a_mark_of_any() {
    let [first, last] = &pieces(&packet(1500, 0), 1)[..] else { panic!() };
    let outer = |ttl, traffic_class| Outer { ttl, traffic_class, flow_label: 0 };
    let run = |one: Outer, other: Outer| {
        let (now, mut out) = (Instant::now(), Vec::new());
        let mut r = Reassembler::default();
        r.accept(neighbor(1), true, one, first.0, &first.1, now, &mut out);
        r.accept(neighbor(1), true, other, last.0, &last.1, now, &mut out)
    };
    assert_eq!(run(outer(9, 2), outer(7, 3)), Outcome::Whole(outer(7, 3)));
    assert_eq!(run(outer(7, 3), outer(9, 2)), Outcome::Whole(outer(7, 3)));
    assert_eq!(run(outer(7, 0), outer(9, 3)), Outcome::Refused(Refusal::Congestion));
}

#[test]
fn a_packet_waits_for_its_fragments_for_a_minute_and_no_longer() {
    let [first, last] = &pieces(&packet(1500, 0), 1)[..] else { panic!() };
    for (later, whole) in [(TIMEOUT - Duration::from_millis(1), true), (TIMEOUT, false)] {
        let (now, mut out) = (Instant::now(), Vec::new());
        let mut r = Reassembler::default();
        give(&mut r, first, now, &mut out);
        let outcome = give(&mut r, last, now + later, &mut out);
        assert_eq!(matches!(outcome, Outcome::Whole(_)), whole);
    }
}

/// What an engine says to `packet` from `from`.
fn server_says(link: &mut Link, from: LinkLayerAddress, packet: &[u8]) -> Vec<Vec<u8>> {
    let now = link.now;
    let engine = &mut link.server(server_address(11)).engine;
    engine.handle_packet(from, packet, now);
    std::iter::from_fn(|| engine.poll_output())
        .filter_map(|o| if let Output::Send { packet, .. } = o { Some(packet) } else { None })
        .collect()
}

#[test]
fn a_dhcpv6_message_of_3000_bytes_in_fragments_is_answered_and_nd_in_ipv6_fragments_is_not() {
    let _row = aero_elements::covers(&["W4"]);
    let mut link = Link::new();
    link.add_server(11);
    link.map(1, 1, node_address(21));
    let mut solicit = Message::new(Kind::Solicit, [1, 2, 3]);
    solicit.client = Some(duid(1));
    solicit.rapid_commit = true;
    solicit.ia_pd.push(IaPd { id: 5, ..IaPd::default() });
    let mut bytes = solicit.emit().unwrap();
    // An option that nobody knows makes it large.
    bytes.extend([0xfd, 0xe8, 0x0b, 0xb8]);
    bytes.resize(bytes.len() + 3000, 7);
    let packet = ip::udp((BOOTSTRAP_ADDRESS, 546), (ALL_DHCP_SERVERS, 547), &bytes).unwrap();
    assert!(packet.len() >= 3000);
    let fragments = pieces(&packet, 1);
    assert!(fragments.len() >= 3);
    let (now, mut out) = (Instant::now(), Vec::new());
    let mut r = Reassembler::default();
    for fragment in fragments.iter().rev() {
        give(&mut r, fragment, now, &mut out);
    }
    let answers = server_says(&mut link, node_address(21), &out);
    let Payload::Udp { data, .. } = Packet::parse(&answers[0]).unwrap().payload else { panic!() };
    let reply = Message::parse(data).unwrap();
    assert_eq!((reply.kind, reply.ia_pd[0].prefixes.len()), (Kind::Reply, 1));
    // A Neighbor Solicitation of that Client, whole and then as an IPv6 fragment.
    let target = ServerId::from_underlay(server_address(11).ip).address();
    let nd = Nd {
        source: aero_address(prefix(1)),
        destination: target,
        message: NdMessage::Solicitation { target },
        options: vec![NdOption::Nonce(vec![1; 6])],
    };
    let whole = nd.emit().unwrap();
    assert_eq!(server_says(&mut link, node_address(21), &whole).len(), 1);
    let mut fragment = whole[..40].to_vec();
    fragment[4..6].copy_from_slice(&u16::try_from(whole.len() - 40 + 8).unwrap().to_be_bytes());
    fragment[6] = 44;
    fragment.extend([58, 0, 0, 0, 0, 0, 0, 1]);
    fragment.extend_from_slice(&whole[40..]);
    assert!(server_says(&mut link, node_address(21), &fragment).is_empty());
}
