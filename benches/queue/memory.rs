//! The memory of one contestant: a single mapping in which a buffer's address for the device is its address here.
//! So no contestant spends time on addresses that another is spared.

#![allow(unsafe_code, reason = "the contestants' memory is mapped here, and looked at as rings")]

use std::cell::Cell;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64};

use ringway_memory::{Backing, FrontendVa, Gpa, MemoryTable, Region};
use ringway_queue::Areas;
use vm_memory::{GuestAddress, GuestMemoryMmap, GuestRegionMmap, MmapRegion};

/// Descriptors of every queue: room for the largest burst of the longest chains.
pub(crate) const SIZE: usize = 1024;
/// Size of a buffer: a cache line.
pub(crate) const BUFFER: usize = 64;

const LEN: usize = 4 << 20;
pub(crate) const PAGE: usize = 4096;

/// A descriptor as two words: address, then the rest.
pub(crate) type Descriptor = [AtomicU64; 2];

#[repr(C)]
pub(crate) struct Avail {
    pub(crate) flags: AtomicU16,
    pub(crate) idx: AtomicU16,
    pub(crate) ring: [AtomicU16; SIZE],
    pub(crate) used_event: AtomicU16,
}

#[repr(C)]
pub(crate) struct Used {
    pub(crate) flags: AtomicU16,
    pub(crate) idx: AtomicU16,
    pub(crate) ring: [[AtomicU32; 2]; SIZE],
    pub(crate) avail_event: AtomicU16,
}

/// What memory may be looked at as.
///
/// # Safety
/// Atomic integers only.
pub(crate) unsafe trait Layout {}

// SAFETY: made of atomic integers.
unsafe impl Layout for Avail {}
// SAFETY: made of atomic integers.
unsafe impl Layout for Used {}
// SAFETY: made of atomic integers.
unsafe impl Layout for [Descriptor; SIZE] {}
// SAFETY: made of atomic integers.
unsafe impl Layout for [Descriptor; 3] {}

/// Where the areas of a queue are.
#[derive(Clone, Copy, Default)]
pub(crate) struct Rings {
    pub(crate) descriptor: u64,
    pub(crate) driver: u64,
    pub(crate) device: u64,
}

pub(crate) struct Memory {
    /// For `virtio-queue`.
    pub(crate) map: GuestMemoryMmap,
    /// For ours.
    pub(crate) table: Arc<MemoryTable>,
    base: u64,
    used: Cell<usize>,
}

/// Mapped until the program ends.
struct Forever;

impl Backing for Forever {
    fn is_intact(&self) -> bool {
        true
    }
}

impl Memory {
    pub(crate) fn new() -> &'static Self {
        let mapping = MmapRegion::new(LEN).expect("memory");
        let start = NonNull::new(mapping.as_ptr()).expect("mapped");
        let base = start.as_ptr() as u64;
        let region = GuestRegionMmap::new(mapping, GuestAddress(base)).expect("an address space");
        let map = GuestMemoryMmap::from_regions(vec![region]).expect("one region");
        // SAFETY: the mapping is of that length, is never unmapped (`map` is leaked), and is looked at by atomics and
        // raw pointers; slices of it are made of buffers that ours does not touch (`their`).
        let region =
            unsafe { Region::new(Gpa(base), FrontendVa(base), start, LEN as u64, Arc::new(Forever)) };
        let table = MemoryTable::new(vec![region.expect("a region")]).expect("one region");
        Box::leak(Box::new(Self { map, table: Arc::new(table), base, used: Cell::new(0) }))
    }

    /// Zeroed memory.
    pub(crate) fn alloc(&self, len: usize, align: usize) -> u64 {
        let at = self.used.get().next_multiple_of(align);
        self.used.set(at + len);
        assert!(self.used.get() <= LEN, "the contestant's memory is large enough");
        self.base + at as u64
    }

    /// Areas of a queue, of either format.
    pub(crate) fn rings(&self) -> Rings {
        Rings {
            descriptor: self.alloc(size_of::<[Descriptor; SIZE]>(), PAGE),
            driver: self.alloc(size_of::<Avail>(), PAGE),
            device: self.alloc(size_of::<Used>(), PAGE),
        }
    }

    /// The same for ours.
    pub(crate) fn areas(&self, rings: Rings, features: u64) -> Areas {
        let Rings { descriptor, driver, device } = rings;
        let at = FrontendVa;
        Areas::resolve(&self.table, SIZE as u16, features, at(descriptor), at(driver), at(device))
            .expect("areas in memory")
    }

    /// What is at `addr`.
    pub(crate) fn at<T: Layout>(&'static self, addr: u64) -> &'static T {
        let offset = (addr - self.base) as usize;
        assert!(
            offset + size_of::<T>() <= LEN && offset.is_multiple_of(align_of::<T>()),
            "in memory, aligned"
        );
        // SAFETY: in memory that stays mapped, and aligned; any value is one of atomics, which may be shared.
        unsafe { &*(addr as *const T) }
    }
}
