//! `aero-simulate`: many seeds of a small link, or one of a large one.

use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use aero_simulation::{Outcome, Shape, plot, report, run};
use anyhow::{Context, Result, bail};
use clap::Parser;

/// Runs AERO links in virtual time, with faults, and checks what must hold.
#[derive(Parser)]
struct Cli {
    /// Nodes.
    #[arg(long, default_value_t = 8)]
    nodes: usize,
    /// Servers.
    #[arg(long, default_value_t = 3)]
    servers: usize,
    /// Clients.
    #[arg(long, default_value_t = 20)]
    clients: usize,
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// The first of them.
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// Run this seed only.
    #[arg(long)]
    seed: Option<u64>,
    /// Print all that happens; with --seed.
    #[arg(long, requires = "seed")]
    trace: bool,
    /// Stop beginning new seeds after so many seconds; those that ran are reported.
    #[arg(long)]
    budget: Option<u64>,
    /// Where the report goes.
    #[arg(long, default_value = "target/results/simulation.json")]
    out: PathBuf,
    /// Draw state and messages over the number of Clients into this SVG file.
    #[arg(long)]
    plot: Option<PathBuf>,
    /// Threads; as many as there are processors if not given.
    #[arg(long)]
    threads: Option<usize>,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    if cli.nodes == 0 || cli.servers == 0 || cli.clients == 0 {
        bail!("a link needs a node, a Server and a Client at least");
    }
    let shape = Shape::new(cli.nodes, cli.servers, cli.clients);
    if let (Some(seed), true) = (cli.seed, cli.trace) {
        return replay(&cli, &shape, seed);
    }
    let began = Instant::now();
    let outcomes = run_all(&cli, &shape);
    let summary = report::summary(&shape, &outcomes, began.elapsed().as_secs_f64());
    if let Some(folder) = cli.out.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let text = serde_json::to_string_pretty(&summary)? + "\n";
    std::fs::write(&cli.out, text).with_context(|| cli.out.display().to_string())?;
    print(&summary);
    println!("  report: {}", cli.out.display());
    if let Some(path) = &cli.plot {
        let title = format!("{} nodes, {} Servers", cli.nodes, cli.servers);
        plot::draw(path, &title, &summary.samples)?;
        println!("  picture: {}", path.display());
    }
    if let Some(first) = summary.violations.first() {
        println!("the last of what led there:");
        for line in tail(&run(&shape, first.seed, true)) {
            println!("{line}");
        }
        println!(
            "again: aero-simulate --nodes {} --servers {} --clients {} --seed {} --trace",
            cli.nodes, cli.servers, cli.clients, first.seed
        );
        bail!("{} of {} seeds broke an invariant", summary.violations.len(), outcomes.len());
    }
    Ok(())
}

/// Prints all of one seed.
fn replay(cli: &Cli, shape: &Shape, seed: u64) -> Result<()> {
    let outcome = run(shape, seed, true);
    for line in &outcome.text {
        println!("{line}");
    }
    println!("seed {seed}: {} events, trace hash {:016x}", outcome.events, outcome.hash);
    match outcome.violation {
        Some(v) => bail!("{}: {} at {:.6} s: {}", cli.nodes, report::name(v.check), v.at, v.text),
        None => Ok(()),
    }
}

fn tail(outcome: &Outcome) -> &[String] {
    let from = outcome.text.len().saturating_sub(60);
    outcome.text.get(from..).unwrap_or_default()
}

/// Runs the seeds on all processors. Each is a world of its own, so their order is of no account.
fn run_all(cli: &Cli, shape: &Shape) -> Vec<Outcome> {
    let first = cli.seed.unwrap_or(cli.first_seed);
    let count = if cli.seed.is_some() { 1 } else { cli.seeds };
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    let threads = cli.threads.unwrap_or(processors).clamp(1, 64);
    let began = Instant::now();
    let next = AtomicU64::new(0);
    let outcomes = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let n = next.fetch_add(1, Ordering::Relaxed);
                    let late = cli.budget.is_some_and(|b| began.elapsed().as_secs() >= b);
                    if n >= count || late {
                        break;
                    }
                    let outcome = run(shape, first + n, false);
                    if let Ok(mut all) = outcomes.lock() {
                        all.push(outcome);
                    }
                }
            });
        }
    });
    let mut all = outcomes.into_inner().unwrap_or_default();
    all.sort_by_key(|o| o.seed);
    all
}

#[allow(clippy::cast_precision_loss)] // for reading only
fn print(s: &report::Summary) {
    println!(
        "{} seeds of {} nodes, {} Servers, {} Clients: {} events, {:.0} virtual s in {:.1} s",
        s.seeds_run, s.nodes, s.servers, s.clients, s.events, s.virtual_seconds, s.wall_seconds
    );
    let checks: u64 = s.invariants_checked.values().sum();
    println!("  {checks} checks of {} invariants", s.invariants_checked.len());
    for found in s.violations.iter().take(10) {
        let v = &found.violation;
        println!("  seed {}: {} at {:.3} s: {}", found.seed, report::name(v.check), v.at, v.text);
    }
    println!("  {} violations", s.violations.len());
    let get = |what: &str| s.data_packets.get(what).copied().unwrap_or(0);
    println!(
        "  users' packets: {} sent, {} delivered, {} lost, {} took a direct path",
        get("sent"),
        get("delivered"),
        get("lost"),
        get("direct")
    );
    println!(
        "  all reachable again after the last fault: {:.2} s at most",
        s.longest_recovery_seconds
    );
    println!("  memory {:.0} MB at most", s.peak_memory as f64 / 1e6);
    println!(
        "  clients  entries/node  (largest)  entries/Server  messages/move  messages/s/client"
    );
    for row in &s.samples {
        println!(
            "  {:7}  {:12.1}  {:9}  {:14.1}  {:13.2}  {:17.3}",
            row.clients,
            row.entries_per_node,
            row.entries_largest_node,
            row.entries_per_server,
            row.messages_per_move,
            row.messages_per_client_second
        );
    }
}
