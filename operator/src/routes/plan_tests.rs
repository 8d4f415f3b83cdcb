//! Tests of the plan.

use aero_crds::ExternalPeer;

use super::check::FIRST_ASN;
use super::plan::{Observed, Plan, RelayRules, ServerRules, Speaker, plan};

fn relay(asn: u32, peers: &[(&str, i64)]) -> RelayRules {
    let peer = |(a, n): &(&str, i64)| ExternalPeer { address: (*a).into(), asn: *n };
    RelayRules { asn, peers: peers.iter().map(peer).collect() }
}

fn server(first: Option<u32>, relays: &[&str]) -> ServerRules {
    let relays = relays.iter().map(|r| (*r).to_string()).collect();
    ServerRules { first, count: 2, relays }
}

fn speaker(relay: bool, owner: &str, address: &str) -> Speaker {
    let address = address.parse().unwrap();
    Speaker { address, ending: false, relay, owner: owner.into(), port: 8060 }
}

/// Two Servers and two Relays on four nodes.
fn four() -> Observed {
    Observed {
        asps: vec!["2001:db8:a::/48".parse().unwrap()],
        relays: vec![("r".into(), relay(FIRST_ASN, &[("192.0.2.99", 65_000)]))],
        servers: vec![("s".into(), server(None, &["r"]))],
        speakers: vec![
            speaker(false, "s", "192.0.2.11"),
            speaker(false, "s", "192.0.2.12"),
            speaker(true, "r", "192.0.2.13"),
            speaker(true, "r", "192.0.2.14"),
        ],
        nodes: (11..=14).map(|n| format!("192.0.2.{n}").parse().unwrap()).collect(),
        ..Observed::default()
    }
}

/// The same, later.
fn after(plan: &Plan, seen: &Observed) -> Observed {
    Observed { in_force: plan.in_force.clone(), ..seen.clone() }
}

#[test]
fn the_file_names_all_that_run_each_server_with_a_number_of_its_own() {
    let seen = four();
    let made = plan(&seen);
    assert!(made.relays.is_empty() && made.servers.is_empty());
    let expected = "# Written by the operator; changes are lost.\n\
        servicePrefixes: [\"2001:db8:a::/48\"]\n\
        servers:\n\
        - {address: \"192.0.2.11:8060\", asn: 4200000001}\n\
        - {address: \"192.0.2.12:8060\", asn: 4200000002}\n\
        relays:\n\
        - {address: \"192.0.2.13:8060\", asn: 4200000000}\n\
        - {address: \"192.0.2.14:8060\", asn: 4200000000}\n\
        externalPeers:\n\
        - {address: \"192.0.2.99\", asn: 65000}\n";
    assert_eq!(made.text, expected);
    assert_eq!(plan(&after(&made, &seen)), made, "nothing changes by itself");
}

#[test]
fn a_server_keeps_its_number_while_others_come_and_go_and_when_it_comes_back() {
    let mut seen = four();
    let first = plan(&seen);
    seen.speakers.remove(0);
    let without = plan(&after(&first, &seen));
    assert!(without.text.contains("192.0.2.12:8060\", asn: 4200000002"), "{}", without.text);
    assert!(!without.text.contains("192.0.2.11"));
    let mut moved = seen.clone();
    moved.nodes.insert("192.0.2.15".parse().unwrap());
    moved.speakers.push(speaker(false, "s", "192.0.2.15"));
    let other = plan(&after(&without, &moved));
    assert!(other.text.contains("192.0.2.15:8060\", asn: 4200000003"), "{}", other.text);
    let back = plan(&after(&without, &four()));
    assert_eq!(back.text, first.text);
    // A node that is gone for good frees its number.
    let mut gone = moved;
    gone.nodes.remove(&"192.0.2.11".parse().unwrap());
    let freed = plan(&after(&without, &gone));
    assert!(!freed.in_force.numbers.contains_key(&"192.0.2.11".parse().unwrap()));
}

