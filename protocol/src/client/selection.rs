//! Which of the Servers a node uses, if it is not to use all: the nearest, and of those that are
//! about as near the ones with the most room, then each node its own.
//!
//! Servers that are not used are asked how they stand by an Information-request (RFC 8415 section
//! 18.2.6), which costs them no memory: the answer shows how far they are, how much room they have
//! and whether Relays join them to the others. Those that are used show their distance by Neighbor
//! Unreachability Detection. A Server without Relays is used whatever the limit, since its Clients
//! are reached by nobody else.
//!
//! What is used stays in use: one that dies or goes is replaced at once, one that has become
//! farther is replaced when another has been clearly nearer for [`MOVE_TIME`], and not again within
//! [`REST_TIME`]. All Clients have their lease at the new Server before the old one is told.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use rand::Rng;

use super::macro_mobility::Leaving;
use super::servers::{ServerState, weight};
use super::{Node, Timer};
use crate::address::{ALL_DHCP_SERVERS, BOOTSTRAP_ADDRESS, Duid, LinkLayerAddress};
use crate::wire::aero_options::AeroOption;
use crate::wire::dhcpv6::{Kind, Message, OPTION_VENDOR_OPTS};
use crate::wire::ip;

/// How long another Server must have been clearly nearer before it is used instead; up to twice as
/// long, so that not all nodes move at once.
pub const MOVE_TIME: Duration = Duration::from_secs(10);
/// Least time between two such moves of a node.
pub const REST_TIME: Duration = Duration::from_secs(60);
/// What a round trip must be shorter by to be clearly shorter, beside a third of the longer one.
pub const NEAR_MARGIN: Duration = Duration::from_millis(2);
/// How often Servers that are not used are asked how they stand.
pub const SURVEY_INTERVAL: Duration = Duration::from_secs(5);
/// How long a node that uses no Server yet waits for the answers of all.
pub const SURVEY_TIME: Duration = Duration::from_millis(200);

/// How often the choice is looked over.
const LOOK: Duration = Duration::from_secs(1);
/// A distance is the shortest round trip of this time and of the time before: queues only add.
const SPAN: Duration = Duration::from_secs(5);
/// A Server that was chosen and has not answered for so long is given up for another.
const UNANSWERED_TIME: Duration = Duration::from_secs(3);
/// Room for the answer to an Information-request, which may not be longer than it.
const ROOM: u8 = 160;

/// How far a Server is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Distance {
    since: Option<Instant>,
    present: Option<Duration>,
    before: Option<Duration>,
}

impl Distance {
    pub(super) fn measured(&mut self, round_trip: Duration, now: Instant) {
        let age = self.since.map(|since| now.saturating_duration_since(since));
        match age {
            Some(age) if age < SPAN => {
                self.present = Some(self.present.map_or(round_trip, |p| p.min(round_trip)));
            }
            _ => {
                self.before = self.present.filter(|_| age.is_some_and(|age| age < 3 * SPAN));
                (self.since, self.present) = (Some(now), Some(round_trip));
            }
        }
    }

    /// `None` if it was never measured.
    pub(super) fn get(&self) -> Option<Duration> {
        self.present.map(|p| self.before.map_or(p, |b| b.min(p)))
    }
}

/// True if the one round trip is clearly shorter than the other.
pub(super) fn clearly_nearer(a: Duration, b: Duration) -> bool {
    b > a + a / 2 + NEAR_MARGIN
}

/// What a node knows of a Server that it may use.
#[derive(Debug, Default)]
pub(super) struct Candidate {
    pub(super) distance: Distance,
    /// The transaction of an Information-request that is not answered, and when it was sent.
    asked: Option<([u8; 3], Instant)>,
    next: Option<Instant>,
    /// Information-requests in a row without an answer.
    unanswered: u8,
    answered: bool,
    /// RFC 8415 section 21.8: how much room it has, 255 the most.
    preference: u8,
    /// How often in a row it said that no Relay joins it to the others.
    alone: u8,
}

impl Candidate {
    /// What an answer says of its Server. One that says nothing knows of no Relays.
    pub(super) fn learn(&mut self, message: &Message) {
        let said = message.aero.iter().find_map(|o| match o {
            AeroOption::Serving { joined, preference } => Some((*joined, *preference)),
            _ => None,
        });
        let (joined, preference) = said.unwrap_or((false, message.preference.unwrap_or(0)));
        self.preference = preference;
        self.alone = if joined { 0 } else { self.alone.saturating_add(1) };
    }

    /// False once it has left two Information-requests unanswered.
    pub(super) fn may_answer(&self) -> bool {
        self.unanswered < 2
    }

