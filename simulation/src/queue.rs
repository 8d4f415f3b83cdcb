//! What is going to happen, in order. Events of one moment happen in the order in which they
//! were put in.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::clock::Time;

/// A queue of events.
#[derive(Debug)]
pub struct Queue<E> {
    order: BinaryHeap<Reverse<(Time, u64, usize)>>,
    events: Vec<Option<E>>,
    free: Vec<usize>,
    sequence: u64,
}

impl<E> Default for Queue<E> {
    fn default() -> Self {
        Self { order: BinaryHeap::new(), events: Vec::new(), free: Vec::new(), sequence: 0 }
    }
}

impl<E> Queue<E> {
    /// Puts an event in.
    pub fn push(&mut self, at: Time, event: E) {
        let slot = match self.free.pop() {
            Some(slot) => slot,
            None => {
                self.events.push(None);
                self.events.len() - 1
            }
        };
        if let Some(place) = self.events.get_mut(slot) {
            *place = Some(event);
        }
        self.order.push(Reverse((at, self.sequence, slot)));
        self.sequence += 1;
    }

    /// Takes the next event if it happens at `end` or before.
    pub fn pop(&mut self, end: Time) -> Option<(Time, E)> {
        let Reverse((at, _, slot)) = *self.order.peek()?;
        if at > end {
            return None;
        }
        self.order.pop();
        self.free.push(slot);
        Some((at, self.events.get_mut(slot)?.take()?))
    }

    /// How many events wait.
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// True if none waits.
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }
}
