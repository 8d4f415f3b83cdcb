//! The deprecated model against Kea: our Server relays, Kea delegates.

use std::path::Path;

use aero_protocol::wire::dhcpv6::Kind;

use super::decode::{capture, finish};
use super::net::{
    Host, Net, SOON, Underlay, agent, await_address, await_that, reaches, start_client, try_run,
};
use super::tester::{QUIET, Tester, acp, data, duid, inner, l2, prefixes};

/// Starts Kea on a host, with a reservation for each of Clients 1 to 3. All its files are in the
/// net's directory.
fn start_kea(net: &Net, host: &Host<'_>, lifetime: u32) {
    let colons = |n: u16| {
        let bytes: Vec<String> = duid(n).as_bytes().iter().map(|b| format!("{b:02x}")).collect();
        bytes.join(":")
    };
    let reservations: Vec<String> = (1..=3)
        .map(|n| format!(r#"{{"duid": "{}", "prefixes": ["{}"]}}"#, colons(n), acp(n)))
        .collect();
    let dir = net.dir.path().display().to_string();
    let config = format!(
        r#"{{"Dhcp6": {{
            "interfaces-config": {{"interfaces": ["eth0/fd77::50"]}},
            "data-directory": "{dir}",
            "lease-database": {{"type": "memfile", "persist": false}},
            "preferred-lifetime": {lifetime}, "valid-lifetime": {lifetime},
            "renew-timer": {}, "rebind-timer": {},
            "subnet6": [{{"id": 1, "subnet": "2001:db8::/32",
                "pd-pools": [{{"prefix": "2001:db8:ff::", "prefix-len": 48, "delegated-len": 64}}],
                "reservations": [{}]}}],
            "loggers": [{{"name": "kea-dhcp6", "severity": "INFO",
                "output_options": [{{"output": "stdout"}}]}}]}}}}"#,
        lifetime / 2,
        lifetime / 5 * 4,
        reservations.join(", "),
    );
    let file = net.file("kea.json", &config);
    await_that("the link-local address is no longer tentative", SOON, || {
        let shown = host.ip("-6 addr show dev eth0");
        shown.contains("fe80:") && !shown.contains("tentative")
    });
    let script = format!(
        "export KEA_PIDFILE_DIR={dir} KEA_LOCKFILE_DIR={dir}; exec kea-dhcp6 -c {}",
        file.display()
    );
    host.start("kea", Path::new("sh"), &["-c", &script]);
    await_that("Kea has started", SOON, || net.log("kea").contains("DHCP6_STARTED"));
}

/// Starts the real Server as a relay agent of Kea.
fn start_relay(host: &Host<'_>, n: u16) -> aero_protocol::address::LinkLayerAddress {
    let ip = Underlay::V6.ip(n);
    let arguments = ["server", "--host-ips", &ip, "--relay-to", "fd77::50"];
    let link = ["--relay-link-address", "2001:db8::1"];
    host.start(&host.name, &agent(), &[&arguments[..], &link].concat());
    await_that("the Server relays", SOON, || host.log(&host.name).contains("relaying"));
    l2(&Underlay::V6.socket(n, 8060))
}

