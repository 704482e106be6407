//! The other side of a half that is measured alone: as little as a ring can be served with, the same for all
//! contestants. It knows the chains beforehand, looks at no more than it must, and trusts.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};

use ringway_queue::Cursor;
use ringway_spec::{packed, split};

use crate::cell::{CHAINS, Cell};
use crate::memory::{Avail, BUFFER, Descriptor, Memory, Rings, SIZE, Used};

/// A driver for a device's half.
pub(crate) trait Driver {
    /// Makes the next burst available.
    fn offer(&mut self);
    /// Looks whether all of it was used.
    fn check(&mut self);
}

/// A device for a driver's half.
pub(crate) trait Device {
    /// Uses the burst that is available.
    fn serve(&mut self);
}

/// Address, length and WRITE flag of segment `i` of a chain whose buffers are at `at`: the first is to be read, the
/// others are to be written.
fn segment(at: u64, i: u16) -> (u64, u32, u16) {
    (at + u64::from(i) * BUFFER as u64, BUFFER as u32, if i > 0 { split::DESC_F_WRITE } else { 0 })
}

pub(crate) struct SplitDriver {
    avail: &'static Avail,
    used: &'static Used,
    burst: u16,
    idx: u16,
}

impl SplitDriver {
    /// Descriptors and available ring are written here, once and for all.
    pub(crate) fn new(memory: &'static Memory, rings: Rings, cell: Cell) -> Self {
        let descriptors = memory.at::<[Descriptor; SIZE]>(rings.descriptor);
        let avail = memory.at::<Avail>(rings.driver);
        let set = |descriptor: &Descriptor, (addr, len, flags): (u64, u32, u16), next: u16| {
            descriptor[0].store(addr, Relaxed);
            descriptor[1].store(u64::from(len) | u64::from(flags) << 32 | u64::from(next) << 48, Relaxed);
        };
        for chain in 0..CHAINS {
            let head = chain * cell.slots();
            let buffers = memory.alloc(usize::from(cell.segments) * BUFFER, BUFFER);
            let table = memory.alloc(size_of::<[Descriptor; 3]>(), BUFFER);
            for i in 0..cell.segments {
                let (addr, len, write) = segment(buffers, i);
                let next = if i + 1 < cell.segments { split::DESC_F_NEXT } else { 0 };
                if cell.indirect {
                    set(
                        &memory.at::<[Descriptor; 3]>(table)[usize::from(i)],
                        (addr, len, write | next),
                        i + 1,
                    );
                } else {
                    set(&descriptors[usize::from(head + i)], (addr, len, write | next), head + i + 1);
                }
            }
            if cell.indirect {
                let len = u32::from(cell.segments) * split::DESC_SIZE as u32;
                set(&descriptors[usize::from(head)], (table, len, split::DESC_F_INDIRECT), 0);
            }
            for lap in 0..SIZE as u16 / CHAINS {
                avail.ring[usize::from(lap * CHAINS + chain)].store(head, Relaxed);
            }
        }
        Self { avail, used: memory.at(rings.device), burst: cell.burst, idx: 0 }
    }
}

impl Driver for SplitDriver {
    #[inline]
    fn offer(&mut self) {
        self.idx = self.idx.wrapping_add(self.burst);
        self.avail.idx.store(self.idx, Release);
    }

    #[inline]
    fn check(&mut self) {
        assert_eq!(self.used.idx.load(Acquire), self.idx, "all was used");
    }
}

/// The device writes over the descriptors' lengths, IDs and flags, so they are made anew for each burst.
pub(crate) struct PackedDriver {
    ring: &'static [Descriptor; SIZE],
    /// Length and flags of a chain's descriptors.
    tails: Vec<u64>,
    burst: u16,
    next: Cursor,
    /// Where the burst begins.
    first: Cursor,
}

