//! The transmit rings of a worker: which are polled, and which wait for their kicks.

use std::time::{Duration, Instant};

use ringway_vhost::Kick;

use crate::port::guest::TxRing;

/// The transmit rings, by their places.
#[derive(Default)]
pub(super) struct Rings {
    all: Vec<Option<TxRing>>,
    /// The places of those that are polled every round.
    hot: Vec<usize>,
    /// The places of cold ones that have no kick: time heats them.
    polled: Vec<usize>,
    /// The places of those whose port has sent as much as it may: time heats them too.
    waiting: Vec<usize>,
    /// How many there are.
    count: usize,
}

impl Rings {
    /// The place that the next ring will have.
    pub(super) fn next(&self) -> usize {
        self.all.iter().position(Option::is_none).unwrap_or(self.all.len())
    }

    /// Adds a ring, hot.
    pub(super) fn add(&mut self, ring: TxRing) {
        let place = self.next();
        if place == self.all.len() {
            self.all.push(None);
        }
        self.all[place] = Some(ring);
        self.hot.push(place);
        self.count += 1;
    }

    pub(super) fn get(&mut self, place: usize) -> Option<&mut TxRing> {
        self.all.get_mut(place)?.as_mut()
    }

    pub(super) fn remove(&mut self, place: usize) -> Option<TxRing> {
        let ring = self.all.get_mut(place)?.take()?;
        self.hot.retain(|&other| other != place);
        self.polled.retain(|&other| other != place);
        self.waiting.retain(|&other| other != place);
        self.count -= 1;
        Some(ring)
    }

    /// How many are hot.
    #[inline]
    pub(super) fn hot_len(&self) -> usize {
        self.hot.len()
    }

    /// The hot ring at this place among them.
    #[inline]
    pub(super) fn hot(&mut self, at: usize) -> &mut TxRing {
        self.all[self.hot[at]].as_mut().expect("hot rings are there")
    }

    /// Whether none is hot.
    pub(super) fn is_cold(&self) -> bool {
        self.hot.is_empty()
    }

    /// Whether some are cold.
    pub(super) fn has_cold(&self) -> bool {
        self.hot.len() < self.count
    }

    /// Whether some are cold that have no kick.
    pub(super) fn has_polled(&self) -> bool {
        !self.polled.is_empty()
    }

    /// A ring is polled from now on.
    pub(super) fn heat(&mut self, place: usize) {
        if let Some(Some(ring)) = self.all.get_mut(place)
            && !ring.vring.has_failed()
            && ring.resume_at.is_none()
            && !self.hot.contains(&place)
        {
            ring.vring.queue.suppress();
            ring.is_active = true;
            self.hot.push(place);
        }
    }

    /// The rings that have no kick are polled from now on.
    pub(super) fn heat_polled(&mut self) {
        for place in std::mem::take(&mut self.polled) {
            self.heat(place);
        }
    }

    /// The rings whose port may send again by `now` are polled from now on.
    pub(super) fn heat_due(&mut self, now: Instant) {
        let Self { all, hot, waiting, .. } = self;
        waiting.retain(|&place| {
            let Some(Some(ring)) = all.get_mut(place) else { return false };
            let is_due = ring.resume_at.is_none_or(|at| at <= now);
            if is_due {
                ring.resume_at = None;
                ring.is_active = true;
                hot.push(place);
            }
            !is_due
        });
    }

    /// When the first of those that wait may send again.
    pub(super) fn due(&self) -> Option<Instant> {
        self.waiting.iter().filter_map(|&place| self.all.get(place)?.as_ref()?.resume_at).min()
    }

    /// Puts aside the rings whose port may not send now, and arms those that have been empty for `busy_poll`; those that still are become cold. `inspect` sees each of
    /// these, and may have it fail.
    pub(super) fn cool(&mut self, now: Instant, busy_poll: Duration, mut inspect: impl FnMut(&mut TxRing)) {
        let Self { all, hot, polled, waiting, .. } = self;
        hot.retain(|&place| {
            let Some(Some(ring)) = all.get_mut(place) else { return false };
            if ring.vring.has_failed() {
                return false;
            }
            if ring.resume_at.is_some() {
                // Not armed: it has frames, and a kick would change nothing.
                waiting.push(place);
                return false;
            }
            if std::mem::take(&mut ring.is_active) {
                ring.active_at = now;
            }
            if now.saturating_duration_since(ring.active_at) < busy_poll {
                return true;
            }
            if ring.vring.queue.arm() {
                ring.vring.queue.suppress();
                ring.active_at = now;
                return true;
            }
            inspect(ring);
            if !ring.vring.has_failed() && matches!(ring.vring.kick, Kick::Polled) {
                polled.push(place);
            }
            false
        });
    }
}
