//! Names and identifiers that several parts must derive alike.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use uuid::Uuid;

/// Name space of the UUIDv5 identifiers of AERO Clients: the UUIDv5 of the DNS name `aerolink.dev`.
pub const AERO_NAMESPACE: Uuid = Uuid::from_u128(0x39d3_ef82_50aa_5560_a019_8d64_a82e_a4ad);

/// Why the name of an AcpMapping stands for no prefix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not the name of a prefix: expected the form 2001-db8-a-1-64 or 192.0.2.32-28")]
pub struct NameError(String);

/// Name of the AcpMapping of a prefix, one to one with the prefix.
///
/// IPv6: the first four groups (as many as the length needs, when that is more) without leading
/// zeros, then the length: `2001:db8:a:1::/64` is `2001-db8-a-1-64`. IPv4: `192.0.2.32-28`.
#[must_use]
pub fn mapping_name(prefix: IpNet) -> String {
    match prefix.trunc() {
        IpNet::V4(net) => format!("{}-{}", net.network(), net.prefix_len()),
        IpNet::V6(net) => {
            let groups = usize::from(net.prefix_len()).div_ceil(16).max(4);
            let mut name = String::new();
            for segment in net.network().segments().iter().take(groups) {
                name.push_str(&format!("{segment:x}-"));
            }
            name + &net.prefix_len().to_string()
        }
    }
}

/// The prefix that a name made by [`mapping_name`] stands for.
pub fn mapping_prefix(name: &str) -> Result<IpNet, NameError> {
    let error = || NameError(name.to_owned());
    let (address, length) = name.rsplit_once('-').ok_or_else(error)?;
    let length: u8 = length.parse().map_err(|_| error())?;
    let address: IpAddr = if address.contains('.') {
        address.parse().map_err(|_| error())?
    } else {
        let mut segments = [0u16; 8];
        let mut slots = segments.iter_mut();
        for group in address.split('-') {
            let slot = slots.next().ok_or_else(error)?;
            *slot = u16::from_str_radix(group, 16).map_err(|_| error())?;
        }
        IpAddr::V6(Ipv6Addr::from(segments))
    };
    let prefix = match address {
        IpAddr::V4(ip) => IpNet::V4(Ipv4Net::new(ip, length).map_err(|_| error())?),
        IpAddr::V6(ip) => IpNet::V6(Ipv6Net::new(ip, length).map_err(|_| error())?),
    };
    if mapping_name(prefix) == name { Ok(prefix) } else { Err(error()) }
}

/// Identifier of an identity: the UUID of its DUID-UUID (RFC 6355).
///
/// UUIDv5 in [`AERO_NAMESPACE`] of `link/namespace/client/identity`, so that it is the same
/// wherever and whenever it is computed.
#[must_use]
pub fn client_id(link: &str, namespace: &str, client: &str, identity: &str) -> Uuid {
    Uuid::new_v5(&AERO_NAMESPACE, format!("{link}/{namespace}/{client}/{identity}").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_and_the_name_of_its_mapping_are_one_to_one() {
        for (prefix, name) in [
            ("2001:db8:a:1::/64", "2001-db8-a-1-64"),
            ("2001:db8:a::/64", "2001-db8-a-0-64"),
            ("fd00::/56", "fd00-0-0-0-56"),
            ("2001:db8::1:0:0:0/80", "2001-db8-0-0-1-80"),
            ("2001:db8::1/128", "2001-db8-0-0-0-0-0-1-128"),
            ("192.0.2.32/28", "192.0.2.32-28"),
            ("192.0.2.7/32", "192.0.2.7-32"),
        ] {
            let prefix: IpNet = prefix.parse().unwrap();
            assert_eq!(mapping_name(prefix), name);
            assert_eq!(mapping_prefix(name), Ok(prefix));
        }
    }

    #[test]
    fn a_name_that_no_prefix_has_is_refused() {
        for name in [
            "",
            "web",
            "2001-db8-a-64",
            "2001-0db8-a-1-64",
            "2001-db8-a-1-129",
            "192.0.2.33-28",
            "1-2-3-4-5-6-7-8-9-64",
            "2001-DB8-a-1-64",
        ] {
            assert!(mapping_prefix(name).is_err(), "{name}");
        }
    }

    #[test]
    fn the_name_space_is_derived_from_the_group_name() {
        assert_eq!(AERO_NAMESPACE, Uuid::new_v5(&Uuid::NAMESPACE_DNS, crate::GROUP.as_bytes()));
    }

    #[test]
    fn an_identity_has_the_same_identifier_always_and_no_other_has_it() {
        let id = client_id("default", "default", "web", "web-0");
        assert_eq!(id, client_id("default", "default", "web", "web-0"));
        assert_eq!(id.get_version_num(), 5);
        assert_ne!(id, client_id("default", "default", "web", "web-1"));
        assert_ne!(id, client_id("other", "default", "web", "web-0"));
    }
}
