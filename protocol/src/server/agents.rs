//! The Server as the companion of Forwarding Agents: draft -48 section 3.12.
//!
//! An agent is fed with the routes of this Server's Clients (everything else it sends to its
//! companion). A data packet that arrives here and could have gone by an agent is forwarded as
//! usual, and its sender is told of the agent by a Router Advertisement with the agent's address
//! in an SLLAO, at a limited rate:
//!
//! | scope | inner source | router lifetime |
//! | --- | --- | --- |
//! | one prefix | AERO address of the destination | 0 |
//! | everything | the Server's own | the lease |
//! | only accept | the Server's own | 0 |
//!
//! The last one is ours: a Client takes data from its Servers only, so it has to know the agent
//! before others send to it that way. It is sent when the Client associates (three times) and with
//! each renewal.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use ipnet::IpNet;

use super::{Neighbor, Server, Timer};
use crate::address::{LinkLayerAddress, aero_address};
use crate::forwarding::{Change, Inner, NextHop, Route};
use crate::forwarding_agent::feed::{FeedChange, FeedError, Message, VERSION};
use crate::timers::{MAX_NEIGHBOR_ADVERTISEMENT, RETRANS_TIMER};
use crate::wire::nd::{LinkLayerOption, Nd, NdMessage, NdOption};

/// Between two Router Advertisements to one Client about one agent and prefix.
pub const AGENT_RA_INTERVAL: Duration = Duration::from_secs(10);
/// An agent that has not echoed a sign of life for this long is announced no more.
const AGENT_SILENCE: Duration = Duration::from_secs(3);
/// Lines that wait for an agent at most; one that does not read them is cut off, and gets the
/// whole state when it comes back.
const MAX_QUEUE: usize = 1 << 17;
/// Announcements that are remembered for their rate.
const MAX_REMEMBERED: usize = 1 << 16;

/// For what an agent is announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    /// For the prefixes of this Server's Clients, one by one as they are sent to.
    Prefix,
    /// For all data.
    All,
}

/// A Forwarding Agent, as its Server is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentConfig {
    /// Where Clients send their data: the agent's underlay address and port.
    pub at: LinkLayerAddress,
    /// Where the agent sends what is for none of this Server's Clients: this Server.
    pub companion: LinkLayerAddress,
    /// For what it is announced.
    pub scope: Scope,
}

#[derive(Debug)]
struct Agent {
    config: AgentConfig,
    connected: bool,
    /// When it was last heard; `None` until it is synchronized.
    heard: Option<Instant>,
    number: u64,
    queue: VecDeque<Message>,
}

/// All agents of a Server.
#[derive(Debug, Default)]
pub(super) struct Agents {
    all: BTreeMap<LinkLayerAddress, Agent>,
    announced: BTreeMap<(IpNet, IpNet), Instant>,
    /// Clients that are still to be told of the agents, and how often.
    notices: BTreeMap<IpNet, u8>,
}

impl Agents {
    /// The agent that is announced: the first that is fed and answers.
    fn usable(&self, now: Instant) -> Option<AgentConfig> {
        let lives = |a: &&Agent| a.heard.is_some_and(|t| now < t + AGENT_SILENCE);
        self.all.values().find(lives).map(|a| a.config)
    }

    /// False if this announcement was made a short while ago.
    fn may_announce(&mut self, key: (IpNet, IpNet), now: Instant) -> bool {
        let recent = |t: &Instant| now < *t + AGENT_RA_INTERVAL;
        if self.announced.get(&key).is_some_and(recent) {
            return false;
        }
        if self.announced.len() >= MAX_REMEMBERED {
            self.announced.retain(|_, t| recent(t));
        }
        let room = self.announced.len() < MAX_REMEMBERED;
        if room {
            self.announced.insert(key, now);
        }
        room
    }
}

impl Server {
    /// A Forwarding Agent of this Server. What it sends on is accepted from now on; it is announced
    /// once it is fed.
    pub fn add_forwarding_agent(&mut self, config: AgentConfig, now: Instant) {
        self.remove_forwarding_agent(config.at);
        let agent =
            Agent { config, connected: false, heard: None, number: 0, queue: VecDeque::new() };
        self.agents.all.insert(config.at, agent);
        self.change(Change::AddAgent(config.at));
        self.timers.set(Timer::Agent(config.at), now + RETRANS_TIMER);
    }

