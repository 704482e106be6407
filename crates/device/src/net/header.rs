//! From the header a driver sent (5.1.6.2) to the header another receives (5.1.6.4).
//!
//! ```text
//!  sent ──check_sent──► what it says ──receive──► as it is        the receiver takes the rest on itself
//!             │                             ├───► complete        its checksum, that the receiver does not
//!             └─► malformed                 ├───► segment         and each segment once more from "receive" on
//!                                           └───► too long
//! ```
//!
//! A header is believed as far as it concerns its sender only: a position is checked against the frame before
//! anything is done with it, and a lie costs the frame. Whether the frame's own headers agree is not seen here, nor is
//! anything summed or cut.

use ringway_spec::net::{
    F_CSUM, F_GUEST_CSUM, F_GUEST_ECN, F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_UFO, F_GUEST_USO4, F_GUEST_USO6,
    F_HOST_ECN, F_HOST_TSO4, F_HOST_TSO6, F_HOST_UFO, F_HOST_USO, F_MTU, GSO_ECN, GSO_NONE, GSO_TCPV4,
    GSO_TCPV6, GSO_UDP, GSO_UDP_L4, HDR_F_NEEDS_CSUM, Header,
};
use thiserror::Error;

/// What a driver negotiated of checksums, segmentation and frame sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads {
    acked: u64,
    mtu: Option<u16>,
}

/// Where a checksum has to be completed: the sum of all bytes from `start` on is stored at `at`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checksum {
    /// First byte to sum, from the frame's start.
    pub start: usize,
    /// Where the two bytes are stored, from the frame's start.
    pub at: usize,
}

/// What the device does to a frame before a receiver that cannot do it gets it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Nothing: the frame reaches the receiver as it is.
    Nothing,
    /// Its checksum is completed.
    Complete(Checksum),
    /// It is cut into segments, which reach the receiver one by one.
    Segment,
}

/// How a frame reaches a receiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Receive {
    /// The header to deliver; `num_buffers` is 1 until it is known. Of a frame to be segmented it is the sender's.
    pub header: Header,
    /// What the device does before.
    pub work: Work,
}

/// Why a frame is not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum HeaderError {
    /// The sender's header contradicts the frame or the negotiation.
    #[error("the frame's header is wrong")]
    Malformed,
    /// The frame is longer than the receiver's MTU.
    #[error("the frame is longer than the receiver's MTU")]
    TooLong,
}

impl Offloads {
    /// By the features acked, and the MTU that the device says.
    pub fn new(acked: u64, mtu: Option<u16>) -> Self {
        Self { acked, mtu: mtu.filter(|_| acked & F_MTU != 0) }
    }

    /// What a port without a driver takes and gives: any frame (the kernel's tap, a sink).
    pub fn all() -> Self {
        Self { acked: u64::MAX, mtu: None }
    }

    /// The features acked.
    pub fn acked(&self) -> u64 {
        self.acked
    }

    /// Checks what the driver with these offloads wrote before a frame of `len` bytes. The result means what it
    /// says; fields that the driver has no right to set are cleared.
    ///
    /// # Errors
    /// [`HeaderError::Malformed`].
    pub fn check_sent(&self, sent: Header, len: usize) -> Result<Header, HeaderError> {
        // Nearly all frames: nothing set, nothing to check.
        if sent.flags & HDR_F_NEEDS_CSUM == 0 && sent.gso_type == GSO_NONE {
            return Ok(Header::default());
        }
        let mut header = Header::default();
        if sent.flags & HDR_F_NEEDS_CSUM != 0 && self.has(F_CSUM) {
            let end = usize::from(sent.csum_start.get()) + usize::from(sent.csum_offset.get()) + 2;
            if end > len {
                return Err(HeaderError::Malformed);
            }
            header.flags = HDR_F_NEEDS_CSUM;
            header.csum_start = sent.csum_start;
            header.csum_offset = sent.csum_offset;
        }
        if sent.gso_type != GSO_NONE {
            let needed = host_features(sent.gso_type).ok_or(HeaderError::Malformed)?;
            // A frame to be segmented has its checksum completed per segment (5.1.6.2.1).
            if !self.has(needed) || header.flags & HDR_F_NEEDS_CSUM == 0 || sent.gso_size.get() == 0 {
                return Err(HeaderError::Malformed);
            }
            header.gso_type = sent.gso_type;
            header.gso_size = sent.gso_size;
            header.hdr_len = sent.hdr_len.get().min(len as u16).into();
        }
        Ok(header)
    }

