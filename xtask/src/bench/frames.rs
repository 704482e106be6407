//! Rows with DPDK's driver: frames as fast as they go, in every role, between the driver's core and the back-end's.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use ringway_testkit::dpdk::{Forward, Rates, TestPmd, Traffic, VirtioUser};
use ringway_testkit::frontend::NetFrontend;
use ringway_testkit::frontend::wire::feature;
use ringway_testkit::process::Process;
use rustix::process::Signal;
use tempfile::TempDir;

use super::backends::{BURST, Backend, Effort, Kind, Role};
use super::idle::attach;
use super::machine::HugePages;
use super::results::{Detail, Figure, Limit};
use super::sampling::{Cell, Taken, take};
use super::{Options, peer};

/// Caches and rings settle before the sample.
const WARM_UP: Duration = Duration::from_millis(500);
/// MAC addresses of the driver's two ports in `switch`.
const MACS: [&str; 2] = ["02:00:00:00:01:00", "02:00:00:00:01:01"];
/// 800 MiB: Open vSwitch takes 512, a driver that wants huge pages 200.
const PAGES: u64 = 400;
/// From here on a core that moves frames is taken to be what a row waits for.
const BUSY: f64 = 0.9;
/// A driver that finds the ring full this often waits for the back-end.
const FULL: f64 = 0.02;

/// What the driver asks for: the rings' format, `IN_ORDER`, and its own SIMD data path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Rings {
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
    pub(super) fn is_packed(self) -> bool {
        !matches!(self, Self::Split | Self::SplitInOrder)
    }

    pub(super) fn is_in_order(self) -> bool {
        !matches!(self, Self::Split | Self::Packed)
    }
}

impl fmt::Display for Rings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Split => "split",
            Self::SplitInOrder => "split in order",
            Self::Packed => "packed",
            Self::PackedInOrder => "packed in order",
            Self::PackedVectorized => "packed vectorized",
        })
    }
}

/// How a sample is set up.
#[derive(Clone, Copy)]
pub(super) struct Setup {
    pub(super) role: Role,
    pub(super) kind: Kind,
    pub(super) rings: Rings,
    pub(super) size: u16,
    pub(super) huge_pages: bool,
    /// Ports besides the driver's, with front-ends that do nothing.
    pub(super) idle: usize,
}

/// A back-end under the driver's traffic.
struct Bench {
    role: Role,
    driver: TestPmd,
    backend: Backend,
    _idle: Vec<NetFrontend>,
    /// The sockets' directory goes last.
    _directory: TempDir,
}

/// The role's row: every kind of rings and every size, all back-ends.
pub(super) fn role(options: &Options, topic: &str, role: Role) -> Taken {
    let mut taken = Taken::default();
    let (kinds, _pages) = able(options, topic, role, &mut taken);
    for (size, rings) in cases(options) {
        let cell = |&kind: &Kind| {
            let setup = Setup { role, kind, rings, size, huge_pages: false, idle: 0 };
            Cell::new(case(size, rings), kind.side(role), move || sample(options, setup))
        };
        taken.extend(take(topic, kinds.iter().map(cell).collect(), options.samples()));
    }
    taken
}

/// The back-ends that can play a role here, and the huge pages that one of them needs.
fn able(options: &Options, topic: &str, role: Role, taken: &mut Taken) -> (Vec<Kind>, Option<HugePages>) {
    let mut kinds = options.backend.clone();
    kinds.retain(|kind| kind.plays(role));
    let pages = kinds.contains(&Kind::Ovs).then(|| HugePages::reserve(PAGES)).transpose();
    let pages = pages.unwrap_or_else(|error| {
        taken.fail(&format!("{topic}: {}", Kind::Ovs.side(role)), &error);
        kinds.retain(|kind| *kind != Kind::Ovs);
        None
    });
    (kinds, pages)
}

/// The switch, for a driver whose memory is of ordinary pages, and of huge ones.
pub(super) fn pages(options: &Options, topic: &str) -> Result<Taken> {
    let _pages = HugePages::reserve(PAGES)?;
    let mut taken = Taken::default();
    for (size, rings) in shortest(options) {
        let cell = |(side, huge_pages)| {
            let setup = Setup { role: Role::Switch, kind: Kind::Ringway, rings, size, huge_pages, idle: 0 };
            Cell::new(case(size, rings), side, move || sample(options, setup))
        };
        let sides = [("4 KiB pages", false), ("huge pages", true)];
        taken.extend(take(topic, sides.map(cell).into(), options.samples()));
    }
    Ok(taken)
}

/// The switch with more ports than are busy.
pub(super) fn ports(options: &Options, topic: &str) -> Taken {
    let mut taken = Taken::default();
    for (size, rings) in shortest(options) {
        let cell = |ports: usize| {
            let idle = ports - 2;
            let setup =
                Setup { role: Role::Switch, kind: Kind::Ringway, rings, size, huge_pages: false, idle };
            Cell::new(case(size, rings), format!("{ports} ports"), move || sample(options, setup))
        };
        taken.extend(take(topic, [2, 16, 64].map(cell).into(), options.samples()));
    }
    taken
}

