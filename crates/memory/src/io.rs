//! Guest memory given to the kernel as it stands: `writev` without a copy of ours.

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
