//! The real Server, with the tester as its Clients.

use std::time::{Duration, Instant};

use aero_protocol::address::{BOOTSTRAP_ADDRESS, LinkLayerAddress, SERVER_ANYCAST, aero_address};
use aero_protocol::wire::aero_options::AeroOption;
use aero_protocol::wire::dhcpv6::{IaPd, Kind, Message, StatusCode};
use aero_protocol::wire::ip;

use super::net::{BOTH, Net, SOON, Underlay, await_that, start_server};
use super::tester::{
    Tester, acp, client_packet, data, dhcp_of, duid, duid_text, inner, l2, prefixes, row, table,
};

/// The status in the first IA_PD.
fn status(message: &Message) -> Option<StatusCode> {
    message.ia_pd.first()?.status.as_ref().map(|s| s.code)
}

fn server_id(n: u16) -> std::net::Ipv6Addr {
    format!("fe80::192.0.2.{n}").parse().unwrap()
}

#[test]
fn every_server_answers_under_its_own_duid_and_gives_the_same_prefix_also_after_a_restart() {
    let _row = aero_elements::covers(&["E1", "E4", "E9", "F1", "F3"]);
    let net = Net::new();
    let u = Underlay::V4;
    let file = net.file("table.yaml", &table(40));
    let hosts = [net.at("s1", u, 11), net.at("s2", u, 12)];
    let servers = [start_server(&hosts[0], u, 11, &file), start_server(&hosts[1], u, 12, &file)];
    let t = Tester::at(&net.at("t", u, 1), "192.0.2.1:8060");
    let associate = || {
        servers.map(|server| {
            // By four messages here, by two in most of the other tests.
            let offer = t.ask(server, &t.message(Kind::Solicit, 1));
            assert_eq!((offer.kind, prefixes(&offer)), (Kind::Advertise, vec![acp(1)]));
            let duid = offer.server.unwrap();
            let (from, source, reply) =
                t.ask_from(BOOTSTRAP_ADDRESS, server, &t.to_server(Kind::Request, 1, &duid));
            assert_eq!((from, reply.kind, reply.server), (server, Kind::Reply, Some(duid.clone())));
            assert!(u128::from(source) >> 32 == 0xfe80_u128 << 80, "{source} is in fe80::/96");
            (duid, reply.ia_pd[0].prefixes.clone())
        })
    };
    let [(first_duid, first), (second_duid, second)] = associate();
    assert_ne!(first_duid, second_duid);
    assert_eq!(first, second);
    // The lease at the second Server has left that at the first alone.
    let renewed =
        t.ask_from(aero_address(acp(1)), servers[0], &t.to_server(Kind::Renew, 1, &first_duid));
    assert_eq!(renewed.2.ia_pd[0].prefixes, first);
    for (host, n) in hosts.iter().zip([11, 12]) {
        host.kill(&host.name);
        start_server(host, u, n, &file);
    }
    let [(again, after), (_, after_too)] = associate();
    assert_eq!((again, &after, &after_too), (first_duid, &first, &first));
}

#[test]
fn a_client_that_the_table_does_not_name_gets_no_prefix_and_no_entry() {
    let _row = aero_elements::covers(&["E2 neg"]);
    for u in BOTH {
        let net = Net::new();
        let server = start_server(&net.at("s1", u, 11), u, 11, &net.file("t.yaml", &table(40)));
        let (a, b) = (net.at("a", u, 1), net.at("b", u, 2));
        let (stranger, known) =
            (Tester::at(&a, &u.socket(1, 8060)), Tester::at(&b, &u.socket(2, 8060)));
        let duid = known.bind(server, 2);
        let offer = stranger.ask(server, &stranger.message(Kind::Solicit, 99));
        assert_eq!(offer.kind, Kind::Advertise);
        assert_eq!((prefixes(&offer), status(&offer)), (vec![], Some(StatusCode::NoPrefixAvail)));
        let reply = stranger.ask(server, &stranger.to_server(Kind::Request, 99, &duid));
        assert_eq!((prefixes(&reply), status(&reply)), (vec![], Some(StatusCode::NoPrefixAvail)));
        assert!(stranger.solicit_neighbor(server, 99, SERVER_ANYCAST).is_none());
        stranger.send(server, &data(inner(99), inner(2), 64, "from a stranger"));
        assert!(!known.hears("from a stranger"));
        known.send(server, &data(inner(2), inner(99), 64, "to a stranger"));
        assert!(!stranger.hears("to a stranger"));
    }
}

