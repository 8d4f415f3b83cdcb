//! Explicit congestion notification through the tunnel: RFC 6040, normal mode.
//!
//! Entering, the outer field is a copy of the inner one ([`super::header`]). Leaving, the two are
//! combined here. The drafts are silent about leaving.

/// The ECN field.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ecn {
    /// 00: does not know ECN.
    NotEct,
    /// 01.
    Ect1,
    /// 10.
    Ect0,
    /// 11: congestion was experienced.
    Ce,
}

impl Ecn {
    /// The low two bits of a TOS or traffic class octet.
    pub fn of(traffic_class: u8) -> Self {
        match traffic_class & 3 {
            0 => Ecn::NotEct,
            1 => Ecn::Ect1,
            2 => Ecn::Ect0,
            _ => Ecn::Ce,
        }
    }

    /// The field of an IPv4 or IPv6 packet; `None` for anything else.
    pub fn of_packet(packet: &[u8]) -> Option<Self> {
        super::header::traffic_class(packet).map(Self::of)
    }

    fn bits(self) -> u8 {
        match self {
            Ecn::NotEct => 0,
            Ecn::Ect1 => 1,
            Ecn::Ect0 => 2,
            Ecn::Ce => 3,
        }
    }
}

/// The field with which a packet leaves the tunnel, by RFC 6040 figure 4; `None` if it is to be
/// dropped: congestion was marked on a packet whose ends do not know ECN.
pub fn decapsulate(inner: Ecn, outer: Ecn) -> Option<Ecn> {
    match (inner, outer) {
        (Ecn::NotEct, Ecn::Ce) => None,
        (Ecn::NotEct, _) => Some(Ecn::NotEct),
        (Ecn::Ce, _) | (_, Ecn::Ce) => Some(Ecn::Ce),
        (_, Ecn::Ect1) => Some(Ecn::Ect1),
        (inner, _) => Some(inner),
    }
}

/// The field of a packet put together from fragments (RFC 3168 section 5.3): one mark is enough,
/// but not beside a fragment that does not know ECN, when the packet is to be dropped (`None`).
pub fn reassemble(one: Ecn, other: Ecn) -> Option<Ecn> {
    match (one, other) {
        (Ecn::Ce, Ecn::NotEct) | (Ecn::NotEct, Ecn::Ce) => None,
        (Ecn::Ce, _) | (_, Ecn::Ce) => Some(Ecn::Ce),
        (one, _) => Some(one),
    }
}

/// Does on `packet` what [`decapsulate`] says. False if it is to be dropped.
#[must_use]
pub fn leave_tunnel(packet: &mut [u8], outer: Ecn) -> bool {
    let Some(inner) = Ecn::of_packet(packet) else { return false };
    match decapsulate(inner, outer) {
        None => false,
        Some(ecn) if ecn == inner => true,
        Some(ecn) => {
            set(packet, ecn);
            true
        }
    }
}

/// Writes the field, and for IPv4 makes the header checksum right again (RFC 1624).
fn set(packet: &mut [u8], ecn: Ecn) {
    match packet {
        [first, second, ..] if *first >> 4 == 6 => {
            *second = (*second & 0xcf) | (ecn.bits() << 4);
        }
        [first, tos, _, _, _, _, _, _, _, _, c0, c1, ..] if *first >> 4 == 4 => {
            let old = u16::from_be_bytes([*first, *tos]);
            *tos = (*tos & 0xfc) | ecn.bits();
            let new = u16::from_be_bytes([*first, *tos]);
            let sum = u32::from(!u16::from_be_bytes([*c0, *c1])) + u32::from(!old) + u32::from(new);
            let sum = (sum & 0xffff) + (sum >> 16);
            let sum = (sum & 0xffff) + (sum >> 16);
            // The upper half is zero after two folds.
            [*c0, *c1] = (!u16::try_from(sum).unwrap_or(u16::MAX)).to_be_bytes();
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Ecn::{Ce, Ect0, Ect1, NotEct};
    use etherparse::{Ipv4HeaderSlice, PacketBuilder};

    const ALL: [Ecn; 4] = [NotEct, Ect0, Ect1, Ce];

    #[test]
    fn leaving_the_tunnel_follows_figure_4_of_rfc_6040() {
        let figure = [
            (NotEct, [Some(NotEct), Some(NotEct), Some(NotEct), None]),
            (Ect0, [Some(Ect0), Some(Ect0), Some(Ect1), Some(Ce)]),
            (Ect1, [Some(Ect1), Some(Ect1), Some(Ect1), Some(Ce)]),
            (Ce, [Some(Ce), Some(Ce), Some(Ce), Some(Ce)]),
        ];
        for (inner, row) in figure {
            for (outer, want) in ALL.into_iter().zip(row) {
                assert_eq!(decapsulate(inner, outer), want, "inner {inner:?}, outer {outer:?}");
            }
        }
    }

    #[test]
    fn reassembly_keeps_a_mark_and_drops_a_mark_beside_a_fragment_that_knows_no_ecn() {
        for one in ALL {
            for other in ALL {
                let marked = one == Ce || other == Ce;
                let deaf = one == NotEct || other == NotEct;
                let outcome = reassemble(one, other);
                match (marked, deaf) {
                    (true, true) => assert_eq!(outcome, None),
                    (true, false) => assert_eq!(outcome, Some(Ce)),
                    (false, _) => assert!(outcome == Some(one) || outcome == Some(other)),
                }
            }
        }
    }

    #[test]
    fn the_inner_header_is_rewritten_with_a_right_checksum_and_its_dscp_stays() {
        for inner in ALL {
            for outer in ALL {
                let builder = PacketBuilder::ipv4([10, 1, 0, 1], [10, 2, 0, 1], 64).udp(1, 2);
                let mut v4 = Vec::new();
                builder.write(&mut v4, b"data").unwrap();
                v4[1] = (46 << 2) | inner.bits();
                let right =
                    Ipv4HeaderSlice::from_slice(&v4).unwrap().to_header().calc_header_checksum();
                v4[10..12].copy_from_slice(&right.to_be_bytes());
                let mut v6 = vec![0x6b, (0x8 | inner.bits()) << 4, 0x12, 0x34];
                v6.resize(60, 0);
                let want = decapsulate(inner, outer);
                for packet in [&mut v4, &mut v6] {
                    assert_eq!(leave_tunnel(packet, outer), want.is_some());
                    let ecn = want.unwrap_or(inner);
                    let class = super::super::header::traffic_class(packet).unwrap();
                    assert_eq!(class, (46 << 2) | ecn.bits(), "inner {inner:?}, outer {outer:?}");
                }
                assert_eq!(v6[2..4], [0x12, 0x34], "the flow label");
                let header = Ipv4HeaderSlice::from_slice(&v4).unwrap();
                assert_eq!(header.to_header().calc_header_checksum(), header.header_checksum());
            }
        }
    }

    #[test]
    fn what_is_no_ip_packet_is_dropped_and_a_cut_one_does_no_harm() {
        assert!(!leave_tunnel(&mut [], Ce));
        assert!(!leave_tunnel(&mut [0x00, 0, 0], NotEct));
        let mut cut = [0x45, 2];
        assert!(leave_tunnel(&mut cut, Ce));
        assert_eq!(cut, [0x45, 2]);
    }
}
