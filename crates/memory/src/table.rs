//! The memory table: which ranges of guest-physical memory exist, and where they are mapped here.
//!
//! A table never changes: another one takes its place. Whoever holds an `Arc` of a table can reach its
//! regions for as long as it holds it, also after the front-end has withdrawn them.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ptr::NonNull;

use thiserror::Error;

use crate::{Access, DirtyLog, FrontendVa, Gpa, GuestSlice, Iova, RingArea, Translation};

/// What keeps a region's memory mapped.
pub trait Backing: Send + Sync {
    /// Whether every access so far reached the peer's memory; false after the peer truncated its file.
    fn is_intact(&self) -> bool;

    /// The file that is mapped, and where the region begins in it, if there is one.
    #[cfg(feature = "std")]
    fn file(&self) -> Option<(std::os::fd::BorrowedFd<'_>, u64)> {
        None
    }
}

/// Why an address range cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MemoryError {
    /// No region, and no run of adjoining regions, holds the range.
    #[error("{len} bytes at guest address {addr} are in no memory region")]
    Unmapped {
        /// Start of the range.
        addr: Gpa,
        /// Its length in bytes.
        len: u64,
    },
    /// No single region holds the range that a ring's area needs, or no region an address that a translation led to.
    #[error("{len} bytes at front-end address {addr} are in no memory region")]
    UnmappedArea {
        /// Start of the range.
        addr: FrontendVa,
        /// Its length in bytes.
        len: u64,
    },
    /// The area does not start at a multiple of its alignment.
    #[error("front-end address {addr} is not a multiple of {align}")]
    Misaligned {
        /// Start of the area.
        addr: FrontendVa,
        /// What it must be a multiple of.
        align: u64,
    },
    /// Two regions share guest-physical addresses.
    #[error("memory region at guest address {addr}, {len} bytes, overlaps another")]
    Overlap {
        /// Start of the later region.
        addr: Gpa,
        /// Its length in bytes.
        len: u64,
    },
    /// A region is empty, or ends past the end of an address space.
    #[error("memory region at guest address {addr} has an impossible size of {len} bytes")]
    BadSize {
        /// Start of the region.
        addr: Gpa,
        /// The size given.
        len: u64,
    },
    /// The translation does not know the address yet.
    #[error("I/O virtual address {iova} has no translation for {access}")]
    Miss {
        /// The first address that is not known.
        iova: Iova,
        /// What it is wanted for.
        access: Access,
    },
    /// The translation knows the address, but it may not be used like this.
    #[error("I/O virtual address {iova} does not allow {access}")]
    Denied {
        /// The address.
        iova: Iova,
        /// What it was wanted for.
        access: Access,
    },
    /// A range of I/O virtual addresses is empty where none may be, or leaves an address space.
    #[error("{len} bytes at I/O virtual address {iova} are an impossible range")]
    BadRange {
        /// Start of the range.
        iova: Iova,
        /// Its length in bytes.
        len: u64,
    },
    /// A buffer in more pieces than a list holds, or a ring's area in more than one.
    #[error("{len} bytes at I/O virtual address {iova} are in too many pieces")]
    Scattered {
        /// Start of the range.
        iova: Iova,
        /// Its length in bytes.
        len: u64,
    },
}

/// A range of guest-physical memory, mapped here.
#[derive(Clone)]
pub struct Region {
    gpa: Gpa,
    frontend_va: FrontendVa,
    len: u64,
    base: NonNull<u8>,
    backing: Arc<dyn Backing>,
}

// SAFETY: `base` points to shared memory that `backing` keeps mapped; all access goes through atomics or raw
// copies, which any thread may do.
unsafe impl Send for Region {}
// SAFETY: as for Send; a shared `Region` gives no more than an owned one.
unsafe impl Sync for Region {}

impl Region {
    /// A region of `len` bytes at `base`.
    ///
    /// # Safety
    /// `base` must be valid for reads and writes of `len` bytes, and no Rust reference may point into that
    /// range, for as long as `backing` lives.
    pub unsafe fn new(
        gpa: Gpa,
        frontend_va: FrontendVa,
        base: NonNull<u8>,
        len: u64,
        backing: Arc<dyn Backing>,
    ) -> Result<Self, MemoryError> {
        let fits = |start: u64| start.checked_add(len).is_some();
        if len == 0 || isize::try_from(len).is_err() || !fits(gpa.0) || !fits(frontend_va.0) {
            return Err(MemoryError::BadSize { addr: gpa, len });
        }
        Ok(Self { gpa, frontend_va, len, base, backing })
    }

