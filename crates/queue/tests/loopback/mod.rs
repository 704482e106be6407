//! Our driver looped to our device, with a model of both that every answer is compared with.
//!
//! ```text
//!   added ──► available ──► waiting ──► in flight ──► completed ──► used ──► (reclaimed)
//!         publish       take       handle       complete       publish    reclaim
//! ```
//!
//! The model moves chains from list to list and counts positions, which never wrap: chains of a split ring,
//! slots of a packed one. A notification is due if the position at which the peer asked for it is among those
//! that
//! were just passed, one by one.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use ringway_memory::{FrontendVa, Gpa};
use ringway_queue::{
    AddError, Burst, Cursor, DeviceQueue, DriverConfig, DriverQueue, InFlight, IndirectTables, NotAdded,
    QueueConfig, ResumeState, Segment, Used,
};
use ringway_spec::feature::{IN_ORDER, RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED};

use crate::common::{BASE, FRONTEND, Guest};

/// Where the indirect tables are, behind the largest queue, and the buffers behind them.
const TABLES: u64 = 0x10_0000;
const BUFFERS: u64 = 0x20_0000;
/// The most bytes of a segment.
pub const SEGMENT: u32 = 64;
/// What a device-writable buffer holds before the device writes to it.
const UNTOUCHED: u8 = 0xee;
/// Whose bytes they are.
const SENT: u32 = 0;
const ANSWER: u32 = 0x5a;
const VQN: u16 = 5;

/// Every set of the features that change a ring.
pub fn feature_sets(format: u64) -> impl Iterator<Item = u64> {
    (0..8).map(move |bits| {
        let all = [RING_EVENT_IDX, RING_INDIRECT_DESC, IN_ORDER];
        (0..3).filter(|i| bits >> i & 1 != 0).fold(format, |features, i| features | all[i])
    })
}

#[derive(Debug, Clone, Copy)]
pub struct Config {
    pub size: u16,
    pub features: u64,
    /// The position at which both sides begin.
    pub start: u64,
    pub max_chain: u16,
    /// Entries of an indirect table; 0 is no memory for tables.
    pub table: u16,
}

impl Config {
    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    pub fn is_in_order(&self) -> bool {
        self.has(IN_ORDER)
    }

    /// After how many positions a ring's indices come round.
    pub fn period(&self) -> u64 {
        if self.has(RING_PACKED) { 2 * u64::from(self.size) } else { 1 << 16 }
    }

    fn cursor(&self, position: u64) -> Cursor {
        let size = u64::from(self.size);
        Cursor::new((position % size) as u16, (position / size).is_multiple_of(2))
    }

    fn state(&self, avail: u64, used: u64) -> ResumeState {
        if self.has(RING_PACKED) {
            ResumeState::Packed { avail: self.cursor(avail), used: self.cursor(used) }
        } else {
            ResumeState::Split { next_avail: avail as u16 }
        }
    }

    /// Descriptors of the ring that a chain of `len` segments takes.
    fn descriptors(&self, len: usize) -> u16 {
        let is_indirect = self.has(RING_INDIRECT_DESC) && len > 1 && len <= self.table.into();
        if is_indirect { 1 } else { len as u16 }
    }

    /// How far a chain of that many descriptors moves a position.
    fn step(&self, descriptors: u16) -> u64 {
        if self.has(RING_PACKED) { descriptors.into() } else { 1 }
    }

    fn driver(&self, guest: &Guest) -> DriverQueue<u32> {
        let tables = (self.table > 0).then(|| {
            let len = usize::from(self.size) * usize::from(self.table) * 16;
            IndirectTables {
                area: guest.memory.area(FrontendVa(FRONTEND + TABLES), len, 16).expect("room for tables"),
                addr: Gpa(BASE + TABLES),
                entries: self.table,
            }
        });
        DriverQueue::new(DriverConfig {
            size: self.size,
            features: self.features,
            areas: guest.areas(self.size, self.features),
            start: self.state(self.start, self.start),
            max_chain: self.max_chain,
            tables,
        })
        .expect("a queue")
    }

