//! Moves of a receiver from node to node under load: what is lost, doubled and out of order, and
//! how long nothing comes.
//!
//! The receiver is a namespace with an interface to each of two nodes, as a virtual machine that
//! migrates live has. A move is what the engines make of it: the new node attaches, the old one
//! forwards what still comes and lets go of its interface, the correspondent's path flips. There
//! are no engines here: the changes come from the bench, each a millisecond after the one before,
//! which is about what a message takes.

use std::io::IoSliceMut;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aero_dataplane::ebpf::{Ebpf, Hooks, Options};
use aero_dataplane::underlay::Underlay;
use aero_dataplane::userspace::Forwarder;
use aero_dataplane::{ForwardingTable, PodInterface, tun};
use aero_protocol::address::LinkLayerAddress;
use aero_protocol::forwarding::{Change, NextHop, Route};
use aero_protocol::tunnel::ip_in_ip::Proof;
use anyhow::ensure;
use ipnet::IpNet;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use serde::Serialize;

use super::net::{MTU, NODE_MAC, Netns, Node, POD_MAC, fabric, pin};

/// From one move to the next.
const EVERY: Duration = Duration::from_millis(60);
/// As in the protocol's profile.
const FORWARD_TIME: Duration = Duration::from_secs(5);
const PORT: u16 = 8061;
/// A packet's number and when it was sent.
const PACKET: usize = 16;
const SENDER: &str = "2001:d00:0:1";
const RECEIVER: &str = "2001:d00:0:9";

/// What goes on meanwhile.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    /// How many moves.
    pub moves: usize,
    /// Packets a second.
    pub rate: u32,
    /// Tunnels have no UDP.
    pub ip_in_ip: bool,
}

/// What one move has cost.
#[derive(Debug, Clone, Copy, Default, Serialize)]
pub struct Move {
    pub lost: u64,
    pub duplicated: u64,
    pub reordered: u64,
    /// Longest time without a packet from when the new node was attached to the next move, in
    /// microseconds: between two arrivals in the receiver's kernel, less what the sender paused
    /// between the two (both threads share two processors with what makes the move).
    pub gap_us: u64,
}

struct Agent {
    ebpf: Arc<Ebpf>,
    l2: LinkLayerAddress,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.ebpf.remove();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn agent(node: &Node) -> anyhow::Result<Agent> {
    let ip = std::net::IpAddr::from([192, 0, 2, node.number]);
    node.netns.inside(|| {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).enable_all().build()?;
        let guard = runtime.enter();
        let underlay = Arc::new(Underlay::bind(&[ip], PORT)?);
        let device = tun::open("aero0", MTU)?;
        node.device_up()?;
        let (sender, _control) = tokio::sync::mpsc::channel(64);
        let userspace = Forwarder::new(underlay, Some(device), sender);
        let options = Options {
            root: "/sys/fs/bpf/aero".into(),
            name: format!("move-{}", node.number),
            addresses: vec![ip],
            port: PORT,
            device: Some("aero0".into()),
            mtu: MTU,
            ttl_step: 0,
            hooks: Hooks::Auto,
            outlives: None,
        };
        let ebpf = Ebpf::open(options, Arc::clone(&userspace))?;
        runtime.spawn(userspace.run());
        let running = Arc::clone(&ebpf);
        runtime.spawn(async move { running.run().await });
        drop(guard);
        Ok(Agent { ebpf, l2: LinkLayerAddress::new(ip, PORT), runtime: Some(runtime) })
    })
}

fn net(prefix: &str) -> anyhow::Result<IpNet> {
    Ok(format!("{prefix}::/64").parse()?)
}

/// The receiver's interface to a node.
fn plug(node: &Node, receiver: &Netns) -> anyhow::Result<()> {
    let there = format!("to{}", node.number);
    node.netns.ip(&format!(
        "link add moving mtu {MTU} address 02:ae:00:00:00:01 type veth peer name {there} netns {} \
         mtu {MTU} address 02:ae:00:00:00:02",
        receiver.name
    ))?;
    receiver.ip(&format!("link set {there} up"))?;
    node.netns.ip("link set moving up")?;
    node.netns.ip("addr add fe80::1/64 dev moving nodad")?;
    node.netns.ip("neigh replace fe80::2 dev moving lladdr 02:ae:00:00:00:02 nud permanent")?;
    node.netns.ip(&format!("route replace {RECEIVER}::/64 via fe80::2 dev moving")).map(drop)
}

/// What is known of the receiver while it runs.
#[derive(Default)]
struct Receiving {
    highest: AtomicU64,
    /// Longest time without a packet, in microseconds, since it was last set to 0.
    gap_us: AtomicU64,
    stop: AtomicBool,
}

/// What arrived, by number.
struct Arrived {
    seen: Vec<u64>,
    reordered: Vec<u64>,
    duplicated: Vec<u64>,
}

/// When a packet was sent, and when the receiver's kernel had it. Two clocks: only differences of
/// each are of use.
#[derive(Clone, Copy)]
struct Times {
    sent: Duration,
    arrived: Duration,
}

