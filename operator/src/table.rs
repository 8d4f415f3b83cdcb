//! The shared table as this operator sees it: the cache of AcpMappings, with the ways to look into
//! it that rounds need. Each change costs the same however large the table is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use aero_crds::{AcpMapping, Phase, mapping_name};
use ipnet::IpNet;
use kube::ResourceExt;

use crate::allocation::EffectivePool;
use crate::taken::Taken;

/// Prefixes of a pool that clients have, and those that cool.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Count {
    /// That a client has.
    pub used: i64,
    /// That were given up and are not free yet.
    pub cooling: i64,
}

/// How full the pools of a link are, counted as mappings come and go.
#[derive(Debug, Default)]
struct Tally {
    pools: Vec<EffectivePool>,
    counts: Vec<Count>,
}

impl Tally {
    fn add(&mut self, mapping: &AcpMapping, prefix: IpNet, sign: i64) {
        let cools = mapping.status.as_ref().and_then(|s| s.phase) == Some(Phase::Cooling);
        for (pool, count) in self.pools.iter().zip(&mut self.counts) {
            if pool.has_member(prefix) {
                *(if cools { &mut count.cooling } else { &mut count.used }) += sign;
            }
        }
    }
}

/// The table. Empty until it is filled from the cache.
#[derive(Debug, Default)]
pub struct Table {
    all: BTreeMap<String, Arc<AcpMapping>>,
    /// `namespace/name` of a client -> its mappings by name.
    of_client: HashMap<String, BTreeMap<String, Arc<AcpMapping>>>,
    /// `namespace/name` of a pod -> names of the mappings that a pod of that name holds.
    of_pod: HashMap<String, BTreeSet<String>>,
    /// Node -> names of the mappings that its pods hold.
    of_node: HashMap<String, BTreeSet<String>>,
    taken: Taken,
    tallies: HashMap<String, Tally>,
    /// The largest epoch of each prefix (by the mapping's name) that was seen or written here. A
    /// table that was put back to an older state says less.
    epochs: BTreeMap<String, i64>,
}

fn prefix_of(mapping: &AcpMapping) -> Option<IpNet> {
    mapping.spec.prefix.parse().ok()
}

/// `namespace/name` of a mapping's client.
pub fn client_of(mapping: &AcpMapping) -> String {
    let of = &mapping.spec.client_ref;
    format!("{}/{}", of.namespace, of.name)
}

fn pod_of(mapping: &AcpMapping) -> Option<String> {
    let holder = mapping.spec.holder.as_ref()?;
    Some(format!("{}/{}", mapping.spec.client_ref.namespace, holder.pod_name))
}

fn drop_name(map: &mut HashMap<String, BTreeSet<String>>, key: &str, name: &str) {
    if let Some(names) = map.get_mut(key) {
        names.remove(name);
        if names.is_empty() {
            map.remove(key);
        }
    }
}

impl Table {
    /// Begins anew with these mappings. What is known of epochs stays.
    pub fn refill(&mut self, all: impl IntoIterator<Item = Arc<AcpMapping>>) {
        *self = Self { epochs: std::mem::take(&mut self.epochs), ..Self::default() };
        for mapping in all {
            self.put(mapping);
        }
    }

    /// A mapping came or changed.
    pub fn put(&mut self, mapping: Arc<AcpMapping>) {
        let name = mapping.name_any();
        self.remove(&name);
        self.learn(&mapping);
        if let Some(prefix) = prefix_of(&mapping) {
            self.taken.insert(prefix);
            if let Some(tally) = self.tallies.get_mut(&mapping.spec.link_ref.name) {
                tally.add(&mapping, prefix, 1);
            }
        }
        if let (Some(pod), Some(holder)) = (pod_of(&mapping), &mapping.spec.holder) {
            self.of_pod.entry(pod).or_default().insert(name.clone());
            self.of_node.entry(holder.node.clone()).or_default().insert(name.clone());
        }
        let own = self.of_client.entry(client_of(&mapping)).or_default();
        own.insert(name.clone(), Arc::clone(&mapping));
        self.all.insert(name, mapping);
    }

    /// A mapping went.
    pub fn remove(&mut self, name: &str) {
        let Some(mapping) = self.all.remove(name) else { return };
        if let Some(prefix) = prefix_of(&mapping) {
            self.taken.remove(prefix);
            if let Some(tally) = self.tallies.get_mut(&mapping.spec.link_ref.name) {
                tally.add(&mapping, prefix, -1);
            }
        }
        if let (Some(pod), Some(holder)) = (pod_of(&mapping), &mapping.spec.holder) {
            drop_name(&mut self.of_pod, &pod, name);
            drop_name(&mut self.of_node, &holder.node, name);
        }
        let client = client_of(&mapping);
        if let Some(own) = self.of_client.get_mut(&client) {
            own.remove(name);
            if own.is_empty() {
                self.of_client.remove(&client);
            }
        }
    }

    /// The mapping of a name.
    pub fn get(&self, name: &str) -> Option<&Arc<AcpMapping>> {
        self.all.get(name)
    }

    /// The mapping of a prefix.
    pub fn of_prefix(&self, prefix: IpNet) -> Option<&Arc<AcpMapping>> {
        self.all.get(&mapping_name(prefix)?)
    }

