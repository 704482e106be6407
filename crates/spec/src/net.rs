//! Network device (5.1).
//!
//! Queue indices: `receiveq1` 0, `transmitq1` 1, `receiveq2` 2, … and the control queue last, after
//! `max_virtqueue_pairs` pairs with `MQ`, after one pair without (5.1.2).

use zerocopy::little_endian::{U16, U32};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The device id of a network device.
pub const DEVICE_ID: u32 = 1;

/// The device takes frames with a partial checksum (5.1.3).
pub const F_CSUM: u64 = 1 << 0;
/// The driver takes frames with a partial checksum.
pub const F_GUEST_CSUM: u64 = 1 << 1;
/// The driver may turn offloads of its receive side on and off.
pub const F_CTRL_GUEST_OFFLOADS: u64 = 1 << 2;
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
/// The driver takes UDP datagrams to be fragmented.
pub const F_GUEST_UFO: u64 = 1 << 10;
/// The device takes TCP over IPv4 frames to be segmented.
pub const F_HOST_TSO4: u64 = 1 << 11;
/// The device takes TCP over IPv6 frames to be segmented.
pub const F_HOST_TSO6: u64 = 1 << 12;
/// The device takes TSO frames with ECN.
pub const F_HOST_ECN: u64 = 1 << 13;
/// The device takes UDP datagrams to be fragmented.
pub const F_HOST_UFO: u64 = 1 << 14;
/// The driver merges receive buffers.
pub const F_MRG_RXBUF: u64 = 1 << 15;
/// The configuration's `status` field is there.
pub const F_STATUS: u64 = 1 << 16;
/// There is a control queue.
pub const F_CTRL_VQ: u64 = 1 << 17;
/// The driver says which frames it wants.
pub const F_CTRL_RX: u64 = 1 << 18;
/// The driver says which VLANs it wants.
pub const F_CTRL_VLAN: u64 = 1 << 19;
/// The driver has more ways to say which frames it wants.
pub const F_CTRL_RX_EXTRA: u64 = 1 << 20;
/// The driver tells its network where it is when the device asks it to.
pub const F_GUEST_ANNOUNCE: u64 = 1 << 21;
/// There can be several queue pairs with automatic receive steering.
pub const F_MQ: u64 = 1 << 22;
/// The driver may set the MAC address.
pub const F_CTRL_MAC_ADDR: u64 = 1 << 23;
/// The driver takes UDP over IPv4 frames to be segmented.
pub const F_GUEST_USO4: u64 = 1 << 54;
/// The driver takes UDP over IPv6 frames to be segmented.
pub const F_GUEST_USO6: u64 = 1 << 55;
/// The device takes UDP frames to be segmented.
pub const F_HOST_USO: u64 = 1 << 56;
/// The device says the hash of each frame.
pub const F_HASH_REPORT: u64 = 1 << 57;
/// `hdr_len` of a frame to be segmented is exact.
pub const F_GUEST_HDRLEN: u64 = 1 << 59;
/// Receive queues are chosen by a hash and a table of the driver's.
pub const F_RSS: u64 = 1 << 60;
/// The device says its speed and duplex.
pub const F_SPEED_DUPLEX: u64 = 1 << 63;

/// `status`: the link is up (5.1.4).
pub const S_LINK_UP: u16 = 1;
/// `status`: the driver shall announce itself.
pub const S_ANNOUNCE: u16 = 2;

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
    /// In Mbit/s, with `F_SPEED_DUPLEX`.
    pub speed: U32,
    /// With `F_SPEED_DUPLEX`.
    pub duplex: u8,
    /// In bytes, with `F_RSS` or `F_HASH_REPORT`.
    pub rss_max_key_size: u8,
    /// In entries, with `F_RSS`.
    pub rss_max_indirection_table_length: U16,
    /// With `F_RSS` or `F_HASH_REPORT`.
    pub supported_hash_types: U32,
}

/// The largest `speed` that is known (5.1.4.1).
pub const SPEED_MAX: u32 = 0x7fff_ffff;
/// `duplex`: one way at a time.
pub const DUPLEX_HALF: u8 = 1;
/// `duplex`: both ways at once.
pub const DUPLEX_FULL: u8 = 0;
/// The smallest `rss_max_key_size` that a device may say, and what Linux takes at most.
pub const RSS_KEY_SIZE: u8 = 40;
/// The smallest `rss_max_indirection_table_length` that a device may say, and what Linux takes at most.
pub const RSS_TABLE_LEN: u16 = 128;

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
/// Size of the header with `HASH_REPORT`: a [`HashReport`] comes after [`Header`].
pub const HDR_LEN_HASH: usize = 20;
/// Size of the header of a legacy driver without `MRG_RXBUF`.
pub const HDR_LEN_LEGACY: usize = 10;

/// The checksum at `csum_start + csum_offset` holds the pseudo-header's sum only.
pub const HDR_F_NEEDS_CSUM: u8 = 1;
/// The checksum has been validated.
pub const HDR_F_DATA_VALID: u8 = 2;
/// The frame was made of several, and `csum_start` and `csum_offset` say of how many; with `RSC_EXT` only.
pub const HDR_F_RSC_INFO: u8 = 4;

