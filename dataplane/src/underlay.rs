//! UDP sockets on the underlay, one per address of this node.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use aero_protocol::address::LinkLayerAddress;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::UdpSocket;

/// Asked-for size of the socket buffers; the kernel bounds it.
const BUFFER: usize = 4 << 20;

/// The node's side of the underlay. Sends from the address of the destination's family, so a
/// neighbour sees the source that it knows this node by.
#[derive(Debug)]
pub struct Underlay {
    sockets: Vec<(IpAddr, UdpSocket)>,
    port: u16,
}

impl Underlay {
    /// Binds `port` on each address.
    ///
    /// # Errors
    /// If an address cannot be bound, with the address in the text.
    pub fn bind(addresses: &[IpAddr], port: u16) -> io::Result<Self> {
        let mut sockets = Vec::new();
        for ip in addresses {
            let socket = bind(*ip, port)
                .map_err(|e| io::Error::new(e.kind(), format!("UDP {ip} port {port}: {e}")))?;
            sockets.push((*ip, socket));
        }
        Ok(Self { sockets, port })
    }

    /// How many sockets there are.
    pub fn len(&self) -> usize {
        self.sockets.len()
    }

    /// True without any socket.
    pub fn is_empty(&self) -> bool {
        self.sockets.is_empty()
    }

    /// This node's addresses.
    pub fn addresses(&self) -> impl Iterator<Item = LinkLayerAddress> {
        self.sockets.iter().map(|(ip, _)| LinkLayerAddress::new(*ip, self.port))
    }

    /// Whether a neighbour's family can be sent to.
    pub fn reaches(&self, to: IpAddr) -> bool {
        self.sockets.iter().any(|(ip, _)| ip.is_ipv4() == to.is_ipv4())
    }

    /// Receives a datagram on the n-th socket.
    ///
    /// # Errors
    /// As the kernel says; ICMP errors about earlier datagrams come here too and mean nothing.
    pub async fn receive(
        &self,
        n: usize,
        buffer: &mut [u8],
    ) -> io::Result<(usize, LinkLayerAddress)> {
        let (_, socket) = self.sockets.get(n).ok_or(io::ErrorKind::NotFound)?;
        let (length, from) = socket.recv_from(buffer).await?;
        Ok((length, from.into()))
    }

    /// Sends a datagram.
    ///
    /// # Errors
    /// As the kernel says, and if this node has no address of the destination's family.
    pub async fn send(&self, packet: &[u8], to: LinkLayerAddress) -> io::Result<()> {
        let of_family = self.sockets.iter().find(|(ip, _)| ip.is_ipv4() == to.ip.is_ipv4());
        let (_, socket) = of_family.ok_or(io::ErrorKind::AddrNotAvailable)?;
        socket.send_to(packet, SocketAddr::from(to)).await.map(drop)
    }
}

fn bind(ip: IpAddr, port: u16) -> io::Result<UdpSocket> {
    let domain = if ip.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if ip.is_ipv6() {
        socket.set_only_v6(true)?;
        accept_zero_checksums(&socket)?;
    }
    // Bounded by net.core.*mem_max; smaller buffers only mean more loss in bursts.
    let _ = socket.set_recv_buffer_size(BUFFER);
    let _ = socket.set_send_buffer_size(BUFFER);
    socket.set_nonblocking(true)?;
    socket.bind(&SocketAddr::new(ip, port).into())?;
    UdpSocket::from_std(socket.into())
}

/// Other implementations send checksums of zero over IPv6, as RFC 6935 allows for tunnels and
/// draft -48 asks for; Linux drops such datagrams unless told not to.
fn accept_zero_checksums(socket: &Socket) -> io::Result<()> {
    let one: libc::c_int = 1;
    // SAFETY: the descriptor is open, and the value is an int that outlives the call.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_UDP,
            UDP_NO_CHECK6_RX,
            std::ptr::from_ref(&one).cast(),
            libc::socklen_t::try_from(size_of::<libc::c_int>()).unwrap_or(4),
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// `linux/udp.h`.
const UDP_NO_CHECK6_RX: libc::c_int = 102;
