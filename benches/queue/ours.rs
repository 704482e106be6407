//! `ringway-queue`.

use std::hint::black_box;
use std::sync::Arc;

use ringway_memory::{FrontendVa, Gpa};
use ringway_queue::{
    Burst, DeviceQueue, DriverConfig, DriverQueue, IndirectTables, QueueConfig, ResumeState, Segment,
};

use crate::cell::{CHAINS, Cell, Contestant, Half, Who};
use crate::memory::{BUFFER, Memory, PAGE, Rings, SIZE};
use crate::raw;

pub(crate) fn contestant(cell: Cell, who: Who) -> Box<dyn Contestant> {
    let memory = Memory::new();
    let rings = memory.rings();
    let is_split = who == Who::Split;
    match cell.half {
        Half::Both => {
            // The driver first: it initialises the ring.
            let driver = Driver::new(memory, rings, who, cell);
            let device = Device::new(memory, rings, who);
            Box::new(Loop { driver, device })
        }
        Half::Device if is_split => {
            let driver = raw::SplitDriver::new(memory, rings, cell);
            Box::new(DeviceAlone { driver, device: Device::new(memory, rings, who) })
        }
        Half::Device => {
            let driver = raw::PackedDriver::new(memory, rings, cell);
            Box::new(DeviceAlone { driver, device: Device::new(memory, rings, who) })
        }
        Half::Driver => {
            let driver = Driver::new(memory, rings, who, cell);
            if is_split {
                Box::new(DriverAlone { driver, device: raw::SplitDevice::new(memory, rings, cell) })
            } else {
                Box::new(DriverAlone { driver, device: raw::PackedDevice::new(memory, rings, cell) })
            }
        }
    }
}

struct Device {
    queue: DeviceQueue,
    burst: Burst,
}

impl Device {
    fn new(memory: &'static Memory, rings: Rings, who: Who) -> Self {
        let features = who.features();
        let queue = DeviceQueue::start(QueueConfig {
            size: SIZE as u16,
            features,
            areas: memory.areas(rings, features),
            memory: Arc::clone(&memory.table),
            used_log: None,
            resume: ResumeState::start(features),
            inflight: None,
        });
        Self { queue: queue.expect("a queue"), burst: Burst::default() }
    }

    #[inline]
    fn serve(&mut self) {
        self.queue.take(&mut self.burst, CHAINS.into()).expect("a good ring");
        while let Some(chain) = self.burst.next() {
            black_box((chain.readable(), chain.writable()));
            // A byte for each buffer.
            let written = chain.writable_len() / BUFFER as u32;
            self.queue.complete(chain, written);
        }
        black_box(self.queue.publish());
    }
}

struct Driver {
    queue: DriverQueue<u64>,
    /// By chain.
    buffers: Vec<u64>,
    segments: u16,
    burst: usize,
}

impl Driver {
    fn new(memory: &'static Memory, rings: Rings, who: Who, cell: Cell) -> Self {
        let features = who.features();
        let tables = cell.indirect.then(|| {
            let len = SIZE * usize::from(cell.segments) * 16;
            let addr = memory.alloc(len, PAGE);
            let area = memory.table.area(FrontendVa(addr), len, 16).expect("in memory");
            IndirectTables { area, addr: Gpa(addr), entries: cell.segments }
        });
        let queue = DriverQueue::new(DriverConfig {
            size: SIZE as u16,
            features,
            areas: memory.areas(rings, features),
            start: ResumeState::start(features),
            max_chain: SIZE as u16,
            tables,
        });
        Self {
            queue: queue.expect("a queue"),
            buffers: (0..CHAINS).map(|_| memory.alloc(3 * BUFFER, BUFFER)).collect(),
            segments: cell.segments,
            burst: cell.burst.into(),
        }
    }

    #[inline]
    fn submit(&mut self) {
        let segment = |at: u64| Segment { addr: Gpa(at), len: BUFFER as u32 };
        for &buffer in &self.buffers[..self.burst] {
            let second = buffer + BUFFER as u64;
            let added = if self.segments == 1 {
                self.queue.add(&[segment(buffer)], &[], buffer)
            } else {
                let third = second + BUFFER as u64;
                self.queue.add(&[segment(buffer)], &[segment(second), segment(third)], buffer)
            };
            added.expect("room");
        }
        black_box(self.queue.publish());
    }

    #[inline]
    fn reclaim(&mut self) {
        let mut count = 0;
        while let Some(used) = self.queue.reclaim().expect("a good ring") {
            black_box((used.owner, used.written));
            count += 1;
        }
        assert_eq!(count, self.burst, "all was used");
    }
}

struct Loop {
    driver: Driver,
    device: Device,
}

impl Contestant for Loop {
    fn run(&mut self, bursts: u64) {
        for _ in 0..bursts {
            self.driver.submit();
            self.device.serve();
            self.driver.reclaim();
        }
    }
}

struct DeviceAlone<D> {
    driver: D,
    device: Device,
}

impl<D: raw::Driver> Contestant for DeviceAlone<D> {
    fn run(&mut self, bursts: u64) {
        for _ in 0..bursts {
            self.driver.offer();
            self.device.serve();
            self.driver.check();
        }
    }
}

struct DriverAlone<D> {
    driver: Driver,
    device: D,
}

impl<D: raw::Device> Contestant for DriverAlone<D> {
    fn run(&mut self, bursts: u64) {
        for _ in 0..bursts {
            self.driver.submit();
            self.device.serve();
            self.driver.reclaim();
        }
    }
}
