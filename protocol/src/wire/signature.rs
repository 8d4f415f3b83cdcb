//! Signed DHCPv6 messages: HMAC-SHA256 under a key that belongs to one DUID.
//!
//! A form of our own (`docs/decisions/008-signed-control-messages.md`): the delayed authentication
//! of RFC 3315 is obsolete, RKAP ([`super::rkap`]) proves a Server's Reconfigure only, and Secure
//! DHCPv6 never became a standard. The signature is a sub-option of AERO's vendor option, so that
//! any DHCPv6 software passes it on; it covers the whole message with the digest taken as zero,
//! the inner addresses, and the outer source if the sender [binds](Signature::bound) it.

use std::fmt;
use std::net::Ipv6Addr;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use zeroize::{Zeroize, ZeroizeOnDrop};

use super::aero_options::{self, AeroOption};
use super::dhcpv6::Message;
use super::{Reader, WireError};
use crate::address::LinkLayerAddress;

/// Bytes of a secret.
pub const SECRET: usize = 32;
/// Bytes of a digest.
const DIGEST: usize = 32;
/// Bytes in front of the digest: algorithm, flags, two reserved, key, session, counter.
const HEAD: usize = 24;
/// Bytes of the sub-option's body.
pub(super) const LENGTH: usize = HEAD + DIGEST;
/// HMAC-SHA256, the only algorithm.
const HMAC_SHA256: u8 = 1;
const FLAG_BOUND: u8 = 1;
/// In front of what is digested, so that no digest of another use of the key is one of ours.
const CONTEXT: &[u8] = b"AERO signed control message 1\0";
const OPTION_VENDOR_OPTS: u16 = super::dhcpv6::OPTION_VENDOR_OPTS;

/// A secret that one Client and its Servers share. It is never shown and overwritten when dropped.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct Key {
    /// Tells a Client's keys apart, so that one can follow another.
    #[zeroize(skip)]
    id: u32,
    secret: [u8; SECRET],
}

impl Key {
    /// Makes a key of 32 random bytes.
    pub fn new(id: u32, secret: [u8; SECRET]) -> Self {
        Self { id, secret }
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("id", &self.id).finish_non_exhaustive()
    }
}

/// The sub-option. What it claims is worth nothing before [`verify`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Signature {
    /// Which of the Client's keys.
    pub key: u32,
    /// The Server's session; 0 from a Client that does not know it yet.
    pub session: u64,
    /// Rises with every message of the Client in a session; an answer repeats that of its question.
    pub counter: u64,
    /// The digest covers the outer source too.
    pub bound: bool,
    /// The digest; zero until [`sign`] fills it in.
    pub digest: [u8; DIGEST],
}

impl Signature {
    pub(super) fn parse(body: &[u8]) -> Result<Self, WireError> {
        if body.len() != LENGTH {
            return Err(WireError::BadLength);
        }
        let mut r = Reader(body);
        if r.u8()? != HMAC_SHA256 {
            return Err(WireError::Unsupported);
        }
        let bound = r.u8()? & FLAG_BOUND != 0;
        r.u16()?;
        let (key, session, counter) = (r.u32()?, r.u64()?, r.u64()?);
        Ok(Self { key, session, counter, bound, digest: r.array()? })
    }

    pub(super) fn emit(&self) -> Vec<u8> {
        let mut body = vec![HMAC_SHA256, if self.bound { FLAG_BOUND } else { 0 }, 0, 0];
        body.extend(self.key.to_be_bytes());
        body.extend(self.session.to_be_bytes());
        body.extend(self.counter.to_be_bytes());
        body.extend(self.digest);
        body
    }

    /// The only signature of a message.
    ///
    /// # Errors
    /// [`WireError::BadValue`] if there are several.
    pub fn of(message: &Message) -> Result<Option<&Self>, WireError> {
        let mut all = message.aero.iter().filter_map(|o| match o {
            AeroOption::Signature(s) => Some(s),
            _ => None,
        });
        let first = all.next();
        if all.next().is_some() {
            return Err(WireError::BadValue);
        }
        Ok(first)
    }
}

/// What a signature covers besides the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Covered {
    /// Inner source.
    pub source: Ipv6Addr,
    /// Inner destination.
    pub destination: Ipv6Addr,
    /// Outer source, for a signature that binds it.
    pub outer: Option<LinkLayerAddress>,
}

/// Writes the digest into the bytes of a message that has a [`Signature`].
///
/// # Errors
/// If it has none.
pub fn sign(message: &mut [u8], covered: &Covered, key: &Key) -> Result<(), WireError> {
    let at = digest_at(message)?;
    message.get_mut(at..at + DIGEST).ok_or(WireError::Truncated)?.fill(0);
    let digest = mac(message, covered, key)?.finalize().into_bytes();
    message.get_mut(at..at + DIGEST).ok_or(WireError::Truncated)?.copy_from_slice(&digest);
    Ok(())
}

/// True if the bytes of a message were signed with this key; compared in constant time.
pub fn verify(message: &[u8], covered: &Covered, key: &Key) -> bool {
    let checked = || {
        let (zeroed, digest) = without_digest(message)?;
        Ok::<bool, WireError>(mac(&zeroed, covered, key)?.verify_slice(&digest).is_ok())
    };
    checked().unwrap_or(false)
}

/// The message as it was when the digest was made, and the digest.
///
/// # Errors
/// If it has no signature.
pub fn without_digest(message: &[u8]) -> Result<(Vec<u8>, [u8; DIGEST]), WireError> {
    let at = digest_at(message)?;
    let mut zeroed = message.to_vec();
    let field = zeroed.get_mut(at..at + DIGEST).ok_or(WireError::Truncated)?;
    let digest = (&*field).try_into().map_err(|_| WireError::Truncated)?;
    field.fill(0);
    Ok((zeroed, digest))
}

