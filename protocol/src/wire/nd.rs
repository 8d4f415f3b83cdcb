//! Neighbor Discovery on the AERO link: RFC 4861 with the source/target link-layer address
//! option of draft -48 section 3.5 (24 bytes, [`LinkLayerOption`]).

use std::net::{IpAddr, Ipv6Addr};

use super::ip::{self, HOP_LIMIT, Packet, Payload};
use super::{Reader, WireError};
use crate::address::{Epoch, LinkLayerAddress};

const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;

const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;
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
    /// Nonce, RFC 3971 section 5.3.2: at least 6 bytes.
    Nonce(Vec<u8>),
    /// The epoch of the mapping that the message is about. Ours: tells a late message of an
    /// earlier move from one about the present holder.
    Epoch(Epoch),
}

/// A Neighbor Discovery message that AERO nodes exchange.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NdMessage {
    /// Neighbor Solicitation.
    Solicitation {
        /// Whose reachability is asked for.
        target: Ipv6Addr,
    },
    /// Neighbor Advertisement.
    Advertisement {
        /// Answers a solicitation; only such confirm reachability.
        solicited: bool,
        /// The link-layer address in it replaces what is cached.
        override_cached: bool,
        /// Whom it is about.
        target: Ipv6Addr,
    },
}

/// A message with its inner addresses and options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nd {
    /// Inner source.
    pub source: Ipv6Addr,
    /// Inner destination.
    pub destination: Ipv6Addr,
    /// The message.
    pub message: NdMessage,
    /// Its options, in order.
    pub options: Vec<NdOption>,
}

impl Nd {
    /// Reads a message out of a parsed packet.
    ///
    /// # Errors
    /// If it breaks a rule of RFC 4861 section 7.1 (hop limit, code, option length, link-local
    /// source), or is no message of ours.
    pub fn parse(packet: &Packet<'_>) -> Result<Self, WireError> {
        let Payload::Icmpv6 { kind, code, body } = packet.payload else {
            return Err(WireError::Unsupported);
        };
        if !matches!(kind, NEIGHBOR_SOLICITATION | NEIGHBOR_ADVERTISEMENT) {
            return Err(WireError::Unsupported);
        }
        if packet.hop_limit != HOP_LIMIT {
            return Err(WireError::BadHopLimit);
        }
        if code != 0 {
            return Err(WireError::BadValue);
        }
        if !packet.source.is_unicast_link_local() || !packet.destination.is_unicast_link_local() {
            return Err(WireError::BadAddress);
        }
        let mut r = Reader(body);
        let flags = r.u32()?;
        let target = Ipv6Addr::from(r.array::<16>()?);
        if target.is_multicast() {
            return Err(WireError::BadAddress);
        }
        let message = if kind == NEIGHBOR_SOLICITATION {
            NdMessage::Solicitation { target }
        } else {
            NdMessage::Advertisement {
                solicited: flags & 0x4000_0000 != 0,
                override_cached: flags & 0x2000_0000 != 0,
                target,
            }
        };
        let mut options = Vec::new();
        while !r.is_empty() {
            options.extend(parse_option(&mut r)?);
        }
        Ok(Self { source: packet.source, destination: packet.destination, message, options })
    }

    /// The packet as sent.
    ///
    /// # Errors
    /// [`WireError::BadLength`] if the options do not fit.
    pub fn emit(&self) -> Result<Vec<u8>, WireError> {
        let (kind, flags, target) = match &self.message {
            NdMessage::Solicitation { target } => (NEIGHBOR_SOLICITATION, 0u32, target),
            NdMessage::Advertisement { solicited, override_cached, target } => {
                let s = if *solicited { 0x4000_0000 } else { 0 };
                let o = if *override_cached { 0x2000_0000 } else { 0 };
                (NEIGHBOR_ADVERTISEMENT, s | o, target)
            }
        };
        let mut body = target.octets().to_vec();
        for option in &self.options {
            emit_option(option, &mut body)?;
        }
        ip::icmpv6(self.source, self.destination, (kind, 0, flags.to_be_bytes()), &body)
    }

    /// The nonce, if there is one.
    pub fn nonce(&self) -> Option<&[u8]> {
        self.options.iter().find_map(|o| if let NdOption::Nonce(n) = o { Some(&**n) } else { None })
    }

    /// The epoch, if there is one.
    pub fn epoch(&self) -> Option<Epoch> {
        self.options.iter().find_map(|o| if let NdOption::Epoch(e) = o { Some(*e) } else { None })
    }
}

