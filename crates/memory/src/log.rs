//! The dirty log of live migration: which pages of guest-physical memory were written to since the front-end looked.
//!
//! ```text
//! byte   0         1
//! bit    01234567  01234567  …
//! page   ↑         ↑ 8..15             of 4096 bytes; page 1 begins at guest address 0x1000
//!        page 0, guest address 0
//! ```
//!
//! The front-end clears bits and copies their pages while we set bits, so a page is marked after it was written to.
//! What is written, and when it is marked, others decide: this is the bitmap.

use alloc::sync::Arc;
use core::ptr::NonNull;
use core::sync::atomic::{AtomicU8, Ordering};

use crate::{Backing, Gpa};

/// Bytes of guest-physical memory that a bit stands for.
const PAGE: u64 = 4096;

/// Pages that a byte of the log stands for.
const PAGES: u64 = u8::BITS as u64;

/// A front-end's dirty log.
pub struct DirtyLog {
    base: NonNull<u8>,
    size: usize,
    backing: Arc<dyn Backing>,
}

// SAFETY: access is by atomics only, to memory that the backing keeps mapped.
unsafe impl Send for DirtyLog {}
// SAFETY: as for Send; every method takes `&self` and is atomic.
unsafe impl Sync for DirtyLog {}

impl DirtyLog {
    /// A log of `size` bytes at `base`.
    ///
    /// # Safety
    /// `base` must be valid for reads and writes of `size` bytes, and no Rust reference may point into that range but
    /// to atomics, for as long as `backing` lives.
    pub unsafe fn new(base: NonNull<u8>, size: usize, backing: Arc<dyn Backing>) -> Self {
        Self { base, size, backing }
    }

    /// Maps the `size` bytes of `file` from `offset` on.
    ///
    /// # Errors
    /// [`MapError`](crate::MapError) if the file does not hold them, or the kernel refuses.
    #[cfg(feature = "std")]
    pub fn map(file: std::os::fd::OwnedFd, offset: u64, size: u64) -> Result<Self, crate::MapError> {
        let (mapping, base) = crate::Mapping::map(file, offset, size)?;
        // SAFETY: `base` begins `size` bytes of the mapping, which fit a usize as the mapping does; only this type
        // reaches them, by atomics; the `Arc` keeps them mapped.
        Ok(unsafe { Self::new(base, size as usize, Arc::new(mapping)) })
    }

    /// Sets the bit of every page that the `len` bytes at `addr` touch. To be called after they were written. Pages
    /// that the log has no bit for are left out.
    ///
    /// Each byte of the log is changed by one atomic operation (back-end's side of "Migration": others change it too),
    /// whether or not its bits are set already: a load could pass our stores to the page, and see a bit that the
    /// front-end clears before it copies the page, without those stores.
    pub fn mark(&self, addr: Gpa, len: u64) {
        let Some(last_byte) = len.checked_sub(1) else { return };
        let first = addr.0 / PAGE;
        let last = addr.0.saturating_add(last_byte) / PAGE;
        let last = last.min((self.size as u64).saturating_mul(PAGES) - 1);
        if first > last {
            return;
        }
        for byte in first / PAGES..=last / PAGES {
            let (from, to) = (first.max(byte * PAGES) % PAGES, last.min(byte * PAGES + PAGES - 1) % PAGES);
            let bits = u8::MAX << from & u8::MAX >> (PAGES - 1 - to);
            // Pairs with the front-end's exchange: if it takes the bits, it sees what we wrote to their pages.
            self.byte(byte as usize).fetch_or(bits, Ordering::Release);
        }
    }

    /// Whether every access so far reached the front-end's memory; see [`Backing::is_intact`].
    pub fn is_intact(&self) -> bool {
        self.backing.is_intact()
    }

    /// Its length in bytes.
    #[allow(clippy::len_without_is_empty, reason = "an empty log is no use, and needs no test")]
    pub fn len(&self) -> u64 {
        self.size as u64
    }

    /// The file that it is mapped from, and where it begins in it, if there is one.
    #[cfg(feature = "std")]
    pub fn file(&self) -> Option<(std::os::fd::BorrowedFd<'_>, u64)> {
        self.backing.file()
    }

    fn byte(&self, index: usize) -> &AtomicU8 {
        assert!(index < self.size, "a byte of the log that was checked");
        // SAFETY: in range, as just checked.
        let byte = unsafe { self.base.add(index) };
        // SAFETY: valid for as long as the backing lives, which `&self` keeps; reached by atomics only.
        unsafe { AtomicU8::from_ptr(byte.as_ptr()) }
    }
}
