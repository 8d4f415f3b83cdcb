//! What follows the outer UDP header: draft -48 section 3.4.
//!
//! The first octet tells: high nibble 4 or 6 is an IP packet; 0 is a shim whose type is the low
//! nibble. Type 0 is a message of the first edition (RFC 6706), which shares the port. Type 1
//! names the inner protocol, Type 2 is a fragment, Type 3 a fragment with a signature. The shim
//! of draft -44 (two octets) has the same bytes as Type 1.

use super::{Reader, WireError};

/// IPv4 in `NextHeader`.
pub const NEXT_HEADER_IPV4: u8 = 4;
/// IPv6 in `NextHeader`.
pub const NEXT_HEADER_IPV6: u8 = 41;
/// Bytes of the Type 2 shim.
pub const FRAGMENT_SHIM: usize = 8;

const TYPE_FIRST_EDITION: u8 = 0;
const TYPE_PROTOCOL: u8 = 1;
const TYPE_FRAGMENT: u8 = 2;
const TYPE_SIGNED: u8 = 3;

/// The fields of the Type 2 shim, which are those of the IPv6 fragment header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FragmentShim {
    /// Protocol of the packet that was fragmented.
    pub next_header: u8,
    /// Where the data belongs, in bytes; a multiple of 8.
    pub offset: u16,
    /// False on the last fragment.
    pub more: bool,
    /// The same in all fragments of a packet.
    pub identification: u32,
}

impl FragmentShim {
    /// The shim as sent. The low three bits of the offset are lost.
    pub fn emit(&self) -> [u8; FRAGMENT_SHIM] {
        let [o0, o1] = ((self.offset & !7) | u16::from(self.more)).to_be_bytes();
        let [i0, i1, i2, i3] = self.identification.to_be_bytes();
        [TYPE_FRAGMENT, self.next_header, o0, o1, i0, i1, i2, i3]
    }

    fn parse(r: &mut Reader<'_>) -> Result<Self, WireError> {
        let next_header = r.u8()?;
        let field = r.u16()?;
        let identification = r.u32()?;
        Ok(Self { next_header, offset: field & !7, more: field & 1 != 0, identification })
    }
}

/// The payload of an outer datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Payload<'a> {
    /// An IPv4 or IPv6 packet. Padding may follow it.
    Packet(&'a [u8]),
    /// Something else than IP (Type 1): GRE, ESP and so on. Not carried by this implementation.
    Protocol {
        /// Which.
        next_header: u8,
        /// It.
        data: &'a [u8],
    },
    /// A fragment of a packet.
    Fragment {
        /// Where it belongs.
        shim: FragmentShim,
        /// A piece of the packet.
        data: &'a [u8],
    },
    /// A fragment with a signature (Type 3), or a whole packet with one. The draft does not say
    /// how long a signature is or how it is made: parsed so far, and refused by forwarders.
    Signed {
        /// Where it belongs.
        shim: FragmentShim,
        /// Signature and data.
        rest: &'a [u8],
    },
    /// A message of RFC 6706: to be dropped without an answer.
    FirstEdition,
}

/// Tells what a payload is.
///
/// # Errors
/// If a shim is cut short, reserved or says something else than the packet behind it.
pub fn demux(payload: &[u8]) -> Result<Payload<'_>, WireError> {
    let mut r = Reader(payload);
    match r.u8()? {
        0x40..=0x4f | 0x60..=0x6f => Ok(Payload::Packet(payload)),
        TYPE_FIRST_EDITION => Ok(Payload::FirstEdition),
        TYPE_PROTOCOL => {
            let next_header = r.u8()?;
            let version = r.0.first().map(|b| b >> 4);
            match (next_header, version) {
                (NEXT_HEADER_IPV4, Some(4)) | (NEXT_HEADER_IPV6, Some(6)) => {
                    Ok(Payload::Packet(r.0))
                }
                (NEXT_HEADER_IPV4 | NEXT_HEADER_IPV6, None) => Err(WireError::Truncated),
                (NEXT_HEADER_IPV4 | NEXT_HEADER_IPV6, Some(_)) => Err(WireError::BadValue),
                _ => Ok(Payload::Protocol { next_header, data: r.0 }),
            }
        }
        TYPE_FRAGMENT => Ok(Payload::Fragment { shim: FragmentShim::parse(&mut r)?, data: r.0 }),
        TYPE_SIGNED => Ok(Payload::Signed { shim: FragmentShim::parse(&mut r)?, rest: r.0 }),
        _ => Err(WireError::Unsupported),
    }
}

