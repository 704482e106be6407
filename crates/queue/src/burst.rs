//! Chains on their way through a device: a burst of them, and one of them.

use alloc::sync::Arc;
use alloc::vec::Vec;

use ringway_memory::{GuestBuf, MemoryTable, ScatterList};

use crate::QueueError;

/// Slices a burst holds before it takes no further chain: bounds memory and work, whatever the driver does.
pub(crate) const MAX_SLICES: usize = 4096;

/// What is known of a taken chain; its slices are `first..end` of the burst's list.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Record {
    pub(crate) head: u16,
    first: usize,
    /// Where the device-writable slices begin.
    writable: usize,
    end: usize,
    readable_len: u32,
    writable_len: u32,
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
    pub(crate) table: Vec<u8>,
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
        self.records[self.next..].iter().map(|r| r.writable_len)
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
            self.list.drop_first(done);
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

    /// Forgets all chains.
    pub(crate) fn clear(&mut self) {
        self.list.clear();
        self.records.clear();
        self.next = 0;
    }

    /// Starts a chain; buffers follow.
    pub(crate) fn build(&mut self, head: u16) -> ChainBuilder<'_> {
        let first = self.list.len();
        let Self { list, records, table, .. } = self;
        ChainBuilder { head, first, writable: None, readable_len: 0, writable_len: 0, list, records, table }
    }
}

/// A chain whose descriptors are being read. Dropped without [`ChainBuilder::finish`], it leaves no trace but
/// slices that the next chain's start does not look at.
pub(crate) struct ChainBuilder<'b> {
    head: u16,
    first: usize,
    writable: Option<usize>,
    readable_len: u32,
    writable_len: u32,
    list: &'b mut ScatterList,
    records: &'b mut Vec<Record>,
    table: &'b mut Vec<u8>,
}

impl ChainBuilder<'_> {
    /// Appends a buffer.
    #[inline]
    pub(crate) fn push(&mut self, addr: u64, len: u32, is_writable: bool) -> Result<(), QueueError> {
        let total = if is_writable {
            self.writable.get_or_insert(self.list.len());
            &mut self.writable_len
        } else if self.writable.is_some() {
            return Err(QueueError::ReadableAfterWritable { head: self.head });
        } else {
            &mut self.readable_len
        };
        *total = total.checked_add(len).ok_or(QueueError::TooManyBytes { head: self.head })?;
        self.list.push(ringway_memory::Gpa(addr), len)?;
        Ok(())
    }

    /// Copies a table of descriptors out of the guest's memory: read once, walked after.
    pub(crate) fn copy_table(&mut self, addr: u64, len: u32) -> Result<Vec<u8>, QueueError> {
        let at = self.list.len();
        self.list.push(ringway_memory::Gpa(addr), len)?;
        let mut table = core::mem::take(self.table);
        table.resize(len as usize, 0);
        self.list.buf(at..self.list.len()).read(&mut table);
        self.list.truncate(at);
        Ok(table)
    }

    /// Returns the room of [`ChainBuilder::copy_table`].
    pub(crate) fn keep_table(&mut self, table: Vec<u8>) {
        *self.table = table;
    }

    /// Adds the chain to the burst.
    #[inline]
    pub(crate) fn finish(self) {
        let end = self.list.len();
        if let Some(first) = self.list.slices(self.first..end).first() {
            if self.readable_len == 0 { first.prefetch_to_write() } else { first.prefetch() }
        }
        self.records.push(Record {
            head: self.head,
            first: self.first,
            writable: self.writable.unwrap_or(end),
            end,
            readable_len: self.readable_len,
            writable_len: self.writable_len,
        });
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
    pub(crate) record: Record,
    list: &'b ScatterList,
}

impl<'b> Chain<'b> {
    /// What the driver wrote for the device.
    #[inline]
    pub fn readable(&self) -> GuestBuf<'b> {
        let Record { first, writable, readable_len, .. } = self.record;
        self.list.buf_of_len(first..writable, readable_len as usize)
    }

    /// The room the driver gave for the device's answer.
    #[inline]
    pub fn writable(&self) -> GuestBuf<'b> {
        let Record { writable, end, writable_len, .. } = self.record;
        self.list.buf_of_len(writable..end, writable_len as usize)
    }

    /// Length of [`Chain::writable`] in bytes.
    #[inline]
    pub fn writable_len(&self) -> u32 {
        self.record.writable_len
    }
}
