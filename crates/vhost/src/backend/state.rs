//! A device's inner state on its way from one back-end to another, through a channel of the front-end's.
//!
//! ```text
//!   SET_DEVICE_STATE_FD            all is written, or the end has been read
//!  ─────────────────────► moving ───────────────────────────────────────────► done (well or not)
//!                                   CHECK_DEVICE_STATE is answered ◄────────────┘
//! ```
//!
//! The front-end may take its time: nothing here waits for it.

pub(super) mod handover;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::PollFlags;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::RequestError;
use crate::descriptor::NonBlocking;
use crate::message::StateDirection;

/// The longest state taken, in bytes.
const MAX_STATE: usize = 1 << 20;

/// A transfer that has begun.
pub(super) struct Transfer {
    direction: StateDirection,
    /// Gone when the transfer is done: that is what tells the other end.
    channel: Option<NonBlocking>,
    /// What is still to be written, or has been read.
    data: Vec<u8>,
    result: Result<(), RequestError>,
}

impl Transfer {
    /// Begins to write `data` to the channel.
    pub(super) fn save(channel: OwnedFd, data: Vec<u8>) -> Result<Self, RequestError> {
        Ok(Self::new(StateDirection::Save, NonBlocking::new(channel, OFlags::WRONLY)?, data))
    }

    /// Begins to read from the channel.
    pub(super) fn load(channel: OwnedFd) -> Result<Self, RequestError> {
        Ok(Self::new(StateDirection::Load, NonBlocking::new(channel, OFlags::RDONLY)?, Vec::new()))
    }

    fn new(direction: StateDirection, channel: NonBlocking, data: Vec<u8>) -> Self {
        let mut transfer = Self { direction, channel: Some(channel), data, result: Ok(()) };
        transfer.proceed();
        transfer
    }

    /// What to poll for while it moves.
    pub(super) fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let flags = match self.direction {
            StateDirection::Save => PollFlags::OUT,
            StateDirection::Load => PollFlags::IN,
        };
        self.channel.as_ref().map(|channel| (channel.as_fd(), flags))
    }

    /// Moves what can be moved now.
    pub(super) fn proceed(&mut self) {
        let Some(channel) = &self.channel else { return };
        let result = match self.direction {
            StateDirection::Save => write_all(channel, &mut self.data),
            StateDirection::Load => read_all(channel, &mut self.data),
        };
        match result {
            Ok(()) => self.channel = None,
            Err(Errno::AGAIN) => {}
            Err(errno) => {
                self.channel = None;
                self.result = Err(errno.into());
            }
        }
    }

    /// Whether it is done; what was read, if it was to be read and was.
    pub(super) fn finish(self) -> Result<Result<Option<Vec<u8>>, RequestError>, Self> {
        if self.channel.is_some() {
            return Err(self);
        }
        let is_load = self.direction == StateDirection::Load;
        Ok(self.result.map(|()| is_load.then_some(self.data)))
    }
}

fn write_all(channel: &NonBlocking, data: &mut Vec<u8>) -> Result<(), Errno> {
    while !data.is_empty() {
        match channel.write(data) {
            Ok(n) => drop(data.drain(..n)),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn read_all(channel: &NonBlocking, data: &mut Vec<u8>) -> Result<(), Errno> {
    let mut bytes = [0; 4096];
    loop {
        match channel.read(&mut bytes) {
            Ok(0) => return Ok(()),
            Ok(n) if data.len() + n > MAX_STATE => return Err(Errno::FBIG),
            Ok(n) => data.extend_from_slice(&bytes[..n]),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
}
