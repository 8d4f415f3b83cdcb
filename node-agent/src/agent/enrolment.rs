//! Whether a pod is enrolled: asked of the API server when it matters, not watched
//! (docs/decisions/009-agents-ask-who-is-enrolled.md).
//!
//! An AeroClient changes with every move of one of its pods, for its status says where they are. A
//! node that watched it would hear of moves all over the cluster. What an agent must know changes
//! with the spec only, and the API server counts those changes: `metadata.generation`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aero_crds::AeroClient;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::runtime::reflector::Store;
use kube::{Api, Client, ResourceExt};
use tokio::time::{Instant, sleep, timeout, timeout_at};

use super::assignment::{self, Verdict};

/// How long the API server may take to say who is enrolled.
const ASK_TIME: Duration = Duration::from_secs(2);
/// After this it is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// What was asked so far.
pub struct Enrolment {
    client: Client,
    pods: Store<Pod>,
    /// Specs by namespace and name; each is good as long as UID and generation are the same.
    specs: Mutex<BTreeMap<(String, String), Arc<AeroClient>>>,
    /// UIDs of pods of this node of which it is known that they are not enrolled.
    strangers: Mutex<BTreeSet<String>>,
}

impl Enrolment {
    /// Nothing is known yet. `pods`: those of this node.
    pub fn new(client: Client, pods: Store<Pod>) -> Self {
        Self { client, pods, specs: Mutex::default(), strangers: Mutex::default() }
    }

    /// Whether an AeroClient selects a pod, by the API server's own word: an AeroClient that was
    /// made before the question counts, however short before. While there is no answer, only a pod
    /// that was not enrolled at an earlier question is taken not to be.
    ///
    /// # Errors
    /// If there is no answer until the deadline; says why.
    pub async fn enrolled(&self, pod: &Pod, deadline: Instant) -> Result<bool, String> {
        let namespace = pod.namespace().unwrap_or_default();
        loop {
            let silence = match timeout(ASK_TIME, self.ask(&namespace)).await {
                Ok(Ok(clients)) => return Ok(self.note(pod, &clients)),
                Ok(Err(e)) => e.to_string(),
                Err(_) => format!("no answer for {ASK_TIME:?}"),
            };
            if self.is_stranger(pod) {
                return Ok(false);
            }
            if timeout_at(deadline, sleep(ASK_AGAIN)).await.is_err() {
                return Err(format!("the AeroClients of {namespace} cannot be read: {silence}"));
            }
        }
    }

    /// Asks about the pods that are there already, so that those that are not enrolled can be
    /// started again also while the API server is away.
    pub async fn survey(&self) {
        if self.pods.wait_until_ready().await.is_err() {
            return;
        }
        let mut by_namespace: BTreeMap<String, Vec<Arc<Pod>>> = BTreeMap::new();
        for pod in self.pods.state() {
            // The plugin is not called for a pod that has no network of its own.
            let own_network = pod.spec.as_ref().is_some_and(|s| s.host_network != Some(true));
            if own_network && assignment::read(&pod) == Verdict::Nothing {
                by_namespace.entry(pod.namespace().unwrap_or_default()).or_default().push(pod);
            }
        }
        for (namespace, pods) in by_namespace {
            let clients = loop {
                match timeout(ASK_TIME, self.ask(&namespace)).await {
                    Ok(Ok(clients)) => break clients,
                    Ok(Err(_)) | Err(_) => sleep(ASK_AGAIN).await,
                }
            };
            for pod in pods {
                self.note(&pod, &clients);
            }
        }
    }

    /// The AeroClients of a namespace: a list of their metadata, and each spec that is new.
    async fn ask(&self, namespace: &str) -> kube::Result<Vec<Arc<AeroClient>>> {
        let api: Api<AeroClient> = Api::namespaced(self.client.clone(), namespace);
        let mut present = Vec::new();
        // Without a resourceVersion: not from a cache of the API server that may lag.
        for met in api.list_metadata(&ListParams::default()).await?.items {
            // For the operator one that is being deleted is gone.
            if met.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let key = (namespace.to_string(), met.name_any());
            let known = self.specs().get(&key).cloned().filter(|c| {
                c.metadata.uid == met.metadata.uid
                    && c.metadata.generation == met.metadata.generation
            });
            let client = match known {
                Some(client) => client,
                None => match api.get_opt(&met.name_any()).await? {
                    // Of the status, which may be long, nothing is needed here.
                    Some(client) => Arc::new(AeroClient { status: None, ..client }),
                    None => continue,
                },
            };
            present.push((key, client));
        }
        let clients = present.iter().map(|(_, client)| Arc::clone(client)).collect();
        let mut specs = self.specs();
        specs.retain(|(of, _), _| of != namespace);
        specs.extend(present);
        Ok(clients)
    }

    /// Writes down whether a pod is enrolled, and says so.
    fn note(&self, pod: &Pod, clients: &[Arc<AeroClient>]) -> bool {
        let enrolled = clients.iter().any(|c| c.selects(pod));
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        let mut strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        if enrolled {
            strangers.remove(&uid);
        } else {
            let here: BTreeSet<String> =
                self.pods.state().iter().filter_map(|p| p.metadata.uid.clone()).collect();
            strangers.retain(|u| here.contains(u));
            strangers.insert(uid);
        }
        enrolled
    }

    fn is_stranger(&self, pod: &Pod) -> bool {
        let strangers = self.strangers.lock().unwrap_or_else(PoisonError::into_inner);
        pod.metadata.uid.as_ref().is_some_and(|uid| strangers.contains(uid))
    }

    fn specs(&self) -> std::sync::MutexGuard<'_, BTreeMap<(String, String), Arc<AeroClient>>> {
        self.specs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[path = "enrolment_tests.rs"]
mod tests;
