//! The shared table as a file, for a link without Kubernetes: `docs/outside-hosts.md`.
//!
//! The draft leaves open how the table reaches the Servers (draft -48 section 3.7: kept by one
//! authority, pushed to all). Here each Server has a copy as a YAML or JSON file. A change of the
//! file is noticed within [`LOOK`] or at SIGHUP; a file that cannot be used leaves the table as
//! it was.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aero_protocol::address::{Duid, Epoch, is_usable_acp};
use aero_protocol::server::{Authentication, Holder, Mapping, Server};
use aero_protocol::wire::signature::Key;
use aero_telemetry::admin::ReadyHandle;
use anyhow::Context as _;
use ipnet::IpNet;
use serde::Deserialize;
use serde_saphyr::Spanned;
use tokio::signal::unix::{SignalKind, signal};
use uuid::Uuid;

use crate::driver::Driver;
use crate::{duid, keys};

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);
/// Leases shorter than this would be renewed all the time.
const SHORTEST_LEASE: u64 = 4;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    service_prefixes: Vec<Spanned<String>>,
    #[serde(default = "default_lease")]
    lease_seconds: Spanned<u64>,
    #[serde(default)]
    authentication: Check,
    #[serde(default)]
    clients: Vec<Row>,
}

fn default_lease() -> Spanned<u64> {
    let nowhere = serde_saphyr::Location::UNKNOWN;
    Spanned::new(aero_protocol::timers::LEASE_TIME.as_secs(), nowhere, nowhere)
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
enum Check {
    #[default]
    NodeAddress,
    None,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    duid: Spanned<String>,
    #[serde(default)]
    name: Option<String>,
    prefixes: Vec<Spanned<String>>,
    #[serde(default)]
    addresses: Vec<Spanned<String>>,
    /// Its key file, by a path from the table's folder.
    #[serde(default)]
    key: Option<PathBuf>,
}

/// What is wrong with a table, and where.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("line {line}: {why}")]
pub struct TableError {
    /// Line, counted from one; 0 if it is about the whole file.
    pub line: u64,
    /// The reason.
    pub why: String,
}

/// Fails at the line of a value.
fn at<T, U>(value: &Spanned<T>, why: impl fmt::Display) -> Result<U, TableError> {
    Err(TableError { line: value.referenced.line(), why: why.to_string() })
}

/// One prefix of a Client.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    client: Duid,
    name: String,
    addresses: BTreeSet<IpAddr>,
}

/// A table that has been read and found right.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileTable {
    service_prefixes: Vec<IpNet>,
    lease: Duration,
    authentication: Authentication,
    entries: BTreeMap<IpNet, Entry>,
    key_files: BTreeMap<Duid, PathBuf>,
    /// What is in these files.
    keys: BTreeMap<Duid, Vec<Key>>,
}

impl FileTable {
    /// Reads a table.
    ///
    /// # Errors
    /// The first thing that is wrong, with its line.
    pub fn parse(text: &str) -> Result<Self, TableError> {
        // The file is the administrator's own: no bound on its size.
        let options = serde_saphyr::options! { budget: None, with_snippet: false };
        let read = serde_saphyr::from_str_with_options::<Document>(text, options);
        let document = read.map_err(|e| {
            let line = e.location().map_or(0, |l| l.line());
            TableError { line, why: plain(&e.to_string()) }
        })?;
        let mut service_prefixes = Vec::new();
        for text in &document.service_prefixes {
            service_prefixes.push(prefix(text)?);
        }
        let lease = &document.lease_seconds;
        if lease.value < SHORTEST_LEASE || u32::try_from(lease.value).is_err() {
            return at(lease, format!("leaseSeconds is at least {SHORTEST_LEASE}"));
        }
        let authentication = match document.authentication {
            Check::NodeAddress => Authentication::NodeAddress,
            Check::None => Authentication::None,
        };
        let mut table = Self {
            service_prefixes,
            lease: Duration::from_secs(lease.value),
            authentication,
            entries: BTreeMap::new(),
            key_files: BTreeMap::new(),
            keys: BTreeMap::new(),
        };
        let mut seen = BTreeMap::new();
        for row in &document.clients {
            table.add(row, &mut seen)?;
        }
        Ok(table)
    }

