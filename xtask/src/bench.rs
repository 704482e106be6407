//! Ringway against DPDK's own vhost-user back-end (`net_vhost`), sample by sample.
//!
//! The front-end is always DPDK's `virtio_user` driver in testpmd, pinned to one core; the back-end
//! under test has the other core to itself. The two back-ends take turns (A B A B …), each sample with
//! fresh processes, so that a slow drift of the machine meets both.
//!
//! The cores of a virtual machine may share a cache or not, and may be moved between two samples; every
//! figure then changes by a factor of two or three. A probe before and after each sample times the
//! round trip of a cache line between the two cores, and only samples of the same kind are compared.
//!
//! | role       | driver                | back-end      | counted at the driver          |
//! |------------|-----------------------|---------------|--------------------------------|
//! | `sink`     | `txonly`              | receives      | frames the back-end took       |
//! | `generate` | `rxonly`              | sends         | frames received                |
//! | `echo`     | `flowgen`             | sends back    | frames received                |
//! | `switch`   | two ports in `mac`    | two ports     | frames received on both ports  |
//!
//! `switch` runs a closed loop: a fixed number of frames, half a ring for each port, goes round through
//! the back-end in both directions, with the ports' own MAC addresses as source and destination. The
//! driver forwards what one port receives to the other, so one process on one core both sends and
//! receives, no ring ever overflows, and each address stays on one port of a learning switch (`flowgen`
//! would send one source address from both ports, and `txonly` never receives).

use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::{Args, ValueEnum};
use ringway_testkit::dpdk::{Forward, NetVhost, TestPmd, Traffic, VirtioUser};
use ringway_testkit::process::{Process, find_program};
use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, sched_setaffinity};

/// Tries for one sample before it is given up.
const ATTEMPTS: u32 = 3;
/// A started back-end listens within this time.
const START_LIMIT: Duration = Duration::from_secs(10);
/// Caches and rings settle before the sample.
const WARM_UP: Duration = Duration::from_millis(500);
/// Frames of one burst of testpmd.
const BURST: u16 = 32;
/// MAC addresses of the driver's two ports in `switch`.
const MACS: [&str; 2] = ["02:00:00:00:01:00", "02:00:00:00:01:01"];

/// Options of `xtask bench`.
#[derive(Args)]
pub(crate) struct Options {
    /// The ringway program
    #[arg(long, value_name = "PATH", default_value = "target/release/ringway")]
    ringway: PathBuf,
    /// Roles to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["sink", "generate", "echo", "switch"])]
    role: Vec<Role>,
    /// Back-ends to measure
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["ringway", "dpdk"])]
    backend: Vec<BackendKind>,
    /// Samples of each back-end in each role
    #[arg(long, default_value_t = 5)]
    samples: u32,
    /// Seconds of one sample
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Bytes of a frame
    #[arg(long, default_value_t = 64)]
    size: u16,
    /// Entries of each ring
    #[arg(long, default_value_t = 256)]
    queue_size: u16,
    /// Let the driver negotiate mergeable receive buffers
    #[arg(long)]
    mrg_rxbuf: bool,
    /// Rings to measure with, one after the other in each round
    #[arg(long, value_enum, value_delimiter = ',', default_values = ["split", "packed-in-order"])]
    rings: Vec<Rings>,
    /// The driver's core
    #[arg(long, default_value_t = 0)]
    driver_core: usize,
    /// The back-end's core
    #[arg(long, default_value_t = 1)]
    backend_core: usize,
    /// Discard a sample during which other processes took more than this share of the two cores
    #[arg(long, value_name = "PERCENT", default_value_t = 5.0)]
    others: f64,
}

/// What the back-end does.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Role {
    /// Takes frames and drops them
    Sink,
    /// Makes frames
    Generate,
    /// Sends each frame back
    Echo,
    /// Moves frames between two ports
    Switch,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Sink => "sink",
            Self::Generate => "generate",
            Self::Echo => "echo",
            Self::Switch => "switch",
        })
    }
}

