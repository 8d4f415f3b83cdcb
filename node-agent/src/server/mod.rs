//! The Server role: leases from the shared table, forwarding between Clients.
//!
//! The table comes from the API server (`kube_table.rs`) or, without Kubernetes, from a file
//! (`file_table.rs`). `legacy.rs` is the deprecated model, in which a central server has it.

mod drain;
mod feed;
pub mod file_table;
mod interior;
mod kube_table;
mod legacy;
pub mod moves;
mod passed;

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aero_dataplane::ForwardingTable;
use aero_dataplane::underlay::Underlay;
use aero_dataplane::userspace::{self, Forwarder};
use aero_protocol::address::{Duid, ServerId};
use aero_protocol::server::{Authentication, Config, Event, Fault, Refusal, Server};
use aero_telemetry::admin::{self, Readiness};
use aero_telemetry::debug::{NeighborReport, ServerReport};
use aero_telemetry::shutdown;
use anyhow::Context as _;
use axum::routing::get;
use axum::{Json, Router};
use clap::Args;
use prometheus_client::registry::Registry;
use rand::Rng;
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::attach;
use crate::bgp::BgpArgs;
use crate::driver::{Driver, PathMtu};
use crate::forwarding::{ForwarderArgs, Role};
use crate::metrics::{self, Counted, Refusals};
use crate::relay::config_map::ConfigMapArgs;
use crate::sparing;
use moves::Moves;

/// Control packets that wait for the engine at most.
const CONTROL_QUEUE: usize = 4096;
/// With no process behind it a Server's table is of use until its Clients have turned to another
/// Server or a new process is there, and must not be for ever: leases end with it.
const OUTLIVES: Duration = Duration::from_secs(30);
/// Servers have no interface, so no inner packet is too long for one.
const ANY_MTU: u16 = u16::MAX;

/// Flags of `aero-node-agent server`.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// The AeroLink to serve.
    #[arg(long, env = "AERO_LINK", default_value = "default")]
    link: String,
    /// Serve without Kubernetes: the shared table is this file (YAML or JSON), read again when it
    /// changes and at SIGHUP. See docs/outside-hosts.md.
    #[arg(long, env = "AERO_TABLE", value_name = "FILE")]
    table: Option<PathBuf>,
    /// A Relay, by underlay address and port: what is for none of this Server's clients goes there.
    #[arg(long = "relay", env = "AERO_RELAYS", value_delimiter = ',', value_name = "ADDRESS:PORT")]
    relays: Vec<SocketAddr>,
    /// Another Server of the link: hands clients over to this one, and takes them over.
    #[arg(long = "peer", env = "AERO_PEERS", value_delimiter = ',', value_name = "ADDRESS:PORT")]
    peers: Vec<SocketAddr>,
    /// A Proxy, by underlay address and port: a client that is trusted to write link-layer addresses
    /// of others.
    #[arg(
        long = "proxy",
        env = "AERO_PROXIES",
        value_delimiter = ',',
        value_name = "ADDRESS:PORT"
    )]
    proxies: Vec<SocketAddr>,
    /// The Relays' file, instead of --relay and --peer: its Relays and the other Servers in it are
    /// this Server's neighbours, and change with it. See docs/relays.md.
    #[arg(long, env = "AERO_ROUTES", value_name = "FILE", conflicts_with_all = ["relays", "peers"])]
    routes: Option<PathBuf>,
    /// The deprecated model: relay DHCPv6 to this one central server, and keep no leases. See
    /// docs/interop.md.
    #[arg(long, value_name = "ADDRESS", value_parser = legacy::parse_address,
          conflicts_with = "table")]
    relay_to: Option<SocketAddrV6>,
    /// By which address the central server knows this link (link-address of RFC 8415).
    #[arg(long, value_name = "ADDRESS", default_value = "::", requires = "relay_to")]
    relay_link_address: Ipv6Addr,
    /// UDP port on the underlay.
    #[arg(long, env = "AERO_PORT", default_value_t = 8060)]
    port: u16,
    /// Underlay addresses of this node, separated by commas.
    #[arg(long, env = "HOST_IPS", value_delimiter = ',', required = true)]
    host_ips: Vec<IpAddr>,
    /// How many clients this Server has room for. None is refused when there are more, but clients
    /// that choose among Servers prefer one with more room.
    #[arg(long, env = "AERO_ROOM", default_value_t = aero_protocol::server::ROOM, value_name = "CLIENTS")]
    room: usize,
    /// Pass on Predirects and Redirects, by which Clients find direct paths.
    #[arg(long, env = "AERO_OPTIMIZE", default_value_t = true, action = clap::ArgAction::Set)]
    optimize: bool,
    /// What is known about the paths of the underlay.
    #[arg(long, env = "AERO_PATH_MTU", value_enum, default_value_t)]
    path_mtu: PathMtu,
    /// Taken off the outer TTL of each packet that is sent on: 1 ends loops between Servers on an
    /// underlay without routers too; 0 is the draft's rule.
    #[arg(long, env = "AERO_TTL_STEP", default_value_t = 0)]
    ttl_step: u8,
    /// Address of /healthz, /readyz, /metrics, and of /debug/server and /debug/neighbors for
    /// callers on this node.
    #[arg(long, env = "AERO_ADMIN", default_value = "[::]:9060")]
    admin: SocketAddr,
    #[command(flatten)]
    forwarding: ForwarderArgs,
    #[command(flatten)]
    bgp: BgpArgs,
    #[command(flatten)]
    feed: feed::FeedArgs,
    #[command(flatten)]
    config_map: ConfigMapArgs,
}