    fn add(&mut self, row: &Row, seen: &mut BTreeMap<Duid, u64>) -> Result<(), TableError> {
        let Some(client) = duid::parse(&row.duid.value) else {
            let text = &row.duid.value;
            return at(&row.duid, format!("{text:?} is neither a UUID nor 3 to 130 bytes in hex"));
        };
        if let Some(line) = seen.insert(client.clone(), row.duid.referenced.line()) {
            return at(&row.duid, format!("this client is at line {line} already"));
        }
        let mut addresses = BTreeSet::new();
        for text in &row.addresses {
            match text.value.parse::<IpAddr>() {
                Ok(ip) => drop(addresses.insert(ip.to_canonical())),
                Err(_) => return at(text, format!("{:?} is no IP address", text.value)),
            }
        }
        let proved = row.key.is_some() || self.authentication == Authentication::None;
        if addresses.is_empty() && !proved {
            let why = "the client has neither a key nor addresses from which it may register (with \
                       `authentication: None` it needs none)";
            return at(&row.duid, why);
        }
        if let Some(file) = &row.key {
            self.key_files.insert(client.clone(), file.clone());
        }
        let name = row.name.clone().unwrap_or_else(|| format!("client {client}"));
        for text in &row.prefixes {
            let acp = prefix(text)?;
            if !is_usable_acp(acp) {
                return at(text, format!("{acp} cannot be a client's: IPv6 needs /64 or shorter"));
            }
            if !self.service_prefixes.iter().any(|asp| asp.contains(&acp)) {
                return at(text, format!("{acp} is in no service prefix"));
            }
            if let Some((other, entry)) = self.overlapping(acp) {
                return at(text, format!("{acp} overlaps {other} of {}", entry.name));
            }
            let entry =
                Entry { client: client.clone(), name: name.clone(), addresses: addresses.clone() };
            self.entries.insert(acp, entry);
        }
        Ok(())
    }

    /// Prefixes are in order, and those here do not overlap each other: one that overlaps
    /// `prefix` is the last before it or the first behind.
    fn overlapping(&self, prefix: IpNet) -> Option<(&IpNet, &Entry)> {
        let before = self.entries.range(..=prefix).next_back();
        let behind = self.entries.range(prefix..).next();
        [before, behind]
            .into_iter()
            .flatten()
            .find(|(p, _)| p.contains(&prefix) || prefix.contains(*p))
    }
}

/// A prefix written as such, without bits behind its length.
fn prefix(text: &Spanned<String>) -> Result<IpNet, TableError> {
    match text.value.parse::<IpNet>() {
        Ok(p) if p == p.trunc() => Ok(p),
        Ok(p) => at(text, format!("{p} has bits behind its length; {} is meant?", p.trunc())),
        Err(_) => at(text, format!("{:?} is no prefix", text.value)),
    }
}

/// A message of the YAML parser without its own account of where.
fn plain(message: &str) -> String {
    let first = message.lines().next().unwrap_or(message);
    let start = first.strip_prefix("error: ").unwrap_or(first);
    match (start.strip_prefix("line "), start.split_once(": ")) {
        (Some(_), Some((_, rest))) => rest.to_string(),
        _ => start.split(" at line ").next().unwrap_or(start).to_string(),
    }
}

/// Brings an engine's table to what the file says, and remembers what it did.
#[derive(Debug, Default)]
struct Applied {
    rows: BTreeMap<IpNet, (Entry, Epoch)>,
}

