//! What the machine gives its drivers: memory that devices reach, and time to pass.
//!
//! A driver copies nothing that need not be copied: buffers are cut from this memory, filled by their users, lent to the
//! device, and come back. Memory that was not allocated here is never shown to a device.
#![allow(unsafe_code, reason = "the trait's promise is what the safety of direct memory access rests on")]

use ringway_memory::{Gpa, Region};
use thiserror::Error;

/// There is no memory of this size.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("no {len} bytes of memory for a device")]
pub struct OutOfMemory {
    /// Bytes.
    pub len: u64,
}

/// The machine that a driver runs on.
///
/// # Safety
/// What [`Platform::allocate`] returns is memory that nothing else uses, and a device that accesses `len` bytes at the
/// region's [`gpa`](Region::gpa) reaches that memory and no other, until the last clone of the region is dropped.
pub unsafe trait Platform: Send + Sync {
    /// `len` zeroed bytes in one piece, at a multiple of 4096 here and for the device; there may be more.
    ///
    /// The region's [`gpa`](Region::gpa) is the address by which the *device* finds it: a physical address, or what an
    /// IOMMU translates (6, `ACCESS_PLATFORM`).
    ///
    /// # Errors
    /// [`OutOfMemory`].
    fn allocate(&self, len: u64) -> Result<Region, OutOfMemory>;

    /// A driver waits for what a device does at once, such as a reset: it has looked `round` times before this one, and
    /// looks again when this returns. False to give up.
    ///
    /// A kernel yields, and asks its clock. The default spins, a few seconds on a fast machine.
    fn wait(&self, round: u32) -> bool {
        core::hint::spin_loop();
        round < 1 << 30
    }
}

/// Free pages of the guest that lie together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageRange {
    /// Where they are in guest-physical memory.
    pub addr: Gpa,
    /// Bytes, 1 or more.
    pub len: u32,
}

/// What free pages are wanted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To be hinted: until the host has migrated the guest.
    Hint,
    /// To be reported: for a moment, in which the host takes what is behind them.
    Report,
}

/// The guest's own memory, as far as it can do without: what a [`Balloon`](crate::balloon::Balloon) works on. All
/// addresses are guest-physical, whatever stands between the guest and its devices.
///
/// A *fill* is what the guest promised to find in free pages (5.5.6.6), as four bytes again and again; without one it expects
/// nothing.
///
/// # Safety
/// What is given up or lent is memory that nothing uses until it is taken back: the device may change it at any time.
pub unsafe trait Pages {
    /// Gives up a page of 4096 bytes, by its address divided by that. `None` if there is none to spare now.
    fn give_up(&mut self) -> Option<u32>;

    /// Takes a page back. It holds anything; with a `fill` it is to be filled before it is used.
    fn take_back(&mut self, pfn: u32, fill: Option<u32>);

    /// Lends free pages, as many that lie together as there are. `None` if there are no more now. With a `fill` they have been
    /// filled.
    fn lend(&mut self, _purpose: Purpose, _fill: Option<u32>) -> Option<PageRange> {
        None
    }

    /// Takes back what was lent. It holds anything, or with a `fill` still that.
    fn return_lent(&mut self, _pages: PageRange, _fill: Option<u32>) {}
}
