//! A device's state on its way through a pipe, out of one back-end and into another.
//!
//! Whoever writes closes its end when all is written; only then does the back-end say whether it went well.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::PollFlags;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};

use super::FrontendError;
use super::event::wait_until;
use crate::message::StateDirection;

/// A pipe for a transfer: our end, the back-end's.
pub(super) fn pipe(direction: StateDirection) -> io::Result<(OwnedFd, OwnedFd)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    Ok(match direction {
        StateDirection::Save => (reader, writer),
        StateDirection::Load => (writer, reader),
    })
}

/// Makes an end of ours one that is waited for by polling only.
fn set_nonblocking(end: &OwnedFd) -> io::Result<()> {
    Ok(fcntl_setfl(end, fcntl_getfl(end)? | OFlags::NONBLOCK)?)
}

/// Reads to the end, which is to come before `max` bytes, and the next bytes within `limit` each.
pub(super) fn read(end: &OwnedFd, max: usize, limit: Duration) -> Result<Vec<u8>, FrontendError> {
    set_nonblocking(end)?;
    let mut state = Vec::new();
    let mut piece = vec![0; 64 * 1024];
    loop {
        match rustix::io::read(end, &mut piece[..]) {
            Ok(0) => return Ok(state),
            Ok(n) if n > max - state.len() => return Err(FrontendError::LongState { max }),
            Ok(n) => state.extend_from_slice(&piece[..n]),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(end, PollFlags::IN, "device state", limit)?,
            Err(error) => return Err(error.into()),
        }
    }
}

/// Writes all, each piece taken within `limit`, and closes the end.
pub(super) fn write(end: OwnedFd, mut state: &[u8], limit: Duration) -> Result<(), FrontendError> {
    set_nonblocking(&end)?;
    while !state.is_empty() {
        match rustix::io::write(&end, state) {
            Ok(n) => state = &state[n..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait(&end, PollFlags::OUT, "reader of the device state", limit)?,
            Err(error) => return Err(error.into()),
        }
    }
    drop(end);
    Ok(())
}

fn wait(end: &OwnedFd, flags: PollFlags, what: &'static str, limit: Duration) -> Result<(), FrontendError> {
    if wait_until(end.as_fd(), flags, Instant::now() + limit)? {
        return Ok(());
    }
    Err(FrontendError::TimedOut { what, limit })
}
