//! The driver's half and the device's half of one ring, and someone else who may write there too.
//!
//! As long as nobody does, all that was added comes back with what was written, in the order in which it was used,
//! and no side sleeps while there is something for it. After that, what holds against any peer still holds.

use std::collections::VecDeque;
use std::sync::Arc;

use ringway_queue::{Burst, DeviceQueue, DriverQueue, InFlight, QueueConfig, ResumeState, Used};
use ringway_spec::feature::IN_ORDER;

use super::driver::{self, Chain, Owner};
use super::memory::{BUFFERS, Memory};
use super::{Format, Shape, scribble};
use super::{packed::Packed, split::Split};
use crate::hostile::{Input, MAX_STEPS};

/// Runs both halves of a ring, of either format, as `data` says.
///
/// # Panics
/// If one of them does what it must never do.
pub fn pair(data: &[u8]) {
    let mut input = Input(data);
    let mut pair =
        if input.u8() & 1 == 0 { Pair::new::<Split>(&mut input) } else { Pair::new::<Packed>(&mut input) };
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        pair.step(&mut input);
    }
    pair.end();
}

/// A chain on its way.
#[derive(Clone, Copy)]
struct Sent {
    serial: u32,
    readable_len: usize,
    writable_len: u32,
}

struct Pair {
    shape: Shape,
    memory: Memory,
    driver: DriverQueue<Owner>,
    /// There is one, but for a moment between a stop and a start.
    device: Option<DeviceQueue>,
    burst: Burst,
    /// Nobody else has written to the memory.
    is_quiet: bool,
    is_driver_asleep: bool,
    is_device_asleep: bool,
    serial: u32,
    lent: Vec<Sent>,
    added: VecDeque<Sent>,
    /// Not handed out by the device, from the oldest on.
    available: VecDeque<Sent>,
    held: VecDeque<(InFlight, Option<Sent>)>,
    /// Completed and not published; and published, with what was written.
    completed: VecDeque<(u32, u32)>,
    used: VecDeque<(u32, u32)>,
}

impl Pair {
    fn new<F: Format>(input: &mut Input<'_>) -> Self {
        let memory = Memory::take();
        let shape = Shape::new::<F>(input);
        let entries = u16::from(input.u8() % 4).min(192 / shape.size);
        let mut start = F::state(shape.size, input);
        if F::in_flight(shape.size, start) != Some(0) {
            start = ResumeState::start(shape.features);
        }
        let config = driver::config(shape, &memory, shape.size, start, shape.size, entries);
        let driver = DriverQueue::new(config).expect("a good configuration");
        let device = Some(start_device(shape, &memory, start));
        Self {
            shape,
            memory,
            driver,
            device,
            burst: Burst::default(),
            is_quiet: true,
            is_driver_asleep: false,
            is_device_asleep: false,
            serial: 0,
            lent: Vec::with_capacity(shape.size.into()),
            added: VecDeque::new(),
            available: VecDeque::new(),
            held: VecDeque::new(),
            completed: VecDeque::new(),
            used: VecDeque::new(),
        }
    }

    fn step(&mut self, input: &mut Input<'_>) {
        let kind = input.u8();
        let more = kind >> 4;
        match kind % 16 {
            0..=2 => {
                let chain = Chain::new(input);
                for _ in 0..=more {
                    self.add(chain);
                }
            }
            3 | 4 => self.publish(),
            5 | 6 => self.reclaim(more),
            7 if more & 1 == 0 => self.arm_driver(),
            7 => {
                self.is_driver_asleep = false;
                self.driver.suppress();
            }
            8 | 9 => self.take(more.into()),
            10 => self.hand_out(more, input.u8()),
            11 => self.complete(more, input.array()),
            12 => self.publish_used(),
            13 if more & 1 == 0 => self.arm_device(),
            13 => self.device().suppress(),
            14 => self.restart_device(more),
            _ => {
                self.is_quiet = false;
                if more & 1 == 0 {
                    scribble(&mut self.memory, input);
                } else {
                    // One bit or two of a ring.
                    let (at, bits) = (usize::from(input.u16()) % BUFFERS, input.u8());
                    self.memory.accept(at..at + 1);
                    let [byte] = self.memory.array(at);
                    self.memory.write(at, &[byte ^ bits]);
                }
            }
        }
        assert_eq!(usize::from(self.driver.in_flight()), self.lent.len());
    }

    // The driver

    fn add(&mut self, chain: Chain) {
        self.is_driver_asleep = false;
        let segments = chain.segments();
        let (readable, writable) = segments[..chain.count()].split_at(chain.readable);
        let serial = self.serial;
        self.serial += 1;
        if self.driver.add(readable, writable, Owner(serial)).is_ok() {
            let readable_len = chain.bytes(chain.readable) as usize;
            let sent = Sent { serial, readable_len, writable_len: chain.bytes(chain.writable) as u32 };
            self.lent.push(sent);
            self.added.push_back(sent);
            // A device cannot take what is not in its memory.
            self.is_quiet &= chain.is_in_memory();
        }
    }

