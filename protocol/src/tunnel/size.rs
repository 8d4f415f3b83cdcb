//! Which packets go whole and which in pieces: draft -48 section 3.10.

use super::{GUARANTEED, LEAST_MTU, encaps, overhead};

/// What is known about the way to a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// The underlay to the neighbour is IPv6.
    pub ipv6_underlay: bool,
    /// Inner packets of up to this size are known to get there whole; 0 if none are.
    pub confirmed: usize,
    /// Outer packets above this size cannot get there: the underlay interface's MTU, or what a
    /// Packet Too Big has said.
    pub underlay_mtu: usize,
}

/// How to send an inner packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Plan {
    /// In one outer packet.
    Whole {
        /// The outer IPv4 header says Don't Fragment. (IPv6 has no such bit; the sender does not
        /// fragment then either.)
        dont_fragment: bool,
    },
    /// In fragments of the tunnel, each of at most 1024 bytes outside: exactly two for a user's
    /// packet, the fewest for a control message.
    Fragments,
    /// Fragments of the inner IPv4 packet itself.
    InnerFragments,
    /// Not at all; the source is told this MTU.
    TooBig {
        /// Largest inner packet that goes.
        mtu: u16,
    },
}

/// The plan for a user's packet of IP version 4 or 6.
pub fn plan(packet: &[u8], reach: &Reach) -> Plan {
    let length = packet.len();
    if length <= reach.confirmed {
        return Plan::Whole { dont_fragment: true };
    }
    let encaps = encaps(reach.ipv6_underlay);
    if length <= LEAST_MTU - encaps {
        return Plan::Whole { dont_fragment: false };
    }
    if length <= GUARANTEED {
        return Plan::Fragments;
    }
    let ipv4 = packet.first().is_some_and(|b| b >> 4 == 4);
    let may_be_fragmented = packet.get(6).is_some_and(|b| b & 0x40 == 0);
    if ipv4 && may_be_fragmented {
        return Plan::InnerFragments;
    }
    if length + overhead(reach.ipv6_underlay) <= reach.underlay_mtu {
        return Plan::Whole { dont_fragment: true };
    }
    Plan::TooBig { mtu: largest(reach.underlay_mtu, reach.ipv6_underlay) }
}

/// The plan for a control message.
pub fn plan_control(length: usize, ipv6_underlay: bool) -> Plan {
    if length <= LEAST_MTU - encaps(ipv6_underlay) {
        Plan::Whole { dont_fragment: false }
    } else {
        Plan::Fragments
    }
}

/// The MTU to tell a source of inner packets, from the MTU of the underlay: max(1500, MTU less
/// ENCAPS).
pub fn largest(underlay_mtu: usize, ipv6_underlay: bool) -> u16 {
    let room = underlay_mtu.saturating_sub(encaps(ipv6_underlay)).max(GUARANTEED);
    u16::try_from(room).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v6(length: usize) -> Vec<u8> {
        let mut p = vec![0; length];
        p[0] = 0x60;
        p
    }

    fn v4(length: usize, dont_fragment: bool) -> Vec<u8> {
        let mut p = vec![0; length];
        p[0] = 0x45;
        p[6] = if dont_fragment { 0x40 } else { 0 };
        p
    }

    const UNKNOWN4: Reach = Reach { ipv6_underlay: false, confirmed: 0, underlay_mtu: 1500 };
    const UNKNOWN6: Reach = Reach { ipv6_underlay: true, confirmed: 0, underlay_mtu: 1500 };
    const LOOSE: Plan = Plan::Whole { dont_fragment: false };
    const TIGHT: Plan = Plan::Whole { dont_fragment: true };

    #[test]
    fn on_an_unknown_path_the_table_of_section_3_10_holds() {
        let jumbo = Reach { underlay_mtu: 9000, ..UNKNOWN4 };
        let cases = [
            ("small", v6(1244), UNKNOWN4, LOOSE),
            ("small, over IPv6", v6(1224), UNKNOWN6, LOOSE),
            ("above 1280 - ENCAPS", v6(1245), UNKNOWN4, Plan::Fragments),
            ("above 1280 - ENCAPS, over IPv6", v6(1225), UNKNOWN6, Plan::Fragments),
            ("1500", v6(1500), UNKNOWN4, Plan::Fragments),
            ("1500, IPv4", v4(1500, true), UNKNOWN4, Plan::Fragments),
            ("1501, no room", v6(1501), UNKNOWN4, Plan::TooBig { mtu: 1500 }),
            ("1501, IPv4, DF", v4(1501, true), UNKNOWN4, Plan::TooBig { mtu: 1500 }),
            ("1501, IPv4, may be fragmented", v4(1501, false), UNKNOWN4, Plan::InnerFragments),
            ("fragmented even where it fits", v4(1501, false), jumbo, Plan::InnerFragments),
            ("1501, room", v6(1501), jumbo, TIGHT),
            ("all the room", v6(8972), jumbo, TIGHT),
            ("one more", v6(8973), jumbo, Plan::TooBig { mtu: 8964 }),
        ];
        for (name, packet, reach, want) in cases {
            assert_eq!(plan(&packet, &reach), want, "{name}");
        }
    }

    #[test]
    fn what_is_known_to_get_through_goes_whole_with_df() {
        let reach = Reach { confirmed: 1472, ..UNKNOWN4 };
        assert_eq!(plan(&v6(1472), &reach), TIGHT);
        assert_eq!(plan(&v6(100), &reach), TIGHT);
        assert_eq!(plan(&v6(1473), &reach), Plan::Fragments);
    }

    #[test]
    fn control_goes_whole_while_it_surely_fits_and_in_fragments_above() {
        assert_eq!(plan_control(1244, false), LOOSE);
        assert_eq!(plan_control(1245, false), Plan::Fragments);
        assert_eq!(plan_control(1225, true), Plan::Fragments);
        assert_eq!(plan_control(8000, true), Plan::Fragments);
    }

    #[test]
    fn nobody_is_told_an_mtu_below_1500() {
        assert_eq!(largest(1280, true), 1500);
        assert_eq!(largest(0, false), 1500);
        assert_eq!(largest(9000, true), 8944);
        assert_eq!(largest(70_000, true), u16::MAX);
    }
}
