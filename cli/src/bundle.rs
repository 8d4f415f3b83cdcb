//! `kubectl aero bundle`: all that somebody else needs to find a fault, in one archive. Secrets
//! are not read at all, and what looks like one in an environment is left out.

use std::io::Write;
use std::path::Path;

use anyhow::Context as _;
use flate2::Compression;
use flate2::write::GzEncoder;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Event, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{ListParams, LogParams};
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::observe::{AGENT_PORT, SERVER_PORT, System};
use crate::status::status;
use crate::{connectivity, moves, reach};

/// Admin port of the operator.
const OPERATOR_PORT: u16 = 9062;
/// Lines of each log.
const LINES: i64 = 5000;

/// Files by name.
#[derive(Debug, Default)]
pub struct Bundle {
    files: Vec<(String, Vec<u8>)>,
    missing: Vec<String>,
}

impl Bundle {
    fn add(&mut self, name: impl Into<String>, content: Result<impl Into<Vec<u8>>, String>) {
        let name = name.into();
        match content {
            Ok(bytes) => self.files.push((name, bytes.into())),
            Err(why) => self.missing.push(format!("{name}: {why}")),
        }
    }

    fn objects(&mut self, name: &str, list: Result<Vec<Value>, String>) {
        let yaml = list.and_then(|all| {
            let all: Vec<Value> = all.into_iter().map(redact).collect();
            serde_yaml::to_string(&all).map_err(|e| e.to_string())
        });
        self.add(format!("objects/{name}.yaml"), yaml);
    }

    /// Writes the archive; `root` is the directory that everything is in.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write(mut self, path: &Path, root: &str) -> anyhow::Result<usize> {
        if !self.missing.is_empty() {
            let text = self.missing.join("\n");
            self.files.push(("missing.txt".into(), text.into_bytes()));
        }
        let file = std::fs::File::create(path)
            .with_context(|| format!("{} cannot be made", path.display()))?;
        let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
        for (name, bytes) in &self.files {
            let mut header = tar::Header::new_gnu();
            header.set_size(u64::try_from(bytes.len())?);
            header.set_mode(0o644);
            archive.append_data(&mut header, format!("{root}/{name}"), bytes.as_slice())?;
        }
        archive.into_inner()?.finish()?.flush()?;
        Ok(self.files.len())
    }
}

/// Takes out what is bulky or might be secret: managed fields, the last applied configuration,
/// values of environment variables with a telling name.
fn redact(mut value: Value) -> Value {
    strip(&mut value);
    value
}

fn strip(value: &mut Value) {
    match value {
        Value::Array(all) => all.iter_mut().for_each(strip),
        Value::Object(map) => {
            map.remove("managedFields");
            map.remove("kubectl.kubernetes.io/last-applied-configuration");
            let name = map.get("name").and_then(Value::as_str).unwrap_or_default().to_uppercase();
            let telling = ["PASSWORD", "SECRET", "TOKEN", "KEY", "CREDENTIAL"];
            if map.contains_key("value") && telling.iter().any(|t| name.contains(t)) {
                map.insert("value".into(), json!("(left out)"));
            }
            map.values_mut().for_each(strip);
        }
        _ => {}
    }
}

async fn list<K>(api: Api<K>, params: ListParams) -> Result<Vec<Value>, String>
where
    K: Clone + DeserializeOwned + Serialize + std::fmt::Debug,
{
    let list = api.list(&params).await.map_err(|e| e.to_string())?;
    list.items.iter().map(|o| serde_json::to_value(o).map_err(|e| e.to_string())).collect()
}