    /// The mappings of a client (`namespace/name`), by name.
    pub fn of_client(&self, key: &str) -> impl Iterator<Item = &Arc<AcpMapping>> {
        self.of_client.get(key).into_iter().flat_map(BTreeMap::values)
    }

    /// The mappings that pods of this name (`namespace/name`) hold.
    pub fn of_pod(&self, key: &str) -> impl Iterator<Item = &String> {
        self.of_pod.get(key).into_iter().flatten()
    }

    /// The mappings that pods on a node hold.
    pub fn of_node(&self, node: &str) -> impl Iterator<Item = &Arc<AcpMapping>> {
        self.of_node.get(node).into_iter().flatten().filter_map(|name| self.all.get(name))
    }

    /// Names of all mappings, in order.
    pub fn names(&self) -> impl Iterator<Item = &String> {
        self.all.keys()
    }

    /// All prefixes that have a mapping.
    pub fn taken(&self) -> &Taken {
        &self.taken
    }

    /// The largest epoch of a prefix, by its mapping's name, that is known here; 0 if none is.
    pub fn known_epoch(&self, name: &str) -> i64 {
        self.epochs.get(name).copied().unwrap_or(0)
    }

    /// Remembers the epoch of a mapping that was seen or written.
    pub fn learn(&mut self, mapping: &AcpMapping) {
        let known = self.epochs.entry(mapping.name_any()).or_default();
        *known = mapping.spec.epoch.max(*known);
    }

    /// How full the pools of a link are, in their order. Goes through the table only when the link
    /// has other pools than the last time.
    pub fn count(&mut self, link: &str, pools: &[EffectivePool]) -> Vec<Count> {
        if let Some(tally) = self.tallies.get(link).filter(|t| t.pools == pools) {
            return tally.counts.clone();
        }
        let mut tally =
            Tally { pools: pools.to_vec(), counts: vec![Count::default(); pools.len()] };
        for mapping in self.all.values().filter(|m| m.spec.link_ref.name == link) {
            if let Some(prefix) = prefix_of(mapping) {
                tally.add(mapping, prefix, 1);
            }
        }
        let counts = tally.counts.clone();
        self.tallies.insert(link.to_string(), tally);
        counts
    }

    /// Forgets how full the pools of a link are that is gone.
    pub fn forget_link(&mut self, link: &str) {
        self.tallies.remove(link);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn mapping(n: u32, client: &str, holder: Option<&str>, phase: &str) -> Arc<AcpMapping> {
        let holder =
            holder.map(|p| json!({"podName": p, "podUid": "u", "node": format!("of-{p}")}));
        Arc::new(
            serde_json::from_value(json!({
                "apiVersion": "aerolink.dev/v1alpha1", "kind": "AcpMapping",
                "metadata": {"name": format!("2001-db8-a-{n:x}-64")},
                "spec": {"prefix": format!("2001:db8:a:{n:x}::/64"), "linkRef": {"name": "default"},
                    "clientId": "x", "clientRef": {"namespace": "default", "name": client},
                    "identity": "i", "holder": holder, "epoch": n},
                "status": {"phase": phase},
            }))
            .unwrap(),
        )
    }

    /// All that a table says, to be compared.
    fn said(table: &mut Table, pools: &[EffectivePool]) -> Vec<String> {
        let names = |all: Vec<&Arc<AcpMapping>>| -> Vec<String> {
            all.into_iter().map(|m| m.name_any()).collect()
        };
        let mut said = vec![format!("{:?}", table.count("default", pools))];
        for client in ["a", "b"] {
            said.push(format!(
                "{:?}",
                names(table.of_client(&format!("default/{client}")).collect())
            ));
        }
        for pod in ["p", "q", "r"] {
            let of_pod: Vec<&String> = table.of_pod(&format!("default/{pod}")).collect();
            said.push(format!(
                "{of_pod:?} {:?}",
                names(table.of_node(&format!("of-{pod}")).collect())
            ));
        }
        said.push(format!("{:?}", pools[0].lowest_free(&[table.taken()])));
        said
    }

    #[test]
    fn what_was_kept_up_change_by_change_is_what_is_filled_at_once() {
        let pools = [EffectivePool { prefix: "2001:db8:a::/48".parse().unwrap(), length: 64 }];
        let mut table = Table::default();
        let mut random = fastrand::Rng::with_seed(7);
        table.count("default", &pools);
        let mut full = BTreeMap::new();
        for _ in 0..2000 {
            let n = random.u32(1..20);
            if random.bool() {
                let holder = random.choice([None, Some("p"), Some("q"), Some("r")]).flatten();
                let client = if random.bool() { "a" } else { "b" };
                let phase = if random.bool() { "Bound" } else { "Cooling" };
                let new = mapping(n, client, holder, phase);
                full.insert(n, Arc::clone(&new));
                table.put(new);
            } else {
                full.remove(&n);
                table.remove(&format!("2001-db8-a-{n:x}-64"));
            }
            let mut fresh = Table::default();
            fresh.refill(full.values().cloned());
            assert_eq!(said(&mut table, &pools), said(&mut fresh, &pools));
        }
        assert_eq!(table.known_epoch("2001-db8-a-5-64"), 5, "also of one that is gone");
        table.refill([]);
        assert_eq!(table.known_epoch("2001-db8-a-5-64"), 5, "and after a new list");
        assert!(table.of_client.is_empty() && table.of_pod.is_empty() && table.of_node.is_empty());
    }
}
