//! Dynamic neighbour cache entries: draft -48 section 3.6. No clock and no messages here; what
//! makes and changes the entries is in `client/route_optimization.rs` and
//! `client/reachability.rs`.
//!
//! A node speaks for many Clients, and a path is agreed between two Clients, so an entry belongs
//! to a pair: one of the node's own ACPs and the correspondent's.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;
use std::time::Instant;

use ipnet::IpNet;

use crate::address::{LinkLayerAddress, prefix_of_aero_address};
use crate::timers::{ACCEPT_TIME, FORWARD_TIME, MAX_RETRY, RETRANS_TIMER};
use crate::wire::nd::LinkLayerOption;

/// Most link-layer addresses of one neighbour.
pub const MAX_LINKS: usize = 8;
/// Most entries of a node. An attacker who fills them costs others their short cuts, not their
/// traffic.
pub const MAX_NEIGHBORS: usize = 16_384;

/// Nonce of a solicitation (RFC 3971 section 5.3.2).
pub type Nonce = [u8; 6];

/// Whom an entry is for: (correspondent's ACP, own ACP).
pub type Key = (IpNet, IpNet);

/// One of a neighbour's underlay interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Link {
    /// Its Link ID.
    pub id: u8,
    /// 255 is best, 1 worst.
    pub preference: u8,
    /// Where it is.
    pub address: LinkLayerAddress,
}

impl Link {
    /// Reads an option that a Server has filled in. `None` for a link that is not to be used, or
    /// that nobody can send to.
    pub fn of(option: &LinkLayerOption) -> Option<Self> {
        let address = option.address?;
        let usable = address.port != 0
            && !address.ip.is_unspecified()
            && !address.ip.is_multicast()
            && option.preference != 0;
        usable.then_some(Self { id: option.link_id, preference: option.preference, address })
    }
}

/// What an entry is good for at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum State {
    /// Nothing is sent straight to the neighbour; what comes from it is accepted.
    Accepting,
    /// A Redirect has come, or the path was lost: solicited, but not yet sure.
    Probing,
    /// Packets go straight to the neighbour.
    Direct,
}

impl State {
    /// All, for metrics.
    pub const ALL: [State; 3] = [State::Accepting, State::Probing, State::Direct];

    /// The label in metrics.
    pub fn label(self) -> &'static str {
        match self {
            State::Accepting => "accepting",
            State::Probing => "probing",
            State::Direct => "direct",
        }
    }
}

/// A dynamic entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Neighbor {
    /// The correspondent's ACP.
    pub peer: IpNet,
    /// Our Client's ACP.
    pub own: IpNet,
    /// The correspondent's AERO address.
    pub address: Ipv6Addr,
    links: Vec<Link>,
    /// End of AcceptTime.
    accept: Option<Instant>,
    /// End of ForwardTime.
    forward: Option<Instant>,
    /// MaxRetry: solicitations that may still go unanswered.
    retries: u8,
    /// Of the solicitation that waits for an answer. It stays the same while it is repeated, so
    /// that a slow answer counts.
    nonce: Option<Nonce>,
    /// When the last solicitation was sent.
    solicited: Option<Instant>,
    /// The path was used since then.
    pub(crate) used: bool,
    /// Set while our own link-layer address changes: a path was in use before.
    pub(crate) resume: Option<Resume>,
}

/// A path that is to be used again once the neighbour knows our new link-layer address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Resume {
    /// When to solicit, or to give up.
    pub(crate) at: Instant,
    /// The neighbour has been told.
    pub(crate) told: bool,
}

impl Neighbor {
    pub(crate) fn new((peer, own): Key, address: Ipv6Addr) -> Self {
        Self {
            peer,
            own,
            address,
            links: Vec::new(),
            accept: None,
            forward: None,
            retries: MAX_RETRY,
            nonce: None,
            solicited: None,
            used: false,
            resume: None,
        }
    }

    /// Its key in the cache.
    pub fn key(&self) -> Key {
        (self.peer, self.own)
    }

    /// The neighbour's link-layer addresses.
    pub fn links(&self) -> &[Link] {
        &self.links
    }

    /// The one that is used: the one of the highest preference.
    pub fn link_layer(&self) -> Option<LinkLayerAddress> {
        self.links.iter().max_by_key(|l| (l.preference, 255 - l.id)).map(|l| l.address)
    }

