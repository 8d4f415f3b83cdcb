//! A pod's attachment: a pair of interfaces between the pod and the node, the stable address in
//! the pod, routes on both sides.
//!
//! The gateway looks the same on every node (`fe80::1`, one MAC), so a pod or VM that moves with
//! its neighbour cache goes on without asking. All neighbours are permanent entries: nothing is
//! solicited on this link, and no address waits for duplicate address detection.

mod netns;

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use ipnet::{IpNet, Ipv6Net};
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoVeth, LinkAttribute,
};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::{RouteAttribute, RouteProtocol, RouteScope};
use rtnetlink::{LinkUnspec, LinkVeth, RouteMessageBuilder};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

pub use netns::Netns;

/// Every host interface of ours starts with this, and nothing else is ever deleted.
pub const HOST_PREFIX: &str = "aero";
/// Routes of ours carry this protocol number.
pub(crate) const ROUTE_PROTOCOL: u8 = 86;
/// Metric of a Client's routes: what the kernel gives to those without.
pub const METRIC_OF_CLIENT: u32 = 0;
/// Metric of a Relay's routes. Where an agent and a Relay share a node they must not replace each
/// other's, and what the node's own pods send goes by the agent, which checks who sends it.
pub const METRIC_OF_RELAY: u32 = 2048;
/// MAC of the interface on the node.
pub const HOST_MAC: [u8; 6] = [0x02, 0xae, 0, 0, 0, 1];
/// MAC of the interface in the pod.
pub const POD_MAC: [u8; 6] = [0x02, 0xae, 0, 0, 0, 2];
/// The gateway, as the pod sees it.
const GATEWAY: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);
/// The pod, as the node sees it.
const POD: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 2);

/// What to make.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachSpec {
    /// Name of the interface on the node.
    pub host_ifname: String,
    /// The pod's network namespace.
    pub netns: PathBuf,
    /// Name of the interface in the pod.
    pub ifname: String,
    /// The pod's prefix.
    pub prefix: Ipv6Net,
    /// Service prefixes of the link, reached through this interface.
    pub asps: Vec<IpNet>,
    /// MTU of both interfaces.
    pub mtu: u32,
    /// An interface of the pod that carries the stable address too: the primary one, where the
    /// primary network gives no address of this family.
    pub also_on: Option<String>,
}

impl AttachSpec {
    /// The pod's stable address: the first of its prefix.
    pub fn address(&self) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.prefix.addr()) | 1)
    }

    /// MAC of the interface in the pod, as text.
    pub fn pod_mac() -> String {
        mac_text(POD_MAC)
    }

    /// MAC of the interface on the node, as text.
    pub fn host_mac() -> String {
        mac_text(HOST_MAC)
    }
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|b| format!("{b:02x}")).join(":")
}

/// Name of the node's interface for a container's interface: the same at every try.
pub fn host_ifname(container: &str, ifname: &str) -> String {
    let hash = Sha256::digest(format!("{container}/{ifname}").as_bytes());
    let hex: String = hash.iter().take(4).map(|b| format!("{b:02x}")).collect();
    format!("{HOST_PREFIX}{hex}")
}

