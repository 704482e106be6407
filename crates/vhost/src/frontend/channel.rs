//! The channel of a session on which the back-end asks and the front-end answers.
//!
//! It is a socket of its own, so it can be served by another thread. A back-end may wait for an answer here
//! before it replies to a request there: whoever has both on one thread serves the channel in time.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use zerocopy::IntoBytes;
use zerocopy::little_endian::U64;

use super::FrontendError;
use super::connection::receive;
use crate::message::{ChannelRequest, Header, Kind, Outgoing};
use crate::socket::{Message, Socket};

/// A request of the back-end, and the right to answer it once.
#[derive(Debug)]
pub struct Incoming {
    /// What it asks.
    pub request: ChannelRequest,
    /// How to answer.
    pub answer: Answer,
}

/// An answer that has not been given.
#[derive(Debug)]
#[must_use = "the back-end may wait for an answer"]
pub struct Answer {
    header: Header,
    is_wanted: bool,
}

/// The front-end's end of the channel.
pub struct Channel {
    socket: Socket,
    /// `REPLY_ACK` was acked.
    is_acking: bool,
}

impl Channel {
    /// A channel, and the end of it that is the back-end's.
    pub(super) fn new(is_acking: bool) -> Result<(Self, OwnedFd), FrontendError> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Self { socket: Socket::new(ours, Kind::Request)?, is_acking }, theirs.into()))
    }

    /// The next request, `None` if none comes within `limit`.
    ///
    /// # Errors
    /// [`FrontendError::Socket`]: the channel is of no more use.
    pub fn next(&mut self, limit: Duration) -> Result<Option<Incoming>, FrontendError> {
        self.socket.flush()?;
        let Some(Message { header, payload, fds }) = receive(&mut self.socket, Instant::now() + limit)?
        else {
            return Ok(None);
        };
        let request = ChannelRequest::decode(&header, &payload, fds)?;
        let is_question = matches!(request, ChannelRequest::SharedObjectLookup(_));
        let is_wanted = is_question || self.is_acking && header.needs_reply();
        Ok(Some(Incoming { request, answer: Answer { header, is_wanted } }))
    }

    /// Answers, if the back-end asked for that: 0 for what was done, anything else for what was not.
    ///
    /// # Errors
    /// [`FrontendError::Socket`].
    pub fn answer(&mut self, answer: Answer, value: u64) -> Result<(), FrontendError> {
        self.reply(answer, value, Vec::new())
    }

    /// Answers a request for a shared object: here it is.
    ///
    /// # Errors
    /// [`FrontendError::Socket`].
    pub fn answer_with(&mut self, answer: Answer, file: OwnedFd) -> Result<(), FrontendError> {
        self.reply(answer, 0, vec![file])
    }

    #[allow(clippy::needless_pass_by_value, reason = "an answer is given once")]
    fn reply(&mut self, answer: Answer, value: u64, fds: Vec<OwnedFd>) -> Result<(), FrontendError> {
        let Answer { header, is_wanted } = answer;
        if is_wanted {
            self.socket.send(Outgoing { bytes: header.reply(U64::new(value).as_bytes()), fds })?;
        }
        Ok(())
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
