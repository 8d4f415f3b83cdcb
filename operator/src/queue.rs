//! Keys of objects that are to be looked at.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// How long a look may wait that nobody waits for: what comes until then is seen by one look.
pub const LATER: Duration = Duration::from_millis(500);

#[derive(Debug, Default)]
struct Keys {
    /// In the order in which they were marked, so that none waits for ever.
    now: VecDeque<String>,
    /// The same, to know whether one is there.
    waits: BTreeSet<String>,
    /// From when on the others are to be looked at; in that order, and by key.
    later: BTreeSet<(Instant, String)>,
    times: BTreeMap<String, Instant>,
}

impl Keys {
    fn mark(&mut self, key: String) {
        if let Some(time) = self.times.remove(&key) {
            self.later.remove(&(time, key.clone()));
        }
        if self.waits.insert(key.clone()) {
            self.now.push_back(key);
        }
    }

    /// The next key, or else the time of the first that is for later.
    fn next(&mut self) -> Result<String, Option<Instant>> {
        while let Some((_, key)) = self.later.first().filter(|(t, _)| *t <= Instant::now()).cloned()
        {
            self.mark(key);
        }
        match self.now.pop_front() {
            Some(key) => {
                self.waits.remove(&key);
                Ok(key)
            }
            None => Err(self.later.first().map(|(time, _)| *time)),
        }
    }
}

/// Keys that are to be looked at, each once however often it is marked.
#[derive(Debug, Default)]
pub struct Queue {
    keys: Mutex<Keys>,
    marked: Notify,
}

impl Queue {
    fn keys(&self) -> MutexGuard<'_, Keys> {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Marks a key.
    pub fn mark(&self, key: impl Into<String>) {
        self.keys().mark(key.into());
        self.marked.notify_one();
    }

    /// Marks a key that is to be looked at within [`LATER`], so that one look is enough for many
    /// changes. Marks that come until then do not put it off.
    pub fn mark_later(&self, key: impl Into<String>) {
        let key = key.into();
        let mut keys = self.keys();
        if !keys.waits.contains(&key) && !keys.times.contains_key(&key) {
            let time = Instant::now() + LATER;
            keys.times.insert(key.clone(), time);
            keys.later.insert((time, key));
            self.marked.notify_one();
        }
    }

    /// Waits for a key.
    pub async fn next(&self) -> String {
        loop {
            let next = self.keys().next();
            match next {
                Ok(key) => return key,
                Err(None) => self.marked.notified().await,
                Err(Some(time)) => {
                    tokio::select! {
                        biased;
                        () = self.marked.notified() => {}
                        () = sleep_until(time) => {}
                    }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_is_for_later_comes_once_in_its_time_or_with_what_is_for_now() {
        let queue = Queue::default();
        let began = Instant::now();
        queue.mark_later("a");
        tokio::time::advance(LATER / 2).await;
        queue.mark_later("a");
        queue.mark_later("b");
        queue.mark("b");
        queue.mark("0");
        queue.mark_later("0");
        assert_eq!((queue.next().await, queue.next().await), ("b".into(), "0".into()), "in order");
        assert_eq!(began.elapsed(), LATER / 2);
        assert_eq!(queue.next().await, "a");
        assert!(began.elapsed() >= LATER && began.elapsed() < LATER + LATER / 4);
        assert!(tokio::time::timeout(10 * LATER, queue.next()).await.is_err(), "each once");
    }
}