/// Why an attachment could not be made, or is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The pod's namespace is not there.
    #[error("the network namespace {path} cannot be entered: {source}")]
    Namespace {
        /// Its path.
        path: String,
        /// Why.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("{what}: {source}")]
    Kernel {
        /// What was being done.
        what: &'static str,
        /// Why.
        source: rtnetlink::Error,
    },
    /// The netlink socket failed.
    #[error("netlink: {0}")]
    Socket(#[from] io::Error),
    /// Something is missing that should be there.
    #[error("{0}")]
    Missing(String),
}

fn doing(what: &'static str) -> impl FnOnce(rtnetlink::Error) -> AttachError {
    move |source| AttachError::Kernel { what, source }
}

/// "It is there already" is as good as done.
fn or_exists(outcome: Result<(), rtnetlink::Error>) -> Result<(), rtnetlink::Error> {
    match outcome {
        Err(rtnetlink::Error::NetlinkError(e)) if e.raw_code() == -nix::libc::EEXIST => Ok(()),
        other => other,
    }
}

fn enter(path: &std::path::Path) -> Result<Netns, AttachError> {
    Netns::at(path)
        .map_err(|source| AttachError::Namespace { path: path.display().to_string(), source })
}

/// Makes the attachment, or repairs what is there of it.
///
/// # Errors
/// If the namespace is gone or the kernel refuses something.
pub async fn attach(spec: &AttachSpec) -> Result<(), AttachError> {
    let host = Netns::own()?;
    let pod = enter(&spec.netns)?;
    let (host_index, pod_index) = interfaces(&host, &pod, spec).await?;
    // Side by side: where many pods start at once, each request waits for the kernel's one lock.
    tokio::try_join!(pod_side(&pod, pod_index, spec), host_side(&host, host_index, spec)).map(drop)
}

/// Both interfaces, made if one of them is missing.
async fn interfaces(
    host: &Netns,
    pod: &Netns,
    spec: &AttachSpec,
) -> Result<(u32, u32), AttachError> {
    let find = doing("looking for the interfaces");
    let (ours, theirs) = (host.link(&spec.host_ifname).await, pod.link(&spec.ifname).await);
    let (ours, theirs) = ours.and_then(|a| Ok((a, theirs?))).map_err(find)?;
    if let (Some(a), Some(b)) = (&ours, &theirs) {
        return Ok((a.header.index, b.header.index));
    }
    if theirs.is_some() {
        return Err(AttachError::Missing(format!(
            "the pod has an interface {} already, which is not ours",
            spec.ifname
        )));
    }
    if ours.is_some() {
        host.delete_link(&spec.host_ifname).await.map_err(doing("removing a half-made pair"))?;
    }
    let file = std::fs::File::open(&spec.netns).map_err(|source| AttachError::Namespace {
        path: spec.netns.display().to_string(),
        source,
    })?;
    // Made in the pod's namespace: to move an interface there holds up all others of the node.
    let peer = LinkUnspec::new_with_name(&spec.ifname)
        .mtu(spec.mtu)
        .address(POD_MAC.to_vec())
        .setns_by_fd(std::os::fd::AsRawFd::as_raw_fd(&file))
        .build();
    let veth = LinkVeth::new(&spec.host_ifname, &spec.ifname)
        .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
        .mtu(spec.mtu)
        .address(HOST_MAC.to_vec())
        .build();
    host.handle.link().add(veth).execute().await.map_err(doing("making the pair of interfaces"))?;
    let index = |link: Option<rtnetlink::packet_route::link::LinkMessage>| {
        link.map(|l| l.header.index)
            .ok_or_else(|| AttachError::Missing("an interface vanished while it was set up".into()))
    };
    let host_index =
        index(host.link(&spec.host_ifname).await.map_err(doing("finding the host interface"))?)?;
    let pod_index =
        index(pod.link(&spec.ifname).await.map_err(doing("finding the pod's interface"))?)?;
    Ok((host_index, pod_index))
}

async fn pod_side(pod: &Netns, index: u32, spec: &AttachSpec) -> Result<(), AttachError> {
    let address = spec.address();
    quiet(pod, index).await?;
    pod.up(index).await.map_err(doing("bringing the pod's interface up"))?;
    add_address(pod, index, POD, 64).await?;
    add_address(pod, index, address, 128).await?;
    if let Some(name) = &spec.also_on
        && let Some(primary) =
            pod.link(name).await.map_err(doing("finding the primary interface"))?
    {
        add_address(pod, primary.header.index, address, 128).await?;
    }
    neighbour(pod, index, GATEWAY, HOST_MAC).await?;
    for asp in &spec.asps {
        let IpNet::V6(asp) = asp else { continue };
        let route = RouteMessageBuilder::<Ipv6Addr>::new()
            .destination_prefix(asp.addr(), asp.prefix_len())
            .gateway(GATEWAY)
            .output_interface(index)
            .pref_source(address)
            .protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
            .build();
        let added = pod.handle.route().add(route).replace().execute().await;
        added.map_err(doing("adding the pod's route to the link"))?;
    }
    Ok(())
}

async fn host_side(host: &Netns, index: u32, spec: &AttachSpec) -> Result<(), AttachError> {
    quiet(host, index).await?;
    host.up(index).await.map_err(doing("bringing the host interface up"))?;
    add_address(host, index, GATEWAY, 64).await?;
    neighbour(host, index, POD, POD_MAC).await?;
    let route = RouteMessageBuilder::<Ipv6Addr>::new()
        .destination_prefix(spec.prefix.addr(), spec.prefix.prefix_len())
        .gateway(POD)
        .output_interface(index)
        .protocol(RouteProtocol::Other(ROUTE_PROTOCOL))
        .build();
    let added = host.handle.route().add(route).replace().execute().await;
    added.map_err(doing("adding the route to the pod"))
}

async fn add_address(
    netns: &Netns,
    index: u32,
    address: Ipv6Addr,
    length: u8,
) -> Result<(), AttachError> {
    let mut request = netns.handle.address().add(index, IpAddr::V6(address), length);
    let flags = AddressFlags::Nodad | AddressFlags::Permanent;
    let flags = if length == 128 { flags | AddressFlags::Noprefixroute } else { flags };
    request.message_mut().attributes.push(AddressAttribute::Flags(flags));
    or_exists(request.execute().await).map_err(doing("adding an address"))
}

async fn neighbour(
    netns: &Netns,
    index: u32,
    address: Ipv6Addr,
    mac: [u8; 6],
) -> Result<(), AttachError> {
    let request = netns.handle.neighbours().add(index, IpAddr::V6(address));
    let request = request.state(NeighbourState::Permanent).link_layer_address(&mac).replace();
    request.execute().await.map_err(doing("adding a neighbour"))
}

/// Takes the attachment away. What is gone already is as good as taken.
///
/// # Errors
/// If the kernel refuses.
pub async fn detach(host_ifname: &str) -> Result<(), AttachError> {
    let host = Netns::own()?;
    host.delete_link(host_ifname).await.map_err(doing("removing the interfaces"))
}

/// Holds the attachment against what it should be.
///
/// # Errors
/// Names the first thing that is not as it should be.
pub async fn check(spec: &AttachSpec) -> Result<(), AttachError> {
    let host = Netns::own()?;
    let missing = |text: String| Err(AttachError::Missing(text));
    let find =
        host.link(&spec.host_ifname).await.map_err(doing("looking for the host interface"))?;
    if find.is_none() {
        return missing(format!("the node's interface {} is gone", spec.host_ifname));
    }
    let pod = enter(&spec.netns)?;
    let found = pod.link(&spec.ifname).await.map_err(doing("looking for the pod's interface"))?;
    let Some(link) = found else {
        return missing(format!("the pod's interface {} is gone", spec.ifname));
    };
    let addresses = pod.addresses().await.map_err(doing("reading the pod's addresses"))?;
    let stable = IpAddr::V6(spec.address());
    if !addresses.contains(&(link.header.index, stable)) {
        return missing(format!("{} is not on the pod's interface {}", stable, spec.ifname));
    }
    Ok(())
}

/// Our interfaces on this node.
///
/// # Errors
/// If the kernel refuses.
pub async fn host_interfaces() -> Result<Vec<String>, AttachError> {
    let host = Netns::own()?;
    let all = host.links().await.map_err(doing("listing interfaces"))?;
    let ours = |name: &str| {
        name.strip_prefix(HOST_PREFIX)
            .is_some_and(|rest| rest.len() == 8 && rest.bytes().all(|b| b.is_ascii_hexdigit()))
    };
    Ok(all.into_iter().map(|(_, name)| name).filter(|n| ours(n)).collect())
}

/// Gives an interface of ours one link-local address and brings it up; the kernel adds none.
///
/// # Errors
/// If there is no such interface or the kernel refuses.
pub async fn link_local_device(device: &str, address: Ipv6Addr) -> Result<(), AttachError> {
    let host = Netns::own()?;
    let index = quiet_up(&host, device).await?;
    add_address(&host, index, address, 64).await
}

/// Keeps the kernel from giving an interface addresses of its own when it comes up, which would wait
/// for duplicate address detection.
async fn quiet(netns: &Netns, index: u32) -> Result<(), AttachError> {
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let link = LinkUnspec::new_with_index(index)
        .append_extra_attribute(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]))
        .build();
    let outcome = netns.handle.link().change(link).execute().await;
    outcome.map_err(doing("turning address generation off"))
}

