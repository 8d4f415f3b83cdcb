//! `aero-talk`: the instrument by which moves are measured. One side echoes, the other asks all
//! the time and writes down every answer.

#![forbid(unsafe_code)]

use std::io::Write;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use clap::{Parser, Subcommand};
use serde_json::json;

/// Echoes datagrams, or asks for echoes all the time and writes down every answer.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, Subcommand)]
enum Role {
    /// Answer every datagram with its content and the name of this instance.
    Serve {
        /// UDP port.
        #[arg(long, default_value_t = 7007)]
        port: u16,
    },
    /// Ask targets all the time; one JSON line on standard output per answer: target, number,
    /// times of sending and receiving in microseconds of the clock, instance that answered.
    Ask {
        /// Milliseconds between questions.
        #[arg(long, default_value_t = 10)]
        every: u64,
        /// `name=address:port`, as many as there are.
        #[arg(required = true)]
        targets: Vec<String>,
    },
    /// Ask once; exit status 0 if an answer comes.
    Once {
        /// `address:port`.
        target: SocketAddr,
        /// Milliseconds to wait; asked again every 100.
        #[arg(long, default_value_t = 2000)]
        within: u64,
    },
}

fn micros() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

fn main() -> ExitCode {
    let outcome = match Args::parse().role {
        Role::Serve { port } => serve(port),
        Role::Ask { every, targets } => ask(Duration::from_millis(every), &targets),
        Role::Once { target, within } => once(target, Duration::from_millis(within)),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("aero-talk: {e}");
            ExitCode::FAILURE
        }
    }
}

/// Bound to the unspecified address: an answer leaves from the address that the route back
/// prefers, which for correspondents on the link is the stable one.
fn any(port: u16) -> std::io::Result<UdpSocket> {
    UdpSocket::bind((Ipv6Addr::UNSPECIFIED, port)).or_else(|_| UdpSocket::bind(("0.0.0.0", port)))
}

fn serve(port: u16) -> std::io::Result<()> {
    let socket = any(port)?;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let instance = format!("{}@{}", host.trim(), micros());
    println!("{}", json!({"serving": port, "instance": instance}));
    let mut buffer = [0; 2048];
    loop {
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        let mut answer = buffer.get(..length).unwrap_or_default().to_vec();
        answer.push(b' ');
        answer.extend(instance.as_bytes());
        // Unanswered is lost, and the other side counts it.
        let _ = socket.send_to(&answer, from);
    }
}

fn ask(every: Duration, targets: &[String]) -> std::io::Result<()> {
    let out = Arc::new(Mutex::new(std::io::stdout()));
    let mut threads = Vec::new();
    for target in targets {
        let (name, address) = target
            .split_once('=')
            .ok_or_else(|| std::io::Error::other(format!("{target:?} is not name=address:port")))?;
        let address: SocketAddr = address
            .parse()
            .map_err(|_| std::io::Error::other(format!("{address:?} is not address:port")))?;
        let socket = any(0)?;
        let receiver = socket.try_clone()?;
        let (name, out) = (name.to_string(), Arc::clone(&out));
        threads.push(std::thread::spawn(move || {
            for n in 0u64.. {
                // An error is about a path that may come back.
                let _ = socket.send_to(format!("{n} {}", micros()).as_bytes(), address);
                std::thread::sleep(every);
            }
        }));
        threads.push(std::thread::spawn(move || {
            let mut buffer = [0; 2048];
            loop {
                let Ok((length, _)) = receiver.recv_from(&mut buffer) else { continue };
                let received = micros();
                let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
                let mut fields = text.split(' ');
                let number = |f: Option<&str>| f.and_then(|f| f.parse::<u64>().ok());
                let (n, sent) = (number(fields.next()), number(fields.next()));
                let line =
                    json!({"t": name, "n": n, "sent": sent, "got": received, "by": fields.next()});
                let mut out = out.lock().unwrap_or_else(PoisonError::into_inner);
                let _ = writeln!(out, "{line}");
                let _ = out.flush();
            }
        }));
    }
    for thread in threads {
        let _ = thread.join();
    }
    Ok(())
}

fn once(target: SocketAddr, within: Duration) -> std::io::Result<()> {
    let socket = any(0)?;
    socket.set_read_timeout(Some(Duration::from_millis(100)))?;
    let give_up = micros() + u64::try_from(within.as_micros()).unwrap_or(0);
    let mut buffer = [0; 2048];
    while micros() < give_up {
        let _ = socket.send_to(format!("0 {}", micros()).as_bytes(), target);
        if let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let text = String::from_utf8_lossy(buffer.get(..length).unwrap_or_default());
            println!("{from}: {text}");
            return Ok(());
        }
    }
    Err(std::io::Error::other(format!("no answer from {target} within {within:?}")))
}