    fn device(&self, guest: &Guest, resume: ResumeState) -> DeviceQueue {
        DeviceQueue::start(QueueConfig {
            size: self.size,
            features: self.features,
            areas: guest.areas(self.size, self.features),
            memory: Arc::clone(&guest.memory),
            used_log: None,
            resume,
            inflight: None,
        })
        .expect("a queue")
    }
}

/// When a side wants to be notified.
#[derive(Debug, Clone, Copy)]
enum Wish {
    Always,
    Never,
    At(u64),
}

impl Wish {
    fn start(config: &Config) -> Self {
        let is_at = config.has(RING_EVENT_IDX) && !config.has(RING_PACKED);
        if is_at { Self::At(config.start) } else { Self::Always }
    }

    fn arm(&mut self, config: &Config, next: u64) {
        *self = if config.has(RING_EVENT_IDX) { Self::At(next) } else { Self::Always };
    }

    /// A split ring with `EVENT_IDX` has no way to say it: an event of the past stands for it.
    fn suppress(&mut self, config: &Config) {
        if config.has(RING_PACKED) || !config.has(RING_EVENT_IDX) {
            *self = Self::Never;
        }
    }

    fn is_met(self, passed: Range<u64>, period: u64) -> bool {
        match self {
            Self::Always => !passed.is_empty(),
            Self::Never => false,
            Self::At(event) => passed.into_iter().any(|at| at % period == event % period),
        }
    }
}

/// A chain, wherever it is.
#[derive(Debug)]
struct Lent {
    tag: u32,
    readable: Vec<Segment>,
    writable: Vec<Segment>,
    descriptors: u16,
    /// What completes it, once the device has handled it.
    handle: Option<InFlight>,
    written: u32,
}

impl Lent {
    fn readable_len(&self) -> u32 {
        self.readable.iter().map(|s| s.len).sum()
    }

    fn writable_len(&self) -> u32 {
        self.writable.iter().map(|s| s.len).sum()
    }
}

/// What the driver sends in a chain, and what the device answers: not the same in any two chains near.
fn pattern(tag: u32, salt: u32, len: u32) -> Vec<u8> {
    (0..len).map(|i| (tag.wrapping_mul(59).wrapping_add(i * 7) ^ salt) as u8).collect()
}

pub struct Pair {
    pub config: Config,
    guest: Guest,
    driver: Option<DriverQueue<u32>>,
    device: Option<DeviceQueue>,
    burst: Burst,
    tags: u32,
    /// Free descriptors, and chains that are not.
    free: u16,
    lent: u16,
    /// Free buffers of [`SEGMENT`] bytes, and where those begin that never had a use.
    buffers: Vec<u64>,
    fresh: u64,
    added: VecDeque<Lent>,
    available: VecDeque<Lent>,
    /// How many of them a split device has seen: it looks for more once these are taken.
    seen: usize,
    waiting: VecDeque<Lent>,
    in_flight: Vec<Lent>,
    completed: VecDeque<Lent>,
    used: VecDeque<Lent>,
    /// Positions: of the driver, of the device, of the driver.
    added_at: u64,
    published_at: u64,
    taken_at: u64,
    completed_at: u64,
    used_at: u64,
    reclaimed_at: u64,
    kick: Wish,
    call: Wish,
}

impl Drop for Pair {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("with {:#x?}", self.config);
        }
    }
}

impl Pair {
    /// A pair in a guest that may have had another one there before.
    pub fn new(guest: &Guest, config: Config) -> Self {
        let driver = config.driver(guest);
        let device = config.device(guest, config.state(config.start, config.start));
        let start = config.start;
        let pair = Self {
            config,
            guest: guest.clone(),
            driver: Some(driver),
            device: Some(device),
            burst: Burst::default(),
            tags: 0,
            free: config.size,
            lent: 0,
            buffers: Vec::new(),
            fresh: BASE + BUFFERS,
            added: VecDeque::new(),
            available: VecDeque::new(),
            seen: 0,
            waiting: VecDeque::new(),
            in_flight: Vec::new(),
            completed: VecDeque::new(),
            used: VecDeque::new(),
            added_at: start,
            published_at: start,
            taken_at: start,
            completed_at: start,
            used_at: start,
            reclaimed_at: start,
            kick: Wish::start(&config),
            call: Wish::start(&config),
        };
        pair.check();
        pair
    }