    pub(super) fn has_answered(&self) -> bool {
        self.answered
    }
}

/// The choice of a node.
#[derive(Debug, Default)]
pub(super) struct Selection {
    /// How many Servers to use; all if `None`.
    wanted: Option<usize>,
    /// When the first Servers were heard of.
    since: Option<Instant>,
    /// The Server that is left as soon as another is ready.
    moves_from: Option<LinkLayerAddress>,
    /// The Server that another is clearly nearer than, and until when that must last.
    outdone: Option<(LinkLayerAddress, Instant)>,
    /// The same of the default Server, among those that are used.
    default_outdone: Option<(LinkLayerAddress, Instant)>,
    moved: Option<Instant>,
}

impl Node {
    /// How many Servers to use of those that there are: two are enough where Relays join all. `None`
    /// is all of them, which is how a node begins. Servers that say that they have no Relay are used
    /// beside that number.
    pub fn use_servers(&mut self, wanted: Option<usize>, now: Instant) {
        self.selection.wanted = wanted.map(|n| n.max(1));
        self.choose_servers(now);
    }

    /// Whether a Server is one of those that this node uses.
    pub fn uses(&self, server: LinkLayerAddress) -> bool {
        self.servers.get(&server).is_some_and(|s| s.used)
    }

    /// The round trip to a Server as it was measured last, the shortest of some seconds.
    pub fn distance(&self, server: LinkLayerAddress) -> Option<Duration> {
        self.servers.get(&server)?.candidate.distance.get()
    }

    /// Brings what is used to what is to be used.
    pub(super) fn choose_servers(&mut self, now: Instant) {
        let open = |s: &ServerState| matches!(s.leaving, Leaving::No | Leaving::Spare);
        let all: BTreeSet<_> =
            self.servers.iter().filter(|(_, s)| open(s)).map(|(l2, _)| *l2).collect();
        let chosen = match self.selection.wanted {
            Some(wanted) if all.len() > wanted => {
                self.timers.set_if_idle(Timer::Survey, now + SURVEY_TIME);
                self.survey(now);
                if self.waits_for_answers(&all, now) {
                    return;
                }
                self.choice(&all, wanted)
            }
            _ => {
                self.timers.cancel(&Timer::Survey);
                self.selection.since = None;
                all
            }
        };
        // It is needed after all: the other one has gone.
        self.selection.moves_from = self.selection.moves_from.filter(|l2| !chosen.contains(l2));
        let new: Vec<_> = chosen.iter().filter(|l2| !self.uses(**l2)).copied().collect();
        for server in new {
            self.begin_using(server, now);
        }
        self.end_using_others(&chosen, now);
    }

    /// True while this node uses no Server and not all have said how they stand, for a moment.
    fn waits_for_answers(&mut self, all: &BTreeSet<LinkLayerAddress>, now: Instant) -> bool {
        if self.servers.values().any(|s| s.used) {
            return false;
        }
        let since = *self.selection.since.get_or_insert(now);
        let answered = |l2| self.servers.get(l2).is_some_and(|s| s.candidate.answered);
        now < since + SURVEY_TIME && !all.iter().all(answered)
    }

    /// The Servers to use: those that are in use and live, and the best of the others.
    fn choice(
        &self,
        all: &BTreeSet<LinkLayerAddress>,
        wanted: usize,
    ) -> BTreeSet<LinkLayerAddress> {
        let begun = self.clients.values().any(|c| !c.associations.is_empty());
        let state = |l2: &LinkLayerAddress| self.servers.get(l2);
        // One that has just come may not have heard of its Relays yet: it must say so twice.
        let alone = |l2: &&LinkLayerAddress| {
            state(l2).is_some_and(|s| s.candidate.alone > u8::from(begun && !s.used))
        };
        let chosen: BTreeSet<_> = all.iter().filter(alone).copied().collect();
        let mut rest: Vec<_> = all.difference(&chosen).copied().collect();
        // Without any Client there is nothing to be faithful to.
        let stays =
            |l2: &LinkLayerAddress| begun && state(l2).is_some_and(|s| s.used && s.may_answer());
        let mut joined: Vec<_> = rest.iter().filter(|l2| stays(l2)).copied().collect();
        joined.sort_by_key(|l2| {
            let distance = state(l2).and_then(|s| s.candidate.distance.get());
            (self.selection.moves_from == Some(*l2), distance.is_none(), distance)
        });
        joined.truncate(wanted);
        rest.retain(|l2| !joined.contains(l2));
        while joined.len() < wanted
            && let Some(best) = self.best_of(&rest)
        {
            joined.push(best);
            rest.retain(|l2| *l2 != best);
        }
        chosen.into_iter().chain(joined).collect()
    }

