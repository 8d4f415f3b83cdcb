//! The engines as state machines: random histories of packets and local events.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use aero_protocol::Output;
use aero_protocol::address::{Epoch, LinkLayerAddress, ServerId};
use aero_protocol::client::{self, ClientSpec, Node};
use aero_protocol::forwarding::{Inner, Table};
use aero_protocol::relay::{self, Relay};
use aero_protocol::server::{self, Authentication, Holder, Mapping, Server};
use aero_protocol::wire::aero_options::{AeroOption, Claim};
use aero_protocol::wire::dhcpv6::Kind;
use rand::Rng;
use rand::rngs::StdRng;

use crate::corpus::{self, duid, holder, prefix};
use crate::mutate;

const CLIENTS: u16 = 6;
/// Those of them that have keys.
const KEYED: [u16; 2] = [5, 6];
const STEPS: usize = 120;

fn ip(last: u8) -> IpAddr {
    IpAddr::from([192, 0, 2, last])
}

/// An outer source: mostly one of a few, so that histories have a thread.
fn peer(rng: &mut StdRng, known: &[u8]) -> LinkLayerAddress {
    let last = if rng.random_bool(0.8) {
        known[rng.random_range(0..known.len())]
    } else {
        rng.random_range(200..=255)
    };
    let port = if rng.random_bool(0.9) { 8061 } else { rng.random_range(1..=u16::MAX) };
    LinkLayerAddress::new(ip(last), port)
}

fn wait(now: &mut Instant, rng: &mut StdRng) {
    let longest = [1, 100, 1_000, 20_000, 100_000][rng.random_range(0..5)];
    *now += Duration::from_millis(rng.random_range(0..longest));
}

/// Bytes that went to and came from peers that no table and no lease knows.
#[derive(Default)]
struct Balance(BTreeMap<LinkLayerAddress, (usize, usize)>);

impl Balance {
    fn received(&mut self, from: LinkLayerAddress, bytes: usize) {
        self.0.entry(from).or_default().0 += bytes;
    }

    fn sent(&mut self, to: LinkLayerAddress, bytes: usize) {
        let (received, sent) = self.0.entry(to).or_default();
        *sent += bytes;
        assert!(sent <= received, "{to} got {sent} bytes for {received}");
    }
}

