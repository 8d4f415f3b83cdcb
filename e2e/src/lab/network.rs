//! The underlay: one bridge, a namespace for the control plane and one for each node. All
//! addresses are of the documentation ranges, and no route leaves the lab.

use anyhow::Context;

use super::process::run;
use super::{Lab, Underlay};

const NETNS_DIR: &str = "/run/netns";

/// Makes the underlay.
pub(super) fn up(lab: &Lab) -> anyhow::Result<()> {
    let fabric = lab.scoped("fabric");
    run("ip", &["netns", "add", &fabric])?;
    let in_fabric = |args: &[&str]| run("ip", &[&["-n", &fabric], args].concat());
    in_fabric(&["link", "set", "lo", "up"])?;
    in_fabric(&["link", "add", "br0", "type", "bridge"])?;
    in_fabric(&["link", "set", "br0", "up"])?;
    let family = lab.options.underlay;
    if family.v4() {
        in_fabric(&["addr", "add", "192.0.2.254/24", "dev", "br0"])?;
    }
    if family.v6() {
        in_fabric(&["addr", "add", "2001:db8:77::fe/64", "dev", "br0", "nodad"])?;
    }
    port(lab, "cp", "1")?;
    for node in lab.nodes() {
        let number = node.trim_start_matches('n').to_string();
        port(lab, &node, &format!("1{number}"))?;
    }
    Ok(())
}

/// A host on the bridge.
pub(super) fn port(lab: &Lab, host: &str, last: &str) -> anyhow::Result<()> {
    let (fabric, netns) = (lab.scoped("fabric"), lab.scoped(host));
    run("ip", &["netns", "add", &netns])?;
    let outer = format!("v{host}");
    let in_fabric = |args: &[&str]| run("ip", &[&["-n", &fabric], args].concat());
    let inside = |args: &[&str]| run("ip", &[&["-n", &netns], args].concat());
    in_fabric(&["link", "add", &outer, "type", "veth", "peer", "name", "eth0", "netns", &netns])?;
    in_fabric(&["link", "set", &outer, "master", "br0", "up"])?;
    inside(&["link", "set", "lo", "up"])?;
    inside(&["link", "set", "eth0", "up"])?;
    for (v6, address, via) in [
        (false, format!("192.0.2.{last}/24"), "192.0.2.254"),
        (true, format!("2001:db8:77::{last}/64"), "2001:db8:77::fe"),
    ] {
        let wanted = if v6 { lab.options.underlay.v6() } else { lab.options.underlay.v4() };
        if !wanted {
            continue;
        }
        let mut add = vec!["addr", "add", &address, "dev", "eth0"];
        if v6 {
            add.push("nodad");
        }
        inside(&add)?;
        let family = if v6 { "-6" } else { "-4" };
        inside(&[family, "route", "add", "default", "via", via])?;
    }
    // As on any node of a cluster.
    let forward = [
        ("net.ipv4.ip_forward", lab.options.underlay != Underlay::Ipv6),
        ("net.ipv6.conf.all.forwarding", lab.options.underlay != Underlay::Ipv4),
    ];
    for (name, _) in forward.iter().filter(|(_, on)| *on) {
        let setting = format!("{name}=1");
        run("ip", &["netns", "exec", &netns, "sysctl", "-qw", &setting])?;
    }
    Ok(())
}

/// Takes all namespaces of the lab away, and with them their devices and routes.
pub(super) fn down(lab: &Lab) -> anyhow::Result<usize> {
    let mut removed = 0;
    for entry in std::fs::read_dir(NETNS_DIR).into_iter().flatten() {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(&lab.prefix()) {
            run("ip", &["netns", "del", &name])?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// Every other host learns the way to a node's pods, as a cloud's router would.
pub(super) fn route_pods(lab: &Lab, node: &str, ranges: &[String]) -> anyhow::Result<()> {
    let addresses = lab.node_addresses(node);
    for range in ranges {
        let v6 = range.contains(':');
        let via =
            addresses.iter().find(|a| a.is_ipv6() == v6).context("no address of the family")?;
        let via = via.to_string();
        let others = lab.nodes().into_iter().chain(["cp".to_string()]);
        for other in others.filter(|o| o != node) {
            let netns = lab.scoped(&other);
            let family = if v6 { "-6" } else { "-4" };
            run("ip", &["-n", &netns, family, "route", "replace", range, "via", &via])?;
        }
    }
    Ok(())
}

/// Plugs a host in, or out.
pub(super) fn link(lab: &Lab, host: &str, on: bool) -> anyhow::Result<()> {
    let state = if on { "up" } else { "down" };
    let (fabric, outer) = (lab.scoped("fabric"), format!("v{host}"));
    run("ip", &["-n", &fabric, "link", "set", &outer, state]).map(drop)
}

/// What a kernel forgets when a node loses power: every device but the cable and the loopback,
/// every route through them, and firewall rules.
pub(super) fn forget_state(lab: &Lab, node: &str) -> anyhow::Result<()> {
    let netns = lab.scoped(node);
    let links = run("ip", &["-n", &netns, "-o", "link", "show"])?;
    for line in links.lines() {
        let name = line.split(": ").nth(1).unwrap_or_default();
        let name = name.split('@').next().unwrap_or_default();
        if !matches!(name, "" | "lo" | "eth0") {
            // The other end of a pair goes with the first.
            let _ = run("ip", &["-n", &netns, "link", "del", name]);
        }
    }
    run("ip", &["netns", "exec", &netns, "nft", "flush", "ruleset"]).map(drop)
}
