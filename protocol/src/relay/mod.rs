//! The Relay: forwards between Servers and joins the link to the Internetwork (draft -48 sections
//! 3.2, 3.5, 3.6).
//!
//! It knows every Server by configuration (permanent neighbour cache entries) and every ACP by
//! routes that are set from outside ([`Relay::set_route`]): BGP, or a file. It has no Clients, no
//! leases and no timers. User data follows its [`forwarding::Table`](crate::forwarding::Table):
//!
//! | inner destination | then |
//! | --- | --- |
//! | an ACP with a route | to that Server, never back to the one it came from |
//! | a service prefix, no route | black hole, ICMP Destination Unreachable |
//! | anything else | out of the tunnel, to the node's own network layer |
//!
//! From the network layer only sources outside the service prefixes enter the link, so nobody
//! outside can send in the name of a Client.

mod routes;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::Ipv6Addr;
use std::time::Instant;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::Output;
use crate::address::{
    LinkLayerAddress, SERVER_ANYCAST, ServerId, is_usable_acp, prefix_of_aero_address,
};
use crate::forwarding::{Change, NextHop, Route};
use crate::passing;
use crate::wire::WireError;
use crate::wire::ip::Packet;
use crate::wire::nd::{Nd, NdMessage, NdOption};
use routes::Routes;

/// What a Relay is told at its start.
#[derive(Debug, Clone)]
pub struct Config {
    /// Its link-local identity.
    pub id: ServerId,
    /// The AERO Service Prefixes of the link.
    pub asps: Vec<IpNet>,
}

/// What a Relay reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A control packet was dropped.
    Dropped {
        /// Its outer source.
        from: LinkLayerAddress,
        /// Why.
        why: Refused,
    },
}

/// Why a control packet was dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Refused {
    /// It did not come from a permanent neighbour.
    #[error("not from a Server of this Relay")]
    NotANeighbor,
    /// Nobody announces its destination.
    #[error("no Server announces the destination")]
    NoRoute,
    /// Its destination is at the Server that it came from.
    #[error("it would go back to where it came from")]
    WouldReturn,
    /// It is not well-formed or nothing to be passed on.
    #[error("{0}")]
    Wire(#[from] WireError),
}

/// Why a route is not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum RouteRefused {
    /// It is in no service prefix of the link.
    #[error("the prefix is in no service prefix of this link")]
    OutsideService,
    /// No ACP may be like this ([`is_usable_acp`]).
    #[error("no client prefix may have this form")]
    NoAcp,
}

/// A permanent neighbour cache entry: a Server.
#[derive(Debug, Clone)]
struct Server {
    at: LinkLayerAddress,
    /// Its Forwarding Agents: what comes from them is accepted like its own.
    agents: Vec<LinkLayerAddress>,
    usable: bool,
}

/// The Relay engine.
#[derive(Debug)]
pub struct Relay {
    config: Config,
    servers: BTreeMap<ServerId, Server>,
    by_link_layer: HashMap<LinkLayerAddress, ServerId>,
    routes: Routes,
    outputs: VecDeque<Output<Event>>,
}

impl Relay {
    /// A Relay that knows no Server.
    pub fn new(config: Config) -> Self {
        let mut relay = Self {
            config: Config { id: config.id, asps: Vec::new() },
            servers: BTreeMap::new(),
            by_link_layer: HashMap::new(),
            routes: Routes::default(),
            outputs: VecDeque::new(),
        };
        for all in [IpNet::from(Ipv6Net::default()), IpNet::from(Ipv4Net::default())] {
            relay.route(all, NextHop::Local);
        }
        relay.set_asps(config.asps);
        relay
    }

    /// What to do next, in order.
    pub fn poll_output(&mut self) -> Option<Output<Event>> {
        self.outputs.pop_front()
    }

    /// A Relay has no timers.
    pub fn poll_timeout(&self) -> Option<Instant> {
        None
    }

    /// A Relay has no timers.
    pub fn handle_timeout(&mut self, _now: Instant) {}

