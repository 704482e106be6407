//! The data plane: worker threads, and the way in for the control thread.
//!
//! ```text
//!   control thread                       a worker's thread
//!     hold ── shuts the gate ──────────►   ends its round, lets go of its state, waits at the gate
//!       changes what the workers own       (or sleeps in epoll_wait, holding nothing)
//!     drop ── opens it, wakes them ────►   takes its state again, goes on
//! ```
//!
//! A worker's state is behind a mutex that its thread holds while it moves frames, and lets go of between two rounds if
//! the gate is shut, and when it sleeps. So the control thread changes rings, policies and uplinks as plain data, and no
//! frame pays for it. [`Plane::suspend`] leaves the gate shut: from then on no ring is touched, until another process has
//! taken over or [`Plane::resume`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringway_device::net::Offloads;
use ringway_vhost::{Bell, Signal};
use rustix::event::{Timespec, epoll};
use rustix::thread::{CpuSet, sched_setaffinity};

use crate::capture::{Capture, Interface, Summary, Target};
use crate::counters::{Counter, Counters};
use crate::fabric::{Event, Forward, PortKind, PortSlot};
use crate::handover::{HeldPlane, PlaneState};
use crate::port::uplink::{Uplink, UplinkReader};
use crate::port::wishes::Receivers;
use crate::switch::{Mirror, PortPolicy, Switch};
use crate::worker::{Token, Turn, Wakes, Worker, watch};

/// A port to be.
pub enum PortSpec {
    /// A guest; a [`GuestDevice`](crate::control::GuestDevice) brings its rings.
    Guest,
    /// An uplink.
    Uplink(Uplink),
}

/// What one worker has of a port.
type Share = (PortKind, Option<UplinkReader>);

/// How the plane works.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many workers.
    pub workers: usize,
    /// The processors that they run on, a worker each, from the first again if there are fewer. Empty: any.
    pub pin: Vec<usize>,
    /// How long a ring is polled after its last frame.
    pub busy_poll: Duration,
    /// What becomes of frames.
    pub forward: Forward,
    /// The rules of the switch's ports, in their order; those that are not named have none.
    pub policies: Vec<PortPolicy>,
    /// Ports that get copies.
    pub mirrors: Vec<Mirror>,
}

/// What a worker counts beside the ports' counters. The times are nanoseconds.
#[derive(Debug, Default)]
pub struct WorkerCounters {
    /// System calls made to wait, or to see what has become ready.
    pub waits: Counter,
    /// Spent on frames.
    pub busy: Counter,
    /// Spent looking for some, in vain.
    pub polling: Counter,
    /// Spent asleep.
    pub asleep: Counter,
}

/// Adds a time to a counter.
pub(crate) fn count_time(counter: &Counter, time: Duration) {
    counter.add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
}

/// The place of the control thread among those who count.
const CONTROL: usize = 0;

/// The running workers. Dropping it ends them.
pub struct Plane {
    lanes: Arc<Lanes>,
    events: Receiver<Event>,
    threads: Vec<JoinHandle<()>>,
}

impl Plane {
    /// Starts the workers.
    ///
    /// # Errors
    /// The kernel's.
    pub fn start(ports: Vec<PortSpec>, options: &Options) -> io::Result<Self> {
        let plane = Self::restore(ports, options, &PlaneState::default())?;
        plane.resume();
        Ok(plane)
    }

