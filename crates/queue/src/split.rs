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

use core::sync::atomic::{Ordering, fence};

use ringway_memory::RingArea;
use ringway_spec::feature;
use ringway_spec::split::{
    self as layout, AVAIL_ENTRY, AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE,
    Descriptor, FLAGS, IDX, RING, USED_ENTRY, USED_F_NO_NOTIFY,
};
use zerocopy::FromBytes;

use crate::burst::ChainBuilder;
use crate::device::Areas;
use crate::{Burst, QueueError, ResumeState, event};

/// The most descriptors of one chain, whatever the queue's size: what Linux and QEMU allow too. A chain past
/// it would cost more work and memory than a device has any use for (2.7.4.1 leaves the limit to the device).
pub(crate) const MAX_CHAIN: u16 = 1024;

/// How many chains are looked at ahead of their descriptors.
const LOOK_AHEAD: usize = 32;

/// Used entries in a cache line.
const USED_PER_LINE: u16 = 8;

pub(crate) struct DeviceRing {
    descriptors: RingArea,
    avail: RingArea,
    used: RingArea,
    size: u16,
    event_idx: bool,
    indirect: bool,
    /// The next entry of the available ring to take.
    next_avail: u16,
    /// The driver's available index as last read.
    avail_seen: u16,
    /// The next entry of the used ring to write.
    next_used: u16,
    /// The used index as the driver sees it.
    published: u16,
}

impl DeviceRing {
    pub(crate) fn new(size: u16, features: u64, areas: Areas, resume: ResumeState) -> Self {
        let Areas { descriptor: descriptors, driver: avail, device: used } = areas;
        // Ours alone, so the ring is where the truth is, also after a crash of ours or a reset of the guest.
        let next_used = used.load_u16(IDX);
        // With EVENT_IDX the flags stay 0 (2.7.10.1); without, 0 is the state before the first `suppress`.
        used.store_u16(FLAGS, 0);
        Self {
            descriptors,
            avail,
            used,
            size,
            event_idx: features & feature::RING_EVENT_IDX != 0,
            indirect: features & feature::RING_INDIRECT_DESC != 0,
            next_avail: resume.next_avail,
            avail_seen: resume.next_avail,
            next_used,
            published: next_used,
        }
    }

    pub(crate) fn size(&self) -> u16 {
        self.size
    }

    pub(crate) fn resume_state(&self) -> ResumeState {
        ResumeState { next_avail: self.next_avail }
    }

    /// Where entry `index` of a ring begins.
    #[inline]
    fn entry(&self, index: u16, entry_size: usize) -> usize {
        RING + usize::from(index & (self.size - 1)) * entry_size
    }

    /// Reads the driver's index if all entries seen so far are taken: as long as there are some, another look
    /// would only cost a cache line that the driver is writing to.
    #[inline]
    fn available(&mut self) -> Result<usize, QueueError> {
        if self.avail_seen == self.next_avail {
            // (A) Pairs with the driver's release of `idx`: entries and descriptors before it are visible.
            let idx = self.avail.load_u16_acquire(IDX);
            if idx.wrapping_sub(self.next_avail) > self.size {
                return Err(QueueError::IndexJump { idx, next: self.next_avail, size: self.size });
            }
            self.avail_seen = idx;
        }
        Ok(self.avail_seen.wrapping_sub(self.next_avail).into())
    }

    pub(crate) fn has_available(&self) -> bool {
        self.avail_seen != self.next_avail || self.avail.load_u16_acquire(IDX) != self.next_avail
    }

    pub(crate) fn take(&mut self, burst: &mut Burst, max: usize) -> Result<(), QueueError> {
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
        let ahead = self.avail_seen.wrapping_sub(self.next_avail).min(LOOK_AHEAD as u16);
        for i in 0..ahead {
            let head = self.avail.load_u16(self.entry(self.next_avail.wrapping_add(i), AVAIL_ENTRY));
            self.descriptors.prefetch(usize::from(head) * DESC_SIZE);
        }
    }

