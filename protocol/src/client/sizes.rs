//! How much a node remembers, for metrics and for tests that nothing grows without bound.

use super::Node;

/// Entries in a node's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// Clients that it speaks for, or is still releasing.
    pub clients: usize,
    /// Associations of all Clients with all Servers.
    pub associations: usize,
    /// Servers.
    pub servers: usize,
    /// Prefixes that left and are still sent on.
    pub departed: usize,
    /// Clients that are between this Proxy and another.
    pub handing_over: usize,
    /// Dynamic neighbour cache entries.
    pub neighbors: usize,
    /// Destinations that Predirects were sent for.
    pub attempts: usize,
    /// Correspondents that are being told of a move.
    pub announcements: usize,
    /// Armed timers.
    pub timers: usize,
    /// Outputs that nobody has taken yet.
    pub outputs: usize,
}

impl Node {
    /// What the node remembers at present.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            clients: self.clients.len(),
            associations: self.clients.values().map(|c| c.associations.len()).sum(),
            servers: self.servers.len(),
            departed: self.departed.len(),
            handing_over: self.proxies.len(),
            neighbors: self.neighbors.len(),
            attempts: self.attempts.len(),
            announcements: self.announcements.len(),
            timers: self.timers.len(),
            outputs: self.outputs.len(),
        }
    }
}
