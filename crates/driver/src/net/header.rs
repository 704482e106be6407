//! The header before each frame (5.1.6), and what it says of checksums and segments, as types.
//!
//! ```text
//!   Offload ──► Format::sent ──► header, for the device      what was not negotiated is an error of the caller's
//!   header, the device's ──► Format::received ──► Received   what was not negotiated, or cannot be, costs the frame
//! ```
//!
//! Nothing is summed or cut here. `hdr_len` of a received frame is not handed out: it is a hint that may be wrong (5.1.6.4.1).
#![forbid(unsafe_code)]

use ringway_spec::net::{
    F_CSUM, F_GUEST_CSUM, F_GUEST_ECN, F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_USO4, F_GUEST_USO6, F_HOST_ECN,
    F_HOST_TSO4, F_HOST_TSO6, F_HOST_USO, F_MRG_RXBUF, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4,
    HDR_F_DATA_VALID, HDR_F_NEEDS_CSUM, HDR_F_RSC_INFO, HDR_LEN, Header,
};
use thiserror::Error;

use super::frame::MAX_BUFFERS;

/// An Ethernet header: two addresses and a type.
pub(super) const ETH_LEN: usize = 14;
/// A VLAN's tag in it.
pub(super) const TAG_LEN: usize = 4;
/// The longest frame that is to be segmented: IP packets have up to 65535 bytes.
const MAX_SEGMENTED: usize = 65535 + ETH_LEN + TAG_LEN;
/// The types that a tag has.
const TAGGED: [[u8; 2]; 2] = [[0x81, 0x00], [0x88, 0xa8]];

/// A checksum of which the pseudo-header's sum is all that is there. Whoever completes it sums all bytes from `start` to the
/// frame's end and stores the result `offset` bytes behind `start`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Partial {
    /// Where the transport header begins, in bytes from the frame's start.
    pub start: u16,
    /// Where in it the checksum is: 16 for TCP, 6 for UDP.
    pub offset: u16,
}

impl Partial {
    /// Where the checksum ends.
    fn end(self) -> usize {
        usize::from(self.start) + usize::from(self.offset) + 2
    }
}

/// What is known of a received frame's checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksum {
    /// Nothing: check it.
    Unknown,
    /// It is right.
    Valid,
    /// It crossed no wire, and was not completed. Nor need it be, to be delivered here.
    Partial(Partial),
}

/// What segments are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// TCP over IPv4.
    TcpV4,
    /// TCP over IPv6.
    TcpV6,
    /// UDP: a datagram of each segment.
    Udp,
}

/// A frame that stands for several.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segments {
    /// Of what.
    pub kind: Kind,
    /// It is TCP with congestion notified (CWR).
    pub ecn: bool,
    /// Payload bytes of each, but for the last one.
    pub size: u16,
}

/// What a device is to do to a frame that it is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// Nothing: the frame is complete.
    None,
    /// To complete its checksum.
    Checksum(Partial),
    /// To cut it, and complete the checksum of each segment.
    Segment {
        /// Into what.
        segments: Segments,
        /// Length of the headers before the payload, transport header included. It is to be exact (`GUEST_HDRLEN`).
        header_len: u16,
        /// The checksum of the transport header.
        checksum: Partial,
    },
}

/// Why a frame is not sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Unsendable {
    /// It has no Ethernet header.
    #[error("a frame of {0} bytes has no Ethernet header")]
    Short(usize),
    /// It is longer than the MTU allows, or than a frame to be segmented may be.
    #[error("a frame of {len} bytes is longer than {max}")]
    Long {
        /// Its bytes.
        len: usize,
        /// The most it may have.
        max: usize,
    },
    /// It is in more buffers than the queue has descriptors.
    #[error("the frame is in more buffers than the queue has descriptors")]
    Scattered,
    /// The device does not do this to frames.
    #[error("this needs feature {0:#x}, which was not negotiated")]
    NotNegotiated(u64),
    /// The checksum is not inside of the frame, or not of the headers.
    #[error("there is no checksum at {0:?}")]
    BadChecksum(Partial),
    /// No size, headers longer than the frame, or ECN without TCP.
    #[error("nothing can be cut into {0:?}")]
    BadSegments(Segments),
}

/// A device's header that cannot be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct BadHeader;

/// What was negotiated of frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Format {
    features: u64,
    /// Bytes of IP packets.
    pub(super) mtu: u16,
}

impl Format {
    pub(super) fn new(features: u64, mtu: u16) -> Self {
        Self { features, mtu }
    }

    /// The longest frame that may come, and its header.
    pub(super) fn max_received(&self) -> usize {
        // What the text recommends for segments, 65601 bytes, has room for a header of headers too.
        const SEGMENTS: usize = 65601 - HDR_LEN;
        const LEAST: usize = 1526 - HDR_LEN;
        let one = usize::from(self.mtu) + ETH_LEN + TAG_LEN;
        let any = F_GUEST_TSO4 | F_GUEST_TSO6 | F_GUEST_USO4 | F_GUEST_USO6;
        let len = if self.has_one_of(any) { SEGMENTS.max(one) } else { LEAST.max(one) };
        len + HDR_LEN
    }

    #[inline]
    fn has(&self, feature: u64) -> bool {
        self.features & feature == feature
    }

    #[inline]
    fn has_one_of(&self, features: u64) -> bool {
        self.features & features != 0
    }