impl PackedDriver {
    pub(crate) fn new(memory: &'static Memory, rings: Rings, cell: Cell) -> Self {
        let ring = memory.at::<[Descriptor; SIZE]>(rings.descriptor);
        let entries = (0..cell.segments).map(|i| segment(0, i));
        for slot in ring {
            let buffers = memory.alloc(usize::from(cell.segments) * BUFFER, BUFFER);
            let table = memory.alloc(size_of::<[Descriptor; 3]>(), BUFFER);
            for ((offset, len, write), entry) in entries.clone().zip(memory.at::<[Descriptor; 3]>(table)) {
                entry[0].store(buffers + offset, Relaxed);
                entry[1].store(packed::tail(len, 0, write), Relaxed);
            }
            slot[0].store(if cell.indirect { table } else { buffers }, Relaxed);
        }
        let tails = if cell.indirect {
            let len = u32::from(cell.segments) * packed::DESC_SIZE as u32;
            vec![packed::tail(len, 0, packed::DESC_F_INDIRECT)]
        } else {
            let next = |i: u16| if i + 1 < cell.segments { packed::DESC_F_NEXT } else { 0 };
            entries.zip(0..).map(|((_, len, write), i)| packed::tail(len, 0, write | next(i))).collect()
        };
        Self { ring, tails, burst: cell.burst, next: Cursor::START, first: Cursor::START }
    }
}

impl Driver for PackedDriver {
    #[inline]
    fn offer(&mut self) {
        let mut at = self.next;
        for id in 0..self.burst {
            for rest in &self.tails {
                let tail = rest | packed::tail(0, id, at.available_flags());
                self.ring[usize::from(at.index()) % SIZE][1].store(tail, Release);
                at = at.advance(1, SIZE as u16);
            }
        }
        self.first = self.next;
        self.next = at;
    }

    #[inline]
    fn check(&mut self) {
        let tail = self.ring[usize::from(self.first.index()) % SIZE][1].load(Acquire);
        assert!(self.first.is_used(packed::tail_flags(tail)), "all was used");
    }
}

pub(crate) struct SplitDevice {
    avail: &'static Avail,
    used: &'static Used,
    idx: u16,
    written: u32,
}

impl SplitDevice {
    pub(crate) fn new(memory: &'static Memory, rings: Rings, cell: Cell) -> Self {
        Self {
            avail: memory.at(rings.driver),
            used: memory.at(rings.device),
            idx: 0,
            written: cell.written(),
        }
    }
}

impl Device for SplitDevice {
    #[inline]
    fn serve(&mut self) {
        let end = self.avail.idx.load(Acquire);
        while self.idx != end {
            let slot = usize::from(self.idx) % SIZE;
            let head = self.avail.ring[slot].load(Relaxed);
            self.used.ring[slot][0].store(head.into(), Relaxed);
            self.used.ring[slot][1].store(self.written, Relaxed);
            self.idx = self.idx.wrapping_add(1);
        }
        self.used.idx.store(end, Release);
    }
}

pub(crate) struct PackedDevice {
    ring: &'static [Descriptor; SIZE],
    cell: Cell,
    next: Cursor,
}

impl PackedDevice {
    pub(crate) fn new(memory: &'static Memory, rings: Rings, cell: Cell) -> Self {
        Self { ring: memory.at(rings.descriptor), cell, next: Cursor::START }
    }
}

impl Device for PackedDevice {
    #[inline]
    fn serve(&mut self) {
        let (slots, written, mut at) = (self.cell.slots(), self.cell.written(), self.next);
        for _ in 0..self.cell.burst {
            let last = at.advance(slots - 1, SIZE as u16);
            let id = packed::tail_id(self.ring[usize::from(last.index()) % SIZE][1].load(Acquire));
            let used = packed::tail(written, id, at.used_flags());
            self.ring[usize::from(at.index()) % SIZE][1].store(used, Release);
            at = at.advance(slots, SIZE as u16);
        }
        self.next = at;
    }
}
