//! The admin port: `/healthz`, `/readyz`, `/metrics`, and `/debug/...` for whom the port is local.
//!
//! What is under `/debug` names pods and prefixes and may send probes, so it answers only callers
//! on the loopback: root on the node, and whoever Kubernetes lets forward a port into the pod.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context;
use axum::Router;
use axum::extract::{ConnectInfo, Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;
use tokio_util::sync::CancellationToken;

/// What readiness depends on, by name: `None` is fine, `Some(reason)` is not.
#[derive(Debug, Clone, Default)]
pub struct Readiness(Arc<Mutex<BTreeMap<&'static str, Option<String>>>>);

impl Readiness {
    /// Adds a condition, which does not hold yet.
    pub fn register(&self, name: &'static str) -> ReadyHandle {
        let handle = ReadyHandle { name, all: self.clone() };
        handle.not_ready("not yet known");
        handle
    }

    /// All conditions, and whether each holds.
    fn all(&self) -> Vec<(&'static str, bool)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().map(|(name, why)| (*name, why.is_none())).collect()
    }

    /// The conditions that do not hold, with their reasons. Empty: ready.
    pub fn missing(&self) -> Vec<(&'static str, String)> {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter().filter_map(|(name, why)| Some((*name, why.clone()?))).collect()
    }

    fn set(&self, name: &'static str, why: Option<String>) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let old = all.insert(name, why.clone());
        if old != Some(why.clone()) {
            match why {
                None => tracing::info!(condition = name, "ready"),
                Some(why) => tracing::info!(condition = name, %why, "not ready"),
            }
        }
    }
}

/// One condition of readiness.
#[derive(Debug, Clone)]
pub struct ReadyHandle {
    name: &'static str,
    all: Readiness,
}

impl ReadyHandle {
    /// The condition holds.
    pub fn ready(&self) {
        self.all.set(self.name, None);
    }

    /// It does not.
    pub fn not_ready(&self, why: impl Into<String>) {
        self.all.set(self.name, Some(why.into()));
    }
}

impl Collector for Readiness {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let kind = ConstGauge::new(0i64).metric_type();
        let help = "1 while a condition of readiness holds, by condition";
        let mut family = encoder.encode_descriptor("aero_ready", help, None, kind)?;
        for (condition, holds) in self.all() {
            let labels = [("condition", condition)];
            ConstGauge::new(i64::from(holds)).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// Registers what every program has: its version and its readiness. [`serve`] does it too.
pub fn register(registry: &mut Registry, readiness: &Readiness) {
    let version = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("aero_build", "Version of the program", version);
    registry.register_collector(Box::new(readiness.clone()));
}

#[derive(Clone)]
struct Shared {
    readiness: Readiness,
    registry: Arc<Registry>,
}

/// Serves the admin port until `token` is cancelled. `extra` adds routes for local callers.
///
/// # Errors
/// If the address cannot be bound.
pub async fn serve(
    address: SocketAddr,
    readiness: Readiness,
    mut registry: Registry,
    extra: Router,
    token: CancellationToken,
) -> anyhow::Result<()> {
    register(&mut registry, &readiness);
    let shared = Shared { readiness, registry: Arc::new(registry) };
    let app = Router::new()
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(shared)
        .merge(extra.layer(middleware::from_fn(local_only)));
    let listener = tokio::net::TcpListener::bind(address)
        .await
        .with_context(|| format!("the admin port {address} cannot be bound (--admin moves it)"))?;
    let app = app.into_make_service_with_connect_info::<SocketAddr>();
    axum::serve(listener, app).with_graceful_shutdown(token.cancelled_owned()).await?;
    Ok(())
}

async fn local_only(
    ConnectInfo(from): ConnectInfo<SocketAddr>,
    request: Request,
    next: Next,
) -> Response {
    if from.ip().to_canonical().is_loopback() {
        return next.run(request).await;
    }
    let text = "for callers on this node only; kubectl port-forward leads here\n";
    (StatusCode::FORBIDDEN, text).into_response()
}

async fn readyz(State(shared): State<Shared>) -> impl IntoResponse {
    let missing = shared.readiness.missing();
    if missing.is_empty() {
        return (StatusCode::OK, "ok\n".to_string());
    }
    let mut text = String::new();
    for (name, why) in missing {
        let _ = writeln!(text, "{name}: {why}");
    }
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

async fn metrics(State(shared): State<Shared>) -> impl IntoResponse {
    let mut text = String::new();
    if prometheus_client::encoding::text::encode(&mut text, &shared.registry).is_err() {
        return (StatusCode::INTERNAL_SERVER_ERROR, [(header::CONTENT_TYPE, "text/plain")], text);
    }
    let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
    (StatusCode::OK, [(header::CONTENT_TYPE, kind)], text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_when_every_registered_condition_holds() {
        let readiness = Readiness::default();
        assert!(readiness.missing().is_empty());
        let caches = readiness.register("caches");
        let lease = readiness.register("lease");
        assert_eq!(readiness.missing().len(), 2);
        caches.ready();
        lease.not_ready("held by another");
        assert_eq!(readiness.missing(), [("lease", "held by another".to_string())]);
        lease.ready();
        assert!(readiness.missing().is_empty());
    }
}
