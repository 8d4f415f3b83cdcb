//! Who takes part in the private BGP instance of a link, and what must hold between them.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aero_protocol::address::{LinkLayerAddress, ServerId};
use ipnet::IpNet;
use serde::Deserialize;

/// First of the private 32-bit AS numbers (RFC 6996); the Relays' unless another is given.
pub const FIRST_ASN: u32 = 4_200_000_000;
/// Last of them.
pub const LAST_ASN: u32 = 4_294_967_294;
/// The private 16-bit AS numbers (RFC 6996).
const SHORT_ASNS: std::ops::RangeInclusive<u32> = 64_512..=65_534;

/// What this node is in the instance.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Role {
    /// Announces the prefixes of its Clients to every Relay.
    Server,
    /// Learns them, and gives Servers a default route.
    Relay,
}

impl Role {
    /// The interface of the sessions, unless another is asked for. A Server and a Relay may run
    /// on one node.
    pub fn device(self) -> &'static str {
        match self {
            Self::Server => "aero-bgp-s",
            Self::Relay => "aero-bgp-r",
        }
    }
}

/// A Server or a Relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speaker {
    /// Underlay address and port.
    pub at: LinkLayerAddress,
    /// Its AS number.
    pub asn: u32,
}

impl Speaker {
    /// Its identity on the link.
    pub fn id(&self) -> ServerId {
        ServerId::from_underlay(self.at.ip)
    }
}

/// A router outside the link.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct External {
    /// Its address.
    pub address: IpAddr,
    /// Its AS number.
    pub asn: u32,
    /// Client prefixes that it is to learn beside the service prefixes; each with all in it.
    #[serde(default)]
    pub prefixes: Vec<IpNet>,
}

/// How the sessions behave.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Timers {
    /// A neighbour that is silent for this many seconds is dead; BGP's hold time.
    pub hold_seconds: u16,
    /// Find dead neighbours by BFD, in [`Timers::BFD_MILLISECONDS`] times three. The hold time is
    /// then for what BFD does not see and can be longer.
    pub bfd: bool,
    /// A daemon that is started again within this many seconds finds its routes as they were
    /// (graceful restart, RFC 4724); 0 turns that off.
    pub restart_seconds: u16,
}

impl Timers {
    /// Interval of BFD packets.
    pub const BFD_MILLISECONDS: u16 = 300;
}

impl Default for Timers {
    fn default() -> Self {
        Self { hold_seconds: 3, bfd: false, restart_seconds: 30 }
    }
}

/// The instance.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Instance {
    /// Service prefixes of the link: what is announced outside.
    pub asps: Vec<IpNet>,
    /// Servers.
    pub servers: Vec<Speaker>,
    /// Relays.
    pub relays: Vec<Speaker>,
    /// Routers of the fabric.
    pub external: Vec<External>,
    /// Timers of all sessions.
    pub timers: Timers,
}

/// Why an instance cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InstanceError {
    /// Two would have one AS number.
    #[error(
        "AS {asn} is claimed by {one} and by {other}: each Server needs one of its own, other than \
         the Relays'; give one of them another (asn)"
    )]
    AsnClash {
        /// The number.
        asn: u32,
        /// One of them.
        one: LinkLayerAddress,
        /// The other.
        other: LinkLayerAddress,
    },
    /// Two would have one address on the link.
    #[error("{one} and {other} would have the same link-local address {id}", id = id.address())]
    SameIdentity {
        /// The identity.
        id: ServerId,
        /// One of them.
        one: LinkLayerAddress,
        /// The other.
        other: LinkLayerAddress,
    },
    /// The instance is private, and so are its AS numbers.
    #[error(
        "AS {asn} of {who} is no private AS number (RFC 6996: 64512 to 65534, 4200000000 to \
         4294967294)"
    )]
    NotPrivate {
        /// The number.
        asn: u32,
        /// Whose.
        who: LinkLayerAddress,
    },
    /// A fabric router in the Relays' own AS would be told everything.
    #[error("the external peer {peer} has the Relays' own AS {asn}: it must have another")]
    ExternalAsn {
        /// The peer.
        peer: IpAddr,
        /// The number.
        asn: u32,
    },
    /// One address cannot be two peers.
    #[error("the external peer {0} is there twice")]
    ExternalTwice(IpAddr),
    /// Only what is ours is announced.
    #[error("{prefix} is to be announced to {peer}, and is in no service prefix of this link")]
    NotOurs {
        /// The prefix.
        prefix: IpNet,
        /// The peer.
        peer: IpAddr,
    },
    /// BGP knows hold times of 0 and of three seconds and more.
    #[error("holdSeconds is {0}; it must be at least 3")]
    HoldTime(u16),
}

/// The AS number of a Server that was given none: its identity in the private range that begins
/// behind `first`. Two Servers may be so unlucky as to get one number; [`Instance::check`] says so.
pub fn asn_of(id: ServerId, first: u32) -> u32 {
    let span = LAST_ASN.saturating_sub(first).max(1);
    let [.., a, b, c, d] = id.address().octets();
    let asn = first.saturating_add(1).saturating_add(u32::from_be_bytes([a, b, c, d]) % span);
    asn.min(LAST_ASN)
}

