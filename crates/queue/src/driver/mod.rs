//! The driver's half of a virtqueue, whatever its format.
//!
//! ```text
//!              add                  publish                    reclaim
//!   owner ───────────► lent, unseen ───────► with the device ───────────► owner, bytes written
//!                                                  │  reset of the device or of the queue
//!                                                  └───────────────────────────────────► owner
//! ```
//!
//! A chain is added with its *owner*: whatever holds the chain's buffers. The queue keeps it for as long as the device
//! may touch them, and gives it back when the chain was used. So a buffer in flight can neither be used for
//! something else nor be freed.
//!
//! The device can write to all of the ring at any time. The driver therefore keeps a shadow of what it made
//! available, takes nothing from the ring but what a used entry says, and checks that against the shadow.
//!
//! This half does not find memory for the rings or the buffers, and does not know how a device is told of them.

mod packed;
mod split;

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use ringway_memory::{Gpa, SharedBuf};
use ringway_spec::feature;
use ringway_spec::split::{DESC_ALIGN, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE};
use thiserror::Error;

use crate::area::RingArea;
use crate::{Areas, ConfigError, NotificationData, ResumeState};

/// A contiguous part of a chain, where the device finds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// Its address for the device.
    pub addr: Gpa,
    /// Its length in bytes.
    pub len: u32,
}

impl From<&SharedBuf> for Segment {
    fn from(buf: &SharedBuf) -> Self {
        Self { addr: buf.addr(), len: buf.len() }
    }
}

/// All that a queue needs.
pub struct DriverConfig {
    /// Number of descriptors, at most 32768; of a split queue a power of two.
    pub size: u16,
    /// The negotiated features.
    pub features: u64,
    /// Where the rings are. They are initialised here.
    pub areas: Areas,
    /// Where both sides begin, with nothing in flight: [`ResumeState::start`], unless the device is told of
    /// another position.
    pub start: ResumeState,
    /// The longest chain that the device takes, in descriptors; never more than the queue's size (2.7.5.3.1, 2.8.17).
    pub max_chain: u16,
    /// Memory for indirect tables. With it, and if `INDIRECT_DESC` was negotiated, a chain of several segments that
    /// fits a table takes one descriptor of the ring.
    pub tables: Option<IndirectTables>,
}

/// Memory for one indirect table of every chain that can be in flight.
pub struct IndirectTables {
    /// The tables, one after the other, as many as the queue has descriptors.
    pub area: RingArea,
    /// Where the device finds them.
    pub addr: Gpa,
    /// Descriptors of 16 bytes that a table has room for.
    pub entries: u16,
}

impl IndirectTables {
    /// Whether a chain of `len` segments goes into a table.
    #[inline]
    fn fits(&self, len: usize) -> bool {
        len > 1 && len <= self.entries.into()
    }

    /// The table of buffer `id`: its offset in the area.
    #[inline]
    fn offset(&self, id: u16) -> usize {
        usize::from(id) * usize::from(self.entries) * DESC_SIZE
    }

    /// The table of buffer `id`: its address for the device.
    #[inline]
    fn addr(&self, id: u16) -> u64 {
        self.addr.0 + self.offset(id) as u64
    }

    fn check(&self, size: u16) -> Result<(), ConfigError> {
        if !self.area.is_aligned(DESC_ALIGN) {
            return Err(ConfigError::MisalignedArea { align: DESC_ALIGN });
        }
        let needed = usize::from(size) * usize::from(self.entries) * DESC_SIZE;
        if self.area.len() < needed {
            return Err(ConfigError::SmallArea { needed, len: self.area.len() });
        }
        match self.addr.checked_add(needed as u64) {
            Some(_) => Ok(()),
            None => Err(ConfigError::BadTables(self.addr)),
        }
    }
}

/// What a ring is told of a chain to add.
#[derive(Clone, Copy)]
struct NewChain<'a> {
    readable: &'a [Segment],
    writable: &'a [Segment],
    writable_len: u32,
}

impl NewChain<'_> {
    #[inline]
    fn len(&self) -> usize {
        self.readable.len() + self.writable.len()
    }

    /// The segments with the flags of their descriptors, which both formats have alike: `WRITE`, and `NEXT` for all
    /// but the last.
    #[inline]
    fn segments(&self) -> impl Iterator<Item = (Segment, u16)> {
        let readable = self.readable.iter().map(|segment| (*segment, 0));
        let writable = self.writable.iter().map(|segment| (*segment, DESC_F_WRITE));
        let mut left = self.len();
        readable.chain(writable).map(move |(segment, write)| {
            left -= 1;
            (segment, if left > 0 { write | DESC_F_NEXT } else { write })
        })
    }
}

/// The shadow of a chain, by its buffer ID.
#[derive(Clone, Copy, Default)]
struct Lent {
    /// Descriptors of the ring; 0 if no such chain is in flight.
    slots: u16,
    /// Split: the chain's last descriptor.
    last: u16,
    writable_len: u32,
    /// How many publications came before it was added.
    publications: u64,
}