/// Gathers everything. What cannot be read is named in `missing.txt`.
pub async fn gather(client: &Client, system: &System) -> Bundle {
    let mut b = Bundle::default();
    let all = ListParams::default;
    let c = || client.clone();
    let ns = &system.namespace;
    let seen = status(system);
    b.add("status.txt", Ok::<_, String>(seen.text()));
    b.add("status.json", serde_json::to_vec_pretty(&seen).map_err(|e| e.to_string()));
    b.add(
        "moves.json",
        serde_json::to_vec_pretty(&moves::moves(system)).map_err(|e| e.to_string()),
    );
    let pairs = connectivity::probe(client, system, connectivity::plan(system, None)).await;
    let judged = connectivity::judge(system, pairs);
    b.add("connectivity.txt", Ok::<_, String>(judged.text()));
    let version = client.apiserver_version().await.map(|v| v.git_version);
    b.add(
        "versions.txt",
        version
            .map_err(|e| e.to_string())
            .map(|v| format!("kubernetes {v}\nkubectl-aero {}\n", env!("CARGO_PKG_VERSION"))),
    );
    let values = |all: Vec<Result<Value, serde_json::Error>>| {
        all.into_iter().collect::<Result<Vec<_>, _>>().map_err(|e| e.to_string())
    };
    b.objects("aerolinks", values(system.links.iter().map(serde_json::to_value).collect()));
    b.objects("aeroservers", values(system.servers.iter().map(serde_json::to_value).collect()));
    b.objects("aerorelays", values(system.relays.iter().map(serde_json::to_value).collect()));
    b.objects("aeroclients", values(system.clients.iter().map(serde_json::to_value).collect()));
    b.objects("acpmappings", values(system.mappings.iter().map(serde_json::to_value).collect()));
    b.objects("nodes", list(Api::<Node>::all(c()), all()).await);
    b.objects("pods", list(Api::<Pod>::namespaced(c(), ns), all()).await);
    b.objects("deployments", list(Api::<Deployment>::namespaced(c(), ns), all()).await);
    b.objects("daemonsets", list(Api::<DaemonSet>::namespaced(c(), ns), all()).await);
    b.objects("services", list(Api::<Service>::namespaced(c(), ns), all()).await);
    b.objects("endpointslices", list(Api::<EndpointSlice>::namespaced(c(), ns), all()).await);
    b.objects("leases", list(Api::<Lease>::namespaced(c(), ns), all()).await);
    let budgets = Api::<PodDisruptionBudget>::namespaced(c(), ns);
    b.objects("poddisruptionbudgets", list(budgets, all()).await);
    b.objects("events", events(client, ns).await);
    b.objects("enrolled-pods", enrolled(client).await);
    for pod in &system.parts {
        let api: Api<Pod> = Api::namespaced(c(), ns);
        let tail = LogParams { tail_lines: Some(LINES), timestamps: true, ..LogParams::default() };
        let log = api.logs(&pod.name, &tail).await.map_err(|e| e.to_string());
        b.add(format!("logs/{}.log", pod.name), log);
        let before = LogParams { previous: true, ..tail };
        // Most have never been restarted.
        if let Ok(log) = api.logs(&pod.name, &before).await {
            b.add(format!("logs/{}.previous.log", pod.name), Ok::<_, String>(log));
        }
        let (port, debug) = match () {
            () if pod.is_part("agent") => (AGENT_PORT, Some("/debug/node")),
            () if pod.is_part("server") => (SERVER_PORT, Some("/debug/server")),
            () => (OPERATOR_PORT, None),
        };
        let page = |path| reach::page(client, ns, &pod.name, port, path);
        b.add(format!("metrics/{}.txt", pod.name), page("/metrics").await);
        if let Some(path) = debug {
            b.add(format!("debug/{}.json", pod.name), page(path).await);
        }
    }
    b
}

/// Events of the release's namespace, and about our kinds anywhere.
async fn events(client: &Client, namespace: &str) -> Result<Vec<Value>, String> {
    let all = list(Api::<Event>::all(client.clone()), ListParams::default()).await?;
    let ours = |e: &Value| {
        let text = |at: &str| e.pointer(at).and_then(Value::as_str).unwrap_or_default();
        text("/metadata/namespace") == namespace
            || text("/involvedObject/kind").starts_with("Aero")
            || text("/involvedObject/kind") == "AcpMapping"
            || text("/reportingComponent").starts_with("aero-")
            || text("/reason") == "FailedCreatePodSandBox"
    };
    Ok(all.into_iter().filter(ours).collect())
}

/// What is known of enrolled pods: names, nodes, our annotations, conditions; not their specs.
async fn enrolled(client: &Client) -> Result<Vec<Value>, String> {
    let pods = Api::<Pod>::all(client.clone()).list(&ListParams::default()).await;
    let pods = pods.map_err(|e| e.to_string())?;
    let ours = |p: &&Pod| {
        p.metadata.annotations.iter().flatten().any(|(k, _)| k.starts_with("aerolink.dev/"))
    };
    let look = |p: &Pod| {
        let annotations: serde_json::Map<String, Value> = (p.metadata.annotations.iter().flatten())
            .filter(|(k, _)| k.starts_with("aerolink.dev/"))
            .map(|(k, v)| (k.clone(), json!(v)))
            .collect();
        json!({
            "namespace": p.metadata.namespace, "name": p.metadata.name, "uid": p.metadata.uid,
            "deletionTimestamp": p.metadata.deletion_timestamp, "annotations": annotations,
            "node": p.spec.as_ref().and_then(|s| s.node_name.clone()),
            "phase": p.status.as_ref().and_then(|s| s.phase.clone()),
            "podIPs": p.status.as_ref().and_then(|s| s.pod_ips.clone()),
            "conditions": p.status.as_ref().and_then(|s| s.conditions.clone()),
        })
    };
    Ok(pods.items.iter().filter(ours).map(look).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_might_be_secret_is_left_out() {
        let pod = json!({
            "metadata": {"name": "p", "managedFields": [1],
                "annotations": {"kubectl.kubernetes.io/last-applied-configuration": "{}", "a": "b"}},
            "spec": {"containers": [{"name": "c", "env": [
                {"name": "DB_PASSWORD", "value": "hunter2"}, {"name": "AERO_LINK", "value": "default"}]}]},
        });
        let text = redact(pod).to_string();
        for gone in ["hunter2", "managedFields", "last-applied"] {
            assert!(!text.contains(gone), "{text}");
        }
        assert!(
            text.contains("AERO_LINK")
                && text.contains("\"default\"")
                && text.contains("(left out)")
        );
    }

    #[test]
    fn the_archive_holds_the_files_and_names_what_is_missing() {
        let path = std::env::temp_dir().join(format!("aero-bundle-{}.tar.gz", std::process::id()));
        let mut b = Bundle::default();
        b.add("a.txt", Ok::<_, String>("hello"));
        b.add("b.txt", Err::<String, _>("forbidden".into()));
        assert_eq!(b.write(&path, "aero").unwrap(), 2);
        let file = flate2::read::GzDecoder::new(std::fs::File::open(&path).unwrap());
        let mut archive = tar::Archive::new(file);
        let names: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|e| e.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(names, ["aero/a.txt", "aero/missing.txt"]);
        std::fs::remove_file(path).unwrap();
    }
}
