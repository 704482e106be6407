//! How a driver reaches its device (4): registers, or messages.
//!
//! A transport carries out single steps: reads a field, sets a queue up. Their order is [`Device`](crate::Device)'s, and what
//! they are for is the driver's.
#![allow(unsafe_code, reason = "device registers are accessed by volatile reads and writes")]

pub mod mmio;
pub mod pci;
pub mod registers;
#[cfg(feature = "vhost-user")]
pub mod vhost_user;

use bitflags::bitflags;
use ringway_memory::Gpa;
use ringway_spec::feature;
use ringway_spec::status::DeviceStatus;
use thiserror::Error;

/// The way to one device.
pub trait Transport {
    /// How a queue of it is kicked.
    type Notifier: Notify;

    /// What type of device it is (5).
    fn device_id(&self) -> u32;

    /// Of the features that concern the transport (6: `NOTIFICATION_DATA`, `NOTIF_CONFIG_DATA`, `RING_RESET`), those that it
    /// can carry.
    fn carries(&self) -> u64;

    /// The features that the device offers.
    ///
    /// # Errors
    /// [`TransportError`], as of all that follows.
    fn offered(&mut self) -> Result<u64, TransportError>;

    /// Tells the device which features the driver accepts.
    fn accept(&mut self, features: u64) -> Result<(), TransportError>;

    /// The device status (2.1).
    fn status(&mut self) -> Result<DeviceStatus, TransportError>;

    /// Writes the device status, which is not empty.
    fn set_status(&mut self, status: DeviceStatus) -> Result<(), TransportError>;

    /// Begins to reset the device. It is done when the status is read as empty (2.4.2).
    fn begin_reset(&mut self) -> Result<(), TransportError>;

    /// A number that is another whenever the configuration has changed (2.5).
    fn generation(&mut self) -> Result<u32, TransportError>;

    /// Reads one field of the configuration, as it stands there (little-endian): 1, 2 or 4 bytes at a multiple of as many.
    fn read_config(&mut self, offset: usize, to: &mut [u8]) -> Result<(), TransportError>;

    /// Writes one field of the configuration: 1, 2 or 4 bytes at a multiple of as many.
    fn write_config(&mut self, offset: usize, from: &[u8]) -> Result<(), TransportError>;

    /// The most descriptors that a queue can have; 0 if there is no such queue.
    fn max_queue_size(&mut self, index: u16) -> Result<u16, TransportError>;

    /// Tells the device where a queue is, and enables it.
    fn set_up_queue(&mut self, index: u16, setup: &QueueSetup) -> Result<Self::Notifier, TransportError>;

    /// Begins to reset a queue (2.6.1), if `RING_RESET` was negotiated.
    fn reset_queue(&mut self, index: u16) -> Result<(), TransportError>;

    /// Whether the reset of a queue is complete.
    fn is_queue_reset(&mut self, index: u16) -> Result<bool, TransportError>;

    /// Which interrupt tells of changes of the configuration, where there are several.
    fn set_config_vector(&mut self, _vector: Option<u16>) -> Result<(), TransportError> {
        Ok(())
    }

    /// What the interrupt that has come is about; it is acknowledged with this. Where queues have interrupts of their own
    /// (MSI-X) there is nothing to ask.
    fn interrupt(&mut self) -> Result<Interrupt, TransportError>;
}

/// How a queue is kicked.
pub trait Notify {
    /// Kicks the device. `next` is what [`NotificationData`](ringway_queue::NotificationData) says the driver makes
    /// available next; a notifier passes it on if `NOTIFICATION_DATA` was negotiated.
    fn notify(&self, next: u16);
}

/// A queue, as the device is told of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueSetup {
    /// Number of descriptors.
    pub size: u16,
    /// The negotiated features.
    pub features: u64,
    /// Where the device finds the descriptor area.
    pub descriptor: Gpa,
    /// Where it finds the driver area.
    pub driver: Gpa,
    /// Where it finds the device area.
    pub device: Gpa,
    /// The interrupt for used chains, where there are several.
    pub vector: Option<u16>,
}

impl QueueSetup {
    /// Whether a queue for which the device has `max` descriptors can have this size (4.1.4.3.2, 4.2.2.2).
    fn check_size(&self, index: u16, max: u16) -> Result<(), TransportError> {
        let Self { size, features, .. } = *self;
        let is_packed = features & feature::RING_PACKED != 0;
        match max {
            0 => Err(TransportError::NoQueue(index)),
            max if size > max || size == 0 || !(is_packed || size.is_power_of_two()) => {
                Err(TransportError::BadQueueSize { index, size, max })
            }
            _ => Ok(()),
        }
    }
}

bitflags! {
    /// What an interrupt is about.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct Interrupt: u8 {
        /// Chains were used, of some queue.
        const QUEUE = 1;
        /// The configuration has changed, or the device status.
        const CONFIG = 2;
    }
}

/// Why the way to a device failed.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum TransportError {
    /// The device's configuration ends before the field.
    #[error("the device's configuration has no {len} bytes at {offset:#x}")]
    ShortConfig {
        /// Where the field begins.
        offset: usize,
        /// Its bytes.
        len: usize,
    },
    /// The device has no such queue.
    #[error("the device has no queue {0}")]
    NoQueue(u16),
    /// The queue is in use, and the device does not let go of it.
    #[error("queue {0} is in use")]
    QueueInUse(u16),
    /// A queue cannot have this size.
    #[error("queue {index} cannot have {size} descriptors; the device has {max}")]
    BadQueueSize {
        /// The queue's index.
        index: u16,
        /// The size it was to have.
        size: u16,
        /// What the device has.
        max: u16,
    },
    /// Where the device wants to be kicked there is nothing, or it is misaligned.
    #[error("queue {0} has an impossible notification address")]
    BadNotifyAddress(u16),
    /// There is no such vector, or vectors are not enabled.
    #[error("there is no interrupt vector {vector}; {count} are enabled")]
    NoVector {
        /// The vector.
        vector: u16,
        /// How many there are.
        count: u16,
    },
    /// The device did not map an event to the vector.
    #[error("the device cannot use interrupt vector {vector}")]
    VectorRefused {
        /// The vector.
        vector: u16,
    },
    /// The back-end did not do what it was asked, or is gone.
    #[cfg(feature = "vhost-user")]
    #[error(transparent)]
    VhostUser(ringway_vhost::frontend::FrontendError),
}
