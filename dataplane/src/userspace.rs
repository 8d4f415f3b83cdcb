//! The forwarder in user space: packets through a TUN device and UDP sockets.
//!
//! [`transmit`] sends by the tunnel's rules, [`batch`] what goes together, [`feedback`] is what
//! sources and engines are told when a packet does not get through.

mod batch;
mod feedback;
mod transmit;
mod waiting;

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use aero_protocol::address::LinkLayerAddress;
use aero_protocol::forwarding::{Change, Disposition, Drop, Held, Inner, Table};
use aero_protocol::tunnel::ecn::{self, Ecn};
use aero_protocol::tunnel::header::{self, Outer};
use aero_protocol::tunnel::path::{self, Paths};
use aero_protocol::tunnel::reassembly::{Limits, Outcome, Reassembler, Refusal};
use aero_protocol::wire::encapsulation::{FragmentShim, Payload, demux};
use aero_protocol::wire::icmp_error::Problem;
use aero_protocol::wire::{Class, WireError, classify};
use ipnet::IpNet;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinSet;

use crate::counters::{Counters, Snapshot};
use crate::ebpf::ip_in_ip::IpInIp;
use crate::table::ForwardingTable;
use crate::trigger::{Trigger, Triggers};
use crate::tun::Outgoing;
use crate::underlay::{Underlay, UnderlayError};
use batch::Out;
use feedback::Bucket;

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

/// How a forwarder sends and answers.
#[derive(Debug, Clone, Default)]
pub struct Config {
    /// What is taken for granted about the underlay.
    pub paths: path::Config,
    /// Bounds of reassembly.
    pub reassembly: Limits,
    /// Taken off the outer TTL when a packet is encapsulated again. 0 is the draft's rule, by
    /// which only routers of the underlay count; 1 ends loops on an underlay without routers too.
    pub ttl_step: u8,
    /// Sources of ICMP errors that are handed to this node's network layer. Where none is of the
    /// family, the address is used that the packet went to, as the kernel's own tunnels do.
    pub error_sources: Vec<IpAddr>,
    /// Told about ICMP errors of the underlay; when it is full they are dropped.
    pub underlay_errors: Option<mpsc::Sender<UnderlayError>>,
}

/// What is looked at for each packet.
#[derive(Debug, Default)]
struct State {
    table: Table,
    paths: Paths,
    held: Held<waiting::Waiting>,
}

/// A user-space forwarder.
pub struct Forwarder {
    config: Config,
    state: RwLock<State>,
    reassembler: Mutex<Reassembler>,
    identification: AtomicU32,
    errors: Mutex<Bucket>,
    probes: Notify,
    counters: Counters,
    underlay: Arc<Underlay>,
    device: Option<crate::tun::Device>,
    control: mpsc::Sender<Control>,
    triggers: OnceLock<Triggers>,
    ip_in_ip: OnceLock<Arc<IpInIp>>,
    ip_in_ip_opened: Notify,
    released: waiting::Released,
}

impl Forwarder {
    /// A forwarder between the underlay and a TUN device; a Server has none. Control packets go
    /// to `control`; when that is full they are dropped, as the senders retransmit.
    pub fn new(
        underlay: Arc<Underlay>,
        device: Option<crate::tun::Device>,
        control: mpsc::Sender<Control>,
    ) -> Arc<Self> {
        Self::with_config(underlay, device, control, Config::default())
    }

    /// The same, with a configuration.
    pub fn with_config(
        underlay: Arc<Underlay>,
        device: Option<crate::tun::Device>,
        control: mpsc::Sender<Control>,
        config: Config,
    ) -> Arc<Self> {
        Arc::new(Self {
            state: RwLock::new(State {
                table: Table::default(),
                paths: Paths::new(config.paths),
                held: Held::default(),
            }),
            released: waiting::Released::default(),
            reassembler: Mutex::new(Reassembler::new(config.reassembly)),
            identification: AtomicU32::new(rand::random()),
            errors: Mutex::default(),
            probes: Notify::new(),
            counters: Counters::default(),
            underlay,
            device,
            control,
            triggers: OnceLock::new(),
            ip_in_ip: OnceLock::new(),
            ip_in_ip_opened: Notify::new(),
            config,
        })
    }

