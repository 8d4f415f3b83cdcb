//! Direct paths: what the forwarder tells the engine about them, and what people are told.

use std::sync::Arc;
use std::time::{Duration, Instant};

use aero_dataplane::underlay::{Trouble, UnderlayError};
use aero_dataplane::{ForwardingTable, Trigger};
use aero_protocol::client::{Event, Ignored, Node, PathLost};
use aero_protocol::neighbor::State;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::driver::Driver;
use crate::sparing;

/// How often the forwarder is asked which paths are in use.
const ASK_EVERY: Duration = Duration::from_millis(200);

/// Tells the engine of packets that went by a Server and of paths that are in use, until the
/// future is dropped.
pub async fn watch(
    driver: &Driver<Node>,
    table: &dyn ForwardingTable,
    mut triggers: mpsc::Receiver<Trigger>,
) {
    let mut ask = tokio::time::interval(ASK_EVERY);
    ask.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ask.tick() => {
                let used = table.take_used();
                if !used.is_empty() {
                    driver.with(|node, now| {
                        for (own, peer) in used {
                            node.path_used(own, peer, now);
                        }
                    });
                }
            }
            Some(Trigger { inner, packet }) = triggers.recv() => {
                driver.with(|node, now| node.data_packet_by_server(inner, &packet, now));
            }
        }
    }
}

/// Errors of the underlay that wait for the engine at most; what does not fit is as good as lost.
const ERRORS: usize = 64;

/// The forwarder's and the engine's end of what the underlay reports.
pub fn underlay_errors() -> (mpsc::Sender<UnderlayError>, mpsc::Receiver<UnderlayError>) {
    mpsc::channel(ERRORS)
}

/// Tells the engine where the underlay says that packets do not arrive, until the future is dropped.
pub async fn heed(driver: &Driver<Node>, mut errors: mpsc::Receiver<UnderlayError>) {
    while let Some(UnderlayError { neighbor, trouble }) = errors.recv().await {
        if matches!(trouble, Trouble::Unreachable | Trouble::TimeExceeded) {
            tracing::debug!(%neighbor, ?trouble, "the underlay reports an error");
            driver.with(|node, now| node.underlay_error(neighbor, now));
        }
    }
    std::future::pending::<()>().await;
}

/// Gives the engine the time of day, for Timestamps.
pub fn set_clock(node: &mut Node, now: Instant) {
    let since_1970 = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    node.set_clock(now, since_1970.unwrap_or_default());
}

/// Logs an event about direct paths; gives back any other.
pub fn report(event: Event) -> Option<Event> {
    match event {
        Event::PathOpened { own, peer, to } => {
            tracing::info!(%own, %peer, %to, "a direct path is open");
        }
        Event::PathLost { own, peer, why: PathLost::Unreachable } => {
            if let Some(left_out) = sparing::may_warn("dead path") {
                tracing::warn!(%own, %peer, left_out, "the direct path is dead: by a Server again");
            }
        }
        Event::PathLost { own, peer, why } => {
            tracing::info!(%own, %peer, ?why, "a direct path ended");
        }
        Event::Ignored { from, why } => tracing::debug!(%from, ?why, "a message was ignored"),
        other => return Some(other),
    }
    None
}

/// The correspondents of this node's Clients, for people.
pub fn list(driver: &Driver<Node>) -> Value {
    driver.with(|node, now| {
        let seconds = |until: Option<Instant>| {
            until.map_or(0, |t| t.saturating_duration_since(now).as_secs())
        };
        let all = node.correspondents().map(|n| {
            json!({
                "own": n.own.to_string(),
                "peer": n.peer.to_string(),
                "state": n.state(now).label(),
                "linkLayer": n.link_layer().map(|l2| l2.to_string()),
                "acceptSeconds": seconds(n.accept_until()),
                "forwardSeconds": seconds(n.forward_until()),
            })
        });
        Value::Array(all.collect())
    })
}

/// Registers the numbers of correspondents by state, and of paths that were opened and lost.
pub fn register(registry: &mut Registry, driver: Arc<Driver<Node>>) {
    registry.register_collector(Box::new(Paths(driver)));
}

struct Paths(Arc<Driver<Node>>);

impl std::fmt::Debug for Paths {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Paths")
    }
}

impl Collector for Paths {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (states, counts) = self.0.with(|node, now| {
            let of = |state| node.correspondents().filter(|n| n.state(now) == state).count();
            (State::ALL.map(|s| (s.label(), of(s))), node.path_counts().clone())
        });
        let kind = ConstGauge::new(0i64).metric_type();
        let mut family = encoder.encode_descriptor(
            "aero_correspondents",
            "Dynamic neighbour cache entries, by state",
            None,
            kind,
        )?;
        for (state, n) in states {
            let value = i64::try_from(n).unwrap_or(i64::MAX);
            let labels = [("state", state)];
            ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
        }
        let opened = ConstCounter::new(counts.opened);
        let help = "Direct paths opened";
        let metric =
            encoder.encode_descriptor("aero_paths_opened", help, None, opened.metric_type())?;
        opened.encode(metric)?;
        let kind = ConstCounter::new(0u64).metric_type();
        let help = "Direct paths that ended, by reason";
        let mut family = encoder.encode_descriptor("aero_paths_ended", help, None, kind)?;
        for why in PathLost::ALL {
            let value = counts.lost.get(&why).copied().unwrap_or(0);
            let labels = [("reason", why.label())];
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        let help = "Messages about direct paths that were not acted upon, by reason";
        let mut family = encoder.encode_descriptor("aero_ignored_messages", help, None, kind)?;
        for why in Ignored::ALL {
            let value = counts.ignored.get(&why).copied().unwrap_or(0);
            let labels = [("reason", why.label())];
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