/// Runs the Server until SIGTERM, and then until its clients have gone to other Servers.
///
/// # Errors
/// If the underlay or the API server cannot be used.
pub async fn run(args: ServerArgs) -> anyhow::Result<()> {
    if let Some(central) = args.relay_to {
        return legacy::run(&args, central).await;
    }
    let token = shutdown::token()?;
    let first = *args.host_ips.first().context("HOST_IPS is empty")?;
    let underlay = Arc::new(Underlay::bind(&args.host_ips, args.port)?);
    let (control_sender, control) = mpsc::channel(CONTROL_QUEUE);
    let underlay_mtu = attach::underlay_mtu(first).await.unwrap_or_else(|e| {
        tracing::warn!("1500 is taken for the underlay's MTU: {e}");
        1500
    });
    let config = userspace::Config {
        paths: args.path_mtu.config(underlay_mtu),
        ttl_step: args.ttl_step,
        ..Default::default()
    };
    let userspace = Forwarder::with_config(Arc::clone(&underlay), None, control_sender, config);
    let sender = Arc::clone(&userspace);
    let role = Role {
        name: "server",
        device: None,
        mtu: ANY_MTU,
        ttl_step: args.ttl_step,
        outlives: Some(OUTLIVES),
    };
    let forwarder = args.forwarding.open(&role, &underlay, userspace)?;
    let name = format!("{}/{first}:{}", args.link, args.port);
    let engine = Server::new(Config {
        id: ServerId::from_underlay(first),
        duid: Duid::from_uuid(Uuid::new_v5(&aero_crds::AERO_NAMESPACE, name.as_bytes())),
        asps: Vec::new(),
        lease: Duration::from_secs(40),
        authentication: Authentication::NodeAddress,
    });
    let table = forwarder.table();
    let mut registry = Registry::default();
    let moves = Arc::new(Moves::new(&mut registry));
    let (seen, refusals) = (Arc::clone(&moves), Refusals::new(&mut registry));
    let (driver, outgoing) =
        Driver::new(engine, Arc::clone(&table), move |event| report(&seen, &refusals, event));
    driver.with(|server, _| {
        server.set_optimize(args.optimize);
        server.set_room(args.room);
        server.set_reconfigure_secret(rand::rng().random());
        for relay in &args.relays {
            server.add_relay(ServerId::from_underlay(relay.ip()), (*relay).into());
        }
        for proxy in &args.proxies {
            server.trust_proxy((*proxy).into(), true);
        }
        for peer in &args.peers {
            server.add_server_peer(ServerId::from_underlay(peer.ip()), (*peer).into());
        }
    });
    let feed = args.feed.open(SocketAddr::new(first, args.port), &driver)?;
    // Whoever listens has the forwarder look for what to tell.
    let forwarded = match feed {
        Some(_) => sender.triggers(),
        None => mpsc::channel(1).1,
    };
    let interior = interior::open(&args.bgp, ServerId::from_underlay(first), &driver).await?;
    let readiness = Readiness::default();
    let mappings_ready = readiness.register("mappings");
    // A file names the link and its clients in one.
    let link_ready = args.table.is_none().then(|| readiness.register("link"));
    let serving = readiness.register("serving");
    serving.ready();
    register(&mut registry, &driver, Arc::clone(&table));
    let about = About {
        link: args.link.clone(),
        underlay: underlay.addresses().map(|l2| l2.to_string()).collect(),
        driver: Arc::clone(&driver),
        table,
        moves: Arc::clone(&moves),
    };
    let neighbors = Arc::clone(&driver);
    let debug = Router::new()
        .route("/debug/neighbors", get(move || async move { Json(list_neighbors(&neighbors)) }))
        .route(
            "/debug/server",
            get(move || {
                let report = about.report();
                async move { Json(report) }
            }),
        );
    let families: Vec<bool> = args.host_ips.iter().map(IpAddr::is_ipv6).collect();
    let stop = tokio_util::sync::CancellationToken::new();
    let mut admin =
        tokio::spawn(admin::serve(args.admin, readiness, registry, debug, stop.clone()));
    tracing::info!(id = %ServerId::from_underlay(first).address(), link = args.link, "serving {:?}", args.host_ips);
    let mut forwarding = tokio::spawn(forwarder.clone().run());
    let (to_engine, of_engine) = mpsc::channel(CONTROL_QUEUE);
    tokio::select! {
        () = driver.run(&sender, of_engine, outgoing) => {}
        () = interior::follow_neighbors(args.routes.as_deref(), interior.is_some(), &driver) => {}
        () = interior::run(interior.as_ref(), &driver, &sender, control, to_engine) => {}
        () = feed::run(feed, &driver, forwarded) => {}
        ended = args.config_map.follow(args.routes.as_deref()) => ended?,
        ended = &mut forwarding => ended??,
        ended = &mut admin => ended??,
        ended = async {
            match (&args.table, &link_ready) {
                (Some(file), _) => file_table::follow(file, &driver, &mappings_ready).await,
                (None, Some(ready)) => {
                    kube_table::follow(&driver, &args.link, &families, &mappings_ready, ready, &moves)
                        .await
                }
                (None, None) => Ok(()),
            }
        } => ended?,
        () = async {
            token.cancelled().await;
            // Not ready: no new client comes. The present ones turn to other Servers; until they
            // have, and until the Relays know, this one forwards.
            serving.not_ready("ending");
            drain::drain(&driver).await;
            if let Some(interior) = &interior {
                interior.withdraw().await;
            }
        } => {}
    }
    stop.cancel();
    forwarder.remove();
    if interior.is_some() {
        attach::remove_device(args.bgp.device(crate::bgp::instance::Role::Server)).await?;
    }
    Ok(())
}

