//! More Servers than a Client uses: others take the place of those that die or are far.

use super::*;
use crate::net::{await_address, start_client};
use crate::numbered::{Numbered, Outcome};
use crate::slow::SlowWay;

/// Clients 1 and 2, each told of all Servers.
fn clients<'a>(link: &Link<'a>) -> [Host<'a>; 2] {
    let all: Vec<LinkLayerAddress> = (0..link.servers.len()).map(|n| link.server(n)).collect();
    let hosts = [1, 2].map(|n| link.net.at(&format!("c{n}"), link.u, n));
    for (n, host) in (1..).zip(&hosts) {
        start_client(host, n, &all, &[]);
        await_address(host, n);
    }
    for relay in &link.relays {
        await_that("the Relay knows all", CONVERGED, || routes(relay) == acps(1..=2));
    }
    hosts
}

/// What a Client says of its Servers, in their order.
fn seen(host: &Host<'_>) -> Vec<serde_json::Value> {
    let text = host.run("curl", &["-s", "--max-time", "5", "http://127.0.0.1:9062/status"]);
    let status: serde_json::Value = serde_json::from_str(&text).unwrap();
    status["servers"].as_array().unwrap().clone()
}

/// The Servers at which it has a lease and that it uses, by number.
fn used(host: &Host<'_>) -> Vec<usize> {
    let servers = seen(host);
    (0..servers.len())
        .filter(|n| servers[*n]["lease"] == true && servers[*n]["used"] == true)
        .collect()
}

fn default(host: &Host<'_>) -> usize {
    seen(host).iter().position(|s| s["default"] == true).unwrap()
}

#[test]
fn when_one_of_two_servers_is_killed_a_third_takes_its_place() {
    let net = Net::new();
    let link = Link::start(&net, Underlay::V4, 3, 1, "");
    let hosts = clients(&link);
    let both = |host: &Host<'_>| used(host).len() == 2;
    hosts.iter().for_each(|h| await_that("two of three Servers are used", SOON, || both(h)));
    let (before, dies) = (used(&hosts[0]), default(&hosts[0]));
    assert!(before.contains(&dies));
    let stream = Stream::start((&hosts[0], addr(1)), (&hosts[1], addr(2)));
    let at = Instant::now();
    link.servers[dies].kill(&format!("s{}", dies + 1));
    let third = 3 - before.iter().sum::<usize>();
    await_that("the third is used", SOON, || {
        let now = used(&hosts[0]);
        now.len() == 2 && now.contains(&third) && !now.contains(&dies)
    });
    let took = at.elapsed();
    await_that("data goes by one that lives", SOON, || default(&hosts[0]) != dies);
    stream.await_flow(Instant::now(), SOON);
    let silence = stream.longest_gap(at);
    println!(
        "kill -9 of one of two Servers in use, a third is there: two again after {took:?}, \
         {silence:?} of silence from Client to Client"
    );
    assert!(took < Duration::from_secs(8), "{took:?}");
    // The other Client may have been reached by it, until BGP has noticed.
    assert!(silence < Duration::from_secs(8), "{silence:?}");
    // It comes back, no nearer than the others: nobody goes to it.
    link.start_server(&link.servers[dies], 11 + u16::try_from(dies).unwrap());
    await_that("it answers", SOON, || seen(&hosts[0])[dies]["state"] == "answers");
    let now = used(&hosts[0]);
    assert!(now.len() == 2 && now.contains(&third) && !now.contains(&dies), "{now:?}");
}

#[test]
fn the_near_servers_are_used_and_a_client_moves_by_itself_when_that_changes() {
    let net = Net::new();
    let link = Link::prepare(&net, Underlay::V4, 3, 1, "");
    let (near, far_away) = (Duration::from_millis(1), Duration::from_millis(60));
    let ways: Vec<SlowWay> = link.servers.iter().map(|s| SlowWay::of(s, far_away)).collect();
    ways[2].takes(near);
    link.start_all_but_fabric();
    let hosts = clients(&link);
    for host in &hosts {
        await_that("two Servers are used", SOON, || used(host).len() == 2);
        assert!(used(host).contains(&2), "the near one is one of them");
        await_that("data goes by the near one", Duration::from_secs(40), || default(host) == 2);
    }
    let spare = (0..2).find(|n| !used(&hosts[0]).contains(n)).unwrap();
    let far = 1 - spare;
    println!(
        "round trips: {:?}",
        seen(&hosts[0]).iter().map(|s| &s["roundTripUs"]).collect::<Vec<_>>()
    );
    let there = Numbered::start((&hosts[0], addr(1)), (&hosts[1], addr(2)), EVERY);
    let back = Numbered::start((&hosts[1], addr(2)), (&hosts[0], addr(1)), EVERY);
    let at = Instant::now();
    ways[spare].takes(near);
    await_that("the spare one is used", Duration::from_secs(90), || {
        let now = used(&hosts[0]);
        now.contains(&2) && now.contains(&spare) && !now.contains(&far)
    });
    let used_after = at.elapsed();
    // And the one that data goes by becomes far.
    let changed = Instant::now();
    ways[2].takes(far_away);
    await_that("data goes by the near one", Duration::from_secs(90), || {
        hosts.iter().all(|host| default(host) == spare || used(host).iter().all(|n| *n != spare))
            && default(&hosts[0]) == spare
    });
    let (default_after, default_at) = (changed.elapsed(), at.elapsed());
    // Whatever a move may lose is lost by then.
    std::thread::sleep(Duration::from_secs(4));
    let mut all_lost = Vec::new();
    for (what, stream) in [("there", there), ("back", back)] {
        let Outcome { sent, lost, .. } = stream.end(at);
        println!(
            "{what}: used {used_after:?} after it came near, default {default_after:?} after the \
             other went far; {} of {sent} packets lost {lost:?}",
            lost.len()
        );
        all_lost.extend(lost);
    }
    // One in thousands is lost where nothing moves at all, too; a move loses none.
    assert!(all_lost.len() <= 3, "{all_lost:?}");
    let moves = [used_after, default_at];
    all_lost.retain(|at| moves.iter().any(|moved| at.abs_diff(*moved) < Duration::from_secs(3)));
    assert!(all_lost.is_empty(), "{all_lost:?} lost by moves at {moves:?}");
    let left = format!("server={} confirmed=true", link.server(far));
    assert!(hosts[0].log("c1").contains(&left), "the far one was told");
}
