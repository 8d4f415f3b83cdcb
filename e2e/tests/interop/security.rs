//! Who is believed: keys, admission, addresses that nobody shares, and who speaks another edition.

use std::cell::Cell;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;

use aero_protocol::address::{ALL_DHCP_SERVERS, BOOTSTRAP_ADDRESS, LinkLayerAddress, aero_address};
use aero_protocol::wire::aero_options::AeroOption;
use aero_protocol::wire::dhcpv6::{Authentication, Kind, Message, StatusCode};
use aero_protocol::wire::ip::{self, Packet, Payload};
use aero_protocol::wire::signature::{self, Covered, Key, Signature};

use super::net::{
    BOTH, Net, SOON, Underlay, agent, await_address, await_that, reaches, start_client,
    start_server,
};
use super::tester::{QUIET, Tester, acp, data, dhcp_of, duid_text, inner, l2, prefixes, table};

fn secret(n: u8) -> Key {
    Key::new(u32::from(n), [n; 32])
}

/// A key file with the key of number `n`.
fn key_file(net: &Net, n: u8) -> PathBuf {
    let path = net.file(&format!("{n}.key"), &format!("{n} {}\n", format!("{n:02x}").repeat(32)));
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
    path
}

/// A table in which Client 1 has key 1 and no addresses, Client 2 anybody's word.
fn keyed_table(net: &Net) -> PathBuf {
    key_file(net, 1);
    let row = |n: u16, more: &str| {
        format!("- {{duid: {}, prefixes: [\"{}\"]{more}}}\n", duid_text(n), acp(n))
    };
    let text = format!(
        "servicePrefixes: [\"2001:db8::/32\"]\nauthentication: None\nclients:\n{}{}",
        row(1, ", key: 1.key"),
        row(2, "")
    );
    net.file("table.yaml", &text)
}

/// The tester with a key, in one Server's session.
struct Signer<'a> {
    t: &'a Tester,
    key: Key,
    session: Cell<u64>,
    counter: Cell<u64>,
}

impl<'a> Signer<'a> {
    fn new(t: &'a Tester, key: Key) -> Self {
        Self { t, key, session: Cell::new(0), counter: Cell::new(1) }
    }

    /// A message as it goes out, the outer source covered if there is one.
    fn packet(&self, message: &Message, outer: Option<LinkLayerAddress>) -> Vec<u8> {
        self.counter.set(self.counter.get() + 1);
        let mut m = message.clone();
        m.aero.push(AeroOption::Signature(Signature {
            key: self.key.id(),
            session: self.session.get(),
            counter: self.counter.get(),
            bound: outer.is_some(),
            digest: [0; 32],
        }));
        let covered = Covered { source: BOOTSTRAP_ADDRESS, destination: ALL_DHCP_SERVERS, outer };
        let mut data = m.emit().unwrap();
        signature::sign(&mut data, &covered, &self.key).unwrap();
        ip::udp((BOOTSTRAP_ADDRESS, 546), (ALL_DHCP_SERVERS, 547), &data).unwrap()
    }

    /// The next answer; whether it is signed with this key for the last message is in it too.
    fn answer(&self) -> Option<(Message, bool)> {
        let (_, packet) = self.t.receive(QUIET)?;
        let (_, message) = dhcp_of(&packet)?;
        let p = Packet::parse(&packet).unwrap();
        let Payload::Udp { data, .. } = p.payload else { panic!() };
        let covered = Covered { source: p.source, destination: p.destination, outer: None };
        let signed = signature::verify(data, &covered, &self.key)
            && Signature::of(&message).unwrap().unwrap().counter == self.counter.get();
        Some((message, signed))
    }

