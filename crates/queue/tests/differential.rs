//! Our halves of a split ring against the device's half of `virtio-queue` (rust-vmm), in the same memory.
//!
//! Both devices read one ring. Where they differ, it is on purpose: `virtio-queue` is never told which
//! features were negotiated, has no errors for chains, and leaves addresses to whoever reads the buffers; see
//! [`explains`].

mod common;
mod foreign;

use std::collections::VecDeque;
use std::io::{Read, Write};

use common::split::Driver;
use common::{BASE, Entry, FRONTEND, Guest, LEN, buffer};
use foreign::memory;
use proptest::prelude::*;
use ringway_memory::{Access, BusAddr, FrontendVa, Gpa, GuestBuf, ScatterList};
use ringway_queue::{
    Burst, DeviceQueue, DriverConfig, DriverQueue, IndirectTables, QueueError, ResumeState, Segment, Used,
};
use ringway_spec::feature::{RING_EVENT_IDX, RING_INDIRECT_DESC};
use ringway_spec::split::{self as layout, DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE};
use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Where their used ring is, while ours is in its usual place.
const THEIR_USED: u64 = BASE + 0x10_0000;
/// Where indirect tables are.
const TABLES: u64 = 0x18_0000;
const TABLE_COUNT: u64 = 4;
const TABLE_LEN: u16 = 6;

fn table(n: u64) -> u64 {
    BASE + TABLES + n * 0x1000
}

/// A device of theirs on the ring of a driver.
fn their_queue(size: u16, start: u16, features: u64, used: u64) -> Queue {
    let mut queue = Queue::new(size).expect("a queue");
    queue.try_set_desc_table_address(GuestAddress(BASE + common::DESC)).expect("aligned");
    queue.try_set_avail_ring_address(GuestAddress(BASE + common::DRIVER)).expect("aligned");
    queue.try_set_used_ring_address(GuestAddress(used)).expect("aligned");
    queue.set_event_idx(features & RING_EVENT_IDX != 0);
    queue.set_next_avail(start);
    queue.set_next_used(start);
    queue.set_ready(true);
    queue
}

/// A part of a chain, by address: length, and whether it is device-writable. Empty ones are nothing to a
/// device.
type Part = (u64, u32, bool);

/// The parts of our chains, as addresses for the guest.
struct Parts {
    /// Where the guest's memory is mapped here.
    base: usize,
}

impl Parts {
    fn new(guest: &Guest) -> Self {
        let mut list = ScatterList::with_capacity(1);
        list.bind(&guest.memory);
        list.push(BusAddr(BASE), 1, Access::READ).expect("in memory");
        Self { base: list.slices(0..1)[0].as_ptr() as usize }
    }

    fn of<'a>(&self, buf: GuestBuf<'a>, is_writable: bool) -> impl Iterator<Item = Part> + use<'a> {
        let base = self.base;
        buf.pieces().map(move |p| (BASE + (p.as_ptr() as usize - base) as u64, p.len() as u32, is_writable))
    }
}

fn their_parts(chain: &[Descriptor]) -> Vec<Part> {
    let parts = chain.iter().filter(|d| d.len() > 0);
    parts.map(|d| (d.addr().0, d.len(), d.is_write_only())).collect()
}

/// A ring as a driver may leave it.
#[derive(Debug, Clone)]
struct Ring {
    size: u16,
    start: u16,
    features: u64,
    descriptors: Vec<Entry>,
    tables: Vec<Vec<Entry>>,
    heads: Vec<u16>,
}

impl Ring {
    fn write(&self, guest: &Guest) -> Driver {
        let mut driver = Driver::in_guest(guest.clone(), self.size, self.start);
        for (index, (addr, len, flags, next)) in (0..).zip(&self.descriptors) {
            driver.set_descriptor(index, *addr, *len, *flags, *next);
        }
        for (n, entries) in (0..).zip(&self.tables) {
            guest.write_table(table(n), entries);
        }
        self.heads.iter().for_each(|head| driver.offer(*head));
        driver
    }
}

