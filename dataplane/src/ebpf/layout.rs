//! Keys and values of the maps as bytes: the structures of `bpf/table.h`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use aero_protocol::address::LinkLayerAddress;
use aero_protocol::forwarding::{Inner, NextHop, Route};
use aya::maps::lpm_trie::Key;
use ipnet::IpNet;
use nix::time::{ClockId, clock_gettime};

use crate::counters::Traffic;
use crate::trigger::Trigger;

/// `struct l2`.
pub type L2 = [u8; 20];
/// `struct prefix` behind its length.
pub type Prefix = [u8; 20];
/// `struct route`.
pub type RouteValue = [u8; 56];
/// `struct source`.
pub type SourceValue = [u8; 136];
/// `struct handover_key` behind its length.
pub type HandoverKey = [u8; 40];
/// `struct handover`.
pub type HandoverValue = [u8; 16];
/// `struct direct_key` behind its length.
pub type DirectKey = [u8; 44];
/// `struct direct`.
pub type DirectValue = [u8; 40];
/// `struct config`.
pub type ConfigValue = [u8; 72];
/// `struct traffic`.
pub type TrafficValue = [u8; 32];
/// `struct pod`.
pub type PodValue = [u8; 32];
/// `struct flow`.
pub type FlowKey = [u8; 40];

const FAMILY_BITS: u32 = 32;
const HANDOVER_BITS: u32 = FAMILY_BITS + 160;
const DIRECT_BITS: u32 = FAMILY_BITS + 192;
const LOCAL: u8 = 1;
const NEIGHBOR: u8 = 2;
const UNREACHABLE: u8 = 3;
/// How many senders of one prefix the programs look at.
const SENDERS: usize = 4;

/// Bits of the values of `peers`: may send everything.
pub const PEER: u32 = 1;
/// Is a Relay.
pub const RELAY: u32 = 2;
/// Is a Forwarding Agent.
pub const AGENT: u32 = 4;

/// Builds a value of fixed size field by field. What is not written is zero, and what does not
/// fit is left out; the tests hold every size against the programs.
struct Writer<const N: usize> {
    bytes: [u8; N],
    at: usize,
}

impl<const N: usize> Writer<N> {
    fn new() -> Self {
        Self { bytes: [0; N], at: 0 }
    }

    fn put(mut self, field: &[u8]) -> Self {
        if let Some(room) = self.bytes.get_mut(self.at..self.at + field.len()) {
            room.copy_from_slice(field);
        }
        self.at += field.len();
        self
    }

    fn skip(mut self, n: usize) -> Self {
        self.at += n;
        self
    }
}

/// The present on the programs' clock.
fn monotonic() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map(Duration::from).unwrap_or_default()
}

/// A number for a state of the table that differs from the one before, and from those that another
/// process has given just now: the clock, to the nanosecond within its second.
pub fn next_table(before: u32) -> u32 {
    let now = monotonic().subsec_nanos();
    if now == before { before.wrapping_add(1) } else { now }
}

/// Whether a time on the programs' clock is yet to come.
pub fn is_ahead(time: u64) -> bool {
    u128::from(time) > monotonic().as_nanos()
}

/// A time on the programs' clock, in nanoseconds; 0 for none.
pub fn until(time: Option<Instant>) -> u64 {
    let Some(time) = time else { return 0 };
    let now = Instant::now();
    let at = match time.checked_duration_since(now) {
        Some(left) => monotonic().saturating_add(left),
        None => monotonic().saturating_sub(now.saturating_duration_since(time)),
    };
    u64::try_from(at.as_nanos()).unwrap_or(u64::MAX).max(1)
}

/// An outer address.
pub fn l2(address: LinkLayerAddress) -> L2 {
    Writer::new().put(&address.ip_octets()).put(&address.port.to_be_bytes()).bytes
}

/// An outer address in a value, with the neighbour's slot.
fn l2_with(address: LinkLayerAddress, slot: u16) -> L2 {
    Writer::new()
        .put(&address.ip_octets())
        .put(&address.port.to_be_bytes())
        .put(&slot.to_ne_bytes())
        .bytes
}

/// Reads an outer address.
pub fn read_l2(bytes: &[u8]) -> Option<LinkLayerAddress> {
    let ip: [u8; 16] = bytes.get(..16)?.try_into().ok()?;
    let port: [u8; 2] = bytes.get(16..18)?.try_into().ok()?;
    Some(LinkLayerAddress::new(Ipv6Addr::from(ip).into(), u16::from_be_bytes(port)))
}

