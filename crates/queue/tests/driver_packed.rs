//! The driver's half of a packed ring, with a device that is no more than stores to the areas. Positions run
//! freely: a slot is a position modulo the size, and the lap is even or odd.

mod common;

use std::collections::{HashSet, VecDeque};
use std::ops::Range;

use common::{BASE, DESC, DEVICE, DRIVER, FRONTEND, Guest};
use proptest::prelude::*;
use ringway_memory::{FrontendVa, Gpa, MemoryError, RingArea};
use ringway_queue::{
    AddError, Areas, ConfigError, Cursor, DriverConfig, DriverError, DriverQueue, IndirectTables, NotAdded,
    ResumeState, Segment, Used,
};
use ringway_spec::feature::{IN_ORDER, ORDER_PLATFORM, RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED};
use ringway_spec::packed::{
    self as layout, ADDR, DESC_F_AVAIL, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_USED, DESC_F_WRITE, DESC_SIZE,
    EVENT_F_DESC, EVENT_F_DISABLE, EVENT_F_ENABLE, TAIL, tail, tail_flags, tail_id, tail_len,
};

/// Where indirect tables are.
const TABLES: u64 = 0x10_0000;

/// The flags that say whose slot it is.
const LAP: u16 = DESC_F_AVAIL | DESC_F_USED;

const SIZES: [u16; 7] = [1, 2, 3, 5, 7, 8, 256];

/// Positions at which a ring of that size begins, so that it wraps now, soon, or not.
fn starts(size: u16) -> impl Iterator<Item = u64> {
    let lap = u64::from(size);
    (0..2 * lap).filter(move |at| lap < 10 || (at + 2) % lap < 4)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Desc {
    addr: u64,
    len: u32,
    id: u16,
    flags: u16,
}

impl Desc {
    /// Its flags without those that say whose slot it is.
    fn kind(self) -> u16 {
        self.flags & !LAP
    }
}

/// The areas as the device has them.
struct Device {
    guest: Guest,
    size: u16,
    ring: RingArea,
    call_event: RingArea,
    kick_event: RingArea,
    /// The next slot to take, and the next to write a used descriptor to.
    avail: u64,
    used: u64,
}

/// A chain as the device finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chain {
    at: u64,
    id: u16,
    descs: Vec<Desc>,
}

impl Chain {
    fn slots(&self) -> Range<u64> {
        self.at..self.at + self.descs.len() as u64
    }
}

impl Device {
    fn new(guest: &Guest, size: u16, start: u64) -> Self {
        let Areas { descriptor: ring, driver: call_event, device: kick_event } =
            guest.areas(size, RING_PACKED);
        Self { guest: guest.clone(), size, ring, call_event, kick_event, avail: start, used: start }
    }

    fn cursor(&self, position: u64) -> Cursor {
        cursor(self.size, position)
    }

    fn slot(&self, position: u64) -> usize {
        (position % u64::from(self.size)) as usize * DESC_SIZE
    }

    fn is_odd_lap(&self, position: u64) -> bool {
        (position / u64::from(self.size)).is_multiple_of(2)
    }

    /// The flags of a slot that is available in the lap of `position`, and of one that is used.
    fn available(&self, position: u64) -> u16 {
        if self.is_odd_lap(position) { DESC_F_AVAIL } else { DESC_F_USED }
    }

    fn used(&self, position: u64) -> u16 {
        if self.is_odd_lap(position) { LAP } else { 0 }
    }

    fn desc(&self, position: u64) -> Desc {
        let at = self.slot(position);
        let tail = self.ring.load_u64_acquire(at + TAIL);
        let addr = self.ring.load_u64(at + ADDR);
        Desc { addr, len: tail_len(tail), id: tail_id(tail), flags: tail_flags(tail) }
    }

    fn is_available(&self, position: u64) -> bool {
        self.desc(position).flags & LAP == self.available(position)
    }

    /// The chain at a position, if it was made available: descriptor after descriptor while NEXT is set, each
    /// of them available too; the last tells the ID.
    fn chain(&self, at: u64) -> Option<Chain> {
        let mut descs = Vec::new();
        loop {
            let position = at + descs.len() as u64;
            if !self.is_available(position) {
                assert!(descs.is_empty(), "the chain at {at} goes on where nothing is");
                return None;
            }
            let desc = self.desc(position);
            descs.push(desc);
            if desc.flags & DESC_F_NEXT == 0 {
                return Some(Chain { at, id: desc.id, descs });
            }
            assert!(descs.len() < self.size.into(), "the chain at {at} does not end");
        }
    }

    fn take(&mut self) -> Option<Chain> {
        let chain = self.chain(self.avail)?;
        self.avail = chain.slots().end;
        Some(chain)
    }

    /// Writes a used descriptor where the driver expects it, and goes on `slots`.
    fn use_slots(&mut self, id: u16, len: u32, more_flags: u16, slots: usize) {
        let flags = self.used(self.used) | more_flags;
        self.ring.store_u64_release(self.slot(self.used) + TAIL, tail(len, id, flags));
        self.used += slots as u64;
    }

    fn use_chain(&mut self, chain: &Chain, len: u32) {
        let write = if len > 0 { DESC_F_WRITE } else { 0 };
        self.use_slots(chain.id, len, write, chain.descs.len());
    }