/// An interface that is up and generates no addresses; its index.
async fn quiet_up(host: &Netns, device: &str) -> Result<u32, AttachError> {
    let found = host.link(device).await.map_err(doing("looking for the AERO interface"))?;
    let index = match found {
        Some(link) => link.header.index,
        None => return Err(AttachError::Missing(format!("there is no interface {device}"))),
    };
    quiet(host, index).await?;
    host.up(index).await.map_err(doing("bringing the AERO interface up"))?;
    Ok(index)
}

/// Routes the service prefixes to the AERO interface, which is up and generates no addresses.
/// `metric` is [`METRIC_OF_CLIENT`] or [`METRIC_OF_RELAY`].
///
/// # Errors
/// If there is no such interface or the kernel refuses.
pub async fn route_asps(device: &str, asps: &[IpNet], metric: u32) -> Result<(), AttachError> {
    let host = Netns::own()?;
    let index = quiet_up(&host, device).await?;
    for asp in asps {
        let protocol = RouteProtocol::Other(ROUTE_PROTOCOL);
        let mut route = match asp {
            IpNet::V6(asp) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(asp.addr(), asp.prefix_len())
                .output_interface(index)
                .scope(RouteScope::Universe)
                .protocol(protocol)
                .build(),
            IpNet::V4(asp) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(asp.addr(), asp.prefix_len())
                .output_interface(index)
                .scope(RouteScope::Link)
                .protocol(protocol)
                .build(),
        };
        if metric > 0 {
            route.attributes.push(RouteAttribute::Priority(metric));
        }
        let added = host.handle.route().add(route).replace().execute().await;
        added.map_err(doing("routing a service prefix to the AERO interface"))?;
    }
    Ok(())
}

/// Deletes the AERO interface, and with it its routes.
///
/// # Errors
/// If the kernel refuses.
pub async fn remove_device(device: &str) -> Result<(), AttachError> {
    detach(device).await
}

/// MTU of the interface that has an underlay address; 1500 if there is none.
///
/// # Errors
/// If the kernel refuses.
pub async fn underlay_mtu(address: IpAddr) -> Result<u16, AttachError> {
    let host = Netns::own()?;
    let mtu = host.mtu_of(address).await.map_err(doing("reading the underlay's MTU"))?;
    Ok(mtu.and_then(|m| u16::try_from(m).ok()).unwrap_or(1500))
}
