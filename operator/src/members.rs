//! Which pods are whose: the cache of AeroClients and of the pods that they select, or that say
//! that they are theirs. Kept up change by change; other pods are not in it.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use aero_crds::{AeroClient, annotations, is_true};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;

use crate::client::identity::PodView;
use crate::client::owner;
use crate::context::key;

/// A pod that some client has to do with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// As identities need it; `None` if it cannot hold a prefix.
    pub view: Option<Arc<PodView>>,
    /// Name, and UID.
    pub name: String,
    /// UID.
    pub uid: Option<String>,
    /// Names of the clients of its namespace that select it.
    pub selected: Vec<String>,
    /// The client of those that has it.
    pub owner: Option<String>,
    /// The client that it says that it belongs to, whether that exists or not.
    pub said: Option<String>,
}

impl Member {
    /// All clients that have to do with it.
    fn clients(&self) -> impl Iterator<Item = &String> {
        self.selected.iter().chain(self.said.iter().filter(|s| !self.selected.contains(s)))
    }
}

type ByName<T> = BTreeMap<String, T>;

/// Clients, and their pods.
#[derive(Debug, Default)]
pub struct Members {
    /// Namespace -> its clients.
    clients: HashMap<String, ByName<Arc<AeroClient>>>,
    /// `namespace/name` of a client -> its pods, whether it exists or not.
    pods: HashMap<String, ByName<Arc<Member>>>,
    /// `namespace/name` of a pod -> the same.
    by_pod: HashMap<String, Arc<Member>>,
    /// Clients that are not said to be ready.
    waiting: BTreeSet<String>,
    /// Prefix that is asked for by name -> clients.
    asking: HashMap<String, BTreeSet<String>>,
    /// Internal addresses of nodes.
    nodes: HashMap<String, Vec<String>>,
}

/// What a change of a client means to its namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Its status, at most.
    Status,
    /// What it asks for.
    Spec,
    /// Which pods it selects, or whether it is there.
    Pods,
}

/// All internal addresses of a node.
pub fn addresses(node: &Node) -> Vec<String> {
    let all = node.status.as_ref().and_then(|s| s.addresses.as_deref()).unwrap_or_default();
    all.iter().filter(|a| a.type_ == "InternalIP").map(|a| a.address.clone()).collect()
}

impl Members {
    /// Begins anew with these clients and pods.
    pub fn refill(&mut self, clients: Vec<Arc<AeroClient>>, pods: Vec<Arc<Pod>>) {
        *self = Self { nodes: std::mem::take(&mut self.nodes), ..Self::default() };
        for client in clients {
            self.set_client(&key(&*client), Some(client));
        }
        for pod in pods {
            self.set_pod(&key(&*pod), Some(&pod));
        }
    }

    /// A pod (`namespace/name`) came, changed or went. Returns the clients (`namespace/name`) that
    /// this means something to.
    pub fn set_pod(&mut self, key: &str, pod: Option<&Pod>) -> Vec<String> {
        let namespace = key.split_once('/').map_or("", |(namespace, _)| namespace);
        let new = pod.and_then(|p| self.member(namespace, p)).map(Arc::new);
        let old = match &new {
            Some(new) => self.by_pod.insert(key.to_string(), Arc::clone(new)),
            None => self.by_pod.remove(key),
        };
        if old == new {
            return Vec::new();
        }
        let mut all = BTreeSet::new();
        if let Some(member) = &old {
            for client in member.clients().map(|c| format!("{namespace}/{c}")) {
                if let Some(pods) = self.pods.get_mut(&client) {
                    pods.remove(&member.name);
                    if pods.is_empty() {
                        self.pods.remove(&client);
                    }
                }
                all.insert(client);
            }
        }
        if let Some(member) = &new {
            for client in member.clients().map(|c| format!("{namespace}/{c}")) {
                let pods = self.pods.entry(client.clone()).or_default();
                pods.insert(member.name.clone(), Arc::clone(member));
                all.insert(client);
            }
        }
        all.into_iter().collect()
    }

