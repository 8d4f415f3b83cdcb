//! What a BGP daemon has written into the kernel table: a Relay's routes to client prefixes, a
//! Server's default routes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;
use std::time::Duration;

use aero_protocol::address::ServerId;
use aero_protocol::relay::Relay;
use aero_protocol::server::{PeerKind, Server};
use aero_telemetry::admin::ReadyHandle;
use ipnet::IpNet;

use super::table::{Found, Seen, Table, Watch};
use crate::attach::ROUTE_PROTOCOL;
use crate::driver::Driver;

/// Routes that the engine is given at a time; others may use it in between.
const BATCH: usize = 1024;
/// A daemon that changes a route may delete it and write it anew; within this time that is one
/// change, so that no packet finds the gap.
const TOGETHER: Duration = Duration::from_millis(3);
/// After trouble with netlink, and for what may change without a notification.
const AGAIN: Duration = Duration::from_secs(1);

/// The Server that a next hop stands for.
fn server_at(gateway: Ipv6Addr) -> Option<ServerId> {
    let bits = u128::from(gateway);
    if bits >> 32 != 0xfe80_u128 << 80 {
        return None;
    }
    ServerId::new(u32::try_from(bits & u128::from(u32::MAX)).ok()?)
}

/// A route to a client prefix.
fn route_of(found: &Found) -> Option<(IpNet, ServerId)> {
    if found.protocol == ROUTE_PROTOCOL || found.prefix.prefix_len() == 0 {
        return None;
    }
    let gateway = *found.gateways.first()?;
    Some((found.prefix.trunc(), server_at(gateway)?))
}

/// What a Relay knows from the table.
#[derive(Debug, Default)]
struct Routes(BTreeMap<IpNet, ServerId>);

impl Routes {
    /// Changes since `Seen`, each prefix once: from which Server to which.
    fn take(&mut self, seen: Vec<Seen>) -> BTreeMap<IpNet, (Option<ServerId>, Option<ServerId>)> {
        let mut changes = BTreeMap::new();
        for event in seen {
            let (found, set) = match &event {
                Seen::Set(found) => (found, true),
                Seen::Deleted(found) => (found, false),
                Seen::Lost => continue,
            };
            let Some((acp, server)) = route_of(found) else { continue };
            let before = self.0.get(&acp).copied();
            if set {
                self.0.insert(acp, server);
            } else if before == Some(server) {
                self.0.remove(&acp);
            }
            changes.entry(acp).or_insert((before, None)).1 = self.0.get(&acp).copied();
        }
        changes.retain(|_, (before, after)| before != after);
        changes
    }

    /// From what is known to what the whole table says.
    fn read(&mut self, all: &[Found]) -> BTreeMap<IpNet, (Option<ServerId>, Option<ServerId>)> {
        let new: BTreeMap<IpNet, ServerId> = all.iter().filter_map(route_of).collect();
        let old = std::mem::replace(&mut self.0, new);
        let keys: BTreeSet<IpNet> = old.keys().chain(self.0.keys()).copied().collect();
        keys.into_iter()
            .map(|acp| (acp, (old.get(&acp).copied(), self.0.get(&acp).copied())))
            .filter(|(_, (before, after))| before != after)
            .collect()
    }
}

/// Follows the table into a Relay until the future is dropped. `ready` once it has been read.
pub async fn follow_routes(table: &Table, driver: &Driver<Relay>, ready: &ReadyHandle) {
    let mut routes = Routes::default();
    loop {
        if let Err(e) = follow_while_whole(table, driver, ready, &mut routes).await {
            tracing::error!("routes of BGP: {e:#}");
            tokio::time::sleep(AGAIN).await;
        }
    }
}

/// Reads the table and follows its changes until some are lost.
async fn follow_while_whole(
    table: &Table,
    driver: &Driver<Relay>,
    ready: &ReadyHandle,
    routes: &mut Routes,
) -> anyhow::Result<()> {
    // Watched before it is read, so that nothing falls between.
    let mut watch = Watch::open()?;
    apply(driver, routes.read(&table.list().await?)).await;
    ready.ready();
    tracing::info!(routes = routes.0.len(), "the route table is read");
    loop {
        let mut seen = watch.next(table, BATCH).await;
        let deleted = |seen: &[Seen]| seen.iter().any(|s| matches!(s, Seen::Deleted(_)));
        if deleted(&seen)
            && let Ok(more) = tokio::time::timeout(TOGETHER, watch.next(table, BATCH)).await
        {
            seen.extend(more);
        }
        let lost = seen.contains(&Seen::Lost);
        apply(driver, routes.take(seen)).await;
        if lost {
            tracing::warn!("notifications of the kernel were lost; reading the route table again");
            return Ok(());
        }
    }
}

async fn apply(
    driver: &Driver<Relay>,
    changes: BTreeMap<IpNet, (Option<ServerId>, Option<ServerId>)>,
) {
    let changes: Vec<_> = changes.into_iter().collect();
    for part in changes.chunks(BATCH) {
        driver.with(|relay, _| {
            for (acp, (before, after)) in part {
                // The new one first: there is a way at any time.
                if let Some(server) = after
                    && let Err(e) = relay.set_route(*acp, *server)
                {
                    tracing::warn!(%acp, "not taken from BGP: {e}");
                }
                if let Some(server) = before {
                    relay.remove_route(*acp, *server);
                }
            }
        });
        tokio::task::yield_now().await;
    }
    if !changes.is_empty() {
        tracing::debug!(changes = changes.len(), "routes of BGP");
    }
}

