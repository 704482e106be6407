//! The split ring (2.7), driver's half.
//!
//! ```text
//!   descriptors: free ones are linked in the shadow     avail ring            used ring (device writes)
//!     free ──► 3 ──► 1 ──► 7 …                        [head][head]             [id len][id len]
//!                                                 published ▲     ▲ next_avail  next_used ▲      ▲ used_seen
//! ```
//!
//! A chain takes descriptors off the free list and returns them when it was used. With `IN_ORDER` the list is the
//! table's own order, from 0 on and round, and is never relinked (2.7.9). Barriers are labelled as in the device's
//! half.

use alloc::vec;
use alloc::vec::Vec;

use ringway_spec::feature;
use ringway_spec::split::{
    self as layout, AVAIL_ENTRY, AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_SIZE, FLAGS, IDX, RING,
    USED_ENTRY, USED_F_NO_NOTIFY,
};

use super::{AddError, Batch, DriverError, IndirectTables, Lent, NewChain};
use crate::area::RingArea;
use crate::sync::{Fence, full_fence};
use crate::{Areas, event};

/// Fields that change are whole words, as in the device's half.
pub(super) struct DriverRing {
    descriptors: RingArea,
    avail: RingArea,
    used: RingArea,
    tables: Option<IndirectTables>,
    size: u32,
    features: u64,
    /// The next entry of the available ring to write.
    next_avail: u32,
    /// The available index as the device sees it.
    published: u32,
    publications: u64,
    /// The next entry of the used ring to reclaim.
    next_used: u32,
    /// The device's used index as last read.
    used_seen: u32,
    /// What follows a descriptor, in a chain or in the free list.
    next: Vec<u16>,
    free_head: u32,
    free: u32,
    /// By the chain's head.
    lent: Vec<Lent>,
    /// With `IN_ORDER`: the oldest chain in flight, and the batch that it is reclaimed with.
    oldest: u32,
    batch: Option<Batch>,
}

