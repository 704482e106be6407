//! What a driver says of its memory (5.5.6.3).

use ringway_memory::GuestBuf;
use ringway_spec::balloon::{S_NR, STAT_LEN, Stat};
use zerocopy::FromBytes;

/// More statistics than this are not looked at: there are fewer tags.
const STATS_MAX: usize = 64;

/// A driver's statistics, by their tags: [`S_SWAP_IN`](ringway_spec::balloon::S_SWAP_IN) and its siblings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    values: [Option<u64>; S_NR],
}

impl Statistics {
    /// Reads an array of statistics. Tags that are not known are ignored, and the order means nothing.
    pub(super) fn read(from: GuestBuf<'_>) -> Self {
        let mut bytes = [0; STATS_MAX * STAT_LEN];
        let len = from.read(&mut bytes);
        let mut statistics = Self::default();
        for stat in bytes[..len].chunks_exact(STAT_LEN) {
            if let Ok(Stat { tag, val }) = Stat::read_from_bytes(stat)
                && let Some(value) = statistics.values.get_mut(usize::from(tag.get()))
            {
                *value = Some(val.get());
            }
        }
        statistics
    }

    /// What the driver said for this tag, if it did.
    pub fn get(&self, tag: u16) -> Option<u64> {
        self.values.get(usize::from(tag)).copied().flatten()
    }

    /// All that the driver said: tags and values.
    pub fn iter(&self) -> impl Iterator<Item = (u16, u64)> + '_ {
        (0..).zip(&self.values).filter_map(|(tag, value)| Some((tag, (*value)?)))
    }
}
