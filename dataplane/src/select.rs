//! Which forwarder a node has.

use std::io;
use std::str::FromStr;
use std::sync::Arc;

use crate::ebpf::{self, Ebpf, Options, Unavailable};
use crate::table::ForwardingTable;
use crate::userspace::Forwarder;

/// The forwarder that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Wanted {
    /// eBPF, and user space where it is not to be had.
    #[default]
    Auto,
    /// eBPF or nothing.
    Ebpf,
    /// User space.
    Userspace,
}

impl FromStr for Wanted {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, String> {
        match s {
            "auto" => Ok(Self::Auto),
            "ebpf" => Ok(Self::Ebpf),
            "userspace" => Ok(Self::Userspace),
            other => Err(format!("{other:?} is not one of auto, ebpf, userspace")),
        }
    }
}

/// The forwarder that a node has.
#[derive(Clone)]
pub struct Selected {
    userspace: Arc<Forwarder>,
    ebpf: Option<Arc<Ebpf>>,
}

/// Opens the forwarder that is wanted. Says in the log which one it is, and with `Auto` why it is
/// not eBPF.
///
/// # Errors
/// If eBPF is asked for and not to be had.
pub fn open(
    wanted: Wanted,
    userspace: Arc<Forwarder>,
    options: Options,
) -> Result<Selected, Unavailable> {
    let ebpf = match wanted {
        Wanted::Userspace => {
            // Programs that an earlier process has pinned would go on.
            ebpf::remove(&options);
            None
        }
        Wanted::Ebpf => Some(Ebpf::open(options, Arc::clone(&userspace))?),
        Wanted::Auto => match Ebpf::open(options, Arc::clone(&userspace)) {
            Ok(ebpf) => Some(ebpf),
            Err(why) => {
                tracing::warn!("no forwarder in the kernel, the one in user space serves: {why}");
                None
            }
        },
    };
    let forwarder = if ebpf.is_some() { "ebpf" } else { "userspace" };
    tracing::info!(forwarder, "forwarding");
    Ok(Selected { userspace, ebpf })
}

impl Selected {
    /// The table that changes are applied to.
    pub fn table(&self) -> Arc<dyn ForwardingTable> {
        match &self.ebpf {
            Some(ebpf) => Arc::clone(ebpf) as Arc<dyn ForwardingTable>,
            None => Arc::clone(&self.userspace) as Arc<dyn ForwardingTable>,
        }
    }

    /// True if packets are forwarded in the kernel.
    pub fn in_kernel(&self) -> bool {
        self.ebpf.is_some()
    }

    /// Forwards until the future is dropped. What is in the kernel goes on then.
    ///
    /// # Errors
    /// If the TUN device breaks.
    pub async fn run(self) -> io::Result<()> {
        let Some(ebpf) = self.ebpf else { return self.userspace.run().await };
        tokio::select! {
            ended = self.userspace.run() => ended,
            ended = ebpf.run() => ended,
        }
    }

    /// Takes what is in the kernel away.
    pub fn remove(&self) {
        if let Some(ebpf) = &self.ebpf {
            ebpf.remove();
        }
    }
}
