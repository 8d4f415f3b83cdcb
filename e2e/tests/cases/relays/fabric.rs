//! Outside: BIRD, FRR and GoBGP learn the service prefix and nothing else, hosts behind them reach
//! pods, and what they must not do is refused and said.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aero_e2e::frr;
use aero_e2e::lab::process;
use aero_e2e::scenario::POOL;
use anyhow::{Context as _, ensure};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::flows::{End, Flows};
use super::link::{Link, RELAY, SETTLED};
use super::{Backbone, Context, WITH_AGENTS};

/// Routers outside: their names, and the end of their addresses; the AS number of the first is
/// 65001. GoBGP keeps what it learns to itself, so nobody is behind it.
const ROUTERS: [(&str, &str); 3] = [("bird", "61"), ("frr", "62"), ("gobgp", "63")];
const FIRST_ASN: u32 = 65_001;
/// Where Relays tell of themselves.
const RELAYS_PORT: u16 = 9063;
/// Where a router of the fabric has its sockets and configuration files.
const FILES: &str = "outside";

/// The routers, with their hosts.
pub struct Fabric {
    files: PathBuf,
    hosts: Vec<End>,
    learnt: Duration,
}

fn address(last: &str) -> String {
    format!("2001:db8:77::{last}")
}

/// All prefixes of the link's address space that a text mentions.
fn mentioned(text: &str) -> BTreeSet<String> {
    let pool: IpNet = POOL.parse().expect("a prefix");
    let words = text.split(|c: char| c.is_whitespace() || "\",()[]{}'".contains(c));
    let prefixes = words.filter_map(|w| w.parse::<IpNet>().ok());
    prefixes.filter(|p| pool.contains(p)).map(|p| p.to_string()).collect()
}

impl Fabric {
    /// Starts all three, makes them external peers, and waits until each has learnt the service
    /// prefix of both Relays.
    pub fn start(backbone: &Backbone) -> anyhow::Result<Self> {
        let (lab, link) = (&backbone.lab, backbone.link());
        let mut relays = Vec::new();
        for relay in link.relays()? {
            let v6 = lab.node_addresses(&relay.node).into_iter().find(std::net::IpAddr::is_ipv6);
            relays.push(v6.context("a node without IPv6")?.to_string());
        }
        let files = lab.dir().join(FILES);
        std::fs::create_dir_all(&files)?;
        let mut fabric = Self { files, hosts: Vec::new(), learnt: Duration::ZERO };
        for (name, last) in ROUTERS {
            lab.join(name, last)?;
        }
        for (n, (router, _)) in (1..).zip(&ROUTERS[..2]) {
            let (host, own) = (format!("x{n}"), format!("3fff:{n}::2"));
            let gateway = format!("3fff:{n}::1/64");
            lab.behind(&host, router, &format!("{own}/64"), &gateway)?;
            let netns = lab.netns_outside(&host);
            fabric.hosts.push(End {
                name: format!("X behind {router}"),
                netns,
                address: own.parse()?,
            });
        }
        for node in WITH_AGENTS {
            fabric.routes_back(&link, node)?;
        }
        fabric.start_bird(backbone, &relays)?;
        fabric.start_frr(backbone, &relays)?;
        fabric.start_gobgp(backbone, &relays)?;
        link.patch(RELAY, &json!({"externalPeers": peers()}))?;
        let began = Instant::now();
        link.settled("the routers outside have their sessions")?;
        fabric.wait_learnt(backbone, &[2, 2, 2])?;
        fabric.learnt = began.elapsed();
        Ok(fabric)
    }

    /// What pods send outside goes by the network of their nodes, which has to know the way.
    pub fn routes_back(&self, link: &Link<'_>, node: &str) -> anyhow::Result<()> {
        for (n, (_, last)) in (1..).zip(&ROUTERS[..2]) {
            let to = format!("3fff:{n}::/64");
            link.lab.run(node, &["ip", "-6", "route", "replace", &to, "via", &address(last)])?;
        }
        Ok(())
    }

