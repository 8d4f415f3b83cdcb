//! DHCPv6 clients that know nothing of AERO, over a real AERO link: `client --link-only` gives
//! them an interface like any other.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use aero_protocol::address::LinkLayerAddress;
use nix::sys::signal::Signal;

use super::net::{
    BOTH, Host, Net, SOON, Underlay, agent, await_address, await_that, reaches, start_client,
    start_server,
};
use super::tester::{acp, inner, table};

/// Puts the AERO link on a host.
fn start_link(host: &Host<'_>, servers: &[LinkLayerAddress]) {
    let list: Vec<String> = servers.iter().map(ToString::to_string).collect();
    let mut arguments = vec!["client", "--link-only"];
    for server in &list {
        arguments.extend(["--server", server]);
    }
    host.start(&host.name, &agent(), &arguments);
    await_that("the link is there", SOON, || host.log(&host.name).contains("the link is at aero0"));
}

/// Over both underlays at a time, since it is waiting for most of it.
fn over_both(run: impl Fn(Underlay) + Sync) {
    std::thread::scope(|scope| {
        for u in BOTH {
            let run = &run;
            scope.spawn(move || run(u));
        }
    });
}

/// The DUID of Client `n` in bytes.
fn duid_bytes(n: u16) -> Vec<u8> {
    super::tester::duid(n).as_bytes().to_vec()
}

