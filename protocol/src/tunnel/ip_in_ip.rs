//! Whether a path carries packets in plain IP-in-IP (RFC 4213, RFC 2473), without UDP.
//!
//! Kernels merge what comes off a wire in IP-in-IP by themselves, and there are eight bytes less
//! to send; but NATs and some networks drop protocol 41. So it is only used for IPv6 packets
//! between neighbours that use the same port, where a probe shows that it gets through: a Neighbor
//! Solicitation with a nonce in that form, which the neighbour answers as any other. A proof is
//! good for [`PROVEN_FOR`] from when its probe was sent and is renewed while there is traffic, so
//! that a path that stops carrying the form costs a second at most.
//!
//! Between whom to solicit is learned from the solicitations and advertisements that the node's
//! engine sends, as in [`super::path`].

use std::collections::HashMap;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use rand::Rng;

use super::path::neighbors_of;
use crate::address::LinkLayerAddress;
use crate::timers::MAX_RETRY;
use crate::wire::ip::Packet;
use crate::wire::nd::{Nd, NdMessage, NdOption};

/// Between probes to a neighbour that there is traffic to.
pub const PROBE_EVERY: Duration = Duration::from_millis(250);
/// How long a probe that was answered proves something, from when it was sent.
pub const PROVEN_FOR: Duration = Duration::from_secs(1);
/// Before a path that did not carry the form is tried again; doubled each time.
pub const TRY_AGAIN: Duration = Duration::from_secs(2);
/// The most that it is doubled to.
pub const TRY_AGAIN_AT_MOST: Duration = Duration::from_secs(300);
/// How long a neighbour is remembered without traffic.
const REMEMBERED: Duration = Duration::from_secs(600);
/// Neighbours remembered at most.
const MOST: usize = 8192;

#[derive(Debug)]
struct Neighbor {
    /// Whom to solicit, from which address.
    pair: (Ipv6Addr, Ipv6Addr),
    /// Until when there is reason to probe.
    wanted: Option<Instant>,
    unanswered: u8,
    failures: u8,
    next: Instant,
    touched: Instant,
}

/// A Neighbor Solicitation to be sent in plain IP-in-IP.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// Outer destination; its port is of no use here.
    pub to: LinkLayerAddress,
    /// The inner packet.
    pub packet: Vec<u8>,
}

/// That a neighbour gets what is sent to it in plain IP-in-IP.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Proof {
    /// The neighbour.
    pub neighbor: LinkLayerAddress,
    /// How long to rely on it.
    pub until: Instant,
}

/// The state of all neighbours.
#[derive(Debug, Default)]
pub struct Prober {
    neighbors: HashMap<LinkLayerAddress, Neighbor>,
    /// The probes under way by their nonces: to whom, and when they were sent.
    waiting: HashMap<[u8; 6], (LinkLayerAddress, Instant)>,
}

impl Prober {
    /// The engine sends a control packet: learns whom it solicits or answers.
    pub fn sent_control(&mut self, to: LinkLayerAddress, packet: &[u8], now: Instant) {
        let Some(pair) = neighbors_of(packet) else { return };
        if self.neighbors.len() >= MOST && !self.neighbors.contains_key(&to) {
            return;
        }
        let fresh =
            Neighbor { pair, wanted: None, unanswered: 0, failures: 0, next: now, touched: now };
        let neighbor = self.neighbors.entry(to).or_insert(fresh);
        neighbor.pair = pair;
        neighbor.touched = now;
    }

    /// There was traffic straight to a neighbour just now.
    pub fn used(&mut self, to: LinkLayerAddress, now: Instant) {
        if let Some(neighbor) = self.neighbors.get_mut(&to) {
            neighbor.wanted = Some(now + PROVEN_FOR);
            neighbor.touched = now;
        }
    }

