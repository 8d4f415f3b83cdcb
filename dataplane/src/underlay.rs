//! UDP sockets on the underlay, one per address of this node.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use aero_protocol::address::LinkLayerAddress;
use aero_protocol::tunnel::header::Outer;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::Interest;
use tokio::net::UdpSocket;

use crate::message::{self, ControlBuffer};

/// Asked-for size of the socket buffers; the kernel bounds it.
const BUFFER: usize = 4 << 20;

/// The node's side of the underlay. Sends from the address of the destination's family, so a
/// neighbour sees the source that it knows this node by.
#[derive(Debug)]
pub struct Underlay {
    endpoints: Vec<Endpoint>,
    port: u16,
}

#[derive(Debug)]
struct Endpoint {
    ip: IpAddr,
    socket: UdpSocket,
    /// IPv4 only: what `IP_MTU_DISCOVER` is set to. It belongs to the socket, not to the
    /// datagram, so it is changed under this lock when the next one needs the other.
    dont_fragment: Mutex<bool>,
    /// Cleared if the kernel refuses flow labels, as it does while any process of the node holds
    /// an exclusive one.
    flow_labels: AtomicBool,
    /// Cleared if several datagrams cannot be sent at once.
    merged: AtomicBool,
}

/// A datagram's outer source, length and header fields.
#[derive(Debug, Clone, Copy)]
pub struct Received {
    /// Outer source.
    pub from: LinkLayerAddress,
    /// Length of the payload.
    pub length: usize,
    /// The payload is that of several datagrams, each of this length but for the last one, which
    /// may be shorter. As `length` if there is only one.
    pub segment: usize,
    /// Fields of the outer header.
    pub outer: Outer,
}

/// What the underlay reports about a datagram that was sent to a neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It was too big: for the underlay behind this MTU, or for this node's own interface.
    TooBig {
        /// Outer size that would go; 0 if the router did not say.
        mtu: usize,
    },
    /// Destination Unreachable of any other kind.
    Unreachable,
    /// The outer TTL ran out on the way.
    TimeExceeded,
}

/// An ICMP error of the underlay about a neighbour. Whoever can send to this node can forge it:
/// a hint to look, not a proof.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct UnderlayError {
    /// Where the datagram went.
    pub neighbor: LinkLayerAddress,
    /// What became of it.
    pub trouble: Trouble,
}

/// An error with what it quotes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reported {
    pub(crate) error: UnderlayError,
    /// Bytes of the datagram that the error quoted; without them for `local`.
    pub(crate) length: usize,
    /// This node's own kernel says so.
    pub(crate) local: bool,
}

impl Underlay {
    /// Binds `port` on each address.
    ///
    /// # Errors
    /// If an address cannot be bound, with the address in the text.
    pub fn bind(addresses: &[IpAddr], port: u16) -> io::Result<Self> {
        let mut endpoints = Vec::new();
        for ip in addresses {
            let socket = bind(*ip, port)
                .map_err(|e| io::Error::new(e.kind(), format!("UDP {ip} port {port}: {e}")))?;
            endpoints.push(Endpoint {
                ip: *ip,
                socket,
                dont_fragment: Mutex::new(true),
                flow_labels: AtomicBool::new(true),
                merged: AtomicBool::new(true),
            });
        }
        Ok(Self { endpoints, port })
    }

    /// How many sockets there are.
    pub fn len(&self) -> usize {
        self.endpoints.len()
    }

