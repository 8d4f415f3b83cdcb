//! The operator's caches, and who is to be told of a change.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aero_crds::annotations::{RELAY_LABEL, ROUTING_LABEL, SERVER_LABEL};
use aero_crds::{AcpMapping, AeroClient, AeroLink, AeroRelay, AeroServer, is_true};
use anyhow::Context as _;
use chrono::{DateTime, Utc};
use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::WatchStreamExt;
use kube::runtime::events::{Recorder, Reporter};
use kube::runtime::reflector::{self, ObjectRef, Store};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::{Notify, watch as channel};
use tokio::task::JoinSet;

/// What time it is: the machine's clock, or a model's.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The clock of this machine.
pub fn system_clock() -> Clock {
    Arc::new(Timestamp::now)
}

/// Keys that are to be looked at, each once however often it is marked.
#[derive(Debug, Default)]
pub struct Queue {
    keys: Mutex<BTreeSet<String>>,
    marked: Notify,
}

impl Queue {
    /// Marks a key.
    pub fn mark(&self, key: impl Into<String>) {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).insert(key.into());
        self.marked.notify_one();
    }

    /// Waits for a key.
    pub async fn next(&self) -> String {
        loop {
            let first = self.keys.lock().unwrap_or_else(PoisonError::into_inner).pop_first();
            match first {
                Some(key) => return key,
                None => self.marked.notified().await,
            }
        }
    }
}

/// What the operator was told at its start.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Its namespace: Servers and Relays run here.
    pub namespace: String,
    /// Its pod, for Events and the Lease.
    pub pod: String,
    /// Image of the Servers.
    pub node_agent_image: String,
    /// Image with BIRD and the same program, beside Servers and Relays.
    pub bird_image: String,
    /// Pull policy of the images.
    pub pull_policy: String,
    /// Service account of the Servers.
    pub server_service_account: String,
    /// Service account of the Relays.
    pub relay_service_account: String,
    /// What the Servers log, and in which form.
    pub log: (String, &'static str),
    /// Forwarder of the Servers: `auto`, `ebpf` or `userspace`.
    pub forwarder: String,
}

/// Everything that the controllers share.
pub struct Context {
    /// The API client.
    pub client: Client,
    /// What the operator was told.
    pub settings: Settings,
    /// Identity of the cluster.
    pub cluster: String,
    /// Writes Events.
    pub recorder: Recorder,
    /// All pods.
    pub pods: Store<Pod>,
    /// All nodes.
    pub nodes: Store<Node>,
    /// All AeroClients.
    pub clients: Store<AeroClient>,
    /// All AeroLinks.
    pub links: Store<AeroLink>,
    /// All AeroServers.
    pub servers: Store<AeroServer>,
    /// All AeroRelays.
    pub relays: Store<AeroRelay>,
    /// The shared table.
    pub mappings: Store<AcpMapping>,
    /// Our Deployments.
    pub deployments: Store<Deployment>,
    /// ConfigMaps of interior BGP: routes files, and reports of sessions.
    pub config_maps: Store<ConfigMap>,
    /// AeroClients (`namespace/name`) to look at.
    pub client_queue: Queue,
    /// AeroLinks to look at.
    pub link_queue: Queue,
    /// AeroServers (`namespace/name`) to look at.
    pub server_queue: Queue,
    /// AeroRelays (`namespace/name`) to look at.
    pub relay_queue: Queue,
    /// AeroLinks whose routes file is to be looked at.
    pub routes_queue: Queue,
    mappings_changed: channel::Sender<u64>,
    clock: Clock,
    /// The largest epoch of each prefix (by the mapping's name) that was seen or written here. A
    /// table that was put back to an older state says less.
    epochs: Mutex<BTreeMap<String, i64>>,
    watches: Mutex<JoinSet<()>>,
}

