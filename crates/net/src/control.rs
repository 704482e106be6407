//! A guest port as its session sees it: the device that the driver negotiates with, its rings, and the way to the workers.
//!
//! The control queue is served here, on the control thread: a command may change what all workers go by, and they stand
//! still while it does. Rings of frames are given to workers: queue pair `p` of port `i` to worker `(i + p)` of all, in turn.

use std::sync::Arc;
use std::time::Duration;

use ringway_device::net::{ControlQueue, NetDevice, Role};
use ringway_queue::{Missing, QueueError, ResumeState};
use ringway_vhost::backend::Device;
use ringway_vhost::message::protocol_feature;
use ringway_vhost::{Kick, Notifier, Running, Serving};
use rustix::event::epoll;
use rustix::fd::{AsFd, OwnedFd};
use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

use crate::fabric::{Event, Forward};
use crate::frame::Mac;
use crate::plane::{Held, Lanes, Plane, lock};
use crate::port::guest::{Format, RxRing, TxRing};
use crate::port::wishes::Receivers;
use crate::worker::{Token, Worker, watch};

/// How often a control queue is looked at whose driver cannot kick.
const POLL_INTERVAL: Duration = Duration::from_millis(1);

/// The network device of one port, on the control thread.
pub struct GuestDevice {
    port: usize,
    pub(crate) device: NetDevice,
    lanes: Arc<Lanes>,
    mtu: Option<u16>,
    /// The workers may be made to wait for memory that has not arrived.
    postcopy: bool,
    /// By the number of the pair.
    rx: Vec<Option<Receiver>>,
    tx: Vec<Option<Sender>>,
    control: Option<Control>,
    /// Counts resets: what a worker tells of a ring set up before one is of no more interest.
    pub(crate) session: u64,
    /// The last session that was counted.
    pub(crate) counted: Option<u64>,
}

/// A receive ring that runs.
struct Receiver {
    ring: Arc<RxRing>,
    kick: Option<OwnedFd>,
}

/// A transmit ring that runs, at a worker's.
struct Sender {
    place: usize,
    kick: Option<OwnedFd>,
}

/// The control queue, while it runs.
struct Control {
    index: u16,
    vring: Serving,
    commands: ControlQueue,
    /// What is watched: the driver's kick, or a clock.
    kick: Option<OwnedFd>,
}

impl GuestDevice {
    /// The device of the plane's port `port`. With `postcopy` its front-end may have the workers wait for memory that has
    /// not arrived, and all ports with it.
    pub fn new(port: usize, device: NetDevice, mtu: Option<u16>, postcopy: bool, plane: &Plane) -> Self {
        let pairs = usize::from(device.max_pairs());
        Self {
            port,
            device,
            lanes: Arc::clone(plane.lanes()),
            mtu,
            postcopy,
            rx: (0..pairs).map(|_| None).collect(),
            tx: (0..pairs).map(|_| None).collect(),
            control: None,
            session: 0,
            counted: None,
        }
    }

    /// The device has failed in a way that only a reset mends. Its rings that failed take no more frames.
    pub fn need_reset(&mut self) {
        self.device.negotiation_mut().need_reset();
        let lanes = Arc::clone(&self.lanes);
        self.steer(&mut lanes.hold());
    }

    /// The memory of its rings was taken away: none is looked at any more until the session has stopped it.
    pub fn lose_memory(&mut self) {
        let lanes = Arc::clone(&self.lanes);
        let counters = lanes.counters(self.port);
        let mut held = lanes.hold();
        for rx in self.rx.iter().flatten() {
            lock(&rx.ring.queue).fail(counters);
        }
        for (pair, tx) in (0..).zip(&self.tx) {
            if let (Some(tx), Some(worker)) = (tx, held.worker(self.worker_of(pair)))
                && let Some(ring) = worker.tx(tx.place)
            {
                counters.count_failure(ring.vring.fail());
            }
        }
        if let Some(control) = &mut self.control {
            counters.count_failure(control.vring.fail());
        }
        self.steer(&mut held);
    }

    /// The number that events about this port carry, if they are about its rings of now.
    pub fn session(&self) -> u64 {
        self.session
    }

    /// The worker that a queue pair belongs to.
    fn worker_of(&self, pair: u16) -> usize {
        (self.port + usize::from(pair)) % self.lanes.count()
    }

