//! The CEL rules of the CRDs, evaluated here as the API server does.

use std::collections::BTreeMap;

use aero_crds::{
    AcpMapping, AcpMappingSpec, AeroClient, AeroClientSpec, AeroLink, AeroLinkSpec, AeroServer,
    AeroServerSpec, ClientRef, Holder, Host, LinkRef, Pool, client_id,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

fn selector() -> Option<LabelSelector> {
    let labels = BTreeMap::from([("app".to_owned(), "web".to_owned())]);
    Some(LabelSelector { match_labels: Some(labels), match_expressions: None })
}

fn client(change: impl FnOnce(&mut AeroClientSpec)) -> AeroClient {
    let mut spec = AeroClientSpec { pod_selector: selector(), ..AeroClientSpec::default() };
    change(&mut spec);
    AeroClient::new("web", spec)
}

fn link(prefix: &str, length: i32) -> AeroLink {
    let pools = vec![Pool { prefix: prefix.to_owned(), client_prefix_length: length }];
    AeroLink::new("default", AeroLinkSpec { pools, ..AeroLinkSpec::default() })
}

fn mapping(name: &str, prefix: &str) -> AcpMapping {
    AcpMapping::new(
        name,
        AcpMappingSpec {
            prefix: prefix.to_owned(),
            link_ref: LinkRef::default(),
            client_id: client_id("default", "default", "web", "web-0").to_string(),
            client_ref: ClientRef { namespace: "default".to_owned(), name: "web".to_owned() },
            identity: "web-0".to_owned(),
            ..AcpMappingSpec::default()
        },
    )
}

fn holder(uid: &str) -> Option<Holder> {
    Some(Holder {
        pod_name: "web-0".to_owned(),
        pod_uid: uid.to_owned(),
        node: "n1".to_owned(),
        underlay: vec!["192.0.2.1".to_owned()],
    })
}

#[track_caller]
fn refused<E: std::fmt::Debug>(result: Result<(), E>, text: &str) {
    let error = format!("{:?}", result.unwrap_err());
    assert!(error.contains(text), "{error} does not say {text:?}");
}

#[test]
fn a_client_selects_either_pods_or_a_host() {
    client(|_| ()).validate_cel().unwrap();
    let host = Some(Host { public_key: "q83vEjRWeJA=".to_owned() });
    client(|c| (c.host, c.pod_selector) = (host.clone(), None)).validate_cel().unwrap();
    let text = "exactly one of podSelector and host must be set";
    refused(client(|c| c.host = host).validate_cel(), text);
    refused(client(|c| c.pod_selector = None).validate_cel(), text);
}

#[test]
fn prefixes_of_a_client_are_masked_cidrs_that_differ() {
    let with = |list: &[&str]| {
        let prefixes = list.iter().map(|&p| p.to_owned()).collect();
        client(|c| c.prefixes = prefixes).validate_cel()
    };
    with(&["2001:db8:a:1::/64", "2001:db8:a:2::/64", "192.0.2.1/32"]).unwrap();
    refused(with(&["2001:db8:a:1::/64", "nonsense"]), "nonsense is no prefix in CIDR form");
    refused(with(&["2001:db8:a:1::1/64"]), "write 2001:db8:a:1::/64");
    refused(with(&["2001:db8:a:1::/64", "2001:db8:a:1::/64"]), "must differ");
}

#[test]
fn durations_are_checked_and_the_link_of_a_client_stays() {
    client(|c| c.keep_for = "1h30m".to_owned()).validate_cel().unwrap();
    refused(client(|c| c.keep_for = "soon".to_owned()).validate_cel(), "must be a duration");
    let other = client(|c| c.link_ref.name = "other".to_owned());
    refused(other.validate_cel_update(&client(|_| ())), "linkRef cannot be changed");
}

#[test]
fn pools_are_masked_cidrs_whose_client_prefixes_fit() {
    link("2001:db8:a::/48", 64).validate_cel().unwrap();
    link("192.0.2.0/24", 32).validate_cel().unwrap();
    refused(link("2001:db8:a::", 64).validate_cel(), "must be a prefix in CIDR form");
    refused(link("2001:db8:a::1/48", 64).validate_cel(), "write 2001:db8:a::/48");
    refused(link("2001:db8:a::/48", 40).validate_cel(), "does not fit the pool 2001:db8:a::/48");
    refused(link("2001:db8:a::/48", 96).validate_cel(), "does not fit the pool 2001:db8:a::/48");
    refused(link("192.0.2.0/24", 33).validate_cel(), "at most 32");
}

#[test]
fn a_mapping_is_named_after_its_prefix() {
    for (name, prefix) in [
        ("2001-db8-a-1-64", "2001:db8:a:1::/64"),
        ("2001-db8-0-0-0-0-0-1-128", "2001:db8::1/128"),
        ("2001-db8-0-0-1-80", "2001:db8::1:0:0:0/80"),
        ("192.0.2.32-28", "192.0.2.32/28"),
    ] {
        mapping(name, prefix).validate_cel().unwrap();
    }
    for (name, prefix) in [
        ("2001-db8-a-2-64", "2001:db8:a:1::/64"),
        ("web", "2001:db8:a:1::/64"),
        ("192.0.2.32-27", "192.0.2.32/28"),
    ] {
        refused(mapping(name, prefix).validate_cel(), "metadata.name must be the prefix");
    }
}

#[test]
fn what_a_mapping_is_about_cannot_be_changed() {
    let old = mapping("2001-db8-a-1-64", "2001:db8:a:1::/64");
    let changed = |change: fn(&mut AcpMappingSpec)| {
        let mut new = old.clone();
        change(&mut new.spec);
        new.validate_cel_update(&old)
    };
    refused(changed(|s| s.link_ref.name = "b".to_owned()), "linkRef cannot be changed");
    refused(changed(|s| s.client_ref.name = "b".to_owned()), "clientRef cannot be changed");
    refused(changed(|s| s.identity = "web-1".to_owned()), "identity cannot be changed");
    refused(changed(|s| s.client_id.replace_range(0..1, "f")), "clientId cannot be changed");
    refused(changed(|s| s.prefix = "2001:db8:a:2::/64".to_owned()), "prefix cannot be changed");
}

#[test]
fn a_new_holder_needs_a_larger_epoch_and_epochs_only_grow() {
    let mut old = mapping("2001-db8-a-1-64", "2001:db8:a:1::/64");
    (old.spec.holder, old.spec.epoch) = (holder("a"), 4);
    let changed = |to: Option<Holder>, epoch: i64| {
        let mut new = old.clone();
        (new.spec.holder, new.spec.epoch) = (to, epoch);
        new.validate_cel_update(&old)
    };
    changed(holder("b"), 5).unwrap();
    changed(None, 4).unwrap();
    changed(holder("a"), 4).unwrap();
    refused(changed(holder("b"), 4), "a new holder needs a larger epoch");
    refused(changed(None, 3), "epoch can only grow");
}

#[test]
fn the_link_of_a_server_stays() {
    let old = AeroServer::new("aero", AeroServerSpec::default());
    let mut new = old.clone();
    new.spec.link_ref.name = "other".to_owned();
    refused(new.validate_cel_update(&old), "linkRef cannot be changed");
}
