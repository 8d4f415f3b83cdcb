//! From samples to the results' files.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use serde_json::json;

/// One measurement.
#[derive(Debug, Clone)]
pub struct Sample {
    pub underlay: &'static str,
    pub measure: &'static str,
    pub variant: &'static str,
    pub round: usize,
    pub value: f64,
}

/// A variant's measure over all rounds.
#[derive(Debug, Clone)]
pub struct Row {
    pub underlay: &'static str,
    pub measure: &'static str,
    pub variant: &'static str,
    /// Median.
    pub value: f64,
    /// Median of the ratios to plain routing in the same round.
    pub ratio: f64,
    /// From the lower to the upper quartile of these ratios.
    pub spread: f64,
    pub rounds: usize,
}

fn quantile(sorted: &[f64], q: f64) -> f64 {
    let at = q * (sorted.len().saturating_sub(1)) as f64;
    let (low, high) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    low + (high - low) * at.fract()
}

fn sorted(values: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut all: Vec<f64> = values.collect();
    all.sort_by(f64::total_cmp);
    all
}

/// Rows in the order of the first samples.
pub fn rows(samples: &[Sample]) -> Vec<Row> {
    let mut order = Vec::new();
    let mut groups: BTreeMap<_, BTreeMap<usize, f64>> = BTreeMap::new();
    for s in samples {
        let key = (s.underlay, s.measure, s.variant);
        if !order.contains(&key) {
            order.push(key);
        }
        groups.entry(key).or_default().insert(s.round, s.value);
    }
    let row = |(underlay, measure, variant)| {
        let own = &groups[&(underlay, measure, variant)];
        // In a quick look at one variant there may be nothing to compare with.
        let plain = groups.get(&(underlay, measure, "plain"));
        let plain = |round| plain.and_then(|p| p.get(round)).copied().unwrap_or(f64::NAN);
        let ratios = sorted(own.iter().map(|(round, v)| v / plain(round)));
        Row {
            underlay,
            measure,
            variant,
            value: quantile(&sorted(own.values().copied()), 0.5),
            ratio: quantile(&ratios, 0.5),
            spread: quantile(&ratios, 0.75) - quantile(&ratios, 0.25),
            rounds: own.len(),
        }
    };
    order.into_iter().map(row).collect()
}

/// `target/results/bench.json`.
pub fn write_json(rows: &[Row]) -> anyhow::Result<()> {
    let list: Vec<_> = rows
        .iter()
        .map(|r| {
            json!({
                "underlay": r.underlay, "measure": r.measure, "variant": r.variant,
                "value": r.value, "ratio_to_plain": r.ratio, "spread": r.spread,
                "rounds": r.rounds,
            })
        })
        .collect();
    write("bench.json", &list)
}

/// Writes a result into `target/results`.
pub fn write(name: &str, what: &impl serde::Serialize) -> anyhow::Result<()> {
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("../target"),
        std::path::PathBuf::from,
    );
    let dir = target.join("results");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join(name), serde_json::to_vec_pretty(what)?)?;
    Ok(())
}

fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_string()
}

fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// The table for people.
pub fn table(rows: &[Row], rounds: usize) -> String {
    let mut text = String::from(
        "# How fast the forwarders are\n\n\
         Made by `make bench`: pod, node, node, pod in network namespaces; plain routing, the \
         kernel's VXLAN, wireguard-go (Debian's; it encrypts) and this project's forwarders take \
         turns, round by round: in user space, in eBPF with UDP tunnels, and in eBPF with IP-in-IP, \
         which agents use among themselves where probes show that it gets through. Each figure is the \
         median, in brackets its ratio to plain routing in the same round and the distance of \
         the ratio's quartiles. Only the ratios say something about another machine. Pods behind \
         this project's forwarders have the MTU that agents give them, 1452 here.\n\n\
         `super`: the underlay passes super-packets whole (veth). `wire`: they are cut at the \
         sender and merged at the receiver where the kernel knows how, as on a wire.\n\n![ratios](bench.svg)\n",
    );
    let _ = writeln!(text, "\nKernel {}, {} processors, {rounds} rounds.", kernel(), processors());
    let mut variants: Vec<&str> = Vec::new();
    let mut lines: Vec<(&str, &str)> = Vec::new();
    for r in rows {
        if !variants.contains(&r.variant) {
            variants.push(r.variant);
        }
        if !lines.contains(&(r.underlay, r.measure)) {
            lines.push((r.underlay, r.measure));
        }
    }
    let _ = write!(text, "\n| underlay | measure |");
    for v in &variants {
        let _ = write!(text, " {v} |");
    }
    let _ = write!(text, "\n| --- | --- |{}", " --- |".repeat(variants.len()));
    for (underlay, measure) in lines {
        let _ = write!(text, "\n| {underlay} | {} |", measure.replace('_', " "));
        for v in &variants {
            let found =
                rows.iter().find(|r| (r.underlay, r.measure, r.variant) == (underlay, measure, *v));
            match found {
                Some(r) => {
                    let digits = if r.value >= 1000.0 { 0 } else { 2 };
                    let _ = write!(text, " {:.digits$}", r.value);
                    if *v != "plain" {
                        let _ = write!(text, " ({:.2} ± {:.2})", r.ratio, r.spread / 2.0);
                    }
                    let _ = write!(text, " |");
                }
                None => text.push_str(" - |"),
            }
        }
    }
    text.push('\n');
    text
}
