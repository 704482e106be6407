//! A vring that a device serves: its queue, and the notifiers beside it.

use ringway_queue::{DeviceQueue, ResumeState};

use crate::{Kick, Notifier, Running};

/// A running vring, as whoever serves it keeps it.
pub struct Serving {
    /// The queue.
    pub queue: DeviceQueue,
    /// How the driver kicks.
    pub kick: Kick,
    call: Notifier,
    err: Notifier,
    failed: bool,
}

impl From<Running> for Serving {
    /// Begins to serve it, without a wish for kicks. A driver that may wait for a call of the process before this one is
    /// called.
    fn from(running: Running) -> Self {
        let Running { mut queue, kick, call, err, enabled: _, is_resumed } = running;
        if is_resumed {
            call.notify();
        }
        queue.suppress();
        Self { queue, kick, call, err, failed: false }
    }
}

impl Serving {
    /// Whether it has something to take; a ring that fails when it is looked at closer counts too.
    #[inline]
    pub fn is_ready(&self) -> bool {
        !self.failed && self.queue.has_available()
    }

    /// Whether it failed: it is not to be looked at until its session stops it.
    #[inline]
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Publishes what was completed, and calls the driver if it asked; returns whether it was called.
    #[inline]
    pub fn publish(&mut self) -> bool {
        self.queue.publish() && self.call.notify()
    }

    /// Calls the driver, for who has published by the queue and heard that it asked; returns whether there was a way to.
    pub fn call(&self) -> bool {
        self.call.notify()
    }

    /// Calls by another way. The one before may have got a call that nobody looks for any more.
    pub fn set_call(&mut self, call: Notifier) {
        self.call = call;
        self.call.notify();
    }

    /// Tells failures by another way.
    pub fn set_err(&mut self, err: Notifier) {
        self.err = err;
        if self.failed {
            self.err.notify();
        }
    }

    /// Notes that the ring is of no more use, and tells the front-end; whether it was until now.
    pub fn fail(&mut self) -> bool {
        if std::mem::replace(&mut self.failed, true) {
            return false;
        }
        self.err.notify();
        true
    }

    /// Stops it, and calls the driver if it asked; its state to resume from.
    pub fn stop(mut self) -> ResumeState {
        self.publish();
        self.queue.stop()
    }
}