    /// Guest-physical start.
    pub fn gpa(&self) -> Gpa {
        self.gpa
    }

    /// Start in the front-end's address space.
    pub fn frontend_va(&self) -> FrontendVa {
        self.frontend_va
    }

    /// Length in bytes, never 0.
    #[allow(clippy::len_without_is_empty, reason = "a region is never empty")]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Where it is mapped here: for the kernel and the peer, not to be dereferenced.
    pub fn backend_va(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    /// The file that it is mapped from, and where it begins in it, if there is one.
    #[cfg(feature = "std")]
    pub fn file(&self) -> Option<(std::os::fd::BorrowedFd<'_>, u64)> {
        self.backing.file()
    }

    /// Whether every access so far reached the memory; see [`Backing::is_intact`].
    pub fn is_intact(&self) -> bool {
        self.backing.is_intact()
    }

    /// The `len` bytes at `offset`, if the region has them.
    pub fn bytes(&self, offset: u64, len: u64) -> Option<GuestSlice<'_>> {
        let is_inside = offset <= self.len && len <= self.len - offset;
        is_inside.then(|| self.slice(offset, len))
    }

    pub(crate) fn window(&self) -> Window {
        Window { gpa: self.gpa, len: self.len, base: self.base }
    }

    /// What keeps it mapped.
    pub(crate) fn backing(&self) -> Arc<dyn Backing> {
        Arc::clone(&self.backing)
    }

    /// The slice from `offset` to at most `len` bytes on; `offset` is inside the region, or its end.
    pub(crate) fn slice(&self, offset: u64, len: u64) -> GuestSlice<'_> {
        let len = len.min(self.len - offset);
        // SAFETY: `offset <= self.len`, so the sum stays inside the mapped range or one past it, which fits an isize.
        let start = unsafe { self.base.add(offset as usize) };
        // SAFETY: the range lies inside the region; `&self` keeps the backing alive for the slice's lifetime.
        unsafe { GuestSlice::from_raw(start, len as usize) }
    }
}

/// Where a region is, without what keeps it mapped.
#[derive(Clone, Copy)]
pub(crate) struct Window {
    gpa: Gpa,
    len: u64,
    base: NonNull<u8>,
}

// SAFETY: as for a region; who uses the pointer keeps the region.
unsafe impl Send for Window {}
// SAFETY: as for Send.
unsafe impl Sync for Window {}

impl Window {
    /// Holds nothing.
    pub(crate) const EMPTY: Self = Self { gpa: Gpa(0), len: 0, base: NonNull::dangling() };

    /// Where the `len` bytes at `addr` begin here, if there are any and the region holds them all.
    #[inline]
    pub(crate) fn find(&self, addr: Gpa, len: u32) -> Option<NonNull<u8>> {
        let offset = addr.0.wrapping_sub(self.gpa.0);
        if len == 0 || offset >= self.len || u64::from(len) > self.len - offset {
            return None;
        }
        // SAFETY: inside of the region, which fits an isize.
        Some(unsafe { self.base.add(offset as usize) })
    }
}

/// All of a guest's memory, sorted by guest-physical address. Cheap to search: guests have few regions.
#[derive(Clone, Default)]
pub struct MemoryTable {
    regions: Vec<Region>,
    log: Option<Arc<DirtyLog>>,
    translation: Option<Arc<dyn Translation>>,
}

impl MemoryTable {
    /// A table of these regions.
    ///
    /// # Errors
    /// [`MemoryError::Overlap`] if two of them share guest-physical addresses.
    pub fn new(mut regions: Vec<Region>) -> Result<Self, MemoryError> {
        regions.sort_by_key(|r| r.gpa);
        for pair in regions.windows(2) {
            if pair[1].gpa.0 - pair[0].gpa.0 < pair[0].len {
                return Err(MemoryError::Overlap { addr: pair[1].gpa, len: pair[1].len });
            }
        }
        Ok(Self { regions, ..Self::default() })
    }

    /// The same table with this dirty log, or without one: what is written to its buffers is marked there.
    #[must_use]
    pub fn with_log(&self, log: Option<Arc<DirtyLog>>) -> Self {
        Self { log, ..self.clone() }
    }

    /// The dirty log, if writes are logged.
    pub fn log(&self) -> Option<&Arc<DirtyLog>> {
        self.log.as_ref()
    }

    /// The same table behind this IOMMU, or behind none: what descriptors hold, and where rings are said to be, are
    /// I/O virtual addresses then.
    #[must_use]
    pub fn with_translation(&self, translation: Option<Arc<dyn Translation>>) -> Self {
        Self { translation, ..self.clone() }
    }