    /// How a frame, whose checked header is `sent`, reaches a driver with these offloads; `len` is its length
    /// without the Ethernet header, in bytes, which the MTU bounds unless the frame is to be segmented (5.1.4.1).
    ///
    /// # Errors
    /// [`HeaderError::TooLong`].
    #[inline]
    pub fn receive(&self, sent: Header, len: usize) -> Result<Receive, HeaderError> {
        let mut header = Header { num_buffers: 1.into(), ..sent };
        if sent.gso_type == GSO_NONE {
            self.check_len(len)?;
        } else if !guest_features(sent.gso_type).is_some_and(|needed| self.has(needed | F_GUEST_CSUM)) {
            return Ok(Receive { header, work: Work::Segment });
        }
        if sent.flags & HDR_F_NEEDS_CSUM == 0 || self.completes_checksums() {
            return Ok(Receive { header, work: Work::Nothing });
        }
        let start = usize::from(sent.csum_start.get());
        let at = start + usize::from(sent.csum_offset.get());
        header.flags = 0;
        header.csum_start = 0.into();
        header.csum_offset = 0.into();
        Ok(Receive { header, work: Work::Complete(Checksum { start, at }) })
    }

    /// Whether a frame of `len` bytes, its Ethernet header apart, whose header says nothing, reaches the driver.
    ///
    /// # Errors
    /// [`HeaderError::TooLong`].
    #[inline]
    pub fn check_len(&self, len: usize) -> Result<(), HeaderError> {
        if self.mtu.is_some_and(|mtu| len > usize::from(mtu)) { Err(HeaderError::TooLong) } else { Ok(()) }
    }

    /// Whether the driver takes frames with a partial checksum.
    #[inline]
    pub fn completes_checksums(&self) -> bool {
        self.has(F_GUEST_CSUM)
    }

    fn has(&self, features: u64) -> bool {
        self.acked & features == features
    }
}

/// The features by which a driver may send frames of a type; `None` for a type unknown.
fn host_features(gso_type: u8) -> Option<u64> {
    Some(match gso_type {
        GSO_TCPV4 => F_HOST_TSO4,
        GSO_TCPV6 => F_HOST_TSO6,
        GSO_UDP => F_HOST_UFO,
        GSO_UDP_L4 => F_HOST_USO,
        _ => host_features(tcp_with_ecn(gso_type)?)? | F_HOST_ECN,
    })
}

/// The features by which a driver takes frames of a type.
fn guest_features(gso_type: u8) -> Option<u64> {
    Some(match gso_type {
        GSO_TCPV4 => F_GUEST_TSO4,
        GSO_TCPV6 => F_GUEST_TSO6,
        GSO_UDP => F_GUEST_UFO,
        // The type does not say of which IP; a driver that takes one of the two gets them in pieces.
        GSO_UDP_L4 => F_GUEST_USO4 | F_GUEST_USO6,
        _ => guest_features(tcp_with_ecn(gso_type)?)? | F_GUEST_ECN,
    })
}

/// The type beside the flag, which goes with TCP only.
fn tcp_with_ecn(gso_type: u8) -> Option<u8> {
    let base = gso_type & !GSO_ECN;
    (base != gso_type && matches!(base, GSO_TCPV4 | GSO_TCPV6)).then_some(base)
}
