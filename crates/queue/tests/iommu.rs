//! A device behind an IOMMU: descriptors hold addresses that the front-end tells of when it is asked.

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use common::{BASE, DESC, DEVICE, DRIVER, FRONTEND, Guest, packed, split};
use ringway_memory::{Access, DirtyLog, FrontendVa, Gpa, Iotlb, Iova, MemoryError, Translation};
use ringway_queue::{Areas, Burst, DeviceQueue, Missing, QueueConfig, QueueError, ResumeState};
use ringway_spec::feature::{RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED};
use ringway_spec::split::{DESC_F_INDIRECT, DESC_F_NEXT, DESC_F_WRITE};
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

const PAGE: u64 = 4096;
const SIZE: u16 = 16;
/// Where the device sees buffers, page for page in reverse order of where they are.
const IOVA: u64 = 0xffff_ffff_0000_0000;
const PAGES: u64 = 512;
const FORMATS: [u64; 2] = [RING_INDIRECT_DESC, RING_INDIRECT_DESC | RING_PACKED];

/// Where a page is that the device sees at `IOVA + page * PAGE`.
fn guest_addr(page: u64) -> u64 {
    common::buffer(PAGES - 1 - page)
}

fn iova(page: u64) -> u64 {
    IOVA + page * PAGE
}

enum Driver {
    Split(split::Driver),
    Packed(packed::Driver),
}

/// A guest behind an IOMMU, with a queue.
struct World {
    guest: Guest,
    iotlb: Arc<Iotlb>,
    driver: Driver,
    features: u64,
}

impl World {
    fn new(features: u64) -> Self {
        let mut guest = Guest::new();
        let iotlb = Arc::new(Iotlb::default());
        let driver = if features & RING_PACKED != 0 {
            Driver::Packed(packed::Driver::in_guest(guest.clone(), SIZE, 27))
        } else {
            Driver::Split(split::Driver::in_guest(guest.clone(), SIZE, 65530))
        };
        guest.memory = Arc::new(guest.memory.with_translation(Some(iotlb.clone())));
        Self { guest, iotlb, driver, features }
    }

    /// The front-end tells of a page of buffers.
    fn tell(&self, page: u64, access: Access) {
        let to = FrontendVa(FRONTEND + guest_addr(page) - BASE);
        self.iotlb.update(Iova(iova(page)), PAGE, to, access).expect("a range");
    }

    /// The front-end tells of what it was asked for.
    fn answer(&self, asked: (Iova, Access)) {
        self.tell((asked.0.0 - IOVA) / PAGE, asked.1);
    }

    fn forget(&self, page: u64) {
        self.iotlb.invalidate(Iova(iova(page)), PAGE);
    }

    /// Whether the rings are where the front-end says; the device sees them where its process does.
    fn areas(&self) -> Result<Areas, MemoryError> {
        let at = |offset| FrontendVa(FRONTEND + offset);
        Areas::resolve(&self.guest.memory, SIZE, self.features, at(DESC), at(DRIVER), at(DEVICE))
    }

    fn start(&self) -> DeviceQueue {
        let all = FrontendVa(FRONTEND);
        self.iotlb.update(Iova(FRONTEND), 0x20_0000, all, Access::READ_WRITE).expect("a range");
        let resume = match &self.driver {
            Driver::Split(driver) => ResumeState::Split { next_avail: driver.next_avail },
            Driver::Packed(driver) => driver.state(driver.avail, driver.used),
        };
        let memory = Arc::clone(&self.guest.memory);
        let areas = self.areas().expect("known to the IOMMU");
        let used_log = Some(areas.device.gpa());
        DeviceQueue::start(QueueConfig {
            size: SIZE,
            features: self.features,
            areas,
            memory,
            used_log,
            resume,
            inflight: None,
        })
        .expect("a queue")
    }

    /// Makes a chain available: buffers by address in the device's view, length, and flags.
    fn offer(&mut self, first: u16, buffers: &[(u64, u32, u16)]) {
        match &mut self.driver {
            Driver::Split(driver) => {
                for (&(addr, len, flags), i) in buffers.iter().zip(0..) {
                    let next = if usize::from(i) + 1 < buffers.len() { DESC_F_NEXT } else { 0 };
                    driver.set_descriptor(first + i, addr, len, flags | next, first + i + 1);
                }
                driver.offer(first);
            }
            Driver::Packed(driver) => driver.offer(first, buffers),
        }
    }

