//! Putting fragments of the tunnel together: draft -48 section 3.10, RFC 8200 section 4.5,
//! RFC 5722 (overlaps).
//!
//! Memory is bounded per neighbour and in all, whatever comes. Neighbours that this node deals
//! with have a budget of their own, so that strangers who forge addresses cannot push their
//! packets out. When a budget is used up, the oldest packet of the neighbour that has most goes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, Instant};

use super::ecn::{self, Ecn};
use super::header::Outer;
use crate::address::LinkLayerAddress;
use crate::wire::encapsulation::FragmentShim;
use crate::wire::{Class, classify};

/// How long a packet waits for its other fragments (RFC 8200 section 4.5).
pub const TIMEOUT: Duration = Duration::from_secs(60);
/// Data of a fragment that is not the last. The rules of section 3.10 never make smaller ones
/// than half of 1245 bytes; smaller ones only cost memory.
pub const LEAST_FRAGMENT: usize = 256;
/// Counted for each packet and each fragment beside its data.
const FIXED_COST: usize = 128;
/// Buffers kept for use again.
const SPARE: usize = 64;

/// Bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Packets that wait, per neighbour.
    pub packets_per_neighbor: usize,
    /// Bytes that wait, per neighbour.
    pub bytes_per_neighbor: usize,
    /// Bytes that wait, of all neighbours known to this node.
    pub bytes_known: usize,
    /// Bytes that wait, of all others.
    pub bytes_unknown: usize,
    /// Largest user's packet; 1500 at least, 2 KiB by the draft's recommendation.
    pub largest_packet: usize,
    /// Largest control message.
    pub largest_control: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            packets_per_neighbor: 256,
            bytes_per_neighbor: 512 << 10,
            bytes_known: 8 << 20,
            bytes_unknown: 512 << 10,
            largest_packet: 2048,
            largest_control: 8192,
        }
    }
}

/// What became of a fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It waits for others, or was here already.
    Waiting,
    /// The packet is whole and in the caller's buffer. The header has the least TTL of all
    /// fragments, and their ECN by RFC 3168.
    Whole(Outer),
    /// It was refused, and with it all of its packet.
    Refused(Refusal),
}

/// Why a fragment was refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Refusal {
    /// Empty, too small for one that is not the last, or of an uneven length.
    Size,
    /// It would make a packet larger than the limit.
    TooLarge,
    /// It overlaps another, or contradicts another about the end or the protocol.
    Overlap,
    /// One fragment is marked by congestion and another does not know ECN.
    Congestion,
}

#[derive(Debug)]
struct Partial {
    serial: u64,
    known: bool,
    deadline: Instant,
    next_header: u8,
    outer: Outer,
    /// By offset. Empty when the packet is refused: it stays so until its time is over, so that
    /// late fragments do not make another of the same identification.
    pieces: Vec<(usize, Vec<u8>)>,
    total: Option<usize>,
    refused: bool,
    cost: usize,
}

#[derive(Debug, Default)]
struct Use {
    oldest: BTreeSet<(u64, u32)>,
    bytes: usize,
    known: bool,
}

type Key = (LinkLayerAddress, u32);

/// Fragments that wait for others.
#[derive(Debug)]
pub struct Reassembler {
    limits: Limits,
    partials: HashMap<Key, Partial>,
    neighbors: HashMap<LinkLayerAddress, Use>,
    order: BTreeMap<u64, Key>,
    bytes: [usize; 2],
    serial: u64,
    spare: Vec<Vec<u8>>,
    evicted: u64,
}

impl Default for Reassembler {
    fn default() -> Self {
        Self::new(Limits::default())
    }
}