/// System calls of the switch under load, as strace counts them: so few that more samples say no more.
pub(super) fn calls(options: &Options, topic: &str) -> Taken {
    let role = Role::Switch;
    let mut taken = Taken::default();
    let (kinds, _pages) = able(options, topic, role, &mut taken);
    for (size, rings) in shortest(options) {
        let cell = |&kind: &Kind| {
            let setup = Setup { role, kind, rings, size, huge_pages: false, idle: 0 };
            Cell::new(case(size, rings), kind.side(role), move || count_calls(options, setup))
        };
        taken.extend(take(topic, kinds.iter().map(cell).collect(), options.samples().min(3)));
    }
    taken
}

/// Every size with every kind of rings.
fn cases(options: &Options) -> Vec<(u16, Rings)> {
    options.size.iter().flat_map(|&size| options.rings.iter().map(move |&rings| (size, rings))).collect()
}

/// The same for the first size only.
pub(super) fn shortest(options: &Options) -> Vec<(u16, Rings)> {
    cases(options).into_iter().take(options.rings.len()).collect()
}

fn case(size: u16, rings: Rings) -> String {
    format!("{size} B, {rings}")
}

/// Starts both sides, measures once, and ends them.
pub(super) fn sample(options: &Options, setup: Setup) -> Result<Figure> {
    let mut bench = Bench::start(options, setup)?;
    let ((rates, effort), distance) = options.common.watch().during(|| bench.measure(options.interval()))?;
    let frames = bench.frames_per_second(&rates)?;
    let mut details = BTreeMap::new();
    details.insert(Detail::NanosPerFrame, 1e9 * effort.processor / frames);
    details.extend(effort.busy.map(|busy| (Detail::Busy, 100.0 * busy)));
    let limit = match setup.role {
        Role::Sink | Role::Echo => {
            let full = rates.tx_dropped_pps / (rates.tx_pps + rates.tx_dropped_pps);
            details.insert(Detail::RingFull, 100.0 * full);
            Some(limit_by_full_ring(full))
        }
        Role::Generate | Role::Switch => {
            details.extend(rates.busy.map(|busy| (Detail::FrontBusy, 100.0 * busy)));
            limit_by_share(rates.busy, effort.busy)
        }
    };
    Ok(Figure { value: frames / 1e6, distance, limit, details })
}

/// What a row waits for whose driver sends by itself, by the share of its frames that found the ring full.
pub(super) fn limit_by_full_ring(full: f64) -> Limit {
    if full > FULL { Limit::BackEnd } else { Limit::FrontEnd }
}

/// What a row waits for, by the shares of time in which the two sides moved frames.
pub(super) fn limit_by_share(driver: Option<f64>, backend: Option<f64>) -> Option<Limit> {
    let is_busy = |share: Option<f64>| share.is_some_and(|share| share > BUSY);
    if is_busy(driver) { Some(Limit::FrontEnd) } else { is_busy(backend).then_some(Limit::BackEnd) }
}

/// The same, but for strace on the back-end.
fn count_calls(options: &Options, setup: Setup) -> Result<Figure> {
    let mut bench = Bench::start(options, setup)?;
    let before = bench.backend.counters()?;
    let mut trace = Trace::start(&[bench.backend.pid()])?;
    // To ask the back-end for its effort would cost it calls.
    let (rates, distance) = options.common.watch().during(|| bench.driver.measure(options.interval()))?;
    let (calls, interval) = trace.finish()?;
    let frames = bench.frames_per_second(&rates)?;
    let mut details = BTreeMap::new();
    if let Some((before, after)) = before.zip(bench.backend.counters()?) {
        let sum = |name| ["p0", "p1"].iter().map(|p| after.get(p, name) - before.get(p, name)).sum::<u64>();
        let delivered = sum("to").max(1);
        #[expect(clippy::cast_precision_loss, reason = "frames of a few seconds")]
        let per_million = |name| 1e6 * sum(name) as f64 / delivered as f64;
        details.insert(Detail::Kicks, per_million("kicks"));
        details.insert(Detail::Calls, per_million("calls"));
    }
    let value = 1e3 * f64::from(calls) / (frames * interval.as_secs_f64());
    Ok(Figure { value, distance, limit: None, details })
}

