//! The operator's caches, and who is to be told of a change.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use aero_crds::annotations::ROUTING_LABEL;
use aero_crds::{AcpMapping, AeroClient, AeroLink, AeroLinkSpec, AeroRelay, AeroServer};
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
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::sync::watch as channel;
use tokio::task::JoinSet;

use crate::members::Members;
use crate::queue::Queue;
use crate::table::Table;

/// What time it is: the machine's clock, or a model's.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The clock of this machine.
pub fn system_clock() -> Clock {
    Arc::new(Timestamp::now)
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
    /// The cache of mappings, indexed.
    table: Mutex<Table>,
    /// The caches of clients and their pods, indexed. Where both are locked, this one is first.
    members: Mutex<Members>,
    /// Names of mappings that garbage collection is to look at.
    looks: Mutex<BTreeSet<String>>,
    /// What each link asked for last.
    link_specs: Mutex<BTreeMap<String, AeroLinkSpec>>,
    mappings_changed: channel::Sender<u64>,
    clock: Clock,
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
            table: Mutex::default(),
            members: Mutex::default(),
            looks: Mutex::default(),
            link_specs: Mutex::default(),
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
        // A cache is ready a moment before its watch has said so here, and nothing may be decided
        // from an index that is not filled.
        ctx.refill();
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

    /// The cache of mappings, indexed. Not to be held over an await.
    pub fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The caches of clients and their pods, indexed. Not to be held over an await, and not to be
    /// asked for while the table is held.
    pub fn members(&self) -> MutexGuard<'_, Members> {
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn looks(&self) -> MutexGuard<'_, BTreeSet<String>> {
        self.looks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Garbage collection is to look at these mappings, by name.
    pub fn look_at(&self, names: impl IntoIterator<Item = String>) {
        self.looks().extend(names);
    }

    /// Garbage collection is to look at all mappings.
    pub fn look_at_all(&self) {
        let names: Vec<String> = self.table().names().cloned().collect();
        self.look_at(names);
    }

    /// The mappings that garbage collection is to look at, once.
    pub fn take_looks(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.looks())
    }

    fn link_specs(&self) -> MutexGuard<'_, BTreeMap<String, AeroLinkSpec>> {
        self.link_specs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn refill_links(&self) {
        let mut specs = self.link_specs();
        *specs = self.links.state().iter().map(|l| (l.name_any(), l.spec.clone())).collect();
    }

    /// Whether a link asks for something else than the last time; `None`: it is gone.
    pub(crate) fn link_is_new(&self, name: &str, spec: Option<AeroLinkSpec>) -> bool {
        let mut specs = self.link_specs();
        let old = match spec.clone() {
            Some(spec) => specs.insert(name.to_string(), spec),
            None => specs.remove(name),
        };
        old != spec
    }

    pub(crate) fn tell_of_mappings(&self) {
        self.mappings_changed.send_modify(|n| *n = n.wrapping_add(1));
    }

    /// Waits until the cache of mappings holds what was written. Bounded: a write that is
    /// followed by a deletion is never seen.
    ///
    /// # Errors
    /// If the cache has not caught up within 2 s; the caller tries again.
    pub async fn caught_up(&self, written: &[AcpMapping]) -> anyhow::Result<()> {
        let version = |m: &AcpMapping| m.resource_version().and_then(|v| v.parse::<u64>().ok());
        let seen = |m: &AcpMapping| {
            self.table().get(&m.name_any()).is_some_and(|c| version(c) >= version(m))
        };
        for mapping in written {
            self.table().learn(mapping);
        }
        let mut changes = self.mappings_changed.subscribe();
        let wait = async {
            // A version that was seen stays seen, so each is waited for once.
            for mapping in written {
                while !seen(mapping) {
                    if changes.changed().await.is_err() {
                        return;
                    }
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(2), wait)
            .await
            .context("the cache of mappings lags behind")
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
                Ok(Event::Apply(o) | Event::Delete(o)) => {
                    changed(&ctx, &o);
                    failing = false;
                }
                Ok(Event::Init | Event::InitApply(_)) => failing = false,
                // Only now the cache holds what was listed, and what vanished has left it.
                Ok(Event::InitDone) => {
                    ctx.refill();
                    ctx.mark_all();
                }
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
