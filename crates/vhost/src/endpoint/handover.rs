//! An endpoint handed to the server that takes this one's place.
//!
//! ```text
//!   here    suspend ──► state ──────────────────► hand_over ──► dropped
//!                         │  └── it failed ──► resume   │
//!   there                 └─────► restore               └──► take_over
//! ```

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};

use ringway_memory::MapError;
use serde::{Deserialize, Serialize};
use tracing::warn;

use super::{Endpoint, SocketFile, Source, State};
use crate::backend::handover::SessionState;
use crate::backend::{Device, Session};
use crate::handover::{FdIndex, FilesIn, FilesOut, HandoverError};
use crate::message::Kind;
use crate::socket::Socket;
use crate::socket::handover::SocketState;

/// An endpoint with all vrings stopped.
#[derive(Debug, Serialize, Deserialize)]
pub struct EndpointState {
    source: SourceState,
    attached: Option<AttachedState>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SourceState {
    /// The file is to be removed in the end.
    Listen {
        socket: FdIndex,
        file: Option<OsString>,
    },
    Connect(OsString),
    Connected(FdIndex),
    Spent,
}

#[derive(Debug, Serialize, Deserialize)]
struct AttachedState {
    socket: SocketState,
    session: SessionState,
}

impl<D: Device> Endpoint<D> {
    /// Stops the vrings that run, until [`Endpoint::resume`].
    pub fn suspend(&mut self) {
        if let State::Attached(session, _) = &mut self.state {
            session.suspend();
        }
    }

    /// Starts the vrings that ran.
    pub fn resume(&mut self) {
        if let State::Attached(session, _) = &mut self.state
            && let Err(error) = session.resume()
        {
            self.cut_off(&format!("a vring cannot go on: {error}"));
        }
    }

    /// The state of a suspended endpoint; its files are added to `files`.
    ///
    /// # Errors
    /// [`HandoverError`]; nothing has changed.
    pub fn state<'e>(&'e self, files: &mut FilesOut<'e>) -> Result<EndpointState, HandoverError> {
        let source = match &self.source {
            Source::Listen(listener, file) => SourceState::Listen {
                socket: files.add(listener.as_fd()),
                file: file.as_ref().map(|file| file.path.clone().into()),
            },
            Source::Connect(path) => SourceState::Connect(path.clone().into()),
            Source::Connected(stream) => SourceState::Connected(files.add(stream.as_fd())),
            Source::Spent => SourceState::Spent,
        };
        let attached = match &self.state {
            State::Attached(session, socket) => {
                Some(AttachedState { socket: socket.state(files), session: session.state(files)? })
            }
            _ => None,
        };
        Ok(EndpointState { source, attached })
    }

    /// The other server has it: when this endpoint is dropped, the socket's file stays.
    pub fn hand_over(&mut self) {
        self.own_file(false);
    }

    /// The other server is done with it: when this endpoint is dropped, the socket's file goes.
    pub fn take_over(&mut self) {
        self.own_file(true);
    }

    fn own_file(&mut self, is_ours: bool) {
        if let Source::Listen(_, Some(file)) = &mut self.source {
            file.own(is_ours);
        }
    }

    /// The endpoint goes on here, once [`Endpoint::take_over`] says so; the device is as it was there.
    ///
    /// A front-end that has shortened a file of its memory loses its session here as it would have there.
    ///
    /// # Errors
    /// [`HandoverError`]; the other server can go on as if nothing had been tried.
    pub fn restore(
        name: String,
        state: EndpointState,
        device: D,
        files: &mut FilesIn,
    ) -> Result<Self, HandoverError> {
        let source = match state.source {
            SourceState::Listen { socket, file } => {
                let file = file.map(|path| SocketFile::found(path.into()));
                Source::Listen(UnixListener::from(files.take(socket)?), file)
            }
            SourceState::Connect(path) => Source::Connect(path.into()),
            SourceState::Connected(stream) => Source::Connected(UnixStream::from(files.take(stream)?)),
            SourceState::Spent => Source::Spent,
        };
        let mut endpoint = Self::new(name, source, device);
        if let Some(attached) = state.attached {
            endpoint.attach_again(attached, files)?;
        }
        Ok(endpoint)
    }

    fn attach_again(&mut self, state: AttachedState, files: &mut FilesIn) -> Result<(), HandoverError> {
        let AttachedState { socket, mut session } = state;
        let memory = match session.map(self.device().max_queues(), files) {
            Err(HandoverError::Map(error @ MapError::PastEnd { .. })) => {
                warn!("{}: session ended: {error}", self.name);
                if let State::Waiting(device) = &mut self.state {
                    device.reset();
                }
                return Ok(());
            }
            other => other?,
        };
        let socket = Socket::restore(socket, Kind::Request, files)?;
        self.state = match std::mem::replace(&mut self.state, State::Moving) {
            State::Waiting(device) => State::Attached(
                Box::new(Session::restore(&self.name, device, session, memory, files)?),
                socket,
            ),
            other => other,
        };
        Ok(())
    }
}
