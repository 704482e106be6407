//! A worker: what one thread owns, and a round of its work.
//!
//! ```text
//!   transmit ring     frames            nothing for --busy-poll     armed, and still nothing
//!            hot ─────────────► hot  hot ──────────────────► arm ───────────────────────────► cold
//!             ▲                                               │ a chain came meanwhile          │
//!             └───────────────────────────────────────────────┴──────────── its kick ◄──────────┘
//! ```
//!
//! A round polls the hot rings once, a burst at most each, so that no port starves another; what a cold ring costs is
//! nothing. When no ring is hot the thread sleeps. What a driver does wrong stops its ring, and is told by an
//! [`Event`]; all else goes on.

mod rings;
mod wakes;

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_device::net::Offloads;
use ringway_memory::{GuestBuf, GuestSlice};
use ringway_queue::{Burst, QueueError};
use ringway_vhost::Bell;
use rustix::event::Timespec;

use crate::capture::{Direction, Probes};
use crate::counters::DropReason;
use crate::fabric::{Delivery, Event, Forward, PortKind, PortSlot};
use crate::frame::{Ethernet, Frame, Mac, Prefix, rarp};
use crate::generator::Generator;
use crate::offload::MAX_FRAME;
use crate::plane::{Options, WorkerCounters, count_time, lock};
use crate::port::guest::{PLAIN_HEADER, RxRing, TxRing};
use crate::port::uplink::UplinkReader;
use crate::port::wishes::Receivers;
use crate::switch::{Allowance, Cache, Decision, Now, Retag, Switch};
use rings::Rings;
pub(crate) use wakes::{Token, Wakes, watch};

/// Chains, or frames of an uplink, handled before the next ring's turn.
const BURST: usize = 32;
/// How much is done between two looks at the clock while busy, in frames, and what a round counts beside its frames.
const CLOCK_WORK: usize = 512;
const ROUND_WORK: usize = 16;
/// How long kicks of cold rings, and uplinks, wait at most while others are busy, and while the hot rings are empty.
const LOOK: Duration = Duration::from_micros(50);
const IDLE_LOOK: Duration = Duration::from_micros(5);
/// How long to sleep at most if a ring has no kick: its front-end wants it to be polled.
const POLL_INTERVAL: Duration = Duration::from_micros(500);
/// How long a port that has sent as much as it may waits at least: then there is room for some frames, not for one.
const LEAST_WAIT: Duration = Duration::from_micros(50);

/// What a worker's thread does next.
pub(crate) enum Turn {
    /// Another turn.
    Busy,
    /// It sleeps, until something wakes it or for this long.
    Idle(Option<Timespec>),
}

/// What one thread owns.
pub(crate) struct Worker {
    fabric: Fabric,
    rings: Rings,
    /// Receive rings that this worker takes chains from before there are frames for them.
    cared: Vec<Arc<RxRing>>,
    /// They have nothing to take, and their kicks are asked for.
    is_care_armed: bool,
    /// There was something for them since the clock was read last, and when that was so before.
    is_care_active: bool,
    care_since: Instant,
    /// The uplinks that this worker reads, each with its port.
    uplinks: Vec<(usize, UplinkReader)>,
    generator: Generator,
    busy_poll: Duration,
    /// Kicks of cold rings come here.
    epoll: Arc<OwnedFd>,
    counters: Arc<WorkerCounters>,
    /// The burst at hand; empty between rings.
    burst: Burst,
    start: Instant,
    /// When the clock was read last, and what was done since.
    now: Instant,
    frames_since: usize,
    rounds_since: usize,
    last_look: Instant,
}

/// What moving a frame needs beside where it comes from.
struct Fabric {
    ports: Vec<PortSlot>,
    forward: Forward,
    switch: Arc<Switch>,
    cache: Cache,
    /// Room for a frame that has to be changed.
    scratch: Vec<u8>,
    /// The time of the last look at the clock.
    now: Now,
    bell: Bell<Event>,
    probes: Probes,
}

