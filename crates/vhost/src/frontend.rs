//! The front-end's side of a session, for programs that use a back-end's device without a virtual machine.
//!
//! ```text
//!  Connection ──► messages, replies awaited             Memory ──► what both sides see: rings, buffers
//!  (connect, accept)                                    (a memfd)
//! ```
//!
//! [`Connection`] sends any request, well-formed or not, and waits for replies. [`Memory`] is what the driver shares
//! with the device. [`Event`]s are kicks and calls. Nothing here depends on the back-end's role: the two share the
//! [codec](crate::message) and the [socket](crate::socket).
//!
//! Every wait has a limit, so a silent peer costs time and no more.

mod connection;
mod event;
mod memory;

use std::io;
use std::time::Duration;

use ringway_memory::{MapError, MemoryError};
use rustix::io::Errno;
use thiserror::Error;

pub use connection::{Connection, Reply};
pub use event::Event;
pub use memory::{Memory, Pages};

use crate::message::MessageError;
use crate::socket::SocketError;

/// Why something asked of a back-end was not done.
#[derive(Debug, Error)]
pub enum FrontendError {
    /// The peer did not do in time what was waited for.
    #[error("no {what} within {limit:?}")]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        limit: Duration,
    },
    /// The connection is of no more use: closed, or what came was no reply.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// The back-end did not carry the request out.
    #[error("{request} was refused with {value}")]
    Refused {
        /// The request's name.
        request: &'static str,
        /// The back-end's answer, not 0.
        value: u64,
    },
    /// A reply came that does not answer the request.
    #[error("{request} was answered by {what}")]
    WrongReply {
        /// The request's name.
        request: &'static str,
        /// What came.
        what: String,
    },
    /// A file of ours cannot be mapped.
    #[error(transparent)]
    Map(#[from] MapError),
    /// There is no room for it in the memory, or no such place.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A system call failed.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<Errno> for FrontendError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

impl From<MessageError> for FrontendError {
    fn from(error: MessageError) -> Self {
        Self::Socket(error.into())
    }
}