    /// Writes an indirect table to a page that the device sees; returns the descriptor of it.
    fn table(&self, page: u64, buffers: &[(u64, u32, u16)]) -> (u64, u32, u16) {
        let is_packed = self.features & RING_PACKED != 0;
        let entries = buffers.iter().zip(1..).map(|(&(addr, len, flags), next)| {
            let link = if usize::from(next) < buffers.len() { DESC_F_NEXT } else { 0 };
            if is_packed { (addr, len, 0, flags) } else { (addr, len, flags | link, next) }
        });
        // By guest-physical addresses, as the driver's processor does.
        let plain = Guest { memory: Arc::new(self.guest.memory.with_translation(None)), used_log: None };
        plain.write_table(guest_addr(page), &entries.collect::<Vec<_>>());
        (iova(page), buffers.len() as u32 * 16, DESC_F_INDIRECT)
    }

    fn read(&self, page: u64, len: usize) -> Vec<u8> {
        let plain = Guest { memory: Arc::new(self.guest.memory.with_translation(None)), used_log: None };
        plain.read(guest_addr(page), len)
    }

    fn used(&mut self, slots: u64) -> Option<u32> {
        match &mut self.driver {
            Driver::Split(driver) => driver.reclaim().map(|(_, len)| len),
            Driver::Packed(driver) => driver.reclaim(slots).map(|used| used.len),
        }
    }
}

/// What a queue tells that it waits for.
fn missing(queue: &mut DeviceQueue) -> Option<(Iova, Access)> {
    queue.missing().map(|missing| (missing.iova, missing.access))
}

/// Takes chains until there are `count` in the burst, telling each page that is asked for; returns what was asked.
fn take_asking(
    world: &World,
    queue: &mut DeviceQueue,
    burst: &mut Burst,
    count: usize,
) -> Vec<(u64, Access)> {
    let mut asked = Vec::new();
    for _ in 0..100 {
        queue.take(burst, 64).expect("a good ring");
        if burst.len() >= count {
            return asked;
        }
        let miss = missing(queue).expect("something to ask for");
        assert!(!queue.has_available());
        asked.push((miss.0.0, miss.1));
        world.answer(miss);
        assert!(queue.has_available());
    }
    panic!("{count} chains do not come: {asked:x?}");
}

/// Nothing is told ahead. A chain's pages, scattered in memory, are asked for one by one, with
/// the access that each is wanted for; then it is taken whole, and its answer is where the guest has its pages.
#[test]
fn pages_are_asked_for_one_by_one() {
    for features in FORMATS {
        let mut world = World::new(features);
        let mut queue = world.start();
        let mut burst = Burst::default();
        world.offer(0, &[(iova(3) + 4000, 200, 0), (iova(10) + 100, 8000, DESC_F_WRITE)]);
        let asked = take_asking(&world, &mut queue, &mut burst, 1);
        let (read, write) = (Access::READ, Access::WRITE);
        assert_eq!(
            asked,
            [(iova(3) + 4000, read), (iova(4), read), (iova(10) + 100, write), (iova(11), write)]
        );
        let chain = burst.next().expect("a chain");
        assert_eq!((chain.readable().len(), chain.writable_len()), (200, 8000));
        assert_eq!(chain.writable().write(&[7; 8000]), 8000);
        queue.complete(chain, 8000);
        assert!(queue.publish());
        assert_eq!(world.used(2), Some(8000));
        assert_eq!(world.read(10, 4096), [vec![0; 100], vec![7; 3996]].concat());
        assert_eq!(world.read(11, 4096), [vec![7; 4004], vec![0; 92]].concat());
        assert_eq!((missing(&mut queue), queue.take(&mut burst, 64)), (None, Ok(0)));
    }
}

/// An indirect table is asked for as any buffer is, then what it names.
#[test]
fn tables_and_what_they_name_are_asked_for() {
    for features in FORMATS {
        let mut world = World::new(features);
        let mut queue = world.start();
        let mut burst = Burst::default();
        let table =
            world.table(1, &[(iova(5), 10, 0), (iova(7), 20, DESC_F_WRITE), (iova(9), 30, DESC_F_WRITE)]);
        world.offer(0, &[table]);
        let asked = take_asking(&world, &mut queue, &mut burst, 1);
        let (read, write) = (Access::READ, Access::WRITE);
        assert_eq!(asked, [(iova(1), read), (iova(5), read), (iova(7), write), (iova(9), write)]);
        let chain = burst.next().expect("a chain");
        assert_eq!((chain.readable().len(), chain.writable_len()), (10, 50));
        queue.complete(chain, 0);
    }
}

