//! The constants of the link (draft -48 sections 3.6 and 3.11, RFC 4861 section 10, RFC 8415
//! section 7.6), RFC 8415 retransmission, and a queue of pending timers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use rand::Rng;

/// How long a target accepts packets straight from a neighbour that announced itself.
pub const ACCEPT_TIME: Duration = Duration::from_secs(40);
/// How long packets go straight to a target without a sign of life; also how long the node
/// that a Client left forwards what still arrives for it.
pub const FORWARD_TIME: Duration = Duration::from_secs(30);
/// Unanswered solicitations before a neighbour counts as unreachable.
pub const MAX_RETRY: u8 = 3;
/// Between Neighbor Solicitations to one neighbour.
pub const RETRANS_TIMER: Duration = Duration::from_secs(1);
/// Between Neighbor Solicitations to a Server that data goes by, and to one that has left one
/// unanswered (ours: with a second between them it would take four to notice that it is dead).
pub const WATCH_TIMER: Duration = Duration::from_millis(200);
/// The same when the underlay says that what was sent to the Server has not arrived (ours).
pub const HINT_TIMER: Duration = Duration::from_millis(100);
/// Most unsolicited Neighbor Advertisements to one neighbour for one event.
pub const MAX_NEIGHBOR_ADVERTISEMENT: u8 = 3;
/// How long a Server goes on forwarding for a Client that went to another Server (draft -48
/// section 3.15.2; the draft gives no name).
pub const RELEASE_LINGER: Duration = Duration::from_secs(5);
/// Default valid lifetime of a delegated prefix.
pub const LEASE_TIME: Duration = Duration::from_secs(40);

/// Retransmission of a DHCPv6 message, RFC 8415 section 15.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retransmission {
    /// Initial retransmission time (IRT).
    pub initial: Duration,
    /// Maximum retransmission time (MRT); zero means no bound.
    pub maximum: Duration,
    /// Maximum retransmission count (MRC); zero means no bound.
    pub count: u32,
}

/// Solicit. RFC 8415 backs off to an hour; here a Server that comes back, or a table that
/// changes, is to be noticed within seconds.
pub const SOLICIT: Retransmission =
    Retransmission { initial: Duration::from_secs(1), maximum: Duration::from_secs(4), count: 0 };
/// Request.
pub const REQUEST: Retransmission =
    Retransmission { initial: Duration::from_secs(1), maximum: Duration::from_secs(30), count: 10 };
/// Renew; ends at T2.
pub const RENEW: Retransmission = Retransmission {
    initial: Duration::from_secs(10),
    maximum: Duration::from_secs(600),
    count: 0,
};
/// Rebind because the Client moved: the parameters of Confirm (RFC 8415 section 18.2.12)
/// without its initial random wait, since the draft wants it sent at once.
pub const REBIND_MOVED: Retransmission =
    Retransmission { initial: Duration::from_secs(1), maximum: Duration::from_secs(4), count: 0 };
/// Rebind at T2.
pub const REBIND: Retransmission = RENEW;
/// Release.
pub const RELEASE: Retransmission =
    Retransmission { initial: Duration::from_secs(1), maximum: Duration::ZERO, count: 4 };

/// Reconfigure (RFC 8415 section 7.6: REC_TIMEOUT, REC_MAX_RC).
pub const RECONFIGURE: Retransmission =
    Retransmission { initial: Duration::from_secs(2), maximum: Duration::ZERO, count: 8 };

impl Retransmission {
    /// The time to wait after the transmission that followed a wait of `previous` (`None` for
    /// the first transmission): doubled, bounded, and spread by up to 10 percent.
    pub fn next<R: Rng>(&self, previous: Option<Duration>, rng: &mut R) -> Duration {
        let spread = |d: Duration, rng: &mut R| d.mul_f64(1.0 + rng.random_range(-0.1..0.1));
        let wait = match previous {
            None => spread(self.initial, rng),
            Some(p) => p + spread(p, rng),
        };
        if self.maximum.is_zero() || wait <= self.maximum {
            wait
        } else {
            spread(self.maximum, rng)
        }
    }
}

