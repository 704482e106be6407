//! An eventfd: the wire of kicks, calls and errors.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

/// A counter that the peer adds to, or that we add to.
#[derive(Debug)]
pub struct Event(OwnedFd);

impl Event {
    /// A new one, at zero; reads do not block.
    pub fn new() -> Result<Self> {
        eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map(Self).context("eventfd")
    }

    /// Adds one. A full counter stays full, as for a kick that nobody reads.
    pub fn signal(&self) -> Result<()> {
        match rustix::io::write(&self.0, &1u64.to_ne_bytes()) {
            Ok(_) | Err(Errno::AGAIN) => Ok(()),
            Err(error) => Err(error).context("write to an eventfd"),
        }
    }

    /// Takes the count: how often it was signalled since the last look.
    pub fn take(&self) -> Result<u64> {
        let mut count = [0; 8];
        match rustix::io::read(&self.0, &mut count) {
            Ok(_) => Ok(u64::from_ne_bytes(count)),
            Err(Errno::AGAIN) => Ok(0),
            Err(error) => Err(error).context("read an eventfd"),
        }
    }

    /// Waits for a signal and takes the count; zero when none came in time.
    pub fn wait(&self, limit: Duration) -> Result<u64> {
        if wait_readable(self.0.as_fd(), limit)? { self.take() } else { Ok(0) }
    }
}

impl AsFd for Event {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Waits until a read of `fd` would not block; whether it came to that.
pub(super) fn wait_readable(fd: BorrowedFd<'_>, limit: Duration) -> Result<bool> {
    let timeout = Timespec::try_from(limit).context("a time limit")?;
    let mut fds = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    match poll(&mut fds, Some(&timeout)) {
        Ok(ready) => Ok(ready > 0),
        // A signal: to the caller like a wait that ended early.
        Err(Errno::INTR) => Ok(false),
        Err(error) => Err(error).context("poll"),
    }
}
