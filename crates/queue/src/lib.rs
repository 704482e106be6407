//! Virtqueues, the device's half: chains are taken in bursts, completed, and published once per burst.
//!
//! ```text
//!            take (burst)              complete              publish
//! available ─────────────► Chain ────────────────► used ───────────────► seen by the driver; call it?
//!     ▲                      │
//!     └───────rewind─────────┘
//! ```
//!
//! A device's loop:
//!
//! ```
//! # use ringway_queue::{Burst, DeviceQueue, QueueError};
//! /// Answers every chain with as many zeros as it has room for; says whether to call the driver.
//! fn serve(queue: &mut DeviceQueue, burst: &mut Burst) -> Result<bool, QueueError> {
//!     queue.take(burst, 32)?;
//!     while let Some(chain) = burst.next() {
//!         let written = chain.writable().write(&[0; 64]);
//!         queue.complete(chain, written as u32);
//!     }
//!     Ok(queue.publish())
//! }
//! ```
//!
//! [`QueueError`] is final: the queue gives no further chain until it is started anew. An empty queue is not an
//! error, it is a burst of no chains. Before sleeping a device calls [`DeviceQueue::arm`] and sleeps only if
//! that says the queue is empty.
//!
//! The ring's format is a private matter of [`DeviceQueue`]. This crate does no I/O, takes no lock and allocates
//! nothing after a [`Burst`] has grown to its working size, which is bounded.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

mod burst;
mod device;
pub mod event;
mod split;

pub use burst::{Burst, Chain};
pub use device::{Areas, ConfigError, DeviceQueue, QueueConfig, QueueError, ResumeState};
