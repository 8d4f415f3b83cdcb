//! One Server against a model of its table and leases that fits on a page: random histories, and
//! after each step the Server holds exactly the leases that the model says.

#![allow(clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use aero_protocol::Output;
use aero_protocol::address::{ALL_DHCP_SERVERS, BOOTSTRAP_ADDRESS, Duid, Epoch, LinkLayerAddress};
use aero_protocol::server::PARK_TIME;
use aero_protocol::wire::aero_options::{AeroOption, Claim};
use aero_protocol::wire::dhcpv6::{IaPd, Kind, Message};
use aero_protocol::wire::ip;
use common::{Link, duid, holder_id, node_address, prefix, server_address};
use proptest::prelude::*;
use uuid::Uuid;

const LEASE: Duration = Duration::from_secs(40);
const NODES: [u8; 3] = [21, 22, 23];

/// What happens to the Server.
#[derive(Debug, Clone)]
enum Step {
    /// The table gives a client to a node (by index), under the next epoch.
    Map(u16, usize),
    /// The row goes.
    Unmap(u16),
    /// A node asks for a client, claiming the present epoch, one too old or one too new.
    Ask(Kind, u16, usize, i64),
    /// Time passes, in seconds.
    Wait(u64),
}

fn step() -> impl Strategy<Value = Step> {
    let client = 1u16..5;
    let kind = prop_oneof![
        4 => Just(Kind::Solicit),
        1 => Just(Kind::Request),
        2 => Just(Kind::Renew),
        2 => Just(Kind::Rebind),
        1 => Just(Kind::Release),
    ];
    prop_oneof![
        3 => (client.clone(), 0usize..3).prop_map(|(c, n)| Step::Map(c, n)),
        1 => client.clone().prop_map(Step::Unmap),
        8 => (kind, client, 0usize..3, -1i64..=1).prop_map(|(k, c, n, e)| Step::Ask(k, c, n, e)),
        3 => (1u64..50).prop_map(Step::Wait),
    ]
}

/// A row: epoch and node.
type Row = (u64, usize);

#[derive(Default)]
struct Model {
    rows: BTreeMap<u16, Row>,
    /// Epochs go on counting when a row is removed.
    epochs: BTreeMap<u16, u64>,
    /// By client: the node, the epoch, the end.
    leases: BTreeMap<u16, (usize, u64, Instant)>,
    /// Claims that are ahead of the table: by client and node, the kind, the epoch, the end.
    waiting: BTreeMap<(u16, usize), (Kind, u64, Instant)>,
}

impl Model {
    fn map(&mut self, client: u16, node: usize, now: Instant) {
        let epoch = self.epochs.entry(client).or_default();
        *epoch += 1;
        let row = (*epoch, node);
        self.rows.insert(client, row);
        if self.leases.get(&client).is_some_and(|(at, _, _)| *at != node) {
            self.leases.remove(&client);
        }
        let ready: Vec<_> = self.waiting.keys().filter(|(c, _)| *c == client).copied().collect();
        for key in ready {
            let (kind, epoch, _) = self.waiting.remove(&key).unwrap();
            self.ask(kind, client, key.1, epoch, now);
        }
    }

    fn ask(&mut self, kind: Kind, client: u16, node: usize, epoch: u64, now: Instant) {
        let lease = self.leases.get(&client).copied();
        if kind == Kind::Release {
            // One that was said under an earlier epoch comes late.
            if lease.is_some_and(|(at, of, _)| at == node && of <= epoch) {
                self.leases.remove(&client);
            }
            return;
        }
        let row = self.rows.get(&client).copied();
        if row.is_none_or(|(e, _)| epoch > e) {
            self.waiting.insert((client, node), (kind, epoch, now + PARK_TIME));
            return;
        }
        let holds = row == Some((epoch, node));
        let bound = match kind {
            Kind::Renew => lease.is_some_and(|(at, _, _)| at == node),
            Kind::Rebind => lease.is_some(),
            _ => true,
        };
        if holds && bound {
            self.leases.insert(client, (node, epoch, now + LEASE));
        }
    }

    fn wait(&mut self, now: Instant) {
        self.leases.retain(|_, (_, _, end)| *end > now);
        self.waiting.retain(|_, (_, _, end)| *end > now);
    }
}

fn ask(kind: Kind, client: u16, epoch: u64, server: &Duid) -> Vec<u8> {
    let mut m = Message::new(kind, [1, 2, 3]);
    m.client = Some(duid(client));
    if !matches!(kind, Kind::Solicit | Kind::Rebind) {
        m.server = Some(server.clone());
    }
    m.rapid_commit = kind == Kind::Solicit;
    m.ia_pd.push(IaPd { id: 1, ..IaPd::default() });
    let claim = Claim { epoch: Epoch(epoch), holder: holder_id(client, epoch) };
    m.aero = vec![AeroOption::Claim(claim)];
    ip::udp((BOOTSTRAP_ADDRESS, 546), (ALL_DHCP_SERVERS, 547), &m.emit().unwrap()).unwrap()
}

fn nodes() -> [LinkLayerAddress; 3] {
    NODES.map(node_address)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn a_server_holds_the_leases_of_its_table_and_no_others(
        steps in proptest::collection::vec(step(), 1..60)
    ) {
        let mut link = Link::new();
        let at = link.add_server(11);
        let id = Duid::from_uuid(Uuid::from_u128(11 << 100));
        let mut model = Model::default();
        for step in &steps {
            let now = link.now;
            match *step {
                Step::Map(client, node) => {
                    model.map(client, node, now);
                    let epoch = model.epochs[&client];
                    link.map_at(at, client, epoch, Some(nodes()[node]));
                }
                Step::Unmap(client) => {
                    model.rows.remove(&client);
                    model.leases.remove(&client);
                    link.server(at).engine.remove_mapping(prefix(client));
                }
                Step::Ask(kind, client, node, off) => {
                    let epoch = model.epochs.get(&client).copied().unwrap_or(0);
                    let epoch = epoch.saturating_add_signed(off);
                    model.ask(kind, client, node, epoch, now);
                    let packet = ask(kind, client, epoch, &id);
                    link.server(at).engine.handle_packet(nodes()[node], &packet, now);
                }
                Step::Wait(seconds) => {
                    link.run(Duration::from_secs(seconds));
                    model.wait(link.now);
                }
            }
            // What the Server sends is of no account here.
            while let Some(output) = link.server(at).engine.poll_output() {
                if let Output::Forward(change) = output {
                    link.server(at).table.apply(&change);
                }
            }
            let has: BTreeMap<_, _> = link
                .server(at)
                .engine
                .neighbors()
                .map(|n| (n.prefix, (n.link_layer, n.epoch.0, n.until)))
                .collect();
            let wants: BTreeMap<_, _> = model
                .leases
                .iter()
                .map(|(c, (node, epoch, end))| (prefix(*c), (nodes()[*node], *epoch, *end)))
                .collect();
            prop_assert_eq!(&has, &wants, "after {:?}", step);
            let sizes = link.server(at).engine.sizes();
            prop_assert_eq!(sizes.parked, model.waiting.len(), "after {:?}", step);
            let table = link.server(at).table.sizes();
            prop_assert_eq!(table.routes, wants.len(), "after {:?}", step);
            prop_assert_eq!(table.sources, wants.len(), "after {:?}", step);
            prop_assert_eq!(server_address(11), at);
        }
    }
}