/// The chains before the one that waits are taken, those behind it are not; order stays. While it waits there is nothing
/// to do, and an update, of whatever address, is worth a look: what is still missing is told once more.
#[test]
fn a_queue_waits_at_the_chain_that_needs_an_address() {
    for features in FORMATS.into_iter().chain(FORMATS.map(|features| features | RING_EVENT_IDX)) {
        let mut world = World::new(features);
        let mut queue = world.start();
        let mut burst = Burst::default();
        world.tell(0, Access::READ);
        for (chain, page) in (0..).zip([0, 1, 0]) {
            world.offer(chain, &[(iova(page), 10 + u32::from(chain), 0)]);
        }
        assert!(queue.has_available());
        assert_eq!(queue.take(&mut burst, 64), Ok(1));
        let wanted = Some((Iova(iova(1)), Access::READ));
        assert_eq!((missing(&mut queue), missing(&mut queue)), (wanted, None));
        let updates = world.iotlb.updates();
        for _ in 0..3 {
            assert!(!queue.has_available() && !queue.arm());
            assert_eq!(queue.take(&mut burst, 64), Ok(0));
        }
        let chain = burst.next().expect("the first chain");
        assert_eq!(chain.readable().len(), 10);
        queue.complete(chain, 0);
        assert!(queue.publish(), "what was taken goes its way");

        // Another's address, known already or not.
        world.tell(0, Access::READ);
        assert!(queue.has_available() && queue.arm());
        assert_eq!(queue.take(&mut burst, 64), Ok(0));
        let (iova, access) = (Iova(iova(1)), Access::READ);
        assert_eq!(queue.missing(), Some(Missing { iova, access, updates: updates + 1 }));
        assert_eq!(queue.missing(), None);
        assert!(!queue.has_available());
        // The answer came, and was taken back before it was seen.
        world.tell(1, Access::READ);
        world.forget(1);
        assert!(queue.has_available());
        assert_eq!((queue.take(&mut burst, 64), missing(&mut queue)), (Ok(0), wanted));
        world.tell(1, Access::READ);
        assert_eq!((queue.take(&mut burst, 64), missing(&mut queue)), (Ok(2), None));
        let lens: Vec<usize> = std::iter::from_fn(|| Some(burst.next()?.readable().len())).collect();
        assert_eq!(lens, [11, 12]);
        assert!(!queue.has_available());
    }
}

/// A translation that is taken back when it is looked up next.
struct Fleeting {
    iotlb: Arc<Iotlb>,
    loses: AtomicBool,
}

impl Translation for Fleeting {
    fn translate(
        &self,
        iova: Iova,
        len: u64,
        access: Access,
        piece: &mut dyn FnMut(FrontendVa, u64) -> Result<(), MemoryError>,
    ) -> Result<(), MemoryError> {
        if self.loses.swap(false, Ordering::Relaxed) {
            self.iotlb.invalidate(iova, PAGE);
        }
        self.iotlb.translate(iova, len, access, piece)
    }

    fn updates(&self) -> u64 {
        self.iotlb.updates()
    }
}

/// An answer that is taken back after the device saw that there is one, and before it looks at it, is asked for again.
#[test]
fn an_answer_lost_at_the_last_moment_is_asked_for_again() {
    for features in FORMATS {
        let mut world = World::new(features);
        let fleeting = Arc::new(Fleeting { iotlb: Arc::clone(&world.iotlb), loses: AtomicBool::new(false) });
        world.guest.memory = Arc::new(world.guest.memory.with_translation(Some(fleeting.clone())));
        let mut queue = world.start();
        let mut burst = Burst::default();
        world.offer(0, &[(iova(0), 10, 0)]);
        let wanted = Some((Iova(iova(0)), Access::READ));
        for _ in 0..3 {
            assert_eq!((queue.take(&mut burst, 64), missing(&mut queue)), (Ok(0), wanted));
            world.tell(0, Access::READ);
            fleeting.loses.store(true, Ordering::Relaxed);
        }
        assert_eq!((queue.take(&mut burst, 64), missing(&mut queue)), (Ok(0), wanted));
        world.tell(0, Access::READ);
        assert_eq!((queue.take(&mut burst, 64), missing(&mut queue)), (Ok(1), None));
    }
}

