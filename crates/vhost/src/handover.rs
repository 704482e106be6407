//! What a server hands to the one that takes its place: plain data, the file descriptors that belong to it, and
//! the socket between the two processes.
//!
//! ```text
//! magic u32 | version u32 | length u32 | files u32 | a byte for each 253 files | JSON [length]
//!                                                    the files come with it
//! ```
//!
//! Data names a file by its place among the message's ([`FdIndex`]). Fields that are not known are passed over, so
//! that an older and a newer program understand each other; what would be wrong to pass over belongs to a feature
//! that was acked, and features that are not offered are refused. A change that this does not cover has a new
//! version. Both ends are programs of ours, and yet nothing that is read is taken to be right.
//!
//! Not here: which states there are (`handover` of each module that has one), when who sends what (the program).

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use ringway_memory::{MapError, MemoryError};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use thiserror::Error;
use zerocopy::IntoBytes;
use zerocopy::little_endian::U32;

use crate::backend::RequestError;
use crate::message::MessageError;

pub use crate::backend::handover::SessionState;
pub use crate::endpoint::handover::EndpointState;

/// The version of what is handed over.
pub const VERSION: u32 = 2;
/// "RWUP" in memory.
const MAGIC: u32 = u32::from_le_bytes(*b"RWUP");
/// The most file descriptors that the kernel takes with one byte (`SCM_MAX_FD`).
const FILES_PER_BYTE: usize = 253;
/// The longest message; a port's is less than 1 MiB.
const MAX_LEN: u32 = 1 << 30;
/// The most files of a message: as many as a process can have open by default, the hard limit that is.
const MAX_FILES: u32 = 1 << 20;

/// Why nothing was handed over.
#[derive(Debug, Error)]
pub enum HandoverError {
    /// The other process closed its end, as it does when it ends.
    #[error("the other process closed the connection")]
    Closed,
    /// The other process does not answer.
    #[error("the other process took too long")]
    TimedOut,
    /// Not what this module sends.
    #[error("what the other process sent is no message of a hand-over")]
    NotAHandover,
    /// Another version.
    #[error("the other process speaks version {0} of the hand-over, this one version {VERSION}")]
    Version(u32),
    /// The data has no sense.
    #[error("the data handed over cannot be read: {0}")]
    Data(#[from] serde_json::Error),
    /// A file is named that did not come, or twice.
    #[error("file {0} of those handed over is not there")]
    NoFile(u32),
    /// A value that cannot be.
    #[error("{0} handed over cannot be right")]
    BadValue(&'static str),
    /// Features that the front-end acked are not offered any more.
    #[error("{kind} features {features:#x} are in use, and not offered any more")]
    Features {
        /// Virtio or protocol.
        kind: &'static str,
        /// Those that are missing.
        features: u64,
    },
    /// Memory that cannot be mapped.
    #[error(transparent)]
    Map(#[from] MapError),
    /// Memory that overlaps.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A vring that cannot go on.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// The part of a message that had arrived.
    #[error(transparent)]
    Message(#[from] MessageError),
    /// Something that cannot be handed over while it lasts.
    #[error("{0} is under way")]
    UnderWay(&'static str),
    /// The kernel's error.
    #[error("socket: {0}")]
    Io(io::Error),
}

impl From<io::Error> for HandoverError {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind as Kind;
        match error.kind() {
            Kind::WouldBlock | Kind::TimedOut => Self::TimedOut,
            Kind::UnexpectedEof | Kind::BrokenPipe | Kind::ConnectionReset => Self::Closed,
            _ => Self::Io(error),
        }
    }
}

impl From<Errno> for HandoverError {
    fn from(errno: Errno) -> Self {
        io::Error::from(errno).into()
    }
}

/// A file's place among those of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct FdIndex(u32);

/// The files of a message to be sent; they stay open here.
#[derive(Default)]
pub struct FilesOut<'f>(Vec<FileOut<'f>>);

enum FileOut<'f> {
    Borrowed(BorrowedFd<'f>),
    Owned(OwnedFd),
}

impl AsFd for FileOut<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Borrowed(fd) => *fd,
            Self::Owned(fd) => fd.as_fd(),
        }
    }
}

impl<'f> FilesOut<'f> {
    /// Adds a file.
    pub fn add(&mut self, fd: BorrowedFd<'f>) -> FdIndex {
        self.push(FileOut::Borrowed(fd))
    }

    /// Adds a file that is closed here once it was sent.
    pub(crate) fn add_owned(&mut self, fd: OwnedFd) -> FdIndex {
        self.push(FileOut::Owned(fd))
    }

    fn push(&mut self, file: FileOut<'f>) -> FdIndex {
        self.0.push(file);
        FdIndex(self.0.len() as u32 - 1)
    }

    /// Adds files.
    pub(crate) fn add_all(&mut self, fds: &'f [OwnedFd]) -> Vec<FdIndex> {
        fds.iter().map(|fd| self.add(fd.as_fd())).collect()
    }
}

/// The files of a message received. What nobody takes is closed.
#[derive(Default)]
pub struct FilesIn(Vec<Option<OwnedFd>>);

