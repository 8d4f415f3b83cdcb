//! How fast the forwarders are: against plain routing and the kernel's VXLAN, on the same pair of
//! namespaces' devices, in rounds that take turns so that a machine's moods hit all alike.
//!
//! `make bench`. Needs root, `iperf3` and `ethtool`. What is compared are ratios to plain routing
//! within a round; absolute figures are this machine's.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
#![allow(missing_docs)]

mod large;
mod load;
#[path = "../../tests/ebpf/moves.rs"]
#[allow(dead_code)]
mod moves;
#[path = "../../tests/ebpf/net.rs"]
#[allow(dead_code)]
mod net;
mod plot;
mod report;
mod topology;
mod wireguard;

use std::path::PathBuf;

use anyhow::Context;
use load::Measure;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use report::Sample;
use topology::{Path, Underlay, Variant};

/// What to run besides the rounds.
const ONLY_MOVES: &str = "--moves";

/// Moves of a receiver, in the form of tunnel that nodes of a cluster have.
const MOVES: moves::Load = moves::Load { moves: 100, rate: 100_000, ip_in_ip: true };

/// Rounds of each measure.
const ROUNDS: usize = 7;

struct Args {
    rounds: usize,
    underlays: Vec<Underlay>,
    variants: Vec<Variant>,
    measures: Vec<Measure>,
    only_moves: bool,
    /// Where the table goes; none for a quick look.
    table: Option<PathBuf>,
}

fn args() -> anyhow::Result<Args> {
    let mut args = Args {
        rounds: ROUNDS,
        underlays: Underlay::ALL.to_vec(),
        variants: Variant::TABLE.to_vec(),
        measures: Measure::ALL.to_vec(),
        only_moves: false,
        table: None,
    };
    let mut words = std::env::args().skip(1);
    while let Some(word) = words.next() {
        if word == ONLY_MOVES {
            args.only_moves = true;
            continue;
        }
        let mut value = || words.next().with_context(|| format!("{word} needs a value"));
        match word.as_str() {
            "--rounds" => args.rounds = value()?.parse()?,
            "--underlay" => {
                let name = value()?;
                args.underlays.retain(|u| u.label() == name);
            }
            "--variants" => {
                let names = value()?;
                args.variants.extend(Variant::OTHERS);
                args.variants.retain(|v| names.split(',').any(|n| n == v.label()));
            }
            "--measures" => {
                let names = value()?;
                args.measures.retain(|m| names.split(',').any(|n| n == m.label()));
            }
            "--table" => args.table = Some(value()?.into()),
            // What cargo adds.
            "--bench" => {}
            other => {
                anyhow::bail!(
                    "{other}: known are --rounds N (0: only see that all paths work), --underlay super|wire, --variants and --measures with names between commas (a quick look), --moves (nothing else), --table FILE"
                )
            }
        }
    }
    Ok(args)
}

fn main() -> anyhow::Result<()> {
    let args = args()?;
    unshare(CloneFlags::CLONE_NEWNS).context("the bench needs root")?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none)?;
    if args.only_moves {
        let moved = moves::measure(MOVES)?;
        report::write("moves.json", &moved)?;
        print!("{}", moves::sentence(MOVES, &moved));
        return Ok(());
    }
    let mut samples = Vec::new();
    for underlay in &args.underlays {
        let paths: Vec<Path> =
            args.variants.iter().map(|v| Path::new(*v, *underlay)).collect::<Result<_, _>>()?;
        for path in &paths {
            load::warm_up(path)
                .with_context(|| format!("{} carries nothing", path.variant.label()))?;
        }
        for round in 0..args.rounds {
            for measure in &args.measures {
                // Forward and backward, so that none is always after the same one.
                let mut order: Vec<&Path> = paths.iter().collect();
                if round % 2 == 1 {
                    order.reverse();
                }
                for path in order {
                    for (name, value) in measure.take(path)? {
                        let variant = path.variant.label();
                        samples.push(Sample {
                            underlay: underlay.label(),
                            measure: name,
                            variant,
                            round,
                            value,
                        });
                    }
                }
            }
            eprintln!("{} underlay, round {} of {}", underlay.label(), round + 1, args.rounds);
        }
    }
    if args.rounds == 0 {
        println!("every path carries packets");
        return Ok(());
    }
    let rows = report::rows(&samples);
    if args.variants.len() < Variant::TABLE.len() || args.measures.len() < Measure::ALL.len() {
        println!("{}", report::table(&rows, args.rounds));
        return Ok(());
    }
    report::write_json(&rows)?;
    let path = Path::new(Variant::Ebpf, Underlay::Super)?;
    let large = large::measure(&path)?;
    report::write("table.json", &large)?;
    drop(path);
    let moved = moves::measure(MOVES)?;
    report::write("moves.json", &moved)?;
    let table =
        report::table(&rows, args.rounds) + &large.sentence() + &moves::sentence(MOVES, &moved);
    println!("{table}");
    if let Some(file) = &args.table {
        if let Some(dir) = file.parent() {
            std::fs::create_dir_all(dir)?;
        }
        plot::draw(&file.with_extension("svg"), &rows)?;
        std::fs::write(file, table)?;
    }
    Ok(())
}
