//! The document and the claims, and what a claim leaves behind.

#![allow(clippy::unwrap_used)]

use std::path::Path;

use aero_elements::{records, rows, scan, table};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

#[test]
fn the_document_is_what_the_claims_in_the_sources_make_it() {
    let claims = scan::claims(root()).unwrap();
    let written = std::fs::read_to_string(root().join("docs/protocol-table.md")).unwrap();
    assert!(
        written == table::document(&claims),
        "docs/protocol-table.md is out of date; run `cargo run -p aero-elements -- docs`"
    );
}

#[test]
fn every_claim_in_the_sources_names_rows_that_exist() {
    for claim in scan::claims(root()).unwrap() {
        assert!(!claim.rows.is_empty(), "{claim:?}");
        for row in &claim.rows {
            assert!(rows::find(row).is_some(), "{row:?} in {claim:?}");
        }
    }
}

/// Records of this binary made for `test`, which are taken away again: they are no claims about
/// the protocol.
fn take_records(test: &str) -> Vec<records::Record> {
    let folder = records::folder_of_this_binary().unwrap();
    let mut taken = Vec::new();
    for (path, record) in records::read(&folder).unwrap() {
        if record.binary == records::binary() && record.test == test {
            std::fs::remove_file(path).unwrap();
            taken.push(record);
        }
    }
    taken
}

#[test]
fn a_claim_is_written_when_the_guard_ends_well_and_not_when_it_ends_in_a_panic() {
    drop(aero_elements::covers_in("ends well", &["A1", "K2 neg"]));
    let records = take_records("ends well");
    assert_eq!(records.len(), 1);
    assert_eq!(records[0].rows, ["A1", "K2 neg"]);
    assert_eq!(records[0].accepted, None, "the log of the run decides");
    assert!(records[0].file.ends_with("claims.rs"));

    let failed = std::panic::catch_unwind(|| {
        let _row = aero_elements::covers_in("ends badly", &["A1"]);
        panic!("on purpose");
    });
    assert!(failed.is_err());
    assert_eq!(take_records("ends badly"), []);
}

#[test]
fn a_claim_of_an_unknown_row_is_a_failure() {
    let claim = std::panic::catch_unwind(|| aero_elements::covers(&["K99"]));
    assert!(claim.is_err());
}
