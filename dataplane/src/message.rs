//! `sendmsg` and `recvmsg` with control messages: the outer header fields of a datagram, and the
//! queue of ICMP errors. All calls to the kernel of [`crate::underlay`] are here.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::RawFd;

use aero_protocol::address::LinkLayerAddress;
use libc::c_int;

/// `struct sockaddr_in6`, the larger of the two.
const NAME: usize = size_of::<libc::sockaddr_in6>();
/// Room for the control messages that are asked for: at most four of 32 bytes, or one error
/// with an address.
const CONTROL: usize = 160;
const HEADER: usize = size_of::<libc::cmsghdr>();

const fn aligned(length: usize) -> usize {
    length.next_multiple_of(size_of::<usize>())
}

/// Control messages to be sent.
#[derive(Debug)]
pub(crate) struct ControlBuffer {
    bytes: [u8; 96],
    length: usize,
}

impl ControlBuffer {
    pub(crate) fn new() -> Self {
        Self { bytes: [0; 96], length: 0 }
    }

    /// Adds a control message that holds an int; three messages fit.
    pub(crate) fn push(&mut self, level: c_int, kind: c_int, value: c_int) {
        self.push_bytes(level, kind, &value.to_ne_bytes());
    }

    /// Adds a control message that holds a half of an int.
    pub(crate) fn push_short(&mut self, level: c_int, kind: c_int, value: u16) {
        self.push_bytes(level, kind, &value.to_ne_bytes());
    }

    fn push_bytes(&mut self, level: c_int, kind: c_int, data: &[u8]) {
        let length = HEADER + data.len();
        let Some(space) = self.bytes.get_mut(self.length..self.length + aligned(length)) else {
            return;
        };
        put(space, 0, &length.to_ne_bytes());
        put(space, HEADER - 8, &level.to_ne_bytes());
        put(space, HEADER - 4, &kind.to_ne_bytes());
        put(space, HEADER, data);
        self.length += aligned(length);
    }
}

fn put(to: &mut [u8], at: usize, what: &[u8]) {
    if let Some(place) = to.get_mut(at..at + what.len()) {
        place.copy_from_slice(what);
    }
}

/// The address as the kernel has it, and its length.
fn name_of(to: LinkLayerAddress, flow_label: u32) -> ([u8; NAME], usize) {
    let mut name = [0; NAME];
    put(&mut name, 2, &to.port.to_be_bytes());
    let (family, length) = match to.ip {
        IpAddr::V4(a) => {
            put(&mut name, 4, &a.octets());
            (libc::AF_INET, size_of::<libc::sockaddr_in>())
        }
        IpAddr::V6(a) => {
            put(&mut name, 4, &flow_label.to_be_bytes());
            put(&mut name, 8, &a.octets());
            (libc::AF_INET6, NAME)
        }
    };
    put(&mut name, 0, &libc::sa_family_t::try_from(family).unwrap_or(0).to_ne_bytes());
    (name, length)
}

fn address_of(name: &[u8]) -> Option<LinkLayerAddress> {
    let family = u16::from_ne_bytes(name.get(..2)?.try_into().ok()?);
    let port = u16::from_be_bytes(name.get(2..4)?.try_into().ok()?);
    let ip: IpAddr = match c_int::from(family) {
        libc::AF_INET => Ipv4Addr::from(<[u8; 4]>::try_from(name.get(4..8)?).ok()?).into(),
        libc::AF_INET6 => Ipv6Addr::from(<[u8; 16]>::try_from(name.get(8..24)?).ok()?).into(),
        _ => return None,
    };
    Some(LinkLayerAddress::new(ip, port))
}

/// Most parts of one call.
pub(crate) const PARTS: usize = 64;

