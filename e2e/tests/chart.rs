//! The chart, rendered by the lab's helm with several sets of values.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::process::Command;

use aero_e2e::lab::{programs, workspace};
use serde_json::Value;

fn chart() -> PathBuf {
    workspace().join("charts/aero")
}

/// Runs helm: what it prints, or what it complains of.
fn helm(arguments: &[&str]) -> Result<String, String> {
    let program = programs::cached().expect("`e2e programs` builds helm").join("helm");
    let output = Command::new(program).args(arguments).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
}

/// The objects of the chart with `--set` of each value.
fn render(values: &[&str]) -> Vec<Value> {
    let path = chart().display().to_string();
    let mut arguments = vec!["template", "aero", &path, "-n", "aero-system"];
    for value in values {
        arguments.extend(["--set", value]);
    }
    let text = helm(&arguments).unwrap();
    let documents = serde_yaml::Deserializer::from_str(&text);
    let objects = documents.map(|d| <Value as serde::Deserialize>::deserialize(d).unwrap());
    objects.filter(|o| !o.is_null()).collect()
}

fn find<'a>(objects: &'a [Value], kind: &str, name: &str) -> &'a Value {
    let found = objects.iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name);
    found.unwrap_or_else(|| panic!("there is no {kind} {name}"))
}

fn kinds(objects: &[Value]) -> BTreeSet<&str> {
    objects.iter().filter_map(|o| o["kind"].as_str()).collect()
}

const OPTIONS: [&str; 4] = [
    "networkPolicy.enabled=true",
    "podMonitor.enabled=true",
    "prometheusRule.enabled=true",
    "grafanaDashboard.enabled=true",
];

#[test]
fn helm_lints_the_chart_with_and_without_its_options() {
    let path = chart().display().to_string();
    helm(&["lint", "--strict", &path]).unwrap();
    let options = OPTIONS.join(",");
    helm(&["lint", "--strict", &path, "--set", &options]).unwrap();
}

#[test]
fn a_misspelt_or_impossible_value_is_refused_by_name() {
    let path = chart().display().to_string();
    for (value, word) in [
        ("operator.replica=3", "replica"),
        ("operator.replicas=0", "replicas"),
        ("agent.port=seventy", "port"),
        ("agent.mtu=70000", "mtu"),
        ("link.pools[0].prefix=x", "clientPrefixLength"),
        ("server.replicas=-1", "replicas"),
        ("cni.confDir=relative", "confDir"),
        ("podMonitor.enable=true", "enable"),
        ("podMonitor.interval=often", "interval"),
        ("prometheusRule.enabled=yes please", "enabled"),
        ("networkPolicy.metricsfrom=[]", "metricsfrom"),
        ("grafanaDashboard.label=x", "label"),
        ("logFormat=xml", "logFormat"),
        ("imagePullPolicy=Sometimes", "imagePullPolicy"),
        ("agnet.port=1", "agnet"),
    ] {
        let refused = helm(&["template", "x", &path, "--set", value]);
        let text = refused.err().unwrap_or_default();
        assert!(text.contains(word), "--set {value} gave {text:?}");
    }
}

/// Paths of all values, `a.b.c`, down to what the schema leaves open.
fn paths(value: &Value, schema: &Value, at: &str, all: &mut BTreeSet<String>) {
    match (value.as_object(), schema["properties"].as_object()) {
        (Some(map), Some(known)) => {
            for (key, value) in map {
                paths(value, known.get(key).unwrap_or(&Value::Null), &format!("{at}.{key}"), all);
            }
        }
        _ => drop(all.insert(at.to_string())),
    }
}

fn schema_paths(schema: &Value, at: &str, all: &mut BTreeSet<String>) {
    match schema["properties"].as_object() {
        Some(known) => {
            assert_eq!(schema["additionalProperties"], false, "{at} lets typos pass");
            for (key, value) in known {
                schema_paths(value, &format!("{at}.{key}"), all);
            }
        }
        None => drop(all.insert(at.to_string())),
    }
}