    /// Whether a worker looks after receive rings beside writing to them.
    fn needs_care(&self, format: &Format) -> bool {
        format.has_iommu || matches!(self.lanes.forward, Forward::Generate(_))
    }

    /// What the driver negotiated for its frames.
    fn format(&self) -> Format {
        Format::new(self.device.negotiation().acked(), self.device.offloads())
    }

    fn start_rx(&mut self, pair: u16, index: u16, running: Running, held: &mut Held<'_>) {
        let format = self.format();
        let worker = self.worker_of(pair);
        let kick = kick_of(&running.kick);
        let ring = Arc::new(RxRing::new(self.port, self.session, index, running, format));
        let mut watched = None;
        if self.needs_care(&format)
            && let Some(owner) = held.worker(worker)
        {
            watched =
                kick.filter(|kick| watch(self.lanes.epoll_of(worker), kick.as_fd(), Token::Care).is_ok());
            owner.care_for(Arc::clone(&ring));
        }
        self.rx[usize::from(pair)] = Some(Receiver { ring, kick: watched });
        if self.lanes.forward == Forward::Wire {
            held.workers().for_each(|worker| worker.set_uplink_offloads(format.offloads));
        }
    }

    fn start_tx(&mut self, pair: u16, index: u16, running: Running, held: &mut Held<'_>) {
        let worker = self.worker_of(pair);
        let kick = kick_of(&running.kick);
        let mut ring = TxRing::new(self.port, self.session, index, running, self.format());
        let Some(owner) = held.worker(worker) else { return };
        let epoll = self.lanes.epoll_of(worker);
        let place = owner.next_tx();
        let watched = kick.filter(|kick| watch(epoll, kick.as_fd(), Token::Tx(place)).is_ok());
        if watched.is_none() && matches!(ring.vring.kick, Kick::Fd(_)) {
            // The kernel has no more room for watches: the ring is polled instead.
            ring.vring.kick = Kick::Polled;
        }
        owner.add_tx(ring);
        self.tx[usize::from(pair)] = Some(Sender { place, kick: watched });
    }

    fn start_control(&mut self, index: u16, running: Running) {
        let kick = kick_of(&running.kick).or_else(|| match running.kick {
            Kick::Polled => clock().ok(),
            _ => None,
        });
        let watched =
            kick.filter(|kick| watch(&self.lanes.epoll, kick.as_fd(), Token::Command(self.port)).is_ok());
        let vring = Serving::from(running);
        self.control = Some(Control { index, vring, commands: ControlQueue::default(), kick: watched });
        self.look_at_control();
    }

    /// Has [`GuestDevice::serve_control`] called, by whoever acts on events.
    fn look_at_control(&self) {
        self.lanes.bell.ring(Event::Command { port: self.port });
    }

    fn is_control(&self, index: u16) -> bool {
        self.control.as_ref().is_some_and(|control| control.index == index)
    }

    /// Applies `change` to a ring of frames.
    fn with_vring(&mut self, index: u16, held: &mut Held<'_>, change: impl FnOnce(&mut Serving)) {
        let pair = index / 2;
        if let Some(control) = self.control.as_mut().filter(|control| control.index == index) {
            change(&mut control.vring);
        } else if index.is_multiple_of(2) {
            if let Some(Some(rx)) = self.rx.get(usize::from(pair)) {
                change(&mut lock(&rx.ring.queue).vring);
            }
        } else if let Some(Some(tx)) = self.tx.get(usize::from(pair))
            && let Some(ring) = held.worker(self.worker_of(pair)).and_then(|worker| worker.tx(tx.place))
        {
            change(&mut ring.vring);
        }
    }

    /// Has the workers look at all rings again.
    fn heat(&self, held: &mut Held<'_>) {
        for (pair, tx) in (0..).zip(&self.tx) {
            if let (Some(tx), Some(worker)) = (tx, held.worker(self.worker_of(pair))) {
                worker.heat(tx.place);
            }
        }
        held.workers().for_each(Worker::heat_care);
        if self.control.is_some() {
            self.look_at_control();
        }
    }

    // Control commands

