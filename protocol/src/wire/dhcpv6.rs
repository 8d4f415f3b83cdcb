//! DHCPv6 messages (RFC 8415) as AERO nodes use them: prefix delegation.
//!
//! Encoding and decoding are `dhcproto`'s, behind a strict walk over the options.

use std::net::{IpAddr, Ipv6Addr};

use dhcproto::v6::{
    DhcpOption, IAPD, IAPrefix, MessageType, OptionCode, Status as DhcpStatus, UnknownOption,
};
use dhcproto::{Decodable, Encodable};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::aero_options::{self, AeroOption};
use super::dhcpv6_walk::walk;
use super::{Reader, WireError};
use crate::address::Duid;

/// Code of the vendor option, asked for in the option request (RFC 8415 section 21.17).
pub const OPTION_VENDOR_OPTS: u16 = 17;
/// SOL_MAX_RT, which a client must ask for (RFC 8415 section 18.2.1).
pub const OPTION_SOL_MAX_RT: u16 = 82;

/// The message types of client and server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[allow(missing_docs)] // the names are RFC 8415's
pub enum Kind {
    Solicit,
    Advertise,
    Request,
    Confirm,
    Renew,
    Rebind,
    Reply,
    Release,
    Decline,
    InformationRequest,
}

impl Kind {
    fn of(kind: MessageType) -> Option<Self> {
        Some(match kind {
            MessageType::Solicit => Self::Solicit,
            MessageType::Advertise => Self::Advertise,
            MessageType::Request => Self::Request,
            MessageType::Confirm => Self::Confirm,
            MessageType::Renew => Self::Renew,
            MessageType::Rebind => Self::Rebind,
            MessageType::Reply => Self::Reply,
            MessageType::Release => Self::Release,
            MessageType::Decline => Self::Decline,
            MessageType::InformationRequest => Self::InformationRequest,
            _ => return None,
        })
    }

    fn message_type(self) -> MessageType {
        match self {
            Self::Solicit => MessageType::Solicit,
            Self::Advertise => MessageType::Advertise,
            Self::Request => MessageType::Request,
            Self::Confirm => MessageType::Confirm,
            Self::Renew => MessageType::Renew,
            Self::Rebind => MessageType::Rebind,
            Self::Reply => MessageType::Reply,
            Self::Release => MessageType::Release,
            Self::Decline => MessageType::Decline,
            Self::InformationRequest => MessageType::InformationRequest,
        }
    }
}

/// Status codes that AERO nodes give (RFC 8415 section 21.13).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[allow(missing_docs)] // the names are RFC 8415's
pub enum StatusCode {
    Success,
    UnspecFail,
    NoAddrsAvail,
    NoBinding,
    NotOnLink,
    NoPrefixAvail,
    /// Any other.
    Other(u16),
}

impl StatusCode {
    fn of(status: DhcpStatus) -> Self {
        match status {
            DhcpStatus::Success => Self::Success,
            DhcpStatus::UnspecFail => Self::UnspecFail,
            DhcpStatus::NoAddrsAvail => Self::NoAddrsAvail,
            DhcpStatus::NoBinding => Self::NoBinding,
            DhcpStatus::NotOnLink => Self::NotOnLink,
            DhcpStatus::NoPrefixAvail => Self::NoPrefixAvail,
            other => Self::Other(other.into()),
        }
    }

    fn number(self) -> u16 {
        match self {
            Self::Success => 0,
            Self::UnspecFail => 1,
            Self::NoAddrsAvail => 2,
            Self::NoBinding => 3,
            Self::NotOnLink => 4,
            Self::NoPrefixAvail => 6,
            Self::Other(n) => n,
        }
    }
}

/// A status with its text for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// The code.
    pub code: StatusCode,
    /// The text.
    pub text: String,
}

impl Status {
    /// Makes a status.
    pub fn new(code: StatusCode, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }
}

/// One delegated (or asked for) prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// The prefix; an IPv4 prefix travels IPv4-mapped with 96 added to its length.
    pub prefix: IpNet,
    /// Preferred lifetime in seconds.
    pub preferred: u32,
    /// Valid lifetime in seconds.
    pub valid: u32,
}

/// Identity association for prefix delegation.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IaPd {
    /// IAID.
    pub id: u32,
    /// Seconds until Renew; 0 leaves it to the client.
    pub t1: u32,
    /// Seconds until Rebind; 0 leaves it to the client.
    pub t2: u32,
    /// The prefixes.
    pub prefixes: Vec<Prefix>,
    /// Status of this association.
    pub status: Option<Status>,
}

