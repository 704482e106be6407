//! Pages by their numbers, as an inflate or a deflate request names them (5.5.6).

use ringway_memory::{Gpa, MemoryTable};
use ringway_spec::balloon::PAGE_SIZE;

/// Pages of the guest that lie together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRange {
    /// Where the first begins: a multiple of 4096.
    pub addr: Gpa,
    /// Their length in bytes: a multiple of 4096.
    pub len: u64,
}

/// Passes on the pages of these numbers, those together that lie together, each once. Returns how many are not in memory.
pub(super) fn ranges(pfns: &mut [u32], memory: &MemoryTable, each: &mut dyn FnMut(PageRange)) -> u64 {
    let mut absent = 0;
    let mut range: Option<PageRange> = None;
    pfns.sort_unstable();
    for pfn in pfns {
        let addr = Gpa(u64::from(*pfn) * PAGE_SIZE);
        match &mut range {
            _ if !is_in(memory, addr) => absent += 1,
            Some(PageRange { addr: first, len }) if first.0 + *len == addr.0 => *len += PAGE_SIZE,
            Some(PageRange { addr: first, len }) if first.0 + *len > addr.0 => {}
            _ => {
                if let Some(range) = range.replace(PageRange { addr, len: PAGE_SIZE }) {
                    each(range);
                }
            }
        }
    }
    if let Some(range) = range {
        each(range);
    }
    absent
}

/// Whether there is all of the page at `addr`.
fn is_in(memory: &MemoryTable, addr: Gpa) -> bool {
    memory.slices(addr, PAGE_SIZE).map(|slice| slice.len() as u64).sum::<u64>() == PAGE_SIZE
}