    /// The best of some Servers: one that answers, as near as the nearest or about so, the one with
    /// the most room of those, and of equal ones the first in this node's own order.
    fn best_of(&self, servers: &[LinkLayerAddress]) -> Option<LinkLayerAddress> {
        let known = || servers.iter().filter_map(|l2| Some((*l2, self.servers.get(l2)?)));
        let silent = |s: &ServerState| {
            !s.may_answer() || !s.candidate.may_answer() || s.leaving != Leaving::No
        };
        let distance = |s: &ServerState| s.candidate.distance.get();
        let nearest = known().filter(|(_, s)| !silent(s)).filter_map(|(_, s)| distance(s)).min();
        known()
            .min_by_key(|(l2, s)| {
                let far = nearest.is_some_and(|n| distance(s).is_none_or(|d| clearly_nearer(n, d)));
                let room = Reverse(s.candidate.preference);
                (silent(s), far, room, weight(&self.config.node, *l2))
            })
            .map(|(l2, _)| l2)
    }

    fn begin_using(&mut self, server: LinkLayerAddress, now: Instant) {
        let Some(state) = self.servers.get_mut(&server) else { return };
        state.used = true;
        state.used_since = Some(now);
        state.leaving = Leaving::No;
        self.resolicit_all(server, now);
    }

    /// All Clients that have not been detached ask a Server anew, but for those that ask already.
    pub(super) fn resolicit_all(&mut self, server: LinkLayerAddress, now: Instant) {
        let here = self.clients.iter().filter(|(_, c)| !c.detached);
        for id in here.map(|(id, _)| id.clone()).collect::<Vec<Duid>>() {
            self.resolicit_idle(&id, server, now);
        }
    }

    /// Turns away from Servers that are not chosen (any more). One that lives is left when all
    /// Clients have what they need at the others.
    fn end_using_others(&mut self, chosen: &BTreeSet<LinkLayerAddress>, now: Instant) {
        let others: Vec<_> = self
            .servers
            .iter()
            .filter(|(l2, s)| s.used && s.leaving == Leaving::No && !chosen.contains(l2))
            .map(|(l2, s)| (*l2, s.may_answer()))
            .collect();
        for (server, lives) in others {
            if !lives {
                self.stop_using(server);
                for id in self.clients.keys().cloned().collect::<Vec<_>>() {
                    self.forget_association(&id, server);
                }
            } else if self.all_bound_at(chosen) {
                self.selection.moves_from = None;
                self.leave_spare(server, now);
            }
        }
    }

    /// A Server is not used any more, for whatever reason: from now on it is asked how it stands.
    pub(super) fn stop_using(&mut self, server: LinkLayerAddress) {
        self.timers.cancel(&Timer::Probe(server));
        let Some(state) = self.servers.get_mut(&server) else { return };
        state.used = false;
        state.used_since = None;
        state.up_since = None;
        state.unanswered = 0;
        state.watch = super::watch::Watch::default();
    }

    pub(super) fn all_bound_at(&self, servers: &BTreeSet<LinkLayerAddress>) -> bool {
        self.clients.values().filter(|c| !c.detached).all(|c| {
            servers.iter().all(|l2| c.associations.get(l2).is_some_and(|a| a.lease.is_some()))
        })
    }

    /// Time to look the choice over.
    pub(super) fn survey_due(&mut self, now: Instant) {
        self.timers.set(Timer::Survey, now + LOOK);
        let spare = |s: &ServerState| {
            !s.used && s.leaving == Leaving::No && s.may_answer() && s.candidate.may_answer()
        };
        if self.servers.values().any(spare) {
            let mute = |s: &&mut ServerState| {
                let since = s.used_since.filter(|_| s.used && s.up_since.is_none());
                s.may_answer() && since.is_some_and(|since| now >= since + UNANSWERED_TIME)
            };
            self.servers.values_mut().filter(mute).for_each(ServerState::give_up);
        }
        self.choose_servers(now);
        self.move_nearer(now);
    }

