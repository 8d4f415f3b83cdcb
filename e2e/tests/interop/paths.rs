//! The ways that packets take between real Clients: mixed underlays, moves under load, NATs that
//! let nothing through but the way by the Server, hosts deep behind a Client, one Server with
//! many Clients; and what the documents say of the draft.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use aero_protocol::wire::dhcpv6::Kind;

use super::decode::{capture, decode, finish};
use super::net::{
    BOTH, Host, Net, SOON, Underlay, agent, await_address, await_some, await_that, reaches, run,
    start_client, start_server,
};
use super::tester::{Tester, acp, duid_text, inner, l2, prefixes, table};

fn addr(n: u16) -> IpAddr {
    inner(n).into()
}

/// What came of a flow of numbered datagrams.
#[derive(Debug, Default)]
struct Flow {
    sent: u32,
    received: Vec<u32>,
}

impl Flow {
    fn lost(&self) -> u32 {
        let unique: BTreeSet<u32> = self.received.iter().copied().collect();
        self.sent - u32::try_from(unique.len()).unwrap()
    }

    /// By how many packets one was overtaken at most.
    fn reordered(&self) -> u32 {
        let mut highest = 0;
        let mut most = 0;
        for n in &self.received {
            highest = highest.max(*n);
            most = most.max(highest - n);
        }
        most
    }
}

/// What a busy machine may lose of a flow of some hundreds, where a path that breaks loses all of a
/// second or more.
const FEW: u32 = 20;
const PER_SECOND: u32 = 100;