    /// Reads the chain at `head` into `burst`.
    #[inline]
    fn walk(&self, head: u16, burst: &mut Burst) -> Result<(), QueueError> {
        let mut chain = burst.build(head);
        let mut index = head;
        for _ in 0..self.size.min(MAX_CHAIN) {
            let descriptor = self.descriptor(index)?;
            let flags = descriptor.flags();
            if flags & DESC_F_INDIRECT != 0 {
                // Ends the chain (2.7.5.3.1), so INDIRECT and NEXT exclude each other. Its WRITE flag means
                // nothing (2.7.5.3.2).
                if !self.indirect || flags & DESC_F_NEXT != 0 {
                    return Err(QueueError::BadIndirect { head });
                }
                walk_table(head, &descriptor, &mut chain)?;
                chain.finish();
                return Ok(());
            }
            chain.push(descriptor.addr(), descriptor.len(), flags & DESC_F_WRITE != 0)?;
            if flags & DESC_F_NEXT == 0 {
                chain.finish();
                return Ok(());
            }
            index = descriptor.next();
        }
        Err(QueueError::TooLong { head, limit: self.size.min(MAX_CHAIN) })
    }

    /// A copy of a descriptor: read once.
    #[inline]
    fn descriptor(&self, index: u16) -> Result<Descriptor, QueueError> {
        if index >= self.size {
            return Err(QueueError::BadIndex { index, size: self.size });
        }
        let at = usize::from(index) * DESC_SIZE;
        Ok(Descriptor::from_words(self.descriptors.load_u64(at), self.descriptors.load_u64(at + 8)))
    }

    #[inline]
    pub(crate) fn complete(&mut self, head: u16, written: u32) {
        let at = self.entry(self.next_used, USED_ENTRY);
        self.used.store_u32(at, head.into());
        self.used.store_u32(at + 4, written);
        self.next_used = self.next_used.wrapping_add(1);
    }

    pub(crate) fn rewind(&mut self, count: u16) {
        self.next_avail = self.next_avail.wrapping_sub(count);
    }

    #[inline]
    pub(crate) fn publish(&mut self) -> bool {
        if self.next_used == self.published {
            return false;
        }
        // (U) Pairs with the driver's acquire of `idx`: entries and buffers written before it are visible.
        self.used.store_u16_release(IDX, self.next_used);
        // (C) Our store of `idx` before our load of `used_event`; the driver has the mirror image, its store of
        // `used_event` before its load of `idx`. One of the two sees the other's store.
        fence(Ordering::SeqCst);
        let old = core::mem::replace(&mut self.published, self.next_used);
        if self.event_idx {
            event::passed(self.avail.load_u16(layout::used_event(self.size)), self.next_used, old)
        } else {
            self.avail.load_u16(FLAGS) & AVAIL_F_NO_INTERRUPT == 0
        }
    }

    pub(crate) fn arm(&mut self) {
        if self.event_idx {
            self.used.store_u16(layout::avail_event(self.size), self.next_avail);
        } else {
            self.used.store_u16(FLAGS, 0);
        }
        // (K) Our store of `avail_event` before our next load of the driver's `idx`; the driver stores `idx`
        // before it loads `avail_event`.
        fence(Ordering::SeqCst);
    }

    pub(crate) fn suppress(&mut self) {
        // With EVENT_IDX there is nothing to do: `avail_event` stays behind, and the driver's index does not
        // pass it again before 2¹⁶ further chains.
        if !self.event_idx {
            self.used.store_u16(FLAGS, USED_F_NO_NOTIFY);
        }
    }
}

/// Reads the chain in the table that `descriptor` refers to.
fn walk_table(head: u16, descriptor: &Descriptor, chain: &mut ChainBuilder<'_>) -> Result<(), QueueError> {
    let len = descriptor.len();
    if len == 0
        || !(len as usize).is_multiple_of(DESC_SIZE)
        || len as usize > usize::from(MAX_CHAIN) * DESC_SIZE
    {
        return Err(QueueError::BadIndirectLen { head, len });
    }
    let table = chain.copy_table(descriptor.addr(), len)?;
    let result = walk_entries(head, &table, chain);
    chain.keep_table(table);
    result
}

/// Reads the chain in a copied table; it begins at entry 0 (2.7.5.3).
fn walk_entries(head: u16, table: &[u8], chain: &mut ChainBuilder<'_>) -> Result<(), QueueError> {
    let count = (table.len() / DESC_SIZE) as u16;
    let mut index = 0;
    for _ in 0..count {
        let at = usize::from(index) * DESC_SIZE;
        let Some(Ok((descriptor, _))) = table.get(at..).map(Descriptor::read_from_prefix) else {
            return Err(QueueError::BadIndex { index, size: count });
        };
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
