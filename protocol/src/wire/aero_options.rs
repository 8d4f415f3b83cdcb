//! AERO's sub-options in the DHCPv6 vendor option (17, enterprise 45282).
//!
//! Framing and codes 0 to 2 are those of draft -61 (the address option of [48] is illegal from
//! clients by RFC 6939, and [52]'s form has no sub-option header as RFC 8415 section 21.17
//! demands). Codes from 65281 on are ours.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use uuid::Uuid;

use super::signature::Signature;
use super::{Reader, WireError};
use crate::address::{Epoch, LinkLayerAddress};

/// AERO's enterprise number.
pub const ENTERPRISE: u32 = 45282;

const REQUEST: u16 = 0;
const REPLY: u16 = 1;
const REMOVE: u16 = 2;
const CLAIM: u16 = 0xff01;
const PADDING: u16 = 0xff02;
pub(super) const SIGNATURE: u16 = 0xff03;
const AGAIN: u16 = 0xff04;
const SERVING: u16 = 0xff05;

/// Which holder a Client claims to speak for, so that a Server can tell a claim that is newer
/// than its copy of the table from one that is outdated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Claim {
    /// The mapping's epoch as the claimer knows it.
    pub epoch: Epoch,
    /// UID of the pod that holds the prefix.
    pub holder: Uuid,
}

/// A sub-option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AeroOption {
    /// ALREQ: registers the link over which the message comes; the Server takes the address from
    /// the outer source.
    LinkRequest {
        /// Which of the Client's underlay interfaces.
        link_id: u8,
        /// 0 deprecated, 1 low, 2 medium, 3 high.
        preference: u8,
    },
    /// ALREP: the address as the Server sees it, and the service prefixes of the link.
    LinkReply {
        /// As in the request.
        link_id: u8,
        /// What the Server registered.
        address: LinkLayerAddress,
        /// AERO Service Prefixes, IPv6 of /56 or shorter.
        asps: Vec<IpNet>,
    },
    /// ALDEL: Link IDs that are not to be used any more.
    LinkRemove(Vec<u8>),
    /// Our claim.
    Claim(Claim),
    /// Ours: so many bytes of nothing. A Server answers whom it does not serve with no more bytes
    /// than it was sent, so a Client that wants to read why it was refused leaves room for it.
    Padding(u8),
    /// Ours: proves who says the message.
    Signature(Signature),
    /// Ours, in the signed answer to a message of no session or a former one: nothing was done, say
    /// it again in the session of this answer, with a counter above this one.
    Again(u64),
    /// Ours, in a Server's answers: what a Client that has a choice wants to know of it.
    Serving {
        /// Relays join it to the other Servers.
        joined: bool,
        /// How much room it has, as in the Preference option (RFC 8415 section 21.8), which is in
        /// Advertises only.
        preference: u8,
    },
}

/// Reads the content of a vendor option behind its enterprise number. Unknown sub-options are
/// skipped.
pub(super) fn parse(content: &[u8]) -> Result<Vec<AeroOption>, WireError> {
    let mut r = Reader(content);
    let mut options = Vec::new();
    while !r.is_empty() {
        let (code, length) = (r.u16()?, r.u16()?);
        let mut body = Reader(r.take(usize::from(length))?);
        match code {
            REQUEST => {
                let link_id = body.u8()?;
                // Absent preferences mean the best (draft -61 section 3.7).
                let preference = body.u8().map_or(3, |b| b & 3);
                options.push(AeroOption::LinkRequest { link_id, preference });
            }
            REPLY => {
                let link_id = body.u8()?;
                body.u8()?;
                let port = body.u16()?;
                let ip = IpAddr::from(body.array::<16>()?);
                let mut asps = Vec::new();
                while !body.is_empty() {
                    asps.push(parse_asp(body.u64()?)?);
                }
                let address = LinkLayerAddress::new(ip, port);
                options.push(AeroOption::LinkReply { link_id, address, asps });
            }
            REMOVE => options.push(AeroOption::LinkRemove(body.0.to_vec())),
            CLAIM => {
                let epoch = Epoch(body.u64()?);
                let holder = Uuid::from_bytes(body.array()?);
                options.push(AeroOption::Claim(Claim { epoch, holder }));
            }
            SIGNATURE => options.push(AeroOption::Signature(Signature::parse(body.0)?)),
            AGAIN => options.push(AeroOption::Again(body.u64()?)),
            SERVING => {
                let (flags, preference) = (body.u8()?, body.u8()?);
                options.push(AeroOption::Serving { joined: flags & 1 != 0, preference });
            }
            PADDING => options.push(AeroOption::Padding(u8::try_from(length).unwrap_or(u8::MAX))),
            _ => {}
        }
    }
    Ok(options)
}

