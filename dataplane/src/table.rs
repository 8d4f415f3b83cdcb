//! The trait that forwarders implement.

use aero_protocol::forwarding::Change;
use ipnet::IpNet;

use crate::counters::Snapshot;

/// A forwarding table that packets are forwarded by.
pub trait ForwardingTable: Send + Sync {
    /// Applies a change; packets that come after the call follow it.
    fn apply(&self, change: &Change);

    /// The pairs of own and correspondent's prefix whose direct paths were taken since the last
    /// call. Asked several times a second: a path that is used and not reported is not watched,
    /// and packets are lost when it breaks.
    fn take_used(&self) -> Vec<(IpNet, IpNet)>;

    /// What has been forwarded and dropped since the start.
    fn counters(&self) -> Snapshot;
}
