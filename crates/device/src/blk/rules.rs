//! What becomes of a request: a job to do, or a status to answer at once.
//!
//! ```text
//!   header, lengths ──judge──► Request ─┬─► Read, Write, Flush, GetId
//!         │                             └─► Ranges, data ──ranges──► Segment, Segment, …
//!         └───────────────────────────────────────────────────┴─────► Status
//! ```
//!
//! Nothing here looks at data that is read or written. Data in the direction that a request has no use for is not looked at
//! either; but where a request has data in that direction alone, it is refused: it would not do what its driver believes.

use ringway_spec::blk::{
    self, ID_LEN, RequestHeader, S_IOERR, S_OK, S_UNSUPP, SECTOR_SIZE, SEGMENT_F_UNMAP, SEGMENT_LEN,
    T_DISCARD, T_FLUSH, T_GET_ID, T_IN, T_OUT, T_SECURE_ERASE, T_WRITE_ZEROES,
};
use zerocopy::{FromBytes, transmute};

use super::Limits;

/// Length of what a request begins with.
pub const HEADER_LEN: usize = size_of::<RequestHeader>();

/// How a request ended (5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Status {
    /// It is done.
    Ok,
    /// It is not: it was wrong, or the storage failed.
    IoError,
    /// It is not: this device does not do such things.
    Unsupported,
}

impl Status {
    /// The status byte.
    pub fn to_byte(self) -> u8 {
        match self {
            Self::Ok => S_OK,
            Self::IoError => S_IOERR,
            Self::Unsupported => S_UNSUPP,
        }
    }
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Request {
    /// Fill the device-writable data, one byte or more, from here on.
    Read {
        /// In bytes.
        offset: u64,
    },
    /// Write the device-readable data, one byte or more, from here on.
    Write {
        /// In bytes.
        offset: u64,
        /// It is on stable storage before it is done.
        stable: bool,
    },
    /// All that was written is on stable storage.
    Flush,
    /// Write [`Rules::id`] to the device-writable data, which has room for it.
    GetId,
    /// The device-readable data is segments, for [`Rules::ranges`], and no more than those allowed.
    Ranges(RangeKind),
}

/// What is to be done with the sectors that segments name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RangeKind {
    /// They are not needed any longer.
    Discard,
    /// They read as zeroes.
    WriteZeroes,
    /// Nobody reads again what was in them.
    SecureErase,
}

/// A range that the disk has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    /// In bytes.
    pub offset: u64,
    /// In bytes; may be 0.
    pub len: u64,
    /// It may be left without storage.
    pub unmap: bool,
}

/// What requests may do: a value for a worker to keep, from [`BlkDevice::rules`](super::BlkDevice::rules).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is so or not, whatever the others")]
pub struct Rules {
    pub(super) size: u64,
    pub(super) block_size: u32,
    pub(super) read_only: bool,
    pub(super) flush: bool,
    pub(super) stable: bool,
    pub(super) discard: Option<Limits>,
    pub(super) write_zeroes: Option<Limits>,
    pub(super) zeroes_may_unmap: bool,
    pub(super) secure_erase: Option<Limits>,
    pub(super) id: [u8; ID_LEN],
}

impl Rules {
    /// What a request asks for that has this header, so many device-readable bytes behind it, and so many device-writable
    /// ones before its status byte.
    ///
    /// # Errors
    /// The status to answer at once, which is [`Status::Ok`] where there is nothing to do.
    pub fn judge(&self, header: [u8; HEADER_LEN], readable: u32, writable: u32) -> Result<Request, Status> {
        let RequestHeader { kind, sector, .. } = transmute!(header);
        let sector = sector.get();
        match kind.get() {
            T_IN => Ok(Request::Read { offset: self.data(sector, writable, readable)? }),
            T_OUT if self.read_only => Err(Status::IoError),
            T_OUT => {
                Ok(Request::Write { offset: self.data(sector, readable, writable)?, stable: self.stable })
            }
            // Of a driver that did not negotiate FLUSH too: its writes are stable, and it does no harm.
            T_FLUSH if self.flush => Ok(Request::Flush),
            T_GET_ID if (writable as usize) < ID_LEN => Err(Status::IoError),
            T_GET_ID => Ok(Request::GetId),
            T_DISCARD => self.judge_ranges(RangeKind::Discard, readable),
            T_WRITE_ZEROES => self.judge_ranges(RangeKind::WriteZeroes, readable),
            T_SECURE_ERASE => self.judge_ranges(RangeKind::SecureErase, readable),
            _ => Err(Status::Unsupported),
        }
    }

