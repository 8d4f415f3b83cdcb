//! What must hold after every step, and at rest.

use std::collections::BTreeMap;

use serde_json::Value;

use super::store::{Done, Key, Store};
use super::world::NS;

/// Seconds that an operator whose view is current has to make up for what is wrong.
const BOUND: u64 = 30_000;

/// Who has used a prefix.
#[derive(Debug, Clone, Default)]
struct Use {
    /// Largest epoch under which it was ever held, and by which pod.
    epoch: i64,
    uid: String,
    /// `client/identity` that a live pod last used it for, when that ended at the earliest, and
    /// how long it must rest then.
    owner: String,
    until: u64,
    cool_down: u64,
}

/// Watches over the rules. The first breach is kept.
#[derive(Debug, Default)]
pub struct Checker {
    pub breach: Option<String>,
    uses: BTreeMap<String, Use>,
    /// Since when a live pod is told a prefix that the table does not give it.
    wrong: BTreeMap<String, u64>,
    /// Cool-downs are not compared where operators' clocks differ.
    pub clocks_differ: bool,
    /// The table was put back to an older state: what was used since is not in it.
    pub restored: bool,
    /// It was while no operator ran that still knows: the table stands, and only what is given
    /// from then on must be larger than all before.
    pub forgotten: bool,
    /// Also a pod that has not been told its prefix yet may not lose it.
    pub strict: bool,
    /// Looks at nothing: with very many pods it would take too long after every change.
    pub off: bool,
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

fn annotation<'a>(pod: &'a Value, name: &str) -> &'a str {
    text(&pod["metadata"]["annotations"][format!("aerolink.dev/{name}").as_str()])
}

/// A pod that runs or may come to run.
pub fn is_live(pod: &Value) -> bool {
    !matches!(text(&pod["status"]["phase"]), "Succeeded" | "Failed")
}

fn owner(mapping: &Value) -> String {
    let spec = &mapping["spec"];
    format!("{}/{}", text(&spec["clientRef"]["name"]), text(&spec["identity"]))
}

impl Checker {
    fn fail(&mut self, text: String) {
        self.breach.get_or_insert(text);
    }

    /// After a change of one object.
    pub fn step(&mut self, store: &Store, by: Option<usize>, key: &Key, done: &Done, now: u64) {
        if self.off {
            return;
        }
        self.remember_uses(store, now);
        if key.plural == "acpmappings" && by.is_some() {
            self.mapping_changed(store, key, done, now);
        }
        if key.plural == "pods" {
            self.no_two_told(store);
        }
    }

    /// Live pods use the prefixes that they are told.
    fn remember_uses(&mut self, store: &Store, now: u64) {
        for (_, pod) in store.list("pods", "") {
            let told = annotation(pod, "pod-uid") == text(&pod["metadata"]["uid"]);
            if !told || !is_live(pod) {
                continue;
            }
            let client = annotation(pod, "client");
            let spec = store.get(&Key::new("aeroclients", NS, client)).map(|c| &c["spec"]);
            for prefix in annotation(pod, "prefix").split(',').filter(|p| !p.is_empty()) {
                let used = self.uses.entry(prefix.to_string()).or_default();
                used.owner = format!("{client}/{}", annotation(pod, "identity"));
                used.until = now;
                if let Some(spec) = spec {
                    let cool = aero_crds::parse_duration(text(&spec["coolDown"]));
                    used.cool_down = cool.map_or(0, |c| c.as_millis() as u64);
                }
            }
        }
    }