    /// The descriptors in a table of the guest's memory.
    fn table(&self, addr: u64, len: u32) -> Vec<Desc> {
        let bytes = self.guest.read(addr, len as usize);
        let (entries, rest) = bytes.as_chunks::<DESC_SIZE>();
        assert!(rest.is_empty());
        let words = entries.iter().map(|e| u128::from_le_bytes(*e));
        words
            .map(|e| (e as u64, (e >> 64) as u64))
            .map(|(addr, tail)| Desc {
                addr,
                len: tail_len(tail),
                id: tail_id(tail),
                flags: tail_flags(tail),
            })
            .collect()
    }

    /// How the device asks for kicks, raw.
    fn ask(&self, off_wrap: u16, flags: u16) {
        self.kick_event.store_u32(0, u32::from(off_wrap) | u32::from(flags) << 16);
    }

    /// How the driver asks for calls: position and flags.
    fn asked(&self) -> (u16, u16) {
        let word = self.call_event.load_u32(0);
        (word as u16, (word >> 16) as u16)
    }
}

fn cursor(size: u16, position: u64) -> Cursor {
    let lap = u64::from(size);
    Cursor::new((position % lap) as u16, (position / lap).is_multiple_of(2))
}

struct Setup {
    size: u16,
    features: u64,
    start: u64,
    max_chain: u16,
    /// Entries of a table; 0 is none.
    table: u16,
}

fn setup(size: u16, features: u64) -> Setup {
    Setup { size, features: features | RING_PACKED, start: 0, max_chain: u16::MAX, table: 0 }
}

impl Setup {
    fn config(&self, guest: &Guest) -> DriverConfig {
        let tables = (self.table > 0).then(|| {
            let len = usize::from(self.size) * usize::from(self.table) * DESC_SIZE;
            let area = guest.memory.area(FrontendVa(FRONTEND + TABLES), len, 16).expect("room for tables");
            IndirectTables { area, addr: Gpa(BASE + TABLES), entries: self.table }
        });
        let start = cursor(self.size, self.start);
        DriverConfig {
            size: self.size,
            features: self.features,
            areas: guest.areas(self.size, self.features),
            start: ResumeState::Packed { avail: start, used: start },
            max_chain: self.max_chain,
            tables,
        }
    }

    fn on<T>(&self, guest: &Guest) -> (DriverQueue<T>, Device) {
        let queue = DriverQueue::new(self.config(guest)).expect("a queue");
        (queue, Device::new(guest, self.size, self.start))
    }

    fn queue<T>(&self) -> (DriverQueue<T>, Device) {
        self.on(&Guest::new())
    }
}

/// `n` segments, no two alike; the queue does not look at where they are.
fn segments(n: u16, salt: u64) -> Vec<Segment> {
    (0..u64::from(n))
        .map(|i| Segment { addr: Gpa(salt << 32 | i << 16), len: (salt * 100 + i + 1) as u32 })
        .collect()
}

fn len(segments: &[Segment]) -> u32 {
    segments.iter().map(|s| s.len).sum()
}

/// What the device is to find: address, length, and WRITE for the writable ones, which come last.
fn wanted(readable: &[Segment], writable: &[Segment]) -> Vec<(u64, u32, u16)> {
    let readable = readable.iter().map(|s| (s.addr.0, s.len, 0));
    readable.chain(writable.iter().map(|s| (s.addr.0, s.len, DESC_F_WRITE))).collect()
}

#[test]
fn a_new_queue_finds_nothing_of_an_old_one() {
    let guest = Guest::new();
    for size in SIZES.into_iter().chain([32768]) {
        for start in starts(size) {
            guest.write(BASE, &vec![0xff; TABLES as usize]);
            let (mut queue, device) = Setup { start, ..setup(size, 0) }.on::<()>(&guest);
            // Each slot as the lap before left it: not available in this one, not used in this one.
            for position in start..start + u64::from(size) {
                let flags = device.desc(position).flags;
                assert_eq!(flags, LAP & !device.used(position), "{size} {start} {position}");
            }
            assert_eq!((device.call_event.load_u32(0), device.kick_event.load_u32(0)), (0, 0));
            assert_eq!((queue.size(), queue.free(), queue.in_flight()), (size, size, 0));
            assert_eq!((queue.has_used(), queue.reclaim()), (false, Ok(None)));
            // Behind the areas nothing was touched; the largest ring ends where the driver area begins.
            if size < 32768 {
                assert_eq!(guest.read(BASE + DESC + layout::desc_area_size(size) as u64, 64), [0xff; 64]);
            }
            assert_eq!(guest.read(BASE + DRIVER + 4, 64), [0xff; 64]);
            assert_eq!(guest.read(BASE + DEVICE + 4, 64), [0xff; 64]);
        }
    }
}

