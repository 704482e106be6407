//! The machine: how far apart its two cores are, who else uses them, what it is, and its huge pages.
//!
//! The cores of a virtual machine may share a cache or not, and may be moved between two samples; every figure then
//! changes by a factor of two or three. A probe before and after each sample times the round trip of a cache line
//! between the two cores, and only samples of the same kind are compared.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::process::Command;
use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::{Deserialize, Serialize};

/// Where the two cores are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Distance {
    /// They share a cache.
    Near,
    /// They do not.
    Far,
}

impl Distance {
    pub(super) const ALL: [Self; 2] = [Self::Near, Self::Far];

    /// Judges the round trip of a cache line: about 60 ns or about 350 ns.
    pub(super) fn of(round_trip: Duration) -> Self {
        if round_trip < Duration::from_nanos(150) { Self::Near } else { Self::Far }
    }
}

impl fmt::Display for Distance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(if *self == Self::Near { "near" } else { "far" })
    }
}

/// A value alone on its cache lines (and the lines a processor fetches along with them).
#[repr(align(256))]
struct Line(AtomicU64);

/// The time a cache line takes from one core to the other and back.
///
/// The cores may be busy: the time is the 20th percentile of many short chunks, and chunks that were
/// preempted are beyond it. Takes about 10 ms.
pub(super) fn round_trip([ping, pong]: [usize; 2]) -> Result<Duration> {
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
pub(super) struct Load {
    /// When it was read.
    at: Instant,
    /// Of the two cores, by anyone, the host's other guests included.
    cores: u64,
    /// Of this process and all that it has started.
    ours: u64,
}

impl Load {
    /// Reads the counters.
    pub(super) fn read(cores: [usize; 2]) -> Result<Self> {
        let stat = fs::read_to_string("/proc/stat").context("/proc/stat")?;
        let mut this = Self { at: Instant::now(), cores: 0, ours: 0 };
        for core in cores {
            this.cores += busy_ticks(&stat, core).with_context(|| format!("no core {core}"))?;
        }
        this.ours = tree_ticks(&processes()?, std::process::id());
        Ok(this)
    }

    /// The share of the two cores that others took since, in percent.
    #[expect(clippy::cast_precision_loss, reason = "ticks of a few seconds")]
    pub(super) fn others_since(&self, before: &Self) -> f64 {
        /// Linux tells processor time in hundredths of a second on every machine this runs on.
        const TICKS: f64 = 100.0;
        let ours = self.ours.saturating_sub(before.ours);
        let others = (self.cores - before.cores).saturating_sub(ours);
        let interval = (self.at - before.at).as_secs_f64();
        100.0 * others as f64 / (2.0 * TICKS * interval)
    }
}

/// A process's parent, and the ticks of it and of its children that have ended.
struct Usage {
    parent: u32,
    ticks: u64,
}

/// All processes of the machine.
fn processes() -> Result<BTreeMap<u32, Usage>> {
    let pids = fs::read_dir("/proc").context("/proc")?.filter_map(|entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        // One that has ended since is none.
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        Some((pid, usage(&stat)?))
    });
    Ok(pids.collect())
}

/// The ticks of a process and of all below it.
fn tree_ticks(processes: &BTreeMap<u32, Usage>, root: u32) -> u64 {
    let below = |pid: u32| {
        // A machine changes while it is looked at: no more steps than there are processes.
        let line = std::iter::successors(Some(pid), |pid| processes.get(pid).map(|usage| usage.parent));
        line.take(processes.len()).any(|ancestor| ancestor == root)
    };
    processes.iter().filter(|(pid, _)| below(**pid)).map(|(_, usage)| usage.ticks).sum()
}

/// A core's ticks that were not idle, from `/proc/stat`.
fn busy_ticks(stat: &str, core: usize) -> Option<u64> {
    let name = format!("cpu{core}");
    let line = stat.lines().find(|line| line.split_whitespace().next() == Some(&name))?;
    let ticks: Vec<u64> = line.split_whitespace().skip(1).filter_map(|n| n.parse().ok()).collect();
    // user nice system idle iowait irq softirq steal; the guests' times after them are in user already.
    Some(ticks.iter().take(8).enumerate().filter(|(i, _)| !matches!(i, 3 | 4)).map(|(_, n)| n).sum())
}

/// Reads `/proc/PID/stat`.
fn usage(stat: &str) -> Option<Usage> {
    // The name in parentheses may contain anything.
    let (_, rest) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let times = fields.get(11..15)?.iter().filter_map(|field| field.parse::<u64>().ok());
    Some(Usage { parent: fields.get(1)?.parse().ok()?, ticks: times.sum() })
}

/// The processor time that a process's threads have taken, those that have ended apart.
pub(super) fn processor_time(pid: u32) -> Result<Duration> {
    threads(pid, |_| true)
}

