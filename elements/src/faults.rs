//! The fault cases: how software of this kind fails in the field, and which test shows that ours
//! does not.
//!
//! A test that shows a case says so by running, as for the elements of the protocol ([`crate`] has
//! the rules), and tells what it measured:
//!
//! ```
//! # use aero_elements::faults::{Level, held};
//! let mut case = held(&["F06"], Level::Model);
//! case.figure("died at each of 57 requests");
//! ```
//!
//! `aero-elements faults` makes `target/results/faults.json` and `docs/faults.md` from the records
//! that count.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::panic::Location;

use serde::Serialize;
use serde_json::{Value, json};

use crate::Covered;
use crate::records::Record;

/// Where a case is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Level {
    /// In a model, in virtual time.
    Model,
    /// In network namespaces, or with built programs on one machine.
    Namespaces,
    /// On the lab's Kubernetes.
    Kubernetes,
}

impl Level {
    /// Its letter in the table.
    pub fn letter(self) -> &'static str {
        match self {
            Self::Model => "U",
            Self::Namespaces => "N",
            Self::Kubernetes => "K",
        }
    }
}

/// A fault case.
#[derive(Debug, Clone, Copy)]
pub struct Case {
    /// Its name.
    pub id: &'static str,
    /// What is done.
    pub inject: &'static str,
    /// What must hold.
    pub holds: &'static str,
}

const fn case(id: &'static str, inject: &'static str, holds: &'static str) -> Case {
    Case { id, inject, holds }
}

/// All cases.
pub const CASES: &[Case] = &[
    case(
        "F01",
        "a node loses power; its StatefulSet pod is deleted by force",
        "same prefix on the new node, reached within 1 s of the pod's start, no other pod ever had it",
    ),
    case(
        "F02",
        "the dead node comes back with the old pod still running",
        "the old node sees a larger epoch, mutes the prefix, releases nothing; nothing reaches the old copy after 1 s",
    ),
    case(
        "F03",
        "garbage collection overlaps with the start of a pod",
        "10,000 random interleavings, no live claim freed",
    ),
    case(
        "F04",
        "same pod name, new UID; the old sandbox's DEL arrives late",
        "the late DEL changes nothing",
    ),
    case(
        "F05",
        "pods go while the operator is away, and their prefix is asked for by name",
        "one holder; the other is refused, by condition, with the holder's name",
    ),
    case(
        "F06",
        "the operator dies at each step of an allocation",
        "nothing twice, no orphan older than 60 s",
    ),
    case(
        "F07",
        "DEL while the node's agent is away for 10 min",
        "the pod's deletion is delayed by 5 s at most; what it had is released when the agent is back",
    ),
    case(
        "F08",
        "DEL never comes",
        "a prefix that need not be kept is freed in time, a kept one is kept",
    ),
    case(
        "F09",
        "ADD ends half-way, and the kubelet's clean-up fails",
        "100 repetitions end with one mapping and one interface",
    ),
    case("F10", "a crash loop: each attempt has a new sandbox", "prefixes in use = identities"),
    case(
        "F11",
        "CHECK and DEL of a pod whose interface is gone",
        "CHECK says what is missing; DEL succeeds",
    ),
    case(
        "F12",
        "API server and etcd away",
        "traffic and leases go on; ADD fails within 10 s and says why; STATUS says 50",
    ),
    case(
        "F13",
        "etcd is put back to an older snapshot",
        "no two holders at the end; an Event lists what was repaired",
    ),
    case(
        "F14",
        "the agent restarts under load",
        "no packet lost on the kernel's path, no device or route deleted",
    ),
    case(
        "F15",
        "upgrade against uninstall: DaemonSet deleted, rolled, node drained",
        "the CNI configuration stays on an upgrade and goes on an uninstall",
    ),
    case(
        "F16",
        "1,000 pods at once from one link",
        "all Running, our part of ADD p99 <= 1 s, 409 retries bounded",
    ),
    case(
        "F17",
        "two operators both think that they lead",
        "every write carries a resourceVersion; the stale leader's fail",
    ),
    case(
        "F18",
        "a partition: both sides serve one prefix by two Servers",
        "at heal one holder by epoch",
    ),
    case(
        "F19",
        "a stale neighbour entry after a move, the unsolicited NA lost",
        "NUD repairs within 3 s",
    ),
    case(
        "F20",
        "a prefix is asked for right after its release; the operator restarts between",
        "not given again before its cool-down ends",
    ),
    case(
        "F21",
        "a live migration fails at each phase",
        "the source keeps its traffic; the target's state is gone within 5 s",
    ),
    case("F22", "A -> B -> A, 50 ms apart, 100 times", "the last move wins; no state is left over"),
    case(
        "F23",
        "IPv6: DAD, Packet Too Big through the tunnel",
        "usable within 100 ms; large TCP segments over a narrow path",
    ),
    case(
        "F24",
        "uninstall with live clients",
        "nothing hangs for more than 60 s; mappings stay; nothing is left on nodes",
    ),
    case(
        "F25",
        "5,000 pods over 250 short-lived nodes, 10 rounds",
        "no orphans; the operator's memory within 10 %",
    ),
    case("A1", "one of two Servers dies", "traffic shifts within 1 s"),
    case("A2", "a Relay dies", "routes shift within the hold time"),
    case("A3", "clocks differ by 10 min", "the winner stays the same"),
    case("A4", "a pod forges DHCPv6 with another's DUID", "it never reaches the link; counted"),
    case("A5", "a forged Redirect or NA from off the link", "dropped"),
    case("A6", "a Server is handed over during a live migration", "the migration ends well"),
    case(
        "A7",
        "a lease ends while the Server is away",
        "used to its end, then silent; not given to another before",
    ),
];

