//! Pools and the choice of a prefix. Pure arithmetic.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aero_crds::{AeroLink, Family, Pool};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sha2::{Digest, Sha256};

/// A pool in effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EffectivePool {
    /// The pool.
    pub prefix: IpNet,
    /// Length of each client's prefix.
    pub length: u8,
}

impl EffectivePool {
    /// Reads a pool of a link; `None` if it cannot hold prefixes (CEL refuses such).
    pub fn of(pool: &Pool) -> Option<Self> {
        let prefix: IpNet = pool.prefix.parse().ok()?;
        let length = u8::try_from(pool.client_prefix_length).ok()?;
        let widest = if prefix.addr().is_ipv4() { 32 } else { 64 };
        let fits = length >= prefix.prefix_len() && length <= widest;
        fits.then_some(Self { prefix: prefix.trunc(), length })
    }

    /// The family of its prefixes.
    pub fn family(&self) -> Family {
        if self.prefix.addr().is_ipv4() { Family::IPv4 } else { Family::IPv6 }
    }

    /// Whether `prefix` is one of the prefixes that this pool gives.
    pub fn has_member(&self, prefix: IpNet) -> bool {
        self.prefix.contains(&prefix) && prefix.prefix_len() == self.length
    }

    /// How many prefixes it has.
    pub fn size(&self) -> u64 {
        1u64.checked_shl(u32::from(self.length - self.prefix.prefix_len())).unwrap_or(u64::MAX)
    }

    /// The place of a member in the pool.
    fn index(&self, prefix: IpNet) -> u64 {
        let (bits, base, width) = match (prefix.addr(), self.prefix.addr()) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                (u128::from(u32::from(a)), u128::from(u32::from(b)), 32)
            }
            (a, b) => (to_u128(a), to_u128(b), 128),
        };
        let shift = width - u32::from(self.length);
        u64::try_from(bits.wrapping_sub(base).checked_shr(shift).unwrap_or(0)).unwrap_or(u64::MAX)
    }

    /// The member at a place.
    fn member(&self, index: u64) -> Option<IpNet> {
        match self.prefix.addr() {
            IpAddr::V4(base) => {
                let offset = index.checked_shl(32 - u32::from(self.length))?;
                let address = u32::try_from(u64::from(u32::from(base)) + offset).ok()?;
                Ipv4Net::new(Ipv4Addr::from(address), self.length).ok().map(IpNet::V4)
            }
            IpAddr::V6(base) => {
                let offset = u128::from(index).checked_shl(128 - u32::from(self.length))?;
                let address = Ipv6Addr::from(u128::from(base).checked_add(offset)?);
                Ipv6Net::new(address, self.length).ok().map(IpNet::V6)
            }
        }
    }

    /// The lowest member that is not taken. Member 0 of an IPv6 pool is left out: its address
    /// form (`2001:db8:a::`) is too easily taken for the pool's own.
    pub fn lowest_free(&self, taken: &BTreeSet<IpNet>) -> Option<IpNet> {
        let used: BTreeSet<u64> =
            taken.iter().filter(|p| self.has_member(**p)).map(|p| self.index(*p)).collect();
        let first = u64::from(self.family() == Family::IPv6 && self.size() > 1);
        let mut index = first;
        for taken in used.range(first..) {
            if *taken != index {
                break;
            }
            index += 1;
        }
        (index < self.size()).then(|| self.member(index)).flatten()
    }
}

fn to_u128(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    }
}

/// The pools of a link: those of its spec, or the unique local /48 that the operator makes of
/// the cluster's identity and the link's name (RFC 4193), the same at every start.
pub fn effective_pools(link: &AeroLink, cluster: &str) -> Vec<EffectivePool> {
    if !link.spec.pools.is_empty() {
        return link.spec.pools.iter().filter_map(EffectivePool::of).collect();
    }
    let name = link.metadata.name.as_deref().unwrap_or_default();
    let hash = Sha256::digest(format!("{cluster}/{name}").as_bytes());
    let mut octets = [0u8; 16];
    octets[0] = 0xfd;
    for (octet, byte) in octets.iter_mut().skip(1).take(5).zip(hash.iter()) {
        *octet = *byte;
    }
    let prefix = Ipv6Net::new_assert(Ipv6Addr::from(octets), 48);
    vec![EffectivePool { prefix: IpNet::V6(prefix), length: 64 }]
}

/// `2001:db8:a::/48 in /64s, ...`.
pub fn describe(pools: &[EffectivePool]) -> String {
    let all: Vec<_> = pools.iter().map(|p| format!("{} in /{}s", p.prefix, p.length)).collect();
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use aero_crds::AeroLinkSpec;

    fn pool(prefix: &str, length: u8) -> EffectivePool {
        EffectivePool { prefix: prefix.parse().unwrap(), length }
    }

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn the_lowest_free_prefix_fills_gaps_first() {
        let p = pool("2001:db8:a::/48", 64);
        let mut taken = BTreeSet::new();
        assert_eq!(p.lowest_free(&taken), Some(net("2001:db8:a:1::/64")));
        taken.insert(net("2001:db8:a:1::/64"));
        taken.insert(net("2001:db8:a:3::/64"));
        taken.insert(net("2001:db8:b:2::/64"));
        assert_eq!(p.lowest_free(&taken), Some(net("2001:db8:a:2::/64")));
    }

    #[test]
    fn a_pool_that_is_used_up_gives_nothing() {
        let p = pool("192.0.2.0/31", 32);
        let mut taken = BTreeSet::new();
        assert_eq!(p.lowest_free(&taken), Some(net("192.0.2.0/32")));
        taken.insert(net("192.0.2.0/32"));
        assert_eq!(p.lowest_free(&taken), Some(net("192.0.2.1/32")));
        taken.insert(net("192.0.2.1/32"));
        assert_eq!(p.lowest_free(&taken), None);
        assert_eq!(p.size(), 2);
    }

    #[test]
    fn only_prefixes_of_the_pools_own_length_are_members() {
        let p = pool("2001:db8:a::/48", 64);
        assert!(p.has_member(net("2001:db8:a:ffff::/64")));
        assert!(!p.has_member(net("2001:db8:a:ff00::/56")));
        assert!(!p.has_member(net("2001:db8:b::/64")));
    }

    #[test]
    fn a_link_without_pools_gets_the_same_unique_local_prefix_at_every_start() {
        let link = AeroLink::new("default", AeroLinkSpec::default());
        let a = effective_pools(&link, "cluster-1");
        assert_eq!(a, effective_pools(&link, "cluster-1"));
        assert_ne!(a, effective_pools(&link, "cluster-2"));
        assert_eq!(a[0].prefix.prefix_len(), 48);
        assert!(a[0].prefix.to_string().starts_with("fd"));
    }
}
