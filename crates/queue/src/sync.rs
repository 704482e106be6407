//! The full fences, each by its label, so that a model of the rings can take one away and show what it is for.

/// A store of ours before a load of ours, of two words that the peer stores and loads in the other order. Without
/// it each side could look before the other's store is visible, and both would sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(not(loom), allow(unreachable_pub, reason = "models name the fences"))]
pub enum Fence {
    /// (K) Device: its wish for a kick, before it looks for available chains.
    DeviceArm,
    /// (K) Driver: what it made available, before it looks whether to kick.
    DriverPublish,
    /// (C) Driver: its wish for a call, before it looks for used chains.
    DriverArm,
    /// (C) Device: what it used, before it looks whether to call.
    DevicePublish,
}

/// The fence of that label.
#[inline]
pub(crate) fn full_fence(label: Fence) {
    #[cfg(not(loom))]
    {
        let _ = label;
        core::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    }
    #[cfg(loom)]
    if !model::is_without(label) {
        loom::sync::atomic::fence(core::sync::atomic::Ordering::SeqCst);
    }
}

/// For models under loom only.
#[cfg(loom)]
pub mod model {
    extern crate std;

    use std::cell::Cell;

    use super::Fence;

    std::thread_local! {
        // Loom runs all threads of a model on one thread of the system.
        static MISSING: Cell<Option<Fence>> = const { Cell::new(None) };
    }

    /// Takes a fence away from all queues of this thread from now on.
    pub fn remove(fence: Option<Fence>) {
        MISSING.set(fence);
    }

    pub(super) fn is_without(label: Fence) -> bool {
        MISSING.get() == Some(label)
    }
}
