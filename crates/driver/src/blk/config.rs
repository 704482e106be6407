//! What a disk says of itself (5.2.4).
#![forbid(unsafe_code)]

use core::mem::offset_of;

use ringway_spec::blk::{self, SECTOR_SIZE};

use crate::{Config, Device, Error, Transport};

/// A disk's properties. What belongs to a feature that was not negotiated is not read, and is as it is without it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Properties {
    /// How many sectors of 512 bytes.
    pub capacity: u64,
    /// The logical block, in bytes: a multiple of a sector. Requests are of whole ones.
    pub block_size: u32,
    /// The most bytes of a segment of a request.
    pub max_segment: u32,
    /// The most segments of a request's data.
    pub max_segments: u32,
    /// As disks had it once.
    pub geometry: Option<Geometry>,
    /// Which requests are good for the disk.
    pub topology: Option<Topology>,
    /// What was written may be lost until it was [flushed](super::Blk::flush) (5.2.5.1).
    pub writeback: bool,
    /// The disk cannot be written to.
    pub read_only: bool,
    /// How many queues the device has.
    pub queues: u16,
    /// What can be discarded by one request; `None`: nothing ever.
    pub discard: Option<RangeLimits>,
    /// What can be zeroed by one request, likewise.
    pub write_zeroes: Option<RangeLimits>,
    /// Zeroed sectors may lose their storage.
    pub zeroes_may_unmap: bool,
    /// What can be erased by one request, likewise.
    pub secure_erase: Option<RangeLimits>,
}

/// Cylinders, heads and sectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "said above")]
pub struct Geometry {
    pub cylinders: u16,
    pub heads: u8,
    pub sectors: u8,
}

/// Which requests are good for the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Topology {
    /// Logical blocks of a physical one, as a power of two.
    pub physical_block_exp: u8,
    /// The first logical block that begins a physical one.
    pub alignment_offset: u8,
    /// The smallest good request, in logical blocks.
    pub min_io_size: u16,
    /// The best request, in logical blocks.
    pub opt_io_size: u32,
}

/// How much a request about ranges of sectors may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeLimits {
    /// The most sectors of a range.
    pub sectors: u32,
    /// The most ranges of a request.
    pub ranges: u32,
    /// Where ranges are best cut: at multiples of so many sectors.
    pub alignment: u32,
}

impl RangeLimits {
    /// The largest range, of whole blocks, after which it is good to cut if it began at such a place; 0 if there is none.
    pub(super) fn best(&self, sectors_of_block: u32) -> u32 {
        let whole = |unit: u32| self.sectors - self.sectors % unit.max(1);
        let aligned = whole(self.alignment);
        let aligned = aligned - aligned % sectors_of_block;
        if aligned > 0 { aligned } else { whole(sectors_of_block) }
    }
}

impl Properties {
    /// Reads them all, as they are at one time.
    ///
    /// # Errors
    /// [`Error::BadConfig`] for what cannot be, and those of the transport.
    pub(super) fn read<T: Transport>(device: &mut Device<T>) -> Result<Self, Error> {
        let features = device.features();
        device.config(|config| Reader { config, features }.all())
    }
}

struct Reader<'a, 'b, T> {
    config: &'a mut Config<'b, T>,
    features: u64,
}

impl<T: Transport> Reader<'_, '_, T> {
    fn all(&mut self) -> Result<Properties, Error> {
        let has_flush = self.has(blk::F_FLUSH);
        let properties = Properties {
            capacity: self.config.u64(offset_of!(blk::Config, capacity))?,
            block_size: self.u32_if(blk::F_BLK_SIZE, offset_of!(blk::Config, blk_size), SECTOR_SIZE)?,
            // There are devices that say 0 (QEMU's storage daemon), and mean that they do not say.
            max_segment: match self.u32_if(blk::F_SIZE_MAX, offset_of!(blk::Config, size_max), 0)? {
                0 => u32::MAX,
                len => len,
            },
            // Without data there are no requests.
            max_segments: self.u32_if(blk::F_SEG_MAX, offset_of!(blk::Config, seg_max), u32::MAX)?.max(1),
            geometry: self.geometry()?,
            topology: self.topology()?,
            // Without the switch, a device that can flush has something to flush (5.2.5.1).
            writeback: if self.has(blk::F_CONFIG_WCE) {
                self.config.u8(blk::CONFIG_WRITEBACK)? != 0
            } else {
                has_flush
            },
            read_only: self.has(blk::F_RO),
            queues: if self.has(blk::F_MQ) {
                self.config.u16(offset_of!(blk::Config, num_queues))?
            } else {
                1
            },
            discard: self.limits(
                blk::F_DISCARD,
                offset_of!(blk::Config, max_discard_sectors),
                Some(offset_of!(blk::Config, discard_sector_alignment)),
            )?,
            write_zeroes: self.limits(
                blk::F_WRITE_ZEROES,
                offset_of!(blk::Config, max_write_zeroes_sectors),
                None,
            )?,
            zeroes_may_unmap: self.has(blk::F_WRITE_ZEROES)
                && self.config.u8(offset_of!(blk::Config, write_zeroes_may_unmap))? != 0,
            secure_erase: self.limits(
                blk::F_SECURE_ERASE,
                offset_of!(blk::Config, max_secure_erase_sectors),
                Some(offset_of!(blk::Config, secure_erase_sector_alignment)),
            )?,
        };
        properties.check()
    }

    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    fn u32_if(&mut self, feature: u64, offset: usize, otherwise: u32) -> Result<u32, Error> {
        if self.has(feature) { self.config.u32(offset) } else { Ok(otherwise) }
    }

    fn geometry(&mut self) -> Result<Option<Geometry>, Error> {
        if !self.has(blk::F_GEOMETRY) {
            return Ok(None);
        }
        let at = offset_of!(blk::Config, geometry);
        let cylinders = self.config.u16(at)?;
        Ok(Some(Geometry { cylinders, heads: self.config.u8(at + 2)?, sectors: self.config.u8(at + 3)? }))
    }

    fn topology(&mut self) -> Result<Option<Topology>, Error> {
        if !self.has(blk::F_TOPOLOGY) {
            return Ok(None);
        }
        Ok(Some(Topology {
            physical_block_exp: self.config.u8(offset_of!(blk::Config, physical_block_exp))?,
            alignment_offset: self.config.u8(offset_of!(blk::Config, alignment_offset))?,
            min_io_size: self.config.u16(offset_of!(blk::Config, min_io_size))?,
            opt_io_size: self.config.u32(offset_of!(blk::Config, opt_io_size))?,
        }))
    }

    /// Sectors at `offset`, ranges behind them, and an alignment where there is one.
    fn limits(
        &mut self,
        feature: u64,
        offset: usize,
        alignment: Option<usize>,
    ) -> Result<Option<RangeLimits>, Error> {
        if !self.has(feature) {
            return Ok(None);
        }
        let alignment = alignment.map_or(Ok(1), |at| self.config.u32(at))?;
        let (sectors, ranges) = (self.config.u32(offset)?, self.config.u32(offset + 4)?);
        Ok(Some(RangeLimits { sectors, ranges, alignment }))
    }
}

impl Properties {
    /// What could not be worked with. Limits of 0 on ranges can: no request is small enough.
    fn check(self) -> Result<Self, Error> {
        let bad = |what| Err(Error::BadConfig { what });
        if self.block_size < SECTOR_SIZE || !self.block_size.is_power_of_two() {
            return bad("block size");
        }
        if self.queues == 0 { bad("num_queues") } else { Ok(self) }
    }
}
