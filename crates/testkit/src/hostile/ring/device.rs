//! A driver that writes what it likes where it likes, and the device's half of its ring.

use std::collections::VecDeque;
use std::sync::Arc;

use ringway_memory::GuestBuf;
use ringway_queue::{Burst, ConfigError, DeviceQueue, InFlight, QueueConfig, QueueError, ResumeState};
use ringway_spec::feature::{IN_ORDER, RING_PACKED};

use super::memory::{Memory, REGION_LEN};
use super::{Buffer, Format, Found, Malformed, Offer, Shape, packed, scribble, split};
use crate::hostile::{Input, MAX_STEPS};

/// A burst with as many slices takes no further chain.
const MAX_SLICES: usize = 4096;

/// The device's half of a ring of one format: what it is to answer and to write, and the driver it is up against.
pub(super) trait Model: Sized {
    type Format: Format;

    fn start(shape: Shape, state: ResumeState, memory: &mut Memory) -> Self;

    fn state(&self) -> ResumeState;

    /// The most chains that one look finds available.
    fn look(&mut self, memory: &Memory) -> Result<usize, Malformed>;

    fn has_available(&self, memory: &Memory) -> bool;

    /// Takes the next chain, if it is available, of at most `room` slots.
    fn take(
        &mut self,
        memory: &Memory,
        room: u16,
        push: impl FnMut(Buffer) -> Result<(), Malformed>,
    ) -> Result<Option<Found>, Malformed>;

    fn rewind(&mut self, slots: u16);

    /// Whether there is something to publish.
    fn has_completed(&self) -> bool;

    /// Completes a chain, which may be told of in the place of all completed since the last publication.
    fn complete(&mut self, memory: &mut Memory, chain: Found, written: u32, is_merged: bool);

    /// Whether the driver asked to be called, `None` if what it wrote means nothing.
    fn publish(&mut self, memory: &mut Memory) -> Option<bool>;

    fn arm(&mut self, memory: &mut Memory);

    fn suppress(&mut self, memory: &mut Memory);

    /// The driver writes the table of a chain.
    fn write_table(&self, memory: &mut Memory, offer: &Offer);

    /// The driver makes a chain available, unless the ring is full.
    fn offer(&mut self, memory: &mut Memory, offer: &Offer) -> bool;

    /// The driver sets a field to something near a good value.
    fn field(&mut self, memory: &mut Memory, what: [u8; 3]);
}

/// Serves a split ring whose driver follows `data`.
///
/// # Panics
/// If the device's half does what it must never do.
pub fn split_device(data: &[u8]) {
    run::<split::Device>(data);
}

/// Serves a packed ring whose driver follows `data`.
///
/// # Panics
/// If the device's half does what it must never do.
pub fn packed_device(data: &[u8]) {
    run::<packed::Device>(data);
}

fn run<M: Model>(data: &[u8]) {
    let mut input = Input(data);
    let mut device = Device::<M>::new(&mut input);
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        device.step(&mut input);
    }
    device.stop(false);
    device.memory.keep();
}

/// What is known of a chain that was taken.
struct Taken {
    chain: Found,
    readable: Part,
    writable: Part,
}

/// The readable or the writable part of a chain.
#[derive(Default)]
struct Part {
    /// How many buffers, none of them empty.
    buffers: usize,
    slices: usize,
    len: u32,
}

/// Why no chain is taken any more.
#[derive(Clone, Copy, PartialEq)]
enum Failed {
    No,
    Untold,
    Told(QueueError),
}

struct Device<M> {
    shape: Shape,
    memory: Memory,
    model: M,
    /// There is one, but for a moment between a stop and a start.
    queue: Option<DeviceQueue>,
    burst: Burst,
    failed: Failed,
    /// Slots whose chains are in flight.
    in_flight: u16,
    /// Chains in the burst, and their buffers: offset and length.
    waiting: VecDeque<Taken>,
    buffers: VecDeque<(usize, usize)>,
    /// Chains handed out.
    held: VecDeque<(InFlight, Found, u32)>,
    /// All that was completed and not published is told of by one used entry.
    is_mergeable: bool,
}

impl<M: Model> Device<M> {
    fn new(input: &mut Input<'_>) -> Self {
        let mut memory = Memory::take();
        let mut shape = Shape::new::<M::Format>(input);
        let which = input.u8();
        shape.reads_tables = which & 0x80 != 0;
        refuse::<M::Format>(shape, &mut memory, which & 0x7f);
        let state = ResumeState::start(shape.features);
        let queue = start(shape, &memory, state).expect("a good configuration");
        let model = M::start(shape, state, &mut memory);
        memory.check();
        Self {
            shape,
            memory,
            model,
            queue: Some(queue),
            burst: Burst::default(),
            failed: Failed::No,
            in_flight: 0,
            waiting: VecDeque::new(),
            buffers: VecDeque::new(),
            held: VecDeque::new(),
            is_mergeable: false,
        }
    }

