//! The rings' memory ordering, checked on the queues themselves. Loom runs each model in every order of its two
//! threads, up to a number of interruptions, and with every stale value that a load may return by the language's
//! memory model. `make model` runs this.
//!
//! # Publishing
//!
//! What a side writes to descriptors, entries and buffers is published by one word: its release makes them visible
//! to a peer that loads that word with acquire. (A) is the pair for available chains, (U) the one for used chains.
//! [`exchange`] lets loom look for a chain that is seen with anything that is not its own.
//!
//! # Sleeping
//!
//! A side that finds nothing says when it wants to be notified, looks again, and sleeps. So each side stores to one
//! word and then loads the other's:
//!
//! ```text
//!     driver publishes                      device arms
//!
//!     store  available: one more            store  wish: notify me at the next
//!     ═══════ DriverPublish ═══════         ═════════ DeviceArm ═════════
//!     load   wish       → kick?             load   available  → sleep?
//! ```
//!
//! A processor puts its stores in a buffer of its own and goes on; the other processor sees them some time later.
//! So both loads can return what was there before both stores: the driver sees no wish and does not kick, the device
//! sees no chain and sleeps, with nobody left to wake it. Acquire and release do not help: they order loads with what
//! follows and stores with what precedes, not a store with a load behind it. A full fence does that: the load waits
//! until the store is visible. With one in each side, whoever is second sees the other's store; with a fence in one
//! side only, the other's load still overtakes its store.
//!
//! These are the pair (K); the same picture with sides exchanged is (C), of used chains and calls.
//!
//! | format and feature  | available            | wish for a kick      | used                 | wish for a call      |
//! |---------------------|----------------------|----------------------|----------------------|----------------------|
//! | split               | available ring `idx` | used ring `flags`    | used ring `idx`      | avail. ring `flags`  |
//! | split, `EVENT_IDX`  | available ring `idx` | `avail_event`        | used ring `idx`      | `used_event`         |
//! | packed, either way  | the head's flags     | device area          | the slot's flags     | driver area          |
//!
//! Each of the four fences is needed in each of these rows: the tests named `..._is_lost_without_...` take one away
//! and have loom find the lost notification.
#![cfg(loom)]

use std::fs::File;
use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind, panic_any};
use std::sync::Arc;

use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;
use ringway_memory::{FrontendVa, Gpa, Mapping, MemoryTable, RingArea};
use ringway_queue::{
    Areas, Burst, Chain, DeviceQueue, DriverConfig, DriverQueue, Fence, QueueConfig, ResumeState, Segment,
    Used, model,
};
use ringway_spec::feature::{RING_EVENT_IDX, RING_PACKED};
use ringway_spec::{packed, split};

/// The features of a format's queues: with flags, and with events.
const SPLIT: [u64; 2] = [0, RING_EVENT_IDX];
const PACKED: [u64; 2] = [RING_PACKED, RING_PACKED | RING_EVENT_IDX];

/// What a model panics with that ends with a side asleep, something for it to do, and no notification on its way.
const LOST: &str = "a notification was lost";

/// Has loom run a model with all fences in place, or without one of them.
///
/// In a run there are no more than three switches away from a thread that could have gone on: losing a notification
/// takes none or one. For a longer search there is `LOOM_MAX_PREEMPTIONS`.
fn run(without: Option<Fence>, model: impl Fn() + Sync + Send + 'static) {
    let mut loom = loom::model::Builder::new();
    loom.preemption_bound = loom.preemption_bound.or(Some(3));
    model::remove(without);
    loom.check(model);
}

/// That the model loses no notification, with flags and with events.
fn assert_none_lost(features: [u64; 2], model: fn(u64)) {
    for features in features {
        run(None, move || model(features));
    }
}

/// That loom finds the model to lose a notification without this fence, with flags and with events.
fn assert_lost_without(fence: Fence, features: [u64; 2], model: fn(u64)) {
    for features in features {
        let panic = catch_unwind(AssertUnwindSafe(|| run(Some(fence), move || model(features))));
        let panic = panic.expect_err("a model without the fence that loses nothing");
        assert_eq!(panic.downcast_ref::<&str>(), Some(&LOST), "features {features:#x}");
    }
}