    /// Starts workers that go on where another process's were, once they are resumed.
    ///
    /// # Errors
    /// The kernel's.
    pub fn restore(ports: Vec<PortSpec>, options: &Options, state: &PlaneState) -> io::Result<Self> {
        let (bell, events) = Bell::new()?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        watch(&epoll, bell.signal().as_fd(), Token::Wake)?;
        let mut policies = options.policies.clone();
        policies.resize_with(ports.len(), PortPolicy::default);
        let switch = Arc::new(Switch::new(&policies, &options.mirrors));
        switch.learn_again(&state.learned, state.now);
        let count = options.workers.max(1);
        let mut counters: Vec<Vec<Arc<Counters>>> = ports.iter().map(|_| vec![Arc::default()]).collect();
        let mut shares: Vec<Vec<Share>> = (0..count).map(|_| Vec::new()).collect();
        for port in ports {
            let parts = port.divide(count, options.forward)?;
            shares.iter_mut().zip(parts).for_each(|(share, part)| share.push(part));
        }
        for (counters, port) in counters.iter().zip(&state.ports) {
            counters[CONTROL].restore(&port.counters);
        }
        let start = Instant::now().checked_sub(Duration::from_secs(state.now)).unwrap_or_else(Instant::now);
        let lanes = shares.into_iter().map(|share| {
            let mut readers = Vec::new();
            let ports = share.into_iter().zip(&mut counters).enumerate();
            let ports = ports.map(|(port, ((kind, reader), all))| {
                let counters = Arc::default();
                all.push(Arc::clone(&counters));
                readers.extend(reader.map(|reader| (port, reader)));
                PortSlot { kind, counters }
            });
            let ports = ports.collect();
            let lane = Lane::new()?;
            let own = (Arc::clone(&lane.epoll), Arc::clone(&lane.counters));
            let worker = Worker::new(ports, readers, Arc::clone(&switch), own, bell.clone(), options, start)?;
            Ok(Lane { body: Mutex::new(Some(worker)), ..lane })
        });
        let lanes = lanes.collect::<io::Result<Vec<_>>>()?;
        let (gate, forward, waits) = (Gate::shut(), options.forward, state.waits);
        let lanes = Lanes { workers: lanes, gate, epoll, switch, forward, counters, waits, bell };
        let mut plane = Self { lanes: Arc::new(lanes), events, threads: Vec::new() };
        for index in 0..plane.lanes.workers.len() {
            let lanes = Arc::clone(&plane.lanes);
            let cpu = options.pin.get(index % options.pin.len().max(1)).copied();
            let (started, answer) = std::sync::mpsc::sync_channel(1);
            let run = move || {
                let pinned = cpu.map_or(Ok(()), pin);
                let is_pinned = pinned.is_ok();
                // The starter waits for it.
                let _ = started.send(pinned);
                if is_pinned {
                    lanes.run(index);
                }
            };
            plane.threads.push(std::thread::Builder::new().name(format!("worker{index}")).spawn(run)?);
            answer.recv().map_err(|_| io::ErrorKind::Other)??;
        }
        Ok(plane)
    }

    /// Suspends the workers: from when this returns no ring and no uplink is looked at until [`Plane::resume`].
    pub fn suspend(&self) -> HeldPlane {
        self.lanes.gate.close();
        self.lanes.held()
    }

    /// Lets them go on.
    pub fn resume(&self) {
        self.lanes.gate.open();
        self.lanes.wake();
    }

    /// Starts a capture of these ports. `on_end` is told in another thread when it has ended.
    ///
    /// # Errors
    /// The kernel's, if there is no thread.
    pub fn start_capture(
        &self,
        target: Target,
        interfaces: &[Interface],
        on_end: impl FnOnce(&Summary) + Send + 'static,
    ) -> io::Result<Capture> {
        let (capture, probes) = Capture::start(target, interfaces, self.lanes.count(), on_end)?;
        let mut held = self.lanes.hold();
        for (worker, probe) in held.workers().zip(probes) {
            worker.probes().add(probe);
        }
        Ok(capture)
    }

    /// Takes away the probes of captures that are to end.
    pub fn end_captures(&self) {
        self.lanes.hold().workers().for_each(|worker| worker.probes().sweep());
    }

    /// The way in for the devices of its ports.
    pub(crate) fn lanes(&self) -> &Arc<Lanes> {
        &self.lanes
    }

    /// How many ports there are.
    pub fn ports(&self) -> usize {
        self.lanes.counters.len()
    }

    /// What all have counted of a port so far.
    pub fn port_counters(&self, port: usize) -> Counters {
        let total = Counters::default();
        self.lanes.counters[port].iter().for_each(|counters| total.add(counters));
        total
    }

