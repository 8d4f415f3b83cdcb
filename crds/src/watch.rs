//! How every part of AERO watches the API server, and comes back to a watch that ended.

use std::fmt::Debug;
use std::time::Duration;

use backon::ExponentialBuilder;
use futures::Stream;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, ExponentialBackoff};
use kube::{Api, Resource};
use serde::de::DeserializeOwned;

/// Longest wait before jitter, which at most doubles it.
const MAX_DELAY: Duration = Duration::from_secs(4);

/// Watches objects until it is dropped; after an error it tries again by itself.
pub fn watch<K>(
    api: Api<K>,
    config: watcher::Config,
) -> impl Stream<Item = watcher::Result<Event<K>>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    watcher::watcher(api, config).backoff(backoff())
}

/// Delays between attempts to watch again: 0.5 s to 4 s, each with jitter.
///
/// The default of the library grows to 30 s and its jitter doubles that: after an outage of the
/// API server pods would wait for up to a minute for the agents and the operator to look again.
/// Most attempts go on where the watch ended and list nothing, so that trying sooner is cheap.
fn backoff() -> ExponentialBackoff {
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
    use super::{MAX_DELAY, backoff};

    #[test]
    fn after_a_long_outage_the_next_attempt_is_seconds_away_and_never_the_last() {
        let delays: Vec<_> = backoff().take(1000).collect();
        assert_eq!(delays.len(), 1000);
        assert!(delays.iter().all(|d| *d <= 2 * MAX_DELAY), "{:?}", delays.iter().max());
        assert!(delays.iter().skip(10).any(|d| *d > MAX_DELAY / 2), "does not back off");
    }
}