    fn driver(&mut self) -> &mut DriverQueue<u32> {
        self.driver.as_mut().expect("a queue")
    }

    fn device(&mut self) -> &mut DeviceQueue {
        self.device.as_mut().expect("a queue")
    }

    /// All that the queues tell of themselves.
    fn check(&self) {
        let (driver, device) =
            (self.driver.as_ref().expect("a queue"), self.device.as_ref().expect("a queue"));
        assert_eq!((driver.size(), device.size()), (self.config.size, self.config.size));
        assert_eq!((driver.free(), driver.in_flight()), (self.free, self.lent));
        assert_eq!(driver.has_used(), !self.used.is_empty());
        assert_eq!(device.has_available(), !self.available.is_empty());
        assert_eq!(self.burst.len(), self.waiting.len());
        assert_eq!(self.burst.is_empty(), self.waiting.is_empty());
        assert!(self.burst.writable_lens().eq(self.waiting.iter().map(Lent::writable_len)));
        let data = driver.notification_data(VQN);
        let next = match self.config.state(self.published_at, 0) {
            ResumeState::Split { next_avail } => next_avail,
            ResumeState::Packed { avail, .. } => avail.to_off_wrap(),
        };
        assert_eq!((data.vqn, data.next), (VQN, next));
    }

    /// Whether the driver has all chains and descriptors back.
    pub fn is_idle(&self) -> bool {
        self.lent == 0 && self.free == self.config.size
    }

    /// Chains by where they are.
    pub fn counts(&self) -> Counts {
        Counts {
            available: self.available.len(),
            waiting: self.waiting.len(),
            in_flight: self.in_flight.len(),
            used: self.used.len(),
        }
    }

    fn segments(&mut self, lens: &[u32]) -> Vec<Segment> {
        let mut buffer = || {
            self.buffers.pop().unwrap_or_else(|| {
                self.fresh += u64::from(SEGMENT);
                self.fresh - u64::from(SEGMENT)
            })
        };
        lens.iter().map(|len| Segment { addr: Gpa(buffer()), len: *len }).collect()
    }

    fn free_segments(&mut self, lent: &Lent) {
        self.buffers.extend(lent.readable.iter().chain(&lent.writable).map(|s| s.addr.0));
    }

    /// Adds a chain of segments of these lengths.
    pub fn add(&mut self, readable: &[u32], writable: &[u32]) -> Result<(), AddError> {
        self.tags += 1;
        let tag = self.tags;
        let len = readable.len() + writable.len();
        let descriptors = self.config.descriptors(len);
        let max = self.config.max_chain.min(self.config.size);
        let expected = match len {
            0 => Err(AddError::Empty),
            _ if len > max.into() => Err(AddError::TooLong { len, max }),
            _ if descriptors > self.free => Err(AddError::Full),
            _ => Ok(()),
        };
        let (readable, writable) = (self.segments(readable), self.segments(writable));
        let lent = Lent { tag, readable, writable, descriptors, handle: None, written: 0 };
        let sent = pattern(tag, SENT, lent.readable_len());
        let mut at = 0;
        for Segment { addr, len } in &lent.readable {
            let end = at + *len as usize;
            self.guest.write(addr.0, &sent[at..end]);
            at = end;
        }
        for Segment { addr, len } in &lent.writable {
            self.guest.write(addr.0, &vec![UNTOUCHED; *len as usize]);
        }
        let added = self.driver().add(&lent.readable, &lent.writable, tag);
        assert_eq!(added, expected.map_err(|error| NotAdded { error, owner: tag }));
        if added.is_ok() {
            self.added_at += self.config.step(descriptors);
            self.free -= descriptors;
            self.lent += 1;
            self.added.push_back(lent);
        } else {
            self.free_segments(&lent);
        }
        self.check();
        expected
    }

