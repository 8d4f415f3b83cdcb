//! The configuration of BIRD 2 (2.0.12 and later): a pure function of the instance and of what
//! this node is in it.

use std::fmt::Write as _;
use std::net::IpAddr;

use aero_protocol::address::ServerId;
use ipnet::IpNet;

use super::instance::{Instance, InstanceError, Role, Speaker, Timers};
use crate::attach::ROUTE_PROTOCOL;

/// What this node is.
#[derive(Debug, Clone)]
pub struct Own<'a> {
    /// Server or Relay.
    pub role: Role,
    /// Its underlay addresses, the first being its identity.
    pub addresses: &'a [IpAddr],
    /// The kernel route table that is shared with this program.
    pub table: u32,
    /// The interface of the sessions.
    pub device: &'a str,
    /// A Relay's interface to its node's network layer.
    pub relay_device: &'a str,
}

/// Why there is no configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The instance as a whole cannot be.
    #[error(transparent)]
    Instance(#[from] InstanceError),
    /// This node is not in it.
    #[error("{0} is none of the {1} of this instance")]
    NotListed(String, &'static str),
    /// There is no address to speak to a fabric router from.
    #[error("no underlay address of this node is of the family of the external peer {0}")]
    NoLocalAddress(IpAddr),
    /// It would not be taken as a name.
    #[error("{0:?} is no name of an interface")]
    Device(String),
}

/// `bird.conf` for this node.
///
/// # Errors
/// If the instance cannot be, or this node has no place in it.
pub fn configuration(instance: &Instance, own: &Own<'_>) -> Result<String, ConfigError> {
    instance.check()?;
    let (ours, theirs, what) = match own.role {
        Role::Server => (&instance.servers, &instance.relays, "Servers"),
        Role::Relay => (&instance.relays, &instance.servers, "Relays"),
    };
    let first = own.addresses.first().map(IpAddr::to_canonical);
    let me = ours.iter().find(|s| Some(s.at.ip) == first).ok_or_else(|| {
        let shown = first.map(|ip| ip.to_string());
        ConfigError::NotListed(shown.unwrap_or_else(|| "a node without address".into()), what)
    })?;
    let name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    let usable = |d: &str| (1..=15).contains(&d.len()) && d.chars().all(name);
    if let Some(device) = [own.device, own.relay_device].into_iter().find(|d| !usable(d)) {
        return Err(ConfigError::Device(device.into()));
    }
    let mut out = head(me, &instance.timers);
    tables(&mut out, own, &instance.timers);
    if own.role == Role::Relay {
        service_prefixes(&mut out, instance, own);
    }
    if instance.timers.bfd {
        let ms = Timers::BFD_MILLISECONDS;
        let _ = writeln!(
            out,
            "protocol bfd aero_bfd {{\n  interface \"{}\" {{ interval {ms} ms; multiplier 3; }};\n}}",
            own.device
        );
    }
    for peer in theirs {
        session(&mut out, instance, own, me, peer);
    }
    if own.role == Role::Relay {
        for (n, external) in instance.external.iter().enumerate() {
            let family = |a: &&IpAddr| a.is_ipv4() == external.address.is_ipv4();
            let local = own.addresses.iter().map(IpAddr::to_canonical);
            let local = local.clone().find(|a| family(&a));
            let local = local.ok_or(ConfigError::NoLocalAddress(external.address))?;
            let _ = writeln!(
                out,
                "# The fabric learns what is ours as a whole, and we learn nothing from it.\n\
                 protocol bgp external{n} {{\n  local {local} as {};\n  neighbor {} as {};\n  strict bind on;",
                me.asn, external.address, external.asn
            );
            common_timers(&mut out, &instance.timers);
            let chosen = |v4: bool| list(external.prefixes.iter(), v4, "+");
            let v6 = external.address.is_ipv6();
            if v6 {
                channel(&mut out, instance, "ipv6", false, chosen(false));
            }
            channel(&mut out, instance, "ipv4", v6, chosen(true));
            out.push_str("}\n");
        }
    }
    Ok(out)
}

fn head(me: &Speaker, timers: &Timers) -> String {
    let [.., a, b, c, d] = me.id().address().octets();
    let mut out = format!(
        "# Written by aero-node-agent bird-config; changes are lost.\n\
         log stderr all;\nrouter id {a}.{b}.{c}.{d};\nipv6 table acp6;\nipv4 table acp4;\n"
    );
    if timers.restart_seconds > 0 {
        let _ = writeln!(out, "graceful restart wait {};", timers.restart_seconds.min(10));
    }
    out.push_str("protocol device { scan time 10; }\n");
    out
}

/// The kernel table: from a Server's program to BIRD, from BIRD to either program.
fn tables(out: &mut String, own: &Own<'_>, timers: &Timers) {
    let table = own.table;
    // What an earlier BIRD has left there is not deleted before the neighbours have spoken.
    let graceful = if timers.restart_seconds > 0 { " graceful restart on;" } else { "" };
    // A Server's BIRD hears of what its program writes, and finds at its next scan what a burst has
    // made it miss. A Relay's only looks whether others have changed what it wrote; where it wrote a
    // million that holds it up for ten seconds.
    let scan = if own.role == Role::Server { 10 } else { 3600 };
    for (family, name) in [("ipv6", "acp6"), ("ipv4", "acp4")] {
        let (learn, import, merge) = match own.role {
            // All defaults beside each other: each stands for a Relay that lives.
            Role::Server => {
                (" learn;", format!("where krt_source = {ROUTE_PROTOCOL}"), " merge paths on;")
            }
            Role::Relay => ("", "none".to_string(), ""),
        };
        let _ = writeln!(
            out,
            "protocol kernel kernel_{family} {{\n  kernel table {table};{learn} persist; scan time {scan};{graceful}{merge}\n  \
             # A burst of routes must not overflow it.\n  netlink rx buffer 67108864;\n  \
             {family} {{ table {name}; import {import}; export where source = RTS_BGP; }};\n}}"
        );
    }
}

/// What a Relay says of itself. The service prefixes are reached by its interface, which has a
/// carrier as long as the Relay's process lives: when that dies the fabric is told at once. What is
/// in them and nobody's the Relay itself sends into a black hole.
fn service_prefixes(out: &mut String, instance: &Instance, own: &Own<'_>) {
    for (family, name, all, v4) in
        [("ipv6", "acp6", "::/0", false), ("ipv4", "acp4", "0.0.0.0/0", true)]
    {
        let _ = writeln!(
            out,
            "protocol static service_{family} {{\n  {family} {{ table {name}; }};\n  check link on;\n  \
             # What Servers are told; no route of this node.\n  route {all} unreachable;"
        );
        for asp in instance.asps.iter().filter(|p| is_v4(p) == v4) {
            let _ = writeln!(out, "  route {} via \"{}\";", asp.trunc(), own.relay_device);
        }
        out.push_str("}\n");
    }
}

/// A session between a Server and a Relay, over the AERO link.
fn session(out: &mut String, instance: &Instance, own: &Own<'_>, me: &Speaker, peer: &Speaker) {
    let other = match own.role {
        Role::Server => "relay",
        Role::Relay => "server",
    };
    let _ = writeln!(
        out,
        "protocol bgp {} {{\n  local {} as {};\n  neighbor {} as {};\n  interface \"{}\";\n  \
         strict bind on;\n  enforce first as on;",
        name_of(other, peer.id()),
        me.id().address(),
        me.asn,
        peer.id().address(),
        peer.asn,
        own.device
    );
    common_timers(out, &instance.timers);
    if instance.timers.bfd {
        out.push_str("  bfd on;\n");
    }
    for (family, table, all, v4) in
        [("ipv6", "acp6", "::/0", false), ("ipv4", "acp4", "0.0.0.0/0", true)]
    {
        let (import, export) = match own.role {
            Role::Server => {
                (format!("where net = {all}"), "where source = RTS_INHERIT".to_string())
            }
            Role::Relay => {
                // Client prefixes of this link and nothing else.
                let longest = if v4 { 32 } else { 64 };
                let acps = list_to(instance.asps.iter(), v4, longest);
                let import = acps.map_or("none".into(), |acps| format!("where net ~ {acps}"));
                (import, format!("where source = RTS_STATIC && net = {all}"))
            }
        };
        let extended = if v4 { " extended next hop on;" } else { "" };
        let _ = writeln!(
            out,
            "  {family} {{ table {table};{extended} next hop self; import {import}; export {export}; }};"
        );
    }
    out.push_str("}\n");
}

fn common_timers(out: &mut String, timers: &Timers) {
    let hold = if timers.bfd { timers.hold_seconds.max(30) } else { timers.hold_seconds };
    let _ = writeln!(
        out,
        "  hold time {hold}; keepalive time {};\n  \
         connect delay time 1; connect retry time 2; error wait time 1, 5;",
        (hold / 3).max(1)
    );
    if timers.restart_seconds > 0 {
        let _ = writeln!(
            out,
            "  graceful restart on; graceful restart time {};",
            timers.restart_seconds
        );
    }
}

/// A channel to the fabric: service prefixes, and chosen client prefixes without the private path
/// that they have come by.
fn channel(
    out: &mut String,
    instance: &Instance,
    family: &str,
    extended: bool,
    chosen: Option<String>,
) {
    let v4 = family == "ipv4";
    let Some(asps) = list(instance.asps.iter(), v4, "") else { return };
    let table = if v4 { "acp4" } else { "acp6" };
    let extended = if extended { " extended next hop on;" } else { "" };
    let chosen = chosen.map_or(String::new(), |chosen| {
        format!(
            "\n      if source = RTS_BGP && net ~ {chosen} then {{ bgp_path = +empty+; accept; }}"
        )
    });
    let _ = writeln!(
        out,
        "  {family} {{ table {table};{extended} next hop self; receive limit 1000 action block;\n    \
         import keep filtered; import none;\n    export filter {{\n      \
         if source = RTS_STATIC && net ~ {asps} then accept;{chosen}\n      reject;\n    }};\n  }};"
    );
}

/// BIRD's name of a session, from the identity of the other side.
fn name_of(kind: &str, id: ServerId) -> String {
    let [.., a, b, c, d] = id.address().octets();
    format!("{kind}_{a:02x}{b:02x}{c:02x}{d:02x}")
}

fn is_v4(prefix: &IpNet) -> bool {
    matches!(prefix, IpNet::V4(_))
}

/// A set of prefixes of one family; `None` if there is none, as BIRD takes no empty set.
fn list<'a>(all: impl Iterator<Item = &'a IpNet>, v4: bool, suffix: &str) -> Option<String> {
    let all: Vec<String> =
        all.filter(|p| is_v4(p) == v4).map(|p| format!("{}{suffix}", p.trunc())).collect();
    (!all.is_empty()).then(|| format!("[ {} ]", all.join(", ")))
}

