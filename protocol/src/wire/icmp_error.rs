//! ICMP errors about inner packets: RFC 4443 section 2.4 and 3, RFC 792, RFC 1812 section 4.3.
//!
//! When they are sent into the link and not handed to this node's network layer, their source is
//! the unspecified address, and the last AERO node puts one of its own in ([`set_source`]; draft
//! -48 section 3.12). How often they are sent is for the caller to limit (RFC 4443 section
//! 2.4 f).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use etherparse::checksum::Sum16BitWords;
use etherparse::{IpNumber, LaxIpSlice, PacketBuilder};

use super::{WireError, ip};

/// Largest ICMPv6 error (RFC 4443 section 2.4 c).
const LARGEST_V6: usize = 1280;
/// Largest ICMPv4 error (RFC 1812 section 4.3.2.3).
const LARGEST_V4: usize = 576;
/// Hop limit of IPv4 errors.
const TTL_V4: u8 = 64;

/// What an error says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// Too big for the next link: ICMPv6 type 2, ICMPv4 "fragmentation needed and DF set".
    PacketTooBig {
        /// Largest packet that would go.
        mtu: u16,
    },
    /// No route to the destination.
    NoRoute,
    /// The destination is known, and cannot be reached.
    AddressUnreachable,
    /// The hop limit ran out on the way.
    HopLimitExceeded,
}

impl Problem {
    fn icmpv6(self) -> (u8, u8, [u8; 4]) {
        match self {
            Problem::PacketTooBig { mtu } => (2, 0, u32::from(mtu).to_be_bytes()),
            Problem::NoRoute => (1, 0, [0; 4]),
            Problem::AddressUnreachable => (1, 3, [0; 4]),
            Problem::HopLimitExceeded => (3, 0, [0; 4]),
        }
    }

    fn icmpv4(self) -> (u8, u8, [u8; 4]) {
        match self {
            Problem::PacketTooBig { mtu } => {
                let [high, low] = mtu.to_be_bytes();
                (3, 4, [0, 0, high, low])
            }
            Problem::NoRoute => (3, 0, [0; 4]),
            Problem::AddressUnreachable => (3, 1, [0; 4]),
            Problem::HopLimitExceeded => (11, 0, [0; 4]),
        }
    }
}

/// Why no error may be sent about a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Silence {
    /// Not IP, or so short that its sender could not tell what it was.
    Unreadable,
    /// It is an ICMP error or a redirect itself, or a fragment that may belong to one.
    AboutAnError,
    /// Its source is not one node: multicast, unspecified, loopback, broadcast.
    Source,
    /// It went to a multicast or broadcast address.
    Destination,
    /// It may be fragmented by its IPv4 header, so it is never too big.
    MayBeFragmented,
}

