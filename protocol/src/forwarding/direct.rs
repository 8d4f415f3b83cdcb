//! Paths straight to a correspondent, draft -48 sections 3.6 and 3.11.
//!
//! A direct path belongs to a pair: one of this node's own prefixes and one correspondent's. The
//! correspondent accepts by inner source, and only sources that were announced to it; so what one
//! Client of the node may send, another may not (docs/decisions/005-direct-paths-are-per-pair.md).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Instant;

use ipnet::IpNet;

use super::Lpm;
use crate::address::LinkLayerAddress;

#[derive(Debug)]
struct Path {
    destination: IpNet,
    to: LinkLayerAddress,
    until: Instant,
    /// Set by every packet that takes the path, taken by [`DirectPaths::take_used`].
    used: AtomicBool,
}

impl Clone for Path {
    fn clone(&self) -> Self {
        Self { used: AtomicBool::new(self.used.load(Relaxed)), ..*self }
    }
}

/// All direct paths of a node, by own prefix.
#[derive(Debug, Clone, Default)]
pub(super) struct DirectPaths(HashMap<IpNet, Lpm<Path>>);

impl DirectPaths {
    /// Sets a path. One that was used since the last question stays so.
    pub(super) fn set(
        &mut self,
        source: IpNet,
        destination: IpNet,
        to: LinkLayerAddress,
        until: Instant,
    ) {
        let paths = self.0.entry(source.trunc()).or_default();
        let used = paths.get(destination).is_some_and(|p| p.used.load(Relaxed));
        let destination = destination.trunc();
        paths.insert(destination, Path { destination, to, until, used: AtomicBool::new(used) });
    }

    pub(super) fn remove(&mut self, source: IpNet, destination: IpNet) {
        let source = source.trunc();
        if let Some(paths) = self.0.get_mut(&source) {
            paths.remove(destination);
            if paths.is_empty() {
                self.0.remove(&source);
            }
        }
    }

    /// The next hop of a packet from the own prefix `source`, which counts as a use of the path.
    pub(super) fn take(
        &self,
        source: IpNet,
        destination: IpAddr,
        now: Instant,
    ) -> Option<LinkLayerAddress> {
        let (_, path) = self.0.get(&source)?.longest_match(destination, |p| p.until > now)?;
        // A store by every packet would send the cache line to and fro between processors.
        if !path.used.load(Relaxed) {
            path.used.store(true, Relaxed);
        }
        Some(path.to)
    }

    /// The pairs whose paths were taken since the last call.
    pub(super) fn take_used(&self) -> Vec<(IpNet, IpNet)> {
        let mut used = Vec::new();
        for (source, paths) in &self.0 {
            let taken = |p: &&Path| p.used.load(Relaxed) && p.used.swap(false, Relaxed);
            used.extend(paths.values().filter(taken).map(|p| (*source, p.destination)));
        }
        used
    }

    pub(super) fn len(&self) -> usize {
        self.0.values().map(Lpm::len).sum()
    }

    pub(super) fn expire(&mut self, now: Instant) {
        self.0.retain(|_, paths| {
            paths.retain(|p| p.until > now);
            !paths.is_empty()
        });
    }
}
