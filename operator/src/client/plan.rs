//! What is to be done for one AeroClient: a pure function of what is observed.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use aero_crds::{
    AcpMapping, AcpMappingSpec, AeroClient, ClientRef, Family, Holder, LinkRef, Phase, annotations,
    client_id, mapping_name,
};
use ipnet::IpNet;

use super::doubles::{age, give_up_doubles, holder_of};
use super::identity::{self, PodView};
use crate::allocation::{EffectivePool, describe};
use crate::events::reason_of_refusal;
use crate::table::Table;
use crate::taken::Taken;

/// What is known of the link.
#[derive(Debug, Clone)]
pub struct LinkView {
    /// Its name.
    pub name: String,
    /// Its pools.
    pub pools: Vec<EffectivePool>,
}

/// All that the plan depends on.
#[derive(Debug)]
pub struct Observed<'a> {
    /// The client.
    pub client: &'a AeroClient,
    /// Its link, if there is one of that name.
    pub link: Option<LinkView>,
    /// The pods that it selects and no older client does.
    pub pods: Vec<Arc<PodView>>,
    /// Names of pods that it selects but an older client has, with that client's name.
    pub taken_pods: Vec<(String, String)>,
    /// All mappings of all clients, and the largest epochs that were ever seen.
    pub table: &'a Table,
    /// Internal addresses of the nodes that those pods run on.
    pub nodes: BTreeMap<String, Vec<String>>,
    /// Unix seconds: no new epoch is smaller (docs/decisions/007-epochs-after-a-restore.md).
    pub floor: i64,
}

/// A refusal: one word and a sentence.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Refusal {
    /// CamelCase.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

/// A write to an AcpMapping.
#[derive(Debug, Clone, PartialEq)]
pub enum Write {
    /// Make it.
    Create(AcpMapping),
    /// Replace its spec; its resourceVersion makes a stale write fail.
    Replace(AcpMapping),
    /// Say in its status that it is bound; an operator that ended between two writes has not.
    Bind(AcpMapping),
    /// Give it up: it cools, then it is free.
    Retire(AcpMapping),
}

/// Something to tell as an Event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    /// CamelCase.
    pub reason: &'static str,
    /// For people.
    pub message: String,
    /// Warning instead of Normal.
    pub warning: bool,
    /// The pod that it is about too.
    pub pod: Option<(String, String)>,
    /// Identity of a move to be counted.
    pub moved: Option<String>,
}

/// What is to be done.
#[derive(Debug, Default, PartialEq)]
pub struct Plan {
    /// Mappings to write, first.
    pub writes: Vec<Write>,
    /// Annotations of pods (name, UID, wanted), second. Only those that differ.
    pub annotate: Vec<(String, String, BTreeMap<String, String>)>,
    /// Events, third.
    pub told: Vec<Told>,
    /// Identity -> its prefixes, holder and epoch after the writes.
    pub identities: BTreeMap<String, Identity>,
    /// Why the client, or some of its pods, get nothing.
    pub refusals: Vec<Refusal>,
    /// Mappings that were older than what is known of them, one text each.
    pub repaired: Vec<String>,
}

/// How an identity stands after the plan.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Identity {
    /// Prefixes.
    pub prefixes: Vec<IpNet>,
    /// Pod and node.
    pub holder: Option<Holder>,
    /// Largest epoch of its prefixes.
    pub epoch: i64,
}

/// Identity -> its mappings.
type Own = BTreeMap<String, Vec<Arc<AcpMapping>>>;