    /// Learns the Server's session by a message of none.
    fn enter(&self, server: LinkLayerAddress) {
        self.session.set(0);
        self.t.send(server, &self.packet(&self.solicit(), None));
        let (answer, signed) = self.answer().expect("the session");
        assert!(signed && prefixes(&answer).is_empty());
        let last = answer.aero.iter().find_map(|o| match o {
            AeroOption::Again(counter) => Some(*counter),
            _ => None,
        });
        self.session.set(Signature::of(&answer).unwrap().unwrap().session);
        self.counter.set(last.expect("a counter"));
    }

    fn solicit(&self) -> Message {
        let mut m = self.t.message(Kind::Solicit, 1);
        m.rapid_commit = true;
        m
    }

    /// Sends a packet; the prefixes that the answer gives, `None` without an answer.
    fn gets(&self, server: LinkLayerAddress, packet: &[u8]) -> Option<usize> {
        self.t.send(server, packet);
        self.answer().map(|(message, _)| prefixes(&message).len())
    }
}

#[test]
fn the_right_duid_with_the_wrong_key_is_refused_by_all_servers_and_counted() {
    let _row = aero_elements::covers(&["I1"]);
    for u in BOTH {
        let net = Net::new();
        let file = keyed_table(&net);
        let hosts = [net.at("s1", u, 11), net.at("s2", u, 12)];
        let servers =
            [start_server(&hosts[0], u, 11, &file), start_server(&hosts[1], u, 12, &file)];
        let a = net.at("a", u, 1);
        let t = Tester::at(&a, &u.socket(1, 8060));
        for (server, host) in servers.into_iter().zip(&hosts) {
            let wrong = Signer::new(&t, Key::new(1, [9; 32]));
            let other = Signer::new(&t, secret(2));
            for thief in [wrong, other] {
                assert_eq!(thief.gets(server, &thief.packet(&thief.solicit(), None)), Some(0));
            }
            let plain = t.ask(server, &t.message(Kind::Solicit, 1));
            assert!(prefixes(&plain).is_empty(), "not signed at all");
            await_that("the refusals are reported", SOON, || {
                host.log(&host.name).matches("refused: ").count() >= 3
            });
            let admin = "http://[::1]:9060/metrics";
            let metrics = host.run("curl", &["-sg", "--max-time", "5", admin]);
            assert!(metrics.contains("aero_refused_claims_total 3"), "{metrics}");
            let right = Signer::new(&t, secret(1));
            right.enter(server);
            assert_eq!(right.gets(server, &right.packet(&right.solicit(), None)), Some(1));
        }
        // Whoever has no key is served as ever.
        t.bind(servers[0], 2);
        let log = net.log("s1");
        assert!(!log.contains("0101010101"), "no key is in the log");
    }
}

#[test]
fn a_changed_a_moved_and_a_replayed_rebind_is_refused_by_the_server() {
    let _row = aero_elements::covers(&["I5"]);
    for u in BOTH {
        let net = Net::new();
        let server = start_server(&net.at("s1", u, 11), u, 11, &keyed_table(&net));
        let (a, b, x) = (net.at("a", u, 1), net.at("b", u, 2), net.at("x", u, 99));
        let t = Tester::at(&a, &u.socket(1, 8060));
        let other = Tester::at(&b, &u.socket(2, 8060));
        let thief = Tester::at(&x, &u.socket(99, 8060));
        other.bind(server, 2);
        let signer = Signer::new(&t, secret(1));
        signer.enter(server);
        assert_eq!(signer.gets(server, &signer.packet(&signer.solicit(), None)), Some(1));
        let own = Some(l2(&u.socket(1, 8060)));
        let rebind = signer.packet(&t.message(Kind::Rebind, 1), own);
        // Somebody on the path holds it back, and sends it on with a bit changed, or from elsewhere.
        let p = Packet::parse(&rebind).unwrap();
        let Payload::Udp { data: bytes, .. } = p.payload else { panic!() };
        for at in [1, bytes.len() / 2, bytes.len() - 1] {
            let mut changed = bytes.to_vec();
            changed[at] ^= 1;
            let packet = ip::udp((p.source, 546), (p.destination, 547), &changed).unwrap();
            for from in [&thief, &t] {
                from.send(server, &packet);
                let answer = from.receive(QUIET).and_then(|(_, p)| Some(dhcp_of(&p)?.1));
                assert!(answer.is_none_or(|m| prefixes(&m).is_empty()), "byte {at}");
            }
        }
        let stolen = Signer::new(&thief, secret(1)).gets(server, &rebind);
        assert_ne!(stolen, Some(1), "from elsewhere");
        assert_eq!(signer.gets(server, &rebind), Some(1), "it was good");
        assert_eq!(signer.gets(server, &rebind), None, "a replay");
        other.send(server, &data(inner(2), inner(1), 64, "to the owner"));
        assert_eq!(t.next_text(), "to the owner");
        assert!(!thief.hears("to the owner"));
    }
}