    /// True without any socket.
    pub fn is_empty(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// This node's addresses.
    pub fn addresses(&self) -> impl Iterator<Item = LinkLayerAddress> {
        self.endpoints.iter().map(|e| LinkLayerAddress::new(e.ip, self.port))
    }

    /// Whether a neighbour's family can be sent to.
    pub fn reaches(&self, to: IpAddr) -> bool {
        self.endpoints.iter().any(|e| e.ip.is_ipv4() == to.is_ipv4())
    }

    /// The endpoint that sends to a neighbour.
    fn towards(&self, to: LinkLayerAddress) -> io::Result<&Endpoint> {
        let of_family = self.endpoints.iter().find(|e| e.ip.is_ipv4() == to.ip.is_ipv4());
        of_family.ok_or_else(|| io::ErrorKind::AddrNotAvailable.into())
    }

    /// Receives a datagram on the n-th socket.
    ///
    /// # Errors
    /// As the kernel says; ICMP errors about earlier datagrams come here too and mean nothing.
    pub async fn receive(&self, n: usize, buffer: &mut [u8]) -> io::Result<Received> {
        let socket = &self.endpoints.get(n).ok_or(io::ErrorKind::NotFound)?.socket;
        let fd = socket.as_raw_fd();
        let message =
            socket.async_io(Interest::READABLE, || message::receive(fd, buffer, 0)).await?;
        let from = message.peer.ok_or(io::ErrorKind::InvalidData)?;
        let mut outer = Outer { ttl: 0, traffic_class: 0, flow_label: 0 };
        let mut segment = message.length;
        for (level, kind, data) in message.control() {
            let value = message::int(data).unwrap_or(0);
            let octet = u8::try_from(value).unwrap_or(0);
            match (level, kind) {
                (libc::IPPROTO_IP, libc::IP_TTL) | (libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT) => {
                    outer.ttl = octet;
                }
                (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
                    outer.traffic_class = octet;
                }
                (libc::IPPROTO_IPV6, libc::IPV6_FLOWINFO) => {
                    let label = u32::from_be_bytes(value.to_ne_bytes()) & 0xf_ffff;
                    outer.flow_label = label;
                }
                (libc::SOL_UDP, libc::UDP_GRO) => {
                    segment = usize::try_from(value).unwrap_or(segment);
                }
                _ => {}
            }
        }
        let segment = segment.max(1);
        Ok(Received { from, length: message.length, segment, outer })
    }

    /// From now on the n-th socket takes several datagrams of one size at once, as the kernel
    /// merges them.
    pub(crate) fn merge(&self, n: usize) -> io::Result<()> {
        let endpoint = self.endpoints.get(n).ok_or(io::ErrorKind::NotFound)?;
        message::set_option(endpoint.socket.as_raw_fd(), libc::SOL_UDP, libc::UDP_GRO, 1)
    }

    /// Sends packets that are all of one length, but for the last one, which may be shorter, each
    /// in a datagram of its own. They are never fragmented on the way.
    ///
    /// # Errors
    /// As [`Underlay::send`].
    pub(crate) async fn send_many(
        &self,
        packets: &[&[u8]],
        to: LinkLayerAddress,
        outer: Outer,
    ) -> io::Result<()> {
        let endpoint = self.towards(to)?;
        for together in packets.chunks(message::PARTS) {
            if together.len() > 1 && endpoint.merged.load(Relaxed) {
                let segment = together.first().and_then(|p| u16::try_from(p.len()).ok());
                let send = || endpoint.send(together, segment, to, outer, true);
                let outcome = endpoint.socket.async_io(Interest::WRITABLE, send).await;
                match outcome.as_ref().map_err(io::Error::raw_os_error) {
                    Ok(()) => continue,
                    // The device or the kernel cannot cut them.
                    Err(Some(libc::EIO | libc::EINVAL)) => endpoint.merged.store(false, Relaxed),
                    Err(_) => return outcome,
                }
            }
            for packet in together {
                let send = || endpoint.send(&[packet], None, to, outer, true);
                endpoint.socket.async_io(Interest::WRITABLE, send).await?;
            }
        }
        Ok(())
    }

    /// Has ICMP errors about what is sent queued on the n-th socket. Whoever asks for this must
    /// take them by [`Underlay::receive_error`], or they fill the socket's buffer.
    pub(crate) fn queue_errors(&self, n: usize) -> io::Result<()> {
        let endpoint = self.endpoints.get(n).ok_or(io::ErrorKind::NotFound)?;
        let (level, name) = if endpoint.ip.is_ipv4() {
            (libc::IPPROTO_IP, libc::IP_RECVERR)
        } else {
            (libc::IPPROTO_IPV6, libc::IPV6_RECVERR)
        };
        message::set_option(endpoint.socket.as_raw_fd(), level, name, 1)
    }

    /// Takes the next ICMP error about what was sent by the n-th socket; what it quotes goes to
    /// `buffer`.
    pub(crate) async fn receive_error(&self, n: usize, buffer: &mut [u8]) -> io::Result<Reported> {
        let socket = &self.endpoints.get(n).ok_or(io::ErrorKind::NotFound)?.socket;
        let fd = socket.as_raw_fd();
        loop {
            let message = socket
                .async_io(Interest::ERROR, || message::receive(fd, buffer, libc::MSG_ERRQUEUE))
                .await?;
            let said = message.control().find_map(|(level, kind, data)| match (level, kind) {
                (libc::IPPROTO_IP, libc::IP_RECVERR) | (libc::IPPROTO_IPV6, libc::IPV6_RECVERR) => {
                    trouble(data)
                }
                _ => None,
            });
            if let (Some(neighbor), Some((trouble, local))) = (message.peer, said) {
                let error = UnderlayError { neighbor, trouble };
                return Ok(Reported { error, length: message.length, local });
            }
        }
    }

    /// Sends `shim` and `packet` in one datagram.
    ///
    /// # Errors
    /// As the kernel says, and if this node has no address of the destination's family.
    pub async fn send(
        &self,
        shim: &[u8],
        packet: &[u8],
        to: LinkLayerAddress,
        outer: Outer,
        dont_fragment: bool,
    ) -> io::Result<()> {
        let endpoint = self.towards(to)?;
        let send = || endpoint.send(&[shim, packet], None, to, outer, dont_fragment);
        endpoint.socket.async_io(Interest::WRITABLE, send).await
    }
}

impl Endpoint {
    /// Sends one datagram made of parts; or with `segment` several, each of that length but for the
    /// last one, which may be shorter.
    fn send(
        &self,
        parts: &[&[u8]],
        segment: Option<u16>,
        to: LinkLayerAddress,
        outer: Outer,
        dont_fragment: bool,
    ) -> io::Result<()> {
        let fd = self.socket.as_raw_fd();
        let mut control = ControlBuffer::new();
        if let Some(length) = segment {
            control.push_short(libc::SOL_UDP, libc::UDP_SEGMENT, length);
        }
        let (ttl, class) = (outer.ttl.into(), outer.traffic_class.into());
        let guard = if to.ip.is_ipv4() {
            control.push(libc::IPPROTO_IP, libc::IP_TTL, ttl);
            control.push(libc::IPPROTO_IP, libc::IP_TOS, class);
            let mut set = self.dont_fragment.lock().unwrap_or_else(PoisonError::into_inner);
            if *set != dont_fragment {
                set_dont_fragment(fd, dont_fragment)?;
                *set = dont_fragment;
            }
            Some(set)
        } else {
            control.push(libc::IPPROTO_IPV6, libc::IPV6_HOPLIMIT, ttl);
            control.push(libc::IPPROTO_IPV6, libc::IPV6_TCLASS, class);
            None
        };
        let label = if self.flow_labels.load(Relaxed) { outer.flow_label } else { 0 };
        let mut outcome = message::send(fd, parts, to, label, &control);
        if let Err(e) = &outcome {
            match e.raw_os_error() {
                Some(libc::EAGAIN) => {}
                Some(libc::EINVAL) if label != 0 => {
                    self.flow_labels.store(false, Relaxed);
                    outcome = message::send(fd, parts, to, 0, &control);
                }
                // Maybe an ICMP error about an earlier datagram, which the kernel hands to whoever
                // calls next.
                _ => outcome = message::send(fd, parts, to, label, &control),
            }
        }
        drop(guard);
        outcome
    }
}

fn bind(ip: IpAddr, port: u16) -> io::Result<UdpSocket> {
    let domain = if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    let fd = socket.as_raw_fd();
    let on = |level, name| message::set_option(fd, level, name, 1);
    if ip.is_ipv6() {
        socket.set_only_v6(true)?;
        // Other implementations send checksums of zero over IPv6, as RFC 6935 allows for tunnels
        // and draft -48 asks for; Linux drops such datagrams unless told not to.
        on(libc::SOL_UDP, UDP_NO_CHECK6_RX)?;
        let level = libc::IPPROTO_IPV6;
        on(level, libc::IPV6_RECVHOPLIMIT)?;
        on(level, libc::IPV6_RECVTCLASS)?;
        on(level, libc::IPV6_FLOWINFO)?;
        on(level, libc::IPV6_FLOWINFO_SEND)?;
        // Never fragmented by this node: what does not surely fit goes in tunnel fragments.
        on(level, libc::IPV6_DONTFRAG)?;
        let probe = libc::IPV6_PMTUDISC_PROBE;
        message::set_option(fd, level, libc::IPV6_MTU_DISCOVER, probe)?;
    } else {
        on(libc::IPPROTO_IP, libc::IP_RECVTTL)?;
        on(libc::IPPROTO_IP, libc::IP_RECVTOS)?;
        set_dont_fragment(fd, true)?;
    }
    // Bounded by net.core.*mem_max; smaller buffers only mean more loss in bursts.
    let _ = socket.set_recv_buffer_size(BUFFER);
    let _ = socket.set_send_buffer_size(BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(ip, port).into())?;
    UdpSocket::from_std(socket.into())
}

/// With DF, or without and then fragmented by whoever has to. PROBE sets DF and does not look at
/// the kernel's own path MTU, which is not the one that was proved.
fn set_dont_fragment(socket: RawFd, dont_fragment: bool) -> io::Result<()> {
    let value = if dont_fragment { libc::IP_PMTUDISC_PROBE } else { libc::IP_PMTUDISC_DONT };
    message::set_option(socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, value)
}

/// Reads `struct sock_extended_err` of `linux/errqueue.h`; true if it is this node's own.
fn trouble(bytes: &[u8]) -> Option<(Trouble, bool)> {
    let [e0, e1, e2, e3, origin, kind, code, _, i0, i1, i2, i3, ..] = bytes else { return None };
    let errno = u32::from_ne_bytes([*e0, *e1, *e2, *e3]);
    let info = u32::from_ne_bytes([*i0, *i1, *i2, *i3]);
    let too_big = Trouble::TooBig { mtu: usize::try_from(info).unwrap_or(usize::MAX) };
    match (*origin, *kind, *code) {
        (libc::SO_EE_ORIGIN_LOCAL, ..) => {
            (c_errno(errno) == libc::EMSGSIZE).then_some((too_big, true))
        }
        (libc::SO_EE_ORIGIN_ICMP, 3, 4) | (libc::SO_EE_ORIGIN_ICMP6, 2, _) => {
            Some((too_big, false))
        }
        (libc::SO_EE_ORIGIN_ICMP, 3, _) | (libc::SO_EE_ORIGIN_ICMP6, 1, _) => {
            Some((Trouble::Unreachable, false))
        }
        (libc::SO_EE_ORIGIN_ICMP, 11, _) | (libc::SO_EE_ORIGIN_ICMP6, 3, _) => {
            Some((Trouble::TimeExceeded, false))
        }
        _ => None,
    }
}

fn c_errno(errno: u32) -> libc::c_int {
    libc::c_int::try_from(errno).unwrap_or(0)
}

/// `linux/udp.h`.
const UDP_NO_CHECK6_RX: libc::c_int = 102;
