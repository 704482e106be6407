//! A simple device as its front-end's session sees it, and its rings.
//!
//! ```text
//!             kicked, started, enabled                          nothing available: armed
//!   waits ─────────────────────────────► to be served ─┬──────────────────────────────────► waits for a kick
//!                                           ▲          ├─ the service lacks something ─────► waits for the service
//!                                           └──────────┴─ its share is used up
//! ```
//!
//! A ring that fails is told of once, and not looked at until its session has stopped it.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use ringway_device::model::DeviceModel;
use ringway_queue::{Burst, Missing, QueueError, ResumeState};
use ringway_vhost::backend::Device;
use ringway_vhost::handover::HandoverError;
use ringway_vhost::message::protocol_feature;
use ringway_vhost::{Kick, Notifier, Running, Serving};
use rustix::event::{Timespec, epoll};
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{Served, Service};

/// How often a ring is looked at whose driver does not kick.
const POLL_INTERVAL: Duration = Duration::from_millis(1);
/// How many kicks are noted at a time; others come with the next look.
const KICKS: usize = 64;

/// What is to be told of the rings.
#[derive(Debug)]
pub(super) enum Event {
    /// The driver broke a ring.
    QueueFailed { index: u16, error: QueueError },
    /// The front-end took memory away.
    MemoryFault,
    /// A ring waits for a translation.
    TranslationMissing(Missing),
}

/// What a ring waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wait {
    /// Its turn.
    Turn,
    Kick,
    Service,
}

struct Lane {
    vring: Serving,
    is_enabled: bool,
    wait: Wait,
}

/// A device behind a session.
pub(super) struct Host<S> {
    name: String,
    service: S,
    lanes: Vec<Option<Lane>>,
    /// Rings that are not to be touched yet: another process has them still.
    held: Option<Vec<(u16, Running)>>,
    /// Ready when a kick has come. Kicks are noted as they come, and no read clears them.
    kicks: OwnedFd,
    burst: Burst,
    counters: Counters,
    /// The session has had a ring running, and was counted.
    is_counted: bool,
    /// The driver has read the configuration space since this was asked.
    is_config_read: Cell<bool>,
}

/// What is counted of any device.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Counters {
    kicks: u64,
    calls: u64,
    sessions: u64,
    failures: u64,
}

/// The device of a process that stands still, beside its service.
#[derive(Serialize, Deserialize)]
pub(super) struct HostState {
    acked: Option<u64>,
    status: u8,
    counters: Counters,
    is_counted: bool,
}

