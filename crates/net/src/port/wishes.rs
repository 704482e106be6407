//! How frames reach a guest: its open receive rings, and what its driver wants beside.
//!
//! ```text
//!   frame ──► filter: wanted? ──► hash ──► table: the ring's pair ──► ring, behind a header with the hash
//!                                            └─ none: any ring, by flow
//! ```
//!
//! Most drivers want every frame in any ring and no hash. They have no [`Wishes`], and no frame of theirs pays for any.

use std::sync::Arc;

use ringway_device::net::{Filter, HEADERS_LEN, Hash, NetDevice, Steering};

use crate::counters::DropReason;
use crate::frame::Frame;
use crate::port::guest::RxRing;

/// The receive side of a guest's port, as a worker sees it.
#[derive(Clone, Default)]
pub(crate) struct Receivers {
    /// The rings that frames may go to now.
    rings: Vec<Arc<RxRing>>,
    wishes: Option<Arc<Wishes>>,
}

/// What a driver wants.
struct Wishes {
    filter: Option<Filter>,
    steering: Steering,
    /// The rings that frames may go to now, by the number of the pair.
    pairs: Vec<Option<Arc<RxRing>>>,
}

impl Receivers {
    /// The rings that are open, by the number of the pair, and what the driver of `device` wants.
    pub(crate) fn new(device: &NetDevice, pairs: Vec<Option<Arc<RxRing>>>) -> Self {
        let rings = pairs.iter().flatten().cloned().collect();
        let (filter, steering) = (device.filter(), device.steering());
        let is_usual = filter.is_none() && steering.is_automatic() && !steering.hashes();
        let wishes = (!is_usual).then(|| Arc::new(Wishes { filter, steering, pairs }));
        Self { rings, wishes }
    }

    /// Whether a frame may reach the guest now.
    pub(crate) fn is_open(&self) -> bool {
        !self.rings.is_empty()
    }

    /// Whether every frame goes to the same ring, and no hash is told.
    #[inline]
    pub(crate) fn is_single(&self) -> bool {
        self.wishes.is_none() && self.rings.len() == 1
    }

    /// The ring that a frame goes to, and the hash to tell the driver.
    #[inline]
    pub(crate) fn find(&self, frame: &Frame<'_>) -> Result<(&RxRing, Hash), DropReason> {
        match (&self.wishes, &self.rings[..]) {
            (_, []) => Err(DropReason::NotReady),
            (None, [only]) => Ok((only, Hash::default())),
            (None, several) => Ok((any(several, frame), Hash::default())),
            (Some(wishes), rings) => wishes.find(rings, frame),
        }
    }
}

impl Wishes {
    #[inline(never)]
    fn find<'r>(
        &'r self,
        rings: &'r [Arc<RxRing>],
        frame: &Frame<'_>,
    ) -> Result<(&'r RxRing, Hash), DropReason> {
        let Self { filter, steering, pairs } = self;
        if filter.as_ref().is_some_and(|f| !f.accepts(frame.ethernet.dst.octets(), frame.tag())) {
            return Err(DropReason::Filtered);
        }
        let mut hash = Hash::default();
        if steering.hashes() {
            let mut bytes = [0; HEADERS_LEN];
            let len = frame.read(&mut bytes);
            hash = steering.hash(&bytes[..len]);
        }
        let ring = match steering.queue(hash) {
            Some(pair) => pairs.get(usize::from(pair)).and_then(Option::as_deref),
            None => Some(any(rings, frame)),
        };
        Ok((ring.ok_or(DropReason::NotReady)?, hash))
    }
}

/// One of several rings, the same for all frames of a flow.
fn any<'r>(rings: &'r [Arc<RxRing>], frame: &Frame<'_>) -> &'r RxRing {
    &rings[frame.flow_hash() as usize % rings.len()]
}
