//! A device that writes what it likes where it likes, and the driver's half of its ring.

use std::cell::Cell;
use std::collections::VecDeque;

use ringway_memory::Gpa;
use ringway_queue::{
    AddError, ConfigError, DriverConfig, DriverError, DriverQueue, IndirectTables, NotAdded, ResumeState,
    Segment, Used,
};
use ringway_spec::feature::{IN_ORDER, RING_INDIRECT_DESC, RING_PACKED};
use ringway_spec::split::DESC_SIZE;

use super::memory::{BASE, BUFFERS, LEN, Memory, TABLES};
use super::{Buffer, Format, Malformed, Shape, packed, scribble, split};
use crate::hostile::{Input, MAX_STEPS};

/// The driver's half of a ring of one format: what it is to write, and the device it is up against.
pub(super) trait Model: Sized {
    type Format: Format;

    fn start(shape: Shape, state: ResumeState) -> Self;

    /// Whether the next chain may be written at an offset of the ring.
    fn is_free(&self, at: usize) -> bool;

    /// A chain was added. Returns which descriptors are lent with it, by bits.
    fn add(&mut self, memory: &Memory, slots: u16) -> u64;

    /// Whether the device asked to be kicked, `None` if what it wrote means nothing.
    fn publish(&mut self, memory: &mut Memory) -> Option<bool>;

    /// The device reads the next chain: its name, and whether it is one.
    fn take(
        &mut self,
        memory: &Memory,
        slots: u16,
        push: impl FnMut(Buffer) -> Result<(), Malformed>,
    ) -> (u16, Result<(), Malformed>);

    fn reclaimed(&mut self, slots: u16, descriptors: u64);

    fn arm(&mut self, memory: &mut Memory);

    fn suppress(&mut self, memory: &mut Memory);

    /// The device tells that it used some chains, by the last of them.
    fn tell(&mut self, memory: &mut Memory, id: u16, len: u32, chains: u16, slots: u16);

    /// The device sets a field to something near a good value.
    fn field(&mut self, memory: &mut Memory, what: [u8; 3]);
}

/// Drives a split ring whose device follows `data`.
///
/// # Panics
/// If the driver's half does what it must never do.
pub fn split_driver(data: &[u8]) {
    run::<split::Driver>(data);
}

/// Drives a packed ring whose device follows `data`.
///
/// # Panics
/// If the driver's half does what it must never do.
pub fn packed_driver(data: &[u8]) {
    run::<packed::Driver>(data);
}

fn run<M: Model>(data: &[u8]) {
    let mut input = Input(data);
    let how = input.u8();
    let mut driver = Driver::<M>::new(&mut input);
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        driver.step(&mut input);
    }
    driver.end(how & 1 == 0);
}

thread_local! {
    static FREED: Cell<u64> = const { Cell::new(0) };
}

/// Whatever holds the buffers of a chain; freed if dropped.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Owner(pub(super) u32);

impl Owner {
    /// How many have been freed.
    pub(super) fn freed() -> u64 {
        FREED.get()
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        FREED.set(FREED.get() + 1);
    }
}

/// A chain to add: some readable segments, then some writable ones.
#[derive(Clone, Copy)]
pub(super) struct Chain {
    pub(super) readable: usize,
    pub(super) writable: usize,
    /// Where its segments are, and how long each is.
    place: u8,
    len: u32,
}

/// The most segments that are ever added.
const MAX_SEGMENTS: usize = 80;

impl Chain {
    pub(super) fn new(input: &mut Input<'_>) -> Self {
        let [counts, place, len] = input.array();
        let (readable, writable) = (usize::from(counts & 3), usize::from(counts >> 2 & 3));
        match counts >> 4 {
            // More than there are descriptors.
            15 => Self { readable: 40, writable: 40, place, len: len.into() },
            // With two of them, more bytes than fit.
            14 => Self { readable, writable, place, len: u32::MAX - u32::from(len) },
            n => Self { readable, writable: writable + usize::from(n / 4), place, len: len.into() },
        }
    }

    pub(super) fn count(self) -> usize {
        self.readable + self.writable
    }

