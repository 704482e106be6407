//! What a sender left undone and a receiver cannot do: completing a checksum, cutting a frame into segments.
//!
//! Not here: who takes what as it is (`ringway_device::net::Offloads`).

pub mod checksum;
mod segment;

pub use segment::{MAX_HEADERS, Segment, SegmentError, Segmenter};

use std::hash::BuildHasher;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU32, Ordering};

use checksum::Sum;
use foldhash::quality::RandomState;
use ringway_device::net::Checksum;

use crate::frame::Frame;

/// The longest frame that is worked on, in bytes: the largest IP packet in a tagged frame.
pub(crate) const MAX_FRAME: usize = 65535 + 18;

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
    use ringway_memory::{GuestBuf, GuestSlice};

    use crate::frame::{Ethernet, Mac, Prefix};

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
