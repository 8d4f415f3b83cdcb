//! What cannot be in the BGP of a link, and the sentence that says so.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use super::plan::{InForce, RelayRules, ServerRules};

/// First of the private 32-bit AS numbers (RFC 6996); the Relays' unless another is given.
pub const FIRST_ASN: u32 = 4_200_000_000;
const PRIVATE: [RangeInclusive<u32>; 2] = [64_512..=65_534, FIRST_ASN..=4_294_967_294];

/// Why something is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refusal {
    /// CamelCase.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

fn refuse(reason: &'static str, message: impl Into<String>) -> Result<(), Refusal> {
    Err(Refusal { reason, message: message.into() })
}

/// The range of private AS numbers that a number is in.
pub fn private_range(asn: u32) -> Option<RangeInclusive<u32>> {
    PRIVATE.into_iter().find(|r| r.contains(&asn))
}

fn private(first: u32, last: u32) -> Result<(), Refusal> {
    if private_range(first).is_some_and(|r| r.contains(&last)) {
        return Ok(());
    }
    let which = if first == last {
        format!("AS {first} is no private number")
    } else {
        format!("AS {first} to {last} are not all private numbers")
    };
    let text = format!("{which} (RFC 6996: 64512 to 65534, 4200000000 to 4294967294)");
    refuse("AsnNotPrivate", text)
}

/// Whether an AeroRelay can have what it asks for beside what is in force.
pub(super) fn relay(
    name: &str,
    wanted: &RelayRules,
    force: &InForce,
    nodes: &BTreeSet<IpAddr>,
) -> Result<(), Refusal> {
    private(wanted.asn, wanted.asn)?;
    let asn = wanted.asn;
    for (server, rules) in &force.servers {
        if rules.range().is_some_and(|r| r.contains(&asn)) {
            let text = format!("AS {asn} is in the range of AeroServer {server:?}");
            return refuse("AsnConflict", text);
        }
    }
    let others = || force.relays.iter().filter(|(other, _)| other.as_str() != name);
    for (other, rules) in others() {
        if rules.peers.iter().any(|p| p.asn == i64::from(asn)) {
            let text = format!("AS {asn} is that of an external peer of AeroRelay {other:?}");
            return refuse("AsnConflict", text);
        }
    }
    for (n, peer) in wanted.peers.iter().enumerate() {
        let at = &peer.address;
        let Ok(address) = at.parse::<IpAddr>() else {
            return refuse("PeerRefused", format!("{at:?} is no address"));
        };
        // A router in the Relays' own AS would be told everything.
        let relays = others().map(|(_, r)| r.asn).chain([asn]);
        if relays.map(i64::from).any(|a| a == peer.asn) {
            let text = format!(
                "the external peer {at} has the Relays' own AS {}; it must have another",
                peer.asn
            );
            return refuse("PeerRefused", text);
        }
        let in_range = |r: &&ServerRules| {
            u32::try_from(peer.asn).is_ok_and(|a| r.range().is_some_and(|range| range.contains(&a)))
        };
        if force.servers.values().any(|r| in_range(&r)) {
            let text = format!("the external peer {at} has AS {}, one of the Servers'", peer.asn);
            return refuse("PeerRefused", text);
        }
        let twice = wanted.peers.iter().take(n).any(|p| p.address == *at)
            || others().any(|(_, r)| r.peers.iter().any(|p| p.address == *at && p.asn != peer.asn));
        if twice {
            return refuse("PeerRefused", format!("the external peer {at} is there twice"));
        }
        if !nodes.iter().any(|a| a.is_ipv4() == address.is_ipv4()) {
            let text = format!("no node has an address of the family of the external peer {at}");
            return refuse("PeerRefused", text);
        }
    }
    Ok(())
}

/// Whether an AeroServer can have what it asks for beside what is in force.
pub(super) fn server(
    name: &str,
    wanted: &ServerRules,
    force: &InForce,
    relays: &BTreeSet<&str>,
) -> Result<(), Refusal> {
    if let Some(unknown) = wanted.relays.iter().find(|r| !relays.contains(r.as_str())) {
        let text = format!(
            "there is no AeroRelay {unknown:?} of this link; make it, or take it out of relayRefs"
        );
        return refuse("RelayNotFound", text);
    }
    let Some(range) = wanted.range() else { return Ok(()) };
    private(*range.start(), *range.end())?;
    let shown = format!("AS {} to {}", range.start(), range.end());
    for (other, rules) in force.servers.iter().filter(|(other, _)| other.as_str() != name) {
        let theirs = rules.range();
        if theirs.is_some_and(|r| r.start() <= range.end() && range.start() <= r.end()) {
            let text = format!(
                "{shown} overlap the range of AeroServer {other:?}: each Server needs a number of its own"
            );
            return refuse("AsnConflict", text);
        }
    }
    for (relay, rules) in &force.relays {
        if range.contains(&rules.asn) {
            let text = format!("{shown} contain AS {} of AeroRelay {relay:?}", rules.asn);
            return refuse("AsnConflict", text);
        }
        let peer =
            |p: &&aero_crds::ExternalPeer| u32::try_from(p.asn).is_ok_and(|a| range.contains(&a));
        if let Some(peer) = rules.peers.iter().find(peer) {
            let text =
                format!("{shown} contain AS {} of the external peer {}", peer.asn, peer.address);
            return refuse("AsnConflict", text);
        }
    }
    Ok(())
}
