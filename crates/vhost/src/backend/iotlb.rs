//! A device behind the guest's IOMMU: what the front-end tells of translations, and what it is asked.
//!
//! ```text
//!               Miss, on the channel
//!   back-end ──────────────────────────► front-end
//!      ▲                                     │
//!      └── IOTLB_MSG: update, invalidate ◄───┘   answered when nothing uses what was there before
//! ```
//!
//! A front-end is asked once for what it has not answered yet: a question that comes when the answer was used already,
//! and the driver has taken the mapping back, would be an access that its IOMMU reports.
//!
//! With `ACCESS_PLATFORM` rings are where I/O virtual addresses lead, too. A ring whose areas are not known yet does not
//! run; it starts when they are, and stops when one of them is taken away.

use std::sync::Arc;

use ringway_memory::{Access, Iova, MemoryError, Translation};
use ringway_queue::Missing;
use ringway_spec::feature;
use tracing::warn;

use super::channel::Note;
use super::{Answer, Device, RequestError, Session};
use crate::message::{Iotlb, IotlbKind};

/// The most questions that are remembered until they are answered; more than vrings can have.
const MAX_ASKED: usize = 1024;

impl<D: Device> Session<D> {
    /// The translations, if the device is behind an IOMMU.
    pub(super) fn active_translations(&self) -> Option<Arc<dyn Translation>> {
        let is_on = self.features.is_some_and(|features| features & feature::ACCESS_PLATFORM != 0);
        is_on.then(|| Arc::clone(&self.translations) as Arc<dyn Translation>)
    }

    pub(super) fn iotlb(&mut self, message: Iotlb) -> Result<Answer, RequestError> {
        if self.active_translations().is_none() {
            return Err(RequestError::NotNegotiated);
        }
        let Iotlb { iova, len, frontend_va, read, write, kind } = message;
        match kind {
            IotlbKind::Update => {
                self.translations.update(Iova(iova), len, frontend_va, Access { read, write })?;
                self.asked.retain(|asked, _| asked.wrapping_sub(iova) >= len);
            }
            IotlbKind::Invalidate => {
                self.translations.invalidate(Iova(iova), len);
                self.pause_rings_in(iova, len);
            }
            IotlbKind::Miss | IotlbKind::AccessFail => return Err(RequestError::Refused),
        }
        self.device.translations_changed(kind == IotlbKind::Invalidate);
        // A ring that cannot start for another reason than a miss is no fault of the translation.
        if let Err(error) = self.start_ready() {
            warn!("{}: {error}", self.name);
        }
        Ok(Answer::number(0))
    }

    /// Stops the rings that have an area in these addresses. They go on when they are known again.
    fn pause_rings_in(&mut self, iova: u64, len: u64) {
        let last = iova.saturating_add(len.wrapping_sub(1));
        for index in 0..self.vrings.len() as u16 {
            let vring = &self.vrings[usize::from(index)];
            if vring.areas().any(|(start, end)| start <= last && iova < end) {
                self.pause(index);
            }
        }
    }

    /// A vring waits for a translation: the front-end is asked for it, unless that vring is about to look again.
    pub fn ask_translation(&mut self, missing: Missing) {
        if missing.updates == self.translations.updates() {
            self.ask(missing.iova, missing.access);
        }
    }

    /// Asks the front-end for a translation, if that is not done already.
    fn ask(&mut self, iova: Iova, access: Access) {
        if let Some(channel) = &self.channel {
            if self.asked.len() >= MAX_ASKED {
                self.asked.clear();
            }
            if self.asked.insert(iova.0, access) == Some(access) {
                return;
            }
            channel.say(Note::Miss { iova: iova.0, read: access.read, write: access.write });
        } else {
            warn!("{}: {iova} has no translation, and there is no channel to ask on", self.name);
        }
    }

    /// The driver had the device do what the translation does not allow: the front-end is told.
    pub fn access_failed(&self, iova: Iova, access: Access) {
        if let Some(channel) = &self.channel {
            channel.say(Note::AccessFail { iova: iova.0, read: access.read, write: access.write });
        }
    }

    /// Whether a ring does not start only because a translation is missing; then it is asked for.
    pub(super) fn awaits_translation(&mut self, error: &RequestError) -> bool {
        let RequestError::Memory(MemoryError::Miss { iova, access }) = *error else { return false };
        self.ask(iova, access);
        true
    }
}
