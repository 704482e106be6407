//! The machine's memory: the heap, and what devices may reach of it.
//!
//! Memory is mapped where it is (`boot.rs`), devices are behind no IOMMU, and on this processor they see what the
//! processor wrote: so memory for devices is heap memory, and a device finds it where its pointer points.

use alloc::alloc::{alloc_zeroed, dealloc};
use alloc::sync::Arc;
use core::alloc::Layout;
use core::ops::Range;
use core::ptr::{self, NonNull};

use ringway_driver::platform::{PageRange, Pages, Purpose};
use ringway_driver::{OutOfMemory, Platform};
use ringway_memory::{Backing, FrontendVa, Gpa, Region};
use spinning_top::RawSpinlock;
use talc::TalcLock;
use talc::source::Manual;

use crate::interrupts;

#[global_allocator]
static HEAP: TalcLock<RawSpinlock, Manual> = TalcLock::new(Manual);

const PAGE: usize = 4096;

/// Gives a range of memory to the heap.
///
/// # Safety
/// The memory is used for nothing else, from here on.
pub(crate) unsafe fn add_heap(range: &Range<u64>) {
    let base = ptr::with_exposed_provenance_mut(range.start as usize);
    // SAFETY: the caller's; the memory is mapped at its physical address.
    let claimed = unsafe { HEAP.lock().claim(base, (range.end - range.start) as usize) };
    assert!(claimed.is_some(), "there is no memory");
}

/// Memory for devices.
pub(crate) struct Dma;

// SAFETY: pages of the heap of their own, zeroed, which are freed by the last clone of the region; their address is
// their physical address.
unsafe impl Platform for Dma {
    fn allocate(&self, len: u64) -> Result<Region, OutOfMemory> {
        let error = OutOfMemory { len };
        let layout = usize::try_from(len).ok().and_then(|len| Layout::from_size_align(len.max(1), PAGE).ok());
        let layout = layout.ok_or(error)?.pad_to_align();
        // SAFETY: the layout's size is not 0.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(error)?;
        let addr = base.expose_provenance().get() as u64;
        let pages = Arc::new(Block { base, layout });
        // SAFETY: `pages` are `len` bytes at least, valid while it lives; no reference points to them.
        unsafe { Region::new(Gpa(addr), FrontendVa(addr), base, len, pages) }.map_err(|_| error)
    }

    /// Nearly always the device has done it after a few looks; then the processor sleeps between two, for five seconds
    /// altogether.
    fn wait(&self, round: u32) -> bool {
        const LOOKS: u32 = 1000;
        const NAPS: u32 = 500;
        if round < LOOKS {
            core::hint::spin_loop();
        } else {
            interrupts::sleep();
        }
        round < LOOKS + NAPS
    }
}

/// Pages of the heap.
struct Block {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: the pages are reached by their region only, whatever the thread.
unsafe impl Send for Block {}
// SAFETY: as for Send.
unsafe impl Sync for Block {}

impl Backing for Block {
    fn is_intact(&self) -> bool {
        true
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout, and nobody has the address any more.
        unsafe { dealloc(self.base.as_ptr(), self.layout) };
    }
}

/// Memory that is to spare, for a balloon: pages of the heap.
#[derive(Default)]
pub(crate) struct Spare {
    /// Pages that are in the balloon.
    pub(crate) given_up: usize,
    /// How many ranges there are to lend.
    pub(crate) to_lend: usize,
    /// How many came back.
    pub(crate) returned: usize,
    /// How many of these without what they held.
    pub(crate) changed: usize,
}

impl Spare {
    const PAGE: Layout = Layout::new::<Page>();
    const RANGE: Layout = Layout::new::<[Page; 64]>();
    const CONTENTS: u8 = 0xa5;
}

/// How a page lies.
#[repr(align(4096))]
struct Page {
    _bytes: [u8; PAGE],
}

// SAFETY: what is given up or lent is allocated, and in no other use until it is freed here.
unsafe impl Pages for Spare {
    fn give_up(&mut self) -> Option<u32> {
        // SAFETY: a page has a size.
        let page = NonNull::new(unsafe { alloc_zeroed(Self::PAGE) })?;
        self.given_up += 1;
        u32::try_from(page.expose_provenance().get() / PAGE).ok()
    }

    fn take_back(&mut self, pfn: u32, _fill: Option<u32>) {
        self.given_up -= 1;
        // SAFETY: a page that was given up.
        unsafe { dealloc(ptr::with_exposed_provenance_mut(pfn as usize * PAGE), Self::PAGE) };
    }

    fn lend(&mut self, _purpose: Purpose, _fill: Option<u32>) -> Option<PageRange> {
        self.to_lend = self.to_lend.checked_sub(1)?;
        // SAFETY: a range has a size.
        let range = NonNull::new(unsafe { alloc_zeroed(Self::RANGE) })?;
        // SAFETY: the range was just allocated.
        unsafe { range.write_bytes(Self::CONTENTS, Self::RANGE.size()) };
        let addr = Gpa(range.expose_provenance().get() as u64);
        Some(PageRange { addr, len: Self::RANGE.size() as u32 })
    }

    fn return_lent(&mut self, range: PageRange, _fill: Option<u32>) {
        let base: *mut u8 = ptr::with_exposed_provenance_mut(range.addr.0 as usize);
        // SAFETY: a range that was lent, and is not any more.
        let first = unsafe { base.read_volatile() };
        self.returned += 1;
        self.changed += usize::from(first != Self::CONTENTS);
        // SAFETY: as before.
        unsafe { dealloc(base, Self::RANGE) };
    }
}