impl Times {
    /// What the way has added to the time between two packets, in microseconds.
    fn added_since(self, last: Self) -> u64 {
        let between = self.arrived.saturating_sub(last.arrived);
        let paused = self.sent.saturating_sub(last.sent);
        u64::try_from(between.saturating_sub(paused).as_micros()).unwrap_or(u64::MAX)
    }
}

/// A packet's number and its times.
fn receive(socket: &UdpSocket) -> Option<(u64, Times)> {
    let mut buffer = [0; PACKET];
    let mut control = nix::cmsg_space!(nix::sys::time::TimeSpec);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let message =
        recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::empty())
            .ok()?;
    let arrived = message.cmsgs().ok()?.find_map(|c| match c {
        ControlMessageOwned::ScmTimestampns(at) => Some(Duration::from(at)),
        _ => None,
    })?;
    let word = |n: usize| Some(u64::from_be_bytes(buffer.get(n * 8..n * 8 + 8)?.try_into().ok()?));
    Some((word(0)?, Times { sent: Duration::from_nanos(word(1)?), arrived }))
}

impl Receiving {
    fn receive(&self, socket: &UdpSocket) -> Arrived {
        pin(1);
        let mut all =
            Arrived { seen: vec![0; 1 << 20], reordered: Vec::new(), duplicated: Vec::new() };
        let mut last = None;
        while !self.stop.load(Ordering::Relaxed) {
            let Some((number, times)) = receive(socket) else { continue };
            if let Some(last) = last {
                self.gap_us.fetch_max(times.added_since(last), Ordering::Relaxed);
            }
            last = Some(times);
            let (place, bit) = (usize::try_from(number / 64).unwrap(), 1u64 << (number % 64));
            if all.seen[place] & bit != 0 {
                all.duplicated.push(number);
                continue;
            }
            all.seen[place] |= bit;
            if number < self.highest.fetch_max(number, Ordering::Relaxed) {
                all.reordered.push(number);
            }
        }
        all
    }
}

impl Arrived {
    /// What became of the packets with these numbers.
    fn of(&self, numbers: &std::ops::Range<u64>, gap_us: u64) -> Move {
        let is_there = |n: u64| self.seen[usize::try_from(n / 64).unwrap()] >> (n % 64) & 1 == 1;
        let among = |list: &[u64]| list.iter().filter(|n| numbers.contains(n)).count() as u64;
        Move {
            lost: numbers.clone().filter(|n| !is_there(*n)).count() as u64,
            duplicated: among(&self.duplicated),
            reordered: among(&self.reordered),
            gap_us,
        }
    }
}

/// Numbered packets at a rate until told to stop.
fn send(socket: &UdpSocket, rate: u32, sent: &AtomicU64, stop: &AtomicBool) {
    pin(0);
    let start = Instant::now();
    let mut number = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let due = start.elapsed().as_nanos() * u128::from(rate) / 1_000_000_000;
        // After being away it does not send faster than a device's queue takes.
        for _ in 0..32 {
            if u128::from(number) >= due {
                std::hint::spin_loop();
                break;
            }
            let at = u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX);
            let mut packet = [0; PACKET];
            packet[..8].copy_from_slice(&number.to_be_bytes());
            packet[8..].copy_from_slice(&at.to_be_bytes());
            if socket.send(&packet).is_ok() {
                number += 1;
                sent.store(number, Ordering::Release);
            }
        }
    }
}

fn large_buffer(socket: &UdpSocket) -> anyhow::Result<()> {
    let bytes: libc::c_int = 128 << 20;
    // SAFETY: the descriptor is open, and the value is an int that outlives the call.
    let outcome = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_RCVBUFFORCE,
            std::ptr::from_ref(&bytes).cast(),
            4,
        )
    };
    ensure!(outcome == 0, "{}", std::io::Error::last_os_error());
    Ok(())
}