    /// The driver publishes. Returns whether it kicks.
    pub fn publish(&mut self) -> bool {
        let wanted = self.kick.is_met(self.published_at..self.added_at, self.config.period());
        assert_eq!(self.driver().publish(), wanted, "a kick for {:?}", self.kick);
        self.available.append(&mut self.added);
        self.published_at = self.added_at;
        self.check();
        wanted
    }

    /// The device takes up to `max` chains. Returns how many.
    pub fn take(&mut self, max: usize) -> usize {
        if self.seen == 0 || self.config.has(RING_PACKED) {
            self.seen = self.available.len();
        }
        let wanted = self.seen.min(max);
        let taken = self.device.as_mut().expect("a queue").take(&mut self.burst, max);
        assert_eq!(taken, Ok(wanted));
        self.moved_to_waiting(wanted);
        self.check();
        wanted
    }

    fn moved_to_waiting(&mut self, count: usize) {
        self.seen -= count;
        for lent in self.available.drain(..count) {
            self.taken_at += self.config.step(lent.descriptors);
            self.waiting.push_back(lent);
        }
    }

    /// The device reads the oldest chain that waits and writes its answer: `fill` of 255 parts of the room.
    pub fn handle(&mut self, fill: u8) {
        let chain = self.burst.next();
        let Some(mut lent) = self.waiting.pop_front() else {
            assert!(chain.is_none());
            return;
        };
        let chain = chain.expect("a chain waits");
        assert_eq!(chain.readable().len(), lent.readable_len() as usize);
        let mut read = vec![0; chain.readable().len()];
        assert_eq!(chain.readable().read(&mut read), read.len());
        assert_eq!(read, pattern(lent.tag, SENT, lent.readable_len()), "what chain {} says", lent.tag);

        assert_eq!(chain.writable_len(), lent.writable_len());
        assert_eq!(chain.writable().len(), lent.writable_len() as usize);
        lent.written = lent.writable_len() * u32::from(fill) / 255;
        let answer = pattern(lent.tag, ANSWER, lent.written);
        assert_eq!(chain.writable().write(&answer), answer.len());
        lent.handle = Some(chain.detach());
        self.in_flight.push(lent);
        self.check();
    }

    /// The device takes one chain without a burst, and handles it.
    pub fn next(&mut self, fill: u8) {
        if self.waiting.is_empty() {
            self.take(1);
        }
        let device = self.device.as_mut().expect("a queue");
        if self.waiting.is_empty() {
            assert!(device.next(&mut self.burst).expect("a good ring").is_none());
        } else {
            self.handle(fill);
        }
        self.check();
    }

    /// The device completes the chain in flight number `i`.
    pub fn complete(&mut self, i: usize) {
        let mut lent = self.in_flight.remove(i);
        let handle = lent.handle.take().expect("it was handled");
        self.device().complete(handle, lent.written);
        self.completed_at += self.config.step(lent.descriptors);
        self.completed.push_back(lent);
        self.check();
    }

    /// The device publishes. Returns whether it calls.
    pub fn publish_used(&mut self) -> bool {
        let wanted = self.call.is_met(self.used_at..self.completed_at, self.config.period());
        assert_eq!(self.device().publish(), wanted, "a call for {:?}", self.call);
        self.published_used();
        self.check();
        wanted
    }

    fn published_used(&mut self) {
        self.used.append(&mut self.completed);
        self.used_at = self.completed_at;
    }

