//! The packed ring (2.8), device's half.
//!
//! ```text
//! slots          [addr len id flags] …        one ring, both sides write to it
//!
//!     completed, not published     taken, in flight      available
//!   ──┬──────────────────────────┬────────────────────┬─────────────
//!  published                 next_used            next_avail
//! ```
//!
//! The driver makes a slot available, and the device uses it, by flags that are compared with the lap's parity
//! ([`Cursor`]). A used descriptor is written where the next one is expected, whichever chain it tells of, and the
//! device goes on as many slots as that chain had.
//!
//! The driver looks at one slot, the first it has not seen used. So the used descriptors of a burst are written as
//! they come, but for the first: that one is kept back, and publishes all of them. Barriers are labelled: (A)
//! publishes available chains, (U) used ones, (K) and (C) as in `sync`.
//!
//! Nothing is written to a slot whose chain was not taken, and a used descriptor is one 64-bit word: its address
//! stays as the driver wrote it.

use alloc::boxed::Box;

use ringway_spec::feature;
use ringway_spec::packed::{
    DESC_F_AVAIL, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_USED, DESC_F_WRITE, DESC_SIZE, EVENT_SIZE, TAIL, tail,
    tail_flags, tail_id, tail_len,
};

use super::burst::{ChainBuilder, MAX_CHAIN, Ticket};
use super::inflight::packed::{Region, Resubmission};
use super::log::AreaLog;
use crate::area::RingArea;
use crate::event::Suppression;
use crate::sync::{Fence, full_fence};
use crate::wish::Wish;
use crate::{Areas, Burst, Cursor, QueueError, ResumeState};

/// Descriptors of a cache line, and how many ahead of the one at hand they are fetched.
const PER_LINE: u32 = 64 / DESC_SIZE as u32;
const LOOK_AHEAD: u32 = 2 * PER_LINE;

/// Where the areas that the device writes to are in the dirty log, if they are logged.
pub(crate) struct Logs {
    pub(crate) ring: Option<AreaLog>,
    pub(crate) wish: Option<AreaLog>,
}

/// Fields that change are whole words, as in the split ring.
pub(crate) struct DeviceRing {
    descriptors: RingArea,
    driver_event: RingArea,
    size: u32,
    features: u64,
    /// The flag that makes a buffer of an indirect table device-writable; 0 if none does.
    table_write_flag: u16,
    /// The next slot to take.
    next_avail: Cursor,
    /// The next slot to write a used descriptor to.
    next_used: Cursor,
    /// Where the driver expects the next used descriptor.
    published: Cursor,
    /// The used descriptor for that slot, if a chain was completed since.
    first: u64,
    /// Nothing but chains without a device-writable part were completed since `published`: one used descriptor
    /// tells of all.
    can_merge: bool,
    /// Our event suppression.
    wish: Wish,
    logs: Logs,
    /// Where chains in flight are recorded, if they are.
    inflight: Option<Box<Region>>,
}

impl DeviceRing {
    pub(crate) fn new(
        size: u16,
        features: u64,
        areas: Areas,
        logs: Logs,
        avail: Cursor,
        used: Cursor,
        inflight: Option<Box<Region>>,
    ) -> Self {
        let Areas { descriptor: descriptors, driver: driver_event, device: device_event } = areas;
        let ring = Self {
            descriptors,
            driver_event,
            size: size.into(),
            features,
            table_write_flag: DESC_F_WRITE,
            next_avail: avail,
            next_used: used,
            published: used,
            first: 0,
            can_merge: false,
            wish: Wish::new(device_event),
            logs,
            inflight,
        };
        ring.mark_wish(true);
        ring
    }

    #[inline]
    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    #[inline]
    fn size(&self) -> u16 {
        self.size as u16
    }

    pub(crate) fn ignore_write_flag_in_tables(&mut self) {
        self.table_write_flag = 0;
    }

    pub(crate) fn resume_state(&self) -> ResumeState {
        ResumeState::Packed { avail: self.next_avail, used: self.next_used }
    }

    /// The slot at `at`: its address, then length, ID and flags.
    #[inline]
    fn descriptor(&self, at: Cursor) -> (u64, u64) {
        // (A) Pairs with the driver's release of the head's flags: what it wrote before them is visible. One load of
        // one aligned word, so length and ID are those the flags speak of.
        self.descriptors.load_u64_pair(usize::from(at.index()) * DESC_SIZE)
    }

