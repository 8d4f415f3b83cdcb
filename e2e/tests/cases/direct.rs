//! Direct paths between nodes: that there are any, that their loss costs little, that they follow
//! moves.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aero_e2e::lab::fabric;
use aero_e2e::scenario::{micros, moves, talk};
use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::{Context, Shared};

/// Three unanswered solicitations, a second apart.
const NUD: Duration = Duration::from_secs(3);
/// How long IP-in-IP is relied on without an answer to a probe.
const PROVEN: Duration = Duration::from_secs(1);
/// What a loaded machine may add to it.
const SLACK: Duration = Duration::from_secs(2);
/// Longest time between attempts on a path that was dead, and the exchange.
const BACK: Duration = Duration::from_secs(30);
/// A correspondent asks two pods a hundred times a second each, and there are three of them.
const BUSY: u64 = 200;
/// What may go by the Servers meanwhile: replies of the kubelet's probes and the like.
const STILL: u64 = 10;

/// Packets that the Servers have forwarded so far.
fn by_servers(shared: &Shared) -> anyhow::Result<BTreeMap<String, u64>> {
    let nodes = shared.server_nodes();
    ensure!(!nodes.is_empty(), "there is no Server");
    let mut all = BTreeMap::new();
    for node in nodes {
        let url = "http://127.0.0.1:9060/metrics";
        let text = shared.lab().run(&node, &["curl", "-s", "-m", "3", url])?;
        let value = text.lines().find_map(|l| l.strip_prefix("aero_tunneled_packets_total "));
        let value = value.and_then(|v| v.parse().ok());
        all.insert(node, value.with_context(|| format!("no counter in {text}"))?);
    }
    Ok(all)
}

/// Packets that the Servers forward within a second, and answers that all correspondents have in
/// it.
fn second(shared: &Shared) -> anyhow::Result<(u64, usize)> {
    let (began, before) = (micros(), by_servers(shared)?);
    std::thread::sleep(Duration::from_secs(1));
    let after = by_servers(shared)?;
    ensure!(before.keys().eq(after.keys()), "the Servers changed: {before:?}, {after:?}");
    let forwarded = after.iter().map(|(n, v)| v - before[n]).sum();
    let answers = talk::answers(&shared.cluster, &shared.observer, began, &[])?;
    Ok((forwarded, answers.iter().map(|(_, list)| list.len()).sum()))
}

/// Waits for a second in which pods talk and the Servers' counters stand still.
fn wait_for_direct(shared: &Shared, within: Duration) -> anyhow::Result<Duration> {
    let began = Instant::now();
    loop {
        let (forwarded, answers) = second(shared)?;
        if forwarded <= STILL && answers >= usize::try_from(BUSY)? {
            return Ok(began.elapsed());
        }
        ensure!(
            began.elapsed() < within,
            "after {within:?} Servers still forward {forwarded} packets a second, with {answers} answers; {}",
            paths(shared)?
        );
    }
}

/// The paths of all agents, for the text of a failure.
fn paths(shared: &Shared) -> anyhow::Result<String> {
    let mut text = String::new();
    for node in shared.lab().nodes() {
        let url = "http://127.0.0.1:9061/debug/correspondents";
        let list = shared.lab().run(&node, &["curl", "-s", "-m", "3", url])?;
        let list: Vec<Value> = serde_json::from_str(&list)?;
        text += &format!("{node}:");
        for p in list {
            text += &format!(" {} -> {} {}", p["own"], p["peer"], p["state"]);
        }
        text += "\n";
    }
    Ok(text)
}

/// The longest time in which a correspondent had no answer of a pod.
fn longest_silence(shared: &Shared, since: u64) -> anyhow::Result<Duration> {
    let now = micros();
    let mut longest = 0;
    let all = talk::answers(&shared.cluster, &shared.observer, since - 1_000_000, &[])?;
    for (_, list) in all {
        for target in ["web-0", "web-1"] {
            longest = longest.max(talk::longest_silence(&list, target, since, now));
        }
    }
    Ok(Duration::from_micros(longest))
}

