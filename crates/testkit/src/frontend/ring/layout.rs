//! How a split virtqueue stands in memory: descriptors, and where the three areas keep what.

/// Descriptor flag: the chain goes on at `next`.
pub const DESC_NEXT: u16 = 1;
/// Descriptor flag: the device may write the buffer (and not read it).
pub const DESC_WRITE: u16 = 2;
/// Descriptor flag: the buffer is a table of descriptors.
pub const DESC_INDIRECT: u16 = 4;
/// Bytes of a descriptor.
pub const DESC_LEN: u64 = 16;
/// Available ring flag: the driver asks not to be called.
pub const AVAIL_NO_INTERRUPT: u16 = 1;
/// Used ring flag: the device asks not to be kicked.
pub const USED_NO_NOTIFY: u16 = 1;

/// A descriptor as it stands in the table, right or wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// The buffer's guest address.
    pub addr: u64,
    /// Its length.
    pub len: u32,
    /// `DESC_…` bits.
    pub flags: u16,
    /// The next descriptor's index.
    pub next: u16,
}

impl Descriptor {
    /// The bytes in the table.
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[0..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..16].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// A buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Its guest address.
    pub addr: u64,
    /// Its length.
    pub len: u32,
    /// Whether the device writes it.
    pub writable: bool,
}

impl Buffer {
    /// A buffer that the device reads.
    pub fn readable(addr: u64, len: u32) -> Self {
        Self { addr, len, writable: false }
    }

    /// A buffer that the device writes.
    pub fn writable(addr: u64, len: u32) -> Self {
        Self { addr, len, writable: true }
    }
}

/// Where a ring's three areas stand, as guest addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLayout {
    /// Descriptors in the table, a power of two.
    pub size: u16,
    /// The descriptor table.
    pub descriptors: u64,
    /// The available ring.
    pub available: u64,
    /// The used ring.
    pub used: u64,
}

impl RingLayout {
    /// The three areas one after the other from `start` on, each at the next multiple of `align`.
    pub fn contiguous(size: u16, start: u64, align: u64) -> Self {
        let descriptors = start.next_multiple_of(align);
        let available = (descriptors + DESC_LEN * u64::from(size)).next_multiple_of(align);
        let used = (available + available_len(size)).next_multiple_of(align);
        Self { size, descriptors, available, used }
    }

    /// One past the last byte of a contiguous layout.
    pub fn end(&self) -> u64 {
        self.used + used_len(self.size)
    }

    /// The guest address of a descriptor.
    pub fn descriptor(&self, index: u16) -> u64 {
        self.descriptors + DESC_LEN * u64::from(index)
    }

    /// The guest address of the entry of the available ring for the free-running index `index`.
    pub fn available_entry(&self, index: u16) -> u64 {
        self.available + 4 + 2 * u64::from(index % self.size)
    }

    /// The guest address of `used_event`, which the driver writes.
    pub fn used_event(&self) -> u64 {
        self.available + 4 + 2 * u64::from(self.size)
    }

    /// The guest address of the entry of the used ring for the free-running index `index`.
    pub fn used_entry(&self, index: u16) -> u64 {
        self.used + 4 + 8 * u64::from(index % self.size)
    }

    /// The guest address of `avail_event`, which the device writes.
    pub fn avail_event(&self) -> u64 {
        self.used + 4 + 8 * u64::from(self.size)
    }
}

/// Flags, index, entries, `used_event`.
fn available_len(size: u16) -> u64 {
    6 + 2 * u64::from(size)
}

/// Flags, index, entries, `avail_event`.
fn used_len(size: u16) -> u64 {
    6 + 8 * u64::from(size)
}

/// Whether moving an index from `old` to `new` passes `event`, all of them wrapping.
pub fn passes(event: u16, old: u16, new: u16) -> bool {
    // The indices announced are old, old + 1, … new - 1.
    let announced = new.wrapping_sub(old);
    event.wrapping_sub(old) < announced
}

/// The descriptor of `buffer`, followed by the one at `next` if there is one.
pub(super) fn chained(buffer: Buffer, next: Option<u16>) -> Descriptor {
    let write = if buffer.writable { DESC_WRITE } else { 0 };
    let more = if next.is_some() { DESC_NEXT } else { 0 };
    Descriptor { addr: buffer.addr, len: buffer.len, flags: write | more, next: next.unwrap_or(0) }
}