#[test]
fn no_obsolete_authentication_stands_for_a_key_and_doubles_and_replays_are_dropped() {
    let _row = aero_elements::covers(&["I4"]);
    let net = Net::new();
    let u = Underlay::V4;
    let server = start_server(&net.at("s1", u, 11), u, 11, &keyed_table(&net));
    let a = net.at("a", u, 1);
    let t = Tester::at(&a, &u.socket(1, 8060));
    let signer = Signer::new(&t, secret(1));
    signer.enter(server);
    let mut m = signer.solicit();
    m.authentication = Some(Authentication {
        protocol: 2,
        algorithm: 1,
        rdm: 0,
        replay: 1,
        info: [&b"realm"[..], &[0, 0, 0, 1], &[0x5a; 16]].concat(),
    });
    let refused = t.ask(server, &m);
    let status = refused.ia_pd[0].status.as_ref().map(|s| s.code);
    assert_eq!((prefixes(&refused), status), (vec![], Some(StatusCode::NoPrefixAvail)));
    // Two of them beside a good signature: nothing. One: it makes no difference.
    let two = {
        signer.counter.set(signer.counter.get() + 1);
        let mut signed = m.clone();
        let (session, counter) = (signer.session.get(), signer.counter.get());
        let digest = [0; 32];
        let option = Signature { key: 1, session, counter, bound: false, digest };
        signed.aero.push(AeroOption::Signature(option));
        let mut bytes = signed.emit().unwrap();
        bytes.extend([0, 11, 0, 11, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 1]);
        let covered =
            Covered { source: BOOTSTRAP_ADDRESS, destination: ALL_DHCP_SERVERS, outer: None };
        signature::sign(&mut bytes, &covered, &secret(1)).unwrap();
        ip::udp((BOOTSTRAP_ADDRESS, 546), (ALL_DHCP_SERVERS, 547), &bytes).unwrap()
    };
    assert_eq!(signer.gets(server, &two), None);
    let one = signer.packet(&m, None);
    assert_eq!(signer.gets(server, &one), Some(1));
    assert_eq!(signer.gets(server, &one), None, "its counter has been");
}

#[test]
fn a_host_that_is_not_admitted_gets_no_lease_and_once_it_is_it_does() {
    let _row = aero_elements::covers(&["I2"]);
    let net = Net::new();
    let u = Underlay::V4;
    let strict = |address: &str| {
        format!(
            "servicePrefixes: [\"2001:db8::/32\"]\nclients:\n\
             - {{duid: {}, prefixes: [\"{}\"], addresses: [\"{address}\"]}}\n",
            duid_text(1),
            acp(1)
        )
    };
    let (s1, c1) = (net.at("s1", u, 11), net.at("c1", u, 1));
    // The network has not admitted it: what stands for that is the address that it may speak from.
    let server = start_server(&s1, u, 11, &net.file("t.yaml", &strict("192.0.2.200")));
    start_client(&c1, 1, &[server], &[]);
    await_that("it is refused", SOON, || c1.log("c1").contains("refused: "));
    await_that("the Server says so", SOON, || s1.log("s1").contains("refused: "));
    assert!(!s1.log("s1").contains("associated"));
    let shown = c1.ip("-6 addr show dev aero0");
    assert!(!shown.contains(&inner(1).to_string()), "{shown}");
    net.file("t.yaml", &strict("192.0.2.1"));
    await_address(&c1, 1);
}