impl Fabric {
    fn delivery(&mut self) -> (Delivery<'_>, Rule<'_>) {
        let Self { ports, forward, switch, cache, scratch, now, bell, probes } = self;
        let limits = switch.is_metered().then_some((&**switch, *now));
        switch.renew(cache, *now);
        let rule = Rule { forward: *forward, switch, cache, now: *now };
        (Delivery::new(ports, scratch, bell, limits, probes), rule)
    }

    /// How many frames may be taken from a port now.
    #[inline]
    fn allowance(&self, port: usize) -> Allowance {
        let meter = if self.switch.is_metered() { self.switch.sending(port) } else { None };
        meter.map_or(Allowance::Frames(usize::MAX), |meter| meter.allowance(self.now.nanos))
    }
}

/// Where frames go.
struct Rule<'w> {
    forward: Forward,
    switch: &'w Switch,
    cache: &'w mut Cache,
    now: Now,
}

impl Rule<'_> {
    /// Counts frames that were taken from a port.
    #[inline]
    fn count_sent(&self, port: usize, frames: usize, bytes: u64) {
        if self.switch.is_metered()
            && let Some(meter) = self.switch.sending(port)
        {
            meter.count(frames as u64, bytes, self.now.nanos);
        }
    }

    /// Whether a frame may come from an uplink, which cannot be made to wait; it is counted if so.
    #[inline]
    fn may_come(&self, port: usize, bytes: usize) -> bool {
        let meter = if self.switch.is_metered() { self.switch.sending(port) } else { None };
        meter.is_none_or(|meter| meter.admit(bytes, self.now.nanos))
    }

    /// Sends a frame where one like it went before, if nothing else is to be done: nearly all frames. False if nothing was
    /// done.
    #[inline(always)]
    #[allow(clippy::inline_always, reason = "what it is given stays in registers, see `Format::begin`")]
    fn send_plain(
        &self,
        from: usize,
        ethernet: Ethernet,
        data: GuestBuf<'_>,
        delivery: &mut Delivery<'_>,
    ) -> bool {
        match self.forward {
            Forward::Switch => self
                .switch
                .known(self.cache, from, &ethernet)
                .is_some_and(|to| delivery.send_plain(to, ethernet.len, PLAIN_HEADER, data)),
            Forward::Wire => delivery.send_plain(1 - from, ethernet.len, PLAIN_HEADER, data),
            Forward::Echo => {
                let mut head = [0; PLAIN_HEADER.len() + Prefix::ADDRESSES];
                let (header, addresses) = head.split_at_mut(PLAIN_HEADER.len());
                header.copy_from_slice(&PLAIN_HEADER);
                addresses.copy_from_slice(&Prefix::addresses(ethernet.src, ethernet.dst));
                delivery.send_plain(from, ethernet.len, head, data.advance(Prefix::ADDRESSES))
            }
            // Where it goes needs no way.
            Forward::Sink | Forward::Generate(_) => true,
        }
    }

    /// Sends a frame where it belongs.
    #[inline(never)]
    fn send(&mut self, from: usize, mut frame: Frame<'_>, delivery: &mut Delivery<'_>) {
        delivery.capture(from, Direction::From, &frame);
        match self.forward {
            Forward::Switch => self.switch(from, &frame, delivery),
            Forward::Wire => delivery.send(1 - from, &frame),
            Forward::Echo => {
                frame.set_addresses(frame.ethernet.src, frame.ethernet.dst);
                delivery.send(from, &frame);
            }
            Forward::Sink | Forward::Generate(_) => {}
        }
    }

    /// Sends a frame where the switch says, and to who watches its port.
    #[inline]
    fn switch(&mut self, from: usize, frame: &Frame<'_>, delivery: &mut Delivery<'_>) {
        for &watcher in self.switch.watchers(from) {
            delivery.send(watcher, frame);
        }
        match self.switch.decide(self.cache, from, &frame.ethernet, self.now) {
            Decision::To(port, retag) => self.hand_out(from, port, retag, frame, delivery),
            Decision::Drop(reason) => delivery.count_drop(from, reason),
            Decision::Flood(flood) => {
                let mut is_lost = true;
                for (port, retag) in self.switch.targets(flood) {
                    if delivery.can_reach(port) {
                        is_lost = false;
                        self.hand_out(from, port, retag, frame, delivery);
                    }
                }
                if is_lost {
                    delivery.count_drop(from, DropReason::Filtered);
                }
            }
        }
    }

    /// Sends a frame to a port with the tag that it wants, and to who watches the port.
    #[inline]
    fn hand_out(&self, from: usize, to: usize, retag: Retag, frame: &Frame<'_>, delivery: &mut Delivery<'_>) {
        let changed;
        let frame = match retag {
            Retag::Keep if !self.switch.has_rules() => frame,
            // What was decided on is what goes out.
            Retag::Keep => match frame.settled() {
                Some(settled) => {
                    changed = settled;
                    &changed
                }
                None => return delivery.count_drop(from, DropReason::Malformed),
            },
            _ => {
                changed = frame.retagged(retag);
                &changed
            }
        };
        delivery.send(to, frame);
        for &watcher in self.switch.watchers(to) {
            delivery.send(watcher, frame);
        }
    }
}