impl Context {
    /// Starts the caches and waits until they are filled.
    ///
    /// # Errors
    /// If the API server cannot be asked for the cluster's identity.
    pub async fn start(
        client: Client,
        settings: Settings,
        clock: Clock,
    ) -> anyhow::Result<Arc<Self>> {
        let namespaces: Api<Namespace> = Api::all(client.clone());
        let cluster = namespaces
            .get("kube-system")
            .await
            .context("namespace kube-system cannot be read (its UID names the cluster)")?
            .uid()
            .unwrap_or_default();
        let reporter =
            Reporter { controller: "aero-operator".into(), instance: Some(settings.pod.clone()) };
        let (pods, pod_writer) = reflector::store();
        let (nodes, node_writer) = reflector::store();
        let (clients, client_writer) = reflector::store();
        let (links, link_writer) = reflector::store();
        let (servers, server_writer) = reflector::store();
        let (relays, relay_writer) = reflector::store();
        let (mappings, mapping_writer) = reflector::store();
        let (deployments, deployment_writer) = reflector::store();
        let (config_maps, config_map_writer) = reflector::store();
        let ctx = Arc::new(Self {
            recorder: Recorder::new(client.clone(), reporter),
            cluster,
            pods,
            nodes,
            clients,
            links,
            servers,
            relays,
            mappings,
            deployments,
            config_maps,
            client_queue: Queue::default(),
            link_queue: Queue::default(),
            server_queue: Queue::default(),
            relay_queue: Queue::default(),
            routes_queue: Queue::default(),
            mappings_changed: channel::channel(0).0,
            clock,
            epochs: Mutex::default(),
            watches: Mutex::default(),
            settings,
            client: client.clone(),
        });
        let all = watcher::Config::default;
        let ours = all().labels("app.kubernetes.io/managed-by=aero-operator");
        let own: Api<Deployment> = Api::namespaced(client.clone(), &ctx.settings.namespace);
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &ctx.settings.namespace);
        let routing = all().labels(&format!("{ROUTING_LABEL}=true"));
        feed(&ctx, Api::all(client.clone()), all(), pod_writer, Self::pod_changed);
        feed(&ctx, Api::all(client.clone()), all(), node_writer, Self::node_changed);
        feed(&ctx, Api::all(client.clone()), all(), client_writer, Self::client_changed);
        feed(&ctx, Api::all(client.clone()), all(), link_writer, Self::link_changed);
        // What one of them asks for, others of its link may not have.
        feed(&ctx, Api::all(client.clone()), all(), server_writer, |c, s: &AeroServer| {
            c.part_changed(&s.spec.link_ref.name);
            // And the discovery name, that links of one namespace share, may be another's now.
            for server in c.servers.state() {
                c.server_queue.mark(key(&*server));
            }
        });
        feed(&ctx, Api::all(client.clone()), all(), relay_writer, |c, r: &AeroRelay| {
            c.part_changed(&r.spec.link_ref.name);
        });
        feed(&ctx, Api::all(client), all(), mapping_writer, Self::mapping_changed);
        feed(&ctx, own, ours, deployment_writer, |c, _| c.mark_all_parts());
        feed(&ctx, maps, routing, config_map_writer, |c, _| c.mark_all_parts());
        ctx.pods.wait_until_ready().await?;
        ctx.nodes.wait_until_ready().await?;
        ctx.clients.wait_until_ready().await?;
        ctx.links.wait_until_ready().await?;
        ctx.servers.wait_until_ready().await?;
        ctx.relays.wait_until_ready().await?;
        ctx.mappings.wait_until_ready().await?;
        ctx.deployments.wait_until_ready().await?;
        ctx.config_maps.wait_until_ready().await?;
        Ok(ctx)
    }

    /// Ends the watches. The caches stay as they are.
    pub fn stop(&self) {
        self.watches.lock().unwrap_or_else(PoisonError::into_inner).abort_all();
    }

    /// The present time as the API writes it.
    pub fn now(&self) -> Time {
        Time((self.clock)())
    }

    /// The largest epoch of each prefix, by its mapping's name, that is known here.
    pub fn known_epochs(&self) -> BTreeMap<String, i64> {
        self.epochs.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn learn_epoch(&self, mapping: &AcpMapping) {
        let mut epochs = self.epochs.lock().unwrap_or_else(PoisonError::into_inner);
        let known = epochs.entry(mapping.name_any()).or_default();
        *known = mapping.spec.epoch.max(*known);
    }

    /// Waits until the cache of mappings holds what was written. Bounded: a write that is
    /// followed by a deletion is never seen.
    ///
    /// # Errors
    /// If the cache has not caught up within 2 s; the caller tries again.
    pub async fn caught_up(&self, written: &[AcpMapping]) -> anyhow::Result<()> {
        let version = |m: &AcpMapping| m.resource_version().and_then(|v| v.parse::<u64>().ok());
        let seen = |m: &AcpMapping| {
            let cached = self.mappings.get(&ObjectRef::from_obj(m));
            cached.is_some_and(|c| version(&c) >= version(m))
        };
        for mapping in written {
            self.learn_epoch(mapping);
        }
        let mut changes = self.mappings_changed.subscribe();
        let wait = async {
            while !written.iter().all(seen) {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(2), wait)
            .await
            .context("the cache of mappings lags behind")
    }

    fn pod_changed(&self, pod: &Pod) {
        let namespace = pod.namespace();
        // Whether that client exists or not: it may have gone while no operator was there.
        if let Some(name) = pod.annotations().get(aero_crds::annotations::CLIENT) {
            self.client_queue.mark(format!("{}/{name}", namespace.clone().unwrap_or_default()));
        }
        for client in self.clients.state() {
            if client.namespace() == namespace && client.selects(pod) {
                self.client_queue.mark(key(&*client));
            }
        }
        if [SERVER_LABEL, RELAY_LABEL].iter().any(|l| pod.labels().contains_key(*l)) {
            self.mark_all_parts();
        }
    }

    /// A node's addresses matter to the mappings of its pods; its heartbeats do not.
    fn node_changed(&self, node: &Node) {
        let name = node.name_any();
        let addresses: Vec<String> = node
            .status
            .iter()
            .flat_map(|s| s.addresses.iter().flatten())
            .filter(|a| a.type_ == "InternalIP")
            .map(|a| a.address.clone())
            .collect();
        for mapping in self.mappings.state() {
            let stale = |h: &aero_crds::Holder| h.node == name && h.underlay != addresses;
            if mapping.spec.holder.as_ref().is_some_and(stale) {
                let of = &mapping.spec.client_ref;
                self.client_queue.mark(format!("{}/{}", of.namespace, of.name));
            }
        }
        self.mark_all_parts();
    }

    fn client_changed(&self, client: &AeroClient) {
        // Another client of the namespace may get the pods that this one selected, or lose them.
        self.client_queue.mark(key(client));
        for other in self.clients.state() {
            if other.namespace() == client.namespace() {
                self.client_queue.mark(key(&*other));
            }
        }
    }

    fn link_changed(&self, link: &AeroLink) {
        for other in self.links.state() {
            self.link_queue.mark(other.name_any());
        }
        self.link_queue.mark(link.name_any());
        for client in self.clients.state() {
            self.client_queue.mark(key(&*client));
        }
        self.mark_all_parts();
    }

    fn mapping_changed(&self, mapping: &AcpMapping) {
        self.learn_epoch(mapping);
        self.mappings_changed.send_modify(|n| *n = n.wrapping_add(1));
        self.link_queue.mark(mapping.spec.link_ref.name.clone());
        let of = &mapping.spec.client_ref;
        self.client_queue.mark(format!("{}/{}", of.namespace, of.name));
        // A client that was refused this prefix, or any where there was none left, may have one
        // now.
        for client in self.clients.state() {
            let waits = client.status.as_ref().is_some_and(|s| !is_true(&s.conditions, "Ready"));
            if waits || client.spec.prefixes.contains(&mapping.spec.prefix) {
                self.client_queue.mark(key(&*client));
            }
        }
    }

    fn mark_all(&self) {
        for client in self.clients.state() {
            self.client_queue.mark(key(&*client));
        }
        for link in self.links.state() {
            self.link_queue.mark(link.name_any());
        }
        self.mark_all_parts();
    }

    /// All that is run: Servers, Relays, and the files that tell them of each other.
    pub fn mark_all_parts(&self) {
        for server in self.servers.state() {
            self.server_queue.mark(key(&*server));
        }
        for relay in self.relays.state() {
            self.relay_queue.mark(key(&*relay));
        }
        for link in self.links.state() {
            self.routes_queue.mark(link.name_any());
        }
    }

    /// An AeroServer or AeroRelay of this link came, changed or went.
    fn part_changed(&self, link: &str) {
        self.routes_queue.mark(link);
        for server in self.servers.state().iter().filter(|s| s.spec.link_ref.name == link) {
            self.server_queue.mark(key(&**server));
        }
        for relay in self.relays.state().iter().filter(|r| r.spec.link_ref.name == link) {
            self.relay_queue.mark(key(&**relay));
        }
    }
}

/// Applies the status of an object, as the one field manager that owns it.
///
/// # Errors
/// If the API server does not take it.
pub async fn apply_status<K>(
    api: &Api<K>,
    name: &str,
    manager: &str,
    status: &impl Serialize,
) -> anyhow::Result<()>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let patch = json!({
        "apiVersion": K::api_version(&()), "kind": K::kind(&()), "status": status,
    });
    api.patch_status(name, &PatchParams::apply(manager).force(), &Patch::Apply(patch))
        .await
        .context("the status cannot be written")?;
    Ok(())
}