#[test]
fn a_client_with_a_key_roams_anywhere_and_believes_its_servers_only() {
    for u in BOTH {
        let net = Net::new();
        let file = keyed_table(&net);
        let (s1, c1, c2) = (net.at("s1", u, 11), net.at("c1", u, 1), net.at("c2", u, 2));
        let s2 = net.at("s2", u, 12);
        let server = start_server(&s1, u, 11, &file);
        let impostor = Tester::at(&s2, &u.socket(12, 8060));
        let key = net.dir.path().join("1.key");
        let key = ["--key-file", key.to_str().unwrap(), "--bind-source"];
        start_client(&c1, 1, &[server, l2(&u.socket(12, 8060))], &key);
        // One that says it is a Server, and gives the prefix without the key.
        impostor.serve(Kind::Solicit, 1, 40);
        await_that("it is not believed", SOON, || c1.log("c1").contains("was not believed"));
        start_client(&c2, 2, &[server], &[]);
        await_address(&c1, 1);
        await_address(&c2, 2);
        c1.address("del", &u.with_length(1));
        c1.address("add", &u.with_length(33));
        let at = format!("at={}", u.socket(33, 8060));
        await_that("the Server has followed", SOON, || s1.log("s1").contains(&at));
        assert!(reaches((&c2, inner(2).into()), (&c1, inner(1).into()), SOON));
        // The Server is replaced: it and the Client find to each other without a clock.
        s1.kill("s1");
        start_server(&s1, u, 11, &file);
        let again = format!("prefix={} {at}", acp(1));
        await_that("the lease is had again", SOON * 2, || {
            let log = s1.log("s1");
            log.rfind("table read").is_some_and(|n| log[n..].contains(&again))
        });
        assert!(!c1.log("c1").contains("delegated server=192.0.2.12"), "never the impostor");
    }
}

#[test]
fn behind_a_nat_a_key_serves_without_source_binding_and_with_it_says_why_not() {
    let net = Net::new();
    let u = Underlay::V4;
    let s1 = net.at("s1", u, 11);
    let server = start_server(&s1, u, 11, &keyed_table(&net));
    let nat = net.at("nat", u, 254);
    let c1 = net.behind("c1", &nat, "198.51.100.1/24", "198.51.100.254/24");
    let rules = net.file(
        "nat.nft",
        "table ip nat { chain post { type nat hook postrouting priority srcnat; policy accept;\n\
         oifname \"eth0\" meta l4proto udp masquerade to :40000-40100\n}\n}\n",
    );
    nat.run("nft", &["-f", rules.to_str().unwrap()]);
    let key = net.dir.path().join("1.key");
    let key = ["--key-file", key.to_str().unwrap(), "--bind-source"];
    start_client(&c1, 1, &[server], &key);
    await_that("it is refused", SOON, || s1.log("s1").contains("not from where it was sent"));
    c1.stop("c1");
    assert!(!s1.log("s1").contains("associated"));
    start_client(&c1, 1, &[server], &key[..2]);
    await_address(&c1, 1);
    await_that("the mapped port is registered", SOON, || {
        s1.log("s1").contains(&format!("prefix={} at=192.0.2.254:40", acp(1)))
    });
}

