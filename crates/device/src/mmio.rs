//! A device on a bus of memory-mapped registers (4.2), version 2.
//!
//! ```text
//!   0x000  magic, version, IDs
//!   0x010  features      ─┐
//!   0x030  queues         ├─► Registers
//!   0x060  interrupts     │     InterruptStatus ──► Line
//!   0x070  status        ─┘
//!   0x0ac  shared memory regions: none
//!   0x100  the configuration space
//! ```
//!
//! A register is read and written whole, by accesses of 32 bits; any other finds nothing and does nothing (4.2.2.2). The
//! legacy interface (version 1) is not here.

use ringway_spec::feature::{NOTIFICATION_DATA, RING_RESET};
use ringway_spec::mmio as reg;

use crate::model::DeviceModel;
use crate::registers::{Action, Area, QueueSetup, Registers, Settings, SettingsError};

/// Who made the device: as on PCI.
const VENDOR: u32 = ringway_spec::pci::VENDOR_ID as u32;
/// What registers of shared memory regions read, for there are none (4.2.2.1).
const NO_REGION: u32 = u32::MAX;

/// A device behind MMIO registers.
#[derive(Debug, Clone)]
pub struct MmioDevice<D> {
    registers: Registers<D>,
    /// The level that the VMM knows the line to have.
    line: bool,
}

impl<D: DeviceModel> MmioDevice<D> {
    /// A device after reset.
    ///
    /// # Errors
    /// [`SettingsError`].
    pub fn new(model: D, settings: Settings) -> Result<Self, SettingsError> {
        let registers = Registers::new(model, settings, RING_RESET | NOTIFICATION_DATA)?;
        Ok(Self { registers, line: false })
    }

    /// Bytes from the first register to the end of the configuration space: where a guest's accesses go.
    pub fn len(&self) -> u64 {
        (reg::CONFIG + self.model().config_len()) as u64
    }

    /// Never: there are registers.
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The device.
    pub fn model(&self) -> &D {
        &self.registers.model
    }

    /// The device, to be changed. What changes its configuration is followed by [`config_changed`](Self::config_changed).
    pub fn model_mut(&mut self) -> &mut D {
        &mut self.registers.model
    }

    /// The guest reads `to.len()` bytes at `offset` from the first register.
    pub fn read(&mut self, offset: u64, to: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        match (offset, &mut *to) {
            (reg::CONFIG.., to) => self.registers.read_config(offset - reg::CONFIG, to),
            (_, [_, _, _, _]) => to.copy_from_slice(&self.read_register(offset).to_le_bytes()),
            (_, to) => to.fill(0),
        }
    }

    /// The guest writes `from` to `offset`.
    pub fn write(&mut self, offset: u64, from: &[u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        match (offset, from) {
            (reg::CONFIG.., _) => self.registers.write_config(offset - reg::CONFIG, from),
            (_, &[a, b, c, d]) => self.write_register(offset, u32::from_le_bytes([a, b, c, d])),
            _ => {}
        }
    }

    /// The next thing to do, if there is one.
    pub fn next_action(&mut self) -> Option<Action> {
        let line = self.registers.isr != 0;
        self.registers.next_action().or_else(|| {
            let is_new = core::mem::replace(&mut self.line, line) != line;
            is_new.then_some(Action::Line(line))
        })
    }

    /// Queue `index` as the driver set it up; `None` while the device may not use it.
    pub fn queue(&self, index: u16) -> Option<QueueSetup> {
        self.registers.queue(index)
    }

    /// The device has used buffers of a queue, and the driver wants to know:
    /// [`DeviceQueue::publish`](ringway_queue::DeviceQueue::publish) said so.
    pub fn used(&mut self, index: u16) {
        if self.registers.used(index).is_some() {
            self.registers.raise_queue();
        }
    }

    /// The configuration has changed.
    pub fn config_changed(&mut self) {
        self.registers.config_changed();
    }

    /// The device met an error that only a reset mends, such as a [`QueueError`](ringway_queue::QueueError).
    pub fn need_reset(&mut self) {
        self.registers.need_reset();
    }

    /// The queue of an [`Action::QueueReset`] is no longer used.
    pub fn queue_was_reset(&mut self, index: u16) {
        self.registers.queue_was_reset(index);
    }

    fn read_register(&self, offset: usize) -> u32 {
        let registers = &self.registers;
        match offset {
            reg::MAGIC_VALUE => reg::MAGIC,
            reg::VERSION => reg::VERSION_MODERN,
            reg::DEVICE_ID => registers.model.id(),
            reg::VENDOR_ID => VENDOR,
            reg::DEVICE_FEATURES => registers.offered(),
            reg::QUEUE_SIZE_MAX => registers.max_size().into(),
            reg::QUEUE_READY => registers.is_ready().into(),
            reg::INTERRUPT_STATUS => registers.isr.into(),
            reg::STATUS => registers.status().bits().into(),
            reg::SHM_LEN_LOW | reg::SHM_LEN_HIGH | reg::SHM_BASE_LOW | reg::SHM_BASE_HIGH => NO_REGION,
            reg::QUEUE_RESET => registers.is_resetting().into(),
            reg::CONFIG_GENERATION => registers.generation(),
            // Write-only, or nothing.
            _ => 0,
        }
    }

    fn write_register(&mut self, offset: usize, value: u32) {
        let registers = &mut self.registers;
        match offset {
            reg::DEVICE_FEATURES_SEL => registers.device_feature_select = value,
            reg::DRIVER_FEATURES => registers.accept(value),
            reg::DRIVER_FEATURES_SEL => registers.driver_feature_select = value,
            reg::QUEUE_SEL => registers.queue_select = narrow(value),
            reg::QUEUE_SIZE => registers.set_size(u16::try_from(value).unwrap_or(0)),
            reg::QUEUE_READY if value == 1 => registers.enable(),
            // A driver may also take a queue back by this register (4.2.2.2).
            reg::QUEUE_READY if value == 0 => registers.stop(),
            reg::QUEUE_NOTIFY if registers.has(NOTIFICATION_DATA) => registers.notify(value as u16, value),
            reg::QUEUE_NOTIFY => registers.notify(narrow(value), value),
            reg::INTERRUPT_ACK => registers.isr &= !(value as u8),
            reg::STATUS if value == 0 => registers.reset(),
            reg::STATUS => registers.write_status(value as u8),
            reg::QUEUE_DESC_LOW => registers.set_area(Area::Descriptor, false, value),
            reg::QUEUE_DESC_HIGH => registers.set_area(Area::Descriptor, true, value),
            reg::QUEUE_DRIVER_LOW => registers.set_area(Area::Driver, false, value),
            reg::QUEUE_DRIVER_HIGH => registers.set_area(Area::Driver, true, value),
            reg::QUEUE_DEVICE_LOW => registers.set_area(Area::Device, false, value),
            reg::QUEUE_DEVICE_HIGH => registers.set_area(Area::Device, true, value),
            reg::QUEUE_RESET if value == 1 => registers.reset_queue(),
            // Read-only, or nothing.
            _ => {}
        }
    }
}

/// The index of a queue, or that of none.
fn narrow(index: u32) -> u16 {
    u16::try_from(index).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests;
