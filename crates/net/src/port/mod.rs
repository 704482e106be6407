//! The ports of a worker: where frames come from and go to.

pub(crate) mod guest;
pub(crate) mod uplink;
pub(crate) mod wishes;
