//! Event counters: the wires of kicks, calls and errors.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

/// A counter that one side adds to and the other takes from.
#[derive(Debug)]
pub struct Event(OwnedFd);

impl Event {
    /// A new one, at 0. No use of it waits but [`Event::wait`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        Ok(Self(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Adds one. A counter at its limit has been signalled already.
    ///
    /// # Errors
    /// The kernel's.
    pub fn signal(&self) -> io::Result<()> {
        match rustix::io::write(&self.0, &1u64.to_ne_bytes()) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Takes the count: how many signals came since it was last taken.
    ///
    /// # Errors
    /// The kernel's.
    pub fn take(&self) -> io::Result<u64> {
        let mut count = [0; 8];
        match rustix::io::read(&self.0, &mut count) {
            Ok(_) => Ok(u64::from_ne_bytes(count)),
            Err(Errno::AGAIN) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for a signal and takes the count; 0 if none came within `limit`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn wait(&self, limit: Duration) -> io::Result<u64> {
        if wait_until(self.0.as_fd(), PollFlags::IN, Instant::now() + limit)? { self.take() } else { Ok(0) }
    }

    /// The same counter once more, to be sent to the other side.
    ///
    /// # Errors
    /// The kernel's.
    pub fn share(&self) -> io::Result<OwnedFd> {
        self.0.try_clone()
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until `fd` is ready, or has hung up; false if the deadline came first. It is looked at once in any case.
pub(super) fn wait_until(fd: BorrowedFd<'_>, flags: PollFlags, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::from_borrowed_fd(fd, flags)], Some(&timeout)) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_counted_and_taken_once() {
        let event = Event::new().unwrap();
        let other = Event(event.share().unwrap());
        assert_eq!(event.wait(Duration::ZERO).unwrap(), 0);
        for _ in 0..3 {
            other.signal().unwrap();
        }
        assert_eq!(event.wait(Duration::from_secs(5)).unwrap(), 3);
        assert_eq!(event.take().unwrap(), 0);
    }
}