/// Builds an error about `packet`, of which the beginning is enough. `source` is an address of
/// this node, of the packet's family, or unspecified.
///
/// # Errors
/// If the standards forbid an error about this packet.
pub fn build(problem: Problem, source: IpAddr, packet: &[u8]) -> Result<Vec<u8>, Silence> {
    let (slice, _) = LaxIpSlice::from_slice(packet).map_err(|_| Silence::Unreadable)?;
    let payload = slice.payload();
    if payload.payload.len() < 8 {
        return Err(Silence::Unreadable);
    }
    match (&slice, source, slice.source_addr(), slice.destination_addr()) {
        (LaxIpSlice::Ipv6(v6), IpAddr::V6(from), IpAddr::V6(to), IpAddr::V6(destination)) => {
            let too_big = matches!(problem, Problem::PacketTooBig { .. });
            // RFC 4443 section 2.4 e.3: path MTU discovery works for multicast too.
            // What is for a link-local address is the link's own: what is wrong with it gets no sign
            // of life.
            if (destination.is_multicast() || destination.is_unicast_link_local()) && !too_big {
                return Err(Silence::Destination);
            }
            if to.is_multicast() || to.is_unspecified() || to.is_loopback() {
                return Err(Silence::Source);
            }
            let later_fragment = payload.fragmented && !is_first_v6(v6.header().slice(), packet);
            if payload.ip_number == IpNumber::IPV6_ICMP {
                let kind = payload.payload.first().copied().unwrap_or(0);
                if later_fragment || kind < 128 || kind == 137 {
                    return Err(Silence::AboutAnError);
                }
            }
            let quote = packet.get(..LARGEST_V6 - 48).unwrap_or(packet);
            ip::icmpv6(from, to, problem.icmpv6(), quote).map_err(|_| Silence::Unreadable)
        }
        (LaxIpSlice::Ipv4(v4), IpAddr::V4(from), IpAddr::V4(to), IpAddr::V4(destination)) => {
            let header = v4.header();
            if matches!(problem, Problem::PacketTooBig { .. }) && !header.dont_fragment() {
                return Err(Silence::MayBeFragmented);
            }
            if destination.is_multicast() || destination.is_broadcast() {
                return Err(Silence::Destination);
            }
            let not_a_node = |a: Ipv4Addr| {
                a.is_multicast() || a.is_broadcast() || a.is_loopback() || a.octets()[0] == 0
            };
            if not_a_node(to) {
                return Err(Silence::Source);
            }
            if header.fragments_offset().value() != 0 {
                return Err(Silence::AboutAnError);
            }
            let kind = payload.payload.first().copied().unwrap_or(0);
            if payload.ip_number == IpNumber::ICMP && matches!(kind, 3 | 4 | 5 | 11 | 12) {
                return Err(Silence::AboutAnError);
            }
            let quote = packet.get(..LARGEST_V4 - 28).unwrap_or(packet);
            let (kind, code, head) = problem.icmpv4();
            let builder = PacketBuilder::ipv4(from.octets(), to.octets(), TTL_V4)
                .icmpv4_raw(kind, code, head);
            let mut error = Vec::with_capacity(builder.size(quote.len()));
            builder.write(&mut error, quote).map_err(|_| Silence::Unreadable)?;
            Ok(error)
        }
        _ => Err(Silence::Unreadable),
    }
}

/// Whether the fragment header right behind the IPv6 header has offset zero. Fragments behind
/// other extension headers count as later ones: silence is the safe side.
fn is_first_v6(header: &[u8], packet: &[u8]) -> bool {
    header.get(6) == Some(&44)
        && packet
            .get(42..44)
            .is_some_and(|f| f.first() == Some(&0) && f.last().is_some_and(|b| b & 0xf8 == 0))
}

/// The destination of the packet that an ICMP error quotes, if `packet` is such an error from
/// the unspecified address.
pub fn quoted_destination_if_anonymous(packet: &[u8]) -> Option<IpAddr> {
    let quote = match packet.first()? >> 4 {
        6 if packet.get(8..24)? == [0; 16] && packet.get(6) == Some(&58) => {
            (*packet.get(40)? < 128).then(|| packet.get(48..))??
        }
        4 if packet.get(12..16)? == [0; 4] && packet.get(9) == Some(&1) => {
            let header = usize::from(packet.first()? & 0xf) * 4;
            let kind = *packet.get(header)?;
            matches!(kind, 3 | 11 | 12).then(|| packet.get(header + 8..))??
        }
        _ => return None,
    };
    match quote.first()? >> 4 {
        6 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(quote.get(24..40)?).ok()?).into()),
        4 => Some(Ipv4Addr::from(<[u8; 4]>::try_from(quote.get(16..20)?).ok()?).into()),
        _ => None,
    }
}

