//! What the objects of an AeroServer and of an AeroRelay have in common.

use std::collections::BTreeMap;

use aero_crds::annotations;
use aero_crds::bgp::{ROUTES_KEY, routes_name};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use serde_json::{Value, json};

use crate::context::Settings;

/// The kernel route table that a program shares with its BIRD.
const BGP_TABLE: &str = "8060";
/// Where the containers of a pod have the routes file.
const ROUTES_DIR: &str = "/run/aero-routes";

/// Servers or Relays: what their objects are made of.
#[derive(Debug, Clone)]
pub struct Part<'a> {
    /// `server` or `relay`.
    pub component: &'static str,
    /// Label that names the owner.
    pub label: &'static str,
    /// Name of the AeroServer or AeroRelay.
    pub owner: String,
    /// Its namespace.
    pub namespace: Option<String>,
    /// Owner of the objects.
    pub reference: Option<OwnerReference>,
    /// The link.
    pub link: &'a str,
    /// UDP port on the underlay.
    pub port: i32,
    /// Port of the health endpoints.
    pub admin_port: u16,
    /// Nodes that may run one.
    pub node_selector: &'a BTreeMap<String, String>,
}

impl Part<'_> {
    /// Name of the objects.
    pub fn name(&self) -> String {
        format!("aero-{}-{}", self.component, self.owner)
    }

    fn labels(&self) -> Value {
        json!({
            "app.kubernetes.io/name": format!("aero-{}", self.component),
            "app.kubernetes.io/instance": self.owner,
            "app.kubernetes.io/component": self.component,
            "app.kubernetes.io/part-of": "aero",
            "app.kubernetes.io/managed-by": "aero-operator",
            (self.label): self.owner,
            (annotations::LINK_LABEL): self.link,
            (annotations::COMPONENT_LABEL): self.component,
        })
    }

    /// Selects its pods.
    pub fn selector(&self) -> Value {
        json!({(self.label): self.owner})
    }

    fn metadata(&self) -> Value {
        json!({
            "name": self.name(),
            "namespace": self.namespace,
            "labels": self.labels(),
            "ownerReferences": self.reference.iter().collect::<Vec<_>>(),
        })
    }

    /// The Deployment: in the network of their nodes, one per node, over all zones.
    pub fn deployment(&self, replicas: i32, apart: &Value, pod: Value) -> Value {
        let common = json!({
            "hostNetwork": true,
            "dnsPolicy": "ClusterFirstWithHostNet",
            "priorityClassName": "system-cluster-critical",
            "nodeSelector": self.node_selector,
            "terminationGracePeriodSeconds": 15,
            // A node without a working network must still be able to run one, or networks that
            // wait for each other would never start; what a dead node ran is replaced soon.
            "tolerations": [
                {"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"},
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoSchedule"},
                {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10},
                {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10},
            ],
            "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
                "topologyKey": "kubernetes.io/hostname",
                "labelSelector": apart,
            }]}},
            // A zone that fails takes as few of them as can be. A cluster without zones is one.
            "topologySpreadConstraints": [{
                "topologyKey": "topology.kubernetes.io/zone",
                "maxSkew": 1,
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": self.selector()},
            }],
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
        });
        json!({
            "apiVersion": "apps/v1", "kind": "Deployment",
            "metadata": self.metadata(),
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": self.selector()},
                // One per node and all nodes may be taken: an old one must go before a new one
                // comes.
                "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
                "template": {"metadata": {"labels": self.labels()}, "spec": with(common, pod)},
            },
        })
    }

    /// The headless Service: its EndpointSlices tell agents where Servers are, its DNS name
    /// resolves to the underlay addresses of those that are ready.
    pub fn service(&self) -> Value {
        json!({
            "apiVersion": "v1", "kind": "Service",
            "metadata": self.metadata(),
            "spec": {
                "clusterIP": "None",
                "ipFamilyPolicy": "PreferDualStack",
                "selector": self.selector(),
                "ports": [{"name": "aero", "port": self.port, "protocol": "UDP"}],
            },
        })
    }

    /// Lets a drain take one at a time.
    pub fn disruption_budget(&self) -> Value {
        json!({
            "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
            "metadata": self.metadata(),
            "spec": {"maxUnavailable": 1, "selector": {"matchLabels": self.selector()}},
        })
    }

    /// The fields of every main container.
    pub fn container(&self, settings: &Settings, env: Vec<Value>, mounts: &[Value]) -> Value {
        let probe = |path: &str| json!({"httpGet": {"path": path, "port": self.admin_port}, "periodSeconds": 1});
        let mut all = vec![
            field("POD_NAME", "metadata.name"),
            field("HOST_IPS", "status.hostIPs"),
            value("AERO_PORT", &self.port.to_string()),
            value("AERO_ADMIN", &format!("[::]:{}", self.admin_port)),
        ];
        all.extend(env);
        all.extend(logs(settings));
        json!({
            "name": self.component,
            "image": settings.node_agent_image,
            "imagePullPolicy": settings.pull_policy,
            "args": [self.component],
            "env": all,
            "ports": [
                {"name": "aero", "containerPort": self.port, "protocol": "UDP"},
                {"name": "admin", "containerPort": self.admin_port, "protocol": "TCP"},
            ],
            "readinessProbe": probe("/readyz"),
            "livenessProbe": {"httpGet": {"path": "/healthz", "port": self.admin_port}, "periodSeconds": 10, "failureThreshold": 6},
            "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}},
            "volumeMounts": mounts,
        })
    }

    /// What BGP adds to the main container's environment: the file comes by the API, as a mounted
    /// ConfigMap would be up to a minute late.
    pub fn bgp_env(&self) -> Vec<Value> {
        vec![
            field("POD_NAMESPACE", "metadata.namespace"),
            value("AERO_ROUTES", &format!("{ROUTES_DIR}/{ROUTES_KEY}")),
            value("AERO_ROUTES_CONFIG_MAP", &routes_name(self.link)),
            value("AERO_BGP_TABLE", BGP_TABLE),
        ]
    }

    /// BIRD, beside the main container.
    pub fn bird(&self, settings: &Settings) -> Value {
        let mut env = vec![
            field("POD_NAME", "metadata.name"),
            field("POD_UID", "metadata.uid"),
            field("POD_NAMESPACE", "metadata.namespace"),
            field("HOST_IPS", "status.hostIPs"),
            value("AERO_ROUTES", &format!("{ROUTES_DIR}/{ROUTES_KEY}")),
            value("AERO_BGP_TABLE", BGP_TABLE),
            value("AERO_BGP_REPORT", "true"),
        ];
        env.extend(logs(settings));
        json!({
            "name": "bird",
            "image": settings.bird_image,
            "imagePullPolicy": settings.pull_policy,
            "args": ["bird", "--role", self.component],
            "env": env,
            "resources": {"requests": {"cpu": "10m", "memory": "16Mi"}},
            "volumeMounts": [
                {"name": "routes", "mountPath": ROUTES_DIR, "readOnly": true},
                {"name": "bird", "mountPath": "/run/aero-bird"},
            ],
            "securityContext": {
                "runAsUser": 0,
                "allowPrivilegeEscalation": false,
                "readOnlyRootFilesystem": true,
                // Its route table in the kernel (NET_ADMIN), the port of BGP, 179
                // (NET_BIND_SERVICE), and to bind sessions to their interface: those that come in
                // are bound by the listening socket, and to bind them again asks for NET_RAW.
                "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW"]},
            },
        })
    }

    /// Volumes of BGP: the file, BIRD's configuration and socket, and the device of tunnels.
    pub fn bgp_volumes() -> [Value; 3] {
        [
            json!({"name": "routes", "emptyDir": {}}),
            json!({"name": "bird", "emptyDir": {}}),
            json!({"name": "tun", "hostPath": {"path": "/dev/net/tun", "type": "CharDevice"}}),
        ]
    }

    /// What the main container mounts of them.
    pub fn bgp_mounts() -> [Value; 2] {
        [
            json!({"name": "routes", "mountPath": ROUTES_DIR}),
            json!({"name": "tun", "mountPath": "/dev/net/tun"}),
        ]
    }
}

/// A variable from a field of the pod.
pub fn field(name: &str, path: &str) -> Value {
    json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}})
}

/// A variable.
pub fn value(name: &str, value: &str) -> Value {
    json!({"name": name, "value": value})
}

fn logs(settings: &Settings) -> [Value; 2] {
    [value("AERO_LOG", &settings.log.0), value("AERO_LOG_FORMAT", settings.log.1)]
}

/// One object of the fields of two.
pub fn with(mut one: Value, other: Value) -> Value {
    if let (Some(all), Value::Object(more)) = (one.as_object_mut(), other) {
        all.extend(more);
    }
    one
}

#[cfg(test)]
pub(crate) fn test_settings(forwarder: &str) -> Settings {
    Settings {
        namespace: "aero-system".into(),
        pod: "o".into(),
        node_agent_image: "image".into(),
        bird_image: "bird".into(),
        pull_policy: "Never".into(),
        server_service_account: "aero-server".into(),
        relay_service_account: "aero-relay".into(),
        log: ("info".into(), "json"),
        forwarder: forwarder.into(),
    }
}
