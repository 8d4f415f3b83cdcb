//! What the outer header copies, and from where: draft -48 section 3.4, RFC 6438.
//!
//! A packet that enters the link takes hop limit and traffic class from the inner header. One
//! that is encapsulated again keeps those of the outer header that it came with, so that hops of
//! the underlay count all the way and a loop between nodes of the link comes to its end. The
//! inner hop limit is never touched: Neighbor Discovery arrives with 255.

use std::hash::{Hash, Hasher};

/// Fields of an outer header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outer {
    /// TTL or hop limit, never zero in a packet to be sent.
    pub ttl: u8,
    /// TOS or traffic class: DSCP and ECN.
    pub traffic_class: u8,
    /// Flow label, 20 bits; zero, and unused, over IPv4.
    pub flow_label: u32,
}

impl Outer {
    /// For a packet from this node's network layer. `None` if it is no IP packet, or its hop
    /// limit is used up.
    pub fn entering(inner: &[u8]) -> Option<Self> {
        let traffic_class = traffic_class(inner)?;
        let ttl = hop_limit(inner).filter(|h| *h > 0)?;
        Some(Self { ttl, traffic_class, flow_label: flow_label(inner) })
    }

    /// For a packet that came with this outer header and goes to another neighbour. `step` is
    /// taken off the hop limit: 0 by the draft. `None` if it has run out.
    pub fn carried_on(self, step: u8) -> Option<Self> {
        let ttl = self.ttl.checked_sub(step).filter(|t| *t > 0)?;
        Some(Self { ttl, ..self })
    }
}

/// TOS or traffic class of an IP packet.
pub fn traffic_class(packet: &[u8]) -> Option<u8> {
    match packet {
        [first, tos, ..] if first >> 4 == 4 => Some(*tos),
        [first, second, ..] if first >> 4 == 6 => Some((first << 4) | (second >> 4)),
        _ => None,
    }
}

/// TTL or hop limit of an IP packet.
pub fn hop_limit(packet: &[u8]) -> Option<u8> {
    match packet.first()? >> 4 {
        4 => packet.get(8).copied(),
        6 => packet.get(7).copied(),
        _ => None,
    }
}

/// Length that the header of an IP packet gives, whether all of it is there or not. `None` if the
/// header makes no sense.
pub fn declared_length(packet: &[u8]) -> Option<usize> {
    let (least, length) = match packet {
        [first, _, l0, l1, ..] if first >> 4 == 4 => {
            (usize::from(first & 0xf) * 4, usize::from(u16::from_be_bytes([*l0, *l1])))
        }
        [first, _, _, _, l0, l1, ..] if first >> 4 == 6 => {
            (40, 40 + usize::from(u16::from_be_bytes([*l0, *l1])))
        }
        _ => return None,
    };
    (length >= least.max(20)).then_some(length)
}

/// Length of an IP packet by its header; what follows is padding. `None` if it is not all there.
pub fn length(packet: &[u8]) -> Option<usize> {
    declared_length(packet).filter(|length| *length <= packet.len())
}

/// The outer flow label: one value for the packets of one inner flow (RFC 6438 section 3), by
/// the inner flow label where there is one, else by protocol and ports.
fn flow_label(packet: &[u8]) -> u32 {
    let mut hasher = Fnv::default();
    match packet.first().map(|b| b >> 4) {
        Some(6) => {
            packet.get(8..40).hash(&mut hasher);
            match packet.get(1..4) {
                Some([a, b, c]) if a & 0xf != 0 || *b != 0 || *c != 0 => {
                    [a & 0xf, *b, *c].hash(&mut hasher);
                }
                _ => {
                    packet.get(6).hash(&mut hasher);
                    if matches!(packet.get(6), Some(6 | 17)) {
                        packet.get(40..44).hash(&mut hasher);
                    }
                }
            }
        }
        Some(4) => {
            packet.get(12..20).hash(&mut hasher);
            packet.get(9).hash(&mut hasher);
            let fragment = packet.get(6..8).is_some_and(|f| f != [0x40, 0] && f != [0, 0]);
            let plain = packet.first() == Some(&0x45);
            if plain && !fragment && matches!(packet.get(9), Some(6 | 17)) {
                packet.get(20..24).hash(&mut hasher);
            }
        }
        _ => return 0,
    }
    let hash = hasher.finish();
    // Folded to 20 bits; zero would mean "none".
    u32::try_from((hash ^ (hash >> 20) ^ (hash >> 40)) & 0xf_ffff).unwrap_or(0).max(1)
}

