//! A forwarder on a node: in this process, or in one that can be killed.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aero_dataplane::ebpf::{Ebpf, Hooks, Options};
use aero_dataplane::underlay::Underlay;
use aero_dataplane::userspace::{Control, Forwarder};
use aero_dataplane::{ForwardingTable, PodInterface, tun};
use aero_protocol::address::LinkLayerAddress;
use aero_protocol::forwarding::{Change, NextHop, Route};
use tokio::sync::mpsc;

use super::net::{MTU, NODE_MAC, Node, POD_MAC, enter, pin};

/// Where pins go.
pub const ROOT: &str = "/sys/fs/bpf/aero";
/// As what the other node may send to an agent's forwarder.
#[derive(Debug, Clone, Copy)]
pub enum Accepts {
    /// It may send everything.
    Peer,
    /// It may send the other prefix.
    Source,
    /// As whatever the process before it was told; this one is told nothing.
    Inherited,
}

/// Set in processes that are a forwarder: namespace, number of the node, role.
pub const CHILD: &str = "AERO_TEST_FORWARDER";

pub fn l2(text: &str) -> LinkLayerAddress {
    text.parse::<std::net::SocketAddr>().unwrap().into()
}

pub fn to(text: &str) -> NextHop {
    NextHop::Neighbor(l2(text))
}

pub fn route(prefix: &str, to: NextHop, transit: bool) -> Change {
    Change::SetRoute { prefix: prefix.parse().unwrap(), route: Route { to, transit, until: None } }
}

pub fn addresses(number: u8) -> Vec<IpAddr> {
    let v6 = format!("2001:db8:77::{number}");
    vec![IpAddr::from([192, 0, 2, number]), v6.parse().unwrap()]
}

pub fn options(node: u8, name: &str, port: u16, device: bool, hooks: Hooks) -> Options {
    Options {
        root: PathBuf::from(ROOT),
        name: format!("{name}-{node}"),
        addresses: addresses(node),
        port,
        device: device.then(|| "aero0".to_string()),
        mtu: MTU,
        ttl_step: 0,
        hooks,
        outlives: None,
    }
}

/// Both forwarders, on a thread that is in the node's namespace and runtime already.
pub struct Running {
    pub userspace: Arc<Forwarder>,
    pub ebpf: Option<Arc<Ebpf>>,
    pub control: mpsc::Receiver<Control>,
}

impl Running {
    pub fn start(node: &Node, port: u16, device: bool, hooks: Option<Hooks>) -> Self {
        let name = if device { "agent" } else { "server" };
        let underlay = Arc::new(Underlay::bind(&addresses(node.number), port).unwrap());
        let tun = device.then(|| tun::open("aero0", MTU).unwrap());
        if device {
            node.device_up().unwrap();
        }
        let (sender, control) = mpsc::channel(64);
        let userspace = Forwarder::new(underlay, tun, sender);
        let ebpf = hooks.map(|hooks| {
            let options = options(node.number, name, port, device, hooks);
            Ebpf::open(options, Arc::clone(&userspace)).unwrap()
        });
        Self { userspace, ebpf, control }
    }

    pub fn table(&self) -> Arc<dyn ForwardingTable> {
        match &self.ebpf {
            Some(e) => Arc::clone(e) as Arc<dyn ForwardingTable>,
            None => Arc::clone(&self.userspace) as Arc<dyn ForwardingTable>,
        }
    }

    pub fn connect(&self, prefix: &str) {
        self.table().connect(&PodInterface {
            name: "aeropod",
            prefix: prefix.parse().unwrap(),
            mac: POD_MAC,
            node_mac: NODE_MAC,
        });
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(ebpf) = &self.ebpf {
            ebpf.remove();
        }
    }
}

/// Forwarders that run, with the runtime that they do so in: it goes last, and with it their
/// sockets.
pub struct Live {
    pub running: Running,
    _runtime: tokio::runtime::Runtime,
}

