//! Hosts on one underlay: a bridge in a namespace, a namespace for each host.

use std::fs::File;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::sync::{Mutex, Once};
use std::time::{Duration, Instant};

use aero_protocol::address::LinkLayerAddress;

/// Longest wait for anything that ought to happen at once; generous, since the machine may be
/// busy with other tests.
pub const SOON: Duration = Duration::from_secs(20);
const PREFIX: &str = "aero-io-";

static CLEAN: Once = Once::new();
static NUMBER: AtomicU32 = AtomicU32::new(0);

/// Family of an underlay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Underlay {
    V4,
    V6,
}

/// Both: what holds over one has to hold over the other.
pub const BOTH: [Underlay; 2] = [Underlay::V4, Underlay::V6];

impl Underlay {
    /// Host `n` of the underlay.
    pub fn ip(self, n: u16) -> String {
        match self {
            Self::V4 => format!("192.0.2.{n}"),
            Self::V6 => format!("fd77::{n:x}"),
        }
    }

    pub fn with_length(self, n: u16) -> String {
        format!("{}/{}", self.ip(n), if self == Self::V4 { 24 } else { 64 })
    }

    pub fn socket(self, n: u16, port: u16) -> String {
        match self {
            Self::V4 => format!("{}:{port}", self.ip(n)),
            Self::V6 => format!("[{}]:{port}", self.ip(n)),
        }
    }
}

/// An underlay with its hosts. Dropping it ends every program on them and removes all.
pub struct Net {
    scope: String,
    pub dir: tempfile::TempDir,
    programs: Mutex<Vec<(String, Child)>>,
}

/// A host: a network namespace with `eth0` on the underlay.
pub struct Host<'a> {
    pub net: &'a Net,
    pub name: String,
    pub netns: String,
}

impl Net {
    pub fn new() -> Self {
        CLEAN.call_once(remove_leftovers);
        let scope = format!("{PREFIX}{}-{}-", std::process::id(), NUMBER.fetch_add(1, Relaxed));
        let net = Self { scope, dir: tempfile::tempdir().unwrap(), programs: Mutex::default() };
        let fabric = net.scoped("fab");
        run("ip", &["netns", "add", &fabric]);
        run("ip", &["-n", &fabric, "link", "add", "br0", "type", "bridge"]);
        run("ip", &["-n", &fabric, "link", "set", "br0", "up"]);
        net
    }

    /// Runs `f` in a thread of the bridge's namespace: sockets made there stay there.
    pub fn in_fabric<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        inside(&self.scoped("fab"), f)
    }

    /// `ip ARGUMENTS` at the bridge.
    pub fn ip(&self, arguments: &str) -> String {
        let (fabric, words) =
            (self.scoped("fab"), arguments.split_whitespace().collect::<Vec<_>>());
        run("ip", &[&["-n", &fabric], &words[..]].concat())
    }

    fn scoped(&self, host: &str) -> String {
        format!("{}{host}", self.scope)
    }

    /// A host with addresses (each with its length).
    pub fn host(&self, name: &str, addresses: &[&str]) -> Host<'_> {
        let (fabric, netns) = (self.scoped("fab"), self.scoped(name));
        run("ip", &["netns", "add", &netns]);
        let outer = format!("v{name}");
        let pair = ["link", "add", &outer, "type", "veth", "peer", "name", "eth0", "netns", &netns];
        run("ip", &[&["-n", &fabric], &pair[..]].concat());
        run("ip", &["-n", &fabric, "link", "set", &outer, "master", "br0", "up"]);
        let host = Host { net: self, name: name.to_string(), netns };
        host.ip("link set lo up");
        host.ip("link set eth0 up");
        for address in addresses {
            host.address("add", address);
        }
        host
    }

    /// A host at number `n` of the underlay.
    pub fn at(&self, name: &str, underlay: Underlay, n: u16) -> Host<'_> {
        self.host(name, &[&underlay.with_length(n)])
    }

    /// A host that reaches the underlay, and is reached, through another by a cable of its own.
    pub fn behind(&self, name: &str, router: &Host<'_>, own: &str, gateway: &str) -> Host<'_> {
        let netns = self.scoped(name);
        run("ip", &["netns", "add", &netns]);
        let (cable, via) = (format!("to-{name}"), gateway.split('/').next().unwrap());
        router.ip(&format!("link add {cable} type veth peer name eth0 netns {netns}"));
        router.ip(&format!("link set {cable} up"));
        let (family, nodad) = if own.contains(':') { ("-6", " nodad") } else { ("-4", "") };
        router.ip(&format!("addr add {gateway} dev {cable}{nodad}"));
        router.run("sysctl", &["-qw", "net.ipv4.ip_forward=1"]);
        let host = Host { net: self, name: name.to_string(), netns };
        host.ip("link set lo up");
        host.ip("link set eth0 up");
        host.ip(&format!("addr add {own} dev eth0{nodad}"));
        host.ip(&format!("{family} route add default via {via} dev eth0"));
        host
    }

    /// Writes a file that lives as long as the net.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// What a program has said.
    pub fn log(&self, program: &str) -> String {
        std::fs::read_to_string(self.dir.path().join(format!("{program}.log"))).unwrap_or_default()
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        let mut programs = std::mem::take(&mut *self.programs.lock().unwrap());
        for (name, child) in &mut programs {
            let _ = child.kill();
            let _ = child.wait();
            if std::thread::panicking() {
                let log = self.log(name);
                let start = log.len().saturating_sub(4000);
                let start = (start..log.len()).find(|n| log.is_char_boundary(*n)).unwrap_or(0);
                eprintln!("--- {name}\n{}", &log[start..]);
            }
        }
        remove_namespaces(&self.scope);
    }
}

