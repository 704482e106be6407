//! The channel on which a back-end speaks first: calls and errors of vrings that have no file descriptor for them,
//! changes of the configuration, translations that are missing.
//!
//! ```text
//!            room on the channel           the front-end's answer (in-band signals with REPLY_ACK)
//!   wanted ──────────────────────► asked ──────────────────────────────────────────────────────► done
//!      ▲                             │ said again meanwhile
//!      └─────────────────────────────┘
//! ```
//!
//! A note says that something is so; saying it twice before the front-end has looked says no more. So there is at
//! most one note of each kind wanted, and one asked, and a front-end that does not read its channel costs nothing.
//! The channel is a socket, or a pipe (User-Mode Linux has one), on which no answers come.
//!
//! Who serves vrings speaks from another thread than the one that polls. What there is to poll for may thus change
//! meanwhile, which an epoll takes up at once.

pub(super) mod handover;

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringway_memory::FrontendVa;
use rustix::event::{PollFlags, epoll};
use rustix::fs::{FileType, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::RequestError;
use crate::descriptor::NonBlocking;
use crate::message::{ChannelRequest, Iotlb, IotlbKind, Kind};
use crate::socket::Socket;

/// What a back-end has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Note {
    /// Chains of this vring were used.
    Call(u16),
    /// This vring failed.
    Err(u16),
    /// The configuration space has changed.
    ConfigChange,
    /// A translation is wanted.
    Miss { iova: u64, read: bool, write: bool },
    /// The driver had the device do what its translation does not allow.
    AccessFail { iova: u64, read: bool, write: bool },
}

impl Note {
    fn request(self) -> ChannelRequest {
        match self {
            Self::Call(index) => ChannelRequest::VringCall { index: index.into() },
            Self::Err(index) => ChannelRequest::VringErr { index: index.into() },
            Self::ConfigChange => ChannelRequest::ConfigChange,
            Self::Miss { iova, read, write } => iotlb(IotlbKind::Miss, iova, read, write),
            Self::AccessFail { iova, read, write } => iotlb(IotlbKind::AccessFail, iova, read, write),
        }
    }

    /// Whether the front-end is asked to answer: signals of vrings are to be sent no faster than they are read.
    fn is_signal(self) -> bool {
        matches!(self, Self::Call(_) | Self::Err(_))
    }
}

fn iotlb(kind: IotlbKind, iova: u64, read: bool, write: bool) -> ChannelRequest {
    ChannelRequest::Iotlb(Iotlb { iova, len: 0, frontend_va: FrontendVa(0), read, write, kind })
}

/// See the module. Whoever serves the vrings and the session share it.
pub(crate) struct Channel {
    /// Readable when it is the channel's turn.
    epoll: OwnedFd,
    state: Mutex<State>,
}

struct State {
    wire: Wire,
    /// The channel as the epoll knows it.
    fd: OwnedFd,
    /// What the epoll looks for.
    watched: epoll::EventFlags,
    /// Signals are answered.
    answers: bool,
    asked: VecDeque<Note>,
    wanted: BTreeSet<Note>,
}

enum Wire {
    Socket(Socket),
    Pipe(NonBlocking),
    /// The front-end has closed it.
    Gone,
}

/// The most translations that are wanted at a time; more than all vrings can wait for.
const MAX_WANTED: usize = 4096;
/// The most answers that are waited for at a time.
const MAX_ASKED: usize = 4096;
/// The most answers read in one turn.
const MAX_ANSWERS: usize = 64;