    /// Whether any answer is awaited: a cheap question for each control packet.
    pub fn awaits(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// A control packet came, from wherever: an answer may come by a Server. If it answers a
    /// probe the matter is settled, and this is what it proves.
    pub fn received_control(&mut self, packet: &[u8], now: Instant) -> Option<Proof> {
        let nd = Packet::parse(packet).and_then(|p| Nd::parse(&p)).ok()?;
        let NdMessage::Advertisement { solicited: true, target, .. } = nd.message else {
            return None;
        };
        let nonce: [u8; 6] = nd.nonce()?.try_into().ok()?;
        let (to, sent) = *self.waiting.get(&nonce)?;
        let neighbor = self.neighbors.get_mut(&to).filter(|n| n.pair.1 == target)?;
        self.waiting.remove(&nonce);
        neighbor.unanswered = 0;
        neighbor.failures = 0;
        neighbor.next = neighbor.next.min((sent + PROBE_EVERY).max(now));
        Some(Proof { neighbor: to, until: sent + PROVEN_FOR })
    }

    /// When [`Prober::poll`] has something next.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        self.neighbors.values().filter(|n| n.is_wanted(now)).map(|n| n.next).min()
    }

    /// A probe that is due.
    pub fn poll<R: Rng>(&mut self, now: Instant, rng: &mut R) -> Option<Probe> {
        for (to, neighbor) in &mut self.neighbors {
            if !neighbor.is_wanted(now) || neighbor.next > now {
                continue;
            }
            if neighbor.unanswered > MAX_RETRY {
                neighbor.give_up(now);
                continue;
            }
            let nonce: [u8; 6] = rng.random();
            neighbor.unanswered += 1;
            self.waiting.insert(nonce, (*to, now));
            neighbor.next = now + PROBE_EVERY;
            let (source, target) = neighbor.pair;
            let solicitation = Nd {
                source,
                destination: target,
                message: NdMessage::Solicitation { target },
                options: vec![NdOption::Nonce(nonce.to_vec())],
            };
            let Ok(packet) = solicitation.emit() else { continue };
            return Some(Probe { to: *to, packet });
        }
        None
    }

    /// Forgets whom nobody has dealt with for a while: call it now and then.
    pub fn expire(&mut self, now: Instant) {
        self.neighbors.retain(|_, n| now < n.touched + REMEMBERED);
        self.waiting.retain(|_, (_, sent)| now < *sent + PROVEN_FOR);
    }
}

impl Neighbor {
    fn is_wanted(&self, now: Instant) -> bool {
        self.wanted.is_some_and(|until| now < until)
    }

    fn give_up(&mut self, now: Instant) {
        let wait = TRY_AGAIN.saturating_mul(1 << self.failures.min(16));
        self.next = now + wait.min(TRY_AGAIN_AT_MOST);
        self.failures = self.failures.saturating_add(1);
        self.unanswered = 0;
    }
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    struct Rig {
        prober: Prober,
        rng: StdRng,
        now: Instant,
        to: LinkLayerAddress,
    }

