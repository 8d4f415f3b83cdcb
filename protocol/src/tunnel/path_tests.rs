//! Tests of the paths' state.

use super::*;
use crate::wire::{Class, classify};
use rand::SeedableRng;
use rand::rngs::StdRng;

fn server() -> LinkLayerAddress {
    "192.0.2.11:8060".parse::<std::net::SocketAddr>().unwrap().into()
}

fn solicitation(source: &str, target: &str) -> Nd {
    let target = target.parse().unwrap();
    Nd {
        source: source.parse().unwrap(),
        destination: target,
        message: NdMessage::Solicitation { target },
        options: vec![],
    }
}

fn answer(probe: &Probe) -> Vec<u8> {
    let nd = Nd::parse(&Packet::parse(&probe.packet).unwrap()).unwrap();
    let NdMessage::Solicitation { target } = nd.message else { panic!("{nd:?}") };
    let message = NdMessage::Advertisement { solicited: true, override_cached: false, target };
    Nd { source: target, destination: nd.source, message, options: nd.options }.emit().unwrap()
}

struct Link {
    paths: Paths,
    rng: StdRng,
    now: Instant,
}

impl Link {
    /// A path whose engine has solicited the Server once.
    fn new(config: Config) -> Self {
        let now = Instant::now();
        let mut paths = Paths::new(config);
        let nd = solicitation("fe80::2001:db8:0:1", "fe80::2").emit().unwrap();
        paths.sent_control(server(), &nd, now);
        Self { paths, rng: StdRng::seed_from_u64(1), now }
    }

    fn probe(&mut self) -> Option<Probe> {
        self.paths.poll_probe(self.now, &mut self.rng)
    }

    fn wait(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.paths.expire(self.now);
    }

    fn plan(&self, length: usize) -> Plan {
        let mut packet = vec![0; length];
        packet[0] = 0x60;
        self.paths.plan(server(), &packet)
    }
}

const UNPROVED: Config = Config { underlay_mtu: 1500, assured: false };
const WHOLE: Plan = Plan::Whole { dont_fragment: true };

#[test]
fn a_probe_is_a_solicitation_padded_outside_the_inner_packet() {
    let mut link = Link::new(UNPROVED);
    assert_eq!(link.probe(), None, "nothing was fragmented yet");
    link.paths.want(server(), link.now);
    let probe = link.probe().unwrap();
    assert_eq!(probe.packet.len(), 1472, "with 28 bytes it fills the interface");
    assert_eq!(classify(&probe.packet), Class::Control);
    let inner = usize::from(u16::from_be_bytes([probe.packet[4], probe.packet[5]])) + 40;
    assert!(inner < 100 && probe.packet[inner..].iter().all(|b| *b == 0));
    assert_eq!(link.probe(), None, "one at a time");
}

#[test]
fn an_answered_probe_ends_fragmentation_and_a_packet_too_big_brings_it_back() {
    let mut link = Link::new(UNPROVED);
    assert_eq!(link.plan(1472), Plan::Fragments);
    link.paths.want(server(), link.now);
    let probe = link.probe().unwrap();
    assert!(link.paths.received_control(server(), &answer(&probe), link.now));
    assert_eq!(link.plan(1472), WHOLE);
    assert_eq!(link.plan(1473), Plan::Fragments);
    link.paths.too_big(server(), 1400, link.now);
    assert_eq!(link.plan(1372), Plan::Fragments);
    assert_eq!(link.probe(), None, "not at once");
    link.wait(1);
    let probe = link.probe().unwrap();
    assert_eq!(probe.packet.len(), 1372, "no more than the Packet Too Big has said");
    assert!(link.paths.received_control(server(), &answer(&probe), link.now));
    assert_eq!(link.plan(1372), WHOLE);
    assert_eq!(link.plan(1373), Plan::Fragments);
}

#[test]
fn three_unanswered_probes_leave_it_at_fragments_and_rounds_are_a_minute_apart() {
    let mut link = Link::new(UNPROVED);
    link.paths.want(server(), link.now);
    let mut sent = 0;
    for _ in 0..120 {
        while link.probe().is_some() {
            sent += 1;
        }
        link.wait(1);
    }
    assert_eq!(sent, 6);
    assert_eq!(link.plan(1400), Plan::Fragments);
}

#[test]
fn a_proof_that_is_not_renewed_is_lost_so_that_no_black_hole_stays() {
    let mut link = Link::new(UNPROVED);
    link.paths.want(server(), link.now);
    let probe = link.probe().unwrap();
    assert!(link.paths.received_control(server(), &answer(&probe), link.now));
    for _ in 0..70 {
        while link.probe().is_some() {}
        link.wait(1);
    }
    assert_eq!(link.plan(1400), Plan::Fragments);
}

#[test]
fn only_the_right_nonce_from_the_right_neighbour_answers_a_probe() {
    let mut link = Link::new(UNPROVED);
    link.paths.want(server(), link.now);
    let probe = link.probe().unwrap();
    let good = answer(&probe);
    let other = "192.0.2.12:8060".parse::<std::net::SocketAddr>().unwrap().into();
    assert!(!link.paths.received_control(other, &good, link.now));
    let mut nd = Nd::parse(&Packet::parse(&good).unwrap()).unwrap();
    nd.options = vec![NdOption::Nonce(vec![0; 6])];
    assert!(!link.paths.received_control(server(), &nd.emit().unwrap(), link.now));
    nd.options.clear();
    assert!(!link.paths.received_control(server(), &nd.emit().unwrap(), link.now));
    assert!(!link.paths.received_control(server(), &[0; 10], link.now));
    assert_eq!(link.plan(1400), Plan::Fragments);
    assert!(link.paths.received_control(server(), &good, link.now));
    assert!(!link.paths.received_control(server(), &good, link.now), "once");
}

#[test]
fn where_paths_are_assured_nothing_is_probed_until_a_packet_too_big_and_it_is_forgotten() {
    let mut link = Link::new(Config::default());
    assert_eq!(link.plan(1472), WHOLE);
    assert!(link.probe().is_none());
    link.paths.too_big(server(), 1400, link.now);
    assert_eq!(link.plan(1472), Plan::Fragments);
    assert_eq!(link.plan(1501), Plan::TooBig { mtu: 1500 });
    for _ in 0..11 {
        link.wait(59);
        link.paths.sent_control(
            server(),
            &solicitation("fe80::2001:db8:0:1", "fe80::2").emit().unwrap(),
            link.now,
        );
    }
    assert_eq!(link.plan(1472), WHOLE);
}

#[test]
fn a_storm_of_packet_too_bigs_does_not_make_a_storm_of_probes() {
    let mut link = Link::new(UNPROVED);
    let mut sent = 0;
    for _ in 0..100 {
        link.paths.too_big(server(), 1300, link.now);
        sent += i32::from(link.probe().is_some());
        link.wait(1);
        sent += i32::from(link.probe().is_some());
    }
    assert!(sent <= 8, "{sent} probes in 100 s");
}

#[test]
fn an_mtu_below_1280_is_not_believed_and_neighbours_that_are_gone_are_forgotten() {
    let mut link = Link::new(Config::default());
    link.paths.too_big(server(), 68, link.now);
    assert_eq!(link.paths.reach(server()).underlay_mtu, 1280);
    assert!(link.paths.knows(server()));
    link.wait(601);
    assert!(!link.paths.knows(server()));
    assert!(link.paths.paths.is_empty());
}
