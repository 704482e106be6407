//! The device's half of a virtqueue, whatever its format.

use alloc::sync::Arc;

use ringway_memory::{MemoryError, MemoryTable, RingArea};
use ringway_spec::{feature, split as layout};
use thiserror::Error;

use crate::split;
use crate::{Burst, Chain};

/// The three areas of a queue, resolved.
pub struct Areas {
    /// Split: the descriptor table.
    pub descriptor: RingArea,
    /// Split: the available ring.
    pub driver: RingArea,
    /// Split: the used ring.
    pub device: RingArea,
}

impl Areas {
    /// Resolves the areas of a queue of `size` descriptors by their addresses in the front-end's process.
    ///
    /// # Errors
    /// [`MemoryError`] where an area is in no region or is misaligned (2.7).
    pub fn resolve_split(
        memory: &MemoryTable,
        size: u16,
        descriptor: ringway_memory::FrontendVa,
        driver: ringway_memory::FrontendVa,
        device: ringway_memory::FrontendVa,
    ) -> Result<Self, MemoryError> {
        Ok(Self {
            descriptor: memory.area(descriptor, layout::desc_area_size(size), layout::DESC_ALIGN)?,
            driver: memory.area(driver, layout::avail_area_size(size), layout::AVAIL_ALIGN)?,
            device: memory.area(device, layout::used_area_size(size), layout::USED_ALIGN)?,
        })
    }
}

/// Where a queue stands between a stop and the next start (the vring base of vhost-user).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ResumeState {
    /// The next entry of the available ring that the device will take.
    pub next_avail: u16,
}

/// All that a queue needs to start.
pub struct QueueConfig {
    /// Number of descriptors: a power of two, at most 32768.
    pub size: u16,
    /// The negotiated features.
    pub features: u64,
    /// Where the rings are.
    pub areas: Areas,
    /// Where the buffers are.
    pub memory: Arc<MemoryTable>,
    /// Where to go on.
    pub resume: ResumeState,
}

/// Why a queue cannot start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// A split queue's size is a power of two, 1 to 32768 (2.7).
    #[error("queue size {0} is not a power of two from 1 to 32768")]
    BadSize(u16),
    /// Packed queues were negotiated.
    #[error("packed queues are not supported")]
    Packed,
}

/// What the driver did wrong. Each stops the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum QueueError {
    /// The available index ran further ahead than the queue is long.
    #[error("available index {idx} is more than {size} entries past {next}")]
    IndexJump {
        /// What the driver wrote.
        idx: u16,
        /// The next entry to take.
        next: u16,
        /// The queue's size.
        size: u16,
    },
    /// A chain begins at, or goes on to, a descriptor that is not in the table.
    #[error("descriptor {index} is outside of a table of {size}")]
    BadIndex {
        /// The index named.
        index: u16,
        /// Number of descriptors in the table.
        size: u16,
    },
    /// A chain has more descriptors than its table, so it loops; or more than the device allows.
    #[error("chain at descriptor {head} loops or has more than {limit} descriptors")]
    TooLong {
        /// The chain's first descriptor.
        head: u16,
        /// The most it may have.
        limit: u16,
    },
    /// The chain's bytes do not fit in 32 bits.
    #[error("chain at descriptor {head} has 4 GiB or more")]
    TooManyBytes {
        /// The chain's first descriptor.
        head: u16,
    },
    /// Device-readable buffers come before device-writable ones (2.7.4.2).
    #[error("chain at descriptor {head} has a device-readable buffer after a device-writable one")]
    ReadableAfterWritable {
        /// The chain's first descriptor.
        head: u16,
    },
    /// An indirect descriptor that may not be: not negotiated, inside an indirect table, or with a successor.
    #[error("chain at descriptor {head} has an indirect descriptor where none may be")]
    BadIndirect {
        /// The chain's first descriptor.
        head: u16,
    },
    /// An indirect table is a multiple of 16 bytes, neither empty nor longer than a chain may be.
    #[error("chain at descriptor {head} has an indirect table of {len} bytes")]
    BadIndirectLen {
        /// The chain's first descriptor.
        head: u16,
        /// The table's length in bytes.
        len: u32,
    },
    /// A buffer or a table is outside of the guest's memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// The ring, by its format.
enum Ring {
    Split(split::DeviceRing),
}

/// A running virtqueue, seen from the device.
pub struct DeviceQueue {
    ring: Ring,
    memory: Arc<MemoryTable>,
    /// Set by the first error; no chain is taken after.
    failed: Option<QueueError>,
    /// The error has been returned.
    is_told: bool,
    /// Taken, and neither completed nor given back.
    in_flight: u16,
}

