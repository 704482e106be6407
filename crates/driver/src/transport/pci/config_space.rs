//! A function's configuration space, and what stands in its header: which device it is, its BARs, its capabilities.
#![forbid(unsafe_code)]

use alloc::rc::Rc;
use alloc::sync::Arc;

use ringway_spec::pci::header::{
    BAR, BAR_IO, BAR_IO_FLAGS, BAR_MEMORY_FLAGS, BAR_TYPE, BAR_TYPE_64, BARS, CAPABILITIES, COMMAND,
    COMMAND_IO, COMMAND_MEMORY, DEVICE_ID, SIZE, SPACE, STATUS, STATUS_CAPABILITIES, VENDOR_ID,
};
use ringway_spec::pci::{self, DEVICE_ID_BASE, DEVICE_ID_LAST, TRANSITIONAL, capability};

use crate::transport::registers::Registers;

/// The configuration space of one function, 256 bytes at least. Each method is one access of its width, at a multiple of it.
///
/// Where there is [ECAM](Ecam), it is the implementation; ports 0xcf8 and 0xcfc are their owner's to implement it by.
pub trait ConfigSpace {
    /// Reads 8 bits.
    fn read_u8(&self, offset: usize) -> u8;

    /// Reads 16 bits.
    fn read_u16(&self, offset: usize) -> u16;

    /// Reads 32 bits.
    fn read_u32(&self, offset: usize) -> u32;

    /// Writes 8 bits.
    fn write_u8(&self, offset: usize, value: u8);

    /// Writes 16 bits.
    fn write_u16(&self, offset: usize, value: u16);

    /// Writes 32 bits.
    fn write_u32(&self, offset: usize, value: u32);
}

/// Every access is one to `$target`, from `$start` on.
macro_rules! accesses {
    ($self:ident, $target:expr, $start:expr) => {
        fn read_u8(&$self, offset: usize) -> u8 {
            $target.read_u8($start + offset)
        }

        fn read_u16(&$self, offset: usize) -> u16 {
            $target.read_u16($start + offset)
        }

        fn read_u32(&$self, offset: usize) -> u32 {
            $target.read_u32($start + offset)
        }

        fn write_u8(&$self, offset: usize, value: u8) {
            $target.write_u8($start + offset, value);
        }

        fn write_u16(&$self, offset: usize, value: u16) {
            $target.write_u16($start + offset, value);
        }

        fn write_u32(&$self, offset: usize, value: u32) {
            $target.write_u32($start + offset, value);
        }
    };
}

impl<C: ConfigSpace + ?Sized> ConfigSpace for Rc<C> {
    accesses!(self, (**self), 0);
}

/// The configuration spaces of all functions on some buses, mapped as memory (PCI Express 7.2.2): 4 KiB for a function,
/// 8 functions for a device, 32 devices for a bus.
pub struct Ecam<R> {
    registers: Arc<R>,
}

impl<R: Registers> Ecam<R> {
    const FUNCTION: usize = 0x1000;

    /// What is mapped, from the first bus on.
    pub fn new(registers: R) -> Self {
        Self { registers: Arc::new(registers) }
    }

    /// The configuration space of a function, if it is mapped. `bus` counts from the first that is.
    pub fn function(&self, bus: u8, device: u8, function: u8) -> Option<EcamFunction<R>> {
        if device > 31 || function > 7 {
            return None;
        }
        let index = usize::from(bus) << 8 | usize::from(device) << 3 | usize::from(function);
        let start = index * Self::FUNCTION;
        let is_mapped = start + Self::FUNCTION <= self.registers.len();
        is_mapped.then(|| EcamFunction { registers: Arc::clone(&self.registers), start })
    }
}

/// One function's part of [`Ecam`].
pub struct EcamFunction<R> {
    registers: Arc<R>,
    start: usize,
}

impl<R: Registers> ConfigSpace for EcamFunction<R> {
    accesses!(self, self.registers, self.start);
}

/// The type of virtio device (5) that a function is; none if it is something else (4.1.2).
pub fn device_id(config_space: &impl ConfigSpace) -> Option<u32> {
    if config_space.read_u16(VENDOR_ID) != pci::VENDOR_ID {
        return None;
    }
    let found = config_space.read_u16(DEVICE_ID);
    let id = match found {
        DEVICE_ID_BASE..=DEVICE_ID_LAST => found - DEVICE_ID_BASE,
        _ => TRANSITIONAL.iter().find(|(transitional, _)| *transitional == found)?.1,
    };
    // There is no device type 0.
    (id != 0).then_some(id.into())
}