#[test]
fn numbers_are_taken_from_the_range_that_was_asked_for() {
    let mut seen = four();
    let before = plan(&seen);
    seen.servers[0].1.first = Some(64_600);
    let made = plan(&after(&before, &seen));
    assert!(made.text.contains("asn: 64600") && made.text.contains("asn: 64601"), "{}", made.text);
    // Old ones end while new ones are there: more than the range has.
    for speaker in &mut seen.speakers {
        speaker.ending = !speaker.relay;
    }
    seen.speakers.push(speaker(false, "s", "192.0.2.15"));
    let during = plan(&after(&made, &seen));
    assert!(during.text.contains("192.0.2.15:8060\", asn: 64602"), "{}", during.text);
}

#[test]
fn a_server_and_a_relay_at_one_address_are_never_both_told_of() {
    let mut seen = four();
    seen.speakers[3].ending = true;
    seen.speakers.push(speaker(false, "s", "192.0.2.14"));
    let text = plan(&seen).text;
    assert_eq!(text.matches("192.0.2.14:").count(), 1, "{text}");
    assert!(text.contains("192.0.2.14:8060\", asn: 4200000003"), "the one that stays: {text}");
}

#[test]
fn what_is_bad_is_refused_and_what_was_good_stays_in_force() {
    let good = plan(&four());
    type Change = fn(&mut Observed);
    let relays: [(&str, &str, Change); 5] = [
        ("AsnNotPrivate", "AS 3320", |s| s.relays[0].1.asn = 3320),
        ("PeerRefused", "own AS 4200000000", |s| s.relays[0].1.peers[0].asn = 4_200_000_000),
        ("PeerRefused", "family", |s| s.relays[0].1.peers[0].address = "2001:db8::1".into()),
        ("PeerRefused", "twice", |s| {
            let again = s.relays[0].1.peers[0].clone();
            s.relays[0].1.peers.push(again);
        }),
        ("PeerRefused", "no address", |s| s.relays[0].1.peers[0].address = "x\", asn: 1}".into()),
    ];
    for (reason, word, change) in relays {
        let mut seen = after(&good, &four());
        change(&mut seen);
        let made = plan(&seen);
        let refusal = &made.relays["r"];
        assert_eq!(refusal.reason, reason, "{refusal:?}");
        assert!(refusal.message.contains(word), "{refusal:?}");
        assert_eq!(made.text, good.text, "{reason}");
    }
    let servers: [(&str, &str, Change); 3] = [
        ("RelayNotFound", "\"x\"", |s| s.servers[0].1.relays.push("x".into())),
        ("AsnConflict", "AeroRelay \"r\"", |s| s.servers[0].1.first = Some(FIRST_ASN)),
        ("AsnNotPrivate", "65534", |s| s.servers[0].1.first = Some(65_534)),
    ];
    for (reason, word, change) in servers {
        let mut seen = after(&good, &four());
        change(&mut seen);
        let made = plan(&seen);
        let refusal = &made.servers["s"];
        assert_eq!(refusal.reason, reason, "{refusal:?}");
        assert!(refusal.message.contains(word), "{refusal:?}");
        assert_eq!(made.text, good.text, "{reason}");
    }
}

#[test]
fn of_two_that_want_the_same_numbers_the_one_in_force_has_them() {
    let mut seen = four();
    seen.servers[0].1.first = Some(64_600);
    let good = plan(&seen);
    // Made later, though listed before: what is in force stays so.
    seen.servers.insert(0, ("a".into(), server(Some(64_601), &["r"])));
    seen.speakers.push(speaker(false, "a", "192.0.2.15"));
    let made = plan(&after(&good, &seen));
    assert_eq!(made.servers["a"].reason, "AsnConflict");
    assert!(made.servers["a"].message.contains("AeroServer \"s\""));
    assert_eq!(made.text, good.text, "a refused one takes no part");
    // With the other gone it can have them; one that is remembered for an old Server comes last.
    seen.servers.remove(1);
    let alone = plan(&after(&made, &seen));
    assert!(alone.servers.is_empty());
    assert!(alone.text.contains("192.0.2.15:8060\", asn: 64602"), "{}", alone.text);
}
