//! How one queue's requests are carried out, and what its thread sleeps on.
//!
//! | way | reads and writes | flushes | the rest | sleeps in |
//! |---|---|---|---|---|
//! | here | at once | at once | at once | `epoll_wait` |
//! | file | `io_uring` | `io_uring`, past the page cache; else jobs | jobs | `io_uring_enter` |
//! | elsewhere | jobs | jobs | jobs | `epoll_wait` |
//!
//! What the kernel does not take from `io_uring`, buffers that are not aligned as the file wants them above all, becomes a job
//! as well.

mod uring;

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use ringway_memory::{GuestBuf, Kept};
use rustix::event::{Timespec, epoll};
use rustix::fs::FileType;
use rustix::io::Errno;

use self::uring::{Completion, Uring};
use crate::image::Way;
use crate::job::{BlockingImage, Executor, Job, Mailbox, Operation, Range};

/// A request that is done: how its queue knows it, its buffer, and how it went.
pub(crate) struct Finished {
    pub(crate) token: u32,
    pub(crate) data: Kept,
    pub(crate) result: io::Result<()>,
}

enum Means {
    Here(Arc<dyn BlockingImage>),
    /// With what the ring is doing, by token: to go on after a part of it.
    File {
        ring: Box<Uring>,
        flushes: bool,
        aside: Arc<dyn Executor>,
        begun: Vec<Operation>,
        end: End,
    },
    Elsewhere(Arc<dyn Executor>),
}

/// Where the image's file ends. A write behind that would make it longer, which no guest may: somebody has cut it short.
struct End {
    /// None for a device, which does not grow.
    file: Option<Arc<OwnedFd>>,
    /// Looked at once for a batch.
    known: Cell<Option<u64>>,
}

impl End {
    fn of(file: &Arc<OwnedFd>) -> io::Result<Self> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(file)?.st_mode);
        Ok(Self { file: kind.is_file().then(|| Arc::clone(file)), known: Cell::default() })
    }

    /// Whether the file has all of a write's bytes.
    fn covers(&self, offset: u64, len: usize) -> bool {
        let Some(file) = &self.file else { return true };
        let look = || rustix::fs::fstat(file).map_or(0, |stat| stat.st_size.cast_unsigned());
        let end = self.known.get().unwrap_or_else(look);
        self.known.set(Some(end));
        offset.saturating_add(len as u64) <= end
    }
}

/// One queue's way to the image.
pub(crate) struct Engine {
    means: Means,
    mailbox: Arc<Mailbox>,
    /// Jobs that wait for [`Engine::submit`].
    outbox: Vec<Job>,
    /// Jobs that are elsewhere.
    away: usize,
    /// Where the thread sleeps, without a ring.
    epoll: Option<OwnedFd>,
    syscalls: u64,
}

/// The numbers of what wakes.
const MAIL: u32 = 0;
const KICK: u32 = 1;