    /// Asks those that are not used how they stand, as far as it is time.
    fn survey(&mut self, now: Instant) {
        let due = |s: &ServerState| {
            !s.used && s.leaving == Leaving::No && s.candidate.next.is_none_or(|at| at <= now)
        };
        let due: Vec<_> = self.servers.iter().filter(|(_, s)| due(s)).map(|(l2, _)| *l2).collect();
        for server in due {
            let transaction: [u8; 3] = self.rng.random();
            let spread = SURVEY_INTERVAL.mul_f64(self.rng.random_range(0.9..1.1));
            let Some(state) = self.servers.get_mut(&server) else { continue };
            let candidate = &mut state.candidate;
            if candidate.asked.replace((transaction, now)).is_some() {
                candidate.unanswered = candidate.unanswered.saturating_add(1);
            }
            candidate.next = Some(now + spread);
            let mut m = Message::new(Kind::InformationRequest, transaction);
            m.elapsed = Some(0);
            m.requested = vec![OPTION_VENDOR_OPTS];
            m.aero.push(AeroOption::Padding(ROOM));
            let ends = (
                (BOOTSTRAP_ADDRESS, ip::DHCP_CLIENT_PORT),
                (ALL_DHCP_SERVERS, ip::DHCP_SERVER_PORT),
            );
            if let Some(packet) = m.emit().ok().and_then(|data| ip::udp(ends.0, ends.1, &data).ok())
            {
                self.send(server, packet);
            }
        }
    }

    /// True if an answer is one to an Information-request of ours.
    pub(super) fn survey_answered(
        &mut self,
        from: LinkLayerAddress,
        message: &Message,
        now: Instant,
    ) -> bool {
        let Some(state) = self.servers.get_mut(&from) else { return false };
        let asked = state.candidate.asked.filter(|(transaction, _)| {
            message.kind == Kind::Reply
                && message.client.is_none()
                && message.transaction == *transaction
        });
        let Some((_, at)) = asked else { return false };
        let candidate = &mut state.candidate;
        candidate.asked = None;
        (candidate.unanswered, candidate.answered) = (0, true);
        candidate.distance.measured(now.saturating_duration_since(at), now);
        candidate.learn(message);
        if !state.used {
            state.is_back();
        }
        self.choose_servers(now);
        true
    }

    /// Uses another Server instead of the farthest one, if it has been clearly nearer for a while.
    fn move_nearer(&mut self, now: Instant) {
        let lives = |s: &ServerState| s.leaving == Leaving::No && s.may_answer();
        let used =
            self.servers.iter().filter(|(_, s)| s.used && lives(s) && s.candidate.alone == 0);
        let farthest = used.filter_map(|(l2, s)| Some((s.candidate.distance.get()?, *l2))).max();
        let rests = self.selection.moved.is_some_and(|at| now < at + REST_TIME)
            || self.selection.moves_from.is_some();
        let Some((distance, old)) = farthest.filter(|_| !rests) else {
            self.selection.outdone = None;
            return;
        };
        let nearer: Vec<_> = self
            .servers
            .iter()
            .filter(|(_, s)| !s.used && lives(s) && s.candidate.may_answer())
            .filter(|(_, s)| {
                s.candidate.distance.get().is_some_and(|d| clearly_nearer(d, distance))
            })
            .map(|(l2, _)| *l2)
            .collect();
        let Some(new) = self.best_of(&nearer) else {
            self.selection.outdone = None;
            return;
        };
        let due = self.lasting(self.selection.outdone, old, now);
        self.selection.outdone = Some((old, due));
        if now >= due {
            self.selection.outdone = None;
            self.selection.moves_from = Some(old);
            self.selection.moved = Some(now);
            self.begin_using(new, now);
        }
    }

    /// Until when a Server must be outdone, if it was or is from now on.
    fn lasting(
        &mut self,
        before: Option<(LinkLayerAddress, Instant)>,
        server: LinkLayerAddress,
        now: Instant,
    ) -> Instant {
        match before {
            Some((same, due)) if same == server => due,
            _ => now + MOVE_TIME.mul_f64(self.rng.random_range(1.0..2.0)),
        }
    }

    /// Whether the default Server is to change to one that has been clearly nearer for a while, and
    /// that all Clients have a lease at.
    pub(super) fn default_is_outdone(&mut self, now: Instant) -> bool {
        let distance = |l2| Some((l2, self.distance(l2)?));
        let Some((default, distance)) = self.default.and_then(distance) else {
            self.selection.default_outdone = None;
            return false;
        };
        let nearer = self.servers.iter().any(|(l2, s)| {
            *l2 != default
                && s.is_sure(now)
                && s.candidate.distance.get().is_some_and(|d| clearly_nearer(d, distance))
                && self.all_bound_at(&BTreeSet::from([*l2]))
        });
        if !nearer {
            self.selection.default_outdone = None;
            return false;
        }
        let due = self.lasting(self.selection.default_outdone, default, now);
        self.selection.default_outdone = Some((default, due));
        now >= due
    }
}