/// Why they do not say what we do of a chain: what of ours is an error is to them
/// - a chain that ends in the middle, for what they cannot follow: indices and tables outside of what there is,
///   loops, tables in tables, tables of a length that is none, too many bytes;
/// - nothing to complain of: writable before readable parts, tables that were not negotiated or have a
///   successor, buffers outside of memory.
fn explains(error: QueueError, ring: &Ring, chain: &[Descriptor]) -> bool {
    let is_outside = |d: &Descriptor| {
        let at = d.addr().0;
        d.len() > 0 && !(at >= BASE && at.saturating_add(d.len().into()) <= BASE + LEN)
    };
    let is_cut = chain.last().is_none_or(Descriptor::has_next);
    is_cut
        || match error {
            QueueError::ReadableAfterWritable { .. } => {
                chain.windows(2).any(|pair| pair[0].is_write_only() && !pair[1].is_write_only())
            }
            QueueError::BadIndirect { .. } => {
                let both = DESC_F_INDIRECT | DESC_F_NEXT;
                ring.features & RING_INDIRECT_DESC == 0
                    || ring.descriptors.iter().any(|(_, _, flags, _)| flags & both == both)
            }
            QueueError::Memory(_) => chain.iter().any(is_outside),
            _ => false,
        }
}

/// Both devices take all chains, up to the first that we refuse. Returns how many, and the error.
fn take_and_compare(
    ring: &Ring,
    memory: (&Guest, &GuestMemoryMmap),
    (ours, theirs): (&mut DeviceQueue, &mut Queue),
) -> (usize, Option<QueueError>) {
    let (guest, their_memory) = memory;
    let parts = Parts::new(guest);
    let mut burst = Burst::default();
    let chains = theirs.iter(their_memory).expect("a good index");
    for (n, chain) in chains.enumerate() {
        let head = chain.head_index();
        assert_eq!(head, ring.heads[n]);
        let chain: Vec<Descriptor> = chain.collect();
        let taken = match ours.next(&mut burst) {
            Ok(chain) => chain.expect("they have one"),
            Err(error) => {
                assert!(explains(error, ring, &chain), "{error}, but they see {chain:?} in {ring:#x?}");
                return (n, Some(error));
            }
        };
        let found: Vec<Part> =
            parts.of(taken.readable(), false).chain(parts.of(taken.writable(), true)).collect();
        assert!(!chain.last().is_none_or(Descriptor::has_next), "they miss the end in {ring:#x?}");
        assert_eq!(found, their_parts(&chain), "in {ring:#x?}");
    }
    assert!(ours.next(&mut burst).expect("a good ring").is_none());
    (ring.heads.len(), None)
}

fn features() -> impl Strategy<Value = u64> {
    prop::sample::subsequence(vec![RING_EVENT_IDX, RING_INDIRECT_DESC], 0..=2)
        .prop_map(|all| all.iter().fold(0, |all, one| all | one))
}

fn size_and_start() -> impl Strategy<Value = (u16, u16)> {
    let start = prop_oneof![any::<u16>(), 65520..=65535u16, 0..4u16];
    ((0u32..6).prop_map(|log| 1 << log), start)
}

