use super::*;
use aero_crds::{AcpMappingStatus, AeroClientSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

fn client(name: &str) -> AeroClient {
    let spec: AeroClientSpec = serde_json::from_value(serde_json::json!({
        "podSelector": LabelSelector::default(),
    }))
    .unwrap();
    let mut client = AeroClient::new(name, spec);
    client.metadata.namespace = Some("default".into());
    client
}

fn link() -> Option<LinkView> {
    let pool = EffectivePool { prefix: "2001:db8:a::/48".parse().unwrap(), length: 64 };
    Some(LinkView { name: "default".into(), pools: vec![pool] })
}

fn pod(name: &str, uid: &str, node: &str) -> Arc<PodView> {
    Arc::new(PodView {
        name: name.into(),
        uid: uid.into(),
        node: Some(node.into()),
        fixed_identity: Some(name.into()),
        terminating: false,
        created: "1".into(),
        annotations: BTreeMap::new(),
    })
}

fn fill(table: &mut Table, mappings: Vec<&AcpMapping>) {
    table.refill(mappings.into_iter().cloned().map(Arc::new));
}

fn observed<'a>(
    client: &'a AeroClient,
    pods: Vec<Arc<PodView>>,
    mappings: Vec<&AcpMapping>,
) -> Observed<'a> {
    let nodes = ["n1", "n2", "n3"]
        .iter()
        .enumerate()
        .map(|(i, n)| ((*n).to_string(), vec![format!("192.0.2.1{}", i + 1)]))
        .collect();
    // A test's table lives as long as the test.
    let table = Box::leak(Box::default());
    fill(table, mappings);
    Observed { client, link: link(), pods, taken_pods: vec![], table, nodes, floor: 0 }
}

/// What the API server would hold after the writes of a plan.
fn written(plan: &Plan) -> Vec<AcpMapping> {
    plan.writes
        .iter()
        .map(|w| match w {
            Write::Create(m) | Write::Replace(m) | Write::Bind(m) | Write::Retire(m) => {
                let mut m = m.clone();
                m.metadata.resource_version = Some("1".into());
                let phase = Some(Phase::Bound);
                m.status = Some(AcpMappingStatus { phase, ..AcpMappingStatus::default() });
                m
            }
        })
        .collect()
}

#[test]
fn a_scheduled_pod_gets_the_lowest_free_prefix_its_first_epoch_and_its_annotations() {
    let c = client("web");
    let plan = plan(&observed(&c, vec![pod("web-0", "u1", "n1")], vec![]));
    let [Write::Create(m)] = &plan.writes[..] else { panic!("{:?}", plan.writes) };
    assert_eq!(m.metadata.name.as_deref(), Some("2001-db8-a-1-64"));
    assert_eq!(m.spec.epoch, 1);
    let holder = m.spec.holder.clone().unwrap();
    assert_eq!((holder.node.as_str(), holder.underlay), ("n1", vec!["192.0.2.11".to_string()]));
    let (_, _, wanted) = &plan.annotate[0];
    assert_eq!(wanted[annotations::PREFIX], "2001:db8:a:1::/64");
    assert_eq!(wanted[annotations::EPOCH], "1");
    assert_eq!(wanted[annotations::POD_UID], "u1");
    assert_eq!(plan.told[0].reason, "Delegated");
}

#[test]
fn the_next_pod_of_an_identity_keeps_its_prefix_under_a_larger_epoch() {
    let c = client("web");
    let first = written(&plan(&observed(&c, vec![pod("web-0", "u1", "n1")], vec![])));
    let next = plan(&observed(&c, vec![pod("web-0", "u2", "n3")], first.iter().collect()));
    let [Write::Replace(m)] = &next.writes[..] else { panic!("{:?}", next.writes) };
    assert_eq!(m.spec.prefix, "2001:db8:a:1::/64");
    assert_eq!(m.spec.epoch, 2);
    assert_eq!(next.told[0].reason, "Moved");
    assert_eq!(next.told[0].message, "web-0 keeps 2001:db8:a:1::/64, n1 -> n3");
}

#[test]
fn a_plan_that_was_carried_out_leaves_nothing_to_do() {
    let c = client("web");
    let mut p = pod("web-0", "u1", "n1");
    let first = plan(&observed(&c, vec![p.clone()], vec![]));
    let mappings = written(&first);
    Arc::make_mut(&mut p).annotations = first.annotate[0].2.clone();
    Arc::make_mut(&mut p).annotations.insert("other".into(), "kept".into());
    let again = plan(&observed(&c, vec![p], mappings.iter().collect()));
    assert!(again.writes.is_empty() && again.annotate.is_empty() && again.told.is_empty());
    assert_eq!(again.identities["web-0"].prefixes.len(), 1);
}

