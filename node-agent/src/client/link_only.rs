//! The AERO link without the Client: for DHCPv6 clients that know nothing of AERO.
//!
//! Such a program sends its messages to All_DHCP_Relay_Agents_and_Servers on the AERO interface,
//! which is a link like any other to it. What multicast means on this link is draft -48 section
//! 3.5: there is none, so each Server gets the message by unicast. The hop limit 1 that stock
//! clients send with is set to 255: encapsulation copies it outward, and the first router of
//! the underlay would drop it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};

use aero_dataplane::tun;
use aero_dataplane::underlay::Received;
use aero_protocol::address::{ALL_DHCP_SERVERS, BOOTSTRAP_ADDRESS, LinkLayerAddress};
use aero_protocol::tunnel::header::Outer;
use aero_protocol::wire::dhcpv6::{Kind, Message};
use aero_protocol::wire::ip::{DHCP_SERVER_PORT, HOP_LIMIT, Packet, Payload};
use aero_protocol::wire::{Class, classify};
use aero_telemetry::admin::{self, Readiness};
use anyhow::Context as _;
use axum::Router;
use prometheus_client::registry::Registry;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use tokio_util::sync::CancellationToken;

use super::{ClientArgs, bind, mtu, servers};
use crate::attach::{self, Netns};

/// Largest datagram.
const DATAGRAM: usize = 65_536;

/// What is known of the link.
#[derive(Debug, Default)]
struct Link {
    servers: Vec<LinkLayerAddress>,
    /// By the link-local addresses that their answers come from.
    known: BTreeMap<Ipv6Addr, LinkLayerAddress>,
    /// The Server that has delegated a prefix last: data goes there.
    chosen: Option<LinkLayerAddress>,
}

impl Link {
    /// Where a packet of this host goes, made ready for the link. Nowhere: it does not belong on
    /// the link (the kernel's own multicast, for example).
    fn outgoing(&self, packet: &mut [u8]) -> Vec<LinkLayerAddress> {
        match classify(packet) {
            Class::Data => self.chosen.into_iter().collect(),
            Class::Other => Vec::new(),
            Class::Control => {
                let Ok(Packet { destination, payload, .. }) = Packet::parse(packet) else {
                    return Vec::new();
                };
                if !matches!(payload, Payload::Udp { destination: DHCP_SERVER_PORT, .. }) {
                    return Vec::new();
                }
                // No checksum covers the hop limit.
                if let Some(hop_limit) = packet.get_mut(7) {
                    *hop_limit = HOP_LIMIT;
                }
                match self.known.get(&destination) {
                    Some(server) => vec![*server],
                    None if destination == ALL_DHCP_SERVERS => self.servers.clone(),
                    None => Vec::new(),
                }
            }
        }
    }

    /// Whether a packet from the link is for this host.
    fn incoming(&mut self, from: LinkLayerAddress, packet: &[u8]) -> bool {
        if !self.servers.contains(&from) {
            return false;
        }
        match classify(packet) {
            Class::Data => true,
            Class::Other => false,
            Class::Control => {
                let Ok(Packet { source, payload, .. }) = Packet::parse(packet) else {
                    return false;
                };
                let Payload::Udp { source: DHCP_SERVER_PORT, data, .. } = payload else {
                    return false;
                };
                self.known.insert(source, from);
                if let Ok(message) = Message::parse(data)
                    && message.kind == Kind::Reply
                {
                    let mut prefixes = message.ia_pd.iter().flat_map(|ia| &ia.prefixes);
                    if prefixes.any(|p| p.valid > 0) {
                        self.chosen = Some(from);
                    }
                }
                true
            }
        }
    }
}

/// Runs the link until the token is cancelled.
pub(super) async fn run(
    args: &ClientArgs,
    finder: servers::Finder,
    token: CancellationToken,
) -> anyhow::Result<()> {
    let underlay = bind(args.port)?;
    let servers = finder.find_first(&token).await;
    let (_, mtu) = mtu(args, servers.first().copied()).await?;
    let device = tun::open_plain(&args.device, mtu)?;
    attach::route_asps(&args.device, &[], attach::METRIC_OF_CLIENT).await?;
    link_local(&args.device).await?;
    let readiness = Readiness::default();
    let stop = tokio_util::sync::CancellationToken::new();
    let serving =
        admin::serve(args.admin, readiness, Registry::default(), Router::new(), stop.clone());
    let mut admin = tokio::spawn(serving);
    tracing::info!(?servers, mtu, "the link is at {}; run a DHCPv6 client on it", args.device);
    let mut link = Link { servers, ..Link::default() };
    let mut from_host = vec![0; DATAGRAM];
    let mut from_link = [vec![0; DATAGRAM], vec![0; DATAGRAM]];
    let [first, second] = &mut from_link;
    loop {
        tokio::select! {
            length = device.recv(&mut from_host) => {
                let Some(packet) = from_host.get_mut(..length?) else { continue };
                for to in link.outgoing(packet) {
                    let Some(outer) = Outer::entering(packet) else { continue };
                    if let Err(e) = underlay.send(&[], packet, to, outer, true).await {
                        tracing::debug!(%to, "a packet could not be sent: {e}");
                    }
                }
            }
            received = underlay.receive(0, first) => {
                deliver(&mut link, &device, received, first).await;
            }
            received = underlay.receive(1, second), if underlay.len() > 1 => {
                deliver(&mut link, &device, received, second).await;
            }
            ended = &mut admin => ended??,
            () = token.cancelled() => break,
        }
    }
    stop.cancel();
    if !args.keep {
        attach::remove_device(&args.device).await?;
    }
    Ok(())
}

