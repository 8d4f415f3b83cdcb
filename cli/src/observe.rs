//! Reads everything that the other modules judge.

use std::collections::BTreeMap;

use aero_crds::{AcpMapping, AeroClient, AeroLink, AeroRelay, AeroServer, annotations};
use aero_telemetry::debug::{NodeReport, ServerReport};
use anyhow::Context as _;
use futures::{StreamExt, stream};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt};
use serde::de::DeserializeOwned;

use crate::reach;

/// Admin port of agents.
pub const AGENT_PORT: u16 = 9061;
/// Admin port of Servers.
pub const SERVER_PORT: u16 = 9060;
/// Pages read at a time.
const PARALLEL: usize = 32;

/// A node of the cluster.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// The API server says that it is Ready.
    pub ready: bool,
    /// Its internal addresses.
    pub addresses: Vec<String>,
}

/// A pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PodView {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its UID.
    pub uid: String,
    /// Its node; empty: not scheduled.
    pub node: String,
    /// It is Ready.
    pub ready: bool,
    /// It is being deleted.
    pub terminating: bool,
    /// Its phase, or what its first container waits for.
    pub state: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Its annotations of `aerolink.dev`.
    pub annotations: BTreeMap<String, String>,
}

impl PodView {
    /// Looks at a pod.
    pub fn of(pod: &Pod) -> Self {
        let status = pod.status.clone().unwrap_or_default();
        let ready =
            status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
        let waits = status
            .container_statuses
            .iter()
            .flatten()
            .find_map(|c| c.state.as_ref()?.waiting.as_ref()?.reason.clone());
        let ours = |(k, _): &(&String, &String)| k.starts_with("aerolink.dev/");
        let own = |(k, v): (&String, &String)| (k.clone(), v.clone());
        Self {
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            uid: pod.uid().unwrap_or_default(),
            node: pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default(),
            ready,
            terminating: pod.metadata.deletion_timestamp.is_some(),
            state: waits.or(status.phase).unwrap_or_else(|| "Unknown".into()),
            labels: pod.labels().clone(),
            annotations: pod.annotations().iter().filter(ours).map(own).collect(),
        }
    }

    /// The part of AERO that it is: `operator`, `agent`, `server`.
    pub fn is_part(&self, part: &str) -> bool {
        self.labels.get("app.kubernetes.io/name").is_some_and(|n| *n == format!("aero-{part}"))
    }
}

/// Everything.
#[derive(Debug, Clone, Default)]
pub struct System {
    /// Namespace of the release.
    pub namespace: String,
    /// All AeroLinks.
    pub links: Vec<AeroLink>,
    /// All AeroServers.
    pub servers: Vec<AeroServer>,
    /// All AeroRelays.
    pub relays: Vec<AeroRelay>,
    /// All AeroClients.
    pub clients: Vec<AeroClient>,
    /// The shared table.
    pub mappings: Vec<AcpMapping>,
    /// All nodes.
    pub nodes: Vec<NodeView>,
    /// The pods of AERO itself.
    pub parts: Vec<PodView>,
    /// The operator pod that leads.
    pub leader: Option<String>,
    /// What the agents say, by node.
    pub agents: BTreeMap<String, Result<NodeReport, String>>,
    /// What the Servers say, by pod.
    pub server_reports: BTreeMap<String, Result<ServerReport, String>>,
}

impl System {
    /// The pods of a part of AERO.
    pub fn pods_of(&self, part: &str) -> impl Iterator<Item = &PodView> {
        self.parts.iter().filter(move |p| p.is_part(part))
    }

    /// The Servers of a link.
    pub fn servers_of(&self, link: &str) -> impl Iterator<Item = &PodView> {
        self.pods_of("server")
            .filter(move |p| p.labels.get(annotations::LINK_LABEL).is_some_and(|l| l == link))
    }

    /// The node that has an underlay address, with or without a port.
    pub fn node_of(&self, address: &str) -> Option<&str> {
        let ip = address
            .parse::<std::net::SocketAddr>()
            .map_or_else(|_| address.to_string(), |a| a.ip().to_string());
        self.nodes.iter().find(|n| n.addresses.contains(&ip)).map(|n| n.name.as_str())
    }

    /// A node's name beside an underlay address: `192.0.2.11:8060 (n1)`.
    pub fn name_of(&self, address: &str) -> String {
        self.node_of(address).map_or_else(|| address.into(), |n| format!("{address} ({n})"))
    }
}

