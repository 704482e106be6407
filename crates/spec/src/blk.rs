//! Block device (5.2).
//!
//! Queue indices: `requestq1` 0, `requestq2` 1, …, `num_queues` of them with `MQ`, one without (5.2.2). A request is a
//! [`RequestHeader`] that the device reads, data in one direction, and a status byte that the device writes (5.2.6).

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// The device id of a block device.
pub const DEVICE_ID: u32 = 2;

/// The device says the largest segment of a request (5.2.3).
pub const F_SIZE_MAX: u64 = 1 << 1;
/// The device says how many segments a request may have.
pub const F_SEG_MAX: u64 = 1 << 2;
/// The device says cylinders, heads and sectors.
pub const F_GEOMETRY: u64 = 1 << 4;
/// The disk can only be read.
pub const F_RO: u64 = 1 << 5;
/// The device says its logical block size.
pub const F_BLK_SIZE: u64 = 1 << 6;
/// The device can flush its cache.
pub const F_FLUSH: u64 = 1 << 9;
/// The device says which requests are good for it.
pub const F_TOPOLOGY: u64 = 1 << 10;
/// The driver may switch between writeback and writethrough.
pub const F_CONFIG_WCE: u64 = 1 << 11;
/// There can be several queues.
pub const F_MQ: u64 = 1 << 12;
/// The device can discard sectors.
pub const F_DISCARD: u64 = 1 << 13;
/// The device can write zeroes without being sent any.
pub const F_WRITE_ZEROES: u64 = 1 << 14;
/// The device says how worn its storage is.
pub const F_LIFETIME: u64 = 1 << 15;
/// The device can erase sectors so that nobody can read them again.
pub const F_SECURE_ERASE: u64 = 1 << 16;
/// The disk may have zones.
pub const F_ZONED: u64 = 1 << 17;

/// Bytes of a sector, whatever the logical block size: the unit of `sector`, `capacity` and their like.
pub const SECTOR_SIZE: u32 = 512;

/// The device configuration (5.2.4).
#[derive(Debug, Clone, Copy, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Config {
    /// In sectors.
    pub capacity: U64,
    /// In bytes, with `F_SIZE_MAX`.
    pub size_max: U32,
    /// With `F_SEG_MAX`.
    pub seg_max: U32,
    /// Cylinders (two bytes), heads, sectors; with `F_GEOMETRY`.
    pub geometry: [u8; 4],
    /// The logical block, in bytes; with `F_BLK_SIZE`.
    pub blk_size: U32,
    /// Logical blocks of a physical one, as a power of two; with `F_TOPOLOGY`, as are the next three.
    pub physical_block_exp: u8,
    /// The first logical block that begins a physical one.
    pub alignment_offset: u8,
    /// The smallest good request, in logical blocks.
    pub min_io_size: U16,
    /// The best request, in logical blocks.
    pub opt_io_size: U32,
    /// 1 is writeback, 0 writethrough; with `F_CONFIG_WCE`. The driver may write it.
    pub writeback: u8,
    /// 0.
    pub unused0: u8,
    /// With `F_MQ`.
    pub num_queues: U16,
    /// In sectors, of a segment; with `F_DISCARD`, as are the next two.
    pub max_discard_sectors: U32,
    /// Segments of a request.
    pub max_discard_seg: U32,
    /// In sectors: what else is split badly.
    pub discard_sector_alignment: U32,
    /// In sectors, of a segment; with `F_WRITE_ZEROES`, as are the next two.
    pub max_write_zeroes_sectors: U32,
    /// Segments of a request.
    pub max_write_zeroes_seg: U32,
    /// 1 if zeroes may leave sectors without storage.
    pub write_zeroes_may_unmap: u8,
    /// 0.
    pub unused1: [u8; 3],
    /// In sectors, of a segment; with `F_SECURE_ERASE`, as are the next two.
    pub max_secure_erase_sectors: U32,
    /// Segments of a request.
    pub max_secure_erase_seg: U32,
    /// In sectors: what else is split badly.
    pub secure_erase_sector_alignment: U32,
    /// The zones' characteristics, with `F_ZONED`.
    pub zoned: [u8; 24],
}

