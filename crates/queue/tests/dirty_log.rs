//! The dirty log of a device: what differs in the guest's memory after the device worked, against what it marked.

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use common::{BASE, DESC, DEVICE, FRONTEND, Guest, packed, split};
use proptest::prelude::*;
use ringway_memory::{DirtyLog, FrontendVa, Gpa, Mapping, MemoryTable};
use ringway_queue::{Burst, DeviceQueue};
use ringway_spec::feature::{IN_ORDER, RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED};
use ringway_spec::split::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

const PAGE: u64 = 4096;
/// Where buffers are: 64 pages, half of them in each of two regions that adjoin for the guest, and only for it.
const BUFFERS: u64 = BASE + 0x20_0000;
const BUFFERS_LEN: u64 = 64 * PAGE;
const SECOND: u64 = BUFFERS + BUFFERS_LEN / 2;
/// Where indirect tables are, a page each.
const TABLES: u64 = BASE + 0x10_0000;
/// Where the log has the device area: in no memory of the guest's, and with another offset in its page.
const USED_LOG: u64 = BASE + 0x40_0000 + 0xffc;
/// Bytes of a log with room for all of that.
const LOG_LEN: u64 = (BASE + 0x100_0000) / PAGE / 8;
const SIZE: u16 = 256;

fn file(len: u64) -> File {
    let file = memfd_create("memory", MemfdFlags::CLOEXEC).expect("a memfd");
    ftruncate(&file, len).expect("its length");
    file.into()
}

/// A guest whose memory has a log.
struct Logged {
    guest: Guest,
    log: File,
}

impl Logged {
    fn new(log_len: u64, used_log: Option<Gpa>) -> Self {
        let region = |gpa, len, va| {
            let file = file(len).into();
            Mapping::region(file, 0, len, Gpa(gpa), FrontendVa(va)).expect("a region")
        };
        let regions =
            vec![region(SECOND, BASE + 0x30_0000 - SECOND, 0), region(BASE, SECOND - BASE, FRONTEND)];
        let log = file(log_len);
        let map = DirtyLog::map(log.try_clone().expect("a clone").into(), 0, log_len).expect("a log");
        let table = MemoryTable::new(regions).expect("a table").with_log(Some(Arc::new(map)));
        Self { guest: Guest { memory: Arc::new(table), used_log }, log }
    }

    /// The pages that are marked, and the log cleared.
    fn take(&self) -> BTreeSet<u64> {
        let mut bytes = vec![0; self.log.metadata().expect("its length").len() as usize];
        self.log.read_exact_at(&mut bytes, 0).expect("the log");
        self.log.write_all_at(&vec![0; bytes.len()], 0).expect("cleared");
        let bit = |page: &u64| bytes[(page / 8) as usize] >> (page % 8) & 1 == 1;
        (0..bytes.len() as u64 * 8).filter(bit).collect()
    }

    /// The pages of buffers that are marked, counted from the first, and the log cleared.
    fn take_buffers(&self) -> Vec<u64> {
        let pages = BUFFERS / PAGE..(BUFFERS + BUFFERS_LEN) / PAGE;
        self.take().range(pages).map(|page| page - BUFFERS / PAGE).collect()
    }

    /// All that a device may write to.
    fn snapshot(&self) -> Vec<u8> {
        self.guest.read(BASE, (BUFFERS + BUFFERS_LEN - BASE) as usize)
    }

    /// The pages of the log that stand for the bytes which differ from those of `before`.
    fn changed(&self, before: &[u8]) -> BTreeSet<u64> {
        let after = self.snapshot();
        let differing = (0..after.len()).filter(|&at| before[at] != after[at]);
        let logged_at = |at: usize| match at as u64 {
            at @ DEVICE..0x10_0000 => USED_LOG + at - DEVICE,
            at => BASE + at,
        };
        differing.map(|at| logged_at(at) / PAGE).collect()
    }
}

/// A buffer: address, length, and whether the device may write to it.
type Buffer = (u64, u32, bool);

/// A driver of either format, whose chains are all used before it offers more.
enum Driver {
    Split { driver: split::Driver, next: u16 },
    Packed(packed::Driver),
}