    /// Replaces the service prefixes: what is in one of them and has no route is swallowed.
    pub fn set_asps(&mut self, asps: Vec<IpNet>) {
        let asps: Vec<IpNet> = asps.iter().map(IpNet::trunc).collect();
        let old = std::mem::replace(&mut self.config.asps, asps.clone());
        for prefix in old.iter().filter(|p| !asps.contains(p)) {
            self.change(Change::RemoveRoute { prefix: *prefix });
        }
        for prefix in asps.iter().filter(|p| !old.contains(p)) {
            self.route(*prefix, NextHop::Unreachable);
        }
        // What was an ACP and is in no service prefix any more is part of the Internetwork now.
        let outside: Vec<_> = self
            .routes
            .iter()
            .filter(|(acp, _)| !self.in_service(*acp))
            .flat_map(|(acp, list)| list.iter().map(move |s| (acp, *s)))
            .collect();
        for (acp, server) in outside {
            self.remove_route(acp, server);
        }
    }

    /// A permanent entry for a Server; in place of the one that it had.
    pub fn add_server(&mut self, id: ServerId, at: LinkLayerAddress) {
        if self.servers.get(&id).is_some_and(|s| s.at == at) {
            return;
        }
        let agents = self.servers.get(&id).map(|s| s.agents.clone()).unwrap_or_default();
        self.forget(id);
        self.servers.insert(id, Server { at, agents: Vec::new(), usable: true });
        self.by_link_layer.insert(at, id);
        self.change(Change::AddPeer(at));
        for agent in agents {
            self.add_agent(id, agent);
        }
        self.reroute(id);
    }

    /// Removes it. Its routes wait for it to come back, or to be withdrawn.
    pub fn remove_server(&mut self, id: ServerId) {
        self.forget(id);
        self.reroute(id);
    }

    /// The permanent neighbours.
    pub fn servers(&self) -> impl Iterator<Item = (ServerId, LinkLayerAddress)> {
        self.servers.iter().map(|(id, server)| (*id, server.at))
    }

    /// Tells whether a Server can be used: BGP or BFD lost or found it. Permanent entries have no
    /// Neighbor Unreachability Detection (draft -48 section 3.13).
    pub fn set_usable(&mut self, id: ServerId, usable: bool) {
        if let Some(server) = self.servers.get_mut(&id)
            && server.usable != usable
        {
            server.usable = usable;
            self.reroute(id);
        }
    }

    /// A Forwarding Agent of a Server: accepted as a source like the Server itself.
    pub fn add_agent(&mut self, id: ServerId, at: LinkLayerAddress) {
        let Some(server) = self.servers.get_mut(&id) else { return };
        if server.at != at && !server.agents.contains(&at) {
            server.agents.push(at);
            self.by_link_layer.insert(at, id);
            self.change(Change::AddPeer(at));
        }
    }

    /// A Server announces an ACP. Of several announcers the newest is used; setting a route again
    /// makes it the newest.
    ///
    /// # Errors
    /// If the prefix can be no ACP of this link.
    pub fn set_route(&mut self, acp: IpNet, server: ServerId) -> Result<(), RouteRefused> {
        let acp = acp.trunc();
        if !self.in_service(acp) {
            return Err(RouteRefused::OutsideService);
        }
        if !is_usable_acp(acp) {
            return Err(RouteRefused::NoAcp);
        }
        let before = self.best(acp);
        self.routes.add(acp, server);
        self.update(acp, before);
        Ok(())
    }

    /// A Server withdraws an ACP.
    pub fn remove_route(&mut self, acp: IpNet, server: ServerId) {
        let acp = acp.trunc();
        let before = self.best(acp);
        self.routes.remove(acp, server);
        self.update(acp, before);
    }

    /// All ACPs with the Servers that announce them, the newest last.
    pub fn routes(&self) -> impl Iterator<Item = (IpNet, &[ServerId])> {
        self.routes.iter()
    }

    /// How many ACPs have a route.
    pub fn route_count(&self) -> usize {
        self.routes.len()
    }

    /// A control packet that came from `from`.
    pub fn handle_packet(&mut self, from: LinkLayerAddress, packet: &[u8], _now: Instant) {
        if let Err(why) = self.try_packet(from, packet) {
            self.outputs.push_back(Output::Event(Event::Dropped { from, why }));
        }
    }

