//! The name by which Clients outside find Servers: `linkupnetworks.DOMAIN` (draft -48 section
//! 3.7.1), with `NAMESPACE.svc.CLUSTER-DOMAIN` for the domain, and any other by external-dns.
//!
//! A name tells where the Servers of one link are. Of several links in the namespace it is that of
//! the AeroServer that was there first.

use aero_crds::{AeroServer, annotations, condition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::{Resource, ResourceExt};
use serde_json::{Value, json};

/// Name of the Service, and the label in front of the domain.
pub const NAME: &str = "linkupnetworks";
/// The condition of an AeroServer whose link does not have the name.
pub const CONDITION: &str = "Discoverable";
/// Its reason.
pub const NAME_TAKEN: &str = "NameTaken";

/// The AeroServers that the name stands for, the first first: all of the link of the one that was
/// there first.
fn named<'a>(all: impl IntoIterator<Item = &'a AeroServer>) -> Vec<&'a AeroServer> {
    let mut all: Vec<&AeroServer> =
        all.into_iter().filter(|s| s.metadata.deletion_timestamp.is_none()).collect();
    // Without a time it has not been written yet.
    all.sort_by_key(|s| {
        let at = s.metadata.creation_timestamp.as_ref().map(|t| t.0);
        (at.is_none(), at, s.name_any())
    });
    let first = all.first().map(|s| s.spec.link_ref.name.clone());
    all.retain(|s| Some(&s.spec.link_ref.name) == first.as_ref());
    all
}

/// The Service of the name, made of the AeroServers of the namespace; `None` without any. Each of
/// those that it stands for owns it, so that it is there as long as one of them is.
pub fn service<'a>(all: impl IntoIterator<Item = &'a AeroServer>) -> Option<Value> {
    let named = named(all);
    let first = named.first()?;
    let owners: Vec<_> = named.iter().filter_map(|s| s.owner_ref(&())).collect();
    let names: Vec<String> = named
        .iter()
        .filter_map(|s| s.spec.discovery_domain.as_deref())
        .map(|domain| format!("{NAME}.{}", domain.trim_end_matches('.')))
        .collect();
    let published = if names.is_empty() {
        json!({})
    } else {
        json!({
            "external-dns.alpha.kubernetes.io/hostname": names.join(","),
            // Servers are in the network of their nodes.
            "external-dns.alpha.kubernetes.io/endpoints-type": "HostIP",
        })
    };
    Some(json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": NAME,
            "namespace": first.namespace(),
            // Not the labels of Servers' own Services: agents follow those.
            "labels": {
                "app.kubernetes.io/name": NAME,
                "app.kubernetes.io/part-of": "aero",
                "app.kubernetes.io/managed-by": "aero-operator",
            },
            "annotations": published,
            "ownerReferences": owners,
        },
        "spec": {
            "clusterIP": "None",
            "ipFamilyPolicy": "PreferDualStack",
            "selector": {
                (annotations::COMPONENT_LABEL): annotations::COMPONENT_SERVER,
                (annotations::LINK_LABEL): first.spec.link_ref.name,
            },
            "ports": [{"name": "aero", "port": first.spec.port, "protocol": "UDP"}],
        },
    }))
}

/// What to say of an AeroServer whose link does not have the name; `None` if it has it.
pub fn without_name<'a>(
    server: &AeroServer,
    all: impl IntoIterator<Item = &'a AeroServer>,
    now: &Time,
) -> Option<Condition> {
    let named = named(all);
    let first = named.first()?;
    if first.spec.link_ref.name == server.spec.link_ref.name {
        return None;
    }
    let text = format!(
        "{NAME} is the name of link {:?}, by AeroServer {}; Clients of link {:?} find their Servers \
         by aero-server-{}",
        first.spec.link_ref.name,
        first.name_any(),
        server.spec.link_ref.name,
        server.name_any(),
    );
    let generation = server.metadata.generation;
    Some(condition(CONDITION, false, NAME_TAKEN, text, generation, now.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use aero_crds::{AeroServerSpec, LinkRef};

    fn server(name: &str, link: &str, day: u8, domain: Option<&str>) -> AeroServer {
        let spec = AeroServerSpec {
            link_ref: LinkRef { name: link.into() },
            discovery_domain: domain.map(Into::into),
            ..AeroServerSpec::default()
        };
        let mut server = AeroServer::new(name, spec);
        server.metadata.namespace = Some("aero-system".into());
        server.metadata.uid = Some(name.into());
        let at = format!("2026-01-{day:02}T00:00:00Z");
        server.metadata.creation_timestamp = Some(Time(at.parse().unwrap()));
        server
    }

    #[test]
    fn the_name_stands_for_all_servers_of_the_link_that_was_there_first() {
        let all = [
            server("c", "other", 3, None),
            server("b", "default", 2, Some("example.com.")),
            server("a", "default", 1, None),
        ];
        let service = service(&all).unwrap();
        assert_eq!(service["metadata"]["name"], "linkupnetworks");
        assert_eq!(service["spec"]["clusterIP"], "None");
        let selector = json!({
            (annotations::COMPONENT_LABEL): "server", (annotations::LINK_LABEL): "default"});
        assert_eq!(service["spec"]["selector"], selector);
        let owners = service["metadata"]["ownerReferences"].as_array().unwrap();
        let owners: Vec<_> = owners.iter().map(|o| o["name"].as_str().unwrap()).collect();
        assert_eq!(owners, ["a", "b"]);
        let published = &service["metadata"]["annotations"];
        assert_eq!(
            published["external-dns.alpha.kubernetes.io/hostname"],
            "linkupnetworks.example.com"
        );
        // Agents look for Servers by these labels.
        assert!(service["metadata"]["labels"].get(annotations::COMPONENT_LABEL).is_none());
    }

    #[test]
    fn servers_of_another_link_say_that_the_name_is_taken_until_it_is_free() {
        let mut all = vec![server("a", "default", 1, None), server("c", "other", 3, None)];
        let now = Time("2026-02-01T00:00:00Z".parse().unwrap());
        assert_eq!(without_name(&all[0], &all, &now), None);
        let said = without_name(&all[1], &all, &now).unwrap();
        assert_eq!((said.status.as_str(), said.reason.as_str()), ("False", NAME_TAKEN));
        assert!(said.message.contains("link \"default\", by AeroServer a;"), "{}", said.message);
        assert!(said.message.ends_with("aero-server-c"), "{}", said.message);
        all[0].metadata.deletion_timestamp = Some(now.clone());
        assert_eq!(without_name(&all[1], &all, &now), None);
        assert_eq!(service(&all).unwrap()["spec"]["selector"][annotations::LINK_LABEL], "other");
        assert_eq!(service(&all[..1]), None);
    }

    #[test]
    fn nothing_is_published_unless_a_domain_is_given() {
        let service = service(&[server("a", "default", 1, None)]).unwrap();
        assert_eq!(service["metadata"]["annotations"], json!({}));
    }
}
