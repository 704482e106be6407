//! Event suppression against its definition, step by step.

use proptest::prelude::*;

use super::{Suppression, passed};
use crate::Cursor;

/// Whether some index on the way from old to new is the event.
fn by_steps(event: u16, new: u16, old: u16) -> bool {
    let mut at = old;
    while at != new {
        if at == event {
            return true;
        }
        at = at.wrapping_add(1);
    }
    false
}

/// [DEV-SPLIT-used-buffer-notification-suppression-05] [DEV-SPLIT-used-buffer-notification-suppression-06]
/// Every event near, inside and far from every short move, around every wrap.
#[test]
fn passed_agrees_with_its_definition() {
    for old in (0..40).chain(65500..=65535) {
        for step in 0..40u16 {
            let new = u16::wrapping_add(old, step);
            for offset in -80i16..80 {
                let event = old.wrapping_add_signed(offset);
                assert_eq!(passed(event, new, old), by_steps(event, new, old), "{event} {new} {old}");
            }
            assert!(!passed(new, new, old), "the next entry has not been written yet");
        }
    }
}

fn at(position: u32, size: u16) -> Cursor {
    let size = u32::from(size);
    Cursor::new((position % size) as u16, (position / size).is_multiple_of(2))
}

/// Every event of both laps, for every move of up to a whole ring, from everywhere: it is wanted exactly if
/// some slot on the way is the event's slot, in the event's lap. So inside of a chain, at the ring's edge,
/// and not if it lies behind, where it was armed before.
#[test]
fn an_event_is_wanted_by_the_slots_on_the_way() {
    for size in 1..=6u16 {
        let laps = 2 * u32::from(size);
        for old in 0..laps {
            for n in 0..=u32::from(size) {
                for event in (0..laps).map(|event| at(event, size)) {
                    let on_the_way = (old..old + n).any(|position| at(position, size) == event);
                    let wants = Suppression::At(event).wants(at(old, size), at(old + n, size), size);
                    assert_eq!(wants, on_the_way, "size {size}, {n} from {old}, {event:?}");
                }
            }
        }
    }
}

#[test]
fn all_or_none_is_wanted_wherever_the_cursors_are() {
    for size in 1..=3 {
        for old in 0..6 {
            for new in old..=old + u32::from(size) {
                let (old, new) = (at(old, size), at(new, size));
                assert!(Suppression::Enable.wants(old, new, size));
                assert!(!Suppression::Disable.wants(old, new, size));
            }
        }
    }
}

proptest! {
    /// Whatever a peer wrote there is an answer, also for a slot that the ring does not have.
    #[test]
    fn every_word_has_an_answer(
        word: u32,
        (size, old, n) in (1..=32768u16).prop_flat_map(|size| (Just(size), 0..2 * u32::from(size), 0..=size)),
    ) {
        let (from, to) = (at(old, size), at(old + u32::from(n), size));
        for event_idx in [false, true] {
            let wish = Suppression::from_word(word, event_idx);
            let wants = wish.wants(from, to, size);
            match wish {
                Suppression::Enable => prop_assert!(wants),
                Suppression::Disable => prop_assert!(!wants),
                Suppression::At(_) => prop_assert!(event_idx && (!wants || n > 0), "nothing moved"),
            }
        }
    }

    #[test]
    fn a_wish_comes_back_from_its_word(index in 0..0x8000u16, wrap: bool) {
        for wish in [Suppression::Enable, Suppression::Disable, Suppression::At(Cursor::new(index, wrap))] {
            prop_assert_eq!(Suppression::from_word(wish.to_word(), true), wish);
        }
    }
}

/// The position in the low half, in its highest bit the lap, and the flags in the high half.
#[test]
fn words_are_as_the_layout_says() {
    assert_eq!(Suppression::Enable.to_word(), 0);
    assert_eq!(Suppression::Disable.to_word(), 0x0001_0000);
    assert_eq!(Suppression::At(Cursor::new(0x123, false)).to_word(), 0x0002_0123);
    assert_eq!(Suppression::At(Cursor::new(0x123, true)).to_word(), 0x0002_8123);
}

/// All values of the two flags, whatever is in the reserved bits and the position. The reserved value, and a
/// position without `EVENT_IDX`, ask for every notification.
#[test]
fn flags_are_read_with_and_without_event_idx() {
    for off_wrap in [0, 5, 0x8005, 0xffff] {
        for reserved in [0, 1 << 2, 0x3fff << 2] {
            let read = |flags: u32, event_idx| {
                Suppression::from_word(u32::from(off_wrap) | (flags | reserved) << 16, event_idx)
            };
            for event_idx in [false, true] {
                assert_eq!(read(0, event_idx), Suppression::Enable);
                assert_eq!(read(1, event_idx), Suppression::Disable);
                assert_eq!(read(3, event_idx), Suppression::Enable);
            }
            assert_eq!(read(2, false), Suppression::Enable);
            assert_eq!(read(2, true), Suppression::At(Cursor::from_off_wrap(off_wrap)));
        }
    }
}
