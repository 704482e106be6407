//! A packed ring (2.8), by its definitions.
//!
//! Positions run freely: a slot is a position modulo the size, the wrap counter is 1 in every other lap.

use ringway_queue::{Cursor, ResumeState};
use ringway_spec::feature::{RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED};
use ringway_spec::packed::{
    DESC_F_AVAIL, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_USED, DESC_F_WRITE, DESC_SIZE, EVENT_F_DESC,
    EVENT_F_DISABLE, EVENT_F_ENABLE, EVENT_F_MASK, TAIL, tail, tail_flags, tail_id, tail_len,
};

use super::memory::{BASE, DESC, DEVICE, DRIVER, MAX_SIZE, Memory};
use super::{
    Buffer, Format, Found, Input, MAX_CHAIN, Malformed, Offer, Shape, descriptor, near, table_count,
};
use super::{device, driver};

/// Whose slot it is.
const LAP: u16 = DESC_F_AVAIL | DESC_F_USED;

pub(super) struct Packed;

impl Format for Packed {
    const FEATURES: u64 = RING_PACKED;

    fn size(byte: u8) -> u16 {
        u16::from(byte) % MAX_SIZE + 1
    }

    fn bad_size(_: u16) -> u16 {
        0
    }

    fn state(size: u16, input: &mut Input<'_>) -> ResumeState {
        let [used, distance, how] = input.array();
        let index = u16::from(used) % (size + 1);
        let used = Cursor::new(index, how & 1 == 0);
        let at = index + u16::from(distance) % (size + 2);
        let avail = Cursor::new(at % (size + 1), used.wrap() ^ (at > size) ^ (how & 2 != 0));
        ResumeState::Packed { avail, used }
    }

    fn in_flight(size: u16, state: ResumeState) -> Option<u16> {
        let ResumeState::Packed { avail, used } = state else { return None };
        if avail.index() >= size || used.index() >= size {
            return None;
        }
        let in_flight = match (avail.wrap() == used.wrap(), avail.index().checked_sub(used.index())) {
            (true, distance) => distance?,
            (false, Some(0)) => size,
            (false, Some(_)) => return None,
            (false, None) => size - (used.index() - avail.index()),
        };
        Some(in_flight)
    }
}

/// Positions of a ring of some size.
#[derive(Clone, Copy)]
struct Laps {
    size: u64,
}

impl Laps {
    fn of(shape: Shape) -> Self {
        Self { size: shape.size.into() }
    }

    /// The first position with this slot and wrap counter.
    fn position(self, cursor: Cursor) -> u64 {
        u64::from(cursor.index()) + if cursor.wrap() { 0 } else { self.size }
    }

    fn cursor(self, position: u64) -> Cursor {
        Cursor::new((position % self.size) as u16, self.is_odd(position))
    }

    /// Whether two positions have one cursor. Only a driver that makes slots available which it has not seen used gets
    /// a device so far.
    fn is_same(self, a: u64, b: u64) -> bool {
        a.abs_diff(b).is_multiple_of(2 * self.size)
    }

    /// Whether the position is in lap 1, 3, 5, …
    fn is_odd(self, position: u64) -> bool {
        (position / self.size).is_multiple_of(2)
    }

    fn available(self, position: u64) -> u16 {
        if self.is_odd(position) { DESC_F_AVAIL } else { DESC_F_USED }
    }

    fn used(self, position: u64) -> u16 {
        if self.is_odd(position) { LAP } else { 0 }
    }

    /// The offset of the descriptor at a position.
    fn slot(self, position: u64) -> usize {
        DESC + (position % self.size) as usize * DESC_SIZE
    }

    /// Whether a notification is due when a side went from `old` to `new`, by what the other side wrote; `None` for
    /// what cannot be.
    fn wants(self, event: u32, shape: Shape, old: u64, new: u64) -> Option<bool> {
        match (event >> 16) as u16 & EVENT_F_MASK {
            EVENT_F_DISABLE => Some(false),
            EVENT_F_DESC if shape.has(RING_EVENT_IDX) => {
                let event = Cursor::from_off_wrap(event as u16);
                let is_possible = event.index() < shape.size && new - old <= self.size;
                is_possible.then(|| (old..new).any(|position| self.cursor(position) == event))
            }
            _ => Some(true),
        }
    }
}

