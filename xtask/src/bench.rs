//! Ringway against what does the same: other back-ends under DPDK's driver, other ways between Linux guests, other disks.
//!
//! ```text
//! topics    what is measured of the network, and what the page says of it
//! frames    rows with DPDK's driver ── backends ── ovs
//! guests    rows with Linux guests  ── flood
//! idle      many ports that do nothing
//! disks     what is measured of disks ── contestants ── driver
//!
//! comparison  what both have in common: rows, one after the other
//! sampling    takes samples in turn, and again when the machine was disturbed
//! machine     how far apart its cores are, who else works on them, what it is
//! results     samples kept as JSON, and put together into lines
//! table, page, plot   lines shown
//! ```
//!
//! Nothing here is measured against a figure of another day: all sides of a row are of one run.

mod backends;
mod comparison;
pub(crate) mod disks;
mod drivers;
mod flood;
mod frames;
mod guests;
mod idle;
mod machine;
mod ovs;
mod page;
mod plot;
mod results;
mod sampling;
mod table;
mod topics;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use ringway_testkit::process::{is_interrupted, target_dir};

use self::backends::{BURST, Kind};
use self::frames::Rings;
use self::sampling::Watch;
use self::topics::Topic;

/// Options of every benchmark.
#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Common {
    /// The ringway program
    #[arg(long, value_name = "PATH", default_value = "target/release/ringway")]
    ringway: PathBuf,
    /// Another build of it, for back-end `baseline`
    #[arg(long, value_name = "PATH")]
    baseline: Option<PathBuf>,
    /// An argument for both, such as --ringway-arg=--busy-poll=0
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    ringway_arg: Vec<String>,
    /// Samples of each side in each case [default: 7; of disks 5]
    #[arg(long)]
    samples: Option<u32>,
    /// Seconds of one sample [default: 1; of disks 0.5]
    #[arg(long)]
    seconds: Option<f64>,
    /// A look in a few minutes: three short samples, of the first cases only
    #[arg(long)]
    quick: bool,
    /// Keep the results of the runs before
    #[arg(long)]
    append: bool,
    /// Measure nothing, show the results that were kept
    #[arg(long)]
    saved: bool,
    /// Write this part of docs/BENCHMARKS.md, and its plots
    #[arg(long)]
    page: bool,
    /// The file that keeps the results [default: target/bench/results.json; of disks target/bench/disks.json]
    #[arg(long, value_name = "PATH")]
    results: Option<PathBuf>,
    /// The driver's core
    #[arg(long, default_value_t = 0)]
    driver_core: usize,
    /// The back-end's core
    #[arg(long, default_value_t = 1)]
    backend_core: usize,
    /// Discard a sample during which other programs took more than this share of the two cores
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0)]
    others: f64,
}

impl Common {
    fn samples_or(&self, usual: u32) -> u32 {
        if self.quick { 3 } else { self.samples.unwrap_or(usual) }
    }

    /// How long a sample takes.
    fn interval_or(&self, usual: f64) -> Duration {
        let usual = if self.quick { usual / 2.0 } else { usual };
        Duration::from_secs_f64(self.seconds.unwrap_or(usual))
    }

    fn watch(&self) -> Watch {
        Watch { cores: [self.driver_core, self.backend_core], others: self.others }
    }

    /// The other build.
    fn baseline(&self) -> Result<&Path> {
        self.baseline.as_deref().context("--baseline says which")
    }

    /// Refuses what would measure nothing.
    fn check(&self) -> Result<()> {
        ensure!(self.driver_core != self.backend_core, "the driver and the back-end need a core each");
        let seconds = self.seconds.unwrap_or(1.0);
        ensure!(seconds > 0.0 && seconds <= 600.0, "--seconds must be in 0..=600");
        Ok(())
    }
}

/// Options of `xtask bench`.
#[derive(Args)]
pub(crate) struct Options {
    #[command(flatten)]
    common: Common,
    /// Rows to measure; all of them, if none is named
    #[arg(long, value_enum, value_delimiter = ',')]
    row: Vec<Topic>,
    /// Back-ends in the rows with DPDK's driver
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["ringway", "ovs", "dpdk"])]
    backend: Vec<Kind>,
    /// Bytes of a frame
    #[arg(long, value_delimiter = ',', default_values = ["64", "1500"])]
    size: Vec<u16>,
    /// Rings to measure with
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["split", "packed", "packed-vectorized"])]
    rings: Vec<Rings>,
    /// Entries of each ring
    #[arg(long, default_value_t = 256)]
    queue_size: u16,
    /// Let the driver negotiate mergeable receive buffers
    #[arg(long)]
    mrg_rxbuf: bool,
    /// Ringway's own driver
    #[arg(long, value_name = "PATH", default_value = "target/release/net-driver")]
    net_driver: PathBuf,
}

impl Options {
    fn samples(&self) -> u32 {
        self.common.samples_or(7)
    }

    fn interval(&self) -> Duration {
        self.common.interval_or(1.0)
    }

    /// The program of one of the two builds.
    fn program(&self, kind: Kind) -> Result<&Path> {
        match kind {
            Kind::Baseline => self.common.baseline(),
            _ => Ok(&self.common.ringway),
        }
    }

    /// Refuses what would measure nothing.
    fn check(&self) -> Result<()> {
        self.common.check()?;
        ensure!(self.queue_size >= 2 * BURST, "--queue-size must be at least {}", 2 * BURST);
        let topics = if self.row.is_empty() { Topic::value_variants() } else { &self.row };
        if topics.contains(&Topic::Drivers) {
            is_there(&self.net_driver)?;
        }
        self.backend.iter().try_for_each(|&kind| is_there(self.program(kind)?))
    }
}

/// A program that must have been built.
fn is_there(program: &Path) -> Result<()> {
    ensure!(program.is_file(), "{} does not exist: cargo build --release", program.display());
    Ok(())
}

/// Measures the network, keeps the results, and shows them.
pub(crate) fn run(mut options: Box<Options>) -> Result<()> {
    if options.common.quick {
        options.size.truncate(1);
        options.rings.truncate(1);
    }
    if !options.common.saved {
        options.check()?;
    }
    comparison::run(&options.common, &options.row, |topic: Topic| topic.measure(&options))
}

/// A program that `guests/bench.sh` has unpacked.
fn peer(path: &str) -> PathBuf {
    target_dir().join("bench/peers").join(path)
}

/// Waits for a socket that accepts.
fn wait_listening(socket: &Path, limit: Duration, said: impl Fn() -> String) -> Result<()> {
    let deadline = Instant::now() + limit;
    while !socket.exists() {
        if Instant::now() >= deadline || is_interrupted() {
            bail!("no {} within {limit:?}; the program said:\n{}", socket.display(), said());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    // The path appears at bind(), a moment before listen().
    std::thread::sleep(Duration::from_millis(50));
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        options: Options,
    }

    pub(super) fn options(arguments: &[&str]) -> Options {
        Cli::try_parse_from([&["bench"], arguments].concat()).unwrap().options
    }

    #[test]
    fn rows_are_chosen() {
        assert_eq!(options(&["--row=echo,switch"]).row, [Topic::Echo, Topic::Switch]);
    }

    #[test]
    fn a_quick_look_is_short() {
        assert_eq!(options(&[]).interval(), Duration::from_secs(1));
        let quick = options(&["--quick"]);
        assert_eq!((quick.samples(), quick.interval()), (3, Duration::from_millis(500)));
    }
}
