//! The end: SIGTERM and SIGINT cancel one token that everything waits for. Who asks twice does not
//! want to wait: the second signal ends the process at once.

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled by the first SIGTERM or SIGINT. The second one, of either kind, ends
/// the process with the exit status that a shell has for a signal that was not caught.
///
/// # Errors
/// If the signal handlers cannot be installed.
pub fn token() -> anyhow::Result<CancellationToken> {
    token_with(|| {})
}

/// The same, with something that is done before the second signal ends the process.
///
/// # Errors
/// If the signal handlers cannot be installed.
pub fn token_with(last: impl FnOnce() + Send + 'static) -> anyhow::Result<CancellationToken> {
    let token = CancellationToken::new();
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let cancelled = token.clone();
    tokio::spawn(async move {
        let (name, _) = either(&mut term, &mut int).await;
        tracing::info!("{name}: ending");
        cancelled.cancel();
        let (name, number) = either(&mut term, &mut int).await;
        tracing::warn!("{name} again: ended at once");
        last();
        std::process::exit(128 + number);
    });
    Ok(token)
}

/// The name and the number of the signal that comes first.
async fn either(term: &mut Signal, int: &mut Signal) -> (&'static str, i32) {
    tokio::select! {
        _ = term.recv() => ("SIGTERM", SignalKind::terminate().as_raw_value()),
        _ = int.recv() => ("SIGINT", SignalKind::interrupt().as_raw_value()),
    }
}