impl FilesIn {
    /// Takes a file.
    ///
    /// # Errors
    /// [`HandoverError::NoFile`] if it did not come, or was taken before.
    pub fn take(&mut self, index: FdIndex) -> Result<OwnedFd, HandoverError> {
        let file = self.0.get_mut(index.0 as usize).and_then(Option::take);
        file.ok_or(HandoverError::NoFile(index.0))
    }

    /// Takes files.
    pub(crate) fn take_all(&mut self, indices: Vec<FdIndex>) -> Result<Vec<OwnedFd>, HandoverError> {
        indices.into_iter().map(|index| self.take(index)).collect()
    }
}

/// One end of the socket between two servers.
pub struct Link(UnixStream);

impl Link {
    /// Two ends that belong together.
    ///
    /// # Errors
    /// The kernel's.
    pub fn pair() -> io::Result<(Self, OwnedFd)> {
        let (ours, theirs) = UnixStream::pair()?;
        Ok((Self(ours), theirs.into()))
    }

    /// Takes an end over.
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket.into())
    }

    /// Sends a message and its files.
    ///
    /// # Errors
    /// [`HandoverError`], also if it is not taken by `deadline`.
    pub fn send(
        &self,
        message: &impl Serialize,
        files: &FilesOut<'_>,
        deadline: Instant,
    ) -> Result<(), HandoverError> {
        let data = serde_json::to_vec(message)?;
        let head = [MAGIC, VERSION, data.len() as u32, files.0.len() as u32].map(U32::new);
        self.write(head.as_bytes(), deadline)?;
        let files: Vec<_> = files.0.iter().map(AsFd::as_fd).collect();
        for files in files.chunks(FILES_PER_BYTE) {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_PER_BYTE))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !control.push(SendAncillaryMessage::ScmRights(files)) {
                return Err(HandoverError::BadValue("the number of files"));
            }
            self.0.set_write_timeout(Some(left(deadline)?))?;
            let byte = [IoSlice::new(&[0])];
            retry_on_intr(|| rustix::net::sendmsg(&self.0, &byte, &mut control, SendFlags::NOSIGNAL))?;
        }
        self.write(&data, deadline)
    }

    /// Waits for a message and its files.
    ///
    /// # Errors
    /// [`HandoverError`], also if it is not whole by `deadline`.
    pub fn receive<T: DeserializeOwned>(&self, deadline: Instant) -> Result<(T, FilesIn), HandoverError> {
        let mut head = [U32::ZERO; 4];
        self.read(head.as_mut_bytes(), deadline)?;
        let [magic, version, len, count] = head.map(U32::get);
        if magic != MAGIC {
            return Err(HandoverError::NotAHandover);
        }
        if version != VERSION {
            return Err(HandoverError::Version(version));
        }
        if len > MAX_LEN || count > MAX_FILES {
            return Err(HandoverError::NotAHandover);
        }
        let mut files = Vec::new();
        while files.len() < count as usize {
            self.receive_files(&mut files, deadline)?;
        }
        let mut data = Vec::new();
        while data.len() < len as usize {
            let from = data.len();
            data.resize((from + (1 << 16)).min(len as usize), 0);
            self.read(&mut data[from..], deadline)?;
        }
        Ok((serde_json::from_slice(&data)?, FilesIn(files)))
    }

    /// Receives the files of one byte.
    fn receive_files(
        &self,
        files: &mut Vec<Option<OwnedFd>>,
        deadline: Instant,
    ) -> Result<(), HandoverError> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(FILES_PER_BYTE))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut byte = [0];
        self.0.set_read_timeout(Some(left(deadline)?))?;
        let received = retry_on_intr(|| {
            let mut bytes = [IoSliceMut::new(&mut byte)];
            rustix::net::recvmsg(&self.0, &mut bytes, &mut control, RecvFlags::CMSG_CLOEXEC)
        })?;
        let before = files.len();
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = message {
                files.extend(fds.map(Some));
            }
        }
        match received.bytes {
            0 => Err(HandoverError::Closed),
            // Fewer than were sent: this process may not open as many.
            _ if received.flags.contains(ReturnFlags::CTRUNC) => Err(Errno::MFILE.into()),
            _ if files.len() == before => Err(HandoverError::NotAHandover),
            _ => Ok(()),
        }
    }

    fn write(&self, mut bytes: &[u8], deadline: Instant) -> Result<(), HandoverError> {
        while !bytes.is_empty() {
            self.0.set_write_timeout(Some(left(deadline)?))?;
            match (&self.0).write(bytes) {
                Ok(n) => bytes = &bytes[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn read(&self, mut bytes: &mut [u8], deadline: Instant) -> Result<(), HandoverError> {
        while !bytes.is_empty() {
            self.0.set_read_timeout(Some(left(deadline)?))?;
            match (&self.0).read(bytes) {
                Ok(0) => return Err(HandoverError::Closed),
                Ok(n) => bytes = &mut bytes[n..],
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// What is left of the time; it is not 0, which would mean for ever.
fn left(deadline: Instant) -> Result<Duration, HandoverError> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(HandoverError::TimedOut) } else { Ok(left) }
}

#[cfg(test)]
#[path = "handover_tests.rs"]
mod tests;
