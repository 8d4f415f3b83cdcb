//! The shared table of a Kubernetes cluster: the AcpMappings and the AeroLink, watched.

use std::time::{Duration, Instant};

use aero_crds::{AcpMapping, AeroLink, Authentication as LinkAuthentication};
use aero_protocol::address::{Duid, Epoch};
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

/// Keeps the Server's copy of the table; returns only if there is no way to an API server.
pub(super) async fn follow(
    driver: &Driver<Server>,
    link: &str,
    mappings_ready: &admin::ReadyHandle,
    link_ready: &admin::ReadyHandle,
    moves: &Moves,
) -> anyhow::Result<()> {
    let client = Client::try_default().await.context("there is no way to an API server")?;
    tokio::join!(
        watch_mappings(&client, driver, link, mappings_ready, moves),
        watch_link(&client, driver, link, link_ready),
    );
    Ok(())
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
