//! A Forwarding Agent beside a Server: fed by it, announced by it, and missed by nobody.

use std::time::Duration;

use super::net::{
    BOTH, Host, Net, SOON, agent, await_address, await_that, reaches, start_client, try_run,
};
use super::tester::{inner, l2, table};

/// NUD, and what a busy machine adds to it.
const BACK: Duration = Duration::from_secs(8);

/// Packets that a host's program has sent into tunnels.
fn tunneled(host: &Host<'_>, admin: u16) -> u64 {
    let page = host.run("curl", &["-s", "-m", "3", &format!("http://[::1]:{admin}/metrics")]);
    let line = page.lines().find_map(|l| l.strip_prefix("aero_tunneled_packets_total "));
    line.and_then(|n| n.parse().ok()).unwrap_or(0)
}

#[test]
fn data_goes_by_a_forwarding_agent_that_a_server_feeds_and_by_the_server_when_it_dies() {
    let _row = aero_elements::covers(&["P2", "P4", "P5"]);
    for u in BOTH {
        let net = Net::new();
        let (s1, fa) = (net.at("s1", u, 11), net.at("fa", u, 21));
        let (c1, c2) = (net.at("c1", u, 1), net.at("c2", u, 2));
        let (socket, clients) = (net.dir.path().join("feed"), net.file("t.yaml", &table(40)));
        let (socket, clients) = (socket.to_str().unwrap(), clients.to_str().unwrap());
        let at = u.socket(21, 8062);
        let server = ["server", "--host-ips", &u.ip(11), "--table", clients, "--optimize", "false"];
        let feed = ["--feed", socket, "--forwarding-agent", &at];
        s1.start("s1", &agent(), &[&server[..], &feed].concat());
        fa.start("fa", &agent(), &["forwarding-agent", "--feed", socket, "--host-ips", &u.ip(21)]);
        let server = l2(&u.socket(11, 8060));
        start_client(&c1, 1, &[server], &[]);
        start_client(&c2, 2, &[server], &[]);
        await_address(&c1, 1);
        await_address(&c2, 2);
        // Its page of metrics may come later than the state.
        let fed = |times| {
            let pages = ["netns", "exec", &fa.netns, "curl", "-s", "http://[::1]:9065/metrics"];
            net.log("fa").matches("forwarding state is here").count() == times
                && try_run("ip", &pages).is_ok()
        };
        await_that("the agent has the state", SOON, || fed(1));
        let there = || reaches((&c1, inner(1).into()), (&c2, inner(2).into()), SOON);
        let back = || reaches((&c2, inner(2).into()), (&c1, inner(1).into()), SOON);
        await_that("data goes by the agent, both ways", SOON, || {
            let before = tunneled(&fa, 9065);
            assert!(there() && back());
            tunneled(&fa, 9065) >= before + 2
        });
        // The Server is not asked any more.
        let (by_server, by_agent) = (tunneled(&s1, 9060), tunneled(&fa, 9065));
        for _ in 0..20 {
            assert!(there() && back());
        }
        assert!(tunneled(&fa, 9065) >= by_agent + 40);
        assert!(tunneled(&s1, 9060) <= by_server + 2);
        fa.kill("fa");
        let dead = std::time::Instant::now();
        assert!(reaches((&c1, inner(1).into()), (&c2, inner(2).into()), BACK));
        println!("  {u:?}: by the Server {} ms after the agent died", dead.elapsed().as_millis());
        // It comes back, and is fed and announced again.
        fa.start("fa", &agent(), &["forwarding-agent", "--feed", socket, "--host-ips", &u.ip(21)]);
        await_that("the agent has the state again", SOON, || fed(2));
        await_that("data goes by the agent again", 3 * SOON, || {
            let before = tunneled(&fa, 9065);
            there() && back() && tunneled(&fa, 9065) >= before + 2
        });
    }
}
