//! Devices behind MMIO registers: the kernel's command line says where they are, as it does for Linux.
//!
//! ```text
//! virtio_mmio.device=512@0xfeb00e00:12        512 bytes of registers, line 12 of the I/O APIC
//! ```

use alloc::vec::Vec;
use core::ptr::{self, NonNull};

use ringway_driver::Transport;
use ringway_driver::transport::mmio::Mmio;
use ringway_driver::transport::registers::MappedRegisters;

use crate::bus::{Interrupts, Slot, Source};
use crate::failure::{Result, fail};
use crate::interrupts::Vector;

/// A place where a device is.
pub(crate) struct MmioSlot {
    place: Place,
    vector: Vector,
    device_id: u32,
}

/// What the command line says of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Place {
    base: usize,
    len: usize,
    line: u8,
}

/// The devices that the command line names.
pub(crate) fn find(command_line: &str) -> Vec<MmioSlot> {
    command_line
        .split_whitespace()
        .filter_map(|word| Place::parse(word.strip_prefix("virtio_mmio.device=")?))
        .filter_map(|place| {
            let device_id = place.open().ok()??.device_id();
            let vector = Vector::allocate();
            vector.route(place.line);
            Some(MmioSlot { place, vector, device_id })
        })
        .collect()
}

impl Place {
    fn parse(text: &str) -> Option<Self> {
        let (len, rest) = text.split_once('@')?;
        let (base, line) = rest.split_once(':')?;
        let base = usize::from_str_radix(base.strip_prefix("0x")?, 16).ok()?;
        Some(Self { base, len: len.parse().ok()?, line: line.parse().ok()? })
    }

    fn open(&self) -> Result<Option<Mmio<MappedRegisters>>> {
        let base = NonNull::new(ptr::with_exposed_provenance_mut(self.base));
        let Some(base) = base else { fail!("registers at address 0") };
        // SAFETY: the command line says that registers are there, and memory is mapped where it is; one driver at a time
        // opens a slot.
        let registers = unsafe { MappedRegisters::new(base, self.len) };
        Ok(Mmio::new(registers)?)
    }
}

impl Slot for MmioSlot {
    type Transport = Mmio<MappedRegisters>;

    fn device_id(&self) -> u32 {
        self.device_id
    }

    fn interrupts(&self) -> Interrupts {
        let source = Source { entry: None, vector: self.vector };
        Interrupts { config: source, queues: source, second: source }
    }

    fn open(&self) -> Result<Self::Transport> {
        let Some(device) = self.place.open()? else { fail!("the device is gone") };
        Ok(device)
    }
}
