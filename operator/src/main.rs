//! `aero-operator`: gives AeroClients their prefixes and runs the Servers.

#![forbid(unsafe_code)]

use std::net::SocketAddr;

use aero_operator::context::{Context, Settings, system_clock};
use aero_operator::metrics::Caches;
use aero_operator::run::{self, Metrics};
use aero_telemetry::admin::{self, Readiness};
use aero_telemetry::{logs, shutdown};
use anyhow::Context as _;
use clap::Parser;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::Api;
use kube::api::{Patch, PatchParams};
use kube_lease_manager::LeaseManagerBuilder;
use prometheus_client::registry::Registry;

/// The AERO operator: allocates a prefix for every identity of every AeroClient (writing
/// AcpMappings, the table that all Servers share), says on pods which prefix they hold, runs the
/// Servers of every AeroServer and the Relays of every AeroRelay, and keeps status and Events.
///
/// Several replicas may run; one leads by a Lease and the others stand by.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Namespace of the operator; the Servers and Relays run here too.
    #[arg(long, env = "POD_NAMESPACE", default_value = "aero-system")]
    namespace: String,
    /// Name of this pod.
    #[arg(long, env = "POD_NAME", default_value = "aero-operator")]
    pod_name: String,
    /// Image with aero-node-agent, for the Servers.
    #[arg(long, env = "AERO_NODE_AGENT_IMAGE")]
    node_agent_image: String,
    /// Image with BIRD and aero-node-agent, beside Relays and the Servers that speak to them.
    #[arg(long, env = "AERO_BIRD_IMAGE", default_value = concat!("aerolink.dev/aero-bird:", env!("CARGO_PKG_VERSION")))]
    bird_image: String,
    /// Where Servers forward: `auto`, `ebpf` (in the kernel) or `userspace`.
    #[arg(long, env = "AERO_FORWARDER", default_value = "auto",
        value_parser = ["auto", "ebpf", "userspace"])]
    forwarder: String,
    /// Pull policy of the Servers' image.
    #[arg(long, env = "AERO_PULL_POLICY", default_value = "IfNotPresent")]
    pull_policy: String,
    /// Service account of the Servers.
    #[arg(long, default_value = "aero-server")]
    server_service_account: String,
    /// Service account of the Relays.
    #[arg(long, default_value = "aero-relay")]
    relay_service_account: String,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, env = "AERO_ADMIN", default_value = "[::]:9062")]
    admin: SocketAddr,
    /// Name of the Lease.
    #[arg(long, default_value = "aero-operator")]
    lease: String,
    /// Apply this version's CRDs when starting to lead: Helm installs CRDs but never upgrades them.
    #[arg(long, env = "AERO_MANAGE_CRDS", default_value_t = false, action = clap::ArgAction::Set)]
    manage_crds: bool,
    #[command(flatten)]
    logs: logs::LogArgs,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    logs::init(&args.logs)?;
    let token = shutdown::token()?;
    let readiness = Readiness::default();
    let api = readiness.register("api");
    let mut registry = Registry::default();
    let metrics = Metrics::new(&mut registry);
    let caches = Caches::register(&mut registry);
    let admin = tokio::spawn(admin::serve(
        args.admin,
        readiness.clone(),
        registry,
        axum::Router::new(),
        token.clone(),
    ));
    let client = kube::Client::try_default().await.context("there is no way to an API server")?;
    let manager = LeaseManagerBuilder::new(client.clone(), &args.lease)
        .with_namespace(&args.namespace)
        .with_identity(&args.pod_name)
        .with_duration(15)
        .with_grace(5)
        .build()
        .await
        .context("the Lease cannot be made")?;
    let (mut leads, task) = manager.watch().await;
    let settings = Settings {
        namespace: args.namespace,
        pod: args.pod_name,
        node_agent_image: args.node_agent_image,
        bird_image: args.bird_image,
        pull_policy: args.pull_policy,
        server_service_account: args.server_service_account,
        relay_service_account: args.relay_service_account,
        log: (args.logs.log, args.logs.log_format.name()),
        forwarder: args.forwarder,
    };
    api.ready();
    tracing::info!("standing by for the Lease");
    let stopped = loop {
        tokio::select! {
            () = token.cancelled() => break true,
            changed = leads.changed() => {
                changed.context("the Lease's watch ended")?;
                if *leads.borrow_and_update() {
                    break false;
                }
            }
        }
    };
    if !stopped {
        tracing::info!("leading");
        // The Lease does not fence: an operator that was paused, or cut off from the API server,
        // leads in its own eyes until it has read the Lease again. So nothing that it writes may do
        // harm: see crate::mapping and tests/model, where two lead at once.
        // A leader without its caches decides nothing yet.
        let filled = readiness.register("caches");
        // Caches are filled after the Lease is ours, so they hold all that the leader before us
        // has written.
        tokio::select! {
            outcome = async {
                if args.manage_crds {
                    apply_crds(&client).await?;
                }
                let ctx = Context::start(client, settings, system_clock()).await?;
                caches.are(&ctx);
                filled.ready();
                run::all(ctx, metrics).await;
                anyhow::Ok(())
            } => outcome?,
            () = token.cancelled() => {}
            () = lost(&mut leads) => anyhow::bail!("the Lease was lost; ending, so that nothing is written beside another leader"),
            ended = admin => ended??,
        }
    }
    // Dropping the receiver makes the manager release the Lease, so the next one leads at once.
    drop(leads);
    let _ = tokio::time::timeout(std::time::Duration::from_secs(3), task).await;
    Ok(())
}

/// Brings the CRDs to this version.
async fn apply_crds(client: &kube::Client) -> anyhow::Result<()> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in aero_crds::all() {
        let name = crd.metadata.name.clone().unwrap_or_default();
        let params = PatchParams::apply("aero-operator-crds").force();
        api.patch(&name, &params, &Patch::Apply(&crd))
            .await
            .with_context(|| format!("the CRD {name} cannot be applied"))?;
    }
    Ok(())
}

async fn lost(leads: &mut tokio::sync::watch::Receiver<bool>) {
    let _ = leads.wait_for(|l| !l).await;
}
