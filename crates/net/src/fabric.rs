//! From a burst of frames to the ports that they go to.

use std::io;
use std::sync::{Arc, MutexGuard};

use arrayvec::ArrayVec;
use ringway_device::net::Hash;
use ringway_memory::GuestBuf;
use ringway_queue::{Missing, QueueError};
use ringway_vhost::Bell;

use crate::capture::{Direction, Probes};
use crate::counters::{Counters, DropReason};
use crate::frame::Frame;
use crate::offload;
use crate::plane::lock;
use crate::port::guest::{PLAIN_HEADER, RxQueue, RxRing, Undelivered};
use crate::port::uplink::UplinkWriter;
use crate::port::wishes::Receivers;
use crate::switch::{Now, Switch};

/// What becomes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forward {
    /// It goes where its destination was last seen, or everywhere.
    Switch,
    /// It goes to the other of two ports.
    Wire,
    /// It is read and dropped.
    Sink,
    /// It goes back, source and destination swapped.
    Echo,
    /// It is dropped; and frames of this many bytes are sent to every port as fast as it takes them.
    Generate(usize),
}

/// What the workers tell.
#[derive(Debug)]
pub enum Event {
    /// A driver broke a ring, which is stopped.
    QueueFailed {
        /// The port.
        port: usize,
        /// The session that the ring belongs to.
        session: u64,
        /// The vring.
        index: u16,
        /// What the driver did.
        error: QueueError,
    },
    /// A front-end took memory away that it had given. Nothing of the port is served any more.
    MemoryFault {
        /// The port.
        port: usize,
        /// The session that the memory belongs to.
        session: u64,
    },
    /// A ring waits for a translation that the front-end is to be asked for.
    TranslationMissing {
        /// The port.
        port: usize,
        /// The session that the ring belongs to.
        session: u64,
        /// What the ring waits for.
        missing: Missing,
    },
    /// A driver kicked its control queue.
    Command {
        /// The port.
        port: usize,
    },
    /// An uplink's interface is down, or gone.
    UplinkFailed {
        /// The port.
        port: usize,
        /// The kernel's reason.
        error: io::Error,
    },
}

impl Event {
    /// A ring failed: its driver broke it, unless its memory was taken away, when what the ring says means nothing.
    pub(crate) fn of_failure(
        port: usize,
        session: u64,
        index: u16,
        is_intact: bool,
        error: QueueError,
    ) -> Self {
        if is_intact {
            Self::QueueFailed { port, session, index, error }
        } else {
            Self::MemoryFault { port, session }
        }
    }
}

/// A port as a worker sees it.
pub(crate) struct PortSlot {
    pub(crate) kind: PortKind,
    /// What this worker counts of it.
    pub(crate) counters: Arc<Counters>,
}

pub(crate) enum PortKind {
    Guest(Receivers),
    Uplink(UplinkWriter),
}

impl PortKind {
    /// Whether a frame may reach it now.
    fn can_receive(&self) -> bool {
        match self {
            Self::Guest(receivers) => receivers.is_open(),
            Self::Uplink(_) => true,
        }
    }
}

/// How many receive rings are kept locked at once.
const OPEN_RINGS: usize = 8;

/// Frames on their way, a burst of them. Every receive ring is locked once for all of its frames, which are published
/// together in the end.
///
/// Other workers may wait for a ring that is locked here. So nobody waits for one while holding another: if a
/// ring is not free, all others are let go first.
pub(crate) struct Delivery<'w> {
    ports: &'w [PortSlot],
    scratch: &'w mut Vec<u8>,
    bell: &'w Bell<Event>,
    /// What limits the rates at which ports get frames, if any does.
    limits: Option<(&'w Switch, Now)>,
    /// `None` if nothing is captured.
    probes: Option<&'w mut Probes>,
    open: ArrayVec<OpenRing<'w>, OPEN_RINGS>,
}

/// A receive ring that is locked.
struct OpenRing<'w> {
    port: usize,
    ring: &'w RxRing,
    queue: MutexGuard<'w, RxQueue>,
    /// All frames to the port go to this ring, and nothing else is to be done for one.
    is_plain: bool,
    /// Frames delivered that were not counted yet, and their bytes.
    frames: u64,
    bytes: u64,
}

impl<'w> Delivery<'w> {
    pub(crate) fn new(
        ports: &'w [PortSlot],
        scratch: &'w mut Vec<u8>,
        bell: &'w Bell<Event>,
        limits: Option<(&'w Switch, Now)>,
        probes: &'w mut Probes,
    ) -> Self {
        let probes = (!probes.is_empty()).then(|| {
            probes.tell_time();
            probes
        });
        Self { ports, scratch, bell, limits, probes, open: ArrayVec::new() }
    }

    /// Captures a frame from or to a port, if that is asked for.
    #[inline]
    pub(crate) fn capture(&mut self, port: usize, direction: Direction, frame: &Frame<'_>) {
        if let Some(probes) = &mut self.probes {
            let prefix = &frame.prefix.to_bytes()[..frame.prefix.len()];
            probes.record(port, direction, frame.header.as_ref(), prefix, frame.data);
        }
    }

    /// What this worker counts of a port.
    pub(crate) fn counters(&self, port: usize) -> &'w Counters {
        &self.ports[port].counters
    }

    pub(crate) fn count_drop(&self, port: usize, reason: DropReason) {
        self.ports[port].counters.count_drop(reason);
    }

    /// Tells the control thread.
    pub(crate) fn report(&self, event: Event) {
        self.bell.ring(event);
    }

    /// Whether a frame may reach a port now.
    pub(crate) fn can_reach(&self, port: usize) -> bool {
        self.ports[port].kind.can_receive()
    }

