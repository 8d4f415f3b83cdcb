//! The demo: three nodes, two servers with stable prefixes, and everything that moves them.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use clap::Args;
use serde_json::json;

use super::moves::{self, Move};
use super::observer::Observer;
use super::{Cluster, talk};
use crate::lab::{self, Lab, Options, Progress, Underlay, images, workspace};

/// Flags of `e2e demo`.
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Name of the lab, which stays when the demo is over.
    #[arg(long, default_value = "demo")]
    name: String,
    /// Families of the underlay.
    #[arg(long, value_enum, default_value = "dual")]
    underlay: Underlay,
}

/// Shows that a prefix stays while its pod moves.
///
/// # Errors
/// If a prefix changed or a correspondent was left without answers; the lab stays for a look.
pub fn run(args: &DemoArgs) -> anyhow::Result<()> {
    lab::require_root()?;
    let progress = Progress::default();
    println!();
    let programs = Instant::now();
    lab::programs::ensure(&progress)?;
    let archives = images::product_with(&progress)?;
    let built = programs.elapsed();
    // What follows does not depend on what happened to be built already.
    let warm = Instant::now();
    let options = Options { name: args.name.clone(), nodes: 3, underlay: args.underlay };
    let lab = Lab::up(options, &Progress { quiet: false })?;
    let shown = show(&lab, &archives, &progress);
    match shown {
        Ok(moves) => finish(&lab, &moves, warm.elapsed(), built),
        Err(e) => {
            eprintln!(
                "\nThe lab stays for a look: export KUBECONFIG={}  (make demo-down ends it)",
                lab.kubeconfig().display()
            );
            Err(e)
        }
    }
}

fn show(
    lab: &Lab,
    archives: &[std::path::PathBuf],
    progress: &Progress,
) -> anyhow::Result<Vec<Move>> {
    let cluster = Cluster::of(lab);
    progress.step("aero", "helm install aero charts/aero", || {
        lab.load_images(archives)?;
        cluster.install(&[])?;
        cluster.wait_for_aero(Duration::from_secs(60))
    })?;
    let observer = Observer::start(&cluster.kubeconfig)?;
    let targets = progress.step(
        "client",
        "kubectl apply -f examples/client.yaml -f examples/web.yaml",
        || {
            cluster.apply_file("examples/client.yaml")?;
            cluster.apply_file("examples/web.yaml")?;
            talk::wait_for_web(&observer)
        },
    )?;
    for (pod, prefix, node) in &targets {
        progress.line(&format!("             {pod}   {prefix}   on {node}"));
    }
    let pairs: Vec<_> =
        targets.iter().map(|(pod, prefix, _)| (pod.clone(), prefix.clone())).collect();
    progress.step("talk", "a correspondent on each node asks both 100 times a second", || {
        talk::start(&cluster, &observer, &pairs, lab.nodes().len())
    })?;
    let mut all = Vec::new();
    let nodes = lab.nodes();
    let total = nodes.len() + 1;
    for (n, node) in nodes.iter().enumerate() {
        let moves = moves::drain(&cluster, &observer, node)?;
        report(&mut all, moves, &format!("{}/{total}", n + 1), &format!("drain {node}"))?;
    }
    // The node of web-0, wherever that is by now.
    let victim = observer.wait("web-0 is ready", Duration::from_secs(90), |seen| {
        seen.pod("default/web-0").map(|p| p.node.clone())
    })?;
    let moves = moves::power_off(lab, &cluster, &observer, &victim)?;
    report(&mut all, moves, &format!("{total}/{total}"), &format!("power off {victim}"))?;
    progress.step("power", &format!("{victim} is turned on again"), || {
        lab.restore_node(&victim)?;
        lab.wait_for_nodes(Duration::from_secs(150))
    })?;
    observer.check()?;
    Ok(all)
}

fn report(all: &mut Vec<Move>, moves: Vec<Move>, number: &str, what: &str) -> anyhow::Result<()> {
    if moves.is_empty() {
        println!("  move {number:<5} {what:<13}  no web pod was there");
    }
    for m in moves {
        let kept = if m.kept() { "same prefix" } else { "ANOTHER PREFIX" };
        println!(
            "  move {number:<5} {what:<13}  {}: {} -> {}   {kept}   first answer {} ms after Ready, silent {:.1} s in all",
            m.pod,
            m.from,
            m.to,
            m.gap_ms,
            std::time::Duration::from_millis(m.outage_ms).as_secs_f64()
        );
        let changed =
            (!m.kept()).then(|| format!("{} had {} and has {}", m.pod, m.prefix, m.prefix_after));
        all.push(m);
        if let Some(text) = changed {
            bail!(text);
        }
    }
    Ok(())
}

fn finish(lab: &Lab, moves: &[Move], warm: Duration, built: Duration) -> anyhow::Result<()> {
    let mut gaps: Vec<u64> = moves.iter().map(|m| m.gap_ms).collect();
    gaps.sort_unstable();
    let p50 = gaps.get(gaps.len() / 2).copied().context("nothing has moved")?;
    let max = gaps.last().copied().unwrap_or(0);
    let kept = moves.iter().filter(|m| m.kept()).count();
    let result = json!({
        "nodes": lab.nodes().len(), "moves": moves.len(), "prefix_kept": kept,
        "gap_ms": {"p50": p50, "max": max},
        "warm_seconds": (warm.as_secs_f64() * 10.0).round() / 10.0,
        "build_seconds": (built.as_secs_f64() * 10.0).round() / 10.0,
        "each": moves,
    });
    let dir = workspace().join("target/results");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("demo.json"), serde_json::to_vec_pretty(&result)?)?;
    println!(
        "\n  {} moves, {kept} kept their prefix, longest gap {max} ms, {:.0} s in all. The cluster is yours:\n\n    \
         export KUBECONFIG={}\n    kubectl get aero -A      (make demo-down ends it)\n",
        moves.len(),
        warm.as_secs_f64(),
        lab.kubeconfig().display()
    );
    Ok(())
}
