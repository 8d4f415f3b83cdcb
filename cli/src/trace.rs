//! `kubectl aero trace`: the way of a packet from a pod to an address, hop by hop, by what each
//! hop says, and a probe that goes that way.

use std::net::IpAddr;

use aero_crds::AcpMapping;
use aero_telemetry::debug::{ClientReport, ProbeReport};
use ipnet::IpNet;
use kube::ResourceExt;

use crate::observe::System;
use crate::report::{Report, millis};

/// The attachment of a pod, and its node, by what the agents say.
pub fn source<'a>(
    system: &'a System,
    namespace: &str,
    pod: &str,
) -> Option<(&'a str, &'a ClientReport)> {
    system.agents.iter().find_map(|(node, page)| {
        let clients = &page.as_ref().ok()?.clients;
        let client = clients.iter().find(|c| c.namespace == namespace && c.pod == pod)?;
        Some((node.as_str(), client))
    })
}

/// Whether an address is in a pool of a link.
pub fn on_link(system: &System, to: IpAddr) -> bool {
    let mut pools = system.links.iter().flat_map(|l| l.status.iter().flat_map(|s| &s.pools));
    pools.any(|p| p.prefix.parse::<IpNet>().is_ok_and(|p| p.contains(&to)))
}

fn owner(system: &System, to: IpAddr) -> Option<&AcpMapping> {
    system.mappings.iter().find(|m| m.spec.prefix.parse::<IpNet>().is_ok_and(|p| p.contains(&to)))
}

/// Says the way, and what the probe found.
pub fn trace(
    system: &System,
    (namespace, pod): (&str, &str),
    to: IpAddr,
    probe: Option<&Result<ProbeReport, String>>,
) -> Report {
    let mut report = Report::new(format!("{namespace}/{pod} -> {to}"));
    let explain = format!("kubectl aero -n {namespace} explain pod/{pod}");
    let Some((node, client)) = source(system, namespace, pod) else {
        let text = format!("no agent has pod {namespace}/{pod} attached");
        report.fail("source", text, explain);
        return report;
    };
    if client.served {
        report.ok(
            "source",
            format!("{} of {pod} on {node}, by {}", client.address, client.interface),
        );
    } else {
        report.fail(
            "source",
            format!("{} of {pod} on {node} is not served", client.prefix),
            explain.clone(),
        );
    }
    if !on_link(system, to) {
        let links: Vec<String> = system.links.iter().map(ResourceExt::name_any).collect();
        let text = format!(
            "in no pool of {}: it goes by the pod's primary network, not by AERO",
            links.join(", ")
        );
        report.note("to", text);
        return report;
    }
    let there = destination(system, to, &mut report);
    way(system, node, there.as_ref().map(|(n, m)| (n.as_str(), *m)), &mut report);
    match probe {
        Some(Ok(ProbeReport { round_trip_us: Some(us), .. })) => {
            let us = u32::try_from(*us).unwrap_or(u32::MAX);
            report.ok("probe", format!("answer after {}", millis(f64::from(us) / 1000.0)));
        }
        Some(Ok(p)) => {
            let why = p.error.clone().unwrap_or_else(|| "no answer".into());
            let advice = format!(
                "the first line above that fails is the place; else kubectl aero explain {to}"
            );
            report.fail("probe", why, advice);
        }
        Some(Err(why)) => report.fail("probe", format!("not sent: {why}"), explain),
        None => {}
    }
    report
}

/// Says whose the destination is; its node and mapping.
fn destination<'a>(
    system: &'a System,
    to: IpAddr,
    report: &mut Report,
) -> Option<(String, &'a AcpMapping)> {
    let Some(mapping) = owner(system, to) else {
        report.fail(
            "to",
            "an address of the link that nobody has",
            "is the address right? kubectl get acp",
        );
        return None;
    };
    let of = &mapping.spec.client_ref;
    let who = format!("{}/{}/{}", of.namespace, of.name, mapping.spec.identity);
    match &mapping.spec.holder {
        Some(h) => {
            report.ok(
                "to",
                format!("{} of {who}: pod {} on {}", mapping.spec.prefix, h.pod_name, h.node),
            );
            Some((h.node.clone(), mapping))
        }
        None => {
            let text = format!("{} is kept for {who}, which has no pod", mapping.spec.prefix);
            report.fail("to", text, format!("kubectl aero explain {}", mapping.spec.prefix));
            None
        }
    }
}