    /// Whether it is one of the neighbour's.
    pub fn has_link(&self, address: LinkLayerAddress) -> bool {
        self.links.iter().any(|l| l.address == address)
    }

    /// Replaces the link-layer addresses; timers stay.
    pub(crate) fn set_links(&mut self, links: impl IntoIterator<Item = Link>) {
        self.links.clear();
        self.add_links(links);
    }

    /// Adds link-layer addresses, each in place of the one of its Link ID; timers stay.
    pub(crate) fn add_links(&mut self, links: impl IntoIterator<Item = Link>) {
        for link in links {
            self.links.retain(|l| l.id != link.id);
            if self.links.len() < MAX_LINKS {
                self.links.push(link);
            }
        }
    }

    /// Removes a link-layer address. False if it is not one of the neighbour's.
    pub(crate) fn remove_link(&mut self, address: LinkLayerAddress) -> bool {
        let before = self.links.len();
        self.links.retain(|l| l.address != address);
        self.links.len() != before
    }

    /// AcceptTime is not over.
    pub fn accepts(&self, now: Instant) -> bool {
        self.accept.is_some_and(|t| t > now)
    }

    /// ForwardTime is not over.
    pub fn forwards(&self, now: Instant) -> bool {
        self.forward.is_some_and(|t| t > now)
    }

    /// End of AcceptTime, if it was ever set.
    pub fn accept_until(&self) -> Option<Instant> {
        self.accept
    }

    /// End of ForwardTime, if the path is in use.
    pub fn forward_until(&self) -> Option<Instant> {
        self.forward
    }

    /// What the entry is good for.
    pub fn state(&self, now: Instant) -> State {
        if self.forwards(now) {
            State::Direct
        } else if self.nonce.is_some() || self.resume.is_some() {
            State::Probing
        } else {
            State::Accepting
        }
    }

    /// AcceptTime begins anew: by a Predirect, or by a solicitation of a neighbour that has it.
    pub(crate) fn accept(&mut self, now: Instant) {
        self.accept = Some(now + ACCEPT_TIME);
    }

    /// A solicitation is about to be sent: its nonce, a new one only if none is outstanding.
    pub(crate) fn solicit(&mut self, fresh: Nonce, now: Instant) -> Nonce {
        self.retries = self.retries.saturating_sub(1);
        self.solicited = Some(now);
        self.used = false;
        self.resume = None;
        *self.nonce.get_or_insert(fresh)
    }

    /// Starts over with solicitations: the link-layer address or the proof is new.
    pub(crate) fn start_over(&mut self) {
        self.retries = MAX_RETRY;
        self.nonce = None;
    }

    /// Solicitations that may still go unanswered.
    pub(crate) fn retries(&self) -> u8 {
        self.retries
    }

    /// A solicitation waits for an answer.
    pub fn is_solicited(&self) -> bool {
        self.nonce.is_some()
    }

    /// Not before this time another solicitation may be sent (RFC 4861 section 7.2.2).
    pub(crate) fn next_solicitation(&self) -> Option<Instant> {
        self.solicited.map(|t| t + RETRANS_TIMER)
    }

    /// A solicited advertisement has come. False if it answers nothing that was asked.
    pub(crate) fn advertised(&mut self, nonce: Option<&[u8]>, now: Instant) -> bool {
        if self.nonce.is_none() || nonce != self.nonce.as_ref().map(<[u8; 6]>::as_slice) {
            return false;
        }
        self.start_over();
        self.resume = None;
        self.forward = Some(now + FORWARD_TIME);
        true
    }

    /// ForwardTime := 0. True if it was not before.
    pub(crate) fn stop_forwarding(&mut self) -> bool {
        self.forward.take().is_some()
    }

    /// When the entry has to be looked at again: a solicitation is due, or a time ends.
    pub(crate) fn due(&self) -> Option<Instant> {
        if self.nonce.is_some() || self.used {
            return self.next_solicitation();
        }
        let resume = self.resume.map(|r| self.next_solicitation().map_or(r.at, |t| t.max(r.at)));
        self.accept.into_iter().chain(self.forward).chain(resume).min()
    }

    /// Forgets times that are over. Returns whether ForwardTime is among them.
    pub(crate) fn expire(&mut self, now: Instant) -> bool {
        if !self.accepts(now) {
            self.accept = None;
        }
        let over = self.forward.is_some_and(|t| t <= now);
        if over {
            self.forward = None;
        }
        over
    }