    fn segment(self, i: usize) -> Segment {
        let at = usize::from(self.place) * 8 + i * 64;
        Segment { addr: Gpa(BASE + (BUFFERS + at % (LEN - BUFFERS)) as u64), len: self.len }
    }

    /// Its segments, the first of these.
    pub(super) fn segments(self) -> [Segment; MAX_SEGMENTS] {
        let mut segments = [Segment { addr: Gpa(0), len: 0 }; MAX_SEGMENTS];
        for (i, segment) in segments[..self.count()].iter_mut().enumerate() {
            *segment = self.segment(i);
        }
        segments
    }

    pub(super) fn bytes(self, segments: usize) -> u64 {
        segments as u64 * u64::from(self.len)
    }

    pub(super) fn is_in_memory(self) -> bool {
        (0..self.count()).all(|i| Memory::offset(self.segment(i).addr.0, self.len.into()).is_some())
    }
}

/// A chain in flight.
struct Lent {
    serial: u32,
    chain: Chain,
    slots: u16,
    descriptors: u64,
    /// Its name, once it was published.
    id: Option<u16>,
    /// What the device had done when it was added.
    scribbles: u32,
}

struct Driver<M> {
    shape: Shape,
    memory: Memory,
    model: M,
    queue: DriverQueue<Owner>,
    max_chain: u16,
    /// Descriptors that an indirect table has room for; 0 without.
    entries: u16,
    failed: Option<DriverError>,
    /// The next owner's number.
    serial: u32,
    lent: Vec<Lent>,
    /// Chains added and not published.
    added: VecDeque<u32>,
    /// Chains that the device has not used.
    published: VecDeque<u32>,
    /// Chains used by a device that has kept to the rules so far, and what each is to bring.
    used: VecDeque<(u32, u32)>,
    /// How often the device broke the rules.
    scribbles: u32,
}

impl<M: Model> Driver<M> {
    fn new(input: &mut Input<'_>) -> Self {
        let mut memory = Memory::take();
        let shape = Shape::new::<M::Format>(input);
        let [which, max_chain, entries] = input.array();
        let room = (LEN - TABLES) / (usize::from(shape.size) * DESC_SIZE);
        let entries = u16::from(entries % 8).min(room as u16);
        refuse::<M::Format>(shape, &mut memory, which, entries);

        let state = if which & 0x80 == 0 {
            ResumeState::start(shape.features)
        } else {
            M::Format::state(shape.size, input)
        };
        let config = |start| config(shape, &memory, shape.size, start, max_chain.into(), entries);
        let queue = DriverQueue::new(config(state));
        let (queue, state) = if M::Format::in_flight(shape.size, state) == Some(0) {
            (queue.expect("a good configuration"), state)
        } else {
            assert_eq!(queue.err(), Some(ConfigError::BadResume { size: shape.size, resume: state }));
            let state = ResumeState::start(shape.features);
            (DriverQueue::new(config(state)).expect("a good configuration"), state)
        };
        memory.check_except(|at| at < BUFFERS);
        Self {
            shape,
            memory,
            model: M::start(shape, state),
            queue,
            max_chain: u16::from(max_chain).min(shape.size),
            entries: if shape.has(RING_INDIRECT_DESC) && entries > 1 { entries } else { 0 },
            failed: None,
            serial: 0,
            lent: Vec::with_capacity(shape.size.into()),
            added: VecDeque::new(),
            published: VecDeque::new(),
            used: VecDeque::new(),
            scribbles: 0,
        }
    }

    /// One step of either side.
    fn step(&mut self, input: &mut Input<'_>) {
        let kind = input.u8();
        match kind % 16 {
            0 => {
                self.scribbles += 1;
                scribble(&mut self.memory, input);
            }
            1 | 2 => {
                self.scribbles += 1;
                self.model.field(&mut self.memory, input.array());
            }
            3..=6 => {
                let chain = Chain::new(input);
                for _ in 0..=kind >> 5 {
                    self.add(chain);
                }
                if kind & 0x10 != 0 {
                    self.publish();
                }
            }
            7 => self.publish(),
            8..=10 => self.use_some(kind >> 4, input.array()),
            11..=13 => self.reclaim(kind >> 4),
            14 => self.arm(),
            _ => {
                self.queue.suppress();
                self.model.suppress(&mut self.memory);
            }
        }
        self.memory.check();
        assert_eq!(usize::from(self.queue.in_flight()), self.lent.len());
        assert_eq!(self.queue.free(), self.free());
    }

