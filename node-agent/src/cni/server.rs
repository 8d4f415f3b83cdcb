//! Serves the CNI plugin on a Unix socket.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};

use super::protocol::{CniError, Done, MAX_FRAME, Request, Response, code};

/// A request that does not come within this time is given up.
const READ_TIME: Duration = Duration::from_secs(5);

/// What answers requests.
pub trait Handler: Send + Sync + 'static {
    /// Does what a request asks for.
    fn handle(&self, request: Request) -> impl Future<Output = Result<Done, CniError>> + Send;

    /// Learns how a request went.
    fn handled(&self, verb: &str, outcome: &Result<Done, CniError>, took: Duration);
}

/// Listens on `path`, in the place of a socket that an earlier run left.
///
/// # Errors
/// If the socket cannot be made.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Answers until the future is dropped.
pub async fn serve<H: Handler>(listener: UnixListener, handler: Arc<H>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let handler = Arc::clone(&handler);
                tokio::spawn(async move {
                    if let Err(e) = exchange(stream, &*handler).await {
                        tracing::debug!("a request of the CNI plugin was cut off: {e}");
                    }
                });
            }
            Err(e) => {
                tracing::warn!("the CNI socket fails: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn exchange<H: Handler>(mut stream: UnixStream, handler: &H) -> io::Result<()> {
    let bytes = tokio::time::timeout(READ_TIME, read_frame(&mut stream)).await??;
    let response = match serde_json::from_slice::<Request>(&bytes) {
        Ok(request) => {
            let (verb, container) = (request.verb.clone(), request.container_id.clone());
            let began = Instant::now();
            let outcome = handler.handle(request).await;
            let elapsed = began.elapsed();
            handler.handled(&verb, &outcome, elapsed);
            match &outcome {
                Ok(_) if verb == "STATUS" => {}
                Ok(_) => tracing::info!(verb, container, ?elapsed, "CNI request done"),
                Err(e) => tracing::warn!(verb, container, ?elapsed, code = e.code, "{}", e.msg),
            }
            outcome.map_or_else(Response::Error, Response::Ok)
        }
        Err(e) => Response::Error(CniError::new(
            code::INVALID_CONFIG,
            format!(
                "the agent does not understand the request ({e}); are plugin and agent of one version?"
            ),
        )),
    };
    let bytes = serde_json::to_vec(&response)?;
    let length = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    stream.write_all(&length.to_be_bytes()).await?;
    stream.write_all(&bytes).await?;
    stream.shutdown().await
}

async fn read_frame(stream: &mut UnixStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u32().await?;
    if length > MAX_FRAME {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the request is too long"));
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(io::Error::other)?];
    stream.read_exact(&mut bytes).await?;
    Ok(bytes)
}
