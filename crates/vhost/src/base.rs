//! Where a stopped vring goes on: the base, as the front-end says it and is told.
//!
//! ```text
//!   bits      31        30 … 16      15              14 … 0
//!   split     0         0            available index (16 bits)
//!   packed    its wrap  used index   its wrap        available index
//! ```
//!
//! Which of the two it is depends on the features, and these may come after the base: so what the front-end said
//! is kept as it is, and read when the ring starts.

use ringway_queue::{Areas, Cursor, ResumeState};
use ringway_spec::{feature, split};

use crate::backend::RequestError;

/// Where a stopped vring goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Base {
    /// At its beginning: nothing has been said since the device's reset.
    #[default]
    Start,
    /// Where the front-end said.
    Told(u32),
    /// Where it stopped.
    Stopped(ResumeState),
}

impl Base {
    /// The base as the front-end is told it; `features` are those acked.
    pub(crate) fn to_word(self, features: u64) -> u32 {
        match self {
            Self::Start => encode(ResumeState::start(features)),
            Self::Told(word) => word,
            Self::Stopped(state) => encode(state),
        }
    }

    /// Where a ring of `size` in these areas starts, with these features.
    ///
    /// A ring that stopped and starts in the other format is another ring, and its old place means nothing there:
    /// unless the front-end said where, it starts at its beginning.
    pub(crate) fn resume(self, features: u64, areas: &Areas, size: u16) -> Result<ResumeState, RequestError> {
        let is_packed = features & feature::RING_PACKED != 0;
        match self {
            // Front-ends that keep no place say this of every ring: User-Mode Linux of new ones, DPDK of split ones
            // that it takes to another back-end.
            Self::Told(0) if is_packed => Ok(ResumeState::find_lap(areas, size)),
            Self::Told(0) => Ok(ResumeState::Split { next_avail: areas.device.load_u16(split::IDX) }),
            Self::Told(word) if is_packed => Ok(decode_packed(word)),
            Self::Told(word) => match u16::try_from(word) {
                Ok(next_avail) => Ok(ResumeState::Split { next_avail }),
                Err(_) => Err(RequestError::VringBase(word)),
            },
            Self::Stopped(state) if matches!(state, ResumeState::Packed { .. }) == is_packed => Ok(state),
            Self::Stopped(_) | Self::Start => Ok(ResumeState::start(features)),
        }
    }
}

fn encode(state: ResumeState) -> u32 {
    match state {
        ResumeState::Split { next_avail } => next_avail.into(),
        ResumeState::Packed { avail, used } => {
            u32::from(avail.to_off_wrap()) | u32::from(used.to_off_wrap()) << 16
        }
    }
}

/// Front-ends that know of 16 bits only (DPDK) leave the used half 0: it is where the available half is, for a
/// stopped ring has nothing in flight.
fn decode_packed(word: u32) -> ResumeState {
    let (avail, used) = (word as u16, (word >> 16) as u16);
    let used = if used == 0 { avail } else { used };
    ResumeState::Packed { avail: Cursor::from_off_wrap(avail), used: Cursor::from_off_wrap(used) }
}

#[cfg(test)]
mod tests {
    use ringway_memory::{FrontendVa, Gpa, Mapping, MemoryTable};
    use ringway_spec::packed;

    use super::*;

    const SIZE: u16 = 4;
    const PACKED: u64 = feature::RING_PACKED | feature::VERSION_1;
    const SPLIT: u64 = feature::VERSION_1;

    /// Areas whose descriptors have these flags; as a split ring's they are good too.
    fn areas(flags: [u16; SIZE as usize]) -> Areas {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(4096).expect("its length");
        let region = Mapping::region(file.into(), 0, 4096, Gpa(0), FrontendVa(0)).expect("a region");
        let memory = MemoryTable::new(vec![region]).expect("memory");
        let at = FrontendVa;
        let areas = Areas::resolve(&memory, SIZE, PACKED, at(0), at(0x400), at(0x800)).expect("areas");
        for (index, flags) in flags.into_iter().enumerate() {
            let at = index * packed::DESC_SIZE + packed::TAIL;
            areas.descriptor.store_u64(at, packed::tail(64, 0, flags));
        }
        areas
    }

    fn new_areas() -> Areas {
        areas([0; SIZE as usize])
    }

    fn packed(avail: (u16, bool), used: (u16, bool)) -> ResumeState {
        let cursor = |(index, wrap)| Cursor::new(index, wrap);
        ResumeState::Packed { avail: cursor(avail), used: cursor(used) }
    }

    /// Each bit where the protocol has it, both ways.
    #[test]
    fn the_bits_of_a_packed_base() {
        for (word, state) in [
            (0x8000_8000, packed((0, true), (0, true))),
            (0x8001_0002, packed((2, false), (1, true))),
            (0x0001_8000, packed((0, true), (1, false))),
            (0xffff_ffff, packed((0x7fff, true), (0x7fff, true))),
            (0x7fff_0001, packed((1, false), (0x7fff, false))),
        ] {
            assert_eq!(encode(state), word);
            assert_eq!(decode_packed(word), state);
        }
    }