impl Driver {
    fn new(guest: &Guest, features: u64) -> Self {
        if features & RING_PACKED != 0 {
            Self::Packed(packed::Driver::in_guest(guest.clone(), SIZE, u64::from(SIZE) * 2 - 5))
        } else {
            Self::Split { driver: split::Driver::in_guest(guest.clone(), SIZE, 65530), next: 0 }
        }
    }

    fn start(&self, features: u64) -> DeviceQueue {
        match self {
            Self::Split { driver, .. } => driver.start(features),
            Self::Packed(driver) => driver.start(features),
        }
    }

    /// Offers a chain; with `table`, by an indirect table in that page.
    fn offer(&mut self, buffers: &[Buffer], table: Option<u64>) {
        let write = |is_writable| if is_writable { DESC_F_WRITE } else { 0 };
        match self {
            Self::Split { driver, next } => {
                let link = |first: u16| {
                    let last = buffers.len() as u16 - 1;
                    buffers.iter().zip(0..).map(move |(&(addr, len, is_writable), i)| {
                        let flags = write(is_writable) | if i == last { 0 } else { DESC_F_NEXT };
                        (addr, len, flags, first + i + 1)
                    })
                };
                let head = *next;
                if let Some(page) = table {
                    let at = TABLES + page * PAGE;
                    driver.guest.write_table(at, &link(0).collect::<Vec<_>>());
                    driver.set_descriptor(head, at, buffers.len() as u32 * 16, DESC_F_INDIRECT, 0);
                    *next += 1;
                } else {
                    for (addr, len, flags, following) in link(head) {
                        driver.set_descriptor(*next, addr, len, flags, following);
                        *next += 1;
                    }
                }
                driver.offer(head);
                *next %= SIZE / 2;
            }
            Self::Packed(driver) => {
                if let Some(page) = table {
                    let at = TABLES + page * PAGE;
                    let entries = buffers.iter().map(|&(addr, len, w)| (addr, len, 0, write(w)));
                    driver.guest.write_table(at, &entries.collect::<Vec<_>>());
                    driver.offer(7, &[(at, buffers.len() as u32 * 16, DESC_F_INDIRECT)]);
                } else {
                    let buffers: Vec<_> =
                        buffers.iter().map(|&(addr, len, w)| (addr, len, write(w))).collect();
                    driver.offer(7, &buffers);
                }
            }
        }
    }
}

/// What a device does with a chain.
#[derive(Debug, Clone)]
struct Work {
    buffers: Vec<Buffer>,
    /// How much of its room is written to, of 256.
    share: u32,
    is_indirect: bool,
    is_detached: bool,
}

fn work() -> impl Strategy<Value = Work> {
    let buffer = (0..BUFFERS_LEN - 3 * PAGE, prop_oneof![1..200u32, 4000..4200u32, 1..12_000u32]);
    let buffers = (prop::collection::vec(buffer, 1..6), 0..6usize);
    (buffers, prop_oneof![Just(0), Just(256), 0..=256u32], any::<bool>(), any::<bool>()).prop_map(
        |((buffers, readable), share, is_indirect, is_detached)| {
            let buffers = buffers.into_iter().enumerate();
            let buffers = buffers.map(|(i, (at, len))| (BUFFERS + at, len, i >= readable)).collect();
            Work { buffers, share, is_indirect, is_detached }
        },
    )
}

fn features() -> impl Strategy<Value = u64> {
    let flag = |feature| prop_oneof![Just(0), Just(feature)];
    (flag(RING_PACKED), flag(RING_EVENT_IDX), flag(IN_ORDER))
        .prop_map(|(a, b, c)| a | b | c | RING_INDIRECT_DESC)
}

