//! The device's half of a virtqueue, whatever its format.

mod burst;
pub mod inflight;
mod iommu;
mod log;
mod packed;
mod split;

pub use burst::{Burst, Chain, InFlight, Taken};
pub use iommu::Missing;

use alloc::boxed::Box;
use alloc::sync::Arc;

use ringway_memory::{DirtyLog, Gpa, MemoryError, MemoryTable};
use ringway_spec::split::IDX;
use thiserror::Error;

use crate::area::RingArea;
use crate::{Areas, ResumeState};

use inflight::InflightError;
use iommu::Iommu;
use log::AreaLog;

/// All that a queue needs to start.
pub struct QueueConfig {
    /// Number of descriptors, at most 32768; of a split queue a power of two.
    pub size: u16,
    /// The negotiated features.
    pub features: u64,
    /// Where the rings are.
    pub areas: Areas,
    /// Where the buffers are. If it has a dirty log, what the device writes to them is marked there.
    pub memory: Arc<MemoryTable>,
    /// Where the device area begins in that log, if what is written to it is marked: a ring's `log_guest_addr`.
    pub used_log: Option<Gpa>,
    /// Where to go on.
    pub resume: ResumeState,
    /// The queue's part of the front-end's memory for chains in flight; `None`: they are recorded nowhere. One that
    /// was in use says where to go on, in place of `resume`.
    pub inflight: Option<RingArea>,
}

impl QueueConfig {
    /// Whether a queue can start like this, as far as that can be told without looking into its areas.
    ///
    /// # Errors
    /// As of [`DeviceQueue::start`], but for what the queue's part of the memory for chains in flight holds.
    pub fn check(&self) -> Result<(), ConfigError> {
        let Self { size, features, areas, resume, inflight, .. } = self;
        areas.check(*size, *features)?;
        resume.check(*size, *features)?;
        inflight.as_ref().map_or(Ok(()), |area| inflight::check(area, *size, *features))
    }
}