fn event(flags: u16, off_wrap: u16) -> u32 {
    u32::from(off_wrap) | u32::from(flags) << 16
}

/// Reads the chain at a position, of at most `room` slots; its first descriptor is available.
fn read_chain(
    memory: &Memory,
    shape: Shape,
    position: u64,
    room: u16,
    mut push: impl FnMut(Buffer) -> Result<(), Malformed>,
) -> Result<Found, Malformed> {
    let laps = Laps::of(shape);
    for n in 0..room.min(MAX_CHAIN) {
        let position = position + u64::from(n);
        let at = laps.slot(position);
        let (addr, tail) = (memory.u64(at), memory.u64(at + TAIL));
        let (id, flags) = (tail_id(tail), tail_flags(tail));
        if flags & LAP != laps.available(position) {
            return Err(Malformed);
        }
        if flags & DESC_F_INDIRECT != 0 {
            if n > 0 || !shape.has(RING_INDIRECT_DESC) || flags & DESC_F_NEXT != 0 {
                return Err(Malformed);
            }
            let table = Memory::offset(addr, tail_len(tail).into()).ok_or(Malformed)?;
            for i in 0..table_count(tail_len(tail))? {
                let at = table + usize::from(i) * DESC_SIZE;
                let tail = memory.u64(at + TAIL);
                let is_writable = tail_flags(tail) & DESC_F_WRITE != 0 && !shape.reads_tables;
                push((memory.u64(at), tail_len(tail), is_writable))?;
            }
            return Ok(Found { id, slots: 1 });
        }
        push((addr, tail_len(tail), flags & DESC_F_WRITE != 0))?;
        if flags & DESC_F_NEXT == 0 {
            return Ok(Found { id, slots: n + 1 });
        }
    }
    Err(Malformed)
}

/// The device's half.
pub(super) struct Device {
    shape: Shape,
    laps: Laps,
    avail: u64,
    used: u64,
    published: u64,
    /// The used descriptor that is kept back, for the position published.
    first: u64,
    /// The event suppression as it was written last.
    wish: u32,
    /// The next position that the driver makes available.
    offered: u64,
}

impl Device {
    fn wish(&mut self, memory: &mut Memory, wish: u32) {
        if std::mem::replace(&mut self.wish, wish) != wish {
            memory.expect(DEVICE, &wish.to_le_bytes());
        }
    }
}

impl device::Model for Device {
    type Format = Packed;

    fn start(shape: Shape, state: ResumeState, memory: &mut Memory) -> Self {
        let ResumeState::Packed { used, .. } = state else { unreachable!("a state of a packed queue") };
        let in_flight = Packed::in_flight(shape.size, state).expect("a good state");
        let laps = Laps::of(shape);
        let used = laps.position(used);
        let avail = used + u64::from(in_flight);
        let wish = event(EVENT_F_ENABLE, 0);
        memory.expect(DEVICE, &wish.to_le_bytes());
        Self { shape, laps, avail, used, published: used, first: 0, wish, offered: avail }
    }

    fn state(&self) -> ResumeState {
        ResumeState::Packed { avail: self.laps.cursor(self.avail), used: self.laps.cursor(self.used) }
    }

    fn look(&mut self, _: &Memory) -> Result<usize, Malformed> {
        Ok(usize::MAX)
    }

    fn has_available(&self, memory: &Memory) -> bool {
        let tail = memory.u64(self.laps.slot(self.avail) + TAIL);
        tail_flags(tail) & LAP == self.laps.available(self.avail)
    }

    fn take(
        &mut self,
        memory: &Memory,
        room: u16,
        push: impl FnMut(Buffer) -> Result<(), Malformed>,
    ) -> Result<Option<Found>, Malformed> {
        if !self.has_available(memory) {
            return Ok(None);
        }
        let chain = read_chain(memory, self.shape, self.avail, room, push)?;
        self.avail += u64::from(chain.slots);
        Ok(Some(chain))
    }

    fn rewind(&mut self, slots: u16) {
        self.avail -= u64::from(slots);
    }

    fn has_completed(&self) -> bool {
        !self.laps.is_same(self.used, self.published)
    }

