//! The packed ring (2.8), driver's half.
//!
//! ```text
//!      reclaimed, free     used or with the device      added      free
//!   ────────────────────┬────────────────────────────┬──────────┬────────
//!                   next_used                    published  next_avail
//! ```
//!
//! The device looks at one slot, the first that it has not seen available. So all that a burst of chains needs is
//! written as it comes, but for the flags of its very first descriptor: these publish the whole burst. Within a chain
//! the head is written last (2.8.6). A descriptor's length, ID and flags are one 64-bit word, stored at once.
//!
//! Buffer IDs come from a free list; with `IN_ORDER` they are the heads' slots. Barriers are labelled as in the
//! device's half.

use alloc::vec;
use alloc::vec::Vec;

use ringway_spec::feature;
use ringway_spec::packed::{
    ADDR, DESC_F_INDIRECT, DESC_F_WRITE, DESC_SIZE, TAIL, tail, tail_flags, tail_id, tail_len,
};

use super::{AddError, Batch, DriverError, IndirectTables, Lent, NewChain};
use crate::area::RingArea;
use crate::event::Suppression;
use crate::sync::{Fence, full_fence};
use crate::wish::Wish;
use crate::{Areas, Cursor};

/// Fields that change are whole words, as in the device's half.
pub(super) struct DriverRing {
    descriptors: RingArea,
    device_event: RingArea,
    tables: Option<IndirectTables>,
    size: u32,
    features: u64,
    /// The next slot to write a descriptor to.
    next_avail: Cursor,
    /// Where the device looks for the next descriptor.
    published: Cursor,
    publications: u64,
    /// The second word of the descriptor for that slot, if a chain was added since.
    first: u64,
    /// The next slot to look for a used descriptor in.
    next_used: Cursor,
    free: u32,
    /// Without `IN_ORDER`: the free buffer IDs, linked.
    next_id: Vec<u16>,
    free_id: u32,
    /// By buffer ID.
    lent: Vec<Lent>,
    /// With `IN_ORDER`: the batch that is being reclaimed.
    batch: Option<Batch>,
    /// Our event suppression.
    wish: Wish,
}

impl DriverRing {
    pub(super) fn new(
        size: u16,
        features: u64,
        areas: Areas,
        start: Cursor,
        tables: Option<IndirectTables>,
    ) -> Self {
        let Areas { descriptor: descriptors, driver: driver_event, device: device_event } = areas;
        let ring = Self {
            descriptors,
            device_event,
            tables,
            size: size.into(),
            features,
            next_avail: start,
            published: start,
            publications: 0,
            first: 0,
            next_used: start,
            free: size.into(),
            next_id: (1..size).chain([0]).collect(),
            free_id: 0,
            lent: vec![Lent::default(); size.into()],
            batch: None,
            wish: Wish::new(driver_event),
        };
        // As if the lap before had been used: all slots but those of this lap, which come before `start`.
        let before = start.retreat(size, size);
        for n in 0..size {
            let at = before.advance(n, size);
            ring.store_tail(at, tail(0, 0, at.used_flags()));
        }
        ring.device_event.store_u32(0, Suppression::Enable.to_word());
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

    #[inline]
    pub(super) fn free(&self) -> u16 {
        self.free as u16
    }

    pub(super) fn published(&self) -> Cursor {
        self.published
    }

    #[inline]
    fn store_tail(&self, at: Cursor, tail: u64) {
        self.descriptors.store_u64(usize::from(at.index()) * DESC_SIZE + TAIL, tail);
    }

    #[inline]
    pub(super) fn add(&mut self, chain: NewChain<'_>) -> Result<u16, AddError> {
        let head = self.next_avail;
        let tables = self.tables.as_ref().filter(|tables| tables.fits(chain.len()));
        let slots = if tables.is_some() { 1 } else { chain.len() as u32 };
        if slots > self.free {
            return Err(AddError::Full);
        }
        let id = if self.has(feature::IN_ORDER) {
            head.index()
        } else {
            let id = self.free_id as u16;
            self.free_id = self.next_id[usize::from(id)].into();
            id
        };
        let mut at = head;
        let mut segments = chain.segments();
        let (addr, len, flags) = if let Some(tables) = tables {
            let base = tables.offset(id);
            for ((segment, flags), i) in segments.zip(0..) {
                // NEXT means nothing in a table (2.8.7).
                let words = (segment.addr.0, tail(segment.len, 0, flags & DESC_F_WRITE));
                tables.area.store_u64_pair(base + i * DESC_SIZE, words);
            }
            (tables.addr(id), (chain.len() * DESC_SIZE) as u32, DESC_F_INDIRECT)
        } else {
            let (first, first_flags) = segments.next().ok_or(AddError::Empty)?;
            segments.for_each(|(segment, flags)| {
                at = at.advance(1, self.size());
                let words = (segment.addr.0, tail(segment.len, id, at.available_flags() | flags));
                self.descriptors.store_u64_pair(usize::from(at.index()) * DESC_SIZE, words);
            });
            (first.addr.0, first.len, first_flags)
        };
        let first = tail(len, id, head.available_flags() | flags);
        let head_at = usize::from(head.index()) * DESC_SIZE;
        self.descriptors.store_u64(head_at + ADDR, addr);
        if head == self.published {
            self.first = first;
        } else {
            self.descriptors.store_u64_release(head_at + TAIL, first);
        }
        self.next_avail = at.advance(1, self.size());
        self.free -= slots;
        let (writable_len, publications) = (chain.writable_len, self.publications);
        self.lent[usize::from(id)] = Lent { slots: slots as u16, last: 0, writable_len, publications };
        Ok(id)
    }

    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        if self.next_avail == self.published {
            return false;
        }
        // (A) Pairs with the device's acquire of the head's flags: descriptors and buffers written before are
        // visible.
        let at = usize::from(self.published.index()) * DESC_SIZE + TAIL;
        self.descriptors.store_u64_release(at, self.first);
        self.publications += 1;
        // (K) Our store of the flags before our load of the device's wish; the device stores the wish before it
        // loads the flags.
        full_fence(Fence::DriverPublish);
        let old = core::mem::replace(&mut self.published, self.next_avail);
        let wish = Suppression::from_word(self.device_event.load_u32(0), self.has(feature::RING_EVENT_IDX));
        wish.wants(old, self.next_avail, self.size())
    }

