//! What an API server keeps, and its rules: names are unique, a write with an old
//! resourceVersion fails, what a field manager does not apply any more goes away, and a watch can
//! only go on from a version that is still in the log.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::Notify;

/// Names an object: plural of its kind, namespace, name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub plural: String,
    pub namespace: String,
    pub name: String,
}

impl Key {
    pub fn new(plural: &str, namespace: &str, name: &str) -> Self {
        Self { plural: plural.into(), namespace: namespace.into(), name: name.into() }
    }
}

/// An answer that is not the object.
#[derive(Debug, Clone)]
pub struct Refused {
    pub code: u16,
    pub reason: &'static str,
    pub message: String,
}

impl Refused {
    pub fn new(code: u16, reason: &'static str, message: impl Into<String>) -> Self {
        Self { code, reason, message: message.into() }
    }

    fn not_found(key: &Key) -> Self {
        Self::new(404, "NotFound", format!("{} {:?} not found", key.plural, key.name))
    }

    fn conflict(message: impl Into<String>) -> Self {
        Self::new(409, "Conflict", message)
    }

    pub fn status(&self) -> Value {
        json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.message, "reason": self.reason, "code": self.code})
    }
}

/// A change that watches deliver.
#[derive(Debug, Clone)]
pub struct Logged {
    pub version: u64,
    pub before: Option<Arc<Value>>,
    pub after: Option<Arc<Value>>,
    /// When it was written.
    pub at: tokio::time::Instant,
}

/// Preconditions of a deletion.
#[derive(Debug, Default)]
pub struct Preconditions {
    pub uid: Option<String>,
    pub version: Option<String>,
}

/// What a write has done.
#[derive(Debug, Clone)]
pub struct Done {
    pub before: Option<Arc<Value>>,
    pub after: Option<Arc<Value>>,
}

/// The paths that each field manager has applied, of each object.
type Applied = BTreeMap<Key, BTreeMap<String, BTreeSet<Vec<String>>>>;

/// A copy of the store, as `etcdctl snapshot save` makes one.
#[derive(Debug, Clone)]
pub struct Snapshot {
    objects: BTreeMap<Key, Arc<Value>>,
    applied: Applied,
}

/// The store.
#[derive(Debug)]
pub struct Store {
    revision: u64,
    compacted: u64,
    uids: u64,
    objects: BTreeMap<Key, Arc<Value>>,
    applied: Applied,
    log: BTreeMap<String, Vec<Logged>>,
    /// Not a `watch` channel: that wakes its receivers in a random order.
    changed: Arc<Notify>,
}

impl Store {
    pub fn new() -> Self {
        Self {
            revision: 100,
            compacted: 0,
            uids: 0,
            objects: BTreeMap::new(),
            applied: BTreeMap::new(),
            log: BTreeMap::new(),
            changed: Arc::default(),
        }
    }

    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// Tells of every change.
    pub fn changes(&self) -> Arc<Notify> {
        Arc::clone(&self.changed)
    }

    pub fn get(&self, key: &Key) -> Option<&Arc<Value>> {
        self.objects.get(key)
    }

