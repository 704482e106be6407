//! Locks on an image's file, in the layout that QEMU and its tools use, so that each refuses what would garble the other's
//! image.
//!
//! ```text
//!   byte 100 + p   locked by who uses the image in the way p
//!   byte 200 + p   locked by who does not stand others using it in the way p
//!
//!   p = 0   reads, and wants to find what makes sense      1   writes      3   changes the size
//! ```
//!
//! All locks can be shared: a byte says that there is somebody, not who. Who wants to use an image locks its bytes first and then
//! looks whether others have locked those that contradict: of two that come at once at most one stays.
//!
//! The locks are of the open file description and not of the process. The kernel's requests in flight hold it, too: when the locks
//! of a server that was killed are gone, no write of it can land any more. That is why to wait for a while.

use std::io;
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

use super::sys::{self, Holder};

const READ: i64 = 0;
const WRITE: i64 = 1;
const RESIZE: i64 = 3;

const USES: i64 = 100;
const REFUSES: i64 = 200;

/// How long to wait for another process that goes away.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_millis(5);

/// How an image is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Usage {
    /// It is read; others may read it.
    Read,
    /// It is written to; others may do nothing.
    Write,
    /// It is written to, and so others may.
    WriteShared,
}

impl Usage {
    fn uses(self) -> &'static [i64] {
        match self {
            Self::Read => &[READ],
            Self::Write | Self::WriteShared => &[READ, WRITE, RESIZE],
        }
    }

    fn refuses(self) -> &'static [i64] {
        match self {
            Self::Read | Self::Write => &[WRITE, RESIZE],
            Self::WriteShared => &[],
        }
    }
}

/// Attempts to get hold of something that somebody may have who is about to let go of it. `on_wait` is called once,
/// before the first wait.
///
/// # Errors
/// Those of `attempt`; who has it if they do not go.
pub(super) fn patiently<T, E>(
    attempt: impl Fn() -> Result<Result<T, Holder>, E>,
    on_wait: impl FnOnce(),
) -> Result<Result<T, Holder>, E> {
    let deadline = Instant::now() + PATIENCE;
    let mut on_wait = Some(on_wait);
    loop {
        let result = attempt()?;
        if result.is_ok() || Instant::now() >= deadline {
            return Ok(result);
        }
        if let Some(on_wait) = on_wait.take() {
            on_wait();
        }
        // Two that wait do not keep step.
        std::thread::sleep(RETRY + Duration::from_millis(u64::from(std::process::id() % 4)));
    }
}

/// Takes the locks, and says who is in the way if somebody is; what was locked then is let go of when the file is closed.
///
/// # Errors
/// The kernel's.
pub(super) fn acquire(fd: BorrowedFd<'_>, usage: Usage) -> io::Result<Option<Holder>> {
    let uses = usage.uses().iter().map(|way| (USES + way, REFUSES + way));
    let refuses = usage.refuses().iter().map(|way| (REFUSES + way, USES + way));
    let all = || uses.clone().chain(refuses.clone());
    for (byte, _) in all() {
        match sys::lock(fd, byte) {
            Ok(()) => {}
            // Somebody has it for himself, which is not how it is done, and all the same.
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return sys::lock_holder(fd, byte).map(Some),
            Err(e) => return Err(e),
        }
    }
    for (_, contradicts) in all() {
        let holder = sys::lock_holder(fd, contradicts)?;
        if holder != Holder::Nobody {
            return Ok(Some(holder));
        }
    }
    Ok(None)
}