pub fn counters_stand_still(context: &Context) -> anyhow::Result<()> {
    let shared = context.shared()?;
    let after = wait_for_direct(shared, BACK)?;
    let (before, began) = (by_servers(shared)?, micros());
    std::thread::sleep(Duration::from_secs(3));
    let after_three = by_servers(shared)?;
    let forwarded: u64 = after_three.iter().map(|(n, v)| v - before[n]).sum();
    let all = talk::answers(&shared.cluster, &shared.observer, began, &[])?;
    let answers: usize = all.iter().map(|(_, list)| list.len()).sum();
    ensure!(
        forwarded <= 3 * STILL,
        "{forwarded} packets went by Servers in 3 s: {}",
        paths(shared)?
    );
    ensure!(answers >= usize::try_from(3 * BUSY)?, "only {answers} answers in 3 s");
    ensure!(paths(shared)?.contains("\"direct\""), "{}", paths(shared)?);
    shared.cluster.wait_until("tunnels between agents have no UDP", BACK, || {
        let mut all = true;
        for node in shared.lab().nodes() {
            let url = "http://127.0.0.1:9061/debug/node";
            let page = shared.lab().run(&node, &["curl", "-s", "-m", "3", url])?;
            let page: Value = serde_json::from_str(&page)?;
            let list = page["neighbors"].as_array().context("no neighbours in the report")?;
            all &= list.iter().any(|n| n["ipInIp"] == true);
        }
        Ok(all)
    })?;
    context.note(format!(
        "direct paths: {answers} answers in 3 s, of which Servers forwarded {forwarded} packets; found direct after {} ms",
        after.as_millis()
    ));
    Ok(())
}

/// The underlay stops carrying IP-in-IP, and carries UDP.
pub fn without_ip_in_ip(context: &Context) -> anyhow::Result<()> {
    let shared = context.shared()?;
    wait_for_direct(shared, BACK)?;
    let began = micros();
    let fault = shared.lab().drop_in_fabric(fabric::IP_IN_IP)?;
    std::thread::sleep(2 * SLACK);
    let silence = longest_silence(shared, began)?;
    ensure!(fault.dropped()? > 0, "there was no IP-in-IP to drop");
    ensure!(
        silence <= PROVEN + SLACK,
        "{} ms without an answer: {}",
        silence.as_millis(),
        paths(shared)?
    );
    drop(fault);
    wait_for_direct(shared, BACK)?;
    context.note(format!("IP-in-IP dropped: silent for {} ms at most", silence.as_millis()));
    Ok(())
}

pub fn cut(context: &Context) -> anyhow::Result<()> {
    let shared = context.shared()?;
    wait_for_direct(shared, BACK)?;
    let began = micros();
    let fault = shared.lab().drop_in_fabric(fabric::DIRECT_PATHS)?;
    let before = by_servers(shared)?;
    shared.cluster.wait_until("Servers forward again", NUD + SLACK + SLACK, || {
        let now = by_servers(shared)?;
        Ok(now.iter().map(|(n, v)| v - before[n]).sum::<u64>() > BUSY)
    })?;
    std::thread::sleep(NUD + SLACK);
    ensure!(fault.dropped()? > 0, "nothing was cut");
    let silence = longest_silence(shared, began)?;
    ensure!(
        silence <= NUD + SLACK,
        "{} ms without an answer: {}",
        silence.as_millis(),
        paths(shared)?
    );
    drop(fault);
    let lifted = micros();
    let back = wait_for_direct(shared, BACK)?;
    let coming_back = longest_silence(shared, lifted)?;
    ensure!(
        coming_back <= SLACK,
        "{} ms without an answer on the way back",
        coming_back.as_millis()
    );
    context.note(format!(
        "direct paths cut: silent for {} ms at most, direct again {} ms after the cut was lifted, silent for {} ms at most meanwhile",
        silence.as_millis(),
        back.as_millis(),
        coming_back.as_millis()
    ));
    Ok(())
}

pub fn move_without_advertisements(context: &Context) -> anyhow::Result<()> {
    let shared = context.shared()?;
    wait_for_direct(shared, BACK)?;
    let old = shared.observer.wait("web-0 is ready", Duration::from_secs(30), |s| {
        s.pod("default/web-0").filter(|p| p.ready_at.is_some()).cloned()
    })?;
    let fault = shared.lab().drop_in_fabric(fabric::ADVERTISEMENTS_OF_MOVES)?;
    let began = micros();
    let cordoned = old.node.clone();
    shared.cluster.kubectl(&["cordon", &cordoned])?;
    let outcome = (|| {
        shared.cluster.kubectl(&["delete", "pod", "web-0"])?;
        moves::follow(&shared.cluster, &shared.observer, "delete", &[old], began, &[])
    })();
    shared.cluster.kubectl(&["uncordon", &cordoned])?;
    let moves = outcome?;
    ensure!(fault.dropped()? > 0, "no advertisement was dropped");
    for m in &moves {
        ensure!(m.kept() && m.from != m.to, "{m:?}");
        ensure!(u128::from(m.gap_ms) <= NUD.as_millis(), "{m:?}");
        context.note(format!(
            "move with {} advertisements dropped: {} -> {}, first answer {} ms after Ready, silent for {} ms in all",
            fault.dropped()?, m.from, m.to, m.gap_ms, m.outage_ms
        ));
    }
    drop(fault);
    wait_for_direct(shared, BACK)?;
    Ok(())
}