#[test]
fn a_nodes_new_address_reaches_the_mapping_without_a_new_epoch() {
    let c = client("web");
    let first = written(&plan(&observed(&c, vec![pod("web-0", "u1", "n1")], vec![])));
    let mut seen = observed(&c, vec![pod("web-0", "u1", "n1")], first.iter().collect());
    seen.nodes.insert("n1".into(), vec!["192.0.2.99".into()]);
    let next = plan(&seen);
    let [Write::Replace(m)] = &next.writes[..] else { panic!("{:?}", next.writes) };
    assert_eq!(m.spec.epoch, 1);
    assert_eq!(m.spec.holder.clone().unwrap().underlay, ["192.0.2.99"]);
    assert!(next.told.is_empty());
}

#[test]
fn two_pods_of_one_plan_never_get_one_prefix() {
    let c = client("web");
    let pods = (0..50).map(|n| pod(&format!("web-{n}"), &format!("u{n}"), "n1")).collect();
    let plan = plan(&observed(&c, pods, vec![]));
    let names: BTreeSet<_> = written(&plan).iter().map(|m| m.metadata.name.clone()).collect();
    assert_eq!(names.len(), 50);
}

#[test]
fn a_prefix_asked_for_by_name_goes_to_the_identity_of_its_place() {
    let mut c = client("web");
    c.spec.prefixes = vec!["2001:db8:a:7::/64".into(), "2001:db8:a:1::/64".into()];
    let pods = vec![pod("web-0", "u0", "n1"), pod("web-1", "u1", "n1"), pod("web-2", "u2", "n1")];
    let plan = plan(&observed(&c, pods, vec![]));
    let prefix = |i: &str| plan.identities[i].prefixes[0].to_string();
    assert_eq!(prefix("web-0"), "2001:db8:a:7::/64");
    assert_eq!(prefix("web-1"), "2001:db8:a:1::/64");
    assert_eq!(prefix("web-2"), "2001:db8:a:2::/64");
}

#[test]
fn a_prefix_outside_the_links_pools_is_refused_with_the_pools_in_the_sentence() {
    let mut c = client("web");
    c.spec.prefixes = vec!["2001:db8:b::/64".into()];
    let plan = plan(&observed(&c, vec![pod("web-0", "u0", "n1")], vec![]));
    assert!(plan.writes.is_empty());
    assert_eq!(plan.refusals[0].reason, "PrefixOutsideLink");
    assert_eq!(
        plan.refusals[0].message,
        "2001:db8:b::/64 is in no pool of link \"default\" (2001:db8:a::/48 in /64s)"
    );
    let (_, _, wanted) = &plan.annotate[0];
    assert!(wanted[annotations::REFUSED].starts_with("PrefixOutsideLink: 2001:db8:b::/64"));
    assert!(plan.told[0].warning);
    assert_eq!(plan.told[0].reason, "Rejected");
}

#[test]
fn a_prefix_that_another_client_holds_is_refused_with_the_holder_in_the_sentence() {
    let web = client("web");
    let held = written(&plan(&observed(&web, vec![pod("web-0", "u1", "n3")], vec![])));
    let mut thief = client("thief");
    thief.spec.prefixes = vec!["2001:db8:a:1::/64".into()];
    let plan = plan(&observed(&thief, vec![pod("x-0", "u9", "n1")], held.iter().collect()));
    assert!(plan.writes.is_empty());
    assert_eq!(plan.refusals[0].reason, "PrefixHeld");
    assert_eq!(
        plan.refusals[0].message,
        "2001:db8:a:1::/64 is held by default/web/web-0 (pod web-0 on n3)"
    );
}

#[test]
fn a_link_that_does_not_exist_is_refused_and_running_pods_are_left_alone() {
    let c = client("web");
    let mut running = pod("web-0", "u1", "n1");
    let first = plan(&observed(&c, vec![running.clone()], vec![]));
    let mappings = written(&first);
    Arc::make_mut(&mut running).annotations = first.annotate[0].2.clone();
    let waiting = pod("web-1", "u2", "n1");
    let mut seen = observed(&c, vec![running, waiting], mappings.iter().collect());
    seen.link = None;
    let plan = plan(&seen);
    assert_eq!(plan.refusals[0].reason, "LinkNotFound");
    let refused: Vec<_> = plan.annotate.iter().map(|(name, ..)| name.as_str()).collect();
    assert_eq!(refused, ["web-1"]);
    assert_eq!(plan.identities.len(), 1);
}

