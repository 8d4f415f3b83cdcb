//! What is known about the ways to neighbours: draft -48 section 3.10.
//!
//! A probe is a Neighbor Solicitation with a nonce, padded with NULs behind the inner packet to
//! the size in question and sent with DF. Its advertisement proves that size; then packets up to
//! it go whole. A Packet Too Big, or probes without an answer, take the proof back, and packets
//! go in fragments again. Between whom to solicit is learned from the solicitations and
//! advertisements that the node's engine sends; nothing is probed before that, nor where nothing
//! has to be fragmented.

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use rand::Rng;

use super::size::{self, Plan, Reach};
use super::{LEAST_MTU, overhead};
use crate::address::LinkLayerAddress;
use crate::timers::{MAX_RETRY, RETRANS_TIMER};
use crate::wire::ip::Packet;
use crate::wire::nd::{Nd, NdMessage, NdOption};

/// Between rounds of probes to a neighbour, whether they are answered or not.
pub const PROBE_INTERVAL: Duration = Duration::from_secs(60);
/// How long a Packet Too Big is believed (RFC 8201 section 4).
pub const TOO_BIG_LIFETIME: Duration = Duration::from_secs(600);
/// Neighbours remembered at most.
const MOST: usize = 65_536;

/// How sizes are chosen on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Config {
    /// MTU of the underlay interface.
    pub underlay_mtu: u16,
    /// Packets that fit the underlay interface are taken to reach every neighbour whole, until a
    /// Packet Too Big says otherwise: right in a cluster, where nodes' MTUs agree. False means
    /// that it has to be proved first.
    pub assured: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self { underlay_mtu: 1500, assured: true }
    }
}

#[derive(Debug, Default)]
struct Path {
    /// Overrides what [`Config::assured`] says.
    confirmed: Option<usize>,
    too_big: Option<(usize, Instant)>,
    template: Option<(Ipv6Addr, Ipv6Addr)>,
    wanted: bool,
    probe: Option<Probing>,
    next_round: Option<Instant>,
    /// Packet Too Bigs since the last one ran out.
    too_bigs: u8,
    used: Option<Instant>,
}

#[derive(Debug)]
struct Probing {
    nonce: [u8; 6],
    size: usize,
    unanswered: u8,
    due: Instant,
}

/// A padded Neighbor Solicitation, to be sent with DF in one piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Outer destination.
    pub to: LinkLayerAddress,
    /// The inner packet and its padding.
    pub packet: Vec<u8>,
}

/// The paths to all neighbours.
#[derive(Debug, Default)]
pub struct Paths {
    config: Config,
    paths: HashMap<LinkLayerAddress, Path>,
}

impl Paths {
    /// Nothing known yet.
    pub fn new(config: Config) -> Self {
        Self { config, paths: HashMap::new() }
    }

    /// How to send a user's packet to a neighbour.
    pub fn plan(&self, to: LinkLayerAddress, packet: &[u8]) -> Plan {
        size::plan(packet, &self.reach(to))
    }

    /// What is known about the way to a neighbour.
    pub fn reach(&self, to: LinkLayerAddress) -> Reach {
        let ipv6_underlay = to.ip.is_ipv6();
        let path = self.paths.get(&to);
        let interface = usize::from(self.config.underlay_mtu);
        let underlay_mtu =
            path.and_then(|p| p.too_big).map_or(interface, |(mtu, _)| mtu.min(interface));
        let confirmed = path.and_then(|p| p.confirmed).unwrap_or(if self.config.assured {
            interface.saturating_sub(overhead(ipv6_underlay))
        } else {
            0
        });
        Reach { ipv6_underlay, confirmed, underlay_mtu }
    }

    /// Whether this node deals with a neighbour: its engine has solicited it or answered it.
    pub fn knows(&self, neighbor: LinkLayerAddress) -> bool {
        self.paths.get(&neighbor).is_some_and(|p| p.template.is_some())
    }

    /// True if [`Paths::want`] would change something: a cheap question for each packet that is
    /// fragmented.
    pub fn may_want(&self, to: LinkLayerAddress) -> bool {
        self.paths.get(&to).is_some_and(|p| !p.wanted && p.template.is_some())
    }

    /// A packet had to be fragmented: it is worth a probe.
    pub fn want(&mut self, to: LinkLayerAddress, now: Instant) {
        if let Some(path) = self.paths.get_mut(&to) {
            path.wanted = true;
            path.next_round.get_or_insert(now);
        }
    }

    /// The engine sends a control packet: learns whom it solicits or answers.
    pub fn sent_control(&mut self, to: LinkLayerAddress, packet: &[u8], now: Instant) {
        let Some(pair) = neighbors_of(packet) else { return };
        if let Some(path) = self.entry(to, now) {
            path.template = Some(pair);
        }
    }

    fn entry(&mut self, to: LinkLayerAddress, now: Instant) -> Option<&mut Path> {
        if self.paths.len() >= MOST && !self.paths.contains_key(&to) {
            return None;
        }
        let path = self.paths.entry(to).or_default();
        path.used = Some(now);
        Some(path)
    }