impl Live {
    /// An agent's (`device`) or a Server's, of the usual port.
    pub fn start(
        node: &Node,
        device: bool,
        hooks: Option<Hooks>,
        set_up: impl FnOnce(&mut Running) + Send,
    ) -> Self {
        node.netns.inside(|| {
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            let runtime = builder.worker_threads(1).enable_all().build().unwrap();
            let guard = runtime.enter();
            let port = if device { 8061 } else { 8060 };
            let mut running = Running::start(node, port, device, hooks);
            set_up(&mut running);
            if let Some(ebpf) = running.ebpf.clone() {
                tokio::spawn(async move { ebpf.run().await });
            }
            tokio::spawn(running.userspace.clone().run());
            drop(guard);
            Self { running, _runtime: runtime }
        })
    }
}

/// Runs `f` in the node's namespace within a runtime.
pub fn on<R: Send>(node: &Node, f: impl FnOnce() -> R + Send) -> R {
    node.netns.inside(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        // All threads of the runtime have to be in the namespace; they inherit it.
        let runtime = builder.worker_threads(1).enable_all().build().unwrap();
        let _guard = runtime.enter();
        f()
    })
}

/// Runs `f` on one processor: each of them keeps beliefs and decisions of its own.
pub fn on_one_processor<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    let alone = || {
        pin(0);
        f()
    };
    std::thread::scope(|scope| scope.spawn(alone).join().unwrap())
}

/// An agent's forwarder as a process of its own. Its table sends everything to the other node,
/// whose number it is told.
pub fn spawn(node: &Node, other: (u8, &str), prefix: &str, accepts: Accepts) -> Child {
    let (number, far) = other;
    let (netns, own) = (&node.netns.name, node.number);
    let role = format!("{netns} {own} {number} {prefix} {far} {accepts:?}");
    let child = Command::new(std::env::current_exe().unwrap())
        .env(CHILD, role)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = child;
    // It says so when it forwards.
    let mut line = String::new();
    let out = child.stdout.as_mut().unwrap();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(out), &mut line).unwrap();
    assert_eq!(line, "forwarding\n", "the child did not start");
    child
}

/// What such a process does.
pub fn child(role: &str) -> ! {
    let mut words = role.split_whitespace();
    let mut next = || words.next().unwrap().to_string();
    let (netns, own, other) = (next(), next().parse::<u8>().unwrap(), next());
    let prefix = next();
    let (far, accepts) = (format!("{}::/64", next()).parse().unwrap(), next());
    enter(&netns).unwrap();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(1).enable_all().build().unwrap();
    runtime.block_on(async {
        let underlay = Arc::new(Underlay::bind(&addresses(own), 8061).unwrap());
        let device = tun::open("aero0", MTU).unwrap();
        super::net::ip("link set aero0 addrgenmode none multicast off up").unwrap();
        super::net::ip("route replace 2001:d00::/24 dev aero0").unwrap();
        let (sender, _control) = mpsc::channel(64);
        let userspace = Forwarder::new(underlay, Some(device), sender);
        let options = options(own, "agent", 8061, true, Hooks::Auto);
        let ebpf = Ebpf::open(options, Arc::clone(&userspace)).unwrap();
        // An engine that has just started knows no way yet and accepts nobody, and says so.
        ebpf.apply(&Change::RemoveRoute { prefix: "2001:d00::/24".parse().unwrap() });
        ebpf.apply(&Change::RemoveSource { prefix: far });
        tokio::time::sleep(Duration::from_millis(200)).await;
        let peer = format!("192.0.2.{other}:8061");
        ebpf.apply(&route("2001:d00::/24", to(&peer), false));
        if accepts == format!("{:?}", Accepts::Peer) {
            ebpf.apply(&Change::AddPeer(l2(&peer)));
        } else if accepts == format!("{:?}", Accepts::Source) {
            let until = Some(Instant::now() + Duration::from_secs(40));
            ebpf.apply(&Change::SetSource { prefix: far, from: l2(&peer), until });
        }
        ebpf.apply(&route(&format!("{prefix}::/64"), NextHop::Local, false));
        ebpf.connect(&PodInterface {
            name: "aeropod",
            prefix: format!("{prefix}::/64").parse().unwrap(),
            mac: POD_MAC,
            node_mac: NODE_MAC,
        });
        println!("forwarding");
        tokio::select! {
            ended = userspace.run() => ended.unwrap(),
            ended = ebpf.run() => ended.unwrap(),
        }
    });
    std::process::exit(0);
}
