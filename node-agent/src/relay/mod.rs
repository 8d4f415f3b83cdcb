//! The Relay role: forwards between Servers, joins the link to the node's own network layer. Its
//! Servers come from a file (`routes_file.rs`); its routes from the same file, or from a BGP daemon
//! ([`crate::bgp`]).

pub mod config_map;
pub mod routes_file;

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use aero_dataplane::underlay::Underlay;
use aero_dataplane::userspace::Forwarder;
use aero_dataplane::{ForwardingTable, interface_mtu, tun};
use aero_protocol::address::ServerId;
use aero_protocol::relay::{Config, Event, Relay};
use aero_telemetry::admin::{self, Readiness};
use aero_telemetry::shutdown;
use anyhow::Context as _;
use axum::Router;
use clap::Args;
use prometheus_client::registry::Registry;
use tokio::sync::mpsc;

use crate::bgp::instance::Role;
use crate::bgp::session::{self, Sessions};
use crate::bgp::{BgpArgs, learn, table::Table};
use crate::driver::Driver;
use crate::{attach, metrics};

/// Control packets that wait for the engine at most.
const CONTROL_QUEUE: usize = 4096;

/// A Relay's interface to its node's network layer, unless another is asked for.
pub const DEVICE: &str = "aero-relay";

/// Flags of `aero-node-agent relay`.
#[derive(Debug, Args)]
pub struct RelayArgs {
    /// Servers and their routes, YAML or JSON: `servicePrefixes`, and `servers` with `address`
    /// (and port) and `routes` (client prefixes) each. Read again when it changes.
    #[arg(long, env = "AERO_ROUTES")]
    routes: PathBuf,
    /// UDP port on the underlay.
    #[arg(long, env = "AERO_PORT", default_value_t = 8060)]
    port: u16,
    /// Underlay addresses of this node, separated by commas.
    #[arg(long, env = "HOST_IPS", value_delimiter = ',', required = true)]
    host_ips: Vec<IpAddr>,
    /// Name of the interface to the node's network layer. The service prefixes are routed to it;
    /// forwarding between it and other interfaces is the node's own affair (sysctl).
    #[arg(long, default_value = DEVICE)]
    device: String,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, env = "AERO_ADMIN", default_value = "[::]:9063")]
    admin: SocketAddr,
    #[command(flatten)]
    bgp: BgpArgs,
    #[command(flatten)]
    config_map: config_map::ConfigMapArgs,
}

/// Runs the Relay until SIGTERM.
///
/// # Errors
/// If the file, the underlay or the device cannot be used.
pub async fn run(args: RelayArgs) -> anyhow::Result<()> {
    let token = shutdown::token()?;
    let first = *args.host_ips.first().context("HOST_IPS is empty")?;
    // A mistake in the file is told before anything is touched; from a ConfigMap there is none yet.
    if !args.config_map.is_set() {
        routes_file::read(&args.routes).await?;
    }
    let underlay = Arc::new(Underlay::bind(&args.host_ips, args.port)?);
    let mtu = interface_mtu(attach::underlay_mtu(first).await?);
    let device = tun::open(&args.device, mtu)?;
    let (control_sender, control) = mpsc::channel(CONTROL_QUEUE);
    let forwarder = Forwarder::new(Arc::clone(&underlay), Some(device), control_sender);
    let id = ServerId::from_underlay(first);
    let engine = Relay::new(Config { id, asps: Vec::new() });
    let table: Arc<dyn ForwardingTable> = forwarder.clone();
    let (driver, outgoing) = Driver::new(engine, Arc::clone(&table), report);
    // What the engine wanted at its start.
    driver.with(|_, _| ());
    let readiness = Readiness::default();
    let routes_ready = readiness.register("routes");
    let bgp = match args.bgp.bgp_table {
        Some(table) => {
            let sessions = Sessions::open(args.bgp.device(Role::Relay), id).await?;
            Some((Table::open(table)?, sessions, readiness.register("bgp")))
        }
        None => None,
    };
    let mut registry = Registry::default();
    metrics::register(&mut registry, table);
    let stop = tokio_util::sync::CancellationToken::new();
    let mut admin =
        tokio::spawn(admin::serve(args.admin, readiness, registry, Router::new(), stop.clone()));
    tracing::info!(id = %id.address(), "relaying at {:?}", args.host_ips);
    let sender = Arc::clone(&forwarder);
    let mut forwarding = tokio::spawn(forwarder.run());
    let follow = routes_file::follow(&args.routes, Default::default(), &driver, async |asps| {
        match attach::route_asps(&args.device, asps, attach::METRIC_OF_RELAY).await {
            Ok(()) => routes_ready.ready(),
            Err(e) => tracing::error!("routes to {}: {e}", args.device),
        }
    });
    let (to_engine, of_engine) = mpsc::channel(CONTROL_QUEUE);
    tokio::select! {
        () = driver.run(&sender, of_engine, outgoing) => {}
        () = async {
            match &bgp {
                Some((table, sessions, ready)) => tokio::join!(
                    sessions.run(&driver, &sender, control, to_engine),
                    learn::follow_routes(table, &driver, ready),
                ).0,
                None => session::pass(control, to_engine).await,
            }
        } => {}
        () = follow => {}
        ended = args.config_map.follow(Some(&args.routes)) => ended?,
        ended = &mut forwarding => ended??,
        ended = &mut admin => ended??,
        () = token.cancelled() => {}
    }
    stop.cancel();
    attach::remove_device(&args.device).await?;
    if bgp.is_some() {
        attach::remove_device(args.bgp.device(Role::Relay)).await?;
    }
    Ok(())
}

fn report(event: Event) {
    match event {
        Event::Dropped { from, why } => tracing::debug!(%from, "control packet dropped: {why}"),
    }
}
