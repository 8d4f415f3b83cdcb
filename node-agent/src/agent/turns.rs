//! Who is next: what is asked for one pod, or one container, is done one after the other.
//!
//! A plugin that is killed leaves its request behind, and the runtime's next try does not wait for
//! it. Side by side the two would leave the interfaces of both.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{Mutex as Waiting, OwnedMutexGuard};

/// All turns.
#[derive(Debug, Default)]
pub struct Turns {
    /// The place of the latest that had its turn, by what it is about.
    all: Mutex<HashMap<String, Weak<Waiting<u64>>>>,
    next: AtomicU64,
}

/// A place in the queue, taken when a request comes.
#[derive(Debug)]
pub struct Place {
    turn: Arc<Waiting<u64>>,
    number: u64,
}

impl Turns {
    /// Takes a place among the requests about something.
    pub fn place(&self, about: &str) -> Place {
        let number = self.next.fetch_add(1, Ordering::Relaxed) + 1;
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|_, turn| turn.strong_count() > 0);
        let turn = all.get(about).and_then(Weak::upgrade).unwrap_or_default();
        all.insert(about.into(), Arc::downgrade(&turn));
        Place { turn, number }
    }
}

impl Place {
    /// Waits until nobody else has the turn, which is over when what is returned is dropped. `None`
    /// for a place that one behind it has overtaken: what it asked for is no longer wanted.
    pub async fn turn(&self) -> Option<OwnedMutexGuard<u64>> {
        let mut latest = Arc::clone(&self.turn).lock_owned().await;
        if *latest > self.number {
            return None;
        }
        *latest = self.number;
        Some(latest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    #[test]
    fn one_waits_for_the_one_before_it_and_for_nobody_else() {
        let turns = Turns::default();
        let (first, second, other) = (turns.place("a"), turns.place("a"), turns.place("b"));
        let held = first.turn().now_or_never().unwrap().unwrap();
        assert!(second.turn().now_or_never().is_none());
        assert!(other.turn().now_or_never().unwrap().is_some());
        drop(held);
        assert!(second.turn().now_or_never().unwrap().is_some());
    }

    #[test]
    fn one_that_was_overtaken_has_no_turn_any_more_and_nothing_is_remembered_for_nobody() {
        let turns = Turns::default();
        let (first, second) = (turns.place("a"), turns.place("a"));
        drop(second.turn().now_or_never().unwrap());
        drop(second);
        assert!(first.turn().now_or_never().unwrap().is_none());
        drop(first);
        let next = turns.place("b");
        assert_eq!(turns.all.lock().unwrap().len(), 1);
        assert!(next.turn().now_or_never().unwrap().is_some());
    }
}