impl<S: Service> Host<S> {
    /// The device of a service. `name` is how messages call it.
    pub(super) fn new(name: String, service: S) -> io::Result<Self> {
        let lanes = (0..service.model().max_queues()).map(|_| None).collect();
        let kicks = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self {
            name,
            service,
            lanes,
            held: None,
            kicks,
            burst: Burst::default(),
            counters: Counters::default(),
            is_counted: false,
            is_config_read: Cell::default(),
        })
    }

    pub(super) fn service(&self) -> &S {
        &self.service
    }

    pub(super) fn service_mut(&mut self) -> &mut S {
        &mut self.service
    }

    /// Readable when a kick has come.
    pub(super) fn kicks(&self) -> BorrowedFd<'_> {
        self.kicks.as_fd()
    }

    /// Whether the driver has read the configuration space since the last time this was asked.
    pub(super) fn take_config_read(&self) -> bool {
        self.is_config_read.take()
    }

    /// When rings want their turn even if nothing has happened.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let lanes = || self.lanes.iter().flatten().filter(|lane| lane.is_served());
        if lanes().any(|lane| lane.wait == Wait::Turn) {
            return Some(Instant::now());
        }
        let is_polled = |lane: &Lane| lane.wait == Wait::Kick && matches!(lane.vring.kick, Kick::Polled);
        lanes().any(is_polled).then(|| Instant::now() + POLL_INTERVAL)
    }

    /// Serves the rings whose turn it is, and then those that wait for the service: what others brought may be what they
    /// lack. Each gets a share.
    pub(super) fn turn(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        self.note_kicks();
        self.service.turn();
        for wait in [Wait::Turn, Wait::Service] {
            for index in 0..self.lanes.len() as u16 {
                if let Some(event) = self.serve(index, wait) {
                    events.push(event);
                }
            }
        }
        events
    }

    /// Serves a ring if it waits for this.
    fn serve(&mut self, index: u16, wait: Wait) -> Option<Event> {
        let lane = self.lanes.get_mut(usize::from(index))?.as_mut()?;
        let is_polled = wait == Wait::Turn && matches!(lane.vring.kick, Kick::Polled);
        if !lane.is_served() || !(lane.wait == wait || is_polled && lane.wait == Wait::Kick) {
            return None;
        }
        let result = self.service.serve(index, &mut lane.vring.queue, &mut self.burst);
        if !lane.vring.queue.is_memory_intact() {
            return Some(Event::MemoryFault);
        }
        match result {
            Ok(Served { call, is_blocked }) => {
                self.counters.calls += u64::from(call && lane.vring.call());
                lane.wait = match (lane.vring.queue.arm(), is_blocked) {
                    (false, _) => Wait::Kick,
                    (true, true) => Wait::Service,
                    (true, false) => Wait::Turn,
                };
                lane.vring.queue.missing().map(Event::TranslationMissing)
            }
            Err(error) => {
                // What was done before it is to be seen.
                self.counters.calls += u64::from(lane.vring.call());
                self.counters.failures += u64::from(lane.vring.fail());
                Some(Event::QueueFailed { index, error })
            }
        }
    }

    /// Notes which rings were kicked.
    fn note_kicks(&mut self) {
        let none = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        let mut events = [none; KICKS];
        let no_wait = Timespec { tv_sec: 0, tv_nsec: 0 };
        // A signal: they are there the next time.
        let count = epoll::wait(&self.kicks, &mut events[..], Some(&no_wait)).unwrap_or(0);
        for event in &events[..count] {
            self.counters.kicks += 1;
            self.look(event.data.u64() as u16);
        }
    }

    /// It is a ring's turn.
    fn look(&mut self, index: u16) {
        if let Some(Some(lane)) = self.lanes.get_mut(usize::from(index)) {
            lane.wait = Wait::Turn;
        }
    }

    /// The device has failed in a way that only a reset mends.
    pub(super) fn need_reset(&mut self) {
        self.service.model_mut().negotiation_mut().need_reset();
    }

    /// The memory of its rings was taken away: none is looked at any more until the session has stopped it.
    pub(super) fn lose_memory(&mut self) {
        for lane in self.lanes.iter_mut().flatten() {
            lane.vring.fail();
        }
    }

    /// Rings that start from now on are not touched until [`Host::release`].
    pub(super) fn hold(&mut self) {
        self.held.get_or_insert_default();
    }

    /// Rings that were held begin.
    pub(super) fn release(&mut self) {
        for (index, running) in self.held.take().into_iter().flatten() {
            self.begin(index, running);
        }
    }

    fn begin(&mut self, index: u16, running: Running) {
        let is_enabled = running.enabled;
        let mut vring = Serving::from(running);
        if let Kick::Fd(fd) = &vring.kick {
            let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
            if let Err(error) = epoll::add(&self.kicks, fd, epoll::EventData::new_u64(index.into()), flags) {
                warn!("{}: vring {index} cannot be served: {error}", self.name);
                vring.fail();
            }
        }
        self.service.started(index, &vring.queue);
        if let Some(place) = self.lanes.get_mut(usize::from(index)) {
            *place = Some(Lane { vring, is_enabled, wait: Wait::Turn });
        }
    }

    /// What it has counted, with its service's counters first.
    pub(super) fn counters(&self) -> Vec<(&'static str, u64)> {
        let Counters { kicks, calls, sessions, failures } = self.counters;
        let own = [("kicks", kicks), ("calls", calls), ("sessions", sessions), ("failed rings", failures)];
        self.service.counters().into_iter().chain(own).collect()
    }

    /// The state to hand over.
    pub(super) fn state(&self) -> HostState {
        let negotiation = self.service.model().negotiation();
        let (acked, status) = (negotiation.accepted(), negotiation.status().bits());
        HostState { acked, status, counters: self.counters, is_counted: self.is_counted }
    }

    /// A new device goes on where another was.
    pub(super) fn restore(&mut self, state: &HostState) -> Result<(), HandoverError> {
        let HostState { acked, status, counters, is_counted } = *state;
        let negotiation = self.service.model_mut().negotiation_mut();
        let features = acked.unwrap_or_default() & !negotiation.offered();
        let lacking = |_| HandoverError::Features { kind: "virtio", features };
        negotiation.restore(acked, status).map_err(lacking)?;
        (self.counters, self.is_counted) = (counters, is_counted);
        Ok(())
    }
}

