//! Which chains are in flight, in memory that outlives the device's process (vhost-user, "Inflight I/O tracking").
//!
//! ```text
//!   front-end's file   │ region of queue 0 │ region of queue 1 │ …          each a multiple of 64 bytes
//!   a region           │ head │ state 0 │ state 1 │ … one for each descriptor of the queue
//!
//!             take                      publish
//!   available ────► recorded, in flight ─────────────► used, and no longer recorded
//!       ▲                │     ▲
//!       └──── rewind ────┘     └── start: what is recorded is taken again, oldest first
//! ```
//!
//! The device may be killed between any two stores. So its stores to a region are releases, which a compiler leaves in
//! their order, and each step of the protocol takes effect by one of them. The next process finds the stores up to
//! some point, and none after it.
//!
//! A queue writes its region and does not read it: what it has to know of it, it keeps in memory of its own. A front-end
//! that changes the region harms the next start only, which copies everything, checks it, and then believes it.
//!
//! The layout is that of libvhost-user (QEMU) and `rte_vhost` (DPDK), which can take over a region from here, and the
//! other way round.

pub(crate) mod packed;
pub(crate) mod split;

#[cfg(test)]
mod tests;

use alloc::vec::Vec;

use ringway_spec::feature;
use thiserror::Error;

use crate::ConfigError;
use crate::area::RingArea;

/// What a region's address and size are multiples of.
const REGION_ALIGN: usize = 64;

/// What a region's address must at least be a multiple of: the size of its largest field.
const FIELD_ALIGN: u64 = 8;

/// The version of a region that is in use. One that is not has 0 there.
const VERSION: u16 = 1;

/// Offset of the region's feature flags, 64 bits, of which there are none.
const FEATURES: usize = 0;
/// Offset of the region's version.
const REGION_VERSION: usize = 8;
/// Offset of the number of states.
const DESC_NUM: usize = 10;

/// Bytes of the region of a queue of `size` descriptors; the format is by the negotiated `features`.
pub const fn region_size(size: u16, features: u64) -> usize {
    let (head, state) = if features & feature::RING_PACKED != 0 {
        (packed::HEAD_SIZE, packed::STATE_SIZE)
    } else {
        (split::HEAD_SIZE, split::STATE_SIZE)
    };
    (head + state * size as usize).next_multiple_of(REGION_ALIGN)
}

/// Why a queue cannot start with a region: it holds what no device has written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum InflightError {
    /// The region is of a version that is not known.
    #[error("version {0} of an in-flight region is not known")]
    Version(u16),
    /// The region is of a queue of another size.
    #[error("in-flight region of {found} descriptors for a queue of {size}")]
    Size {
        /// What the region says.
        found: u16,
        /// The queue's size.
        size: u16,
    },
    /// A new region, and a queue with chains in flight that it does not know of.
    #[error("new in-flight region for a queue with {0} slots in flight")]
    Untracked(u32),
    /// Something in the region refers to a state that is not there.
    #[error("in-flight region of {size} descriptors names descriptor {index}")]
    Index {
        /// The state named.
        index: u16,
        /// The queue's size.
        size: u16,
    },
    /// The used ring is further from where the region has it than one batch can be.
    #[error("in-flight region has used index {recorded}, the ring of {size} has {idx}")]
    Batch {
        /// The used index in the region.
        recorded: u16,
        /// The used index in the ring.
        idx: u16,
        /// The queue's size.
        size: u16,
    },
    /// A packed ring's position is not in the ring.
    #[error("in-flight region has used index {index} and wrap counter {wrap} of a ring of {size}")]
    Position {
        /// The index.
        index: u16,
        /// The wrap counter.
        wrap: u8,
        /// The queue's size.
        size: u16,
    },
    /// A state is in two lists, or in one list twice.
    #[error("descriptor {0} of an in-flight region is in two places")]
    Twice(u16),
    /// A state is neither free nor part of a chain.
    #[error("descriptor {0} of an in-flight region is neither free nor in flight")]
    Lost(u16),
    /// The states of a chain are not the list that they are said to be.
    #[error("chain at descriptor {0} of an in-flight region is malformed")]
    Chain(u16),
}

/// Whether an area can be the region of such a queue.
pub(crate) fn check(area: &RingArea, size: u16, features: u64) -> Result<(), ConfigError> {
    let needed = region_size(size, features);
    if !area.is_aligned(FIELD_ALIGN) {
        return Err(ConfigError::MisalignedArea { align: FIELD_ALIGN });
    }
    if area.len() < needed {
        return Err(ConfigError::SmallArea { needed, len: area.len() });
    }
    Ok(())
}

/// Whether nothing has been recorded in a region yet.
pub fn is_new(area: &RingArea) -> bool {
    area.load_u16_acquire(REGION_VERSION) == 0
}

/// Whether a region is in use; else it is new. It must be of this queue.
fn is_in_use(area: &RingArea, size: u16) -> Result<bool, InflightError> {
    match area.load_u16_acquire(REGION_VERSION) {
        0 => Ok(false),
        VERSION => match area.load_u16(DESC_NUM) {
            found if found == size => Ok(true),
            found => Err(InflightError::Size { found, size }),
        },
        other => Err(InflightError::Version(other)),
    }
}

/// Ends the initialisation of a region: it is in use from here on.
fn begin_use(area: &RingArea, size: u16) {
    area.store_u64_release(FEATURES, 0);
    area.store_u16_release(DESC_NUM, size);
    area.store_u16_release(REGION_VERSION, VERSION);
}

/// The chains that were in flight when the queue started, oldest first. They are taken again before any other.
struct Resubmissions<C> {
    chains: Vec<C>,
    /// The next one to take.
    next: usize,
    /// Chains taken after the last of them, and not given back.
    later: usize,
}

impl<C: Copy> Resubmissions<C> {
    fn new(chains: Vec<C>) -> Self {
        Self { chains, next: 0, later: 0 }
    }

    /// The next chain to take again.
    fn peek(&self) -> Option<C> {
        self.chains.get(self.next).copied()
    }

    /// Of the last `count` chains taken, all given back: how many were not taken again, but from the ring.
    fn give_back(&mut self, count: usize) -> usize {
        let later = count.min(self.later);
        self.later -= later;
        self.next -= count - later;
        later
    }
}