/// Both halves of a new queue.
fn queue(features: u64, size: u16, memory: &Arc<MemoryTable>) -> (DriverQueue<u16>, DeviceQueue) {
    let lens = if features & RING_PACKED != 0 {
        [packed::desc_area_size(size), packed::EVENT_SIZE, packed::EVENT_SIZE]
    } else {
        [split::desc_area_size(size), split::avail_area_size(size), split::used_area_size(size)]
    };
    let [descriptor, driver, device] = lens.map(RingArea::model);
    let areas = Areas { descriptor: descriptor.clone(), driver: driver.clone(), device: device.clone() };
    let start = ResumeState::start(features);
    let config = DriverConfig { size, features, areas, start, max_chain: size, tables: None };
    let driver_queue = DriverQueue::new(config).expect("a driver's half");
    let areas = Areas { descriptor, driver, device };
    let config = QueueConfig {
        size,
        features,
        areas,
        memory: Arc::clone(memory),
        used_log: None,
        resume: start,
        inflight: None,
    };
    (driver_queue, DeviceQueue::start(config).expect("a device's half"))
}

/// Where notifications go, as an event counter: one that comes before its side sleeps is kept. It orders nothing;
/// the queues are not to rely on what carries a notification.
#[derive(Clone, Default)]
struct Bell(Arc<AtomicBool>);

impl Bell {
    fn ring(&self) {
        self.0.swap(true, Ordering::Relaxed);
    }

    /// Whether it rang since it was last asked.
    fn has_rung(&self) -> bool {
        self.0.swap(false, Ordering::Relaxed)
    }
}

/// That a side which sleeps, now that the other is done, has nothing to do or is about to wake.
fn assert_woken(bell: &Bell, has_work: bool) {
    if has_work && !bell.has_rung() {
        panic_any(LOST);
    }
}

/// A driver makes two chains available, one by one, while a device handles what it finds and falls asleep. Two,
/// because a queue with events begins with the wish for a kick at the first.
fn kicks(features: u64) {
    let (mut driver, mut device) = queue(features, 2, &Arc::default());
    let bell = Bell::default();
    let driving = thread::spawn({
        let bell = bell.clone();
        move || {
            for n in 0..2 {
                driver.add(&[Segment { addr: Gpa(0), len: 0 }], &[], n).expect("room");
                if driver.publish() {
                    bell.ring();
                }
            }
        }
    });
    let mut burst = Burst::default();
    loop {
        device.suppress();
        while let Some(chain) = device.next(&mut burst).expect("a chain") {
            device.complete(chain, 0);
        }
        // The driver does not sleep in this model.
        let _ = device.publish();
        if !device.arm() && !bell.has_rung() {
            break;
        }
    }
    driving.join().expect("the driver");
    assert_woken(&bell, device.has_available());
}

/// A device uses two chains, one by one, while a driver reclaims what it finds and falls asleep: [`kicks`] with sides
/// exchanged.
fn calls(features: u64) {
    let (mut driver, mut device) = queue(features, 2, &Arc::default());
    for n in 0..2 {
        driver.add(&[Segment { addr: Gpa(0), len: 0 }], &[], n).expect("room");
    }
    // The device does not sleep in this model.
    let _ = driver.publish();
    let mut burst = Burst::default();
    device.take(&mut burst, 2).expect("chains");
    let bell = Bell::default();
    let serving = thread::spawn({
        let bell = bell.clone();
        move || {
            while let Some(chain) = burst.next() {
                device.complete(chain, 0);
                if device.publish() {
                    bell.ring();
                }
            }
        }
    });
    loop {
        driver.suppress();
        while driver.reclaim().expect("a used chain").is_some() {}
        if !driver.arm() && !bell.has_rung() {
            break;
        }
    }
    serving.join().expect("the device");
    assert_woken(&bell, driver.has_used());
}

/// [DRV-SPLIT-notifying-the-device-01] With both fences of (K) no kick is lost.
#[test]
fn no_kick_of_a_split_queue_is_lost() {
    assert_none_lost(SPLIT, kicks);
}

/// [DRV-SPLIT-notifying-the-device-01] The driver's fence is needed.
#[test]
fn a_kick_of_a_split_queue_is_lost_without_the_drivers_fence() {
    assert_lost_without(Fence::DriverPublish, SPLIT, kicks);
}

/// And so is the device's.
#[test]
fn a_kick_of_a_split_queue_is_lost_without_the_devices_fence() {
    assert_lost_without(Fence::DeviceArm, SPLIT, kicks);
}