impl Lane {
    fn is_served(&self) -> bool {
        self.is_enabled && !self.vring.has_failed()
    }
}

impl<S: Service> Device for Host<S> {
    fn features(&self) -> u64 {
        self.service.model().negotiation().offered()
    }

    fn protocol_features(&self) -> u64 {
        if self.service.model().config_len() > 0 { protocol_feature::CONFIG } else { 0 }
    }

    fn is_told_status(&self) -> bool {
        false
    }

    fn max_queues(&self) -> u16 {
        self.service.model().max_queues()
    }

    fn queue_num(&self) -> u64 {
        self.max_queues().into()
    }

    fn ack_features(&mut self, features: u64) -> Result<(), String> {
        self.service.model_mut().negotiation_mut().ack(features).map_err(|e| e.to_string())
    }

    fn status(&self) -> u8 {
        self.service.model().negotiation().status().bits()
    }

    fn set_status(&mut self, status: u8) {
        self.service.model_mut().negotiation_mut().write_status(status);
    }

    fn reset(&mut self) {
        self.service.model_mut().reset();
        self.service.reset();
        self.is_counted = false;
    }

    fn read_config(&self, offset: usize, to: &mut [u8]) {
        self.is_config_read.set(true);
        self.service.model().read_config(offset, to);
    }

    fn write_config(&mut self, offset: usize, bytes: &[u8], _is_migration: bool) -> bool {
        self.service.model_mut().write_config(offset, bytes)
    }

    fn has_vring(&self, index: u16) -> bool {
        index < self.max_queues() && self.service.model().has_queue(index)
    }

    fn start_vring(&mut self, index: u16, vring: Running) {
        self.counters.sessions += u64::from(!std::mem::replace(&mut self.is_counted, true));
        match &mut self.held {
            Some(held) => held.push((index, vring)),
            None => self.begin(index, vring),
        }
    }

    fn stop_vring(&mut self, index: u16) -> ResumeState {
        let held = self.held.iter_mut().flatten().position(|(at, _)| *at == index);
        if let Some((_, running)) = held.and_then(|at| Some(self.held.as_mut()?.swap_remove(at))) {
            return running.queue.stop();
        }
        match self.lanes.get_mut(usize::from(index)).and_then(Option::take) {
            Some(Lane { vring, .. }) => {
                if let Kick::Fd(fd) = &vring.kick {
                    // It is not there if it could not be added.
                    let _ = epoll::delete(&self.kicks, fd);
                }
                vring.stop()
            }
            None => ResumeState::start(self.service.model().negotiation().acked()),
        }
    }

    /// A ring that is not enabled is not looked at: nothing happens by it.
    fn enable_vring(&mut self, index: u16, enabled: bool) {
        if let Some(Some(lane)) = self.lanes.get_mut(usize::from(index)) {
            lane.is_enabled = enabled;
            lane.wait = Wait::Turn;
        }
    }

    fn kick_vring(&mut self, index: u16) {
        self.counters.kicks += 1;
        self.look(index);
    }

    /// No address is remembered from one turn to the next.
    fn translations_changed(&mut self, _lost: bool) {
        (0..self.max_queues()).for_each(|index| self.look(index));
    }

    fn set_call(&mut self, index: u16, call: Notifier) {
        if let Some(Some(lane)) = self.lanes.get_mut(usize::from(index)) {
            lane.vring.set_call(call);
        }
    }

    fn set_err(&mut self, index: u16, err: Notifier) {
        if let Some(Some(lane)) = self.lanes.get_mut(usize::from(index)) {
            lane.vring.set_err(err);
        }
    }
}