    fn member(&self, namespace: &str, pod: &Pod) -> Option<Member> {
        let selecting = self.clients.get(namespace).into_iter().flat_map(BTreeMap::values);
        let selecting: Vec<Arc<AeroClient>> =
            selecting.filter(|c| c.selects(pod)).cloned().collect();
        let said = pod.annotations().get(annotations::CLIENT).cloned();
        if selecting.is_empty() && said.is_none() {
            return None;
        }
        Some(Member {
            view: PodView::of(pod).map(Arc::new),
            name: pod.name_any(),
            uid: pod.uid(),
            owner: owner(&selecting, pod).map(ResourceExt::name_any),
            selected: selecting.iter().map(|c| c.name_any()).collect(),
            said,
        })
    }

    /// A client (`namespace/name`) came, changed or went. The pods of its namespace are to be set
    /// anew where that means something to them.
    pub fn set_client(&mut self, key: &str, client: Option<Arc<AeroClient>>) -> Change {
        let Some((namespace, name)) = key.split_once('/') else { return Change::Status };
        let own = self.clients.entry(namespace.to_string()).or_default();
        let old = match &client {
            Some(new) => own.insert(name.to_string(), Arc::clone(new)),
            None => own.remove(name),
        };
        if own.is_empty() {
            self.clients.remove(namespace);
        }
        for prefix in old.iter().flat_map(|c| &c.spec.prefixes) {
            if let Some(asking) = self.asking.get_mut(prefix) {
                asking.remove(key);
                if asking.is_empty() {
                    self.asking.remove(prefix);
                }
            }
        }
        for prefix in client.iter().flat_map(|c| &c.spec.prefixes) {
            self.asking.entry(prefix.clone()).or_default().insert(key.to_string());
        }
        let status = client.as_ref().and_then(|c| c.status.as_ref());
        if status.is_some_and(|s| !is_true(&s.conditions, "Ready")) {
            self.waiting.insert(key.to_string());
        } else {
            self.waiting.remove(key);
        }
        let selects = |c: &Arc<AeroClient>| {
            (
                c.uid(),
                c.creation_timestamp(),
                c.metadata.deletion_timestamp.is_some(),
                c.spec.pod_selector.clone(),
            )
        };
        match (old, client) {
            (Some(a), Some(b)) if a.spec == b.spec && selects(&a) == selects(&b) => Change::Status,
            (Some(a), Some(b)) if selects(&a) == selects(&b) => Change::Spec,
            (None, None) => Change::Status,
            _ => Change::Pods,
        }
    }

    /// The client of that key (`namespace/name`).
    pub fn client(&self, key: &str) -> Option<&Arc<AeroClient>> {
        let (namespace, name) = key.split_once('/')?;
        self.clients.get(namespace)?.get(name)
    }

    /// Keys of the clients of a namespace.
    pub fn clients_of(&self, namespace: &str) -> impl Iterator<Item = String> {
        let own = self.clients.get(namespace).into_iter().flat_map(BTreeMap::keys);
        own.map(move |name| format!("{namespace}/{name}"))
    }

    /// Keys of all clients, and of those that are gone while pods still say that they are theirs.
    pub fn all(&self) -> BTreeSet<String> {
        let there = self.clients.iter();
        let there = there.flat_map(|(ns, all)| all.keys().map(move |name| format!("{ns}/{name}")));
        there.chain(self.pods.keys().cloned()).collect()
    }

    /// The pods that a client has to do with, by name.
    pub fn pods_of(&self, client: &str) -> impl Iterator<Item = &Arc<Member>> {
        self.pods.get(client).into_iter().flat_map(BTreeMap::values)
    }

    /// Clients that are not said to be ready: a prefix that is free again may be for them.
    pub fn waiting(&self) -> impl Iterator<Item = &String> {
        self.waiting.iter()
    }

    /// Clients that ask for a prefix by name.
    pub fn asking(&self, prefix: &str) -> impl Iterator<Item = &String> {
        self.asking.get(prefix).into_iter().flatten()
    }