/// Objects of a cache by namespace and name. A cache has them in an order of its own that changes
/// from start to start; what is decided, written and told must not depend on it.
pub fn in_order<K: ResourceExt>(mut objects: Vec<Arc<K>>) -> Vec<Arc<K>> {
    objects.sort_by_cached_key(|o| (o.namespace(), o.name_any()));
    objects
}

/// `namespace/name`.
pub fn key<K: ResourceExt>(object: &K) -> String {
    format!("{}/{}", object.namespace().unwrap_or_default(), object.name_any())
}

/// Feeds a cache from a watch and tells `changed` of every object that comes, changes or goes.
fn feed<K>(
    ctx: &Arc<Context>,
    api: Api<K>,
    config: watcher::Config,
    writer: reflector::store::Writer<K>,
    changed: fn(&Context, &K),
) where
    K: Resource + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
    K::DynamicType: Eq + Hash + Clone + Default + Send + Sync + Unpin,
{
    let stream = aero_crds::watch(api, config).reflect(writer);
    let mut watches = ctx.watches.lock().unwrap_or_else(PoisonError::into_inner);
    let ctx = Arc::clone(ctx);
    watches.spawn(async move {
        let mut stream = std::pin::pin!(stream);
        let mut failing = false;
        while let Some(event) = stream.next().await {
            match event {
                Ok(Event::Apply(o) | Event::Delete(o) | Event::InitApply(o)) => {
                    changed(&ctx, &o);
                    failing = false;
                }
                Ok(Event::Init) => failing = false,
                // Only now the cache holds what was listed, and what vanished has left it.
                Ok(Event::InitDone) => ctx.mark_all(),
                Err(e) if !failing => {
                    failing = true;
                    let kind = K::kind(&K::DynamicType::default()).into_owned();
                    tracing::warn!(kind, "the watch broke and is tried again: {e}");
                }
                Err(_) => {}
            }
        }
    });
}

/// A time of the API for arithmetic.
pub fn to_chrono(time: &Time) -> DateTime<Utc> {
    DateTime::from_timestamp(time.0.as_second(), 0).unwrap_or_default()
}
