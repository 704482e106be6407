//! A split ring (2.7), by its definitions.

use ringway_queue::ResumeState;
use ringway_spec::feature::{RING_EVENT_IDX, RING_INDIRECT_DESC};
use ringway_spec::split::{
    self as layout, AVAIL_ENTRY, AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE,
    FLAGS, IDX, RING, USED_ENTRY, USED_F_NO_NOTIFY,
};

use super::memory::{BASE, DESC, DEVICE, DRIVER, MAX_SIZE, Memory};
use super::{Buffer, Format, Found, Input, Malformed, Offer, Shape, descriptor, near, table_count};
use super::{device, driver};

pub(super) struct Split;

impl Format for Split {
    const FEATURES: u64 = 0;

    fn size(byte: u8) -> u16 {
        1 << (u32::from(byte) % (MAX_SIZE.ilog2() + 1))
    }

    fn bad_size(size: u16) -> u16 {
        if size > 2 { size - 1 } else { 0 }
    }

    fn state(_: u16, input: &mut Input<'_>) -> ResumeState {
        ResumeState::Split { next_avail: input.u16() }
    }

    fn in_flight(_: u16, state: ResumeState) -> Option<u16> {
        matches!(state, ResumeState::Split { .. }).then_some(0)
    }
}

fn start(state: ResumeState) -> u16 {
    let ResumeState::Split { next_avail } = state else { unreachable!("a state of a split queue") };
    next_avail
}

fn avail_entry(size: u16, index: u16) -> usize {
    DRIVER + RING + usize::from(index % size) * AVAIL_ENTRY
}

fn used_entry(size: u16, index: u16) -> usize {
    DEVICE + RING + usize::from(index % size) * USED_ENTRY
}

/// Whether an index that goes from `old` to `new` goes past `event` (2.7.7.2).
fn passes(event: u16, new: u16, old: u16) -> bool {
    event.wrapping_sub(old) < new.wrapping_sub(old)
}

fn set_descriptor(memory: &mut Memory, at: usize, (addr, len, is_writable): Buffer, next: Option<u16>) {
    let write = if is_writable { DESC_F_WRITE } else { 0 };
    let next_flag = if next.is_some() { DESC_F_NEXT } else { 0 };
    memory.set_descriptor(at, addr, len, write | next_flag, next.unwrap_or(0));
}

/// Reads the chain at `head`.
fn read_chain(
    memory: &Memory,
    shape: Shape,
    head: u16,
    mut push: impl FnMut(Buffer) -> Result<(), Malformed>,
) -> Result<(), Malformed> {
    let (mut table, mut count, mut index) = (DESC, shape.size, head);
    let mut left = count;
    let mut is_in_ring = true;
    loop {
        if left == 0 || index >= count {
            return Err(Malformed);
        }
        left -= 1;
        let at = table + usize::from(index) * DESC_SIZE;
        let (addr, len) = (memory.u64(at), memory.u32(at + 8));
        let (flags, next) = (memory.u16(at + 12), memory.u16(at + 14));
        if flags & DESC_F_INDIRECT != 0 {
            if !is_in_ring || !shape.has(RING_INDIRECT_DESC) || flags & DESC_F_NEXT != 0 {
                return Err(Malformed);
            }
            count = table_count(len)?;
            table = Memory::offset(addr, len.into()).ok_or(Malformed)?;
            (left, index, is_in_ring) = (count, 0, false);
            continue;
        }
        push((addr, len, flags & DESC_F_WRITE != 0))?;
        if flags & DESC_F_NEXT == 0 {
            return Ok(());
        }
        index = next;
    }
}

/// The device's half.
pub(super) struct Device {
    shape: Shape,
    next_avail: u16,
    /// The driver's index as it was seen last.
    avail_seen: u16,
    next_used: u16,
    published: u16,
}

impl device::Model for Device {
    type Format = Split;

    fn start(shape: Shape, state: ResumeState, memory: &mut Memory) -> Self {
        let next_avail = start(state);
        memory.expect(DEVICE + FLAGS, &[0; 2]);
        let used = memory.u16(DEVICE + IDX);
        Self { shape, next_avail, avail_seen: next_avail, next_used: used, published: used }
    }

    fn state(&self) -> ResumeState {
        ResumeState::Split { next_avail: self.next_avail }
    }

    fn look(&mut self, memory: &Memory) -> Result<usize, Malformed> {
        if self.avail_seen == self.next_avail {
            let idx = memory.u16(DRIVER + IDX);
            if idx.wrapping_sub(self.next_avail) > self.shape.size {
                return Err(Malformed);
            }
            self.avail_seen = idx;
        }
        Ok(self.avail_seen.wrapping_sub(self.next_avail).into())
    }

    fn has_available(&self, memory: &Memory) -> bool {
        self.avail_seen != self.next_avail || memory.u16(DRIVER + IDX) != self.next_avail
    }