    /// The driver takes a chain back. Returns whether there was one.
    pub fn reclaim(&mut self) -> bool {
        let reclaimed = self.driver().reclaim();
        let Some(lent) = self.used.pop_front() else {
            assert_eq!(reclaimed, Ok(None));
            return false;
        };
        assert_eq!(reclaimed, Ok(Some(Used { owner: lent.tag, written: lent.written })));
        self.reclaimed_at += self.config.step(lent.descriptors);
        self.free += lent.descriptors;
        self.lent -= 1;
        let mut wanted = pattern(lent.tag, ANSWER, lent.written);
        wanted.resize(lent.writable_len() as usize, UNTOUCHED);
        let got: Vec<u8> =
            lent.writable.iter().flat_map(|s| self.guest.read(s.addr.0, s.len as usize)).collect();
        assert_eq!(got, wanted, "the answer to chain {}", lent.tag);
        self.free_segments(&lent);
        self.check();
        true
    }

    /// The device gives back what waits.
    pub fn rewind(&mut self) {
        self.device.as_mut().expect("a queue").rewind(&mut self.burst);
        self.seen += self.waiting.len();
        while let Some(lent) = self.waiting.pop_back() {
            self.taken_at -= self.config.step(lent.descriptors);
            self.available.push_front(lent);
        }
        self.check();
    }

    /// The device asks for a kick. Returns whether it has to look again.
    pub fn arm_kicks(&mut self) -> bool {
        self.kick.arm(&self.config, self.taken_at);
        let wanted = !self.available.is_empty();
        assert_eq!(self.device().arm(), wanted);
        wanted
    }

    pub fn suppress_kicks(&mut self) {
        self.kick.suppress(&self.config);
        self.device().suppress();
    }

    /// The driver asks for a call. Returns whether it has to look again.
    pub fn arm_calls(&mut self) -> bool {
        self.call.arm(&self.config, self.reclaimed_at);
        let wanted = !self.used.is_empty();
        assert_eq!(self.driver().arm(), wanted);
        wanted
    }

    pub fn suppress_calls(&mut self) {
        self.call.suppress(&self.config);
        self.driver().suppress();
    }

    /// The device stops, with what it has in flight completed and the rest given back, and goes on.
    pub fn restart(&mut self) {
        while !self.in_flight.is_empty() {
            self.complete(0);
        }
        self.rewind();
        let state = self.device.take().expect("a queue").stop();
        assert_eq!(state, self.config.state(self.taken_at, self.completed_at));
        self.published_used();
        self.seen = 0;
        if !matches!(self.kick, Wish::At(_)) || self.config.has(RING_PACKED) {
            self.kick = Wish::Always;
        }
        self.device = Some(self.config.device(&self.guest, state));
        self.check();
    }

    /// Both sides forget the queue, and another one takes its place.
    pub fn reset(&mut self, config: Config) {
        drop(self.device.take());
        let mut owners = self.driver.take().expect("a queue").reset(|| true).ok().expect("a reset");
        owners.sort_unstable();
        let taken = self.waiting.drain(..).chain(self.in_flight.drain(..)).chain(self.completed.drain(..));
        let lent: Vec<Lent> = self
            .added
            .drain(..)
            .chain(self.available.drain(..))
            .chain(taken)
            .chain(self.used.drain(..))
            .collect();
        let mut wanted: Vec<u32> = lent.iter().map(|l| l.tag).collect();
        wanted.sort_unstable();
        assert_eq!(owners, wanted);
        for lent in &lent {
            self.free_segments(lent);
        }
        let start = config.start;
        self.driver = Some(config.driver(&self.guest));
        self.device = Some(config.device(&self.guest, config.state(start, start)));
        self.burst = Burst::default();
        self.seen = 0;
        (self.free, self.lent) = (config.size, 0);
        (self.added_at, self.published_at, self.taken_at) = (start, start, start);
        (self.completed_at, self.used_at, self.reclaimed_at) = (start, start, start);
        (self.kick, self.call) = (Wish::start(&config), Wish::start(&config));
        self.config = config;
        self.check();
    }
}

/// Chains by where they are.
#[derive(Debug, Clone, Copy)]
pub struct Counts {
    pub available: usize,
    pub waiting: usize,
    pub in_flight: usize,
    pub used: usize,
}
