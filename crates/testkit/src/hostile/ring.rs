//! A driver that writes what it likes where it likes, and the device's half of its ring.

use std::collections::VecDeque;
use std::fs::File;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use ringway_memory::{FrontendVa, Gpa, Mapping, MemoryTable, RingArea, ScatterList};
use ringway_queue::{Areas, Burst, DeviceQueue, QueueConfig, QueueError, ResumeState, event};
use ringway_spec::feature::{RING_EVENT_IDX, RING_INDIRECT_DESC};
use ringway_spec::split::{
    self as layout, AVAIL_ENTRY, AVAIL_F_NO_INTERRUPT, DESC_F_INDIRECT, DESC_SIZE, FLAGS, IDX, RING,
    USED_ENTRY,
};
use rustix::fs::MemfdFlags;

use super::{Input, MAX_STEPS};

/// Where the memory begins, the same for the guest and for its process. It is two regions that adjoin.
const BASE: u64 = 0x1000;
const REGION_LEN: usize = 0x2000;
const LEN: usize = 2 * REGION_LEN;
/// Offsets in the memory.
const DESC: usize = 0;
const AVAIL: usize = 0x1000;
const USED: usize = 0x1400;
const BUFFERS: usize = 0x1e00;

/// The most pieces a chain can have: 1024 descriptors, each of them in both regions.
const MAX_PIECES: usize = 2048;

/// Serves a split ring whose driver follows `data`.
///
/// # Panics
/// If the device's half does what it must never do.
pub fn split_ring(data: &[u8]) {
    let mut input = Input(data);
    let mut ring = Ring::new(&mut input);
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        ring.step(&mut input);
    }
    ring.restart(&mut input);
}

/// The guest's memory, seen from the driver.
struct Memory {
    table: Arc<MemoryTable>,
    /// All of it.
    list: ScatterList,
    avail: RingArea,
    used: RingArea,
}

impl Memory {
    fn new(size: u16) -> Self {
        let file = File::from(rustix::fs::memfd_create("guest", MemfdFlags::CLOEXEC).expect("a memfd"));
        file.set_len(LEN as u64).expect("its length");
        let regions = [0, REGION_LEN as u64].map(|offset| {
            let fd = OwnedFd::from(file.try_clone().expect("a clone"));
            let at = BASE + offset;
            Mapping::region(fd, offset, REGION_LEN as u64, Gpa(at), FrontendVa(at)).expect("a region")
        });
        let table = Arc::new(MemoryTable::new(regions.into()).expect("a table"));
        let mut list = ScatterList::with_capacity(2);
        list.bind(&table);
        list.push(Gpa(BASE), LEN as u32).expect("all of the memory");
        let Areas { driver: avail, device: used, .. } = areas(&table, size);
        Self { table, list, avail, used }
    }

    fn write(&self, offset: usize, bytes: &[u8]) {
        self.list.buf(0..2).advance(offset).write(bytes);
    }

    fn read(&self, to: &mut [u8]) {
        self.list.buf(0..2).read(to);
    }

    /// The head that an entry of the available ring names.
    fn head(&self, size: u16, index: u16) -> u16 {
        self.avail.load_u16(RING + usize::from(index % size) * AVAIL_ENTRY)
    }

    fn write_descriptor(&self, offset: usize, addr: u64, len: u32, flags: u16, next: u16) {
        self.write(offset, &addr.to_le_bytes());
        self.write(offset + 8, &len.to_le_bytes());
        self.write(offset + 12, &flags.to_le_bytes());
        self.write(offset + 14, &next.to_le_bytes());
    }
}

fn areas(table: &MemoryTable, size: u16) -> Areas {
    let at = |offset: usize| FrontendVa(BASE + offset as u64);
    Areas::resolve_split(table, size, at(DESC), at(AVAIL), at(USED)).expect("areas in memory")
}

/// A ring and what is known of it without looking at the device.
struct Ring {
    size: u16,
    features: u64,
    memory: Memory,
    queue: Option<DeviceQueue>,
    burst: Burst,
    failed: Option<QueueError>,
    /// The next entry of the available ring that the device will take.
    next_avail: u16,
    /// The used index as the device published it last.
    published: u16,
    /// Heads of the chains in flight, oldest first.
    in_flight: VecDeque<u16>,
    /// How many chains were completed and not published.
    completed: u16,
    /// The memory before a step of the device, and after it.
    before: Vec<u8>,
    after: Vec<u8>,
}

