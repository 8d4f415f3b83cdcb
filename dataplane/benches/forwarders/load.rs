//! What is sent over a path, and what is measured.

use std::io::{IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg, sendmmsg, setsockopt, sockopt};
use serde_json::Value;

use super::net::{enter, pin};
use super::topology::{Path, pod_address};

/// How long one measurement of throughput takes.
const TIME: Duration = Duration::from_millis(1500);
const LATENCY_TIME: Duration = Duration::from_millis(800);
/// Length of a small packet's UDP payload.
const SMALL: usize = 64;
const SENT_AT_ONCE: usize = 32;
const RECEIVED_AT_ONCE: usize = 64;
const RECEIVE_BUFFER: usize = 4 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    Tcp(u8),
    SmallPackets,
    RoundTrip,
    AcrossProcessors,
}

impl Measure {
    pub const ALL: [Self; 5] =
        [Self::Tcp(1), Self::Tcp(4), Self::SmallPackets, Self::RoundTrip, Self::AcrossProcessors];

    pub fn label(self) -> &'static str {
        match self {
            Self::Tcp(1) => "tcp",
            Self::Tcp(_) => "tcp4",
            Self::SmallPackets => "packets",
            Self::RoundTrip => "round-trip",
            Self::AcrossProcessors => "across",
        }
    }

    /// Measures; names and values.
    pub fn take(self, path: &Path) -> anyhow::Result<Vec<(&'static str, f64)>> {
        match self {
            Self::Tcp(flows) => {
                let (gigabits, cpu) = tcp(path, flows)?;
                Ok(if flows == 1 {
                    vec![("tcp_1_gbit_s", gigabits), ("cpu_s_per_gb", cpu)]
                } else {
                    vec![("tcp_4_gbit_s", gigabits)]
                })
            }
            Self::SmallPackets => Ok(vec![("udp_64_packets_s", small_packets(path)?)]),
            Self::RoundTrip => Ok(vec![("round_trip_p50_us", round_trip(path, [0, 0])?)]),
            Self::AcrossProcessors => {
                Ok(vec![("round_trip_across_p50_us", round_trip(path, [0, 1])?)])
            }
        }
    }
}

/// Busy time of all processors, in seconds.
fn busy() -> anyhow::Result<f64> {
    let text = std::fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().context("/proc/stat is empty")?;
    let ticks: Vec<f64> = line.split_whitespace().skip(1).filter_map(|w| w.parse().ok()).collect();
    // user, nice, system, idle, iowait, irq, softirq. Nice is somebody else's.
    Ok((ticks[0] + ticks[2] + ticks[5] + ticks[6]) / 100.0)
}

/// Gigabits a second, and the machine's busy seconds per gigabyte.
fn tcp(path: &Path, flows: u8) -> anyhow::Result<(f64, f64)> {
    let mut server = Command::new("ip")
        .args(["netns", "exec", &path.pods[1].name, "iperf3", "-s", "-1", "--forceflush"])
        .stdout(Stdio::piped())
        .spawn()
        .context("iperf3 cannot be run; install the Debian package iperf3")?;
    // It says so when it listens.
    let out = server.stdout.take().context("no output")?;
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(out));
    for line in lines.by_ref() {
        if line?.contains("listening") {
            break;
        }
    }
    let reading = std::thread::spawn(move || lines.for_each(drop));
    let seconds = format!("{:.1}", TIME.as_secs_f64());
    let before = busy()?;
    let output = Command::new("ip")
        .args(["netns", "exec", &path.pods[0].name, "iperf3", "-J", "-t", &seconds])
        .args(["-c", &pod_address(1), "-P", &flows.to_string()])
        .output()?;
    let spent = busy()? - before;
    server.wait()?;
    let _ = reading.join();
    let result: Value = serde_json::from_slice(&output.stdout)?;
    let sum = result.pointer("/end/sum_received").context("iperf3 gave no result")?;
    let bits = sum["bits_per_second"].as_f64().context("no rate")?;
    let bytes = sum["bytes"].as_f64().context("no bytes")?;
    Ok((bits / 1e9, spent / (bytes / 1e9)))
}

