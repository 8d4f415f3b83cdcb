//! The Server's side of interior BGP: [`crate::bgp`].

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aero_dataplane::userspace::{Control, Forwarder};
use aero_protocol::address::ServerId;
use aero_protocol::server::{PeerKind, Server};
use tokio::sync::mpsc;

use crate::bgp::instance::{Instance, Role};
use crate::bgp::session::{self, Sessions};
use crate::bgp::table::Table;
use crate::bgp::{BgpArgs, announce, learn};
use crate::driver::Driver;
use crate::relay::routes_file;

/// How often the Relays' file is looked at.
const LOOK: Duration = Duration::from_secs(1);

/// What a Server has for BGP.
pub(super) struct Interior {
    table: Table,
    sessions: Sessions,
    /// False from the withdrawal on.
    announces: tokio::sync::watch::Sender<bool>,
}

/// Opens it if it is asked for. Relays are unusable from now on until BGP has a default by them.
pub(super) async fn open(
    args: &BgpArgs,
    id: ServerId,
    driver: &Driver<Server>,
) -> anyhow::Result<Option<Interior>> {
    let Some(number) = args.bgp_table else { return Ok(None) };
    let table = Table::open(number)?;
    let stale = announce::forget(&table).await?;
    if stale > 0 {
        tracing::info!(stale, "withdrawn: an earlier run's clients");
    }
    driver.with(|server, _| {
        let relays = server.peers().filter(|p| p.kind == PeerKind::Relay).map(|p| p.id);
        for relay in relays.collect::<Vec<_>>() {
            server.set_peer_usable(relay, false);
        }
    });
    let sessions = Sessions::open(args.device(Role::Server), id).await?;
    Ok(Some(Interior { table, sessions, announces: tokio::sync::watch::channel(true).0 }))
}

/// Runs it until the future is dropped; without BGP all control packets are the engine's.
pub(super) async fn run(
    interior: Option<&Interior>,
    driver: &Driver<Server>,
    forwarder: &Arc<Forwarder>,
    control: mpsc::Receiver<Control>,
    engine: mpsc::Sender<Control>,
) {
    let Some(interior) = interior else { return session::pass(control, engine).await };
    let mut announces = interior.announces.subscribe();
    let announce = async {
        tokio::select! {
            () = announce::follow(&interior.table, driver) => {}
            _ = announces.wait_for(|on| !on) => {}
        }
    };
    tokio::join!(
        interior.sessions.run(driver, forwarder, control, engine),
        learn::follow_defaults(&interior.table, driver),
        announce,
    );
}

impl Interior {
    /// Announces nothing any more, and waits until the Relays know.
    pub(super) async fn withdraw(&self) {
        self.announces.send_replace(false);
        match announce::forget(&self.table).await {
            Ok(count) => tracing::info!(count, "withdrawn: this Server ends"),
            Err(e) => tracing::error!("withdrawing: {e:#}"),
        }
        tokio::time::sleep(announce::SETTLE).await;
    }
}

/// Follows the Relays' file until the future is dropped: its Relays and Servers are the permanent
/// neighbours. With BGP a new Relay is unusable until there is a default by it.
pub(super) async fn follow_neighbors(file: Option<&Path>, bgp: bool, driver: &Driver<Server>) {
    let Some(file) = file else { return std::future::pending().await };
    let mut seen = None;
    loop {
        let modified = tokio::fs::metadata(file).await.and_then(|m| m.modified()).ok();
        if modified != seen {
            seen = modified;
            match routes_file::read(file).await {
                Ok(new) => driver.with(|server, _| change_to(server, &new.instance, bgp)),
                Err(e) => tracing::error!("the neighbours stay as they were: {e:#}"),
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Brings the permanent neighbours to what the file says; a Server is no neighbour of itself.
fn change_to(server: &mut Server, instance: &Instance, bgp: bool) {
    let relays = instance.relays.iter().map(|s| (s.id(), s.at, PeerKind::Relay));
    let servers = instance.servers.iter().map(|s| (s.id(), s.at, PeerKind::Server));
    let wanted: Vec<_> = relays.chain(servers).collect();
    let known: Vec<_> = server.peers().map(|p| (p.id, p.at, p.kind)).collect();
    for (id, ..) in known.iter().filter(|k| !wanted.iter().any(|w| w.0 == k.0)) {
        server.remove_peer(*id);
    }
    for peer in wanted.iter().filter(|w| !known.contains(w)) {
        match *peer {
            (id, at, PeerKind::Server) => server.add_server_peer(id, at),
            (id, at, PeerKind::Relay) => {
                server.add_relay(id, at);
                if bgp {
                    server.set_peer_usable(id, false);
                }
            }
        }
    }
    tracing::info!(neighbours = server.peers().count(), "the neighbours of this Server");
}