    /// The header of a frame of `len` bytes to send; `ethertype` is what its Ethernet header says.
    ///
    /// # Errors
    /// [`Unsendable`].
    #[inline]
    pub(super) fn sent(
        &self,
        offload: &Offload,
        len: usize,
        ethertype: impl FnOnce() -> [u8; 2],
    ) -> Result<Header, Unsendable> {
        if len < ETH_LEN {
            return Err(Unsendable::Short(len));
        }
        let max = usize::from(self.mtu) + ETH_LEN;
        let is_segmented = matches!(offload, Offload::Segment { .. });
        if len > max && !is_segmented {
            let is_tagged = len <= max + TAG_LEN && TAGGED.contains(&ethertype());
            if !is_tagged {
                return Err(Unsendable::Long { len, max });
            }
        }
        let mut header = Header::default();
        match *offload {
            Offload::None => {}
            Offload::Checksum(checksum) => self.sum(checksum, len, &mut header)?,
            Offload::Segment { segments, header_len, checksum } => {
                if len > MAX_SEGMENTED {
                    return Err(Unsendable::Long { len, max: MAX_SEGMENTED });
                }
                self.sum(checksum, header_len.into(), &mut header)?;
                if segments.size == 0 || usize::from(header_len) > len {
                    return Err(Unsendable::BadSegments(segments));
                }
                header.gso_type = self.sent_type(segments)?;
                header.gso_size = segments.size.into();
                header.hdr_len = header_len.into();
            }
        }
        // At least the length of the headers, which are not looked for (5.1.6.2.1).
        if !is_segmented && self.has_one_of(F_HOST_TSO4 | F_HOST_TSO6 | F_HOST_USO) {
            header.hdr_len = (len.min(u16::MAX.into()) as u16).into();
        }
        Ok(header)
    }

    /// Asks for a checksum, whose place is in the first `within` bytes.
    fn sum(&self, checksum: Partial, within: usize, header: &mut Header) -> Result<(), Unsendable> {
        if !self.has(F_CSUM) {
            return Err(Unsendable::NotNegotiated(F_CSUM));
        }
        if checksum.end() > within {
            return Err(Unsendable::BadChecksum(checksum));
        }
        header.flags = HDR_F_NEEDS_CSUM;
        header.csum_start = checksum.start.into();
        header.csum_offset = checksum.offset.into();
        Ok(())
    }

    fn sent_type(&self, segments: Segments) -> Result<u8, Unsendable> {
        let (gso_type, feature) = match segments.kind {
            Kind::TcpV4 => (GSO_TCPV4, F_HOST_TSO4),
            Kind::TcpV6 => (GSO_TCPV6, F_HOST_TSO6),
            Kind::Udp if segments.ecn => return Err(Unsendable::BadSegments(segments)),
            Kind::Udp => (GSO_UDP_L4, F_HOST_USO),
        };
        let (ecn, feature) = if segments.ecn { (GSO_ECN, feature | F_HOST_ECN) } else { (0, feature) };
        if self.has(feature) {
            Ok(gso_type | ecn)
        } else {
            Err(Unsendable::NotNegotiated(feature & !self.features))
        }
    }

    /// How many buffers a received frame is spread over, if that can be.
    #[inline]
    pub(super) fn buffers(&self, header: &Header) -> Option<usize> {
        // Without `MRG_RXBUF` it is 1, or left by a device that knows nothing of it.
        let count = if self.has(F_MRG_RXBUF) { header.num_buffers.get().into() } else { 1 };
        (1..=MAX_BUFFERS).contains(&count).then_some(count)
    }

    /// What a header says of a received frame of `len` bytes. Flags that are not known are ignored.
    ///
    /// # Errors
    /// [`BadHeader`] if it cannot be, or was not negotiated.
    #[inline]
    pub(super) fn received(
        &self,
        header: &Header,
        len: usize,
    ) -> Result<(Checksum, Option<Segments>), BadHeader> {
        if len < ETH_LEN {
            return Err(BadHeader);
        }
        // Nearly all frames.
        if header.flags == 0 && header.gso_type == GSO_NONE {
            return Ok((Checksum::Unknown, None));
        }
        let segments = self.received_segments(header)?;
        Ok((self.received_checksum(header, len)?, segments))
    }

    fn received_checksum(&self, header: &Header, len: usize) -> Result<Checksum, BadHeader> {
        let needs = header.flags & HDR_F_NEEDS_CSUM != 0;
        match (self.has(F_GUEST_CSUM), needs) {
            (false, true) => Err(BadHeader),
            // With `RSC_INFO` the fields mean something else.
            (true, true) if header.flags & HDR_F_RSC_INFO == 0 => {
                let partial = Partial { start: header.csum_start.get(), offset: header.csum_offset.get() };
                if partial.end() <= len { Ok(Checksum::Partial(partial)) } else { Err(BadHeader) }
            }
            (true, false) if header.flags & HDR_F_DATA_VALID != 0 => Ok(Checksum::Valid),
            _ => Ok(Checksum::Unknown),
        }
    }

    fn received_segments(&self, header: &Header) -> Result<Option<Segments>, BadHeader> {
        let ecn = header.gso_type & GSO_ECN != 0;
        // Types of tunnels are among those that are not known.
        let (kind, features) = match header.gso_type & !GSO_ECN {
            GSO_NONE if !ecn => return Ok(None),
            GSO_TCPV4 => (Kind::TcpV4, F_GUEST_TSO4),
            GSO_TCPV6 => (Kind::TcpV6, F_GUEST_TSO6),
            GSO_UDP_L4 if !ecn => (Kind::Udp, F_GUEST_USO4 | F_GUEST_USO6),
            _ => return Err(BadHeader),
        };
        let size = header.gso_size.get();
        if !self.has_one_of(features) || ecn && !self.has(F_GUEST_ECN) || size == 0 {
            return Err(BadHeader);
        }
        Ok(Some(Segments { kind, ecn, size }))
    }
}