impl Worker {
    /// A worker with these ports, of which it reads these uplinks.
    pub(crate) fn new(
        ports: Vec<PortSlot>,
        uplinks: Vec<(usize, UplinkReader)>,
        switch: Arc<Switch>,
        (epoll, counters): (Arc<OwnedFd>, Arc<WorkerCounters>),
        bell: Bell<Event>,
        options: &Options,
        start: Instant,
    ) -> io::Result<Self> {
        for (place, (_, uplink)) in uplinks.iter().enumerate() {
            watch(&epoll, uplink.as_fd(), Token::Uplink(place))?;
        }
        let now = Instant::now();
        let Options { forward, busy_poll, .. } = *options;
        let scratch = Vec::with_capacity(MAX_FRAME);
        Ok(Self {
            fabric: Fabric {
                ports,
                forward,
                switch,
                cache: Cache::default(),
                scratch,
                now: Now::default(),
                bell,
                probes: Probes::default(),
            },
            rings: Rings::default(),
            cared: Vec::new(),
            is_care_armed: false,
            is_care_active: false,
            care_since: now,
            uplinks,
            generator: Generator::new(forward),
            busy_poll,
            epoll,
            counters,
            burst: Burst::default(),
            start,
            now,
            frames_since: 0,
            rounds_since: 0,
            last_look: now,
        })
    }

    // Set-up, by the control thread while the worker stands still

    /// The place that the next transmit ring will have.
    pub(crate) fn next_tx(&self) -> usize {
        self.rings.next()
    }

    /// Its own transmit ring from now on, hot.
    pub(crate) fn add_tx(&mut self, ring: TxRing) {
        self.rings.add(ring);
    }

    /// The transmit ring at this place.
    pub(crate) fn tx(&mut self, place: usize) -> Option<&mut TxRing> {
        self.rings.get(place)
    }

    /// Takes the transmit ring at this place away.
    pub(crate) fn remove_tx(&mut self, place: usize) -> Option<TxRing> {
        self.forget_burst();
        self.rings.remove(place)
    }

    /// Looks at a transmit ring again: its driver kicked, or what it waited for has come.
    pub(crate) fn heat(&mut self, place: usize) {
        self.rings.heat(place);
    }

    /// Takes chains from this receive ring before there are frames for them.
    pub(crate) fn care_for(&mut self, ring: Arc<RxRing>) {
        self.cared.push(ring);
        self.heat_care();
    }

    pub(crate) fn neglect(&mut self, ring: &Arc<RxRing>) {
        self.cared.retain(|other| !Arc::ptr_eq(other, ring));
    }