    /// [VU-BE-set-vring-base-00] [VU-BE-get-vring-base-00] What the front-end was told it can say again, and the
    /// ring goes on there: every place of a packed ring with nothing in flight, and a few with something.
    #[test]
    fn what_was_told_is_understood() {
        // As the ring is in an even lap: the device used slots in the odd one before.
        let even = areas([packed::DESC_F_AVAIL | packed::DESC_F_USED; SIZE as usize]);
        for index in 0..0x8000 {
            for wrap in [false, true] {
                let state = packed((index, wrap), (index, wrap));
                let word = Base::Stopped(state).to_word(PACKED);
                assert_eq!(Base::Told(word).resume(PACKED, &even, SIZE).unwrap(), state, "{word:#x}");
                assert_eq!(Base::Stopped(state).resume(PACKED, &even, SIZE).unwrap(), state);
            }
        }
        for state in [packed((3, true), (1, true)), packed((1, false), (3, true))] {
            let word = Base::Stopped(state).to_word(PACKED);
            assert_eq!(Base::Told(word).resume(PACKED, &even, SIZE).unwrap(), state, "{word:#x}");
        }
        for next_avail in [0, 1, 0x7fff, 0x8000, 0xffff] {
            let state = ResumeState::Split { next_avail };
            let word = Base::Stopped(state).to_word(SPLIT);
            assert_eq!(word, u32::from(next_avail));
            assert_eq!(Base::Told(word).resume(SPLIT, &even, SIZE).unwrap(), state);
        }
    }

    /// DPDK's 16 bits, for every place that they can name.
    #[test]
    fn sixteen_bits_are_both_halves() {
        let areas = new_areas();
        for word in 1..=0xffff_u16 {
            let at = (word & 0x7fff, word & 0x8000 != 0);
            let resumed = Base::Told(word.into()).resume(PACKED, &areas, SIZE).unwrap();
            assert_eq!(resumed, packed(at, at));
        }
    }

    /// 0 is the beginning of a new ring, which is an odd lap, and slot 0 of an even one later.
    #[test]
    fn a_base_of_zero_is_looked_up_in_the_ring() {
        use packed::{DESC_F_AVAIL, DESC_F_NEXT, DESC_F_USED};
        let odd = packed((0, true), (0, true));
        let even = packed((0, false), (0, false));
        let used = DESC_F_AVAIL | DESC_F_USED;
        for (flags, state) in [
            ([0; 4], odd),
            ([DESC_F_AVAIL, DESC_F_AVAIL | DESC_F_NEXT, DESC_F_AVAIL, 0], odd),
            ([used, used, used, used], even),
            ([used, DESC_F_AVAIL, DESC_F_AVAIL, DESC_F_AVAIL], even),
            ([DESC_F_USED, DESC_F_USED, used, used], even),
        ] {
            assert_eq!(Base::Told(0).resume(PACKED, &areas(flags), SIZE).unwrap(), state, "{flags:x?}");
        }
    }

    /// [VU-BE-set-vring-base-01] Of a split ring it is where the device was with its used entries.
    #[test]
    fn a_base_of_zero_is_the_used_index() {
        let areas = new_areas();
        for next_avail in [0, 1, 0x7fff, 0xffff] {
            areas.device.store_u16(split::IDX, next_avail);
            let state = ResumeState::Split { next_avail };
            assert_eq!(Base::Told(0).resume(SPLIT, &areas, SIZE).unwrap(), state);
        }
    }

    #[test]
    fn a_split_base_has_16_bits() {
        for word in [0x1_0000, 0x8000_8000, u32::MAX] {
            let error = Base::Told(word).resume(SPLIT, &new_areas(), SIZE).expect_err("too many bits");
            assert!(matches!(error, RequestError::VringBase(w) if w == word), "{error}");
        }
    }

    /// Where a ring stood in one format says nothing about the other.
    #[test]
    fn a_ring_in_another_format_begins_anew() {
        let (split, packed) = (ResumeState::Split { next_avail: 3 }, packed((3, true), (3, true)));
        for (state, features) in [(split, PACKED), (packed, SPLIT)] {
            let resumed = Base::Stopped(state).resume(features, &new_areas(), SIZE).unwrap();
            assert_eq!(resumed, ResumeState::start(features));
        }
        for (features, word) in [(PACKED, 0x8000_8000), (SPLIT, 0), (0, 0)] {
            assert_eq!(Base::Start.to_word(features), word);
            let resumed = Base::Start.resume(features, &new_areas(), SIZE).unwrap();
            assert_eq!(resumed, ResumeState::start(features));
        }
    }
}
