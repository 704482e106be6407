//! Block device (5.2): a disk.
//!
//! ```text
//!   submit ──► judged ──► header │ data … │ status ──publish──► device ──► complete
//!   operation,  in range?   of the   the      0xff                           status, written length checked
//!   buffer,     whole?      slot   caller's                                  ──► token, result, buffer
//!   token
//! ```
//!
//! There are two ways to use it. [`Blk::submit`], [`Blk::publish`] and [`Blk::complete`] keep as many requests under way as a
//! queue has room for, each with a buffer of the caller's, which the device has until the request is complete: no data is
//! copied. [`Blk::read_blocks`] and its siblings do one thing after the other and copy what they read or write.
//!
//! Requests are complete in any order, and do not wait for each other: who wants one after another waits, and a flush covers
//! what was complete before it was submitted. Nothing is cached, merged or tried again here. Disks with zones are not for
//! this driver: it does not accept `ZONED`, and a disk that cannot do without is not there for it (5.2.5.2).
//!
//! # Example
//!
//! ```
//! use std::sync::Arc;
//!
//! use ringway_driver::blk::{Blk, BlkError, Operation, Options};
//! use ringway_driver::{Platform, Transport};
//!
//! /// Copies the first mebibyte of a disk behind itself, 64 KiB at a time, reads ahead of writes.
//! fn copy<T: Transport>(transport: T, platform: Arc<dyn Platform>) -> Result<(), BlkError> {
//!     const CHUNK: u32 = 64 << 10;
//!     const SECTORS: u64 = (CHUNK / 512) as u64;
//!     let mut disk = Blk::new(transport, platform, Options::default())?;
//!
//!     // Sixteen requests at once; the token says which chunk it is, and whether it was read.
//!     for (chunk, buffer) in (0..).zip(disk.buffers(16, CHUNK)?) {
//!         let read = Operation::Read { sector: chunk * SECTORS, len: CHUNK };
//!         disk.submit(0, read, Some(buffer), chunk).map_err(|refused| refused.error)?;
//!     }
//!     disk.publish(0);
//!     let mut left = 16;
//!     while left > 0 {
//!         let Some(done) = disk.complete(0)? else {
//!             // Sleep here until the device's interrupt, if `disk.arm(0)` says that nothing is complete.
//!             continue;
//!         };
//!         done.result?;
//!         if done.token < 16 {
//!             let write = Operation::Write { sector: (16 + done.token) * SECTORS, len: CHUNK };
//!             disk.submit(0, write, done.buffer, 16 + done.token).map_err(|refused| refused.error)?;
//!             disk.publish(0);
//!         } else {
//!             left -= 1;
//!         }
//!     }
//!     disk.flush()?;
//!
//!     // One thing after the other.
//!     let mut sector = [0; 512];
//!     disk.read_blocks(0, &mut sector)?;
//!     disk.write_blocks(4096, &sector)
//! }
//! ```
#![forbid(unsafe_code)]

mod blocking;
mod config;
mod request;

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::Vec;

use ringway_memory::{Gpa, GuestBuf, SharedBuf};
use ringway_queue::Segment;
use ringway_spec::blk::{self, RequestHeader, S_IOERR, S_OK, S_UNSUPP};
use zerocopy::IntoBytes;

pub use config::{Geometry, Properties, RangeLimits, Topology};
pub use request::{BlkError, Failure, Operation, Range};

use crate::{Device, Error, Interrupt, Platform, QueueOptions, Transport, Virtqueue, Wanted};
use request::{Plan, Way};

/// What this driver understands of a disk.
const FEATURES: u64 = blk::F_SIZE_MAX
    | blk::F_SEG_MAX
    | blk::F_GEOMETRY
    | blk::F_RO
    | blk::F_BLK_SIZE
    | blk::F_FLUSH
    | blk::F_TOPOLOGY
    | blk::F_CONFIG_WCE
    | blk::F_MQ
    | blk::F_DISCARD
    | blk::F_WRITE_ZEROES
    | blk::F_LIFETIME
    | blk::F_SECURE_ERASE;
