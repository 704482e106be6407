//! When a side of a packed ring wants to be notified: the event suppression structure that it writes (2.8.10).

use crate::Cursor;
use crate::area::RingArea;
use crate::event::Suppression;

/// A side's own event suppression. It is written only when it changes: the peer reads it at every publication.
pub(crate) struct Wish {
    area: RingArea,
    /// As last written.
    written: Suppression,
}

impl Wish {
    /// Asks for every notification, as a new ring does.
    pub(crate) fn new(area: RingArea) -> Self {
        let written = Suppression::Enable;
        area.store_u32(0, written.to_word());
        Self { area, written }
    }

    /// Asks for a notification at slot `next`, or without `EVENT_IDX` for every one.
    /// Returns whether the area was written to.
    pub(crate) fn arm(&mut self, next: Cursor, event_idx: bool) -> bool {
        self.set(if event_idx { Suppression::At(next) } else { Suppression::Enable })
    }

    /// Asks for none. Returns whether the area was written to.
    pub(crate) fn suppress(&mut self) -> bool {
        self.set(Suppression::Disable)
    }

    #[inline]
    fn set(&mut self, wish: Suppression) -> bool {
        let is_new = core::mem::replace(&mut self.written, wish) != wish;
        if is_new {
            self.area.store_u32(0, wish.to_word());
        }
        is_new
    }
}