impl Reassembler {
    /// With these bounds.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            partials: HashMap::new(),
            neighbors: HashMap::new(),
            order: BTreeMap::new(),
            bytes: [0; 2],
            serial: 0,
            spare: Vec::new(),
            evicted: 0,
        }
    }

    /// Packets that wait.
    pub fn len(&self) -> usize {
        self.partials.len()
    }

    /// True if none waits.
    pub fn is_empty(&self) -> bool {
        self.partials.is_empty()
    }

    /// Bytes that wait, with a fixed cost for each fragment and packet.
    pub fn bytes(&self) -> usize {
        self.bytes.iter().sum()
    }

    /// Packets given up so far: out of time, or to make room.
    pub fn given_up(&self) -> u64 {
        self.evicted
    }

    /// Takes a fragment that came from `from` under the header `outer`. `known` says that this
    /// node deals with that neighbour. A packet that is whole now is written to `out`.
    #[allow(clippy::too_many_arguments)]
    pub fn accept(
        &mut self,
        from: LinkLayerAddress,
        known: bool,
        outer: Outer,
        shim: FragmentShim,
        data: &[u8],
        now: Instant,
        out: &mut Vec<u8>,
    ) -> Outcome {
        let offset = usize::from(shim.offset);
        let end = offset + data.len();
        let uneven = shim.more && (!data.len().is_multiple_of(8) || data.len() < LEAST_FRAGMENT);
        if data.is_empty() || uneven {
            return Outcome::Refused(Refusal::Size);
        }
        self.expire(now);
        let key = (from, shim.identification);
        if !self.partials.contains_key(&key) {
            if !shim.more && offset == 0 {
                // Whole already; cheap, and legal (RFC 6946).
                out.clear();
                out.extend_from_slice(data);
                return self.checked(outer, out);
            }
            self.begin(key, known, outer, shim.next_header, now);
        }
        let Some(partial) = self.partials.get_mut(&key) else { return Outcome::Waiting };
        if partial.refused {
            return Outcome::Refused(Refusal::Overlap);
        }
        let verdict = partial.place(&shim, offset, end, data, outer, &self.limits);
        match verdict {
            Place::Duplicate => Outcome::Waiting,
            Place::Refused(why) => {
                self.refuse(key);
                Outcome::Refused(why)
            }
            Place::At(index) => {
                let total = partial.total;
                let held: usize = partial.pieces.iter().map(|(_, d)| d.len()).sum();
                if total == Some(held + data.len()) {
                    let outer = partial.outer;
                    out.clear();
                    let (before, after) =
                        partial.pieces.split_at_checked(index).unwrap_or((&partial.pieces, &[]));
                    before.iter().for_each(|(_, d)| out.extend_from_slice(d));
                    out.extend_from_slice(data);
                    after.iter().for_each(|(_, d)| out.extend_from_slice(d));
                    self.remove(key);
                    return self.checked(outer, out);
                }
                let mut piece = self.spare.pop().unwrap_or_default();
                piece.extend_from_slice(data);
                partial.pieces.insert(index, (offset, piece));
                self.charge(key, data.len() + FIXED_COST);
                self.make_room(from);
                Outcome::Waiting
            }
        }
    }

    /// A whole packet must still be of a size that its kind may have.
    fn checked(&self, outer: Outer, packet: &[u8]) -> Outcome {
        let largest = match classify(packet) {
            Class::Control => self.limits.largest_control,
            _ => self.limits.largest_packet,
        };
        if packet.len() > largest {
            return Outcome::Refused(Refusal::TooLarge);
        }
        Outcome::Whole(outer)
    }

    /// Gives up what has waited for too long.
    pub fn expire(&mut self, now: Instant) {
        while let Some((_, key)) = self.order.first_key_value() {
            let key = *key;
            if self.partials.get(&key).is_some_and(|p| p.deadline > now) {
                break;
            }
            self.evicted += 1;
            self.remove(key);
        }
    }

    fn begin(&mut self, key: Key, known: bool, outer: Outer, next_header: u8, now: Instant) {
        self.serial += 1;
        let partial = Partial {
            serial: self.serial,
            known,
            deadline: now + TIMEOUT,
            next_header,
            outer,
            pieces: Vec::new(),
            total: None,
            refused: false,
            cost: 0,
        };
        self.partials.insert(key, partial);
        self.order.insert(self.serial, key);
        let usage = self.neighbors.entry(key.0).or_default();
        usage.oldest.insert((self.serial, key.1));
        usage.known = known;
        self.charge(key, FIXED_COST);
    }

    fn charge(&mut self, key: Key, cost: usize) {
        let Some(partial) = self.partials.get_mut(&key) else { return };
        partial.cost += cost;
        if let Some(total) = self.bytes.get_mut(usize::from(partial.known)) {
            *total += cost;
        }
        if let Some(usage) = self.neighbors.get_mut(&key.0) {
            usage.bytes += cost;
        }
    }

    fn credit(&mut self, from: LinkLayerAddress, known: bool, cost: usize) {
        if let Some(total) = self.bytes.get_mut(usize::from(known)) {
            *total = total.saturating_sub(cost);
        }
        if let Some(usage) = self.neighbors.get_mut(&from) {
            usage.bytes = usage.bytes.saturating_sub(cost);
        }
    }

    fn remove(&mut self, key: Key) {
        let Some(mut partial) = self.partials.remove(&key) else { return };
        self.order.remove(&partial.serial);
        self.credit(key.0, partial.known, partial.cost);
        self.keep_buffers(&mut partial.pieces);
        if let Some(usage) = self.neighbors.get_mut(&key.0) {
            usage.oldest.remove(&(partial.serial, key.1));
            if usage.oldest.is_empty() {
                self.neighbors.remove(&key.0);
            }
        }
    }

    fn refuse(&mut self, key: Key) {
        let Some(partial) = self.partials.get_mut(&key) else { return };
        partial.refused = true;
        let mut pieces = std::mem::take(&mut partial.pieces);
        let (known, freed) = (partial.known, partial.cost - FIXED_COST);
        partial.cost = FIXED_COST;
        self.credit(key.0, known, freed);
        self.keep_buffers(&mut pieces);
    }

    fn keep_buffers(&mut self, pieces: &mut Vec<(usize, Vec<u8>)>) {
        for (_, mut buffer) in pieces.drain(..) {
            if self.spare.len() < SPARE {
                buffer.clear();
                self.spare.push(buffer);
            }
        }
    }

    fn make_room(&mut self, from: LinkLayerAddress) {
        while let Some(usage) = self.neighbors.get(&from)
            && (usage.bytes > self.limits.bytes_per_neighbor
                || usage.oldest.len() > self.limits.packets_per_neighbor)
        {
            self.evict_oldest_of(from);
        }
        for known in [false, true] {
            let limit = if known { self.limits.bytes_known } else { self.limits.bytes_unknown };
            while self.bytes.get(usize::from(known)).is_some_and(|b| *b > limit) {
                let heaviest = self
                    .neighbors
                    .iter()
                    .filter(|(_, u)| u.known == known)
                    .max_by_key(|(_, u)| (u.bytes, std::cmp::Reverse(u.oldest.first().copied())))
                    .map(|(l2, _)| *l2);
                let Some(heaviest) = heaviest else { break };
                self.evict_oldest_of(heaviest);
            }
        }
    }

    fn evict_oldest_of(&mut self, from: LinkLayerAddress) {
        let oldest = self.neighbors.get(&from).and_then(|u| u.oldest.first().copied());
        self.evicted += 1;
        match oldest {
            Some((_, identification)) => self.remove((from, identification)),
            None => drop(self.neighbors.remove(&from)),
        }
    }
}

