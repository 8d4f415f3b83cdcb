//! Tunnels without UDP: found by a probe, given up within a second, and no way in for others.

use std::net::{IpAddr, Ipv6Addr, UdpSocket};
use std::time::{Duration, Instant};

use aero_dataplane::ebpf::Hooks;
use aero_protocol::forwarding::{Change, NextHop};
use aero_protocol::tunnel::ip_in_ip::PROVEN_FOR;
use aero_protocol::wire::ip::Packet;
use aero_protocol::wire::nd::{Nd, NdMessage, NdOption};
use anyhow::{Context, ensure};
use socket2::{Domain, Protocol, Socket, Type};

use super::net::{Netns, Node, PATIENCE, fabric};
use super::node::{Live, addresses, l2, route, to};

const A: &str = "2001:d00:0:1";
const B: &str = "2001:d00:0:2";

/// The underlay's counters of tunnels by their form; and a gate that closes for IP-in-IP.
struct Watch<'a>(&'a Netns);

impl<'a> Watch<'a> {
    fn new(fabric: &'a Netns) -> anyhow::Result<Self> {
        // Named counters, so that each is found by its name.
        let rules = "table bridge watch {
            counter without_udp {}
            counter with_udp {}
            chain gate { type filter hook forward priority 0; }
            chain forward { type filter hook forward priority 1;
                ip protocol ipv6 counter name without_udp;
                ip6 nexthdr ipv6 counter name without_udp;
                udp dport 8061 counter name with_udp; }
        }";
        fabric.exec("nft", &[rules])?;
        Ok(Self(fabric))
    }

    fn count(&self, name: &str) -> anyhow::Result<u64> {
        let text = self.0.exec("nft", &["list", "counter", "bridge", "watch", name])?;
        let mut words = text.split_whitespace().skip_while(|w| *w != "packets");
        words.nth(1).and_then(|n| n.parse().ok()).context("no such counter")
    }

    fn close(&self) -> anyhow::Result<()> {
        for rule in ["ip protocol ipv6 drop", "ip6 nexthdr ipv6 drop"] {
            self.0.exec("nft", &[&format!("add rule bridge watch gate {rule}")])?;
        }
        Ok(())
    }

    fn open(&self) -> anyhow::Result<()> {
        self.0.exec("nft", &["flush chain bridge watch gate"]).map(drop)
    }
}

fn link_local(n: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfe80, 0, 0, 0, 0x2001, 0xd00, 0, n)
}

fn solicitation(from: u16, target: u16) -> Vec<u8> {
    let target = link_local(target);
    let message = NdMessage::Solicitation { target };
    let options = vec![NdOption::Nonce(vec![1; 6])];
    Nd { source: link_local(from), destination: target, message, options }.emit().unwrap()
}

/// What an engine says to a solicitation.
fn advertisement(packet: &[u8]) -> Option<Vec<u8>> {
    let nd = Nd::parse(&Packet::parse(packet).ok()?).ok()?;
    let NdMessage::Solicitation { target } = nd.message else { return None };
    let message = NdMessage::Advertisement { solicited: true, override_cached: false, target };
    Nd { source: target, destination: nd.source, message, options: nd.options }.emit().ok()
}

/// Two agents with a direct path to each other. `answering`: somebody speaks for their engines.
fn pair(nodes: [&Node; 2], addresses: [&str; 2], answering: bool) -> Vec<Live> {
    let agent = |n: usize| {
        let (own, far) = if n == 0 { (A, B) } else { (B, A) };
        let peer = l2(addresses[1 - n]);
        let (number, other) = if n == 0 { (1, 2) } else { (2, 1) };
        Live::start(nodes[n], true, Some(Hooks::Auto), |running| {
            let table = running.table();
            let own = format!("{own}::/64");
            table.apply(&route("2001:d00::/24", NextHop::Neighbor(peer), false));
            table.apply(&route(&own, NextHop::Local, false));
            let (source, destination) =
                (own.parse().unwrap(), format!("{far}::/64").parse().unwrap());
            let until = Instant::now() + Duration::from_secs(300);
            table.apply(&Change::SetSource { prefix: destination, from: peer, until: None });
            table.apply(&Change::SetDirect { source, destination, to: peer, until });
            running.connect(&own);
            let userspace = running.userspace.clone();
            let (_, nobody) = tokio::sync::mpsc::channel(1);
            let mut control = std::mem::replace(&mut running.control, nobody);
            tokio::spawn(async move {
                // An engine solicits its correspondent before it uses the path, and now and then.
                let mut often = tokio::time::interval(Duration::from_millis(300));
                loop {
                    let message = tokio::select! {
                        message = control.recv() => message,
                        _ = often.tick() => {
                            let packet = solicitation(number, other);
                            let _ = userspace.send_control(peer, &packet).await;
                            continue;
                        }
                    };
                    let Some(message) = message else { break };
                    if let Some(answer) = advertisement(&message.packet).filter(|_| answering) {
                        let _ = userspace.send_control(message.from, &answer).await;
                    }
                }
            });
        })
    };
    vec![agent(0), agent(1)]
}