/// Puts an address of this node into an error that left the unspecified address empty, and makes
/// its checksum right again.
///
/// # Errors
/// If the packet is not such an error, or of the other family.
pub fn set_source(packet: &mut [u8], source: IpAddr) -> Result<(), WireError> {
    let (place, checksum_at) = match source {
        IpAddr::V6(_) => (8..24, 42),
        IpAddr::V4(_) => (12..16, 10),
    };
    let new: &[u8] = match &source {
        IpAddr::V6(a) => &a.octets(),
        IpAddr::V4(a) => &a.octets(),
    };
    if quoted_destination_if_anonymous(packet).is_none()
        || (packet.first().map(|b| b >> 4) == Some(6)) != source.is_ipv6()
    {
        return Err(WireError::Unsupported);
    }
    packet.get_mut(place).ok_or(WireError::Truncated)?.copy_from_slice(new);
    // The old address was all zeros, so its part of the sum is zero (RFC 1624).
    let field = packet.get_mut(checksum_at..checksum_at + 2).ok_or(WireError::Truncated)?;
    let old: [u8; 2] = (&*field).try_into().map_err(|_| WireError::Truncated)?;
    let mut sum = Sum16BitWords::new().add_2bytes((!u16::from_be_bytes(old)).to_be_bytes());
    let sum = match source {
        IpAddr::V6(a) => sum.add_16bytes(a.octets()),
        IpAddr::V4(a) => sum.add_4bytes(a.octets()),
    };
    field.copy_from_slice(&sum.ones_complement().to_ne_bytes());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::{Packet, Payload};
    use etherparse::Ipv4HeaderSlice;

    fn v6(source: &str, destination: &str, payload: usize) -> Vec<u8> {
        let (s, d): (Ipv6Addr, Ipv6Addr) = (source.parse().unwrap(), destination.parse().unwrap());
        let builder = PacketBuilder::ipv6(s.octets(), d.octets(), 64).udp(1000, 2000);
        let mut packet = Vec::new();
        builder.write(&mut packet, &vec![7; payload]).unwrap();
        packet
    }

    fn v4(source: &str, destination: &str, payload: usize) -> Vec<u8> {
        let (s, d): (Ipv4Addr, Ipv4Addr) = (source.parse().unwrap(), destination.parse().unwrap());
        let builder = PacketBuilder::ipv4(s.octets(), d.octets(), 64).udp(1000, 2000);
        let mut packet = Vec::new();
        builder.write(&mut packet, &vec![7; payload]).unwrap();
        packet[6] &= !0x40;
        packet
    }

    const HOST: &str = "2001:db8:0:1::1";
    const PEER: &str = "2001:db8:0:2::1";
    const ANY6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);
    const ANY4: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    const TOO_BIG: Problem = Problem::PacketTooBig { mtu: 1500 };

    #[test]
    fn a_packet_too_big_quotes_as_much_as_fits_1280_bytes_and_has_a_right_checksum() {
        let packet = v6(HOST, PEER, 3000);
        let error = build(TOO_BIG, PEER.parse().unwrap(), &packet).unwrap();
        assert_eq!(error.len(), 1280);
        let parsed = Packet::parse(&error).unwrap();
        assert_eq!(parsed.destination, HOST.parse::<Ipv6Addr>().unwrap());
        let Payload::Icmpv6 { kind: 2, code: 0, body } = parsed.payload else {
            panic!("{parsed:?}")
        };
        assert_eq!(body[..4], 1500u32.to_be_bytes());
        assert_eq!(body[4..], packet[..1232]);
    }

    #[test]
    fn the_ipv4_error_has_the_golden_bytes_of_rfc_1191() {
        let mut packet = v4("10.1.0.1", "10.2.0.1", 1600);
        packet[6] |= 0x40;
        let error = build(TOO_BIG, "10.2.0.1".parse().unwrap(), &packet).unwrap();
        assert_eq!(error.len(), 576);
        assert_eq!(error[20..22], [3, 4]);
        assert_eq!(error[24..28], [0, 0, 0x05, 0xdc]);
        let header = Ipv4HeaderSlice::from_slice(&error).unwrap();
        assert_eq!(header.to_header().calc_header_checksum(), header.header_checksum());
        let whole = Sum16BitWords::new().add_slice(&error[20..]).ones_complement();
        assert_eq!(whole, 0, "the sum over a message with a right checksum");
    }

    #[test]
    fn every_problem_has_its_type_and_code() {
        let (six, four) = (v6(HOST, PEER, 20), v4("10.1.0.1", "10.2.0.1", 20));
        let cases = [
            (Problem::NoRoute, [1, 0], [3, 0]),
            (Problem::AddressUnreachable, [1, 3], [3, 1]),
            (Problem::HopLimitExceeded, [3, 0], [11, 0]),
        ];
        for (problem, want6, want4) in cases {
            assert_eq!(build(problem, ANY6, &six).unwrap()[40..42], want6);
            assert_eq!(build(problem, ANY4, &four).unwrap()[20..22], want4);
        }
    }

    #[test]
    fn nothing_is_said_where_rfc_4443_or_rfc_1812_forbid_it() {
        let cases: Vec<(&str, Problem, Vec<u8>, Silence)> = vec![
            ("to a group", Problem::NoRoute, v6(HOST, "ff05::1", 9), Silence::Destination),
            ("from a group", TOO_BIG, v6("ff05::1", PEER, 9), Silence::Source),
            ("from nobody", TOO_BIG, v6("::", PEER, 9), Silence::Source),
            (
                "to an IPv4 group",
                Problem::NoRoute,
                v4("10.1.0.1", "224.0.0.9", 9),
                Silence::Destination,
            ),
            ("from 0.0.0.0", Problem::NoRoute, v4("0.0.0.0", "10.2.0.1", 9), Silence::Source),
            ("from 127.1", Problem::NoRoute, v4("127.0.0.1", "10.2.0.1", 9), Silence::Source),
            ("DF is clear", TOO_BIG, v4("10.1.0.1", "10.2.0.1", 9), Silence::MayBeFragmented),
            ("cut", TOO_BIG, v6(HOST, PEER, 9)[..45].to_vec(), Silence::Unreadable),
            ("not IP", TOO_BIG, vec![0; 60], Silence::Unreadable),
        ];
        for (name, problem, packet, silence) in cases {
            let source = if packet[0] >> 4 == 4 { ANY4 } else { ANY6 };
            assert_eq!(build(problem, source, &packet), Err(silence), "{name}");
        }
        assert!(build(TOO_BIG, ANY6, &v6(HOST, "ff05::1", 9)).is_ok(), "RFC 4443 2.4 e.3");
    }

    #[test]
    fn no_error_is_sent_about_an_error_or_a_redirect_but_one_about_an_echo_is() {
        for (kind, silent) in [(1, true), (2, true), (127, true), (137, true), (128, false)] {
            let (s, d) = (HOST.parse().unwrap(), PEER.parse().unwrap());
            let packet = ip::icmpv6(s, d, (kind, 0, [0; 4]), &[0; 40]).unwrap();
            let outcome = build(Problem::NoRoute, ANY6, &packet);
            assert_eq!(outcome == Err(Silence::AboutAnError), silent, "type {kind}");
        }
        let error4 =
            build(Problem::NoRoute, "10.2.0.1".parse().unwrap(), &v4("10.1.0.1", "10.9.0.1", 9))
                .unwrap();
        assert_eq!(build(Problem::NoRoute, ANY4, &error4), Err(Silence::AboutAnError));
        let mut later = v4("10.1.0.1", "10.2.0.1", 40);
        later[7] = 5;
        assert_eq!(build(Problem::NoRoute, ANY4, &later), Err(Silence::AboutAnError));
    }

    #[test]
    fn an_error_without_a_source_gets_one_and_keeps_a_right_checksum() {
        let mut error = build(Problem::NoRoute, ANY6, &v6(HOST, PEER, 100)).unwrap();
        assert_eq!(quoted_destination_if_anonymous(&error), Some(PEER.parse().unwrap()));
        set_source(&mut error, "2001:db8:77::1".parse().unwrap()).unwrap();
        let parsed = Packet::parse(&error).unwrap();
        assert_eq!(parsed.source, "2001:db8:77::1".parse::<Ipv6Addr>().unwrap());
        assert_eq!(quoted_destination_if_anonymous(&error), None);
        assert_eq!(set_source(&mut error, PEER.parse().unwrap()), Err(WireError::Unsupported));
        let mut error = build(Problem::NoRoute, ANY4, &v4("10.1.0.1", "10.2.0.1", 9)).unwrap();
        set_source(&mut error, "10.2.0.1".parse().unwrap()).unwrap();
        let header = Ipv4HeaderSlice::from_slice(&error).unwrap();
        assert_eq!(header.source_addr().to_string(), "10.2.0.1");
        assert_eq!(header.to_header().calc_header_checksum(), header.header_checksum());
    }

    #[test]
    fn a_data_packet_from_nobody_is_no_error() {
        assert_eq!(quoted_destination_if_anonymous(&v6("::", PEER, 100)), None);
        let echo =
            ip::icmpv6(Ipv6Addr::UNSPECIFIED, PEER.parse().unwrap(), (128, 0, [0; 4]), &[6; 60]);
        assert_eq!(quoted_destination_if_anonymous(&echo.unwrap()), None);
    }
}
