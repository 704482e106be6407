//! The load: what is asked of the disk, and the queues that are kept at their depth.
#![allow(unsafe_code, reason = "the crate's driver takes buffers by their address")]

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;
use virtio_driver::{
    QueueNotifier, VhostUser, VirtioBlkConfig, VirtioBlkFeatureFlags, VirtioBlkQueue, VirtioBlkReqBuf,
    VirtioBlkTransport, VirtioFeatureFlags,
};

use crate::histogram::Histogram;
use crate::memory::Memory;

/// A disk that completes nothing for so long never will.
const SILENCE: Duration = Duration::from_secs(10);
/// Descriptors of a request: header, data, status.
const DESCRIPTORS: usize = 3;

/// What is asked of the disk
#[derive(Args, Clone, Debug)]
pub(crate) struct Load {
    /// Queues
    #[arg(long, default_value_t = 1)]
    queues: usize,
    /// Requests in flight in each
    #[arg(long, default_value_t = 32)]
    depth: usize,
    /// Bytes of a request
    #[arg(long, default_value_t = 4096)]
    block: usize,
    /// Write instead of read
    #[arg(long)]
    write: bool,
    /// One request behind the other instead of anywhere, each queue in a part of the disk of its own
    #[arg(long)]
    sequential: bool,
    /// Entries of each ring; a request takes three
    #[arg(long, default_value_t = 512)]
    queue_size: u16,
    /// Use packed rings
    #[arg(long)]
    packed: bool,
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

/// An attached disk under load.
pub(crate) struct Disk {
    queues: Vec<Queue>,
    load: Load,
    memory: Memory,
    counted: Counted,
    /// Has the rings' memory, and so goes last.
    _transport: Box<VirtioBlkTransport>,
}

/// What is counted from the end of the warm-up on.
struct Counted {
    latencies: Histogram,
    busy: Duration,
    kicks: u64,
    /// The processor time at the beginning.
    processor: Duration,
}

/// A queue and its requests. Each has a slot: a part of the memory.
struct Queue {
    ring: VirtioBlkQueue<'static, usize>,
    notifier: Box<dyn QueueNotifier>,
    /// The queue's first slot.
    first: usize,
    /// When the request of each slot was submitted.
    submitted: Vec<Instant>,
    /// Slots without a request in flight.
    free: Vec<usize>,
    offsets: Offsets,
}

impl Disk {
    /// Connects, and lets the queues run.
    pub(crate) fn attach(socket: &Path, load: &Load) -> Result<Self> {
        ensure!(load.queues > 0 && load.depth > 0, "no requests");
        ensure!(load.block > 0 && load.block.is_multiple_of(512), "a request is of whole sectors");
        let room = usize::from(load.queue_size) / DESCRIPTORS;
        ensure!(load.depth <= room, "a ring of {} has room for {room} requests", load.queue_size);

        let mut ring = VirtioFeatureFlags::VERSION_1 | VirtioFeatureFlags::RING_EVENT_IDX;
        ring.set(VirtioFeatureFlags::RING_PACKED, load.packed);
        // Without FLUSH every write would have to be stable at once.
        let mut disk = VirtioBlkFeatureFlags::FLUSH;
        disk.set(VirtioBlkFeatureFlags::MQ, load.queues > 1);
        let wanted = ring.bits() | disk.bits();
        let path = socket.to_str().context("the socket's path is not UTF-8")?;
        let mut transport: Box<VirtioBlkTransport> =
            Box::new(VhostUser::<VirtioBlkConfig, VirtioBlkReqBuf>::new(path, wanted).context("connect")?);
        let missing = wanted & !transport.get_features();
        ensure!(missing == 0, "the back-end lacks features {missing:#x}");

        let rings = VirtioBlkQueue::setup_queues(transport.as_mut(), load.queues, load.queue_size)?;
        let memory = Memory::new(load.queues * load.depth * load.block)?;
        transport.map_mem_region(memory.at(0) as usize, memory.len(), memory.fd(), 0)?;
        let blocks = u64::from(transport.get_config()?.capacity) * 512 / load.block as u64;
        let part = if load.sequential { blocks / load.queues as u64 } else { blocks };
        ensure!(part > 0, "the disk is too small");
        let queues = rings.into_iter().enumerate().map(|(index, mut ring)| {
            ring.set_used_notif_enabled(false);
            Queue {
                ring,
                notifier: transport.get_submission_notifier(index),
                first: index * load.depth,
                submitted: vec![Instant::now(); load.depth],
                free: (0..load.depth).collect(),
                offsets: Offsets::new(index as u64, part, load),
            }
        });
        let queues = queues.collect();
        Ok(Self { queues, load: load.clone(), memory, counted: Counted::new(), _transport: transport })
    }

