//! The IOTLB: what a front-end has told of its IOMMU, for a device that was negotiated to be behind it.
//!
//! ```text
//! descriptor            IOTLB                        memory table
//! Iova ───────────► FrontendVa, permission ───────► region, pointer
//!        Miss, Denied                      Unmapped
//! ```
//!
//! One thread updates it as the front-end says, others look up; nobody waits long for the lock, whatever is told. It
//! is a cache: a device that misses an entry asks the front-end for it, and tries again when it got one. So what is
//! told past the bound takes the place of something else.
//!
//! It knows nothing of the memory behind: an entry may name what is not mapped.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::ops::ControlFlow;
use std::sync::{PoisonError, RwLock, RwLockWriteGuard};

use crate::{Access, FrontendVa, Iova, MemoryError, Translation};

/// Entries held: 256 MiB in pages of 4 KiB.
const MAX_ENTRIES: usize = 1 << 16;

/// Entries removed before others have their turn with the lock.
const BATCH: usize = 256;

/// A range of I/O virtual addresses; its start is its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    last: u64,
    to: FrontendVa,
    access: Access,
}

/// Entries that share no address.
#[derive(Default)]
struct Entries {
    by_start: BTreeMap<u64, Entry>,
    /// Where the next one to make room is looked for: entries go in turn.
    hand: u64,
    updates: u64,
}

/// A front-end's translations, and with which accesses they may be used.
#[derive(Default)]
pub struct Iotlb {
    entries: RwLock<Entries>,
}

impl Iotlb {
    /// Has the `size` bytes at `iova` lead to `to`, whatever was known of them before.
    ///
    /// # Errors
    /// [`MemoryError::BadRange`] if there are none, or they leave an address space.
    pub fn update(&self, iova: Iova, size: u64, to: FrontendVa, access: Access) -> Result<(), MemoryError> {
        let bad = MemoryError::BadRange { iova, len: size };
        let offset = size.checked_sub(1).ok_or(bad)?;
        let last = iova.checked_add(offset).ok_or(bad)?.0;
        to.checked_add(offset).ok_or(bad)?;
        let mut entries = self.cut(iova.0, last);
        entries.make_room(MAX_ENTRIES - 1);
        entries.by_start.insert(iova.0, Entry { last, to, access });
        entries.updates += 1;
        Ok(())
    }

    /// Forgets the `size` bytes at `iova`, up to the end of the address space at most. All of them if `size` is 0, which
    /// is what becomes of 2⁶⁴.
    pub fn invalidate(&self, iova: Iova, size: u64) {
        let mut entries = self.cut(iova.0, iova.0.saturating_add(size.wrapping_sub(1)));
        // An entry that it was cut out of the middle of is two now.
        entries.make_room(MAX_ENTRIES);
    }

    /// All entries: where each begins, its length in bytes, where it leads to, and how it may be used.
    pub fn entries(&self) -> Vec<(Iova, u64, FrontendVa, Access)> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let entry =
            |(&start, entry): (&u64, &Entry)| (Iova(start), entry.last - start + 1, entry.to, entry.access);
        entries.by_start.iter().map(entry).collect()
    }

    /// Takes the addresses from `start` to `last` out of all entries. Returns with the lock held.
    fn cut(&self, start: u64, last: u64) -> RwLockWriteGuard<'_, Entries> {
        loop {
            let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
            if entries.cut(start, last).is_break() {
                return entries;
            }
        }
    }
}

impl Entries {
    /// Takes the addresses from `start` to `last` out of a batch of entries; breaks if these were all.
    fn cut(&mut self, start: u64, last: u64) -> ControlFlow<()> {
        for _ in 0..BATCH {
            // The last one that begins in the range, or before it and reaches into it.
            let found = self.by_start.range(..=last).next_back().map(|(&from, &entry)| (from, entry));
            let Some((from, entry)) = found.filter(|(_, entry)| entry.last >= start) else {
                return ControlFlow::Break(());
            };
            self.by_start.remove(&from);
            if entry.last > last {
                let to = FrontendVa(entry.to.0 + (last + 1 - from));
                self.by_start.insert(last + 1, Entry { to, ..entry });
            }
            if from < start {
                self.by_start.insert(from, Entry { last: start - 1, ..entry });
                return ControlFlow::Break(());
            }
        }
        ControlFlow::Continue(())
    }

    /// Has no more than `max` entries stay.
    fn make_room(&mut self, max: usize) {
        while self.by_start.len() > max {
            let next = self.by_start.range(self.hand..).next().or_else(|| self.by_start.iter().next());
            let Some(start) = next.map(|(&start, _)| start) else { return };
            self.by_start.remove(&start);
            self.hand = start.wrapping_add(1);
        }
    }

    /// The entry that holds `iova`, with its start.
    fn find(&self, iova: u64) -> Option<(u64, Entry)> {
        let (&start, &entry) = self.by_start.range(..=iova).next_back()?;
        (entry.last >= iova).then_some((start, entry))
    }
}

impl Translation for Iotlb {
    fn translate(
        &self,
        iova: Iova,
        len: u64,
        access: Access,
        piece: &mut dyn FnMut(FrontendVa, u64) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        let Some(offset) = len.checked_sub(1) else { return Ok(()) };
        let last = iova.checked_add(offset).ok_or(MemoryError::BadRange { iova, len })?.0;
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let mut at = iova.0;
        loop {
            let (start, entry) = entries.find(at).ok_or(MemoryError::Miss { iova: Iova(at), access })?;
            if !entry.access.allows(access) {
                return Err(MemoryError::Denied { iova: Iova(at), access });
            }
            let end = entry.last.min(last);
            // In the entry, whose addresses do not overflow. A piece of 2⁶⁴ bytes is none: `len` is less.
            piece(FrontendVa(entry.to.0 + (at - start)), end - at + 1)?;
            if end == last {
                return Ok(());
            }
            at = end + 1;
        }
    }

    fn updates(&self) -> u64 {
        self.entries.read().unwrap_or_else(PoisonError::into_inner).updates
    }
}

#[cfg(test)]
#[path = "iotlb_tests.rs"]
mod tests;
