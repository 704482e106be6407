//! Chains on their way through a device: a burst of them, and one of them.

use alloc::sync::Arc;
use alloc::vec::Vec;

use ringway_memory::{Access, BusAddr, DirtyLog, GuestBuf, Kept, MemoryTable, ScatterList};
use ringway_spec::split::DESC_SIZE;

use super::log::{Places, mark_places, mark_slices, places};
use crate::QueueError;

/// The most descriptors of one chain, whatever the queue's size: what Linux and QEMU allow too. A chain past
/// it would cost more work and memory than a device has any use for (2.7.4.1 and 2.8.18 leave the limit to the device).
pub(crate) const MAX_CHAIN: u16 = 1024;

/// Slices a burst holds before it takes no further chain: bounds memory and work, whatever the driver does.
pub(crate) const MAX_SLICES: usize = 4096;

/// A descriptor of an indirect table as its bytes.
type Entry = [u8; DESC_SIZE];

/// What is known of a taken chain; its slices are `first..end` of the burst's list.
#[derive(Debug, Clone, Copy)]
struct Record {
    ticket: Ticket,
    first: u32,
    /// Where the device-writable slices begin.
    writable: u32,
    end: u32,
    readable_len: u32,
}

/// Chains taken from one queue and not yet handled, oldest first, with their buffers translated.
///
/// Kept from burst to burst: it owns the lists that would otherwise be allocated anew. It keeps the memory of
/// its chains mapped.
pub struct Burst {
    list: ScatterList,
    records: Vec<Record>,
    /// The first record not handed out by [`Burst::next`].
    next: usize,
    /// Room for a copy of an indirect table.
    table: Vec<Entry>,
}

impl Default for Burst {
    fn default() -> Self {
        Self {
            list: ScatterList::with_capacity(256),
            records: Vec::with_capacity(64),
            next: 0,
            table: Vec::new(),
        }
    }
}

impl Burst {
    /// Number of chains that wait.
    #[inline]
    pub fn len(&self) -> usize {
        self.records.len() - self.next
    }

    /// Whether no chain waits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The oldest chain that waits.
    #[inline]
    #[allow(clippy::should_implement_trait, reason = "a chain borrows the burst: a lending iterator")]
    pub fn next(&mut self) -> Option<Chain<'_>> {
        let record = *self.records.get(self.next)?;
        self.next += 1;
        Some(Chain { record, list: &self.list })
    }

    /// How many bytes each waiting chain has room for, oldest first.
    #[inline]
    pub fn writable_lens(&self) -> impl Iterator<Item = u32> + '_ {
        self.records[self.next..].iter().map(|r| r.ticket.writable_len())
    }

    /// How many bytes the oldest chain has room for; 0 if none waits.
    #[inline]
    pub fn next_writable_len(&self) -> u32 {
        self.records.get(self.next).map_or(0, |record| record.ticket.writable_len())
    }

    /// What the driver wrote in each waiting chain, oldest first. They wait on, for
    /// [`DeviceQueue::complete_all`](crate::DeviceQueue::complete_all).
    #[inline]
    pub fn readable(&self) -> impl Iterator<Item = GuestBuf<'_>> {
        self.records[self.next..].iter().map(|&record| Chain { record, list: &self.list }.readable())
    }

    /// No chain waits any more: all were completed.
    pub(crate) fn hand_out_all(&mut self) {
        self.next = self.records.len();
    }

    /// Ring slots of the chains that wait.
    pub(crate) fn waiting_slots(&self) -> u16 {
        self.records[self.next..].iter().map(|r| r.ticket.slots()).sum()
    }

    /// What completes the waiting chains, from the `first` on.
    pub(crate) fn tickets(&self, first: usize) -> impl DoubleEndedIterator<Item = Ticket> + Clone + '_ {
        self.records[self.next + first..].iter().map(|r| r.ticket)
    }

    /// The same, to be changed.
    pub(crate) fn tickets_mut(&mut self, first: usize) -> impl Iterator<Item = &mut Ticket> {
        self.records[self.next + first..].iter_mut().map(|r| &mut r.ticket)
    }

    /// Whether another chain may be taken.
    pub(crate) fn has_room(&self) -> bool {
        self.list.len() < MAX_SLICES
    }

    /// Forgets what was handed out, and makes `memory` the table to translate by. Chains that wait stay; there
    /// are none of another table, see `DeviceQueue::take`.
    pub(crate) fn begin(&mut self, memory: &Arc<MemoryTable>) {
        if self.is_empty() {
            self.list.clear();
            self.records.clear();
        } else if self.next > 0 {
            let done = self.records[self.next].first;
            self.list.drop_first(done as usize);
            self.records.drain(..self.next);
            for record in &mut self.records {
                record.first -= done;
                record.writable -= done;
                record.end -= done;
            }
        }
        self.next = 0;
        self.list.bind(memory);
    }

    /// How many chains of one slice each may be taken.
    #[inline]
    pub(crate) fn room(&self) -> usize {
        MAX_SLICES.saturating_sub(self.list.len())
    }

    /// Adds a chain of one buffer in one slot, if the buffer is where the last one was: nearly all are.
    #[inline]
    pub(crate) fn push_single(&mut self, id: u16, addr: u64, len: u32, is_writable: bool) -> bool {
        let first = self.list.len() as u32;
        let Some(slice) = self.list.push_again(BusAddr(addr), len) else { return false };
        let (writable, readable_len, writable_len) = if is_writable {
            slice.prefetch_to_write();
            (first, 0, len)
        } else {
            slice.prefetch();
            (first + 1, len, 0)
        };
        let ticket = Ticket::new(id, 1, writable_len);
        self.records.push(Record { ticket, first, writable, end: first + 1, readable_len });
        true
    }

    /// Forgets what a chain left behind that was not finished.
    pub(crate) fn drop_unfinished(&mut self) {
        self.list.truncate(self.records.last().map_or(0, |last| last.end as usize));
    }

    /// Forgets all chains.
    pub(crate) fn clear(&mut self) {
        self.list.clear();
        self.records.clear();
        self.next = 0;
    }

    /// See [`ChainBuilder::copy_table`].
    fn copy_table(&mut self, head: u16, addr: u64, len: u32) -> Result<u16, QueueError> {
        let count = len / DESC_SIZE as u32;
        if count == 0 || !len.is_multiple_of(DESC_SIZE as u32) || count > MAX_CHAIN.into() {
            return Err(QueueError::BadIndirectLen { head, len });
        }
        let at = self.list.len();
        self.list.push(BusAddr(addr), len, Access::READ)?;
        self.table.resize(count as usize, Entry::default());
        self.list.buf(at..self.list.len()).read(self.table.as_flattened_mut());
        self.list.truncate(at);
        Ok(count as u16)
    }

    /// Starts a chain, `head` in errors; buffers follow.
    #[inline]
    pub(crate) fn build(&mut self, head: u16) -> ChainBuilder<'_> {
        let first = self.list.len() as u32;
        ChainBuilder { head, first, writable: NONE, readable_len: 0, writable_len: 0, burst: self }
    }
}