#[test]
fn the_schema_knows_the_values_and_no_others_and_each_value_has_a_default() {
    let read = |name: &str| std::fs::read_to_string(chart().join(name)).unwrap();
    let schema: Value = serde_json::from_str(&read("values.schema.json")).unwrap();
    let values: Value = serde_yaml::from_str(&read("values.yaml")).unwrap();
    let (mut have, mut known) = (BTreeSet::new(), BTreeSet::new());
    paths(&values, &schema, "", &mut have);
    schema_paths(&schema, "", &mut known);
    // Helm's own.
    known.remove(".global");
    assert_eq!(have, known);
}

#[test]
fn by_default_nothing_needs_more_than_kubernetes_itself() {
    let objects = render(&[]);
    for kind in ["NetworkPolicy", "PodMonitor", "PrometheusRule", "ConfigMap", "Secret"] {
        assert!(!kinds(&objects).contains(kind), "{kind} by default");
    }
    let budget = find(&objects, "PodDisruptionBudget", "aero-operator");
    assert_eq!(budget["spec"]["maxUnavailable"], 1);
}

/// Pod specs of the release, by name.
fn pods(objects: &[Value]) -> Vec<(String, Value)> {
    let mut all = Vec::new();
    for object in objects {
        let name = object["metadata"]["name"].as_str().unwrap_or_default().to_string();
        match object["kind"].as_str() {
            Some("Pod") => all.push((name, object["spec"].clone())),
            Some("Deployment" | "DaemonSet") => {
                all.push((name, object["spec"]["template"]["spec"].clone()));
            }
            _ => {}
        }
    }
    all
}

#[test]
fn every_pod_may_do_as_little_as_possible() {
    let objects = render(&[]);
    let pods = pods(&objects);
    assert_eq!(pods.len(), 3, "operator, agent, test");
    for (name, pod) in pods {
        let seccomp = &pod["securityContext"]["seccompProfile"]["type"];
        assert_eq!(seccomp, "RuntimeDefault", "{name}");
        let agent = name == "aero-agent";
        let non_root = pod["securityContext"]["runAsNonRoot"] == true;
        assert_eq!(non_root, !agent, "{name}");
        for key in ["hostPID", "hostIPC"] {
            assert!(pod[key].is_null(), "{name} has {key}");
        }
        let containers = ["initContainers", "containers"].map(|k| pod[k].as_array().cloned());
        for container in containers.into_iter().flatten().flatten() {
            let context = &container["securityContext"];
            assert!(context["privileged"].is_null(), "{name}");
            assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(context["capabilities"]["drop"], serde_json::json!(["ALL"]), "{name}");
            let added = &context["capabilities"]["add"];
            assert_eq!(added.is_array(), agent, "{name}: {added}");
        }
        if !agent {
            assert!(pod["volumes"].is_null(), "{name} mounts something of its node");
        }
    }
}

#[test]
fn each_capability_of_the_agent_has_its_reason_beside_it() {
    let text = std::fs::read_to_string(chart().join("templates/agent.yaml")).unwrap();
    let lines: Vec<&str> = text.lines().map(str::trim).collect();
    let from = lines.iter().position(|l| *l == "add:").unwrap() + 1;
    let list = lines[from..].iter().take_while(|l| l.starts_with('#') || l.starts_with("- "));
    let list: Vec<&str> = list.copied().collect();
    for (n, line) in list.iter().enumerate().filter(|(_, l)| l.starts_with("- ")) {
        assert!(n > 0 && list[n - 1].starts_with('#'), "{line} has no reason");
    }
    let objects = render(&[]);
    let agent = find(&objects, "DaemonSet", "aero-agent");
    let container = &agent["spec"]["template"]["spec"]["containers"][0];
    let added = container["securityContext"]["capabilities"]["add"].as_array().unwrap();
    assert_eq!(added.len(), list.iter().filter(|l| l.starts_with("- ")).count());
}

#[test]
fn no_role_reads_secrets_or_may_do_anything() {
    let objects = render(&[]);
    let roles = objects.iter().filter(|o| o["kind"] == "ClusterRole" || o["kind"] == "Role");
    let mut count = 0;
    for rule in roles.flat_map(|r| r["rules"].as_array().unwrap()) {
        let text = rule.to_string();
        assert!(!text.contains("\"*\"") && !text.contains("secrets"), "{text}");
        count += 1;
    }
    assert!(count > 10);
    let objects = render(&["operator.manageCRDs=false"]);
    let operator = find(&objects, "ClusterRole", "aero-operator");
    assert!(!operator.to_string().contains("customresourcedefinitions"));
}