/// T2 for a preferred lifetime, both in seconds: 0.8 of it (RFC 8415 section 21.21), without the
/// steps of five that dividing first would make.
pub fn four_fifths(seconds: u32) -> u32 {
    let four = u64::from(seconds) * 4;
    u32::try_from(four / 5).unwrap_or(u32::MAX)
}

/// Pending timers, one per key, in the order in which they fall due.
#[derive(Debug, Clone)]
pub struct Timers<K> {
    by_key: BTreeMap<K, Instant>,
    by_time: BTreeSet<(Instant, K)>,
}

impl<K> Default for Timers<K> {
    fn default() -> Self {
        Self { by_key: BTreeMap::new(), by_time: BTreeSet::new() }
    }
}

impl<K: Ord + Clone> Timers<K> {
    /// Arms `key`, in place of what it was armed for.
    pub fn set(&mut self, key: K, at: Instant) {
        self.cancel(&key);
        self.by_time.insert((at, key.clone()));
        self.by_key.insert(key, at);
    }

    /// Arms `key`, unless it is armed.
    pub fn set_if_idle(&mut self, key: K, at: Instant) {
        if !self.by_key.contains_key(&key) {
            self.set(key, at);
        }
    }

    /// Disarms `key`.
    pub fn cancel(&mut self, key: &K) {
        if let Some(at) = self.by_key.remove(key) {
            self.by_time.remove(&(at, key.clone()));
        }
    }

    /// How many are armed.
    pub fn len(&self) -> usize {
        self.by_key.len()
    }

    /// True if none is armed.
    pub fn is_empty(&self) -> bool {
        self.by_key.is_empty()
    }

    /// When the next timer falls due.
    pub fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes a timer that is due.
    pub fn pop_due(&mut self, now: Instant) -> Option<K> {
        if self.next()? > now {
            return None;
        }
        let (_, key) = self.by_time.pop_first()?;
        self.by_key.remove(&key);
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;

    #[test]
    fn retransmission_doubles_up_to_its_bound_with_a_tenth_of_spread() {
        let mut rng = rand::rngs::StdRng::seed_from_u64(1);
        let mut wait = None;
        for expected in [1.0, 2.0, 4.0, 4.0, 4.0] {
            let next = SOLICIT.next(wait, &mut rng);
            let error = next.as_secs_f64() / expected;
            assert!((0.7..1.4).contains(&error), "{next:?} where about {expected} s is due");
            assert!(next <= SOLICIT.maximum.mul_f64(1.1));
            wait = Some(next);
        }
    }

    #[test]
    fn t2_is_behind_t1_for_short_lifetimes_too_and_does_not_overflow() {
        assert_eq!([5, 8, 40].map(four_fifths), [4, 6, 32]);
        assert_eq!(four_fifths(u32::MAX), 3_435_973_836);
        for lifetime in 3..100 {
            assert!(four_fifths(lifetime) > lifetime / 2, "{lifetime}");
        }
    }

    #[test]
    fn a_timer_that_is_armed_again_falls_due_once_at_the_new_time() {
        let t0 = Instant::now();
        let mut timers = Timers::default();
        timers.set("a", t0);
        timers.set("a", t0 + Duration::from_secs(2));
        timers.set("b", t0 + Duration::from_secs(1));
        assert_eq!(timers.pop_due(t0), None);
        assert_eq!(timers.next(), Some(t0 + Duration::from_secs(1)));
        assert_eq!(timers.pop_due(t0 + Duration::from_secs(3)), Some("b"));
        assert_eq!(timers.pop_due(t0 + Duration::from_secs(3)), Some("a"));
        assert_eq!(timers.next(), None);
    }
}
