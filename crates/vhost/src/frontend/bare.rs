//! A vring without its queue: where it is, as messages say it, and the wires beside it.
//!
//! Who has the driver's half of the queue is not known here: a [`Vring`](super::Vring), or a driver that made its rings
//! in memory of its own.

use std::io;
use std::sync::Arc;

use ringway_memory::Gpa;
use ringway_queue::ResumeState;

use super::Event;
use crate::base::Base;
use crate::message::VringAddresses;

/// How the two sides tell each other that there is something in a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Signals {
    /// By event counters, both ways.
    #[default]
    Events,
    /// Not at all: both sides poll.
    Polled,
    /// By messages: `INBAND_NOTIFICATIONS` is negotiated.
    Inband,
}

/// The event counters of a ring.
struct Wires {
    kick: Arc<Event>,
    call: Arc<Event>,
    err: Arc<Event>,
}

/// Which vring it is, where, and where it begins.
#[derive(Debug, Clone, Copy)]
pub struct VringPlace {
    /// Its index, below 256.
    pub index: u32,
    /// Number of descriptors.
    pub size: u16,
    /// Its areas. Where its used ring is logged is not said here.
    pub addresses: VringAddresses,
    /// The device area's guest address, by which it is logged.
    pub log: Gpa,
    /// Where both sides begin.
    pub start: ResumeState,
}

/// A vring as messages tell of it.
pub struct BareVring {
    index: u32,
    size: u16,
    addresses: VringAddresses,
    /// The device area for the log: its guest address.
    pub(super) log: Gpa,
    pub(super) base: u32,
    features: u64,
    signals: Signals,
    wires: Wires,
    pub(super) is_started: bool,
}

impl BareVring {
    /// A stopped vring, for use with these negotiated virtio features.
    ///
    /// # Errors
    /// The kernel's: there are no event counters left.
    pub fn new(place: VringPlace, features: u64, signals: Signals) -> io::Result<Self> {
        let VringPlace { index, size, addresses, log, start } = place;
        let new = || Event::new().map(Arc::new);
        Ok(Self {
            index,
            size,
            addresses: VringAddresses { log: None, ..addresses },
            log,
            base: Base::Stopped(start).to_word(features),
            features,
            signals,
            wires: Wires { kick: new()?, call: new()?, err: new()? },
            is_started: false,
        })
    }

    /// Its index.
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Number of descriptors.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where the ring is.
    pub fn addresses(&self) -> VringAddresses {
        self.addresses
    }

    /// The virtio features that it was made for.
    pub fn features(&self) -> u64 {
        self.features
    }

    /// How kicks and calls go.
    pub fn signals(&self) -> Signals {
        self.signals
    }

    /// The counter that the driver kicks by.
    pub fn kick(&self) -> &Arc<Event> {
        &self.wires.kick
    }

    /// The counter that the device calls by.
    pub fn call(&self) -> &Arc<Event> {
        &self.wires.call
    }

    /// The counter that tells of a ring which failed.
    pub fn err(&self) -> &Arc<Event> {
        &self.wires.err
    }

    /// Whether the back-end was told to start it, and not to stop it since.
    pub fn is_started(&self) -> bool {
        self.is_started
    }
}

impl AsRef<Self> for BareVring {
    fn as_ref(&self) -> &Self {
        self
    }
}

impl AsMut<Self> for BareVring {
    fn as_mut(&mut self) -> &mut Self {
        self
    }
}