/// A set of prefixes and of what is in them, up to a length.
fn list_to<'a>(all: impl Iterator<Item = &'a IpNet>, v4: bool, longest: u8) -> Option<String> {
    let all: Vec<String> = all
        .filter(|p| is_v4(p) == v4 && p.prefix_len() <= longest)
        .map(|p| format!("{}{{{},{longest}}}", p.trunc(), p.prefix_len()))
        .collect();
    (!all.is_empty()).then(|| format!("[ {} ]", all.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bgp::instance::FIRST_ASN;
    use crate::bgp::instance::tests::two_and_two;

    fn made(instance: &Instance, role: Role, addresses: &[&str]) -> Result<String, ConfigError> {
        let addresses: Vec<IpAddr> = addresses.iter().map(|a| a.parse().unwrap()).collect();
        let own = Own {
            role,
            addresses: &addresses,
            table: 8060,
            device: role.device(),
            relay_device: "aero-relay",
        };
        configuration(instance, &own)
    }

    #[test]
    fn a_server_speaks_to_every_relay_and_to_nobody_else() {
        let text = made(&two_and_two(), Role::Server, &["192.0.2.11"]).unwrap();
        assert_eq!(text.matches("protocol bgp ").count(), 2);
        for relay in
            ["neighbor fe80::c000:215 as 4200000000", "neighbor fe80::c000:216 as 4200000000"]
        {
            assert!(text.contains(relay), "{text}");
        }
        assert!(text.contains("local fe80::c000:20b as 4200000001"));
        assert!(text.contains("import where krt_source = 86;"));
        assert!(text.contains("export where source = RTS_INHERIT;"));
        assert!(text.contains("import where net = ::/0;"), "a default and nothing else");
        assert!(!text.contains("fd99::f") && !text.contains("aero-relay"));
        assert!(text.contains("hold time 3; keepalive time 1;"));
        assert!(text.contains("graceful restart on; graceful restart time 30;"));
        assert!(text.contains("ipv4 { table acp4; extended next hop on;"));
    }

    #[test]
    fn a_relay_takes_client_prefixes_and_tells_the_fabric_service_prefixes_only() {
        let own = &["192.0.2.21", "fd99::1"];
        let text = made(&two_and_two(), Role::Relay, own).unwrap();
        assert!(text.contains("import where net ~ [ 2001:db8::/32{32,64} ]"), "{text}");
        assert!(text.contains("import where net ~ [ 198.51.100.0/24{24,32} ]"));
        assert!(text.contains("export where source = RTS_STATIC && net = ::/0"));
        assert!(text.contains("route 2001:db8::/32 via \"aero-relay\";"));
        assert!(text.contains("if source = RTS_STATIC && net ~ [ 2001:db8::/32 ] then accept;"));
        assert!(!text.contains("source = RTS_BGP && net ~"), "no client prefix goes out unasked");
        assert!(text.contains("import none;"));
        let mut asked = two_and_two();
        asked.external[0].prefixes = vec!["2001:db8:0:7::/64".parse().unwrap()];
        let text = made(&asked, Role::Relay, own).unwrap();
        assert!(text.contains("if source = RTS_BGP && net ~ [ 2001:db8:0:7::/64+ ]"), "{text}");
    }

    #[test]
    fn what_cannot_be_is_refused_with_its_reason() {
        let unknown = made(&two_and_two(), Role::Server, &["192.0.2.99"]).unwrap_err();
        assert_eq!(unknown.to_string(), "192.0.2.99 is none of the Servers of this instance");
        let no_way = made(&two_and_two(), Role::Relay, &["192.0.2.21"]).unwrap_err();
        assert_eq!(no_way, ConfigError::NoLocalAddress("fd99::f".parse().unwrap()));
        let mut clash = two_and_two();
        clash.servers[1].asn = FIRST_ASN + 1;
        assert!(made(&clash, Role::Server, &["192.0.2.11"]).is_err());
        let quote = Own {
            role: Role::Server,
            addresses: &["192.0.2.11".parse().unwrap()],
            table: 1,
            device: "a\"; }",
            relay_device: "aero-relay",
        };
        assert!(matches!(configuration(&two_and_two(), &quote), Err(ConfigError::Device(_))));
    }

    #[test]
    fn bfd_takes_over_from_the_hold_time() {
        let mut instance = two_and_two();
        instance.timers.bfd = true;
        let text = made(&instance, Role::Server, &["192.0.2.11"]).unwrap();
        assert!(text.contains("interval 300 ms; multiplier 3;"));
        assert!(text.contains("  bfd on;") && text.contains("hold time 30; keepalive time 10;"));
    }
}
