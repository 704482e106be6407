//! The way to the device's structures through its configuration space (4.1.4.9), for firmware that has not mapped a BAR.
//!
//! ```text
//! capability   type 5 │ BAR │ offset │ length │ data
//!                        1      2        3       4: the access itself
//! ```
//!
//! The four accesses belong together, so all of it stays on one thread.
#![forbid(unsafe_code)]

use alloc::rc::Rc;

use ringway_spec::pci::capability::{
    BAR, CFG_TYPE, ID_VENDOR, LEN, LENGTH, OFFSET, PCI_CFG, PCI_CFG_DATA, PCI_CFG_SIZE,
};
use ringway_spec::pci::header::SPACE;

use super::config_space::{ConfigSpace, capabilities};
use super::structure::{BarRange, Structure};
use crate::transport::registers::Registers;

/// A function's window on its own BARs.
pub struct ConfigWindow<C> {
    config_space: Rc<C>,
    capability: usize,
}

impl<C: ConfigSpace> ConfigWindow<C> {
    /// The function's window, if it has one.
    pub fn find(config_space: &Rc<C>) -> Option<Self> {
        let config = &**config_space;
        let (_, capability) = capabilities(config).find(|(id, at)| {
            *id == ID_VENDOR
                && at + PCI_CFG_SIZE <= SPACE
                && usize::from(config.read_u8(at + LEN)) >= PCI_CFG_SIZE
                && config.read_u8(at + CFG_TYPE) == PCI_CFG
        })?;
        Some(Self { config_space: Rc::clone(config_space), capability })
    }

    /// One of the structures that [`Pci::new`](super::Pci::new) asks for; the table of vectors is not reached this way.
    pub fn map(&self, range: &BarRange) -> Option<WindowRegisters<C>> {
        let is_reached = range.structure != Structure::VectorTable;
        is_reached.then(|| WindowRegisters {
            config_space: Rc::clone(&self.config_space),
            capability: self.capability,
            range: *range,
        })
    }
}

/// A structure behind a [`ConfigWindow`].
pub struct WindowRegisters<C> {
    config_space: Rc<C>,
    capability: usize,
    range: BarRange,
}

impl<C: ConfigSpace> WindowRegisters<C> {
    /// Moves the window to a register; returns where its value is then.
    ///
    /// # Panics
    /// If the register is not in the structure, or misaligned: the caller's fault.
    fn show(&self, offset: usize, width: u32) -> usize {
        let fits = offset.checked_add(width as usize).is_some_and(|end| end <= self.len());
        assert!(fits, "no register of {width} bytes at {offset:#x}");
        let offset = self.range.offset + offset as u32;
        assert!(offset.is_multiple_of(width), "a misaligned register at {offset:#x}");
        self.config_space.write_u8(self.capability + BAR, self.range.bar);
        self.config_space.write_u32(self.capability + LENGTH, width);
        self.config_space.write_u32(self.capability + OFFSET, offset);
        self.capability + PCI_CFG_DATA
    }
}

impl<C: ConfigSpace> Registers for WindowRegisters<C> {
    fn len(&self) -> usize {
        self.range.len as usize
    }

    fn read_u8(&self, offset: usize) -> u8 {
        self.config_space.read_u8(self.show(offset, 1))
    }

    fn read_u16(&self, offset: usize) -> u16 {
        self.config_space.read_u16(self.show(offset, 2))
    }

    fn read_u32(&self, offset: usize) -> u32 {
        self.config_space.read_u32(self.show(offset, 4))
    }

    fn write_u8(&self, offset: usize, value: u8) {
        self.config_space.write_u8(self.show(offset, 1), value);
    }

    fn write_u16(&self, offset: usize, value: u16) {
        self.config_space.write_u16(self.show(offset, 2), value);
    }

    fn write_u32(&self, offset: usize, value: u32) {
        self.config_space.write_u32(self.show(offset, 4), value);
    }
}
