//! Runs the controllers: one worker per kind, so that no two decide about one prefix at a time.

use std::sync::Arc;
use std::time::{Duration, Instant};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::context::Context;
use crate::queue::Queue;
use crate::{client, link, mapping, relay, routes, server};

/// How often mappings without a pod are looked at.
const COLLECT_EVERY: Duration = Duration::from_secs(2);
/// Every how many passes everything there is is looked at: once in a minute.
const FULL_PASS: u32 = 30;
/// First wait before a failed round is tried again; doubles up to [`LAST_RETRY`].
const FIRST_RETRY: Duration = Duration::from_millis(50);
/// Longest wait.
const LAST_RETRY: Duration = Duration::from_secs(5);

/// Labels of a round.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    controller: &'static str,
    result: &'static str,
}

/// Label of the times.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Controller {
    controller: &'static str,
}

/// Counts and times of rounds.
#[derive(Debug, Clone)]
pub struct Metrics {
    rounds: Family<Labels, Counter>,
    duration: Family<Controller, Histogram>,
}

impl Metrics {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let rounds = Family::<Labels, Counter>::default();
        let histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 14));
        let duration = Family::<Controller, Histogram>::new_with_constructor(histogram);
        for controller in ["client", "link", "server", "relay", "routes"] {
            for result in ["ok", "error"] {
                drop(rounds.get_or_create(&Labels { controller, result }));
            }
            drop(duration.get_or_create(&Controller { controller }));
        }
        let help = "Rounds of a controller, by controller and result";
        registry.register("aero_reconcile", help, rounds.clone());
        registry.register_with_unit(
            "aero_reconcile_duration",
            "Duration of one round, by controller",
            Unit::Seconds,
            duration.clone(),
        );
        Self { rounds, duration }
    }
}

/// Runs all controllers; ends only when it is dropped.
pub async fn all(ctx: Arc<Context>, metrics: Metrics) {
    let looks = async {
        let mut looks = mapping::Looks::default();
        for pass in 0u32.. {
            // Changes mark what they are about; this is for what nobody has thought of.
            if pass % FULL_PASS == 0 {
                ctx.mark_all();
            }
            mapping::collect(&ctx, &mut looks).await;
            tokio::time::sleep(COLLECT_EVERY).await;
        }
    };
    let m = &metrics;
    let c = &ctx;
    tokio::join!(
        worker("client", &c.client_queue, m, |key| async move { client::reconcile(c, &key).await }),
        worker("link", &c.link_queue, m, |key| async move { link::reconcile(c, &key).await }),
        worker("server", &c.server_queue, m, |key| async move { server::reconcile(c, &key).await }),
        worker("relay", &c.relay_queue, m, |key| async move { relay::reconcile(c, &key).await }),
        worker("routes", &c.routes_queue, m, |key| async move { routes::reconcile(c, &key).await }),
        looks,
    );
}

async fn worker<F, R>(controller: &'static str, queue: &Queue, metrics: &Metrics, round: F)
where
    F: Fn(String) -> R,
    R: Future<Output = anyhow::Result<()>>,
{
    let mut failures = std::collections::HashMap::<String, u32>::new();
    loop {
        let key = queue.next().await;
        let began = Instant::now();
        let outcome = round(key.clone()).await;
        let took = began.elapsed().as_secs_f64();
        metrics.duration.get_or_create(&Controller { controller }).observe(took);
        let result = if outcome.is_ok() { "ok" } else { "error" };
        metrics.rounds.get_or_create(&Labels { controller, result }).inc();
        match outcome {
            Ok(()) => {
                failures.remove(&key);
            }
            Err(e) => {
                let n = failures.entry(key.clone()).or_default();
                *n += 1;
                let wait = (FIRST_RETRY * 2u32.saturating_pow((*n - 1).min(10))).min(LAST_RETRY);
                let conflict = format!("{e:#}");
                if *n > 3 {
                    tracing::warn!(
                        controller,
                        key,
                        failures = *n,
                        "tried again in {wait:?}: {conflict}"
                    );
                } else {
                    tracing::debug!(controller, key, "tried again in {wait:?}: {conflict}");
                }
                // The wait is short and holds up only this kind; nothing of it is more urgent
                // than what has just failed.
                tokio::time::sleep(wait.min(Duration::from_millis(200))).await;
                queue.mark(key);
            }
        }
    }
}
