//! Packed virtqueues (2.8): the layout of the three areas.
//!
//! ```text
//! descriptor area   size × 16   addr u64 | len u32 | id u16 | flags u16
//! driver area       4           off_wrap u16 | flags u16     event suppression, written by the driver
//! device area       4           off_wrap u16 | flags u16     event suppression, written by the device
//! ```

/// The largest queue (2.8.10.1). Any size from 1 on is allowed, powers of two or not.
pub const MAX_SIZE: u16 = 32768;

/// The chain goes on in the ring's next descriptor.
pub const DESC_F_NEXT: u16 = 1;
/// Device-writable, else device-readable. In a used descriptor: `len` says how much was written.
pub const DESC_F_WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const DESC_F_INDIRECT: u16 = 4;
/// Equal to the driver's wrap counter if the driver made the descriptor available (2.8.1).
pub const DESC_F_AVAIL: u16 = 1 << 7;
/// Unequal to `AVAIL` in an available descriptor, equal in a used one (2.8.1).
pub const DESC_F_USED: u16 = 1 << 15;

/// Size of a descriptor in bytes.
pub const DESC_SIZE: usize = 16;
/// Alignment of the descriptor area in bytes (2.8).
pub const DESC_ALIGN: u64 = 16;
/// Offset of a descriptor's address, 64 bits.
pub const ADDR: usize = 0;
/// Offset of the rest of a descriptor: `len`, `id` and `flags`, see [`tail`].
pub const TAIL: usize = 8;

/// `len`, `id` and `flags` of a descriptor as the 64-bit word they share.
pub const fn tail(len: u32, id: u16, flags: u16) -> u64 {
    len as u64 | (id as u64) << 32 | (flags as u64) << 48
}

/// The buffer's length in bytes, of a descriptor's [`tail`]. In a used descriptor, the bytes written.
pub const fn tail_len(tail: u64) -> u32 {
    tail as u32
}

/// The buffer ID of a descriptor's [`tail`].
pub const fn tail_id(tail: u64) -> u16 {
    (tail >> 32) as u16
}

/// The flags of a descriptor's [`tail`].
pub const fn tail_flags(tail: u64) -> u16 {
    (tail >> 48) as u16
}

/// Size of an event suppression area in bytes.
pub const EVENT_SIZE: usize = 4;
/// Alignment of an event suppression area in bytes (2.8).
pub const EVENT_ALIGN: u64 = 4;

/// Notify at every chain (2.8.10).
pub const EVENT_F_ENABLE: u16 = 0;
/// Notify at none.
pub const EVENT_F_DISABLE: u16 = 1;
/// Notify at the descriptor that `off_wrap` names; with `EVENT_IDX` only.
pub const EVENT_F_DESC: u16 = 2;
/// The flags' two bits; the rest is reserved.
pub const EVENT_F_MASK: u16 = 3;

/// Size of the descriptor area in bytes.
pub const fn desc_area_size(size: u16) -> usize {
    DESC_SIZE * size as usize
}
