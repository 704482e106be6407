//! Drives a vhost-user network device with Ringway's own driver, and says how many frames went.
//!
//! One thread polls one pair of queues, as DPDK's `testpmd` does in the same role: it sends as fast as the ring has room for
//! bursts of 32, drops what it receives, or both. It asks for no calls, and kicks no back-end that can do without.
//!
//! It says `ready`, and `measuring` after the warm-up, then prints its figures as a line of JSON.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Parser, ValueEnum};
use ringway_driver::net::{self, Frame, Net, NotSent, Offload, SendError};
use ringway_driver::transport::vhost_user::{Pages, SharedMemory, VhostUser};
use ringway_spec::feature::{IN_ORDER, RING_PACKED};
use ringway_spec::net::{DEVICE_ID, F_MRG_RXBUF};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::Serialize;

/// Frames of a burst.
const BURST: usize = 32;
/// Pauses of the processor before it looks again at a ring that had nothing: each look takes a line of it from the back-end,
/// which is about to write there.
const PAUSES: usize = 16;
/// Rounds between two looks at the clock.
const ROUNDS: usize = 64;

/// What the driver does
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// Sends
    Sink,
    /// Receives
    Generate,
    /// Sends and receives
    Echo,
}

/// Drives a vhost-user network device and measures it
#[derive(Parser)]
struct Options {
    /// The back-end's socket
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// The core to stay on
    #[arg(long)]
    core: usize,
    /// What to do
    #[arg(long, value_enum)]
    role: Role,
    /// Bytes of a frame
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Entries of each ring
    #[arg(long, default_value_t = 256)]
    queue_size: u16,
    /// Use packed rings
    #[arg(long)]
    packed: bool,
    /// Use rings in order
    #[arg(long)]
    in_order: bool,
    /// Frames may be received in several buffers
    #[arg(long)]
    mrg_rxbuf: bool,
    /// Milliseconds before the measurement
    #[arg(long, default_value_t = 500)]
    warm_up: u64,
    /// Milliseconds of the measurement
    #[arg(long, default_value_t = 1000)]
    time: u64,
}

/// What came of it.
#[derive(Serialize)]
struct Report {
    sent: u64,
    received: u64,
    /// Frames that found the ring full.
    full: u64,
    seconds: f64,
    /// The share of rounds in which a frame moved.
    busy: f64,
}

/// A driver under way.
struct Driver {
    net: Net<VhostUser>,
    role: Role,
    frame: Vec<u8>,
    /// Frames of the next burst, until it is whole: a ring that is shown frame by frame is slow for both sides.
    burst: Vec<Frame>,
    counted: Counted,
}

#[derive(Default)]
struct Counted {
    sent: u64,
    received: u64,
    full: u64,
    rounds: u64,
    busy: u64,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let mut core = CpuSet::new();
    core.set(options.core);
    sched_setaffinity(None, &core).with_context(|| format!("pin to core {}", options.core))?;

    let mut driver = Driver::attach(&options)?;
    println!("ready");
    driver.run_until(Instant::now() + Duration::from_millis(options.warm_up))?;
    driver.counted = Counted::default();
    println!("measuring");
    let start = Instant::now();
    driver.run_until(start + Duration::from_millis(options.time))?;
    println!("{}", serde_json::to_string(&driver.report(start.elapsed()))?);
    Ok(())
}

impl Driver {
    fn attach(options: &Options) -> Result<Self> {
        ensure!((60..=1514).contains(&options.size), "a frame has 60 to 1514 bytes");
        let memory = SharedMemory::new(64 << 20, Pages::Small)?;
        let transport = VhostUser::connect(&options.socket, DEVICE_ID, &memory)?;
        let wanted =
            [(RING_PACKED, options.packed), (IN_ORDER, options.in_order), (F_MRG_RXBUF, options.mrg_rxbuf)];
        let without = wanted.iter().filter(|(_, is_wanted)| !is_wanted).map(|(feature, _)| feature).sum();
        let device = net::Options { without, queue_size: options.queue_size, ..Default::default() };
        let net = Net::new(transport, Arc::new(memory), &device)?;
        for (feature, is_wanted) in wanted {
            ensure!(!is_wanted || net.features() & feature != 0, "the back-end lacks feature {feature:#x}");
        }
        // To an address that nobody has, of a type for experiments.
        let head = [&[2, 0, 0, 0, 0, 1], &net.mac()[..], &[0x88, 0xb5]].concat();
        let frame = [&head[..], &vec![0; options.size - head.len()]].concat();
        let burst = Vec::with_capacity(BURST);
        Ok(Self { net, role: options.role, frame, burst, counted: Counted::default() })
    }

    fn run_until(&mut self, end: Instant) -> Result<()> {
        while Instant::now() < end {
            for _ in 0..ROUNDS {
                let received = if self.role == Role::Sink { 0 } else { self.receive()? };
                let sent = if self.role == Role::Generate { 0 } else { self.send()? };
                self.counted.rounds += 1;
                if sent + received > 0 {
                    self.counted.busy += 1;
                } else {
                    (0..PAUSES).for_each(|_| std::hint::spin_loop());
                }
            }
        }
        Ok(())
    }

    /// Drops what came.
    fn receive(&mut self) -> Result<u64> {
        let rx = &mut self.net.pair(0).rx;
        let received = rx.receive(|_| ())? as u64;
        self.counted.received += received;
        Ok(received)
    }

    /// Sends a burst, if there is room for it.
    fn send(&mut self) -> Result<u64> {
        let Self { net, frame: bytes, burst, counted, .. } = self;
        let tx = &mut net.pair(0).tx;
        while burst.len() < BURST {
            match tx.frame(bytes.len()) {
                Ok(mut frame) => {
                    frame.extend(bytes);
                    burst.push(frame);
                }
                Err(SendError::Full) => {
                    counted.full += (BURST - burst.len()) as u64;
                    return Ok(0);
                }
                Err(error) => return Err(error.into()),
            }
        }
        for frame in burst.drain(..) {
            tx.submit(frame, &Offload::None).map_err(|NotSent { error, .. }| error)?;
        }
        tx.flush();
        counted.sent += BURST as u64;
        Ok(BURST as u64)
    }

    #[expect(clippy::cast_precision_loss, reason = "counts of a measurement")]
    fn report(&self, time: Duration) -> Report {
        let Counted { sent, received, full, rounds, busy } = self.counted;
        let busy = busy as f64 / rounds.max(1) as f64;
        Report { sent, received, full, seconds: time.as_secs_f64(), busy }
    }
}
