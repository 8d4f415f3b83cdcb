//! Places of neighbours in the arrays about them: who has traffic counted apart, and who gets
//! IP-in-IP.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use aero_protocol::address::LinkLayerAddress;

/// `SLOTS` of `bpf/table.h`. The first one is for all who have none of their own.
pub const SLOTS: u16 = 1 << 13;
/// Before a slot is given to another neighbour: longer than anything that holds its number lives.
const REST: Duration = Duration::from_secs(600);

#[derive(Debug, Default)]
pub(super) struct Slots {
    held: HashMap<LinkLayerAddress, (u16, usize)>,
    resting: VecDeque<(u16, Instant)>,
    used: u16,
}

impl Slots {
    /// A slot for a neighbour, to be given back by [`Slots::release`]; 0 if there is none left.
    pub fn hold(&mut self, neighbor: LinkLayerAddress, now: Instant) -> u16 {
        if let Some((slot, count)) = self.held.get_mut(&neighbor) {
            *count += 1;
            return *slot;
        }
        let rested = self.resting.front().is_some_and(|(_, since)| now >= *since + REST);
        let slot = if rested {
            self.resting.pop_front().map_or(0, |(slot, _)| slot)
        } else if self.used + 1 < SLOTS {
            self.used += 1;
            self.used
        } else {
            0
        };
        if slot != 0 {
            self.held.insert(neighbor, (slot, 1));
        }
        slot
    }

    /// Gives back what one call of [`Slots::hold`] has given. The slot, if it has no holder any
    /// more.
    pub fn release(&mut self, neighbor: LinkLayerAddress, now: Instant) -> Option<u16> {
        let (slot, count) = self.held.get_mut(&neighbor)?;
        let slot = *slot;
        *count -= 1;
        if *count > 0 {
            return None;
        }
        self.held.remove(&neighbor);
        self.resting.push_back((slot, now));
        Some(slot)
    }

    /// The slot of a neighbour; 0 if it has none of its own.
    pub fn of(&self, neighbor: LinkLayerAddress) -> u16 {
        self.held.get(&neighbor).map_or(0, |(slot, _)| *slot)
    }

    /// All neighbours that have one.
    pub fn all(&self) -> impl Iterator<Item = (LinkLayerAddress, u16)> {
        self.held.iter().map(|(neighbor, (slot, _))| (*neighbor, *slot))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn neighbor(n: u32) -> LinkLayerAddress {
        LinkLayerAddress::new(std::net::Ipv4Addr::from(0x0a00_0000 + n).into(), 8060)
    }

    #[test]
    fn a_slot_is_one_neighbours_until_its_last_holder_has_gone_and_a_while_longer() {
        let (mut slots, now) = (Slots::default(), Instant::now());
        let first = slots.hold(neighbor(1), now);
        assert!(first != 0 && slots.hold(neighbor(1), now) == first);
        assert_eq!(slots.release(neighbor(1), now), None);
        assert_eq!(slots.release(neighbor(1), now), Some(first));
        assert_eq!((slots.of(neighbor(1)), slots.release(neighbor(1), now)), (0, None));
        assert_ne!(slots.hold(neighbor(2), now + REST / 2), first, "given away too early");
        assert_eq!(slots.hold(neighbor(3), now + REST), first);
    }

    #[test]
    fn when_all_are_taken_the_rest_share_the_first() {
        let (mut slots, now) = (Slots::default(), Instant::now());
        for n in 1..u32::from(SLOTS) {
            assert_ne!(slots.hold(neighbor(n), now), 0);
        }
        assert_eq!(slots.hold(neighbor(99_999), now), 0);
        assert_eq!(slots.release(neighbor(99_999), now), None);
    }
}
