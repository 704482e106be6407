//! What a disk can be asked, and whether it may be: judged before anything goes out.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use ringway_memory::SharedBuf;
use ringway_spec::blk::{
    self, ID_LEN, LIFETIME_LEN, RequestHeader, SECTOR_SIZE, SEGMENT_F_UNMAP, SEGMENT_LEN,
};
use thiserror::Error;
use zerocopy::IntoBytes;

use super::config::{Properties, RangeLimits};
use crate::Error;

/// What a disk can be asked (5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation<'a> {
    /// Fill the buffer's first `len` bytes from this sector on.
    Read {
        /// The first sector.
        sector: u64,
        /// How many bytes, in whole blocks.
        len: u32,
    },
    /// Write the buffer's first `len` bytes from this sector on.
    Write {
        /// The first sector.
        sector: u64,
        /// How many bytes, in whole blocks.
        len: u32,
    },
    /// Make stable what was written by requests that are complete. Has no buffer.
    Flush,
    /// Fill the buffer's first 20 bytes with the disk's name.
    Id,
    /// Fill the buffer's first 6 bytes with how worn the storage is.
    Lifetime,
    /// These sectors are not needed any longer; what is read of them then can be anything. The buffer has room for 16
    /// bytes for each range, here and in what follows.
    Discard(&'a [Range]),
    /// These sectors read as zeroes from then on.
    WriteZeroes {
        /// Which.
        ranges: &'a [Range],
        /// They may be left without storage.
        unmap: bool,
    },
    /// Nobody reads again what was in these sectors.
    SecureErase(&'a [Range]),
}

/// Sectors in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub sector: u64,
    /// How many.
    pub count: u32,
}

/// How a request failed that the device was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Failure {
    /// The device or its storage failed. What it has done of the request is not known.
    #[error("the disk could not do it")]
    Io,
    /// The device does not do such things.
    #[error("the disk does no such things")]
    Unsupported,
    /// The device did not say whether it is done, or said something that is no answer.
    #[error("the disk answered with status {0}")]
    Status(u8),
    /// The device says that it is done, and that it wrote less than that takes.
    #[error("the disk wrote {written} bytes of {wanted}")]
    Short {
        /// What it says it wrote, with the status.
        written: u32,
        /// What it was to write.
        wanted: u32,
    },
}

/// Why a request was not made, or not done.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum BlkError {
    /// The device, its queue or the way to it failed; or the queue is full.
    #[error(transparent)]
    Device(#[from] Error),
    /// The device was asked, and failed.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The disk ends before that.
    #[error("{count} sectors at {sector} are past the end of a disk of {capacity}")]
    OutOfRange {
        /// The first sector.
        sector: u64,
        /// How many.
        count: u64,
        /// How many the disk has.
        capacity: u64,
    },
    /// A request is of whole blocks, and not of none.
    #[error("{len} bytes at sector {sector} are not whole blocks of {block_size}")]
    Unaligned {
        /// The first sector.
        sector: u64,
        /// How many bytes.
        len: u64,
        /// The disk's logical block.
        block_size: u32,
    },
    /// The disk cannot be written to.
    #[error("the disk is read-only")]
    ReadOnly,
    /// The buffer is too small, there is none, or one where there is nothing to put into it.
    #[error("a buffer of {len} bytes does not do, {wanted} are needed")]
    Buffer {
        /// Its length; 0 if there is none.
        len: u32,
        /// What the request needs.
        wanted: u32,
    },
    /// More at once than the disk takes: see [`Blk::max_request`](super::Blk::max_request) and [`RangeLimits`].
    #[error("a request for {what} {asked} is too large, the disk takes {max}")]
    TooLarge {
        /// Of what.
        what: &'static str,
        /// How many.
        asked: u32,
        /// The most there can be.
        max: u32,
    },
}

/// The direction of a request's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Way {
    ToDevice,
    FromDevice,
}

/// A request that may be made.
pub(super) struct Plan {
    pub(super) header: RequestHeader,
    pub(super) way: Way,
    /// Bytes of data.
    pub(super) len: u32,
}

impl Plan {
    fn new(kind: u32, sector: u64, way: Way, len: u32) -> Self {
        Self {
            header: RequestHeader { kind: kind.into(), reserved: 0.into(), sector: sector.into() },
            way,
            len,
        }
    }
}

