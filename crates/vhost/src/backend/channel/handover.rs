//! The back-end's channel as plain data: what is asked, what is wanted, and what is on its way.

use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};

use rustix::event::epoll;
use rustix::fs::OFlags;
use serde::{Deserialize, Serialize};

use super::{Channel, MAX_ASKED, MAX_WANTED, Note, State, Wire};
use crate::descriptor::NonBlocking;
use crate::handover::{FdIndex, FilesIn, FilesOut, HandoverError};
use crate::message::Kind;
use crate::socket::Socket;

/// The channel of a session with all vrings stopped.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::backend) struct ChannelState {
    fd: FdIndex,
    wire: WireState,
    answers: bool,
    asked: Vec<Note>,
    wanted: Vec<Note>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum WireState {
    /// No files go with what is said and answered here.
    Socket {
        arrived: Vec<u8>,
        unsent: Vec<Vec<u8>>,
    },
    Pipe,
    Gone,
}

impl Channel {
    /// Its state; its file is added to `files`.
    pub(in crate::backend) fn handover_state(
        &self,
        files: &mut FilesOut<'_>,
    ) -> Result<ChannelState, HandoverError> {
        let state = self.state();
        let State { wire, fd, watched: _, answers, asked, wanted } = &*state;
        Ok(ChannelState {
            // Of the state, which is not borrowed for long.
            fd: files.add_owned(fd.try_clone()?),
            wire: match wire {
                Wire::Socket(socket) => {
                    WireState::Socket { arrived: socket.arrived(), unsent: socket.unsent() }
                }
                Wire::Pipe(_) => WireState::Pipe,
                Wire::Gone => WireState::Gone,
            },
            answers: *answers,
            asked: asked.iter().copied().collect(),
            wanted: wanted.iter().copied().collect(),
        })
    }

    /// The channel goes on here.
    pub(in crate::backend) fn restore(
        state: ChannelState,
        files: &mut FilesIn,
    ) -> Result<Arc<Self>, HandoverError> {
        let ChannelState { fd, wire, answers, asked, wanted } = state;
        if asked.len() > MAX_ASKED || wanted.len() > MAX_WANTED {
            return Err(HandoverError::BadValue("the number of notes"));
        }
        let fd = files.take(fd)?;
        let wire = match wire {
            WireState::Socket { arrived, unsent } => {
                let unsent = unsent.into_iter().map(Into::into).collect();
                let stream = UnixStream::from(fd.try_clone()?);
                Wire::Socket(Socket::with(stream, Kind::Reply, &arrived, unsent)?)
            }
            // One that nobody reads any more cannot be opened.
            WireState::Pipe => {
                NonBlocking::new(fd.try_clone()?, OFlags::WRONLY).map_or(Wire::Gone, Wire::Pipe)
            }
            WireState::Gone => Wire::Gone,
        };
        let (asked, wanted) = (asked.into(), wanted.into_iter().collect());
        let mut state = State { wire, fd, watched: epoll::EventFlags::empty(), answers, asked, wanted };
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        state.watch(&epoll)?;
        Ok(Arc::new(Self { epoll, state: Mutex::new(state) }))
    }
}
