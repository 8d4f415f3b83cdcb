//! Every parser with one packet: none panics, and what is understood survives being written.

use std::net::Ipv6Addr;

use aero_protocol::forwarding::Inner;
use aero_protocol::forwarding_agent::feed::Message;
use aero_protocol::tunnel::fragment::fragment_ipv4;
use aero_protocol::tunnel::header::Outer;
use aero_protocol::wire::dhcpv6;
use aero_protocol::wire::encapsulation::demux;
use aero_protocol::wire::icmp_error;
use aero_protocol::wire::ip::{Packet, Payload};
use aero_protocol::wire::nd::Nd;
use aero_protocol::wire::signature::{self, Covered, Key, SECRET};
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
    let _ = demux(bytes);
    let mut copy = bytes.to_vec();
    let _ = icmp_error::quoted_destination_if_anonymous(bytes);
    let _ = icmp_error::set_source(&mut copy, Ipv6Addr::LOCALHOST.into());
    let mut pieces = 0;
    fragment_ipv4(bytes, 500, |piece| pieces += piece.len());
    assert!(pieces <= 2 * bytes.len() + 100, "{pieces} bytes of {}", bytes.len());
    let _ = Outer::entering(bytes);
    if let Ok(line) = std::str::from_utf8(bytes) {
        let _ = Message::of_line(line);
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
    if let Ok(m) = dhcpv6::Message::parse(data) {
        let again = m.emit().expect("what was parsed can be written");
        assert_eq!(dhcpv6::Message::parse(&again).as_ref(), Ok(&m));
    }
    // Whatever it is: no key finds its signature right that did not make it.
    let nobody = Ipv6Addr::UNSPECIFIED;
    let covered = Covered { source: nobody, destination: nobody, outer: None };
    assert!(!signature::verify(data, &covered, &Key::new(1, [0x77; SECRET])));
    let mut copy = data.to_vec();
    if signature::sign(&mut copy, &covered, &Key::new(1, [0x77; SECRET])).is_ok() {
        assert!(signature::verify(&copy, &covered, &Key::new(1, [0x77; SECRET])));
    }
}
