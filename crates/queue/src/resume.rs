//! Where a queue stands between a stop and the next start.

use ringway_spec::{feature, packed};

use crate::{Areas, ConfigError, Cursor};

/// Where a queue goes on, by its format. vhost calls it the vring base.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ResumeState {
    /// A split queue. The used index is found again in the ring, where the device alone writes it.
    Split {
        /// The next entry of the available ring that the device will take.
        next_avail: u16,
    },
    /// A packed queue. The ring does not tell where the used descriptors end: a chain's other slots keep the
    /// flags that made them available.
    Packed {
        /// The next slot that the device will take.
        avail: Cursor,
        /// The next slot that the device will write a used descriptor to. `avail` is ahead of it by what is in
        /// flight.
        used: Cursor,
    },
}

impl ResumeState {
    /// Where a new queue begins; the format is by the negotiated `features`.
    pub const fn start(features: u64) -> Self {
        if features & feature::RING_PACKED != 0 {
            Self::Packed { avail: Cursor::START, used: Cursor::START }
        } else {
            Self::Split { next_avail: 0 }
        }
    }

    /// Which lap a packed queue of `size` slots is in that stands at slot 0 with nothing in flight, for peers that
    /// keep no wrap counter.
    ///
    /// The ring tells. A slot whose AVAIL and USED are alike was used in the lap before, of which there is at least
    /// one until the driver has made all slots available again; then slot 0 is of this lap. Slots that the device
    /// left out tell nothing: they keep the flags which made them available.
    pub fn find_lap(areas: &Areas, size: u16) -> Self {
        let flags = |slot: u16| {
            let at = usize::from(slot) * packed::DESC_SIZE + packed::TAIL;
            packed::tail_flags(areas.descriptor.load_u64_acquire(at))
        };
        let is_avail = |flags| flags & packed::DESC_F_AVAIL != 0;
        let is_used = |flags: &u16| is_avail(*flags) == (flags & packed::DESC_F_USED != 0);
        let wrap = match (0..size).map(flags).find(is_used) {
            Some(used) => !is_avail(used),
            None => is_avail(flags(0)),
        };
        let at = Cursor::new(0, wrap);
        Self::Packed { avail: at, used: at }
    }

    /// Whether a queue of this size and these features can go on here.
    pub(crate) fn check(self, size: u16, features: u64) -> Result<(), ConfigError> {
        let is_packed = features & feature::RING_PACKED != 0;
        let is_good = match self {
            Self::Split { .. } => !is_packed,
            Self::Packed { avail, used } => {
                is_packed
                    && avail.index() < size
                    && used.index() < size
                    && avail.distance(used, size) <= u32::from(size)
            }
        };
        if is_good { Ok(()) } else { Err(ConfigError::BadResume { size, resume: self }) }
    }
}

#[cfg(test)]
mod tests {
    use ringway_spec::feature::{RING_EVENT_IDX, RING_PACKED};

    use super::ResumeState;
    use crate::{ConfigError, Cursor};

    const ALL: [u64; 2] = [RING_EVENT_IDX, RING_EVENT_IDX | RING_PACKED];

    #[test]
    fn a_new_queue_begins_in_its_own_format() {
        for features in ALL {
            for size in [1, 4, 32768] {
                assert_eq!(ResumeState::start(features).check(size, features), Ok(()));
            }
        }
        for (features, other) in [(ALL[0], ALL[1]), (ALL[1], ALL[0])] {
            let resume = ResumeState::start(other);
            assert_eq!(resume.check(4, features), Err(ConfigError::BadResume { size: 4, resume }));
        }
    }

    /// A split queue goes on anywhere.
    #[test]
    fn every_available_index_is_good() {
        for next_avail in 0..=u16::MAX {
            assert_eq!(ResumeState::Split { next_avail }.check(4, ALL[0]), Ok(()));
        }
    }

    /// All pairs of cursors of small rings, and some past the ring: good exactly if 0 to `size` steps lead from what is
    /// used to what is available.
    #[test]
    fn at_most_a_ring_is_in_flight() {
        for size in 1..=6 {
            let cursors =
                || (0..=size + 1).flat_map(|index| [false, true].map(|wrap| Cursor::new(index, wrap)));
            for used in cursors() {
                for avail in cursors() {
                    let resume = ResumeState::Packed { avail, used };
                    let mut on_the_way = (0..=size).map(|n| used.advance(n, size));
                    let is_good = used.index() < size && on_the_way.any(|at| at == avail);
                    let expected =
                        if is_good { Ok(()) } else { Err(ConfigError::BadResume { size, resume }) };
                    assert_eq!(resume.check(size, ALL[1]), expected, "{resume:?} of {size}");
                }
            }
        }
    }
}