impl Lent {
    /// Whether the device can have used it: it is in flight, and one of so many publications has shown it.
    #[inline]
    fn is_shown(&self, publications: u64) -> bool {
        self.slots > 0 && self.publications < publications
    }
}

/// A batch that the device used in order and told of by one used entry (2.7.9, 2.8.8): it ends with buffer `id`.
#[derive(Clone, Copy)]
struct Batch {
    id: u16,
    written: u32,
}

/// Why a chain cannot be added.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum AddError {
    /// Too few descriptors are free; some will be when chains were reclaimed.
    #[error("the queue is full")]
    Full,
    /// A chain has one segment at least.
    #[error("the chain has no segment")]
    Empty,
    /// More segments than the device takes, or the queue has descriptors.
    #[error("the chain has {len} segments, more than {max}")]
    TooLong {
        /// Its segments.
        len: usize,
        /// The most there may be.
        max: u16,
    },
    /// The segments' bytes do not fit in 32 bits (2.7.5.2).
    #[error("the chain has 4 GiB or more")]
    TooManyBytes,
}

/// A chain that was not added: why, and its owner.
#[derive(Debug, PartialEq, Eq)]
pub struct NotAdded<T> {
    /// Why.
    pub error: AddError,
    /// What was to be lent.
    pub owner: T,
}

/// What the device did wrong. It is final: nothing more is reclaimed, and the device is to be reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DriverError {
    /// The used index says that more chains were used than are in flight.
    #[error("used index {idx} is more than {in_flight} past {next}")]
    IndexJump {
        /// What the device wrote.
        idx: u16,
        /// The next entry to reclaim.
        next: u16,
        /// Chains in flight.
        in_flight: u16,
    },
    /// A used entry names a chain that is not in flight, or was not published.
    #[error("chain {id} was used, which the device was not given")]
    NotInFlight {
        /// The name.
        id: u32,
    },
    /// A batch used in order ends past what the used index says.
    #[error("the batch that ends with chain {id} goes past the used index")]
    BatchTooLong {
        /// The batch's last chain.
        id: u16,
    },
}

/// A chain that the device has used.
#[derive(Debug, PartialEq, Eq)]
pub struct Used<T> {
    /// What was lent.
    pub owner: T,
    /// How many bytes the device says it wrote, from the start of the device-writable part on; never more than
    /// that has. What lies behind them means nothing.
    pub written: u32,
}

/// The ring, by its format.
enum Ring {
    Split(split::DriverRing),
    Packed(packed::DriverRing),
}

/// A live virtqueue, seen from the driver.
///
/// Dropped with chains in flight, it never frees their owners: the device may still write to their buffers.
/// [`DriverQueue::reset`] gets them back once the device does not, and [`DriverQueue::free_after`] frees them.
pub struct DriverQueue<T> {
    ring: Ring,
    max_chain: u16,
    /// By buffer ID.
    owners: Vec<Option<T>>,
    in_flight: u16,
    failed: Option<DriverError>,
    is_reset: Option<Arc<AtomicBool>>,
}

impl<T> DriverQueue<T> {
    /// Initialises the rings of a queue that no device looks at yet.
    ///
    /// # Errors
    /// [`ConfigError`]; nothing of the rings has been touched then.
    pub fn new(config: DriverConfig) -> Result<Self, ConfigError> {
        let DriverConfig { size, features, areas, start, max_chain, tables } = config;
        if features & feature::ORDER_PLATFORM != 0 {
            return Err(ConfigError::OrderPlatform);
        }
        areas.check(size, features)?;
        start.check(size, features)?;
        let tables =
            tables.filter(|tables| features & feature::RING_INDIRECT_DESC != 0 && tables.entries > 1);
        if let Some(tables) = &tables {
            tables.check(size)?;
        }
        let ring = match start {
            ResumeState::Split { next_avail } => {
                Ring::Split(split::DriverRing::new(size, features, areas, next_avail, tables))
            }
            ResumeState::Packed { avail, used } => {
                if avail != used {
                    return Err(ConfigError::BadResume { size, resume: start });
                }
                Ring::Packed(packed::DriverRing::new(size, features, areas, avail, tables))
            }
        };
        let owners = core::iter::repeat_with(|| None).take(size.into()).collect();
        Ok(Self { ring, max_chain: max_chain.min(size), owners, in_flight: 0, failed: None, is_reset: None })
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.owners.len() as u16
    }

    /// Descriptors that are free.
    #[inline]
    pub fn free(&self) -> u16 {
        match &self.ring {
            Ring::Split(ring) => ring.free(),
            Ring::Packed(ring) => ring.free(),
        }
    }

    /// Chains that were added and not reclaimed.
    #[inline]
    pub fn in_flight(&self) -> u16 {
        self.in_flight
    }

