//! Neighbor Discovery on the AERO link: RFC 4861 sections 4 and 8.1 as draft -48 changes them
//! (sections 3.5 and 3.11: Predirect and Redirect with a prefix length). Options are in
//! `nd_options.rs`.

use std::net::{IpAddr, Ipv6Addr};

use super::ip::{HOP_LIMIT, Packet, Payload};
pub use super::nd_options::{LinkLayerOption, NdOption};
use super::nd_options::{emit_option, parse_option};
use super::{Reader, WireError, ip};
use crate::address::Epoch;

const ROUTER_SOLICITATION: u8 = 133;
const ROUTER_ADVERTISEMENT: u8 = 134;
const NEIGHBOR_SOLICITATION: u8 = 135;
const NEIGHBOR_ADVERTISEMENT: u8 = 136;
const REDIRECT: u8 = 137;
/// Code of a Redirect that is a Predirect.
const PREDIRECT_CODE: u8 = 1;

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
    /// Redirect (code 0) or Predirect (code 1), draft -48 section 3.11.
    Redirect {
        /// True for a Predirect: the sender announces that it will send directly. False for a
        /// Redirect: the sender invites direct packets.
        predirect: bool,
        /// AERO address of the node that the message is about: the sender's.
        target: Ipv6Addr,
        /// Of the packet that set it off: its source in a Predirect, its destination in a
        /// Redirect. IPv4 travels IPv4-mapped.
        destination: IpAddr,
        /// Prefix length of the target's ACP: 0 to 64 for IPv6, 0 to 32 for IPv4.
        prefix_length: u8,
    },
    /// Router Solicitation.
    RouterSolicitation,
    /// Router Advertisement. Prefixes in it are ignored on an AERO link.
    RouterAdvertisement {
        /// Router lifetime in seconds; 0 says that the sender is no default router.
        lifetime: u16,
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
    /// If it breaks a rule of RFC 4861 sections 6.1, 7.1 or 8.1 (hop limit, code, option length,
    /// link-local source, no multicast destination), or is no message of ours.
    pub fn parse(packet: &Packet<'_>) -> Result<Self, WireError> {
        let Payload::Icmpv6 { kind, code, body } = packet.payload else {
            return Err(WireError::Unsupported);
        };
        if !(ROUTER_SOLICITATION..=REDIRECT).contains(&kind) {
            return Err(WireError::Unsupported);
        }
        if packet.hop_limit != HOP_LIMIT {
            return Err(WireError::BadHopLimit);
        }
        let predirect = kind == REDIRECT && code == PREDIRECT_CODE;
        if code != 0 && !predirect {
            return Err(WireError::BadValue);
        }
        if !packet.source.is_unicast_link_local() || !packet.destination.is_unicast_link_local() {
            return Err(WireError::BadAddress);
        }
        let mut r = Reader(body);
        let head = r.u32()?;
        let message = match kind {
            ROUTER_SOLICITATION => NdMessage::RouterSolicitation,
            ROUTER_ADVERTISEMENT => {
                r.u64()?;
                let lifetime = u16::try_from(head & 0xffff).map_err(|_| WireError::BadValue)?;
                NdMessage::RouterAdvertisement { lifetime }
            }
            NEIGHBOR_SOLICITATION => NdMessage::Solicitation { target: unicast(&mut r)? },
            NEIGHBOR_ADVERTISEMENT => NdMessage::Advertisement {
                solicited: head & 0x4000_0000 != 0,
                override_cached: head & 0x2000_0000 != 0,
                target: unicast(&mut r)?,
            },
            _ => {
                let target = unicast(&mut r)?;
                if !target.is_unicast_link_local() {
                    return Err(WireError::BadAddress);
                }
                let prefix_length = u8::try_from(head & 0xff).map_err(|_| WireError::BadValue)?;
                let destination = read_destination(&mut r)?;
                let longest = if destination.is_ipv4() { 32 } else { 64 };
                if prefix_length > longest {
                    return Err(WireError::BadValue);
                }
                NdMessage::Redirect { predirect, target, destination, prefix_length }
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
        let (kind, code, head, mut body) = match &self.message {
            NdMessage::Solicitation { target } => {
                (NEIGHBOR_SOLICITATION, 0, 0u32, target.octets().to_vec())
            }
            NdMessage::Advertisement { solicited, override_cached, target } => {
                let s = if *solicited { 0x4000_0000 } else { 0 };
                let o = if *override_cached { 0x2000_0000 } else { 0 };
                (NEIGHBOR_ADVERTISEMENT, 0, s | o, target.octets().to_vec())
            }
            NdMessage::Redirect { predirect, target, destination, prefix_length } => {
                let mut body = target.octets().to_vec();
                body.extend(match destination {
                    IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
                    IpAddr::V6(v6) => v6.octets(),
                });
                (REDIRECT, u8::from(*predirect), u32::from(*prefix_length), body)
            }
            NdMessage::RouterSolicitation => (ROUTER_SOLICITATION, 0, 0, Vec::new()),
            NdMessage::RouterAdvertisement { lifetime } => {
                // Hop limit, reachable time and retransmission timer: unspecified.
                (ROUTER_ADVERTISEMENT, 0, u32::from(*lifetime), vec![0; 8])
            }
        };
        for option in &self.options {
            emit_option(option, &mut body)?;
        }
        ip::icmpv6(self.source, self.destination, (kind, code, head.to_be_bytes()), &body)
    }

    /// The nonce, if there is one.
    pub fn nonce(&self) -> Option<&[u8]> {
        self.options.iter().find_map(|o| if let NdOption::Nonce(n) = o { Some(&**n) } else { None })
    }

    /// The epoch, if there is one.
    pub fn epoch(&self) -> Option<Epoch> {
        self.options.iter().find_map(|o| if let NdOption::Epoch(e) = o { Some(*e) } else { None })
    }

    /// The target link-layer address options, in order.
    pub fn target_link_layers(&self) -> impl Iterator<Item = &LinkLayerOption> {
        self.options.iter().filter_map(|o| match o {
            NdOption::TargetLinkLayer(l) => Some(l),
            _ => None,
        })
    }
}

fn unicast(r: &mut Reader<'_>) -> Result<Ipv6Addr, WireError> {
    let address = Ipv6Addr::from(r.array::<16>()?);
    if address.is_multicast() { Err(WireError::BadAddress) } else { Ok(address) }
}

/// Destination Address of a Redirect. Draft -48 says IPv4-compatible, -74 IPv4-mapped: both are
/// understood.
fn read_destination(r: &mut Reader<'_>) -> Result<IpAddr, WireError> {
    let address = unicast(r)?;
    let bits = u128::from(address);
    // ::a.b.c.d with a first octet: neither :: nor ::1.
    let compatible = bits >> 32 == 0 && bits >> 24 != 0;
    let canonical = IpAddr::V6(address).to_canonical();
    match address.to_ipv4() {
        Some(v4) if compatible => Ok(IpAddr::V4(v4)),
        _ if canonical.is_multicast() => Err(WireError::BadAddress),
        _ => Ok(canonical),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::LinkLayerAddress;
    use std::time::Duration;

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
        p.payload = Payload::Icmpv6 { kind: 138, code: 0, body };
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

    /// The Predirect of an echo request of 2001:db8:0:1::1 to 2001:db8:0:2::1, its header quoted.
    fn predirect(link_layer: Option<LinkLayerAddress>) -> Nd {
        let mut trigger = vec![0x60, 0, 0, 0, 0, 8, 58, 63];
        for address in ["2001:db8:0:1::1", "2001:db8:0:2::1"] {
            trigger.extend(address.parse::<Ipv6Addr>().unwrap().octets());
        }
        Nd {
            source: "fe80::2001:db8:0:1".parse().unwrap(),
            destination: "fe80::2001:db8:0:2".parse().unwrap(),
            message: NdMessage::Redirect {
                predirect: true,
                target: "fe80::2001:db8:0:1".parse().unwrap(),
                destination: "2001:db8:0:1::1".parse().unwrap(),
                prefix_length: 64,
            },
            options: vec![
                NdOption::TargetLinkLayer(LinkLayerOption {
                    link_id: 1,
                    preference: 255,
                    address: link_layer,
                }),
                NdOption::Timestamp(Duration::from_secs(0x5472_7500)),
                NdOption::Nonce(vec![1, 2, 3, 4, 5, 6]),
                NdOption::RedirectedHeader(trigger),
            ],
        }
    }

    #[test]
    fn a_predirect_has_the_golden_bytes() {
        let bytes = predirect(None).emit().unwrap();
        assert_eq!(bytes.len(), 40 + 136);
        assert_eq!(bytes[40..48], [0x89, 1, 0xd8, 0x45, 0, 0, 0, 0x40]);
        let filled = LinkLayerAddress::new("192.0.2.1".parse().unwrap(), 8060);
        assert_eq!(predirect(Some(filled)).emit().unwrap()[42..44], [0xf6, 0xc7]);
    }

    #[test]
    fn redirects_and_router_messages_survive_the_way() {
        let mut nd = predirect(None);
        let mut all = vec![nd.clone()];
        nd.message = NdMessage::Redirect {
            predirect: false,
            target: "fe80::ffff:192.0.2.1".parse().unwrap(),
            destination: "192.0.2.1".parse().unwrap(),
            prefix_length: 32,
        };
        all.push(nd.clone());
        nd.message = NdMessage::RouterSolicitation;
        all.push(nd.clone());
        nd.message = NdMessage::RouterAdvertisement { lifetime: 1800 };
        all.push(nd);
        for nd in all {
            let bytes = nd.emit().unwrap();
            assert_eq!(Nd::parse(&Packet::parse(&bytes).unwrap()), Ok(nd));
        }
    }

    #[test]
    fn a_redirect_that_breaks_the_rules_is_refused() {
        let good = predirect(None).emit().unwrap();
        let packet = Packet::parse(&good).unwrap();
        let Payload::Icmpv6 { body, .. } = packet.payload else { unreachable!() };
        let parse = |code: u8, change: &dyn Fn(&mut Vec<u8>)| {
            let mut body = body.to_vec();
            change(&mut body);
            let payload = Payload::Icmpv6 { kind: 137, code, body: &body };
            Nd::parse(&Packet { payload, ..packet.clone() }).map(drop)
        };
        assert_eq!(parse(1, &|_| {}), Ok(()));
        assert_eq!(parse(2, &|_| {}), Err(WireError::BadValue));
        assert_eq!(parse(1, &|b| b[3] = 65), Err(WireError::BadValue), "prefix length");
        assert_eq!(parse(1, &|b| b[4] = 0x20), Err(WireError::BadAddress), "global target");
        assert_eq!(parse(1, &|b| b[20] = 0xff), Err(WireError::BadAddress), "multicast");
        assert_eq!(parse(1, &|b| b[37] = 0), Err(WireError::BadLength), "option length");
        assert_eq!(parse(1, &|b| b.truncate(30)), Err(WireError::Truncated));
    }

    #[test]
    fn an_ipv4_destination_is_understood_mapped_and_compatible() {
        for text in ["::ffff:192.0.2.1", "::192.0.2.1"] {
            let octets = text.parse::<Ipv6Addr>().unwrap().octets();
            let read = read_destination(&mut Reader(&octets));
            assert_eq!(read, Ok("192.0.2.1".parse().unwrap()), "{text}");
        }
        let multicast = "::ffff:224.0.0.1".parse::<Ipv6Addr>().unwrap().octets();
        assert_eq!(read_destination(&mut Reader(&multicast)), Err(WireError::BadAddress));
    }
}
