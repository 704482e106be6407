//! A peer's file, mapped. Unmapped when the last user lets go.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::ptr::{self, NonNull};
use std::sync::Arc;

use thiserror::Error;

use crate::{Backing, FrontendVa, Gpa, MemoryError, Region, RingArea, sigbus};

/// Why a range of a file cannot be mapped.
#[derive(Debug, Error)]
pub enum MapError {
    /// The file ends before the range does.
    #[error("bytes {offset}..{end} are to be mapped of a file that has only {size}")]
    PastEnd {
        /// First byte of the range in the file.
        offset: u64,
        /// Its end.
        end: u64,
        /// The file's size.
        size: u64,
    },
    /// Size and offset add up to more than an address space.
    #[error("a mapping of {len} bytes at file offset {offset} is impossible")]
    BadRange {
        /// First byte of the range in the file.
        offset: u64,
        /// Length in bytes.
        len: u64,
    },
    /// All places of the SIGBUS guard are taken.
    #[error("too many files are mapped in this process")]
    TooMany,
    /// The kernel refused.
    #[error("cannot map a file: {0}")]
    Kernel(#[from] io::Error),
    /// The region's place in the guest's memory is impossible.
    #[error(transparent)]
    Region(#[from] MemoryError),
}

/// A mapped range of a file.
pub struct Mapping {
    base: NonNull<u8>,
    len: usize,
    guard: sigbus::Guard,
    /// Kept so that another process can be given it, and map it anew.
    file: File,
    /// Where the range that was wanted begins in the file.
    offset: u64,
}

// SAFETY: a mapping may be accessed and unmapped from any thread.
unsafe impl Send for Mapping {}
// SAFETY: the type gives out its address only; who uses it follows the rules of `Region::new`.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `file` from `offset` on, shared and writable, as the memory region at `gpa`.
    ///
    /// Pages are mapped as they are touched. The file stays open for as long as it is mapped.
    pub fn region(
        file: OwnedFd,
        offset: u64,
        len: u64,
        gpa: Gpa,
        frontend_va: FrontendVa,
    ) -> Result<Region, MapError> {
        let (mapping, base) = Self::map(file, offset, len)?;
        // SAFETY: the mapping holds `len` bytes from `base` on; only this crate reaches it, and never by a reference;
        // the `Arc` keeps it mapped.
        Ok(unsafe { Region::new(gpa, frontend_va, base, len, Arc::new(mapping)) }?)
    }

    /// Maps `len` bytes of `file` from `offset` on, shared and writable, as an area that is in no region.
    pub fn area(file: OwnedFd, offset: u64, len: usize) -> Result<RingArea, MapError> {
        if len == 0 {
            return Err(MapError::BadRange { offset, len: 0 });
        }
        let (mapping, base) = Self::map(file, offset, len as u64)?;
        // SAFETY: as for a region.
        Ok(unsafe { RingArea::from_raw(base, len, Gpa::default(), Arc::new(mapping)) })
    }

    /// Maps `len` bytes of `file` from `offset` on, shared and writable; returns also where they begin.
    pub(crate) fn map(file: OwnedFd, offset: u64, len: u64) -> Result<(Self, NonNull<u8>), MapError> {
        let bad = MapError::BadRange { offset, len };
        let Some(end) = offset.checked_add(len) else { return Err(bad) };
        let file = File::from(file);
        let meta = file.metadata()?;
        if !meta.file_type().is_char_device() && end > meta.size() {
            return Err(MapError::PastEnd { offset, end, size: meta.size() });
        }
        // A mapping starts and ends at a page; for a file on hugetlbfs that is the block size.
        let page = meta.blksize().max(4096);
        let start = offset - offset % page;
        let Some(map_len) = end.checked_next_multiple_of(page).map(|e| e - start) else { return Err(bad) };
        let (Ok(map_len), Ok(start_off)) = (usize::try_from(map_len), libc::off_t::try_from(start)) else {
            return Err(bad);
        };
        if map_len == 0 || isize::try_from(map_len).is_err() {
            return Err(bad);
        }
        let mapping = Self::new(file, start_off, map_len, offset)?;
        // SAFETY: `offset - start` is less than a page, and the mapping is at least a page long.
        let base = unsafe { mapping.base.add((offset - start) as usize) };
        Ok((mapping, base))
    }

    /// Maps `len` bytes from `start` on, of which those that are wanted begin at `offset`.
    fn new(file: File, start: libc::off_t, len: usize, offset: u64) -> Result<Self, MapError> {
        sigbus::install()?;
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_NORESERVE);
        // SAFETY: a new mapping, at an address of the kernel's choice, disturbs no other.
        let base = unsafe { libc::mmap(ptr::null_mut(), len, prot, flags, file.as_raw_fd(), start) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error().into());
        }
        // A guest's memory has no place in our core dump. That the kernel may not know the advice is no loss.
        // SAFETY: the range is the mapping just made.
        unsafe { libc::madvise(base, len, libc::MADV_DONTDUMP) };
        let Some(guard) = sigbus::Guard::new(base as usize, len) else {
            // SAFETY: the mapping just made, which nobody else has seen.
            unsafe { libc::munmap(base, len) };
            return Err(MapError::TooMany);
        };
        let base = NonNull::new(base.cast()).expect("mmap does not map the null page");
        Ok(Self { base, len, guard, file, offset })
    }
}

impl Backing for Mapping {
    fn is_intact(&self) -> bool {
        !self.guard.has_faulted()
    }

    fn file(&self) -> Option<(BorrowedFd<'_>, u64)> {
        Some((self.file.as_fd(), self.offset))
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // The guard lets go first: from here on no fault can be ours.
        self.guard.release();
        // SAFETY: the mapping is ours, and its last user is gone.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.len) };
    }
}
