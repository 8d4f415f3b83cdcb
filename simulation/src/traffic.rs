//! Users' packets, hop by hop through the forwarding tables.

use std::net::{IpAddr, Ipv6Addr};

use aero_protocol::address::LinkLayerAddress;
use aero_protocol::forwarding::{Disposition, Inner};
use ipnet::IpNet;
use rand::Rng;

use crate::authority::prefix;
use crate::clock::Time;
use crate::member::{Engine, Kind};
use crate::network::Index;
use crate::world::{Event, Payload, World};

/// Pairs that talk at a time.
const FLOWS: usize = 8;

/// A user's packet on its way.
#[derive(Debug, Clone)]
pub struct DataPacket {
    /// Number of the packet.
    pub id: u64,
    /// The client that sent it.
    pub source: usize,
    /// The epoch of that pod.
    pub source_epoch: u64,
    /// The client that it is for.
    pub destination: usize,
    /// When it was sent.
    pub sent: Time,
    /// Members that it was at, and when.
    pub path: Vec<(Index, Time)>,
}

/// First address of a client's prefix.
pub fn host(client: usize) -> IpAddr {
    match prefix(client) {
        IpNet::V6(p) => IpAddr::V6(Ipv6Addr::from(u128::from(p.addr()) | 1)),
        IpNet::V4(p) => IpAddr::V4(p.addr()),
    }
}

/// The IPv6 header of a packet without content.
fn header(inner: Inner) -> Vec<u8> {
    let mut bytes = vec![0x60, 0, 0, 0, 0, 0, 59, 64];
    for address in [inner.source, inner.destination] {
        if let IpAddr::V6(a) = address {
            bytes.extend(a.octets());
        }
    }
    bytes
}

fn inner(source: usize, destination: usize) -> Inner {
    Inner { source: host(source), destination: host(destination) }
}

impl World {
    /// A pod sends a packet: mostly one of a few flows that go on for a while, so that direct
    /// paths are opened, used and left.
    pub fn traffic(&mut self) {
        if self.traffic_every > 0 {
            self.queue.push(self.now + self.traffic_every, Event::Traffic);
        }
        let slot = self.rng.random_range(0..FLOWS + FLOWS / 4);
        let fresh = slot >= self.flows.len() || self.rng.random_bool(0.01);
        let flow = if fresh {
            let clients = self.identities.len();
            (self.rng.random_range(0..clients), self.rng.random_range(0..clients))
        } else {
            self.flows[slot]
        };
        if fresh && slot < FLOWS {
            if slot < self.flows.len() {
                self.flows[slot] = flow;
            } else {
                self.flows.push(flow);
            }
        }
        let Some(node) = self.pod_of(flow.0) else { return };
        self.send_data(node, flow.0, flow.1);
    }

    /// A node where a pod of the client runs: the holder's, or now and then a former one's.
    fn pod_of(&mut self, client: usize) -> Option<Index> {
        let identity = &self.identities[client];
        let runs = |n: &Index| self.members[*n].pods.contains_key(&client);
        let mut nodes: Vec<Index> = identity.row.node.into_iter().filter(runs).collect();
        for (node, _) in &identity.left {
            if runs(node) && !nodes.contains(node) {
                nodes.push(*node);
            }
        }
        let pick = if nodes.len() > 1 { self.rng.random_range(0..nodes.len()) } else { 0 };
        nodes.get(pick).copied()
    }

    fn send_data(&mut self, node: Index, source: usize, destination: usize) {
        let member = &self.members[node];
        let Some(epoch) = member.pods.get(&source).copied() else { return };
        if member.engine.is_none() || member.pods.contains_key(&destination) {
            return;
        }
        self.packets += 1;
        self.data[0] += 1;
        let packet = Box::new(DataPacket {
            id: self.packets,
            source,
            source_epoch: epoch,
            destination,
            sent: self.now,
            path: vec![(node, self.now)],
        });
        let local = member.clock.local(self.now);
        let inner = inner(source, destination);
        let egress = member.table.egress_path(inner, local);
        self.forward(node, None, packet, egress.disposition);
        if egress.by_server {
            self.act(node, |engine, now| {
                if let Engine::Node(n) = engine {
                    n.data_packet_by_server(inner, &header(inner), now);
                }
            });
        } else {
            self.tell_used(node);
        }
    }

