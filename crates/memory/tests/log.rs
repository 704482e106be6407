//! The dirty log: which bits are set, also where two set bits of one byte, or where there is no bit.

#![allow(unsafe_code, reason = "a log in memory of ours")]

mod common;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{PAGE, fd, file, region, table};
use proptest::prelude::*;
use ringway_memory::{Backing, DirtyLog, Gpa, MapError};

fn log(file: &File, size: u64) -> DirtyLog {
    DirtyLog::map(fd(file), 0, size).expect("a log")
}

/// The pages whose bits are set, lowest first.
fn marked(file: &File) -> Vec<u64> {
    let mut bytes = vec![0; file.metadata().expect("its length").len() as usize];
    file.read_exact_at(&mut bytes, 0).expect("the log");
    (0..bytes.len() as u64 * 8).filter(|page| bytes[(page / 8) as usize] >> (page % 8) & 1 == 1).collect()
}

/// What is marked in a new log of 4 bytes, 32 pages.
fn marks(addr: u64, len: u64) -> Vec<u64> {
    let file = file(4);
    log(&file, 4).mark(Gpa(addr), len);
    marked(&file)
}

/// [VU-BE-migration-01] A page is marked if at least a byte of it was written, by bit n % 8 of byte n / 8.
#[test]
fn pages_touched_are_marked() {
    let pages = |range: std::ops::Range<u64>| range.collect::<Vec<_>>();
    for start in [0, 1, 7, 8, 9, 15] {
        let at = start * PAGE;
        assert_eq!(marks(at, 0), [], "nothing was written");
        for (offset, len, count) in [
            (0, 1, 1),
            (0, PAGE - 1, 1),
            (0, PAGE, 1),
            (0, PAGE + 1, 2),
            (PAGE - 1, 1, 1),
            (PAGE - 1, 2, 2),
            (PAGE - 1, PAGE + 1, 2),
            (PAGE - 1, PAGE + 2, 3),
            (5, 16 * PAGE, 17),
        ] {
            assert_eq!(marks(at + offset, len), pages(start..start + count), "page {start}, {offset} {len}");
        }
    }
}

/// What the log has no bit for is left out, up to the end of the address space, in little time.
#[test]
fn pages_past_the_log_are_left_out() {
    for (addr, len) in [(32 * PAGE, 1), (1 << 40, PAGE), (u64::MAX, 1), (u64::MAX, u64::MAX), (u64::MAX, 0)] {
        assert_eq!(marks(addr, len), [], "{addr:#x} {len}");
    }
    assert_eq!(marks(31 * PAGE, 2 * PAGE), [31]);
    assert_eq!(marks(31 * PAGE + 1, u64::MAX), [31]);
    assert_eq!(marks(0, u64::MAX), (0..32).collect::<Vec<_>>());
}

proptest! {
    #[test]
    fn marks_are_those_of_a_set_of_pages(ranges in prop::collection::vec((0..40 * PAGE, 0..10 * PAGE), 1..20)) {
        let file = file(4);
        let log = log(&file, 4);
        for (addr, len) in &ranges {
            log.mark(Gpa(*addr), *len);
        }
        let touches = |page: u64, (addr, len): &(u64, u64)| *addr < (page + 1) * PAGE && addr + len > page * PAGE && *len > 0;
        let expected: Vec<u64> = (0..32).filter(|page| ranges.iter().any(|range| touches(*page, range))).collect();
        prop_assert_eq!(marked(&file), expected);
    }
}

/// A log may begin anywhere in its file, and what is around it is not touched.
#[test]
fn a_log_is_a_window_on_its_file() {
    let file = file(2 * PAGE);
    let log = DirtyLog::map(fd(&file), PAGE - 3, 5).expect("a log");
    log.mark(Gpa(0), u64::MAX);
    assert_eq!(marked(&file), ((PAGE - 3) * 8..(PAGE + 2) * 8).collect::<Vec<_>>());
}