/// A packet every few milliseconds from pod to pod, and when the last one came.
struct Beat<'a> {
    from: &'a UdpSocket,
    at: &'a UdpSocket,
}

impl Beat<'_> {
    /// Until `done`: the longest time with nothing arriving.
    fn until(
        &self,
        what: &str,
        mut done: impl FnMut() -> anyhow::Result<bool>,
    ) -> anyhow::Result<Duration> {
        let start = Instant::now();
        let (mut last, mut longest) = (start, Duration::ZERO);
        self.at.set_read_timeout(Some(Duration::from_millis(5)))?;
        let mut buffer = [0; 64];
        loop {
            self.from.send_to(b"beat", format!("[{B}::1]:7003"))?;
            if self.at.recv(&mut buffer).is_ok() {
                longest = longest.max(last.elapsed());
                last = Instant::now();
            }
            if last.elapsed() < Duration::from_millis(100) && done()? {
                return Ok(longest.max(last.elapsed()));
            }
            ensure!(start.elapsed() < 6 * PATIENCE, "{what}: not within {:?}", 6 * PATIENCE);
        }
    }
}

fn probing(peers: [&str; 2]) -> anyhow::Result<()> {
    let fabric = fabric(&[])?;
    let watch = Watch::new(&fabric)?;
    let (one, two) = (Node::new(&fabric, 1, A)?, Node::new(&fabric, 2, B)?);
    let pair = pair([&one, &two], peers, true);
    let (from, at) = (one.pod.udp(&format!("[{A}::1]:0")), two.pod.udp(&format!("[{B}::1]:7003")));
    let beat = Beat { from: &from, at: &at };
    let more = |name: &'static str, than: u64| {
        let watch = &watch;
        move || Ok(watch.count(name)? > than)
    };
    let start = watch.count("without_udp")?;
    beat.until("without UDP", more("without_udp", start + 50))?;
    // As long as there is traffic the proof is renewed: nothing goes by UDP but the answers.
    let (udp, since) = (watch.count("with_udp")?, Instant::now());
    beat.until("it stays so", || Ok(since.elapsed() > 2 * PROVEN_FOR))?;
    let by_udp = watch.count("with_udp")? - udp;
    ensure!(by_udp < 50, "{by_udp} packets by UDP while the path carries IP-in-IP");
    let neighbor = pair[0].running.table().traffic();
    let (_, traffic) = neighbor.first().context("nobody counts what goes to the neighbour")?;
    ensure!(traffic.tunneled_packets > 50, "{traffic:?}");
    watch.close()?;
    let udp = watch.count("with_udp")?;
    let silent = beat.until("back to UDP", more("with_udp", udp + 50))?;
    println!("  the path stopped carrying IP-in-IP: silent for {} ms", silent.as_millis());
    // A second by the rule; the rest is for a machine that does something else.
    ensure!(silent < 2 * PROVEN_FOR, "silent for {silent:?}");
    watch.open()?;
    let ipip = watch.count("without_udp")?;
    let silent = beat.until("without UDP again", more("without_udp", ipip + 50))?;
    ensure!(silent < PROVEN_FOR, "silent for {silent:?} while nothing was wrong");
    Ok(())
}

pub fn found_and_given_up() -> anyhow::Result<()> {
    probing(["192.0.2.1:8061", "192.0.2.2:8061"])?;
    probing(["[2001:db8:77::1]:8061", "[2001:db8:77::2]:8061"])
}