    fn try_packet(&mut self, from: LinkLayerAddress, bytes: &[u8]) -> Result<(), Refused> {
        let sender = *self.by_link_layer.get(&from).ok_or(Refused::NotANeighbor)?;
        let packet = Packet::parse(bytes)?;
        if packet.destination == self.config.id.address() {
            return Ok(self.answer(from, &Nd::parse(&packet)?)?);
        }
        // The anycast address is every Server's and no Relay's.
        if packet.destination == SERVER_ANYCAST {
            return Err(Refused::NoRoute);
        }
        passing::sort(&packet)?;
        let server = self.server_of(packet.destination).ok_or(Refused::NoRoute)?;
        if server == sender {
            return Err(Refused::WouldReturn);
        }
        let to = self.servers.get(&server).map(|s| s.at).ok_or(Refused::NoRoute)?;
        self.outputs.push_back(Output::Send { to, packet: bytes.to_vec() });
        Ok(())
    }

    /// The Server behind a link-local destination: itself, or the one that announces the prefix.
    fn server_of(&self, destination: Ipv6Addr) -> Option<ServerId> {
        if passing::is_identity(destination) {
            return self.servers.keys().copied().find(|id| id.address() == destination);
        }
        let mut prefix = prefix_of_aero_address(destination)?;
        loop {
            if let Some(server) = self.best(prefix) {
                return Some(server);
            }
            prefix = prefix.supernet()?;
        }
    }

    /// Answers a solicitation of its own address, through the neighbour that it came from.
    fn answer(&mut self, from: LinkLayerAddress, nd: &Nd) -> Result<(), WireError> {
        let own = self.config.id.address();
        match nd.message {
            NdMessage::Solicitation { target } if target == own => {}
            NdMessage::Solicitation { .. } => return Err(WireError::BadAddress),
            _ => return Err(WireError::Unsupported),
        }
        let message =
            NdMessage::Advertisement { solicited: true, override_cached: false, target: own };
        let options = nd.nonce().map(|n| NdOption::Nonce(n.to_vec())).into_iter().collect();
        let answer = Nd { source: own, destination: nd.source, message, options };
        let packet = answer.emit()?;
        self.outputs.push_back(Output::Send { to: from, packet });
        Ok(())
    }

    fn in_service(&self, acp: IpNet) -> bool {
        self.config.asps.iter().any(|asp| asp.contains(&acp))
    }

    fn best(&self, acp: IpNet) -> Option<ServerId> {
        self.routes.best(acp, |id| self.servers.get(&id).is_some_and(|s| s.usable))
    }

    /// Writes the route of an ACP if it is another than before.
    fn update(&mut self, acp: IpNet, before: Option<ServerId>) {
        let best = self.best(acp);
        if best != before {
            self.write(acp, best);
        }
    }

    fn write(&mut self, acp: IpNet, best: Option<ServerId>) {
        match best.and_then(|id| self.servers.get(&id)) {
            Some(server) => self.route(acp, NextHop::Neighbor(server.at)),
            // An ACP that is a service prefix as a whole leaves its black hole.
            None if self.config.asps.contains(&acp) => self.route(acp, NextHop::Unreachable),
            None => self.change(Change::RemoveRoute { prefix: acp }),
        }
    }

    /// A Server came, went or moved: writes all routes that it announces.
    fn reroute(&mut self, id: ServerId) {
        for acp in self.routes.of(id) {
            let best = self.best(acp);
            self.write(acp, best);
        }
    }

    fn forget(&mut self, id: ServerId) {
        let Some(server) = self.servers.remove(&id) else { return };
        for at in server.agents.into_iter().chain([server.at]) {
            if self.by_link_layer.get(&at) == Some(&id) {
                self.by_link_layer.remove(&at);
                self.change(Change::RemovePeer(at));
            }
        }
    }

    fn route(&mut self, prefix: IpNet, to: NextHop) {
        let route = Route { to, transit: true, until: None };
        self.change(Change::SetRoute { prefix, route });
    }

    fn change(&mut self, change: Change) {
        self.outputs.push_back(Output::Forward(change));
    }
}