/// A cache mode is of use only to who can flush.
const REQUIRES: &[(u64, u64)] = &[(blk::F_CONFIG_WCE, blk::F_FLUSH)];

/// Header and status of a request in flight, in a cache line of their own.
const SLOT: u32 = 64;
const HEADER_LEN: usize = size_of::<RequestHeader>();
/// What the status is before the device writes it: no status that there is.
const NO_STATUS: u8 = 0xff;
/// The most segments that a buffer is cut into.
const MAX_SEGMENTS: usize = 32;
/// Descriptors of a request beside those of its data.
const ENDS: u16 = 2;

/// How a disk shall be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The most queues; the device may have fewer.
    pub queues: u16,
    /// How each shall be. Interrupt vectors are those from `queue.vector` on, one for each.
    pub queue: QueueOptions,
    /// Features that are not to be accepted, of the disk or of its rings.
    pub without: u64,
    /// Bytes through which [`Blk::read_blocks`] and its siblings copy; a block at least.
    pub staging: u32,
}

impl Default for Options {
    /// One queue of 256, and 64 KiB to copy through.
    fn default() -> Self {
        Self { queues: 1, queue: QueueOptions::default(), without: 0, staging: 64 << 10 }
    }
}

/// A disk.
pub struct Blk<T: Transport> {
    // The device goes first: it is reset before anything that it may write to is given back.
    device: Device<T>,
    queues: Vec<Queue<T::Notifier>>,
    properties: Properties,
    /// The most bytes of a request's data.
    max_request: u32,
    /// What blocking calls copy through; `None` while the device has it.
    staging: Option<SharedBuf>,
    /// How many blocking calls there were.
    calls: u32,
}

/// A queue, and a slot for each request that it has room for.
struct Queue<N> {
    ring: Virtqueue<Lent, N>,
    slots: Vec<SharedBuf>,
    free: Vec<u16>,
    /// The most segments of a request's data.
    max_segments: usize,
    /// What came while a blocking call waited for its own.
    early: VecDeque<Completion>,
}

/// What the device has of a request.
struct Lent {
    buffer: Option<SharedBuf>,
    token: Token,
    slot: u16,
    /// What it writes, the status included, if all goes well.
    wanted: u32,
}

#[derive(Clone, Copy)]
enum Token {
    Caller(u64),
    /// That of a blocking call, by its number.
    Blocking(u32),
}

/// How a request went.
type Outcome = Result<(), Failure>;

/// A request that the device is done with.
pub struct Completion {
    /// The caller's.
    pub token: u64,
    /// Whether it is done.
    pub result: Result<(), Failure>,
    /// The request's.
    pub buffer: Option<SharedBuf>,
}

/// A request that was not made.
pub struct NotSubmitted {
    /// Why.
    pub error: BlkError,
    /// The caller's buffer.
    pub buffer: Option<SharedBuf>,
}

impl<T: Transport> Blk<T> {
    /// Sets up the disk. It polls: interrupts are asked for by [`Blk::arm`].
    ///
    /// # Errors
    /// As of [`Device::set_up`]; [`Error::BadConfig`] for a disk that cannot be.
    pub fn new(transport: T, platform: Arc<dyn Platform>, options: Options) -> Result<Self, Error> {
        let Options { without, staging, .. } = options;
        let features = FEATURES & !without;
        let wanted = Wanted { id: blk::DEVICE_ID, features, required: 0, requires: REQUIRES, without };
        let (device, (properties, queues, max_request, staging)) =
            Device::set_up(transport, platform, &wanted, |device| {
                let properties = Properties::read(device)?;
                let count = options.queues.clamp(1, properties.queues);
                let queues = (0..count).map(|index| Queue::new(device, index, options.queue, &properties));
                let queues = queues.collect::<Result<Vec<_>, _>>()?;
                let max_request = max_request(&properties, &queues)?;
                let staging = device.buffers(1, staging.max(properties.block_size))?.pop();
                Ok((properties, queues, max_request, staging))
            })?;
        Ok(Self { device, queues, properties, max_request, staging, calls: 0 })
    }

