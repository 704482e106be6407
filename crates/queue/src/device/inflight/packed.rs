//! The region of a packed queue.
//!
//! ```text
//! head    features u64 │ version u16 │ desc_num u16 │ free_head u16 │ old_free_head u16
//!         used_idx u16 │ old_used_idx u16 │ used_wrap_counter u8 │ old_used_wrap_counter u8 │ 10 bytes
//! state   inflight u8 │ 1 byte │ next u16 │ last u16 │ num u16 │ counter u64        one for each descriptor
//!         id u16 │ flags u16 │ len u32 │ addr u64
//!
//! free_head ──► 3 ──► 4 ──► 0 ──► (size)
//!        in flight    1 ──► 2         num 2, last 2, the chain's descriptors as the driver made them available
//!                     5               num 1, last 5
//! ```
//!
//! Used descriptors overwrite available ones, whichever chain they tell of. So a chain's descriptors are copied, to
//! states taken from a list of free ones, and a chain is known by its first state from then on.
//!
//! `free_head` and the used position are stored twice. What is done becomes true when the old ones follow: taking and
//! giving back when `old_free_head` does, using when the driver can see the first used descriptor at the old position.
//! Both positions with their wrap counters share one aligned word, and are stored as one: an index without its wrap
//! counter would be another position.

use alloc::vec;
use alloc::vec::Vec;

use ringway_spec::packed::{DESC_F_NEXT, DESC_F_USED, DESC_SIZE, TAIL, tail, tail_flags, tail_id, tail_len};

use super::super::burst::MAX_CHAIN;
use super::{InflightError, Resubmissions, begin_use, is_in_use};
use crate::area::RingArea;
use crate::{Burst, Cursor};

/// Size of a region's head in bytes.
pub(super) const HEAD_SIZE: usize = 32;
/// Offset of the first free state.
pub(super) const FREE_HEAD: usize = 12;
/// Offset of the first free state, as of the last batch.
pub(super) const OLD_FREE_HEAD: usize = 14;
/// Offset of the word of [`Positions`].
pub(super) const POSITIONS: usize = 16;

/// Size of a descriptor's state in bytes.
pub(super) const STATE_SIZE: usize = 32;
/// Offset of whether the chain that begins here is in flight; the byte after it is padding.
pub(super) const INFLIGHT: usize = 0;
/// Offset of the next state of the list.
pub(super) const NEXT: usize = 2;
/// Offset of the chain's last state, in its first.
pub(super) const LAST: usize = 4;
/// Offset of the number of the chain's states, in its first.
pub(super) const NUM: usize = 6;
/// Offset of the number that tells in which order chains were taken, in its first.
pub(super) const COUNTER: usize = 8;
/// Offset of the descriptor's ID, flags and length, in this order.
pub(super) const ID_FLAGS_LEN: usize = 16;
/// Offset of the descriptor's address.
pub(super) const ADDR: usize = 24;

/// The field at `offset` of a state.
const fn state(index: u16, offset: usize) -> usize {
    HEAD_SIZE + index as usize * STATE_SIZE + offset
}

/// The used position and the old one, as one word: `used_idx`, `old_used_idx`, and their wrap counters, a byte each.
#[derive(Clone, Copy)]
struct Positions {
    used: Cursor,
    old: Cursor,
}

impl Positions {
    fn to_word(self) -> u64 {
        let Self { used, old } = self;
        u64::from(used.index())
            | u64::from(old.index()) << 16
            | u64::from(used.wrap()) << 32
            | u64::from(old.wrap()) << 40
    }

    fn from_word(word: u64, size: u16) -> Result<Self, InflightError> {
        let cursor = |index: u16, wrap: u8| {
            let is_good = index < size && wrap <= 1;
            if is_good {
                Ok(Cursor::new(index, wrap == 1))
            } else {
                Err(InflightError::Position { index, wrap, size })
            }
        };
        Ok(Self {
            used: cursor(word as u16, (word >> 32) as u8)?,
            old: cursor((word >> 16) as u16, (word >> 40) as u8)?,
        })
    }
}

/// A chain to be taken again.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Resubmission {
    /// Its first state.
    pub(crate) head: u16,
    /// How many it has.
    pub(crate) slots: u16,
    /// Where its descriptors begin among the copies.
    first: usize,
}

