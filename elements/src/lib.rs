//! Which test shows which element of the protocol.
//!
//! A test that shows an element says so at its top:
//!
//! ```
//! # // Outside of a test binary nothing is written.
//! let _row = aero_elements::covers(&["K1", "K1b"]);
//! ```
//!
//! The claim is made by *running*: when the guard goes out of scope without a panic it writes
//! `target/results/elements/BINARY.TEST.LINE.json`. A test that fails, is ignored or was never
//! built leaves nothing. Since a test may also fail without a panic (by returning an error), a
//! record counts only once `aero-elements accept` has found the very test as `ok` in the log of
//! its run. `aero-elements table` makes `target/results/protocol.json` from the records that
//! count and `docs/protocol-table.md` from the claims in the sources ([`scan`]); a test of this
//! crate compares the two, so that the document cannot drift.
//!
//! Rules for a claim:
//!
//! - The ids are literals in the call: `covers(&["K1"])`. An unknown id is a panic.
//! - Bind the guard to a name (`let _row`), not to `_`, which drops it at once.
//! - Claim a row only in a test that would fail without the rule. Part of a row is no row: leave
//!   it to the test that has the whole of it, or say which parts in several tests that each claim
//!   the row only if the others exist.
//! - Rows that stand for others ([`rows::DERIVED`]) are not claimed: they are shown when all of
//!   those are.
//! - Harnesses whose threads have no names (the lab's) use [`covers_in`] with the test's name.

#![forbid(unsafe_code)]

pub mod faults;
pub mod log;
pub mod records;
pub mod results;
pub mod rows;
pub mod scan;
pub mod table;

use std::panic::Location;

use records::Record;

/// The claim of a running test; see [`covers`].
#[derive(Debug)]
#[must_use = "bind it to a name: the claim is made when the guard goes out of scope"]
pub struct Covered {
    record: Record,
}

/// Claims rows for the test that runs in this thread.
///
/// # Panics
/// If an id is in no row: a claim that nobody reads is a mistake in the test.
#[track_caller]
#[allow(clippy::panic)] // it is called in tests, and is to fail them
pub fn covers(ids: &[&str]) -> Covered {
    let thread = std::thread::current();
    claim(thread.name().unwrap_or("main"), ids, Location::caller())
}

/// Claims rows for the test named `test`.
///
/// # Panics
/// If an id is in no row.
#[track_caller]
pub fn covers_in(test: &str, ids: &[&str]) -> Covered {
    claim(test, ids, Location::caller())
}

#[allow(clippy::panic)] // as above
fn claim(test: &str, ids: &[&str], location: &Location<'_>) -> Covered {
    if let Some(id) = ids.iter().find(|id| rows::find(id).is_none()) {
        panic!("{location}: no element is called {id:?}; see elements/src/rows.rs");
    }
    if let Some(id) = ids.iter().find(|id| rows::derived(id).is_some()) {
        panic!("{location}: {id:?} follows from other rows and is not claimed");
    }
    record(test, ids, location)
}

fn record(test: &str, ids: &[&str], location: &Location<'_>) -> Covered {
    Covered {
        record: Record {
            test: test.to_string(),
            binary: records::binary(),
            file: location.file().to_string(),
            line: location.line(),
            rows: ids.iter().map(ToString::to_string).collect(),
            accepted: None,
            figure: None,
            level: None,
        },
    }
}

impl Drop for Covered {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        if let Some(folder) = records::folder_of_this_binary()
            && let Err(e) = self.record.write(&folder)
        {
            eprintln!("aero-elements: {}: {e:#}", folder.display());
        }
    }
}
