//! How every part of AERO comes back to a watch that ended.

use std::time::Duration;

use backon::ExponentialBuilder;
use kube::runtime::watcher::ExponentialBackoff;

/// Longest wait before jitter, which at most doubles it.
const MAX_DELAY: Duration = Duration::from_secs(4);

/// Delays between attempts to watch again: 0.5 s to 4 s, each with jitter.
///
/// The default of the library grows to 30 s and its jitter doubles that: after an outage of the
/// API server pods would wait for up to a minute for the agents and the operator to look again.
/// No part watches anything that is large, so that looking again sooner is cheap.
#[must_use]
pub fn watch_backoff() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(Duration::from_millis(500))
        .with_max_delay(MAX_DELAY)
        .with_factor(2.0)
        .with_jitter()
        .without_max_times()
        .into()
}

#[cfg(test)]
mod tests {
    use super::{MAX_DELAY, watch_backoff};

    #[test]
    fn after_a_long_outage_the_next_attempt_is_seconds_away_and_never_the_last() {
        let delays: Vec<_> = watch_backoff().take(1000).collect();
        assert_eq!(delays.len(), 1000);
        assert!(delays.iter().all(|d| *d <= 2 * MAX_DELAY), "{:?}", delays.iter().max());
        assert!(delays.iter().skip(10).any(|d| *d > MAX_DELAY / 2), "does not back off");
    }
}