/// A claim of a running test, with what it measured.
#[derive(Debug)]
#[must_use = "bind it to a name: the claim is made when the guard goes out of scope"]
pub struct Held(Covered);

impl Held {
    /// Says what was measured, with its unit and bound.
    pub fn figure(&mut self, text: impl Into<String>) {
        self.0.record.figure = Some(text.into());
    }
}

/// Claims cases for the test that runs in this thread.
///
/// # Panics
/// If there is no such case.
#[track_caller]
pub fn held(ids: &[&str], level: Level) -> Held {
    let thread = std::thread::current();
    claim(thread.name().unwrap_or("main"), ids, level, Location::caller())
}

/// Claims cases for the test named `test`.
///
/// # Panics
/// If there is no such case.
#[track_caller]
pub fn held_in(test: &str, ids: &[&str], level: Level) -> Held {
    claim(test, ids, level, Location::caller())
}

#[allow(clippy::panic)] // it is called in tests, and is to fail them
fn claim(test: &str, ids: &[&str], level: Level, location: &Location<'_>) -> Held {
    if let Some(id) = ids.iter().find(|id| !CASES.iter().any(|c| c.id == **id)) {
        panic!("{location}: no fault case is called {id:?}; see elements/src/faults.rs");
    }
    let mut covered = crate::record(test, ids, location);
    covered.record.level = Some(level.letter().to_string());
    Held(covered)
}

/// `target/results/faults.json` from the records that were accepted at `commit`.
pub fn summary(records: &[Record], commit: &str) -> Value {
    let mut all = serde_json::Map::new();
    let mut not_yet = Vec::new();
    for case in CASES {
        let shown = shown(records, commit, case.id);
        if shown.is_empty() {
            not_yet.push(case.id);
            continue;
        }
        let levels: Vec<&str> = shown.keys().copied().collect();
        let figures: Vec<String> = shown.values().flatten().map(|r| text(r)).collect();
        let entry = json!({"held": true, "level": levels.join(", "), "figure": figures.join("; ")});
        all.insert(case.id.to_string(), entry);
    }
    all.insert("not_yet".into(), json!(not_yet));
    Value::Object(all)
}

/// Records that show a case, by level.
fn shown<'a>(records: &'a [Record], commit: &str, id: &str) -> BTreeMap<&'a str, Vec<&'a Record>> {
    let mut by_level: BTreeMap<&str, Vec<&Record>> = BTreeMap::new();
    for record in records {
        let counts = record.accepted.as_deref() == Some(commit);
        if let (true, Some(level)) = (counts, record.level.as_deref())
            && record.rows.iter().any(|r| r == id)
        {
            by_level.entry(level).or_default().push(record);
        }
    }
    by_level
}

fn text(record: &Record) -> String {
    let test = record.test.rsplit("::").next().unwrap_or(&record.test).replace('_', " ");
    record.figure.clone().unwrap_or(test)
}

/// The text of `docs/faults.md`.
pub fn document(records: &[Record], commit: &str) -> String {
    let held = CASES.iter().filter(|c| !shown(records, commit, c.id).is_empty()).count();
    let mut out = format!(
        "# Fault cases\n\n\
         <!-- Generated by `make faults` from a run of the tests. Do not edit. -->\n\n\
         What fails in the field with software of this kind, and what must hold then. Levels: U in a \
         model with virtual time (the operator whole against a model of the API server, or the \
         protocol's engines on a link in memory), N with built programs or network namespaces on one \
         machine, K on the lab's Kubernetes. A row is filled by a test that ran and passed; {held} of \
         {} are.\n\n\
         | case | what is done | what must hold | level | seen |\n| --- | --- | --- | --- | --- |\n",
        CASES.len()
    );
    for case in CASES {
        let shown = shown(records, commit, case.id);
        let levels: Vec<&str> = shown.keys().copied().collect();
        let seen: Vec<String> = shown
            .values()
            .flatten()
            .map(|r| format!("[{}](../{})", text(r).replace('|', "/"), r.file))
            .collect();
        let seen = if seen.is_empty() { "not yet".into() } else { seen.join("<br>") };
        let Case { id, inject, holds } = case;
        // Writing to a string does not fail.
        let _ = writeln!(out, "| {id} | {inject} | {holds} | {} | {seen} |", levels.join(", "));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(id: &str, accepted: Option<&str>) -> Record {
        Record {
            test: "cases::a_test_of_it".into(),
            binary: "b-1".into(),
            file: "x/tests/t.rs".into(),
            line: 1,
            rows: vec![id.into()],
            accepted: accepted.map(String::from),
            figure: Some("12 ms (bound 1 s)".into()),
            level: Some("U".into()),
        }
    }

    #[test]
    fn a_case_is_held_only_where_a_test_of_this_commit_ran_and_passed() {
        let records = [record("F01", Some("now")), record("F02", None), record("F03", Some("old"))];
        let summary = summary(&records, "now");
        assert_eq!(
            summary["F01"],
            json!({"held": true, "level": "U", "figure": "12 ms (bound 1 s)"})
        );
        assert!(summary.get("F02").is_none() && summary.get("F03").is_none());
        let not_yet = summary["not_yet"].as_array().unwrap();
        assert_eq!(not_yet.len(), CASES.len() - 1);
        let document = document(&records, "now");
        assert!(document.contains("| U | [12 ms (bound 1 s)](../x/tests/t.rs) |"), "{document}");
    }
}
