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

mod carry;
mod direct;
mod hooks;
pub(crate) mod ip_in_ip;
mod layout;
mod maps;
mod node;
mod slots;
mod state;

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aero_protocol::address::LinkLayerAddress;
use aero_protocol::forwarding::{Change, Route};
use aero_protocol::tunnel::ip_in_ip::{PROBE_EVERY, Proof};
use aya::programs::TcAttachType;
use aya::{Ebpf as Object, EbpfLoader};
use ipnet::IpNet;

use crate::counters::{Snapshot, Traffic};
use crate::table::{ForwardingTable, PodInterface};
use crate::trigger::Trigger;
use crate::userspace::Forwarder;
pub use hooks::Hooks;
use hooks::{Attached, cause};
use ip_in_ip::IpInIp;
use layout::{Behind, Config};
use maps::{Inherited, Maps};
use slots::Slots;
use tokio::sync::mpsc;

/// Version of the maps' layout. A change of `bpf/table.h` is a new one.
const LAYOUT: &str = "v2";
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
    direct: HashMap<(IpNet, IpNet), (Instant, LinkLayerAddress)>,
    slots: Slots,
    /// What neighbours with a direct path had been sent when that was last looked at.
    sent: HashMap<LinkLayerAddress, u64>,
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
        carry::carry(&options, &mut maps);
        maps.mark_flows().map_err(doing("marking remembered flows"))?;
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
            slots: Slots::default(),
            sent: HashMap::new(),
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
        let mut proofs = self.probe_ip_in_ip();
        let mut sweep = tokio::time::interval(SWEEP);
        let mut look = tokio::time::interval(PROBE_EVERY / 2);
        loop {
            let told = async {
                match &mut wanting {
                    Some(wanting) => wanting.next().await,
                    None => std::future::pending().await,
                }
            };
            let proved = async {
                match &mut proofs {
                    Some(proofs) => proofs.recv().await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                _ = sweep.tick() => self.sweep(Instant::now()),
                _ = look.tick() => {
                    if let Some(ip_in_ip) = self.userspace.ip_in_ip() {
                        ip_in_ip.used(self.state().take_active().into_iter());
                    }
                }
                proof = proved => {
                    if let Some(Proof { neighbor, until }) = proof {
                        self.state().prove(neighbor, until);
                    }
                }
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
            state.configure();
        }
    }

    /// From now on neighbours are asked whether they get IP-in-IP, and are served if they ask.
    /// `None`, and UDP for all, if there is no device to deliver to, or no raw socket to be had.
    fn probe_ip_in_ip(&self) -> Option<mpsc::Receiver<Proof>> {
        // A Server's or a Relay's neighbours have their own ports, and it may share the node.
        self.options.device.as_ref()?;
        let mut state = self.state();
        let v4 = state.config.v4.map(|(a, _)| IpAddr::V4(a));
        let v6 = state.config.v6.map(|(a, _)| IpAddr::V6(a));
        let addresses = v4.into_iter().chain(v6);
        let (sockets, proofs) = match IpInIp::open(addresses, self.options.port) {
            Ok(opened) => opened,
            Err(why) => {
                tracing::info!("tunnels are UDP only, IP-in-IP needs CAP_NET_RAW: {why}");
                return None;
            }
        };
        if !self.userspace.serve_ip_in_ip(sockets) {
            return None;
        }
        state.config.ip_in_ip = true;
        state.configure();
        Some(proofs)
    }

    /// What is known for certain about a path, as if a probe had been answered.
    pub fn prove(&self, proof: Proof) {
        self.state().prove(proof.neighbor, proof.until);
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
    forget_if_last(&options.root.join(LAYOUT));
    let _ = std::fs::remove_dir(&options.root);
}

/// What the forwarders of one layout share goes with the last of them.
fn forget_if_last(layout: &Path) {
    let mut entries = std::fs::read_dir(layout).into_iter().flatten().flatten();
    if !entries.any(|e| e.path().is_dir()) {
        let _ = std::fs::remove_dir_all(layout);
    }
}

/// The programs of another layout go when those of this one are in place.
fn remove_other_layouts(options: &Options) {
    for entry in std::fs::read_dir(&options.root).into_iter().flatten().flatten() {
        let old = entry.path().join(&options.name);
        if entry.file_name() != LAYOUT && old.is_dir() {
            let _ = std::fs::remove_dir_all(old);
            forget_if_last(&entry.path());
        }
    }
}

fn complain(what: &str, error: &dyn std::error::Error) {
    tracing::error!("the kernel did not take a change of its {what}: {}", cause(error));
}

impl ForwardingTable for Ebpf {
    fn apply(&self, change: &Change) {
        self.userspace.apply(change);
        let mut state = self.state();
        state.apply(change);
        state.changed();
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

    fn traffic(&self) -> Vec<(LinkLayerAddress, Traffic)> {
        let state = self.state();
        let all = state.slots.all().map(|(l2, slot)| (l2, state.maps.traffic(slot)));
        all.filter(|(_, traffic)| *traffic != Traffic::default()).collect()
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