#[test]
fn kea_delegates_through_a_relaying_server_which_learns_its_neighbours_from_the_replies() {
    let _row = aero_elements::covers(&["T2", "T4", "U2", "U3"]);
    let net = Net::new();
    let u = Underlay::V6;
    let (kea, s1) = (net.at("kea", u, 0x50), net.at("s1", u, 11));
    let (c1, c2, x) = (net.at("c1", u, 1), net.at("c2", u, 2), net.at("x", u, 3));
    start_kea(&net, &kea, 12);
    let captures = [capture(&kea, "udp port 547"), capture(&s1, "udp port 8060")];
    let server = start_relay(&s1, 11);
    start_client(&c1, 1, &[server], &["--service-prefix", "2001:db8::/32"]);
    start_client(&c2, 2, &[server], &["--service-prefix", "2001:db8::/32"]);
    await_address(&c1, 1);
    await_address(&c2, 2);
    assert!(reaches((&c1, inner(1).into()), (&c2, inner(2).into()), SOON));
    assert!(reaches((&c2, inner(2).into()), (&c1, inner(1).into()), SOON));

    // The tester, message by message: an entry is there with Kea's Reply and not before.
    let t = Tester::at(&x, &u.socket(3, 8060));
    let solicit = t.message(Kind::Solicit, 3);
    let offer = t.ask(server, &solicit);
    assert_eq!((offer.kind, prefixes(&offer)), (Kind::Advertise, vec![acp(3)]));
    t.send(server, &data(inner(3), inner(1), 64, "too early"));
    assert!(!net.log("s1").contains("associated prefix=2001:db8:0:3::/64"));
    let kea_duid = offer.server.unwrap();
    let reply = t.ask(server, &t.to_server(Kind::Request, 3, &kea_duid));
    assert_eq!((reply.kind, prefixes(&reply)), (Kind::Reply, vec![acp(3)]));
    await_that("the entry is made", SOON, || {
        net.log("s1").contains("associated prefix=2001:db8:0:3::/64")
    });
    // Without a renewal it ends when the lifetime does; those of the real Clients, who renew,
    // stay.
    await_that("the entry ends", SOON, || {
        net.log("s1").contains("entry ended prefix=2001:db8:0:3::/64")
    });
    assert!(net.log("s1").contains("why=Expired"));
    assert!(reaches((&c1, inner(1).into()), (&c2, inner(2).into()), SOON));
    for name in ["c1", "c2"] {
        assert!(!net.log(name).contains("does not answer"), "its solicitations are answered");
    }

    for (host, file) in [&kea, &s1].into_iter().zip(&captures) {
        finish(host, file);
    }
    let fields = |n: usize, filter: &str, field: &str| {
        let file = captures[n].to_str().unwrap();
        let arguments = ["-r", file, "-d", "udp.port==8060,ip", "-Y", filter];
        let fields = ["-T", "fields", "-E", "occurrence=l", "-e", field];
        try_run("tshark", &[&arguments[..], &fields].concat()).unwrap()
    };
    let peers = fields(0, "dhcpv6.msgtype == 12", "dhcpv6.peeraddr");
    let bootstrap = "fe80::ffff:ffff:ffff:ffff";
    assert!(peers.lines().any(|l| l == bootstrap) && peers.lines().any(|l| l.contains("2001:db8")));
    let own = fields(1, "icmpv6.type == 135", "ipv6.src");
    assert!(own.contains("fe80::2001:db8:0:1") && own.contains("fe80::2001:db8:0:2"), "{own}");
    for n in [0, 1] {
        assert_eq!(fields(n, "_ws.malformed", "frame.number"), "");
    }

    // Only Kea gives leases: without it nobody gets one.
    kea.kill("kea");
    while t.receive(QUIET).is_some() {}
    t.say(server, aero_protocol::address::BOOTSTRAP_ADDRESS, &t.message(Kind::Solicit, 3));
    t.say(server, aero_protocol::address::BOOTSTRAP_ADDRESS, &t.message(Kind::Request, 3));
    assert!(t.receive(std::time::Duration::from_secs(2)).is_none());
    assert_eq!(net.log("s1").matches("associated prefix=2001:db8:0:3::/64").count(), 1);
}

#[test]
fn two_central_servers_and_a_table_beside_one_are_refused() {
    let _row = aero_elements::covers(&["U1"]);
    let program = agent();
    let refused = |more: &[&str]| {
        let arguments = [&["server", "--host-ips", "127.0.0.1"], more].concat();
        try_run(program.to_str().unwrap(), &arguments).unwrap_err()
    };
    let twice = refused(&["--relay-to", "fd77::50", "--relay-to", "fd77::51"]);
    assert!(twice.contains("cannot be used multiple times"), "{twice}");
    let list = refused(&["--relay-to", "fd77::50,fd77::51"]);
    assert!(list.contains("one IPv6 address"), "{list}");
    let both = refused(&["--relay-to", "fd77::50", "--table", "/nonexistent"]);
    assert!(both.contains("cannot be used with"), "{both}");
}
