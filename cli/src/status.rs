//! `kubectl aero status`: the whole system on one screen.

use std::fmt::Write as _;

use aero_crds::is_true;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::ResourceExt;
use serde::Serialize;

use crate::observe::{PodView, System};
use crate::report::{Report, State, count, table};

/// What is said.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// One line per part.
    #[serde(flatten)]
    pub report: Report,
    /// One row per node.
    pub nodes: Vec<NodeRow>,
}

/// One node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeRow {
    /// Its name.
    pub node: String,
    /// How its agent stands: `serves`, or why not.
    pub agent: String,
    /// Servers that answer it, of all that it knows.
    pub servers: (usize, usize),
    /// Clients that are served, of all that are attached.
    pub clients: (usize, usize),
    /// Packets delivered and sent into tunnels.
    pub packets: u64,
    /// Packets dropped.
    pub dropped: u64,
}

/// Judges the system.
pub fn status(system: &System) -> Status {
    let mut report = Report::new(format!("AERO in namespace {}", system.namespace));
    operator(system, &mut report);
    links(system, &mut report);
    servers(system, &mut report);
    agents(system, &mut report);
    clients(system, &mut report);
    Status { report, nodes: system.nodes.iter().map(|n| row(system, &n.name)).collect() }
}

impl Status {
    /// For people.
    pub fn text(&self) -> String {
        let mut out = String::new();
        let (head, advice) = (self.report.clone(), &self.report.advice);
        let _ = write!(out, "{}", Report { advice: Vec::new(), ..head });
        let mut rows: Vec<Vec<String>> = vec![
            ["NODE", "AGENT", "SERVERS", "CLIENTS", "PACKETS", "DROPPED"]
                .map(String::from)
                .to_vec(),
        ];
        for n in &self.nodes {
            rows.push(vec![
                n.node.clone(),
                n.agent.clone(),
                format!("{}/{}", n.servers.0, n.servers.1),
                format!("{}/{}", n.clients.0, n.clients.1),
                n.packets.to_string(),
                n.dropped.to_string(),
            ]);
        }
        let _ = write!(out, "\n{}", table(&rows));
        for (n, line) in advice.iter().enumerate() {
            let _ = writeln!(out, "{}do  {line}", if n == 0 { "\n" } else { "" });
        }
        out
    }
}

/// The Ready condition: whether, why, and the words.
pub(crate) fn ready(conditions: &[Condition]) -> (bool, String) {
    let found = conditions.iter().find(|c| c.type_ == "Ready");
    let text = found.map_or_else(
        || "the operator has not said anything about it yet".to_string(),
        |c| format!("{}: {}", c.reason, c.message),
    );
    (is_true(conditions, "Ready"), text)
}

fn ready_of<'a>(pods: impl Iterator<Item = &'a PodView>) -> (usize, Vec<&'a PodView>) {
    let all: Vec<&PodView> = pods.filter(|p| !p.terminating).collect();
    (all.len(), all.into_iter().filter(|p| !p.ready).collect())
}

