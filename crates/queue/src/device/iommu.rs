//! A queue behind an IOMMU: chains wait until the addresses they name are known.
//!
//! ```text
//!             take: miss                 told: what to ask the front-end for, once
//!  looking ─────────────────► waiting ─────────────────► waiting
//!     ▲                          │ an update
//!     └──────────────────────────┘
//! ```
//!
//! A miss is nobody's fault, so it costs no more than time. While a queue waits it has nothing to give, for looking
//! again would find the same; what is told of any address has it look again. If that was another address, the same is
//! not asked for once more: the answer to that would have others look and ask again, without end. It is only asked for
//! again if what the front-end answered may have been lost before it was seen.

use alloc::sync::Arc;

use ringway_memory::{Access, Iova, Translation};

/// The translation of a queue's addresses, and what it waits for.
pub(super) struct Iommu {
    translation: Arc<dyn Translation>,
    /// Updates of the translation before chains were last taken.
    updates: u64,
    /// What chains were not taken for.
    miss: Option<Miss>,
    /// The same of the time before.
    last_miss: Option<Miss>,
}

#[derive(Clone, Copy)]
struct Miss {
    iova: Iova,
    access: Access,
    /// Losses of the translation after it was looked up, and before the front-end is asked.
    losses: u64,
    is_told: bool,
}

impl Iommu {
    pub(super) fn new(translation: Arc<dyn Translation>) -> Self {
        Self { translation, updates: 0, miss: None, last_miss: None }
    }

    /// Whether a look at the next chain would find what it found before.
    #[cold]
    pub(super) fn is_waiting(&self) -> bool {
        self.miss.is_some() && self.translation.generation().updates == self.updates
    }

    /// Chains are taken now. An update between this and the look at them is looked at again.
    #[cold]
    pub(super) fn begin(&mut self) {
        self.updates = self.translation.generation().updates;
        self.last_miss = self.miss.take();
    }

    /// The chain that comes next needs an address that is not known. If the same was asked for before, and nothing was
    /// lost since, the answer is still to come.
    #[cold]
    pub(super) fn wait_for(&mut self, iova: Iova, access: Access) {
        let losses = self.translation.generation().losses;
        let is_same = |miss: &Miss| (miss.iova, miss.access, miss.losses) == (iova, access, losses);
        let miss = Miss { iova, access, losses, is_told: false };
        self.miss = Some(self.last_miss.filter(is_same).unwrap_or(miss));
    }

    /// Another chain comes next.
    pub(super) fn forget(&mut self) {
        self.miss = None;
    }

    /// What to ask the front-end for, once.
    pub(super) fn missing(&mut self) -> Option<(Iova, Access)> {
        let miss = self.miss.as_mut().filter(|miss| !miss.is_told)?;
        miss.is_told = true;
        Some((miss.iova, miss.access))
    }
}