    /// Carries out commands that have come; if there are more, this is to be called again. Returns what the queue
    /// waits for, if its translation is missing.
    ///
    /// # Errors
    /// [`QueueError`] with the vring's index: the driver broke the queue, which is not looked at any more.
    pub fn serve_control(&mut self) -> Result<Option<Missing>, (u16, QueueError)> {
        let lanes = Arc::clone(&self.lanes);
        let counters = lanes.counters(self.port);
        let Some(mut control) = self.control.take_if(|control| !control.vring.has_failed()) else {
            return Ok(None);
        };
        let Control { index, vring, commands, .. } = &mut control;
        let before = self.device.offloads();
        let result = commands.serve(&mut vring.queue, &mut self.device).map(|count| {
            if count > 0 {
                // No frame goes by what was before once the driver has seen the answer.
                let mut held = lanes.hold();
                if self.device.offloads() != before {
                    self.set_offloads(&mut held);
                }
                self.steer(&mut held);
                counters.count_call(vring.publish());
            }
            if vring.queue.arm() {
                self.look_at_control();
            }
            vring.queue.missing()
        });
        let result = result.map_err(|error| {
            counters.count_failure(vring.fail());
            (*index, error)
        });
        self.control = Some(control);
        result
    }

    /// Tells whoever gives frames to the driver what it takes now.
    fn set_offloads(&self, held: &mut Held<'_>) {
        let offloads = self.device.offloads();
        for rx in self.rx.iter().flatten() {
            lock(&rx.ring.queue).set_offloads(offloads);
        }
        if self.lanes.forward == Forward::Wire {
            held.workers().for_each(|worker| worker.set_uplink_offloads(offloads));
        }
    }

    /// Tells the workers anew which receive rings frames may go to, and which frames.
    fn steer(&self, held: &mut Held<'_>) {
        let active = usize::from(self.device.active_pairs());
        let open = |rx: &Option<Receiver>| {
            let ring = rx.as_ref().map(|rx| &rx.ring).filter(|ring| ring.is_open());
            ring.cloned()
        };
        let receivers = Receivers::new(&self.device, self.rx.iter().take(active).map(open).collect());
        for worker in held.workers() {
            worker.set_receivers(self.port, receivers.clone());
        }
    }
}

fn kick_of(kick: &Kick) -> Option<OwnedFd> {
    match kick {
        Kick::Fd(fd) => fd.try_clone().ok(),
        Kick::InBand | Kick::Polled => None,
    }
}

/// Becomes readable again and again.
fn clock() -> rustix::io::Result<OwnedFd> {
    let clock = rustix::time::timerfd_create(
        TimerfdClockId::Monotonic,
        TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
    )?;
    let interval = Timespec { tv_sec: 0, tv_nsec: POLL_INTERVAL.as_nanos() as i64 };
    let timer = Itimerspec { it_interval: interval, it_value: interval };
    rustix::time::timerfd_settime(&clock, TimerfdTimerFlags::empty(), &timer)?;
    Ok(clock)
}

impl Device for GuestDevice {
    fn features(&self) -> u64 {
        self.device.negotiation().offered()
    }

    fn protocol_features(&self) -> u64 {
        let mtu = if self.mtu.is_some() { protocol_feature::MTU } else { 0 };
        let postcopy = if self.postcopy { protocol_feature::PAGEFAULT } else { 0 };
        protocol_feature::CONFIG | protocol_feature::RARP | protocol_feature::DEVICE_STATE | mtu | postcopy
    }

    fn max_queues(&self) -> u16 {
        self.device.max_queues()
    }

    fn queue_num(&self) -> u64 {
        self.device.max_pairs().into()
    }

    fn ack_features(&mut self, features: u64) -> Result<(), String> {
        self.device.negotiation_mut().ack(features).map_err(|e| e.to_string())
    }

    fn status(&self) -> u8 {
        self.device.negotiation().status().bits()
    }

    fn set_status(&mut self, status: u8) {
        self.device.negotiation_mut().write_status(status);
    }

    fn reset(&mut self) {
        self.device.reset();
        self.session += 1;
        self.lanes.switch.forget_port(self.port);
    }

    fn read_config(&self, offset: usize, to: &mut [u8]) {
        self.device.read_config(offset, to);
    }

    fn set_mtu(&mut self, mtu: u64) -> bool {
        self.mtu.is_some_and(|most| mtu <= most.into())
    }

    fn announce(&mut self, address: [u8; 6]) -> bool {
        let worker = self.worker_of(0);
        if let Some(worker) = self.lanes.hold().worker(worker) {
            worker.announce(self.port, Mac::new(address));
        }
        self.device.announce()
    }