#[test]
fn a_row_that_is_written_to_the_table_is_served_and_one_that_is_taken_out_is_not() {
    let _row = aero_elements::covers(&["E2"]);
    let net = Net::new();
    let u = Underlay::V4;
    let file = net.file("table.yaml", &table(40));
    let hosts = [net.at("s1", u, 11), net.at("s2", u, 12)];
    let servers = [start_server(&hosts[0], u, 11, &file), start_server(&hosts[1], u, 12, &file)];
    let (a, b) = (net.at("a", u, 1), net.at("b", u, 2));
    let (t, other) = (Tester::at(&a, "192.0.2.1:8060"), Tester::at(&b, "192.0.2.2:8060"));
    let delegated = |server| !prefixes(&t.ask(server, &t.message(Kind::Solicit, 7))).is_empty();
    for server in servers {
        assert!(!delegated(server));
        other.bind(server, 2);
    }
    std::fs::write(&file, table(40) + &row(7)).unwrap();
    for server in servers {
        // "Within the advertised time": the file is looked at once a second.
        await_that("the new row is served", Duration::from_secs(5), || delegated(server));
        t.bind(server, 7);
    }
    // What cannot be used changes nothing, and says where and why.
    std::fs::write(&file, table(40) + &row(7) + &row(7)).unwrap();
    for host in &hosts {
        await_that("the mistake is named", SOON, || {
            host.log(&host.name).contains("line 12: this client is at line 11 already")
        });
    }
    other.send(servers[0], &data(inner(2), inner(7), 64, "still there"));
    assert_eq!(t.next_text(), "still there");
    std::fs::write(&file, table(40)).unwrap();
    hosts[1].signal("s2", nix::sys::signal::Signal::SIGHUP);
    for server in servers {
        await_that("the row is gone", Duration::from_secs(5), || !delegated(server));
        other.send(server, &data(inner(2), inner(7), 64, "gone"));
        assert!(!t.hears("gone"));
    }
    // The rows that stayed have kept their leases through all of it.
    for server in servers {
        assert!(other.solicit_neighbor(server, 2, SERVER_ANYCAST).is_some());
    }
}

#[test]
fn a_lease_ends_on_time_unless_it_is_renewed_and_a_late_renew_gets_no_binding() {
    let _row = aero_elements::covers(&["E7"]);
    let net = Net::new();
    let u = Underlay::V4;
    let lease = 6;
    let server = start_server(&net.at("s1", u, 11), u, 11, &net.file("t.yaml", &table(lease)));
    let (a, b) = (net.at("a", u, 1), net.at("b", u, 2));
    let (t, other) = (Tester::at(&a, "192.0.2.1:8060"), Tester::at(&b, "192.0.2.2:8060"));
    let start = Instant::now();
    let after = |seconds: f64| {
        let at = start + Duration::from_secs_f64(seconds);
        std::thread::sleep(at.saturating_duration_since(Instant::now()));
    };
    let duid = t.bind(server, 1);
    let other_duid = other.bind(server, 2);
    let renew = |t: &Tester, n, duid| {
        t.ask_from(aero_address(acp(n)), server, &t.to_server(Kind::Renew, n, duid)).2
    };
    after(3.0);
    assert_eq!(prefixes(&renew(&other, 2, &other_duid)), [acp(2)]);
    other.send(server, &data(inner(2), inner(1), 64, "in time"));
    assert!(t.hears("in time"));
    after(7.0);
    // The one is over; the other was renewed and still sends, to nobody.
    other.send(server, &data(inner(2), inner(1), 64, "too late"));
    assert!(!t.hears("too late"));
    assert!(other.solicit_neighbor(server, 2, SERVER_ANYCAST).is_some());
    let late = renew(&t, 1, &duid);
    assert_eq!((prefixes(&late), status(&late)), (vec![], Some(StatusCode::NoBinding)));
}

