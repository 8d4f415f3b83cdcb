//! Addresses of the AERO link: draft-templin-aerolink-48 section 3.3 and 3.4.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv6Net};
use uuid::Uuid;

/// A node's address on the underlay: IP address *and* UDP port (draft -48, section 3.2). Both
/// are part of a neighbour's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkLayerAddress {
    /// Underlay IP address; never an IPv4-mapped IPv6 address.
    pub ip: IpAddr,
    /// UDP port.
    pub port: u16,
}

impl LinkLayerAddress {
    /// Makes an address; an IPv4-mapped IPv6 address becomes the IPv4 address that it holds, so
    /// that what a dual-stack socket reports compares equal to what the configuration says.
    pub fn new(ip: IpAddr, port: u16) -> Self {
        Self { ip: ip.to_canonical(), port }
    }

    /// The 16 bytes by which the IP address is carried in S/TLLAO and AERO options: IPv4 as
    /// `::ffff:a.b.c.d`.
    pub fn ip_octets(&self) -> [u8; 16] {
        match self.ip {
            IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
            IpAddr::V6(v6) => v6.octets(),
        }
    }
}

impl From<SocketAddr> for LinkLayerAddress {
    fn from(a: SocketAddr) -> Self {
        Self::new(a.ip(), a.port())
    }
}

impl From<LinkLayerAddress> for SocketAddr {
    fn from(a: LinkLayerAddress) -> Self {
        SocketAddr::new(a.ip, a.port)
    }
}

impl fmt::Display for LinkLayerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        SocketAddr::from(*self).fmt(f)
    }
}

/// DHCP Unique Identifier (RFC 8415 section 11), 3 to 130 bytes with its type.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Duid(Vec<u8>);

impl Duid {
    /// DUID-UUID, type 4 (RFC 6355).
    pub fn from_uuid(uuid: Uuid) -> Self {
        let mut bytes = vec![0, 4];
        bytes.extend_from_slice(uuid.as_bytes());
        Self(bytes)
    }

    /// A DUID as received. `None` if its length is outside RFC 8415 section 11.1.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        (3..=130).contains(&bytes.len()).then(|| Self(bytes.to_vec()))
    }

    /// The bytes as sent.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The UUID of a DUID-UUID.
    pub fn uuid(&self) -> Option<Uuid> {
        let rest = self.0.strip_prefix(&[0, 4])?;
        Uuid::from_slice(rest).ok()
    }
}

impl fmt::Display for Duid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(uuid) = self.uuid() {
            return uuid.fmt(f);
        }
        for b in &self.0 {
            write!(f, "{b:02x}")?;
        }
        Ok(())
    }
}

/// Counts the holders of a mapping; a claim with a smaller epoch than the mapping's is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Epoch(pub u64);

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Source of a Client that has no ACP yet. [48] says `::`, which RFC 8415 does not allow; [52]
/// went back to this reserved link-local address, and so do we.
pub const BOOTSTRAP_ADDRESS: Ipv6Addr =
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0xffff, 0xffff, 0xffff, 0xffff);

/// All_DHCP_Relay_Agents_and_Servers (RFC 8415 section 7.1).
pub const ALL_DHCP_SERVERS: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 1, 2);

/// The subnet-router anycast address that every Server answers to and none sends from.
pub const SERVER_ANYCAST: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);

/// The AERO address of an ACP's holder: `fe80::/64` with the upper 64 bits of the masked ACP as
/// interface identifier; for IPv4 `fe80::ffff:a.b.c.d` (draft -48, section 3.3).
///
/// ```
/// # use aero_protocol::address::aero_address;
/// let acp = "2001:db8:1000:2000::/56".parse().unwrap();
/// assert_eq!(aero_address(acp).to_string(), "fe80::2001:db8:1000:2000");
/// ```
pub fn aero_address(acp: IpNet) -> Ipv6Addr {
    match acp.trunc() {
        IpNet::V6(p) => {
            let upper = u128::from(p.addr()) >> 64;
            Ipv6Addr::from((0xfe80u128 << 112) | upper)
        }
        IpNet::V4(p) => Ipv6Addr::from(
            (0xfe80u128 << 112) | (0xffffu128 << 32) | u128::from(u32::from(p.addr())),
        ),
    }
}

/// The /64 that a link-local destination stands for when it is looked up by longest match
/// (`fe80::X` is looked up as `X::/64`), or `None` for an address outside `fe80::/64` or in the
/// range of Servers and Relays (`fe80::/96`).
pub fn prefix_of_aero_address(address: Ipv6Addr) -> Option<IpNet> {
    let bits = u128::from(address);
    if bits >> 64 != 0xfe80u128 << 48 {
        return None;
    }
    let iid = bits & u128::from(u64::MAX);
    if iid >> 32 == 0 {
        return None;
    }
    if iid >> 32 == 0xffff {
        return Some(IpNet::from(IpAddr::V4(Ipv4Addr::from(
            u32::try_from(iid & u128::from(u32::MAX)).ok()?,
        ))));
    }
    Ipv6Net::new(Ipv6Addr::from(iid << 64), 64).ok().map(IpNet::V6)
}

/// The ACP of the Client that calls itself by `address` and has a prefix of `length` (the Prefix
/// Length of a Predirect or Redirect). `None` if `address` is not the AERO address of such an ACP.
pub fn acp_of_aero_address(address: Ipv6Addr, length: u8) -> Option<IpNet> {
    let longest = prefix_of_aero_address(address)?;
    let acp = IpNet::new(longest.addr(), length).ok()?;
    let base = acp.trunc() == acp && length <= longest.prefix_len();
    (base && is_usable_acp(acp)).then_some(acp)
}