#[test]
fn when_the_pool_is_used_up_the_one_too_many_is_told_so_and_the_others_run() {
    let c = client("web");
    let mut seen = observed(&c, vec![pod("web-0", "u0", "n1"), pod("web-1", "u1", "n1")], vec![]);
    let pool = EffectivePool { prefix: "2001:db8:a:5::/64".parse().unwrap(), length: 64 };
    seen.link = Some(LinkView { name: "default".into(), pools: vec![pool] });
    let plan = plan(&seen);
    assert_eq!(plan.writes.len(), 1);
    assert_eq!(plan.refusals[0].reason, "PoolExhausted");
    assert!(plan.refusals[0].message.contains("web-1"), "{}", plan.refusals[0].message);
}

#[test]
fn the_identity_of_a_pod_that_is_gone_keeps_its_prefix() {
    let c = client("web");
    let first = written(&plan(&observed(&c, vec![pod("web-0", "u1", "n1")], vec![])));
    let empty = plan(&observed(&c, vec![], first.iter().collect()));
    assert!(empty.writes.is_empty());
    assert_eq!(empty.identities["web-0"].prefixes.len(), 1);
}

#[test]
fn a_second_mapping_of_one_identity_is_retired() {
    let c = client("web");
    let first = written(&plan(&observed(&c, vec![pod("web-0", "u1", "n1")], vec![])));
    let mut twin = first[0].clone();
    twin.metadata.name = Some("2001-db8-a-9-64".into());
    twin.spec.prefix = "2001:db8:a:9::/64".into();
    twin.spec.epoch = 0;
    twin.spec.holder = None;
    let mappings = [first[0].clone(), twin];
    let plan = plan(&observed(&c, vec![pod("web-0", "u1", "n1")], mappings.iter().collect()));
    let [Write::Retire(m)] = &plan.writes[..] else { panic!("{:?}", plan.writes) };
    assert_eq!(m.spec.prefix, "2001:db8:a:9::/64");
}

#[test]
fn a_table_that_is_older_than_what_the_pod_was_told_is_repaired_under_a_larger_epoch() {
    let c = client("web");
    let mut p = pod("web-0", "u1", "n1");
    let first = plan(&observed(&c, vec![p.clone()], vec![]));
    let table = written(&first);
    Arc::make_mut(&mut p).annotations = first.annotate[0].2.clone();
    Arc::make_mut(&mut p).annotations.insert(annotations::EPOCH.into(), "7".into());
    let mut seen = observed(&c, vec![p], table.iter().collect());
    seen.floor = 5;
    let next = plan(&seen);
    let [Write::Replace(m)] = &next.writes[..] else { panic!("{:?}", next.writes) };
    assert_eq!(m.spec.epoch, 8);
    assert_eq!(next.told[0].reason, "Repaired");
    assert!(next.told[0].message.contains("web-0 2001:db8:a:1::/64 epoch 1 -> 8"));
}

#[test]
fn a_new_epoch_is_never_smaller_than_the_clock_or_than_one_that_was_seen() {
    let c = client("web");
    let mut seen = observed(&c, vec![pod("web-0", "u1", "n1")], vec![]);
    seen.floor = 1_800_000_000;
    let epoch = |seen: &Observed<'_>| match &plan(seen).writes[..] {
        [Write::Create(m)] => m.spec.epoch,
        other => panic!("{other:?}"),
    };
    assert_eq!(epoch(&seen), 1_800_000_000);
    let mut table = Table::default();
    let mut old = written(&plan(&seen)).remove(0);
    old.spec.epoch = 1_900_000_000;
    table.learn(&old);
    seen.table = &table;
    assert_eq!(epoch(&seen), 1_900_000_001);
}

#[test]
fn a_pod_whose_mapping_was_lost_gets_the_prefix_that_it_was_told() {
    let c = client("web");
    let mut p = pod("web-1", "u1", "n1");
    let pods = vec![pod("web-0", "u0", "n1"), p.clone()];
    let first = plan(&observed(&c, pods, vec![]));
    let told = first.annotate.iter().find(|(name, ..)| name == "web-1").unwrap();
    Arc::make_mut(&mut p).annotations = told.2.clone();
    let next = plan(&observed(&c, vec![p], vec![]));
    let [Write::Create(m)] = &next.writes[..] else { panic!("{:?}", next.writes) };
    assert_eq!(m.spec.prefix, "2001:db8:a:2::/64");
}