    /// System calls made to wait, by all workers.
    pub fn waits(&self) -> u64 {
        self.lanes.waits + self.lanes.workers.iter().map(|lane| lane.counters.waits.get()).sum::<u64>()
    }

    /// Each worker's counters.
    pub fn workers(&self) -> impl Iterator<Item = &WorkerCounters> {
        self.lanes.workers.iter().map(|lane| &*lane.counters)
    }

    /// Readable when there are events.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.lanes.epoll.as_fd()
    }

    /// The events since the last call; clears [`Plane::event_fd`].
    pub fn events(&self) -> Vec<Event> {
        let mut wakes = Wakes::default();
        wakes.wait(&self.lanes.epoll, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        let commands = wakes.take().filter_map(|token| match token {
            Token::Command(port) => Some(Event::Command { port }),
            _ => None,
        });
        commands.chain(self.events.try_iter()).collect()
    }
}

impl std::ops::Drop for Plane {
    fn drop(&mut self) {
        self.lanes.gate.quit();
        self.lanes.wake();
        for thread in self.threads.drain(..) {
            // A panic of a worker was printed by the worker.
            let _ = thread.join();
        }
        // The devices may live on, and with them the lanes; what the workers own ends here.
        for lane in &self.lanes.workers {
            lock(&lane.body).take();
        }
    }
}

/// Keeps this thread on a processor.
fn pin(cpu: usize) -> io::Result<()> {
    let told = |error: &dyn std::fmt::Display| {
        io::Error::other(format!("cannot keep a worker on processor {cpu} (--pin): {error}"))
    };
    if cpu >= CpuSet::MAX_CPU {
        return Err(told(&"there is none of that number"));
    }
    let mut set = CpuSet::new();
    set.set(cpu);
    sched_setaffinity(None, &set).map_err(|error| told(&error))
}

/// Whether the workers may work.
struct Gate {
    /// How many times it was closed and not opened.
    closed: AtomicUsize,
    quit: AtomicBool,
    lock: Mutex<()>,
    opened: Condvar,
}

impl Gate {
    fn shut() -> Self {
        let (lock, opened) = Default::default();
        Self { closed: AtomicUsize::new(1), quit: AtomicBool::new(false), lock, opened }
    }

    fn is_open(&self) -> bool {
        self.closed.load(Ordering::Relaxed) == 0
    }

    fn close(&self) {
        let _lock = lock(&self.lock);
        self.closed.fetch_add(1, Ordering::Relaxed);
    }

    fn open(&self) {
        let _lock = lock(&self.lock);
        self.closed.fetch_sub(1, Ordering::Relaxed);
        self.opened.notify_all();
    }

    fn quit(&self) {
        let _lock = lock(&self.lock);
        self.quit.store(true, Ordering::Relaxed);
        self.closed.fetch_add(1, Ordering::Relaxed);
        self.opened.notify_all();
    }