/// Registers the Server's metrics.
fn register(
    registry: &mut Registry,
    driver: &Arc<Driver<Server>>,
    table: Arc<dyn ForwardingTable>,
) {
    metrics::register(registry, table);
    metrics::register_messages(registry, driver.messages());
    passed::register(registry, Arc::clone(driver));
    let of_neighbors = Arc::clone(driver);
    registry.register_collector(Box::new(Counted {
        head: ("aero_neighbors", "Neighbour cache entries, by what the neighbour is", "kind"),
        count: move || vec![("client", of_neighbors.with(|e, _| e.neighbors().count()))],
    }));
}

fn report(moves: &Moves, refusals: &Refusals, event: Event) {
    let now = Instant::now();
    match event {
        Event::Associated { prefix, at, moved_from, epoch } => {
            let gap = moves.associated(prefix, at, epoch, now).map(|g| format!("{g:?}"));
            let moved_from = moved_from.map(|l2| l2.to_string());
            let client = moves.identity(prefix);
            tracing::info!(client, %prefix, %at, moved_from, %epoch, gap, "associated");
        }
        Event::Ended { prefix, at, why } => {
            moves.ended(prefix, now);
            tracing::info!(client = moves.identity(prefix), %prefix, %at, ?why, "lease ended");
        }
        Event::Refused { client, from, why } => {
            refusals.refused();
            if let Some(left_out) = sparing::may_warn(kind(&why)) {
                tracing::warn!(client_id = %client, %from, left_out, "refused: {why}");
            }
        }
        Event::Dropped { from, why } => {
            refusals.dropped(why);
            tracing::debug!(%from, "control packet dropped: {why}");
        }
        Event::NotPassed { from, why } => {
            tracing::debug!(%from, why = why.label(), "a message to another Client was dropped");
        }
    }
}