/// What the front-end takes back is asked for again, also for chains that were taken and given back.
#[test]
fn what_is_forgotten_is_asked_for_again() {
    for features in FORMATS {
        let mut world = World::new(features);
        let mut queue = world.start();
        let mut burst = Burst::default();
        world.tell(0, Access::WRITE);
        for chain in 0..3 {
            world.offer(chain, &[(iova(0), 10, DESC_F_WRITE)]);
        }
        assert_eq!(queue.take(&mut burst, 2), Ok(2));
        world.forget(0);
        assert_eq!(queue.take(&mut burst, 2), Ok(0));
        assert_eq!(missing(&mut queue), Some((Iova(iova(0)), Access::WRITE)));
        queue.rewind(&mut burst);
        assert!(queue.has_available(), "a chain that did not wait comes next");
        assert_eq!(take_asking(&world, &mut queue, &mut burst, 3), [(iova(0), Access::WRITE)]);
    }
}

/// A chain that is looked at a thousand times in vain leaves nothing in the burst.
#[test]
fn chains_half_walked_leave_no_trace() {
    for features in FORMATS {
        let mut world = World::new(features);
        let mut queue = world.start();
        let mut burst = Burst::default();
        (0..10).for_each(|page| world.tell(page, Access::READ));
        world.offer(0, &[(iova(0), 10, 0)]);
        world.offer(1, &[(iova(0), 9 * PAGE as u32, 0), (iova(100), 5, 0)]);
        assert_eq!(queue.take(&mut burst, 64), Ok(1));
        for _ in 0..1000 {
            world.tell(1, Access::READ);
            assert_eq!(queue.take(&mut burst, 64), Ok(0));
        }
        world.tell(100, Access::READ);
        assert_eq!(queue.take(&mut burst, 64), Ok(1));
        assert_eq!(burst.next().expect("the first").readable().len(), 10);
        let second = burst.next().expect("the second").readable();
        assert_eq!((second.len(), second.pieces().count()), (9 * PAGE as usize + 5, 10));
    }
}

/// An address that may not be used as the driver says ends the queue, as one that leads nowhere does.
#[test]
fn what_is_not_allowed_ends_the_queue() {
    for features in FORMATS {
        let denied = |page, access| MemoryError::Denied { iova: Iova(iova(page)), access };
        let nowhere = MemoryError::UnmappedArea { addr: FrontendVa(0), len: 10 };
        let bad = MemoryError::BadRange { iova: Iova(u64::MAX), len: 10 };
        for (buffer, error) in [
            ((iova(0), 10, DESC_F_WRITE), denied(0, Access::WRITE)),
            ((iova(1), 10, 0), denied(1, Access::READ)),
            ((iova(1), 16, DESC_F_INDIRECT), denied(1, Access::READ)),
            ((iova(2), 10, 0), nowhere),
            ((u64::MAX, 10, 0), bad),
        ] {
            let mut world = World::new(features);
            let mut queue = world.start();
            let mut burst = Burst::default();
            world.tell(0, Access::READ);
            world.tell(1, Access::WRITE);
            world.iotlb.update(Iova(iova(2)), PAGE, FrontendVa(0), Access::READ_WRITE).expect("a range");
            world.offer(0, &[(iova(0), 10, 0)]);
            world.offer(1, &[buffer]);
            assert_eq!(queue.take(&mut burst, 64), Ok(1));
            assert_eq!(missing(&mut queue), None);
            assert!(queue.has_available(), "an error to tell");
            for _ in 0..2 {
                world.tell(0, Access::READ_WRITE);
                assert_eq!(queue.take(&mut burst, 64), Err(QueueError::Memory(error)));
            }
        }
    }
}

/// The areas of a ring are asked for page by page; the driver's is read only.
#[test]
fn areas_are_asked_for() {
    let (read, both) = (Access::READ, Access::READ_WRITE);
    for (features, descriptors) in [(0, read), (RING_PACKED, both)] {
        let world = World::new(features);
        for (offset, access) in [(DESC, descriptors), (DRIVER, read), (DEVICE, both)] {
            let iova = Iova(FRONTEND + offset);
            assert_eq!(world.areas().err(), Some(MemoryError::Miss { iova, access }));
            world.iotlb.update(iova, PAGE, FrontendVa(iova.0), access).expect("a range");
        }
        let areas = world.areas().expect("all are known");
        assert_eq!(areas.device.gpa(), Gpa(BASE + DEVICE));
        world
            .iotlb
            .update(Iova(FRONTEND + DEVICE), PAGE, FrontendVa(FRONTEND + DEVICE), read)
            .expect("a range");
        let denied = MemoryError::Denied { iova: Iova(FRONTEND + DEVICE), access: both };
        assert_eq!(world.areas().err(), Some(denied));
    }
}

