//! Interior BGP: a private instance between Servers and Relays, spoken by a BGP daemon beside this
//! program (BIRD 2). Draft -48 section 3.2, with the timers of draft-ietf-rtgwg-atn-bgp.
//!
//! ```text
//!  Server                                                    Relay
//!  engine -> announce -> table N -> BIRD == eBGP == BIRD -> table N -> learn -> engine
//!              ^ learn (default: which Relays live)
//! ```
//!
//! The two share a kernel route table that no rule points to: what this program writes there
//! ([`announce`], routes of protocol 86) the daemon announces, what the daemon writes there this
//! program follows ([`learn`]). The sessions themselves run over the AERO link, between the
//! link-local addresses of Servers and Relays ([`session`]): a session lives exactly as long as
//! its Server does, and what a daemon says comes from a permanent neighbour or does not come.
//! [`instance`] is who takes part, [`bird`] the daemon's configuration that follows from it,
//! [`daemon`] runs the daemon by it, [`report`] says on Kubernetes what has become of it.

pub mod announce;
pub mod bird;
pub mod bird_config;
pub mod daemon;
pub mod instance;
pub mod learn;
pub mod report;
pub mod session;
pub mod table;

use clap::Args;

/// Flags of the roles that a BGP daemon runs beside.
#[derive(Debug, Clone, Args)]
pub struct BgpArgs {
    /// Number of the kernel route table that is shared with a BGP daemon; no BGP if not given. No
    /// rule must point to it, and nothing else must use it.
    #[arg(long, env = "AERO_BGP_TABLE", value_parser = clap::value_parser!(u32).range(1..))]
    pub bgp_table: Option<u32>,
    /// Interface over which the daemon has its sessions; made by this program.
    #[arg(long, env = "AERO_BGP_DEVICE")]
    pub bgp_device: Option<String>,
}

impl BgpArgs {
    /// The interface of the sessions, for a Server or a Relay.
    pub fn device(&self, role: instance::Role) -> &str {
        self.bgp_device.as_deref().unwrap_or(role.device())
    }
}
