//! The network driver against a device that the test plays: a real device's half of each ring, and answers of its own.

#[path = "../common/mod.rs"]
mod common;
mod control;
mod hostile;
mod lab;
mod receive;
mod set_up;
mod transmit;
