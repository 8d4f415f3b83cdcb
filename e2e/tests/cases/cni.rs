//! The plugin on a node, by hand, by the reference runtime, and without an API server.

use std::time::{Duration, Instant};

use aero_e2e::lab::Lab;
use aero_e2e::scenario::{micros, talk};
use anyhow::{Context as _, ensure};
use serde_json::{Value, json};

use super::{Context, faults};

const CONTAINER: &str = "e2e-container";

/// Runs the installed plugin on a node with a configuration on its standard input.
pub fn plugin(
    lab: &Lab,
    node: &str,
    env: &str,
    input: &str,
) -> anyhow::Result<(bool, Value, Duration)> {
    let began = Instant::now();
    let script = format!("printf '%s' '{input}' | env -i {env} /opt/cni/bin/aero-cni");
    let output = lab.exec(node, &["sh", "-c", &script])?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let value = serde_json::from_str(&text).unwrap_or(Value::Null);
    Ok((output.status.success(), value, began.elapsed()))
}

pub fn config(version: &str) -> String {
    json!({"cniVersion": version, "name": "by-hand", "type": "aero-cni", "socket": "/run/aero/agent.sock"}).to_string()
}

pub fn env(verb: &str, netns: &str, pod: &str) -> String {
    env_of(CONTAINER, verb, netns, pod)
}

/// The environment of the plugin for a container.
pub fn env_of(container: &str, verb: &str, netns: &str, pod: &str) -> String {
    format!(
        "CNI_COMMAND={verb} CNI_CONTAINERID={container} CNI_NETNS={netns} CNI_IFNAME=net1 \
         CNI_PATH=/opt/cni/bin CNI_ARGS='K8S_POD_NAMESPACE=default;K8S_POD_NAME={pod}'"
    )
}

pub fn error_codes(context: &Context) -> anyhow::Result<()> {
    let lab = context.shared()?.lab();
    let netns = "/proc/self/ns/net";
    let add = env("ADD", netns, "web-0");
    let cases = [
        (add.clone(), "not json".to_string(), 6, "JSON"),
        (add.clone(), config("7.0.0"), 1, "7.0.0"),
        (env("ADD", "/run/netns/none", "web-0"), config("1.0.0"), 3, "/run/netns/none"),
        (add.replace("CNI_NETNS=/proc/self/ns/net ", ""), config("1.0.0"), 4, "CNI_NETNS"),
        (add.replace(";K8S_POD_NAME=web-0", ""), config("1.0.0"), 4, "K8S_POD_NAME"),
        (env("GC", netns, "web-0"), config("1.1.0"), 7, "valid-attachments"),
    ];
    for (env, input, code, text) in cases {
        let (ok, out, _) = plugin(lab, "n1", &env, &input)?;
        ensure!(!ok && out["code"] == code, "{env} {input}: {out}");
        let said = out["msg"].as_str().unwrap_or_default();
        ensure!(said.contains(text), "{env} {input}: {said}");
    }
    let (ok, out, _) = plugin(lab, "n1", "CNI_COMMAND=STATUS", &config("1.1.0"))?;
    ensure!(ok, "STATUS on a healthy node: {out}");
    Ok(())
}

pub fn cnitool(context: &Context) -> anyhow::Result<()> {
    let shared = context.shared()?;
    let lab = shared.lab();
    // The pod is real, and enrolled; its second sandbox, of the reference runtime, takes over.
    let manifest = r#"
apiVersion: aerolink.dev/v1alpha1
kind: AeroClient
metadata: {name: delegate}
spec: {podSelector: {matchLabels: {app: delegate}}}
---
apiVersion: v1
kind: Pod
metadata: {name: delegate, labels: {app: delegate}}
spec:
  nodeName: n2
  terminationGracePeriodSeconds: 1
  containers: [{name: c, image: "aerolink.dev/aero-talk:0.1.0", args: [serve]}]
"#;
    shared.cluster.apply(manifest)?;
    let pod = shared.observer.wait("the delegate pod is ready", Duration::from_secs(90), |s| {
        s.pod("default/delegate").filter(|p| p.ready_at.is_some()).cloned()
    })?;
    let address = talk::stable_address(&pod.prefix.context("it has no prefix")?);
    let list = json!({"cniVersion": "1.1.0", "name": "aero-net",
        "plugins": [{"type": "aero-cni", "socket": "/run/aero/agent.sock"}]});
    let cnitool = lab.program("cnitool").display().to_string();
    let run = |verb: &str| {
        let env = "CNI_PATH=/opt/cni/bin NETCONFPATH=/run/aero/net.d CNI_IFNAME=net1 \
             CNI_ARGS='K8S_POD_NAMESPACE=default;K8S_POD_NAME=delegate'";
        lab.run("n2", &["sh", "-c", &format!("{env} {cnitool} {verb} aero-net /run/netns/e2e")])
    };
    let script = format!(
        "ip netns add e2e && mkdir -p /run/aero/net.d && printf '%s' '{list}' > /run/aero/net.d/10-aero.conflist"
    );
    lab.run("n2", &["sh", "-c", &script])?;
    let outcome = (|| {
        run("status")?;
        let result: Value = serde_json::from_str(&run("add")?)?;
        let has = result["ips"].as_array().into_iter().flatten().any(|ip| {
            ip["address"].as_str().is_some_and(|a| a.starts_with(&format!("{address}/")))
        });
        ensure!(has, "{address} is not in {result}");
        let addresses = lab.run("n2", &["ip", "-n", "e2e", "-6", "addr", "show", "net1"])?;
        ensure!(addresses.contains(&address), "{addresses}");
        run("check")?;
        // Reached like any pod: from the correspondents' side of the link.
        lab.run(
            "n2",
            &[
                "ip",
                "netns",
                "exec",
                "e2e",
                "busybox",
                "ping",
                "-6",
                "-c",
                "1",
                "-W",
                "2",
                &first_web(context)?,
            ],
        )?;
        lab.run(
            "n2",
            &["ip", "-n", "e2e", "addr", "del", &format!("{address}/128"), "dev", "net1"],
        )?;
        let missing = run("check").err().map(|e| format!("{e:#}")).unwrap_or_default();
        ensure!(missing.contains(&address), "CHECK of a broken attachment said {missing:?}");
        run("del")?;
        run("del")?;
        let left = lab.exec("n2", &["ip", "-n", "e2e", "link", "show", "net1"])?;
        ensure!(!left.status.success(), "net1 is still there after DEL");
        let test = "cnitool_drives_the_plugin_as_a_sole_delegate";
        let figure = "CHECK named the address that was missing; DEL twice, both well".to_string();
        faults::shown(test, &["F11"], figure);
        // What is in the namespace is a busybox and a route: it was served from ADD to DEL.
        let _rows =
            aero_elements::covers_in("cnitool_drives_the_plugin_as_a_sole_delegate", &["N2", "N3"]);
        Ok(())
    })();
    lab.run("n2", &["sh", "-c", "ip netns del e2e; rm -r /run/aero/net.d"])?;
    shared.cluster.kubectl(&["delete", "pod/delegate", "aeroclient/delegate"])?;
    outcome
}