    /// From now on reports packets that go by a Server for want of a direct path. To be asked
    /// once: a second receiver hears nothing.
    pub fn triggers(&self) -> mpsc::Receiver<Trigger> {
        let (triggers, receiver) = Triggers::channel();
        let _ = self.triggers.set(triggers);
        receiver
    }

    /// Whether anybody asked for that.
    pub(crate) fn has_triggers(&self) -> bool {
        self.triggers.get().is_some()
    }

    /// Reports a packet that has a longer way than it need have, seen here or by the forwarder in
    /// the kernel.
    pub(crate) fn trigger(&self, inner: Inner, packet: &[u8]) {
        if let Some(triggers) = self.triggers.get() {
            triggers.offer(inner, packet, Instant::now());
        }
    }

    /// From now on takes in what comes without UDP, too. False if it did already.
    pub(crate) fn serve_ip_in_ip(&self, sockets: IpInIp) -> bool {
        let first = self.ip_in_ip.set(Arc::new(sockets)).is_ok();
        self.ip_in_ip_opened.notify_one();
        first
    }

    /// The tunnels without UDP, if there are any.
    pub(crate) fn ip_in_ip(&self) -> Option<&IpInIp> {
        self.ip_in_ip.get().map(Arc::as_ref)
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
            let this = Arc::clone(&self);
            tasks.spawn(async move { this.serve_errors(n).await });
        }
        for n in 0..self.device.as_ref().map_or(0, crate::tun::Device::queues) {
            let this = Arc::clone(&self);
            tasks.spawn(async move { this.serve_device(n).await });
        }
        let this = Arc::clone(&self);
        tasks.spawn(async move { this.serve_probes().await });
        let this = Arc::clone(&self);
        tasks.spawn(async move { this.serve_released().await });
        let this = Arc::clone(&self);
        tasks.spawn(async move { this.await_ip_in_ip().await });
        let this = Arc::clone(&self);
        tasks.spawn(async move {
            loop {
                tokio::time::sleep(EXPIRE_EVERY).await;
                let now = Instant::now();
                this.change(|state| {
                    state.table.expire(now);
                    state.paths.expire(now);
                });
                this.reassembler.lock().unwrap_or_else(PoisonError::into_inner).expire(now);
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
        let mut whole = Vec::new();
        let mut device = Outgoing::default();
        if let Err(e) = self.underlay.merge(n) {
            tracing::debug!("datagrams come one by one: {e}");
        }
        loop {
            // An error here is the echo of something sent before; the socket goes on.
            let Ok(received) = self.underlay.receive(n, &mut buffer).await else { continue };
            let Some(payload) = buffer.get_mut(..received.length) else { continue };
            if payload.is_empty() {
                self.counters.dropped(Drop::Malformed);
                continue;
            }
            let (from, outer) = (received.from, received.outer);
            let mut out = Out::new(device, n);
            for datagram in payload.chunks_mut(received.segment) {
                match demux(datagram) {
                    Ok(Payload::Packet(packet)) => {
                        let shim = datagram.len() - packet.len();
                        let packet = datagram.get_mut(shim..).unwrap_or_default();
                        self.arrived(from, packet, outer, &mut out).await;
                    }
                    Ok(Payload::Fragment { shim, data }) => {
                        let fragment = (from, outer, shim, data);
                        if let Some(outer) = self.reassemble(fragment, &mut whole) {
                            // What came before it goes before it.
                            let mut alone = Out::new(self.flush(out).await, n);
                            self.arrived(from, &mut whole, outer, &mut alone).await;
                            out = Out::new(self.flush(alone).await, n);
                        }
                    }
                    Ok(
                        Payload::Protocol { .. } | Payload::Signed { .. } | Payload::FirstEdition,
                    )
                    | Err(WireError::Unsupported) => self.counters.dropped(Drop::Shim),
                    Err(_) => self.counters.dropped(Drop::Malformed),
                }
            }
            device = self.flush(out).await;
        }
    }

    /// Takes in a fragment of the tunnel. If it was the last one the packet is in `whole`, and
    /// this is its outer header.
    fn reassemble(
        &self,
        (from, outer, shim, data): (LinkLayerAddress, Outer, FragmentShim, &[u8]),
        whole: &mut Vec<u8>,
    ) -> Option<Outer> {
        let known = self.look(|state| state.paths.knows(from));
        let mut waiting = self.reassembler.lock().unwrap_or_else(PoisonError::into_inner);
        match waiting.accept(from, known, outer, shim, data, Instant::now(), whole) {
            Outcome::Waiting => None,
            Outcome::Whole(header) => {
                self.counters.reassembled_packets.fetch_add(1, Relaxed);
                Some(header)
            }
            Outcome::Refused(why) => {
                self.counters.dropped(match why {
                    Refusal::Congestion => Drop::Congestion,
                    _ => Drop::Fragment,
                });
                None
            }
        }
    }

    /// A packet out of a tunnel of whatever form.
    async fn arrived<'a>(
        &self,
        from: LinkLayerAddress,
        packet: &'a mut [u8],
        outer: Outer,
        out: &mut Out<'a>,
    ) {
        match classify(packet) {
            Class::Control => self.receive_control(from, packet),
            Class::Data => self.ingress(from, packet, outer, out).await,
            Class::Other => self.counters.dropped(Drop::Malformed),
        }
    }

    /// Takes in what comes without UDP, from when somebody wants that.
    async fn await_ip_in_ip(self: Arc<Self>) -> io::Result<()> {
        while self.ip_in_ip.get().is_none() {
            self.ip_in_ip_opened.notified().await;
        }
        let sockets = self.ip_in_ip.get().map_or(0, |i| i.len());
        let mut tasks = JoinSet::new();
        for n in 0..sockets {
            let this = Arc::clone(&self);
            tasks.spawn(async move { this.serve_ip_in_ip_socket(n).await });
        }
        while tasks.join_next().await.is_some() {}
        std::future::pending().await
    }

    async fn serve_ip_in_ip_socket(&self, n: usize) {
        let Some(ip_in_ip) = self.ip_in_ip() else { return };
        let mut buffer = vec![0; DATAGRAM];
        let mut device = Outgoing::default();
        loop {
            let Ok((from, range, outer)) = ip_in_ip.receive(n, &mut buffer).await else { continue };
            if let Some(packet) = buffer.get_mut(range) {
                let mut out = Out::new(device, n);
                self.arrived(from, packet, outer, &mut out).await;
                device = self.flush(out).await;
            }
        }
    }

    fn receive_control(&self, from: LinkLayerAddress, packet: &[u8]) {
        self.counters.control_packets.fetch_add(1, Relaxed);
        let now = Instant::now();
        if self.ip_in_ip().is_some_and(|i| i.received_control(packet)) {
            return;
        }
        if self.look(|state| state.paths.awaits(from))
            && self.change(|state| state.paths.received_control(from, packet, now))
        {
            return;
        }
        let _ = self.control.try_send(Control { from, packet: packet.to_vec() });
    }

    async fn serve_device(&self, n: usize) -> io::Result<()> {
        let Some(device) = &self.device else { return Ok(()) };
        let mut packets = device.packets();
        let mut room = Outgoing::default();
        loop {
            device.receive(n, &mut packets).await?;
            let mut out = Out::new(room, n);
            for packet in packets.iter() {
                self.egress(packet, &mut out).await;
            }
            room = self.flush(out).await;
        }
    }

    /// A packet of this node's network layer.
    async fn egress<'a>(&self, packet: &'a [u8], out: &mut Out<'a>) {
        self.go_on().await;
        self.leave(packet, out).await;
    }

