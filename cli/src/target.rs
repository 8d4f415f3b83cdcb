//! What a user means: an AeroClient, a pod, a prefix or an address.

use std::net::IpAddr;

use aero_crds::{AcpMapping, AeroClient};
use ipnet::IpNet;
use kube::ResourceExt;

use crate::observe::System;

/// What is to be explained.
#[derive(Debug, Clone)]
pub enum Target {
    /// One prefix.
    Mapping(Box<AcpMapping>),
    /// A client that has no prefix.
    Client(Box<AeroClient>),
    /// Perhaps a pod of that namespace and name; no prefix knows it.
    Pod(String, String),
}

/// Finds what a user means by `aeroclient/web`, `pod/web-0`, `web`, `ns/web`, a prefix or an
/// address.
///
/// # Errors
/// If it is an address or a prefix that is nobody's.
pub fn targets(system: &System, text: &str, namespace: &str) -> Result<Vec<Target>, String> {
    let of = |found: Vec<&AcpMapping>| {
        found.into_iter().map(|m| Target::Mapping(Box::new(m.clone()))).collect::<Vec<_>>()
    };
    let net = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    if let Some(net) = net {
        let has = |m: &&AcpMapping| m.spec.prefix.parse::<IpNet>().is_ok_and(|p| p.contains(&net));
        let found = of(system.mappings.iter().filter(has).collect());
        return if found.is_empty() { Err(nobodys(system, net)) } else { Ok(found) };
    }
    let (kind, rest) = match text.split_once('/') {
        Some(("pod" | "pods" | "po", name)) => ("pod", name),
        Some(("aeroclient" | "aeroclients" | "aclient" | "client", name)) => ("client", name),
        Some(("acp" | "acpmapping" | "acpmappings", name)) => ("acp", name),
        _ => ("", text),
    };
    let (namespace, name) = rest.split_once('/').unwrap_or((namespace, rest));
    if kind == "acp" {
        let found = of(system.mappings.iter().filter(|m| m.name_any() == name).collect());
        return if found.is_empty() {
            Err(format!("there is no AcpMapping {name}"))
        } else {
            Ok(found)
        };
    }
    let here = |m: &&AcpMapping| m.spec.client_ref.namespace == namespace;
    if kind != "client" {
        let is_pod = |m: &&AcpMapping| {
            m.spec.identity == name || m.spec.holder.as_ref().is_some_and(|h| h.pod_name == name)
        };
        let found = of(system.mappings.iter().filter(here).filter(is_pod).collect());
        if !found.is_empty() {
            return Ok(found);
        }
    }
    if kind != "pod" {
        let client = system
            .clients
            .iter()
            .find(|c| c.name_any() == name && c.namespace().as_deref() == Some(namespace));
        if let Some(client) = client {
            let mine = |m: &&AcpMapping| m.spec.client_ref.name == name;
            let found = of(system.mappings.iter().filter(here).filter(mine).collect());
            return Ok(if found.is_empty() {
                vec![Target::Client(Box::new(client.clone()))]
            } else {
                found
            });
        }
        if kind == "client" {
            return Err(format!("there is no AeroClient {namespace}/{name}"));
        }
    }
    Ok(vec![Target::Pod(namespace.into(), name.into())])
}

fn nobodys(system: &System, net: IpNet) -> String {
    let pools = system.links.iter().flat_map(|l| {
        let pools = l.status.clone().unwrap_or_default().pools;
        pools.into_iter().map(|p| (l.name_any(), p.prefix))
    });
    let mut pools = pools.filter_map(|(l, p)| Some((l, p.parse::<IpNet>().ok()?)));
    let shown = if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    };
    match pools.find(|(_, p)| p.contains(&net)) {
        Some((link, pool)) => {
            format!("{shown} is in pool {pool} of link {link}, and nobody has it")
        }
        None => format!("{shown} is in no pool of any link (kubectl get aerolinks)"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example::system;

    #[test]
    fn a_user_may_name_a_client_a_pod_a_prefix_an_address_or_an_object() {
        let s = system();
        for text in [
            "web",
            "default/web",
            "aeroclient/web",
            "web-0",
            "pod/web-0",
            "pod/default/web-0",
            "2001:db8:a:1::/64",
            "2001:db8:a:1::7",
            "acp/2001-db8-a-1-64",
        ] {
            let found = targets(&s, text, "default").unwrap();
            assert!(matches!(found[..], [Target::Mapping(_)]), "{text}: {found:?}");
        }
        let found = targets(&s, "web", "elsewhere").unwrap();
        assert!(matches!(found[..], [Target::Pod(..)]), "{found:?}");
        let nobody = targets(&s, "2001:db8:a:9::1", "default").unwrap_err();
        assert!(nobody.contains(
            "2001:db8:a:9::1 is in pool 2001:db8:a::/48 of link default, and nobody has it"
        ));
        let outside = targets(&s, "2001:db8:b::1", "default").unwrap_err();
        assert!(outside.contains("in no pool of any link"));
        assert!(targets(&s, "client/none", "default").is_err());
    }
}