/// Moves the receiver to and fro.
pub fn measure(load: Load) -> anyhow::Result<Vec<Move>> {
    let fabric = fabric(&[])?;
    let nodes = [
        Node::new(&fabric, 1, SENDER)?,
        Node::new(&fabric, 2, "2001:d00:0:2")?,
        Node::new(&fabric, 3, "2001:d00:0:3")?,
    ];
    let receiver = Netns::new("recv")?;
    receiver.ip(&format!("addr add {RECEIVER}::1/128 dev lo"))?;
    let agents = nodes.iter().map(agent).collect::<Result<Vec<_>, _>>()?;
    let [correspondent, ..] = &agents[..] else { anyhow::bail!("three agents") };
    let (own, moving) = (net(SENDER)?, net(RECEIVER)?);
    let local = Route { to: NextHop::Local, transit: false, until: None };
    correspondent.ebpf.apply(&Change::SetRoute { prefix: own, route: local });
    correspondent.ebpf.connect(&PodInterface {
        name: "aeropod",
        prefix: own,
        mac: POD_MAC,
        node_mac: NODE_MAC,
    });
    for agent in &agents[1..] {
        agent.ebpf.apply(&Change::SetSource { prefix: own, from: correspondent.l2, until: None });
    }
    let later = || Instant::now() + Duration::from_secs(3600);
    let attach = |n: usize, from: Option<usize>| -> anyhow::Result<()> {
        let agent = &agents[n];
        if let Some(old) = from {
            let (from, until) = (agents[old].l2, Instant::now() + FORWARD_TIME);
            agent.ebpf.apply(&Change::SetHandover { prefix: moving, from, until });
        }
        agent.ebpf.apply(&Change::SetRoute { prefix: moving, route: local });
        let pod = PodInterface { name: "moving", prefix: moving, mac: POD_MAC, node_mac: NODE_MAC };
        agent.ebpf.connect(&pod);
        Ok(())
    };
    let flip = |n: usize| {
        let (to, until) = (agents[n].l2, later());
        let change = Change::SetDirect { source: own, destination: moving, to, until };
        correspondent.ebpf.apply(&change);
        if load.ip_in_ip {
            correspondent.ebpf.prove(Proof { neighbor: to, until });
        }
    };
    plug(&nodes[1], &receiver)?;
    attach(1, None)?;
    flip(1);
    let at = receiver.inside(|| UdpSocket::bind(format!("[{RECEIVER}::1]:7004")))?;
    at.set_read_timeout(Some(Duration::from_millis(50)))?;
    large_buffer(&at)?;
    setsockopt(&at, sockopt::ReceiveTimestampns, &true)?;
    let from = nodes[0].pod.inside(|| UdpSocket::bind(format!("[{SENDER}::1]:0")))?;
    from.connect(format!("[{RECEIVER}::1]:7004"))?;
    let (receiving, sent, stop) = (Receiving::default(), AtomicU64::new(0), AtomicBool::new(false));
    // The first number of each move, and the longest gap in it.
    let mut parts = Vec::new();
    let arrived = std::thread::scope(|scope| {
        let arriving = scope.spawn(|| receiving.receive(&at));
        scope.spawn(|| send(&from, load.rate, &sent, &stop));
        let mut run = || -> anyhow::Result<()> {
            std::thread::sleep(EVERY);
            let (mut here, mut there) = (1, 2);
            for _ in 0..load.moves {
                let first = sent.load(Ordering::Acquire);
                plug(&nodes[there], &receiver)?;
                attach(there, Some(here))?;
                receiving.gap_us.store(0, Ordering::Relaxed);
                std::thread::sleep(Duration::from_millis(1));
                let to = NextHop::Neighbor(agents[there].l2);
                let until = Some(Instant::now() + FORWARD_TIME);
                let route = Route { to, transit: true, until };
                agents[here].ebpf.apply(&Change::SetRoute { prefix: moving, route });
                agents[here].ebpf.disconnect("moving");
                std::thread::sleep(Duration::from_millis(1));
                flip(there);
                nodes[here].netns.ip("link del moving")?;
                std::thread::sleep(EVERY);
                parts.push((first, receiving.gap_us.load(Ordering::Relaxed)));
                (here, there) = (there, here);
            }
            Ok(())
        };
        let outcome = run();
        stop.store(true, Ordering::Relaxed);
        std::thread::sleep(Duration::from_millis(300));
        receiving.stop.store(true, Ordering::Relaxed);
        let arrived = arriving.join().map_err(|_| anyhow::anyhow!("the receiver panicked"));
        outcome.and(arrived)
    })?;
    let ends = parts.iter().skip(1).map(|(first, _)| *first).chain([sent.into_inner()]);
    let moves: Vec<Move> = parts
        .iter()
        .zip(ends)
        .map(|((first, gap), end)| arrived.of(&(*first..end), *gap))
        .collect();
    ensure!(moves.len() == load.moves, "{} moves", moves.len());
    Ok(moves)
}

/// A sentence for people.
pub fn sentence(load: Load, moves: &[Move]) -> String {
    let sum = |of: fn(&Move) -> u64| moves.iter().map(of).sum::<u64>();
    let clean = moves.iter().filter(|m| m.lost == 0).count();
    let mut gaps: Vec<u64> = moves.iter().map(|m| m.gap_us).collect();
    gaps.sort_unstable();
    let (median, longest) = (gaps.get(gaps.len() / 2).unwrap_or(&0), gaps.last().unwrap_or(&0));
    format!(
        "\n{} moves of a receiver under {} packets a second: {clean} without loss, {} packets \
         lost in all, {} twice, {} out of order; longest time without a packet {median} µs in the \
         median move, {longest} µs in the worst.\n",
        moves.len(),
        load.rate,
        sum(|m| m.lost),
        sum(|m| m.duplicated),
        sum(|m| m.reordered),
    )
}

/// A few moves at a rate that any machine carries: nothing is lost, in either form of tunnel.
pub fn few() -> anyhow::Result<()> {
    for ip_in_ip in [false, true] {
        let load = Load { moves: 6, rate: 2000, ip_in_ip };
        let moves = measure(load)?;
        println!("  IP-in-IP: {ip_in_ip}.{}", sentence(load, &moves).trim_end().replace('\n', " "));
        let bad = moves.iter().find(|m| m.lost + m.duplicated > 0);
        ensure!(bad.is_none(), "with IP-in-IP {ip_in_ip}: {bad:?}");
    }
    Ok(())
}
