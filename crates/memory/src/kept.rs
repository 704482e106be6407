//! Buffers kept beyond their burst, while somebody else works on them: the kernel, or another thread.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use crate::{GuestBuf, GuestSlice, MemoryTable, ScatterList};

/// A buffer in a peer's memory, which stays mapped as long as this lives.
///
/// Its list of slices does not move as long as nothing else is kept in it: the kernel may be given it as an array of
/// `iovec`s. Kept from request to request, it allocates nothing and counts no reference.
#[derive(Default)]
pub struct Kept {
    table: Arc<MemoryTable>,
    /// Slices of `table`; the lifetime is that of `self`, see [`Kept::slices`].
    slices: Vec<GuestSlice<'static>>,
    len: usize,
}

impl Kept {
    /// The slices, none of them empty.
    #[inline]
    pub fn slices(&self) -> &[GuestSlice<'_>] {
        &self.slices
    }

    /// The bytes.
    #[inline]
    pub fn buf(&self) -> GuestBuf<'_> {
        GuestBuf::with_len(&self.slices, self.len)
    }

    /// How many bytes there are.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Keeps nothing.
    pub fn clear(&mut self) {
        self.slices.clear();
        self.len = 0;
    }

    /// Takes the first `n` bytes away, or all if there are fewer: what is left of a transfer that went partly.
    pub fn advance(&mut self, n: usize) {
        let mut left = n.min(self.len);
        self.len -= left;
        let whole = self.slices.iter().take_while(|slice| {
            let is_whole = slice.len() <= left;
            left -= if is_whole { slice.len() } else { 0 };
            is_whole
        });
        let whole = whole.count();
        self.slices.drain(..whole);
        if let Some(first) = self.slices.first_mut() {
            *first = first.skip(left);
        }
    }
}

impl ScatterList {
    /// Keeps `len` bytes of the slices in `range`, from `skip` bytes into them on, or as many as there are.
    #[inline]
    pub fn keep(&self, range: Range<usize>, skip: usize, len: usize, kept: &mut Kept) {
        kept.slices.clear();
        let table = self.table();
        if !Arc::ptr_eq(table, &kept.table) {
            kept.table = Arc::clone(table);
        }
        let buf = self.buf(range).advance(skip).truncate(len);
        kept.len = buf.len();
        for piece in buf.pieces() {
            // SAFETY: it is a slice of `table`, which `kept` keeps mapped for longer than the slice.
            kept.slices.push(unsafe { GuestSlice::from_raw(piece.as_non_null(), piece.len()) });
        }
    }
}
