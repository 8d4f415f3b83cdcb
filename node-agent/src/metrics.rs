//! Metrics of agent and Server. `docs/metrics.md` lists them, held to this code by a test.

use std::sync::Arc;
use std::time::Duration;

use aero_dataplane::{ForwardingTable, Snapshot};
use aero_protocol::wire::WireError;
use aero_telemetry::debug;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

use crate::messages::Messages;

struct Forwarding(Arc<dyn ForwardingTable>);

impl std::fmt::Debug for Forwarding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Forwarding")
    }
}

/// Registers the counters of a forwarder.
pub fn register(registry: &mut Registry, table: Arc<dyn ForwardingTable>) {
    registry.register_collector(Box::new(Forwarding(table)));
}

#[derive(Debug)]
struct Shared(Arc<Messages>);

impl Collector for Shared {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        self.0.encode(encoder)
    }
}

/// Registers the counts of control messages.
pub fn register_messages(registry: &mut Registry, messages: Arc<Messages>) {
    registry.register_collector(Box::new(Shared(messages)));
}

impl Collector for Forwarding {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let c = self.0.counters();
        let plain = [
            (
                "aero_delivered_packets",
                "Packets handed to the node's network layer",
                c.delivered_packets,
            ),
            ("aero_delivered_bytes", "Bytes handed to the node's network layer", c.delivered_bytes),
            ("aero_tunneled_packets", "Packets sent into a tunnel", c.tunneled_packets),
            (
                "aero_tunneled_bytes",
                "Bytes sent into a tunnel, without encapsulation",
                c.tunneled_bytes,
            ),
            ("aero_control_packets", "Control packets received", c.control_packets),
            (
                "aero_passed_packets",
                "Packets that the kernel's forwarder left to the one in user space",
                c.passed_packets,
            ),
            (
                "aero_send_errors",
                "Packets that the device or the underlay did not take",
                c.send_errors,
            ),
            ("aero_fragmented_packets", "Packets sent in fragments", c.fragmented_packets),
            (
                "aero_reassembled_packets",
                "Packets put together from fragments of the tunnel",
                c.reassembled_packets,
            ),
            ("aero_icmp_errors", "ICMP errors sent to inner sources", c.icmp_errors),
            ("aero_path_probes", "Probes of path MTUs sent", c.path_probes),
            ("aero_underlay_errors", "ICMP errors of the underlay received", c.underlay_errors),
        ];
        for (name, help, value) in plain {
            let counter = ConstCounter::new(value);
            let metric = encoder.encode_descriptor(name, help, None, counter.metric_type())?;
            counter.encode(metric)?;
        }
        let kind = ConstCounter::new(0u64).metric_type();
        let mut family = encoder.encode_descriptor(
            "aero_dropped_packets",
            "Packets dropped, by reason",
            None,
            kind,
        )?;
        for (why, value) in c.drops {
            let labels = [("reason", why.label())];
            ConstCounter::new(value).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

/// The counters as the debug pages show them.
pub fn counters(snapshot: Snapshot) -> debug::Counters {
    debug::Counters {
        delivered_packets: snapshot.delivered_packets,
        tunneled_packets: snapshot.tunneled_packets,
        control_packets: snapshot.control_packets,
        send_errors: snapshot.send_errors,
        drops: snapshot.drops.into_iter().map(|(why, n)| (why.label().into(), n)).collect(),
    }
}

/// A gauge with one label whose values are counted when it is scraped.
pub struct Counted<F> {
    /// Name, meaning, name of the label.
    pub head: (&'static str, &'static str, &'static str),
    /// Value of the label, and the number.
    pub count: F,
}

impl<F> std::fmt::Debug for Counted<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.head.0)
    }
}

impl<F> Collector for Counted<F>
where
    F: Fn() -> Vec<(&'static str, usize)> + Send + Sync + 'static,
{
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (name, help, label) = self.head;
        let kind = ConstGauge::new(0i64).metric_type();
        let mut family = encoder.encode_descriptor(name, help, None, kind)?;
        for (value, count) in (self.count)() {
            let labels = [(label, value)];
            let count = i64::try_from(count).unwrap_or(i64::MAX);
            ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Verb {
    verb: &'static str,
    result: &'static str,
}

/// Durations of CNI requests.
#[derive(Debug, Clone)]
pub struct CniRequests(Family<Verb, Histogram>);

impl CniRequests {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Self {
        // 1 ms to 16 s: an ADD ends within eight seconds.
        let histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 15));
        let family = Family::<Verb, Histogram>::new_with_constructor(histogram);
        for verb in ["ADD", "DEL", "CHECK", "GC", "STATUS", "other"] {
            for result in ["ok", "error"] {
                drop(family.get_or_create(&Verb { verb, result }));
            }
        }
        registry.register_with_unit(
            "aero_cni_request_duration",
            "The agent's part of CNI requests, by verb and result",
            Unit::Seconds,
            family.clone(),
        );
        Self(family)
    }

    /// Takes note of a request.
    pub fn observe(&self, verb: &str, ok: bool, took: Duration) {
        let known = ["ADD", "DEL", "CHECK", "GC", "STATUS"];
        let verb = known.into_iter().find(|v| *v == verb).unwrap_or("other");
        let result = if ok { "ok" } else { "error" };
        self.0.get_or_create(&Verb { verb, result }).observe(took.as_secs_f64());
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: String,
}

/// Control packets that an engine dropped, and claims that a Server refused.
#[derive(Debug, Clone)]
pub struct Refusals {
    dropped: Family<Reason, Counter>,
    claims: Counter,
}

impl Refusals {
    /// Registers them.
    pub fn new(registry: &mut Registry) -> Self {
        let this = Self { dropped: Family::default(), claims: Counter::default() };
        use WireError as E;
        for why in [
            E::Truncated,
            E::BadLength,
            E::BadChecksum,
            E::BadHopLimit,
            E::BadAddress,
            E::BadValue,
            E::TooDeep,
            E::WouldAmplify,
            E::BadSignature,
            E::Unsupported,
        ] {
            drop(this.dropped.get_or_create(&Reason { reason: snake_case(&format!("{why:?}")) }));
        }
        registry.register(
            "aero_control_dropped_packets",
            "Control packets that were received and not followed, by reason",
            this.dropped.clone(),
        );
        registry.register(
            "aero_refused_claims",
            "Claims of prefixes that were refused: at a Server its own refusals, at an agent those \
             that it was answered",
            this.claims.clone(),
        );
        this
    }

    /// A control packet was dropped.
    pub fn dropped(&self, why: WireError) {
        let reason = snake_case(&format!("{why:?}"));
        self.dropped.get_or_create(&Reason { reason }).inc();
    }

    /// A claim was refused.
    pub fn refused(&self) {
        self.claims.inc();
    }
}

/// `BadValue` is `bad_value`.
fn snake_case(name: &str) -> String {
    let mut out = String::new();
    for c in name.chars() {
        if c.is_ascii_uppercase() && !out.is_empty() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}
