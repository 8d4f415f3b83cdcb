//! What the operator's caches say, counted when it is scraped.

use std::sync::{Arc, OnceLock};

use aero_crds::{AcpMapping, AeroClient, AeroLink};
use kube::ResourceExt;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::context::Context;

/// The caches, once this operator leads and has them.
#[derive(Clone, Default)]
pub struct Caches(Arc<OnceLock<Arc<Context>>>);

impl Caches {
    /// Registers what is counted from the caches.
    pub fn register(registry: &mut Registry) -> Self {
        let this = Self::default();
        registry.register_collector(Box::new(this.clone()));
        this
    }

    /// Here they are.
    pub fn are(&self, ctx: &Arc<Context>) {
        // Set once, when leading begins.
        let _ = self.0.set(Arc::clone(ctx));
    }
}

impl std::fmt::Debug for Caches {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Caches")
    }
}

impl Collector for Caches {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let Some(ctx) = self.0.get() else {
            return encode(encoder, false, &[], &[], &[]);
        };
        encode(encoder, true, &ctx.links.state(), &ctx.mappings.state(), &ctx.clients.state())
    }
}

fn encode(
    mut encoder: DescriptorEncoder<'_>,
    leads: bool,
    links: &[Arc<AeroLink>],
    mappings: &[Arc<AcpMapping>],
    clients: &[Arc<AeroClient>],
) -> Result<(), std::fmt::Error> {
    let gauge = ConstGauge::new(0i64).metric_type();
    let help = "1 at the operator that leads, 0 at those that stand by";
    let leader = encoder.encode_descriptor("aero_leader", help, None, gauge)?;
    ConstGauge::new(i64::from(leads)).encode(leader)?;
    let pools: Vec<_> = links
        .iter()
        .flat_map(|l| {
            let pools = l.status.as_ref().map(|s| s.pools.clone()).unwrap_or_default();
            pools.into_iter().map(|p| (l.name_any(), p))
        })
        .collect();
    type Of = fn(&aero_crds::PoolStatus) -> i64;
    let counts: [(&str, &str, Of); 3] = [
        ("aero_acp_bound", "Prefixes that clients have, by link and pool", |p| p.in_use),
        ("aero_acp_cooling", "Prefixes that were given up and cool, by link and pool", |p| {
            p.cooling
        }),
        ("aero_acp_free", "Prefixes that can be given, by link and pool", |p| p.free),
    ];
    for (name, help, of) in counts {
        let mut family = encoder.encode_descriptor(name, help, None, gauge)?;
        for (link, pool) in &pools {
            let labels = [("link", link.as_str()), ("pool", pool.prefix.as_str())];
            ConstGauge::new(of(pool)).encode(family.encode_family(&labels)?)?;
        }
    }
    let help = "Prefixes that a pod holds now, by link";
    let mut family = encoder.encode_descriptor("aero_acp_held", help, None, gauge)?;
    for link in links {
        let name = link.name_any();
        let held = |m: &&Arc<AcpMapping>| m.spec.link_ref.name == name && m.spec.holder.is_some();
        let count = i64::try_from(mappings.iter().filter(held).count()).unwrap_or(i64::MAX);
        ConstGauge::new(count).encode(family.encode_family(&[("link", name.as_str())])?)?;
    }
    let counter = ConstCounter::new(0u64).metric_type();
    let help = "How often prefixes moved to another pod, by AeroClient";
    let mut family = encoder.encode_descriptor("aero_moves", help, None, counter)?;
    for client in clients {
        let moves = client.status.as_ref().map_or(0, |s| s.moves);
        let (namespace, name) = (client.namespace().unwrap_or_default(), client.name_any());
        let labels = [("namespace", namespace.as_str()), ("client", name.as_str())];
        let counter = ConstCounter::new(u64::try_from(moves).unwrap_or(0));
        counter.encode(family.encode_family(&labels)?)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run;
    use serde_json::json;

    #[derive(Debug)]
    struct Example;

    impl Collector for Example {
        fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
            let link = json!({
                "apiVersion": "aerolink.dev/v1alpha1", "kind": "AeroLink",
                "metadata": {"name": "default"}, "spec": {},
                "status": {"pools": [{"prefix": "2001:db8:a::/48", "clientPrefixLength": 64,
                    "inUse": 3, "cooling": 1, "free": 65532}]},
            });
            let client = json!({
                "apiVersion": "aerolink.dev/v1alpha1", "kind": "AeroClient",
                "metadata": {"name": "web", "namespace": "default"},
                "spec": {"podSelector": {}}, "status": {"moves": 7},
            });
            let mapping = json!({
                "apiVersion": "aerolink.dev/v1alpha1", "kind": "AcpMapping",
                "metadata": {"name": "2001-db8-a-0-64"},
                "spec": {"prefix": "2001:db8:a::/64", "linkRef": {"name": "default"},
                    "clientId": "x", "clientRef": {"namespace": "default", "name": "web"},
                    "identity": "web-0", "epoch": 1,
                    "holder": {"podName": "web-0", "podUid": "u", "node": "n1"}},
            });
            let links = [Arc::new(serde_json::from_value(link).unwrap())];
            let mappings = [Arc::new(serde_json::from_value(mapping).unwrap())];
            let clients = [Arc::new(serde_json::from_value(client).unwrap())];
            super::encode(encoder, true, &links, &mappings, &clients)
        }
    }

    #[test]
    fn prefixes_are_counted_by_pool_and_moves_by_client() {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(Example));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "aero_acp_bound{link=\"default\",pool=\"2001:db8:a::/48\"} 3",
            "aero_acp_cooling{link=\"default\",pool=\"2001:db8:a::/48\"} 1",
            "aero_acp_free{link=\"default\",pool=\"2001:db8:a::/48\"} 65532",
            "aero_acp_held{link=\"default\"} 1",
            "aero_moves_total{namespace=\"default\",client=\"web\"} 7",
            "aero_leader 1",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is not in\n{text}");
        }
    }

    #[test]
    fn every_metric_of_the_operator_is_documented() {
        let mut registry = Registry::default();
        let _rounds = run::Metrics::new(&mut registry);
        registry.register_collector(Box::new(Example));
        let readiness = aero_telemetry::admin::Readiness::default();
        let _known = readiness.register("api");
        aero_telemetry::admin::register(&mut registry, &readiness);
        let document = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/metrics.md");
        aero_telemetry::catalog::hold(document.as_ref(), "operator", &registry).unwrap();
    }
}
