//! A Relay's Servers and ACP routes as a file. Routes are in it where no routing protocol tells them;
//! where one does, the file also says who takes part in it. A change of the file is noticed within a
//! second; a file that cannot be used leaves the routes as they were.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use aero_protocol::address::{LinkLayerAddress, ServerId, is_usable_acp};
use aero_protocol::relay::Relay;
use anyhow::{Context as _, bail};
use ipnet::IpNet;
use serde::Deserialize;

use crate::bgp::instance::{External, FIRST_ASN, Instance, Speaker, Timers, asn_of};
use crate::driver::Driver;

/// How often the file is looked at.
const LOOK: Duration = Duration::from_secs(1);

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Document {
    service_prefixes: Vec<IpNet>,
    servers: Vec<Row>,
    /// Who takes part in BGP beside them.
    #[serde(default)]
    relays: Vec<RelayRow>,
    #[serde(default)]
    external_peers: Vec<External>,
    #[serde(default)]
    bgp: Timers,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Row {
    /// Underlay address and port.
    address: SocketAddr,
    /// ACPs of its Clients.
    #[serde(default)]
    routes: Vec<IpNet>,
    /// Its AS number; one that follows from the address if it is not given.
    asn: Option<u32>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RelayRow {
    /// Underlay address and port.
    address: SocketAddr,
    /// Its AS number.
    asn: Option<u32>,
}

/// What the file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RoutesFile {
    /// Service prefixes.
    pub asps: Vec<IpNet>,
    /// Servers by their identity.
    pub servers: BTreeMap<ServerId, LinkLayerAddress>,
    /// Which Server has which ACP.
    pub routes: BTreeSet<(IpNet, ServerId)>,
    /// Who takes part in BGP. Whether that can be is for [`Instance::check`] to say.
    pub instance: Instance,
}

impl RoutesFile {
    /// Reads a file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(text: &str) -> anyhow::Result<Self> {
        let document: Document = serde_saphyr::from_str(text)?;
        let mut file = Self { asps: document.service_prefixes, ..Self::default() };
        file.instance = Instance {
            asps: file.asps.clone(),
            external: document.external_peers,
            timers: document.bgp,
            ..Instance::default()
        };
        for row in document.relays {
            let asn = row.asn.unwrap_or(FIRST_ASN);
            file.instance.relays.push(Speaker { at: row.address.into(), asn });
        }
        for row in document.servers {
            let at = LinkLayerAddress::from(row.address);
            let id = ServerId::from_underlay(at.ip);
            let asn = row.asn.unwrap_or_else(|| asn_of(id, FIRST_ASN));
            file.instance.servers.push(Speaker { at, asn });
            if let Some(other) = file.servers.insert(id, at) {
                bail!("{at} and {other} would have the same link-local address");
            }
            for acp in row.routes {
                if !file.asps.iter().any(|asp| asp.contains(&acp)) || !is_usable_acp(acp) {
                    bail!("{acp} can be no client prefix of this link");
                }
                file.routes.insert((acp.trunc(), id));
            }
        }
        Ok(file)
    }

    /// Brings an engine from what `self` says to what `new` says.
    pub fn change_to(&self, new: &Self, relay: &mut Relay) {
        for id in self.servers.keys().filter(|id| !new.servers.contains_key(id)) {
            relay.remove_server(*id);
        }
        relay.set_asps(new.asps.clone());
        for (id, at) in &new.servers {
            relay.add_server(*id, *at);
        }
        for (acp, id) in self.routes.difference(&new.routes) {
            relay.remove_route(*acp, *id);
        }
        for (acp, id) in new.routes.difference(&self.routes) {
            // Checked when it was read.
            let _ = relay.set_route(*acp, *id);
        }
    }
}

/// Follows the file until the future is dropped; `on_change` gets the service prefixes.
pub async fn follow(
    path: &Path,
    mut present: RoutesFile,
    driver: &Driver<Relay>,
    on_change: impl AsyncFn(&[IpNet]),
) {
    let mut seen = None;
    loop {
        let modified = tokio::fs::metadata(path).await.and_then(|m| m.modified()).ok();
        if modified != seen {
            seen = modified;
            match read(path).await {
                Ok(new) => {
                    driver.with(|relay, _| present.change_to(&new, relay));
                    tracing::info!(
                        servers = new.servers.len(),
                        routes = new.routes.len(),
                        "routes"
                    );
                    on_change(&new.asps).await;
                    present = new;
                }
                Err(e) => tracing::error!("the routes stay as they were: {e:#}"),
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Reads the file at `path`.
///
/// # Errors
/// If it cannot be read or is not right.
pub async fn read(path: &Path) -> anyhow::Result<RoutesFile> {
    let text = tokio::fs::read_to_string(path)
        .await
        .with_context(|| format!("reading {}", path.display()))?;
    RoutesFile::parse(&text).with_context(|| format!("in {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aero_protocol::relay::Config;

    const TEXT: &str = "
servicePrefixes: ['2001:db8::/32']
servers:
  - {address: '192.0.2.11:8060', routes: ['2001:db8:0:1::/64', '2001:db8:0:3::/64']}
  - {address: '192.0.2.12:8060', routes: ['2001:db8:0:2::/64']}
";

    #[test]
    fn an_engine_follows_the_file() {
        let (one, two) = (
            RoutesFile::parse(TEXT).unwrap(),
            RoutesFile::parse(&TEXT.replace(", '2001:db8:0:3::/64'", "")).unwrap(),
        );
        let id = ServerId::from_underlay("192.0.2.100".parse().unwrap());
        let mut relay = Relay::new(Config { id, asps: Vec::new() });
        RoutesFile::default().change_to(&one, &mut relay);
        assert_eq!(relay.route_count(), 3);
        one.change_to(&two, &mut relay);
        assert_eq!(relay.route_count(), 2);
        two.change_to(&RoutesFile::default(), &mut relay);
        assert_eq!(relay.route_count(), 0);
    }

    #[test]
    fn a_file_says_who_takes_part_in_bgp() {
        let text = format!(
            "{TEXT}
relays: [{{address: '192.0.2.21:8060'}}, {{address: '192.0.2.22:8060', asn: 4200000009}}]
externalPeers: [{{address: 'fd99::f', asn: 65000}}]
bgp: {{holdSeconds: 9, bfd: true}}
"
        );
        let instance = RoutesFile::parse(&text).unwrap().instance;
        assert_eq!(instance.check(), Ok(()));
        let asns: Vec<u32> = instance.relays.iter().map(|r| r.asn).collect();
        assert_eq!(asns, [FIRST_ASN, 4_200_000_009]);
        assert_eq!((instance.timers.hold_seconds, instance.timers.bfd), (9, true));
        assert_eq!((instance.servers.len(), instance.external.len()), (2, 1));
    }

    #[test]
    fn a_file_with_a_prefix_outside_the_service_prefixes_is_refused() {
        let bad = TEXT.replace("2001:db8:0:2::/64", "2001:db9::/64");
        let error = RoutesFile::parse(&bad).unwrap_err().to_string();
        assert!(error.contains("2001:db9::/64 can be no client prefix"), "{error}");
        assert!(RoutesFile::parse(&TEXT.replace("routes:", "route:")).is_err());
    }
}