impl Ring {
    fn new(input: &mut Input<'_>) -> Self {
        let [shape, bits] = input.array();
        let base = input.u16();
        let size = 1 << (shape % 9);
        let features = [(1, RING_EVENT_IDX), (2, RING_INDIRECT_DESC)];
        let features = features.iter().filter(|f| bits & f.0 != 0).map(|f| f.1).sum();
        let memory = Memory::new(size);
        memory.avail.store_u16(IDX, base);
        memory.used.store_u16(IDX, base.wrapping_sub((shape >> 4).into()));
        let mut ring = Self {
            size,
            features,
            memory,
            queue: None,
            burst: Burst::default(),
            failed: None,
            next_avail: base,
            published: 0,
            in_flight: VecDeque::new(),
            completed: 0,
            before: vec![0; LEN],
            after: vec![0; LEN],
        };
        ring.start();
        ring
    }

    fn start(&mut self) {
        self.published = self.memory.used.load_u16(IDX);
        let memory = Arc::clone(&self.memory.table);
        let queue = DeviceQueue::start(QueueConfig {
            size: self.size,
            features: self.features,
            areas: areas(&memory, self.size),
            memory,
            resume: ResumeState { next_avail: self.next_avail },
        });
        self.queue = Some(queue.expect("a good configuration"));
        self.failed = None;
    }

    /// One step of either side.
    fn step(&mut self, input: &mut Input<'_>) {
        let kind = input.u8();
        match kind % 16 {
            0 => self.poke(input),
            1 | 2 => self.describe(input),
            3 => self.describe_table(input),
            4 | 5 => self.offer(input),
            6 => self.memory.avail.store_u16(IDX, input.u16()),
            7..=9 => self.take(usize::from(input.u8() % 64)),
            10 | 11 => self.complete(input),
            12 => self.publish(),
            13 => self.rewind(),
            14 => self.arm(kind & 0x80 != 0),
            _ => self.restart(input),
        }
        assert!(self.in_flight.len() <= self.size.into(), "more chains in flight than descriptors");
    }

    // The driver

    /// Writes any bytes anywhere, the used ring included.
    fn poke(&mut self, input: &mut Input<'_>) {
        let at = usize::from(input.u16()) % LEN;
        let len = usize::from(input.u8());
        self.memory.write(at, input.bytes(len));
    }

    /// Writes a descriptor, which is more or less good.
    fn describe(&mut self, input: &mut Input<'_>) {
        let index = usize::from(input.u8());
        self.write_descriptor(DESC + index * DESC_SIZE, input);
    }

    fn write_descriptor(&mut self, at: usize, input: &mut Input<'_>) {
        let [how, next, a, b, len] = input.array();
        // Buffers and tables are near each other, so that they overlap now and then.
        let addr = BASE + (BUFFERS as u64) + u64::from(a) * 32 + u64::from(b % 32);
        let flags = u16::from(how & 7);
        let (addr, len, next) = match how >> 3 {
            0 => (input.u64(), input.u32(), input.u16()),
            1 => (u64::from(b) * 64, u32::from(len) * 64, next.into()),
            2 => (addr, u32::from(len) * 1024, next.into()),
            3 => (addr, 0, next.into()),
            _ if flags & DESC_F_INDIRECT != 0 => (addr & !15, u32::from(len % 64) * 16, next.into()),
            _ => (addr, len.into(), next.into()),
        };
        self.memory.write_descriptor(at, addr, len, flags, next);
    }

    /// Writes an indirect table.
    fn describe_table(&mut self, input: &mut Input<'_>) {
        let [at, count] = input.array();
        let at = BUFFERS + usize::from(at) * 32;
        for i in 0..usize::from(count % 32) {
            let entry = at + i * DESC_SIZE;
            if entry + DESC_SIZE <= LEN && !input.is_empty() {
                self.write_descriptor(entry, input);
            }
        }
    }

    /// Makes chains available, as a good driver does, but of any head.
    fn offer(&mut self, input: &mut Input<'_>) {
        let [count, head, step] = input.array();
        let idx = self.memory.avail.load_u16(IDX);
        let count = u16::from(count) % (self.size + 2);
        for i in 0..count {
            let slot = usize::from(idx.wrapping_add(i) % self.size);
            let head = u16::from(head).wrapping_add(i * u16::from(step & 3));
            let head = if step & 0x80 == 0 { head % self.size } else { head };
            self.memory.avail.store_u16(RING + slot * AVAIL_ENTRY, head);
        }
        self.memory.avail.store_u16_release(IDX, idx.wrapping_add(count));
    }

    // The device

    /// Lets the device do something; nothing but the used ring may be another after.
    fn device<T>(&mut self, act: impl FnOnce(&mut DeviceQueue, &mut Burst) -> T) -> T {
        self.memory.read(&mut self.before);
        let queue = self.queue.as_mut().expect("it runs");
        let result = act(queue, &mut self.burst);
        self.memory.read(&mut self.after);
        let used = self.used_range();
        assert_eq!(self.before[..used.start], self.after[..used.start], "descriptors and available ring");
        assert_eq!(self.before[used.end..], self.after[used.end..], "buffers");
        result
    }

    fn used_range(&self) -> Range<usize> {
        USED..USED + layout::used_area_size(self.size)
    }

