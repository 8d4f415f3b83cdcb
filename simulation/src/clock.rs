//! Virtual time, and the clocks that engines read.

use std::time::{Duration, Instant};

/// Nanoseconds since the run began.
pub type Time = u64;

/// A second.
pub const SECOND: Time = 1_000_000_000;
/// A millisecond.
pub const MILLISECOND: Time = 1_000_000;

/// Seconds for people.
#[allow(clippy::cast_precision_loss)] // for reading only
pub fn seconds(t: Time) -> f64 {
    t as f64 / 1e9
}

/// The clock of one machine: set off by some time, and too fast or too slow.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    base: Instant,
    offset: Time,
    /// Parts per million by which it runs fast.
    ppm: i64,
}

impl Clock {
    /// A clock that shows `base` plus `offset` at the start of the run.
    pub fn new(base: Instant, offset: Time, ppm: i64) -> Self {
        Self { base, offset, ppm }
    }

    /// What it shows at `t`.
    pub fn local(&self, t: Time) -> Instant {
        let drift = i128::from(t) * i128::from(self.ppm) / 1_000_000;
        let shown = i128::from(t) + drift + i128::from(self.offset);
        self.base + Duration::from_nanos(u64::try_from(shown).unwrap_or(0))
    }

    /// The first moment at which it shows `at` or later.
    pub fn when(&self, at: Instant) -> Time {
        let shown = at.saturating_duration_since(self.base).as_nanos();
        let since = shown.saturating_sub(u128::from(self.offset));
        let rate = u128::try_from(1_000_000 + self.ppm).unwrap_or(1_000_000);
        // Rounding may be off by one either way.
        let mut t = u64::try_from(since * 1_000_000 / rate).unwrap_or(u64::MAX).saturating_sub(2);
        while self.local(t) < at {
            t += 1;
        }
        t
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_moment_at_which_a_clock_shows_a_time_is_the_first_one() {
        let base = Instant::now();
        for (offset, ppm) in [(0, 0), (3_600 * SECOND, 2_000), (17, -2_000)] {
            let clock = Clock::new(base, offset, ppm);
            for t in [0, 1, 999, SECOND, 40 * SECOND + 7] {
                let again = clock.when(clock.local(t));
                assert!(again <= t && clock.local(again) >= clock.local(t), "{offset} {ppm} {t}");
            }
        }
    }
}
