//! The driver's process: started on its core, told what to ask, and listened to.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringway_testkit::process::Process;
use serde::Deserialize;

use super::Options;
use super::workload::Workload;

/// For the driver to be attached, or to answer after its time.
const LIMIT: Duration = Duration::from_secs(15);
/// What it says before its figures.
const MEASURING: &str = "measuring\n";

/// What it counted.
#[derive(Clone, Copy, Debug, PartialEq, Deserialize)]
pub(super) struct Report {
    pub(super) requests: f64,
    pub(super) seconds: f64,
    /// The share of the time that it was busy.
    pub(super) busy: f64,
    /// Processor seconds.
    pub(super) processor: f64,
    pub(super) kicks: f64,
    /// Latencies in microseconds.
    pub(super) p50: f64,
    pub(super) p99: f64,
    pub(super) p999: f64,
}

/// A running driver.
pub(super) struct Driver {
    process: Process,
    time: Duration,
}

impl Driver {
    /// Starts it; it fills its queues at once.
    pub(super) fn start(options: &Options, socket: &Path, workload: Workload) -> Result<Self> {
        let Workload { pattern, depth, queues, driver } = workload;
        let time = options.interval();
        let mut command = command(options, socket);
        command.args(["--driver", driver.name()]);
        command.args(["--time", &time.as_millis().to_string(), "--queues", &queues.to_string()]);
        command.args(["--depth", &depth.to_string(), "--block", &pattern.block().to_string()]);
        command.args(pattern.is_write().then_some("--write"));
        command.args(pattern.is_sequential().then_some("--sequential"));
        Ok(Self { process: Process::start("disk-driver", &mut command)?, time })
    }

    /// Attaches it; it asks nothing.
    pub(super) fn idle(options: &Options, socket: &Path) -> Result<Self> {
        let process = Process::start("disk-driver", command(options, socket).arg("--idle"))?;
        process.wait_for("ready\n", LIMIT)?;
        Ok(Self { process, time: Duration::ZERO })
    }

    /// Has it write the whole disk once.
    pub(super) fn write_all(options: &Options, socket: &Path) -> Result<()> {
        let mut command = command(options, socket);
        command.args(["--once", "--write", "--sequential", "--block", "131072"]);
        let status = Process::start("disk-driver", &mut command)?.wait(LIMIT)?;
        ensure!(status.success(), "the driver could not write the disk: {status}");
        Ok(())
    }

    /// Waits until it begins to count.
    pub(super) fn wait_measuring(&mut self) -> Result<()> {
        self.process.wait_for(MEASURING, LIMIT).map(drop)
    }

    /// What it counted, at the end of its time.
    pub(super) fn report(&mut self) -> Result<Report> {
        let from = self.process.wait_for(MEASURING, LIMIT)?;
        let end = self.process.wait_for_from(from, "\n", self.time + LIMIT)?;
        serde_json::from_str(&self.process.output()[from..end]).context("what the driver says")
    }
}

fn command(options: &Options, socket: &Path) -> Command {
    let mut command = Command::new(&options.driver);
    command.arg("--socket").arg(socket).args(["--core", &options.common.driver_core.to_string()]);
    command
}
