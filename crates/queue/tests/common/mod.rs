//! A guest for tests: its memory, and a driver's half for each format of ring; plain, trusting, and able to
//! write whatever a test wants.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

pub mod packed;
pub mod split;

use std::sync::Arc;

use ringway_memory::{Access, BusAddr, FrontendVa, Gpa, Mapping, MemoryTable, ScatterList};
use ringway_queue::{Areas, Burst, DeviceQueue};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

/// Where the guest's memory begins, for the guest and in its process.
pub const BASE: u64 = 0x4000_0000;
pub const FRONTEND: u64 = 0x7f00_0000_0000;
pub const LEN: u64 = 16 << 20;
/// Offsets of a queue's areas, at its largest size, and of the buffers.
pub const DESC: u64 = 0;
pub const DRIVER: u64 = 0x8_0000;
pub const DEVICE: u64 = 0xa_0000;
const BUFFERS: u64 = 0x20_0000;

/// The address of a buffer of 4 KiB, for `n` up to 3583.
pub fn buffer(n: u64) -> u64 {
    BASE + BUFFERS + n * 0x1000
}

/// An entry of an indirect table: address, length, and the two half-words that follow, by the format.
pub type Entry = (u64, u32, u16, u16);

#[derive(Clone)]
pub struct Guest {
    pub memory: Arc<MemoryTable>,
    /// Where the device area is in the dirty log of `memory`.
    pub used_log: Option<Gpa>,
}

impl Guest {
    pub fn new() -> Self {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&file, LEN).expect("its length");
        let region = Mapping::region(file, 0, LEN, Gpa(BASE), FrontendVa(FRONTEND)).expect("a region");
        Self { memory: Arc::new(MemoryTable::new(vec![region]).expect("a table")), used_log: None }
    }

    /// The areas of a queue.
    pub fn areas(&self, size: u16, features: u64) -> Areas {
        let at = |offset| FrontendVa(FRONTEND + offset);
        Areas::resolve(&self.memory, size, features, at(DESC), at(DRIVER), at(DEVICE)).expect("areas")
    }

    /// All that the areas of a queue can be, byte for byte.
    pub fn ring_bytes(&self) -> Vec<u8> {
        self.read(BASE, BUFFERS as usize)
    }

    pub fn write(&self, addr: u64, bytes: &[u8]) {
        let list = self.list(addr, bytes.len());
        assert_eq!(list.buf(0..list.len()).write(bytes), bytes.len());
    }

    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let list = self.list(addr, len);
        let mut bytes = vec![0; len];
        assert_eq!(list.buf(0..list.len()).read(&mut bytes), len);
        bytes
    }

    pub fn write_table(&self, at: u64, entries: &[Entry]) {
        for (entry, i) in entries.iter().zip(0..) {
            let (addr, len, a, b) = *entry;
            let mut bytes = addr.to_le_bytes().to_vec();
            bytes.extend(len.to_le_bytes());
            bytes.extend(a.to_le_bytes());
            bytes.extend(b.to_le_bytes());
            self.write(at + i * 16, &bytes);
        }
    }

    fn list(&self, addr: u64, len: usize) -> ScatterList {
        let mut list = ScatterList::with_capacity(1);
        list.bind(&self.memory);
        list.push(BusAddr(addr), len as u32, Access::READ).expect("in memory");
        list
    }
}

/// Takes all that is available, one burst.
pub fn take(queue: &mut DeviceQueue, burst: &mut Burst) -> usize {
    queue.take(burst, 64).expect("a good ring")
}

/// Completes every chain of a burst with `written` bytes written.
pub fn complete(queue: &mut DeviceQueue, burst: &mut Burst, written: u32) {
    while let Some(chain) = burst.next() {
        queue.complete(chain, written);
    }
}
