//! The AERO interface in the kernel: addresses of the delegated prefixes, routes for the service
//! prefixes.

use std::collections::BTreeSet;
use std::net::IpAddr;

use aero_protocol::address::{Duid, LinkLayerAddress};
use aero_protocol::client::Node;
use aero_telemetry::admin::ReadyHandle;
use anyhow::Context as _;
use futures::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::RouteMessageBuilder;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::route::{RouteProtocol, RouteScope};

use crate::attach::{Netns, ROUTE_PROTOCOL};
use crate::driver::Driver;

/// The host's address in a prefix: its first behind the subnet-router anycast address; the only
/// one of a host prefix.
pub(super) fn host_address(prefix: IpNet) -> IpAddr {
    match prefix.trunc() {
        IpNet::V6(p) => IpAddr::V6((u128::from(p.addr()) | 1).into()),
        IpNet::V4(p) if p.prefix_len() >= 31 => IpAddr::V4(p.addr()),
        IpNet::V4(p) => IpAddr::V4((u32::from(p.addr()) | 1).into()),
    }
}

/// What the kernel is to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Wanted {
    addresses: BTreeSet<IpAddr>,
    routes: BTreeSet<IpNet>,
}

/// The interface, as far as it has been set up.
#[derive(Debug)]
pub(super) struct Interface {
    device: String,
    has: Wanted,
}

impl Interface {
    pub(super) fn new(device: &str) -> Self {
        Self { device: device.to_string(), has: Wanted::default() }
    }

    /// Brings what the engine learns to the kernel.
    ///
    /// # Errors
    /// If the kernel refuses it.
    pub(super) async fn follow(
        &mut self,
        driver: &Driver<Node>,
        client: &Duid,
        leased: &ReadyHandle,
    ) -> anyhow::Result<()> {
        let mut changes = driver.changes();
        loop {
            let (standing, asps, servers) = driver.with(|node, _| {
                let servers: Vec<LinkLayerAddress> = node.servers().map(|(l2, _)| l2).collect();
                (node.standing(client).unwrap_or_default(), node.asps().to_vec(), servers)
            });
            match (standing.served, standing.refusal) {
                (true, _) => leased.ready(),
                (false, Some(text)) => leased.not_ready(format!("refused: {text}")),
                (false, None) => leased.not_ready("no Server has answered"),
            }
            // A prefix keeps its address also while no Server has a lease of it: connections
            // wait, and go on if it comes back.
            if !standing.prefixes.is_empty() {
                self.bring(&wanted(&standing.prefixes, &asps, &servers)).await?;
            }
            changes.changed().await?;
        }
    }

    async fn bring(&mut self, wanted: &Wanted) -> anyhow::Result<()> {
        if *wanted == self.has {
            return Ok(());
        }
        let host = Netns::own()?;
        let link = host.link(&self.device).await?;
        let index = link.with_context(|| format!("{} is gone", self.device))?.header.index;
        for ip in wanted.addresses.difference(&self.has.addresses) {
            let length = if ip.is_ipv6() { 128 } else { 32 };
            let mut request = host.handle.address().add(index, *ip, length);
            let flags = AddressFlags::Nodad | AddressFlags::Noprefixroute;
            request.message_mut().attributes.push(AddressAttribute::Flags(flags));
            let done = request.replace().execute().await;
            done.with_context(|| format!("the address {ip} on {}", self.device))?;
        }
        for prefix in &wanted.routes {
            // Again for those that are there: the source may be another now.
            let source = wanted.addresses.iter().find(|ip| ip.is_ipv6() == is_ipv6(*prefix));
            let Some(source) = source else { continue };
            let route = route(*prefix, *source, index)?;
            let done = host.handle.route().add(route).replace().execute().await;
            done.with_context(|| format!("the route for {prefix}"))?;
        }
        for prefix in self.has.routes.difference(&wanted.routes) {
            let source = self.has.addresses.iter().find(|ip| ip.is_ipv6() == is_ipv6(*prefix));
            let Some(source) = source else { continue };
            let done = host.handle.route().del(route(*prefix, *source, index)?).execute().await;
            if let Err(e) = done {
                tracing::warn!(%prefix, "a route that is not wanted any more stays: {e}");
            }
        }
        let mut old = host.handle.address().get().set_link_index_filter(index).execute();
        while let Some(message) = old.try_next().await? {
            let ip = message.attributes.iter().find_map(|a| match a {
                AddressAttribute::Address(ip) => Some(*ip),
                _ => None,
            });
            // Also what a run before has left.
            if ip.is_some_and(|ip| !wanted.addresses.contains(&ip) && !is_link_local(ip)) {
                host.handle.address().del(message).execute().await?;
            }
        }
        self.has = wanted.clone();
        tracing::info!(addresses = ?wanted.addresses, routes = ?wanted.routes, "{} is set up", self.device);
        Ok(())
    }
}

fn is_ipv6(prefix: IpNet) -> bool {
    matches!(prefix, IpNet::V6(_))
}

fn is_link_local(ip: IpAddr) -> bool {
    matches!(ip, IpAddr::V6(v6) if v6.is_unicast_link_local())
}

fn route(
    prefix: IpNet,
    source: IpAddr,
    index: u32,
) -> anyhow::Result<rtnetlink::packet_route::route::RouteMessage> {
    let mut builder = RouteMessageBuilder::<IpAddr>::new()
        .destination_prefix(prefix.addr(), prefix.prefix_len())?
        .output_interface(index)
        .scope(if is_ipv6(prefix) { RouteScope::Universe } else { RouteScope::Link })
        .protocol(RouteProtocol::Other(ROUTE_PROTOCOL));
    builder = builder.pref_source(source)?;
    Ok(builder.build())
}

/// What follows from prefixes, service prefixes and Servers. A service prefix that holds a
/// Server's own underlay address would send the tunnel into itself.
fn wanted(prefixes: &[IpNet], asps: &[IpNet], servers: &[LinkLayerAddress]) -> Wanted {
    let swallows = |asp: &&IpNet| {
        let server = servers.iter().find(|s| asp.contains(&s.ip));
        if let Some(server) = server {
            tracing::error!(%asp, %server, "not routed: the Server's own address lies in it");
        }
        server.is_none()
    };
    Wanted {
        addresses: prefixes.iter().map(|p| host_address(*p)).collect(),
        routes: asps.iter().filter(swallows).copied().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_address_is_the_first_of_its_prefix() {
        let cases = [
            ("2001:db8:0:1::/64", "2001:db8:0:1::1"),
            ("2001:db8:0:100::/56", "2001:db8:0:100::1"),
            ("192.0.2.32/28", "192.0.2.33"),
            ("192.0.2.7/32", "192.0.2.7"),
        ];
        for (prefix, address) in cases {
            assert_eq!(host_address(prefix.parse().unwrap()).to_string(), address);
        }
    }

    #[test]
    fn a_service_prefix_that_holds_a_server_is_not_routed_into_the_tunnel() {
        let prefixes = ["2001:db8:0:1::/64".parse().unwrap()];
        let asps = ["2001:db8::/32".parse().unwrap(), "fd00::/48".parse().unwrap()];
        let inside = LinkLayerAddress::new("2001:db8:77::11".parse().unwrap(), 8060);
        let outside = LinkLayerAddress::new("192.0.2.11".parse().unwrap(), 8060);
        assert_eq!(wanted(&prefixes, &asps, &[outside]).routes.len(), 2);
        let kept = wanted(&prefixes, &asps, &[outside, inside]).routes;
        assert_eq!(kept.into_iter().collect::<Vec<_>>(), asps[1..]);
    }
}
