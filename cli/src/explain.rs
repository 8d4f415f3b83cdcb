//! `kubectl aero explain`: why a prefix is reachable or not, part by part, in the order in which
//! one part needs the one before: mapping, holder, agent, Server, neighbour, counters.

use aero_crds::{AcpMapping, AeroClient, Phase, annotations};
use aero_telemetry::debug::{ClientReport, NodeReport, ServerReport};
use kube::ResourceExt;

use crate::observe::{PodView, System};
use crate::report::{Report, count};
use crate::status::ready;

/// Explains one prefix. `holder`: the pod that the mapping names, if there is one of that name.
pub fn explain(system: &System, mapping: &AcpMapping, holder: Option<&PodView>) -> Report {
    let spec = &mapping.spec;
    let of = &spec.client_ref;
    let mut report = Report::new(format!(
        "{}  belongs to {}/{} identity {}, epoch {}",
        spec.prefix, of.namespace, of.name, spec.identity, spec.epoch
    ));
    say_mapping(mapping, &mut report);
    let Some(h) = &spec.holder else { return report };
    let unready = say_holder(system, mapping, holder, &mut report);
    let page = system.agents.get(&h.node);
    let client = say_agent(system, mapping, page, &mut report);
    let leases = say_servers(system, mapping, &mut report);
    say_neighbors(
        system,
        mapping,
        page.and_then(|p| p.as_ref().ok()),
        client,
        &leases,
        &mut report,
    );
    say_counters(system, &h.node, &mut report);
    // A pod starts only when its prefix is served: it is to blame if nothing else is.
    if let (Some(advice), true) = (unready, report.healthy()) {
        report.blame("holder", advice);
    }
    report
}

fn say_mapping(mapping: &AcpMapping, report: &mut Report) {
    let status = mapping.status.clone().unwrap_or_default();
    let spec = &mapping.spec;
    let of = &spec.client_ref;
    if status.phase == Some(Phase::Cooling) {
        let free = status.free_at.map(|t| t.0.to_string()).unwrap_or_default();
        let text = format!("given up; nobody has it until {free}");
        report.fail("mapping", text, "nothing: it is free after its cool-down");
        return;
    }
    match &spec.holder {
        Some(h) => {
            let uid: String = h.pod_uid.chars().take(8).collect();
            report
                .ok("mapping", format!("Bound to pod {} (uid {uid}...) on {}", h.pod_name, h.node));
        }
        None => {
            let since = status.released_at.map(|t| format!(" since {}", t.0)).unwrap_or_default();
            let text = format!("kept for {}, which has no pod{since}", spec.identity);
            let advice = format!(
                "start the pod of identity {}: kubectl -n {} get statefulsets,deployments,pods",
                spec.identity, of.namespace
            );
            report.fail("mapping", text, advice);
        }
    }
}

/// Tells about the pod. What to do about one that is there and not Ready.
fn say_holder(
    system: &System,
    mapping: &AcpMapping,
    holder: Option<&PodView>,
    report: &mut Report,
) -> Option<String> {
    let h = mapping.spec.holder.as_ref()?;
    let ns = &mapping.spec.client_ref.namespace;
    let (name, node) = (&h.pod_name, &h.node);
    let look = format!("kubectl -n {ns} describe pod {name}");
    match holder.filter(|p| p.uid == h.pod_uid) {
        None => {
            let text = match holder {
                Some(_) => format!(
                    "pod {name} is another than the mapping knows; the operator is about to see it"
                ),
                None => format!("pod {name} does not exist any more"),
            };
            let advice =
                format!("a new pod of the identity takes over: kubectl -n {ns} get pods -w");
            report.fail("holder", text, advice);
        }
        Some(p) if p.terminating => {
            let advice =
                format!("a new pod of the identity takes over: kubectl -n {ns} get pods -w");
            report.fail("holder", format!("pod {name} on {node} is being deleted"), advice);
        }
        Some(p)
            if p.annotations.get(annotations::EPOCH) != Some(&mapping.spec.epoch.to_string()) =>
        {
            let text = format!("pod {name} does not know its epoch {} yet", mapping.spec.epoch);
            report.fail(
                "holder",
                text,
                format!("is the operator well? kubectl aero status; {look}"),
            );
        }
        Some(_) if !system.nodes.iter().any(|n| n.name == *node && n.ready) => {
            let text = format!("its node {node} is not Ready");
            report.fail("holder", text, format!("kubectl describe node {node}"));
        }
        Some(p) if !p.ready => {
            report.note("holder", format!("pod {name} on {node} is not Ready ({})", p.state));
            return Some(look);
        }
        Some(_) => report.ok("holder", format!("pod {name} runs on {node} and is Ready")),
    }
    None
}

