//! BGP at size: many Servers' BIRDs announce many client prefixes to one Relay, and to FRR beside
//! it. The size is that of AERO_BGP_PEERS and AERO_BGP_ROUTES (for each peer); small unless asked
//! for otherwise, so that it always runs. `make bench-relays` asks for more.
//!
//! Each peer's kernel table is filled as our Server fills it (routes of protocol 86); the sessions
//! are over the bridge, as a hundred Servers with their tunnels would be too many for one machine.

use std::io::Write as _;

use super::*;

const RELAY: u16 = 21;
const OTHER: u16 = 22;
/// First peer's number on the underlay.
const PEERS_FROM: u16 = 101;

fn number(name: &str, usual: u32) -> u32 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(usual)
}

/// The m-th prefix of a peer.
fn prefix(peer: u16, m: u32) -> String {
    format!("2001:db8:{:x}:{:x}::/64", u32::from(peer) * 16 + (m >> 16), m & 0xffff)
}

/// Writes routes of a peer's table (`add`), or deletes them (`del`), by one batch of `ip`.
fn batch(host: &Host<'_>, peer: u16, which: impl Iterator<Item = (&'static str, u32)>) {
    let path = host.net.dir.path().join(format!("batch-{peer}"));
    let mut file = std::io::BufWriter::new(std::fs::File::create(&path).unwrap());
    for (verb, m) in which {
        writeln!(file, "route {verb} blackhole {} table {TABLE} proto 86", prefix(peer, m))
            .unwrap();
    }
    file.flush().unwrap();
    drop(file);
    run("ip", &["-n", &host.netns, "-6", "-batch", path.to_str().unwrap()]);
}

fn rss_mib(host: &Host<'_>, program: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.pid(program))).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.split_whitespace().next().unwrap().parse::<u64>().unwrap() / 1024
}

/// Changes of routes that the Relay's own engine has been given so far.
fn taken(relay: &Host<'_>) -> u64 {
    let log = relay.log("r1");
    let counts = log.lines().filter_map(|l| l.split("routes of BGP changes=").nth(1));
    counts.filter_map(|n| n.trim().parse::<u64>().ok()).sum()
}

fn bird_count(relay: &Host<'_>) -> u64 {
    let shown = birdc(relay, "show route table acp6 where source = RTS_BGP count");
    let words: Vec<&str> = shown.split_whitespace().collect();
    let at = words.iter().position(|w| *w == "of").unwrap_or(0);
    at.checked_sub(1).and_then(|n| words.get(n)?.parse().ok()).unwrap_or_default()
}

fn frr_count(host: &Host<'_>) -> u64 {
    let shown = super::fabric::vtysh(host, "show bgp ipv6 unicast statistics");
    let line = shown.lines().find(|l| l.trim().starts_with("Total Prefixes"));
    line.and_then(|l| l.split_whitespace().last()?.parse().ok()).unwrap_or_default()
}

