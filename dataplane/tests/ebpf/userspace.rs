//! The forwarder in user space, agents and a Server, with the kernel's super-packets.

use aero_protocol::forwarding::{Change, NextHop};
use anyhow::ensure;

use super::net::{Node, fabric};
use super::node::{Live, l2, route, to};
use super::outlives::{another_megabyte, stream};

/// A stream from pod to pod by a Server, over both families. What is merged on the way must come
/// out as it went in, and by far not in as many system calls as packets: a Server that passes
/// packets on sees their number, and the pod's device how many came at once.
pub fn streams() -> anyhow::Result<()> {
    let fabric = fabric(&[])?;
    let (a, b) = ("2001:d00:0:1", "2001:d00:0:2");
    let nodes = [
        Node::new(&fabric, 1, a)?,
        Node::new(&fabric, 2, b)?,
        Node::new(&fabric, 3, "2001:d00:0:3")?,
    ];
    for [server, one, two] in [
        ["192.0.2.3:8060", "192.0.2.1:8061", "192.0.2.2:8061"],
        ["[2001:db8:77::3]:8060", "[2001:db8:77::1]:8061", "[2001:db8:77::2]:8061"],
    ] {
        let agent = |node: &Node, prefix: &str| {
            Live::start(node, true, None, |running| {
                let table = running.table();
                table.apply(&Change::AddPeer(l2(server)));
                table.apply(&route("2001:d00::/24", to(server), false));
                table.apply(&route(&format!("{prefix}::/64"), NextHop::Local, false));
            })
        };
        let agents = [agent(&nodes[0], a), agent(&nodes[1], b)];
        let serving = Live::start(&nodes[2], false, None, |running| {
            for (prefix, agent) in [(a, one), (b, two)] {
                let table = running.table();
                let prefix = format!("{prefix}::/64");
                table.apply(&route(&prefix, to(agent), true));
                let prefix = prefix.parse().unwrap();
                table.apply(&Change::SetSource { prefix, from: l2(agent), until: None });
            }
        });
        for (from, at, address) in [(0, 1, b), (1, 0, a)] {
            stream(&nodes[from], &nodes[at], &format!("{address}::1"), |received| {
                for _ in 0..20 {
                    another_megabyte(received)?;
                }
                Ok(())
            })?;
        }
        // 40 MB are 28,000 packets of an MTU; each of them passed the Server as one.
        let passed = serving.running.table().counters().tunneled_packets;
        ensure!(passed > 28_000, "{passed} packets passed the Server");
        // A device counts a super-packet once.
        let text = nodes[1].netns.ip("-s link show dev aero0")?;
        let received = text.lines().skip_while(|l| !l.contains("RX:")).nth(1).unwrap_or_default();
        let packets: u64 =
            received.split_whitespace().nth(1).and_then(|w| w.parse().ok()).unwrap_or(0);
        ensure!(
            packets > 0 && packets < 14_000,
            "{packets} packets into the kernel for 14,000 or more of an MTU"
        );
        drop((agents, serving));
    }
    Ok(())
}