    fn take(
        &mut self,
        memory: &Memory,
        _: u16,
        push: impl FnMut(Buffer) -> Result<(), Malformed>,
    ) -> Result<Option<Found>, Malformed> {
        let id = memory.u16(avail_entry(self.shape.size, self.next_avail));
        read_chain(memory, self.shape, id, push)?;
        self.next_avail = self.next_avail.wrapping_add(1);
        Ok(Some(Found { id, slots: 1 }))
    }

    fn rewind(&mut self, slots: u16) {
        self.next_avail = self.next_avail.wrapping_sub(slots);
    }

    fn has_completed(&self) -> bool {
        self.next_used != self.published
    }

    fn complete(&mut self, memory: &mut Memory, chain: Found, written: u32, is_merged: bool) {
        let index = if is_merged { self.published } else { self.next_used };
        let at = used_entry(self.shape.size, index);
        memory.expect(at, &u32::from(chain.id).to_le_bytes());
        memory.expect(at + 4, &written.to_le_bytes());
        self.next_used = self.next_used.wrapping_add(1);
    }

    fn publish(&mut self, memory: &mut Memory) -> Option<bool> {
        let old = std::mem::replace(&mut self.published, self.next_used);
        if old == self.next_used {
            return Some(false);
        }
        memory.expect(DEVICE + IDX, &self.next_used.to_le_bytes());
        Some(if self.shape.has(RING_EVENT_IDX) {
            passes(memory.u16(DRIVER + layout::used_event(self.shape.size)), self.next_used, old)
        } else {
            memory.u16(DRIVER + FLAGS) & AVAIL_F_NO_INTERRUPT == 0
        })
    }

    fn arm(&mut self, memory: &mut Memory) {
        if self.shape.has(RING_EVENT_IDX) {
            memory.expect(DEVICE + layout::avail_event(self.shape.size), &self.next_avail.to_le_bytes());
        } else {
            memory.expect(DEVICE + FLAGS, &[0; 2]);
        }
    }

    fn suppress(&mut self, memory: &mut Memory) {
        if !self.shape.has(RING_EVENT_IDX) {
            memory.expect(DEVICE + FLAGS, &USED_F_NO_NOTIFY.to_le_bytes());
        }
    }

    fn write_table(&self, memory: &mut Memory, offer: &Offer) {
        for i in 0..offer.count {
            let next = (i + 1 < offer.count).then_some(i + 1);
            set_descriptor(memory, offer.table() + usize::from(i) * DESC_SIZE, offer.buffer(i), next);
        }
    }

    fn offer(&mut self, memory: &mut Memory, offer: &Offer) -> bool {
        let size = self.shape.size;
        let idx = memory.u16(DRIVER + IDX);
        if idx.wrapping_sub(self.published) >= size {
            return false;
        }
        let first = u16::from(offer.place) % size;
        if offer.is_indirect {
            let at = DESC + usize::from(first) * DESC_SIZE;
            let (addr, len) = offer.table_buffer();
            memory.set_descriptor(at, addr, len, DESC_F_INDIRECT, 0);
        } else {
            let count = offer.count.min(size);
            for i in 0..count {
                let next = (i + 1 < count).then_some((first + i + 1) % size);
                let at = DESC + usize::from((first + i) % size) * DESC_SIZE;
                set_descriptor(memory, at, offer.buffer(i), next);
            }
        }
        memory.set_u16(avail_entry(size, idx), first);
        memory.set_u16(DRIVER + IDX, idx.wrapping_add(1));
        true
    }

    fn field(&mut self, memory: &mut Memory, [which, index, value]: [u8; 3]) {
        let size = self.shape.size;
        let at = descriptor(size, index);
        match which % 12 {
            0 => memory.set_u16(DRIVER + IDX, self.next_avail.wrapping_add(near(value))),
            1 => memory.set_u16(avail_entry(size, self.next_avail.wrapping_add(index.into())), near(value)),
            2 => memory.set_u16(DRIVER + FLAGS, value.into()),
            3 => memory.set_u16(DRIVER + layout::used_event(size), self.published.wrapping_add(near(value))),
            4 => memory.set_u16(DEVICE + IDX, self.published.wrapping_add(near(value))),
            5 => memory.set_u16(DEVICE + FLAGS, value.into()),
            6 => memory.set_u16(used_entry(size, index.into()), value.into()),
            7 => memory.set_u64(at, BASE + u64::from(value) * 32),
            8 => memory.set_u32(at + 8, u32::from(value) << (index % 4 * 8)),
            9 => memory.set_u16(at + 12, value.into()),
            10 => memory.set_u16(at + 12, memory.u16(at + 12) ^ u16::from(value)),
            _ => memory.set_u16(at + 14, near(value)),
        }
    }
}

