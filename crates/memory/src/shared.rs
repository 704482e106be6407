//! Buffers that a driver lends to a device: owned ranges of shared memory.

use alloc::sync::Arc;
use core::ops::Range;
use core::ptr::NonNull;

use crate::{Backing, Gpa, GuestBuf, GuestSlice, MemoryError, Region};

/// A range of shared memory that has one owner. Who lends it to a device moves it away, and has it back to read and
/// write when the device is done.
///
/// The device may write to it at any time all the same: what is read is a copy, to be checked, and two reads may
/// differ.
pub struct SharedBuf {
    addr: Gpa,
    base: NonNull<u8>,
    len: u32,
    _backing: Arc<dyn Backing>,
}

// SAFETY: the memory is shared with a device anyway; all access is by raw copies.
unsafe impl Send for SharedBuf {}
// SAFETY: as for Send.
unsafe impl Sync for SharedBuf {}

impl SharedBuf {
    /// Divides the bytes of `region` from offset `range.start` to `range.end` into buffers of `len` bytes; what is
    /// left over at the end is in none of them. Each byte is to be in one buffer only: others garble each other.
    ///
    /// # Errors
    /// [`MemoryError::Unmapped`] if the range is not inside the region; [`MemoryError::BadSize`] if `len` is 0.
    pub fn divide(
        region: &Region,
        range: Range<u64>,
        len: u32,
    ) -> Result<impl Iterator<Item = Self> + '_, MemoryError> {
        if range.start > range.end || range.end > region.len() {
            let addr = Gpa(region.gpa().0.saturating_add(range.start));
            return Err(MemoryError::Unmapped { addr, len: range.end.saturating_sub(range.start) });
        }
        if len == 0 {
            return Err(MemoryError::BadSize { addr: region.gpa(), len: 0 });
        }
        let count = (range.end - range.start) / u64::from(len);
        Ok((0..count).map(move |i| {
            let offset = range.start + i * u64::from(len);
            Self {
                // In the region, whose addresses do not overflow.
                addr: Gpa(region.gpa().0 + offset),
                base: region.slice(offset, len.into()).as_non_null(),
                len,
                _backing: region.backing(),
            }
        }))
    }

    /// Where the device finds it.
    pub fn addr(&self) -> Gpa {
        self.addr
    }

    /// Length in bytes, never 0.
    #[allow(clippy::len_without_is_empty, reason = "a buffer is never empty")]
    pub fn len(&self) -> u32 {
        self.len
    }

    /// The buffer as a slice.
    pub fn slice(&self) -> GuestSlice<'_> {
        // SAFETY: the range lies inside the region, and `self` keeps its backing alive for the slice's lifetime.
        unsafe { GuestSlice::from_raw(self.base, self.len as usize) }
    }

    /// The `len` bytes of it at `offset`, if it has them.
    #[inline]
    pub fn part(&self, offset: u32, len: u32) -> Option<GuestSlice<'_>> {
        if offset > self.len || len > self.len - offset {
            return None;
        }
        // SAFETY: the offset is inside the buffer, or its end.
        let start = unsafe { self.base.add(offset as usize) };
        // SAFETY: the range lies inside the buffer, and `self` keeps its backing alive for the slice's lifetime.
        Some(unsafe { GuestSlice::from_raw(start, len as usize) })
    }

    /// Copies `bytes` to the buffer's start; returns how many, the smaller of the two lengths.
    pub fn write(&mut self, bytes: &[u8]) -> usize {
        GuestBuf::new(&[self.slice()]).write(bytes)
    }

    /// Copies the buffer's start to `to`; returns how many bytes, the smaller of the two lengths.
    pub fn read(&self, to: &mut [u8]) -> usize {
        GuestBuf::new(&[self.slice()]).read(to)
    }
}
