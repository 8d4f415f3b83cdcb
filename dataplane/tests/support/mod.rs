//! Two nodes and a router between them, each in a network namespace of its own.
//!
//! `a` 192.0.2.1, fd00:a::1 - `r` - `b` 198.51.100.1, fd00:b::1. Forwarders run in the
//! namespaces of `a` and `b`; the capture looks at the router's interface towards `a`, so what
//! `a` sends is seen as it was sent.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use aero_dataplane::tun;
use aero_dataplane::underlay::Underlay;
use aero_dataplane::userspace::{Config, Control, Forwarder};
use nix::sched::{CloneFlags, setns};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use tokio::sync::{mpsc, oneshot};

static NETS: AtomicU32 = AtomicU32::new(0);

/// What every wait in these tests is bounded by, on a machine that does other things.
pub const LONG: Duration = Duration::from_secs(15);

pub struct Net {
    prefix: String,
    pub ipv6: bool,
}

fn sh(script: &str) {
    let output = Command::new("sh").args(["-ec", script]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\nin:\n{script}(these tests need root)");
}

impl Net {
    /// The link from the router to `b` has this MTU, the other 1500.
    pub fn new(ipv6: bool, far_mtu: u16) -> Self {
        let n = NETS.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("aero-tn-{}-{n}", std::process::id());
        let p = &prefix;
        sh(&format!(
            "for n in a r b; do
                 ip netns add {p}$n
                 ip netns exec {p}$n sysctl -qw net.ipv4.ip_forward=1 \
                    net.ipv6.conf.all.forwarding=1 net.ipv6.conf.default.accept_dad=0 \
                    net.ipv6.conf.all.accept_dad=0 net.ipv4.conf.all.rp_filter=0 \
                    net.ipv4.conf.default.rp_filter=0 net.ipv4.icmp_ratelimit=0 \
                    net.ipv6.icmp.ratelimit=0
                 ip -n {p}$n link set lo up
             done
             for n in a b; do
                 ip link add eth0 netns {p}$n type veth peer name to$n netns {p}r
                 ip -n {p}$n link set eth0 up
                 ip -n {p}r link set to$n up
             done
             ip -n {p}b link set eth0 mtu {far_mtu}
             ip -n {p}r link set tob mtu {far_mtu}
             ip -n {p}a addr add 192.0.2.1/24 dev eth0
             ip -n {p}r addr add 192.0.2.254/24 dev toa
             ip -n {p}b addr add 198.51.100.1/24 dev eth0
             ip -n {p}r addr add 198.51.100.254/24 dev tob
             ip -n {p}a addr add fd00:a::1/64 dev eth0 nodad
             ip -n {p}r addr add fd00:a::fe/64 dev toa nodad
             ip -n {p}b addr add fd00:b::1/64 dev eth0 nodad
             ip -n {p}r addr add fd00:b::fe/64 dev tob nodad
             ip -n {p}a route add default via 192.0.2.254
             ip -n {p}b route add default via 198.51.100.254
             ip -n {p}a route add default via fd00:a::fe
             ip -n {p}b route add default via fd00:b::fe
            "
        ));
        Self { prefix, ipv6 }
    }

    /// Runs a shell command in a namespace.
    pub fn run(&self, namespace: &str, command: &str) {
        sh(&format!("ip netns exec {}{namespace} sh -ec '{command}'", self.prefix));
    }

    /// The underlay address of a node, of the family that the test uses.
    pub fn address(&self, node: &str) -> IpAddr {
        match (node, self.ipv6) {
            ("a", false) => "192.0.2.1",
            ("b", false) => "198.51.100.1",
            ("a", true) => "fd00:a::1",
            _ => "fd00:b::1",
        }
        .parse()
        .unwrap()
    }

    /// Bytes that the tunnel adds.
    pub fn overhead(&self) -> usize {
        if self.ipv6 { 48 } else { 28 }
    }

    /// Runs `f` on a thread in a namespace.
    pub fn within<R: Send>(&self, namespace: &str, f: impl FnOnce() -> R + Send) -> R {
        std::thread::scope(|scope| {
            let inside = || {
                self.enter(namespace);
                f()
            };
            scope.spawn(inside).join().unwrap()
        })
    }

    fn enter(&self, namespace: &str) {
        let file = File::open(format!("/run/netns/{}{namespace}", self.prefix)).unwrap();
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
    }

    /// Starts a forwarder; `inner` are addresses for its TUN device, of the given MTU. Without
    /// any it has no device, as a Server.
    pub fn start(&self, node: &str, port: u16, mtu: u16, inner: &[&str], config: Config) -> Node {
        let address = self.address(node);
        let with_device = !inner.is_empty();
        let (ready, started) = std::sync::mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let file = File::open(format!("/run/netns/{}{node}", self.prefix)).unwrap();
        let thread = std::thread::spawn(move || {
            setns(file, CloneFlags::CLONE_NEWNET).unwrap();
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.unwrap().block_on(async move {
                let device = with_device.then(|| {
                    let device = tun::open("aero0", mtu).unwrap();
                    tun::up(&device).unwrap();
                    device
                });
                let underlay = Arc::new(Underlay::bind(&[address], port).unwrap());
                let (sender, control) = mpsc::channel(1024);
                let forwarder = Forwarder::with_config(underlay, device, sender, config);
                ready.send((Arc::clone(&forwarder), control)).unwrap();
                tokio::select! {
                    ended = forwarder.run() => ended.unwrap(),
                    _ = stopped => {}
                }
            });
        });
        let (forwarder, control) = started.recv_timeout(LONG).unwrap();
        for address in inner {
            self.run(node, &format!("ip addr add {address} dev aero0"));
        }
        if with_device {
            let routes = "ip route add 10.0.0.0/8 dev aero0; ip route add 2001:db8::/32 dev aero0";
            self.run(node, routes);
        }
        Node { forwarder, control, stop: Some(stop), thread: Some(thread) }
    }

    /// Captures what passes the router's interface towards `a`, UDP only.
    pub fn capture(&self) -> Capture {
        self.within("r", || {
            let all = i32::from(0x0003u16.to_be());
            let socket =
                Socket::new(Domain::PACKET, Type::DGRAM, Some(Protocol::from(all))).unwrap();
            let index = nix::net::if_::if_nametoindex("toa").unwrap();
            // SAFETY: the kernel's structure for this family, all of it initialised.
            let ((), address) = unsafe {
                SockAddr::try_init(|storage, length| {
                    let ll = storage.cast::<libc::sockaddr_ll>();
                    (*ll).sll_family = u16::try_from(libc::AF_PACKET).unwrap();
                    (*ll).sll_protocol = 0x0003u16.to_be();
                    (*ll).sll_ifindex = i32::try_from(index).unwrap();
                    *length = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
                    Ok(())
                })
            }
            .unwrap();
            socket.bind(&address).unwrap();
            socket.set_recv_buffer_size(8 << 20).unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
            Capture { socket }
        })
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let p = &self.prefix;
        let script = format!("for n in a r b; do ip netns del {p}$n; done");
        let _ = Command::new("sh").args(["-c", &script]).output();
    }
}

/// A running forwarder.
pub struct Node {
    pub forwarder: Arc<Forwarder>,
    pub control: mpsc::Receiver<Control>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Drop for Node {
    fn drop(&mut self) {
        drop(self.stop.take());
        let outcome = self.thread.take().unwrap().join();
        if !std::thread::panicking() {
            outcome.unwrap();
        }
    }
}

/// A datagram on the underlay.
#[derive(Debug, Clone)]
pub struct Seen {
    pub from: SocketAddr,
    pub to: SocketAddr,
    pub ttl: u8,
    pub class: u8,
    /// IPv4 only.
    pub dont_fragment: bool,
    pub flow_label: u32,
    /// The whole IP packet.
    pub length: usize,
    /// Behind UDP.
    pub payload: Vec<u8>,
}

pub struct Capture {
    socket: Socket,
}

impl Capture {
    /// What is seen until `enough` says so, of what `wanted` accepts. Panics after [`LONG`].
    pub fn until(
        &self,
        wanted: impl Fn(&Seen) -> bool,
        enough: impl Fn(&[Seen]) -> bool,
    ) -> Vec<Seen> {
        let deadline = Instant::now() + LONG;
        let mut all = Vec::new();
        while !enough(&all) {
            assert!(Instant::now() < deadline, "not seen; what was seen: {all:#?}");
            all.extend(self.next().filter(|seen| wanted(seen)));
        }
        all
    }

    /// What passes within this time.
    pub fn during(&self, time: Duration) -> Vec<Seen> {
        let end = Instant::now() + time;
        let mut all = Vec::new();
        while Instant::now() < end {
            all.extend(self.next());
        }
        all
    }

    /// Forgets what has passed so far.
    pub fn skip(&self) {
        self.socket.set_nonblocking(true).unwrap();
        let mut buffer = [0; 2048];
        while io::Read::read(&mut &self.socket, &mut buffer).is_ok() {}
        self.socket.set_nonblocking(false).unwrap();
    }

    fn next(&self) -> Option<Seen> {
        let mut buffer = vec![0; 65_536];
        let length = io::Read::read(&mut &self.socket, &mut buffer).ok()?;
        parse(&buffer[..length])
    }
}

fn parse(packet: &[u8]) -> Option<Seen> {
    let port = |at: usize| u16::from_be_bytes([packet[at], packet[at + 1]]);
    match packet[0] >> 4 {
        4 if packet[9] == 17 => {
            assert_eq!(packet[0], 0x45);
            assert_eq!(packet[6] & 0x3f, 0, "fragmented by the underlay: {packet:?}");
            let ip = |at: usize| IpAddr::from(<[u8; 4]>::try_from(&packet[at..at + 4]).unwrap());
            let length = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            Some(Seen {
                from: (ip(12), port(20)).into(),
                to: (ip(16), port(22)).into(),
                ttl: packet[8],
                class: packet[1],
                dont_fragment: packet[6] & 0x40 != 0,
                flow_label: 0,
                length,
                payload: packet[28..length].to_vec(),
            })
        }
        6 if packet[6] == 17 || packet[6] == 44 => {
            assert_eq!(packet[6], 17, "fragmented by the underlay: {packet:?}");
            let ip = |at: usize| IpAddr::from(<[u8; 16]>::try_from(&packet[at..at + 16]).unwrap());
            let length = 40 + usize::from(u16::from_be_bytes([packet[4], packet[5]]));
            let first = u32::from_be_bytes([packet[0], packet[1], packet[2], packet[3]]);
            Some(Seen {
                from: (ip(8), port(40)).into(),
                to: (ip(24), port(42)).into(),
                ttl: packet[7],
                class: u8::try_from((first >> 20) & 0xff).unwrap(),
                dont_fragment: true,
                flow_label: first & 0xf_ffff,
                length,
                payload: packet[48..length].to_vec(),
            })
        }
        _ => None,
    }
}