    pub fn hosts(&self) -> &[End] {
        &self.hosts
    }

    fn file(&self, name: &str, text: &str) -> anyhow::Result<String> {
        let path = self.files.join(name);
        std::fs::write(&path, text)?;
        Ok(path.display().to_string())
    }

    /// The configuration of BIRD, which tells what `statics` says, or nothing.
    fn bird_configuration(&self, relays: &[String], statics: &str) -> anyhow::Result<String> {
        let mut text = "log stderr all; router id 10.9.9.1;\nprotocol device {}\n\
             protocol kernel { merge paths on; ipv6 { import none; export where source = RTS_BGP; }; }\n"
            .to_string();
        let export = if statics.is_empty() { "none" } else { "where source = RTS_STATIC" };
        let _ = writeln!(text, "protocol static {{ ipv6; {statics} }}");
        for (n, relay) in relays.iter().enumerate() {
            let _ = writeln!(
                text,
                "protocol bgp r{n} {{ local {} as {FIRST_ASN}; neighbor {relay} as 4200000000; \
                 hold time 3; connect delay time 1; connect retry time 2; error wait time 1, 2; \
                 debug {{ routes }}; ipv6 {{ import all; export {export}; }}; }}",
                address(ROUTERS[0].1)
            );
        }
        self.file("bird.conf", &text)
    }

    fn start_bird(&self, backbone: &Backbone, relays: &[String]) -> anyhow::Result<()> {
        let conf = self.bird_configuration(relays, "")?;
        let args = ["-f", "-c", &conf, "-s", &self.bird_socket()].map(String::from);
        backbone.lab.start_outside("bird", Path::new("/usr/sbin/bird"), &args)
    }

    fn bird_socket(&self) -> String {
        self.files.join("bird.ctl").display().to_string()
    }

    fn birdc(&self, question: &str) -> anyhow::Result<String> {
        let words: Vec<&str> = question.split(' ').collect();
        process::run("birdc", &[&["-s", &self.bird_socket()], &words[..]].concat())
    }

