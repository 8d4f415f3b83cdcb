//! Watches pods and mappings all the time, with the times at which changes were seen, and holds
//! them to the rule that no prefix ever has two holders.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use aero_crds::{AcpMapping, annotations};
use anyhow::{Context, bail};
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher::{self, Event};
use kube::{Api, Client, Config, ResourceExt};

use super::micros;

/// A pod as it was last seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodSeen {
    /// `namespace/name`.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Node.
    pub node: String,
    /// Its prefix, if it has one.
    pub prefix: Option<String>,
    /// When it was first seen Ready, in microseconds of the clock.
    pub ready_at: Option<u64>,
    /// Being deleted.
    pub terminating: bool,
    /// Labels.
    pub labels: BTreeMap<String, String>,
}

/// Everything that is known.
#[derive(Debug, Default)]
pub struct Seen {
    /// Pods by UID.
    pub pods: BTreeMap<String, PodSeen>,
    /// Holder (pod UID) and epoch by prefix.
    pub holders: BTreeMap<String, (Option<String>, i64)>,
    /// What broke the rule.
    pub violations: Vec<String>,
}

impl Seen {
    /// The pod of a name that is not being deleted.
    pub fn pod(&self, name: &str) -> Option<&PodSeen> {
        self.pods.values().find(|p| p.name == name && !p.terminating)
    }

    /// Ready pods with a label.
    pub fn ready(&self, label: &str, value: &str) -> Vec<&PodSeen> {
        let has = |p: &&PodSeen| p.labels.get(label).map(String::as_str) == Some(value);
        self.pods.values().filter(has).filter(|p| p.ready_at.is_some() && !p.terminating).collect()
    }

    fn check(&mut self) {
        let mut by_prefix: BTreeMap<&str, Vec<&PodSeen>> = BTreeMap::new();
        for pod in self.pods.values().filter(|p| !p.terminating) {
            if let Some(prefix) = &pod.prefix {
                by_prefix.entry(prefix).or_default().push(pod);
            }
        }
        for (prefix, pods) in by_prefix {
            if let [a, b, ..] = pods[..] {
                self.violations.push(format!(
                    "{prefix} is held by {} on {} and by {} on {}",
                    a.name, a.node, b.name, b.node
                ));
            }
        }
    }
}

/// The watching thread's other end.
pub struct Observer {
    seen: Arc<(Mutex<Seen>, Condvar)>,
}

impl Observer {
    /// Starts watching a cluster.
    ///
    /// # Errors
    /// If the kubeconfig cannot be read.
    pub fn start(kubeconfig: &Path) -> anyhow::Result<Self> {
        let config = Kubeconfig::read_from(kubeconfig)?;
        let seen = Arc::new((Mutex::new(Seen::default()), Condvar::new()));
        let own = Arc::clone(&seen);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        std::thread::spawn(move || {
            runtime.block_on(async move {
                let options = KubeConfigOptions::default();
                let Ok(config) = Config::from_custom_kubeconfig(config, &options).await else {
                    return;
                };
                let Ok(client) = Client::try_from(config) else { return };
                tokio::join!(pods(client.clone(), &own), mappings(client, &own));
            });
        });
        Ok(Self { seen })
    }

    /// What is known now.
    pub fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until `look` finds something.
    ///
    /// # Errors
    /// If it does not in time.
    pub fn wait<T>(
        &self,
        what: &str,
        within: Duration,
        mut look: impl FnMut(&Seen) -> Option<T>,
    ) -> anyhow::Result<T> {
        let give_up = Instant::now() + within;
        let mut seen = self.seen();
        loop {
            if let Some(found) = look(&seen) {
                return Ok(found);
            }
            let left = give_up.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let pods: Vec<_> = seen
                    .pods
                    .values()
                    .map(|p| format!("{} on {} ready {:?}", p.name, p.node, p.ready_at))
                    .collect();
                bail!("not within {within:?}: {what}; pods: {}", pods.join("; "));
            }
            seen = self.seen.1.wait_timeout(seen, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Fails if a prefix ever had two holders.
    ///
    /// # Errors
    /// Names them.
    pub fn check(&self) -> anyhow::Result<()> {
        let seen = self.seen();
        seen.violations
            .first()
            .map_or(Ok(()), |v| Err(anyhow::anyhow!(v.clone())))
            .context("two holders")
    }
}

type Shared = (Mutex<Seen>, Condvar);

fn change(shared: &Shared, f: impl FnOnce(&mut Seen)) {
    f(&mut shared.0.lock().unwrap_or_else(PoisonError::into_inner));
    shared.1.notify_all();
}

async fn pods(client: Client, shared: &Shared) {
    let api: Api<Pod> = Api::all(client);
    let mut stream = std::pin::pin!(aero_crds::watch(api, watcher::Config::default()));
    let mut listed: Vec<PodSeen> = Vec::new();
    while let Some(event) = stream.next().await {
        match event {
            Ok(Event::Init) => listed.clear(),
            Ok(Event::InitApply(p)) => listed.push(look(&p)),
            // A list takes the place of all that was known, at once.
            Ok(Event::InitDone) => change(shared, |seen| {
                let before = std::mem::take(&mut seen.pods);
                for mut pod in listed.drain(..) {
                    let known = before.get(&pod.uid).and_then(|p| p.ready_at);
                    pod.ready_at = known.or(pod.ready_at);
                    seen.pods.insert(pod.uid.clone(), pod);
                }
                seen.check();
            }),
            Ok(Event::Apply(p)) => {
                let mut pod = look(&p);
                change(shared, |seen| {
                    let known = seen.pods.get(&pod.uid).and_then(|p| p.ready_at);
                    pod.ready_at = known.or(pod.ready_at);
                    seen.pods.insert(pod.uid.clone(), pod);
                    seen.check();
                });
            }
            Ok(Event::Delete(p)) => change(shared, |seen| {
                seen.pods.remove(&p.metadata.uid.unwrap_or_default());
            }),
            Err(_) => {}
        }
    }
}

fn look(pod: &Pod) -> PodSeen {
    let mut conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    let ready = conditions.any(|c| c.type_ == "Ready" && c.status == "True");
    PodSeen {
        name: format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any()),
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        node: pod.spec.as_ref().and_then(|s| s.node_name.clone()).unwrap_or_default(),
        prefix: pod.annotations().get(annotations::PREFIX).cloned(),
        ready_at: ready.then(micros),
        terminating: pod.metadata.deletion_timestamp.is_some(),
        labels: pod.labels().clone(),
    }
}

async fn mappings(client: Client, shared: &Shared) {
    let api: Api<AcpMapping> = Api::all(client);
    let mut stream = std::pin::pin!(aero_crds::watch(api, watcher::Config::default()));
    while let Some(event) = stream.next().await {
        if let Ok(Event::Apply(m) | Event::InitApply(m)) = event {
            let uid = m.spec.holder.as_ref().map(|h| h.pod_uid.clone());
            change(shared, |seen| {
                let old = seen.holders.insert(m.spec.prefix.clone(), (uid.clone(), m.spec.epoch));
                if let Some((Some(before), epoch)) = old
                    && uid.is_some_and(|u| u != before)
                    && m.spec.epoch <= epoch
                {
                    let text = format!("{} changed hands without a new epoch", m.spec.prefix);
                    seen.violations.push(text);
                }
            });
        }
    }
}