/// Where the function's capabilities are, each by its ID and its offset. It ends, whatever the list is like.
pub(super) fn capabilities(config_space: &impl ConfigSpace) -> impl Iterator<Item = (u8, usize)> {
    /// As many as there is room for: more is a list that comes back to itself.
    const MOST: usize = (SPACE - SIZE) / 4;
    let has_any = config_space.read_u16(STATUS) & STATUS_CAPABILITIES != 0;
    let mut link = has_any.then_some(CAPABILITIES);
    core::iter::from_fn(move || {
        // The two lowest bits of a link are reserved.
        let at = usize::from(config_space.read_u8(link?) & !3);
        link = (at >= SIZE).then_some(at + capability::NEXT);
        link.map(|_| (config_space.read_u8(at + capability::ID), at))
    })
    .take(MOST)
}

/// What a BAR is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Space {
    /// Memory space.
    Memory,
    /// I/O space.
    Io,
}

/// A Base Address Register: where the function answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Bar {
    pub(super) space: Space,
    /// Its first address; 0 if it was given none.
    pub(super) base: u64,
    is_64_bits: bool,
}

impl Bar {
    /// The BAR of an index; none where there is no such BAR, or where the upper half of another is.
    pub(super) fn read(config_space: &impl ConfigSpace, index: u8) -> Option<Self> {
        Self::all(config_space).find(|(at, _)| *at == usize::from(index)).map(|(_, bar)| bar)
    }

    /// All that there are, by their indices.
    fn all(config_space: &impl ConfigSpace) -> impl Iterator<Item = (usize, Self)> {
        let mut next = 0;
        core::iter::from_fn(move || {
            let index = next;
            let low = (index < BARS).then(|| config_space.read_u32(BAR + 4 * index))?;
            let is_64_bits = low & (BAR_IO | BAR_TYPE) == BAR_TYPE_64 && index + 1 < BARS;
            let high = if is_64_bits { config_space.read_u32(BAR + 4 * (index + 1)) } else { 0 };
            next += if is_64_bits { 2 } else { 1 };
            let (space, flags) = match low & BAR_IO {
                0 => (Space::Memory, BAR_MEMORY_FLAGS),
                _ => (Space::Io, BAR_IO_FLAGS),
            };
            let base = u64::from(low & !flags) | u64::from(high) << 32;
            Some((index, Self { space, base, is_64_bits }))
        })
    }
}

/// How many bytes each BAR is long, 0 for none: for a machine where nobody has found out yet.
///
/// BARs are written to for it (PCI Local Bus 3.0, 6.2.5.1) and get their values again. Meanwhile the function does not
/// answer, so nothing may use it.
pub fn bar_sizes(config_space: &impl ConfigSpace) -> [u64; BARS] {
    let command = config_space.read_u16(COMMAND);
    config_space.write_u16(COMMAND, command & !(COMMAND_IO | COMMAND_MEMORY));
    let mut sizes = [0; BARS];
    for (index, bar) in Bar::all(config_space) {
        let low = writable_bits(config_space, BAR + 4 * index);
        sizes[index] = match bar.space {
            Space::Io => size_of_bar(u64::from(low & !BAR_IO_FLAGS)),
            Space::Memory => {
                let high =
                    if bar.is_64_bits { writable_bits(config_space, BAR + 4 * (index + 1)) } else { 0 };
                size_of_bar(u64::from(low & !BAR_MEMORY_FLAGS) | u64::from(high) << 32)
            }
        };
    }
    config_space.write_u16(COMMAND, command);
    sizes
}

/// Which bits of a register keep what is written.
fn writable_bits(config_space: &impl ConfigSpace, offset: usize) -> u32 {
    let value = config_space.read_u32(offset);
    config_space.write_u32(offset, u32::MAX);
    let bits = config_space.read_u32(offset);
    config_space.write_u32(offset, value);
    bits
}

/// The size of a BAR by the bits of its address that can be written: the lowest of them.
fn size_of_bar(address_bits: u64) -> u64 {
    address_bits & address_bits.wrapping_neg()
}
