//! Packets that wait: while a Client goes from one Proxy to another (draft -48 section 3.19) what
//! comes for it is kept, and sent on in order when the engine knows where to.

use std::collections::{BTreeMap, VecDeque};

use ipnet::IpNet;

use super::{Change, NextHop};

/// Most packets that a node keeps; what is beyond is dropped. A thousand packets a second for a
/// hand-over of a second, of four Clients at a time.
pub const MAX_HELD: usize = 4096;

/// What waits, by prefix. `P` is a packet with whatever its forwarder needs to look it up again.
#[derive(Debug, Clone)]
pub struct Held<P> {
    waiting: BTreeMap<IpNet, [VecDeque<P>; 2]>,
    count: usize,
}

impl<P> Default for Held<P> {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), count: 0 }
    }
}

impl<P> Held<P> {
    /// Keeps a packet that [`Disposition::Hold`](super::Disposition::Hold) says is to wait. Gives
    /// it back if there is no room.
    pub fn push(&mut self, prefix: IpNet, first: bool, packet: P) -> Option<P> {
        if self.count >= MAX_HELD {
            return Some(packet);
        }
        let [ahead, behind] = self
            .waiting
            .entry(prefix.trunc())
            .or_insert_with(|| [VecDeque::new(), VecDeque::new()]);
        let queue = if first { ahead } else { behind };
        queue.push_back(packet);
        self.count += 1;
        None
    }

    /// What need not wait any more after this change has been applied, in the order in which it
    /// is to be looked up again.
    pub fn release(&mut self, change: &Change) -> Vec<P> {
        let prefix = match change {
            Change::SetRoute { route, .. } if matches!(route.to, NextHop::Hold { .. }) => {
                return Vec::new();
            }
            Change::SetRoute { prefix, .. } | Change::RemoveRoute { prefix } => prefix.trunc(),
            _ => return Vec::new(),
        };
        let Some([ahead, behind]) = self.waiting.remove(&prefix) else { return Vec::new() };
        self.count -= ahead.len() + behind.len();
        ahead.into_iter().chain(behind).collect()
    }

    /// How many packets wait.
    pub fn len(&self) -> usize {
        self.count
    }

    /// True if none does.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forwarding::Route;

    fn to(prefix: IpNet, to: NextHop) -> Change {
        Change::SetRoute { prefix, route: Route { to, transit: true, until: None } }
    }

    #[test]
    fn what_the_former_proxy_sends_on_comes_first_and_each_in_order() {
        let [one, two]: [IpNet; 2] =
            ["2001:db8:0:1::/64", "2001:db8:0:2::/64"].map(|p| p.parse().unwrap());
        let mut held = Held::default();
        for (first, n) in [(false, 3), (true, 1), (false, 4), (true, 2)] {
            assert_eq!(held.push(one, first, n), None);
        }
        assert_eq!(held.push(two, false, 9), None);
        assert!(held.release(&to(one, NextHop::Hold { first: None })).is_empty(), "it waits on");
        assert_eq!(held.release(&to(one, NextHop::Local)), [1, 2, 3, 4]);
        assert!(held.release(&to(one, NextHop::Local)).is_empty());
        assert_eq!(held.release(&Change::RemoveRoute { prefix: two }), [9]);
        assert!(held.is_empty());
    }

    #[test]
    fn what_waits_is_bounded() {
        let mut held = Held::default();
        let prefix = "2001:db8:0:1::/64".parse().unwrap();
        let refused = (0..MAX_HELD + 7).filter_map(|n| held.push(prefix, false, n)).count();
        assert_eq!((refused, held.len()), (7, MAX_HELD));
    }
}