/// What the driver asks for: the rings' format, `IN_ORDER`, and its own SIMD data path.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Rings {
    /// Split rings
    Split,
    /// Split rings, used in order
    SplitInOrder,
    /// Packed rings
    Packed,
    /// Packed rings, used in order
    PackedInOrder,
    /// Packed rings, used in order, by the driver's SIMD data path
    PackedVectorized,
}

impl Rings {
    fn is_packed(self) -> bool {
        !matches!(self, Self::Split | Self::SplitInOrder)
    }

    fn is_in_order(self) -> bool {
        !matches!(self, Self::Split | Self::Packed)
    }
}

impl fmt::Display for Rings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Split => "split",
            Self::SplitInOrder => "split-in-order",
            Self::Packed => "packed",
            Self::PackedInOrder => "packed-in-order",
            Self::PackedVectorized => "packed-vectorized",
        })
    }
}

/// Whose back-end.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum BackendKind {
    /// The program of this project
    Ringway,
    /// testpmd with `net_vhost` ports
    Dpdk,
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ringway => "ringway",
            Self::Dpdk => "DPDK",
        })
    }
}

/// Where the two cores are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distance {
    /// They share a cache.
    Near,
    /// They do not.
    Far,
}

impl Distance {
    /// Judges the round trip of a cache line: about 60 ns or about 350 ns.
    fn of(round_trip: Duration) -> Self {
        if round_trip < Duration::from_nanos(150) { Self::Near } else { Self::Far }
    }
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(if *self == Self::Near { "near" } else { "far" })
    }
}

/// One good sample.
struct Sample {
    role: Role,
    rings: Rings,
    backend: BackendKind,
    distance: Distance,
    /// Million frames per second.
    mpps: f64,
}

/// What came of one try.
enum Outcome {
    Kept(Sample),
    Discarded(String),
}

/// Runs all samples and prints the comparison.
pub(crate) fn run(options: &Options) -> Result<()> {
    check(options)?;
    let mut samples = Vec::new();
    for &role in &options.role {
        for round in 1..=options.samples {
            for &rings in &options.rings {
                for &backend in &options.backend {
                    eprint!("{role} {rings} {backend} {round}/{}: ", options.samples);
                    samples.extend(take(options, role, rings, backend)?);
                }
            }
        }
    }
    println!("{}", table(&samples));
    Ok(())
}

/// Refuses what would measure nothing.
fn check(options: &Options) -> Result<()> {
    ensure!(options.driver_core != options.backend_core, "the driver and the back-end need a core each");
    ensure!(options.seconds > 0.0 && options.seconds <= 600.0, "--seconds must be in 0..=600");
    ensure!(options.queue_size >= 2 * BURST, "--queue-size must be at least {}", 2 * BURST);
    if options.backend.contains(&BackendKind::Ringway) {
        let path = options.ringway.display();
        ensure!(options.ringway.is_file(), "{path} does not exist: cargo build --release, or give --ringway");
    }
    Ok(())
}

/// Takes one sample, again while it is disturbed, up to a limit.
fn take(options: &Options, role: Role, rings: Rings, backend: BackendKind) -> Result<Option<Sample>> {
    for _ in 0..ATTEMPTS {
        let tried = try_sample(options, role, rings, backend);
        match tried.with_context(|| format!("{role} with {backend}, {rings}"))? {
            Outcome::Kept(sample) => {
                eprintln!("{:.2} Mpps, {}", sample.mpps, sample.distance);
                return Ok(Some(sample));
            }
            Outcome::Discarded(why) => eprint!("discarded ({why}); "),
        }
    }
    eprintln!("given up");
    Ok(None)
}

