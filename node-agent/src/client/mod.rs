//! The Client role for a host or router outside Kubernetes: `docs/outside-hosts.md`.
//!
//! One Client, this host, with a lease at each Server. What the engine learns is brought to the
//! kernel by `interface.rs`: an address of the prefix on the TUN device, routes for the service
//! prefixes. `servers.rs` finds the Servers, `roaming.rs` notices that the host's underlay
//! address has changed, `link_only.rs` leaves DHCPv6 to a program that knows nothing of AERO.

mod interface;
mod link_only;
mod roaming;
mod servers;
mod status;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aero_dataplane::underlay::Underlay;
use aero_dataplane::userspace::{self, Forwarder};
use aero_dataplane::{ForwardingTable, interface_mtu, tun};
use aero_protocol::address::Duid;
use aero_protocol::client::{ClientSpec, Config, Event, Muted, Node};
use aero_protocol::wire::WireError;
use aero_protocol::wire::signature::Key;
use aero_telemetry::admin::{self, Readiness};
use aero_telemetry::shutdown;
use anyhow::{Context as _, bail};
use axum::routing::get;
use axum::{Json, Router};
use clap::Args;
use ipnet::IpNet;
use prometheus_client::registry::Registry;
use rand::Rng;
use tokio::sync::{Notify, mpsc};

use crate::driver::{Driver, PathMtu};
use crate::{attach, duid, keys, metrics, paths, sparing};

/// Control packets that wait for the engine at most.
const CONTROL_QUEUE: usize = 1024;
/// Longest wait for the Servers' answers to a Release at the end.
const GOODBYE: Duration = Duration::from_secs(2);
/// A Server says that the prefix went to another node: asked again after this time, since the
/// table may have been changed back.
const ASK_AGAIN: Duration = Duration::from_secs(30);

/// Flags of `aero-node-agent client`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  aero-node-agent client --server 192.0.2.11 --server 192.0.2.12
  aero-node-agent client --domain example.com     # Servers from DNS: linkupnetworks.example.com
  aero-node-agent client --status                 # how the running one stands

The Servers must know this host's DUID (the log's first line, and --status, show it): a row in
the file of `aero-node-agent server --table`. SIGTERM ends it: the lease is released, the device
and its routes go (--keep leaves all three). See docs/outside-hosts.md.")]
pub struct ClientArgs {
    /// A Server: address or name, with a port if it is not 8060. May be given several times; each
    /// gets a lease of its own.
    #[arg(long = "server", env = "AERO_SERVERS", value_delimiter = ',', value_name = "ADDRESS")]
    servers: Vec<String>,
    /// Find the Servers in DNS, as linkupnetworks.DOMAIN. Without --server and --domain the
    /// search domains of /etc/resolv.conf are tried.
    #[arg(long, env = "AERO_DOMAIN")]
    domain: Option<String>,
    /// How many Servers to register at where Relays join them all: the nearest, and others when
    /// they go. Servers that no Relay joins are all used.
    #[arg(long, env = "AERO_USE_SERVERS", default_value_t = crate::agent::USE_SERVERS,
          value_name = "NUMBER", value_parser = clap::value_parser!(u8).range(1..))]
    use_servers: u8,
    /// Who this is: a UUID, or a DUID in hex. Made once and kept in the state directory if not
    /// given.
    #[arg(long, env = "AERO_DUID")]
    duid: Option<String>,
    /// The key that this host shares with the Servers: a file with a number and 64 hex digits. What
    /// it says is signed then, and only what is signed in return is believed.
    #[arg(long, env = "AERO_KEY_FILE", value_name = "FILE", conflicts_with = "link_only")]
    key_file: Option<PathBuf>,
    /// Sign the address too from which this host speaks, so that nobody can send its messages on
    /// from elsewhere. Not behind a NAT.
    #[arg(long, requires = "key_file")]
    bind_source: bool,
    /// Where the DUID is kept.
    #[arg(long, default_value = "/var/lib/aero-client")]
    state_dir: PathBuf,
    /// Name of the AERO interface.
    #[arg(long, default_value = "aero0")]
    device: String,
    /// UDP port on the underlay.
    #[arg(long, env = "AERO_PORT", default_value_t = 8060)]
    port: u16,
    /// MTU of the AERO interface; the underlay's less the encapsulation if 0. Up to 1500 works
    /// over any underlay: what does not fit goes in two fragments of the tunnel.
    #[arg(long, env = "AERO_MTU", default_value_t = 0)]
    mtu: u16,
    /// What is known about the paths of the underlay.
    #[arg(long, env = "AERO_PATH_MTU", value_enum, default_value_t)]
    path_mtu: PathMtu,
    /// A prefix to ask for; the Server has the last word.
    #[arg(long = "prefix")]
    prefixes: Vec<IpNet>,
    /// A service prefix of the link, where no Server tells them (the deprecated model).
    #[arg(long = "service-prefix", value_name = "PREFIX")]
    service_prefixes: Vec<IpNet>,
    /// Keep the lease, the device and its routes at the end.
    #[arg(long)]
    keep: bool,
    /// Only the link: encapsulate what another DHCPv6 client says on the interface, and the data
    /// it gets a prefix for. The interface gets no address but a link-local one, and no routes.
    #[arg(long)]
    link_only: bool,
    /// Address of /healthz, /readyz, /metrics and /status.
    #[arg(long, env = "AERO_ADMIN", default_value = "127.0.0.1:9062")]
    admin: SocketAddr,
    /// Show how the running client at the admin address stands.
    #[arg(long)]
    status: bool,
}

