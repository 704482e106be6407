//! What can go wrong with a device.
#![forbid(unsafe_code)]

use ringway_memory::MemoryError;
use ringway_queue::{AddError, ConfigError, DriverError};
use thiserror::Error;

use crate::{OutOfMemory, TransportError};

/// Why a driver cannot do what it was asked.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Error {
    /// The way to the device failed.
    #[error(transparent)]
    Transport(#[from] TransportError),
    /// It is a device of another type.
    #[error("the device has type {found}, and the driver is for {wanted}")]
    WrongDevice {
        /// The device's ID (5).
        found: u32,
        /// The driver's.
        wanted: u32,
    },
    /// The driver cannot do without these features.
    #[error("the device does not offer features {missing:#x}")]
    LacksFeatures {
        /// What it does not offer.
        missing: u64,
    },
    /// The device took `FEATURES_OK` back (3.1.1).
    #[error("the device does not accept features {features:#x}, which it offered")]
    FeaturesRefused {
        /// What was to be accepted.
        features: u64,
    },
    /// The device has failed, and says so (2.1.2): reset it, and set it up again.
    #[error("the device needs a reset")]
    NeedsReset,
    /// The device did not do in time what it does at once.
    #[error("the device does not come to {what}")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
    },
    /// The device has no such queue.
    #[error("the device has no queue {index}")]
    NoQueue {
        /// The queue's index.
        index: u16,
    },
    /// The device has no such port.
    #[error("the device has no port {port}")]
    NoPort {
        /// The port's number.
        port: u16,
    },
    /// A queue cannot be like this.
    #[error(transparent)]
    Queue(#[from] ConfigError),
    /// The device broke the rules of its queue. Only a reset mends that.
    #[error(transparent)]
    Device(#[from] DriverError),
    /// A chain cannot be added.
    #[error(transparent)]
    Add(#[from] AddError),
    /// The configuration contradicts itself, or what was negotiated.
    #[error("the device's configuration has an impossible {what}")]
    BadConfig {
        /// Which field.
        what: &'static str,
    },
    /// An answer that is none.
    #[error("the device answered {what} with nonsense")]
    BadAnswer {
        /// What it was asked.
        what: &'static str,
    },
    /// The device says that it will not do what it was asked.
    #[error("the device refuses {what}")]
    Refused {
        /// What it was asked.
        what: &'static str,
    },
    /// What was asked cannot be asked of this device.
    #[error("{what} cannot be asked like this")]
    BadArgument {
        /// What was asked.
        what: &'static str,
    },
    /// What was asked needs a feature that was not negotiated.
    #[error("this needs feature {feature:#x}, which was not negotiated")]
    NotNegotiated {
        /// The feature's bit.
        feature: u64,
    },
    /// There is no memory for rings or buffers.
    #[error(transparent)]
    OutOfMemory(#[from] OutOfMemory),
    /// The platform's memory is not as it promised.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}
