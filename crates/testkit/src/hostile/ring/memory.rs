//! The memory of a guest, kept from one execution to the next, with a copy of what it is to hold.
//!
//! ```text
//! file   margin │ descriptors   driver   device     buffers │ buffers and tables │ margin
//!               │◄──────────────── one region ─────────────►│◄──── another ─────►│
//! ```
//!
//! The queue under test reaches it by a table of two regions that adjoin. The peer reaches all of the file, margins
//! included, and writes to the copy what it writes to the memory. Whatever differs after is the queue's doing.

use std::cell::Cell;
use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ringway_memory::{
    Access, BusAddr, FrontendVa, Gpa, GuestBuf, GuestSlice, Mapping, MemoryTable, RingArea, ScatterList,
};
use ringway_queue::Areas;
use rustix::fs::MemfdFlags;

/// Where the memory begins, the same for the guest and for its process.
pub(super) const BASE: u64 = 0x1_0000;
pub(super) const LEN: usize = 0x1800;
/// Length of each of the two regions.
pub(super) const REGION_LEN: usize = LEN / 2;

/// The largest queue: there is a bit for each of its descriptors in a word.
pub(super) const MAX_SIZE: u16 = 64;

/// Offsets of the areas, of a queue of the largest size, and of buffers and tables.
pub(super) const DESC: usize = 0;
pub(super) const DRIVER: usize = 0x400;
pub(super) const DEVICE: usize = 0x4a0;
pub(super) const BUFFERS: usize = 0x6c0;
pub(super) const TABLES: usize = REGION_LEN;

const MARGIN: usize = 64;
const FILE_LEN: usize = LEN + 2 * MARGIN;

thread_local! {
    /// Making one costs more than an execution.
    static KEPT: Cell<Option<Memory>> = const { Cell::new(None) };
}

pub(super) struct Memory {
    pub(super) table: Arc<MemoryTable>,
    /// The guest's memory, as two slices.
    guest: ScatterList,
    /// The file, as one slice.
    file: ScatterList,
    /// What the file is to hold.
    image: Box<[u8; FILE_LEN]>,
    /// What it holds.
    seen: Box<[u8; FILE_LEN]>,
}

impl Memory {
    /// All zeros.
    pub(super) fn take() -> Self {
        let mut memory = KEPT.take().unwrap_or_else(Self::new);
        memory.image.fill(0);
        memory.file().write(&*memory.image);
        memory
    }

    /// Leaves it to the next execution.
    pub(super) fn keep(self) {
        KEPT.set(Some(self));
    }

    fn new() -> Self {
        let file = File::from(rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd"));
        file.set_len(FILE_LEN as u64).expect("its length");
        let region = |offset: usize, len: usize, at: u64| {
            let fd = OwnedFd::from(file.try_clone().expect("a clone"));
            Mapping::region(fd, offset as u64, len as u64, Gpa(at), FrontendVa(at)).expect("a region")
        };
        let table = |regions| Arc::new(MemoryTable::new(regions).expect("a table"));
        let whole = table(vec![region(0, FILE_LEN, 0)]);
        let table = table(vec![
            region(MARGIN, REGION_LEN, BASE),
            region(MARGIN + REGION_LEN, REGION_LEN, BASE + REGION_LEN as u64),
        ]);
        let list = |table, at: u64, len: usize| {
            let mut list = ScatterList::with_capacity(2);
            list.bind(table);
            list.push(BusAddr(at), len as u32, Access::READ).expect("all of it");
            list
        };
        let (guest, file) = (list(&table, BASE, LEN), list(&whole, 0, FILE_LEN));
        let bytes = || Box::new([0; FILE_LEN]);
        Self { table, guest, file, image: bytes(), seen: bytes() }
    }

    fn file(&self) -> GuestBuf<'_> {
        self.file.buf_of_len(0..1, FILE_LEN)
    }

    pub(super) fn areas(&self, size: u16, features: u64) -> Areas {
        let at = |offset: usize| FrontendVa(BASE + offset as u64);
        Areas::resolve(&self.table, size, features, at(DESC), at(DRIVER), at(DEVICE)).expect("areas")
    }

