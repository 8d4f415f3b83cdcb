//! The Forwarding Agent role: data plane only. A Server beside it (or another program) tells it
//! what to forward where, over the feed of `docs/forwarding-feed.md`.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aero_dataplane::underlay::Underlay;
use aero_dataplane::userspace::Forwarder;
use aero_protocol::forwarding_agent::feed::MAX_LINE;
use aero_protocol::forwarding_agent::{Event, ForwardingAgent};
use aero_telemetry::admin::{self, Readiness, ReadyHandle};
use aero_telemetry::shutdown;
use anyhow::Context as _;
use axum::Router;
use clap::Args;
use prometheus_client::registry::Registry;
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::driver::Driver;
use crate::forwarding::{ForwarderArgs, Role};
use crate::lines::Lines;
use crate::metrics;

/// Control packets that wait for the engine at most.
const CONTROL_QUEUE: usize = 4096;
/// Between attempts to reach the Server's socket.
const AGAIN: Duration = Duration::from_millis(500);
/// How long the kernel's table is used with no process to look after it: as long as an agent
/// without a feed goes on.
const OUTLIVES: Duration = Duration::from_secs(30);

/// Flags of `aero-node-agent forwarding-agent`.
#[derive(Debug, Args)]
pub struct ForwardingAgentArgs {
    /// Unix socket of the Server's feed (its `--feed`). It is tried again until it is there.
    #[arg(long, value_name = "SOCKET")]
    feed: PathBuf,
    /// UDP port on the underlay.
    #[arg(long, env = "AERO_PORT", default_value_t = 8062)]
    port: u16,
    /// Underlay addresses of this node, separated by commas.
    #[arg(long, env = "HOST_IPS", value_delimiter = ',', required = true)]
    host_ips: Vec<IpAddr>,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, env = "AERO_ADMIN", default_value = "[::]:9065")]
    admin: SocketAddr,
    #[command(flatten)]
    forwarding: ForwarderArgs,
}

/// Runs the Forwarding Agent until SIGTERM.
///
/// # Errors
/// If the underlay cannot be used.
pub async fn run(args: ForwardingAgentArgs) -> anyhow::Result<()> {
    let token = shutdown::token()?;
    let underlay = Arc::new(Underlay::bind(&args.host_ips, args.port)?);
    let (control_sender, control) = mpsc::channel(CONTROL_QUEUE);
    let userspace = Forwarder::new(Arc::clone(&underlay), None, control_sender);
    let sender = Arc::clone(&userspace);
    let role = Role {
        name: "forwarding-agent",
        device: None,
        mtu: u16::MAX,
        ttl_step: 0,
        outlives: Some(OUTLIVES),
    };
    let forwarder = args.forwarding.open(&role, &underlay, userspace)?;
    let table = forwarder.table();
    let (driver, outgoing) = Driver::new(ForwardingAgent::new(), Arc::clone(&table), report);
    let readiness = Readiness::default();
    let fed = readiness.register("feed");
    let mut registry = Registry::default();
    metrics::register(&mut registry, table);
    metrics::register_messages(&mut registry, driver.messages());
    let stop = tokio_util::sync::CancellationToken::new();
    let mut admin =
        tokio::spawn(admin::serve(args.admin, readiness, registry, Router::new(), stop.clone()));
    tracing::info!("forwarding at {:?}, fed by {}", args.host_ips, args.feed.display());
    let mut forwarding = tokio::spawn(forwarder.clone().run());
    tokio::select! {
        () = driver.run(&sender, control, outgoing) => {}
        () = follow(&args.feed, &driver, &fed) => {}
        ended = &mut forwarding => ended??,
        ended = &mut admin => ended??,
        () = token.cancelled() => {}
    }
    stop.cancel();
    forwarder.remove();
    Ok(())
}

fn report(event: Event) {
    match event {
        Event::Synchronized => tracing::info!("the Server's forwarding state is here"),
        Event::Abandoned => tracing::warn!("no word from the Server for long: all is forgotten"),
        Event::Dropped { from, why } => {
            tracing::debug!(%from, "control packet dropped: {why}");
        }
    }
}

/// Follows the feed for ever, over as many streams as it takes.
async fn follow(path: &Path, driver: &Driver<ForwardingAgent>, ready: &ReadyHandle) {
    let mut said = false;
    loop {
        let outcome = match UnixStream::connect(path).await {
            Ok(stream) => listen(stream, driver, ready).await,
            Err(e) => Err(e).with_context(|| path.display().to_string()),
        };
        ready.not_ready("not fed");
        let why = outcome.err().map_or_else(|| "the Server hung up".into(), |e| format!("{e:#}"));
        if !said {
            tracing::warn!("not fed: {why}; it is tried again");
            said = true;
        }
        tokio::time::sleep(AGAIN).await;
    }
}

/// One stream, to its end.
async fn listen(
    stream: UnixStream,
    driver: &Driver<ForwardingAgent>,
    ready: &ReadyHandle,
) -> anyhow::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = Lines::new(reader, MAX_LINE);
    while let Some(line) = lines.next().await? {
        driver.with(|agent, now| agent.handle_line(&line, now))?;
        while let Some(reply) = driver.with(|agent, _| agent.poll_reply()) {
            writer.write_all((reply.to_line()? + "\n").as_bytes()).await?;
            ready.ready();
        }
    }
    Ok(())
}
