//! Guest memory given to the kernel as it stands: `writev`, and sockets, without a copy of ours; and given back to it.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use crate::{GuestBuf, GuestSlice};

/// The most pieces one call takes (`UIO_MAXIOV` allows more, frames of that many pieces are nobody's).
pub const MAX_PIECES: usize = 256;

/// Writes `header` and then `frame` to `fd` in one system call.
///
/// # Errors
/// The kernel's. `InvalidInput` if the frame has [`MAX_PIECES`] or more. `EFAULT` if the peer took the memory
/// away.
pub fn write_frame(fd: BorrowedFd<'_>, header: &mut [u8], frame: GuestBuf<'_>) -> io::Result<usize> {
    let header = GuestSlice::from_mut(header);
    let mut pieces = [header; MAX_PIECES];
    let mut count = 1;
    for piece in frame.pieces() {
        *pieces.get_mut(count).ok_or(io::ErrorKind::InvalidInput)? = piece;
        count += 1;
    }
    let iovcnt = i32::try_from(count).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: a `GuestSlice` is laid out as an iovec; the first `count` are set and valid for the call.
    let n = unsafe { libc::writev(fd.as_raw_fd(), pieces.as_ptr().cast(), iovcnt) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Sends the start of these pieces to the stream socket `fd`, as much as it takes at once; returns how many bytes. Of more
/// than [`MAX_PIECES`] pieces these are sent.
///
/// # Errors
/// The kernel's. `WouldBlock` if it takes nothing now. `EFAULT` if the peer took the memory away.
pub fn send(fd: BorrowedFd<'_>, pieces: &[GuestSlice<'_>]) -> io::Result<usize> {
    let message = message(pieces);
    // SAFETY: the message and its pieces are valid for the call, which only reads them.
    let n =
        unsafe { libc::sendmsg(fd.as_raw_fd(), &raw const message, libc::MSG_DONTWAIT | libc::MSG_NOSIGNAL) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// Receives from the stream socket `fd` into these pieces, as much as there is; returns how many bytes, 0 at the stream's end.
/// Of more than [`MAX_PIECES`] pieces these are filled.
///
/// # Errors
/// The kernel's. `WouldBlock` if there is nothing now. `EFAULT` if the peer took the memory away; nothing is lost then.
pub fn receive(fd: BorrowedFd<'_>, pieces: &[GuestSlice<'_>]) -> io::Result<usize> {
    let mut message = message(pieces);
    // SAFETY: the message is valid for the call. A `GuestSlice` is memory that others may write to.
    let n = unsafe { libc::recvmsg(fd.as_raw_fd(), &raw mut message, libc::MSG_DONTWAIT) };
    usize::try_from(n).map_err(|_| io::Error::last_os_error())
}

/// A message of the first [`MAX_PIECES`] pieces, and no address or ancillary data.
fn message(pieces: &[GuestSlice<'_>]) -> libc::msghdr {
    // SAFETY: all zeroes is a message of nothing.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    // A `GuestSlice` is laid out as an iovec.
    message.msg_iov = pieces.as_ptr().cast_mut().cast();
    message.msg_iovlen = pieces.len().min(MAX_PIECES) as _;
    message
}

/// Gives these bytes back to the host (`MADV_REMOVE`): the pages leave the peer's file, and whoever reads them finds
/// zeroes. They begin and end at a page's edge.
///
/// # Errors
/// The kernel's. `InvalidInput` for a part of a page, huge ones too, and for memory that is no file's. `Unsupported` if the
/// file system cannot do it.
pub fn remove(bytes: GuestSlice<'_>) -> io::Result<()> {
    // SAFETY: it asks for a number.
    let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    // The kernel would take the rest of the last page as well.
    if usize::try_from(page).is_ok_and(|page| !bytes.len().is_multiple_of(page)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: the range is mapped for the call. The mapping stays, its pages become others: who reads memory that a peer
    // writes to expects anything there. Of our own memory, which `GuestSlice::from_mut` lends, the kernel takes none: it
    // is no shared file.
    let result = unsafe { libc::madvise(bytes.as_ptr().cast(), bytes.len(), libc::MADV_REMOVE) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}