/// Makes the plan.
pub fn plan(seen: &Observed<'_>) -> Plan {
    let mut plan = Plan::default();
    let key = client_ref(seen.client);
    let mut own: Own = BTreeMap::new();
    for m in seen.table.of_client(&format!("{}/{}", key.namespace, key.name)) {
        own.entry(m.spec.identity.clone()).or_default().push(Arc::clone(m));
    }
    let Some(link) = &seen.link else {
        let name = &seen.client.spec.link_ref.name;
        plan.refusals.push(Refusal {
            reason: "LinkNotFound",
            message: format!("there is no AeroLink {name:?}; make one, or name another in linkRef"),
        });
        refuse_pods(seen, &mut plan, &own);
        keep_identities(&mut plan, &own);
        return plan;
    };
    let uids: HashSet<&str> = seen.pods.iter().map(|p| p.uid.as_str()).collect();
    let mut held = own.iter().map(|(i, ms)| (i.clone(), holder_of(ms, &uids))).collect();
    let doubles = give_up_doubles(seen, &mut own, &mut held, &mut plan);
    let mut assigned = identity::assign(&seen.pods, &held);
    // Whoever is to have such an identity gets it when its mapping says that it is free.
    assigned.retain(|identity, _| !doubles.contains(identity));
    let asked = asked_prefixes(seen, link, &key, &mut plan);
    if !plan.refusals.is_empty() {
        refuse_pods(seen, &mut plan, &own);
        // What a pod holds it keeps, and an operator that ended between two writes may not have
        // said so on the pod.
        let mut holds: HashMap<&str, String> = HashMap::new();
        for (identity, mappings) in &own {
            for pod in mappings.iter().filter_map(|m| m.spec.holder.as_ref()) {
                if let Some(uid) = uids.get(pod.pod_uid.as_str()) {
                    holds.entry(uid).or_insert_with(|| identity.clone());
                }
            }
        }
        for pod in &seen.pods {
            let Some(identity) = holds.get(pod.uid.as_str()) else { continue };
            let Some(mut kept) = own.remove(identity) else { continue };
            kept.retain(|m| m.spec.holder.as_ref().is_some_and(|h| h.pod_uid == pod.uid));
            Want { seen, link, asked: &asked, key: &key, identity, pod }.settle(kept, &mut plan);
        }
        tell_repaired(&mut plan);
        keep_identities(&mut plan, &own);
        return plan;
    }
    // What this plan gives; and what is asked for by name is not given to others that ask for any.
    let mut given = Taken::default();
    for prefix in &asked {
        given.insert(*prefix);
    }
    for (identity, pod) in assigned {
        let present = own.remove(&identity).unwrap_or_default();
        let want = Want { seen, link, asked: &asked, key: &key, identity: &identity, pod };
        want.plan(&present, &mut given, &mut plan);
    }
    tell_repaired(&mut plan);
    keep_identities(&mut plan, &own);
    for (pod, other) in &seen.taken_pods {
        plan.refusals.push(Refusal {
            reason: "PodTaken",
            message: format!(
                "pod {pod} is selected by the older AeroClient {other} too, which has it"
            ),
        });
    }
    plan
}

/// One identity that has a pod.
struct Want<'a> {
    seen: &'a Observed<'a>,
    link: &'a LinkView,
    asked: &'a [IpNet],
    key: &'a ClientRef,
    identity: &'a str,
    pod: &'a PodView,
}

