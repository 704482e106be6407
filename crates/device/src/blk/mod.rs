//! The block device (5.2).
//!
//! ```text
//!   driver ──features, status──► negotiation ─┐
//!     └──────writeback─────────► cache mode ──┼─► Rules   what a request may do; a worker keeps them
//!   operator ─────size─────────► capacity ────┘
//! ```
//!
//! Which requests the storage can carry out is for whoever opened it to say, in [`Settings`]. Not offered, whatever it can:
//!
//! - `GEOMETRY`: cylinders, heads and sectors mean nothing to a file; a firmware makes up its own.
//! - `LIFETIME`: eMMC's figures of wear, which files and exports do not have, and may not be made up (5.2.6.2).
//! - `ZONED`: a disk of this device has no zones, and such a one should not offer it (5.2.5.2).
//! - `IN_ORDER`: requests are done when the storage has done them, in any order.

mod rules;
mod saved;

pub use rules::{HEADER_LEN, RangeKind, Request, Rules, Segment, Status};
pub use saved::{State, StateError};

use ringway_spec::blk::{
    CONFIG_WRITEBACK, Config, F_BLK_SIZE, F_CONFIG_WCE, F_DISCARD, F_FLUSH, F_MQ, F_RO, F_SECURE_ERASE,
    F_SEG_MAX, F_SIZE_MAX, F_TOPOLOGY, F_WRITE_ZEROES, ID_LEN, SECTOR_SIZE,
};
use ringway_spec::feature;
use thiserror::Error;
use zerocopy::IntoBytes;

use crate::status::Negotiation;

/// Segments of a request: a header and a status byte beside them fit a ring of 128, which is what front-ends give.
pub const SEG_MAX: u32 = 126;
/// Bytes of a segment: as many of these as [`SEG_MAX`] are still less than the 2 GiB that a system call moves.
pub const SIZE_MAX: u32 = 4 << 20;
/// The largest logical block: no driver has one that is larger than its pages.
const BLOCK_SIZE_MAX: u32 = 64 << 10;

/// How much a request that names sectors may name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sectors of a segment.
    pub sectors: u32,
    /// Segments of a request.
    pub segments: u32,
    /// Sectors that go together: a driver that splits ranges should do so at multiples of it.
    pub alignment: u32,
}

/// How a device shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(clippy::struct_excessive_bools, reason = "each is so or not, whatever the others")]
pub struct Settings {
    /// Bytes of the disk. What is left over behind the last whole block is not shown.
    pub size: u64,
    /// Bytes of a logical block, a power of two from 512 to 65536: requests begin and end at multiples of it.
    pub block_size: u32,
    /// Logical blocks of a physical one, as a power of two.
    pub physical_block_exp: u8,
    /// The first logical block that begins a physical one.
    pub alignment_offset: u8,
    /// The smallest good request, in logical blocks; 0 if none is known.
    pub min_io_size: u16,
    /// The best request, in logical blocks; 0 if none is known.
    pub opt_io_size: u32,
    /// Whether the disk can only be read. Then it cannot be told to discard, zero or erase either.
    pub read_only: bool,
    /// The most queues, 1 or more.
    pub queues: u16,
    /// Whether writes may be volatile until a flush, as long as the driver does not say otherwise.
    pub writeback: bool,
    /// Whether the storage can flush. If not, writes are as safe as it makes them.
    pub flush: bool,
    /// Whether it can discard.
    pub discard: Option<Limits>,
    /// Whether it can write zeroes; the alignment is of no use here.
    pub write_zeroes: Option<Limits>,
    /// Whether sectors of zeroes may lose their storage, if the driver allows it.
    pub zeroes_may_unmap: bool,
    /// Whether it can erase.
    pub secure_erase: Option<Limits>,
    /// The disk's name, behind it zeroes if it is shorter.
    pub id: [u8; ID_LEN],
    /// Whether the device offers to be behind an IOMMU.
    pub iommu: bool,
}

