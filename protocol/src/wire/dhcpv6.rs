//! DHCPv6 messages (RFC 8415) as AERO nodes use them: prefix delegation.
//!
//! Encoding and decoding are `dhcproto`'s, behind a strict walk over the options.

use std::net::{IpAddr, Ipv6Addr};

use dhcproto::v6::{
    DhcpOption, IAPD, IAPrefix, MessageType, OptionCode, Status as DhcpStatus, UnknownOption,
};
use dhcproto::{Decodable, Encodable};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::aero_options::{self, AeroOption, Claim};
use super::dhcpv6_walk::walk;
use super::signature::Signature;
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
    Reconfigure,
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
            MessageType::Reconfigure => Self::Reconfigure,
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
            Self::Reconfigure => MessageType::Reconfigure,
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

/// The authentication option (RFC 8415 section 21.11).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authentication {
    /// Which protocol; 3 is [RKAP](super::rkap).
    pub protocol: u8,
    /// Which algorithm.
    pub algorithm: u8,
    /// How replays are told: 0, by a counter that only rises.
    pub rdm: u8,
    /// The counter.
    pub replay: u64,
    /// What belongs to the protocol.
    pub info: Vec<u8>,
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
    /// In a Reconfigure: what the client is to send.
    pub reconfigure: Option<Kind>,
    /// Reconfigures are taken, or may come.
    pub reconfigure_accept: bool,
    /// Authentication.
    pub authentication: Option<Authentication>,
    /// AERO's sub-options.
    pub aero: Vec<AeroOption>,
}

impl Message {
    /// What a node claims to speak for, if it does.
    pub fn claim(&self) -> Option<Claim> {
        self.aero.iter().find_map(|o| match o {
            AeroOption::Claim(claim) => Some(*claim),
            _ => None,
        })
    }

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
            reconfigure: None,
            reconfigure_accept: false,
            authentication: None,
            aero: Vec::new(),
        }
    }

    /// Reads a message from the payload of UDP 546/547.
    ///
    /// # Errors
    /// If it is malformed anywhere, or a relay or unknown message.
    pub fn parse(bytes: &[u8]) -> Result<Self, WireError> {
        if matches!(bytes.first(), Some(0 | 12..)) {
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
        Signature::of(&message)?;
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
            DhcpOption::ReconfMsg(kind) => self.reconfigure = Kind::of(*kind),
            DhcpOption::ReconfAccept => self.reconfigure_accept = true,
            DhcpOption::Authentication(a) => {
                self.authentication = Some(Authentication {
                    protocol: a.proto,
                    algorithm: a.algo,
                    rdm: a.rdm,
                    replay: a.replay_detection,
                    info: a.info.clone(),
                });
            }
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
        if let Some(kind) = self.reconfigure {
            opts.insert(DhcpOption::ReconfMsg(kind.message_type()));
        }
        if self.reconfigure_accept {
            opts.insert(DhcpOption::ReconfAccept);
        }
        if let Some(a) = &self.authentication {
            opts.insert(DhcpOption::Authentication(dhcproto::v6::Authentication {
                proto: a.protocol,
                algo: a.algorithm,
                rdm: a.rdm,
                replay_detection: a.replay,
                info: a.info.clone(),
            }));
        }
        // An option is put before those of its code that are there already.
        for ia in self.ia_na.iter().rev() {
            let status = ia.status.iter().map(emit_status).collect();
            opts.insert(DhcpOption::IANA(dhcproto::v6::IANA {
                id: ia.id,
                t1: 0,
                t2: 0,
                opts: status,
            }));
        }
        for ia in self.ia_pd.iter().rev() {
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
#[path = "dhcpv6_tests.rs"]
mod tests;
