//! What to do where a pod holds more than it should: the work of a cache that lagged, or of two
//! operators that both thought that they lead.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use aero_crds::{AcpMapping, Phase, annotations};

use super::plan::{Observed, Plan, Write, phase_of};

/// A pod that holds mappings of two identities keeps the older. Such a thing is made where an
/// operator's cache lags behind what it, or another that also thinks that it leads, has written.
///
/// Which one it keeps depends on the mappings alone, so that it stays the same from round to round;
/// and the other is given up only when the pod is seen to have been told the one.
pub(super) fn give_up_doubles(
    seen: &Observed<'_>,
    own: &mut BTreeMap<String, Vec<Arc<AcpMapping>>>,
    held: &mut BTreeMap<String, Option<String>>,
    plan: &mut Plan,
) -> BTreeSet<String> {
    let mut keeps: BTreeMap<String, (Age, String)> = BTreeMap::new();
    for (identity, mappings) in own.iter() {
        let Some(uid) = held.get(identity).cloned().flatten() else { continue };
        let Some(age) = mappings.iter().map(|m| age(m)).min() else { continue };
        let this = (age, identity.clone());
        keeps.entry(uid).and_modify(|k| *k = this.clone().min(k.clone())).or_insert(this);
    }
    let mut doubles = BTreeSet::new();
    own.retain(|identity, mappings| {
        let Some(uid) = held.get(identity).cloned().flatten() else { return true };
        let Some((_, kept)) = keeps.get(&uid).filter(|(_, kept)| kept != identity) else {
            return true;
        };
        let pod = seen.pods.iter().find(|p| p.uid == uid);
        let told = pod.and_then(|p| p.annotations.get(annotations::IDENTITY));
        if pod.is_none() || told == Some(kept) {
            let live = mappings.iter().filter(|m| phase_of(m) != Some(Phase::Cooling));
            plan.writes.extend(live.map(|m| Write::Retire((**m).clone())));
        }
        held.insert(identity.clone(), None);
        doubles.insert(identity.clone());
        false
    });
    doubles
}

/// What mappings are ordered by where the older wins: creation time and name never change.
pub(super) type Age = (Option<String>, Option<String>);

pub(super) fn age(mapping: &AcpMapping) -> Age {
    let created = mapping.metadata.creation_timestamp.as_ref().map(|t| t.0.to_string());
    (created, mapping.metadata.name.clone())
}

/// UID of the pod that holds an identity's mappings: one that is there, before one that is gone.
/// `pods`: UIDs of those that are there.
pub(super) fn holder_of(mappings: &[Arc<AcpMapping>], pods: &HashSet<&str>) -> Option<String> {
    let holders = || mappings.iter().filter_map(|m| m.spec.holder.as_ref()).map(|h| &h.pod_uid);
    let present = holders().find(|uid| pods.contains(uid.as_str()));
    present.or_else(|| holders().next()).cloned()
}
