//! The table as this process knows it, and what it does to the maps.

use std::time::Instant;

use aero_protocol::address::LinkLayerAddress;
use aero_protocol::forwarding::{Change, NextHop, Route};
use aya::programs::{SchedClassifier, TcAttachType};
use ipnet::IpNet;

use super::hooks::cause;
use super::layout::{self, Behind, Was};
use super::{Senders, State, Unavailable, complain, doing, node};
use crate::table::PodInterface;

impl State {
    pub(super) fn program(&mut self, name: &str) -> Result<&mut SchedClassifier, Unavailable> {
        let missing = || Unavailable::Kernel { what: "loading the programs", why: name.into() };
        let program = self.object.program_mut(name).ok_or_else(missing)?;
        program.try_into().map_err(doing("loading the programs"))
    }

    pub(super) fn attach(
        &mut self,
        name: &str,
        device: &str,
        way: TcAttachType,
    ) -> Result<(), String> {
        let program = self.object.program_mut(name).ok_or("there is no such program")?;
        let program = program.try_into().map_err(|e| cause(&e))?;
        self.attached.attach(program, device, way)
    }

    /// From now on what the programs have decided before does not count any more: to be called
    /// after each change of what they look up.
    pub(super) fn changed(&mut self) {
        self.config.table = layout::next_table(self.config.table);
        self.configure();
    }

    /// Tells the programs the configuration as it is now.
    pub(super) fn configure(&mut self) {
        let set = self.maps.set_config(&self.config);
        set.unwrap_or_else(|e| complain("config", &e));
    }

    /// The interface that a prefix is behind. Until it is told this process goes by what the one
    /// before it knew, or packets would take turns between the short way and the long one.
    pub(super) fn behind(&self, prefix: IpNet) -> Option<Behind> {
        let told = self.pods.values().find(|(p, _)| *p == prefix).map(|(_, b)| *b);
        told.or_else(|| match self.inherited.as_ref()?.routes.get(&prefix)? {
            Was::Local(behind) => behind.filter(|b| node::name_of(b.ifindex).is_some()),
            Was::ToNeighbor => None,
        })
    }

    pub(super) fn set_route(&mut self, prefix: IpNet, route: Route) {
        let slot = match route.to {
            NextHop::Neighbor(to) => self.slots.of(to),
            NextHop::Local | NextHop::Unreachable | NextHop::Hold { .. } => 0,
        };
        let value = layout::route(prefix, &route, self.behind(prefix), slot);
        self.maps.set_route(prefix, value).unwrap_or_else(|e| complain("routes", &e));
        match route.to {
            NextHop::Local => drop(self.locals.insert(prefix, route)),
            NextHop::Neighbor(_) | NextHop::Unreachable | NextHop::Hold { .. } => {
                self.locals.remove(&prefix);
            }
        }
        match route.until {
            Some(until) => drop(self.routes.insert(prefix, until)),
            None => drop(self.routes.remove(&prefix)),
        }
        if let Some(inherited) = &mut self.inherited {
            inherited.routes.remove(&prefix);
        }
    }

    pub(super) fn add_peer(&mut self, peer: LinkLayerAddress, is: u32) {
        if !self.peers.contains_key(&peer) {
            self.slots.hold(peer, Instant::now());
        }
        let all = self.peers.entry(peer).or_default();
        *all |= is;
        let set = self.maps.set_peer(peer, *all, self.slots.of(peer));
        set.unwrap_or_else(|e| complain("peers", &e));
        if let Some(inherited) = &mut self.inherited {
            inherited.peers.remove(&peer);
        }
    }

    pub(super) fn set_source(&mut self, prefix: IpNet, senders: Senders) {
        let now = Instant::now();
        for (from, _) in &senders {
            self.slots.hold(*from, now);
        }
        let set = self.maps.set_source(prefix, &senders, &self.slots);
        set.unwrap_or_else(|e| complain("sources", &e));
        if senders.iter().any(|(_, until)| until.is_some()) {
            self.ending.insert(prefix);
        } else {
            self.ending.remove(&prefix);
        }
        if let Some(before) = self.sources.insert(prefix, senders) {
            self.release(before.into_iter().map(|(from, _)| from));
        }
        if let Some(inherited) = &mut self.inherited {
            inherited.sources.remove(&prefix);
        }
    }

    fn is_inherited_source(&self, prefix: IpNet) -> bool {
        self.inherited.as_ref().is_some_and(|i| i.sources.contains(&prefix))
    }

    pub(super) fn remove_route(&mut self, prefix: IpNet) {
        // An engine that has just started has no Server yet and says so. What the last one knew
        // is better than nothing, for a while.
        let inherited = self.inherited.as_ref().and_then(|i| i.routes.get(&prefix));
        if inherited == Some(&Was::ToNeighbor) {
            return;
        }
        self.locals.remove(&prefix);
        self.routes.remove(&prefix);
        self.maps.remove_route(prefix);
    }

