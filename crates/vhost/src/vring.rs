//! A vring being set up, and what it is made of once it runs.
//!
//! ```text
//!            num, addr, kick, and the session's features, memory, status; the driver has kicked
//!   stopped ─────────────────────────────────────────────────────────────► running
//!      ▲                                                                      │
//!      └────────────── GET_VRING_BASE, reset, end of the session ─────────────┘
//! ```
//!
//! A ring that goes on where it was starts without waiting for a kick: that may have gone to the process before this one.
//!
//! Enabled is another matter: a running ring that is not enabled is served without side effects.

pub(crate) mod handover;

use std::fmt;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use ringway_memory::{MemoryError, MemoryTable, RingArea};
use ringway_queue::inflight::is_new;
use ringway_queue::{Areas, DeviceQueue, QueueConfig, ResumeState};
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;

use crate::backend::RequestError;
use crate::backend::channel::{Channel, Note};
use crate::base::Base;
use crate::descriptor::NonBlocking;
use crate::message::VringAddresses;

/// A way to signal the front-end: call or err. Without one, the front-end polls.
#[derive(Debug, Default)]
pub struct Notifier(Sink);

#[derive(Default)]
enum Sink {
    #[default]
    Nobody,
    /// An event counter, a pipe or a socket. A counter makes a writer wait only at its limit of 2⁶⁴ - 2.
    Fd(NonBlocking),
    /// A message on the back-end's channel.
    InBand(Arc<Channel>, Note),
}

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nobody => f.write_str("Nobody"),
            Self::Fd(fd) => fd.fmt(f),
            Self::InBand(_, note) => note.fmt(f),
        }
    }
}

impl Notifier {
    /// Takes the file descriptor over: an event counter, a pipe, or a socket.
    ///
    /// # Errors
    /// [`RequestError::NotAnEvent`] for any other file, [`RequestError::Io`].
    pub(crate) fn new(fd: Option<OwnedFd>) -> Result<Self, RequestError> {
        let Some(fd) = fd else { return Ok(Self(Sink::Nobody)) };
        let fd = match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
            FileType::Fifo | FileType::Socket => NonBlocking::new(fd, OFlags::WRONLY)?,
            _ if is_event_counter(&fd)? => {
                let flags = rustix::fs::fcntl_getfl(&fd)?;
                if !flags.contains(OFlags::NONBLOCK) {
                    rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
                }
                NonBlocking::File(fd)
            }
            _ => return Err(RequestError::NotAnEvent),
        };
        Ok(Self(Sink::Fd(fd)))
    }

    /// Says so on the back-end's channel.
    pub(crate) fn in_band(channel: &Arc<Channel>, note: Note) -> Self {
        Self(Sink::InBand(Arc::clone(channel), note))
    }

    /// Signals the front-end. Returns whether there was someone to signal.
    pub fn notify(&self) -> bool {
        match &self.0 {
            Sink::Nobody => false,
            // A full pipe or counter has a signal pending already; any other failure is the front-end's loss.
            Sink::Fd(fd) => fd.write(&1u64.to_ne_bytes()).is_ok(),
            Sink::InBand(channel, note) => channel.say(*note),
        }
    }

    pub(crate) fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self(match &self.0 {
            Sink::Nobody => Sink::Nobody,
            Sink::Fd(fd) => Sink::Fd(fd.try_clone()?),
            Sink::InBand(channel, note) => Sink::InBand(Arc::clone(channel), *note),
        }))
    }
}

fn is_event_counter(fd: &OwnedFd) -> std::io::Result<bool> {
    let path = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
    Ok(path.as_os_str() == "anon_inode:[eventfd]")
}

/// What a vring that runs consists of; the device serves it from now on.
pub struct Running {
    /// The queue.
    pub queue: DeviceQueue,
    /// How the driver kicks.
    pub kick: Kick,
    /// To call the driver.
    pub call: Notifier,
    /// To tell the front-end that the queue failed.
    pub err: Notifier,
    /// Whether it is served with side effects.
    pub enabled: bool,
    /// Whether it goes on where it was: a device that ran it before may have used chains and not called. The driver
    /// is to be called once.
    pub is_resumed: bool,
}

/// Checks that a kick can be waited for.
pub(crate) fn check_kick(fd: &OwnedFd) -> Result<(), RequestError> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    match epoll::add(&epoll, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN) {
        Err(Errno::PERM) => Err(RequestError::NotAnEvent),
        other => Ok(other?),
    }
}

/// How the driver kicks a vring.
#[derive(Debug)]
pub enum Kick {
    /// This file descriptor becomes readable.
    Fd(OwnedFd),
    /// By a message: [`Device::kick_vring`](crate::backend::Device::kick_vring).
    InBand,
    /// Not at all: the vring is to be polled.
    Polled,
}

