//! A queue behind an IOMMU: chains wait until the addresses they name are known.
//!
//! ```text
//!             take: miss                 told: what to ask the front-end for
//!  looking ─────────────────► waiting ───────────────────────────────────────► waiting
//!     ▲                          │ an update
//!     └──────────────────────────┘
//! ```
//!
//! A miss is nobody's fault, so it costs no more than time. While a queue waits it has nothing to give, for looking
//! again would find the same; what is told of any address has it look again, and tell again if it misses the same. It
//! does not know what was asked, nor whether an answer came and was taken back before it looked. Who asks does, and
//! sees by the number of updates whether the queue is about to look again.

use alloc::sync::Arc;

use ringway_memory::{Access, Iova, Translation};

/// A translation that a queue waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Missing {
    /// What is not known.
    pub iova: Iova,
    /// What for.
    pub access: Access,
    /// The translation's updates before it was looked up. Since another one the queue does not wait any more.
    pub updates: u64,
}

/// The translation of a queue's addresses, and what it waits for.
pub(super) struct Iommu {
    translation: Arc<dyn Translation>,
    /// Updates of the translation before chains were last taken.
    updates: u64,
    /// What chains were not taken for.
    miss: Option<Missing>,
    is_told: bool,
}

impl Iommu {
    pub(super) fn new(translation: Arc<dyn Translation>) -> Self {
        Self { translation, updates: 0, miss: None, is_told: false }
    }

    /// Whether a look at the next chain would find what it found before.
    #[cold]
    pub(super) fn is_waiting(&self) -> bool {
        self.miss.is_some() && self.translation.updates() == self.updates
    }

    /// Chains are taken now. An update between this and the look at them is looked at again.
    #[cold]
    pub(super) fn begin(&mut self) {
        self.updates = self.translation.updates();
        self.miss = None;
    }

    /// The chain that comes next needs an address that is not known.
    #[cold]
    pub(super) fn wait_for(&mut self, iova: Iova, access: Access) {
        self.miss = Some(Missing { iova, access, updates: self.updates });
        self.is_told = false;
    }

    /// Another chain comes next.
    pub(super) fn forget(&mut self) {
        self.miss = None;
    }

    /// What to ask the front-end for, once for each look.
    pub(super) fn missing(&mut self) -> Option<Missing> {
        self.miss.filter(|_| !core::mem::replace(&mut self.is_told, true))
    }
}
