//! Entropy device (5.4).
//!
//! One queue, `requestq` 0: the device fills device-writable buffers with random bytes. It has neither feature bits nor a
//! configuration (5.4.3, 5.4.4).

/// The device id of an entropy device.
pub const DEVICE_ID: u32 = 4;