    fn start_frr(&self, backbone: &Backbone, relays: &[String]) -> anyhow::Result<()> {
        // FRR insists on being itself; so it needs a directory of its own.
        let dir = self.files.join("frr");
        std::fs::create_dir_all(&dir)?;
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755))?;
        process::run("chown", &["frr:frr", &dir.display().to_string()])?;
        let each = |f: &dyn Fn(&str) -> String| relays.iter().map(|r| f(r)).collect::<String>();
        let bgp = format!(
            "router bgp {}\n bgp router-id 10.9.9.2\n no bgp ebgp-requires-policy\n \
             no bgp default ipv4-unicast\n timers bgp 1 3\n{} address-family ipv6 unicast\n{} \
             exit-address-family\n",
            FIRST_ASN + 1,
            each(&|r| format!(
                " neighbor {r} remote-as 4200000000\n neighbor {r} timers connect 1\n"
            )),
            each(&|r| format!("  neighbor {r} activate\n")),
        );
        for (daemon, config) in [("zebra", ""), ("bgpd", bgp.as_str())] {
            std::fs::write(dir.join(format!("{daemon}.conf")), format!("hostname frr\n{config}"))?;
            let (program, args) = frr::daemon(&dir, daemon);
            backbone.lab.start_outside("frr", &program, &args)?;
            let vty = dir.join(format!("{daemon}.vty"));
            backbone.cluster.wait_until(daemon, Duration::from_secs(20), || Ok(vty.exists()))?;
        }
        Ok(())
    }

    fn start_gobgp(&self, backbone: &Backbone, relays: &[String]) -> anyhow::Result<()> {
        let mut text =
            format!("[global.config]\nas = {}\nrouter-id = \"10.9.9.3\"\n", FIRST_ASN + 2);
        for relay in relays {
            let _ = write!(
                text,
                "[[neighbors]]\n[neighbors.config]\nneighbor-address = \"{relay}\"\npeer-as = 4200000000\n\
                 [neighbors.timers.config]\nconnect-retry = 1\nhold-time = 3\nkeepalive-interval = 1\n\
                 [[neighbors.afi-safis]]\n[neighbors.afi-safis.config]\nafi-safi-name = \"ipv6-unicast\"\n"
            );
        }
        let conf = self.file("gobgp.toml", &text)?;
        let args = ["-f", &conf, "--pprof-disable", "--api-hosts", "127.0.0.1:50051"];
        let args: Vec<String> = args.iter().map(ToString::to_string).collect();
        backbone.lab.start_outside("gobgp", Path::new("/usr/bin/gobgpd"), &args)
    }

    /// What each router has learnt, as it prints that.
    fn tables(&self, backbone: &Backbone) -> anyhow::Result<[String; 3]> {
        let (lab, vty) = (&backbone.lab, self.files.join("frr").display().to_string());
        let frr = ["vtysh", "--vty_socket", &vty, "-c", "show bgp ipv6 unicast json"];
        Ok([
            self.birdc("show route")?,
            lab.run_outside("frr", &frr)?,
            lab.run_outside("gobgp", &["gobgp", "global", "rib", "-a", "ipv6"])?,
        ])
    }

    /// Waits until the routers have the service prefix by so many Relays each, and sees that they
    /// have nothing else of the link's.
    pub fn wait_learnt(&self, backbone: &Backbone, paths: &[usize; 3]) -> anyhow::Result<()> {
        let mut last = Default::default();
        let what = format!("BIRD, FRR and GoBGP have {paths:?} paths to the link");
        let waited = backbone.cluster.wait_until(&what, SETTLED, || {
            last = self.tables(backbone)?;
            let [bird, frr, gobgp] = &last;
            let frr: Value = serde_json::from_str(frr)?;
            let by_frr = frr["routes"][POOL].as_array().map_or(0, Vec::len);
            let has = [bird.matches("[r").count(), by_frr, gobgp.matches(POOL).count()];
            Ok(has == *paths)
        });
        waited.with_context(|| format!("{last:?}"))?;
        self.only_ours(backbone)
    }

    /// None has anything of the link's but its service prefix, and BIRD never had.
    pub fn only_ours(&self, backbone: &Backbone) -> anyhow::Result<()> {
        let ours: BTreeSet<String> = [POOL.to_string()].into();
        for (table, (router, _)) in self.tables(backbone)?.iter().zip(ROUTERS) {
            ensure!(mentioned(table).is_subset(&ours), "{router} has learnt {table}");
        }
        // It has logged every route since its beginning.
        let log = backbone.lab.log_outside("bird", "bird");
        let heard: Vec<&str> = log.lines().filter(|l| l.contains(" > ")).collect();
        let ever = mentioned(&heard.join("\n"));
        ensure!(ever == ours, "BIRD has heard of {ever:?}");
        Ok(())
    }
}

/// The external peers of the AeroRelay.
fn peers() -> Vec<Value> {
    let all = (FIRST_ASN..).zip(ROUTERS);
    all.map(|(asn, (_, last))| json!({"address": address(last), "asn": asn})).collect()
}

