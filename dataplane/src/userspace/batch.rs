//! Packets that are sent together: one system call for all that go the same way one after the
//! other. Order among those of one way is kept.

use std::sync::atomic::Ordering::Relaxed;

use aero_protocol::address::LinkLayerAddress;
use aero_protocol::tunnel::header::Outer;
use aero_protocol::tunnel::size::Plan;

use super::Forwarder;
use crate::tun::Outgoing;

/// Datagrams of one call; the kernel's own bound.
const DATAGRAMS: usize = 64;
/// Their bytes: an IP packet's length field counts them all, before the kernel cuts them.
const BYTES: usize = 64_000;

/// Packets for one neighbour, of one length but for the last one.
struct Run<'a> {
    to: LinkLayerAddress,
    outer: Outer,
    packets: Vec<&'a [u8]>,
    bytes: usize,
}

impl Run<'_> {
    fn takes(&self, to: LinkLayerAddress, packet: &[u8], outer: Outer) -> bool {
        let length = |p: Option<&&[u8]>| p.map_or(0, |p| p.len());
        let first = length(self.packets.first());
        self.to == to
            && self.outer == outer
            && self.packets.len() < DATAGRAMS
            && self.bytes + packet.len() <= BYTES
            && packet.len() <= first
            && length(self.packets.last()) == first
    }
}

/// What came of a batch of packets, on its way out.
pub(super) struct Out<'a> {
    run: Option<Run<'a>>,
    /// For this node's network layer.
    device: Outgoing,
    queue: usize,
}

impl Out<'_> {
    /// Nothing yet. `device` is room to work in, `queue` the device's that packets go to.
    pub(super) fn new(device: Outgoing, queue: usize) -> Self {
        Self { run: None, device, queue }
    }

    /// Adds a packet for this node's network layer.
    pub(super) fn deliver(&mut self, packet: &[u8]) {
        self.device.push(packet);
    }
}

impl Forwarder {
    /// Sends a user's packet into a tunnel, with others or alone. `Err` holds the MTU if it is too
    /// big.
    pub(super) async fn transmit_with<'a>(
        &self,
        to: LinkLayerAddress,
        packet: &'a [u8],
        outer: Outer,
        out: &mut Out<'a>,
    ) -> Result<(), u16> {
        let plan = self.look(|state| state.paths.plan(to, packet));
        if plan != (Plan::Whole { dont_fragment: true }) {
            self.flush_run(out).await;
            return self.transmit(to, packet, outer).await;
        }
        self.counters.tunneled(packet.len());
        if out.run.as_ref().is_some_and(|run| !run.takes(to, packet, outer)) {
            self.flush_run(out).await;
        }
        let fresh = || Run { to, outer, packets: Vec::with_capacity(DATAGRAMS), bytes: 0 };
        let run = out.run.get_or_insert_with(fresh);
        run.packets.push(packet);
        run.bytes += packet.len();
        Ok(())
    }

    async fn flush_run(&self, out: &mut Out<'_>) {
        let Some(run) = out.run.take() else { return };
        if self.underlay.send_many(&run.packets, run.to, run.outer).await.is_err() {
            self.counters.send_errors.fetch_add(1, Relaxed);
        }
    }

    /// Sends what is still to be sent. Gives the room back.
    pub(super) async fn flush(&self, mut out: Out<'_>) -> Outgoing {
        self.flush_run(&mut out).await;
        if !out.device.is_empty()
            && let Some(device) = &self.device
            && device.send(out.queue, &mut out.device).await.is_err()
        {
            self.counters.send_errors.fetch_add(1, Relaxed);
        }
        out.device
    }
}
