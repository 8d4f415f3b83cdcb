//! Relay-forward and Relay-reply (RFC 8415 sections 9 and 19), for the deprecated model in which
//! Servers are relay agents of a central DHCPv6 server (draft-templin-aerolink-28).
//!
//! `dhcproto` cannot hold these messages, so they are read and written here: strictly, one level
//! deep, since an AERO Server is the first and only relay agent of its Clients.

use std::net::{IpAddr, Ipv6Addr};

use super::{Reader, WireError};
use crate::address::LinkLayerAddress;

const RELAY_FORWARD: u8 = 12;
const RELAY_REPLY: u8 = 13;
const OPTION_RELAY_MSG: u16 = 9;
const OPTION_INTERFACE_ID: u16 = 18;
const OPTION_ERO: u16 = 43;
/// Client link-layer address, RFC 6939.
pub const OPTION_CLIENT_LINK_LAYER: u16 = 79;
/// Content length of option 79 in the form of draft -28.
const LINK_LAYER_LENGTH: usize = 22;
/// Longest message taken.
const MAX_MESSAGE: usize = 8192;

/// Option 79 as draft -28 fills it: the Client's link, and its underlay address and port.
///
/// The draft's link-layer type (TBD) was never assigned; it is sent as zero and not looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientLinkLayer {
    /// Which of the Client's underlay interfaces.
    pub link_id: u8,
    /// Its preference.
    pub preference: u8,
    /// The address as the Server saw it.
    pub address: LinkLayerAddress,
}

/// A relay message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayMessage {
    /// True for Relay-reply, false for Relay-forward.
    pub reply: bool,
    /// Relay agents before this one.
    pub hop_count: u8,
    /// Names the link to the server.
    pub link_address: Ipv6Addr,
    /// The Client's address.
    pub peer_address: Ipv6Addr,
    /// Comes back in the reply as it was sent.
    pub interface_id: Option<Vec<u8>>,
    /// The Client's link-layer address.
    pub link_layer: Option<ClientLinkLayer>,
    /// Options that the server is asked to send back (RFC 4994).
    pub echo: Vec<u16>,
    /// The message that is relayed.
    pub message: Vec<u8>,
}

impl RelayMessage {
    /// Reads a message.
    ///
    /// # Errors
    /// If it is no relay message, is malformed, has an option twice or no relayed message.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        if bytes.len() > MAX_MESSAGE {
            return Err(WireError::BadLength);
        }
        let mut r = Reader(bytes);
        let reply = match r.u8()? {
            RELAY_FORWARD => false,
            RELAY_REPLY => true,
            _ => return Err(WireError::Unsupported),
        };
        let hop_count = r.u8()?;
        let link_address = Ipv6Addr::from(r.array::<16>()?);
        let peer_address = Ipv6Addr::from(r.array::<16>()?);
        let (mut interface_id, mut link_layer, mut echo, mut message) = (None, None, None, None);
        while !r.is_empty() {
            let (code, length) = (r.u16()?, r.u16()?);
            let body = r.take(usize::from(length))?;
            let twice = match code {
                OPTION_RELAY_MSG => message.replace(body.to_vec()).is_some(),
                OPTION_INTERFACE_ID => interface_id.replace(body.to_vec()).is_some(),
                OPTION_CLIENT_LINK_LAYER if body.len() == LINK_LAYER_LENGTH => {
                    link_layer.replace(parse_link_layer(body)?).is_some()
                }
                OPTION_ERO => echo.replace(parse_codes(body)?).is_some(),
                _ => false,
            };
            if twice {
                return Err(WireError::BadValue);
            }
        }
        Ok(Self {
            reply,
            hop_count,
            link_address,
            peer_address,
            interface_id,
            link_layer,
            echo: echo.unwrap_or_default(),
            message: message.filter(|m| !m.is_empty()).ok_or(WireError::Truncated)?,
        })
    }

    /// The message as sent.
    ///
    /// # Errors
    /// [`WireError::BadLength`] if something is too long to be counted.
    pub fn emit(&self) -> Result<Vec<u8>, WireError> {
        let mut out = vec![if self.reply { RELAY_REPLY } else { RELAY_FORWARD }, self.hop_count];
        out.extend(self.link_address.octets());
        out.extend(self.peer_address.octets());
        if let Some(id) = &self.interface_id {
            option(&mut out, OPTION_INTERFACE_ID, id)?;
        }
        if let Some(l) = &self.link_layer {
            let mut body = vec![0, 0, l.link_id, l.preference];
            body.extend(l.address.port.to_be_bytes());
            body.extend(l.address.ip_octets());
            option(&mut out, OPTION_CLIENT_LINK_LAYER, &body)?;
        }
        if !self.echo.is_empty() {
            let codes: Vec<u8> = self.echo.iter().flat_map(|c| c.to_be_bytes()).collect();
            option(&mut out, OPTION_ERO, &codes)?;
        }
        option(&mut out, OPTION_RELAY_MSG, &self.message)?;
        Ok(out)
    }
}

