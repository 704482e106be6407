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

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use ringway_memory::{MemoryError, MemoryTable};
use ringway_queue::{Areas, DeviceQueue, QueueConfig};
use rustix::event::epoll;
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SendFlags;

use crate::backend::RequestError;
use crate::base::Base;
use crate::message::VringAddresses;

/// An event file descriptor of the front-end that we write to: call or err. Without one, the front-end polls.
///
/// Whoever writes to it must not be made to wait, and its flags are the front-end's to change as well.
#[derive(Debug, Default)]
pub struct Notifier(Sink);

#[derive(Debug, Default)]
enum Sink {
    #[default]
    Nobody,
    /// An event counter, or a pipe opened anew, with flags of our own. A counter makes a writer wait only at its
    /// limit of 2⁶⁴ - 2.
    File(OwnedFd),
    /// A socket (User-Mode Linux has one), which can be asked for each write not to wait.
    Socket(OwnedFd),
}

impl Notifier {
    /// Takes the file descriptor over: an event counter, a pipe, or a socket.
    ///
    /// # Errors
    /// [`RequestError::NotAnEvent`] for any other file, [`RequestError::Io`].
    pub(crate) fn new(fd: Option<OwnedFd>) -> Result<Self, RequestError> {
        let Some(fd) = fd else { return Ok(Self(Sink::Nobody)) };
        let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
        match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
            FileType::Fifo => {
                let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
                Ok(Self(Sink::File(rustix::fs::open(path, flags, Mode::empty())?)))
            }
            FileType::Socket => Ok(Self(Sink::Socket(fd))),
            _ if std::fs::read_link(path)?.as_os_str() == "anon_inode:[eventfd]" => {
                let flags = rustix::fs::fcntl_getfl(&fd)?;
                if !flags.contains(OFlags::NONBLOCK) {
                    rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK)?;
                }
                Ok(Self(Sink::File(fd)))
            }
            _ => Err(RequestError::NotAnEvent),
        }
    }

    /// Signals the front-end. Returns whether there was someone to signal.
    pub fn notify(&self) -> bool {
        let one = 1u64.to_ne_bytes();
        // A full pipe or counter has a signal pending already; any other failure is the front-end's loss.
        match &self.0 {
            Sink::Nobody => false,
            Sink::File(fd) => rustix::io::write(fd, &one).is_ok(),
            Sink::Socket(fd) => {
                rustix::net::send(fd, &one, SendFlags::DONTWAIT | SendFlags::NOSIGNAL).is_ok()
            }
        }
    }

    pub(crate) fn try_clone(&self) -> std::io::Result<Self> {
        Ok(Self(match &self.0 {
            Sink::Nobody => Sink::Nobody,
            Sink::File(fd) => Sink::File(fd.try_clone()?),
            Sink::Socket(fd) => Sink::Socket(fd.try_clone()?),
        }))
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

/// Checks that a kick can be waited for.
pub(crate) fn check_kick(fd: &OwnedFd) -> Result<(), RequestError> {
    let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    match epoll::add(&epoll, fd, epoll::EventData::new_u64(0), epoll::EventFlags::IN) {
        Err(Errno::PERM) => Err(RequestError::NotAnEvent),
        other => Ok(other?),
    }
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
    pub(crate) base: Base,
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

    /// Where the ring's areas are; the ring is complete.
    pub(crate) fn resolve(&self, features: u64, memory: &MemoryTable) -> Result<Areas, MemoryError> {
        let (Some(size), Some(at)) = (self.num, self.addresses) else { unreachable!("a complete ring") };
        Areas::resolve(memory, size, features, at.descriptor, at.driver, at.device)
    }

    /// Starts a complete ring.
    pub(crate) fn start(
        &mut self,
        features: u64,
        memory: &Arc<MemoryTable>,
    ) -> Result<Running, RequestError> {
        let (Some(size), Some(kick)) = (self.num, &self.kick) else { unreachable!("a complete ring") };
        let areas = self.resolve(features, memory)?;
        let resume = self.base.resume(features, &areas, size)?;
        let memory = Arc::clone(memory);
        let queue =
            DeviceQueue::start(QueueConfig { size, features, areas, memory, used_log: None, resume })?;
        let (kick, call, err) = (kick.try_clone()?, self.call.try_clone()?, self.err.try_clone()?);
        self.is_running = true;
        Ok(Running { queue, kick, call, err, enabled: self.enabled })
    }
}
