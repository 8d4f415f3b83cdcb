//! `aero-elements`: from records of tests to the table of elements.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use aero_elements::log::Outcome;
use aero_elements::records::{self, Record};
use aero_elements::{faults, log, scan, table};
use anyhow::{Context, Result};
use clap::{Parser, Subcommand};

/// Which test shows which element of the protocol.
#[derive(Parser)]
struct Cli {
    /// Root of the work tree.
    #[arg(long, default_value = ".")]
    root: PathBuf,
    /// The target folder.
    #[arg(long, env = "CARGO_TARGET_DIR", default_value = "target")]
    target: PathBuf,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Accept the records of tests that a log of `cargo test` says passed; drop those that failed.
    Accept {
        /// The log, standard output and standard error together.
        #[arg(long)]
        log: PathBuf,
    },
    /// Write `results/protocol.json` and `docs/protocol-table.md`.
    Table,
    /// Write `results/faults.json` and `docs/faults.md`.
    Faults,
    /// Write `docs/protocol-table.md` only.
    Docs,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    let folder = cli.target.join("results/elements");
    match cli.verb {
        Verb::Accept { log } => accept(&folder, &log, &commit(&cli.root)),
        Verb::Table => write_table(&cli.root, &cli.target, &folder),
        Verb::Faults => write_faults(&cli.root, &cli.target, &folder),
        Verb::Docs => write_docs(&cli.root).map(drop),
    }
}

/// The commit of the work tree; outside of a repository all runs count as one.
fn commit(root: &Path) -> String {
    let git = Command::new("git").args(["rev-parse", "HEAD"]).current_dir(root).output();
    match git {
        Ok(out) if out.status.success() => String::from_utf8_lossy(&out.stdout).trim().to_string(),
        _ => "unknown".to_string(),
    }
}

fn accept(folder: &Path, log: &Path, commit: &str) -> Result<()> {
    let text = std::fs::read(log).with_context(|| log.display().to_string())?;
    let outcomes = log::parse(&String::from_utf8_lossy(&text));
    // A binary that was built anew has another hash; what its predecessor wrote is over.
    let stem = |b: &str| b.rsplit_once('-').map_or(b, |(s, _)| s).to_string();
    let ran: BTreeSet<&String> = outcomes.keys().map(|(binary, _)| binary).collect();
    let stems: BTreeSet<String> = ran.iter().map(|b| stem(b)).collect();
    let (mut passed, mut dropped) = (0, 0);
    for (path, mut record) in records::read(folder)? {
        match outcomes.get(&(record.binary.clone(), record.test.clone())) {
            Some(Outcome::Ok) => {
                record.accepted = Some(commit.to_string());
                record.write(folder)?;
                passed += 1;
            }
            Some(Outcome::Other) => {
                std::fs::remove_file(path)?;
                dropped += 1;
            }
            None if stems.contains(&stem(&record.binary)) => {
                std::fs::remove_file(path)?;
                dropped += 1;
            }
            // Of a binary that this run had no part of.
            None => {}
        }
    }
    println!("{passed} records of tests that passed, {dropped} of others dropped");
    Ok(())
}

fn write_docs(root: &Path) -> Result<Vec<scan::Claim>> {
    let claims = scan::claims(root)?;
    let path = root.join("docs/protocol-table.md");
    std::fs::write(&path, table::document(&claims)).with_context(|| path.display().to_string())?;
    Ok(claims)
}

fn write_table(root: &Path, target: &Path, folder: &Path) -> Result<()> {
    let claims = write_docs(root)?;
    let records: Vec<Record> = records::read(folder)?.into_iter().map(|(_, r)| r).collect();
    let summary = table::summary(&records, &claims, &commit(root));
    let path = target.join("results/protocol.json");
    std::fs::create_dir_all(target.join("results"))?;
    let text = serde_json::to_string_pretty(&summary)? + "\n";
    std::fs::write(&path, text).with_context(|| path.display().to_string())?;
    println!(
        "{} of {} rows shown, {} not yet; {}",
        summary.shown.len(),
        summary.rows,
        summary.not_yet.len(),
        path.display()
    );
    if !summary.claimed_but_not_run.is_empty() {
        println!("claimed, but not run here: {}", summary.claimed_but_not_run.join(" "));
    }
    Ok(())
}

fn write_faults(root: &Path, target: &Path, folder: &Path) -> Result<()> {
    let records: Vec<Record> = records::read(folder)?.into_iter().map(|(_, r)| r).collect();
    let commit = commit(root);
    let document = root.join("docs/faults.md");
    std::fs::write(&document, faults::document(&records, &commit))
        .with_context(|| document.display().to_string())?;
    let summary = faults::summary(&records, &commit);
    let path = target.join("results/faults.json");
    std::fs::create_dir_all(target.join("results"))?;
    std::fs::write(&path, serde_json::to_string_pretty(&summary)? + "\n")
        .with_context(|| path.display().to_string())?;
    let open = summary.get("not_yet").and_then(serde_json::Value::as_array).map_or(0, Vec::len);
    let all = faults::CASES.len();
    println!("{} of {all} fault cases held, {open} not yet; {}", all - open, path.display());
    Ok(())
}
