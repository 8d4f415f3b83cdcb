//! How much a Server remembers, for metrics and for tests that nothing grows without bound.

use super::Server;

/// Entries in a Server's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// Rows of its copy of the table.
    pub mappings: usize,
    /// Static neighbour cache entries: leases.
    pub neighbors: usize,
    /// Nodes that are being told that a prefix left them.
    pub departures: usize,
    /// Nodes that a prefix left not long ago.
    pub former: usize,
    /// Clients whose messages to others are counted.
    pub limited: usize,
    /// Claims that wait for the table.
    pub parked: usize,
    /// Armed timers.
    pub timers: usize,
    /// Outputs that nobody has taken yet.
    pub outputs: usize,
}

impl Server {
    /// What the Server remembers at present.
    pub fn sizes(&self) -> Sizes {
        Sizes {
            mappings: self.mappings.len(),
            neighbors: self.neighbors.len(),
            departures: self.departures.len(),
            former: self.redirects.former.len(),
            limited: self.redirects.buckets.len(),
            parked: self.parked.len(),
            timers: self.timers.len(),
            outputs: self.outputs.len(),
        }
    }
}