/// The pages of the first `written` bytes of the chain's room.
fn pages_written(work: &Work, written: u32) -> BTreeSet<u64> {
    let mut left = u64::from(written);
    let mut pages = BTreeSet::new();
    for &(addr, len, _) in work.buffers.iter().filter(|(.., is_writable)| *is_writable) {
        let len = left.min(len.into());
        pages.extend((addr..addr + len).map(|byte| byte / PAGE));
        left -= len;
    }
    pages
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    /// [VU-BE-migration-01] [VU-BE-migration-02] [VU-BE-migration-04] Bursts of chains, direct and indirect, detached or
    /// not, in buffers that go over pages and regions: of buffers exactly those pages are marked that were written
    /// to, and they are marked before the chain is published. Of the rings, each page that changed is marked, the
    /// device area where `log_guest_addr` says.
    #[test]
    fn what_the_device_changes_is_marked(
        features in features(),
        rounds in prop::collection::vec(prop::collection::vec(work(), 1..5), 1..12),
    ) {
        let world = Logged::new(LOG_LEN, Some(Gpa(USED_LOG)));
        let mut driver = Driver::new(&world.guest, features);
        let mut queue = driver.start(features);
        let mut burst = Burst::default();
        for (round, works) in (1..).zip(&rounds) {
            for (work, page) in works.iter().zip(0..) {
                driver.offer(&work.buffers, work.is_indirect.then_some(page));
            }
            world.take();
            let before = world.snapshot();
            prop_assert_eq!(queue.take(&mut burst, 64), Ok(works.len()));
            let (mut expected, mut in_flight) = (BTreeSet::new(), Vec::new());
            for work in works {
                let chain = burst.next().expect("a chain");
                let written = (u64::from(chain.writable_len()) * u64::from(work.share) / 256) as u32;
                chain.writable().write(&vec![round; written as usize]);
                expected.extend(pages_written(work, written));
                if work.is_detached {
                    in_flight.push((chain.detach(), written));
                } else {
                    queue.complete(chain, written);
                }
            }
            // Their buffers are in no list any more.
            prop_assert_eq!(queue.take(&mut burst, 64), Ok(0));
            for (chain, written) in in_flight {
                queue.complete(chain, written);
            }
            let mut marked = world.take();
            prop_assert_eq!(&marked, &expected);

            let _ = queue.publish();
            let _ = queue.arm();
            queue.suppress();
            marked.extend(world.take());
            let changed = world.changed(&before);
            prop_assert!(changed.is_subset(&marked), "{:?} was changed, {:?} marked", changed, marked);
            let rings = [BASE + DESC..BASE + DESC + 0x1000, USED_LOG..USED_LOG + 0x1000];
            let of_rings = |page: &&u64| rings.iter().any(|r| (r.start / PAGE..=(r.end - 1) / PAGE).contains(*page));
            let others: BTreeSet<u64> = marked.iter().filter(|page| !of_rings(page)).copied().collect();
            prop_assert_eq!(others, expected);
        }
        let (before, state) = (world.snapshot(), queue.stop());
        prop_assert_eq!(world.changed(&before), BTreeSet::new(), "stopped at {:?}", state);
    }
}

/// [VU-BE-migration-01] The last page marked is that of the last byte written, not of the buffer's.
#[test]
fn pages_past_the_last_byte_written_are_not_marked() {
    let world = Logged::new(LOG_LEN, None);
    for features in [0, RING_PACKED] {
        let mut driver = Driver::new(&world.guest, features);
        let mut queue = driver.start(features);
        let mut burst = Burst::default();
        for is_detached in [false, true] {
            for (start, written, pages) in [
                (0, 0, vec![]),
                (0, 1, vec![0]),
                (0, 4095, vec![0]),
                (0, 4096, vec![0]),
                (0, 4097, vec![0, 1]),
                (1, 4095, vec![0]),
                (1, 4096, vec![0, 1]),
                (4095, 1, vec![0]),
                (4095, 2, vec![0, 1]),
                // The second buffer is in the second region.
                (0, 8192, vec![0, 1]),
                (0, 8193, vec![0, 1, 31]),
                (0, 8193 + 4095, vec![0, 1, 31]),
                (0, 8193 + 4096, vec![0, 1, 31, 32]),
            ] {
                driver.offer(
                    &[
                        (BUFFERS + 40 * PAGE, 100, false),
                        (BUFFERS + start, 8192, true),
                        (SECOND - PAGE, 9000, true),
                    ],
                    None,
                );
                assert_eq!(common::take(&mut queue, &mut burst), 1);
                let chain = burst.next().expect("a chain");
                if is_detached {
                    queue.complete(chain.detach(), written);
                } else {
                    queue.complete(chain, written);
                }
                assert_eq!(world.take_buffers(), pages, "{written} bytes at {start}");
                let _ = queue.publish();
                assert_eq!(world.take_buffers(), [], "marked once");
            }
        }
    }
}