    /// Tells an engine which direct paths its forwarder has used.
    fn tell_used(&mut self, node: Index) {
        let mut used = self.members[node].table.take_used();
        if used.is_empty() {
            return;
        }
        // The table gives them in no order.
        used.sort();
        self.direct += used.len() as u64;
        self.act(node, |engine, now| {
            if let Engine::Node(n) = engine {
                for (own, peer) in used {
                    n.path_used(own, peer, now);
                }
            }
        });
    }

    /// A packet came out of a tunnel.
    pub fn data_arrives(
        &mut self,
        index: Index,
        from: LinkLayerAddress,
        mut packet: Box<DataPacket>,
    ) {
        packet.path.push((index, self.now));
        let member = &self.members[index];
        let local = member.clock.local(self.now);
        let disposition =
            member.table.ingress(from, inner(packet.source, packet.destination), local);
        self.check_path(&packet);
        self.forward(index, Some(from), packet, disposition);
    }

    /// A packet need not wait any more.
    pub fn data_again(
        &mut self,
        index: Index,
        from: Option<LinkLayerAddress>,
        packet: Box<DataPacket>,
    ) {
        let member = &self.members[index];
        let local = member.clock.local(self.now);
        let inner = inner(packet.source, packet.destination);
        let disposition = match from {
            Some(from) => member.table.ingress(from, inner, local),
            None => member.table.egress(inner, local),
        };
        self.forward(index, from, packet, disposition);
    }

    fn forward(
        &mut self,
        index: Index,
        from: Option<LinkLayerAddress>,
        packet: Box<DataPacket>,
        disposition: Disposition,
    ) {
        let what = match disposition {
            Disposition::Deliver => 0,
            Disposition::Tunnel(_) => 1,
            Disposition::Drop(why) => 2 + why as u64,
            Disposition::Hold { .. } => 100,
        };
        self.trace.note(self.now, "data", &[index as u64, packet.id, what], || {
            format!(
                "#{} c{} -> c{} at m{index}: {disposition:?}",
                packet.id, packet.source, packet.destination
            )
        });
        match disposition {
            Disposition::Deliver => {
                self.data[1] += 1;
                self.check_delivery(index, &packet);
            }
            Disposition::Tunnel(to) => self.send(index, to, Payload::Data(packet)),
            Disposition::Drop(_) => self.data[2] += 1,
            Disposition::Hold { prefix, first } => {
                let refused = self.members[index].held.push(prefix, first, (from, packet));
                self.data[2] += u64::from(refused.is_some());
            }
        }
    }

    /// Where a packet would be delivered if it took no time, or why and where not.
    ///
    /// # Errors
    /// With the reason.
    pub fn walk(&self, source: usize, destination: usize) -> Result<Index, String> {
        let inner = inner(source, destination);
        let row = self.identities[source].row;
        let Some(node) = row.node else { return Err(format!("c{source} runs nowhere")) };
        let mut at = node;
        let member = &self.members[at];
        let mut disposition = member.table.egress(inner, member.clock.local(self.now));
        for _ in 0..16 {
            match disposition {
                Disposition::Deliver => return Ok(at),
                Disposition::Drop(why) => return Err(format!("{} at m{at}", why.label())),
                Disposition::Hold { .. } => return Err(format!("kept at m{at}")),
                Disposition::Tunnel(to) => {
                    let next = self.by_address.get(&to).copied();
                    let Some(next) = next else { return Err(format!("m{at} -> {to}: nobody")) };
                    let member = &self.members[next];
                    if member.engine.is_none() || !self.network.reaches(at, next) {
                        return Err(format!("m{at} does not reach m{next}"));
                    }
                    let from = self.members[at].outer;
                    disposition = member.table.ingress(from, inner, member.clock.local(self.now));
                    at = next;
                }
            }
        }
        Err("a loop".into())
    }

    /// The last Server of a packet's path before `index`, and when it forwarded.
    pub fn last_server(&self, packet: &DataPacket) -> Option<(Index, Time)> {
        let is_server = |(m, _): &&(Index, Time)| self.members[*m].kind == Kind::Server;
        packet.path.iter().rev().find(is_server).copied()
    }

    /// The first Server of a packet's path.
    pub fn first_server(&self, packet: &DataPacket) -> Option<(Index, Time)> {
        let is_server = |(m, _): &&(Index, Time)| self.members[*m].kind == Kind::Server;
        packet.path.iter().find(is_server).copied()
    }
}
