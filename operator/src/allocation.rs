//! Pools and the choice of a prefix. Pure arithmetic.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use aero_crds::{AeroLink, Family, Pool};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use sha2::{Digest, Sha256};

use crate::taken::{Taken, place};

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

    /// The lowest member that none of `taken` has. Member 0 of an IPv6 pool is left out: its address
    /// form (`2001:db8:a::`) is too easily taken for the pool's own.
    pub fn lowest_free(&self, taken: &[&Taken]) -> Option<IpNet> {
        let zero = self.member(0)?;
        let base = place(zero);
        let mut at = base + u128::from(self.family() == Family::IPv6 && self.size() > 1);
        loop {
            let free = taken.iter().fold(at, |at, t| t.first_free(zero, at));
            if free == at {
                break;
            }
            at = free;
        }
        let index = u64::try_from(at - base).unwrap_or(u64::MAX);
        (index < self.size()).then(|| self.member(index)).flatten()
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
        let mut taken = Taken::default();
        assert_eq!(p.lowest_free(&[&taken]), Some(net("2001:db8:a:1::/64")));
        taken.insert(net("2001:db8:a:1::/64"));
        taken.insert(net("2001:db8:a:3::/64"));
        taken.insert(net("2001:db8:b:2::/64"));
        assert_eq!(p.lowest_free(&[&taken]), Some(net("2001:db8:a:2::/64")));
    }

    #[test]
    fn a_pool_that_is_used_up_gives_nothing() {
        let p = pool("192.0.2.0/31", 32);
        let mut taken = Taken::default();
        assert_eq!(p.lowest_free(&[&taken]), Some(net("192.0.2.0/32")));
        taken.insert(net("192.0.2.0/32"));
        assert_eq!(p.lowest_free(&[&taken]), Some(net("192.0.2.1/32")));
        taken.insert(net("192.0.2.1/32"));
        assert_eq!(p.lowest_free(&[&taken]), None);
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
