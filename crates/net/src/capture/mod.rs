//! Capture: the frames of chosen ports, copied to a pcapng file while they pass.
//!
//! ```text
//!   worker 0  probe ──► batch ─┐                        ┌─► file, FIFO or pipe
//!   worker 1  probe ──► batch ─┴─► channel ──► writer ──┘
//!               ▲                                │
//!               └────────── empty batches ◄──────┘
//! ```
//!
//! A probe belongs to one worker and is written to without a lock: it lays out a frame's block in a batch, and hands the
//! batch over when it is full, or when the writer has nothing else to do. A probe has a fixed number of batches. While
//! all of them wait to be written, its frames are not captured and are counted; nobody waits for a disk. The writer
//! is a thread of its own, and ends when the last probe is gone.
//!
//! A frame *from* a port (`inbound`) is captured as its guest sent it, a frame *to* a port (`outbound`) once it was
//! delivered, as it stood before what an offload does to it on the way: checksums and segments yet to be made are said in
//! the flags. Frames of one worker are in the order of their times; those of several may be out of it by some batches.

mod pcapng;
mod probe;
#[cfg(test)]
mod tests;
mod writer;

use std::fs::File;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel, sync_channel};
use std::time::{Duration, Instant, SystemTime};

pub(crate) use probe::{Direction, Probe, Probes};
use writer::Writer;

/// Bytes of a batch, which takes at least one frame.
const BATCH: usize = 128 << 10;
/// The most that is kept of a frame: more than the longest has.
const MAX_CAPTURED: usize = 66_000;
/// Batches of each probe.
const BATCHES: usize = 32;

/// A port to be captured.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its place among the ports.
    pub port: usize,
    /// What the file calls it.
    pub name: String,
    /// The most bytes kept of a frame.
    pub snaplen: u32,
}

/// Where a capture is written to.
#[derive(Debug)]
pub enum Target {
    /// An open file, pipe or terminal.
    File(File),
    /// A FIFO, to be opened once somebody reads it.
    Fifo(PathBuf),
    /// A file that another process may still write to, to be gone on with after it has ended.
    Shared(File),
}

/// How a capture ended.
#[derive(Debug)]
pub struct Summary {
    /// Frames in the file.
    pub captured: u64,
    /// Frames that are not, since the file could not take them in time.
    pub dropped: u64,
    /// Why it ended early.
    pub error: Option<io::Error>,
}

/// A capture that runs until its probes are dropped.
#[derive(Debug)]
pub struct Capture {
    shared: Arc<Shared>,
    ended: Receiver<()>,
}

/// What the probes and the writer share.
#[derive(Debug)]
struct Shared {
    /// Frames that found no batch, by interface.
    dropped: Box<[AtomicU64]>,
    /// The probes are about to go: what cannot be written soon is not worth waiting for.
    is_ending: AtomicBool,
    /// When it began: for the file, and to measure from.
    epoch: u64,
    start: Instant,
}

impl Shared {
    /// Nanoseconds since 1970. It never goes back, whatever becomes of the machine's clock.
    fn now(&self) -> u64 {
        self.epoch + nanoseconds(self.start.elapsed())
    }
}

impl Capture {
    /// Starts a capture of these ports, with a probe for each of so many workers. `on_end` is told in the writer's thread
    /// when it has ended.
    pub(crate) fn start(
        target: Target,
        interfaces: &[Interface],
        workers: usize,
        on_end: impl FnOnce(&Summary) + Send + 'static,
    ) -> io::Result<(Self, Vec<Probe>)> {
        let epoch = SystemTime::UNIX_EPOCH.elapsed().map_or(0, nanoseconds);
        let shared = Arc::new(Shared {
            dropped: interfaces.iter().map(|_| AtomicU64::new(0)).collect(),
            is_ending: AtomicBool::new(false),
            epoch,
            start: Instant::now(),
        });
        // As long as all the batches that there are, so that nobody waits to hand one over or back.
        let (full, filled) = sync_channel(workers * BATCHES);
        let (empties, probes) = (0..workers)
            .map(|worker| {
                let (empty, emptied) = sync_channel(BATCHES);
                (empty, Probe::new(worker, interfaces, Arc::clone(&shared), full.clone(), emptied))
            })
            .unzip();
        let (end, ended) = channel();
        let writer = Writer::new(interfaces, Arc::clone(&shared), filled, empties);
        std::thread::Builder::new().name("capture".into()).spawn(move || {
            on_end(&writer.run(target));
            // Mostly nobody waits.
            let _ = end.send(());
        })?;
        Ok((Self { shared, ended }, probes))
    }

    /// Says that its probes go: a reader that does not read is not waited for any longer than a moment.
    pub fn end(&self) {
        self.shared.is_ending.store(true, Ordering::Relaxed);
    }

    /// Waits until it has ended, which it does soon after its probes are gone; returns whether it has.
    pub fn wait(&self, limit: Duration) -> bool {
        !matches!(self.ended.recv_timeout(limit), Err(RecvTimeoutError::Timeout))
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    // Until the year 2554.
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
