//! Network device (5.1).
//!
//! Queue indices: `receiveq1` 0, `transmitq1` 1, `receiveq2` 2, … and the control queue last, after
//! `max_virtqueue_pairs` pairs with `MQ`, after one pair without (5.1.2).

use zerocopy::little_endian::U16;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The device id of a network device.
pub const DEVICE_ID: u32 = 1;

/// The device takes frames with a partial checksum (5.1.3).
pub const F_CSUM: u64 = 1 << 0;
/// The driver takes frames with a partial checksum.
pub const F_GUEST_CSUM: u64 = 1 << 1;
/// The device says its maximum MTU.
pub const F_MTU: u64 = 1 << 3;
/// The device has a MAC address.
pub const F_MAC: u64 = 1 << 5;
/// The driver takes TCP over IPv4 frames to be segmented.
pub const F_GUEST_TSO4: u64 = 1 << 7;
/// The driver takes TCP over IPv6 frames to be segmented.
pub const F_GUEST_TSO6: u64 = 1 << 8;
/// The driver takes TSO frames with ECN.
pub const F_GUEST_ECN: u64 = 1 << 9;
/// The device takes TCP over IPv4 frames to be segmented.
pub const F_HOST_TSO4: u64 = 1 << 11;
/// The device takes TCP over IPv6 frames to be segmented.
pub const F_HOST_TSO6: u64 = 1 << 12;
/// The device takes TSO frames with ECN.
pub const F_HOST_ECN: u64 = 1 << 13;
/// The driver merges receive buffers.
pub const F_MRG_RXBUF: u64 = 1 << 15;
/// The configuration's `status` field is there.
pub const F_STATUS: u64 = 1 << 16;
/// There is a control queue.
pub const F_CTRL_VQ: u64 = 1 << 17;
/// There can be several queue pairs with automatic receive steering.
pub const F_MQ: u64 = 1 << 22;

/// `status`: the link is up (5.1.4).
pub const S_LINK_UP: u16 = 1;

/// `max_virtqueue_pairs` and the `MQ` command's argument: smallest (5.1.4).
pub const MQ_PAIRS_MIN: u16 = 1;
/// `max_virtqueue_pairs` and the `MQ` command's argument: largest.
pub const MQ_PAIRS_MAX: u16 = 0x8000;
/// The smallest `mtu` a device may say (5.1.4.1).
pub const MTU_MIN: u16 = 68;

/// The device configuration (5.1.4) as far as the offered features have fields.
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// MAC address, with `F_MAC`.
    pub mac: [u8; 6],
    /// [`S_LINK_UP`], with `F_STATUS`.
    pub status: U16,
    /// With `F_MQ`.
    pub max_virtqueue_pairs: U16,
    /// In bytes, without the Ethernet header; with `F_MTU`.
    pub mtu: U16,
}

/// The header before each frame (5.1.6). A legacy driver without `MRG_RXBUF` leaves out `num_buffers`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Header {
    /// [`HDR_F_NEEDS_CSUM`], [`HDR_F_DATA_VALID`].
    pub flags: u8,
    /// [`GSO_NONE`] and its siblings.
    pub gso_type: u8,
    /// A hint: length of the headers, transport header included, in bytes.
    pub hdr_len: U16,
    /// Payload bytes of one segment.
    pub gso_size: U16,
    /// Where the checksum begins, in bytes from the frame's start.
    pub csum_start: U16,
    /// Where it is stored, in bytes from `csum_start`.
    pub csum_offset: U16,
    /// Receive buffers that the frame is spread over.
    pub num_buffers: U16,
}

/// Size of [`Header`] with `VERSION_1` or `MRG_RXBUF`.
pub const HDR_LEN: usize = 12;
/// Size of the header of a legacy driver without `MRG_RXBUF`.
pub const HDR_LEN_LEGACY: usize = 10;

/// The checksum at `csum_start + csum_offset` holds the pseudo-header's sum only.
pub const HDR_F_NEEDS_CSUM: u8 = 1;
/// The checksum has been validated.
pub const HDR_F_DATA_VALID: u8 = 2;

/// One frame, nothing to segment.
pub const GSO_NONE: u8 = 0;
/// TCP over IPv4, to be segmented.
pub const GSO_TCPV4: u8 = 1;
/// TCP over IPv6, to be segmented.
pub const GSO_TCPV6: u8 = 4;
/// Flag beside the type: TCP has ECN set.
pub const GSO_ECN: u8 = 0x80;

/// Control command class: number of queue pairs (5.1.6.5.6).
pub const CTRL_MQ: u8 = 4;
/// Command of [`CTRL_MQ`]: use this many pairs, a little-endian `u16`.
pub const CTRL_MQ_VQ_PAIRS_SET: u8 = 0;
/// The command was carried out.
pub const CTRL_OK: u8 = 0;
/// The command failed.
pub const CTRL_ERR: u8 = 1;
