//! The shared table of a Kubernetes cluster: the AcpMappings and the AeroLink, watched.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aero_crds::{AcpMapping, AeroLink, Authentication as LinkAuthentication};
use aero_protocol::address::{Duid, Epoch, LinkLayerAddress, ServerId};
use aero_protocol::server::{Authentication, Holder, Mapping, Server};
use aero_telemetry::admin;
use anyhow::Context as _;
use futures::StreamExt;
use ipnet::IpNet;
use kube::runtime::watcher::{self, Event as Watched};
use kube::runtime::{WatchStreamExt, reflector};
use kube::{Api, Client, ResourceExt};
use uuid::Uuid;

use super::moves::Moves;
use crate::driver::Driver;
use crate::endpoints::{self, Servers};

/// Keeps the Server's copy of the table, and its neighbours among the other Servers; returns only
/// if there is no way to an API server.
pub(super) async fn follow(
    driver: &Driver<Server>,
    link: &str,
    families: &[bool],
    mappings_ready: &admin::ReadyHandle,
    link_ready: &admin::ReadyHandle,
    moves: &Moves,
) -> anyhow::Result<()> {
    let client = Client::try_default().await.context("there is no way to an API server")?;
    let known = Mutex::default();
    tokio::join!(
        endpoints::follow(client.clone(), None, link, families, |servers| {
            set_peers(driver, &known, &servers);
        }),
        watch_mappings(&client, driver, link, mappings_ready, moves),
        watch_link(&client, driver, link, link_ready),
    );
    Ok(())
}

/// The other Servers of the link are permanent neighbours as long as they are there: they hand
/// clients over to this one, most often when they are about to end.
fn set_peers(
    driver: &Driver<Server>,
    known: &Mutex<BTreeSet<LinkLayerAddress>>,
    servers: &Servers,
) {
    let wanted: BTreeSet<_> = servers.ready.union(&servers.unready).copied().collect();
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    if *known == wanted {
        return;
    }
    let id = |at: &LinkLayerAddress| ServerId::from_underlay(at.ip);
    driver.with(|server, _| {
        for gone in known.difference(&wanted) {
            server.remove_peer(id(gone));
        }
        // The engine knows which one it is itself.
        for new in wanted.difference(&known) {
            server.add_server_peer(id(new), *new);
        }
        tracing::info!(neighbours = server.peers().count(), "the neighbours of this Server");
    });
    *known = wanted;
}

/// Reads a row of the table; `None` for one that is not of this link or makes no sense.
fn read_mapping(mapping: &AcpMapping, link: &str) -> Option<Mapping> {
    let spec = &mapping.spec;
    if spec.link_ref.name != link {
        return None;
    }
    let holder = spec.holder.as_ref().and_then(|h| {
        Some(Holder {
            id: Uuid::parse_str(&h.pod_uid).ok()?,
            name: format!("pod {}/{} on {}", spec.client_ref.namespace, h.pod_name, h.node),
            underlay: h.underlay.iter().filter_map(|a| a.parse().ok()).collect(),
        })
    });
    Some(Mapping {
        prefix: spec.prefix.parse().ok()?,
        client: Duid::from_uuid(Uuid::parse_str(&spec.client_id).ok()?),
        epoch: Epoch(u64::try_from(spec.epoch).ok()?),
        holder,
    })
}

