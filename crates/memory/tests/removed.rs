//! Pages that are given back to the host.

mod common;

use std::fs::File;
use std::io::ErrorKind;
use std::os::unix::fs::{FileExt, MetadataExt};

use common::{PAGE, map, read, region, table, write};
use ringway_memory::{Gpa, GuestSlice, MemoryTable, io};
use rustix::fs::{MemfdFlags, memfd_create};

const LEN: u64 = 8 * PAGE;

/// A table of eight pages that are in use, and the file they are in.
fn used_pages() -> (std::sync::Arc<MemoryTable>, File) {
    let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).expect("a file in memory"));
    file.set_len(LEN).expect("its length");
    let table = table(vec![map(&file, LEN, 0, 0).expect("a region")]);
    write(&table, 0, &vec![7; LEN as usize]);
    (table, file)
}

/// How many pages the file takes up.
fn pages(file: &File) -> u64 {
    file.metadata().expect("metadata").blocks() * 512 / PAGE
}

fn slice(table: &MemoryTable, addr: u64, len: u64) -> GuestSlice<'_> {
    table.slices(Gpa(addr), len).next().expect("there is memory")
}

/// What is removed takes up no memory, reads as zeroes, and can be used again; what is beside it stays.
#[test]
fn removed_pages_leave_the_file() {
    let (table, file) = used_pages();
    assert_eq!(pages(&file), 8);
    io::remove(slice(&table, 2 * PAGE, 3 * PAGE)).expect("it is removed");
    assert_eq!(pages(&file), 5);
    // Not by the mapping: who looks there for a page that is gone gets another.
    let mut left = vec![1; LEN as usize];
    file.read_exact_at(&mut left, 0).expect("its bytes");
    for (page, bytes) in left.chunks(PAGE as usize).enumerate() {
        let expected = if (2..5).contains(&page) { 0 } else { 7 };
        assert!(bytes.iter().all(|&byte| byte == expected), "page {page}");
    }
    assert_eq!(read(&table, 2 * PAGE, 1), [0]);
    write(&table, 3 * PAGE, b"x");
    assert_eq!(pages(&file), 7);
    assert!(table.is_intact());
}

/// What the kernel does not take back stays as it is.
#[test]
fn nothing_else_is_removed() {
    let (table, file) = used_pages();
    for (addr, len) in [(100, PAGE), (0, 100), (PAGE, PAGE + 1)] {
        let error = io::remove(slice(&table, addr, len)).expect_err("a part of a page");
        assert_eq!((error.kind(), pages(&file)), (ErrorKind::InvalidInput, 8), "{addr} {len}");
    }
    let mut own = vec![7; 4 * PAGE as usize];
    io::remove(GuestSlice::from_mut(&mut own)).expect_err("it is in no file");
    assert!(own.iter().all(|&byte| byte == 7));
}

/// A range of the guest's is what its regions have of it.
#[test]
fn a_range_is_cut_to_what_there_is() {
    let table = table(vec![
        region(PAGE, PAGE, 0),
        region(2 * PAGE, PAGE, 0x1_0000),
        region(5 * PAGE, PAGE, 0x2_0000),
    ]);
    let lens = |addr, len| table.slices(Gpa(addr), len).map(|slice| slice.len() as u64).collect::<Vec<_>>();
    assert_eq!(lens(0, 10 * PAGE), [PAGE, PAGE, PAGE]);
    assert_eq!(lens(PAGE + 1, PAGE), [PAGE - 1, 1]);
    assert_eq!(lens(5 * PAGE, 1), [1]);
    assert_eq!(lens(6 * PAGE - 1, u64::MAX), [1]);
    for (addr, len) in [(0, PAGE), (PAGE, 0), (3 * PAGE, 2 * PAGE), (6 * PAGE, 1), (u64::MAX, u64::MAX)] {
        assert!(lens(addr, len).is_empty(), "{addr:#x} {len:#x}");
    }
    let first = slice(&table, PAGE + 5, 1).as_ptr() as u64;
    assert_eq!(first - slice(&table, PAGE, 1).as_ptr() as u64, 5);
}