/// Any ring: what can be wrong is wrong now and then.
fn any_ring() -> impl Strategy<Value = Ring> {
    let addr = prop_oneof![
        40 => (0u64..0x8000).prop_map(|at| buffer(0) + at),
        1 => (0u64..100).prop_map(|at| BASE + LEN - at),
        1 => prop_oneof![Just(0), Just(BASE - 1), Just(u64::MAX - 5)],
    ];
    let len = prop_oneof![40 => 0u32..200, 1 => Just(u32::MAX), 1 => Just(1 << 31)];
    let flags = prop::sample::subsequence(vec![DESC_F_NEXT, DESC_F_WRITE], 0..=2)
        .prop_map(|flags| flags.iter().fold(0, |all, one| all | one));
    let direct = (addr, len, flags);
    let table_len = prop_oneof![8 => (1..=TABLE_LEN).prop_map(|n| u32::from(n) * 16), 1 => 0u32..100];
    let more = prop_oneof![10 => Just(0), 2 => Just(DESC_F_WRITE), 1 => Just(DESC_F_NEXT)];
    let indirect =
        (0..TABLE_COUNT, table_len, more).prop_map(|(n, len, more)| (table(n), len, DESC_F_INDIRECT | more));
    (size_and_start(), features()).prop_flat_map(move |((size, start), features)| {
        let link = |size: u16| prop_oneof![20 => 0..size, 1 => Just(size), 1 => any::<u16>()];
        let descriptor = (prop_oneof![6 => direct.clone(), 2 => indirect.clone()], link(size));
        let entry = (prop_oneof![30 => direct.clone(), 1 => indirect.clone()], link(TABLE_LEN));
        let flat = |((addr, len, flags), next)| (addr, len, flags, next);
        (
            prop::collection::vec(descriptor.prop_map(flat), usize::from(size)),
            prop::collection::vec(
                prop::collection::vec(entry.prop_map(flat), usize::from(TABLE_LEN)),
                TABLE_COUNT as usize,
            ),
            prop::collection::vec(link(size), 0..=usize::from(size)),
        )
            .prop_map(move |(descriptors, tables, heads)| Ring {
                size,
                start,
                features,
                descriptors,
                tables,
                heads,
            })
    })
}

/// A chain to make a ring of: lengths of its readable and of its writable segments, and the table it is in.
type Plan = (Vec<u32>, Vec<u32>, Option<u64>);

/// A ring without a fault: chains of every shape, their descriptors anywhere, at most one chain in each table.
fn good_ring() -> impl Strategy<Value = Ring> {
    let lens = || prop::collection::vec(0u32..100, 0..4);
    let plan = (lens(), lens(), prop::option::of(0..TABLE_COUNT));
    (size_and_start(), prop::collection::vec(plan, 0..20)).prop_flat_map(|((size, start), plans)| {
        let places = Just((0..size).collect::<Vec<u16>>()).prop_shuffle();
        let entries = Just((1..TABLE_LEN).collect::<Vec<u16>>()).prop_shuffle();
        (places, entries, any::<bool>()).prop_map(move |(places, entries, has_event)| {
            let event = if has_event { RING_EVENT_IDX } else { 0 };
            lay_out(size, start, event | RING_INDIRECT_DESC, &plans, places, &entries)
        })
    })
}

/// Descriptors at `places`, one chain after the other, as many chains as there are places for. The first
/// entry of a table is its first (2.7.5.3), the others are where `entries` says.
fn lay_out(
    size: u16,
    start: u16,
    features: u64,
    plans: &[Plan],
    mut places: Vec<u16>,
    entries: &[u16],
) -> Ring {
    let mut ring = Ring {
        size,
        start,
        features,
        descriptors: vec![(0, 0, 0, 0); size.into()],
        tables: vec![vec![(0, 0, 0, 0); TABLE_LEN.into()]; TABLE_COUNT as usize],
        heads: Vec::new(),
    };
    let mut free_tables: Vec<u64> = (0..TABLE_COUNT).collect();
    let mut at = buffer(0);
    for (readable, writable, table_of) in plans {
        let readable = readable.iter().map(|len| (*len, 0));
        let parts: Vec<(u32, u16)> =
            readable.chain(writable.iter().map(|len| (*len, DESC_F_WRITE))).collect();
        let is_indirect = table_of.is_some_and(|n| free_tables.contains(&n));
        let needed = if is_indirect { 1 } else { parts.len() };
        if parts.is_empty() || needed > places.len() {
            continue;
        }
        let mine: Vec<u16> = places.drain(..needed).collect();
        ring.heads.push(mine[0]);
        let (list, mine) = match table_of {
            Some(n) if is_indirect => {
                free_tables.retain(|free| free != n);
                let len = u32::from(TABLE_LEN) * 16;
                ring.descriptors[usize::from(mine[0])] = (table(*n), len, DESC_F_INDIRECT, 0);
                (&mut ring.tables[*n as usize], [0].into_iter().chain(entries.iter().copied()).collect())
            }
            _ => (&mut ring.descriptors, mine),
        };
        for (i, (len, flags)) in parts.iter().enumerate() {
            let is_last = i + 1 == parts.len();
            let (flags, next) = if is_last { (*flags, 0) } else { (flags | DESC_F_NEXT, mine[i + 1]) };
            list[usize::from(mine[i])] = (at, *len, flags, next);
            at += u64::from(*len);
        }
    }
    ring
}

