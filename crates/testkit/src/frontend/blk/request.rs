//! Requests to a disk, right or wrong, and how they lie in descriptors.

/// Types of requests.
#[allow(missing_docs, reason = "the names are the specification's")]
pub mod kind {
    pub const IN: u32 = 0;
    pub const OUT: u32 = 1;
    pub const FLUSH: u32 = 4;
    pub const GET_ID: u32 = 8;
    pub const GET_LIFETIME: u32 = 10;
    pub const DISCARD: u32 = 11;
    pub const WRITE_ZEROES: u32 = 13;
    pub const SECURE_ERASE: u32 = 14;
}

/// Status bytes.
#[allow(missing_docs, reason = "the names are the specification's")]
pub mod status {
    pub const OK: u8 = 0;
    pub const IOERR: u8 = 1;
    pub const UNSUPP: u8 = 2;
}

/// Bytes of a request's header.
const HEADER_LEN: usize = 16;

/// A request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DiskRequest {
    /// What the device reads first.
    pub header: Vec<u8>,
    /// What it reads then.
    pub data: Vec<u8>,
    /// How many bytes it may write before the status.
    pub room: u32,
}

impl DiskRequest {
    /// A request of any type.
    pub fn new(kind: u32, sector: u64) -> Self {
        let header = [&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat();
        Self { header, data: Vec::new(), room: 0 }
    }

    /// A read.
    pub fn read(sector: u64, len: u32) -> Self {
        Self { room: len, ..Self::new(kind::IN, sector) }
    }

    /// A write.
    pub fn write(sector: u64, data: &[u8]) -> Self {
        Self { data: data.to_vec(), ..Self::new(kind::OUT, sector) }
    }

    /// A flush.
    pub fn flush() -> Self {
        Self::new(kind::FLUSH, 0)
    }

    /// The question for the disk's name.
    pub fn get_id() -> Self {
        Self { room: 20, ..Self::new(kind::GET_ID, 0) }
    }

    /// A request about segments: the first sector of each, how many, flags.
    pub fn ranges(kind: u32, segments: &[(u64, u32, u32)]) -> Self {
        let bytes = |&(sector, sectors, flags): &(u64, u32, u32)| {
            [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
        };
        Self { data: segments.iter().flat_map(bytes).collect(), ..Self::new(kind, 0) }
    }

    /// All that the device reads.
    pub(super) fn readable(&self) -> Vec<u8> {
        [&self.header[..], &self.data].concat()
    }
}

/// How a request's bytes are spread over descriptors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Layout {
    /// Lengths of all descriptors that the device reads but the last, which takes the rest.
    pub readable: Vec<usize>,
    /// The same of those that it writes.
    pub writable: Vec<usize>,
    /// Whether the descriptors stand in an indirect table.
    pub indirect: bool,
    /// Leaves out the status.
    pub no_status: bool,
}

impl Layout {
    /// All that is read in one descriptor, all that is written in another.
    pub fn whole() -> Self {
        Self::default()
    }

    /// Header, data and status apart.
    pub fn usual(request: &DiskRequest) -> Self {
        let room = Some(request.room as usize).filter(|len| *len > 0);
        Self { readable: vec![HEADER_LEN], writable: room.into_iter().collect(), ..Self::default() }
    }

    /// In descriptors of these lengths, again and again, both ways.
    pub fn pieces(readable: usize, writable: usize) -> Self {
        Self { readable: vec![readable; 128], writable: vec![writable; 120], ..Self::default() }
    }

    /// The same in an indirect table.
    #[must_use]
    pub fn indirect(self) -> Self {
        Self { indirect: true, ..self }
    }

    /// The same without a status.
    #[must_use]
    pub fn without_status(self) -> Self {
        Self { no_status: true, ..self }
    }
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status byte, or what was there before.
    pub status: u8,
    /// What the device could write before it.
    pub data: Vec<u8>,
    /// Bytes written, as the device says.
    pub written: u32,
}
