//! Devices behind PCI functions: found by their configuration spaces, which two I/O ports lead to; their vectors (MSI-X)
//! are set up here.
//!
//! The firmware has given the functions their addresses. Looked at is bus 0, where QEMU puts devices: there are no bridges
//! to others here.

use alloc::vec::Vec;
use core::ptr::{self, NonNull};

use ringway_driver::transport::pci::{self, BarRange, ConfigSpace, Message, Pci, Space};
use ringway_driver::transport::registers::MappedRegisters;
use ringway_spec::pci::header;

use crate::bus::{Interrupts, Slot, Source};
use crate::failure::{Result, ensure};
use crate::interrupts::Vector;
use crate::port;

const CONFIG_ADDRESS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 0xcfc;

/// A function's configuration space.
#[derive(Clone, Copy)]
pub(crate) struct Function {
    /// Of a register's address: that it is valid, and the function's number.
    base: u32,
}

macro_rules! accesses {
    ($($value:ty, $read:ident, $write:ident;)*) => {$(
        fn $read(&self, offset: usize) -> $value {
            let port = self.select(offset);
            // SAFETY: reading a register of a configuration space changes nothing else.
            unsafe { port::$read(port) }
        }

        fn $write(&self, offset: usize, value: $value) {
            let port = self.select(offset);
            // SAFETY: who drives the function does what it says it does with the register.
            unsafe { port::$write(port, value) }
        }
    )*};
}

impl Function {
    fn new(device: u32, function: u32) -> Self {
        Self { base: 1 << 31 | device << 11 | function << 8 }
    }

    /// Has the port return a register; returns which port it is.
    fn select(self, offset: usize) -> u16 {
        assert!(offset < header::SPACE, "configuration space ends before {offset:#x}");
        // SAFETY: selects a register, and does nothing else.
        unsafe { port::write_u32(CONFIG_ADDRESS, self.base | offset as u32 & !3) };
        CONFIG_DATA + (offset as u16 & 3)
    }
}

impl ConfigSpace for Function {
    accesses! {
        u8, read_u8, write_u8;
        u16, read_u16, write_u16;
        u32, read_u32, write_u32;
    }
}

/// A function that is a virtio device.
pub(crate) struct PciSlot {
    function: Function,
    device_id: u32,
    config: Vector,
    queues: [Vector; 2],
}

/// The table's entries that are used.
const CONFIG_ENTRY: u16 = 0;
const QUEUES_ENTRY: u16 = 1;

/// The virtio devices of bus 0.
pub(crate) fn find() -> Vec<PciSlot> {
    let functions = (0..32).flat_map(|device| (0..8).map(move |function| Function::new(device, function)));
    functions
        .filter_map(|function| {
            let device_id = pci::device_id(&function)?;
            Some(PciSlot {
                function,
                device_id,
                config: Vector::allocate(),
                queues: [Vector::allocate(), Vector::allocate()],
            })
        })
        .collect()
}

/// Registers in a BAR, which are mapped where they are. `sizes` are the BARs'.
fn map(range: &BarRange, sizes: &[u64; 6]) -> Option<MappedRegisters> {
    let address = range.address().filter(|_| range.space == Space::Memory && range.is_inside(sizes))?;
    let base = NonNull::new(ptr::with_exposed_provenance_mut(usize::try_from(address).ok()?))?;
    // SAFETY: the firmware gave the function this address; one driver at a time opens a slot.
    Some(unsafe { MappedRegisters::new(base, range.len as usize) })
}

impl Slot for PciSlot {
    type Transport = Pci<Function, MappedRegisters>;

    fn device_id(&self) -> u32 {
        self.device_id
    }

    fn interrupts(&self) -> Interrupts {
        Interrupts {
            config: Source { entry: Some(CONFIG_ENTRY), vector: self.config },
            queues: Source { entry: Some(QUEUES_ENTRY), vector: self.queues[0] },
            second: Source { entry: Some(QUEUES_ENTRY + 1), vector: self.queues[1] },
        }
    }

    fn open(&self) -> Result<Self::Transport> {
        let sizes = pci::bar_sizes(&self.function);
        let mut pci = Pci::new(self.function, |range| map(range, &sizes))?;
        ensure!(pci.vectors() >= 2, "the device has {} vectors", pci.vectors());
        let vectors = [self.config, self.queues[0], self.queues[1]];
        for (entry, vector) in (0..pci.vectors()).zip(vectors) {
            let (address, data) = vector.message();
            pci.set_vector(entry, Message { address, data })?;
        }
        pci.enable_vectors(true)?;
        Ok(pci)
    }
}
