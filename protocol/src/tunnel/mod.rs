//! The tunnel's rules: draft -48 sections 3.4 (encapsulation), 3.10 (sizes, fragmentation),
//! RFC 6040 (ECN), RFC 6438 (flow label).
//!
//! What a packet looks like on the underlay: its outer header ([`header`], [`ecn`]), whether it
//! goes whole or in pieces ([`size`], [`fragment`], [`path`]), and how pieces become whole again
//! ([`reassembly`]). Which neighbour a packet goes to is [`crate::forwarding`]'s matter.
//!
//! The guarantee of 1500 bytes: whatever the underlay, an inner packet of up to 1500 bytes
//! arrives. Where nothing is known about the path, what does not surely fit goes in exactly two
//! fragments of the tunnel; once a probe has come through, whole.

pub mod ecn;
pub mod fragment;
pub mod header;
pub mod ip_in_ip;
pub mod path;
pub mod reassembly;
pub mod size;

/// Bytes that every link carries unfragmented (RFC 8200 section 5).
pub const LEAST_MTU: usize = 1280;
/// Inner packets of this size always arrive (draft -48 section 3.10).
pub const GUARANTEED: usize = 1500;
/// Largest outer packet that holds a fragment.
pub const FRAGMENT_PACKET: usize = 1024;

/// Bytes before the inner packet when there is no shim: IP and UDP headers.
pub const fn overhead(ipv6_underlay: bool) -> usize {
    if ipv6_underlay { 48 } else { 28 }
}

/// ENCAPS of the draft: with the fragment shim, which is always counted.
pub const fn encaps(ipv6_underlay: bool) -> usize {
    overhead(ipv6_underlay) + crate::wire::encapsulation::FRAGMENT_SHIM
}