    fn ll(n: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0x2001, 0xdb8, 0, n)
    }

    fn nd(from: u16, to: u16, message: NdMessage, nonce: &[u8]) -> Vec<u8> {
        let options = vec![NdOption::Nonce(nonce.to_vec())];
        Nd { source: ll(from), destination: ll(to), message, options }.emit().unwrap()
    }

    fn answer(probe: &Probe) -> Vec<u8> {
        let parsed = Nd::parse(&Packet::parse(&probe.packet).unwrap()).unwrap();
        let message =
            NdMessage::Advertisement { target: ll(2), solicited: true, override_cached: false };
        nd(2, 1, message, parsed.nonce().unwrap())
    }

    impl Rig {
        fn new() -> Self {
            let to = "192.0.2.2:8060".parse::<std::net::SocketAddr>().unwrap().into();
            let now = Instant::now();
            let mut prober = Prober::default();
            prober.sent_control(
                to,
                &nd(1, 2, NdMessage::Solicitation { target: ll(2) }, &[1; 6]),
                now,
            );
            Self { prober, rng: StdRng::seed_from_u64(1), now, to }
        }

        /// The next probe within a time with traffic all along.
        fn next(&mut self, within: Duration) -> Option<Probe> {
            let end = self.now + within;
            while self.now < end {
                self.prober.used(self.to, self.now);
                if let Some(probe) = self.prober.poll(self.now, &mut self.rng) {
                    return Some(probe);
                }
                self.now += 10 * MS;
            }
            None
        }
    }

    #[test]
    fn a_probe_that_is_answered_proves_the_path_for_a_second_from_when_it_was_sent() {
        let mut rig = Rig::new();
        assert_eq!(rig.prober.poll(rig.now, &mut rig.rng), None, "no traffic, no probe");
        let probe = rig.next(PROBE_EVERY).unwrap();
        let sent = rig.now;
        assert_eq!(probe.to, rig.to);
        rig.now += 40 * MS;
        assert!(rig.prober.awaits());
        let proof = rig.prober.received_control(&answer(&probe), rig.now).unwrap();
        assert_eq!(proof, Proof { neighbor: rig.to, until: sent + PROVEN_FOR });
        assert_eq!(rig.prober.received_control(&answer(&probe), rig.now), None, "a replay");
    }

    #[test]
    fn a_proof_is_renewed_while_there_is_traffic_and_before_it_ends() {
        let mut rig = Rig::new();
        let mut until = rig.now + PROVEN_FOR;
        for _ in 0..50 {
            let probe = rig.next(PROVEN_FOR).unwrap();
            assert!(rig.now < until, "a gap between two proofs");
            rig.now += 100 * MS;
            until = rig.prober.received_control(&answer(&probe), rig.now).unwrap().until;
        }
    }

    #[test]
    fn a_path_that_carries_nothing_is_tried_less_and_less_often() {
        let mut rig = Rig::new();
        let mut times = Vec::new();
        while times.len() < 24 {
            rig.next(2 * TRY_AGAIN_AT_MOST).unwrap();
            times.push(rig.now);
        }
        let gaps: Vec<Duration> =
            times.windows(2).map(|w| w[1] - w[0]).filter(|gap| *gap > PROBE_EVERY).collect();
        let seconds: Vec<u64> = gaps.iter().map(Duration::as_secs).collect();
        assert_eq!(seconds, [2, 4, 8, 16, 32]);
    }

    #[test]
    fn an_answer_with_another_nonce_or_of_another_node_proves_nothing() {
        let mut rig = Rig::new();
        let probe = rig.next(PROBE_EVERY).unwrap();
        let message =
            |target| NdMessage::Advertisement { target, solicited: true, override_cached: false };
        let parsed = Nd::parse(&Packet::parse(&probe.packet).unwrap()).unwrap();
        let nonce = parsed.nonce().unwrap();
        for forged in [nd(2, 1, message(ll(2)), &[9; 6]), nd(3, 1, message(ll(3)), nonce)] {
            assert_eq!(rig.prober.received_control(&forged, rig.now), None);
        }
        assert!(rig.prober.received_control(&answer(&probe), rig.now).is_some());
    }

    #[test]
    fn the_number_of_neighbours_is_bounded_and_the_idle_are_forgotten() {
        let mut rig = Rig::new();
        let packet = nd(1, 2, NdMessage::Solicitation { target: ll(2) }, &[1; 6]);
        for n in 0..20_000u32 {
            let ip = std::net::Ipv4Addr::from(0x0a00_0000 + n);
            rig.prober.sent_control(LinkLayerAddress::new(ip.into(), 8060), &packet, rig.now);
        }
        assert_eq!(rig.prober.neighbors.len(), MOST);
        rig.prober.expire(rig.now + REMEMBERED);
        assert_eq!(rig.prober.neighbors.len(), 0);
    }
}
