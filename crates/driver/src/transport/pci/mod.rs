//! Virtio over PCI (4.1), the modern interface: structures in BARs, found by capabilities.
//!
//! ```text
//! ConfigSpace ──capabilities──► BarRange ──caller maps──► Registers
//!     │                                     common configuration   features, status, queues
//!     │                                     notification           kicks
//!     │                                     ISR status             what an interrupt of the pin is about
//!     │                                     device configuration
//!     └── MSI-X: enable                     table of vectors       messages
//! ```
//!
//! Which functions there are, and where their BARs are, is the machine's business; [`device_id`] says which of them are
//! virtio devices. A transitional device is driven by its modern interface. Not used are the legacy interface, shared memory
//! regions, administration virtqueues, virtual functions, and vendors' data.
//!
//! ```no_run
//! use core::ptr::NonNull;
//! use ringway_driver::transport::pci::{self, ConfigSpace, Pci, PciError};
//! use ringway_driver::transport::registers::MappedRegisters;
//!
//! /// The device that a function is. The machine shows all of its memory space, and I/O space is elsewhere.
//! fn device<C: ConfigSpace>(function: C) -> Result<Pci<C, MappedRegisters>, PciError> {
//!     let sizes = pci::bar_sizes(&function);
//!     Pci::new(function, |range| {
//!         let is_mapped = range.space == pci::Space::Memory && range.is_inside(&sizes);
//!         let address = range.address().filter(|_| is_mapped)?;
//!         let base = NonNull::new(address as *mut u8)?;
//!         // SAFETY: the BAR's memory is the device's registers, and they stay where they are.
//!         Some(unsafe { MappedRegisters::new(base, range.len as usize) })
//!     })
//! }
//! ```
#![forbid(unsafe_code)]

mod config_space;
mod msix;
mod structure;
mod window;

use alloc::sync::Arc;

use ringway_memory::Gpa;
use ringway_queue::NotificationData;
use ringway_spec::feature;
use ringway_spec::pci::MSI_NO_VECTOR;
use ringway_spec::pci::common::{
    CONFIG_GENERATION, CONFIG_MSIX_VECTOR, DEVICE_FEATURE, DEVICE_FEATURE_SELECT, DEVICE_STATUS,
    DRIVER_FEATURE, DRIVER_FEATURE_SELECT, NUM_QUEUES, QUEUE_DESC, QUEUE_DEVICE, QUEUE_DRIVER, QUEUE_ENABLE,
    QUEUE_MSIX_VECTOR, QUEUE_NOTIF_CONFIG_DATA, QUEUE_NOTIFY_OFF, QUEUE_RESET, QUEUE_SELECT, QUEUE_SIZE,
};
use ringway_spec::pci::header::{COMMAND, COMMAND_BUS_MASTER, DEVICE_ID, VENDOR_ID};
use ringway_spec::status::DeviceStatus;
use thiserror::Error;

pub use self::config_space::{ConfigSpace, Ecam, EcamFunction, Space, bar_sizes, device_id};
pub use self::msix::Message;
pub use self::structure::{BarRange, Structure};
pub use self::window::{ConfigWindow, WindowRegisters};

use self::msix::Vectors;
use self::structure::{Mapped, find, multiplier};
use super::registers::{Registers, read_field, write_field};
use super::{Interrupt, Notify, QueueSetup, Transport, TransportError};

/// Why a function cannot be driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum PciError {
    /// It is no virtio device.
    #[error("function {vendor:04x}:{device:04x} is not a virtio device")]
    NotVirtio {
        /// The PCI vendor ID.
        vendor: u16,
        /// The PCI device ID.
        device: u16,
    },
    /// No capability says where a structure is, or none that is long enough, aligned, and in a BAR that was mapped. A device
    /// that has only the legacy interface has none.
    #[error("the device has no {0} that can be used")]
    NoStructure(Structure),
}

/// A device behind a PCI function.
pub struct Pci<C, R> {
    config_space: C,
    device_id: u32,
    common: R,
    notify: Notification<R>,
    isr: R,
    device: Option<R>,
    vectors: Option<Vectors<R>>,
}

/// The notification structure.
struct Notification<R> {
    registers: Arc<R>,
    /// Where it begins in its BAR, which is aligned.
    offset: u32,
    multiplier: u32,
}