enum Place {
    At(usize),
    Duplicate,
    Refused(Refusal),
}

impl Partial {
    fn place(
        &mut self,
        shim: &FragmentShim,
        offset: usize,
        end: usize,
        data: &[u8],
        outer: Outer,
        limits: &Limits,
    ) -> Place {
        if end > limits.largest_control.max(limits.largest_packet) {
            return Place::Refused(Refusal::TooLarge);
        }
        if shim.next_header != self.next_header {
            return Place::Refused(Refusal::Overlap);
        }
        let index = self.pieces.partition_point(|(at, _)| *at < offset);
        if let Some((at, held)) = self.pieces.get(index)
            && *at == offset
        {
            let same_end = shim.more != (self.total == Some(end));
            return if held == data && same_end {
                Place::Duplicate
            } else {
                Place::Refused(Refusal::Overlap)
            };
        }
        let before = index.checked_sub(1).and_then(|i| self.pieces.get(i));
        let after = self.pieces.get(index);
        let overlaps = before.is_some_and(|(at, d)| at + d.len() > offset)
            || after.is_some_and(|(at, _)| *at < end);
        let last_end = self.pieces.last().map_or(0, |(at, d)| at + d.len());
        let ends_wrong = match (shim.more, self.total) {
            (true, Some(total)) => end >= total,
            (true, None) => false,
            (false, Some(_)) => true,
            (false, None) => last_end > end,
        };
        if overlaps || ends_wrong {
            return Place::Refused(Refusal::Overlap);
        }
        let ecn = ecn::reassemble(Ecn::of(self.outer.traffic_class), Ecn::of(outer.traffic_class));
        let Some(ecn) = ecn else { return Place::Refused(Refusal::Congestion) };
        if ecn == Ecn::Ce {
            self.outer.traffic_class |= 3;
        }
        self.outer.ttl = self.outer.ttl.min(outer.ttl);
        if !shim.more {
            self.total = Some(end);
        }
        Place::At(index)
    }
}
