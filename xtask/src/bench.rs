//! Ringway against what does the same: other back-ends under DPDK's driver, other ways between Linux guests.
//!
//! ```text
//! topics    what is measured, and what the page says of it
//! frames    rows with DPDK's driver ── backends ── ovs
//! guests    rows with Linux guests  ── flood
//! idle      many ports that do nothing
//! sampling  takes samples in turn, and again when the machine was disturbed
//! machine   how far apart its cores are, who else works on them, what it is
//! results   samples kept as JSON, and put together into lines
//! table, page, plot   lines shown
//! ```
//!
//! Nothing here is measured against a figure of another day: all sides of a row are of one run.

mod backends;
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
use self::machine::Machine;
use self::results::{Run, current};
use self::sampling::{Taken, Watch};
use self::topics::Topic;

/// Options of `xtask bench`.
#[derive(Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub(crate) struct Options {
    /// The ringway program
    #[arg(long, value_name = "PATH", default_value = "target/release/ringway")]
    ringway: PathBuf,
    /// Another build of it, for back-end `baseline`
    #[arg(long, value_name = "PATH")]
    baseline: Option<PathBuf>,
    /// An argument for both, such as --ringway-arg=--busy-poll=0
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    ringway_arg: Vec<String>,
    /// Rows to measure; all of them, if none is named
    #[arg(long, value_enum, value_delimiter = ',')]
    row: Vec<Topic>,
    /// Samples of each side in each case
    #[arg(long, default_value_t = 7)]
    samples: u32,
    /// Seconds of one sample
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// A look in a few minutes: three short samples, of the first size and kind of rings only
    #[arg(long)]
    quick: bool,
    /// Keep the results of the runs before
    #[arg(long)]
    append: bool,
    /// Measure nothing, show the results that were kept
    #[arg(long)]
    saved: bool,
    /// Write docs/BENCHMARKS.md and its plots
    #[arg(long)]
    page: bool,
    /// The file that keeps the results
    #[arg(long, value_name = "PATH", default_value = "target/bench/results.json")]
    results: PathBuf,
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

impl Options {
    fn samples(&self) -> u32 {
        if self.quick { 3 } else { self.samples }
    }

    /// How long a sample takes.
    fn interval(&self) -> Duration {
        Duration::from_secs_f64(if self.quick { 0.5 } else { self.seconds })
    }

    fn watch(&self) -> Watch {
        Watch { cores: [self.driver_core, self.backend_core], others: self.others }
    }

    fn topics(&self) -> Vec<Topic> {
        if self.row.is_empty() { Topic::value_variants().to_vec() } else { self.row.clone() }
    }

    /// The program of one of the two builds.
    fn program(&self, kind: Kind) -> Result<&Path> {
        match kind {
            Kind::Baseline => self.baseline.as_deref().context("--baseline says which"),
            _ => Ok(&self.ringway),
        }
    }

    /// Refuses what would measure nothing.
    fn check(&self) -> Result<()> {
        ensure!(self.driver_core != self.backend_core, "the driver and the back-end need a core each");
        ensure!(self.seconds > 0.0 && self.seconds <= 600.0, "--seconds must be in 0..=600");
        ensure!(self.queue_size >= 2 * BURST, "--queue-size must be at least {}", 2 * BURST);
        for &kind in &self.backend {
            let path = self.program(kind)?;
            ensure!(path.is_file(), "{} does not exist: cargo build --release", path.display());
        }
        Ok(())
    }
}

/// Measures, keeps the results, and shows them.
pub(crate) fn run(mut options: Box<Options>) -> Result<()> {
    if options.quick {
        options.size.truncate(1);
        options.rings.truncate(1);
    }
    let mut runs =
        if options.append || options.saved { results::load(&options.results)? } else { Vec::new() };
    if !options.saved {
        options.check()?;
        measure(&options, &mut runs)?;
    }
    println!("{}", table::render(&current(&runs)));
    if options.page {
        page::write(&runs)?;
    }
    Ok(())
}

/// Measures row by row; what there is so far is kept after each.
fn measure(options: &Options, runs: &mut Vec<Run>) -> Result<()> {
    runs.push(Run { machine: Machine::here(), samples: Vec::new(), failures: Vec::new() });
    let this = runs.len() - 1;
    let start = Instant::now();
    for topic in options.topics() {
        eprintln!("--- {} ({:.0} s so far)", topic.title(), start.elapsed().as_secs_f64());
        let taken = topic.measure(options).unwrap_or_else(|error| {
            let mut taken = Taken::default();
            taken.fail(topic.name(), &error);
            taken
        });
        if is_interrupted() {
            bail!("interrupted; {} has what came before", options.results.display());
        }
        runs[this].samples.extend(taken.samples);
        runs[this].failures.extend(taken.failures);
        results::save(&options.results, runs)?;
    }
    Ok(())
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
        assert_eq!(options(&[]).topics(), Topic::value_variants());
        assert_eq!(options(&["--row=echo,switch"]).topics(), [Topic::Echo, Topic::Switch]);
    }
}
