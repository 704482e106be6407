//! The driver's half of a split ring, with a device that is no more than stores to the areas.

mod common;

use std::collections::{HashSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{BASE, DESC, DEVICE, DRIVER, FRONTEND, Guest};
use proptest::prelude::*;
use ringway_memory::{FrontendVa, Gpa, MemoryError, RingArea};
use ringway_queue::{
    AddError, Areas, ConfigError, Cursor, DriverConfig, DriverError, DriverQueue, IndirectTables, NotAdded,
    ResumeState, Segment, Used,
};
use ringway_spec::feature::{IN_ORDER, ORDER_PLATFORM, RING_EVENT_IDX, RING_INDIRECT_DESC};
use ringway_spec::split::{
    self as layout, AVAIL_ENTRY, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE, DESC_SIZE, FLAGS, IDX, RING,
    USED_ENTRY,
};

/// Where indirect tables are.
const TABLES: u64 = 0x10_0000;

/// Where the indices of a ring begin, so that they wrap now, soon, or not.
const STARTS: [u16; 6] = [0, 1, 1000, 65530, 65534, 65535];

/// A descriptor: address, length, flags, next.
type Desc = (u64, u32, u16, u16);

/// The areas as the device has them.
struct Device {
    guest: Guest,
    size: u16,
    desc: RingArea,
    avail: RingArea,
    used: RingArea,
    /// The next entry of the available ring to read, and of the used ring to write.
    next_avail: u16,
    next_used: u16,
}

impl Device {
    fn new(guest: &Guest, size: u16, start: u16) -> Self {
        let Areas { descriptor: desc, driver: avail, device: used } = guest.areas(size, 0);
        Self { guest: guest.clone(), size, desc, avail, used, next_avail: start, next_used: start }
    }

    fn avail_idx(&self) -> u16 {
        self.avail.load_u16_acquire(IDX)
    }

    /// The head at an index of the available ring.
    fn head(&self, index: u16) -> u16 {
        self.avail.load_u16(RING + usize::from(index % self.size) * AVAIL_ENTRY)
    }

    /// The next head, if the available index says so.
    fn take(&mut self) -> Option<u16> {
        if self.next_avail == self.avail_idx() {
            return None;
        }
        self.next_avail = self.next_avail.wrapping_add(1);
        Some(self.head(self.next_avail.wrapping_sub(1)))
    }

    fn desc(&self, index: u16) -> Desc {
        let at = usize::from(index) * DESC_SIZE;
        let high = self.desc.load_u64(at + 8);
        (self.desc.load_u64(at), high as u32, (high >> 32) as u16, (high >> 48) as u16)
    }

    /// The chain at a head, by the definition: index and descriptor, on and on while NEXT is set.
    fn chain(&self, head: u16) -> Vec<(u16, Desc)> {
        let mut chain = vec![(head, self.desc(head))];
        while let (_, (_, _, flags, next)) = chain[chain.len() - 1]
            && flags & DESC_F_NEXT != 0
        {
            assert!(chain.len() < usize::from(self.size), "the chain at {head} does not end");
            chain.push((next, self.desc(next)));
        }
        chain
    }

    /// The descriptors in a table of the guest's memory.
    fn table(&self, addr: u64, len: u32) -> Vec<Desc> {
        let bytes = self.guest.read(addr, len as usize);
        let (entries, rest) = bytes.as_chunks::<DESC_SIZE>();
        assert!(rest.is_empty());
        let words = entries.iter().map(|e| u128::from_le_bytes(*e));
        words.map(|e| (e as u64, (e >> 64) as u32, (e >> 96) as u16, (e >> 112) as u16)).collect()
    }

    /// Writes the next used entry and moves the index by `count`: more than one is a batch.
    fn use_batch(&mut self, id: u32, len: u32, count: u16) {
        let at = RING + usize::from(self.next_used % self.size) * USED_ENTRY;
        self.used.store_u32(at, id);
        self.used.store_u32(at + 4, len);
        self.next_used = self.next_used.wrapping_add(count);
        self.used.store_u16_release(IDX, self.next_used);
    }

    fn use_chain(&mut self, id: u16, len: u32) {
        self.use_batch(id.into(), len, 1);
    }

    /// How the device asks for kicks.
    fn ask(&self, flags: u16, avail_event: u16) {
        self.used.store_u16(FLAGS, flags);
        self.used.store_u16(layout::avail_event(self.size), avail_event);
    }

    /// How the driver asks for calls: flags and `used_event`.
    fn asked(&self) -> (u16, u16) {
        (self.avail.load_u16(FLAGS), self.avail.load_u16(layout::used_event(self.size)))
    }
}

struct Setup {
    size: u16,
    features: u64,
    start: u16,
    max_chain: u16,
    /// Entries of a table; 0 is none.
    table: u16,
}

fn setup(size: u16, features: u64) -> Setup {
    Setup { size, features, start: 0, max_chain: u16::MAX, table: 0 }
}

impl Setup {
    fn config(&self, guest: &Guest) -> DriverConfig {
        let tables = (self.table > 0).then(|| {
            let len = usize::from(self.size) * usize::from(self.table) * DESC_SIZE;
            let area = guest.memory.area(FrontendVa(FRONTEND + TABLES), len, 16).expect("room for tables");
            IndirectTables { area, addr: Gpa(BASE + TABLES), entries: self.table }
        });
        DriverConfig {
            size: self.size,
            features: self.features,
            areas: guest.areas(self.size, self.features),
            start: ResumeState::Split { next_avail: self.start },
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

/// [DRV-SPLIT-available-buffer-notification-suppression-01] The areas are initialised, whatever they were.
#[test]
fn a_new_queue_finds_nothing_of_an_old_one() {
    for (size, start) in [(1, 0), (8, 0), (8, 65535), (256, 77)] {
        let guest = Guest::new();
        guest.write(BASE, &vec![0xff; TABLES as usize]);
        let setup = Setup { start, ..setup(size, RING_EVENT_IDX) };
        let (mut queue, mut device) = setup.on::<()>(&guest);
        assert_eq!(device.avail_idx(), start);
        assert_eq!(device.asked(), (0, start), "no flags; a call for the first chain");
        assert_eq!(device.used.load_u16(FLAGS), 0);
        assert_eq!(device.used.load_u16(IDX), start);
        assert_eq!(device.used.load_u16(layout::avail_event(size)), start, "a kick for the first chain");
        assert_eq!((queue.size(), queue.free(), queue.in_flight()), (size, size, 0));
        assert_eq!((queue.has_used(), queue.reclaim()), (false, Ok(None)));
        assert_eq!(device.take(), None);
        // Behind the areas nothing was touched.
        for (at, len) in [
            (DESC, layout::desc_area_size(size)),
            (DRIVER, layout::avail_area_size(size)),
            (DEVICE, layout::used_area_size(size)),
        ] {
            assert_eq!(guest.read(BASE + at + len as u64, 64), [0xff; 64]);
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
    for size in [0, 3, 6, 65535] {
        check(DriverConfig { size, ..config() }, ConfigError::BadSplitSize(size));
    }
    check(DriverConfig { size: 16, ..config() }, ConfigError::SmallArea { needed: 256, len: 128 });
    let packed = ResumeState::Packed { avail: Cursor::START, used: Cursor::START };
    check(DriverConfig { start: packed, ..config() }, ConfigError::BadResume { size: 8, resume: packed });
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
    // Without the feature nobody asks for tables.
    let unused = DriverConfig { tables: tables(16, BASE), features: 0, ..config() };
    assert!(DriverQueue::<()>::new(unused).is_ok());
}

/// [DRV-SPLIT-vq-01] Where addresses in the driver's process and for the device differ by whole pages.
#[test]
fn parts_that_are_not_aligned_are_refused() {
    let guest = Guest::new();
    for (which, align) in [(0, layout::DESC_ALIGN), (1, layout::AVAIL_ALIGN), (2, layout::USED_ALIGN)] {
        for off in 1..align {
            let mut at = [DESC, DRIVER, DEVICE].map(|area| FrontendVa(FRONTEND + area));
            at[which].0 += off;
            let areas = Areas::resolve(&guest.memory, 8, 0, at[0], at[1], at[2]);
            assert_eq!(areas.err(), Some(MemoryError::Misaligned { addr: at[which], align }));
        }
    }
}

/// [DRV-SPLIT-message-framing-01] [DRV-SPLIT-message-framing-02] [DRV-SPLIT-indirect-descriptors-01]
/// A descriptor for each segment and no more: readable ones, then writable ones, linked, none twice; and none
/// is indirect, even if there is memory for tables.
#[test]
fn a_chain_is_its_segments_in_their_order() {
    let guest = Guest::new();
    for size in [1, 2, 4, 8, 64] {
        for start in STARTS {
            let setup = Setup { start, table: 8, ..setup(size, RING_EVENT_IDX) };
            let (mut queue, mut device) = setup.on(&guest);
            for n in 1..=size {
                for writable in 0..=n {
                    let (readable, writable) = (segments(n - writable, 1), segments(writable, 2));
                    queue.add(&readable, &writable, n).expect("room");
                    assert_eq!(device.take(), None, "nothing is visible before publishing");
                    assert_eq!((queue.free(), queue.in_flight()), (size - n, 1));
                    let _ = queue.publish();
                    let head = device.take().expect("a chain");
                    let chain = device.chain(head);
                    assert_eq!(chain.iter().map(|c| c.0).collect::<HashSet<_>>().len(), n.into());
                    let found =
                        chain.iter().map(|(_, (addr, len, flags, _))| (*addr, *len, flags & !DESC_F_NEXT));
                    assert!(found.eq(wanted(&readable, &writable)));
                    device.use_chain(head, 0);
                    assert_eq!(queue.reclaim(), Ok(Some(Used { owner: n, written: 0 })));
                    assert_eq!((queue.free(), queue.in_flight()), (size, 0));
                }
            }
        }
    }
}

/// [DRV-SPLIT-avail-ring-01] A burst becomes visible at once, and the index goes only forward, through its
/// wrap.
#[test]
fn a_burst_is_published_at_once() {
    let guest = Guest::new();
    for start in STARTS {
        let (mut queue, mut device) = Setup { start, ..setup(8, 0) }.on(&guest);
        let mut idx = start;
        for burst in (0..=8u16).cycle().take(40) {
            for owner in 0..burst {
                queue.add(&segments(1, owner.into()), &[], owner).expect("room");
                assert_eq!(device.avail_idx(), idx);
            }
            assert_eq!(queue.publish(), burst > 0, "no kick for nothing");
            assert_eq!(device.avail_idx().wrapping_sub(idx), burst);
            idx = device.avail_idx();
            assert!(!queue.publish(), "there is nothing new");
            assert_eq!(device.avail_idx(), idx);
            for owner in 0..burst {
                let head = device.take().expect("a chain");
                assert_eq!(device.desc(head).0, segments(1, owner.into())[0].addr.0);
                device.use_chain(head, 0);
            }
            for owner in 0..burst {
                assert_eq!(queue.reclaim(), Ok(Some(Used { owner, written: 0 })));
            }
        }
    }
}

/// [DRV-SPLIT-desc-table-02] With `IN_ORDER` chains lie one behind the other, round and round the table.
#[test]
fn in_order_chains_are_sequential() {
    let guest = Guest::new();
    for size in [1, 2, 8, 32] {
        for features in [IN_ORDER, IN_ORDER | RING_EVENT_IDX] {
            let (mut queue, mut device) = Setup { start: 65500, ..setup(size, features) }.on(&guest);
            let mut next = 0;
            for n in (1..=size).cycle().take(200) {
                queue.add(&segments(n, 3), &[], ()).expect("room");
                let _ = queue.publish();
                let head = device.take().expect("a chain");
                let chain = device.chain(head);
                assert_eq!(chain.len(), n.into());
                for (i, (index, (_, _, flags, link))) in chain.iter().enumerate() {
                    assert_eq!(*index, next);
                    next = if next == size - 1 { 0 } else { next + 1 };
                    if i + 1 < n.into() {
                        assert_eq!((*flags, *link), (DESC_F_NEXT, next));
                    }
                }
                device.use_chain(head, 0);
                assert!(queue.reclaim().expect("a good ring").is_some());
            }
        }
    }
}

/// [DRV-SPLIT-indirect-descriptors-02] [DRV-SPLIT-indirect-descriptors-04] [DRV-SPLIT-indirect-descriptors-05]
/// A chain that fits is a table, entry after entry; INDIRECT stands alone, and never in a table. Other chains
/// are in the ring.
#[test]
fn a_chain_that_fits_a_table_takes_one_descriptor() {
    const TABLE: u16 = 5;
    let guest = Guest::new();
    for features in [0, IN_ORDER, RING_EVENT_IDX | IN_ORDER] {
        for start in STARTS {
            let setup = Setup { start, table: TABLE, ..setup(8, features | RING_INDIRECT_DESC) };
            let (mut queue, mut device) = setup.on(&guest);
            for (n, writable) in (1..=8).flat_map(|n| (0..=n).map(move |writable| (n, writable))) {
                let (readable, writable) = (segments(n - writable, 4), segments(writable, 5));
                queue.add(&readable, &writable, ()).expect("room");
                let _ = queue.publish();
                let head = device.take().expect("a chain");
                let chain = device.chain(head);
                let wanted = wanted(&readable, &writable);
                if n == 1 || n > TABLE {
                    assert!(chain.iter().all(|(_, (_, _, flags, _))| flags & DESC_F_INDIRECT == 0));
                    assert!(
                        chain.iter().map(|c| c.1).map(|(a, l, f, _)| (a, l, f & !DESC_F_NEXT)).eq(wanted)
                    );
                } else {
                    assert_eq!((queue.free(), chain.len()), (7, 1));
                    let (_, (addr, len, flags, _)) = chain[0];
                    assert_eq!((flags, len), (DESC_F_INDIRECT, u32::from(n) * 16));
                    let table = device.table(addr, len);
                    let last = usize::from(n) - 1;
                    for (i, ((addr, len, flags, next), wanted)) in table.into_iter().zip(wanted).enumerate() {
                        let is_last = i == last;
                        let linked = if is_last { 0 } else { DESC_F_NEXT };
                        assert_eq!((addr, len, flags), (wanted.0, wanted.1, wanted.2 | linked));
                        assert!(is_last || usize::from(next) == i + 1);
                    }
                }
                device.use_chain(head, 0);
                assert!(queue.reclaim().expect("a good ring").is_some());
            }
        }
    }
}

/// Chains in flight have a table each, inside of the memory given for them.
#[test]
fn tables_in_flight_do_not_overlap() {
    let (mut queue, mut device) = Setup { table: 3, ..setup(8, RING_INDIRECT_DESC) }.queue();
    for owner in 0..8 {
        queue.add(&segments(2, owner), &segments(1, owner + 8), owner).expect("room");
    }
    assert_eq!(queue.add(&segments(2, 0), &[], 8), Err(NotAdded { error: AddError::Full, owner: 8 }));
    let _ = queue.publish();
    let mut tables = Vec::new();
    for owner in 0..8 {
        let (addr, len, ..) = device.take().map(|head| device.desc(head)).expect("a chain");
        assert_eq!(device.table(addr, len)[2].0, segments(1, owner + 8)[0].addr.0);
        tables.push(addr);
    }
    tables.sort_unstable();
    assert!(tables.iter().zip(0..).all(|(addr, i)| *addr == BASE + TABLES + i * 48));
}

/// [DRV-SPLIT-desc-table-01] [DRV-SPLIT-indirect-descriptors-03] What a chain cannot be is refused with its
/// owner, and leaves no trace; tables make no chain longer than the queue.
#[test]
fn chains_that_cannot_be_are_refused() {
    let guest = Guest::new();
    let at = |len| Segment { addr: Gpa(BASE), len };
    for features in [0, RING_INDIRECT_DESC] {
        for (max_chain, max) in [(0, 0), (1, 1), (3, 3), (8, 8), (9, 8), (u16::MAX, 8)] {
            let (mut queue, device) = Setup { max_chain, table: 20, ..setup(8, features) }.on(&guest);
            let before = device.guest.ring_bytes();
            let mut refuse = |readable: &[Segment], writable: &[Segment], error| {
                assert_eq!(queue.add(readable, writable, "owner"), Err(NotAdded { error, owner: "owner" }));
                assert_eq!((queue.free(), queue.in_flight(), queue.publish()), (8, 0, false));
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
                refuse(&[at(1 << 31), at(1 << 31)], &[], AddError::TooManyBytes);
                refuse(&[], &[at(u32::MAX), at(u32::MAX)], AddError::TooManyBytes);
                assert_eq!(device.guest.ring_bytes(), before);
                assert_eq!(queue.add(&[at(u32::MAX - 1)], &[at(1)], "owner"), Ok(()));
            }
        }
    }
}

#[test]
fn a_full_queue_takes_no_more_until_something_is_reclaimed() {
    let guest = Guest::new();
    for size in [1, 2, 8] {
        let (mut queue, mut device) = setup(size, 0).on(&guest);
        for owner in 0..size {
            queue.add(&segments(1, 1), &[], owner).expect("room");
        }
        let _ = queue.publish();
        let before = device.guest.ring_bytes();
        assert_eq!(queue.free(), 0);
        assert_eq!(queue.add(&segments(1, 2), &[], 99), Err(NotAdded { error: AddError::Full, owner: 99 }));
        assert!(!queue.publish());
        assert_eq!(device.guest.ring_bytes(), before);
        let head = device.take().expect("a chain");
        device.use_chain(head, 0);
        assert_eq!(queue.add(&segments(1, 2), &[], 99).map_err(|e| e.error), Err(AddError::Full));
        assert_eq!(queue.reclaim(), Ok(Some(Used { owner: 0, written: 0 })));
        assert_eq!(queue.add(&segments(1, 2), &[], 99), Ok(()));
    }
}

/// [DRV-SPLIT-available-buffer-notification-suppression-02]
/// [DRV-SPLIT-available-buffer-notification-suppression-03]
/// [DRV-SPLIT-available-buffer-notification-suppression-04] Without `EVENT_IDX` the flag alone says whether
/// to kick, whatever the other bits and `avail_event` are.
#[test]
fn flags_say_whether_to_kick() {
    let guest = Guest::new();
    for start in STARTS {
        let (mut queue, mut device) = Setup { start, ..setup(8, 0) }.on(&guest);
        for (flags, is_wanted) in
            [(0, true), (1, false), (0xfffe, true), (0xffff, false), (2, true), (3, false)]
        {
            for event in [0, start, start.wrapping_sub(1), start.wrapping_add(1), 65535] {
                device.ask(flags, event);
                queue.add(&segments(1, 1), &[], ()).expect("room");
                assert_eq!(queue.publish(), is_wanted, "{flags:#x} {event}");
                let head = device.take().expect("a chain");
                device.use_chain(head, 0);
                assert!(queue.reclaim().expect("a good ring").is_some());
            }
        }
    }
}

/// [DRV-SPLIT-available-buffer-notification-suppression-05]
/// [DRV-SPLIT-available-buffer-notification-suppression-06]
/// [DRV-SPLIT-available-buffer-notification-suppression-07] With `EVENT_IDX` a kick is due if an entry was
/// written at the index that the device named, at any place of a burst; flags mean nothing.
#[test]
fn events_say_whether_to_kick() {
    let guest = Guest::new();
    for start in STARTS {
        for burst in 0..=8u16 {
            for offset in -20i16..20 {
                for flags in [0, 1, 0xffff] {
                    let (mut queue, device) = Setup { start, ..setup(8, RING_EVENT_IDX) }.on(&guest);
                    let event = start.wrapping_add_signed(offset);
                    device.ask(flags, event);
                    let mut is_due = false;
                    for n in 0..burst {
                        is_due |= start.wrapping_add(n) == event;
                        queue.add(&segments(1, 1), &[], ()).expect("room");
                    }
                    assert_eq!(queue.publish(), is_due, "{start} {burst} {event} {flags}");
                }
            }
        }
    }
}

/// An event that was passed is not passed again.
#[test]
fn an_event_kicks_once() {
    let (mut queue, device) = Setup { start: 65534, ..setup(8, RING_EVENT_IDX) }.queue();
    device.ask(0, 65535);
    let kicks = [(); 6].map(|()| {
        queue.add(&segments(1, 1), &[], ()).expect("room");
        queue.publish()
    });
    assert_eq!(kicks, [false, true, false, false, false, false]);
}

/// What a kick carries: the index of the next entry, published ones counted only.
#[test]
fn notification_data_names_the_next_entry() {
    let guest = Guest::new();
    for start in STARTS {
        let (mut queue, mut device) = Setup { start, ..setup(4, 0) }.on(&guest);
        for n in 0..10 {
            let next = start.wrapping_add(n);
            queue.add(&segments(2, 1), &[], ()).expect("room");
            let data = queue.notification_data(0x1234);
            assert_eq!((data.vqn, data.next), (0x1234, next));
            let _ = queue.publish();
            let word = queue.notification_data(0x1234).to_word();
            assert_eq!(word, 0x1234 | u32::from(next.wrapping_add(1)) << 16);
            let head = device.take().expect("a chain");
            device.use_chain(head, 0);
            assert!(queue.reclaim().expect("a good ring").is_some());
        }
    }
}

/// [DRV-SPLIT-used-buffer-notification-suppression-01] [DRV-SPLIT-used-buffer-notification-suppression-03]
/// Without `EVENT_IDX` the flags are 0 or 1; with it they stay 0 and `used_event` is what is reclaimed next.
#[test]
fn arming_and_suppressing_is_written() {
    let guest = Guest::new();
    for start in STARTS {
        for features in [0, RING_EVENT_IDX] {
            let has_event = features != 0;
            let (mut queue, mut device) = Setup { start, ..setup(4, features) }.on(&guest);
            for n in 0..6 {
                let next = start.wrapping_add(n);
                let at = |event: u16| if has_event { event } else { start };
                assert!(!queue.arm());
                assert_eq!(device.asked(), (0, at(next)));
                queue.suppress();
                assert_eq!(device.asked(), (u16::from(!has_event), at(next)));
                queue.add(&segments(1, 1), &[], ()).expect("room");
                let _ = queue.publish();
                assert!(!queue.arm(), "with the device, not used");
                let head = device.take().expect("a chain");
                device.use_chain(head, 0);
                assert!(queue.arm(), "used before arming");
                assert_eq!(device.asked(), (0, at(next)));
                assert!(queue.reclaim().expect("a good ring").is_some());
            }
        }
    }
}

/// [DRV-SPLIT-used-buffer-notification-suppression-05] After a call for nothing there is nothing, and nothing
/// changed.
#[test]
fn spurious_calls_find_nothing() {
    let guest = Guest::new();
    for features in [0, RING_EVENT_IDX, IN_ORDER] {
        let (mut queue, mut device) = Setup { start: 65535, ..setup(4, features) }.on(&guest);
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
        let head = device.take().expect("a chain");
        device.use_chain(head, 0);
        assert_eq!(queue.reclaim(), Ok(Some(Used { owner: 1, written: 0 })));
        nothing(&mut queue, &device);
    }
}

/// [DRV-SPLIT-used-ring-01] What was written is what the device says, and no more than there was room for.
#[test]
fn lengths_are_those_of_the_device_but_bounded() {
    let guest = Guest::new();
    for features in [0, IN_ORDER, RING_INDIRECT_DESC] {
        let (mut queue, mut device) = Setup { table: 4, ..setup(8, features) }.on(&guest);
        for writable in [segments(0, 0), segments(1, 6), segments(2, 6)] {
            let room = len(&writable);
            for told in [0, 1, room / 2, room, room.saturating_add(1), u32::MAX] {
                queue.add(&segments(1, 5), &writable, ()).expect("room");
                let _ = queue.publish();
                let head = device.take().expect("a chain");
                device.use_chain(head, told);
                let written = told.min(room);
                assert_eq!(queue.reclaim(), Ok(Some(Used { owner: (), written })));
            }
        }
    }
}

#[test]
fn chains_come_back_in_the_order_they_were_used() {
    let guest = Guest::new();
    for order in [[0, 1, 2, 3], [3, 2, 1, 0], [2, 0, 3, 1], [1, 3, 0, 2]] {
        for start in STARTS {
            let (mut queue, mut device) = Setup { start, ..setup(8, 0) }.on(&guest);
            for n in 0..4u16 {
                queue.add(&segments(1, 1), &segments(n % 3, 50), n).expect("room");
            }
            let _ = queue.publish();
            let heads = [(); 4].map(|()| device.take().expect("a chain"));
            for n in order {
                device.use_chain(heads[n], n as u32);
            }
            for n in order {
                let written = if n % 3 == 0 { 0 } else { n as u32 };
                assert!(queue.has_used());
                assert_eq!(queue.reclaim(), Ok(Some(Used { owner: n as u16, written })));
            }
            assert_eq!((queue.has_used(), queue.free()), (false, 8));
        }
    }
}

/// With `IN_ORDER` one used entry tells of a batch by its last chain: the others count as wholly used.
#[test]
fn one_used_entry_gives_back_a_batch() {
    let guest = Guest::new();
    for start in STARTS {
        for table in [0, 4] {
            let features = IN_ORDER | RING_INDIRECT_DESC;
            let (mut queue, mut device) = Setup { start, table, ..setup(16, features) }.on(&guest);
            let mut owner = 0;
            for batch in [1, 2, 3, 8, 1, 4, 4, 2, 7] {
                let room = |n: u16| len(&segments(n % 2, 9));
                let owners = owner..owner + batch;
                for n in owners.clone() {
                    queue.add(&segments(1, 8), &segments(n % 2, 9), n).expect("room");
                }
                let _ = queue.publish();
                let last = owners.clone().map(|_| device.take().expect("a chain")).last().expect("a batch");
                device.use_batch(last.into(), 3, batch);
                for n in owners {
                    let written = if n + 1 == owner + batch { room(n).min(3) } else { room(n) };
                    assert!(queue.has_used());
                    assert_eq!(queue.reclaim(), Ok(Some(Used { owner: n, written })));
                }
                assert_eq!((queue.reclaim(), queue.free()), (Ok(None), 16));
                owner += batch;
            }
        }
    }
}

/// A queue of 8 with chains of two in flight, after some went round, and their heads.
fn with_three_in_flight(guest: &Guest, features: u64, start: u16) -> (DriverQueue<u16>, Device, [u16; 3]) {
    let (mut queue, mut device) = Setup { start, ..setup(8, features) }.on(guest);
    for owner in 0..5 {
        queue.add(&segments(1, 1), &[], owner).expect("room");
        let _ = queue.publish();
        let head = device.take().expect("a chain");
        device.use_chain(head, 0);
        assert!(queue.reclaim().expect("a good ring").is_some());
    }
    for owner in 10..13 {
        queue.add(&segments(1, 1), &segments(1, 2), owner).expect("room");
    }
    let _ = queue.publish();
    let heads = [(); 3].map(|()| device.take().expect("a chain"));
    (queue, device, heads)
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
    for (features, start) in [(0, 0), (0, 65529), (IN_ORDER, 0), (IN_ORDER, 65529)] {
        let lies = |device: &Device, heads: [u16; 3]| {
            let chain = device.chain(heads[0]);
            let lent: HashSet<u16> = heads.iter().flat_map(|h| device.chain(*h)).map(|(i, _)| i).collect();
            let free = (0..8).find(|i| !lent.contains(i)).expect("two are free");
            [u32::from(chain[1].0), free.into(), 8, 0xffff, 0x1_0000 | u32::from(heads[0]), u32::MAX]
        };
        let (_, device, heads) = with_three_in_flight(&guest, features, start);
        for id in lies(&device, heads) {
            let (queue, mut device, _) = with_three_in_flight(&guest, features, start);
            device.use_batch(id, 0, 1);
            check_failed(queue, DriverError::NotInFlight { id }, &[10, 11, 12]);
        }
        // Nor can one be used twice.
        let (mut queue, mut device, heads) = with_three_in_flight(&guest, features, start);
        device.use_chain(heads[0], 0);
        device.use_chain(heads[0], 0);
        assert_eq!(queue.reclaim(), Ok(Some(Used { owner: 10, written: 0 })));
        check_failed(queue, DriverError::NotInFlight { id: heads[0].into() }, &[11, 12]);
    }
}

/// Nor one that the device was not given yet: in the place of another, after all others, or at the end of a
/// batch.
#[test]
fn a_chain_that_was_not_published_cannot_be_used() {
    let guest = Guest::new();
    for (features, start) in [(0, 0), (0, 65529), (IN_ORDER, 0), (IN_ORDER, 65529)] {
        let with_one_more = || {
            let (mut queue, device, heads) = with_three_in_flight(&guest, features, start);
            queue.add(&segments(1, 1), &segments(1, 2), 13).expect("room");
            let hidden = device.head(device.next_avail);
            assert_ne!(hidden, heads[2]);
            (queue, device, heads, hidden)
        };
        for count in [1, 4] {
            let (queue, mut device, _, hidden) = with_one_more();
            device.use_batch(hidden.into(), 0, count);
            check_failed(queue, DriverError::NotInFlight { id: hidden.into() }, &[10, 11, 12, 13]);
        }
        let (mut queue, mut device, heads, hidden) = with_one_more();
        for head in heads {
            device.use_chain(head, 0);
            assert!(queue.reclaim().expect("a good ring").is_some());
        }
        device.use_chain(hidden, 0);
        check_failed(queue, DriverError::NotInFlight { id: hidden.into() }, &[13]);
    }
}

#[test]
fn the_used_index_cannot_run_ahead_or_back() {
    let guest = Guest::new();
    for (features, start) in [(0, 0), (0, 65529), (IN_ORDER, 65530)] {
        for jump in [4, 8, 9, 100, 0x8000, 0xffff] {
            let (queue, mut device, heads) = with_three_in_flight(&guest, features, start);
            let next = device.next_used;
            device.use_batch(heads[0].into(), 0, jump);
            let error = DriverError::IndexJump { idx: next.wrapping_add(jump), next, in_flight: 3 };
            check_failed(queue, error, &[10, 11, 12]);
        }
    }
}

#[test]
fn a_batch_cannot_go_past_the_used_index() {
    let guest = Guest::new();
    for start in [0, 65528, 65530] {
        for (last, count) in [(1, 1), (2, 1), (2, 2)] {
            let (mut queue, mut device, heads) = with_three_in_flight(&guest, IN_ORDER, start);
            device.use_batch(heads[last].into(), 0, count);
            for owner in 10..10 + count {
                assert!(queue.has_used());
                assert_eq!(queue.reclaim().map(|used| used.map(|u| u.owner)), Ok(Some(owner)));
            }
            assert!(queue.has_used());
            let left: Vec<u16> = (10 + count..13).collect();
            check_failed(queue, DriverError::BatchTooLong { id: heads[last] }, &left);
        }
    }
}

/// An owner that counts how many of its kind were freed.
struct Counted<'a>(&'a AtomicUsize);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// [DRV-CORE-device-cleanup-02] A queue that is dropped may be live, so what is in flight is not freed.
#[test]
fn owners_in_flight_are_never_freed() {
    let freed = AtomicUsize::new(0);
    let (mut queue, mut device) = setup(8, 0).queue();
    for _ in 0..4 {
        assert!(queue.add(&segments(1, 1), &[], Counted(&freed)).is_ok());
    }
    let _ = queue.publish();
    assert!(queue.add(&[], &[], Counted(&freed)).is_err());
    assert_eq!(freed.load(Ordering::Relaxed), 1, "the refused one came back to us");
    let head = device.take().expect("a chain");
    device.use_chain(head, 0);
    drop(queue.reclaim());
    assert_eq!(freed.load(Ordering::Relaxed), 2, "so did the one used");
    drop(queue);
    assert_eq!(freed.load(Ordering::Relaxed), 2, "the device may still write to the others");
}

/// [DRV-CORE-virtqueue-reset-01] [DRV-CORE-device-cleanup-02] Owners in flight come back only once the device
/// was asked and said that it has reset the queue; until then the queue goes on.
#[test]
fn a_reset_gives_all_owners_back() {
    let freed = AtomicUsize::new(0);
    let (mut queue, mut device) = setup(8, 0).queue();
    for _ in 0..3 {
        assert!(queue.add(&segments(1, 1), &[], Counted(&freed)).is_ok());
    }
    let _ = queue.publish();
    assert!(queue.add(&segments(2, 1), &[], Counted(&freed)).is_ok(), "not even published");
    let head = device.take().expect("a chain");
    device.use_chain(head, 0);
    let queue = queue.reset(|| false).err().expect("the device is not done");
    assert_eq!((queue.in_flight(), freed.load(Ordering::Relaxed)), (4, 0));
    let owners = queue.reset(|| true).ok().expect("a reset");
    assert_eq!((owners.len(), freed.load(Ordering::Relaxed)), (4, 0));
    drop(owners);
    assert_eq!(freed.load(Ordering::Relaxed), 4);
}

/// [DRV-CORE-virtqueue-re-enable-01] After a reset the queue is set up anew, of another size and with other
/// features if that is wanted.
#[test]
fn another_queue_takes_the_place_of_one_that_was_reset() {
    let guest = Guest::new();
    for (size, features) in
        [(8, 0), (2, IN_ORDER), (64, RING_EVENT_IDX), (1, 0), (8, IN_ORDER | RING_EVENT_IDX)]
    {
        let (mut queue, mut device) = setup(size, features).on(&guest);
        assert_eq!(device.avail_idx(), 0);
        assert_eq!((queue.free(), queue.has_used(), queue.reclaim()), (size, false, Ok(None)));
        for owner in 0..size {
            queue.add(&segments(1, owner.into()), &[], owner).expect("room");
        }
        assert!(queue.publish());
        for owner in 0..size {
            let head = device.take().expect("a chain");
            assert_eq!(device.desc(head).0, segments(1, owner.into())[0].addr.0);
            if owner % 2 == 0 {
                device.use_chain(head, 0);
            }
            if owner == 0 {
                assert_eq!(queue.reclaim(), Ok(Some(Used { owner, written: 0 })));
            }
        }
        assert!(queue.reset(|| true).ok().expect("a reset").into_iter().eq(1..size));
    }
}

/// What the device can see of a chain: its descriptors, its indirect table.
#[derive(Debug, PartialEq)]
struct Exposed {
    head: u16,
    chain: Vec<(u16, Desc)>,
    table: Vec<Desc>,
}

impl Exposed {
    fn new(device: &Device, head: u16) -> Self {
        let chain = device.chain(head);
        let (_, (addr, len, flags, _)) = chain[0];
        let table = if flags & DESC_F_INDIRECT != 0 { device.table(addr, len) } else { Vec::new() };
        Self { head, chain, table }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// [DRV-CORE-device-cleanup-01] Whatever else goes on in a queue, what was made available stays as it is
    /// until it was used: its descriptors and its table, which no two chains share. So does an entry of the
    /// available ring, until the ring has come round.
    #[test]
    fn exposed_chains_are_not_altered(
        features in prop::sample::select(vec![0, IN_ORDER, RING_INDIRECT_DESC, IN_ORDER | RING_INDIRECT_DESC]),
        start in prop::sample::select(STARTS.to_vec()),
        // Segments of a chain to add, or the place in flight of one to use.
        ops in prop::collection::vec(prop_oneof![
            3 => (1u16..6).prop_map(Ok),
            2 => any::<prop::sample::Index>().prop_map(Err),
        ], 1..200),
    ) {
        let (mut queue, mut device) = Setup { start, table: 3, ..setup(16, features) }.queue();
        let mut exposed: Vec<(Exposed, u64)> = Vec::new();
        let mut heads = VecDeque::new();
        for (op, salt) in ops.into_iter().zip(1..) {
            match op {
                Ok(n) => {
                    if queue.add(&segments(n, salt), &[], salt).is_ok() {
                        let _ = queue.publish();
                        let index = device.next_avail;
                        let head = device.take().expect("a chain");
                        exposed.push((Exposed::new(&device, head), salt));
                        heads.push_front((index, head));
                        heads.truncate(16);
                    }
                }
                Err(which) if !exposed.is_empty() => {
                    let which = if features & IN_ORDER != 0 { 0 } else { which.index(exposed.len()) };
                    let (Exposed { head, .. }, owner) = exposed.remove(which);
                    device.use_chain(head, 0);
                    prop_assert_eq!(queue.reclaim(), Ok(Some(Used { owner, written: 0 })));
                }
                Err(_) => {}
            }
            let mut seen = HashSet::new();
            for (chain, _) in &exposed {
                prop_assert_eq!(&Exposed::new(&device, chain.head), chain);
                prop_assert!(chain.chain.iter().all(|(index, _)| seen.insert(*index)), "a descriptor twice");
            }
            prop_assert!(heads.iter().all(|(index, head)| device.head(*index) == *head));
        }
    }

    /// A device that writes anything anywhere costs the queue: no panic, and every owner comes back once.
    #[test]
    fn a_hostile_device_loses_no_owner(
        features in prop::sample::subsequence(vec![IN_ORDER, RING_INDIRECT_DESC, RING_EVENT_IDX], 0..=3),
        start in prop::sample::select(STARTS.to_vec()),
        ops in prop::collection::vec((0u8..8, any::<u32>(), 0u32..10), 1..150),
    ) {
        let features = features.iter().fold(0, |all, one| all | one);
        let (mut queue, mut device) = Setup { start, table: 3, ..setup(8, features) }.queue();
        let (mut lent, mut back) = (0usize, Vec::new());
        for (op, any, small) in ops {
            match op {
                0 | 1 => {
                    let n = 1 + small as u16 % 4;
                    lent += usize::from(queue.add(&segments(n, 1), &segments(1, 2), lent).is_ok());
                }
                2 => drop(queue.publish()),
                3 => device.use_batch(small, any, 1),
                4 => device.use_batch(small, any, small as u16 / 3),
                5 => device.guest.write(BASE + DESC + u64::from(small) * 8, &any.to_le_bytes()),
                6 => device.guest.write(BASE + DRIVER + u64::from(small) * 2, &any.to_le_bytes()),
                _ => while let Ok(Some(used)) = queue.reclaim() {
                    back.push(used.owner);
                },
            }
            prop_assert_eq!(usize::from(queue.in_flight()) + back.len(), lent);
            prop_assert!(queue.free() <= 8);
        }
        back.extend(queue.reset(|| true).ok().expect("a reset"));
        back.sort_unstable();
        prop_assert!(back.into_iter().eq(0..lent));
    }
}