/// An identity association for addresses; a Server only ever says that it has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IaNa {
    /// IAID.
    pub id: u32,
    /// True if the client names addresses in it.
    pub has_addresses: bool,
    /// Status, in answers.
    pub status: Option<Status>,
}

/// A DHCPv6 message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// Type.
    pub kind: Kind,
    /// Transaction id, 24 bits.
    pub transaction: [u8; 3],
    /// Client identifier.
    pub client: Option<Duid>,
    /// Server identifier.
    pub server: Option<Duid>,
    /// Prefix delegations.
    pub ia_pd: Vec<IaPd>,
    /// Address assignments.
    pub ia_na: Vec<IaNa>,
    /// Status of the whole message.
    pub status: Option<Status>,
    /// Rapid Commit.
    pub rapid_commit: bool,
    /// Server preference.
    pub preference: Option<u8>,
    /// Time since the exchange began, in hundredths of a second.
    pub elapsed: Option<u16>,
    /// Codes of the options that the client asks for.
    pub requested: Vec<u16>,
    /// AERO's sub-options.
    pub aero: Vec<AeroOption>,
}

impl Message {
    /// A message with nothing in it.
    pub fn new(kind: Kind, transaction: [u8; 3]) -> Self {
        Self {
            kind,
            transaction,
            client: None,
            server: None,
            ia_pd: Vec::new(),
            ia_na: Vec::new(),
            status: None,
            rapid_commit: false,
            preference: None,
            elapsed: None,
            requested: Vec::new(),
            aero: Vec::new(),
        }
    }

    /// Reads a message from the payload of UDP 546/547.
    ///
    /// # Errors
    /// If it is malformed anywhere, or a relay or unknown message.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        if matches!(bytes.first(), Some(0 | 10 | 12..)) {
            return Err(WireError::Unsupported);
        }
        let walked = walk(bytes)?;
        if walked.authentications > 1 {
            return Err(WireError::BadValue);
        }
        let decoded =
            dhcproto::v6::Message::from_bytes(&walked.safe).map_err(|_| WireError::BadValue)?;
        let kind = Kind::of(decoded.msg_type()).ok_or(WireError::Unsupported)?;
        let mut message = Self::new(kind, decoded.xid());
        for option in decoded.opts().iter() {
            message.take(option)?;
        }
        for content in walked.vendor {
            let mut r = Reader(content);
            if r.u32()? == aero_options::ENTERPRISE {
                message.aero.extend(aero_options::parse(r.0)?);
            }
        }
        Ok(message)
    }

    fn take(&mut self, option: &DhcpOption) -> Result<(), WireError> {
        match option {
            DhcpOption::ClientId(id) => {
                once(&mut self.client, Duid::from_bytes(id).ok_or(WireError::BadLength)?)?;
            }
            DhcpOption::ServerId(id) => {
                once(&mut self.server, Duid::from_bytes(id).ok_or(WireError::BadLength)?)?;
            }
            DhcpOption::IAPD(ia) => self.ia_pd.push(read_ia_pd(ia)?),
            DhcpOption::IANA(ia) => self.ia_na.push(IaNa {
                id: ia.id,
                has_addresses: ia.opts.get(OptionCode::IAAddr).is_some(),
                status: status_of(ia.opts.get(OptionCode::StatusCode)),
            }),
            DhcpOption::StatusCode(_) => self.status = status_of(Some(option)),
            DhcpOption::RapidCommit => self.rapid_commit = true,
            DhcpOption::Preference(p) => self.preference = Some(*p),
            DhcpOption::ElapsedTime(t) => self.elapsed = Some(*t),
            DhcpOption::ORO(oro) => self.requested = oro.opts.iter().map(|c| (*c).into()).collect(),
            _ => {}
        }
        Ok(())
    }

    /// The payload for UDP 546/547.
    ///
    /// # Errors
    /// [`WireError::BadLength`] if something is too long to be counted.
    pub fn emit(&self) -> Result<Vec<u8>, WireError> {
        let mut out =
            dhcproto::v6::Message::new_with_id(self.kind.message_type(), self.transaction);
        let opts = out.opts_mut();
        if let Some(id) = &self.client {
            opts.insert(DhcpOption::ClientId(id.as_bytes().to_vec()));
        }
        if let Some(id) = &self.server {
            opts.insert(DhcpOption::ServerId(id.as_bytes().to_vec()));
        }
        if !self.requested.is_empty() {
            let codes = self.requested.iter().map(|c| OptionCode::from(*c)).collect();
            opts.insert(DhcpOption::ORO(dhcproto::v6::ORO { opts: codes }));
        }
        if let Some(p) = self.preference {
            opts.insert(DhcpOption::Preference(p));
        }
        if let Some(t) = self.elapsed {
            opts.insert(DhcpOption::ElapsedTime(t));
        }
        if let Some(s) = &self.status {
            opts.insert(emit_status(s));
        }
        if self.rapid_commit {
            opts.insert(DhcpOption::RapidCommit);
        }
        for ia in &self.ia_na {
            let status = ia.status.iter().map(emit_status).collect();
            opts.insert(DhcpOption::IANA(dhcproto::v6::IANA {
                id: ia.id,
                t1: 0,
                t2: 0,
                opts: status,
            }));
        }
        for ia in &self.ia_pd {
            opts.insert(emit_ia_pd(ia));
        }
        if !self.aero.is_empty() {
            let content = aero_options::emit(&self.aero);
            opts.insert(DhcpOption::Unknown(UnknownOption::new(OptionCode::VendorOpts, content)));
        }
        out.to_vec().map_err(|_| WireError::BadLength)
    }
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), WireError> {
    if slot.is_some() {
        return Err(WireError::BadValue);
    }
    *slot = Some(value);
    Ok(())
}

