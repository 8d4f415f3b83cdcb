//! What is in the kernel outlives the process, and goes when it has to.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use aero_dataplane::ebpf::{self, Hooks};
use aero_elements::faults::{Level, held_in};
use aero_protocol::forwarding::{Change, NextHop};
use anyhow::{Context, ensure};

use super::net::{Node, PATIENCE, fabric};
use super::node::{Accepts, ROOT, Running, l2, on, options, route, spawn, to};

/// A stream between two pods that goes on until it is told to end.
pub fn stream<R>(
    from: &Node,
    to: &Node,
    address: &str,
    during: impl FnOnce(&AtomicU64) -> anyhow::Result<R>,
) -> anyhow::Result<R> {
    let (received, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let listener = to.pod.inside(|| TcpListener::bind("[::]:7000"))?;
    let address = format!("[{address}]:7000");
    let mut sender =
        from.pod.inside(|| TcpStream::connect_timeout(&address.parse().unwrap(), PATIENCE))?;
    let (mut receiver, _) = listener.accept()?;
    receiver.set_read_timeout(Some(PATIENCE))?;
    sender.set_write_timeout(Some(PATIENCE))?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let buffer = vec![7; 1 << 17];
            while !stop.load(Ordering::Relaxed) {
                if sender.write_all(&buffer).is_err() {
                    break;
                }
            }
            let _ = sender.shutdown(std::net::Shutdown::Both);
        });
        scope.spawn(|| {
            let mut buffer = vec![0; 1 << 17];
            while let Ok(n) = receiver.read(&mut buffer) {
                if n == 0 {
                    break;
                }
                received.fetch_add(n as u64, Ordering::Relaxed);
            }
        });
        let outcome = during(&received);
        stop.store(true, Ordering::Relaxed);
        outcome
    })
}

/// Waits for another megabyte; how long it took.
pub fn another_megabyte(received: &AtomicU64) -> anyhow::Result<Duration> {
    let (start, goal) = (Instant::now(), received.load(Ordering::Relaxed) + (1 << 20));
    while received.load(Ordering::Relaxed) < goal {
        ensure!(start.elapsed() < PATIENCE, "nothing flows any more");
        std::thread::sleep(Duration::from_millis(1));
    }
    Ok(start.elapsed())
}

/// Numbered packets from pod to pod, two thousand a second; those that did not arrive.
struct Numbered {
    sent: AtomicU64,
    received: AtomicU64,
    stop: AtomicBool,
}

impl Numbered {
    fn send(&self, socket: &UdpSocket, to: &str) {
        while !self.stop.load(Ordering::Relaxed) {
            let n = self.sent.load(Ordering::Relaxed);
            if socket.send_to(&n.to_be_bytes(), to).is_ok() {
                self.sent.store(n + 1, Ordering::Relaxed);
            }
            std::thread::sleep(Duration::from_micros(500));
        }
    }

    /// Counts what comes, until nothing more does.
    fn receive(&self, socket: &UdpSocket) {
        let mut buffer = [0; 64];
        loop {
            match socket.recv(&mut buffer) {
                Ok(_) => drop(self.received.fetch_add(1, Ordering::Relaxed)),
                Err(_) if self.stop.load(Ordering::Relaxed) => return,
                Err(_) => {}
            }
        }
    }
}

/// The pins of a node's agent as an earlier layout of the maps would have them.
fn made_by_an_earlier_version(number: u8) -> anyhow::Result<()> {
    let (now, before) = (Path::new(ROOT).join("v2"), Path::new(ROOT).join("v1"));
    std::fs::create_dir_all(&before)?;
    let name = format!("agent-{number}");
    std::fs::rename(now.join(&name), before.join(&name)).context("moving the pins")
}

pub fn killed() -> anyhow::Result<()> {
    let test = "traffic_goes_on_when_the_process_is_killed_and_when_the_next_takes_over";
    let figure = restarted(|| Ok(()))?;
    held_in(test, &["F14"], Level::Namespaces).figure(format!("both agents killed: {figure}"));
    Ok(())
}

/// The next process has another layout of the maps.
pub fn upgraded() -> anyhow::Result<()> {
    let test = "an_upgrade_to_another_layout_of_the_maps_loses_no_packet";
    let figure = restarted(|| [1, 2].into_iter().try_for_each(made_by_an_earlier_version))?;
    held_in(test, &["F14"], Level::Namespaces).figure(format!("and upgraded: {figure}"));
    ensure!(!Path::new(ROOT).exists(), "the earlier version's pins are left");
    Ok(())
}

