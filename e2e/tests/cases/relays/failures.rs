//! Anything dies, or loses power with its node: how long until pods, and hosts outside, reach pods
//! again, and whether all is as before afterwards. All of it goes by Servers.

use std::time::{Duration, Instant};

use aero_e2e::lab::fabric::DIRECT_PATHS;
use aero_e2e::lab::workspace;
use anyhow::{Context as _, ensure};
use serde_json::json;

use super::flows::Flows;
use super::link::{Part, SETTLED};
use super::{Backbone, Context, WITH_AGENTS};
use crate::cases::faults;

/// BGP's hold time, here and at the routers outside.
const HOLD: Duration = Duration::from_secs(3);
/// A Client whose Servers are back asks them within this time.
const ASKED: Duration = Duration::from_secs(4);
/// What a machine that does other things too may add.
const MARGIN: Duration = Duration::from_secs(5);

/// Where Servers tell of themselves.
const SERVERS_PORT: u16 = 9060;

/// What was done, and what came of it.
struct Seen {
    key: &'static str,
    what: String,
    /// The longest silence between pods of nodes that live.
    pods: Duration,
    /// The longest from hosts outside to such pods, and back.
    outside: Duration,
    bound: Duration,
    /// Until all was as before.
    settled: Duration,
}

/// Does something while every pod asks every other on another node, and hosts outside ask them
/// all. `bound` holds for each flow; what `act` gives is added to it.
fn disturb(
    backbone: &Backbone,
    nodes: &[&str],
    (key, what): (&'static str, String),
    bound: Duration,
    act: impl FnOnce() -> anyhow::Result<Duration>,
) -> anyhow::Result<Seen> {
    let pods = backbone.ends(nodes)?;
    let asking = [&pods, backbone.fabric()?.hosts()].concat();
    let flows = Flows::start(&asking, &pods)?;
    flows.wait(Instant::now(), Duration::from_secs(20)).context(what.clone())?;
    let at = Instant::now();
    let bound = bound + act()?;
    // What dies unnoticed at first is noticed in the hold time, or never.
    flows
        .wait(at + HOLD + Duration::from_secs(1), HOLD + 3 * MARGIN + bound)
        .context(what.clone())?;
    let (pods, outside) = (flows.silence(at, false), flows.silence(at, true));
    // Where nothing must be felt, it is less than if a session had run out.
    let allowed = if bound.is_zero() { HOLD / 2 } else { bound + MARGIN };
    for (silence, flow) in [&pods, &outside] {
        ensure!(*silence <= allowed, "{what}: {silence:?} of silence, {flow} ({bound:?})");
    }
    let (pods, outside) = (pods.0, outside.0);
    Ok(Seen { key, what, pods, outside, bound, settled: Duration::ZERO })
}

/// The same for processes that a kubelet starts again, and waits until all is as before.
fn killed(
    backbone: &Backbone,
    key: &'static str,
    (program, parts): (&str, &[Part]),
    bound: Duration,
) -> anyhow::Result<Seen> {
    let link = backbone.link();
    let names: Vec<&str> = parts.iter().map(|p| p.name.as_str()).collect();
    let what = format!("kill -9 of `{program}` in {}", names.join(" and "));
    let mut seen = disturb(backbone, &WITH_AGENTS, (key, what), bound, || {
        let at = Instant::now();
        let mut old = Vec::new();
        for part in parts {
            old.push(link.kill(part, program)?);
        }
        if parts.len() == 1 {
            return Ok(Duration::ZERO);
        }
        // Nothing is left to go by until one of them is there.
        for (part, old) in parts.iter().zip(old) {
            link.runs_again(part, program, old)?;
        }
        Ok(at.elapsed())
    })?;
    seen.settled = link.settled("all is as before")?;
    Ok(seen)
}

/// Power off, then what must hold while it is off, and on again.
fn off(
    backbone: &Backbone,
    key: &'static str,
    part: &Part,
    meanwhile: impl FnOnce(&[&str]) -> anyhow::Result<()>,
) -> anyhow::Result<Seen> {
    let (lab, link, fabric) = (&backbone.lab, backbone.link(), backbone.fabric()?);
    let node = part.node.as_str();
    let live: Vec<&str> = WITH_AGENTS.into_iter().filter(|n| *n != node).collect();
    let what = format!("power off of {node}, with {}", part.name);
    let mut seen = disturb(backbone, &live, (key, what), HOLD, || {
        lab.kill_node(node)?;
        Ok(Duration::ZERO)
    })?;
    meanwhile(&live)?;
    lab.restore_node(node)?;
    let began = Instant::now();
    if WITH_AGENTS.contains(&node) {
        fabric.routes_back(&link, node)?;
    }
    lab.wait_for_nodes(Duration::from_secs(150))?;
    backbone.cluster.wait_for_aero(Duration::from_secs(90))?;
    link.settled("all is as before")?;
    seen.settled = began.elapsed();
    fabric.wait_learnt(backbone, &[2, 2, 2])?;
    Ok(seen)
}

/// While a Relay's node is off: routers outside go by the other, which knows all Clients.
fn without_relay(backbone: &Backbone, relay: &Part) -> anyhow::Result<()> {
    let link = backbone.link();
    backbone.fabric()?.wait_learnt(backbone, &[1, 1, 1])?;
    let others = link.relays()?.into_iter().filter(|r| r.node != relay.node);
    for other in others {
        let (table, live) = (link.table(&other.node)?, link.live()?);
        ensure!(table == live, "{table:?} on {}, but the Clients have {live:?}", other.node);
    }
    Ok(())
}

/// While a Server's node is off: another node has its Server soon, and pods of the nodes that live
/// reach each other, and are reached.
fn without_server(backbone: &Backbone, server: &Part, live: &[&str]) -> anyhow::Result<Duration> {
    let (link, began) = (backbone.link(), Instant::now());
    link.cluster.wait_until("another node has the Server", SETTLED, || {
        let there = link.servers()?;
        Ok(there.iter().filter(|s| s.node != server.node).count() == 2)
    })?;
    let replaced = began.elapsed();
    everybody(backbone, live)?;
    Ok(replaced)
}

/// Every pod reaches every other, and hosts outside reach all.
fn everybody(backbone: &Backbone, nodes: &[&str]) -> anyhow::Result<()> {
    let pods = backbone.ends(nodes)?;
    let flows = Flows::start(&[&pods, backbone.fabric()?.hosts()].concat(), &pods)?;
    flows.wait(Instant::now(), Duration::from_secs(20))
}

/// Lets pods of these nodes ask each other ten times and more; how many packets each of the Servers
/// has forwarded meanwhile.
fn by_servers(backbone: &Backbone, nodes: &[&str]) -> anyhow::Result<Vec<(Part, u64)>> {
    let link = backbone.link();
    let counted = || -> anyhow::Result<Vec<(Part, u64)>> {
        let count = |s: Part| Ok((s.clone(), link.tunneled(&s.node, SERVERS_PORT)?));
        link.servers()?.into_iter().map(count).collect()
    };
    let pods = backbone.ends(nodes)?;
    let before = counted()?;
    let flows = Flows::start(&pods, &pods)?;
    flows.wait(Instant::now(), Duration::from_secs(20)).context("with direct paths cut")?;
    drop(flows);
    let mut more = Vec::new();
    for ((server, now), (same, then)) in counted()?.into_iter().zip(before) {
        ensure!(server == same, "{server:?} is in the place of {same:?}");
        more.push((server, now - then));
    }
    // Questions and answers.
    let asked = 2 * 10 * nodes.len() * (nodes.len() - 1);
    let forwarded: u64 = more.iter().map(|(_, n)| n).sum();
    ensure!(forwarded >= u64::try_from(asked)?, "of {asked} packets {more:?} went by the Servers");
    Ok(more)
}

/// The Server that pods of other nodes than its own go by, most of all.
fn used_by_others(backbone: &Backbone) -> anyhow::Result<Part> {
    let mut most: Option<(Part, u64)> = None;
    for server in backbone.link().servers()? {
        let others: Vec<&str> = WITH_AGENTS.into_iter().filter(|n| *n != server.node).collect();
        let counted = by_servers(backbone, &others)?;
        let own = counted.iter().find(|(s, _)| *s == server).map_or(0, |(_, n)| *n);
        if own > most.as_ref().map_or(0, |(_, n)| *n) {
            most = Some((server, own));
        }
    }
    most.map(|(server, _)| server).context("no pod goes by the Server of another node")
}

pub fn run(context: &Context) -> anyhow::Result<()> {
    let backbone = context.backbone()?;
    let (fabric, link) = (backbone.fabric()?, backbone.link());
    link.settled("all is well before")?;
    // Pods that talk straight to each other would feel nothing of it: they go by the Servers.
    let cut = backbone.lab.drop_in_fabric(DIRECT_PATHS)?;
    by_servers(backbone, &WITH_AGENTS)?;
    let mut all = Vec::new();
    let mut keep = |seen: Seen| {
        context.note(seen.line());
        all.push(seen);
    };
    // A kubelet waits ten seconds before it starts a container for the second time; both first.
    keep(killed(backbone, "both_servers", ("server", &link.servers()?), ASKED)?);
    let server = link.used_server()?;
    keep(killed(backbone, "server", ("server", std::slice::from_ref(&server)), HOLD)?);
    let relay = link.relays()?.into_iter().next().context("no Relay")?;
    keep(killed(backbone, "relay", ("relay", &[relay]), HOLD)?);
    // Their routes stay for longer than it takes to start them.
    keep(killed(backbone, "bird_of_server", ("bird", &[server]), Duration::ZERO)?);
    let relay = link.relays()?.into_iter().next_back().context("no Relay")?;
    let one = ("bird", std::slice::from_ref(&relay));
    keep(killed(backbone, "bird_of_relay", one, Duration::ZERO)?);
    keep(off(backbone, "power_of_relay", &relay, |_| without_relay(backbone, &relay))?);
    let server = used_by_others(backbone)?;
    let mut replaced = Duration::ZERO;
    keep(off(backbone, "power_of_server", &server, |live| {
        replaced = without_server(backbone, &server, live)?;
        Ok(())
    })?);
    context.note(format!("another node has had its Server after {replaced:.1?} more"));
    everybody(backbone, &WITH_AGENTS).context("after all of it")?;
    ensure!(cut.dropped()? > 0, "there was nothing to cut");
    drop(cut);
    fabric.only_ours(backbone)?;
    backbone.observer.check()?;
    told(&all)
}

impl Seen {
    fn line(&self) -> String {
        let bound = if self.bound.is_zero() {
            "none but the machine's".into()
        } else {
            format!("{:.1?} and the machine's", self.bound)
        };
        format!(
            "{}: silent for {:.1?} between pods, {:.1?} from outside (bound: {bound}); all as before \
             {:.1?} later",
            self.what, self.pods, self.outside, self.settled
        )
    }
}

/// Keeps what was measured, beside what must hold, for `make bench-relays`, and claims it.
fn told(all: &[Seen]) -> anyhow::Result<()> {
    let mut figures = serde_json::Map::new();
    for seen in all {
        figures.insert(
            seen.key.into(),
            json!({
                "pods_ms": seen.pods.as_millis(), "outside_ms": seen.outside.as_millis(),
                "bound_ms": seen.bound.as_millis(), "settled_ms": seen.settled.as_millis(),
            }),
        );
    }
    let dir = workspace().join("target/results");
    std::fs::create_dir_all(&dir)?;
    std::fs::write(dir.join("relays-lab.json"), serde_json::to_vec_pretty(&figures)?)?;
    let of = |key: &str| {
        let seen = all.iter().find(|s| s.key == key);
        seen.map_or(0.0, |s| s.outside.max(s.pods).as_secs_f64())
    };
    let test = "whatever_dies_of_servers_and_relays_pods_are_reached_again_within_the_bound_and_all_is_as_before";
    let figure = format!(
        "killed: {:.1} s of silence at most, its node without power: {:.1} s (hold time 3 s)",
        of("relay"),
        of("power_of_relay")
    );
    faults::shown(test, &["A2"], figure);
    Ok(())
}
