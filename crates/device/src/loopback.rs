//! A driver's queue looped to a device's, for tests of models: chains of plain bytes go in, what was written comes out.

use alloc::sync::Arc;
use alloc::vec;
use alloc::vec::Vec;

use ringway_memory::{FrontendVa, Gpa, Mapping, MemoryTable, SharedBuf};
use ringway_queue::{
    Areas, Burst, DeviceQueue, DriverConfig, DriverQueue, QueueConfig, ResumeState, Segment,
};
use ringway_spec::feature::{RING_EVENT_IDX, RING_PACKED};

/// Where the guest's memory begins.
pub(crate) const BASE: u64 = 0x4000_0000;
/// Its length.
pub(crate) const LEN: u64 = 1 << 20;
/// Descriptors of the queue.
const SIZE: u16 = 64;
/// Bytes of a buffer at most.
const BUFFER: u32 = 4096;
/// Where the buffers begin.
const BUFFERS: u64 = 0x8000;

/// What a chain lends: its readable buffers, its writable ones with their lengths.
type Owner = (Vec<SharedBuf>, Vec<(SharedBuf, u32)>);

/// Both halves of a queue.
pub(crate) struct Loopback {
    pub(crate) driver: DriverQueue<Owner>,
    pub(crate) device: DeviceQueue,
    pub(crate) burst: Burst,
    buffers: Vec<SharedBuf>,
}

impl Loopback {
    /// A queue of each format.
    pub(crate) fn formats() -> impl Iterator<Item = Self> {
        [0, RING_PACKED].into_iter().map(|format| Self::new(format | RING_EVENT_IDX))
    }

    pub(crate) fn new(features: u64) -> Self {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LEN).unwrap();
        let region = Mapping::region(file.into(), 0, LEN, Gpa(BASE), FrontendVa(0)).unwrap();
        let buffers = SharedBuf::divide(&region, BUFFERS..LEN, BUFFER).unwrap().collect();
        let memory = Arc::new(MemoryTable::new(vec![region]).unwrap());
        let at = FrontendVa;
        let areas = || Areas::resolve(&memory, SIZE, features, at(0), at(0x1000), at(0x2000)).unwrap();
        let start = ResumeState::start(features);
        let config =
            DriverConfig { size: SIZE, features, areas: areas(), start, max_chain: SIZE, tables: None };
        let driver = DriverQueue::new(config).unwrap();
        let config = QueueConfig {
            size: SIZE,
            features,
            areas: areas(),
            memory: Arc::clone(&memory),
            used_log: None,
            resume: start,
            inflight: None,
        };
        Self { driver, device: DeviceQueue::start(config).unwrap(), burst: Burst::default(), buffers }
    }

    /// The driver adds a chain, and shows it: these bytes, then room for as many.
    pub(crate) fn add(&mut self, readable: &[&[u8]], writable: &[u32]) {
        let mut buffer = || self.buffers.pop().expect("a buffer");
        let lent: Vec<_> = readable
            .iter()
            .map(|bytes| {
                let mut buffer = buffer();
                assert_eq!(buffer.write(bytes), bytes.len());
                buffer
            })
            .collect();
        let room: Vec<_> = writable.iter().map(|len| (buffer(), *len)).collect();
        let segment = |buffer: &SharedBuf, len| Segment { addr: buffer.addr(), len };
        let readable: Vec<_> =
            lent.iter().zip(readable).map(|(b, bytes)| segment(b, bytes.len() as u32)).collect();
        let writable: Vec<_> = room.iter().map(|(b, len)| segment(b, *len)).collect();
        self.driver.add(&readable, &writable, (lent, room)).map_err(|refused| refused.error).unwrap();
        let _ = self.driver.publish();
    }

    /// What the device wrote to the next chain that it has used, if there is one.
    pub(crate) fn used(&mut self) -> Option<Vec<u8>> {
        let used = self.driver.reclaim().unwrap()?;
        let (lent, room) = used.owner;
        let mut left = used.written;
        let mut bytes = Vec::new();
        for (buffer, len) in &room {
            let mut part = vec![0; left.min(*len) as usize];
            buffer.read(&mut part);
            left -= part.len() as u32;
            bytes.extend(part);
        }
        assert_eq!(left, 0, "more was written than there was room for");
        self.buffers.extend(lent);
        self.buffers.extend(room.into_iter().map(|(buffer, _)| buffer));
        Some(bytes)
    }
}