    /// Adds a chain: segments for the device to read, then segments for it to write. The device sees it after
    /// [`DriverQueue::publish`]. `owner` holds the segments' memory.
    ///
    /// # Errors
    /// [`NotAdded`], with the owner.
    #[inline]
    pub fn add(&mut self, readable: &[Segment], writable: &[Segment], owner: T) -> Result<(), NotAdded<T>> {
        match self.try_add(readable, writable) {
            Ok(id) => {
                self.owners[usize::from(id)] = Some(owner);
                self.in_flight += 1;
                Ok(())
            }
            Err(error) => Err(NotAdded { error, owner }),
        }
    }

    #[inline]
    fn try_add(&mut self, readable: &[Segment], writable: &[Segment]) -> Result<u16, AddError> {
        let len = readable.len() + writable.len();
        if len == 0 {
            return Err(AddError::Empty);
        }
        if len > self.max_chain.into() {
            return Err(AddError::TooLong { len, max: self.max_chain });
        }
        let bytes = |segments: &[Segment]| segments.iter().map(|s| u64::from(s.len)).sum::<u64>();
        let writable_bytes = bytes(writable);
        if u32::try_from(bytes(readable) + writable_bytes).is_err() {
            return Err(AddError::TooManyBytes);
        }
        let chain = NewChain { readable, writable, writable_len: writable_bytes as u32 };
        match &mut self.ring {
            Ring::Split(ring) => ring.add(chain),
            Ring::Packed(ring) => ring.add(chain),
        }
    }

    /// Makes all added chains available to the device at once. Returns whether the device asked to be kicked.
    #[must_use = "the device may wait for a kick"]
    #[inline]
    pub fn publish(&mut self) -> bool {
        match &mut self.ring {
            Ring::Split(ring) => ring.publish(),
            Ring::Packed(ring) => ring.publish(),
        }
    }

    /// What to kick the device with if `NOTIFICATION_DATA` was negotiated; `vqn` as for any kick.
    pub fn notification_data(&self, vqn: u16) -> NotificationData {
        let next = match &self.ring {
            Ring::Split(ring) => ring.published(),
            Ring::Packed(ring) => ring.published().to_off_wrap(),
        };
        NotificationData { vqn, next }
    }

    /// The next chain that the device has used, `None` if there is none yet.
    ///
    /// # Errors
    /// [`DriverError`]; from then on, always.
    #[inline]
    pub fn reclaim(&mut self) -> Result<Option<Used<T>>, DriverError> {
        if let Some(error) = self.failed {
            return Err(error);
        }
        let reclaimed = match &mut self.ring {
            Ring::Split(ring) => ring.reclaim(self.in_flight),
            Ring::Packed(ring) => ring.reclaim(self.in_flight),
        };
        match reclaimed {
            Ok(None) => Ok(None),
            Ok(Some((id, written))) => {
                self.in_flight -= 1;
                let owner = self.owners[usize::from(id)].take();
                Ok(owner.map(|owner| Used { owner, written }))
            }
            Err(error) => {
                self.failed = Some(error);
                Err(error)
            }
        }
    }

    /// Whether [`DriverQueue::reclaim`] has something to give, or an error. Looks at the ring, changes nothing.
    #[inline]
    pub fn has_used(&self) -> bool {
        self.failed.is_some()
            || match &self.ring {
                Ring::Split(ring) => ring.has_used(),
                Ring::Packed(ring) => ring.has_used(self.in_flight),
            }
    }

    /// Asks the device for a call at the next chain it uses. Returns whether one was used already; the caller
    /// sleeps only if not.
    #[must_use = "a chain used before arming comes without a call"]
    pub fn arm(&mut self) -> bool {
        match &mut self.ring {
            Ring::Split(ring) => ring.arm(),
            Ring::Packed(ring) => ring.arm(),
        }
        self.has_used()
    }

    /// Tells the device that calls are not needed: the driver polls.
    pub fn suppress(&mut self) {
        match &mut self.ring {
            Ring::Split(ring) => ring.suppress(),
            Ring::Packed(ring) => ring.suppress(),
        }
    }

    /// Dropped after `is_reset` was set, the queue frees the owners of the chains in flight. Whoever resets the device sets it,
    /// once the device has done so.
    pub fn free_after(&mut self, is_reset: Arc<AtomicBool>) {
        self.is_reset = Some(is_reset);
    }

    /// Ends the queue, and returns the owners of the chains in flight: if `is_reset` says, having asked the device,
    /// that it has reset itself or this queue, and so touches nothing of it any more (2.6.1.2, 3.3.1).
    ///
    /// # Errors
    /// The queue as it was, if the device has not done so.
    #[allow(clippy::result_large_err, reason = "a queue that was not reset goes on")]
    pub fn reset(mut self, is_reset: impl FnOnce() -> bool) -> Result<Vec<T>, Self> {
        if is_reset() { Ok(self.owners.iter_mut().filter_map(Option::take).collect()) } else { Err(self) }
    }
}

impl<T> Drop for DriverQueue<T> {
    fn drop(&mut self) {
        if self.is_reset.as_ref().is_some_and(|is_reset| is_reset.load(Ordering::Acquire)) {
            return;
        }
        self.owners.iter_mut().filter_map(Option::take).for_each(core::mem::forget);
    }
}