fn config() -> ProptestConfig {
    ProptestConfig { failure_persistence: None, ..ProptestConfig::default() }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn any_ring_is_read_as_they_read_it(ring in any_ring()) {
        let (guest, their_memory) = memory();
        let driver = ring.write(&guest);
        let mut ours = driver.start_at(ring.features, ring.start);
        let mut theirs = their_queue(ring.size, ring.start, ring.features, THEIR_USED);
        take_and_compare(&ring, (&guest, &their_memory), (&mut ours, &mut theirs));
    }

    /// Both refuse an index that runs ahead by more than the ring is long, and no other.
    #[test]
    fn an_index_is_refused_as_they_refuse_it((size, start) in size_and_start(), ahead in 0u16..100) {
        let (guest, their_memory) = memory();
        let driver = Driver::in_guest(guest, size, start);
        let idx = start.wrapping_add(ahead);
        driver.set_avail_idx(idx);
        let ours = driver.start_at(0, start).take(&mut Burst::default(), 200);
        let theirs = their_queue(size, start, 0, THEIR_USED).iter(&their_memory).map(Iterator::count);
        if ahead <= size {
            prop_assert_eq!(theirs.expect("a good index"), usize::from(ahead));
            let jumped = matches!(ours, Err(QueueError::IndexJump { .. }));
            prop_assert!(!jumped);
        } else {
            prop_assert!(theirs.is_err());
            prop_assert_eq!(ours, Err(QueueError::IndexJump { idx, next: start, size }));
        }
    }

    /// Chains taken, used in any order and in bursts: the used ring is the same byte for byte, and so is the
    /// answer to whether the driver is to be called. Without `EVENT_IDX` they do not look at the driver's
    /// flag: they call always, also for nothing.
    #[test]
    fn good_rings_are_served_as_they_serve_them(
        ring in good_ring(),
        order in prop::collection::vec(any::<prop::sample::Index>(), 32),
        bursts in prop::collection::vec(1usize..6, 1..20),
        events in prop::collection::vec(-3i16..6, 20),
        (arm_at, is_suppressed) in (0usize..6, any::<bool>()),
    ) {
        let (guest, their_memory) = memory();
        let driver = ring.write(&guest);
        let Ring { size, start, features, .. } = ring;
        let mut ours = driver.start_at(features, start);
        their_memory.write_obj(start, GuestAddress(THEIR_USED + 2)).expect("in memory");
        let mut theirs = their_queue(size, start, features, THEIR_USED);
        let taken = take_and_compare(&ring, (&guest, &their_memory), (&mut ours, &mut theirs));
        prop_assert_eq!(taken, (ring.heads.len(), None));

        // Taken again, to be completed: going back is what both can.
        let mut ours = driver.start_at(features, start);
        let mut burst = Burst::default();
        let mut in_flight = Vec::new();
        while let Some(chain) = ours.next(&mut burst).expect("a good ring") {
            let room = chain.writable_len();
            in_flight.push((chain.detach(), ring.heads[in_flight.len()], room));
        }
        let (mut bursts, mut events) = (bursts.into_iter().cycle(), events.into_iter());
        let mut order = order.into_iter();
        let mut round = 0;
        while !in_flight.is_empty() {
            let event = theirs.next_used().wrapping_add_signed(events.next().unwrap_or(0));
            driver.set_used_event(event);
            for _ in 0..bursts.next().unwrap_or(1).min(in_flight.len()) {
                let which = order.next().map_or(0, |index| index.index(in_flight.len()));
                let (chain, head, room) = in_flight.remove(which);
                ours.complete(chain, room / 2);
                theirs.add_used(&their_memory, head, room / 2).expect("a good head");
            }
            let call = theirs.needs_notification(&their_memory).expect("in memory");
            prop_assert_eq!(ours.publish(), call);
            if round == arm_at {
                prop_assert_eq!(ours.arm(), theirs.enable_notification(&their_memory).expect("in memory"));
                if is_suppressed {
                    ours.suppress();
                    theirs.disable_notification(&their_memory).expect("in memory");
                }
            }
            round += 1;
            let len = layout::used_area_size(size);
            prop_assert_eq!(guest.read(BASE + common::DEVICE, len), guest.read(THEIR_USED, len));
        }
    }
}

