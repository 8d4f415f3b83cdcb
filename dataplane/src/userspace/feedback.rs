//! What is told about packets that do not get through: ICMP errors to inner sources, and what
//! the underlay's ICMP errors mean.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::PoisonError;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use aero_protocol::address::LinkLayerAddress;
use aero_protocol::forwarding::{Disposition, Inner, NextHop};
use aero_protocol::tunnel::header::{self, Outer};
use aero_protocol::tunnel::{GUARANTEED, LEAST_MTU, size};
use aero_protocol::wire::encapsulation::{Payload, demux};
use aero_protocol::wire::icmp_error::{self, Problem};
use aero_protocol::wire::{Class, classify};

use super::Forwarder;
use super::batch::Out;
use crate::tun::Outgoing;
use crate::underlay::{Reported, Trouble};

/// ICMP errors at once, and per second in the long run (RFC 4443 section 2.4 f).
const ERRORS: u32 = 100;
/// Fragments sent since an error's quote may have left.
const RECENT_FRAGMENTS: u32 = 1 << 16;

/// Limits how many ICMP errors are sent.
#[derive(Debug)]
pub(super) struct Bucket {
    tokens: u32,
    filled: Instant,
}

impl Default for Bucket {
    fn default() -> Self {
        Self { tokens: ERRORS, filled: Instant::now() }
    }
}

impl Bucket {
    fn take(&mut self, now: Instant) -> bool {
        let each = Duration::from_secs(1) / ERRORS;
        let waited = now.saturating_duration_since(self.filled).as_nanos() / each.as_nanos();
        let fresh = u32::try_from(waited).unwrap_or(ERRORS).min(ERRORS);
        if fresh > 0 {
            self.tokens = (self.tokens + fresh).min(ERRORS);
            self.filled = now;
        }
        let left = self.tokens.checked_sub(1);
        self.tokens = left.unwrap_or(0);
        left.is_some()
    }
}

impl Forwarder {
    /// Tells the source of a packet why it was dropped: by this node's network layer if it is
    /// attached here, else back through the link, without a source address (draft -48 section
    /// 3.12).
    pub(super) async fn tell_source(&self, problem: Problem, packet: &[u8]) {
        let Some(inner) = Inner::of(packet) else { return };
        let now = Instant::now();
        let Some(way) = self.look(|state| state.table.next_hop(inner.source, now)) else { return };
        let local = way == NextHop::Local;
        let source = if local {
            self.error_source(inner.destination)
        } else {
            unspecified(inner.destination)
        };
        let Ok(error) = icmp_error::build(problem, source, packet) else { return };
        if !self.errors.lock().unwrap_or_else(PoisonError::into_inner).take(now) {
            return;
        }
        self.counters.icmp_errors.fetch_add(1, Relaxed);
        match way {
            NextHop::Local => {
                let mut out = Out::new(Outgoing::default(), 0);
                self.deliver(&error, &mut out);
                self.flush(out).await;
            }
            NextHop::Neighbor(to) => {
                if let Some(outer) = Outer::entering(&error) {
                    // At most 1280 bytes: never too big.
                    let _ = self.transmit(to, &error, outer).await;
                }
            }
            // Its source is nobody's, or between two nodes.
            NextHop::Unreachable | NextHop::Hold { .. } => {}
        }
    }

    /// Gives an ICMP error that comes out of the link without a source address one of this node.
    pub(super) fn sign_error(&self, packet: &mut [u8]) {
        if let Some(destination) = icmp_error::quoted_destination_if_anonymous(packet) {
            let source = self.error_source(destination);
            // Cannot fail for what was just found to be such an error, of one family with its
            // quote.
            let _ = icmp_error::set_source(packet, source);
        }
    }

    fn error_source(&self, destination: IpAddr) -> IpAddr {
        let own = self.config.error_sources.iter();
        let of_family = own.copied().find(|a| a.is_ipv4() == destination.is_ipv4());
        match of_family {
            Some(own) => own,
            None if destination.is_multicast() => unspecified(destination),
            None => destination,
        }
    }

    /// Takes in the underlay's ICMP errors, for ever.
    pub(super) async fn serve_errors(&self, n: usize) -> io::Result<()> {
        self.underlay.queue_errors(n)?;
        let mut buffer = vec![0; 2048];
        loop {
            let Ok(reported) = self.underlay.receive_error(n, &mut buffer).await else { continue };
            let quote = buffer.get(..reported.length).unwrap_or_default();
            self.underlay_error(reported, quote).await;
        }
    }

    async fn underlay_error(&self, reported: Reported, quote: &[u8]) {
        let error = reported.error;
        self.counters.underlay_errors.fetch_add(1, Relaxed);
        if !reported.local && !self.may_have_sent(error.neighbor, quote) {
            return;
        }
        if let Trouble::TooBig { mtu } = error.trouble {
            let mtu = mtu.max(LEAST_MTU);
            self.change(|state| state.paths.too_big(error.neighbor, mtu, Instant::now()));
            self.probes.notify_one();
            // What is smaller goes in fragments from now on; its source need not know.
            if header::declared_length(quote).is_some_and(|length| length > GUARANTEED) {
                let mtu = size::largest(mtu, error.neighbor.ip.is_ipv6());
                self.tell_source(Problem::PacketTooBig { mtu }, quote).await;
            }
        }
        if let Some(engine) = &self.config.underlay_errors {
            let _ = engine.try_send(error);
        }
    }

    /// Whether what an ICMP error quotes is something that this node would send to that
    /// neighbour. The kernel has checked addresses and ports, which anybody can guess.
    fn may_have_sent(&self, neighbor: LinkLayerAddress, quote: &[u8]) -> bool {
        match demux(quote) {
            Ok(Payload::Packet(packet)) => match (classify(packet), Inner::of(packet)) {
                (Class::Control, _) => self.look(|state| state.paths.knows(neighbor)),
                (Class::Data, Some(inner)) => {
                    let now = Instant::now();
                    self.look(|state| {
                        let way = state.table.next_hop(inner.destination, now);
                        way == Some(NextHop::Neighbor(neighbor))
                            || state.table.egress(inner, now) == Disposition::Tunnel(neighbor)
                    })
                }
                _ => false,
            },
            Ok(Payload::Fragment { shim, .. }) => {
                let next = self.identification.load(Relaxed);
                next.wrapping_sub(shim.identification) <= RECENT_FRAGMENTS
            }
            _ => false,
        }
    }
}

fn unspecified(of_family: IpAddr) -> IpAddr {
    match of_family {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_come_a_hundred_at_once_and_a_hundred_a_second_after_that() {
        let mut bucket = Bucket::default();
        let start = bucket.filled;
        let burst = (0..1000).filter(|_| bucket.take(start)).count();
        assert_eq!(burst, 100);
        let later = start + Duration::from_secs(1);
        let refilled = (0..1000).filter(|_| bucket.take(later)).count();
        assert_eq!(refilled, 100);
        let mut sent = 0;
        for n in 0..5000u64 {
            sent += usize::from(bucket.take(later + Duration::from_millis(n)));
        }
        assert!((490..=510).contains(&sent), "{sent} in five seconds");
    }
}
