//! vhost-user: the protocol by which a front-end (QEMU, User-Mode Linux, DPDK …) hands the data path of a
//! virtio device to a back-end process: memory, rings and event file descriptors over a Unix socket.
//!
//! ```text
//!  socket bytes ──► message::Request ──► backend::Session ──► backend::Device (start, stop, enable a vring)
//!       ▲                                       │
//!       └───────────────── reply ◄──────────────┘
//! ```
//!
//! [`message`] is the codec: bytes in, typed requests out, no I/O. [`socket`] moves bytes and file descriptors
//! without ever blocking. [`backend`] is the protocol's state machine. [`endpoint`] is a socket that waits for
//! front-ends, one after the other. [`inflight`] is memory that outlives the back-end's process. [`handover`] gives
//! all of it to another process. [`frontend`] is the other role: it uses a back-end's device from user space. No module
//! knows what kind of device it is.
//!
//! Source: QEMU's `docs/interop/vhost-user.rst`.
#![forbid(unsafe_code)]

pub mod backend;
mod base;
mod counter;
mod descriptor;
pub mod endpoint;
pub mod frontend;
pub mod handover;
pub mod inflight;
pub mod message;
mod serving;
mod signal;
pub mod socket;
mod vring;

pub use counter::Counter;
pub use serving::Serving;
pub use signal::{Bell, Signal};
pub use vring::{Kick, Notifier, Running};
