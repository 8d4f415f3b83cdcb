//! Forwarding Agents, as a Client sees them: draft -48 section 3.12.
//!
//! A Server announces its agent by a Router Advertisement with the agent's link-layer address. Data
//! then goes by the agent, for one prefix or for all; control messages go to the Server as before.
//! The draft has no rule for an agent that dies. Ours: while data is to go by it, it is solicited
//! every second, by the Server's link-local address, which is also its own; after two solicitations
//! without an answer, within three seconds, data goes by the Server again, which announces the
//! agent anew when it lives.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use ipnet::IpNet;
use rand::Rng;

use super::{Client, Node, Timer};
use crate::address::{LinkLayerAddress, aero_address, prefix_of_aero_address};
use crate::forwarding::{Change, NextHop, Route};
use crate::timers::RETRANS_TIMER;
use crate::wire::WireError;
use crate::wire::nd::{Nd, NdMessage, NdOption};

/// How long an agent that is not heard of again may send to us. Servers speak of it at each
/// renewal, which is every 20 seconds.
const ACCEPT_AGENT_TIME: Duration = Duration::from_secs(60);
/// Solicitations that may go unanswered.
const AGENT_RETRY: u8 = 2;
/// Most agents of a node.
const MAX_AGENTS: usize = 64;
/// Most prefixes that go by one agent.
const MAX_ROUTES: usize = 4096;

/// An agent that a Server has announced.
#[derive(Debug)]
pub(super) struct Agent {
    /// Whose agent it is.
    server: LinkLayerAddress,
    /// Until when it may send to us.
    until: Instant,
    /// Prefixes that go by it.
    routes: BTreeSet<IpNet>,
    /// All data goes by it.
    all: bool,
    unanswered: u8,
    nonce: [u8; 6],
}

impl Agent {
    fn is_used(&self) -> bool {
        self.all || !self.routes.is_empty()
    }
}

/// The agents of a node, by their addresses.
pub(super) type Agents = BTreeMap<LinkLayerAddress, Agent>;

impl Node {
    /// A Router Advertisement from a Server.
    pub(super) fn router_advertised(
        &mut self,
        server: LinkLayerAddress,
        nd: &Nd,
        lifetime: u16,
        now: Instant,
    ) -> Result<(), WireError> {
        let best = nd
            .options
            .iter()
            .filter_map(|o| match o {
                NdOption::SourceLinkLayer(l) if l.preference > 0 => l.address.zip(Some(l)),
                _ => None,
            })
            .filter(|(at, _)| at.port != 0 && !at.ip.is_multicast() && !at.ip.is_unspecified())
            .max_by_key(|(_, l)| (l.preference, 255 - l.link_id));
        let (at, _) = best.ok_or(WireError::Unsupported)?;
        // It speaks for itself, or for one of its Clients.
        let about = prefix_of_aero_address(nd.source);
        let own = self.servers.get(&server).and_then(|s| s.address);
        if about.is_none() && own != Some(nd.source) || self.servers.contains_key(&at) {
            return Err(WireError::BadAddress);
        }
        if !self.agents.contains_key(&at) {
            if self.agents.len() >= MAX_AGENTS {
                return Err(WireError::Unsupported);
            }
            self.change(Change::AddPeer(at));
        }
        let agent = self.agents.entry(at).or_insert_with(|| Agent {
            server,
            until: now,
            routes: BTreeSet::new(),
            all: false,
            unanswered: 0,
            nonce: [0; 6],
        });
        let used = agent.is_used();
        agent.server = server;
        agent.until = now + ACCEPT_AGENT_TIME;
        match about {
            Some(prefix) => self.route_by_agent(at, prefix),
            None if lifetime > 0 => {
                agent.all = true;
                self.route_asps();
            }
            None => {}
        }
        if !used && self.agents.get(&at).is_some_and(Agent::is_used) {
            if let Some(agent) = self.agents.get_mut(&at) {
                agent.unanswered = 0;
            }
            self.agent_due(at, now);
        } else if !used {
            self.timers.set(Timer::Agent(at), now + ACCEPT_AGENT_TIME);
        }
        Ok(())
    }

    fn route_by_agent(&mut self, at: LinkLayerAddress, prefix: IpNet) {
        let here = |c: &Client| c.prefixes.iter().any(|p| p.contains(&prefix));
        let ours = self.clients.values().any(here) || self.departed.contains_key(&prefix);
        let in_service = self.config.asps.iter().any(|asp| asp.contains(&prefix));
        let Some(agent) = self.agents.get_mut(&at) else { return };
        if ours || !in_service || agent.routes.len() >= MAX_ROUTES {
            return;
        }
        if agent.routes.insert(prefix) {
            let route = Route { to: NextHop::Neighbor(at), transit: false, until: None };
            self.change(Change::SetRoute { prefix, route });
        }
    }