/// One history of a Server.
///
/// # Panics
/// If something does not hold.
pub fn server(corpus: &[Vec<u8>], rng: &mut StdRng) {
    let mut now = Instant::now();
    let own = LinkLayerAddress::new(ip(11), 8060);
    let mut engine = Server::new(server::Config {
        id: ServerId::from_underlay(own.ip),
        duid: corpus::server_duid(),
        asps: vec!["2001:db8::/32".parse().unwrap()],
        lease: Duration::from_secs(40),
        authentication: Authentication::NodeAddress,
    });
    engine.set_reconfigure_secret(rng.random());
    for client in KEYED {
        engine.set_keys(duid(client), vec![corpus::key(client)]);
    }
    // The session, once the Server has told it, and the last counter.
    let (mut session, mut counter) = (1, 0);
    // What somebody on the way has heard, and may say again.
    let mut heard: Vec<Vec<u8>> = Vec::new();
    let mut table = Table::default();
    let mut strangers = Balance::default();
    for _ in 0..STEPS {
        let client = rng.random_range(1..=CLIENTS);
        // Whether what comes now may move a Client that has a key.
        let mut proved = false;
        match rng.random_range(0..12) {
            0 => {
                engine.set_mapping(mapping(client, rng), now);
                // A signed message may have waited for this row.
                proved = counter > 0;
            }
            1 => engine.remove_mapping(prefix(client)),
            2 => wait(&mut now, rng),
            3 => engine.retain_mappings(&[prefix(client), prefix(1)]),
            n => {
                let from = peer(rng, &[21, 22]);
                let mut bytes = if n < 8 { good(client, rng) } else { mutate::packet(corpus, rng) };
                if n < 8 && rng.random_bool(0.5) {
                    counter += 1;
                    let again = rng.random_bool(0.1).then_some(counter);
                    bytes = corpus::signed(&bytes, session, counter, again);
                    proved = true;
                    if rng.random_bool(0.2) {
                        let at = rng.random_range(48..bytes.len());
                        bytes[at] ^= 1 << rng.random_range(0..8);
                        mutate::make_right(&mut bytes);
                        proved = false;
                    }
                    heard.push(bytes.clone());
                } else if n < 8 && !heard.is_empty() && rng.random_bool(0.2) {
                    bytes.clone_from(&heard[rng.random_range(0..heard.len())]);
                }
                if from.ip != ip(21) && from.ip != ip(22) {
                    strangers.received(from, bytes.len());
                }
                engine.handle_packet(from, &bytes, now);
                let _ = Inner::of(&bytes).map(|i| table.ingress(from, i, now));
            }
        }
        due(&mut now, |t| {
            engine.handle_timeout(t);
            engine.poll_timeout()
        });
        while let Some(output) = engine.poll_output() {
            match output {
                Output::Send { to, packet } | Output::SendOn { to, packet, .. } => {
                    if to.ip != ip(21) && to.ip != ip(22) {
                        strangers.sent(to, packet.len());
                    }
                    session = corpus::signature_of(&packet).map_or(session, |s| s.session);
                }
                Output::Forward(change) => table.apply(&change),
                Output::Event(server::Event::Associated { prefix, .. }) => {
                    let keyed = KEYED.iter().any(|n| corpus::prefix(*n) == prefix);
                    assert!(proved || !keyed, "{prefix} moved without a signature");
                }
                Output::Event(_) => {}
            }
        }
        let s = engine.sizes();
        assert!(s.mappings <= usize::from(CLIENTS) && s.neighbors <= s.mappings, "{s:?}");
        assert!(s.departures <= usize::from(CLIENTS) && s.parked <= STEPS, "{s:?}");
        assert!(s.timers <= 2 * (s.neighbors + s.departures + s.parked + s.former) + 8, "{s:?}");
        assert!(s.former <= usize::from(CLIENTS) && s.limited <= usize::from(CLIENTS), "{s:?}");
        let t = table.sizes();
        assert!(
            t.routes <= 2 * usize::from(CLIENTS) && t.sources <= 2 * usize::from(CLIENTS),
            "{t:?}"
        );
        assert!(t.handovers <= usize::from(CLIENTS) * 2, "{t:?}");
    }
}

fn mapping(client: u16, rng: &mut StdRng) -> Mapping {
    Mapping {
        prefix: prefix(client),
        client: duid(client),
        epoch: Epoch(rng.random_range(1..4)),
        holder: rng.random_bool(0.9).then(|| Holder {
            id: holder(client),
            name: "pod".into(),
            underlay: vec![ip(if rng.random() { 21 } else { 22 })],
        }),
    }
}

/// A message as a Client would send it.
fn good(client: u16, rng: &mut StdRng) -> Vec<u8> {
    let kinds =
        [Kind::Solicit, Kind::Solicit, Kind::Request, Kind::Renew, Kind::Rebind, Kind::Release];
    corpus::dhcp(kinds[rng.random_range(0..kinds.len())], client)
}