/// Both agents are killed under load, and started again after `meanwhile`; what that cost.
fn restarted(meanwhile: impl Fn() -> anyhow::Result<()>) -> anyhow::Result<String> {
    let fabric = fabric(&[])?;
    let (a, b) = ("2001:d00:0:1", "2001:d00:0:2");
    let (one, two) = (Node::new(&fabric, 1, a)?, Node::new(&fabric, 2, b)?);
    let both = |of_two| [spawn(&one, (2, b), a, Accepts::Peer), spawn(&two, (1, a), b, of_two)];
    let mut agents = both(Accepts::Source);
    let numbered = Numbered { sent: 0.into(), received: 0.into(), stop: AtomicBool::new(false) };
    let (from, at) = (one.pod.udp(&format!("[{a}::1]:0")), two.pod.udp(&format!("[{b}::1]:7002")));
    at.set_read_timeout(Some(Duration::from_millis(500)))?;
    let target = format!("[{b}::1]:7002");
    let outcome = std::thread::scope(|scope| {
        let sending = scope.spawn(|| numbered.send(&from, &target));
        scope.spawn(|| numbered.receive(&at));
        let outcome = stream(&one, &two, &format!("{b}::1"), |received| {
            another_megabyte(received)?;
            let (start, before) = (Instant::now(), received.load(Ordering::Relaxed));
            for agent in &mut agents {
                agent.kill()?;
                agent.wait()?;
            }
            for _ in 0..20 {
                another_megabyte(received).context("with both agents dead")?;
            }
            // A new connection, too: nothing but the kernel is there to carry it.
            let listener = two.pod.inside(|| TcpListener::bind("[::]:7001"))?;
            let greeting = one.pod.inside(|| {
                TcpStream::connect_timeout(&format!("[{b}::1]:7001").parse().unwrap(), PATIENCE)
            });
            greeting.context("a connection with both agents dead")?;
            drop(listener);
            meanwhile()?;
            agents = both(Accepts::Inherited);
            for _ in 0..5 {
                another_megabyte(received).context("after the next agents took over")?;
            }
            let bits = 8 * (received.load(Ordering::Relaxed) - before);
            Ok(bits as f64 / 1e9 / start.elapsed().as_secs_f64())
        });
        numbered.stop.store(true, Ordering::Relaxed);
        let _ = sending.join();
        outcome
    });
    for agent in &mut agents {
        agent.kill()?;
        agent.wait()?;
    }
    for number in [1, 2] {
        let node = if number == 1 { &one } else { &two };
        let options = options(number, "agent", 8061, true, Hooks::Auto);
        node.netns.inside(|| ebpf::remove(&options));
    }
    let rate = outcome?;
    let (sent, received) = (numbered.sent.into_inner(), numbered.received.load(Ordering::Relaxed));
    ensure!(sent > 200, "only {sent} packets were sent");
    ensure!(sent == received, "{} of {sent} packets were lost", sent - received);
    Ok(format!("0 of {sent} packets lost beside {rate:.1} Gb/s of TCP"))
}

/// A Server beside an agent: the pod's packets go to the Server on its own node, which sends them
/// on to the other node, and the other way round.
pub fn one_node() -> anyhow::Result<()> {
    by_server(["192.0.2.1:8060", "192.0.2.1:8060"], ["192.0.2.1:8061", "192.0.2.2:8061"])
}

/// The same, and the other node speaks IPv6 with the Server.
pub fn two_families() -> anyhow::Result<()> {
    by_server(
        ["192.0.2.1:8060", "[2001:db8:77::1]:8060"],
        ["192.0.2.1:8061", "[2001:db8:77::2]:8061"],
    )
}