#[test]
fn many_servers_announce_many_prefixes_and_the_relay_keeps_up() {
    let peers = u16::try_from(number("AERO_BGP_PEERS", 4)).unwrap();
    let each = number("AERO_BGP_ROUTES", 2500);
    let seconds = number("AERO_BGP_CHURN", 5);
    let total = u64::from(each) * u64::from(peers);
    let bound = Duration::from_secs(60) + Duration::from_micros(600 * total);
    let net = Net::new();
    let u = Underlay::V4;
    let numbers: Vec<u16> = (PEERS_FROM..PEERS_FROM + peers).collect();
    let rows: String =
        numbers.iter().map(|n| format!("- {{address: '{}'}}\n", u.socket(*n, 8060))).collect();
    let text = format!(
        "servicePrefixes: ['2001:db8::/32']\nservers:\n{rows}relays:\n- {{address: '{}'}}\n- {{address: '{}'}}\n\
         # What a hold time would kill on a busy machine is not what is measured here.\nbgp: {{holdSeconds: 90}}\n",
        u.socket(RELAY, 8060),
        u.socket(OTHER, 8060)
    );
    let file = net.file("routes.yaml", &text);
    let file = file.to_str().unwrap();
    let conf = |host: &Host<'_>, n: u16, role: &str| {
        let id = aero_protocol::address::ServerId::from_underlay(u.ip(n).parse().unwrap());
        host.ip(&format!("addr add {}/64 dev eth0 nodad", id.address()));
        let (table, ip) = (TABLE, u.ip(n));
        let arguments = [
            "bird-config",
            "--role",
            role,
            "--routes",
            file,
            "--host-ips",
            &ip,
            "--bgp-table",
            table,
            "--bgp-device",
            "eth0",
        ];
        run(agent().to_str().unwrap(), &arguments)
    };
    let (relay, other) = (net.at("r1", u, RELAY), net.at("r2", u, OTHER));
    relay.start(
        "r1",
        &agent(),
        &["relay", "--host-ips", &u.ip(RELAY), "--routes", file, "--bgp-table", TABLE],
    );
    let text = conf(&relay, RELAY, "relay");
    start_bird(&relay, &net.file("r1.conf", &text), &[]);
    // FRR in the same place, from the same neighbours.
    let generated = conf(&other, OTHER, "relay");
    let mut bgp = "router bgp 4200000000\n bgp router-id 192.0.2.22\n no bgp ebgp-requires-policy\n no bgp default ipv4-unicast\n".to_string();
    let mut activate = String::new();
    for line in generated.lines().filter(|l| l.trim().starts_with("neighbor fe80::")) {
        let words: Vec<&str> = line.trim().trim_end_matches(';').split(' ').collect();
        let (peer, asn) = (words[1], words[3]);
        let _ = writeln!(
            bgp,
            " neighbor {peer} remote-as {asn}\n neighbor {peer} interface eth0\n neighbor {peer} timers connect 1"
        );
        let _ = writeln!(activate, "  neighbor {peer} activate");
    }
    let _ = writeln!(bgp, " address-family ipv6 unicast\n{activate} exit-address-family");
    super::fabric::start_frr(&other, &bgp, &["-n"]);
    let hosts: Vec<Host<'_>> = numbers.iter().map(|n| net.at(&format!("p{n}"), u, *n)).collect();
    for (n, host) in numbers.iter().zip(&hosts) {
        let text = conf(host, *n, "server");
        start_bird(host, &net.file(&format!("p{n}.conf"), &text), &[]);
    }
    let up =
        || birdc(&relay, "show protocols").matches("Established").count() == usize::from(peers);
    await_that("all sessions", bound, up);
    let frr_up = || {
        super::fabric::vtysh(&other, "show bgp summary").matches("fe80::").count()
            == usize::from(peers)
    };
    await_that("FRR's neighbours", bound, frr_up);
    let start = Instant::now();
    for (n, host) in numbers.iter().zip(&hosts) {
        batch(host, *n, (0..each).map(|m| ("add", m)));
    }
    let fed = start.elapsed();
    await_that("BIRD of the Relay has all", bound, || bird_count(&relay) == total);
    let bird = start.elapsed();
    await_that("the Relay's engine has all", bound, || taken(&relay) == total);
    let converged = start.elapsed();
    await_that("FRR has all", bound, || frr_count(&other) == total);
    let frr = start.elapsed();
    let memory =
        [("bird-r1", &relay), ("r1", &relay), ("bgpd-r2", &other)].map(|(p, h)| rss_mib(h, p));
    println!(
        "{total} routes of {peers} peers: written in {fed:?}, in BIRD after {bird:?}, in the Relay after \
         {converged:?}, in FRR after {frr:?}; MiB: BIRD {}, Relay {}, FRR {}",
        memory[0], memory[1], memory[2]
    );
    // One of a hundred changes in each second: half of them are withdrawn, and those of the second
    // before are announced again.
    let share = (each / 200).max(1);
    let (mut worst, mut changes, mut late) = (Duration::ZERO, 0u64, 0u32);
    let (began, mut followed) = (Instant::now(), taken(&relay));
    for second in 0..seconds {
        let at = Instant::now();
        for (n, host) in numbers.iter().zip(&hosts) {
            let range = |s: u32| (s % 200) * share..((s % 200) * share + share).min(each);
            let gone = range(second).map(|m| ("del", m));
            let back = second.checked_sub(1).into_iter().flat_map(range).map(|m| ("add", m));
            batch(host, *n, gone.chain(back));
        }
        let done = Instant::now();
        let want = u64::from(share) * u64::from(peers) * if second > 0 { 2 } else { 1 };
        followed += want;
        await_that("the Relay has followed", bound, || taken(&relay) >= followed);
        changes += want;
        worst = worst.max(done.elapsed());
        match Duration::from_secs(1).checked_sub(at.elapsed()) {
            Some(rest) => std::thread::sleep(rest),
            None => late += 1,
        }
    }
    // To write that much may take a busy machine more than a second.
    let took = began.elapsed().as_secs_f64();
    println!(
        "{changes} changes in {took:.1} s, {late} of {seconds} times in more than a second; the Relay lagged {worst:?} at most"
    );
    let converge = converged.as_secs_f64();
    let text = format!(
        "{{\"routes\": {total}, \"peers\": {peers}, \"fed_s\": {:.2}, \"converge_s\": {converge:.2}, \
         \"updates_per_s\": {:.0}, \"rss_mib\": {}, \"relay_rss_mib\": {}, \
         \"frr\": {{\"converge_s\": {:.2}, \"rss_mib\": {}}}, \
         \"churn\": {{\"changes\": {changes}, \"seconds\": {took:.1}, \"of_all_per_s\": {:.4}, \"worst_lag_ms\": {}}}}}",
        fed.as_secs_f64(),
        total as f64 / converge,
        memory[0],
        memory[1],
        frr.as_secs_f64(),
        memory[2],
        changes as f64 / took / total as f64,
        worst.as_millis()
    );
    figure("bgp", &text);
}