impl DriverRing {
    pub(super) fn new(
        size: u16,
        features: u64,
        areas: Areas,
        start: u16,
        tables: Option<IndirectTables>,
    ) -> Self {
        let Areas { descriptor: descriptors, driver: avail, device: used } = areas;
        avail.store_u16(FLAGS, 0);
        avail.store_u16(IDX, start);
        used.store_u16(FLAGS, 0);
        used.store_u16(IDX, start);
        // A call for the first chain, and a kick for it, unless a side says otherwise.
        avail.store_u16(layout::used_event(size), start);
        used.store_u16(layout::avail_event(size), start);
        Self {
            descriptors,
            avail,
            used,
            tables,
            size: size.into(),
            features,
            next_avail: start.into(),
            published: start.into(),
            publications: 0,
            next_used: start.into(),
            used_seen: start.into(),
            next: (1..size).chain([0]).collect(),
            free_head: 0,
            free: size.into(),
            lent: vec![Lent::default(); size.into()],
            oldest: 0,
            batch: None,
        }
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

    pub(super) fn published(&self) -> u16 {
        self.published as u16
    }

    /// Where entry `index` of a ring begins.
    #[inline]
    fn entry(&self, index: u32, entry_size: usize) -> usize {
        RING + (index & (self.size - 1)) as usize * entry_size
    }

    #[inline]
    pub(super) fn add(&mut self, chain: NewChain<'_>) -> Result<u16, AddError> {
        let head = self.free_head as u16;
        let tables = self.tables.as_ref().filter(|tables| tables.fits(chain.len()));
        let slots = if tables.is_some() { 1 } else { chain.len() as u32 };
        if slots > self.free {
            return Err(AddError::Full);
        }
        let (last, next) = if let Some(tables) = tables {
            let base = tables.offset(head);
            for ((segment, flags), i) in chain.segments().zip(0..) {
                let words = (segment.addr.0, high(segment.len, flags, i + 1));
                tables.area.store_u64_pair(base + usize::from(i) * DESC_SIZE, words);
            }
            let len = (chain.len() * DESC_SIZE) as u32;
            let words = (tables.addr(head), high(len, DESC_F_INDIRECT, 0));
            self.descriptors.store_u64_pair(usize::from(head) * DESC_SIZE, words);
            (head, self.next[usize::from(head)])
        } else {
            let (mut last, mut index) = (head, head);
            chain.segments().for_each(|(segment, flags)| {
                last = index;
                index = self.next[usize::from(last)];
                let words = (segment.addr.0, high(segment.len, flags, index));
                self.descriptors.store_u64_pair(usize::from(last) * DESC_SIZE, words);
            });
            (last, index)
        };
        self.free_head = next.into();
        self.free -= slots;
        let (writable_len, publications) = (chain.writable_len, self.publications);
        self.lent[usize::from(head)] = Lent { slots: slots as u16, last, writable_len, publications };
        self.avail.store_u16(self.entry(self.next_avail, AVAIL_ENTRY), head);
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(head)
    }

    #[inline]
    pub(super) fn publish(&mut self) -> bool {
        if self.next_avail == self.published {
            return false;
        }
        // (A) Pairs with the device's acquire of `idx`: entries, descriptors and buffers are visible.
        self.avail.store_u16_release(IDX, self.next_avail as u16);
        self.publications += 1;
        // (K) Our store of `idx` before our load of `avail_event`; the device stores `avail_event` before it loads
        // `idx`.
        full_fence(Fence::DriverPublish);
        let old = core::mem::replace(&mut self.published, self.next_avail);
        if self.has(feature::RING_EVENT_IDX) {
            let event = self.used.load_u16(layout::avail_event(self.size()));
            event::passed(event, self.next_avail as u16, old as u16)
        } else {
            self.used.load_u16(FLAGS) & USED_F_NO_NOTIFY == 0
        }
    }

    #[inline]
    pub(super) fn has_used(&self) -> bool {
        self.batch.is_some()
            || self.used_seen != self.next_used
            || self.used.load_u16_acquire(IDX) != self.next_used as u16
    }

    #[inline]
    pub(super) fn reclaim(&mut self, in_flight: u16) -> Result<Option<(u16, u32)>, DriverError> {
        if self.used_seen == self.next_used {
            if let Some(Batch { id, .. }) = self.batch {
                return Err(DriverError::BatchTooLong { id });
            }
            // (U) Pairs with the device's release of `idx`: used entries and buffers before it are visible.
            let idx = self.used.load_u16_acquire(IDX);
            let next = self.next_used as u16;
            let ahead = idx.wrapping_sub(next);
            if ahead == 0 {
                return Ok(None);
            }
            if ahead > in_flight {
                return Err(DriverError::IndexJump { idx, next, in_flight });
            }
            self.used_seen = self.next_used.wrapping_add(ahead.into());
        }
        let Batch { id: end, written } = match self.batch {
            Some(batch) => batch,
            None => self.used_entry()?,
        };
        let id = if self.has(feature::IN_ORDER) { self.oldest as u16 } else { end };
        let Lent { slots, last, writable_len, .. } = core::mem::take(&mut self.lent[usize::from(id)]);
        self.free += u32::from(slots);
        if self.has(feature::IN_ORDER) {
            self.oldest = self.next[usize::from(last)].into();
        } else {
            self.next[usize::from(last)] = core::mem::replace(&mut self.free_head, id.into()) as u16;
        }
        self.next_used = self.next_used.wrapping_add(1);
        if id == end {
            self.batch = None;
            Ok(Some((id, written.min(writable_len))))
        } else {
            // Nothing is told of it: it counts as wholly used.
            self.batch = Some(Batch { id: end, written });
            Ok(Some((id, writable_len)))
        }
    }

    /// The used entry at `next_used`; a chain that the device was given.
    #[inline]
    fn used_entry(&self) -> Result<Batch, DriverError> {
        let at = self.entry(self.next_used, USED_ENTRY);
        let (id, written) = self.used.load_u32_pair(at);
        match self.lent.get(id as usize) {
            Some(lent) if lent.is_shown(self.publications) => Ok(Batch { id: id as u16, written }),
            _ => Err(DriverError::NotInFlight { id }),
        }
    }

    pub(super) fn arm(&mut self) {
        if self.has(feature::RING_EVENT_IDX) {
            self.avail.store_u16(layout::used_event(self.size()), self.next_used as u16);
        } else {
            self.avail.store_u16(FLAGS, 0);
        }
        // (C) Our store of `used_event` before our next load of `idx`; the device stores `idx` before it loads
        // `used_event`.
        full_fence(Fence::DriverArm);
    }

    pub(super) fn suppress(&mut self) {
        // With EVENT_IDX there is nothing to do: `used_event` stays behind, and the device's index does not pass
        // it again before 2¹⁶ further chains.
        if !self.has(feature::RING_EVENT_IDX) {
            self.avail.store_u16(FLAGS, AVAIL_F_NO_INTERRUPT);
        }
    }
}

/// The second word of a descriptor.
#[inline]
fn high(len: u32, flags: u16, next: u16) -> u64 {
    u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48
}