/// The kind of a refusal: of each some are written.
fn kind(why: &Refusal) -> &'static str {
    match why {
        Refusal::Unknown => "unknown",
        Refusal::NotHeld(_) => "not held",
        Refusal::Outdated { .. } => "outdated",
        Refusal::NotYet { .. } => "not yet",
        Refusal::HeldByOther { .. } => "held by other",
        Refusal::Signature(Fault::Missing) => "not signed",
        Refusal::Signature(Fault::UnknownKey) => "unknown key",
        Refusal::Signature(Fault::Wrong) => "wrong signature",
        Refusal::Signature(Fault::Replayed) => "replayed",
        Refusal::Signature(Fault::NoSession) => "no session",
    }
}

/// What `/debug/server` is made of.
#[derive(Clone)]
struct About {
    link: String,
    underlay: Vec<String>,
    driver: Arc<Driver<Server>>,
    table: Arc<dyn ForwardingTable>,
    moves: Arc<Moves>,
}

impl About {
    fn report(&self) -> ServerReport {
        ServerReport {
            version: env!("CARGO_PKG_VERSION").into(),
            link: self.link.clone(),
            underlay: self.underlay.clone(),
            mappings: self.driver.with(|e, _| e.sizes().mappings),
            neighbors: list_neighbors(&self.driver),
            moves: self.moves.all(),
            counters: metrics::counters(self.table.counters()),
        }
    }
}

fn list_neighbors(driver: &Driver<Server>) -> Vec<NeighborReport> {
    driver.with(|engine, now| {
        let list = engine.neighbors().map(|n| NeighborReport {
            acp: n.prefix.to_string(),
            client: n.client.to_string(),
            link_layer: n.link_layer.to_string(),
            epoch: n.epoch.0,
            lease_seconds: n.until.saturating_duration_since(now).as_secs(),
        });
        list.collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_metric_of_a_server_is_documented() {
        let loopback = ["::1".parse().unwrap()];
        let underlay = Arc::new(Underlay::bind(&loopback, 0).unwrap());
        let forwarder = Forwarder::new(underlay, None, mpsc::channel(1).0);
        let mut registry = Registry::default();
        let moves = Arc::new(Moves::new(&mut registry));
        let engine = Server::new(Config {
            id: ServerId::from_underlay(loopback[0]),
            duid: Duid::from_uuid(Uuid::nil()),
            asps: Vec::new(),
            lease: Duration::from_secs(40),
            authentication: Authentication::NodeAddress,
        });
        let refusals = Refusals::new(&mut registry);
        let (driver, _outgoing) =
            Driver::new(engine, forwarder.clone(), move |event| report(&moves, &refusals, event));
        register(&mut registry, &driver, forwarder);
        let readiness = Readiness::default();
        let _known = readiness.register("mappings");
        admin::register(&mut registry, &readiness);
        let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        aero_telemetry::catalog::hold(document.as_ref(), "server", &registry).unwrap();
    }
}