/// Where [`Config::writeback`] is.
pub const CONFIG_WRITEBACK: usize = core::mem::offset_of!(Config, writeback);

/// What a request begins with (5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct RequestHeader {
    /// [`T_IN`] and its siblings.
    pub kind: U32,
    /// A priority once; to be ignored.
    pub reserved: U32,
    /// Where to read or write; 0 in all other requests.
    pub sector: U64,
}

/// Request: read.
pub const T_IN: u32 = 0;
/// Write.
pub const T_OUT: u32 = 1;
/// Commit to storage what was written.
pub const T_FLUSH: u32 = 4;
/// Say the device's name, [`ID_LEN`] bytes.
pub const T_GET_ID: u32 = 8;
/// Say how worn the storage is.
pub const T_GET_LIFETIME: u32 = 10;
/// Discard [`Segment`]s.
pub const T_DISCARD: u32 = 11;
/// Write zeroes to [`Segment`]s.
pub const T_WRITE_ZEROES: u32 = 13;
/// Erase [`Segment`]s.
pub const T_SECURE_ERASE: u32 = 14;
/// The requests that are about zones (5.2.6): append, report, open, close, finish, reset, reset all.
pub const T_ZONES: [u32; 7] = [15, 16, 18, 20, 22, 24, 26];

/// Length of a device's name: ASCII, behind it zeroes up to this length if it is shorter.
pub const ID_LEN: usize = 20;

/// How worn the storage is, as a device with `F_LIFETIME` says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Lifetime {
    /// Of the spare blocks: 0 is not known, 1 normal, 2 mostly used up, 3 nearly all.
    pub pre_eol_info: U16,
    /// Wear of cells of single-level storage, in tenths begun; 0 is not known, 11 past the end.
    pub device_lifetime_est_typ_a: U16,
    /// The same of cells of multi-level storage.
    pub device_lifetime_est_typ_b: U16,
}

/// Size of [`Lifetime`].
pub const LIFETIME_LEN: usize = size_of::<Lifetime>();

/// Sectors that a discard, a write of zeroes or an erasure is about; the data of such a request is some of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct Segment {
    /// The first.
    pub sector: U64,
    /// How many.
    pub num_sectors: U32,
    /// [`SEGMENT_F_UNMAP`]; other bits are reserved.
    pub flags: U32,
}

/// Size of [`Segment`].
pub const SEGMENT_LEN: usize = size_of::<Segment>();
/// The sectors may be left without storage.
pub const SEGMENT_F_UNMAP: u32 = 1;

/// Status: done.
pub const S_OK: u8 = 0;
/// Not done: the device or the driver did something wrong.
pub const S_IOERR: u8 = 1;
/// Not done: the device does not do such things.
pub const S_UNSUPP: u8 = 2;

#[cfg(test)]
mod tests {
    use core::mem::offset_of;

    use super::*;

    /// The fields are where the figure of 5.2.4 has them, without gaps.
    #[test]
    fn fields_are_in_their_places() {
        for (at, due) in [
            (offset_of!(Config, blk_size), 20),
            (offset_of!(Config, min_io_size), 26),
            (offset_of!(Config, writeback), 32),
            (offset_of!(Config, num_queues), 34),
            (offset_of!(Config, max_discard_sectors), 36),
            (offset_of!(Config, max_write_zeroes_sectors), 48),
            (offset_of!(Config, write_zeroes_may_unmap), 56),
            (offset_of!(Config, max_secure_erase_sectors), 60),
            (offset_of!(Config, zoned), 72),
            (size_of::<Config>(), 96),
            (size_of::<RequestHeader>(), 16),
            (SEGMENT_LEN, 16),
        ] {
            assert_eq!(at, due);
        }
    }
}
