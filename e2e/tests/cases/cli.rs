//! `kubectl aero` against the lab, as its users run it, and the other ways to ask how all is.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use aero_e2e::lab::images;
use aero_e2e::scenario::{Cluster, NAMESPACE};
use anyhow::{Context as _, ensure};
use serde_json::Value;

use super::Context;

/// Runs the real program: whether all was well, and what it said.
fn aero(cluster: &Cluster, arguments: &[&str]) -> anyhow::Result<(bool, String)> {
    let mut command = Command::new(images::built("kubectl-aero"));
    command.env("KUBECONFIG", &cluster.kubeconfig).args(arguments);
    let output = command.output().context("kubectl-aero cannot be run")?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout) + &text(&output.stderr);
    // 2: it could not look.
    ensure!(output.status.code() != Some(2), "kubectl aero {}: {said}", arguments.join(" "));
    Ok((output.status.success(), said))
}

fn all_ok(cluster: &Cluster, arguments: &[&str], words: &[&str]) -> anyhow::Result<String> {
    let mut said = String::new();
    let what = format!("kubectl aero {} finds all well", arguments.join(" "));
    let outcome = cluster.wait_until(&what, Duration::from_secs(20), || {
        let (well, text) = aero(cluster, arguments)?;
        said = text;
        Ok(well && words.iter().all(|w| said.contains(w)))
    });
    outcome.with_context(|| format!("expected {words:?}; it says\n{said}"))?;
    Ok(said)
}

pub fn healthy(context: &Context) -> anyhow::Result<()> {
    let shared = context.shared()?;
    let cluster = &shared.cluster;
    let began = Instant::now();
    let status = ["ok    operator", "ok    servers default", "2 of 2 serve", "ok    agents"];
    all_ok(cluster, &["status", "--wait", "20s"], &status)?;
    let json = all_ok(cluster, &["status", "-o", "json"], &[])?;
    let json: Value = serde_json::from_str(&json)?;
    let rows = json["nodes"].as_array().context("no nodes")?;
    ensure!(rows.len() == 3 && rows.iter().all(|r| r["agent"] == "serves"), "{json}");
    let field = |pod: &str| {
        cluster.get(&format!("pod/{pod}"), "{.metadata.annotations.aerolink\\.dev/prefix}")
    };
    let (zero, one) = (field("web-0")?, field("web-1")?);
    let order = ["mapping", "holder", "agent n", "server", "tunnel", "neighbour", "counters"];
    for target in ["web-0", &zero, &zero.replace("::/64", "::1"), "aeroclient/web"] {
        let said = all_ok(cluster, &["explain", target], &order)?;
        ensure!(said.contains("belongs to default/web identity web-0"), "{target}: {said}");
    }
    let to = one.replace("::/64", "::1");
    let trace = all_ok(cluster, &["trace", "web-0", &to], &["ok    probe", "answer after"])?;
    let node = |pod: &str| cluster.get(&format!("pod/{pod}"), "{.spec.nodeName}");
    let hop = if node("web-0")? == node("web-1")? { "ok    node n" } else { "ok    server aero-" };
    ensure!(trace.contains(hop), "{trace}");
    let pairs = all_ok(cluster, &["connectivity", "-o", "json"], &[])?;
    let pairs: Value = serde_json::from_str(&pairs)?;
    let pairs = pairs["pairs"].as_array().context("no pairs")?;
    ensure!(pairs.len() == 6, "{pairs:?}");
    for pair in pairs {
        // A correspondent runs on every node, so every pair has pods too.
        for way in ["node", "link"] {
            ensure!(pair[way]["answer"].as_f64().is_some_and(|ms| ms < 2000.0), "{pair}");
        }
    }
    bundle(cluster)?;
    context.note(format!("kubectl aero: all views in {} ms", began.elapsed().as_millis()));
    Ok(())
}

