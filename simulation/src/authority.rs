//! Who has which prefix: the operator's table, the Servers' watches of it, and the nodes'
//! starting and stopping of pods.

use aero_protocol::address::{Duid, Epoch};
use aero_protocol::client::ClientSpec;
use aero_protocol::server::{Holder, Mapping};
use aero_protocol::wire::aero_options::Claim;
use aero_protocol::wire::signature::{Key, SECRET};
use ipnet::{IpNet, Ipv6Net};
use rand::Rng;
use uuid::Uuid;

use crate::clock::{MILLISECOND, SECOND, Time};
use crate::member::{Engine, Kind};
use crate::network::Index;
use crate::world::{Event, World};

/// How long a node waits before it tries again what it cannot do now.
const RETRY: Time = 500 * MILLISECOND;

/// How long after a move a hand-over may last, as seen from outside.
const HANDOVER: Time = 75 * SECOND;

/// A row as it was at some version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Row {
    /// Counts holders.
    pub epoch: u64,
    /// The holder's node.
    pub node: Option<Index>,
}

/// What a Server knows of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Known {
    /// The row; `None` if it has never been there or was removed.
    pub row: Option<Row>,
    /// Since when, in nanoseconds of the run.
    pub since: Time,
}

impl Known {
    /// True if the row says that the pod of `epoch` on `node` is not the holder any more.
    pub fn moved_from(&self, node: Index, epoch: u64) -> bool {
        self.row.is_some_and(|r| r.epoch > epoch && r.node != Some(node))
    }
}

/// One identity of the link, and who holds its prefix.
#[derive(Debug)]
pub struct Identity {
    /// The row as it is now.
    pub row: Row,
    /// Taken out of the table.
    pub removed: bool,
    /// Nodes that it left, and when.
    pub left: Vec<(Index, Time)>,
}

impl Identity {
    /// An identity that nobody has held yet.
    pub fn new(_client: usize) -> Self {
        Self { row: Row { epoch: 0, node: None }, removed: false, left: Vec::new() }
    }
}

/// The ACP of a client.
pub fn prefix(client: usize) -> IpNet {
    let bits = (0x2001_0db8_u128 << 96) | ((client as u128 + 1) << 64);
    Ipv6Net::new(bits.into(), 64).map(IpNet::V6).unwrap_or_default()
}

/// The client of an ACP.
pub fn client_of(prefix: IpNet) -> Option<usize> {
    let IpNet::V6(p) = prefix else { return None };
    let number = (u128::from(p.addr()) >> 64) & 0xffff_ffff;
    usize::try_from(number).ok()?.checked_sub(1)
}

/// The DUID of a client.
pub fn duid(client: usize) -> Duid {
    Duid::from_uuid(Uuid::from_u128(client as u128 + 1))
}

/// The key of a client. Every other one has one: what holds for those holds for the others.
pub fn key(client: usize) -> Option<Key> {
    let byte = u8::try_from(client % 251).unwrap_or(0);
    client.is_multiple_of(2).then(|| Key::new(1, [byte; SECRET]))
}

fn pod_id(client: usize, epoch: u64) -> Uuid {
    Uuid::from_u128(((client as u128 + 1) << 64) | u128::from(epoch))
}

/// What a node asks for a client.
pub fn spec(client: usize, epoch: u64) -> ClientSpec {
    let claim = Claim { epoch: Epoch(epoch), holder: pod_id(client, epoch) };
    ClientSpec { client: duid(client), claim: Some(claim), prefixes: vec![prefix(client)] }
}

impl World {
    fn mapping(&self, client: usize, row: Row) -> Mapping {
        Mapping {
            prefix: prefix(client),
            client: duid(client),
            epoch: Epoch(row.epoch),
            holder: row.node.map(|node| Holder {
                id: pod_id(client, row.epoch),
                name: format!("pod c{client} on m{node}"),
                underlay: self.members[node].addresses.clone(),
            }),
        }
    }

