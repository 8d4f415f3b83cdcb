//! Questions and answers between pods and hosts outside all the time, from within their network
//! namespaces: what of them is lost, and for how long.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{Ipv6Addr, SocketAddrV6, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};

/// Between two questions of a flow.
const EVERY: Duration = Duration::from_millis(20);
const PORT: u16 = 7107;

/// Who asks and answers.
#[derive(Debug, Clone)]
pub struct End {
    pub name: String,
    /// Its network namespace.
    pub netns: PathBuf,
    pub address: Ipv6Addr,
}

impl End {
    /// A socket that is bound to the end's own address and nothing else.
    fn socket(&self, port: u16) -> anyhow::Result<UdpSocket> {
        let address = SocketAddrV6::new(self.address, port, 0, 0);
        let what = || format!("{} has no {address}", self.name);
        let socket = inside(&self.netns, || UdpSocket::bind(address))?.with_context(what)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    }
}

/// Does something in a network namespace.
fn inside<T: Send>(netns: &Path, f: impl FnOnce() -> T + Send) -> anyhow::Result<T> {
    let file = File::open(netns).with_context(|| format!("{} is gone", netns.display()))?;
    std::thread::scope(|scope| {
        let thread = scope.spawn(move || {
            nix::sched::setns(file, nix::sched::CloneFlags::CLONE_NEWNET)?;
            Ok(f())
        });
        thread.join().unwrap_or_else(|_| bail!("a thread panicked"))
    })
}

struct Flow {
    name: String,
    socket: UdpSocket,
    to: SocketAddrV6,
    answers: Arc<Mutex<Vec<Instant>>>,
}

/// All flows, until it is dropped.
pub struct Flows {
    answers: BTreeMap<String, Arc<Mutex<Vec<Instant>>>>,
    stop: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Flows {
    /// Starts to ask: from each of the first to each of the second that is another.
    pub fn start(from: &[End], to: &[End]) -> anyhow::Result<Self> {
        let answering: Vec<UdpSocket> =
            to.iter().map(|end| end.socket(PORT)).collect::<anyhow::Result<_>>()?;
        let mut flows = Vec::new();
        for a in from {
            for b in to.iter().filter(|b| b.address != a.address) {
                let to = SocketAddrV6::new(b.address, PORT, 0, 0);
                let name = format!("{} -> {}", a.name, b.name);
                flows.push(Flow { name, socket: a.socket(0)?, to, answers: Arc::default() });
            }
        }
        let answers = flows.iter().map(|f| (f.name.clone(), f.answers.clone())).collect();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = Some(std::thread::spawn(move || talk(&flows, &answering, &stopped)));
        Ok(Self { answers, stop, thread })
    }

    /// Waits until every flow has had ten answers after a moment, the last of them just now.
    pub fn wait(&self, after: Instant, within: Duration) -> anyhow::Result<()> {
        let began = Instant::now();
        loop {
            let silent: Vec<&String> = self
                .answers
                .iter()
                .filter(|(_, times)| {
                    let times = times.lock().unwrap();
                    times.iter().rev().take_while(|t| **t > after).count() < 10
                        || times.last().is_none_or(|t| t.elapsed() > 20 * EVERY)
                })
                .map(|(name, _)| name)
                .collect();
            if silent.is_empty() {
                return Ok(());
            }
            if began.elapsed() > within {
                bail!("not within {within:?}: answers of {silent:?}");
            }
            std::thread::sleep(EVERY);
        }
    }

    /// The longest silence of any flow of pods, or of hosts outside, from a moment to now, and whose
    /// it was.
    pub fn silence(&self, from: Instant, outside: bool) -> (Duration, String) {
        let now = Instant::now();
        let longest = |times: &Mutex<Vec<Instant>>| {
            let times = times.lock().unwrap();
            let times = times.iter().copied().filter(|t| *t > from);
            let mut last = from;
            times.chain([now]).map(|t| t - std::mem::replace(&mut last, t)).max()
        };
        let these = self.answers.iter().filter(|(name, _)| name.starts_with('X') == outside);
        let all = these.map(|(n, t)| (longest(t).unwrap_or_default(), n.clone()));
        all.max().unwrap_or_default()
    }
}

impl Drop for Flows {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// One thread for all: what cannot be sent or is not there is lost, and the silence says so.
fn talk(flows: &[Flow], answering: &[UdpSocket], stop: &AtomicBool) {
    let mut buffer = [0; 64];
    let mut asked = Instant::now() - EVERY;
    while !stop.load(Relaxed) {
        if asked.elapsed() >= EVERY {
            asked = Instant::now();
            for flow in flows {
                let _ = flow.socket.send_to(b"?", flow.to);
            }
        }
        for socket in answering {
            while let Ok((n, from)) = socket.recv_from(&mut buffer) {
                let _ = socket.send_to(&buffer[..n], from);
            }
        }
        for flow in flows {
            while let Ok((_, from)) = flow.socket.recv_from(&mut buffer) {
                // From the address that was asked, and no other.
                if from == flow.to.into() {
                    flow.answers.lock().unwrap().push(Instant::now());
                }
            }
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}