#[test]
fn a_log_ends_inside_its_file() {
    let file = file(PAGE);
    let map = |offset, size| DirtyLog::map(fd(&file), offset, size).err();
    assert!(matches!(map(1, PAGE), Some(MapError::PastEnd { .. })));
    assert!(matches!(map(0, 0), Some(MapError::BadRange { .. })), "an empty log");
    assert!(matches!(map(1, u64::MAX), Some(MapError::BadRange { .. })));
}

/// A log in memory of ours, of one byte.
#[derive(Default)]
struct Byte(AtomicU8);

impl Backing for Byte {
    fn is_intact(&self) -> bool {
        true
    }
}

impl Byte {
    fn log(self: &Arc<Self>) -> DirtyLog {
        // SAFETY: the byte is an atomic, which the backing owns.
        unsafe { DirtyLog::new(NonNull::from(&self.0).cast(), 1, self.clone()) }
    }
}

/// [VU-BE-migration-03] Threads that mark pages of one byte at once, by a log each, while bits of it are cleared, lose
/// none: what a thread marked is there until it clears it itself.
#[test]
fn no_bit_is_lost_between_threads() {
    let byte = &Arc::new(Byte::default());
    thread::scope(|scope| {
        for page in 0..2 {
            scope.spawn(move || {
                let (log, bit) = (byte.log(), 1 << page);
                let lost = (0..300_000).filter(|_| {
                    log.mark(Gpa(page * PAGE), 1);
                    byte.0.fetch_and(!bit, Ordering::Acquire) & bit == 0
                });
                assert_eq!(lost.count(), 0);
            });
        }
    });
}

/// [VU-BE-migration-03] A front-end takes bits and copies their pages while these are written to and marked: the last
/// write of a row is copied too, though the bit may be set when it is marked.
#[test]
fn no_write_is_lost_beside_a_front_end() {
    let (byte, page) = (&Arc::new(Byte::default()), &AtomicU64::new(0));
    let (copied, is_done) = (&AtomicU64::new(0), &AtomicBool::new(false));
    thread::scope(|scope| {
        scope.spawn(move || {
            while !is_done.load(Ordering::Relaxed) {
                if byte.0.swap(0, Ordering::Acquire) != 0 {
                    copied.store(page.load(Ordering::Relaxed), Ordering::Relaxed);
                }
            }
        });
        let log = byte.log();
        let is_copied = |value| {
            let deadline = Instant::now() + Duration::from_secs(20);
            while copied.load(Ordering::Relaxed) != value {
                if Instant::now() > deadline {
                    return false;
                }
            }
            true
        };
        let mut rounds = (0..200_000u64).map(|round| {
            for write in 1..=3 {
                page.store(round * 3 + write, Ordering::Relaxed);
                log.mark(Gpa(0), 8);
            }
            is_copied(round * 3 + 3)
        });
        let all_are_copied = rounds.all(|is_copied| is_copied);
        is_done.store(true, Ordering::Relaxed);
        assert!(all_are_copied, "a write was lost");
    });
}

/// A front-end that shortens its log costs nothing but the log.
#[test]
fn a_shortened_log_is_told() {
    let (victim, memory) = (file(2 * PAGE), table(vec![region(0, PAGE, 0)]));
    let log = Arc::new(log(&victim, 2 * PAGE));
    let memory = memory.with_log(Some(Arc::clone(&log)));
    victim.set_len(0).expect("shortened");
    assert!(log.is_intact() && memory.is_intact(), "nobody has touched what is gone");
    log.mark(Gpa(0), PAGE);
    assert!(!log.is_intact() && !memory.is_intact());
    log.mark(Gpa(0), u64::MAX);
    assert!(memory.with_log(None).is_intact(), "the guest's memory is whole");
}

/// A table has the log that it was made with, and what is made of it another, or none.
#[test]
fn a_table_with_a_log_is_another_table() {
    let plain = table(vec![region(0, PAGE, 0)]);
    let log = Arc::new(log(&file(1), 1));
    let logged = plain.with_log(Some(Arc::clone(&log)));
    assert!(plain.log().is_none() && logged.with_log(None).log().is_none());
    assert!(logged.log().is_some_and(|held| Arc::ptr_eq(held, &log)));
    assert_eq!(logged.regions().len(), 1);
}
