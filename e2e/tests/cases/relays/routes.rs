//! Routes follow the Clients, sessions come back, and what cannot be is refused.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use serde_json::json;

use super::link::{Link, RELAY, SERVER};
use super::{CLIENTS, Context};

pub fn run(context: &Context) -> anyhow::Result<()> {
    let backbone = context.backbone()?;
    let link = backbone.link();
    let file = link.file()?;
    ensure!(file.contains("asn: 64600}") && file.contains("asn: 64601}"), "{file}");
    // A pod that goes takes its route along.
    let scale =
        |n: usize| link.cluster.kubectl(&["scale", "statefulset/web", &format!("--replicas={n}")]);
    scale(1)?;
    link.cluster.wait_until("one prefix is nobody's", Duration::from_secs(30), || {
        Ok(link.live()?.len() == CLIENTS - 1)
    })?;
    let withdrawn = link.settled("the Relays have forgotten it")?;
    scale(2)?;
    link.cluster.wait_until("it is somebody's again", Duration::from_secs(30), || {
        Ok(link.live()?.len() == CLIENTS)
    })?;
    link.settled("the Relays have it again")?;
    let old = link.relays()?.first().cloned().context("no Relay")?;
    link.kubectl(&["delete", "pod", &old.name, "--wait=true"])?;
    let replaced = link.settled("another Relay has its place")?;
    ensure!(!link.relays()?.contains(&old), "{old:?} is there still");
    let relay = link.relays()?.into_iter().find(|r| r.node == old.node).context("no Relay")?;
    let before = link.kill(&relay, "bird")?;
    link.runs_again(&relay, "bird", before)?;
    let restarted = link.settled("the sessions are back")?;
    let (sessions, routes) = backbone.began;
    context.note(format!(
        "relays: {CLIENTS} routes; first sessions after {sessions:.1?}, routes after {routes:.1?}, \
         withdrawn after {withdrawn:.1?}, a Relay's pod replaced after {replaced:.1?}, sessions \
         {restarted:.1?} after BIRD was started again"
    ));
    refused(&link)
}

/// What is bad is said, and changes nothing.
fn refused(link: &Link<'_>) -> anyhow::Result<()> {
    let file = link.file()?;
    let peers = link.json(&["get", RELAY])?["spec"]["externalPeers"].clone();
    for (object, bad, reason, about, good) in [
        (
            SERVER,
            json!({"relayRefs": ["backbone", "nowhere"]}),
            "RelayNotFound",
            "nowhere",
            json!({"relayRefs": ["backbone"]}),
        ),
        (RELAY, json!({"asn": 64_601}), "AsnConflict", "64601", json!({"asn": null})),
        (RELAY, json!({"asn": 3320}), "AsnNotPrivate", "3320", json!({"asn": null})),
        (
            RELAY,
            json!({"externalPeers": [{"address": "192.0.2.99", "asn": 4_200_000_000_i64}]}),
            "PeerRefused",
            "192.0.2.99",
            json!({"externalPeers": peers}),
        ),
    ] {
        link.patch(object, &bad)?;
        link.complains(object, "Accepted", reason, about)?;
        ensure!(link.file()? == file, "{reason}: the file has changed");
        link.patch(object, &good)?;
        link.says(object, "Accepted", "True", "Accepted")?;
    }
    link.settled("nothing of that has done harm").map(drop)
}
