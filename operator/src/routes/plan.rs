//! Who takes part in the BGP of a link, by which AS number, and what cannot be: a pure function of
//! what is asked for and of what is in force. What was good stays in force while what is new is
//! refused.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use aero_crds::ExternalPeer;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use super::check::{FIRST_ASN, Refusal, private_range};

/// What an AeroRelay asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelayRules {
    /// The Relays' AS number.
    pub asn: u32,
    /// Routers outside.
    pub peers: Vec<ExternalPeer>,
}

/// What an AeroServer asks for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ServerRules {
    /// First AS number of its range.
    pub first: Option<u32>,
    /// How many Servers.
    pub count: u32,
    /// Its AeroRelays.
    pub relays: Vec<String>,
}

impl ServerRules {
    /// Its AS numbers, if it asks for a range of its own.
    pub fn range(&self) -> Option<std::ops::RangeInclusive<u32>> {
        let first = self.first?;
        Some(first..=first.saturating_add(self.count.max(1) - 1))
    }
}

/// What is in force; remembered beside the file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InForce {
    /// AeroRelays by name.
    pub relays: BTreeMap<String, RelayRules>,
    /// AeroServers by name.
    pub servers: BTreeMap<String, ServerRules>,
    /// AS numbers of Servers by underlay address, of those that are away too: one that comes back
    /// has the number that it had.
    pub numbers: BTreeMap<IpAddr, u32>,
}

/// A pod of a Server or Relay.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Speaker {
    /// Its underlay address.
    pub address: IpAddr,
    /// Whether it was told to end.
    pub ending: bool,
    /// Whether it is a Relay.
    pub relay: bool,
    /// Name of its AeroServer or AeroRelay.
    pub owner: String,
    /// UDP port on the underlay.
    pub port: u16,
}

/// What the plan is made of.
#[derive(Debug, Clone, Default)]
pub struct Observed {
    /// Service prefixes of the link.
    pub asps: Vec<IpNet>,
    /// AeroRelays, the eldest first.
    pub relays: Vec<(String, RelayRules)>,
    /// AeroServers that have Relays, the eldest first.
    pub servers: Vec<(String, ServerRules)>,
    /// What runs.
    pub speakers: Vec<Speaker>,
    /// Underlay addresses of all nodes.
    pub nodes: BTreeSet<IpAddr>,
    /// What is in force.
    pub in_force: InForce,
}

/// What is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// What is in force from now on.
    pub in_force: InForce,
    /// The routes file.
    pub text: String,
    /// AeroRelays that are refused, by name.
    pub relays: BTreeMap<String, Refusal>,
    /// AeroServers that are refused, by name.
    pub servers: BTreeMap<String, Refusal>,
}

/// Makes the plan.
pub fn plan(seen: &Observed) -> Plan {
    let mut plan = Plan::default();
    let force = &mut plan.in_force;
    // What is in force and still asked for by name stays until its change is found good.
    for (name, _) in &seen.relays {
        if let Some(old) = seen.in_force.relays.get(name) {
            force.relays.insert(name.clone(), old.clone());
        }
    }
    for (name, _) in &seen.servers {
        if let Some(old) = seen.in_force.servers.get(name) {
            force.servers.insert(name.clone(), old.clone());
        }
    }
    for (name, wanted) in &seen.relays {
        match super::check::relay(name, wanted, force, &seen.nodes) {
            Ok(()) => drop(force.relays.insert(name.clone(), wanted.clone())),
            Err(refusal) => drop(plan.relays.insert(name.clone(), refusal)),
        }
    }
    let known: BTreeSet<&str> = seen.relays.iter().map(|(name, _)| name.as_str()).collect();
    for (name, wanted) in &seen.servers {
        match super::check::server(name, wanted, force, &known) {
            Ok(()) => drop(force.servers.insert(name.clone(), wanted.clone())),
            Err(refusal) => drop(plan.servers.insert(name.clone(), refusal)),
        }
    }
    let speakers = speakers(seen, force);
    let numbers = numbers(seen, force, &speakers);
    plan.text = text(seen, force, &speakers, &numbers);
    // Numbers of addresses that no node has any more are free.
    let known = |a: &IpAddr| seen.nodes.contains(a) || numbers.contains_key(a);
    let old = seen.in_force.numbers.iter().filter(|(a, n)| {
        known(a) && !numbers.contains_key(a) && !numbers.values().any(|used| used == *n)
    });
    plan.in_force.numbers = old.map(|(a, n)| (*a, *n)).chain(numbers.clone()).collect();
    plan
}