    /// All objects of a kind, of one namespace unless that is empty.
    pub fn list<'a>(
        &'a self,
        plural: &'a str,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a Key, &'a Arc<Value>)> {
        let fits =
            move |k: &Key| k.plural == plural && (namespace.is_empty() || k.namespace == namespace);
        let from = Key::new(plural, namespace, "");
        self.objects.range(from..).take_while(move |(k, _)| fits(k))
    }

    /// Changes of a kind after a version; `Err` if they are not all there any more.
    pub fn since(&self, plural: &str, version: u64) -> Result<&[Logged], Refused> {
        if version < self.compacted {
            return Err(Refused::new(410, "Expired", "too old resource version"));
        }
        let all = self.log.get(plural).map(Vec::as_slice).unwrap_or_default();
        Ok(&all[all.partition_point(|l| l.version <= version)..])
    }

    /// Forgets all changes so far: watches that ended must list anew.
    pub fn compact(&mut self) {
        self.compacted = self.revision;
        self.log.clear();
    }

    pub fn snapshot(&self) -> Snapshot {
        Snapshot { objects: self.objects.clone(), applied: self.applied.clone() }
    }

    /// Puts an older state back, as `etcdutl snapshot restore --bump-revision --mark-compacted`
    /// does: objects have the versions that they had, and every watch must list anew.
    pub fn restore(&mut self, snapshot: Snapshot) {
        self.objects = snapshot.objects;
        self.applied = snapshot.applied;
        self.revision += 1_000_000;
        self.compact();
        self.changed.notify_waiters();
    }

    fn commit(&mut self, key: &Key, new: Option<Value>) -> Done {
        let before = self.objects.get(key).cloned();
        let unchanged = match (&before, &new) {
            (Some(b), Some(n)) => **b == *n,
            (None, None) => true,
            _ => false,
        };
        if unchanged {
            return Done { after: before.clone(), before };
        }
        self.revision += 1;
        let after = new.map(|mut n| {
            let spec_changed = before.as_ref().is_none_or(|b| b["spec"] != n["spec"]);
            if spec_changed {
                let generation = n["metadata"]["generation"].as_i64().unwrap_or(0);
                n["metadata"]["generation"] = json!(generation + 1);
            }
            n["metadata"]["resourceVersion"] = json!(self.revision.to_string());
            Arc::new(n)
        });
        match &after {
            Some(object) => self.objects.insert(key.clone(), Arc::clone(object)),
            None => self.objects.remove(key),
        };
        if after.is_none() {
            self.applied.remove(key);
        }
        self.log.entry(key.plural.clone()).or_default().push(Logged {
            version: self.revision,
            before: before.clone(),
            after: after.clone(),
            at: tokio::time::Instant::now(),
        });
        self.changed.notify_waiters();
        Done { before, after }
    }

    /// Makes an object; status is left out where the kind has it as a subresource.
    pub fn create(&mut self, key: &Key, mut object: Value, now: &str) -> Result<Done, Refused> {
        if self.objects.contains_key(key) {
            let text = format!("{} {:?} already exists", key.plural, key.name);
            return Err(Refused::new(409, "AlreadyExists", text));
        }
        if key.plural == "acpmappings" {
            valid(None, &object)?;
            object.as_object_mut().map(|o| o.remove("status"));
        }
        self.uids += 1;
        let metadata = &mut object["metadata"];
        metadata["name"] = json!(key.name);
        if !key.namespace.is_empty() {
            metadata["namespace"] = json!(key.namespace);
        }
        metadata["uid"] = json!(format!("00000000-0000-4000-8000-{:012x}", self.uids));
        metadata["creationTimestamp"] = json!(now);
        Ok(self.commit(key, Some(object)))
    }

    /// Changes an object by a function, without any precondition: what kubelets, schedulers and
    /// users of the model do.
    pub fn edit(&mut self, key: &Key, change: impl FnOnce(&mut Value)) -> Option<Done> {
        let mut object = (**self.objects.get(key)?).clone();
        change(&mut object);
        Some(self.commit(key, Some(object)))
    }

    pub fn remove(&mut self, key: &Key) -> Option<Done> {
        self.objects.contains_key(key).then(|| self.commit(key, None))
    }

    fn present(&self, key: &Key) -> Result<Arc<Value>, Refused> {
        self.objects.get(key).cloned().ok_or_else(|| Refused::not_found(key))
    }

    fn fresh(present: &Value, sent: &Value) -> Result<(), Refused> {
        for field in ["resourceVersion", "uid"] {
            let (have, want) = (&present["metadata"][field], &sent["metadata"][field]);
            if want.is_string() && want != have {
                return Err(Refused::conflict(format!("{field} is {have}, not {want}")));
            }
        }
        Ok(())
    }

    /// `PUT`: all but status and what the server sets.
    pub fn replace(&mut self, key: &Key, object: &Value) -> Result<Done, Refused> {
        let present = self.present(key)?;
        Self::fresh(&present, object)?;
        let mut new = (*present).clone();
        new["spec"] = object["spec"].clone();
        for field in ["labels", "annotations"] {
            set_or_remove(&mut new["metadata"], field, &object["metadata"][field]);
        }
        if key.plural == "acpmappings" {
            valid(Some(&present), &new)?;
        }
        Ok(self.commit(key, Some(new)))
    }

    /// `PATCH` with a JSON merge patch, of the object or of its status.
    pub fn merge(&mut self, key: &Key, status: bool, patch: &Value) -> Result<Done, Refused> {
        let present = self.present(key)?;
        Self::fresh(&present, patch)?;
        let mut new = (*present).clone();
        if status {
            merge_into(&mut new, &json!({"status": patch["status"]}));
        } else {
            let mut patch = patch.clone();
            patch.as_object_mut().map(|o| o.remove("status"));
            merge_into(&mut new, &patch);
            new["metadata"]["resourceVersion"] = present["metadata"]["resourceVersion"].clone();
            if key.plural == "acpmappings" {
                valid(Some(&present), &new)?;
            }
        }
        Ok(self.commit(key, Some(new)))
    }

    /// `PATCH` with an apply patch, forced.
    pub fn apply(
        &mut self,
        key: &Key,
        status: bool,
        manager: &str,
        patch: &Value,
        now: &str,
    ) -> Result<Done, Refused> {
        let Some(present) = self.objects.get(key).cloned() else {
            if status {
                return Err(Refused::not_found(key));
            }
            if patch["metadata"]["uid"].is_string() {
                return Err(Refused::conflict("no object of that uid"));
            }
            let done = self.create(key, patch.clone(), now)?;
            let of = self.applied.entry(key.clone()).or_default();
            of.insert(manager.into(), leaves(patch));
            return Ok(done);
        };
        Self::fresh(&present, patch)?;
        let mut new = (*present).clone();
        let wanted = leaves(patch);
        let of = self.applied.entry(key.clone()).or_default();
        let entry = of.entry(manager.into()).or_default();
        let before = std::mem::replace(entry, wanted.clone());
        for path in before.difference(&wanted) {
            remove_path(&mut new, path);
        }
        for path in &wanted {
            set_path(&mut new, path, path.iter().fold(patch, |v, step| &v[step.as_str()]).clone());
        }
        Ok(self.commit(key, Some(new)))
    }

    pub fn delete(&mut self, key: &Key, only: &Preconditions) -> Result<Done, Refused> {
        let present = self.present(key)?;
        let wanted = json!({"metadata": {"uid": only.uid, "resourceVersion": only.version}});
        Self::fresh(&present, &wanted)?;
        Ok(self.commit(key, None))
    }
}