/// FNV-1a, eight bytes at a time: enough to spread flows.
struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(chunk) {
                *to = *from;
            }
            self.0 = (self.0 ^ u64::from_le_bytes(word)).wrapping_mul(0x0000_0100_0000_01b3);
            // Multiplication only carries upward.
            self.0 ^= self.0 >> 32;
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v6(hop_limit: u8, class: u8, label: u32, ports: [u8; 4]) -> Vec<u8> {
        let first = (6u32 << 28) | (u32::from(class) << 20) | label;
        let mut p = first.to_be_bytes().to_vec();
        p.extend([0, 4, 17, hop_limit]);
        p.extend([1; 16]);
        p.extend([2; 16]);
        p.extend(ports);
        p
    }

    fn v4(ttl: u8, tos: u8) -> Vec<u8> {
        let mut p = vec![0x45, tos, 0, 24, 0, 0, 0x40, 0, ttl, 17, 0, 0];
        p.extend([10, 1, 0, 1, 10, 2, 0, 1, 1, 2, 3, 4]);
        p
    }

    #[test]
    fn entering_the_link_hop_limit_and_traffic_class_come_from_the_inner_header() {
        for class in 0..=255u8 {
            for hop_limit in [1, 64, 255] {
                let outer = Outer::entering(&v6(hop_limit, class, 0, [0; 4])).unwrap();
                assert_eq!((outer.ttl, outer.traffic_class), (hop_limit, class));
                let outer = Outer::entering(&v4(hop_limit, class)).unwrap();
                assert_eq!((outer.ttl, outer.traffic_class), (hop_limit, class));
            }
        }
        assert_eq!(Outer::entering(&v6(0, 0, 0, [0; 4])), None);
        assert_eq!(Outer::entering(&[0x00, 1]), None);
        assert_eq!(Outer::entering(&[]), None);
    }

    #[test]
    fn encapsulated_again_everything_comes_from_the_outer_header_until_the_ttl_is_gone() {
        let outer = Outer { ttl: 3, traffic_class: 0xbb, flow_label: 0x12345 };
        assert_eq!(outer.carried_on(0), Some(outer));
        let mut hops = 0;
        let mut packet = Some(outer);
        while let Some(p) = packet {
            assert_eq!((p.traffic_class, p.flow_label), (0xbb, 0x12345));
            packet = p.carried_on(1);
            hops += 1;
        }
        assert_eq!(hops, 3);
        assert_eq!(Outer { ttl: 0, ..outer }.carried_on(0), None);
    }

    #[test]
    fn a_flow_keeps_its_label_and_other_flows_have_others() {
        let label = |p: &[u8]| Outer::entering(p).unwrap().flow_label;
        let a = label(&v6(64, 0, 0, [1, 2, 3, 4]));
        assert_eq!(a, label(&v6(9, 0xff, 0, [1, 2, 3, 4])), "neither hop limit nor class counts");
        let mut labels: Vec<u32> = (0..200u8).map(|n| label(&v6(64, 0, 0, [n, 2, 3, 4]))).collect();
        labels.sort_unstable();
        labels.dedup();
        assert!(labels.len() > 190, "{} labels for 200 flows", labels.len());
        assert!(labels.iter().all(|l| (1..1 << 20).contains(l)));
        let marked = label(&v6(64, 0, 7, [1, 2, 3, 4]));
        assert_eq!(marked, label(&v6(64, 0, 7, [9, 9, 9, 9])), "the inner label is the flow");
        assert_ne!(label(&v4(64, 0)), 0);
    }

    #[test]
    fn the_length_is_the_headers_and_padding_does_not_count() {
        let mut packet = v6(64, 0, 0, [0; 4]);
        packet.resize(1500, 0);
        assert_eq!(length(&packet), Some(44));
        assert_eq!(length(&packet[..43]), None);
        assert_eq!(length(&v4(64, 0)), Some(24));
        let mut short = v4(64, 0);
        short[3] = 19;
        assert_eq!(length(&short), None);
    }
}