#[test]
fn what_cannot_be_a_queue_is_refused_and_touches_nothing() {
    let guest = Guest::new();
    guest.write(BASE, &vec![0xa5; TABLES as usize]);
    let before = guest.ring_bytes();
    let config = || Setup { table: 4, ..setup(8, RING_INDIRECT_DESC) }.config(&guest);
    let check = |config: DriverConfig, error: ConfigError| {
        assert_eq!(DriverQueue::<()>::new(config).err(), Some(error));
        assert_eq!(guest.ring_bytes(), before, "{error:?}");
    };
    for size in [0, 32769, 65535] {
        check(DriverConfig { size, ..config() }, ConfigError::BadPackedSize(size));
    }
    check(DriverConfig { size: 9, ..config() }, ConfigError::SmallArea { needed: 144, len: 128 });
    let at = |avail: u64, used: u64| ResumeState::Packed { avail: cursor(8, avail), used: cursor(8, used) };
    let outside = Cursor::new(8, true);
    for resume in [
        ResumeState::Split { next_avail: 0 },
        // Nothing can be in flight yet.
        at(1, 0),
        at(8, 0),
        at(0, 1),
        ResumeState::Packed { avail: outside, used: outside },
    ] {
        check(DriverConfig { start: resume, ..config() }, ConfigError::BadResume { size: 8, resume });
    }
    let tables = |len, addr| {
        let area = guest.memory.area(FrontendVa(FRONTEND + TABLES), len, 16).expect("an area");
        Some(IndirectTables { area, addr: Gpa(addr), entries: 4 })
    };
    let small = DriverConfig { tables: tables(8 * 64 - 16, BASE), ..config() };
    check(small, ConfigError::SmallArea { needed: 512, len: 496 });
    let high = u64::MAX - 511;
    check(DriverConfig { tables: tables(512, high), ..config() }, ConfigError::BadTables(Gpa(high)));
    let area = guest.memory.area(FrontendVa(FRONTEND + TABLES + 8), 512, 8).expect("an area");
    let odd = Some(IndirectTables { area, addr: Gpa(BASE), entries: 4 });
    check(DriverConfig { tables: odd, ..config() }, ConfigError::MisalignedArea { align: 16 });
    let ordered = DriverConfig { features: config().features | ORDER_PLATFORM, ..config() };
    check(ordered, ConfigError::OrderPlatform);
}

/// [DRV-PACKED-vq-01] Where addresses in the driver's process and for the device differ by whole pages.
#[test]
fn parts_that_are_not_aligned_are_refused() {
    let guest = Guest::new();
    for (which, align) in [(0, layout::DESC_ALIGN), (1, layout::EVENT_ALIGN), (2, layout::EVENT_ALIGN)] {
        for off in 1..align {
            let mut at = [DESC, DRIVER, DEVICE].map(|area| FrontendVa(FRONTEND + area));
            at[which].0 += off;
            let areas = Areas::resolve(&guest.memory, 8, RING_PACKED, at[0], at[1], at[2]);
            assert_eq!(areas.err(), Some(MemoryError::Misaligned { addr: at[which], align }));
        }
    }
}

/// Adds a chain, looks at what the device sees of it, and gives it back.
fn round_trip(queue: &mut DriverQueue<u16>, device: &mut Device, (readable, writable): (u16, u16)) -> Chain {
    let n = readable + writable;
    let (readable, writable) = (segments(readable, 1), segments(writable, 2));
    let at = device.avail;
    queue.add(&readable, &writable, n).expect("room");
    assert_eq!(device.take(), None, "nothing is visible before publishing");
    let _ = queue.publish();
    let chain = device.take().expect("a chain");
    assert_eq!(chain.at, at);
    device.use_chain(&chain, 0);
    assert_eq!(queue.reclaim(), Ok(Some(Used { owner: n, written: 0 })));
    assert_eq!((queue.free(), queue.in_flight()), (queue.size(), 0));
    chain
}

