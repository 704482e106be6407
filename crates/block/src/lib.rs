//! The block data path: from the requests of a driver to an image, and back.
//!
//! ```text
//!   virtqueue ──► a thread of its own ──► io_uring, or memory          done there
//!                                     └─► Job ──► Executor: threads for calls that block, a network client
//!                 ◄── Mailbox ◄──────────────────┘
//! ```
//!
//! [`disk`] is a disk as its session sees it, [`image`] what is behind it. What a request may ask for is the device model's
//! to know; this crate does not know the network.

pub mod counters;
pub mod disk;
mod engine;
pub mod handover;
pub mod image;
pub mod job;
pub mod nbd;
mod worker;