/// Follows the default routes into a Server until the future is dropped: a Relay can be used while
/// BGP has a default by it.
pub async fn follow_defaults(table: &Table, driver: &Driver<Server>) {
    let mut known: Option<BTreeSet<ServerId>> = None;
    loop {
        if let Err(e) = defaults_while_whole(table, driver, &mut known).await {
            tracing::error!("default routes of BGP: {e:#}");
            tokio::time::sleep(AGAIN).await;
        }
    }
}

async fn defaults_while_whole(
    table: &Table,
    driver: &Driver<Server>,
    known: &mut Option<BTreeSet<ServerId>>,
) -> anyhow::Result<()> {
    let mut watch = Watch::open()?;
    loop {
        let is_default = |r: &&Found| r.prefix.prefix_len() == 0 && r.protocol != ROUTE_PROTOCOL;
        let all = table.list().await?;
        let usable: BTreeSet<ServerId> = all
            .iter()
            .filter(is_default)
            .flat_map(|r| &r.gateways)
            .filter_map(|gateway| server_at(*gateway))
            .collect();
        if known.as_ref() != Some(&usable) {
            let shown: Vec<_> = usable.iter().map(|r| r.address()).collect();
            tracing::info!(relays = ?shown, "usable");
            *known = Some(usable.clone());
        }
        // Only then is the table read again: a Server writes many routes that are no defaults.
        loop {
            set_usable(driver, &usable);
            // A Relay may be new to this Server while its default is not new to the table.
            let Ok(seen) = tokio::time::timeout(AGAIN, watch.next(table, BATCH)).await else {
                continue;
            };
            if seen.contains(&Seen::Lost) {
                return Ok(());
            }
            let about_default = seen.iter().any(|s| match s {
                Seen::Set(found) | Seen::Deleted(found) => found.prefix.prefix_len() == 0,
                Seen::Lost => true,
            });
            if about_default {
                // Deleting and writing anew is one change.
                tokio::time::sleep(TOGETHER).await;
                break;
            }
        }
    }
}

/// Tells the engine which Relays can be used, where that is news to it.
fn set_usable(driver: &Driver<Server>, usable: &BTreeSet<ServerId>) {
    driver.with(|server, _| {
        let changed = server
            .peers()
            .filter(|p| p.kind == PeerKind::Relay && p.usable != usable.contains(&p.id))
            .map(|p| (p.id, !p.usable));
        for (id, usable) in changed.collect::<Vec<_>>() {
            server.set_peer_usable(id, usable);
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found(prefix: &str, server: &str) -> Found {
        let id = ServerId::from_underlay(server.parse().unwrap());
        let (prefix, gateways) = (prefix.parse().unwrap(), vec![id.address()]);
        Found { prefix, gateways, protocol: 12 }
    }

    #[test]
    fn a_next_hop_is_a_server_only_if_it_is_in_the_range_of_servers() {
        let id = ServerId::from_underlay("192.0.2.11".parse().unwrap());
        assert_eq!(server_at(id.address()), Some(id));
        for no in ["fe80::", "fe80::1:c000:20b:1", "2001:db8::1", "::1"] {
            assert_eq!(server_at(no.parse().unwrap()), None, "{no}");
        }
    }

    #[test]
    fn a_route_that_is_deleted_and_written_anew_by_another_server_is_one_change() {
        let (one, two) =
            (found("2001:db8:0:1::/64", "192.0.2.11"), found("2001:db8:0:1::/64", "192.0.2.12"));
        let ids = [&one, &two].map(|f| server_at(f.gateways[0]));
        for order in [
            vec![Seen::Deleted(one.clone()), Seen::Set(two.clone())],
            vec![Seen::Set(two.clone()), Seen::Deleted(one.clone())],
        ] {
            let mut routes = Routes::default();
            assert_eq!(routes.take(vec![Seen::Set(one.clone())])[&one.prefix], (None, ids[0]));
            assert_eq!(routes.take(order)[&one.prefix], (ids[0], ids[1]));
            assert!(routes.take(vec![Seen::Set(two.clone())]).is_empty(), "known already");
        }
    }

    #[test]
    fn reading_the_table_again_finds_what_was_missed() {
        let mut routes = Routes::default();
        let (one, two) =
            (found("2001:db8:0:1::/64", "192.0.2.11"), found("198.51.100.4/32", "192.0.2.12"));
        assert_eq!(routes.read(&[one.clone(), two.clone()]).len(), 2);
        let mut own = two.clone();
        own.protocol = ROUTE_PROTOCOL;
        let changes = routes.read(&[one.clone(), own, found("::/0", "192.0.2.21")]);
        assert_eq!(changes.keys().copied().collect::<Vec<_>>(), [two.prefix]);
        assert!(routes.read(&[one]).is_empty());
    }
}