/// One frame, nothing to segment.
pub const GSO_NONE: u8 = 0;
/// TCP over IPv4, to be segmented.
pub const GSO_TCPV4: u8 = 1;
/// A UDP datagram, to be fragmented.
pub const GSO_UDP: u8 = 3;
/// TCP over IPv6, to be segmented.
pub const GSO_TCPV6: u8 = 4;
/// UDP, to be segmented: a datagram of each piece.
pub const GSO_UDP_L4: u8 = 5;
/// Flag beside the type: TCP has ECN set.
pub const GSO_ECN: u8 = 0x80;

/// What `HASH_REPORT` adds to the header (5.1.6.4.4).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct HashReport {
    /// The hash; 0 if there is none.
    pub value: U32,
    /// [`HASH_REPORT_NONE`] and its siblings.
    pub report: U16,
    /// 0.
    pub padding: U16,
}

/// Hash types: addresses of IPv4 (5.1.6.4.3).
pub const HASH_TYPE_IPV4: u32 = 1 << 0;
/// Addresses and ports of TCP over IPv4.
pub const HASH_TYPE_TCPV4: u32 = 1 << 1;
/// Addresses and ports of UDP over IPv4.
pub const HASH_TYPE_UDPV4: u32 = 1 << 2;
/// Addresses of IPv6.
pub const HASH_TYPE_IPV6: u32 = 1 << 3;
/// Addresses and ports of TCP over IPv6.
pub const HASH_TYPE_TCPV6: u32 = 1 << 4;
/// Addresses and ports of UDP over IPv6.
pub const HASH_TYPE_UDPV6: u32 = 1 << 5;

/// No hash was calculated. Other reports are one more than the number of their hash type's bit.
pub const HASH_REPORT_NONE: u16 = 0;

/// Control command class: what to receive (5.1.6.5.1).
pub const CTRL_RX: u8 = 0;
/// Commands of [`CTRL_RX`], with one byte, 0 or 1: all frames.
pub const CTRL_RX_PROMISC: u8 = 0;
/// All multicast frames.
pub const CTRL_RX_ALLMULTI: u8 = 1;
/// All unicast frames.
pub const CTRL_RX_ALLUNI: u8 = 2;
/// No multicast frame.
pub const CTRL_RX_NOMULTI: u8 = 3;
/// No unicast frame.
pub const CTRL_RX_NOUNI: u8 = 4;
/// No broadcast frame.
pub const CTRL_RX_NOBCAST: u8 = 5;

/// Control command class: MAC addresses (5.1.6.5.2).
pub const CTRL_MAC: u8 = 1;
/// Command of [`CTRL_MAC`]: the unicast addresses to receive, then the multicast addresses, each table a
/// little-endian `u32` and as many addresses.
pub const CTRL_MAC_TABLE_SET: u8 = 0;
/// Command of [`CTRL_MAC`]: the device's own address.
pub const CTRL_MAC_ADDR_SET: u8 = 1;

/// Control command class: VLANs, each command with a little-endian `u16` (5.1.6.5.3).
pub const CTRL_VLAN: u8 = 2;
/// Command of [`CTRL_VLAN`]: receive this one.
pub const CTRL_VLAN_ADD: u8 = 0;
/// Command of [`CTRL_VLAN`]: do not.
pub const CTRL_VLAN_DEL: u8 = 1;

/// Control command class: announcements (5.1.6.5.4).
pub const CTRL_ANNOUNCE: u8 = 3;
/// Command of [`CTRL_ANNOUNCE`]: the driver has seen [`S_ANNOUNCE`].
pub const CTRL_ANNOUNCE_ACK: u8 = 0;

/// Control command class: number of queue pairs (5.1.6.5.6).
pub const CTRL_MQ: u8 = 4;
/// Command of [`CTRL_MQ`]: use this many pairs, a little-endian `u16`.
pub const CTRL_MQ_VQ_PAIRS_SET: u8 = 0;
/// Command of [`CTRL_MQ`]: receive-side scaling (5.1.6.5.7). Hash types (`u32`), the index's mask, the queue of
/// frames without a hash, the table (its length one more than the mask), the number of transmit queues (each a `u16`),
/// the key's length (`u8`), the key.
pub const CTRL_MQ_RSS_CONFIG: u8 = 1;
/// Command of [`CTRL_MQ`]: hashes to report (5.1.6.4.4). Hash types (`u32`), eight reserved bytes, the key's length
/// (`u8`), the key.
pub const CTRL_MQ_HASH_CONFIG: u8 = 2;

/// Control command class: offloads of the receive side (5.1.6.5.8).
pub const CTRL_GUEST_OFFLOADS: u8 = 5;
/// Command of [`CTRL_GUEST_OFFLOADS`]: those to use, a little-endian `u64` of feature bits.
pub const CTRL_GUEST_OFFLOADS_SET: u8 = 0;

/// The command was carried out.
pub const CTRL_OK: u8 = 0;
/// The command failed.
pub const CTRL_ERR: u8 = 1;