    /// Looks at the receive rings that it cares for.
    pub(crate) fn heat_care(&mut self) {
        self.is_care_armed = false;
        self.is_care_active = true;
        self.cared.iter().for_each(|ring| lock(&ring.queue).suppress());
    }

    /// Lets go of the memory of the last chains.
    pub(crate) fn forget_burst(&mut self) {
        self.burst = Burst::default();
    }

    /// How frames reach a guest's port.
    pub(crate) fn set_receivers(&mut self, port: usize, receivers: Receivers) {
        self.fabric.ports[port].kind = PortKind::Guest(receivers);
    }

    /// On a wire an uplink gives what its one receiver takes.
    pub(crate) fn set_uplink_offloads(&self, offloads: Offloads) {
        for port in &self.fabric.ports {
            if let PortKind::Uplink(uplink) = &port.kind
                && let Err(error) = uplink.set_offloads(offloads)
            {
                tracing::warn!("the uplink refuses offloads: {error}");
            }
        }
    }

    /// Sends a frame in a guest's name that tells its network where it is now.
    pub(crate) fn announce(&mut self, port: usize, mac: Mac) {
        let mut bytes = rarp(mac);
        let slices = [GuestSlice::from_mut(&mut bytes)];
        let data = GuestBuf::new(&slices);
        if let Some(ethernet) = Ethernet::read(data) {
            let counters = Arc::clone(&self.fabric.ports[port].counters);
            counters.from_frames.add(1);
            counters.from_bytes.add(data.len() as u64);
            let (mut delivery, mut rule) = self.fabric.delivery();
            rule.send(port, Frame { header: None, ethernet, prefix: Prefix::default(), data }, &mut delivery);
            delivery.finish();
        }
    }

    /// What it captures with.
    pub(crate) fn probes(&mut self) -> &mut Probes {
        &mut self.fabric.probes
    }

    /// Seconds since the start.
    pub(crate) fn now(&self) -> u64 {
        self.fabric.now.seconds
    }

    /// What it reads uplinks by, for another process: the port, a file, and where that stands.
    pub(crate) fn uplink_files(&self) -> Vec<(usize, io::Result<(OwnedFd, usize)>)> {
        self.uplinks.iter().map(|(port, uplink)| (*port, uplink.file())).collect()
    }

    // The loop

    /// Notes what its thread was woken by.
    pub(crate) fn note(&mut self, wakes: &mut Wakes) {
        // It may have been asleep.
        self.now = Instant::now();
        for token in wakes.take() {
            match token {
                Token::Tx(place) => {
                    if let Some(ring) = self.rings.get(place) {
                        self.fabric.ports[ring.port].counters.kicks.add(1);
                        self.rings.heat(place);
                    }
                }
                Token::Care => self.heat_care(),
                Token::Uplink(place) => self.uplinks[place].1.set_ready(),
                Token::Wake | Token::Command(_) => {}
            }
        }
        self.rings.heat_polled();
        if self.cared.iter().any(|ring| ring.is_polled()) {
            self.heat_care();
        }
    }

    /// Does a round, and what is due beside.
    pub(crate) fn turn(&mut self, wakes: &mut Wakes) -> Turn {
        if self.fabric.switch.is_metered() {
            self.pass_time(Instant::now());
        }
        let work = self.round();
        self.frames_since += work;
        self.rounds_since += 1;
        if work > 0 && self.frames_since + self.rounds_since * ROUND_WORK < CLOCK_WORK {
            return Turn::Busy;
        }
        self.tell_time();
        self.rings.heat_due(self.now);
        self.cool();
        if work == 0 && self.rings.is_cold() && (self.cared.is_empty() || self.is_care_armed) {
            let is_polled = self.rings.has_polled() || self.cared.iter().any(|ring| ring.is_polled());
            let polled = is_polled.then_some(POLL_INTERVAL);
            let due = self.rings.due().map(|due| due.saturating_duration_since(self.now));
            return Turn::Idle(polled.into_iter().chain(due).min().map(timespec));
        }
        let look = if work == 0 { IDLE_LOOK } else { LOOK };
        if (self.rings.has_cold() || self.uplinks.iter().any(|(_, uplink)| uplink.needs_look()))
            && self.now.saturating_duration_since(self.last_look) >= look
        {
            self.last_look = self.now;
            self.look(wakes);
        }
        if work == 0 {
            std::hint::spin_loop();
        }
        Turn::Busy
    }

