//! The maps, typed.

use std::collections::{HashMap as Map, HashSet};
use std::path::Path;
use std::time::Instant;

use aero_protocol::address::LinkLayerAddress;
use aero_protocol::forwarding::Drop;
use aya::Ebpf;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{
    Array, HashMap, Map as AnyMap, MapData, MapError, PerCpuArray, PerCpuValues, RingBuf,
};
use ipnet::IpNet;

use crate::counters::{Snapshot, Traffic};

use super::slots::Slots;

use super::layout::{
    self, Config, ConfigValue, DirectKey, DirectValue, FlowKey, HandoverKey, HandoverValue, L2,
    PodValue, Prefix, RouteValue, SourceValue, TrafficValue, Was,
};

/// `enum counter` of `bpf/table.h`: the reasons, in its order.
const REASONS: [Drop; 6] = [
    Drop::Malformed,
    Drop::ForeignSource,
    Drop::OriginRefused,
    Drop::NoRoute,
    Drop::WouldReturn,
    Drop::NotForUs,
];

/// What an earlier process has left.
#[derive(Debug, Default)]
pub(super) struct Inherited {
    pub routes: Map<IpNet, Was>,
    pub sources: HashSet<IpNet>,
    pub peers: HashSet<LinkLayerAddress>,
    pub handovers: HashSet<(LinkLayerAddress, IpNet)>,
    pub direct: HashSet<(IpNet, IpNet)>,
    /// Interfaces of pods.
    pub links: HashSet<String>,
}

pub(super) struct Maps {
    config: Array<MapData, ConfigValue>,
    pub(super) routes: LpmTrie<MapData, Prefix, RouteValue>,
    pub(super) sources: LpmTrie<MapData, Prefix, SourceValue>,
    pub(super) peers: HashMap<MapData, L2, u32>,
    pub(super) handovers: LpmTrie<MapData, HandoverKey, HandoverValue>,
    pub(super) direct: LpmTrie<MapData, DirectKey, DirectValue>,
    wanted: Option<RingBuf<MapData>>,
    pub(super) pods: HashMap<MapData, u32, PodValue>,
    ports: HashMap<MapData, u32, u32>,
    counters: PerCpuArray<MapData, u64>,
    pub(super) flows: HashMap<MapData, FlowKey, u32>,
    has_flows: Array<MapData, u32>,
    proven: Array<MapData, u64>,
    neighbors: PerCpuArray<MapData, TrafficValue>,
}

impl Maps {
    /// Takes the maps out of the object. Fails if a pinned one has keys or values of another size.
    pub fn take(object: &mut Ebpf) -> Result<Self, MapError> {
        let mut map = |name: &str| -> Result<AnyMap, MapError> {
            object.take_map(name).ok_or_else(|| MapError::InvalidName { name: name.into() })
        };
        Ok(Self {
            config: map("config")?.try_into()?,
            routes: map("routes")?.try_into()?,
            sources: map("sources")?.try_into()?,
            peers: map("peers")?.try_into()?,
            handovers: map("handovers")?.try_into()?,
            direct: map("direct")?.try_into()?,
            wanted: Some(map("wanted")?.try_into()?),
            pods: map("pods")?.try_into()?,
            ports: map("ports")?.try_into()?,
            counters: map("counters")?.try_into()?,
            flows: map("flows")?.try_into()?,
            has_flows: map("has_flows")?.try_into()?,
            proven: map("proven")?.try_into()?,
            neighbors: map("neighbors")?.try_into()?,
        })
    }

    pub fn set_config(&mut self, config: &Config) -> Result<(), MapError> {
        self.config.set(0, layout::config(config), 0)
    }

    /// Tells the forwarders of this node that this port is served from the loopback.
    pub fn announce(&mut self, port: u16) -> Result<(), MapError> {
        self.ports.insert(layout::port(port), 1, 0)
    }

    pub fn set_route(&mut self, prefix: IpNet, value: RouteValue) -> Result<(), MapError> {
        self.routes.insert(&layout::prefix(prefix), value, 0)
    }

    // Of what is to be removed it is as good to hear that it is not there.

    pub fn remove_route(&mut self, prefix: IpNet) {
        let _ = self.routes.remove(&layout::prefix(prefix));
    }

    pub fn set_source(
        &mut self,
        prefix: IpNet,
        senders: &[(LinkLayerAddress, Option<Instant>)],
        slots: &Slots,
    ) -> Result<(), MapError> {
        let value = layout::source(prefix, senders, |l2| slots.of(l2));
        self.sources.insert(&layout::prefix(prefix), value, 0)
    }

    pub fn remove_source(&mut self, prefix: IpNet) {
        let _ = self.sources.remove(&layout::prefix(prefix));
    }

    /// `is` in the lower half, the slot in the upper.
    pub fn set_peer(&mut self, peer: LinkLayerAddress, is: u32, slot: u16) -> Result<(), MapError> {
        self.peers.insert(layout::l2(peer), is | u32::from(slot) << 16, 0)
    }

    pub fn remove_peer(&mut self, peer: LinkLayerAddress) {
        let _ = self.peers.remove(&layout::l2(peer));
    }

    pub fn set_handover(
        &mut self,
        from: LinkLayerAddress,
        to: IpNet,
        until: Instant,
    ) -> Result<(), MapError> {
        self.handovers.insert(&layout::handover_key(from, to), layout::handover(to, until), 0)
    }

    pub fn remove_handover(&mut self, from: LinkLayerAddress, to: IpNet) {
        let _ = self.handovers.remove(&layout::handover_key(from, to));
    }

