//! The forwarder in the kernel: eBPF programs (`bpf/`) at the AERO interface, at the underlay and
//! at pods' interfaces, with the forwarding table in maps.
//!
//! It stands before the forwarder in user space, not in its place: what the programs leave alone
//! (control packets, fragments, neighbours that only a socket reaches) goes on to the TUN device
//! and the sockets, and the user-space forwarder follows the same table. A partial verdict is
//! never a loss.
//!
//! Programs, maps and links are pinned under a directory of the BPF file system, with the version
//! of the maps' layout in its path. They outlive the process. The next one takes the maps over as
//! they are, puts its programs in the place of the old ones, and after [`INHERITED`] removes what
//! its engine has not set again.
//!
//! Entries that have run out are ignored by the programs themselves, by the kernel's clock, so an
//! AcceptTime holds with no process to enforce it. [`Ebpf::run`] only gives the memory back.

mod direct;
mod hooks;
mod layout;
mod maps;
mod node;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aero_protocol::address::LinkLayerAddress;
use aero_protocol::forwarding::{Change, NextHop, Route};
use aya::programs::{SchedClassifier, TcAttachType};
use aya::{Ebpf as Object, EbpfLoader};
use ipnet::IpNet;

use crate::counters::Snapshot;
use crate::table::{ForwardingTable, PodInterface};
use crate::trigger::Trigger;
use crate::userspace::Forwarder;
pub use hooks::Hooks;
use hooks::{Attached, cause};
use layout::{Behind, Config, Was};
use maps::{Inherited, Maps};

/// Version of the maps' layout. A change of `bpf/table.h` is a new one.
const LAYOUT: &str = "v1";
/// What an earlier process has left and this one has not set again goes after this time: longer
/// than a lease (40 s) takes to be renewed or lost.
const INHERITED: Duration = Duration::from_secs(60);
/// How often what has run out is removed.
const SWEEP: Duration = Duration::from_secs(1);
/// The loopback: a neighbour may be another process of this node.
const LOOPBACK: &str = "lo";

/// The programs, as the build compiled them.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/forwarder.o"));

/// Why eBPF is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// Nowhere to pin.
    #[error("{path} is on no BPF file system (mount -t bpf bpf /sys/fs/bpf)")]
    NoFileSystem {
        /// Where it should be.
        path: PathBuf,
    },
    /// No device has an underlay address.
    #[error("no interface has the address {0}")]
    NoDevice(IpAddr),
    /// A device without Ethernet headers.
    #[error("{device} has no Ethernet header, which the programs at the underlay need")]
    NotEthernet {
        /// Its name.
        device: String,
    },
    /// The kernel refuses.
    #[error("{what}: {why}")]
    Kernel {
        /// What was being done.
        what: &'static str,
        /// Why.
        why: String,
    },
}

fn doing<E: std::error::Error>(what: &'static str) -> impl FnOnce(E) -> Unavailable {
    move |e| Unavailable::Kernel { what, why: cause(&e) }
}

/// What to open.
#[derive(Debug, Clone)]
pub struct Options {
    /// Directory of all forwarders of this node, on a BPF file system.
    pub root: PathBuf,
    /// Name of this one there, the same at every start.
    pub name: String,
    /// Underlay addresses of this node. The first of each family is served in the kernel.
    pub addresses: Vec<IpAddr>,
    /// UDP port on the underlay.
    pub port: u16,
    /// The AERO interface; a Server has none.
    pub device: Option<String>,
    /// MTU of inner packets.
    pub mtu: u16,
    /// Taken off the outer TTL of what is passed on from tunnel to tunnel.
    pub ttl_step: u8,
    /// How programs are attached.
    pub hooks: Hooks,
    /// How long the table is used with no process to look after it; without end if `None`.
    pub outlives: Option<Duration>,
}

impl Options {
    fn directory(&self) -> PathBuf {
        self.root.join(LAYOUT).join(&self.name)
    }
}

/// The forwarder.
pub struct Ebpf {
    options: Options,
    userspace: Arc<Forwarder>,
    state: Mutex<State>,
}

impl std::fmt::Debug for Ebpf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ebpf").field("options", &self.options).finish_non_exhaustive()
    }
}

/// Outer sources of one prefix, each with its end.
type Senders = Vec<(LinkLayerAddress, Option<Instant>)>;

struct State {
    object: Object,
    maps: Maps,
    attached: Attached,
    config: Config,
    /// Local routes, as this process has set them.
    locals: HashMap<IpNet, Route>,
    /// The ends of what has one.
    routes: HashMap<IpNet, Instant>,
    sources: HashMap<IpNet, Senders>,
    /// Those of them that have an end.
    ending: HashSet<IpNet>,
    peers: HashMap<LinkLayerAddress, u32>,
    handovers: HashMap<(LinkLayerAddress, IpNet), Instant>,
    direct: HashMap<(IpNet, IpNet), Instant>,
    pods: HashMap<String, (IpNet, Behind)>,
    /// As an earlier one did, until that is no longer of interest.
    inherited: Option<Inherited>,
    since: Instant,
}

