//! The forwarder of a role: flags, and what the data plane has to be told.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aero_dataplane::ebpf::{Hooks, Options};
use aero_dataplane::select::{self, Selected, Wanted};
use aero_dataplane::underlay::Underlay;
use aero_dataplane::userspace::Forwarder;
use anyhow::Context as _;
use clap::Args;

/// Flags of the roles that forward.
#[derive(Debug, Clone, Args)]
pub struct ForwarderArgs {
    /// Where packets are forwarded: `ebpf` in the kernel, `userspace` in this process, `auto` in
    /// the kernel if it can be had (the log says why not).
    #[arg(long, env = "AERO_FORWARDER", default_value = "auto")]
    forwarder: Wanted,
    /// Directory for pinned programs and maps, on a BPF file system.
    #[arg(long, default_value = "/sys/fs/bpf/aero")]
    bpf_dir: PathBuf,
}

/// What differs between the roles.
#[derive(Debug, Clone)]
pub struct Role<'a> {
    /// Its name.
    pub name: &'a str,
    /// The AERO interface, if it has one.
    pub device: Option<&'a str>,
    /// MTU of inner packets.
    pub mtu: u16,
    /// Taken off the outer TTL of what is passed on.
    pub ttl_step: u8,
    /// How long the kernel goes on with no process to look after the table.
    pub outlives: Option<Duration>,
}

impl ForwarderArgs {
    /// Opens the forwarder.
    ///
    /// # Errors
    /// If eBPF is asked for by name and not to be had.
    pub fn open(
        &self,
        role: &Role<'_>,
        underlay: &Underlay,
        userspace: Arc<Forwarder>,
    ) -> anyhow::Result<Selected> {
        let addresses: Vec<_> = underlay.addresses().collect();
        let port = addresses.first().context("there is no underlay address")?.port;
        let options = Options {
            root: self.bpf_dir.clone(),
            name: format!("{}-{port}", role.name),
            addresses: addresses.iter().map(|l2| l2.ip).collect(),
            port,
            device: role.device.map(String::from),
            mtu: role.mtu,
            ttl_step: role.ttl_step,
            hooks: Hooks::Auto,
            outlives: role.outlives,
        };
        select::open(self.forwarder, userspace, options).context("no forwarder in the kernel")
    }
}
