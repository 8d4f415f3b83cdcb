//! Which identity a pod has inside its AeroClient. Never the pod's UID: that is only the present
//! holder.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

/// A pod as far as identities need it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodView {
    /// Name.
    pub name: String,
    /// UID.
    pub uid: String,
    /// Node, once scheduled.
    pub node: Option<String>,
    /// An identity that its owner gives it: the name of a StatefulSet's pod or of a VM.
    pub fixed_identity: Option<String>,
    /// Being deleted.
    pub terminating: bool,
    /// Creation time, as text that sorts.
    pub created: String,
    /// Our annotations.
    pub annotations: BTreeMap<String, String>,
}

impl PodView {
    /// `None` for a pod that cannot hold a prefix: finished, or in its node's own network.
    pub fn of(pod: &Pod) -> Option<Self> {
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        let host_network = pod.spec.as_ref().and_then(|s| s.host_network) == Some(true);
        if matches!(phase, Some("Succeeded" | "Failed")) || host_network {
            return None;
        }
        let name = pod.metadata.name.clone()?;
        let owners = pod.metadata.owner_references.as_deref().unwrap_or_default();
        let stateful = owners.iter().any(|o| o.kind == "StatefulSet" && o.controller == Some(true));
        let labels = pod.metadata.labels.as_ref();
        let vm = labels.and_then(|l| l.get("vm.kubevirt.io/name")).cloned();
        Some(Self {
            uid: pod.metadata.uid.clone()?,
            node: pod.spec.as_ref().and_then(|s| s.node_name.clone()).filter(|n| !n.is_empty()),
            fixed_identity: vm.or_else(|| stateful.then(|| name.clone())),
            terminating: pod.metadata.deletion_timestamp.is_some(),
            created: pod
                .metadata
                .creation_timestamp
                .as_ref()
                .map_or_else(String::new, |t| t.0.to_string()),
            annotations: ours(pod.metadata.annotations.iter().flatten()),
            name,
        })
    }
}

/// Those annotations that are ours.
pub fn ours<'a>(all: impl Iterator<Item = (&'a String, &'a String)>) -> BTreeMap<String, String> {
    all.filter(|(k, _)| k.starts_with("aerolink.dev/"))
        .map(|(k, v)| (k.clone(), v.clone()))
        .collect()
}

/// Assigns an identity to every scheduled pod. `held`: identity -> UID of its present holder.
///
/// A pod keeps the slot that it holds; a slot is free again when no pod of `pods` holds it. A
/// pod that is being deleted gets nothing new.
pub fn assign<'a>(
    pods: &'a [Arc<PodView>],
    held: &BTreeMap<String, Option<String>>,
) -> BTreeMap<String, &'a PodView> {
    let mut assigned: BTreeMap<String, &PodView> = BTreeMap::new();
    let mut ordered: Vec<&PodView> =
        pods.iter().map(AsRef::as_ref).filter(|p| p.node.is_some()).collect();
    ordered.sort_by(|a, b| (&a.created, &a.name).cmp(&(&b.created, &b.name)));
    // Of two identities that one pod holds, the first.
    let mut holds: HashMap<&str, &String> = HashMap::new();
    for (identity, uid) in held {
        if let Some(uid) = uid {
            holds.entry(uid).or_insert(identity);
        }
    }
    for pod in &ordered {
        if let Some(identity) = holds.get(pod.uid.as_str()) {
            assigned.insert((*identity).clone(), pod);
        }
    }
    let mut slots = Slots::default();
    for pod in &ordered {
        if pod.terminating || holds.contains_key(pod.uid.as_str()) {
            continue;
        }
        let identity = match &pod.fixed_identity {
            Some(fixed) => fixed.clone(),
            None => slots.lowest(&assigned),
        };
        // Two pods with one fixed identity (a VM on the move): the first keeps it.
        assigned.entry(identity).or_insert(pod);
    }
    assigned
}