impl<C: ConfigSpace, R: Registers> Pci<C, R> {
    /// The device that a function is. `map` maps parts of BARs, each once, and as long as it is said to be; it returns none
    /// where it cannot, or where the part is not inside the BAR. Then another instance of the structure is looked for.
    ///
    /// The function is made to answer in the spaces it is mapped in, and to be a bus master. Its interrupts come by its pin,
    /// until [vectors are enabled](Pci::enable_vectors).
    ///
    /// # Errors
    /// [`PciError`].
    ///
    /// # Panics
    /// If what `map` returns is not as long as it was to be.
    pub fn new(config_space: C, mut map: impl FnMut(&BarRange) -> Option<R>) -> Result<Self, PciError> {
        let device_id = device_id(&config_space).ok_or_else(|| PciError::NotVirtio {
            vendor: config_space.read_u16(VENDOR_ID),
            device: config_space.read_u16(DEVICE_ID),
        })?;
        let mut command = config_space.read_u16(COMMAND) | COMMAND_BUS_MASTER;
        let mut map = |range: &BarRange| {
            let registers = map(range)?;
            command |= range.command();
            Some(registers)
        };
        let mut structure =
            |structure| find(&config_space, structure, &mut map).ok_or(PciError::NoStructure(structure));
        let common = structure(Structure::Common)?.registers;
        let notify = Notification::new(&config_space, structure(Structure::Notify)?);
        let isr = structure(Structure::Isr)?.registers;
        let device = structure(Structure::Device).ok().map(|mapped| mapped.registers);
        let vectors = Vectors::find(&config_space, &mut map);
        config_space.write_u16(COMMAND, command);
        Ok(Self { config_space, device_id, common, notify, isr, device, vectors })
    }

    /// The function's configuration space.
    pub fn config_space(&self) -> &C {
        &self.config_space
    }

    /// The device configuration, if the field is in it.
    fn config(&self, offset: usize, len: usize) -> Result<&R, TransportError> {
        let fits = |registers: &&R| offset.checked_add(len).is_some_and(|end| end <= registers.len());
        self.device.as_ref().filter(fits).ok_or(TransportError::ShortConfig { offset, len })
    }

    fn select(&self, queue: u16) {
        self.common.write_u16(QUEUE_SELECT, queue);
    }

    fn write_address(&self, field: usize, address: Gpa) {
        self.common.write_u32(field, address.0 as u32);
        self.common.write_u32(field + 4, (address.0 >> 32) as u32);
    }

    /// Maps an event to a vector, or to none, in a field of the common configuration (4.1.5.1.2).
    fn write_vector(&self, field: usize, vector: Option<u16>) -> Result<(), TransportError> {
        let count = match &self.vectors {
            Some(vectors) if vectors.are_enabled => vectors.count(),
            _ => 0,
        };
        match vector {
            Some(vector) if vector >= count => Err(TransportError::NoVector { vector, count }),
            Some(vector) => {
                self.common.write_u16(field, vector);
                match self.common.read_u16(field) {
                    found if found == vector => Ok(()),
                    _ => Err(TransportError::VectorRefused { vector }),
                }
            }
            None if count == 0 => Ok(()),
            None => {
                self.common.write_u16(field, MSI_NO_VECTOR);
                Ok(())
            }
        }
    }

    /// How the selected queue is kicked (4.1.5.2).
    fn notifier(&self, index: u16, features: u64) -> Result<PciNotifier<R>, TransportError> {
        let with_data = features & feature::NOTIFICATION_DATA != 0;
        let width = if with_data { 4 } else { 2 };
        let offset = self.notify.offset(self.common.read_u16(QUEUE_NOTIFY_OFF), width);
        let vqn = match features & feature::NOTIF_CONFIG_DATA {
            0 => index,
            _ => self.common.read_u16(QUEUE_NOTIF_CONFIG_DATA),
        };
        let offset = offset.ok_or(TransportError::BadNotifyAddress(index))?;
        Ok(PciNotifier { registers: Arc::clone(&self.notify.registers), offset, vqn, with_data })
    }
}

impl<R: Registers> Notification<R> {
    fn new(config_space: &impl ConfigSpace, mapped: Mapped<R>) -> Self {
        let Mapped { registers, range, capability } = mapped;
        let multiplier = multiplier(config_space, capability);
        Self { registers: Arc::new(registers), offset: range.offset, multiplier }
    }

    /// Where a queue's kicks of `width` bytes are written, if that is in the structure and aligned (4.1.4.4).
    fn offset(&self, queue_notify_off: u16, width: usize) -> Option<usize> {
        let offset = usize::try_from(u64::from(queue_notify_off) * u64::from(self.multiplier)).ok()?;
        let end = offset.checked_add(width)?;
        let is_aligned = (self.offset as usize).checked_add(offset)?.is_multiple_of(width);
        (end <= self.registers.len() && is_aligned).then_some(offset)
    }
}

impl<C: ConfigSpace, R: Registers> Transport for Pci<C, R> {
    type Notifier = PciNotifier<R>;

    fn device_id(&self) -> u32 {
        self.device_id
    }

    /// Without the fields that come with a feature there is no use in it.
    fn carries(&self) -> u64 {
        let fields =
            [(feature::NOTIF_CONFIG_DATA, QUEUE_NOTIF_CONFIG_DATA), (feature::RING_RESET, QUEUE_RESET)];
        let has = |(feature, field)| if field + 2 <= self.common.len() { feature } else { 0 };
        fields.into_iter().map(has).sum::<u64>() | feature::NOTIFICATION_DATA
    }