/// The Server's addresses as the two agents use them, and the agents' as the Server does.
fn by_server(servers: [&str; 2], addresses: [&str; 2]) -> anyhow::Result<()> {
    let fabric = fabric(&[])?;
    let (a, b) = ("2001:d00:0:1", "2001:d00:0:2");
    let (one, two) = (Node::new(&fabric, 1, a)?, Node::new(&fabric, 2, b)?);
    let setup = |node: &Node, prefix: &str, server: &str| {
        let running = Running::start(node, 8061, true, Some(Hooks::Auto));
        let table = running.table();
        table.apply(&Change::AddPeer(l2(server)));
        table.apply(&route("2001:d00::/24", to(server), false));
        table.apply(&route(&format!("{prefix}::/64"), NextHop::Local, false));
        running.connect(&format!("{prefix}::/64"));
        running
    };
    // None of these runs: there is nobody to read a socket or the TUN device.
    let _agents =
        (on(&one, || setup(&one, a, servers[0])), on(&two, || setup(&two, b, servers[1])));
    let _server = on(&one, || {
        let running = Running::start(&one, 8060, false, Some(Hooks::Auto));
        let table = running.table();
        for (prefix, agent) in [(a, addresses[0]), (b, addresses[1])] {
            let prefix = format!("{prefix}::/64");
            table.apply(&route(&prefix, to(agent), true));
            let prefix = prefix.parse().unwrap();
            table.apply(&Change::SetSource { prefix, from: l2(agent), until: None });
        }
        running
    });
    stream(&one, &two, &format!("{b}::1"), |received| {
        for _ in 0..10 {
            another_megabyte(received)?;
        }
        Ok(())
    })?;
    stream(&two, &one, &format!("{a}::1"), |received| {
        for _ in 0..10 {
            another_megabyte(received)?;
        }
        Ok(())
    })
}

/// A node that translates a Service's address and drops what its connection tracking does not
/// understand, as kube-proxy makes it: a flow that it has seen one half of has to come back to it,
/// and one that took the short way must not.
pub fn service() -> anyhow::Result<()> {
    let fabric = fabric(&[])?;
    let (a, b) = ("2001:d00:0:1", "2001:d00:0:2");
    let (one, two) = (Node::new(&fabric, 1, a)?, Node::new(&fabric, 2, b)?);
    let service = "fd05::10";
    one.pod.ip(&format!("route add {service}/128 via fe80::1 dev aero0 src {a}::1"))?;
    let rules = format!(
        "table ip6 proxy {{
            chain nat {{ type nat hook prerouting priority dstnat; ip6 daddr {service} dnat to {b}::1; }}
            chain forward {{ type filter hook forward priority filter; ct state invalid drop; }}
        }}"
    );
    one.netns.exec("nft", &[&rules])?;
    let setup = |node: &Node, prefix: &str, other: &str| {
        let running = Running::start(node, 8061, true, Some(Hooks::Auto));
        let table = running.table();
        table.apply(&Change::AddPeer(l2(other)));
        table.apply(&route("2001:d00::/24", to(other), false));
        table.apply(&route(&format!("{prefix}::/64"), NextHop::Local, false));
        running.connect(&format!("{prefix}::/64"));
        running
    };
    let agents = (
        on(&one, || setup(&one, a, "192.0.2.2:8061")),
        on(&two, || setup(&two, b, "192.0.2.1:8061")),
    );
    for address in [service, &format!("{b}::1")] {
        stream(&one, &two, address, |received| {
            for _ in 0..5 {
                another_megabyte(received)?;
            }
            Ok(())
        })
        .with_context(|| format!("to {address}"))?;
    }
    drop(agents);
    Ok(())
}

pub fn removal() -> anyhow::Result<()> {
    let fabric = fabric(&[])?;
    let node = Node::new(&fabric, 1, "2001:d00:0:1")?;
    for hooks in [Hooks::Tcx, Hooks::Clsact] {
        on(&node, || {
            let running = Running::start(&node, 8061, true, Some(hooks));
            running.connect("2001:d00:0:1::/64");
            let programs = attached(&node)?;
            ensure!(programs.contains("aero_egress"), "not attached: {programs}");
            ensure!(programs.contains("pod_ingress"), "not attached: {programs}");
            ensure!(Path::new(ROOT).exists());
            running.ebpf.as_ref().context("no eBPF")?.remove();
            let programs = attached(&node)?;
            ensure!(!programs.contains("ingress"), "left attached: {programs}");
            ensure!(!programs.contains("egress"), "left attached: {programs}");
            ensure!(!Path::new(ROOT).exists(), "left pinned");
            anyhow::Ok(())
        })?;
    }
    Ok(())
}

fn attached(node: &Node) -> anyhow::Result<String> {
    use aya::programs::{SchedClassifier, TcAttachType};
    let mut names = String::new();
    for device in ["eth0", "lo", "aero0", "aeropod"] {
        for way in [TcAttachType::Ingress, TcAttachType::Egress] {
            let (_, programs) = SchedClassifier::query_tcx(device, way)?;
            for program in programs {
                names.push_str(program.name_as_str().unwrap_or_default());
                names.push(' ');
            }
        }
        for way in ["ingress", "egress"] {
            names.push_str(&node.netns.exec("tc", &["filter", "show", "dev", device, way])?);
        }
    }
    Ok(names)
}
