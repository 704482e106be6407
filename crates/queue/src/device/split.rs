//! The split ring (2.7), device's half.
//!
//! ```text
//!            written by the driver                     written by the device
//! desc  [addr len flags next] …                 used  [flags idx {id len}… avail_event]
//! avail [flags idx head…  used_event]
//!
//!   taken      available                          completed, not yet published
//!  ───────┬─────────────────┬──────              ───────┬───────────┬──────
//!     next_avail        avail_seen                   published   next_used
//! ```
//!
//! All indices run freely modulo 2¹⁶; a position in a ring is an index masked by the size. The device writes
//! the used ring only, never a descriptor. Barriers are labelled: (A) publishes available chains, (U) used
//! ones, (K) and (C) keep a notification from being lost between two sides that look and sleep.

use alloc::boxed::Box;

use ringway_spec::feature;
use ringway_spec::split::{
    self as layout, AVAIL_ENTRY, AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE,
    Descriptor, FLAGS, IDX, RING, USED_ENTRY, USED_F_NO_NOTIFY,
};

use super::burst::{ChainBuilder, MAX_CHAIN, Ticket};
use super::inflight::split::Region;
use super::log::AreaLog;
use crate::area::RingArea;
use crate::sync::{Fence, full_fence};
use crate::{Areas, Burst, QueueError, ResumeState, event};

/// How many chains are looked at ahead of their descriptors.
const LOOK_AHEAD: usize = 32;

/// Used entries in a cache line.
const USED_PER_LINE: u32 = 8;

/// Indices run on past 16 bits, the ring has their lower half. They are whole words because a compiler loads a narrow
/// field together with the one beside it, and a processor waits with that if one of them has just been written.
pub(crate) struct DeviceRing {
    descriptors: RingArea,
    avail: RingArea,
    used: RingArea,
    size: u32,
    features: u64,
    /// The next entry of the available ring to take.
    next_avail: u32,
    /// The driver's available index as last read.
    avail_seen: u32,
    /// The next entry of the used ring to write.
    next_used: u32,
    /// The used index as the driver sees it.
    published: u32,
    /// Nothing but chains without a device-writable part were completed since: one used entry tells of all.
    can_merge: bool,
    /// Where the used ring is in the dirty log, if it is logged.
    log: Option<AreaLog>,
    /// Where chains in flight are recorded, if they are.
    inflight: Option<Box<Region>>,
}