impl Channel {
    /// Takes the channel over; `has_ack` tells whether `REPLY_ACK` was negotiated.
    pub(super) fn new(fd: OwnedFd, has_ack: bool) -> Result<Arc<Self>, RequestError> {
        if !matches!(
            FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode),
            FileType::Fifo | FileType::Socket
        ) {
            return Err(RequestError::NotAChannel);
        }
        let wire = match NonBlocking::new(fd.try_clone()?, OFlags::WRONLY)? {
            NonBlocking::Socket(fd) => Wire::Socket(Socket::new(UnixStream::from(fd), Kind::Reply)?),
            pipe @ NonBlocking::File(_) => Wire::Pipe(pipe),
        };
        let answers = has_ack && matches!(wire, Wire::Socket(_));
        let (asked, wanted) = (VecDeque::new(), BTreeSet::new());
        let mut state = State { wire, fd, watched: epoll::EventFlags::empty(), answers, asked, wanted };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        state.watch(&epoll)?;
        Ok(Arc::new(Self { epoll, state: Mutex::new(state) }))
    }

    /// A panic of another thread leaves the state whole: what is said is said again at worst.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Says something, now or as soon as there is room. Returns whether it was sent now.
    pub(crate) fn say(&self, note: Note) -> bool {
        let mut state = self.state();
        if state.wanted.len() < MAX_WANTED {
            state.wanted.insert(note);
        }
        state.proceed(&self.epoll, false);
        !state.wanted.contains(&note)
    }

    /// Says what waits for answers without them, for nothing is to be said later.
    pub(super) fn hurry(&self) {
        self.state().proceed(&self.epoll, true);
    }

    /// What to poll for.
    pub(super) fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        (self.epoll.as_fd(), PollFlags::IN)
    }

    /// Reads answers, and says what waits for them or for room.
    pub(super) fn turn(&self) {
        let mut state = self.state();
        state.listen();
        state.proceed(&self.epoll, false);
    }
}

impl State {
    /// What there is to poll for; nothing of a pipe with room, which tells for ever that nobody reads it.
    fn events(&self) -> epoll::EventFlags {
        let (read, room) = (epoll::EventFlags::IN, epoll::EventFlags::OUT);
        match &self.wire {
            Wire::Socket(socket) if socket.has_unsent() => read | room,
            Wire::Socket(_) => read,
            Wire::Pipe(_) if !self.wanted.is_empty() => room,
            Wire::Pipe(_) | Wire::Gone => epoll::EventFlags::empty(),
        }
    }

    /// Has the epoll look for what there is to poll for now.
    fn watch(&mut self, epoll: &OwnedFd) -> Result<(), Errno> {
        let events = self.events();
        let data = epoll::EventData::new_u64(0);
        match (self.watched.is_empty(), events.is_empty()) {
            _ if self.watched == events => {}
            (true, _) => epoll::add(epoll, &self.fd, data, events)?,
            (false, false) => epoll::modify(epoll, &self.fd, data, events)?,
            (false, true) => epoll::delete(epoll, &self.fd)?,
        }
        self.watched = events;
        Ok(())
    }

    /// Sends what is wanted as long as there is room; what has been asked already only if it is said to be urgent.
    fn proceed(&mut self, epoll: &OwnedFd, is_urgent: bool) {
        let sent = self.send_wanted(is_urgent);
        if !matches!(sent, Ok(()) | Err(Errno::AGAIN)) || self.watch(epoll).is_err() {
            self.wire = Wire::Gone;
            let _ = self.watch(epoll);
        }
        if let Wire::Gone = self.wire {
            // Nobody listens any more, and nobody will.
            self.wanted.clear();
        }
    }

    fn send_wanted(&mut self, is_urgent: bool) -> Result<(), Errno> {
        if let Wire::Socket(socket) = &mut self.wire {
            socket.flush().map_err(|_| Errno::PIPE)?;
        }
        let is_urgent = is_urgent && self.asked.len() < MAX_ASKED;
        let is_ready = |note: &&Note| is_urgent || !self.asked.contains(note);
        let ready: Vec<Note> = self.wanted.iter().filter(is_ready).copied().collect();
        for note in ready {
            self.send(note)?;
            self.wanted.remove(&note);
        }
        Ok(())
    }

    fn send(&mut self, note: Note) -> Result<(), Errno> {
        let needs_answer = self.answers && note.is_signal();
        let message = note.request().encode(needs_answer);
        match &mut self.wire {
            Wire::Socket(socket) => {
                if socket.has_unsent() {
                    return Err(Errno::AGAIN);
                }
                socket.send(message).map_err(|_| Errno::PIPE)?;
            }
            // Shorter than what a pipe takes whole or not at all.
            Wire::Pipe(pipe) => drop(pipe.write(&message.bytes)?),
            Wire::Gone => return Ok(()),
        }
        if needs_answer {
            self.asked.push_back(note);
        }
        Ok(())
    }

    /// Reads answers. What they say is of no consequence: it has been looked at.
    fn listen(&mut self) {
        let Wire::Socket(socket) = &mut self.wire else { return };
        for _ in 0..MAX_ANSWERS {
            match socket.receive() {
                Ok(Some(_)) => drop(self.asked.pop_front()),
                Ok(None) => return,
                Err(_) => {
                    self.wire = Wire::Gone;
                    return;
                }
            }
        }
    }
}
