//! Virtio over MMIO (4.2), version 2: one page of registers, one interrupt.
//!
//! ```text
//! 0x000 magic, version, device ID │ features │ queue set-up │ kick │ interrupt │ status │ … │ 0x100 configuration
//! ```
//!
//! Where the registers are and which interrupt they come with, the machine's description says (a device tree, the command
//! line, ACPI). Shared memory regions are not used, nor are devices of version 1.
#![forbid(unsafe_code)]

use alloc::sync::Arc;

use ringway_memory::Gpa;
use ringway_queue::NotificationData;
use ringway_spec::feature;
use ringway_spec::mmio::{
    CONFIG, CONFIG_GENERATION, DEVICE_FEATURES, DEVICE_FEATURES_SEL, DEVICE_ID, DRIVER_FEATURES,
    DRIVER_FEATURES_SEL, INTERRUPT_ACK, INTERRUPT_STATUS, MAGIC, MAGIC_VALUE, QUEUE_DESC_HIGH,
    QUEUE_DESC_LOW, QUEUE_DEVICE_HIGH, QUEUE_DEVICE_LOW, QUEUE_DRIVER_HIGH, QUEUE_DRIVER_LOW, QUEUE_NOTIFY,
    QUEUE_READY, QUEUE_RESET, QUEUE_SEL, QUEUE_SIZE, QUEUE_SIZE_MAX, STATUS, VERSION, VERSION_MODERN,
};
use ringway_spec::status::DeviceStatus;
use thiserror::Error;

use super::registers::{Registers, read_field, write_field};
use super::{Interrupt, Notify, QueueSetup, Transport, TransportError};

/// Why registers are not those of a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum MmioError {
    /// There is not room for all registers.
    #[error("{len:#x} bytes are too few for the registers of a device")]
    Short {
        /// Bytes there are.
        len: usize,
    },
    /// No virtio device is here.
    #[error("the registers begin with {0:#x}, not with the magic value")]
    BadMagic(u32),
    /// The device is of another version of the transport.
    #[error("the device has version {0} of the registers, and the driver is for version 2")]
    BadVersion(u32),
}

/// A device behind MMIO registers.
pub struct Mmio<R> {
    registers: Arc<R>,
    device_id: u32,
}

impl<R: Registers> Mmio<R> {
    /// The device behind these registers, if there is one: a place without a device is no error (4.2.3.1.1).
    ///
    /// # Errors
    /// [`MmioError`].
    pub fn new(registers: R) -> Result<Option<Self>, MmioError> {
        if registers.len() < CONFIG {
            return Err(MmioError::Short { len: registers.len() });
        }
        match registers.read_u32(MAGIC_VALUE) {
            MAGIC => {}
            other => return Err(MmioError::BadMagic(other)),
        }
        match registers.read_u32(VERSION) {
            VERSION_MODERN => {}
            other => return Err(MmioError::BadVersion(other)),
        }
        match registers.read_u32(DEVICE_ID) {
            0 => Ok(None),
            device_id => Ok(Some(Self { registers: Arc::new(registers), device_id })),
        }
    }

    /// Where a field of the configuration is.
    fn config(&self, offset: usize, len: usize) -> Result<usize, TransportError> {
        let start = CONFIG.checked_add(offset);
        let end = start.and_then(|start| start.checked_add(len));
        match (start, end) {
            (Some(start), Some(end)) if end <= self.registers.len() => Ok(start),
            _ => Err(TransportError::ShortConfig { offset, len }),
        }
    }

    fn select(&self, queue: u16) {
        self.registers.write_u32(QUEUE_SEL, queue.into());
    }

    /// How many entries the selected queue can have.
    fn selected_max(&self) -> u16 {
        self.registers.read_u32(QUEUE_SIZE_MAX).try_into().unwrap_or(u16::MAX)
    }

    /// Stops the selected queue, if it runs: while it does, where it is must not be written (4.2.2.2).
    fn selected_stops(&self) -> bool {
        if self.registers.read_u32(QUEUE_READY) == 0 {
            return true;
        }
        self.registers.write_u32(QUEUE_READY, 0);
        self.registers.read_u32(QUEUE_READY) == 0
    }

    fn write_address(&self, low: usize, high: usize, address: Gpa) {
        self.registers.write_u32(low, address.0 as u32);
        self.registers.write_u32(high, (address.0 >> 32) as u32);
    }
}

