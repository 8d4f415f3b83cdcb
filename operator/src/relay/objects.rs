//! The objects that an AeroRelay is made of.

use aero_crds::{AeroRelay, annotations};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

use crate::context::Settings;
use crate::objects::{Part, with};

/// Port of a Relay's health endpoints.
pub const ADMIN_PORT: u16 = 9063;

/// What its objects are made of.
pub fn part(relay: &AeroRelay) -> Part<'_> {
    Part {
        component: annotations::COMPONENT_RELAY,
        label: annotations::RELAY_LABEL,
        owner: relay.name_any(),
        namespace: relay.namespace(),
        reference: relay.controller_owner_ref(&()),
        link: &relay.spec.link_ref.name,
        port: relay.spec.port,
        admin_port: ADMIN_PORT,
        node_selector: &relay.spec.node_selector,
    }
}

/// The Deployment of the Relays: one per node, and on no node with a Server of the link. The two
/// would have one underlay address, and from that follows who one is on the link.
pub fn deployment(relay: &AeroRelay, settings: &Settings, replicas: i32) -> Value {
    let part = part(relay);
    let apart = json!({
        "matchLabels": {(annotations::LINK_LABEL): part.link},
        "matchExpressions": [{
            "key": annotations::COMPONENT_LABEL, "operator": "In",
            "values": [annotations::COMPONENT_RELAY, annotations::COMPONENT_SERVER],
        }],
    });
    let security = json!({"securityContext": {
        // Capabilities are of use to root only.
        "runAsUser": 0,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        // Its interfaces (to the node's network, and of the sessions), and routes to them.
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN"]},
    }});
    let container = with(part.container(settings, part.bgp_env(), &Part::bgp_mounts()), security);
    let pod = json!({
        "serviceAccountName": settings.relay_service_account,
        "volumes": Part::bgp_volumes(),
        "containers": [container, part.bird(settings)],
    });
    part.deployment(replicas, &apart, pod)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::objects::test_settings;
    use aero_crds::AeroRelaySpec;

    #[test]
    fn a_relay_is_alone_on_its_node_and_may_do_nothing_that_it_does_not_need() {
        let relay = AeroRelay::new("r", AeroRelaySpec { port: 8060, ..AeroRelaySpec::default() });
        let made = deployment(&relay, &test_settings("auto"), 2);
        let pod = &made["spec"]["template"]["spec"];
        let term = &pod["affinity"]["podAntiAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"]
            [0];
        assert_eq!(term["topologyKey"], "kubernetes.io/hostname");
        assert_eq!(term["labelSelector"]["matchLabels"], json!({"aerolink.dev/link": "default"}));
        let kinds = &term["labelSelector"]["matchExpressions"][0]["values"];
        assert_eq!(*kinds, json!(["relay", "server"]));
        // Its own pods are among those that it keeps away from.
        let labels = &made["spec"]["template"]["metadata"]["labels"];
        assert_eq!(labels["aerolink.dev/component"], "relay");
        assert_eq!(labels["aerolink.dev/link"], "default");
        assert_eq!(pod["serviceAccountName"], "aero-relay");
        assert_eq!(pod["hostNetwork"], true);
        let names: Vec<_> =
            pod["containers"].as_array().unwrap().iter().map(|c| &c["name"]).collect();
        assert_eq!(names, ["relay", "bird"]);
        for container in pod["containers"].as_array().unwrap() {
            let context = &container["securityContext"];
            assert_eq!(context["readOnlyRootFilesystem"], true);
            assert_eq!(context["allowPrivilegeEscalation"], false);
            assert_eq!(context["capabilities"]["drop"], json!(["ALL"]));
        }
        let added = &pod["containers"][0]["securityContext"]["capabilities"]["add"];
        assert_eq!(*added, json!(["NET_ADMIN"]));
        assert_eq!(part(&relay).service()["spec"]["clusterIP"], "None");
    }
}
