//! The system calls of images that have no safe wrapper: vectored I/O on guest memory, ioctls of block devices, locks
//! of open file descriptions.
#![allow(unsafe_code, reason = "these calls have no safe wrapper in a crate we use")]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use ringway_memory::GuestSlice;

use crate::job::Range;

/// The most pieces of a vectored call (`UIO_MAXIOV`).
pub(super) const MAX_PIECES: usize = 1024;

// linux/fs.h; those that `libc` does not have.
const BLKDISCARD: libc::Ioctl = 0x1277;
const BLKALIGNOFF: libc::Ioctl = 0x127a;
const BLKSECDISCARD: libc::Ioctl = 0x127d;

/// Reads the file from `offset` on to the pieces; returns how many bytes, 0 at the file's end.
pub(super) fn read(fd: BorrowedFd<'_>, pieces: &[GuestSlice<'_>], offset: u64) -> io::Result<usize> {
    let (iov, count) = (pieces.as_ptr().cast(), count(pieces)?);
    // SAFETY: a `GuestSlice` is laid out as an iovec; all are valid to write to for the call.
    transferred(|| unsafe { libc::preadv(fd.as_raw_fd(), iov, count, offset.cast_signed()) })
}

/// Writes the pieces to the file from `offset` on, onto stable storage if asked for; returns how many bytes.
pub(super) fn write(
    fd: BorrowedFd<'_>,
    pieces: &[GuestSlice<'_>],
    offset: u64,
    stable: bool,
) -> io::Result<usize> {
    let (iov, count) = (pieces.as_ptr().cast(), count(pieces)?);
    let flags = if stable { libc::RWF_DSYNC } else { 0 };
    // SAFETY: a `GuestSlice` is laid out as an iovec; all are valid to read for the call.
    transferred(|| unsafe { libc::pwritev2(fd.as_raw_fd(), iov, count, offset.cast_signed(), flags) })
}

/// Tells a block device that a range's contents are of no more use.
pub(super) fn discard(fd: BorrowedFd<'_>, range: Range) -> io::Result<()> {
    range_ioctl(fd, BLKDISCARD, range)
}

/// Makes a block device lose a range's contents, and all copies.
pub(super) fn secure_erase(fd: BorrowedFd<'_>, range: Range) -> io::Result<()> {
    range_ioctl(fd, BLKSECDISCARD, range)
}

/// A block device's minimum size of an I/O that costs no more than it must.
pub(super) fn min_io(fd: BorrowedFd<'_>) -> io::Result<u32> {
    get_u32(fd, libc::BLKIOMIN)
}

/// A block device's best size of an I/O, 0 if there is none.
pub(super) fn opt_io(fd: BorrowedFd<'_>) -> io::Result<u32> {
    get_u32(fd, libc::BLKIOOPT)
}

/// How many bytes a block device's first physical block begins before it; negative if that is not known.
pub(super) fn alignment_offset(fd: BorrowedFd<'_>) -> io::Result<i32> {
    get_u32(fd, BLKALIGNOFF).map(u32::cast_signed)
}

/// Locks a byte for the open file description, as others may too, without waiting.
pub(super) fn lock(fd: BorrowedFd<'_>, byte: i64) -> io::Result<()> {
    let request = flock(libc::F_RDLCK, byte);
    // SAFETY: F_OFD_SETLK reads a `flock`, which lives for the call.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_SETLK, &raw const request) })
}

/// Who has locked a byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    Nobody,
    /// An open file description, which may be of several processes.
    Somebody,
    Process(i32),
}

/// Who else has locked this byte.
pub(super) fn lock_holder(fd: BorrowedFd<'_>, byte: i64) -> io::Result<Holder> {
    let mut request = flock(libc::F_WRLCK, byte);
    // SAFETY: F_OFD_GETLK reads and writes a `flock`, which lives for the call.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_OFD_GETLK, &raw mut request) })?;
    Ok(match request.l_pid {
        _ if i32::from(request.l_type) == libc::F_UNLCK => Holder::Nobody,
        pid if pid > 0 => Holder::Process(pid),
        _ => Holder::Somebody,
    })
}

fn flock(kind: libc::c_int, byte: i64) -> libc::flock {
    // SAFETY: all-zero is a valid `flock`; its process id has to be 0 for these calls.
    let mut request: libc::flock = unsafe { std::mem::zeroed() };
    request.l_type = kind as libc::c_short;
    request.l_whence = libc::SEEK_SET as libc::c_short;
    request.l_start = byte;
    request.l_len = 1;
    request
}

fn range_ioctl(fd: BorrowedFd<'_>, request: libc::Ioctl, range: Range) -> io::Result<()> {
    let range = [range.offset, range.len];
    // SAFETY: the requests that this is called with read two u64, which live for the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, range.as_ptr()) })
}

fn get_u32(fd: BorrowedFd<'_>, request: libc::Ioctl) -> io::Result<u32> {
    let mut value = 0_u32;
    // SAFETY: the requests that this is called with write an int, which lives for the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut value) })?;
    Ok(value)
}

fn count(pieces: &[GuestSlice<'_>]) -> io::Result<libc::c_int> {
    libc::c_int::try_from(pieces.len()).map_err(|_| io::ErrorKind::InvalidInput.into())
}

/// The result of a transfer, begun again if a signal came before the first byte.
fn transferred(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        if let Ok(n) = usize::try_from(call()) {
            return Ok(n);
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
