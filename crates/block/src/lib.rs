//! The block data path: from the requests of a driver to an image, and back.
//!
//! ```text
//!   virtqueue ──► a thread of its own ──► io_uring, or memory          done there
//!                                     └─► Job ──► Executor: threads for calls that block, a network client
//!                 ◄── Mailbox ◄──────────────────┘
//! ```
//!
//! This crate does not know the vhost-user protocol, nor what a request may ask for:
//! that is the device model's. It does not know the network.
pub mod image;
pub mod job;
