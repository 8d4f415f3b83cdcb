//! Which Servers there are: named ones, or those that DNS has as `linkupnetworks.DOMAIN`
//! (draft -48 section 3.7.1).

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use aero_protocol::address::LinkLayerAddress;
use aero_protocol::client::{Liveness, Node};
use anyhow::bail;
use tokio_util::sync::CancellationToken;

use super::roaming;
use crate::driver::Driver;

/// UDP port of Servers.
const PORT: u16 = 8060;
/// Label in front of the domain.
const LABEL: &str = "linkupnetworks";
/// How often names are looked up again.
const AGAIN: Duration = Duration::from_secs(60);
/// How often while no Server answers, or none is known.
const SOON: Duration = Duration::from_secs(5);

/// A way to the Servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Finder {
    /// Addresses as they are.
    fixed: BTreeSet<LinkLayerAddress>,
    /// Names that each stand for one Server or several.
    names: Vec<(String, u16)>,
}

impl Finder {
    /// By what the user named; by the host's search domains if nothing.
    pub(super) fn new(servers: &[String], domain: Option<&str>) -> anyhow::Result<Self> {
        let mut finder = Self { fixed: BTreeSet::new(), names: Vec::new() };
        for text in servers {
            match parse(text) {
                Some(Server::Fixed(l2)) => drop(finder.fixed.insert(l2)),
                Some(Server::Name(name, port)) => finder.names.push((name, port)),
                None => bail!("--server {text:?} is neither an address nor a name"),
            }
        }
        let domains = match domain {
            Some(domain) => vec![domain.to_string()],
            None if servers.is_empty() => {
                search_domains(&std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default())
            }
            None => Vec::new(),
        };
        // What is named by address or name is taken as it is, and DNS is not asked for more.
        if servers.is_empty() {
            finder.names.extend(domains.iter().map(|d| (format!("{LABEL}.{d}."), PORT)));
        }
        if finder.fixed.is_empty() && finder.names.is_empty() {
            bail!("there is no way to a Server: --server or --domain names one");
        }
        Ok(finder)
    }

    /// The Servers as they are known now. Empty if no name has an address.
    pub(super) async fn find(&self) -> Vec<LinkLayerAddress> {
        let mut all = self.fixed.clone();
        for (name, port) in &self.names {
            match tokio::net::lookup_host((name.as_str(), *port)).await {
                Ok(found) => {
                    let found: Vec<SocketAddr> = found.collect();
                    all.extend(one_family(&found, |a| roaming::source_towards(a).is_some()));
                }
                Err(e) => tracing::warn!(name, "no Server found in DNS: {e}"),
            }
        }
        all.into_iter().collect()
    }

    /// Waits for the first time that a Server is known.
    pub(super) async fn find_first(&self, token: &CancellationToken) -> Vec<LinkLayerAddress> {
        loop {
            let found = self.find().await;
            if !found.is_empty() {
                return found;
            }
            tokio::select! {
                () = tokio::time::sleep(SOON) => {}
                () = token.cancelled() => return found,
            }
        }
    }

    /// Looks the names up again, sooner while no Server answers.
    pub(super) async fn follow(&self, driver: &Driver<Node>) {
        if self.names.is_empty() {
            return std::future::pending().await;
        }
        loop {
            let answers =
                driver.with(|node, _| node.servers().any(|(_, l)| l == Liveness::Answers));
            tokio::time::sleep(if answers { AGAIN } else { SOON }).await;
            set(driver, &self.find().await);
        }
    }
}

/// Tells the engine which Servers there are. None at all is no news to act on.
pub(super) fn set(driver: &Driver<Node>, wanted: &[LinkLayerAddress]) {
    if wanted.is_empty() {
        return;
    }
    driver.with(|node, now| {
        let known: Vec<LinkLayerAddress> = node.servers().map(|(l2, _)| l2).collect();
        for server in wanted {
            if !known.contains(server) {
                tracing::info!(%server, "a Server");
            }
        }
        node.add_servers(wanted.iter().copied(), now);
        // It may live and serve others: it is told where this host is from now on.
        for server in known.iter().filter(|s| !wanted.contains(s)) {
            tracing::info!(%server, "no Server any more");
            node.leave_server(*server, now);
        }
    });
}