    /// Length, ID and flags of the slot at `next_used`.
    #[inline]
    fn used_tail(&self) -> u64 {
        // (U) Pairs with the device's release of the flags: used descriptors after it, and buffers, are visible.
        self.descriptors.load_u64_acquire(usize::from(self.next_used.index()) * DESC_SIZE + TAIL)
    }

    #[inline]
    pub(super) fn has_used(&self, in_flight: u16) -> bool {
        in_flight > 0 && (self.batch.is_some() || self.next_used.is_used(tail_flags(self.used_tail())))
    }

    #[inline]
    pub(super) fn reclaim(&mut self, in_flight: u16) -> Result<Option<(u16, u32)>, DriverError> {
        if in_flight == 0 {
            return Ok(None);
        }
        let Batch { id: end, written } = match self.batch {
            Some(batch) => batch,
            None => match self.used_descriptor()? {
                Some(used) => used,
                None => return Ok(None),
            },
        };
        let id = if self.has(feature::IN_ORDER) { self.next_used.index() } else { end };
        let Lent { slots, writable_len, .. } = core::mem::take(&mut self.lent[usize::from(id)]);
        self.free += u32::from(slots);
        if !self.has(feature::IN_ORDER) {
            self.next_id[usize::from(id)] = core::mem::replace(&mut self.free_id, id.into()) as u16;
        }
        self.next_used = self.next_used.advance(slots, self.size());
        if id == end {
            self.batch = None;
            Ok(Some((id, written.min(writable_len))))
        } else {
            // Nothing is told of it: it counts as wholly used.
            self.batch = Some(Batch { id: end, written });
            Ok(Some((id, writable_len)))
        }
    }

    /// The used descriptor at `next_used`, if there is one; a chain that the device was given.
    #[inline]
    fn used_descriptor(&self) -> Result<Option<Batch>, DriverError> {
        let used = self.used_tail();
        if !self.next_used.is_used(tail_flags(used)) {
            return Ok(None);
        }
        let (id, written) = (tail_id(used), tail_len(used));
        match self.lent.get(usize::from(id)) {
            Some(lent) if lent.is_shown(self.publications) => Ok(Some(Batch { id, written })),
            _ => Err(DriverError::NotInFlight { id: id.into() }),
        }
    }

    pub(super) fn arm(&mut self) {
        self.wish.arm(self.next_used, self.has(feature::RING_EVENT_IDX));
        // (C) Our store of the wish before our next load of a slot's flags; the device stores these before it loads
        // the wish.
        full_fence(Fence::DriverArm);
    }

    pub(super) fn suppress(&mut self) {
        self.wish.suppress();
    }
}