    /// Gives a client to a node, under a new epoch. A former pod runs on for `lingers`.
    pub fn assign(&mut self, client: usize, node: Index, lingers: Time) {
        let former = self.identities[client].row;
        let row = Row { epoch: former.epoch + 1, node: Some(node) };
        self.identities[client].row = row;
        if let Some(old) = former.node.filter(|n| *n != node) {
            self.identities[client].left.push((old, self.now));
        }
        self.trace.note(self.now, "assign", &[client as u64, row.epoch, node as u64], || {
            format!("c{client} epoch {} to m{node}", row.epoch)
        });
        self.publish(client, Some(row));
        if let Some(old) = former.node {
            let at = (self.now + lingers).min(self.faults_end.max(self.now));
            self.queue.push(at, Event::Stop(old, client, former.epoch));
        }
        let wait = self.rng.random_range(0..2 * SECOND);
        self.queue.push(self.now + wait, Event::Start(node, client, row.epoch));
    }

    /// True if a client left a node so lately that a Server may still take hand-over packets for
    /// it: a watch can be broken for half a minute before the hand-over begins.
    pub fn left_lately(&self, client: usize, node: Index) -> bool {
        let since = self.now.saturating_sub(HANDOVER);
        self.identities[client].left.iter().any(|(n, at)| *n == node && *at >= since)
    }

    /// Takes a client out of the table and stops its pod.
    pub fn remove(&mut self, client: usize) {
        let row = self.identities[client].row;
        self.identities[client].removed = true;
        if let Some(node) = row.node {
            self.queue.push(self.now, Event::Stop(node, client, row.epoch));
        }
        self.publish(client, None);
    }

    /// Sends a row on its way to every Server; each watch keeps its order.
    fn publish(&mut self, client: usize, row: Option<Row>) {
        self.version += 1;
        let version = self.version;
        for server in 0..self.servers {
            let slow = self.rng.random_bool(0.05);
            let bound = if slow { 2 * SECOND } else { 50 * MILLISECOND };
            let delay = self.rng.random_range(MILLISECOND..bound);
            let at = self.members[server].watch_free.max(self.now + delay);
            self.members[server].watch_free = at;
            self.queue.push(at, Event::Watch { server, client, row, version });
        }
    }

    /// A row arrives at a Server.
    pub fn watch(&mut self, server: Index, client: usize, row: Option<Row>, version: u64) {
        let member = &self.members[server];
        // What a broken watch misses comes with the next list.
        if member.engine.is_none() || !member.api || version <= member.version {
            return;
        }
        self.members[server].version = version;
        self.trace.note(self.now, "watch", &[server as u64, client as u64, version], || {
            format!("m{server} learns c{client} {row:?}")
        });
        self.set_row(server, client, row);
    }

    fn set_row(&mut self, server: Index, client: usize, row: Option<Row>) {
        let known = &mut self.members[server].known[client];
        if known.row != row {
            *known = Known { row, since: self.now };
        }
        let mapping = row.map(|row| self.mapping(client, row));
        self.act(server, |engine, now| {
            if let Engine::Server(s) = engine {
                match mapping {
                    Some(mapping) => s.set_mapping(mapping, now),
                    None => s.remove_mapping(prefix(client)),
                }
            }
        });
    }

    /// A Server reads the whole table, at its start and after its watch was broken.
    pub fn list(&mut self, server: Index) {
        if self.members[server].engine.is_none() {
            return;
        }
        if !self.members[server].api {
            self.queue.push(self.now + RETRY, Event::List(server));
            return;
        }
        self.trace.note(self.now, "list", &[server as u64], || format!("m{server}"));
        self.members[server].version = self.version;
        let mut all = Vec::new();
        for client in 0..self.identities.len() {
            let identity = &self.identities[client];
            if identity.row.epoch > 0 && !identity.removed {
                all.push(prefix(client));
                let row = identity.row;
                self.set_row(server, client, Some(row));
            }
        }
        self.act(server, |engine, _| {
            if let Engine::Server(s) = engine {
                s.retain_mappings(&all);
            }
        });
    }

