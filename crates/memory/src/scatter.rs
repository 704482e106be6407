//! The buffers of a burst of chains, translated: one flat list of slices, kept from burst to burst so that
//! taking a chain allocates nothing.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use crate::table::Window;
use crate::{Access, BusAddr, DirtyLog, Gpa, GuestBuf, GuestSlice, Iova, MemoryError, MemoryTable};

/// The most slices of a list that addresses are translated into: a translation may be in pieces of any size.
const MAX_TRANSLATED: usize = 1 << 16;

/// Slices of one memory table, which the list keeps mapped.
pub struct ScatterList {
    table: Arc<MemoryTable>,
    /// Slices of `table`; the lifetime is the list's own, see [`ScatterList::slices`].
    slices: Vec<GuestSlice<'static>>,
    /// The region that was found last: the next address is most likely there too. None if the table has a translation,
    /// which may change at any time.
    last: Window,
}

impl ScatterList {
    /// An empty list with room for `capacity` slices.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { table: Arc::default(), slices: Vec::with_capacity(capacity), last: Window::EMPTY }
    }

    /// Makes `table` the one to translate by, which empties the list if it was another.
    #[inline]
    pub fn bind(&mut self, table: &Arc<MemoryTable>) {
        if !Arc::ptr_eq(&self.table, table) {
            self.slices.clear();
            self.table = Arc::clone(table);
            self.last = Window::EMPTY;
        }
    }

    /// The table that it translates by.
    pub(crate) fn table(&self) -> &Arc<MemoryTable> {
        &self.table
    }

    /// Number of slices.
    pub fn len(&self) -> usize {
        self.slices.len()
    }

    /// Whether there is no slice.
    pub fn is_empty(&self) -> bool {
        self.slices.is_empty()
    }

    /// Empties the list.
    pub fn clear(&mut self) {
        self.slices.clear();
    }

    /// Drops the slices from index `len` on.
    pub fn truncate(&mut self, len: usize) {
        self.slices.truncate(len);
    }

    /// Drops the first `n` slices; the others move down by as many.
    pub fn drop_first(&mut self, n: usize) {
        self.slices.drain(..n);
    }

    /// Appends the `len` bytes at `addr`, for this access: one slice, or one for each piece they are in.
    ///
    /// # Errors
    /// [`MemoryError::Unmapped`]; with a translation [`MemoryError::UnmappedArea`], [`MemoryError::Scattered`] and those
    /// of [`Translation::translate`](crate::Translation::translate). Slices of a part that is mapped may have been appended.
    #[inline]
    pub fn push(&mut self, addr: BusAddr, len: u32, access: Access) -> Result<(), MemoryError> {
        let Some(start) = self.last.find(Gpa(addr.0), len) else {
            return self.push_pieces(addr, len, access);
        };
        // SAFETY: the last region is one of the table's. The slice is valid for as long as the region is; `self.table`
        // keeps it, is only replaced together with the slices (`bind`), and slices leave with the list's lifetime only.
        self.slices.push(unsafe { GuestSlice::from_raw(start, len as usize) });
        Ok(())
    }

    /// As [`ScatterList::push`], if the bytes are in the region that was found last: cheaper, and nothing is appended if not.
    #[inline]
    pub fn push_again(&mut self, addr: BusAddr, len: u32) -> Option<GuestSlice<'_>> {
        let start = self.last.find(Gpa(addr.0), len)?;
        // SAFETY: as in `push`.
        let slice = unsafe { GuestSlice::from_raw(start, len as usize) };
        self.slices.push(slice);
        Some(slice)
    }

    #[cold]
    fn push_pieces(&mut self, addr: BusAddr, len: u32, access: Access) -> Result<(), MemoryError> {
        let Self { table, slices, .. } = self;
        let Some(translation) = table.translation() else { return self.push_regions(Gpa(addr.0), len) };
        let (iova, len) = (Iova(addr.0), u64::from(len));
        translation.translate(iova, len, access, &mut |va, piece_len| {
            let unmapped = MemoryError::UnmappedArea { addr: va, len: piece_len };
            let (mut at, mut left) = (va, piece_len);
            while left > 0 {
                if slices.len() >= MAX_TRANSLATED {
                    return Err(MemoryError::Scattered { iova, len });
                }
                let region = table.region_at_va(at).ok_or(unmapped)?;
                let slice = region.slice(at.0 - region.frontend_va().0, left);
                left -= slice.len() as u64;
                at = at.checked_add(slice.len() as u64).ok_or(unmapped)?;
                // SAFETY: as in `push`.
                slices.push(unsafe { GuestSlice::from_raw(slice.as_non_null(), slice.len()) });
            }
            Ok(())
        })
    }

    fn push_regions(&mut self, addr: Gpa, len: u32) -> Result<(), MemoryError> {
        let unmapped = MemoryError::Unmapped { addr, len: len.into() };
        let (mut at, mut left) = (addr, u64::from(len));
        while left > 0 {
            let region = self.table.region_at(at).ok_or(unmapped)?;
            self.last = region.window();
            let slice = region.slice(at.0 - region.gpa().0, left);
            left -= slice.len() as u64;
            if left > 0 {
                at = at.checked_add(slice.len() as u64).ok_or(unmapped)?;
            }
            // SAFETY: as in `push`.
            let slice = unsafe { GuestSlice::from_raw(slice.as_non_null(), slice.len()) };
            self.slices.push(slice);
        }
        Ok(())
    }

    /// The slices in `range`.
    #[inline]
    pub fn slices(&self, range: Range<usize>) -> &[GuestSlice<'_>] {
        &self.slices[range]
    }

    /// Where the slices in `range` are in guest-physical memory, and how long they are.
    pub fn places(&self, range: Range<usize>) -> impl Iterator<Item = (Gpa, u64)> + '_ {
        self.slices[range].iter().filter_map(|slice| Some((self.table.gpa_of(slice)?, slice.len() as u64)))
    }

    /// The dirty log of the table, if writes are logged.
    pub fn log(&self) -> Option<&Arc<DirtyLog>> {
        self.table.log()
    }

    /// The slices in `range`, whose length is `len` in all, as one buffer.
    #[inline]
    pub fn buf_of_len(&self, range: Range<usize>, len: usize) -> GuestBuf<'_> {
        GuestBuf::with_len(self.slices(range), len)
    }

    /// The slices in `range` as one buffer.
    #[inline]
    pub fn buf(&self, range: Range<usize>) -> GuestBuf<'_> {
        GuestBuf::new(self.slices(range))
    }
}