impl Want<'_> {
    fn plan(&self, present: &[Arc<AcpMapping>], given: &mut Taken, plan: &mut Plan) {
        let mut kept: Vec<Arc<AcpMapping>> = Vec::new();
        let asked = identity::ordinal(self.identity).and_then(|n| self.asked.get(n)).copied();
        let mut refusal = None;
        for family in &self.seen.client.spec.families {
            let of_family = |m: &&Arc<AcpMapping>| family_of(m) == Some(*family);
            let mut candidates: Vec<&Arc<AcpMapping>> = present.iter().filter(of_family).collect();
            // Where two operators have each made one, both must choose the same: the older.
            candidates.sort_by_cached_key(|m| {
                (!self.is_holder(m), phase_of(m) == Some(Phase::Cooling), age(m))
            });
            let asked =
                asked.filter(|p| pool_of(self.link, *p).is_some_and(|q| q.family() == *family));
            let running = candidates.iter().any(|m| self.is_holder(m));
            let fits = |m: &&&Arc<AcpMapping>| {
                running || asked.is_none_or(|p| m.spec.prefix.parse() == Ok(p))
            };
            let chosen = candidates.iter().find(fits).map(|m| Arc::clone(m));
            for surplus in candidates {
                let stays =
                    chosen.as_ref().is_some_and(|c| c.metadata.name == surplus.metadata.name);
                // The pod's own is given up only when the pod is seen to have been told another.
                let used = self.is_holder(surplus)
                    && (self.was_told(surplus) || self.told_before(annotations::PREFIX).is_none());
                if !stays && !used && phase_of(surplus) != Some(Phase::Cooling) {
                    plan.writes.push(Write::Retire((**surplus).clone()));
                }
            }
            let mapping = match chosen {
                Some(m) => Ok(m),
                None => {
                    self.new_mapping(*family, self.told(*family, asked, given).or(asked), given)
                }
            };
            match mapping {
                Ok(m) => kept.push(m),
                Err(r) => refusal = Some(r),
            }
        }
        if let Some(r) = refusal {
            self.refuse(&r, plan);
            plan.refusals.push(r);
        }
        self.settle(kept, plan);
    }

    /// Makes the pod the holder of mappings, and says so on it.
    fn settle(&self, kept: Vec<Arc<AcpMapping>>, plan: &mut Plan) {
        if kept.is_empty() {
            return;
        }
        let mut identity = Identity::default();
        let table = kept.iter().map(|m| m.spec.epoch).max().unwrap_or(0);
        let claimed = self.told_epoch().filter(|e| *e > table).unwrap_or(0);
        for mapping in kept {
            let after = self.hold(mapping, claimed, plan);
            identity.prefixes.extend(after.spec.prefix.parse::<IpNet>());
            identity.epoch = identity.epoch.max(after.spec.epoch);
            identity.holder = after.spec.holder.clone();
        }
        self.annotate(&identity, plan);
        plan.identities.insert(self.identity.to_string(), identity);
    }

    fn is_holder(&self, mapping: &AcpMapping) -> bool {
        mapping.spec.holder.as_ref().is_some_and(|h| h.pod_uid == self.pod.uid)
    }

    fn new_mapping(
        &self,
        family: Family,
        asked: Option<IpNet>,
        given: &mut Taken,
    ) -> Result<Arc<AcpMapping>, Refusal> {
        let free = || {
            let mut pools = self.link.pools.iter().filter(|p| p.family() == family);
            pools.find_map(|p| p.lowest_free(&[self.seen.table.taken(), given]))
        };
        let exhausted = || Refusal {
            reason: "PoolExhausted",
            message: format!(
                "link {:?} has no free {family:?} prefix for {} (pools: {}); add a pool",
                self.link.name,
                self.identity,
                describe(&self.link.pools),
            ),
        };
        if let Some((prefix, holder)) = asked.and_then(|p| Some((p, self.seen.table.of_prefix(p)?)))
        {
            // Another identity of this client has it; the mappings of others were looked at before.
            return Err(Refusal { reason: "PrefixHeld", message: held_by(holder, prefix) });
        }
        let prefix = asked.or_else(free).ok_or_else(exhausted)?;
        given.insert(prefix);
        let name = mapping_name(prefix).ok_or_else(exhausted)?;
        let id = client_id(&self.link.name, &self.key.namespace, &self.key.name, self.identity);
        Ok(Arc::new(AcpMapping::new(
            &name,
            AcpMappingSpec {
                prefix: prefix.to_string(),
                link_ref: LinkRef { name: self.link.name.clone() },
                client_id: id.to_string(),
                client_ref: self.key.clone(),
                identity: self.identity.to_string(),
                holder: None,
                epoch: 0,
            },
        )))
    }

    /// What the pod was told before, if it was this client that told it.
    fn told_before(&self, name: &str) -> Option<&String> {
        let told = &self.pod.annotations;
        let ours = told.get(annotations::POD_UID) == Some(&self.pod.uid)
            && told.get(annotations::CLIENT) == Some(&self.key.name)
            && told.get(annotations::IDENTITY).map(String::as_str) == Some(self.identity);
        told.get(name).filter(|_| ours)
    }

    fn told_epoch(&self) -> Option<i64> {
        self.told_before(annotations::EPOCH)?.parse().ok()
    }

    /// The prefixes that the pod was told.
    fn told_prefixes(&self) -> impl Iterator<Item = IpNet> {
        let list = self.told_before(annotations::PREFIX).map_or("", String::as_str);
        list.split(',').filter_map(|p| p.parse().ok())
    }

    fn was_told(&self, mapping: &AcpMapping) -> bool {
        self.told_prefixes().any(|p| mapping.spec.prefix.parse() == Ok(p))
    }

    /// The prefix that the pod was told, where the table has lost it: the pod runs with it.
    fn told(&self, family: Family, asked: Option<IpNet>, given: &Taken) -> Option<IpNet> {
        let free = |p: &IpNet| {
            let own = asked == Some(*p);
            !self.seen.table.taken().contains(*p) && (own || !given.contains(*p))
        };
        let fits = |p: &IpNet| pool_of(self.link, *p).is_some_and(|q| q.family() == family);
        self.told_prefixes().find(|p| free(p) && fits(p))
    }

    /// Makes the pod the holder; the mapping as it will be. `claimed`: an epoch that the pod was
    /// told and the table does not know.
    fn hold(&self, mapping: Arc<AcpMapping>, claimed: i64, plan: &mut Plan) -> Arc<AcpMapping> {
        let node = self.pod.node.clone().unwrap_or_default();
        let underlay = self.seen.nodes.get(&node).cloned().unwrap_or_default();
        let holder = Holder {
            pod_name: self.pod.name.clone(),
            pod_uid: self.pod.uid.clone(),
            node: node.clone(),
            underlay,
        };
        let before = mapping.spec.holder.clone();
        let cooling = phase_of(&mapping) == Some(Phase::Cooling);
        let name = mapping.metadata.name.as_deref().unwrap_or_default();
        let known = self.seen.table.known_epoch(name).max(claimed);
        let old = mapping.spec.epoch;
        if before.as_ref() == Some(&holder) && !cooling && old >= known {
            if !is_bound(&mapping) {
                plan.writes.push(Write::Bind((*mapping).clone()));
            }
            return mapping;
        }
        let mut mapping = Arc::unwrap_or_clone(mapping);
        // A pod that is put back with an older store may be placed anew, on another node.
        let same =
            before.as_ref().is_some_and(|h| h.pod_uid == holder.pod_uid && h.node == holder.node);
        if !same || old < known {
            mapping.spec.epoch = (old.max(known) + 1).max(self.seen.floor);
            if old < known {
                let (prefix, new) = (&mapping.spec.prefix, mapping.spec.epoch);
                let text = format!("{} {prefix} epoch {old} -> {new}", self.identity);
                plan.repaired.push(text);
            }
        }
        if !same {
            plan.told.push(self.tell(&mapping, before.as_ref(), &node));
        }
        mapping.spec.holder = Some(holder);
        plan.writes.push(match mapping.metadata.resource_version {
            None => Write::Create(mapping.clone()),
            Some(_) => Write::Replace(mapping.clone()),
        });
        Arc::new(mapping)
    }

    fn tell(&self, mapping: &AcpMapping, before: Option<&Holder>, node: &str) -> Told {
        let (who, prefix) = (self.identity, &mapping.spec.prefix);
        let first = mapping.metadata.resource_version.is_none();
        let message = match before {
            _ if first => format!("{who} gets {prefix} on {node}"),
            Some(b) if b.node != node => format!("{who} keeps {prefix}, {} -> {node}", b.node),
            Some(_) => format!("{who} keeps {prefix}, in a new pod on {node}"),
            None => format!("{who} keeps {prefix}, now on {node}"),
        };
        Told {
            reason: if first { "Delegated" } else { "Moved" },
            message,
            warning: false,
            pod: Some((self.pod.name.clone(), self.pod.uid.clone())),
            moved: (!first).then(|| who.to_string()),
        }
    }

    fn annotate(&self, identity: &Identity, plan: &mut Plan) {
        let list =
            |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let pools: Vec<IpNet> = self.link.pools.iter().map(|p| p.prefix).collect();
        let id = client_id(&self.link.name, &self.key.namespace, &self.key.name, self.identity);
        let wanted = BTreeMap::from(
            [
                (annotations::CLIENT, self.key.name.clone()),
                (annotations::IDENTITY, self.identity.to_string()),
                (annotations::CLIENT_ID, id.to_string()),
                (annotations::PREFIX, list(&identity.prefixes)),
                (annotations::EPOCH, identity.epoch.to_string()),
                (annotations::POD_UID, self.pod.uid.clone()),
                (annotations::LINK, self.link.name.clone()),
                (annotations::ASPS, list(&pools)),
            ]
            .map(|(k, v)| (k.to_string(), v)),
        );
        want_annotations(self.pod, wanted, plan);
    }

    fn refuse(&self, refusal: &Refusal, plan: &mut Plan) {
        refuse_pod(self.pod, refusal, plan);
    }
}

