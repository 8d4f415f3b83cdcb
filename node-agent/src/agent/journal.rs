//! The attachments of this node, as files that outlive the agent.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::attach::AttachSpec;
use crate::cni::conflist::replace;

/// One attachment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// Name of the CNI network that it was made for.
    pub network: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub pod: String,
    /// UID of the pod.
    pub pod_uid: Uuid,
    /// UUID of the client's DUID.
    pub client_id: Uuid,
    /// Epoch that it was claimed under.
    pub epoch: u64,
    /// The interfaces.
    pub spec: AttachSpec,
}

impl Record {
    /// The file's name: container and interface.
    fn key(&self) -> String {
        key(&self.container_id, &self.spec.ifname)
    }
}

fn key(container: &str, ifname: &str) -> String {
    // Both are checked by the plugin; anything else must not become a path.
    let safe = |s: &str| {
        s.chars().filter(|c| c.is_ascii_alphanumeric() || "-_.".contains(*c)).collect::<String>()
    };
    format!("{}--{}", safe(container), safe(ifname))
}

/// All attachments, in memory and on disk.
#[derive(Debug)]
pub struct Journal {
    dir: PathBuf,
    records: Mutex<BTreeMap<String, Record>>,
}

impl Journal {
    /// Opens the journal. A file that cannot be read is set aside under another name.
    ///
    /// # Errors
    /// If the directory cannot be used.
    pub fn open(dir: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(dir)?;
        let mut records = BTreeMap::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            if path.extension().is_none_or(|e| e != "json") {
                continue;
            }
            match serde_json::from_slice::<Record>(&std::fs::read(&path)?) {
                Ok(record) => drop(records.insert(record.key(), record)),
                Err(e) => {
                    tracing::warn!(file = %path.display(), "set aside, it cannot be read: {e}");
                    std::fs::rename(&path, path.with_extension("bad"))?;
                }
            }
        }
        Ok(Self { dir: dir.to_path_buf(), records: Mutex::new(records) })
    }

    /// Keeps an attachment.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn put(&self, record: Record) -> io::Result<()> {
        let bytes = serde_json::to_vec_pretty(&record).map_err(io::Error::other)?;
        replace(&self.path(&record.key()), &bytes, 0o600)?;
        self.lock().insert(record.key(), record);
        Ok(())
    }

    /// Forgets an attachment.
    ///
    /// # Errors
    /// If the file cannot be removed.
    pub fn remove(&self, record: &Record) -> io::Result<()> {
        self.lock().remove(&record.key());
        match std::fs::remove_file(self.path(&record.key())) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
            _ => Ok(()),
        }
    }

    /// The attachment of a container's interface. With an empty name any of the container.
    pub fn find(&self, container: &str, ifname: &str) -> Vec<Record> {
        let all = self.lock();
        let fits = |r: &&Record| {
            r.container_id == container && (ifname.is_empty() || r.spec.ifname == ifname)
        };
        all.values().filter(fits).cloned().collect()
    }

    /// All attachments.
    pub fn all(&self) -> Vec<Record> {
        self.lock().values().cloned().collect()
    }

    fn path(&self, key: &str) -> PathBuf {
        self.dir.join(format!("{key}.json"))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Record>> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A DEL that the plugin wrote down while the agent was away.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct MissedDel {
    /// CNI_CONTAINERID.
    pub container_id: String,
    /// CNI_IFNAME.
    #[serde(default)]
    pub ifname: String,
}

/// Takes the DELs that the plugin wrote down. A file that cannot be read is dropped: the pod
/// that it was about is cleaned up by its absence.
///
/// # Errors
/// If the directory cannot be read.
pub fn take_missed(dir: &Path) -> io::Result<Vec<MissedDel>> {
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut missed = Vec::new();
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|e| e == "json") {
            if let Ok(m) = serde_json::from_slice(&std::fs::read(&path)?) {
                missed.push(m);
            }
            std::fs::remove_file(&path)?;
        }
    }
    Ok(missed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(container: &str, ifname: &str) -> Record {
        Record {
            container_id: container.into(),
            network: "ptp".into(),
            namespace: "default".into(),
            pod: "web-0".into(),
            pod_uid: Uuid::from_u128(1),
            client_id: Uuid::from_u128(2),
            epoch: 3,
            spec: AttachSpec {
                host_ifname: "aero00000001".into(),
                netns: "/run/netns/x".into(),
                ifname: ifname.into(),
                prefix: "2001:db8:a:1::/64".parse().unwrap(),
                asps: vec![],
                mtu: 1452,
                also_on: None,
            },
        }
    }

    #[test]
    fn an_attachment_outlives_the_agent_and_a_broken_file_does_not_stop_it() {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        journal.put(record("c1", "aero0")).unwrap();
        journal.put(record("c2", "net1")).unwrap();
        std::fs::write(dir.path().join("half.json"), "{\"container").unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!(journal.all().len(), 2);
        assert_eq!(journal.find("c1", "aero0"), [record("c1", "aero0")]);
        assert_eq!(journal.find("c1", ""), [record("c1", "aero0")]);
        assert!(journal.find("c1", "net1").is_empty());
        journal.remove(&record("c1", "aero0")).unwrap();
        journal.remove(&record("c1", "aero0")).unwrap();
        assert_eq!(Journal::open(dir.path()).unwrap().all().len(), 1);
        assert!(dir.path().join("half.bad").exists());
    }

    #[test]
    fn a_missed_del_is_taken_once() {
        let dir = tempfile::tempdir().unwrap();
        assert!(take_missed(&dir.path().join("none")).unwrap().is_empty());
        std::fs::write(dir.path().join("a.json"), r#"{"containerId":"c1","ifname":"eth0"}"#)
            .unwrap();
        std::fs::write(dir.path().join("b.json"), "nonsense").unwrap();
        let missed = take_missed(dir.path()).unwrap();
        assert_eq!(missed.len(), 1);
        assert_eq!(missed[0].container_id, "c1");
        assert!(take_missed(dir.path()).unwrap().is_empty());
    }
}