/// Why a device cannot be as its settings say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SettingsError {
    /// See [`Settings::block_size`].
    #[error("a logical block of {0} bytes is not a power of two in 512..=65536")]
    BlockSize(u32),
    /// See [`Settings::queues`].
    #[error("a disk has at least one queue")]
    NoQueues,
    /// A request that is offered can be about something.
    #[error("{0:?} is offered for no sectors or no segments")]
    Limits(RangeKind),
}

/// A block device.
#[derive(Debug, Clone)]
pub struct BlkDevice {
    settings: Settings,
    negotiation: Negotiation,
    /// The cache mode that the driver wrote, if it did.
    written: Option<bool>,
}

impl BlkDevice {
    /// A device after reset.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn new(settings: Settings) -> Result<Self, SettingsError> {
        let Settings { block_size, queues, discard, write_zeroes, secure_erase, .. } = settings;
        if !block_size.is_power_of_two() || !(SECTOR_SIZE..=BLOCK_SIZE_MAX).contains(&block_size) {
            return Err(SettingsError::BlockSize(block_size));
        }
        if queues == 0 {
            return Err(SettingsError::NoQueues);
        }
        for (kind, limits) in [
            (RangeKind::Discard, discard),
            (RangeKind::WriteZeroes, write_zeroes),
            (RangeKind::SecureErase, secure_erase),
        ] {
            if limits.is_some_and(|limits| limits.sectors == 0 || limits.segments == 0) {
                return Err(SettingsError::Limits(kind));
            }
        }
        let settings = if settings.read_only {
            Settings { discard: None, write_zeroes: None, secure_erase: None, ..settings }
        } else {
            settings
        };
        Ok(Self { settings, negotiation: Negotiation::new(offered(&settings), &[]), written: None })
    }

    /// Features and status.
    pub fn negotiation(&self) -> &Negotiation {
        &self.negotiation
    }

    /// Features and status, to be changed by the driver.
    pub fn negotiation_mut(&mut self) -> &mut Negotiation {
        &mut self.negotiation
    }

    /// Back to the start.
    pub fn reset(&mut self) {
        self.negotiation.reset();
        self.written = None;
    }

    /// Copies `to.len()` bytes of the configuration space from `offset` on; fields past the space's end read
    /// as zero, as do fields whose feature is not offered.
    pub fn read_config(&self, offset: usize, to: &mut [u8]) {
        let Self { settings, .. } = self;
        let mut config = Config {
            capacity: (self.size() / u64::from(SECTOR_SIZE)).into(),
            size_max: SIZE_MAX.into(),
            seg_max: SEG_MAX.into(),
            blk_size: settings.block_size.into(),
            physical_block_exp: settings.physical_block_exp,
            alignment_offset: settings.alignment_offset,
            min_io_size: settings.min_io_size.into(),
            opt_io_size: settings.opt_io_size.into(),
            writeback: self.is_writeback().into(),
            num_queues: settings.queues.into(),
            ..Config::default()
        };
        if let Some(limits) = settings.discard {
            config.max_discard_sectors = limits.sectors.into();
            config.max_discard_seg = limits.segments.into();
            config.discard_sector_alignment = limits.alignment.into();
        }
        if let Some(limits) = settings.write_zeroes {
            config.max_write_zeroes_sectors = limits.sectors.into();
            config.max_write_zeroes_seg = limits.segments.into();
            config.write_zeroes_may_unmap = settings.zeroes_may_unmap.into();
        }
        if let Some(limits) = settings.secure_erase {
            config.max_secure_erase_sectors = limits.sectors.into();
            config.max_secure_erase_seg = limits.segments.into();
            config.secure_erase_sector_alignment = limits.alignment.into();
        }
        to.fill(0);
        let bytes = config.as_bytes();
        for (to, from) in to.iter_mut().zip(bytes.get(offset..).unwrap_or_default()) {
            *to = *from;
        }
    }

    /// The driver writes to the configuration space: `writeback`, alone. False if it may not. [`rules`](Self::rules) have
    /// changed if it may. Before the features are acked it is taken as well: a front-end that keeps them to itself until
    /// the driver is ready passes writes on at once.
    pub fn write_config(&mut self, offset: usize, bytes: &[u8]) -> bool {
        let features = self.negotiation.accepted().unwrap_or(self.negotiation.offered());
        match (offset, bytes) {
            (CONFIG_WRITEBACK, &[mode @ (0 | 1)]) if features & F_CONFIG_WCE != 0 => {
                self.written = Some(mode == 1);
                true
            }
            _ => false,
        }
    }

    /// The disk has this many bytes from now on; whether the capacity is another one than before: then the configuration
    /// has changed, and the [`rules`](Self::rules).
    pub fn set_size(&mut self, size: u64) -> bool {
        let before = self.size();
        self.settings.size = size;
        self.size() != before
    }

    /// Bytes of the disk as the driver sees it: whole blocks.
    pub fn size(&self) -> u64 {
        self.settings.size - self.settings.size % u64::from(self.settings.block_size)
    }

    /// Number of queues that the device has at most.
    pub fn max_queues(&self) -> u16 {
        self.settings.queues
    }

    /// Number of queues, by what the driver acked.
    pub fn queues(&self) -> u16 {
        if self.has(F_MQ) { self.settings.queues } else { 1 }
    }

    /// What requests may do, for as long as nothing changes: the features, the status, the cache mode or the size.
    pub fn rules(&self) -> Rules {
        let Settings { block_size, read_only, flush, zeroes_may_unmap, id, .. } = self.settings;
        let limits = |feature, limits: Option<Limits>| limits.filter(|_| self.has(feature));
        Rules {
            size: self.size(),
            block_size,
            read_only,
            flush,
            stable: self.is_stable(),
            discard: limits(F_DISCARD, self.settings.discard),
            write_zeroes: limits(F_WRITE_ZEROES, self.settings.write_zeroes),
            zeroes_may_unmap,
            secure_erase: limits(F_SECURE_ERASE, self.settings.secure_erase),
            id,
        }
    }

    /// Whether writes must be on stable storage when they are done (5.2.6.2): the cache is off, or the driver has no way to
    /// flush it. Storage that cannot flush is not asked to.
    fn is_stable(&self) -> bool {
        self.settings.flush && !(self.has(F_FLUSH) && self.is_writeback())
    }

    /// The `writeback` field: what the driver wrote, if it may; else as the settings say, but a driver that knows of the
    /// field and cannot flush finds the cache off (5.2.5.2).
    fn is_writeback(&self) -> bool {
        let Self { settings, negotiation, written } = self;
        let features = negotiation.accepted().unwrap_or(negotiation.offered());
        match (features & F_CONFIG_WCE != 0, features & F_FLUSH != 0) {
            (true, true) => written.unwrap_or(settings.writeback),
            (true, false) => written.unwrap_or(false),
            (false, _) => settings.writeback && settings.flush,
        }
    }

    /// Whether this feature was negotiated.
    fn has(&self, feature: u64) -> bool {
        self.negotiation.acked() & feature != 0
    }
}

/// The features of a device of these settings.
fn offered(settings: &Settings) -> u64 {
    let mut features = feature::VERSION_1 | feature::RING_EVENT_IDX | feature::RING_INDIRECT_DESC;
    features |= feature::RING_PACKED;
    features |= F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | F_TOPOLOGY;
    for (is_offered, feature) in [
        (settings.iommu, feature::ACCESS_PLATFORM),
        (settings.read_only, F_RO),
        (settings.flush, F_FLUSH | F_CONFIG_WCE),
        (settings.queues > 1, F_MQ),
        (settings.discard.is_some(), F_DISCARD),
        (settings.write_zeroes.is_some(), F_WRITE_ZEROES),
        (settings.secure_erase.is_some(), F_SECURE_ERASE),
    ] {
        if is_offered {
            features |= feature;
        }
    }
    features
}

#[cfg(test)]
mod tests;