/// What a queue knows of a state.
#[derive(Debug, Clone, Copy, Default)]
struct State {
    next: u16,
    /// Of a chain's first state: its last one, and the chain's buffer ID.
    last: u16,
    id: u16,
}

/// A region that a queue records its chains in.
pub(crate) struct Region {
    area: RingArea,
    /// The number of the next chain.
    counter: u64,
    free_head: u16,
    states: Vec<State>,
    /// Where the driver expects the next used descriptor.
    used: Cursor,
    /// Chains completed and not published, and how many slots they have.
    batch: Vec<u16>,
    completed: u32,
    resubmissions: Resubmissions<Resubmission>,
    /// Descriptors of the chains that were in flight when the queue started, as the ring had them.
    copies: Vec<(u64, u64)>,
}

impl Region {
    /// Opens the region of a queue with this ring, which is to go on at `avail` and `used` if the region is new. If it
    /// is not, the queue goes on where the region says.
    pub(crate) fn open(
        area: RingArea,
        size: u16,
        ring: &RingArea,
        avail: Cursor,
        used: Cursor,
    ) -> Result<Self, InflightError> {
        let found = if is_in_use(&area, size)? {
            let found = Found::read(&area, size, ring)?;
            found.store(&area, size, ring);
            found
        } else {
            initialize(&area, size, avail, used)?;
            Found::new(size, used)
        };
        let Found { used, free_head, states, chains, copies, next_counter } = found;
        Ok(Self {
            area,
            counter: next_counter,
            free_head,
            states,
            used,
            batch: Vec::with_capacity(size.into()),
            completed: 0,
            resubmissions: Resubmissions::new(chains),
            copies,
        })
    }

    /// Where the driver expects the next used descriptor.
    pub(crate) fn used(&self) -> Cursor {
        self.used
    }

    /// How many slots were in flight when the queue started.
    pub(crate) fn recovered(&self) -> u16 {
        self.copies.len() as u16
    }

    pub(crate) fn is_intact(&self) -> bool {
        self.area.is_intact()
    }

    /// The next chain to take again.
    pub(crate) fn resubmission(&self) -> Option<Resubmission> {
        self.resubmissions.peek()
    }

    /// It was taken again.
    pub(crate) fn resubmitted(&mut self) {
        self.resubmissions.next += 1;
    }

    /// A chain's descriptors as the ring had them: addresses, and the rest.
    pub(crate) fn descriptors(&self, chain: Resubmission) -> &[(u64, u64)] {
        &self.copies[chain.first..][..usize::from(chain.slots)]
    }

    /// Records a chain taken from the ring, with its buffer ID and its descriptors, at most as many as there are free
    /// states. Returns its first state.
    pub(crate) fn taken(&mut self, id: u16, descriptors: impl ExactSizeIterator<Item = (u64, u64)>) -> u16 {
        let num = descriptors.len() as u16;
        let head = self.free_head;
        let (mut at, mut last) = (head, head);
        for (addr, tail) in descriptors {
            let fields = u64::from(tail_id(tail))
                | u64::from(tail_flags(tail)) << 16
                | u64::from(tail_len(tail)) << 32;
            self.area.store_u64_release(state(at, ID_FLAGS_LEN), fields);
            self.area.store_u64_release(state(at, ADDR), addr);
            last = at;
            at = self.states[usize::from(at)].next;
        }
        let first = &mut self.states[usize::from(head)];
        (first.last, first.id) = (last, id);
        self.area.store_u16_release(state(head, NUM), num);
        self.area.store_u16_release(state(head, LAST), last);
        self.area.store_u64_release(state(head, COUNTER), self.counter);
        self.area.store_u16_release(state(head, INFLIGHT), 1);
        self.counter = self.counter.wrapping_add(1);
        self.set_free_head(at);
        self.area.store_u16_release(OLD_FREE_HEAD, at);
        self.resubmissions.later += 1;
        head
    }

    /// Slots of the chains completed and not published.
    pub(crate) fn completed(&self) -> u32 {
        self.completed
    }

    /// Puts a chain into the batch. Returns its buffer ID.
    #[cold]
    pub(crate) fn complete(&mut self, head: u16, slots: u16) -> u16 {
        self.batch.push(head);
        self.completed += u32::from(slots);
        self.states[usize::from(head)].id
    }