/// The same of the threads whose names are wanted.
pub(super) fn threads(pid: u32, wanted: impl Fn(&str) -> bool) -> Result<Duration> {
    let mut nanos = 0;
    for entry in fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("no process {pid}"))? {
        let thread = entry?.path();
        // One that has ended since is none.
        let Ok(name) = fs::read_to_string(thread.join("comm")) else { continue };
        let Ok(text) = fs::read_to_string(thread.join("schedstat")) else { continue };
        if wanted(name.trim_end()) {
            nanos += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).context("schedstat")?;
        }
    }
    Ok(Duration::from_nanos(nanos))
}

/// Huge pages, reserved for as long as this lives.
pub(super) struct HugePages {
    before: u64,
}

const HUGE_PAGES: &str = "/proc/sys/vm/nr_hugepages";

impl HugePages {
    /// Makes sure that there are so many, of 2 MiB.
    pub(super) fn reserve(pages: u64) -> Result<Self> {
        let read = || -> Result<u64> { Ok(fs::read_to_string(HUGE_PAGES)?.trim().parse()?) };
        let this = Self { before: read().context(HUGE_PAGES)? };
        if this.before < pages {
            fs::write(HUGE_PAGES, pages.to_string()).context("cannot reserve huge pages (are you root?)")?;
            let got = read()?;
            ensure!(got >= pages, "{got} huge pages of {pages}: the machine's memory is too fragmented");
        }
        Ok(this)
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        // There is nobody to tell.
        let _ = fs::write(HUGE_PAGES, self.before.to_string());
    }
}

/// When and where, and which versions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Machine {
    /// The day, in UTC.
    pub(super) date: String,
    pub(super) processor: String,
    pub(super) cores: usize,
    pub(super) memory: String,
    pub(super) kernel: String,
    /// Programs and their versions.
    pub(super) versions: Vec<(String, String)>,
}

impl Machine {
    /// This one, now, with the peers' versions.
    pub(super) fn here(peers: Vec<(&'static str, String)>) -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let (processor, memory) = (read("/proc/cpuinfo"), read("/proc/meminfo"));
        let field = |text: &str, name| -> String {
            let line = text.lines().find(|line| line.starts_with(name));
            line.and_then(|line| line.split_once(':')).map_or("unknown", |(_, value)| value.trim()).to_owned()
        };
        let ringway = ("ringway", said("git", &["describe", "--always", "--dirty"]));
        let versions = std::iter::once(ringway).chain(peers);
        Self {
            date: said("date", &["-u", "+%F"]),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            processor: field(&processor, "model name"),
            memory: gibibytes(&field(&memory, "MemTotal")),
            kernel: read("/proc/sys/kernel/osrelease").trim().to_owned(),
            versions: versions.map(|(name, version)| (name.to_owned(), version)).collect(),
        }
    }
}

/// The version of an installed package.
pub(super) fn package(name: &str) -> String {
    said("dpkg-query", &["-W", "-f=${Version}", name])
}

/// `24684092 kB` in larger pieces.
#[expect(clippy::cast_precision_loss, reason = "for people to read")]
fn gibibytes(text: &str) -> String {
    let kibibytes = text.split(' ').next().and_then(|n| n.parse::<u64>().ok());
    kibibytes
        .map_or_else(|| text.to_owned(), |kibibytes| format!("{:.0} GiB", kibibytes as f64 / 1_048_576.0))
}

/// The first line that a program says, or that it said nothing.
pub(super) fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_of_a_core() {
        let stat = "cpu  1 1 1 1 1 1 1 1 1 1\ncpu0 1 2 3 900 800 6 7 8 70 70\ncpu10 9 9 9 9 9 9 9 9 9 9\n";
        assert_eq!(busy_ticks(stat, 0), Some(27));
        assert_eq!(busy_ticks(stat, 1), None);
    }

    #[test]
    fn ticks_of_all_below_a_process() {
        let stat = "42 (a) b) S 7 2 3 4 5 6 7 8 9 10 150 25 3 2 0";
        let Usage { parent, ticks } = usage(stat).unwrap();
        assert_eq!((parent, ticks), (7, 180));

        let of = |parent, ticks| Usage { parent, ticks };
        let processes = [(1, of(0, 1000)), (5, of(1, 1)), (6, of(5, 20)), (7, of(6, 300)), (8, of(1, 5000))];
        assert_eq!(tree_ticks(&processes.into(), 5), 321);
    }

    #[test]
    fn time_of_this_process() {
        let before = processor_time(std::process::id()).unwrap();
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(20) {
            std::hint::spin_loop();
        }
        // The statistics are renewed at each tick.
        std::thread::sleep(Duration::from_millis(20));
        assert!(processor_time(std::process::id()).unwrap() > before);
    }

    #[test]
    fn sizes_for_people() {
        assert_eq!(gibibytes("24684092 kB"), "24 GiB");
        assert_eq!(gibibytes("unknown"), "unknown");
    }

    #[test]
    fn distances() {
        assert_eq!(Distance::of(Duration::from_nanos(60)), Distance::Near);
        assert_eq!(Distance::of(Duration::from_nanos(350)), Distance::Far);
    }
}
