//! `aero-fuzz`: attacks the parsers and engines for some seconds.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use aero_fuzz::{Target, corpus, run};
use anyhow::{Result, bail};
use clap::Parser;

/// Throws mutated packets and random histories at the protocol.
#[derive(Parser)]
struct Cli {
    /// For how long.
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Run this seed only.
    #[arg(long)]
    seed: Option<u64>,
    /// The first seed; by the clock if not given, so that every run is another.
    #[arg(long)]
    first_seed: Option<u64>,
    /// The corpus.
    #[arg(long, default_value_os_t = corpus::folder())]
    corpus: PathBuf,
    /// Write a good message of every kind into the corpus, and end.
    #[arg(long)]
    write_corpus: bool,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    if cli.write_corpus {
        std::fs::create_dir_all(&cli.corpus)?;
        for (name, bytes) in corpus::seeds() {
            let hex: Vec<String> = bytes
                .chunks(32)
                .map(|line| line.iter().map(|b| format!("{b:02x}")).collect())
                .collect();
            std::fs::write(cli.corpus.join(name + ".hex"), hex.join("\n") + "\n")?;
        }
        return Ok(());
    }
    let packets = corpus::read(&cli.corpus)?;
    let clock = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .map_or(0, |d| d.as_secs() << 24);
    let first = cli.seed.or(cli.first_seed).unwrap_or(clock);
    let end = Instant::now() + Duration::from_secs(cli.seconds);
    let mut seed = first;
    let mut failures = 0;
    while (cli.seed.is_some() && seed == first) || (cli.seed.is_none() && Instant::now() < end) {
        for target in Target::ALL {
            let outcome = catch_unwind(AssertUnwindSafe(|| run(target, seed, &packets)));
            if outcome.is_err() {
                println!("{target:?} fails; again: aero-fuzz --seed {seed}");
                failures += 1;
            }
        }
        seed += 1;
        if failures >= 3 {
            break;
        }
    }
    println!(
        "{} seeds from {first} on {} targets, {} packets in the corpus: {failures} failures",
        seed - first,
        Target::ALL.len(),
        packets.len()
    );
    if failures > 0 {
        bail!("{failures} failures");
    }
    Ok(())
}
