//! A guest's memory that is mapped twice: by us, and by `vm-memory` for other people's halves of a queue.

#![allow(unreachable_pub, reason = "test files use it")]

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ringway_memory::{FrontendVa, Gpa, Mapping, MemoryTable};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryMmap};

use crate::common::{BASE, FRONTEND, Guest, LEN};

pub fn memory() -> (Guest, GuestMemoryMmap) {
    let file = tempfile::tempfile().expect("a temporary file");
    file.set_len(LEN).expect("its length");
    let theirs = FileOffset::new(file.try_clone().expect("a descriptor"), 0);
    let theirs = (GuestAddress(BASE), LEN as usize, Some(theirs));
    let theirs = GuestMemoryMmap::from_ranges_with_files([theirs]).expect("a mapping");
    let ours =
        Mapping::region(OwnedFd::from(file), 0, LEN, Gpa(BASE), FrontendVa(FRONTEND)).expect("a region");
    (Guest { memory: Arc::new(MemoryTable::new(vec![ours]).expect("a table")), used_log: None }, theirs)
}