    #[inline]
    pub(crate) fn has_available(&self) -> bool {
        self.next_avail.is_available(tail_flags(self.descriptor(self.next_avail).1))
    }

    /// Whether the region of chains in flight, if there is one, is still the peer's.
    pub(crate) fn is_region_intact(&self) -> bool {
        self.inflight.as_ref().is_none_or(|region| region.is_intact())
    }

    /// Whether chains in flight are recorded.
    pub(crate) fn is_recorded(&self) -> bool {
        self.inflight.is_some()
    }

    /// Whether chains wait that were in flight when the queue started.
    pub(crate) fn has_resubmissions(&self) -> bool {
        self.inflight.as_ref().is_some_and(|region| region.resubmission().is_some())
    }

    /// Takes up to `max` chains, as long as no more slots are in flight than the ring has.
    #[inline]
    pub(crate) fn take(
        &mut self,
        burst: &mut Burst,
        max: usize,
        in_flight: &mut u32,
    ) -> Result<(), QueueError> {
        if self.inflight.is_some() {
            return self.take_recorded(burst, max, in_flight);
        }
        self.take_available(burst, max, in_flight)
    }

    /// The same, recorded in the region; first those that are recorded there already.
    #[cold]
    fn take_recorded(
        &mut self,
        burst: &mut Burst,
        max: usize,
        in_flight: &mut u32,
    ) -> Result<(), QueueError> {
        let Some(mut region) = self.inflight.take() else { return Ok(()) };
        let result = self.take_into(&mut region, burst, max, in_flight);
        self.inflight = Some(region);
        result
    }

    fn take_into(
        &mut self,
        region: &mut Region,
        burst: &mut Burst,
        max: usize,
        in_flight: &mut u32,
    ) -> Result<(), QueueError> {
        let end = burst.len().saturating_add(max);
        while let Some(chain) = region.resubmission() {
            if burst.len() == end || !burst.has_room() {
                return Ok(());
            }
            self.take_again(chain, region.descriptors(chain), burst)?;
            region.resubmitted();
        }
        let (first, mut at) = (burst.len(), self.next_avail);
        // A chain that waits to be published is recorded still.
        let mut recorded = *in_flight + region.completed();
        let result = self.take_available(burst, end - first, &mut recorded);
        *in_flight = recorded - region.completed();
        for ticket in burst.tickets_mut(first) {
            let (id, slots) = (ticket.id(), ticket.slots());
            // Nothing is decided by what is read here a second time: the region has it as the ring does.
            let descriptors = (0..slots).map(|i| self.descriptor(at.advance(i, self.size())));
            *ticket = ticket.with_id(region.taken(id, descriptors));
            at = at.advance(slots, self.size());
        }
        result
    }

    /// Takes a chain whose descriptors are no longer in the ring.
    fn take_again(
        &self,
        Resubmission { head, slots, .. }: Resubmission,
        descriptors: &[(u64, u64)],
        burst: &mut Burst,
    ) -> Result<(), QueueError> {
        let mut chain = burst.build(head);
        for (addr, tail) in descriptors {
            self.push(*addr, *tail, head, slots == 1, &mut chain)?;
        }
        chain.finish(head, slots);
        Ok(())
    }

    // Not inlined: with the device's own loop around it, too little would be kept in registers.
    #[inline(never)]
    fn take_available(
        &mut self,
        burst: &mut Burst,
        max: usize,
        in_flight: &mut u32,
    ) -> Result<(), QueueError> {
        let mut left = max as u32;
        while left > 0 {
            let singles = self.take_singles(burst, left.min(self.size - *in_flight));
            *in_flight += singles;
            left -= singles;
            let free = self.size - *in_flight;
            if left == 0 || free == 0 || !burst.has_room() {
                break;
            }
            let Some(slots) = self.take_chain(burst, free)? else { break };
            *in_flight += slots;
            left -= 1;
        }
        Ok(())
    }