/// [VU-BE-migration-02] [VU-BE-migration-04] What the device writes to its area is marked if the ring is logged, each
/// time that it writes: when it starts, arms, suppresses and publishes. If the ring is not logged it is not; a
/// packed ring's used descriptors are in the driver's memory and always marked.
#[test]
fn the_device_area_is_marked_if_the_ring_is_logged() {
    // Pages of the log: the area begins 4 bytes before the end of the first.
    let (first, second) = (USED_LOG / PAGE, USED_LOG / PAGE + 1);
    let ring = BASE / PAGE;
    for (features, used_log, started, armed, suppressed, published) in [
        // Flags and index are in the first page, entries and `avail_event` in the second.
        (0, true, vec![first], vec![first], vec![first], vec![first, second]),
        (RING_EVENT_IDX, true, vec![first], vec![second], vec![], vec![first, second]),
        (0, false, vec![], vec![], vec![], vec![]),
        // The wish at the start is that for every notification.
        (RING_PACKED, true, vec![first], vec![], vec![first], vec![ring]),
        (RING_PACKED | RING_EVENT_IDX, true, vec![first], vec![first], vec![first], vec![ring]),
        (RING_PACKED, false, vec![], vec![], vec![], vec![ring]),
    ] {
        let world = Logged::new(LOG_LEN, used_log.then_some(Gpa(USED_LOG)));
        let marked = || world.take().into_iter().collect::<Vec<_>>();
        let mut driver = Driver::new(&world.guest, features);
        let mut queue = driver.start(features);
        assert_eq!(marked(), started, "start, {features:#x}");
        assert!(!queue.arm());
        assert_eq!(marked(), armed, "arm, {features:#x}");
        queue.suppress();
        assert_eq!(marked(), suppressed, "suppress, {features:#x}");
        driver.offer(&[(BUFFERS, 100, false)], None);
        let mut burst = Burst::default();
        common::take(&mut queue, &mut burst);
        common::complete(&mut queue, &mut burst, 0);
        assert_eq!(marked(), [], "nothing is published, {features:#x}");
        let _ = queue.publish();
        assert_eq!(marked(), published, "publish, {features:#x}");
        let _ = queue.publish();
        assert_eq!(marked(), [], "nothing new, {features:#x}");
    }
}

/// A burst that goes around the end of a long ring is marked at both ends, and not between.
#[test]
fn a_burst_around_the_end_of_a_ring_is_marked_at_both_ends() {
    const LONG: u16 = 4096;
    for features in [0, RING_PACKED] {
        let world = Logged::new(LOG_LEN, Some(Gpa(USED_LOG)));
        let mut burst = Burst::default();
        let mut queue = if features == 0 {
            let mut driver = split::Driver::in_guest(world.guest.clone(), LONG, LONG - 2);
            driver.set_descriptor(0, BUFFERS, 1, 0, 0);
            (0..4).for_each(|_| driver.offer(0));
            driver.start_at(features, LONG - 2)
        } else {
            let mut driver = packed::Driver::in_guest(world.guest.clone(), LONG, u64::from(LONG) - 2);
            (0..4).for_each(|id| driver.offer(id, &[(BUFFERS, 1, 0)]));
            driver.start_at(features, u64::from(LONG) - 2, u64::from(LONG) - 2)
        };
        world.take();
        assert_eq!(common::take(&mut queue, &mut burst), 4);
        common::complete(&mut queue, &mut burst, 0);
        let _ = queue.publish();
        let (start, bytes) = if features == 0 { (USED_LOG, 4 + 8 * 4096) } else { (BASE, 16 * 4096) };
        // Of a split ring: index and two entries, two entries.
        let last = (start + bytes - 1) / PAGE;
        let expected =
            if features == 0 { vec![start / PAGE, start / PAGE + 1, last] } else { vec![start / PAGE, last] };
        assert_eq!(world.take().into_iter().collect::<Vec<_>>(), expected);
    }
}

