//! The deprecated model: this Server relays to a central DHCPv6 server (`--relay-to`).
//!
//! `protocol/src/relay_agent` says what that means and why the default is another one.

use std::net::{Ipv6Addr, SocketAddr, SocketAddrV6};
use std::sync::Arc;

use aero_dataplane::ForwardingTable;
use aero_dataplane::underlay::Underlay;
use aero_dataplane::userspace::Forwarder;
use aero_protocol::address::ServerId;
use aero_protocol::relay_agent::{Config, Event, RelayAgent};
use aero_telemetry::admin::{self, Readiness};
use aero_telemetry::shutdown;
use anyhow::Context as _;
use axum::routing::get;
use axum::{Json, Router};
use prometheus_client::registry::Registry;
use serde_json::{Value, json};
use tokio::net::UdpSocket;
use tokio::sync::mpsc;

use super::{CONTROL_QUEUE, ServerArgs};
use crate::driver::Driver;
use crate::metrics;
use crate::sparing;

/// UDP port of relay agents and of servers (RFC 8415 section 7.2).
const PORT: u16 = 547;
/// Longest message of the central server that is looked at.
const MESSAGE: usize = 9000;

/// The central server's address as given: with or without a port.
pub(super) fn parse_address(text: &str) -> Result<SocketAddrV6, String> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<Ipv6Addr>() {
        return Ok(SocketAddrV6::new(ip, PORT, 0, 0));
    }
    text.parse().map_err(|_| "one IPv6 address, with a port if it is not 547".to_string())
}

/// Runs the relaying Server until SIGTERM.
pub(super) async fn run(args: &ServerArgs, central: SocketAddrV6) -> anyhow::Result<()> {
    let token = shutdown::token()?;
    let first = *args.host_ips.first().context("HOST_IPS is empty")?;
    let underlay = Arc::new(Underlay::bind(&args.host_ips, args.port)?);
    // Connected: what others send to this port does not come in.
    let any = SocketAddr::from((Ipv6Addr::UNSPECIFIED, PORT));
    let server = UdpSocket::bind(any).await.with_context(|| format!("UDP {any}"))?;
    server.connect(central).await.with_context(|| format!("the central server {central}"))?;
    let (control_sender, control) = mpsc::channel(CONTROL_QUEUE);
    let forwarder = Forwarder::new(Arc::clone(&underlay), None, control_sender);
    let id = ServerId::from_underlay(first);
    let engine = RelayAgent::new(Config { id, link_address: args.relay_link_address });
    let table: Arc<dyn ForwardingTable> = forwarder.clone();
    let (to_server, mut for_server) = mpsc::channel::<Vec<u8>>(CONTROL_QUEUE);
    let on_event = move |event| match event {
        // When it is full the message is lost, and the Client sends it again.
        Event::ToServer(bytes) => drop(to_server.try_send(bytes)),
        other => report(&other),
    };
    let (driver, outgoing) = Driver::new(engine, Arc::clone(&table), on_event);
    let readiness = Readiness::default();
    let mut registry = Registry::default();
    metrics::register(&mut registry, table);
    let neighbors = Arc::clone(&driver);
    let debug = Router::new()
        .route("/debug/neighbors", get(move || async move { Json(list_neighbors(&neighbors)) }));
    let stop = tokio_util::sync::CancellationToken::new();
    let mut admin =
        tokio::spawn(admin::serve(args.admin, readiness, registry, debug, stop.clone()));
    tracing::warn!(
        id = %id.address(), %central,
        "relaying: the deprecated model. Clients depend on one server, and moves between Servers \
         leave stale routes until their timers"
    );
    let sender = Arc::clone(&forwarder);
    let mut forwarding = tokio::spawn(forwarder.run());
    let relay = async {
        while let Some(bytes) = for_server.recv().await {
            if let Err(e) = server.send(&bytes).await {
                tracing::warn!(%central, "the central server cannot be reached: {e}");
            }
        }
    };
    let answers = async {
        let mut buffer = vec![0; MESSAGE];
        loop {
            // An error is the echo of something sent before.
            let Ok(length) = server.recv(&mut buffer).await else { continue };
            if let Some(message) = buffer.get(..length) {
                driver.with(|engine, now| engine.handle_reply(message, now));
            }
        }
    };
    tokio::select! {
        () = driver.run(&sender, control, outgoing) => {}
        ended = &mut forwarding => ended??,
        ended = &mut admin => ended??,
        () = relay => {}
        () = answers => {}
        () = token.cancelled() => {}
    }
    stop.cancel();
    Ok(())
}

fn report(event: &Event) {
    match event {
        Event::ToServer(_) => {}
        Event::Associated { prefix, client, at } => {
            tracing::info!(%prefix, %client, %at, "associated");
        }
        Event::Ended { prefix, at, why } => tracing::info!(%prefix, %at, ?why, "entry ended"),
        Event::Dropped { from: Some(from), why } => {
            tracing::debug!(%from, "control packet dropped: {why}");
        }
        Event::Dropped { from: None, why } => {
            if let Some(left_out) = sparing::may_warn("central server") {
                tracing::warn!(left_out, "a message of the central server was dropped: {why}");
            }
        }
    }
}

fn list_neighbors(driver: &Driver<RelayAgent>) -> Value {
    driver.with(|engine, now| {
        let list = engine.neighbors().map(|n| {
            json!({
                "acp": n.prefix.to_string(),
                "client": n.client.to_string(),
                "linkLayer": n.link_layer.to_string(),
                "leaseSeconds": n.until.saturating_duration_since(now).as_secs(),
            })
        });
        Value::Array(list.collect())
    })
}

#[cfg(test)]
mod tests {
    use super::parse_address;

    #[test]
    fn there_is_one_central_server_and_it_has_an_ipv6_address() {
        assert_eq!(parse_address("fd77::50").unwrap().to_string(), "[fd77::50]:547");
        assert_eq!(parse_address("[fd77::50]:1547").unwrap().port(), 1547);
        for bad in ["fd77::50,fd77::51", "192.0.2.50", "dhcp.example", ""] {
            assert!(parse_address(bad).is_err(), "{bad}");
        }
    }
}
