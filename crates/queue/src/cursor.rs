//! A position in a packed ring: an index and a wrap counter, moved together (2.8.1).
//!
//! ```text
//!            lap 1 (wrap 1)          lap 2 (wrap 0)
//!   slots    0   1   2   3   4  ║    0   1   2   3   4  ║
//!                    ▲ used          ▲ available            available - used = 3 descriptors
//! ```
//!
//! The wrap counter is the parity of the lap: a slot's AVAIL and USED flags are compared with it. So positions are
//! told apart modulo two laps, which is enough for two cursors at most one lap apart.

use core::fmt;

use ringway_spec::packed::{DESC_F_AVAIL, DESC_F_USED};

/// The bit of the wrap counter.
const WRAP: u16 = 1 << 15;

/// An index into a packed ring with its wrap counter. All methods take the ring's size, 1 to 32768.
///
/// It is one word, as [`Cursor::to_off_wrap`] has it, for it is read again soon after it was written: two fields would
/// be written one by one and read together, and a processor waits with that until both writes are in the cache.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cursor(u32);

impl Cursor {
    /// Where both sides begin (2.8.1).
    pub const START: Self = Self::new(0, true);

    /// The cursor at `index`, less than the ring's size, with this wrap counter.
    #[inline]
    pub const fn new(index: u16, wrap: bool) -> Self {
        Self::from_off_wrap(index | if wrap { WRAP } else { 0 })
    }

    /// The slot, less than the ring's size.
    #[inline]
    pub const fn index(self) -> u16 {
        self.to_off_wrap() & !WRAP
    }

    /// The wrap counter; it starts as 1.
    #[inline]
    pub const fn wrap(self) -> bool {
        self.to_off_wrap() & WRAP != 0
    }

    /// The cursor in 16 bits, as in event suppression, notification data and vring bases: the index, and the wrap
    /// counter in the highest bit.
    #[inline]
    pub const fn to_off_wrap(self) -> u16 {
        self.0 as u16
    }

    /// The reverse of [`Cursor::to_off_wrap`]. The index may be too large for the ring.
    #[inline]
    pub const fn from_off_wrap(value: u16) -> Self {
        Self(value as u32)
    }

    /// The cursor `n` slots further, `n` at most `size`.
    #[inline]
    #[must_use]
    pub const fn advance(self, n: u16, size: u16) -> Self {
        let (n, size) = (n as u32, size as u32);
        if self.index() as u32 + n < size {
            Self(self.0 + n)
        } else {
            Self((self.0 + n - size) ^ WRAP as u32)
        }
    }

    /// The cursor `n` slots back, `n` at most `size`.
    #[inline]
    #[must_use]
    pub const fn retreat(self, n: u16, size: u16) -> Self {
        let (n, size) = (n as u32, size as u32);
        if self.index() as u32 >= n { Self(self.0 - n) } else { Self((self.0 + size - n) ^ WRAP as u32) }
    }

    /// How many slots this cursor is ahead of `earlier`, modulo two laps.
    #[inline]
    pub const fn distance(self, earlier: Self, size: u16) -> u32 {
        let laps = 2 * size as u32;
        let ahead = self.index() as u32 + laps - earlier.index() as u32;
        (ahead + if self.wrap() == earlier.wrap() { 0 } else { size as u32 }) % laps
    }

    /// AVAIL and USED of a descriptor made available here.
    #[inline]
    pub const fn available_flags(self) -> u16 {
        if self.wrap() { DESC_F_AVAIL } else { DESC_F_USED }
    }

    /// AVAIL and USED of a descriptor used here.
    #[inline]
    pub const fn used_flags(self) -> u16 {
        if self.wrap() { DESC_F_AVAIL | DESC_F_USED } else { 0 }
    }

    /// Whether `flags` in this slot say that the driver made it available.
    #[inline]
    pub const fn is_available(self, flags: u16) -> bool {
        flags & (DESC_F_AVAIL | DESC_F_USED) == self.available_flags()
    }

    /// Whether `flags` in this slot say that the device used it.
    #[inline]
    pub const fn is_used(self, flags: u16) -> bool {
        flags & (DESC_F_AVAIL | DESC_F_USED) == self.used_flags()
    }
}

impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor").field("index", &self.index()).field("wrap", &self.wrap()).finish()
    }
}

#[cfg(test)]
#[path = "cursor_tests.rs"]
mod tests;
