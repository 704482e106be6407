//! Everything that tests and the demo share and that ships with nothing: processes of peers, images
//! of guests, and a vhost-user front-end that misbehaves on demand.
#![forbid(unsafe_code)]

pub mod dpdk;
pub mod frontend;
pub mod guest;
pub mod hostile;
pub mod netns;
pub mod process;
pub mod server;