/// One history of a node.
///
/// # Panics
/// If something does not hold.
pub fn node(corpus: &[Vec<u8>], rng: &mut StdRng) {
    let mut now = Instant::now();
    let mut engine = Node::new(client::Config {
        asps: vec!["2001:db8::/32".parse().unwrap()],
        link_id: 0,
        node: "n1".into(),
        seed: rng.random(),
        optimize: rng.random_bool(0.8),
    });
    let mut table = Table::default();
    let servers = [11, 12, 13].map(|n| LinkLayerAddress::new(ip(n), 8060));
    // The real Servers' answers to what the node asks, so that it gets beyond the first message.
    let mut asked: Vec<(LinkLayerAddress, Vec<u8>)> = Vec::new();
    // A Server may say anything about anybody.
    let mut introduced = false;
    for client in KEYED {
        engine.set_key(duid(client), Some(corpus::key(client)));
    }
    for _ in 0..STEPS {
        // Whether what comes now is a Server's whole answer.
        let mut answered = false;
        let client = rng.random_range(1..=CLIENTS);
        let server = servers[rng.random_range(0..servers.len())];
        match rng.random_range(0..16) {
            0 | 1 => {
                let claim = Claim { epoch: Epoch(rng.random_range(1..4)), holder: holder(client) };
                let spec = ClientSpec {
                    client: duid(client),
                    claim: rng.random_bool(0.9).then_some(claim),
                    prefixes: vec![prefix(client)],
                };
                engine.attach(spec, now);
            }
            2 => engine.detach(&duid(client), now),
            3 | 4 => engine.add_server(server, now),
            5 if rng.random_bool(0.3) => engine.remove_server(server, now),
            6 if rng.random_bool(0.3) => engine.underlay_changed(now),
            7 => wait(&mut now, rng),
            12 if rng.random() => {
                let other = rng.random_range(1..=CLIENTS);
                let inner = Inner { source: host(client), destination: host(other) };
                if rng.random() {
                    engine.data_packet_by_server(inner, &[0x60; 40], now);
                } else {
                    engine.path_used(prefix(client), prefix(other), now);
                }
            }
            8..=11 if !asked.is_empty() => {
                let (to, question) = asked.swap_remove(rng.random_range(0..asked.len()));
                if let Some(mut answer) = answer(&question) {
                    answered = true;
                    if rng.random_bool(0.2) {
                        let at = rng.random_range(48..answer.len());
                        answer[at] ^= 1 << rng.random_range(0..8);
                        mutate::make_right(&mut answer);
                        answered = false;
                    }
                    engine.handle_packet(to, &answer, now);
                }
            }
            _ => {
                let from = if rng.random() { server } else { peer(rng, &[21, 22]) };
                let bytes = mutate::packet(corpus, rng);
                introduced |= servers.contains(&from);
                engine.handle_packet(from, &bytes, now);
                let _ = Inner::of(&bytes).map(|i| table.ingress(from, i, now));
            }
        }
        due(&mut now, |t| {
            engine.handle_timeout(t);
            engine.poll_timeout()
        });
        while let Some(output) = engine.poll_output() {
            match output {
                Output::Send { to, packet } | Output::SendOn { to, packet, .. } => {
                    // Correspondents get what Servers have introduced them for; a stranger that
                    // nobody introduced gets nothing.
                    if servers.contains(&to) {
                        asked.push((to, packet));
                    } else if let IpAddr::V4(a) = to.ip
                        && a.octets()[3] >= 200
                    {
                        assert!(introduced, "{to} is a stranger to this node");
                    }
                }
                Output::Forward(change) => table.apply(&change),
                Output::Event(client::Event::Delegated { client, .. }) => {
                    let keyed = KEYED.iter().any(|n| duid(*n) == client);
                    assert!(answered || !keyed, "{client} believed what is not signed");
                }
                Output::Event(_) => {}
            }
        }
        asked.truncate(200);
        let s = engine.sizes();
        assert!(s.clients <= usize::from(CLIENTS) && s.servers <= servers.len(), "{s:?}");
        assert!(s.associations <= s.clients * servers.len(), "{s:?}");
        let paths = s.neighbors + s.attempts + s.announcements;
        let all = s.associations + s.servers + s.clients + s.departed + paths;
        assert!(s.timers <= 2 * all + 8 && paths <= 3 * STEPS, "{s:?}");
    }
}

fn host(client: u16) -> IpAddr {
    match prefix(client) {
        ipnet::IpNet::V6(p) => IpAddr::V6((u128::from(p.addr()) | 1).into()),
        ipnet::IpNet::V4(p) => IpAddr::V4(p.addr()),
    }
}

