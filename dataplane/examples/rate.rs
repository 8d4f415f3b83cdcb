//! Packets per second, and processor time per packet, of the user-space forwarder.
//!
//! Starts itself again as a Server and drives packets of 1000 bytes through it, a window at a
//! time. Run it in a network namespace of its own:
//! `unshare -n sh -c 'ip link set lo up; target/release/examples/rate 300000'`

use std::io;
use std::net::{Ipv6Addr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aero_dataplane::ForwardingTable;
use aero_dataplane::underlay::Underlay;
use aero_dataplane::userspace::Forwarder;
use aero_protocol::forwarding::{Change, NextHop, Route};
use tokio::sync::mpsc;

const SERVER: u16 = 8060;
const FROM: u16 = 18061;
const TO: u16 = 18062;
const WINDOW: usize = 32;

fn main() -> io::Result<()> {
    match std::env::args().nth(1).as_deref() {
        Some("forward") => forward(),
        n => measure(n.and_then(|n| n.parse().ok()).unwrap_or(200_000)),
    }
}

#[tokio::main(flavor = "current_thread")]
async fn forward() -> io::Result<()> {
    let underlay = Arc::new(Underlay::bind(&[Ipv6Addr::LOCALHOST.into()], SERVER)?);
    let (control, _engine) = mpsc::channel(8);
    let forwarder = Forwarder::new(underlay, None, control);
    for (prefix, port) in [("2001:db8:0:1::/64", FROM), ("2001:db8:0:2::/64", TO)] {
        let prefix = prefix.parse().map_err(io::Error::other)?;
        let l2 = SocketAddr::from((Ipv6Addr::LOCALHOST, port)).into();
        let route = Route { to: NextHop::Neighbor(l2), transit: true, until: None };
        forwarder.apply(&Change::SetRoute { prefix, route });
        forwarder.apply(&Change::SetSource { prefix, from: l2, until: None });
    }
    forwarder.run().await
}

fn measure(packets: usize) -> io::Result<()> {
    let mut child =
        Command::new(std::env::current_exe()?).arg("forward").stdin(Stdio::null()).spawn()?;
    let outcome = drive(&child, packets);
    child.kill()?;
    child.wait()?;
    outcome
}

fn drive(child: &Child, packets: usize) -> io::Result<()> {
    let from = UdpSocket::bind((Ipv6Addr::LOCALHOST, FROM))?;
    let to = UdpSocket::bind((Ipv6Addr::LOCALHOST, TO))?;
    to.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut packet = vec![0x60, 0, 0, 0, 3, 0xc0, 59, 64];
    packet.extend("2001:db8:0:1::1".parse::<Ipv6Addr>().map_err(io::Error::other)?.octets());
    packet.extend("2001:db8:0:2::1".parse::<Ipv6Addr>().map_err(io::Error::other)?.octets());
    packet.resize(1000, 7);
    let server = (Ipv6Addr::LOCALHOST, SERVER);
    let mut buffer = [0; 2048];
    // Until it serves.
    for _ in 0..50 {
        from.send_to(&packet, server)?;
        if to.recv(&mut buffer).is_ok() {
            break;
        }
    }
    let (mut received, mut lost) = (0, 0);
    let cpu = processor_time(child)?;
    let start = Instant::now();
    while received + lost < packets {
        for _ in 0..WINDOW {
            from.send_to(&packet, server)?;
        }
        for n in 0..WINDOW {
            if to.recv(&mut buffer).is_err() {
                lost += WINDOW - n;
                break;
            }
            received += 1;
        }
    }
    let elapsed = start.elapsed().as_secs_f64();
    let cpu = (processor_time(child)? - cpu).as_secs_f64();
    #[allow(clippy::cast_precision_loss)]
    let n = received as f64;
    println!(
        "{received} packets, {lost} lost: {:.0} packets/s, {:.2} us of processor time per packet",
        n / elapsed,
        cpu * 1e6 / n
    );
    Ok(())
}

/// User and system time of the child, from /proc (in hundredths of a second).
fn processor_time(child: &Child) -> io::Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id()))?;
    let behind_name = stat.rsplit(')').next().unwrap_or("");
    let ticks: u64 =
        behind_name.split_whitespace().skip(11).take(2).filter_map(|t| t.parse::<u64>().ok()).sum();
    Ok(Duration::from_millis(ticks * 10))
}
