//! Pipes that tell when the back-end has closed what it was sent, and bounded waits.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ringway_vhost::frontend::Event;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::case::{Verdict, trouble};

/// A new event counter.
pub(crate) fn event() -> Result<Event, Verdict> {
    Event::new().map_err(|e| trouble("eventfd", e))
}

/// An event counter once more, to be sent.
pub(crate) fn share(event: &Event) -> Result<OwnedFd, Verdict> {
    event.share().map_err(|e| trouble("dup", e))
}

/// Whether the counter is signalled within `limit`.
pub(crate) fn is_signalled(event: &Event, limit: Duration) -> Result<bool, Verdict> {
    event.wait(limit).map(|count| count > 0).map_err(|e| trouble("eventfd", e))
}

/// Waits until a read of `fd` would not block, or the other end is gone; whether it came to that.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, limit: Duration) -> bool {
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let Ok(timeout) = Timespec::try_from(left) else { return false };
        match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], Some(&timeout)) {
            Ok(ready) => return ready > 0,
            Err(_) if left.is_zero() => return false,
            Err(_) => {}
        }
    }
}

/// A pipe whose writing end is given away: it tells when the last copy was closed.
pub(crate) struct Tracer(OwnedFd);

impl Tracer {
    /// The tracer, and the file descriptor to send.
    pub(crate) fn new() -> Result<(Self, OwnedFd), Verdict> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).map_err(|e| trouble("pipe", e))?;
        Ok((Self(read), write))
    }

    /// Whether all copies are closed in time. What was written to them before is of no interest.
    pub(crate) fn is_closed(&self, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        while wait_readable(self.0.as_fd(), end.saturating_duration_since(Instant::now())) {
            if rustix::io::read(&self.0, &mut [0; 64]) == Ok(0) {
                return true;
            }
        }
        false
    }
}