    fn complete(&mut self, memory: &mut Memory, chain: Found, written: u32, is_merged: bool) {
        let write = if written > 0 { DESC_F_WRITE } else { 0 };
        let position = if is_merged { self.published } else { self.used };
        let tail = tail(written, chain.id, self.laps.used(position) | write);
        if self.laps.is_same(position, self.published) {
            self.first = tail;
        } else {
            memory.expect(self.laps.slot(position) + TAIL, &tail.to_le_bytes());
        }
        self.used += u64::from(chain.slots);
    }

    fn publish(&mut self, memory: &mut Memory) -> Option<bool> {
        let old = std::mem::replace(&mut self.published, self.used);
        if self.laps.is_same(old, self.used) {
            return Some(false);
        }
        memory.expect(self.laps.slot(old) + TAIL, &self.first.to_le_bytes());
        self.laps.wants(memory.u32(DRIVER), self.shape, old, self.used)
    }

    fn arm(&mut self, memory: &mut Memory) {
        let wish = if self.shape.has(RING_EVENT_IDX) {
            event(EVENT_F_DESC, self.laps.cursor(self.avail).to_off_wrap())
        } else {
            event(EVENT_F_ENABLE, 0)
        };
        self.wish(memory, wish);
    }

    fn suppress(&mut self, memory: &mut Memory) {
        self.wish(memory, event(EVENT_F_DISABLE, 0));
    }

    fn write_table(&self, memory: &mut Memory, offer: &Offer) {
        for i in 0..offer.count {
            let (addr, len, is_writable) = offer.buffer(i);
            let flags = if is_writable { DESC_F_WRITE } else { 0 };
            memory.set_descriptor(offer.table() + usize::from(i) * DESC_SIZE, addr, len, 0, flags);
        }
    }

    fn offer(&mut self, memory: &mut Memory, offer: &Offer) -> bool {
        self.offered = self.offered.max(self.published);
        let slots = if offer.is_indirect { 1 } else { offer.count.min(self.shape.size) };
        if self.offered + u64::from(slots) > self.published + self.laps.size {
            return false;
        }
        let id = self.laps.cursor(self.offered).index();
        if offer.is_indirect {
            let (addr, len) = offer.table_buffer();
            let flags = self.laps.available(self.offered) | DESC_F_INDIRECT;
            memory.set_descriptor(self.laps.slot(self.offered), addr, len, id, flags);
        } else {
            for i in 0..slots {
                let (addr, len, is_writable) = offer.buffer(i);
                let position = self.offered + u64::from(i);
                let write = if is_writable { DESC_F_WRITE } else { 0 };
                let next = if i + 1 < slots { DESC_F_NEXT } else { 0 };
                let flags = self.laps.available(position) | write | next;
                memory.set_descriptor(self.laps.slot(position), addr, len, id, flags);
            }
        }
        self.offered += u64::from(slots);
        true
    }

    fn field(&mut self, memory: &mut Memory, [which, index, value]: [u8; 3]) {
        let position = self.avail + u64::from(index % 16);
        let slot = self.laps.slot(position);
        let at = if index < 128 { slot } else { descriptor(self.shape.size, index) };
        let whose = self.laps.available(position);
        match which % 12 {
            0 => memory.set_u16(DRIVER, self.laps.cursor(self.published + u64::from(index)).to_off_wrap()),
            1 => memory.set_u16(DRIVER + 2, (value % 4).into()),
            2 => memory.set_u16(DRIVER, near(value)),
            3 => memory.set_u16(DEVICE + usize::from(index & 2), value.into()),
            4 => memory.set_u64(at, BASE + u64::from(value) * 32),
            5 => memory.set_u32(at + TAIL, u32::from(value) << (index / 16 % 4 * 8)),
            6 => memory.set_u16(at + TAIL + 4, near(value)),
            7 => memory.set_u16(slot + TAIL + 6, whose | u16::from(value & 7)),
            8 => memory.set_u16(slot + TAIL + 6, whose ^ LAP),
            9 => memory.set_u16(slot + TAIL + 6, self.laps.used(position)),
            10 => memory.set_u16(at + TAIL + 6, memory.u16(at + TAIL + 6) ^ u16::from(value)),
            _ => self.offered = self.offered.saturating_add_signed(value.cast_signed().into()),
        }
    }
}