impl DeviceRing {
    pub(crate) fn new(
        size: u16,
        features: u64,
        areas: Areas,
        log: Option<AreaLog>,
        next_avail: u16,
        inflight: Option<Box<Region>>,
    ) -> Self {
        let Areas { descriptor: descriptors, driver: avail, device: used } = areas;
        // Ours alone, so the ring is where the truth is, also after a crash of ours or a reset of the guest.
        let next_used = used.load_u16(IDX);
        // With EVENT_IDX the flags stay 0 (2.7.10.1); without, 0 is the state before the first `suppress`.
        used.store_u16(FLAGS, 0);
        let ring = Self {
            descriptors,
            avail,
            used,
            size: size.into(),
            features,
            next_avail: next_avail.into(),
            avail_seen: next_avail.into(),
            next_used: next_used.into(),
            published: next_used.into(),
            can_merge: false,
            log,
            inflight,
        };
        ring.mark_word(FLAGS);
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

    pub(crate) fn resume_state(&self) -> ResumeState {
        ResumeState::Split { next_avail: self.next_avail as u16 }
    }

    /// Where entry `index` of a ring begins.
    #[inline]
    fn entry(&self, index: u32, entry_size: usize) -> usize {
        RING + (index & (self.size - 1)) as usize * entry_size
    }

    /// Reads the driver's index if all entries seen so far are taken: as long as there are some, another look
    /// would only cost a cache line that the driver is writing to.
    #[inline]
    fn available(&mut self) -> Result<usize, QueueError> {
        if self.avail_seen == self.next_avail {
            // (A) Pairs with the driver's release of `idx`: entries and descriptors before it are visible.
            let idx = self.avail.load_u16_acquire(IDX);
            let (next, size) = (self.next_avail as u16, self.size());
            let ahead = idx.wrapping_sub(next);
            if ahead > size {
                return Err(QueueError::IndexJump { idx, next, size });
            }
            self.avail_seen = self.next_avail.wrapping_add(ahead.into());
        }
        Ok(self.avail_seen.wrapping_sub(self.next_avail) as usize)
    }

    pub(crate) fn has_available(&self) -> bool {
        self.avail_seen != self.next_avail || self.avail.load_u16_acquire(IDX) != self.next_avail as u16
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

    /// Takes up to `max` chains, as long as no more are in flight than the ring has entries.
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
        while let Some(head) = region.resubmission() {
            if burst.len() == end || !burst.has_room() {
                return Ok(());
            }
            self.walk(head, burst)?;
            region.resubmitted();
        }
        let first = burst.len();
        // A chain that waits to be published is recorded still.
        let mut recorded = *in_flight + region.completed();
        let result = self.take_available(burst, end - first, &mut recorded);
        *in_flight = recorded - region.completed();
        for ticket in burst.tickets(first) {
            region.taken(ticket.id());
        }
        result
    }

    // Not inlined: with the device's own loop around it, too little would be kept in registers.
    #[inline(never)]
    fn take_available(
        &mut self,
        burst: &mut Burst,
        max: usize,
        in_flight: &mut u32,
    ) -> Result<(), QueueError> {
        let first = self.next_avail;
        let result = self.take_chains(burst, max.min((self.size - *in_flight) as usize));
        *in_flight += self.next_avail.wrapping_sub(first);
        result
    }

    #[inline]
    fn take_chains(&mut self, burst: &mut Burst, max: usize) -> Result<(), QueueError> {
        let mut left = self.available()?.min(max);
        let mut heads = [0; LOOK_AHEAD];
        while left > 0 {
            let heads = &mut heads[..left.min(LOOK_AHEAD)];
            for (head, i) in heads.iter_mut().zip(0..) {
                *head = self.avail.load_u16(self.entry(self.next_avail.wrapping_add(i), AVAIL_ENTRY));
                self.descriptors.prefetch(usize::from(*head) * DESC_SIZE);
                if i % USED_PER_LINE == 0 {
                    // The driver has read this line the last time round, so it is shared now.
                    self.used.prefetch_to_write(self.entry(self.next_used.wrapping_add(i), USED_ENTRY));
                }
            }
            for &head in heads.iter() {
                if !burst.has_room() {
                    return Ok(());
                }
                self.walk(head, burst)?;
                self.next_avail = self.next_avail.wrapping_add(1);
            }
            left -= heads.len();
        }
        self.prefetch_ahead();
        Ok(())
    }

    /// Has the descriptors fetched that will be taken next, while the device works on those taken now.
    #[inline]
    fn prefetch_ahead(&self) {
        let ahead = self.avail_seen.wrapping_sub(self.next_avail).min(LOOK_AHEAD as u32);
        for i in 0..ahead {
            let head = self.avail.load_u16(self.entry(self.next_avail.wrapping_add(i), AVAIL_ENTRY));
            self.descriptors.prefetch(usize::from(head) * DESC_SIZE);
        }
    }

    /// Reads the chain at `head` into `burst`.
    #[inline(always)]
    #[allow(
        clippy::inline_always,
        reason = "a second caller, out of the way, must not take it out of the first"
    )]
    fn walk(&self, head: u16, burst: &mut Burst) -> Result<(), QueueError> {
        let mut descriptor = self.descriptor(head)?;
        let flags = descriptor.flags();
        if flags & (DESC_F_NEXT | DESC_F_INDIRECT) == 0
            && burst.push_single(head, descriptor.addr(), descriptor.len(), flags & DESC_F_WRITE != 0)
        {
            return Ok(());
        }
        let mut chain = burst.build(head);
        let limit = self.size().min(MAX_CHAIN);
        for count in 1..=limit {
            let flags = descriptor.flags();
            if flags & DESC_F_INDIRECT != 0 {
                // Ends the chain (2.7.5.3.1), so INDIRECT and NEXT exclude each other. Its WRITE flag means
                // nothing (2.7.5.3.2).
                if !self.has(feature::RING_INDIRECT_DESC) || flags & DESC_F_NEXT != 0 {
                    return Err(QueueError::BadIndirect { head });
                }
                walk_table(head, &descriptor, &mut chain)?;
                chain.finish(head, 1);
                return Ok(());
            }
            chain.push(descriptor.addr(), descriptor.len(), flags & DESC_F_WRITE != 0)?;
            if flags & DESC_F_NEXT == 0 {
                chain.finish(head, 1);
                return Ok(());
            }
            if count < limit {
                descriptor = self.descriptor(descriptor.next())?;
            }
        }
        Err(QueueError::TooLong { head, limit })
    }

    /// A copy of a descriptor: read once.
    #[inline]
    fn descriptor(&self, index: u16) -> Result<Descriptor, QueueError> {
        if index >= self.size() {
            return Err(QueueError::BadIndex { index, size: self.size() });
        }
        let at = usize::from(index) * DESC_SIZE;
        let (low, high) = self.descriptors.load_u64_pair(at);
        Ok(Descriptor::from_words(low, high))
    }

    /// With `IN_ORDER` one used entry, where the first of a batch would be, tells of the whole batch by its last chain
    /// (2.7.9). The driver takes the others for wholly used; so only chains without a device-writable part are
    /// merged, of which there is nothing to tell.
    #[inline]
    pub(crate) fn complete(&mut self, head: u16, written: u32, is_read_only: bool) {
        let is_first = self.next_used == self.published;
        self.can_merge = self.has(feature::IN_ORDER) && is_read_only && (is_first || self.can_merge);
        let at = self.entry(if self.can_merge { self.published } else { self.next_used }, USED_ENTRY);
        self.used.store_u32_pair(at, (head.into(), written));
        self.next_used = self.next_used.wrapping_add(1);
        if let Some(region) = &mut self.inflight {
            region.complete(head);
        }
    }

    /// The same for chains that nothing was written to.
    pub(crate) fn complete_all(&mut self, tickets: impl Iterator<Item = Ticket>) {
        for ticket in tickets {
            self.complete(ticket.id(), 0, ticket.writable_len() == 0);
        }
    }

    /// Gives back the chains that wait in `burst`. Returns how many entries of the ring are to be taken anew.
    pub(crate) fn rewind(&mut self, burst: &Burst) -> u16 {
        let count = match &mut self.inflight {
            None => burst.waiting_slots(),
            Some(region) => region.rewind(burst),
        };
        self.next_avail = self.next_avail.wrapping_sub(count.into());
        count
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
            region.begin_publish();
        }
        let wants_call = self.publish_used();
        if let Some(region) = &mut self.inflight {
            region.end_publish(self.published as u16);
        }
        wants_call
    }

    #[inline]
    fn publish_used(&mut self) -> bool {
        // (U) Pairs with the driver's acquire of `idx`: entries and buffers written before it are visible.
        self.used.store_u16_release(IDX, self.next_used as u16);
        // (C) Our store of `idx` before our load of `used_event`; the driver has the mirror image, its store of
        // `used_event` before its load of `idx`. One of the two sees the other's store.
        full_fence(Fence::DevicePublish);
        let old = core::mem::replace(&mut self.published, self.next_used);
        if let Some(log) = &self.log {
            let count = self.next_used.wrapping_sub(old);
            log.mark_entries(RING, USED_ENTRY, old & (self.size - 1), count, self.size);
            log.mark(IDX, size_of::<u16>());
        }
        if self.has(feature::RING_EVENT_IDX) {
            let event = self.avail.load_u16(layout::used_event(self.size()));
            event::passed(event, self.next_used as u16, old as u16)
        } else {
            self.avail.load_u16(FLAGS) & AVAIL_F_NO_INTERRUPT == 0
        }
    }

    pub(crate) fn arm(&mut self) {
        if self.has(feature::RING_EVENT_IDX) {
            self.used.store_u16(layout::avail_event(self.size()), self.next_avail as u16);
            self.mark_word(layout::avail_event(self.size()));
        } else {
            self.used.store_u16(FLAGS, 0);
            self.mark_word(FLAGS);
        }
        // (K) Our store of `avail_event` before our next load of the driver's `idx`; the driver stores `idx`
        // before it loads `avail_event`.
        full_fence(Fence::DeviceArm);
    }

    pub(crate) fn suppress(&mut self) {
        // With EVENT_IDX there is nothing to do: `avail_event` stays behind, and the driver's index does not
        // pass it again before 2¹⁶ further chains.
        if !self.has(feature::RING_EVENT_IDX) {
            self.used.store_u16(FLAGS, USED_F_NO_NOTIFY);
            self.mark_word(FLAGS);
        }
    }

    /// Marks a word of the used ring in the dirty log, that of its entries apart.
    fn mark_word(&self, offset: usize) {
        if let Some(log) = &self.log {
            log.mark(offset, size_of::<u16>());
        }
    }
}

/// Reads the chain in the table that `descriptor` refers to; it begins at entry 0 (2.7.5.3).
#[inline(always)]
#[allow(clippy::inline_always, reason = "a second caller, out of the way, must not take it out of the first")]
fn walk_table(head: u16, descriptor: &Descriptor, chain: &mut ChainBuilder<'_>) -> Result<(), QueueError> {
    let count = chain.copy_table(descriptor.addr(), descriptor.len())?;
    let mut index = 0;
    for _ in 0..count {
        let (low, high) = chain.entry(index).ok_or(QueueError::BadIndex { index, size: count })?;
        let descriptor = Descriptor::from_words(low, high);
        let flags = descriptor.flags();
        if flags & DESC_F_INDIRECT != 0 {
            return Err(QueueError::BadIndirect { head });
        }
        chain.push(descriptor.addr(), descriptor.len(), flags & DESC_F_WRITE != 0)?;
        if flags & DESC_F_NEXT == 0 {
            return Ok(());
        }
        index = descriptor.next();
    }
    Err(QueueError::TooLong { head, limit: count })
}
