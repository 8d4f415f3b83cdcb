//! The lab and the release: what they leave behind.

use std::collections::BTreeSet;
use std::process::{Command, Stdio};
use std::time::Duration;

use aero_e2e::lab::Lab;
use aero_e2e::scenario::NAMESPACE;
use anyhow::{Context as _, ensure};

use super::{Context, faults};

/// What is left of a lab on this machine, by its name.
fn left(name: &str) -> anyhow::Result<Vec<String>> {
    let prefix = format!("aero-lab-{name}-");
    let mut found = Vec::new();
    for dir in ["/run/netns", "/sys/fs/cgroup", "/sys/fs/cgroup/pids", "/sys/fs/cgroup/systemd"] {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(&prefix) {
                found.push(entry.path().display().to_string());
            }
        }
    }
    let mounts = std::fs::read_to_string("/proc/mounts")?;
    found.extend(
        mounts.lines().filter(|l| l.contains(&format!("aero-lab/{name}"))).map(String::from),
    );
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(&format!("aero-lab/{name}/")) || line.contains(&prefix) {
            found.push(line);
        }
    }
    Ok(found)
}

pub fn leaves_nothing(_: &Context) -> anyhow::Result<()> {
    let name = "killed";
    // The programs must be there, so that the time is spent on the lab.
    aero_e2e::lab::programs::ensure(&aero_e2e::lab::Progress { quiet: true })?;
    let mut up = Command::new(env!("CARGO_BIN_EXE_e2e"))
        .args(["lab", "--name", name, "up", "--nodes", "2"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    let give_up = std::time::Instant::now() + Duration::from_secs(60);
    let started = loop {
        if left(name)?.iter().any(|l| l.contains("containerd")) {
            break true;
        }
        if std::time::Instant::now() > give_up {
            break false;
        }
        std::thread::sleep(Duration::from_millis(50));
    };
    up.kill()?;
    up.wait()?;
    let half = left(name)?;
    let removed = Lab::down(name)?;
    ensure!(started && !half.is_empty(), "the lab did not come half way: {half:?}");
    ensure!(!removed.is_empty(), "nothing was removed");
    let rest = left(name)?;
    ensure!(rest.is_empty(), "left behind: {rest:?}");
    Ok(())
}

pub fn installs(context: &Context) -> anyhow::Result<()> {
    let shared = context.shared()?;
    let listed = shared.cluster.kubectl(&["get", "aero", "-A"])?;
    for word in [
        "aerolink.aerolink.dev/default",
        "aeroserver.aerolink.dev/default",
        "aeroclient.aerolink.dev/web",
        "web-0",
    ] {
        ensure!(listed.contains(word), "{word} is not in\n{listed}");
    }
    let clients = shared.cluster.kubectl(&[
        "wait",
        "--for=condition=Ready",
        "aeroclient/web",
        "--timeout=10s",
    ])?;
    ensure!(clients.contains("condition met"));
    // Clients outside find the Servers by the discovery name.
    let addresses = |service: &str| -> anyhow::Result<BTreeSet<String>> {
        let of = format!("kubernetes.io/service-name={service}");
        let path = "-o=jsonpath={.items[*].endpoints[?(@.conditions.ready==true)].addresses[*]}";
        let found =
            shared.cluster.kubectl(&["-n", NAMESPACE, "get", "endpointslices", "-l", &of, path])?;
        Ok(found.split_whitespace().map(String::from).collect())
    };
    shared.cluster.wait_until("linkupnetworks has both Servers", Duration::from_secs(10), || {
        let named = addresses("linkupnetworks")?;
        Ok(named.len() >= 2 && named == addresses("aero-server-default")?)
    })
}

pub fn uninstall(context: &Context) -> anyhow::Result<()> {
    let shared = context.shared()?;
    let lab = shared.lab();
    let mappings = shared.cluster.kubectl(&["get", "acp", "-o", "name"])?;
    let began = std::time::Instant::now();
    shared.cluster.helm(&["uninstall", "aero", "-n", NAMESPACE, "--wait", "--timeout", "60s"])?;
    let took = began.elapsed().as_secs();
    let clean = "test ! -e /etc/cni/net.d/00-aero.conflist && test ! -e /opt/cni/bin/aero-cni \
         && ! ip -o link | grep -q ': aero' && ! ip -6 route | grep -q 'proto 86' \
         && test ! -e /sys/fs/bpf/aero && test -z \"$(ls -A /var/lib/aero)\" && test -e /etc/cni/net.d/10-ptp.conflist";
    for node in lab.nodes() {
        shared
            .cluster
            .wait_until(&format!("{node} is clean"), Duration::from_secs(90), || {
                Ok(lab.exec(&node, &["sh", "-c", clean])?.status.success())
            })
            .with_context(|| {
                let look = "ls /etc/cni/net.d /opt/cni/bin /var/lib/aero /sys/fs/bpf; ip -o link; ip -6 route";
                lab.run(&node, &["sh", "-c", look]).unwrap_or_default()
            })?;
    }
    shared.cluster.wait_until(
        "all pods of the release are gone",
        Duration::from_secs(60),
        || {
            Ok(shared
                .cluster
                .kubectl(&["-n", NAMESPACE, "get", "pods", "-o", "name"])?
                .trim()
                .is_empty())
        },
    )?;
    let crds = shared.cluster.kubectl(&["get", "crd", "-o", "name"])?;
    ensure!(crds.matches("aerolink.dev").count() == 5, "{crds}");
    ensure!(shared.cluster.kubectl(&["get", "acp", "-o", "name"])? == mappings, "mappings changed");
    let test = "an_uninstall_leaves_nothing_on_any_node_and_keeps_what_is_the_users";
    let figure =
        format!("helm uninstall in {took} s (bound 60 s); nothing left on nodes, mappings kept");
    faults::shown(test, &["F24"], figure);
    Ok(())
}