    /// A node came, changed or went. Returns whether its addresses are others than before.
    pub fn set_node(&mut self, name: &str, node: Option<&Node>) -> bool {
        let new = node.map(addresses);
        let old = match new.clone() {
            Some(new) => self.nodes.insert(name.to_string(), new),
            None => self.nodes.remove(name),
        };
        old != new
    }

    /// Forgets all nodes.
    pub fn forget_nodes(&mut self) {
        self.nodes.clear();
    }

    /// The internal addresses of a node; none if it is not known.
    pub fn addresses_of(&self, node: &str) -> &[String] {
        self.nodes.get(node).map_or(&[], Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn client(name: &str, app: &str) -> Arc<AeroClient> {
        Arc::new(
            serde_json::from_value(json!({
                "apiVersion": "aerolink.dev/v1alpha1", "kind": "AeroClient",
                "metadata": {"name": name, "namespace": "ns", "uid": name},
                "spec": {"podSelector": {"matchLabels": {"app": app}}},
            }))
            .unwrap(),
        )
    }

    fn pod(app: &str, phase: &str, annotations: &Value) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "uid": "u", "labels": {"app": app},
                "annotations": annotations},
            "spec": {"containers": [], "nodeName": "n1"}, "status": {"phase": phase},
        }))
        .unwrap()
    }

    #[test]
    fn a_pods_change_is_told_to_those_that_had_it_and_have_it_and_what_kubelets_write_to_nobody() {
        let mut m = Members::default();
        m.set_client("ns/web", Some(client("web", "web")));
        m.set_client("ns/db", Some(client("db", "db")));
        assert_eq!(m.set_pod("ns/p", Some(&pod("web", "Pending", &json!({})))), ["ns/web"]);
        assert!(m.set_pod("ns/p", Some(&pod("web", "Running", &json!({})))).is_empty());
        assert_eq!(m.set_pod("ns/p", Some(&pod("web", "Failed", &json!({})))), ["ns/web"]);
        assert_eq!(m.set_pod("ns/p", Some(&pod("db", "Failed", &json!({})))), ["ns/db", "ns/web"]);
        let said = json!({(annotations::CLIENT): "gone"});
        let all = m.set_pod("ns/p", Some(&pod("db", "Running", &said)));
        assert_eq!(all, ["ns/db", "ns/gone"]);
        assert_eq!(m.pods_of("ns/gone").count(), 1);
        assert_eq!(Vec::from_iter(m.all()), ["ns/db", "ns/gone", "ns/web"]);
        assert_eq!(m.set_pod("ns/p", None), ["ns/db", "ns/gone"]);
        assert!(m.pods.is_empty() && m.by_pod.is_empty());
        assert!(m.set_pod("ns/p", Some(&pod("other", "Running", &json!({})))).is_empty());
        assert!(m.by_pod.is_empty(), "nobody has to do with it");
    }

    #[test]
    fn a_clients_status_means_nothing_to_others_and_its_selector_does() {
        let mut m = Members::default();
        assert_eq!(m.set_client("ns/web", Some(client("web", "web"))), Change::Pods);
        let mut new = (*client("web", "web")).clone();
        new.status = Some(aero_crds::AeroClientStatus::default());
        assert_eq!(m.set_client("ns/web", Some(Arc::new(new.clone()))), Change::Status);
        assert_eq!(m.waiting().count(), 1, "a status that does not say Ready");
        new.spec.prefixes = vec!["2001:db8::/64".into()];
        assert_eq!(m.set_client("ns/web", Some(Arc::new(new))), Change::Spec);
        assert_eq!(m.asking("2001:db8::/64").count(), 1);
        assert_eq!(m.set_client("ns/web", Some(client("web", "db"))), Change::Pods);
        assert_eq!((m.asking("2001:db8::/64").count(), m.waiting().count()), (0, 0));
        assert_eq!(m.set_client("ns/web", None), Change::Pods);
        assert!(m.clients.is_empty());
    }
}