/// Slots, of which none is free again while they are given.
#[derive(Default)]
struct Slots {
    next: u64,
}

impl Slots {
    fn lowest(&mut self, assigned: &BTreeMap<String, &PodView>) -> String {
        loop {
            let slot = format!("slot-{}", self.next);
            if !assigned.contains_key(&slot) {
                return slot;
            }
            self.next += 1;
        }
    }
}

/// The place of an identity for `spec.prefixes`: the number at its end, which is the
/// StatefulSet's ordinal or the slot.
pub fn ordinal(identity: &str) -> Option<usize> {
    identity.rsplit_once('-')?.1.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(name: &str, created: &str, stateful: bool) -> Arc<PodView> {
        Arc::new(PodView {
            name: name.into(),
            uid: format!("uid-{name}-{created}"),
            node: Some("n1".into()),
            fixed_identity: stateful.then(|| name.to_string()),
            terminating: false,
            created: created.into(),
            annotations: BTreeMap::new(),
        })
    }

    fn names(assigned: &BTreeMap<String, &PodView>) -> Vec<(String, String)> {
        assigned.iter().map(|(i, p)| (i.clone(), p.name.clone())).collect()
    }

    #[test]
    fn a_statefulset_pod_is_known_by_its_name_whatever_its_uid() {
        let pods = [pod("web-0", "2", true), pod("web-1", "1", true)];
        let held = BTreeMap::from([("web-0".to_string(), Some("uid-of-before".to_string()))]);
        let assigned = assign(&pods, &held);
        assert_eq!(
            names(&assigned),
            [("web-0".into(), "web-0".into()), ("web-1".into(), "web-1".into())]
        );
    }

    #[test]
    fn a_deployments_pod_takes_the_lowest_slot_and_keeps_it() {
        let pods = [pod("b", "1", false), pod("a", "2", false)];
        assert_eq!(
            names(&assign(&pods, &BTreeMap::new())),
            [("slot-0".into(), "b".into()), ("slot-1".into(), "a".into())]
        );
        let held = BTreeMap::from([
            ("slot-0".to_string(), Some("gone".to_string())),
            ("slot-1".to_string(), Some(pods[0].uid.clone())),
        ]);
        assert_eq!(
            names(&assign(&pods, &held)),
            [("slot-0".into(), "a".into()), ("slot-1".into(), "b".into())]
        );
    }

    #[test]
    fn a_surging_roll_out_takes_a_slot_more_while_the_old_pod_still_ends() {
        let mut old = pod("old", "1", false);
        Arc::make_mut(&mut old).terminating = true;
        let pods = [old.clone(), pod("new", "2", false)];
        let held = BTreeMap::from([("slot-0".to_string(), Some(old.uid.clone()))]);
        assert_eq!(
            names(&assign(&pods, &held)),
            [("slot-0".into(), "old".into()), ("slot-1".into(), "new".into())]
        );
        let pods = [pod("new", "2", false), pod("newer", "3", false)];
        let held = BTreeMap::from([
            ("slot-0".to_string(), None),
            ("slot-1".to_string(), Some(pods[0].uid.clone())),
        ]);
        assert_eq!(
            names(&assign(&pods, &held)),
            [("slot-0".into(), "newer".into()), ("slot-1".into(), "new".into())]
        );
    }

    #[test]
    fn a_pod_that_is_not_scheduled_or_ends_before_it_had_a_prefix_gets_none() {
        let mut waiting = pod("a", "1", false);
        Arc::make_mut(&mut waiting).node = None;
        let mut ending = pod("b", "1", false);
        Arc::make_mut(&mut ending).terminating = true;
        assert!(assign(&[waiting, ending], &BTreeMap::new()).is_empty());
    }

    #[test]
    fn the_ordinal_is_the_number_at_the_end() {
        assert_eq!(ordinal("web-0"), Some(0));
        assert_eq!(ordinal("slot-12"), Some(12));
        assert_eq!(ordinal("my-vm"), None);
    }
}