impl Applied {
    /// Rows that are as before stay with their leases. One that has changed gets a new epoch,
    /// so that a lease from an address which is not allowed any more ends.
    fn apply(&mut self, table: &FileTable, driver: &Driver<Server>) {
        let mut rows = BTreeMap::new();
        let keep: Vec<IpNet> = table.entries.keys().copied().collect();
        driver.with(|engine, now| {
            let asps = table.service_prefixes.clone();
            engine.set_link(asps, table.lease, table.authentication);
            // Before the rows that need them.
            engine.replace_keys(table.keys.clone());
            engine.retain_mappings(&keep);
            for (prefix, entry) in &table.entries {
                let epoch = match self.rows.get(prefix) {
                    Some((old, epoch)) if old == entry => *epoch,
                    Some((_, epoch)) => Epoch(epoch.0 + 1),
                    None => Epoch(1),
                };
                rows.insert(*prefix, (entry.clone(), epoch));
                if self.rows.get(prefix).is_some_and(|(_, old)| *old == epoch) {
                    continue;
                }
                let holder = (!entry.addresses.is_empty()).then(|| Holder {
                    id: Uuid::nil(),
                    name: entry.name.clone(),
                    underlay: entry.addresses.iter().copied().collect(),
                });
                let client = entry.client.clone();
                engine.set_mapping(Mapping { prefix: *prefix, client, epoch, holder }, now);
            }
        });
        self.rows = rows;
    }
}

type Stamp = (SystemTime, u64, u64);

/// What tells one state of a file from another without reading it.
fn stamp(path: &Path) -> io::Result<Stamp> {
    use std::os::unix::fs::MetadataExt;
    let meta = std::fs::metadata(path)?;
    Ok((meta.modified()?, meta.len(), meta.ino()))
}

fn read(path: &Path) -> anyhow::Result<FileTable> {
    let text = std::fs::read_to_string(path)?;
    let mut table = FileTable::parse(&text)?;
    for (client, file) in table.key_files.clone() {
        table.keys.insert(client, keys::read(&beside(path, &file))?);
    }
    Ok(table)
}

/// A path as it is meant in a table.
fn beside(table: &Path, file: &Path) -> PathBuf {
    table.parent().unwrap_or(Path::new("")).join(file)
}

/// The states of a table and of the key files that it names.
fn stamps(path: &Path, table: &FileTable) -> Vec<Option<Stamp>> {
    let keys = table.key_files.values().map(|file| stamp(&beside(path, file)).ok());
    std::iter::once(stamp(path).ok()).chain(keys).collect()
}

/// Reads the table, then follows the file.
///
/// # Errors
/// If the table cannot be used at the start: a Server without a table is of no use.
pub(super) async fn follow(
    path: &Path,
    driver: &Driver<Server>,
    ready: &ReadyHandle,
) -> anyhow::Result<()> {
    let mut hangup = signal(SignalKind::hangup())?;
    let mut applied = Applied::default();
    let mut table = read(path).with_context(|| format!("the table {}", path.display()))?;
    let mut seen = stamps(path, &table);
    applied.apply(&table, driver);
    ready.ready();
    let said = |table: &FileTable| {
        let clients: BTreeSet<_> = table.entries.values().map(|e| &e.client).collect();
        let keys = table.keys.len();
        tracing::info!(prefixes = table.entries.len(), clients = clients.len(), keys, "table read");
        if table.authentication == Authentication::None {
            tracing::warn!(
                "authentication is None: whoever names the DUID of a client without a key is that client"
            );
        }
    };
    said(&table);
    loop {
        let asked = tokio::select! {
            () = tokio::time::sleep(LOOK) => false,
            _ = hangup.recv() => true,
        };
        let present = stamps(path, &table);
        if present == seen && !asked {
            continue;
        }
        seen = present;
        match read(path) {
            Ok(new) => {
                table = new;
                seen = stamps(path, &table);
                applied.apply(&table, driver);
                said(&table);
            }
            Err(e) => {
                tracing::error!(file = %path.display(), "the table stays as it was: {e:#}");
            }
        }
    }
}

#[cfg(test)]
#[path = "file_table_tests.rs"]
mod tests;