/// Tells about the agent; the client as the agent knows it.
fn say_agent<'a>(
    system: &System,
    mapping: &AcpMapping,
    page: Option<&'a Result<NodeReport, String>>,
    report: &mut Report,
) -> Option<&'a ClientReport> {
    let h = mapping.spec.holder.as_ref()?;
    let (ns, node) = (&system.namespace, &h.node);
    let part = format!("agent {node}");
    let Some(pod) = system.pods_of("agent").find(|p| p.node == *node) else {
        let advice =
            format!("does agent.nodeSelector leave {node} out? kubectl -n {ns} get pods -o wide");
        report.fail(part, format!("no agent runs on {node}"), advice);
        return None;
    };
    let look = format!("kubectl -n {ns} logs {}", pod.name);
    let page = match page {
        Some(Ok(page)) => page,
        other => {
            let why = match other {
                Some(Err(why)) => why.clone(),
                _ => format!("its pod is {}", pod.state),
            };
            report.fail(part, format!("cannot be asked: {why}"), look);
            return None;
        }
    };
    let Some(client) = page.clients.iter().find(|c| c.client_id == mapping.spec.client_id) else {
        let text = format!("has no attachment of {}", mapping.spec.identity);
        let advice = format!(
            "a pod that ran before it was enrolled gets its prefix when it is replaced: kubectl -n {} delete pod {}",
            mapping.spec.client_ref.namespace, h.pod_name
        );
        report.fail(part, text, advice);
        return None;
    };
    let epoch = u64::try_from(mapping.spec.epoch).unwrap_or_default();
    let replace = format!("kubectl -n {} delete pod {}", client.namespace, client.pod);
    if client.pod_uid != h.pod_uid {
        report.fail(part, format!("is attached to another pod of the name {}", client.pod), look);
    } else if let Some(fault) = &client.fault {
        report.fail(
            part,
            fault.clone(),
            format!("replace the pod, its interfaces are broken: {replace}"),
        );
    } else if client.epoch != epoch {
        report.fail(
            part,
            format!("claims epoch {}, the mapping is at {epoch}", client.epoch),
            look,
        );
    } else if !client.served {
        let why = client.refusal.clone().unwrap_or_else(|| "no Server has given a lease".into());
        report.fail(part, format!("{} is attached and muted: {why}", client.pod), look);
    } else {
        let text = format!("attached as {}, {} up, served", client.interface, client.address);
        report.ok(part, text);
    }
    Some(client)
}

/// Tells about the Servers; those that have a lease of the prefix.
fn say_servers<'a>(
    system: &'a System,
    mapping: &AcpMapping,
    report: &mut Report,
) -> Vec<(&'a PodView, &'a ServerReport)> {
    let ns = &system.namespace;
    let link = &mapping.spec.link_ref.name;
    let all: Vec<&PodView> = system.servers_of(link).filter(|p| !p.terminating).collect();
    let serving = all.iter().filter(|p| p.ready).count();
    if serving == 0 {
        let text = if all.is_empty() {
            format!("link {link} has no Server")
        } else {
            format!("none of {} of link {link} is ready", count(all.len(), "Server"))
        };
        let advice = format!(
            "kubectl -n {ns} get aeroservers,deployments,pods -l aerolink.dev/link={link}; is spec.replicas of the AeroServer 0?"
        );
        report.fail("server", text, advice);
        return Vec::new();
    }
    let (mut leases, mut without, mut said) = (Vec::new(), Vec::new(), Vec::new());
    for pod in &all {
        match system.server_reports.get(&pod.name) {
            Some(Ok(page)) if page.neighbors.iter().any(|n| n.acp == mapping.spec.prefix) => {
                leases.push((*pod, page));
            }
            Some(Ok(_)) => without.push(format!("{} on {} has no lease of it", pod.name, pod.node)),
            Some(Err(why)) => said.push(format!("{} cannot be asked: {why}", pod.name)),
            None => {
                without
                    .push(format!("{} on {} is not running ({})", pod.name, pod.node, pod.state));
            }
        }
    }
    let good = format!("{} of {} have a lease of it", leases.len(), count(all.len(), "Server"));
    if without.is_empty() && said.is_empty() {
        report.ok("server", good);
    } else {
        without.append(&mut said);
        let advice = format!(
            "kubectl -n {ns} logs -l aerolink.dev/link={link} --prefix; kubectl aero connectivity"
        );
        report.fail("server", format!("{good}; {}", without.join("; ")), advice);
    }
    leases
}