#[test]
fn data_of_a_prefix_is_forwarded_from_the_reply_to_the_release_and_not_else() {
    let _row = aero_elements::covers(&["C4", "J4"]);
    for u in BOTH {
        let net = Net::new();
        let server = start_server(&net.at("s1", u, 11), u, 11, &net.file("t.yaml", &table(40)));
        let (a, b) = (net.at("a", u, 1), net.at("b", u, 2));
        let (t, other) = (Tester::at(&a, &u.socket(1, 8060)), Tester::at(&b, &u.socket(2, 8060)));
        other.bind(server, 2);
        t.send(server, &data(inner(1), inner(2), 64, "before"));
        let duid = t.bind(server, 1);
        t.send(server, &data(inner(1), inner(2), 64, "after"));
        assert_eq!(other.next_text(), "after");
        t.send(server, &data(inner(3), inner(2), 64, "of another"));
        t.send(server, &data(inner(1), inner(2), 64, "own"));
        assert_eq!(other.next_text(), "own");
        let release = t.to_server(Kind::Release, 1, &duid);
        let (_, _, reply) = t.ask_from(aero_address(acp(1)), server, &release);
        assert_eq!(reply.status.map(|s| s.code), Some(StatusCode::Success));
        t.send(server, &data(inner(1), inner(2), 64, "released"));
        assert!(!other.hears("released"));
    }
}

#[test]
fn right_after_the_reply_packets_go_to_the_observed_address_and_port() {
    let _row = aero_elements::covers(&["E6", "G1b", "G2", "H1"]);
    for u in BOTH {
        let net = Net::new();
        let server = start_server(&net.at("s1", u, 11), u, 11, &net.file("t.yaml", &table(40)));
        let (a, b) = (net.at("a", u, 1), net.at("b", u, 2));
        let (t, at_8060) =
            (Tester::at(&a, &u.socket(1, 40_000)), Tester::at(&a, &u.socket(1, 8060)));
        let other = Tester::at(&b, &u.socket(2, 8060));
        other.bind(server, 2);
        // What a Client says of its own address does not count.
        let mut m = t.message(Kind::Solicit, 1);
        m.rapid_commit = true;
        let address = l2(&u.socket(2, 8060));
        m.aero.push(AeroOption::LinkReply { link_id: 0, address, asps: vec![] });
        assert_eq!(prefixes(&t.ask(server, &m)), [acp(1)]);
        other.send(server, &data(inner(2), inner(1), 64, "to the port it used"));
        assert_eq!(t.next_text(), "to the port it used");
        other.send(server, &data(inner(2), inner(1), 64, "once more"));
        assert!(!at_8060.hears("once more"));
        assert!(!other.hears("once more"));
    }
}

#[test]
fn a_rebind_registers_a_new_address_and_the_next_packet_goes_there() {
    let _row = aero_elements::covers(&["H2"]);
    for u in BOTH {
        let net = Net::new();
        let server = start_server(&net.at("s1", u, 11), u, 11, &net.file("t.yaml", &table(40)));
        let b = net.at("b", u, 2);
        let other = Tester::at(&b, &u.socket(2, 8060));
        let a = net.host("a", &[&u.with_length(1), &u.with_length(33), &u.with_length(65)]);
        let at = [1, 33, 65].map(|n| Tester::at(&a, &u.socket(n, 8060)));
        other.bind(server, 2);
        at[0].bind(server, 1);
        let rebind = |t: &Tester| {
            let mut m = t.message(Kind::Rebind, 1);
            m.ia_pd[0].prefixes = t.to_server(Kind::Renew, 1, &duid(1)).ia_pd[0].prefixes.clone();
            let (_, _, reply) = t.ask_from(aero_address(acp(1)), server, &m);
            assert_eq!(prefixes(&reply), [acp(1)]);
        };
        rebind(&at[1]);
        other.send(server, &data(inner(2), inner(1), 64, "at 33"));
        assert_eq!(at[1].next_text(), "at 33");
        for t in [&at[2], &at[1], &at[2]] {
            rebind(t);
        }
        other.send(server, &data(inner(2), inner(1), 64, "at 65"));
        assert_eq!(at[2].next_text(), "at 65");
        assert!(
            !at[0].hears("at 33") && !at[1].hears("at 65"),
            "nothing goes to an address before"
        );
        at[2].send(server, &data(inner(1), inner(2), 64, "from 65"));
        assert_eq!(other.next_text(), "from 65");
    }
}