/// The AERO address that stands for the holder of a destination whose prefix length is not
/// known: `fe80::` and the first 64 bits (draft -48, section 3.3).
pub fn aero_address_of_host(host: IpAddr) -> Ipv6Addr {
    aero_address(longest_acp_of_host(host))
}

/// The longest ACP that a host can be in: its /64, or its own address for IPv4.
pub fn longest_acp_of_host(host: IpAddr) -> IpNet {
    let length = if host.is_ipv4() { 32 } else { 64 };
    IpNet::new(host, length).map_or(IpNet::from(host), |p| p.trunc())
}

/// The link-local address of a Server or Relay, unique on the link, from `fe80::/96`
/// (draft -48, section 3.3). Zero is the anycast address and is not an identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServerId(u32);

impl ServerId {
    /// An identity by number; `None` for zero.
    pub fn new(id: u32) -> Option<Self> {
        (id != 0).then_some(Self(id))
    }

    /// The identity of a Server that lives at one fixed underlay address. For IPv4 it is the
    /// address itself (the form of draft-templin-intarea-6706bis section 3.3), so it is unique
    /// without anybody handing out numbers; an IPv6 address is folded to 32 bits.
    pub fn from_underlay(ip: IpAddr) -> Self {
        let folded = match ip.to_canonical() {
            IpAddr::V4(v4) => u32::from(v4),
            IpAddr::V6(v6) => v6
                .octets()
                .iter()
                .fold(0x811c_9dc5u32, |h, b| (h ^ u32::from(*b)).wrapping_mul(0x0100_0193)),
        };
        Self(folded.max(1))
    }

    /// The link-local address.
    pub fn address(self) -> Ipv6Addr {
        Ipv6Addr::from((0xfe80u128 << 112) | u128::from(self.0))
    }
}

/// True if an ACP may be used on an AERO link: IPv6 of /64 or shorter whose AERO address does
/// not fall into the range of Servers and Relays, or any IPv4 prefix but /0.
pub fn is_usable_acp(acp: IpNet) -> bool {
    match acp {
        IpNet::V6(p) => (1..=64).contains(&p.prefix_len()) && u128::from(p.addr()) >> 96 != 0,
        IpNet::V4(p) => p.prefix_len() > 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_aero_address_is_the_upper_half_of_the_masked_prefix() {
        let cases = [
            ("2001:db8:1000:2000::/56", "fe80::2001:db8:1000:2000"),
            ("2001:db8:1:2::/64", "fe80::2001:db8:1:2"),
            ("2001:db8:1:2:3::5/64", "fe80::2001:db8:1:2"),
            ("192.0.2.32/28", "fe80::ffff:192.0.2.32"),
            ("192.0.2.45/28", "fe80::ffff:c000:220"),
        ];
        for (acp, address) in cases {
            let want: Ipv6Addr = address.parse().unwrap();
            assert_eq!(aero_address(acp.parse().unwrap()), want, "{acp}");
        }
    }

    #[test]
    fn an_aero_address_leads_back_to_its_prefix_and_a_servers_does_not() {
        for acp in ["2001:db8:1:2::/64", "192.0.2.33/32"] {
            let acp: IpNet = acp.parse().unwrap();
            assert_eq!(prefix_of_aero_address(aero_address(acp)), Some(acp));
        }
        assert_eq!(prefix_of_aero_address("fe80::2".parse().unwrap()), None);
        assert_eq!(prefix_of_aero_address("2001:db8::1".parse().unwrap()), None);
    }

    #[test]
    fn an_aero_address_and_a_prefix_length_give_the_acp_only_if_the_address_is_its_base() {
        let acp = |a: &str, n| acp_of_aero_address(a.parse().unwrap(), n).map(|p| p.to_string());
        let net = |s: &str| Some(s.to_string());
        assert_eq!(acp("fe80::2001:db8:1000:2000", 56), net("2001:db8:1000:2000::/56"));
        assert_eq!(acp("fe80::2001:db8:1000:2001", 56), None);
        assert_eq!(acp("fe80::2001:db8:1:2", 64), net("2001:db8:1:2::/64"));
        assert_eq!(acp("fe80::2001:db8:1:2", 65), None);
        assert_eq!(acp("fe80::2001:db8:1:2", 0), None);
        assert_eq!(acp("fe80::ffff:192.0.2.32", 28), net("192.0.2.32/28"));
        assert_eq!(acp("fe80::2", 64), None);
        let host = aero_address_of_host("2001:db8:1000:2001::7".parse().unwrap());
        assert_eq!(host.to_string(), "fe80::2001:db8:1000:2001");
    }

    #[test]
    fn a_server_at_an_ipv4_address_is_identified_by_it() {
        let id = ServerId::from_underlay("192.0.2.11".parse().unwrap());
        assert_eq!(id.address(), "fe80::192.0.2.11".parse::<Ipv6Addr>().unwrap());
        let mapped = ServerId::from_underlay("::ffff:192.0.2.11".parse().unwrap());
        assert_eq!(mapped, id);
        let v6 = ServerId::from_underlay("2001:db8:77::11".parse().unwrap());
        assert_eq!(u128::from(v6.address()) >> 32, 0xfe80u128 << 80);
    }

    #[test]
    fn a_prefix_that_would_collide_with_server_addresses_is_refused() {
        assert!(!is_usable_acp("0:0:0:1::/64".parse().unwrap()));
        assert!(!is_usable_acp("2001:db8::/65".parse().unwrap()));
        assert!(is_usable_acp("2001:db8::/64".parse().unwrap()));
        assert!(is_usable_acp("192.0.2.1/32".parse().unwrap()));
    }
}
