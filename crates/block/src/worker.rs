//! A virtqueue's thread: requests from the driver to the image, and answers back.
//!
//! ```text
//!   round:  what others say ─► answer what is done ─► take ≤ 32 chains ─► judge ─┬─► answer at once
//!              (inbox)            (status, used)                                └─► begin, submit together
//!           ─► publish once, call once
//!   nothing for the busy-poll time:  arm ─► look once more ─► sleep until a kick, a completion, or the inbox
//!   stop:   begin no more ─► wait for what is in flight ─► where the queue stands
//! ```
//!
//! Requests are answered in the order in which they are done. A request's data stays where the guest has it; what is copied
//! is its header, and what ranges it names.
//!
//! Not here: what a request may ask for (`ringway_device::blk`), how it is carried out ([`crate::engine`]).

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ringway_device::blk::{HEADER_LEN, RangeKind, Request, Rules, Status};
use ringway_memory::{GuestBuf, Kept};
use ringway_queue::{Burst, Chain, InFlight, QueueError, ResumeState};
use ringway_vhost::{Bell, Kick, Notifier, Serving};
use tracing::{debug, warn};

use crate::counters::{Counter, Counters};
use crate::disk::Event;
use crate::engine::{Engine, Finished};
use crate::job::{Mailbox, Operation, Range};

/// The most chains that are taken at a time.
const BURST: usize = 32;
/// How many requests begin, or are answered, together: the storage and the driver go on meanwhile. With more, all would wait for
/// each other in turns.
const SHARE: usize = 4;
/// The most requests of a queue that are under way: rings of any size cost memory for so many.
const MAX_UNDER_WAY: u16 = 1024;
/// Looks in vain between two at the clock.
const IDLE_ROUNDS: u32 = 8;
/// How often a queue is looked at whose driver does not kick.
const POLL_INTERVAL: Duration = Duration::from_micros(100);

/// What the control thread says to a queue's thread.
pub(crate) enum Order {
    SetCall(Notifier),
    SetErr(Notifier),
    /// Look at the queue: there was a kick, or a translation has come.
    Look,
    /// Wait for everything in flight before anything else is taken, then drop this.
    Drain(Sender<()>),
    /// The queue's memory is gone.
    LoseMemory,
    Stop,
}

/// Where a queue's thread hears of others.
pub(crate) struct Inbox {
    orders: Mutex<Vec<Order>>,
    has_orders: AtomicBool,
    pub(crate) mailbox: Arc<Mailbox>,
}

impl Inbox {
    pub(crate) fn new() -> io::Result<Self> {
        let mailbox = Arc::new(Mailbox::new()?);
        Ok(Self { orders: Mutex::default(), has_orders: AtomicBool::new(false), mailbox })
    }

    pub(crate) fn send(&self, order: Order) {
        self.orders.lock().unwrap_or_else(PoisonError::into_inner).push(order);
        self.has_orders.store(true, Ordering::Release);
        self.mailbox.ring();
    }

