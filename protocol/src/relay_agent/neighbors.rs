//! Neighbours learnt from Relay-replies (RFC 8987 section 4.1), and their ends.

use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::{Ended, Event, RelayAgent};
use crate::Output;
use crate::address::{Duid, LinkLayerAddress, aero_address, is_usable_acp};
use crate::forwarding::{Change, NextHop, Route};
use crate::wire::WireError;
use crate::wire::dhcpv6::{Message, StatusCode};

/// How long a Client counts as alive without a sign of it (draft -28: it solicits its Servers
/// within this time; RFC 4861 section 10).
pub const REACHABLE_TIME: Duration = Duration::from_secs(30);

/// A Client whose prefix was seen delegated.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its ACP.
    pub prefix: IpNet,
    /// Its DUID.
    pub client: Duid,
    /// Where packets for it go.
    pub link_layer: LinkLayerAddress,
    /// When the lease ends.
    pub until: Instant,
    /// Until when it counts as alive.
    pub alive_until: Instant,
    /// The transaction of a Release that is under way.
    releasing: Option<[u8; 3]>,
}

impl RelayAgent {
    /// A Reply of the central server to the Client at `at`.
    pub(super) fn snoop(&mut self, at: LinkLayerAddress, message: &Message, now: Instant) {
        let Some(client) = message.client.clone() else { return };
        let succeeded = message.status.as_ref().is_none_or(|s| s.code == StatusCode::Success);
        let released: Vec<IpNet> = self
            .neighbors
            .values()
            .filter(|e| e.client == client && e.releasing == Some(message.transaction))
            .map(|e| e.prefix)
            .collect();
        for prefix in released {
            if succeeded {
                self.end(prefix, Ended::Released);
            }
        }
        let delegated: Vec<(IpNet, u32)> =
            message.ia_pd.iter().flat_map(|ia| &ia.prefixes).map(|p| (p.prefix, p.valid)).collect();
        for (prefix, valid) in delegated {
            if valid == 0 {
                if self.neighbors.get(&prefix).is_some_and(|e| e.client == client) {
                    self.end(prefix, Ended::Withdrawn);
                }
            } else if is_usable_acp(prefix) {
                self.bind(prefix, client.clone(), at, valid, now);
            }
        }
    }

    fn bind(
        &mut self,
        prefix: IpNet,
        client: Duid,
        at: LinkLayerAddress,
        valid: u32,
        now: Instant,
    ) {
        let entry = Entry {
            prefix,
            client: client.clone(),
            link_layer: at,
            until: now + Duration::from_secs(u64::from(valid)),
            alive_until: now + REACHABLE_TIME,
            releasing: None,
        };
        let old = self.neighbors.insert(prefix, entry);
        self.by_address.insert(aero_address(prefix), prefix);
        self.arm(prefix);
        if old.is_some_and(|o| o.link_layer == at) {
            return;
        }
        let route = Route { to: NextHop::Neighbor(at), transit: true, until: None };
        self.change(Change::SetRoute { prefix, route });
        self.change(Change::SetSource { prefix, from: at, until: None });
        self.event(Event::Associated { prefix, client, at });
    }

    /// Remembers which entries a Release is about: its Reply names none (RFC 8415 section
    /// 18.3.7). One that comes from elsewhere is the central server's business only.
    pub(super) fn releasing(&mut self, from: LinkLayerAddress, message: &Message) {
        for entry in self.neighbors.values_mut() {
            let named = || {
                let mut prefixes = message.ia_pd.iter().flat_map(|ia| &ia.prefixes);
                prefixes.any(|p| p.prefix == entry.prefix)
            };
            let own = message.client.as_ref() == Some(&entry.client) && entry.link_layer == from;
            if own && named() {
                entry.releasing = Some(message.transaction);
            }
        }
    }

    /// A sign of life of the neighbour that has an AERO address.
    pub(super) fn alive(
        &mut self,
        from: LinkLayerAddress,
        address: Ipv6Addr,
        now: Instant,
    ) -> Result<(), WireError> {
        let prefix = *self.by_address.get(&address).ok_or(WireError::BadAddress)?;
        let entry = self.neighbors.get_mut(&prefix).ok_or(WireError::BadAddress)?;
        if entry.link_layer != from {
            return Err(WireError::BadAddress);
        }
        entry.alive_until = now + REACHABLE_TIME;
        self.arm(prefix);
        Ok(())
    }

    fn arm(&mut self, prefix: IpNet) {
        if let Some(entry) = self.neighbors.get(&prefix) {
            self.timers.set(prefix, entry.until.min(entry.alive_until));
        }
    }

    /// An entry's timer is due.
    pub(super) fn look_at(&mut self, prefix: IpNet, now: Instant) {
        let Some(entry) = self.neighbors.get(&prefix) else { return };
        if entry.until <= now {
            self.end(prefix, Ended::Expired);
        } else if entry.alive_until <= now {
            self.end(prefix, Ended::Silent);
        } else {
            self.arm(prefix);
        }
    }

    fn end(&mut self, prefix: IpNet, why: Ended) {
        let Some(entry) = self.neighbors.remove(&prefix) else { return };
        self.by_address.remove(&aero_address(prefix));
        self.timers.cancel(&prefix);
        self.change(Change::RemoveRoute { prefix });
        self.change(Change::RemoveSource { prefix });
        self.event(Event::Ended { prefix, at: entry.link_layer, why });
    }

    fn change(&mut self, change: Change) {
        self.outputs.push_back(Output::Forward(change));
    }
}
