//! Front-end drivers of virtio devices, for whoever is the guest: a kernel, a unikernel, firmware, a program on bare
//! metal, or a process that uses a vhost-user back-end.
//!
//! ```text
//!   Net  Blk  Console  Entropy  Balloon      what a device of each type is asked, and what its answers are worth
//!        │ set_up, queue, config
//!        ▼
//!   Device ──────► Virtqueue                 initialization by the book (3.1); the driver's half of a queue, and its kick
//!        │              │
//!        ▼              ▼
//!   Transport        Notify                  registers of PCI or MMIO, messages of vhost-user
//!        │
//!   Platform                                 memory that the device reaches, and patience: what the machine gives
//! ```
//!
//! Who brings this to a machine implements [`Platform`], maps the device's registers, and makes a driver of the
//! [`Transport`]. Everything else is the same everywhere.
//!
//! What a device writes is not trusted: lengths, names of chains and answers are checked against what was asked, and no
//! device can make a driver panic, loop or grow. A device that breaks the rules costs its driver an [`Error`]; it is to be
//! reset then.
//!
//! This crate has no threads, no clock and no interrupt handlers: whoever has those calls the drivers. Whatever is `unsafe`
//! is in [`transport`], where registers are, and in [`platform`], where memory comes from.
#![no_std]
#![deny(unsafe_code)]

extern crate alloc;
#[cfg(feature = "vhost-user")]
extern crate std;

pub mod balloon;
pub mod blk;
pub mod console;
mod device;
pub mod entropy;
mod error;
pub mod net;
pub mod platform;
pub mod transport;
mod virtqueue;

pub use device::{Config, Device, QueueOptions, Stopped, Wanted};
pub use error::Error;
pub use platform::{OutOfMemory, PageRange, Pages, Platform, Purpose};
pub use transport::{Interrupt, Notify, QueueSetup, Transport, TransportError};
pub use virtqueue::Virtqueue;
