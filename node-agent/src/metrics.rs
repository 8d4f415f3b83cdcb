//! Metrics of the data plane.

use std::sync::Arc;

use aero_dataplane::ForwardingTable;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;

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

impl Collector for Forwarding {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let c = self.0.counters();
        let plain = [
            (
                "aero_delivered_packets",
                "Packets handed to the node's network layer",
                c.delivered_packets,
            ),
            ("aero_delivered_bytes", "Their bytes", c.delivered_bytes),
            ("aero_tunneled_packets", "Packets sent into a tunnel", c.tunneled_packets),
            ("aero_tunneled_bytes", "Their bytes without encapsulation", c.tunneled_bytes),
            ("aero_control_packets", "Control packets received", c.control_packets),
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