    fn offered(&mut self) -> Result<u64, TransportError> {
        let [low, high] = [0, 1].map(|half| {
            self.common.write_u32(DEVICE_FEATURE_SELECT, half);
            u64::from(self.common.read_u32(DEVICE_FEATURE))
        });
        Ok(low | high << 32)
    }

    fn accept(&mut self, features: u64) -> Result<(), TransportError> {
        for (half, bits) in [(0, features as u32), (1, (features >> 32) as u32)] {
            self.common.write_u32(DRIVER_FEATURE_SELECT, half);
            self.common.write_u32(DRIVER_FEATURE, bits);
        }
        Ok(())
    }

    fn status(&mut self) -> Result<DeviceStatus, TransportError> {
        Ok(DeviceStatus::from_bits_retain(self.common.read_u8(DEVICE_STATUS)))
    }

    fn set_status(&mut self, status: DeviceStatus) -> Result<(), TransportError> {
        self.common.write_u8(DEVICE_STATUS, status.bits());
        Ok(())
    }

    fn begin_reset(&mut self) -> Result<(), TransportError> {
        self.common.write_u8(DEVICE_STATUS, 0);
        Ok(())
    }

    fn generation(&mut self) -> Result<u32, TransportError> {
        Ok(self.common.read_u8(CONFIG_GENERATION).into())
    }

    fn read_config(&mut self, offset: usize, to: &mut [u8]) -> Result<(), TransportError> {
        read_field(self.config(offset, to.len())?, offset, to);
        Ok(())
    }

    fn write_config(&mut self, offset: usize, from: &[u8]) -> Result<(), TransportError> {
        write_field(self.config(offset, from.len())?, offset, from);
        Ok(())
    }

    fn max_queue_size(&mut self, index: u16) -> Result<u16, TransportError> {
        if index >= self.common.read_u16(NUM_QUEUES) {
            return Ok(0);
        }
        self.select(index);
        Ok(self.common.read_u16(QUEUE_SIZE))
    }

    fn set_up_queue(&mut self, index: u16, setup: &QueueSetup) -> Result<PciNotifier<R>, TransportError> {
        setup.check_size(index, self.max_queue_size(index)?)?;
        // There is no way to stop it: 0 must not be written (4.1.4.3.2).
        if self.common.read_u16(QUEUE_ENABLE) != 0 {
            return Err(TransportError::QueueInUse(index));
        }
        let notifier = self.notifier(index, setup.features)?;
        self.common.write_u16(QUEUE_SIZE, setup.size);
        self.write_address(QUEUE_DESC, setup.descriptor);
        self.write_address(QUEUE_DRIVER, setup.driver);
        self.write_address(QUEUE_DEVICE, setup.device);
        self.write_vector(QUEUE_MSIX_VECTOR, setup.vector)?;
        self.common.write_u16(QUEUE_ENABLE, 1);
        Ok(notifier)
    }

    fn reset_queue(&mut self, index: u16) -> Result<(), TransportError> {
        self.select(index);
        self.common.write_u16(QUEUE_RESET, 1);
        Ok(())
    }

    fn is_queue_reset(&mut self, index: u16) -> Result<bool, TransportError> {
        self.select(index);
        // A device that never began reads 0 too, but the queue is still enabled.
        Ok(self.common.read_u16(QUEUE_RESET) == 0 && self.common.read_u16(QUEUE_ENABLE) == 0)
    }

    /// A reset of the device takes the vector away: this is for while the device is set up, after that.
    fn set_config_vector(&mut self, vector: Option<u16>) -> Result<(), TransportError> {
        self.write_vector(CONFIG_MSIX_VECTOR, vector)
    }

    /// Which vector came says what it is about, unless events share it: so with vectors it can be anything, and the ISR
    /// status, which is the pin's, is not read.
    fn interrupt(&mut self) -> Result<Interrupt, TransportError> {
        match &self.vectors {
            Some(vectors) if vectors.are_enabled => Ok(Interrupt::all()),
            _ => Ok(Interrupt::from_bits_truncate(self.isr.read_u8(0))),
        }
    }
}

/// Kicks one queue of a [`Pci`] device.
pub struct PciNotifier<R> {
    registers: Arc<R>,
    offset: usize,
    /// The queue's index, or what the device wants in its place.
    vqn: u16,
    with_data: bool,
}

impl<R: Registers> Notify for PciNotifier<R> {
    fn notify(&self, next: u16) {
        if self.with_data {
            self.registers.write_u32(self.offset, NotificationData { vqn: self.vqn, next }.to_word());
        } else {
            self.registers.write_u16(self.offset, self.vqn);
        }
    }
}
