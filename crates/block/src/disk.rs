//! A disk as its front-end's session sees it: a device, an image, and a thread for each queue that runs.
//!
//! ```text
//!   session ──start_vring──► thread (worker.rs): its own way to the image
//!      │   ◄──stop_vring────  joined: nothing is in flight any more
//!      ├── features, cache mode, size ──► rules, which all threads judge by
//!      └── ◄── events ── what a thread noticed
//! ```
//!
//! A disk whose rings do not run has no thread.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use ringway_device::blk::BlkDevice;
use ringway_queue::{Missing, QueueError, ResumeState};
use ringway_vhost::backend::Device;
use ringway_vhost::message::protocol_feature;
use ringway_vhost::{Bell, Kick, Notifier, Running, Serving};
use tracing::warn;

use crate::counters::Counters;
use crate::engine::Engine;
use crate::image::Way;
use crate::worker::{Inbox, Order, SharedRules, Start, Worker, kick_of, most_under_way};

/// How long a ring that is to stop waits for its requests, before it gives up on those that are done elsewhere.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a queue's thread noticed.
#[derive(Debug)]
pub enum Event {
    /// The driver broke a ring, which is not looked at any more.
    QueueFailed {
        /// See [`DiskDevice::session`].
        session: u64,
        /// The vring.
        index: u16,
        /// How.
        error: QueueError,
    },
    /// The front-end took memory away.
    MemoryFault {
        /// See [`DiskDevice::session`].
        session: u64,
    },
    /// A ring waits for a translation.
    TranslationMissing {
        /// See [`DiskDevice::session`].
        session: u64,
        /// What to ask for.
        missing: Missing,
    },
}

/// A queue's thread.
struct Thread {
    inbox: Arc<Inbox>,
    /// Where the queue stands, once it has stopped.
    ended: Receiver<ResumeState>,
    handle: JoinHandle<()>,
}

/// A queue that runs.
enum Lane {
    Running(Thread),
    /// It could not be given a thread.
    Failed(Box<Serving>),
}

/// A disk behind a session.
pub struct DiskDevice {
    name: String,
    pub(crate) device: BlkDevice,
    way: Way,
    rules: Arc<SharedRules>,
    lanes: Vec<Option<Lane>>,
    /// By queue: what its threads have counted.
    counters: Vec<Arc<Counters>>,
    /// What was counted before an upgrade, and by the control thread.
    pub(crate) own: Arc<Counters>,
    busy_poll: Duration,
    bell: Bell<Event>,
    events: Receiver<Event>,
    pub(crate) session: u64,
    /// The session that was counted last.
    pub(crate) counted: Option<u64>,
    /// That there is no `io_uring` was told.
    told: bool,
    /// Queues that are not to begin yet, each with the way to its thread.
    held: Option<Vec<(Sender<Start>, Start)>>,
}