/// `None` for an option that is not for us.
fn parse_option(r: &mut Reader<'_>) -> Result<Option<NdOption>, WireError> {
    let kind = r.u8()?;
    let length = usize::from(r.u8()?) * 8;
    let body = r.take(length.checked_sub(2).ok_or(WireError::BadLength)?)?;
    Ok(match (kind, length) {
        (SOURCE_LINK_LAYER, 24) => Some(NdOption::SourceLinkLayer(parse_link_layer(body)?)),
        (TARGET_LINK_LAYER, 24) => Some(NdOption::TargetLinkLayer(parse_link_layer(body)?)),
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

fn emit_option(option: &NdOption, out: &mut Vec<u8>) -> Result<(), WireError> {
    match option {
        NdOption::SourceLinkLayer(o) => emit_link_layer(SOURCE_LINK_LAYER, o, out),
        NdOption::TargetLinkLayer(o) => emit_link_layer(TARGET_LINK_LAYER, o, out),
        NdOption::Nonce(nonce) => {
            let length = (nonce.len() + 2).div_ceil(8);
            out.extend([NONCE, u8::try_from(length).map_err(|_| WireError::BadLength)?]);
            out.extend_from_slice(nonce);
            out.resize(out.len() + length * 8 - 2 - nonce.len(), 0);
        }
        NdOption::Epoch(epoch) => {
            out.extend([EXPERIMENT, 2]);
            out.extend(EPOCH_TAG);
            out.extend(epoch.0.to_be_bytes());
        }
    }
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

    fn sample() -> Nd {
        Nd {
            source: "fe80::2001:db8:0:1".parse().unwrap(),
            destination: "fe80::2".parse().unwrap(),
            message: NdMessage::Advertisement {
                solicited: false,
                override_cached: true,
                target: "fe80::2001:db8:0:1".parse().unwrap(),
            },
            options: vec![
                NdOption::TargetLinkLayer(LinkLayerOption {
                    link_id: 1,
                    preference: 255,
                    address: Some(LinkLayerAddress::new("192.0.2.1".parse().unwrap(), 8060)),
                }),
                NdOption::Nonce(vec![1, 2, 3, 4, 5, 6]),
                NdOption::Epoch(Epoch(7)),
            ],
        }
    }

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
    fn a_message_survives_the_way() {
        let nd = sample();
        let bytes = nd.emit().unwrap();
        assert_eq!(Nd::parse(&Packet::parse(&bytes).unwrap()), Ok(nd));
    }

    #[test]
    fn a_message_that_breaks_the_rules_of_rfc_4861_is_refused() {
        let bytes = sample().emit().unwrap();
        let good = Packet::parse(&bytes).unwrap();
        let mut p = good.clone();
        p.hop_limit = 254;
        assert_eq!(Nd::parse(&p), Err(WireError::BadHopLimit));
        let mut p = good.clone();
        p.source = "2001:db8::1".parse().unwrap();
        assert_eq!(Nd::parse(&p), Err(WireError::BadAddress));
        let Payload::Icmpv6 { kind, body, .. } = good.payload else { unreachable!() };
        let mut p = good.clone();
        p.payload = Payload::Icmpv6 { kind, code: 1, body };
        assert_eq!(Nd::parse(&p), Err(WireError::BadValue));
        let mut zero_length = body.to_vec();
        zero_length[21] = 0;
        let mut p = good.clone();
        p.payload = Payload::Icmpv6 { kind, code: 0, body: &zero_length };
        assert_eq!(Nd::parse(&p), Err(WireError::BadLength));
        let mut p = good;
        p.payload = Payload::Icmpv6 { kind: 134, code: 0, body };
        assert_eq!(Nd::parse(&p), Err(WireError::Unsupported));
    }

    #[test]
    fn an_unknown_option_is_skipped() {
        let mut nd = sample();
        nd.options.clear();
        let mut bytes = vec![0; 4];
        bytes.extend("fe80::2".parse::<Ipv6Addr>().unwrap().octets());
        bytes.extend([25, 1, 0, 0, 0, 0, 0, 0]);
        let packet = Packet {
            source: nd.source,
            destination: nd.destination,
            hop_limit: 255,
            payload: Payload::Icmpv6 { kind: 135, code: 0, body: &bytes },
        };
        assert_eq!(Nd::parse(&packet).unwrap().options, vec![]);
    }
}
