//! Free page reporting (5.5.6.7): pages whose memory the host may take, and give back when they are used again.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use ringway_queue::Segment;
use ringway_spec::balloon::{F_FREE_PAGE_HINT, FREE_PAGE_QUEUE, REPORTING_QUEUE};

use crate::{Device, Error, Notify, PageRange, Pages, Purpose, QueueOptions, Stopped, Transport, Virtqueue};

/// The most ranges of a report, and descriptors of the queue.
const RANGES_MAX: u16 = 32;

pub(super) struct Reports<N> {
    queue: Virtqueue<Vec<PageRange>, N>,
    /// What the guest promised to find in free pages.
    fill: Option<u32>,
}

impl<N: Notify> Reports<N> {
    pub(super) fn new<T: Transport<Notifier = N>>(
        device: &mut Device<T>,
        fill: Option<u32>,
        vector: Option<u16>,
    ) -> Result<Self, Error> {
        let options = QueueOptions { max_size: RANGES_MAX, table_entries: 0, vector };
        let queue = match device.queue(REPORTING_QUEUE, options) {
            // QEMU leaves no gap where 5.5.2 does.
            Err(Error::NoQueue { .. }) if !device.has(F_FREE_PAGE_HINT) => {
                device.queue(FREE_PAGE_QUEUE, options)?
            }
            queue => queue?,
        };
        Ok(Self { queue, fill })
    }

    /// Reports free pages, if no report is under way; returns how many ranges.
    pub(super) fn begin(&mut self, pages: &mut dyn Pages) -> Result<usize, Error> {
        if self.queue.queue().in_flight() > 0 {
            return Ok(0);
        }
        let max = usize::from(self.queue.queue().size());
        let ranges: Vec<_> =
            core::iter::from_fn(|| pages.lend(Purpose::Report, self.fill)).take(max).collect();
        if ranges.is_empty() {
            return Ok(0);
        }
        let room: Vec<_> = ranges.iter().map(|range| Segment { addr: range.addr, len: range.len }).collect();
        if let Err(not_added) = self.queue.add(&[], &room, ranges) {
            self.give_back(not_added.owner, pages);
            return Err(not_added.error.into());
        }
        self.queue.publish();
        Ok(room.len())
    }

    /// Gives back what the device has acknowledged.
    pub(super) fn poll(&mut self, pages: &mut dyn Pages) -> Result<(), Error> {
        while let Some(used) = self.queue.reclaim()? {
            self.give_back(used.owner, pages);
        }
        Ok(())
    }

    fn give_back(&self, ranges: Vec<PageRange>, pages: &mut dyn Pages) {
        for range in ranges {
            pages.return_lent(range, self.fill);
        }
    }

    /// What is being reported, of a device that was stopped.
    pub(super) fn retire<T>(self, stopped: &Stopped<T>) -> impl Iterator<Item = PageRange> {
        self.queue.retire(stopped).into_iter().flatten()
    }

    pub(super) fn arm(&mut self) -> bool {
        self.queue.arm()
    }
}
