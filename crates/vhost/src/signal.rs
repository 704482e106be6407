//! How threads wake each other: what polls for kicks can poll for this as well.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};

use rustix::event::{EventfdFlags, eventfd};

/// Something that is readable from when it is raised until it is cleared. Who watches for edges need not clear it.
#[derive(Debug)]
pub struct Signal(OwnedFd);

impl Signal {
    /// One that is not raised.
    ///
    /// # Errors
    /// The kernel's, if there is no file descriptor left.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Makes it readable, anew if it is.
    pub fn raise(&self) {
        // A counter at its limit is readable, which is all that is wanted.
        let _ = rustix::io::write(&self.0, &1u64.to_ne_bytes());
    }

    /// Makes it unreadable.
    pub fn clear(&self) {
        // Without anything to read it is so already.
        let _ = rustix::io::read(&self.0, &mut [0; 8]);
    }
}

impl AsFd for Signal {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How threads tell another one, which polls [`Bell::signal`], what happened.
#[derive(Debug)]
pub struct Bell<E> {
    events: Sender<E>,
    signal: Arc<Signal>,
}

impl<E> Bell<E> {
    /// A bell, and where its events come out.
    ///
    /// # Errors
    /// As of [`Signal::new`].
    pub fn new() -> io::Result<(Self, Receiver<E>)> {
        let (events, receiver) = channel();
        Ok((Self { events, signal: Arc::new(Signal::new()?) }, receiver))
    }

    /// Tells an event.
    pub fn ring(&self, event: E) {
        // Without a receiver the program is ending.
        let _ = self.events.send(event);
        self.signal.raise();
    }

    /// Raised when there are events.
    pub fn signal(&self) -> &Signal {
        &self.signal
    }
}

impl<E> Clone for Bell<E> {
    fn clone(&self) -> Self {
        Self { events: self.events.clone(), signal: Arc::clone(&self.signal) }
    }
}