async fn watch_mappings(
    client: &Client,
    driver: &Driver<Server>,
    link: &str,
    ready: &admin::ReadyHandle,
    moves: &Moves,
) {
    let api: Api<AcpMapping> = Api::all(client.clone());
    let mut stream = std::pin::pin!(aero_crds::watch(api, watcher::Config::default()));
    // A list that replaces the whole table: what it does not name is removed at its end.
    let mut listed: Option<Vec<IpNet>> = None;
    while let Some(event) = stream.next().await {
        let set = |m: &AcpMapping| {
            let mapping = read_mapping(m, link)?;
            let prefix = mapping.prefix;
            let of = &m.spec.client_ref;
            moves.identify(prefix, format!("{}/{}/{}", of.namespace, of.name, m.spec.identity));
            driver.with(|engine, now| engine.set_mapping(mapping, now));
            Some(prefix)
        };
        match event {
            Ok(Watched::Init) => listed = Some(Vec::new()),
            Ok(Watched::InitApply(m)) => {
                if let (Some(prefix), Some(all)) = (set(&m), listed.as_mut()) {
                    all.push(prefix);
                }
            }
            Ok(Watched::InitDone) => {
                let all = listed.take().unwrap_or_default();
                driver.with(|engine, _| engine.retain_mappings(&all));
                moves.retain(&all);
                ready.ready();
            }
            Ok(Watched::Apply(m)) => drop(set(&m)),
            Ok(Watched::Delete(m)) => {
                if let Some(mapping) = read_mapping(&m, link) {
                    driver.with(|engine, _| engine.remove_mapping(mapping.prefix));
                    moves.forget(mapping.prefix);
                }
            }
            // Leases go on from the copy of the table while the API server is away.
            Err(e) => tracing::debug!("the watch of mappings broke and is tried again: {e}"),
        }
    }
}

async fn watch_link(
    client: &Client,
    driver: &Driver<Server>,
    name: &str,
    ready: &admin::ReadyHandle,
) {
    let api: Api<AeroLink> = Api::all(client.clone());
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let (_, writer) = reflector::store();
    let stream = aero_crds::watch(api, config).reflect(writer).applied_objects();
    let mut stream = std::pin::pin!(stream);
    while let Some(event) = stream.next().await {
        let Ok(link) = event else { continue };
        let pools = link.status.clone().map(|s| s.pools).unwrap_or_default();
        let asps: Vec<IpNet> = pools.iter().filter_map(|p| p.prefix.parse().ok()).collect();
        if asps.is_empty() {
            ready.not_ready(format!("AeroLink {} has no pools yet", link.name_any()));
            continue;
        }
        let lease = u64::try_from(link.spec.timers.lease_seconds).unwrap_or(40);
        let authentication = match link.spec.authentication {
            LinkAuthentication::NodeAddress => Authentication::NodeAddress,
            LinkAuthentication::None => Authentication::None,
        };
        driver.with(|engine, _: Instant| {
            engine.set_link(asps, Duration::from_secs(lease), authentication);
        });
        ready.ready();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use aero_dataplane::underlay::Underlay;
    use aero_dataplane::userspace::Forwarder;
    use aero_protocol::server::Config;
    use tokio::sync::mpsc;

    use super::*;

    #[tokio::test]
    async fn other_servers_are_neighbours_from_their_first_endpoint_to_their_last() {
        let underlay = Arc::new(Underlay::bind(&["::1".parse().unwrap()], 0).unwrap());
        let forwarder = Forwarder::new(underlay, None, mpsc::channel(1).0);
        let at = |n: u8| -> LinkLayerAddress {
            format!("192.0.2.{n}:8060").parse::<std::net::SocketAddr>().unwrap().into()
        };
        let engine = Server::new(Config {
            id: ServerId::from_underlay(at(11).ip),
            duid: Duid::from_uuid(Uuid::nil()),
            asps: Vec::new(),
            lease: Duration::from_secs(40),
            authentication: Authentication::NodeAddress,
        });
        let (driver, _outgoing) = Driver::new(engine, forwarder, |_| {});
        let known = Mutex::default();
        let peers = |ready: &[u8], unready: &[u8]| {
            let set = |all: &[u8]| all.iter().map(|n| at(*n)).collect();
            set_peers(&driver, &known, &Servers { ready: set(ready), unready: set(unready) });
            driver.with(|s, _| s.peers().map(|p| p.at).collect::<Vec<_>>())
        };
        assert_eq!(peers(&[11, 12], &[13]), [at(12), at(13)], "none of itself");
        assert_eq!(peers(&[11, 13], &[12]), [at(12), at(13)], "one that ends hands over yet");
        assert_eq!(peers(&[13], &[11]), [at(13)]);
        assert_eq!(peers(&[], &[]), []);
    }
}