    fn mapping_changed(&mut self, store: &Store, key: &Key, done: &Done, now: u64) {
        let name = &key.name;
        let Some(after) = done.after.as_deref() else {
            let before = done.before.as_deref().cloned().unwrap_or_default();
            if let Some(pod) = live_holder_of(store, &before) {
                self.fail(format!("{name} was deleted under the live pod {pod}"));
            }
            if self.clocks_differ {
                // The next mapping of this prefix starts from another clock
                // (docs/decisions/007-epochs-after-a-restore.md says why that is harmless).
                self.uses.remove(text(&before["spec"]["prefix"]));
            }
            return;
        };
        let spec = &after["spec"];
        let (prefix, uid) = (text(&spec["prefix"]), text(&spec["holder"]["podUid"]));
        let epoch = spec["epoch"].as_i64().unwrap_or(0);
        let used = self.uses.entry(prefix.to_string()).or_default().clone();
        let before_uid =
            done.before.as_deref().map_or("", |b| text(&b["spec"]["holder"]["podUid"]));
        // What a restored table says of a holder is not of an operator's making.
        let given = !uid.is_empty() && uid != before_uid;
        if given && uid != used.uid && epoch <= used.epoch {
            self.fail(format!(
                "{prefix} is held by {uid} under epoch {epoch}, but {} had it under epoch {}",
                used.uid, used.epoch
            ));
        }
        if !uid.is_empty() && epoch >= used.epoch {
            let entry = self.uses.entry(prefix.to_string()).or_default();
            (entry.epoch, entry.uid) = (epoch, uid.to_string());
        }
        let rests = used.until + used.cool_down;
        if done.before.is_none()
            && !used.owner.is_empty()
            && used.owner != owner(after)
            && now + 1000 < rests
            && !self.clocks_differ
            && !self.restored
        {
            self.fail(format!(
                "{prefix} goes to {} {} ms before its cool-down ends; {} had it",
                owner(after),
                rests - now,
                used.owner
            ));
        }
        // A holder that lives, and was told this very prefix, may not lose it.
        if let Some(before) = done.before.as_deref()
            && let Some(pod) = live_holder_of(store, before)
            && let Some(object) = store.get(&Key::new("pods", NS, &pod))
            && (self.strict
                || (annotation(object, "prefix").split(',').any(|p| p == prefix)
                    && annotation(object, "pod-uid") == before_uid))
            && !doubled(store, before)
        {
            if uid != before_uid {
                self.fail(format!("{prefix} was taken from the live pod {pod}"));
            }
            let cools = after["status"]["phase"] == "Cooling";
            if cools && before["status"]["phase"] != "Cooling" {
                self.fail(format!("{prefix} was made to cool under the live pod {pod}"));
            }
        }
    }

    /// No two live pods are told one prefix under one epoch.
    fn no_two_told(&mut self, store: &Store) {
        let mut told = BTreeMap::new();
        for (key, pod) in store.list("pods", "") {
            if !is_live(pod) || annotation(pod, "pod-uid") != text(&pod["metadata"]["uid"]) {
                continue;
            }
            for prefix in annotation(pod, "prefix").split(',').filter(|p| !p.is_empty()) {
                let claim = (prefix.to_string(), annotation(pod, "epoch").to_string());
                if let Some(other) = told.insert(claim, key.name.clone()) {
                    self.fail(format!("{other} and {} are both told {prefix}", key.name));
                }
            }
        }
    }

    /// Now and then while operators work and nothing but pods changes: no live pod goes without
    /// what it was told for longer than the bound.
    pub fn watch_over(&mut self, store: &Store, now: u64, healthy: bool) {
        let mut still = BTreeMap::new();
        for (key, pod) in store.list("pods", "") {
            let uid = text(&pod["metadata"]["uid"]);
            if !is_live(pod) || annotation(pod, "pod-uid") != uid || !healthy {
                continue;
            }
            for prefix in annotation(pod, "prefix").split(',').filter(|p| !p.is_empty()) {
                let mapping = store
                    .list("acpmappings", "")
                    .find(|(_, m)| m["spec"]["prefix"] == prefix)
                    .map(|(_, m)| m);
                let right = mapping.is_some_and(|m| {
                    m["spec"]["holder"]["podUid"] == uid && m["status"]["phase"] != "Cooling"
                });
                if !right {
                    let since = self.wrong.get(uid).copied().unwrap_or(now);
                    if now - since > BOUND {
                        self.fail(format!(
                            "{} has been told {prefix} for {} s, but the table says {mapping:?}",
                            key.name,
                            (now - since) / 1000
                        ));
                    }
                    still.insert(uid.to_string(), since);
                }
            }
        }
        self.wrong = still;
    }

