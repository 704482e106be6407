//! A machine and a device to test drivers with: memory in a file, and a transport that does what the test says.
//!
//! ```text
//!   driver ──► FakeTransport ──┐                        ┌──► Fake: the device's side
//!                              └──► State, one for both ┘      what was written, in order; queues as a device has them
//! ```
#![allow(dead_code, reason = "each test uses a part of it")]
#![allow(unsafe_code, reason = "a platform promises that its memory is the device's")]

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard};

use ringway_driver::{Interrupt, Notify, OutOfMemory, Platform, QueueSetup, Transport, TransportError};
use ringway_memory::{FrontendVa, Gpa, Mapping, MemoryTable, Region};
use ringway_queue::{Areas, DeviceQueue, QueueConfig, ResumeState};
use ringway_spec::feature::{NOTIFICATION_DATA, RING_EVENT_IDX, RING_PACKED, RING_RESET, VERSION_1};
use ringway_spec::status::DeviceStatus;
use rustix::fs::{MemfdFlags, memfd_create};

/// Each combination of ring format and `EVENT_IDX`.
pub(crate) const RINGS: [u64; 4] = [0, RING_EVENT_IDX, RING_PACKED, RING_PACKED | RING_EVENT_IDX];

/// Where the first allocation is.
const START: u64 = 0x4000_0000;

/// How much there can be.
const LEN: u64 = 256 << 20;

/// Memory in a file, each allocation a mapping of its own.
pub(crate) struct TestPlatform {
    file: File,
    next: Mutex<u64>,
    memory: Arc<MemoryTable>,
}

impl TestPlatform {
    pub(crate) fn new() -> Arc<Self> {
        let file = File::from(memfd_create("driver-test", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(LEN).unwrap();
        let all = map(&file, 0, LEN).unwrap();
        Arc::new(Self { file, next: Mutex::new(0), memory: Arc::new(MemoryTable::new(vec![all]).unwrap()) })
    }

    /// All that there is, as the device sees it.
    pub(crate) fn memory(&self) -> Arc<MemoryTable> {
        Arc::clone(&self.memory)
    }

    /// The device's half of a queue that the driver has set up.
    pub(crate) fn device_queue(&self, setup: &QueueSetup) -> DeviceQueue {
        let QueueSetup { size, features, descriptor, driver, device, .. } = *setup;
        let memory = self.memory();
        let [descriptor, driver, device] = [descriptor, driver, device].map(|at| FrontendVa(at.0));
        let areas = Areas::resolve(&memory, size, features, descriptor, driver, device).unwrap();
        let resume = ResumeState::start(features);
        let config = QueueConfig { size, features, areas, memory, used_log: None, resume, inflight: None };
        DeviceQueue::start(config).unwrap()
    }
}

/// A part of the file.
fn map(file: &File, offset: u64, len: u64) -> Option<Region> {
    let at = START + offset;
    Mapping::region(file.try_clone().ok()?.into(), offset, len, Gpa(at), FrontendVa(at)).ok()
}

// SAFETY: each part of the file is allocated once, and the device's side reaches it through `TestPlatform::memory` by the
// same address.
unsafe impl Platform for TestPlatform {
    fn allocate(&self, len: u64) -> Result<Region, OutOfMemory> {
        let mut next = self.next.lock().unwrap();
        let offset = *next;
        if len > LEN - offset {
            return Err(OutOfMemory { len });
        }
        *next = (offset + len).next_multiple_of(0x1000);
        map(&self.file, offset, len).ok_or(OutOfMemory { len })
    }

    fn wait(&self, round: u32) -> bool {
        std::thread::yield_now();
        round < 10_000
    }
}

/// What the driver did to the device, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Reset,
    Status(DeviceStatus),
    ReadStatus,
    Offered,
    Accepted(u64),
    ReadConfig(usize, usize),
    WriteConfig(usize, Vec<u8>),
    Queue(u16, QueueSetup),
    ResetQueue(u16),
    Kick(u16, u16),
}

/// The device, as both sides know it. Tests set the fields at will.
pub(crate) struct State {
    pub(crate) id: u32,
    pub(crate) offered: u64,
    pub(crate) carries: u64,
    pub(crate) accepted: u64,
    pub(crate) config: Vec<u8>,
    pub(crate) generation: u32,
    /// For so many reads of the generation, each finds another one.
    pub(crate) restless: u32,
    pub(crate) status: DeviceStatus,
    /// So many reads of the status until a reset is done.
    pub(crate) reset_takes: u32,
    resetting: Option<u32>,
    /// Whether `FEATURES_OK` sticks.
    pub(crate) takes_features: bool,
    /// The most descriptors of each queue.
    pub(crate) queue_sizes: Vec<u16>,
    pub(crate) queues: BTreeMap<u16, QueueSetup>,
    /// So many questions until a queue's reset is done.
    pub(crate) queue_reset_takes: u32,
    pub(crate) interrupt: Interrupt,
    pub(crate) log: Vec<Event>,
}

/// The device's side.
#[derive(Clone)]
pub(crate) struct Fake {
    state: Arc<Mutex<State>>,
    platform: Arc<TestPlatform>,
}

impl Fake {
    /// A device of type `id` that offers `features` and `VERSION_1`, with so many queues of 256 descriptors; and the way to
    /// it.
    pub(crate) fn new(
        platform: &Arc<TestPlatform>,
        id: u32,
        features: u64,
        queues: usize,
    ) -> (Self, FakeTransport) {
        let state = State {
            id,
            offered: features | VERSION_1,
            carries: NOTIFICATION_DATA | RING_RESET,
            accepted: 0,
            config: Vec::new(),
            generation: 0,
            restless: 0,
            status: DeviceStatus::empty(),
            reset_takes: 0,
            resetting: None,
            takes_features: true,
            queue_sizes: vec![256; queues],
            queues: BTreeMap::new(),
            queue_reset_takes: 0,
            interrupt: Interrupt::empty(),
            log: Vec::new(),
        };
        let state = Arc::new(Mutex::new(state));
        (Self { state: Arc::clone(&state), platform: Arc::clone(platform) }, FakeTransport { state })
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The device's half of a queue that the driver has set up.
    pub(crate) fn device_queue(&self, index: u16) -> DeviceQueue {
        self.platform.device_queue(&self.state().queues[&index])
    }

    /// What was done since the last call.
    pub(crate) fn take_log(&self) -> Vec<Event> {
        std::mem::take(&mut self.state().log)
    }

    /// How often queue `index` was kicked since the log was taken.
    pub(crate) fn kicks(&self, index: u16) -> usize {
        self.state().log.iter().filter(|event| matches!(event, Event::Kick(i, _) if *i == index)).count()
    }
}

/// The driver's side.
pub(crate) struct FakeTransport {
    state: Arc<Mutex<State>>,
}

impl FakeTransport {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }
}

/// Writes kicks to the log.
pub(crate) struct FakeNotifier {
    state: Arc<Mutex<State>>,
    index: u16,
}

impl Notify for FakeNotifier {
    fn notify(&self, next: u16) {
        self.state.lock().unwrap().log.push(Event::Kick(self.index, next));
    }
}

impl Transport for FakeTransport {
    type Notifier = FakeNotifier;

