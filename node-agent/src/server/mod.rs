//! The Server role: leases from the shared table, forwarding between Clients.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aero_crds::{AcpMapping, AeroLink, Authentication as LinkAuthentication};
use aero_dataplane::ForwardingTable;
use aero_dataplane::underlay::Underlay;
use aero_dataplane::userspace::Forwarder;
use aero_protocol::address::{Duid, Epoch, ServerId};
use aero_protocol::server::{Authentication, Config, Event, Holder, Mapping, Server};
use aero_telemetry::admin::{self, Readiness};
use aero_telemetry::shutdown;
use anyhow::Context as _;
use axum::routing::get;
use axum::{Json, Router};
use clap::Args;
use futures::StreamExt;
use ipnet::IpNet;
use kube::runtime::watcher::{self, Event as Watched};
use kube::runtime::{WatchStreamExt, reflector};
use kube::{Api, Client, ResourceExt};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use uuid::Uuid;

use crate::driver::Driver;
use crate::metrics;

/// Control packets that wait for the engine at most.
const CONTROL_QUEUE: usize = 4096;
/// After SIGTERM a Server goes on for this long while its Clients learn that it leaves.
const LINGER: Duration = Duration::from_secs(3);

/// Flags of `aero-node-agent server`.
#[derive(Debug, Args)]
pub struct ServerArgs {
    /// The AeroLink to serve.
    #[arg(long, env = "AERO_LINK", default_value = "default")]
    link: String,
    /// UDP port on the underlay.
    #[arg(long, env = "AERO_PORT", default_value_t = 8060)]
    port: u16,
    /// Underlay addresses of this node, separated by commas.
    #[arg(long, env = "HOST_IPS", value_delimiter = ',', required = true)]
    host_ips: Vec<IpAddr>,
    /// Address of /healthz, /readyz, /metrics and /debug/neighbors.
    #[arg(long, env = "AERO_ADMIN", default_value = "[::]:9060")]
    admin: SocketAddr,
}

/// Runs the Server until SIGTERM.
///
/// # Errors
/// If the underlay or the API server cannot be used.
pub async fn run(args: ServerArgs) -> anyhow::Result<()> {
    let token = shutdown::token()?;
    let first = *args.host_ips.first().context("HOST_IPS is empty")?;
    let underlay = Arc::new(Underlay::bind(&args.host_ips, args.port)?);
    let (control_sender, control) = mpsc::channel(CONTROL_QUEUE);
    let forwarder = Forwarder::new(Arc::clone(&underlay), None, control_sender);
    let name = format!("{}/{first}:{}", args.link, args.port);
    let engine = Server::new(Config {
        id: ServerId::from_underlay(first),
        duid: Duid::from_uuid(Uuid::new_v5(&aero_crds::AERO_NAMESPACE, name.as_bytes())),
        asps: Vec::new(),
        lease: Duration::from_secs(40),
        authentication: Authentication::NodeAddress,
    });
    let table: Arc<dyn ForwardingTable> = forwarder.clone();
    let (driver, outgoing) = Driver::new(engine, Arc::clone(&table), report);
    let readiness = Readiness::default();
    let (mappings_ready, link_ready) = (readiness.register("mappings"), readiness.register("link"));
    let serving = readiness.register("serving");
    serving.ready();
    let mut registry = Registry::default();
    metrics::register(&mut registry, table);
    let neighbors = Arc::clone(&driver);
    let debug = Router::new()
        .route("/debug/neighbors", get(move || async move { Json(list_neighbors(&neighbors)) }));
    let stop = tokio_util::sync::CancellationToken::new();
    let mut admin =
        tokio::spawn(admin::serve(args.admin, readiness, registry, debug, stop.clone()));
    let client = Client::try_default().await.context("there is no way to an API server")?;
    tracing::info!(id = %ServerId::from_underlay(first).address(), link = args.link, "serving {:?}", args.host_ips);
    let mut forwarding = tokio::spawn(forwarder.run());
    tokio::select! {
        () = driver.run(&underlay, control, outgoing) => {}
        ended = &mut forwarding => ended??,
        ended = &mut admin => ended??,
        () = watch_mappings(&client, &driver, &args.link, &mappings_ready) => {}
        () = watch_link(&client, &driver, &args.link, &link_ready) => {}
        () = async {
            token.cancelled().await;
            // Not ready: the endpoint goes, agents turn to other Servers. Until they have, this
            // one forwards.
            serving.not_ready("ending");
            tokio::time::sleep(LINGER).await;
        } => {}
    }
    stop.cancel();
    Ok(())
}