/// Sends a datagram made of several parts; or several, if the control message says how long each
/// is.
pub(crate) fn send(
    socket: RawFd,
    parts: &[&[u8]],
    to: LinkLayerAddress,
    flow_label: u32,
    control: &ControlBuffer,
) -> io::Result<()> {
    let (mut name, name_length) = name_of(to, flow_label);
    let none = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
    let mut vectors = [none; PARTS];
    let mut count = 0;
    for (vector, part) in vectors.iter_mut().zip(parts.iter().filter(|p| !p.is_empty())) {
        *vector = libc::iovec { iov_base: part.as_ptr().cast_mut().cast(), iov_len: part.len() };
        count += 1;
    }
    // SAFETY: all zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = name.as_mut_ptr().cast();
    header.msg_namelen = libc::socklen_t::try_from(name_length).unwrap_or(0);
    header.msg_iov = vectors.as_mut_ptr();
    header.msg_iovlen = count;
    header.msg_control = control.bytes.as_ptr().cast_mut().cast();
    header.msg_controllen = control.length;
    // SAFETY: every pointer is to memory that outlives the call, with the length beside it; the
    // kernel only reads through them here.
    let sent = unsafe { libc::sendmsg(socket, &raw const header, libc::MSG_NOSIGNAL) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// A datagram, or an error from the queue, as received.
#[derive(Debug)]
pub(crate) struct Message {
    /// Bytes written to the buffer.
    pub(crate) length: usize,
    /// Its source; of an error the destination of the datagram that it is about.
    pub(crate) peer: Option<LinkLayerAddress>,
    control: [u8; CONTROL],
    control_length: usize,
}

/// Receives without waiting.
pub(crate) fn receive(socket: RawFd, buffer: &mut [u8], flags: c_int) -> io::Result<Message> {
    let mut name = [0u8; NAME];
    let mut message = Message { length: 0, peer: None, control: [0; CONTROL], control_length: 0 };
    let mut vector = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    // SAFETY: all zero is a valid msghdr.
    let mut header: libc::msghdr = unsafe { std::mem::zeroed() };
    header.msg_name = name.as_mut_ptr().cast();
    header.msg_namelen = libc::socklen_t::try_from(NAME).unwrap_or(0);
    header.msg_iov = &raw mut vector;
    header.msg_iovlen = 1;
    header.msg_control = message.control.as_mut_ptr().cast();
    header.msg_controllen = CONTROL;
    // SAFETY: every pointer is to memory that outlives the call and is not otherwise used during
    // it, with the length beside it.
    let received = unsafe { libc::recvmsg(socket, &raw mut header, flags | libc::MSG_DONTWAIT) };
    message.length = usize::try_from(received).map_err(|_| io::Error::last_os_error())?;
    message.control_length = header.msg_controllen.min(CONTROL);
    let name_length = usize::try_from(header.msg_namelen).unwrap_or(0);
    message.peer = name.get(..name_length.min(NAME)).and_then(address_of);
    Ok(message)
}

impl Message {
    /// Its control messages: level, type, data.
    pub(crate) fn control(&self) -> impl Iterator<Item = (c_int, c_int, &[u8])> {
        let mut rest = self.control.get(..self.control_length).unwrap_or_default();
        std::iter::from_fn(move || {
            let length = usize::from_ne_bytes(rest.get(..size_of::<usize>())?.try_into().ok()?);
            let level = int(rest.get(HEADER - 8..)?)?;
            let kind = int(rest.get(HEADER - 4..)?)?;
            let data = rest.get(HEADER..length)?;
            rest = rest.get(aligned(length)..).unwrap_or_default();
            Some((level, kind, data))
        })
    }
}

/// The int at the beginning; a single byte (as `IP_TOS` comes) counts too.
pub(crate) fn int(bytes: &[u8]) -> Option<c_int> {
    match bytes {
        [b] => Some(c_int::from(*b)),
        [a, b, c, d, ..] => Some(c_int::from_ne_bytes([*a, *b, *c, *d])),
        _ => None,
    }
}

/// Sets an option that is an int.
pub(crate) fn set_option(socket: RawFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    // SAFETY: the value is an int that outlives the call, and its length is given.
    let outcome = unsafe {
        libc::setsockopt(
            socket,
            level,
            name,
            (&raw const value).cast(),
            libc::socklen_t::try_from(size_of::<c_int>()).unwrap_or(4),
        )
    };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Asks for, or with 0 does without, super-packets from a TUN device.
pub(crate) fn set_tun_offload(device: RawFd, what: libc::c_uint) -> io::Result<()> {
    // SAFETY: this request takes its argument by value.
    let outcome = unsafe { libc::ioctl(device, libc::TUNSETOFFLOAD, what) };
    if outcome == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_survives_the_kernels_form() {
        for text in ["192.0.2.1:8060", "[2001:db8::1]:8061"] {
            let l2: LinkLayerAddress = text.parse::<std::net::SocketAddr>().unwrap().into();
            let (name, length) = name_of(l2, 0x12345);
            assert_eq!(address_of(&name[..length]), Some(l2));
        }
        assert_eq!(address_of(&[]), None);
    }

    #[test]
    fn control_messages_written_are_read_back() {
        let mut buffer = ControlBuffer::new();
        buffer.push(libc::IPPROTO_IP, libc::IP_TTL, 7);
        buffer.push(libc::IPPROTO_IP, libc::IP_TOS, 0xbb);
        let mut message =
            Message { length: 0, peer: None, control: [0; CONTROL], control_length: buffer.length };
        message.control[..buffer.length].copy_from_slice(&buffer.bytes[..buffer.length]);
        let read: Vec<_> = message.control().map(|(l, k, d)| (l, k, int(d).unwrap())).collect();
        assert_eq!(
            read,
            [(libc::IPPROTO_IP, libc::IP_TTL, 7), (libc::IPPROTO_IP, libc::IP_TOS, 0xbb)]
        );
        message.control[0] = 255;
        assert_eq!(message.control().count(), 0, "a length that leaves the buffer");
    }
}
