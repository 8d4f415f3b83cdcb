//! What the agent says of itself under `/debug`, and the probes that it sends when asked to. Only
//! callers on the node reach this (see `aero_telemetry::admin`).
//!
//! A probe opens a TCP connection to a port at which nobody listens: the refusal comes from the
//! other side's kernel, so it proves the way there and back, and nothing is disturbed.

use std::io::{self, ErrorKind};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use aero_dataplane::{ForwardingTable, Traffic};
use aero_protocol::client::{Liveness, Node};
use aero_telemetry::debug::{ClientReport, NeighborTraffic, NodeReport, ProbeReport, ServerSeen};
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::routing::get;
use axum::{Json, Router};
use prometheus_client::registry::Registry;
use serde::Deserialize;

use super::Agent;
use super::journal::Record;
use crate::attach;
use crate::driver::Driver;
use crate::metrics::{self, Counted};

/// Port of probes between pods: "discard", which nobody serves.
const DISCARD: u16 = 9;
/// How long a probe waits for its answer.
const PROBE_TIME: Duration = Duration::from_secs(2);

/// Registers the agent's metrics.
pub(super) fn register(
    registry: &mut Registry,
    driver: &Arc<Driver<Node>>,
    table: Arc<dyn ForwardingTable>,
) {
    metrics::register(registry, table);
    metrics::register_messages(registry, driver.messages());
    super::paths::register(registry, Arc::clone(driver));
    let of_servers = Arc::clone(driver);
    registry.register_collector(Box::new(Counted {
        head: ("aero_servers", "Servers of the link, by how they stand", "state"),
        count: move || {
            let all: Vec<Liveness> = of_servers.with(|n, _| n.servers().map(|(_, l)| l).collect());
            let count = |l| (state(l), all.iter().filter(|a| **a == l).count());
            [Liveness::Answers, Liveness::Silent, Liveness::Untried].map(count).to_vec()
        },
    }));
    let of_neighbors = Arc::clone(driver);
    registry.register_collector(Box::new(Counted {
        head: ("aero_neighbors", "Neighbour cache entries, by what the neighbour is", "kind"),
        count: move || {
            let answers = |(_, l): &(_, Liveness)| *l == Liveness::Answers;
            vec![("server", of_neighbors.with(|n, _| n.servers().filter(answers).count()))]
        },
    }));
}

fn neighbor((l2, t): (aero_protocol::address::LinkLayerAddress, Traffic)) -> NeighborTraffic {
    NeighborTraffic {
        address: l2.to_string(),
        ip_in_ip: t.ip_in_ip,
        tunneled_packets: t.tunneled_packets,
        tunneled_bytes: t.tunneled_bytes,
        received_packets: t.received_packets,
        received_bytes: t.received_bytes,
    }
}

/// The name of a Server's state.
fn state(liveness: Liveness) -> &'static str {
    match liveness {
        Liveness::Answers => "answers",
        Liveness::Silent => "silent",
        Liveness::Untried => "untried",
    }
}

/// The agent, once there is one: the admin port is served before.
#[derive(Clone, Default)]
pub(super) struct About(Arc<OnceLock<Weak<Agent>>>);

impl About {
    /// Here it is.
    pub(super) fn is(&self, agent: &Arc<Agent>) {
        // Set once, at the start.
        let _ = self.0.set(Arc::downgrade(agent));
    }

    fn get(&self) -> Result<Arc<Agent>, (StatusCode, &'static str)> {
        let agent = self.0.get().and_then(Weak::upgrade);
        agent.ok_or((StatusCode::SERVICE_UNAVAILABLE, "the agent is still starting\n"))
    }
}

/// The routes.
pub(super) fn router(about: About) -> Router {
    Router::new()
        .route("/debug/node", get(node))
        .route("/debug/probe", get(probe))
        .with_state(about)
}

async fn node(State(about): State<About>) -> Result<Json<NodeReport>, (StatusCode, &'static str)> {
    Ok(Json(about.get()?.report().await))
}

impl Agent {
    async fn report(&self) -> NodeReport {
        let mut clients = Vec::new();
        for record in self.journal.all() {
            clients.push(self.client_report(&record).await);
        }
        let (servers, default) =
            self.driver.with(|n, _| (n.servers().collect::<Vec<_>>(), n.default_server()));
        let seen = |(l2, l): (aero_protocol::address::LinkLayerAddress, Liveness)| ServerSeen {
            address: l2.to_string(),
            state: state(l).into(),
        };
        NodeReport {
            node: self.args.node_name.clone(),
            version: env!("CARGO_PKG_VERSION").into(),
            link: self.args.link.clone(),
            underlay: self.underlay.iter().map(ToString::to_string).collect(),
            mtu: self.mtu,
            default_server: default.map(|l2| l2.to_string()),
            servers: servers.into_iter().map(seen).collect(),
            clients,
            counters: metrics::counters(self.table.counters()),
            neighbors: self.table.traffic().into_iter().map(neighbor).collect(),
        }
    }

    async fn client_report(&self, record: &Record) -> ClientReport {
        let fault = attach::check(&record.spec).await.err().map(|e| e.to_string());
        let id = super::duid(record.client_id);
        let standing = self.driver.with(|n, _| n.standing(&id)).unwrap_or_default();
        let list = |all: &[aero_protocol::address::LinkLayerAddress]| {
            all.iter().map(ToString::to_string).collect()
        };
        ClientReport {
            client_id: record.client_id.to_string(),
            namespace: record.namespace.clone(),
            pod: record.pod.clone(),
            pod_uid: record.pod_uid.to_string(),
            prefix: record.spec.prefix.to_string(),
            address: record.spec.address().to_string(),
            epoch: record.epoch,
            interface: record.spec.host_ifname.clone(),
            fault,
            served: standing.served,
            bound: list(&standing.bound),
            pending: list(&standing.pending),
            refusal: standing.refusal,
        }
    }
}