fn names(pods: &[&PodView]) -> String {
    let name = |p: &&PodView| format!("{} on {} ({})", p.name, p.node, p.state);
    pods.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn operator(system: &System, report: &mut Report) {
    let ns = &system.namespace;
    let (all, unready) = ready_of(system.pods_of("operator"));
    let good = all - unready.len();
    let look = format!("kubectl -n {ns} describe pods -l app.kubernetes.io/name=aero-operator");
    if all == 0 {
        let text = format!("no pod of the operator in {ns}");
        report.fail(
            "operator",
            text,
            "helm status aero; is the namespace right (--aero-namespace)?",
        );
    } else if good == 0 {
        report.fail("operator", format!("none of {all} is ready: {}", names(&unready)), look);
    } else {
        let leads = match &system.leader {
            Some(l) if system.parts.iter().any(|p| p.name == *l) => format!("{l} leads"),
            Some(l) => format!("the Lease is still held by {l}, which is gone"),
            None => "nobody leads".into(),
        };
        let text = format!("{good} of {all} ready, {leads}");
        if leads.ends_with(" leads") && system.leader.is_some() {
            report.ok("operator", text);
        } else {
            report.fail("operator", text, format!("wait for 15 s; then {look}"));
        }
    }
}

fn links(system: &System, report: &mut Report) {
    if system.links.is_empty() {
        let advice = "make an AeroLink, or install with link.create=true";
        report.fail("link", "there is no AeroLink", advice);
    }
    for link in &system.links {
        let part = format!("link {}", link.name_any());
        let status = link.status.clone().unwrap_or_default();
        let pools: Vec<String> = status
            .pools
            .iter()
            .map(|p| {
                format!(
                    "{} in /{}s: {} in use, {} cooling, {} free",
                    p.prefix, p.client_prefix_length, p.in_use, p.cooling, p.free
                )
            })
            .collect();
        let (good, why) = ready(&status.conditions);
        if !good {
            report.fail(part, why, format!("kubectl describe aerolink {}", link.name_any()));
        } else if status.pools.iter().all(|p| p.free == 0) {
            let advice = format!("add a pool: kubectl edit aerolink {}", link.name_any());
            report.fail(part, format!("used up: {}", pools.join("; ")), advice);
        } else {
            report.ok(part, pools.join("; "));
        }
    }
}

fn servers(system: &System, report: &mut Report) {
    let ns = &system.namespace;
    for server in &system.servers {
        let name = server.name_any();
        let part = format!("servers {name}");
        let status = server.status.clone().unwrap_or_default();
        let (good, why) = ready(&status.conditions);
        let mine = || {
            system.pods_of("server").filter(|p| {
                p.labels.get(aero_crds::annotations::SERVER_LABEL).is_some_and(|l| *l == name)
            })
        };
        let (all, unready) = ready_of(mine());
        let look =
            format!("kubectl -n {ns} describe deployment,pods -l aerolink.dev/server={name}");
        if !good {
            report.fail(part, why, look);
        } else if !unready.is_empty() {
            let text = format!("{} of {all} serve; not {}", all - unready.len(), names(&unready));
            report.fail(part, text, look);
        } else {
            let at = |p: &PodView| format!("{} on {}", p.name, p.node);
            let at: Vec<String> = mine().filter(|p| !p.terminating).map(at).collect();
            report.ok(part, format!("{all} of {all} serve: {}", at.join(", ")));
        }
    }
    if system.servers.is_empty() {
        let advice = "make an AeroServer, or install with server.create=true";
        report.fail("servers", "there is no AeroServer", advice);
    }
}

fn agents(system: &System, report: &mut Report) {
    let ns = &system.namespace;
    let (all, unready) = ready_of(system.pods_of("agent"));
    let good = all - unready.len();
    let look = format!("kubectl -n {ns} describe pods -l app.kubernetes.io/name=aero-agent");
    if all == 0 {
        report.fail("agents", "no node has an agent", look);
    } else if unready.is_empty() {
        let on = format!("{good} of {} have a ready agent", count(system.nodes.len(), "node"));
        report.ok("agents", on);
    } else {
        report.fail("agents", format!("{good} of {all} ready; not {}", names(&unready)), look);
    }
    let silent: Vec<String> = (system.agents.iter())
        .filter_map(|(node, page)| page.as_ref().err().map(|e| format!("{node}: {e}")))
        .collect();
    if !silent.is_empty() {
        report.note("agents", format!("could not be asked: {}", silent.join("; ")));
    }
}

fn clients(system: &System, report: &mut Report) {
    if system.clients.is_empty() {
        report.note("clients", "none yet: kubectl apply -f examples/client.yaml");
    }
    let (mut identities, mut bound, mut moves) = (0, 0, 0);
    let mut refused = Vec::new();
    for client in &system.clients {
        let status = client.status.clone().unwrap_or_default();
        identities += status.identity_count;
        bound += status.bound;
        moves += status.moves;
        let (good, why) = ready(&status.conditions);
        if !good {
            let name = client.name_any();
            let namespace = client.namespace().unwrap_or_default();
            refused.push((
                format!("client {namespace}/{name}"),
                why,
                format!("kubectl -n {namespace} describe aeroclient {name}"),
            ));
        }
    }
    if !system.clients.is_empty() {
        let clients = count(system.clients.len(), "AeroClient");
        let text = format!(
            "{clients}: {bound} of {identities} identities have a pod, {moves} moves so far"
        );
        report.ok("clients", text);
    }
    for (part, why, look) in refused {
        report.fail(part, why, look);
    }
}

fn row(system: &System, node: &str) -> NodeRow {
    let mut row = NodeRow {
        node: node.into(),
        agent: String::new(),
        servers: (0, 0),
        clients: (0, 0),
        packets: 0,
        dropped: 0,
    };
    let pod = system.pods_of("agent").find(|p| p.node == node);
    row.agent = match pod {
        None => "none".into(),
        Some(p) if p.ready => "serves".into(),
        Some(p) => format!("not ready ({})", p.state),
    };
    if let Some(Ok(page)) = system.agents.get(node) {
        let answer = page.servers.iter().filter(|s| s.state == "answers").count();
        row.servers = (answer, page.servers.len());
        row.clients = (page.clients.iter().filter(|c| c.served).count(), page.clients.len());
        row.packets = page.counters.delivered_packets + page.counters.tunneled_packets;
        row.dropped = page.counters.dropped() + page.counters.send_errors;
    } else if pod.is_some_and(|p| p.ready) {
        row.agent = "serves, cannot be asked".into();
    }
    row
}

/// True if every line is as it should be.
pub fn healthy(status: &Status) -> bool {
    status.report.lines.iter().all(|l| l.state != State::Fail)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::system;

    fn failing(system: &System) -> Vec<String> {
        let status = status(system);
        let bad = status.report.lines.iter().filter(|l| l.state == State::Fail);
        bad.map(|l| format!("{}: {}", l.part, l.text)).collect()
    }

    #[test]
    fn a_healthy_system_has_no_line_that_fails_and_a_row_for_each_node() {
        let status = status(&system());
        assert!(healthy(&status), "{}", status.text());
        let text = status.text();
        for part in [
            "ok    operator",
            "aero-operator-1 leads",
            "2001:db8:a::/48 in /64s: 1 in use, 0 cooling, 65535 free",
            "1 AeroClient: 1 of 1 identities have a pod, 3 moves so far",
            "\nn1    serves  2/2      1/1      20       0\n",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
    }

    #[test]
    fn what_fails_is_named_with_its_node_and_what_to_do() {
        let mut s = system();
        for pod in s.parts.iter_mut().filter(|p| p.name == "aero-server-b") {
            pod.ready = false;
        }
        assert_eq!(
            failing(&s),
            ["servers default: 1 of 2 serve; not aero-server-b on n2 (Running)"]
        );
        let mut s = system();
        s.leader = Some("aero-operator-9".into());
        assert!(failing(&s)[0].contains("still held by aero-operator-9"));
        let mut s = system();
        s.parts.clear();
        let text = status(&s).text();
        assert!(text.contains("no pod of the operator") && text.contains("n1    none"), "{text}");
        assert!(text.contains("\ndo  "), "{text}");
    }
}