/// The driver's half, and the device that it is up against.
pub(super) struct Driver {
    shape: Shape,
    next_avail: u16,
    published: u16,
    next_used: u16,
    /// The next entry of the available ring that the device reads.
    next_taken: u16,
    /// Descriptors of chains in flight, by bits.
    lent: u64,
}

impl driver::Model for Driver {
    type Format = Split;

    fn start(shape: Shape, state: ResumeState) -> Self {
        let at = start(state);
        Self { shape, next_avail: at, published: at, next_used: at, next_taken: at, lent: 0 }
    }

    fn is_free(&self, at: usize) -> bool {
        let entry = avail_entry(self.shape.size, self.next_avail);
        match at {
            DESC..DRIVER => at / DESC_SIZE < self.shape.size.into() && self.lent >> (at / DESC_SIZE) & 1 == 0,
            _ => (entry..entry + AVAIL_ENTRY).contains(&at),
        }
    }

    fn add(&mut self, memory: &Memory, slots: u16) -> u64 {
        let mut index = memory.u16(avail_entry(self.shape.size, self.next_avail));
        self.next_avail = self.next_avail.wrapping_add(1);
        let mut descriptors = 0;
        for _ in 0..slots {
            assert!(index < self.shape.size, "no such descriptor");
            assert_eq!((self.lent | descriptors) >> index & 1, 0, "a descriptor is lent twice");
            descriptors |= 1 << index;
            index = memory.u16(DESC + usize::from(index) * DESC_SIZE + 14);
        }
        self.lent |= descriptors;
        descriptors
    }

    fn publish(&mut self, memory: &mut Memory) -> Option<bool> {
        let old = std::mem::replace(&mut self.published, self.next_avail);
        if old == self.next_avail {
            return Some(false);
        }
        memory.expect(DRIVER + IDX, &self.next_avail.to_le_bytes());
        Some(if self.shape.has(RING_EVENT_IDX) {
            passes(memory.u16(DEVICE + layout::avail_event(self.shape.size)), self.next_avail, old)
        } else {
            memory.u16(DEVICE + FLAGS) & USED_F_NO_NOTIFY == 0
        })
    }

    fn take(
        &mut self,
        memory: &Memory,
        _: u16,
        push: impl FnMut(Buffer) -> Result<(), Malformed>,
    ) -> (u16, Result<(), Malformed>) {
        let head = memory.u16(avail_entry(self.shape.size, self.next_taken));
        self.next_taken = self.next_taken.wrapping_add(1);
        (head, read_chain(memory, self.shape, head, push))
    }

    fn reclaimed(&mut self, _: u16, descriptors: u64) {
        self.lent &= !descriptors;
        self.next_used = self.next_used.wrapping_add(1);
    }

    fn arm(&mut self, memory: &mut Memory) {
        if self.shape.has(RING_EVENT_IDX) {
            memory.expect(DRIVER + layout::used_event(self.shape.size), &self.next_used.to_le_bytes());
        } else {
            memory.expect(DRIVER + FLAGS, &[0; 2]);
        }
    }

    fn suppress(&mut self, memory: &mut Memory) {
        if !self.shape.has(RING_EVENT_IDX) {
            memory.expect(DRIVER + FLAGS, &AVAIL_F_NO_INTERRUPT.to_le_bytes());
        }
    }

    fn tell(&mut self, memory: &mut Memory, id: u16, len: u32, chains: u16, _: u16) {
        let idx = memory.u16(DEVICE + IDX);
        let at = used_entry(self.shape.size, idx);
        memory.set_u32(at, id.into());
        memory.set_u32(at + 4, len);
        memory.set_u16(DEVICE + IDX, idx.wrapping_add(chains));
    }

    fn field(&mut self, memory: &mut Memory, [which, index, value]: [u8; 3]) {
        let size = self.shape.size;
        let entry = used_entry(size, self.next_used.wrapping_add((index % 8).into()));
        let at = descriptor(size, index);
        match which % 10 {
            0 => memory.set_u16(DEVICE + IDX, self.next_used.wrapping_add(near(value))),
            1 => memory.set_u16(DEVICE + IDX, self.published.wrapping_add(near(value))),
            2 => memory.set_u32(entry, u32::from(value) << (index / 64 * 8)),
            3 => memory.set_u32(entry + 4, u32::from(value) << (index / 64 * 8)),
            4 => memory.set_u16(DEVICE + FLAGS, value.into()),
            5 => memory.set_u16(DEVICE + layout::avail_event(size), self.published.wrapping_add(near(value))),
            6 => memory.set_u16(DRIVER + IDX, self.published.wrapping_add(near(value))),
            7 => memory.set_u16(avail_entry(size, self.published.wrapping_add(near(index))), near(value)),
            8 => memory.set_u16(at + 12, value.into()),
            _ => memory.set_u16(at + 14, near(value)),
        }
    }
}