    /// Reads the clock.
    fn tell_time(&mut self) {
        let before = std::mem::replace(&mut self.now, Instant::now());
        let WorkerCounters { busy, polling, .. } = &*self.counters;
        count_time(if self.frames_since > 0 { busy } else { polling }, self.now - before);
        self.frames_since = 0;
        self.rounds_since = 0;
        self.pass_time(self.now);
    }

    /// Tells the switch the time.
    fn pass_time(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.start);
        let now = Now { seconds: since.as_secs(), nanos: since.as_nanos() as u64 };
        if now.seconds != self.fabric.now.seconds {
            self.fabric.switch.age(now.seconds);
        }
        self.fabric.now = now;
    }

    /// Looks what has become ready, without waiting.
    fn look(&mut self, wakes: &mut Wakes) {
        self.counters.waits.add(1);
        wakes.wait(&self.epoll, Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
        self.note(wakes);
    }

    /// Arms rings that have been empty for long enough.
    fn cool(&mut self) {
        let Self { rings, fabric, now, busy_poll, .. } = self;
        rings.cool(*now, *busy_poll, |ring| {
            // A ring in memory that was taken away looks empty.
            if !ring.vring.queue.is_memory_intact() {
                fabric.ports[ring.port].counters.count_failure(ring.vring.fail());
                fabric.bell.ring(Event::MemoryFault { port: ring.port, session: ring.session });
            }
        });
        if std::mem::take(&mut self.is_care_active) {
            self.care_since = self.now;
        }
        if !self.cared.is_empty()
            && !self.is_care_armed
            && self.now.saturating_duration_since(self.care_since) >= self.busy_poll
        {
            let awaits_buffers = matches!(self.fabric.forward, Forward::Generate(_));
            let mut is_pending = false;
            for ring in &self.cared {
                is_pending |= lock(&ring.queue).arm(awaits_buffers);
            }
            if is_pending {
                self.heat_care();
            } else {
                self.is_care_armed = true;
            }
        }
    }

    /// Polls every hot ring once, and what else there is to poll; returns how much there was to do.
    fn round(&mut self) -> usize {
        let mut work = 0;
        for at in 0..self.rings.hot_len() {
            work += self.poll_tx(at);
        }
        if !self.cared.is_empty() && !self.is_care_armed {
            let done = self.care();
            self.is_care_active |= done > 0;
            work += done;
        }
        for place in 0..self.uplinks.len() {
            if self.uplinks[place].1.is_ready() {
                work += self.poll_uplink(place);
            }
        }
        if !self.fabric.probes.is_empty() {
            self.fabric.probes.flush(work == 0);
        }
        work
    }

    /// Takes a burst of frames from the hot ring at this place among them, and forwards them.
    fn poll_tx(&mut self, at: usize) -> usize {
        let Self { rings, fabric, burst, start, .. } = self;
        let ring = rings.hot(at);
        if !ring.vring.is_ready() {
            return 0;
        }
        let most = match fabric.allowance(ring.port) {
            Allowance::Frames(most) => most.min(BURST),
            Allowance::Wait(nanos) => {
                let wait = Duration::from_nanos(nanos).max(LEAST_WAIT);
                ring.resume_at = Some(*start + Duration::from_nanos(fabric.now.nanos) + wait);
                return 0;
            }
        };
        ring.resume_at = None;
        ring.is_active = true;
        match forward_burst(fabric, ring, burst, most) {
            Ok(count) => count,
            Err(error) => {
                let TxRing { port, session, index, .. } = *ring;
                let is_intact = ring.vring.queue.is_memory_intact();
                fabric.ports[port].counters.count_failure(ring.vring.fail());
                fabric.bell.ring(Event::of_failure(port, session, index, is_intact, error));
                0
            }
        }
    }

    /// Does what receive rings need beside frames.
    fn care(&mut self) -> usize {
        let Self { cared, fabric, generator, .. } = self;
        let is_generating = matches!(fabric.forward, Forward::Generate(_));
        let mut work = 0;
        for ring in cared {
            let (mut delivery, _) = fabric.delivery();
            if is_generating && ring.is_open() {
                work += generator.send(ring, &mut delivery);
            } else {
                delivery.take_ahead(ring);
            }
            delivery.finish();
        }
        work
    }

    /// Takes a burst of frames from an uplink and forwards them.
    fn poll_uplink(&mut self, place: usize) -> usize {
        let Self { fabric, uplinks, .. } = self;
        let (port, uplink) = &mut uplinks[place];
        let port = *port;
        let (mut delivery, mut rule) = fabric.delivery();
        let counters = delivery.counters(port);
        let result = uplink.read(BURST, counters, |header, data| {
            counters.from_frames.add(1);
            counters.from_bytes.add(data.len() as u64);
            match Ethernet::read(data) {
                Some(_) if !rule.may_come(port, data.len()) => counters.count_drop(DropReason::Limited),
                Some(ethernet) => {
                    let frame = Frame { header: Some(header), ethernet, prefix: Prefix::default(), data };
                    rule.send(port, frame, &mut delivery);
                }
                None => counters.count_drop(DropReason::Malformed),
            }
        });
        let work = result.unwrap_or_else(|error| {
            delivery.report(Event::UplinkFailed { port, error });
            0
        });
        delivery.finish();
        work
    }
}

