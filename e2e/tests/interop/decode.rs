//! Every message that the programs send, as Wireshark's dissectors read it.
//!
//! Behind UDP 8060 follows an IP packet at once, so `-d udp.port==8060,ip` tells tshark all that
//! it must know; nothing is stripped or rewritten.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use aero_protocol::wire::dhcpv6::{IaPd, Kind, Message, Prefix};
use aero_protocol::wire::ip;

use super::net::{
    BOTH, Host, Net, SOON, await_address, await_that, reaches, run, start_client, start_server,
};
use super::tester::{Tester, acp, dhcp_of, inner, l2, nd_of, table};

/// The port "discard" (RFC 863), which nobody here listens at.
const DISCARD: u16 = 9;

/// Captures what passes a host's cable, in a file.
pub fn capture(host: &Host<'_>, filter: &str) -> PathBuf {
    let file = host.net.dir.path().join(format!("{}.pcapng", host.name));
    let name = format!("capture-{}", host.name);
    let text = file.to_str().unwrap();
    let filter = if filter.is_empty() { "" } else { &format!("({filter}) or udp port {DISCARD}") };
    host.start(&name, Path::new("dumpcap"), &["-i", "eth0", "-f", filter, "-w", text]);
    await_that("the capture has begun", SOON, || host.log(&name).contains("File: "));
    file
}

/// Ends a host's capture when all that passed so far is in the file.
///
/// A program that is asked to end does not empty the kernel's buffer: the last quarter of a second
/// would be missing. So a datagram follows, and the end is when that one is in the file.
pub fn finish(host: &Host<'_>, file: &Path) {
    let interface = host.inside(|| nix::net::if_::if_nametoindex("eth0")).unwrap();
    let everybody = std::net::SocketAddrV6::new("ff02::1".parse().unwrap(), DISCARD, 0, interface);
    let mark = format!("end of the capture at {}", host.name);
    let socket = host.udp("[::]:0");
    await_that("the capture is complete", SOON, || {
        // Until the link-local address may be used this fails.
        let _ = socket.send_to(mark.as_bytes(), everybody);
        let seen = std::fs::read(file).unwrap();
        seen.windows(mark.len()).any(|w| w == mark.as_bytes())
    });
    host.stop(&format!("capture-{}", host.name));
}

/// What tshark finds: the names of the messages, and what it cannot make sense of.
pub fn decode(file: &Path) -> (BTreeSet<String>, Vec<String>) {
    let fields = [
        "frame.number",
        "_ws.malformed",
        "dhcpv6.msgtype",
        "icmpv6.type",
        "icmpv6.code",
        "icmpv6.nd.na.flag.s",
        "icmpv6.checksum.status",
        "udp.checksum.status",
        "_ws.expert.message",
        "frame.protocols",
    ];
    let file = file.to_str().unwrap();
    // The outer checksums of what this very host sends are filled in later, by its "hardware".
    let mut arguments =
        vec!["-r", file, "-d", "udp.port==8060,ip", "-o", "udp.check_checksum:TRUE"];
    let filter = format!("!(udp.port == {DISCARD})");
    arguments.extend(["-Y", &filter]);
    arguments.extend([
        "-T",
        "fields",
        "-E",
        "separator=|",
        "-E",
        "occurrence=a",
        "-E",
        "aggregator=;",
    ]);
    for field in fields {
        arguments.extend(["-e", field]);
    }
    let text = run("tshark", &arguments);
    let (mut names, mut complaints) = (BTreeSet::new(), Vec::new());
    for line in text.lines() {
        let f: Vec<&str> = line.split('|').collect();
        let [_, malformed, dhcp, icmp, code, solicited, icmp_sum, udp_sums, experts, protocols] =
            f[..]
        else {
            panic!("{line}")
        };
        // A quoted packet is cut, so that its checksum cannot be told.
        let inner_udp = udp_sums.split(';').nth(1).filter(|_| icmp.is_empty());
        let checksums_good =
            (icmp.is_empty() || icmp_sum == "1") && inner_udp.is_none_or(|s| s == "1");
        let tunneled = protocols.contains(":udp:ip:ipv6:");
        // That of the outer UDP (the inner ones are checked above), and our own ND option, which
        // has a number for experiments (RFC 4727).
        let known = |e: &str| {
            e.is_empty() || e.starts_with("Bad checksum") || e.contains("ICMPv6 Option (253)")
        };
        let understood = malformed.is_empty() && experts.split(';').all(known);
        if !understood || !checksums_good || !tunneled {
            complaints.push(line.to_string());
        }
        let name = match (dhcp, icmp, code, solicited) {
            ("1", ..) => "Solicit",
            ("2", ..) => "Advertise",
            ("3", ..) => "Request",
            ("5", ..) => "Renew",
            ("6", ..) => "Rebind",
            ("7", ..) => "Reply",
            ("8", ..) => "Release",
            ("", "135", "0", _) => "NS",
            ("", "136", "0", "1" | "True") => "NA",
            ("", "136", "0", _) => "unsolicited NA",
            ("", "137", "1", _) => "Predirect",
            ("", "137", "0", _) => "Redirect",
            ("", "134", "0", _) => "RA",
            ("", "", ..) => "data",
            other => panic!("a message that nobody knows: {other:?}: {line}"),
        };
        names.insert(name.to_string());
    }
    (names, complaints)
}