    pub fn set_direct(
        &mut self,
        source: IpNet,
        destination: IpNet,
        to: (LinkLayerAddress, u16),
        until: Instant,
    ) -> Result<(), MapError> {
        // That it was used since the last question stays so.
        let key = layout::direct_key(source, destination);
        let used = self.exact_direct(source, destination).is_some_and(|v| layout::is_used(&v));
        self.direct.insert(&key, layout::direct(destination, to, until, used), 0)
    }

    pub fn remove_direct(&mut self, source: IpNet, destination: IpNet) {
        let _ = self.direct.remove(&layout::direct_key(source, destination));
    }

    /// The value of exactly this path; a look-up would find a shorter one too.
    fn exact_direct(&self, source: IpNet, destination: IpNet) -> Option<DirectValue> {
        let value = self.direct.get(&layout::direct_key(source, destination), 0).ok()?;
        layout::is_direct_for(&value, destination).then_some(value)
    }

    /// Whether a path was used since the last call.
    pub fn take_used(&mut self, source: IpNet, destination: IpNet) -> bool {
        let Some(value) = self.exact_direct(source, destination) else { return false };
        if !layout::is_used(&value) {
            return false;
        }
        let key = layout::direct_key(source, destination);
        let _ = self.direct.insert(&key, layout::unused(value), 0);
        true
    }

    /// Until when a neighbour gets IP-in-IP.
    pub fn prove(&mut self, slot: u16, until: Instant) -> Result<(), MapError> {
        self.proven.set(u32::from(slot), layout::until(Some(until)), 0)
    }

    /// That nothing is known about who has a slot.
    pub fn reset(&mut self, slot: u16) {
        let nothing = vec![[0; 32]; aya::util::nr_cpus().unwrap_or(1)];
        let _ = self.proven.set(u32::from(slot), 0, 0);
        if let Ok(nothing) = PerCpuValues::try_from(nothing) {
            let _ = self.neighbors.set(u32::from(slot), nothing, 0);
        }
    }

    /// What went to and from who has a slot: the sum over the processors.
    pub fn traffic(&self, slot: u16) -> Traffic {
        let mut sum = Traffic::default();
        if let Ok(values) = self.neighbors.get(&u32::from(slot), 0) {
            for value in values.iter() {
                sum += layout::read_traffic(value);
            }
        }
        let until = self.proven.get(&u32::from(slot), 0).unwrap_or(0);
        sum.ip_in_ip = layout::is_ahead(until);
        sum
    }

    /// The packets that want a direct path; once.
    pub fn take_wanted(&mut self) -> Option<RingBuf<MapData>> {
        self.wanted.take()
    }

    pub fn set_pod(&mut self, ifindex: u32, prefix: IpNet) -> Result<(), MapError> {
        self.pods.insert(ifindex, layout::pod(prefix), 0)
    }

    pub fn remove_pod(&mut self, ifindex: u32) {
        let _ = self.pods.remove(&ifindex);
    }

    pub fn retain_pods(&mut self, current: &[u32]) {
        let all: Vec<u32> = self.pods.keys().flatten().collect();
        for ifindex in all.into_iter().filter(|i| !current.contains(i)) {
            self.remove_pod(ifindex);
        }
    }

    /// Marks the pods of flows that an earlier version has remembered without doing so.
    pub fn mark_flows(&mut self) -> Result<(), MapError> {
        for flow in self.flows.keys().flatten() {
            self.has_flows.set(layout::flow_bucket(&flow), 1, 0)?;
        }
        Ok(())
    }

    /// What is in the maps.
    pub fn inherited(&self) -> Inherited {
        let mut found = Inherited::default();
        for (key, value) in self.routes.iter().flatten() {
            if let (Some(prefix), Some(was)) =
                (layout::read_prefix(&key), layout::read_route(&value))
            {
                found.routes.insert(prefix, was);
            }
        }
        found.sources =
            self.sources.keys().flatten().filter_map(|k| layout::read_prefix(&k)).collect();
        found.peers = self.peers.keys().flatten().filter_map(|k| layout::read_l2(&k)).collect();
        let handovers = self.handovers.keys().flatten();
        found.handovers = handovers.filter_map(|k| layout::read_handover_key(&k)).collect();
        let direct = self.direct.keys().flatten();
        found.direct = direct.filter_map(|k| layout::read_direct_key(&k)).collect();
        let pods = self.pods.keys().flatten();
        found.links = pods.filter_map(super::node::name_of).collect();
        found
    }

    pub fn remove_inherited(&mut self, inherited: &Inherited) {
        for prefix in inherited.routes.keys() {
            self.remove_route(*prefix);
        }
        for prefix in &inherited.sources {
            self.remove_source(*prefix);
        }
        for peer in &inherited.peers {
            self.remove_peer(*peer);
        }
        for (from, to) in &inherited.handovers {
            self.remove_handover(*from, *to);
        }
        for (source, destination) in &inherited.direct {
            self.remove_direct(*source, *destination);
        }
    }

    /// Adds the programs' counters, each the sum over the processors.
    pub fn add_counters(&self, to: &mut Snapshot) {
        let mut next = 0;
        let mut take = || -> u64 {
            let values = self.counters.get(&next, 0);
            next += 1;
            values.map(|v| v.iter().sum()).unwrap_or(0)
        };
        for why in REASONS {
            *to.drops.entry(why).or_default() += take();
        }
        to.delivered_packets += take();
        to.delivered_bytes += take();
        to.tunneled_packets += take();
        to.tunneled_bytes += take();
        to.passed_packets += take();
        to.send_errors += take();
    }
}

/// Takes a port out of the map of ports, if there is one.
pub(super) fn withdraw(map: &Path, port: u16) {
    let Ok(data) = MapData::from_pin(map) else { return };
    if let Ok(mut ports) = HashMap::<_, u32, u32>::try_from(AnyMap::HashMap(data)) {
        let _ = ports.remove(&layout::port(port));
    }
}
