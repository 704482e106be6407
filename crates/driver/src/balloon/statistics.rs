//! What the guest says of its memory (5.5.6.3): one buffer, which the device keeps until it wants another.
#![forbid(unsafe_code)]

use alloc::boxed::Box;
use alloc::vec::Vec;

use ringway_memory::SharedBuf;
use ringway_queue::Segment;
use ringway_spec::balloon::{STAT_LEN, STATS_QUEUE, Stat};
use zerocopy::IntoBytes;

use crate::{Device, Error, Notify, QueueOptions, Transport, Virtqueue};

/// A buffer is entries of 10 bytes, and its length a multiple of 6 (5.5.6.3.1): both at once are threes of entries.
const GROUP: usize = 3;

/// Where statistics come from. Whoever asks gets all of them, each time.
pub struct Statistics {
    /// Which there are: [`S_SWAP_IN`](ringway_spec::balloon::S_SWAP_IN) and its siblings.
    pub tags: Vec<u16>,
    /// The value for a tag, now.
    pub value: Box<dyn FnMut(u16) -> u64 + Send>,
}

/// The queue, and the one buffer.
pub(super) struct Reporter<N> {
    queue: Virtqueue<SharedBuf, N>,
    source: Statistics,
    bytes: Vec<u8>,
}

impl<N: Notify> Reporter<N> {
    /// The device is shown the first statistics by [`publish`](Self::publish).
    pub(super) fn new<T: Transport<Notifier = N>>(
        source: Statistics,
        device: &mut Device<T>,
        vector: Option<u16>,
    ) -> Result<Self, Error> {
        let queue = device.queue(STATS_QUEUE, QueueOptions { max_size: 2, table_entries: 0, vector })?;
        let len = source.tags.len().next_multiple_of(GROUP) * STAT_LEN;
        let buffer = device.buffers(1, len as u32)?.pop();
        let mut reporter = Self { queue, source, bytes: Vec::with_capacity(len) };
        if let Some(buffer) = buffer {
            reporter.give(buffer)?;
        }
        Ok(reporter)
    }

    pub(super) fn publish(&mut self) {
        self.queue.publish();
    }

    /// Gives the device new statistics if it wants them.
    pub(super) fn poll(&mut self) -> Result<(), Error> {
        if let Some(used) = self.queue.reclaim()? {
            self.give(used.owner)?;
            self.publish();
        }
        Ok(())
    }

    fn give(&mut self, mut buffer: SharedBuf) -> Result<(), Error> {
        let Self { queue, source, bytes } = self;
        bytes.clear();
        for tag in &source.tags {
            let stat = Stat { tag: (*tag).into(), val: (source.value)(*tag).into() };
            bytes.extend_from_slice(stat.as_bytes());
        }
        // The last one again and again: a device that knows its tag reads what it has read.
        while !bytes.len().is_multiple_of(GROUP * STAT_LEN) {
            bytes.extend_from_within(bytes.len() - STAT_LEN..);
        }
        buffer.write(bytes);
        // One buffer fits any queue.
        queue.add(&[Segment::from(&buffer)], &[], buffer).map_err(|not_added| not_added.error.into())
    }

    pub(super) fn arm(&mut self) -> bool {
        self.queue.arm()
    }
}
