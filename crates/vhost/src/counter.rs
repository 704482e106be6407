//! What those who serve rings count.

use std::sync::atomic::{AtomicU64, Ordering};

/// A number that one thread increases and any may read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `n`; only the thread that owns the counter does.
    #[inline]
    pub fn add(&self, n: u64) {
        // One writer: a load and a store do, without the cost of a locked instruction.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    /// The value now.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}