/// A time in the kernel's form, at most a minute.
fn timespec(limit: Duration) -> Timespec {
    let limit = limit.min(Duration::from_mins(1));
    Timespec { tv_sec: limit.as_secs().cast_signed(), tv_nsec: limit.subsec_nanos().into() }
}

/// Takes a burst of frames, `most` at most, from a transmit ring and forwards them.
fn forward_burst(
    fabric: &mut Fabric,
    ring: &mut TxRing,
    burst: &mut Burst,
    most: usize,
) -> Result<usize, QueueError> {
    let TxRing { port, session, format, enabled, ref mut vring, .. } = *ring;
    let count = vring.queue.take(burst, most)?;
    if let Some(missing) = vring.queue.missing() {
        fabric.bell.ring(Event::TranslationMissing { port, session, missing });
    }
    if count == 0 {
        return Ok(0);
    }
    let mut bytes = 0;
    let (mut delivery, mut rule) = fabric.delivery();
    let counters = delivery.counters(port);
    let is_plain = enabled && delivery.is_plain();
    for buffer in burst.readable() {
        let begun = match format.begin(buffer) {
            Ok(begun) => begun,
            Err(reason) => {
                counters.count_drop(reason);
                continue;
            }
        };
        bytes += begun.data.len() as u64;
        if is_plain && begun.is_plain() && rule.send_plain(port, begun.ethernet, begun.data, &mut delivery) {
            continue;
        }
        match format.finish(buffer, begun) {
            Ok(frame) if enabled => rule.send(port, frame, &mut delivery),
            Ok(_) => counters.count_drop(DropReason::Disabled),
            Err(reason) => counters.count_drop(reason),
        }
    }
    vring.queue.complete_all(burst);
    counters.from_frames.add(count as u64);
    counters.from_bytes.add(bytes);
    rule.count_sent(port, count, bytes);
    // First, so that no frame that a receiver has seen is still available: a device that goes on here after a crash would
    // send it again.
    counters.count_call(vring.publish());
    delivery.finish();
    if !vring.queue.is_memory_intact() {
        counters.count_failure(ring.vring.fail());
        fabric.bell.ring(Event::MemoryFault { port, session });
    }
    Ok(count)
}
