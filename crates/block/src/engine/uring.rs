//! An `io_uring` and what it works on: one file, guests' buffers, and what wakes its thread.
//!
//! ```text
//!   read, write, sync ──► submission queue ──submit, wait──► kernel ──► completion queue ──► next
//! ```
//!
//! The kernel reads from and writes to a buffer while its request is in flight, so the ring owns it until then; dropped, it
//! waits for all of them. The ring belongs to one thread.
#![allow(unsafe_code, reason = "the kernel is given addresses; this file keeps what is behind them alive")]

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use io_uring::types::{Fd, Fixed, FsyncFlags, SubmitArgs, Timespec};
use io_uring::{EnterFlags, IoUring, cqueue, opcode, squeue};
use ringway_memory::Kept;

use crate::job::Operation;

/// The file's place among those that are registered.
const FILE: Fixed = Fixed(0);
/// Marks what is no request: the rest is the number of what woke.
const WAKE: u64 = 1 << 32;
/// The most pieces of one request (`UIO_MAXIOV`).
const MAX_PIECES: usize = 1024;

/// What the ring has to say.
pub(crate) enum Completion {
    /// The request is done: bytes transferred, or an error.
    Done { token: u32, data: Kept, result: io::Result<usize> },
    /// Something that is watched has become readable.
    Woken,
}

/// A ring on one file.
pub(crate) struct Uring {
    ring: IoUring,
    /// The buffers of requests in flight, by token.
    flying: Vec<Option<Kept>>,
    in_flight: usize,
    /// What is watched, by number.
    watched: Vec<Arc<dyn AsFd + Send + Sync>>,
    /// Keeps the registered file's description, and whatever lock it has, as long as the ring.
    #[allow(dead_code, reason = "it is kept, and not asked")]
    file: Arc<OwnedFd>,
    /// How many system calls were made.
    pub(crate) syscalls: u64,
}

impl Uring {
    /// A ring for up to `requests` at once, whose tokens are below that.
    ///
    /// # Errors
    /// The kernel's: it has no `io_uring`, or forbids it.
    pub(crate) fn new(requests: u16, file: &Arc<OwnedFd>) -> io::Result<Self> {
        let entries = u32::from(requests).next_power_of_two().max(8);
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_coop_taskrun()
            .setup_taskrun_flag()
            .build(entries)
            // Linux before 6.0 knows less.
            .or_else(|_| IoUring::new(entries))?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        let flying = (0..requests).map(|_| None).collect();
        let file = Arc::clone(file);
        Ok(Self { ring, flying, in_flight: 0, watched: Vec::new(), file, syscalls: 0 })
    }

    /// How many requests are in flight.
    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Has [`Completion::Woken`] say whenever this becomes readable.
    pub(crate) fn watch(&mut self, fd: Arc<dyn AsFd + Send + Sync>) {
        self.watched.push(fd);
        self.poll(self.watched.len() as u32 - 1);
    }

    fn poll(&mut self, number: u32) {
        let fd = Fd(self.watched[number as usize].as_fd().as_raw_fd());
        let entry = opcode::PollAdd::new(fd, libc::POLLIN as u32).multi(true).build();
        // SAFETY: the kernel is given a file descriptor, which `watched` keeps open, and no address.
        unsafe { self.push(&entry.user_data(WAKE | u64::from(number))) }
    }

    /// Begins a read, a write or a flush. `token` has no request in flight.
    pub(crate) fn begin(&mut self, token: u32, operation: Operation, data: Kept) {
        let place = &mut self.flying[token as usize];
        assert!(place.is_none(), "the kernel still works on the buffer of request {token}");
        let kept = place.insert(data);
        let slices = kept.slices();
        let entry = match operation {
            Operation::Read { offset } => {
                if let [one] = slices {
                    opcode::Read::new(FILE, one.as_ptr(), one.len() as u32).offset(offset).build()
                } else {
                    let count = slices.len().min(MAX_PIECES) as u32;
                    opcode::Readv::new(FILE, slices.as_ptr().cast(), count).offset(offset).build()
                }
            }
            Operation::Write { offset, stable } => {
                let flags = if stable { libc::RWF_DSYNC } else { 0 };
                if let [one] = slices {
                    let write = opcode::Write::new(FILE, one.as_ptr(), one.len() as u32);
                    write.offset(offset).rw_flags(flags).build()
                } else {
                    let count = slices.len().min(MAX_PIECES) as u32;
                    let write = opcode::Writev::new(FILE, slices.as_ptr().cast(), count);
                    write.offset(offset).rw_flags(flags).build()
                }
            }
            Operation::Flush => opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build(),
            _ => unreachable!("other operations are done elsewhere"),
        };
        self.in_flight += 1;
        // SAFETY: the buffers are guest memory that `flying` keeps mapped until the request is done, and so is the list of
        // slices, each laid out as an iovec; neither is moved or changed before. Only the kernel and the peer write there.
        unsafe { self.push(&entry.user_data(token.into())) }
    }

    /// # Safety
    /// What the entry points to must be valid until its completion has come.
    unsafe fn push(&mut self, entry: &squeue::Entry) {
        loop {
            // SAFETY: the caller's.
            if unsafe { self.ring.submission().push(entry) }.is_ok() {
                return;
            }
            self.submit();
        }
    }

    /// Has the kernel begin what was put into the ring.
    pub(crate) fn submit(&mut self) {
        if self.ring.submission().is_empty() {
            return;
        }
        self.syscalls += 1;
        // Interrupted or out of memory for a moment: what is still there is submitted the next time.
        let _ = self.ring.submit();
    }

    /// Has the kernel put into the ring what it has ready, if that takes a system call.
    pub(crate) fn look(&mut self) {
        if self.ring.submission().taskrun() {
            self.syscalls += 1;
            // SAFETY: no argument is passed.
            let _ = unsafe {
                self.ring.submitter().enter::<libc::sigset_t>(0, 0, EnterFlags::GETEVENTS.bits(), None)
            };
        }
    }

    /// Submits, and waits until there is something to say, or for `limit`.
    pub(crate) fn wait(&mut self, limit: Option<Duration>) {
        self.syscalls += 1;
        let submitter = self.ring.submitter();
        // Interrupted, or late: the caller looks anyway.
        let _ = match limit {
            None => submitter.submit_and_wait(1),
            Some(limit) => {
                let limit = Timespec::from(limit);
                submitter.submit_with_args(1, &SubmitArgs::new().timespec(&limit))
            }
        };
    }

    /// What the kernel has said by now, one at a time.
    pub(crate) fn next(&mut self) -> Option<Completion> {
        let entry = self.ring.completion().next()?;
        let said = entry.user_data();
        if said & WAKE != 0 {
            let number = said as u32;
            // What has hung up would say so at once, for ever.
            let hung_up = i32::from(libc::POLLHUP | libc::POLLERR | libc::POLLNVAL);
            if !cqueue::more(entry.flags()) && entry.result() & hung_up == 0 {
                self.poll(number);
            }
            return Some(Completion::Woken);
        }
        let token = said as u32;
        let data = self.flying[token as usize].take().expect("a request in flight is done once");
        self.in_flight -= 1;
        let result = match entry.result() {
            failed @ ..0 => Err(io::Error::from_raw_os_error(-failed)),
            done => Ok(done.cast_unsigned() as usize),
        };
        Some(Completion::Done { token, data, result })
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        while self.in_flight > 0 {
            self.wait(None);
            while self.next().is_some() {}
        }
    }
}