    async fn leave<'a>(&self, packet: &'a [u8], out: &mut Out<'a>) {
        let (Some(inner), Some(outer)) = (Inner::of(packet), Outer::entering(packet)) else {
            self.counters.dropped(Drop::Malformed);
            return;
        };
        let now = Instant::now();
        let egress = self.look(|state| state.table.egress_path(inner, now));
        match egress.disposition {
            Disposition::Tunnel(to) => self.forward(to, packet, outer, out).await,
            Disposition::Deliver => self.counters.dropped(Drop::NoRoute),
            Disposition::Drop(why) => self.refuse(why, packet).await,
            Disposition::Hold { prefix, first } => self.wait((prefix, first), None, packet, outer),
        }
        if egress.by_server {
            self.trigger(inner, packet);
        }
    }

    /// A user's packet out of a tunnel. `packet` may have padding behind it.
    async fn ingress<'a>(
        &self,
        from: LinkLayerAddress,
        packet: &'a mut [u8],
        outer: Outer,
        out: &mut Out<'a>,
    ) {
        self.go_on().await;
        self.pass(from, packet, outer, out).await;
    }

    async fn pass<'a>(
        &self,
        from: LinkLayerAddress,
        packet: &'a mut [u8],
        outer: Outer,
        out: &mut Out<'a>,
    ) {
        let length = header::length(packet);
        let inner = Inner::of(packet);
        let packet = length.and_then(|length| packet.get_mut(..length));
        let (Some(packet), Some(inner)) = (packet, inner) else {
            self.counters.dropped(Drop::Malformed);
            return;
        };
        match self.look(|state| state.table.ingress(from, inner, Instant::now())) {
            Disposition::Tunnel(to) => match outer.carried_on(self.config.ttl_step) {
                Some(outer) => {
                    self.forward(to, packet, outer, out).await;
                    // Of a Server: it could go by somebody else.
                    if self.device.is_none() {
                        self.trigger(inner, packet);
                    }
                }
                None => self.refuse(Drop::OuterTtl, packet).await,
            },
            Disposition::Deliver => {
                if ecn::leave_tunnel(packet, Ecn::of(outer.traffic_class)) {
                    self.sign_error(packet);
                    self.deliver(packet, out);
                } else {
                    self.counters.dropped(Drop::Congestion);
                }
            }
            Disposition::Drop(why) => self.refuse(why, packet).await,
            Disposition::Hold { prefix, first } => {
                self.wait((prefix, first), Some(from), packet, outer);
            }
        }
    }

    /// Hands a packet to this node's network layer.
    fn deliver(&self, packet: &[u8], out: &mut Out<'_>) {
        if self.device.is_none() {
            return self.counters.dropped(Drop::NotForUs);
        }
        self.counters.delivered(packet.len());
        out.deliver(packet);
    }

    /// Sends a packet into a tunnel, or tells its source that it is too big.
    async fn forward<'a>(
        &self,
        to: LinkLayerAddress,
        packet: &'a [u8],
        outer: Outer,
        out: &mut Out<'a>,
    ) {
        if let Err(mtu) = self.transmit_with(to, packet, outer, out).await {
            self.counters.dropped(Drop::TooBig);
            self.tell_source(Problem::PacketTooBig { mtu }, packet).await;
        }
    }

    /// Drops a packet, and tells its source where that helps.
    async fn refuse(&self, why: Drop, packet: &[u8]) {
        self.counters.dropped(why);
        match why {
            Drop::NoRoute | Drop::Unreachable => {
                self.tell_source(Problem::NoRoute, packet).await;
            }
            Drop::OuterTtl => self.tell_source(Problem::HopLimitExceeded, packet).await,
            _ => {}
        }
    }

    fn look<R>(&self, ask: impl FnOnce(&State) -> R) -> R {
        ask(&self.state.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn change<R>(&self, change: impl FnOnce(&mut State) -> R) -> R {
        change(&mut self.state.write().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ForwardingTable for Forwarder {
    fn apply(&self, change: &Change) {
        self.change(|state| self.released.apply(state, change));
    }

    fn take_used(&self) -> Vec<(IpNet, IpNet)> {
        self.look(|state| state.table.take_used())
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
        assert_eq!(counters.drops[&Drop::Shim], 1);
        assert_eq!(counters.tunneled_packets, 1);
        running.abort();
    }
}