#[test]
fn an_agent_may_not_watch_what_changes_with_moves_of_other_nodes() {
    let objects = render(&[]);
    let agent = find(&objects, "ClusterRole", "aero-agent");
    for rule in agent["rules"].as_array().unwrap() {
        let (what, verbs) = (rule["resources"].to_string(), rule["verbs"].to_string());
        assert!(!what.contains("acpmappings"), "{rule}");
        assert!(!verbs.contains("watch") || what == "[\"pods\"]", "{rule}");
    }
}

#[test]
fn servers_and_relays_write_no_config_map_but_their_own_report() {
    // Whatever is protected beside: the routes file says who everybody is.
    for values in [&[][..], &["protectAnnotations=false"]] {
        let objects = render(values);
        let policy = find(&objects, "ValidatingAdmissionPolicy", "aero-bgp-reports");
        let spec = &policy["spec"];
        assert_eq!(spec["failurePolicy"], "Fail");
        let who = spec["matchConditions"][0]["expression"].as_str().unwrap();
        let role = find(&objects, "Role", "aero-bgp");
        assert_eq!(role["rules"].as_array().unwrap().len(), 1);
        assert!(!role["rules"].to_string().contains("delete"));
        let binding = find(&objects, "RoleBinding", "aero-bgp");
        for subject in binding["subjects"].as_array().unwrap() {
            let name = subject["name"].as_str().unwrap();
            let user = format!("'system:serviceaccount:aero-system:{name}'");
            assert!(who.contains(&user), "{name} writes what it likes");
        }
        let may = spec["validations"][0]["expression"].as_str().unwrap();
        assert!(may.contains("object.metadata.name == 'aero-bgp-' + "), "{may}");
        let bound = find(&objects, "ValidatingAdmissionPolicyBinding", "aero-bgp-reports");
        assert_eq!(bound["spec"]["validationActions"][0], "Deny");
    }
}

/// Names like `aero_x_y` in a text.
fn metrics_in(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    words.filter(|w| w.starts_with("aero_")).map(String::from).collect()
}

#[test]
fn alerts_and_dashboard_ask_only_for_metrics_that_there_are() {
    let objects = render(&OPTIONS);
    let document = std::fs::read_to_string(workspace().join("docs/metrics.md")).unwrap();
    let known = metrics_in(&document);
    let rule = find(&objects, "PrometheusRule", "aero");
    let rules = rule["spec"]["groups"][0]["rules"].as_array().unwrap();
    assert!(rules.len() >= 8);
    let board = find(&objects, "ConfigMap", "aero-dashboard");
    let board: Value = serde_json::from_str(board["data"]["aero.json"].as_str().unwrap()).unwrap();
    let panels = board["panels"].as_array().unwrap().iter();
    let targets = panels.flat_map(|p| p["targets"].as_array().unwrap()).map(|t| &t["expr"]);
    let expressions: Vec<&str> =
        rules.iter().map(|r| &r["expr"]).chain(targets).map(|e| e.as_str().unwrap()).collect();
    let mut asked = BTreeSet::new();
    for metric in metrics_in(&expressions.join(" ")) {
        let histogram = ["_bucket", "_count", "_sum"].iter().find_map(|s| metric.strip_suffix(s));
        let name = histogram.unwrap_or(&metric).to_string();
        assert!(known.contains(&name), "{name} is not in docs/metrics.md");
        asked.insert(name);
    }
    assert!(asked.len() >= 10, "{asked:?}");
    for rule in rules {
        let said = &rule["annotations"];
        assert!(said["summary"].is_string() && said["description"].is_string(), "{rule}");
    }
}

