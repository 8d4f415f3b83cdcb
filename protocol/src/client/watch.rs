//! How closely a Server is looked at.
//!
//! RFC 4861 solicits a neighbour once a second, so a dead Server would be noticed after four. Here
//! the one that data goes by is solicited each [`WATCH_TIMER`], and so is any that has left a
//! solicitation unanswered; where the underlay says that a Server was not reached, each
//! [`HINT_TIMER`]. Three solicitations without an answer make a doubt: data goes by another Server
//! for the time being, at the price of a route, and it is solicited twice a second. What is dear, to give the Server up and ask it for
//! everything again, takes three seconds as ever, so that some lost packets do not cost it.
//!
//! A Server that is farther than that is solicited no more often than its answers come back.

use std::time::{Duration, Instant};

use super::SETTLE_TIME;
use crate::timers::{HINT_TIMER, RETRANS_TIMER, WATCH_TIMER};

/// For how long data that has gone by a Server makes it one that data goes by: forwarders tell of a
/// pair once a second.
const USED_TIME: Duration = Duration::from_secs(2);
/// A Server that has not answered for this long is dead.
const DEAD_TIME: Duration = Duration::from_secs(3);

type Nonce = [u8; 6];

/// What is known of a Server's answers.
#[derive(Debug, Default)]
pub(super) struct Watch {
    /// Of the present row of solicitations, and of the row before: its answers may be late.
    nonces: [Option<Nonce>; 2],
    /// When the present row began, and when its last solicitation was sent.
    row: Option<Instant>,
    sent: Option<Instant>,
    /// What the last answer took.
    round_trip: Duration,
    used: Option<Instant>,
    hinted: Option<Instant>,
    doubted: bool,
    /// When the last doubt was over.
    cleared: Option<Instant>,
}

impl Watch {
    /// The n-th solicitation of a row, counted from one, is being sent: its nonce. One row has one,
    /// as its answers may take longer than the next solicitation.
    pub(super) fn solicits(&mut self, n: u8, fresh: Nonce, now: Instant) -> Nonce {
        self.sent = Some(now);
        match self.nonces {
            [Some(nonce), _] if n > 1 => nonce,
            [before, _] => {
                self.row = Some(now);
                self.nonces = [Some(fresh), before];
                fresh
            }
        }
    }

    /// True if an answer with this nonce is one to a solicitation of ours.
    pub(super) fn has_sent(&self, nonce: &[u8]) -> bool {
        self.nonces.iter().flatten().any(|n| n == nonce)
    }

    /// What the answer with this nonce took, if it answers the present row.
    pub(super) fn round_trip_of(&self, nonce: &[u8], now: Instant) -> Option<Duration> {
        let present = self.nonces.first()?.is_some_and(|n| n == nonce) && !self.doubted;
        self.row.filter(|_| present).map(|row| now.saturating_duration_since(row))
    }

    /// A sign of life.
    pub(super) fn answered(&mut self, now: Instant) {
        // After a silence it says nothing about the way.
        if let Some(row) = self.row.take()
            && !self.doubted
        {
            self.round_trip = now.saturating_duration_since(row);
        }
        self.hinted = None;
        if std::mem::take(&mut self.doubted) {
            self.cleared = Some(now);
        }
    }

    /// Data has gone by the Server.
    pub(super) fn used(&mut self, now: Instant) {
        self.used = Some(now);
    }

    /// The underlay says that the Server was not reached.
    pub(super) fn hinted(&mut self, now: Instant) {
        self.hinted = Some(now);
    }

    /// When to solicit again, with so many unanswered.
    pub(super) fn next(&self, unanswered: u8, now: Instant) -> Instant {
        let next = self.sent.unwrap_or(now) + self.pace(unanswered, now);
        match self.row {
            Some(row) if self.doubted => next.min(row + DEAD_TIME),
            _ => next,
        }
    }

    /// The same if that is sooner than at the usual pace.
    pub(super) fn sooner(&self, unanswered: u8, now: Instant) -> Option<Instant> {
        (self.pace(unanswered, now) < RETRANS_TIMER).then(|| self.next(unanswered, now).max(now))
    }

