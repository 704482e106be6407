//! Event suppression arithmetic (2.7.7.2, 2.7.10, 2.8.10): pure, and the same for both directions.

use ringway_spec::packed::{EVENT_F_DESC, EVENT_F_DISABLE, EVENT_F_ENABLE, EVENT_F_MASK};

use crate::cursor::Cursor;

/// Whether moving a split ring's index from `old` to `new` passed `event`, the position at which the peer asked to
/// be notified: whether `event` lies in `old..new`, modulo 2¹⁶.
///
/// Equality with `new - 1` would miss an event inside a burst.
#[inline]
pub const fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

/// When the peer of a packed ring wants to be notified: an event suppression structure (2.8.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Suppression {
    /// At every chain.
    Enable,
    /// At none.
    Disable,
    /// At the descriptor in this slot.
    At(Cursor),
}

impl Suppression {
    /// The structure as the little-endian word it is in memory.
    pub const fn to_word(self) -> u32 {
        let (off_wrap, flags) = match self {
            Self::Enable => (0, EVENT_F_ENABLE),
            Self::Disable => (0, EVENT_F_DISABLE),
            Self::At(cursor) => (cursor.to_off_wrap(), EVENT_F_DESC),
        };
        off_wrap as u32 | (flags as u32) << 16
    }

    /// What a peer wrote. Flags that are reserved, or need `EVENT_IDX` that was not negotiated, ask for every
    /// notification: one too many does no harm.
    pub const fn from_word(word: u32, event_idx: bool) -> Self {
        match (word >> 16) as u16 & EVENT_F_MASK {
            EVENT_F_DISABLE => Self::Disable,
            EVENT_F_DESC if event_idx => Self::At(Cursor::from_off_wrap(word as u16)),
            _ => Self::Enable,
        }
    }

    /// Whether moving from `old` to `new`, at most `size` slots, calls for a notification. A position passed
    /// counts, not only one hit: it may lie inside a chain or a burst.
    #[inline]
    pub const fn wants(self, old: Cursor, new: Cursor, size: u16) -> bool {
        match self {
            Self::Enable => true,
            Self::Disable => false,
            Self::At(event) => event.distance(old, size) < new.distance(old, size),
        }
    }
}

#[cfg(test)]
#[path = "event_tests.rs"]
mod tests;
