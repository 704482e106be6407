//! A socket as plain data: what has arrived of a message, and what the peer has yet to read.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use serde::{Deserialize, Serialize};

use super::Socket;
use crate::handover::{FdIndex, FilesIn, FilesOut, HandoverError};
use crate::message::{HEADER_LEN, Header, Kind, MAX_FDS, Outgoing};

/// A socket between two moments at which it was ready.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct SocketState {
    stream: FdIndex,
    arrived: Vec<u8>,
    fds: Vec<FdIndex>,
    unsent: Vec<Unsent>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Unsent {
    bytes: Vec<u8>,
    fds: Vec<FdIndex>,
}

impl Socket {
    /// Its state; its files are added to `files`.
    pub(crate) fn state<'s>(&'s self, files: &mut FilesOut<'s>) -> SocketState {
        SocketState {
            stream: files.add(self.stream.as_fd()),
            arrived: self.arrived(),
            fds: files.add_all(&self.fds),
            unsent: self
                .unsent
                .iter()
                .map(|message| Unsent { bytes: message.bytes.clone(), fds: files.add_all(&message.fds) })
                .collect(),
        }
    }

    /// What has arrived of a message: its header, then its payload.
    pub(crate) fn arrived(&self) -> Vec<u8> {
        [&self.head[..self.head_len], &self.payload[..self.payload_len]].concat()
    }

    /// What waits for room, without files.
    pub(crate) fn unsent(&self) -> Vec<Vec<u8>> {
        self.unsent.iter().map(|message| message.bytes.clone()).collect()
    }

    /// The socket goes on here; on it come messages of this kind.
    pub(crate) fn restore(
        state: SocketState,
        kind: Kind,
        files: &mut FilesIn,
    ) -> Result<Self, HandoverError> {
        let SocketState { stream, arrived, fds, unsent } = state;
        if fds.len() > MAX_FDS || unsent.iter().any(|message| message.fds.len() > MAX_FDS) {
            return Err(HandoverError::BadValue("the files of a message"));
        }
        let stream = UnixStream::from(files.take(stream)?);
        let mut out = Vec::new();
        for Unsent { bytes, fds } in unsent {
            out.push(Outgoing { bytes, fds: files.take_all(fds)? });
        }
        let mut socket = Self::with(stream, kind, &arrived, out)?;
        socket.fds = files.take_all(fds)?;
        Ok(socket)
    }

    /// A socket on which so much has arrived of a message, and these wait for room.
    pub(crate) fn with(
        stream: UnixStream,
        kind: Kind,
        arrived: &[u8],
        unsent: Vec<Outgoing>,
    ) -> Result<Self, HandoverError> {
        let mut socket = Self::new(stream, kind)?;
        let (head, payload) = arrived.split_at(arrived.len().min(HEADER_LEN));
        socket.head[..head.len()].copy_from_slice(head);
        socket.head_len = head.len();
        if head.len() == HEADER_LEN {
            let header = Header::decode(socket.head, kind)?;
            socket.payload = payload.to_vec();
            socket.payload.resize(header.payload_len(), 0);
            socket.payload_len = payload.len();
            socket.header = Some(header);
        }
        if socket.payload_len > socket.payload.len() {
            return Err(HandoverError::BadValue("a part of a message"));
        }
        socket.unsent = unsent.into();
        Ok(socket)
    }
}
