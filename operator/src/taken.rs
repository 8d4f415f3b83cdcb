//! A set of prefixes as runs without a gap, so that the first gap is found without a search through
//! all of them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// Prefixes of one family and length.
type Kind = (bool, u8);

/// The set. Prefixes of different lengths do not know of each other.
#[derive(Debug, Default, Clone)]
pub struct Taken {
    /// First and last place of each run; no two touch.
    runs: BTreeMap<Kind, BTreeMap<u128, u128>>,
}

fn kind(prefix: IpNet) -> Kind {
    (prefix.addr().is_ipv4(), prefix.prefix_len())
}

/// The place of a prefix among all of its length.
pub fn place(prefix: IpNet) -> u128 {
    let (bits, width) = match prefix.network() {
        IpAddr::V4(a) => (u128::from(u32::from(a)), 32),
        IpAddr::V6(a) => (u128::from(a), 128),
    };
    bits.checked_shr(width - u32::from(prefix.prefix_len())).unwrap_or(0)
}

impl Taken {
    /// The run that a place is in.
    fn run(&self, kind: Kind, at: u128) -> Option<(u128, u128)> {
        let (first, last) = self.runs.get(&kind)?.range(..=at).next_back()?;
        (*last >= at).then_some((*first, *last))
    }

    /// Whether it has a prefix.
    pub fn contains(&self, prefix: IpNet) -> bool {
        self.run(kind(prefix), place(prefix)).is_some()
    }

    /// The first place from `at` on that is free, among prefixes of the length of `like`.
    pub fn first_free(&self, like: IpNet, at: u128) -> u128 {
        self.run(kind(like), at).map_or(at, |(_, last)| last.saturating_add(1))
    }

    /// Adds a prefix.
    pub fn insert(&mut self, prefix: IpNet) {
        let (kind, at) = (kind(prefix), place(prefix));
        if self.run(kind, at).is_some() {
            return;
        }
        let before = at.checked_sub(1).and_then(|b| self.run(kind, b));
        let after = at.checked_add(1).and_then(|a| self.run(kind, a));
        let runs = self.runs.entry(kind).or_default();
        if let Some((first, _)) = after {
            runs.remove(&first);
        }
        runs.insert(before.map_or(at, |b| b.0), after.map_or(at, |a| a.1));
    }

    /// Takes a prefix out.
    pub fn remove(&mut self, prefix: IpNet) {
        let (kind, at) = (kind(prefix), place(prefix));
        let Some((first, last)) = self.run(kind, at) else { return };
        let runs = self.runs.entry(kind).or_default();
        runs.remove(&first);
        if first < at {
            runs.insert(first, at - 1);
        }
        if at < last {
            runs.insert(at + 1, last);
        }
        if runs.is_empty() {
            self.runs.remove(&kind);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn it_has_what_a_plain_set_has_and_its_runs_never_touch() {
        let prefix = |n: u32| format!("2001:db8:a:{n:x}::/64").parse::<IpNet>().unwrap();
        let (mut taken, mut plain) = (Taken::default(), BTreeSet::new());
        let mut random = fastrand::Rng::with_seed(1);
        for _ in 0..5000 {
            let n = random.u32(0..40);
            if random.bool() {
                taken.insert(prefix(n));
                plain.insert(n);
            } else {
                taken.remove(prefix(n));
                plain.remove(&n);
            }
            let from = random.u32(0..40);
            let free = (from..).find(|n| !plain.contains(n)).unwrap();
            assert_eq!(taken.first_free(prefix(0), place(prefix(from))), place(prefix(free)));
            assert_eq!(taken.contains(prefix(from)), plain.contains(&from));
            let runs: Vec<_> = taken.runs.values().flatten().collect();
            assert!(runs.windows(2).all(|w| w[0].1 + 1 < *w[1].0), "{runs:?}");
        }
        assert!(!taken.contains("2001:db8:a::/48".parse().unwrap()));
    }
}
