//! What a change of an object means: the indexes are kept up, and who has to do with it is marked.
//!
//! What somebody waits for is looked at at once: pods, and prefixes that are free again. What only
//! a status says may wait for a moment ([`mark_later`](crate::queue::Queue::mark_later)), so that a
//! thousand changes are one round.

use aero_crds::annotations::{RELAY_LABEL, SERVER_LABEL};
use aero_crds::{AcpMapping, AeroClient, AeroLink};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::ResourceExt;
use kube::runtime::reflector::ObjectRef;

use crate::context::{Context, key};
use crate::members::Change;
use crate::table::client_of;

impl Context {
    /// Fills the indexes from the caches, which are read under the locks: what they get to hold
    /// after that is told after.
    pub(crate) fn refill(&self) {
        {
            let mut table = self.table();
            table.refill(self.mappings.state());
        }
        self.refill_links();
        let mut members = self.members();
        members.refill(self.clients.state(), self.pods.state());
        members.forget_nodes();
        for node in self.nodes.state() {
            members.set_node(&node.name_any(), Some(&node));
        }
    }

    /// Lists were read anew, or it is time for a full pass: everything is looked at.
    pub fn mark_all(&self) {
        let clients = self.members().all();
        for client in clients {
            self.client_queue.mark(client);
        }
        for link in self.links.state() {
            self.link_queue.mark(link.name_any());
        }
        self.mark_all_parts();
        self.look_at_all();
    }

    pub(crate) fn pod_changed(&self, pod: &Pod) {
        let key = key(pod);
        let (clients, held) = {
            let mut members = self.members();
            let present = self.pods.get(&ObjectRef::from_obj(pod));
            let clients = members.set_pod(&key, present.as_deref());
            let held: Vec<String> = self.table().of_pod(&key).cloned().collect();
            (clients, held)
        };
        for client in clients {
            self.client_queue.mark(client);
        }
        self.look_at(held);
        if [SERVER_LABEL, RELAY_LABEL].iter().any(|l| pod.labels().contains_key(*l)) {
            self.mark_all_parts();
        }
    }

    /// A node's addresses matter to the mappings of its pods; its heartbeats do not.
    pub(crate) fn node_changed(&self, node: &Node) {
        let name = node.name_any();
        let mut members = self.members();
        let present = self.nodes.get(&ObjectRef::from_obj(node));
        if !members.set_node(&name, present.as_deref()) {
            return;
        }
        let stale = |m: &&std::sync::Arc<AcpMapping>| {
            m.spec.holder.as_ref().is_some_and(|h| h.underlay != members.addresses_of(&name))
        };
        for mapping in self.table().of_node(&name).filter(stale) {
            self.client_queue.mark(client_of(mapping));
        }
        drop(members);
        self.mark_all_parts();
    }

    pub(crate) fn client_changed(&self, client: &AeroClient) {
        let own = key(client);
        let namespace = client.namespace().unwrap_or_default();
        let mut members = self.members();
        let change = members.set_client(&own, self.clients.get(&ObjectRef::from_obj(client)));
        if change == Change::Status {
            self.client_queue.mark_later(own);
            return;
        }
        self.client_queue.mark(own.clone());
        if change == Change::Pods {
            // Another client of the namespace may get the pods that this one selected, or lose
            // them.
            for pod in self.pods.state_filter(|p| p.metadata.namespace == client.metadata.namespace)
            {
                members.set_pod(&key(&*pod), Some(&pod));
            }
            for other in members.clients_of(&namespace) {
                self.client_queue.mark(other);
            }
        }
        drop(members);
        let held: Vec<String> = self.table().of_client(&own).map(|m| m.name_any()).collect();
        self.look_at(held);
    }

    pub(crate) fn link_changed(&self, link: &AeroLink) {
        let name = link.name_any();
        let present = self.links.get(&ObjectRef::from_obj(link));
        let spec = present.as_ref().map(|l| l.spec.clone());
        if present.is_none() {
            self.table().forget_link(&name);
        }
        if !self.link_is_new(&name, spec) {
            self.link_queue.mark_later(name);
            return;
        }
        for other in self.links.state() {
            self.link_queue.mark(other.name_any());
        }
        self.link_queue.mark(name);
        let clients = self.members().all();
        for client in clients {
            self.client_queue.mark(client);
        }
        self.mark_all_parts();
    }

    pub(crate) fn mapping_changed(&self, mapping: &AcpMapping) {
        let name = mapping.name_any();
        let gone = {
            let mut table = self.table();
            table.learn(mapping);
            match self.mappings.get(&ObjectRef::from_obj(mapping)) {
                Some(present) => {
                    table.put(present);
                    false
                }
                None => {
                    table.remove(&name);
                    true
                }
            }
        };
        self.tell_of_mappings();
        self.look_at([name]);
        self.link_queue.mark_later(mapping.spec.link_ref.name.clone());
        self.client_queue.mark_later(client_of(mapping));
        let members = self.members();
        // A client that was refused this prefix hears who has it now; and where it is free again
        // one that was refused it, or any where there was none left, may have it.
        for client in members.asking(&mapping.spec.prefix) {
            self.client_queue.mark_later(client.clone());
        }
        if gone {
            for client in members.waiting().chain(members.asking(&mapping.spec.prefix)) {
                self.client_queue.mark(client.clone());
            }
        }
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
    pub(crate) fn part_changed(&self, link: &str) {
        self.routes_queue.mark(link);
        for server in self.servers.state().iter().filter(|s| s.spec.link_ref.name == link) {
            self.server_queue.mark(key(&**server));
        }
        for relay in self.relays.state().iter().filter(|r| r.spec.link_ref.name == link) {
            self.relay_queue.mark(key(&**relay));
        }
    }
}