/// A table in which Clients may register from their own addresses only.
fn strict_table(u: Underlay) -> String {
    let row = |n: u16, addresses: &[u16]| {
        let list: Vec<String> = addresses.iter().map(|a| format!("\"{}\"", u.ip(*a))).collect();
        format!(
            "- {{duid: {}, prefixes: [\"{}\"], addresses: [{}]}}\n",
            duid_text(n),
            acp(n),
            list.join(", ")
        )
    };
    format!("servicePrefixes: [\"2001:db8::/32\"]\nclients:\n{}{}", row(1, &[1, 33]), row(2, &[2]))
}

#[test]
fn a_rebind_without_right_or_without_a_binding_changes_nothing() {
    let _row = aero_elements::covers(&["G3"]);
    for u in BOTH {
        let net = Net::new();
        let server =
            start_server(&net.at("s1", u, 11), u, 11, &net.file("t.yaml", &strict_table(u)));
        let (a, b, x) = (net.at("a", u, 1), net.at("b", u, 2), net.at("x", u, 99));
        let (t, other, thief) = (
            Tester::at(&a, &u.socket(1, 8060)),
            Tester::at(&b, &u.socket(2, 8060)),
            Tester::at(&x, &u.socket(99, 8060)),
        );
        let rebind = t.message(Kind::Rebind, 1);
        let unbound = t.ask(server, &rebind);
        assert_eq!((prefixes(&unbound), status(&unbound)), (vec![], Some(StatusCode::NoBinding)));
        t.bind(server, 1);
        other.bind(server, 2);
        let stolen =
            thief.ask_from(aero_address(acp(1)), server, &thief.message(Kind::Rebind, 1)).2;
        assert_eq!((prefixes(&stolen), status(&stolen)), (vec![], Some(StatusCode::NoBinding)));
        other.send(server, &data(inner(2), inner(1), 64, "to the owner"));
        assert_eq!(t.next_text(), "to the owner");
        assert!(!thief.hears("to the owner"));
    }
}

#[test]
fn a_client_may_claim_its_own_duid_only() {
    let _row = aero_elements::covers(&["I3"]);
    for u in BOTH {
        let net = Net::new();
        let host = net.at("s1", u, 11);
        let server = start_server(&host, u, 11, &net.file("t.yaml", &strict_table(u)));
        let b = net.at("b", u, 2);
        // It is known, by its address, as Client 2.
        let t = Tester::at(&b, &u.socket(2, 8060));
        for rapid in [true, false] {
            let mut m = t.message(Kind::Solicit, 1);
            m.rapid_commit = rapid;
            let answer = t.ask(server, &m);
            assert_eq!(status(&answer), Some(StatusCode::NoPrefixAvail));
        }
        await_that("the refusal is reported", SOON, || host.log("s1").contains("refused: "));
        t.bind(server, 2);
    }
}

#[test]
fn a_server_keeps_an_entry_for_its_clients_and_answers_at_the_anycast_address_from_its_own() {
    let _row = aero_elements::covers(&["G1", "H4"]);
    for u in BOTH {
        let net = Net::new();
        let server = start_server(&net.at("s1", u, 11), u, 11, &net.file("t.yaml", &table(40)));
        let (a, b) = (net.at("a", u, 1), net.at("b", u, 2));
        let (t, stranger) =
            (Tester::at(&a, &u.socket(1, 8060)), Tester::at(&b, &u.socket(2, 8060)));
        let mut m = t.message(Kind::Solicit, 1);
        m.rapid_commit = true;
        let (_, own, _) = t.ask_from(BOOTSTRAP_ADDRESS, server, &m);
        if u == Underlay::V4 {
            assert_eq!(own, server_id(11));
        }
        for target in [own, SERVER_ANYCAST] {
            let answer = t.solicit_neighbor(server, 1, target).expect("an answer");
            assert_eq!(answer.source, own, "never from fe80::");
            assert!(stranger.solicit_neighbor(server, 2, target).is_none(), "no lease, no answer");
            assert!(stranger.solicit_neighbor(server, 1, target).is_none(), "not its address");
        }
    }
}

