//! The machine of docs/write-a-driver.md.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;
use std::sync::Arc;

use ringway_driver::{OutOfMemory, Platform};
use ringway_memory::{Backing, FrontendVa, Gpa, Region};

/// A machine where devices find memory at the addresses that the processor has for it.
pub(crate) struct Machine;

// SAFETY: the allocator gives memory out once, and takes it back when `Pages` is dropped; devices here use the
// processor's addresses.
unsafe impl Platform for Machine {
    fn allocate(&self, len: u64) -> Result<Region, OutOfMemory> {
        let pages = Pages::new(len).ok_or(OutOfMemory { len })?;
        let (base, at) = (pages.base, pages.base.as_ptr() as u64);
        // SAFETY: the memory is as long as said, and nothing of Rust's refers to it; `pages` keeps it.
        let region = unsafe { Region::new(Gpa(at), FrontendVa(at), base, len, Arc::new(pages)) };
        region.map_err(|_| OutOfMemory { len })
    }
}

struct Pages {
    base: NonNull<u8>,
    layout: Layout,
}

impl Pages {
    fn new(len: u64) -> Option<Self> {
        let layout = Layout::from_size_align(usize::try_from(len).ok()?, 4096).ok()?;
        if layout.size() == 0 {
            return None;
        }
        // SAFETY: the layout has a size.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) })?;
        Some(Self { base, layout })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: it was allocated with this layout, and nobody has the region any more.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

// SAFETY: a pointer and a layout, which no thread minds.
unsafe impl Send for Pages {}
// SAFETY: as for Send.
unsafe impl Sync for Pages {}

impl Backing for Pages {
    fn is_intact(&self) -> bool {
        true
    }
}
