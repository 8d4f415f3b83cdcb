//! Network namespaces with a node, its underlay and its pod.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};
use nix::unistd::Pid;
use socket2::{Domain, Protocol, SockAddr, Socket, Type};

/// How long to wait for a packet that has to come.
pub const PATIENCE: Duration = Duration::from_secs(5);
/// MTU of the underlay's devices.
pub const UNDERLAY_MTU: u16 = 1500;
pub const MTU: u16 = 1452;

/// Runs `ip` with the arguments in a text.
pub fn ip(args: &str) -> anyhow::Result<String> {
    run("ip", &args.split_whitespace().collect::<Vec<_>>())
}

pub fn run(program: &str, args: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(args).output().with_context(|| program.to_string())?;
    if !output.status.success() {
        bail!("{program} {}: {}", args.join(" "), String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A namespace, gone when dropped.
pub struct Netns {
    pub name: String,
}

impl Netns {
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let name = format!("aero-dp{}-{name}", std::process::id());
        ip(&format!("netns add {name}"))?;
        let this = Self { name };
        let settings = [
            "net.ipv6.conf.all.accept_dad=0",
            "net.ipv6.conf.default.accept_dad=0",
            "net.ipv6.conf.default.router_solicitations=0",
            "net.ipv6.conf.all.forwarding=1",
            "net.ipv4.ip_forward=1",
        ];
        this.exec("sysctl", &[&["-qw"], &settings[..]].concat())?;
        this.ip("link set lo up")?;
        Ok(this)
    }

    pub fn ip(&self, args: &str) -> anyhow::Result<String> {
        ip(&format!("-n {} {args}", self.name))
    }

    pub fn exec(&self, program: &str, args: &[&str]) -> anyhow::Result<String> {
        run("ip", &[&["netns", "exec", &self.name, program], args].concat())
    }

    /// Runs `f` on a thread in the namespace; sockets made there stay in it.
    pub fn inside<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        std::thread::scope(|scope| {
            scope
                .spawn(|| {
                    enter(&self.name).unwrap();
                    f()
                })
                .join()
                .unwrap_or_else(|e| std::panic::resume_unwind(e))
        })
    }

    /// A UDP socket that sends no checksums, as tunnels do.
    pub fn udp(&self, address: &str) -> UdpSocket {
        self.socket(address, false)
    }

    pub fn socket(&self, address: &str, checksums: bool) -> UdpSocket {
        let address: SocketAddr = address.parse().unwrap();
        self.inside(|| {
            let domain = Domain::for_address(address);
            let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP)).unwrap();
            if !checksums {
                let v6 = address.is_ipv6();
                // SO_NO_CHECK; UDP_NO_CHECK6_TX and _RX.
                option(&socket, if v6 { 17 } else { 1 }, if v6 { 101 } else { 11 });
                if v6 {
                    option(&socket, 17, 102);
                }
            }
            // An address that is not this namespace's: a forger's.
            if address.is_ipv4() {
                socket.set_ip_transparent_v4(true).unwrap();
            } else {
                option(&socket, 41, 75);
            }
            socket.bind(&SockAddr::from(address)).unwrap();
            let socket = UdpSocket::from(socket);
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            socket
        })
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        let _ = ip(&format!("netns del {}", self.name));
    }
}

fn option(socket: &Socket, level: i32, name: i32) {
    let one: libc::c_int = 1;
    // SAFETY: the descriptor is open, and the value is an int that outlives the call.
    let outcome = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, name, std::ptr::from_ref(&one).cast(), 4)
    };
    assert_eq!(outcome, 0, "{}", std::io::Error::last_os_error());
}

/// Keeps this thread, and those that it starts, on a processor.
pub fn pin(cpu: usize) {
    let mut set = CpuSet::new();
    // On a machine of one processor there is nothing to choose.
    if set.set(cpu).is_ok() {
        let _ = sched_setaffinity(Pid::from_raw(0), &set);
    }
}

/// Moves this thread into a namespace.
pub fn enter(name: &str) -> anyhow::Result<()> {
    let file = std::fs::File::open(format!("/run/netns/{name}"))?;
    setns(file, CloneFlags::CLONE_NEWNET)?;
    Ok(())
}

/// A node (192.0.2.N, 2001:db8:77::N) with a pod, on a bridge.
pub struct Node {
    pub netns: Netns,
    pub pod: Netns,
    pub number: u8,
}

pub const POD_MAC: [u8; 6] = [2, 0xae, 0, 0, 0, 2];
pub const NODE_MAC: [u8; 6] = [2, 0xae, 0, 0, 0, 1];

impl Node {
    /// `prefix` without `::`, of 64 bits.
    pub fn new(fabric: &Netns, number: u8, prefix: &str) -> anyhow::Result<Self> {
        let node = Netns::new(&format!("n{number}"))?;
        let pod = Netns::new(&format!("p{number}"))?;
        let (n, p) = (&node.name, &pod.name);
        fabric.ip(&format!("link add v{number} mtu {UNDERLAY_MTU} type veth peer name eth0 netns {n} mtu {UNDERLAY_MTU}"))?;
        fabric.ip(&format!("link set v{number} master br0 up"))?;
        node.ip(&format!("addr add 192.0.2.{number}/24 dev eth0"))?;
        node.ip(&format!("addr add 2001:db8:77::{number}/64 dev eth0 nodad"))?;
        node.ip("link set eth0 up")?;
        node.ip(&format!("link add aeropod mtu {MTU} address 02:ae:00:00:00:01 type veth peer name aero0 netns {p} mtu {MTU} address 02:ae:00:00:00:02"))?;
        node.ip("link set aeropod up")?;
        node.ip("addr add fe80::1/64 dev aeropod nodad")?;
        pod.ip("link set aero0 up")?;
        pod.ip("addr add fe80::2/64 dev aero0 nodad")?;
        pod.ip(&format!("addr add {prefix}::1/128 dev aero0 nodad"))?;
        pod.ip(&format!("route add 2001:d00::/24 via fe80::1 dev aero0 src {prefix}::1"))?;
        pod.ip("neigh replace fe80::1 dev aero0 lladdr 02:ae:00:00:00:01 nud permanent")?;
        node.ip("neigh replace fe80::2 dev aeropod lladdr 02:ae:00:00:00:02 nud permanent")?;
        node.ip(&format!("route add {prefix}::/64 via fe80::2 dev aeropod"))?;
        Ok(Self { netns: node, pod, number })
    }

    /// What the agent does with its device once it is there.
    pub fn device_up(&self) -> anyhow::Result<()> {
        self.netns.ip("link set aero0 addrgenmode none multicast off up")?;
        self.netns.ip("route replace 2001:d00::/24 dev aero0").map(drop)
    }
}

/// The underlay: a bridge that has the addresses of all who are no real node.
pub fn fabric(neighbours: &[&str]) -> anyhow::Result<Netns> {
    let fabric = Netns::new("net")?;
    fabric.ip("link add br0 type bridge")?;
    fabric.ip("link set br0 up")?;
    for address in neighbours {
        let (length, more) = if address.contains(':') { (64, "nodad") } else { (24, "") };
        fabric.ip(&format!("addr add {address}/{length} dev br0 {more}"))?;
    }
    Ok(fabric)
}