    /// Takes up to `max` chains of one descriptor each from `next_avail` on, to the ring's end at most; returns how many.
    /// It stops at whatever else there is.
    #[inline]
    fn take_singles(&mut self, burst: &mut Burst, max: u32) -> u32 {
        const FLAGS: u16 = DESC_F_AVAIL | DESC_F_USED | DESC_F_NEXT | DESC_F_INDIRECT;
        let available = self.next_avail.available_flags();
        let first = u32::from(self.next_avail.index());
        let end = (first + max.min(burst.room() as u32)).min(self.size);
        let mut at = first;
        while at < end {
            if at % PER_LINE == 0 {
                self.descriptors.prefetch((at + LOOK_AHEAD) as usize * DESC_SIZE);
            }
            // (A) as in `descriptor`.
            let (addr, tail) = self.descriptors.load_u64_pair(at as usize * DESC_SIZE);
            let flags = tail_flags(tail);
            if flags & FLAGS != available
                || !burst.push_single(tail_id(tail), addr, tail_len(tail), flags & DESC_F_WRITE != 0)
            {
                break;
            }
            at += 1;
        }
        let taken = at - first;
        self.next_avail = self.next_avail.advance(taken as u16, self.size());
        taken
    }

    /// Takes the chain at `next_avail`, if there is one. Returns its slots, at most `free`.
    #[inline]
    fn take_chain(&mut self, burst: &mut Burst, free: u32) -> Result<Option<u32>, QueueError> {
        let limit = free.min(MAX_CHAIN.into());
        let head = self.next_avail.index();
        let mut chain = burst.build(head);
        let (mut at, mut slots) = (self.next_avail, 0);
        loop {
            let (addr, tail) = self.descriptor(at);
            let flags = tail_flags(tail);
            if !at.is_available(flags) {
                if slots == 0 {
                    return Ok(None);
                }
                return Err(QueueError::NotAvailable { head, index: at.index() });
            }
            at = at.advance(1, self.size());
            slots += 1;
            self.push(addr, tail, head, slots == 1, &mut chain)?;
            if flags & DESC_F_NEXT == 0 {
                // The buffer ID stands in the chain's last descriptor (2.8.6).
                chain.finish(tail_id(tail), slots as u16);
                self.next_avail = at;
                return Ok(Some(slots));
            }
            if slots == limit {
                return Err(QueueError::TooLong { head, limit: limit as u16 });
            }
        }
    }

