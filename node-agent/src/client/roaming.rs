//! Notices that the host's underlay address has changed: micro-mobility (draft -48 section
//! 3.15.1), from the kernel's news about addresses and routes.
//!
//! What counts is the address that the kernel would send from to a Server. The engine then
//! rebinds at every Server at once, from the new address.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::Duration;

use aero_protocol::address::LinkLayerAddress;
use aero_protocol::client::Node;
use futures::StreamExt;
use rtnetlink::MulticastGroup;

use crate::driver::Driver;

/// A change comes as several messages (old address gone, route gone, new address, new route):
/// they are one.
const SETTLE: Duration = Duration::from_millis(20);
/// For news that the kernel could not deliver.
const LOOK: Duration = Duration::from_secs(2);

/// The source address that the kernel chooses for a destination; `None` if there is no way to it.
pub(super) fn source_towards(to: SocketAddr) -> Option<IpAddr> {
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // Connecting a UDP socket sends nothing; it only asks the routing table.
    socket.connect(to).ok()?;
    Some(socket.local_addr().ok()?.ip().to_canonical())
}

/// Which source leads to which Server.
#[derive(Debug, Default)]
struct Sources(BTreeMap<LinkLayerAddress, IpAddr>);

impl Sources {
    /// Takes what is so now, and tells whether a Server that was reached from one address is now
    /// reached from another. Without any way there is nothing to tell a Server, and the address
    /// before is kept to compare with the next.
    fn moved(
        &mut self,
        servers: &[LinkLayerAddress],
        source: impl Fn(LinkLayerAddress) -> Option<IpAddr>,
    ) -> bool {
        self.0.retain(|server, _| servers.contains(server));
        let mut moved = false;
        for server in servers {
            if let Some(ip) = source(*server)
                && let Some(before) = self.0.insert(*server, ip)
            {
                moved |= before != ip;
            }
        }
        moved
    }
}

/// Tells the engine from where each Server sees this host, if its signatures are to cover that: by
/// the kernel's choice, and with the port that is given.
pub(super) fn bind(driver: &Driver<Node>, servers: &[LinkLayerAddress], port: Option<u16>) {
    let Some(port) = port else { return };
    for server in servers {
        let own = source_towards((*server).into()).map(|ip| LinkLayerAddress::new(ip, port));
        driver.with(|node, _| node.set_outer_source(*server, own));
    }
}

/// Tells the engine of every change. `port`: see [`bind`].
///
/// # Errors
/// If netlink cannot be used.
pub(super) async fn follow(driver: &Driver<Node>, port: Option<u16>) -> anyhow::Result<()> {
    let (connection, _handle, mut news) = rtnetlink::new_multicast_connection(&[
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
        MulticastGroup::Link,
    ])?;
    let _connection = tokio_util::task::AbortOnDropHandle::new(tokio::spawn(connection));
    let mut sources = Sources::default();
    loop {
        let servers: Vec<LinkLayerAddress> =
            driver.with(|node, _| node.servers().map(|(l2, _)| l2).collect());
        // Before the engine says anything from there.
        bind(driver, &servers, port);
        if sources.moved(&servers, |s| source_towards(s.into())) {
            let now_from: Vec<IpAddr> = sources.0.values().copied().collect();
            tracing::info!(?now_from, "the underlay address has changed");
            driver.with(Node::underlay_changed);
        }
        tokio::select! {
            first = news.next() => {
                anyhow::ensure!(first.is_some(), "netlink has ended");
                tokio::time::sleep(SETTLE).await;
                while news.try_recv().is_ok() {}
            }
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn l2(text: &str) -> LinkLayerAddress {
        text.parse::<SocketAddr>().unwrap().into()
    }

    #[test]
    fn a_move_is_another_source_to_a_known_server_also_after_a_time_without_any() {
        let (a, b) = (l2("192.0.2.11:8060"), l2("192.0.2.12:8060"));
        let first: IpAddr = "192.0.2.1".parse().unwrap();
        let second: IpAddr = "192.0.2.33".parse().unwrap();
        let mut sources = Sources::default();
        assert!(!sources.moved(&[a], |_| Some(first)), "the first look tells nothing new");
        assert!(!sources.moved(&[a, b], |_| Some(first)), "a new Server is no move");
        assert!(!sources.moved(&[a, b], |_| None), "unplugged: nobody can be told");
        assert!(sources.moved(&[a, b], |_| Some(second)));
        assert!(!sources.moved(&[a, b], |_| Some(second)));
        assert!(!sources.moved(&[], |_| Some(first)));
        assert!(!sources.moved(&[a], |_| Some(first)), "forgotten with its Server");
    }

    #[test]
    fn the_source_towards_an_own_address_is_that_address() {
        let to: SocketAddr = "127.0.0.1:8060".parse().unwrap();
        assert_eq!(source_towards(to), Some(to.ip()));
    }
}