fn option(out: &mut Vec<u8>, code: u16, body: &[u8]) -> Result<(), WireError> {
    out.extend(code.to_be_bytes());
    out.extend(u16::try_from(body.len()).map_err(|_| WireError::BadLength)?.to_be_bytes());
    out.extend_from_slice(body);
    Ok(())
}

fn parse_link_layer(body: &[u8]) -> Result<ClientLinkLayer, WireError> {
    let mut r = Reader(body);
    r.u16()?;
    let (link_id, preference, port) = (r.u8()?, r.u8()?, r.u16()?);
    let address = LinkLayerAddress::new(IpAddr::from(r.array::<16>()?), port);
    Ok(ClientLinkLayer { link_id, preference, address })
}

fn parse_codes(body: &[u8]) -> Result<Vec<u16>, WireError> {
    if !body.len().is_multiple_of(2) {
        return Err(WireError::BadLength);
    }
    let mut r = Reader(body);
    let mut codes = Vec::new();
    while !r.is_empty() {
        codes.push(r.u16()?);
    }
    Ok(codes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> RelayMessage {
        RelayMessage {
            reply: false,
            hop_count: 0,
            link_address: "2001:db8::1".parse().unwrap(),
            peer_address: "fe80::ffff:ffff:ffff:ffff".parse().unwrap(),
            interface_id: Some(vec![1, 2, 3]),
            link_layer: Some(ClientLinkLayer {
                link_id: 1,
                preference: 255,
                address: LinkLayerAddress::new("192.0.2.1".parse().unwrap(), 8060),
            }),
            echo: vec![OPTION_CLIENT_LINK_LAYER],
            message: vec![1, 0, 0, 7],
        }
    }

    #[test]
    fn a_relay_forward_has_the_bytes_of_rfc_8415_and_survives_the_way() {
        let bytes = sample().emit().unwrap();
        assert_eq!(bytes[..2], [12, 0]);
        let mut options = vec![0, 18, 0, 3, 1, 2, 3, 0, 79, 0, 22, 0, 0, 1, 255, 0x1f, 0x7c];
        options.extend([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 192, 0, 2, 1]);
        options.extend([0, 43, 0, 2, 0, 79, 0, 9, 0, 4, 1, 0, 0, 7]);
        assert_eq!(bytes[34..], options);
        assert_eq!(RelayMessage::parse(&bytes), Ok(sample()));
        let reply = RelayMessage { reply: true, ..sample() };
        assert_eq!(RelayMessage::parse(&reply.emit().unwrap()), Ok(reply));
    }

    #[test]
    fn every_cut_and_every_double_is_refused_and_unknown_options_are_skipped() {
        let bytes = sample().emit().unwrap();
        for length in 0..bytes.len() {
            assert!(RelayMessage::parse(&bytes[..length]).is_err(), "{length} bytes");
        }
        let mut doubled = bytes.clone();
        doubled.extend([0, 9, 0, 1, 1]);
        assert_eq!(RelayMessage::parse(&doubled), Err(WireError::BadValue));
        let mut unknown = bytes.clone();
        unknown.extend([1, 0, 0, 1, 1]);
        assert_eq!(RelayMessage::parse(&unknown), Ok(sample()));
        // The form of RFC 6939 itself is another one than the draft's.
        let mut mac = RelayMessage { link_layer: None, ..sample() }.emit().unwrap();
        mac.extend([0, 79, 0, 8, 0, 1, 2, 2, 2, 2, 2, 2]);
        assert_eq!(RelayMessage::parse(&mac).map(|m| m.link_layer), Ok(None));
        assert_eq!(RelayMessage::parse(&[1, 0, 0, 0]), Err(WireError::Unsupported));
    }
}