    /// One step of either side.
    fn step(&mut self, input: &mut Input<'_>) {
        let kind = input.u8();
        match kind % 16 {
            0 => return scribble(&mut self.memory, input),
            1..=3 => return self.model.field(&mut self.memory, input.array()),
            4..=6 => return self.offer(&Offer::new(input, 8), kind >> 4),
            7 => return self.offer(&Offer::new(input, 255), kind >> 4),
            8 | 9 => self.take((kind >> 4).into()),
            10 => self.take(64),
            11 => self.hand_out(kind >> 4, input.u8()),
            12 => self.complete(kind >> 4, input.u8()),
            13 => self.publish(),
            14 if kind & 0x80 == 0 => self.arm(),
            14 if kind & 0x40 == 0 => self.suppress(),
            14 => self.rewind(),
            _ => self.restart(kind >> 4, input),
        }
        self.memory.check();
        let has_available = match self.failed {
            Failed::Untold => true,
            Failed::Told(_) => false,
            Failed::No => self.in_flight < self.shape.size && self.model.has_available(&self.memory),
        };
        assert_eq!(self.queue().has_available(), has_available);
    }

    fn queue(&mut self) -> &mut DeviceQueue {
        self.queue.as_mut().expect("it runs")
    }

    fn offer(&mut self, offer: &Offer, more: u8) {
        if offer.is_indirect {
            self.model.write_table(&mut self.memory, offer);
        }
        for _ in 0..=more {
            if !self.model.offer(&mut self.memory, offer) {
                break;
            }
        }
    }

    fn take(&mut self, max: usize) {
        let waiting = self.waiting.len();
        let result = self.queue.as_mut().expect("it runs").take(&mut self.burst, max);
        let is_malformed = self.failed == Failed::No && self.take_by_model(max).is_err();
        let taken = self.waiting.len() - waiting;
        self.failed = match (self.failed, result) {
            (Failed::No, Ok(n)) => {
                assert_eq!(n, taken);
                assert!(!is_malformed || n > 0, "a malformed ring is not an empty one");
                if is_malformed { Failed::Untold } else { Failed::No }
            }
            (Failed::No, Err(error)) => {
                assert!(is_malformed, "{error}");
                assert_eq!(taken, 0, "an error is told after the chains before it");
                Failed::Told(error)
            }
            (Failed::Untold, Err(error)) => Failed::Told(error),
            (Failed::Told(first), Err(error)) => {
                assert_eq!(first, error, "an error is final");
                self.failed
            }
            (_, Ok(_)) => panic!("an error is final"),
        };
        let lens = self.waiting.iter().map(|chain| chain.writable.len);
        assert!(self.burst.writable_lens().eq(lens));
    }

    /// Takes the same chains.
    fn take_by_model(&mut self, max: usize) -> Result<(), Malformed> {
        let Self { shape, memory, model, in_flight, waiting, buffers, .. } = self;
        let mut slices: usize =
            waiting.iter().map(|chain| chain.readable.slices + chain.writable.slices).sum();
        let most = model.look(memory)?.min(max);
        for _ in 0..most {
            if slices >= MAX_SLICES || *in_flight == shape.size {
                break;
            }
            let (mut readable, mut writable) = (Part::default(), Part::default());
            let mut is_in_writable = false;
            let known = buffers.len();
            let chain = model.take(memory, shape.size - *in_flight, |(addr, len, is_writable)| {
                if is_in_writable && !is_writable {
                    return Err(Malformed);
                }
                is_in_writable = is_writable;
                if len > 0 {
                    let at = Memory::offset(addr, len.into()).ok_or(Malformed)?;
                    let end = at + len as usize;
                    let part = if is_writable { &mut writable } else { &mut readable };
                    part.buffers += 1;
                    part.slices += if at < REGION_LEN && end > REGION_LEN { 2 } else { 1 };
                    part.len += len;
                    buffers.push_back((at, len as usize));
                }
                Ok(())
            });
            if chain.is_err() {
                buffers.truncate(known);
            }
            let Some(chain) = chain? else { break };
            *in_flight += chain.slots;
            slices += readable.slices + writable.slices;
            waiting.push_back(Taken { chain, readable, writable });
        }
        Ok(())
    }

    /// Works on some chains: reads what there is to read, writes to what there is to write to.
    fn hand_out(&mut self, more: u8, fill: u8) {
        let Self { memory, burst, waiting, buffers, held, .. } = self;
        for _ in 0..=more {
            let Some(chain) = burst.next() else {
                assert!(waiting.is_empty(), "all that was taken is handed out");
                break;
            };
            let Taken { chain: found, readable, writable } = waiting.pop_front().expect("no more than taken");
            let mut bytes = [0; 48];
            let n = chain.readable().read(&mut bytes);
            check_part(memory, &readable, chain.readable());
            let mut at = 0;
            for (offset, len) in buffers.drain(..readable.buffers) {
                let len = len.min(bytes.len() - at);
                assert_eq!(memory.bytes(offset..offset + len), &bytes[at..at + len]);
                at += len;
            }
            assert_eq!(n, at);

            bytes.fill(fill);
            let n = chain.writable().write(&bytes);
            check_part(memory, &writable, chain.writable());
            assert_eq!(chain.writable_len(), writable.len);
            let mut at = 0;
            for (offset, len) in buffers.drain(..writable.buffers) {
                let len = len.min(bytes.len() - at);
                memory.expect(offset, &bytes[at..at + len]);
                at += len;
            }
            assert_eq!(n, at);
            held.push_back((chain.detach(), found, writable.len));
        }
    }