/// A number below `n`, from a generator with a long period (xorshift).
fn below(state: &mut u64, n: u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state % n
}

/// What a side writes into a chain.
fn noise(tag: u64, len: usize) -> Vec<u8> {
    (0..len as u64).map(|i| (tag.wrapping_mul(0x9e37) ^ i.wrapping_mul(0x3b)) as u8).collect()
}

/// A chain of our driver: what it is known by, where it is, and what the device answered.
struct Lent {
    tag: u64,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    answer: Vec<u8>,
}

/// The parts of a buffer: as many as wanted, one behind the other.
fn cut(at: u64, len: u32, parts: u32) -> Vec<Segment> {
    (0..parts).map(|i| Segment { addr: Gpa(at + u64::from(i * len)), len }).collect()
}

fn len(segments: &[Segment]) -> usize {
    segments.iter().map(|s| s.len as usize).sum()
}

/// Our driver and their device, with the positions that say which notifications are due: indices that do not
/// wrap.
struct Mixed {
    guest: Guest,
    their_memory: GuestMemoryMmap,
    driver: DriverQueue<u64>,
    device: Queue,
    has_event: bool,
    seed: u64,
    /// Buffers that are free.
    buffers: Vec<u64>,
    available: VecDeque<Lent>,
    /// By the heads of their chains.
    taken: Vec<(u16, Lent)>,
    used: VecDeque<Lent>,
    added: u64,
    completed: u64,
    reclaimed: u64,
    /// Where a side asked to be notified, with `EVENT_IDX`.
    kick_at: u64,
    call_at: u64,
}

impl Drop for Mixed {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "with a queue of {}, EVENT_IDX {}, after {} chains",
                self.driver.size(),
                self.has_event,
                self.added
            );
        }
    }
}

impl Mixed {
    fn new(size: u16, features: u64, start: u16) -> Self {
        let (guest, their_memory) = memory();
        let area =
            guest.memory.area(FrontendVa(FRONTEND + TABLES), usize::from(size) * 64, 16).expect("room");
        let driver = DriverQueue::new(DriverConfig {
            size,
            features,
            areas: guest.areas(size, features),
            start: ResumeState::Split { next_avail: start },
            max_chain: size,
            tables: Some(IndirectTables { area, addr: Gpa(BASE + TABLES), entries: 4 }),
        })
        .expect("a queue");
        let at = start.into();
        Self {
            device: their_queue(size, start, features, BASE + common::DEVICE),
            guest,
            their_memory,
            driver,
            has_event: features & RING_EVENT_IDX != 0,
            seed: u64::from(size) << 32 | features >> 16 | 1,
            buffers: (0..size.into()).collect(),
            available: VecDeque::new(),
            taken: Vec::new(),
            used: VecDeque::new(),
            added: at,
            completed: at,
            reclaimed: at,
            kick_at: at,
            call_at: at,
        }
    }

    fn below(&mut self, n: usize) -> usize {
        below(&mut self.seed, n as u64) as usize
    }

    /// The driver adds up to `max` chains of up to five segments. It is to kick a device that asked for it.
    fn add(&mut self, max: usize, is_suppressed: bool) {
        let before = self.added;
        for _ in 0..max {
            let Some(owner) = self.buffers.pop() else { break };
            let (at, tag) = (buffer(owner), self.added);
            let readable = cut(at, 1 + self.below(40) as u32, self.below(4) as u32);
            let writable = cut(at + 2048, 1 + self.below(40) as u32, self.below(3) as u32);
            self.guest.write(at, &noise(tag, len(&readable)));
            if self.driver.add(&readable, &writable, owner).is_err() {
                // No room for all of its segments; or it has none.
                self.buffers.push(owner);
                break;
            }
            self.available.push_back(Lent { tag, readable, writable, answer: Vec::new() });
            self.added += 1;
        }
        let is_due = if self.has_event {
            (before..self.added).any(|at| at as u16 == self.kick_at as u16)
        } else {
            self.added > before && !is_suppressed
        };
        assert_eq!(self.driver.publish(), is_due);
    }

