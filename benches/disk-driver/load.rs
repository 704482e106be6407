//! The load: what is asked of the disk, and the queues that are kept at their depth.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use clap::Args;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

use crate::histogram::Histogram;

/// A disk that completes nothing for so long never will.
const SILENCE: Duration = Duration::from_secs(10);
/// Descriptors of a request: header, data, status.
const DESCRIPTORS: usize = 3;

/// What is asked of the disk
#[derive(Args, Clone, Debug)]
pub(crate) struct Load {
    /// Queues
    #[arg(long, default_value_t = 1)]
    pub(crate) queues: usize,
    /// Requests in flight in each
    #[arg(long, default_value_t = 32)]
    pub(crate) depth: usize,
    /// Bytes of a request
    #[arg(long, default_value_t = 4096)]
    pub(crate) block: usize,
    /// Write instead of read
    #[arg(long)]
    pub(crate) write: bool,
    /// One request behind the other instead of anywhere, each queue in a part of the disk of its own
    #[arg(long)]
    sequential: bool,
    /// Entries of each ring; a request takes three
    #[arg(long, default_value_t = 512)]
    pub(crate) queue_size: u16,
    /// Use packed rings
    #[arg(long)]
    pub(crate) packed: bool,
}

/// What came of it.
#[derive(Serialize)]
pub(crate) struct Report {
    requests: u64,
    seconds: f64,
    /// The share of the time spent on queues that had completions.
    busy: f64,
    /// Processor seconds.
    processor: f64,
    kicks: u64,
    /// Latencies in microseconds.
    p50: f64,
    p99: f64,
    p999: f64,
}

/// A driver that is attached to a disk, and polls. Each of its queues has a slot, with memory, for every request that may be
/// in flight.
pub(crate) trait Driver: Sized {
    /// Connects, and lets the queues run.
    fn attach(socket: &Path, load: &Load) -> Result<Self>;

    /// The disk's size in bytes.
    fn capacity(&self) -> Result<u64>;

    /// Whether a request of a queue has completed.
    fn has_completed(&mut self, queue: usize) -> bool;

    /// The slot of the next request that has completed.
    fn complete(&mut self, queue: usize) -> Result<Option<usize>>;

    /// Submits a request of a block at `offset`.
    fn submit(&mut self, queue: usize, slot: usize, offset: u64, write: bool) -> Result<()>;

    /// Shows the back-end what was submitted, and kicks it if it asks for that.
    fn publish(&mut self, queue: usize) -> Result<()>;

    /// How often the back-end was kicked.
    fn kicks(&mut self) -> u64;
}

/// An attached disk under load.
pub(crate) struct Disk<D> {
    driver: D,
    queues: Vec<Queue>,
    load: Load,
    counted: Counted,
}

/// What is counted from the end of the warm-up on.
struct Counted {
    latencies: Histogram,
    busy: Duration,
    /// Kicks and processor time at the beginning.
    kicks: u64,
    processor: Duration,
}

/// The requests of a queue.
struct Queue {
    index: usize,
    /// When the request of each slot was submitted.
    submitted: Vec<Instant>,
    /// Slots without a request in flight.
    free: Vec<usize>,
    offsets: Offsets,
}

impl<D: Driver> Disk<D> {
    /// Connects, and lets the queues run.
    pub(crate) fn attach(socket: &Path, load: &Load) -> Result<Self> {
        ensure!(load.queues > 0 && load.depth > 0, "no requests");
        ensure!(load.block > 0 && load.block.is_multiple_of(512), "a request is of whole sectors");
        let room = usize::from(load.queue_size) / DESCRIPTORS;
        ensure!(load.depth <= room, "a ring of {} has room for {room} requests", load.queue_size);

        let mut driver = D::attach(socket, load)?;
        let blocks = driver.capacity()? / load.block as u64;
        let part = if load.sequential { blocks / load.queues as u64 } else { blocks };
        ensure!(part > 0, "the disk is too small");
        let queues = (0..load.queues).map(|index| Queue {
            index,
            submitted: vec![Instant::now(); load.depth],
            free: (0..load.depth).collect(),
            offsets: Offsets::new(index as u64, part, load),
        });
        let counted = Counted::new(driver.kicks());
        Ok(Self { driver, queues: queues.collect(), load: load.clone(), counted })
    }

    /// Submits as many requests as there may be at a time.
    pub(crate) fn fill(&mut self) -> Result<()> {
        let Self { driver, queues, load, .. } = self;
        queues.iter_mut().try_for_each(|queue| queue.submit(driver, load))
    }

    /// Forgets what was counted.
    pub(crate) fn start_counting(&mut self) {
        self.counted = Counted::new(self.driver.kicks());
    }

