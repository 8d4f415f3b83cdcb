//! Sending: whole or in pieces, and probes.

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use aero_protocol::address::LinkLayerAddress;
use aero_protocol::tunnel::fragment::{TunnelFragments, fragment_ipv4, inner_fragment_size};
use aero_protocol::tunnel::header::Outer;
use aero_protocol::tunnel::size::{Plan, plan_control};

use super::Forwarder;

impl Forwarder {
    /// Sends a control packet of the engine. What does not surely fit goes in fragments of the
    /// tunnel (draft -48 section 3.10). Messages have an inner hop limit of 255, and so have they
    /// outside.
    ///
    /// # Errors
    /// As the kernel says, and if it is no IP packet.
    pub async fn send_control(&self, to: LinkLayerAddress, packet: &[u8]) -> io::Result<()> {
        let outer = Outer::entering(packet).ok_or(io::ErrorKind::InvalidInput)?;
        let now = Instant::now();
        if matches!(packet.get(40), Some(135 | 136)) {
            self.change(|state| state.paths.sent_control(to, packet, now));
            self.probes.notify_one();
            if let Some(ip_in_ip) = self.ip_in_ip() {
                ip_in_ip.sent_control(to, packet);
            }
        }
        match plan_control(packet.len(), to.ip.is_ipv6()) {
            Plan::Fragments => self.send_fragments(to, packet, outer).await,
            _ => self.underlay.send(&[], packet, to, outer, false).await,
        }
    }

    /// Sends a user's packet into a tunnel. `Err` holds the MTU if it is too big.
    pub(super) async fn transmit(
        &self,
        to: LinkLayerAddress,
        packet: &[u8],
        outer: Outer,
    ) -> Result<(), u16> {
        let plan = self.look(|state| state.paths.plan(to, packet));
        let outcome = match plan {
            Plan::TooBig { mtu } => return Err(mtu),
            Plan::Whole { dont_fragment } => {
                self.underlay.send(&[], packet, to, outer, dont_fragment).await
            }
            Plan::Fragments => {
                if self.look(|state| state.paths.may_want(to)) {
                    self.change(|state| state.paths.want(to, Instant::now()));
                    self.probes.notify_one();
                }
                self.send_fragments(to, packet, outer).await
            }
            Plan::InnerFragments => self.send_inner_fragments(to, packet, outer).await,
        };
        self.counters.tunneled(packet.len());
        if outcome.is_err() {
            self.counters.send_errors.fetch_add(1, Relaxed);
        }
        Ok(())
    }

    async fn send_fragments(
        &self,
        to: LinkLayerAddress,
        packet: &[u8],
        outer: Outer,
    ) -> io::Result<()> {
        let identification = self.identification.fetch_add(1, Relaxed);
        let fragments = TunnelFragments::new(packet, to.ip.is_ipv6(), identification)
            .ok_or(io::ErrorKind::InvalidInput)?;
        self.counters.fragmented_packets.fetch_add(1, Relaxed);
        for (shim, data) in fragments {
            self.underlay.send(&shim, data, to, outer, false).await?;
        }
        Ok(())
    }

    /// Only for IPv4 packets above 1500 bytes that may be fragmented: rare enough to collect.
    async fn send_inner_fragments(
        &self,
        to: LinkLayerAddress,
        packet: &[u8],
        outer: Outer,
    ) -> io::Result<()> {
        let mut fragments = Vec::new();
        let size = inner_fragment_size(to.ip.is_ipv6());
        if !fragment_ipv4(packet, size, |fragment| fragments.push(fragment.to_vec())) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        self.counters.fragmented_packets.fetch_add(1, Relaxed);
        for fragment in fragments {
            self.underlay.send(&[], &fragment, to, outer, false).await?;
        }
        Ok(())
    }

    /// Sends the probes that are due, for ever.
    pub(super) async fn serve_probes(&self) -> io::Result<()> {
        loop {
            let next = self.look(|state| state.paths.poll_timeout());
            let due = async {
                match next {
                    Some(at) => tokio::time::sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => {}
                () = self.probes.notified() => {}
            }
            let next = || {
                let now = Instant::now();
                self.change(|state| state.paths.poll_probe(now, &mut rand::rng()))
            };
            while let Some(probe) = next() {
                let Some(outer) = Outer::entering(&probe.packet) else { continue };
                self.counters.path_probes.fetch_add(1, Relaxed);
                // One that the interface does not take is an unanswered one.
                let _ = self.underlay.send(&[], &probe.packet, probe.to, outer, true).await;
            }
        }
    }
}
