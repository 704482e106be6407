//! A frame in memory that the device reaches.
#![forbid(unsafe_code)]

use alloc::boxed::Box;

use ringway_memory::{GuestBuf, GuestSlice, SharedBuf};
use ringway_queue::Segment;
use ringway_spec::net::HDR_LEN;

/// The most buffers that a frame is spread over: enough for 64 KiB in buffers of 1600 bytes. It bounds what a device can
/// make a driver wait for and keep together.
pub(super) const MAX_BUFFERS: usize = 64;
/// Size of the header.
const HEADER: u32 = HDR_LEN as u32;

/// A frame, in one buffer or several; in the first there is room for the header before it.
///
/// All frames of a device are alike: one that was received can be sent, and one that was sent can be lent to receive into. It
/// belongs to the device that it came from: another one may not reach its memory.
///
/// While a frame is here the device has no business with it, but it may write to it all the same. What is read is a copy, to
/// be checked, and two reads may differ.
pub struct Frame(Box<Buffer>);

/// A buffer, and those behind it.
struct Buffer {
    shared: SharedBuf,
    /// Where its part of the frame begins and ends.
    start: u32,
    end: u32,
    next: Option<Frame>,
}

impl Frame {
    pub(super) fn new(shared: SharedBuf) -> Self {
        Self(Box::new(Buffer { shared, start: 0, end: 0, next: None }))
    }

    fn buffers(&self) -> impl Iterator<Item = &Buffer> {
        core::iter::successors(Some(&*self.0), |buffer| buffer.next.as_ref().map(|next| &*next.0))
    }

    /// Its length in bytes, without the header before it.
    pub fn len(&self) -> usize {
        self.buffers().map(|buffer| (buffer.end - buffer.start) as usize).sum()
    }

    /// Whether it has no byte.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How long it can be made by [`Frame::extend`].
    pub fn capacity(&self) -> usize {
        let last = self.last();
        let room = |(i, buffer): (usize, &Buffer)| {
            let end = if i < last { buffer.end } else { buffer.shared.len() };
            (end - buffer.start) as usize
        };
        self.buffers().enumerate().map(room).sum()
    }

    /// The number of the last buffer that has a byte of the frame: a device need not fill those before it.
    fn last(&self) -> usize {
        let filled = self.buffers().enumerate().filter(|(_, buffer)| buffer.start < buffer.end);
        filled.last().map_or(0, |(i, _)| i)
    }

    /// How many buffers it is in.
    pub(super) fn buffer_count(&self) -> usize {
        self.buffers().count()
    }

    /// Its bytes, piece by piece.
    pub fn pieces(&self) -> impl Iterator<Item = GuestSlice<'_>> {
        self.buffers().filter_map(Buffer::filled)
    }

    /// Copies its bytes from `skip` on to the start of `to`; returns how many there were, and room for.
    #[inline]
    pub fn read(&self, mut skip: usize, to: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in self.pieces() {
            done += GuestBuf::new(&[piece]).advance(skip).read(&mut to[done..]);
            skip = skip.saturating_sub(piece.len());
        }
        done
    }

    /// Copies `bytes` over its own from `skip` on; returns how many, for it does not grow.
    pub fn write(&mut self, mut skip: usize, bytes: &[u8]) -> usize {
        let mut done = 0;
        for piece in self.pieces() {
            done += GuestBuf::new(&[piece]).advance(skip).write(&bytes[done..]);
            skip = skip.saturating_sub(piece.len());
        }
        done
    }

    /// Appends bytes; returns how many, as many as there is room for.
    #[inline]
    pub fn extend(&mut self, bytes: &[u8]) -> usize {
        if self.is_single() {
            return self.0.extend(bytes);
        }
        let mut skip = self.last();
        let mut done = 0;
        let mut at = Some(self);
        while let Some(Self(buffer)) = at {
            if skip == 0 {
                done += buffer.extend(&bytes[done..]);
            }
            skip = skip.saturating_sub(1);
            at = buffer.next.as_mut();
        }
        done
    }

    /// Makes it empty, with room for a header before its start.
    pub(super) fn clear(&mut self) {
        let mut start = HEADER;
        let mut at = Some(self);
        while let Some(Self(buffer)) = at {
            (buffer.start, buffer.end) = (start, start);
            start = 0;
            at = buffer.next.as_mut();
        }
    }

    /// The device has written so many bytes to this one buffer, the header among them.
    #[inline]
    pub(super) fn set_written(&mut self, written: u32) {
        (self.0.start, self.0.end) = (HEADER.min(written), written);
    }

    /// Copies the header that the device wrote, if it has.
    #[inline]
    pub(super) fn header(&self) -> Option<[u8; HDR_LEN]> {
        GuestBuf::new(&[self.0.shared.part(0, self.0.end)?]).read_array()
    }

    /// Writes the header before the frame.
    #[inline]
    pub(super) fn put_header(&mut self, header: [u8; HDR_LEN]) {
        GuestBuf::new(&[self.0.shared.slice()]).write_array(header);
    }

    /// Has a buffer without a header follow this one, which is the last; returns it.
    pub(super) fn attach(&mut self, mut next: Self) -> &mut Self {
        next.0.start = 0;
        self.0.next.insert(next)
    }

    /// The buffers behind the first, which is left alone.
    #[inline]
    pub(super) fn detach(&mut self) -> Option<Self> {
        self.0.next.take()
    }

    /// Whether it is in one buffer.
    #[inline]
    pub(super) fn is_single(&self) -> bool {
        self.0.next.is_none()
    }

    /// All of the first buffer, for the device to write to.
    #[inline]
    pub(super) fn room(&self) -> Segment {
        Segment::from(&self.0.shared)
    }

    /// What the device is to read of the first buffer: header and frame.
    #[inline]
    pub(super) fn first_segment(&self) -> Segment {
        Segment { len: self.0.end, ..self.room() }
    }

    /// What the device is to read, buffer by buffer; empty ones are left out.
    pub(super) fn segments(&self) -> impl Iterator<Item = Segment> {
        let buffers = self.buffers().filter(|buffer| buffer.end > 0);
        buffers.map(|buffer| Segment { addr: buffer.shared.addr(), len: buffer.end })
    }

    /// Has the processor fetch what is looked at first.
    #[inline]
    pub(super) fn prefetch(&self) {
        self.0.shared.slice().prefetch();
    }
}

impl Buffer {
    #[inline]
    fn filled(&self) -> Option<GuestSlice<'_>> {
        self.shared.part(self.start, self.end - self.start)
    }

    #[inline]
    fn extend(&mut self, bytes: &[u8]) -> usize {
        let room = self.shared.part(self.end, self.shared.len() - self.end);
        let done = room.map_or(0, |room| GuestBuf::new(&[room]).write(bytes));
        self.end += done as u32;
        done
    }
}