    fn take(&mut self, max: usize) {
        let waiting = self.burst.len();
        let result = self.device(|queue, burst| queue.take(burst, max));
        if let Some(failed) = self.failed {
            assert_eq!(result, Err(failed), "an error is final");
        }
        let taken = match result {
            Ok(taken) => taken,
            Err(error) => {
                self.failed = Some(error);
                0
            }
        };
        assert!(taken <= max);
        assert_eq!(self.burst.len(), waiting + taken);
        assert_eq!(self.burst.writable_lens().count(), waiting + taken);
        for _ in 0..taken {
            self.in_flight.push_back(self.memory.head(self.size, self.next_avail));
            self.next_avail = self.next_avail.wrapping_add(1);
        }
    }

    /// Handles some chains: reads what there is to read, writes to what there is to write to. Each is in the used
    /// ring then, under the head by which it was made available.
    fn complete(&mut self, input: &mut Input<'_>) {
        let [count, fill] = input.array();
        let mut bytes = [0; 512];
        let Self { burst, queue, in_flight, completed, memory, .. } = self;
        // Those handed out are older than those that wait.
        let mut next = in_flight.len() - burst.len();
        assert_eq!(next, 0, "each chain handed out was completed");
        for _ in 0..count % 32 {
            let wanted = burst.writable_lens().next();
            let Some(chain) = burst.next() else { break };
            assert_eq!(wanted, Some(chain.writable_len()));
            assert_eq!(chain.writable().len(), chain.writable_len() as usize);
            assert!(u32::try_from(chain.readable().len()).is_ok());
            assert!(chain.readable().pieces().count() + chain.writable().pieces().count() <= MAX_PIECES);
            let n = chain.readable().read(&mut bytes);
            assert_eq!(n, bytes.len().min(chain.readable().len()));
            bytes[n..].fill(fill);
            let mut written = chain.writable().write(&bytes);
            written += chain.readable().copy_to(chain.writable().advance(written));
            assert!(written <= chain.writable().len());
            queue.as_mut().expect("it runs").complete(chain, written as u32);
            let slot = usize::from(self.published.wrapping_add(*completed) % self.size);
            let entry = RING + slot * USED_ENTRY;
            let (head, len) = (memory.used.load_u32(entry), memory.used.load_u32(entry + 4));
            assert_eq!((head, len), (in_flight[next].into(), written as u32));
            *completed += 1;
            next += 1;
        }
        in_flight.drain(..next);
    }

    /// What was completed is shown to the driver, all of it and nothing else, and it is called if it asked.
    fn publish(&mut self) {
        let calls = self.device(|queue, _| queue.publish());
        let old = self.published;
        let new = old.wrapping_add(self.completed);
        if self.completed == 0 {
            assert!(!calls, "nothing new, nobody to call");
            return;
        }
        self.published = new;
        assert_eq!(self.memory.used.load_u16(IDX), new);
        let asked = if self.features & RING_EVENT_IDX != 0 {
            event::passed(self.memory.avail.load_u16(layout::used_event(self.size)), new, old)
        } else {
            self.memory.avail.load_u16(FLAGS) & AVAIL_F_NO_INTERRUPT == 0
        };
        assert_eq!(calls, asked);
        self.completed = 0;
    }

    fn rewind(&mut self) {
        let count = self.burst.len();
        self.device(DeviceQueue::rewind);
        assert!(self.burst.is_empty());
        self.in_flight.truncate(self.in_flight.len() - count);
        self.next_avail = self.next_avail.wrapping_sub(count as u16);
    }

    fn arm(&mut self, suppress: bool) {
        let has_event = self.features & RING_EVENT_IDX != 0;
        if suppress {
            self.device(|queue, _| queue.suppress());
            if !has_event {
                assert_eq!(self.memory.used.load_u16(FLAGS), 1);
            }
            return;
        }
        let is_available = self.device(|queue, _| queue.arm());
        if has_event {
            let event = self.memory.used.load_u16(layout::avail_event(self.size));
            assert_eq!(event, self.next_avail);
        } else {
            assert_eq!(self.memory.used.load_u16(FLAGS), 0);
        }
        if self.failed.is_some() {
            assert!(!is_available, "a failed queue gives no more");
        } else if self.memory.avail.load_u16(IDX) != self.next_avail && !is_available {
            // Only if the queue has failed already, which the next look at it says.
            self.take(0);
            assert!(self.failed.is_some(), "a chain would be lost");
        }
    }

    /// Stops the queue and starts it again where it was, or elsewhere.
    fn restart(&mut self, input: &mut Input<'_>) {
        self.rewind();
        assert!(self.in_flight.is_empty());
        self.publish();
        let state = self.queue.take().expect("it runs").stop();
        assert_eq!(state, ResumeState { next_avail: self.next_avail });
        if input.u8() & 1 != 0 {
            self.next_avail = input.u16();
        }
        self.start();
    }
}
