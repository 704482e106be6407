//! A driver's half of a split ring for tests: plain, trusting, and able to write whatever a test wants.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::os::fd::OwnedFd;
use std::sync::Arc;

use ringway_memory::{FrontendVa, Gpa, Mapping, MemoryTable, RingArea, ScatterList};
use ringway_queue::{Areas, DeviceQueue, QueueConfig, ResumeState};
use ringway_spec::split::{self as layout, AVAIL_ENTRY, DESC_SIZE, Descriptor, FLAGS, IDX, RING, USED_ENTRY};

/// Where the guest's memory begins, for the guest and in its process.
pub const BASE: u64 = 0x4000_0000;
pub const FRONTEND: u64 = 0x7f00_0000_0000;
pub const LEN: u64 = 16 << 20;
/// Offsets of the areas and of the buffers.
const DESC: u64 = 0;
const AVAIL: u64 = 0x8_0000;
const USED: u64 = 0xa_0000;
pub const BUFFERS: u64 = 0x20_0000;

pub struct Driver {
    pub memory: Arc<MemoryTable>,
    pub size: u16,
    desc: RingArea,
    avail: RingArea,
    used: RingArea,
    /// The next entry of the available ring to write, and of the used ring to read.
    pub next_avail: u16,
    pub next_used: u16,
}

impl Driver {
    /// A ring of `size` descriptors whose indices stand at `base`.
    pub fn new(size: u16, base: u16) -> Self {
        let file = tempfile::tempfile().expect("a temporary file");
        file.set_len(LEN).expect("its length");
        let region =
            Mapping::region(OwnedFd::from(file), 0, LEN, Gpa(BASE), FrontendVa(FRONTEND)).expect("a region");
        let memory = Arc::new(MemoryTable::new(vec![region]).expect("a table"));
        let Areas { descriptor: desc, driver: avail, device: used } = areas(&memory, size);
        avail.store_u16(IDX, base);
        used.store_u16(IDX, base);
        // The device is called unless a test says otherwise.
        avail.store_u16(layout::used_event(size), base);
        Self { memory, size, desc, avail, used, next_avail: base, next_used: base }
    }

    pub fn start(&self, features: u64) -> DeviceQueue {
        self.start_at(features, self.next_avail)
    }

    pub fn start_at(&self, features: u64, next_avail: u16) -> DeviceQueue {
        DeviceQueue::start(QueueConfig {
            size: self.size,
            features,
            areas: areas(&self.memory, self.size),
            memory: Arc::clone(&self.memory),
            resume: ResumeState { next_avail },
        })
        .expect("a queue")
    }

    pub fn set_descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let descriptor = Descriptor::new(addr, len, flags, next);
        let at = usize::from(index) * DESC_SIZE;
        self.desc.store_u64(at, descriptor.addr());
        let high = u64::from(descriptor.len()) | u64::from(flags) << 32 | u64::from(next) << 48;
        self.desc.store_u64(at + 8, high);
    }

    /// Makes the chain at `head` available.
    pub fn offer(&mut self, head: u16) {
        let slot = usize::from(self.next_avail % self.size);
        self.avail.store_u16(RING + slot * AVAIL_ENTRY, head);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.avail.store_u16_release(IDX, self.next_avail);
    }

    pub fn set_avail_idx(&self, idx: u16) {
        self.avail.store_u16_release(IDX, idx);
    }

    pub fn set_avail_flags(&self, flags: u16) {
        self.avail.store_u16(FLAGS, flags);
    }

    pub fn set_used_event(&self, event: u16) {
        self.avail.store_u16(layout::used_event(self.size), event);
    }

    pub fn used_idx(&self) -> u16 {
        self.used.load_u16_acquire(IDX)
    }

    pub fn used_flags(&self) -> u16 {
        self.used.load_u16(FLAGS)
    }

    pub fn avail_event(&self) -> u16 {
        self.used.load_u16(layout::avail_event(self.size))
    }

    /// The next used entry, if there is one: the chain's head and the bytes written.
    pub fn reclaim(&mut self) -> Option<(u32, u32)> {
        if self.used_idx() == self.next_used {
            return None;
        }
        let at = RING + usize::from(self.next_used % self.size) * USED_ENTRY;
        self.next_used = self.next_used.wrapping_add(1);
        Some((self.used.load_u32(at), self.used.load_u32(at + 4)))
    }

    /// Writes to the guest's memory.
    pub fn write(&self, addr: u64, bytes: &[u8]) {
        let mut list = ScatterList::with_capacity(1);
        list.bind(&self.memory);
        list.push(Gpa(addr), bytes.len() as u32).expect("in memory");
        assert_eq!(list.buf(0..list.len()).write(bytes), bytes.len());
    }

    /// Reads the guest's memory.
    pub fn read(&self, addr: u64, len: usize) -> Vec<u8> {
        let mut list = ScatterList::with_capacity(1);
        list.bind(&self.memory);
        list.push(Gpa(addr), len as u32).expect("in memory");
        let mut bytes = vec![0; len];
        assert_eq!(list.buf(0..list.len()).read(&mut bytes), len);
        bytes
    }

    /// All descriptors, byte for byte.
    pub fn descriptors(&self) -> Vec<u8> {
        self.read(BASE + DESC, usize::from(self.size) * DESC_SIZE)
    }
}

fn areas(memory: &MemoryTable, size: u16) -> Areas {
    let at = |offset| FrontendVa(FRONTEND + offset);
    Areas::resolve_split(memory, size, at(DESC), at(AVAIL), at(USED)).expect("areas")
}