#[test]
fn what_scrapes_and_what_lets_in_name_the_ports_that_the_pods_have() {
    let values: Vec<&str> = OPTIONS.iter().copied().chain(["agent.port=9999"]).collect();
    let objects = render(&values);
    let monitor = find(&objects, "PodMonitor", "aero");
    assert_eq!(monitor["spec"]["podMetricsEndpoints"][0]["port"], "admin");
    let label = &monitor["spec"]["selector"]["matchLabels"];
    for (kind, name) in [("Deployment", "aero-operator"), ("DaemonSet", "aero-agent")] {
        let object = find(&objects, kind, name);
        let template = &object["spec"]["template"];
        for (key, value) in label.as_object().unwrap() {
            assert_eq!(&template["metadata"]["labels"][key], value, "{name}");
        }
        let ports = template["spec"]["containers"][0]["ports"].as_array().unwrap();
        let admin = ports.iter().find(|p| p["name"] == "admin").unwrap();
        let policy = find(&objects, "NetworkPolicy", name);
        let admitted: Vec<&Value> = (policy["spec"]["ingress"].as_array().unwrap().iter())
            .flat_map(|i| i["ports"].as_array().unwrap())
            .collect();
        assert!(admitted.iter().any(|p| p["port"] == admin["containerPort"]), "{name}");
        for port in ports.iter().filter(|p| p["protocol"] == "UDP") {
            assert!(admitted.iter().any(|p| p["port"] == port["containerPort"]), "{name}: {port}");
        }
    }
    let from =
        ["networkPolicy.enabled=true", "networkPolicy.metricsFrom[0].podSelector.matchLabels.a=b"];
    let objects = render(&from);
    let policy = find(&objects, "NetworkPolicy", "aero-operator");
    assert_eq!(policy["spec"]["ingress"][0]["from"][0]["podSelector"]["matchLabels"]["a"], "b");
}

#[test]
fn values_reach_what_they_are_about() {
    let objects = render(&[
        "link.pools[0].prefix=2001:db8:a::/48",
        "link.pools[0].clientPrefixLength=64",
        "server.replicas=3",
        "agent.image.tag=9.9",
        "operator.replicas=1",
        "logFormat=json",
        "imagePullSecrets[0].name=pull",
        "cni.binDir=/opt/other",
        "bird.image.repository=example.test/bird",
    ]);
    let link = find(&objects, "AeroLink", "default");
    assert_eq!(link["spec"]["pools"][0]["prefix"], "2001:db8:a::/48");
    assert_eq!(find(&objects, "AeroServer", "default")["spec"]["replicas"], 3);
    let operator = find(&objects, "Deployment", "aero-operator");
    assert_eq!(operator["spec"]["replicas"], 1);
    let env = operator["spec"]["template"]["spec"]["containers"][0]["env"].to_string();
    assert!(env.contains("aerolink.dev/aero-node-agent:9.9"), "the Servers' image: {env}");
    assert!(env.contains("example.test/bird:"), "BIRD's image: {env}");
    for (name, pod) in pods(&objects) {
        assert_eq!(pod["imagePullSecrets"][0]["name"], "pull", "{name}");
    }
    let agent = find(&objects, "DaemonSet", "aero-agent")["spec"]["template"]["spec"].to_string();
    assert!(agent.contains("/opt/other") && agent.contains("aero-node-agent:9.9"));
    assert!(agent.contains("\"AERO_LOG_FORMAT\",\"value\":\"json\""));
    let objects = render(&["link.create=false", "server.create=false", "protectAnnotations=false"]);
    for kind in ["AeroLink", "AeroServer"] {
        assert!(!kinds(&objects).contains(kind), "{kind} is there all the same");
    }
    let named = |o: &&Value| o["metadata"]["name"] == "aero-pod-annotations";
    assert_eq!(objects.iter().filter(named).count(), 0);
}

#[test]
fn the_test_of_the_release_is_a_hook_that_takes_everything_with_it() {
    let objects = render(&["operator.image.tag=7.7"]);
    let hooks: Vec<&Value> =
        objects.iter().filter(|o| o["metadata"]["name"] == "aero-test").collect();
    assert_eq!(hooks.len(), 6);
    for hook in hooks {
        let annotations = &hook["metadata"]["annotations"];
        assert_eq!(annotations["helm.sh/hook"], "test");
        let policy = annotations["helm.sh/hook-delete-policy"].as_str().unwrap();
        assert!(policy.contains("before-hook-creation") && policy.contains("hook-succeeded"));
    }
    let pod = &find(&objects, "Pod", "aero-test")["spec"];
    let steps = [&pod["initContainers"][0], &pod["containers"][0]];
    assert!(steps[0]["args"].to_string().contains("status"));
    assert!(steps[1]["args"].to_string().contains("connectivity"));
    for step in steps {
        assert_eq!(step["image"], "aerolink.dev/aero-operator:7.7");
    }
}
