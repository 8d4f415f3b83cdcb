//! Pod, node, node, pod; and the ways between the nodes.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aero_dataplane::ebpf::{Ebpf, Hooks, Options};
use aero_dataplane::userspace::Forwarder;
use aero_dataplane::{ForwardingTable, PodInterface, tun, underlay};
use aero_protocol::address::LinkLayerAddress;
use aero_protocol::forwarding::{Change, NextHop, Route};
use aero_protocol::tunnel::ip_in_ip::Proof;
use tokio::sync::mpsc;

use super::net::{NODE_MAC, Netns, POD_MAC};
use super::wireguard::Wireguard;

/// What carries packets from node to node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Variant {
    Plain,
    Vxlan,
    Wireguard,
    Userspace,
    /// Tunnels with UDP.
    Ebpf,
    /// Tunnels without, as between agents whose probes get through.
    IpInIp,
    /// The same over an IPv6 underlay.
    IpInIpv6,
}

impl Variant {
    /// What the table has; the others are for a look by their names.
    pub const TABLE: [Self; 6] =
        [Self::Plain, Self::Vxlan, Self::Wireguard, Self::Userspace, Self::Ebpf, Self::IpInIp];
    pub const OTHERS: [Self; 1] = [Self::IpInIpv6];

    pub fn label(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Vxlan => "vxlan",
            Self::Userspace => "userspace",
            Self::Wireguard => "wireguard-go",
            Self::Ebpf => "ebpf-udp",
            Self::IpInIp => "ebpf-ipip",
            Self::IpInIpv6 => "ebpf-ipip6",
        }
    }

    /// MTU of its pods.
    fn inner_mtu(self) -> u16 {
        match self {
            Self::Plain => MTU,
            Self::Vxlan => MTU - 50,
            Self::Wireguard => MTU - 80,
            // What agents give their pods, whichever address family carries them.
            _ => aero_dataplane::interface_mtu(MTU),
        }
    }

    fn is_ip_in_ip(self) -> bool {
        matches!(self, Self::IpInIp | Self::IpInIpv6)
    }

    /// Whose forwarders are this project's.
    fn is_ours(self) -> bool {
        matches!(self, Self::Userspace | Self::Ebpf | Self::IpInIp | Self::IpInIpv6)
    }

    fn node_address(self, n: usize) -> IpAddr {
        match self {
            Self::IpInIpv6 => format!("fd99::{}", n + 1).parse().unwrap(),
            _ => IpAddr::from([192, 0, 2, u8::try_from(n + 1).unwrap()]),
        }
    }
}

/// What the nodes' devices do with packets that stand for many.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Underlay {
    /// A veth pair: they pass whole.
    Super,
    /// As over a wire: cut at the sender, merged at the receiver where the kernel knows how.
    Wire,
}

impl Underlay {
    pub const ALL: [Self; 2] = [Self::Super, Self::Wire];

    pub fn label(self) -> &'static str {
        match self {
            Self::Super => "super",
            Self::Wire => "wire",
        }
    }
}

const MTU: u16 = 1500;
const PORT: u16 = 8061;

/// One way from pod to pod.
pub struct Path {
    pub variant: Variant,
    pub pods: [Netns; 2],
    _wireguard: Option<Wireguard>,
    _nodes: [Netns; 2],
    running: Vec<Running>,
}

/// A forwarder, with the runtime that it works in.
struct Running {
    ebpf: Option<Arc<Ebpf>>,
    _runtime: tokio::runtime::Runtime,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(ebpf) = &self.ebpf {
            ebpf.remove();
        }
    }
}

/// Address of a pod.
pub fn pod_address(n: usize) -> String {
    format!("fd00:0:0:{}::1", n + 1)
}

impl Path {
    pub fn new(variant: Variant, underlay: Underlay) -> anyhow::Result<Self> {
        let name = |what: &str, n: usize| format!("{}{what}{n}", variant as usize);
        let nodes = [Netns::new(&name("n", 1))?, Netns::new(&name("n", 2))?];
        let pods = [Netns::new(&name("p", 1))?, Netns::new(&name("p", 2))?];
        let inner = variant.inner_mtu();
        let two = "numrxqueues 2 numtxqueues 2";
        nodes[0].ip(&format!(
            "link add u0 mtu {MTU} {two} type veth peer name u0 mtu {MTU} {two} netns {}",
            nodes[1].name
        ))?;
        for n in 0..2 {
            let (node, pod, other) = (&nodes[n], &pods[n], 2 - n);
            let own = n + 1;
            if underlay == Underlay::Wire {
                like_a_wire(node)?;
            }
            node.ip(&format!("addr add 192.0.2.{own}/24 dev u0"))?;
            node.ip(&format!("addr add fd99::{own}/64 dev u0 nodad"))?;
            node.ip("link set u0 up")?;
            node.ip(&format!("link add aeropod mtu {inner} address 02:ae:00:00:00:01 type veth peer name eth0 mtu {inner} address 02:ae:00:00:00:02 netns {}", pod.name))?;
            node.ip("addr add fe80::1/64 dev aeropod nodad")?;
            node.ip("link set aeropod up")?;
            pod.ip("link set eth0 up")?;
            pod.ip("addr add fe80::2/64 dev eth0 nodad")?;
            pod.ip(&format!("addr add {}/128 dev eth0 nodad", pod_address(n)))?;
            pod.ip(&format!("route add default via fe80::1 dev eth0 src {}", pod_address(n)))?;
            node.ip(&format!("route add fd00:0:0:{own}::/64 via fe80::2 dev aeropod"))?;
            let far = format!("fd00:0:0:{other}::/64");
            match variant {
                Variant::Plain => {
                    node.ip(&format!("route add {far} via fd99::{other} dev u0"))?;
                }
                Variant::Vxlan => vxlan(node, own, other, inner, &far)?,
                _ => {}
            }
        }
        let mut running = Vec::new();
        if variant.is_ours() {
            for (n, node) in nodes.iter().enumerate() {
                running.push(forward(node, n, variant, inner)?);
            }
        }
        let wireguard = match variant {
            Variant::Wireguard => Some(Wireguard::start(&nodes, inner)?),
            _ => None,
        };
        Ok(Self { variant, pods, _wireguard: wireguard, _nodes: nodes, running })
    }