fn mac(message: &[u8], covered: &Covered, key: &Key) -> Result<Hmac<Sha256>, WireError> {
    let mut mac = Hmac::<Sha256>::new_from_slice(&key.secret).map_err(|_| WireError::BadLength)?;
    mac.update(CONTEXT);
    mac.update(&covered.source.octets());
    mac.update(&covered.destination.octets());
    match covered.outer {
        Some(outer) => {
            mac.update(&[1]);
            mac.update(&outer.ip_octets());
            mac.update(&outer.port.to_be_bytes());
        }
        None => mac.update(&[0]),
    }
    mac.update(message);
    Ok(mac)
}

/// Where the digest of the first signature begins.
fn digest_at(message: &[u8]) -> Result<usize, WireError> {
    let mut r = Reader(message);
    r.take(4)?;
    while !r.is_empty() {
        let (code, length) = (r.u16()?, r.u16()?);
        let behind = r.0.len();
        let mut body = Reader(r.take(usize::from(length))?);
        if code != OPTION_VENDOR_OPTS || body.u32()? != aero_options::ENTERPRISE {
            continue;
        }
        while !body.is_empty() {
            let (code, size) = (body.u16()?, body.u16()?);
            let at = message.len() - behind + usize::from(length) - body.0.len();
            body.take(usize::from(size))?;
            if code == aero_options::SIGNATURE {
                let whole = usize::from(size) == LENGTH;
                return whole.then_some(at + HEAD).ok_or(WireError::BadLength);
            }
        }
    }
    Err(WireError::BadValue)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Duid;
    use crate::wire::dhcpv6::Kind;

    fn key() -> Key {
        Key::new(7, [5; SECRET])
    }

    fn covered() -> Covered {
        Covered {
            source: "fe80::2001:db8:0:1".parse().unwrap(),
            destination: "ff02::1:2".parse().unwrap(),
            outer: None,
        }
    }

    fn rebind() -> Vec<u8> {
        let mut m = Message::new(Kind::Rebind, [1, 2, 3]);
        m.client = Duid::from_bytes(&[0, 4, 1, 2, 3]);
        m.aero.push(AeroOption::LinkRequest { link_id: 0, preference: 3 });
        let signature =
            Signature { key: 7, session: 9, counter: 1, bound: false, digest: [0; DIGEST] };
        m.aero.push(AeroOption::Signature(signature));
        m.aero.push(AeroOption::Padding(8));
        m.emit().unwrap()
    }

    #[test]
    fn a_signed_message_is_verified_and_no_bit_of_it_may_be_another() {
        let mut bytes = rebind();
        assert!(!verify(&bytes, &covered(), &key()), "not signed yet");
        sign(&mut bytes, &covered(), &key()).unwrap();
        assert!(verify(&bytes, &covered(), &key()));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(!verify(&bad, &covered(), &key()), "bit {bit}");
        }
        let m = Message::parse(&bytes).unwrap();
        let signature = *Signature::of(&m).unwrap().unwrap();
        assert_eq!((signature.key, signature.session, signature.counter), (7, 9, 1));
        // What is read and written again is the same message.
        assert!(verify(&m.emit().unwrap(), &covered(), &key()));
    }

    #[test]
    fn another_key_another_inner_address_and_another_outer_source_are_refused() {
        let mut bytes = rebind();
        let outer = Some(LinkLayerAddress::new("192.0.2.1".parse().unwrap(), 8060));
        let bound = Covered { outer, ..covered() };
        sign(&mut bytes, &bound, &key()).unwrap();
        assert!(verify(&bytes, &bound, &key()));
        assert!(!verify(&bytes, &bound, &Key::new(7, [6; SECRET])));
        assert!(!verify(&bytes, &covered(), &key()), "it is bound");
        let elsewhere = Some(LinkLayerAddress::new("192.0.2.1".parse().unwrap(), 8061));
        assert!(!verify(&bytes, &Covered { outer: elsewhere, ..bound }, &key()));
        let other = "fe80::2001:db8:0:2".parse().unwrap();
        assert!(!verify(&bytes, &Covered { source: other, ..bound }, &key()));
        assert!(!verify(&bytes, &Covered { destination: other, ..bound }, &key()));
    }

    /// Computed by another implementation (Python's hmac, the message put together by hand).
    #[test]
    fn the_digest_is_the_hmac_of_the_bytes_that_the_document_names() {
        let mut bytes = rebind();
        sign(&mut bytes, &covered(), &key()).unwrap();
        let (_, digest) = without_digest(&bytes).unwrap();
        let hex: String = digest.iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(hex, GOLDEN);
    }

    const GOLDEN: &str = "61b65f208319b891a2333663ba82b679271ab8c018511b1de7fb14bf15ab7b91";

    #[test]
    fn a_key_shows_nothing_of_its_secret() {
        assert_eq!(format!("{:?}", Key::new(3, [0xab; SECRET])), "Key { id: 3, .. }");
    }

    #[test]
    fn two_signatures_and_one_of_a_wrong_length_or_algorithm_are_refused() {
        let mut m = Message::parse(&rebind()).unwrap();
        m.aero.push(m.aero[1].clone());
        assert_eq!(Message::parse(&m.emit().unwrap()), Err(WireError::BadValue));
        assert_eq!(Signature::parse(&[1; LENGTH - 1]), Err(WireError::BadLength));
        assert_eq!(Signature::parse(&[2; LENGTH]), Err(WireError::Unsupported));
    }
}