    /// The second region, for indirect tables.
    pub(super) fn tables(&self) -> RingArea {
        self.table.area(FrontendVa(BASE + TABLES as u64), LEN - TABLES, 16).expect("an area")
    }

    /// Whether a slice is in the guest's memory.
    pub(super) fn contains(&self, slice: &GuestSlice<'_>) -> bool {
        let range = |s: &GuestSlice<'_>| (s.as_ptr() as usize, s.as_ptr() as usize + s.len());
        let (start, end) = range(slice);
        self.guest.slices(0..2).iter().map(range).any(|region| region.0 <= start && end <= region.1)
    }

    /// The offset of `len` bytes at `addr`, if they are in the guest's memory.
    pub(super) fn offset(addr: u64, len: u64) -> Option<usize> {
        let offset = addr.wrapping_sub(BASE);
        let end = offset.checked_add(len)?;
        (offset < LEN as u64 && end <= LEN as u64).then_some(offset as usize)
    }

    /// Writes to the memory; what goes past its end is cut off.
    pub(super) fn write(&mut self, at: usize, bytes: &[u8]) {
        let bytes = &bytes[..bytes.len().min(LEN.saturating_sub(at))];
        self.file().advance(MARGIN + at).write(bytes);
        self.expect(at, bytes);
    }

    /// Says what the queue under test is to have written.
    pub(super) fn expect(&mut self, at: usize, bytes: &[u8]) {
        self.image[MARGIN + at..][..bytes.len()].copy_from_slice(bytes);
    }

    /// Takes what is in the memory now for what is to be there.
    pub(super) fn accept(&mut self, range: Range<usize>) {
        let range = MARGIN + range.start..MARGIN + range.end;
        self.file.buf_of_len(0..1, FILE_LEN).advance(range.start).read(&mut self.image[range]);
    }

    /// The memory is what it is to be, to the byte.
    pub(super) fn check(&mut self) {
        self.check_except(|_| false);
    }

    /// The same, where it need not be; what is there is accepted.
    pub(super) fn check_except(&mut self, may_differ: impl Fn(usize) -> bool) {
        self.file.buf_of_len(0..1, FILE_LEN).read(&mut *self.seen);
        if self.seen == self.image {
            return;
        }
        // By words, for there are many of them.
        let (seen, image) = (self.seen.as_chunks().0, self.image.as_chunks().0);
        let differs = |(a, b): (&[u8; 16], &[u8; 16])| u128::from_ne_bytes(*a) != u128::from_ne_bytes(*b);
        let words = seen.iter().zip(image).map(differs);
        for (word, _) in words.enumerate().filter(|(_, differs)| *differs) {
            for at in word * 16..(word + 1) * 16 {
                let (seen, image) = (self.seen[at], self.image[at]);
                let is_guests = (MARGIN..MARGIN + LEN).contains(&at);
                assert!(
                    seen == image || is_guests && may_differ(at - MARGIN),
                    "{seen:#x} and not {image:#x} at offset {at:#x} of the file",
                );
            }
        }
        std::mem::swap(&mut self.seen, &mut self.image);
    }

    /// Writes a descriptor: both formats have address and length, and two more half-words.
    pub(super) fn set_descriptor(&mut self, at: usize, addr: u64, len: u32, a: u16, b: u16) {
        let tail = u64::from(len) | u64::from(a) << 32 | u64::from(b) << 48;
        self.write(at, &(u128::from(addr) | u128::from(tail) << 64).to_le_bytes());
    }

    pub(super) fn array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut array = [0; N];
        array.copy_from_slice(&self.image[MARGIN + at..][..N]);
        array
    }

    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.image[MARGIN + range.start..MARGIN + range.end]
    }

    pub(super) fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.array(at))
    }

    pub(super) fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.array(at))
    }

    pub(super) fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.array(at))
    }

    pub(super) fn set_u16(&mut self, at: usize, value: u16) {
        self.write(at, &value.to_le_bytes());
    }

    pub(super) fn set_u32(&mut self, at: usize, value: u32) {
        self.write(at, &value.to_le_bytes());
    }

    pub(super) fn set_u64(&mut self, at: usize, value: u64) {
        self.write(at, &value.to_le_bytes());
    }
}