pub fn run(context: &Context) -> anyhow::Result<()> {
    let backbone = context.backbone()?;
    let fabric = backbone.fabric()?;
    let link = backbone.link();
    let relays = link.relays()?;
    let all = |relays: &[super::link::Part]| -> anyhow::Result<u64> {
        relays.iter().map(|r| link.tunneled(&r.node, RELAYS_PORT)).sum()
    };
    let pods = backbone.ends(&WITH_AGENTS)?;
    let before = all(&relays)?;
    let began = Instant::now();
    let flows = Flows::start(fabric.hosts(), &pods)?;
    flows.wait(began, Duration::from_secs(20))?;
    let reached = began.elapsed();
    drop(flows);
    let mut by_relays = 0;
    link.cluster.wait_until("Relays count ten packets of each flow", SETTLED, || {
        by_relays = all(&relays)? - before;
        Ok(by_relays >= 60)
    })?;
    context.note(format!(
        "relays: BIRD, FRR and GoBGP have the service prefix after {:.1?} and no other; hosts behind \
         BIRD and FRR reach all pods and have their answers after {reached:.1?}, {by_relays} packets \
         by the Relays",
        fabric.learnt
    ));
    wrong_as(backbone, fabric)?;
    announcing(backbone, fabric)?;
    fabric.only_ours(backbone)
}

/// A router in another AS than is said has no session, hears nothing, and is complained of.
fn wrong_as(backbone: &Backbone, fabric: &Fabric) -> anyhow::Result<()> {
    let link = backbone.link();
    let mut bad = peers();
    bad[0]["asn"] = json!(64_999);
    link.patch(RELAY, &json!({"externalPeers": bad}))?;
    let about = format!("{} (AS 64999 is expected)", address(ROUTERS[0].1));
    link.complains(RELAY, "SessionsHealthy", "PeerRefused", &about)?;
    link.says(RELAY, "Accepted", "True", "Accepted")?;
    fabric.wait_learnt(backbone, &[0, 2, 2])?;
    as_before(&link)?;
    link.patch(RELAY, &json!({"externalPeers": peers()}))?;
    link.says(RELAY, "SessionsHealthy", "True", "AllEstablished")?;
    fabric.wait_learnt(backbone, &[2, 2, 2])
}

/// A router that announces what is ours, a Client's and a default: nothing of it is taken.
fn announcing(backbone: &Backbone, fabric: &Fabric) -> anyhow::Result<()> {
    let link = backbone.link();
    let client = link.live()?.into_iter().next().context("no client")?;
    let statics =
        format!("route {POOL} blackhole; route {client} blackhole; route ::/0 blackhole;");
    let relays: Vec<String> = link
        .relays()?
        .iter()
        .flat_map(|r| backbone.lab.node_addresses(&r.node))
        .filter(std::net::IpAddr::is_ipv6)
        .map(|a| a.to_string())
        .collect();
    fabric.bird_configuration(&relays, &statics)?;
    fabric.birdc("configure")?;
    let about = format!("{} announces", address(ROUTERS[0].1));
    link.complains(RELAY, "SessionsHealthy", "RoutesRefused", &about)?;
    for relay in link.relays()? {
        let what = format!("all has come to {}", relay.name);
        link.cluster.wait_until(&what, Duration::from_secs(20), || {
            let refused = link.birdc(&relay, "show route table all filtered")?;
            Ok([POOL, &client, "::/0"].iter().all(|p| refused.contains(&format!("{p} "))))
        })?;
        let taken = link.birdc(&relay, "show route table all")?;
        ensure!(!taken.contains("[external"), "{} has taken\n{taken}", relay.name);
    }
    as_before(&link)?;
    fabric.bird_configuration(&relays, "")?;
    fabric.birdc("configure")?;
    link.says(RELAY, "SessionsHealthy", "True", "AllEstablished")?;
    link.settled("all is as before").map(drop)
}

/// The Relays have the Clients' routes and no other, and the Servers a default by each Relay.
fn as_before(link: &Link<'_>) -> anyhow::Result<()> {
    let live = link.live()?;
    for relay in link.relays()? {
        let table = link.table(&relay.node)?;
        ensure!(table == live, "{table:?} on {}, but the Clients have {live:?}", relay.node);
    }
    for server in link.servers()? {
        let command = ["ip", "-6", "route", "show", "table", "8060", "default"];
        let defaults = link.lab.run(&server.node, &command)?;
        ensure!(defaults.matches("via fe80::").count() == 2, "{}: {defaults}", server.node);
    }
    Ok(())
}
