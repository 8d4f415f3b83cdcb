//! The built plugin against an agent that this test plays.
#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing, clippy::type_complexity)]

use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

struct Outcome {
    ok: bool,
    out: Value,
    took: Duration,
}

fn plugin(env: &[(&str, &str)], input: &str) -> Outcome {
    let began = Instant::now();
    let mut child = Command::new(env!("CARGO_BIN_EXE_aero-cni"))
        .env_clear()
        .envs(env.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let done = child.wait_with_output().unwrap();
    let out = serde_json::from_slice(&done.stdout).unwrap_or(Value::Null);
    Outcome { ok: done.status.success(), out, took: began.elapsed() }
}

const POD: &str = "K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;K8S_POD_UID=u1";

fn env(verb: &'static str) -> Vec<(&'static str, &'static str)> {
    vec![
        ("CNI_COMMAND", verb),
        ("CNI_CONTAINERID", "c1"),
        ("CNI_NETNS", "/proc/self/ns/net"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_ARGS", POD),
        ("CNI_PATH", "/opt/cni/bin"),
    ]
}

fn config(dir: &Path, version: &str) -> Value {
    json!({
        "cniVersion": version, "name": "ptp", "type": "aero-cni",
        "socket": dir.join("agent.sock"), "journal": dir.join("cni-del"),
    })
}

/// Answers one request; returns what it was.
fn agent(dir: &Path, answer: Value) -> std::thread::JoinHandle<Value> {
    let listener = UnixListener::bind(dir.join("agent.sock")).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut head = [0; 4];
        stream.read_exact(&mut head).unwrap();
        let mut body = vec![0; u32::from_be_bytes(head) as usize];
        stream.read_exact(&mut body).unwrap();
        let bytes = answer.to_string().into_bytes();
        stream.write_all(&u32::try_from(bytes.len()).unwrap().to_be_bytes()).unwrap();
        stream.write_all(&bytes).unwrap();
        serde_json::from_slice(&body).unwrap()
    })
}

#[test]
fn an_add_asks_the_agent_with_all_it_knows_and_prints_the_merged_result() {
    let dir = tempfile::tempdir().unwrap();
    let attachment = json!({
        "interfaces": [{"name": "aero1", "mac": "a", "mtu": 1452}, {"name": "aero0", "mac": "b", "mtu": 1452, "sandbox": "/n"}],
        "ips": [{"address": "2001:db8:a:1::1/64", "interface": 1}], "routes": [],
    });
    let asked = agent(dir.path(), json!({"ok": {"attachment": attachment}}));
    let mut conf = config(dir.path(), "1.0.0");
    conf["prevResult"] = json!({"cniVersion": "1.0.0",
        "interfaces": [{"name": "eth0", "sandbox": "/n"}], "ips": [{"address": "198.18.0.2/32", "interface": 0}]});
    let done = plugin(&env("ADD"), &conf.to_string());
    assert!(done.ok, "{}", done.out);
    assert_eq!(done.out["ips"][1], json!({"address": "2001:db8:a:1::1/64", "interface": 2}));
    let asked = asked.join().unwrap();
    assert_eq!(asked["verb"], "ADD");
    assert_eq!(asked["args"]["K8S_POD_NAME"], "web-0");
    assert_eq!((&asked["containerId"], &asked["ifname"]), (&json!("c1"), &json!("eth0")));
    assert_eq!(asked["config"]["prevResult"], conf["prevResult"]);
}

#[test]
fn the_agents_error_is_printed_with_its_code_and_text() {
    let dir = tempfile::tempdir().unwrap();
    let error = json!({"error": {"code": 11, "msg": "PrefixHeld: by another", "details": "look"}});
    let served = agent(dir.path(), error);
    let done = plugin(&env("ADD"), &config(dir.path(), "1.1.0").to_string());
    served.join().unwrap();
    assert!(!done.ok);
    assert_eq!(
        done.out,
        json!({"cniVersion": "1.1.0", "code": 11, "msg": "PrefixHeld: by another", "details": "look"})
    );
}

#[test]
fn without_an_agent_add_says_so_within_ten_seconds_and_status_says_50() {
    let dir = tempfile::tempdir().unwrap();
    let conf = config(dir.path(), "1.1.0").to_string();
    let done = plugin(&env("ADD"), &conf);
    assert!(!done.ok && done.out["code"] == 11, "{}", done.out);
    assert!(done.out["msg"].as_str().unwrap().contains("the AERO agent does not answer"));
    assert!(done.took < Duration::from_secs(10), "{:?}", done.took);
    let done = plugin(&[("CNI_COMMAND", "STATUS")], &conf);
    assert!(!done.ok && done.out["code"] == 50, "{}", done.out);
}

