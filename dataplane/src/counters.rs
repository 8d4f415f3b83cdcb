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
    /// Control packets received.
    pub control_packets: AtomicU64,
    /// Packets that the device or the underlay did not take.
    pub send_errors: AtomicU64,
    /// Packets sent in fragments: of the tunnel, or of the inner IPv4 packet.
    pub fragmented_packets: AtomicU64,
    /// Packets put together from fragments of the tunnel.
    pub reassembled_packets: AtomicU64,
    /// ICMP errors sent to inner sources.
    pub icmp_errors: AtomicU64,
    /// Probes of path MTUs sent.
    pub path_probes: AtomicU64,
    /// ICMP errors of the underlay received.
    pub underlay_errors: AtomicU64,
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

    /// Counts a packet handed to this node's network layer.
    pub fn delivered(&self, bytes: usize) {
        self.delivered_packets.fetch_add(1, Relaxed);
        self.delivered_bytes.fetch_add(u64::try_from(bytes).unwrap_or(0), Relaxed);
    }

    /// Counts a packet sent into a tunnel.
    pub fn tunneled(&self, bytes: usize) {
        self.tunneled_packets.fetch_add(1, Relaxed);
        self.tunneled_bytes.fetch_add(u64::try_from(bytes).unwrap_or(0), Relaxed);
    }

    /// The counters as they are now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            delivered_packets: self.delivered_packets.load(Relaxed),
            delivered_bytes: self.delivered_bytes.load(Relaxed),
            tunneled_packets: self.tunneled_packets.load(Relaxed),
            tunneled_bytes: self.tunneled_bytes.load(Relaxed),
            control_packets: self.control_packets.load(Relaxed),
            passed_packets: 0,
            send_errors: self.send_errors.load(Relaxed),
            fragmented_packets: self.fragmented_packets.load(Relaxed),
            reassembled_packets: self.reassembled_packets.load(Relaxed),
            icmp_errors: self.icmp_errors.load(Relaxed),
            path_probes: self.path_probes.load(Relaxed),
            underlay_errors: self.underlay_errors.load(Relaxed),
            drops: Drop::ALL.iter().zip(&self.drops).map(|(d, n)| (*d, n.load(Relaxed))).collect(),
        }
    }
}

/// What went between this node and a neighbour, without encapsulation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Whether its tunnel has no UDP at the moment.
    pub ip_in_ip: bool,
    /// Packets sent into its tunnel.
    pub tunneled_packets: u64,
    /// Their bytes.
    pub tunneled_bytes: u64,
    /// Packets that came from it and had a right to.
    pub received_packets: u64,
    /// Their bytes.
    pub received_bytes: u64,
}

impl std::ops::AddAssign for Traffic {
    fn add_assign(&mut self, other: Self) {
        self.tunneled_packets += other.tunneled_packets;
        self.tunneled_bytes += other.tunneled_bytes;
        self.received_packets += other.received_packets;
        self.received_bytes += other.received_bytes;
    }
}

/// Counters at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs)] // as in Counters
pub struct Snapshot {
    pub delivered_packets: u64,
    pub delivered_bytes: u64,
    pub tunneled_packets: u64,
    pub tunneled_bytes: u64,
    pub control_packets: u64,
    /// Packets that a forwarder in the kernel left to the one in user space. They are in the
    /// other counters too.
    pub passed_packets: u64,
    pub send_errors: u64,
    pub fragmented_packets: u64,
    pub reassembled_packets: u64,
    pub icmp_errors: u64,
    pub path_probes: u64,
    pub underlay_errors: u64,
    pub drops: BTreeMap<Drop, u64>,
}