    fn take(&self) -> Vec<Order> {
        if !self.has_orders.load(Ordering::Relaxed) {
            return Vec::new();
        }
        self.has_orders.store(false, Ordering::Relaxed);
        std::mem::take(&mut *self.orders.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// The rules of now, which the control thread may change at any time.
pub(crate) struct SharedRules {
    rules: Mutex<Rules>,
    version: AtomicU64,
}

impl SharedRules {
    pub(crate) fn new(rules: Rules) -> Self {
        Self { rules: Mutex::new(rules), version: AtomicU64::new(1) }
    }

    /// Sets them: a request that the driver makes available after this returns is judged by these.
    pub(crate) fn set(&self, rules: Rules) {
        *self.rules.lock().unwrap_or_else(PoisonError::into_inner) = rules;
        self.version.fetch_add(1, Ordering::Release);
    }
}

/// A request that has begun.
struct Flying {
    chain: InFlight,
    /// Bytes that the driver is told were written: its buffer and the status byte.
    written: u32,
    kind: Kind,
    /// Parts that are not done.
    left: u32,
    /// When all of them are, the storage is to flush.
    then_flush: bool,
    /// How the parts went that are.
    status: Status,
}

#[derive(Clone, Copy)]
enum Kind {
    Read(u64),
    Write(u64),
    Flush,
    Ranges,
}

#[derive(Default)]
struct Slot {
    flying: Option<Flying>,
    /// Where the status byte goes.
    status: Kept,
}

/// What a queue's thread is started with.
pub(crate) struct Start {
    pub(crate) vring: Serving,
    pub(crate) index: u16,
    pub(crate) session: u64,
    pub(crate) name: String,
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) rules: Arc<SharedRules>,
    pub(crate) counters: Arc<Counters>,
    pub(crate) bell: Bell<Event>,
    pub(crate) busy_poll: Duration,
}

pub(crate) struct Worker {
    vring: Serving,
    index: u16,
    session: u64,
    name: String,
    engine: Engine,
    inbox: Arc<Inbox>,
    shared_rules: Arc<SharedRules>,
    rules: Rules,
    rules_version: u64,
    counters: Arc<Counters>,
    bell: Bell<Event>,
    busy_poll: Duration,
    slots: Vec<Slot>,
    free: Vec<u32>,
    /// Buffers to keep data in.
    spare: Vec<Kept>,
    finished: Vec<Finished>,
    /// The last failure of the storage was told at this time.
    told: Option<Instant>,
    must_stop: bool,
}

impl Worker {
    pub(crate) fn new(start: Start, engine: Engine) -> Self {
        let Start { vring, index, session, name, inbox, rules, counters, bell, busy_poll } = start;
        let most = most_under_way(vring.queue.size());
        let now = *rules.rules.lock().unwrap_or_else(PoisonError::into_inner);
        Self {
            vring,
            index,
            session,
            name,
            engine,
            inbox,
            shared_rules: rules,
            rules: now,
            // Looked at anew with the first requests.
            rules_version: 0,
            counters,
            bell,
            busy_poll,
            slots: (0..most).map(|_| Slot::default()).collect(),
            free: (0..most.into()).rev().collect(),
            spare: Vec::new(),
            finished: Vec::new(),
            told: None,
            must_stop: false,
        }
    }

    /// Serves the queue until it is told to stop; where it stands then.
    pub(crate) fn run(mut self) -> ResumeState {
        // The time of the last change between work, polling and sleep, and since when there was nothing to do.
        let mut since = Instant::now();
        let mut idle_since: Option<Instant> = None;
        let mut idle_rounds = 0;
        let mut burst = Burst::default();
        loop {
            self.obey();
            if self.must_stop {
                break;
            }
            if self.round(&mut burst) {
                idle_rounds = 0;
                if let Some(idle) = idle_since.take() {
                    let now = Instant::now();
                    count_time(&self.counters.polling, now - idle);
                    since = now;
                }
                continue;
            }
            // The clock costs more than a look.
            idle_rounds += 1;
            if idle_rounds % IDLE_ROUNDS != 1 {
                std::hint::spin_loop();
                continue;
            }
            let now = Instant::now();
            let idle = *idle_since.get_or_insert_with(|| {
                count_time(&self.counters.busy, now - since);
                now
            });
            if now - idle < self.busy_poll {
                std::hint::spin_loop();
                continue;
            }
            count_time(&self.counters.polling, now - idle);
            self.sleep();
            since = Instant::now();
            count_time(&self.counters.asleep, since - now);
            idle_since = None;
            idle_rounds = 0;
        }
        self.drain();
        self.count_syscalls();
        self.vring.stop()
    }

    fn obey(&mut self) {
        for order in self.inbox.take() {
            match order {
                Order::SetCall(call) => self.vring.set_call(call),
                Order::SetErr(err) => self.vring.set_err(err),
                Order::Look => {}
                Order::Drain(done) => {
                    self.drain();
                    drop(done);
                }
                Order::LoseMemory => self.fail(),
                Order::Stop => self.must_stop = true,
            }
        }
    }

    /// Answers what is done and begins what has come; false if there was nothing.
    fn round(&mut self, burst: &mut Burst) -> bool {
        let answered = self.answer_finished();
        let begun = self.begin_available(burst);
        if begun > 0 {
            self.engine.submit();
        }
        if answered + begun > 0 {
            self.publish();
        }
        answered + begun > 0
    }

    fn publish(&mut self) {
        if self.vring.publish() {
            self.counters.calls.add(1);
            self.counters.syscalls.add(1);
        }
    }

    fn count_syscalls(&mut self) {
        self.counters.syscalls.add(self.engine.take_syscalls());
    }

    /// Takes chains and begins their requests; how many.
    fn begin_available(&mut self, burst: &mut Burst) -> usize {
        if self.vring.has_failed() || self.free.is_empty() {
            return 0;
        }
        let is_here = self.engine.here().is_some();
        let most = if is_here { BURST } else { SHARE }.min(self.free.len());
        let count = match self.vring.queue.take(burst, most) {
            Ok(count) => count,
            Err(error) => {
                self.break_down(error);
                return 0;
            }
        };
        if let Some(missing) = self.vring.queue.missing() {
            self.bell.ring(Event::TranslationMissing { session: self.session, missing });
        }
        if count == 0 {
            return 0;
        }
        // After the chains were seen: the driver may have waited for a change before it made them available.
        let version = self.shared_rules.version.load(Ordering::Acquire);
        if version != self.rules_version {
            self.rules = *self.shared_rules.rules.lock().unwrap_or_else(PoisonError::into_inner);
            self.rules_version = version;
        }
        let mut done = 0;
        while let Some(chain) = burst.next() {
            self.begin(chain);
            done += 1;
            // The driver goes on meanwhile.
            if is_here && done % SHARE == 0 {
                self.publish();
            }
        }
        count
    }

    /// Begins a request, or answers it.
    fn begin(&mut self, chain: Chain<'_>) {
        let Some(writable) = chain.writable_len().checked_sub(1) else {
            self.counters.malformed.add(1);
            self.vring.queue.complete(chain, 0);
            return;
        };
        let readable = chain.readable().len().saturating_sub(HEADER_LEN) as u32;
        let header = chain.readable().read_array::<HEADER_LEN>().ok_or(Status::IoError);
        let request = header.and_then(|header| self.rules.judge(header, readable, writable));
        if !matches!(request, Ok(Request::Read { .. })) {
            blank(chain.writable().truncate(writable as usize));
        }
        match request {
            Err(status) => self.answer(chain, status),
            Ok(Request::GetId) => {
                chain.writable().write(&self.rules.id());
                self.answer(chain, Status::Ok);
            }
            Ok(Request::Read { offset }) => {
                let mut data = self.spare.pop().unwrap_or_default();
                if self.engine.here().is_none() {
                    chain.keep_writable(0, writable as usize, &mut data);
                }
                self.carry_out(chain, Kind::Read(writable.into()), Operation::Read { offset }, data);
            }
            Ok(Request::Write { offset, stable }) => {
                let mut data = self.spare.pop().unwrap_or_default();
                if self.engine.here().is_none() {
                    chain.keep_readable(HEADER_LEN, readable as usize, &mut data);
                }
                let operation = Operation::Write { offset, stable };
                self.carry_out(chain, Kind::Write(readable.into()), operation, data);
            }
            Ok(Request::Flush) => self.carry_out(chain, Kind::Flush, Operation::Flush, Kept::default()),
            Ok(Request::Ranges(kind)) => self.begin_ranges(chain, kind, readable as usize),
        }
    }

    /// Carries out a request of one part: begins it, or does it.
    fn carry_out(&mut self, chain: Chain<'_>, kind: Kind, operation: Operation, data: Kept) {
        let Some(image) = self.engine.here() else {
            let slot = self.set_off(chain, kind, 1);
            return self.engine.begin(slot, operation, data);
        };
        self.spare.push(data);
        let buffer = match operation {
            Operation::Read { .. } => chain.writable().truncate(chain.writable_len() as usize - 1),
            Operation::Write { .. } => chain.readable().advance(HEADER_LEN),
            _ => GuestBuf::new(&[]),
        };
        let result = operation.carry_out(&**image, buffer);
        if result.is_err() && matches!(kind, Kind::Read(_)) {
            blank(buffer);
        }
        let status = self.status_of(result);
        self.count(kind, status);
        self.answer_counted(chain, status);
    }

    /// Begins a request of as many parts as it names ranges, or answers it.
    fn begin_ranges(&mut self, chain: Chain<'_>, kind: RangeKind, len: usize) {
        let mut bytes = vec![0; len];
        chain.readable().advance(HEADER_LEN).read(&mut bytes);
        let rules = self.rules;
        let segments = match rules.ranges(kind, &bytes) {
            Ok(segments) => segments.filter(|segment| segment.len > 0),
            Err(status) => return self.answer(chain, status),
        };
        let operations = segments.map(|segment| {
            let range = Range { offset: segment.offset, len: segment.len };
            match kind {
                RangeKind::Discard => Operation::Discard(range),
                RangeKind::SecureErase => Operation::SecureErase(range),
                RangeKind::WriteZeroes => Operation::WriteZeroes { range, unmap: segment.unmap },
            }
        });
        if let Some(image) = self.engine.here() {
            let result = operations
                .into_iter()
                .try_for_each(|operation| operation.carry_out(&**image, GuestBuf::new(&[])));
            let status = self.status_of(result);
            self.count(Kind::Ranges, status);
            return self.answer_counted(chain, status);
        }
        let operations: Vec<_> = operations.collect();
        if operations.is_empty() {
            return self.answer(chain, Status::Ok);
        }
        let slot = self.set_off(chain, Kind::Ranges, operations.len() as u32);
        if let Some(flying) = &mut self.slots[slot as usize].flying {
            // No storage writes zeroes that are stable at once.
            flying.then_flush = kind == RangeKind::WriteZeroes && rules.is_stable();
        }
        for operation in operations {
            self.engine.begin(slot, operation, Kept::default());
        }
    }

    /// Keeps what answers a request later; its slot.
    fn set_off(&mut self, chain: Chain<'_>, kind: Kind, parts: u32) -> u32 {
        let number = self.free.pop().expect("no more chains are taken than slots are free");
        let slot = &mut self.slots[number as usize];
        let written = chain.writable_len();
        chain.keep_writable(written as usize - 1, 1, &mut slot.status);
        let chain = chain.detach();
        slot.flying =
            Some(Flying { chain, written, kind, left: parts, then_flush: false, status: Status::Ok });
        number
    }

    /// Answers a request that is not carried out.
    fn answer(&mut self, chain: Chain<'_>, status: Status) {
        match status {
            Status::Ok => self.counters.other_requests.add(1),
            Status::IoError => self.counters.refused.add(1),
            Status::Unsupported => self.counters.unsupported.add(1),
        }
        self.answer_counted(chain, status);
    }

    fn answer_counted(&mut self, chain: Chain<'_>, status: Status) {
        let written = chain.writable_len();
        chain.writable().advance(written as usize - 1).write(&[status.to_byte()]);
        self.vring.queue.complete(chain, written);
    }

    /// Answers what is done; how many requests, or parts of them.
    fn answer_finished(&mut self) -> usize {
        if self.engine.in_flight() == 0 {
            return 0;
        }
        let mut finished = std::mem::take(&mut self.finished);
        self.engine.reap(&mut finished);
        let count = finished.len();
        for (number, Finished { token, data, result }) in finished.drain(..).enumerate() {
            if number > 0 && number % SHARE == 0 {
                self.publish();
            }
            // A buffer of other requests is empty, or the device's to read.
            let is_read =
                matches!(&self.slots[token as usize].flying, Some(Flying { kind: Kind::Read(_), .. }));
            if is_read && result.is_err() {
                blank(data.buf());
            }
            // Flushes and ranges bring back one that was never taken from there.
            if self.spare.len() < self.slots.len() {
                self.spare.push(data);
            }
            let status = self.status_of(result);
            let slot = &mut self.slots[token as usize];
            let Some(flying) = &mut slot.flying else { continue };
            if flying.status == Status::Ok {
                flying.status = status;
            }
            flying.left -= 1;
            if flying.left > 0 {
                continue;
            }
            if std::mem::take(&mut flying.then_flush) && flying.status == Status::Ok {
                flying.left = 1;
                self.engine.begin(token, Operation::Flush, Kept::default());
                self.engine.submit();
                continue;
            }
            self.free.push(token);
            let Some(Flying { chain, written, kind, status, .. }) = slot.flying.take() else { continue };
            let has_failed = status == Status::IoError;
            if has_failed && self.inbox.mailbox.is_abandoned() && self.vring.queue.is_recorded() {
                // It is in the front-end's record: whoever serves the queue next carries it out.
                continue;
            }
            slot.status.buf().write(&[status.to_byte()]);
            self.vring.queue.complete(chain, written);
            self.count(kind, status);
        }
        self.finished = finished;
        count
    }

    fn count(&self, kind: Kind, status: Status) {
        let Counters { reads, read_bytes, writes, written_bytes, flushes, range_requests, .. } =
            &*self.counters;
        match (status, kind) {
            (Status::IoError, _) => self.counters.storage_errors.add(1),
            (Status::Unsupported, _) => self.counters.unsupported.add(1),
            (_, Kind::Read(len)) => {
                reads.add(1);
                read_bytes.add(len);
            }
            (_, Kind::Write(len)) => {
                writes.add(1);
                written_bytes.add(len);
            }
            (_, Kind::Flush) => flushes.add(1),
            (_, Kind::Ranges) => range_requests.add(1),
        }
    }

    /// What the driver is told of it. The log has a line a second at most of what goes wrong.
    fn status_of(&mut self, result: io::Result<()>) -> Status {
        const PAUSE: Duration = Duration::from_secs(1);
        let Err(error) = result else { return Status::Ok };
        if error.kind() == io::ErrorKind::Unsupported {
            debug!("disk {}: {error}", self.name);
            return Status::Unsupported;
        }
        if self.told.is_none_or(|at| at.elapsed() >= PAUSE) {
            self.told = Some(Instant::now());
            warn!("disk {}: a request failed: {error}", self.name);
        }
        Status::IoError
    }

    /// The driver broke the queue.
    fn break_down(&mut self, error: QueueError) {
        if self.vring.queue.is_memory_intact() {
            self.bell.ring(Event::QueueFailed { session: self.session, index: self.index, error });
        } else {
            self.bell.ring(Event::MemoryFault { session: self.session });
        }
        self.fail();
    }

    fn fail(&mut self) {
        if self.vring.fail() {
            self.counters.failures.add(1);
        }
    }

    /// Asks for kicks, looks once more, and sleeps.
    fn sleep(&mut self) {
        self.count_syscalls();
        let mut limit = None;
        // Without a free slot there is nothing to be kicked for: what is done wakes.
        if !self.vring.has_failed() && !self.free.is_empty() {
            if self.vring.queue.arm() {
                return self.vring.queue.suppress();
            }
            // A ring in memory that was taken away looks empty.
            if !self.vring.queue.is_memory_intact() {
                self.bell.ring(Event::MemoryFault { session: self.session });
                self.fail();
            }
            limit = matches!(self.vring.kick, Kick::Polled).then_some(POLL_INTERVAL);
        }
        if !self.inbox.has_orders.load(Ordering::Acquire) {
            self.engine.sleep(limit);
        }
        if !self.vring.has_failed() {
            self.vring.queue.suppress();
            if self.vring.queue.has_available() {
                self.counters.kicks.add(1);
            }
        }
    }

    /// Waits for everything in flight, and answers it.
    fn drain(&mut self) {
        self.engine.submit();
        loop {
            if self.answer_finished() > 0 {
                self.publish();
            }
            if self.engine.in_flight() == 0 {
                return;
            }
            if self.inbox.mailbox.is_abandoned() {
                self.engine.abandon();
            }
            self.engine.sleep(None);
        }
    }
}

/// Fills with zeroes what nothing was read to: the driver is told that all before the status byte was written (2.7.8.2).
fn blank(mut buf: GuestBuf<'_>) {
    const ZEROES: [u8; 4096] = [0; 4096];
    while !buf.is_empty() {
        buf = buf.advance(buf.write(&ZEROES));
    }
}

/// How many requests of a queue of this size are under way at most.
pub(crate) fn most_under_way(size: u16) -> u16 {
    size.min(MAX_UNDER_WAY)
}

/// What a queue's kick is waited for with.
pub(crate) fn kick_of(kick: &Kick) -> io::Result<Option<OwnedFd>> {
    match kick {
        Kick::Fd(fd) => fd.try_clone().map(Some),
        Kick::InBand | Kick::Polled => Ok(None),
    }
}

fn count_time(counter: &Counter, time: Duration) {
    counter.add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
}
