//! fio in the server's place: the same requests, straight on the file.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringway_testkit::process::{Process, find_program};
use serde::Deserialize;

use super::Options;
use super::workload::Workload;
use crate::bench::frames::parse_calls;
use crate::bench::machine::processor_time;
use crate::bench::peer;
use crate::bench::results::{Detail, Figure};

/// Before it counts, and before its processor time is looked at.
const WARM_UP: Duration = Duration::from_millis(300);
/// For it to end after its time.
const LIMIT: Duration = Duration::from_secs(15);

/// What fio says, as far as it is needed.
#[derive(Deserialize)]
struct Output {
    jobs: Vec<Job>,
}

#[derive(Deserialize)]
struct Job {
    error: i32,
    read: Side,
    write: Side,
}

#[derive(Deserialize)]
struct Side {
    iops: f64,
    total_ios: f64,
    lat_ns: Latencies,
}

#[derive(Deserialize)]
struct Latencies {
    #[serde(default)]
    percentile: BTreeMap<String, f64>,
}

/// Measures once.
pub(super) fn sample(options: &Options, file: &Path, workload: Workload) -> Result<Figure> {
    let mut fio = Command::new(find_program("taskset")?);
    fio.args(["-c", &options.common.backend_core.to_string()]).arg(find_program("fio")?);
    fio.args(arguments(file, workload, options.interval() + WARM_UP, WARM_UP));
    let ((side, processors), distance) = options.common.watch().during(|| {
        let mut fio = Process::start("fio", &mut fio)?;
        // Half of the extra time goes before, half behind the part that is looked at.
        std::thread::sleep(WARM_UP + WARM_UP / 2);
        let (before, start) = (processor_time(fio.pid())?, Instant::now());
        std::thread::sleep(options.interval());
        let time = processor_time(fio.pid())?.saturating_sub(before);
        let processors = time.as_secs_f64() / start.elapsed().as_secs_f64();
        fio.wait(LIMIT)?;
        Ok((parse(&fio.output(), workload)?, processors))
    })?;
    let percentile = |name| side.lat_ns.percentile.get(name).copied().unwrap_or(f64::NAN) / 1e3;
    let details = BTreeMap::from([
        (Detail::Megabytes, side.iops * workload.bytes() / 1e6),
        (Detail::P50, percentile("50.000000")),
        (Detail::P99, percentile("99.000000")),
        (Detail::P999, percentile("99.900000")),
        (Detail::Busy, 100.0 * processors),
        (Detail::BackendSeconds, 1e6 * processors / side.iops),
    ]);
    Ok(Figure { value: side.iops / 1e3, distance, limit: None, details })
}

/// Counts the system calls of a whole run, its start and end included.
pub(super) fn count_calls(options: &Options, file: &Path, workload: Workload) -> Result<Figure> {
    let mut strace = Command::new(find_program("taskset")?);
    strace.args(["-c", &options.common.backend_core.to_string()]).arg(peer("usr/bin/strace"));
    strace.args(["-c", "-f"]).env("LC_ALL", "C").arg(find_program("fio")?);
    strace.args(arguments(file, workload, options.interval(), Duration::ZERO));
    let (output, distance) = options.common.watch().during(|| {
        let mut strace = Process::start("fio", &mut strace)?;
        strace.wait(options.interval() + LIMIT)?;
        Ok(strace.output())
    })?;
    let requests = parse(&output, workload)?.total_ios;
    let value = 1e3 * f64::from(parse_calls(&output)?) / requests;
    Ok(Figure { value, distance, limit: None, details: BTreeMap::new() })
}

fn arguments(file: &Path, workload: Workload, time: Duration, ramp: Duration) -> Vec<String> {
    let Workload { pattern, depth, queues, .. } = workload;
    let order = if pattern.is_sequential() { "" } else { "rand" };
    let direction = if pattern.is_write() { "write" } else { "read" };
    let mut arguments: Vec<String> = [
        "--name=disk",
        "--ioengine=io_uring",
        "--direct=1",
        "--thread",
        "--time_based",
        "--group_reporting",
        "--randrepeat=0",
        "--norandommap",
        "--lat_percentiles=1",
        "--clat_percentiles=0",
        "--percentile_list=50:99:99.9",
        "--output-format=json",
    ]
    .map(String::from)
    .into();
    arguments.push(format!("--filename={}", file.display()));
    arguments.push(format!("--rw={order}{direction}"));
    arguments.push(format!("--bs={}", pattern.block()));
    arguments.push(format!("--iodepth={depth}"));
    arguments.push(format!("--numjobs={queues}"));
    arguments.push(format!("--runtime={}ms", time.as_millis()));
    arguments.push(format!("--ramp_time={}ms", ramp.as_millis()));
    if pattern.is_sequential() {
        // Each job has a part of the file, as each queue of the driver has.
        arguments.push(format!("--offset_increment={}%", 100 / queues));
        arguments.push(format!("--size={}%", 100 / queues));
    }
    arguments
}

/// What the jobs did together.
fn parse(text: &str, workload: Workload) -> Result<Side> {
    let said = || format!("fio said:\n{text}");
    let (start, end) = text.find("{\n").zip(text.rfind("\n}")).with_context(said)?;
    let output: Output = serde_json::from_str(&text[start..end + 2]).with_context(said)?;
    let job = output.jobs.into_iter().next().context("fio had no job")?;
    ensure!(job.error == 0, "fio: {}", std::io::Error::from_raw_os_error(job.error));
    let side = if workload.pattern.is_write() { job.write } else { job.read };
    ensure!(side.total_ios > 0.0, "no request completed");
    Ok(side)
}

#[cfg(test)]
mod tests {
    use super::super::workload::{Pattern, Whose};
    use super::*;

    #[test]
    fn what_fio_said() {
        let side =
            |iops| format!("{{\"iops\": {iops}, \"total_ios\": 7, \"lat_ns\": {{\"min\": 1}}, \"more\": 0}}");
        let text = format!(
            "fio: a warning\n{{\n\"jobs\": [ {{ \"error\": 0, \"read\": {}, \"write\": {} }} ]\n}}\n% time calls\n",
            side(3),
            side(4)
        );
        let driver = Whose::VirtioDriver;
        let workload = |pattern| Workload { pattern, depth: 1, queues: 1, driver };
        let iops = |pattern| parse(&text, workload(pattern)).unwrap().iops;
        assert!((iops(Pattern::RandRead) - 3.0).abs() < 1e-9);
        assert!((iops(Pattern::SeqWrite) - 4.0).abs() < 1e-9);
        assert!(parse("fio: no such engine\n", workload(Pattern::RandRead)).is_err());
    }

    #[test]
    fn what_fio_is_told() {
        let driver = Whose::VirtioDriver;
        let workload = Workload { pattern: Pattern::SeqRead, depth: 32, queues: 2, driver };
        let told = arguments(Path::new("/f"), workload, Duration::from_secs(1), Duration::ZERO).join(" ");
        assert!(told.contains("--rw=read --bs=131072 --iodepth=32 --numjobs=2 --runtime=1000ms"), "{told}");
    }
}