    /// Frees the batch's states, for as long as it turns out that the driver sees it used. The used descriptor at the
    /// old position is stored next; `used` is where the one after the batch will be.
    pub(crate) fn begin_publish(&mut self, used: Cursor) {
        for i in 0..self.batch.len() {
            self.free(self.batch[i]);
        }
        self.area.store_u64_release(POSITIONS, Positions { used, old: self.used }.to_word());
        self.used = used;
    }

    /// The driver can see the batch used.
    pub(crate) fn end_publish(&mut self) {
        for head in self.batch.drain(..) {
            self.area.store_u16_release(state(head, INFLIGHT), 0);
        }
        self.completed = 0;
        self.area.store_u16_release(OLD_FREE_HEAD, self.free_head);
        self.area.store_u64_release(POSITIONS, Positions { used: self.used, old: self.used }.to_word());
    }

    /// Gives back the chains that wait, the last first, so that those in flight are always the first ones of the ring.
    /// Returns how many slots go back to the ring.
    #[cold]
    pub(crate) fn rewind(&mut self, burst: &Burst) -> u16 {
        let waiting = burst.len();
        let later = self.resubmissions.give_back(waiting);
        let mut slots = 0;
        for ticket in burst.tickets(waiting - later).rev() {
            self.free(ticket.id());
            self.area.store_u16_release(OLD_FREE_HEAD, self.free_head);
            self.area.store_u16_release(state(ticket.id(), INFLIGHT), 0);
            slots += ticket.slots();
        }
        slots
    }

    /// Puts a chain's states at the front of the free ones.
    fn free(&mut self, head: u16) {
        let last = self.states[usize::from(head)].last;
        self.states[usize::from(last)].next = self.free_head;
        self.area.store_u16_release(state(last, NEXT), self.free_head);
        self.set_free_head(head);
    }

    fn set_free_head(&mut self, index: u16) {
        self.free_head = index;
        self.area.store_u16_release(FREE_HEAD, index);
    }
}

fn initialize(area: &RingArea, size: u16, avail: Cursor, used: Cursor) -> Result<(), InflightError> {
    if avail != used {
        return Err(InflightError::Untracked(avail.distance(used, size)));
    }
    for index in 0..size {
        area.store_u16(state(index, INFLIGHT), 0);
        area.store_u16(state(index, NEXT), index + 1);
        area.store_u16(state(index, NUM), 0);
    }
    area.store_u16(FREE_HEAD, 0);
    area.store_u16(OLD_FREE_HEAD, 0);
    area.store_u64(POSITIONS, Positions { used, old: used }.to_word());
    begin_use(area, size);
    Ok(())
}

/// What a region in use was found to hold.
struct Found {
    used: Cursor,
    free_head: u16,
    states: Vec<State>,
    chains: Vec<Resubmission>,
    copies: Vec<(u64, u64)>,
    next_counter: u64,
}

/// Which list a state was met in.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Nowhere,
    Free,
    Chain,
}

impl Found {
    /// A new region.
    fn new(size: u16, used: Cursor) -> Self {
        let states = (1..=size).map(|next| State { next, ..State::default() }).collect();
        Self { used, free_head: 0, states, chains: Vec::new(), copies: Vec::new(), next_counter: 0 }
    }

    /// Copies a region and checks it; changes nothing.
    fn read(area: &RingArea, size: u16, ring: &RingArea) -> Result<Self, InflightError> {
        let Positions { used, old } = Positions::from_word(area.load_u64(POSITIONS), size)?;
        // A driver that sees the batch may have made its slots available again, but in the lap after.
        let is_published = used != old && !old.is_available(tail_flags(ring.load_u64_acquire(slot(old))));
        let (used, free_head) =
            if is_published { (used, area.load_u16(FREE_HEAD)) } else { (old, area.load_u16(OLD_FREE_HEAD)) };
        let next = |index: &u16| area.load_u16(state(*index, NEXT));
        let states = (0..size).map(|index| State { next: next(&index), ..State::default() }).collect();
        let mut found =
            Self { used, free_head, states, chains: Vec::new(), copies: Vec::new(), next_counter: 0 };
        let mut places = found.free_places(size)?;
        found.read_chains(area, size, &mut places)?;
        match (0..).zip(&places).find(|(_, place)| **place == Place::Nowhere) {
            Some((lost, _)) => Err(InflightError::Lost(lost)),
            None => Ok(found),
        }
    }

