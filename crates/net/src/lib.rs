//! The network data path: frames from port to port.
//!
//! ```text
//!  vhost session ──► control::GuestDevice ──commands──► worker ◄── owns every port's rings and taps
//!  (control thread)                                     │  ▲
//!                                             frame ──► fabric: switch | wire | sink | echo | generate
//!                                                       │
//!                            port::guest, port::tap ◄───┘   one copy, guest to guest
//! ```
//!
//! A worker is one thread. It takes bursts of frames from its ports, decides where each goes, writes it there,
//! and publishes once per burst and ring. It spins while there is work and a little after, then arms the rings
//! and sleeps. It never waits for a guest: who does not take its frames loses them, and is counted.
//!
//! Not here: the protocol (`vhost`), what a driver may negotiate (`device`), block devices.
#![deny(unsafe_code)]

pub mod control;
pub mod counters;
mod fabric;
mod frame;
mod generator;
pub mod handover;
mod offload;
mod port;
mod switch;
pub mod worker;

pub use fabric::{Event, Forward};
pub use frame::Mac;
pub use port::tap::{Tap, TapError};