/// With both fences of (C) no call is lost.
#[test]
fn no_call_of_a_split_queue_is_lost() {
    assert_none_lost(SPLIT, calls);
}

/// The device's fence is needed.
#[test]
fn a_call_of_a_split_queue_is_lost_without_the_devices_fence() {
    assert_lost_without(Fence::DevicePublish, SPLIT, calls);
}

/// And so is the driver's.
#[test]
fn a_call_of_a_split_queue_is_lost_without_the_drivers_fence() {
    assert_lost_without(Fence::DriverArm, SPLIT, calls);
}

/// [DRV-PACKED-sending-available-buffer-notifications-01] With both fences of (K) no kick is lost.
#[test]
fn no_kick_of_a_packed_queue_is_lost() {
    assert_none_lost(PACKED, kicks);
}

/// [DRV-PACKED-sending-available-buffer-notifications-01] The driver's fence is needed.
#[test]
fn a_kick_of_a_packed_queue_is_lost_without_the_drivers_fence() {
    assert_lost_without(Fence::DriverPublish, PACKED, kicks);
}

/// And so is the device's.
#[test]
fn a_kick_of_a_packed_queue_is_lost_without_the_devices_fence() {
    assert_lost_without(Fence::DeviceArm, PACKED, kicks);
}

/// With both fences of (C) no call is lost.
#[test]
fn no_call_of_a_packed_queue_is_lost() {
    assert_none_lost(PACKED, calls);
}

/// The device's fence is needed.
#[test]
fn a_call_of_a_packed_queue_is_lost_without_the_devices_fence() {
    assert_lost_without(Fence::DevicePublish, PACKED, calls);
}

/// And so is the driver's.
#[test]
fn a_call_of_a_packed_queue_is_lost_without_the_drivers_fence() {
    assert_lost_without(Fence::DriverArm, PACKED, calls);
}

/// Chains that go to the device and back in a model of [`exchange`], numbered from 1. All that is in chain `n`
/// follows from `n`, and is another than in any other chain.
const CHAINS: u16 = 4;

/// Bytes of the buffers' memory.
const LEN: u16 = 256;

/// What the device reads of chain `n`.
fn readable(n: u16) -> Segment {
    Segment { addr: Gpa(n.into()), len: n.into() }
}

/// Where the device writes to in chain `n`, with room for more than it writes.
fn writable(n: u16) -> Segment {
    Segment { addr: Gpa((LEN / 2 + n).into()), len: u32::from(n) + 8 }
}

/// Memory of which each byte is its own address, so that a device can tell what address it was given.
fn memory() -> Arc<MemoryTable> {
    let mut file: File = tempfile::tempfile().expect("a temporary file");
    file.write_all(&(0..=u8::MAX).collect::<Vec<_>>()).expect("its bytes");
    let region = Mapping::region(file.into(), 0, LEN.into(), Gpa(0), FrontendVa(0)).expect("a region");
    Arc::new(MemoryTable::new(vec![region]).expect("a table"))
}

/// What chain `n` says to the device, and the device to the driver. Loom sees these words, in the place of bytes of
/// the chain's buffers.
#[derive(Clone)]
struct Words(RingArea);

impl Words {
    const QUESTION: u16 = 0x100;
    const ANSWER: u16 = 0x200;

    fn store(&self, n: u16, kind: u16) {
        self.0.store_u16(usize::from(n - 1) * 2, kind + n);
    }

    fn assert_is(&self, n: u16, kind: u16) {
        assert_eq!(self.0.load_u16(usize::from(n - 1) * 2), kind + n);
    }
}

/// That the device was given chain `n`, and all of it.
fn assert_is(chain: &Chain<'_>, n: u16, has_question: bool) {
    let parts = [(chain.readable(), readable(n), has_question), (chain.writable(), writable(n), true)];
    for (buf, segment, is_there) in parts {
        if is_there {
            assert_eq!(buf.len(), segment.len as usize);
            assert_eq!(buf.read_array(), Some([segment.addr.0 as u8]));
        } else {
            assert!(buf.is_empty());
        }
    }
}

/// A way to exchange the chains.
#[derive(Clone, Copy)]
struct Shape {
    /// Descriptors of the queue.
    size: u16,
    /// Whether a chain has two segments, or only the one to write to.
    has_question: bool,
    /// Chains that are published at once.
    burst: u16,
    /// How often each side looks while the other is at work.
    looks: usize,
}