/// A prefix: its length with the family's bits, and the bytes.
fn prefix_bytes(prefix: IpNet) -> (u32, Prefix) {
    let (family, address) = match prefix.trunc().addr() {
        IpAddr::V4(a) => (4u32, a.octets().to_vec()),
        IpAddr::V6(a) => (6u32, a.octets().to_vec()),
    };
    let bits = FAMILY_BITS + u32::from(prefix.prefix_len());
    (bits, Writer::new().put(&family.to_ne_bytes()).put(&address).bytes)
}

/// A prefix as a key.
pub fn prefix(prefix: IpNet) -> Key<Prefix> {
    let (bits, data) = prefix_bytes(prefix);
    Key::new(bits, data)
}

fn read_prefix_bytes(bits: u32, data: &[u8]) -> Option<IpNet> {
    let length = u8::try_from(bits.checked_sub(FAMILY_BITS)?).ok()?;
    let family = u32::from_ne_bytes(data.get(..4)?.try_into().ok()?);
    let address: IpAddr = if family == 4 {
        Ipv4Addr::from(<[u8; 4]>::try_from(data.get(4..8)?).ok()?).into()
    } else {
        Ipv6Addr::from(<[u8; 16]>::try_from(data.get(4..20)?).ok()?).into()
    };
    IpNet::new(address, length).ok()
}

/// Reads a key.
pub fn read_prefix(key: &Key<Prefix>) -> Option<IpNet> {
    read_prefix_bytes(key.prefix_len(), &key.data())
}

/// The key of a hand-over.
pub fn handover_key(from: LinkLayerAddress, to: IpNet) -> Key<HandoverKey> {
    let (bits, data) = prefix_bytes(to);
    let bytes = Writer::new().put(&l2(from)).put(&data).bytes;
    Key::new(HANDOVER_BITS - FAMILY_BITS + bits, bytes)
}

/// Reads the key of a hand-over.
pub fn read_handover_key(key: &Key<HandoverKey>) -> Option<(LinkLayerAddress, IpNet)> {
    let data = key.data();
    let bits = key.prefix_len().checked_sub(HANDOVER_BITS - FAMILY_BITS)?;
    Some((read_l2(data.get(..20)?)?, read_prefix_bytes(bits, data.get(20..)?)?))
}

/// The key of a direct path.
pub fn direct_key(source: IpNet, destination: IpNet) -> Key<DirectKey> {
    let (own_bits, own) = prefix_bytes(source);
    let (bits, data) = prefix_bytes(destination);
    let (family, address) = own.split_at(4);
    let bytes =
        Writer::new().put(family).put(&own_bits.to_ne_bytes()).put(address).put(&data).bytes;
    Key::new(DIRECT_BITS - FAMILY_BITS + bits, bytes)
}

/// Reads the key of a direct path: own prefix, correspondent's prefix.
pub fn read_direct_key(key: &Key<DirectKey>) -> Option<(IpNet, IpNet)> {
    let data = key.data();
    let own_bits = u32::from_ne_bytes(data.get(4..8)?.try_into().ok()?);
    let own: Vec<u8> = [data.get(..4)?, data.get(8..24)?].concat();
    let bits = key.prefix_len().checked_sub(DIRECT_BITS - FAMILY_BITS)?;
    Some((read_prefix_bytes(own_bits, &own)?, read_prefix_bytes(bits, data.get(24..)?)?))
}

/// A direct path to a neighbour, who has a slot.
pub fn direct(
    destination: IpNet,
    (to, slot): (LinkLayerAddress, u16),
    end: Instant,
    used: bool,
) -> DirectValue {
    let (bits, _) = prefix_bytes(destination);
    let bits = DIRECT_BITS - FAMILY_BITS + bits;
    Writer::new()
        .put(&l2_with(to, slot))
        .put(&bits.to_ne_bytes())
        .put(&until(Some(end)).to_ne_bytes())
        .put(&u32::from(used).to_ne_bytes())
        .bytes
}

/// Whether a direct path was used since it was last said not to be.
pub fn is_used(value: &DirectValue) -> bool {
    value.get(32..36).is_some_and(|used| used.iter().any(|b| *b != 0))
}

/// Whether a value is that of exactly this correspondent's prefix.
pub fn is_direct_for(value: &DirectValue, destination: IpNet) -> bool {
    let bits = DIRECT_BITS - FAMILY_BITS + prefix_bytes(destination).0;
    value.get(20..24) == Some(bits.to_ne_bytes().as_slice())
}

/// The same path, not used.
pub fn unused(mut value: DirectValue) -> DirectValue {
    if let Some(used) = value.get_mut(32..36) {
        used.fill(0);
    }
    value
}

