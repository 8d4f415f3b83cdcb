//! A strict walk over the options of a DHCPv6 message, in front of `dhcproto`.
//!
//! `dhcproto` 0.15 recurses without bound, underflows on short options, ignores the length of
//! fixed-size ones and misreads the vendor options. So nothing reaches it that this walk has
//! not found well-formed, and the options that it misreads (relay 9, user class 15, vendor
//! class 16, vendor options 17) are cut out; 17 is read by [`super::aero_options`].

use super::{Reader, WireError};

/// IA_PD holds IA_PREFIX holds a status: three levels; one to spare.
const MAX_DEPTH: u8 = 4;
/// Longest message taken. RFC 8415 messages of this link are a few hundred bytes.
const MAX_MESSAGE: usize = 8192;

/// The result of the walk.
pub(super) struct Walked<'a> {
    /// The message without the options that `dhcproto` must not see.
    pub(super) safe: Vec<u8>,
    /// Contents of the vendor options of the top level, enterprise number included.
    pub(super) vendor: Vec<&'a [u8]>,
    /// How many authentication options there are (more than one is forbidden).
    pub(super) authentications: usize,
}

/// Walks a client/server message (not a relay message).
pub(super) fn walk(message: &[u8]) -> Result<Walked<'_>, WireError> {
    if message.len() > MAX_MESSAGE {
        return Err(WireError::BadLength);
    }
    let mut r = Reader(message);
    let header = r.take(4)?;
    let mut walked = Walked { safe: header.to_vec(), vendor: Vec::new(), authentications: 0 };
    while !r.is_empty() {
        let before = r.0;
        let (code, body) = option(&mut r)?;
        check(code, body, 0)?;
        match code {
            17 => walked.vendor.push(body),
            9 | 15 | 16 => {}
            _ => {
                if code == 11 {
                    walked.authentications += 1;
                }
                let whole = before.get(..before.len() - r.0.len()).ok_or(WireError::Truncated)?;
                walked.safe.extend_from_slice(whole);
            }
        }
    }
    Ok(walked)
}

fn option<'a>(r: &mut Reader<'a>) -> Result<(u16, &'a [u8]), WireError> {
    let code = r.u16()?;
    let length = r.u16()?;
    Ok((code, r.take(usize::from(length))?))
}

/// Checks one option by its code: sizes, values, and what is nested in it.
fn check(code: u16, body: &[u8], depth: u8) -> Result<(), WireError> {
    if depth >= MAX_DEPTH {
        return Err(WireError::TooDeep);
    }
    let n = body.len();
    let nested = match code {
        1 | 2 => return length_ok((3..=130).contains(&n)),
        3 | 25 => Some(12),
        4 => Some(4),
        5 => Some(24),
        26 => {
            let mut r = Reader(body);
            let (preferred, valid, length) = (r.u32()?, r.u32()?, r.u8()?);
            if length > 128 || preferred > valid {
                return Err(WireError::BadValue);
            }
            Some(25)
        }
        6 => return length_ok(n.is_multiple_of(2)),
        7 | 19 => return length_ok(n == 1),
        8 => return length_ok(n == 2),
        11 => return length_ok(n >= 11),
        12 => return length_ok(n == 16),
        13 => {
            let text = body.get(2..).ok_or(WireError::BadLength)?;
            return std::str::from_utf8(text).map(drop).map_err(|_| WireError::BadValue);
        }
        14 | 20 => return length_ok(n == 0),
        16 | 17 => return length_ok(n >= 4),
        _ => None,
    };
    if let Some(fixed) = nested {
        let mut r = Reader(body.get(fixed..).ok_or(WireError::BadLength)?);
        while !r.is_empty() {
            let (code, body) = option(&mut r)?;
            // Only the top level is cut for dhcproto, and nested they have no meaning.
            if matches!(code, 9 | 15..=17) {
                return Err(WireError::BadValue);
            }
            check(code, body, depth + 1)?;
        }
    }
    Ok(())
}

fn length_ok(ok: bool) -> Result<(), WireError> {
    ok.then_some(()).ok_or(WireError::BadLength)
}
