//! Moves as a Server sees them, and how long each left it without a place to send packets to.
//!
//! The time is measured on the Server's own clock, from the end of a prefix's neighbour cache
//! entry to the next entry under a larger epoch; an entry that is replaced directly leaves no
//! gap. What it cannot know is how long a node had been dead before the table said so.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use aero_protocol::address::{Epoch, LinkLayerAddress};
use aero_telemetry::debug::MoveReport;
use ipnet::IpNet;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// How many moves are remembered.
const REMEMBERED: usize = 256;
/// A prefix that was nowhere for longer was not moving: nobody ran.
const LONGEST: Duration = Duration::from_secs(600);

#[derive(Debug)]
struct Place {
    at: LinkLayerAddress,
    epoch: Epoch,
    /// Since when the entry is gone.
    gone: Option<Instant>,
}

#[derive(Debug, Default)]
struct Inner {
    places: BTreeMap<IpNet, Place>,
    identities: BTreeMap<IpNet, String>,
    moves: VecDeque<MoveReport>,
}

/// The moves that a Server has seen.
#[derive(Debug)]
pub struct Moves {
    inner: Mutex<Inner>,
    downtime: Histogram,
}

impl Moves {
    /// Registers the histogram.
    pub fn new(registry: &mut Registry) -> Self {
        // 1 ms to 524 s.
        let downtime = Histogram::new(exponential_buckets(0.001, 2.0, 20));
        registry.register_with_unit(
            "aero_move_downtime",
            "For how long a moved prefix had no neighbour cache entry at this Server",
            Unit::Seconds,
            downtime.clone(),
        );
        Self { inner: Mutex::default(), downtime }
    }

    /// Whose a prefix is, for people.
    pub fn identify(&self, prefix: IpNet, identity: String) {
        self.lock().identities.insert(prefix, identity);
    }

    /// Whose a prefix is.
    pub fn identity(&self, prefix: IpNet) -> Option<String> {
        self.lock().identities.get(&prefix).cloned()
    }

    /// The table has these prefixes and no others.
    pub fn retain(&self, prefixes: &[IpNet]) {
        let prefixes: BTreeSet<&IpNet> = prefixes.iter().collect();
        let mut inner = self.lock();
        inner.identities.retain(|p, _| prefixes.contains(p));
        inner.places.retain(|p, _| prefixes.contains(p));
    }

    /// A prefix has left the table.
    pub fn forget(&self, prefix: IpNet) {
        let mut inner = self.lock();
        inner.identities.remove(&prefix);
        inner.places.remove(&prefix);
    }

    /// A neighbour cache entry has ended.
    pub fn ended(&self, prefix: IpNet, now: Instant) {
        if let Some(place) = self.lock().places.get_mut(&prefix) {
            place.gone.get_or_insert(now);
        }
    }

    /// A neighbour cache entry was made or changed. Tells the gap if that was a move.
    pub fn associated(
        &self,
        prefix: IpNet,
        at: LinkLayerAddress,
        epoch: Epoch,
        now: Instant,
    ) -> Option<Duration> {
        let mut inner = self.lock();
        let old = inner.places.insert(prefix, Place { at, epoch, gone: None })?;
        let gap = old.gone.map_or(Duration::ZERO, |since| now.saturating_duration_since(since));
        if epoch <= old.epoch || gap > LONGEST {
            return None;
        }
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let report = MoveReport {
            at_ms: millis(since),
            prefix: prefix.to_string(),
            identity: inner.identities.get(&prefix).cloned().unwrap_or_default(),
            from: old.at.to_string(),
            to: at.to_string(),
            epoch: epoch.0,
            gap_ms: millis(gap),
        };
        trace(&report);
        if inner.moves.len() == REMEMBERED {
            inner.moves.pop_front();
        }
        inner.moves.push_back(report);
        drop(inner);
        self.downtime.observe(gap.as_secs_f64());
        Some(gap)
    }

    /// The last moves, oldest first.
    pub fn all(&self) -> Vec<MoveReport> {
        self.lock().moves.iter().cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One span for each move, whoever collects spans; as a line of the log it is `moved`.
fn trace(report: &MoveReport) {
    let MoveReport { at_ms: _, prefix, identity, from, to, epoch, gap_ms } = report;
    let span = tracing::info_span!("move", client = identity, prefix, from, to, epoch, gap_ms);
    span.in_scope(|| tracing::info!("moved"));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn l2(n: u8) -> LinkLayerAddress {
        LinkLayerAddress::new([192, 0, 2, n].into(), 8061)
    }

    #[test]
    fn a_move_is_a_new_place_under_a_larger_epoch_and_its_gap_is_the_time_without_an_entry() {
        let moves = Moves::new(&mut Registry::default());
        let prefix: IpNet = "2001:db8:a:1::/64".parse().unwrap();
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        moves.identify(prefix, "default/web/web-0".into());
        assert_eq!(moves.associated(prefix, l2(1), Epoch(1), at(0)), None, "the first is no move");
        moves.ended(prefix, at(100));
        // The same holder again, after an outage.
        assert_eq!(moves.associated(prefix, l2(1), Epoch(1), at(300)), None);
        moves.ended(prefix, at(1000));
        moves.ended(prefix, at(1100));
        let gap = moves.associated(prefix, l2(3), Epoch(2), at(1250));
        assert_eq!(gap, Some(Duration::from_millis(250)));
        let gap = moves.associated(prefix, l2(1), Epoch(3), at(2000));
        assert_eq!(gap, Some(Duration::ZERO), "replaced directly");
        moves.ended(prefix, at(3000));
        assert_eq!(moves.associated(prefix, l2(2), Epoch(4), at(700_000)), None, "nobody ran");
        let all = moves.all();
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].identity, "default/web/web-0");
        assert_eq!(
            (all[0].from.as_str(), all[0].to.as_str()),
            ("192.0.2.1:8061", "192.0.2.3:8061")
        );
    }
}
