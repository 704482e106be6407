//! A strict device behind MMIO registers: it fails the test at any access that the table of registers does not allow
//! (4.2.2), and writes all others to a log.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};

use ringway_driver::transport::registers::Registers;
use ringway_driver::{Interrupt, QueueSetup};
use ringway_memory::Gpa;
use ringway_spec::feature::{RING_PACKED, RING_RESET, VERSION_1};
use ringway_spec::mmio::*;
use ringway_spec::status::DeviceStatus;

/// An access of a register: its offset, its width in bytes, and what was read or written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Access {
    Read(usize, usize, u32),
    Write(usize, usize, u32),
}

/// An access of a control register.
pub(crate) fn read(offset: usize, value: u32) -> Access {
    Access::Read(offset, 4, value)
}

pub(crate) fn write(offset: usize, value: u32) -> Access {
    Access::Write(offset, 4, value)
}

/// The registers that are only read.
const READ_ONLY: [usize; 8] = [
    MAGIC_VALUE,
    VERSION,
    DEVICE_ID,
    VENDOR_ID,
    DEVICE_FEATURES,
    QUEUE_SIZE_MAX,
    INTERRUPT_STATUS,
    CONFIG_GENERATION,
];
/// The registers that say how a queue is, which are written while it is not ready.
const QUEUE: [usize; 7] = [
    QUEUE_SIZE,
    QUEUE_DESC_LOW,
    QUEUE_DESC_HIGH,
    QUEUE_DRIVER_LOW,
    QUEUE_DRIVER_HIGH,
    QUEUE_DEVICE_LOW,
    QUEUE_DEVICE_HIGH,
];

/// A queue, as it was set up.
#[derive(Default)]
pub(crate) struct Queue {
    pub(crate) max: u32,
    pub(crate) ready: bool,
    /// Whether it stays ready when it is told not to be.
    pub(crate) is_stubborn: bool,
    /// What was written to the registers of [`QUEUE`].
    written: BTreeMap<usize, u32>,
    /// Reads until its reset is done.
    resetting: Option<u32>,
}

/// What the device is like. Tests set the fields at will.
pub(crate) struct State {
    pub(crate) magic: u32,
    pub(crate) version: u32,
    pub(crate) id: u32,
    pub(crate) offered: u64,
    pub(crate) accepted: u64,
    pub(crate) status: u32,
    /// Reads of the status until a reset is done; none: never.
    pub(crate) reset_takes: Option<u32>,
    resetting: Option<u32>,
    pub(crate) queues: Vec<Queue>,
    /// Reads until a queue's reset is done.
    pub(crate) queue_reset_takes: u32,
    pub(crate) interrupt: u32,
    pub(crate) generation: u32,
    pub(crate) config: Vec<u8>,
    /// The selectors that were written, by their registers.
    selectors: BTreeMap<usize, u32>,
    /// Of the configuration, what is read while the generation changes: so many reads of it each find another.
    pub(crate) restless: u32,
    pub(crate) log: Vec<Access>,
}

/// The device's side, and the driver's registers.
#[derive(Clone)]
pub(crate) struct FakeMmio {
    state: Arc<Mutex<State>>,
}

impl FakeMmio {
    /// A device of type `id` with these features and `VERSION_1`, so many queues of 256 descriptors, and 16 bytes of
    /// configuration: 0, 1, 2 and so on.
    pub(crate) fn new(id: u32, features: u64, queues: usize) -> Self {
        let state = State {
            magic: MAGIC,
            version: VERSION_MODERN,
            id,
            offered: features | VERSION_1,
            accepted: 0,
            status: 0,
            reset_takes: Some(0),
            resetting: None,
            queues: (0..queues).map(|_| Queue { max: 256, ..Queue::default() }).collect(),
            queue_reset_takes: 0,
            interrupt: 0,
            generation: 0,
            config: (0..16).collect(),
            selectors: BTreeMap::new(),
            restless: 0,
            log: Vec::new(),
        };
        Self { state: Arc::new(Mutex::new(state)) }
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// The accesses since the last call.
    pub(crate) fn take_log(&self) -> Vec<Access> {
        std::mem::take(&mut self.state().log)
    }

    /// How a queue was set up.
    pub(crate) fn queue(&self, index: u16) -> QueueSetup {
        let state = self.state();
        let queue = &state.queues[usize::from(index)];
        assert!(queue.ready, "queue {index} is not ready");
        let written: BTreeSet<_> = queue.written.keys().copied().collect();
        assert_eq!(written, QUEUE.into_iter().collect(), "all of it was written");
        let word = |offset| u64::from(queue.written[&offset]);
        QueueSetup {
            size: queue.written[&QUEUE_SIZE] as u16,
            features: state.accepted,
            descriptor: Gpa(word(QUEUE_DESC_LOW) | word(QUEUE_DESC_HIGH) << 32),
            driver: Gpa(word(QUEUE_DRIVER_LOW) | word(QUEUE_DRIVER_HIGH) << 32),
            device: Gpa(word(QUEUE_DEVICE_LOW) | word(QUEUE_DEVICE_HIGH) << 32),
            vector: None,
        }
    }

    fn read(&self, offset: usize, width: usize) -> u32 {
        let mut state = self.state();
        let value = if offset < CONFIG {
            assert!(width == 4 && offset.is_multiple_of(4), "a control register has 32 bits: {offset:#x}");
            state.read(offset)
        } else {
            let at = offset - CONFIG;
            assert!(at.is_multiple_of(width) && at + width <= state.config.len(), "no field at {at:#x}");
            let mut bytes = [0; 4];
            bytes[..width].copy_from_slice(&state.config[at..at + width]);
            u32::from_le_bytes(bytes)
        };
        state.log.push(Access::Read(offset, width, value));
        value
    }

    fn write(&self, offset: usize, width: usize, value: u32) {
        let mut state = self.state();
        state.log.push(Access::Write(offset, width, value));
        if offset < CONFIG {
            assert!(width == 4 && offset.is_multiple_of(4), "a control register has 32 bits: {offset:#x}");
            state.write(offset, value);
        } else {
            let at = offset - CONFIG;
            assert!(at.is_multiple_of(width) && at + width <= state.config.len(), "no field at {at:#x}");
            state.config[at..at + width].copy_from_slice(&value.to_le_bytes()[..width]);
        }
    }
}

impl State {
    fn half(&self, selector: usize) -> u32 {
        let half = *self.selectors.get(&selector).expect("it was selected which half is meant");
        assert!(half < 2, "there are two halves");
        half
    }