/// A hundred datagrams a second both ways while `during` runs, and for half a second more.
fn both_ways(a: (&Host<'_>, IpAddr), b: (&Host<'_>, IpAddr), during: impl FnOnce()) -> [Flow; 2] {
    let socket = |(host, at): (&Host<'_>, IpAddr)| {
        let socket = host.udp(&SocketAddr::new(at, 0).to_string());
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        socket
    };
    let (one, two) = (socket(a), socket(b));
    let over = AtomicBool::new(false);
    let quiet = AtomicBool::new(false);
    let (to_one, to_two) = (one.local_addr().unwrap(), two.local_addr().unwrap());
    let send = |socket: &std::net::UdpSocket, to: SocketAddr| {
        let began = Instant::now();
        let mut sent = 0_u32;
        while !quiet.load(Relaxed) {
            // What the kernel refuses for want of an address is lost like any other.
            let _ = socket.send_to(&sent.to_be_bytes(), to);
            sent += 1;
            let next = began + Duration::from_secs(1) * sent / PER_SECOND;
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
        sent
    };
    let receive = |socket: &std::net::UdpSocket| {
        let (mut received, mut buffer) = (Vec::new(), [0; 4]);
        while !over.load(Relaxed) {
            if let Ok((4, _)) = socket.recv_from(&mut buffer) {
                received.push(u32::from_be_bytes(buffer));
            }
        }
        received
    };
    let (one, two, send, receive) = (&one, &two, &send, &receive);
    std::thread::scope(|scope| {
        let (r1, r2) = (scope.spawn(move || receive(one)), scope.spawn(move || receive(two)));
        let (s1, s2) =
            (scope.spawn(move || send(one, to_two)), scope.spawn(move || send(two, to_one)));
        during();
        quiet.store(true, Relaxed);
        let sent = [s1.join().unwrap(), s2.join().unwrap()];
        std::thread::sleep(Duration::from_millis(500));
        over.store(true, Relaxed);
        let received = [r2.join().unwrap(), r1.join().unwrap()];
        let [a, b] = received;
        [Flow { sent: sent[0], received: a }, Flow { sent: sent[1], received: b }]
    })
}

#[test]
fn the_version_and_the_documents_name_the_base_draft_and_what_differs_from_it() {
    let _row = aero_elements::covers(&["A1"]);
    let version = run(agent().to_str().unwrap(), &["--version"]);
    assert!(version.contains("draft-templin-aerolink-48"), "{version}");
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    assert!(read("README.md").contains("docs/deviations.md"));
    let text = read("docs/deviations.md");
    assert!(text.contains("draft-templin-aerolink-48"));
    // Each of these is otherwise than in the base draft, as other tests show.
    for what in [
        "fe80::ffff:ffff:ffff:ffff",
        "45282",
        "IPv4-mapped",
        "one message to each Server",
        "those of Confirm",
        "a subset, or all",
        "one a second for each pair",
        "after the answer to a Neighbor Solicitation",
        "permanent entries for other Servers",
        "the newest announcement",
        "lines of JSON",
        "hand-over between Proxies",
        "is a prefix behind a Proxy?",
        "outer TTL of control messages",
        "RFC 6040",
        "Type 3 shim",
        "epoch, holder",
    ] {
        assert!(text.contains(what), "docs/deviations.md does not say: {what}");
    }
}

#[test]
fn route_optimisation_travels_as_icmpv6_inside_ipv6() {
    let _row = aero_elements::covers(&["A4"]);
    for u in BOTH {
        let net = Net::new();
        let (s1, c1, c2) = (net.at("s1", u, 11), net.at("c1", u, 1), net.at("c2", u, 2));
        let server = start_server(&s1, u, 11, &net.file("t.yaml", &table(40)));
        let file = capture(&s1, "udp port 8060");
        start_client(&c1, 1, &[server], &[]);
        start_client(&c2, 2, &[server], &[]);
        await_address(&c1, 1);
        await_address(&c2, 2);
        let _ = both_ways((&c1, addr(1)), (&c2, addr(2)), || {
            std::thread::sleep(Duration::from_secs(3));
        });
        finish(&s1, &file);
        let (names, complaints) = decode(&file);
        // Whatever is not IP, UDP 8060, IPv6 is a complaint.
        assert!(complaints.is_empty(), "{complaints:#?}");
        for name in ["Predirect", "Redirect"] {
            assert!(names.contains(name), "no {name} over {u:?}: {names:?}");
        }
    }
}

#[test]
fn a_client_on_ipv4_and_one_on_ipv6_talk_by_the_server_all_the_time() {
    let _row = aero_elements::covers(&["J1"]);
    let net = Net::new();
    let (v4, v6) = (Underlay::V4, Underlay::V6);
    let s1 = net.host("s1", &[&v4.with_length(11), &v6.with_length(11)]);
    let file = net.file("t.yaml", &table(40));
    let ips = format!("{},{}", v4.ip(11), v6.ip(11));
    s1.start("s1", &agent(), &["server", "--host-ips", &ips, "--table", file.to_str().unwrap()]);
    await_that("the Server reads its table", SOON, || s1.log("s1").contains("table read"));
    let (c1, c2) = (net.at("c1", v4, 1), net.at("c2", v6, 2));
    start_client(&c1, 1, &[l2(&v4.socket(11, 8060))], &[]);
    start_client(&c2, 2, &[l2(&v6.socket(11, 8060))], &[]);
    await_address(&c1, 1);
    await_address(&c2, 2);
    assert!(reaches((&c1, addr(1)), (&c2, addr(2)), SOON));
    let captured = capture(&s1, "udp port 8060");
    let flows = both_ways((&c1, addr(1)), (&c2, addr(2)), || {
        std::thread::sleep(Duration::from_secs(6));
    });
    finish(&s1, &captured);
    for flow in &flows {
        println!("{} of {} lost, reordered by {}", flow.lost(), flow.sent, flow.reordered());
        assert!(flow.lost() <= FEW, "{flow:?}");
    }
    // Redirects came, and yet no packet was sent where there is no way.
    let (names, _) = decode(&captured);
    assert!(names.contains("Redirect"), "{names:?}");
}

#[test]
fn a_move_under_load_costs_little_and_nothing_is_overtaken_by_more_than_a_second() {
    let _row = aero_elements::covers(&["L1"]);
    for u in BOTH {
        let net = Net::new();
        let (s1, c1, c2) = (net.at("s1", u, 11), net.at("c1", u, 1), net.at("c2", u, 2));
        let server = start_server(&s1, u, 11, &net.file("t.yaml", &table(40)));
        start_client(&c1, 1, &[server], &[]);
        start_client(&c2, 2, &[server], &[]);
        await_address(&c1, 1);
        await_address(&c2, 2);
        let flows = both_ways((&c1, addr(1)), (&c2, addr(2)), || {
            std::thread::sleep(Duration::from_secs(3));
            c1.address("del", &u.with_length(1));
            c1.address("add", &u.with_length(33));
            let at = format!("at={}", u.socket(33, 8060));
            await_that("the Server has followed", SOON, || net.log("s1").contains(&at));
            std::thread::sleep(Duration::from_secs(4));
        });
        for flow in &flows {
            println!(
                "over {u:?}: {} of {} lost by a move, reordered by {}",
                flow.lost(),
                flow.sent,
                flow.reordered()
            );
            // A few packets; if the first advertisement does not get through, those of the second
            // until the next one.
            assert!(flow.lost() < 2 * PER_SECOND, "two seconds or more: {}", flow.lost());
            assert!(flow.reordered() < PER_SECOND);
        }
    }
}

#[test]
fn behind_a_nat_that_lets_nothing_through_straight_nothing_is_lost() {
    // That the mapped port is used and kept open: `behind_a_nat_the_mapped_port_is_served_and_kept_open`.
    let _row = aero_elements::covers(&["R2c"]);
    let net = Net::new();
    let u = Underlay::V4;
    let server = start_server(&net.at("s1", u, 11), u, 11, &net.file("t.yaml", &table(40)));
    let nat = net.at("nat", u, 254);
    let c1 = net.behind("c1", &nat, "198.51.100.1/24", "198.51.100.254/24");
    let c2 = net.at("c2", u, 2);
    let rules = net.file(
        "nat.nft",
        "table ip nat { chain post { type nat hook postrouting priority srcnat; policy accept;\n\
         oifname \"eth0\" meta l4proto udp masquerade to :40000-40100\n}\n\
         chain forward { type filter hook forward priority filter; policy accept;\n\
         ip daddr 192.0.2.2 counter drop\nip saddr 192.0.2.2 counter drop\n}\n}\n",
    );
    nat.run("nft", &["-f", rules.to_str().unwrap()]);
    start_client(&c1, 1, &[server], &[]);
    start_client(&c2, 2, &[server], &[]);
    await_address(&c1, 1);
    await_address(&c2, 2);
    assert!(reaches((&c1, addr(1)), (&c2, addr(2)), SOON));
    let flows = both_ways((&c1, addr(1)), (&c2, addr(2)), || {
        std::thread::sleep(Duration::from_secs(8));
    });
    for flow in &flows {
        println!("{} of {} lost behind the NAT", flow.lost(), flow.sent);
        assert!(flow.lost() <= FEW, "{flow:?}");
    }
    let counted = nat.run("nft", &["list", "chain", "ip", "nat", "forward"]);
    let tried = counted.lines().any(|l| l.contains("counter packets") && !l.contains("packets 0 "));
    assert!(tried, "the straight way was tried and found blocked: {counted}");
}

#[test]
fn a_host_two_routers_behind_a_client_is_reached_straight() {
    let _row = aero_elements::covers(&["R2b"]);
    let net = Net::new();
    let u = Underlay::V4;
    let with_56 = table(40)
        .replace(&format!("prefixes: [\"{}\"]", acp(3)), "prefixes: [\"2001:db8:0:300::/56\"]");
    let s1 = net.at("s1", u, 11);
    let server = start_server(&s1, u, 11, &net.file("t.yaml", &with_56));
    let (router, c2) = (net.at("c3", u, 3), net.at("c2", u, 2));
    start_client(&router, 3, &[server], &[]);
    start_client(&c2, 2, &[server], &[]);
    await_address(&c2, 2);
    await_that("the /56 is there", SOON, || net.log("c3").contains("2001:db8:0:300::/56"));
    let near = net.behind("near", &router, "2001:db8:0:301::5/64", "2001:db8:0:301::1/64");
    let deep = net.behind("deep", &near, "2001:db8:0:302::5/64", "2001:db8:0:302::1/64");
    router.ip("-6 route add 2001:db8:0:302::/64 via 2001:db8:0:301::5");
    for host in [&router, &near] {
        host.run("sysctl", &["-qw", "net.ipv6.conf.all.forwarding=1"]);
    }
    let there: IpAddr = "2001:db8:0:302::5".parse().unwrap();
    assert!(reaches((&c2, addr(2)), (&deep, there), SOON));
    // Until a path is found it goes by the Server; then no packet does.
    let by_server = |net: &Net| {
        let file = capture(&s1, "udp port 8060");
        let flows = both_ways((&c2, addr(2)), (&deep, there), || {
            std::thread::sleep(Duration::from_secs(2));
        });
        finish(&s1, &file);
        assert!(flows.iter().all(|f| f.lost() <= FEW), "{flows:?}");
        let path = file.to_str().unwrap();
        let filter = "ipv6.addr == 2001:db8:0:302::5 && udp && !icmpv6";
        let list =
            ["-r", path, "-d", "udp.port==8060,ip", "-Y", filter, "-T", "fields", "-e", "ip.src"];
        let count = run("tshark", &list).lines().count();
        std::fs::remove_file(&file).unwrap();
        let _ = net;
        count
    };
    let counts = await_some("no packet by the Server", SOON * 2, || {
        let count = by_server(&net);
        println!("{count} packets by the Server in two seconds");
        (count == 0).then_some(count)
    });
    assert_eq!(counts, 0);
}

#[test]
fn one_server_holds_ten_thousand_clients() {
    let _row = aero_elements::covers(&["R3"]);
    const CLIENTS: u16 = 10_000;
    let net = Net::new();
    let u = Underlay::V4;
    let rows: String = (7..=CLIENTS)
        .map(|n| format!("- {{duid: {}, prefixes: [\"{}\"]}}\n", duid_text(n), acp(n)))
        .collect();
    let s1 = net.at("s1", u, 11);
    // Leases that outlive the test.
    let server = start_server(&s1, u, 11, &net.file("t.yaml", &(table(4000) + &rows)));
    let memory = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", s1.pid("s1"))).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    let t = Tester::at(&net.at("t", u, 1), &u.socket(1, 8060));
    let (before, began) = (memory(), Instant::now());
    for n in 1..=CLIENTS {
        t.bind(server, n);
    }
    let (took, after) = (began.elapsed(), memory());
    let rate = f64::from(CLIENTS) / took.as_secs_f64();
    println!(
        "{CLIENTS} Clients in {took:?}, {rate:.0} delegations a second one after the other; \
         {before} kB before, {after} kB after: {} bytes for a Client",
        (after - before) * 1024 / u64::from(CLIENTS)
    );
    // The first is served as well as the last.
    for n in [1, CLIENTS / 2, CLIENTS] {
        let reply = t.ask(server, &t.message(Kind::Solicit, n));
        assert_eq!(prefixes(&reply), [acp(n)]);
    }
    assert!(after - before < 16 * u64::from(CLIENTS), "more than 16 kB for each Client");
}

#[test]
fn an_application_without_any_privilege_uses_a_hosts_prefix_like_any_other_address() {
    let _row = aero_elements::covers(&["Q1"]);
    let net = Net::new();
    let u = Underlay::V4;
    let server = start_server(&net.at("s1", u, 11), u, 11, &net.file("t.yaml", &table(40)));
    let (c1, c2) = (net.at("c1", u, 1), net.at("c2", u, 2));
    start_client(&c1, 1, &[server], &[]);
    start_client(&c2, 2, &[server], &[]);
    await_address(&c1, 1);
    await_address(&c2, 2);
    assert!(reaches((&c1, addr(1)), (&c2, addr(2)), SOON));
    let listener = c2.inside(|| std::net::TcpListener::bind(SocketAddr::new(addr(2), 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    let answered = std::thread::spawn(move || {
        use std::io::{Read, Write};
        let (mut stream, from) = listener.accept().unwrap();
        let mut line = [0; 64];
        let length = stream.read(&mut line).unwrap();
        stream.write_all(b"welcome\n").unwrap();
        (from.ip(), String::from_utf8_lossy(&line[..length]).into_owned())
    });
    // Nobody's user, no group, no capability; it names an address and nothing of AERO.
    let script = format!(
        "exec 3<>/dev/tcp/{}/{port}; grep CapEff /proc/self/status >&3; read -r answer <&3; \
         id -u; echo $answer",
        inner(2)
    );
    let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"];
    let output = c1.run("setpriv", &[&nobody[..], &["bash", "-c", &script]].concat());
    assert_eq!(output, "65534\nwelcome\n");
    let (from, said) = answered.join().unwrap();
    assert_eq!(from, addr(1), "from the Client's own prefix");
    assert!(said.contains("0000000000000000"), "{said}");
}