    fn save_state(&self) -> Vec<u8> {
        self.device.save()
    }

    fn load_state(&mut self, state: &[u8]) -> Result<(), String> {
        self.device.load(state).map_err(|e| e.to_string())?;
        // Its network does not know yet that it is here.
        self.device.announce();
        Ok(())
    }

    fn has_vring(&self, index: u16) -> bool {
        self.device.role(index).is_some()
    }

    fn start_vring(&mut self, index: u16, vring: Running) {
        let Some(role) = self.device.role(index) else { return };
        if self.counted.replace(self.session) != Some(self.session) {
            self.lanes.counters(self.port).sessions.add(1);
        }
        let lanes = Arc::clone(&self.lanes);
        let mut held = lanes.hold();
        match role {
            Role::Receive(pair) => self.start_rx(pair, index, vring, &mut held),
            Role::Transmit(pair) => self.start_tx(pair, index, vring, &mut held),
            Role::Control => self.start_control(index, vring),
        }
        self.steer(&mut held);
    }

    fn stop_vring(&mut self, index: u16) -> ResumeState {
        let lanes = Arc::clone(&self.lanes);
        let mut held = lanes.hold();
        let pair = index / 2;
        // A front-end may keep its end of the kick open, so closing ours would leave the watch in place. What could not be
        // watched cannot be unwatched.
        let unwatch = |epoll: &OwnedFd, kick: &Option<OwnedFd>| {
            let _ = kick.as_ref().map(|kick| epoll::delete(epoll, kick));
        };
        if self.is_control(index) {
            let control = self.control.take().expect("it is the control queue's index");
            unwatch(&lanes.epoll, &control.kick);
            return control.vring.stop();
        }
        let worker = self.worker_of(pair);
        let state = if index.is_multiple_of(2) {
            self.rx[usize::from(pair)].take().and_then(|Receiver { ring, kick }| {
                unwatch(lanes.epoll_of(worker), &kick);
                self.steer(&mut held);
                held.workers().for_each(|worker| worker.neglect(&ring));
                Arc::into_inner(ring).map(RxRing::stop)
            })
        } else {
            self.tx[usize::from(pair)].take().and_then(|Sender { place, kick }| {
                unwatch(lanes.epoll_of(worker), &kick);
                held.worker(worker)?.remove_tx(place).map(|ring| ring.vring.stop())
            })
        };
        // Without workers there is nothing to resume.
        state.unwrap_or_else(|| ResumeState::start(self.device.negotiation().acked()))
    }

    fn enable_vring(&mut self, index: u16, enabled: bool) {
        let lanes = Arc::clone(&self.lanes);
        let mut held = lanes.hold();
        let pair = index / 2;
        if self.is_control(index) {
            return;
        }
        if index.is_multiple_of(2) {
            if let Some(Some(rx)) = self.rx.get(usize::from(pair)) {
                lock(&rx.ring.queue).is_open = enabled;
            }
            self.steer(&mut held);
            held.workers().for_each(Worker::heat_care);
        } else if let Some(Some(tx)) = self.tx.get(usize::from(pair))
            && let Some(worker) = held.worker(self.worker_of(pair))
            && let Some(ring) = worker.tx(tx.place)
        {
            ring.enabled = enabled;
            // A kick may have come before, and been for nothing.
            worker.heat(tx.place);
        }
    }

    fn kick_vring(&mut self, _index: u16) {
        let lanes = Arc::clone(&self.lanes);
        self.heat(&mut lanes.hold());
    }

    fn translations_changed(&mut self, lost: bool) {
        let lanes = Arc::clone(&self.lanes);
        let mut held = lanes.hold();
        if lost {
            held.workers().for_each(Worker::forget_burst);
            for rx in self.rx.iter().flatten() {
                lock(&rx.ring.queue).retake();
            }
        }
        self.heat(&mut held);
    }

    fn set_call(&mut self, index: u16, call: Notifier) {
        let lanes = Arc::clone(&self.lanes);
        self.with_vring(index, &mut lanes.hold(), |vring| vring.set_call(call));
    }

    fn set_err(&mut self, index: u16, err: Notifier) {
        let lanes = Arc::clone(&self.lanes);
        self.with_vring(index, &mut lanes.hold(), |vring| vring.set_err(err));
    }
}