#[test]
fn nd_that_breaks_a_rule_and_first_edition_messages_get_no_sign_of_life() {
    use aero_protocol::wire::nd::{Nd, NdMessage, NdOption};
    for u in BOTH {
        let net = Net::new();
        let server = start_server(&net.at("s1", u, 11), u, 11, &net.file("t.yaml", &table(40)));
        let a = net.at("a", u, 1);
        let t = Tester::at(&a, &u.socket(1, 8060));
        t.bind(server, 1);
        let good = Nd {
            source: aero_address(acp(1)),
            destination: SERVER_ANYCAST,
            message: NdMessage::Solicitation { target: SERVER_ANYCAST },
            options: vec![NdOption::Nonce(vec![9; 6])],
        };
        let bytes = good.emit().unwrap();
        let changed = |at: usize, to: u8| {
            let mut p = bytes.clone();
            p[at] = to;
            p
        };
        let emit = |nd: Nd| nd.emit().unwrap();
        // The body of the option of length 0, with a right checksum.
        let mut no_length = bytes[44..].to_vec();
        no_length[21] = 0;
        let head: [u8; 4] = no_length[..4].try_into().unwrap();
        let zero = ip::icmpv6(good.source, good.destination, (135, 0, head), &no_length[4..]);
        let bad = [
            changed(7, 254),
            changed(42, bytes[42] ^ 1),
            zero.unwrap(),
            emit(Nd { source: inner(1), ..good.clone() }),
            emit(Nd { destination: "ff02::1".parse().unwrap(), ..good.clone() }),
            ip::icmpv6(good.source, good.destination, (135, 1, [0; 4]), &bytes[48..]).unwrap(),
            // A Predirect of RFC 6706, and a shim.
            [&[0u8, 0, 0, 0], &bytes[4..]].concat(),
            vec![0x00],
            vec![0x01, 58],
            bytes[..60].to_vec(),
        ];
        for (n, packet) in bad.iter().enumerate() {
            t.send(server, packet);
            assert!(t.receive(super::tester::QUIET / 4).is_none(), "case {n} was answered");
        }
        t.send(server, &bytes);
        let answer = t.await_packet("advertisement", |_, p| super::tester::nd_of(p));
        assert_eq!(answer.nonce(), Some(&[9u8; 6][..]));
    }
}

#[test]
fn a_reply_lists_the_service_prefixes_to_whoever_asks_for_them() {
    let _row = aero_elements::covers(&["E8"]);
    let net = Net::new();
    let u = Underlay::V4;
    let two = table(40).replace("[\"2001:db8::/32\"]", "[\"2001:db8::/32\", \"fd00:1::/48\"]");
    let server = start_server(&net.at("s1", u, 11), u, 11, &net.file("t.yaml", &two));
    let a = net.at("a", u, 1);
    let t = Tester::at(&a, "192.0.2.1:8060");
    let mut m = t.message(Kind::Solicit, 1);
    m.rapid_commit = true;
    let listed = |m: &Message| {
        m.aero.iter().find_map(|o| match o {
            AeroOption::LinkReply { asps, address, .. } => Some((asps.clone(), *address)),
            _ => None,
        })
    };
    let asps = vec!["2001:db8::/32".parse().unwrap(), "fd00:1::/48".parse().unwrap()];
    assert_eq!(listed(&t.ask(server, &m)), Some((asps, l2("192.0.2.1:8060"))));
    let mut silent = t.message(Kind::Solicit, 1);
    silent.requested.clear();
    assert_eq!(listed(&t.ask(server, &silent)), None, "only on request (RFC 8415 21.17)");
}

#[test]
fn a_relay_forward_from_an_unknown_node_is_discarded() {
    let _row = aero_elements::covers(&["T7"]);
    let net = Net::new();
    let u = Underlay::V4;
    let server = start_server(&net.at("s1", u, 11), u, 11, &net.file("t.yaml", &table(40)));
    let a = net.at("a", u, 1);
    let t = Tester::at(&a, "192.0.2.1:8060");
    let solicit = t.message(Kind::Solicit, 1).emit().unwrap();
    // RFC 8415 section 9: type 12, hop count, link and peer address, option 9 with the message.
    let mut forward = vec![12, 0];
    forward.extend([0; 16]);
    forward.extend(BOOTSTRAP_ADDRESS.octets());
    forward.extend([0, 9]);
    forward.extend(u16::try_from(solicit.len()).unwrap().to_be_bytes());
    forward.extend(solicit);
    for (source, port) in [(BOOTSTRAP_ADDRESS, 547), (server_id(12), 547), (server_id(12), 546)] {
        let to = ("ff02::1:2".parse().unwrap(), 547);
        t.send(server, &ip::udp((source, port), to, &forward).unwrap());
    }
    assert!(t.receive(super::tester::QUIET).is_none());
    t.bind(server, 1);
}

