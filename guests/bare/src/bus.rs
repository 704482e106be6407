//! Where virtio devices are, whichever way they are reached: what the checks know of the machine.

use core::time::Duration;

use ringway_driver::Transport;

use crate::failure::Result;
use crate::interrupts::{self, Vector};

/// A place where a device is. It can be opened again and again, by one driver at a time.
pub(crate) trait Slot {
    /// How a driver reaches the device.
    type Transport: Transport;

    /// What type of device it is (5).
    fn device_id(&self) -> u32;

    /// The interrupts that its driver is to name to it.
    fn interrupts(&self) -> Interrupts;

    /// The way to the device, for a new driver.
    fn open(&self) -> Result<Self::Transport>;
}

/// The interrupts of a device: where it has one only, both are the same.
#[derive(Clone, Copy)]
pub(crate) struct Interrupts {
    /// Of its configuration.
    pub(crate) config: Source,
    /// Of its first queue, or of all.
    pub(crate) queues: Source,
    /// Of its second queue, where a queue has its own.
    pub(crate) second: Source,
}

impl Interrupts {
    /// Of the first queue or the second.
    pub(crate) fn queue(self, index: u16) -> Source {
        if index == 0 { self.queues } else { self.second }
    }
}

/// An interrupt of a device.
#[derive(Clone, Copy)]
pub(crate) struct Source {
    /// What the device knows it by, where it has several (MSI-X).
    pub(crate) entry: Option<u16>,
    /// What comes.
    pub(crate) vector: Vector,
}

impl Source {
    /// How often it has come. One that is still pending, of a driver before, comes first.
    pub(crate) fn seen(self) -> u32 {
        interrupts::take_pending();
        self.vector.count()
    }

    /// Waits until it has come once more than `seen` times, `limit` at most; returns whether it has.
    pub(crate) fn wait(self, seen: u32, limit: Duration) -> bool {
        interrupts::wait_until(limit, || self.vector.count() != seen)
    }
}