    /// Waits until it is open; false if the worker is to end instead.
    fn pass(&self) -> bool {
        let mut guard = lock(&self.lock);
        loop {
            if self.quit.load(Ordering::Relaxed) {
                return false;
            }
            if self.is_open() {
                return true;
            }
            guard = self.opened.wait(guard).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// A worker's state, and what its thread sleeps on.
pub(crate) struct Lane {
    /// `None` before the start and after the end.
    body: Mutex<Option<Worker>>,
    pub(crate) epoll: Arc<OwnedFd>,
    wake: Signal,
    pub(crate) counters: Arc<WorkerCounters>,
}

impl Lane {
    fn new() -> io::Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let wake = Signal::new()?;
        watch(&epoll, wake.as_fd(), Token::Wake)?;
        Ok(Self { body: Mutex::new(None), epoll: epoll.into(), wake, counters: Arc::default() })
    }
}

/// What the control thread and the workers share.
pub(crate) struct Lanes {
    workers: Vec<Lane>,
    gate: Gate,
    /// What the control thread waits on: the bell, and kicks of control queues.
    pub(crate) epoll: OwnedFd,
    pub(crate) switch: Arc<Switch>,
    pub(crate) forward: Forward,
    /// By port: what the control thread counts, and was counted before an upgrade; then what each worker counts.
    counters: Vec<Vec<Arc<Counters>>>,
    waits: u64,
    pub(crate) bell: Bell<Event>,
}

impl Lanes {
    /// A worker's thread.
    fn run(&self, index: usize) {
        let lane = &self.workers[index];
        let mut wakes = Wakes::default();
        loop {
            let mut body = lock(&lane.body);
            let Some(worker) = body.as_mut() else { return };
            let limit = loop {
                if !self.gate.is_open() {
                    break None;
                }
                if wakes.is_fresh() {
                    worker.note(&mut wakes);
                }
                match worker.turn(&mut wakes) {
                    Turn::Busy => {}
                    Turn::Idle(limit) => break Some(limit),
                }
            };
            drop(body);
            match limit {
                None if self.gate.pass() => {}
                None => return,
                Some(limit) => {
                    let since = Instant::now();
                    wakes.wait(&lane.epoll, limit.as_ref());
                    lane.counters.waits.add(1);
                    count_time(&lane.counters.asleep, since.elapsed());
                }
            }
        }
    }

    /// Stops all workers between two rounds, for as long as the result lives.
    pub(crate) fn hold(&self) -> Held<'_> {
        self.gate.close();
        let workers = self.workers.iter().map(|lane| lock(&lane.body)).collect();
        Held { lanes: self, workers }
    }

    /// What another process's plane needs to go on, but for the rings.
    fn held(&self) -> HeldPlane {
        let mut held = self.hold();
        let now = held.workers().next().map_or(0, |worker| worker.now());
        let mut uplinks: Vec<_> = self.counters.iter().map(|_| Vec::new()).collect();
        for (port, file) in held.workers().flat_map(|worker| worker.uplink_files()) {
            uplinks[port].push(file);
        }
        HeldPlane { now, learned: self.switch.learned(now), uplinks }
    }

    fn wake(&self) {
        for lane in &self.workers {
            lane.wake.raise();
        }
    }

    /// How many workers there are.
    pub(crate) fn count(&self) -> usize {
        self.workers.len()
    }

    /// The file descriptor that a worker sleeps on.
    pub(crate) fn epoll_of(&self, worker: usize) -> &OwnedFd {
        &self.workers[worker].epoll
    }

    /// What the control thread counts of a port.
    pub(crate) fn counters(&self, port: usize) -> &Counters {
        &self.counters[port][CONTROL]
    }
}

/// All workers, standing still.
pub(crate) struct Held<'l> {
    lanes: &'l Lanes,
    workers: Vec<MutexGuard<'l, Option<Worker>>>,
}

impl Held<'_> {
    /// The workers; none if they have ended.
    pub(crate) fn workers(&mut self) -> impl Iterator<Item = &mut Worker> {
        self.workers.iter_mut().filter_map(|worker| worker.as_mut())
    }

    /// One of them.
    pub(crate) fn worker(&mut self, index: usize) -> Option<&mut Worker> {
        self.workers.get_mut(index)?.as_mut()
    }
}

impl std::ops::Drop for Held<'_> {
    fn drop(&mut self) {
        self.workers.clear();
        self.lanes.gate.open();
        self.lanes.wake();
    }
}

/// The lock of something that is whole whenever it can be seen: its users only set fields while they hold it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PortSpec {
    /// What each of `count` workers has of it.
    fn divide(self, count: usize, forward: Forward) -> io::Result<Vec<Share>> {
        Ok(match self {
            Self::Guest => (0..count).map(|_| (PortKind::Guest(Receivers::default()), None)).collect(),
            Self::Uplink(uplink) => {
                if forward == Forward::Switch {
                    // It has many receivers, and what one of them does not take is done for that one.
                    uplink.set_offloads(Offloads::all())?;
                }
                let queues = uplink.divide(count).into_iter();
                queues.map(|(reader, writer)| (PortKind::Uplink(writer), reader)).collect()
            }
        })
    }
}
