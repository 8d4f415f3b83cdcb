//! One thing is broken at a time, and the part that is named must be the one.

use super::*;
use crate::example::{holder, system};
use crate::report::State;

fn said(system: &System, holder: Option<&PodView>) -> Report {
    explain(system, &system.mappings[0], holder)
}

/// The first part that fails, its words, and what to do.
fn first(report: &Report) -> (String, String, String) {
    let line = report.lines.iter().find(|l| l.state == State::Fail).unwrap();
    (line.part.clone(), line.text.clone(), report.advice[0].clone())
}

#[test]
fn of_a_healthy_prefix_every_line_is_ok_in_the_order_of_need() {
    let report = said(&system(), Some(&holder()));
    assert!(report.healthy(), "{report}");
    let parts: Vec<&str> = report.lines.iter().map(|l| l.part.as_str()).collect();
    let order = ["mapping", "holder", "agent n1", "server", "tunnel", "neighbour", "counters"];
    assert_eq!(parts, order);
    assert!(report.advice.is_empty());
    assert!(report.title.starts_with("2001:db8:a:1::/64  belongs to default/web identity web-0"));
}

#[test]
fn a_pod_that_is_gone_another_or_not_ready_is_the_holders_fault() {
    let s = system();
    let (part, text, advice) = first(&said(&s, None));
    assert_eq!((part.as_str(), text.as_str()), ("holder", "pod web-0 does not exist any more"));
    assert!(advice.contains("get pods"));
    let other = PodView { uid: "another".into(), ..holder() };
    assert!(first(&said(&s, Some(&other))).1.contains("another than the mapping knows"));
    let going = PodView { terminating: true, ..holder() };
    assert!(first(&said(&s, Some(&going))).1.contains("is being deleted"));
    let crashing = PodView { ready: false, state: "CrashLoopBackOff".into(), ..holder() };
    let (part, text, advice) = first(&said(&s, Some(&crashing)));
    assert_eq!(part, "holder");
    assert!(text.contains("CrashLoopBackOff") && advice.contains("describe pod web-0"));
    // Where something else fails, the pod waits for that.
    let mut silent = system();
    silent.parts.retain(|p| !p.is_part("server"));
    assert_eq!(first(&said(&silent, Some(&crashing))).0, "server");
    let mut s = system();
    s.nodes[0].ready = false;
    assert_eq!(first(&said(&s, Some(&holder()))).1, "its node n1 is not Ready");
}

#[test]
fn a_mapping_without_a_holder_or_that_cools_ends_the_explanation() {
    let mut s = system();
    s.mappings[0].spec.holder = None;
    let report = said(&s, None);
    assert_eq!(report.lines.len(), 1);
    assert!(first(&report).1.contains("kept for web-0"));
}

#[test]
fn an_agent_that_is_missing_mute_or_without_the_attachment_is_named_with_its_node() {
    let mut s = system();
    s.parts.retain(|p| p.name != "aero-agent-1");
    assert_eq!(first(&said(&s, Some(&holder()))).0, "agent n1");
    let mut s = system();
    s.agents.insert("n1".into(), Err("no answer in 8s".into()));
    assert!(first(&said(&s, Some(&holder()))).1.contains("no answer in 8s"));
    type Break = fn(&mut ClientReport);
    let cases: [(Break, &str); 4] = [
        (|c| c.client_id = "other".into(), "has no attachment of web-0"),
        (|c| c.fault = Some("the pod's interface aero0 is gone".into()), "aero0 is gone"),
        (|c| c.epoch = 3, "claims epoch 3, the mapping is at 4"),
        (|c| (c.served, c.refusal) = (false, Some("held by other".into())), "held by other"),
    ];
    for (break_, words) in cases {
        let mut s = system();
        let page = s.agents.get_mut("n1").unwrap().as_mut().unwrap();
        break_(&mut page.clients[0]);
        let (part, text, advice) = first(&said(&s, Some(&holder())));
        assert_eq!(part, "agent n1");
        assert!(text.contains(words), "{words:?} is not in {text:?}");
        assert!(!advice.is_empty());
    }
}

#[test]
fn servers_that_do_not_run_or_have_no_lease_are_named() {
    let mut s = system();
    s.parts.retain(|p| !p.is_part("server"));
    s.server_reports.clear();
    let (part, text, advice) = first(&said(&s, Some(&holder())));
    assert_eq!((part.as_str(), text.as_str()), ("server", "link default has no Server"));
    assert!(advice.contains("spec.replicas"));
    let mut s = system();
    s.server_reports.get_mut("aero-server-b").unwrap().as_mut().unwrap().neighbors.clear();
    let (part, text, _) = first(&said(&s, Some(&holder())));
    assert_eq!(part, "server");
    assert_eq!(text, "1 of 2 Servers have a lease of it; aero-server-b on n2 has no lease of it");
}

#[test]
fn a_silent_server_and_an_entry_that_leads_elsewhere_are_told_apart() {
    let mut s = system();
    s.agents.get_mut("n1").unwrap().as_mut().unwrap().servers[0].state = "silent".into();
    let (part, text, advice) = first(&said(&s, Some(&holder())));
    assert_eq!(part, "tunnel");
    assert!(text.contains("192.0.2.11:8060 (n1) of n1 is silent"), "{text}");
    assert!(advice.contains("UDP"));
    let mut s = system();
    let page = s.server_reports.get_mut("aero-server-a").unwrap().as_mut().unwrap();
    page.neighbors[0].link_layer = "192.0.2.12:8061".into();
    let (part, text, _) = first(&said(&s, Some(&holder())));
    assert_eq!(part, "neighbour");
    assert!(text.contains("aero-server-a sends to 192.0.2.12:8061 (n2)"), "{text}");
}

#[test]
fn a_pod_without_a_prefix_is_told_whether_it_was_refused_or_never_enrolled() {
    let mut pod = holder();
    let (part, text, _) = first(&explain_pod(&pod, &[]));
    assert_eq!(
        (part.as_str(), text.as_str()),
        ("client", "no AeroClient of its namespace selects it")
    );
    let why = "PrefixHeld: 2001:db8:a:1::/64 is held by another";
    pod.annotations.insert("aerolink.dev/refused".into(), why.into());
    let (_, text, advice) = first(&explain_pod(&pod, &["web".into()]));
    assert_eq!(text, why);
    assert!(advice.contains("edit aeroclient web"));
}