/// Packets of 64 bytes that arrive in a second: as programs do that have many to send and to
/// receive, in batches, or the price of a system call and of a wake-up for each packet is most of
/// what is measured.
fn small_packets(path: &Path) -> anyhow::Result<f64> {
    let (stop, received) = (AtomicBool::new(false), AtomicU64::new(0));
    let [from, to] = sockets(path)?;
    to.set_read_timeout(Some(Duration::from_millis(100)))?;
    setsockopt(&to, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(1);
            let mut buffers = [[0; SMALL]; RECEIVED_AT_ONCE];
            let mut headers = MultiHeaders::<()>::preallocate(RECEIVED_AT_ONCE, None);
            while !stop.load(Ordering::Relaxed) {
                let mut slices: Vec<_> =
                    buffers.iter_mut().map(|b| [IoSliceMut::new(b.as_mut_slice())]).collect();
                let flags = MsgFlags::MSG_WAITFORONE;
                let got = recvmmsg(to.as_raw_fd(), &mut headers, slices.iter_mut(), flags, None);
                if let Ok(got) = got {
                    received.fetch_add(got.count() as u64, Ordering::Relaxed);
                }
            }
        });
        let sending = scope.spawn(|| {
            pin(0);
            let packet = [0; SMALL];
            let slices = [[IoSlice::new(&packet)]; SENT_AT_ONCE];
            let nowhere: [Option<()>; SENT_AT_ONCE] = [None; SENT_AT_ONCE];
            let mut headers = MultiHeaders::<()>::preallocate(SENT_AT_ONCE, None);
            let end = Instant::now() + TIME;
            while Instant::now() < end {
                let fd = from.as_raw_fd();
                let _ = sendmmsg(fd, &mut headers, &slices, nowhere, [], MsgFlags::empty());
            }
        });
        let start = Instant::now();
        sending.join().unwrap();
        let rate = received.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        Ok(rate)
    })
}

/// Sockets in both pods, connected with each other.
fn sockets(path: &Path) -> anyhow::Result<[UdpSocket; 2]> {
    let bind = |n: usize| {
        let name = path.pods[n].name.clone();
        let thread = std::thread::spawn(move || -> anyhow::Result<UdpSocket> {
            enter(&name)?;
            Ok(UdpSocket::bind(format!("[{}]:0", pod_address(n)))?)
        });
        thread.join().unwrap()
    };
    let (a, b) = (bind(0)?, bind(1)?);
    a.connect(b.local_addr()?)?;
    b.connect(a.local_addr()?)?;
    Ok([a, b])
}

/// Median time from question to answer, in microseconds. With both ends on one processor it is what
/// the packets' way takes; between two of a virtual machine, most of it is what it takes one to wake
/// the other.
fn round_trip(path: &Path, processors: [usize; 2]) -> anyhow::Result<f64> {
    let stop = AtomicBool::new(false);
    let [from, to] = sockets(path)?;
    for socket in [&from, &to] {
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    }
    std::thread::scope(|scope| {
        scope.spawn(|| {
            pin(processors[1]);
            let mut buffer = [0; 64];
            while !stop.load(Ordering::Relaxed) {
                if let Ok(n) = to.recv(&mut buffer) {
                    let _ = to.send(&buffer[..n]);
                }
            }
        });
        let asking = scope.spawn(|| {
            pin(processors[0]);
            let mut times = Vec::new();
            let mut buffer = [0; 64];
            let end = Instant::now() + LATENCY_TIME;
            while Instant::now() < end {
                let start = Instant::now();
                if from.send(b"question").is_ok() && from.recv(&mut buffer).is_ok() {
                    times.push(start.elapsed());
                }
            }
            times
        });
        let mut times = asking.join().unwrap();
        stop.store(true, Ordering::Relaxed);
        times.sort();
        let median = times.get(times.len() / 2).context("no answer at all")?;
        Ok(median.as_secs_f64() * 1e6)
    })
}

/// Neighbours resolved, and something carried at all.
pub fn warm_up(path: &Path) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(10);
    while round_trip(path, [0, 1]).is_err() {
        ensure!(Instant::now() < end, "no answer within ten seconds");
    }
    Ok(())
}