/// The driver's half, and the device that it is up against.
pub(super) struct Driver {
    shape: Shape,
    laps: Laps,
    avail: u64,
    published: u64,
    used: u64,
    wish: u32,
    /// The next position at which the device reads a chain, and where it writes the next used descriptor.
    taken: u64,
    told: u64,
}

impl Driver {
    fn wish(&mut self, memory: &mut Memory, wish: u32) {
        if std::mem::replace(&mut self.wish, wish) != wish {
            memory.expect(DRIVER, &wish.to_le_bytes());
        }
    }
}

impl driver::Model for Driver {
    type Format = Packed;

    fn start(shape: Shape, state: ResumeState) -> Self {
        let ResumeState::Packed { used, .. } = state else { unreachable!("a state of a packed queue") };
        let laps = Laps::of(shape);
        let at = laps.position(used);
        let wish = event(EVENT_F_ENABLE, 0);
        Self { shape, laps, avail: at, published: at, used: at, wish, taken: at, told: at }
    }

    fn is_free(&self, at: usize) -> bool {
        (self.avail..self.used + self.laps.size).any(|position| {
            let slot = self.laps.slot(position);
            (slot..slot + DESC_SIZE).contains(&at)
        })
    }

    fn add(&mut self, _: &Memory, slots: u16) -> u64 {
        self.avail += u64::from(slots);
        // Slots are free in the order of the ring, whichever chain was used.
        0
    }

    fn publish(&mut self, memory: &mut Memory) -> Option<bool> {
        let old = std::mem::replace(&mut self.published, self.avail);
        if old == self.avail {
            return Some(false);
        }
        let head = self.laps.slot(old) + TAIL;
        memory.accept(head..head + 8);
        self.laps.wants(memory.u32(DEVICE), self.shape, old, self.avail)
    }

    fn take(
        &mut self,
        memory: &Memory,
        slots: u16,
        push: impl FnMut(Buffer) -> Result<(), Malformed>,
    ) -> (u16, Result<(), Malformed>) {
        let first = self.taken;
        self.taken += u64::from(slots);
        match read_chain(memory, self.shape, first, slots, push) {
            Ok(chain) => (chain.id, Ok(())),
            Err(malformed) => (0, Err(malformed)),
        }
    }

    fn reclaimed(&mut self, slots: u16, _: u64) {
        self.used += u64::from(slots);
    }

    fn arm(&mut self, memory: &mut Memory) {
        let wish = if self.shape.has(RING_EVENT_IDX) {
            event(EVENT_F_DESC, self.laps.cursor(self.used).to_off_wrap())
        } else {
            event(EVENT_F_ENABLE, 0)
        };
        self.wish(memory, wish);
    }

    fn suppress(&mut self, memory: &mut Memory) {
        self.wish(memory, event(EVENT_F_DISABLE, 0));
    }

    fn tell(&mut self, memory: &mut Memory, id: u16, len: u32, _: u16, slots: u16) {
        let write = if len > 0 { DESC_F_WRITE } else { 0 };
        let word = tail(len, id, self.laps.used(self.told) | write);
        memory.set_u64(self.laps.slot(self.told) + TAIL, word);
        self.told += u64::from(slots);
    }

    fn field(&mut self, memory: &mut Memory, [which, index, value]: [u8; 3]) {
        let position = self.used + u64::from(index % 8);
        let at = self.laps.slot(position) + TAIL;
        match which % 10 {
            0 => memory.set_u64(at, tail(index.into(), value.into(), self.laps.used(position))),
            1 => memory.set_u16(at + 4, near(value)),
            2 => memory.set_u32(at, u32::from(value) << (index / 64 * 8)),
            3 => memory.set_u16(at + 6, self.laps.used(position) | u16::from(value & 7)),
            4 => memory.set_u16(at + 6, self.laps.available(position) | u16::from(value & 7)),
            5 => memory.set_u16(at + 6, self.laps.used(position) ^ LAP),
            6 => memory.set_u16(DEVICE, self.laps.cursor(self.published + u64::from(index)).to_off_wrap()),
            7 => memory.set_u16(DEVICE + 2, (value % 4).into()),
            8 => memory.set_u16(DRIVER + usize::from(index & 2), value.into()),
            _ => self.told = self.told.saturating_add_signed(value.cast_signed().into()),
        }
    }
}
