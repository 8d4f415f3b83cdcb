//! Packets and bytes forwarded, packets dropped by reason.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use aero_protocol::forwarding::Drop;

/// Counters of a forwarder.
#[derive(Debug, Default)]
pub struct Counters {
    /// Packets handed to this node's network layer.
    pub delivered_packets: AtomicU64,
    /// Their bytes.
    pub delivered_bytes: AtomicU64,
    /// Packets sent into a tunnel.
    pub tunneled_packets: AtomicU64,
    /// Their bytes, without encapsulation.
    pub tunneled_bytes: AtomicU64,
    /// Control packets given to the engine.
    pub control_packets: AtomicU64,
    /// Packets that the device or the underlay did not take.
    pub send_errors: AtomicU64,
    drops: [AtomicU64; Drop::ALL.len()],
}

impl Counters {
    /// Counts a dropped packet.
    pub fn dropped(&self, why: Drop) {
        if let Some(n) = Drop::ALL.iter().position(|d| *d == why)
            && let Some(counter) = self.drops.get(n)
        {
            counter.fetch_add(1, Relaxed);
        }
    }

    /// The counters as they are now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            delivered_packets: self.delivered_packets.load(Relaxed),
            delivered_bytes: self.delivered_bytes.load(Relaxed),
            tunneled_packets: self.tunneled_packets.load(Relaxed),
            tunneled_bytes: self.tunneled_bytes.load(Relaxed),
            control_packets: self.control_packets.load(Relaxed),
            send_errors: self.send_errors.load(Relaxed),
            drops: Drop::ALL.iter().zip(&self.drops).map(|(d, n)| (*d, n.load(Relaxed))).collect(),
        }
    }
}

/// Counters at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs)] // as in Counters
pub struct Snapshot {
    pub delivered_packets: u64,
    pub delivered_bytes: u64,
    pub tunneled_packets: u64,
    pub tunneled_bytes: u64,
    pub control_packets: u64,
    pub send_errors: u64,
    pub drops: BTreeMap<Drop, u64>,
}
