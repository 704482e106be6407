//! Buffers in a peer's memory: slices, and a window on a list of slices.

use core::marker::PhantomData;
use core::ptr::{self, NonNull};

/// A contiguous range of memory that a peer can write. Laid out as an `iovec`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct GuestSlice<'a> {
    base: NonNull<u8>,
    len: usize,
    memory: PhantomData<&'a ()>,
}

// SAFETY: the memory is shared with another process anyway; all access is by raw copies.
unsafe impl Send for GuestSlice<'_> {}
// SAFETY: as for Send.
unsafe impl Sync for GuestSlice<'_> {}

impl<'a> GuestSlice<'a> {
    /// A slice of `len` bytes at `base`.
    ///
    /// # Safety
    /// The range must be valid for reads and writes for `'a`, with no Rust reference into it.
    pub(crate) unsafe fn from_raw(base: NonNull<u8>, len: usize) -> Self {
        Self { base, len, memory: PhantomData }
    }

    /// Memory of our own, lent for `'a`, to stand where a guest's buffer can.
    pub fn from_mut(bytes: &'a mut [u8]) -> Self {
        Self { base: NonNull::from(&mut *bytes).cast(), len: bytes.len(), memory: PhantomData }
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Where it is mapped here; for the kernel, not to be dereferenced.
    pub fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    pub(crate) fn as_non_null(&self) -> NonNull<u8> {
        self.base
    }

    /// Asks the processor to fetch the slice's first cache line.
    #[inline]
    pub fn prefetch(&self) {
        crate::area::prefetch(self.base);
    }

    /// The slice without its first `n` bytes, `n` at most its length.
    #[inline]
    fn skip(&self, n: usize) -> Self {
        debug_assert!(n <= self.len);
        // SAFETY: `n <= len`, so the start stays inside the range or one past it.
        let base = unsafe { self.base.add(n) };
        Self { base, len: self.len - n, memory: PhantomData }
    }
}

/// A buffer spread over slices: `len` bytes, from `skip` bytes into the first slice on.
#[derive(Clone, Copy)]
pub struct GuestBuf<'a> {
    slices: &'a [GuestSlice<'a>],
    skip: usize,
    len: usize,
}

impl<'a> GuestBuf<'a> {
    /// All the bytes of `slices`.
    #[inline]
    pub fn new(slices: &'a [GuestSlice<'a>]) -> Self {
        let len = slices.iter().map(|s| s.len).sum();
        Self { slices, skip: 0, len }
    }

    /// Length in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no byte.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The buffer without its first `n` bytes; empty if it has no more than these.
    #[inline]
    #[must_use]
    pub fn advance(mut self, n: usize) -> Self {
        let n = n.min(self.len);
        self.len -= n;
        self.skip += n;
        while let Some(first) = self.slices.first()
            && self.skip >= first.len
        {
            self.skip -= first.len;
            self.slices = &self.slices[1..];
        }
        self
    }

    /// The buffer's first `n` bytes, or all if it has fewer.
    #[inline]
    #[must_use]
    pub fn truncate(mut self, n: usize) -> Self {
        self.len = self.len.min(n);
        self
    }

    /// The buffer's contiguous pieces, none of them empty.
    #[inline]
    pub fn pieces(self) -> impl Iterator<Item = GuestSlice<'a>> {
        let mut skip = self.skip;
        let mut left = self.len;
        self.slices
            .iter()
            .map_while(move |slice| {
                if left == 0 {
                    return None;
                }
                let mut piece = slice.skip(skip.min(slice.len));
                skip = skip.saturating_sub(slice.len);
                piece.len = piece.len.min(left);
                left -= piece.len;
                Some(piece)
            })
            .filter(|piece| !piece.is_empty())
    }

    /// Copies the buffer's start to `to`; returns how many bytes, the smaller of the two lengths.
    #[inline]
    pub fn read(self, to: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in self.pieces() {
            let n = piece.len.min(to.len() - done);
            // SAFETY: `done + n <= to.len()`.
            let dst = unsafe { to.as_mut_ptr().add(done) };
            // SAFETY: `n` bytes are valid on both sides; `to` is ours alone, so they do not overlap (memory of
            // our own in a `GuestSlice` is borrowed mutably). A racing peer garbles bytes, not us.
            unsafe { ptr::copy_nonoverlapping(piece.base.as_ptr(), dst, n) };
            done += n;
            if done == to.len() {
                break;
            }
        }
        done
    }

    /// Copies `from` to the buffer's start; returns how many bytes, the smaller of the two lengths.
    #[inline]
    pub fn write(self, from: &[u8]) -> usize {
        let mut done = 0;
        for piece in self.pieces() {
            let n = piece.len.min(from.len() - done);
            // SAFETY: `done + n <= from.len()`.
            let src = unsafe { from.as_ptr().add(done) };
            // SAFETY: `n` bytes are valid on both sides; `from` is a Rust slice, so no `GuestSlice` covers it.
            unsafe { ptr::copy_nonoverlapping(src, piece.base.as_ptr(), n) };
            done += n;
            if done == from.len() {
                break;
            }
        }
        done
    }

    /// Copies the buffer to the start of `to`, from one guest's memory to another's; returns how many bytes,
    /// the smaller of the two lengths.
    #[inline]
    pub fn copy_to(self, to: GuestBuf<'_>) -> usize {
        let mut sources = self.pieces();
        let mut targets = to.pieces();
        let (Some(mut source), Some(mut target)) = (sources.next(), targets.next()) else { return 0 };
        let mut done = 0;
        loop {
            let n = source.len.min(target.len);
            // SAFETY: `n` bytes are valid on both sides; they may overlap (a guest may send from where it
            // receives), which `copy` allows.
            unsafe { ptr::copy(source.base.as_ptr(), target.base.as_ptr(), n) };
            done += n;
            source = source.skip(n);
            target = target.skip(n);
            if source.is_empty() {
                let Some(next) = sources.next() else { return done };
                source = next;
            }
            if target.is_empty() {
                let Some(next) = targets.next() else { return done };
                target = next;
            }
        }
    }
}