impl DiskDevice {
    /// A disk that `name` is the user's word for. Its queues poll for `busy_poll` after their last request.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(name: String, device: BlkDevice, way: Way, busy_poll: Duration) -> io::Result<Self> {
        let (bell, events) = Bell::new()?;
        let queues = device.max_queues();
        Ok(Self {
            name,
            rules: Arc::new(SharedRules::new(device.rules())),
            device,
            way,
            lanes: (0..queues).map(|_| None).collect(),
            counters: (0..queues).map(|_| Arc::default()).collect(),
            own: Arc::default(),
            busy_poll,
            bell,
            events,
            session: 0,
            counted: None,
            told: false,
            held: None,
        })
    }

    /// The device model.
    pub fn model(&self) -> &BlkDevice {
        &self.device
    }

    /// The number that events carry if they are about its rings of now.
    pub fn session(&self) -> u64 {
        self.session
    }

    /// Readable when there are events.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.bell.signal().as_fd()
    }

    /// The events since the last call; clears [`DiskDevice::event_fd`].
    pub fn events(&mut self) -> Vec<Event> {
        self.bell.signal().clear();
        self.events.try_iter().collect()
    }

    /// The device has failed in a way that only a reset mends.
    pub fn need_reset(&mut self) {
        self.device.negotiation_mut().need_reset();
    }

    /// The memory of its rings was taken away: none is looked at any more until the session has stopped it.
    pub fn lose_memory(&mut self) {
        self.tell_all(|| Order::LoseMemory);
    }

    /// The image has another size. Returns whether the driver sees another capacity, and is to be told.
    pub fn set_size(&mut self, bytes: u64) -> bool {
        let is_news = self.device.set_size(bytes);
        self.set_rules();
        is_news
    }

    /// The image is reached by another way from now on; no ring runs.
    pub fn set_way(&mut self, way: Way) {
        self.way = way;
    }

    /// Rings that start from now on are not looked at until [`DiskDevice::release`]: another process has them still.
    pub fn hold(&mut self) {
        self.held.get_or_insert_default();
    }

    /// Rings that wait begin.
    pub fn release(&mut self) {
        for (thread, start) in self.held.take().into_iter().flatten() {
            // It waits for it.
            let _ = thread.send(start);
        }
    }

    /// Waits until all that is in flight now is done, but not for longer than this; whether it is. No ring begins anything
    /// else before.
    pub fn drain(&self, limit: Duration) -> bool {
        self.drained().recv_timeout(limit) == Err(RecvTimeoutError::Disconnected)
    }

    /// Closed as soon as all that is in flight now is done.
    fn drained(&self) -> Receiver<()> {
        let (drained, wait) = channel();
        self.tell_all(|| Order::Drain(drained.clone()));
        wait
    }

    /// What all its queues have counted so far.
    pub fn counters(&self) -> Counters {
        let total = Counters::default();
        total.add(&self.own);
        self.counters.iter().for_each(|counters| total.add(counters));
        total
    }

    /// The counters that [`DiskDevice::counters`] adds up, to be read wherever the disk is.
    pub fn counting(&self) -> Vec<Arc<Counters>> {
        std::iter::once(&self.own).chain(&self.counters).cloned().collect()
    }

    pub(crate) fn set_rules(&self) {
        self.rules.set(self.device.rules());
    }

    fn tell_all(&self, order: impl Fn() -> Order) {
        for lane in self.lanes.iter().flatten() {
            if let Lane::Running(thread) = lane {
                thread.inbox.send(order());
            }
        }
    }

    fn tell(&mut self, index: u16, order: Order) {
        match (self.lanes.get_mut(usize::from(index)), order) {
            (Some(Some(Lane::Running(thread))), order) => thread.inbox.send(order),
            (Some(Some(Lane::Failed(vring))), Order::SetErr(err)) => vring.set_err(err),
            _ => {}
        }
    }

    /// Starts a queue's thread.
    fn start(&mut self, index: u16, vring: Serving) -> Lane {
        match self.start_thread(vring.queue.size(), &vring.kick, index) {
            Ok((thread, to_thread)) => {
                let start = Start {
                    vring,
                    index,
                    session: self.session,
                    name: self.name.clone(),
                    inbox: Arc::clone(&thread.inbox),
                    rules: Arc::clone(&self.rules),
                    counters: Arc::clone(&self.counters[usize::from(index)]),
                    bell: self.bell.clone(),
                    busy_poll: self.busy_poll,
                };
                match &mut self.held {
                    Some(held) => held.push((to_thread, start)),
                    // It waits for it.
                    None => _ = to_thread.send(start),
                }
                Lane::Running(thread)
            }
            Err(error) => self.fail(index, vring, &error),
        }
    }

    /// A thread that has its way to the image, and waits for its queue. A ring of the kernel's belongs to the thread that
    /// makes it.
    fn start_thread(&mut self, size: u16, kick: &Kick, index: u16) -> io::Result<(Thread, Sender<Start>)> {
        let inbox = Arc::new(Inbox::new()?);
        let kick = kick_of(kick)?;
        let (way, mailbox) = (self.way.clone(), Arc::clone(&inbox.mailbox));
        let (to_thread, start) = channel();
        let (prepared, answer) = channel();
        let (end, ended) = channel();
        let run = move || {
            let engine =
                Engine::new(way, most_under_way(size), &mailbox).and_then(|(mut engine, without)| {
                    kick.map_or(Ok(()), |kick| engine.watch_kick(kick))?;
                    Ok((engine, without))
                });
            let (engine, without) = match engine {
                Ok((engine, without)) => (Some(engine), Ok(without)),
                Err(error) => (None, Err(error)),
            };
            // Who started it waits for this, and for the state in the end.
            let _ = prepared.send(without);
            if let (Some(engine), Ok(start)) = (engine, start.recv()) {
                let _ = end.send(Worker::new(start, engine).run());
            }
        };
        let name = format!("{}.{index}", self.name);
        let handle = std::thread::Builder::new().name(name).spawn(run)?;
        let without = answer.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into()))?;
        self.tell_without(without);
        Ok((Thread { inbox, ended, handle }, to_thread))
    }

    fn fail(&self, index: u16, mut vring: Serving, error: &io::Error) -> Lane {
        warn!("disk {}: vring {index} cannot be served: {error}", self.name);
        vring.fail();
        self.own.failures.add(1);
        Lane::Failed(vring.into())
    }

    /// Says once that the kernel's `io_uring` cannot be used.
    fn tell_without(&mut self, error: Option<io::Error>) {
        if let Some(error) = error
            && !std::mem::replace(&mut self.told, true)
        {
            warn!("disk {}: no io_uring ({error}): requests go through threads, which is slower", self.name);
        }
    }
}