/// Starts both sides, measures once, and ends them.
fn try_sample(options: &Options, role: Role, rings: Rings, kind: BackendKind) -> Result<Outcome> {
    let directory = tempfile::tempdir().context("a directory for sockets")?;
    let ports = if role == Role::Switch { 2 } else { 1 };
    let sockets: Vec<PathBuf> = (0..ports).map(|i| directory.path().join(format!("{i}.sock"))).collect();

    let mut backend = Backend::start(options, role, kind, &sockets)?;
    let mut driver = start_driver(options, role, rings, &sockets)?;
    backend.start_traffic()?;
    start_traffic(options, role, &mut driver)?;
    eprint!("[features {:#x}] ", driver.features().unwrap_or(0));
    std::thread::sleep(WARM_UP);

    let cores = [options.driver_core, options.backend_core];
    let pids = [driver.pid(), backend.pid()];
    let before = Distance::of(round_trip(cores)?);
    let load = Load::read(cores, pids)?;
    let rates = driver.measure(Duration::from_secs_f64(options.seconds))?;
    let others = Load::read(cores, pids)?.others_since(&load);
    let after = Distance::of(round_trip(cores)?);

    if before != after {
        return Ok(Outcome::Discarded(format!("the cores moved: {before}, then {after}")));
    }
    if others > options.others {
        return Ok(Outcome::Discarded(format!("others took {others:.0} % of the cores")));
    }
    let pps = if role == Role::Sink { rates.tx_pps } else { rates.rx_pps };
    if pps <= 0.0 {
        bail!("no frame moved; the back-end said:\n{}", backend.output());
    }
    Ok(Outcome::Kept(Sample { role, rings, backend: kind, distance: before, mpps: pps / 1e6 }))
}

/// The front-end for a role, its links up.
fn start_driver(options: &Options, role: Role, rings: Rings, sockets: &[PathBuf]) -> Result<TestPmd> {
    let ports = VirtioUser {
        sockets: sockets.to_vec(),
        macs: MACS.map(String::from).to_vec(),
        queues: 1,
        queue_size: options.queue_size,
        mrg_rxbuf: options.mrg_rxbuf,
        in_order: rings.is_in_order(),
        packed: rings.is_packed(),
        vectorized: rings == Rings::PackedVectorized,
        server: false,
        huge_pages: false,
    };
    let forward = match role {
        Role::Sink => Forward::TxOnly,
        Role::Generate => Forward::RxOnly,
        Role::Echo => Forward::FlowGen,
        Role::Switch => Forward::Mac,
    };
    let traffic = Traffic {
        core: options.driver_core,
        packet_size: options.size,
        burst: BURST,
        // Each port sends to the other.
        peers: if role == Role::Switch {
            MACS.iter().rev().map(ToString::to_string).collect()
        } else {
            vec![]
        },
        ..Traffic::new(forward)
    };
    TestPmd::virtio_user(&ports, &traffic)
}

/// Lets the driver go.
fn start_traffic(options: &Options, role: Role, driver: &mut TestPmd) -> Result<()> {
    if role == Role::Switch {
        // Half a ring for each direction: no burst ever finds a ring full.
        driver.start_with_bursts(u32::from(options.queue_size / 2 / BURST))
    } else {
        driver.start()
    }
}

/// The side under test.
enum Backend {
    Ringway(Process),
    Dpdk(TestPmd),
}

impl Backend {
    /// Starts it on its core; it listens on return.
    fn start(options: &Options, role: Role, kind: BackendKind, sockets: &[PathBuf]) -> Result<Self> {
        let backend = match kind {
            BackendKind::Ringway => {
                let mut command = ringway(options, role, sockets)?;
                Self::Ringway(Process::start("ringway", &mut command)?)
            }
            BackendKind::Dpdk => {
                let forward = match role {
                    Role::Sink => Forward::RxOnly,
                    Role::Generate => Forward::TxOnly,
                    Role::Echo => Forward::MacSwap,
                    Role::Switch => Forward::Io,
                };
                let traffic = Traffic {
                    core: options.backend_core,
                    packet_size: options.size,
                    burst: BURST,
                    ..Traffic::new(forward)
                };
                let ports = NetVhost { sockets: sockets.to_vec(), queues: 1, client: false };
                Self::Dpdk(TestPmd::net_vhost(&ports, &traffic)?)
            }
        };
        for socket in sockets {
            backend.wait_listening(socket)?;
        }
        Ok(backend)
    }