async fn deliver(
    link: &mut Link,
    device: &tun::PlainDevice,
    received: std::io::Result<Received>,
    buffer: &[u8],
) {
    // An error is the echo of something sent before.
    let Ok(Received { length, from, .. }) = received else { return };
    let Some(packet) = buffer.get(..length) else { return };
    if link.incoming(from, packet)
        && let Err(e) = device.send(packet).await
    {
        tracing::debug!(%from, "a packet could not be delivered: {e}");
    }
}

/// The reserved link-local address, by which a Client without a prefix is known on the link.
async fn link_local(device: &str) -> anyhow::Result<()> {
    let host = Netns::own()?;
    let link = host.link(device).await?.with_context(|| format!("{device} is gone"))?;
    let address = IpAddr::V6(BOOTSTRAP_ADDRESS);
    let mut request = host.handle.address().add(link.header.index, address, 64);
    request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    request.replace().execute().await.context("the link-local address")
}

#[cfg(test)]
mod tests {
    use super::*;
    use aero_protocol::wire::dhcpv6::{IaPd, Prefix};
    use aero_protocol::wire::{ip, nd};

    fn l2(text: &str) -> LinkLayerAddress {
        text.parse::<std::net::SocketAddr>().unwrap().into()
    }

    fn link() -> Link {
        let servers = vec![l2("192.0.2.11:8060"), l2("192.0.2.12:8060")];
        Link { servers, ..Link::default() }
    }

    fn dhcp(source: (Ipv6Addr, u16), to: (Ipv6Addr, u16), message: &Message) -> Vec<u8> {
        ip::udp(source, to, &message.emit().unwrap()).unwrap()
    }

    #[test]
    fn a_solicit_reaches_every_server_with_a_hop_limit_that_survives_routers() {
        let solicit = Message::new(Kind::Solicit, [1, 2, 3]);
        let mut packet = dhcp((BOOTSTRAP_ADDRESS, 546), (ALL_DHCP_SERVERS, 547), &solicit);
        packet[7] = 1;
        let link = link();
        assert_eq!(link.outgoing(&mut packet), link.servers);
        assert_eq!(packet[7], 255);
        assert!(Packet::parse(&packet).is_ok(), "the checksum still holds");
    }

    #[test]
    fn what_the_kernel_says_by_itself_on_the_link_stays_on_the_host() {
        let link = link();
        let nd = nd::Nd {
            source: BOOTSTRAP_ADDRESS,
            destination: "fe80::2".parse().unwrap(),
            message: nd::NdMessage::Solicitation { target: "fe80::2".parse().unwrap() },
            options: vec![],
        };
        assert!(link.outgoing(&mut nd.emit().unwrap()).is_empty());
        assert!(link.outgoing(&mut [0x60; 20]).is_empty());
    }

    #[test]
    fn answers_come_from_servers_only_and_data_goes_to_the_one_that_delegated() {
        let mut link = link();
        let (first, second) = (link.servers[0], link.servers[1]);
        let id: Ipv6Addr = "fe80::12".parse().unwrap();
        let mut reply = Message::new(Kind::Reply, [1, 2, 3]);
        let prefix =
            Prefix { prefix: "2001:db8:0:1::/64".parse().unwrap(), preferred: 40, valid: 40 };
        reply.ia_pd.push(IaPd { id: 1, prefixes: vec![prefix], ..IaPd::default() });
        let packet = dhcp((id, 547), (BOOTSTRAP_ADDRESS, 546), &reply);
        let mut data = vec![0x60, 0, 0, 0, 0, 0, 59, 64];
        data.extend("2001:db8:0:1::1".parse::<Ipv6Addr>().unwrap().octets());
        data.extend("2001:db8:0:2::1".parse::<Ipv6Addr>().unwrap().octets());
        assert!(link.outgoing(&mut data.clone()).is_empty(), "no Server has delegated yet");
        assert!(!link.incoming(l2("192.0.2.66:8060"), &packet));
        assert!(link.incoming(second, &packet));
        assert_eq!(link.outgoing(&mut data), [second]);
        assert_eq!(data[7], 64, "the hop limit of data is the host's");
        let release = Message::new(Kind::Release, [1, 2, 4]);
        let mut packet = dhcp((BOOTSTRAP_ADDRESS, 546), (id, 547), &release);
        assert_eq!(link.outgoing(&mut packet), [second], "unicast goes to that Server only");
        assert!(link.incoming(first, &data));
        assert!(!link.incoming(l2("192.0.2.11:8061"), &data), "the port counts too");
    }
}