/// Reads `struct wanting`: a packet's addresses and its beginning.
pub fn read_wanting(bytes: &[u8]) -> Option<Trigger> {
    let host = |at: usize| -> Option<IpAddr> {
        let address: [u8; 16] = bytes.get(at..at + 16)?.try_into().ok()?;
        Some(if bytes.first()? == &4 || bytes.get(3)? == &4 {
            let [a, b, c, d, ..] = address;
            Ipv4Addr::new(a, b, c, d).into()
        } else {
            Ipv6Addr::from(address).into()
        })
    };
    let length = u32::from_ne_bytes(bytes.get(36..40)?.try_into().ok()?);
    let packet = bytes.get(40..40 + usize::try_from(length).ok()?)?.to_vec();
    Some(Trigger { inner: Inner { source: host(4)?, destination: host(20)? }, packet })
}

/// An interface behind which a prefix is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Behind {
    /// Its index.
    pub ifindex: u32,
    /// MAC address of the pod's side.
    pub mac: [u8; 6],
    /// MAC address of the node's side.
    pub node_mac: [u8; 6],
}

/// A route, and for a local one where it is, for one to a neighbour its slot.
pub fn route(prefix: IpNet, route: &Route, behind: Option<Behind>, slot: u16) -> RouteValue {
    let (bits, _) = prefix_bytes(prefix);
    let (kind, to) = match route.to {
        NextHop::Local => (LOCAL, [0; 20]),
        NextHop::Neighbor(to) => (NEIGHBOR, l2_with(to, slot)),
        // Both are left to the process: it tells the source, or keeps the packet.
        NextHop::Unreachable | NextHop::Hold { .. } => (UNREACHABLE, [0; 20]),
    };
    let behind = behind.filter(|_| kind == LOCAL);
    let (ifindex, mac, node_mac) =
        behind.map_or((0, [0; 6], [0; 6]), |b| (b.ifindex, b.mac, b.node_mac));
    Writer::new()
        .put(&to)
        .put(&bits.to_ne_bytes())
        .put(&until(route.until).to_ne_bytes())
        .put(&ifindex.to_ne_bytes())
        .put(&[kind, u8::from(route.transit)])
        .put(&mac)
        .put(&node_mac)
        .bytes
}

/// What a route was, as far as the next process has to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Was {
    /// To a neighbour.
    ToNeighbor,
    /// Local, and behind an interface if it was connected.
    Local(Option<Behind>),
}

/// Reads what a route was.
pub fn read_route(value: &RouteValue) -> Option<Was> {
    if value.get(36) != Some(&LOCAL) {
        return Some(Was::ToNeighbor);
    }
    let ifindex = u32::from_ne_bytes(value.get(32..36)?.try_into().ok()?);
    let mac = value.get(38..44)?.try_into().ok()?;
    let node_mac = value.get(44..50)?.try_into().ok()?;
    Some(Was::Local((ifindex != 0).then_some(Behind { ifindex, mac, node_mac })))
}

/// Who may send inner sources of a prefix, each until when; with their slots.
pub fn source(
    prefix: IpNet,
    senders: &[(LinkLayerAddress, Option<Instant>)],
    slot: impl Fn(LinkLayerAddress) -> u16,
) -> SourceValue {
    let (bits, _) = prefix_bytes(prefix);
    let mut writer = Writer::new();
    for n in 0..SENDERS {
        writer = match senders.get(n) {
            Some((from, end)) => {
                writer.put(&l2_with(*from, slot(*from))).skip(4).put(&until(*end).to_ne_bytes())
            }
            None => writer.skip(32),
        };
    }
    let count = u32::try_from(senders.len()).unwrap_or(u32::MAX);
    writer.put(&bits.to_ne_bytes()).put(&count.to_ne_bytes()).bytes
}

/// A hand-over's end.
pub fn handover(to: IpNet, end: Instant) -> HandoverValue {
    let (bits, _) = prefix_bytes(to);
    let bits = HANDOVER_BITS - FAMILY_BITS + bits;
    Writer::new().put(&until(Some(end)).to_ne_bytes()).put(&bits.to_ne_bytes()).bytes
}

/// What a pod may send from.
pub fn pod(prefix: IpNet) -> PodValue {
    match prefix {
        IpNet::V6(p) => Writer::new().put(&p.network().octets()).put(&p.netmask().octets()).bytes,
        IpNet::V4(p) => {
            Writer::new().put(&p.network().octets()).skip(12).put(&p.netmask().octets()).bytes
        }
    }
}

