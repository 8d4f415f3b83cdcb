//! The link as its users see it: objects, their status, and the tables of the Relays' nodes.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use aero_e2e::lab::Lab;
use aero_e2e::scenario::{Cluster, NAMESPACE};
use anyhow::{Context as _, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

pub const RELAY: &str = "aerorelay/backbone";
pub const SERVER: &str = "aeroserver/default";
/// How long a change of who takes part may take, a pod's start included, and a kubelet's wait
/// before it starts a container once more.
pub const SETTLED: Duration = Duration::from_secs(60);

/// How long until a status or an Event says what is so.
const SAID: Duration = Duration::from_secs(30);

/// A pod of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    pub name: String,
    pub uid: String,
    pub node: String,
}

/// Two Servers and two Relays, each on a node of its own.
pub struct Link<'a> {
    pub lab: &'a Lab,
    pub cluster: &'a Cluster,
}

impl Link<'_> {
    pub fn kubectl(&self, args: &[&str]) -> anyhow::Result<String> {
        self.cluster.kubectl(&[&["-n", NAMESPACE], args].concat())
    }

    pub fn json(&self, args: &[&str]) -> anyhow::Result<Value> {
        let text = self.kubectl(&[args, &["-o", "json"]].concat())?;
        serde_json::from_str(&text).context("kubectl printed no JSON")
    }

    pub fn patch(&self, object: &str, spec: &Value) -> anyhow::Result<()> {
        let patch = json!({"spec": spec}).to_string();
        self.kubectl(&["patch", object, "--type=merge", "-p", &patch]).map(drop)
    }

    /// Prefixes that a pod holds now.
    pub fn live(&self) -> anyhow::Result<BTreeSet<String>> {
        let all = self.json(&["get", "acpmappings"])?;
        let items = all["items"].as_array().context("no list")?;
        let held = items.iter().filter(|m| m["spec"]["holder"].is_object());
        Ok(held.filter_map(|m| m["spec"]["prefix"].as_str().map(String::from)).collect())
    }

    /// The Relays that are ready.
    pub fn relays(&self) -> anyhow::Result<Vec<Part>> {
        self.ready("aerolink.dev/relay=backbone")
    }

    /// The Servers that are ready.
    pub fn servers(&self) -> anyhow::Result<Vec<Part>> {
        self.ready("aerolink.dev/server=default")
    }

    /// The Server that most of the Relays' routes lead to: BIRD has one for each Client, of those
    /// that have it.
    pub fn used_server(&self) -> anyhow::Result<Part> {
        let mut shown = String::new();
        for relay in self.relays()? {
            let command = ["ip", "-6", "route", "show", "table", "8060"];
            shown.push_str(&self.lab.run(&relay.node, &command)?);
        }
        let routes = |server: &Part| {
            let v4 = self.lab.node_addresses(&server.node).into_iter().find_map(|a| match a {
                IpAddr::V4(v4) => Some(v4.octets()),
                IpAddr::V6(_) => None,
            });
            let [a, b, c, d] = v4.unwrap_or_default().map(u16::from);
            let link_local = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, a << 8 | b, c << 8 | d);
            shown.matches(&format!("via {link_local} ")).count()
        };
        let used = self.servers()?.into_iter().max_by_key(routes);
        let used = used.filter(|server| routes(server) > 0);
        used.with_context(|| format!("no Server is in {shown}"))
    }

    fn ready(&self, label: &str) -> anyhow::Result<Vec<Part>> {
        let pods = self.json(&["get", "pods", "-l", label])?;
        let ready = |p: &&Value| {
            p["metadata"]["deletionTimestamp"].is_null()
                && p["status"]["conditions"].as_array().is_some_and(|all| {
                    all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True")
                })
        };
        let pods = pods["items"].as_array().context("no list")?.iter().filter(ready);
        let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
        Ok(pods
            .map(|p| Part {
                name: text(&p["metadata"]["name"]),
                uid: text(&p["metadata"]["uid"]),
                node: text(&p["spec"]["nodeName"]),
            })
            .collect())
    }

    /// What BIRD has written into the kernel table of a Relay's node.
    pub fn table(&self, node: &str) -> anyhow::Result<BTreeSet<String>> {
        let command = ["ip", "-6", "route", "show", "table", "8060"];
        let output = self.lab.exec(node, &command)?;
        // A table that never had a route is none.
        let none = String::from_utf8_lossy(&output.stderr).contains("FIB table does not exist");
        ensure!(output.status.success() || none, "{command:?} on {node}: {output:?}");
        let shown = String::from_utf8_lossy(&output.stdout).into_owned();
        let prefixes = shown.lines().filter_map(|l| l.split_whitespace().next());
        Ok(prefixes.filter(|p| p.contains('/')).map(String::from).collect())
    }

    /// Waits until two Relays have a route to each prefix that is held and to no other, and every
    /// session is reported as established; how long that took.
    pub fn settled(&self, what: &str) -> anyhow::Result<Duration> {
        let began = Instant::now();
        let mut last = String::new();
        let waited = self.cluster.wait_until(what, SETTLED, || {
            let (live, relays) = (self.live()?, self.relays()?);
            let mut tables = Vec::new();
            for relay in &relays {
                tables.push(self.table(&relay.node)?);
            }
            let healthy = |object: &str| -> anyhow::Result<(bool, String)> {
                let object_now = self.json(&["get", object])?;
                let (spec, status) = (&object_now["spec"], &object_now["status"]);
                // Each Server with each Relay, and each Relay with each router outside.
                let outside = spec["externalPeers"].as_array().map_or(0, Vec::len);
                let wanted = 4 + 2 * outside;
                let sessions = status["bgpSessions"].as_array().cloned().unwrap_or_default();
                let up = sessions.iter().filter(|s| s["state"] == "Established").count();
                Ok((
                    up == wanted && sessions.len() == wanted,
                    format!("{object}: {}", status["bgpSessions"]),
                ))
            };
            let (servers, relayed) = (healthy(SERVER)?, healthy(RELAY)?);
            last = format!("{live:?} {relays:?} {tables:?}\n{}\n{}", servers.1, relayed.1);
            Ok(relays.len() == 2 && tables.iter().all(|t| *t == live) && servers.0 && relayed.0)
        });
        waited.with_context(|| format!("{last}\n{}", self.logs()))?;
        Ok(began.elapsed())
    }

    pub fn logs(&self) -> String {
        let pods = self.kubectl(&["get", "pods", "-o", "wide"]).unwrap_or_default();
        let mut all = pods;
        for label in ["aerolink.dev/relay=backbone", "aerolink.dev/server=default"] {
            let args = ["logs", "-l", label, "--all-containers", "--prefix", "--tail=12"];
            all.push_str(&self.kubectl(&args).unwrap_or_else(|e| format!("{e:#}\n")));
        }
        all
    }

    /// Waits until a condition says this.
    pub fn says(&self, object: &str, kind: &str, status: &str, reason: &str) -> anyhow::Result<()> {
        let mut last = Value::Null;
        let what = format!("{object} says {kind}={status}, {reason}");
        let waited = self.cluster.wait_until(&what, SAID, || {
            last = self.json(&["get", object])?["status"]["conditions"].clone();
            let said =
                |c: &Value| c["type"] == kind && c["status"] == status && c["reason"] == reason;
            Ok(last.as_array().is_some_and(|all| all.iter().any(said)))
        });
        waited.with_context(|| last.to_string())
    }

    /// Waits until a condition is false for this reason, and an Event about the object says so, too,
    /// in words that contain `about`.
    pub fn complains(
        &self,
        object: &str,
        kind: &str,
        reason: &str,
        about: &str,
    ) -> anyhow::Result<()> {
        self.says(object, kind, "False", reason)?;
        let (field, name) =
            (format!("reason={reason}"), object.split('/').next_back().unwrap_or_default());
        let what = format!("an Event about {object} says {reason} of {about:?}");
        let told = |e: &Value| {
            e["type"] == "Warning"
                && e["involvedObject"]["name"] == name
                && e["message"].as_str().is_some_and(|m| m.contains(about))
        };
        self.cluster.wait_until(&what, SAID, || {
            let events = self.json(&["get", "events", "--field-selector", &field])?;
            Ok(events["items"].as_array().is_some_and(|all| all.iter().any(told)))
        })
    }

    /// How many packets the Server or Relay on a node has sent into tunnels, by its own account.
    pub fn tunneled(&self, node: &str, port: u16) -> anyhow::Result<u64> {
        let url = format!("http://127.0.0.1:{port}/metrics");
        let text = self.lab.run(node, &["curl", "-s", "-m", "3", &url])?;
        let value = text.lines().find_map(|l| l.strip_prefix("aero_tunneled_packets_total "));
        value.and_then(|v| v.parse().ok()).with_context(|| format!("no counter in {text}"))
    }

    pub fn file(&self) -> anyhow::Result<String> {
        let map = self.json(&["get", "configmap", "aero-routes-default"])?;
        Ok(map["data"]["routes.yaml"].as_str().unwrap_or_default().to_string())
    }

    /// Processes of a pod that are this: a Server's or Relay's program (`server`, `relay`), or `bird`.
    pub fn processes(&self, part: &Part, what: &str) -> anyhow::Result<Vec<i32>> {
        let is = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            let mut words = line.split(|b| *b == 0).map(String::from_utf8_lossy);
            let program = words.next().unwrap_or_default();
            let program = program.rsplit('/').next().unwrap_or_default();
            match what {
                "bird" => program == "bird",
                _ => program == "aero-node-agent" && words.next().is_some_and(|w| w == what),
            }
        };
        let all = self.lab.processes_of_pod(&part.node, &part.uid)?;
        Ok(all.into_iter().filter(is).collect())
    }

    /// `kill -9` of the one process of a pod that is this; its number.
    pub fn kill(&self, part: &Part, what: &str) -> anyhow::Result<i32> {
        let found = self.processes(part, what)?;
        let [pid] = found[..] else {
            anyhow::bail!("of {what} there are {found:?} in {part:?}");
        };
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        Ok(pid)
    }

    /// Waits until another process than `old` is in its place.
    pub fn runs_again(&self, part: &Part, what: &str, old: i32) -> anyhow::Result<()> {
        let said = format!("{what} of {} is started again", part.name);
        self.cluster.wait_until(&said, SETTLED, || {
            Ok(matches!(self.processes(part, what)?[..], [pid] if pid != old))
        })
    }

    /// Asks the BIRD beside a Relay.
    pub fn birdc(&self, relay: &Part, question: &str) -> anyhow::Result<String> {
        let birdc = ["/usr/sbin/birdc", "-s", "/run/aero-bird/bird.ctl"];
        let words: Vec<&str> = question.split(' ').collect();
        self.kubectl(&[&["exec", &relay.name, "-c", "bird", "--"], &birdc[..], &words].concat())
    }
}
