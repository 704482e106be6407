//! A pipe, a socket or a file of the front-end's that we read or write without ever being made to wait.
//!
//! A file descriptor that was passed to us shares its flags with the front-end, which may change them at any time.
//! So a pipe is opened anew, with flags of our own, and a socket is asked for each call not to wait.

pub(crate) mod handover;

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

/// See the module.
#[derive(Debug)]
pub(crate) enum NonBlocking {
    /// A pipe opened anew, or a file that nobody waits for.
    File(OwnedFd),
    /// A socket.
    Socket(OwnedFd),
}

impl NonBlocking {
    /// Takes over a pipe, a socket or a regular file; `access` is `RDONLY` or `WRONLY`.
    ///
    /// # Errors
    /// The kernel's; `EINVAL` for any other file.
    pub(crate) fn new(fd: OwnedFd, access: OFlags) -> Result<Self, Errno> {
        match FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) {
            FileType::Fifo => {
                let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
                let flags = access | OFlags::NONBLOCK | OFlags::CLOEXEC;
                Ok(Self::File(rustix::fs::open(path, flags, Mode::empty())?))
            }
            FileType::Socket => Ok(Self::Socket(fd)),
            FileType::RegularFile => Ok(Self::File(fd)),
            _ => Err(Errno::INVAL),
        }
    }

    /// Writes the start of `bytes`; returns how many.
    pub(crate) fn write(&self, bytes: &[u8]) -> Result<usize, Errno> {
        match self {
            Self::File(fd) => rustix::io::write(fd, bytes),
            Self::Socket(fd) => rustix::net::send(fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL),
        }
    }

    /// Reads to the start of `bytes`; returns how many, 0 at the end.
    pub(crate) fn read(&self, bytes: &mut [u8]) -> Result<usize, Errno> {
        match self {
            Self::File(fd) => rustix::io::read(fd, bytes),
            Self::Socket(fd) => Ok(rustix::net::recv(fd, bytes, RecvFlags::DONTWAIT)?.1),
        }
    }

    pub(crate) fn try_clone(&self) -> std::io::Result<Self> {
        Ok(match self {
            Self::File(fd) => Self::File(fd.try_clone()?),
            Self::Socket(fd) => Self::Socket(fd.try_clone()?),
        })
    }
}

impl AsFd for NonBlocking {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::File(fd) | Self::Socket(fd) => fd.as_fd(),
        }
    }
}
