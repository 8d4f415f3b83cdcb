//! DUIDs as people write them, and the one that a host keeps.

use std::io;
use std::path::Path;

use aero_protocol::address::Duid;
use anyhow::Context as _;
use uuid::Uuid;

/// A DUID: the UUID of a DUID-UUID, or all bytes in hex, colons or not.
pub fn parse(text: &str) -> Option<Duid> {
    if text.len() == 36
        && let Ok(uuid) = Uuid::parse_str(text)
    {
        return Some(Duid::from_uuid(uuid));
    }
    let digits: Vec<u8> = text.bytes().filter(|b| *b != b':').collect();
    let bytes: Option<Vec<u8>> = digits
        .chunks(2)
        .map(|pair| match std::str::from_utf8(pair) {
            Ok(hex) if hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
                u8::from_str_radix(hex, 16).ok()
            }
            _ => None,
        })
        .collect();
    Duid::from_bytes(&bytes?)
}

/// The DUID kept in `dir`; made if there is none yet (RFC 8415 section 11: it is not to change,
/// whatever happens to the host's interfaces).
///
/// # Errors
/// If it cannot be read, is none, or cannot be written.
pub fn keep(dir: &Path) -> anyhow::Result<Duid> {
    let path = dir.join("duid");
    match std::fs::read_to_string(&path) {
        Ok(text) => parse(text.trim())
            .with_context(|| format!("{} holds neither a UUID nor a DUID in hex", path.display())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            let uuid = Uuid::new_v4();
            let made = std::fs::create_dir_all(dir).and_then(|()| {
                crate::cni::conflist::replace(&path, format!("{uuid}\n").as_bytes(), 0o600)
            });
            made.with_context(|| format!("the DUID cannot be kept in {}", path.display()))?;
            Ok(Duid::from_uuid(uuid))
        }
        Err(e) => Err(e).with_context(|| path.display().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_duid_of_a_host_is_made_once() {
        let dir = tempfile::tempdir().unwrap();
        let state = dir.path().join("state");
        let first = keep(&state).unwrap();
        assert!(first.uuid().is_some());
        assert_eq!(keep(&state).unwrap(), first);
        std::fs::write(state.join("duid"), "00:01:zz").unwrap();
        assert!(keep(&state).is_err(), "a damaged one is not replaced in silence");
    }

    #[test]
    fn a_duid_is_a_uuid_or_three_bytes_and_more_in_hex() {
        let uuid = "6ba7b810-9dad-11d1-80b4-00c04fd430c8";
        assert_eq!(parse(uuid), Some(Duid::from_uuid(Uuid::parse_str(uuid).unwrap())));
        assert_eq!(parse("00:03:00:01").unwrap().as_bytes(), [0, 3, 0, 1]);
        assert_eq!(parse("00030001"), parse("00:03:00:01"));
        for bad in ["", "0003", "00:03:1", "00:03:zz", "+0:03:01"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