    /// The translation of addresses, if there is one.
    pub fn translation(&self) -> Option<&Arc<dyn Translation>> {
        self.translation.as_ref()
    }

    /// The regions, in the order of their guest-physical addresses.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// What there is of the `len` bytes at `addr`, in the order of addresses.
    pub fn slices(&self, addr: Gpa, len: u64) -> impl Iterator<Item = GuestSlice<'_>> {
        let end = addr.0.saturating_add(len);
        self.regions.iter().filter_map(move |r| {
            let (from, to) = (addr.0.max(r.gpa.0), end.min(r.gpa.0 + r.len));
            (from < to).then(|| r.slice(from - r.gpa.0, to - from))
        })
    }

    /// Whether no peer has taken memory away under us; see [`Backing::is_intact`].
    pub fn is_intact(&self) -> bool {
        self.regions.iter().all(|r| r.backing.is_intact())
            && self.log.as_ref().is_none_or(|log| log.is_intact())
    }

    /// The region that holds `addr`.
    pub(crate) fn region_at(&self, addr: Gpa) -> Option<&Region> {
        self.regions.iter().find(|r| addr.0.wrapping_sub(r.gpa.0) < r.len)
    }

    /// The region that holds `addr`.
    pub(crate) fn region_at_va(&self, addr: FrontendVa) -> Option<&Region> {
        self.regions.iter().find(|r| addr.0.wrapping_sub(r.frontend_va.0) < r.len)
    }

    /// Where a slice of a region is in guest-physical memory.
    pub(crate) fn gpa_of(&self, slice: &GuestSlice<'_>) -> Option<Gpa> {
        self.regions.iter().find_map(|r| {
            let offset = (slice.as_ptr() as u64).wrapping_sub(r.base.as_ptr() as u64);
            // In the region, whose addresses do not overflow.
            (offset < r.len).then(|| Gpa(r.gpa.0 + offset))
        })
    }

    /// The area of a ring that is read and written; see [`MemoryTable::area_for`].
    pub fn area(&self, addr: FrontendVa, len: usize, align: u64) -> Result<RingArea, MemoryError> {
        self.area_for(addr, len, align, Access::READ_WRITE)
    }

    /// The area of a ring: `len` bytes at `addr`, all in one region. With a translation the address is an I/O virtual
    /// one; the area is in one piece to the front-end, and may be accessed like this.
    ///
    /// # Errors
    /// [`MemoryError::UnmappedArea`], [`MemoryError::Misaligned`] (also where the mapping here is); with a translation
    /// [`MemoryError::Scattered`] and those of [`Translation::translate`].
    pub fn area_for(
        &self,
        addr: FrontendVa,
        len: usize,
        align: u64,
        access: Access,
    ) -> Result<RingArea, MemoryError> {
        if !addr.0.is_multiple_of(align) {
            return Err(MemoryError::Misaligned { addr, align });
        }
        let addr = match &self.translation {
            Some(translation) => contiguous(&**translation, Iova(addr.0), len as u64, access)?,
            None => addr,
        };
        let unmapped = MemoryError::UnmappedArea { addr, len: len as u64 };
        let region = self.region_at_va(addr).ok_or(unmapped)?;
        let offset = addr.0 - region.frontend_va.0;
        let slice = region.slice(offset, len as u64);
        if slice.len() < len {
            return Err(unmapped);
        }
        if !(slice.as_ptr() as u64).is_multiple_of(align) {
            return Err(MemoryError::Misaligned { addr, align });
        }
        // SAFETY: the slice covers `len` bytes of the region, and the area keeps the region's backing alive.
        Ok(unsafe {
            RingArea::from_raw(slice.as_non_null(), len, Gpa(region.gpa.0 + offset), region.backing())
        })
    }
}

/// Where the `len` bytes at `iova` are, if they are in one piece.
fn contiguous(
    translation: &dyn Translation,
    iova: Iova,
    len: u64,
    access: Access,
) -> Result<FrontendVa, MemoryError> {
    let scattered = MemoryError::Scattered { iova, len };
    let mut found: Option<(FrontendVa, u64)> = None;
    translation.translate(iova, len, access, &mut |va, piece_len| {
        let (start, so_far) = *found.get_or_insert((va, 0));
        if start.checked_add(so_far) != Some(va) {
            return Err(scattered);
        }
        found = Some((start, so_far + piece_len));
        Ok(())
    })?;
    found.map(|(start, _)| start).ok_or(scattered)
}
