//! Key files: the secrets that a host outside Kubernetes shares with the Servers.
//!
//! Each line is a key: its number and 64 hex digits. Servers take any of them; a client signs with
//! the first. Empty lines and those that begin with `#` are skipped.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use aero_protocol::wire::signature::{Key, SECRET};
use anyhow::{Context as _, bail};
use zeroize::Zeroizing;

/// Reads a key file.
///
/// # Errors
/// If others may read it, or a line is no key. No message shows any of it but a line number.
pub fn read(path: &Path) -> anyhow::Result<Vec<Key>> {
    let load = || {
        let mode = std::fs::metadata(path)?.permissions().mode();
        if mode & 0o007 != 0 {
            bail!("everybody may read or write it (chmod o= {})", path.display());
        }
        parse(&Zeroizing::new(std::fs::read_to_string(path)?))
    };
    load().with_context(|| format!("the key file {}", path.display()))
}

fn parse(text: &str) -> anyhow::Result<Vec<Key>> {
    let mut keys: Vec<Key> = Vec::new();
    for (n, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let key = key(line).with_context(|| {
            format!("line {} is not a number and {} hex digits", n + 1, SECRET * 2)
        })?;
        if keys.iter().any(|k| k.id() == key.id()) {
            bail!("line {} has a number that another key has", n + 1);
        }
        keys.push(key);
    }
    if keys.is_empty() {
        bail!("it has no key");
    }
    Ok(keys)
}

fn key(line: &str) -> Option<Key> {
    let (id, digits) = line.split_once(char::is_whitespace)?;
    let digits = digits.trim();
    if digits.len() != SECRET * 2 || !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
        return None;
    }
    let mut secret = Zeroizing::new([0; SECRET]);
    for (byte, pair) in secret.iter_mut().zip(digits.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
    }
    Some(Key::new(id.parse().ok()?, *secret))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_number_and_its_hex_and_what_is_none_is_not_shown() {
        let hex = "0123456789abcdef".repeat(4);
        let keys = parse(&format!("# laptop\n\n2 {hex}\n 1\t{} \n", "Ff".repeat(32))).unwrap();
        assert_eq!(keys.iter().map(Key::id).collect::<Vec<_>>(), [2, 1]);
        assert_eq!(keys[1], Key::new(1, [0xff; 32]));
        for bad in [
            String::new(),
            "# nothing\n".into(),
            hex.clone(),
            format!("1 {hex}0"),
            format!("x {hex}"),
            format!("1 {}", "zz".repeat(32)),
            format!("1 {hex}\n1 {hex}"),
        ] {
            let why = format!("{:#}", parse(&bad).unwrap_err());
            assert!(!why.contains("0123") && !why.contains("zz"), "{why}");
        }
    }

    #[test]
    fn a_file_that_everybody_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("laptop.key");
        std::fs::write(&path, format!("1 {}\n", "ab".repeat(32))).unwrap();
        let set = |mode| {
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        set(0o644);
        assert!(format!("{:#}", read(&path).unwrap_err()).contains("everybody"));
        set(0o640);
        assert_eq!(read(&path).unwrap().len(), 1);
    }
}
