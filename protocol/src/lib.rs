//! The AERO protocol without IO.
//!
//! AERO (RFC 6706, draft-templin-aerolink; this crate follows version -48) is a virtual
//! NBMA link over any IP network. Each Client owns an AERO Client Prefix (ACP) that stays the
//! same wherever the Client is; Servers delegate ACPs by DHCPv6 prefix delegation and forward
//! until a better path is known.
//!
//! Nothing here has a socket, a clock, a thread or a panic. An engine takes inputs
//! (a control packet with its outer source, a local event) together with the time, and is
//! drained of [`Output`]s: packets to send, changes of the [`forwarding::Table`], events to
//! report. So the same code runs in the node agent, in unit tests and in a simulation with
//! virtual time.
//!
//! Read in this order: [`address`], [`wire`] (bytes), [`forwarding`] (the only influence on
//! user data), [`tunnel`] (how it travels), [`neighbor`], [`client`], [`server`], [`relay`],
//! [`forwarding_agent`]; [`relay_agent`] is the deprecated model of a Server.

#![forbid(unsafe_code)]

pub mod address;
pub mod client;
pub mod forwarding;
pub mod forwarding_agent;
pub mod neighbor;
mod passing;
pub mod relay;
pub mod relay_agent;
pub mod server;
pub mod timers;
pub mod tunnel;
pub mod wire;

use address::LinkLayerAddress;

/// What an engine wants done. `E` is the engine's own kind of event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Output<E> {
    /// Send this control packet (a whole inner IPv6 packet) in a UDP datagram to `to`.
    Send {
        /// Outer destination: underlay IP address and UDP port.
        to: LinkLayerAddress,
        /// The inner packet, at most 1280 - ENCAPS bytes.
        packet: Vec<u8>,
    },
    /// Send it over a link that is not the one in use: a Client registers each of its links by a
    /// message that comes from there.
    SendOn {
        /// Link ID of one of this node's underlay interfaces.
        link: u8,
        /// Outer destination.
        to: LinkLayerAddress,
        /// The inner packet.
        packet: Vec<u8>,
    },
    /// Apply this change to the forwarding table.
    Forward(forwarding::Change),
    /// Something that a person or the program around the engine wants to know.
    Event(E),
}