    /// Nothing is left of it.
    pub(crate) fn is_over(&self) -> bool {
        self.accept.is_none()
            && self.forward.is_none()
            && self.nonce.is_none()
            && self.resume.is_none()
    }
}

/// The dynamic entries of a node.
#[derive(Debug, Clone, Default)]
pub struct NeighborCache {
    entries: BTreeMap<Key, Neighbor>,
}

impl NeighborCache {
    /// All entries.
    pub fn iter(&self) -> impl Iterator<Item = &Neighbor> {
        self.entries.values()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// One entry.
    pub fn get(&self, key: &Key) -> Option<&Neighbor> {
        self.entries.get(key)
    }

    pub(crate) fn get_mut(&mut self, key: &Key) -> Option<&mut Neighbor> {
        self.entries.get_mut(key)
    }

    /// The entry, made if it is not there. `None` if there is no room.
    pub(crate) fn entry(&mut self, key: Key, address: Ipv6Addr) -> Option<&mut Neighbor> {
        if self.entries.len() >= MAX_NEIGHBORS && !self.entries.contains_key(&key) {
            return None;
        }
        Some(self.entries.entry(key).or_insert_with(|| Neighbor::new(key, address)))
    }

    pub(crate) fn remove(&mut self, key: &Key) -> Option<Neighbor> {
        self.entries.remove(key)
    }

    /// The key of the entry of an own ACP whose correspondent has this AERO address, or has it
    /// inside of its ACP.
    pub fn find(&self, own: IpNet, address: Ipv6Addr) -> Option<Key> {
        covering(prefix_of_aero_address(address)?)
            .map(|peer| (peer, own))
            .find(|key| self.entries.contains_key(key))
    }

    /// Entries of one correspondent, for whichever own ACP.
    pub fn of_peer(&self, peer: IpNet) -> impl Iterator<Item = &Neighbor> {
        let first = (peer, lowest(peer));
        self.entries.range(first..).map(|(_, n)| n).take_while(move |n| n.peer == peer)
    }

    /// Keys of the entries of one own ACP.
    pub fn of_own(&self, own: IpNet) -> Vec<Key> {
        self.entries.keys().filter(|(_, o)| *o == own).copied().collect()
    }

    /// Whose packets are accepted from where, and until when, for one correspondent: the draft's
    /// rule looks at the inner source only, so the latest AcceptTime of its entries counts.
    pub(crate) fn accepted(&self, peer: IpNet) -> Option<(LinkLayerAddress, Instant)> {
        self.of_peer(peer)
            .filter_map(|n| Some((n.link_layer()?, n.accept?)))
            .max_by_key(|(_, until)| *until)
    }
}

/// Smallest prefix by the order of [`IpNet`] that an own ACP of the family can be.
fn lowest(of: IpNet) -> IpNet {
    match of {
        IpNet::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpNet::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    }
}

/// The prefix and all shorter ones that it is in.
pub(crate) fn covering(prefix: IpNet) -> impl Iterator<Item = IpNet> {
    (1..=prefix.prefix_len())
        .rev()
        .filter_map(move |length| IpNet::new(prefix.addr(), length).ok())
        .map(|p| p.trunc())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const SECOND: Duration = Duration::from_secs(1);

    fn net(s: &str) -> IpNet {
        s.parse().unwrap()
    }

    fn link(id: u8, preference: u8, n: u8) -> Link {
        let address = LinkLayerAddress::new([192, 0, 2, n].into(), 8061);
        Link { id, preference, address }
    }

    fn neighbor() -> Neighbor {
        let key = (net("2001:db8:0:2::/64"), net("2001:db8:0:1::/64"));
        Neighbor::new(key, "fe80::2001:db8:0:2".parse().unwrap())
    }

    #[test]
    fn the_link_of_the_highest_preference_is_used_and_a_link_id_has_one_address() {
        let mut n = neighbor();
        n.set_links([link(1, 100, 1), link(2, 200, 2)]);
        assert_eq!(n.link_layer(), Some(link(2, 200, 2).address));
        n.add_links([link(2, 50, 3)]);
        assert_eq!(n.links().len(), 2);
        assert_eq!(n.link_layer(), Some(link(1, 100, 1).address));
        assert!(n.remove_link(link(1, 100, 1).address));
        assert_eq!(n.link_layer(), Some(link(2, 50, 3).address));
        n.add_links((10..100).map(|id| link(id, 1, id)));
        assert_eq!(n.links().len(), MAX_LINKS);
    }

    #[test]
    fn an_option_without_preference_or_address_is_no_link() {
        let mut option = LinkLayerOption {
            link_id: 1,
            preference: 255,
            address: Some(LinkLayerAddress::new([192, 0, 2, 1].into(), 8060)),
        };
        assert!(Link::of(&option).is_some());
        option.preference = 0;
        assert_eq!(Link::of(&option), None);
        option.preference = 255;
        for (ip, port) in [([192, 0, 2, 1], 0), ([224, 0, 0, 1], 8060), ([0, 0, 0, 0], 8060)] {
            option.address = Some(LinkLayerAddress::new(ip.into(), port));
            assert_eq!(Link::of(&option), None, "{ip:?} {port}");
        }
        option.address = None;
        assert_eq!(Link::of(&option), None);
    }

    #[test]
    fn only_an_advertisement_with_the_nonce_that_was_sent_sets_forward_time() {
        let t0 = Instant::now();
        let mut n = neighbor();
        assert!(!n.advertised(Some(&[1; 6]), t0), "nothing was asked");
        let nonce = n.solicit([1; 6], t0);
        assert_eq!(n.solicit([2; 6], t0 + SECOND), nonce, "a repetition has the same nonce");
        assert!(!n.advertised(Some(&[2; 6]), t0));
        assert!(!n.advertised(None, t0));
        assert_eq!(n.state(t0), State::Probing);
        assert!(n.advertised(Some(&nonce), t0 + SECOND * 2));
        assert!(n.forwards(t0 + SECOND * 31));
        assert!(!n.forwards(t0 + SECOND * 32));
        assert_eq!(n.retries(), MAX_RETRY);
        assert!(!n.advertised(Some(&nonce), t0 + SECOND * 3), "an answer counts once");
    }

    #[test]
    fn an_entry_is_found_by_any_aero_address_inside_its_prefix_and_for_its_own_prefix_only() {
        let mut cache = NeighborCache::default();
        let (peer, own) = (net("2001:db8:1000:2000::/56"), net("2001:db8:0:1::/64"));
        let base = "fe80::2001:db8:1000:2000".parse().unwrap();
        assert!(cache.entry((peer, own), base).is_some());
        let inside = "fe80::2001:db8:1000:2001".parse().unwrap();
        assert_eq!(cache.find(own, inside), Some((peer, own)));
        assert_eq!(cache.find(own, base), Some((peer, own)));
        assert_eq!(cache.find(own, "fe80::2001:db8:1000:2100".parse().unwrap()), None);
        assert_eq!(cache.find(net("2001:db8:0:9::/64"), base), None);
        assert_eq!(cache.of_peer(peer).count(), 1);
        assert_eq!(cache.of_own(own), [(peer, own)]);
    }

    #[test]
    fn the_latest_accept_time_of_a_correspondent_counts() {
        let t0 = Instant::now();
        let mut cache = NeighborCache::default();
        let peer = net("2001:db8:0:2::/64");
        let address = "fe80::2001:db8:0:2".parse().unwrap();
        for (n, own) in ["2001:db8:0:1::/64", "2001:db8:0:3::/64"].iter().enumerate() {
            let entry = cache.entry((peer, net(own)), address).unwrap();
            entry.set_links([link(0, 255, 2)]);
            entry.accept(t0 + SECOND * u32::try_from(n).unwrap());
        }
        let (_, until) = cache.accepted(peer).unwrap();
        assert_eq!(until, t0 + SECOND + ACCEPT_TIME);
        assert_eq!(cache.accepted(net("2001:db8:0:9::/64")), None);
    }

    #[test]
    fn a_full_cache_takes_no_new_entry_and_keeps_what_it_has() {
        let mut cache = NeighborCache::default();
        let own = net("2001:db8:0:1::/64");
        let address = "fe80::2001:db8:0:2".parse().unwrap();
        let peer = |n: u32| net(&format!("2001:db8:{:x}:{:x}::/64", 1 + (n >> 16), n & 0xffff));
        for n in 0..u32::try_from(MAX_NEIGHBORS).unwrap() {
            assert!(cache.entry((peer(n), own), address).is_some());
        }
        assert!(cache.entry((peer(999_999), own), address).is_none());
        assert!(cache.entry((peer(0), own), address).is_some());
        assert_eq!(cache.len(), MAX_NEIGHBORS);
    }
}