    /// The device takes up to `max` chains, reads and answers them.
    fn take(&mut self, max: usize) {
        for chain in self.device.iter(&self.their_memory).expect("a good index").take(max) {
            let mut lent = self.available.pop_front().expect("it was added");
            let mut read = Vec::new();
            let mut reader = chain.clone().reader(&self.their_memory).expect("a good chain");
            reader.read_to_end(&mut read).expect("in memory");
            assert_eq!(read, noise(lent.tag, len(&lent.readable)));
            let room = len(&lent.writable);
            lent.answer = noise(!lent.tag, below(&mut self.seed, 1 + room as u64) as usize);
            let head = chain.head_index();
            let mut writer = chain.writer(&self.their_memory).expect("a good chain");
            assert_eq!(writer.available_bytes(), room);
            writer.write_all(&lent.answer).expect("room");
            self.taken.push((head, lent));
        }
    }

    /// The device completes `count` of the chains it has, whichever. It is to call a driver that asked for it:
    /// without `EVENT_IDX` it does so always.
    fn complete(&mut self, count: usize) {
        let before = self.completed;
        for _ in 0..count {
            let which = self.below(self.taken.len());
            let (head, lent) = self.taken.swap_remove(which);
            let written = lent.answer.len() as u32;
            self.device.add_used(&self.their_memory, head, written).expect("a good head");
            self.used.push_back(lent);
            self.completed += 1;
        }
        let is_due = (before..self.completed).any(|at| at as u16 == self.call_at as u16);
        let call = self.device.needs_notification(&self.their_memory).expect("in memory");
        assert_eq!(call, is_due || !self.has_event);
    }

    /// The driver takes all back that was used.
    fn reclaim(&mut self) {
        while let Some(Lent { writable, answer, .. }) = self.used.pop_front() {
            let Used { owner, written } = self.driver.reclaim().expect("a good ring").expect("one was used");
            assert_eq!(written as usize, answer.len());
            let at = writable.first().map_or(buffer(owner), |s| s.addr.0);
            assert_eq!(at & !0xfff, buffer(owner), "the owner is another chain's");
            assert_eq!(self.guest.read(at, answer.len()), answer);
            self.buffers.push(owner);
            self.reclaimed += 1;
        }
        assert_eq!(self.driver.reclaim(), Ok(None));
    }

    /// Sends `count` chains; each side does now more, now less, and asks to be notified now and then.
    fn run(&mut self, count: u64) {
        let size = usize::from(self.driver.size());
        let end = self.added + count;
        let mut is_suppressed = false;
        while self.added < end {
            let (add, take) = (1 + self.below(size), self.below(size + 1));
            self.add(add, is_suppressed);
            self.take(take);
            let count = self.below(self.taken.len() + 1);
            self.complete(count);
            is_suppressed = self.below(2) == 0;
            if is_suppressed {
                self.device.disable_notification(&self.their_memory).expect("in memory");
            } else {
                let again = self.device.enable_notification(&self.their_memory).expect("in memory");
                assert_eq!(again, !self.available.is_empty());
                self.kick_at = self.added - self.available.len() as u64;
            }
            self.reclaim();
            if self.below(2) == 0 {
                assert!(!self.driver.arm());
                self.call_at = self.reclaimed;
            }
        }
    }
}

/// What each side reads is what the other wrote, in whatever order chains are completed.
#[test]
fn their_device_serves_our_driver() {
    for features in [0, RING_EVENT_IDX, RING_INDIRECT_DESC, RING_EVENT_IDX | RING_INDIRECT_DESC] {
        for size in [1, 2, 4, 16, 32, 64, 128] {
            Mixed::new(size, features, 65500).run(2000);
        }
        // All the way round the indices.
        Mixed::new(8, features, 0).run(70_000);
        Mixed::new(256, features, 0).run(70_000);
    }
}
