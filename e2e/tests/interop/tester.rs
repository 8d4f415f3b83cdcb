//! The tester: speaks the tunnel protocol from a plain socket, at any address and in any role.

use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use aero_protocol::address::{
    ALL_DHCP_SERVERS, BOOTSTRAP_ADDRESS, Duid, LinkLayerAddress, aero_address,
};
use aero_protocol::wire::aero_options::AeroOption;
use aero_protocol::wire::dhcpv6::{IaPd, Kind, Message, OPTION_VENDOR_OPTS, Prefix};
use aero_protocol::wire::ip::{self, Packet, Payload};
use aero_protocol::wire::nd::{Nd, NdMessage, NdOption};
use ipnet::IpNet;

use super::net::{Host, SOON};

/// Time in which a packet that is to be dropped would have come, had it been forwarded: each
/// test has another packet overtake it, so this is only for what nothing can follow.
pub const QUIET: Duration = Duration::from_millis(400);

pub fn l2(text: &str) -> LinkLayerAddress {
    text.parse::<std::net::SocketAddr>().unwrap().into()
}

pub fn acp(n: u16) -> IpNet {
    format!("2001:db8:0:{n:x}::/64").parse().unwrap()
}

/// First address of a Client's prefix.
pub fn inner(n: u16) -> Ipv6Addr {
    format!("2001:db8:0:{n:x}::1").parse().unwrap()
}

pub fn duid(n: u16) -> Duid {
    Duid::from_uuid(uuid::Uuid::parse_str(&duid_text(n)).unwrap())
}

pub fn duid_text(n: u16) -> String {
    format!("00000000-0000-4000-8000-{n:012x}")
}

/// A row of a Server's table.
pub fn row(n: u16) -> String {
    format!("- {{duid: {}, prefixes: [\"{}\"]}}\n", duid_text(n), acp(n))
}

/// A table of Clients 1 to 6, anybody being believed.
pub fn table(lease: u32) -> String {
    let rows: String = (1..=6).map(row).collect();
    format!(
        "servicePrefixes: [\"2001:db8::/32\"]\nauthentication: None\nleaseSeconds: {lease}\n\
         clients:\n{rows}"
    )
}

/// An inner packet between two hosts; `text` tells it from others.
pub fn data(from: Ipv6Addr, to: Ipv6Addr, hop_limit: u8, text: &str) -> Vec<u8> {
    let mut packet = ip::udp((from, 7), (to, 7), text.as_bytes()).unwrap();
    packet[7] = hop_limit;
    packet
}

/// The text of such a packet.
pub fn text_of(packet: &[u8]) -> String {
    match Packet::parse(packet).map(|p| p.payload) {
        Ok(Payload::Udp { data, .. }) => String::from_utf8_lossy(data).into_owned(),
        other => format!("{other:?}"),
    }
}

/// One end of the tester.
pub struct Tester {
    pub socket: UdpSocket,
    transaction: std::cell::Cell<u32>,
}

impl Tester {
    pub fn at(host: &Host<'_>, address: &str) -> Self {
        Self { socket: host.udp(address), transaction: std::cell::Cell::new(1) }
    }

    pub fn send(&self, to: LinkLayerAddress, packet: &[u8]) {
        self.socket.send_to(packet, std::net::SocketAddr::from(to)).unwrap();
    }

