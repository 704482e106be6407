//! Disks: `ringway blk` next to `qemu-storage-daemon` under the same driver, and next to fio on the same file.
//!
//! ```text
//! rows         what is measured, and what the page says of it
//! workload     what is asked of a disk
//! contestants  who serves it: which program, told what ── images behind it
//! driver       the driver's process, on a core of its own
//! fio          the same asked of the file, by fio in the back-end's place
//! ```
//!
//! A row is a kind of storage; its cases are workloads, depths and numbers of queues.

mod contestants;
mod driver;
mod fio;
mod images;
mod rows;
mod workload;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;

use self::contestants::{Server, Side, Storage};
use self::driver::{Driver, Report};
use self::images::Images;
pub(super) use self::rows::Row;
use self::workload::{Pattern, Whose, Workload};
use super::comparison::{self, Comparison};
use super::frames::Trace;
use super::idle::own_memory;
use super::machine::processor_time;
use super::results::{Detail, Figure, Limit};
use super::sampling::{Cell, Taken, take};
use super::{Common, is_there};

/// From here on a side is taken to be what a case waits for.
const BUSY: f64 = 0.9;
/// How long an idle disk is watched.
const WATCHED: Duration = Duration::from_secs(5);

/// Options of `xtask bench-block`.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
    /// Rows to measure; all of them, if none is named
    #[arg(long, value_enum, value_delimiter = ',')]
    row: Vec<Row>,
    /// Who serves the disks
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["ringway", "qemu", "fio"])]
    side: Vec<Side>,
    /// What is asked of them
    #[arg(long, value_enum, value_delimiter = ',', default_values = Pattern::NAMES)]
    pattern: Vec<Pattern>,
    /// Requests in flight in each queue
    #[arg(long, value_delimiter = ',', default_values = ["1", "32", "128"])]
    depth: Vec<u16>,
    /// Queues of a disk
    #[arg(long, value_delimiter = ',', default_values = ["1", "2"])]
    queues: Vec<u16>,
    /// The driver
    #[arg(long, value_name = "PATH", default_value = "target/release/disk-driver")]
    driver: PathBuf,
    /// Where the file is, on the file system that is to be measured
    #[arg(long, value_name = "DIRECTORY", default_value = "target")]
    directory: PathBuf,
    /// Mebibytes of each disk
    #[arg(long, default_value_t = 1024)]
    size: u64,
}

impl Options {
    fn samples(&self) -> u32 {
        self.common.samples_or(5)
    }

    fn interval(&self) -> Duration {
        self.common.interval_or(0.5)
    }

    /// Bytes of each disk.
    fn bytes(&self) -> u64 {
        (if self.common.quick { self.size.min(256) } else { self.size }) << 20
    }

    /// Refuses what would measure nothing.
    fn check(&self) -> Result<()> {
        self.common.check()?;
        ensure!((1..=1 << 20).contains(&self.size), "--size must be in 1..={}", 1 << 20);
        for side in &self.side {
            match side {
                Side::Ringway => is_there(&self.common.ringway)?,
                Side::Baseline => is_there(self.common.baseline()?)?,
                Side::Qemu | Side::Fio => {}
            }
        }
        is_there(&self.driver)
    }

    /// The cases: one queue with everything, more with what is small and many.
    fn workloads(&self) -> Vec<Workload> {
        let mut all = Vec::new();
        for &queues in &self.queues {
            for &pattern in &self.pattern {
                for &depth in &self.depth {
                    let workload = Workload { pattern, depth, queues, driver: Whose::VirtioDriver };
                    if queues == 1 || workload.needs_queues() {
                        all.push(workload);
                    }
                }
            }
        }
        if self.common.quick {
            all.retain(|workload| workload.queues == 1 && workload.pattern == Pattern::RandRead);
            all.truncate(2);
        }
        all
    }
}