/// An ASP is its upper 64 bits with the prefix length in the low 8 of them.
fn parse_asp(word: u64) -> Result<IpNet, WireError> {
    let length = u8::try_from(word & 0xff).map_err(|_| WireError::BadValue)?;
    let address = Ipv6Addr::from(u128::from(word & !0xff) << 64);
    if length > 56 {
        return Err(WireError::BadValue);
    }
    let net = Ipv6Net::new(address, length).map_err(|_| WireError::BadValue)?;
    Ok(IpNet::V6(net.trunc()))
}

/// The content of a vendor option with its enterprise number in front. An ASP that this form
/// cannot carry (longer than /56, or IPv4) is left out.
pub(super) fn emit(options: &[AeroOption]) -> Vec<u8> {
    let mut out = ENTERPRISE.to_be_bytes().to_vec();
    for option in options {
        let (code, body) = match option {
            AeroOption::LinkRequest { link_id, preference } => {
                (REQUEST, vec![*link_id, preference & 3])
            }
            AeroOption::LinkReply { link_id, address, asps } => {
                let mut body = vec![*link_id, 0];
                body.extend(address.port.to_be_bytes());
                body.extend(address.ip_octets());
                for asp in asps {
                    if let IpNet::V6(p) = asp.trunc()
                        && p.prefix_len() <= 56
                        && let Ok(upper) = u64::try_from(u128::from(p.addr()) >> 64)
                    {
                        body.extend((upper | u64::from(p.prefix_len())).to_be_bytes());
                    }
                }
                (REPLY, body)
            }
            AeroOption::LinkRemove(ids) => (REMOVE, ids.clone()),
            AeroOption::Claim(claim) => {
                let mut body = claim.epoch.0.to_be_bytes().to_vec();
                body.extend(claim.holder.as_bytes());
                (CLAIM, body)
            }
            AeroOption::Signature(signature) => (SIGNATURE, signature.emit()),
            AeroOption::Again(counter) => (AGAIN, counter.to_be_bytes().to_vec()),
            AeroOption::Serving { joined, preference } => {
                (SERVING, vec![u8::from(*joined), *preference])
            }
            AeroOption::Padding(length) => (PADDING, vec![0; usize::from(*length)]),
        };
        out.extend(code.to_be_bytes());
        // Bodies are short: at most 56 bytes, or 20 and 8 per service prefix of the link.
        out.extend(u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
        out.extend(body);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_link_request_has_the_golden_bytes_of_the_draft() {
        let content = emit(&[AeroOption::LinkRequest { link_id: 1, preference: 3 }]);
        assert_eq!(content, [0x00, 0x00, 0xb0, 0xe2, 0, 0, 0, 2, 1, 3]);
    }

    #[test]
    fn sub_options_survive_the_way() {
        let options = vec![
            AeroOption::LinkRequest { link_id: 1, preference: 2 },
            AeroOption::LinkReply {
                link_id: 1,
                address: LinkLayerAddress::new("192.0.2.1".parse().unwrap(), 8061),
                asps: vec!["2001:db8::/32".parse().unwrap(), "fd00:1:2::/48".parse().unwrap()],
            },
            AeroOption::LinkRemove(vec![2, 7]),
            AeroOption::Claim(Claim { epoch: Epoch(9), holder: Uuid::from_u128(77) }),
            AeroOption::Signature(Signature {
                key: 1,
                session: 2,
                counter: 3,
                bound: true,
                digest: [4; 32],
            }),
            AeroOption::Again(5),
            AeroOption::Serving { joined: true, preference: 250 },
        ];
        assert_eq!(parse(&emit(&options)[4..]), Ok(options));
    }

    #[test]
    fn a_cut_sub_option_is_refused_and_an_unknown_one_skipped() {
        assert_eq!(parse(&[0, 0, 0, 9, 1]), Err(WireError::Truncated));
        assert_eq!(parse(&[0, 99, 0, 1, 1]), Ok(vec![]));
        assert_eq!(parse_asp(0x2001_0db8_0000_0000 | 57), Err(WireError::BadValue));
    }
}
