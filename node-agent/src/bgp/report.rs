//! What BIRD says of its sessions, for the status of AeroServers and AeroRelays: written into a
//! ConfigMap of this pod's own when it has changed.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use aero_crds::annotations;
use aero_crds::bgp::{BgpSession, DOWN, ESTABLISHED, REPORT_KEY, report_name};
use anyhow::{Context as _, bail};
use clap::Args;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::process::Command;

/// How often BIRD is asked.
const LOOK: Duration = Duration::from_secs(1);
/// What is refused is named up to this number of prefixes; a router may announce a million.
const NAMED: usize = 5;

/// Flags of the report.
#[derive(Debug, Clone, Args)]
pub struct ReportArgs {
    /// Report the sessions in the ConfigMap `aero-bgp-POD`.
    #[arg(long, env = "AERO_BGP_REPORT", requires_all = ["pod_name", "pod_uid"])]
    report: bool,
    /// This pod.
    #[arg(long, env = "POD_NAME")]
    pod_name: Option<String>,
    /// Its UID: the ConfigMap goes with it.
    #[arg(long, env = "POD_UID")]
    pod_uid: Option<String>,
    /// Its namespace.
    #[arg(long, env = "POD_NAMESPACE", default_value = "aero-system")]
    namespace: String,
}

/// Reports until the future is dropped.
///
/// # Errors
/// If there is no way to an API server.
pub async fn follow(args: &ReportArgs, birdc: &Path, socket: &Path) -> anyhow::Result<()> {
    let (true, Some(pod), Some(uid)) = (args.report, &args.pod_name, &args.pod_uid) else {
        return std::future::pending().await;
    };
    let client = Client::try_default().await.context("there is no way to an API server")?;
    let api: Api<ConfigMap> = Api::namespaced(client, &args.namespace);
    let name = report_name(pod);
    let mut written = None;
    loop {
        match look(birdc, socket).await {
            Ok(sessions) if written.as_ref() != Some(&sessions) => {
                let map = json!({
                    "apiVersion": "v1", "kind": "ConfigMap",
                    "metadata": {
                        "name": name,
                        "labels": {(annotations::ROUTING_LABEL): "true"},
                        "ownerReferences":
                            [{"apiVersion": "v1", "kind": "Pod", "name": pod, "uid": uid}],
                    },
                    "data": {(REPORT_KEY): serde_json::to_string(&sessions)?},
                });
                let params = PatchParams::apply("aero-bird").force();
                match api.patch(&name, &params, &Patch::Apply(map)).await {
                    Ok(_) => written = Some(sessions),
                    Err(e) => tracing::warn!("the sessions cannot be reported: {e}"),
                }
            }
            Ok(_) => {}
            // Not yet, or just being started again.
            Err(e) => tracing::debug!("BIRD says nothing: {e:#}"),
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn look(birdc: &Path, socket: &Path) -> anyhow::Result<Vec<BgpSession>> {
    let protocols = ask(birdc, socket, &["show", "protocols", "all"]).await?;
    let filtered = ask(birdc, socket, &["show", "route", "table", "all", "filtered"]).await?;
    Ok(sessions(&protocols, &filtered))
}

async fn ask(birdc: &Path, socket: &Path, words: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(birdc);
    command.arg("-s").arg(socket).args(words).stdin(Stdio::null()).kill_on_drop(true);
    let output = command.output().await?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The sessions, from `show protocols all` and `show route table all filtered`, by the peer.
fn sessions(protocols: &str, filtered: &str) -> Vec<BgpSession> {
    let refused = refused(filtered);
    let mut all = BTreeMap::new();
    let mut present: Option<(String, BgpSession)> = None;
    let mut keep = |done: Option<(String, BgpSession)>| {
        if let Some((_, session)) = done.filter(|(_, s)| !s.peer.is_empty()) {
            all.insert(session.peer.clone(), session);
        }
    };
    for line in protocols.lines() {
        let mut words = line.split_whitespace();
        if !line.starts_with(char::is_whitespace) {
            keep(present.take());
            if let (Some(name), Some("BGP")) = (words.next(), words.next()) {
                let refused = refused.get(name).cloned().unwrap_or_default();
                let session = BgpSession { state: DOWN.into(), refused, ..BgpSession::default() };
                present = Some((name.to_string(), session));
            }
            continue;
        }
        let Some((_, session)) = &mut present else { continue };
        let Some((key, value)) = line.trim().split_once(':') else { continue };
        let value = value.trim();
        match key {
            "BGP state" if value == ESTABLISHED => session.state = ESTABLISHED.into(),
            "Neighbor address" => {
                session.peer = value.split('%').next().unwrap_or_default().into();
            }
            "Neighbor AS" => session.peer_asn = value.parse().ok(),
            // Errors of sockets come and go with every attempt, and say no more than "down".
            "Last error" if !value.starts_with("Socket") => session.error = Some(value.into()),
            _ => {}
        }
    }
    keep(present);
    all.into_values().collect()
}

/// The first prefixes that are not taken from each protocol.
fn refused(filtered: &str) -> BTreeMap<&str, Vec<String>> {
    let mut all: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    let mut prefix = "";
    for line in filtered.lines() {
        if !line.starts_with(char::is_whitespace) {
            prefix = line.split_whitespace().next().filter(|w| w.contains('/')).unwrap_or("");
        }
        let protocol = line.split_once('[').and_then(|(_, rest)| rest.split_whitespace().next());
        let (false, Some(protocol)) = (prefix.is_empty(), protocol) else { continue };
        let list = all.entry(protocol).or_default();
        if !list.iter().any(|p| p == prefix) {
            list.push(prefix.to_string());
        }
    }
    for list in all.values_mut() {
        // Their order in BIRD's tables is by chance.
        list.sort();
        list.truncate(NAMED);
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    const PROTOCOLS: &str = "\
BIRD 2.0.12 ready.
Name       Proto      Table      State  Since         Info
device1    Device     ---        up     03:01:11.211  
kernel_ipv6 Kernel     acp6       up     03:01:11.211  
  Channel ipv6
    State:          UP
server_c000020b BGP        ---        up     03:01:13.040  Established   
  BGP state:          Established
    Neighbor address: fe80::c000:20b%aero-bgp-r
    Neighbor AS:      4200000001
    Local AS:         4200000000
server_c000020c BGP        ---        start  03:01:13.040  Idle          BGP Error: Bad peer AS
  BGP state:          Idle
    Neighbor address: fe80::c000:20c%aero-bgp-r
    Neighbor AS:      4200000002
    Local AS:         4200000000
    Error wait:       3.2/5
    Last error:       BGP Error: Bad peer AS
server_c000020d BGP        ---        start  03:01:13.040  Active        Socket: No route to host
  BGP state:          Active
    Neighbor address: fe80::c000:20d%aero-bgp-r
    Neighbor AS:      4200000003
    Last error:       Socket: No route to host
external0  BGP        ---        up     03:01:14.000  Established   
  BGP state:          Established
    Neighbor address: fd99::f
    Neighbor AS:      65000
";

    const FILTERED: &str = "\
BIRD 2.0.12 ready.
Table acp6:
2001:db8::/32        unicast [external0 03:01:15.512] (100) [AS65000i]
\tvia fd99::f on w0
::/0                 unicast [external0 03:01:15.512] (100) [AS65000i]
\tvia fd99::f on w0
                     unicast [external1 03:01:15.512] (100) [AS65001i]
\tvia fd99::e on w0
";

    #[test]
    fn sessions_are_read_with_their_errors_and_what_is_not_taken_from_them() {
        let all = sessions(PROTOCOLS, FILTERED);
        let by = |peer: &str| all.iter().find(|s| s.peer == peer).unwrap();
        assert_eq!(all.len(), 4);
        assert!(by("fe80::c000:20b").is_established());
        assert_eq!(by("fe80::c000:20b").peer_asn, Some(4_200_000_001));
        let wrong = by("fe80::c000:20c");
        assert_eq!(
            (wrong.state.as_str(), wrong.error.as_deref()),
            ("Down", Some("BGP Error: Bad peer AS"))
        );
        assert_eq!(by("fe80::c000:20d").error, None, "an error of a socket is no news");
        assert_eq!(by("fd99::f").refused, ["2001:db8::/32", "::/0"]);
        assert!(by("fd99::f").is_external() && !wrong.is_external());
        assert_eq!(refused(FILTERED)["external1"], ["::/0"]);
    }
}