fn way(system: &System, from: &str, there: Option<(&str, &AcpMapping)>, report: &mut Report) {
    let Some((node, mapping)) = there else { return };
    if node == from {
        report.ok(format!("node {from}"), "both pods are here: by the node's own routes");
    } else {
        let Some(Ok(page)) = system.agents.get(from) else { return };
        let part = format!("agent {from}");
        let Some(server) = &page.default_server else {
            report.fail(part, "knows no Server to send to", "kubectl aero status");
            return;
        };
        let text =
            format!("sends to Server {} until it knows a direct path", system.name_of(server));
        report.ok(&part, text);
        let straight = page.neighbors.iter().find(|n| system.node_of(&n.address) == Some(node));
        if let Some(n) = straight {
            let form = if n.ip_in_ip { "IP-in-IP" } else { "UDP" };
            let text = format!(
                "has sent {} packets straight to {node}, received {}; tunnel: {form}",
                n.tunneled_packets, n.received_packets
            );
            report.ok(part, text);
        }
        let serves = system
            .server_reports
            .iter()
            .find(|(_, page)| page.as_ref().is_ok_and(|p| p.underlay.contains(server)));
        if let Some((pod, Ok(page))) = serves {
            let entry = page.neighbors.iter().find(|n| n.acp == mapping.spec.prefix);
            match entry {
                Some(n) if system.node_of(&n.link_layer) == Some(node) => {
                    report.ok(
                        format!("server {pod}"),
                        format!("sends to {}", system.name_of(&n.link_layer)),
                    );
                }
                Some(n) => {
                    let text = format!(
                        "sends to {}, and the pod is on {node}",
                        system.name_of(&n.link_layer)
                    );
                    report.fail(
                        format!("server {pod}"),
                        text,
                        format!("kubectl aero explain {}", mapping.spec.prefix),
                    );
                }
                None => {
                    let text = format!("has no entry for {}", mapping.spec.prefix);
                    report.fail(
                        format!("server {pod}"),
                        text,
                        format!("kubectl aero explain {}", mapping.spec.prefix),
                    );
                }
            }
        } else {
            report.note("server", format!("Server {} could not be asked", system.name_of(server)));
        }
    }
    let Some(Ok(page)) = system.agents.get(node) else {
        report.note(format!("agent {node}"), "could not be asked");
        return;
    };
    match page.clients.iter().find(|c| c.client_id == mapping.spec.client_id) {
        Some(c) if c.served && c.fault.is_none() => {
            report.ok(format!("agent {node}"), format!("delivers to {} by {}", c.pod, c.interface));
        }
        Some(c) => {
            let why = c.fault.clone().unwrap_or_else(|| format!("{} is not served", c.pod));
            report.fail(
                format!("agent {node}"),
                why,
                format!("kubectl aero explain {}", mapping.spec.prefix),
            );
        }
        None => report.fail(
            format!("agent {node}"),
            format!("has no attachment of {}", mapping.spec.identity),
            format!("kubectl aero explain {}", mapping.spec.prefix),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::system;
    use aero_telemetry::debug::NeighborTraffic;

    fn probe(us: Option<u64>) -> Result<ProbeReport, String> {
        Ok(ProbeReport { round_trip_us: us, error: None, ..ProbeReport::default() })
    }

    /// As the example, with a second pod of another client on n2.
    fn two() -> System {
        let mut s = system();
        let mut m = s.mappings[0].clone();
        m.metadata.name = Some("2001-db8-a-2-64".into());
        m.spec.prefix = "2001:db8:a:2::/64".into();
        m.spec.client_id = "other".into();
        m.spec.identity = "web-1".into();
        let h = m.spec.holder.as_mut().unwrap();
        (h.pod_name, h.node) = ("web-1".into(), "n2".into());
        s.mappings.push(m);
        let mut c = s.agents["n1"].as_ref().unwrap().clients[0].clone();
        (c.client_id, c.pod) = ("other".into(), "web-1".into());
        s.agents.get_mut("n2").unwrap().as_mut().unwrap().clients.push(c);
        let page = s.server_reports.get_mut("aero-server-a").unwrap().as_mut().unwrap();
        page.underlay = vec!["192.0.2.11:8060".into()];
        let mut n = page.neighbors[0].clone();
        (n.acp, n.link_layer) = ("2001:db8:a:2::/64".into(), "192.0.2.12:8061".into());
        page.neighbors.push(n);
        let agent = s.agents.get_mut("n1").unwrap().as_mut().unwrap();
        agent.neighbors.push(NeighborTraffic {
            address: "192.0.2.12:8061".into(),
            ip_in_ip: true,
            tunneled_packets: 7,
            received_packets: 5,
            ..NeighborTraffic::default()
        });
        s
    }

    #[test]
    fn the_way_is_told_hop_by_hop() {
        let to = "2001:db8:a:2::1".parse().unwrap();
        let report = trace(&two(), ("default", "web-0"), to, Some(&probe(Some(950))));
        assert!(report.healthy(), "{report}");
        let parts: Vec<&str> = report.lines.iter().map(|l| l.part.as_str()).collect();
        let way =
            ["source", "to", "agent n1", "agent n1", "server aero-server-a", "agent n2", "probe"];
        assert_eq!(parts, way);
        let straight = "has sent 7 packets straight to n2, received 5; tunnel: IP-in-IP";
        assert_eq!(report.lines[3].text, straight);
        assert_eq!(report.lines[6].text, "answer after 0.95 ms");
    }

    #[test]
    fn an_unknown_destination_a_foreign_one_and_a_lost_probe_are_told_apart() {
        let s = two();
        let ask = |to: &str, p| trace(&s, ("default", "web-0"), to.parse().unwrap(), p);
        assert!(ask("2001:db8:a:9::1", None).to_string().contains("that nobody has"));
        let foreign = ask("2001:db8:b::1", None);
        assert!(foreign.healthy() && foreign.to_string().contains("primary network"));
        let lost = probe(None);
        assert!(!ask("2001:db8:a:2::1", Some(&lost)).healthy());
        let none = trace(&s, ("default", "web-7"), "2001:db8:a:2::1".parse().unwrap(), None);
        assert!(none.to_string().contains("explain pod/web-7"));
    }
}
