//! The objects that an AeroServer is made of.

use aero_crds::{AeroServer, annotations};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use crate::context::Settings;

/// Port of a Server's health endpoints.
pub const ADMIN_PORT: u16 = 9060;
/// Where a node has its BPF file system.
const BPF_FS: &str = "/sys/fs/bpf";

/// Name of the objects.
pub fn name(server: &AeroServer) -> String {
    format!("aero-server-{}", server.name_any())
}

fn labels(server: &AeroServer) -> Value {
    json!({
        "app.kubernetes.io/name": "aero-server",
        "app.kubernetes.io/instance": server.name_any(),
        "app.kubernetes.io/component": "server",
        "app.kubernetes.io/part-of": "aero",
        "app.kubernetes.io/managed-by": "aero-operator",
        (annotations::SERVER_LABEL): server.name_any(),
        (annotations::LINK_LABEL): server.spec.link_ref.name,
        (annotations::COMPONENT_LABEL): annotations::COMPONENT_SERVER,
    })
}

fn selector(server: &AeroServer) -> Value {
    json!({(annotations::SERVER_LABEL): server.name_any()})
}

fn metadata(server: &AeroServer) -> Value {
    json!({
        "name": name(server),
        "namespace": server.namespace(),
        "labels": labels(server),
        "ownerReferences": server.controller_owner_ref(&()).into_iter().collect::<Vec<_>>(),
    })
}

/// One object of the fields of two.
fn with(mut one: Value, other: Value) -> Value {
    if let (Some(all), Value::Object(more)) = (one.as_object_mut(), other) {
        all.extend(more);
    }
    one
}

/// The Deployment of the Servers: in the network of their nodes, one per node.
pub fn deployment(server: &AeroServer, settings: &Settings, replicas: i32) -> Value {
    let field = |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let probe =
        |path: &str| json!({"httpGet": {"path": path, "port": ADMIN_PORT}, "periodSeconds": 1});
    // To forward in the kernel a Server loads programs (BPF), lets them compute with pointers
    // into packets (PERFMON), attaches them to the node's interfaces (NET_ADMIN), and pins them.
    // Capabilities are of use to root only; without these a Server is nobody and has none.
    let (user, capabilities, mounts, volumes) = if settings.forwarder == "userspace" {
        (
            json!({"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532}),
            json!([]),
            json!([]),
            json!([]),
        )
    } else {
        (
            json!({"runAsUser": 0}),
            json!(["BPF", "NET_ADMIN", "PERFMON"]),
            json!([{"name": "bpf", "mountPath": BPF_FS, "mountPropagation": "HostToContainer"}]),
            json!([{"name": "bpf", "hostPath": {"path": BPF_FS, "type": "Directory"}}]),
        )
    };
    json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": metadata(server),
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": selector(server)},
            // One per node and all nodes may be taken: an old one must go before a new one comes.
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}},
            "template": {
                "metadata": {"labels": labels(server)},
                "spec": {
                    "serviceAccountName": settings.server_service_account,
                    "hostNetwork": true,
                    "dnsPolicy": "ClusterFirstWithHostNet",
                    "priorityClassName": "system-cluster-critical",
                    "nodeSelector": server.spec.node_selector,
                    "terminationGracePeriodSeconds": 15,
                    // A node without a working network must still be able to run a Server, or
                    // networks that wait for each other would never start; a dead node's Server
                    // is replaced soon.
                    "tolerations": [
                        {"key": "node-role.kubernetes.io/control-plane", "operator": "Exists"},
                        {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoSchedule"},
                        {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10},
                        {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 10},
                    ],
                    "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
                        "topologyKey": "kubernetes.io/hostname",
                        "labelSelector": {"matchLabels": selector(server)},
                    }]}},
                    "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}},
                    "volumes": volumes,
                    "containers": [{
                        "name": "server",
                        "image": settings.node_agent_image,
                        "imagePullPolicy": settings.pull_policy,
                        "args": ["server"],
                        "env": [
                            field("POD_NAME", "metadata.name"),
                            field("HOST_IPS", "status.hostIPs"),
                            {"name": "AERO_LINK", "value": server.spec.link_ref.name},
                            {"name": "AERO_PORT", "value": server.spec.port.to_string()},
                            {"name": "AERO_FORWARDER", "value": settings.forwarder},
                            {"name": "AERO_ADMIN", "value": format!("[::]:{ADMIN_PORT}")},
                            {"name": "AERO_LOG", "value": settings.log.0},
                            {"name": "AERO_LOG_FORMAT", "value": settings.log.1},
                        ],
                        "ports": [
                            {"name": "aero", "containerPort": server.spec.port, "protocol": "UDP"},
                            {"name": "admin", "containerPort": ADMIN_PORT, "protocol": "TCP"},
                        ],
                        "readinessProbe": probe("/readyz"),
                        "livenessProbe": {"httpGet": {"path": "/healthz", "port": ADMIN_PORT}, "periodSeconds": 10, "failureThreshold": 6},
                        "resources": {"requests": {"cpu": "20m", "memory": "32Mi"}},
                        "volumeMounts": mounts,
                        "securityContext": with(user, json!({
                            "allowPrivilegeEscalation": false,
                            "readOnlyRootFilesystem": true,
                            "capabilities": {"drop": ["ALL"], "add": capabilities},
                        })),
                    }],
                },
            },
        },
    })
}

/// The headless Service whose EndpointSlices tell agents where the Servers are.
pub fn service(server: &AeroServer) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": metadata(server),
        "spec": {
            "clusterIP": "None",
            "ipFamilyPolicy": "PreferDualStack",
            "selector": selector(server),
            "ports": [{"name": "aero", "port": server.spec.port, "protocol": "UDP"}],
        },
    })
}

/// Lets a drain take one Server at a time.
pub fn disruption_budget(server: &AeroServer) -> Value {
    json!({
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget",
        "metadata": metadata(server),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector(server)}},
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use aero_crds::AeroServerSpec;

    #[test]
    fn a_server_may_do_nothing_that_it_does_not_need() {
        let server = AeroServer::new("s", AeroServerSpec::default());
        let settings = |forwarder: &str| Settings {
            namespace: "aero-system".into(),
            pod: "o".into(),
            node_agent_image: "image".into(),
            pull_policy: "Never".into(),
            server_service_account: "aero-server".into(),
            log: ("info".into(), "json"),
            forwarder: forwarder.into(),
        };
        let in_kernel = deployment(&server, &settings("auto"), 2);
        let container = &in_kernel["spec"]["template"]["spec"]["containers"][0]["securityContext"];
        assert_eq!(container["readOnlyRootFilesystem"], true);
        assert_eq!(container["allowPrivilegeEscalation"], false);
        let capabilities = json!({"drop": ["ALL"], "add": ["BPF", "NET_ADMIN", "PERFMON"]});
        assert_eq!(container["capabilities"], capabilities);
        let deployment = deployment(&server, &settings("userspace"), 2);
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(pod["volumes"], json!([]));
        let container = &pod["containers"][0]["securityContext"];
        assert_eq!(container["runAsNonRoot"], true);
        assert_eq!(container["readOnlyRootFilesystem"], true);
        assert_eq!(container["allowPrivilegeEscalation"], false);
        assert_eq!(container["capabilities"], json!({"drop": ["ALL"], "add": []}));
        assert_eq!(disruption_budget(&server)["spec"]["maxUnavailable"], 1);
    }
}
