//! The virtual machine monitor of docs/write-a-device.md: the part of it that has to do with one device.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use ringway_device::mmio::MmioDevice;
use ringway_device::registers::{Action, Settings, SettingsError};
use ringway_memory::MemoryTable;
use ringway_queue::{Burst, DeviceQueue};

use super::clock_device::{ClockDevice, serve};

/// A clock in a virtual machine: its registers, and its queue while the driver uses it.
pub(crate) struct ClockInVm {
    registers: MmioDevice<ClockDevice>,
    pub(crate) queue: Option<DeviceQueue>,
    burst: Burst,
    /// The guest's memory.
    memory: Arc<MemoryTable>,
    /// The level of the interrupt line.
    pub(crate) line: bool,
}

impl ClockInVm {
    pub(crate) fn new(memory: Arc<MemoryTable>) -> Result<Self, SettingsError> {
        let registers = MmioDevice::new(ClockDevice::new(), Settings::default())?;
        Ok(Self { registers, queue: None, burst: Burst::default(), memory, line: false })
    }

    /// The guest reads registers: an exit of a virtual processor.
    pub(crate) fn read(&mut self, offset: u64, to: &mut [u8]) {
        self.registers.read(offset, to);
        self.act();
    }

    /// The guest writes registers.
    pub(crate) fn write(&mut self, offset: u64, from: &[u8]) {
        self.registers.write(offset, from);
        self.act();
    }

    /// Does what the registers ask for, until there is nothing left.
    fn act(&mut self) {
        while let Some(action) = self.registers.next_action() {
            match action {
                Action::QueueStarted(index) => {
                    let started = self.registers.queue(index).map(|queue| queue.start(&self.memory));
                    match started {
                        Some(Ok(queue)) => self.queue = Some(queue),
                        // The driver said that its queue is where there is no memory.
                        _ => self.registers.need_reset(),
                    }
                    self.serve();
                }
                Action::Notified { .. } => self.serve(),
                Action::Reset => self.queue = None,
                Action::Line(level) => self.line = level,
                _ => {}
            }
        }
    }

    /// Answers what is in the queue.
    fn serve(&mut self) {
        let Some(queue) = &mut self.queue else { return };
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        match serve(queue, &mut self.burst, now) {
            Ok(true) => self.registers.used(0),
            Ok(false) => {}
            Err(_) => {
                self.queue = None;
                self.registers.need_reset();
            }
        }
    }
}