/// [DRV-PACKED-scatter-gather-support-03] [DRV-PACKED-indirect-descriptors-01] A slot for each segment,
/// readable ones first, through both ends of the ring; and none is indirect, even if there is memory for
/// tables.
#[test]
fn a_chain_is_its_segments_in_their_order() {
    let guest = Guest::new();
    for size in SIZES {
        for start in starts(size) {
            for features in [0, IN_ORDER] {
                let (mut queue, mut device) = Setup { start, table: 8, ..setup(size, features) }.on(&guest);
                for n in (1..=size.min(8)).chain([size]) {
                    for writable in [0, n / 2, n] {
                        let chain = round_trip(&mut queue, &mut device, (n - writable, writable));
                        let found = chain.descs.iter().map(|d| (d.addr, d.len, d.kind() & !DESC_F_NEXT));
                        assert!(found.eq(wanted(&segments(n - writable, 1), &segments(writable, 2))));
                        if features == IN_ORDER {
                            assert_eq!(u64::from(chain.id), chain.at % u64::from(size));
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn the_largest_ring_goes_round() {
    let guest = Guest::new();
    for (start, n) in [(0, 32768), (32767, 32768), (65533, 7), (32768 - 7, 7), (65535, 1)] {
        let (mut queue, mut device) = Setup { start, ..setup(32768, 0) }.on(&guest);
        for _ in 0..3 {
            assert_eq!(round_trip(&mut queue, &mut device, (n - 1, 1)).descs.len(), n.into());
        }
    }
}

/// [DRV-PACKED-scatter-gather-support-06] All of a burst is written before the head of its first chain is: the
/// device, which looks there, sees the whole burst or nothing.
#[test]
fn the_first_head_is_written_last() {
    let guest = Guest::new();
    for size in [5, 7, 8] {
        for start in starts(size) {
            for lens in [&[1][..], &[3], &[2, 2], &[1, 1, 1, 1, 1], &[4, 1], &[1, 3]] {
                let (mut queue, mut device) = Setup { start, ..setup(size, 0) }.on(&guest);
                for n in lens {
                    queue.add(&segments(*n, 1), &[], ()).expect("room");
                    assert!(!device.is_available(start));
                }
                let end = start + u64::from(lens.iter().sum::<u16>());
                assert!((start + 1..end).all(|at| device.is_available(at)), "the rest is there");
                let _ = queue.publish();
                assert!((start..end).all(|at| device.is_available(at)));
                for n in lens {
                    assert_eq!(device.take().map(|chain| chain.descs.len()), Some((*n).into()));
                }
                assert_eq!(device.take(), None);
            }
        }
    }
}

/// [DRV-PACKED-indirect-descriptors-02] [DRV-PACKED-indirect-descriptors-04] A chain that fits is a table
/// with no flag but WRITE, and takes one slot; INDIRECT stands alone. Other chains are in the ring.
#[test]
fn a_chain_that_fits_a_table_takes_one_slot() {
    const TABLE: u16 = 5;
    let guest = Guest::new();
    for start in starts(8) {
        for features in [0, IN_ORDER, RING_EVENT_IDX] {
            let setup = Setup { start, table: TABLE, ..setup(8, features | RING_INDIRECT_DESC) };
            let (mut queue, mut device) = setup.on(&guest);
            for (n, writable) in (1..=8).flat_map(|n| (0..=n).map(move |writable| (n, writable))) {
                let wanted = wanted(&segments(n - writable, 1), &segments(writable, 2));
                let chain = round_trip(&mut queue, &mut device, (n - writable, writable));
                if n == 1 || n > TABLE {
                    assert!(chain.descs.iter().all(|desc| desc.flags & DESC_F_INDIRECT == 0));
                    assert!(chain.descs.iter().map(|d| (d.addr, d.len, d.kind() & !DESC_F_NEXT)).eq(wanted));
                } else {
                    assert_eq!(chain.descs.len(), 1);
                    let desc = chain.descs[0];
                    assert_eq!((desc.kind(), desc.len), (DESC_F_INDIRECT, u32::from(n) * 16));
                    let table = device.table(desc.addr, desc.len);
                    assert!(table.into_iter().map(|d| (d.addr, d.len, d.flags)).eq(wanted));
                }
            }
        }
    }
}

/// Chains in flight have a table each, inside of the memory given for them.
#[test]
fn tables_in_flight_do_not_overlap() {
    let guest = Guest::new();
    for features in [0, IN_ORDER] {
        let (mut queue, mut device) =
            Setup { table: 3, ..setup(7, features | RING_INDIRECT_DESC) }.on(&guest);
        for owner in 0..7 {
            queue.add(&segments(2, owner), &segments(1, owner + 8), owner).expect("room");
        }
        assert_eq!(queue.add(&segments(2, 0), &[], 8), Err(NotAdded { error: AddError::Full, owner: 8 }));
        let _ = queue.publish();
        let mut tables = Vec::new();
        for owner in 0..7 {
            let desc = device.take().expect("a chain").descs[0];
            assert_eq!(device.table(desc.addr, desc.len)[2].addr, segments(1, owner + 8)[0].addr.0);
            tables.push(desc.addr);
        }
        tables.sort_unstable();
        assert!(tables.iter().zip(0..).all(|(addr, i)| *addr == BASE + TABLES + i * 48));
    }
}

/// [DRV-PACKED-scatter-gather-support-01] [DRV-PACKED-scatter-gather-support-02]
/// [DRV-PACKED-indirect-descriptors-03] What a chain cannot be is refused with its owner, and leaves no
/// trace; tables make no chain longer.
#[test]
fn chains_that_cannot_be_are_refused() {
    let guest = Guest::new();
    let at = |len| Segment { addr: Gpa(BASE), len };
    for features in [0, RING_INDIRECT_DESC] {
        for (max_chain, max) in [(0, 0), (1, 1), (3, 3), (7, 7), (9, 7), (u16::MAX, 7)] {
            let (mut queue, device) = Setup { max_chain, table: 20, ..setup(7, features) }.on(&guest);
            let before = device.guest.ring_bytes();
            let mut refuse = |readable: &[Segment], writable: &[Segment], error| {
                assert_eq!(queue.add(readable, writable, "owner"), Err(NotAdded { error, owner: "owner" }));
                assert_eq!((queue.free(), queue.in_flight(), queue.publish()), (7, 0, false));
            };
            refuse(&[], &[], AddError::Empty);
            for len in max + 1..=20 {
                let error = AddError::TooLong { len: len.into(), max };
                for readable in 0..=len {
                    refuse(&segments(readable, 1), &segments(len - readable, 2), error);
                }
            }
            if max >= 2 {
                refuse(&[at(u32::MAX)], &[at(1)], AddError::TooManyBytes);
                refuse(&[], &[at(1 << 31), at(1 << 31)], AddError::TooManyBytes);
                assert_eq!(device.guest.ring_bytes(), before);
                assert_eq!(queue.add(&[at(u32::MAX - 1)], &[at(1)], "owner"), Ok(()));
            }
        }
    }
}

/// [DRV-PACKED-scatter-gather-support-04] [DRV-PACKED-scatter-gather-support-05] A chain for which there is
/// not room is not begun, whatever the device has used of the ring without the driver having taken it back.
#[test]
fn a_full_queue_takes_no_more_until_something_is_reclaimed() {
    let guest = Guest::new();
    for size in [1, 2, 5, 8] {
        for start in starts(size) {
            let (mut queue, mut device) = Setup { start, ..setup(size, 0) }.on(&guest);
            for owner in 0..size {
                queue.add(&segments(1, 1), &[], owner).expect("room");
                let before = device.guest.ring_bytes();
                for n in size - owner..=size {
                    let refused = queue.add(&segments(n, 2), &[], 99);
                    assert_eq!(refused.is_err(), n > size - owner - 1);
                    assert_eq!(refused, Err(NotAdded { error: AddError::Full, owner: 99 }));
                }
                assert_eq!(device.guest.ring_bytes(), before);
            }
            let _ = queue.publish();
            assert_eq!((queue.free(), queue.publish()), (0, false));
            let chain = device.take().expect("a chain");
            device.use_chain(&chain, 0);
            assert_eq!(queue.add(&segments(1, 2), &[], 99).map_err(|e| e.error), Err(AddError::Full));
            assert_eq!(queue.reclaim(), Ok(Some(Used { owner: 0, written: 0 })));
            assert_eq!(queue.add(&segments(1, 2), &[], 99), Ok(()));
        }
    }
}

/// Without `IN_ORDER` chains in flight have IDs of their own, below the size; with it that of their first slot.
#[test]
fn buffer_ids_tell_chains_apart() {
    let guest = Guest::new();
    for features in [0, IN_ORDER] {
        for start in starts(7) {
            let (mut queue, mut device) = Setup { start, ..setup(7, features) }.on(&guest);
            let mut in_flight: Vec<Chain> = Vec::new();
            for n in [1, 2, 3, 1, 1, 2, 2, 1, 3, 3, 1, 2, 1, 1, 1, 1].into_iter().cycle().take(100) {
                while queue.free() < n {
                    let which = if features == IN_ORDER { 0 } else { in_flight.len() / 2 };
                    device.use_chain(&in_flight.remove(which), 0);
                    assert!(queue.reclaim().expect("a good ring").is_some());
                }
                queue.add(&segments(n, 1), &[], ()).expect("room");
                let _ = queue.publish();
                in_flight.push(device.take().expect("a chain"));
                let ids: HashSet<u16> = in_flight.iter().map(|chain| chain.id).collect();
                assert_eq!(ids.len(), in_flight.len());
                assert!(ids.iter().all(|id| *id < 7));
                if features == IN_ORDER {
                    assert!(in_flight.iter().all(|chain| chain.at % 7 == chain.id.into()));
                }
            }
        }
    }
}

/// Every position of the ring as the one at which the device asks to be kicked, for every move of the driver:
/// a kick is due if a descriptor was made available there. Without `EVENT_IDX` positions mean nothing.
#[test]
fn events_say_whether_to_kick() {
    let guest = Guest::new();
    for size in [1, 2, 3, 5, 8] {
        for (start, burst) in starts(size).flat_map(|start| (0..=size).map(move |burst| (start, burst))) {
            let publish = |features, off_wrap, flags| {
                let (mut queue, device) = Setup { start, ..setup(size, features) }.on(&guest);
                device.ask(off_wrap, flags);
                // As chains of two as far as that goes: an event in the middle of a chain counts.
                for n in (0..burst).step_by(2).map(|at| (burst - at).min(2)) {
                    queue.add(&segments(n, 1), &[], ()).expect("room");
                }
                queue.publish()
            };
            for event in 0..2 * u64::from(size) {
                let off_wrap = cursor(size, event).to_off_wrap();
                let is_due = (start..start + u64::from(burst)).any(|at| at % (2 * u64::from(size)) == event);
                let what = format!("{size} {start} {burst} {event}");
                for reserved in [0, 0xfffc] {
                    let publish = |features, flags| publish(features, off_wrap, flags | reserved);
                    assert_eq!(publish(RING_EVENT_IDX, EVENT_F_DESC), is_due, "{what}");
                    assert_eq!(publish(0, EVENT_F_DESC), burst > 0, "{what}");
                    for features in [0, RING_EVENT_IDX] {
                        assert_eq!(publish(features, EVENT_F_ENABLE), burst > 0, "{what}");
                        assert!(!publish(features, EVENT_F_DISABLE), "{what}");
                        assert_eq!(publish(features, 3), burst > 0, "reserved: rather one too many; {what}");
                    }
                }
            }
        }
    }
}

/// A position that is not in the ring is no position that is passed, and does no harm.
#[test]
fn an_event_outside_of_the_ring_does_no_harm() {
    let guest = Guest::new();
    for size in [1, 5, 8] {
        for off in [size, 100, 0x7fff] {
            let (mut queue, mut device) = setup(size, RING_EVENT_IDX).on(&guest);
            for wrap in [0, 0x8000].into_iter().cycle().take(20) {
                device.ask(off | wrap, EVENT_F_DESC);
                round_trip(&mut queue, &mut device, (1, 0));
            }
        }
    }
}

/// [DRV-PACKED-desc-table-03] What a kick carries: where the next descriptor goes, published ones counted only.
#[test]
fn notification_data_names_the_next_slot() {
    let guest = Guest::new();
    for size in [1, 3, 7, 8] {
        for start in starts(size) {
            let (mut queue, mut device) = Setup { start, ..setup(size, 0) }.on(&guest);
            for n in (1..=size).cycle().take(20) {
                let next = device.cursor(device.avail);
                queue.add(&segments(n, 1), &[], ()).expect("room");
                let data = queue.notification_data(0x1234);
                assert_eq!((data.vqn, data.next), (0x1234, next.to_off_wrap()));
                let _ = queue.publish();
                let chain = device.take().expect("a chain");
                let next = device.cursor(chain.slots().end);
                let word = 0x1234 | u32::from(next.index()) << 16 | u32::from(next.wrap()) << 31;
                assert_eq!(queue.notification_data(0x1234).to_word(), word);
                device.use_chain(&chain, 0);
                assert!(queue.reclaim().expect("a good ring").is_some());
            }
        }
    }
}

#[test]
fn arming_and_suppressing_is_written() {
    let guest = Guest::new();
    for size in [1, 5, 8] {
        for start in starts(size) {
            for features in [0, RING_EVENT_IDX] {
                let (mut queue, mut device) = Setup { start, ..setup(size, features) }.on(&guest);
                assert_eq!(device.asked(), (0, EVENT_F_ENABLE));
                for n in (1..=size).cycle().take(12) {
                    let armed = match features {
                        0 => (0, EVENT_F_ENABLE),
                        _ => (device.cursor(device.used).to_off_wrap(), EVENT_F_DESC),
                    };
                    assert!(!queue.arm());
                    assert_eq!(device.asked(), armed);
                    queue.suppress();
                    assert_eq!(device.asked(), (0, EVENT_F_DISABLE));
                    queue.add(&segments(n, 1), &[], ()).expect("room");
                    let _ = queue.publish();
                    assert!(!queue.arm(), "with the device, not used");
                    let chain = device.take().expect("a chain");
                    device.use_chain(&chain, 0);
                    queue.suppress();
                    assert!(queue.arm(), "used before arming");
                    assert_eq!(device.asked(), armed);
                    assert!(queue.reclaim().expect("a good ring").is_some());
                }
            }
        }
    }
}

/// After a call for nothing there is nothing, and nothing changed.
#[test]
fn spurious_calls_find_nothing() {
    let guest = Guest::new();
    for features in [0, RING_EVENT_IDX, IN_ORDER] {
        for start in starts(4) {
            let (mut queue, mut device) = Setup { start, ..setup(4, features) }.on(&guest);
            let nothing = |queue: &mut DriverQueue<u8>, device: &Device| {
                let before = (device.guest.ring_bytes(), queue.free(), queue.in_flight());
                for _ in 0..3 {
                    assert_eq!((queue.has_used(), queue.reclaim()), (false, Ok(None)));
                }
                assert_eq!((device.guest.ring_bytes(), queue.free(), queue.in_flight()), before);
            };
            nothing(&mut queue, &device);
            queue.add(&segments(1, 1), &[], 1).expect("room");
            nothing(&mut queue, &device);
            let _ = queue.publish();
            nothing(&mut queue, &device);
            let chain = device.take().expect("a chain");
            device.use_chain(&chain, 0);
            assert_eq!(queue.reclaim(), Ok(Some(Used { owner: 1, written: 0 })));
            nothing(&mut queue, &device);
        }
    }
}

/// What was written is what the device says, and no more than there was room for; the other flags of a used
/// descriptor say nothing.
#[test]
fn lengths_are_those_of_the_device_but_bounded() {
    let guest = Guest::new();
    for features in [0, IN_ORDER, RING_INDIRECT_DESC] {
        let (mut queue, mut device) = Setup { table: 4, ..setup(8, features) }.on(&guest);
        for writable in [segments(0, 0), segments(1, 6), segments(2, 6)] {
            let room = len(&writable);
            for told in [0, 1, room / 2, room, room.saturating_add(1), u32::MAX] {
                for flags in [0, DESC_F_WRITE, DESC_F_NEXT, DESC_F_INDIRECT, !LAP] {
                    queue.add(&segments(1, 5), &writable, ()).expect("room");
                    let _ = queue.publish();
                    let chain = device.take().expect("a chain");
                    device.use_slots(chain.id, told, flags, chain.descs.len());
                    let written = told.min(room);
                    assert_eq!(queue.reclaim(), Ok(Some(Used { owner: (), written })));
                }
            }
        }
    }
}

/// Used descriptors stand one behind the other, each as many slots further as the chain before had: whatever
/// the chains, and whichever was used first.
#[test]
fn chains_come_back_in_the_order_they_were_used() {
    let guest = Guest::new();
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]] {
        for size in [7, 8] {
            for start in starts(size) {
                let (mut queue, mut device) = Setup { start, ..setup(size, 0) }.on(&guest);
                for round in 0..4 {
                    let lens = [1, 3, 2, 1];
                    for (owner, n) in lens.iter().enumerate() {
                        queue.add(&segments(n - 1, 1), &segments(1, 50), owner).expect("room");
                    }
                    let _ = queue.publish();
                    let chains = lens.map(|_| device.take().expect("a chain"));
                    for n in order {
                        device.use_chain(&chains[n], n as u32);
                    }
                    for owner in order {
                        assert!(queue.has_used());
                        let used = Some(Used { owner, written: owner as u32 });
                        assert_eq!(queue.reclaim(), Ok(used), "{round}");
                    }
                    assert_eq!((queue.has_used(), queue.free()), (false, size));
                }
            }
        }
    }
}

/// With `IN_ORDER` one used descriptor tells of a batch by its last chain: the others count as wholly used.
#[test]
fn one_used_descriptor_gives_back_a_batch() {
    let guest = Guest::new();
    for size in [8, 13] {
        for (start, table) in starts(size).flat_map(|start| [(start, 0), (start, 4)]) {
            let features = IN_ORDER | RING_INDIRECT_DESC;
            let (mut queue, mut device) = Setup { start, table, ..setup(size, features) }.on(&guest);
            let mut owner = 0;
            for batch in [1, 2, 3, 4, 1, 4, 4, 2, 3] {
                let room = |n: u16| len(&segments(n % 2, 9));
                let owners = owner..owner + batch;
                for n in owners.clone() {
                    queue.add(&segments(1, 8), &segments(n % 2, 9), n).expect("room");
                }
                let _ = queue.publish();
                let chains: Vec<Chain> = owners.clone().map(|_| device.take().expect("a chain")).collect();
                let last = chains.last().expect("a batch");
                let slots = chains.iter().map(|chain| chain.descs.len()).sum();
                device.use_slots(last.id, 3, 0, slots);
                for n in owners {
                    let written = if n + 1 == owner + batch { room(n).min(3) } else { room(n) };
                    assert!(queue.has_used());
                    assert_eq!(queue.reclaim(), Ok(Some(Used { owner: n, written })));
                }
                assert_eq!((queue.reclaim(), queue.free()), (Ok(None), size));
                owner += batch;
            }
        }
    }
}

/// A queue of 8 with chains of two in flight, after some went round.
fn with_three_in_flight(guest: &Guest, features: u64, start: u64) -> (DriverQueue<u16>, Device, [Chain; 3]) {
    let (mut queue, mut device) = Setup { start, ..setup(8, features) }.on(guest);
    for _ in 0..5 {
        round_trip(&mut queue, &mut device, (1, 0));
    }
    for owner in 10..13 {
        queue.add(&segments(1, 1), &segments(1, 2), owner).expect("room");
    }
    let _ = queue.publish();
    let chains = [(); 3].map(|()| device.take().expect("a chain"));
    (queue, device, chains)
}

/// The error is final, and the owners that did not come back are still there.
fn check_failed(mut queue: DriverQueue<u16>, error: DriverError, left: &[u16]) {
    for _ in 0..3 {
        assert_eq!(queue.reclaim(), Err(error));
        assert!(queue.has_used(), "who looks is to see the error");
    }
    assert_eq!(usize::from(queue.in_flight()), left.len());
    let mut owners = queue.reset(|| true).ok().expect("a reset");
    owners.sort_unstable();
    assert_eq!(owners, left);
}

#[test]
fn a_chain_that_is_not_in_flight_cannot_be_used() {
    let guest = Guest::new();
    for features in [0, IN_ORDER] {
        for start in starts(8) {
            let (_, _, chains) = with_three_in_flight(&guest, features, start);
            let lent = chains.each_ref().map(|chain| chain.id);
            for id in (0..10).chain([0x7fff, 0x8000, 0xffff]).filter(|id| !lent.contains(id)) {
                let (queue, mut device, _) = with_three_in_flight(&guest, features, start);
                device.use_slots(id, 0, 0, 2);
                check_failed(queue, DriverError::NotInFlight { id: id.into() }, &[10, 11, 12]);
            }
            // Nor can one be used twice.
            let (mut queue, mut device, chains) = with_three_in_flight(&guest, features, start);
            device.use_chain(&chains[0], 0);
            device.use_chain(&chains[0], 0);
            assert_eq!(queue.reclaim(), Ok(Some(Used { owner: 10, written: 0 })));
            check_failed(queue, DriverError::NotInFlight { id: chains[0].id.into() }, &[11, 12]);
        }
    }
}

/// Nor one that the device was not given yet: in the place of another, or after all others.
#[test]
fn a_chain_that_was_not_published_cannot_be_used() {
    let guest = Guest::new();
    for (features, start) in [0, IN_ORDER].into_iter().flat_map(|f| starts(8).map(move |start| (f, start))) {
        let with_one_more = || {
            let (mut queue, device, chains) = with_three_in_flight(&guest, features, start);
            queue.add(&segments(1, 1), &segments(1, 2), 13).expect("room");
            // Its head is held back, not its second descriptor.
            let hidden = device.desc(device.avail + 1).id;
            assert!(chains.iter().all(|chain| chain.id != hidden));
            (queue, device, chains, hidden)
        };
        let (queue, mut device, _, hidden) = with_one_more();
        device.use_slots(hidden, 0, 0, 2);
        check_failed(queue, DriverError::NotInFlight { id: hidden.into() }, &[10, 11, 12, 13]);

        let (mut queue, mut device, chains, hidden) = with_one_more();
        for chain in &chains {
            device.use_chain(chain, 0);
            assert!(queue.reclaim().expect("a good ring").is_some());
        }
        device.use_slots(hidden, 0, 0, 2);
        check_failed(queue, DriverError::NotInFlight { id: hidden.into() }, &[13]);
    }
}

/// The driver looks at the slot where the next used descriptor is to be, and at no other.
#[test]
fn a_used_descriptor_elsewhere_says_nothing() {
    let guest = Guest::new();
    for start in starts(8) {
        for ahead in 1..6 {
            let (mut queue, mut device, chains) = with_three_in_flight(&guest, 0, start);
            let next = device.used;
            device.used += ahead;
            device.use_chain(&chains[0], 0);
            assert_eq!((queue.has_used(), queue.reclaim()), (false, Ok(None)));
            // Nor does one of the lap before.
            device.used = next + 8;
            device.use_chain(&chains[0], 0);
            assert_eq!((queue.has_used(), queue.reclaim()), (false, Ok(None)));
        }
    }
}

/// [DRV-CORE-virtqueue-re-enable-01] After a reset the queue is set up anew, of another size and with other
/// features if that is wanted.
#[test]
fn another_queue_takes_the_place_of_one_that_was_reset() {
    let guest = Guest::new();
    for (size, features) in
        [(8, 0), (3, IN_ORDER), (64, RING_EVENT_IDX), (1, 0), (7, IN_ORDER | RING_EVENT_IDX)]
    {
        let (mut queue, mut device) = setup(size, features).on(&guest);
        assert_eq!(device.take(), None);
        assert_eq!((queue.free(), queue.has_used(), queue.reclaim()), (size, false, Ok(None)));
        for owner in 0..size {
            queue.add(&segments(1, owner.into()), &[], owner).expect("room");
        }
        assert!(queue.publish());
        for owner in 0..size {
            let chain = device.take().expect("a chain");
            assert_eq!(chain.descs[0].addr, segments(1, owner.into())[0].addr.0);
            if owner == 0 {
                device.use_chain(&chain, 0);
                assert_eq!(queue.reclaim(), Ok(Some(Used { owner, written: 0 })));
            }
        }
        let mut owners = queue.reset(|| true).ok().expect("a reset");
        owners.sort_unstable();
        assert!(owners.into_iter().eq(1..size));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// [DRV-PACKED-desc-table-01] [DRV-PACKED-desc-table-02] [DRV-CORE-device-cleanup-01] Whatever else goes
    /// on in a queue, what was made available stays as it is until it was used: its descriptors and its
    /// table, which no two chains share. The device may have overwritten slots with used descriptors; these
    /// are the driver's again only when it has seen them.
    #[test]
    fn exposed_chains_are_not_altered(
        features in prop::sample::select(vec![0, IN_ORDER, RING_INDIRECT_DESC, IN_ORDER | RING_INDIRECT_DESC]),
        size in 5u16..17,
        start in any::<prop::sample::Index>(),
        // Segments of a chain to add; the place in flight of one to use; nothing: one to reclaim.
        ops in prop::collection::vec(prop_oneof![
            4 => (1u16..6).prop_map(|n| Ok(Some(n))),
            3 => any::<prop::sample::Index>().prop_map(Err),
            3 => Just(Ok(None)),
        ], 1..200),
    ) {
        let start = start.index(2 * usize::from(size)) as u64;
        let (mut queue, mut device) = Setup { start, table: 3, ..setup(size, features) }.queue();
        let mut in_flight: Vec<(Chain, u64)> = Vec::new();
        let mut used = VecDeque::new();
        // The ring as it is to be: what the driver made available, what the device used.
        let mut ring: Vec<Desc> = (0..size).map(|slot| device.desc(slot.into())).collect();
        let mut reclaimed = start;
        for (op, salt) in ops.into_iter().zip(1..) {
            match op {
                Ok(Some(n)) => {
                    if queue.add(&segments(n, salt), &[], salt).is_ok() {
                        let _ = queue.publish();
                        let chain = device.take().expect("a chain");
                        prop_assert!(chain.slots().end - reclaimed <= size.into(), "over slots not reclaimed");
                        for (at, desc) in chain.slots().zip(&chain.descs) {
                            ring[(at % u64::from(size)) as usize] = *desc;
                        }
                        in_flight.push((chain, salt));
                    }
                }
                Err(which) if !in_flight.is_empty() => {
                    let which = if features & IN_ORDER != 0 { 0 } else { which.index(in_flight.len()) };
                    let (chain, owner) = in_flight.remove(which);
                    let at = device.used;
                    device.use_chain(&chain, 0);
                    ring[(at % u64::from(size)) as usize] = device.desc(at);
                    used.push_back((chain.descs.len() as u64, owner));
                }
                Ok(None) | Err(_) => {
                    let expected = used.pop_front().map(|(slots, owner)| {
                        reclaimed += slots;
                        Used { owner, written: 0 }
                    });
                    prop_assert_eq!(queue.reclaim(), Ok(expected));
                }
            }
            prop_assert!((0..size).all(|slot| device.desc(slot.into()) == ring[usize::from(slot)]));
            for (chain, salt) in &in_flight {
                let Desc { addr, len, flags, .. } = chain.descs[0];
                if flags & DESC_F_INDIRECT != 0 {
                    let table = device.table(addr, len);
                    let wanted = wanted(&segments(table.len() as u16, *salt), &[]);
                    prop_assert!(table.into_iter().map(|d| (d.addr, d.len, d.flags)).eq(wanted));
                }
            }
        }
    }

    /// A device that writes anything anywhere costs the queue: no panic, and every owner comes back once.
    #[test]
    fn a_hostile_device_loses_no_owner(
        features in prop::sample::subsequence(vec![IN_ORDER, RING_INDIRECT_DESC, RING_EVENT_IDX], 0..=3),
        size in 1u16..10,
        start in any::<prop::sample::Index>(),
        ops in prop::collection::vec((0u8..8, any::<u32>(), 0u16..11), 1..150),
    ) {
        let features = features.iter().fold(0, |all, one| all | one);
        let start = start.index(2 * usize::from(size)) as u64;
        let (mut queue, mut device) = Setup { start, table: 3, ..setup(size, features) }.queue();
        let (mut lent, mut back) = (0usize, Vec::new());
        for (op, any, small) in ops {
            match op {
                0 | 1 => {
                    let n = small % 4;
                    lent += usize::from(queue.add(&segments(n, 1), &segments(1, 2), lent).is_ok());
                }
                2 => drop(queue.publish()),
                3 => device.use_slots(small, any, 0, 1),
                4 => device.use_slots(small, any, any as u16 & !LAP, usize::from(small) / 3),
                5 => device.guest.write(BASE + DESC + u64::from(small) * 8, &any.to_le_bytes()),
                6 => device.guest.write(BASE + DEVICE, &any.to_le_bytes()),
                _ => while let Ok(Some(used)) = queue.reclaim() {
                    back.push(used.owner);
                },
            }
            prop_assert_eq!(usize::from(queue.in_flight()) + back.len(), lent);
            prop_assert!(queue.free() <= size);
        }
        back.extend(queue.reset(|| true).ok().expect("a reset"));
        back.sort_unstable();
        prop_assert!(back.into_iter().eq(0..lent));
    }
}
