//! Disks on NBD servers: a client that carries out jobs, any number at once.
//!
//! ```text
//!   queues' threads ──Job──► inbox ──► the client's thread ──► flight: requests without an answer ──► stream
//!                                       connects anew            │ pieces of guest memory              TCP, Unix, TLS
//!                                       when it is lost          ▼
//!                                                              Job::done
//! ```
//!
//! # When the connection is lost
//!
//! Jobs wait, for at most [`Options::reconnect`], and a connection is tried for again and again. Then what had no answer is
//! carried out anew, from its beginning: which of several requests without an answer is done first is nobody's promise, and
//! one that is done twice is as done once. An export that has become another is not gone on with, nor one of another size
//! unless it was [asked for](Client::refresh).
//!
//! What was answered cannot be sent again: its data are the guest's again. It is safe with servers that
//!
//! - keep what they have answered when they end or are killed, as those do that write to a file: the kernel has it. If their
//!   machine crashes, what was not flushed is gone; the guest's next flush goes to the new connection, knows of no loss and
//!   succeeds. Who cannot rule that out makes every write stable (the disk's `writethrough`), or has flushes fail then
//!   ([`Options::fail_flush_after_loss`]).
//! - do nothing more for a connection that is gone by the time that they take the next one. A server that was cut off by the
//!   network and still has a write to do may do it after a later one to the same place; nothing in the protocol tells. A
//!   server that was restarted has none.
//!
//! A stable write is done when one connection says so: if it is lost between the write and the flush that makes it stable,
//! both are sent again.

mod client;
mod flight;
mod protocol;
mod stream;
mod tls;
mod uri;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use client::Client;
pub use protocol::{Export, ProtocolError};
pub use uri::{Uri, UriError};

/// What to do when a server does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// How long jobs wait for a lost connection to come back before they fail; from then on all fail at once, until it is
    /// back. Zero: nothing waits.
    ///
    /// Two minutes unless told: as long as Linux waits for an iSCSI target, and enough for a server to be booted. A guest
    /// that waits is well again when the disk is; one whose journal got an error needs hands.
    pub reconnect: Duration,
    /// How long a connection may take to be ready for requests, once the server's name is looked up.
    pub handshake: Duration,
    /// A server that has had requests and said nothing for so long is taken for lost. Never unless told: a slow disk is
    /// not a lost one, and dead hosts are noticed by TCP.
    pub silence: Option<Duration>,
    /// Whether a flush fails, once, if writes that had not been flushed were answered on a connection that is lost since:
    /// for servers that forget these when they or their machines end.
    pub fail_flush_after_loss: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            reconnect: Duration::from_mins(2),
            handshake: Duration::from_secs(10),
            silence: None,
            fail_flush_after_loss: false,
        }
    }
}

/// Why there is no connection, or not any more.
#[derive(Debug, thiserror::Error)]
pub enum NbdError {
    /// The server's host has no address.
    #[error("cannot find the address of {host}: {error}")]
    Resolve {
        /// The host.
        host: String,
        /// What the resolver says.
        error: io::Error,
    },
    /// Nobody answers there.
    #[error("cannot connect: {0}")]
    Connect(io::Error),
    /// The server took too long.
    #[error("the server did not answer within {0:?}")]
    Silent(Duration),
    /// The server ended the connection.
    #[error("the server closed the connection")]
    Closed,
    /// The connection is broken.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The server said something wrong, or refused.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// The server is about to end.
    #[error("the server shuts down")]
    ShutDown,
    /// A request was given up half sent.
    #[error("a request could not be sent whole: its queue was stopped, or its memory taken away")]
    HalfSent,
    /// No TLS with this server, or not with these certificates.
    #[error("TLS: {0}")]
    Tls(String),
    /// A file of certificates that cannot be used.
    #[error("{path:?}: {error}")]
    Certificates {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: String,
    },
    /// Another export than before.
    #[error("the export is another one than before: {0}")]
    Changed(String),
    /// No thread could be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
}