/// One history of a Relay: what strangers send sets nothing off.
///
/// # Panics
/// If something does not hold.
pub fn relay(corpus: &[Vec<u8>], rng: &mut StdRng) {
    let mut now = Instant::now();
    let ids = [11, 12].map(|n| ServerId::from_underlay(ip(n)));
    let servers = [11, 12].map(|n| LinkLayerAddress::new(ip(n), 8060));
    let mut engine = Relay::new(relay::Config {
        id: ServerId::from_underlay(ip(10)),
        asps: vec!["2001:db8::/32".parse().unwrap()],
    });
    for (id, at) in ids.iter().zip(servers) {
        engine.add_server(*id, at);
    }
    let mut table = Table::default();
    for _ in 0..STEPS {
        let client = rng.random_range(1..=CLIENTS);
        let id = ids[rng.random_range(0..2)];
        let mut stranger = false;
        let mut length = usize::MAX;
        match rng.random_range(0..8) {
            0 => drop(engine.set_route(prefix(client), id)),
            1 => engine.remove_route(prefix(client), id),
            2 => engine.set_usable(id, rng.random()),
            3 => wait(&mut now, rng),
            _ => {
                let from =
                    if rng.random() { servers[rng.random_range(0..2)] } else { peer(rng, &[21]) };
                stranger = !servers.contains(&from);
                let bytes = mutate::packet(corpus, rng);
                length = bytes.len();
                engine.handle_packet(from, &bytes, now);
                let _ = Inner::of(&bytes).map(|i| table.ingress(from, i, now));
            }
        }
        let mut sent = 0;
        while let Some(output) = engine.poll_output() {
            match output {
                Output::Send { to, packet } | Output::SendOn { to, packet, .. } => {
                    assert!(!stranger && servers.contains(&to), "{to} got something");
                    sent += packet.len();
                }
                Output::Forward(change) => table.apply(&change),
                Output::Event(_) => {}
            }
        }
        assert!(sent <= length, "{sent} bytes for {length}");
        assert!(engine.route_count() <= usize::from(CLIENTS), "{}", engine.route_count());
    }
}

/// What a Server that grants everything would answer.
fn answer(question: &[u8]) -> Option<Vec<u8>> {
    use aero_protocol::wire::dhcpv6::Message;
    use aero_protocol::wire::ip::{self, Packet, Payload};
    use aero_protocol::wire::nd::{Nd, NdMessage, NdOption};
    let packet = Packet::parse(question).ok()?;
    let server = "fe80::192.0.2.11".parse().ok()?;
    match packet.payload {
        Payload::Udp { data, .. } => {
            let mut m = Message::parse(data).ok()?;
            let signature = corpus::signature_of(question);
            m.aero.retain(|o| !matches!(o, AeroOption::Signature(_)));
            m.kind = Kind::Reply;
            m.server = Some(corpus::server_duid());
            for ia in &mut m.ia_pd {
                (ia.t1, ia.t2) = (20, 32);
                for p in &mut ia.prefixes {
                    (p.preferred, p.valid) = (40, 40);
                }
            }
            let answer = ip::udp((server, 547), (packet.source, 546), &m.emit().ok()?).ok()?;
            Some(match signature {
                Some(s) if s.session == 0 => corpus::signed(&answer, 5, s.counter, Some(10)),
                Some(s) => corpus::signed(&answer, s.session, s.counter, None),
                None => answer,
            })
        }
        Payload::Icmpv6 { .. } => {
            let nd = Nd::parse(&packet).ok()?;
            let NdMessage::Solicitation { target } = nd.message else { return None };
            let message =
                NdMessage::Advertisement { solicited: true, override_cached: false, target };
            let options = nd.nonce().map(|n| NdOption::Nonce(n.to_vec())).into_iter().collect();
            let answer = Nd { source: target, destination: nd.source, message, options };
            answer.emit().ok()
        }
    }
}

/// Lets timers fall due; an engine whose timers never end is stuck.
fn due(now: &mut Instant, mut turn: impl FnMut(Instant) -> Option<Instant>) {
    for _ in 0..3 {
        if turn(*now).is_none_or(|t| t > *now) {
            return;
        }
    }
    panic!("the engine wants to be woken at once again and again");
}
