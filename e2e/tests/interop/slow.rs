//! A host whose packets take as long as one likes. Kernels need not have netem, so a thread carries
//! them from the host's cable to the bridge.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrLike as _, bind, recv, send,
    setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

use super::net::Host;

/// The slow way from a host to the bridge; the way to it is as fast as ever.
pub struct SlowWay {
    micros: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl SlowWay {
    /// In place of the host's cable.
    pub fn of(host: &Host<'_>, delay: Duration) -> Self {
        let (net, name) = (host.net, &host.name);
        let (cable, near, far) = (format!("v{name}"), format!("w{name}"), format!("x{name}"));
        net.ip(&format!("link set {cable} nomaster"));
        net.ip(&format!("link add {near} type veth peer name {far}"));
        net.ip(&format!("link set {far} master br0 up"));
        net.ip(&format!("link set {near} up"));
        // What is read here must be as it would be on a wire.
        let whole =
            |interface: &str| ["-K", interface, "tx", "off", "gso", "off"].map(String::from);
        let arguments = whole("eth0");
        host.run("ethtool", &arguments.each_ref().map(String::as_str));
        let arguments = whole(&far);
        net.in_fabric(|| super::net::run("ethtool", &arguments.each_ref().map(String::as_str)));
        let (cable, near) = net.in_fabric(|| (Arc::new(open(&cable)), Arc::new(open(&near))));
        let (micros, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let way = Self { micros, stop, threads: Vec::new() };
        way.takes(delay);
        way.carrying(cable, near)
    }

    /// What a packet takes from now on.
    pub fn takes(&self, delay: Duration) {
        self.micros.store(u64::try_from(delay.as_micros()).unwrap(), Relaxed);
    }

    fn carrying(mut self, cable: Arc<OwnedFd>, near: Arc<OwnedFd>) -> Self {
        let (waiting, due) = mpsc::channel::<(Instant, Vec<u8>)>();
        let (from, to) = (cable.clone(), near.clone());
        let (micros, stop) = (self.micros.clone(), self.stop.clone());
        self.threads.push(std::thread::spawn(move || {
            each_frame(&from, &stop, |frame| {
                let at = Instant::now() + Duration::from_micros(micros.load(Relaxed));
                let _ = waiting.send((at, frame.to_vec()));
            });
        }));
        // In order: what comes after a slow one is not faster.
        self.threads.push(std::thread::spawn(move || {
            for (at, frame) in due {
                std::thread::sleep(at.saturating_duration_since(Instant::now()));
                let _ = send(to.as_raw_fd(), &frame, MsgFlags::empty());
            }
        }));
        let stop = self.stop.clone();
        self.threads.push(std::thread::spawn(move || {
            each_frame(&near, &stop, |frame| {
                let _ = send(cable.as_raw_fd(), frame, MsgFlags::empty());
            });
        }));
        self
    }
}

impl Drop for SlowWay {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// A socket for whole frames of an interface; it does not see what it has sent itself.
fn open(interface: &str) -> OwnedFd {
    let (family, all) = (AddressFamily::Packet, SockProtocol::EthAll);
    let socket = socket(family, SockType::Raw, SockFlag::SOCK_CLOEXEC, all).unwrap();
    let address = nix::ifaddrs::getifaddrs()
        .unwrap()
        .filter(|i| i.interface_name == interface)
        .filter_map(|i| i.address)
        .find(|a| a.family() == Some(family))
        .unwrap();
    bind(socket.as_raw_fd(), address.as_link_addr().unwrap()).unwrap();
    setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(0, 50_000)).unwrap();
    socket
}

fn each_frame(socket: &OwnedFd, stop: &AtomicBool, mut take: impl FnMut(&[u8])) {
    let mut buffer = vec![0; 65_536];
    while !stop.load(Relaxed) {
        if let Ok(length) = recv(socket.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
            take(&buffer[..length]);
        }
    }
}
