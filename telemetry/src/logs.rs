//! Logs on standard error.

use clap::{Args, ValueEnum};
use tracing_subscriber::EnvFilter;

/// How to log.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// What to log: a level, or rules such as `info,aero_protocol=debug`.
    #[arg(long, env = "AERO_LOG", default_value = "info,kube=warn,hyper=warn", global = true)]
    pub log: String,
    /// Text for people or JSON for machines.
    #[arg(long, env = "AERO_LOG_FORMAT", default_value = "text", global = true)]
    pub log_format: Format,
}

/// Form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One line of text.
    Text,
    /// One JSON object per line.
    Json,
}

impl Format {
    /// Its name, as `--log-format` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

/// Starts logging.
///
/// # Errors
/// If the rules cannot be read or logging was started before.
pub fn init(args: &LogArgs) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&args.log).map_err(|e| {
        anyhow::anyhow!("--log {:?} is not a level or a list of rules: {e}", args.log)
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match args.log_format {
        Format::Text => builder.with_ansi(false).try_init(),
        Format::Json => builder.json().try_init(),
    }
    .map_err(|e| anyhow::anyhow!("logging cannot be started: {e}"))
}