fn report(event: Event) {
    match event {
        Event::Associated { prefix, at, moved_from, epoch } => {
            let moved_from = moved_from.map(|l2| l2.to_string());
            tracing::info!(%prefix, %at, moved_from, %epoch, "associated");
        }
        Event::Ended { prefix, at, why } => tracing::info!(%prefix, %at, ?why, "lease ended"),
        Event::Refused { client, from, why } => {
            tracing::warn!(%client, %from, "refused: {why}");
        }
        Event::Dropped { from, why } => tracing::debug!(%from, "control packet dropped: {why}"),
    }
}

fn list_neighbors(driver: &Driver<Server>) -> Value {
    driver.with(|engine, now| {
        let list = engine.neighbors().map(|n| {
            json!({
                "acp": n.prefix.to_string(),
                "client": n.client.to_string(),
                "linkLayer": n.link_layer.to_string(),
                "epoch": n.epoch.0,
                "leaseSeconds": n.until.saturating_duration_since(now).as_secs(),
            })
        });
        Value::Array(list.collect())
    })
}

/// Reads a row of the table; `None` for one that is not of this link or makes no sense.
fn read_mapping(mapping: &AcpMapping, link: &str) -> Option<Mapping> {
    let spec = &mapping.spec;
    if spec.link_ref.name != link {
        return None;
    }
    let holder = spec.holder.as_ref().and_then(|h| {
        Some(Holder {
            id: Uuid::parse_str(&h.pod_uid).ok()?,
            name: format!("pod {}/{} on {}", spec.client_ref.namespace, h.pod_name, h.node),
            underlay: h.underlay.iter().filter_map(|a| a.parse().ok()).collect(),
        })
    });
    Some(Mapping {
        prefix: spec.prefix.parse().ok()?,
        client: Duid::from_uuid(Uuid::parse_str(&spec.client_id).ok()?),
        epoch: Epoch(u64::try_from(spec.epoch).ok()?),
        holder,
    })
}

async fn watch_mappings(
    client: &Client,
    driver: &Driver<Server>,
    link: &str,
    ready: &admin::ReadyHandle,
) {
    let api: Api<AcpMapping> = Api::all(client.clone());
    let mut stream = std::pin::pin!(aero_crds::watch(api, watcher::Config::default()));
    // A list that replaces the whole table: what it does not name is removed at its end.
    let mut listed: Option<Vec<IpNet>> = None;
    while let Some(event) = stream.next().await {
        let set = |m: &AcpMapping| {
            let mapping = read_mapping(m, link)?;
            let prefix = mapping.prefix;
            driver.with(|engine, now| engine.set_mapping(mapping, now));
            Some(prefix)
        };
        match event {
            Ok(Watched::Init) => listed = Some(Vec::new()),
            Ok(Watched::InitApply(m)) => {
                if let (Some(prefix), Some(all)) = (set(&m), listed.as_mut()) {
                    all.push(prefix);
                }
            }
            Ok(Watched::InitDone) => {
                let all = listed.take().unwrap_or_default();
                driver.with(|engine, _| engine.retain_mappings(&all));
                ready.ready();
            }
            Ok(Watched::Apply(m)) => drop(set(&m)),
            Ok(Watched::Delete(m)) => {
                if let Some(mapping) = read_mapping(&m, link) {
                    driver.with(|engine, _| engine.remove_mapping(mapping.prefix));
                }
            }
            // Leases go on from the copy of the table while the API server is away.
            Err(e) => tracing::debug!("the watch of mappings broke and is tried again: {e}"),
        }
    }
}

async fn watch_link(
    client: &Client,
    driver: &Driver<Server>,
    name: &str,
    ready: &admin::ReadyHandle,
) {
    let api: Api<AeroLink> = Api::all(client.clone());
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let (_, writer) = reflector::store();
    let stream = aero_crds::watch(api, config).reflect(writer).applied_objects();
    let mut stream = std::pin::pin!(stream);
    while let Some(event) = stream.next().await {
        let Ok(link) = event else { continue };
        let pools = link.status.clone().map(|s| s.pools).unwrap_or_default();
        let asps: Vec<IpNet> = pools.iter().filter_map(|p| p.prefix.parse().ok()).collect();
        if asps.is_empty() {
            ready.not_ready(format!("AeroLink {} has no pools yet", link.name_any()));
            continue;
        }
        let lease = u64::try_from(link.spec.timers.lease_seconds).unwrap_or(40);
        let authentication = match link.spec.authentication {
            LinkAuthentication::NodeAddress => Authentication::NodeAddress,
            LinkAuthentication::None => Authentication::None,
        };
        driver.with(|engine, _: Instant| {
            engine.set_link(asps, Duration::from_secs(lease), authentication);
        });
        ready.ready();
    }
}
