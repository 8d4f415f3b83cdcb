//! Warnings that others can set off as often as they like: a few of each kind in a second are
//! written, the rest are counted. The metrics have them all.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Warnings of one kind that are written in [`WINDOW`].
const MOST: u32 = 5;
const WINDOW: Duration = Duration::from_secs(1);

static ALL: Sparing = Sparing::new();

/// Whether a warning of this kind may be written now; if so, with how many of its kind were not
/// since the last one that was, if any.
pub fn may_warn(kind: &'static str) -> Option<Option<u64>> {
    ALL.take(kind, Instant::now())
}

#[derive(Debug)]
struct Sparing(Mutex<BTreeMap<&'static str, Kind>>);

#[derive(Debug)]
struct Kind {
    since: Instant,
    written: u32,
    left_out: u64,
}

impl Sparing {
    const fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    fn take(&self, kind: &'static str, now: Instant) -> Option<Option<u64>> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = Kind { since: now, written: 0, left_out: 0 };
        let kind = all.entry(kind).or_insert(fresh);
        if now.saturating_duration_since(kind.since) >= WINDOW {
            kind.since = now;
            kind.written = 0;
        }
        if kind.written >= MOST {
            kind.left_out += 1;
            return None;
        }
        kind.written += 1;
        let left_out = std::mem::take(&mut kind.left_out);
        Some((left_out > 0).then_some(left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_a_flood_five_a_second_are_written_and_the_next_one_says_how_many_were_not() {
        let (all, start) = (Sparing::new(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        let written = (0..1000).filter(|ms| all.take("replayed", at(*ms)).is_some()).count();
        assert_eq!(written, 5);
        assert_eq!(all.take("replayed", at(1000)), Some(Some(995)));
        assert_eq!(all.take("replayed", at(1001)), Some(None), "each is counted once");
        for _ in 0..100 {
            let _ = all.take("replayed", at(1002));
        }
        assert_eq!(all.take("unknown", at(1002)), Some(None), "another kind is another");
    }
}