    /// Keeps the queues at their depth until then.
    pub(crate) fn run_until(&mut self, end: Instant) -> Result<()> {
        let Self { driver, queues, load, counted } = self;
        rounds(
            driver,
            queues,
            |_, now| now >= end,
            |driver, queue, start| {
                queue.reap(driver, start, counted)?;
                queue.submit(driver, load)?;
                counted.busy += start.elapsed();
                Ok(())
            },
        )
    }

    /// Keeps the queues at their depth until as many requests are done as the disk has blocks: all of it was gone over, if
    /// one is behind the other.
    pub(crate) fn run_once_over(&mut self) -> Result<()> {
        const STEP: Duration = Duration::from_millis(10);
        let blocks: u64 = self.queues.iter().map(|queue| queue.offsets.blocks).sum();
        while self.counted.latencies.count() < blocks {
            self.run_until(Instant::now() + STEP)?;
        }
        Ok(())
    }

    /// What was counted in the time since.
    pub(crate) fn report(&mut self, time: Duration) -> Report {
        let kicks = self.driver.kicks() - self.counted.kicks;
        let Counted { latencies, busy, processor, .. } = &self.counted;
        Report {
            requests: latencies.count(),
            seconds: time.as_secs_f64(),
            busy: busy.as_secs_f64() / time.as_secs_f64(),
            processor: processor_time().saturating_sub(*processor).as_secs_f64(),
            kicks,
            p50: latencies.percentile(50.0),
            p99: latencies.percentile(99.0),
            p999: latencies.percentile(99.9),
        }
    }

    /// Waits for what is in flight.
    pub(crate) fn drain(&mut self) -> Result<()> {
        let Self { driver, queues, load, counted } = self;
        let all_free = |queues: &[Queue], _| queues.iter().all(|queue| queue.free.len() == load.depth);
        rounds(driver, queues, all_free, |driver, queue, now| queue.reap(driver, now, counted))
    }
}

/// Looks at the queues until that is enough, and does something to each that has completions.
fn rounds<D: Driver>(
    driver: &mut D,
    queues: &mut [Queue],
    enough: impl Fn(&[Queue], Instant) -> bool,
    mut found: impl FnMut(&mut D, &mut Queue, Instant) -> Result<()>,
) -> Result<()> {
    let mut answered = Instant::now();
    loop {
        for queue in &mut *queues {
            if driver.has_completed(queue.index) {
                answered = Instant::now();
                found(driver, queue, answered)?;
            }
        }
        let now = Instant::now();
        if enough(queues, now) {
            return Ok(());
        }
        ensure!(now - answered < SILENCE, "nothing completed within {SILENCE:?}");
        std::hint::spin_loop();
    }
}

impl Counted {
    fn new(kicks: u64) -> Self {
        Self { latencies: Histogram::new(), busy: Duration::ZERO, kicks, processor: processor_time() }
    }
}

impl Queue {
    /// Takes what has completed by now.
    fn reap(&mut self, driver: &mut impl Driver, now: Instant, counted: &mut Counted) -> Result<()> {
        while let Some(slot) = driver.complete(self.index)? {
            counted.latencies.add(now - self.submitted[slot]);
            self.free.push(slot);
        }
        Ok(())
    }

    /// Submits a request for each free slot, and kicks once if that is asked for.
    fn submit(&mut self, driver: &mut impl Driver, load: &Load) -> Result<()> {
        let now = Instant::now();
        while let Some(slot) = self.free.pop() {
            self.submitted[slot] = now;
            driver.submit(self.index, slot, self.offsets.next(), load.write)?;
        }
        driver.publish(self.index)
    }
}

/// Where the requests of a queue go.
struct Offsets {
    block: u64,
    /// The first block, and how many.
    first: u64,
    blocks: u64,
    sequential: bool,
    /// The next block, or the state of the random numbers.
    state: u64,
}

impl Offsets {
    fn new(queue: u64, blocks: u64, load: &Load) -> Self {
        let Load { sequential, block, .. } = *load;
        let (first, state) = if sequential { (queue * blocks, 0) } else { (0, queue << 32) };
        Self { block: block as u64, first, blocks, sequential, state }
    }

    /// The next offset in bytes.
    fn next(&mut self) -> u64 {
        self.state = self.state.wrapping_add(1);
        let index = if self.sequential { self.state % self.blocks } else { mix(self.state) % self.blocks };
        (self.first + index) * self.block
    }
}

/// Scatters consecutive numbers (the output function of `SplitMix64`).
fn mix(n: u64) -> u64 {
    let n = n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let n = (n ^ (n >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let n = (n ^ (n >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    n ^ (n >> 31)
}

fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::try_from(time).unwrap_or_default()
}
