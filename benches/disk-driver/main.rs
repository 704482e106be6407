//! Drives a vhost-user disk with the crate `virtio-driver`, or with Ringway's own driver, and says how fast it was: the same
//! driver for every back-end.
//!
//! One thread keeps each of its queues at a fixed depth. It polls for completions and is never called: what a call
//! costs is in no figure, and a back-end that can do without kicks is asked for none. A round looks at each queue once;
//! for every request that has completed it submits another, all of them with one kick, if the back-end wants one.
//!
//! ```text
//! round   completions ──► latencies, slots ──► as many requests ──► a kick, if asked for
//!         none: the round does not count as busy
//! ```
//!
//! It says `ready`, and `measuring` after the warm-up, then prints its figures as a line of JSON.

mod histogram;
mod load;
mod memory;
mod ours;
mod theirs;

use std::io::Read;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Parser, ValueEnum};
use rustix::thread::{CpuSet, sched_setaffinity};

use load::{Disk, Driver, Load};
use ours::Ours;
use theirs::Theirs;

/// Whose driver
#[derive(Clone, Copy, ValueEnum)]
enum Whose {
    /// The crate of this name
    VirtioDriver,
    /// This project's
    Ringway,
}

/// Drives a vhost-user disk and measures it
#[derive(Parser)]
struct Options {
    /// The back-end's socket
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// The core to stay on
    #[arg(long)]
    core: usize,
    /// The driver
    #[arg(long, value_enum, default_value = "virtio-driver")]
    driver: Whose,
    #[command(flatten)]
    load: Load,
    /// Let the queues run, ask nothing of the disk, and go on until standard input ends
    #[arg(long)]
    idle: bool,
    /// End when the disk has been gone over once, and measure nothing
    #[arg(long)]
    once: bool,
    /// Milliseconds before the measurement
    #[arg(long, default_value_t = 100)]
    warm_up: u64,
    /// Milliseconds of the measurement
    #[arg(long, default_value_t = 1000)]
    time: u64,
}

fn main() -> Result<()> {
    let options = Options::parse();
    let mut core = CpuSet::new();
    core.set(options.core);
    sched_setaffinity(None, &core).with_context(|| format!("pin to core {}", options.core))?;

    match options.driver {
        Whose::VirtioDriver => run::<Theirs>(&options),
        Whose::Ringway => run::<Ours>(&options),
    }
}

fn run<D: Driver>(options: &Options) -> Result<()> {
    let mut disk = Disk::<D>::attach(&options.socket, &options.load)?;
    println!("ready");
    if options.idle {
        std::io::stdin().read_to_end(&mut Vec::new())?;
        return Ok(());
    }
    disk.fill()?;
    if options.once {
        disk.run_once_over()?;
        return disk.drain();
    }
    disk.run_until(Instant::now() + Duration::from_millis(options.warm_up))?;
    disk.start_counting();
    println!("measuring");
    let start = Instant::now();
    disk.run_until(start + Duration::from_millis(options.time))?;
    let report = disk.report(start.elapsed());
    disk.drain()?;
    println!("{}", serde_json::to_string(&report)?);
    Ok(())
}