fn bundle(cluster: &Cluster) -> anyhow::Result<()> {
    let file = std::env::temp_dir().join(format!("aero-e2e-{}.tar.gz", std::process::id()));
    let path = file.display().to_string();
    aero(cluster, &["bundle", "--file", &path])?;
    let list = Command::new("tar").args(["-tzf", &path]).output()?;
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    let all = Command::new("tar").args(["-xOzf", &path]).output()?.stdout;
    std::fs::remove_file(&file)?;
    for part in [
        "/status.txt",
        "/objects/acpmappings.yaml",
        "/objects/pods.yaml",
        "/logs/aero-agent-",
        "/logs/aero-server-default-",
        "/debug/aero-agent-",
        "/metrics/aero-operator-",
    ] {
        ensure!(list.contains(part), "{part} is not in the bundle:\n{list}");
    }
    ensure!(!list.contains("missing.txt"), "something could not be read:\n{list}");
    let all = String::from_utf8_lossy(&all);
    ensure!(!all.contains("kind: Secret") && !all.contains("BEGIN"), "a secret in the bundle");
    // The metrics are the programs' own, over the way that a scraper would not take.
    for metric in [
        "aero_cni_request_duration_seconds_count{verb=\"ADD\",result=\"ok\"}",
        "aero_acp_bound{link=\"default\",pool=\"2001:db8:a::/48\"} 5",
        "aero_dhcpv6_messages_total{type=\"reply\",direction=\"out\"}",
        "aero_neighbors{kind=\"client\"} 5",
        "aero_leader 1",
    ] {
        ensure!(all.contains(metric), "{metric} is in no /metrics");
    }
    Ok(())
}

pub fn helm_test(context: &Context) -> anyhow::Result<()> {
    let cluster = &context.shared()?.cluster;
    let said = cluster.helm(&["test", "aero", "-n", NAMESPACE, "--timeout", "120s"]);
    let said = said.with_context(|| {
        let n = ["-n", NAMESPACE, "logs", "aero-test"];
        let log = |container: &str| {
            cluster.kubectl(&[&n[..], &["-c", container]].concat()).unwrap_or_default()
        };
        format!("{}{}", log("status"), log("connectivity"))
    })?;
    ensure!(said.contains("Succeeded"), "{said}");
    let left = cluster.kubectl(&["-n", NAMESPACE, "get", "pod,sa,role", "-o", "name"])?;
    ensure!(!left.contains("aero-test"), "left behind: {left}");
    Ok(())
}

pub fn waits(context: &Context) -> anyhow::Result<()> {
    let cluster = &context.shared()?.cluster;
    for kind in ["aerolink", "aeroserver", "aeroclient", "acpmapping"] {
        let arguments = ["wait", "--for=condition=Ready", kind, "--all", "-A", "--timeout=20s"];
        let said = cluster.kubectl(&arguments)?;
        ensure!(said.contains("condition met"), "{kind}: {said}");
        let path = "{range .items[*]}{.metadata.generation} {.status.observedGeneration} \
             {.status.conditions[?(@.type==\"Ready\")].observedGeneration}{\"\\n\"}{end}";
        let path = format!("jsonpath={path}");
        let current = || -> anyhow::Result<bool> {
            let text = cluster.kubectl(&["get", kind, "-A", "-o", &path])?;
            let same = |l: &str| {
                let mut fields = l.split(' ');
                let first = fields.next();
                first.is_some() && fields.clone().count() == 2 && fields.all(|f| Some(f) == first)
            };
            Ok(!text.trim().is_empty() && text.trim().lines().all(same))
        };
        let what = format!("every status of {kind} is about its spec");
        cluster.wait_until(&what, Duration::from_secs(10), current)?;
    }
    Ok(())
}