/// Runs the Client until SIGTERM.
///
/// # Errors
/// If the host cannot be set up or a part breaks.
pub async fn run(args: ClientArgs) -> anyhow::Result<()> {
    if args.status {
        print!("{}", status::ask(args.admin).await?);
        return Ok(());
    }
    let token = shutdown::token()?;
    let finder = servers::Finder::new(&args.servers, args.domain.as_deref())?;
    if args.link_only {
        return link_only::run(&args, finder, token).await;
    }
    let client = match &args.duid {
        Some(text) => duid::parse(text)
            .with_context(|| format!("--duid {text:?} is neither a UUID nor a DUID in hex"))?,
        None => duid::keep(&args.state_dir)?,
    };
    // The first signs; others are for the Servers, while keys change.
    let key = match &args.key_file {
        Some(file) => keys::read(file)?.into_iter().next(),
        None => None,
    };
    tracing::info!(duid = %client, key = key.as_ref().map(Key::id), "this host");
    let underlay = Arc::new(bind(args.port)?);
    let found = finder.find_first(&token).await;
    let (underlay_mtu, mtu) = mtu(&args, found.first().copied()).await?;
    let device = tun::open(&args.device, mtu)?;
    attach::route_asps(&args.device, &[], attach::METRIC_OF_CLIENT).await?;
    let (control_sender, control) = mpsc::channel(CONTROL_QUEUE);
    let (errors, reported) = paths::underlay_errors();
    let config = userspace::Config {
        paths: args.path_mtu.config(underlay_mtu),
        underlay_errors: Some(errors),
        ..Default::default()
    };
    let forwarder =
        Forwarder::with_config(Arc::clone(&underlay), Some(device), control_sender, config);
    let sender = Arc::clone(&forwarder);
    let engine = Node::new(Config {
        asps: args.service_prefixes.clone(),
        link_id: 0,
        node: client.to_string(),
        seed: rand::rng().random(),
        optimize: true,
    });
    let table: Arc<dyn ForwardingTable> = forwarder.clone();
    let left = Arc::new(Notify::new());
    let on_event = {
        let left = Arc::clone(&left);
        move |event| report(event, &left)
    };
    let (driver, outgoing) = Driver::new(engine, Arc::clone(&table), on_event);
    driver.with(paths::set_clock);
    driver.with(|node, _| node.set_key(client.clone(), key));
    let own_port = args.bind_source.then_some(args.port);
    let triggers = forwarder.triggers();
    let spec = ClientSpec { client: client.clone(), claim: None, prefixes: args.prefixes.clone() };
    driver.with(|node, now| node.use_servers(Some(args.use_servers.into()), now));
    driver.with(|node, now| node.attach(spec.clone(), now));
    roaming::bind(&driver, &found, own_port);
    servers::set(&driver, &found);
    let readiness = Readiness::default();
    let leased = readiness.register("lease");
    let mut registry = Registry::default();
    metrics::register(&mut registry, Arc::clone(&table));
    paths::register(&mut registry, Arc::clone(&driver));
    let state = status::Source::new(client.clone(), args.device.clone(), Arc::clone(&driver));
    let extra = Router::new().route("/status", get(move || async move { Json(state.now()) }));
    let stop = tokio_util::sync::CancellationToken::new();
    let mut admin =
        tokio::spawn(admin::serve(args.admin, readiness, registry, extra, stop.clone()));
    let mut forwarding = tokio::spawn(forwarder.run());
    let mut interface = interface::Interface::new(&args.device);
    tokio::select! {
        () = driver.run(&sender, control, outgoing) => {}
        () = paths::watch(&driver, &*table, triggers) => {}
        () = paths::heed(&driver, reported) => {}
        ended = &mut forwarding => ended??,
        ended = &mut admin => ended??,
        ended = interface.follow(&driver, &client, &leased) => ended?,
        () = finder.follow(&driver) => {}
        ended = roaming::follow(&driver, own_port) => ended?,
        () = ask_again(&driver, &spec, &left) => {}
        () = async {
            token.cancelled().await;
            if !args.keep {
                say_goodbye(&driver, &client).await;
            }
        } => {}
    }
    stop.cancel();
    if !args.keep {
        attach::remove_device(&args.device).await?;
    }
    Ok(())
}