    /// A control packet came. True if it was the answer to a probe, and the matter is settled.
    pub fn received_control(
        &mut self,
        from: LinkLayerAddress,
        packet: &[u8],
        now: Instant,
    ) -> bool {
        let Some(path) = self.paths.get_mut(&from) else { return false };
        let Some(probe) = &path.probe else { return false };
        let answers = Packet::parse(packet).and_then(|p| Nd::parse(&p)).is_ok_and(|nd| {
            matches!(nd.message, NdMessage::Advertisement { solicited: true, .. })
                && nd.nonce() == Some(&probe.nonce)
        });
        if answers {
            path.confirmed = Some(probe.size);
            path.probe = None;
            path.next_round = Some(now + PROBE_INTERVAL);
            // What is larger is fragmented and wants a probe again.
            path.wanted = !self.config.assured;
        }
        answers
    }

    /// Whether an answer to a probe is awaited from there.
    pub fn awaits(&self, from: LinkLayerAddress) -> bool {
        self.paths.get(&from).is_some_and(|p| p.probe.is_some())
    }

    /// A Packet Too Big of the underlay about a packet to `to`. `mtu` is the outer size that it
    /// gave.
    pub fn too_big(&mut self, to: LinkLayerAddress, mtu: usize, now: Instant) {
        let interface = usize::from(self.config.underlay_mtu);
        let Some(path) = self.entry(to, now) else { return };
        let mtu = mtu.clamp(LEAST_MTU, interface.max(LEAST_MTU));
        path.too_big = Some((mtu, now + TOO_BIG_LIFETIME));
        path.confirmed = Some(0);
        path.wanted = true;
        path.probe = None;
        // Not at once: whoever sends them in a row would have a probe for each.
        path.next_round = Some(now + path.backoff());
        path.too_bigs = path.too_bigs.saturating_add(1);
    }

    /// Forgets what has run out: call it now and then.
    pub fn expire(&mut self, now: Instant) {
        self.paths.retain(|_, p| p.used.is_none_or(|t| now < t + TOO_BIG_LIFETIME));
        for path in self.paths.values_mut() {
            if path.too_big.is_some_and(|(_, until)| until <= now) {
                path.too_big = None;
                path.too_bigs = 0;
                path.next_round = Some(now);
                if path.confirmed == Some(0) {
                    path.confirmed = None;
                }
            }
        }
    }

    /// When [`Paths::poll_probe`] has something next.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.paths.values().filter_map(Path::due).min()
    }

    /// A probe that is due.
    pub fn poll_probe<R: Rng>(&mut self, now: Instant, rng: &mut R) -> Option<Probe> {
        let config = self.config;
        for (to, path) in &mut self.paths {
            if path.due().is_none_or(|due| due > now) {
                continue;
            }
            if let Some(probe) = &path.probe
                && probe.unanswered >= MAX_RETRY
            {
                // A smaller proof stands when a larger probe fails.
                if path.confirmed.is_none_or(|c| c >= probe.size) {
                    path.confirmed = Some(0);
                }
                path.probe = None;
                path.wanted = true;
                path.next_round = Some(now + PROBE_INTERVAL);
                continue;
            }
            let Some((source, target)) = path.template else { continue };
            let interface = usize::from(config.underlay_mtu);
            let outer = path.too_big.map_or(interface, |(mtu, _)| mtu.min(interface));
            let size = outer.saturating_sub(overhead(to.ip.is_ipv6()));
            let unanswered = path.probe.as_ref().map_or(0, |p| p.unanswered) + 1;
            let nonce = rng.random();
            path.probe = Some(Probing { nonce, size, unanswered, due: now + RETRANS_TIMER });
            let solicitation = Nd {
                source,
                destination: target,
                message: NdMessage::Solicitation { target },
                options: vec![NdOption::Nonce(nonce.to_vec())],
            };
            let Ok(mut packet) = solicitation.emit() else { continue };
            packet.resize(size.max(packet.len()), 0);
            return Some(Probe { to: *to, packet });
        }
        None
    }
}

impl Path {
    /// Before the probe that follows a Packet Too Big: a second, doubled for each.
    fn backoff(&self) -> Duration {
        (RETRANS_TIMER * (1 << self.too_bigs.min(6))).min(PROBE_INTERVAL)
    }

    fn due(&self) -> Option<Instant> {
        if let Some(probe) = &self.probe {
            return Some(probe.due);
        }
        self.template.filter(|_| self.wanted)?;
        self.next_round
    }
}

/// Source and destination of a Neighbor Solicitation or Advertisement between link-local
/// addresses.
pub(super) fn neighbors_of(packet: &[u8]) -> Option<(Ipv6Addr, Ipv6Addr)> {
    if packet.get(6) != Some(&58) || !matches!(packet.get(40), Some(135 | 136)) {
        return None;
    }
    let at = |from: usize| {
        let octets: [u8; 16] = packet.get(from..from + 16)?.try_into().ok()?;
        Some(Ipv6Addr::from(octets)).filter(Ipv6Addr::is_unicast_link_local)
    };
    Some((at(8)?, at(24)?))
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