    /// Completes chains: in the order in which they were taken, if that was negotiated.
    fn complete(&mut self, more: u8, which: u8) {
        let is_in_order = self.shape.has(IN_ORDER);
        for _ in 0..=more {
            let Some(last) = self.held.len().checked_sub(1) else { break };
            let index = if is_in_order { 0 } else { usize::from(which).min(last) };
            let (in_flight, chain, writable_len) = self.held.remove(index).expect("one of those held");
            let written = writable_len.min(which.into());
            let is_mergeable = self.is_mergeable || !self.model.has_completed();
            self.is_mergeable = is_in_order && writable_len == 0 && is_mergeable;
            self.model.complete(&mut self.memory, chain, written, self.is_mergeable);
            self.queue().complete(in_flight, written);
            self.in_flight -= chain.slots;
        }
    }

    fn publish(&mut self) {
        let calls = self.queue().publish();
        if let Some(expected) = self.model.publish(&mut self.memory) {
            assert_eq!(calls, expected);
        }
    }

    fn arm(&mut self) {
        let has_available = self.queue().arm();
        self.model.arm(&mut self.memory);
        assert_eq!(has_available, self.queue().has_available());
    }

    fn suppress(&mut self) {
        self.queue().suppress();
        self.model.suppress(&mut self.memory);
    }

    fn rewind(&mut self) {
        let slots = self.waiting.drain(..).map(|taken| taken.chain.slots).sum();
        self.buffers.clear();
        self.queue.as_mut().expect("it runs").rewind(&mut self.burst);
        assert!(self.burst.is_empty());
        self.model.rewind(slots);
        self.in_flight -= slots;
    }

    /// Stops the queue, and starts one where it was or elsewhere.
    fn restart(&mut self, how: u8, input: &mut Input<'_>) {
        self.stop(how & 1 == 0);
        let (shape, old) = (self.shape, self.model.state());
        let wanted = if how & 2 == 0 { old } else { M::Format::state(shape.size, input) };
        let next = start(shape, &self.memory, wanted);
        let (queue, state) = if M::Format::in_flight(shape.size, wanted).is_some() {
            (next.expect("a good state"), wanted)
        } else {
            assert_eq!(next.err(), Some(ConfigError::BadResume { size: shape.size, resume: wanted }));
            let next = start(shape, &self.memory, old);
            (next.expect("where it was"), old)
        };
        self.queue = Some(queue);
        self.model = M::start(shape, state, &mut self.memory);
        self.failed = Failed::No;
        self.in_flight = M::Format::in_flight(shape.size, state).expect("a good state");
    }

    /// Stops the queue. Chains that are held then are lost.
    fn stop(&mut self, completes: bool) {
        self.rewind();
        if completes {
            self.complete(u8::MAX, 0);
        }
        self.held.clear();
        self.model.publish(&mut self.memory);
        let queue = self.queue.take().expect("it runs");
        assert_eq!(queue.stop(), self.model.state());
        self.memory.check();
    }
}

fn start(shape: Shape, memory: &Memory, resume: ResumeState) -> Result<DeviceQueue, ConfigError> {
    let mut queue = start_sized(shape, memory, shape.size, resume)?;
    if shape.reads_tables {
        queue.ignore_write_flag_in_tables();
    }
    Ok(queue)
}

/// Starts a queue of a size that its areas may not be for.
fn start_sized(
    shape: Shape,
    memory: &Memory,
    size: u16,
    resume: ResumeState,
) -> Result<DeviceQueue, ConfigError> {
    DeviceQueue::start(QueueConfig {
        size,
        features: shape.features,
        areas: memory.areas(shape.size, shape.features),
        memory: Arc::clone(&memory.table),
        used_log: None,
        resume,
        inflight: None,
    })
}

/// A bad configuration is refused, and nothing is written.
fn refuse<F: Format>(shape: Shape, memory: &mut Memory, which: u8) {
    let good = ResumeState::start(shape.features);
    let other = ResumeState::start(shape.features ^ RING_PACKED);
    let (size, resume) = match which {
        1 => (F::bad_size(shape.size), good),
        2 => (shape.size * 2, good),
        3 => (shape.size, other),
        _ => return,
    };
    assert!(start_sized(shape, memory, size, resume).is_err());
    memory.check();
}

/// A buffer is the part of a chain that it is to be, and in the guest's memory.
fn check_part(memory: &Memory, part: &Part, buffer: GuestBuf<'_>) {
    assert_eq!(buffer.len(), part.len as usize);
    let mut slices = 0;
    for slice in buffer.pieces() {
        assert!(memory.contains(&slice), "a slice is outside of the guest's memory");
        slices += 1;
    }
    assert_eq!(slices, part.slices);
}
