//! A move as whoever collects spans gets it.
//!
//! Alone in its process: a place in the code that one thread reaches first without a subscriber is
//! silent for all threads, so beside other tests of moves this one would fail now and then.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use aero_node_agent::server::moves::Moves;
use aero_protocol::address::{Epoch, LinkLayerAddress};
use ipnet::IpNet;
use prometheus_client::registry::Registry;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// Keeps the fields of every span.
#[derive(Clone, Default)]
struct Spans(Arc<Mutex<Vec<BTreeMap<String, String>>>>);

struct Fields(BTreeMap<String, String>);

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        let text = format!("{value:?}").trim_matches('"').to_string();
        self.0.insert(field.name().to_string(), text);
    }
}

impl Subscriber for Spans {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_span()
    }

    fn new_span(&self, span: &Attributes<'_>) -> Id {
        let mut fields =
            Fields(BTreeMap::from([("span".to_string(), span.metadata().name().to_string())]));
        span.record(&mut fields);
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(fields.0);
        Id::from_u64(all.len() as u64)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, _: &Event<'_>) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn every_move_is_one_span_that_says_whose_from_where_to_where_and_how_long() {
    let spans = Spans::default();
    tracing::subscriber::with_default(spans.clone(), || {
        let l2 = |n: u8| LinkLayerAddress::new([192, 0, 2, n].into(), 8061);
        let moves = Moves::new(&mut Registry::default());
        let prefix: IpNet = "2001:db8:a:1::/64".parse().unwrap();
        let start = Instant::now();
        moves.identify(prefix, "default/web/web-0".into());
        moves.associated(prefix, l2(1), Epoch(1), start);
        moves.ended(prefix, start);
        // The same holder again.
        moves.associated(prefix, l2(1), Epoch(1), start);
        moves.ended(prefix, start);
        moves.associated(prefix, l2(3), Epoch(2), start + Duration::from_millis(250));
        moves.associated(prefix, l2(2), Epoch(3), start + Duration::from_secs(1));
    });
    let spans = spans.0.lock().unwrap();
    assert_eq!(spans.len(), 2, "{spans:?}");
    let first: Vec<(&str, &str)> = spans[0].iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(
        first,
        [
            ("client", "default/web/web-0"),
            ("epoch", "2"),
            ("from", "192.0.2.1:8061"),
            ("gap_ms", "250"),
            ("prefix", "2001:db8:a:1::/64"),
            ("span", "move"),
            ("to", "192.0.2.3:8061"),
        ]
    );
    assert_eq!(spans[1]["gap_ms"], "0");
}
