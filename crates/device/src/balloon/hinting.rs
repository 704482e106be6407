//! Rounds of free page hinting (5.5.6.5), by their command IDs.
//!
//! ```text
//!   DONE ──start──► ID ──stop──► STOP ──start──► next ID ──finish──► DONE
//! ```
//!
//! A hint counts while the ID that the driver has said last is the one that the device wants hints for.

use ringway_spec::balloon::{CMD_ID_DONE, CMD_ID_MIN, CMD_ID_STOP};

#[derive(Debug, Clone)]
pub(super) struct Hinting {
    /// What the configuration says.
    pub(super) wanted: u32,
    /// What the driver has said since.
    pub(super) heard: u32,
    /// The ID of the last round.
    last: u32,
    /// The oldest ID that may not be used again: the driver has not said `STOP` since.
    oldest: Option<u32>,
}

impl Hinting {
    pub(super) const fn new() -> Self {
        Self { wanted: CMD_ID_DONE, heard: CMD_ID_STOP, last: CMD_ID_MIN - 1, oldest: None }
    }

    /// A new round begins; false if there is no ID for it.
    pub(super) fn start(&mut self) -> bool {
        let next = self.last.checked_add(1).unwrap_or(CMD_ID_MIN);
        if self.oldest == Some(next) {
            return false;
        }
        self.oldest.get_or_insert(next);
        (self.wanted, self.last) = (next, next);
        // What it said before was not about this round.
        self.heard = CMD_ID_STOP;
        true
    }

    /// The driver says this.
    pub(super) fn hear(&mut self, id: u32) {
        self.heard = id;
        if id == CMD_ID_STOP {
            self.oldest = None;
        }
    }

    /// Whether what the driver hints now is of use.
    pub(super) fn counts(&self) -> bool {
        self.wanted >= CMD_ID_MIN && self.heard == self.wanted
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// [DEV-BALLOON-free-page-hinting-02] When all IDs have been used, none is used again before the driver said `STOP`.
    #[test]
    fn no_id_comes_twice_before_the_driver_stops() {
        let mut hinting = Hinting::new();
        assert!(hinting.start());
        let first = hinting.wanted;
        hinting.last = u32::MAX;
        assert!(!hinting.start());
        hinting.hear(first);
        assert!(!hinting.start());
        hinting.hear(CMD_ID_STOP);
        assert!(hinting.start());
        assert_eq!(hinting.wanted, CMD_ID_MIN);
    }
}
