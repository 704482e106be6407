//! What the registers of a device hold, whatever the bus: [`mmio`](crate::mmio) and [`pci`](crate::pci) are two ways to it.
//!
//! ```text
//!   a VM's exit ──► read, write ──► Registers ─┬─► DeviceModel   features, status, configuration
//!                                              ├─► queues        sizes and areas, until one is enabled
//!   the VMM ◄────── next_action ◄──────────────┴─► what is due   at most one of a kind, and of each queue
//! ```
//!
//! Nothing is done here with a queue's memory. An enabled queue of a live device is a [`QueueSetup`], of which the VMM
//! makes a [`DeviceQueue`].

#[cfg(test)]
pub(crate) mod bus;
mod queue;
mod setup;
mod state;

pub use self::setup::{QueueSetup, StartError};

pub(crate) use self::state::{Area, Registers};

use ringway_queue::NotificationData;
use thiserror::Error;

#[cfg(doc)]
use ringway_queue::DeviceQueue;

/// How the registers shall be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Settings {
    /// The most entries of a queue, a power of two from 1 to 32768.
    pub queue_size: u16,
    /// What is offered beside the model's features: of those that concern the transport, `RING_RESET`,
    /// `NOTIFICATION_DATA`, and for PCI `NOTIF_CONFIG_DATA`. With `RING_RESET` the VMM serves [`Action::QueueReset`] of a
    /// driver that goes on using the device.
    pub features: u64,
}

impl Default for Settings {
    /// Queues of 256, nothing more offered.
    fn default() -> Self {
        Self { queue_size: 256, features: 0 }
    }
}

/// Why registers cannot be as the settings say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum SettingsError {
    /// See [`Settings::queue_size`].
    #[error("queues of {0} are not of a power of two from 1 to 32768")]
    QueueSize(u16),
    /// See [`Settings::features`].
    #[error("features {0:#x} are not for this transport to offer")]
    Features(u64),
    /// A device of this ID has no PCI device ID.
    #[error("virtio device {0} has no PCI device ID")]
    Id(u32),
    /// A PCI device has no MSI-X, or 2 to 2048 vectors.
    #[error("{0} MSI-X vectors are neither 0 nor from 2 to 2048")]
    Vectors(u16),
    /// The configuration space has no room in the BAR.
    #[error("a configuration space of {0} bytes is more than {max}", max = crate::pci::DEVICE_LEN)]
    ConfigLen(usize),
}

/// What a VMM is to do. It takes actions until there is none, after whatever it told the device, and before the guest runs
/// on where a guest's access was the cause: a driver may take what it wrote for done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// The driver reset the device: let go of all queues. Requests that are being carried out must not touch the guest's
    /// memory any more.
    Reset,
    /// The driver is set up (`DRIVER_OK`). Its queues follow, each as [`Action::QueueStarted`].
    Started,
    /// The driver wrote to the configuration space, and the model took it.
    ConfigWritten,
    /// The queue has been enabled: start it.
    QueueStarted(u16),
    /// The driver resets the queue: let go of it, and then say `queue_was_reset`.
    QueueReset(u16),
    /// The driver made buffers available.
    Notified {
        /// In this queue.
        index: u16,
        /// Up to here, if `NOTIFICATION_DATA` was negotiated.
        data: Option<NotificationData>,
    },
    /// The interrupt line has this level from now on: MMIO's line, PCI's INTA#.
    Line(bool),
    /// PCI: send this message (MSI-X).
    Message {
        /// Written to this address.
        address: u64,
        /// What is written.
        data: u32,
    },
    /// PCI: the BAR answers at this guest-physical address from now on, or nowhere.
    Mapped(Option<u64>),
}

#[cfg(test)]
mod tests;