    /// Waits for a socket that accepts.
    fn wait_listening(&self, socket: &Path) -> Result<()> {
        let deadline = Instant::now() + START_LIMIT;
        while !socket.exists() {
            if Instant::now() >= deadline {
                bail!("no {} after {START_LIMIT:?}; the back-end said:\n{}", socket.display(), self.output());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // The path appears at bind(), a moment before listen().
        std::thread::sleep(Duration::from_millis(50));
        Ok(())
    }

    /// Lets it go; ringway needs no word for that.
    fn start_traffic(&mut self) -> Result<()> {
        match self {
            Self::Ringway(_) => Ok(()),
            Self::Dpdk(testpmd) => {
                testpmd.wait_link_up(START_LIMIT)?;
                testpmd.start()
            }
        }
    }

    /// Its process id.
    fn pid(&self) -> u32 {
        match self {
            Self::Ringway(process) => process.pid(),
            Self::Dpdk(testpmd) => testpmd.pid(),
        }
    }

    /// What it said.
    fn output(&self) -> String {
        match self {
            Self::Ringway(process) => process.output(),
            Self::Dpdk(testpmd) => testpmd.log(),
        }
    }
}

/// The ringway program in a role, on its core.
fn ringway(options: &Options, role: Role, sockets: &[PathBuf]) -> Result<Command> {
    let mut command = Command::new(find_program("taskset")?);
    command.arg("-c").arg(options.backend_core.to_string()).arg(&options.ringway);
    let uplink = match role {
        Role::Sink => "sink".to_owned(),
        Role::Generate => format!("generate:{}", options.size),
        Role::Echo => "echo".to_owned(),
        Role::Switch => {
            command.arg("switch");
            for (index, socket) in sockets.iter().enumerate() {
                command.arg("--port").arg(format!("port{index}={}", socket.display()));
            }
            return Ok(command);
        }
    };
    command.arg("net");
    command.arg(format!("--socket-path={}", sockets[0].display())).arg(format!("--uplink={uplink}"));
    Ok(command)
}

/// A value alone on its cache lines (and the lines a processor fetches along with them).
#[repr(align(256))]
struct Line(AtomicU64);

/// The time a cache line takes from one core to the other and back.
///
/// The cores may be busy: the time is the 20th percentile of many short chunks, and chunks that were
/// preempted are beyond it. Takes about 10 ms.
fn round_trip([ping, pong]: [usize; 2]) -> Result<Duration> {
    let line = Line(AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    let ready = Barrier::new(2);
    let mut chunks = std::thread::scope(|scope| -> Result<Vec<Duration>> {
        let answering = scope.spawn(|| answer(pong, &line, &stop, &ready));
        let asking = scope.spawn(|| ask(ping, &line, &stop, &ready));
        answering.join().expect("the probe panicked")?;
        asking.join().expect("the probe panicked")
    })?;
    chunks.sort_unstable();
    chunks.get(chunks.len() / 5).copied().context("the cache line probe got no turn")
}

/// One half of the probe: makes odd values even until told to stop.
fn answer(core: usize, line: &Line, stop: &AtomicBool, ready: &Barrier) -> Result<()> {
    let pinned = hold_core(core).inspect_err(|_| stop.store(true, Ordering::Relaxed));
    ready.wait();
    while !stop.load(Ordering::Relaxed) {
        let value = line.0.load(Ordering::Acquire);
        if value % 2 == 1 {
            line.0.store(value + 1, Ordering::Release);
        }
    }
    pinned
}

/// The other half: makes even values odd, and times chunks of round trips.
fn ask(core: usize, line: &Line, stop: &AtomicBool, ready: &Barrier) -> Result<Vec<Duration>> {
    /// Round trips of a chunk: long for the clock, short for the scheduler.
    const ROUNDS: u32 = 16;
    const CHUNKS: usize = 1500;
    /// Ends a probe that hardly gets a turn.
    const LIMIT: Duration = Duration::from_millis(500);

    let pinned = hold_core(core).inspect_err(|_| stop.store(true, Ordering::Relaxed));
    ready.wait();
    let mut chunks = Vec::with_capacity(CHUNKS);
    let end = Instant::now() + LIMIT;
    while chunks.len() < CHUNKS && Instant::now() < end && !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        for _ in 0..ROUNDS {
            let value = line.0.load(Ordering::Relaxed);
            line.0.store(value + 1, Ordering::Release);
            while line.0.load(Ordering::Acquire) == value + 1 && !stop.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        }
        chunks.push(start.elapsed() / ROUNDS);
    }
    stop.store(true, Ordering::Relaxed);
    pinned.map(|()| chunks)
}

/// Pins the calling thread to a core, ahead of what else runs there if that is permitted.
fn hold_core(core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("pin to core {core}"))?;
    // Without the privilege the probe only takes longer to get its turns.
    let _ = setpriority_process(None, -20);
    Ok(())
}

/// Processor time so far, in the kernel's ticks.
struct Load {
    /// When it was read.
    at: Instant,
    /// Of the two cores, by anyone, the host's other guests included.
    cores: u64,
    /// Of the two processes.
    ours: u64,
}

impl Load {
    /// Reads the counters.
    fn read(cores: [usize; 2], pids: [u32; 2]) -> Result<Self> {
        let stat = std::fs::read_to_string("/proc/stat").context("/proc/stat")?;
        let mut this = Self { at: Instant::now(), cores: 0, ours: 0 };
        for core in cores {
            this.cores += busy_ticks(&stat, core).with_context(|| format!("no core {core}"))?;
        }
        for pid in pids {
            let path = format!("/proc/{pid}/stat");
            let text = std::fs::read_to_string(&path).with_context(|| path.clone())?;
            this.ours += process_ticks(&text).context(path)?;
        }
        Ok(this)
    }

