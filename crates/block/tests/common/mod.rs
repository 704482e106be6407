//! A queue's side of jobs: buffers in memory, and what becomes of them.

#![allow(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_block::job::{Executor, Job, Mailbox, Operation};
use ringway_memory::{Access, BusAddr, FrontendVa, Gpa, Kept, Mapping, MemoryTable, ScatterList};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The longest wait for a job.
pub const SOON: Duration = Duration::from_secs(10);

/// A guest's buffer with these bytes, in pieces of these lengths and a last one with the rest, at odd addresses.
pub fn buffer(bytes: &[u8], pieces: &[usize]) -> Kept {
    const GAP: u64 = 3;
    let room = bytes.len() as u64 + (pieces.len() as u64 + 2) * GAP;
    let file = tempfile::tempfile().unwrap();
    file.set_len(room).unwrap();
    let region = Mapping::region(file.into(), 0, room, Gpa(0), FrontendVa(0)).unwrap();
    let mut list = ScatterList::with_capacity(pieces.len() + 1);
    list.bind(&Arc::new(MemoryTable::new(vec![region]).unwrap()));
    let (mut at, mut left) = (GAP, bytes.len());
    for &piece in pieces.iter().chain([&usize::MAX]) {
        let len = piece.min(left);
        if len > 0 {
            list.push(BusAddr(at), len as u32, Access::WRITE).unwrap();
        }
        at += len as u64 + GAP;
        left -= len;
    }
    let mut kept = Kept::default();
    list.keep(0..list.len(), 0, bytes.len(), &mut kept);
    assert_eq!(kept.buf().write(bytes), bytes.len());
    kept
}

/// The bytes of a buffer.
pub fn contents(kept: &Kept) -> Vec<u8> {
    let mut bytes = vec![0; kept.len()];
    kept.buf().read(&mut bytes);
    bytes
}

/// Carries out one operation on a buffer of these bytes; how it went, and the buffer then.
pub fn run(executor: &dyn Executor, operation: Operation, bytes: &[u8]) -> (io::Result<()>, Vec<u8>) {
    run_all(executor, vec![(operation, buffer(bytes, &[]))]).remove(0)
}

/// Submits all of these at once, and waits for all.
pub fn run_all(executor: &dyn Executor, all: Vec<(Operation, Kept)>) -> Vec<(io::Result<()>, Vec<u8>)> {
    let mailbox = Arc::new(Mailbox::new().unwrap());
    let count = all.len();
    let jobs = (0..).zip(all).map(|(token, (operation, data))| Job::new(token, operation, data, &mailbox));
    executor.submit(&mut jobs.collect());
    let mut done: Vec<_> = wait_for(&mailbox, count).into_iter().collect();
    done.sort_by_key(|(token, ..)| *token);
    done.into_iter().map(|(_, result, bytes)| (result, bytes)).collect()
}

/// Waits until so many jobs are done.
pub fn wait_for(mailbox: &Mailbox, count: usize) -> Vec<(u32, io::Result<()>, Vec<u8>)> {
    let deadline = Instant::now() + SOON;
    let mut all = Vec::new();
    while all.len() < count {
        all.extend(mailbox.take().into_iter().map(|done| (done.token, done.result, contents(&done.data))));
        let mut bytes = [0; 8];
        let _ = rustix::io::read(mailbox, &mut bytes);
        if all.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} jobs done in time", all.len());
            let limit = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
            let _ = poll(&mut [PollFd::new(mailbox, PollFlags::IN)], Some(&limit));
        }
    }
    all
}