/// This node, as the programs have to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Its IPv4 address on the underlay, and the device that has it.
    pub v4: Option<(Ipv4Addr, u32)>,
    /// Its IPv6 address on the underlay, and the device that has it.
    pub v6: Option<(Ipv6Addr, u32)>,
    /// Its UDP port.
    pub port: u16,
    /// Index of the AERO interface; 0 if there is none.
    pub device: u32,
    /// MTU of inner packets.
    pub mtu: u16,
    /// Taken off the outer TTL of what is passed on.
    pub ttl_step: u8,
    /// Whether packets that want a direct path are told of.
    pub tells: bool,
    /// Whether IP-in-IP leads to this forwarder.
    pub ip_in_ip: bool,
    /// The state of the table: another number after each change.
    pub table: u32,
    /// When the programs stop if nobody sets this again.
    pub until: Option<Instant>,
}

/// The configuration's bytes.
pub fn config(c: &Config) -> ConfigValue {
    let v4 = c.v4.map_or([0; 16], |(a, _)| a.to_ipv6_mapped().octets());
    let v6 = c.v6.map_or([0; 16], |(a, _)| a.octets());
    Writer::new()
        .put(&v4)
        .put(&v6)
        .put(&c.port.to_be_bytes())
        .put(&c.mtu.to_ne_bytes())
        .put(&c.device.to_ne_bytes())
        .put(&c.v4.map_or(0, |(_, d)| d).to_ne_bytes())
        .put(&c.v6.map_or(0, |(_, d)| d).to_ne_bytes())
        .put(&u32::from(c.tells).to_ne_bytes())
        .put(&u32::from(c.ttl_step).to_ne_bytes())
        .put(&u32::from(c.ip_in_ip).to_ne_bytes())
        .put(&c.table.to_ne_bytes())
        .put(&until(c.until).to_ne_bytes())
        .bytes
}

/// Reads `struct traffic`, of one processor.
pub fn read_traffic(value: &TrafficValue) -> Traffic {
    let mut words = value.chunks_exact(8).map(|w| w.try_into().map_or(0, u64::from_ne_bytes));
    let mut next = || words.next().unwrap_or(0);
    Traffic {
        ip_in_ip: false,
        tunneled_packets: next(),
        tunneled_bytes: next(),
        received_packets: next(),
        received_bytes: next(),
    }
}

/// A port as a key: in network order, as in packets.
pub fn port(port: u16) -> u32 {
    u32::from(u16::from_ne_bytes(port.to_be_bytes()))
}

/// `flow_bucket`: where it says whether the pod of a flow has any. What is kept of a flow are its
/// answers, so the pod is the destination: the second 16 bytes.
pub fn flow_bucket(flow: &FlowKey) -> u32 {
    let words = flow.chunks_exact(4).skip(4).take(4);
    let words = words.map(|w| w.try_into().map_or(0, u32::from_ne_bytes));
    words.fold(0, |all, word| all ^ word).wrapping_mul(0x9e37_79b1) >> 20
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_of_both_families_and_hand_overs_are_read_back_as_they_were_written() {
        for text in ["0.0.0.0/0", "192.0.2.0/24", "::/0", "2001:db8:1:2::/64"] {
            let net: IpNet = text.parse().unwrap();
            assert_eq!(read_prefix(&prefix(net)), Some(net));
            let from: std::net::SocketAddr = "[2001:db8::1]:8060".parse().unwrap();
            assert_eq!(
                read_handover_key(&handover_key(from.into(), net)),
                Some((from.into(), net))
            );
            let own = "2001:db8:7::/48".parse().unwrap();
            assert_eq!(read_direct_key(&direct_key(own, net)), Some((own, net)));
        }
    }

    #[test]
    fn a_route_is_read_back_as_what_it_was() {
        let prefix = "2001:db8:1:2::/64".parse().unwrap();
        let behind = Behind { ifindex: 7, mac: [1; 6], node_mac: [2; 6] };
        let local = Route { to: NextHop::Local, transit: false, until: None };
        let was = |r: &Route, b| read_route(&route(prefix, r, b, 7));
        assert_eq!(was(&local, Some(behind)), Some(Was::Local(Some(behind))));
        assert_eq!(was(&local, None), Some(Was::Local(None)));
        let peer: std::net::SocketAddr = "192.0.2.1:8060".parse().unwrap();
        let away = Route { to: NextHop::Neighbor(peer.into()), ..local };
        assert_eq!(was(&away, Some(behind)), Some(Was::ToNeighbor));
    }

    #[test]
    fn a_time_that_has_passed_is_before_the_present_and_not_for_good() {
        let now = Instant::now();
        let present = u64::try_from(monotonic().as_nanos()).unwrap();
        assert_eq!(until(None), 0);
        assert!(until(Some(now + Duration::from_secs(5))) > present);
        let past = until(now.checked_sub(Duration::from_secs(1)));
        assert!(past > 0 && past < present);
    }
}
