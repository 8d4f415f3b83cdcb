//! Custom resources of the `aerolink.dev` group, version `v1alpha1`.
//!
//! One file per kind. Validation is CEL inside the CRDs, so that it works while the operator is
//! down; the YAML under `yaml/` is generated from these types by the `crdgen` binary and a test
//! fails when the two drift apart.
#![forbid(unsafe_code)]
// KubeSchema expands to a private copy of each type, which the lint takes for ours.
#![allow(unreachable_pub)]

pub mod annotations;
mod client;
mod conditions;
mod duration;
mod link;
mod mapping;
mod names;
mod relay;
mod schema;
mod server;
pub mod yaml;

pub use client::{AeroClient, AeroClientSpec, AeroClientStatus, Host, IdentityStatus};
pub use conditions::{condition, set_condition};
pub use duration::{DEFAULT_COOL_DOWN, DEFAULT_KEEP_FOR, DurationError, parse_duration};
pub use link::{
    AeroLink, AeroLinkSpec, AeroLinkStatus, Authentication, DEFAULT_LEASE_SECONDS, Family, LinkRef,
    Pool, PoolError, PoolStatus, Timers,
};
pub use mapping::{AcpMapping, AcpMappingSpec, AcpMappingStatus, ClientRef, Holder, Phase};
pub use names::{AERO_NAMESPACE, NameError, client_id, mapping_name, mapping_prefix};
pub use relay::{AeroRelay, AeroRelaySpec, AeroRelayStatus, ExternalPeer};
pub use server::{AeroServer, AeroServerSpec, AeroServerStatus, BgpSession, RelayRef, SERVER_PORT};

/// API group of every kind here.
pub const GROUP: &str = "aerolink.dev";
/// Version of every kind here.
pub const VERSION: &str = "v1alpha1";