impl Ebpf {
    /// Loads the programs and attaches them before `userspace`.
    ///
    /// # Errors
    /// Says why not. Nothing of this forwarder is left attached then.
    pub fn open(options: Options, userspace: Arc<Forwarder>) -> Result<Arc<Self>, Unavailable> {
        node::require_bpffs(&options.root)?;
        let opened = Self::load(options.clone(), userspace);
        if opened.is_err() {
            remove(&options);
        }
        opened
    }

    fn load(options: Options, userspace: Arc<Forwarder>) -> Result<Arc<Self>, Unavailable> {
        let directory = options.directory();
        std::fs::create_dir_all(&directory).map_err(doing("making the directory of pins"))?;
        let mut object = EbpfLoader::new()
            .btf(None)
            .default_map_pin_directory(&directory)
            .map_pin_path("ports", options.root.join(LAYOUT).join("ports"))
            .load(OBJECT)
            .map_err(doing("making the maps"))?;
        let mut maps = Maps::take(&mut object).map_err(doing("opening the maps"))?;
        let inherited = maps.inherited();
        let (config, devices) = node::configuration(&options)?;
        maps.set_config(&config).map_err(doing("setting up the programs"))?;
        let attached = Attached::new(&directory, options.hooks, options.port)
            .map_err(doing("making the directory of links"))?;
        let mut state = State {
            object,
            maps,
            attached,
            config,
            locals: HashMap::new(),
            routes: HashMap::new(),
            sources: HashMap::new(),
            ending: HashSet::new(),
            peers: HashMap::new(),
            handovers: HashMap::new(),
            direct: HashMap::new(),
            pods: HashMap::new(),
            inherited: Some(inherited),
            since: Instant::now(),
        };
        for program in ["aero_egress", "underlay_ingress", "pod_ingress"] {
            state.program(program)?.load().map_err(doing("loading the programs"))?;
        }
        let attach = |why| Unavailable::Kernel { what: "attaching the programs", why };
        for device in devices.iter().map(String::as_str).chain([LOOPBACK]) {
            state.attach("underlay_ingress", device, TcAttachType::Ingress).map_err(attach)?;
        }
        if let Some(device) = &options.device {
            state.attach("aero_egress", device, TcAttachType::Egress).map_err(attach)?;
        }
        // From now on this node's other forwarders may hand packets over.
        state.maps.announce(options.port).map_err(doing("announcing the port"))?;
        remove_other_layouts(&options);
        Ok(Arc::new(Self { options, userspace, state: Mutex::new(state) }))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the maps in order, and passes on what the programs tell, until the future is dropped.
    ///
    /// # Errors
    /// If the programs cannot be listened to.
    pub async fn run(&self) -> std::io::Result<()> {
        let mut wanting = self.wanting()?;
        let mut sweep = tokio::time::interval(SWEEP);
        loop {
            let told = async {
                match &mut wanting {
                    Some(wanting) => wanting.next().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = sweep.tick() => self.sweep(Instant::now()),
                told = told => {
                    let Trigger { inner, packet } = told?;
                    self.userspace.trigger(inner, &packet);
                }
            }
        }
    }

    fn sweep(&self, now: Instant) {
        let mut state = self.state();
        state.expire(now);
        if now.saturating_duration_since(state.since) >= INHERITED {
            state.forget_inherited();
        }
        if let Some(outlives) = self.options.outlives {
            state.config.until = Some(now + outlives);
            let config = state.config.clone();
            state.maps.set_config(&config).unwrap_or_else(|e| complain("config", &e));
        }
    }

    /// Takes the programs off and forgets the table: for an uninstall, and for a Server that
    /// leaves its node.
    pub fn remove(&self) {
        remove(&self.options);
    }
}

/// Removes what a forwarder of these options has left, if there is anything.
pub fn remove(options: &Options) {
    let directory = options.directory();
    maps::withdraw(&options.root.join(LAYOUT).join("ports"), options.port);
    if let Ok(attached) = Attached::new(&directory, options.hooks, options.port) {
        for (device, way) in attached.pinned() {
            attached.detach(&device, way);
        }
        for device in node::devices() {
            attached.detach(&device, TcAttachType::Ingress);
            attached.detach(&device, TcAttachType::Egress);
        }
    }
    let _ = std::fs::remove_dir_all(&directory);
    // The last one turns off the light.
    let others =
        |d: &Path| std::fs::read_dir(d).into_iter().flatten().flatten().any(|e| e.path().is_dir());
    let version = options.root.join(LAYOUT);
    if !others(&version) {
        let _ = std::fs::remove_dir_all(&version);
        let _ = std::fs::remove_dir(&options.root);
    }
}

/// The programs of another layout go when those of this one are in place.
fn remove_other_layouts(options: &Options) {
    for entry in std::fs::read_dir(&options.root).into_iter().flatten().flatten() {
        let old = entry.path().join(&options.name);
        if entry.file_name() != LAYOUT && old.is_dir() {
            let _ = std::fs::remove_dir_all(old);
        }
    }
}

fn complain(what: &str, error: &dyn std::error::Error) {
    tracing::error!("the kernel did not take a change of its {what}: {}", cause(error));
}

impl State {
    fn program(&mut self, name: &str) -> Result<&mut SchedClassifier, Unavailable> {
        let missing = || Unavailable::Kernel { what: "loading the programs", why: name.into() };
        let program = self.object.program_mut(name).ok_or_else(missing)?;
        program.try_into().map_err(doing("loading the programs"))
    }

    fn attach(&mut self, name: &str, device: &str, way: TcAttachType) -> Result<(), String> {
        let program = self.object.program_mut(name).ok_or("there is no such program")?;
        let program = program.try_into().map_err(|e| cause(&e))?;
        self.attached.attach(program, device, way)
    }

    /// The interface that a prefix is behind. Until it is told this process goes by what the one
    /// before it knew, or packets would take turns between the short way and the long one.
    fn behind(&self, prefix: IpNet) -> Option<Behind> {
        let told = self.pods.values().find(|(p, _)| *p == prefix).map(|(_, b)| *b);
        told.or_else(|| match self.inherited.as_ref()?.routes.get(&prefix)? {
            Was::Local(behind) => behind.filter(|b| node::name_of(b.ifindex).is_some()),
            Was::ToNeighbor => None,
        })
    }

    fn set_route(&mut self, prefix: IpNet, route: Route) {
        let value = layout::route(prefix, &route, self.behind(prefix));
        self.maps.set_route(prefix, value).unwrap_or_else(|e| complain("routes", &e));
        match route.to {
            NextHop::Local => drop(self.locals.insert(prefix, route)),
            NextHop::Neighbor(_) | NextHop::Unreachable => drop(self.locals.remove(&prefix)),
        }
        match route.until {
            Some(until) => drop(self.routes.insert(prefix, until)),
            None => drop(self.routes.remove(&prefix)),
        }
        if let Some(inherited) = &mut self.inherited {
            inherited.routes.remove(&prefix);
        }
    }

    fn add_peer(&mut self, peer: LinkLayerAddress, is: u32) {
        let all = self.peers.entry(peer).or_default();
        *all |= is;
        self.maps.set_peer(peer, *all).unwrap_or_else(|e| complain("peers", &e));
        if let Some(inherited) = &mut self.inherited {
            inherited.peers.remove(&peer);
        }
    }

    fn set_source(&mut self, prefix: IpNet, senders: Senders) {
        let set = self.maps.set_source(prefix, &senders);
        set.unwrap_or_else(|e| complain("sources", &e));
        if senders.iter().any(|(_, until)| until.is_some()) {
            self.ending.insert(prefix);
        } else {
            self.ending.remove(&prefix);
        }
        self.sources.insert(prefix, senders);
        if let Some(inherited) = &mut self.inherited {
            inherited.sources.remove(&prefix);
        }
    }

    fn remove_route(&mut self, prefix: IpNet) {
        // An engine that has just started has no Server yet and says so. What the last one knew
        // is better than nothing, for a while.
        let inherited = self.inherited.as_ref().and_then(|i| i.routes.get(&prefix));
        if inherited == Some(&Was::ToNeighbor) {
            return;
        }
        self.locals.remove(&prefix);
        self.routes.remove(&prefix);
        self.maps.remove_route(prefix);
    }

    fn apply(&mut self, change: &Change) {
        match change {
            Change::SetRoute { prefix, route } => self.set_route(prefix.trunc(), *route),
            Change::RemoveRoute { prefix } => self.remove_route(prefix.trunc()),
            Change::AddPeer(peer) => self.add_peer(*peer, layout::PEER),
            Change::AddRelay(peer) => self.add_peer(*peer, layout::PEER | layout::RELAY),
            Change::AddAgent(peer) => self.add_peer(*peer, layout::AGENT),
            Change::RemovePeer(peer) => {
                self.peers.remove(peer);
                self.maps.remove_peer(*peer);
            }
            Change::SetSource { prefix, from, until } => {
                self.set_source(prefix.trunc(), vec![(*from, *until)]);
            }
            Change::AddSource { prefix, from, until } => {
                let prefix = prefix.trunc();
                let mut senders = self.sources.get(&prefix).cloned().unwrap_or_default();
                senders.retain(|(l2, _)| l2 != from);
                senders.push((*from, *until));
                self.set_source(prefix, senders);
            }
            Change::RemoveSource { prefix } => {
                self.sources.remove(&prefix.trunc());
                self.ending.remove(&prefix.trunc());
                self.maps.remove_source(prefix.trunc());
            }
            Change::SetHandover { prefix, from, until } => {
                let prefix = prefix.trunc();
                let set = self.maps.set_handover(*from, prefix, *until);
                set.unwrap_or_else(|e| complain("hand-overs", &e));
                self.handovers.insert((*from, prefix), *until);
                if let Some(inherited) = &mut self.inherited {
                    inherited.handovers.remove(&(*from, prefix));
                }
            }
            Change::SetDirect { source, destination, to, until } => {
                self.set_direct(source.trunc(), destination.trunc(), *to, *until);
            }
            Change::RemoveDirect { source, destination } => {
                self.remove_direct(source.trunc(), destination.trunc());
            }
        }
    }

    fn expire(&mut self, now: Instant) {
        let maps = &mut self.maps;
        let locals = &mut self.locals;
        self.routes.retain(|prefix, until| {
            if *until <= now {
                locals.remove(prefix);
                maps.remove_route(*prefix);
            }
            *until > now
        });
        let sources = &mut self.sources;
        self.ending.retain(|prefix| {
            let live = |(_, until): &(_, Option<Instant>)| until.is_none_or(|t| t > now);
            let any = sources.get(prefix).is_some_and(|s| s.iter().any(live));
            if !any {
                sources.remove(prefix);
                maps.remove_source(*prefix);
            }
            any
        });
        self.handovers.retain(|(from, prefix), until| {
            if *until <= now {
                maps.remove_handover(*from, *prefix);
            }
            *until > now
        });
        self.direct.retain(|(source, destination), until| {
            if *until <= now {
                maps.remove_direct(*source, *destination);
            }
            *until > now
        });
    }

    fn forget_inherited(&mut self) {
        let Some(inherited) = self.inherited.take() else { return };
        self.maps.remove_inherited(&inherited);
        let current: Vec<u32> = self.pods.values().map(|(_, b)| b.ifindex).collect();
        self.maps.retain_pods(&current);
        for (device, way) in self.attached.pinned() {
            let of_pod = way == TcAttachType::Ingress && inherited.links.contains(&device);
            if of_pod && !self.pods.contains_key(&device) {
                self.attached.detach(&device, way);
            }
        }
    }

    fn connect(&mut self, pod: &PodInterface<'_>) -> Result<(), String> {
        let ifindex = node::index_of(pod.name).map_err(|e| e.to_string())?;
        let behind = Behind { ifindex, mac: pod.mac, node_mac: pod.node_mac };
        let prefix = pod.prefix.trunc();
        self.maps.set_pod(ifindex, prefix).map_err(|e| cause(&e))?;
        self.attach("pod_ingress", pod.name, TcAttachType::Ingress)?;
        self.pods.insert(pod.name.to_string(), (prefix, behind));
        // Both ways or none: a firewall that sees one half of a conversation drops it.
        if let Some(route) = self.locals.get(&prefix).copied() {
            self.set_route(prefix, route);
        }
        Ok(())
    }

    fn disconnect(&mut self, name: &str) {
        self.attached.detach(name, TcAttachType::Ingress);
        let Some((prefix, behind)) = self.pods.remove(name) else { return };
        self.maps.remove_pod(behind.ifindex);
        if let Some(route) = self.locals.get(&prefix).copied() {
            self.set_route(prefix, route);
        }
    }
}

impl ForwardingTable for Ebpf {
    fn apply(&self, change: &Change) {
        self.userspace.apply(change);
        self.state().apply(change);
    }

    fn take_used(&self) -> Vec<(IpNet, IpNet)> {
        let mut used = self.state().take_used();
        used.extend(self.userspace.take_used());
        used.sort_unstable();
        used.dedup();
        used
    }

    fn counters(&self) -> Snapshot {
        let mut sum = self.userspace.counters();
        self.state().maps.add_counters(&mut sum);
        sum
    }

    fn connect(&self, pod: &PodInterface<'_>) {
        if let Err(why) = self.state().connect(pod) {
            // Its packets go by the node's routes, as with every other forwarder.
            tracing::warn!(interface = pod.name, "no program at a pod's interface: {why}");
        }
    }

    fn disconnect(&self, name: &str) {
        self.state().disconnect(name);
    }
}