#[test]
fn a_message_with_two_authentication_options_is_discarded_and_an_obsolete_one_proves_nothing() {
    let net = Net::new();
    let u = Underlay::V4;
    let server = start_server(&net.at("s1", u, 11), u, 11, &net.file("t.yaml", &strict_table(u)));
    let (a, b) = (net.at("a", u, 1), net.at("b", u, 2));
    let (t, thief) = (Tester::at(&a, "192.0.2.1:8060"), Tester::at(&b, "192.0.2.2:8060"));
    // RFC 3315 section 21: delayed authentication (2), HMAC-MD5 (1), RDM 0, counter, no key data.
    let auth = [&[0u8, 11, 0, 11, 2, 1, 0], &[0; 8][..]].concat();
    let with = |t: &Tester, times: usize| {
        let mut m = t.message(Kind::Solicit, 1);
        m.rapid_commit = true;
        let bytes = [m.emit().unwrap(), auth.repeat(times)].concat();
        let to = ("ff02::1:2".parse().unwrap(), 547);
        (m.transaction, ip::udp((BOOTSTRAP_ADDRESS, 546), to, &bytes).unwrap())
    };
    let answer = |t: &Tester, packet: &[u8]| -> Option<Message> {
        t.send(server, packet);
        dhcp_of(&t.receive(super::tester::QUIET)?.1).map(|(_, m)| m)
    };
    assert!(answer(&t, &with(&t, 2).1).is_none());
    let (_, one) = with(&thief, 1);
    let refused = answer(&thief, &one).expect("a refusal");
    assert_eq!(status(&refused), Some(StatusCode::NoPrefixAvail));
    assert_eq!(prefixes(&answer(&t, &with(&t, 1).1).expect("an answer")), [acp(1)]);
}

#[test]
fn inner_hop_limits_pass_a_server_untouched_and_nothing_goes_back_where_it_came_from() {
    for u in BOTH {
        let net = Net::new();
        let server = start_server(&net.at("s1", u, 11), u, 11, &net.file("t.yaml", &table(40)));
        let (a, b) = (net.at("a", u, 1), net.at("b", u, 2));
        let (t, other) = (Tester::at(&a, &u.socket(1, 8060)), Tester::at(&b, &u.socket(2, 8060)));
        t.bind(server, 1);
        other.bind(server, 2);
        for hop_limit in [1, 64, 255] {
            let packet = data(inner(1), inner(2), hop_limit, "as it was");
            t.send(server, &packet);
            let got = other.await_packet("data", |_, p| Some(p.to_vec()));
            assert_eq!(got, packet, "not a byte is changed");
        }
        t.send(server, &data(inner(1), inner(1), 64, "to itself"));
        assert!(!t.hears("to itself"));
    }
}

#[test]
fn a_solicit_with_two_ia_pds_or_addresses_gets_one_prefix_and_says_why_not_more() {
    let net = Net::new();
    let u = Underlay::V4;
    let server: LinkLayerAddress =
        start_server(&net.at("s1", u, 11), u, 11, &net.file("t.yaml", &table(40)));
    let a = net.at("a", u, 1);
    let t = Tester::at(&a, "192.0.2.1:8060");
    let mut m = t.message(Kind::Solicit, 1);
    m.ia_pd.push(IaPd { id: 2, ..IaPd::default() });
    t.send(server, &client_packet(BOOTSTRAP_ADDRESS, &m));
    let answer = t.await_packet("advertise", |_, p| dhcp_of(p)).1;
    let all: Vec<(u32, usize)> = answer.ia_pd.iter().map(|ia| (ia.id, ia.prefixes.len())).collect();
    assert_eq!(all, [(1, 1), (2, 0)]);
    assert_eq!(answer.ia_pd[1].status.as_ref().map(|s| s.code), Some(StatusCode::NoPrefixAvail));
}