impl<'a> Host<'a> {
    /// `ip ARGUMENTS` on this host.
    pub fn ip(&self, arguments: &str) -> String {
        let words: Vec<&str> = arguments.split_whitespace().collect();
        run("ip", &[&["-n", &self.netns], &words[..]].concat())
    }

    /// Adds or deletes an underlay address, at once usable.
    pub fn address(&self, verb: &str, address: &str) {
        let nodad = if address.contains(':') && verb == "add" { " nodad" } else { "" };
        self.ip(&format!("addr {verb} {address} dev eth0{nodad}"));
    }

    /// Runs a program to its end on this host; what it printed.
    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        run("ip", &[&["netns", "exec", &self.netns, program], arguments].concat())
    }

    /// Starts a program on this host under a name of its own, its output in a log.
    pub fn start(&self, name: &str, program: &Path, arguments: &[&str]) {
        let log = File::options()
            .create(true)
            .append(true)
            .open(self.net.dir.path().join(format!("{name}.log")))
            .unwrap();
        let child = Command::new("ip")
            .args(["netns", "exec", &self.netns])
            .arg(program)
            .args(arguments)
            .env("AERO_LOG", "debug")
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.net.programs.lock().unwrap().push((name.to_string(), child));
    }

    /// Sends a program a signal. (`ip netns exec` has become the program.)
    pub fn signal(&self, name: &str, signal: nix::sys::signal::Signal) {
        let programs = self.net.programs.lock().unwrap();
        let (_, child) = programs.iter().rev().find(|(n, _)| n == name).unwrap();
        let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
        nix::sys::signal::kill(pid, signal).unwrap();
    }

    /// The process of a program. (`ip netns exec` has become the program.)
    pub fn pid(&self, name: &str) -> u32 {
        let programs = self.net.programs.lock().unwrap();
        programs.iter().rev().find(|(n, _)| n == name).unwrap().1.id()
    }

    /// Ends a program without a chance to say anything.
    pub fn kill(&self, name: &str) {
        let mut programs = self.net.programs.lock().unwrap();
        let at = programs.iter().rposition(|(n, _)| n == name).unwrap();
        let (_, mut child) = programs.remove(at);
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Asks a program to end, and waits until it has.
    pub fn stop(&self, name: &str) -> std::process::ExitStatus {
        self.signal(name, nix::sys::signal::Signal::SIGTERM);
        self.wait(name)
    }

    /// Waits until a program that was asked to has ended.
    pub fn wait(&self, name: &str) -> std::process::ExitStatus {
        let mut programs = self.net.programs.lock().unwrap();
        let at = programs.iter().rposition(|(n, _)| n == name).unwrap();
        let (_, mut child) = programs.remove(at);
        drop(programs);
        child.wait().unwrap()
    }

    pub fn log(&self, name: &str) -> String {
        self.net.log(name)
    }

    /// Runs `f` in a thread of this host's namespace: sockets made there stay there.
    pub fn inside<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        inside(&self.netns, f)
    }

    /// A UDP socket on this host.
    pub fn udp(&self, address: &str) -> UdpSocket {
        let address: SocketAddr = address.parse().unwrap();
        self.inside(|| UdpSocket::bind(address))
            .unwrap_or_else(|e| panic!("{address} on {}: {e}", self.name))
    }
}

fn inside<T: Send>(netns: &str, f: impl FnOnce() -> T + Send) -> T {
    let file = File::open(Path::new("/run/netns").join(netns)).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            f()
        });
        thread.join().unwrap()
    })
}