/// What comes after must be seen when it happens: waits until the observer sees a fresh pod run. Its
/// kubelet's watch of pods may wait for a minute before it looks again, as that of nodes does.
fn watching_again(context: &Context) -> anyhow::Result<()> {
    let shared = context.shared()?;
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "fresh"},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [
            {"name": "c", "image": "aerolink.dev/aero-talk:0.1.0", "args": ["serve"]}]}});
    shared.cluster.apply(&pod.to_string())?;
    shared.observer.wait("the observer sees a fresh pod", Duration::from_secs(150), |s| {
        s.pod("default/fresh").filter(|p| p.ready_at.is_some()).map(drop)
    })?;
    shared.cluster.kubectl(&["delete", "pod", "fresh", "--wait=false"]).map(drop)
}

/// Stable address of the first web pod.
pub fn first_web(context: &Context) -> anyhow::Result<String> {
    let seen = context.shared()?.observer.seen();
    let pod = seen.pod("default/web-0").context("web-0 is gone")?;
    Ok(talk::stable_address(pod.prefix.as_deref().unwrap_or_default()))
}

pub fn no_api(context: &Context) -> anyhow::Result<()> {
    let shared = context.shared()?;
    let lab = shared.lab();
    let stopped = micros();
    lab.stop_api()?;
    let outcome = (|| {
        let (ok, out, took) = plugin(lab, "n1", "CNI_COMMAND=STATUS", &config("1.1.0"))?;
        ensure!(!ok && out["code"] == 50, "STATUS: {out}");
        context.note(format!("without an API server STATUS says 50 after {} ms", took.as_millis()));
        let (ok, out, took) = plugin(lab, "n1", &env("DEL", "", "web-0"), &config("1.0.0"))?;
        ensure!(ok && took < Duration::from_secs(5), "DEL took {took:?}: {out}");
        let (ok, out, took) =
            plugin(lab, "n1", &env("ADD", "/proc/self/ns/net", "newcomer"), &config("1.0.0"))?;
        let said = out["msg"].as_str().unwrap_or_default();
        ensure!(!ok && out["code"] == 11 && said.contains("API server"), "ADD: {out}");
        ensure!(took < Duration::from_secs(10), "ADD took {took:?}");
        context.note(format!("ADD failed after {} ms: {said}", took.as_millis()));
        // Longer than half a lease, so that every lease is renewed without the API server.
        let rest =
            Duration::from_secs(22).saturating_sub(Duration::from_micros(micros() - stopped));
        std::thread::sleep(rest);
        Ok(())
    })();
    let until = micros();
    lab.start_api()?;
    outcome?;
    // A kubelet compares its status with what its own watch saw last (tryUpdateNodeStatus), and that
    // watch is tried again after up to 30 s, doubled by jitter: until then a node that was declared
    // unknown stays so, however well it is.
    lab.wait_for_nodes(Duration::from_secs(150))?;
    watching_again(context)?;
    let all = talk::answers(&shared.cluster, &shared.observer, stopped, &[])?;
    ensure!(all.len() == lab.nodes().len(), "correspondents on {} nodes", all.len());
    for (node, list) in &all {
        for target in ["web-0", "web-1"] {
            let silence = talk::longest_silence(list, target, stopped, until) / 1000;
            ensure!(
                silence < 1000,
                "{target} was silent for {silence} ms to the correspondent on {node}"
            );
        }
    }
    shared.cluster.wait_for_aero(Duration::from_secs(60))?;
    let test = "without_an_api_server_traffic_goes_on_and_the_plugin_says_what_is_wrong";
    let away = (until - stopped) / 1_000_000;
    let figure =
        format!("away for {away} s: no silence over 1 s, ADD failed within 10 s, STATUS 50");
    faults::shown(test, &["F12"], figure);
    Ok(())
}
