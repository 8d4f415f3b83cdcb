//! The shared table is away: no news of it reaches any Server, as while an API server and its etcd
//! are down. On the rig in memory and in virtual time.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

#[path = "common/topology.rs"]
mod topology;

use std::net::IpAddr;
use std::time::Duration;

use aero_elements::faults::{Level, held};
use aero_protocol::address::LinkLayerAddress;
use aero_protocol::server;
use topology::{Rig, SECOND, host, infra_at, l2, node_at};

const SERVERS: [u8; 2] = [11, 12];
const WIRELESS: u8 = 2;
/// Between two looks.
const STEP: Duration = Duration::from_millis(50);

fn wireless() -> LinkLayerAddress {
    l2("192.0.2.121:8061")
}

/// Whether a packet of a client that is on a node gets to another client there: at one of these
/// addresses, from an address that is alive.
fn arrives(rig: &Rig, (node, source): (u8, IpAddr), to: IpAddr, at: &[LinkLayerAddress]) -> bool {
    let place = &rig.places[&node_at(node)];
    let (hops, end) = rig.way(node, source, to);
    let there = hops.last().is_some_and(|h| at.contains(h) && !rig.is_dead(*h));
    !rig.is_dead(place.links[&place.used]) && end.is_ok() && there
}

/// The longest time for which something did not hold.
#[derive(Default)]
struct Gap {
    present: Duration,
    longest: Duration,
}

impl Gap {
    fn look(&mut self, holds: bool) {
        self.present = if holds { Duration::ZERO } else { self.present + STEP };
        self.longest = self.longest.max(self.present);
    }
}

#[test]
fn while_the_table_is_away_for_a_quarter_of_an_hour_delegated_clients_talk_and_move() {
    const AWAY: u32 = 15 * 60;
    let mut case = held(&["F12"], Level::Model);
    let mut rig = Rig::standard();
    // Client 1 is on a node with two links, client 2 on another; each at a Server of its own.
    rig.map(1, 1, &[node_at(21).ip, wireless().ip]);
    rig.add_link(21, WIRELESS, 2, wireless());
    rig.run(SECOND);
    let (since, gone) = (rig.sent.len(), rig.now);
    let places = [node_at(21), wireless()];
    let (mut gap, mut links, mut servers) = (Gap::default(), 0, 0);
    let (mut default, mut step) = (SERVERS[0], 0u32);
    while rig.now < gone + SECOND * AWAY {
        match step % 1200 {
            // The link that is used dies; the other one takes over by a Rebind.
            200 => {
                rig.dead.insert(node_at(21));
                rig.with_node(21, |node, now| node.link_down(0, now));
                links += 1;
            }
            500 => {
                rig.dead.remove(&node_at(21));
                rig.with_node(21, |node, now| node.link_up(0, now));
                links += 1;
            }
            // Its Server gives it to the other one.
            800 => {
                let next = SERVERS[usize::from(default == SERVERS[0])];
                rig.with_node(21, |node, now| {
                    node.add_server(infra_at(next), now);
                    node.leave_server(infra_at(default), now);
                });
                default = next;
                servers += 1;
            }
            _ => {}
        }
        // Both talk, so both look for a direct path whenever there is none.
        rig.talk(21, 1, 2);
        rig.talk(22, 2, 1);
        rig.run(STEP);
        let there = arrives(&rig, (21, host(1)), host(2), &[node_at(22)]);
        let back = arrives(&rig, (22, host(2)), host(1), &places);
        gap.look(there && back);
        step += 1;
    }
    assert!(gap.longest <= SECOND, "without a way for {:?}", gap.longest);
    assert_eq!(rig.node(21).default_server(), Some(infra_at(default)));
    let count = |name: &str| rig.since(since).iter().filter(|s| s.name() == name).count();
    let (renews, rebinds) = (count("Renew"), count("Rebind"));
    assert!(renews >= 60 && rebinds >= links, "{renews} Renews, {rebinds} Rebinds");
    for server in SERVERS {
        let events = &rig.places[&infra_at(server)].server_events;
        let refused = |e: &&server::Event| matches!(e, server::Event::Refused { .. });
        assert_eq!(events.iter().find(refused), None);
    }
    // A pod that is to have the prefix next must wait for the table: nobody vouches for it.
    rig.add_node(23, &SERVERS);
    rig.attach(23, 1, 2);
    rig.run(SECOND * 5);
    assert!(rig.bound(23, 1).is_empty());
    assert!(arrives(&rig, (22, host(2)), host(1), &places), "the holder is disturbed");
    rig.map(1, 2, &[node_at(23).ip]);
    let back = rig.now;
    while !arrives(&rig, (22, host(2)), host(1), &[node_at(23)]) {
        rig.run(STEP);
        assert!(rig.now < back + SECOND * 10, "the new holder is not reached");
    }
    case.figure(format!(
        "no table for {AWAY} s: {renews} Renews and {rebinds} Rebinds answered, {links} moves between links and {servers} between Servers, without a way for {} ms at most (looked at every 50 ms); a new holder is refused until the table is back",
        gap.longest.as_millis()
    ));
}