    /// What the disk says of itself.
    pub fn properties(&self) -> &Properties {
        &self.properties
    }

    /// The features negotiated.
    pub fn features(&self) -> u64 {
        self.device.features()
    }

    /// How many queues are used.
    pub fn queues(&self) -> u16 {
        self.queues.len() as u16
    }

    /// The most bytes that a request can read or write.
    pub fn max_request(&self) -> u32 {
        self.max_request
    }

    /// The way to the device, for what it has and this type has not.
    pub fn transport_mut(&mut self) -> &mut T {
        self.device.transport_mut()
    }

    /// `count` buffers of `len` bytes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`]; [`Error::Memory`] if `len` is 0.
    pub fn buffers(&mut self, count: usize, len: u32) -> Result<Vec<SharedBuf>, Error> {
        self.device.buffers(count, len)
    }

    // Requests under way

    /// Adds a request to a queue, with a buffer that the device has until it is complete. It sees the request after
    /// [`Blk::publish`].
    ///
    /// # Errors
    /// [`NotSubmitted`]: the disk cannot do that, or not now, [`AddError::Full`](ringway_queue::AddError::Full).
    #[inline]
    pub fn submit(
        &mut self,
        queue: u16,
        operation: Operation<'_>,
        buffer: Option<SharedBuf>,
        token: u64,
    ) -> Result<(), NotSubmitted> {
        self.add(queue, operation, buffer, Token::Caller(token))
    }

    #[inline]
    fn add(
        &mut self,
        index: u16,
        operation: Operation<'_>,
        mut buffer: Option<SharedBuf>,
        token: Token,
    ) -> Result<(), NotSubmitted> {
        let refused = |error: BlkError, buffer| NotSubmitted { error, buffer };
        let plan = match self.properties.plan(operation, self.device.features(), self.max_request) {
            Ok(plan) => plan,
            Err(error) => return Err(refused(error, buffer)),
        };
        let len = buffer.as_ref().map_or(0, SharedBuf::len);
        if len < plan.len || (plan.len == 0 && buffer.is_some()) {
            return Err(refused(BlkError::Buffer { len, wanted: plan.len }, buffer));
        }
        if let Some(buffer) = &mut buffer {
            operation.fill(buffer);
        }
        let Some(queue) = self.queues.get_mut(usize::from(index)) else {
            return Err(refused(Error::NoQueue { index }.into(), buffer));
        };
        queue.add(&plan, self.properties.max_segment, buffer, token)
    }

    /// Shows the device what was submitted, and kicks it if it asked for that. A driver that has much to ask publishes a few
    /// requests at a time, so that the device works on these while the next are made.
    #[inline]
    pub fn publish(&mut self, queue: u16) {
        if let Some(queue) = self.queues.get_mut(usize::from(queue)) {
            queue.ring.publish();
        }
    }

    /// The next request of a queue that is complete, `None` if there is none yet.
    ///
    /// # Errors
    /// [`Error::Device`]: the device broke the rules of its queue; [`Error::NoQueue`].
    #[inline]
    pub fn complete(&mut self, index: u16) -> Result<Option<Completion>, Error> {
        let queue = self.queues.get_mut(usize::from(index)).ok_or(Error::NoQueue { index })?;
        if let Some(early) = queue.early.pop_front() {
            return Ok(Some(early));
        }
        while let Some((lent, result)) = queue.reclaim()? {
            match lent.token {
                Token::Caller(token) => return Ok(Some(Completion { token, result, buffer: lent.buffer })),
                // A blocking call did not wait so long.
                Token::Blocking(_) => self.staging = self.staging.take().or(lent.buffer),
            }
        }
        Ok(None)
    }