async fn list<K>(api: Api<K>, what: &str) -> anyhow::Result<Vec<K>>
where
    K: Clone + DeserializeOwned + std::fmt::Debug,
{
    let listed = api.list(&ListParams::default()).await;
    match listed {
        Ok(list) => Ok(list.items),
        Err(kube::Error::Api(s)) if s.code == 404 => anyhow::bail!(
            "the cluster has no {what}: AERO is not installed \
             (helm install aero charts/aero -n aero-system --create-namespace)"
        ),
        Err(kube::Error::Api(s)) if s.code == 403 => {
            anyhow::bail!("you may not list {what}: {}", s.message)
        }
        Err(e) => Err(e).with_context(|| format!("{what} cannot be listed")),
    }
}

/// Reads the objects, and not the agents' and Servers' pages.
///
/// # Errors
/// If the API server cannot be asked, or AERO is not installed.
pub async fn objects(client: &Client, namespace: &str) -> anyhow::Result<System> {
    let all = || client.clone();
    let (links, servers, relays, clients, mappings, nodes) = tokio::try_join!(
        list(Api::<AeroLink>::all(all()), "AeroLinks"),
        list(Api::<AeroServer>::all(all()), "AeroServers"),
        list(Api::<AeroRelay>::all(all()), "AeroRelays"),
        list(Api::<AeroClient>::all(all()), "AeroClients"),
        list(Api::<AcpMapping>::all(all()), "AcpMappings"),
        list(Api::<Node>::all(all()), "nodes"),
    )?;
    let pods: Api<Pod> = Api::namespaced(all(), namespace);
    let ours = ListParams::default().labels("app.kubernetes.io/part-of=aero");
    let pods =
        pods.list(&ours).await.with_context(|| format!("pods of {namespace} cannot be listed"))?;
    let leases: Api<Lease> = Api::namespaced(all(), namespace);
    let leader = leases.get_opt("aero-operator").await.ok().flatten();
    let ready = |n: &Node| {
        let conditions = n.status.iter().flat_map(|s| s.conditions.iter().flatten());
        conditions.clone().any(|c| c.type_ == "Ready" && c.status == "True")
    };
    let addresses = |n: &Node| {
        let all = n.status.iter().flat_map(|s| s.addresses.iter().flatten());
        all.filter(|a| a.type_ == "InternalIP").map(|a| a.address.clone()).collect()
    };
    Ok(System {
        namespace: namespace.into(),
        links,
        servers,
        relays,
        clients,
        mappings,
        nodes: nodes
            .iter()
            .map(|n| NodeView { name: n.name_any(), ready: ready(n), addresses: addresses(n) })
            .collect(),
        parts: pods.items.iter().map(PodView::of).collect(),
        leader: leader.and_then(|l| l.spec?.holder_identity).filter(|h| !h.is_empty()),
        ..System::default()
    })
}

/// Reads everything.
///
/// # Errors
/// As [`objects`]; a page that cannot be read is part of what was seen.
pub async fn system(client: &Client, namespace: &str) -> anyhow::Result<System> {
    let mut system = objects(client, namespace).await?;
    let agents: Vec<PodView> = system.pods_of("agent").filter(running).cloned().collect();
    let of_agents = stream::iter(agents).map(|p| async move {
        (p.node, reach::json(client, namespace, &p.name, AGENT_PORT, "/debug/node").await)
    });
    let (agents, servers) = tokio::join!(
        of_agents.buffer_unordered(PARALLEL).collect::<BTreeMap<_, _>>(),
        server_reports(client, &system),
    );
    system.agents = agents;
    system.server_reports = servers;
    Ok(system)
}

/// Reads the objects and the Servers' pages, and not the agents'.
///
/// # Errors
/// As [`objects`].
pub async fn servers(client: &Client, namespace: &str) -> anyhow::Result<System> {
    let mut system = objects(client, namespace).await?;
    system.server_reports = server_reports(client, &system).await;
    Ok(system)
}

fn running(pod: &&PodView) -> bool {
    !pod.node.is_empty() && !pod.terminating && pod.state == "Running"
}

async fn server_reports(
    client: &Client,
    system: &System,
) -> BTreeMap<String, Result<ServerReport, String>> {
    let namespace = &system.namespace;
    let servers: Vec<PodView> = system.pods_of("server").filter(running).cloned().collect();
    let pages = stream::iter(servers).map(|p| async move {
        let page = reach::json(client, namespace, &p.name, SERVER_PORT, "/debug/server").await;
        (p.name, page)
    });
    pages.buffer_unordered(PARALLEL).collect().await
}

/// A pod, or `None` if there is none of the name.
///
/// # Errors
/// If the API server cannot be asked.
pub async fn pod(client: &Client, namespace: &str, name: &str) -> anyhow::Result<Option<PodView>> {
    let api: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let found = api.get_opt(name).await;
    let found = found.with_context(|| format!("pod {namespace}/{name} cannot be read"))?;
    Ok(found.as_ref().map(PodView::of))
}
