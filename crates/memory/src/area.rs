//! One area of a ring, resolved to a pointer once: words with the memory ordering in the method's name.
//!
//! Offsets are in bytes and come from us (a masked index times an entry's size), never from the peer; one out
//! of range is a bug of ours and panics. All words are little-endian in memory.

use alloc::sync::Arc;
use core::ops::Range;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering};

use crate::{Backing, Gpa};

/// A range of shared memory that holds one area of a ring. It keeps its memory mapped.
pub struct RingArea {
    base: NonNull<u8>,
    len: usize,
    gpa: Gpa,
    backing: Arc<dyn Backing>,
}

// SAFETY: access is by atomics only, to memory that the backing keeps mapped.
unsafe impl Send for RingArea {}
// SAFETY: as for Send; every method takes `&self` and is atomic.
unsafe impl Sync for RingArea {}

macro_rules! words {
    ($word:ty, $atomic:ty, $load:ident, $load_acquire:ident, $store:ident, $store_release:ident) => {
        /// Reads a word with relaxed ordering.
        #[inline]
        pub fn $load(&self, offset: usize) -> $word {
            <$word>::from_le(self.atomic::<$atomic>(offset).load(Ordering::Relaxed))
        }

        /// Reads a word; what the peer wrote before it published the word is visible after.
        #[inline]
        pub fn $load_acquire(&self, offset: usize) -> $word {
            <$word>::from_le(self.atomic::<$atomic>(offset).load(Ordering::Acquire))
        }

        /// Writes a word with relaxed ordering.
        #[inline]
        pub fn $store(&self, offset: usize, value: $word) {
            self.atomic::<$atomic>(offset).store(value.to_le(), Ordering::Relaxed);
        }

        /// Publishes a word: a peer that sees it sees all we wrote before.
        #[inline]
        pub fn $store_release(&self, offset: usize, value: $word) {
            self.atomic::<$atomic>(offset).store(value.to_le(), Ordering::Release);
        }
    };
}

macro_rules! pairs {
    ($word:ty, $atomic:ty, $load:ident, $store:ident) => {
        /// Reads two adjoining words: the second, then the first; what the peer wrote before it published the second
        /// is visible in the first, and after.
        #[inline]
        pub fn $load(&self, offset: usize) -> ($word, $word) {
            let [first, second] = self.atomic::<[$atomic; 2]>(offset);
            let second = second.load(Ordering::Acquire);
            (<$word>::from_le(first.load(Ordering::Relaxed)), <$word>::from_le(second))
        }

        /// Writes two adjoining words with relaxed ordering.
        #[inline]
        pub fn $store(&self, offset: usize, value: ($word, $word)) {
            let [first, second] = self.atomic::<[$atomic; 2]>(offset);
            first.store(value.0.to_le(), Ordering::Relaxed);
            second.store(value.1.to_le(), Ordering::Relaxed);
        }
    };
}

impl RingArea {
    /// An area of `len` bytes at `base`, which is `gpa` to the guest.
    ///
    /// # Safety
    /// `base` must be valid for reads and writes of `len` bytes, with no Rust reference into that range, for
    /// as long as `backing` lives.
    pub(crate) unsafe fn from_raw(
        base: NonNull<u8>,
        len: usize,
        gpa: Gpa,
        backing: Arc<dyn Backing>,
    ) -> Self {
        Self { base, len, gpa, backing }
    }

    /// A part of the area, by its offsets in bytes.
    ///
    /// # Panics
    /// If the range is not inside the area.
    #[must_use]
    pub fn part(&self, range: Range<usize>) -> Self {
        assert!(range.start <= range.end && range.end <= self.len, "a part of ours is in the area");
        // SAFETY: in range, so the pointer stays inside the area.
        let base = unsafe { self.base.add(range.start) };
        let gpa = Gpa(self.gpa.0 + range.start as u64);
        Self { base, len: range.len(), gpa, backing: Arc::clone(&self.backing) }
    }

    /// Whether its memory is still the peer's; see [`Backing::is_intact`].
    pub fn is_intact(&self) -> bool {
        self.backing.is_intact()
    }

    /// Where it begins in guest-physical memory, if it is in a region.
    pub fn gpa(&self) -> Gpa {
        self.gpa
    }

    /// Length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "an area is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it starts at a multiple of `align` bytes.
    pub fn is_aligned(&self, align: u64) -> bool {
        (self.base.as_ptr() as u64).is_multiple_of(align)
    }

    words!(u16, AtomicU16, load_u16, load_u16_acquire, store_u16, store_u16_release);
    words!(u32, AtomicU32, load_u32, load_u32_acquire, store_u32, store_u32_release);
    words!(u64, AtomicU64, load_u64, load_u64_acquire, store_u64, store_u64_release);
    pairs!(u32, AtomicU32, load_u32_pair, store_u32_pair);
    pairs!(u64, AtomicU64, load_u64_pair, store_u64_pair);

    /// Asks the processor to fetch the cache line at `offset`; out of range does nothing.
    #[inline]
    pub fn prefetch(&self, offset: usize) {
        if offset < self.len {
            // SAFETY: in range, so the pointer stays inside the area.
            prefetch(unsafe { self.base.add(offset) });
        }
    }

    /// Asks the processor to fetch the cache line at `offset` to write to it; out of range does nothing.
    #[inline]
    pub fn prefetch_to_write(&self, offset: usize) {
        if offset < self.len {
            // SAFETY: in range, so the pointer stays inside the area.
            prefetch_to_write(unsafe { self.base.add(offset) });
        }
    }

    /// The atomic word, or words, at `offset`.
    #[inline]
    fn atomic<A>(&self, offset: usize) -> &A {
        // One comparison where the compiler knows that the offset is small.
        let end = offset.checked_add(size_of::<A>());
        assert!(end.is_some_and(|end| end <= self.len), "a ring offset of ours is in range");
        // SAFETY: in range, as just checked.
        let word = unsafe { self.base.add(offset) }.cast::<A>();
        assert!(word.is_aligned(), "a ring offset of ours is aligned");
        // SAFETY: in range and aligned; an atomic may be shared with a peer that writes to it; any bit pattern is
        // valid; `&self` keeps the backing alive. `A` is only ever an atomic integer, or two (`words!`, `pairs!`).
        unsafe { word.as_ref() }
    }
}

/// Size of a cache line on the machines this runs on, in bytes. Another size costs speed, nothing else.
pub(crate) const CACHE_LINE: usize = 64;

/// Asks the processor to fetch a cache line that will be written to: not shared, as for a read, but owned.
#[inline]
pub(crate) fn prefetch_to_write(at: NonNull<u8>) {
    // `_mm_prefetch` has a hint for this, but turns it into a prefetch for reading unless the program is built for
    // newer processors. Older ones take the instruction for one that does nothing.
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint; it does not fault, whatever the address, and changes no memory or register.
    unsafe {
        core::arch::asm!("prefetchw [{}]", in(reg) at.as_ptr(), options(nostack, preserves_flags, readonly));
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// Asks the processor to fetch a cache line.
#[inline]
pub(crate) fn prefetch(at: NonNull<u8>) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint; it does not fault, whatever the address.
    unsafe {
        core::arch::x86_64::_mm_prefetch::<{ core::arch::x86_64::_MM_HINT_T0 }>(at.as_ptr().cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
