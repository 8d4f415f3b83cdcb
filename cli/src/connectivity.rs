//! `kubectl aero connectivity`: probes between all nodes, each way.
//!
//! For each pair two results: `node`, between the nodes' underlay addresses, and `link`, from an
//! enrolled pod on the one to an enrolled pod on the other, the whole way through the link. A probe
//! is the opening of a TCP connection that the other side's kernel answers.

use std::net::{IpAddr, SocketAddr};

use aero_telemetry::debug::{NodeReport, ProbeReport};
use futures::{StreamExt, stream};
use kube::Client;
use serde::Serialize;

use crate::observe::{AGENT_PORT, System};
use crate::reach;
use crate::report::{millis, table};

/// Probes under way at a time.
const PARALLEL: usize = 16;

/// One result.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Outcome {
    /// Milliseconds until the answer.
    Answer(f64),
    /// What came instead.
    Failed(String),
    /// Not probed, and why.
    NotProbed(String),
}

impl Outcome {
    fn of(probed: Result<ProbeReport, String>) -> Self {
        match probed {
            Ok(ProbeReport { round_trip_us: Some(us), .. }) => {
                Self::Answer(f64::from(u32::try_from(us).unwrap_or(u32::MAX)) / 1000.0)
            }
            Ok(p) => Self::Failed(p.error.unwrap_or_else(|| "no answer".into())),
            Err(why) => Self::NotProbed(why),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Answer(ms) => millis(*ms),
            Self::Failed(why) => format!("FAIL {why}"),
            Self::NotProbed(why) => format!("- {why}"),
        }
    }
}

/// The results from one node to another.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Pair {
    /// The node that probes.
    pub from: String,
    /// The node that is probed.
    pub to: String,
    /// Between their underlay addresses.
    pub node: Outcome,
    /// Between their pods.
    pub link: Outcome,
}

/// What is to be probed from one node to another: the query of each probe, or why there is none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The node that probes.
    pub from: String,
    /// The node that is probed.
    pub to: String,
    node: Result<String, String>,
    link: Result<String, String>,
}

/// Plans the probes, from all nodes or from one.
pub fn plan(system: &System, only_from: Option<&str>) -> Vec<Wanted> {
    let mut all = Vec::new();
    for from in system.agents.keys().filter(|n| only_from.is_none_or(|o| o == *n)) {
        for to in system.nodes.iter().map(|n| &n.name).filter(|to| *to != from) {
            all.push(wanted(system, from, to));
        }
    }
    all
}

fn wanted(system: &System, from: &str, to: &str) -> Wanted {
    let page = |node: &str| match system.agents.get(node) {
        Some(Ok(page)) => Ok(page),
        Some(Err(why)) => Err(format!("agent {node} cannot be asked: {why}")),
        None => Err(format!("no agent runs on {node}")),
    };
    let (node, link) = match (page(from), page(to)) {
        (Err(why), _) | (_, Err(why)) => (Err(why.clone()), Err(why)),
        (Ok(a), Ok(b)) => (node_probe(a, b), link_probe(a, b)),
    };
    Wanted { from: from.into(), to: to.into(), node, link }
}

fn underlay(page: &NodeReport) -> Vec<IpAddr> {
    page.underlay.iter().filter_map(|a| Some(a.parse::<SocketAddr>().ok()?.ip())).collect()
}

fn node_probe(a: &NodeReport, b: &NodeReport) -> Result<String, String> {
    let ours = underlay(a);
    let shared = underlay(b).into_iter().find(|t| ours.iter().any(|o| o.is_ipv4() == t.is_ipv4()));
    shared.map(|to| format!("to={to}")).ok_or_else(|| "no family in common".into())
}

fn link_probe(a: &NodeReport, b: &NodeReport) -> Result<String, String> {
    let served = |p: &NodeReport| p.clients.iter().find(|c| c.served && c.fault.is_none()).cloned();
    let none = |n: &NodeReport| format!("no enrolled pod on {}", n.node);
    let source = served(a).ok_or_else(|| none(a))?;
    let destination = served(b).ok_or_else(|| none(b))?;
    Ok(format!("pod={}/{}&to={}", source.namespace, source.pod, destination.address))
}

/// Sends the probes.
pub async fn probe(client: &Client, system: &System, wanted: Vec<Wanted>) -> Vec<Pair> {
    let agent = |node: &str| {
        system.pods_of("agent").find(|p| p.node == node && !p.terminating).map(|p| p.name.clone())
    };
    let send = |from: String, query: Result<String, String>| async move {
        let query = match query {
            Ok(query) => query,
            Err(why) => return Outcome::NotProbed(why),
        };
        let Some(pod) = agent(&from) else { return Outcome::NotProbed("no agent".into()) };
        let path = format!("/debug/probe?{query}");
        Outcome::of(reach::json(client, &system.namespace, &pod, AGENT_PORT, &path).await)
    };
    let mut pairs: Vec<Pair> = stream::iter(wanted)
        .map(|w| async {
            let (node, link) =
                tokio::join!(send(w.from.clone(), w.node), send(w.from.clone(), w.link));
            Pair { from: w.from, to: w.to, node, link }
        })
        .buffer_unordered(PARALLEL)
        .collect()
        .await;
    pairs.sort_by(|a, b| (&a.from, &a.to).cmp(&(&b.from, &b.to)));
    pairs
}

