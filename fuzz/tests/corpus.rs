//! A short attack in every test run; `make fuzz` is the long one.

use aero_fuzz::{Target, corpus, parsers, run};

#[test]
fn every_packet_of_the_corpus_is_read_without_harm() {
    let packets = corpus::read(&corpus::folder()).unwrap();
    assert!(packets.len() >= 16, "{} packets", packets.len());
    for packet in &packets {
        for end in 0..=packet.len() {
            parsers::check(&packet[..end]);
        }
    }
}

#[test]
fn no_bytes_and_no_history_harm_a_node_or_make_it_send_strangers_more_than_they_sent() {
    let _row = aero_elements::covers(&["W7"]);
    let packets = corpus::read(&corpus::folder()).unwrap();
    for seed in 0..300 {
        for target in Target::ALL {
            run(target, seed, &packets);
        }
    }
}
