//! A vring being set up, and what it is made of once it runs.
//!
//! ```text
//!            num, addr, kick, and the session's features, memory, status
//!   stopped ─────────────────────────────────────────────────────────────► running
//!      ▲                                                                      │
//!      └────────────── GET_VRING_BASE, reset, end of the session ─────────────┘
//! ```
//!
//! Enabled is another matter: a running ring that is not enabled is served without side effects.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use ringway_memory::MemoryTable;
use ringway_queue::{Areas, DeviceQueue, QueueConfig, ResumeState};
use rustix::fs::OFlags;

use crate::backend::RequestError;
use crate::message::VringAddresses;

/// An event file descriptor of the front-end that we write to: call or err. Without one, the front-end polls.
#[derive(Debug, Default)]
pub struct Notifier(Option<OwnedFd>);

impl Notifier {
    /// Takes the file descriptor over. It is made non-blocking, since a front-end could hand us a pipe that it
    /// never reads (User-Mode Linux does hand us a pipe), or an event counter at its limit.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(fd: Option<OwnedFd>) -> std::io::Result<Self> {
        if let Some(fd) = &fd {
            let flags = rustix::fs::fcntl_getfl(fd)?;
            if !flags.contains(OFlags::NONBLOCK) {
                rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?;
            }
        }
        Ok(Self(fd))
    }

    /// Signals the front-end. Returns whether there was someone to signal.
    pub fn notify(&self) -> bool {
        // A full pipe or counter has a signal pending already; any other failure is the front-end's loss.
        self.0.as_ref().is_some_and(|fd| rustix::io::write(fd, &1u64.to_ne_bytes()).is_ok())
    }

    pub(crate) fn try_clone(&self) -> std::io::Result<Self> {
        self.0.as_ref().map(|fd| fd.as_fd().try_clone_to_owned()).transpose().map(Self)
    }
}

/// What a vring that runs consists of; the device serves it from now on.
pub struct Running {
    /// The queue.
    pub queue: DeviceQueue,
    /// Readable when the driver kicked; `None`: poll the queue.
    pub kick: Option<OwnedFd>,
    /// To call the driver.
    pub call: Notifier,
    /// To tell the front-end that the queue failed.
    pub err: Notifier,
    /// Whether it is served with side effects.
    pub enabled: bool,
}

/// How the front-end said it will kick.
pub(crate) enum Kick {
    /// By this file descriptor.
    Fd(OwnedFd),
    /// Not at all: the ring is to be polled.
    Polled,
}

impl Kick {
    fn try_clone(&self) -> std::io::Result<Option<OwnedFd>> {
        match self {
            Self::Fd(fd) => fd.try_clone().map(Some),
            Self::Polled => Ok(None),
        }
    }
}

/// A vring as the front-end has described it so far.
#[derive(Default)]
pub(crate) struct Vring {
    pub(crate) num: Option<u16>,
    pub(crate) addresses: Option<VringAddresses>,
    pub(crate) resume: ResumeState,
    pub(crate) kick: Option<Kick>,
    pub(crate) call: Notifier,
    pub(crate) err: Notifier,
    pub(crate) enabled: bool,
    pub(crate) is_running: bool,
}

impl Vring {
    /// Whether the front-end has given all that the ring itself needs.
    pub(crate) fn is_complete(&self) -> bool {
        self.num.is_some() && self.addresses.is_some() && self.kick.is_some()
    }

    /// Starts a complete ring; `None` if it is not complete.
    pub(crate) fn start(
        &mut self,
        features: u64,
        memory: &Arc<MemoryTable>,
    ) -> Result<Option<Running>, RequestError> {
        let (Some(size), Some(at), Some(kick)) = (self.num, self.addresses, &self.kick) else {
            return Ok(None);
        };
        let areas = Areas::resolve_split(memory, size, at.descriptor, at.driver, at.device)?;
        let memory = Arc::clone(memory);
        let queue = DeviceQueue::start(QueueConfig { size, features, areas, memory, resume: self.resume })?;
        let kick = kick.try_clone()?;
        let running = Running {
            queue,
            kick,
            call: self.call.try_clone()?,
            err: self.err.try_clone()?,
            enabled: self.enabled,
        };
        self.is_running = true;
        Ok(Some(running))
    }
}
