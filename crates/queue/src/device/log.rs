//! What a device marks in the dirty log, if its memory has one: pages that it wrote to, after it wrote (vhost-user,
//! "Migration").
//!
//! ```text
//! buffers of chains              where they are in guest-physical memory      at `complete`
//! used ring, event suppression   at `used_log`, and on from there             at `publish`, `arm`, `suppress`
//! descriptor ring (packed)       where it is in guest-physical memory         at `publish`
//! ```
//!
//! All of it is out of the way of a queue that does not log, which most never do.

use alloc::boxed::Box;
use alloc::sync::Arc;
use core::ops::Range;

use ringway_memory::{DirtyLog, Gpa, ScatterList};

/// Where a ring's area is in the dirty log.
pub(super) struct AreaLog {
    log: Arc<DirtyLog>,
    at: Gpa,
}

impl AreaLog {
    pub(super) fn new(log: &Arc<DirtyLog>, at: Gpa) -> Self {
        Self { log: Arc::clone(log), at }
    }

    /// Marks `len` bytes at `offset` of the area.
    #[cold]
    pub(super) fn mark(&self, offset: usize, len: usize) {
        // A front-end may say that the area is at the end of the address space. There are no pages after it.
        if let Some(addr) = self.at.checked_add(offset as u64) {
            self.log.mark(addr, len as u64);
        }
    }

    /// Marks `count` entries of a ring from entry `first` on, around its end. It has `size` entries of `entry_size`
    /// bytes from offset `start` on.
    #[cold]
    pub(super) fn mark_entries(&self, start: usize, entry_size: usize, first: u32, count: u32, size: u32) {
        let count = count.min(size);
        let before_end = count.min(size - first);
        self.mark(start + first as usize * entry_size, before_end as usize * entry_size);
        self.mark(start, (count - before_end) as usize * entry_size);
    }
}

/// The device-writable buffers of a chain, by guest-physical address and length.
pub(super) type Places = Box<[(Gpa, u64)]>;

/// Those of the slices in `range`.
#[cold]
pub(super) fn places(list: &ScatterList, range: Range<usize>) -> Places {
    list.places(range).collect()
}

/// Marks the first `written` bytes of the slices in `range`.
#[cold]
pub(super) fn mark_slices(log: &DirtyLog, list: &ScatterList, range: Range<usize>, written: u32) {
    mark_places(log, list.places(range), written);
}

/// Marks the first `written` bytes of these buffers.
pub(super) fn mark_places(log: &DirtyLog, places: impl IntoIterator<Item = (Gpa, u64)>, written: u32) {
    let mut left = u64::from(written);
    for (addr, len) in places {
        if left == 0 {
            break;
        }
        let len = len.min(left);
        log.mark(addr, len);
        left -= len;
    }
}
