//! Where frames go: the ports of a worker, and the rule by which a frame that came from one reaches others.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::Sender;

use ringway_queue::{Missing, QueueError};

use crate::counters::{Counters, DropReason};
use crate::frame::{Ethernet, Frame};
use crate::handover::PortState;
use crate::port::guest::{GuestPort, Undelivered};
use crate::port::tap::Tap;
use crate::switch::{Decision, Switch};
use crate::worker::Signal;

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

/// What the worker tells.
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
    /// A tap cannot be read any more.
    TapFailed {
        /// The port.
        port: usize,
        /// The kernel's reason.
        error: io::Error,
    },
}

/// A port.
pub(crate) struct Port {
    pub(crate) kind: PortKind,
    pub(crate) counters: Arc<Counters>,
}

pub(crate) enum PortKind {
    Guest(Box<GuestPort>),
    Tap { tap: Tap, is_ready: bool },
}

impl Port {
    /// Goes on where another process's port was.
    pub(crate) fn restore(&mut self, state: &PortState) {
        for (name, counter) in self.counters.named() {
            counter.add(state.counters.get(name).copied().unwrap_or_default());
        }
        if let PortKind::Guest(guest) = &mut self.kind {
            guest.counted = state.counted;
        }
    }

    /// The guest behind it.
    pub(crate) fn guest(&mut self) -> Option<&mut GuestPort> {
        match &mut self.kind {
            PortKind::Guest(guest) => Some(guest),
            PortKind::Tap { .. } => None,
        }
    }

    /// Whether a frame may reach it now.
    fn can_receive(&self) -> bool {
        match &self.kind {
            PortKind::Guest(guest) => guest.can_receive(),
            PortKind::Tap { .. } => true,
        }
    }
}

/// The ports and the rule.
pub(crate) struct Fabric {
    pub(crate) ports: Vec<Port>,
    pub(crate) forward: Forward,
    pub(crate) switch: Switch,
    /// Room for a frame that has to be changed.
    pub(crate) scratch: Vec<u8>,
    /// Seconds since the start.
    pub(crate) now: u64,
    pub(crate) events: Sender<Event>,
    pub(crate) event_signal: Arc<Signal>,
}

impl Fabric {
    /// The guest of a port that has one.
    pub(crate) fn guest(&mut self, port: usize) -> &mut GuestPort {
        self.ports[port].guest().expect("only guests have sessions")
    }

    /// Sends a frame where it belongs.
    #[inline]
    pub(crate) fn forward(&mut self, from: usize, ethernet: &Ethernet, mut frame: Frame<'_>) {
        match self.forward {
            Forward::Switch => match self.switch.decide(ethernet, from, self.now) {
                Decision::To(port) => self.deliver(port, frame),
                Decision::Flood => self.flood(from, frame),
                Decision::Filter => self.ports[from].counters.count_drop(DropReason::Filtered),
            },
            Forward::Wire => self.deliver(1 - from, frame),
            Forward::Echo => {
                frame.addresses = Some((ethernet.src, ethernet.dst));
                self.deliver(from, frame);
            }
            Forward::Sink | Forward::Generate(_) => {}
        }
    }

    fn flood(&mut self, from: usize, frame: Frame<'_>) {
        let mut is_lost = true;
        for port in 0..self.ports.len() {
            if port != from && self.ports[port].can_receive() {
                is_lost = false;
                self.deliver(port, frame);
            }
        }
        if is_lost {
            self.ports[from].counters.count_drop(DropReason::Filtered);
        }
    }

    #[inline]
    fn deliver(&mut self, to: usize, frame: Frame<'_>) {
        let Port { kind, counters } = &mut self.ports[to];
        let result = match kind {
            PortKind::Guest(guest) => guest.deliver(frame, &mut self.scratch),
            PortKind::Tap { tap, .. } => {
                counters.syscalls.add(1);
                tap.write(frame).map_err(Undelivered::Dropped).inspect(|()| {
                    counters.to_frames.add(1);
                    counters.to_bytes.add(frame.data.len() as u64);
                })
            }
        };
        match result {
            Ok(()) => {}
            Err(Undelivered::Dropped(reason)) => counters.count_drop(reason),
            Err(Undelivered::Failed(index, error)) => {
                counters.count_drop(DropReason::NotReady);
                self.fail(to, index, error);
            }
        }
    }

    // Failures

    /// A driver broke a ring: the ring is left alone, the front-end and the control thread are told, once.
    pub(crate) fn fail(&mut self, port: usize, index: u16, error: QueueError) {
        if self.check_memory(port) {
            let guest = self.guest(port);
            guest.fail(index);
            let session = guest.session();
            self.report(Event::QueueFailed { port, session, index, error });
        }
    }

    /// Whether the memory of a guest is still the peer's. If its front-end took it away, what the rings say means
    /// nothing: they are left alone, and the control thread is told, once.
    pub(crate) fn check_memory(&mut self, port: usize) -> bool {
        let guest = self.guest(port);
        if guest.is_memory_intact() {
            return true;
        }
        let running: Vec<u16> = guest.vrings().map(|(index, _)| index).collect();
        for index in running {
            guest.fail(index);
        }
        let session = guest.session();
        self.report(Event::MemoryFault { port, session });
        false
    }

    /// Has the control thread ask for the translations that a guest's rings wait for.
    pub(crate) fn ask_translations(&mut self, port: usize) {
        let guest = self.guest(port);
        if !guest.has_iommu() {
            return;
        }
        guest.take_ahead();
        let session = guest.session();
        while let Some(missing) = self.guest(port).missing() {
            self.report(Event::TranslationMissing { port, session, missing });
        }
    }

    /// Tells the control thread.
    pub(crate) fn report(&self, event: Event) {
        // Without a control thread the program is ending.
        let _ = self.events.send(event);
        self.event_signal.raise();
    }
}
