//! The whole rig: what the Servers and Relays on the way decide, and what no engine answers.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "common/topology.rs"]
mod topology;

use aero_protocol::client;
use aero_protocol::wire::{Class, classify, encapsulation};
use topology::{Rig, SECOND, host, infra_at, l2, node_at};

#[test]
fn paths_are_found_only_while_all_trust_anchors_on_the_way_are_there() {
    let _row = aero_elements::covers(&["R2"]);
    let opened = |rig: &Rig, n: u8| {
        let events = &rig.places[&node_at(n)].node_events;
        events.iter().filter(|e| matches!(e, client::Event::PathOpened { .. })).count()
    };
    let (s1, s2, relay) = (infra_at(11), infra_at(12), infra_at(10));
    for down in [s1, relay, s2] {
        let mut rig = Rig::standard();
        rig.dead.insert(down);
        // The two are not apart: what they would say to each other straight arrives.
        rig.talk(21, 1, 2);
        rig.talk(22, 2, 1);
        rig.run(SECOND * 2);
        assert_eq!((opened(&rig, 21), opened(&rig, 22)), (0, 0), "without {down}");
        rig.dead.clear();
        for _ in 0..20 {
            rig.talk(21, 1, 2);
            rig.talk(22, 2, 1);
            rig.run(SECOND);
        }
        assert!(opened(&rig, 21) > 0 && opened(&rig, 22) > 0, "{down} is back");
    }
    // An exchange that one of them does not see to its end opens nothing.
    for silent in [s1, relay, s2] {
        let mut rig = Rig::standard();
        let since = rig.sent.len();
        rig.lose = Box::new(move |_, s| {
            let redirect = s.packet.get(40..42) == Some(&[137, 0]);
            redirect && s.from == silent
        });
        rig.talk(21, 1, 2);
        rig.run(SECOND / 2);
        let redirects = rig.sent[since..].iter().filter(|s| s.name() == "icmpv6 137").count();
        assert!(redirects >= 4, "the Predirect got there: {redirects}");
        assert_eq!(opened(&rig, 21), 0, "{silent} said nothing");
    }
}

#[test]
fn a_message_of_the_first_edition_is_dropped_in_silence_by_every_engine() {
    // Predirect (P = 1) and Redirect of RFC 6706: type 0, code 0, checksum 0.
    for p in [0x80u8, 0] {
        let mut bytes = vec![0, 0, 0, 0, 0, 64, p, 0];
        bytes.extend(host(1).to_string().bytes());
        bytes.extend([0; 64]);
        assert_eq!(encapsulation::demux(&bytes), Ok(encapsulation::Payload::FirstEdition));
        assert_eq!(classify(&bytes), Class::Other);
        let mut rig = Rig::standard();
        for from in [infra_at(10), infra_at(11), node_at(22), l2("192.0.2.99:8060")] {
            for to in [infra_at(10), infra_at(11), node_at(21)] {
                let since = rig.sent.len();
                rig.inject(from, to, &bytes);
                assert_eq!(rig.sent.len(), since, "{to} answered");
            }
        }
        rig.talk(21, 1, 2);
        rig.run(SECOND);
        assert_eq!(rig.way(21, host(1), host(2)), (vec![node_at(22)], Ok(())), "all goes on");
    }
}
