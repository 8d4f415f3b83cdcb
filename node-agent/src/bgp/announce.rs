//! A Server's side: the ACPs of its present Clients, into the kernel table that its BGP daemon
//! announces. A lease is one route, its end the route's end, and moves of a Client within the
//! Server are nothing (draft -48 section 3.2).

use std::collections::BTreeMap;
use std::time::Duration;

use aero_protocol::server::{Announcement, Server};
use ipnet::IpNet;

use super::table::Table;
use crate::attach::ROUTE_PROTOCOL;
use crate::driver::Driver;

/// Routes written in one go; then the daemon gets time to read. A burst of hundreds of thousands
/// overflows the buffer of its netlink socket, and it would find the rest at its next scan only.
const BATCH: usize = 4096;
/// The time that it gets.
const PAUSE: Duration = Duration::from_millis(20);
/// Announcements come with events of the engine; this is for what comes without, and for what the
/// kernel has refused.
const LOOK: Duration = Duration::from_secs(1);
/// How long a withdrawal takes to reach the Relays and their tables, generously.
pub const SETTLE: Duration = Duration::from_millis(500);

/// Deletes what an earlier run has left in the table: its Clients are not this run's.
///
/// # Errors
/// If the table cannot be read.
pub async fn forget(table: &Table) -> anyhow::Result<usize> {
    let stale: Vec<(IpNet, bool)> = table
        .list()
        .await?
        .into_iter()
        .filter(|r| r.protocol == ROUTE_PROTOCOL)
        .map(|r| (r.prefix, false))
        .collect();
    let count = stale.len();
    for (prefix, _, e) in table.write(stale).await {
        tracing::error!(%prefix, "a route of an earlier run stays: {e}");
    }
    Ok(count)
}

/// Brings the engine's announcements to the table until the future is dropped.
pub async fn follow(table: &Table, driver: &Driver<Server>) {
    let mut changes = driver.changes();
    let mut again: BTreeMap<IpNet, bool> = BTreeMap::new();
    loop {
        let batch = driver.with(|server, _| next(server, std::mem::take(&mut again)));
        let (count, full) = (batch.len(), batch.len() >= BATCH);
        for (prefix, there, e) in table.write(batch.into_iter().collect()).await {
            tracing::error!(%prefix, there, "a route for BGP: {e}");
            again.insert(prefix, there);
        }
        if count > 0 {
            tracing::debug!(count, "told BGP");
        }
        if full {
            tokio::time::sleep(PAUSE).await;
            continue;
        }
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

/// What is to be told now, no more than [`BATCH`] and what did not get through before.
fn next(server: &mut Server, mut batch: BTreeMap<IpNet, bool>) -> BTreeMap<IpNet, bool> {
    while batch.len() < BATCH
        && let Some(announcement) = server.poll_announcement()
    {
        match announcement {
            Announcement::Announce(acp) => batch.insert(acp, true),
            Announcement::Withdraw(acp) => batch.insert(acp, false),
        };
    }
    batch
}
