//! A virtqueue of a device: the driver's half of the ring, and the way to kick.
#![forbid(unsafe_code)]

use alloc::vec::Vec;

use ringway_queue::{DriverError, DriverQueue, NotAdded, Segment, Used};

use crate::{Notify, Stopped};

/// A virtqueue whose chains hold an `O` each while the device has them. `N` is how the device is kicked.
pub struct Virtqueue<O, N> {
    index: u16,
    queue: DriverQueue<O>,
    notifier: N,
}

impl<O, N: Notify> Virtqueue<O, N> {
    pub(crate) fn new(index: u16, queue: DriverQueue<O>, notifier: N) -> Self {
        Self { index, queue, notifier }
    }

    /// Its index.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// The driver's half of the ring.
    pub fn queue(&self) -> &DriverQueue<O> {
        &self.queue
    }

    /// The driver's half of the ring, to be changed. What is published there by hand comes without a kick.
    pub fn queue_mut(&mut self) -> &mut DriverQueue<O> {
        &mut self.queue
    }

    /// The way to kick.
    pub fn notifier(&self) -> &N {
        &self.notifier
    }

    /// Adds a chain: see [`DriverQueue::add`].
    ///
    /// # Errors
    /// [`NotAdded`], with the owner.
    #[inline]
    pub fn add(&mut self, readable: &[Segment], writable: &[Segment], owner: O) -> Result<(), NotAdded<O>> {
        self.queue.add(readable, writable, owner)
    }

    /// Shows the device all that was added, and kicks it if it asked for that.
    #[inline]
    pub fn publish(&mut self) {
        if self.queue.publish() {
            self.notifier.notify(self.queue.notification_data(self.index).next);
        }
    }

    /// The next chain that the device has used: see [`DriverQueue::reclaim`].
    ///
    /// # Errors
    /// [`DriverError`]; the device is to be reset.
    #[inline]
    pub fn reclaim(&mut self) -> Result<Option<Used<O>>, DriverError> {
        self.queue.reclaim()
    }

    /// Whether [`Virtqueue::reclaim`] has something to give.
    #[inline]
    pub fn has_used(&self) -> bool {
        self.queue.has_used()
    }

    /// Asks for an interrupt at the next chain used. Returns whether one was used already; only if not is there
    /// something to wait for.
    #[must_use = "a chain used before arming comes without an interrupt"]
    pub fn arm(&mut self) -> bool {
        self.queue.arm()
    }

    /// Asks for no interrupts: the driver polls.
    pub fn suppress(&mut self) {
        self.queue.suppress();
    }

    /// Ends the queue of a device that was [stopped](crate::Device::stop), and returns what it still had.
    pub fn retire<T>(self, _stopped: &Stopped<T>) -> Vec<O> {
        self.end()
    }

    /// Ends the queue; the device touches it no more.
    pub(crate) fn end(self) -> Vec<O> {
        self.queue.reset(|| true).unwrap_or_default()
    }
}
