//! A driver's half of a split ring.

use std::sync::Arc;

use ringway_memory::RingArea;
use ringway_queue::{Areas, DeviceQueue, QueueConfig, ResumeState};
use ringway_spec::split::{self as layout, AVAIL_ENTRY, DESC_SIZE, Descriptor, FLAGS, IDX, RING, USED_ENTRY};

use super::{BASE, DESC, Guest};

pub struct Driver {
    pub guest: Guest,
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
        Self::in_guest(Guest::new(), size, base)
    }

    /// The same in a guest that may have had a queue there before.
    pub fn in_guest(guest: Guest, size: u16, base: u16) -> Self {
        let Areas { descriptor: desc, driver: avail, device: used } = guest.areas(size, 0);
        avail.store_u16(FLAGS, 0);
        avail.store_u16(IDX, base);
        used.store_u16(FLAGS, 0);
        used.store_u16(IDX, base);
        // The device is called unless a test says otherwise.
        avail.store_u16(layout::used_event(size), base);
        Self { guest, size, desc, avail, used, next_avail: base, next_used: base }
    }

    pub fn start(&self, features: u64) -> DeviceQueue {
        self.start_at(features, self.next_avail)
    }

    pub fn start_at(&self, features: u64, next_avail: u16) -> DeviceQueue {
        DeviceQueue::start(QueueConfig {
            size: self.size,
            features,
            areas: self.guest.areas(self.size, 0),
            memory: Arc::clone(&self.guest.memory),
            used_log: self.guest.used_log,
            resume: ResumeState::Split { next_avail },
            inflight: None,
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
        let entry = self.used_entry(self.next_used);
        self.next_used = self.next_used.wrapping_add(1);
        Some(entry)
    }

    /// The used entry of an index, published or not.
    pub fn used_entry(&self, index: u16) -> (u32, u32) {
        let at = RING + usize::from(index % self.size) * USED_ENTRY;
        (self.used.load_u32(at), self.used.load_u32(at + 4))
    }

    pub fn set_used_entry(&self, index: u16, id: u32, len: u32) {
        let at = RING + usize::from(index % self.size) * USED_ENTRY;
        self.used.store_u32(at, id);
        self.used.store_u32(at + 4, len);
    }

    /// All descriptors, byte for byte.
    pub fn descriptors(&self) -> Vec<u8> {
        self.guest.read(BASE + DESC, usize::from(self.size) * DESC_SIZE)
    }
}
