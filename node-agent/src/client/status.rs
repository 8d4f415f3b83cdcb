//! How the Client stands: `/status` of the admin port, and `aero-node-agent client --status`.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use aero_protocol::address::Duid;
use aero_protocol::client::{Liveness, Node};
use anyhow::{Context as _, ensure};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{interface, roaming};
use crate::driver::Driver;

/// A status.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Status {
    duid: String,
    device: String,
    /// The prefixes are served: a Server has a lease of them.
    served: bool,
    prefixes: Vec<IpNet>,
    addresses: Vec<String>,
    service_prefixes: Vec<IpNet>,
    refusal: Option<String>,
    servers: Vec<Server>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Server {
    address: String,
    state: State,
    lease: bool,
    default: bool,
    /// One of those that this host registers at.
    used: bool,
    /// The round trip to it, the shortest of the last seconds, in microseconds.
    round_trip_us: Option<u64>,
    /// The underlay address from which it is reached.
    from: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum State {
    Untried,
    Answers,
    Silent,
}

/// Where a status comes from.
#[derive(Clone)]
pub(super) struct Source {
    client: Duid,
    device: String,
    driver: Arc<Driver<Node>>,
}

impl Source {
    pub(super) fn new(client: Duid, device: String, driver: Arc<Driver<Node>>) -> Self {
        Self { client, device, driver }
    }

    pub(super) fn now(&self) -> Status {
        self.driver.with(|node, _| {
            let standing = node.standing(&self.client).unwrap_or_default();
            let default = node.default_server();
            let servers = node.servers().map(|(l2, liveness)| Server {
                address: l2.to_string(),
                state: match liveness {
                    Liveness::Untried => State::Untried,
                    Liveness::Answers => State::Answers,
                    Liveness::Silent => State::Silent,
                },
                lease: standing.bound.contains(&l2),
                default: default == Some(l2),
                used: node.uses(l2),
                round_trip_us: node.distance(l2).and_then(|d| d.as_micros().try_into().ok()),
                from: roaming::source_towards(l2.into()).map(|ip| ip.to_string()),
            });
            Status {
                duid: self.client.to_string(),
                device: self.device.clone(),
                served: standing.served,
                addresses: standing
                    .prefixes
                    .iter()
                    .map(|p| interface::host_address(*p).to_string())
                    .collect(),
                prefixes: standing.prefixes,
                service_prefixes: node.asps().to_vec(),
                refusal: standing.refusal,
                servers: servers.collect(),
            }
        })
    }
}

/// Asks a running client, and tells it to people.
///
/// # Errors
/// If none answers.
pub(super) async fn ask(admin: SocketAddr) -> anyhow::Result<String> {
    let answer = tokio::time::timeout(Duration::from_secs(5), fetch(admin)).await;
    let body = answer.context("no answer within five seconds")?.with_context(|| {
        format!("no client answers at {admin} (is it running? --admin says where it listens)")
    })?;
    let status: Status = serde_json::from_str(&body).context("the answer is no status")?;
    Ok(show(&status))
}

async fn fetch(admin: SocketAddr) -> anyhow::Result<String> {
    let mut stream = tokio::net::TcpStream::connect(admin).await?;
    // HTTP/1.0: the answer ends with the connection.
    stream.write_all(b"GET /status HTTP/1.0\r\n\r\n").await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("the answer is cut short")?;
    ensure!(head.contains(" 200 "), "{}", head.lines().next().unwrap_or_default());
    Ok(body.to_string())
}

fn show(status: &Status) -> String {
    let list = |all: Vec<String>| if all.is_empty() { "none".to_string() } else { all.join(", ") };
    let nets = |all: &[IpNet]| list(all.iter().map(ToString::to_string).collect());
    let mut text = String::new();
    let state = if status.served { "served here" } else { "not served" };
    let _ = writeln!(text, "duid              {}", status.duid);
    let _ = writeln!(text, "prefix            {}  {state}", nets(&status.prefixes));
    let _ = writeln!(
        text,
        "address           {}  on {}",
        list(status.addresses.clone()),
        status.device
    );
    let _ = writeln!(text, "service prefixes  {}", nets(&status.service_prefixes));
    for server in &status.servers {
        let state = match server.state {
            State::Untried => "not yet answered",
            State::Answers => "answers",
            State::Silent => "silent",
        };
        let lease = if server.lease { ", lease" } else { "" };
        let default = if server.default { ", default" } else { "" };
        let spare = if server.used { "" } else { ", spare" };
        let far = server
            .round_trip_us
            .map(|us| format!(", {}.{} ms", us / 1000, us % 1000 / 100))
            .unwrap_or_default();
        let from = server.from.as_deref().unwrap_or("nowhere: no route");
        let _ = writeln!(
            text,
            "server            {}  {state}{lease}{default}{spare}{far}  from {from}",
            server.address
        );
    }
    if let Some(refusal) = &status.refusal {
        let _ = writeln!(text, "refused           {refusal}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_tells_where_the_prefix_stands_and_by_which_server() {
        let status = Status {
            duid: "6ba7b810-9dad-11d1-80b4-00c04fd430c8".into(),
            device: "aero0".into(),
            served: true,
            prefixes: vec!["2001:db8:0:1::/64".parse().unwrap()],
            addresses: vec!["2001:db8:0:1::1".into()],
            service_prefixes: vec!["2001:db8::/32".parse().unwrap()],
            refusal: None,
            servers: vec![Server {
                address: "192.0.2.11:8060".into(),
                state: State::Answers,
                lease: true,
                default: true,
                used: true,
                round_trip_us: Some(312),
                from: Some("192.0.2.1".into()),
            }],
        };
        let text = show(&status);
        assert!(text.contains("prefix            2001:db8:0:1::/64  served here\n"), "{text}");
        assert!(
            text.contains("192.0.2.11:8060  answers, lease, default, 0.3 ms  from 192.0.2.1\n")
        );
    }
}
