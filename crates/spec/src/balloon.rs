//! Traditional memory balloon device (5.5).
//!
//! Queue indices: `inflateq` 0, `deflateq` 1, `statsq` 2, `free_page_vq` 3, `reporting_vq` 4; the last three exist with
//! `STATS_VQ`, `FREE_PAGE_HINT` and `PAGE_REPORTING` (5.5.2).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The device id of a memory balloon.
pub const DEVICE_ID: u32 = 5;

/// The driver uses no page of the balloon before the device knows (5.5.3).
pub const F_MUST_TELL_HOST: u64 = 1 << 0;
/// There is a queue for statistics.
pub const F_STATS_VQ: u64 = 1 << 1;
/// The driver may take pages out when it has no others.
pub const F_DEFLATE_ON_OOM: u64 = 1 << 2;
/// There is a queue for hints of free pages.
pub const F_FREE_PAGE_HINT: u64 = 1 << 3;
/// The driver writes `poison_val` to pages right after deflating them.
pub const F_PAGE_POISON: u64 = 1 << 4;
/// There is a queue for reports of free pages.
pub const F_PAGE_REPORTING: u64 = 1 << 5;

/// The driver gives pages.
pub const INFLATE_QUEUE: u16 = 0;
/// The driver takes pages back.
pub const DEFLATE_QUEUE: u16 = 1;
/// The driver's statistics; with `F_STATS_VQ`.
pub const STATS_QUEUE: u16 = 2;
/// Hints of free pages; with `F_FREE_PAGE_HINT`.
pub const FREE_PAGE_QUEUE: u16 = 3;
/// Reports of free pages; with `F_PAGE_REPORTING`.
pub const REPORTING_QUEUE: u16 = 4;

/// Bytes of a page of the balloon, whatever the pages of the driver (5.5.6).
pub const PAGE_SIZE: u64 = 4096;

/// The device configuration (5.5.4).
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// Pages that the device wants in the balloon.
    pub num_pages: U32,
    /// Pages that are there. The driver writes it.
    pub actual: U32,
    /// [`CMD_ID_STOP`], [`CMD_ID_DONE`], or the ID of a round of hints; with `F_FREE_PAGE_HINT`.
    pub free_page_hint_cmd_id: U32,
    /// What the driver fills pages with; with `F_PAGE_POISON`. The driver writes it.
    pub poison_val: U32,
}

/// Where [`Config::num_pages`] is.
pub const CONFIG_NUM_PAGES: usize = core::mem::offset_of!(Config, num_pages);
/// Where [`Config::actual`] is.
pub const CONFIG_ACTUAL: usize = core::mem::offset_of!(Config, actual);
/// Where [`Config::free_page_hint_cmd_id`] is.
pub const CONFIG_FREE_PAGE_HINT_CMD_ID: usize = core::mem::offset_of!(Config, free_page_hint_cmd_id);
/// Where [`Config::poison_val`] is.
pub const CONFIG_POISON_VAL: usize = core::mem::offset_of!(Config, poison_val);

/// No hints are wanted now; pages that were hinted stay unused (5.5.6.5).
pub const CMD_ID_STOP: u32 = 0;
/// Hints are not wanted any more; pages that were hinted may be used.
pub const CMD_ID_DONE: u32 = 1;
/// The smallest ID of a round of hints.
pub const CMD_ID_MIN: u32 = 2;

/// A statistic (5.5.6.3). A buffer of statistics is an array of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Stat {
    /// [`S_SWAP_IN`] and its siblings.
    pub tag: U16,
    /// Its value.
    pub val: U64,
}

/// Size of [`Stat`].
pub const STAT_LEN: usize = size_of::<Stat>();

/// Statistic: bytes swapped in (5.5.6.4).
pub const S_SWAP_IN: u16 = 0;
/// Bytes swapped out.
pub const S_SWAP_OUT: u16 = 1;
/// Major page faults.
pub const S_MAJFLT: u16 = 2;
/// Minor page faults.
pub const S_MINFLT: u16 = 3;
/// Bytes that are not used for anything.
pub const S_MEMFREE: u16 = 4;
/// Bytes of memory in all.
pub const S_MEMTOT: u16 = 5;
/// Bytes that new programs could have, without swapping.
pub const S_AVAIL: u16 = 6;
/// Bytes that could be reclaimed at once, without I/O.
pub const S_CACHES: u16 = 7;
/// Huge pages allocated.
pub const S_HTLB_PGALLOC: u16 = 8;
/// Huge pages that could not be allocated.
pub const S_HTLB_PGFAIL: u16 = 9;
/// How many tags the specification knows, from 0 on.
pub const S_NR: usize = 10;

#[cfg(test)]
mod tests {
    use super::*;

    /// The fields are where the figures of 5.5.4 and 5.5.6.3 have them.
    #[test]
    fn fields_are_in_their_places() {
        assert_eq!((CONFIG_NUM_PAGES, CONFIG_ACTUAL), (0, 4));
        assert_eq!((CONFIG_FREE_PAGE_HINT_CMD_ID, CONFIG_POISON_VAL), (8, 12));
        assert_eq!((size_of::<Config>(), STAT_LEN), (16, 10));
    }
}
