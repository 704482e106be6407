//! Sockets inherited from the program that started this one, by their number (`--fd`, and in an upgrade).
#![allow(unsafe_code, reason = "a number from outside becomes a file descriptor, once")]

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use anyhow::{Context, Result, bail};
use ringway_vhost::endpoint::Source;

/// The socket with this number, listening or connected.
pub(crate) fn socket(number: i32) -> Result<Source> {
    if number < 0 {
        bail!("--fd={number}: a file descriptor's number is not negative");
    }
    // SAFETY: the number is borrowed for the next call only, which checks that it is open; nothing closes it
    // meanwhile, since this is the program's only thread yet.
    let inherited = unsafe { BorrowedFd::borrow_raw(number) };
    let fd: OwnedFd = rustix::io::fcntl_dupfd_cloexec(inherited, 3)
        .with_context(|| format!("--fd={number}: no such file descriptor was inherited"))?;
    let listens = rustix::net::sockopt::socket_acceptconn(&fd)
        .with_context(|| format!("--fd={number}: it is not a socket"))?;
    if listens {
        let listener = UnixListener::from(fd);
        listener.set_nonblocking(true).with_context(|| format!("--fd={number}"))?;
        Ok(Source::Listen(listener, None))
    } else {
        Ok(Source::Connected(UnixStream::from(fd)))
    }
}

/// The socket with this number, which the server that this one replaces made for this one alone. Nothing else here knows
/// of it, and it is not passed on.
pub(crate) fn take(number: i32) -> Result<OwnedFd> {
    if number < 3 {
        bail!("file descriptor {number} is none that an upgrade hands over");
    }
    // SAFETY: as above.
    let inherited = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::net::sockopt::socket_type(inherited)
        .with_context(|| format!("no socket was inherited as file descriptor {number}"))?;
    // SAFETY: it is open, and nobody else's: the standard streams apart, this program has opened nothing yet.
    let socket = unsafe { OwnedFd::from_raw_fd(number) };
    rustix::io::fcntl_setfd(&socket, rustix::io::FdFlags::CLOEXEC)?;
    Ok(socket)
}
