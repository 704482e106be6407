//! A driver and a device with a region, in memory of one file.

extern crate std;

mod crash;
mod layout;
mod steps;

use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::vec::Vec;

use ringway_memory::{FrontendVa, Gpa, Mapping, MemoryTable};
use ringway_spec::feature::{IN_ORDER, RING_EVENT_IDX, RING_INDIRECT_DESC, RING_PACKED};
use ringway_spec::split::IDX;
use rustix::fs::{MemfdFlags, ftruncate, memfd_create};

use super::region_size;
use crate::area::{self, RingArea, until_killed};
use crate::{
    Areas, Burst, ConfigError, Cursor, DeviceQueue, DriverConfig, DriverQueue, InFlight, IndirectTables,
    QueueConfig, ResumeState, Segment, Used,
};

/// Offsets in the guest's memory, which is where its file is mapped.
const LEN: u64 = 0x2_0000;
const DRIVER: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const REGION: u64 = 0x3000;
const TABLES: u64 = 0x8000;
const BUFFERS: u64 = 0x1_0000;
/// Bytes of a segment; a chain has as many of these as it may have segments.
const SEGMENT: u64 = 16;
const MAX_CHAIN: u64 = 5;

/// Numbers that look random, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        ((self.0 >> 33) as usize) % limit
    }
}

#[derive(Debug, Clone, Copy)]
struct Setup {
    size: u16,
    features: u64,
    /// At which position both sides begin.
    start: u16,
    seed: u64,
}

impl Setup {
    fn has(&self, feature: u64) -> bool {
        self.features & feature != 0
    }

    fn resume(&self) -> ResumeState {
        if self.has(RING_PACKED) {
            let at = Cursor::new(self.start % self.size, (self.start / self.size).is_multiple_of(2));
            ResumeState::Packed { avail: at, used: at }
        } else {
            ResumeState::Split { next_avail: self.start }
        }
    }
}

/// A chain that was lent: the order in which it was made available, and its place among the buffers.
type Owner = (u32, u16);

/// What the device's process has, and loses when it is killed.
struct Process {
    queue: DeviceQueue,
    burst: Burst,
    /// Chains taken from the burst and not completed, oldest first.
    in_flight: VecDeque<Taken>,
}

/// A chain taken and not completed: its tag, whether it has room for an answer, and what completes it.
type Taken = (u32, bool, InFlight);

/// The next chain that waits.
fn next(burst: &mut Burst) -> Option<Taken> {
    let chain = burst.next()?;
    let mut tag = [0; 4];
    assert_eq!(chain.readable().read(&mut tag), 4);
    Some((u32::from_le_bytes(tag), chain.writable_len() > 0, chain.detach()))
}

struct World {
    setup: Setup,
    dice: Dice,
    memory: Arc<MemoryTable>,
    buffers: ringway_memory::RingArea,
    driver: DriverQueue<Owner>,
    next_tag: u32,
    places: Vec<u16>,
    outstanding: BTreeSet<u32>,
    /// Where the device is told to go on, if not at the beginning.
    resume: Option<ResumeState>,
}

impl World {
    fn new(setup: Setup) -> Self {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd");
        ftruncate(&file, LEN).expect("its length");
        let region = Mapping::region(file, 0, LEN, Gpa(0), FrontendVa(0)).expect("a region");
        let memory = Arc::new(MemoryTable::new(std::vec![region]).expect("a table"));
        let Setup { size, features, .. } = setup;
        let areas = areas(&memory, setup);
        if !setup.has(RING_PACKED) {
            areas.device.store_u16(IDX, setup.start);
        }
        let (entries, len) = (MAX_CHAIN as u16, usize::from(size) * MAX_CHAIN as usize * 16);
        let area = area::resolved(memory.area(FrontendVa(TABLES), len, 16).expect("room for tables"));
        let tables =
            setup.has(RING_INDIRECT_DESC).then_some(IndirectTables { area, addr: Gpa(TABLES), entries });
        let (start, max_chain) = (setup.resume(), MAX_CHAIN as u16);
        let driver = DriverQueue::new(DriverConfig { size, features, areas, start, max_chain, tables });
        Self {
            setup,
            dice: Dice(setup.seed),
            buffers: memory.area(FrontendVa(BUFFERS), (LEN - BUFFERS) as usize, 16).expect("buffers"),
            memory,
            driver: driver.expect("a driver's half"),
            next_tag: 0,
            places: (0..size).collect(),
            outstanding: BTreeSet::new(),
            resume: None,
        }
    }

    /// The queue's region.
    fn region(&self) -> RingArea {
        let Setup { size, features, .. } = self.setup;
        let area = self.memory.area(FrontendVa(REGION), region_size(size, features), 64);
        area::resolved(area.expect("a region"))
    }

    fn start(&self) -> Process {
        let queue = self.try_start().expect("a device's half");
        Process { queue, burst: Burst::default(), in_flight: VecDeque::new() }
    }

    fn try_start(&self) -> Result<DeviceQueue, ConfigError> {
        self.try_start_with(Some(self.region()))
    }

    fn try_start_with(&self, inflight: Option<RingArea>) -> Result<DeviceQueue, ConfigError> {
        let Setup { size, features, .. } = self.setup;
        DeviceQueue::start(QueueConfig {
            size,
            features,
            areas: areas(&self.memory, self.setup),
            memory: Arc::clone(&self.memory),
            used_log: None,
            resume: self.resume.unwrap_or(self.setup.resume()),
            inflight,
        })
    }

    /// Makes a chain of one to [`MAX_CHAIN`] segments available, if there is room.
    fn add(&mut self) {
        let count = 1 + self.dice.below(MAX_CHAIN as usize);
        let readable = 1 + self.dice.below(count);
        self.add_chain(readable, count - readable);
    }

    fn add_chain(&mut self, readable: usize, writable: usize) {
        let Some(place) = self.places.pop() else { return };
        let at = BUFFERS + u64::from(place) * MAX_CHAIN * SEGMENT;
        let segment = |i: usize| Segment { addr: Gpa(at + i as u64 * SEGMENT), len: SEGMENT as u32 };
        let segments: Vec<_> = (0..readable + writable).map(segment).collect();
        let (readable, writable) = segments.split_at(readable);
        self.buffers.store_u32((at - BUFFERS) as usize, self.next_tag);
        if let Err(refused) = self.driver.add(readable, writable, (self.next_tag, place)) {
            self.places.push(refused.owner.1);
            return;
        }
        let _ = self.driver.publish();
        self.outstanding.insert(self.next_tag);
        self.next_tag += 1;
    }

    /// Takes back all that the driver sees used.
    fn reclaim(&mut self) {
        while let Some(Used { owner: (tag, place), .. }) = self.driver.reclaim().expect("a good device") {
            assert!(self.outstanding.remove(&tag), "chain {tag} is used twice");
            self.places.push(place);
        }
    }
}

fn areas(memory: &MemoryTable, setup: Setup) -> Areas {
    let at = FrontendVa;
    Areas::resolve(memory, setup.size, setup.features, at(0), at(DRIVER), at(DEVICE)).expect("areas")
}
