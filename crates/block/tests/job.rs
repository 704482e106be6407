//! Jobs come back, whoever carries them out.

mod common;

use std::io;
use std::sync::{Arc, Mutex};

use common::{buffer, run, run_all};
use ringway_block::job::{BlockingImage, Executor, Job, Mailbox, Operation, Range};
use ringway_memory::GuestBuf;

/// Bytes behind a lock; carries out jobs where they are submitted.
struct Bytes(Mutex<Vec<u8>>);

impl BlockingImage for Bytes {
    fn read(&self, offset: u64, to: GuestBuf<'_>) -> io::Result<()> {
        let bytes = self.0.lock().unwrap();
        let from = bytes.get(offset as usize..).ok_or(io::ErrorKind::UnexpectedEof)?;
        if to.write(from) == to.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
    fn write(&self, offset: u64, from: GuestBuf<'_>, _stable: bool) -> io::Result<()> {
        let mut bytes = self.0.lock().unwrap();
        from.read(&mut bytes[offset as usize..]);
        Ok(())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, _range: Range) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
    fn write_zeroes(&self, range: Range, _unmap: bool) -> io::Result<()> {
        self.0.lock().unwrap()[range.offset as usize..range.end() as usize].fill(0);
        Ok(())
    }
    fn secure_erase(&self, _range: Range) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Executor for Bytes {
    fn submit(&self, jobs: &mut Vec<Job>) {
        jobs.drain(..).for_each(|job| job.run(self));
    }
}

#[test]
fn operations_are_carried_out() {
    let image = Bytes(Mutex::new(vec![7; 16]));
    let write = Operation::Write { offset: 4, stable: true };
    let done =
        run_all(&image, vec![(write, buffer(b"abcdef", &[1, 2])), (Operation::Flush, buffer(b"", &[]))]);
    assert!(done.iter().all(|(result, _)| result.is_ok()));
    let zeroes = Operation::WriteZeroes { range: Range { offset: 5, len: 2 }, unmap: false };
    run(&image, zeroes, b"").0.unwrap();
    let (result, bytes) = run(&image, Operation::Read { offset: 3 }, &[0; 8]);
    result.unwrap();
    assert_eq!(bytes, b"\x07a\0\0def\x07");
    let (result, _) = run(&image, Operation::Discard(Range { offset: 0, len: 1 }), b"");
    assert_eq!(result.unwrap_err().kind(), io::ErrorKind::Unsupported);
}

/// A job that nobody carries out has failed, and its buffer comes back.
#[test]
fn a_lost_job_has_failed() {
    let mailbox = Arc::new(Mailbox::new().unwrap());
    drop(Job::new(5, Operation::Flush, buffer(b"xyz", &[]), &mailbox));
    let done = common::wait_for(&mailbox, 1).remove(0);
    assert_eq!((done.0, done.1.unwrap_err().kind()), (5, io::ErrorKind::BrokenPipe));
    assert_eq!(done.2, b"xyz");
    assert!(mailbox.take().is_empty());
}

#[test]
fn jobs_see_that_they_are_abandoned() {
    let mailbox = Arc::new(Mailbox::new().unwrap());
    let job = Job::new(0, Operation::Flush, buffer(b"", &[]), &mailbox);
    assert!(!job.is_abandoned());
    mailbox.abandon();
    assert!(job.is_abandoned() && mailbox.is_abandoned());
}
