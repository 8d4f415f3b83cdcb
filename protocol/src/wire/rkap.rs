//! Reconfiguration Key Authentication Protocol, RFC 8415 section 20.4: the Server gives a Client a
//! key in its Reply, and proves with it that a Reconfigure is its own.
//!
//! The key travels in clear. It keeps away who cannot read the path between the two; beyond it a
//! Client takes Reconfigures from its Servers' link-layer addresses only, as all else.

use hmac::{Hmac, KeyInit, Mac};
use md5::Md5;

use super::dhcpv6::Authentication;
use super::{Reader, WireError};

/// Protocol number of RKAP (RFC 8415 section 21.11).
pub const PROTOCOL: u8 = 3;
/// HMAC-MD5.
pub const ALGORITHM: u8 = 1;
/// A counter that only rises.
pub const MONOTONIC: u8 = 0;

const TYPE_KEY: u8 = 1;
const TYPE_DIGEST: u8 = 2;
const OPTION_AUTH: u16 = 11;

/// A reconfigure key.
pub type Key = [u8; 16];

/// The authentication option that gives a key to a Client.
pub fn give(key: &Key, replay: u64) -> Authentication {
    let mut info = vec![TYPE_KEY];
    info.extend_from_slice(key);
    option(replay, info)
}

/// The authentication option of a Reconfigure, its digest still zero: [`sign`] fills it in.
pub fn unsigned(replay: u64) -> Authentication {
    let mut info = vec![TYPE_DIGEST];
    info.extend_from_slice(&[0; 16]);
    option(replay, info)
}

/// The key that a Reply gives.
pub fn given(option: &Authentication) -> Option<Key> {
    let ours = option.protocol == PROTOCOL && option.algorithm == ALGORITHM;
    let key = option.info.strip_prefix(&[TYPE_KEY]).filter(|_| ours)?;
    key.try_into().ok()
}

/// Writes the digest into the bytes of a Reconfigure.
///
/// # Errors
/// If it holds no [`unsigned`] option.
pub fn sign(message: &mut [u8], key: &Key) -> Result<(), WireError> {
    let at = digest_at(message)?;
    let digest = mac(message, key)?.finalize().into_bytes();
    message.get_mut(at..at + 16).ok_or(WireError::Truncated)?.copy_from_slice(&digest);
    Ok(())
}

/// True if the bytes of a Reconfigure were signed with this key.
pub fn verify(message: &[u8], key: &Key) -> bool {
    let checked = || {
        let at = digest_at(message)?;
        let mut zeroed = message.to_vec();
        let field = zeroed.get_mut(at..at + 16).ok_or(WireError::Truncated)?;
        let digest: [u8; 16] = (&*field).try_into().map_err(|_| WireError::Truncated)?;
        field.fill(0);
        Ok::<bool, WireError>(mac(&zeroed, key)?.verify_slice(&digest).is_ok())
    };
    checked().unwrap_or(false)
}

fn option(replay: u64, info: Vec<u8>) -> Authentication {
    Authentication { protocol: PROTOCOL, algorithm: ALGORITHM, rdm: MONOTONIC, replay, info }
}

fn mac(message: &[u8], key: &Key) -> Result<Hmac<Md5>, WireError> {
    let mut mac = Hmac::<Md5>::new_from_slice(key).map_err(|_| WireError::BadLength)?;
    mac.update(message);
    Ok(mac)
}

/// Where the digest of the only authentication option begins.
fn digest_at(message: &[u8]) -> Result<usize, WireError> {
    let mut r = Reader(message);
    r.take(4)?;
    while !r.is_empty() {
        let (code, length) = (r.u16()?, r.u16()?);
        let at = message.len() - r.0.len();
        let body = r.take(usize::from(length))?;
        if code == OPTION_AUTH {
            let typed = body.get(11) == Some(&TYPE_DIGEST) && body.len() == 28;
            return typed.then_some(at + 12).ok_or(WireError::BadValue);
        }
    }
    Err(WireError::BadValue)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Duid;
    use crate::wire::dhcpv6::{Kind, Message};

    fn reconfigure() -> Vec<u8> {
        let mut m = Message::new(Kind::Reconfigure, [0; 3]);
        m.client = Duid::from_bytes(&[0, 4, 1, 2, 3]);
        m.server = Duid::from_bytes(&[0, 4, 9, 9, 9]);
        m.reconfigure = Some(Kind::Rebind);
        m.authentication = Some(unsigned(7));
        m.emit().unwrap()
    }

    #[test]
    fn a_signed_message_is_verified_and_one_with_a_flipped_bit_or_another_key_is_not() {
        let key = [5; 16];
        let mut bytes = reconfigure();
        assert!(!verify(&bytes, &key), "not signed yet");
        sign(&mut bytes, &key).unwrap();
        assert!(verify(&bytes, &key));
        assert!(!verify(&bytes, &[6; 16]));
        for byte in 0..bytes.len() {
            let mut bad = bytes.clone();
            bad[byte] ^= 1;
            assert!(!verify(&bad, &key), "byte {byte}");
        }
        let m = Message::parse(&bytes).unwrap();
        assert_eq!((m.kind, m.reconfigure), (Kind::Reconfigure, Some(Kind::Rebind)));
        assert_eq!(m.authentication.unwrap().replay, 7);
    }

    #[test]
    fn a_key_survives_the_way_to_the_client() {
        let mut m = Message::new(Kind::Reply, [1, 2, 3]);
        m.authentication = Some(give(&[9; 16], 1));
        m.reconfigure_accept = true;
        let m = Message::parse(&m.emit().unwrap()).unwrap();
        assert!(m.reconfigure_accept);
        assert_eq!(given(&m.authentication.unwrap()), Some([9; 16]));
    }
}
