//! Device status (2.1): how far the driver has come, in one byte that only a reset clears.

use bitflags::bitflags;

bitflags! {
    /// The bits of the device status field (2.1).
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
    pub struct DeviceStatus: u8 {
        /// The guest has found the device.
        const ACKNOWLEDGE = 1;
        /// The guest has a driver for it.
        const DRIVER = 2;
        /// The driver is set up: the device is live.
        const DRIVER_OK = 4;
        /// Feature negotiation is complete.
        const FEATURES_OK = 8;
        /// The driver suspended the device.
        const SUSPEND = 16;
        /// The device met an error that only a reset mends.
        const DEVICE_NEEDS_RESET = 64;
        /// The driver gave up.
        const FAILED = 128;
    }
}
