//! The inner IPv6 packet around a control message. Headers and checksums are `etherparse`'s.

use std::net::Ipv6Addr;

use etherparse::{Icmpv6Slice, IpNumber, Ipv6HeaderSlice, PacketBuilder, UdpSlice};

use super::WireError;

/// Every control message travels with this hop limit, so that it is known to come from the link.
pub const HOP_LIMIT: u8 = 255;
/// UDP port of DHCPv6 clients.
pub const DHCP_CLIENT_PORT: u16 = 546;
/// UDP port of DHCPv6 servers.
pub const DHCP_SERVER_PORT: u16 = 547;

/// A control packet, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet<'a> {
    /// Inner source.
    pub source: Ipv6Addr,
    /// Inner destination.
    pub destination: Ipv6Addr,
    /// Inner hop limit.
    pub hop_limit: u8,
    /// What it carries.
    pub payload: Payload<'a>,
}

/// The message in a control packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Payload<'a> {
    /// ICMPv6, checksum verified.
    Icmpv6 {
        /// ICMPv6 type.
        kind: u8,
        /// ICMPv6 code.
        code: u8,
        /// All behind the checksum: the 4 bytes that belong to the type, then the body.
        body: &'a [u8],
    },
    /// UDP, checksum verified.
    Udp {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
        /// The datagram.
        data: &'a [u8],
    },
}

impl<'a> Packet<'a> {
    /// Takes a packet apart. Bytes behind the end that the IPv6 header gives are ignored: probes
    /// of the path MTU are padded there (draft -48 section 3.10).
    ///
    /// # Errors
    /// If it is cut short, has a wrong checksum or carries neither ICMPv6 nor UDP directly behind
    /// the IPv6 header (RFC 6980 forbids a fragment header there).
    pub fn parse(bytes: &'a [u8]) -> Result<Self, WireError> {
        let header = Ipv6HeaderSlice::from_slice(bytes).map_err(|_| WireError::Truncated)?;
        let length = usize::from(header.payload_length());
        let rest = bytes.get(40..40 + length).ok_or(WireError::Truncated)?;
        let payload = match header.next_header() {
            IpNumber::IPV6_ICMP => {
                let icmp = Icmpv6Slice::from_slice(rest).map_err(|_| WireError::Truncated)?;
                if !icmp.is_checksum_valid(header.source(), header.destination()) {
                    return Err(WireError::BadChecksum);
                }
                let body = rest.get(4..).ok_or(WireError::Truncated)?;
                Payload::Icmpv6 { kind: icmp.type_u8(), code: icmp.code_u8(), body }
            }
            IpNumber::UDP => {
                let udp = UdpSlice::from_slice(rest).map_err(|_| WireError::Truncated)?;
                let expected = udp
                    .to_header()
                    .calc_checksum_ipv6_raw(header.source(), header.destination(), udp.payload())
                    .map_err(|_| WireError::BadLength)?;
                if udp.checksum() != expected {
                    return Err(WireError::BadChecksum);
                }
                Payload::Udp {
                    source: udp.source_port(),
                    destination: udp.destination_port(),
                    data: udp.payload(),
                }
            }
            _ => return Err(WireError::Unsupported),
        };
        Ok(Self {
            source: header.source_addr(),
            destination: header.destination_addr(),
            hop_limit: header.hop_limit(),
            payload,
        })
    }
}

/// Builds a UDP packet.
pub fn udp(
    source: (Ipv6Addr, u16),
    destination: (Ipv6Addr, u16),
    data: &[u8],
) -> Result<Vec<u8>, WireError> {
    let builder = PacketBuilder::ipv6(source.0.octets(), destination.0.octets(), HOP_LIMIT)
        .udp(source.1, destination.1);
    let mut packet = Vec::with_capacity(builder.size(data.len()));
    builder.write(&mut packet, data).map_err(|_| WireError::BadLength)?;
    Ok(packet)
}

/// Builds an ICMPv6 packet. `head` is the four bytes behind the checksum.
pub fn icmpv6(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    (kind, code, head): (u8, u8, [u8; 4]),
    body: &[u8],
) -> Result<Vec<u8>, WireError> {
    let builder = PacketBuilder::ipv6(source.octets(), destination.octets(), HOP_LIMIT)
        .icmpv6_raw(kind, code, head);
    let mut packet = Vec::with_capacity(builder.size(body.len()));
    builder.write(&mut packet, body).map_err(|_| WireError::BadLength)?;
    Ok(packet)
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0x2001, 0xdb8, 0, 1);
    const B: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

    #[test]
    fn a_packet_survives_the_way_and_padding_behind_it_is_ignored() {
        let mut packet = udp((A, 546), (B, 547), b"hello").unwrap();
        packet.extend([0; 100]);
        let parsed = Packet::parse(&packet).unwrap();
        assert_eq!((parsed.source, parsed.destination, parsed.hop_limit), (A, B, 255));
        assert_eq!(parsed.payload, Payload::Udp { source: 546, destination: 547, data: b"hello" });
        let packet = icmpv6(A, B, (135, 0, [1, 2, 3, 4]), b"body").unwrap();
        let parsed = Packet::parse(&packet).unwrap();
        assert_eq!(
            parsed.payload,
            Payload::Icmpv6 { kind: 135, code: 0, body: b"\x01\x02\x03\x04body" }
        );
    }

    #[test]
    fn a_flipped_bit_anywhere_behind_the_header_is_noticed() {
        let packet = icmpv6(A, B, (135, 0, [0; 4]), &[7; 24]).unwrap();
        for byte in 40..packet.len() {
            let mut bad = packet.clone();
            bad[byte] ^= 1;
            assert_eq!(Packet::parse(&bad), Err(WireError::BadChecksum), "byte {byte}");
        }
    }

    #[test]
    fn a_fragment_header_is_refused_and_a_cut_packet_too() {
        let mut packet = udp((A, 546), (B, 547), b"hello").unwrap();
        assert_eq!(Packet::parse(&packet[..44]), Err(WireError::Truncated));
        packet[6] = 44;
        assert_eq!(Packet::parse(&packet), Err(WireError::Unsupported));
    }
}
