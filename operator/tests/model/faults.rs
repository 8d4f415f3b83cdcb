//! What goes wrong on the way between an operator and the API server, drawn from one generator.

use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;

/// How often which fault is drawn. Shares are of 1.
#[derive(Debug, Clone)]
pub struct Faults {
    /// A write is answered with 500 and not carried out.
    pub refused: f64,
    /// A write is carried out and its answer is lost.
    pub lost: f64,
    /// Somebody else changes the object just before a write reaches it.
    pub touched: f64,
    /// The operator dies just before or just after a request is carried out.
    pub crash: f64,
    /// A watch lags by up to seconds instead of milliseconds.
    pub slow_watch: f64,
    /// Longest way of a request or an answer.
    pub latency: Duration,
}

impl Faults {
    /// Nothing goes wrong; requests take a few milliseconds.
    pub fn none() -> Self {
        Self {
            refused: 0.0,
            lost: 0.0,
            touched: 0.0,
            crash: 0.0,
            slow_watch: 0.0,
            latency: Duration::from_millis(4),
        }
    }

    /// Everything goes wrong now and then.
    pub fn many() -> Self {
        Self {
            refused: 0.02,
            lost: 0.03,
            touched: 0.03,
            crash: 0.004,
            slow_watch: 0.3,
            latency: Duration::from_millis(60),
        }
    }

    /// What happens to one request.
    pub fn draw(&self, rng: &mut StdRng, write: bool) -> Fate {
        let mut way = || rng.random_range(Duration::ZERO..=self.latency);
        let (there, back) = (way(), way());
        let roll: f64 = rng.random();
        let mut bound = self.crash / 2.0;
        let crash_before = roll < bound;
        bound += self.crash / 2.0;
        let crash_after = !crash_before && roll < bound;
        let mut among = |share: f64| {
            let hit = roll >= bound && roll < bound + share;
            bound += share;
            hit && write
        };
        let (refused, lost, touched) = (among(self.refused), among(self.lost), among(self.touched));
        Fate { there, back, crash_before, crash_after, refused, lost, touched }
    }

    /// By how much a watch lags at most, from its start to its end.
    pub fn draw_lag(&self, rng: &mut StdRng) -> Duration {
        if rng.random_bool(self.slow_watch) {
            rng.random_range(Duration::from_millis(200)..Duration::from_secs(9))
        } else {
            rng.random_range(Duration::from_millis(1)..Duration::from_millis(30))
        }
    }
}

/// The fate of a request.
#[derive(Debug, Clone, Default)]
pub struct Fate {
    pub there: Duration,
    pub back: Duration,
    pub crash_before: bool,
    pub crash_after: bool,
    pub refused: bool,
    pub lost: bool,
    pub touched: bool,
}
