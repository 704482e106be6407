//! What a sender left undone and a receiver cannot do: completing a checksum.

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
    let sum = ones_complement(scratch.get(checksum.start..)?);
    // A sum of zero is sent as its other form: zero means "none" to UDP, and is the same to TCP.
    let sum = if sum == 0 { 0xffff } else { sum };
    scratch.get_mut(checksum.at..checksum.at + 2)?.copy_from_slice(&sum.to_be_bytes());
    Some(scratch)
}

/// The Internet checksum (RFC 1071) of `bytes`.
fn ones_complement(bytes: &[u8]) -> u16 {
    let (words, rest) = bytes.as_chunks::<2>();
    let mut sum: u64 = words.iter().map(|&w| u64::from(u16::from_be_bytes(w))).sum();
    if let [last] = rest {
        sum += u64::from(*last) << 8;
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
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

    /// [DEV-NET-processing-of-incoming-packets-05] The example of RFC 1071, section 3, with odd lengths and a
    /// sum that is zero.
    #[test]
    fn checksums_are_right() {
        assert_eq!(ones_complement(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]), !0xddf2);
        assert_eq!(ones_complement(&[0x01]), !0x0100);
        assert_eq!(ones_complement(&[]), 0xffff);
        assert_eq!(ones_complement(&vec![0xff; 65535]), 0xff, "no overflow: 32767 × 0xffff + 0xff00");

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
