//! The trait that forwarders implement.

use aero_protocol::address::LinkLayerAddress;
use aero_protocol::forwarding::Change;
use ipnet::IpNet;

use crate::counters::{Snapshot, Traffic};

/// A forwarding table that packets are forwarded by.
pub trait ForwardingTable: Send + Sync {
    /// Applies a change; packets that come after the call follow it.
    fn apply(&self, change: &Change);

    /// The pairs of own and correspondent's prefix whose direct paths were taken since the last
    /// call. Asked several times a second: a path that is used and not reported is not watched,
    /// and packets are lost when it breaks.
    fn take_used(&self) -> Vec<(IpNet, IpNet)>;

    /// What has been forwarded and dropped since the start; by a forwarder that outlives its
    /// process, since its own start.
    fn counters(&self) -> Snapshot;

    /// What went to and from each neighbour, of those that are counted apart.
    fn traffic(&self) -> Vec<(LinkLayerAddress, Traffic)> {
        Vec::new()
    }

    /// Tells the interface behind which a prefix of this node is. It has its addresses and
    /// routes already: a forwarder that can take a shorter way than the node's network layer
    /// does so from now on.
    fn connect(&self, _pod: &PodInterface<'_>) {}

    /// The interface goes, or is gone.
    fn disconnect(&self, _name: &str) {}
}

/// The node's end of a pod's pair of interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PodInterface<'a> {
    /// Its name on the node.
    pub name: &'a str,
    /// The pod's prefix: what is sent to the pod, and all that it may send from.
    pub prefix: IpNet,
    /// MAC address of the pod's end.
    pub mac: [u8; 6],
    /// MAC address of the node's end.
    pub node_mac: [u8; 6],
}
