//! The transmit side of a pair.
//!
//! ```text
//!   spare ──► frame ──► extend ──► submit ──► lent ──► device ──► used ──► spare, once there is no other
//!                                              ▲ flush: shown at once
//! ```
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use ringway_memory::{Gpa, SharedBuf};
use ringway_queue::{AddError, DriverError, NotAdded, Segment};
use ringway_spec::net::HDR_LEN;
use thiserror::Error;

use super::frame::{Frame, MAX_BUFFERS};
use super::header::{Format, Offload, Unsendable};
use crate::{Notify, Virtqueue};

/// Why a frame cannot be sent now, or ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SendError {
    /// The device has not sent enough of the frames before it.
    #[error("the queue is full")]
    Full,
    /// The pair is not in use: see [`Net::set_pairs`](super::Net::set_pairs).
    #[error("the pair is not in use")]
    Inactive,
    /// The frame cannot be, or its offload.
    #[error(transparent)]
    Unsendable(#[from] Unsendable),
    /// The device broke the rules of its queue, and is to be reset.
    #[error(transparent)]
    Device(#[from] DriverError),
}

/// A frame that was not sent: why, and itself.
pub struct NotSent {
    /// Why.
    pub error: SendError,
    /// What was to be sent.
    pub frame: Frame,
}

/// The transmit queue of a pair.
pub struct Transmitter<N> {
    queue: Virtqueue<Frame, N>,
    format: Format,
    /// Buffers to fill, one each.
    spare: Vec<Frame>,
    /// Whether frames may be sent on this pair.
    pub(super) is_active: bool,
    /// Bytes of a buffer.
    buffer_len: usize,
}

impl<N: Notify> Transmitter<N> {
    pub(super) fn new(mut queue: Virtqueue<Frame, N>, format: Format, buffers: Vec<SharedBuf>) -> Self {
        queue.suppress();
        let buffer_len = buffers.first().map_or(0, |buffer| buffer.len() as usize);
        let spare = buffers.into_iter().map(Frame::new).collect();
        Self { queue, format, spare, is_active: false, buffer_len }
    }

    /// Copies a frame and gives it to the device, which sees it when the queue is [flushed](Transmitter::flush).
    ///
    /// # Errors
    /// [`SendError`].
    #[inline]
    pub fn send(&mut self, bytes: &[u8], offload: &Offload) -> Result<(), SendError> {
        let mut frame = self.frame(bytes.len())?;
        frame.extend(bytes);
        self.submit(frame, offload).map_err(|NotSent { error, frame }| {
            self.keep(frame);
            error
        })
    }

    /// An empty frame with room for `len` bytes, to be filled and [submitted](Transmitter::submit).
    ///
    /// # Errors
    /// [`SendError`].
    #[inline]
    pub fn frame(&mut self, len: usize) -> Result<Frame, SendError> {
        let needed = len + HDR_LEN;
        let count = if needed <= self.buffer_len { 1 } else { needed.div_ceil(self.buffer_len) };
        if count > MAX_BUFFERS {
            let max = MAX_BUFFERS * self.buffer_len - HDR_LEN;
            return Err(Unsendable::Long { len, max }.into());
        }
        self.chain(count)
    }

    /// Gives a frame that was received to the device as it is, and returns as much room in its place, to be
    /// [recycled](super::Receiver::recycle).
    ///
    /// # Errors
    /// [`NotSent`], with the frame.
    #[inline]
    pub fn exchange(&mut self, frame: Frame, offload: &Offload) -> Result<Frame, NotSent> {
        match self.chain(frame.buffer_count()) {
            Ok(room) => match self.submit(frame, offload) {
                Ok(()) => Ok(room),
                Err(not_sent) => {
                    self.keep(room);
                    Err(not_sent)
                }
            },
            Err(error) => Err(NotSent { error, frame }),
        }
    }

    /// Gives a frame to the device as it is, without a copy. The device sees it when the queue is
    /// [flushed](Transmitter::flush).
    ///
    /// # Errors
    /// [`NotSent`], with the frame.
    #[inline]
    pub fn submit(&mut self, mut frame: Frame, offload: &Offload) -> Result<(), NotSent> {
        match self.prepare(&mut frame, offload) {
            Ok(()) => self.add(frame),
            Err(error) => Err(NotSent { error, frame }),
        }
    }

    /// Shows the device all that was given to it, and kicks it if it waits for that. Once for a burst.
    #[inline]
    pub fn flush(&mut self) {
        self.queue.publish();
    }

    /// Writes the header.
    #[inline]
    fn prepare(&self, frame: &mut Frame, offload: &Offload) -> Result<(), SendError> {
        if !self.is_active {
            return Err(SendError::Inactive);
        }
        let ethertype = || {
            let mut ethertype = [0; 2];
            frame.read(12, &mut ethertype);
            ethertype
        };
        let header = self.format.sent(offload, frame.len(), ethertype)?;
        frame.put_header(zerocopy::transmute!(header));
        Ok(())
    }

    #[inline]
    fn add(&mut self, frame: Frame) -> Result<(), NotSent> {
        let refused = match self.try_add(frame) {
            Ok(()) => return Ok(()),
            Err(refused) => refused,
        };
        // There are more frames than those of this queue, if some came from the receive queue.
        match self.reclaim() {
            Ok(()) => self.try_add(refused.owner).map_err(|NotAdded { error, owner: frame }| {
                let error = match error {
                    AddError::Full => SendError::Full,
                    _ => Unsendable::Scattered.into(),
                };
                NotSent { error, frame }
            }),
            Err(error) => Err(NotSent { error, frame: refused.owner }),
        }
    }

    #[inline]
    fn try_add(&mut self, frame: Frame) -> Result<(), NotAdded<Frame>> {
        if frame.is_single() {
            return self.queue.add(&[frame.first_segment()], &[], frame);
        }
        let mut segments = [Segment { addr: Gpa(0), len: 0 }; MAX_BUFFERS];
        let mut count = 0;
        for (to, segment) in segments.iter_mut().zip(frame.segments()) {
            *to = segment;
            count += 1;
        }
        self.queue.add(&segments[..count], &[], frame)
    }

    /// So many buffers to fill, as one.
    #[inline]
    fn chain(&mut self, count: usize) -> Result<Frame, SendError> {
        let mut frame = self.buffer()?;
        for _ in 1..count {
            // Put before the others, so that none of them is looked for.
            let mut first = match self.buffer() {
                Ok(first) => first,
                Err(error) => {
                    self.keep(frame);
                    return Err(error);
                }
            };
            first.attach(frame);
            frame = first;
        }
        frame.clear();
        Ok(frame)
    }

    /// A buffer to fill. What the device has sent is taken back when there is none left, all at once: each look at the ring
    /// takes a cache line from the device's processor.
    #[inline]
    fn buffer(&mut self) -> Result<Frame, SendError> {
        if self.spare.is_empty() {
            self.reclaim()?;
        }
        self.spare.pop().ok_or(SendError::Full)
    }

    /// Takes back what the device has sent.
    #[inline]
    fn reclaim(&mut self) -> Result<(), SendError> {
        while let Some(used) = self.queue.reclaim()? {
            self.keep(used.owner);
        }
        Ok(())
    }

    /// Keeps a frame's buffers, to be filled again.
    #[inline]
    fn keep(&mut self, mut frame: Frame) {
        while let Some(rest) = frame.detach() {
            self.spare.push(frame);
            frame = rest;
        }
        self.spare.push(frame);
    }

    /// Whether the device has sent frames since they were last taken back.
    pub fn has_work(&self) -> bool {
        self.queue.has_used()
    }

    /// Asks for an interrupt when a frame was sent: for who waits for room. Returns whether one was already; only if not is
    /// there something to sleep for.
    #[must_use = "a frame sent before comes without an interrupt"]
    pub fn arm(&mut self) -> bool {
        self.queue.arm()
    }

    /// Asks for no interrupts. That is how it is at first.
    pub fn suppress(&mut self) {
        self.queue.suppress();
    }

    pub(super) fn into_queue(self) -> Virtqueue<Frame, N> {
        self.queue
    }
}