    /// The next datagram within a time.
    pub fn receive(&self, within: Duration) -> Option<(LinkLayerAddress, Vec<u8>)> {
        let end = Instant::now() + within;
        let mut buffer = vec![0; 65_536];
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            self.socket.set_read_timeout(Some(left)).unwrap();
            // An error is the echo of an earlier datagram, or the end of the time.
            if let Ok((length, from)) = self.socket.recv_from(&mut buffer) {
                return Some((from.into(), buffer[..length].to_vec()));
            }
        }
    }

    /// The next datagram that `wanted` takes, within [`SOON`].
    pub fn await_packet<T>(
        &self,
        what: &str,
        mut wanted: impl FnMut(LinkLayerAddress, &[u8]) -> Option<T>,
    ) -> T {
        let end = Instant::now() + SOON;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let (from, packet) = self.receive(left).unwrap_or_else(|| panic!("no {what} came"));
            if let Some(found) = wanted(from, &packet) {
                return found;
            }
        }
    }

    /// The text of the next data packet.
    pub fn next_text(&self) -> String {
        self.await_packet("data", |_, p| {
            let text = text_of(p);
            (aero_protocol::wire::classify(p) == aero_protocol::wire::Class::Data).then_some(text)
        })
    }

    /// Whether a data packet of this text comes within [`QUIET`].
    pub fn hears(&self, text: &str) -> bool {
        let end = Instant::now() + QUIET;
        while let Some((_, p)) = self.receive(end.saturating_duration_since(Instant::now())) {
            if text_of(&p) == text {
                return true;
            }
        }
        false
    }

    /// A DHCPv6 message of Client `n`, as this project's Clients say it.
    pub fn message(&self, kind: Kind, n: u16) -> Message {
        let number = self.transaction.replace(self.transaction.get() + 1).to_be_bytes();
        let mut m = Message::new(kind, [number[1], number[2], number[3]]);
        m.client = Some(duid(n));
        m.requested = vec![OPTION_VENDOR_OPTS];
        m.elapsed = Some(0);
        // It names the prefix that it wants: a refusal is never longer than what was asked.
        let wanted = Prefix { prefix: acp(n), preferred: 0, valid: 0 };
        m.ia_pd.push(IaPd { id: 1, prefixes: vec![wanted], ..IaPd::default() });
        m.aero.push(AeroOption::LinkRequest { link_id: 0, preference: 3 });
        m
    }

    /// Sends a message as a Client does.
    pub fn say(&self, to: LinkLayerAddress, source: Ipv6Addr, message: &Message) {
        self.send(to, &client_packet(source, message));
    }

    /// Sends a message and waits for its answer: the outer and inner source, and the answer.
    pub fn ask_from(
        &self,
        source: Ipv6Addr,
        to: LinkLayerAddress,
        message: &Message,
    ) -> (LinkLayerAddress, Ipv6Addr, Message) {
        self.say(to, source, message);
        let wanted = |from, packet: &[u8]| {
            let (inner, answer) = dhcp_of(packet)?;
            let ours = answer.transaction == message.transaction
                && matches!(answer.kind, Kind::Reply | Kind::Advertise);
            ours.then_some((from, inner, answer))
        };
        self.await_packet("DHCPv6 answer", wanted)
    }

    pub fn ask(&self, to: LinkLayerAddress, message: &Message) -> Message {
        self.ask_from(BOOTSTRAP_ADDRESS, to, message).2
    }

    /// Gets Client `n` its lease by Solicit with Rapid Commit; the Server's DUID.
    pub fn bind(&self, to: LinkLayerAddress, n: u16) -> Duid {
        let mut m = self.message(Kind::Solicit, n);
        m.rapid_commit = true;
        let reply = self.ask(to, &m);
        assert_eq!(reply.kind, Kind::Reply);
        assert_eq!(prefixes(&reply), [acp(n)]);
        reply.server.unwrap()
    }

    /// A message of Client `n` to the Server that gave it the lease.
    pub fn to_server(&self, kind: Kind, n: u16, server: &Duid) -> Message {
        let mut m = self.message(kind, n);
        m.server = Some(server.clone());
        m.ia_pd[0].prefixes = vec![Prefix { prefix: acp(n), preferred: 0, valid: 0 }];
        m
    }

    /// Solicits a neighbour from Client `n`'s address; the answer if one comes.
    pub fn solicit_neighbor(&self, to: LinkLayerAddress, n: u16, target: Ipv6Addr) -> Option<Nd> {
        let nonce = NdOption::Nonce(vec![n.to_be_bytes()[1], 1, 2, 3, 4, 5]);
        let nd = Nd {
            source: aero_address(acp(n)),
            destination: target,
            message: NdMessage::Solicitation { target },
            options: vec![nonce.clone()],
        };
        self.send(to, &nd.emit().unwrap());
        let end = Instant::now() + QUIET;
        while let Some((_, p)) = self.receive(end.saturating_duration_since(Instant::now())) {
            if let Some(nd) = nd_of(&p)
                && nd.options.contains(&nonce)
            {
                return Some(nd);
            }
        }
        None
    }

    /// Answers the next DHCPv6 message of a kind as a Server would, with Client `n`'s prefix; what
    /// it was, where from, and when.
    pub fn serve(&self, kind: Kind, n: u16, lease: u32) -> (LinkLayerAddress, Ipv6Addr, Message) {
        let (from, source, message) = self.await_packet(&format!("{kind:?}"), |from, packet| {
            let (source, message) = dhcp_of(packet)?;
            (message.kind == kind).then_some((from, source, message))
        });
        self.reply(from, source, &message, n, lease);
        (from, source, message)
    }

    /// The Server's answer to a message.
    pub fn reply(
        &self,
        to: LinkLayerAddress,
        source: Ipv6Addr,
        message: &Message,
        n: u16,
        lease: u32,
    ) {
        let mut reply = Message::new(Kind::Reply, message.transaction);
        reply.client.clone_from(&message.client);
        reply.server = Some(self.server_duid());
        reply.rapid_commit = message.rapid_commit;
        reply.ia_pd.push(IaPd {
            id: message.ia_pd[0].id,
            t1: lease / 2,
            t2: lease / 5 * 4,
            prefixes: vec![Prefix { prefix: acp(n), preferred: lease, valid: lease }],
            status: None,
        });
        reply.aero.push(AeroOption::LinkReply {
            link_id: 0,
            address: to,
            asps: vec!["2001:db8::/32".parse().unwrap()],
        });
        let packet =
            ip::udp((self.server_id(), 547), (source, 546), &reply.emit().unwrap()).unwrap();
        self.send(to, &packet);
    }

    /// The DUID of this end as a Server.
    pub fn server_duid(&self) -> Duid {
        let port = self.socket.local_addr().unwrap();
        let ip = LinkLayerAddress::from(port).ip_octets();
        Duid::from_bytes(&[&[0, 3, 0, 1], &ip[10..]].concat()).unwrap()
    }

    /// The link-local address of this end as a Server.
    pub fn server_id(&self) -> Ipv6Addr {
        match self.socket.local_addr().unwrap().ip() {
            IpAddr::V4(v4) => Ipv6Addr::from((0xfe80_u128 << 112) | u128::from(u32::from(v4))),
            IpAddr::V6(v6) => Ipv6Addr::from((0xfe80_u128 << 112) | (u128::from(v6) & 0xffff_ffff)),
        }
    }
}

/// A Client's message to the link's multicast address.
pub fn client_packet(source: Ipv6Addr, message: &Message) -> Vec<u8> {
    ip::udp((source, 546), (ALL_DHCP_SERVERS, 547), &message.emit().unwrap()).unwrap()
}

/// A DHCPv6 message with the inner address that it came from.
pub fn dhcp_of(packet: &[u8]) -> Option<(Ipv6Addr, Message)> {
    let packet = Packet::parse(packet).ok()?;
    let Payload::Udp { source: 546 | 547, data, .. } = packet.payload else { return None };
    Some((packet.source, Message::parse(data).ok()?))
}

pub fn nd_of(packet: &[u8]) -> Option<Nd> {
    Nd::parse(&Packet::parse(packet).ok()?).ok()
}

/// The delegated prefixes in an answer.
pub fn prefixes(message: &Message) -> Vec<IpNet> {
    let all = message.ia_pd.iter().flat_map(|ia| &ia.prefixes);
    all.filter(|p| p.valid > 0).map(|p| p.prefix).collect()
}
