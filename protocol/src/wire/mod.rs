//! Bytes: what travels inside UDP 8060. Parsing and emitting only, no state.
//!
//! A datagram holds one inner packet, as a rule without any header between
//! ([`encapsulation`]: draft -48 section 3.4). Control messages are IPv6 packets between
//! link-local addresses: Neighbor Discovery ([`nd`]) and DHCPv6 ([`dhcpv6`]). [`icmp_error`]s
//! are about users' packets.

pub mod aero_options;
pub mod dhcpv6;
pub mod dhcpv6_relay;
mod dhcpv6_walk;
pub mod encapsulation;
pub mod icmp_error;
pub mod ip;
pub mod nd;
mod nd_options;
pub mod rkap;
pub mod signature;

/// Why bytes were not understood. The names are those of the drop counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum WireError {
    /// Shorter than its headers say or need.
    #[error("cut short")]
    Truncated,
    /// A length field that does not fit what it counts.
    #[error("a length field does not fit")]
    BadLength,
    /// A checksum is wrong.
    #[error("wrong checksum")]
    BadChecksum,
    /// Neighbor Discovery with a hop limit other than 255: it came from another link
    /// (RFC 4861 section 7.1).
    #[error("hop limit is not 255")]
    BadHopLimit,
    /// An address that the message may not have.
    #[error("an address that this message may not have")]
    BadAddress,
    /// A value that the standard forbids.
    #[error("a value that the standard forbids")]
    BadValue,
    /// Options nested deeper than any standard asks for.
    #[error("options nested too deep")]
    TooDeep,
    /// The answer would be longer than the message of a sender that proved nothing.
    #[error("the answer would be longer than the question")]
    WouldAmplify,
    /// An answer that is not signed as this Client's Servers sign, or that answers nothing.
    #[error("not signed with this client's key, or no answer to what it asked")]
    BadSignature,
    /// Not a message that an AERO node handles.
    #[error("not an AERO control message")]
    Unsupported,
}

/// What the payload of an outer datagram is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// A user's packet, to be forwarded by the table.
    Data,
    /// Neighbor Discovery or DHCPv6 between AERO nodes, for the engine.
    Control,
    /// A shim or something unknown.
    Other,
}

/// Sorts a payload by its first bytes. Control is what has a link-local or the unspecified
/// source and a link-local or multicast destination; everything else that is IP is data.
pub fn classify(payload: &[u8]) -> Class {
    match payload.first().map(|b| b >> 4) {
        Some(4) => Class::Data,
        Some(6) => {
            let (Some(source), Some(destination)) = (payload.get(8..24), payload.get(24..40))
            else {
                return Class::Other;
            };
            let link_local = |a: &[u8]| matches!(a, [0xfe, b, ..] if b & 0xc0 == 0x80);
            let unspecified = source.iter().all(|b| *b == 0);
            let to_link = link_local(destination) || destination.first() == Some(&0xff);
            if (link_local(source) || unspecified) && to_link {
                Class::Control
            } else {
                Class::Data
            }
        }
        _ => Class::Other,
    }
}

/// Reads big-endian numbers off the front of a slice.
pub(crate) struct Reader<'a>(pub(crate) &'a [u8]);

impl<'a> Reader<'a> {
    pub(crate) fn take(&mut self, n: usize) -> Result<&'a [u8], WireError> {
        let (head, tail) = self.0.split_at_checked(n).ok_or(WireError::Truncated)?;
        self.0 = tail;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N], WireError> {
        self.take(N)?.try_into().map_err(|_| WireError::Truncated)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, WireError> {
        Ok(u8::from_be_bytes(self.array()?))
    }

    pub(crate) fn u16(&mut self) -> Result<u16, WireError> {
        Ok(u16::from_be_bytes(self.array()?))
    }

    pub(crate) fn u32(&mut self) -> Result<u32, WireError> {
        Ok(u32::from_be_bytes(self.array()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, WireError> {
        Ok(u64::from_be_bytes(self.array()?))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(source: &str, destination: &str) -> Vec<u8> {
        let mut p = vec![0x60, 0, 0, 0, 0, 0, 58, 255];
        p.extend(source.parse::<std::net::Ipv6Addr>().unwrap().octets());
        p.extend(destination.parse::<std::net::Ipv6Addr>().unwrap().octets());
        p
    }

    #[test]
    fn only_what_stays_on_the_link_is_control() {
        let cases = [
            ("fe80::1", "fe80::2001:db8:0:1", Class::Control),
            ("fe80::ffff:ffff:ffff:ffff", "ff02::1:2", Class::Control),
            ("::", "ff02::1:2", Class::Control),
            ("2001:db8:0:1::1", "2001:db8:0:2::1", Class::Data),
            ("fe80::1", "2001:db8:0:2::1", Class::Data),
            ("2001:db8:0:1::1", "ff02::1", Class::Data),
        ];
        for (source, destination, class) in cases {
            assert_eq!(classify(&packet(source, destination)), class, "{source} -> {destination}");
        }
        assert_eq!(classify(&[0x45, 0, 0, 20]), Class::Data);
        assert_eq!(classify(&[0x00, 41]), Class::Other);
        assert_eq!(classify(&[0x60]), Class::Other);
        assert_eq!(classify(&[]), Class::Other);
    }
}