/// All results.
#[derive(Debug, Clone, Serialize)]
pub struct Connectivity {
    /// One per pair and way.
    pub pairs: Vec<Pair>,
    /// How the nodes' agents see the Servers: node, Server, state.
    pub servers: Vec<(String, String, String)>,
    /// What to do.
    #[serde(rename = "do")]
    pub advice: Vec<String>,
}

/// Judges the results.
pub fn judge(system: &System, pairs: Vec<Pair>) -> Connectivity {
    let mut servers = Vec::new();
    let mut advice = Vec::new();
    for (node, page) in &system.agents {
        let Ok(page) = page else { continue };
        for server in &page.servers {
            let at = system.name_of(&server.address);
            if server.state == "silent" {
                let port = server.address.rsplit(':').next().unwrap_or("8060");
                advice.push(format!("open UDP {port} from {node} to Server {at}"));
            }
            servers.push((node.clone(), at, server.state.clone()));
        }
    }
    for p in &pairs {
        let (from, to) = (&p.from, &p.to);
        match (&p.node, &p.link) {
            (Outcome::Failed(_), _) => {
                advice.push(format!(
                    "{from} does not reach {to} at all: look at the nodes' network and firewalls"
                ));
            }
            (_, Outcome::Failed(_)) => {
                advice.push(format!("the nodes reach each other, the pods do not: kubectl aero trace a pod of {from} to one of {to}"));
            }
            _ => {}
        }
    }
    advice.dedup();
    Connectivity { pairs, servers, advice }
}

impl Connectivity {
    /// True if no probe failed, and every Server answers every node.
    pub fn healthy(&self) -> bool {
        let failed = |o: &Outcome| matches!(o, Outcome::Failed(_));
        !self.pairs.iter().any(|p| failed(&p.node) || failed(&p.link))
            && self.servers.iter().all(|(_, _, state)| state != "silent")
    }

    /// For people.
    pub fn text(&self) -> String {
        let head = |all: [&str; 4]| all.map(String::from).to_vec();
        let mut rows = vec![head(["FROM", "TO", "NODE", "LINK"])];
        rows.extend(
            self.pairs
                .iter()
                .map(|p| vec![p.from.clone(), p.to.clone(), p.node.text(), p.link.text()]),
        );
        let mut out = table(&rows);
        let mut rows = vec![head(["FROM", "SERVER", "STATE", ""])];
        rows.extend(
            self.servers.iter().map(|(n, s, state)| vec![n.clone(), s.clone(), state.clone()]),
        );
        out.push('\n');
        out.push_str(&table(&rows));
        for line in &self.advice {
            out.push_str(&format!("do  {line}\n"));
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::system;

    #[test]
    fn every_pair_is_probed_each_way_by_node_and_where_there_are_pods_by_link() {
        let s = system();
        let all = plan(&s, None);
        assert_eq!(all.len(), 2);
        assert_eq!(all[0].node, Ok("to=192.0.2.12".into()));
        assert_eq!(all[0].link, Err("no enrolled pod on n2".into()));
        assert_eq!(plan(&s, Some("n2")).len(), 1);
        let a = s.agents["n1"].as_ref().unwrap();
        assert_eq!(link_probe(a, a), Ok("pod=default/web-0&to=2001:db8:a:1::1".into()));
        let mut s = system();
        s.agents.insert("n2".into(), Err("no answer".into()));
        assert_eq!(plan(&s, None)[0].node, Err("agent n2 cannot be asked: no answer".into()));
    }

    #[test]
    fn a_probe_that_fails_says_between_whom_and_what_to_look_at() {
        let pair =
            |node: Outcome, link: Outcome| Pair { from: "n1".into(), to: "n2".into(), node, link };
        let not = || Outcome::NotProbed("no enrolled pod on n2".into());
        let good = judge(&system(), vec![pair(Outcome::Answer(0.41), not())]);
        assert!(good.healthy() && good.advice.is_empty());
        assert!(
            good.text().contains("n1    n2  0.41 ms  - no enrolled pod on n2\n"),
            "{}",
            good.text()
        );
        let bad = judge(
            &system(),
            vec![pair(Outcome::Answer(1.0), Outcome::Failed("no answer in 2s".into()))],
        );
        assert!(!bad.healthy() && bad.text().contains("FAIL no answer in 2s"));
        assert!(bad.advice[0].contains("the pods do not"));
        let mut s = system();
        s.agents.get_mut("n2").unwrap().as_mut().unwrap().servers[0].state = "silent".into();
        let silent = judge(&s, Vec::new());
        assert!(!silent.healthy());
        assert_eq!(silent.advice, ["open UDP 8060 from n2 to Server 192.0.2.11:8060 (n1)"]);
    }
}
