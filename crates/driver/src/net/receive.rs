//! The receive side of a pair.
//!
//! ```text
//!   recycle ──► lent ──► device ──► used ──► taken, oldest first ──► Received ──► the caller ──► recycle
//!                 ▲ flush: shown at once            │ cannot be
//!                 └─────────────────────────────────┘ counted
//! ```
#![forbid(unsafe_code)]

use alloc::collections::VecDeque;
use alloc::vec::Vec;

use ringway_memory::SharedBuf;
use ringway_spec::net::Header;

use super::frame::Frame;
use super::header::{Checksum, Format, Segments};
use crate::{Error, Notify, Virtqueue};

/// Frames handled at once: what is fetched ahead stays in the cache, and the device is told of new buffers so often.
const BURST: usize = 32;

/// A frame that came, and what its header says of it.
pub struct Received {
    /// The frame. [Give it back](Receiver::recycle), or [send it](super::Transmitter::exchange).
    pub frame: Frame,
    /// Of its checksum.
    pub checksum: Checksum,
    /// Whether it stands for several.
    pub segments: Option<Segments>,
}

/// What came and was not handed out, because it could not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Dropped {
    /// Buffers in which there was no header, or one that says of so many buffers as there cannot be.
    pub buffers: u64,
    /// Frames too short, with a checksum outside of them, or as was not negotiated.
    pub frames: u64,
}

/// The receive queue of a pair.
pub struct Receiver<N> {
    queue: Virtqueue<Frame, N>,
    format: Format,
    /// Used by the device, one buffer each, and not handed out.
    taken: VecDeque<Frame>,
    /// What the queue has no room for.
    spare: Vec<Frame>,
    dropped: Dropped,
}

impl<N: Notify> Receiver<N> {
    /// Not shown to the device before it is flushed.
    pub(super) fn new(mut queue: Virtqueue<Frame, N>, format: Format, buffers: Vec<SharedBuf>) -> Self {
        queue.suppress();
        let size = usize::from(queue.queue().size());
        let (taken, spare) = (VecDeque::with_capacity(size), Vec::with_capacity(size));
        let mut receiver = Self { queue, format, taken, spare, dropped: Dropped::default() };
        for buffer in buffers {
            receiver.lend(Frame::new(buffer));
        }
        receiver
    }

    /// Hands some of the frames that came to `each`, and their buffers back to the device. Returns how many; there may be more
    /// as long as it is not 0.
    ///
    /// # Errors
    /// [`Error::Device`]: the device broke the rules of its queue, and is to be reset.
    #[inline]
    pub fn receive(&mut self, mut each: impl FnMut(&Received)) -> Result<usize, Error> {
        let mut count = 0;
        while count < BURST
            && let Some(received) = self.next()?
        {
            each(&received);
            self.recycle(received.frame);
            count += 1;
        }
        self.flush();
        Ok(count)
    }

    /// The next frame that came, `None` if there is none. It is the caller's; the device has a buffer less until it is
    /// [recycled](Receiver::recycle).
    ///
    /// # Errors
    /// [`Error::Device`]: the device broke the rules of its queue, and is to be reset.
    #[inline]
    #[allow(clippy::should_implement_trait, reason = "it can fail, and later there may be another")]
    pub fn next(&mut self) -> Result<Option<Received>, Error> {
        loop {
            if self.taken.is_empty() && self.fetch()? == 0 {
                return Ok(None);
            }
            let Some((header, count)) = self.begin() else {
                self.dropped.buffers += 1;
                self.drop_first();
                continue;
            };
            // The device shows all buffers of a frame at once, or soon.
            while self.taken.len() < count {
                if self.fetch()? == 0 {
                    return Ok(None);
                }
            }
            let Some(frame) = self.join(count) else { return Ok(None) };
            if let Ok((checksum, segments)) = self.format.received(&header, frame.len()) {
                return Ok(Some(Received { frame, checksum, segments }));
            }
            self.dropped.frames += 1;
            self.recycle(frame);
        }
    }

    /// The header of the oldest buffer, and how many belong together.
    #[inline]
    fn begin(&self) -> Option<(Header, usize)> {
        let header: Header = zerocopy::transmute!(self.taken.front()?.header()?);
        let count = self.format.buffers(&header)?;
        // More than the queue has are never together.
        (count <= self.queue.queue().size().into()).then_some((header, count))
    }

    /// Takes what the device has used, a burst at most; returns how many buffers.
    #[inline]
    fn fetch(&mut self) -> Result<usize, Error> {
        for count in 0..BURST {
            let Some(used) = self.queue.reclaim()? else { return Ok(count) };
            let mut buffer = used.owner;
            buffer.set_written(used.written);
            buffer.prefetch();
            self.taken.push_back(buffer);
        }
        Ok(BURST)
    }

    /// The oldest buffers as one frame.
    #[inline]
    fn join(&mut self, count: usize) -> Option<Frame> {
        let mut frame = self.taken.pop_front()?;
        if count > 1 {
            let mut last = &mut frame;
            for buffer in self.taken.drain(..count - 1) {
                last = last.attach(buffer);
            }
        }
        Some(frame)
    }

    fn drop_first(&mut self) {
        if let Some(buffer) = self.taken.pop_front() {
            self.lend(buffer);
        }
    }

    /// Lends a frame's buffers to the device, to receive into: it sees them when the queue is [flushed](Receiver::flush).
    #[inline]
    pub fn recycle(&mut self, mut frame: Frame) {
        while let Some(rest) = frame.detach() {
            self.lend(frame);
            frame = rest;
        }
        self.lend(frame);
    }

    #[inline]
    fn lend(&mut self, buffer: Frame) {
        if let Err(refused) = self.queue.add(&[], &[buffer.room()], buffer) {
            self.spare.push(refused.owner);
        }
    }

    /// Shows the device all buffers that were given back, and kicks it if it waits for one. Once for a burst.
    #[inline]
    pub fn flush(&mut self) {
        while self.queue.queue().free() > 0
            && let Some(buffer) = self.spare.pop()
        {
            self.lend(buffer);
        }
        self.queue.publish();
    }

    /// Whether something came: a frame, or a part of one.
    pub fn has_work(&self) -> bool {
        self.holds_work() || self.queue.has_used()
    }

    /// Whether [`Receiver::next`] has something to do with what was taken already: a whole frame, or one to drop. Who stops
    /// asking in the middle of a burst must not sleep on the rest.
    fn holds_work(&self) -> bool {
        !self.taken.is_empty() && self.begin().is_none_or(|(_, count)| count <= self.taken.len())
    }

    /// Asks for an interrupt when something comes. Returns whether it has come already; only if not is there something to
    /// sleep for.
    #[must_use = "what came before comes without an interrupt"]
    pub fn arm(&mut self) -> bool {
        self.queue.arm() || self.holds_work()
    }

    /// Asks for no interrupts: the driver polls. That is how it is at first.
    pub fn suppress(&mut self) {
        self.queue.suppress();
    }

    /// What was dropped since the device was set up.
    pub fn dropped(&self) -> Dropped {
        self.dropped
    }

    pub(super) fn into_queue(self) -> Virtqueue<Frame, N> {
        self.queue
    }
}
