//! MSI-X (PCI Local Bus 3.0, 6.8.2): interrupts that are messages, each event's its own.
//!
//! ```text
//! queue's event ─► queue_msix_vector ─┐            table
//! configuration's ─► config_msix_vector ─► vector ─► address, data, masked? ──► the interrupt controller
//! ```
//!
//! A machine that knows how to receive messages tells each vector which one to send, and enables them all; then it gives
//! vectors to the configuration and to queues. The pending bits are not looked at.
#![forbid(unsafe_code)]

use ringway_spec::pci::header::SPACE;
use ringway_spec::pci::msix::{
    CAPABILITY_ID, CAPABILITY_SIZE, CONTROL, CONTROL_ENABLE, CONTROL_FUNCTION_MASK, ENTRY_ADDRESS_HIGH,
    ENTRY_ADDRESS_LOW, ENTRY_CONTROL, ENTRY_DATA, ENTRY_MASKED, ENTRY_SIZE,
};

use super::Pci;
use super::config_space::{ConfigSpace, capabilities};
use super::structure::{self, BarRange, Mapped};
use crate::TransportError;
use crate::transport::registers::Registers;

/// What a vector writes, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Message {
    /// Where to: a multiple of 4.
    pub address: u64,
    /// What.
    pub data: u32,
}

/// The vectors of a function that has some.
pub(super) struct Vectors<R> {
    table: Mapped<R>,
    pub(super) are_enabled: bool,
}

impl<R: Registers> Vectors<R> {
    /// The function's vectors, disabled. None if it has none, or if the table is not mapped.
    pub(super) fn find(
        config_space: &impl ConfigSpace,
        map: &mut impl FnMut(&BarRange) -> Option<R>,
    ) -> Option<Self> {
        let (_, at) = capabilities(config_space)
            .find(|(id, at)| *id == CAPABILITY_ID && at + CAPABILITY_SIZE <= SPACE)?;
        set_enabled(config_space, at, false);
        let table = structure::map(structure::vector_table(config_space, at)?, at, map)?;
        Some(Self { table, are_enabled: false })
    }

    /// How many there are, 2048 at most.
    pub(super) fn count(&self) -> u16 {
        (self.table.registers.len() / ENTRY_SIZE) as u16
    }
}

/// Enables or disables MSI-X: messages, or the interrupt pin.
fn set_enabled(config_space: &impl ConfigSpace, capability: usize, enabled: bool) {
    let control = config_space.read_u16(capability + CONTROL);
    let changed =
        if enabled { (control | CONTROL_ENABLE) & !CONTROL_FUNCTION_MASK } else { control & !CONTROL_ENABLE };
    if changed != control {
        config_space.write_u16(capability + CONTROL, changed);
    }
}

impl<C: ConfigSpace, R: Registers> Pci<C, R> {
    /// How many vectors the device has; 0 if it has no MSI-X. It is the device's hint how many are of use.
    pub fn vectors(&self) -> u16 {
        self.vectors.as_ref().map_or(0, Vectors::count)
    }

    /// Tells a vector what to send, and unmasks it.
    ///
    /// # Errors
    /// [`TransportError::NoVector`].
    pub fn set_vector(&mut self, vector: u16, message: Message) -> Result<(), TransportError> {
        let (table, entry) = self.vector(vector)?;
        // A message must not change while it can be sent.
        table.write_u32(entry + ENTRY_CONTROL, ENTRY_MASKED);
        table.write_u32(entry + ENTRY_ADDRESS_LOW, message.address as u32);
        table.write_u32(entry + ENTRY_ADDRESS_HIGH, (message.address >> 32) as u32);
        table.write_u32(entry + ENTRY_DATA, message.data);
        table.write_u32(entry + ENTRY_CONTROL, 0);
        Ok(())
    }

    /// Masks a vector, or unmasks it. What comes while it is masked is sent when it no longer is.
    ///
    /// # Errors
    /// [`TransportError::NoVector`].
    pub fn mask_vector(&mut self, vector: u16, masked: bool) -> Result<(), TransportError> {
        let (table, entry) = self.vector(vector)?;
        table.write_u32(entry + ENTRY_CONTROL, if masked { ENTRY_MASKED } else { 0 });
        Ok(())
    }

    /// Enables the vectors, in place of the interrupt pin, or disables them. Only while no queue is set up.
    ///
    /// # Errors
    /// [`TransportError::NoVector`] if there are none.
    pub fn enable_vectors(&mut self, enabled: bool) -> Result<(), TransportError> {
        let vectors = self.vectors.as_mut().ok_or(TransportError::NoVector { vector: 0, count: 0 })?;
        set_enabled(&self.config_space, vectors.table.capability, enabled);
        vectors.are_enabled = enabled;
        Ok(())
    }

    /// The table, and where a vector is in it.
    fn vector(&self, vector: u16) -> Result<(&R, usize), TransportError> {
        let count = self.vectors();
        match &self.vectors {
            Some(vectors) if vector < count => {
                Ok((&vectors.table.registers, usize::from(vector) * ENTRY_SIZE))
            }
            _ => Err(TransportError::NoVector { vector, count }),
        }
    }
}