    /// A node starts a pod, unless somebody newer has the prefix by now.
    pub fn start_pod(&mut self, node: Index, client: usize, epoch: u64) {
        let identity = &self.identities[client];
        if identity.row != (Row { epoch, node: Some(node) }) || identity.removed {
            return;
        }
        if self.members[node].engine.is_none() || !self.members[node].api {
            self.queue.push(self.now + RETRY, Event::Start(node, client, epoch));
            return;
        }
        self.trace.note(self.now, "start", &[node as u64, client as u64, epoch], || {
            format!("c{client} epoch {epoch} on m{node}")
        });
        self.members[node].pods.insert(client, epoch);
        self.attach(node, client, epoch);
    }

    fn attach(&mut self, node: Index, client: usize, epoch: u64) {
        // Now and then the node knows whence the client comes, and asks that one to send on.
        let left = self.identities[client].left.last().map(|(old, _)| *old);
        let former = left.filter(|old| *old != node && self.rng.random_bool(0.2));
        let former = former.map(|old| self.members[old].outer);
        if let (Some(_), Some(old)) = (former, left) {
            let proxies = [self.members[node].outer, self.members[old].outer];
            self.act(old, |engine, _| {
                if let Engine::Node(n) = engine {
                    n.set_proxies(proxies);
                }
            });
        }
        self.act(node, |engine, now| {
            let Engine::Node(n) = engine else { return };
            n.set_key(duid(client), key(client));
            match former {
                Some(former) => {
                    n.set_proxies([former]);
                    n.attach_from(spec(client, epoch), former, now);
                }
                None => n.attach(spec(client, epoch), now),
            }
        });
    }

    /// A node stops a pod that it has started under `epoch`.
    pub fn stop_pod(&mut self, node: Index, client: usize, epoch: u64) {
        if self.members[node].pods.get(&client) != Some(&epoch) {
            return;
        }
        if self.members[node].engine.is_none() || !self.members[node].api {
            self.queue.push(self.now + RETRY, Event::Stop(node, client, epoch));
            return;
        }
        self.trace.note(self.now, "stop", &[node as u64, client as u64, epoch], || {
            format!("c{client} epoch {epoch} on m{node}")
        });
        self.members[node].pods.remove(&client);
        self.act(node, |engine, now| {
            if let Engine::Node(n) = engine {
                n.detach(&duid(client), now);
            }
        });
    }

    /// A node that starts speaks for the pods that it has.
    pub fn reattach(&mut self, node: Index) {
        for (client, epoch) in self.members[node].pods.clone() {
            self.attach(node, client, epoch);
        }
    }

    /// A node without a journal has read which pods it has.
    pub fn relearn(&mut self, node: Index, life: u32) {
        if self.members[node].life != life || self.members[node].engine.is_none() {
            return;
        }
        if !self.members[node].api {
            self.queue.push(self.now + RETRY, Event::Relearn(node, life));
            return;
        }
        self.reattach(node);
    }

    /// A node makes its list of Servers what the API says.
    pub fn sync_servers(&mut self, node: Index) {
        if !self.members[node].api {
            self.queue.push(self.now + RETRY, Event::Servers(node));
            return;
        }
        let all: Vec<_> = self
            .members
            .iter()
            .filter(|m| m.kind == Kind::Server)
            .map(|m| (m.outer, m.drained))
            .collect();
        self.act(node, |engine, now| {
            let Engine::Node(n) = engine else { return };
            let has: Vec<_> = n.servers().map(|(l2, _)| l2).collect();
            for (server, drained) in all {
                match (has.contains(&server), drained) {
                    (true, true) => n.remove_server(server, now),
                    (false, false) => n.add_server(server, now),
                    _ => {}
                }
            }
        });
    }
}