/// Nobody answers: not one packet goes that way.
pub fn unproved() -> anyhow::Result<()> {
    let fabric = fabric(&[])?;
    let watch = Watch::new(&fabric)?;
    let (one, two) = (Node::new(&fabric, 1, A)?, Node::new(&fabric, 2, B)?);
    let _pair = pair([&one, &two], ["192.0.2.1:8061", "192.0.2.2:8061"], false);
    let (from, at) = (one.pod.udp(&format!("[{A}::1]:0")), two.pod.udp(&format!("[{B}::1]:7003")));
    let beat = Beat { from: &from, at: &at };
    let since = Instant::now();
    let silent = beat.until("by UDP", || Ok(since.elapsed() > 2 * PROVEN_FOR))?;
    ensure!(silent < PROVEN_FOR, "silent for {silent:?}");
    let (udp, probes) = (watch.count("with_udp")?, watch.count("without_udp")?);
    ensure!((1..=8).contains(&probes), "{probes} probes in two seconds");
    ensure!(udp > 50, "only {udp} packets by UDP");
    Ok(())
}

/// A raw socket at an address of the underlay.
fn raw(node: &Netns, address: IpAddr) -> Socket {
    node.inside(|| {
        let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
        let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(41))).unwrap();
        socket.bind(&std::net::SocketAddr::new(address, 0).into()).unwrap();
        socket
    })
}

fn data(source: &str, destination: &str, text: &str) -> Vec<u8> {
    let (source, destination) = (source.parse().unwrap(), destination.parse().unwrap());
    aero_protocol::wire::ip::udp((source, 7), (destination, 7003), text.as_bytes()).unwrap()
}

/// The next text that comes to a pod.
fn next(at: &UdpSocket) -> Option<String> {
    let mut buffer = [0; 64];
    let n = at.recv(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..n]).into_owned())
}

/// Forged outer and inner sources do not reach a pod; a neighbour's own packets do, and those of
/// a pod that has left are sent on, in UDP. What is none of ours is left to the node.
pub fn no_way_in() -> anyhow::Result<()> {
    for n in [0, 1] {
        let fabric = fabric(&["192.0.2.66", "2001:db8:77::66", "192.0.2.65", "2001:db8:77::65"])?;
        let node = Node::new(&fabric, 1, A)?;
        let own: IpAddr = addresses(1)[n];
        let at = |last: u8| -> IpAddr {
            if n == 0 {
                IpAddr::from([192, 0, 2, last])
            } else {
                format!("2001:db8:77::{last}").parse().unwrap()
            }
        };
        let socket_address = |ip: IpAddr| std::net::SocketAddr::new(ip, 8061).to_string();
        let neighbor = socket_address(at(65));
        let agent = Live::start(&node, true, Some(Hooks::Auto), |running| {
            let table = running.table();
            table.apply(&route(&format!("{A}::/64"), NextHop::Local, false));
            let prefix = format!("{B}::/64").parse().unwrap();
            table.apply(&Change::SetSource { prefix, from: l2(&neighbor), until: None });
            // It was here, and is at the other one now.
            table.apply(&route("2001:d00:0:7::/64", to(&socket_address(at(66))), true));
            running.connect(&format!("{A}::/64"));
        });
        let pod = node.pod.udp(&format!("[{A}::1]:7003"));
        let send = |from: u8, packet: &[u8]| {
            let to = std::net::SocketAddr::new(own, 0);
            raw(&fabric, at(from)).send_to(packet, &to.into()).map(drop)
        };
        // The one that is right comes last, so that it overtakes none of the others.
        let start = Instant::now();
        let good = data(&format!("{B}::1"), &format!("{A}::1"), "good");
        loop {
            send(66, &data(&format!("{B}::1"), &format!("{A}::1"), "forged outer source"))?;
            send(65, &data("2001:d00:0:9::1", &format!("{A}::1"), "forged inner source"))?;
            send(65, &good)?;
            pod.set_read_timeout(Some(Duration::from_millis(100)))?;
            if let Some(text) = next(&pod) {
                ensure!(text == "good", "{text} reached the pod");
                break;
            }
            ensure!(start.elapsed() < PATIENCE, "a neighbour's packet never came");
        }
        // Somebody else's tunnel to this node.
        let bystander = raw(&node.netns, own);
        bystander.set_read_timeout(Some(PATIENCE))?;
        send(66, &data("2001:db8:1::1", "2001:db8:2::1", "not ours"))?;
        let mut buffer = [std::mem::MaybeUninit::new(0); 256];
        bystander.recv(&mut buffer).context("a packet that is not ours was taken away")?;
        // On to where the prefix is now.
        let there = fabric.udp(&socket_address(at(66)));
        send(65, &data(&format!("{B}::1"), "2001:d00:0:7::1", "sent on"))?;
        let mut buffer = [0; 256];
        let length = there.recv(&mut buffer).context("a packet for a pod that left was lost")?;
        ensure!(buffer[..length].ends_with(b"sent on"));
        drop(agent);
    }
    Ok(())
}