    /// Whether [`Blk::complete`] has something to give, or an error.
    #[inline]
    pub fn has_completed(&self, queue: u16) -> bool {
        let queue = self.queues.get(usize::from(queue));
        queue.is_none_or(|queue| queue.ring.has_used() || !queue.early.is_empty())
    }

    /// Asks for an interrupt at the next request of a queue that is complete. Returns whether one is already; only if not is
    /// there something to wait for.
    #[must_use = "what was complete before comes without an interrupt"]
    pub fn arm(&mut self, queue: u16) -> bool {
        self.queues
            .get_mut(usize::from(queue))
            .is_none_or(|queue| queue.ring.arm() || !queue.early.is_empty())
    }

    /// Asks for no interrupts of a queue any more.
    pub fn suppress(&mut self, queue: u16) {
        if let Some(queue) = self.queues.get_mut(usize::from(queue)) {
            queue.ring.suppress();
        }
    }

    /// What the interrupt that has come is about. If it is the configuration, the disk's [properties](Blk::properties), its
    /// capacity above all, are read anew.
    ///
    /// # Errors
    /// [`Error::NeedsReset`] if the device has failed, and those of reading.
    pub fn interrupt(&mut self) -> Result<Interrupt, Error> {
        let interrupt = self.device.interrupt()?;
        if interrupt.contains(Interrupt::CONFIG) {
            self.refresh()?;
        }
        Ok(interrupt)
    }

    /// Reads the disk's properties anew; returns whether they are others now.
    ///
    /// # Errors
    /// Those of reading.
    pub fn refresh(&mut self) -> Result<bool, Error> {
        let properties = Properties::read(&mut self.device)?;
        self.max_request = max_request(&properties, &self.queues)?;
        let has_changed = properties != self.properties;
        self.properties = properties;
        Ok(has_changed)
    }

    /// Resets the disk, and returns the buffers that it still had, and the way to it. What their requests asked is done, or
    /// not, or in part.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if the device does not come to it.
    pub fn stop(self) -> Result<(Vec<SharedBuf>, T), Error> {
        let stopped = self.device.stop()?;
        let mut buffers = Vec::new();
        for queue in self.queues {
            buffers.extend(queue.early.into_iter().filter_map(|early| early.buffer));
            let lent = queue.ring.retire(&stopped).into_iter();
            let of_caller = |lent: &Lent| matches!(lent.token, Token::Caller(_));
            buffers.extend(lent.filter(of_caller).filter_map(|lent| lent.buffer));
        }
        Ok((buffers, stopped.into_transport()))
    }
}

/// The most bytes that a request can have, in whole blocks.
fn max_request<N>(properties: &Properties, queues: &[Queue<N>]) -> Result<u32, Error> {
    let segments = queues.iter().map(|queue| queue.max_segments).min().unwrap_or(0);
    let segments = segments.min(properties.max_segments as usize) as u64;
    // A chain has less than 4 GiB (2.7.5.2).
    let most = u64::from(u32::MAX - SLOT).min(segments * u64::from(properties.max_segment)) as u32;
    let whole = most - most % properties.block_size;
    if whole == 0 { Err(Error::BadConfig { what: "size_max for its block size" }) } else { Ok(whole) }
}

impl<N: crate::Notify> Queue<N> {
    fn new<T: Transport<Notifier = N>>(
        device: &mut Device<T>,
        index: u16,
        mut options: QueueOptions,
        properties: &Properties,
    ) -> Result<Self, Error> {
        options.vector = options.vector.map(|first| first.saturating_add(index));
        let mut ring = device.queue(index, options)?;
        ring.suppress();
        let size = ring.queue().size();
        if size <= ENDS {
            return Err(Error::BadConfig { what: "queue size" });
        }
        let max_segments = (properties.max_segments as usize).min(MAX_SEGMENTS).min(usize::from(size - ENDS));
        let slots = device.buffers(size.into(), SLOT)?;
        Ok(Self { ring, slots, free: (0..size).rev().collect(), max_segments, early: VecDeque::new() })
    }