    /// Whether frames are neither limited nor captured.
    #[inline]
    pub(crate) fn is_plain(&self) -> bool {
        self.limits.is_none() && self.probes.is_none()
    }

    /// Sends a frame that has no header to a port that others went to before, as [`RxQueue::deliver_plain`] writes it;
    /// false if that is not all there is to it. Only if [`Delivery::is_plain`].
    #[inline]
    pub(crate) fn send_plain<const N: usize>(
        &mut self,
        to: usize,
        ethernet_len: usize,
        head: [u8; N],
        data: GuestBuf<'_>,
    ) -> bool {
        let Some(open) = self.open.iter_mut().find(|open| open.port == to && open.is_plain) else {
            return false;
        };
        let is_sent = open.queue.deliver_plain(ethernet_len, head, data);
        open.frames += u64::from(is_sent);
        open.bytes += if is_sent { (N - PLAIN_HEADER.len() + data.len()) as u64 } else { 0 };
        is_sent
    }

    /// Sends a frame to a port.
    #[inline(never)]
    pub(crate) fn send(&mut self, to: usize, frame: &Frame<'_>) {
        let ports = self.ports;
        let counters = &*ports[to].counters;
        if let Some((switch, now)) = self.limits
            && !switch.may_receive(to, frame.len(), now)
        {
            return counters.count_drop(DropReason::Limited);
        }
        let (ring, hash) = match &ports[to].kind {
            PortKind::Guest(receivers) => match receivers.find(frame) {
                Ok(found) => found,
                Err(reason) => return counters.count_drop(reason),
            },
            PortKind::Uplink(uplink) => {
                let result = if uplink.takes(frame.header) {
                    write(uplink, frame, counters)
                } else {
                    let write = |segment: &Frame<'_>| {
                        write(uplink, segment, counters).inspect(|()| counters.segments.add(1))
                    };
                    offload::cut(frame, true, self.scratch, write).map(|_| counters.segmented.add(1))
                };
                return match result {
                    Ok(()) => self.capture(to, Direction::To, frame),
                    Err(reason) => counters.count_drop(reason),
                };
            }
        };
        if let Err(error) = self.send_to_ring(to, ring, hash, frame) {
            self.refuse(to, ring, &error);
        }
    }

    /// Writes a frame to a guest, which is told its hash if it asked for that.
    #[inline]
    pub(crate) fn send_to_ring(
        &mut self,
        port: usize,
        ring: &'w RxRing,
        hash: Hash,
        frame: &Frame<'_>,
    ) -> Result<(), Undelivered> {
        let at = self.open(port, ring);
        let Self { open, scratch, ports, .. } = self;
        open[at].queue.deliver(frame, hash, scratch, &ports[port].counters)?;
        self.capture(port, Direction::To, frame);
        Ok(())
    }

    /// Counts a frame that a guest's ring did not take, and tells of a ring that failed.
    #[cold]
    pub(crate) fn refuse(&mut self, port: usize, ring: &'w RxRing, error: &Undelivered) {
        match *error {
            Undelivered::Dropped(reason) => self.count_drop(port, reason),
            Undelivered::Failed(error) => {
                self.count_drop(port, DropReason::NotReady);
                let at = self.open(port, ring);
                let queue = &mut self.open[at].queue;
                let is_intact = queue.is_memory_intact();
                queue.fail(&self.ports[port].counters);
                self.bell.ring(Event::of_failure(port, ring.session, ring.index, is_intact, error));
            }
        }
    }

    /// Takes chains from a ring before there are frames for them.
    pub(crate) fn take_ahead(&mut self, ring: &'w RxRing) {
        let at = self.open(ring.port, ring);
        self.open[at].queue.take_ahead();
    }

    /// Locks a ring, unless it is locked; returns its place among the locked ones.
    #[inline]
    fn open(&mut self, port: usize, ring: &'w RxRing) -> usize {
        match self.open.iter().position(|open| std::ptr::eq(open.ring, ring)) {
            Some(at) => at,
            None => self.open_another(port, ring),
        }
    }

    fn open_another(&mut self, port: usize, ring: &'w RxRing) -> usize {
        if self.open.is_full() {
            self.close();
        }
        let queue = ring.queue.try_lock().unwrap_or_else(|_| {
            self.close();
            lock(&ring.queue)
        });
        let is_plain = matches!(&self.ports[port].kind, PortKind::Guest(receivers) if receivers.is_single());
        self.open.push(OpenRing { port, ring, queue, is_plain, frames: 0, bytes: 0 });
        self.open.len() - 1
    }

    /// Publishes what was delivered, and lets go of the rings.
    fn close(&mut self) {
        let Self { ports, bell, open, .. } = self;
        for OpenRing { port, ring, mut queue, frames, bytes, .. } in open.drain(..) {
            let counters = &ports[port].counters;
            counters.to_frames.add(frames);
            counters.to_bytes.add(bytes);
            counters.copies.add(frames);
            queue.publish(counters);
            let session = ring.session;
            if !queue.is_memory_intact() && queue.fail(counters) {
                bell.ring(Event::MemoryFault { port, session });
            }
            while let Some(missing) = queue.missing() {
                bell.ring(Event::TranslationMissing { port, session, missing });
            }
        }
    }

    /// Publishes what was delivered.
    #[inline]
    pub(crate) fn finish(mut self) {
        self.close();
    }
}

/// Writes a frame to a tap.
#[inline]
fn write(uplink: &UplinkWriter, frame: &Frame<'_>, counters: &Counters) -> Result<(), DropReason> {
    counters.syscalls.add(1);
    uplink.write(frame)?;
    counters.to_frames.add(1);
    counters.to_bytes.add(frame.len() as u64);
    Ok(())
}