impl DeviceQueue {
    /// Starts a queue. The used index is found again in the ring.
    ///
    /// # Errors
    /// [`ConfigError`]; nothing of the ring has been touched then.
    pub fn start(config: QueueConfig) -> Result<Self, ConfigError> {
        if config.features & feature::RING_PACKED != 0 {
            return Err(ConfigError::Packed);
        }
        if !config.size.is_power_of_two() || config.size > layout::MAX_SIZE {
            return Err(ConfigError::BadSize(config.size));
        }
        let ring = split::DeviceRing::new(config.size, config.features, config.areas, config.resume);
        Ok(Self {
            ring: Ring::Split(ring),
            memory: config.memory,
            failed: None,
            is_told: false,
            in_flight: 0,
        })
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        let Ring::Split(ring) = &self.ring;
        ring.size()
    }

    /// Whether the memory of the queue is still the peer's; see [`MemoryTable::is_intact`].
    pub fn is_memory_intact(&self) -> bool {
        self.memory.is_intact()
    }

    /// Takes up to `max` chains and appends them to `burst`, which holds chains of this queue only. Returns how
    /// many, 0 if none is available. No more are in flight than the queue has descriptors.
    ///
    /// # Errors
    /// [`QueueError`] for a malformed chain, once the chains before it were taken; from then on, always.
    #[inline]
    pub fn take(&mut self, burst: &mut Burst, max: usize) -> Result<usize, QueueError> {
        if let Some(error) = self.failed {
            self.is_told = true;
            return Err(error);
        }
        // A driver may make more available before it sees anything used, but not have it taken.
        let max = max.min(usize::from(self.size() - self.in_flight));
        let before = burst.len();
        burst.begin(&self.memory);
        let Ring::Split(ring) = &mut self.ring;
        let result = ring.take(burst, max);
        let taken = burst.len() - before;
        self.in_flight += taken as u16;
        if let Err(error) = result {
            self.failed = Some(error);
            self.is_told = taken == 0;
            if self.is_told {
                return Err(error);
            }
        }
        Ok(taken)
    }

    /// Hands a chain back to the driver with `written` bytes of its device-writable part filled, counted from
    /// its start. The driver sees it after [`DeviceQueue::publish`].
    #[inline]
    #[allow(clippy::needless_pass_by_value, reason = "completing a chain uses it up")]
    pub fn complete(&mut self, chain: Chain<'_>, written: u32) {
        debug_assert!(written <= chain.writable_len(), "used.len counts bytes the device wrote");
        self.in_flight -= 1;
        let Ring::Split(ring) = &mut self.ring;
        ring.complete(chain.record.head, written);
    }

    /// Gives back the chains that wait in `burst`, as if they had not been taken. They are the last taken of
    /// this queue.
    pub fn rewind(&mut self, burst: &mut Burst) {
        let count = burst.len() as u16;
        self.in_flight -= count;
        let Ring::Split(ring) = &mut self.ring;
        ring.rewind(count);
        burst.clear();
    }

    /// Makes all completed chains visible to the driver at once. Returns whether the driver asked to be called.
    #[must_use = "the driver may wait for a call"]
    #[inline]
    pub fn publish(&mut self) -> bool {
        let Ring::Split(ring) = &mut self.ring;
        ring.publish()
    }

    /// Whether [`DeviceQueue::take`] has something to give: a chain, or an error not told yet. Looks at the ring,
    /// changes nothing.
    #[inline]
    pub fn has_available(&self) -> bool {
        let Ring::Split(ring) = &self.ring;
        match self.failed {
            None => ring.has_available(),
            Some(_) => !self.is_told,
        }
    }

    /// Asks the driver for a kick at the next chain it makes available. Returns whether one is available
    /// already; the caller sleeps only if not.
    #[must_use = "a chain made available before arming comes without a kick"]
    pub fn arm(&mut self) -> bool {
        let Ring::Split(ring) = &mut self.ring;
        ring.arm();
        self.has_available()
    }

    /// Tells the driver that kicks are not needed: the device polls.
    pub fn suppress(&mut self) {
        let Ring::Split(ring) = &mut self.ring;
        ring.suppress();
    }

    /// Stops the queue; nothing of the ring is touched after. Chains in flight must have been completed or
    /// given back: others are lost to the driver.
    #[must_use = "the state is what the queue resumes from"]
    pub fn stop(mut self) -> ResumeState {
        debug_assert_eq!(self.in_flight, 0, "chains are drained before a stop");
        // Whether to call is of no more interest: the front-end looks at the ring itself.
        let _ = self.publish();
        let Ring::Split(ring) = &self.ring;
        ring.resume_state()
    }
}
