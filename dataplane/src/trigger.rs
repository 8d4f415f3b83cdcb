//! Tells the engine of packets that went by a Server for want of a direct path.
//!
//! The engine decides what to do; here it is only seen to that it hears of one pair of networks
//! at most once a second, however many packets there are, and that packets never wait for it.

use std::hash::{BuildHasher, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use aero_protocol::client::MAX_REDIRECTED;
use aero_protocol::forwarding::Inner;
use tokio::sync::mpsc;

/// Triggers that wait for the engine at most.
const QUEUE: usize = 256;
/// Pairs of networks that are told apart; others share a slot, and so a second.
const SLOTS: usize = 4096;
/// Between two triggers of one slot.
const INTERVAL: Duration = Duration::from_secs(1);

/// A packet that went by a Server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trigger {
    /// Its addresses.
    pub inner: Inner,
    /// Its beginning, as much as a Predirect can quote.
    pub packet: Vec<u8>,
}

/// The forwarder's end.
#[derive(Debug)]
pub struct Triggers {
    sender: mpsc::Sender<Trigger>,
    hash: RandomState,
    origin: Instant,
    /// Milliseconds from the origin before which a slot is silent.
    slots: Vec<AtomicU64>,
}

impl Triggers {
    /// Both ends.
    pub fn channel() -> (Self, mpsc::Receiver<Trigger>) {
        let (sender, receiver) = mpsc::channel(QUEUE);
        let slots = (0..SLOTS).map(|_| AtomicU64::new(0)).collect();
        let (hash, origin) = (RandomState::new(), Instant::now());
        (Self { sender, hash, origin, slots }, receiver)
    }

    /// A packet went by a Server at `now`.
    pub fn offer(&self, inner: Inner, packet: &[u8], now: Instant) {
        let hash = self.hash.hash_one((network(inner.source), network(inner.destination)));
        let slot = usize::try_from(hash).unwrap_or_default() % SLOTS;
        let Some(silent_until) = self.slots.get(slot) else { return };
        let millis = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let at = millis(now.saturating_duration_since(self.origin));
        let before = silent_until.load(Relaxed);
        let next = at.saturating_add(millis(INTERVAL));
        // Of several that come here at once, one goes on.
        if at < before || silent_until.compare_exchange(before, next, Relaxed, Relaxed).is_err() {
            return;
        }
        let quoted = packet.get(..MAX_REDIRECTED).unwrap_or(packet);
        // When the engine is busy a later packet will do.
        let _ = self.sender.try_send(Trigger { inner, packet: quoted.to_vec() });
    }
}

/// The longest prefix that a host shares with others of its Client.
fn network(host: IpAddr) -> u64 {
    match host {
        IpAddr::V4(v4) => u64::from(u32::from(v4)),
        IpAddr::V6(v6) => u64::try_from(u128::from(v6) >> 64).unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn inner(source: &str, destination: &str) -> Inner {
        Inner { source: source.parse().unwrap(), destination: destination.parse().unwrap() }
    }

    #[test]
    fn a_pair_of_networks_is_reported_once_a_second_with_the_beginning_of_the_packet() {
        let (triggers, mut engine) = Triggers::channel();
        let t0 = triggers.origin;
        let packet = vec![7; 2000];
        let first = inner("2001:db8:0:1::1", "2001:db8:0:2::1");
        for ms in 0..999 {
            triggers.offer(first, &packet, t0 + Duration::from_millis(ms));
        }
        // Another host of both networks is the same pair.
        let same = inner("2001:db8:0:1::2", "2001:db8:0:2::9");
        triggers.offer(same, &packet, t0 + Duration::from_millis(999));
        let reported = engine.try_recv().unwrap();
        assert_eq!((reported.inner, reported.packet.len()), (first, MAX_REDIRECTED));
        assert!(engine.try_recv().is_err());
        triggers.offer(same, &packet[..60], t0 + Duration::from_secs(1));
        assert_eq!(engine.try_recv().unwrap().packet.len(), 60);
    }

    #[test]
    fn an_engine_that_does_not_listen_costs_no_memory() {
        let (triggers, mut engine) = Triggers::channel();
        for n in 0..10_000u32 {
            let to = format!("2001:db8:1:{:x}::1", n % 65536);
            triggers.offer(inner("2001:db8:0:1::1", &to), &[0; 40], triggers.origin);
        }
        let mut waiting = 0;
        while engine.try_recv().is_ok() {
            waiting += 1;
        }
        assert_eq!(waiting, QUEUE);
    }
}