impl Thread {
    /// Has it stop, and waits; longer than [`PATIENCE`] only for what the kernel does in the guest's memory.
    fn stop(self) -> Option<ResumeState> {
        let Self { inbox, ended, handle } = self;
        inbox.send(Order::Stop);
        let mut state = ended.recv_timeout(PATIENCE);
        if state == Err(RecvTimeoutError::Timeout) {
            inbox.mailbox.abandon();
            inbox.mailbox.ring();
            state = ended.recv().map_err(Into::into);
        }
        // A panic of the thread was printed by it.
        let _ = handle.join();
        state.ok()
    }
}

impl Device for DiskDevice {
    fn features(&self) -> u64 {
        self.device.negotiation().offered()
    }

    fn protocol_features(&self) -> u64 {
        protocol_feature::CONFIG | protocol_feature::DEVICE_STATE
    }

    fn max_queues(&self) -> u16 {
        self.device.max_queues()
    }

    fn queue_num(&self) -> u64 {
        self.device.max_queues().into()
    }

    fn ack_features(&mut self, features: u64) -> Result<(), String> {
        let result = self.device.negotiation_mut().ack(features).map_err(|e| e.to_string());
        self.set_rules();
        result
    }

    fn status(&self) -> u8 {
        self.device.negotiation().status().bits()
    }

    fn set_status(&mut self, status: u8) {
        self.device.negotiation_mut().write_status(status);
        self.set_rules();
    }

    fn reset(&mut self) {
        self.device.reset();
        self.session += 1;
        self.set_rules();
    }

    fn read_config(&self, offset: usize, to: &mut [u8]) {
        self.device.read_config(offset, to);
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8], _is_migration: bool) -> bool {
        let is_allowed = self.device.write_config(offset, bytes);
        self.set_rules();
        is_allowed
    }

    fn orders(&self) -> Vec<u8> {
        self.device.save()
    }

    fn restore_orders(&mut self, orders: &[u8]) -> Result<(), String> {
        self.load_state(orders)
    }

    fn save_state(&self) -> Vec<u8> {
        self.device.save()
    }

    fn load_state(&mut self, state: &[u8]) -> Result<(), String> {
        let result = self.device.load(state).map_err(|e| e.to_string());
        self.set_rules();
        result
    }

    fn has_vring(&self, index: u16) -> bool {
        index < self.device.max_queues()
    }

    fn start_vring(&mut self, index: u16, vring: Running) {
        if self.counted.replace(self.session) != Some(self.session) {
            self.own.sessions.add(1);
        }
        let lane = self.start(index, vring.into());
        if let Some(place) = self.lanes.get_mut(usize::from(index)) {
            *place = Some(lane);
        }
    }

    fn stop_vring(&mut self, index: u16) -> ResumeState {
        if let Some(held) = &mut self.held {
            held.retain(|(_, start)| start.index != index);
        }
        let lane = self.lanes.get_mut(usize::from(index)).and_then(Option::take);
        let state = match lane {
            Some(Lane::Running(thread)) => thread.stop(),
            Some(Lane::Failed(vring)) => Some(vring.stop()),
            None => None,
        };
        // Without a thread there is nothing to resume.
        state.unwrap_or_else(|| ResumeState::start(self.device.negotiation().acked()))
    }

    /// A disk's rings have one way of being served: what the driver waits for is not left undone.
    fn enable_vring(&mut self, index: u16, _enabled: bool) {
        self.tell(index, Order::Look);
    }

    fn kick_vring(&mut self, index: u16) {
        self.tell(index, Order::Look);
    }

    fn translations_changed(&mut self, lost: bool) {
        if !lost {
            return self.tell_all(|| Order::Look);
        }
        // What is in flight was translated before.
        let _: Result<(), _> = self.drained().recv();
    }

    fn set_call(&mut self, index: u16, call: Notifier) {
        self.tell(index, Order::SetCall(call));
    }

    fn set_err(&mut self, index: u16, err: Notifier) {
        self.tell(index, Order::SetErr(err));
    }
}
