//! Counts control messages by type and direction, by a look at their first bytes. What is wrong
//! with a message is the engine's business; here a malformed one is of type `other`.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;

/// DHCPv6 types by their number (RFC 8415 section 7.3).
const DHCPV6: [(u8, &str); 11] = [
    (1, "solicit"),
    (2, "advertise"),
    (3, "request"),
    (4, "confirm"),
    (5, "renew"),
    (6, "rebind"),
    (7, "reply"),
    (8, "release"),
    (9, "decline"),
    (10, "reconfigure"),
    (11, "information_request"),
];
/// Neighbor Discovery types and codes (RFC 4861 section 4; draft -48 section 3.11).
const ND: [([u8; 2], &str); 6] = [
    ([133, 0], "router_solicitation"),
    ([134, 0], "router_advertisement"),
    ([135, 0], "neighbor_solicitation"),
    ([136, 0], "neighbor_advertisement"),
    ([137, 0], "redirect"),
    ([137, 1], "predirect"),
];
const OTHER: &str = "other";
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
/// Length of an IPv6 header, and of one with a UDP header behind it.
const IPV6_HEADER: usize = 40;
const UDP_PAYLOAD: usize = IPV6_HEADER + 8;

/// Where a message goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Received.
    In,
    /// Sent.
    Out,
}

/// Messages by type, the last being all others, received and sent.
#[derive(Debug, Default)]
pub struct Messages {
    dhcpv6: [[AtomicU64; 2]; DHCPV6.len() + 1],
    nd: [[AtomicU64; 2]; ND.len() + 1],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Dhcpv6(usize),
    Nd(usize),
}

/// Which message an inner packet is; `None` for one of neither protocol.
fn kind(packet: &[u8]) -> Option<Kind> {
    match *packet.get(6)? {
        UDP => {
            let number = packet.get(UDP_PAYLOAD);
            let place = DHCPV6.iter().position(|(n, _)| Some(n) == number);
            Some(Kind::Dhcpv6(place.unwrap_or(DHCPV6.len())))
        }
        ICMPV6 => {
            let number = packet.get(IPV6_HEADER..IPV6_HEADER + 2);
            let place = ND.iter().position(|(n, _)| Some(n.as_slice()) == number);
            Some(Kind::Nd(place.unwrap_or(ND.len())))
        }
        _ => None,
    }
}

impl Messages {
    /// Counts a control packet.
    pub fn count(&self, direction: Direction, packet: &[u8]) {
        let counters = match kind(packet) {
            Some(Kind::Dhcpv6(n)) => self.dhcpv6.get(n),
            Some(Kind::Nd(n)) => self.nd.get(n),
            None => return,
        };
        if let Some([received, sent]) = counters {
            match direction {
                Direction::In => received.fetch_add(1, Relaxed),
                Direction::Out => sent.fetch_add(1, Relaxed),
            };
        }
    }
}

impl Collector for Messages {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let dhcpv6 = DHCPV6.iter().map(|(_, t)| *t).chain([OTHER]);
        let help = "DHCPv6 messages, by type and direction";
        family(&mut encoder, "aero_dhcpv6_messages", help, dhcpv6.zip(&self.dhcpv6))?;
        let nd = ND.iter().map(|(_, t)| *t).chain([OTHER]);
        let help = "Neighbor Discovery messages, by type and direction";
        family(&mut encoder, "aero_nd_messages", help, nd.zip(&self.nd))
    }
}

fn family<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    counters: impl Iterator<Item = (&'static str, &'a [AtomicU64; 2])>,
) -> Result<(), std::fmt::Error> {
    let kind = ConstCounter::new(0u64).metric_type();
    let mut family = encoder.encode_descriptor(name, help, None, kind)?;
    for (type_, [received, sent]) in counters {
        for (direction, counter) in [("in", received), ("out", sent)] {
            let labels = [("type", type_), ("direction", direction)];
            ConstCounter::new(counter.load(Relaxed)).encode(family.encode_family(&labels)?)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(next_header: u8, payload: &[u8]) -> Vec<u8> {
        let mut p = vec![0; IPV6_HEADER];
        p[0] = 0x60;
        p[6] = next_header;
        p.extend(payload);
        p
    }

    #[test]
    fn a_message_is_counted_by_its_type_and_nonsense_as_other() {
        let solicit = packet(UDP, &[0, 0, 0, 0, 0, 0, 0, 0, 1]);
        assert_eq!(kind(&solicit), Some(Kind::Dhcpv6(0)));
        assert_eq!(kind(&packet(ICMPV6, &[136, 0])), Some(Kind::Nd(3)));
        assert_eq!(kind(&packet(ICMPV6, &[137, 1])), Some(Kind::Nd(5)));
        assert_eq!(kind(&packet(ICMPV6, &[1])), Some(Kind::Nd(ND.len())));
        assert_eq!(kind(&packet(UDP, &[])), Some(Kind::Dhcpv6(DHCPV6.len())));
        assert_eq!(kind(&packet(6, &[1])), None);
        assert_eq!(kind(&[]), None);
        let messages = Messages::default();
        messages.count(Direction::Out, &solicit);
        messages.count(Direction::Out, &solicit);
        messages.count(Direction::In, &packet(6, &[1]));
        assert_eq!(messages.dhcpv6[0][1].load(Relaxed), 2);
        assert_eq!(messages.dhcpv6[0][0].load(Relaxed), 0);
    }
}