    /// The queue that was selected, if there is one.
    fn selected(&mut self) -> Option<&mut Queue> {
        let index = *self.selectors.get(&QUEUE_SEL).expect("it was selected which queue is meant");
        self.queues.get_mut(index as usize)
    }

    fn read(&mut self, offset: usize) -> u32 {
        match offset {
            MAGIC_VALUE => self.magic,
            VERSION => self.version,
            DEVICE_ID => self.id,
            DEVICE_FEATURES => (self.offered >> (32 * self.half(DEVICE_FEATURES_SEL))) as u32,
            QUEUE_SIZE_MAX => self.selected().map_or(0, |queue| queue.max),
            QUEUE_READY => self.selected().map_or(0, |queue| queue.ready.into()),
            QUEUE_RESET => self.queue_reset(),
            INTERRUPT_STATUS => self.interrupt,
            STATUS => self.status(),
            CONFIG_GENERATION => {
                if self.restless > 0 {
                    self.restless -= 1;
                    self.generation += 1;
                }
                self.generation
            }
            _ => panic!("{offset:#x} is not to be read"),
        }
    }

    fn status(&mut self) -> u32 {
        match self.resetting {
            Some(0) => {
                self.resetting = None;
                self.status = 0;
            }
            Some(left) => self.resetting = Some(left - 1),
            None => {}
        }
        self.status
    }

    fn queue_reset(&mut self) -> u32 {
        let queue = self.selected().expect("a queue that there is");
        match queue.resetting {
            None => 0,
            Some(0) => {
                queue.resetting = None;
                queue.ready = false;
                queue.written.clear();
                0
            }
            Some(left) => {
                queue.resetting = Some(left - 1);
                1
            }
        }
    }

    fn write(&mut self, offset: usize, value: u32) {
        assert!(!READ_ONLY.contains(&offset), "{offset:#x} is not to be written");
        match offset {
            DEVICE_FEATURES_SEL | DRIVER_FEATURES_SEL | QUEUE_SEL => {
                self.selectors.insert(offset, value);
            }
            DRIVER_FEATURES => {
                let shift = 32 * self.half(DRIVER_FEATURES_SEL);
                self.accepted = self.accepted & !(0xffff_ffff << shift) | u64::from(value) << shift;
            }
            QUEUE_READY => {
                let queue = self.selected().expect("a queue that there is");
                queue.ready = value == 1 || queue.is_stubborn;
            }
            QUEUE_RESET => {
                assert!(
                    self.accepted & RING_RESET != 0 && value == 1,
                    "a queue is reset, if that was negotiated"
                );
                let takes = self.queue_reset_takes;
                self.selected().expect("a queue that there is").resetting = Some(takes);
            }
            QUEUE_NOTIFY => {
                let live = u32::from(DeviceStatus::DRIVER_OK.bits());
                assert!(self.status & live != 0, "no kick before the device is live");
            }
            INTERRUPT_ACK => {
                assert_eq!(value & !u32::from(Interrupt::all().bits()), 0, "only defined bits");
                self.interrupt &= !value;
            }
            STATUS if value == 0 => {
                self.resetting = self.reset_takes;
                self.accepted = 0;
                self.queues.iter_mut().for_each(|queue| queue.ready = queue.is_stubborn);
            }
            STATUS => self.status = value,
            _ if QUEUE.contains(&offset) => self.write_queue(offset, value),
            _ => panic!("{offset:#x} is not to be written"),
        }
    }

    fn write_queue(&mut self, offset: usize, value: u32) {
        let is_split = self.accepted & RING_PACKED == 0;
        let queue = self.selected().expect("a queue that there is");
        assert!(!queue.ready, "{offset:#x} is not to be written while the queue is ready");
        if offset == QUEUE_SIZE {
            assert!((1..=queue.max).contains(&value), "a size that the device has");
            assert!(!is_split || value.is_power_of_two(), "a power of two");
        }
        queue.written.insert(offset, value);
    }
}

impl Registers for FakeMmio {
    fn len(&self) -> usize {
        CONFIG + self.state().config.len()
    }

    fn read_u8(&self, offset: usize) -> u8 {
        self.read(offset, 1) as u8
    }

    fn read_u16(&self, offset: usize) -> u16 {
        self.read(offset, 2) as u16
    }

    fn read_u32(&self, offset: usize) -> u32 {
        self.read(offset, 4)
    }

    fn write_u8(&self, offset: usize, value: u8) {
        self.write(offset, 1, value.into());
    }

    fn write_u16(&self, offset: usize, value: u16) {
        self.write(offset, 2, value.into());
    }

    fn write_u32(&self, offset: usize, value: u32) {
        self.write(offset, 4, value);
    }
}
