//! Split virtqueues (2.7): the layout of the three areas.
//!
//! ```text
//! descriptor area   size × 16   addr u64 | len u32 | flags u16 | next u16
//! driver area       6 + 2×size  flags u16 | idx u16 | ring[size] u16           | used_event u16
//! device area       6 + 8×size  flags u16 | idx u16 | ring[size] {id u32, len u32} | avail_event u16
//! ```

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The largest queue (2.7): the indices are 16 bits wide and must tell full from empty.
pub const MAX_SIZE: u16 = 32768;

/// A descriptor (2.7.5), as its little-endian bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Descriptor {
    addr: [u8; 8],
    len: [u8; 4],
    flags: [u8; 2],
    next: [u8; 2],
}

impl Descriptor {
    /// A descriptor of these fields.
    pub const fn new(addr: u64, len: u32, flags: u16, next: u16) -> Self {
        Self {
            addr: addr.to_le_bytes(),
            len: len.to_le_bytes(),
            flags: flags.to_le_bytes(),
            next: next.to_le_bytes(),
        }
    }

    /// The descriptor whose 16 bytes are these two words, each read as little-endian.
    pub const fn from_words(low: u64, high: u64) -> Self {
        Self::new(low, high as u32, (high >> 32) as u16, (high >> 48) as u16)
    }

    /// Where the buffer is: a guest-physical address, or an I/O virtual one with `ACCESS_PLATFORM`.
    pub const fn addr(&self) -> u64 {
        u64::from_le_bytes(self.addr)
    }

    /// Length of the buffer in bytes.
    pub const fn len(&self) -> u32 {
        u32::from_le_bytes(self.len)
    }

    /// Whether the buffer has no byte.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// [`DESC_F_NEXT`], [`DESC_F_WRITE`], [`DESC_F_INDIRECT`].
    pub const fn flags(&self) -> u16 {
        u16::from_le_bytes(self.flags)
    }

    /// The index of the chain's next descriptor, if `DESC_F_NEXT` is set.
    pub const fn next(&self) -> u16 {
        u16::from_le_bytes(self.next)
    }
}

/// The chain goes on at `next`.
pub const DESC_F_NEXT: u16 = 1;
/// Device-writable; else device-readable.
pub const DESC_F_WRITE: u16 = 2;
/// The buffer is a table of descriptors.
pub const DESC_F_INDIRECT: u16 = 4;

/// Size of a descriptor in bytes.
pub const DESC_SIZE: usize = 16;
/// Alignment of the descriptor area in bytes (2.7).
pub const DESC_ALIGN: u64 = 16;

/// The driver does not want used buffer notifications (2.7.7, without `EVENT_IDX`).
pub const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// Alignment of the driver area in bytes (2.7).
pub const AVAIL_ALIGN: u64 = 2;

/// The device does not want available buffer notifications (2.7.10, without `EVENT_IDX`).
pub const USED_F_NO_NOTIFY: u16 = 1;
/// Alignment of the device area in bytes (2.7).
pub const USED_ALIGN: u64 = 4;

/// Offset of `flags` in the driver area and in the device area.
pub const FLAGS: usize = 0;
/// Offset of `idx` in the driver area and in the device area.
pub const IDX: usize = 2;
/// Offset of `ring[0]` in the driver area and in the device area.
pub const RING: usize = 4;
/// Size of an entry of the available ring in bytes.
pub const AVAIL_ENTRY: usize = 2;
/// Size of an entry of the used ring in bytes.
pub const USED_ENTRY: usize = 8;

/// Offset of `used_event` in the driver area of a queue of `size` descriptors.
pub const fn used_event(size: u16) -> usize {
    RING + AVAIL_ENTRY * size as usize
}

/// Offset of `avail_event` in the device area of a queue of `size` descriptors.
pub const fn avail_event(size: u16) -> usize {
    RING + USED_ENTRY * size as usize
}

/// Size of the descriptor area in bytes.
pub const fn desc_area_size(size: u16) -> usize {
    DESC_SIZE * size as usize
}

/// Size of the driver area in bytes; without `EVENT_IDX` a legacy driver may not have its last two.
pub const fn avail_area_size(size: u16) -> usize {
    used_event(size) + 2
}

/// Size of the device area in bytes.
pub const fn used_area_size(size: u16) -> usize {
    avail_event(size) + 2
}
