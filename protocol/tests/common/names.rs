//! Addresses, prefixes and identities by number, as all links in memory use them.

use std::net::IpAddr;
use std::time::Duration;

use aero_protocol::address::{Duid, LinkLayerAddress};
use ipnet::IpNet;
use uuid::Uuid;

pub const DELAY: Duration = Duration::from_millis(1);

pub fn l2(text: &str) -> LinkLayerAddress {
    text.parse::<std::net::SocketAddr>().unwrap().into()
}

pub fn node_address(n: u8) -> LinkLayerAddress {
    l2(&format!("192.0.2.{n}:8061"))
}

pub fn server_address(n: u8) -> LinkLayerAddress {
    l2(&format!("192.0.2.{n}:8060"))
}

pub fn prefix(n: u16) -> IpNet {
    format!("2001:db8:0:{n:x}::/64").parse().unwrap()
}

/// First address of a prefix.
pub fn host(n: u16) -> IpAddr {
    format!("2001:db8:0:{n:x}::1").parse().unwrap()
}

pub fn duid(n: u16) -> Duid {
    Duid::from_uuid(Uuid::from_u128(u128::from(n)))
}

/// The pod of client `n` in its `epoch`.
pub fn holder_id(n: u16, epoch: u64) -> Uuid {
    Uuid::from_u128((u128::from(n) << 64) | u128::from(epoch))
}