/// Stands for the first device-writable slice while there is none.
const NONE: u32 = u32::MAX;

/// A chain whose descriptors are being read. Dropped without [`ChainBuilder::finish`], it leaves no trace but
/// slices that the next chain's start does not look at.
///
/// Its methods are inlined, all of them, so that it can be kept in registers.
pub(crate) struct ChainBuilder<'b> {
    head: u16,
    first: u32,
    writable: u32,
    readable_len: u32,
    writable_len: u32,
    burst: &'b mut Burst,
}

impl ChainBuilder<'_> {
    /// Appends a buffer.
    #[inline(always)]
    #[allow(
        clippy::inline_always,
        reason = "a second caller, out of the way, must not take it out of the first"
    )]
    pub(crate) fn push(&mut self, addr: u64, len: u32, is_writable: bool) -> Result<(), QueueError> {
        let too_many = QueueError::TooManyBytes { head: self.head };
        if is_writable {
            self.writable = self.writable.min(self.burst.list.len() as u32);
            self.writable_len = self.writable_len.checked_add(len).ok_or(too_many)?;
        } else {
            if self.writable != NONE {
                return Err(QueueError::ReadableAfterWritable { head: self.head });
            }
            self.readable_len = self.readable_len.checked_add(len).ok_or(too_many)?;
        }
        // Asked of what is kept in a register anyway.
        let access = if self.writable == NONE { Access::READ } else { Access::WRITE };
        self.burst.list.push(BusAddr(addr), len, access)?;
        Ok(())
    }

    /// Copies an indirect table of `len` bytes out of the guest's memory, to be read by [`ChainBuilder::entry`].
    /// Returns its number of entries.
    #[inline]
    pub(crate) fn copy_table(&mut self, addr: u64, len: u32) -> Result<u16, QueueError> {
        self.burst.copy_table(self.head, addr, len)
    }

    /// An entry of the table, as two words.
    #[inline]
    pub(crate) fn entry(&self, index: u16) -> Option<(u64, u64)> {
        let entry = u128::from_le_bytes(*self.burst.table.get(usize::from(index))?);
        Some((entry as u64, (entry >> 64) as u64))
    }

    /// Adds the chain to the burst: `id` names it to the driver when it is used, and it takes `slots` of the ring.
    #[inline]
    pub(crate) fn finish(self, id: u16, slots: u16) {
        let Self { first, readable_len, .. } = self;
        let end = self.burst.list.len() as u32;
        if let Some(first) = self.burst.list.slices(first as usize..end as usize).first() {
            if readable_len == 0 { first.prefetch_to_write() } else { first.prefetch() }
        }
        let (writable, ticket) = (self.writable.min(end), Ticket::new(id, slots, self.writable_len));
        self.burst.records.push(Record { ticket, first, writable, end, readable_len });
    }
}

