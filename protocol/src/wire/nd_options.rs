//! Options of Neighbor Discovery messages: RFC 4861 section 4.6, RFC 3971 section 5.3 (Timestamp,
//! Nonce), and the source/target link-layer address option of draft -48 section 3.5.

use std::net::IpAddr;
use std::time::Duration;

use super::{Reader, WireError};
use crate::address::{Epoch, LinkLayerAddress};

const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;
const REDIRECTED_HEADER: u8 = 4;
const TIMESTAMP: u8 = 13;
const NONCE: u8 = 14;
/// RFC 4727 experiment 1; holds our epoch, told from other uses by [`EPOCH_TAG`].
const EXPERIMENT: u8 = 253;
const EPOCH_TAG: [u8; 6] = *b"aeroep";

/// Source or target link-layer address option, draft -48: 24 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkLayerOption {
    /// Which of the neighbour's underlay interfaces.
    pub link_id: u8,
    /// 255 is best, 1 worst, 0 says that the link is not to be used.
    pub preference: u8,
    /// `None` (port and address zero) from a Client: its Server knows better and fills it in.
    pub address: Option<LinkLayerAddress>,
}

/// An option of a Neighbor Discovery message. Unknown ones are skipped (RFC 4861 section 4.6).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NdOption {
    /// Source link-layer address.
    SourceLinkLayer(LinkLayerOption),
    /// Target link-layer address.
    TargetLinkLayer(LinkLayerOption),
    /// The packet that made somebody send a Predirect or Redirect, cut to fit: at least its IP
    /// header (RFC 4861 section 4.6.3).
    RedirectedHeader(Vec<u8>),
    /// Time since 1970 at the sender, RFC 3971 section 5.3.1: 48 bits of seconds, 16 of fraction.
    Timestamp(Duration),
    /// Nonce, RFC 3971 section 5.3.2: at least 6 bytes.
    Nonce(Vec<u8>),
    /// The epoch of the mapping that the message is about. Ours: tells a late message of an
    /// earlier move from one about the present holder.
    Epoch(Epoch),
}

/// `None` for an option that is not for us.
pub(super) fn parse_option(r: &mut Reader<'_>) -> Result<Option<NdOption>, WireError> {
    let kind = r.u8()?;
    let length = usize::from(r.u8()?) * 8;
    let body = r.take(length.checked_sub(2).ok_or(WireError::BadLength)?)?;
    Ok(match (kind, length) {
        (SOURCE_LINK_LAYER, 24) => Some(NdOption::SourceLinkLayer(parse_link_layer(body)?)),
        (TARGET_LINK_LAYER, 24) => Some(NdOption::TargetLinkLayer(parse_link_layer(body)?)),
        (REDIRECTED_HEADER, _) => {
            body.get(6..).map(|packet| NdOption::RedirectedHeader(packet.to_vec()))
        }
        (TIMESTAMP, 16) => {
            let mut r = Reader(body);
            r.take(6)?;
            let value = r.u64()?;
            let nanos = ((value & 0xffff) * 1_000_000_000) >> 16;
            Some(NdOption::Timestamp(Duration::new(
                value >> 16,
                u32::try_from(nanos).map_err(|_| WireError::BadValue)?,
            )))
        }
        (NONCE, _) => Some(NdOption::Nonce(body.to_vec())),
        (EXPERIMENT, 16) => match body.strip_prefix(&EPOCH_TAG) {
            Some(rest) => Some(NdOption::Epoch(Epoch(Reader(rest).u64()?))),
            None => None,
        },
        _ => None,
    })
}

fn parse_link_layer(body: &[u8]) -> Result<LinkLayerOption, WireError> {
    let mut r = Reader(body);
    r.u16()?;
    let (link_id, preference, port) = (r.u8()?, r.u8()?, r.u16()?);
    let ip = IpAddr::from(r.array::<16>()?);
    let address = (port != 0 || !ip.is_unspecified()).then(|| LinkLayerAddress::new(ip, port));
    Ok(LinkLayerOption { link_id, preference, address })
}

