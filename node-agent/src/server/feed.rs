//! Feeds a Forwarding Agent with this Server's forwarding state (`docs/forwarding-feed.md`), over a
//! Unix socket that only this user may connect to.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use aero_dataplane::Trigger;
use aero_protocol::address::LinkLayerAddress;
use aero_protocol::forwarding_agent::feed::MAX_LINE;
use aero_protocol::server::{AgentConfig, Scope, Server};
use anyhow::Context as _;
use clap::Args;
use tokio::io::AsyncWriteExt;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;

use crate::driver::Driver;
use crate::lines::Lines;

/// Flags about the Forwarding Agent.
#[derive(Debug, Clone, Args)]
pub struct FeedArgs {
    /// Underlay address and port of a Forwarding Agent that data is to go by, fed by `--feed`.
    #[arg(long, value_name = "ADDRESS:PORT", requires = "feed")]
    forwarding_agent: Option<SocketAddr>,
    /// Unix socket at which the Forwarding Agent, or another program that forwards, is told this
    /// Server's forwarding state. See docs/forwarding-feed.md.
    #[arg(long, value_name = "SOCKET", requires = "forwarding_agent")]
    feed: Option<PathBuf>,
    /// Announce the Forwarding Agent for all data, not only for prefixes of this Server's clients.
    #[arg(long, requires = "feed")]
    forwarding_agent_for_all: bool,
}

/// A feed that is open.
pub(super) struct Feed {
    listener: UnixListener,
    at: LinkLayerAddress,
}

impl FeedArgs {
    /// Opens the socket, and tells the engine of the agent; `None` if there is none.
    ///
    /// # Errors
    /// If the socket cannot be made.
    pub(super) fn open(
        &self,
        companion: SocketAddr,
        driver: &Driver<Server>,
    ) -> anyhow::Result<Option<Feed>> {
        let (Some(at), Some(path)) = (self.forwarding_agent, &self.feed) else { return Ok(None) };
        let listener = listen(path).with_context(|| format!("--feed {}", path.display()))?;
        let scope = if self.forwarding_agent_for_all { Scope::All } else { Scope::Prefix };
        let config = AgentConfig { at: at.into(), companion: companion.into(), scope };
        driver.with(|server, now| server.add_forwarding_agent(config, now));
        Ok(Some(Feed { listener, at: at.into() }))
    }
}

fn listen(path: &Path) -> std::io::Result<UnixListener> {
    // Left by a process that was killed. One that lives would notice nothing, and feed nobody.
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    // Whoever writes there directs traffic.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Feeds whoever connects, one at a time, and tells the engine what is forwarded here that could
/// go by the agent. Until the future is dropped.
pub(super) async fn run(
    feed: Option<Feed>,
    driver: &Driver<Server>,
    mut forwarded: mpsc::Receiver<Trigger>,
) {
    let Some(Feed { listener, at }) = feed else { return std::future::pending().await };
    let tell = async {
        while let Some(Trigger { inner, .. }) = forwarded.recv().await {
            driver.with(|server, now| server.data_was_forwarded(inner, now));
        }
        std::future::pending::<()>().await;
    };
    let serve = async {
        loop {
            let stream = match listener.accept().await {
                Ok((stream, _)) => stream,
                Err(e) => {
                    tracing::warn!("nobody can be fed at the moment: {e}");
                    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
                    continue;
                }
            };
            tracing::info!(agent = %at, "the Forwarding Agent is being fed");
            let why = serve(stream, at, driver).await;
            driver.with(|server, _| server.agent_disconnected(at));
            tracing::warn!(agent = %at, "the Forwarding Agent is not fed any more: {why:#}");
        }
    };
    tokio::select! {
        () = tell => {}
        () = serve => {}
    }
}

/// Feeds one; why it ended.
async fn serve(stream: UnixStream, at: LinkLayerAddress, driver: &Driver<Server>) -> anyhow::Error {
    let (reader, mut writer) = stream.into_split();
    let mut lines = Lines::new(reader, MAX_LINE);
    let mut turns = driver.turns();
    driver.with(|server, now| server.agent_connected(at, now));
    loop {
        turns.mark_unchanged();
        while let Some(message) = driver.ask(|server| server.poll_feed(at)) {
            let line = match message.to_line() {
                Ok(line) => line,
                Err(e) => return e.into(),
            };
            if let Err(e) = writer.write_all((line + "\n").as_bytes()).await {
                return e.into();
            }
        }
        if !driver.ask(|server| server.agent_is_fed(at)) {
            return anyhow::anyhow!("it does not read what it is told");
        }
        tokio::select! {
            line = lines.next() => {
                let handled = match line {
                    Ok(Some(line)) => {
                        driver.with(|server, now| server.handle_agent_line(at, &line, now))
                    }
                    Ok(None) => return anyhow::anyhow!("it hung up"),
                    Err(e) => return e.into(),
                };
                if let Err(e) = handled {
                    return e.into();
                }
            }
            _ = turns.changed() => {}
        }
    }
}