#[test]
fn tshark_reads_every_message_without_a_malformed_one() {
    let _row = aero_elements::covers(&["A2"]);
    for u in BOTH {
        let net = Net::new();
        let (s1, s2) = (net.at("s1", u, 11), net.at("s2", u, 12));
        let (c1, c2, t) = (net.at("c1", u, 1), net.at("c2", u, 2), net.at("t", u, 3));
        let server = start_server(&s1, u, 11, &net.file("t.yaml", &table(6)));
        let files = [&s1, &s2, &c1].map(|host| capture(host, "udp port 8060"));
        // A Client whose second Server is the tester, which makes it go the long way.
        let second = Tester::at(&s2, &u.socket(12, 8060));
        start_client(&c1, 1, &[server, l2(&u.socket(12, 8060))], &[]);
        let (from, source, solicit) = second.await_packet("Solicit", |from, p| {
            let (source, m) = dhcp_of(p)?;
            (m.kind == Kind::Solicit).then_some((from, source, m))
        });
        let mut offer = Message::new(Kind::Advertise, solicit.transaction);
        offer.client.clone_from(&solicit.client);
        offer.server = Some(second.server_duid());
        let prefix = Prefix { prefix: acp(1), preferred: 60, valid: 60 };
        let ia = IaPd { id: solicit.ia_pd[0].id, prefixes: vec![prefix], ..IaPd::default() };
        offer.ia_pd.push(ia);
        let bytes = offer.emit().unwrap();
        second.send(from, &ip::udp((second.server_id(), 547), (source, 546), &bytes).unwrap());
        second.serve(Kind::Request, 1, 60);
        start_client(&c2, 2, &[server], &[]);
        await_address(&c1, 1);
        await_address(&c2, 2);
        assert!(reaches((&c1, inner(1).into()), (&c2, inner(2).into()), SOON));
        // Advertise; and the former node is told when another one claims the prefix.
        let (old, new) = (Tester::at(&t, &u.socket(3, 8060)), Tester::at(&t, &u.socket(3, 9000)));
        old.ask(server, &old.message(Kind::Solicit, 3));
        old.bind(server, 3);
        new.bind(server, 3);
        old.await_packet("unsolicited advertisement", |_, p| nd_of(p));
        // T1 of a lease of six seconds.
        std::thread::sleep(std::time::Duration::from_secs(4));
        c1.address("del", &u.with_length(1));
        c1.address("add", &u.with_length(33));
        second.serve(Kind::Rebind, 1, 60);
        c1.stop("c1");
        c2.stop("c2");
        await_that("both are released", SOON, || {
            net.log("s1").matches("why=Released").count() == 2
        });
        for (host, file) in [&s1, &s2, &c1].into_iter().zip(&files) {
            finish(host, file);
        }
        let mut all = BTreeSet::new();
        for file in &files {
            let (names, complaints) = decode(file);
            assert!(complaints.is_empty(), "{}: {complaints:#?}", file.display());
            all.extend(names);
        }
        let expected = [
            "Solicit",
            "Advertise",
            "Request",
            "Reply",
            "Renew",
            "Rebind",
            "Release",
            "NS",
            "NA",
            "unsolicited NA",
            "data",
        ];
        for name in expected {
            assert!(all.contains(name), "no {name} over {u:?}: {all:?}");
        }
        println!("tshark over {u:?}: {all:?}");
    }
}
