//! Macro mobility, seen from the Server that a Client leaves: draft -48 section 3.15.2.
//!
//! The Client has a lease at its new Server and sends us a Release *through* that one, whose
//! underlay address is the outer source. The new Server has checked that the Release comes from
//! the Client (section 3.8), and only permanent neighbours are believed here. For
//! [`RELEASE_LINGER`] what still comes for the prefix goes on to the new Server; then the prefix is
//! withdrawn. The Reply goes back the way the Release came.
//!
//! A Client that hops to and fro makes its Servers announce and withdraw at each hop. A Server damps
//! that by lingering longer, up to [`MAX_LINGER`]: it goes on announcing and forwarding, so the
//! prefix is reached all the time and the Relays hear little of it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::peers::PeerKind;
use super::{Ended, Request, Server, Timer};
use crate::address::{LinkLayerAddress, aero_address};
use crate::timers::RELEASE_LINGER;
use crate::wire::WireError;
use crate::wire::dhcpv6::{IaPd, Kind, Status, StatusCode};

/// Longest time for which a Server goes on forwarding for a Client that hops.
pub const MAX_LINGER: Duration = Duration::from_secs(80);
/// Hand-overs of one Client in [`HOP_MEMORY`] that are not yet damped.
const FREE_HOPS: u32 = 2;
/// A Client that has stayed for this long is none that hops.
const HOP_MEMORY: Duration = Duration::from_secs(120);

/// How often Clients have left lately.
#[derive(Debug, Default)]
pub(super) struct Hops(BTreeMap<IpNet, (u32, Instant)>);

impl Hops {
    /// Counts a hand-over, and tells how long to linger.
    fn count(&mut self, prefix: IpNet, now: Instant) -> Duration {
        let entry = self.0.entry(prefix).or_insert((0, now));
        if now.saturating_duration_since(entry.1) > HOP_MEMORY {
            entry.0 = 0;
        }
        *entry = (entry.0.saturating_add(1), now);
        let doublings = entry.0.saturating_sub(FREE_HOPS).min(8);
        (RELEASE_LINGER * (1 << doublings)).min(MAX_LINGER)
    }

    /// Forgets a prefix that is in the table no more.
    pub(super) fn forget(&mut self, prefix: IpNet) {
        self.0.remove(&prefix);
    }
}

impl Server {
    /// A Release that a permanent neighbour has passed on.
    ///
    /// # Errors
    /// If it is anything but a Release of a Client in its own name.
    pub(super) fn release_from_peer(
        &mut self,
        request: &Request,
        now: Instant,
    ) -> Result<(), WireError> {
        let peer = *self.peers.at(request.from).ok_or(WireError::BadAddress)?;
        if request.message.kind != Kind::Release {
            return Err(WireError::Unsupported);
        }
        // What the new Server vouches for is the inner source: it must be this very Client's.
        let client = request.message.client.as_ref();
        let own = self.client_of_table(request.source);
        if client.is_none() || own != client {
            return Err(WireError::BadAddress);
        }
        let claimed = request.message.claim().map(|c| c.epoch);
        let held: Vec<IpNet> = self
            .neighbors
            .values()
            .filter(|n| Some(&n.client) == client && !n.lingers)
            .filter(|n| claimed.is_none_or(|epoch| epoch == n.epoch))
            .map(|n| n.prefix)
            .collect();
        let mut reply = self.reply(request, Kind::Reply);
        reply.status = Some(Status::new(StatusCode::Success, "released"));
        if held.is_empty() {
            for ia in &request.message.ia_pd {
                let status = Some(Status::new(StatusCode::NoBinding, "no such lease"));
                reply.ia_pd.push(IaPd { id: ia.id, status, ..IaPd::default() });
            }
        }
        for prefix in held {
            match peer.kind {
                PeerKind::Server => self.hand_over(prefix, peer.at, now),
                // Which Server it went to is not known, and nothing may go back to a Relay: the
                // sooner the prefix is withdrawn, the sooner the Relay sends to the new Server.
                PeerKind::Relay => self.end_neighbor(prefix, Ended::HandedOver),
            }
        }
        self.send_reply(request, &reply);
        Ok(())
    }

    /// The Client whose AERO address this is by the table. It may have no entry here any more,
    /// when its Release is repeated because the Reply got lost.
    fn client_of_table(&self, source: std::net::Ipv6Addr) -> Option<&crate::address::Duid> {
        let mut prefix = crate::address::prefix_of_aero_address(source)?;
        loop {
            if let Some(mapping) = self.mappings.get(&prefix) {
                return (aero_address(prefix) == source).then_some(&mapping.client);
            }
            prefix = prefix.supernet()?;
        }
    }

    /// Sends on to the new Server what comes for `prefix`, for a short while.
    fn hand_over(&mut self, prefix: IpNet, to: LinkLayerAddress, now: Instant) {
        let until = now + self.hops.count(prefix, now);
        let Some(entry) = self.neighbors.get_mut(&prefix) else { return };
        entry.lingers = true;
        entry.links.clear();
        entry.link_layer = to;
        entry.until = until;
        self.by_address.remove(&aero_address(prefix));
        self.timers.set(Timer::Lease(prefix), until);
        self.write_paths(prefix, now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_hops_is_forwarded_for_longer_each_time_up_to_a_bound_and_is_forgiven_later() {
        let mut hops = Hops::default();
        let prefix = "2001:db8:0:1::/64".parse().unwrap();
        let mut now = Instant::now();
        let mut lingers = Vec::new();
        for _ in 0..8 {
            lingers.push(hops.count(prefix, now).as_secs());
            now += Duration::from_secs(2);
        }
        assert_eq!(lingers, [5, 5, 10, 20, 40, 80, 80, 80]);
        now += HOP_MEMORY;
        assert_eq!(hops.count(prefix, now), RELEASE_LINGER);
    }
}