    fn device_id(&self) -> u32 {
        self.state().id
    }

    fn carries(&self) -> u64 {
        self.state().carries
    }

    fn offered(&mut self) -> Result<u64, TransportError> {
        let mut state = self.state();
        state.log.push(Event::Offered);
        Ok(state.offered)
    }

    fn accept(&mut self, features: u64) -> Result<(), TransportError> {
        let mut state = self.state();
        state.accepted = features;
        state.log.push(Event::Accepted(features));
        Ok(())
    }

    fn status(&mut self) -> Result<DeviceStatus, TransportError> {
        let mut state = self.state();
        state.log.push(Event::ReadStatus);
        match state.resetting {
            Some(0) => {
                state.resetting = None;
                state.status = DeviceStatus::empty();
            }
            Some(left) => state.resetting = Some(left - 1),
            None => {}
        }
        Ok(state.status)
    }

    fn set_status(&mut self, mut status: DeviceStatus) -> Result<(), TransportError> {
        assert!(!status.is_empty(), "a reset has a method of its own");
        let mut state = self.state();
        state.log.push(Event::Status(status));
        if !state.takes_features {
            status.remove(DeviceStatus::FEATURES_OK);
        }
        state.status = status;
        Ok(())
    }

    fn begin_reset(&mut self) -> Result<(), TransportError> {
        let mut state = self.state();
        state.log.push(Event::Reset);
        state.resetting = Some(state.reset_takes);
        state.queues.clear();
        Ok(())
    }

    fn generation(&mut self) -> Result<u32, TransportError> {
        let mut state = self.state();
        if state.restless > 0 {
            state.restless -= 1;
            state.generation += 1;
        }
        Ok(state.generation)
    }

    fn read_config(&mut self, offset: usize, to: &mut [u8]) -> Result<(), TransportError> {
        let mut state = self.state();
        state.log.push(Event::ReadConfig(offset, to.len()));
        assert!(matches!(to.len(), 1 | 2 | 4) && offset.is_multiple_of(to.len()), "one aligned field");
        let short = TransportError::ShortConfig { offset, len: to.len() };
        to.copy_from_slice(state.config.get(offset..offset + to.len()).ok_or(short)?);
        Ok(())
    }

    fn write_config(&mut self, offset: usize, from: &[u8]) -> Result<(), TransportError> {
        let mut state = self.state();
        state.log.push(Event::WriteConfig(offset, from.to_vec()));
        assert!(matches!(from.len(), 1 | 2 | 4) && offset.is_multiple_of(from.len()), "one aligned field");
        let short = TransportError::ShortConfig { offset, len: from.len() };
        state.config.get_mut(offset..offset + from.len()).ok_or(short)?.copy_from_slice(from);
        Ok(())
    }

    fn max_queue_size(&mut self, index: u16) -> Result<u16, TransportError> {
        Ok(self.state().queue_sizes.get(usize::from(index)).copied().unwrap_or(0))
    }

    fn set_up_queue(&mut self, index: u16, setup: &QueueSetup) -> Result<FakeNotifier, TransportError> {
        let mut state = self.state();
        state.log.push(Event::Queue(index, *setup));
        state.queues.insert(index, *setup);
        Ok(FakeNotifier { state: Arc::clone(&self.state), index })
    }

    fn reset_queue(&mut self, index: u16) -> Result<(), TransportError> {
        let mut state = self.state();
        state.log.push(Event::ResetQueue(index));
        state.queues.remove(&index);
        Ok(())
    }

    fn is_queue_reset(&mut self, _index: u16) -> Result<bool, TransportError> {
        let mut state = self.state();
        let left = state.queue_reset_takes;
        state.queue_reset_takes = left.saturating_sub(1);
        Ok(left == 0)
    }

    fn interrupt(&mut self) -> Result<Interrupt, TransportError> {
        Ok(std::mem::take(&mut self.state().interrupt))
    }
}