    /// Appends the buffer, or the buffers, of a descriptor to a chain.
    #[inline(always)]
    #[allow(
        clippy::inline_always,
        reason = "a second caller, out of the way, must not take it out of the first"
    )]
    fn push(
        &self,
        addr: u64,
        tail: u64,
        head: u16,
        is_first: bool,
        chain: &mut ChainBuilder<'_>,
    ) -> Result<(), QueueError> {
        let flags = tail_flags(tail);
        if flags & DESC_F_INDIRECT != 0 {
            // A list is either in the ring or in a table (2.8.7). Its WRITE flag means nothing.
            if !self.has(feature::RING_INDIRECT_DESC) || !is_first || flags & DESC_F_NEXT != 0 {
                return Err(QueueError::BadIndirect { head });
            }
            return walk_table(addr, tail_len(tail), self.table_write_flag, chain);
        }
        chain.push(addr, tail_len(tail), flags & DESC_F_WRITE != 0)
    }

    /// With `IN_ORDER` one used descriptor, where the first of a batch would be, tells of the whole batch by its last
    /// chain (2.8.8). What was written to the others is not told; so only chains without a device-writable part
    /// are merged. Drivers that poll for each buffer they are to get data in never meet a gap.
    #[inline]
    pub(crate) fn complete(&mut self, id: u16, slots: u16, written: u32, is_read_only: bool) {
        // A recorded chain is known by its place in the region.
        let id = match &mut self.inflight {
            None => id,
            Some(region) => region.complete(id, slots),
        };
        let is_first = self.next_used == self.published;
        self.can_merge = self.has(feature::IN_ORDER) && is_read_only && (is_first || self.can_merge);
        let at = if self.can_merge { self.published } else { self.next_used };
        let write_flag = if written > 0 { DESC_F_WRITE } else { 0 };
        let tail = tail(written, id, at.used_flags() | write_flag);
        if at == self.published {
            self.first = tail;
        } else {
            self.store_tail(at, tail);
        }
        self.next_used = self.next_used.advance(slots, self.size());
    }

    /// The same for chains that nothing was written to.
    pub(crate) fn complete_all(&mut self, tickets: impl DoubleEndedIterator<Item = Ticket> + Clone) {
        let is_merged = self.has(feature::IN_ORDER)
            && self.inflight.is_none()
            && (self.can_merge || self.next_used == self.published)
            && tickets.clone().all(|ticket| ticket.writable_len() == 0);
        if !is_merged {
            for ticket in tickets {
                self.complete(ticket.id(), ticket.slots(), 0, ticket.writable_len() == 0);
            }
        } else if let Some(last) = tickets.clone().next_back() {
            // The one that `complete` would have come to.
            self.can_merge = true;
            self.first = tail(0, last.id(), self.published.used_flags());
            let slots = tickets.map(Ticket::slots).sum();
            self.next_used = self.next_used.advance(slots, self.size());
        }
    }

    #[inline]
    fn store_tail(&self, at: Cursor, tail: u64) {
        self.descriptors.store_u64(usize::from(at.index()) * DESC_SIZE + TAIL, tail);
    }

    /// Gives back the chains that wait in `burst`. Returns how many slots of the ring are to be taken anew.
    pub(crate) fn rewind(&mut self, burst: &Burst) -> u16 {
        let slots = match &mut self.inflight {
            None => burst.waiting_slots(),
            Some(region) => region.rewind(burst),
        };
        self.next_avail = self.next_avail.retreat(slots, self.size());
        slots
    }

    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        if self.next_used == self.published {
            return false;
        }
        if self.inflight.is_some() {
            return self.publish_recorded();
        }
        self.publish_used()
    }

    /// The same, and the region follows.
    #[cold]
    fn publish_recorded(&mut self) -> bool {
        if let Some(region) = &mut self.inflight {
            region.begin_publish(self.next_used);
        }
        let wants_call = self.publish_used();
        if let Some(region) = &mut self.inflight {
            region.end_publish();
        }
        wants_call
    }

    #[inline]
    fn publish_used(&mut self) -> bool {
        // (U) Pairs with the driver's acquire of this slot's flags: used descriptors after it, and buffers, written
        // before it, are visible.
        let at = usize::from(self.published.index()) * DESC_SIZE + TAIL;
        self.descriptors.store_u64_release(at, self.first);
        // (C) Our store of the flags before our load of the driver's wish.
        full_fence(Fence::DevicePublish);
        let old = core::mem::replace(&mut self.published, self.next_used);
        if let Some(log) = &self.logs.ring {
            let count = self.next_used.distance(old, self.size());
            log.mark_entries(0, DESC_SIZE, old.index().into(), count, self.size);
        }
        let wish = Suppression::from_word(self.driver_event.load_u32(0), self.has(feature::RING_EVENT_IDX));
        wish.wants(old, self.next_used, self.size())
    }

    pub(crate) fn arm(&mut self) {
        let is_new = self.wish.arm(self.next_avail, self.has(feature::RING_EVENT_IDX));
        self.mark_wish(is_new);
        // (K) Our store of the wish before our next load of a slot's flags; the driver stores these before it
        // loads the wish.
        full_fence(Fence::DeviceArm);
    }

    pub(crate) fn suppress(&mut self) {
        let is_new = self.wish.suppress();
        self.mark_wish(is_new);
    }

    /// Marks our event suppression in the dirty log, if it was written to.
    fn mark_wish(&self, is_new: bool) {
        if let Some(log) = &self.logs.wish
            && is_new
        {
            log.mark(0, EVENT_SIZE);
        }
    }
}

/// Reads the chain in an indirect table: all of its descriptors, one after the other. Of their flags only WRITE
/// means something; NEXT, INDIRECT and the rest are ignored (2.8.7).
#[inline(always)]
#[allow(clippy::inline_always, reason = "a second caller, out of the way, must not take it out of the first")]
fn walk_table(addr: u64, len: u32, write_flag: u16, chain: &mut ChainBuilder<'_>) -> Result<(), QueueError> {
    chain.copy_table(addr, len)?;
    let mut index = 0;
    while let Some((addr, tail)) = chain.entry(index) {
        chain.push(addr, tail_len(tail), tail_flags(tail) & write_flag != 0)?;
        index += 1;
    }
    Ok(())
}
