//! Every parser with one packet: none panics, and what is understood survives being written.

use aero_protocol::forwarding::Inner;
use aero_protocol::wire::dhcpv6::Message;
use aero_protocol::wire::ip::{Packet, Payload};
use aero_protocol::wire::nd::Nd;
use aero_protocol::wire::{Class, classify};

/// Parses `bytes` by all parsers.
///
/// # Panics
/// If a parser contradicts itself.
pub fn check(bytes: &[u8]) {
    let class = classify(bytes);
    let inner = Inner::of(bytes);
    if class == Class::Data && bytes.len() >= 40 {
        assert!(inner.is_some(), "data without addresses: {bytes:02x?}");
    }
    // DHCPv6 without anything around it, too.
    message(bytes);
    let Ok(packet) = Packet::parse(bytes) else { return };
    match packet.payload {
        Payload::Udp { data, .. } => message(data),
        Payload::Icmpv6 { .. } => {
            if let Ok(nd) = Nd::parse(&packet) {
                let again = nd.emit().expect("what was parsed can be written");
                let parsed = Packet::parse(&again).expect("what was written can be parsed");
                assert_eq!(Nd::parse(&parsed).as_ref(), Ok(&nd));
            }
        }
    }
}

fn message(data: &[u8]) {
    if let Ok(m) = Message::parse(data) {
        let again = m.emit().expect("what was parsed can be written");
        assert_eq!(Message::parse(&again).as_ref(), Ok(&m));
    }
}
