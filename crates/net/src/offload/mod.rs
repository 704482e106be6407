//! What a sender left undone and a receiver cannot do: completing a checksum, cutting a frame into segments.
//!
//! A frame that is worked on is copied here first, and then to its receiver. One case needs no copy here: a
//! receiver that completes checksums itself is given segments whose payload is still in the sender's memory.
//!
//! Not here: who takes what as it is (`ringway_device::net::Offloads`).

pub mod checksum;
mod segment;

pub use segment::{MAX_HEADERS, Segment, SegmentError, Segmenter};

use std::hash::BuildHasher;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use arrayvec::ArrayVec;
use checksum::Sum;
use foldhash::quality::RandomState;
use ringway_device::net::Checksum;
use ringway_memory::{GuestBuf, GuestSlice};
use ringway_spec::net::Header;

use crate::counters::DropReason;
use crate::frame::{Frame, Prefix};

/// The longest frame that is worked on, in bytes: the largest IP packet in a tagged frame.
pub(crate) const MAX_FRAME: usize = 65535 + 18;

/// The most segments that are made of a frame: those of the longest one, of 32 bytes. Nobody has to wait for more.
const MAX_SEGMENTS: usize = 2048;
/// Segments of frames in more pieces than this are made of a copy.
const MAX_PIECES: usize = 64;

/// Checks that a frame to be segmented can be, as its sender's header says; returns that header, with the length of the
/// frame's headers as it is.
#[inline(never)]
pub(crate) fn check(header: Header, frame: GuestBuf<'_>) -> Result<Header, SegmentError> {
    let mut head = [0; MAX_HEADERS];
    let read = frame.read(&mut head);
    let segmenter = Segmenter::new(header, &head[..read], frame.len())?;
    Ok(Header { hdr_len: segmenter.hdr_len().into(), ..header })
}

/// Cuts a frame into segments, and has `deliver` write one after the other; returns whether that took a copy. With
/// `is_partial` the receiver completes checksums.
///
/// # Errors
/// The first of `deliver`, which ends it; [`DropReason::Unsegmentable`] if there are too many, or the frame is not what
/// was checked any more.
pub(crate) fn cut<E: From<DropReason>>(
    frame: &Frame<'_>,
    is_partial: bool,
    scratch: &mut Vec<u8>,
    mut deliver: impl FnMut(&Frame<'_>) -> Result<(), E>,
) -> Result<bool, E> {
    let segmenter = |head: &[u8]| {
        let segmenter = Segmenter::new(frame.header.unwrap_or_default(), head, frame.len());
        segmenter.ok().filter(|s| s.count() <= MAX_SEGMENTS).ok_or(DropReason::Unsegmentable)
    };
    if is_partial && frame.data.pieces().count() < MAX_PIECES {
        let mut head = [0; MAX_HEADERS];
        let read = frame.read(&mut head);
        let mut segmenter = segmenter(&head[..read])?;
        if segmenter.whole_checksum().is_none() {
            let mut rest = frame.data;
            while let Some(segment) = segmenter.next_segment() {
                let left = frame.len() - segment.payload.start;
                rest = rest.advance(rest.len() - left);
                let header = Some(segment.header());
                let payload = rest.truncate(segment.payload.len());
                let slices: ArrayVec<_, MAX_PIECES> =
                    std::iter::once(GuestSlice::from_mut(segment.headers)).chain(payload.pieces()).collect();
                let data = GuestBuf::new(&slices);
                deliver(&Frame { header, prefix: Prefix::default(), data, ..*frame })?;
            }
            return Ok(false);
        }
    }
    frame.copy_to(scratch);
    let mut segmenter = segmenter(scratch)?;
    if let Some(checksum) = segmenter.whole_checksum() {
        complete(scratch, checksum);
    }
    while let Some(mut segment) = segmenter.next_segment() {
        let payload = &mut scratch[segment.payload.clone()];
        segment.complete(payload);
        let slices = [GuestSlice::from_mut(segment.headers), GuestSlice::from_mut(payload)];
        let data = GuestBuf::new(&slices);
        deliver(&Frame { header: None, prefix: Prefix::default(), data, ..*frame })?;
    }
    Ok(true)
}

/// Copies a frame to `scratch` and completes its checksum there; `None` if the frame is too long or the
/// checksum outside of it.
pub(crate) fn complete_checksum<'s>(
    frame: &Frame<'_>,
    checksum: Checksum,
    scratch: &'s mut Vec<u8>,
) -> Option<&'s mut [u8]> {
    if frame.len() > MAX_FRAME {
        return None;
    }
    frame.copy_to(scratch);
    complete(scratch, checksum).then_some(scratch)
}

/// Completes the checksum of a frame that is here; `false` if it is outside of it.
pub fn complete(frame: &mut [u8], Checksum { start, at }: Checksum) -> bool {
    let Some(summed) = frame.get(start..) else { return false };
    // A sum of zero is sent as its other form: zero means "none" to UDP, and is the same to TCP.
    let field = match Sum::of(summed).complement().get() {
        0 => 0xffff,
        field => field,
    };
    let Some(place) = frame.get_mut(at..at + 2) else { return false };
    place.copy_from_slice(&field.to_be_bytes());
    true
}

/// A number for a packet to be fragmented, which nobody foretells (RFC 7739).
fn identification() -> u32 {
    static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::default);
    static COUNT: AtomicU32 = AtomicU32::new(0);
    HASHER.hash_one(COUNT.fetch_add(1, Ordering::Relaxed)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::frame::{Ethernet, Mac};

    fn frame(data: GuestBuf<'_>) -> Frame<'_> {
        let none = Mac::new([0; 6]);
        let ethernet = Ethernet { dst: none, src: none, vlan: 0, len: 0 };
        Frame { header: None, ethernet, prefix: Prefix::default(), data }
    }

    /// [DEV-NET-processing-of-incoming-packets-05] What is completed is a copy; a sum of zero has another form.
    #[test]
    fn a_checksum_is_completed() {
        let mut bytes = [9, 9, 0x12, 0x34, 0, 0, 0xed, 0xcb];
        let slices = [GuestSlice::from_mut(&mut bytes)];
        let mut scratch = Vec::new();
        let done =
            complete_checksum(&frame(GuestBuf::new(&slices)), Checksum { start: 2, at: 4 }, &mut scratch);
        assert_eq!(done.unwrap(), &[9, 9, 0x12, 0x34, 0xff, 0xff, 0xed, 0xcb], "0 is sent as 0xffff");
    }

    #[test]
    fn a_checksum_outside_of_the_frame_is_refused() {
        let mut bytes = [0; 8];
        let slices = [GuestSlice::from_mut(&mut bytes)];
        for checksum in
            [Checksum { start: 9, at: 4 }, Checksum { start: 2, at: 7 }, Checksum { start: 0, at: 8 }]
        {
            assert!(complete_checksum(&frame(GuestBuf::new(&slices)), checksum, &mut Vec::new()).is_none());
        }
    }
}
