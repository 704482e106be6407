//! Buffers that a driver lends.

mod common;

use common::{PAGE, read, region, table};
use ringway_memory::{Gpa, MemoryError, SharedBuf};

const BASE: u64 = 0x4000_0000;

/// The buffers are the range in order, none past its end; what is written is where the device finds it.
#[test]
fn a_region_is_divided() {
    let region = region(BASE, 2 * PAGE, 0);
    let mut buffers: Vec<_> = SharedBuf::divide(&region, 100..1000, 64).expect("inside").collect();
    assert_eq!(buffers.len(), 14);
    for (i, buffer) in (0u64..).zip(&mut buffers) {
        assert_eq!((buffer.addr(), buffer.len()), (Gpa(BASE + 100 + 64 * i), 64));
        assert_eq!(buffer.write(&[i as u8 + 1; 100]), 64, "no more than it has");
    }
    let mut start = [0; 100];
    assert_eq!(buffers[3].read(&mut start), 64);
    assert_eq!((start[63], start[64]), (4, 0));
    let table = table(vec![region]);
    let memory = read(&table, BASE, 1100);
    let expected: Vec<u8> = (1..=14).flat_map(|i| [i; 64]).collect();
    assert_eq!(memory[100..996], expected);
    assert!(memory[..100].iter().chain(&memory[996..]).all(|byte| *byte == 0));
}

/// A part of a buffer is inside of it, or is none.
#[test]
fn a_part_of_a_buffer_is_inside_of_it() {
    let region = region(BASE, PAGE, 0);
    let mut buffers = SharedBuf::divide(&region, 64..192, 64).expect("inside");
    let (mut buffer, _next) = (buffers.next().expect("one"), buffers.next().expect("two"));
    buffer.write(&[7; 64]);
    for (offset, len) in [(0, 64), (0, 0), (64, 0), (63, 1), (10, 20)] {
        let part = buffer.part(offset, len).expect("a part");
        assert_eq!(part.len(), len as usize);
        assert_eq!(part.as_ptr() as usize - buffer.slice().as_ptr() as usize, offset as usize);
    }
    for (offset, len) in [(0, 65), (64, 1), (65, 0), (1, 64), (u32::MAX, 1), (1, u32::MAX)] {
        assert!(buffer.part(offset, len).is_none(), "{offset} {len}");
    }
}

/// A buffer keeps its memory mapped.
#[test]
fn a_buffer_outlives_its_region() {
    let region = region(BASE, PAGE, 0);
    let mut buffer = SharedBuf::divide(&region, 0..PAGE, PAGE as u32).expect("inside").next().expect("one");
    drop(region);
    buffer.write(b"here");
    let mut text = [0; 4];
    buffer.read(&mut text);
    assert_eq!(&text, b"here");
}

#[test]
fn bad_ranges_are_refused() {
    let region = region(BASE, PAGE, 0);
    let error = |range, len| SharedBuf::divide(&region, range, len).err();
    assert_eq!(error(0..PAGE + 1, 8), Some(MemoryError::Unmapped { addr: Gpa(BASE), len: PAGE + 1 }));
    let (start, end) = (9, 8);
    assert_eq!(error(start..end, 8), Some(MemoryError::Unmapped { addr: Gpa(BASE + 9), len: 0 }));
    assert_eq!(error(0..8, 0), Some(MemoryError::BadSize { addr: Gpa(BASE), len: 0 }));
    assert_eq!(SharedBuf::divide(&region, 0..8, 9).expect("inside").count(), 0);
}