impl Kick {
    pub(crate) fn try_clone(&self) -> std::io::Result<Self> {
        Ok(match self {
            Self::Fd(fd) => Self::Fd(fd.try_clone()?),
            Self::InBand => Self::InBand,
            Self::Polled => Self::Polled,
        })
    }
}

/// A vring as the front-end has described it so far.
#[derive(Default)]
#[allow(
    clippy::struct_excessive_bools,
    reason = "each is something that the front-end or the driver said or did not"
)]
pub(crate) struct Vring {
    pub(crate) num: Option<u16>,
    pub(crate) addresses: Option<VringAddresses>,
    pub(crate) base: Base,
    pub(crate) kick: Option<Kick>,
    /// `None`: the front-end has not said how it wants to be called, not even that it polls.
    pub(crate) call: Option<Notifier>,
    pub(crate) err: Option<Notifier>,
    pub(crate) enabled: bool,
    pub(crate) is_running: bool,
    /// The driver has kicked since the ring was given its kick.
    pub(crate) is_kicked: bool,
    /// It would run if the driver had kicked.
    pub(crate) awaits_kick: bool,
    /// Lengths of the areas of the ring that ran last: descriptor, driver, device.
    lens: [usize; 3],
}

impl Vring {
    /// Whether the front-end has given all that the ring itself needs.
    pub(crate) fn is_complete(&self) -> bool {
        self.num.is_some() && self.addresses.is_some() && self.kick.is_some()
    }

    /// Where the areas of a running ring begin and end.
    pub(crate) fn areas(&self) -> impl Iterator<Item = (u64, u64)> {
        let at = self.addresses.filter(|_| self.is_running);
        let starts = at.map(|at| [at.descriptor, at.driver, at.device]).into_iter().flatten();
        starts.zip(self.lens).map(|(start, len)| (start.0, start.0.saturating_add(len as u64)))
    }

    /// Where the ring's areas are; the ring is complete.
    pub(crate) fn resolve(&self, features: u64, memory: &MemoryTable) -> Result<Areas, MemoryError> {
        let (Some(size), Some(at)) = (self.num, self.addresses) else { unreachable!("a complete ring") };
        Areas::resolve(memory, size, features, at.descriptor, at.driver, at.device)
    }

    /// Whether the driver has kicked: it counts as long as it is the same kick.
    pub(crate) fn look_for_kick(&mut self) -> bool {
        self.is_kicked |= match &self.kick {
            Some(Kick::Fd(fd)) => is_ready(fd),
            Some(Kick::Polled) => true,
            Some(Kick::InBand) | None => false,
        };
        self.is_kicked
    }

    /// Takes the kick away: the ring needs another to start.
    pub(crate) fn forget_kick(&mut self) {
        self.kick = None;
        self.is_kicked = false;
        self.awaits_kick = false;
    }

    /// Starts a complete ring, unless it has to wait for the driver's first kick. `call` and `err` stand for what the
    /// front-end did not say.
    pub(crate) fn start(
        &mut self,
        features: u64,
        memory: &Arc<MemoryTable>,
        inflight: Option<RingArea>,
        [call, err]: [Notifier; 2],
    ) -> Result<Option<Running>, RequestError> {
        let is_kicked = self.look_for_kick();
        self.awaits_kick = false;
        let (Some(size), Some(at), Some(kick)) = (self.num, self.addresses, &self.kick) else {
            unreachable!("a complete ring")
        };
        let areas = self.resolve(features, memory)?;
        let lens = [&areas.descriptor, &areas.driver, &areas.device].map(RingArea::len);
        let resume = self.base.resume(features, &areas, size)?;
        let is_resumed = resume != ResumeState::start(features);
        let memory = Arc::clone(memory);
        // Behind an IOMMU the front-end names the used ring by an address that the log does not know.
        let used_log = match memory.translation() {
            Some(_) => at.log.map(|_| areas.device.gpa()),
            None => at.log,
        };
        let is_recorded = inflight.as_ref().is_some_and(|region| !is_new(region));
        let config = QueueConfig { size, features, areas, memory, resume, used_log, inflight };
        self.awaits_kick = !(is_kicked || is_resumed || is_recorded);
        if self.awaits_kick {
            // What cannot start is told now; nothing is touched.
            config.check()?;
            return Ok(None);
        }
        let queue = DeviceQueue::start(config)?;
        let or = |own: &Option<Notifier>, other| own.as_ref().map_or(Ok(other), Notifier::try_clone);
        let (kick, call, err) = (kick.try_clone()?, or(&self.call, call)?, or(&self.err, err)?);
        self.is_running = true;
        self.lens = lens;
        Ok(Some(Running { queue, kick, call, err, enabled: self.enabled, is_resumed }))
    }
}

/// Whether a kick has come, or none can any more.
fn is_ready(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    let no_wait = Timespec { tv_sec: 0, tv_nsec: 0 };
    matches!(poll(&mut fds, Some(&no_wait)), Ok(1..))
}
