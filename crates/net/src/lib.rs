//! The network data path: frames from port to port.
//!
//! ```text
//!  vhost session ──► control::GuestDevice ──hold──► plane ── workers, a thread each
//!  (control thread)                                 │
//!       a worker:  transmit ring, uplink ──► rule: switch | wire | sink | echo | generate
//!                                            │
//!       port::guest (any worker's), uplink ◄── fabric::Delivery       one copy, guest to guest
//! ```
//!
//! A worker takes bursts of frames from the rings that it owns, decides where each goes, writes it there, and publishes
//! once per burst and ring. It polls a ring while there is traffic and a little after, then asks for a kick. It never
//! waits for a guest: who does not take its frames loses them, and is counted.
//!
//! Not here: the protocol (`vhost`), what a driver may negotiate (`device`), block devices.
#![deny(unsafe_code)]

pub mod capture;
pub mod control;
pub mod counters;
mod fabric;
mod frame;
mod generator;
pub mod handover;
pub mod offload;
pub mod plane;
mod port;
pub mod switch;
mod worker;

pub use fabric::{Event, Forward};
pub use frame::Mac;
pub use port::uplink::{Uplink, UplinkError, UplinkKind, UplinkSpec};
