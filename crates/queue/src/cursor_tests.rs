//! Cursors against their definition: a position that runs freely. Its slot is the position modulo the size,
//! and its lap is even or odd.

use proptest::prelude::*;
use ringway_spec::packed::{DESC_F_AVAIL, DESC_F_NEXT, DESC_F_USED, DESC_F_WRITE};

use super::Cursor;

/// The cursor at a position.
fn at(position: u32, size: u16) -> Cursor {
    let size = u32::from(size);
    Cursor::new((position % size) as u16, (position / size).is_multiple_of(2))
}

/// All that cursors do, from one position on by `n` slots, at most the size.
fn check(position: u32, n: u16, size: u16) {
    let (from, to) = (at(position, size), at(position + u32::from(n), size));
    assert_eq!(from.advance(n, size), to, "{from:?} and {n} of {size}");
    assert_eq!(to.retreat(n, size), from, "{to:?} less {n} of {size}");
    assert_eq!(to.distance(from, size), n.into(), "from {from:?} to {to:?} of {size}");
    let laps = 2 * u32::from(size);
    assert_eq!(from.distance(to, size), (laps - u32::from(n)) % laps, "from {to:?} to {from:?} of {size}");
}

#[test]
fn small_rings_agree_with_free_running_positions() {
    for size in 1..=9 {
        for position in 0..4 * u32::from(size) {
            (0..=size).for_each(|n| check(position, n, size));
        }
    }
}

proptest! {
    #[test]
    fn rings_of_every_size_agree_with_free_running_positions(
        (size, position, n) in prop_oneof![1..=32768u16, 32760..=32768u16]
            .prop_flat_map(|size| (Just(size), 0..4 * u32::from(size), 0..=size))
    ) {
        check(position, n, size);
        check(position, size, size);
    }

    #[test]
    fn a_cursor_fits_16_bits(value: u16) {
        let cursor = Cursor::from_off_wrap(value);
        prop_assert_eq!((cursor.index(), cursor.wrap()), (value % 0x8000, value >= 0x8000));
        prop_assert_eq!(cursor.to_off_wrap(), value);
    }
}

#[test]
fn both_sides_begin_in_the_first_slot_of_the_first_lap() {
    assert_eq!(Cursor::START, at(0, 7));
    assert_eq!(Cursor::START.to_off_wrap(), 0x8000);
}

/// AVAIL and USED: made available, AVAIL is the wrap counter and USED is not; used, both are. The other flags
/// mean nothing here.
#[test]
fn a_slot_is_available_used_or_of_another_lap() {
    for cursor in [at(3, 5), at(8, 5)] {
        let flag = |flag, is_set| if is_set { flag } else { 0 };
        let flags = |avail, used| flag(DESC_F_AVAIL, avail) | flag(DESC_F_USED, used);
        assert_eq!(cursor.available_flags(), flags(cursor.wrap(), !cursor.wrap()));
        assert_eq!(cursor.used_flags(), flags(cursor.wrap(), cursor.wrap()));
        for (avail, used) in [(false, false), (false, true), (true, false), (true, true)] {
            for other in [0, DESC_F_NEXT | DESC_F_WRITE, !(DESC_F_AVAIL | DESC_F_USED)] {
                let flags = flags(avail, used) | other;
                assert_eq!(cursor.is_available(flags), avail == cursor.wrap() && used != cursor.wrap());
                assert_eq!(cursor.is_used(flags), avail == cursor.wrap() && used == cursor.wrap());
            }
        }
    }
}
