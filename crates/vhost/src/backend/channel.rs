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

use std::collections::{BTreeSet, VecDeque};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use ringway_memory::FrontendVa;
use rustix::event::PollFlags;
use rustix::fs::OFlags;
use rustix::io::Errno;

use super::RequestError;
use crate::descriptor::NonBlocking;
use crate::message::{ChannelRequest, Iotlb, IotlbKind, Kind};
use crate::socket::Socket;

/// What a back-end has to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
    /// To be polled.
    fd: OwnedFd,
    state: Mutex<State>,
}

struct State {
    wire: Wire,
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

impl Channel {
    /// Takes the channel over; `has_ack` tells whether `REPLY_ACK` was negotiated.
    pub(super) fn new(fd: OwnedFd, has_ack: bool) -> Result<Arc<Self>, RequestError> {
        let copy = fd.try_clone()?;
        let wire = match NonBlocking::new(fd, OFlags::WRONLY).map_err(|_| RequestError::NotAnEvent)? {
            NonBlocking::Socket(fd) => Wire::Socket(Socket::new(UnixStream::from(fd), Kind::Reply)?),
            pipe @ NonBlocking::File(_) => Wire::Pipe(pipe),
        };
        let answers = has_ack && matches!(wire, Wire::Socket(_));
        let state = State { wire, answers, asked: VecDeque::new(), wanted: BTreeSet::new() };
        Ok(Arc::new(Self { fd: copy, state: Mutex::new(state) }))
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
        state.proceed();
        !state.wanted.contains(&note)
    }

    /// What to poll for.
    pub(super) fn interest(&self) -> Option<(BorrowedFd<'_>, PollFlags)> {
        let state = self.state();
        let room = if state.is_waiting_for_room() { PollFlags::OUT } else { PollFlags::empty() };
        match &state.wire {
            Wire::Socket(_) => Some((self.fd.as_fd(), PollFlags::IN | room)),
            Wire::Pipe(_) if !room.is_empty() => Some((self.fd.as_fd(), room)),
            Wire::Pipe(_) | Wire::Gone => None,
        }
    }

    /// Reads answers, and says what waits for them or for room.
    pub(super) fn turn(&self) {
        let mut state = self.state();
        state.listen();
        state.proceed();
    }
}

impl State {
    fn is_waiting_for_room(&self) -> bool {
        match &self.wire {
            Wire::Socket(socket) => socket.has_unsent(),
            Wire::Pipe(_) => !self.wanted.is_empty(),
            Wire::Gone => false,
        }
    }

    /// Sends what is left of a message, and what is wanted and not asked already, as long as there is room.
    fn proceed(&mut self) {
        if let Wire::Socket(socket) = &mut self.wire
            && socket.flush().is_err()
        {
            self.wire = Wire::Gone;
        }
        let ready: Vec<Note> = self.wanted.iter().filter(|n| !self.asked.contains(n)).copied().collect();
        for note in ready {
            match self.send(note) {
                Ok(()) => {
                    self.wanted.remove(&note);
                }
                Err(Errno::AGAIN) => return,
                Err(_) => self.wire = Wire::Gone,
            }
        }
        if let Wire::Gone = self.wire {
            // Nobody listens any more, and nobody will.
            self.wanted.clear();
        }
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
        loop {
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