    /// Walks the list of free states, whose end is no state.
    fn free_places(&self, size: u16) -> Result<Vec<Place>, InflightError> {
        let mut places = vec![Place::Nowhere; size.into()];
        let mut index = self.free_head;
        while index != size {
            let place = places.get_mut(usize::from(index)).ok_or(InflightError::Index { index, size })?;
            if *place != Place::Nowhere {
                return Err(InflightError::Twice(index));
            }
            *place = Place::Free;
            index = self.states[usize::from(index)].next;
        }
        Ok(places)
    }

    /// Copies the chains in flight, oldest first.
    fn read_chains(&mut self, area: &RingArea, size: u16, places: &mut [Place]) -> Result<(), InflightError> {
        let is_in_flight = |head: &u16| {
            places[usize::from(*head)] != Place::Free && area.load_u16(state(*head, INFLIGHT)) as u8 == 1
        };
        let mut heads: Vec<_> =
            (0..size).filter(is_in_flight).map(|head| (area.load_u64(state(head, COUNTER)), head)).collect();
        heads.sort_unstable();
        self.next_counter = heads.last().map_or(0, |(counter, _)| counter.wrapping_add(1));
        for (_, head) in heads {
            self.read_chain(area, size, head, places)?;
        }
        Ok(())
    }

    fn read_chain(
        &mut self,
        area: &RingArea,
        size: u16,
        head: u16,
        places: &mut [Place],
    ) -> Result<(), InflightError> {
        let (slots, said_last) = (area.load_u16(state(head, NUM)), area.load_u16(state(head, LAST)));
        if slots == 0 || slots > MAX_CHAIN {
            return Err(InflightError::Chain(head));
        }
        let first = self.copies.len();
        let (mut index, mut last, mut id) = (head, head, 0);
        for i in 1..=slots {
            let place = places.get_mut(usize::from(index)).ok_or(InflightError::Index { index, size })?;
            if *place != Place::Nowhere {
                return Err(InflightError::Twice(index));
            }
            *place = Place::Chain;
            let fields = area.load_u64(state(index, ID_FLAGS_LEN));
            let flags = (fields >> 16) as u16;
            if (flags & DESC_F_NEXT != 0) != (i < slots) {
                return Err(InflightError::Chain(head));
            }
            id = fields as u16;
            self.copies.push((area.load_u64(state(index, ADDR)), tail((fields >> 32) as u32, id, flags)));
            last = index;
            index = self.states[usize::from(index)].next;
        }
        if last != said_last {
            return Err(InflightError::Chain(head));
        }
        let state = &mut self.states[usize::from(head)];
        (state.last, state.id) = (last, id);
        self.chains.push(Resubmission { head, slots, first });
        Ok(())
    }

    /// Finishes in the region, and in the ring, what a device was doing when it ended. It may end in the midst of this
    /// as well, and the next one finds the same.
    fn store(&self, area: &RingArea, size: u16, ring: &RingArea) {
        area.store_u16_release(FREE_HEAD, self.free_head);
        area.store_u16_release(OLD_FREE_HEAD, self.free_head);
        area.store_u64_release(POSITIONS, Positions { used: self.used, old: self.used }.to_word());
        let mut index = self.free_head;
        while index != size {
            area.store_u16_release(state(index, INFLIGHT), 0);
            index = self.states[usize::from(index)].next;
        }
        // Of a batch that was not published, all used descriptors but the first may be in the ring. The driver would
        // meet them behind the next one that is.
        for i in 0..self.copies.len() {
            let at = self.used.advance(i as u16, size);
            let tail = ring.load_u64(slot(at));
            if at.is_used(tail_flags(tail)) {
                ring.store_u64_release(slot(at), tail ^ u64::from(DESC_F_USED) << 48);
            }
        }
    }
}

/// Where the slot at `at` has its flags.
fn slot(at: Cursor) -> usize {
    usize::from(at.index()) * DESC_SIZE + TAIL
}