/// The prefixes that the client asks for by name, or refusals.
fn asked_prefixes(
    seen: &Observed<'_>,
    link: &LinkView,
    key: &ClientRef,
    plan: &mut Plan,
) -> Vec<IpNet> {
    let mut asked: Vec<IpNet> = Vec::new();
    for text in &seen.client.spec.prefixes {
        let Ok(prefix) = text.parse::<IpNet>() else { continue };
        if asked.contains(&prefix) {
            plan.refusals.push(Refusal {
                reason: "PrefixTwice",
                message: format!(
                    "{prefix} is listed twice in spec.prefixes; each identity needs its own"
                ),
            });
        }
        asked.push(prefix);
        if pool_of(link, prefix).is_none() {
            plan.refusals.push(Refusal {
                reason: "PrefixOutsideLink",
                message: format!(
                    "{prefix} is in no pool of link {:?} ({})",
                    link.name,
                    describe(&link.pools)
                ),
            });
            continue;
        }
        let other = seen.table.of_prefix(prefix).filter(|m| m.spec.client_ref != *key);
        if let Some(m) = other {
            plan.refusals.push(Refusal { reason: "PrefixHeld", message: held_by(m, prefix) });
        }
    }
    asked
}

/// `2001:db8:a:1::/64 is held by default/web/web-0 (pod web-0 on n3)`.
fn held_by(mapping: &AcpMapping, prefix: IpNet) -> String {
    let spec = &mapping.spec;
    let owner = format!("{}/{}/{}", spec.client_ref.namespace, spec.client_ref.name, spec.identity);
    let free_at = mapping.status.as_ref().and_then(|s| s.free_at.as_ref());
    match (&spec.holder, free_at) {
        (_, Some(t)) => format!("{prefix} was given up by {owner} and cools until {}", t.0),
        (Some(h), None) => {
            format!("{prefix} is held by {owner} (pod {} on {})", h.pod_name, h.node)
        }
        (None, None) => format!("{prefix} is kept for {owner}, which has no pod now"),
    }
}