fn say_neighbors(
    system: &System,
    mapping: &AcpMapping,
    page: Option<&NodeReport>,
    client: Option<&ClientReport>,
    leases: &[(&PodView, &ServerReport)],
    report: &mut Report,
) {
    let Some(h) = &mapping.spec.holder else { return };
    let look =
        || format!("is UDP open between {} and the Servers? kubectl aero connectivity", h.node);
    if let Some(page) = page {
        let silent: Vec<String> = (page.servers.iter())
            .filter(|s| s.state == "silent")
            .map(|s| system.name_of(&s.address))
            .collect();
        match &page.default_server {
            None => {
                report.fail("tunnel", format!("{} has no Server to send to", h.node), look());
            }
            Some(s) if page.servers.iter().any(|k| k.address == *s && k.state == "silent") => {
                let text =
                    format!("the default Server {} of {} is silent", system.name_of(s), h.node);
                report.fail("tunnel", text, look());
            }
            Some(s) if !silent.is_empty() => {
                let text = format!(
                    "{} sends to {}; silent: {}",
                    h.node,
                    system.name_of(s),
                    silent.join(", ")
                );
                report.fail("tunnel", text, look());
            }
            Some(s) => {
                let of = count(page.servers.len(), "Server");
                let text = format!("{} sends to {}, {of} answering", h.node, system.name_of(s));
                report.ok("tunnel", text);
            }
        }
    }
    let epoch = u64::try_from(mapping.spec.epoch).unwrap_or_default();
    let mut wrong = Vec::new();
    for (pod, server) in leases {
        for n in server.neighbors.iter().filter(|n| n.acp == mapping.spec.prefix) {
            let here = page.is_none_or(|p| p.underlay.contains(&n.link_layer));
            if !here {
                wrong.push(format!("{} sends to {}", pod.name, system.name_of(&n.link_layer)));
            } else if n.epoch != epoch {
                wrong.push(format!("{} has epoch {}", pod.name, n.epoch));
            }
        }
    }
    if !wrong.is_empty() {
        let advice = format!(
            "this heals within a second of a move; if it stays: kubectl -n {} logs -l aerolink.dev/component=server --prefix",
            system.namespace
        );
        report.fail(
            "neighbour",
            format!("not {} under epoch {epoch}: {}", h.node, wrong.join("; ")),
            advice,
        );
    } else if !leases.is_empty() {
        let to =
            client.map(|_| h.node.clone()).unwrap_or_else(|| format!("{}, unconfirmed", h.node));
        let text = format!("{} send what is for it to {to}", count(leases.len(), "Server"));
        report.ok("neighbour", text);
    } else {
        let advice = String::new();
        report.fail("neighbour", "no Server has an entry for it", advice);
    }
}

fn say_counters(system: &System, node: &str, report: &mut Report) {
    let mut said = Vec::new();
    if let Some(Ok(page)) = system.agents.get(node) {
        said.push(counters(&format!("agent {node}"), &page.counters));
    }
    for (pod, page) in &system.server_reports {
        if let Ok(page) = page {
            said.push(counters(pod, &page.counters));
        }
    }
    if !said.is_empty() {
        report.ok("counters", said.join("\n"));
    }
}

fn counters(who: &str, c: &aero_telemetry::debug::Counters) -> String {
    let mut drops: Vec<String> =
        c.drops.iter().filter(|(_, n)| **n > 0).map(|(why, n)| format!("{n} {why}")).collect();
    if c.send_errors > 0 {
        drops.push(format!("{} not sent", c.send_errors));
    }
    let drops = if drops.is_empty() {
        "nothing dropped".into()
    } else {
        format!("dropped: {}", drops.join(", "))
    };
    format!(
        "{who}: {} delivered, {} into tunnels, {drops}",
        c.delivered_packets, c.tunneled_packets
    )
}

/// Explains a client that has no prefix.
pub fn explain_client(client: &AeroClient) -> Report {
    let (namespace, name) = (client.namespace().unwrap_or_default(), client.name_any());
    let mut report = Report::new(format!("AeroClient {namespace}/{name} has no prefix"));
    let status = client.status.clone().unwrap_or_default();
    let (good, why) = ready(&status.conditions);
    if good {
        let advice = format!(
            "it selects no pod: kubectl -n {namespace} get pods --show-labels; kubectl -n {namespace} get aeroclient {name} -o yaml"
        );
        report.fail("client", "accepted, and no pod has its labels", advice);
    } else {
        report.fail("client", why, format!("kubectl -n {namespace} edit aeroclient {name}"));
    }
    report
}

/// Explains a pod that has no prefix. `clients`: those of its namespace that select it.
pub fn explain_pod(pod: &PodView, clients: &[String]) -> Report {
    let (namespace, name) = (&pod.namespace, &pod.name);
    let mut report = Report::new(format!("pod {namespace}/{name} has no prefix"));
    if let Some(why) = pod.annotations.get(annotations::REFUSED) {
        let client = clients.first().cloned().unwrap_or_default();
        report.fail(
            "client",
            why.clone(),
            format!("kubectl -n {namespace} edit aeroclient {client}"),
        );
    } else if clients.is_empty() {
        let advice = format!(
            "kubectl -n {namespace} get aeroclients -o wide; the pod's labels: kubectl -n {namespace} get pod {name} --show-labels"
        );
        report.fail("client", "no AeroClient of its namespace selects it", advice);
    } else if pod.node.is_empty() {
        let advice = format!("kubectl -n {namespace} describe pod {name}");
        report.fail("holder", "it is not scheduled to a node yet", advice);
    } else {
        let text = format!(
            "AeroClient {} selects it; the operator has not given it a prefix",
            clients.join(", ")
        );
        report.fail("mapping", text, "is the operator well? kubectl aero status");
    }
    report
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
