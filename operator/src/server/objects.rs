//! The objects that an AeroServer is made of.

use aero_crds::{AeroServer, annotations};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use crate::context::Settings;
use crate::objects::{Part, value, with};

/// Port of a Server's health endpoints.
pub const ADMIN_PORT: u16 = 9060;
/// Where a node has its BPF file system.
const BPF_FS: &str = "/sys/fs/bpf";

/// What its objects are made of.
pub fn part(server: &AeroServer) -> Part<'_> {
    Part {
        component: annotations::COMPONENT_SERVER,
        label: annotations::SERVER_LABEL,
        owner: server.name_any(),
        namespace: server.namespace(),
        reference: server.controller_owner_ref(&()),
        link: &server.spec.link_ref.name,
        port: server.spec.port,
        admin_port: ADMIN_PORT,
        node_selector: &server.spec.node_selector,
    }
}

/// The Deployment of the Servers: in the network of their nodes, one per node.
pub fn deployment(server: &AeroServer, settings: &Settings, replicas: i32) -> Value {
    let part = part(server);
    let bgp = !server.spec.relay_refs.is_empty();
    let in_kernel = settings.forwarder != "userspace";
    let (mut mounts, mut volumes) = (Vec::new(), Vec::new());
    if in_kernel {
        mounts.push(
            json!({"name": "bpf", "mountPath": BPF_FS, "mountPropagation": "HostToContainer"}),
        );
        volumes.push(json!({"name": "bpf", "hostPath": {"path": BPF_FS, "type": "Directory"}}));
    }
    let mut env = vec![value("AERO_LINK", part.link), value("AERO_FORWARDER", &settings.forwarder)];
    if bgp {
        env.extend(part.bgp_env());
        mounts.extend(Part::bgp_mounts());
        volumes.extend(Part::bgp_volumes());
    }
    // To forward in the kernel a Server loads programs (BPF), lets them compute with pointers
    // into packets (PERFMON), attaches them to the node's interfaces (NET_ADMIN), and pins them.
    // With BGP it has an interface for the sessions and writes routes (NET_ADMIN). Capabilities
    // are of use to root only; without these a Server is nobody and has none.
    let (user, capabilities) = match (in_kernel, bgp) {
        (true, _) => (json!({"runAsUser": 0}), json!(["BPF", "NET_ADMIN", "PERFMON"])),
        (false, true) => (json!({"runAsUser": 0}), json!(["NET_ADMIN"])),
        (false, false) => {
            (json!({"runAsNonRoot": true, "runAsUser": 65532, "runAsGroup": 65532}), json!([]))
        }
    };
    let security = with(
        user,
        json!({
            "allowPrivilegeEscalation": false,
            "readOnlyRootFilesystem": true,
            "capabilities": {"drop": ["ALL"], "add": capabilities},
        }),
    );
    let container =
        with(part.container(settings, env, &mounts), json!({"securityContext": security}));
    let mut containers = vec![container];
    if bgp {
        containers.push(part.bird(settings));
    }
    let pod = json!({
        "serviceAccountName": settings.server_service_account,
        "volumes": volumes,
        "containers": containers,
    });
    part.deployment(replicas, &json!({"matchLabels": part.selector()}), pod)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::test_settings;
    use aero_crds::AeroServerSpec;

    #[test]
    fn a_server_may_do_nothing_that_it_does_not_need() {
        let server = AeroServer::new("s", AeroServerSpec::default());
        let in_kernel = deployment(&server, &test_settings("auto"), 2);
        let container = &in_kernel["spec"]["template"]["spec"]["containers"][0]["securityContext"];
        assert_eq!(container["readOnlyRootFilesystem"], true);
        assert_eq!(container["allowPrivilegeEscalation"], false);
        let capabilities = json!({"drop": ["ALL"], "add": ["BPF", "NET_ADMIN", "PERFMON"]});
        assert_eq!(container["capabilities"], capabilities);
        let deployment = deployment(&server, &test_settings("userspace"), 2);
        let pod = &deployment["spec"]["template"]["spec"];
        assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault");
        assert_eq!(pod["volumes"], json!([]));
        assert_eq!(pod["containers"].as_array().unwrap().len(), 1);
        let container = &pod["containers"][0]["securityContext"];
        assert_eq!(container["runAsNonRoot"], true);
        assert_eq!(container["readOnlyRootFilesystem"], true);
        assert_eq!(container["allowPrivilegeEscalation"], false);
        assert_eq!(container["capabilities"], json!({"drop": ["ALL"], "add": []}));
        assert_eq!(part(&server).disruption_budget()["spec"]["maxUnavailable"], 1);
        let spread = &pod["topologySpreadConstraints"][0];
        assert_eq!(spread["topologyKey"], "topology.kubernetes.io/zone");
    }

    #[test]
    fn a_server_with_relays_has_bird_beside_it_and_the_file_by_the_api() {
        let spec = AeroServerSpec { relay_refs: vec!["r".into()], ..AeroServerSpec::default() };
        let server = AeroServer::new("s", spec);
        let deployment = deployment(&server, &test_settings("userspace"), 2);
        let pod = &deployment["spec"]["template"]["spec"];
        let (main, bird) = (&pod["containers"][0], &pod["containers"][1]);
        assert_eq!(main["securityContext"]["capabilities"]["add"], json!(["NET_ADMIN"]));
        let env = main["env"].as_array().unwrap();
        assert!(env.contains(&value("AERO_ROUTES_CONFIG_MAP", "aero-routes-default")));
        assert_eq!(bird["args"], json!(["bird", "--role", "server"]));
        assert_eq!(bird["image"], "bird");
        let added = &bird["securityContext"]["capabilities"]["add"];
        assert_eq!(*added, json!(["NET_ADMIN", "NET_BIND_SERVICE", "NET_RAW"]));
        let mounted = |c: &Value, n: &str| {
            c["volumeMounts"].as_array().unwrap().iter().any(|m| m["name"] == n)
        };
        for (container, names) in [(main, ["routes", "tun"]), (bird, ["routes", "bird"])] {
            for name in names {
                assert!(mounted(container, name), "{name}");
                assert!(pod["volumes"].as_array().unwrap().iter().any(|v| v["name"] == name));
            }
        }
    }
}