#[test]
fn a_message_of_the_first_edition_is_dropped_in_silence_by_server_relay_and_client() {
    let _row = aero_elements::covers(&["A3"]);
    for u in BOTH {
        let net = Net::new();
        let (s1, r1, c1) = (net.at("s1", u, 11), net.at("r1", u, 10), net.at("c1", u, 1));
        let routes = format!(
            "servicePrefixes: [\"2001:db8::/32\"]\nservers:\n- address: \"{}\"\n  routes: [\"{}\"]\n",
            u.socket(11, 8060),
            acp(1)
        );
        let routes = net.file("routes.yaml", &routes);
        let server = start_server(&s1, u, 11, &net.file("t.yaml", &table(40)));
        let arguments = ["relay", "--host-ips", &u.ip(10), "--routes", routes.to_str().unwrap()];
        r1.start("r1", &agent(), &arguments);
        start_client(&c1, 1, &[server], &[]);
        await_address(&c1, 1);
        let x = net.at("x", u, 99);
        let t = Tester::at(&x, &u.socket(99, 8060));
        // RFC 6706: type 0, code 0, checksum, prefix length and P bit, the predirected packet.
        let mut predirect = vec![0, 0, 0, 0, 0, 64, 0x80, 0];
        predirect.extend(data(inner(2), inner(1), 64, "predirected"));
        for n in [11, 10, 1] {
            let to = l2(&u.socket(n, 8060));
            for length in [1, 8, predirect.len()] {
                t.send(to, &predirect[..length]);
            }
            assert!(t.receive(QUIET).is_none(), "{to} answered");
        }
        // All three are alive: the next valid message works.
        t.bind(server, 2);
        t.send(server, &data(inner(2), inner(1), 64, "by the Server"));
        let heard = c1.udp(&format!("[{}]:7", inner(1)));
        heard.set_read_timeout(Some(SOON)).unwrap();
        let mut buffer = [0; 64];
        t.send(server, &data(inner(2), inner(1), 64, "by the Server"));
        let length = heard.recv(&mut buffer).unwrap();
        assert_eq!(&buffer[..length], b"by the Server");
        let metrics = r1.run("curl", &["-sg", "--max-time", "5", "http://[::1]:9063/metrics"]);
        assert!(metrics.contains("reason=\"shim\"} 3"), "{metrics}");
    }
}

#[test]
fn no_two_clients_share_an_address_and_prefixes_that_overlap_are_refused() {
    let _row = aero_elements::covers(&["J6"]);
    let net = Net::new();
    let u = Underlay::V4;
    let s1 = net.at("s1", u, 11);
    let good = table(40);
    let server = start_server(&s1, u, 11, &net.file("t.yaml", &good));
    let (a, b) = (net.at("a", u, 1), net.at("b", u, 2));
    let (t1, t2) = (Tester::at(&a, &u.socket(1, 8060)), Tester::at(&b, &u.socket(2, 8060)));
    t1.bind(server, 1);
    t2.bind(server, 2);
    assert_ne!(aero_address(acp(1)), aero_address(acp(2)));
    // Each is answered at its own link-local address, and not at the other's.
    let own: std::net::Ipv6Addr = "fe80::192.0.2.11".parse().unwrap();
    for (t, mine, others) in [(&t1, 1, 2), (&t2, 2, 1)] {
        assert!(t.solicit_neighbor(server, mine, own).is_some());
        assert!(t.solicit_neighbor(server, others, own).is_none());
    }
    // What is inside another, or around it, or the same.
    for overlapping in ["2001:db8:0:1::/64", "2001:db8::/48", "2001:db8:0:0::/56"] {
        let row = format!("- {{duid: {}, prefixes: [\"{overlapping}\"]}}\n", duid_text(9));
        let before = s1.log("s1").matches("the table stays as it was").count();
        net.file("t.yaml", &format!("{good}{row}"));
        await_that("the table is refused", SOON, || {
            let log = s1.log("s1");
            log.matches("the table stays as it was").count() > before && log.contains("overlaps")
        });
        let mut m = t1.message(Kind::Solicit, 9);
        m.rapid_commit = true;
        assert!(prefixes(&t1.ask(server, &m)).is_empty(), "{overlapping}");
        // Those that are there go on.
        t2.send(server, &data(inner(2), inner(1), 64, overlapping));
        assert_eq!(t1.next_text(), overlapping);
    }
}