    /// Submits as many requests as there may be at a time.
    pub(crate) fn fill(&mut self) -> Result<()> {
        let Self { queues, load, memory, counted, .. } = self;
        queues.iter_mut().try_for_each(|queue| queue.submit(load, memory, counted))
    }

    /// Forgets what was counted.
    pub(crate) fn start_counting(&mut self) {
        self.counted = Counted::new();
    }

    /// Keeps the queues at their depth until then.
    pub(crate) fn run_until(&mut self, end: Instant) -> Result<()> {
        let Self { queues, load, memory, counted, .. } = self;
        rounds(
            queues,
            |_, now| now >= end,
            |queue, start| {
                queue.reap(start, counted)?;
                queue.submit(load, memory, counted)?;
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
    pub(crate) fn report(&self, time: Duration) -> Report {
        let Counted { latencies, busy, kicks, processor } = &self.counted;
        Report {
            requests: latencies.count(),
            seconds: time.as_secs_f64(),
            busy: busy.as_secs_f64() / time.as_secs_f64(),
            processor: processor_time().saturating_sub(*processor).as_secs_f64(),
            kicks: *kicks,
            p50: latencies.percentile(50.0),
            p99: latencies.percentile(99.0),
            p999: latencies.percentile(99.9),
        }
    }

    /// Waits for what is in flight.
    pub(crate) fn drain(&mut self) -> Result<()> {
        let Self { queues, load, counted, .. } = self;
        let all_free = |queues: &[Queue], _| queues.iter().all(|queue| queue.free.len() == load.depth);
        rounds(queues, all_free, |queue, now| queue.reap(now, counted))
    }
}

/// Looks at the queues until that is enough, and does something to each that has completions.
fn rounds(
    queues: &mut [Queue],
    enough: impl Fn(&[Queue], Instant) -> bool,
    mut found: impl FnMut(&mut Queue, Instant) -> Result<()>,
) -> Result<()> {
    let mut answered = Instant::now();
    loop {
        for queue in &mut *queues {
            if queue.ring.completions().has_next() {
                answered = Instant::now();
                found(queue, answered)?;
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
    fn new() -> Self {
        Self { latencies: Histogram::new(), busy: Duration::ZERO, kicks: 0, processor: processor_time() }
    }
}

impl Queue {
    /// Takes what has completed by now.
    fn reap(&mut self, now: Instant, counted: &mut Counted) -> Result<()> {
        for completion in self.ring.completions() {
            let slot = completion.context;
            ensure!(
                completion.ret == 0,
                "a request failed: {}",
                std::io::Error::from_raw_os_error(-completion.ret)
            );
            counted.latencies.add(now - self.submitted[slot]);
            self.free.push(slot);
        }
        Ok(())
    }

    /// Submits a request for each free slot, and kicks once if that is asked for.
    fn submit(&mut self, load: &Load, memory: &Memory, counted: &mut Counted) -> Result<()> {
        let now = Instant::now();
        while let Some(slot) = self.free.pop() {
            self.submitted[slot] = now;
            let data = memory.at((self.first + slot) * load.block);
            let offset = self.offsets.next();
            if load.write {
                // SAFETY: the slot's part of the memory is there until the process ends; nobody has a reference to it.
                unsafe { self.ring.write_raw(offset, data, load.block, slot) }?;
            } else {
                // SAFETY: as above.
                unsafe { self.ring.read_raw(offset, data, load.block, slot) }?;
            }
        }
        if self.ring.avail_notif_needed() {
            counted.kicks += 1;
            self.notifier.notify()?;
        }
        Ok(())
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
