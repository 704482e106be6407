//! Everything that tests and the demo share and that ships with nothing: processes of peers, images
//! of guests, and a vhost-user front-end that misbehaves on demand.
#![forbid(unsafe_code)]

pub mod backend;
pub mod bare;
pub mod disk;
pub mod dpdk;
pub mod driver;
pub mod frontend;
pub mod guest;
pub mod hostile;
pub mod netns;
pub mod process;
pub mod qmp;
pub mod server;
pub mod stream;
pub mod tshark;

/// How many times its ordinary length a long test (`make soak`) is to take: `RINGWAY_SOAK`, or 1.
///
/// # Panics
/// If that is no number.
pub fn soak_factor() -> u32 {
    std::env::var("RINGWAY_SOAK").map_or(1, |text| text.parse().expect("RINGWAY_SOAK is a number"))
}