impl Properties {
    /// Judges a request; `features` are those negotiated, and `max_request` the most bytes of data.
    #[inline]
    pub(super) fn plan(
        &self,
        operation: Operation<'_>,
        features: u64,
        max_request: u32,
    ) -> Result<Plan, BlkError> {
        let needs = |feature: u64| match features & feature {
            0 => Err(BlkError::Device(Error::NotNegotiated { feature })),
            _ => Ok(()),
        };
        match operation {
            Operation::Read { sector, len } => {
                self.data(sector, len, max_request)?;
                Ok(Plan::new(blk::T_IN, sector, Way::FromDevice, len))
            }
            Operation::Write { sector, len } => {
                self.writable()?;
                self.data(sector, len, max_request)?;
                Ok(Plan::new(blk::T_OUT, sector, Way::ToDevice, len))
            }
            Operation::Flush => {
                needs(blk::F_FLUSH)?;
                Ok(Plan::new(blk::T_FLUSH, 0, Way::ToDevice, 0))
            }
            Operation::Id => Ok(Plan::new(blk::T_GET_ID, 0, Way::FromDevice, ID_LEN as u32)),
            Operation::Lifetime => {
                needs(blk::F_LIFETIME)?;
                Ok(Plan::new(blk::T_GET_LIFETIME, 0, Way::FromDevice, LIFETIME_LEN as u32))
            }
            Operation::Discard(ranges) => {
                needs(blk::F_DISCARD)?;
                self.ranges(blk::T_DISCARD, ranges, self.discard, max_request)
            }
            Operation::WriteZeroes { ranges, .. } => {
                needs(blk::F_WRITE_ZEROES)?;
                self.ranges(blk::T_WRITE_ZEROES, ranges, self.write_zeroes, max_request)
            }
            Operation::SecureErase(ranges) => {
                needs(blk::F_SECURE_ERASE)?;
                self.ranges(blk::T_SECURE_ERASE, ranges, self.secure_erase, max_request)
            }
        }
    }

    fn writable(&self) -> Result<(), BlkError> {
        if self.read_only { Err(BlkError::ReadOnly) } else { Ok(()) }
    }

    /// Whether these bytes are whole blocks of the disk.
    #[inline]
    pub(super) fn check_range(&self, sector: u64, len: u64) -> Result<(), BlkError> {
        let block_size = self.block_size;
        let sectors_of_block = u64::from(block_size / SECTOR_SIZE);
        if len == 0 || len & u64::from(block_size - 1) != 0 || sector & (sectors_of_block - 1) != 0 {
            return Err(BlkError::Unaligned { sector, len, block_size });
        }
        let count = len / u64::from(SECTOR_SIZE);
        match sector.checked_add(count) {
            Some(end) if end <= self.capacity => Ok(()),
            _ => Err(BlkError::OutOfRange { sector, count, capacity: self.capacity }),
        }
    }

    #[inline]
    fn data(&self, sector: u64, len: u32, max: u32) -> Result<(), BlkError> {
        self.check_range(sector, len.into())?;
        if len > max { Err(BlkError::TooLarge { what: "bytes", asked: len, max }) } else { Ok(()) }
    }

    fn ranges(
        &self,
        kind: u32,
        ranges: &[Range],
        limits: Option<RangeLimits>,
        max_request: u32,
    ) -> Result<Plan, BlkError> {
        self.writable()?;
        // There are some wherever the feature is.
        let limits = limits.unwrap_or(RangeLimits { sectors: 0, ranges: 0, alignment: 1 });
        let asked = u32::try_from(ranges.len()).unwrap_or(u32::MAX);
        if asked == 0 {
            return Err(BlkError::Unaligned { sector: 0, len: 0, block_size: self.block_size });
        }
        // They are data, too.
        let max = limits.ranges.min(max_request / SEGMENT_LEN as u32);
        if asked > max {
            return Err(BlkError::TooLarge { what: "ranges", asked, max });
        }
        for &Range { sector, count } in ranges {
            self.check_range(sector, u64::from(count) * u64::from(SECTOR_SIZE))?;
            if count > limits.sectors {
                return Err(BlkError::TooLarge { what: "sectors", asked: count, max: limits.sectors });
            }
        }
        Ok(Plan::new(kind, 0, Way::ToDevice, asked * SEGMENT_LEN as u32))
    }
}

impl Operation<'_> {
    /// Puts the ranges where the device reads them.
    pub(super) fn fill(&self, buffer: &mut SharedBuf) {
        let (ranges, flags) = match *self {
            Operation::Discard(ranges) | Operation::SecureErase(ranges) => (ranges, 0),
            Operation::WriteZeroes { ranges, unmap } => (ranges, if unmap { SEGMENT_F_UNMAP } else { 0 }),
            _ => return,
        };
        let segment = |range: &Range| blk::Segment {
            sector: range.sector.into(),
            num_sectors: range.count.into(),
            flags: flags.into(),
        };
        let segments: Vec<_> = ranges.iter().map(segment).collect();
        buffer.write(segments.as_bytes());
    }
}
