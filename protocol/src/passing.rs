//! Control packets that are for another node of the link: Servers and Relays pass them on hop by
//! hop, below IP, so that their hop limit stays as it is (draft -48 sections 3.5 and 3.11).

use std::net::Ipv6Addr;

use crate::wire::WireError;
use crate::wire::ip::{DHCP_CLIENT_PORT, DHCP_SERVER_PORT, Packet, Payload};

/// What a passed packet is, as far as it matters on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Passing {
    /// Neighbor Solicitation, solicited or unsolicited Neighbor Advertisement.
    Neighbor,
    /// Predirect or Redirect.
    Redirect,
    /// ICMPv6 error or echo.
    Icmp,
    /// A Client's message to a Server that is not its present one: a Release.
    ToServer,
    /// The answer to it.
    ToClient,
}

/// Sorts a packet. Router messages are between direct neighbours only, since a Client trusts
/// whatever its Server hands it; everything else that is not named here has no business on the
/// link-local addresses of the link.
///
/// # Errors
/// If it may not be passed on.
pub(crate) fn sort(packet: &Packet<'_>) -> Result<Passing, WireError> {
    if packet.destination.is_multicast() || !packet.source.is_unicast_link_local() {
        return Err(WireError::BadAddress);
    }
    match packet.payload {
        Payload::Icmpv6 { kind: 135 | 136, .. } => Ok(Passing::Neighbor),
        Payload::Icmpv6 { kind: 137, .. } => Ok(Passing::Redirect),
        Payload::Icmpv6 { kind: 1..=4 | 128 | 129, .. } => Ok(Passing::Icmp),
        Payload::Udp { destination: DHCP_SERVER_PORT, .. } if is_identity(packet.destination) => {
            Ok(Passing::ToServer)
        }
        Payload::Udp { source: DHCP_SERVER_PORT, destination: DHCP_CLIENT_PORT, .. }
            if is_identity(packet.source) =>
        {
            Ok(Passing::ToClient)
        }
        _ => Err(WireError::Unsupported),
    }
}

/// True for the link-local address of a Server or Relay: `fe80::/96` without the anycast address.
pub(crate) fn is_identity(address: Ipv6Addr) -> bool {
    let bits = u128::from(address);
    bits >> 32 == 0xfe80u128 << 80 && bits & u128::from(u32::MAX) != 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip;

    #[test]
    fn an_identity_is_in_the_range_of_servers_and_is_not_the_anycast_address() {
        for (text, expected) in [
            ("fe80::1", true),
            ("fe80::c000:20b", true),
            ("fe80::", false),
            ("fe80::2001:db8:0:1", false),
            ("fe80::ffff:192.0.2.1", false),
            ("fe81::1", false),
        ] {
            assert_eq!(is_identity(text.parse().unwrap()), expected, "{text}");
        }
    }

    #[test]
    fn router_messages_and_answers_of_anybody_but_a_server_are_not_passed_on() {
        let client: Ipv6Addr = "fe80::2001:db8:0:1".parse().unwrap();
        let other: Ipv6Addr = "fe80::2001:db8:0:2".parse().unwrap();
        let server: Ipv6Addr = "fe80::2".parse().unwrap();
        let sorted = |bytes: Vec<u8>| sort(&Packet::parse(&bytes).unwrap());
        let icmp = |kind| ip::icmpv6(client, other, (kind, 0, [0; 4]), &[0; 16]).unwrap();
        assert_eq!(sorted(icmp(135)), Ok(Passing::Neighbor));
        assert_eq!(sorted(icmp(137)), Ok(Passing::Redirect));
        assert_eq!(sorted(icmp(128)), Ok(Passing::Icmp));
        for kind in [133, 134, 143] {
            assert_eq!(sorted(icmp(kind)), Err(WireError::Unsupported), "type {kind}");
        }
        let udp = |from, to| sorted(ip::udp(from, to, b"x").unwrap());
        assert_eq!(udp((client, 546), (server, 547)), Ok(Passing::ToServer));
        assert_eq!(udp((server, 547), (client, 546)), Ok(Passing::ToClient));
        let forged = udp((client, 547), (other, 546));
        assert_eq!(forged, Err(WireError::Unsupported), "a Reply by a Client");
        let all = "ff02::1:2".parse().unwrap();
        assert_eq!(udp((client, 546), (all, 547)), Err(WireError::BadAddress));
    }
}