    /// The ranges that a request of this kind names in its data, after all of them were checked.
    ///
    /// # Errors
    /// The status to answer at once.
    pub fn ranges<'a>(
        &self,
        kind: RangeKind,
        data: &'a [u8],
    ) -> Result<impl Iterator<Item = Segment> + use<'a>, Status> {
        self.judge_ranges(kind, u32::try_from(data.len()).map_err(|_| Status::IoError)?)?;
        let limits = self.limits(kind).ok_or(Status::Unsupported)?;
        let segments = <[blk::Segment]>::ref_from_bytes(data).map_err(|_| Status::IoError)?;
        let allowed = if kind == RangeKind::WriteZeroes { SEGMENT_F_UNMAP } else { 0 };
        if segments.iter().any(|segment| segment.flags.get() & !allowed != 0) {
            return Err(Status::Unsupported);
        }
        for segment in segments {
            let sectors = segment.num_sectors.get();
            if sectors > limits.sectors {
                return Err(Status::IoError);
            }
            self.place(segment.sector.get(), u64::from(sectors) * u64::from(SECTOR_SIZE))?;
        }
        let may_unmap = kind == RangeKind::WriteZeroes && self.zeroes_may_unmap;
        Ok(segments.iter().map(move |segment| Segment {
            offset: segment.sector.get() * u64::from(SECTOR_SIZE),
            len: u64::from(segment.num_sectors.get()) * u64::from(SECTOR_SIZE),
            unmap: may_unmap && segment.flags.get() & SEGMENT_F_UNMAP != 0,
        }))
    }

    /// Whether what is written must be on stable storage when it is done. A write says so itself; of zeroes it is for who
    /// carries them out to see to.
    pub fn is_stable(&self) -> bool {
        self.stable
    }

    /// The disk's name.
    pub fn id(&self) -> [u8; ID_LEN] {
        self.id
    }

    /// Where data of `len` bytes is read or written; the request has `other` bytes in the direction that it does not use.
    fn data(&self, sector: u64, len: u32, other: u32) -> Result<u64, Status> {
        let offset = self.place(sector, len.into())?;
        match (len, other) {
            (0, 0) => Err(Status::Ok),
            (0, _) => Err(Status::IoError),
            _ => Ok(offset),
        }
    }

    /// Where so many bytes from a sector on are, in bytes: whole blocks that the disk has.
    fn place(&self, sector: u64, len: u64) -> Result<u64, Status> {
        let offset = sector.checked_mul(SECTOR_SIZE.into()).ok_or(Status::IoError)?;
        let end = offset.checked_add(len).ok_or(Status::IoError)?;
        let is_whole = (offset | len) & u64::from(self.block_size - 1) == 0;
        if is_whole && end <= self.size { Ok(offset) } else { Err(Status::IoError) }
    }

    /// Whether a request of this kind is known, and has as many segments as it may.
    fn judge_ranges(&self, kind: RangeKind, len: u32) -> Result<Request, Status> {
        let limits = self.limits(kind).ok_or(Status::Unsupported)?;
        let (segments, rest) = (len as usize / SEGMENT_LEN, len as usize % SEGMENT_LEN);
        let is_good = rest == 0 && (1..=limits.segments as usize).contains(&segments);
        if is_good { Ok(Request::Ranges(kind)) } else { Err(Status::IoError) }
    }

    fn limits(&self, kind: RangeKind) -> Option<Limits> {
        match kind {
            RangeKind::Discard => self.discard,
            RangeKind::WriteZeroes => self.write_zeroes,
            RangeKind::SecureErase => self.secure_erase,
        }
    }
}

#[cfg(test)]
#[path = "rules_tests.rs"]
mod tests;