    /// The agent by which all data goes that would else go by this Server.
    pub(super) fn agent_of(&self, server: LinkLayerAddress) -> Option<LinkLayerAddress> {
        self.agents.iter().find(|(_, a)| a.all && a.server == server).map(|(at, _)| *at)
    }

    /// Solicits an agent that is in use, or forgets one that is not heard of any more.
    pub(super) fn agent_due(&mut self, at: LinkLayerAddress, now: Instant) {
        let nonce: [u8; 6] = self.rng.random();
        let Some(agent) = self.agents.get_mut(&at) else { return };
        if !agent.is_used() {
            if agent.until <= now {
                self.forget_agent(at);
            } else {
                self.timers.set(Timer::Agent(at), agent.until);
            }
            return;
        }
        if agent.unanswered >= AGENT_RETRY {
            self.leave_agent(at);
            return;
        }
        agent.unanswered += 1;
        agent.nonce = nonce;
        let server = agent.server;
        self.timers.set(Timer::Agent(at), now + RETRANS_TIMER);
        let Some(state) = self.servers.get(&server) else { return };
        let source = state
            .bound
            .iter()
            .filter_map(|id| self.clients.get(id))
            .find_map(|c| c.prefixes.first())
            .map(|p| aero_address(*p));
        let (Some(source), Some(target)) = (source, state.address) else { return };
        let message = NdMessage::Solicitation { target };
        let options = vec![NdOption::Nonce(nonce.to_vec())];
        if let Ok(packet) = (Nd { source, destination: target, message, options }).emit() {
            self.send(at, packet);
        }
    }

    /// What comes straight from an agent: answers to our solicitations, and nothing else.
    pub(super) fn agent_says(
        &mut self,
        at: LinkLayerAddress,
        nd: &Nd,
        now: Instant,
    ) -> Result<(), WireError> {
        let agent = self.agents.get_mut(&at).ok_or(WireError::BadAddress)?;
        let answer = matches!(nd.message, NdMessage::Advertisement { solicited: true, .. });
        if !answer || nd.nonce() != Some(&agent.nonce) {
            return Err(WireError::BadAddress);
        }
        agent.unanswered = 0;
        agent.until = now + ACCEPT_AGENT_TIME;
        Ok(())
    }

    /// The underlay says that an agent is not reached: data goes by the Server at once. Forged, this
    /// costs a way that is no worse than the one before the agent was announced.
    pub fn agent_unreachable(&mut self, at: LinkLayerAddress) {
        self.leave_agent(at);
    }

    /// The agents that data goes by at present.
    pub fn forwarding_agents(&self) -> impl Iterator<Item = LinkLayerAddress> {
        self.agents.iter().filter(|(_, a)| a.is_used()).map(|(at, _)| *at)
    }

    /// Data goes by the Server again. What the agent still sends to us is taken.
    fn leave_agent(&mut self, at: LinkLayerAddress) {
        let Some(agent) = self.agents.get_mut(&at) else { return };
        agent.all = false;
        agent.unanswered = 0;
        let until = agent.until;
        let routes = std::mem::take(&mut agent.routes);
        for prefix in routes {
            // It may have come to this node meanwhile; then the route is another's.
            let here = |c: &Client| c.prefixes.contains(&prefix);
            if !self.clients.values().any(here) && !self.departed.contains_key(&prefix) {
                self.change(Change::RemoveRoute { prefix });
            }
        }
        self.timers.set(Timer::Agent(at), until);
        self.route_asps();
    }

    fn forget_agent(&mut self, at: LinkLayerAddress) {
        self.leave_agent(at);
        self.timers.cancel(&Timer::Agent(at));
        if self.agents.remove(&at).is_some() && !self.servers.contains_key(&at) {
            self.change(Change::RemovePeer(at));
        }
    }

    /// A Server is not used any more, so neither are its agents.
    pub(super) fn leave_agents_of(&mut self, server: LinkLayerAddress) {
        let of_it = self.agents.iter().filter(|(_, a)| a.server == server && a.is_used());
        for at in of_it.map(|(at, _)| *at).collect::<Vec<_>>() {
            self.leave_agent(at);
        }
    }
}