/// Those who take part, one per address: a Server and a Relay at one address would be one on the
/// link, so the one that stays has it.
fn speakers<'a>(seen: &'a Observed, force: &InForce) -> BTreeMap<IpAddr, &'a Speaker> {
    let mut all = BTreeMap::new();
    let mut sorted: Vec<&Speaker> = seen.speakers.iter().collect();
    sorted.sort();
    for speaker in sorted {
        let owners = if speaker.relay {
            force.relays.contains_key(&speaker.owner)
        } else {
            force.servers.contains_key(&speaker.owner)
        };
        if owners {
            // In their order one that goes on comes before one that ends.
            all.entry(speaker.address).or_insert(speaker);
        }
    }
    all
}

/// A number for each Server: as before where that can be.
fn numbers(
    seen: &Observed,
    force: &InForce,
    speakers: &BTreeMap<IpAddr, &Speaker>,
) -> BTreeMap<IpAddr, u32> {
    let of_relays: BTreeSet<u32> = force.relays.values().map(|r| r.asn).collect();
    let of_peers: BTreeSet<u32> = force
        .relays
        .values()
        .flat_map(|r| &r.peers)
        .filter_map(|p| p.asn.try_into().ok())
        .collect();
    let may = |owner: &str, asn: u32| {
        let others = force.servers.iter().filter(|(name, _)| name.as_str() != owner);
        !of_relays.contains(&asn)
            && !of_peers.contains(&asn)
            && !others.filter_map(|(_, r)| r.range()).any(|range| range.contains(&asn))
    };
    let range = |owner: &str| force.servers.get(owner).and_then(ServerRules::range);
    let servers = || speakers.iter().filter(|(_, s)| !s.relay);
    let mut given: BTreeMap<IpAddr, u32> = BTreeMap::new();
    for (address, server) in servers() {
        let Some(old) = seen.in_force.numbers.get(address) else { continue };
        let fits = range(&server.owner).is_none_or(|r| r.contains(old));
        if fits && may(&server.owner, *old) && !given.values().any(|n| n == old) {
            given.insert(*address, *old);
        }
    }
    let remembered: BTreeSet<u32> = seen.in_force.numbers.values().copied().collect();
    for (address, server) in servers() {
        if given.contains_key(address) {
            continue;
        }
        let first = force.servers.get(&server.owner).and_then(|r| r.first);
        let first = first.unwrap_or(FIRST_ASN + 1);
        let Some(last) = private_range(first).map(|r| *r.end()) else { continue };
        let end = range(&server.owner).map_or(last, |r| *r.end());
        let used: BTreeSet<u32> = given.values().copied().collect();
        let free = |asn: &u32| may(&server.owner, *asn) && !used.contains(asn);
        // Of its range one that nobody had, else one of a Server that is away; while old Servers
        // end and new ones are there already, one behind the range.
        let asn = (first..=end)
            .find(|n| free(n) && !remembered.contains(n))
            .or_else(|| (first..=end).find(free))
            .or_else(|| (end..=last).find(free));
        if let Some(asn) = asn {
            given.insert(*address, asn);
        }
    }
    given
}

/// The file, in an order that does not change.
fn text(
    seen: &Observed,
    force: &InForce,
    speakers: &BTreeMap<IpAddr, &Speaker>,
    numbers: &BTreeMap<IpAddr, u32>,
) -> String {
    let mut out = String::from("# Written by the operator; changes are lost.\n");
    let asps: Vec<String> = seen.asps.iter().map(|p| format!("\"{p}\"")).collect();
    let _ = writeln!(out, "servicePrefixes: [{}]", asps.join(", "));
    let row = |address: &IpAddr, s: &Speaker, asn: u32| {
        format!("- {{address: \"{}\", asn: {asn}}}", SocketAddr::new(*address, s.port))
    };
    let servers = speakers.iter().filter(|(_, s)| !s.relay);
    let servers = servers.filter_map(|(a, s)| Some(row(a, s, *numbers.get(a)?)));
    list(&mut out, "servers", servers.collect());
    let relays = speakers.iter().filter(|(_, s)| s.relay);
    let relays = relays.filter_map(|(a, s)| Some(row(a, s, force.relays.get(&s.owner)?.asn)));
    list(&mut out, "relays", relays.collect());
    let peers: BTreeSet<(&str, i64)> = force
        .relays
        .values()
        .flat_map(|r| r.peers.iter().map(|p| (p.address.as_str(), p.asn)))
        .collect();
    let peers = peers.iter().map(|(a, asn)| format!("- {{address: \"{a}\", asn: {asn}}}"));
    list(&mut out, "externalPeers", peers.collect());
    out
}

fn list(out: &mut String, name: &str, rows: Vec<String>) {
    if rows.is_empty() {
        let _ = writeln!(out, "{name}: []");
    } else {
        let _ = writeln!(out, "{name}:\n{}", rows.join("\n"));
    }
}
