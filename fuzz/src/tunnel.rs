//! Tunnel fragments: whole packets come out of their fragments in any order, no mix ever does, and
//! what waits is bounded.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use aero_protocol::address::LinkLayerAddress;
use aero_protocol::tunnel::fragment::TunnelFragments;
use aero_protocol::tunnel::header::Outer;
use aero_protocol::tunnel::reassembly::{Limits, Outcome, Reassembler};
use aero_protocol::wire::encapsulation::{Payload, demux};
use rand::Rng;
use rand::rngs::StdRng;

/// An IPv6 packet whose every byte tells which packet it is of.
fn packet(number: u8, length: usize) -> Vec<u8> {
    let mut bytes = vec![number; length];
    bytes[0] = 0x60;
    let payload = u16::try_from(length - 40).unwrap();
    bytes[4..6].copy_from_slice(&payload.to_be_bytes());
    bytes
}

/// One history of a reassembler.
///
/// # Panics
/// If something does not hold.
pub fn reassembly(rng: &mut StdRng) {
    let mut now = Instant::now();
    let limits = Limits::default();
    let mut reassembler = Reassembler::new(limits);
    let outer = Outer { ttl: 64, traffic_class: 0, flow_label: 0 };
    let from = LinkLayerAddress::new([192, 0, 2, 1].into(), 8061);
    let mut whole = BTreeSet::new();
    let mut harmed = BTreeSet::new();
    let mut pieces: Vec<Vec<u8>> = Vec::new();
    for number in 0..20u8 {
        let original = packet(number, rng.random_range(1100..2000));
        whole.insert(original.clone());
        let fragments = TunnelFragments::new(&original, rng.random(), u32::from(number)).unwrap();
        for (shim, data) in fragments {
            let mut datagram = shim.to_vec();
            datagram.extend_from_slice(data);
            if rng.random_bool(0.1) {
                // Next header, offset or the flag; the identification stays.
                datagram[rng.random_range(1..4)] ^= 1 << rng.random_range(0..8);
                harmed.insert(number);
            }
            if rng.random_bool(0.2) {
                pieces.push(datagram.clone());
            }
            pieces.push(datagram);
        }
    }
    let mut out = Vec::new();
    let mut came_out = 0;
    while !pieces.is_empty() {
        let near = rng.random_range(0..pieces.len().min(6));
        let datagram = pieces.remove(near);
        now += Duration::from_millis(rng.random_range(0..400));
        let Ok(Payload::Fragment { shim, data }) = demux(&datagram) else { continue };
        let known = rng.random();
        let outcome = reassembler.accept(from, known, outer, shim, data, now, &mut out);
        if let Outcome::Whole(_) = outcome {
            let number = u8::try_from(shim.identification).unwrap();
            assert!(harmed.contains(&number) || whole.contains(&out), "not what was cut");
            came_out += 1;
        }
        assert!(reassembler.len() <= limits.packets_per_neighbor, "{} wait", reassembler.len());
        assert!(reassembler.bytes() <= limits.bytes_per_neighbor + 4096);
    }
    assert!(came_out + harmed.len() > 0);
    reassembler.expire(now + Duration::from_secs(3600));
    assert_eq!((reassembler.len(), reassembler.bytes()), (0, 0));
}