    pub(super) fn apply(&mut self, change: &Change) {
        match change {
            Change::SetRoute { prefix, route } => self.set_route(prefix.trunc(), *route),
            Change::RemoveRoute { prefix } => self.remove_route(prefix.trunc()),
            Change::AddPeer(peer) => self.add_peer(*peer, layout::PEER),
            Change::AddRelay(peer) => self.add_peer(*peer, layout::PEER | layout::RELAY),
            Change::AddAgent(peer) => self.add_peer(*peer, layout::AGENT),
            Change::RemovePeer(peer) => {
                if self.peers.remove(peer).is_some() {
                    self.release([*peer]);
                }
                self.maps.remove_peer(*peer);
            }
            Change::SetSource { prefix, from, until } => {
                self.set_source(prefix.trunc(), vec![(*from, *until)]);
            }
            Change::AddSource { prefix, from, until } => {
                let prefix = prefix.trunc();
                let mut senders = self.sources.get(&prefix).cloned().unwrap_or_default();
                senders.retain(|(l2, _)| l2 != from);
                senders.push((*from, *until));
                self.set_source(prefix, senders);
            }
            // One that has just started accepts nothing straight yet, and says so. Whoever was
            // accepted by the one before it does not know that, and goes on sending.
            Change::RemoveSource { prefix } if self.is_inherited_source(prefix.trunc()) => {}
            Change::RemoveSource { prefix } => {
                let before = self.sources.remove(&prefix.trunc()).unwrap_or_default();
                self.release(before.into_iter().map(|(from, _)| from));
                self.ending.remove(&prefix.trunc());
                self.maps.remove_source(prefix.trunc());
            }
            Change::SetHandover { prefix, from, until } => {
                let prefix = prefix.trunc();
                let set = self.maps.set_handover(*from, prefix, *until);
                set.unwrap_or_else(|e| complain("hand-overs", &e));
                self.handovers.insert((*from, prefix), *until);
                if let Some(inherited) = &mut self.inherited {
                    inherited.handovers.remove(&(*from, prefix));
                }
            }
            Change::SetDirect { source, destination, to, until } => {
                self.set_direct(source.trunc(), destination.trunc(), *to, *until);
            }
            Change::RemoveDirect { source, destination } => {
                self.remove_direct(source.trunc(), destination.trunc());
            }
        }
    }

    pub(super) fn expire(&mut self, now: Instant) {
        let maps = &mut self.maps;
        let locals = &mut self.locals;
        self.routes.retain(|prefix, until| {
            if *until <= now {
                locals.remove(prefix);
                maps.remove_route(*prefix);
            }
            *until > now
        });
        let sources = &mut self.sources;
        let mut gone = Vec::new();
        self.ending.retain(|prefix| {
            let live = |(_, until): &(_, Option<Instant>)| until.is_none_or(|t| t > now);
            let any = sources.get(prefix).is_some_and(|s| s.iter().any(live));
            if !any {
                gone.extend(sources.remove(prefix).into_iter().flatten().map(|(from, _)| from));
                maps.remove_source(*prefix);
            }
            any
        });
        self.handovers.retain(|(from, prefix), until| {
            if *until <= now {
                maps.remove_handover(*from, *prefix);
            }
            *until > now
        });
        self.direct.retain(|(source, destination), (until, to)| {
            if *until <= now {
                maps.remove_direct(*source, *destination);
                gone.push(*to);
            }
            *until > now
        });
        self.release(gone);
    }

    pub(super) fn forget_inherited(&mut self) {
        let Some(inherited) = self.inherited.take() else { return };
        self.maps.remove_inherited(&inherited);
        self.changed();
        let current: Vec<u32> = self.pods.values().map(|(_, b)| b.ifindex).collect();
        self.maps.retain_pods(&current);
        for (device, way) in self.attached.pinned() {
            let of_pod = way == TcAttachType::Ingress && inherited.links.contains(&device);
            if of_pod && !self.pods.contains_key(&device) {
                self.attached.detach(&device, way);
            }
        }
    }

    pub(super) fn connect(&mut self, pod: &PodInterface<'_>) -> Result<(), String> {
        let ifindex = node::index_of(pod.name).map_err(|e| e.to_string())?;
        let behind = Behind { ifindex, mac: pod.mac, node_mac: pod.node_mac };
        let prefix = pod.prefix.trunc();
        self.maps.set_pod(ifindex, prefix).map_err(|e| cause(&e))?;
        self.attach("pod_ingress", pod.name, TcAttachType::Ingress)?;
        self.pods.insert(pod.name.to_string(), (prefix, behind));
        // Both ways or none: a firewall that sees one half of a conversation drops it.
        if let Some(route) = self.locals.get(&prefix).copied() {
            self.set_route(prefix, route);
            self.changed();
        }
        Ok(())
    }

    pub(super) fn disconnect(&mut self, name: &str) {
        self.attached.detach(name, TcAttachType::Ingress);
        let Some((prefix, behind)) = self.pods.remove(name) else { return };
        self.maps.remove_pod(behind.ifindex);
        if let Some(route) = self.locals.get(&prefix).copied() {
            self.set_route(prefix, route);
            self.changed();
        }
    }

    /// One holder of each neighbour's slot less.
    pub(super) fn release(&mut self, neighbors: impl IntoIterator<Item = LinkLayerAddress>) {
        let now = Instant::now();
        for neighbor in neighbors {
            if let Some(slot) = self.slots.release(neighbor, now) {
                self.maps.reset(slot);
                self.sent.remove(&neighbor);
            }
        }
    }
}