    /// The kernel's table on the first node, and the path of its routes' pin.
    pub fn table(&self) -> Option<(&Ebpf, &'static str)> {
        let ebpf = self.running.first()?.ebpf.as_deref()?;
        Some((ebpf, "/sys/fs/bpf/aero/v2/ebpf-udp-0/routes"))
    }
}

fn like_a_wire(node: &Netns) -> anyhow::Result<()> {
    let cut = [
        "tso",
        "tx-udp_tnl-segmentation",
        "tx-udp_tnl-csum-segmentation",
        "tx-udp-segmentation",
        "tx-gre-segmentation",
        "tx-gre-csum-segmentation",
        "tx-ipxip4-segmentation",
        "tx-ipxip6-segmentation",
    ];
    let mut args = vec!["-K", "u0"];
    for feature in cut {
        args.extend([feature, "off"]);
    }
    args.extend(["gro", "on"]);
    node.exec("ethtool", &args).map(drop)
}

fn vxlan(node: &Netns, own: usize, other: usize, mtu: u16, far: &str) -> anyhow::Result<()> {
    node.ip(&format!("link add vx0 mtu {mtu} address 02:00:00:00:00:0{own} type vxlan id 100 dstport 4789 local 192.0.2.{own} dev u0 nolearning"))?;
    node.ip("link set vx0 up")?;
    node.ip(&format!("addr add fd98::{own}/64 dev vx0 nodad"))?;
    node.ip(&format!(
        "neigh add fd98::{other} lladdr 02:00:00:00:00:0{other} dev vx0 nud permanent"
    ))?;
    node.ip(&format!("route add {far} via fd98::{other} dev vx0"))?;
    let entry = [
        "fdb",
        "append",
        &format!("02:00:00:00:00:0{other}"),
        "dev",
        "vx0",
        "dst",
        &format!("192.0.2.{other}"),
    ];
    node.exec("bridge", &entry).map(drop)
}

fn forward(node: &Netns, n: usize, variant: Variant, mtu: u16) -> anyhow::Result<Running> {
    node.inside(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(2).enable_all().build()?;
        let guard = runtime.enter();
        let sockets = Arc::new(underlay::Underlay::bind(&[variant.node_address(n)], PORT)?);
        let device = tun::open("aero0", mtu)?;
        node.ip("link set aero0 addrgenmode none multicast off up")?;
        let far = format!("fd00:0:0:{}::/64", 2 - n);
        node.ip(&format!("route add {far} dev aero0"))?;
        let (sender, _control) = mpsc::channel(64);
        let userspace = Forwarder::new(sockets, Some(device), sender);
        let ebpf = if variant != Variant::Userspace {
            let options = Options {
                root: "/sys/fs/bpf/aero".into(),
                name: format!("{}-{n}", variant.label()),
                addresses: vec![variant.node_address(n)],
                port: PORT,
                device: Some("aero0".into()),
                mtu,
                ttl_step: 0,
                hooks: Hooks::Auto,
                outlives: None,
            };
            Some(Ebpf::open(options, Arc::clone(&userspace))?)
        } else {
            None
        };
        let table: &dyn ForwardingTable = match &ebpf {
            Some(ebpf) => ebpf.as_ref(),
            None => userspace.as_ref(),
        };
        let peer = LinkLayerAddress::new(variant.node_address(1 - n), PORT);
        let route = |prefix: &str, to| Change::SetRoute {
            prefix: prefix.parse().unwrap(),
            route: Route { to, transit: false, until: None },
        };
        let own = format!("fd00:0:0:{}::/64", n + 1);
        table.apply(&Change::AddPeer(peer));
        table.apply(&route(&far, NextHop::Neighbor(peer)));
        table.apply(&route(&own, NextHop::Local));
        table.connect(&PodInterface {
            name: "aeropod",
            prefix: own.parse()?,
            mac: POD_MAC,
            node_mac: NODE_MAC,
        });
        if let Some(ebpf) = &ebpf
            && variant.is_ip_in_ip()
        {
            let until = Instant::now() + Duration::from_secs(3600);
            let (source, destination) = (own.parse()?, far.parse()?);
            table.apply(&Change::SetDirect { source, destination, to: peer, until });
            ebpf.prove(Proof { neighbor: peer, until });
            let ebpf = Arc::clone(ebpf);
            runtime.spawn(async move { ebpf.run().await });
        }
        runtime.spawn(userspace.run());
        drop(guard);
        Ok(Running { ebpf, _runtime: runtime })
    })
}