/// The Type 1 shim before something that is not IP.
pub fn protocol_shim(next_header: u8) -> [u8; 2] {
    [TYPE_PROTOCOL, next_header]
}

/// `NextHeader` for an IP packet; `None` if it is neither version.
pub fn next_header_of(packet: &[u8]) -> Option<u8> {
    match packet.first()? >> 4 {
        4 => Some(NEXT_HEADER_IPV4),
        6 => Some(NEXT_HEADER_IPV6),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_shims_have_the_golden_bytes_of_the_draft() {
        let first =
            FragmentShim { next_header: 41, offset: 0, more: true, identification: 0x0102_0304 };
        assert_eq!(first.emit(), [0x02, 41, 0x00, 0x01, 1, 2, 3, 4]);
        let last = FragmentShim { offset: 968, more: false, ..first };
        assert_eq!(last.emit(), [0x02, 41, 0x03, 0xc8, 1, 2, 3, 4]);
        assert_eq!(protocol_shim(47), [0x01, 47]);
    }

    #[test]
    fn the_first_octet_tells_what_follows() {
        let v4 = [0x45, 0, 0, 20];
        let v6 = [0x60, 0, 0, 0];
        assert_eq!(demux(&v4), Ok(Payload::Packet(&v4)));
        assert_eq!(demux(&v6), Ok(Payload::Packet(&v6)));
        // RFC 6706 Predirect, P bit set: version and type 0.
        assert_eq!(demux(&[0x00, 0x40, 64, 0]), Ok(Payload::FirstEdition));
        assert_eq!(demux(&[0x01, 41, 0x60, 0]), Ok(Payload::Packet(&[0x60, 0])), "draft -44");
        assert_eq!(
            demux(&[0x01, 47, 0, 0]),
            Ok(Payload::Protocol { next_header: 47, data: &[0, 0] })
        );
        let shim =
            FragmentShim { next_header: 4, offset: 968, more: false, identification: 0xdead_beef };
        let mut fragment = shim.emit().to_vec();
        fragment.push(9);
        assert_eq!(demux(&fragment), Ok(Payload::Fragment { shim, data: &[9] }));
        fragment[0] = 0x03;
        assert_eq!(demux(&fragment), Ok(Payload::Signed { shim, rest: &[9] }));
    }

    #[test]
    fn what_is_reserved_cut_or_contradicts_itself_is_refused() {
        assert_eq!(demux(&[]), Err(WireError::Truncated));
        assert_eq!(demux(&[0x01]), Err(WireError::Truncated));
        assert_eq!(demux(&[0x01, 41]), Err(WireError::Truncated));
        assert_eq!(demux(&[0x01, 41, 0x45]), Err(WireError::BadValue));
        assert_eq!(demux(&[0x01, 4, 0x60]), Err(WireError::BadValue));
        for length in 1..8 {
            assert_eq!(demux(&[2; 8][..length]), Err(WireError::Truncated), "{length} bytes");
            assert_eq!(demux(&[3; 8][..length]), Err(WireError::Truncated), "{length} bytes");
        }
        for first in (0x04..=0x3f).chain(0x50..=0x5f).chain(0x70..=0xff) {
            assert_eq!(demux(&[first; 64]), Err(WireError::Unsupported), "{first:#x}");
        }
    }

    proptest! {
        #[test]
        fn a_shim_survives_the_way(next_header: u8, units in 0u16..8192, more: bool, id: u32) {
            let shim =
                FragmentShim { next_header, offset: units * 8, more, identification: id };
            let bytes = shim.emit();
            prop_assert_eq!(demux(&bytes), Ok(Payload::Fragment { shim, data: &[] }));
        }

        #[test]
        fn no_payload_makes_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = demux(&bytes);
        }
    }
}
