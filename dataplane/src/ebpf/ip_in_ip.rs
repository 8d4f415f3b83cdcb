//! Tunnels without UDP: the raw sockets, and who is told when a path is proved
//! (`protocol::tunnel::ip_in_ip` has the rules).

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use aero_protocol::address::LinkLayerAddress;
use aero_protocol::tunnel::header::Outer;
use aero_protocol::tunnel::ip_in_ip::{Probe, Prober, Proof};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use crate::message;

/// IPv6 in whatever: the protocol's number.
const IPV6: i32 = 41;
/// Proofs that wait to be put into the kernel; one that finds no room is renewed soon.
const WAITING: usize = 1024;

/// The prober, with the sockets that its probes leave by.
#[derive(Debug)]
pub(crate) struct IpInIp {
    sockets: Vec<(IpAddr, AsyncFd<Socket>)>,
    /// Own UDP port: who has the same is reached without one too.
    port: u16,
    prober: Mutex<Prober>,
    proofs: mpsc::Sender<Proof>,
}

impl IpInIp {
    /// Opens a raw socket for each of this node's addresses. Needs `CAP_NET_RAW`, and a runtime.
    ///
    /// # Errors
    /// As the kernel says.
    pub fn open(
        addresses: impl Iterator<Item = IpAddr>,
        port: u16,
    ) -> io::Result<(Self, mpsc::Receiver<Proof>)> {
        let sockets = addresses.map(|ip| {
            let socket = open(ip)?;
            // SAFETY: the socket owns its descriptor, which is the same as long as it is
            // registered.
            Ok((ip, unsafe { AsyncFd::register(socket) }.map_err(io::Error::other)?))
        });
        let (proofs, receiver) = mpsc::channel(WAITING);
        let sockets = sockets.collect::<io::Result<_>>()?;
        Ok((Self { sockets, port, prober: Mutex::default(), proofs }, receiver))
    }

    fn prober(&self) -> MutexGuard<'_, Prober> {
        self.prober.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many sockets there are.
    pub fn len(&self) -> usize {
        self.sockets.len()
    }

    /// The engine sends a solicitation or an advertisement.
    pub fn sent_control(&self, to: LinkLayerAddress, packet: &[u8]) {
        if to.port == self.port {
            self.prober().sent_control(to, packet, Instant::now());
        }
    }

    /// A control packet came. True if it was an answer to a probe.
    pub fn received_control(&self, packet: &[u8]) -> bool {
        let mut prober = self.prober();
        if !prober.awaits() {
            return false;
        }
        let proof = prober.received_control(packet, Instant::now());
        drop(prober);
        if let Some(proof) = proof {
            let _ = self.proofs.try_send(proof);
        }
        proof.is_some()
    }

    /// There is traffic straight to these neighbours: sends the probes that are due.
    pub fn used(&self, neighbors: impl Iterator<Item = LinkLayerAddress>) {
        let now = Instant::now();
        let mut prober = self.prober();
        for neighbor in neighbors {
            prober.used(neighbor, now);
        }
        let mut probes = Vec::new();
        while let Some(probe) = prober.poll(now, &mut rand::rng()) {
            probes.push(probe);
        }
        prober.expire(now);
        drop(prober);
        for probe in probes {
            // One that does not leave is one that is not answered.
            let _ = self.send(&probe);
        }
    }

    fn send(&self, probe: &Probe) -> io::Result<()> {
        let of_family = self.sockets.iter().find(|(ip, _)| ip.is_ipv4() == probe.to.ip.is_ipv4());
        let (_, socket) = of_family.ok_or(io::ErrorKind::AddrNotAvailable)?;
        socket.get_ref().send_to(&probe.packet, &SocketAddr::new(probe.to.ip, 0).into()).map(drop)
    }

    /// The next packet on the n-th socket: who sent it, where it is in the buffer, and its outer
    /// header.
    ///
    /// # Errors
    /// As the kernel says, and for what is no packet.
    pub async fn receive(
        &self,
        n: usize,
        buffer: &mut [u8],
    ) -> io::Result<(LinkLayerAddress, std::ops::Range<usize>, Outer)> {
        let (ip, socket) = self.sockets.get(n).ok_or(io::ErrorKind::NotFound)?;
        let receive = |socket: &Socket| message::receive(socket.as_raw_fd(), buffer, 0);
        let message = socket.async_io(Interest::READABLE, receive).await?;
        let from = message.peer.ok_or(io::ErrorKind::InvalidData)?;
        let from = LinkLayerAddress::new(from.ip, self.port);
        let mut outer = Outer { ttl: 0, traffic_class: 0, flow_label: 0 };
        if ip.is_ipv4() {
            // The kernel has checked the header, which comes with the packet.
            let header = buffer.get(..20).ok_or(io::ErrorKind::InvalidData)?;
            let length = header.first().map_or(0, |b| usize::from(b & 0xf) * 4);
            outer.traffic_class = header.get(1).copied().unwrap_or(0);
            outer.ttl = header.get(8).copied().unwrap_or(0);
            return Ok((from, length.min(message.length)..message.length, outer));
        }
        for (level, kind, data) in message.control() {
            let value = message::int(data).and_then(|v| u8::try_from(v).ok()).unwrap_or(0);
            match (level, kind) {
                (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => outer.ttl = value,
                (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => outer.traffic_class = value,
                _ => {}
            }
        }
        Ok((from, 0..message.length, outer))
    }
}

fn open(ip: IpAddr) -> io::Result<Socket> {
    let domain = if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(IPV6)))?;
    let fd = socket.as_raw_fd();
    if ip.is_ipv4() {
        socket.set_ttl_v4(255)?;
    } else {
        socket.set_unicast_hops_v6(255)?;
        message::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT, 1)?;
        message::set_option(fd, libc::IPPROTO_IPV6, libc::IPV6_RECVTCLASS, 1)?;
    }
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(ip, 0).into())?;
    Ok(socket)
}