#[test]
fn without_an_agent_del_is_written_down_and_succeeds_within_five_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let done = plugin(&env("DEL"), &config(dir.path(), "1.0.0").to_string());
    assert!(done.ok, "{}", done.out);
    assert!(done.took < Duration::from_secs(5), "{:?}", done.took);
    let text = std::fs::read_to_string(dir.path().join("cni-del/c1-eth0.json")).unwrap();
    assert_eq!(serde_json::from_str::<Value>(&text).unwrap()["containerId"], "c1");
}

#[test]
fn an_agent_that_hangs_holds_up_del_for_less_than_five_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let _listener = UnixListener::bind(dir.path().join("agent.sock")).unwrap();
    let done = plugin(&env("DEL"), &config(dir.path(), "1.0.0").to_string());
    assert!(done.ok, "{}", done.out);
    assert!(done.took < Duration::from_secs(5), "{:?}", done.took);
    assert!(dir.path().join("cni-del/c1-eth0.json").exists());
}

#[test]
fn del_of_an_unknown_container_is_a_success() {
    let dir = tempfile::tempdir().unwrap();
    let served = agent(dir.path(), json!({"ok": {"attachment": null}}));
    let env: Vec<_> = env("DEL").into_iter().filter(|(k, _)| *k != "CNI_NETNS").collect();
    let done = plugin(&env, &config(dir.path(), "0.4.0").to_string());
    served.join().unwrap();
    assert!(done.ok && done.out == Value::Null);
}

#[test]
fn version_names_all_that_are_understood_and_needs_no_agent() {
    let done = plugin(&[("CNI_COMMAND", "VERSION")], r#"{"cniVersion": "0.4.0"}"#);
    assert!(done.ok);
    assert_eq!(
        done.out,
        json!({"cniVersion": "0.4.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]})
    );
}

#[test]
fn bad_input_gets_the_specifications_error_codes() {
    let dir = tempfile::tempdir().unwrap();
    let good = config(dir.path(), "1.0.0").to_string();
    let without =
        |name: &str| env("ADD").into_iter().filter(|(k, _)| *k != name).collect::<Vec<_>>();
    let with = |name: &'static str, value: &'static str| {
        let mut e = without(name);
        e.push((name, value));
        e
    };
    let cases: Vec<(Vec<(&str, &str)>, String, u64, &str)> = vec![
        (env("ADD"), "not json".into(), 6, "no JSON"),
        (env("ADD"), "[]".into(), 6, "no JSON object"),
        (env("ADD"), String::new(), 6, "no JSON"),
        (env("ADD"), config(dir.path(), "9.9.9").to_string(), 1, "9.9.9"),
        (env("ADD"), r#"{"name": "x"}"#.into(), 1, "0.2.0"),
        (env("ADD"), r#"{"cniVersion": "1.0.0"}"#.into(), 7, "no name"),
        (without("CNI_NETNS"), good.clone(), 4, "CNI_NETNS"),
        (without("CNI_CONTAINERID"), good.clone(), 4, "CNI_CONTAINERID"),
        (without("CNI_IFNAME"), good.clone(), 4, "CNI_IFNAME"),
        (without("CNI_COMMAND"), good.clone(), 4, "CNI_COMMAND"),
        (with("CNI_COMMAND", "FLY"), good.clone(), 4, "FLY"),
        (with("CNI_CONTAINERID", "../x"), good.clone(), 4, "../x"),
        (with("CNI_IFNAME", "a/b"), good.clone(), 4, "a/b"),
        (with("CNI_NETNS", "/nonexistent"), good.clone(), 3, "/nonexistent"),
        (with("CNI_COMMAND", "STATUS"), good.clone(), 1, "STATUS"),
        (with("CNI_COMMAND", "GC"), good.clone(), 1, "GC"),
        (with("CNI_COMMAND", "CHECK"), config(dir.path(), "0.3.1").to_string(), 1, "CHECK"),
    ];
    for (env, input, code, text) in cases {
        let done = plugin(&env, &input);
        assert!(!done.ok, "{env:?} {input}");
        assert_eq!(done.out["code"], code, "{env:?} {input}: {}", done.out);
        assert!(done.out["msg"].as_str().unwrap().contains(text), "{}", done.out);
    }
}
