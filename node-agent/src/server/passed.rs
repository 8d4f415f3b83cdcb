//! Metrics of what Clients tell each other by a Server.

use std::sync::Arc;

use aero_protocol::server::Server;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::registry::Registry;

use crate::driver::Driver;

/// Registers the numbers of messages that were passed on, and of those that were not.
pub(super) fn register(registry: &mut Registry, driver: Arc<Driver<Server>>) {
    registry.register_collector(Box::new(Passed(driver)));
}

struct Passed(Arc<Driver<Server>>);

impl std::fmt::Debug for Passed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Passed")
    }
}

impl Collector for Passed {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let (passed, refused) =
            self.0.with(|server, _| (server.passed(), server.not_passed().collect::<Vec<_>>()));
        let passed = ConstCounter::new(passed);
        let help = "Neighbor Discovery messages between Clients that were passed on";
        let kind = passed.metric_type();
        passed.encode(encoder.encode_descriptor("aero_passed_messages", help, None, kind)?)?;
        let help = "Neighbor Discovery messages between Clients that were dropped, by reason";
        let mut family = encoder.encode_descriptor("aero_not_passed_messages", help, None, kind)?;
        for (why, n) in refused {
            let labels = [("reason", why.label())];
            ConstCounter::new(n).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
