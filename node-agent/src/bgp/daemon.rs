//! `aero-node-agent bird`: runs BIRD beside this node's Server or Relay. Makes its configuration
//! from the Relays' file, makes it anew when the file changes, and ends when BIRD ends, so that
//! whoever runs this program starts both again.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};
use std::time::{Duration, SystemTime};

use aero_telemetry::shutdown;
use anyhow::{Context as _, bail};
use clap::Args;
use nix::sys::signal::Signal;
use tokio::process::{Child, Command};

use super::bird_config::BirdConfigArgs;
use super::report::{self, ReportArgs};
use super::table::Table;
use crate::attach::ROUTE_PROTOCOL;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// A Server that is told to end at the same time forwards and announces until its clients have
/// left, and withdraws then; only after that its sessions may go. Longer than that takes.
const LINGER: Duration = Duration::from_secs(12);
/// How long a withdrawal takes to reach the Relays.
const SETTLE: Duration = Duration::from_secs(1);
/// The BIRD that is there; 0 for none.
static PID: AtomicI32 = AtomicI32::new(0);

/// Flags of `aero-node-agent bird`.
#[derive(Debug, Args)]
pub struct BirdArgs {
    #[command(flatten)]
    config: BirdConfigArgs,
    /// BIRD; `birdc` is expected beside it.
    #[arg(long, default_value = "/usr/sbin/bird")]
    bird: PathBuf,
    /// Directory for its configuration and its control socket.
    #[arg(long, env = "AERO_BIRD_DIR", default_value = "/run/aero-bird")]
    directory: PathBuf,
    #[command(flatten)]
    report: ReportArgs,
}

/// Runs BIRD until SIGTERM.
///
/// # Errors
/// If BIRD cannot be started, or ends.
pub async fn run(args: BirdArgs) -> anyhow::Result<()> {
    // Whoever asks twice gets no BIRD that nobody looks after.
    let token = shutdown::token_with(|| terminate(Signal::SIGKILL))?;
    tokio::fs::create_dir_all(&args.directory).await?;
    let (conf, socket) = (args.directory.join("bird.conf"), args.directory.join("bird.ctl"));
    let birdc = args.bird.with_file_name("birdc");
    let mut report = std::pin::pin!(report::follow(&args.report, &birdc, &socket));
    let (mut seen, mut written, mut child) = (None, String::new(), None::<Child>);
    loop {
        let modified = modified(args.config.routes()).await;
        if modified != seen {
            seen = modified;
            match args.config.text().await {
                Ok(text) if text == written => {}
                Ok(text) => {
                    tokio::fs::write(&conf, &text).await?;
                    written = text;
                    match child {
                        None => child = Some(start(&args, &conf, &socket).await?),
                        Some(_) => configure(&args, &socket).await,
                    }
                }
                // At the beginning this node may not be in the file yet.
                Err(e) => tracing::error!("BIRD stays as it is: {e:#}"),
            }
        }
        let ended = async {
            match &mut child {
                Some(child) => child.wait().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            status = ended => {
                PID.store(0, Relaxed);
                bail!("BIRD has ended: {}", status?)
            }
            ended = &mut report => ended?,
            () = tokio::time::sleep(LOOK) => {}
            () = token.cancelled() => break,
        }
    }
    if let Some(mut child) = child {
        await_withdrawal(&args).await;
        terminate(Signal::SIGTERM);
        child.wait().await?;
    }
    Ok(())
}

/// Waits until the Server beside this BIRD announces nothing any more, if there is one.
async fn await_withdrawal(args: &BirdArgs) {
    let end = tokio::time::Instant::now() + LINGER;
    while tokio::time::Instant::now() < end {
        let announces = match Table::open(args.config.table()) {
            Ok(table) => table
                .list()
                .await
                .is_ok_and(|routes| routes.iter().any(|r| r.protocol == ROUTE_PROTOCOL)),
            Err(_) => false,
        };
        if !announces {
            break;
        }
        tokio::time::sleep(LOOK).await;
    }
    tokio::time::sleep(SETTLE).await;
}

fn terminate(signal: Signal) {
    match PID.load(Relaxed) {
        0 => {}
        pid => drop(nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal)),
    }
}

async fn modified(path: &Path) -> Option<SystemTime> {
    tokio::fs::metadata(path).await.and_then(|m| m.modified()).ok()
}

/// Starts BIRD; to recover gracefully if an earlier one has left routes.
async fn start(args: &BirdArgs, conf: &Path, socket: &Path) -> anyhow::Result<Child> {
    let table = Table::open(args.config.table())?;
    let left = table.list().await?.iter().any(|r| r.protocol != ROUTE_PROTOCOL);
    let mut command = Command::new(&args.bird);
    command.arg("-f").arg("-c").arg(conf).arg("-s").arg(socket);
    if left {
        command.arg("-R");
    }
    // Whatever happens to this program, no BIRD is left that nobody looks after.
    command.stdin(Stdio::null()).kill_on_drop(true);
    let child = command.spawn().with_context(|| format!("{}", args.bird.display()))?;
    PID.store(child.id().and_then(|id| i32::try_from(id).ok()).unwrap_or(0), Relaxed);
    tracing::info!(recovers = left, "BIRD is started");
    Ok(child)
}

/// Tells BIRD to read its configuration again.
async fn configure(args: &BirdArgs, socket: &Path) {
    let birdc = args.bird.with_file_name("birdc");
    let mut command = Command::new(birdc);
    command.arg("-s").arg(socket).arg("configure").stdin(Stdio::null());
    match command.output().await {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stdout).trim().replace('\n', "; ");
            tracing::info!("BIRD is told of a change: {said}");
        }
        Err(e) => tracing::error!("BIRD could not be told of a change: {e}"),
    }
}