#[derive(Debug, PartialEq, Eq)]
enum Server {
    Fixed(LinkLayerAddress),
    Name(String, u16),
}

fn parse(text: &str) -> Option<Server> {
    let bare = text.strip_prefix('[').and_then(|t| t.strip_suffix(']')).unwrap_or(text);
    if let Ok(ip) = bare.parse::<IpAddr>() {
        return Some(Server::Fixed(LinkLayerAddress::new(ip, PORT)));
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Some(Server::Fixed(address.into()));
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, port.parse().ok()?),
        None => (text, PORT),
    };
    let ok = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    // All digits and dots: an address that is wrong, not a name.
    let digits = name.chars().all(|c| c.is_ascii_digit() || c == '.');
    (!name.is_empty() && name.chars().all(ok) && !digits)
        .then(|| Server::Name(name.to_string(), port))
}

/// A Server that has addresses of both families is to be one, not two: the addresses of the first
/// family in the resolver's order that can be reached from here.
fn one_family(
    found: &[SocketAddr],
    reachable: impl Fn(SocketAddr) -> bool,
) -> Vec<LinkLayerAddress> {
    let first = found.iter().find(|a| reachable(**a)).or(found.first());
    let Some(v6) = first.map(SocketAddr::is_ipv6) else { return Vec::new() };
    found.iter().filter(|a| a.is_ipv6() == v6).map(|a| (*a).into()).collect()
}

/// The last `search` or `domain` line counts (resolv.conf(5)).
fn search_domains(resolv_conf: &str) -> Vec<String> {
    let mut domains = Vec::new();
    for line in resolv_conf.lines() {
        let mut words = line.split_whitespace();
        if matches!(words.next(), Some("search" | "domain")) {
            domains = words.map(|d| d.trim_end_matches('.').to_string()).collect();
            domains.retain(|d| !d.is_empty());
        }
    }
    domains
}

#[cfg(test)]
mod tests {
    use super::*;

    fn l2(text: &str) -> LinkLayerAddress {
        text.parse::<SocketAddr>().unwrap().into()
    }

    #[test]
    fn a_server_is_an_address_or_a_name_with_or_without_a_port() {
        let fixed = |text: &str| Some(Server::Fixed(l2(text)));
        assert_eq!(parse("192.0.2.11"), fixed("192.0.2.11:8060"));
        assert_eq!(parse("192.0.2.11:9000"), fixed("192.0.2.11:9000"));
        assert_eq!(parse("2001:db8::11"), fixed("[2001:db8::11]:8060"));
        assert_eq!(parse("[2001:db8::11]"), fixed("[2001:db8::11]:8060"));
        assert_eq!(parse("[2001:db8::11]:9000"), fixed("[2001:db8::11]:9000"));
        assert_eq!(parse("a.example:9000"), Some(Server::Name("a.example".into(), 9000)));
        assert_eq!(parse("a.example"), Some(Server::Name("a.example".into(), 8060)));
        for bad in ["", "192.0.2.256", "2001:db8::g", "a b", "a.example:port"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn named_servers_come_before_dns_and_without_any_the_search_domains_are_tried() {
        let fixed = Finder::new(&["192.0.2.11".into()], Some("example.com")).unwrap();
        assert!(fixed.names.is_empty(), "a static list overrides DNS");
        let by_domain = Finder::new(&[], Some("example.com")).unwrap();
        assert_eq!(by_domain.names, [("linkupnetworks.example.com.".to_string(), 8060)]);
        let text = "search old.example\nnameserver 192.0.2.1\nsearch a.example b.example.\n";
        assert_eq!(search_domains(text), ["a.example", "b.example"]);
    }

    #[test]
    fn a_server_with_addresses_of_both_families_is_one_server() {
        let found: Vec<SocketAddr> = ["[2001:db8::1]:8060", "192.0.2.1:8060", "192.0.2.2:8060"]
            .map(|a| a.parse().unwrap())
            .into();
        assert_eq!(one_family(&found, |_| true), [l2("[2001:db8::1]:8060")]);
        let v4 = [l2("192.0.2.1:8060"), l2("192.0.2.2:8060")];
        assert_eq!(one_family(&found, |a| a.is_ipv4()), v4);
        assert_eq!(one_family(&[], |_| true), []);
    }
}
