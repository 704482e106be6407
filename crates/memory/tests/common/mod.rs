//! Memory for tests: files, and tables of them.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ringway_memory::{Access, BusAddr, FrontendVa, Gpa, MapError, Mapping, MemoryTable, Region, ScatterList};

pub const PAGE: u64 = 4096;

pub fn file(len: u64) -> File {
    let file = tempfile::tempfile().expect("a temporary file");
    file.set_len(len).expect("its length");
    file
}

pub fn fd(file: &File) -> OwnedFd {
    file.try_clone().expect("a clone").into()
}

/// Maps all of a file of `len` bytes.
pub fn map(file: &File, len: u64, gpa: u64, va: u64) -> Result<Region, MapError> {
    Mapping::region(fd(file), 0, len, Gpa(gpa), FrontendVa(va))
}

/// A region with a file of its own.
pub fn region(gpa: u64, len: u64, va: u64) -> Region {
    map(&file(len), len, gpa, va).expect("a region")
}

pub fn table(regions: Vec<Region>) -> Arc<MemoryTable> {
    Arc::new(MemoryTable::new(regions).expect("a table"))
}

/// A list of these ranges.
pub fn list(table: &Arc<MemoryTable>, ranges: &[(u64, u32)]) -> ScatterList {
    let mut list = ScatterList::with_capacity(ranges.len());
    list.bind(table);
    for (addr, len) in ranges {
        list.push(BusAddr(*addr), *len, Access::READ).expect("in memory");
    }
    list
}

pub fn read(table: &Arc<MemoryTable>, addr: u64, len: u32) -> Vec<u8> {
    let list = list(table, &[(addr, len)]);
    let mut bytes = vec![0; len as usize];
    assert_eq!(list.buf(0..list.len()).read(&mut bytes), bytes.len());
    bytes
}

pub fn write(table: &Arc<MemoryTable>, addr: u64, bytes: &[u8]) {
    let list = list(table, &[(addr, bytes.len() as u32)]);
    assert_eq!(list.buf(0..list.len()).write(bytes), bytes.len());
}