    /// Where nothing has happened for a while: the pods, the table and the statuses agree.
    pub fn at_rest(&mut self, store: &Store) {
        let mappings: Vec<&Value> =
            store.list("acpmappings", "").map(|(_, m)| m.as_ref()).collect();
        let mut bound = BTreeMap::new();
        for m in &mappings {
            let spec = &m["spec"];
            if m["status"]["phase"] == "Cooling" {
                if m["status"]["freeAt"].is_null() {
                    self.fail(format!("{} cools for ever", m["metadata"]["name"]));
                }
                continue;
            }
            if let Some(other) = bound.insert(owner(m), text(&spec["prefix"]).to_string()) {
                self.fail(format!("{} has {other} and {}", owner(m), spec["prefix"]));
            }
            // A pod that has finished, or is put back to before it was scheduled, does not need it.
            let placed = |p: String| {
                let pod = store.get(&Key::new("pods", NS, &p));
                pod.is_some_and(|p| p["spec"]["nodeName"].is_string())
            };
            let needed = live_holder_of(store, m).is_some_and(placed) && has_client(store, m);
            if m["status"]["phase"] != "Bound" && needed {
                self.fail(format!("{} is not said to be Bound", m["metadata"]["name"]));
            }
            match (spec["holder"].is_object(), holder_of(store, m)) {
                // The grace of a mapping without a client is longer than it takes to come to rest.
                (_, None) if !has_client(store, m) => {}
                (true, None) => self.fail(format!(
                    "{} is held by {}, which is gone",
                    spec["prefix"], spec["holder"]["podName"]
                )),
                (true, Some(_)) if needed && !m["status"]["releasedAt"].is_null() => {
                    self.fail(format!("{} is held and said to be released", spec["prefix"]));
                }
                (false, _) if m["status"]["releasedAt"].is_null() => self
                    .fail(format!("{} has no holder and nothing says since when", spec["prefix"])),
                _ => {}
            }
        }
        for (key, pod) in store.list("pods", "") {
            self.pod_at_rest(store, &key.name, pod, &mappings);
        }
        self.statuses_at_rest(store, &mappings);
    }

    fn pod_at_rest(&mut self, store: &Store, name: &str, pod: &Value, mappings: &[&Value]) {
        let app = &pod["metadata"]["labels"]["app"];
        let selected = store.list("aeroclients", NS).any(|(_, c)| {
            let label = &c["spec"]["podSelector"]["matchLabels"]["app"];
            label == app
        });
        let uid = text(&pod["metadata"]["uid"]);
        if !is_live(pod) {
            return;
        }
        let told = annotation(pod, "prefix");
        if !selected {
            if !told.is_empty() {
                self.fail(format!("{name} is not selected any more and still told {told}"));
            }
            return;
        }
        let scheduled = pod["spec"]["nodeName"].is_string();
        let ending = pod["metadata"]["deletionTimestamp"].is_string();
        if !scheduled || ending {
            return;
        }
        if !annotation(pod, "refused").is_empty() {
            let reason = annotation(pod, "refused").split(':').next().unwrap_or_default();
            let right = match reason {
                "PoolExhausted" => mappings.len() >= super::driver::POOL_SIZE,
                "PrefixHeld" | "PrefixTwice" | "PrefixOutsideLink" | "PrefixKept" => true,
                _ => false,
            };
            if !right {
                self.fail(format!("{name} is refused: {}", annotation(pod, "refused")));
            }
            return;
        }
        if annotation(pod, "pod-uid") != uid {
            self.fail(format!("{name} ({uid}) is scheduled and told nothing"));
            return;
        }
        // What it got from a client that is gone, or selects it no more, stays until it ends.
        let of = annotation(pod, "client");
        let held: Vec<&&Value> = mappings
            .iter()
            .filter(|m| {
                m["spec"]["holder"]["podUid"] == uid && m["spec"]["clientRef"]["name"] == of
            })
            .collect();
        let [mapping] = held[..] else {
            // A mapping that it held before it got another may still cool.
            let live = held.iter().filter(|m| m["status"]["phase"] != "Cooling").count();
            if live != 1 {
                self.fail(format!("{name} is told {told} and holds {live} prefixes"));
            }
            return;
        };
        let spec = &mapping["spec"];
        let epoch = spec["epoch"].as_i64().unwrap_or(0).to_string();
        if told != text(&spec["prefix"]) || annotation(pod, "epoch") != epoch {
            self.fail(format!(
                "{name} is told {told} epoch {}, the table says {} epoch {epoch}",
                annotation(pod, "epoch"),
                spec["prefix"]
            ));
        }
        let known = self.uses.get(told).map_or(0, |u| u.epoch);
        if spec["epoch"].as_i64().unwrap_or(0) < known && !self.forgotten {
            self.fail(format!("{name} has {told} under {epoch}, but {known} was given before"));
        }
        if spec["holder"]["node"] != pod["spec"]["nodeName"] {
            self.fail(format!(
                "{name} runs on {}, not {}",
                pod["spec"]["nodeName"], spec["holder"]
            ));
        }
    }

