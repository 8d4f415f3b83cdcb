//! The trait that forwarders implement.

use aero_protocol::forwarding::Change;

use crate::counters::Snapshot;

/// A forwarding table that packets are forwarded by.
pub trait ForwardingTable: Send + Sync {
    /// Applies a change; packets that come after the call follow it.
    fn apply(&self, change: &Change);

    /// What has been forwarded and dropped since the start.
    fn counters(&self) -> Snapshot;
}
