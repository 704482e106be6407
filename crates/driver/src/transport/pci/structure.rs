//! The device's structures (4.1.4): found by capabilities, each a part of a BAR that the caller maps.
#![forbid(unsafe_code)]

use core::fmt;

use ringway_spec::pci::capability::{
    BAR, CFG_TYPE, COMMON_CFG, DEVICE_CFG, ID_VENDOR, ISR_CFG, LEN, LENGTH, NOTIFY_CFG,
    NOTIFY_OFF_MULTIPLIER, NOTIFY_SIZE, OFFSET, SIZE,
};
use ringway_spec::pci::header::{BARS, COMMAND_IO, COMMAND_MEMORY, SPACE};
use ringway_spec::pci::{common, msix};

use super::config_space::{Bar, ConfigSpace, Space, capabilities};
use crate::transport::registers::Registers;

/// One of the structures that a device is driven by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Structure {
    /// The common configuration (4.1.4.3).
    Common,
    /// Where kicks are written (4.1.4.4).
    Notify,
    /// What an interrupt is about (4.1.4.5).
    Isr,
    /// The device configuration (4.1.4.6).
    Device,
    /// The table of MSI-X vectors, which is no structure of virtio.
    VectorTable,
}

impl fmt::Display for Structure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Common => "common configuration",
            Self::Notify => "notification structure",
            Self::Isr => "ISR status",
            Self::Device => "device configuration",
            Self::VectorTable => "table of vectors",
        })
    }
}

/// What a structure must be like, and how much of it is of use.
struct Shape {
    cfg_type: u8,
    align: u32,
    min_len: u32,
    max_len: u32,
}

impl Structure {
    /// Its shape; `multiplier` is that of a notification structure. The table of vectors has no capability of this kind.
    fn shape(self, multiplier: u32) -> Option<Shape> {
        let shape = |cfg_type, align, min_len, max_len| Some(Shape { cfg_type, align, min_len, max_len });
        match self {
            Self::Common => shape(COMMON_CFG, 4, common::BASIC_SIZE as u32, common::ADMIN_QUEUE_INDEX as u32),
            Self::Notify => shape(NOTIFY_CFG, 2, 2, multiplier.saturating_mul(0xffff).saturating_add(4)),
            Self::Isr => shape(ISR_CFG, 1, 1, 1),
            // No device has a longer one (4.1.4).
            Self::Device => shape(DEVICE_CFG, 4, 1, 4096),
            Self::VectorTable => None,
        }
    }
}

/// A part of a BAR, where one of the device's structures is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct BarRange {
    /// What is there.
    pub structure: Structure,
    /// The BAR's index, 0 to 5.
    pub bar: u8,
    /// What the BAR is of.
    pub space: Space,
    /// Where the BAR begins; 0 if it was given no address yet.
    pub base: u64,
    /// Where the part begins in the BAR.
    pub offset: u32,
    /// Its bytes: as many as are of use, of a structure that has more.
    pub len: u32,
}

impl BarRange {
    /// Whether it is inside of its BAR, by the BARs' sizes: see [`bar_sizes`](super::bar_sizes). What a device says to be past
    /// the end is somebody else's, and not to be mapped.
    pub fn is_inside(&self, sizes: &[u64; BARS]) -> bool {
        let end = u64::from(self.offset) + u64::from(self.len);
        sizes.get(usize::from(self.bar)).is_some_and(|size| end <= *size)
    }

    /// The part's first address, if it has one.
    pub fn address(&self) -> Option<u64> {
        if self.base == 0 {
            return None;
        }
        let start = self.base.checked_add(self.offset.into())?;
        start.checked_add(self.len.into())?;
        Some(start)
    }

    /// A part of a BAR that there is, and whose offsets fit in 32 bits.
    pub(super) fn new(
        config_space: &impl ConfigSpace,
        structure: Structure,
        bar: u8,
        offset: u32,
        len: u32,
    ) -> Option<Self> {
        offset.checked_add(len)?;
        let Bar { space, base, .. } = Bar::read(config_space, bar)?;
        Some(Self { structure, bar, space, base, offset, len })
    }

    /// What the function's command must have, so that it answers there.
    pub(super) fn command(&self) -> u16 {
        match self.space {
            _ if self.base == 0 => 0,
            Space::Memory => COMMAND_MEMORY,
            Space::Io => COMMAND_IO,
        }
    }
}

/// A structure that was mapped.
pub(super) struct Mapped<R> {
    pub(super) registers: R,
    pub(super) range: BarRange,
    /// Where its capability is.
    pub(super) capability: usize,
}

/// Maps a part of a BAR.
///
/// # Panics
/// If what the caller mapped has another length.
pub(super) fn map<R: Registers>(
    range: BarRange,
    capability: usize,
    map: &mut impl FnMut(&BarRange) -> Option<R>,
) -> Option<Mapped<R>> {
    let registers = map(&range)?;
    assert_eq!(registers.len(), range.len as usize, "the {} is mapped as long as it is", range.structure);
    Some(Mapped { registers, range, capability })
}

/// The first instance of a structure that can be used, mapped (4.1.4.1).
pub(super) fn find<R: Registers>(
    config_space: &impl ConfigSpace,
    structure: Structure,
    map_range: &mut impl FnMut(&BarRange) -> Option<R>,
) -> Option<Mapped<R>> {
    capabilities(config_space)
        .filter(|(id, _)| *id == ID_VENDOR)
        .find_map(|(_, at)| map(range(config_space, structure, at)?, at, map_range))
}

/// What a notification structure's `queue_notify_off` is multiplied by.
pub(super) fn multiplier(config_space: &impl ConfigSpace, capability: usize) -> u32 {
    config_space.read_u32(capability + NOTIFY_OFF_MULTIPLIER)
}

/// Where a capability says that the structure is; none if it is about another, or cannot be used.
fn range(config_space: &impl ConfigSpace, structure: Structure, at: usize) -> Option<BarRange> {
    let size = if structure == Structure::Notify { NOTIFY_SIZE } else { SIZE };
    if at + size > SPACE || usize::from(config_space.read_u8(at + LEN)) < size {
        return None;
    }
    let multiplier = if structure == Structure::Notify { multiplier(config_space, at) } else { 0 };
    let Shape { cfg_type, align, min_len, max_len } = structure.shape(multiplier)?;
    let offset = config_space.read_u32(at + OFFSET);
    let len = config_space.read_u32(at + LENGTH);
    let is_usable =
        config_space.read_u8(at + CFG_TYPE) == cfg_type && offset.is_multiple_of(align) && len >= min_len;
    if !is_usable {
        return None;
    }
    BarRange::new(config_space, structure, config_space.read_u8(at + BAR), offset, len.min(max_len))
}

/// The table of vectors of an MSI-X capability, if it can be used.
pub(super) fn vector_table(config_space: &impl ConfigSpace, at: usize) -> Option<BarRange> {
    let control = config_space.read_u16(at + msix::CONTROL);
    let vectors = u32::from(control & msix::CONTROL_TABLE_SIZE) + 1;
    let table = config_space.read_u32(at + msix::TABLE);
    let (bar, offset) = ((table & msix::BIR) as u8, table & !msix::BIR);
    BarRange::new(config_space, Structure::VectorTable, bar, offset, vectors * msix::ENTRY_SIZE as u32)
}
