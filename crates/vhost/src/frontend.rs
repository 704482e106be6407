//! The front-end's side of a session, for programs that use a back-end's device without a virtual machine: drivers in
//! user space, tests, tools.
//!
//! ```text
//!  Connection ──negotiate──► Frontend ──set_up_vring──► Vring ──start──► chains go out and come back
//!  (connect, accept)            │                         ▲
//!                               └──────add_memory──── Memory: rings and buffers, in a file of our own
//! ```
//!
//! [`Connection`] sends any request, well-formed or not, and waits for replies. [`Frontend`] is a session by the book: it
//! asks in the right order, and only what was negotiated. [`Vring`] has the driver's half of a queue, split or packed
//! by what was negotiated; [`BareVring`] is what messages tell of one, for drivers that have their
//! own. [`Channel`] is for requests the other way. No module knows what kind of device it is, and
//! nothing here depends on the back-end's role: the two share the [codec](crate::message) and the
//! [socket](crate::socket).
//!
//! Every wait has a limit, so a silent peer costs time and no more. There is no thread here: who reconnects, when, and
//! who reads the channel is the program's affair.
//!
//! # A network driver
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use ringway_memory::Gpa;
//! use ringway_queue::Segment;
//! use ringway_spec::feature::{RING_EVENT_IDX, RING_PACKED, VERSION_1};
//! use ringway_vhost::frontend::{Connection, Frontend, Memory, PROTOCOL_FEATURES, Pages, VringConfig};
//!
//! let connection = Connection::connect("/run/ringway/a.sock")?;
//! let features = VERSION_1 | RING_EVENT_IDX | RING_PACKED;
//! let mut frontend = Frontend::negotiate(connection, features, PROTOCOL_FEATURES)?;
//!
//! // Both sides see 16 MiB at guest address 1 GiB: the rings, and buffers of 2 KiB.
//! let mut memory = Memory::new(Gpa(1 << 30), 16 << 20, Pages::Small)?;
//! frontend.add_memory([&memory])?;
//! let mut receive = frontend.set_up_vring(VringConfig::new(0, 256), &mut memory)?;
//! let mut transmit = frontend.set_up_vring(VringConfig::new(1, 256), &mut memory)?;
//! let mut buffers = memory.buffers(512, 2048)?;
//! for vring in [&mut receive, &mut transmit] {
//!     frontend.enable(vring, true)?;
//!     frontend.start(vring)?;
//! }
//! frontend.set_driver_ok()?;
//!
//! // Room for frames to come: each buffer belongs to the device until it comes back.
//! for buffer in buffers.drain(..256) {
//!     let room = [Segment::from(&buffer)];
//!     receive.queue_mut().add(&[], &room, buffer).map_err(|refused| refused.error)?;
//! }
//! receive.publish()?;
//!
//! // A broadcast frame, behind a header of 12 zeros.
//! let mut buffer = buffers.pop().expect("a buffer is left");
//! let frame = [&[0; 12][..], &[0xff; 6], &[2, 0, 0, 0, 0, 1], &[0x88, 0xb5], &[0; 46]].concat();
//! buffer.write(&frame);
//! let chain = [Segment { len: frame.len() as u32, ..Segment::from(&buffer) }];
//! transmit.queue_mut().add(&chain, &[], buffer).map_err(|refused| refused.error)?;
//! transmit.publish()?;
//!
//! // Whatever comes within a second.
//! while receive.wait(Duration::from_secs(1))? {
//!     while let Some(used) = receive.queue_mut().reclaim()? {
//!         let mut frame = vec![0; used.written as usize];
//!         used.owner.read(&mut frame);
//!         println!("{} bytes", frame.len().saturating_sub(12));
//!     }
//! }
//!
//! // Where the rings stand, for who goes on with them.
//! let base = frontend.stop(&mut transmit)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod bare;
mod channel;
mod connection;
mod event;
mod log;
mod memory;
mod session;
mod state;
mod vring;

use std::io;
use std::time::Duration;

use ringway_memory::{Gpa, MapError, MemoryError};
use ringway_queue::ConfigError;
use rustix::io::Errno;
use thiserror::Error;

pub use bare::{BareVring, Signals, VringPlace};
pub use channel::{Answer, Channel, Incoming};
pub use connection::{Connection, Reply};
pub use event::Event;
pub use log::DirtyLog;
pub use memory::{Memory, Pages};
pub use session::{Frontend, Inflight, PROTOCOL_FEATURES};
pub use vring::{Vring, VringConfig, wait_used};

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
    /// The feature that the request belongs to was not negotiated.
    #[error("{request} needs feature {feature:#x}, which was not negotiated")]
    NotNegotiated {
        /// The request's name.
        request: &'static str,
        /// The protocol feature, or that of the transport or the device.
        feature: u64,
    },
    /// The device took back `FEATURES_OK`.
    #[error("the device does not accept features {features:#x}, which it offered")]
    FeaturesRefused {
        /// The virtio features that were to be acked.
        features: u64,
    },
    /// More memory regions than the back-end has room for.
    #[error("the back-end takes no more than {max} memory regions")]
    TooManyRegions {
        /// How many it takes.
        max: u64,
    },
    /// Memory is to be taken back that was not given.
    #[error("the memory at guest address {gpa} is not shared")]
    NotShared {
        /// Its guest address.
        gpa: Gpa,
    },
    /// The log has no bits for some of the memory.
    #[error("the log ends before the memory at guest address {gpa} does")]
    ShortLog {
        /// The memory's guest address.
        gpa: Gpa,
    },
    /// The vring is started.
    #[error("vring {index} is in use")]
    InUse {
        /// Its index.
        index: u32,
    },
    /// The vring was made for other features than those negotiated.
    #[error("vring {index} was made for other features")]
    OtherFeatures {
        /// Its index.
        index: u32,
    },
    /// The vring cannot be as it is to be.
    #[error(transparent)]
    Queue(#[from] ConfigError),
    /// The device's state is longer than the caller takes.
    #[error("the device's state has more than {max} bytes")]
    LongState {
        /// What the caller takes.
        max: usize,
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

impl FrontendError {
    /// Whether it leaves unknown what the peer says next: the connection is of no more use.
    pub fn is_final(&self) -> bool {
        matches!(
            self,
            Self::TimedOut { .. } | Self::Socket(_) | Self::WrongReply { .. } | Self::LongState { .. }
        )
    }
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
