//! Buffers that outlive their burst.

mod common;

use std::sync::Arc;

use common::{PAGE, list, region, table, write};
use ringway_memory::Kept;

fn bytes(kept: &Kept) -> Vec<u8> {
    let mut bytes = vec![0; kept.len()];
    assert_eq!(kept.buf().read(&mut bytes), bytes.len());
    bytes
}

/// A window of several slices is kept, and outlives list and table.
#[test]
fn a_window_outlives_its_list() {
    let memory = table(vec![region(0, PAGE, 0)]);
    write(&memory, 100, b"abcdefgh");
    let mut kept = Kept::default();
    assert!(kept.is_empty() && kept.slices().is_empty());
    let slices = list(&memory, &[(100, 3), (103, 1), (104, 4)]);
    slices.keep(0..3, 1, 5, &mut kept);
    drop(slices);
    drop(memory);
    assert_eq!(kept.slices().iter().map(ringway_memory::GuestSlice::len).collect::<Vec<_>>(), [2, 1, 2]);
    assert_eq!(bytes(&kept), b"bcdef");
    for (n, rest) in [(0, &b"bcdef"[..]), (1, b"cdef"), (2, b"ef"), (1, b"f"), (9, b"")] {
        kept.advance(n);
        assert_eq!(bytes(&kept), rest, "after {n}");
        assert!(kept.slices().iter().all(|slice| !slice.is_empty()));
    }
}

/// What was kept before is not kept any more, and its table neither if it was another.
#[test]
fn the_last_one_counts() {
    let (one, other) = (table(vec![region(0, PAGE, 0)]), table(vec![region(0, PAGE, 0)]));
    write(&one, 0, b"one");
    write(&other, 0, b"other");
    let mut kept = Kept::default();
    list(&one, &[(0, 3)]).keep(0..1, 0, 99, &mut kept);
    assert_eq!((bytes(&kept), Arc::strong_count(&one)), (b"one".to_vec(), 2));
    list(&one, &[(0, 3)]).keep(0..1, 0, 2, &mut kept);
    assert_eq!((bytes(&kept), Arc::strong_count(&one)), (b"on".to_vec(), 2));
    list(&other, &[(0, 5)]).keep(0..1, 0, 5, &mut kept);
    assert_eq!((bytes(&kept), Arc::strong_count(&one)), (b"other".to_vec(), 1));
    kept.clear();
    assert!(kept.is_empty());
}
