//! Numbered datagrams between hosts: which of them are lost, and how long none comes.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::net::{Host, SOON, await_that};

/// Numbered datagrams at a pace, from one host to another.
pub struct Numbered {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    sent: Arc<Mutex<Vec<Instant>>>,
    seen: Arc<Mutex<Vec<(usize, Instant)>>>,
}

/// What came of those that were sent after a moment.
pub struct Outcome {
    pub sent: usize,
    /// How long after the moment those were sent that did not come.
    pub lost: Vec<Duration>,
    /// Longest time between two that came.
    pub silence: Duration,
}

impl Numbered {
    pub fn start(from: (&Host<'_>, IpAddr), to: (&Host<'_>, IpAddr), every: Duration) -> Self {
        let receiver = to.0.udp(&SocketAddr::new(to.1, 0).to_string());
        let sender = from.0.udp(&SocketAddr::new(from.1, 0).to_string());
        let there = receiver.local_addr().unwrap();
        receiver.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let (sent, seen) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Vec::new())));
        let send = {
            let (stop, sent) = (stop.clone(), sent.clone());
            move || {
                while !stop.load(Relaxed) {
                    let number = {
                        let mut sent = sent.lock().unwrap();
                        sent.push(Instant::now());
                        sent.len() - 1
                    };
                    let _ = sender.send_to(&number.to_be_bytes(), there);
                    std::thread::sleep(every);
                }
            }
        };
        let receive = {
            let (stop, seen) = (stop.clone(), seen.clone());
            move || {
                let mut buffer = [0; 8];
                while !stop.load(Relaxed) {
                    if let Ok((8, _)) = receiver.recv_from(&mut buffer) {
                        seen.lock().unwrap().push((usize::from_be_bytes(buffer), Instant::now()));
                    }
                }
            }
        };
        let threads = vec![std::thread::spawn(send), std::thread::spawn(receive)];
        let stream = Self { stop, threads, sent, seen };
        await_that("packets flow", SOON, || stream.seen.lock().unwrap().len() > 20);
        stream
    }

    /// Ends it. What was sent in the last half second is not counted.
    pub fn end(mut self, after: Instant) -> Outcome {
        let end = Instant::now() - Duration::from_millis(500);
        self.stop.store(true, Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().unwrap();
        }
        let (sent, seen) = (self.sent.lock().unwrap(), self.seen.lock().unwrap());
        let arrived: BTreeSet<usize> = seen.iter().map(|(n, _)| *n).collect();
        let counted = || sent.iter().enumerate().filter(|(_, at)| **at > after && **at < end);
        let lost = counted().filter(|(n, _)| !arrived.contains(n)).map(|(_, at)| *at - after);
        let times: Vec<Instant> = std::iter::once(after)
            .chain(seen.iter().map(|(_, at)| *at).filter(|at| *at > after))
            .chain([end])
            .collect();
        let silence = times.windows(2).map(|w| w[1].saturating_duration_since(w[0])).max();
        Outcome {
            sent: counted().count(),
            lost: lost.collect(),
            silence: silence.unwrap_or_default(),
        }
    }
}
