//! The underlay: who reaches whom, how late, and what gets lost.

use std::collections::BTreeSet;

use rand::Rng;
use rand::rngs::StdRng;

use crate::clock::{MILLISECOND, Time};

/// Number of a member of the world.
pub type Index = usize;

/// The longest that a packet can be on its way.
pub const MAX_DELAY: Time = 400 * MILLISECOND;

/// How bad the network is at present.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Weather {
    /// Probability that a packet is lost.
    pub loss: f64,
    /// Probability that it arrives twice.
    pub duplicate: f64,
    /// Probability that it is held up behind later ones.
    pub reorder: f64,
}

/// No loss, no trouble.
pub const FAIR: Weather = Weather { loss: 0.0, duplicate: 0.0, reorder: 0.0 };

/// The underlay between members.
#[derive(Debug)]
pub struct Network {
    salt: u64,
    /// How bad it is at present.
    pub weather: Weather,
    /// Members that reach nobody.
    pub isolated: BTreeSet<Index>,
    /// Members of different groups do not reach each other; all others are in group 0.
    pub groups: Vec<u8>,
    /// Packets from the first to the second of a pair are lost.
    pub cut: BTreeSet<(Index, Index)>,
}

impl Network {
    /// A network that works. `salt` gives every pair its own delay.
    pub fn new(salt: u64, members: usize) -> Self {
        Self {
            salt,
            weather: FAIR,
            isolated: BTreeSet::new(),
            groups: vec![0; members],
            cut: BTreeSet::new(),
        }
    }

    /// True if packets can get from one member to another.
    pub fn reaches(&self, from: Index, to: Index) -> bool {
        let group = |m: Index| self.groups.get(m).copied().unwrap_or(0);
        group(from) == group(to)
            && (self.isolated.is_empty()
                || !(self.isolated.contains(&from) || self.isolated.contains(&to)))
            && (self.cut.is_empty() || !self.cut.contains(&(from, to)))
    }

    /// When a packet that is sent now arrives: never, once or twice.
    pub fn fate(&self, from: Index, to: Index, rng: &mut StdRng) -> [Option<Time>; 2] {
        if !self.reaches(from, to)
            || (self.weather.loss > 0.0 && rng.random_bool(self.weather.loss))
        {
            return [None, None];
        }
        let first = self.delay(from, to, rng);
        let twice = self.weather.duplicate > 0.0 && rng.random_bool(self.weather.duplicate);
        [Some(first), twice.then(|| self.delay(from, to, rng))]
    }

    /// A tenth of a millisecond to six of them, by pair, with some jitter.
    fn delay(&self, from: Index, to: Index, rng: &mut StdRng) -> Time {
        let (a, b) = if from < to { (from, to) } else { (to, from) };
        let mixed = (self.salt ^ ((a as u64) << 32) ^ b as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let base = MILLISECOND / 10 + (mixed >> 40) % (6 * MILLISECOND);
        let late = self.weather.reorder > 0.0 && rng.random_bool(self.weather.reorder);
        let held = if late { rng.random_range(0..MAX_DELAY - 10 * MILLISECOND) } else { 0 };
        base + rng.random_range(0..MILLISECOND / 5) + held
    }
}