/// What the device writes is marked where the guest has it.
#[test]
fn the_dirty_log_is_by_guest_physical_addresses() {
    for features in FORMATS {
        let mut world = World::new(features);
        let len = (BASE + common::LEN) / PAGE / 8;
        let file = memfd_create("log", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&file, len).expect("its length");
        let file = File::from(file);
        let log = DirtyLog::map(file.try_clone().expect("a clone").into(), 0, len).expect("a log");
        world.guest.memory = Arc::new(world.guest.memory.with_log(Some(Arc::new(log))));
        let mut queue = world.start();
        let mut burst = Burst::default();
        world.offer(0, &[(iova(0), 10, 0), (iova(3) + 1, 2 * PAGE as u32, DESC_F_WRITE)]);
        take_asking(&world, &mut queue, &mut burst, 1);
        queue.complete(burst.next().expect("a chain"), PAGE as u32);
        let _ = queue.publish();
        let mut bits = vec![0; len as usize];
        file.read_exact_at(&mut bits, 0).expect("the log");
        let marked: BTreeSet<u64> =
            (0..len * 8).filter(|page| bits[(page / 8) as usize] >> (page % 8) & 1 == 1).collect();
        let of_ring =
            if features & RING_PACKED == 0 { vec![BASE + DEVICE] } else { vec![BASE + DESC, BASE + DEVICE] };
        let expected = [guest_addr(3), guest_addr(4)].into_iter().chain(of_ring).map(|addr| addr / PAGE);
        assert_eq!(marked, expected.collect());
    }
}

/// A front-end that tells and takes back at any time, while a device takes chains and sleeps when there is nothing: each
/// chain comes, whole and in order.
#[test]
fn chains_come_while_the_iotlb_changes() {
    const MISSES: u32 = 1000;
    for features in FORMATS {
        let mut world = World::new(features);
        let mut queue = world.start();
        let mut burst = Burst::default();
        let deadline = Instant::now() + Duration::from_mins(1);
        let stop = Arc::new(AtomicBool::new(false));
        // The control thread: answers what is asked, tells of other pages, takes some back.
        let (ask, asked) = std::sync::mpsc::channel::<(Iova, Access)>();
        let control = thread::spawn({
            let (iotlb, stop, device) = (Arc::clone(&world.iotlb), Arc::clone(&stop), thread::current());
            move || {
                for round in (0..).take_while(|_| !stop.load(Ordering::Relaxed)) {
                    let page = |iova: u64| (iova - IOVA) / PAGE;
                    for (iova, access) in asked.try_iter() {
                        let to = FrontendVa(FRONTEND + guest_addr(page(iova.0)) - BASE);
                        let start = Iova(iova.0 & !(PAGE - 1));
                        iotlb.update(start, PAGE, to, access).expect("a range");
                        device.unpark();
                    }
                    if round % 4 == 0 {
                        iotlb.invalidate(Iova(iova(round / 4 % 8)), PAGE);
                    }
                    thread::yield_now();
                }
            }
        });
        let (mut misses, mut chain) = (0, 0u32);
        while misses < MISSES {
            chain = chain.wrapping_add(1);
            let page = u64::from(chain % 7);
            world.offer(0, &[(iova(page), 8 + chain % 2 * PAGE as u32 / 2, 0), (iova(7), 16, DESC_F_WRITE)]);
            let len = loop {
                assert!(Instant::now() < deadline, "chain {chain} does not come");
                queue.take(&mut burst, 1).expect("a good ring");
                if let Some(asked) = missing(&mut queue) {
                    misses += 1;
                    ask.send(asked).expect("the control thread");
                }
                if let Some(next) = burst.next() {
                    let len = next.readable().len();
                    queue.complete(next, 16);
                    break len;
                }
                if !queue.arm() {
                    let asleep = Instant::now();
                    thread::park_timeout(Duration::from_secs(10));
                    assert!(
                        asleep.elapsed() < Duration::from_secs(10),
                        "chain {chain}: nobody wakes the device"
                    );
                }
            };
            assert_eq!(len as u64, 8 + u64::from(chain % 2) * PAGE / 2);
            let _ = queue.publish();
            assert_eq!(world.used(2), Some(16));
        }
        stop.store(true, Ordering::Relaxed);
        control.join().expect("no panic");
    }
}
