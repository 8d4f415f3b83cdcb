//! What happened, as a hash of everything and, if asked for, as text.

use crate::clock::{Time, seconds};

/// A hash of all that happened and, on demand, its text.
#[derive(Debug)]
pub struct Trace {
    hash: u64,
    text: Option<Vec<String>>,
}

impl Trace {
    /// A trace with or without text.
    pub fn new(with_text: bool) -> Self {
        Self { hash: 0xcbf2_9ce4_8422_2325, text: with_text.then(Vec::new) }
    }

    /// Notes that something happened. `what` and `numbers` go into the hash, `text` is made only
    /// if somebody reads it; so it must say nothing that the numbers do not.
    pub fn note(
        &mut self,
        now: Time,
        what: &'static str,
        numbers: &[u64],
        text: impl FnOnce() -> String,
    ) {
        self.mix(now);
        self.mix(bytes_hash(what.as_bytes()));
        for n in numbers {
            self.mix(*n);
        }
        if let Some(lines) = &mut self.text {
            lines.push(format!("{:12.6} {what:<8} {}", seconds(now), text()));
        }
    }

    fn mix(&mut self, n: u64) {
        self.hash = (self.hash.rotate_left(5) ^ n).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    /// The hash so far.
    pub fn hash(&self) -> u64 {
        self.hash
    }

    /// The lines so far; none if no text was asked for.
    pub fn lines(&self) -> &[String] {
        self.text.as_deref().unwrap_or_default()
    }
}

/// A hash of bytes, the same on every machine.
pub fn bytes_hash(bytes: &[u8]) -> u64 {
    let mut chunks = bytes.chunks_exact(8);
    let mut hash = 0x9e37_79b9_7f4a_7c15 ^ bytes.len() as u64;
    let mut mix = |n: u64| hash = (hash.rotate_left(5) ^ n).wrapping_mul(0x517c_c1b7_2722_0a95);
    for chunk in &mut chunks {
        mix(u64::from_le_bytes(chunk.try_into().unwrap_or_default()));
    }
    for byte in chunks.remainder() {
        mix(u64::from(*byte));
    }
    hash
}