pub(super) fn emit_option(option: &NdOption, out: &mut Vec<u8>) -> Result<(), WireError> {
    match option {
        NdOption::SourceLinkLayer(o) => emit_link_layer(SOURCE_LINK_LAYER, o, out),
        NdOption::TargetLinkLayer(o) => emit_link_layer(TARGET_LINK_LAYER, o, out),
        NdOption::RedirectedHeader(packet) => {
            // Whole units only, as far as the IP header allows: readers cannot tell padding from
            // the packet's own bytes (found by tshark).
            let whole = packet.len() & !7;
            let quoted = packet.get(..whole).filter(|q| q.len() >= 24).unwrap_or(packet);
            emit_padded(REDIRECTED_HEADER, &[0; 6], quoted, out)?;
        }
        NdOption::Timestamp(since_1970) => {
            // Rounded up, as parsing rounds down: what is passed on stays the same.
            let fraction = (u64::from(since_1970.subsec_nanos()) << 16).div_ceil(1_000_000_000);
            let value = (since_1970.as_secs() << 16).saturating_add(fraction);
            emit_padded(TIMESTAMP, &[0; 6], &value.to_be_bytes(), out)?;
        }
        NdOption::Nonce(nonce) => emit_padded(NONCE, &[], nonce, out)?,
        NdOption::Epoch(epoch) => {
            emit_padded(EXPERIMENT, &EPOCH_TAG, &epoch.0.to_be_bytes(), out)?;
        }
    }
    Ok(())
}

/// Type, length in units of 8 bytes, the two parts, zeros up to that length.
fn emit_padded(kind: u8, head: &[u8], tail: &[u8], out: &mut Vec<u8>) -> Result<(), WireError> {
    let used = 2 + head.len() + tail.len();
    let units = used.div_ceil(8);
    out.extend([kind, u8::try_from(units).map_err(|_| WireError::BadLength)?]);
    out.extend_from_slice(head);
    out.extend_from_slice(tail);
    out.resize(out.len() + units * 8 - used, 0);
    Ok(())
}

fn emit_link_layer(kind: u8, option: &LinkLayerOption, out: &mut Vec<u8>) {
    out.extend([kind, 3, 0, 0, option.link_id, option.preference]);
    out.extend(option.address.map_or(0, |a| a.port).to_be_bytes());
    out.extend(option.address.map_or([0; 16], |a| a.ip_octets()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_link_layer_option_has_the_golden_bytes_of_the_draft() {
        let mut out = Vec::new();
        let mut option = LinkLayerOption {
            link_id: 1,
            preference: 255,
            address: Some(LinkLayerAddress::new("192.0.2.1".parse().unwrap(), 8060)),
        };
        emit_option(&NdOption::TargetLinkLayer(option), &mut out).unwrap();
        let hex: String = out.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, "0203000001ff1f7c00000000000000000000ffffc0000201");
        option.address = None;
        out.clear();
        emit_option(&NdOption::TargetLinkLayer(option), &mut out).unwrap();
        assert_eq!(out[..8], [2, 3, 0, 0, 1, 255, 0, 0]);
        assert_eq!(out[8..], [0; 16]);
        assert_eq!(parse_option(&mut Reader(&out)), Ok(Some(NdOption::TargetLinkLayer(option))));
    }

    #[test]
    fn a_quoted_packet_is_cut_to_whole_units_and_never_within_its_header() {
        for (length, quoted) in [(55, 48), (48, 48), (40, 40), (27, 24), (20, 24)] {
            let mut out = Vec::new();
            emit_option(&NdOption::RedirectedHeader(vec![0x60; length]), &mut out).unwrap();
            assert_eq!(out.len(), 8 + quoted, "{length}");
        }
    }

    #[test]
    fn options_of_any_length_are_padded_to_eight_bytes_and_come_back() {
        let all = [
            NdOption::Timestamp(Duration::new(0x5472_7500, 500_000_000)),
            NdOption::Nonce(vec![1, 2, 3, 4, 5, 6]),
            NdOption::RedirectedHeader(vec![0x60; 40]),
            NdOption::Epoch(Epoch(7)),
        ];
        for option in all {
            let mut out = Vec::new();
            emit_option(&option, &mut out).unwrap();
            assert_eq!(out.len() % 8, 0, "{option:?}");
            assert_eq!(parse_option(&mut Reader(&out)), Ok(Some(option)));
        }
    }
}