    /// Takes it away. Clients find out within three seconds, as the agent is fed no more.
    pub fn remove_forwarding_agent(&mut self, at: LinkLayerAddress) {
        if self.agents.all.remove(&at).is_some() {
            self.timers.cancel(&Timer::Agent(at));
            self.change(Change::RemovePeer(at));
        }
    }

    /// The stream to an agent is there: it gets the whole state, then each change.
    pub fn agent_connected(&mut self, at: LinkLayerAddress, now: Instant) {
        let Some(agent) = self.agents.all.get(&at) else { return };
        let to = NextHop::Neighbor(agent.config.companion);
        let mut changes = vec![Change::AddPeer(agent.config.companion)];
        for prefix in [ipnet::Ipv6Net::default().into(), ipnet::Ipv4Net::default().into()] {
            let route = Route { to, transit: true, until: None };
            changes.push(Change::SetRoute { prefix, route });
        }
        for neighbor in self.neighbors.values().filter(|n| !n.lingers) {
            changes.extend(self.paths(neighbor.prefix));
        }
        let identity = self.config.id.address();
        let Some(agent) = self.agents.all.get_mut(&at) else { return };
        agent.connected = true;
        agent.heard = None;
        agent.queue.clear();
        agent.queue.push_back(Message::Hello { version: VERSION, identity });
        let changes = changes.iter().map(|c| Message::Change(FeedChange::of(c, now)));
        agent.queue.extend(changes);
        agent.queue.push_back(Message::Synchronized);
    }

    /// The stream broke: the agent is announced no more.
    pub fn agent_disconnected(&mut self, at: LinkLayerAddress) {
        if let Some(agent) = self.agents.all.get_mut(&at) {
            agent.connected = false;
            agent.heard = None;
            agent.queue.clear();
        }
    }

    /// What to tell an agent next. `None` also if it was cut off for not reading.
    pub fn poll_feed(&mut self, at: LinkLayerAddress) -> Option<Message> {
        self.agents.all.get_mut(&at)?.queue.pop_front()
    }

    /// True while an agent is to be fed; once false after [`Server::agent_connected`], the stream
    /// is to be closed and opened anew.
    pub fn agent_is_fed(&self, at: LinkLayerAddress) -> bool {
        self.agents.all.get(&at).is_some_and(|a| a.connected)
    }

    /// A line from an agent.
    ///
    /// # Errors
    /// If it was not understood: the stream is to be closed.
    pub fn handle_agent_line(
        &mut self,
        at: LinkLayerAddress,
        line: &str,
        now: Instant,
    ) -> Result<(), FeedError> {
        let message = Message::of_line(line)?;
        let Some(agent) = self.agents.all.get_mut(&at).filter(|a| a.connected) else {
            return Err(FeedError::OutOfPlace);
        };
        match message {
            Message::Ready { version: VERSION } => {
                agent.heard = Some(now);
                let clients: Vec<IpNet> = self.neighbors.keys().copied().collect();
                for prefix in clients {
                    self.tell_of_agent(prefix, true, now);
                }
            }
            Message::Ready { version } => return Err(FeedError::Version(version)),
            Message::Alive { .. } => agent.heard = agent.heard.map(|_| now),
            _ => return Err(FeedError::OutOfPlace),
        }
        Ok(())
    }

    /// As [`Server::data_forwarded`], where the forwarder has checked the outer source and does not
    /// tell it.
    pub fn data_was_forwarded(&mut self, inner: Inner, now: Instant) {
        let from = self.client_of(inner.source).map(|n| n.link_layer);
        if let Some(from) = from {
            self.data_forwarded(from, inner, now);
        }
    }

    /// A data packet came from `from` and was forwarded. The driver need not tell of each one: as
    /// few as one per second and pair of prefixes is enough.
    pub fn data_forwarded(&mut self, from: LinkLayerAddress, inner: Inner, now: Instant) {
        let Some(agent) = self.agents.usable(now) else { return };
        let Some(source) = self.client_of(inner.source).filter(|n| n.has_link(from)) else {
            return;
        };
        let (own, to, address) = (source.prefix, source.link_layer, aero_address(source.prefix));
        let target = self.client_of(inner.destination).filter(|n| !n.lingers && n.prefix != own);
        let (ra_source, about, lifetime) = match agent.scope {
            Scope::Prefix => {
                if target.is_none() {
                    return;
                }
                // No prefix length travels with it, so it speaks of the /64 that was sent to.
                let longest = if inner.destination.is_ipv4() { 32 } else { 64 };
                let Ok(part) = IpNet::new(inner.destination, longest) else { return };
                (aero_address(part), part.trunc(), 0)
            }
            Scope::All => {
                let lease = u16::try_from(self.config.lease.as_secs()).unwrap_or(u16::MAX);
                (self.config.id.address(), ipnet::Ipv6Net::default().into(), lease)
            }
        };
        if self.agents.may_announce((own, about), now) {
            let ra = router_advertisement(ra_source, address, lifetime, agent.at);
            if let Ok(packet) = ra.emit() {
                self.send(to, packet);
            }
        }
    }