    fn is_honest(&self) -> bool {
        self.scribbles == 0
    }

    fn free(&self) -> u16 {
        self.shape.size - self.lent.iter().map(|lent| lent.slots).sum::<u16>()
    }

    fn add(&mut self, chain: Chain) {
        let count = chain.count();
        let is_indirect = count > 1 && count <= self.entries.into();
        let slots = if is_indirect { 1 } else { count as u16 };
        let expected = if count == 0 {
            Err(AddError::Empty)
        } else if count > self.max_chain.into() {
            Err(AddError::TooLong { len: count, max: self.max_chain })
        } else if chain.bytes(count) > u32::MAX.into() {
            Err(AddError::TooManyBytes)
        } else if slots > self.free() {
            Err(AddError::Full)
        } else {
            Ok(())
        };
        let segments = chain.segments();
        let (readable, writable) = segments[..count].split_at(chain.readable);
        let serial = self.serial;
        self.serial += 1;
        let result = self.queue.add(readable, writable, Owner(serial));
        assert_eq!(result, expected.map_err(|error| NotAdded { error, owner: Owner(serial) }));
        if expected.is_err() {
            return;
        }
        let Self { memory, model, lent, entries, .. } = self;
        memory.check_except(|at| match at.checked_sub(TABLES) {
            None => model.is_free(at),
            Some(at) => {
                let id = at / DESC_SIZE / usize::from(*entries).max(1);
                is_indirect && !lent.iter().any(|lent| lent.id.map(usize::from) == Some(id))
            }
        });
        let descriptors = model.add(memory, slots);
        lent.push(Lent { serial, chain, slots, descriptors, id: None, scribbles: self.scribbles });
        self.added.push_back(serial);
    }

    /// What was added is in the ring as it was given, whatever the device wrote there before.
    fn publish(&mut self) {
        let kicks = self.queue.publish();
        if let Some(expected) = self.model.publish(&mut self.memory) {
            assert_eq!(kicks, expected);
        }
        self.memory.check();
        while let Some(serial) = self.added.pop_front() {
            let index = self.lent.iter().position(|lent| lent.serial == serial);
            let index = index.expect("what is published is lent");
            let Lent { chain, slots, scribbles, .. } = self.lent[index];
            let mut count = 0;
            let (id, result) = self.model.take(&self.memory, slots, |buffer| {
                let Segment { addr, len } = chain.segment(count);
                let is_right = buffer == (addr.0, len, count >= chain.readable);
                count += 1;
                if is_right { Ok(()) } else { Err(Malformed) }
            });
            if scribbles == self.scribbles {
                assert!(
                    result.is_ok() && count == chain.count(),
                    "a chain is not in the ring as it was added"
                );
                assert!(self.lent.iter().all(|lent| lent.id != Some(id)), "two chains of one name");
                self.lent[index].id = Some(id);
            }
            self.published.push_back(serial);
        }
    }

    /// The device uses a chain, or some in order.
    fn use_some(&mut self, more: u8, [which, len]: [u8; 2]) {
        let Some(last) = self.published.len().checked_sub(1) else { return };
        let in_order = self.shape.has(IN_ORDER);
        let index = if in_order { 0 } else { usize::from(which).min(last) };
        let count = if in_order { usize::from(more & 3).min(last) + 1 } else { 1 };
        let (mut id, mut slots) = (0, 0);
        for n in 1..=count {
            let serial = self.published.remove(index).expect("one of those published");
            let Some(lent) = self.lent.iter().find(|lent| lent.serial == serial) else { continue };
            let room = lent.chain.bytes(lent.chain.writable) as u32;
            // Of those before the last in a batch nothing is told.
            self.used.push_back((serial, if n < count { room } else { room.min(len.into()) }));
            id = lent.id.unwrap_or(which.into());
            slots += lent.slots;
        }
        // Once it is off, it tells that in the wrong place.
        self.scribbles += u32::from(!self.is_honest());
        self.model.tell(&mut self.memory, id, len.into(), count as u16, slots);
    }