impl Instance {
    /// Refuses what would announce wrongly, or to the wrong ones.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(&self) -> Result<(), InstanceError> {
        if self.timers.hold_seconds < 3 {
            return Err(InstanceError::HoldTime(self.timers.hold_seconds));
        }
        let mut ids: BTreeMap<ServerId, LinkLayerAddress> = BTreeMap::new();
        for speaker in self.servers.iter().chain(&self.relays) {
            if let Some(one) = ids.insert(speaker.id(), speaker.at) {
                return Err(InstanceError::SameIdentity {
                    id: speaker.id(),
                    one,
                    other: speaker.at,
                });
            }
            let private =
                (FIRST_ASN..=LAST_ASN).contains(&speaker.asn) || SHORT_ASNS.contains(&speaker.asn);
            if !private {
                return Err(InstanceError::NotPrivate { asn: speaker.asn, who: speaker.at });
            }
        }
        // Relays may share one: they do not speak to each other.
        let mut asns: BTreeMap<u32, LinkLayerAddress> =
            self.relays.iter().map(|r| (r.asn, r.at)).collect();
        for server in &self.servers {
            if let Some(one) = asns.insert(server.asn, server.at) {
                return Err(InstanceError::AsnClash { asn: server.asn, one, other: server.at });
            }
        }
        for (n, external) in self.external.iter().enumerate() {
            let (peer, asn) = (external.address, external.asn);
            if self.relays.iter().any(|r| r.asn == asn) {
                return Err(InstanceError::ExternalAsn { peer, asn });
            }
            if self.external.iter().take(n).any(|e| e.address == peer) {
                return Err(InstanceError::ExternalTwice(peer));
            }
            let foreign = |p: &&IpNet| !self.asps.iter().any(|asp| asp.contains(*p));
            if let Some(prefix) = external.prefixes.iter().find(foreign) {
                return Err(InstanceError::NotOurs { prefix: *prefix, peer });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn speaker(ip: &str, asn: u32) -> Speaker {
        Speaker { at: LinkLayerAddress::new(ip.parse().unwrap(), 8060), asn }
    }

    pub(crate) fn two_and_two() -> Instance {
        Instance {
            asps: vec!["2001:db8::/32".parse().unwrap(), "198.51.100.0/24".parse().unwrap()],
            servers: vec![
                speaker("192.0.2.11", FIRST_ASN + 1),
                speaker("192.0.2.12", FIRST_ASN + 2),
            ],
            relays: vec![speaker("192.0.2.21", FIRST_ASN), speaker("192.0.2.22", FIRST_ASN)],
            external: vec![External {
                address: "fd99::f".parse().unwrap(),
                asn: 65_000,
                prefixes: Vec::new(),
            }],
            timers: Timers::default(),
        }
    }

    #[test]
    fn as_numbers_are_private_and_each_servers_own() {
        assert_eq!(two_and_two().check(), Ok(()));
        let mut clash = two_and_two();
        clash.servers[1].asn = clash.servers[0].asn;
        let error = clash.check().unwrap_err().to_string();
        assert!(error.contains("AS 4200000001 is claimed by 192.0.2.11:8060"), "{error}");
        assert!(error.contains("and by 192.0.2.12:8060"), "{error}");
        let mut hub = two_and_two();
        hub.servers[0].asn = FIRST_ASN;
        assert!(matches!(hub.check(), Err(InstanceError::AsnClash { .. })));
        let mut public = two_and_two();
        public.servers[0].asn = 3320;
        assert!(matches!(public.check(), Err(InstanceError::NotPrivate { asn: 3320, .. })));
    }

    #[test]
    fn an_external_peer_in_the_relays_as_or_of_foreign_prefixes_is_refused() {
        let mut inside = two_and_two();
        inside.external[0].asn = FIRST_ASN;
        assert!(matches!(inside.check(), Err(InstanceError::ExternalAsn { .. })));
        let mut foreign = two_and_two();
        foreign.external[0].prefixes = vec!["2001:db9::/48".parse().unwrap()];
        assert!(matches!(foreign.check(), Err(InstanceError::NotOurs { .. })));
        foreign.external[0].prefixes = vec!["2001:db8:0:7::/64".parse().unwrap()];
        assert_eq!(foreign.check(), Ok(()));
        let mut twice = two_and_two();
        twice.external.push(twice.external[0].clone());
        assert!(matches!(twice.check(), Err(InstanceError::ExternalTwice(_))));
    }

    #[test]
    fn two_on_one_underlay_address_would_be_one_on_the_link() {
        let mut one = two_and_two();
        one.relays.push(Speaker {
            at: LinkLayerAddress { port: 8062, ..one.servers[0].at },
            asn: FIRST_ASN,
        });
        assert!(matches!(one.check(), Err(InstanceError::SameIdentity { .. })));
    }

    #[test]
    fn a_server_gets_a_private_as_number_by_its_identity() {
        let id = |ip: &str| ServerId::from_underlay(ip.parse().unwrap());
        for ip in ["192.0.2.11", "192.0.2.12", "10.0.0.1", "fd77::b", "255.255.255.255"] {
            let asn = asn_of(id(ip), FIRST_ASN);
            assert!((FIRST_ASN + 1..=LAST_ASN).contains(&asn), "{ip}: {asn}");
            assert_eq!(asn, asn_of(id(ip), FIRST_ASN), "the same each time");
            assert!((65_001..=LAST_ASN).contains(&asn_of(id(ip), 65_000)));
        }
        assert_ne!(asn_of(id("192.0.2.11"), FIRST_ASN), asn_of(id("192.0.2.12"), FIRST_ASN));
        assert_eq!(asn_of(id("192.0.2.11"), LAST_ASN), LAST_ASN, "a range of one");
    }
}