/// What to probe: another node's agent, or an address of the link from a pod of this node.
#[derive(Debug, Deserialize)]
struct Probe {
    /// The destination.
    to: IpAddr,
    /// `namespace/name` of the pod; without one the probe is the node's own.
    pod: Option<String>,
}

async fn probe(
    State(about): State<About>,
    Query(probe): Query<Probe>,
) -> Result<Json<ProbeReport>, (StatusCode, String)> {
    let agent = about.get().map_err(|(code, text)| (code, text.to_string()))?;
    let (netns, port) = match &probe.pod {
        None => (None, agent.args.admin.port()),
        Some(pod) => {
            let all = agent.journal.all();
            let record = all.iter().find(|r| format!("{}/{}", r.namespace, r.pod) == *pod);
            let Some(record) = record else {
                let text = format!("pod {pod} is not attached to the link on this node");
                return Err((StatusCode::NOT_FOUND, text));
            };
            if !record.spec.asps.iter().any(|asp| asp.contains(&probe.to)) {
                let text = format!("{} is not an address of the link", probe.to);
                return Err((StatusCode::BAD_REQUEST, text));
            }
            (Some(record.spec.netns.clone()), DISCARD)
        }
    };
    let to = SocketAddr::new(probe.to, port);
    let report = tokio::task::spawn_blocking(move || send(netns, to)).await;
    report.map(Json).map_err(|e| (StatusCode::INTERNAL_SERVER_ERROR, e.to_string()))
}

fn send(netns: Option<PathBuf>, to: SocketAddr) -> ProbeReport {
    let probed = match netns {
        None => connect(to),
        // Only a thread of its own enters the pod's namespace, and ends there.
        Some(path) => std::thread::spawn(move || {
            let file = std::fs::File::open(path)?;
            nix::sched::setns(file.as_fd(), nix::sched::CloneFlags::CLONE_NEWNET)?;
            connect(to)
        })
        .join()
        .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked"))),
    };
    let mut report = ProbeReport { to: to.ip().to_string(), ..ProbeReport::default() };
    match probed {
        Ok((from, outcome)) => {
            report.from = Some(from.to_string());
            match outcome {
                Ok(took) => report.round_trip_us = u64::try_from(took.as_micros()).ok(),
                Err(e) => report.error = Some(e),
            }
        }
        Err(e) => report.error = Some(e.to_string()),
    }
    report
}

/// Connects, and tells the source address and how long the answer took.
fn connect(to: SocketAddr) -> io::Result<(IpAddr, Result<Duration, String>)> {
    let any: IpAddr = if to.is_ipv6() { [0u8; 16].into() } else { [0u8; 4].into() };
    // A connected UDP socket sends nothing and knows the source that the routes choose.
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(to)?;
    let from = socket.local_addr()?.ip();
    let began = Instant::now();
    let outcome = match TcpStream::connect_timeout(&to, PROBE_TIME) {
        Ok(_) => Ok(began.elapsed()),
        Err(e) if e.kind() == ErrorKind::ConnectionRefused => Ok(began.elapsed()),
        Err(e) if e.kind() == ErrorKind::TimedOut => Err(format!("no answer in {PROBE_TIME:?}")),
        Err(e) => Err(e.to_string()),
    };
    Ok((from, outcome))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn every_metric_of_an_agent_is_documented() {
        use aero_dataplane::underlay::Underlay;
        use aero_dataplane::userspace::Forwarder;
        let underlay = Underlay::bind(&["::1".parse().unwrap()], 0).unwrap();
        let forwarder = Forwarder::new(Arc::new(underlay), None, tokio::sync::mpsc::channel(1).0);
        let engine = Node::new(aero_protocol::client::Config {
            asps: Vec::new(),
            link_id: 0,
            node: "n1".into(),
            optimize: true,
            seed: 0,
        });
        let (driver, _outgoing) = Driver::new(engine, forwarder.clone(), drop);
        let mut registry = Registry::default();
        let _requests = metrics::CniRequests::new(&mut registry);
        let _refusals = metrics::Refusals::new(&mut registry);
        register(&mut registry, &driver, forwarder);
        let readiness = aero_telemetry::admin::Readiness::default();
        let _known = readiness.register("cni");
        aero_telemetry::admin::register(&mut registry, &readiness);
        let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        aero_telemetry::catalog::hold(document.as_ref(), "agent", &registry).unwrap();
    }

    #[test]
    fn a_refused_connection_is_an_answer_and_so_is_an_accepted_one() {
        let listener = std::net::TcpListener::bind("[::1]:0").unwrap();
        let open = listener.local_addr().unwrap();
        let report = send(None, open);
        assert!(report.round_trip_us.is_some(), "{report:?}");
        assert_eq!(report.from.as_deref(), Some("::1"));
        drop(listener);
        let report = send(None, open);
        assert!(report.round_trip_us.is_some() && report.error.is_none(), "{report:?}");
        let report = send(Some("/run/netns/there-is-none".into()), open);
        assert!(report.error.is_some(), "{report:?}");
    }
}
