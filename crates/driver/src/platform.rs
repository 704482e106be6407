//! What the machine gives its drivers: memory that devices reach, and time to pass.
//!
//! A driver copies nothing that need not be copied: buffers are cut from this memory, filled by their users, lent to the
//! device, and come back. Memory that was not allocated here is never shown to a device.
#![allow(unsafe_code, reason = "the trait's promise is what the safety of direct memory access rests on")]

use ringway_memory::Region;
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