struct Driver {
    queue: DriverQueue<u16>,
    words: Words,
    shape: Shape,
    added: u16,
    reclaimed: u16,
}

impl Driver {
    /// Reclaims what was used, and publishes as many bursts as there is room for.
    fn look(&mut self) {
        while let Some(Used { owner, written }) = self.queue.reclaim().expect("a used chain") {
            self.reclaimed += 1;
            assert_eq!((owner, written), (self.reclaimed, u32::from(owner)));
            self.words.assert_is(owner, Words::ANSWER);
        }
        let Shape { has_question, burst, .. } = self.shape;
        let slots = if has_question { 2 } else { 1 };
        while self.added < CHAINS && self.queue.free() >= burst * slots {
            for n in self.added + 1..=self.added + burst {
                self.words.store(n, Words::QUESTION);
                let question = [readable(n)];
                let question = if has_question { &question[..] } else { &[] };
                self.queue.add(question, &[writable(n)], n).expect("room");
            }
            self.added += burst;
            let _ = self.queue.publish();
        }
    }
}

struct Device {
    queue: DeviceQueue,
    chains: Burst,
    words: Words,
    shape: Shape,
    taken: u16,
}

impl Device {
    /// Uses what is available, and publishes it at once.
    fn look(&mut self) {
        self.queue.take(&mut self.chains, CHAINS.into()).expect("chains");
        while let Some(chain) = self.chains.next() {
            self.taken += 1;
            let n = self.taken;
            assert_is(&chain, n, self.shape.has_question);
            self.words.assert_is(n, Words::QUESTION);
            self.words.store(n, Words::ANSWER);
            self.queue.complete(chain, n.into());
        }
        assert_eq!(self.taken % self.shape.burst, 0, "part of a burst was available");
        let _ = self.queue.publish();
    }
}

/// All chains go to the device and back. Both sides look at the ring, now and then, while the other works; what is
/// left after that comes in turns.
fn exchange(features: u64, memory: &Arc<MemoryTable>, shape: Shape) {
    let (driver, device) = queue(features, shape.size, memory);
    let words = Words(RingArea::model(usize::from(CHAINS) * 2));
    let mut driver = Driver { queue: driver, words: words.clone(), shape, added: 0, reclaimed: 0 };
    let mut device = Device { queue: device, chains: Burst::default(), words, shape, taken: 0 };
    let driving = thread::spawn(move || {
        (0..shape.looks).for_each(|_| driver.look());
        driver
    });
    (0..shape.looks).for_each(|_| device.look());
    let mut driver = driving.join().expect("the driver");
    for _ in 0..=CHAINS {
        driver.look();
        device.look();
    }
    assert_eq!(driver.reclaimed, CHAINS);
}

/// Exchanges chains in every way that makes a difference. Events have no part in it.
fn exchange_all(features: u64) {
    let memory = memory();
    let shapes = [
        // Each chain in the place of the one before, in lap after lap.
        Shape { size: 1, has_question: false, burst: 1, looks: 3 },
        // The same for chains of two descriptors: the first is seen with its second.
        Shape { size: 2, has_question: true, burst: 1, looks: 3 },
        // Each burst in the place of the one before.
        Shape { size: 2, has_question: false, burst: 2, looks: 3 },
        // A device comes to where the first of a burst will be; behind it the second was written already.
        Shape { size: 4, has_question: false, burst: 2, looks: 2 },
    ];
    for shape in shapes {
        let memory = Arc::clone(&memory);
        run(None, move || exchange(features, &memory, shape));
    }
}

/// [DRV-SPLIT-updating-idx-01] [DEV-SPLIT-used-ring-01] A chain is seen with its own addresses, lengths and bytes,
/// and comes back with its own length and bytes.
#[test]
fn no_chain_of_a_split_queue_is_seen_with_another_ones_data() {
    exchange_all(SPLIT[0]);
}

/// [DRV-PACKED-updating-flags-01] [DRV-PACKED-scatter-gather-support-06] As in a split queue; and the head of a
/// chain is available only with its other descriptors.
#[test]
fn no_chain_of_a_packed_queue_is_seen_with_another_ones_data() {
    exchange_all(PACKED[0]);
}
