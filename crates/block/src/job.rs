//! What is done elsewhere than in a queue's own thread, and how it comes back.
//!
//! ```text
//!   queue's thread ──Job──► Executor ──► … ──Job::done──► Mailbox ──► queue's thread
//! ```
//!
//! A job owns what its request needs, the guest's buffer included, until it is done. It is done once: dropped before, it
//! has failed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use ringway_memory::{GuestBuf, Kept};
use ringway_vhost::Signal;

/// Bytes of a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub offset: u64,
    /// How many.
    pub len: u64,
}

impl Range {
    /// The byte behind the last.
    pub fn end(self) -> u64 {
        self.offset.saturating_add(self.len)
    }
}

/// What is to be done. That it is inside of the disk, aligned and allowed was found out before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Fill the buffer with the disk's bytes from here on.
    Read {
        /// The first byte.
        offset: u64,
    },
    /// Write the buffer to the disk from here on.
    Write {
        /// The first byte.
        offset: u64,
        /// Whether it is on stable storage before it is done.
        stable: bool,
    },
    /// All writes that were done before are on stable storage once this is done.
    Flush,
    /// The range's contents are of no more use.
    Discard(Range),
    /// The range's contents, and all copies of them, are to be lost.
    SecureErase(Range),
    /// The range reads as zeroes.
    WriteZeroes {
        /// Where.
        range: Range,
        /// Whether its space may be given back.
        unmap: bool,
    },
}

impl Operation {
    /// Carries it out, on this buffer if it is to read or to write.
    ///
    /// # Errors
    /// The image's.
    pub fn carry_out(self, image: &dyn BlockingImage, data: GuestBuf<'_>) -> io::Result<()> {
        match self {
            Self::Read { offset } => image.read(offset, data),
            Self::Write { offset, stable } => image.write(offset, data, stable),
            Self::Flush => image.flush(),
            Self::Discard(range) => image.discard(range),
            Self::SecureErase(range) => image.secure_erase(range),
            Self::WriteZeroes { range, unmap } => image.write_zeroes(range, unmap),
        }
    }

    /// What is left of it when the first `done` bytes of its buffer were transferred.
    #[must_use]
    pub(crate) fn behind(self, done: u64) -> Self {
        match self {
            Self::Read { offset } => Self::Read { offset: offset + done },
            Self::Write { offset, stable } => Self::Write { offset: offset + done, stable },
            other => other,
        }
    }
}

/// Carries out jobs, any number at once and in any order.
pub trait Executor: Send + Sync {
    /// Takes all of these jobs. Never waits.
    fn submit(&self, jobs: &mut Vec<Job>);

    /// A queue is to stop, and waits no longer for its jobs: those that [are abandoned](Job::is_abandoned) are to be
    /// done soon, with whatever result.
    fn abandon(&self) {}
}

