//! Device models: what a device offers, accepts and answers. Bytes in, decisions out.
//!
//! [`status`] is the machine every device goes through: features are negotiated, then the device is live.
//! [`net`] is the network device: its configuration space, its control commands, and the rules by which the
//! header of a frame that one driver sent becomes the header that another receives.
//! [`blk`] is the block device: its configuration space, and what becomes of a request.
//! [`console`] is the console device with its ports, [`entropy`] the entropy device, [`balloon`] the memory balloon.
//! [`model`] is what they have in common, for a transport that does not care which it shows.
//!
//! A model knows no file descriptor, no thread, no socket and no clock. Those of networks and disks touch no ring either:
//! `net` (the crate) moves the frames, `block` the sectors. The small devices serve their queues themselves.
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod balloon;
pub mod blk;
pub mod console;
pub mod entropy;
#[cfg(test)]
mod loopback;
pub mod model;
pub mod net;
mod serving;
pub mod status;
