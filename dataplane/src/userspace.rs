//! The forwarder in user space: packets through a TUN device and UDP sockets.

use std::io;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use aero_protocol::address::LinkLayerAddress;
use aero_protocol::forwarding::{Change, Disposition, Drop, Inner, Table};
use aero_protocol::wire::{Class, classify};
use ipnet::IpNet;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::counters::{Counters, Snapshot};
use crate::table::ForwardingTable;
use crate::trigger::{Trigger, Triggers};
use crate::underlay::Underlay;

/// Largest datagram.
const DATAGRAM: usize = 65_536;
/// How often routes that have run out are forgotten.
const EXPIRE_EVERY: Duration = Duration::from_secs(5);

/// A control packet with its outer source, for the engine.
#[derive(Debug)]
pub struct Control {
    /// Outer source.
    pub from: LinkLayerAddress,
    /// The inner packet.
    pub packet: Vec<u8>,
}

/// A user-space forwarder.
pub struct Forwarder {
    table: RwLock<Table>,
    counters: Counters,
    underlay: Arc<Underlay>,
    device: Option<tun::AsyncDevice>,
    control: mpsc::Sender<Control>,
    triggers: OnceLock<Triggers>,
}

impl Forwarder {
    /// A forwarder between the underlay and a TUN device; a Server has none. Control packets go
    /// to `control`; when that is full they are dropped, as the senders retransmit.
    pub fn new(
        underlay: Arc<Underlay>,
        device: Option<tun::AsyncDevice>,
        control: mpsc::Sender<Control>,
    ) -> Arc<Self> {
        Arc::new(Self {
            table: RwLock::default(),
            counters: Counters::default(),
            underlay,
            device,
            control,
            triggers: OnceLock::new(),
        })
    }

    /// From now on reports packets that go by a Server for want of a direct path. To be asked
    /// once: a second receiver hears nothing.
    pub fn triggers(&self) -> mpsc::Receiver<Trigger> {
        let (triggers, receiver) = Triggers::channel();
        let _ = self.triggers.set(triggers);
        receiver
    }

    /// Forwards until the future is dropped.
    ///
    /// # Errors
    /// If the TUN device breaks.
    pub async fn run(self: Arc<Self>) -> io::Result<()> {
        let mut tasks = JoinSet::new();
        for n in 0..self.underlay.len() {
            let this = Arc::clone(&self);
            tasks.spawn(async move { this.serve_underlay(n).await });
        }
        if self.device.is_some() {
            let this = Arc::clone(&self);
            tasks.spawn(async move { this.serve_device().await });
        }
        let this = Arc::clone(&self);
        tasks.spawn(async move {
            loop {
                tokio::time::sleep(EXPIRE_EVERY).await;
                this.table.write().unwrap_or_else(PoisonError::into_inner).expire(Instant::now());
            }
        });
        match tasks.join_next().await {
            Some(Ok(outcome)) => outcome,
            Some(Err(e)) => Err(io::Error::other(e)),
            None => Ok(()),
        }
    }

    async fn serve_underlay(&self, n: usize) -> io::Result<()> {
        let mut buffer = vec![0; DATAGRAM];
        loop {
            // An error here is the echo of something sent before; the socket goes on.
            let Ok((length, from)) = self.underlay.receive(n, &mut buffer).await else { continue };
            let Some(packet) = buffer.get(..length) else { continue };
            match classify(packet) {
                Class::Control => {
                    self.counters.control_packets.fetch_add(1, Relaxed);
                    let _ = self.control.try_send(Control { from, packet: packet.to_vec() });
                }
                Class::Data => self.ingress(from, packet).await,
                Class::Other => self.counters.dropped(Drop::Malformed),
            }
        }
    }

    async fn serve_device(&self) -> io::Result<()> {
        let Some(device) = &self.device else { return Ok(()) };
        let mut buffer = vec![0; DATAGRAM];
        loop {
            let length = device.recv(&mut buffer).await?;
            let Some(packet) = buffer.get(..length) else { continue };
            let Some(inner) = Inner::of(packet) else {
                self.counters.dropped(Drop::Malformed);
                continue;
            };
            let now = Instant::now();
            let egress = self.look_up(|table| table.egress_path(inner, now));
            self.dispose(egress.disposition, packet).await;
            if egress.by_server
                && let Some(triggers) = self.triggers.get()
            {
                triggers.offer(inner, packet, now);
            }
        }
    }

