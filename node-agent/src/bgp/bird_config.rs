//! `aero-node-agent bird-config`: prints the configuration of the BGP daemon beside this node's
//! Server or Relay.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;

use super::bird::{Own, configuration};
use super::instance::Role;
use crate::relay::routes_file;

/// Flags of `aero-node-agent bird-config`.
#[derive(Debug, Args)]
pub struct BirdConfigArgs {
    /// What this node is.
    #[arg(long, value_enum)]
    role: Role,
    /// The Relays' file: service prefixes, Servers, Relays, external peers. See docs/relays.md.
    #[arg(long, env = "AERO_ROUTES")]
    routes: PathBuf,
    /// Addresses of this node, separated by commas; the first is that of the underlay by which the
    /// file names it.
    #[arg(long, env = "HOST_IPS", value_delimiter = ',', required = true)]
    host_ips: Vec<IpAddr>,
    /// The kernel route table that is shared with the Server or Relay.
    #[arg(long, env = "AERO_BGP_TABLE", value_parser = clap::value_parser!(u32).range(1..))]
    bgp_table: u32,
    /// The interface of the sessions, if the Server or Relay was given another than usual.
    #[arg(long, env = "AERO_BGP_DEVICE")]
    bgp_device: Option<String>,
    /// The Relay's interface to its node's network layer.
    #[arg(long, default_value = crate::relay::DEVICE)]
    device: String,
}

impl BirdConfigArgs {
    /// The file that all follows from.
    pub(super) fn routes(&self) -> &Path {
        &self.routes
    }

    /// The kernel route table.
    pub(super) fn table(&self) -> u32 {
        self.bgp_table
    }

    /// The configuration.
    pub(super) async fn text(&self) -> anyhow::Result<String> {
        let file = routes_file::read(&self.routes).await?;
        let own = Own {
            role: self.role,
            addresses: &self.host_ips,
            table: self.bgp_table,
            device: self.bgp_device.as_deref().unwrap_or(self.role.device()),
            relay_device: &self.device,
        };
        configuration(&file.instance, &own)
            .with_context(|| format!("no configuration from {}", self.routes.display()))
    }
}

/// Prints it.
///
/// # Errors
/// If the file cannot be used, or this node has no place in it.
pub async fn run(args: BirdConfigArgs) -> anyhow::Result<()> {
    print!("{}", args.text().await?);
    Ok(())
}
