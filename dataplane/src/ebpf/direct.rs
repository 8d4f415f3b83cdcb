//! Direct paths in the kernel, draft -48 sections 3.6 and 3.11: each for a pair of an own prefix
//! and a correspondent's. Which ones are wanted, and which ones are used, the programs tell.

use std::collections::HashSet;
use std::io;
use std::time::Instant;

use aero_protocol::address::LinkLayerAddress;
use aya::maps::{MapData, RingBuf};
use ipnet::IpNet;
use tokio::io::unix::AsyncFd;

use super::{Ebpf, State, complain, layout};
use crate::trigger::Trigger;

/// Packets that went by a Server for want of a direct path: of each pair of addresses one a
/// second, however many there are.
pub(super) struct Wanting(AsyncFd<RingBuf<MapData>>);

impl Wanting {
    /// Waits for the next one. Can be cancelled.
    ///
    /// # Errors
    /// If the kernel's buffer cannot be waited for.
    pub async fn next(&mut self) -> io::Result<Trigger> {
        loop {
            let mut guard = self.0.readable_mut().await?;
            if let Some(item) = guard.get_inner_mut().next()
                && let Some(trigger) = layout::read_wanting(&item)
            {
                return Ok(trigger);
            }
            guard.clear_ready();
        }
    }
}

impl State {
    pub(super) fn set_direct(
        &mut self,
        source: IpNet,
        destination: IpNet,
        to: LinkLayerAddress,
        until: Instant,
    ) {
        let slot = self.slots.hold(to, Instant::now());
        let set = self.maps.set_direct(source, destination, (to, slot), until);
        set.unwrap_or_else(|e| complain("direct paths", &e));
        if let Some((_, before)) = self.direct.insert((source, destination), (until, to)) {
            self.release([before]);
        }
        if let Some(inherited) = &mut self.inherited {
            inherited.direct.remove(&(source, destination));
        }
    }

    pub(super) fn remove_direct(&mut self, source: IpNet, destination: IpNet) {
        self.maps.remove_direct(source, destination);
        if let Some((_, to)) = self.direct.remove(&(source, destination)) {
            self.release([to]);
        }
    }

    /// Neighbours with a direct path that has carried something since the last call.
    pub(super) fn take_active(&mut self) -> Vec<LinkLayerAddress> {
        let neighbors: HashSet<LinkLayerAddress> =
            self.direct.values().map(|(_, to)| *to).collect();
        let mut active = Vec::new();
        for neighbor in neighbors {
            let slot = self.slots.of(neighbor);
            if slot == 0 {
                continue;
            }
            let packets = self.maps.traffic(slot).tunneled_packets;
            if self.sent.insert(neighbor, packets).unwrap_or(0) < packets {
                active.push(neighbor);
            }
        }
        active
    }

    /// A neighbour gets IP-in-IP for a while.
    pub(super) fn prove(&mut self, neighbor: LinkLayerAddress, until: Instant) {
        let slot = self.slots.of(neighbor);
        if slot != 0 {
            let set = self.maps.prove(slot, until);
            set.unwrap_or_else(|e| complain("proofs", &e));
        }
    }

    pub(super) fn take_used(&mut self) -> Vec<(IpNet, IpNet)> {
        let maps = &mut self.maps;
        let used: Vec<_> =
            self.direct.keys().filter(|(s, d)| maps.take_used(*s, *d)).copied().collect();
        if !used.is_empty() {
            // The next packet of each is to say so again.
            self.changed();
        }
        used
    }
}

impl Ebpf {
    /// Packets that want a direct path. `None` if somebody listens already.
    ///
    /// # Errors
    /// Outside of a runtime.
    pub(super) fn wanting(&self) -> io::Result<Option<Wanting>> {
        if self.options.device.is_none() && !self.userspace.has_triggers() {
            return Ok(None);
        }
        let mut state = self.state();
        let Some(buffer) = state.maps.take_wanted() else { return Ok(None) };
        state.config.tells = true;
        let config = state.config.clone();
        state.maps.set_config(&config).map_err(io::Error::other)?;
        // SAFETY: the buffer owns its descriptor, which is the same as long as it is registered.
        let registered = unsafe { AsyncFd::register(buffer) };
        Ok(Some(Wanting(registered.map_err(io::Error::other)?)))
    }
}