/// Measures disks, keeps the results, and shows them.
pub(crate) fn run(options: &Options) -> Result<()> {
    if !options.common.saved {
        options.check()?;
    }
    comparison::run(&options.common, &options.row, |row: Row| row.measure(options))
}

impl Row {
    fn measure(self, options: &Options) -> Result<Taken> {
        let images = Images::make(options, self.storages())?;
        let mut taken = Taken::default();
        match self {
            Self::Null | Self::Tmpfs | Self::File => {
                for workload in options.workloads() {
                    let cells = self.contestants(options).into_iter().map(|(side, storage)| {
                        let images = &images;
                        Cell::new(workload.to_string(), side.title(storage), move || {
                            sample(options, images, side, storage, workload)
                        })
                    });
                    taken.extend(take(self.name(), cells.collect(), options.samples()));
                }
            }
            Self::Drivers => {
                for depth in [1, 32] {
                    let cells = [Whose::Ringway, Whose::VirtioDriver].map(|driver| {
                        let workload = Workload { pattern: Pattern::RandRead, depth, queues: 1, driver };
                        let images = &images;
                        Cell::new(workload.to_string(), format!("{}'s driver", driver.name()), move || {
                            sample(options, images, Side::Ringway, Storage::Null, workload)
                        })
                    });
                    taken.extend(take(self.name(), cells.into(), options.samples()));
                }
            }
            Self::Latency => {
                let driver = Whose::VirtioDriver;
                let workload = Workload { pattern: Pattern::RandRead, depth: 1, queues: 1, driver };
                taken.extend(self.by_storage(options, options.samples(), |side, storage| {
                    sample(options, &images, side, storage, workload).map(typical_latency)
                }));
            }
            Self::Calls => {
                let driver = Whose::VirtioDriver;
                let workload = Workload { pattern: Pattern::RandRead, depth: 32, queues: 1, driver };
                taken.extend(self.by_storage(options, options.samples().min(3), |side, storage| {
                    count_calls(options, &images, side, storage, workload)
                }));
            }
            Self::Idle => {
                taken.extend(
                    self.by_storage(options, 1, |side, storage| idle(options, &images, side, storage)),
                );
            }
        }
        Ok(taken)
    }

    /// What is behind the disks of this row.
    fn storages(self) -> &'static [Storage] {
        match self {
            Self::Null | Self::Drivers => &[Storage::Null],
            Self::Tmpfs => &[Storage::Tmpfs, Storage::Memory],
            Self::File => &[Storage::File],
            Self::Latency | Self::Calls | Self::Idle => &[Storage::Null, Storage::Tmpfs, Storage::File],
        }
    }

    /// Who serves what: the sides of this row's cases, Ringway first.
    fn contestants(self, options: &Options) -> Vec<(Side, Storage)> {
        let all =
            self.storages().iter().flat_map(|&storage| options.side.iter().map(move |&side| (side, storage)));
        let mut all: Vec<_> = all.filter(|(side, storage)| side.serves(*storage)).collect();
        all.sort_by_key(|(side, _)| *side);
        all
    }

    /// Each storage as a case.
    fn by_storage<'a>(
        self,
        options: &Options,
        samples: u32,
        sample: impl Fn(Side, Storage) -> Result<Figure> + 'a,
    ) -> Taken {
        let mut taken = Taken::default();
        for &storage in self.storages() {
            let sides = self.contestants(options).into_iter().filter(|(_, of)| *of == storage);
            let sides = sides.filter(|(side, _)| self != Self::Idle || *side != Side::Fio);
            let sample = &sample;
            let cells =
                sides.map(|(side, _)| Cell::new(storage.title(), side.name(), move || sample(side, storage)));
            taken.extend(take(self.name(), cells.collect(), samples));
        }
        taken
    }
}