    async fn ingress(&self, from: LinkLayerAddress, packet: &[u8]) {
        let Some(inner) = Inner::of(packet) else {
            self.counters.dropped(Drop::Malformed);
            return;
        };
        let disposition = self.look_up(|table| table.ingress(from, inner, Instant::now()));
        self.dispose(disposition, packet).await;
    }

    fn look_up<T>(&self, ask: impl FnOnce(&Table) -> T) -> T {
        ask(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    async fn dispose(&self, disposition: Disposition, packet: &[u8]) {
        let bytes = u64::try_from(packet.len()).unwrap_or(0);
        let outcome = match (disposition, &self.device) {
            (Disposition::Drop(why), _) => return self.counters.dropped(why),
            (Disposition::Deliver, None) => return self.counters.dropped(Drop::NotForUs),
            (Disposition::Deliver, Some(device)) => {
                self.counters.delivered_packets.fetch_add(1, Relaxed);
                self.counters.delivered_bytes.fetch_add(bytes, Relaxed);
                device.send(packet).await.map(drop)
            }
            (Disposition::Tunnel(to), _) => {
                self.counters.tunneled_packets.fetch_add(1, Relaxed);
                self.counters.tunneled_bytes.fetch_add(bytes, Relaxed);
                self.underlay.send(packet, to).await
            }
        };
        if outcome.is_err() {
            self.counters.send_errors.fetch_add(1, Relaxed);
        }
    }
}

impl ForwardingTable for Forwarder {
    fn apply(&self, change: &Change) {
        self.table.write().unwrap_or_else(PoisonError::into_inner).apply(change);
    }

    fn take_used(&self) -> Vec<(IpNet, IpNet)> {
        self.look_up(Table::take_used)
    }

    fn counters(&self) -> Snapshot {
        self.counters.snapshot()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aero_protocol::forwarding::{NextHop, Route};
    use std::net::IpAddr;

    fn data(source: &str, destination: &str) -> Vec<u8> {
        let mut p = vec![0x60, 0, 0, 0, 0, 4, 59, 64];
        p.extend(source.parse::<std::net::Ipv6Addr>().unwrap().octets());
        p.extend(destination.parse::<std::net::Ipv6Addr>().unwrap().octets());
        p.extend(b"data");
        p
    }

    #[tokio::test]
    async fn a_server_forwards_between_its_clients_and_drops_forged_sources() {
        let loopback: IpAddr = "::1".parse().unwrap();
        let bind = || async { UdpSocket::bind("[::1]:0").await.unwrap() };
        use tokio::net::UdpSocket;
        let (a, b) = (bind().await, bind().await);
        let probe = bind().await;
        let port = probe.local_addr().unwrap().port();
        drop(probe);
        let underlay = Arc::new(Underlay::bind(&[loopback], port).unwrap());
        let (control, mut engine) = mpsc::channel(8);
        let forwarder = Forwarder::new(underlay, None, control);
        let l2 = |s: &UdpSocket| LinkLayerAddress::from(s.local_addr().unwrap());
        for (prefix, socket) in [("2001:db8:0:1::/64", &a), ("2001:db8:0:2::/64", &b)] {
            let prefix = prefix.parse().unwrap();
            let to = NextHop::Neighbor(l2(socket));
            let route = Route { to, transit: true, until: None };
            forwarder.apply(&Change::SetRoute { prefix, route });
            forwarder.apply(&Change::SetSource { prefix, from: l2(socket), until: None });
        }
        let running = tokio::spawn(Arc::clone(&forwarder).run());
        let server = (loopback, port);
        let good = data("2001:db8:0:1::1", "2001:db8:0:2::1");
        a.send_to(&data("2001:db8:0:9::1", "2001:db8:0:2::1"), server).await.unwrap();
        a.send_to(&[0x00, 41, 0, 0], server).await.unwrap();
        a.send_to(&data("fe80::1", "fe80::2"), server).await.unwrap();
        a.send_to(&good, server).await.unwrap();
        let mut buffer = [0; 2048];
        let (length, from) = b.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], good, "the first that arrives is the good one");
        assert_eq!(from.port(), port);
        let control = engine.recv().await.unwrap();
        assert_eq!(control.from, l2(&a));
        let counters = forwarder.counters();
        assert_eq!(counters.drops[&Drop::OriginRefused], 1);
        assert_eq!(counters.drops[&Drop::Malformed], 1);
        assert_eq!(counters.tunneled_packets, 1);
        running.abort();
    }
}
