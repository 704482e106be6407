//! Both halves of rings of both formats, each against a peer that writes what it likes where it likes.
//!
//! ```text
//!              input, one step after the other
//!               │                          │
//!   the peer: chains, fields,      the queue under test: take, complete,
//!   anything anywhere              add, publish, reclaim, stop, …
//!               │                          │
//!               ▼                          ▼
//!        copy of the memory  ≟  memory     results  ≟  model
//! ```
//!
//! The models answer by the format's definitions, one descriptor and one position at a time, and know nothing of
//! bursts and batches. After each step of the queue the memory is what the model says, to the byte.
//!
//! What the models do not have is other processors: who sees what when is for the models of the queue's own crate.

mod device;
mod driver;
mod memory;
mod packed;
mod pair;
mod split;

pub use device::{packed_device, split_device};
pub use driver::{packed_driver, split_driver};
pub use pair::pair;

use ringway_queue::ResumeState;
use ringway_spec::feature::{IN_ORDER, RING_EVENT_IDX, RING_INDIRECT_DESC};
use ringway_spec::split::DESC_SIZE;

use super::Input;
use memory::{BASE, BUFFERS, DESC, LEN, Memory, TABLES};

/// The most descriptors of a chain that a device takes.
const MAX_CHAIN: u16 = 1024;

/// What both sides of a ring know of it.
#[derive(Clone, Copy)]
struct Shape {
    size: u16,
    features: u64,
    /// The device takes all of a packed ring's tables for device-readable.
    reads_tables: bool,
}

impl Shape {
    fn new<F: Format>(input: &mut Input<'_>) -> Self {
        let [size, bits] = input.array();
        let optional = [RING_EVENT_IDX, RING_INDIRECT_DESC, IN_ORDER];
        let features = (0..).zip(optional).filter(|(bit, _)| bits >> bit & 1 != 0).map(|(_, f)| f);
        Self { size: F::size(size), features: F::FEATURES | features.sum::<u64>(), reads_tables: false }
    }

    fn has(self, feature: u64) -> bool {
        self.features & feature != 0
    }
}

/// A format of rings.
trait Format {
    const FEATURES: u64;

    /// A size of a queue, up to the largest that there is room for, by any byte.
    fn size(byte: u8) -> u16;

    /// A size that no queue can have whose areas are of this size.
    fn bad_size(size: u16) -> u16;

    /// Where a queue may be asked to go on.
    fn state(size: u16, input: &mut Input<'_>) -> ResumeState;

    /// How many slots are in flight if a queue goes on there, which it cannot everywhere.
    fn in_flight(size: u16, state: ResumeState) -> Option<u16>;
}

/// The peer has written what cannot be.
#[derive(Debug)]
struct Malformed;

/// A buffer of a chain: address, length, whether it is device-writable.
type Buffer = (u64, u32, bool);

/// A chain as it was found in a ring.
#[derive(Clone, Copy)]
struct Found {
    /// Its name in a used entry.
    id: u16,
    /// How many entries of the ring it takes.
    slots: u16,
}

/// A chain for the peer of a device to make available.
struct Offer {
    count: u16,
    /// How many of its buffers are device-writable; these come last.
    writable: u16,
    is_indirect: bool,
    /// Where descriptors, table and buffers are, more or less.
    place: u8,
    /// Length of a buffer in bytes.
    len: u8,
}

impl Offer {
    fn new(input: &mut Input<'_>, max: u8) -> Self {
        let [how, place, len] = input.array();
        Self {
            count: u16::from(how % max + 1),
            writable: u16::from(how >> 4 & 3),
            is_indirect: how & 0x40 != 0,
            place,
            len,
        }
    }

    /// Always inside the memory.
    fn buffer(&self, i: u16) -> Buffer {
        let at = usize::from(self.place) * 16 + usize::from(i) * usize::from(self.len);
        let addr = BASE + (BUFFERS + at % (LEN - BUFFERS - 255)) as u64;
        (addr, self.len.into(), i + self.writable >= self.count)
    }

    /// The offset of its table.
    fn table(&self) -> usize {
        (TABLES + usize::from(self.place) * DESC_SIZE / 2).min(LEN - usize::from(self.count) * DESC_SIZE)
    }

    /// Address and length of its table.
    fn table_buffer(&self) -> (u64, u32) {
        (BASE + self.table() as u64, u32::from(self.count) * DESC_SIZE as u32)
    }
}

/// The offset of descriptor `n`: of the ring for a small one, else of where tables are.
fn descriptor(size: u16, n: u8) -> usize {
    if n < 128 {
        DESC + usize::from(u16::from(n) % size) * DESC_SIZE
    } else {
        TABLES + usize::from(n - 128) * DESC_SIZE / 2
    }
}

/// A small number, half of the time negative.
fn near(value: u8) -> u16 {
    i16::from(value.cast_signed()).cast_unsigned()
}

/// Up to eight bytes anywhere.
fn scribble(memory: &mut Memory, input: &mut Input<'_>) {
    let at = usize::from(input.u16()) % LEN;
    let n = usize::from(input.u8() & 7) + 1;
    memory.write(at, input.bytes(n));
}

/// The number of entries of an indirect table of `len` bytes.
fn table_count(len: u32) -> Result<u16, Malformed> {
    let count = len / DESC_SIZE as u32;
    let is_good = len.is_multiple_of(DESC_SIZE as u32) && (1..=MAX_CHAIN.into()).contains(&count);
    if is_good { Ok(count as u16) } else { Err(Malformed) }
}