/// An image whose calls block.
pub trait BlockingImage: Send + Sync {
    /// Fills the buffer with the bytes from `offset` on.
    ///
    /// # Errors
    /// The storage's; the buffer may have been written to.
    fn read(&self, offset: u64, to: GuestBuf<'_>) -> io::Result<()>;

    /// Writes the buffer to the bytes from `offset` on; they are on stable storage when it returns if that is asked for.
    ///
    /// # Errors
    /// The storage's; some may have been written.
    fn write(&self, offset: u64, from: GuestBuf<'_>, stable: bool) -> io::Result<()>;

    /// Puts all writes that have returned on stable storage.
    ///
    /// # Errors
    /// The storage's; what was written may be lost.
    fn flush(&self) -> io::Result<()>;

    /// Gives a range's space back, or does nothing.
    ///
    /// # Errors
    /// The storage's; [`Unsupported`](io::ErrorKind::Unsupported) if it never can.
    fn discard(&self, range: Range) -> io::Result<()>;

    /// Makes a range read as zeroes.
    ///
    /// # Errors
    /// As [`BlockingImage::discard`].
    fn write_zeroes(&self, range: Range, unmap: bool) -> io::Result<()>;

    /// Makes a range's contents unrecoverable.
    ///
    /// # Errors
    /// As [`BlockingImage::discard`].
    fn secure_erase(&self, range: Range) -> io::Result<()>;
}

/// A request that is carried out elsewhere.
pub struct Job {
    /// Gone once it is done.
    work: Option<Work>,
    mailbox: Arc<Mailbox>,
}

struct Work {
    token: u32,
    operation: Operation,
    data: Kept,
}

impl Job {
    /// A request on `data`, of a queue that knows it by `token`.
    pub fn new(token: u32, operation: Operation, data: Kept, mailbox: &Arc<Mailbox>) -> Self {
        Self { work: Some(Work { token, operation, data }), mailbox: Arc::clone(mailbox) }
    }

    fn work(&self) -> &Work {
        self.work.as_ref().expect("only `done` takes it, with the job")
    }

    /// What is to be done.
    pub fn operation(&self) -> Operation {
        self.work().operation
    }

    /// The guest's buffer to read from or write to; empty for other operations.
    pub fn data(&self) -> GuestBuf<'_> {
        self.work().data.buf()
    }

    /// Whether its queue has given up on it.
    pub fn is_abandoned(&self) -> bool {
        self.mailbox.is_abandoned.load(Ordering::Relaxed)
    }

    /// It is done, with this result.
    pub fn done(mut self, result: io::Result<()>) {
        self.finish(result);
    }

    /// Carries it out.
    pub fn run(self, image: &dyn BlockingImage) {
        let result = self.operation().carry_out(image, self.data());
        self.done(result);
    }

    fn finish(&mut self, result: io::Result<()>) {
        if let Some(Work { token, data, .. }) = self.work.take() {
            self.mailbox.put(Done { token, data, result });
        }
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.finish(Err(io::ErrorKind::BrokenPipe.into()));
    }
}

/// A job that is done.
pub struct Done {
    /// How its queue knows it.
    pub token: u32,
    /// The guest's buffer.
    pub data: Kept,
    /// How it went.
    pub result: io::Result<()>,
}

/// Where a queue finds its jobs again.
pub struct Mailbox {
    done: Mutex<Vec<Done>>,
    /// There is something in `done`; looked at without the lock.
    has_mail: AtomicBool,
    is_abandoned: AtomicBool,
    signal: Signal,
}

impl Mailbox {
    /// An empty one.
    ///
    /// # Errors
    /// The kernel's, if it has no more file descriptors.
    pub fn new() -> io::Result<Self> {
        let signal = Signal::new()?;
        let (has_mail, is_abandoned) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Self { done: Mutex::default(), has_mail, is_abandoned, signal })
    }

    fn put(&self, done: Done) {
        let mut all = self.lock();
        all.push(done);
        let is_first = all.len() == 1;
        self.has_mail.store(true, Ordering::Release);
        drop(all);
        if is_first {
            self.ring();
        }
    }

    /// Takes what is done by now.
    pub fn take(&self) -> Vec<Done> {
        if !self.has_mail.load(Ordering::Acquire) {
            return Vec::new();
        }
        let mut all = self.lock();
        self.has_mail.store(false, Ordering::Relaxed);
        std::mem::take(&mut *all)
    }

    /// Wakes whoever waits for [`Mailbox::as_fd`].
    pub fn ring(&self) {
        self.signal.raise();
    }

    /// Tells all jobs of this queue that it waits no longer.
    pub fn abandon(&self) {
        self.is_abandoned.store(true, Ordering::Relaxed);
    }

    /// Whether it does not.
    pub fn is_abandoned(&self) -> bool {
        self.is_abandoned.load(Ordering::Relaxed)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Done>> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Becomes readable anew when the first of some jobs is done; it need not be read by who watches for edges.
impl AsFd for Mailbox {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.signal.as_fd()
    }
}
