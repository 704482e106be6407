//! The socket of a session, or of a channel: whole messages in and out, never waiting.
//!
//! A message is read in two steps, its header and then its payload, no byte further: file descriptors come
//! with the first byte of a header and so are never taken for those of the next message. What has arrived of
//! a message is kept until the rest does.

pub(crate) mod handover;

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use thiserror::Error;

use crate::message::{HEADER_LEN, Header, Kind, MAX_FDS, MessageError, Outgoing};

/// Room for more file descriptors than a message may have, so that too many are seen and closed.
const FDS_ROOM: usize = 32;
/// Messages that wait for the peer to read them, in bytes; one that does not read is cut off.
const MAX_UNSENT: usize = 64 * 1024;
/// File descriptors that wait with them.
const MAX_UNSENT_FDS: usize = 16;

/// Why the session's socket is of no more use.
#[derive(Debug, Error)]
pub enum SocketError {
    /// The peer closed it, between two messages.
    #[error("the peer closed the connection")]
    Closed,
    /// The peer closed it, inside a message.
    #[error("the peer closed the connection inside a message")]
    Truncated,
    /// More file descriptors than any message has.
    #[error("a message came with more than {MAX_FDS} file descriptors")]
    TooManyFds,
    /// The bytes are no message.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// The peer does not read what is sent to it.
    #[error("the peer does not read what it is sent")]
    Unread,
    /// The kernel's error.
    #[error("socket: {0}")]
    Io(#[from] io::Error),
}

impl From<Errno> for SocketError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// A message, whole.
#[derive(Debug)]
pub struct Message {
    /// Its header.
    pub header: Header,
    /// Its payload.
    pub payload: Vec<u8>,
    /// The file descriptors that came with it.
    pub fds: Vec<OwnedFd>,
}

/// A connected socket.
pub struct Socket {
    stream: UnixStream,
    /// What the peer sends.
    kind: Kind,
    head: [u8; HEADER_LEN],
    head_len: usize,
    header: Option<Header>,
    payload: Vec<u8>,
    payload_len: usize,
    fds: Vec<OwnedFd>,
    unsent: VecDeque<Outgoing>,
    /// How often bytes were received or sent.
    moved: u64,
}

impl Socket {
    /// Takes over a connected stream, on which the peer sends messages of this kind.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(stream: UnixStream, kind: Kind) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream,
            kind,
            head: [0; HEADER_LEN],
            head_len: 0,
            header: None,
            payload: Vec::new(),
            payload_len: 0,
            fds: Vec::new(),
            unsent: VecDeque::new(),
            moved: 0,
        })
    }

    /// Reads what has arrived, up to one message; `None` if that is not whole yet.
    ///
    /// # Errors
    /// [`SocketError`]; the socket is of no more use then.
    pub fn receive(&mut self) -> Result<Option<Message>, SocketError> {
        loop {
            let header = if let Some(header) = self.header {
                header
            } else {
                if self.head_len < HEADER_LEN {
                    match self.receive_head()? {
                        0 => return Ok(None),
                        n => self.head_len += n,
                    }
                    self.moved += 1;
                    continue;
                }
                let header = Header::decode(self.head, self.kind)?;
                self.payload.resize(header.payload_len(), 0);
                *self.header.insert(header)
            };
            if self.payload_len < self.payload.len() {
                match self.receive_payload()? {
                    0 => return Ok(None),
                    n => self.payload_len += n,
                }
                self.moved += 1;
                continue;
            }
            self.header = None;
            self.head_len = 0;
            self.payload_len = 0;
            let payload = std::mem::take(&mut self.payload);
            return Ok(Some(Message { header, payload, fds: std::mem::take(&mut self.fds) }));
        }
    }

    /// Reads bytes of a header, with file descriptors; 0 if there is nothing now.
    fn receive_head(&mut self) -> Result<usize, SocketError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FDS_ROOM))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut bytes = [IoSliceMut::new(&mut self.head[self.head_len..])];
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = match rustix::net::recvmsg(&self.stream, &mut bytes, &mut control, flags) {
            Err(Errno::AGAIN | Errno::INTR) => return Ok(0),
            other => other?,
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                self.fds.extend(fds);
            }
        }
        if received.flags.contains(ReturnFlags::CTRUNC) || self.fds.len() > MAX_FDS {
            return Err(SocketError::TooManyFds);
        }
        match received.bytes {
            0 if self.head_len == 0 => Err(SocketError::Closed),
            0 => Err(SocketError::Truncated),
            n => Ok(n),
        }
    }

    /// Reads bytes of a payload; 0 if there is nothing now.
    fn receive_payload(&mut self) -> Result<usize, SocketError> {
        match rustix::net::recv(&self.stream, &mut self.payload[self.payload_len..], RecvFlags::DONTWAIT) {
            Err(Errno::AGAIN | Errno::INTR) => Ok(0),
            Err(other) => Err(other.into()),
            Ok((0, _)) => Err(SocketError::Truncated),
            Ok((n, _)) => Ok(n),
        }
    }

    /// Sends a message, or keeps what the socket does not take now for [`Socket::flush`].
    ///
    /// # Errors
    /// [`SocketError::Unread`] if too much has been kept already, [`SocketError::Io`].
    pub fn send(&mut self, message: impl Into<Outgoing>) -> Result<(), SocketError> {
        let message = message.into();
        let (bytes, fds) = self.unsent.iter().fold((0, 0), |(b, f), m| (b + m.bytes.len(), f + m.fds.len()));
        if bytes + message.bytes.len() > MAX_UNSENT || fds + message.fds.len() > MAX_UNSENT_FDS {
            return Err(SocketError::Unread);
        }
        self.unsent.push_back(message);
        self.flush()
    }

    /// Sends what is kept.
    ///
    /// # Errors
    /// [`SocketError::Io`].
    pub fn flush(&mut self) -> Result<(), SocketError> {
        while let Some(message) = self.unsent.front_mut() {
            match send(&self.stream, message) {
                Ok(n) => {
                    self.moved += 1;
                    message.bytes.drain(..n);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(other) => return Err(other.into()),
            }
            // They went with the first byte.
            message.fds.clear();
            if message.bytes.is_empty() {
                self.unsent.pop_front();
            }
        }
        Ok(())
    }

    /// Whether the peer has closed its end; what it sent before may still be unread.
    pub fn has_hung_up(&self) -> bool {
        let mut fds = [PollFd::new(&self.stream, PollFlags::empty())];
        let no_wait = Timespec { tv_sec: 0, tv_nsec: 0 };
        matches!(poll(&mut fds, Some(&no_wait)), Ok(1..)) && fds[0].revents().contains(PollFlags::HUP)
    }

    /// If a message has arrived or been sent only in part: a number that changes whenever more of one is.
    pub fn halfway(&self) -> Option<u64> {
        let is_halfway = self.head_len > 0 || self.has_unsent();
        is_halfway.then_some(self.moved)
    }

    /// Whether messages are kept, to be sent when the socket is writable.
    pub fn has_unsent(&self) -> bool {
        !self.unsent.is_empty()
    }
}

/// Connects without waiting, not even for a listener whose backlog is full.
pub(crate) fn connect(path: &Path) -> Result<UnixStream, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket.into())
}

/// Sends as much of a message as the socket takes now; returns how many bytes.
fn send(stream: &UnixStream, message: &Outgoing) -> Result<usize, Errno> {
    let fds: Vec<_> = message.fds.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(&fds)) {
        return Err(Errno::TOOMANYREFS);
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    rustix::net::sendmsg(stream, &[IoSlice::new(&message.bytes)], &mut control, flags)
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}
