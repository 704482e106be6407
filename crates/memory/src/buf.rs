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

    /// Asks the processor to fetch the slice's first two cache lines, to read them: a transport's header ends a line as
    /// often as not, and the frame's own begins the next.
    #[inline]
    pub fn prefetch(&self) {
        crate::area::prefetch(self.base);
        if self.len > crate::area::CACHE_LINE {
            // SAFETY: inside the slice.
            crate::area::prefetch(unsafe { self.base.add(crate::area::CACHE_LINE) });
        }
    }

    /// Asks the processor to fetch the slice's first two cache lines, to write to them: a small frame behind its
    /// header.
    #[inline]
    pub fn prefetch_to_write(&self) {
        crate::area::prefetch_to_write(self.base);
        if self.len > crate::area::CACHE_LINE {
            // SAFETY: inside the slice.
            crate::area::prefetch_to_write(unsafe { self.base.add(crate::area::CACHE_LINE) });
        }
    }

    /// The slice without its first `n` bytes, `n` at most its length.
    #[inline]
    pub(crate) fn skip(&self, n: usize) -> Self {
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

    /// The first `len` bytes of `slices`, which have as many.
    #[inline]
    pub(crate) fn with_len(slices: &'a [GuestSlice<'a>], len: usize) -> Self {
        debug_assert!(len <= slices.iter().map(|s| s.len).sum());
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

    /// The first `n` bytes as one range, if they are: nearly all headers and most frames.
    #[inline]
    fn contiguous(&self, n: usize) -> Option<NonNull<u8>> {
        let first = self.slices.first()?;
        // `skip` is at most the first slice's length, but for a buffer without slices.
        if n > self.len || n > first.len.wrapping_sub(self.skip) || self.skip > first.len {
            return None;
        }
        // SAFETY: `skip <= first.len`, so the start stays inside the slice or one past it.
        Some(unsafe { first.base.add(self.skip) })
    }

    /// Copies the buffer's first `N` bytes, if it has as many. Cheaper than [`GuestBuf::read`].
    #[inline]
    pub fn read_array<const N: usize>(self) -> Option<[u8; N]> {
        if let Some(start) = self.contiguous(N) {
            // SAFETY: `N` bytes from `start` on are valid to read; bytes need no alignment.
            return Some(unsafe { start.cast::<[u8; N]>().read() });
        }
        let mut bytes = [0; N];
        (self.read(&mut bytes) == N).then_some(bytes)
    }

    /// Copies `bytes` to the buffer's start, if it has room. Cheaper than [`GuestBuf::write`].
    #[inline]
    pub fn write_array<const N: usize>(self, bytes: [u8; N]) -> bool {
        if let Some(start) = self.contiguous(N) {
            // SAFETY: `N` bytes from `start` on are valid to write; bytes need no alignment.
            unsafe { start.cast::<[u8; N]>().write(bytes) };
            return true;
        }
        self.len >= N && self.write(&bytes) == N
    }

    /// Copies the buffer's start to `to`; returns how many bytes, the smaller of the two lengths.
    #[inline]
    pub fn read(self, to: &mut [u8]) -> usize {
        self.copy_to(GuestBuf::new(&[GuestSlice::from_mut(to)]))
    }

    /// Copies `from` to the buffer's start; returns how many bytes, the smaller of the two lengths.
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
        let n = self.len.min(to.len);
        match (self.contiguous(n), to.contiguous(n)) {
            (Some(source), Some(target)) => {
                // SAFETY: `n` bytes are valid on both sides.
                unsafe { copy(source.as_ptr(), target.as_ptr(), n) };
                n
            }
            _ => self.copy_pieces(to),
        }
    }

    /// Copies `head` and then all of `from` to the buffer's start, if there is room for both and all is in one piece each:
    /// nearly all frames. Else nothing is copied.
    #[inline]
    #[must_use]
    pub fn write_behind<const N: usize>(self, head: [u8; N], from: GuestBuf<'_>) -> bool {
        let (Some(source), Some(target)) = (from.contiguous(from.len), self.contiguous(N + from.len)) else {
            return false;
        };
        // SAFETY: `N` bytes from `target` on are valid to write; bytes need no alignment.
        unsafe { target.cast::<[u8; N]>().write(head) };
        // SAFETY: `from.len` bytes are valid on both sides, behind the head.
        unsafe { copy(source.as_ptr(), target.as_ptr().wrapping_add(N), from.len) };
        true
    }

    fn copy_pieces(self, to: GuestBuf<'_>) -> usize {
        let mut sources = self.pieces();
        let mut targets = to.pieces();
        let (Some(mut source), Some(mut target)) = (sources.next(), targets.next()) else { return 0 };
        let mut done = 0;
        loop {
            let n = source.len.min(target.len);
            // SAFETY: `n` bytes are valid on both sides.
            unsafe { copy(source.base.as_ptr(), target.base.as_ptr(), n) };
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

/// Copies `n` bytes. Ranges that overlap (a guest that sends from where it receives) are garbled at worst.
/// Small frames are copied here, by pairs of 32 bytes that may overlap each other, without a call.
///
/// # Safety
/// `n` bytes must be valid to read at `source` and to write at `target`.
#[inline]
unsafe fn copy(source: *const u8, target: *mut u8, n: usize) {
    const HALF: usize = 32;
    match n {
        HALF..=64 => {
            // SAFETY: the caller's; two halves are in range since `n >= HALF`.
            unsafe { copy_halves(source, target, n - HALF) }
        }
        65..=128 => {
            // SAFETY: the caller's; `n >= 2 * HALF`.
            unsafe { copy_halves(source, target, HALF) }
            let last = n - 2 * HALF;
            // SAFETY: as before.
            unsafe { copy_halves(source.wrapping_add(last), target.wrapping_add(last), HALF) }
        }
        _ => {
            // SAFETY: the caller's.
            unsafe { ptr::copy(source, target, n) }
        }
    }
}

/// Copies the 32 bytes at offset 0 and the 32 bytes at `second`.
///
/// # Safety
/// Both must be valid to read from `source` on and to write from `target` on.
#[inline]
unsafe fn copy_halves(source: *const u8, target: *mut u8, second: usize) {
    type Block = [u8; 16];
    let read = |at: usize| {
        // SAFETY: the caller's; bytes need no alignment.
        unsafe { source.wrapping_add(at).cast::<Block>().read() }
    };
    // Four values and no array, so that they stay in registers.
    let (a, b, c, d) = (read(0), read(16), read(second), read(second + 16));
    let write = |at: usize, block: Block| {
        // SAFETY: as for `read`.
        unsafe { target.wrapping_add(at).cast::<Block>().write(block) }
    };
    write(0, a);
    write(16, b);
    write(second, c);
    write(second + 16, d);
}
