//! Applies the forwarding table to packets.
//!
//! [`ForwardingTable`] is what an engine's changes are given to. [`userspace`] implements it with
//! a TUN device and UDP sockets; it needs no kernel support beyond those and is what every other
//! implementation is compared with. [`ebpf`] implements it in the kernel, before the one in user
//! space; [`select`] takes whichever a node can have.

mod counters;
pub mod ebpf;
mod message;
pub mod select;
mod table;
mod trigger;
pub mod tun;
pub mod underlay;
pub mod userspace;

pub use counters::{Counters, Snapshot, Traffic};
pub use table::{ForwardingTable, PodInterface};
pub use trigger::{Trigger, Triggers};

/// Bytes that a tunnel adds over an IPv6 underlay: IPv6 and UDP headers.
pub const ENCAPSULATION: u16 = 48;
/// Smallest MTU of an IPv6 link.
pub const MINIMUM_MTU: u16 = 1280;

/// MTU of the AERO interface over an underlay of the given MTU: what is left beside the larger
/// encapsulation, never less than IPv6 needs.
pub fn interface_mtu(underlay: u16) -> u16 {
    underlay.saturating_sub(ENCAPSULATION).max(MINIMUM_MTU)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_interface_mtu_leaves_room_for_the_tunnel_and_is_never_below_1280() {
        assert_eq!(super::interface_mtu(1500), 1452);
        assert_eq!(super::interface_mtu(9000), 8952);
        assert_eq!(super::interface_mtu(1300), 1280);
    }
}