pub fn moves(context: &Context) -> anyhow::Result<()> {
    let shared = context.shared()?;
    let cluster = &shared.cluster;
    let before = shared.observer.wait("web-0 is ready", Duration::from_secs(60), |s| {
        s.pod("default/web-0").filter(|p| p.ready_at.is_some()).cloned()
    })?;
    let mut live = Command::new(images::built("kubectl-aero"))
        .env("KUBECONFIG", &cluster.kubeconfig)
        .arg("moves")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let lines = Arc::new(Mutex::new(Vec::new()));
    if let Some(stdout) = live.stdout.take() {
        let lines = Arc::clone(&lines);
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
    }
    let outcome = (|| {
        cluster.kubectl(&["delete", "pod", "web-0", "--wait=false"])?;
        shared.observer.wait("web-0 is another pod", Duration::from_secs(60), |s| {
            s.pod("default/web-0").filter(|p| p.ready_at.is_some() && p.uid != before.uid).map(drop)
        })?;
        let words = ["default/web/web-0", "gap", " -> n"];
        let said = all_ok(cluster, &["moves", "--once"], &words)?;
        let list = all_ok(cluster, &["moves", "--once", "-o", "json"], &[])?;
        for line in list.lines() {
            let m: Value = serde_json::from_str(line)?;
            let gaps = m["gapMs"].as_object().context("no gaps")?;
            let longest = gaps.values().filter_map(Value::as_u64).max().context("no gap")?;
            ensure!(longest < 600_000, "{m}");
            ensure!(m["epoch"].as_u64().is_some_and(|e| e > 1), "the first holder: {m}");
        }
        Ok(said.lines().last().unwrap_or_default().to_string())
    })();
    let outcome = outcome.and_then(|last| {
        cluster.wait_until("the live view shows it", Duration::from_secs(20), || {
            Ok(lines.lock().unwrap().iter().any(|l| l.contains("default/web/web-0")))
        })?;
        Ok(last)
    });
    live.kill()?;
    live.wait()?;
    let last = outcome?;
    context.note(format!("kubectl aero moves: {last}"));
    let text = cluster.kubectl(&["get", "events", "-o", "jsonpath={.items[*].reason}"])?;
    for reason in ["Delegated", "Moved"] {
        ensure!(text.contains(reason), "no Event {reason}: {text}");
    }
    Ok(())
}

/// Waits until `explain` names a part first; what it says.
fn first_failure(
    cluster: &Cluster,
    target: &str,
    part: &str,
    advice: &str,
) -> anyhow::Result<String> {
    let mut said = String::new();
    let what = format!("explain {target} names {part}");
    let outcome = cluster.wait_until(&what, Duration::from_secs(40), || {
        let (well, text) = aero(cluster, &["explain", target])?;
        said = text;
        let first = said.lines().find(|l| l.trim_start().starts_with("FAIL"));
        let named = first.is_some_and(|l| l.split_whitespace().nth(1) == Some(part));
        let told = said.lines().any(|l| l.trim_start().starts_with("do ") && l.contains(advice));
        Ok(!well && named && told)
    });
    outcome.with_context(|| format!("it says\n{said}"))?;
    Ok(said)
}

pub fn names_what_fails(context: &Context) -> anyhow::Result<()> {
    let cluster = &context.shared()?.cluster;
    let began = Instant::now();
    let server = ["-n", NAMESPACE, "patch", "aeroserver", "default", "--type=merge", "-p"];
    let scale = |n: &str| {
        let patch = format!("{{\"spec\": {{\"replicas\": {n}}}}}");
        cluster.kubectl(&[&server[..], &[&patch]].concat())
    };
    scale("0")?;
    let outcome = (|| {
        let said = first_failure(cluster, "web-0", "server", "spec.replicas")?;
        ensure!(said.contains("ok    mapping") && said.contains("ok    holder"), "{said}");
        let (well, said) = aero(cluster, &["status"])?;
        ensure!(!well && said.contains("NoneWanted: spec.replicas is 0"), "{said}");
        anyhow::Ok(())
    })();
    scale("null")?;
    outcome?;
    cluster.wait_for_aero(Duration::from_secs(60))?;
    all_ok(cluster, &["explain", "web-0"], &["2 of 2 Servers have a lease of it"])?;
    cluster.kubectl(&["scale", "statefulset/web", "--replicas=1"])?;
    let outcome = cluster
        .wait_until("explain web-1 says that it has no pod", Duration::from_secs(40), || {
            let (well, said) = aero(cluster, &["explain", "pod/web-1"])?;
            Ok(!well && said.contains("FAIL  mapping") && said.contains("kept for web-1"))
        })
        .and_then(|()| {
            let events =
                cluster.kubectl(&["get", "events", "-o", "jsonpath={.items[*].reason}"])?;
            ensure!(events.contains("Released"), "no Event Released: {events}");
            Ok(())
        });
    cluster.kubectl(&["scale", "statefulset/web", "--replicas=2"])?;
    outcome?;
    all_ok(cluster, &["explain", "pod/web-1"], &["ok    holder"])?;
    let (_, said) = aero(cluster, &["explain", "pod/there-is-none"])
        .unwrap_or_else(|e| (false, format!("{e:#}")));
    ensure!(said.contains("there is no AeroClient, identity or pod"), "{said}");
    context.note(format!("explained two faults in {} ms", began.elapsed().as_millis()));
    Ok(())
}