fn report(event: Event, left: &Notify) {
    let Some(event) = paths::report(event) else { return };
    match event {
        Event::Delegated { server, prefixes, new: true, .. } => {
            tracing::info!(%server, ?prefixes, "delegated");
        }
        Event::Delegated { .. } => {}
        Event::Refused { server, text, .. } => {
            if let Some(left_out) = sparing::may_warn("refused") {
                tracing::warn!(%server, left_out, "refused: {text}");
            }
        }
        Event::Muted { why, .. } => {
            tracing::warn!(?why, "the prefix is not served here any more");
            if matches!(why, Muted::Moved(_)) {
                left.notify_one();
            }
        }
        Event::Released { .. } => tracing::info!("released"),
        Event::ServerUp(server) => tracing::info!(%server, "Server answers"),
        Event::ServerDown(server) => tracing::warn!(%server, "Server does not answer any more"),
        Event::LeftServer { server, confirmed, .. } => {
            tracing::info!(%server, confirmed, "left this Server for another");
        }
        Event::LinkUsed(link) => tracing::info!(link, "another underlay link is used"),
        Event::Dropped { from, why: why @ WireError::BadSignature } => {
            if let Some(left_out) = sparing::may_warn("answer not believed") {
                tracing::warn!(%from, left_out, "an answer was not believed: {why}");
            }
        }
        Event::Dropped { from, why } => tracing::debug!(%from, "control packet dropped: {why}"),
        // Reported before.
        Event::PathOpened { .. } | Event::PathLost { .. } | Event::Ignored { .. } => {}
    }
}

/// The node's side of the underlay, whatever its addresses are and become: the kernel chooses
/// the source of each datagram by its routes.
fn bind(port: u16) -> anyhow::Result<Underlay> {
    let any = [IpAddr::V4(Ipv4Addr::UNSPECIFIED), IpAddr::V6(Ipv6Addr::UNSPECIFIED)];
    // A host may have one of the families turned off.
    let has = |ip: &IpAddr| std::net::UdpSocket::bind((*ip, 0)).is_ok();
    let families: Vec<IpAddr> = any.into_iter().filter(has).collect();
    if families.is_empty() {
        bail!("this host has neither IPv4 nor IPv6");
    }
    Ok(Underlay::bind(&families, port)?)
}

/// MTU of the underlay interface that leads to a Server, and by it of the AERO interface.
async fn mtu(
    args: &ClientArgs,
    server: Option<aero_protocol::address::LinkLayerAddress>,
) -> anyhow::Result<(u16, u16)> {
    let source = server.and_then(|s| roaming::source_towards(s.into()));
    let underlay = match source {
        Some(ip) => attach::underlay_mtu(ip).await?,
        None => 1500,
    };
    Ok((underlay, if args.mtu == 0 { interface_mtu(underlay) } else { args.mtu }))
}

/// Releases the lease at every Server, as far as they answer in time.
async fn say_goodbye(driver: &Driver<Node>, client: &Duid) {
    let mut changes = driver.changes();
    driver.with(|node, now| node.detach(client, now));
    let gone = async {
        while driver.with(|node, _| node.standing(client).is_some()) {
            if changes.changed().await.is_err() {
                return;
            }
        }
    };
    if tokio::time::timeout(GOODBYE, gone).await.is_err() {
        tracing::warn!("not every Server has answered the Release; the lease runs out there");
    }
}

/// Claims the prefix again some time after a Server said that it went elsewhere.
async fn ask_again(driver: &Driver<Node>, spec: &ClientSpec, left: &Notify) {
    loop {
        left.notified().await;
        tokio::time::sleep(ASK_AGAIN).await;
        tracing::info!("asking again");
        driver.with(|node, now| node.attach(spec.clone(), now));
    }
}