    fn publish(&mut self) {
        self.is_driver_asleep = false;
        let kicks = self.driver.publish();
        if self.is_quiet && self.is_device_asleep && !self.added.is_empty() {
            assert!(kicks, "the device sleeps while there is a chain");
        }
        self.is_device_asleep &= !kicks;
        self.available.append(&mut self.added);
    }

    fn reclaim(&mut self, more: u8) {
        self.is_driver_asleep = false;
        for _ in 0..=more {
            let result = self.driver.reclaim();
            if self.is_quiet {
                let next = result.as_ref().expect("a good device").as_ref();
                assert_eq!(next.map(|used| (used.owner.0, used.written)), self.used.pop_front());
            }
            let Ok(Some(Used { owner, written })) = result else { break };
            let index = self.lent.iter().position(|sent| sent.serial == owner.0);
            let sent = self.lent.remove(index.expect("an owner is given back once"));
            assert!(written <= sent.writable_len);
        }
    }

    fn arm_driver(&mut self) {
        self.is_driver_asleep = !self.driver.arm();
        assert!(!self.is_quiet || self.is_driver_asleep == self.used.is_empty());
    }

    // The device

    fn device(&mut self) -> &mut DeviceQueue {
        self.is_device_asleep = false;
        self.device.as_mut().expect("it runs")
    }

    fn take(&mut self, max: usize) {
        self.is_device_asleep = false;
        let waiting = self.burst.len();
        let result = self.device.as_mut().expect("it runs").take(&mut self.burst, max);
        if self.is_quiet {
            let taken = result.expect("a good driver");
            // Not all: a look at the driver's index may wait until what was seen before is taken.
            assert!(taken > 0 || max == 0 || waiting == self.available.len());
        }
    }

    fn hand_out(&mut self, more: u8, fill: u8) {
        self.is_device_asleep = false;
        for _ in 0..=more {
            let Some(chain) = self.burst.next() else { break };
            let sent = self.available.pop_front();
            if self.is_quiet {
                let sent = sent.expect("no more than was added");
                let lens = (chain.readable().len(), chain.writable_len());
                assert_eq!(lens, (sent.readable_len, sent.writable_len));
            } else {
                // Where the rings are, too.
                chain.writable().write(&[fill; 32]);
            }
            self.held.push_back((chain.detach(), sent));
        }
    }

    fn complete(&mut self, more: u8, [which, len]: [u8; 2]) {
        for _ in 0..=more {
            let Some(last) = self.held.len().checked_sub(1) else { break };
            let index = if self.shape.has(IN_ORDER) { 0 } else { usize::from(which).min(last) };
            let (chain, sent) = self.held.remove(index).expect("one of those held");
            let written = match sent {
                Some(sent) if self.is_quiet => sent.writable_len.min(len.into()),
                _ => 0,
            };
            self.device().complete(chain, written);
            self.completed.extend(sent.map(|sent| (sent.serial, written)));
        }
    }

    fn publish_used(&mut self) {
        let calls = self.device().publish();
        if self.is_quiet && self.is_driver_asleep && !self.completed.is_empty() {
            assert!(calls, "the driver sleeps while there is a used chain");
        }
        self.is_driver_asleep &= !calls;
        self.used.append(&mut self.completed);
    }

    fn arm_device(&mut self) {
        let is_empty = !self.device().arm();
        let is_known = self.burst.len() == self.available.len();
        assert!(!self.is_quiet || is_empty == is_known);
        self.is_device_asleep = is_empty;
    }

    /// Stops the device and starts it where it was.
    fn restart_device(&mut self, how: u8) {
        self.complete(u8::MAX, [how, how]);
        self.publish_used();
        self.device.as_mut().expect("it runs").rewind(&mut self.burst);
        let state = self.device.take().expect("it runs").stop();
        self.device = Some(start_device(self.shape, &self.memory, state));
    }

    fn end(self) {
        let Self { driver, lent, memory, .. } = self;
        let mut owners: Vec<u32> =
            driver.reset(|| true).ok().expect("a reset").iter().map(|owner| owner.0).collect();
        owners.sort_unstable();
        assert!(lent.iter().map(|sent| sent.serial).eq(owners), "an owner is lost");
        memory.keep();
    }
}

fn start_device(shape: Shape, memory: &Memory, resume: ResumeState) -> DeviceQueue {
    let config = QueueConfig {
        size: shape.size,
        features: shape.features,
        areas: memory.areas(shape.size, shape.features),
        memory: Arc::clone(&memory.table),
        used_log: None,
        resume,
        inflight: None,
    };
    DeviceQueue::start(config).expect("a good configuration")
}