/// A log that is too short, or an area said to be past the end of all addresses, costs marks and nothing else.
#[test]
fn what_the_log_has_no_room_for_is_not_marked() {
    for features in [0, RING_PACKED] {
        for used_log in [BUFFERS + BUFFERS_LEN, u64::MAX, u64::MAX - 3] {
            let world = Logged::new((BUFFERS / PAGE + 8) / 8, Some(Gpa(used_log)));
            let mut driver = Driver::new(&world.guest, features);
            let mut queue = driver.start(features);
            let mut burst = Burst::default();
            driver.offer(&[(BUFFERS + 6 * PAGE, 4 * PAGE as u32, true)], None);
            assert_eq!(common::take(&mut queue, &mut burst), 1);
            common::complete(&mut queue, &mut burst, 4 * PAGE as u32);
            assert_eq!(world.take_buffers(), [6, 7]);
            let _ = queue.publish();
            let _ = queue.arm();
        }
    }
}

/// A front-end that shortens its log under a queue: that is told as for any of its memory, and the queue goes on.
#[test]
fn a_shortened_log_is_told_and_the_queue_goes_on() {
    for features in [0, RING_PACKED] {
        let world = Logged::new(LOG_LEN, Some(Gpa(USED_LOG)));
        let mut driver = Driver::new(&world.guest, features);
        let mut queue = driver.start(features);
        assert!(queue.is_memory_intact());
        ftruncate(world.log.as_fd(), 0).expect("shortened");
        let mut burst = Burst::default();
        for _ in 0..3 {
            driver.offer(&[(BUFFERS, 100, true)], None);
            assert_eq!(common::take(&mut queue, &mut burst), 1);
            common::complete(&mut queue, &mut burst, 100);
            assert!(queue.publish());
        }
        assert!(!queue.is_memory_intact());
    }
}

/// Logging ends with the queue: one that goes on in the table without the log marks nothing, one that goes on in the
/// table with it does again.
#[test]
fn a_queue_logs_from_its_start_to_its_stop() {
    for features in [0, RING_PACKED] {
        let world = Logged::new(LOG_LEN, Some(Gpa(USED_LOG)));
        let log = world.guest.memory.log().cloned();
        let mut driver = Driver::new(&world.guest, features);
        let mut queue = driver.start(features);
        let mut burst = Burst::default();
        for log in [log.clone(), None, log.clone(), None] {
            let is_logged = log.is_some();
            let memory = Arc::new(world.guest.memory.with_log(log));
            let state = queue.stop();
            world.take();
            queue = match &mut driver {
                Driver::Split { driver, .. } => {
                    driver.guest.memory = memory;
                    driver.start(features)
                }
                Driver::Packed(driver) => {
                    driver.guest.memory = memory;
                    driver.resume(features, state)
                }
            };
            driver.offer(&[(BUFFERS, 5000, true)], None);
            assert_eq!(common::take(&mut queue, &mut burst), 1);
            common::complete(&mut queue, &mut burst, 5000);
            let _ = queue.publish();
            let _ = queue.arm();
            assert_eq!(!world.take().is_empty(), is_logged);
        }
    }
}

/// [VU-BE-migration-06] A stop marks what it publishes. After it nothing is written and nothing marked, whatever becomes
/// of chains that were in flight.
#[test]
fn nothing_changes_after_a_stop() {
    for features in [0, RING_PACKED] {
        let world = Logged::new(LOG_LEN, Some(Gpa(USED_LOG)));
        let mut driver = Driver::new(&world.guest, features);
        let mut queue = driver.start(features);
        let mut burst = Burst::default();
        driver.offer(&[(BUFFERS, 100, true)], None);
        driver.offer(&[(BUFFERS + PAGE, 100, true)], None);
        driver.offer(&[(BUFFERS + 2 * PAGE, 100, true)], None);
        let before = world.snapshot();
        assert_eq!(common::take(&mut queue, &mut burst), 3);
        queue.complete(burst.next().expect("a chain"), 100);
        let in_flight = burst.next().expect("a chain").detach();
        let _ = queue.stop();
        assert!(world.changed(&before).is_subset(&world.take()));
        let stopped = world.snapshot();
        assert_ne!(stopped, before, "the first chain was published");
        drop((in_flight, burst));
        assert_eq!(world.changed(&stopped), BTreeSet::new());
        assert_eq!(world.take(), BTreeSet::new());
    }
}