/// Starts the real Server on a host, and waits until it has read its table.
pub fn start_server(host: &Host<'_>, underlay: Underlay, n: u16, table: &Path) -> LinkLayerAddress {
    let before = host.log(&host.name).matches("table read").count();
    let ip = underlay.ip(n);
    let table = table.to_str().unwrap();
    host.start(&host.name, &agent(), &["server", "--host-ips", &ip, "--table", table]);
    await_that("the Server reads its table", SOON, || {
        host.log(&host.name).matches("table read").count() > before
    });
    underlay.socket(n, 8060).parse::<SocketAddr>().unwrap().into()
}

/// Starts the real Client `n` on a host.
pub fn start_client(host: &Host<'_>, n: u16, servers: &[LinkLayerAddress], more: &[&str]) {
    let (duid, name) = (super::tester::duid_text(n), &host.name);
    let servers: Vec<String> = servers.iter().map(ToString::to_string).collect();
    let mut arguments = vec!["client", "--duid", &duid];
    for server in &servers {
        arguments.extend(["--server", server]);
    }
    arguments.extend(more);
    host.start(name, &agent(), &arguments);
}

/// Waits until Client `n` has its address on its AERO interface.
pub fn await_address(host: &Host<'_>, n: u16) {
    let address = super::tester::inner(n).to_string();
    await_that(&format!("{} has {address}", host.name), SOON, || {
        let shown = try_run("ip", &["-n", &host.netns, "-6", "addr", "show", "dev", "aero0"]);
        shown.is_ok_and(|text| text.contains(&address))
    });
}

/// Whether a datagram gets from one address to another; tried until `bound`.
pub fn reaches(from: (&Host<'_>, IpAddr), to: (&Host<'_>, IpAddr), bound: Duration) -> bool {
    let receiver = to.0.udp(&SocketAddr::new(to.1, 0).to_string());
    let sender = from.0.udp(&SocketAddr::new(from.1, 0).to_string());
    receiver.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let (there, here) = (receiver.local_addr().unwrap(), sender.local_addr().unwrap());
    let end = Instant::now() + bound;
    let mut buffer = [0; 16];
    while Instant::now() < end {
        // Without a route yet this fails, and is tried again.
        let _ = sender.send_to(b"reached", there);
        if receiver.recv_from(&mut buffer).is_ok_and(|(_, source)| source == here) {
            return true;
        }
    }
    false
}

/// The program under test.
pub fn agent() -> PathBuf {
    let own = std::env::current_exe().unwrap();
    let path = own.parent().and_then(Path::parent).unwrap().join("aero-node-agent");
    assert!(path.exists(), "{} is not built: cargo build -p aero-node-agent", path.display());
    path
}

/// Waits until `look` finds what it looks for.
pub fn await_some<T>(what: &str, bound: Duration, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + bound;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < end, "not within {bound:?}: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

pub fn await_that(what: &str, bound: Duration, mut look: impl FnMut() -> bool) {
    await_some(what, bound, || look().then_some(()));
}

/// Runs a program to its end; what it printed.
pub fn run(program: &str, arguments: &[&str]) -> String {
    try_run(program, arguments).unwrap_or_else(|e| panic!("{e}"))
}

pub fn try_run(program: &str, arguments: &[&str]) -> Result<String, String> {
    let what = format!("{program} {}", arguments.join(" "));
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|e| format!("{what}: {e} (e2e/setup.sh installs what is needed)"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let error = String::from_utf8_lossy(&output.stderr);
    if output.status.success() { Ok(text) } else { Err(format!("{what}: {error}{text}")) }
}

/// Namespaces of runs whose process is gone, and what still runs in them.
fn remove_leftovers() {
    for name in namespaces(PREFIX) {
        let pid = name[PREFIX.len()..].split('-').next().unwrap_or_default().to_string();
        if !Path::new("/proc").join(&pid).exists() {
            remove_namespaces(&format!("{PREFIX}{pid}-"));
        }
    }
}

fn namespaces(prefix: &str) -> Vec<String> {
    let entries = std::fs::read_dir("/run/netns").into_iter().flatten().flatten();
    let names = entries.map(|e| e.file_name().to_string_lossy().into_owned());
    names.filter(|n| n.starts_with(prefix)).collect()
}

fn remove_namespaces(prefix: &str) {
    for name in namespaces(prefix) {
        // Programs that put themselves into the background.
        for pid in try_run("ip", &["netns", "pids", &name]).unwrap_or_default().lines() {
            if let Ok(pid) = pid.trim().parse() {
                let pid = nix::unistd::Pid::from_raw(pid);
                let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL);
            }
        }
        let _ = try_run("ip", &["netns", "del", &name]);
        let _ = std::fs::remove_dir_all(Path::new("/etc/netns").join(&name));
    }
}