    #[inline]
    fn add(
        &mut self,
        plan: &Plan,
        max_segment: u32,
        buffer: Option<SharedBuf>,
        token: Token,
    ) -> Result<(), NotSubmitted> {
        let Some(slot) = self.free.pop() else {
            return Err(NotSubmitted { error: Error::Add(ringway_queue::AddError::Full).into(), buffer });
        };
        let head = &self.slots[usize::from(slot)];
        let mut bytes = [NO_STATUS; HEADER_LEN + 1];
        bytes[..HEADER_LEN].copy_from_slice(plan.header.as_bytes());
        GuestBuf::new(&[head.slice()]).write_array(bytes);

        let start = head.addr();
        let header = Segment { addr: start, len: HEADER_LEN as u32 };
        let status = Segment { addr: Gpa(start.0 + HEADER_LEN as u64), len: 1 };
        // Nearly all buffers are one segment.
        let mut few = [header, status, status];
        let cut;
        let chain = match &buffer {
            None => &few[..2],
            Some(buffer) if plan.len <= max_segment => {
                few[1] = Segment { addr: buffer.addr(), len: plan.len };
                &few
            }
            Some(buffer) => {
                cut = Chain::cut(header, buffer, plan.len, max_segment, status);
                &cut.segments[..cut.len]
            }
        };
        let (readable, wanted) = match plan.way {
            Way::ToDevice => (chain.len() - 1, 1),
            Way::FromDevice => (1, plan.len + 1),
        };
        let (readable, writable) = chain.split_at(readable);
        match self.ring.add(readable, writable, Lent { buffer, token, slot, wanted }) {
            Ok(()) => Ok(()),
            Err(refused) => {
                self.free.push(slot);
                Err(NotSubmitted { error: Error::Add(refused.error).into(), buffer: refused.owner.buffer })
            }
        }
    }

    /// The next request that was used, and how it went.
    #[inline]
    fn reclaim(&mut self) -> Result<Option<(Lent, Outcome)>, Error> {
        let Some(used) = self.ring.reclaim()? else { return Ok(None) };
        let lent = used.owner;
        let head = &self.slots[usize::from(lent.slot)];
        let [status] = GuestBuf::new(&[head.slice()]).advance(HEADER_LEN).read_array().unwrap_or([NO_STATUS]);
        self.free.push(lent.slot);
        let result = match status {
            S_OK if used.written < lent.wanted => {
                Err(Failure::Short { written: used.written, wanted: lent.wanted })
            }
            S_OK => Ok(()),
            S_IOERR => Err(Failure::Io),
            S_UNSUPP => Err(Failure::Unsupported),
            status => Err(Failure::Status(status)),
        };
        Ok(Some((lent, result)))
    }
}

/// A request's segments: header, data, status.
struct Chain {
    segments: [Segment; MAX_SEGMENTS + ENDS as usize],
    len: usize,
}

impl Chain {
    /// The first `len` bytes of a buffer are cut into segments of `max_segment`, of which there are no more than there may
    /// be.
    #[cold]
    fn cut(header: Segment, buffer: &SharedBuf, len: u32, max_segment: u32, status: Segment) -> Self {
        let mut chain = Self { segments: [header; MAX_SEGMENTS + ENDS as usize], len: 1 };
        let mut done = 0;
        while done < len {
            let part = max_segment.min(len - done);
            chain.push(Segment { addr: Gpa(buffer.addr().0 + u64::from(done)), len: part });
            done += part;
        }
        chain.push(status);
        chain
    }

    fn push(&mut self, segment: Segment) {
        self.segments[self.len] = segment;
        self.len += 1;
    }
}