impl Engine {
    /// The way to an image for a queue that has up to `requests` at once. Also whether it goes without the `io_uring` that it
    /// could use, and why.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn new(
        way: Way,
        requests: u16,
        mailbox: &Arc<Mailbox>,
    ) -> io::Result<(Self, Option<io::Error>)> {
        let mut failure = None;
        let means = match way {
            Way::Null => Means::Here(Arc::new(Null)),
            Way::Here(image) => Means::Here(image),
            Way::Elsewhere(executor) => Means::Elsewhere(executor),
            Way::File { file, flushes, aside } => match Uring::new(requests, &file) {
                Ok(mut ring) => {
                    ring.watch(Arc::clone(mailbox) as Arc<_>);
                    let begun = vec![Operation::Flush; requests.into()];
                    Means::File { ring: ring.into(), flushes, aside, begun, end: End::of(&file)? }
                }
                Err(error) => {
                    failure = Some(error);
                    Means::Elsewhere(aside)
                }
            },
        };
        let mut epoll = None;
        if !matches!(means, Means::File { .. }) {
            let epoll = epoll.insert(epoll::create(epoll::CreateFlags::CLOEXEC)?);
            watch(epoll, mailbox.as_fd(), MAIL)?;
        }
        let mailbox = Arc::clone(mailbox);
        Ok((Self { means, mailbox, outbox: Vec::new(), away: 0, epoll, syscalls: 0 }, failure))
    }

    /// Wakes up whenever the driver kicks. It need not be read.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn watch_kick(&mut self, kick: OwnedFd) -> io::Result<()> {
        match (&mut self.means, &self.epoll) {
            (Means::File { ring, .. }, _) => {
                ring.watch(Arc::new(kick));
            }
            (_, Some(epoll)) => watch(epoll, kick.as_fd(), KICK)?,
            _ => {}
        }
        Ok(())
    }

    /// The image, if requests are done by calling it.
    #[inline]
    pub(crate) fn here(&self) -> Option<&Arc<dyn BlockingImage>> {
        match &self.means {
            Means::Here(image) => Some(image),
            _ => None,
        }
    }

    /// Begins a request that is not done here; it starts with the next [`Engine::submit`]. Several with one token are allowed
    /// but for reads, writes and flushes.
    pub(crate) fn begin(&mut self, token: u32, operation: Operation, data: Kept) {
        match (&mut self.means, operation) {
            // Whoever does it by calls says what is wrong.
            (Means::File { end, .. }, Operation::Write { offset, .. }) if !end.covers(offset, data.len()) => {
                self.send(token, operation, data);
            }
            (Means::File { ring, begun, .. }, Operation::Read { .. } | Operation::Write { .. })
            | (Means::File { ring, begun, flushes: true, .. }, Operation::Flush) => {
                begun[token as usize] = operation;
                ring.begin(token, operation, data);
            }
            _ => self.send(token, operation, data),
        }
    }

    fn send(&mut self, token: u32, operation: Operation, data: Kept) {
        self.away += 1;
        self.outbox.push(Job::new(token, operation, data, &self.mailbox));
    }

    /// Has all that was begun start.
    pub(crate) fn submit(&mut self) {
        match &mut self.means {
            Means::File { ring, aside, end, .. } => {
                end.known.set(None);
                ring.submit();
                if !self.outbox.is_empty() {
                    aside.submit(&mut self.outbox);
                }
            }
            Means::Elsewhere(executor) if !self.outbox.is_empty() => executor.submit(&mut self.outbox),
            _ => {}
        }
    }

    /// What has been done by now.
    pub(crate) fn reap(&mut self, finished: &mut Vec<Finished>) {
        self.reap_ring(finished);
        // Behind the ring, which says once that there is mail: what comes after this look wakes again.
        if self.away > 0 {
            let done = self.mailbox.take();
            self.away -= done.len();
            finished.extend(done.into_iter().map(|done| Finished {
                token: done.token,
                data: done.data,
                result: done.result,
            }));
        }
    }

    fn reap_ring(&mut self, finished: &mut Vec<Finished>) {
        let Means::File { ring, begun, .. } = &mut self.means else { return };
        let (mut others, mut goes_on) = (Vec::new(), false);
        ring.look();
        while let Some(completion) = ring.next() {
            let Completion::Done { token, mut data, result } = completion else { continue };
            let operation = begun[token as usize];
            match result {
                Ok(done) if done >= data.len() || operation == Operation::Flush => {
                    finished.push(Finished { token, data, result: Ok(()) });
                }
                // The end of the file, where the disk has none.
                Ok(0) => finished.push(Finished { token, data, result: Err(Errno::IO.into()) }),
                Ok(done) => {
                    data.advance(done);
                    let operation = operation.behind(done as u64);
                    begun[token as usize] = operation;
                    ring.begin(token, operation, data);
                    goes_on = true;
                }
                Err(error) if is_refusal(&error) => others.push((token, operation, data)),
                Err(error) => finished.push(Finished { token, data, result: Err(error) }),
            }
        }
        goes_on |= !others.is_empty();
        for (token, operation, data) in others {
            self.send(token, operation, data);
        }
        if goes_on {
            // The caller has no reason to.
            self.submit();
        }
    }

    /// How many requests have begun and are not done; parts count.
    pub(crate) fn in_flight(&self) -> usize {
        self.away
            + match &self.means {
                Means::File { ring, .. } => ring.in_flight(),
                _ => 0,
            }
    }

    /// Starts what was begun, and sleeps until something is done, the driver kicks, another thread has something to say, or
    /// for `limit`.
    pub(crate) fn sleep(&mut self, limit: Option<Duration>) {
        if let Means::File { ring, end, .. } = &mut self.means {
            end.known.set(None);
            ring.wait(limit);
            // Then nobody looks what was done. What woke up has to be taken out, or it would wake up for ever.
            while ring.in_flight() == 0 && ring.next().is_some() {}
            return;
        }
        self.syscalls += 1;
        let epoll = self.epoll.as_ref().expect("all but files have one");
        let limit = limit.map(|limit| Timespec {
            tv_sec: limit.as_secs().cast_signed(),
            tv_nsec: limit.subsec_nanos().into(),
        });
        let none = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        // Interrupted or not: the caller looks at everything.
        let _ = epoll::wait(epoll, &mut [none; 2], limit.as_ref());
    }

    /// Tells who carries out jobs elsewhere that this queue waits no longer.
    pub(crate) fn abandon(&self) {
        match &self.means {
            Means::File { aside: executor, .. } | Means::Elsewhere(executor) => executor.abandon(),
            Means::Here(_) => {}
        }
    }

    /// System calls made since the last time that this was asked.
    pub(crate) fn take_syscalls(&mut self) -> u64 {
        let ring = match &mut self.means {
            Means::File { ring, .. } => std::mem::take(&mut ring.syscalls),
            _ => 0,
        };
        ring + std::mem::take(&mut self.syscalls)
    }
}

/// Nothing at all, which takes everything and leaves what is read as it is.
struct Null;

impl BlockingImage for Null {
    fn read(&self, _offset: u64, _to: GuestBuf<'_>) -> io::Result<()> {
        Ok(())
    }

    fn write(&self, _offset: u64, _from: GuestBuf<'_>, _stable: bool) -> io::Result<()> {
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _range: Range) -> io::Result<()> {
        Ok(())
    }

    fn write_zeroes(&self, _range: Range, _unmap: bool) -> io::Result<()> {
        Ok(())
    }

    fn secure_erase(&self, _range: Range) -> io::Result<()> {
        Ok(())
    }
}

/// Whether the kernel did not begin: the request can be made in another way.
fn is_refusal(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw_os_error),
        Some(Errno::INVAL | Errno::AGAIN | Errno::INTR | Errno::OPNOTSUPP)
    )
}

/// Watches for the moments at which `fd` becomes readable.
fn watch(epoll: &OwnedFd, fd: impl AsFd, number: u32) -> rustix::io::Result<()> {
    let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
    epoll::add(epoll, fd, epoll::EventData::new_u64(number.into()), flags)
}

#[cfg(test)]
mod tests;
