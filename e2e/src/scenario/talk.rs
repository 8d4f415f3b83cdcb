//! The correspondents: on every node one pod that asks all servers all the time.

use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;

use super::observer::Observer;
use super::{Cluster, PORT, micros};

/// One answer, as a correspondent wrote it down.
#[derive(Debug, Clone, Deserialize)]
pub struct Answer {
    /// Target.
    pub t: String,
    /// Number of the question.
    pub n: u64,
    /// When it was asked, in microseconds of the clock.
    pub sent: u64,
    /// When the answer came.
    pub got: u64,
    /// Instance that answered: pod, `@`, when it started.
    pub by: String,
}

impl Answer {
    /// When the instance that answered was started.
    pub fn instance_started(&self) -> u64 {
        self.by.rsplit('@').next().and_then(|s| s.parse().ok()).unwrap_or(0)
    }
}

/// The stable address of a prefix.
pub fn stable_address(prefix: &str) -> String {
    format!("{}1", prefix.split('/').next().unwrap_or_default())
}

/// Waits until both web pods are ready: their names without namespace, prefixes and nodes.
///
/// # Errors
/// If they are not within two minutes.
pub fn wait_for_web(observer: &Observer) -> anyhow::Result<Vec<(String, String, String)>> {
    observer.wait("two web pods with prefixes", Duration::from_secs(120), |seen| {
        let ready = seen.ready("app", "web");
        let all: Option<Vec<_>> = ready
            .iter()
            .map(|p| {
                Some((p.name.rsplit('/').next()?.to_string(), p.prefix.clone()?, p.node.clone()))
            })
            .collect();
        all.filter(|a| a.len() == 2)
    })
}

/// Starts the correspondents and waits until each has had an answer of each target.
/// `targets`: pod and prefix.
///
/// # Errors
/// If they do not start or get no answers.
pub fn start(
    cluster: &Cluster,
    observer: &Observer,
    targets: &[(String, String)],
    nodes: usize,
) -> anyhow::Result<()> {
    let mut args = vec!["ask".to_string()];
    args.extend(
        targets.iter().map(|(name, prefix)| format!("{name}=[{}]:{PORT}", stable_address(prefix))),
    );
    let manifest = serde_json::json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": {"name": "correspondent"},
        "spec": {
            "selector": {"matchLabels": {"app": "correspondent"}},
            "template": {
                "metadata": {"labels": {"app": "correspondent"}},
                "spec": {
                    "terminationGracePeriodSeconds": 1,
                    "containers": [{
                        "name": "talk", "image": "aerolink.dev/aero-talk:0.1.0",
                        "imagePullPolicy": "IfNotPresent",
                        "args": args,
                    }],
                },
            },
        },
    });
    cluster.apply(&manifest.to_string())?;
    observer.wait("correspondents are ready", Duration::from_secs(120), |seen| {
        (seen.ready("app", "correspondent").len() >= nodes).then_some(())
    })?;
    let since = micros() - 5_000_000;
    cluster.wait_until(
        "every correspondent has answers of every target",
        Duration::from_secs(60),
        || {
            let all = answers(cluster, observer, since, &[])?;
            Ok(all.len() >= nodes
                && all
                    .iter()
                    .all(|(_, list)| targets.iter().all(|(t, _)| list.iter().any(|a| a.t == *t))))
        },
    )
}

/// Answers since a time, by node of the correspondent; those on nodes of `without` are left out.
///
/// # Errors
/// If a log cannot be read.
pub fn answers(
    cluster: &Cluster,
    observer: &Observer,
    since: u64,
    without: &[&str],
) -> anyhow::Result<Vec<(String, Vec<Answer>)>> {
    let pods: Vec<(String, String)> = observer
        .seen()
        .ready("app", "correspondent")
        .iter()
        .filter(|p| !without.contains(&p.node.as_str()))
        .map(|p| (p.node.clone(), p.name.clone()))
        .collect();
    let mut all = Vec::new();
    for (node, name) in pods {
        let (namespace, pod) = name.split_once('/').context("a pod without a namespace")?;
        let age = (micros().saturating_sub(since) / 1_000_000 + 1).max(1);
        let log = cluster.kubectl(&["-n", namespace, "logs", pod, &format!("--since={age}s")])?;
        let list: Vec<Answer> = log
            .lines()
            .filter_map(|l| serde_json::from_str::<Answer>(l).ok())
            .filter(|a| a.got >= since)
            .collect();
        all.push((node, list));
    }
    Ok(all)
}

/// The longest time without an answer of a target, in microseconds, between two times.
pub fn longest_silence(answers: &[Answer], target: &str, from: u64, to: u64) -> u64 {
    let mut times: Vec<u64> = answers
        .iter()
        .filter(|a| a.t == target && a.got >= from && a.got <= to)
        .map(|a| a.got)
        .collect();
    times.sort_unstable();
    let mut longest = 0;
    let mut last = from;
    for t in times.into_iter().chain([to]) {
        longest = longest.max(t.saturating_sub(last));
        last = t;
    }
    longest
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(got: u64) -> Answer {
        Answer { t: "web-0".into(), n: 0, sent: 0, got, by: "web-0@1700".into() }
    }

    #[test]
    fn silence_counts_from_the_first_to_the_last_moment() {
        let list = [answer(120), answer(150), answer(110)];
        assert_eq!(longest_silence(&list, "web-0", 100, 160), 30);
        assert_eq!(longest_silence(&list, "web-0", 100, 500), 350);
        assert_eq!(longest_silence(&list, "web-1", 100, 500), 400);
        assert_eq!(answer(1).instance_started(), 1700);
    }

    #[test]
    fn the_stable_address_is_the_first_of_the_prefix() {
        assert_eq!(stable_address("2001:db8:a:1::/64"), "2001:db8:a:1::1");
    }
}