    /// Tells a Client to accept what comes from the agents: `anew`, three times a second apart,
    /// since others may send that way at once; else once.
    pub(super) fn tell_of_agent(&mut self, prefix: IpNet, anew: bool, now: Instant) {
        if self.agents.all.is_empty() {
            return;
        }
        let times = if anew { MAX_NEIGHBOR_ADVERTISEMENT } else { 1 };
        let left = self.agents.notices.entry(prefix).or_default();
        *left = times.max(*left);
        // Behind the Reply that goes out now.
        self.timers.set(Timer::AgentNotice(prefix), now);
    }

    pub(super) fn agent_notice_due(&mut self, prefix: IpNet, now: Instant) {
        let Some(left) = self.agents.notices.get_mut(&prefix) else { return };
        *left = left.saturating_sub(1);
        if *left > 0 {
            self.timers.set(Timer::AgentNotice(prefix), now + RETRANS_TIMER);
        } else {
            self.agents.notices.remove(&prefix);
        }
        let Some(agent) = self.agents.usable(now) else { return };
        let Some(client) = self.neighbors.get(&prefix).filter(|n| !n.lingers) else { return };
        let to = client.link_layer;
        let own = self.config.id.address();
        if let Ok(packet) = router_advertisement(own, aero_address(prefix), 0, agent.at).emit() {
            self.send(to, packet);
        }
    }

    /// A sign of life for an agent, once a second.
    pub(super) fn agent_due(&mut self, at: LinkLayerAddress, now: Instant) {
        let Some(agent) = self.agents.all.get_mut(&at) else { return };
        self.timers.set(Timer::Agent(at), now + RETRANS_TIMER);
        if agent.connected {
            agent.number += 1;
            agent.queue.push_back(Message::Alive { number: agent.number });
        }
    }

    /// Passes on to the agents how a Client's paths are now. One that went to another Server is
    /// reached by the companion, which is accepted there.
    pub(super) fn feed_paths(&mut self, prefix: IpNet, now: Instant) {
        if self.neighbors.get(&prefix).is_none_or(|n| n.lingers) {
            self.feed_removal(prefix);
        } else if !self.agents.all.is_empty() {
            let changes = self.paths(prefix);
            self.feed(changes.iter().map(|c| FeedChange::of(c, now)).collect());
        }
    }

    /// Tells the agents that a Client is here no more.
    pub(super) fn feed_removal(&mut self, prefix: IpNet) {
        self.feed(vec![FeedChange::RemoveRoute { prefix }, FeedChange::RemoveSource { prefix }]);
    }

    fn feed(&mut self, changes: Vec<FeedChange>) {
        for agent in self.agents.all.values_mut().filter(|a| a.connected) {
            agent.queue.extend(changes.iter().cloned().map(Message::Change));
            if agent.queue.len() > MAX_QUEUE {
                agent.connected = false;
                agent.heard = None;
                agent.queue.clear();
            }
        }
    }

    /// The entry of the Client whose prefix holds an address.
    fn client_of(&self, address: std::net::IpAddr) -> Option<&Neighbor> {
        let mut prefix = IpNet::from(address);
        loop {
            if let Some(neighbor) = self.neighbors.get(&prefix) {
                return Some(neighbor);
            }
            prefix = prefix.supernet()?;
        }
    }
}

fn router_advertisement(
    source: std::net::Ipv6Addr,
    destination: std::net::Ipv6Addr,
    lifetime: u16,
    agent: LinkLayerAddress,
) -> Nd {
    let option = LinkLayerOption { link_id: 0, preference: 255, address: Some(agent) };
    let message = NdMessage::RouterAdvertisement { lifetime };
    Nd { source, destination, message, options: vec![NdOption::SourceLinkLayer(option)] }
}
