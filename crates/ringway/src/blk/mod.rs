//! `ringway blk`: from the command line to disks ([`server`]).
//!
//! ```text
//!   main thread ── signals, upgrade, `ringway resize` ──┬─ orders ─► disk a's control thread ─► a thread for each queue
//!                                                       └─ orders ─► disk b's control thread ─► …
//! ```
//!
//! Nobody waits for a disk whose storage hangs but its own guest: each has a control thread that serves its front-end
//! ([`disk`]), and the main thread waits for none of them for long.

mod counters;
mod disk;
mod plan;
pub(crate) mod resize;
mod server;

use anyhow::Result;

use self::server::BlkServer;
use crate::{args, serve};

/// `ringway blk`.
pub(crate) fn blk(args: &args::Blk) -> Result<()> {
    serve::run::<BlkServer>(|| plan::plan(args))
}

#[cfg(test)]
mod tests;
