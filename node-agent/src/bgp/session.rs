//! BGP sessions over the AERO link: an interface with this node's link-local address of the link,
//! and what a daemon sends through it, to and from permanent neighbours.
//!
//! Nothing but BGP (TCP port 179) and BFD (UDP port 3784, RFC 5881) passes, and only between the
//! address of this node and that of a neighbour at that neighbour's underlay address. When this
//! program dies its sessions fall silent, and Relays forget its Clients.

use std::net::Ipv6Addr;
use std::sync::Arc;

use aero_dataplane::tun::{self, PlainDevice};
use aero_dataplane::userspace::{Control, Forwarder};
use aero_protocol::address::{LinkLayerAddress, ServerId};
use aero_protocol::relay::Relay;
use aero_protocol::server::Server;
use tokio::sync::mpsc;

use crate::attach;
use crate::driver::{Driver, Engine};

/// What fits any underlay without fragments, encapsulation included.
const MTU: u16 = aero_dataplane::MINIMUM_MTU;
const TCP: u8 = 6;
const UDP: u8 = 17;
const BGP: u16 = 179;
const BFD: u16 = 3784;

/// An engine with permanent neighbours that BGP is spoken to.
pub trait Speaks: Engine {
    /// The underlay address of a neighbour by its address on the link.
    fn speaker(&self, address: Ipv6Addr) -> Option<LinkLayerAddress>;
}

impl Speaks for Server {
    fn speaker(&self, address: Ipv6Addr) -> Option<LinkLayerAddress> {
        self.peers().find(|p| p.id.address() == address).map(|p| p.at)
    }
}

impl Speaks for Relay {
    fn speaker(&self, address: Ipv6Addr) -> Option<LinkLayerAddress> {
        self.servers().find(|(id, _)| id.address() == address).map(|(_, at)| at)
    }
}

/// The interface.
pub struct Sessions {
    device: PlainDevice,
    own: Ipv6Addr,
}

impl Sessions {
    /// Makes the interface, or takes the one that an earlier run has left.
    ///
    /// # Errors
    /// If it cannot be made.
    pub async fn open(name: &str, id: ServerId) -> anyhow::Result<Self> {
        let device = tun::open_plain(name, MTU)?;
        attach::link_local_device(name, id.address()).await?;
        Ok(Self { device, own: id.address() })
    }

    /// Takes what belongs to a session out of the control packets; the rest goes on to the engine.
    /// Sends what the daemon sends. Runs until the future is dropped.
    pub async fn run<E: Speaks>(
        &self,
        driver: &Driver<E>,
        forwarder: &Arc<Forwarder>,
        mut control: mpsc::Receiver<Control>,
        engine: mpsc::Sender<Control>,
    ) {
        let receive = async {
            while let Some(packet) = control.recv().await {
                let ends = session(&packet.packet);
                if let Some((source, destination)) = ends
                    && destination == self.own
                {
                    let known = driver.with(|e, _| e.speaker(source));
                    if known == Some(packet.from) {
                        // A daemon that is away misses it, and sends again.
                        let _ = self.device.send(&packet.packet).await;
                    } else {
                        tracing::debug!(from = %packet.from, %source, "BGP from no neighbour");
                    }
                } else {
                    // Full is as good as lost, as for the forwarder that filled it.
                    let _ = engine.try_send(packet);
                }
            }
        };
        let send = async {
            let mut buffer = vec![0; usize::from(MTU)];
            loop {
                let Ok(length) = self.device.recv(&mut buffer).await else { return };
                let Some(packet) = buffer.get(..length) else { continue };
                if let Some((source, destination)) = session(packet)
                    && source == self.own
                    && let Some(to) = driver.with(|e, _| e.speaker(destination))
                    && let Err(e) = forwarder.send_control(to, packet).await
                {
                    tracing::debug!(%to, "a BGP packet could not be sent: {e}");
                }
            }
        };
        tokio::join!(receive, send);
    }
}

/// Passes all control packets on to the engine, where there is no BGP.
pub async fn pass(mut control: mpsc::Receiver<Control>, engine: mpsc::Sender<Control>) {
    while let Some(packet) = control.recv().await {
        let _ = engine.try_send(packet);
    }
}

/// Source and destination of a packet of BGP or BFD; `None` for all else.
fn session(packet: &[u8]) -> Option<(Ipv6Addr, Ipv6Addr)> {
    let [first, _, _, _, _, _, next, _, rest @ ..] = packet else { return None };
    let (source, rest) = rest.split_first_chunk::<16>()?;
    let (destination, rest) = rest.split_first_chunk::<16>()?;
    let &[a, b, c, d, ..] = rest else { return None };
    let ports = [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])];
    let ours = match *next {
        TCP => ports.contains(&BGP),
        UDP => ports[1] == BFD,
        _ => false,
    };
    (first >> 4 == 6 && ours).then(|| ((*source).into(), (*destination).into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(next: u8, ports: [u16; 2]) -> Vec<u8> {
        let mut p = vec![0x60, 0, 0, 0, 0, 4, next, 255];
        p.extend("fe80::c000:20b".parse::<Ipv6Addr>().unwrap().octets());
        p.extend("fe80::c000:215".parse::<Ipv6Addr>().unwrap().octets());
        p.extend(ports.iter().flat_map(|p| p.to_be_bytes()));
        p
    }

    #[test]
    fn bgp_and_bfd_are_sessions_and_nothing_else_is() {
        let ends = ("fe80::c000:20b".parse().unwrap(), "fe80::c000:215".parse().unwrap());
        for (next, ports) in [(TCP, [179, 40000]), (TCP, [40000, 179]), (UDP, [49152, 3784])] {
            assert_eq!(session(&packet(next, ports)), Some(ends));
        }
        for (next, ports) in
            [(TCP, [22, 40000]), (UDP, [546, 547]), (UDP, [3784, 53]), (58, [179, 179])]
        {
            assert_eq!(session(&packet(next, ports)), None);
        }
        let whole = packet(TCP, [179, 40000]);
        for length in 0..whole.len() {
            assert_eq!(session(&whole[..length]), None);
        }
    }
}