impl<R: Registers> Transport for Mmio<R> {
    type Notifier = MmioNotifier<R>;

    fn device_id(&self) -> u32 {
        self.device_id
    }

    fn carries(&self) -> u64 {
        feature::NOTIFICATION_DATA | feature::RING_RESET
    }

    fn offered(&mut self) -> Result<u64, TransportError> {
        let [low, high] = [0, 1].map(|half| {
            self.registers.write_u32(DEVICE_FEATURES_SEL, half);
            u64::from(self.registers.read_u32(DEVICE_FEATURES))
        });
        Ok(low | high << 32)
    }

    fn accept(&mut self, features: u64) -> Result<(), TransportError> {
        for (half, bits) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.registers.write_u32(DRIVER_FEATURES_SEL, half);
            self.registers.write_u32(DRIVER_FEATURES, bits);
        }
        Ok(())
    }

    fn status(&mut self) -> Result<DeviceStatus, TransportError> {
        Ok(DeviceStatus::from_bits_retain(self.registers.read_u32(STATUS) as u8))
    }

    fn set_status(&mut self, status: DeviceStatus) -> Result<(), TransportError> {
        self.registers.write_u32(STATUS, status.bits().into());
        Ok(())
    }

    fn begin_reset(&mut self) -> Result<(), TransportError> {
        self.registers.write_u32(STATUS, 0);
        Ok(())
    }

    fn generation(&mut self) -> Result<u32, TransportError> {
        Ok(self.registers.read_u32(CONFIG_GENERATION))
    }

    fn read_config(&mut self, offset: usize, to: &mut [u8]) -> Result<(), TransportError> {
        read_field(&*self.registers, self.config(offset, to.len())?, to);
        Ok(())
    }

    fn write_config(&mut self, offset: usize, from: &[u8]) -> Result<(), TransportError> {
        write_field(&*self.registers, self.config(offset, from.len())?, from);
        Ok(())
    }

    fn max_queue_size(&mut self, index: u16) -> Result<u16, TransportError> {
        self.select(index);
        Ok(self.selected_max())
    }

    fn set_up_queue(&mut self, index: u16, setup: &QueueSetup) -> Result<MmioNotifier<R>, TransportError> {
        self.select(index);
        if !self.selected_stops() {
            return Err(TransportError::QueueInUse(index));
        }
        setup.check_size(index, self.selected_max())?;
        self.registers.write_u32(QUEUE_SIZE, setup.size.into());
        self.write_address(QUEUE_DESC_LOW, QUEUE_DESC_HIGH, setup.descriptor);
        self.write_address(QUEUE_DRIVER_LOW, QUEUE_DRIVER_HIGH, setup.driver);
        self.write_address(QUEUE_DEVICE_LOW, QUEUE_DEVICE_HIGH, setup.device);
        self.registers.write_u32(QUEUE_READY, 1);
        let with_data = setup.features & feature::NOTIFICATION_DATA != 0;
        Ok(MmioNotifier { registers: Arc::clone(&self.registers), index, with_data })
    }

    fn reset_queue(&mut self, index: u16) -> Result<(), TransportError> {
        self.select(index);
        self.registers.write_u32(QUEUE_RESET, 1);
        Ok(())
    }

    fn is_queue_reset(&mut self, index: u16) -> Result<bool, TransportError> {
        self.select(index);
        // A device that never began reads 0 too, but the queue is still ready.
        Ok(self.registers.read_u32(QUEUE_RESET) == 0 && self.registers.read_u32(QUEUE_READY) == 0)
    }

    /// The events are acknowledged before they are looked into: one that comes meanwhile interrupts anew.
    fn interrupt(&mut self) -> Result<Interrupt, TransportError> {
        let interrupt = Interrupt::from_bits_truncate(self.registers.read_u32(INTERRUPT_STATUS) as u8);
        if !interrupt.is_empty() {
            self.registers.write_u32(INTERRUPT_ACK, interrupt.bits().into());
        }
        Ok(interrupt)
    }
}

/// Kicks one queue of a [`Mmio`] device.
pub struct MmioNotifier<R> {
    registers: Arc<R>,
    index: u16,
    with_data: bool,
}

impl<R: Registers> Notify for MmioNotifier<R> {
    fn notify(&self, next: u16) {
        let value = if self.with_data {
            NotificationData { vqn: self.index, next }.to_word()
        } else {
            self.index.into()
        };
        self.registers.write_u32(QUEUE_NOTIFY, value);
    }
}
