//! Sockets inherited from the program that started this one, by their number (`--fd`).
#![allow(unsafe_code, reason = "a number from the command line becomes a file descriptor, once")]

use std::os::fd::{BorrowedFd, OwnedFd};
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
