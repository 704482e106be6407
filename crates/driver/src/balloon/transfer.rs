//! Pages on their way into the balloon, or out of it: one request at a time.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use ringway_memory::SharedBuf;
use ringway_queue::Segment;
use ringway_spec::balloon::PAGE_SIZE;

use crate::{Device, Error, Notify, QueueOptions, Stopped, Transport, Virtqueue};

/// The most pages of a request: their numbers fill a quarter of one.
pub(super) const PAGES_MAX: usize = PAGE_SIZE as usize / 16;

/// The queue for one way.
pub(super) struct Transfer<N> {
    queue: Virtqueue<Request, N>,
    /// Unless the device has it.
    idle: Option<Request>,
}

struct Request {
    buffer: SharedBuf,
    pfns: Vec<u32>,
}

impl<N: Notify> Transfer<N> {
    pub(super) fn new<T: Transport<Notifier = N>>(
        index: u16,
        device: &mut Device<T>,
        vector: Option<u16>,
    ) -> Result<Self, Error> {
        let queue = device.queue(index, QueueOptions { max_size: 2, table_entries: 0, vector })?;
        let buffer = device.buffers(1, (PAGES_MAX * size_of::<u32>()) as u32)?.pop();
        let idle = buffer.map(|buffer| Request { buffer, pfns: Vec::with_capacity(PAGES_MAX) });
        Ok(Self { queue, idle })
    }

    /// Whether no request is under way.
    pub(super) fn is_idle(&self) -> bool {
        self.idle.is_some()
    }

    /// Begins to transfer these pages, up to 256 of them, if no request is under way and there are any.
    pub(super) fn begin(&mut self, pages: impl Iterator<Item = u32>) -> Result<(), Error> {
        let Some(mut request) = self.idle.take() else { return Ok(()) };
        request.pfns.extend(pages.take(PAGES_MAX));
        let mut bytes = [0; PAGES_MAX * size_of::<u32>()];
        for (bytes, pfn) in bytes.as_chunks_mut().0.iter_mut().zip(&request.pfns) {
            *bytes = pfn.to_le_bytes();
        }
        let len = request.pfns.len() * size_of::<u32>();
        if len == 0 {
            self.idle = Some(request);
            return Ok(());
        }
        request.buffer.write(&bytes[..len]);
        let numbers = Segment { addr: request.buffer.addr(), len: len as u32 };
        // One request fits any queue.
        self.queue.add(&[numbers], &[], request).map_err(|not_added| not_added.error)?;
        self.queue.publish();
        Ok(())
    }

    /// If the device has acknowledged the request, passes on its pages; returns whether it has.
    pub(super) fn end(&mut self, each: impl FnMut(u32)) -> Result<bool, Error> {
        let Some(used) = self.queue.reclaim()? else { return Ok(false) };
        let mut request = used.owner;
        request.pfns.drain(..).for_each(each);
        self.idle = Some(request);
        Ok(true)
    }

    /// The pages under way, of a device that was stopped.
    pub(super) fn retire<T>(self, stopped: &Stopped<T>) -> impl Iterator<Item = u32> {
        self.queue.retire(stopped).into_iter().flat_map(|request| request.pfns)
    }

    pub(super) fn arm(&mut self) -> bool {
        self.queue.arm()
    }
}
