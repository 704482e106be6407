//! What a worker remembers of the table: most frames come in trains.
//!
//! It holds for a second, so that addresses in use are seen to be, and until the table changes an answer.

use super::PortIndex;
use super::table::Key;

/// Answers kept of each kind; a power of two.
const LINES: usize = 32;

/// A worker's own; see the module.
#[derive(Default)]
pub(crate) struct Cache {
    version: u64,
    second: u64,
    /// The port that an address may send from, and that the table knows it by.
    pub(super) sources: Lines,
    /// The port that an address is behind.
    pub(super) destinations: Lines,
}

impl Cache {
    /// Forgets what no longer holds.
    #[inline]
    pub(super) fn renew(&mut self, version: u64, second: u64) {
        if (self.version, self.second) != (version, second) {
            *self = Self { version, second, ..Self::default() };
        }
    }
}

/// A port for each of a few addresses, the last of those that share a place.
#[derive(Default)]
pub(super) struct Lines([(u64, PortIndex); LINES]);

impl Lines {
    #[inline]
    pub(super) fn get(&self, key: Key) -> Option<PortIndex> {
        let (bits, port) = self.0[Self::place(key)];
        (bits == key.bits()).then_some(port)
    }

    #[inline]
    pub(super) fn set(&mut self, key: Key, port: PortIndex) {
        self.0[Self::place(key)] = (key.bits(), port);
    }

    /// The high bits of a product depend on all bits of the key (Knuth's multiplicative hash).
    #[inline]
    fn place(key: Key) -> usize {
        (key.bits().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> (u64::BITS - LINES.ilog2())) as usize
    }
}