/// Why a queue cannot start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// A split queue's size is a power of two, 1 to 32768 (2.7).
    #[error("split queue size {0} is not a power of two from 1 to 32768")]
    BadSplitSize(u16),
    /// A packed queue's size is 1 to 32768 (2.8.10.1).
    #[error("packed queue size {0} is not from 1 to 32768")]
    BadPackedSize(u16),
    /// An area is not where its alignment allows (2.7, 2.8).
    #[error("an area of the queue is not at a multiple of {align}")]
    MisalignedArea {
        /// What its address must be a multiple of.
        align: u64,
    },
    /// An area is too small for the queue's size.
    #[error("an area of the queue has {len} bytes, it needs {needed}")]
    SmallArea {
        /// Bytes that the queue's size needs.
        needed: usize,
        /// Bytes of the area.
        len: usize,
    },
    /// `ORDER_PLATFORM` was negotiated: a driver's barriers here are those between processors.
    #[error("the queue has no barriers for ORDER_PLATFORM")]
    OrderPlatform,
    /// The indirect tables would go past the end of the address space.
    #[error("indirect tables at {0} go past the end of the address space")]
    BadTables(Gpa),
    /// The state is of the other format, or cannot be of a queue of this size.
    #[error("a queue of {size} cannot go on at {resume:?}")]
    BadResume {
        /// The queue's size.
        size: u16,
        /// Where it was to go on.
        resume: ResumeState,
    },
    /// The memory for chains in flight is not this queue's.
    #[error(transparent)]
    Inflight(#[from] InflightError),
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
    /// An indirect descriptor that may not be: not negotiated or with a successor; in a split ring inside an
    /// indirect table; in a packed ring with a predecessor.
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
    /// A packed chain goes on at a descriptor that was not made available.
    #[error("chain at descriptor {head} goes on at descriptor {index}, which is not available")]
    NotAvailable {
        /// The chain's first descriptor.
        head: u16,
        /// The descriptor that it goes on at.
        index: u16,
    },
    /// A buffer or a table is outside of the guest's memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// The ring, by its format.
enum Ring {
    Split(split::DeviceRing),
    Packed(packed::DeviceRing),
}

/// A running virtqueue, seen from the device.
///
/// Dropped, it leaves the ring as it is, with what was not published: that is what the reset of a queue asks for
/// (2.6.1). [`DeviceQueue::stop`] ends it in order.
pub struct DeviceQueue {
    ring: Ring,
    size: u16,
    memory: Arc<MemoryTable>,
    /// That of `memory`.
    log: Option<Arc<DirtyLog>>,
    /// If addresses are translated.
    iommu: Option<Iommu>,
    /// Set by the first error; no chain is taken after.
    failed: Option<QueueError>,
    /// The error has been returned.
    is_told: bool,
    /// Slots of the ring whose chains were taken, and neither completed nor given back. A split chain takes one
    /// slot, of the available ring; a packed one as many as it has descriptors there.
    in_flight: u32,
}

impl DeviceQueue {
    /// Starts a queue. The used index of a split queue is found again in the ring.
    ///
    /// Chains that a process before this one had taken and not given back are taken again first, if they were
    /// recorded. What that process used, it may not have called the driver for.
    ///
    /// # Errors
    /// [`ConfigError`]; nothing of the ring has been touched then.
    pub fn start(config: QueueConfig) -> Result<Self, ConfigError> {
        config.check()?;
        let QueueConfig { size, features, areas, memory, used_log, resume, inflight } = config;
        let log = memory.log().cloned();
        let iommu = memory.translation().cloned().map(Iommu::new);
        let area_log = |at| Some(AreaLog::new(log.as_ref()?, at));
        let used_log = used_log.and_then(area_log);
        let (ring, in_flight) = match resume {
            ResumeState::Split { mut next_avail } => {
                let (mut region, mut in_flight) = (None, 0);
                if let Some(area) = inflight {
                    let used_idx = areas.device.load_u16(IDX);
                    let found = inflight::split::Region::open(area, size, used_idx, next_avail)?;
                    in_flight = found.recovered();
                    next_avail = used_idx.wrapping_add(in_flight);
                    region = Some(Box::new(found));
                }
                let ring = split::DeviceRing::new(size, features, areas, used_log, next_avail, region);
                (Ring::Split(ring), in_flight.into())
            }
            ResumeState::Packed { mut avail, mut used } => {
                let mut region = None;
                if let Some(area) = inflight {
                    let found = inflight::packed::Region::open(area, size, &areas.descriptor, avail, used)?;
                    used = found.used();
                    avail = used.advance(found.recovered(), size);
                    region = Some(Box::new(found));
                }
                let logs = packed::Logs { ring: area_log(areas.descriptor.gpa()), wish: used_log };
                let ring = packed::DeviceRing::new(size, features, areas, logs, avail, used, region);
                (Ring::Packed(ring), avail.distance(used, size))
            }
        };
        Ok(Self { ring, size, memory, log, iommu, failed: None, is_told: false, in_flight })
    }

    /// Takes all buffers in indirect tables of a packed ring for device-readable from now on, whatever their WRITE
    /// flag says: for a queue that the device writes nothing to. DPDK's driver sets the flag for the header of a
    /// frame, before data that it does not set it for (2.8.17). In a split ring it does not, and nothing changes.
    pub fn ignore_write_flag_in_tables(&mut self) {
        if let Ring::Packed(ring) = &mut self.ring {
            ring.ignore_write_flag_in_tables();
        }
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where the buffers of its chains are.
    pub fn memory(&self) -> &Arc<MemoryTable> {
        &self.memory
    }

    /// Whether the memory of the queue is still the peer's; see [`MemoryTable::is_intact`].
    pub fn is_memory_intact(&self) -> bool {
        self.memory.is_intact()
            && match &self.ring {
                Ring::Split(ring) => ring.is_region_intact(),
                Ring::Packed(ring) => ring.is_region_intact(),
            }
    }

    /// Takes up to `max` chains and appends them to `burst`, which holds chains of this queue only. Returns how
    /// many, 0 if none is available. No more are in flight than the queue has descriptors.
    ///
    /// A chain for which a translation is missing stays available; see [`DeviceQueue::missing`].
    ///
    /// # Errors
    /// [`QueueError`] for a malformed chain, once the chains before it were taken; from then on, always.
    #[inline]
    pub fn take(&mut self, burst: &mut Burst, max: usize) -> Result<usize, QueueError> {
        if let Some(error) = self.failed {
            self.is_told = true;
            return Err(error);
        }
        if let Some(iommu) = &mut self.iommu {
            if iommu.is_waiting() {
                return Ok(0);
            }
            iommu.begin();
        }
        let before = burst.len();
        burst.begin(&self.memory);
        // A driver may make more available before it sees anything used, but not have it taken.
        let result = match &mut self.ring {
            Ring::Split(ring) => ring.take(burst, max, &mut self.in_flight),
            Ring::Packed(ring) => ring.take(burst, max, &mut self.in_flight),
        };
        let taken = burst.len() - before;
        if let Err(error) = result {
            if let (Some(iommu), QueueError::Memory(MemoryError::Miss { iova, access })) =
                (&mut self.iommu, error)
            {
                burst.drop_unfinished();
                iommu.wait_for(iova, access);
                return Ok(taken);
            }
            self.failed = Some(error);
            self.is_told = taken == 0;
            if self.is_told {
                return Err(error);
            }
        }
        Ok(taken)
    }

    /// What the front-end is to be asked for, if [`DeviceQueue::take`] stopped at an address that has no translation yet.
    /// Told once for each time; the queue has nothing to take until its [`Translation`](ringway_memory::Translation) was
    /// updated, and who updates it wakes the device.
    pub fn missing(&mut self) -> Option<Missing> {
        self.iommu.as_mut()?.missing()
    }

    /// The next chain, taken one at a time: for devices that need no bursts.
    ///
    /// # Errors
    /// As [`DeviceQueue::take`].
    #[inline]
    pub fn next<'b>(&mut self, burst: &'b mut Burst) -> Result<Option<Chain<'b>>, QueueError> {
        if burst.is_empty() {
            self.take(burst, 1)?;
        }
        Ok(burst.next())
    }

    /// Hands a chain back to the driver with `written` bytes of its device-writable part filled, counted from
    /// its start. The driver sees it after [`DeviceQueue::publish`].
    ///
    /// Chains may be completed in any order; a device that offers `IN_ORDER` completes them in the order in which
    /// it took them (2.7.9, 2.8.8).
    #[inline]
    pub fn complete(&mut self, chain: impl Taken, written: u32) {
        let ticket = chain.finish(self.log.as_deref(), written);
        let (id, slots, writable_len) = (ticket.id(), ticket.slots(), ticket.writable_len());
        debug_assert!(written <= writable_len, "used.len counts bytes the device wrote");
        self.in_flight -= u32::from(slots);
        let is_read_only = writable_len == 0;
        match &mut self.ring {
            Ring::Split(ring) => ring.complete(id, written, is_read_only),
            Ring::Packed(ring) => ring.complete(id, slots, written, is_read_only),
        }
    }

    /// Hands all chains that wait in `burst` back to the driver, with nothing written to them. As
    /// [`DeviceQueue::complete`] one by one, and cheaper.
    #[inline]
    pub fn complete_all(&mut self, burst: &mut Burst) {
        self.in_flight -= u32::from(burst.waiting_slots());
        match &mut self.ring {
            Ring::Split(ring) => ring.complete_all(burst.tickets(0)),
            Ring::Packed(ring) => ring.complete_all(burst.tickets(0)),
        }
        burst.hand_out_all();
    }

    /// Gives back the chains that wait in `burst`, as if they had not been taken. They are the last taken of
    /// this queue.
    pub fn rewind(&mut self, burst: &mut Burst) {
        let slots = match &mut self.ring {
            Ring::Split(ring) => ring.rewind(burst),
            Ring::Packed(ring) => ring.rewind(burst),
        };
        self.in_flight -= u32::from(slots);
        burst.clear();
        if let Some(iommu) = &mut self.iommu {
            iommu.forget();
        }
    }

    /// Makes all completed chains visible to the driver at once. Returns whether the driver asked to be called.
    #[must_use = "the driver may wait for a call"]
    #[inline]
    pub fn publish(&mut self) -> bool {
        match &mut self.ring {
            Ring::Split(ring) => ring.publish(),
            Ring::Packed(ring) => ring.publish(),
        }
    }

    /// Whether [`DeviceQueue::take`] has something to give: a chain, or an error not told yet. Looks at the ring,
    /// changes nothing. While the next chain waits for a translation there is nothing.
    #[inline]
    pub fn has_available(&self) -> bool {
        if self.failed.is_some() {
            return !self.is_told;
        }
        let has_room = self.in_flight < u32::from(self.size);
        let has_chain = match &self.ring {
            Ring::Split(ring) => ring.has_resubmissions() || has_room && ring.has_available(),
            Ring::Packed(ring) => ring.has_resubmissions() || has_room && ring.has_available(),
        };
        has_chain && !self.iommu.as_ref().is_some_and(Iommu::is_waiting)
    }

    /// Asks the driver for a kick at the next chain it makes available. Returns whether one is available
    /// already; the caller sleeps only if not.
    #[must_use = "a chain made available before arming comes without a kick"]
    pub fn arm(&mut self) -> bool {
        match &mut self.ring {
            Ring::Split(ring) => ring.arm(),
            Ring::Packed(ring) => ring.arm(),
        }
        self.has_available()
    }

    /// Tells the driver that kicks are not needed: the device polls.
    pub fn suppress(&mut self) {
        match &mut self.ring {
            Ring::Split(ring) => ring.suppress(),
            Ring::Packed(ring) => ring.suppress(),
        }
    }

    /// Whether chains in flight are recorded in memory of the front-end's, for a queue that starts with it later.
    pub fn is_recorded(&self) -> bool {
        match &self.ring {
            Ring::Split(ring) => ring.is_recorded(),
            Ring::Packed(ring) => ring.is_recorded(),
        }
    }

    /// Stops the queue; nothing of the ring is touched after. Chains in flight must have been completed or
    /// given back: others are lost to the driver, unless they are recorded and another queue starts with the region.
    #[must_use = "the state is what the queue resumes from"]
    pub fn stop(mut self) -> ResumeState {
        // Whether to call is of no more interest: the front-end looks at the ring itself.
        let _ = self.publish();
        match &self.ring {
            Ring::Split(ring) => ring.resume_state(),
            Ring::Packed(ring) => ring.resume_state(),
        }
    }
}