fn status_of(option: Option<&DhcpOption>) -> Option<Status> {
    match option {
        Some(DhcpOption::StatusCode(s)) => {
            Some(Status { code: StatusCode::of(s.status), text: s.msg.clone() })
        }
        _ => None,
    }
}

fn emit_status(status: &Status) -> DhcpOption {
    DhcpOption::StatusCode(dhcproto::v6::StatusCode {
        status: DhcpStatus::from(status.code.number()),
        msg: status.text.clone(),
    })
}

fn read_ia_pd(ia: &IAPD) -> Result<IaPd, WireError> {
    let mut prefixes = Vec::new();
    for option in ia.opts.iter() {
        if let DhcpOption::IAPrefix(p) = option {
            prefixes.push(Prefix {
                prefix: unmap(p.prefix_ip, p.prefix_len)?,
                preferred: p.preferred_lifetime,
                valid: p.valid_lifetime,
            });
        }
    }
    let status = status_of(ia.opts.get(OptionCode::StatusCode));
    Ok(IaPd { id: ia.id, t1: ia.t1, t2: ia.t2, prefixes, status })
}

fn emit_ia_pd(ia: &IaPd) -> DhcpOption {
    let prefixes = ia.prefixes.iter().map(|p| {
        let (prefix_ip, prefix_len) = map(p.prefix);
        DhcpOption::IAPrefix(IAPrefix {
            preferred_lifetime: p.preferred,
            valid_lifetime: p.valid,
            prefix_len,
            prefix_ip,
            opts: dhcproto::v6::DhcpOptions::new(),
        })
    });
    let opts = prefixes.chain(ia.status.iter().map(emit_status)).collect();
    DhcpOption::IAPD(IAPD { id: ia.id, t1: ia.t1, t2: ia.t2, opts })
}

/// IPv4 prefixes are delegated IPv4-mapped (draft -74 section 3.4; [48] is silent).
fn map(prefix: IpNet) -> (Ipv6Addr, u8) {
    match prefix.trunc() {
        IpNet::V6(p) => (p.addr(), p.prefix_len()),
        IpNet::V4(p) => (p.addr().to_ipv6_mapped(), p.prefix_len() + 96),
    }
}