    /// The share of the two cores that others took since, in percent.
    #[expect(clippy::cast_precision_loss, reason = "ticks of a few seconds")]
    fn others_since(&self, before: &Self) -> f64 {
        /// Linux tells processor time in hundredths of a second on every machine this runs on.
        const TICKS: f64 = 100.0;
        let others = (self.cores - before.cores).saturating_sub(self.ours - before.ours);
        let interval = (self.at - before.at).as_secs_f64();
        100.0 * others as f64 / (2.0 * TICKS * interval)
    }
}

/// A core's ticks that were not idle, from `/proc/stat`.
fn busy_ticks(stat: &str, core: usize) -> Option<u64> {
    let name = format!("cpu{core}");
    let line = stat.lines().find(|line| line.split_whitespace().next() == Some(&name))?;
    let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; the guests' times after them are in user already.
    Some(ticks.iter().take(8).enumerate().filter(|(i, _)| !matches!(i, 3 | 4)).map(|(_, n)| n).sum())
}

/// A process's user and system ticks, from `/proc/PID/stat`.
fn process_ticks(stat: &str) -> Option<u64> {
    // The name in parentheses may contain anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

/// The comparison: one line for each role, kind of rings and kind of sample.
fn table(samples: &[Sample]) -> String {
    let mut lines = vec![format!(
        "{:<9} {:<17} {:<5} {:>12} {:>12} {:>6}  samples",
        "role", "rings", "cores", "ringway Mpps", "DPDK Mpps", "ratio"
    )];
    for role in Role::value_variants() {
        for distance in [Distance::Near, Distance::Far] {
            for rings in Rings::value_variants() {
                lines.extend(row(samples, *role, *rings, distance));
            }
        }
    }
    lines.join("\n")
}

/// A line of the table, if there are samples for it.
fn row(samples: &[Sample], role: Role, rings: Rings, distance: Distance) -> Option<String> {
    let of = |backend| -> Vec<f64> {
        let same = |s: &&Sample| {
            s.role == role && s.rings == rings && s.distance == distance && s.backend == backend
        };
        samples.iter().filter(same).map(|s| s.mpps).collect()
    };
    let (ringway, dpdk) = (of(BackendKind::Ringway), of(BackendKind::Dpdk));
    let (ours, theirs) = (median(&ringway), median(&dpdk));
    ours.or(theirs)?;
    let ratio = ours.zip(theirs).map(|(ours, theirs)| ours / theirs);
    let number = |n: Option<f64>| n.map_or("-".to_owned(), |n| format!("{n:.2}"));
    Some(format!(
        "{role:<9} {rings:<17} {distance:<5} {:>12} {:>12} {:>6}  {}+{}",
        number(ours),
        number(theirs),
        number(ratio),
        ringway.len(),
        dpdk.len()
    ))
}

/// The middle value, or the mean of the two in the middle.
fn median(values: &[f64]) -> Option<f64> {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let upper = *values.get(values.len() / 2)?;
    Some(if values.len() % 2 == 1 { upper } else { f64::midpoint(values[values.len() / 2 - 1], upper) })
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

    #[test]
    fn ringway_in_each_role() {
        let line = ["bench", "--ringway=/r", "--size=128", "--backend-core=3"];
        let options = Cli::try_parse_from(line).unwrap().options;
        let sockets = ["/s/0".into(), "/s/1".into()];
        let arguments = |role| -> String {
            let command = ringway(&options, role, &sockets).unwrap();
            command.get_args().map(|a| a.to_str().unwrap()).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(arguments(Role::Sink), "-c 3 /r net --socket-path=/s/0 --uplink=sink");
        assert_eq!(arguments(Role::Generate), "-c 3 /r net --socket-path=/s/0 --uplink=generate:128");
        assert_eq!(arguments(Role::Echo), "-c 3 /r net --socket-path=/s/0 --uplink=echo");
        assert_eq!(arguments(Role::Switch), "-c 3 /r switch --port port0=/s/0 --port port1=/s/1");
    }

    #[test]
    fn medians() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3.0, 1.0, 2.0]), Some(2.0));
        assert_eq!(median(&[4.0, 1.0, 2.0, 3.0]), Some(2.5));
    }

    #[test]
    fn only_like_samples_are_compared() {
        let rings = Rings::PackedInOrder;
        let sample = |backend, distance, mpps| Sample { role: Role::Echo, rings, backend, distance, mpps };
        let text = table(&[
            sample(BackendKind::Ringway, Distance::Near, 6.0),
            sample(BackendKind::Dpdk, Distance::Near, 3.0),
            sample(BackendKind::Dpdk, Distance::Far, 1.0),
        ]);
        let lines: Vec<Vec<&str>> = text.lines().skip(1).map(|l| l.split_whitespace().collect()).collect();
        assert_eq!(lines[0], ["echo", "packed-in-order", "near", "6.00", "3.00", "2.00", "1+1"]);
        assert_eq!(lines[1], ["echo", "packed-in-order", "far", "-", "1.00", "-", "0+1"]);
    }

    #[test]
    fn ticks_from_proc() {
        let stat = "cpu  1 1 1 1 1 1 1 1 1 1\ncpu0 1 2 3 900 800 6 7 8 70 70\ncpu10 9 9 9 9 9 9 9 9 9 9\n";
        assert_eq!(busy_ticks(stat, 0), Some(27));
        assert_eq!(busy_ticks(stat, 1), None);
        let stat = "42 (a) b) S 1 2 3 4 5 6 7 8 9 10 150 25 0 0";
        assert_eq!(process_ticks(stat), Some(175));
    }

    #[test]
    fn distances() {
        assert_eq!(Distance::of(Duration::from_nanos(60)), Distance::Near);
        assert_eq!(Distance::of(Duration::from_nanos(350)), Distance::Far);
    }
}