/// Starts a server and the driver, or fio, and measures once.
fn sample(
    options: &Options,
    images: &Images,
    side: Side,
    storage: Storage,
    workload: Workload,
) -> Result<Figure> {
    if side == Side::Fio {
        return fio::sample(options, images.path(storage)?, workload);
    }
    let server = Server::start(options, images, side, storage, workload.queues)?;
    if storage == Storage::Memory {
        // Memory that was never written to has to be found first.
        Driver::write_all(options, server.socket())?;
    }
    let mut driver = Driver::start(options, server.socket(), workload)?;
    let ((report, effort), distance) = options.common.watch().during(|| {
        driver.wait_measuring()?;
        let mark = server.mark()?;
        let report = driver.report()?;
        Ok((report, server.since(&mark)?))
    })?;
    let Report { requests, seconds, busy, processor, kicks, p50, p99, p999 } = report;
    ensure!(requests > 0.0, "no request completed");
    let rate = requests / seconds;
    let details = BTreeMap::from([
        (Detail::Megabytes, rate * workload.bytes() / 1e6),
        (Detail::P50, p50),
        (Detail::P99, p99),
        (Detail::P999, p999),
        (Detail::FrontBusy, 100.0 * busy),
        (Detail::Busy, 100.0 * effort.busy),
        (Detail::BackendSeconds, 1e6 * effort.processor / rate),
        (Detail::DriverSeconds, 1e6 * processor / requests),
        (Detail::KicksPerThousand, 1e3 * kicks / requests),
    ]);
    let limit = if busy > BUSY {
        Limit::FrontEnd
    } else if effort.busy > BUSY {
        Limit::BackEnd
    } else {
        Limit::Neither
    };
    Ok(Figure { value: rate / 1e3, distance, limit: Some(limit), details })
}

/// The same sample, looked at for its middle latency.
fn typical_latency(figure: Figure) -> Figure {
    let Figure { distance, mut details, .. } = figure;
    let value = details.remove(&Detail::P50).unwrap_or(f64::NAN);
    details.retain(|detail, _| matches!(detail, Detail::P99 | Detail::P999 | Detail::KicksPerThousand));
    Figure { value, distance, limit: None, details }
}

/// The same, but for strace on the server.
fn count_calls(
    options: &Options,
    images: &Images,
    side: Side,
    storage: Storage,
    workload: Workload,
) -> Result<Figure> {
    if side == Side::Fio {
        return fio::count_calls(options, images.path(storage)?, workload);
    }
    let server = Server::start(options, images, side, storage, workload.queues)?;
    let mut driver = Driver::start(options, server.socket(), workload)?;
    driver.wait_measuring()?;
    let mut trace = Trace::start(&[server.pid()])?;
    let ((calls, interval), distance) = options.common.watch().during(|| {
        std::thread::sleep(options.interval());
        trace.finish()
    })?;
    let report = driver.report()?;
    // strace saw all but the beginning and the end of what the driver counted.
    let requests = report.requests / report.seconds * interval.as_secs_f64();
    ensure!(requests > 0.0, "no request completed");
    let details = BTreeMap::from([(Detail::KicksPerThousand, 1e3 * report.kicks / report.requests)]);
    Ok(Figure { value: 1e3 * f64::from(calls) / requests, distance, limit: None, details })
}

/// What a disk takes that runs and is asked nothing.
fn idle(options: &Options, images: &Images, side: Side, storage: Storage) -> Result<Figure> {
    let server = Server::start(options, images, side, storage, 1)?;
    let _driver = Driver::idle(options, server.socket())?;
    std::thread::sleep(Duration::from_secs(1));
    let (time, start) = (processor_time(server.pid())?, Instant::now());
    std::thread::sleep(WATCHED);
    let time = processor_time(server.pid())?.saturating_sub(time);
    let cpu = 100.0 * time.as_secs_f64() / start.elapsed().as_secs_f64();
    #[expect(clippy::cast_precision_loss, reason = "a size for people")]
    let value = own_memory(server.pid())? as f64 / 1024.0;
    let distance = options.common.watch().distance().context("where the cores are")?;
    Ok(Figure { value, distance, limit: None, details: BTreeMap::from([(Detail::Cpu, cpu)]) })
}
