//! A driver's half of a packed ring. Positions run freely: a slot is a position modulo the size, and the lap
//! is even or odd. That is the definition which cursors are tested against.

use std::sync::Arc;

use ringway_memory::RingArea;
use ringway_queue::{Areas, Cursor, DeviceQueue, QueueConfig, ResumeState};
use ringway_spec::feature::RING_PACKED;
use ringway_spec::packed::{
    ADDR, DESC_F_AVAIL, DESC_F_NEXT, DESC_F_USED, DESC_F_WRITE, DESC_SIZE, EVENT_F_ENABLE, TAIL, tail,
    tail_flags, tail_id, tail_len,
};

use super::Guest;

/// Whose slot it is.
pub const LAP: u16 = DESC_F_AVAIL | DESC_F_USED;

/// A descriptor as it stands in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Desc {
    pub addr: u64,
    pub len: u32,
    pub id: u16,
    pub flags: u16,
}

/// What a used descriptor says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    pub id: u16,
    pub len: u32,
    /// WRITE: the length is that of what was written.
    pub has_written: bool,
}

/// The descriptor with which a chain of `id`, into which `len` bytes were written, is told to be used.
pub const fn used(id: u16, len: u32) -> Used {
    Used { id, len, has_written: len > 0 }
}

/// A buffer of a chain: address, length, flags without NEXT.
pub type Buffer = (u64, u32, u16);

pub struct Driver {
    pub guest: Guest,
    pub size: u16,
    ring: RingArea,
    /// Event suppression: whether calls are wanted, and whether kicks are.
    calls: RingArea,
    kicks: RingArea,
    /// The next slot to make available, and where the next used descriptor is expected.
    pub avail: u64,
    pub used: u64,
}

impl Driver {
    /// A ring of `size` slots after `position` of them went round, one by one.
    pub fn new(size: u16, position: u64) -> Self {
        Self::in_guest(Guest::new(), size, position)
    }

    /// The same in a guest that may have had a queue there before.
    pub fn in_guest(guest: Guest, size: u16, position: u64) -> Self {
        let Areas { descriptor: ring, driver: calls, device: kicks } = guest.areas(size, RING_PACKED);
        let driver = Self { guest, size, ring, calls, kicks, avail: position, used: position };
        driver.ask(0, EVENT_F_ENABLE);
        driver.kicks.store_u32(0, 0);
        for next in position..position + u64::from(size) {
            let flags = next.checked_sub(size.into()).map_or(0, |last| driver.used_flags(last));
            driver.set(next, Desc { flags, ..Desc::default() });
        }
        driver
    }

    pub fn start(&self, features: u64) -> DeviceQueue {
        self.start_at(features, self.avail, self.used)
    }

    pub fn start_at(&self, features: u64, avail: u64, used: u64) -> DeviceQueue {
        self.resume(features, self.state(avail, used))
    }

    pub fn resume(&self, features: u64, resume: ResumeState) -> DeviceQueue {
        let features = features | RING_PACKED;
        DeviceQueue::start(QueueConfig {
            size: self.size,
            features,
            areas: self.guest.areas(self.size, features),
            memory: Arc::clone(&self.guest.memory),
            used_log: self.guest.used_log,
            resume,
            inflight: None,
        })
        .expect("a queue")
    }

    pub fn state(&self, avail: u64, used: u64) -> ResumeState {
        ResumeState::Packed { avail: self.cursor(avail), used: self.cursor(used) }
    }

    pub fn cursor(&self, position: u64) -> Cursor {
        Cursor::new(self.slot(position), self.is_odd_lap(position))
    }

    pub fn slot(&self, position: u64) -> u16 {
        (position % u64::from(self.size)) as u16
    }

    /// Whether the position is in lap 1, 3, 5, …
    fn is_odd_lap(&self, position: u64) -> bool {
        (position / u64::from(self.size)).is_multiple_of(2)
    }

    pub fn available_flags(&self, position: u64) -> u16 {
        if self.is_odd_lap(position) { DESC_F_AVAIL } else { DESC_F_USED }
    }

    pub fn used_flags(&self, position: u64) -> u16 {
        if self.is_odd_lap(position) { LAP } else { 0 }
    }

    /// Writes a slot as it is given.
    pub fn set(&self, position: u64, desc: Desc) {
        let at = usize::from(self.slot(position)) * DESC_SIZE;
        self.ring.store_u64(at + ADDR, desc.addr);
        self.ring.store_u64_release(at + TAIL, tail(desc.len, desc.id, desc.flags));
    }

    pub fn desc(&self, position: u64) -> Desc {
        let at = usize::from(self.slot(position)) * DESC_SIZE;
        let tail = self.ring.load_u64_acquire(at + TAIL);
        let addr = self.ring.load_u64(at + ADDR);
        Desc { addr, len: tail_len(tail), id: tail_id(tail), flags: tail_flags(tail) }
    }

    /// All slots, from slot 0 on.
    pub fn ring(&self) -> Vec<Desc> {
        (0..self.size.into()).map(|slot| self.desc(slot)).collect()
    }

    /// Makes a chain available, the head last. Its ID stands in its last descriptor, something else in the
    /// others.
    pub fn offer(&mut self, id: u16, buffers: &[Buffer]) {
        for (i, (addr, len, flags)) in buffers.iter().enumerate().rev() {
            let at = self.avail + i as u64;
            let is_last = i + 1 == buffers.len();
            let (id, next) = if is_last { (id, 0) } else { (!id, DESC_F_NEXT) };
            let flags = flags | next | self.available_flags(at);
            self.set(at, Desc { addr: *addr, len: *len, id, flags });
        }
        self.avail += buffers.len() as u64;
    }

    /// The used descriptor where the next one is expected, if it is there.
    pub fn peek(&self) -> Option<Used> {
        let Desc { len, id, flags, .. } = self.desc(self.used);
        (flags & LAP == self.used_flags(self.used)).then_some(Used {
            id,
            len,
            has_written: flags & DESC_F_WRITE != 0,
        })
    }

    /// The same, and goes on by the chain's slots.
    pub fn reclaim(&mut self, slots: u64) -> Option<Used> {
        let used = self.peek()?;
        self.used += slots;
        Some(used)
    }

    /// Asks to be called, by the raw values.
    pub fn ask(&self, off_wrap: u16, flags: u16) {
        self.calls.store_u32(0, u32::from(off_wrap) | u32::from(flags) << 16);
    }

    /// How the device asks to be kicked: position and flags, raw.
    pub fn device_asks(&self) -> (u16, u16) {
        let word = self.kicks.load_u32(0);
        (word as u16, (word >> 16) as u16)
    }
}
