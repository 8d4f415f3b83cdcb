//! The other families of the underlay.

use std::time::Duration;

use aero_e2e::lab::{Lab, Underlay};
use aero_e2e::scenario::moves;
use aero_e2e::scenario::observer::Observer;
use aero_e2e::scenario::{Cluster, micros};
use anyhow::ensure;

use super::{Context, start, web};

fn shown_on(context: &Context, name: &str, underlay: Underlay) -> anyhow::Result<()> {
    // One lab at a time is enough for this machine.
    context.end();
    let outcome = (|| {
        let lab = start(name, 2, underlay)?;
        let cluster = Cluster::of(&lab);
        let observer = Observer::start(&cluster.kubeconfig)?;
        web(&lab, &cluster, &observer)?;
        let old = observer
            .wait("web-0 is ready", Duration::from_secs(90), |s| s.pod("default/web-0").cloned())?;
        if underlay == Underlay::Ipv4 {
            // The primary network has no IPv6, so the stable address is the pod's IPv6 address.
            let ips = cluster.get("pod/web-0", "{.status.podIPs[*].ip}")?;
            ensure!(ips.contains("2001:db8:a:"), "podIPs are {ips}");
        }
        let began = micros();
        cluster.kubectl(&["cordon", &old.node])?;
        cluster.kubectl(&["delete", "pod", "web-0"])?;
        let moves = moves::follow(&cluster, &observer, "delete", &[old], began, &[])?;
        for m in &moves {
            ensure!(m.kept() && m.from != m.to && m.gap_ms <= 1000, "{m:?}");
            context.note(format!(
                "{underlay:?}: {} -> {}, first answer {} ms after Ready",
                m.from, m.to, m.gap_ms
            ));
        }
        observer.check()
    })();
    let down = Lab::down(name);
    outcome?;
    down.map(drop)
}

pub fn ipv4(context: &Context) -> anyhow::Result<()> {
    shown_on(context, "test4", Underlay::Ipv4)
}

pub fn ipv6(context: &Context) -> anyhow::Result<()> {
    shown_on(context, "test6", Underlay::Ipv6)
}