fn set_or_remove(at: &mut Value, field: &str, value: &Value) {
    if value.is_null() {
        at.as_object_mut().map(|o| o.remove(field));
    } else {
        at[field] = value.clone();
    }
}

/// RFC 7386.
fn merge_into(target: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (name, value) in fields {
        if value.is_null() {
            target.as_object_mut().map(|o| o.remove(name));
        } else {
            merge_into(&mut target[name.as_str()], value);
        }
    }
}

/// Paths of all leaves of an apply patch, without what identifies the object. Lists are leaves.
fn leaves(patch: &Value) -> BTreeSet<Vec<String>> {
    fn walk(value: &Value, path: &mut Vec<String>, all: &mut BTreeSet<Vec<String>>) {
        match value.as_object() {
            Some(fields) => {
                for (name, value) in fields {
                    path.push(name.clone());
                    walk(value, path, all);
                    path.pop();
                }
            }
            None => {
                all.insert(path.clone());
            }
        }
    }
    let mut all = BTreeSet::new();
    walk(patch, &mut Vec::new(), &mut all);
    all.retain(|p| {
        let steps: Vec<&str> = p.iter().map(String::as_str).collect();
        !matches!(
            steps[..],
            ["apiVersion" | "kind"]
                | ["metadata", "name" | "namespace" | "uid" | "resourceVersion"]
        )
    });
    all
}

fn set_path(target: &mut Value, path: &[String], value: Value) {
    match path {
        [] => *target = value,
        [first, rest @ ..] => {
            if !target.is_object() {
                *target = json!({});
            }
            set_path(&mut target[first.as_str()], rest, value);
        }
    }
}

fn remove_path(target: &mut Value, path: &[String]) {
    match path {
        [] => {}
        [last] => {
            target.as_object_mut().map(|o| o.remove(last));
        }
        [first, rest @ ..] => {
            if let Some(inner) = target.get_mut(first) {
                remove_path(inner, rest);
            }
        }
    }
}

/// The rules that the CRD of AcpMapping has in CEL.
fn valid(old: Option<&Value>, new: &Value) -> Result<(), Refused> {
    let invalid = |m: String| Err(Refused::new(422, "Invalid", m));
    let prefix = new["spec"]["prefix"].as_str().unwrap_or_default();
    let named = prefix.parse().ok().and_then(aero_crds::mapping_name);
    if named.as_deref() != new["metadata"]["name"].as_str() {
        return invalid(format!("metadata.name must be the prefix: {}", new["metadata"]["name"]));
    }
    let Some(old) = old else { return Ok(()) };
    let (was, is) = (&old["spec"], &new["spec"]);
    for field in ["prefix", "linkRef", "clientId", "clientRef", "identity"] {
        if was[field] != is[field] {
            return invalid(format!("{field} is immutable"));
        }
    }
    let epoch = |s: &Value| s["epoch"].as_i64().unwrap_or(0);
    if epoch(is) < epoch(was) {
        return invalid("epoch never falls".into());
    }
    let (before, after) = (&was["holder"], &is["holder"]);
    let same = before.is_object()
        && before["podUid"] == after["podUid"]
        && before["node"] == after["node"];
    if after.is_object() && epoch(is) <= epoch(was) && !same {
        return invalid("a new holder needs a larger epoch".into());
    }
    Ok(())
}