    fn pace(&self, unanswered: u8, now: Instant) -> Duration {
        let within = |at: Option<Instant>, time| at.is_some_and(|at| now < at + time);
        let hinted = within(self.hinted, RETRANS_TIMER);
        let quick = hinted || within(self.used, USED_TIME) || unanswered > 1;
        if self.doubted {
            return RETRANS_TIMER / 2;
        }
        if !quick {
            return RETRANS_TIMER;
        }
        let shortest = if hinted { HINT_TIMER } else { WATCH_TIMER };
        shortest.max(self.round_trip).min(RETRANS_TIMER)
    }

    /// Three solicitations are unanswered. True if that is news.
    pub(super) fn doubt(&mut self) -> bool {
        !std::mem::replace(&mut self.doubted, true)
    }

    /// It may be dead.
    pub(super) fn is_doubted(&self) -> bool {
        self.doubted
    }

    /// There has been no doubt for a while: one that is in doubt now and then is not changed to.
    pub(super) fn is_steady(&self, now: Instant) -> bool {
        !self.doubted && self.cleared.is_none_or(|at| now >= at + SETTLE_TIME)
    }

    /// It has been silent for as long as three solicitations take at the usual pace.
    pub(super) fn is_dead(&self, now: Instant) -> bool {
        self.row.is_none_or(|row| now >= row + DEAD_TIME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::timers::MAX_RETRY;

    /// The moments at which a Server that never answers is solicited, in milliseconds, until it is
    /// dead; and after how many there is doubt.
    fn silent(mut watch: Watch, start: Instant) -> (Vec<u128>, Option<u128>) {
        let (mut now, mut unanswered, mut all, mut doubted) = (start, 0u8, Vec::new(), None);
        loop {
            if unanswered >= MAX_RETRY {
                if watch.is_dead(now) {
                    return (all, doubted);
                }
                if watch.doubt() {
                    doubted = Some((now - start).as_millis());
                }
            }
            unanswered += 1;
            watch.solicits(unanswered, [unanswered; 6], now);
            all.push((now - start).as_millis());
            now = watch.next(unanswered, now);
        }
    }

    #[test]
    fn a_server_that_data_goes_by_is_doubted_within_a_second_and_dead_after_three() {
        let start = Instant::now();
        let idle = silent(Watch::default(), start);
        assert_eq!(idle, (vec![0, 1000, 1200, 1400, 1900, 2400, 2900], Some(1400)));
        let used = Watch { used: Some(start), ..Watch::default() };
        let (sent, doubted) = silent(used, start);
        assert_eq!((&sent[..5], doubted), (&[0, 200, 400, 600, 1100][..], Some(600)));
        assert_eq!(sent.len(), 8, "then twice a second: {sent:?}");
        let hinted = Watch { hinted: Some(start), ..Watch::default() };
        let (sent, doubted) = silent(hinted, start);
        assert_eq!((&sent[..5], doubted), (&[0, 100, 200, 300, 800][..], Some(300)));
    }

    #[test]
    fn a_distant_server_is_solicited_at_the_pace_of_its_answers() {
        let start = Instant::now();
        let far =
            Watch { used: Some(start), round_trip: Duration::from_millis(700), ..Watch::default() };
        assert_eq!(silent(far, start).0[..3], [0, 700, 1400]);
    }

    #[test]
    fn an_answer_to_the_row_before_is_one_and_rows_have_nonces_of_their_own() {
        let mut watch = Watch::default();
        let now = Instant::now();
        assert_eq!(watch.solicits(1, [1; 6], now), [1; 6]);
        assert_eq!(watch.solicits(2, [2; 6], now), [1; 6], "one row, one nonce");
        watch.answered(now);
        assert_eq!(watch.solicits(1, [3; 6], now), [3; 6]);
        assert!(watch.has_sent(&[1; 6]) && watch.has_sent(&[3; 6]) && !watch.has_sent(&[2; 6]));
        watch.answered(now);
        watch.solicits(1, [4; 6], now);
        assert!(!watch.has_sent(&[1; 6]));
    }
}