    fn statuses_at_rest(&mut self, store: &Store, mappings: &[&Value]) {
        for (key, client) in store.list("aeroclients", NS) {
            let (status, metadata) = (&client["status"], &client["metadata"]);
            if status["observedGeneration"] != metadata["generation"] {
                self.fail(format!(
                    "the status of {} is about generation {}, not {}",
                    key.name, status["observedGeneration"], metadata["generation"]
                ));
            }
            let ready =
                status["conditions"].as_array().into_iter().flatten().any(|c| {
                    c["type"] == "Ready" && c["observedGeneration"] == metadata["generation"]
                });
            if !ready {
                self.fail(format!("{} has no Ready condition of its generation", key.name));
            }
            let bound = mappings.iter().filter(|m| {
                text(&m["spec"]["clientRef"]["name"]) == key.name
                    && m["spec"]["holder"].is_object()
                    && m["status"]["phase"] != "Cooling"
            });
            let count = bound.count() as i64;
            if status["bound"].as_i64().unwrap_or(0) != count {
                self.fail(format!("{} says {} bound, not {count}", key.name, status["bound"]));
            }
        }
        for (key, link) in store.list("aerolinks", "") {
            let used = mappings.iter().filter(|m| m["status"]["phase"] != "Cooling").count() as i64;
            if link["status"]["inUse"].as_i64() != Some(used) {
                self.fail(format!(
                    "{} says {} in use, not {used}",
                    key.name, link["status"]["inUse"]
                ));
            }
        }
    }

    /// At the very end, with all times over: nothing is left of what nobody wants.
    pub fn no_orphans(&mut self, store: &Store) {
        for (key, m) in store.list("acpmappings", "") {
            if holder_of(store, m).is_none() {
                self.fail(format!("{} of {} is left for nobody", key.name, owner(m)));
            }
        }
    }
}

/// Whether another pod holds a prefix of the very identity: two operators have each given it to
/// one, and one must go.
fn doubled(store: &Store, mapping: &Value) -> bool {
    store.list("acpmappings", "").any(|(_, m)| {
        owner(m) == owner(mapping)
            && m["spec"]["prefix"] != mapping["spec"]["prefix"]
            && m["status"]["phase"] != "Cooling"
            && live_holder_of(store, m).is_some()
    })
}

fn has_client(store: &Store, mapping: &Value) -> bool {
    let of = &mapping["spec"]["clientRef"];
    store.get(&Key::new("aeroclients", text(&of["namespace"]), text(&of["name"]))).is_some()
}

/// Name of the pod that holds a mapping, if it runs.
fn live_holder_of(store: &Store, mapping: &Value) -> Option<String> {
    holder_of(store, mapping)
        .filter(|p| store.get(&Key::new("pods", NS, p)).is_some_and(|p| is_live(p)))
}

/// Name of the pod that holds a mapping, if it is there.
fn holder_of(store: &Store, mapping: &Value) -> Option<String> {
    let holder = &mapping["spec"]["holder"];
    let name = holder["podName"].as_str()?;
    let namespace = text(&mapping["spec"]["clientRef"]["namespace"]);
    let pod = store.get(&Key::new("pods", namespace, name))?;
    (pod["metadata"]["uid"] == holder["podUid"]).then(|| name.to_string())
}