/// One Event for all that was repaired.
fn tell_repaired(plan: &mut Plan) {
    if plan.repaired.is_empty() {
        return;
    }
    let message = format!(
        "the table was older than what is known (was it put back from a backup?); given anew: {}",
        plan.repaired.join("; ")
    );
    let told = Told { reason: "Repaired", message, warning: true, pod: None, moved: None };
    plan.told.push(told);
}

fn refuse_pods(seen: &Observed<'_>, plan: &mut Plan, own: &Own) {
    let Some(refusal) = plan.refusals.first().cloned() else { return };
    let holders: BTreeSet<&str> = own
        .values()
        .flatten()
        .filter_map(|m| m.spec.holder.as_ref())
        .map(|h| h.pod_uid.as_str())
        .collect();
    // A pod that already runs with its prefix is left alone.
    for pod in seen.pods.iter().filter(|p| !holders.contains(p.uid.as_str())) {
        refuse_pod(pod, &refusal, plan);
    }
}

fn refuse_pod(pod: &PodView, refusal: &Refusal, plan: &mut Plan) {
    let wanted = BTreeMap::from([
        (annotations::POD_UID.to_string(), pod.uid.clone()),
        (annotations::REFUSED.to_string(), format!("{}: {}", refusal.reason, refusal.message)),
    ]);
    if want_annotations(pod, wanted, plan) {
        plan.told.push(Told {
            reason: reason_of_refusal(refusal.reason),
            message: format!("{}: {}", refusal.reason, refusal.message),
            warning: true,
            pod: Some((pod.name.clone(), pod.uid.clone())),
            moved: None,
        });
    }
}

/// Plans the annotations of a pod if they differ from what it has; tells whether they do.
fn want_annotations(pod: &PodView, wanted: BTreeMap<String, String>, plan: &mut Plan) -> bool {
    let ours = identity::ours(pod.annotations.iter());
    let differ = ours != wanted;
    if differ {
        plan.annotate.push((pod.name.clone(), pod.uid.clone(), wanted));
    }
    differ
}

/// Identities that have no pod now keep their prefixes.
fn keep_identities(plan: &mut Plan, own: &Own) {
    for (identity, mappings) in own {
        let live: Vec<&Arc<AcpMapping>> =
            mappings.iter().filter(|m| phase_of(m) != Some(Phase::Cooling)).collect();
        if live.is_empty() {
            continue;
        }
        let entry = plan.identities.entry(identity.clone()).or_default();
        for m in live {
            entry.prefixes.extend(m.spec.prefix.parse::<IpNet>());
            entry.epoch = entry.epoch.max(m.spec.epoch);
            entry.holder = m.spec.holder.clone();
        }
    }
}

/// Whether the status says that a mapping is its client's and has a holder.
pub fn is_bound(mapping: &AcpMapping) -> bool {
    let status = mapping.status.as_ref();
    phase_of(mapping) == Some(Phase::Bound) && status.is_some_and(|s| s.released_at.is_none())
}

/// Namespace and name of a client.
pub fn client_ref(client: &AeroClient) -> ClientRef {
    ClientRef {
        namespace: client.metadata.namespace.clone().unwrap_or_default(),
        name: client.metadata.name.clone().unwrap_or_default(),
    }
}

fn pool_of(link: &LinkView, prefix: IpNet) -> Option<&EffectivePool> {
    link.pools.iter().find(|p| p.has_member(prefix))
}

fn family_of(mapping: &AcpMapping) -> Option<Family> {
    match mapping.spec.prefix.parse().ok()? {
        IpNet::V4(_) => Some(Family::IPv4),
        IpNet::V6(_) => Some(Family::IPv6),
    }
}

pub(super) fn phase_of(mapping: &AcpMapping) -> Option<Phase> {
    mapping.status.as_ref().and_then(|s| s.phase)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