/// A descriptor chain: device-readable bytes, then device-writable ones. It is consumed by
/// [`DeviceQueue::complete`](crate::DeviceQueue::complete), so completing one twice does not compile:
///
/// ```compile_fail
/// # use ringway_queue::{Burst, DeviceQueue};
/// fn twice(queue: &mut DeviceQueue, burst: &mut Burst) {
///     let chain = burst.next().unwrap();
///     queue.complete(chain, 0);
///     queue.complete(chain, 0);
/// }
/// ```
#[must_use = "a chain that is not completed is lost to the driver"]
pub struct Chain<'b> {
    record: Record,
    list: &'b ScatterList,
}

impl<'b> Chain<'b> {
    /// What the driver wrote for the device.
    #[inline]
    pub fn readable(&self) -> GuestBuf<'b> {
        let Record { first, writable, readable_len, .. } = self.record;
        self.list.buf_of_len(first as usize..writable as usize, readable_len as usize)
    }

    /// The room the driver gave for the device's answer.
    #[inline]
    pub fn writable(&self) -> GuestBuf<'b> {
        let Record { writable, end, ticket, .. } = self.record;
        self.list.buf_of_len(writable as usize..end as usize, ticket.writable_len() as usize)
    }

    /// Length of [`Chain::writable`] in bytes.
    #[inline]
    pub fn writable_len(&self) -> u32 {
        self.record.ticket.writable_len()
    }

    /// Keeps `len` bytes of [`Chain::readable`] from `skip` on, or as many as there are, for longer than the burst.
    #[inline]
    pub fn keep_readable(&self, skip: usize, len: usize, kept: &mut Kept) {
        let Record { first, writable, .. } = self.record;
        self.list.keep(first as usize..writable as usize, skip, len, kept);
    }

    /// Keeps `len` bytes of [`Chain::writable`] from `skip` on, or as many as there are, for longer than the burst.
    #[inline]
    pub fn keep_writable(&self, skip: usize, len: usize, kept: &mut Kept) {
        let Record { writable, end, .. } = self.record;
        self.list.keep(writable as usize..end as usize, skip, len, kept);
    }

    /// Lets go of the buffers, so that the burst can go on, and keeps what completes the chain later.
    #[inline]
    pub fn detach(self) -> InFlight {
        let Record { ticket, writable, end, .. } = self.record;
        let is_logged = self.list.log().is_some() && ticket.writable_len() > 0;
        let places = is_logged.then(|| places(self.list, writable as usize..end as usize));
        InFlight { ticket, places }
    }
}

/// A chain whose work goes on after its burst: what completes it, without its buffers. As a [`Chain`], it is used
/// up by that.
#[must_use = "a chain that is not completed is lost to the driver"]
#[derive(Debug)]
pub struct InFlight {
    ticket: Ticket,
    /// Where it may write, if that is logged.
    places: Option<Places>,
}

/// What [`DeviceQueue::complete`](crate::DeviceQueue::complete) uses up: a [`Chain`], or an [`InFlight`].
pub trait Taken: sealed::Taken {}

impl Taken for Chain<'_> {}
impl Taken for InFlight {}

pub(super) mod sealed {
    use super::{Chain, DirtyLog, InFlight, Record, Ticket, mark_places, mark_slices};

    pub trait Taken {
        /// Marks the first `written` bytes of the device-writable part in the log, if there is one.
        fn finish(self, log: Option<&DirtyLog>, written: u32) -> Ticket;
    }

    impl Taken for Chain<'_> {
        #[inline]
        fn finish(self, log: Option<&DirtyLog>, written: u32) -> Ticket {
            let Record { ticket, writable, end, .. } = self.record;
            if let Some(log) = log {
                mark_slices(log, self.list, writable as usize..end as usize, written);
            }
            ticket
        }
    }

    impl Taken for InFlight {
        #[inline]
        fn finish(self, log: Option<&DirtyLog>, written: u32) -> Ticket {
            if let (Some(log), Some(places)) = (log, self.places) {
                mark_places(log, places, written);
            }
            self.ticket
        }
    }
}

/// What completes a chain: its ID, its slots of the ring, and how many bytes the device may write.
///
/// It is one word, for many a chain is completed right after it was taken: fields that are written one by one and read
/// together are waited for until all are in the cache.
#[derive(Debug, Clone, Copy)]
pub struct Ticket(u64);

impl Ticket {
    #[inline]
    fn new(id: u16, slots: u16, writable_len: u32) -> Self {
        Self(u64::from(id) | u64::from(slots) << 16 | u64::from(writable_len) << 32)
    }

    /// The same chain by another ID.
    pub(crate) fn with_id(self, id: u16) -> Self {
        Self(self.0 & !0xffff | u64::from(id))
    }

    #[inline]
    pub(crate) fn id(self) -> u16 {
        self.0 as u16
    }

    #[inline]
    pub(crate) fn slots(self) -> u16 {
        (self.0 >> 16) as u16
    }

    #[inline]
    pub(crate) fn writable_len(self) -> u32 {
        (self.0 >> 32) as u32
    }
}