    fn reclaim(&mut self, more: u8) {
        for _ in 0..=more {
            let result = self.queue.reclaim();
            if let Some(error) = self.failed {
                assert_eq!(result, Err(error), "an error is final");
            }
            match result {
                Ok(Some(Used { owner, written })) => self.reclaimed(&owner, written),
                Ok(None) => {
                    assert!(!self.is_honest() || self.used.is_empty(), "a used chain is not given back");
                    break;
                }
                Err(error) => {
                    assert!(!self.is_honest(), "{error}");
                    self.failed = Some(error);
                    break;
                }
            }
        }
    }

    fn reclaimed(&mut self, owner: &Owner, written: u32) {
        let index = self.lent.iter().position(|lent| lent.serial == owner.0);
        let lent = self.lent.remove(index.expect("an owner is given back once"));
        assert!(u64::from(written) <= lent.chain.bytes(lent.chain.writable));
        assert!(!self.added.contains(&owner.0), "the device has used what it was not given");
        if self.is_honest() {
            assert_eq!(self.used.pop_front(), Some((owner.0, written)));
        } else {
            self.published.retain(|serial| *serial != owner.0);
        }
        self.model.reclaimed(lent.slots, lent.descriptors);
    }

    fn arm(&mut self) {
        let has_used = self.queue.arm();
        self.model.arm(&mut self.memory);
        if !has_used {
            assert_eq!(self.queue.reclaim(), Ok(None), "a used chain would be slept over");
            assert!(!self.is_honest() || self.used.is_empty());
        }
    }

    /// All owners are accounted for: they come back, or are never freed.
    fn end(self, resets: bool) {
        let Self { queue, lent, mut memory, .. } = self;
        let freed = Owner::freed();
        let queue = queue.reset(|| false).expect_err("the device was not reset");
        if resets {
            let mut owners: Vec<u32> =
                queue.reset(|| true).ok().expect("a reset").iter().map(|owner| owner.0).collect();
            owners.sort_unstable();
            // They are pushed in the order of their numbers, and removed from between.
            assert!(lent.iter().map(|lent| lent.serial).eq(owners));
        } else {
            drop(queue);
            assert_eq!(Owner::freed(), freed, "the device may still write there");
        }
        memory.check();
        memory.keep();
    }
}

pub(super) fn config(
    shape: Shape,
    memory: &Memory,
    size: u16,
    start: ResumeState,
    max_chain: u16,
    entries: u16,
) -> DriverConfig {
    let tables = IndirectTables { area: memory.tables(), addr: Gpa(BASE + TABLES as u64), entries };
    DriverConfig {
        size,
        features: shape.features,
        areas: memory.areas(shape.size, shape.features),
        start,
        max_chain,
        tables: Some(tables),
    }
}

/// A bad configuration is refused, and nothing is written.
fn refuse<F: Format>(shape: Shape, memory: &mut Memory, which: u8, entries: u16) {
    let good = ResumeState::start(shape.features);
    let mut config = config(shape, memory, shape.size, good, shape.size, entries);
    match which & 0x7f {
        1 => config.size = F::bad_size(shape.size),
        2 => config.size *= 2,
        3 => config.start = ResumeState::start(shape.features ^ RING_PACKED),
        which @ (4 | 5) => {
            let Some(tables) = &mut config.tables else { return };
            config.features |= RING_INDIRECT_DESC;
            if which == 4 {
                tables.entries = 200;
            } else {
                tables.entries = 2;
                tables.addr = Gpa(u64::MAX - 16);
            }
        }
        _ => return,
    }
    assert!(DriverQueue::<Owner>::new(config).is_err());
    memory.check();
}