impl Bench {
    /// Starts both sides, frames moving on return.
    fn start(options: &Options, setup: Setup) -> Result<Self> {
        let Setup { role, kind, rings, size, huge_pages, idle } = setup;
        let directory = tempfile::tempdir().context("a directory for sockets")?;
        let busy = if role == Role::Switch { 2 } else { 1 };
        let sockets: Vec<PathBuf> =
            (0..busy + idle).map(|i| directory.path().join(format!("p{i}"))).collect();

        let mut backend = Backend::start(options, kind, role, size, &sockets)?;
        let idle = sockets[busy..].iter().map(|socket| attach(socket)).collect::<Result<_>>()?;
        let ports = VirtioUser {
            sockets: sockets[..busy].to_vec(),
            macs: MACS.map(String::from).to_vec(),
            queue_size: options.queue_size,
            mrg_rxbuf: options.mrg_rxbuf,
            in_order: rings.is_in_order(),
            packed: rings.is_packed(),
            vectorized: rings == Rings::PackedVectorized,
            huge_pages,
            ..VirtioUser::new("")
        };
        let mut driver = TestPmd::virtio_user(&ports, &traffic(options, role, size))?;
        check(rings, &driver)?;
        driver.record_cycles()?;
        backend.start_traffic()?;
        if role == Role::Switch {
            // Half a ring for each direction: no burst ever finds a ring full.
            driver.start_with_bursts(u32::from(options.queue_size / 2 / BURST))?;
        } else {
            driver.start()?;
        }
        std::thread::sleep(WARM_UP);
        Ok(Self { role, driver, backend, _idle: idle, _directory: directory })
    }

    fn measure(&mut self, interval: Duration) -> Result<(Rates, Effort)> {
        let mark = self.backend.mark()?;
        let rates = self.driver.measure(interval)?;
        Ok((rates, self.backend.since(&mark)?))
    }

    /// What the role counts.
    fn frames_per_second(&self, rates: &Rates) -> Result<f64> {
        let frames = if self.role == Role::Sink { rates.tx_pps } else { rates.rx_pps };
        ensure!(frames > 0.0, "no frame moved; the back-end said:\n{}", self.backend.output());
        Ok(frames)
    }
}

/// Sees that the rings are what was asked for: a driver does silently without what the back-end lacks.
fn check(rings: Rings, driver: &TestPmd) -> Result<()> {
    let features = driver.features().context("testpmd does not say what was agreed")?;
    let has = |bit| features & bit != 0;
    ensure!(!rings.is_packed() || has(feature::RING_PACKED), "the back-end has no packed rings");
    ensure!(!rings.is_in_order() || has(feature::IN_ORDER), "the back-end does not use rings in order");
    let vectorized = driver.data_paths().iter().any(|path| path.contains("vectorized"));
    ensure!(rings != Rings::PackedVectorized || vectorized, "the driver uses no SIMD with this back-end");
    Ok(())
}

/// What the driver does in a role.
fn traffic(options: &Options, role: Role, size: u16) -> Traffic {
    let forward = match role {
        Role::Sink => Forward::TxOnly,
        Role::Generate => Forward::RxOnly,
        Role::Echo => Forward::FlowGen,
        Role::Switch => Forward::Mac,
    };
    Traffic {
        core: options.common.driver_core,
        packet_size: size,
        burst: BURST,
        // Each port sends to the other.
        peers: if role == Role::Switch {
            MACS.iter().rev().map(ToString::to_string).collect()
        } else {
            vec![]
        },
        ..Traffic::new(forward)
    }
}

/// strace on processes and all their threads; it stops them at system calls only.
pub(super) struct Trace {
    strace: Process,
    since: std::time::Instant,
}

impl Trace {
    pub(super) fn start(pids: &[u32]) -> Result<Self> {
        let mut command = Command::new(peer("usr/bin/strace"));
        command.args(["-c", "-f"]).env("LC_ALL", "C");
        for pid in pids {
            command.args(["-p", &pid.to_string()]);
        }
        let strace = Process::start("strace", &mut command)?;
        for pid in pids {
            strace.wait_for(&format!("Process {pid} attached"), LIMIT)?;
        }
        Ok(Self { strace, since: std::time::Instant::now() })
    }

    /// Ends it: how many calls it saw, in which time.
    pub(super) fn finish(&mut self) -> Result<(u32, Duration)> {
        let interval = self.since.elapsed();
        self.strace.signal(Signal::INT)?;
        self.strace.wait(LIMIT)?;
        Ok((parse_calls(&self.strace.output())?, interval))
    }
}

/// For strace to begin and to end.
const LIMIT: Duration = Duration::from_secs(10);

/// Reads the line `100.00 0.001 1 1234 [errors] total` of strace's table, which there is only if there was a call.
pub(super) fn parse_calls(text: &str) -> Result<u32> {
    let Some(line) = text.lines().find(|line| line.trim_end().ends_with(" total")) else { return Ok(0) };
    let calls = line.split_whitespace().nth(3).and_then(|calls| calls.parse().ok());
    calls.with_context(|| format!("strace said:\n{text}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_strace_counted() {
        let table = "strace: Process 1 attached with 2 threads\n% time     seconds  usecs/call     calls    errors syscall\n\
                     ------ ----------- ----------- --------- --------- ----------------\n \
                     98.69    0.000301           1       201         3 epoll_wait\n\
                     ------ ----------- ----------- --------- --------- ----------------\n\
                     100.00    0.000305           1       204         3 total\n";
        assert_eq!(parse_calls(table).unwrap(), 204);
        assert_eq!(parse_calls("strace: Process 1 attached\nstrace: Process 1 detached\n").unwrap(), 0);
    }
}