/// A router with a host behind it, on whose cable a prefix is to be used; another Client of the
/// link reaches that host and is reached by it.
fn a_stock_client_gets_its_prefix(u: Underlay, lease: u32, start: impl Fn(&Net, &Host<'_>)) {
    let net = Net::new();
    let server = start_server(&net.at("s1", u, 11), u, 11, &net.file("t.yaml", &table(lease)));
    let (router, other) = (net.at("c1", u, 1), net.at("c2", u, 2));
    // A link of its own: the stock client is to number it out of the prefix.
    let host = net.behind("h1", &router, "2001:db8:0:1::5/64", "fe80::1/64");
    router.run("sysctl", &["-qw", "net.ipv6.conf.all.forwarding=1"]);
    start_link(&router, &[server]);
    start_client(&other, 2, &[server], &[]);
    await_address(&other, 2);
    start(&net, &router);
    await_that("the prefix is delegated", SOON, || {
        net.log("s1").contains("associated prefix=2001:db8:0:1::/64")
    });
    await_that("an address of it is on the cable", SOON, || {
        router.ip("-6 addr show dev to-h1").contains("inet6 2001:db8:0:1:")
    });
    router.ip("-6 route add 2001:db8::/32 dev aero0");
    host.ip("-6 route replace default via fe80::1 dev eth0");
    let behind: IpAddr = "2001:db8:0:1::5".parse().unwrap();
    assert!(reaches((&host, behind), (&other, inner(2).into()), SOON));
    assert!(reaches((&other, inner(2).into()), (&host, behind), SOON));
    // Beyond its end, but for a renewal.
    std::thread::sleep(Duration::from_secs(u64::from(lease) + 1));
    assert!(reaches((&other, inner(2).into()), (&host, behind), SOON));
    assert!(!net.log("s1").contains("why=Expired"));
    router.signal("stock", Signal::SIGTERM);
    await_that("the lease is released", SOON, || {
        net.log("s1").contains(&format!("lease ended prefix={}", acp(1)))
            && net.log("s1").contains("why=Released")
    });
}

#[test]
fn dhcpcd_gets_its_prefix_renews_it_and_hosts_behind_it_are_reached() {
    over_both(|u| {
        a_stock_client_gets_its_prefix(u, 8, |net, router| {
            let duid: Vec<String> = duid_bytes(1).iter().map(|b| format!("{b:02x}")).collect();
            let text = format!(
                "duid {}\nipv6only\nnoipv6rs\nnohook resolv.conf, hostname\nrelease\n\
                 denyinterfaces eth0\ninterface aero0\n  ia_pd 1 to-h1/0/64\n",
                duid.join(":")
            );
            let file = net.file("dhcpcd.conf", &text);
            // Its files stay in this mount namespace, which `ip netns exec` has made.
            let script = format!(
                "mkdir -p /run/dhcpcd /var/lib/dhcpcd; mount -t tmpfs t /run/dhcpcd; \
                 mount -t tmpfs t /var/lib/dhcpcd; exec dhcpcd -6 -B -d -f {} aero0 to-h1",
                file.display()
            );
            router.start("stock", Path::new("sh"), &["-c", &script]);
        });
    });
}

#[test]
fn wide_dhcpv6_client_gets_its_prefix_renews_it_and_hosts_behind_it_are_reached() {
    over_both(|u| {
        // It takes no T1 below 18 and no T2 below 30 seconds.
        a_stock_client_gets_its_prefix(u, 40, |net, router| {
            let text = "interface aero0 { send ia-pd 1; };\n\
                        id-assoc pd 1 { prefix-interface to-h1 { sla-id 0; sla-len 0; }; };\n";
            let file = net.file("dhcp6c.conf", text);
            // Its form of a DUID: length in the machine's byte order, then the bytes.
            let bytes = duid_bytes(1);
            let length = u16::try_from(bytes.len()).unwrap().to_ne_bytes();
            let duid = net.dir.path().join("dhcp6c_duid");
            std::fs::write(&duid, [&length[..], &bytes].concat()).unwrap();
            let script = format!(
                "mkdir -p /var/lib/dhcpv6; mount -t tmpfs t /var/lib/dhcpv6; \
                 cp {} /var/lib/dhcpv6/dhcp6c_duid; exec dhcp6c -f -D -c {} -p {} aero0",
                duid.display(),
                file.display(),
                net.dir.path().join("dhcp6c.pid").display(),
            );
            router.start("stock", Path::new("sh"), &["-c", &script]);
        });
    });
}

/// A number from perfdhcp's report, in the part about an exchange.
fn figure(report: &str, exchange: &str, name: &str) -> f64 {
    let (_, part) = report.split_once(exchange).unwrap_or_else(|| panic!("{exchange}:\n{report}"));
    let line = part.lines().find(|l| l.trim_start().starts_with(name));
    let value = line.and_then(|l| l.split(':').nth(1)?.split_whitespace().next()?.parse().ok());
    value.unwrap_or_else(|| panic!("{name} of {exchange}:\n{report}"))
}

#[test]
fn perfdhcp_loads_a_server_and_no_exchange_is_lost() {
    let net = Net::new();
    let u = Underlay::V4;
    // perfdhcp's Clients: DUID-LL of the MAC addresses from 00:0c:01:02:03:04 on.
    let clients = 200;
    let rows: String = (0..clients)
        .map(|n| {
            let mac = 0x0102_0304_u32 + n;
            format!(
                "- {{duid: \"00030001000c{mac:08x}\", prefixes: [\"2001:db8:1:{n:x}::/64\"]}}\n"
            )
        })
        .collect();
    let file = net.file("t.yaml", &(table(40) + &rows));
    let server = start_server(&net.at("s1", u, 11), u, 11, &file);
    let load = net.at("c1", u, 1);
    start_link(&load, &[server]);
    let clients = clients.to_string();
    let duid = "duid=00030001000c01020304";
    let arguments = ["-6", "-l", "aero0", "-e", "prefix-only", "-R", &clients, "-b", duid];
    let rate = ["-r", "150", "-p", "6", "-W", "2000000", "all"];
    let report = load.run("perfdhcp", &[&arguments[..], &rate].concat());
    let of = |exchange: &str| {
        let numbers = ["sent packets", "received packets", "rejected leases", "avg delay"];
        numbers.map(|name| figure(&report, exchange, name))
    };
    let solicit = of("SOLICIT-ADVERTISE");
    let request = of("REQUEST-REPLY");
    let lost = solicit[0] - solicit[1] + request[0] - request[1];
    let rate = figure(&report, "Rate statistics", "Rate");
    println!(
        "perfdhcp: {rate} four-way exchanges a second, {} in all, {lost} lost, \
         average {} and {} ms",
        request[1], solicit[3], request[3]
    );
    assert!(request[1] >= 100.0, "hardly anything was served:\n{report}");
    assert!(lost <= (solicit[0] + request[0]) / 20.0, "one in twenty is lost:\n{report}");
    assert_eq!((solicit[2], request[2]), (0.0, 0.0), "refused:\n{report}");
    let leases = net.log("s1").matches("associated prefix=2001:db8:1:").count();
    assert!(leases >= 100, "{leases} leases at the Server");
}