fn unmap(address: Ipv6Addr, length: u8) -> Result<IpNet, WireError> {
    let net = match (IpAddr::V6(address).to_canonical(), length.checked_sub(96)) {
        (IpAddr::V4(v4), Some(n)) => Ipv4Net::new(v4, n).map(IpNet::V4),
        _ => Ipv6Net::new(address, length).map(IpNet::V6),
    };
    Ok(net.map_err(|_| WireError::BadValue)?.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Epoch;
    use crate::wire::aero_options::Claim;
    use uuid::Uuid;

    fn full() -> Message {
        let mut m = Message::new(Kind::Reply, [1, 2, 3]);
        m.client = Some(Duid::from_uuid(Uuid::from_u128(1)));
        m.server = Some(Duid::from_uuid(Uuid::from_u128(2)));
        m.ia_pd.push(IaPd {
            id: 1,
            t1: 20,
            t2: 32,
            prefixes: vec![
                Prefix { prefix: "2001:db8:0:1::/64".parse().unwrap(), preferred: 40, valid: 40 },
                Prefix { prefix: "192.0.2.32/28".parse().unwrap(), preferred: 40, valid: 40 },
            ],
            status: Some(Status::new(StatusCode::Success, "")),
        });
        m.ia_na.push(IaNa {
            id: 5,
            has_addresses: false,
            status: Some(Status::new(StatusCode::NoAddrsAvail, "prefixes only")),
        });
        m.status = Some(Status::new(StatusCode::UnspecFail, "why not"));
        m.rapid_commit = true;
        m.preference = Some(255);
        m.elapsed = Some(7);
        m.requested = vec![OPTION_VENDOR_OPTS, OPTION_SOL_MAX_RT];
        m.aero = vec![
            AeroOption::LinkRequest { link_id: 1, preference: 3 },
            AeroOption::Claim(Claim { epoch: Epoch(4), holder: Uuid::from_u128(3) }),
        ];
        m
    }

    #[test]
    fn a_message_survives_the_way_with_all_that_is_in_it() {
        let message = full();
        assert_eq!(Message::parse(&message.emit().unwrap()), Ok(message));
    }

    #[test]
    fn a_message_cut_anywhere_is_refused_or_has_lost_whole_options_only() {
        let whole = full().emit().unwrap();
        for n in 0..whole.len() {
            if let Ok(m) = Message::parse(&whole[..n]) {
                assert!(m.emit().unwrap().len() <= n, "cut at {n}");
            }
        }
    }

    #[test]
    fn what_makes_dhcproto_panic_or_misread_is_refused_before_it() {
        let with = |option: &[u8]| {
            let mut bytes = vec![1, 0, 0, 1];
            bytes.extend_from_slice(option);
            Message::parse(&bytes)
        };
        assert_eq!(with(&[0, 13, 0, 1, 0]), Err(WireError::BadLength), "status of one byte");
        assert_eq!(with(&[0, 16, 0, 3, 0, 0, 0]), Err(WireError::BadLength), "vendor class");
        assert_eq!(with(&[0, 17, 0, 3, 0, 0, 0]), Err(WireError::BadLength), "vendor options");
        assert_eq!(with(&[0, 7, 0, 2, 0, 0]), Err(WireError::BadLength), "preference of two");
        assert_eq!(with(&[0, 14, 0, 1, 0]), Err(WireError::BadLength), "rapid commit of one");
        assert_eq!(with(&[0, 1, 0, 2, 0, 4]), Err(WireError::BadLength), "DUID of two bytes");
        // IA_TA in IA_TA in IA_TA ...: unbounded recursion in dhcproto.
        let mut nested = Vec::new();
        for _ in 0..900 {
            let mut outer = vec![0, 4];
            outer.extend(u16::try_from(nested.len() + 4).unwrap().to_be_bytes());
            outer.extend([0; 4]);
            outer.extend(&nested);
            nested = outer;
        }
        assert_eq!(with(&nested), Err(WireError::TooDeep));
        let mut prefix = vec![0, 25, 0, 41, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 26, 0, 25];
        prefix.extend([0, 0, 0, 1, 0, 0, 0, 1, 129]);
        prefix.extend([0; 16]);
        assert_eq!(with(&prefix), Err(WireError::BadValue), "prefix length 129");
        prefix[28] = 64;
        assert!(with(&prefix).is_ok());
        prefix[23] = 2;
        assert_eq!(with(&prefix), Err(WireError::BadValue), "preferred above valid");
    }

    #[test]
    fn relay_messages_and_double_identifiers_are_refused() {
        assert_eq!(Message::parse(&[12, 0, 0, 1]), Err(WireError::Unsupported));
        assert_eq!(Message::parse(&[10, 0, 0, 1]), Err(WireError::Unsupported));
        let mut bytes = full().emit().unwrap();
        bytes.extend([0, 1, 0, 3, 0, 4, 9]);
        assert_eq!(Message::parse(&bytes), Err(WireError::BadValue));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..300)) {
            let _ = Message::parse(&bytes);
        }

        #[test]
        fn no_mutation_of_a_good_message_makes_the_parser_panic(
            at in 0usize..200, value in 0u8..=255, cut in 0usize..300,
        ) {
            let mut bytes = full().emit().unwrap();
            let n = bytes.len();
            bytes[at % n] = value;
            bytes.truncate(cut.max(1));
            if let Ok(m) = Message::parse(&bytes) {
                let again = m.emit().unwrap();
                proptest::prop_assert_eq!(Message::parse(&again), Ok(m));
            }
        }
    }
}
